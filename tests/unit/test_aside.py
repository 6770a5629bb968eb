"""Work aside: the caller gets its answer, and is interrupted without the work being so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from lutbuilder_agent.aside import aside
from lutbuilder_agent.stopping import Stopper, StopRequested


@pytest.fixture
def signalled() -> Iterator[int]:
    """The thread in which SIGUSR1 raises StopRequested: this one."""
    stopper = Stopper()

    def handle(signum: int, frame: FrameType | None) -> None:
        stopper.now(signum)

    before = signal.signal(signal.SIGUSR1, handle)
    yield threading.get_ident()
    signal.signal(signal.SIGUSR1, before)


def test_the_caller_gets_what_the_work_returns_or_raises() -> None:
    assert aside(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)


def test_an_exception_that_is_no_error_reaches_the_caller_too() -> None:
    def stop() -> None:
        raise StopRequested(signal.SIGTERM)

    with pytest.raises(StopRequested, match="SIGTERM"):
        aside(stop)


def test_the_work_runs_in_another_thread_than_the_signals() -> None:
    assert aside(threading.get_ident) != threading.get_ident()


def test_a_signal_ends_the_wait_at_once_and_the_work_in_its_own_time(signalled: int) -> None:
    interrupted, finished = threading.Event(), threading.Event()

    def work() -> None:
        signal.pthread_kill(signalled, signal.SIGUSR1)
        assert interrupted.wait(30.0), "the caller waits for the work"
        finished.set()

    with pytest.raises(StopRequested, match="SIGUSR1"):
        aside(work)
    interrupted.set()
    assert finished.wait(30.0)
