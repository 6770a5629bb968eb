"""Variable elimination: exact sums, minima and maxima over all assignments without walking through them.

A factor is a table over a few variables. Eliminating a variable combines the factors that mention it and reduces its
axis away; what is left is the answer. With (multiply, add) it counts, with (add, minimum) it finds the cheapest.
Source: Dechter, Bucket elimination, Artificial Intelligence 113 (1999).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce as fold
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factor:
    """A table with one axis for each variable number of `scope`, in that order; dtype object holds Python integers."""

    scope: tuple[int, ...]
    values: NDArray[Any]


def eliminate(factors: Iterable[Factor], *, combine: np.ufunc, reduce: np.ufunc) -> Any:
    """Return `reduce` over all assignments of `combine` over all factors, a scalar of the factors' dtype.

    `combine` must distribute over `reduce`. The next variable is always the one whose joint table is smallest.
    """
    left = list(factors)
    while open_variables := {variable: None for factor in left for variable in factor.scope}:
        joints = {variable: _joint_scope(left, variable) for variable in open_variables}
        variable = min(joints, key=lambda v: (math.prod(joints[v].values()), v))
        touched = [factor for factor in left if variable in factor.scope]
        scope = tuple(joints[variable])
        joint = joined(touched, scope, combine)
        left = [factor for factor in left if variable not in factor.scope]
        left.append(
            Factor(
                scope=tuple(v for v in scope if v != variable),
                values=np.asarray(reduce.reduce(joint, axis=scope.index(variable)), dtype=joint.dtype),
            )
        )
    # An array of the factors' dtype, not loose scalars: those would turn Python integers into int64, which overflows.
    rest = np.array([factor.values[()] for factor in left], dtype=np.result_type(*(factor.values for factor in left)))
    return combine.reduce(rest)


def joined(factors: Iterable[Factor], scope: tuple[int, ...], combine: np.ufunc) -> NDArray[Any]:
    """Return `combine` over the factors as one table with the axes of `scope`, which holds exactly their variables."""
    return np.asarray(fold(combine, (_spread(factor, scope) for factor in factors)))


def _joint_scope(factors: list[Factor], variable: int) -> dict[int, int]:
    """Variables and sizes of the table that combining every factor of `variable` gives."""
    return {
        v: size
        for factor in factors
        if variable in factor.scope
        for v, size in zip(factor.scope, factor.values.shape, strict=True)
    }


def _spread(factor: Factor, scope: tuple[int, ...]) -> NDArray[Any]:
    """The factor's values with axes in the order of `scope`, length 1 where it does not mention a variable."""
    present = [v for v in scope if v in factor.scope]
    ordered: NDArray[Any] = factor.values.transpose([factor.scope.index(v) for v in present])
    sizes = dict(zip(present, ordered.shape, strict=True))
    return ordered.reshape([sizes.get(v, 1) for v in scope])
