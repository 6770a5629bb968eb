"""What each choice does to the cost: on average over a space, and at most in any one arch. Exact, without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lutbuilder.spaces.eliminate import Factor, joined, reduced

if TYPE_CHECKING:
    from lutbuilder.nas.compiled import CompiledSpace

Floats = NDArray[np.float64]
_STEP = 2.0**-600  # its square is 0 in double precision


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sensitivity:
    """The cost of one variable's values, in the unit of the column; arrays of shape (n_values,), NaN without an arch.

    mean: of the archs with that value, every other variable drawn uniformly and infeasible draws left out.
    mean_change: that, less the mean of the first value.
    max_change: the largest change, up or down, from the first value to this one with all other choices kept, over all
    choices that are feasible with either.
    """

    variable: str
    mean: Floats
    mean_change: Floats
    max_change: Floats


def sensitivity(compiled: CompiledSpace) -> tuple[Sensitivity, ...]:
    """Return a Sensitivity for each variable of the space, in order. A gated variable counts only where it is active.

    Takes one elimination over the whole space a variable: well below a second for OFA's spaces, a few for APQ's.
    """
    factors = [Factor(scope=(), values=np.asarray(compiled.fixed)), *compiled.factors]
    even = [np.full(size, 1 / size) for size in compiled.space.sizes]
    found = []
    for number, variable in enumerate(compiled.space.variables):
        mean = mean_sum(factors, even, keep=(number,))
        found.append(
            Sensitivity(
                variable=variable.name,
                mean=mean,
                mean_change=mean - mean[0],
                max_change=_largest_change(factors, len(variable.values), number),
            )
        )
    return tuple(found)


def mean_sum(factors: Sequence[Factor], chances: Sequence[Floats], *, keep: tuple[int, ...] = ()) -> Floats:
    """Return the mean sum of the factors over the assignments where it is finite; NaN where there is none.

    Variables are independent, `chances` has a vector of probabilities for each. Shape: the values of those in `keep`.
    """
    # With e * e = 0, the product of (1 + cost e) over factors is 1 + (sum of costs) e; summed over assignments, each
    # with its probability, that is P(feasible) + E[cost; feasible] e. As imaginary numbers of a step whose square is
    # 0 in double precision, numpy multiplies such pairs exactly.
    # Source: for the pairs, Li and Eisner, First- and second-order expectation semirings, EMNLP 2009.
    pairs = []
    for factor in factors:
        finite = np.isfinite(factor.values)
        costs = np.where(finite, factor.values, 0.0)
        pairs.append(Factor(scope=factor.scope, values=finite * (1.0 + 1j * _STEP * costs)))
    pairs += [Factor(scope=(v,), values=vector.astype(complex)) for v, vector in enumerate(chances)]
    total = joined(reduced(pairs, combine=np.multiply, reduce=np.add, keep=keep), keep, np.multiply)
    possible = total.real > 0
    mean = np.full(total.shape, np.nan)
    mean[possible] = total.imag[possible] / _STEP / total.real[possible]
    return mean


def _largest_change(factors: Sequence[Factor], size: int, number: int) -> Floats:
    rises, falls = (_extreme_change(factors, size, number, sign) for sign in (1.0, -1.0))
    largest = np.maximum(rises, falls)
    return np.where(np.isfinite(largest), largest, np.nan)


def _extreme_change(factors: Sequence[Factor], size: int, number: int, sign: float) -> Floats:
    """Return the largest of `sign` times the change from the first value; -inf where no arch has both."""
    changes = [Factor(scope=(number,), values=np.zeros(size))]
    for factor in factors:
        finite = np.isfinite(factor.values)
        costs = np.where(finite, factor.values, 0.0)
        if number in factor.scope:
            axis = factor.scope.index(number)
            both = finite & finite.take([0], axis=axis)
            change = sign * (costs - costs.take([0], axis=axis))
            changes.append(Factor(scope=factor.scope, values=np.where(both, change, -np.inf)))
        elif not finite.all():  # costs that are the same before and after matter only where they forbid
            changes.append(Factor(scope=factor.scope, values=np.where(finite, 0.0, -np.inf)))
    left = reduced(changes, combine=np.add, reduce=np.maximum, keep=(number,))
    return joined(left, (number,), np.add)
