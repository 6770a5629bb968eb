"""Intervals: how far an op's estimate can be from what another campaign on this device would give.

Two parts add up. Within an instance: batch means of the drift-free residuals over contiguous blocks of rounds, which
keeps what autocorrelation is left (Flegal & Jones, Annals of Statistics 38(2), 2010). Between instances: where a
preparation lands in memory is part of the truth's spread, and too few instances of one op say how much; its variance is
pooled over all ops.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lutbuilder.stats.drift import DriftFit, fit, grouped_median
from lutbuilder.stats.records import OpEstimate, Visits

LEVEL = 0.95
MIN_ROUNDS = 6  # below, there is no interval
_MAX_BATCHES = 10
_BIMODAL_GAP = 0.08  # relative distance of two modes that is worth a flag


def estimate(visits: Visits, *, window: int | None = None) -> tuple[OpEstimate, ...]:
    """Return one OpEstimate per op that has visits, in the order of `visits.op_ids`; call overhead still inside."""
    return estimate_from(visits, fit(visits) if window is None else fit(visits, window=window))


def estimate_from(visits: Visits, drift: DriftFit) -> tuple[OpEstimate, ...]:
    """The same for a fit that is already there."""
    n_ops = len(visits.op_ids)
    half = half_widths(visits, drift)
    n_visits = np.bincount(visits.op, minlength=n_ops)
    n_preempted = np.bincount(visits.op, weights=visits.n_preempted, minlength=n_ops)
    n_calls = np.bincount(visits.op, weights=visits.n_calls, minlength=n_ops)
    p90 = grouped_median(np.log(visits.p90_ns) - drift.speed, visits.op, n_ops)
    clean = drift.theta[visits.op] + drift.residual
    is_odd = visits.round % 2 == 1
    even = grouped_median(clean[~is_odd], visits.op[~is_odd], n_ops)
    odd = grouped_median(clean[is_odd], visits.op[is_odd], n_ops)
    halves_known = np.isfinite(even) & np.isfinite(odd)  # an op of every second round may have even rounds only
    estimates = []
    for op, op_id in enumerate(visits.op_ids):
        if not n_visits[op]:
            continue
        mine = visits.op == op
        rounds = _distinct(visits.session[mine], visits.round[mine])
        time_ms = float(np.exp(drift.theta[op]) / 1e6)
        known = bool(np.isfinite(half[op]))
        estimates.append(
            OpEstimate(
                op_id=op_id,
                time_ms=time_ms,
                lo_ms=time_ms * float(np.exp(-half[op])) if known else None,
                hi_ms=time_ms * float(np.exp(half[op])) if known else None,
                p90_ms=float(np.exp(p90[op]) / 1e6),
                n_visits=int(n_visits[op]),
                n_rounds=rounds,
                n_instances=_distinct(visits.session[mine], visits.instance[mine]),
                n_sessions=len(np.unique(visits.session[mine])),
                test_retest=float(abs(np.expm1(even[op] - odd[op]))) if halves_known[op] and rounds >= 4 else None,
                preempted_fraction=float(n_preempted[op] / max(1.0, n_calls[op])),
                bimodal=_bimodal(drift.residual[mine]),
            )
        )
    return tuple(estimates)


def _distinct(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    return len(np.unique(a * (int(b.max()) + 1) + b))


def half_widths(visits: Visits, drift: DriftFit) -> NDArray[np.float64]:
    """Return half the 95 % interval of each op in log space, shape (ops,); NaN below MIN_ROUNDS visits."""
    from scipy.special import stdtrit

    n_ops = len(visits.op_ids)
    between = instance_variance(visits, drift)
    groups = np.bincount(drift.group_op, minlength=n_ops)
    half = np.full(n_ops, np.nan)
    order = np.lexsort((visits.start_ns, visits.session, visits.op))
    starts = np.searchsorted(visits.op[order], np.arange(n_ops + 1))
    for op in range(n_ops):
        mine = drift.residual[order[starts[op] : starts[op + 1]]]
        if len(mine) < MIN_ROUNDS:
            continue
        variance, batches = _batch_variance(mine)
        within = variance / batches
        quantile = float(stdtrit(batches - 1, 0.5 + LEVEL / 2))
        half[op] = np.hypot(quantile * np.sqrt(within), 1.96 * np.sqrt(between / max(1, groups[op])))
    return half


def instance_variance(visits: Visits, drift: DriftFit) -> float:
    """Return the variance of log time between instances of an op: pooled over ops, visit noise taken out, never < 0."""
    n_ops = len(visits.op_ids)
    counts = np.bincount(drift.group_op, minlength=n_ops)
    freedom = np.maximum(counts - 1, 1)
    mean = np.bincount(drift.group_op, weights=drift.group_theta, minlength=n_ops) / np.maximum(counts, 1)
    squares = np.bincount(drift.group_op, weights=(drift.group_theta - mean[drift.group_op]) ** 2, minlength=n_ops)
    many = counts > 1
    if not many.any():
        return 0.0
    # The median over ops, scaled to be unbiased (Wilson-Hilferty), so that one wild op does not widen every row.
    scale = (1.0 - 2.0 / (9.0 * freedom)) ** 3
    spread = float(np.median((squares / freedom / scale)[many]))
    sigma = 1.4826 * float(np.median(np.abs(drift.residual)))
    visits_per_group = len(visits) / len(drift.group_op)
    return max(0.0, spread - (1.2533 * sigma) ** 2 / visits_per_group)


def _batch_variance(values: NDArray[np.float64]) -> tuple[float, int]:
    """Return the variance of the medians of contiguous batches, and how many batches there are."""
    batches = int(min(_MAX_BATCHES, len(values) // 2 if len(values) < 2 * _MAX_BATCHES else _MAX_BATCHES))
    medians = np.array([np.median(part) for part in np.array_split(values, batches)])
    # A median of few is more efficient than one of many: for normal noise n var(median of n) grows like 1 - 1/n.
    few = len(values) / batches
    return float(medians.var(ddof=1)) / (1.0 - 1.0 / max(2.0, few)), batches


def _bimodal(residual: NDArray[np.float64]) -> bool:
    """Whether the residuals fall into two groups: a wide gap with at least a quarter of the visits on either side."""
    if len(residual) < 4 * MIN_ROUNDS:
        return False
    ranked = np.sort(residual)
    quarter = -(-len(ranked) // 4)
    return bool(np.diff(ranked[quarter - 1 : len(ranked) - quarter + 1]).max() > _BIMODAL_GAP)
