"""An agent with everything around it fake, for tests of what it does when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lutbuilder_agent.errors import LutbuilderError
from lutbuilder_agent.records import Conditions, Plan, Report
from lutbuilder_agent.session import Agent
from lutbuilder_agent.spool import DEFAULT_MAX_BYTES, Spool
from tests.agent_fakes import FINGERPRINT, RUNTIMES, FakeClock, FakeCoordinator, FakeWorker


@dataclass
class Bench:
    """An agent with everything around it fake; `run` makes a new one in the same folders, like a restart."""

    folder: Path
    coordinator: FakeCoordinator = field(default_factory=FakeCoordinator)
    worker: FakeWorker = field(default_factory=FakeWorker)
    clock: FakeClock = field(default_factory=FakeClock)
    agent: Agent | None = None
    ids: int = 0

    def run(
        self,
        *,
        exit_when_idle: bool = True,
        give_up_after_s: float | None = None,
        spool_quota_bytes: int = DEFAULT_MAX_BYTES,
        cache_quota_bytes: int = 1 << 20,
    ) -> int:
        self.agent = Agent(
            self.coordinator.connect,
            name="agent",
            cache_dir=self.folder / "cache",
            spool_dir=self.spool_dir,
            spool_quota_bytes=spool_quota_bytes,
            cache_quota_bytes=cache_quota_bytes,
            fingerprint=FINGERPRINT,
            runtimes=RUNTIMES,
            worker_factory=self.start_worker,
            exit_when_idle=exit_when_idle,
            give_up_after_s=give_up_after_s,
            read_conditions=lambda: Conditions(monotonic_ns=1, load_1min=0.5),
            clock_s=self.clock,
            sleep=self.clock.sleep,
            jitter=lambda: 0.0,
            new_id=self.new_id,
        )
        return self.agent.run()

    def start_worker(self, plan: Plan) -> FakeWorker:
        return self.worker

    def new_id(self) -> str:
        self.ids += 1
        return f"id-{self.ids}"

    @property
    def spool_dir(self) -> Path:
        return self.folder / "spool"

    def waiting(self) -> list[Report | None]:
        spool = Spool.open(self.spool_dir, warn=pytest.fail)
        return [spool.read(path) for path in spool.paths()]

    def stop(self, signum: int) -> None:
        assert self.agent is not None
        self.agent.stop(signum)

    def drain(self, signum: int) -> None:
        assert self.agent is not None
        self.agent.drain(signum)


def failing(error: LutbuilderError, *calls: str, times: int) -> Callable[[str], None]:
    """An `on_call` that raises `error` at the first `times` calls among `calls`."""
    left = times

    def on_call(call: str) -> None:
        nonlocal left
        if call in calls and left > 0:
            left -= 1
            raise error

    return on_call
