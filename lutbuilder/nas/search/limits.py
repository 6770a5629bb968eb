"""Hard limits of a search: what archs may cost, checked before it starts and for every arch it ever scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.budget import Budget, Feasible, described
from lutbuilder.nas.compiled import CompiledSpace, Floats
from lutbuilder.nas.search.genes import Archs, encoding_dtype
from lutbuilder.nas.search.state import Identity, digest
from lutbuilder.nas.uncertainty import Uncertainty
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import Infeasible, SpecError

_TRIALS, _TRIED, _ENOUGH = 8, 200, 0.1  # lower limits tried, archs drawn at each, and the share of sure ones that does
_CLOSER = 0.98  # times so much lower, at the least, is the next one


class LimitNeverBinds(UserWarning):
    """A limit that every arch of the space keeps: most likely not the one that was meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A budget together with the costs it is of: at most `max_cost`, a number here, in the unit of the column.

    It holds to a billionth of its value, as `Budget` does: sums of decimal costs are no closer. With a `confidence`
    an arch keeps `max_cost` only if it costs that or less with this probability, one-sided, by `uncertainty` (default:
    that of `compiled`, which raises OpNotInLut for rows without an interval). Only `search` keeps such limits.
    """

    compiled: CompiledSpace
    max_cost: float
    min_cost: float = -math.inf
    confidence: float | None = None
    uncertainty: Uncertainty | None = None

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0.5 <= self.confidence < 1.0:
            raise SpecError(f"confidence is from 0.5 to below 1, got {self.confidence:g}")
        if not math.isfinite(self.max_cost) or not self.min_cost <= self.max_cost:
            raise SpecError(
                f"a limit is a number, not below the least cost asked for; got {self.min_cost:g} to {self.max_cost:g}"
            )

    @property
    def budget(self) -> Budget:
        """The same as the exact machinery takes it."""
        return Budget(self.max_cost, min_cost=self.min_cost)

    def at_most(self, archs: Archs) -> Floats:
        """Return what each arch costs at most at the limit's confidence, shape (N,); without one, its prediction."""
        if self.confidence is None:
            return self.compiled.predict(archs)
        return (self.uncertainty or self.compiled.uncertainty).at_most(archs, confidence=self.confidence)

    def refuse_confidence(self, what: str) -> None:
        """Raise SpecError, beginning with `what`, for a limit that only `search` keeps."""
        if self.confidence is not None:
            raise SpecError(f"{what} under a limit on predicted costs; leave the confidence out, or use `search`")

    def __str__(self) -> str:
        sure = "" if self.confidence is None else f" with probability {self.confidence:g}"
        return f"{self.budget}{sure} in {self.compiled.provenance.column}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Limits:
    """One or more limits over one space; the first is the one that costs are compared by. Immutable.

    Raises Infeasible, naming the lowest cost there is and its arch, if no arch keeps one of them, and SpecError if the
    limits are of different spaces. That no arch keeps all of several, or one at its confidence, is found out when archs
    are drawn.
    """

    limits: tuple[Limit, ...]
    feasible: Feasible = field(init=False)  # the archs that keep every limit

    @classmethod
    def of(cls, *limits: Limit) -> Limits:
        """Return the limits, checked."""
        return cls(limits=limits)

    def __post_init__(self) -> None:
        if not self.limits:
            raise SpecError("a search needs a limit: Limit(compiled=compile_space(space, lut), max_cost=12.0)")
        first, *others = self.limits
        also = [(other.compiled, other.budget) for other in others]
        object.__setattr__(self, "feasible", Feasible(first.compiled, first.budget, also=also))

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
            if limit.confidence is not None:
                named[f"confidence of the {name}"] = limit.confidence
                named[f"uncertainty of the {name}"] = digest(limit.at_most(self.cheapest[None]))
        return named

    def warn_if_loose(self) -> None:
        """Warn (LimitNeverBinds) of each limit that every arch keeps."""
        for limit, (lowest, highest) in zip(self.limits, self.feasible.ranges, strict=True):
            low, high = limit.budget.bounds
            if high >= highest and low <= lowest:
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
        """Return which archs of `costs` (n_limits, N) keep every limit as predicted, shape (N,)."""
        low, high = self._bounds
        return np.asarray(((costs >= low) & (costs <= high)).all(axis=0))

    def held(self, archs: Archs, costs: Floats) -> NDArray[np.bool_]:
        """Return which of `archs`, with their predicted `costs` (n_limits, N), keep every limit surely, shape (N,)."""
        kept = self.kept(costs)
        if self.confident:
            rows = np.flatnonzero(kept)
            kept[rows] = self._surely(archs[rows])
        return kept

    @property
    def confident(self) -> tuple[Limit, ...]:
        """The limits that are kept at a confidence."""
        return tuple(limit for limit in self.limits if limit.confidence is not None)

    def sample(self, rng: np.random.Generator, n: int) -> Archs:
        """Return `n` archs, exactly uniform and independent on those that keep every limit, (n, n_variables).

        Of limits at a confidence, where hardly any arch of a large space keeps them surely, on those that keep lower
        limits. Raises Infeasible if no arch keeps all limits, SpecError if hardly any does; see `Feasible.draw`.
        """
        if not self.confident:
            return self.feasible.sample(rng, n).astype(encoding_dtype(self.space), copy=False)
        listed = self.listed()
        if listed is None:
            drawn = self._likely.draw(rng, n, keep=self._surely).archs
            return drawn.astype(encoding_dtype(self.space), copy=False)
        if not len(listed):
            raise self._never_surely(self.feasible.sample(rng, _TRIED))  # that raises where none is within, either
        return listed[rng.integers(len(listed), size=n)]

    def listed(self) -> Archs | None:
        """Return every arch that keeps the limits, each once; None if there may be too many to list."""
        listed = self.feasible.listed
        if listed is None:
            return None
        return listed[self._surely(listed)].astype(encoding_dtype(self.space), copy=False)

    def _surely(self, archs: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which archs, all of which keep the limits as predicted, keep those with a confidence at theirs."""
        held = np.ones(len(archs), dtype=np.bool_)
        for limit in self.confident:
            held &= limit.at_most(archs) <= limit.budget.bounds[1]
        return held

    @cached_property
    def _likely(self) -> Feasible:
        """Archs that keep limits so much lower that a fair share of them keep the true ones at their confidence.

        Of the archs within a limit nearly all lie near it, where none is surely below.
        """
        tops = [limit.max_cost for limit in self.limits]
        for _ in range(_TRIALS):
            budgets = [Budget(top, min_cost=limit.min_cost) for top, limit in zip(tops, self.limits, strict=True)]
            first, *others = self.limits
            also = [(other.compiled, budget) for other, budget in zip(others, budgets[1:], strict=True)]
            within = Feasible(first.compiled, budgets[0], also=also)
            archs = within.sample(np.random.default_rng(0), _TRIED)
            if self._surely(archs).mean() >= _ENOUGH:
                return within
            for number, limit in enumerate(self.limits):
                if limit.confidence is not None:
                    over = float(np.median(limit.at_most(archs) / limit.compiled.predict(archs)))
                    least = max(self.feasible.ranges[number][0], limit.min_cost)
                    tops[number] = max(min(limit.max_cost / over, _CLOSER * tops[number]), least)
        raise self._never_surely(np.concatenate([archs, self.cheapest[None]]))

    def _never_surely(self, archs: NDArray[Any]) -> Infeasible:
        """The error for limits that no arch keeps at their confidence; some of `archs` come nearest."""
        told = []
        for limit in self.confident:
            most = limit.at_most(archs)
            nearest = int(most.argmin())
            told.append(
                f"{described(self.space, archs[nearest])} costs {limit.compiled.predict(archs[[nearest]])[0]:.6g} as "
                f"predicted and surely at most {most[nearest]:.6g} in {limit.compiled.provenance.column}"
            )
        return Infeasible(
            f"no arch of {self.space.name!r} was found that costs {' and '.join(map(str, self.limits))}; nearest: "
            f"{'; '.join(told)}. Raise the limit, lower the confidence, or measure more closely"
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
