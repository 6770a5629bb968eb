"""Real agents that are killed, stopped, cut off and starved: nothing is lost, nothing doubled, no lease stuck."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from lutbuilder_agent.errors import StaleLease, StoreError
from lutbuilder_agent.records import Report
from tests.agent_lab import N_OPS, PATIENCE_S, Lab, children_of, is_gone, wait_for

SLOW = {"realtime": "1", "overhead_ns": "40000000"}  # a round takes half a second


def is_waiting(lab: Lab) -> bool:
    return lab.coordinator.waiting > 0


# --- kill -9


def test_kill_9_while_idle_leaves_nothing_behind_and_its_next_start_measures(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=3, offered=False)
    here.start_agent()
    wait_for(lambda: is_waiting(here))
    here.kill_first_agent()
    here.offer()
    here.finish()
    assert here.rounds() == [(0, False), (1, False), (2, False)]
    here.assert_nothing_is_lost_or_doubled()


def test_kill_9_in_the_middle_of_a_visit_costs_that_round_only_and_takes_the_worker_along(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=3, **SLOW)
    agent = here.start_agent()
    wait_for(lambda: len(here.rounds()) == 1)
    time.sleep(0.25)  # into the next round
    (worker,) = children_of(agent.pid)
    here.kill_first_agent()
    wait_for(lambda: is_gone(worker))
    assert here.spooled == []
    here.finish()
    assert here.rounds() == [(0, False), (1, False), (2, False)]
    assert {state.epoch for state in here.store.agents()} == {2}
    here.assert_nothing_is_lost_or_doubled()


def test_kill_9_after_the_commit_while_the_acknowledgement_is_on_its_way(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=4, through_proxy=True)
    assert here.proxy is not None
    proxy = here.proxy

    def withhold(report: Report) -> None:
        proxy.withhold = report.round == 1 and len(here.agents) == 1

    here.before_report = withhold
    here.start_agent()
    wait_for(lambda: len(here.rounds()) == 2)
    here.kill_first_agent()
    (kept,) = here.spooled
    proxy.cut()
    proxy.withhold = False
    here.finish()
    assert not kept.exists()
    assert here.rounds() == [(0, False), (1, False), (2, False), (3, False)]
    here.assert_nothing_is_lost_or_doubled()


def test_an_acknowledgement_that_never_arrives_sends_the_round_again_and_it_counts_once(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=4, through_proxy=True)
    assert here.proxy is not None
    proxy = here.proxy
    sent: list[str] = []

    def withhold(report: Report) -> None:
        sent.append(report.report_id)
        proxy.withhold = report.round == 1 and sent.count(report.report_id) == 1

    here.before_report = withhold
    agent = here.start_agent("--exit-when-idle")
    wait_for(lambda: len(here.rounds()) == 2)
    proxy.withhold = False
    proxy.cut()
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert len(sent) == len(set(sent)) + 1
    assert here.rounds() == [(0, False), (1, False), (2, False), (3, False)]
    here.assert_nothing_is_lost_or_doubled()


# --- stopped, and fenced


def test_an_agent_that_is_stopped_for_longer_than_its_ttl_comes_back_with_extra_visits_and_goes_on(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=4, ttl_s=0.5, **SLOW)
    agent = here.start_agent("--exit-when-idle")
    wait_for(lambda: len(here.rounds()) == 1)
    time.sleep(0.2)  # into the next round
    processes = [agent.pid, *children_of(agent.pid)]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    # A round was announced to last twice as long as the one before.
    wait_for(lambda: here.coordinator.leases() == ())
    for pid in processes:
        os.kill(pid, signal.SIGCONT)
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert here.is_done
    assert (1, True) in here.rounds(), "late, and kept"
    assert {number for number, _ in here.rounds()} >= {0, 1, 2, 3}
    here.assert_nothing_is_lost_or_doubled()


def test_another_agent_finishes_what_a_stopped_one_had_and_the_stopped_one_loses_nothing(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=3, ttl_s=0.5, **SLOW)
    agent = here.start_agent("--exit-when-idle", "--clock-domain", "mine")
    wait_for(lambda: len(here.rounds()) == 1)
    time.sleep(0.2)
    (worker,) = children_of(agent.pid)
    for pid in (agent.pid, worker):
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: here.coordinator.leases() == ())
    here.finish("--clock-domain", "other", name="other")
    assert here.is_done
    for pid in (agent.pid, worker):
        os.kill(pid, signal.SIGCONT)
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert [late for _, late in here.rounds()].count(True) == 1
    here.assert_nothing_is_lost_or_doubled()


def test_a_second_agent_of_the_same_name_ends_the_first_with_a_line_that_says_so(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=6, **SLOW)
    first = here.start_agent()
    wait_for(lambda: len(here.rounds()) == 1)
    second = here.start_agent("--exit-when-idle", "--spool-dir", str(here.folder / "second"))
    _, said = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == StaleLease.exit_status
    last = said.strip().splitlines()[-1]
    assert re.fullmatch(r"lutbuilder-agent: a newer agent named me has registered .*--name NAME", last), said
    assert "Traceback" not in said
    _, said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, said
    assert here.is_done
    here.assert_nothing_is_lost_or_doubled()


# --- SIGTERM


def test_sigterm_lets_the_round_in_hand_finish_and_gives_the_lease_back(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=50, **SLOW)
    agent = here.start_agent()
    wait_for(lambda: len(here.rounds()) == 1)
    time.sleep(0.2)
    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 128 + signal.SIGTERM, said
    assert here.rounds() == [(0, False), (1, False)], "the round in hand, and no other"
    here.assert_nothing_is_lost_or_doubled()


def test_a_second_sigterm_ends_at_once(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=50, realtime="1", overhead_ns="200000000")  # a round takes over two seconds
    agent = here.start_agent()
    wait_for(lambda: len(here.rounds()) == 1)
    time.sleep(0.2)  # into the next round
    (worker,) = children_of(agent.pid)
    for _ in range(2):
        agent.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    agent.communicate(timeout=10.0)
    assert agent.returncode == 128 + signal.SIGTERM
    assert is_gone(worker)
    assert here.rounds() == [(0, False)]
    assert here.store.active_leases(here.campaign) == ()


# --- the disk


def test_a_spool_that_fills_up_stops_the_measuring_says_so_and_goes_on_when_it_is_delivered(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=12, max_calls=30_000)  # some 270 KB a round
    agent = here.start_agent("--exit-when-idle", "--spool-quota", "2M")
    wait_for(lambda: len(here.rounds()) == 1)
    address = here.stop_coordinator()
    assert agent.stderr is not None
    said = ""
    while "is full" not in said:
        line = agent.stderr.readline()
        assert line, said
        said += line
    kept = here.spooled
    size = sum(path.stat().st_size for path in kept)
    assert 1 < len(kept) < 11
    assert size <= 2 << 20
    time.sleep(1.0)
    assert here.spooled == kept, "nothing is measured while it is full"
    here.start_coordinator(address)
    _, rest = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said + rest
    assert "Until there is room nothing is measured, and nothing is lost" in said
    assert sorted(number for number, _ in here.rounds()) == list(range(12))
    here.assert_nothing_is_lost_or_doubled()


# --- the network


def test_a_connection_that_goes_deaf_is_given_up_and_the_agent_goes_on_over_another(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=8, through_proxy=True)
    assert here.proxy is not None
    proxy = here.proxy

    deaf_at: list[int] = []

    def go_deaf(report: Report) -> None:
        if report.round == 2 and not deaf_at:
            deaf_at.append(report.round)
            proxy.deaf = True

    here.before_report = go_deaf
    agent = here.start_agent("--exit-when-idle", hasty=True)
    wait_for(lambda: proxy.deaf or agent.poll() is not None)
    wait_for(lambda: len(here.spooled) >= 3)  # it goes on measuring what it has
    proxy.deaf = False
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert "did not answer in time" in said
    assert sorted({number for number, _ in here.rounds()}) == list(range(8))
    here.assert_nothing_is_lost_or_doubled()


def test_an_idle_agent_on_a_deaf_connection_finds_the_coordinator_again(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=2, through_proxy=True, offered=False)
    assert here.proxy is not None
    agent = here.start_agent(hasty=True)
    wait_for(lambda: is_waiting(here))
    here.proxy.deaf = True
    assert agent.stderr is not None
    while "did not answer in time" not in (line := agent.stderr.readline()):
        assert line, "it ended"
    here.offer()
    here.proxy.deaf = False
    wait_for(lambda: here.is_done)
    here.assert_nothing_is_lost_or_doubled()


def test_a_download_cut_in_the_middle_goes_on_where_it_was(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=1, through_proxy=True, padded_bytes=2_000_000)
    assert here.proxy is not None
    here.proxy.cut_after_answered = 1_000_000
    here.proxy.slow_s = 0.02  # a reset throws away what nobody has read yet: a busy machine's agent may lag behind
    here.finish()
    offsets = [offset for _, offset in here.fetched]
    assert offsets.count(0) == N_OPS
    (resumed,) = [offset for offset in offsets if offset > 0]
    assert 0 < resumed < 1_000_000
    here.assert_nothing_is_lost_or_doubled()


def test_a_download_of_an_agent_that_was_killed_goes_on_where_it_was_after_its_restart(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=1, through_proxy=True, padded_bytes=4_000_000)
    assert here.proxy is not None
    proxy = here.proxy
    parts = here.folder / "state" / "cache" / "me"

    def part_bytes() -> int:
        return sum(path.stat().st_size for path in parts.glob("*.part"))

    proxy.slow_s = 0.05  # between two pieces of an answer
    here.start_agent()
    wait_for(lambda: part_bytes() > 500_000)
    here.kill_first_agent()
    left = part_bytes()
    proxy.slow_s = 0.0
    here.fetched.clear()
    here.finish()
    assert max(offset for _, offset in here.fetched) == left
    assert sum(offset == 0 for _, offset in here.fetched) == N_OPS - 1
    here.assert_nothing_is_lost_or_doubled()


def test_wrong_bytes_in_a_partial_file_are_dropped_and_fetched_anew(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=1, padded_bytes=300_000)
    op = here.store.campaign(here.campaign).spec.ops[0]
    ref = here.coordinator._artifacts.ref(op, "graph")
    cache = here.folder / "state" / "cache" / "me"
    cache.mkdir(parents=True)
    (cache / f"{ref.sha256}.part").write_bytes(b"wrong" * 1000)
    here.finish()
    assert [offset for sha256, offset in here.fetched if sha256 == ref.sha256] == [5000, 0]
    here.assert_nothing_is_lost_or_doubled()


# --- the coordinator


def test_a_coordinator_that_is_away_for_a_while_gets_every_round_when_it_is_back(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=6, **SLOW)
    agent = here.start_agent("--exit-when-idle")
    wait_for(lambda: len(here.rounds()) == 1)
    address = here.stop_coordinator()
    wait_for(lambda: len(here.spooled) >= 2)
    here.start_coordinator(address)
    began_s = time.monotonic()
    wait_for(lambda: len(here.rounds()) >= 3)
    assert time.monotonic() - began_s < 30.0
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert "the coordinator answers again" in said
    assert sorted(here.rounds()) == [(number, False) for number in range(6)]
    here.assert_nothing_is_lost_or_doubled()


def test_rounds_of_the_lease_ahead_are_delivered_too_when_the_store_failed_between_both(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=1, batches=4)

    def fail(report: Report) -> None:
        raise StoreError("the disk is full")

    here.before_report = fail
    agent = here.start_agent("--exit-when-idle")
    wait_for(lambda: len(here.spooled) == 2)  # the only rounds of one lease and of the next
    here.before_report = lambda report: None
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert here.is_done
    assert len(here.rounds()) == 4
    here.assert_nothing_is_lost_or_doubled()


# --- the lease ahead


def test_batches_follow_each_other_without_a_lease_call_between_and_each_is_measured_once(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=2, batches=5)
    said = here.finish()
    assert here.is_done
    assert len(here.rounds()) == 10
    assert len(re.findall(r"lease \w+: 3 ops", said)) == 5
    here.assert_nothing_is_lost_or_doubled()


def test_no_process_is_left_when_an_agent_that_has_a_lease_ahead_is_killed(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=1, batches=3, **SLOW)
    agent = here.start_agent()
    wait_for(lambda: len(here.coordinator.leases()) == 2)
    wait_for(lambda: len(children_of(agent.pid)) == 2)  # one works, one waits
    children = children_of(agent.pid)
    here.kill_first_agent()
    wait_for(lambda: all(is_gone(child) for child in children))
    here.finish()
    assert here.is_done
    here.assert_nothing_is_lost_or_doubled()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_both_leases_are_given_back_by_an_agent_that_ends(lab: Callable[..., Lab], signum: int) -> None:
    here = lab(rounds=1, batches=3, **SLOW)
    agent = here.start_agent()
    wait_for(lambda: len(here.coordinator.leases()) == 2)
    wait_for(lambda: len(children_of(agent.pid)) == 2)
    time.sleep(0.25)  # into the round
    agent.send_signal(signum)
    agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 128 + signum
    assert here.store.active_leases(here.campaign) == ()
    assert len(here.rounds()) == (1 if signum == signal.SIGTERM else 0)


def test_agents_of_one_host_take_turns_unless_they_are_told_that_their_clocks_differ(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=100, batches=2, **SLOW)
    agents = [here.start_agent(name=name) for name in ("a", "b")]
    wait_for(lambda: len(here.coordinator.agents()) == 2 and len(here.rounds()) >= 1)
    assert len({lease.agent for lease in here.coordinator.leases()}) == 1
    stop(agents)

    apart = [here.start_agent("--clock-domain", name, name=name) for name in ("c", "d")]
    wait_for(lambda: {lease.agent for lease in here.coordinator.leases()} == {"c", "d"})
    stop(apart)


def stop(agents: list[subprocess.Popen[str]]) -> None:
    for agent in agents:
        agent.send_signal(signal.SIGINT)
    for agent in agents:
        agent.communicate(timeout=PATIENCE_S)
