"""A lab on this machine: one campaign of simulated ops, a coordinator behind gRPC, real agents in processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.artifacts import ArtifactShelf, build_artifact
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.service import Coordinator, RunningServer, serve
from lutbuilder.coordinator.store import Store
from lutbuilder.op import OpSpec
from lutbuilder_agent.fingerprint import fingerprint
from lutbuilder_agent.graph import LayerGraph
from lutbuilder_agent.records import Format, Plan, Report, ReportAck
from tests.tcp_proxy import Proxy

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0
N_OPS = 3

# An agent whose calls give up after half a second: a peer that hangs is found out in a test's time.
HASTY = """
import sys
from lutbuilder_agent.wire import client
client.CoordinatorClient.__init__.__kwdefaults__["deadline_s"] = 0.5 / 3
client._LEASE_MARGIN_S = 0.5
client.MAX_WAIT_S = 0.5
from lutbuilder_agent.cli import main
sys.exit(main())
"""


def op(channels: int) -> OpSpec:
    return OpSpec(kind="conv", in_channels=channels, out_channels=channels, height=8, width=8, kernel=3)


class Hooked(Coordinator):
    """A coordinator that lets a test look at a report before anything of it is stored, and notes downloads."""

    lab: Lab

    def report(self, report: Report) -> ReportAck:
        self.lab.before_report(report)
        return super().report(report)

    def fetch(self, session_id: str, sha256: str, offset: int) -> Iterator[bytes]:
        self.lab.fetched.append((sha256, offset))
        return super().fetch(session_id, sha256, offset)


class Lab:
    """One campaign, its store, a coordinator that may be started again, a bad network if it is asked for, and agents.

    `batches` batches of three ops, `rounds` rounds each. Options are those of the simulated device.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rounds: int,
        batches: int = 1,
        ttl_s: float = 30.0,
        max_calls: int = 200,
        padded_bytes: int = 0,
        offered: bool = True,
        through_proxy: bool = False,
        **options: str,
    ) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background, and so by agents
        self.folder = folder
        self.decide: Callable[[Report], Decision] = lambda report: Decision()
        self.before_report: Callable[[Report], None] = lambda report: None
        self.fetched: list[tuple[str, int]] = []
        self.store = Store.open(folder / "campaign.sqlite")
        self.ttl_s = ttl_s
        self._padded_bytes = padded_bytes
        self._offered = offered
        seen = fingerprint()
        spec = CampaignSpec(
            space="test",
            target=Target(device=seen.device, runtime="simulated"),
            plan=Plan(
                runtime="simulated",
                instances=2,
                min_block_ns=100_000 if max_calls == 200 else 60_000_000_000,
                max_calls=max_calls,
                options=tuple(options.items()),
            ),
            env_id=seen.env_id,
            runtime_version="1",
            ops=tuple(
                CampaignOp.of(op(4 * (1 + number + N_OPS * batch)), batch=batch)
                for batch in range(batches)
                for number in range(N_OPS)
            ),
            budget_s=600.0,
            precision=0.01,
            max_rounds=rounds,
        )
        self.campaign = self.store.create_campaign(spec, now_s=0.0)
        self.coordinator: Hooked
        self.server: RunningServer
        self.agents: list[subprocess.Popen[str]] = []
        self.start_coordinator("127.0.0.1:0")
        self.proxy = Proxy(self.server.address) if through_proxy else None

    # --- the coordinator

    def start_coordinator(self, address: str) -> None:
        self.coordinator = Hooked(
            self.store, ArtifactShelf(build=self._build), lambda _, report: self.decide(report), ttl_s=self.ttl_s
        )
        self.coordinator.lab = self
        if self._offered:
            self.coordinator.offer(self.campaign)
        self.server = serve(self.coordinator, address)

    def stop_coordinator(self) -> str:
        """Stop it as abruptly as a kill, for the store; return its address."""
        self.server.stop(0.0)
        return self.server.address

    def restart_coordinator(self) -> None:
        self.start_coordinator(self.stop_coordinator())

    def offer(self) -> None:
        self._offered = True
        self.coordinator.offer(self.campaign)

    def _build(self, graph: LayerGraph, format: Format) -> bytes:
        return build_artifact(graph, format).ljust(self._padded_bytes)  # JSON may end in blanks

    # --- agents

    def start_agent(self, *options: str, hasty: bool = False, name: str = "me") -> subprocess.Popen[str]:
        agent = subprocess.Popen(
            self.command(*options, hasty=hasty, name=name),
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        self.agents.append(agent)
        return agent

    def command(self, *options: str, hasty: bool = False, name: str = "me") -> list[str]:
        address = self.server.address if self.proxy is None else self.proxy.address
        program = ["-c", HASTY] if hasty else ["-m", "lutbuilder_agent"]
        run = [sys.executable, *program, "run", "--coordinator", address, "--name", name]
        return [*run, "--runtimes", "simulated", *options]

    def finish(self, *options: str, name: str = "me") -> str:
        """Let an agent measure what is left, and return what it said."""
        agent = self.start_agent("--exit-when-idle", *options, name=name)
        _, said = agent.communicate(timeout=PATIENCE_S)
        assert agent.returncode == 0, said
        return said

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "agents")])
        own = {"LUTBUILDER_AGENT_STATE": str(self.folder / "state"), "XDG_CONFIG_HOME": str(self.folder / "config")}
        return {**os.environ, "PYTHONPATH": path, **own}

    def kill_first_agent(self) -> None:
        self.agents[0].kill()
        self.agents[0].wait()

    # --- what came of it

    @property
    def spooled(self) -> list[Path]:
        return self.spooled_by("me")

    def spooled_by(self, name: str) -> list[Path]:
        return sorted((self.folder / "state" / "spool" / name).glob("*.report"))

    def rounds(self) -> list[tuple[int, bool]]:
        """Round and lateness of every report the store holds."""
        return [(stored.round, stored.late) for stored in self.store.reports([self.campaign])]

    def n_visits(self) -> int:
        return len(list(self.store.raw_visits([self.campaign])))

    @property
    def is_done(self) -> bool:
        return self.store.campaign(self.campaign).state == "done"

    def assert_nothing_is_lost_or_doubled(self) -> None:
        """Every visit is there once: keys are unique, nothing conflicts, nothing waits, no lease is stuck."""
        keys = Counter(
            (v.session_id, v.timing.op_id, v.timing.round, v.timing.order)
            for v in self.store.raw_visits([self.campaign])
        )
        assert max(keys.values()) == 1
        assert sum(keys.values()) == N_OPS * len(self.rounds())
        assert self.store.conflicts([self.campaign]) == ()
        assert self.spooled == []
        assert self.store.active_leases(self.campaign) == ()

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.kill()
            agent.communicate()
        if self.proxy is not None:
            self.proxy.close()
        self.server.stop(0.0)
        self.store.close()


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
