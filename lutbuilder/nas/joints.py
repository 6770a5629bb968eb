"""Joints: the costs of several sites added into one array, so that an arch costs a few array elements, not one a site.

This is the inner loop of every search. It runs on one core, over chunks of the archs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.spaces.eliminate import Factor, joined
from lutbuilder.spaces.space import Variable
from lutbuilder_agent.errors import SpecError

Floats = NDArray[np.float64]
# An index into fewer cells fits uint16, of which a vector register holds many. 512 KiB of float64 are half an L2
# cache: an element costs 1.3 ns there and 1.2 ns from 4096 cells in L1 (EPYC 9xx4, 2026), so fewer joints win.
CELLS = 65_536
CHUNK = 65_536  # archs at a time; within 5 % of the best of 2k to 64k on the same machine, packed or not


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joint:
    """Costs of neighbouring sites in one flat array, the last variable of `scope` varying fastest."""

    scope: tuple[int, ...]
    costs: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joints:
    """A sum of factors over `variables`, ready to be looked up for many rows of value numbers."""

    variables: tuple[Variable, ...]
    fixed: float  # what every row pays
    parts: tuple[Joint, ...]

    @classmethod
    def of(cls, factors: Sequence[Factor], variables: tuple[Variable, ...], fixed: float) -> Joints:
        """Lay the factors out: neighbours are added into one table while it stays below 65,536 cells."""
        grown: list[Factor] = []
        for factor in factors:
            if not factor.scope:
                fixed += float(factor.values)
                continue
            scope = tuple(dict.fromkeys([*(grown[-1].scope if grown else ()), *factor.scope]))
            if grown and math.prod(len(variables[v].values) for v in scope) < CELLS:
                grown[-1] = Factor(scope=scope, values=joined([grown[-1], factor], scope, np.add))
            else:
                grown.append(factor)
        parts = tuple(Joint(scope=f.scope, costs=np.ascontiguousarray(f.values, np.float64).ravel()) for f in grown)
        return cls(variables=variables, fixed=fixed, parts=parts)

    def look_up(self, rows: NDArray[Any]) -> Floats:
        """Return the sum for each row; shapes (N, n_variables) of any integer type and (N,).

        Raises SpecError naming a variable whose value number is out of range.
        """
        costs = np.full(len(rows), self.fixed)
        scratch = np.empty(min(len(rows), CHUNK), np.intp), np.empty(min(len(rows), CHUNK))
        for start in range(0, len(rows), CHUNK):
            self._add(rows[start : start + CHUNK], costs[start : start + CHUNK], *scratch)
        return costs

    def _add(self, rows: NDArray[Any], costs: Floats, index: NDArray[np.intp], part: Floats) -> None:
        """Add every joint's cost to `costs`, in place; `index` and `part` are as long at least."""
        index, part = index[: len(rows)], part[: len(rows)]
        # Columns first, so that index arithmetic runs over contiguous memory.
        narrow = rows.itemsize == 1 or rows.dtype == np.int16
        columns = rows.T.astype(np.int16 if narrow else rows.dtype, order="C")
        columns = columns.view(f"u{columns.itemsize}")  # a negative number is now a huge one: one pass finds both
        self._check_range(rows, columns)
        for joint in self.parts:
            dtype: type[np.uint16] | type[np.intp] = np.uint16 if joint.costs.size < CELLS else np.intp
            first, *others = joint.scope
            number = columns[first].astype(dtype)
            for variable in others:
                number *= dtype(len(self.variables[variable].values))
                number += columns[variable].astype(dtype, copy=False)
            look_up(joint.costs, number, index, part)
            costs += part

    def _check_range(self, rows: NDArray[Any], columns: NDArray[Any]) -> None:
        highest = columns.max(axis=1, initial=0)
        for number, (variable, top) in enumerate(zip(self.variables, highest.tolist(), strict=True)):
            if top >= len(variable.values):
                wrong = next(n for n in rows[:, number].tolist() if not 0 <= n < len(variable.values))
                raise SpecError(f"{variable.name} is a value number from 0 to {len(variable.values) - 1}, got {wrong}")


def look_up(costs: Floats, numbers: NDArray[Any], index: NDArray[np.intp], part: Floats) -> None:
    """Fill `part` with `costs[numbers]`; `index` is room for as many numbers. They must be in range."""
    np.copyto(index, numbers)  # take wants this type, and would otherwise allocate it anew each time
    costs.take(index, out=part, mode="clip")  # without "clip" it checks the range again and copies through a buffer
