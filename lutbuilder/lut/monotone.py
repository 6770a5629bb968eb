"""Pairs of ops that differ in one thing only, of which the larger should not be the faster one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lutbuilder.op import OpSpec

if TYPE_CHECKING:
    from lutbuilder.lut.schema import Row

What = Literal["kernel", "expand", "width", "bits"]
_KEY = (*(field.name for field in fields(OpSpec)), "method")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two measured rows with intervals that differ in `what` alone, next to each other in size."""

    what: What
    smaller: Row
    larger: Row

    @property
    def violated(self) -> bool:
        """Whether the larger op is faster, and the two intervals say so: they do not touch."""
        return _end(self.larger.latency_hi_ms) < _end(self.smaller.latency_lo_ms)


def monotone_pairs(rows: Iterable[Row]) -> tuple[Pair, ...]:
    """Return every pair of `rows` that says whether cost grows with kernel, expansion, channels or bits.

    Only measured rows with an interval count, and bits only where the engine really computes in them.
    """
    measured = [row for row in rows if row.status == "measured" and row.latency_lo_ms is not None]
    measured = [row for row in measured if row.kind != "identity"]
    return tuple(pair for what, names, fits in _DIMENSIONS for pair in _pairs(what, names, filter(fits, measured)))


def size_inversions(rows: Iterable[Row]) -> tuple[int, int]:
    """Return how many pairs of `rows` differ in kernel or expansion alone, and in how many the larger is the faster.

    By the values as they are: published tables have intervals of means, if any. Every pair of a group counts, not only
    neighbours, and ties do not.
    """
    n_pairs = n_inverted = 0
    known = [row for row in rows if row.latency_ms is not None and _convolves(row)]
    for name, fits in (("kernel", _convolves), ("mid_channels", _expands)):
        alike: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for row in filter(fits, known):
            alike[tuple(getattr(row, other) for other in _KEY if other != name)].append(row)
        for group in alike.values():
            group.sort(key=attrgetter(name))
            ms = np.array([row.latency_ms for row in group])
            n_pairs += len(ms) * (len(ms) - 1) // 2
            n_inverted += int(np.triu(ms[None, :] < ms[:, None], 1).sum())
    return n_pairs, n_inverted


def _pairs(what: What, names: tuple[str, ...], rows: Iterable[Row]) -> Iterator[Pair]:
    alike: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        alike[tuple(getattr(row, name) for name in _KEY if name not in names)].append(row)
    for group in alike.values():
        group.sort(key=lambda row: int(getattr(row, names[0])))
        for smaller, larger in pairwise(group):
            if getattr(smaller, names[0]) < getattr(larger, names[0]):
                yield Pair(what=what, smaller=smaller, larger=larger)


def _convolves(row: Row) -> bool:
    return row.kind in ("conv", "mbconv")


def _expands(row: Row) -> bool:
    return row.kind == "mbconv"


def _any(row: Row) -> bool:
    return True


def _depthwise(row: Row) -> bool:
    return row.kind == "conv" and row.groups == row.in_channels == row.out_channels


def _in_its_bits(row: Row) -> bool:
    return row.exec_status == "native" and (row.exec_w_bits, row.exec_a_bits) == (row.w_bits, row.a_bits)


_DIMENSIONS: tuple[tuple[What, tuple[str, ...], Callable[[Row], bool]], ...] = (
    ("kernel", ("kernel",), _convolves),
    ("expand", ("mid_channels",), _expands),
    ("width", ("in_channels",), _any),
    ("width", ("out_channels",), _any),
    ("width", ("in_channels", "out_channels", "groups"), _depthwise),
    ("bits", ("w_bits",), _in_its_bits),
    ("bits", ("a_bits",), _in_its_bits),
)


def _end(ms: float | None) -> float:
    return float("nan") if ms is None else ms  # compares false: no interval, no verdict
