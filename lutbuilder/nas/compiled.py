"""CompiledSpace: a search space joined with a cost table, one dense array a site; millions of archs per second.

`compile_space` reads every row once; after that no op is looked up again. Costs are float64 in the unit of the chosen
column, ms unless stated otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.joints import Joints
from lutbuilder.nas.packed import PackedArchs, Packing, packed_costs
from lutbuilder.op import OpSpec
from lutbuilder.spaces.eliminate import Factor, cheapest, eliminate, merged, reduced
from lutbuilder.spaces.registry import get
from lutbuilder.spaces.space import Assignment, SearchSpace
from lutbuilder_agent.errors import Infeasible, OpNotInLut, ShapeError, SpecError, UnknownName

if TYPE_CHECKING:
    from lutbuilder.nas.sensitivity import Sensitivity
    from lutbuilder.nas.uncertainty import Interval, Uncertainty

Floats = NDArray[np.float64]
INFEASIBLE = ("unsupported", "failed")  # exec_status of a row that has a reason instead of a cost
NET_COLUMNS = ("latency_ms", "latency_lo_ms", "latency_hi_ms", "p90_ms")  # net of the overhead a network pays once
# Columns of which a network's cost is the sum.
COSTS = ("latency_ms", "latency_lo_ms", "latency_hi_ms", "p90_ms", "energy_mj", "cycles", "macs", "params")
_NAMED = 5  # ops one error message names


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

    def column(self, ops: Sequence[OpSpec], name: str) -> Floats:
        """Return `cost` of each op, whatever column but the call overhead is asked for; NaN where it failed."""
        self._require(ops)
        if name == "call_overhead_ms":
            return np.full(len(ops), math.nan if self.call_overhead_ms is None else self.call_overhead_ms)
        return np.array([self.cost(op) if self.runs(op) else math.nan for op in ops])

    def texts(self, ops: Sequence[OpSpec], name: str) -> tuple[str | None, ...]:
        """Return `exec_status` (native or failed) or `evidence` (modelled) of each op; no other text is known."""
        self._require(ops)
        if name == "exec_status":
            return tuple("native" if self.runs(op) else "failed" for op in ops)
        return ("modelled" if name == "evidence" else None,) * len(ops)

    def _require(self, ops: Sequence[OpSpec]) -> None:
        for op in ops:
            if op not in self:
                raise OpNotInLut(f"{op.label()} is not in {self.name}")


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


@dataclass(frozen=True, kw_only=True, eq=False)
class CompiledSpace:
    """Costs of every site of `space`, and the sums search needs. Immutable; safe from any thread.

    Infeasible choices (a row that failed or is unsupported, a broken constraint) cost +inf. `call_overhead_ms` is added
    once to every network; it is 0 if the caller left it out or the column does not lack it. `table` is where the costs
    came from, None if they were loaded with a state.
    """

    space: SearchSpace
    provenance: Provenance
    sites: tuple[SiteCost, ...]
    call_overhead_ms: float
    table: CostTable | None = None

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Intervals of these costs; `Uncertainty.about` takes assumptions for rows without one. Raises as that does."""
        from lutbuilder.nas.uncertainty import Uncertainty

        if self.table is None:
            raise SpecError("costs loaded with a state have no intervals; their table has: Uncertainty.of(lut, space)")
        return Uncertainty.about(self, self.table)

    @cached_property
    def infeasible(self) -> tuple[str, ...]:
        """Labels of the ops that some allowed arch contains and that failed or are unsupported."""
        needed = set(self.space.ops())  # what only forbidden assignments need has no row, so no finite cost
        cells = zip(chain.from_iterable(self.space.site_ops), self.flat.tolist(), strict=False)  # constraints follow
        failed = dict.fromkeys(op for op, cost in cells if op in needed and math.isinf(cost))
        return tuple(op.label() for op in failed if op is not None)

    @cached_property
    def fixed(self) -> float:
        """What every arch pays, call overhead included, in the unit of the column."""
        return self.call_overhead_ms + sum(float(site.costs) for site in self.sites if not site.scope)

    @overload
    def predict(self, archs: NDArray[Any] | PackedArchs, *, return_interval: Literal[False] = False) -> Floats: ...
    @overload
    def predict(self, archs: NDArray[Any] | PackedArchs, *, return_interval: Literal[True]) -> Interval: ...
    def predict(self, archs: NDArray[Any] | PackedArchs, *, return_interval: bool = False) -> Floats | Interval:
        """Return the cost of each arch: the fixed part plus one array element a site, summed.

        Shapes: archs (N, n_variables), canonical encodings of any integer type (int8 is fastest), or N archs from
        `pack`, several times faster; result (N,). An arch with an infeasible choice costs +inf. Raises ShapeError, or
        SpecError naming a variable whose value number is out of range. Runs on one core. With `return_interval` the
        95 % interval as well: (mid, lo, hi), as `uncertainty.predict` gives it; `uncertainty.surely_below` tells which
        archs are below a limit at a confidence, and a search keeps `Limit(..., confidence=0.95)`.
        """
        if isinstance(archs, PackedArchs):
            return self._predict_packed(archs) if not return_interval else self.uncertainty.predict(archs.unpack())
        if return_interval:
            return self.uncertainty.predict(archs)
        if archs.ndim != 2 or archs.shape[1] != len(self.space.sizes) or archs.dtype.kind not in "iu":
            raise ShapeError(
                f"predict takes integers of shape (N, {len(self.space.sizes)}) for space {self.space.name!r}, "
                f"got {archs.dtype} of shape {archs.shape}"
            )
        return self._joints.look_up(archs)

    def pack(self, archs: NDArray[Any]) -> PackedArchs:
        """Return canonical encodings (N, n_variables) in the fewest bytes that `predict` indexes its tables with.

        They serve every table this space is compiled with, and `unpack()` gives the encodings back. Raises ShapeError,
        or SpecError for a value number out of range.
        """
        return self._packing.pack(archs)

    def expected(self, probabilities: Sequence[Floats]) -> float:
        """Return the mean cost when every variable is drawn independently; one probability vector a variable.

        It is the mean over the archs that can run: other draws have no share in it. One-hot vectors give `predict`,
        and the result is +inf only where no draw can run. Raises ShapeError naming the variable whose vector has
        another length.
        """
        if len(probabilities) != len(self.space.sizes):
            raise ShapeError(f"one vector for each of {len(self.space.sizes)} variables, got {len(probabilities)}")
        vectors = [np.asarray(p, dtype=np.float64) for p in probabilities]
        for variable, vector in zip(self.space.variables, vectors, strict=True):
            if vector.shape != (len(variable.values),):
                raise ShapeError(f"{variable.name} has {len(variable.values)} values, got a vector of {vector.shape}")
        from lutbuilder.nas.sensitivity import mean_sum

        mean = float(mean_sum([Factor(scope=(), values=np.asarray(self.fixed)), *self.factors], vectors))
        return math.inf if math.isnan(mean) else mean

    # --- Bounds. The completions of some choices are the archs that `encode` makes of all assignments with them: the
    # choice for a layer that a completion does not have is ignored there.

    def min_over(self, partial: Assignment | None = None) -> float:
        """Return the exact lowest cost over all completions of `partial`; +inf if none is feasible."""
        return self._extreme(partial or {}, np.minimum, math.inf)

    def max_over(self, partial: Assignment | None = None) -> float:
        """Return the exact highest cost over all feasible completions of `partial`; -inf if none is feasible."""
        return self._extreme(partial or {}, np.maximum, -math.inf)

    def bounds(self, partial: Assignment | None = None) -> tuple[float, float]:
        """Return the exact lowest and highest cost over all feasible completions; (+inf, -inf) if there is none."""
        return self.min_over(partial), self.max_over(partial)

    def cheapest(self, partial: Assignment | None = None) -> tuple[float, NDArray[np.int16]]:
        """Return the cost and the canonical encoding, shape (n_variables,), of a completion that costs least.

        Raises Infeasible if no completion is feasible.
        """
        return self._best(partial or {}, 1.0)

    def dearest(self, partial: Assignment | None = None) -> tuple[float, NDArray[np.int16]]:
        """Return the cost and the canonical encoding of a feasible completion that costs most; see `cheapest`."""
        return self._best(partial or {}, -1.0)

    def completion_bounds(self, prefixes: NDArray[Any], n_fixed: int | None = None) -> tuple[Floats, Floats]:
        """Return the exact lowest and highest cost over the feasible completions of each prefix; shapes (N,), (N,).

        A prefix is the value numbers of the first `n_fixed` variables; columns of `prefixes` beyond those are ignored,
        and `n_fixed` is by default all there are. (+inf, -inf) where no completion is feasible. The first call with an
        `n_fixed` eliminates the other variables, later ones only look up. Raises ShapeError or SpecError as `predict`.
        """
        if n_fixed is None and prefixes.ndim == 2:
            n_fixed = prefixes.shape[1]
        if (
            n_fixed is None
            or not 0 <= n_fixed <= len(self.space.sizes)
            or prefixes.ndim != 2
            or prefixes.shape[1] < n_fixed
            or prefixes.dtype.kind not in "iu"
        ):
            raise ShapeError(
                f"prefixes are integers of shape (N, {n_fixed} or more), for at most {len(self.space.sizes)} variables "
                f"of space {self.space.name!r}; got {prefixes.dtype} of shape {prefixes.shape}"
            )
        if n_fixed not in self._ends:
            self._ends[n_fixed] = (self._end(n_fixed, np.minimum, math.inf), self._end(n_fixed, np.maximum, -math.inf))
        lowest, highest = self._ends[n_fixed]
        return lowest.look_up(prefixes[:, :n_fixed]), highest.look_up(prefixes[:, :n_fixed])

    def sensitivity(self) -> tuple[Sensitivity, ...]:
        """Return for each variable what its values cost on average, and the most that choosing one changes."""
        from lutbuilder.nas.sensitivity import sensitivity

        return sensitivity(self)

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
        return replace(self, sites=sites, call_overhead_ms=call_overhead_ms, provenance=provenance, table=None)

    @cached_property
    def flat(self) -> Floats:
        """All site costs end to end, each site's in the order of `SearchSpace.site_ops`."""
        return _frozen(np.concatenate([site.costs.ravel() for site in self.sites]))

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The costs of all sites but the fixed ones as few factors: one within another's scope is added to that."""
        return tuple(merged(Factor(scope=site.scope, values=site.costs) for site in self.sites if site.scope))

    @cached_property
    def _joints(self) -> Joints:
        return Joints.of(self.factors, self.space.variables, self.fixed)

    @cached_property
    def _packing(self) -> Packing:
        return Packing.of(self.space)

    @cached_property
    def _packed_tables(self) -> dict[Packing, tuple[Floats, ...]]:
        """Costs laid out for each packing that archs came in: this space's own, or another instance's."""
        return {}

    def _predict_packed(self, packed: PackedArchs) -> Floats:
        packing = packed.packing
        if packing not in self._packed_tables:
            if packing.space is not self.space and packing.space.key != self.space.key:
                raise ShapeError(f"packed archs of space {packing.space.name!r} are not of space {self.space.name!r}")
            self._packed_tables[packing] = packing.tables(self.factors, self.fixed)
        return packed_costs(packed, self._packed_tables[packing])

    @cached_property
    def _ends(self) -> dict[int, tuple[Joints, Joints]]:
        """By how many variables are fixed: the rest eliminated, towards the lowest and towards the highest cost."""
        return {}

    def _end(self, n_fixed: int, reduce: np.ufunc, nothing: float) -> Joints:
        factors = _with_infeasible(self.factors, nothing)
        left = reduced(factors, combine=np.add, reduce=reduce, keep=range(n_fixed))
        fixed = self.fixed if math.isfinite(self.fixed) else nothing
        return Joints.of(merged(left), self.space.variables[:n_fixed], fixed)

    def _extreme(self, partial: Assignment, reduce: np.ufunc, nothing: float) -> float:
        if not math.isfinite(self.fixed):
            return nothing
        start = Factor(scope=(), values=np.asarray(self.fixed))
        factors = _with_infeasible(self._restricted(partial), nothing)
        return float(eliminate([start, *factors], combine=np.add, reduce=reduce))

    def _best(self, partial: Assignment, sign: float) -> tuple[float, NDArray[np.int16]]:
        factors = [Factor(scope=f.scope, values=sign * f.values) for f in self._restricted(partial)]
        cost, chosen = cheapest(_with_infeasible(factors, math.inf))
        if not math.isfinite(cost + self.fixed):
            among = f"with {dict(partial)} " if partial else ""
            raise Infeasible(f"no arch {among}of space {self.space.name!r} runs on {self.provenance.lut}")
        row = np.zeros((1, len(self.space.sizes)), np.int16)
        for number, value in {**self._chosen(partial), **chosen}.items():
            row[0, number] = value
        arch = self.space.canonical(row)
        return float(self.predict(arch)[0]), arch[0]

    def _chosen(self, partial: Assignment) -> dict[int, int]:
        """Value numbers by variable number."""
        chosen = {}
        for name, value in partial.items():
            if name not in self.space.positions:
                raise UnknownName(f"space {self.space.name!r} has no variable {name!r}")
            values = self.space.variables[self.space.positions[name]].values
            if value not in values:
                raise SpecError(f"{name} is one of {values}, got {value!r}")
            chosen[self.space.positions[name]] = values.index(value)
        return chosen

    def _restricted(self, partial: Assignment) -> list[Factor]:
        """The factors with the variables of `partial` set, over the others alone."""
        chosen = self._chosen(partial)
        return [
            Factor(
                scope=tuple(v for v in factor.scope if v not in chosen),
                values=factor.values[tuple(chosen.get(v, slice(None)) for v in factor.scope)],
            )
            for factor in self.factors
        ]


def compile_space(
    space: SearchSpace, lut: CostTable, column: str = "latency_ms", *, include_call_overhead: bool = True
) -> CompiledSpace:
    """Return `space` with the costs `lut` has for it in `column`.

    One call overhead is added back to every network when the column is net of it: that of the first site's ops (their
    median), or the median of all rows if none of those records one; tables without any (imported ones) add 0.
    Raises OpNotInLut naming every op without a row, or every op that ran but has a null in `column`; SpecError if a
    site depends on a variable where that is inactive.
    """
    ops = space.ops()
    _check_coverage(space, lut, ops)
    failed = [status in INFEASIBLE for status in lut.texts(ops, "exec_status")]
    values = np.where(failed, math.inf, lut.column(ops, column))
    costs = dict(zip(ops, values.tolist(), strict=True))
    unknown = [op for op, cost in costs.items() if math.isnan(cost)]
    if unknown:
        ran = [op for op, out in zip(ops, failed, strict=True) if not out]
        there = [name for name in COSTS if name != column and not np.isnan(lut.column(ran, name)).any()]
        reason = lut.texts(unknown[:1], "reason")[0]
        raise OpNotInLut(
            f"{lut.name}@{lut.version} has no {column} for {len(unknown)} ops that ran: {_named(unknown)}"
            f"{f' ({reason})' if reason else ''}. {other_columns(column, there)}"
        )
    sites = [
        _site_cost(space, number, costs, _skip_cost(ops, lut, column)) for number, ops in enumerate(space.site_ops)
    ]
    for site in sites:
        _check_gates(space, site)
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
        table=lut,
    )


def other_columns(column: str, there: Sequence[str], *, take: str = "") -> str:
    """Return what to do where a table has values in the columns `there`, but not in `column`: e.g. to type `take`."""
    advice = f"It has {', '.join(there)}: take one, as {take or f'--column {there[0]}'}, or " if there else ""
    if column in NET_COLUMNS and "cycles" in there:
        return f"{advice}say how long a cycle is: lutbuilder luts import ... --clock-mhz 200"
    return f"{advice}collect where {column} can be measured"


def _check_coverage(space: SearchSpace, lut: CostTable, ops: Sequence[OpSpec]) -> None:
    missing = [op for op in ops if op not in lut]
    if not missing:
        return
    explain = getattr(lut, "missing", None)  # a LUT knows what it has instead, and the command that measures the rest
    hint = explain(missing[:1], space=_name_to_type(space)) if explain else ""
    raise OpNotInLut(
        f"{len(missing)} of the {len(ops)} ops of space {space.name!r} are not in {lut.name}@{lut.version}: "
        f"{_named(missing)}. {hint}"
    )


def _name_to_type(space: SearchSpace) -> str:
    try:
        get(space.name)
    except SpecError:  # made by Python: only its module knows it
        return "MODULE:NAME"
    return space.name


def _named(ops: Sequence[OpSpec]) -> str:
    more = f", and {len(ops) - _NAMED} more" if len(ops) > _NAMED else ""
    return ", ".join(op.label() for op in ops[:_NAMED]) + more


def _skip_cost(site_ops: Sequence[OpSpec | None], lut: CostTable, column: str) -> float:
    """Return what it costs to run nothing at a site: 0, or what a published table says of skipping such a layer.

    An identity that was measured here is no such row: it is a call overhead, which a network pays once. Sites whose ops
    take several shapes (a resolution is in their scope) skip for nothing.
    """
    shapes = {(op.in_channels, op.height, op.width, op.batch) for op in site_ops if op is not None}
    if None not in site_ops or len(shapes) != 1:
        return 0.0
    ((channels, height, width, batch),) = shapes
    skip = OpSpec(kind="identity", in_channels=channels, out_channels=channels, height=height, width=width, batch=batch)
    if skip not in lut or lut.texts([skip], "evidence") != ("imported",):
        return 0.0
    cost = float(lut.column([skip], column)[0])
    return 0.0 if math.isnan(cost) else cost


def _site_cost(space: SearchSpace, number: int, costs: Mapping[OpSpec, float], skip: float) -> SiteCost:
    site = space.sites[number]
    scope = tuple(space.positions[name] for name in site.scope)
    # An op that only forbidden assignments need is not part of the coverage, so it has no row to read.
    cells = [skip if op is None else costs.get(op, math.inf) for op in space.site_ops[number]]
    shaped = np.array(cells, dtype=np.float64).reshape([space.sizes[v] for v in scope])
    return SiteCost(name=site.name, scope=scope, costs=_frozen(shaped))


def _check_gates(space: SearchSpace, site: SiteCost) -> None:
    """Refuse a site that depends on an inactive variable: of an arch and its canonical form it would say two costs."""
    gates = dict(space.gates)
    scope = set(site.scope)
    for number in reversed(range(len(space.sizes))):  # a gate looks at earlier variables only
        if number in scope and number in gates:
            scope.update(gates[number].scope)
    members = sorted(scope)
    if scope.isdisjoint(gates):
        return
    raw = dict(zip(members, np.indices([space.sizes[v] for v in members]).reshape(len(members), -1), strict=True))
    settled = dict(raw)
    for number in members:
        if number in gates:
            active = gates[number].values[tuple(settled[v] for v in gates[number].scope)]
            settled[number] = np.where(active, raw[number], 0)
    costs, canonical = (site.costs[tuple(cells[v] for v in site.scope)] for cells in (raw, settled))
    for cell in np.flatnonzero(costs != canonical)[:1].tolist():
        wrong = next(v for v in members if raw[v][cell] != settled[v][cell])
        at = ", ".join(
            f"{space.variables[v].name}={space.variables[v].values[int(settled[v][cell])]}" for v in gates[wrong].scope
        )
        raise SpecError(
            f"site {site.name!r} of space {space.name!r} depends on {space.variables[wrong].name} where it is "
            f"inactive, at {at}; let the site ignore it there, or widen its active_when"
        )


def _call_overhead_ms(space: SearchSpace, lut: CostTable) -> float:
    first = [op for op in space.site_ops[0] if op is not None and op in lut]
    for ops in (first, space.ops()):
        recorded = lut.column(ops, "call_overhead_ms")
        if not np.isnan(recorded).all():
            return float(np.nanmedian(recorded))
    return 0.0


def _with_infeasible(factors: Iterable[Factor], cost: float) -> list[Factor]:
    """The factors with `cost` in place of every infinity."""
    return [Factor(scope=f.scope, values=np.where(np.isfinite(f.values), f.values, cost)) for f in factors]


def _frozen(values: Floats) -> Floats:
    values.flags.writeable = False
    return values
