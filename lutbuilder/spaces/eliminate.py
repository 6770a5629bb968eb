"""Variable elimination: exact sums, minima and maxima over all assignments without walking through them.

A factor is a table over a few variables. Eliminating a variable combines the factors that mention it and reduces its
axis away; what is left is the answer. With (multiply, add) it counts, with (add, minimum) it finds the cheapest.
Source: Dechter, Bucket elimination, Artificial Intelligence 113 (1999).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
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

    `combine` must distribute over `reduce`.
    """
    left = reduced(factors, combine=combine, reduce=reduce)
    # An array of the factors' dtype, not loose scalars: those would turn Python integers into int64, which overflows.
    rest = np.array([factor.values[()] for factor in left], dtype=np.result_type(*(factor.values for factor in left)))
    return combine.reduce(rest)


def reduced(
    factors: Iterable[Factor],
    *,
    combine: np.ufunc,
    reduce: np.ufunc,
    keep: Collection[int] = (),
    trail: list[Factor] | None = None,
) -> list[Factor]:
    """Return factors over the variables of `keep` alone: what `factors` combine to, all others reduced away.

    The next variable is always the one whose joint table is smallest. Each joint table is appended to `trail`, the
    variable it was made to eliminate as its last axis.
    """
    left = dict(enumerate(factors))
    sizes = {v: size for factor in left.values() for v, size in zip(factor.scope, factor.values.shape, strict=True)}
    mentions: dict[int, list[int]] = {v: [] for v in sizes}
    for number, factor in left.items():
        for v in factor.scope:
            mentions[v].append(number)

    def joint_scope(variable: int) -> tuple[int, ...]:
        """The scope of the table that combining every factor of `variable` gives, `variable` last."""
        others = dict.fromkeys(v for number in mentions[variable] for v in left[number].scope)
        del others[variable]
        return (*others, variable)

    scopes = {v: joint_scope(v) for v in sizes if v not in keep}
    cells = {v: math.prod(sizes[u] for u in scope) for v, scope in scopes.items()}
    for new in range(len(left), len(left) + len(scopes)):
        variable = min(cells, key=lambda v: (cells[v], v))
        scope = scopes[variable]
        touched = mentions.pop(variable)
        joint = Factor(scope=scope, values=joined([left.pop(number) for number in touched], scope, combine))
        if trail is not None:
            trail.append(joint)
        left[new] = Factor(
            scope=scope[:-1], values=np.asarray(reduce.reduce(joint.values, axis=-1), dtype=joint.values.dtype)
        )
        del scopes[variable], cells[variable]
        for v in scope[:-1]:
            mentions[v] = [number for number in mentions[v] if number not in touched] + [new]
        for v in scope[:-1]:  # only now that every list is right again
            if v in cells:
                scopes[v] = joint_scope(v)
                cells[v] = math.prod(sizes[u] for u in scopes[v])
    return list(left.values())


def cheapest(factors: Iterable[Factor]) -> tuple[float, dict[int, int]]:
    """Return the lowest sum over the factors, and value numbers by variable number that attain it.

    Variables that no factor mentions are left out. Where the sum is +inf every assignment is as good.
    """
    trail: list[Factor] = []
    left = reduced(factors, combine=np.add, reduce=np.minimum, trail=trail)
    chosen: dict[int, int] = {}
    for joint in reversed(trail):  # whatever else is in a joint was eliminated after it
        *others, variable = joint.scope
        chosen[variable] = int(joint.values[tuple(chosen[v] for v in others)].argmin())
    return float(sum(factor.values[()] for factor in left)), chosen


def merged(factors: Iterable[Factor]) -> list[Factor]:
    """Return fewer factors of the same sum: each is added to one whose scope holds its own, where there is one."""
    kept: list[Factor] = []
    for factor in sorted(factors, key=lambda f: -len(f.scope)):
        for number, host in enumerate(kept):
            if set(factor.scope) <= set(host.scope):
                kept[number] = Factor(scope=host.scope, values=joined([host, factor], host.scope, np.add))
                break
        else:
            kept.append(factor)
    return kept


def joined(factors: Iterable[Factor], scope: tuple[int, ...], combine: np.ufunc) -> NDArray[Any]:
    """Return `combine` over the factors as one table with the axes of `scope`, which holds exactly their variables."""
    return np.asarray(fold(combine, (_spread(factor, scope) for factor in factors)))


def _spread(factor: Factor, scope: tuple[int, ...]) -> NDArray[Any]:
    """The factor's values with axes in the order of `scope`, length 1 where it does not mention a variable."""
    present = [v for v in scope if v in factor.scope]
    ordered: NDArray[Any] = factor.values.transpose([factor.scope.index(v) for v in present])
    sizes = dict(zip(present, ordered.shape, strict=True))
    return ordered.reshape([sizes.get(v, 1) for v in scope])
