"""Budgeted environments for agents that act layer by layer: HAQ's bit widths and AMC's channel widths.

An action is a number from 0 to 1 a step. Whatever the actions, the arch that comes out keeps the limit; that is decided
from exact bounds, never from a closed form. Agents (the papers use DDPG) stay with the user: an environment gives
actions their meaning, `cross_entropy` is a plain optimiser over it, and the rewards of both papers are here.
Sources: Wang et al., HAQ, CVPR 2019, section 3; He et al., AMC, ECCV 2018, section 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.budget import AdditiveScore
from lutbuilder.nas.compiled import CompiledSpace, Floats, SiteCost
from lutbuilder.nas.pareto import best_under
from lutbuilder.nas.search.genes import Archs, encoding_dtype
from lutbuilder.nas.search.limits import Limit, Limits
from lutbuilder.nas.search.state import Identity
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import ShapeError, SpecError


class Environment(Protocol):
    """Turns actions into archs that keep a limit; in all methods the rows are independent episodes."""

    @property
    def limits(self) -> Limits:
        """The limit that every arch keeps."""
        ...

    @property
    def identity(self) -> Identity:
        """What must agree for a state file to be of this environment."""
        ...

    @property
    def n_steps(self) -> int:
        """Actions an episode takes."""
        ...

    def step(self, prefix: Archs, actions: Floats) -> Archs:
        """Return the archs so far, (N, t), one variable longer, (N, t + 1), by one action each, (N,)."""
        ...

    def finish(self, archs: Archs) -> Archs:
        """Return whole archs, (N, n_steps), made to keep the limit where the steps alone do not see to it."""
        ...


def rollout(environment: Environment, actions: Floats) -> Archs:
    """Return the arch of each row of actions, (N, n_steps) from 0 to 1, as encodings of shape (N, n_variables).

    Raises ShapeError or SpecError for actions of another shape or range.
    """
    if actions.ndim != 2 or actions.shape[1] != environment.n_steps:
        raise ShapeError(f"actions are of shape (N, {environment.n_steps}), got {actions.shape}")
    archs = np.empty((len(actions), 0), dtype=encoding_dtype(environment.limits.space))
    for column in actions.T:
        archs = environment.step(archs, column)
    return environment.finish(archs)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bounded(ABC):
    """A limit, and bounds on what may be chosen for each variable."""

    limit: Limit

    @property
    @abstractmethod
    def _allowed(self) -> tuple[NDArray[np.bool_], ...]:
        """Which values of each variable lie within the bounds."""

    @cached_property
    def limits(self) -> Limits:
        """The limit over archs that lie within the bounds."""
        return Limits.of(replace(self.limit, compiled=only(self.limit.compiled, self._allowed)))

    @property
    def n_steps(self) -> int:
        """One step a variable."""
        return len(self._values)

    @cached_property
    def _values(self) -> tuple[NDArray[np.intp], ...]:
        return tuple(np.array(variable.values, dtype=np.intp) for variable in self.limit.compiled.space.variables)


# --- Bits


@dataclass(frozen=True, kw_only=True, eq=False)
class BitEnvironment(_Bounded):
    """HAQ's: each step chooses the bits of one variable, and archs over budget then lose bits layer by layer.

    The variables of the space are bit widths in execution order, a layer's weights before its activations. Chosen bits
    lie in [low, high], by default those of HAQ's released search; a variable with a single value (HAQ's first and last
    layer) keeps it. Raises Infeasible, naming the lowest cost, if even the cheapest such arch is over the limit, and
    SpecError for values that are no bits.
    """

    low: int = 2
    high: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= 8:
            raise SpecError(f"bits are from 1 to 8, the fewest first; got {self.low} to {self.high}")
        check_bits(self.limit.compiled.space)
        _check_limit(self.limit, what="bit width")
        for variable, allowed in zip(self.limit.compiled.space.variables, self._allowed, strict=True):
            if not allowed.any():
                raise SpecError(
                    f"variable {variable.name!r} has no value from {self.low} to {self.high}: {variable.values}"
                )
        self.limits.warn_if_loose()

    @property
    def identity(self) -> Identity:
        """See Environment."""
        return {"fewest bits": self.low, "most bits": self.high, **self.limits.identity}

    def bits(self, actions: Floats) -> NDArray[np.intp]:
        """Return bits for actions of any shape: round(low - 0.5 + action * (high - low + 1)), kept in [low, high]."""
        _check_actions(actions)
        raw = np.rint(self.low - 0.5 + actions * (self.high - self.low + 1))
        return np.clip(raw, self.low, self.high).astype(np.intp)

    def step(self, prefix: Archs, actions: Floats) -> Archs:
        """Return the archs so far with the bits of one more variable, the nearest it has; see Environment."""
        values, allowed = self._values[prefix.shape[1]], self._allowed[prefix.shape[1]]
        distance = np.abs(values[allowed] - self.bits(actions)[:, None])
        chosen = np.flatnonzero(allowed)[distance.argmin(axis=1)]
        return np.concatenate([prefix, chosen[:, None].astype(prefix.dtype)], axis=1)

    def finish(self, archs: Archs) -> Archs:
        """Return archs under the limit: from the last variable to the first each loses one bit, until it is kept.

        Sweeps repeat; an arch stops as soon as it keeps the limit. One that does not even with the fewest bits
        everywhere (in a measured table fewer bits may cost more) becomes the cheapest arch. Source: HAQ, section 3.2.
        """
        archs = archs.copy()
        least = [int(np.flatnonzero(allowed)[0]) for allowed in self._allowed]
        over = np.flatnonzero(~self.limits.kept(self.limits.costs(archs)))
        lowered = True
        while lowered and len(over):
            lowered = False
            for column in reversed(range(archs.shape[1])):
                rows = over[archs[over, column] > least[column]]
                if len(rows):
                    lowered = True
                    archs[rows, column] -= 1
                    kept = self.limits.kept(self.limits.costs(archs[rows]))
                    over = np.setdiff1d(over, rows[kept], assume_unique=True)
        archs[over] = self.limits.cheapest
        return archs

    def best(self, score: AdditiveScore) -> Archs:
        """Return the encoding with the highest additive score under the limit, (n_variables,); exact, no search."""
        (limit,) = self.limits.limits
        return best_under(limit.compiled, score, limit.budget).arch.astype(encoding_dtype(self.limits.space))

    @cached_property
    def _allowed(self) -> tuple[NDArray[np.bool_], ...]:
        return tuple(
            (values >= self.low) & (values <= self.high) if len(values) > 1 else np.ones(1, dtype=np.bool_)
            for values in self._values
        )


def haq_reward(accuracy: Any, before: float) -> Any:
    """Return HAQ's reward, a tenth of the accuracy gained, in percent points; the budget is kept by force."""
    return 0.1 * (accuracy - before)


# --- Channels


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelEnvironment(_Bounded):
    """AMC's: each step chooses a layer's width, never one that no completion of the arch could pay for.

    The variables of the space are widths in execution order. An action is the share of the full width to keep, brought
    into [low, high], by default those of AMC's released search, and rounded to the nearest width of the variable. Of
    the widths with which some completion keeps the limit the widest not above it is taken, or the narrowest there is.
    Raises Infeasible, naming the lowest cost, if no arch within the bounds keeps the limit: a lower bound never
    overrides the budget.
    """

    low: float = 0.2
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise SpecError(
                f"shares of the full width are above 0, at most 1, the least first; got {self.low:g} to {self.high:g}"
            )
        check_widths(self.limit.compiled.space)
        _check_limit(self.limit, what="width")
        self.limits.warn_if_loose()

    @property
    def identity(self) -> Identity:
        """See Environment."""
        return {"least share": self.low, "largest share": self.high, **self.limits.identity}

    def affordable(self, prefix: Archs) -> NDArray[np.bool_]:
        """Return with which widths of the next variable a completion keeps the limit, shape (N, n_values).

        Exact: the cheapest completion over all later variables is found by elimination, not estimated.
        """
        t = prefix.shape[1]
        n_values = len(self._values[t])
        longer = np.empty((len(prefix), n_values, t + 1), dtype=np.int16)
        longer[:, :, :t] = prefix[:, None, :]
        longer[:, :, t] = np.arange(n_values)
        (limit,) = self.limits.limits
        lowest, _ = limit.compiled.completion_bounds(longer.reshape(len(prefix) * n_values, t + 1))
        kept: NDArray[np.bool_] = lowest.reshape(len(prefix), n_values) <= limit.budget.bounds[1]
        return kept

    def step(self, prefix: Archs, actions: Floats) -> Archs:
        """Return the archs so far with one more width; see Environment."""
        _check_actions(actions)
        widths = self._values[prefix.shape[1]]
        share = np.clip(actions, self.low, self.high)
        wanted = np.abs(widths - share[:, None] * widths[-1]).argmin(axis=1)
        affordable = self.affordable(prefix)
        numbers = np.arange(len(widths))
        below = np.where(affordable & (numbers <= wanted[:, None]), numbers, -1).max(axis=1)
        chosen = np.where(below >= 0, below, affordable.argmax(axis=1))
        return np.concatenate([prefix, chosen[:, None].astype(prefix.dtype)], axis=1)

    def finish(self, archs: Archs) -> Archs:
        """Return the archs as they are, for every step kept the limit.

        Unless bound and prediction, the same sum in another order, fall on different sides of it: then the cheapest.
        """
        over = ~self.limits.kept(self.limits.costs(archs))
        return np.where(over[:, None], self.limits.cheapest, archs)

    @cached_property
    def _allowed(self) -> tuple[NDArray[np.bool_], ...]:
        """Which widths lie within the bounds; the one nearest to a bound does, so that every variable has one."""
        return tuple(
            (np.arange(len(widths)) >= np.abs(widths - self.low * widths[-1]).argmin())
            & (np.arange(len(widths)) <= np.abs(widths - self.high * widths[-1]).argmin())
            for widths in self._values
        )


def amc_reward(accuracy: Any) -> Any:
    """Return AMC's reward where the budget is kept by force: a hundredth of the accuracy in percent."""
    return 0.01 * accuracy


def amc_cost_reward(accuracy: Any, cost: Any) -> Any:
    """Return AMC's reward for the lowest cost without loss of accuracy: -(100 - accuracy) * 0.01 * ln(cost).

    The cost is in a unit in which every arch costs more than 1 (MACs, cycles, microseconds). Raises SpecError
    otherwise: below 1 the logarithm changes sign, and the worse arch would be rewarded.
    """
    if not (np.asarray(cost) > 1).all():
        raise SpecError("costs of this reward are above 1; give them in a smaller unit, such as us or MACs")
    return -(100 - np.asarray(accuracy)) * 0.01 * np.log(cost)


# --- Shared


def only(compiled: CompiledSpace, allowed: Sequence[NDArray[np.bool_]]) -> CompiledSpace:
    """Return the space with +inf for every arch that uses a value not `allowed`; one mask a variable."""
    masks = tuple(
        SiteCost(name=f"bounds of {variable.name}", scope=(number,), costs=np.where(mask, 0.0, math.inf))
        for number, (variable, mask) in enumerate(zip(compiled.space.variables, allowed, strict=True))
        if not mask.all()
    )
    return replace(compiled, sites=(*compiled.sites, *masks)) if masks else compiled


def check_bits(space: SearchSpace) -> None:
    """Raise SpecError, naming a variable, for a space that does not choose bits alone."""
    _check_choices(space, what="bit width")
    for variable in space.variables:
        if int(variable.values[-1]) > 8:
            raise SpecError(f"variable {variable.name!r} is no bit width: {variable.values}; those are 1 to 8")


def check_widths(space: SearchSpace) -> None:
    """Raise SpecError, naming a variable, for a space that does not choose widths alone."""
    _check_choices(space, what="width")


def _check_limit(limit: Limit, *, what: str) -> None:
    limit.refuse_confidence(f"a {what} is chosen")
    if math.isfinite(limit.min_cost):
        raise SpecError(f"a {what} is chosen under a highest cost alone; leave min_cost out")


def _check_choices(space: SearchSpace, *, what: str) -> None:
    for variable in space.variables:
        if variable.active_when is not None:
            raise SpecError(f"a {what} is chosen for every variable, but {variable.name!r} is not always active")
        whole = [value for value in variable.values if type(value) is int and value >= 1]
        if len(whole) < len(variable.values) or whole != sorted(whole):
            raise SpecError(
                f"variable {variable.name!r} of {space.name!r} is no {what}: whole numbers from 1, the smallest first; "
                f"got {variable.values}"
            )


def _check_actions(actions: Floats) -> None:
    if not ((actions >= 0) & (actions <= 1)).all():
        raise SpecError("actions are from 0 to 1")
