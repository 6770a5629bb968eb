"""Signals end the agent where nothing is lost: `now` waits for the disk, `drain` for the round in hand as well."""

from __future__ import annotations

import signal

import pytest

from lutbuilder_agent.stopping import Stopper, StopRequested

TERM, INT = signal.SIGTERM, signal.SIGINT


def test_outside_a_round_both_end_at_once() -> None:
    for stop in (Stopper().now, Stopper().drain):
        with pytest.raises(StopRequested, match="stopped by SIGTERM"):
            stop(TERM)


def test_now_ends_a_round_at_once() -> None:
    stopper = Stopper()
    done = []
    with pytest.raises(StopRequested), stopper.round():
        stopper.now(INT)
        done.append("the rest of the round")
    assert done == []


def test_drain_lets_the_round_finish() -> None:
    stopper = Stopper()
    done = []
    with pytest.raises(StopRequested) as stopped:
        with stopper.round():
            stopper.drain(TERM)
            done.append("timed")
            with stopper.shield():
                done.append("written")
            done.append("sent")
        done.append("another round")
    assert done == ["timed", "written", "sent"]
    assert stopped.value.signum == TERM


def test_the_second_drain_ends_the_round_at_once() -> None:
    stopper = Stopper()
    done = []
    with pytest.raises(StopRequested), stopper.round():
        stopper.drain(TERM)
        done.append("timed")
        stopper.drain(TERM)
        done.append("more")
    assert done == ["timed"]


@pytest.mark.parametrize("again", ["now", "drain"])
def test_what_is_being_written_is_written_whatever_comes(again: str) -> None:
    stopper = Stopper()
    done = []
    with pytest.raises(StopRequested), stopper.round():
        stopper.drain(TERM)
        with stopper.shield():
            getattr(stopper, again)(INT)
            done.append("written")
        done.append("sent")
    assert done == ["written"]


def test_an_error_is_not_hidden_by_a_signal_that_waits() -> None:
    stopper = Stopper()
    with pytest.raises(ValueError, match="broken"), stopper.round():
        stopper.drain(TERM)
        raise ValueError("broken")


def test_stop_names_its_signal() -> None:
    assert str(StopRequested(TERM)) == "stopped by SIGTERM"
