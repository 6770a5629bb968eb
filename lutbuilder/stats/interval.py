"""Intervals: how far an op's estimate can be from what another campaign on this device would give.

What an interval is about. One session cannot tell an op's time from the machine's speed, so the truth of a row is the
op's time relative to the campaign's scale, which is common to all rows. Where a preparation lands in memory is chance,
and so is what a session or another device of the class does to one op: the truth is the mean over preparations, and
with several sessions (agents) the mean over those. With one session, its own effect on an op is part of the truth.

Every level is judged by its replicates: instances of an op within a session, sessions of an op, agents. Too few of one
op say how much, so their variances are shrunk over all ops (stats/shrink.py), and the t quantile knows how many there
are. Within an instance visits are nearly independent once the machine's speed is taken out; what autocorrelation is
left counts as fewer visits (effective sample size: Geyer, Statistical Science 7(4), 1992, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.stats.drift import DriftFit, fit, grouped_median
from lutbuilder.stats.records import OpEstimate, Visits
from lutbuilder.stats.shrink import extra_variance, shrunk

LEVEL = 0.95
MIN_ROUNDS = 6  # below, there is no interval
_MAD_SIGMA = 1.4826  # standard deviation of a normal variable over its median absolute deviation
_MEAN_COSTS = 1.08  # variance of the fit's reweighted mean of normal visits, over that of their mean
_LAGS = 8  # visits of one op; on recorded visits autocorrelation is 0.05 at lag 1 and gone after 8
_BIMODAL_GAP = 0.08  # relative distance of two modes that is worth a flag

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Estimates of one level, shapes (k,): values in log time, their variances, their weights in the op's mean."""

    op: Ints
    session: Ints  # of a unit of several sessions: one of them
    value: Floats
    variance: Floats
    weight: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far the op effects of a fit may be off. All shapes (ops,), all of log time, NaN for ops without visits.

    `variance` and `freedom` (degrees of freedom of the variance, inf if it is known) are the op effect's;
    `instance_sd`, `session_sd`, `agent_sd` what one preparation, session or agent adds to an op, shrunk over the ops;
    NaN where no op has two of them. `sessions`: the effect of every op in every session, and how certain its instances
    make it; `agents`: the same for agents, by sessions, with `agent_freedom` of that (ops,).
    """

    variance: Floats
    freedom: Floats
    instance_sd: Floats
    session_sd: Floats
    agent_sd: Floats
    sessions: Units
    agents: Units
    agent_freedom: Floats

    def half_widths(self, n_visits: Ints) -> Floats:
        """Return half the 95 % interval of each op in log time; NaN below MIN_ROUNDS visits."""
        known = n_visits >= MIN_ROUNDS
        half = np.full(len(known), np.nan)
        half[known] = quantile(self.freedom[known]) * np.sqrt(self.variance[known])
        return half


def quantile(freedom: Floats) -> Floats:
    """Return how many standard errors half the 95 % interval is."""
    from scipy.special import stdtrit

    quantiles: Floats = stdtrit(np.minimum(freedom, 1e6), 0.5 + LEVEL / 2)
    return quantiles


def estimate(visits: Visits, *, steady: bool = False) -> tuple[OpEstimate, ...]:
    """Return one OpEstimate per op that has visits, in the order of `visits.op_ids`; call overhead still inside."""
    return estimate_from(visits, fit(visits, steady=steady))


def estimate_from(visits: Visits, drift: DriftFit) -> tuple[OpEstimate, ...]:
    """The same for a fit that is already there."""
    if not len(visits):
        return ()
    n_ops = len(visits.op_ids)
    n_visits = np.bincount(visits.op, minlength=n_ops)
    n_preempted = np.bincount(visits.op, weights=visits.n_preempted, minlength=n_ops)
    n_calls = np.bincount(visits.op, weights=visits.n_calls, minlength=n_ops)
    told = spread(visits, drift)
    half = told.half_widths(n_visits)
    # Sessions of several agents differ by what their agents differ by, too.
    between_sessions = np.hypot(np.nan_to_num(told.session_sd), np.nan_to_num(told.agent_sd))
    mad = _MAD_SIGMA * grouped_median(np.abs(drift.residual), visits.op, n_ops)
    p90 = grouped_median(np.log(visits.p90_ns) - drift.speed, visits.op, n_ops)
    clean = drift.theta[visits.op] + drift.residual
    is_odd = visits.round % 2 == 1
    even = grouped_median(clean[~is_odd], visits.op[~is_odd], n_ops)
    odd = grouped_median(clean[is_odd], visits.op[is_odd], n_ops)
    halves_known = np.isfinite(even) & np.isfinite(odd)  # an op of every second round may have even rounds only
    n_rounds, n_instances, n_sessions = (
        np.bincount(_numbered(visits.op, visits.session, column)[0][0], minlength=n_ops)
        for column in (visits.round, visits.instance, np.zeros_like(visits.op))
    )
    agent = _agents_of_sessions(visits)[visits.session]
    n_agents = np.bincount(_numbered(visits.op, agent)[0][0], minlength=n_ops)
    order = np.argsort(visits.op, kind="stable")
    residuals = np.split(drift.residual[order], np.cumsum(n_visits)[:-1])
    estimates = []
    for op in np.flatnonzero(n_visits):
        time_ms = float(np.exp(drift.theta[op]) / 1e6)
        known = bool(np.isfinite(half[op]))
        estimates.append(
            OpEstimate(
                op_id=visits.op_ids[op],
                time_ms=time_ms,
                lo_ms=time_ms * float(np.exp(-half[op])) if known else None,
                hi_ms=time_ms * float(np.exp(half[op])) if known else None,
                freedom=float(told.freedom[op]),
                p90_ms=float(np.exp(p90[op]) / 1e6),
                n_visits=int(n_visits[op]),
                n_rounds=int(n_rounds[op]),
                n_instances=int(n_instances[op]),
                n_sessions=int(n_sessions[op]),
                n_agents=int(n_agents[op]),
                test_retest=float(abs(np.expm1(even[op] - odd[op])))
                if halves_known[op] and n_rounds[op] >= 4
                else None,
                preempted_fraction=float(n_preempted[op] / max(1.0, n_calls[op])),
                bimodal=_bimodal(residuals[op]),
                residual_mad=float(mad[op]),
                session_sd=float(between_sessions[op]) if n_sessions[op] > 1 else None,
            )
        )
    return tuple(estimates)


def spread(visits: Visits, drift: DriftFit) -> Spread:
    """Return how far the op effects of `drift` may be off: instances, then sessions, then agents, as there are."""
    n_ops = len(visits.op_ids)
    instances, n_visits, inefficiency = _instances(visits, drift)
    sessions, parents = _grouped(instances, instances.session)
    level = _level(instances, parents, sessions, n_ops)
    # Visits of different instances take turns, so what outlasts a visit is in all of them and the replicates hide it.
    hidden = (inefficiency - 1.0) * _sums(parents, instances.weight**2 * instances.variance, len(sessions.op))
    sessions = replace(sessions, variance=level.variance + hidden / sessions.weight**2)
    freedom = level.freedom
    if not np.isfinite(freedom).all():  # one instance of every op: its visits are all that is known
        freedom = np.maximum(_sums(instances.op, n_visits - 1.0, n_ops), 1.0)
    agents, parents = _grouped(sessions, _agents_of_sessions(visits)[sessions.session])
    between_sessions = _level(sessions, parents, agents, n_ops)
    agents = replace(agents, variance=between_sessions.variance)
    ops, parents = _grouped(agents, np.zeros_like(agents.op))
    between_agents = _level(agents, parents, ops, n_ops)
    variance = np.full(n_ops, np.nan)
    variance[ops.op] = between_agents.variance + _scale_variance(sessions, n_ops)[ops.op]
    agent_freedom = _joint(freedom, between_sessions.freedom)
    return Spread(
        variance=variance,
        freedom=_joint(agent_freedom, between_agents.freedom),
        instance_sd=level.extra_sd,
        session_sd=between_sessions.extra_sd,
        agent_sd=between_agents.extra_sd,
        sessions=sessions,
        agents=agents,
        agent_freedom=agent_freedom,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """What the replicates of one level say. `variance` (parents,): of each parent's mean; the others (ops,)."""

    variance: Floats
    freedom: Floats
    extra_sd: Floats


def _level(units: Units, parents: Ints, means: Units, n_ops: int) -> _Level:
    """Return how certain the means of `units` by parent are, judged by how `units` of one parent differ.

    Expected of a unit is its own variance and one that is common to all ops; how much more or less an op's units
    differ is shrunk over the ops.
    """
    n_units = np.bincount(parents, minlength=len(means.op))
    centre = _sums(parents, units.value, len(means.op)) / n_units  # unweighted, or the mean square had no known mean
    freedom = _sums(means.op, n_units - 1.0, n_ops)
    mean_square = _sums(units.op, (units.value - centre[parents]) ** 2, n_ops) / np.maximum(freedom, 1.0)
    several = (n_units > 1)[parents]
    known = _sums(units.op[several], units.variance[several], n_ops) / np.maximum(
        np.bincount(units.op[several], minlength=n_ops), 1
    )
    extra = extra_variance(mean_square, freedom, known)
    expected = extra + known
    ratio = np.divide(mean_square, expected, out=np.ones(n_ops), where=(freedom > 0) & (expected > 0))
    factor, certain = shrunk(ratio, np.where(expected > 0, freedom, 0.0))
    variance = _sums(parents, units.weight**2 * (units.variance + extra), len(means.op)) / means.weight**2
    extra_sd = np.sqrt(np.maximum(0.0, factor * expected - known))
    return _Level(
        variance=factor[means.op] * variance,
        freedom=certain,
        extra_sd=extra_sd if freedom.any() else np.full(n_ops, np.nan),
    )


def _instances(visits: Visits, drift: DriftFit) -> tuple[Units, Ints, float]:
    """Return the instances, how many visits each had, and how many visits are worth one independent one (>= 1)."""
    n_ops = len(visits.op_ids)
    (op, session, _), number = _numbered(visits.op, visits.session, visits.instance)
    n_visits = np.bincount(number, minlength=len(op))
    noise = drift.theta[visits.op] + drift.residual - drift.group_theta[number]
    of_op = np.bincount(visits.op, minlength=n_ops)
    free = np.maximum(of_op - np.bincount(op, minlength=n_ops), 1)
    sigma = _MAD_SIGMA * np.nan_to_num(grouped_median(np.abs(noise), visits.op, n_ops)) * np.sqrt(of_op / free)
    units = Units(
        op=op,
        session=session,
        value=drift.group_theta,  # of the same instances, in the same order
        variance=sigma[op] ** 2 * _MEAN_COSTS / n_visits,
        weight=drift.group_weight,
    )
    scaled = np.divide(noise, sigma[visits.op], out=np.zeros(len(visits)), where=sigma[visits.op] > 0)
    return units, n_visits, _inefficiency(visits, np.clip(scaled, -3.0, 3.0), number, n_visits)


def _inefficiency(visits: Visits, noise: Floats, instance: Ints, n_visits: Ints) -> float:
    """Return 1 + twice the autocorrelations of an op's visits, pooled over ops; 1 unless they are above chance."""
    order = np.lexsort((visits.start_ns, visits.session, visits.op))
    series = visits.op[order] * len(visits.session_ids) + visits.session[order]
    noise, instance = noise[order], instance[order]
    power = float(np.mean(noise**2)) if len(noise) else 0.0
    total, doubt = 0.0, 0.0
    for lag in range(1, min(_LAGS, len(noise) - 1) + 1):
        same = series[lag:] == series[:-lag]
        if power == 0.0 or not same.any():
            break
        # Residuals from an instance's own centre are anticorrelated by 1 / (n - 1) within it.
        within = same & (instance[lag:] == instance[:-lag])
        owed = np.sum(1.0 / np.maximum(n_visits[instance[lag:][within]] - 1.0, 1.0))
        pairs = float(same.sum())
        total += float(np.sum((noise[lag:] * noise[:-lag])[same]) / power + owed) / pairs
        doubt += 1.0 / pairs
    return 1.0 + 2.0 * max(0.0, total - float(np.sqrt(doubt)))


def _scale_variance(sessions: Units, n_ops: int) -> Floats:
    """Return what an op owes to the scales of its sessions: tied by few shared ops, they are off themselves.

    Shape (ops,); 0 for an op that is in all sessions as the average op is, for that is the campaign's scale.
    """
    n_sessions = int(sessions.session.max(initial=0)) + 1
    if n_sessions == 1:
        return np.zeros(n_ops)
    share = np.zeros((n_ops, n_sessions))
    share[sessions.op, sessions.session] = sessions.weight
    seen = share.sum(axis=1) > 0
    share[seen] /= share[seen].sum(axis=1, keepdims=True)
    shared = np.bincount(sessions.op, minlength=n_ops)[sessions.op] > 1
    n_shared = np.bincount(sessions.session[shared], minlength=n_sessions)
    total = np.bincount(sessions.session[shared], weights=sessions.variance[shared], minlength=n_sessions)
    scale = np.pi / 2 * total / np.maximum(n_shared, 1) ** 2  # the scale is a median over the shared ops
    owed: Floats = (share - share[seen].mean(axis=0)) ** 2 @ scale
    return owed


def _grouped(units: Units, within: Ints) -> tuple[Units, Ints]:
    """Return the weighted means of `units` by op and `within`, their variances still 0, and whose mean is which."""
    (op, _), parents = _numbered(units.op, within)
    session = np.zeros(len(op), np.int64)
    session[parents] = units.session
    weight = _sums(parents, units.weight, len(op))
    value = _sums(parents, units.weight * units.value, len(op)) / weight
    return Units(op=op, session=session, value=value, variance=np.zeros(len(op)), weight=weight), parents


def _joint(a: Floats, b: Floats) -> Floats:
    """Return the degrees of freedom of a product of two estimated factors; their relative variances add up."""
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / (1.0 / a + 1.0 / b))


def _agents_of_sessions(visits: Visits) -> Ints:
    """Return a number of the agent of every session."""
    if not visits.session_agents:
        return np.zeros(len(visits.session_ids), np.int64)
    return np.unique(np.array(visits.session_agents), return_inverse=True)[1].astype(np.int64)


def _numbered(*columns: Ints) -> tuple[tuple[Ints, ...], Ints]:
    """Number the combinations of `columns` that occur, in their order; return their columns, and each row's number."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        key = key * (int(column.max(initial=0)) + 1) + column
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    return tuple(column[first] for column in columns), number.reshape(-1).astype(np.int64)


def _sums(groups: Ints, values: NDArray[np.floating[Any]], n: int) -> Floats:
    return np.asarray(np.bincount(groups, weights=values, minlength=n), np.float64)


def _bimodal(residual: Floats) -> bool:
    """Whether the residuals fall into two groups: a wide gap with at least a quarter of the visits on either side."""
    if len(residual) < 4 * MIN_ROUNDS:
        return False
    ranked = np.sort(residual)
    quarter = -(-len(ranked) // 4)
    return bool(np.diff(ranked[quarter - 1 : len(ranked) - quarter + 1]).max() > _BIMODAL_GAP)
