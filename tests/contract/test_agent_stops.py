"""An agent that a signal ends while it talks to a real coordinator: it ends at once, wherever the signal finds it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType

import grpc
import pytest

from lutbuilder_agent.fingerprint import fingerprint
from lutbuilder_agent.session import Agent
from lutbuilder_agent.wire.client import CoordinatorClient
from tests.agent_fakes import RUNTIMES, FakeWorker
from tests.agent_lab import Lab, wait_for

TRIES = 30
THIS_DEVICE = fingerprint()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab", rounds=10_000)
    yield made
    made.close()


class Starter:
    """Starts agents in this thread, one after the other, each with an empty cache and spool, for two rounds."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        self._numbers = count()

    def run(self, on_step: Callable[[Agent, FrameType], None]) -> int:
        """Run an agent; `on_step` sees its thread enter and leave every function, and may end it there."""
        folder = self._folder / f"agent-{next(self._numbers)}"
        worker = FakeWorker()
        agent = Agent(
            lambda: CoordinatorClient(self._lab.server.address),
            name="me",
            cache_dir=folder / "cache",
            spool_dir=folder / "spool",
            fingerprint=THIS_DEVICE,
            runtimes=RUNTIMES,
            worker_factory=lambda plan: worker,
        )

        def enough(round: int) -> None:
            if len(worker.rounds) == 2:
                sys.setprofile(None)
                agent.stop(signal.SIGTERM)

        worker.on_round = enough
        sys.setprofile(lambda frame, event, argument: on_step(agent, frame))
        try:
            return agent.run()
        finally:
            sys.setprofile(None)


def test_nothing_of_grpc_runs_in_the_thread_in_which_signals_are_raised(lab: Lab, tmp_path: Path) -> None:
    seen: set[str] = set()

    def note(agent: Agent, frame: FrameType) -> None:
        if not is_freed(frame):  # of a channel that is closed: nothing is waited for
            seen.add(frame.f_code.co_filename)

    assert Starter(lab, tmp_path).run(note) == 128 + signal.SIGTERM
    assert any(name.endswith("link.py") for name in seen)
    assert [name for name in seen if Path(grpc.__file__).parent in Path(name).parents] == []


def is_freed(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


# What a destructor raises is lost, and pytest says so: the agent has to end all the same.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wherever_a_signal_finds_an_agent_it_ends_and_leaves_no_lease(lab: Lab, tmp_path: Path) -> None:
    starter = Starter(lab, tmp_path)
    seen = 0

    def interrupt_at(step: int) -> Callable[[Agent, FrameType], None]:
        def on_step(agent: Agent, frame: FrameType) -> None:
            nonlocal seen
            seen += 1
            if seen == step:
                sys.setprofile(None)
                agent.stop(signal.SIGINT)

        return on_step

    starter.run(interrupt_at(-1))
    for step in range(5, seen, seen // TRIES):
        seen = 0
        assert starter.run(interrupt_at(step)) == 128 + signal.SIGINT, f"step {step}"
        wait_for(lambda: lab.coordinator.leases() == ())
