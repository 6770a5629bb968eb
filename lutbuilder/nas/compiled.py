"""CompiledSpace: a search space joined with a cost table, one dense array a site; millions of archs per second.

`compile_space` reads every row once; after that no op is looked up again. Costs are float64 in the unit of the chosen
column, ms unless stated otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lutbuilder.op import OpSpec
from lutbuilder.spaces.eliminate import Factor, eliminate, joined
from lutbuilder.spaces.space import Assignment, SearchSpace
from lutbuilder_agent.errors import OpNotInLut, ShapeError, SpecError, UnknownName

Floats = NDArray[np.float64]
INFEASIBLE = ("unsupported", "failed")  # exec_status of a row that has a reason instead of a cost
NET_COLUMNS = ("latency_ms", "latency_lo_ms", "latency_hi_ms", "p90_ms")  # net of the overhead a network pays once
_JOINT_CELLS = 4096  # 32 KiB of float64, an L1 data cache
_CHUNK = 32_768  # archs at a time: their columns stay in L2; within 5 % of the best of 1k to 64k on an EPYC 9xx4, 2026
_NAMED = 200  # ops one error message names


class CostRow(Protocol):
    """What a compiled space reads of a single row."""

    @property
    def call_overhead_ms(self) -> float | None: ...


class CostTable(Protocol):
    """What `compile_space` needs of a LUT. Everything but `in` raises OpNotInLut for an op without a row.

    `column` gives NaN where a row has a null, `texts` None.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def content_hash(self) -> str: ...
    def __contains__(self, op: object) -> bool: ...
    def __getitem__(self, op: OpSpec) -> CostRow: ...
    def column(self, ops: Sequence[OpSpec], name: str) -> Floats: ...
    def texts(self, ops: Sequence[OpSpec], name: str) -> tuple[str | None, ...]: ...


def _always(op: OpSpec) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTable:
    """A cost table that is a function: MACs, a closed form, a test's known truth. Each column gives `cost(op)`.

    `covers` says which ops have a row, `runs` which of them did not fail.
    """

    name: str
    cost: Callable[[OpSpec], float]
    call_overhead_ms: float | None = None
    covers: Callable[[OpSpec], bool] = _always
    runs: Callable[[OpSpec], bool] = _always
    version: int = 0
    content_hash: str = ""

    def __contains__(self, op: object) -> bool:
        return isinstance(op, OpSpec) and self.covers(op)

    def __getitem__(self, op: OpSpec) -> FunctionTable:
        if op not in self:
            raise OpNotInLut(f"{op.label()} is not in {self.name}")
        return self  # every row has the same call overhead

    def column(self, ops: Sequence[OpSpec], name: str) -> Floats:
        """Return `cost` of each op, whatever column is asked for; NaN where it failed."""
        rows = [self[op] for op in ops]
        return np.array([row.cost(op) if row.runs(op) else math.nan for op, row in zip(ops, rows, strict=True)])

    def texts(self, ops: Sequence[OpSpec], name: str) -> tuple[str | None, ...]:
        """Return `exec_status` (native or failed) or `evidence` (modelled) of each op; no other text is known."""
        if name == "exec_status":
            return tuple("native" if self[op].runs(op) else "failed" for op in ops)
        return ("modelled" if name == "evidence" else None,) * len(ops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Which table and which space a set of costs came from."""

    lut: str
    lut_version: int
    lut_hash: str
    space: str
    space_key: str
    column: str
    evidence: tuple[tuple[str, int], ...]  # how many of the rows used are measured, modelled, ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteCost:
    """Costs of one site: an axis for each variable number of `scope`. A constraint is a site of 0 and +inf."""

    name: str
    scope: tuple[int, ...]
    costs: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Joint:
    """Costs of neighbouring sites added into one flat array, the last variable of `scope` varying fastest."""

    scope: tuple[int, ...]
    costs: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class CompiledSpace:
    """Costs of every site of `space`, and the sums search needs. Immutable; safe from any thread.

    Infeasible choices (a row that failed or is unsupported, a broken constraint) cost +inf. `call_overhead_ms` is added
    once to every network; it is 0 if the caller left it out or the column does not lack it.
    """

    space: SearchSpace
    provenance: Provenance
    sites: tuple[SiteCost, ...]
    call_overhead_ms: float

    @cached_property
    def infeasible(self) -> tuple[str, ...]:
        """Labels of the ops that failed or are unsupported, and names of the constraints."""
        found: dict[str, None] = {}
        for number, site in enumerate(self.sites):
            ops = self.space.site_ops[number] if number < len(self.space.sites) else ()
            for cell in np.flatnonzero(np.isinf(site.costs)).tolist():
                op = ops[cell] if ops else None
                found[op.label() if op else site.name] = None
        return tuple(found)

    @cached_property
    def fixed(self) -> float:
        """What every arch pays, call overhead included, in the unit of the column."""
        return self.call_overhead_ms + sum(float(site.costs) for site in self.sites if not site.scope)

    def predict(self, archs: NDArray[Any]) -> Floats:
        """Return the cost of each arch: the fixed part plus one array element a site, summed.

        Shapes: archs (N, n_variables), canonical encodings of any integer type (int8 is fastest); result (N,).
        An arch with an infeasible choice costs +inf. Raises ShapeError, or SpecError naming a variable whose value
        number is out of range. Runs on one core.
        """
        if archs.ndim != 2 or archs.shape[1] != len(self.space.sizes) or archs.dtype.kind not in "iu":
            raise ShapeError(
                f"predict takes integers of shape (N, {len(self.space.sizes)}) for space {self.space.name!r}, "
                f"got {archs.dtype} of shape {archs.shape}"
            )
        costs = np.full(len(archs), self.fixed)
        for start in range(0, len(archs), _CHUNK):
            self._add_costs(archs[start : start + _CHUNK], costs[start : start + _CHUNK])
        return costs

    def expected(self, probabilities: Sequence[Floats]) -> float:
        """Return the mean cost when every variable is drawn independently; one probability vector a variable.

        One-hot vectors give `predict`. A positive probability of an infeasible choice gives +inf.
        Raises ShapeError naming the variable whose vector has another length.
        """
        if len(probabilities) != len(self.space.sizes):
            raise ShapeError(f"one vector for each of {len(self.space.sizes)} variables, got {len(probabilities)}")
        vectors = [np.asarray(p, dtype=np.float64) for p in probabilities]
        for variable, vector in zip(self.space.variables, vectors, strict=True):
            if vector.shape != (len(variable.values),):
                raise ShapeError(f"{variable.name} has {len(variable.values)} values, got a vector of {vector.shape}")
        total = self.fixed
        for site in self.sites:
            if site.scope:
                mass = np.ones(())
                for number in site.scope:
                    mass = np.multiply.outer(mass, vectors[number])
                possible = mass > 0  # 0 * inf is NaN, and a choice that is never taken costs nothing
                total += float((mass[possible] * site.costs[possible]).sum())
        return total

    def min_over(self, partial: Assignment | None = None) -> float:
        """Return the exact lowest cost over all completions of `partial`; +inf if none is feasible."""
        return self._extreme(partial or {}, np.minimum, math.inf)

    def max_over(self, partial: Assignment | None = None) -> float:
        """Return the exact highest cost over all feasible completions of `partial`; -inf if none is feasible."""
        return self._extreme(partial or {}, np.maximum, -math.inf)

    def with_costs(self, flat: Floats, *, call_overhead_ms: float, provenance: Provenance) -> CompiledSpace:
        """Return this space over other costs, laid out as `flat`. Raises ShapeError if there are more or fewer."""
        if flat.shape != self.flat.shape:
            raise ShapeError(f"space {self.space.name!r} has {self.flat.size} site costs, got shape {flat.shape}")
        ends = np.cumsum([site.costs.size for site in self.sites])[:-1]
        parts = np.split(flat.astype(np.float64), ends)
        sites = tuple(
            replace(site, costs=_frozen(part.reshape(site.costs.shape)))
            for site, part in zip(self.sites, parts, strict=True)
        )
        return replace(self, sites=sites, call_overhead_ms=call_overhead_ms, provenance=provenance)

    @cached_property
    def flat(self) -> Floats:
        """All site costs end to end, each site's in the order of `SearchSpace.site_ops`."""
        return _frozen(np.concatenate([site.costs.ravel() for site in self.sites]))

    @cached_property
    def _joints(self) -> tuple[_Joint, ...]:
        """Neighbouring sites merged while their joint array fits an L1 cache: 21 gathers become 6 for ProxylessNAS."""
        joints: list[Factor] = []
        for factor in self._factors:
            scope = tuple(dict.fromkeys([*(joints[-1].scope if joints else ()), *factor.scope]))
            if joints and math.prod(self.space.sizes[v] for v in scope) <= _JOINT_CELLS:
                joints[-1] = Factor(scope=scope, values=joined([joints[-1], factor], scope, np.add))
            else:
                joints.append(factor)
        return tuple(_Joint(joint.scope, joint.values.ravel()) for joint in joints)

    @property
    def _factors(self) -> list[Factor]:
        return [Factor(scope=site.scope, values=site.costs) for site in self.sites if site.scope]

    def _add_costs(self, archs: NDArray[Any], costs: Floats) -> None:
        """Add every joint's cost to `costs`, in place."""
        # Columns first, so that index arithmetic runs over contiguous memory; int16 holds any index into a joint array
        # of 4096 and twice as many fit a vector register as with int32.
        exact = archs.T.astype(np.int16 if archs.itemsize == 1 or archs.dtype == np.int16 else archs.dtype, order="C")
        self._check_range(exact)
        for joint in self._joints:
            dtype = np.int16 if joint.costs.size <= np.iinfo(np.int16).max else np.intp
            first, *others = joint.scope
            index = exact[first].astype(dtype)
            for number in others:
                index *= dtype(self.space.sizes[number])
                index += exact[number].astype(dtype, copy=False)
            # "clip" skips a second bounds check: the range is checked above.
            costs += joint.costs.take(index.astype(np.intp, copy=False), mode="clip")

    def _check_range(self, columns: NDArray[Any]) -> None:
        # Seen as unsigned, a negative number is a huge one: one pass finds both.
        highest = columns.view(f"u{columns.itemsize}").max(axis=1, initial=0)
        for variable, column, top in zip(self.space.variables, columns, highest, strict=True):
            if top >= len(variable.values):
                wrong = next(number for number in column.tolist() if not 0 <= number < len(variable.values))
                raise SpecError(f"{variable.name} is a value number from 0 to {len(variable.values) - 1}, got {wrong}")

    def _extreme(self, partial: Assignment, reduce: np.ufunc, nothing: float) -> float:
        factors = [
            Factor(scope=f.scope, values=np.where(np.isfinite(f.values), f.values, nothing)) for f in self._factors
        ]
        for name, value in partial.items():
            if name not in self.space.positions:
                raise UnknownName(f"space {self.space.name!r} has no variable {name!r}")
            number = self.space.positions[name]
            values = self.space.variables[number].values
            if value not in values:
                raise SpecError(f"{name} is one of {values}, got {value!r}")
            chosen = np.arange(len(values)) == values.index(value)
            factors.append(Factor(scope=(number,), values=np.where(chosen, 0.0, nothing)))
        if not math.isfinite(self.fixed):
            return nothing
        start = Factor(scope=(), values=np.asarray(self.fixed))
        return float(eliminate([start, *factors], combine=np.add, reduce=reduce))


def compile_space(
    space: SearchSpace, lut: CostTable, column: str = "latency_ms", *, include_call_overhead: bool = True
) -> CompiledSpace:
    """Return `space` with the costs `lut` has for it in `column`.

    One call overhead is added back to every network when the column is net of it: that of the first site's ops (their
    median), or the median of all rows if none of those records one; tables without any (imported ones) add 0.
    Raises OpNotInLut naming every op without a row, or every op that ran but has a null in `column`.
    """
    ops = space.ops()
    _check_coverage(space, lut, ops)
    failed = [status in INFEASIBLE for status in lut.texts(ops, "exec_status")]
    values = np.where(failed, math.inf, lut.column(ops, column))
    costs = dict(zip(ops, values.tolist(), strict=True))
    unknown = [op for op, cost in costs.items() if math.isnan(cost)]
    if unknown:
        raise OpNotInLut(
            f"{lut.name}@{lut.version} has no {column} for {len(unknown)} ops that ran: {_named(unknown)}. "
            f"Take another column, or collect where {column} can be measured"
        )
    sites = [_site_cost(space, number, costs) for number in range(len(space.sites))]
    constraints = [
        SiteCost(name=f"constraint {number}", scope=f.scope, costs=_frozen(np.where(f.values, math.inf, 0.0)))
        for number, f in enumerate(space.forbidden)
    ]
    overhead_ms = _call_overhead_ms(space, lut) if include_call_overhead and column in NET_COLUMNS else 0.0
    return CompiledSpace(
        space=space,
        provenance=Provenance(
            lut=lut.name,
            lut_version=lut.version,
            lut_hash=lut.content_hash,
            space=space.name,
            space_key=space.key,
            column=column,
            evidence=tuple(sorted(Counter(map(str, lut.texts(ops, "evidence"))).items())),
        ),
        sites=(*sites, *constraints),
        call_overhead_ms=overhead_ms,
    )


def _check_coverage(space: SearchSpace, lut: CostTable, ops: Sequence[OpSpec]) -> None:
    missing = [op for op in ops if op not in lut]
    if not missing:
        return
    try:
        lut[missing[0]]
        hint = ""
    except OpNotInLut as error:  # the table knows what it has instead, and the command that measures the rest
        hint = str(error)
    raise OpNotInLut(
        f"{len(missing)} of the {len(ops)} ops of space {space.name!r} are not in {lut.name}@{lut.version}: "
        f"{_named(missing)}. {hint}"
    )


def _named(ops: Sequence[OpSpec]) -> str:
    more = f", and {len(ops) - _NAMED} more" if len(ops) > _NAMED else ""
    return ", ".join(op.label() for op in ops[:_NAMED]) + more


def _site_cost(space: SearchSpace, number: int, costs: Mapping[OpSpec, float]) -> SiteCost:
    site = space.sites[number]
    scope = tuple(space.positions[name] for name in site.scope)
    # An op that only forbidden assignments need is not part of the coverage, so it has no row to read.
    cells = [0.0 if op is None else costs.get(op, math.inf) for op in space.site_ops[number]]
    shaped = np.array(cells, dtype=np.float64).reshape([space.sizes[v] for v in scope])
    return SiteCost(name=site.name, scope=scope, costs=_frozen(shaped))


def _call_overhead_ms(space: SearchSpace, lut: CostTable) -> float:
    first = [op for op in space.site_ops[0] if op is not None and op in lut]
    for ops in (first, space.ops()):
        recorded = [ms for ms in (lut[op].call_overhead_ms for op in ops) if ms is not None]
        if recorded:
            return float(np.median(recorded))
    return 0.0


def _frozen(values: Floats) -> Floats:
    values.flags.writeable = False
    return values
