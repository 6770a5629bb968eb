"""Archs within a budget: how many there are, exactly; uniform samples of them; what they choose. No trial and error.

Counts are sums over a chain of states at whole ticks of cost (`lutbuilder.nas.counting`), in integers of any length.
Real costs are no whole ticks, so a count comes as two bounds, and samples are drawn from a larger set and kept only
where their costs, as `predict` gives them, are within the budget. A draw is one integer below the count, exactly
uniform, and the arch of that number; no probability is ever rounded to a float. For comparison: rejection from the
whole space never ends where no arch is within the limit, and takes 1e9 tries where one in 1e9 is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.chain import Amount, Chain
from lutbuilder.nas.compiled import CompiledSpace, Floats
from lutbuilder.nas.counting import Archs, Bounds, Counting, span_ticks
from lutbuilder.spaces import SearchSpace
from lutbuilder.spaces.eliminate import Factor
from lutbuilder_agent.errors import Infeasible, ShapeError, SpecError

Keep = Callable[[Archs], NDArray[np.bool_]]  # which archs of (N, n_variables), (N,)
LISTABLE = 20_000  # archs are looked through one by one, if nothing else tells whether any is feasible
_HOLDS = 1e-9  # of a limit: sums of decimal costs (0.1 + 0.2) are off by less, and such ties are common
_TICKS, _TICKS_OF_SEVERAL = 1000, 256  # what a budget leaves of the range is divided into, unless the caller says
_BATCH = 50_000  # archs drawn together
_DRAWS, _DRAWS_AT_LEAST = 100, 100_000  # for each arch wanted, and in all, before giving up
# Several budgets: how many weightings are tried, with how many archs each, and the share of kept archs that will do.
_TRIALS, _TRIED, _ENOUGH = 12, 200, 0.1


# --- Budgets and scores


@dataclass(frozen=True, slots=True)
class Budget:
    """What an arch may cost, in the unit of the compiled column: `min_cost` to `max_cost`, both included.

    Limits hold to a billionth of their value, as sums of decimal costs do.
    """

    max_cost: float
    min_cost: float = field(default=-math.inf, kw_only=True)

    def __post_init__(self) -> None:
        if not self.min_cost <= self.max_cost or self.max_cost == -math.inf or self.min_cost == math.inf:
            raise SpecError(f"a budget goes from min_cost up to max_cost, got {self.min_cost:g} to {self.max_cost:g}")

    @property
    def bounds(self) -> tuple[float, float]:
        """The two limits with what a float may be off."""
        return self.min_cost - _HOLDS * abs(self.min_cost), self.max_cost + _HOLDS * abs(self.max_cost)

    def holds(self, costs: Floats) -> NDArray[np.bool_]:
        """Return which of `costs` are within the budget; +inf, an arch that cannot run, never is."""
        low, high = self.bounds
        within: NDArray[np.bool_] = np.isfinite(costs) & (costs >= low) & (costs <= high)
        return within

    def __str__(self) -> str:
        return f"at most {self.max_cost:.6g}" + (f", at least {self.min_cost:.6g}" if self.min_cost > -math.inf else "")


@dataclass(frozen=True, kw_only=True, eq=False)
class AdditiveScore:
    """A score (accuracy, say) that is a sum: one number for each value of each variable, and tables over several.

    `values` has a vector a variable, in their order; an inactive variable adds nothing. `tables` names the variables of
    each further table; -inf there forbids. Raises ShapeError or SpecError for what does not fit the space.
    """

    space: SearchSpace
    values: Sequence[Floats]
    tables: Sequence[tuple[tuple[str, ...], Floats]] = ()
    base: float = 0.0

    def __post_init__(self) -> None:
        if len(self.values) != len(self.space.sizes):
            raise ShapeError(f"one vector for each of {len(self.space.sizes)} variables, got {len(self.values)}")
        for variable, vector in zip(self.space.variables, self.values, strict=True):
            if np.shape(vector) != (len(variable.values),) or not np.isfinite(vector).all():
                raise ShapeError(f"{variable.name} has {len(variable.values)} values, each a finite score: {vector!r}")
        for names, table in self.tables:
            unknown = [name for name in names if name not in self.space.positions]
            if unknown or len(set(names)) != len(names):
                raise SpecError(f"a table over {names}: variables of space {self.space.name!r}, each once")
            wanted = tuple(self.space.sizes[self.space.positions[name]] for name in names)
            if np.shape(table) != wanted or not (np.asarray(table) < math.inf).all():
                raise ShapeError(f"a table over {names} is of shape {wanted}, finite or -inf; got {np.shape(table)}")

    @classmethod
    def of_costs(cls, compiled: CompiledSpace, *, weight: float = -1.0) -> AdditiveScore:
        """Return `weight` times the cost: with -1 a second cost to be kept low, energy against latency for example."""
        if not weight < 0:
            raise SpecError(f"a cost is to be kept low: its weight is below 0, got {weight}")
        names = [variable.name for variable in compiled.space.variables]
        return cls(
            space=compiled.space,
            values=[np.zeros(size) for size in compiled.space.sizes],
            tables=[
                (tuple(names[v] for v in site.scope), weight * site.costs) for site in compiled.sites if site.scope
            ],
            base=weight * compiled.fixed,
        )

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The score as tables over variable numbers, to be added; those of gated variables include their gate."""
        gates = dict(self.space.gates)
        found = []
        for number, vector in enumerate(self.values):
            if number in gates:
                gate = gates[number]
                masked = np.where(gate.values[..., None], vector, 0.0)
                found.append(Factor(scope=(*gate.scope, number), values=masked))
            else:
                found.append(Factor(scope=(number,), values=np.asarray(vector, dtype=np.float64)))
        for names, table in self.tables:
            scope = tuple(self.space.positions[name] for name in names)
            found.append(Factor(scope=scope, values=np.asarray(table, dtype=np.float64)))
        return tuple(found)

    def score(self, archs: NDArray[Any]) -> Floats:
        """Return the score of each canonical encoding, shape (N,)."""
        scores = np.full(len(archs), self.base)
        for factor in self.factors:
            scores += factor.values[tuple(archs[:, v] for v in factor.scope)]
        return scores

    def __call__(self, archs: NDArray[Any]) -> Floats:
        return self.score(archs)


# --- Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many archs there are: at least `lower`, at most `upper`. Equal where costs are whole ticks."""

    lower: int
    upper: int

    @property
    def exact(self) -> bool:
        """Whether the two bounds are one number."""
        return self.lower == self.upper


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Archs drawn uniformly, (N, n_variables), and the share of draws that were within the budget.

    `n_candidates` archs were drawn from: `estimate` of them are feasible, with a relative standard error of about
    sqrt((1 - acceptance) / acceptance / number of draws).
    """

    archs: Archs
    acceptance: float
    n_candidates: int

    @property
    def estimate(self) -> float:
        """How many archs are feasible, as far as the draws tell."""
        return self.acceptance * self.n_candidates


@dataclass(frozen=True, kw_only=True, eq=False)
class Marginals:
    """How often each value of each variable is chosen among the feasible archs: one vector a variable.

    The true share lies from `low` to `high`, but for floats' 1e-11; the two are equal where costs are whole ticks. An
    inactive variable counts at its first value.
    """

    probabilities: tuple[Floats, ...]
    low: tuple[Floats, ...]
    high: tuple[Floats, ...]


@dataclass(frozen=True, eq=False)
class Feasible:
    """The archs of `compiled` within `budget`, and within further budgets `also` (energy) at the same time. Immutable.

    tick: what counts are resolved to, in the unit of the column; with `also` a sequence of one for each budget. Finer
    is closer and larger. Left out, a thousandth of what the budget leaves of the range of costs (a 256th for each of
    several), coarser where tables would not stay small; `ticks` says it. Rounding to ticks never changes who is
    feasible: samples are exactly uniform at any tick, and a coarse one costs draws. A count is two bounds. Between them
    lie the archs that cost within about as many ticks of a limit as the chain of the space has steps (20 for OFA's):
    under one budget they are a few percent apart at the default, under several of a large space orders of magnitude,
    and there `draw(...).estimate` is closer.
    Raises Infeasible naming the cheapest arch there is if none is within a budget; if it takes several budgets
    together, or both limits of one, to exclude all archs, `count` gives 0 at a fine tick and drawing raises it. Raises
    SpecError, naming ticks that would do, if the tables at `tick` were larger than 500 MB.
    """

    compiled: CompiledSpace
    budget: Budget
    tick: float | Sequence[float] | None = field(default=None, kw_only=True)
    also: Sequence[tuple[CompiledSpace, Budget]] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        here, *others = [compiled.space for compiled, _ in self._limits]
        if any(space is not here and space.key != here.key for space in others):
            raise SpecError(f"all budgets are of one space, got {here.name!r} and {others[0].name!r}")
        given = self._given_ticks
        if given and len(given) != len(self._limits):
            raise SpecError(f"{len(self._limits)} budgets have a tick each, got {len(given)}")
        if not all(0 < tick < math.inf for tick in given):
            raise SpecError(f"a tick is above 0, got {', '.join(f'{tick:g}' for tick in given)}")
        if not math.isfinite(self.ranges[0][0]):
            what = ", ".join(self.compiled.infeasible[:5]) or "its gates and constraints"
            raise Infeasible(f"space {self.compiled.space.name!r} has no arch that can run: {what}")
        for (lowest, highest), (compiled, budget) in zip(self.ranges, self._limits, strict=True):
            low, high = budget.bounds
            if lowest > high or highest < low:
                raise self._infeasible(f"costs {budget} in {compiled.provenance.column}")

    @cached_property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The lowest and the highest cost of all archs that can run, of each budget's costs."""
        return tuple(self._chain.span(axis) for axis in range(len(self._limits)))

    @property
    def ticks(self) -> tuple[float, ...]:
        """What counts are resolved to, for each budget."""
        return self._grid.ticks

    @property
    def binds(self) -> bool:
        """Whether a budget excludes any arch; one that does not is most likely not the one that was meant."""
        return any(
            low > lowest or high < highest
            for (lowest, highest), (low, high) in zip(self.ranges, self._bounds, strict=True)
        )

    def holds(self, archs: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which archs are feasible by their exact costs, shape (N,)."""
        held = np.ones(len(archs), dtype=np.bool_)
        for compiled, budget in self._limits:
            held &= budget.holds(compiled.predict(archs))
        return held

    def count(self) -> Count:
        """Return how many feasible archs there are; integers of any length."""
        grid = self._grid
        return Count(lower=grid.total(grid.inner), upper=grid.total(grid.outer))

    def marginals(self) -> Marginals:
        """Return how often each value of each variable occurs among the feasible archs. Raises Infeasible."""
        grid, count = self._grid, self.count()
        if not count.upper:
            raise self._infeasible(f"costs {self._described_limits()}")
        surely = count.lower / count.upper
        outer = grid.shares(grid.outer)
        inner = outer if count.exact else grid.shares(grid.inner) if count.lower else [0 * p for p in outer]
        bounds = [_between(certain, possible, surely) for certain, possible in zip(inner, outer, strict=True)]
        return Marginals(
            probabilities=tuple((c * surely + p) / (surely + 1.0) for c, p in zip(inner, outer, strict=True)),
            low=tuple(low for low, _ in bounds),
            high=tuple(high for _, high in bounds),
        )

    # --- Drawing and listing

    def sample(self, rng: np.random.Generator, n: int) -> Archs:
        """Return `n` feasible archs, exactly uniform and independent; canonical encodings (n, n_variables)."""
        return self.draw(rng, n).archs

    def draw(self, rng: np.random.Generator, n: int, *, among: range | None = None, keep: Keep | None = None) -> Draws:
        """Return what `sample` does, and how many of the draws were within the budget.

        among, keep: draw only archs of these numbers (see `numbers`), and only those that `keep` says True of. Raises
        Infeasible if no arch is feasible, SpecError if of 100 draws for each arch wanted too few were.
        """
        if n < 0:
            raise SpecError(f"cannot draw {n} archs")
        among = range(self.n_candidates) if among is None else among
        n_candidates = among.stop - among.start  # len() ends at 2^63
        if not n_candidates:
            raise self._infeasible(f"costs {self._described_limits()}")
        found: list[Archs] = [np.empty((0, len(self.compiled.space.sizes)), dtype=np.int16)]
        missing, drawn, kept = n, 0, 0
        while missing > 0:
            if n_candidates <= LISTABLE and kept * 100 < drawn:
                archs = self._listed(among, keep)
                found.append(archs[rng.integers(len(archs), size=missing)])
                return Draws(
                    archs=np.concatenate(found), acceptance=len(archs) / n_candidates, n_candidates=n_candidates
                )
            if drawn > _DRAWS * n + _DRAWS_AT_LEAST:
                raise self._too_few(f"{kept} of {drawn} archs drawn were within the budget, too few to find {n}")
            # As many as it takes at the acceptance so far.
            batch = min(_BATCH, math.ceil(missing * (drawn + 1) / (kept + 1)) + 16)
            archs = self.candidates([among.start + number for number in _below(n_candidates, batch, rng)])
            archs = archs[self._kept(archs, keep)]
            drawn, kept = drawn + batch, kept + len(archs)
            found.append(archs)
            missing -= len(archs)
        return Draws(
            archs=np.concatenate(found)[:n], acceptance=kept / drawn if drawn else 1.0, n_candidates=n_candidates
        )

    @property
    def n_candidates(self) -> int:
        """How many archs are drawn from: all feasible ones, and some whose ticks do not tell (`holds` does)."""
        return self._candidates.n_archs

    def candidates(self, numbers: Sequence[int]) -> Archs:
        """Return the archs with these numbers, from 0 to `n_candidates` - 1; each number is another arch.

        By number all can be walked through or shared out without a list.
        """
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.n_candidates:
            raise SpecError(f"arch numbers go from 0 to {self.n_candidates - 1}")
        return self._candidates.archs(numbers)

    def numbers(self, budget: Budget) -> range:
        """Return the numbers of the candidates that may be within `budget`, a part of this one. There is no `also`."""
        if self.also:
            raise SpecError("archs are numbered in the order of their costs under one budget alone")
        return self._candidates.numbers((budget.bounds,))

    @cached_property
    def listed(self) -> Archs | None:
        """All feasible archs, each once, (n, n_variables); None if there are more than 20,000 candidates."""
        if self.n_candidates > LISTABLE:
            return None
        archs = self.candidates(range(self.n_candidates))
        return archs[self.holds(archs)]

    def _kept(self, archs: Archs, keep: Keep | None) -> NDArray[np.bool_]:
        held = self.holds(archs)
        return held if keep is None else held & keep(archs)

    def _listed(self, among: range, keep: Keep | None) -> Archs:
        """All archs of these numbers that are feasible and kept. Raises Infeasible if there is none."""
        archs = self.candidates(among)
        kept = archs[self._kept(archs, keep)]
        if len(kept):
            return kept
        near = ""
        if len(self._limits) == 1:
            costs = np.unique(self.compiled.predict(archs))
            low, high = self._bounds[0]
            sides = (costs[costs < low][-1:], costs[costs > high][:1])
            near = ", ".join(f"{cost:.10g}" for side in sides for cost in side.tolist())
        raise self._infeasible(f"costs {self._described_limits()}" + (f" (near it they cost {near})" if near else ""))

    def _too_few(self, told: str) -> SpecError:
        if self.also:
            return SpecError(f"{told}: hardly any or no arch keeps all budgets together, raise one")
        (tick,) = self.ticks
        return SpecError(f"{told}; most candidates lie beside it. Take finer ticks, tick={tick / 8:.3g}")

    # --- The chain and what limits it

    @property
    def _limits(self) -> tuple[tuple[CompiledSpace, Budget], ...]:
        return ((self.compiled, self.budget), *self.also)

    @cached_property
    def _bounds(self) -> Bounds:
        return tuple(budget.bounds for _, budget in self._limits)

    @property
    def _given_ticks(self) -> tuple[float, ...]:
        if self.tick is None:
            return ()
        return tuple(self.tick) if isinstance(self.tick, Sequence) else (self.tick,)

    @cached_property
    def _chain(self) -> Chain:
        amounts = [Amount.cost(compiled) for compiled, _ in self._limits]
        rough = [amount.spread / self._n_ticks or 1.0 for amount in amounts]
        return Chain.of(self.compiled.space, amounts, ticks=self._given_ticks or rough)

    @property
    def _n_ticks(self) -> int:
        return _TICKS_OF_SEVERAL if self.also else _TICKS

    @cached_property
    def _grid(self) -> Counting:
        """Counts at the ticks of every budget."""
        if self._given_ticks:
            return Counting(chain=self._chain, bounds=self._bounds, ticks=self._given_ticks)
        ticks = span_ticks(self._chain, self._bounds, self._n_ticks)
        return Counting.fitting(self._chain, self._bounds, ticks=ticks)

    @cached_property
    def _candidates(self) -> Counting:
        """Archs that keep one limit, which all that keep every budget keep: on a weighted sum of the costs.

        A grid of several costs has so few ticks a side that, of APQ's archs, hardly any candidate of it keeps both
        budgets. For weights such that no budget is broken more often than another a fair share keeps them all.
        Raises Infeasible where some weights prove that no arch does.
        """
        if not self.also:
            return self._grid
        # Costs in units of what each budget leaves open; as far as there is an arch, so that every bound is finite.
        sides = np.array(
            [
                (max(low, lowest), min(high, highest))
                for (lowest, highest), (low, high) in zip(self.ranges, self._bounds, strict=True)
            ]
        )
        units = np.maximum(np.ptp(sides, axis=1), 1e-6 * np.ptp(self.ranges, axis=1))
        units = np.where(units > 0, units, np.maximum(np.abs(sides).max(axis=1), 1e-280))
        log_weights, pace = np.zeros(len(units)), 4.0
        tried: list[tuple[float, Counting]] = []
        for _ in range(_TRIALS):
            weighted = self._weighted(np.exp(log_weights) / units, sides)
            if weighted.n_archs <= LISTABLE:
                return weighted
            archs = weighted.archs(_below(weighted.n_archs, _TRIED, np.random.default_rng(0)))
            broken = np.array([~budget.holds(compiled.predict(archs)) for compiled, budget in self._limits])
            tried.append((1.0 - float(broken.any(axis=0).mean()), weighted))
            if tried[-1][0] >= _ENOUGH:
                break
            often = broken.mean(axis=1)
            log_weights = log_weights + pace * (often - often.mean())
            pace *= 0.8
        return max(tried, key=itemgetter(0))[1]

    def _weighted(self, weights: Floats, sides: Floats) -> Counting:
        chain = self._chain.weighted(weights)
        slack = _HOLDS * float(weights @ np.abs(sides).max(axis=1))
        low, high = float(weights @ sides[:, 0]) - slack, float(weights @ sides[:, 1]) + slack
        lowest, highest = chain.span(0)
        if lowest > high or highest < low:
            raise self._infeasible(f"costs {self._described_limits()}")
        return Counting.fitting(chain, ((low, high),), ticks=span_ticks(chain, ((low, high),), _TICKS))

    # --- Messages

    def _described_limits(self) -> str:
        return " and ".join(f"{budget} in {compiled.provenance.column}" for compiled, budget in self._limits)

    def _infeasible(self, what: str) -> Infeasible:
        """The error for "no arch `what`", naming the cheapest arch by each budget."""
        sentences = []
        for axis, (compiled, _) in enumerate(self._limits):
            arch = self._chain.least(axis)
            column = compiled.provenance.column
            others = [f"{c.predict(arch[None])[0]:.6g} in {c.provenance.column}" for c, _ in self._limits]
            others.pop(axis)
            lowest, highest = self.ranges[axis]
            sentences.append(
                f"archs cost {lowest:.6g} to {highest:.6g} in {column}, the cheapest is "
                f"{described(compiled.space, arch)}" + "".join(f" (it costs {other})" for other in others)
            )
        return Infeasible(f"no arch of {self.compiled.space.name!r} {what}; {'; '.join(sentences)}")


def _below(top: int, n: int, rng: np.random.Generator) -> list[int]:
    """Return `n` uniform integers from 0 to top - 1, exactly: random bits, drawn again where they say more."""
    n_bits = top.bit_length()
    n_bytes = -(-n_bits // 8)
    numbers: list[int] = []
    while len(numbers) < n:  # each draw is below `top` with a chance of a half or more
        raw = rng.bytes(n_bytes * (n - len(numbers)))
        drawn = (int.from_bytes(raw[at : at + n_bytes], "little") for at in range(0, len(raw), n_bytes))
        spare = 8 * n_bytes - n_bits
        numbers += [number for number in (d >> spare for d in drawn) if number < top]
    return numbers


def _between(certain: Floats, possible: Floats, surely: float) -> tuple[Floats, Floats]:
    """The least and greatest share of each value, if all certain archs and any of the possible ones are feasible.

    certain, possible: shares among either; surely: how many of the possible are certain.
    """
    inside, outside = certain * surely, (1.0 - certain) * surely
    with_others, alone = inside + np.maximum(1.0 - possible, 0.0), possible + outside
    low = np.divide(inside, with_others, out=np.ones_like(inside), where=with_others > 0)
    high = np.divide(possible, alone, out=np.zeros_like(possible), where=alone > 0)
    return low, high


def described(space: SearchSpace, arch: NDArray[Any]) -> str:
    """Return the choices of an arch, those that matter, for a message."""
    gates = dict(space.gates)
    active = {
        variable.name: variable.values[int(arch[number])]
        for number, variable in enumerate(space.variables)
        if number not in gates or gates[number].values[tuple(arch[v] for v in gates[number].scope)]
    }
    return ", ".join(f"{name}={value}" for name, value in active.items())
