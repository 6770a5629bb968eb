"""Archs to prove a table with: spread over the whole range of predicted cost, or chosen by a search.

Uniform random archs cluster in the middle of a space and a search looks at its edges; a table has to hold in both.
Everything is a pure function of its arguments and the generator's state.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutbuilder.lower import lower
from lutbuilder.nas.compiled import CompiledSpace, Floats, FunctionTable, compile_space
from lutbuilder.nas.search import Evolution, Limit, LimitNeverBinds, search
from lutbuilder_agent.errors import SpecError

Archs = NDArray[np.int16]
Accept = Callable[[Sequence[int]], bool]  # asked of one arch after the other; the first it accepts is taken
_DRAWS = 64  # archs drawn for one wanted cost; the nearest is kept
_REDRAWS = 50  # each a little less tilted, so that even the rare archs at either end are found unused
_BISECTIONS = 60
_LISTABLE = 4096  # a space with at most so many encodings is listed, not drawn from
# OFA's evolution has 500 generations, for a noisy accuracy; on ProxylessNAS and OFA's MobileNetV3 with an additive
# cost, 60 come within 1.5 % of what 200 find.
_SEARCH = Evolution(generations=60)


def _any(arch: Sequence[int]) -> bool:
    return True


def spread_archs(compiled: CompiledSpace, n: int, rng: np.random.Generator, accept: Accept = _any) -> Archs:
    """Return `n` different random archs whose predicted costs fill the range from the cheapest to the dearest evenly.

    One arch a stratum of equal width: the nearest to a random cost within it among archs drawn with every choice
    weighted by exp(-rate * cost), the rate set so that the mean is that cost. Archs that `accept` refuses (they were
    used elsewhere) are passed over. Canonical encodings, shape (n, n_variables), cheapest stratum first. Raises
    SpecError if the space has fewer archs.
    """
    _check_count(compiled, n)
    low, high = compiled.min_over(), compiled.max_over()
    tilt = _Tilt.of(compiled)
    listed = _all_archs(compiled) if math.prod(compiled.space.sizes) <= _LISTABLE else None
    chosen: dict[tuple[int, ...], None] = {}
    for stratum in range(n):
        wanted = low + (stratum + rng.random()) / n * (high - low)
        rate = tilt.rate(wanted)
        for redraw in range(_REDRAWS):
            pool = tilt.draw(rng, _DRAWS, rate=rate * 0.9**redraw) if listed is None else listed
            nearest = np.argsort(np.abs(compiled.predict(pool) - wanted), kind="stable")
            if _take_first(pool[nearest], compiled, chosen, accept):
                break
        else:
            raise SpecError(
                f"found only {len(chosen)} of {n} different feasible archs of {compiled.space.name!r} spread from "
                f"{low:.6g} to {high:.6g}; ask for fewer"
            )
    return np.array(list(chosen), dtype=np.int16)


def searched_archs(compiled: CompiledSpace, n: int, rng: np.random.Generator, accept: Accept = _any) -> Archs:
    """Return `n` different archs as a search would pick them: the lowest predicted cost at no fewer MACs than a floor.

    The floors divide the space's range of MACs evenly, its outer twentieths left out; for each an evolutionary search
    runs. These are the archs whose prediction is most optimistic for their size. Archs that `accept` refuses are
    passed over for the next best. Canonical encodings, shape (n, n_variables), lowest floor first. Raises SpecError if
    the space has too few archs above a floor.
    """
    _check_count(compiled, n)
    table = FunctionTable(name="macs", cost=lambda op: float(lower(op).macs))
    macs = compile_space(compiled.space, table, "macs")
    able = tuple(  # what cannot run is above any limit
        replace(site, costs=np.where(np.isfinite(cost.costs), site.costs, math.inf))
        for site, cost in zip(macs.sites, compiled.sites, strict=True)
    )
    macs = replace(macs, sites=able)
    low, high = macs.min_over(), macs.max_over()
    chosen: dict[tuple[int, ...], None] = {}
    for number in range(n):
        floor = low + (0.05 + 0.9 * (number + 0.5) / n) * (high - low)
        limit = Limit(compiled=macs, min_cost=floor, max_cost=high)
        with warnings.catch_warnings():  # where all archs have as many MACs no floor binds
            warnings.simplefilter("ignore", LimitNeverBinds)
            found = search(limit, lambda archs: -compiled.predict(archs), _SEARCH, seed=int(rng.integers(1 << 62)))
        best = np.argsort(-found.history.scores, kind="stable")
        if not _take_first(found.history.archs[best].astype(np.int16), compiled, chosen, accept):
            raise SpecError(
                f"no unused arch of {compiled.space.name!r} with {floor:.4g} MACs or more after {number} of {n}; "
                f"ask for fewer"
            )
    return np.array(list(chosen), dtype=np.int16)


@dataclass(frozen=True, kw_only=True)
class _Tilt:
    """A space's costs to first order: a mean, and for each value of each variable what choosing it adds on average.

    `effects` is padded to (n_variables, most values); +inf: padding, or a value no feasible arch has.
    """

    compiled: CompiledSpace
    mean: float
    effects: Floats

    @classmethod
    def of(cls, compiled: CompiledSpace) -> _Tilt:
        sizes = compiled.space.sizes
        effects = np.where(np.arange(max(sizes)) < np.array(sizes)[:, None], 0.0, math.inf)
        mean = compiled.fixed
        for site in (site for site in compiled.sites if site.scope):
            finite = np.isfinite(site.costs)
            costs = np.where(finite, site.costs, 0.0)
            site_mean = float(costs.sum() / max(int(finite.sum()), 1))
            mean += site_mean
            for axis, variable in enumerate(site.scope):
                others = tuple(a for a in range(costs.ndim) if a != axis)
                count = finite.sum(axis=others)
                of_value = np.where(count > 0, costs.sum(axis=others) / np.maximum(count, 1) - site_mean, math.inf)
                effects[variable, : len(of_value)] += of_value
        return cls(compiled=compiled, mean=mean, effects=effects)

    def rate(self, wanted: float) -> float:
        """Return the rate at which archs cost `wanted` on average (the nearest there is); costs fall as it grows."""
        widest = float(np.ptp(self._finite, axis=1).max())
        if widest == 0.0:
            return 0.0
        low, high = -1e4 / widest, 1e4 / widest  # there every choice but the dearest, or cheapest, has vanished
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self.mean + float((self._weights(middle) * self._finite).sum()) > wanted:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def draw(self, rng: np.random.Generator, n: int, *, rate: float) -> Archs:
        """Return `n` canonical encodings, shape (n, n_variables), every variable drawn on its own."""
        upto = self._weights(rate).cumsum(axis=1)
        upto /= upto[:, -1:]  # the last is exactly 1, so that no draw below 1 falls behind it
        numbers = (rng.random((n, len(upto), 1)) >= upto).sum(axis=2)
        return self.compiled.space.canonical(numbers)

    @property
    def _finite(self) -> Floats:
        return np.where(np.isfinite(self.effects), self.effects, 0.0)

    def _weights(self, rate: float) -> Floats:
        exponents = np.where(np.isfinite(self.effects), -rate * self._finite, -math.inf)
        weights = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        normalised: Floats = weights / weights.sum(axis=1, keepdims=True)
        return normalised


def _check_count(compiled: CompiledSpace, n: int) -> None:
    there = compiled.space.n_archs() if math.isfinite(compiled.min_over()) else 0
    if not 1 <= n <= there:
        raise SpecError(f"cannot choose {n} of the {there} archs of {compiled.space.name!r} that can run")


def _take_first(archs: Archs, compiled: CompiledSpace, chosen: dict[tuple[int, ...], None], accept: Accept) -> bool:
    """Add the first feasible and accepted arch that is not chosen yet to `chosen`; say whether there was one."""
    for row in archs[np.isfinite(compiled.predict(archs))].tolist():
        if tuple(row) not in chosen and accept(row):
            chosen[tuple(row)] = None
            return True
    return False


def _all_archs(compiled: CompiledSpace) -> Archs:
    encodings = np.array(list(itertools.product(*map(range, compiled.space.sizes))), dtype=np.int16)
    return np.unique(compiled.space.canonical(encodings), axis=0)
