"""Signals: end at once, or as soon as what is in hand is safe."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequested(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception, so that no handler for errors swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


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
        if not self._shielded:
            raise StopRequested(signum)
        self._now = signum

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
        if self._now is not None:
            raise StopRequested(self._now)
