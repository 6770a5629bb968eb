"""The gate as users meet it: a table measured too badly is refused, nothing is lost, and one command publishes it."""

from __future__ import annotations

import shlex

from tests.desk import Desk

FEW = ("--max-rounds", "4", "--lease-rounds", "0", "--precision", "0.01%")


def test_what_is_refused_is_kept_and_the_command_told_publishes_it_without_measuring_again(desk: Desk) -> None:
    refused = desk.run(*desk.collecting(*FEW))
    assert refused.status == 65, refused.err
    assert "error[lut_noisy]: simulated/simulated-fp32-bs1 would be too noisy to publish: L903: " in refused.error
    assert desk.versions == []
    seen = desk.visits()
    assert seen, "every visit is kept"

    assert desk.run(*desk.collecting(*FEW)).status == 65, "the same command is refused again"
    assert desk.visits() == seen

    told = refused.error.partition("marked noisy: ")[2]
    words = shlex.split(told)
    assert (words[0], words[-1]) == ("lutbuilder", "--accept-noisy")
    accepted = desk.run(*words[1:])
    assert accepted.status == 0, accepted.err
    assert desk.visits() == seen, "nothing was measured again"
    assert "marked noisy (L903)" in accepted.err
    lut = desk.lut(1)
    assert lut.meta.noisy == ("L903",)
    assert f"{lut.path}\n" == accepted.out
    assert desk.run("luts", "lint", str(lut.path)).status == 1


def test_a_normal_table_carries_its_quality_and_passes(desk: Desk) -> None:
    ended = desk.run(*desk.collecting("--max-rounds", "12"))
    assert ended.status == 0, ended.err
    lut = desk.lut(1)
    assert lut.meta.noisy == ()
    assert 10 <= len(lut.meta.drift_trace) <= 200
    assert [report.session_id for report in lut.meta.session_reports] == list(lut.meta.sessions)
    ops = [row for row in lut.rows() if row.status == "measured" and row.kind != "identity"]
    assert all(row.residual_mad is not None and row.n_agents == 1 for row in ops)
    quality = lut.quality
    assert quality.median_residual_mad is not None
    assert quality.n_monotone_pairs is not None
    assert quality.n_monotone_pairs >= 77
    assert desk.run("luts", "lint", str(lut.path)).status == 0
