"""The timed block: rounds, blocks and trains. Clock, calls and shuffle arrive as arguments.

Nothing here allocates between two samples beyond a list append, and the caller switches the garbage collector off.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lutbuilder_agent.records import Plan
    from lutbuilder_agent.runtimes import Prepared

_T = TypeVar("_T")
_FLUSH_BYTES = 64 << 20  # twice the largest last-level cache share seen on the hosts tried so far
NETWORK_TURNS = 4  # whole networks that take turns: each finds in the caches what three others left
_BLOCK_READINGS = 1000  # a block is at least so many readings of the timer long
_MOST_CALLS = 100_000  # of one block, however coarse the timer: what one report takes


@dataclass(frozen=True, slots=True)
class Block:
    """One visit's raw samples: nanoseconds per call, and which of them were disturbed while they ran.

    `preempted` lost their core; `throttled` ran when the device throttled, None where it does not say.
    """

    start_ns: int
    warmup_ns: tuple[int, ...]
    samples_ns: tuple[int, ...]
    preempted: tuple[int, ...]
    throttled: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TimerFacts:
    """What the host's timer costs and how finely it counts, in nanoseconds."""

    overhead_ns: int
    quantum_ns: int

    @property
    def least_block_ns(self) -> int:
        """The shortest block this timer may time: what it costs, and the step it makes, are a thousandth of it."""
        return _BLOCK_READINGS * max(self.overhead_ns, self.quantum_ns)


def timer_facts(clock_ns: Callable[[], int] = time.perf_counter_ns, *, reads: int = 2000) -> TimerFacts:
    """Return the median cost of reading `clock_ns` and the smallest step it was seen to make."""
    seen = [clock_ns() for _ in range(reads)]
    steps = sorted(b - a for a, b in pairwise(seen))
    moved = [step for step in steps if step > 0]
    return TimerFacts(overhead_ns=steps[len(steps) // 2], quantum_ns=moved[0] if moved else 0)


def preemptions() -> int:
    """Return how often this thread has lost its core so far; differences tell which calls were interrupted."""
    return _getrusage(_WHO).ru_nivcsw


def preemptions_of_all_threads() -> int:
    """The same for the whole process: a call of several threads waits for whichever lost its core."""
    return _getrusage(_RUSAGE_SELF).ru_nivcsw


def shuffled(items: Sequence[_T], *, seed: int, round: int) -> list[_T]:
    """Return `items` in an order that is a pure function of seed and round."""
    order = list(items)
    random.Random(f"{seed}:{round}").shuffle(order)
    return order


def trains(items: Sequence[_T], *, length: int) -> list[list[_T]]:
    """Cut `items` into runs of about `length`, none longer and no two lengths more than one apart."""
    count = -(-len(items) // length)
    return [list(items[i * len(items) // count : (i + 1) * len(items) // count]) for i in range(count)]


def calls_wanted(call_ns: float, plan: Plan) -> int:
    """Return how many counted calls of about `call_ns` a visit makes."""
    wanted = -(-plan.min_block_ns // max(1, int(call_ns)))
    return int(max(plan.min_calls, min(plan.max_calls, wanted)))


def calls_lacking(calls: int, took_ns: float, least_ns: float) -> int:
    """Return how many more calls a block of `calls` needs that took `took_ns` and shall take `least_ns`; 0 if none.

    At most nine times as many as there were: a coarse timer may have read next to nothing so far.
    """
    if took_ns >= least_ns:
        return 0
    wanted = math.ceil((least_ns - took_ns) * calls / max(took_ns, 1.0))
    return max(0, min(wanted, 9 * calls, _MOST_CALLS - calls))


def time_train(
    members: Sequence[Prepared],
    plan: Plan,
    *,
    now_ns: Callable[[], int],
    on_call: Callable[[int], None],
    lost_core: Callable[[], int] = preemptions,
    throttle: Callable[[], object] | None = None,
    flush: Callable[[], object] | None = None,
    least_ns: int = 0,
    warm_up_ns: int = 0,
) -> list[Block]:
    """Time `members` in turns, pass after pass, and return one block each.

    One member is the ordinary hot block. Several make a train: between two calls of an op the others run, so its
    weights and code are as cold as in a network, while its input was just written (`warm_input`), as the op before it
    would have.
    `on_call(i)` is told which member is about to run; it must be cheap. `flush` runs before every call, untimed.
    `throttle` gives the state of the device's throttle counters; it is read between passes, never inside a sample. From
    the pass on in which it changed, calls are throttled: the kernel counts beginnings, and throttling lasts.
    Uncounted passes go on until they have taken `warm_up_ns`, however many `plan.warmup_calls` asks for.
    A block (of a train: the mean of its members) that takes less than `least_ns` is lengthened, beyond `plan.max_calls`
    if need be.
    """
    warm = len(members) > 1
    warmups: list[list[int]] = [[] for _ in members]
    samples: list[list[int]] = [[] for _ in members]
    starts = [0] * len(members)
    lost: list[list[int]] = [[] for _ in members]
    throttled: list[int] = []  # passes, and so positions in the samples of every member
    calm = None if throttle is None else throttle()
    wanted = 0
    warmed_ns = 0
    done = -plan.warmup_calls
    while done < max(wanted, 1):
        if done == 0 and warmed_ns < warm_up_ns and len(warmups[0]) < plan.max_calls:
            done = -1
        if done == 0:
            wanted = calls_wanted(sum(w[-1] for w in warmups) / len(members), plan)
        for i, member in enumerate(members):
            on_call(i)
            if flush is not None:
                flush()
            if warm:
                member.warm_input()
            if done == 0:
                starts[i] = now_ns()
            before = lost_core()
            took_ns = member.timed_call()
            if done < 0:
                warmups[i].append(took_ns)
                warmed_ns += took_ns
                continue
            if lost_core() != before:
                lost[i].append(done)
            samples[i].append(took_ns)
        if throttle is not None and done >= 0 and (throttled or throttle() != calm):
            throttled.append(done)
        done += 1
        if done == wanted:
            wanted += calls_lacking(done, sum(map(sum, samples)) / len(members), least_ns)
    return [
        Block(
            start_ns=s,
            warmup_ns=tuple(w),
            samples_ns=tuple(n),
            preempted=tuple(p),
            throttled=None if throttle is None else tuple(throttled),
        )
        for s, w, n, p in zip(starts, warmups, samples, lost, strict=True)
    ]


def make_flush() -> Callable[[], object]:
    """Return a call that overwrites a buffer larger than the last-level cache."""
    import numpy as np

    buffer = np.zeros(_FLUSH_BYTES // 8)

    def flush() -> object:
        return np.add(buffer, 1.0, out=buffer)

    return flush


try:
    from resource import RUSAGE_SELF as _RUSAGE_SELF
    from resource import getrusage as _getrusage

    try:
        from resource import RUSAGE_THREAD as _WHO  # Linux; elsewhere the whole process is the best there is
    except ImportError:  # pragma: no cover - not on Linux
        from resource import RUSAGE_SELF as _WHO
except ImportError as _error:  # pragma: no cover - no such host is supported
    raise ImportError("lutbuilder-agent needs a POSIX host (resource.getrusage)") from _error
