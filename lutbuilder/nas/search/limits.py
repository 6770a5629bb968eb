"""Hard limits of a search: what archs may cost, checked before it starts and for every arch it ever scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.budget import Budget, Feasible
from lutbuilder.nas.compiled import CompiledSpace, Floats
from lutbuilder.nas.search.genes import Archs, encoding_dtype
from lutbuilder.nas.search.state import Identity, digest
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import Infeasible, SpecError

_TICKS = 1000  # of the table that archs are drawn with; draws are exactly uniform at any number, more redraw less
_LISTABLE = 20_000
_DRAWS = 1000  # for one arch wanted, before giving up
_BATCH = 20_000
# Several limits: how many weightings are tried, with how many archs each, and the share of kept archs that will do.
_TRIALS, _TRIED, _ENOUGH = 12, 200, 0.1


class LimitNeverBinds(UserWarning):
    """A limit that every arch of the space keeps: most likely not the one that was meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """No arch may cost more than `max_cost`, nor less than `min_cost`; both in the unit of the compiled column.

    Limits hold to a billionth of their value, as `Budget` does: sums of decimal costs are no closer.
    """

    compiled: CompiledSpace
    max_cost: float
    min_cost: float = -math.inf

    def __post_init__(self) -> None:
        if not math.isfinite(self.max_cost) or not self.min_cost <= self.max_cost:
            raise SpecError(
                f"a limit is a number, not below the least cost asked for; got {self.min_cost:g} to {self.max_cost:g}"
            )

    @property
    def budget(self) -> Budget:
        """The same as the exact machinery takes it."""
        return Budget(self.max_cost, min_cost=self.min_cost)

    @property
    def span(self) -> float:
        """How far costs within the limit can lie apart."""
        lowest, highest = self.compiled.min_over(), self.compiled.max_over()
        within = min(self.max_cost, highest) - max(self.min_cost, lowest)
        return max(within, 1e-6 * (highest - lowest), 1e-9 * abs(self.max_cost)) or 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Limits:
    """One or more limits over one space; the first is the one that costs are compared by. Immutable.

    Raises Infeasible, naming the lowest cost there is and its arch, if no arch keeps one of them, and SpecError if the
    limits are of different spaces.
    """

    limits: tuple[Limit, ...]

    @classmethod
    def of(cls, *limits: Limit) -> Limits:
        """Return the limits, checked."""
        return cls(limits=limits)

    def __post_init__(self) -> None:
        if not self.limits:
            raise SpecError("a search needs a limit: Limit(compiled=compile_space(space, lut), max_cost=12.0)")
        if len({limit.compiled.space.key for limit in self.limits}) > 1:
            named = ", ".join(repr(limit.compiled.space.name) for limit in self.limits)
            raise SpecError(f"all limits of a search are of one space, got {named}")
        for limit in self.limits:
            Feasible(limit.compiled, limit.budget, tick=limit.span)  # raises Infeasible

    @property
    def space(self) -> SearchSpace:
        """The space searched."""
        return self.limits[0].compiled.space

    @cached_property
    def cheapest(self) -> Archs:
        """The arch that costs least by the first limit's table, an encoding of shape (n_variables,)."""
        _, arch = self.limits[0].compiled.cheapest({})
        return np.asarray(arch, dtype=encoding_dtype(self.space))

    @cached_property
    def identity(self) -> Identity:
        """What must agree for a state file to be of this search."""
        named: dict[str, str | int | float] = {"space": self.space.key}
        for number, limit in enumerate(self.limits):
            name = "limit" if number == 0 else f"limit {number + 1}"
            named[name] = f"{limit.min_cost!r} to {limit.max_cost!r} {limit.compiled.provenance.column}"
            named[f"costs of the {name}"] = digest(np.array(limit.compiled.fixed), limit.compiled.flat)
        return named

    def warn_if_loose(self) -> None:
        """Warn (LimitNeverBinds) of each limit that every arch keeps."""
        for limit in self.limits:
            lowest, highest = limit.compiled.min_over(), limit.compiled.max_over()
            if limit.max_cost >= highest and limit.min_cost <= lowest:
                warnings.warn(
                    f"the limit of {limit.max_cost:.6g} never binds: archs of {self.space.name!r} have "
                    f"{limit.compiled.provenance.column} from {lowest:.6g} to {highest:.6g}",
                    LimitNeverBinds,
                    stacklevel=3,
                )

    def costs(self, archs: Archs) -> Floats:
        """Return what each arch costs by each limit's table, shape (n_limits, N)."""
        return np.stack([limit.compiled.predict(archs) for limit in self.limits])

    def kept(self, costs: Floats) -> NDArray[np.bool_]:
        """Return which archs of `costs` (n_limits, N) keep every limit, shape (N,)."""
        low, high = self._bounds
        return np.asarray(((costs >= low) & (costs <= high)).all(axis=0))

    def sample(self, rng: np.random.Generator, n: int) -> Archs:
        """Return `n` archs, exactly uniform and independent on those that keep every limit, (n, n_variables).

        Under one limit they are drawn directly, under several from a larger set and sifted. Raises Infeasible if no
        arch keeps all limits, or hardly any of that set, naming the lowest costs.
        """
        if len(self.limits) > 1 and (listed := self.listed()) is not None:
            if not len(listed):
                raise self._no_arch()
            return listed[rng.integers(len(listed), size=n)]
        found = [np.empty((0, len(self.space.sizes)), dtype=encoding_dtype(self.space))]
        missing, drawn, kept = n, 0, 0
        while missing > 0:
            if drawn > _DRAWS * (n + 100):
                raise self._no_arch(f"; {kept} of {drawn} draws do")
            likely = missing if len(self.limits) == 1 else math.ceil(missing * (drawn + 1) / (kept + 1)) + 16
            batch = self._superset.sample(rng, min(likely, _BATCH)).astype(encoding_dtype(self.space), copy=False)
            found.append(batch[self.kept(self.costs(batch))])
            drawn, kept, missing = drawn + len(batch), kept + len(found[-1]), missing - len(found[-1])
        return np.concatenate(found)[:n]

    def listed(self) -> Archs | None:
        """Return every arch that keeps the limits, each once; None if there are too many to list."""
        n = self._superset.count().upper
        if n > _LISTABLE:
            return None
        archs = self._superset.candidates(range(n)).astype(encoding_dtype(self.space), copy=False)
        return archs[self.kept(self.costs(archs))]

    @cached_property
    def _superset(self) -> Feasible:
        """Archs that keep one limit, which all that keep every limit keep: a weighted sum of the costs.

        For weights such that no limit is broken more often than another a fair share of it keeps them all. (A grid of
        two costs has so few ticks a side that, of APQ's archs, hardly any draw keeps both.) Raises Infeasible where
        some weights prove that no arch keeps all limits.
        """
        if len(self.limits) == 1:
            (limit,) = self.limits
            return Feasible(limit.compiled, limit.budget, tick=limit.span / _TICKS)
        low, high = self._bounds
        log_weights, pace = np.zeros(len(self.limits)), 4.0
        tried: list[tuple[float, Feasible]] = []
        for _ in range(_TRIALS):
            weighted = self._weighted(log_weights)
            if weighted.count().upper <= _LISTABLE:
                return weighted
            costs = self.costs(weighted.sample(np.random.default_rng(0), _TRIED))
            tried.append((float(self.kept(costs).mean()), weighted))
            if tried[-1][0] >= _ENOUGH:
                break
            broken = ((costs < low) | (costs > high)).mean(axis=1)
            log_weights = log_weights + pace * (broken - broken.mean())
            pace *= 0.8
        return max(tried, key=itemgetter(0))[1]

    def _weighted(self, log_weights: Floats) -> Feasible:
        weights = np.exp(log_weights) / [limit.span for limit in self.limits]
        low, high = (float(weights @ side[:, 0]) for side in self._bounds)
        first = self.limits[0].compiled
        flat = np.zeros(first.flat.shape)
        for weight, limit in zip(weights.tolist(), self.limits, strict=True):
            flat += weight * limit.compiled.flat
        compiled = first.with_costs(
            flat,
            call_overhead_ms=float(weights @ [limit.compiled.call_overhead_ms for limit in self.limits]),
            provenance=replace(first.provenance, column="weighted costs"),
        )
        together = Limit(compiled=compiled, min_cost=low, max_cost=high)
        try:
            return Feasible(compiled, together.budget, tick=together.span / _TICKS)
        except Infeasible as error:
            raise self._no_arch() from error

    def _no_arch(self, told: str = "") -> Infeasible:
        lowest = ", ".join(
            f"{limit.compiled.min_over():.6g} for {limit.max_cost:.6g} of {limit.compiled.provenance.column}"
            for limit in self.limits
        )
        return Infeasible(
            f"no arch of {self.space.name!r} keeps all {len(self.limits)} limits together{told}; the lowest costs, "
            f"each on its own, are {lowest}. Raise a limit"
        )

    @cached_property
    def _bounds(self) -> tuple[Floats, Floats]:
        bounds = np.array([limit.budget.bounds for limit in self.limits])
        return bounds[:, :1], bounds[:, 1:]


def as_limits(limits: Limits | Limit | Sequence[Limit]) -> Limits:
    """Return `limits` however they were given."""
    if isinstance(limits, Limits):
        return limits
    return Limits.of(limits) if isinstance(limits, Limit) else Limits.of(*limits)
