"""Uncertainty: how far a network's predicted cost can be off, and which archs are below a limit all the same.

Four assumptions make a million intervals as cheap as sums over the sites:

1. A row is off like a normal variable whose 95 % interval is the row's; of an uneven interval the longer side counts.
2. A row used n times is off n times the same way and counts n-fold. Different rows are off independently. Rows imputed
   from the same knots or corrected by the same calibration are not quite: what they share is in the next part only.
3. On top comes a common part, relative to the network: the root mean square of measured / predicted - 1 over the
   networks of the table's last validation, less the noise of their timing and less what the rows' intervals explain,
   times the t quantile of as many degrees of freedom as there were networks. A table without one has no common part
   unless the caller gives it. The sign is not used, so that intervals stay about `predict`, and what rows got wrong
   is in both parts: where a validation saw mostly bias, or nothing but the errors of few rows, intervals hold the
   truth more often than they say. (`lutbuilder calibrate` takes a bias away.)
4. The interval of a row net of its call overhead holds the overhead's own, so adding one back adds nothing.

The truth that is meant is a network's time at the table's own speed of the machine, as `lutbuilder validate` compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.compiled import INFEASIBLE, CompiledSpace, CostTable, compile_space
from lutbuilder.nas.joints import CELLS, Floats, Joints
from lutbuilder.op import OpSpec
from lutbuilder.spaces.eliminate import Factor, joined, merged
from lutbuilder.spaces.space import SearchSpace
from lutbuilder_agent.errors import OpNotInLut, SpecError

LEVEL = 0.95  # of every half width in this module
_INTERVALS: Mapping[str, tuple[str, str]] = {"latency_ms": ("latency_lo_ms", "latency_hi_ms")}  # columns that have one
_PAIR_CELLS = CELLS  # two sites with more joint assignments are compared arch by arch
_ROWS = 4096  # archs that are compared at a time: their encodings stay in L2
_TYPICAL_ARCHS = 256  # whose mean says how much of a validation's error the rows explain
_NAMED = 200  # ops one error message names

Ints = NDArray[np.int64]


class Interval(NamedTuple):
    """Predicted costs and the ends of their intervals, each of shape (N,), in the unit of the column.

    All three are +inf for an arch with an infeasible choice; `lo` is never below 0.
    """

    mid: Floats
    lo: Floats
    hi: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Site:
    """A site of the space. `ops`: the number of its op under every assignment of `scope`, -1 where nothing runs."""

    scope: tuple[int, ...]
    ops: Ints

    def of(self, archs: NDArray[Any]) -> Ints:
        """Return the number of the op that each arch has here, shape (N,)."""
        cells = np.zeros(len(archs), dtype=np.intp)
        for axis, variable in enumerate(self.scope):
            cells *= self.ops.shape[axis]
            cells += archs[:, variable]
        return np.asarray(self.ops.take(cells))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Repeats:
    """Pairs of `sites` that may use one row twice and are too large for a table: compared arch by arch.

    `squares` are squared half widths by the number of the op; the last, of no op, is 0.
    """

    sites: Mapping[int, _Site]
    pairs: tuple[tuple[int, int], ...]
    squares: Floats

    def of(self, archs: NDArray[Any]) -> Floats:
        """Return what each arch owes to rows it uses twice, shape (N,)."""
        owed = np.zeros(len(archs))
        for start in range(0, len(archs) if self.pairs else 0, _ROWS):
            rows = slice(start, start + _ROWS)
            ops = {number: site.of(archs[rows]) for number, site in self.sites.items()}
            squares = {first: 2.0 * self.squares.take(ops[first], mode="wrap") for first, _ in self.pairs}
            for first, second in self.pairs:
                owed[rows] += squares[first] * (ops[first] == ops[second])
        return owed


@dataclass(frozen=True, kw_only=True, eq=False)
class Uncertainty:
    """Intervals of the costs of `compiled`. Immutable; safe from any thread.

    `common` is half the 95 % width that all networks have in common, relative to their cost. `assumed` are the ops
    whose rows have no interval and were given one by the caller. `squares` and `repeats` sum to the squared half width
    that its rows give an arch.
    """

    compiled: CompiledSpace
    common: float
    assumed: tuple[OpSpec, ...]
    squares: Joints
    repeats: _Repeats

    @classmethod
    def of(
        cls,
        lut: CostTable,
        space: SearchSpace,
        column: str = "latency_ms",
        *,
        assumed_half_width: float | None = None,
        common: float | None = None,
    ) -> Uncertainty:
        """Return the intervals of `space` over `lut`; see `about`, which takes a space that is compiled already."""
        return cls.about(compile_space(space, lut, column), lut, assumed_half_width=assumed_half_width, common=common)

    @classmethod
    def about(
        cls,
        compiled: CompiledSpace,
        lut: CostTable,
        *,
        assumed_half_width: float | None = None,
        common: float | None = None,
    ) -> Uncertainty:
        """Return the intervals of costs compiled from `lut`.

        `assumed_half_width` is half the 95 % width, relative to its cost, of a row without an interval: imported,
        measured in fewer than 6 rounds, or of a column that has none (0.05: each within 5 %, independently of the
        others; 0: exact). `common` replaces what the table's validation says (0.1: all networks together within 10 %).
        Raises OpNotInLut naming the ops whose rows have no interval, unless one is assumed; SpecError for a width that
        is negative or not finite.
        """
        for name, value in (("assumed_half_width", assumed_half_width), ("common", common)):
            if value is not None and not 0.0 <= value < math.inf:
                raise SpecError(f"{name} is relative, 0 or more (0.05 is 5 %), got {value}")
        ops = compiled.space.ops()
        halves, assumed = _half_widths(compiled, lut, ops, assumed_half_width)
        factors, repeats = _squares(compiled.space, dict(zip(ops, (halves**2).tolist(), strict=True)))
        squares = Joints.of(merged(factors), compiled.space.variables, 0.0)
        rows_only = cls(compiled=compiled, common=0.0, assumed=assumed, squares=squares, repeats=repeats)
        return replace(rows_only, common=rows_only._validated(lut) if common is None else common)

    def predict(self, archs: NDArray[Any], *, confidence: float = LEVEL) -> Interval:
        """Return the cost of each arch and an interval that holds it with probability `confidence`.

        Shapes: archs (N, n_variables), canonical encodings; results (N,). Raises as `CompiledSpace.predict`.
        """
        if not 0.0 < confidence < 1.0:
            raise SpecError(f"confidence is between 0 and 1, got {confidence}")
        mid, half = self._half_widths(archs)
        half *= _quantile(0.5 + confidence / 2) / _quantile(0.5 + LEVEL / 2)
        return Interval(mid, np.maximum(mid - half, 0.0), mid + half)

    def surely_below(self, archs: NDArray[Any], limit: float, *, confidence: float = LEVEL) -> NDArray[np.bool_]:
        """Return which archs cost `limit` or less with probability `confidence` each; bool, shape (N,).

        One-sided: 0.95 asks for 1.64 standard deviations of room, 0.5 for none. The unit of `limit` is the column's.
        """
        if not 0.0 < limit < math.inf:
            raise SpecError(f"limit must be finite and positive, got {limit}")
        return np.asarray(self.at_most(archs, confidence=confidence) <= limit)

    def at_most(self, archs: NDArray[Any], *, confidence: float = LEVEL) -> Floats:
        """Return what each arch costs at most, with probability `confidence` each, one-sided; shape (N,)."""
        if not 0.5 <= confidence < 1.0:
            raise SpecError(f"confidence is from 0.5 to below 1, got {confidence}")
        mid, half = self._half_widths(archs)
        half *= _quantile(confidence) / _quantile(0.5 + LEVEL / 2)
        return np.asarray(mid + half)

    def _half_widths(self, archs: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return the cost of each arch and half its 95 % interval, shapes (N,)."""
        mid = self.compiled.predict(archs)
        squares = self.squares.look_up(archs)
        squares += self.repeats.of(archs)
        if self.common:
            squares += np.square(self.common * np.where(np.isfinite(mid), mid, 0.0))  # inf - inf would be NaN
        return mid, np.sqrt(squares, out=squares)

    def _validated(self, lut: CostTable) -> float:
        """Return the common part that the validation in the table's footer measured; 0 for a table without one."""
        meta = getattr(lut, "meta", None)  # a Lut alone has a footer, and its class cannot be imported without pyarrow
        if meta is None or meta.validation is None or self.compiled.provenance.column not in _INTERVALS:
            return 0.0
        from lutbuilder.stats.quality import ValidationReport

        report = ValidationReport.from_json(meta.validation)
        calibrated = "calibrated" in lut.texts(self.compiled.space.ops(), "method")  # then those rows are looked up
        predicted = [(calibrated and each.calibrated_ms) or each.predicted_ms for each in report.networks]
        ratios = np.array([each.measured_ms for each in report.networks]) / np.array(predicted)
        rows_sd = self._typical_half_width() / _quantile(0.5 + LEVEL / 2)
        truth_sd = math.sqrt(math.pi / 2) * (report.truth_noise or 0.0)  # the report has the mean absolute error
        return unexplained(ratios, known_sd=math.hypot(rows_sd, truth_sd))

    def _typical_half_width(self) -> float:
        """Return the root mean square of half the 95 % width, relative, over random archs that can run."""
        archs = self.compiled.space.sample(np.random.default_rng(0), _TYPICAL_ARCHS)
        mid, half = self._half_widths(archs)
        runs = np.isfinite(mid)
        return float(np.sqrt(np.mean(np.square(half[runs] / mid[runs])))) if runs.any() else 0.0


def unexplained(ratios: Floats, *, known_sd: float) -> float:
    """Return half the 95 % width, relative, of what `known_sd` does not explain of measured / predicted - 1.

    Shape of ratios (networks,). The mean square of errors about 0 has as many degrees of freedom as there are networks.
    """
    from lutbuilder.stats.interval import quantile

    square = float(np.mean(np.square(ratios - 1.0))) - known_sd**2
    return float(quantile(np.array(float(len(ratios))))) * math.sqrt(max(square, 0.0))


def _half_widths(
    compiled: CompiledSpace, lut: CostTable, ops: Sequence[OpSpec], assumed_half_width: float | None
) -> tuple[Floats, tuple[OpSpec, ...]]:
    """Return half the 95 % width of each op's row, in the column's unit, and the ops whose width is the assumed one."""
    column = compiled.provenance.column
    costs = lut.column(ops, column)
    runs = np.array([status not in INFEASIBLE for status in lut.texts(ops, "exec_status")], dtype=np.bool_)
    halves = np.full(len(ops), np.nan)
    if column in _INTERVALS:
        low, high = (lut.column(ops, name) for name in _INTERVALS[column])
        halves = np.maximum(costs - low, high - costs)
    without = np.isnan(halves) & runs
    assumed = tuple(ops[number] for number in np.flatnonzero(without).tolist())
    if assumed and assumed_half_width is None:
        more = f", and {len(assumed) - _NAMED} more" if len(assumed) > _NAMED else ""
        named = ", ".join(op.label() for op in assumed[:_NAMED])
        raise OpNotInLut(
            f"{lut.name}@{lut.version} has no interval of {column} for {len(assumed)} of the {len(ops)} ops of space "
            f"{compiled.space.name!r}: {named}{more}. Say how far these can be off, here 5 %: "
            f"Uncertainty.of(lut, space, assumed_half_width=0.05), or measure them: lutbuilder collect"
        )
    if assumed_half_width is not None:
        halves[without] = assumed_half_width * costs[without]
    return np.where(runs, halves, 0.0), assumed


def _squares(space: SearchSpace, square: Mapping[OpSpec, float]) -> tuple[list[Factor], _Repeats]:
    """Return factors whose sum is the squared half width of an arch, but for pairs of sites too large for a table.

    With n equal sites (n h)^2 = n h^2 + 2 h^2 for each of their n (n - 1) / 2 pairs: sums over sites and over pairs.
    """
    numbers = {op: number for number, op in enumerate(square)}
    squares = np.array([*square.values(), 0.0])  # the last, -1, is of no op: nothing runs, or a constraint forbids it
    sites = []
    for place, cells in zip(space.sites, space.site_ops, strict=True):
        scope = tuple(space.positions[name] for name in place.scope)
        ops = np.array([-1 if op is None else numbers.get(op, -1) for op in cells], dtype=np.int64)
        sites.append(_Site(scope=scope, ops=ops.reshape([space.sizes[v] for v in scope])))
    holds = np.zeros((len(sites), len(squares)))  # which site can hold which op
    for row, held in zip(holds, sites, strict=True):
        row[held.ops] = 1.0
    shares = np.triu(holds[:, :-1] @ holds[:, :-1].T, k=1)
    factors = [Factor(scope=site.scope, values=np.asarray(squares[site.ops])) for site in sites]
    apart: list[tuple[int, int]] = []
    for first, second in np.argwhere(shares).tolist():
        scope = tuple(dict.fromkeys([*sites[first].scope, *sites[second].scope]))
        if math.prod(space.sizes[v] for v in scope) > _PAIR_CELLS:
            apart.append((first, second))
        else:
            pair = [Factor(scope=site.scope, values=site.ops) for site in (sites[first], sites[second])]
            twice = Factor(scope=scope, values=2.0 * joined(pair, scope, np.equal))
            factors.append(Factor(scope=scope, values=joined([factors[first], twice], scope, np.multiply)))
    members = {number: sites[number] for number in sorted(set(chain.from_iterable(apart)))}
    return factors, _Repeats(sites=members, pairs=tuple(apart), squares=squares)


def _quantile(probability: float) -> float:
    """Return how many standard deviations a normal variable exceeds with probability 1 - `probability`."""
    return NormalDist().inv_cdf(probability)
