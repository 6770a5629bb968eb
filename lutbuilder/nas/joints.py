"""Joints: the costs of several sites added into one array, so that an arch costs a few array elements, not one a site.

This is the inner loop of every search. It runs on one core, over chunks of the archs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
# Of up to so many archs all indices are one product of matrices: calls would cost more than the arithmetic.
_FEW = 2_000
_PRODUCT = 1 << 17  # multiplications of one product: BLAS wakes no threads for fewer than 2^18
_LAID_OUT = 1 << 20  # cells of all joints, laid out once more for that: 8 MiB; and float32 counts them exactly
CHUNK = 65_536  # archs at a time; within 5 % of the best of 2k to 64k on the same machine, packed or not


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joint:
    """Costs of neighbouring sites in one flat array, the last variable of `scope` varying fastest."""

    scope: tuple[int, ...]
    costs: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
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
        if rows.dtype.kind == "i" and self._largest > 1 << 8 * rows.itemsize - 1:
            rows = rows.astype(np.int64)  # so that a negative number, looked at as an unsigned one, is too large
        costs = np.full(len(rows), self.fixed)
        if len(rows) <= _FEW and sum(joint.costs.size for joint in self.parts) <= _LAID_OUT:
            self._add_few(rows, costs)
            return costs
        scratch = np.empty(min(len(rows), CHUNK), np.intp), np.empty(min(len(rows), CHUNK))
        for start in range(0, len(rows), CHUNK):
            self._add(rows[start : start + CHUNK], costs[start : start + CHUNK], *scratch)
        return costs

    def _add(self, rows: NDArray[Any], costs: Floats, index: NDArray[np.intp], part: Floats) -> None:
        """Add every joint's cost to `costs`, in place; `index` and `part` are as long at least."""
        index, part = index[: len(rows)], part[: len(rows)]
        columns = _columns(rows.view(f"u{rows.itemsize}"))
        self._check_range(rows, columns)
        columns = columns.astype(np.uint16 if self._largest <= 1 << 16 else np.intp, copy=False)
        for joint, (dtype, first, steps) in zip(self.parts, self._steps, strict=True):
            number = columns[first].astype(dtype)
            for variable, size in steps:
                number *= size
                number += columns[variable]
            look_up(joint.costs, number, index, part)
            costs += part

    def _add_few(self, rows: NDArray[Any], costs: Floats) -> None:
        """The same in few calls, the sums in the same order: an arch costs the same to the last bit."""
        chunk = max(1, _PRODUCT // max(self._strides.size, 1))
        for start in range(0, len(rows), chunk):
            part = costs[start : start + chunk]
            columns = np.ascontiguousarray(rows[start : start + chunk].T)
            self._check_range(rows[start : start + chunk], columns.view(f"u{columns.itemsize}"))
            numbers = (self._strides @ columns.astype(np.float32)).astype(np.intp)
            numbers += self._starts
            for of_joint in self._flat.take(numbers):
                part += of_joint

    @cached_property
    def _steps(self) -> list[tuple[type[Any], int, list[tuple[int, Any]]]]:
        """How each joint's index is built: its type, its first variable, then the others with how many values each."""
        steps = []
        for joint in self.parts:
            dtype = np.uint16 if joint.costs.size < CELLS else np.intp
            steps.append((dtype, joint.scope[0], [(v, dtype(self._sizes[v])) for v in joint.scope[1:]]))
        return steps

    @cached_property
    def _strides(self) -> NDArray[np.float32]:
        """What a value number adds to where each joint is looked up, shape (n_joints, n_variables)."""
        strides = np.zeros((len(self.parts), len(self.variables)), np.float32)
        for number, joint in enumerate(self.parts):
            sizes = [len(self.variables[v].values) for v in joint.scope]
            strides[number, list(joint.scope)] = np.cumprod([1, *sizes[:0:-1]])[::-1]
        return strides

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        """Where each joint begins in `_flat`, shape (n_joints, 1)."""
        ends = np.cumsum([0, *(joint.costs.size for joint in self.parts)])
        return ends[: len(self.parts), None]

    @cached_property
    def _flat(self) -> Floats:
        """All joints end to end."""
        return np.concatenate([np.empty(0), *(joint.costs for joint in self.parts)])

    @cached_property
    def _largest(self) -> int:
        return max((len(variable.values) for variable in self.variables), default=0)

    @cached_property
    def _sizes(self) -> NDArray[np.intp]:
        return np.array([len(variable.values) for variable in self.variables], dtype=np.intp)

    def _check_range(self, rows: NDArray[Any], columns: NDArray[Any]) -> None:
        highest = columns.max(axis=1, initial=0)
        if not (highest >= self._sizes).any():
            return
        for number, (variable, top) in enumerate(zip(self.variables, highest.tolist(), strict=True)):
            if top >= len(variable.values):
                wrong = next(n for n in rows[:, number].tolist() if not 0 <= n < len(variable.values))
                raise SpecError(f"{variable.name} is a value number from 0 to {len(variable.values) - 1}, got {wrong}")


def _columns(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the transpose of `rows`, unsigned numbers, in C order: index arithmetic wants contiguous memory."""
    if rows.itemsize > 1 or not rows.flags.c_contiguous:
        return np.ascontiguousarray(rows.T)
    # Two bytes at a time: what numpy takes for a strided copy is per element, whatever its size.
    length, width = rows.shape
    even = width - width % 2
    pairs = np.ndarray((even // 2, length), "<u2", rows, strides=(2, width)).copy()
    columns = np.empty((width, length), np.uint16)
    np.bitwise_and(pairs, 0xFF, out=columns[:even:2])
    np.right_shift(pairs, 8, out=columns[1:even:2])
    columns[even:] = rows[:, even:].T
    return columns


def look_up(costs: Floats, numbers: NDArray[Any], index: NDArray[np.intp], part: Floats) -> None:
    """Fill `part` with `costs[numbers]`; `index` is room for as many numbers. They must be in range."""
    np.copyto(index, numbers)  # take wants this type, and would otherwise allocate it anew each time
    costs.take(index, out=part, mode="clip")  # without "clip" it checks the range again and copies through a buffer
