"""Tables of ways: how many archs reach each whole tick of cost, and every one of them by a number.

Counts are integers of any length. Costs are no whole ticks, so a table says two things of bounds on them: how many
archs surely keep them, and how many may; those that may are numbered.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas import wide
from lutbuilder.nas.chain import Chain, Ints
from lutbuilder.nas.compiled import Floats
from lutbuilder.nas.ticks import Moves, TickedChain
from lutbuilder_agent.errors import SpecError

Archs = NDArray[np.int16]
Bounds = tuple[tuple[float, float], ...]  # of each amount that is counted: lowest and highest, both included
MAX_BYTES = 500_000_000  # of tables
# Tables that were not asked for at a tick of the caller's take no more than this.
_FITTING_BYTES = 150_000_000
_FITTING_WORK = 1_000_000_000  # sums of two numbers; about 2 s
_MOST_TICKS = 20_000  # between the lowest cost and the highest bound
_LEAST_TICKS = 1 << 20  # of the whole range, where the bounds leave next to nothing of it
_COARSER = 1.1  # times coarser than should do, so that the next try does
_CHUNK = 1 << 21  # choices looked at together when drawing; 16 MiB a limb


@dataclass(frozen=True, slots=True)
class Box:
    """Ticks from `first` to `last` on every axis, both included."""

    first: tuple[int, ...]
    last: tuple[int, ...]

    def within(self, widths: Ints) -> tuple[slice, ...]:
        """Where the box is in the table of the last state."""
        stops = np.minimum(np.array(self.last) + 1, widths[:, 0]).tolist()
        return tuple(slice(first, max(first, stop)) for first, stop in zip(self.first, stops, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ways:
    """How many ways lead into each state at each tick: limbs of shape (n_states, *most ticks)."""

    limbs: wide.Limbs
    widths: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Counting:
    """The archs of `chain` whose first amounts may lie within `bounds`, at `ticks` of those amounts. Immutable.

    Raises SpecError, naming ticks that would do, where a table is asked for that takes more than 500 MB.
    """

    chain: Chain
    bounds: Bounds
    ticks: tuple[float, ...]

    @classmethod
    def fitting(cls, chain: Chain, bounds: Bounds, *, ticks: Sequence[float]) -> Counting:
        """Return the same at `ticks`, or at the first coarser ones whose tables stay small (150 MB) and soon made."""
        while True:
            counting = cls(chain=chain, bounds=bounds, ticks=tuple(ticks))
            excess = max(sum(counting.bytes) / _FITTING_BYTES, counting.work / _FITTING_WORK)
            if excess <= 1.0 or counting.longest <= 1:
                return counting
            ticks = [tick * _COARSER * excess ** (1 / len(ticks)) for tick in ticks]

    @cached_property
    def ticked(self) -> TickedChain:
        """The chain in ticks."""
        return TickedChain.of(self.chain, self.ticks)

    # --- Which ticks

    def possible(self, bounds: Bounds) -> Box:
        """Return the ticks of all archs that may lie within `bounds`."""
        return self._box(bounds, self.ticked.error_low[-1][:, 0], self.ticked.error_high[-1][:, 0])

    def certain(self, bounds: Bounds) -> Box:
        """Return the ticks all of whose archs lie within `bounds`."""
        return self._box(bounds, self.ticked.error_high[-1][:, 0], self.ticked.error_low[-1][:, 0])

    def _box(self, bounds: Bounds, error_at_top: Floats, error_at_bottom: Floats) -> Box:
        firsts, lasts = [], []
        for axis, (low, high) in enumerate(bounds):
            lowest = float(self.ticked.lowest[-1][axis, 0])
            top = int(self.ticked.tops[-1][axis, 0])
            last = (high - lowest - error_at_top[axis]) / self.ticks[axis]
            first = (low - lowest - error_at_bottom[axis]) / self.ticks[axis]
            lasts.append(math.floor(min(max(last, -1.0), float(top))))
            firsts.append(math.ceil(min(max(first, 0.0), top + 1.0)))
        return Box(tuple(firsts), tuple(lasts))

    @cached_property
    def outer(self) -> Box:
        """The ticks of all archs that may lie within the bounds."""
        return self.possible(self.bounds)

    @cached_property
    def inner(self) -> Box:
        """The ticks of archs that surely do."""
        return self.certain(self.bounds)

    # --- How many

    def total(self, box: Box) -> int:
        """Return how many archs end within `box`, which lies within the outer one."""
        last = self._last
        return wide.total((limb[0][box.within(last.widths)] for limb in last.limbs), bits=self._bits)

    def shares(self, box: Box) -> list[Floats]:
        """Return the share of each value of each variable among the archs that end within `box`. There is one."""
        shares = [np.zeros(size) for size in self.chain.sizes]
        last = self._tables[-1]
        onwards = np.zeros(last.limbs[0].shape)
        onwards[0][box.within(last.widths)] = 1.0
        for moves, before, after in zip(
            reversed(self.ticked.moves), reversed(self._tables[:-1]), reversed(self._tables[1:]), strict=True
        ):
            ways = wide.scaled(before.limbs, bits=self._bits)  # the scale drops out below
            earlier = np.zeros(before.limbs[0].shape)
            weights = np.zeros(len(moves.source))
            for number, (into, out_of) in moves.parts(before.widths, after.widths):
                # Not np.dot: BLAS wakes its threads for a sum of 10,000 terms, at 40 times the CPU time.
                weights[number] = np.einsum("i,i->", ways[out_of].ravel(), onwards[into].ravel()) * moves.many[number]
                earlier[out_of] += onwards[into] * moves.many[number]
            cells = np.repeat(weights / (moves.many * weights.sum()), moves.many)
            for variable, values in moves.step.values(moves.cells):
                shares[variable] += np.bincount(values, weights=cells, minlength=len(shares[variable]))
            onwards = earlier / earlier.max()
        return shares

    # --- One axis alone: archs by number, in ascending order of ticks

    @cached_property
    def n_archs(self) -> int:
        """How many archs are numbered: those that may lie within the bounds."""
        return self._upto[-1] if self._upto else 0

    def numbers(self, bounds: Bounds) -> range:
        """Return the numbers of the archs that may lie within `bounds`, narrower ones."""
        box = self.possible(bounds)
        start = max(box.first[0] - self.outer.first[0], 0)
        stop = min(box.last[0] + 1 - self.outer.first[0], len(self._upto))
        if start >= stop:
            return range(0)
        return range(self._upto[start - 1] if start else 0, self._upto[stop - 1])

    def archs(self, numbers: Sequence[int]) -> Archs:
        """Return the archs with these numbers, from 0 to `n_archs` - 1; shape (n, n_variables)."""
        archs = np.zeros((len(numbers), len(self.chain.sizes)), dtype=np.int16)
        places = [bisect_right(self._upto, number) for number in numbers]
        rests = [number - (self._upto[p - 1] if p else 0) for number, p in zip(numbers, places, strict=True)]
        ticks = np.array(places, dtype=np.int64)[None] + self.outer.first[0]
        widest = max(len(moves.rows[0]) for moves in self.ticked.moves) if self.ticked.moves else 1
        chunk = max(1, _CHUNK // (widest * max(len(ways.limbs) for ways in self._tables)))
        for start in range(0, len(numbers), chunk):
            part = slice(start, start + chunk)
            self._walk_back(archs[part], ticks[:, part], rests[part])
        return archs

    @cached_property
    def _upto(self) -> list[int]:
        """How many archs there are up to each tick of the outer box."""
        last = self._tables[-1]
        box = self.outer.within(last.widths)
        return list(accumulate(wide.to_ints((limb[0][box] for limb in last.limbs), bits=self._bits)))

    def _walk_back(self, archs: Archs, ticks: Ints, numbers: list[int]) -> None:
        """Write the archs numbered so among the ways to the end at `ticks` (1, n) into `archs`.

        At each step the moves into the state are a row of intervals as long as their ways; a number lies in one of
        them, and what it is beyond that one's start is its number before the step.
        """
        bits = self._bits
        everyone = np.arange(len(numbers))
        states = np.zeros(len(numbers), dtype=np.int64)
        rest = wide.from_ints(numbers, bits=bits, n_limbs=self._n_limbs[-1])
        for moves, before in zip(reversed(self.ticked.moves), reversed(self._tables[:-1]), strict=True):
            choices, position, exists = moves.into(states, ticks, before.widths, before.limbs[0].shape)
            many = moves.many[choices].astype(np.uint64)
            ways = [np.where(exists, limb.ravel()[position], np.uint64(0)) for limb in before.limbs]
            upto = [np.cumsum(limb * many, axis=1) for limb in ways]
            upto += [np.zeros_like(upto[0]) for _ in range(len(rest) - len(upto))]
            wide.carry(upto, bits=bits)
            upto = upto[: len(rest)]
            column = wide.at_most(upto, [limb[:, None] for limb in rest]).sum(axis=1)
            start = [np.where(column > 0, limb[everyone, column - 1], np.uint64(0)) for limb in upto]
            wide.subtract(rest, start, bits=bits)
            chosen = choices[everyone, column]
            member = np.zeros(len(numbers), dtype=np.int64)
            several = np.flatnonzero(moves.many[chosen] > 1)
            if several.size:  # the interval is as many equal ones as the move has cells
                whole = wide.to_ints([limb[several] for limb in rest], bits=bits)
                each = wide.to_ints([limb[several, column[several]] for limb in ways], bits=bits)
                pairs = [divmod(one, other) for one, other in zip(whole, each, strict=True)]
                member[several] = [cell for cell, _ in pairs]
                left = wide.from_ints([number for _, number in pairs], bits=bits, n_limbs=len(rest))
                for limb, part in zip(rest, left, strict=True):
                    limb[several] = part
            moves.step.decide(archs, moves.cells[moves.first[chosen] + member])
            rest = rest[: len(before.limbs)]
            states = moves.source[chosen]
            ticks = ticks - moves.shift[:, chosen]

    # --- The tables

    @cached_property
    def _widths(self) -> list[Ints]:
        return self.ticked.widths(self.outer.last)

    @cached_property
    def _bits(self) -> int:
        """Bits a limb holds, so that the ways of all cells into one state can be added before carrying."""
        most = 1
        for moves in self.ticked.moves:
            most = max(most, int(np.bincount(moves.target, weights=moves.many).max(initial=0)))
        return 62 - most.bit_length()

    @cached_property
    def _n_limbs(self) -> list[int]:
        bits = [math.floor(max(float(ways.max()), 0.0) + 1e-6) + 1 for ways in self.ticked.log2_ways]
        return [-(-n // self._bits) for n in bits]

    @cached_property
    def bytes(self) -> list[int]:
        """What each table takes."""
        return [
            8 * n_limbs * widths.shape[1] * math.prod(widths.max(axis=1).tolist())
            for n_limbs, widths in zip(self._n_limbs, self._widths, strict=True)
        ]

    @cached_property
    def work(self) -> int:
        """How many numbers are added to others to make all tables, about."""
        return sum(
            len(moves.source) * math.prod(widths.max(axis=1).tolist()) * n_limbs
            for moves, widths, n_limbs in zip(self.ticked.moves, self._widths[1:], self._n_limbs[1:], strict=True)
        )

    @cached_property
    def longest(self) -> int:
        """The most ticks of any axis that any table has."""
        return max(int(widths.max()) for widths in self._widths)

    def _check_bytes(self, taken: int) -> None:
        if taken > MAX_BYTES:
            factor = 1.05 * (taken / MAX_BYTES) ** (1 / len(self.ticks))
            ticks = ", ".join(_up(tick * factor) for tick in self.ticks)
            raise SpecError(
                f"tables of {taken / 1e6:,.0f} MB would be needed, more than {MAX_BYTES / 1e6:,.0f} MB: take coarser "
                f"ticks (tick={ticks}); samples stay exactly uniform"
            )

    @cached_property
    def _tables(self) -> list[_Ways]:
        """The ways into every state, before the first step and after each."""
        self._check_bytes(sum(self.bytes))
        return list(self._forward())

    @cached_property
    def _last(self) -> _Ways:
        """The ways to the end; counting alone needs two tables at a time only."""
        if "_tables" in self.__dict__ or sum(self.bytes) <= MAX_BYTES:
            return self._tables[-1]
        self._check_bytes(max(map(sum, zip(self.bytes[:-1], self.bytes[1:], strict=True))))
        for ways in self._forward():
            last = ways
        return last

    def _forward(self) -> Iterator[_Ways]:
        ways = _Ways(limbs=[np.ones((1,) * (1 + len(self.ticks)), dtype=np.uint64)], widths=self._widths[0])
        yield ways
        for moves, widths, n_limbs in zip(self.ticked.moves, self._widths[1:], self._n_limbs[1:], strict=True):
            ways = _moved(moves, ways, widths, n_limbs=n_limbs, bits=self._bits)
            yield ways


def span_ticks(chain: Chain, bounds: Bounds, n_ticks: int) -> tuple[float, ...]:
    """Return ticks that divide what `bounds` leave of the range of each amount into `n_ticks`.

    They are no finer than a 20,000th of the way from the lowest cost to the highest bound: of a narrow window high up
    less is resolved, for tables go all the way there.
    """
    return tuple(_span_tick(*chain.span(axis), low, high, n_ticks) for axis, (low, high) in enumerate(bounds))


def _span_tick(lowest: float, highest: float, low: float, high: float, n_ticks: int) -> float:
    top = min(high, highest)
    tick = max((top - max(low, lowest)) / n_ticks, (top - lowest) / _MOST_TICKS, (highest - lowest) / _LEAST_TICKS)
    return tick if tick > 0 else 1.0  # all archs cost the same


def _moved(moves: Moves, before: _Ways, widths: Ints, *, n_limbs: int, bits: int) -> _Ways:
    """The ways after a step."""
    limbs = [np.zeros((widths.shape[1], *widths.max(axis=1)), dtype=np.uint64) for _ in range(n_limbs)]
    for number, (into, out_of) in moves.parts(before.widths, widths):
        many = np.uint64(moves.many[number])
        for limb, limb_before in zip(limbs, before.limbs, strict=False):  # a limb more, or one that is 0
            added = limb_before[out_of]
            there = limb[into]
            np.add(there, added if many == 1 else added * many, out=there)
    wide.carry(limbs, bits=bits)
    return _Ways(limbs=limbs, widths=widths)


def _up(value: float) -> str:
    """`value` rounded up to two digits."""
    digits = 1 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:.2g}"
