"""`lutbuilder collect --max-ops`: some ops are measured, the others imputed, and nobody takes one for the other."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lower import lower
from lutbuilder.lut import Lut
from lutbuilder_agent.runtimes.simulated import OPTIONS, true_ns
from tests.desk import Desk

SPACE = spaces.get("proxyless")
OPS = SPACE.ops()
OVERHEAD_MS = float(OPTIONS["overhead_ns"]) / 1e6


def statuses(lut: Lut) -> dict[str, int]:
    told = [lut[op].status for op in OPS]
    return {status: told.count(status) for status in set(told)}


def test_some_ops_are_measured_the_others_imputed_and_the_next_collect_measures_them(desk: Desk) -> None:
    ended = desk.run(*desk.collecting("--max-ops", "30", "--instances", "1"))
    assert ended.status == 0, ended.err
    assert (ended.json["n_measured"], ended.json["n_failed"]) == (30, 0)
    assert "40 ops are imputed, not measured: without --max-ops they are measured, too" in ended.json["notes"]
    lut = desk.lut(1)
    assert statuses(lut) == {"measured": 30, "imputed": 40}
    error = [abs(lut[op].latency_ms / (true_ns(lower(op)) / 1e6 - OVERHEAD_MS) - 1) for op in OPS]
    assert float(np.mean(error)) < 0.05
    assert all(lut[op].n_visits == 0 for op in OPS if lut[op].status == "imputed")

    shown = desk.run("luts", "show", str(lut.path), "--json")
    assert shown.status == 0, shown.err
    assert sum(row["method"] == "imputed" for row in json.loads(shown.out)["rows"] if row["kind"] != "identity") == 40

    more = desk.run(*desk.collecting("--max-ops", "10", "--instances", "1"))
    assert more.json["n_measured"] == 10, more.err
    assert statuses(desk.lut(2)) == {"measured": 40, "imputed": 30}

    rest = desk.run(*desk.collecting("--instances", "1"))
    assert rest.json["n_measured"] >= 30, rest.err
    assert statuses(desk.lut(3)) == {"measured": 70}
    assert all(row.status == "measured" for row in desk.lut(3).rows())


def test_a_killed_command_finds_its_knots_again(desk: Desk) -> None:
    words = desk.collecting("--max-ops", "30", "--instances", "1", "--runtime-option", "noise_sigma=0.05")
    process = desk.start(*words)
    desk.wait_for(lambda: desk.rounds() > 12 or process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    assert ended.json["resumed"]
    assert ended.json["n_measured"] == 30
    assert statuses(desk.lut(1)) == {"measured": 30, "imputed": 40}


@pytest.mark.parametrize("count", ["0", "-1"])
def test_no_ops_at_all_is_no_measurement(desk: Desk, count: str) -> None:
    ended = desk.run(*desk.collecting("--max-ops", count))
    assert ended.status == 64
    assert "--max-ops" in ended.error
