"""A chain on a grid: costs in whole ticks, counted from the cheapest way into each state.

Rounding is down to whole ticks and never hidden: for every state the chain knows how far the cost of a way into it can
be from what its ticks say. Where all costs are whole ticks that distance is 0 and every answer is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.chain import Chain, Ints, Step
from lutbuilder.nas.compiled import Floats
from lutbuilder_agent.errors import SpecError

SNAP = 1e-6  # of a tick: what a sum of floats may lack to a whole tick
Place = tuple[int | slice, ...]  # in a table of shape (n_states, *ticks)
_MAX_TICKS = 1 << 50  # floats count further, but not in fractions
_NEVER = 1 << 60  # ticks to the end of a state without an end


@dataclass(frozen=True, kw_only=True, eq=False)
class Moves:
    """The cells of one step, those of equal source, target and ticks taken together as one move.

    `many` cells, from `first` on in `cells`, make a move; `gain` is the most of the amount without ticks among them,
    and theirs is the first cell. Moves are sorted by target.
    """

    step: Step
    source: Ints
    target: Ints
    shift: Ints  # (n_axes, n_moves)
    many: Ints
    first: Ints
    cells: Ints
    gain: Floats

    @cached_property
    def rows(self) -> Ints:
        """The moves into each target, padded with -1; shape (n_after, most)."""
        counts = np.bincount(self.target, minlength=self.step.n_after)
        rows = np.full((self.step.n_after, max(int(counts.max(initial=0)), 1)), -1, dtype=np.int64)
        column = np.arange(len(self.target)) - (np.cumsum(counts) - counts)[self.target]
        rows[self.target, column] = np.arange(len(self.target))
        return rows

    def into(
        self, states: Ints, ticks: Ints, widths: Ints, shape: Sequence[int]
    ) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Return all moves into `states` at `ticks` (n_axes, n), where each comes from, and which of them exist.

        Shapes: (n, most). Where a move comes from is a position in the flattened table before, whose `shape` is
        (n_before, *most ticks) and which holds `widths` (n_axes, n_before) ticks of each state.
        """
        moves = self.rows[states]
        exists = moves >= 0
        moves = np.where(exists, moves, 0)
        source = self.source[moves]
        position = source
        for axis, size in enumerate(shape[1:]):
            at = ticks[axis][:, None] - self.shift[axis][moves]
            exists &= (at >= 0) & (at < widths[axis][source])
            position = position * size + at
        return moves, np.where(exists, position, 0), exists

    def parts(self, before: Ints, after: Ints) -> Iterator[tuple[int, tuple[Place, Place]]]:
        """Yield each move that matters, with the place it adds to in the table after and the one in the table before.

        before, after: how many ticks of each state count, (n_axes, n_states).
        """
        spans = np.minimum(before[:, self.source], after[:, self.target] - self.shift)
        shifts, lengths = self.shift.T.tolist(), spans.T.tolist()
        sources, targets = self.source.tolist(), self.target.tolist()
        for number in np.flatnonzero((spans > 0).all(axis=0)).tolist():
            pairs = list(zip(shifts[number], lengths[number], strict=True))
            into: Place = (targets[number], *(slice(shift, shift + length) for shift, length in pairs))
            yield number, (into, (sources[number], *(slice(length) for _, length in pairs)))


@dataclass(frozen=True, kw_only=True, eq=False)
class TickedChain:
    """A chain whose first amounts (the axes) are in ticks; lists have an entry before the first step and after each.

    A way into state s that is t ticks dear costs lowest[s] + t * tick + e, with error_low[s] <= e <= error_high[s].
    """

    chain: Chain
    ticks: tuple[float, ...]
    moves: tuple[Moves, ...]
    lowest: list[Floats]  # each (n_axes, n_states)
    error_low: list[Floats]
    error_high: list[Floats]
    tops: list[Ints]  # most ticks, (n_axes, n_states); -1: no way
    log2_ways: list[Floats]  # (n_states,)

    @classmethod
    def of(cls, chain: Chain, ticks: Sequence[float]) -> TickedChain:
        """Return `chain` with its first len(ticks) amounts in ticks; if there are more, the last one is the gain."""
        axes = range(len(ticks))
        lows = [chain.lowest(axis) for axis in axes]
        for axis, tick in enumerate(ticks):
            least, most = chain.span(axis)
            if most - least > _MAX_TICKS * tick:
                raise SpecError(f"costs from {least:.6g} to {most:.6g} cannot be counted in ticks of {tick:g}")
        lowest = [np.stack([low[place] for low in lows]) for place in range(len(chain.steps) + 1)]
        error_low, error_high = [np.zeros((len(ticks), 1))], [np.zeros((len(ticks), 1))]
        tops, log2_ways = [np.zeros((len(ticks), 1), dtype=np.int64)], [np.zeros(1)]
        moves = []
        for step, before, after in zip(chain.steps, lowest[:-1], lowest[1:], strict=True):
            usable = np.flatnonzero(np.isfinite(before[0][step.source]))
            source, target = step.source[usable], step.target[usable]
            beyond = before[:, source] + step.amounts[: len(ticks), usable] - after[:, target]
            per_tick = np.array(ticks)[:, None]
            shift = np.floor(beyond / per_tick + SNAP).astype(np.int64)
            error = beyond - shift * per_tick
            gain = step.amounts[-1, usable] if len(step.amounts) > len(ticks) else np.zeros(len(usable))
            moves.append(_taken_together(step, usable, shift, gain))
            n_after = (len(ticks), step.n_after)
            error_low.append(_gathered(np.minimum, n_after, math.inf, target, error_low[-1][:, source] + error))
            error_high.append(_gathered(np.maximum, n_after, -math.inf, target, error_high[-1][:, source] + error))
            tops.append(_gathered(np.maximum, n_after, -1, target, tops[-1][:, source] + shift))
            ways = np.full(step.n_after, -math.inf)
            np.logaddexp2.at(ways, target, log2_ways[-1][source])
            log2_ways.append(ways)
        return cls(
            chain=chain,
            ticks=tuple(ticks),
            moves=tuple(moves),
            lowest=lowest,
            error_low=error_low,
            error_high=error_high,
            tops=tops,
            log2_ways=log2_ways,
        )

    @cached_property
    def rests(self) -> list[Ints]:
        """The fewest ticks still to come in every state, each axis on its own; (n_axes, n_states)."""
        found = [np.zeros((len(self.ticks), 1), dtype=np.int64)]
        for move in reversed(self.moves):
            to_come = np.minimum(found[-1][:, move.target] + move.shift, _NEVER)
            shape = (len(self.ticks), move.step.n_before)
            found.append(_gathered(np.minimum, shape, _NEVER, move.source, to_come))
        return found[::-1]

    def widths(self, limits: Sequence[int]) -> list[Ints]:
        """Return how many ticks each state needs for all archs within `limits` ticks; 0: the state is of no use."""
        found = []
        for tops, rests in zip(self.tops, self.rests, strict=True):
            widths = np.clip(np.minimum(np.array(limits)[:, None] - rests, tops) + 1, 0, None)
            found.append(np.where((widths > 0).all(axis=0), widths, 0))
        return found


def _taken_together(step: Step, usable: Ints, shift: Ints, gain: Floats) -> Moves:
    source, target = step.source[usable], step.target[usable]
    order = np.lexsort((-gain, *shift, source, target))
    keys = np.stack([target, source, *shift])[:, order]
    starts = np.ones(len(order), dtype=np.bool_)
    starts[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    first = np.flatnonzero(starts)
    return Moves(
        step=step,
        source=keys[1, first],
        target=keys[0, first],
        shift=keys[2:, first],
        many=np.diff(np.append(first, len(order))),
        first=first,
        cells=step.cells[usable[order]],
        gain=gain[order[first]],
    )


def _gathered(
    reduce: np.ufunc, shape: tuple[int, int], nothing: float, where: Ints, values: NDArray[Any]
) -> NDArray[Any]:
    """Reduce `values` (n_axes, n) into as many places as `shape` has."""
    found = np.full(shape, nothing, dtype=values.dtype)
    for row, of_axis in zip(found, values, strict=True):
        reduce.at(row, where, of_axis)
    return found
