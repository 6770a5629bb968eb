"""The chain of a space: steps that add up what an arch costs, a few variables at a time.

Between two steps only a *state* is remembered: the values of those variables that both earlier and later factors
mention (for the presets the resolution and a previous width, or what the layers of one stage share). Sums over all
archs then take as long as the tables are large, however many archs there are. The steps are derived from the scopes of
the factors, whatever the space is.
Source: Dechter, Bucket elimination, Artificial Intelligence 113 (1999), along one path of buckets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.compiled import CompiledSpace, Floats
from lutbuilder.spaces import SearchSpace
from lutbuilder.spaces.eliminate import Factor, joined
from lutbuilder_agent.errors import SpecError

Ints = NDArray[np.int64]
# Work is counted in rows: one state's ticks added to another's. In rows:
_TABLE = 20  # to keep one more state between two steps: memory runs out before time does
_CELL = 0.1  # to enumerate one cell of a step's table
_WAY = 1  # to look at one more way into a state, when 10,000 archs are drawn
_JOINT_CELLS = 1 << 20  # two steps are made one only below; 8 MiB of float64
_MAX_CELLS = 1 << 25  # of the table of one step; 256 MiB of float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Amount:
    """Something every arch has so much of: a fixed part and factors to be added; cells that are not finite forbid."""

    fixed: float
    factors: tuple[Factor, ...]

    @classmethod
    def cost(cls, compiled: CompiledSpace) -> Amount:
        """Return the cost of `compiled`; broken constraints are forbidden, as failed ops are."""
        factors = tuple(Factor(scope=site.scope, values=site.costs) for site in compiled.sites if site.scope)
        return cls(fixed=compiled.fixed, factors=factors)

    @property
    def spread(self) -> float:
        """The most that two archs can lie apart: more than they do, where one choice costs in several factors."""
        return sum(_spread(factor) for factor in self.factors)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One step: the sum of some factors over the variables of `scope`, as a list of its allowed cells.

    A cell leads from a state before (`source`) to a state after (`target`), adds `amounts` (n_amounts, n_cells), and
    decides the variables that are `finished`: no later step mentions them. Cells are sorted by target.
    """

    scope: tuple[int, ...]
    shape: tuple[int, ...]
    finished: tuple[int, ...]
    n_before: int
    n_after: int
    cells: Ints  # (n_cells,) positions in the flattened table
    source: Ints
    target: Ints
    amounts: Floats

    @cached_property
    def starts(self) -> Ints:
        """Where the cells of each target begin, and where the last one's end; shape (n_after + 1,)."""
        return np.searchsorted(self.target, np.arange(self.n_after + 1))

    def decide(self, archs: NDArray[Any], cells: Ints) -> None:
        """Write the values that each cell gives the finished variables into its row of `archs`."""
        for variable, numbers in self.values(cells):
            archs[:, variable] = numbers

    def values(self, cells: Ints) -> Iterator[tuple[int, Ints]]:
        """Yield each finished variable with the value number every cell gives it."""
        numbers = dict(zip(self.scope, np.unravel_index(cells, self.shape), strict=True))
        for variable in self.finished:
            yield variable, numbers[variable].astype(np.int64, copy=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """All steps of a space, one after the other; before the first and after the last there is a single state."""

    sizes: tuple[int, ...]  # of the variables
    fixed: tuple[float, ...]  # of each amount
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, space: SearchSpace, amounts: Sequence[Amount], *, ticks: Sequence[float] = ()) -> Chain:
        """Return the chain of `amounts` over the archs of `space`, one canonical encoding each.

        `ticks`: cells that differ by less in the first amounts may be taken together later; it guides what is one step.
        """
        pins = [Factor(scope=pin.scope, values=np.where(pin.values, 0.0, math.inf)) for pin in space.pins]
        factors: list[Factor] = []
        owners: list[int] = []
        fixed = [amount.fixed for amount in amounts]
        for owner, amount in enumerate(amounts):
            for whole in (*amount.factors, *(pins if owner == 0 else ())):
                factor = _squeezed(whole)
                if factor.scope:
                    factors.append(factor)
                    owners.append(owner)
                else:
                    fixed[owner] += float(factor.values)
        mentioned = {variable for factor in factors for variable in factor.scope}
        for number, size in enumerate(space.sizes):
            if number not in mentioned:  # it changes nothing, but counts
                factors.append(Factor(scope=(number,), values=np.zeros(size)))
                owners.append(0)
        planner = _Planner(factors=factors, owners=owners, sizes=space.sizes, ticks=ticks)
        links = planner.plan()
        for link in links:
            if planner.volume(link.joint) > _MAX_CELLS:
                names = ", ".join(space.variables[v].name for v in _bits(link.joint))
                raise SpecError(
                    f"space {space.name!r} couples too many variables for exact sums: {names} have "
                    f"{planner.volume(link.joint):,} combinations that no part of can be summed alone"
                )
        steps = tuple(_step(link, factors, owners, space.sizes, len(amounts)) for link in links)
        return cls(sizes=space.sizes, fixed=tuple(fixed), steps=steps)

    def weighted(self, weights: Floats) -> Chain:
        """Return the same steps with one amount: the sum of the amounts times `weights`."""
        steps = tuple(replace(step, amounts=weights[None] @ step.amounts) for step in self.steps)
        return replace(self, fixed=(float(weights @ self.fixed),), steps=steps)

    def span(self, amount: int) -> tuple[float, float]:
        """Return the least and the most of `amount` that an arch has; (+inf, -inf) if there is no arch."""
        if amount not in self._spans:
            self._spans[amount] = float(self.lowest(amount)[-1][0]), float(self.highest(amount)[-1][0])
        return self._spans[amount]

    @cached_property
    def _spans(self) -> dict[int, tuple[float, float]]:
        return {}

    def lowest(self, amount: int) -> list[Floats]:
        """Return the least of `amount` so far in every state, before the first step and after each; +inf: no way."""
        found = [np.array([self.fixed[amount]])]
        for step in self.steps:
            after = np.full(step.n_after, math.inf)
            np.minimum.at(after, step.target, found[-1][step.source] + step.amounts[amount])
            found.append(after)
        return found

    def highest(self, amount: int) -> list[Floats]:
        """Return the most of `amount` so far in every state, before the first step and after each; -inf: no way."""
        found = [np.array([self.fixed[amount]])]
        for step in self.steps:
            after = np.full(step.n_after, -math.inf)
            np.maximum.at(after, step.target, found[-1][step.source] + step.amounts[amount])
            found.append(after)
        return found

    def rest(self, amount: int) -> list[Floats]:
        """Return the least of `amount` still to come in every state, before the first step and after each."""
        found = [np.zeros(1)]
        for step in reversed(self.steps):
            before = np.full(step.n_before, math.inf)
            np.minimum.at(before, step.source, found[-1][step.target] + step.amounts[amount])
            found.append(before)
        return found[::-1]

    def least(self, amount: int) -> NDArray[np.int16]:
        """Return the arch with the least of `amount`, shape (n_variables,). There is an allowed arch."""
        arch: NDArray[np.int16] = np.zeros((1, len(self.sizes)), dtype=np.int16)
        lowest = self.lowest(amount)
        state = 0
        for step, before in zip(reversed(self.steps), reversed(lowest[:-1]), strict=True):
            first, last = step.starts[state], step.starts[state + 1]
            best = first + int(np.argmin(before[step.source[first:last]] + step.amounts[amount, first:last]))
            step.decide(arch, step.cells[best : best + 1])
            state = int(step.source[best])
        least: NDArray[np.int16] = arch[0]
        return least


def _squeezed(factor: Factor) -> Factor:
    """The factor without the variables that change nothing: a site may name its stage's depth though it always runs."""
    scope, values = list(factor.scope), factor.values
    for axis in reversed(range(values.ndim)):
        if (values == values.take([0], axis=axis)).all():
            values = values.take(0, axis=axis)
            del scope[axis]
    return Factor(scope=tuple(scope), values=values)


# --- Which factors make a step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    """A step before it has cells; sets of variables are the bits of an integer."""

    factors: tuple[int, ...]
    before: int
    joint: int
    after: int


class _Planner:
    """Finds the order of elimination, by three rules, and takes the one with the least work."""

    def __init__(
        self, *, factors: Sequence[Factor], owners: Sequence[int], sizes: Sequence[int], ticks: Sequence[float]
    ) -> None:
        self._scopes = [sum(1 << v for v in factor.scope) for factor in factors]
        self._sizes = sizes
        self._ticks = ticks
        self._owners = owners
        self._spreads = [_spread(factor) for factor in factors]
        self._volumes: dict[int, int] = {}
        self._mentions: list[list[int]] = [[] for _ in sizes]
        for number, factor in enumerate(factors):
            for variable in factor.scope:
                self._mentions[variable].append(number)

    def plan(self) -> list[_Link]:
        """Return the steps: along the sites in either direction, or always the cheapest next one."""
        variables = range(len(self._sizes))
        # Gates and constraints (all that is finite is 0) come after all sites, so do not say where they act.
        sites = [[n for n in self._mentions[v] if self._owners[n] == 0 and self._spreads[n] > 0] for v in variables]
        forwards = sorted(variables, key=lambda v: (max(sites[v], default=-1), v))
        backwards = sorted(variables, key=lambda v: (-min(sites[v], default=len(self._owners)), v))
        plans = [self._merged(self._in_order(order)) for order in (forwards, backwards, None)]
        return min(plans, key=lambda plan: sum(map(self._price, plan)))

    def _in_order(self, order: Sequence[int] | None) -> list[_Link]:
        """The steps that finish the variables in `order`; without one, always the cheapest next step."""
        left = {v: len(numbers) for v, numbers in enumerate(self._mentions)}
        used = [False] * len(self._scopes)
        waiting = list(order if order is not None else left)
        state = 0
        links: list[_Link] = []
        while waiting:
            if order is not None:
                link = self._link(waiting[0], state, left, used)
            else:
                link = min((self._link(v, state, left, used) for v in waiting), key=self._price)
            links.append(link)
            for number in link.factors:
                used[number] = True
                for variable in _bits(self._scopes[number]):
                    left[variable] -= 1
            waiting = [v for v in waiting if left[v]]
            state = link.after
        return links

    def _link(self, variable: int, state: int, left: dict[int, int], used: list[bool]) -> _Link:
        """The step that takes every factor left that mentions `variable`, and so finishes it."""
        taken = tuple(number for number in self._mentions[variable] if not used[number])
        joint = state
        for number in taken:
            joint |= self._scopes[number]
        mentions = Counter(v for number in taken for v in _bits(self._scopes[number]))
        after = sum(1 << v for v in _bits(joint) if left[v] > mentions[v])
        return _Link(factors=taken, before=state, joint=joint, after=after)

    def _merged(self, links: list[_Link]) -> list[_Link]:
        """The same with neighbouring steps made one where that is less work: all the bits of a layer, say."""
        merged: list[_Link] = []
        for link in links:
            merged.append(link)
            while len(merged) > 1:
                one, other = merged[-2:]
                both = _Link(
                    factors=one.factors + other.factors,
                    before=one.before,
                    joint=one.joint | other.joint,
                    after=other.after,
                )
                if self.volume(both.joint) > _JOINT_CELLS or self._price(both) >= self._price(one) + self._price(other):
                    break
                merged[-2:] = [both]
        return merged

    def _price(self, link: _Link) -> float:
        """How much work a step is: a row for each cell, or only for each different number of ticks a cell can add."""
        cells = rows = float(self.volume(link.joint))
        if self._ticks:
            distinct = math.prod(
                1 + sum(self._spreads[number] for number in link.factors if self._owners[number] == axis) / tick
                for axis, tick in enumerate(self._ticks)
            )
            rows = min(rows, self.volume(link.before | link.after) * distinct)
        states = self.volume(link.after)
        return rows + _CELL * cells + _TABLE * states + _WAY * rows / states

    def volume(self, variables: int) -> int:
        """Return how many combinations of values a set of variables has."""
        if variables not in self._volumes:
            self._volumes[variables] = math.prod(self._sizes[v] for v in _bits(variables))
        return self._volumes[variables]


def _bits(variables: int) -> Iterator[int]:
    while variables:
        lowest = variables & -variables
        yield lowest.bit_length() - 1
        variables ^= lowest


def _spread(factor: Factor) -> float:
    finite = factor.values[np.isfinite(factor.values)]
    return float(np.ptp(finite)) if finite.size else 0.0


def _step(link: _Link, factors: Sequence[Factor], owners: Sequence[int], sizes: Sequence[int], n_amounts: int) -> Step:
    scope, before, after = (tuple(_bits(variables)) for variables in (link.joint, link.before, link.after))
    shape = tuple(sizes[v] for v in scope)
    amounts = np.empty((n_amounts, math.prod(shape)))
    for owner in range(n_amounts):
        mine = [factors[number] for number in link.factors if owners[number] == owner]
        table = joined(mine, scope, np.add) if mine else np.zeros(())
        amounts[owner] = np.broadcast_to(table, shape).ravel()
    cells = np.flatnonzero(np.isfinite(amounts).all(axis=0))
    numbers = dict(zip(scope, np.unravel_index(cells, shape), strict=True))

    def state(variables: tuple[int, ...]) -> Ints:
        if not variables:
            return np.zeros(len(cells), dtype=np.int64)
        return np.asarray(
            np.ravel_multi_index([numbers[v] for v in variables], [sizes[v] for v in variables]), dtype=np.int64
        )

    target = state(after)
    order = np.argsort(target, kind="stable")
    return Step(
        scope=scope,
        shape=shape,
        finished=tuple(v for v in scope if v not in after),
        n_before=math.prod(sizes[v] for v in before),
        n_after=math.prod(sizes[v] for v in after),
        cells=cells[order].astype(np.int64, copy=False),
        source=state(before)[order],
        target=target[order],
        amounts=amounts[:, cells[order]],
    )
