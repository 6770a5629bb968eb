"""A real `lutbuilder-agent run` against a real coordinator over loopback: killed, stopped, cut off; nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.service import Coordinator, RunningServer, serve
from lutbuilder.coordinator.store import Store
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.fingerprint import fingerprint
from lutbuilder_agent.records import Plan, Report, ReportAck

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


def op(channels: int) -> OpSpec:
    return OpSpec(kind="conv", in_channels=channels, out_channels=channels, height=8, width=8, kernel=3)


class Hooked(Coordinator):
    """A coordinator that lets a test look at a report before anything of it is stored."""

    lab: Lab

    def report(self, report: Report) -> ReportAck:
        self.lab.before_report(report)
        return super().report(report)


class Lab:
    """One campaign of three simulated ops, its store, a coordinator that may be started again, and agents."""

    def __init__(self, folder: Path, *, rounds: int, options: tuple[tuple[str, str], ...] = ()) -> None:
        self.folder = folder
        self.decide: Callable[[Report], Decision] = lambda report: Decision()
        self.before_report: Callable[[Report], None] = lambda report: None
        self.store = Store.open(folder / "campaign.sqlite")
        seen = fingerprint()
        spec = CampaignSpec(
            space="test",
            target=Target(device=seen.device, runtime="simulated"),
            plan=Plan(runtime="simulated", instances=2, min_block_ns=100_000, options=options),
            env_id=seen.env_id,
            runtime_version="1",
            ops=tuple(CampaignOp.of(op(channels)) for channels in (4, 8, 12)),
            budget_s=60.0,
            precision=0.01,
            max_rounds=rounds,
        )
        self.campaign = self.store.create_campaign(spec, now_s=0.0)
        self.coordinator: Hooked
        self.server: RunningServer
        self.agents: list[subprocess.Popen[str]] = []
        self.start_coordinator("127.0.0.1:0")

    def start_coordinator(self, address: str) -> None:
        self.coordinator = Hooked(self.store, ArtifactShelf(), lambda _, report: self.decide(report))
        self.coordinator.lab = self
        self.coordinator.offer(self.campaign)
        self.server = serve(self.coordinator, address)

    def start_agent(self, *options: str) -> subprocess.Popen[str]:
        agent = subprocess.Popen(
            self.command(*options), env=self.environment, stderr=subprocess.PIPE, text=True, cwd=self.folder
        )
        self.agents.append(agent)
        return agent

    def command(self, *options: str) -> list[str]:
        run = [sys.executable, "-m", "lutbuilder_agent", "run", "--coordinator", self.server.address, "--name", "me"]
        return [*run, "--runtimes", "simulated", *options]

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "agents")])
        return {**os.environ, "PYTHONPATH": path, "LUTBUILDER_AGENT_STATE": str(self.folder / "state")}

    @property
    def spooled(self) -> list[Path]:
        return sorted((self.folder / "state" / "spool" / "me").glob("*.report"))

    def rounds(self) -> list[tuple[int, bool]]:
        """Round and lateness of every report the store holds."""
        return [(stored.round, stored.late) for stored in self.store.reports([self.campaign])]

    def n_visits(self) -> int:
        return len(list(self.store.raw_visits([self.campaign])))

    def restart_coordinator(self) -> None:
        self.server.stop(0.0)
        self.start_coordinator(self.server.address)

    def kill_first_agent(self) -> None:
        self.agents[0].kill()
        self.agents[0].wait()

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.kill()
            agent.communicate()
        self.server.stop(0.0)
        self.store.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """A function that makes a Lab."""
    labs: list[Lab] = []

    def make(*, rounds: int, **options: str) -> Lab:
        labs.append(Lab(tmp_path, rounds=rounds, options=tuple(options.items())))
        return labs[-1]

    yield make
    for one in labs:
        one.close()


def wait_for(claim: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.02)


def threads_of(pid: int) -> dict[str, list[str]]:
    """How often each thread of a process has given up its core, or lost it: a thread that sleeps does neither."""
    tasks = Path(f"/proc/{pid}/task")
    return {
        task.name: [line for line in (task / "status").read_text().splitlines() if "ctxt_switches" in line]
        for task in tasks.iterdir()
    }


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


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
