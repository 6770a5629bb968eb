"""Work done in a thread of its own while the caller waits, so that a signal ends the wait and never breaks the work.

A handler that raises does so in the main thread, wherever that is at the moment. Inside grpc that leaves a call that
nobody awaits: closing its channel then waits for ever, or the next call does, whose answer went to the wrong thread
(grpcio 1.85: 2 of 618 places tried in `_channel.py`). Here it finds the main thread waiting, where it does no harm.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")


def aside(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, or raise what it raises. Whoever is interrupted meanwhile leaves it to itself."""
    done: SimpleQueue[Future[_T]] = SimpleQueue()

    def run() -> None:
        answer: Future[_T] = Future()
        try:
            answer.set_result(work())
        except BaseException as error:  # whatever it is, it is the caller's
            answer.set_exception(error)
        done.put(answer)

    # Both are one step for a signal: Thread.start and Future.result hold locks that it would leave behind.
    _thread.start_new_thread(run, ())
    return done.get().result()
