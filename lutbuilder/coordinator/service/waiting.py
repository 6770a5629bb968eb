"""Agents that wait for a lease. One that may get something is called up; nobody else wakes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from lutbuilder.coordinator.schedule import Asker


@dataclass(slots=True, eq=False)
class Waiter:
    """A lease call that waits. Mutable: `tried` is the last state of things in which there was nothing for it."""

    asker: Asker
    tried: int = -1
    called: threading.Event = field(default_factory=threading.Event)


class Waiting:
    """Lease calls that wait, in the order they came. The caller holds the board's lock."""

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, waiter: Waiter) -> None:
        """Wait from now on: its event was cleared before it asked in vain."""
        self._waiters.setdefault(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Wait no more."""
        self._waiters.pop(waiter, None)

    def idle(self, now: int) -> Iterator[Waiter]:
        """Yield those that were not called yet and have not asked in vain since things became as they are `now`."""
        return (waiter for waiter in self._waiters if not waiter.called.is_set() and waiter.tried != now)

    def call_all(self) -> None:
        """Let every call return."""
        for waiter in self._waiters:
            waiter.called.set()
