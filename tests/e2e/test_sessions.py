"""`collect --sessions` and `--agents` as users run them: sessions and devices that differ, one table of them all."""

from __future__ import annotations

import socket
from collections import defaultdict

import numpy as np

from lutbuilder import spaces
from lutbuilder.coordinator.store import Store
from lutbuilder.lower import lower
from lutbuilder.lut import Lut
from lutbuilder_agent.runtimes.simulated import OPTIONS, true_ns
from tests.desk import Desk

OPS = spaces.get("proxyless").ops()
OVERHEAD_MS = float(OPTIONS["overhead_ns"]) / 1e6
# Every session and every device draws an effect of its own: 5 % slower or faster in all it does.
EFFECTS = ("session=own", "session_sigma=0.05", "instance_sigma=0.005", "noise_sigma=0.02")
UNEQUAL = ("--carriers", "0", *(word for option in EFFECTS for word in ("--runtime-option", option)))


def assert_true(lut: Lut) -> None:
    """Rows agree with the truth but for one scale, which the sessions' effects leave open."""
    truth = np.array([true_ns(lower(op)) / 1e6 - OVERHEAD_MS for op in OPS])
    rows = [lut[op] for op in OPS]
    off = np.log([row.latency_ms or np.nan for row in rows]) - np.log(truth)
    assert abs(np.median(off)) < 0.18  # five standard deviations of the mean of two sessions' effects
    off -= np.median(off)
    assert np.median(np.abs(off)) < 0.004
    assert np.quantile(np.abs(off), 0.95) < 0.02
    # An interval speaks of an op relative to the table's scale. Every run draws sessions of its own, so the bound is
    # far below the 94 % they cover, where it is missed once in 1e5; how much they do, seeds fixed, is test_coverage's.
    held = np.abs(off) <= np.array([row.half_width or 0.0 for row in rows])
    assert held.mean() >= 0.8


def visited(desk: Desk) -> dict[str, set[str]]:
    """Return the ops that each session has visited."""
    seen: dict[str, set[str]] = defaultdict(set)
    for visit in desk.visits():
        seen[visit.session_id].add(visit.timing.op_id)
    return seen


def agents_of(desk: Desk) -> dict[str, str]:
    """Return the name of the agent of every session that reported."""
    with Store.open(desk.state / "campaigns.sqlite") as store:
        found = store.sessions([campaign.campaign_id for campaign in store.campaigns()])
    return {session.session_id: session.name for session in found}


def test_sessions_of_one_command_are_agents_started_anew_and_the_table_rests_on_all(desk: Desk) -> None:
    ended = desk.run(*desk.collecting("--sessions", "3", "--max-rounds", "36", "--precision", "0.5%", *UNEQUAL))
    assert ended.status == 0, ended.err
    assert [f"the agent starts again: session {n}" in ended.err for n in (2, 3, 4)] == [True, True, False]
    assert "status" not in ended.err, "no agent died"
    sessions = visited(desk)
    assert len(sessions) == 3
    assert {op.op_id for op in OPS} <= set.intersection(*sessions.values())
    lut = desk.lut()
    assert set(lut.meta.sessions) == set(sessions)
    assert all(lut[op].n_sessions == 3 for op in OPS)
    assert_true(lut)
    assert desk.processes() == []


def test_a_command_of_several_sessions_that_was_killed_makes_the_sessions_that_are_left(desk: Desk) -> None:
    words = desk.collecting("--sessions", "2", "--max-rounds", "30", "--precision", "0.1%", *UNEQUAL)
    process = desk.start(*words)
    desk.wait_for(lambda: desk.rounds() >= 12)
    process.kill()
    desk.ended(process)
    desk.wait_for(lambda: desk.processes() == [])
    before = desk.visits()
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    assert ended.json["resumed"]
    assert "starts again" not in ended.err, "the killed one was the first, this one is the second"
    assert desk.visits()[: len(before)] == before
    assert len(desk.lut().meta.sessions) == 2
    assert 30 <= ended.json["rounds"] <= 31
    assert_true(desk.lut())


def test_two_agents_measure_one_campaign_at_once_and_their_difference_is_no_ops_fault(desk: Desk) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = ("--agents", "2", "--listen", address, "--sessions", "2", "--max-rounds", "60", "--precision", "0.1%")
    process = desk.start(*desk.collecting(*words, *UNEQUAL))
    twin = desk.start_agent("run", "--coordinator", address, "--runtimes", "simulated", "--name", "twin")
    ended = desk.ended(process)
    assert ended.status == 0, ended.err
    agents = agents_of(desk)
    assert sorted(agents.values()) == ["local-simulated", "local-simulated", "twin", "twin"]
    assert desk.ended(twin).status == 0, "it registered anew for its second session, and ended when all was done"
    sessions = visited(desk)
    assert {op.op_id for op in OPS} <= set.intersection(*sessions.values())
    lut = desk.lut()
    assert set(lut.meta.sessions) == set(agents)
    assert {(lut[op].n_agents, lut[op].n_sessions) for op in OPS} == {(2, 4)}
    assert_true(lut)


def test_agents_that_do_not_come_are_named_with_what_to_type(desk: Desk) -> None:
    ended = desk.run(*desk.collecting("--agents", "2", "--listen", "127.0.0.1:0", "--wait", "4s"))
    assert ended.status != 0
    assert "waiting for another simulated: bring the port 127.0.0.1:" in ended.err
    assert ended.error.startswith("error[no_agent]: 1 of 2 agents came within 4 s")
    assert "--agents 1" in ended.error
