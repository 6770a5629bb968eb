"""Hard limits of a search: what archs may cost, checked before it starts and for every arch it ever scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.budget import Budget, Feasible
from lutbuilder.nas.compiled import CompiledSpace, Floats
from lutbuilder.nas.search.genes import Archs, encoding_dtype
from lutbuilder.nas.search.state import Identity, digest
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import SpecError


class LimitNeverBinds(UserWarning):
    """A limit that every arch of the space keeps: most likely not the one that was meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A budget together with the costs it is of: at most `max_cost`, a number here, in the unit of the column.

    It holds to a billionth of its value, as `Budget` does: sums of decimal costs are no closer.
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Limits:
    """One or more limits over one space; the first is the one that costs are compared by. Immutable.

    Raises Infeasible, naming the lowest cost there is and its arch, if no arch keeps one of them, and SpecError if the
    limits are of different spaces. That no arch keeps all of several is found out when archs are drawn.
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
        """Return which archs of `costs` (n_limits, N) keep every limit, shape (N,)."""
        low, high = self._bounds
        return np.asarray(((costs >= low) & (costs <= high)).all(axis=0))

    def sample(self, rng: np.random.Generator, n: int) -> Archs:
        """Return `n` archs, exactly uniform and independent on those that keep every limit, (n, n_variables).

        Raises Infeasible if no arch keeps all limits, SpecError if hardly any does; see `Feasible.draw`.
        """
        return self.feasible.sample(rng, n).astype(encoding_dtype(self.space), copy=False)

    def listed(self) -> Archs | None:
        """Return every arch that keeps the limits, each once; None if there may be too many to list."""
        listed = self.feasible.listed
        return None if listed is None else listed.astype(encoding_dtype(self.space), copy=False)

    @cached_property
    def _bounds(self) -> tuple[Floats, Floats]:
        bounds = np.array([limit.budget.bounds for limit in self.limits])
        return bounds[:, :1], bounds[:, 1:]


def as_limits(limits: Limits | Limit | Sequence[Limit]) -> Limits:
    """Return `limits` however they were given."""
    if isinstance(limits, Limits):
        return limits
    return Limits.of(limits) if isinstance(limits, Limit) else Limits.of(*limits)
