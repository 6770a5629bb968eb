"""What the benchmarks of search share: CPU time of calls, medians and ranges over interleaved rounds, goals met or not.

Imported by scripts beside it, after they have set OMP_NUM_THREADS.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import NoReturn, TypeVar

from lutbuilder.lower import lower
from lutbuilder.nas.compiled import FunctionTable

Answer = TypeVar("Answer")
UNAVAILABLE = 69  # exit status of what cannot be measured here (EX_UNAVAILABLE of sysexits.h)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What was seen over the rounds."""

    median: float
    low: float
    high: float

    def text(
        self,
        unit: str,
        *,
        scale: float = 1.0,
        digits: int = 1,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> str:
        """Return median, range and, where there is a goal, whether it is met: in every round, or in the median."""
        seen, low, high = (f"{value / scale:,.{digits}f}" for value in (self.median, self.low, self.high))
        line = f"{seen:>10} ({low} to {high}) {unit}"
        if at_least is None and at_most is None:
            return line
        goal, worst = (at_least, self.low) if at_least is not None else (at_most, self.high)
        assert goal is not None  # one of the two
        sign = 1.0 if at_least is not None else -1.0
        met = "met" if sign * worst >= sign * goal else "met in the median"
        verdict = met if sign * self.median >= sign * goal else "MISSED"
        return f"{line}; goal {goal / scale:,.{digits}f}: {verdict}"


Figures = dict[str, Figure]


def over(rounds: Iterable[Mapping[str, float]]) -> Figures:
    """Return each figure's median and range over the rounds; every round has the same figures."""
    seen: dict[str, list[float]] = {}
    for figures in rounds:
        for name, value in figures.items():
            seen.setdefault(name, []).append(value)
    return {name: Figure(median=median(v), low=min(v), high=max(v)) for name, v in seen.items()}


def as_json(figures: object) -> str:
    """Return anything that holds figures, plain values and mappings as JSON."""
    return json.dumps(figures, default=lambda figure: asdict(figure))


def timed(call: Callable[[], Answer]) -> tuple[float, Answer]:
    """Return the CPU seconds of one call, and what it gave."""
    start = time.process_time()
    answer = call()
    return time.process_time() - start, answer


def cpu_s(call: Callable[[], object], *, at_least_s: float = 0.0) -> float:
    """Return the CPU seconds of one call: the mean of as many as `at_least_s` takes."""
    start, calls = time.process_time(), 0
    while True:
        call()
        calls += 1
        spent = time.process_time() - start
        if spent >= at_least_s:
            return spent / calls


def synthetic_table() -> FunctionTable:
    """Return the synthetic LUT of the search-space tests: 0.01 ms + MACs / 1e8 ms an op."""
    return FunctionTable(name="synthetic", cost=lambda op: 0.01 + lower(op).macs / 1e8, call_overhead_ms=0.01)


def not_measured(why: str) -> NoReturn:
    """End a benchmark whose other side is not there; `make bench` goes on, and fails in the end."""
    print(f"NOT MEASURED: {why}")
    sys.exit(UNAVAILABLE)
