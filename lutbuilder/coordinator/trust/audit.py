"""The audit log, `lutbuilder.audit`: who was let in, who was not, and who changed what. Never a token's secret."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

audit = logging.getLogger("lutbuilder.audit")

_REPEAT_S = 10.0
_MOST_REMEMBERED = 1000


class Sparing:
    """Says whether a line is worth writing again: nobody fills a disk by being refused. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: OrderedDict[Hashable, float] = OrderedDict()

    def due(self, key: Hashable) -> bool:
        """Return whether nothing was said about `key` for 10 s, and take it that it is said now."""
        now_s = self._clock()
        with self._lock:
            if now_s - self._told.get(key, now_s - _REPEAT_S) < _REPEAT_S:
                return False
            self._told[key] = now_s
            self._told.move_to_end(key)
            if len(self._told) > _MOST_REMEMBERED:
                self._told.popitem(last=False)
            return True
