"""Signals end the agent where nothing is lost: `now` waits for the disk, `drain` for the round in hand as well."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lutbuilder_agent.stopping import Stopper, StopRequested, keep_ctrl_c_out_of_imports

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


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a program has it."""
    before, tracing = signal.signal(INT, signal.default_int_handler), sys.gettrace()
    keep_ctrl_c_out_of_imports()
    yield
    signal.signal(INT, before)
    sys.settrace(tracing)


SEND = "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    ("lines", "importing", "far"),
    [
        ([], f"{SEND}; got.append('sent')", []),
        ([SEND, "import got; got.append('imported')"], "import told_to_end; got.append('never')", ["imported"]),
        ([SEND, "import got; got.append('imported')"], "import told_to_end", ["imported"]),
        ([SEND, "import got; got.append('first')", SEND, "got.append('never')"], "import told_to_end", ["first"]),
    ],
    ids=["elsewhere", "in an import", "in an import that comes last", "twice in one"],
)
def test_ctrl_c_ends_what_it_meets_but_no_import_unless_it_comes_twice(
    ctrl_c: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], importing: str, far: list[str]
) -> None:
    got: list[str] = []
    monkeypatch.setitem(sys.modules, "got", got)  # type: ignore[arg-type]  # what the module appends to
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "told_to_end.py").write_text("import signal\n" + "\n".join(lines), encoding="utf-8")
    scope: dict[str, object] = {"got": got}
    exec("import signal\ndef begin():\n    " + importing.replace("; ", "\n    "), scope)
    with pytest.raises(KeyboardInterrupt):
        scope["begin"]()  # type: ignore[operator]  # defined above
    sys.modules.pop("told_to_end", None)
    assert got == far


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    """In a shell's background."""
    before = signal.signal(INT, signal.SIG_IGN)
    try:
        keep_ctrl_c_out_of_imports()
        assert signal.getsignal(INT) is signal.SIG_IGN
    finally:
        signal.signal(INT, before)
