"""PackedArchs: archs in the fewest bytes that still index a table directly; what a search of many millions keeps.

Variables are grouped so that every site lies within a group; an arch is one code of 8 or 16 bits a group, and its
cost one table element a group: 8 bytes an arch of ProxylessNAS, 10 of OFA's MobileNetV3 with five resolutions. Codes
are numbers of canonical combinations, so the layers that a shallow stage does not have take no room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.joints import CELLS, CHUNK, Floats, look_up
from lutbuilder.spaces.eliminate import Factor, joined
from lutbuilder.spaces.space import SearchSpace
from lutbuilder_agent.errors import ShapeError, SpecError

Scope = tuple[int, ...]
_LISTED_CELLS = 1 << 18  # combinations of a group, canonical or not, that are looked through: 2 MiB a table over them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Variables that share a code. `values`, shape (codes, variables): the value numbers each code stands for.

    `codes` gives the code of each combination, the last variable varying fastest; 0 where it is not canonical.
    """

    scope: Scope
    values: NDArray[np.int16]
    codes: NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """How the archs of one space are packed; equal for every table the space is compiled with."""

    space: SearchSpace
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, space: SearchSpace) -> Packing:
        """Return the packing of `space`. Codes have up to 16 bits, more only where one site alone needs them."""
        plan = _Plan(space)
        return cls(space=space, groups=tuple(plan.group(scope) for scope in plan.scopes()))

    def pack(self, archs: NDArray[Any]) -> PackedArchs:
        """Return canonical encodings (N, n_variables) packed. Raises ShapeError, or SpecError out of range."""
        columns = tuple(np.empty(len(archs), group.codes.dtype) for group in self.groups)
        for start in range(0, max(len(archs), 1), CHUNK):  # an empty array is checked too
            rows = self.space.canonical(archs[start : start + CHUNK]).T.astype(np.intp, order="C")
            for column, group in zip(columns, self.groups, strict=True):
                cells = np.zeros(rows.shape[1], np.intp)
                for number in group.scope:
                    cells *= self.space.sizes[number]
                    cells += rows[number]
                column[start : start + CHUNK] = group.codes.take(cells)
        return PackedArchs(packing=self, columns=columns)

    def tables(self, factors: Iterable[Factor], fixed: float) -> tuple[Floats, ...]:
        """Return a cost for each code of each group; an arch costs their sum. `fixed` is in the first."""
        sums = [np.zeros(len(group.values)) for group in self.groups]
        sums[0] += fixed
        for factor in factors:
            number = next(n for n, group in enumerate(self.groups) if set(factor.scope) <= set(group.scope))
            group = self.groups[number]
            sums[number] += factor.values[tuple(group.values[:, group.scope.index(v)] for v in factor.scope)]
        return tuple(sums)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedArchs:
    """N archs, a column of codes for each group of `packing`; made by `CompiledSpace.pack`."""

    packing: Packing
    columns: tuple[NDArray[Any], ...]

    def __post_init__(self) -> None:
        name, groups = self.packing.space.name, self.packing.groups
        length = len(self.columns[0]) if self.columns else 0
        wanted = [(group.codes.dtype, (length,)) for group in groups]
        if [(column.dtype, column.shape) for column in self.columns] != wanted:
            raise ShapeError(f"packed archs of space {name!r} are {len(groups)} columns of one length")
        for column, group in zip(self.columns, groups, strict=True):
            if column.max(initial=0) >= len(group.values):
                raise SpecError(f"a code of space {name!r} is below {len(group.values)}, got {column.max()}")

    def __len__(self) -> int:
        return len(self.columns[0])

    def unpack(self) -> NDArray[np.int16]:
        """Return the canonical encodings, shape (N, n_variables)."""
        archs = np.zeros((len(self), len(self.packing.space.sizes)), np.int16)
        for column, group in zip(self.columns, self.packing.groups, strict=True):
            archs[:, group.scope] = group.values[column]
        return archs

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for column in self.columns)


def packed_costs(packed: PackedArchs, tables: Sequence[Floats]) -> Floats:
    """Return the cost of each arch, shape (N,); `tables` are `packed.packing.tables(...)`."""
    costs = np.empty(len(packed))
    index, part = np.empty(min(len(packed), CHUNK), np.intp), np.empty(min(len(packed), CHUNK))
    for start in range(0, len(packed), CHUNK):
        rows = slice(start, start + CHUNK)
        chunk = costs[rows]
        room = index[: len(chunk)]
        look_up(tables[0], packed.columns[0][rows], room, chunk)
        for table, column in zip(tables[1:], packed.columns[1:], strict=True):
            look_up(table, column[rows], room, part[: len(chunk)])
            chunk += part[: len(chunk)]
    return costs


class _Plan:
    """Chooses the groups. Every site's scope is within one; so is every variable, or it could not be unpacked."""

    def __init__(self, space: SearchSpace) -> None:
        self._sizes = space.sizes
        self._pins = space.pins
        scopes = [tuple(sorted(space.positions[name] for name in site.scope)) for site in space.sites]
        scopes += [tuple(sorted(factor.scope)) for factor in space.forbidden]
        used = {v for scope in scopes for v in scope}
        scopes += [(v,) for v in range(len(self._sizes)) if v not in used]
        widest = sorted(dict.fromkeys(filter(None, scopes)), key=len, reverse=True)
        whole = [s for n, s in enumerate(widest) if not any(set(s) <= set(host) for host in widest[:n])]
        self._scopes = sorted(whole, key=scopes.index)
        self._counts: dict[Scope, int] = {}

    def scopes(self) -> list[Scope]:
        """Return the scopes of the groups: in site order or largest first, whichever takes fewer bytes."""
        largest_first = sorted(self._scopes, key=self._codes, reverse=True)
        return min((self._filled(order) for order in (self._scopes, largest_first)), key=self._bytes)

    def group(self, scope: Scope) -> Group:
        canonical = self._canonical(scope).ravel()
        cells = np.flatnonzero(canonical)
        codes = np.zeros(canonical.size, dtype=_code_type(len(cells)))
        codes[cells] = np.arange(len(cells))
        values = np.stack(np.unravel_index(cells, [self._sizes[v] for v in scope]), axis=-1).astype(np.int16)
        return Group(scope=scope, values=values, codes=codes)

    def _filled(self, order: Sequence[Scope]) -> list[Scope]:
        """Put each scope into the group that grows least by it, of equals the one it fills best, or into a new one."""
        groups: list[Scope] = []
        for scope in order:
            candidates = []
            for number, group in enumerate(groups):
                union = tuple(sorted({*group, *scope}))
                if (codes := self._codes(union)) <= CELLS:
                    candidates.append((codes / self._codes(group), -codes, number, union))
            if candidates:
                _, _, number, union = min(candidates)
                groups[number] = union
            else:
                groups.append(scope)
        return groups

    def _bytes(self, groups: Sequence[Scope]) -> tuple[int, int]:
        return sum(_code_type(self._codes(group)).itemsize for group in groups), len(groups)

    def _codes(self, scope: Scope) -> int:
        """How many combinations of the variables are canonical, as far as their gates are among them."""
        if scope not in self._counts:
            cells = math.prod(self._sizes[v] for v in scope)
            large = cells > _LISTED_CELLS and scope not in self._scopes
            self._counts[scope] = cells if large else int(self._canonical(scope).sum())
        return self._counts[scope]

    def _canonical(self, scope: Scope) -> NDArray[np.bool_]:
        everything = Factor(scope=scope, values=np.ones([self._sizes[v] for v in scope], np.bool_))
        inside = [pin for pin in self._pins if set(pin.scope) <= set(scope)]
        return joined([everything, *inside], scope, np.logical_and)


def _code_type(codes: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if codes <= 1 << 8 else np.uint16 if codes <= 1 << 16 else np.uint32)
