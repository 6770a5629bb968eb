"""`lutbuilder calibrate` as users run it: of the table of this device, and from another device's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lower import lower_network
from lutbuilder.lut import Lut, publish
from lutbuilder.nas.compiled import compile_space
from lutbuilder_agent.runtimes.simulated import true_ns
from tests.desk import NAME, Desk, Ended

SPACE = spaces.get("proxyless")
OPS = SPACE.ops()


def calibrating(desk: Desk, *words: str) -> tuple[str, ...]:
    return ("calibrate", *words, "--luts", str(desk.luts), "--state-dir", str(desk.state), "--rounds", "6", "--json")


def statuses(lut: Lut) -> Counter[str]:
    return Counter(row.status for row in lut.rows() if row.kind != "identity" and row.method != "in_situ")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk with a table of the whole space, without carriers."""
    made = Desk(tmp_path_factory.mktemp("collected") / "desk")
    ended = made.run(*made.collecting("--max-rounds", "8", "--carriers", "0"))
    assert ended.status == 0, ended.err
    yield made
    made.clear()


def test_a_calibration_is_a_further_version_that_no_validation_shares_a_network_with(collected: Desk) -> None:
    desk = collected
    first = desk.run_alone(*calibrating(desk, str(desk.luts / NAME), "--nets", "8"))
    assert first.status == 0, first.err
    report = first.json["report"]
    lut = desk.lut(first.json["lut"]["version"])
    fitted = {network["op_id"] for network in report["networks"]}
    assert len(fitted) == 8
    assert set(lut.meta.fitted_networks) == fitted
    assert lut.meta.calibration is not None
    assert lut.meta.calibration["networks_sha256"] == report["networks_sha256"]
    assert statuses(lut)["measured"] == 70
    assert statuses(lut)["calibrated"] == (0 if report["method"] == "none" else 70)
    assert report["before"]["mape"] < 0.02

    again = desk.run(*calibrating(desk, str(desk.luts / NAME), "--nets", "6"))
    assert again.status == 0, again.err
    assert len(again.json["report"]["networks"]) == 14, "further networks join those of before"

    words = ("--random", "6", "--searched", "0", "--rounds", "6", "--state-dir", str(desk.state), "--json")
    checked = desk.run("validate", str(desk.luts / NAME), *words)
    assert checked.status == 0, checked.err
    used = {network["op_id"] for network in checked.json["report"]["networks"]}
    after = desk.lut()
    assert not used & set(after.meta.fitted_networks)
    assert after.meta.calibration is not None, "its networks were fitted again with the rows"
    assert statuses(after)["calibrated"] == (0 if after.meta.calibration["method"] == "none" else 70)


def other_device(desk: Desk, folder: Path, factors: dict[str, float]) -> Path:
    """Publish the desk's table below `folder` with its ops as much slower as `factors` say; return the LUT's folder."""
    lut = desk.lut(1)
    slower = []
    for row in lut.rows():
        factor = factors.get(row.op_id, 1.0)
        columns: dict[str, Any] = {
            name: value * factor
            for name in ("latency_ms", "latency_lo_ms", "latency_hi_ms", "p90_ms")
            if (value := getattr(row, name)) is not None
        }
        slower.append(replace(row, **columns))
    return publish(slower, replace(lut.meta, version=0), folder=folder).path.parent


def transferring(desk: Desk, source: Path, luts: Path, speed: str, *words: str) -> Ended:
    folders = ("--luts", str(luts), "--state-dir", str(desk.state), "--json")
    options = ("--device", "simulated", "--runtime-option", f"speed={speed}", "--rounds", "6", "--nets", "10")
    return desk.run("calibrate", "--from", str(source), *options, *folders, *words)


def test_a_device_three_times_as_fast_takes_over_a_table_without_timing_an_op(collected: Desk, tmp_path: Path) -> None:
    before = len(collected.visits())
    ended = transferring(collected, collected.luts / NAME, tmp_path / "luts", "3")
    assert ended.status == 0, ended.err
    timed = {visit.timing.op_id for visit in collected.visits()[before:]}
    assert len(timed) == 10
    assert all(op_id.startswith("net-") for op_id in timed)
    lut = Lut.load(tmp_path / "luts" / NAME)
    assert lut.version == 1
    assert statuses(lut) == {"calibrated": 70}
    assert {(row.evidence, row.n_visits) for row in lut.rows()} == {("modelled", 0)}
    archs = SPACE.sample(np.random.default_rng(1), 30)
    true_ms = [true_ns(lower_network(SPACE.arch_ops(arch)), {"speed": "3"}) / 1e6 for arch in archs]
    assert np.abs(compile_space(SPACE, lut).predict(archs) / true_ms - 1.0).max() < 0.03
    assert ended.json["report"]["source"] == f"{NAME}@{collected.lut().version}"

    words = ("--random", "6", "--searched", "0", "--rounds", "6", "--state-dir", str(collected.state), "--json")
    checked = collected.run("validate", str(tmp_path / "luts" / NAME), *words)
    assert checked.status == 0, checked.err
    assert checked.json["report"]["calibrated"]["mape"]["value"] < 0.02
    assert statuses(Lut.load(tmp_path / "luts" / NAME)) == {"calibrated": 70}, "a validation measures no op for it"


def test_a_device_that_works_in_another_way_takes_over_nothing(collected: Desk, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    source = other_device(collected, tmp_path / "other", {op.op_id: float(np.exp(random.normal(0, 0.9))) for op in OPS})
    ended = transferring(collected, source, tmp_path / "luts", "1")
    assert ended.status == 65
    assert ended.error.startswith("error[lut_conflict]: ")
    assert "does not carry over to this device" in ended.error
    assert ended.error.endswith("lutbuilder collect --device simulated --space proxyless --runtime simulated --bs 1")
    assert json.loads(ended.out)["error"]["code"] == "lut_conflict"
    assert not (tmp_path / "luts").exists()


def test_a_device_with_measured_rows_needs_nobody_elses(collected: Desk) -> None:
    ended = transferring(collected, collected.luts / NAME, collected.luts, "1")
    assert ended.status == 65
    assert f"lutbuilder calibrate {collected.luts / NAME}" in ended.error
