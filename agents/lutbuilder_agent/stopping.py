"""Signals: end at once, or as soon as what is in hand is safe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CTRL_C_STATUS = 128 + signal.SIGINT


class StopRequested(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception, so that no handler for errors swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def keep_ctrl_c_out_of_imports() -> None:
    """Have Ctrl-C raise KeyboardInterrupt as ever, but behind the import that is under way; a second one does not wait.

    Inside one a module may make another error of it, and Python drops it where it cleans up after its own locks.
    """
    # What is ignored, as in a shell's background, or somebody's own stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    importer = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            importer = frame.f_back  # the outermost, in the end
        frame = frame.f_back
    if importer is None or importer.f_trace is _interrupt_here:
        raise KeyboardInterrupt
    importer.f_trace = _interrupt_here
    sys.settrace(lambda *_: None)  # without it no frame is traced


def _interrupt_here(frame: FrameType, event: str, argument: object) -> None:
    """What Python calls at the next line of the frame that imports, or as it ends."""
    sys.settrace(None)
    raise KeyboardInterrupt


class Stopper:
    """Raises StopRequested where nothing is lost. `now` and `drain` are what signal handlers call.

    A round is held by `round`, the writing of it by `shield`: `drain` waits for both, `now` for the second only.
    """

    def __init__(self) -> None:
        self._in_round = False
        self._shielded = False
        self._now: int | None = None
        self._drain: int | None = None

    def now(self, signum: int) -> None:
        """End now, or as soon as the round in hand is on the disk."""
        self._now = signum
        if not self._shielded:
            raise StopRequested(signum)

    def drain(self, signum: int) -> None:
        """End when the round in hand is measured and handed in; the second time it is `now`."""
        if self._in_round and self._drain is None:
            self._drain = signum
        else:
            self.now(signum)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Let a `drain` wait for what is inside, and raise it afterwards."""
        self._in_round = True
        try:
            yield
        finally:
            self._in_round = False
        if self._drain is not None:
            raise StopRequested(self._drain)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Let any signal wait for what is inside, and raise it afterwards."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        self.check()

    def check(self) -> None:
        """Raise what `now` was asked for and what got lost: Python drops what is raised inside a `__del__`."""
        if self._now is not None:
            raise StopRequested(self._now)
