"""A real `lutbuilder-agent run` against a real coordinator over loopback: killed, stopped, cut off; nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from lutbuilder.coordinator.schedule import Decision
from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.records import Report
from tests.agent_lab import PATIENCE_S, Lab, children_of, is_gone, threads_of, wait_for


def test_an_agent_measures_a_campaign_to_its_end_and_ends_when_idle(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=4)
    agent = here.start_agent("--exit-when-idle")
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert here.store.campaign(here.campaign).state == "done"
    assert here.rounds() == [(0, False), (1, False), (2, False), (3, False)]
    assert here.n_visits() == 12
    assert here.spooled == []


def test_kill_9_after_the_commit_and_before_the_acknowledgement_loses_and_doubles_nothing(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=5)

    def decide(report: Report) -> Decision:
        if report.round == 2:
            here.kill_first_agent()
        return Decision()

    here.decide = decide
    agent = here.start_agent()
    assert agent.wait(PATIENCE_S) == -signal.SIGKILL
    wait_for(lambda: len(here.rounds()) == 3)
    (kept,) = here.spooled

    again = here.start_agent("--exit-when-idle")
    _, said = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert not kept.exists()
    assert [number for number, _ in here.rounds()] == [0, 1, 2, 3, 4]
    assert here.n_visits() == 15
    assert here.store.conflicts([here.campaign]) == ()


def test_kill_9_after_measuring_and_before_the_report_arrives_loses_nothing(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=4)

    def before_report(report: Report) -> None:
        if report.round == 1 and len(here.agents) == 1:
            here.kill_first_agent()
            raise StoreError("this report never arrived")

    here.before_report = before_report
    agent = here.start_agent()
    assert agent.wait(PATIENCE_S) == -signal.SIGKILL
    assert here.rounds() == [(0, False)]
    (kept,) = here.spooled

    again = here.start_agent("--exit-when-idle")
    _, said = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert not kept.exists()
    first, offered, *rest = here.rounds()
    assert (first, offered) == ((0, False), (1, True))  # the spool came first, late but welcome
    assert rest[-1] == (3, False)
    assert here.n_visits() == 3 * len(here.rounds())


def test_an_agent_outlives_a_restart_of_its_coordinator_and_loses_no_round(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=6)

    def decide(report: Report) -> Decision:
        if report.round == 2:
            threading.Thread(target=here.restart_coordinator).start()
        return Decision()

    here.decide = decide
    agent = here.start_agent("--exit-when-idle")
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert sorted({number for number, _ in here.rounds()}) == [0, 1, 2, 3, 4, 5]
    assert here.n_visits() == 3 * len(here.rounds())
    assert here.spooled == []


def test_the_agent_sleeps_while_its_worker_times_and_a_sigterm_leaves_no_process_and_no_lease(
    lab: Callable[..., Lab],
) -> None:
    here = lab(rounds=50, realtime="1", overhead_ns="100000000")  # a round takes 1.2 s
    agent = here.start_agent()
    wait_for(lambda: len(here.rounds()) == 1)
    time.sleep(0.3)  # into the next round
    (worker,) = children_of(agent.pid)
    before = threads_of(agent.pid)
    time.sleep(0.5)
    assert len(before) == 1
    assert threads_of(agent.pid) == before  # it did not wake once
    assert len(here.rounds()) == 1  # and all that was within one round

    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in said
    assert is_gone(worker)
    assert here.store.active_leases(here.campaign) == ()


def test_an_embedded_agent_and_its_worker_end_with_the_process_that_started_them(lab: Callable[..., Lab]) -> None:
    here = lab(rounds=50, realtime="1", overhead_ns="100000000")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys, time\n"
            "agent = subprocess.Popen([*sys.argv[1:], '--die-with-parent', str(os.getpid())])\n"
            "print(agent.pid, flush=True)\n"
            "time.sleep(600)",
            *here.command(),
        ],
        env=here.environment,
        cwd=here.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert parent.stdout is not None
        agent = int(parent.stdout.readline())
        wait_for(lambda: len(children_of(agent)) == 1 and here.rounds() != [])
        (worker,) = children_of(agent)
        parent.kill()
        parent.wait()
        wait_for(lambda: is_gone(agent) and is_gone(worker))
    finally:
        parent.kill()
        parent.communicate()
