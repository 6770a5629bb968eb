"""From whole networks that were timed to calibrated rows: of this device's own table, or of another device's.

Pure: rows and estimates in, rows and a report out. lutbuilder/calibration.py times the networks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.carriers import on_carriers_scale
from lutbuilder.campaign.patterns import patterns, transfer_patterns
from lutbuilder.campaign.plan import overhead_op
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.lut import merge, preferred
from lutbuilder.lut.calibrated import SOURCES, sources, sources_sha256
from lutbuilder.lut.schema import Row
from lutbuilder.op import OpSpec
from lutbuilder.stats import calibrate as stats
from lutbuilder.stats.calibrate import Calibration, Fit, Networks
from lutbuilder.stats.interval import quantile
from lutbuilder.stats.records import OpEstimate
from lutbuilder_agent.errors import CampaignFailed, LutConflict, SpecError

if TYPE_CHECKING:
    from lutbuilder.campaign.draft import Draft
    from lutbuilder.lut import Lut
    from lutbuilder_agent.records import Cache

NEW_DEVICE_ERROR = 0.05  # leave-one-out, root mean square: above it a table of another device is not scaled but wrong
_LEAST_RANK = 0.9  # Spearman, of the same leave-one-out predictions
_BY_NOISE = 0.01  # probability below which noise of the networks does not explain an error
_NORMAL_95 = 1.959964
_UNKNOWN_SD = 0.02  # relative, of a row without an interval
_UNKNOWN_OVERHEAD_SD = 0.3
_MOST_SD = 0.5  # of a row that can hardly be told from its call overhead: its own interval is hundreds of per cent
_FLOOR_MS = 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far sums are off networks they were not fitted to: mean and root mean square of relative errors."""

    mape: float
    rms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedNetwork:
    """One network of the fit. `before_ms`: sum of the table's rows as they were; `loo_error`: relative error of the
    chosen method's prediction without this network; `weight` 1, or less for a network that is off.
    """

    op_id: str
    measured_ms: float
    noise: float
    before_ms: float
    loo_error: float
    weight: float
    carrier: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """What a calibration did, as the footer keeps it (`LutMeta.calibration`).

    Errors are of the networks timed for this calibration, each predicted without itself; outliers are left out of them,
    and carriers, to which the table's rows may have been fitted before. `before` is of the table's lookups as they
    were. `noise`: relative standard error of the networks' own times (root mean square), the floor of all of these.
    """

    method: str
    table: str  # name@version whose rows were corrected
    source: str | None  # name@version of another device's table, where the rows come from there
    spaces: tuple[str, ...]
    networks_sha256: str
    noise: float
    before: Errors
    affine: Errors
    ridge: Errors
    intercept_ms: float
    slope: float
    scales: Mapping[str, float]
    over_noise: float  # the chosen method's error, in units of the noise
    spearman: float
    outliers: tuple[str, ...]
    networks: tuple[FittedNetwork, ...]
    sources_sha256: str | None

    @property
    def after(self) -> Errors:
        """Errors of the chosen method."""
        return {"affine": self.affine, "ridge": self.ridge}.get(self.method, self.before)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        body = asdict(self)
        if self.sources_sha256 is None:
            del body[SOURCES]  # rows of another device rest on nothing in this table
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> CalibrationReport:
        """Inverse of `to_json`, also after a trip through JSON. Raises SpecError for what no `to_json` wrote."""
        try:
            typed: dict[str, Any] = {
                "spaces": tuple(body["spaces"]),
                "outliers": tuple(body["outliers"]),
                "networks": tuple(FittedNetwork(**network) for network in body["networks"]),
                **{name: Errors(**body[name]) for name in ("before", "affine", "ridge")},
            }
            return cls(**{SOURCES: None, **body, **typed})
        except (KeyError, TypeError) as error:
            raise SpecError(f"a malformed calibration report: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Calibrated rows, none if the table's own are best, and the report."""

    rows: tuple[Row, ...]
    report: CalibrationReport


def calibrate_rows(
    rows: Iterable[Row],
    networks: Sequence[CampaignOp],
    estimates: Mapping[str, OpEstimate],
    *,
    covered: Collection[OpSpec],
    table: str,
    spaces: Sequence[str],
    method: stats.Method | None = None,
) -> Calibrated:
    """Return calibrated rows of the `covered` ops, fitted to whole networks and, if there are any, carriers.

    `estimates` by op_id, networks (`on_carriers_scale`) and ops among them: these tell how fast the machine was beside
    the rows. `method` None: the one that predicts networks left out of the fit best, if it betters the table's lookups.
    An intercept of the affine method goes into the call overhead of the ops that networks begin with: a network has
    that once. Raises CampaignFailed if too few networks were timed.
    """
    rows = tuple(rows)
    corrected = sources(rows)
    lookups = preferred(row for row in rows if row.method != "calibrated")
    problem = _Problem.of(corrected, networks, estimates, covered=covered, scale=_machine_scale(corrected, estimates))
    fitted = stats.calibrate(
        problem.networks,
        problem.prior_ms,
        problem.prior_sd,
        # As the carriers' fit: networks that take turns find what they share cold, too (decisions 0009, 0013).
        patterns(problem.ops, problem.prior_ms, ends=any(row.cache == "cold" for row in corrected.values())),
    )
    before_ms = np.array([_sum_ms(network.ops, lookups) for network in problem.timed])
    new = np.array([network.role != "carrier" for network in problem.timed])
    before = before_ms / problem.networks.measured_ms - 1.0
    if method is None:
        better = _rms(fitted.chosen.loo, fitted, new) < _rms(before, fitted, new)
        method = fitted.method if better else "none"
    report = _report(
        problem, fitted, before, method, before_ms, table=table, source=None, spaces=spaces,
        sha=sources_sha256(corrected, [op.op_id for op in problem.ops]),
    )  # fmt: skip  # one record, one line
    made = () if method == "none" else _corrected_rows(problem, fitted.of(method), corrected)
    return Calibrated(rows=made, report=report)


def transfer_rows(
    source: Lut,
    networks: Sequence[CampaignOp],
    estimates: Mapping[str, OpEstimate],
    *,
    covered: Collection[OpSpec],
    cache: Cache,
    collect: str,
    spaces: Sequence[str],
    worst: float = NEW_DEVICE_ERROR,
) -> Calibrated:
    """Return rows for this device made of another device's: evidence modelled, method calibrated, no visits.

    All ops share a free scale; groups of ops may deviate from it as far as the networks say so. Raises LutConflict,
    naming `collect` as the command to type, if the error of networks left out is above `worst`, or their order wrong,
    and noise does not explain it: then this device works in another way. Raises CampaignFailed if noise does.
    """
    lookups = {op.op_id: source[op] for op in covered if op in source}
    problem = _Problem.of(lookups, networks, estimates, covered=covered, scale=1.0)
    fitted = stats.calibrate(
        problem.networks, problem.prior_ms, problem.prior_sd, transfer_patterns(problem.ops, problem.prior_ms)
    )
    before_ms = problem.networks.counts @ problem.prior_ms
    method: stats.Method = "affine" if fitted.method == "affine" else "ridge"
    report = _report(
        problem, fitted, fitted.of("none").loo, method, before_ms, table="", source=f"{source.name}@{source.version}",
        spaces=spaces, sha=None,
    )  # fmt: skip  # one record, one line
    _check_regime(problem, fitted, report, worst=worst, collect=collect)
    fit = fitted.of(method)
    # However simple the values' fit, their doubt is that of devices which differ in all the ways ridge knows.
    values, log_sd = problem.by_id(fit.values_ms), problem.by_id(fitted.of("ridge").log_sd)
    calls = float(np.median((fit.values_ms / problem.prior_ms)[problem.networks.overhead]))
    rows = []
    for op_id, row in lookups.items():
        overhead = None if row.call_overhead_ms is None else values.get(_call(row.op), row.call_overhead_ms * calls)
        columns: dict[str, Any] = {
            "macs": row.macs,
            "params": row.params,
            "evidence": "modelled",
            "method": "calibrated",
            "cache": cache,
            "exec_status": row.exec_status,
            "exec_w_bits": row.exec_w_bits,
            "exec_a_bits": row.exec_a_bits,
            "call_overhead_ms": overhead,
        }
        if row.latency_ms is None:
            columns |= {"latency_ms": None, "reason": f"so on {report.source}: {row.reason}"}
        else:
            columns |= _interval(values[op_id], log_sd[op_id])
            columns["reason"] = f"scaled from {report.source} by {len(problem.timed)} networks; never measured here"
        rows.append(Row.of(row.op, **columns))
    return Calibrated(rows=tuple(rows), report=report)


def refitted(
    made: Draft, base: Lut | None, *, record: Mapping[str, Any] | None = None, new_conditions: bool = False
) -> Draft:
    """Return a draft whose calibrated rows follow its measured ones, if `base` was calibrated and the visits are here.

    The networks of the calibration, or of another one's `record`, are looked for in the draft's pool of visits. Where
    they are not (another machine's store), or too few of them can be fitted, the draft stays as it is, and `merge`
    takes calibrated rows away whose measured ones have changed.
    """
    if record is None and base is not None:
        record = base.meta.calibration
    if record is None or SOURCES not in record or made.meta.calibration is not None:
        return made
    from lutbuilder import spaces

    fitted = {network["op_id"] for network in record["networks"] if not network["carrier"]}
    networks = [op for op in made.evidence.ops if op.role == "carrier" or op.op_id in fitted]
    if not fitted <= made.summary.by_id.keys():
        return made
    merged, _ = merge(base, made.rows, made.meta, new_conditions=new_conditions)
    covered = dict.fromkeys(
        op for name in record["spaces"] for op in spaces.get(name, batch=made.meta.target.batch).ops()
    )  # each once, in an order: the fit is the same whenever it is made
    try:
        calibrated = calibrate_rows(
            merged,
            networks,
            on_carriers_scale(made.evidence.ops, made.summary),
            covered=covered,
            table=record["table"],
            spaces=record["spaces"],
        )
    except CampaignFailed:  # ops of the networks have failed since; what was measured is published all the same
        return made
    return with_calibration(made, calibrated)


def with_calibration(made: Draft, calibrated: Calibrated) -> Draft:
    """Return the draft with the calibrated rows, the report, and the networks no validation may use any more."""
    ids = {network.op_id for network in calibrated.report.networks}
    meta = replace(
        made.meta,
        calibration=calibrated.report.to_json(),
        fitted_networks=tuple(sorted({*made.meta.fitted_networks, *ids})),
    )
    return replace(made, rows=(*made.rows, *calibrated.rows), meta=meta)


# --- The problem


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """What is handed to the statistics. Terms are `ops`, then `calls`: op_ids of the overheads that networks have."""

    ops: tuple[OpSpec, ...]
    calls: tuple[str, ...]
    timed: tuple[CampaignOp, ...]
    networks: Networks
    prior_ms: Floats
    prior_sd: Floats
    noise_freedom: float

    @classmethod
    def of(
        cls,
        rows: Mapping[str, Row],
        networks: Sequence[CampaignOp],
        estimates: Mapping[str, OpEstimate],
        *,
        covered: Collection[OpSpec],
        scale: float,
    ) -> _Problem:
        """Return the problem; times of networks are divided by `scale`. Raises CampaignFailed for too few networks."""
        known = [op for op in covered if op.op_id in rows and rows[op.op_id].latency_ms is not None]
        place = {op.op_id: number for number, op in enumerate(known)}
        timed = [
            network
            for network in networks
            if network.op_id in estimates
            and estimates[network.op_id].half_width is not None
            and all(op.op_id in place for op in network.ops)
        ]
        if len(timed) < stats.LEAST_NETWORKS:
            raise CampaignFailed(
                f"only {len(timed)} of {len(networks)} networks were timed in 6 rounds or more, and all their ops have "
                f"rows; a calibration needs {stats.LEAST_NETWORKS}. More time: --budget 20m"
            )
        calls = list(dict.fromkeys(_call(network.ops[0]) for network in timed))
        overheads = {_call(network.ops[0]): rows[network.ops[0].op_id].call_overhead_ms or 0.0 for network in timed}
        counts = np.zeros((len(timed), len(known) + len(calls)))
        for number, network in enumerate(timed):
            for op in network.ops:
                counts[number, place[op.op_id]] += 1.0
            counts[number, len(known) + calls.index(_call(network.ops[0]))] = 1.0
        halves = np.array([estimates[network.op_id].half_width or 0.0 for network in timed])
        freedom = np.array([estimates[network.op_id].freedom for network in timed])
        return cls(
            ops=tuple(known),
            calls=tuple(calls),
            timed=tuple(timed),
            networks=Networks(
                counts=counts,
                overhead=np.arange(counts.shape[1]) >= len(known),
                measured_ms=np.array([estimates[network.op_id].time_ms for network in timed]) / scale,
                noise=np.maximum(halves / quantile(freedom), _FLOOR_MS),
            ),
            prior_ms=np.array(
                [rows[op.op_id].latency_ms or 0.0 for op in known] + [max(overheads[call], _FLOOR_MS) for call in calls]
            ),
            prior_sd=np.array(
                [_own_sd(rows[op.op_id], _UNKNOWN_SD) for op in known] + [_call_sd(rows, calls)] * len(calls)
            ),
            noise_freedom=float(np.median(freedom)) * len(timed),
        )

    def by_id(self, values: Floats) -> dict[str, float]:
        """Return values of terms by op_id; a call overhead's is that of its identity op."""
        return dict(zip((*(op.op_id for op in self.ops), *self.calls), values.tolist(), strict=True))


def _call(op: OpSpec) -> str:
    return overhead_op(op).op_id


def _own_sd(row: Row, unknown: float) -> float:
    return unknown if row.half_width is None else min(row.half_width / _NORMAL_95, _MOST_SD)


def _call_sd(rows: Mapping[str, Row], calls: Sequence[str]) -> float:
    known = [_own_sd(rows[call], _UNKNOWN_OVERHEAD_SD) for call in calls if call in rows]
    return max(known, default=_UNKNOWN_OVERHEAD_SD)


def _machine_scale(rows: Mapping[str, Row], estimates: Mapping[str, OpEstimate]) -> float:
    """Return how much slower the machine was when the networks were timed than in the rows, by ops both have."""
    ratios = []
    for op_id, row in rows.items():
        if op_id in estimates and row.evidence == "measured" and row.latency_ms and row.call_overhead_ms is not None:
            ratios.append(estimates[op_id].time_ms / (row.latency_ms + row.call_overhead_ms))
    return float(np.median(ratios)) if ratios else 1.0


def _sum_ms(ops: Sequence[OpSpec], rows: Mapping[str, Row]) -> float:
    return sum(rows[op.op_id].latency_ms or math.nan for op in ops) + (rows[ops[0].op_id].call_overhead_ms or 0.0)


# --- What comes out


def _corrected_rows(problem: _Problem, fit: Fit, corrected: Mapping[str, Row]) -> tuple[Row, ...]:
    values, log_sd = problem.by_id(fit.values_ms), problem.by_id(fit.log_sd)
    rows = []
    for op in problem.ops:
        row, value = corrected[op.op_id], values[op.op_id]
        ratio = value / (row.latency_ms or value)
        rows.append(
            replace(
                row,
                method="calibrated",
                call_overhead_ms=values.get(_call(op), row.call_overhead_ms),
                p90_ms=None if row.p90_ms is None else row.p90_ms * ratio,
                **_interval(value, log_sd[op.op_id]),
            )
        )
    return tuple(rows)


def _interval(value_ms: float, log_sd: float) -> dict[str, Any]:
    spread = math.exp(_NORMAL_95 * log_sd)
    return {"latency_ms": value_ms, "latency_lo_ms": value_ms / spread, "latency_hi_ms": value_ms * spread}


def _check_regime(
    problem: _Problem, fitted: Calibration, report: CalibrationReport, *, worst: float, collect: str
) -> None:
    fit = fitted.of("affine" if report.method == "affine" else "ridge")
    if fit.loo_error <= worst and report.spearman >= _LEAST_RANK:
        return
    ratio, chance = stats.excess(fit, problem.networks, fitted.weights, noise_freedom=problem.noise_freedom)
    figures = (
        f"networks left out of the fit are {100 * fit.loo_error:.1f} % off (at most {100 * worst:g} %), their rank "
        f"correlation is {report.spearman:.3f} (at least {_LEAST_RANK:g}), {ratio:.1f} times the noise of their times"
    )
    if chance > _BY_NOISE:
        raise CampaignFailed(f"the networks were timed too badly to tell: {figures}. Time them longer: --rounds 60")
    raise LutConflict(
        f"{report.source} does not carry over to this device: {figures}. Some ops are faster or slower here in a way "
        f"{len(problem.timed)} networks cannot tell apart. Measure the ops: {collect}"
    )


def _report(
    problem: _Problem,
    fitted: Calibration,
    before: Floats,
    method: stats.Method,
    before_ms: Floats,
    *,
    table: str,
    source: str | None,
    spaces: Sequence[str],
    sha: str | None,
) -> CalibrationReport:
    from scipy.stats import spearmanr

    new = np.array([network.role != "carrier" for network in problem.timed])
    affine, ridge = fitted.of("affine"), fitted.of("ridge")
    loo = before if method == "none" else fitted.of(method).loo
    measured = problem.networks.measured_ms
    ids = [network.op_id for network in problem.timed]
    noise = float(np.sqrt(np.mean(problem.networks.noise**2)))
    return CalibrationReport(
        method=method,
        table=table,
        source=source,
        spaces=tuple(spaces),
        networks_sha256=hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        noise=noise,
        before=_errors(before, fitted, new),
        affine=_errors(affine.loo, fitted, new),
        ridge=_errors(ridge.loo, fitted, new),
        intercept_ms=affine.scales["intercept_ms"],
        slope=affine.scales["slope"],
        scales=dict(ridge.scales),
        over_noise=_rms(loo, fitted, new) / noise,
        spearman=float(spearmanr(measured * (1.0 + loo), measured).statistic),
        outliers=tuple(ids[number] for number in fitted.outliers),
        networks=tuple(
            FittedNetwork(
                op_id=op_id,
                measured_ms=float(measured[k]),
                noise=float(problem.networks.noise[k]),
                before_ms=float(before_ms[k]),
                loo_error=float(loo[k]),
                weight=float(fitted.weights[k]),
                carrier=not bool(new[k]),
            )
            for k, op_id in enumerate(ids)
        ),
        sources_sha256=sha,
    )


def _errors(relative: Floats, fitted: Calibration, new: NDArray[np.bool_]) -> Errors:
    kept = _kept(fitted, new)
    return Errors(mape=float(np.abs(relative[kept]).mean()), rms=float(np.sqrt((relative[kept] ** 2).mean())))


def _rms(relative: Floats, fitted: Calibration, new: NDArray[np.bool_]) -> float:
    return _errors(relative, fitted, new).rms


def _kept(fitted: Calibration, new: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which networks' errors count: those that are no outliers, and were not in a fit of the table before."""
    kept = np.ones(len(new), np.bool_)
    kept[list(fitted.outliers)] = False
    return kept & new if (kept & new).any() else kept
