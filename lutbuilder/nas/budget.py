"""Archs within a budget: how many there are, exactly; uniform samples of them; what they choose. No trial and error.

Counts are sums over a chain of states at whole ticks of cost (`lutbuilder.nas.ticks`), in integers of any length. Real
costs are no whole ticks, so a count comes as two bounds, and samples are drawn from the larger set and kept only where
their cost, as `predict` gives it, is within the budget. A draw is one integer below the count, exactly uniform, and the
arch of that number; no probability is ever rounded to a float. For comparison: rejection from the whole space never
ends where no arch is within the limit, and takes 1e9 tries where one in 1e9 is.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas import wide
from lutbuilder.nas.chain import Amount, Chain, Ints
from lutbuilder.nas.compiled import CompiledSpace, Floats
from lutbuilder.nas.ticks import Moves, TickedChain
from lutbuilder.spaces import SearchSpace
from lutbuilder.spaces.eliminate import Factor
from lutbuilder_agent.errors import Infeasible, ShapeError, SpecError

Archs = NDArray[np.int16]
_HOLDS = 1e-9  # of a limit: sums of decimal costs (0.1 + 0.2) are off by less, and such ties are common
MAX_BYTES = 500_000_000  # of tables
_ALSO_TICKS = 256  # the second budget's range is divided into, unless the caller says otherwise
_LEAST_TICKS = 1 << 20  # of its whole range, where it leaves next to nothing of it
_CHUNK = 1 << 21  # choices looked at together when drawing; 16 MiB a limb
_BATCH = 50_000  # archs drawn together
_DRAWS, _DRAWS_AT_LEAST = 100, 100_000  # for each arch wanted, and in all, before giving up


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
    """Archs drawn uniformly, (N, n_variables), and the share of draws that were within the budget."""

    archs: Archs
    acceptance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Marginals:
    """How often each value of each variable is chosen among the feasible archs: one vector a variable.

    The true share lies from `low` to `high`, but for floats' 1e-11; the two are equal where costs are whole ticks. An
    inactive variable counts at its first value.
    """

    probabilities: tuple[Floats, ...]
    low: tuple[Floats, ...]
    high: tuple[Floats, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ways:
    """How many ways lead into each state at each tick: limbs of shape (n_states, *most ticks)."""

    limbs: wide.Limbs
    widths: Ints


@dataclass(frozen=True, slots=True)
class _Box:
    """Ticks from `first` to `last` on every axis, both included."""

    first: tuple[int, ...]
    last: tuple[int, ...]

    def within(self, widths: Ints) -> tuple[slice, ...]:
        """Where the box is in the table of the last state."""
        stops = np.minimum(np.array(self.last) + 1, widths[:, 0]).tolist()
        return tuple(slice(first, max(first, stop)) for first, stop in zip(self.first, stops, strict=True))


@dataclass(frozen=True, eq=False)
class Feasible:
    """The archs of `compiled` within `budget`, and within a second budget `also` (energy) if there is one. Immutable.

    tick: the resolution of the count, in the unit of the column; the default is 1 us for latency_ms. Finer is closer
    and larger. also_tick: that of the second budget; left out, a 256th of its range. Samples are exactly uniform at any
    tick: a coarse one costs draws.
    Raises Infeasible naming the cheapest arch there is if none is within a budget; if it takes both budgets together,
    or both limits of one, to exclude all archs, `count` gives 0 and the others raise it. Raises SpecError, naming ticks
    that would do, if the tables were larger than 500 MB.
    """

    compiled: CompiledSpace
    budget: Budget
    tick: float = field(default=1e-3, kw_only=True)
    also: tuple[CompiledSpace, Budget] | None = field(default=None, kw_only=True)
    also_tick: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        here, *others = [compiled.space for compiled, _ in self._limits]
        if any(space is not here and space.key != here.key for space in others):
            raise SpecError(f"both budgets are of one space, got {here.name!r} and {others[0].name!r}")
        if not all(0 < tick < math.inf for tick in self._ticks):
            raise SpecError(f"a tick is above 0, got {', '.join(f'{tick:g}' for tick in self._ticks)}")
        if not math.isfinite(self._chain.lowest(0)[-1][0]):
            what = ", ".join(self.compiled.infeasible[:5]) or "its gates and constraints"
            raise Infeasible(f"space {self.compiled.space.name!r} has no arch that can run: {what}")
        for axis, (compiled, budget) in enumerate(self._limits):
            low, high = budget.bounds
            if self._lowest[axis] > high or self._highest[axis] < low:
                raise self._infeasible(f"costs {budget} in {compiled.provenance.column}")

    @property
    def binds(self) -> bool:
        """Whether a budget excludes any arch; one that does not is most likely not the one that was meant."""
        return any(
            low > self._lowest[axis] or high < self._highest[axis]
            for axis, (low, high) in enumerate(budget.bounds for _, budget in self._limits)
        )

    def holds(self, archs: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which archs are feasible by their exact costs, shape (N,)."""
        held = np.ones(len(archs), dtype=np.bool_)
        for compiled, budget in self._limits:
            held &= budget.holds(compiled.predict(archs))
        return held

    def count(self) -> Count:
        """Return how many feasible archs there are; integers of any length."""
        last = self._last
        lower, upper = (
            wide.total((limb[0][box.within(last.widths)] for limb in last.limbs), bits=self._bits)
            for box in (self._inner, self._outer)
        )
        return Count(lower=lower, upper=upper)

    def sample(self, rng: np.random.Generator, n: int) -> Archs:
        """Return `n` feasible archs, exactly uniform and independent; canonical encodings (n, n_variables)."""
        return self.draw(rng, n).archs

    def draw(self, rng: np.random.Generator, n: int) -> Draws:
        """Return what `sample` does, and how many of the draws were within the budget.

        Raises Infeasible if no arch is feasible, SpecError if of 100 draws for each arch wanted too few were.
        """
        if n < 0:
            raise SpecError(f"cannot draw {n} archs")
        found: list[Archs] = [np.empty((0, len(self.compiled.space.sizes)), dtype=np.int16)]
        upper = self._upto[-1] if self._upto else 0
        if not upper:
            raise self._infeasible(f"costs {self._described_limits()}")
        missing, drawn, kept = n, 0, 0
        while missing > 0:
            if drawn > _DRAWS * n + _DRAWS_AT_LEAST:
                ticks = " and ".join(f"{tick / 8:.3g}" for tick in self._ticks)
                raise SpecError(
                    f"{kept} of {drawn} archs drawn were within the budget, too few to find {n}. Take finer ticks: "
                    f"{ticks}; there are {self.count().lower} to {upper} archs"
                )
            # As many as it takes at the acceptance so far.
            batch = min(_BATCH, math.ceil(missing * (drawn + 1) / (kept + 1)) + 16)
            archs = self.candidates(_below(upper, batch, rng))
            held = self.holds(archs)
            drawn, kept = drawn + batch, kept + int(held.sum())
            found.append(archs[held])
            missing -= int(held.sum())
        return Draws(archs=np.concatenate(found)[:n], acceptance=kept / drawn if drawn else 1.0)

    def candidates(self, numbers: Sequence[int]) -> Archs:
        """Return the archs with these numbers, from 0 to `count().upper` - 1; each number is another arch.

        They are all feasible archs, and some whose ticks do not tell (`holds` does). By number all can be walked
        through or shared out without a list.
        """
        if not numbers:
            return np.empty((0, len(self.compiled.space.sizes)), dtype=np.int16)
        upto = self._upto
        if not 0 <= min(numbers) <= max(numbers) < (upto[-1] if upto else 0):
            raise SpecError(f"arch numbers go from 0 to {upto[-1] - 1 if upto else -1}")
        # The last table in one row: a number lies at one tick, the rest is its number there.
        box = self._outer.within(self._tables[-1].widths)
        places = [bisect_right(upto, number) for number in numbers]
        rests = [number - (upto[place - 1] if place else 0) for number, place in zip(numbers, places, strict=True)]
        shape = tuple(part.stop - part.start for part in box)
        ticks = np.array(np.unravel_index(np.array(places, dtype=np.int64), shape), dtype=np.int64)
        ticks += np.array(self._outer.first)[:, None]
        archs = np.zeros((len(numbers), len(self.compiled.space.sizes)), dtype=np.int16)
        widest = max(len(moves.rows[0]) for moves in self._ticked.moves) if self._ticked.moves else 1
        chunk = max(1, _CHUNK // (widest * max(len(ways.limbs) for ways in self._tables)))
        for start in range(0, len(numbers), chunk):
            part = slice(start, start + chunk)
            self._walk_back(archs[part], ticks[:, part], rests[part])
        return archs

    def marginals(self) -> Marginals:
        """Return how often each value of each variable occurs among the feasible archs. Raises Infeasible."""
        count = self.count()
        if not count.upper:
            raise self._infeasible(f"costs {self._described_limits()}")
        surely = count.lower / count.upper
        outer = self._shares(self._outer)
        inner = outer if count.exact else self._shares(self._inner) if count.lower else [0 * p for p in outer]
        bounds = [_between(certain, possible, surely) for certain, possible in zip(inner, outer, strict=True)]
        return Marginals(
            probabilities=tuple((c * surely + p) / (surely + 1.0) for c, p in zip(inner, outer, strict=True)),
            low=tuple(low for low, _ in bounds),
            high=tuple(high for _, high in bounds),
        )

    # --- The chain and what limits it

    @property
    def _limits(self) -> tuple[tuple[CompiledSpace, Budget], ...]:
        return ((self.compiled, self.budget),) if self.also is None else ((self.compiled, self.budget), self.also)

    @cached_property
    def _ticks(self) -> tuple[float, ...]:
        if self.also is None:
            return (self.tick,)
        if self.also_tick is not None:
            return self.tick, self.also_tick
        compiled, budget = self.also
        low, high = compiled.min_over(), compiled.max_over()
        if low >= high:  # all archs cost the same, or none can run
            return self.tick, 1.0
        return self.tick, max((min(budget.max_cost, high) - low) / _ALSO_TICKS, (high - low) / _LEAST_TICKS)

    @cached_property
    def _chain(self) -> Chain:
        amounts = [Amount.cost(compiled) for compiled, _ in self._limits]
        return Chain.of(self.compiled.space, amounts, ticks=self._ticks)

    @cached_property
    def _lowest(self) -> tuple[float, ...]:
        return tuple(float(self._chain.lowest(axis)[-1][0]) for axis in range(len(self._limits)))

    @cached_property
    def _highest(self) -> tuple[float, ...]:
        return tuple(float(self._chain.highest(axis)[-1][0]) for axis in range(len(self._limits)))

    @cached_property
    def _ticked(self) -> TickedChain:
        return TickedChain.of(self._chain, self._ticks)

    @cached_property
    def _outer(self) -> _Box:
        """The ticks of all archs that may be feasible."""
        return self._box(self._ticked.error_low[-1][:, 0], self._ticked.error_high[-1][:, 0])

    @cached_property
    def _inner(self) -> _Box:
        """The ticks of archs that surely are."""
        return self._box(self._ticked.error_high[-1][:, 0], self._ticked.error_low[-1][:, 0])

    def _box(self, error_at_top: Floats, error_at_bottom: Floats) -> _Box:
        firsts, lasts = [], []
        for axis, (_, budget) in enumerate(self._limits):
            low, high = budget.bounds
            top = int(self._ticked.tops[-1][axis, 0])
            last = (high - self._lowest[axis] - error_at_top[axis]) / self._ticks[axis]
            first = (low - self._lowest[axis] - error_at_bottom[axis]) / self._ticks[axis]
            lasts.append(math.floor(min(max(last, -1.0), float(top))))
            firsts.append(math.ceil(min(max(first, 0.0), top + 1.0)))
        return _Box(tuple(firsts), tuple(lasts))

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
            sentences.append(
                f"archs cost {self._lowest[axis]:.6g} to {self._highest[axis]:.6g} in {column}, the cheapest is "
                f"{described(compiled.space, arch)}" + "".join(f" (it costs {other})" for other in others)
            )
        return Infeasible(f"no arch of {self.compiled.space.name!r} {what}; {'; '.join(sentences)}")

    # --- Tables of ways

    @cached_property
    def _widths(self) -> list[Ints]:
        return self._ticked.widths(self._outer.last)

    @cached_property
    def _bits(self) -> int:
        """Bits a limb holds, so that the ways of all cells into one state can be added before carrying."""
        most = 1
        for moves in self._ticked.moves:
            most = max(most, int(np.bincount(moves.target, weights=moves.many).max(initial=0)))
        return 62 - most.bit_length()

    @cached_property
    def _n_limbs(self) -> list[int]:
        bits = [math.floor(max(float(ways.max()), 0.0) + 1e-6) + 1 for ways in self._ticked.log2_ways]
        return [-(-n // self._bits) for n in bits]

    @cached_property
    def _bytes(self) -> list[int]:
        """What each table takes."""
        return [
            8 * n_limbs * widths.shape[1] * math.prod(widths.max(axis=1).tolist())
            for n_limbs, widths in zip(self._n_limbs, self._widths, strict=True)
        ]

    def _check_bytes(self, taken: int) -> None:
        if taken > MAX_BYTES:
            factor = 1.05 * (taken / MAX_BYTES) ** (1 / len(self._ticks))
            names = ("tick", "also_tick")
            ticks = ", ".join(f"{name}={_up(tick * factor)}" for name, tick in zip(names, self._ticks, strict=False))
            raise SpecError(
                f"tables of {taken / 1e6:,.0f} MB would be needed, more than {MAX_BYTES / 1e6:,.0f} MB: take coarser "
                f"ticks ({ticks}); samples stay exactly uniform"
            )

    @cached_property
    def _tables(self) -> list[_Ways]:
        """The ways into every state, before the first step and after each."""
        self._check_bytes(sum(self._bytes))
        return list(self._forward())

    @cached_property
    def _last(self) -> _Ways:
        """The ways to the end; counting alone needs two tables at a time only."""
        if "_tables" in self.__dict__ or sum(self._bytes) <= MAX_BYTES:
            return self._tables[-1]
        self._check_bytes(max(map(sum, zip(self._bytes[:-1], self._bytes[1:], strict=True))))
        for ways in self._forward():
            last = ways
        return last

    def _forward(self) -> Iterator[_Ways]:
        ways = _Ways(limbs=[np.ones((1,) * (1 + len(self._ticks)), dtype=np.uint64)], widths=self._widths[0])
        yield ways
        for moves, widths, n_limbs in zip(self._ticked.moves, self._widths[1:], self._n_limbs[1:], strict=True):
            ways = _moved(moves, ways, widths, n_limbs=n_limbs, bits=self._bits)
            yield ways

    @cached_property
    def _upto(self) -> list[int]:
        """How many candidates there are up to each tick of the outer box, its ticks in one row."""
        last = self._tables[-1]
        box = self._outer.within(last.widths)
        return list(accumulate(wide.to_ints((limb[0][box] for limb in last.limbs), bits=self._bits)))

    def _walk_back(self, archs: Archs, ticks: Ints, numbers: list[int]) -> None:
        """Write the archs numbered so among the ways to the end at `ticks` (n_axes, n) into `archs`.

        At each step the moves into the state are a row of intervals as long as their ways; a number lies in one of
        them, and what it is beyond that one's start is its number before the step.
        """
        bits = self._bits
        everyone = np.arange(len(numbers))
        states = np.zeros(len(numbers), dtype=np.int64)
        rest = wide.from_ints(numbers, bits=bits, n_limbs=self._n_limbs[-1])
        for moves, before in zip(reversed(self._ticked.moves), reversed(self._tables[:-1]), strict=True):
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

    def _shares(self, box: _Box) -> list[Floats]:
        """The share of each value of each variable among the ways that end within `box`."""
        shares = [np.zeros(size) for size in self.compiled.space.sizes]
        last = self._tables[-1]
        onwards = np.zeros(last.limbs[0].shape)
        onwards[0][box.within(last.widths)] = 1.0
        for moves, before, after in zip(
            reversed(self._ticked.moves), reversed(self._tables[:-1]), reversed(self._tables[1:]), strict=True
        ):
            ways = wide.scaled(before.limbs, bits=self._bits)  # the scale drops out below
            earlier = np.zeros(before.limbs[0].shape)
            weights = np.zeros(len(moves.source))
            axes = "ij"[: len(self._ticks)]
            for number, (into, out_of) in moves.parts(before.widths, after.widths):
                # Not np.dot: BLAS wakes its threads for a sum of 10,000 terms, at 40 times the CPU time.
                weights[number] = np.einsum(f"{axes},{axes}->", ways[out_of], onwards[into]) * moves.many[number]
                earlier[out_of] += onwards[into] * moves.many[number]
            cells = np.repeat(weights / (moves.many * weights.sum()), moves.many)
            for variable, values in moves.step.values(moves.cells):
                shares[variable] += np.bincount(values, weights=cells, minlength=len(shares[variable]))
            onwards = earlier / earlier.max()
        return shares


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


def _up(value: float) -> str:
    """`value` rounded up to two digits."""
    digits = 1 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:.2g}"
