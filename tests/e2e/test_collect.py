"""`lutbuilder collect` and `validate` as users run them: command, agent, worker, on a device whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lower import lower, lower_network
from lutbuilder.lut import Lut, Row
from lutbuilder.nas.compiled import compile_space
from lutbuilder.op import OpSpec
from lutbuilder_agent.runtimes.simulated import OPTIONS, true_ns
from tests.desk import Desk, Ended

SPACE = spaces.get("proxyless")
OPS = SPACE.ops()
OVERHEAD_MS = float(OPTIONS["overhead_ns"]) / 1e6


def truth_ms(op: OpSpec) -> float:
    """What a perfect table says of an op: its time without the call overhead."""
    return true_ns(lower(op)) / 1e6 - OVERHEAD_MS


def errors(rows: dict[OpSpec, Row]) -> tuple[float, float, int]:
    """Return the mean and the largest relative error of a table's ops, and how many intervals hold the truth."""
    relative = [abs((row.latency_ms or 0.0) / truth_ms(op) - 1) for op, row in rows.items()]
    held = sum((row.latency_lo_ms or 9e9) <= truth_ms(op) <= (row.latency_hi_ms or 0.0) for op, row in rows.items())
    return float(np.mean(relative)), max(relative), held


def table(lut: Lut) -> dict[OpSpec, Row]:
    return {op: lut[op] for op in OPS}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Desk, Ended]]:
    """A desk with a table of the whole space, and how the command that made it ended. Tests only add versions."""
    made = Desk(tmp_path_factory.mktemp("collected") / "desk")
    yield made, made.run_alone(*made.collecting())
    made.clear()


def test_collect_publishes_a_table_that_is_the_simulated_truth(collected: tuple[Desk, Ended]) -> None:
    desk, ended = collected
    assert ended.status == 0, ended.err
    assert ended.json["published"]
    assert ended.json["stop_reason"] == "precision"
    assert (ended.json["n_measured"], ended.json["n_failed"], ended.json["resumed"]) == (70, 0, False)
    lut = desk.lut(1)
    mean, worst, held = errors(table(lut))
    assert held >= 66, "95 % intervals hold the truth of 95 % of 70 ops"
    assert mean < 0.01
    assert worst < 0.05, "small ops are known less well: their call overhead is a difference of large times"
    for op, row in table(lut).items():
        assert row.exec_status == "native"
        assert row.n_rounds == ended.json["rounds"]
        assert row.call_overhead_ms == pytest.approx(OVERHEAD_MS, abs=0.01 * max(map(truth_ms, OPS)))
        assert row.n_instances == 3, op.label()
        assert row.settled is not False, "a simulated op has no warm-up"


def test_the_sum_of_the_table_is_the_time_of_whole_networks(collected: tuple[Desk, Ended]) -> None:
    desk, _ = collected
    archs = SPACE.sample(np.random.default_rng(1), 50)
    predicted = compile_space(SPACE, desk.lut(1)).predict(archs)
    true_ms = [true_ns(lower_network(SPACE.arch_ops(arch))) / 1e6 for arch in archs]
    assert np.abs(predicted / true_ms - 1).max() < 0.01


def test_a_table_says_where_it_comes_from_and_keeps_its_raw_visits(collected: tuple[Desk, Ended]) -> None:
    desk, ended = collected
    lut = desk.lut(1)
    assert lut.meta.conditions.endswith("timer 0 ns a reading in steps of 0 ns"), "virtual time passes in calls only"
    assert (lut.meta.target.runtime, lut.meta.target.device, lut.meta.spaces) == (
        "simulated",
        "simulated",
        ("proxyless",),
    )
    assert lut.meta.quality.rounds == ended.json["rounds"]
    assert len(lut.meta.sessions) == 1
    samples = lut.path.parent / "samples" / lut.path.name
    assert samples.is_file()
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types

    assert pq.read_metadata(samples).num_rows == sum(visit.session_id in lut.meta.sessions for visit in desk.visits())


def test_the_same_command_again_measures_nothing(collected: tuple[Desk, Ended]) -> None:
    desk, first = collected
    before = desk.visits()
    ended = desk.run(*desk.collecting())
    assert ended.status == 0, ended.err
    assert not ended.json["published"]
    assert ended.json["n_measured"] == 0
    assert ended.json["lut"]["version"] >= first.json["lut"]["version"]
    assert desk.visits() == before


def test_without_json_the_path_of_the_table_is_all_of_stdout(collected: tuple[Desk, Ended]) -> None:
    desk, _ = collected
    words = [word for word in desk.collecting() if word != "--json"]
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    path = Path(ended.out.removesuffix("\n"))
    assert "\n" not in str(path)
    assert len(Lut.load(path)) >= 70
    assert "nothing to measure" in ended.err


def test_validate_finds_the_truth_and_stores_its_report_in_the_next_version(collected: tuple[Desk, Ended]) -> None:
    desk, _ = collected
    before = len(desk.visits())
    words = ("--random", "6", "--searched", "3", "--rounds", "8", "--state-dir", str(desk.state), "--json")
    ended = desk.run_alone("validate", str(desk.luts / "simulated" / "simulated-fp32-bs1@1"), *words)
    assert ended.status == 0, ended.err
    report = ended.json["report"]
    assert report["lut_sum"]["n"] == 9
    assert report["lut_sum"]["mape"]["value"] < 0.01
    assert report["lut_sum"]["spearman"]["value"] > 0.9
    assert {network["group"] for network in report["networks"]} == {"random", "searched"}
    assert all(network["n_instances"] == 3 for network in report["networks"])
    assert report["rounds"] == 8
    lut = desk.lut(ended.json["lut"]["version"])
    assert lut.version == 2
    assert lut.meta.validation is not None
    assert lut.meta.validation["networks_sha256"] == report["networks_sha256"]
    assert desk.lut(1).meta.validation is None
    assert len(lut.meta.sessions) == 2
    mean, _, held = errors(table(lut))
    assert (mean < 0.015, held >= 66) == (True, True), "the correction by carriers is known to about 1.5 %"
    added = desk.visits()[before:]
    collected = {visit.timing.op_id for visit in desk.visits()[:before]}
    carriers = {op_id for op_id in collected if op_id.startswith("net-")}
    assert carriers == set(desk.lut(1).meta.fitted_networks)
    networks = {visit.timing.op_id for visit in added if visit.timing.op_id.startswith("net-")} - carriers
    assert len(networks) == 9, "no network checks the table that helped to make it"
    assert {visit.timing.op_id for visit in added} - networks == collected, "the carriers too: they tell the scale"
    assert {visit.timing.round for visit in added} == set(range(8)), "ops and networks were timed in the same rounds"


@pytest.mark.parametrize(
    ("option", "status", "reason"),
    [
        ("crash", "failed", "crashed: worker ended by signal 11 (SIGSEGV)"),
        ("unsupported", "unsupported", "unsupported: the simulated device was told not to support graph"),
    ],
)
def test_an_op_that_fails_becomes_a_row_that_says_why_while_the_others_are_measured(
    desk: Desk, option: str, status: str, reason: str
) -> None:
    bad = OPS[5]
    fault = f"{option}={lower(bad).key[:20]}"
    ended = desk.run(*desk.collecting("--max-rounds", "12", "--runtime-option", fault))
    assert ended.status == 0, ended.err
    assert (ended.json["n_measured"], ended.json["n_failed"]) == (69, 1)
    (note,) = ended.json["notes"]
    assert note.startswith(f"{bad.label()}: {status}, {reason}")
    rows = table(desk.lut())
    assert (rows[bad].latency_ms, rows[bad].exec_status) == (None, status)
    assert (rows.pop(bad).reason or "").startswith(reason)
    assert ended.json["rounds"] >= 8, "no interval, and so no end by precision, before the first look"
    assert all(row.exec_status == "native" and row.n_rounds >= ended.json["rounds"] - 3 for row in rows.values())


def test_two_collects_into_one_luts_folder_lose_nothing(tmp_path: Path) -> None:
    desks = [Desk(tmp_path / name) for name in ("one", "two")]
    try:
        for desk in desks:
            desk.luts = tmp_path / "luts"
        running = [
            desk.start(*desk.collecting("--again", "--max-rounds", "8", "--seed", str(number)))
            for number, desk in enumerate(desks)
        ]
        ends = [desk.ended(process) for desk, process in zip(desks, running, strict=True)]
        assert [ended.status for ended in ends] == [0, 0], [ended.err for ended in ends]
        assert sorted(ended.json["lut"]["version"] for ended in ends) == [1, 2]
        last = desks[0].lut()
        assert (last.version, last.meta.parent_version) == (2, 1)
        sessions = {visit.session_id for desk in desks for visit in desk.visits()}
        assert len(sessions) == 2
        assert set(last.meta.sessions) == sessions
        assert {op for op, row in table(last).items() if row.latency_ms is not None} == set(OPS)
        assert desks[0].versions == [
            f"simulated/simulated-fp32-bs1/{name}"
            for name in ("samples/v0001.parquet", "samples/v0002.parquet", "v0001.parquet", "v0002.parquet")
        ]
    finally:
        for desk in desks:
            desk.clear()


def test_two_collects_with_one_state_folder_take_turns(desk: Desk) -> None:
    running = [desk.start(*desk.collecting("--max-rounds", "8")) for _ in range(2)]
    ends = [desk.ended(process) for process in running]
    assert [ended.status for ended in ends] == [0, 0], [ended.err for ended in ends]
    assert all(row.latency_ms is not None for row in table(desk.lut()).values())
    assert errors(table(desk.lut()))[2] >= 66
    desk.visits()
    assert desk.processes() == []
