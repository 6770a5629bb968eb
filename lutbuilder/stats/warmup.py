"""What the raw calls of visits tell that their medians do not: whether an op was warm when counting began, throttling.

A pure function over raw visits (the store's `raw_visits`), read once: there may be hundreds of thousands.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Protocol

THRESHOLD = 0.02  # a first call that is so much slower or faster than the rest, relatively, is another thing
LEVEL = 0.95
_LEAST_REST = 2  # calls after the first that a visit needs to say something


class CallsOfVisit(Protocol):
    """What is read of a visit; lutbuilder_agent.records.Timing fits."""

    @property
    def op_id(self) -> str: ...
    @property
    def samples_ns(self) -> Sequence[int]: ...
    @property
    def throttled(self) -> Sequence[int] | None: ...
    @property
    def disturbed(self) -> Sequence[int]: ...


class RawVisit(Protocol):
    """A visit as the store gives it."""

    @property
    def timing(self) -> CallsOfVisit: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """An op's first counted call against the rest of its visit, over `n_visits` visits.

    `ratio` is first / rest, the median over visits, `lo` and `hi` its 95 % interval; None below 6 visits. `settled`:
    True if the whole interval lies within 2 % of 1, False if all of it lies farther away, None if that is not known.
    """

    n_visits: int
    ratio: float | None = None
    lo: float | None = None
    hi: float | None = None

    @property
    def settled(self) -> bool | None:
        """Whether counting began when the op was warm."""
        if self.lo is None or self.hi is None:
            return None
        if self.lo >= 1 / (1 + THRESHOLD) and self.hi <= 1 + THRESHOLD:
            return True
        return False if self.lo > 1 + THRESHOLD or self.hi < 1 / (1 + THRESHOLD) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCalls:
    """What all raw calls of an op tell. `throttled_fraction` is None if no device that made them counts throttling."""

    warmup: Warmup
    throttled_fraction: float | None


def told_by_calls(raw_visits: Iterable[RawVisit]) -> Mapping[str, OpCalls]:
    """Return what every op's raw calls tell, by op_id.

    Warm-up is a paired test: each visit compares its own first counted call with the median of its others, so that what
    the machine was doing at the time cancels. It is robust: the median over visits, with the interval of the sign test,
    which asks nothing of the noise (Hollander, Wolfe, Chicken, Nonparametric Statistical Methods, 3rd ed., section
    3.6). Disturbed calls count nowhere; a visit whose first call was disturbed says nothing.
    """
    firsts: dict[str, list[float]] = defaultdict(list)
    counted: dict[str, int] = defaultdict(int)
    throttled: dict[str, int] = defaultdict(int)
    for visit in raw_visits:
        calls = visit.timing
        disturbed = frozenset(calls.disturbed)
        rest = [ns for number, ns in enumerate(calls.samples_ns) if number and number not in disturbed]
        logs = firsts[calls.op_id]
        if 0 not in disturbed and len(rest) >= _LEAST_REST:
            logs.append(math.log(calls.samples_ns[0] / median(rest)))
        if calls.throttled is not None:
            counted[calls.op_id] += len(calls.samples_ns)
            throttled[calls.op_id] += len(set(calls.throttled))
    return {
        op_id: OpCalls(
            warmup=_warmup(sorted(logs)),
            throttled_fraction=throttled[op_id] / counted[op_id] if counted[op_id] else None,
        )
        for op_id, logs in firsts.items()
    }


def _warmup(logs: Sequence[float]) -> Warmup:
    rank = _rank(len(logs))
    if rank is None:
        return Warmup(n_visits=len(logs))
    return Warmup(
        n_visits=len(logs),
        ratio=math.exp(median(logs)),
        lo=math.exp(logs[rank - 1]),
        hi=math.exp(logs[-rank]),
    )


@lru_cache(maxsize=1024)
def _rank(n: int) -> int | None:
    """Return r such that the r-th lowest and r-th highest of n values hold their median with LEVEL; None: n too few."""
    rank, ways, outside = 0, 1, 1  # ways of choosing `rank` of n, and of choosing at most so many: exact for any n
    while outside / (1 << n) <= (1 - LEVEL) / 2:
        ways = ways * (n - rank) // (rank + 1)
        rank += 1
        outside += ways
    return rank or None
