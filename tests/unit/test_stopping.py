"""Signals end the agent where nothing is lost: `now` waits for the disk, `drain` for the round in hand as well."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from lutbuilder_agent.stopping import Stopper, StopRequested

TERM, INT = signal.SIGTERM, signal.SIGINT


def test_outside_a_round_both_end_at_once() -> None:
    for stop in (Stopper().now, Stopper().drain):
        with pytest.raises(StopRequested, match="stopped by SIGTERM"):
            stop(TERM)


def a_round(
    stopper: Stopper, *signals: Callable[[int], None], writing: Callable[[int], None] | None = None
) -> list[str]:
    """Go through a round in which signals come, one of them while it is written; return how far it got."""
    done: list[str] = []
    with suppress(StopRequested):
        with stopper.round():
            for send in signals:
                send(TERM)
            done.append("timed")
            with stopper.shield():
                if writing is not None:
                    writing(INT)
                done.append("written")
            done.append("sent")
        done.append("another round")
    return done


def test_without_a_signal_one_round_follows_the_other() -> None:
    assert a_round(Stopper()) == ["timed", "written", "sent", "another round"]


def test_now_ends_a_round_at_once() -> None:
    stopper = Stopper()
    assert a_round(stopper, stopper.now) == []


def test_drain_lets_the_round_finish() -> None:
    stopper = Stopper()
    assert a_round(stopper, stopper.drain) == ["timed", "written", "sent"]


def test_the_second_drain_ends_the_round_at_once() -> None:
    stopper = Stopper()
    assert a_round(stopper, stopper.drain, stopper.drain) == []


def test_what_is_being_written_is_written_whatever_comes() -> None:
    for again in ("now", "drain"):
        stopper = Stopper()
        assert a_round(stopper, stopper.drain, writing=getattr(stopper, again)) == ["timed", "written"]


def test_the_signal_that_ends_it_is_named() -> None:
    stopper = Stopper()
    with pytest.raises(StopRequested) as stopped:
        drained(stopper)
    assert stopped.value.signum == TERM


def drained(stopper: Stopper) -> None:
    with stopper.round():
        stopper.drain(TERM)


def test_an_error_is_not_hidden_by_a_signal_that_waits() -> None:
    def broken(signum: int) -> None:
        raise ValueError("broken")

    stopper = Stopper()
    with pytest.raises(ValueError, match="broken"):
        a_round(stopper, stopper.drain, broken)


def test_stop_names_its_signal() -> None:
    assert str(StopRequested(TERM)) == "stopped by SIGTERM"
