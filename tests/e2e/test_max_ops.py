"""`lutbuilder collect --max-ops`: some ops are measured, the others imputed, and nobody takes one for the other."""

from __future__ import annotations

import json
import os
import signal

import numpy as np

from lutbuilder import spaces
from lutbuilder.campaign.state import STORE_NAME
from lutbuilder.coordinator.store import Store
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

    rest = desk.run(*desk.collecting("--instances", "1"))
    assert rest.json["n_measured"] >= 40, rest.err
    assert statuses(desk.lut(2)) == {"measured": 70}
    assert all(row.status == "measured" for row in desk.lut(2).rows())


def stages_begun(desk: Desk) -> int:
    """Return how many campaigns have committed rounds."""
    if not desk.rounds():
        return 0
    with Store.open(desk.state / STORE_NAME) as store:
        return sum(campaign.rounds > 0 for campaign in store.campaigns())


def test_a_command_killed_in_its_second_stage_finds_the_same_knots_again(desk: Desk) -> None:
    words = desk.collecting("--max-ops", "30", "--instances", "1", "--precision", "0.01%", "--max-rounds", "16")
    process = desk.start(*words)
    desk.wait_for(lambda: stages_begun(desk) == 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert desk.versions == []
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    assert (ended.json["resumed"], ended.json["n_measured"], ended.json["rounds"]) == (True, 30, 32)
    assert stages_begun(desk) == 2, "other knots would have been another campaign"
    assert statuses(desk.lut(1)) == {"measured": 30, "imputed": 40}


def test_to_measure_nothing_is_refused(desk: Desk) -> None:
    ended = desk.run(*desk.collecting("--max-ops", "0"))
    assert ended.status == 65
    assert "--max-ops must be from 1" in ended.error
