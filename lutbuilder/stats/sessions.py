"""Several sessions of one device, or of several devices of one class: how they compare, and what rules leave out.

A session is out of line by rule only, and only against two others at least: of two that disagree nobody knows which one
is wrong. Thresholds are the constants below. A rule flags what says nothing about the device (another load, another
clock, an agent on the wrong machine), not the ordinary spread between sessions: that belongs into the interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lutbuilder.stats.drift import DriftFit
from lutbuilder.stats.interval import Spread, spread
from lutbuilder.stats.records import Visits

OUT_OF_LINE = 3.0  # times the other sessions' median sentinel residual, and times what chance explains
LEAST_RESIDUAL = 0.01  # of log time; below, no residual is worth a flag
RESTLESS = 3.0  # times the other sessions' median drift range
LEAST_DRIFT = 0.7  # of log time; below, none is worth a flag: 1.8 times within seconds is ordinary on virtual machines
FEWEST_SESSIONS = 3  # with fewer nothing is excluded
FEWEST_OPS = 3  # shared by two sessions, or nothing is said of how their ops differ
FALSE_DISCOVERIES = 0.05  # share of ops called inconsistent that are not
_MAD_SIGMA = 1.4826
_WILD = 4.0  # robust standard deviations
_TINY = 1e-30

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReport:
    """How one session compares with the others of its pool.

    `scale`: log of how much slower it was than the others. `drift_range`: log of its slowest over its fastest speed,
    5 % of the visits left out at both ends. `sentinel_residual`: the session's own part of how far the ops it shares
    with others lie apart once scales are tied, standard deviation of log time; 0.0 if it shares none.
    `flagged` by rule, for `reason`; `excluded` from the fit.
    """

    session_id: str
    agent: str
    n_visits: int
    scale: float
    drift_range: float
    sentinel_residual: float
    flagged: bool
    excluded: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """How one agent's device compares with the others of its class, over the ops that several agents measured.

    `scale`: log of how much slower it is than the others. `inconsistent`: ops whose time on this device, scales tied,
    is further from the other devices' than sessions and preparations explain; FALSE_DISCOVERIES of them by chance.
    `n_ops`: how many were tested. Agents of one session each cannot be told from their sessions: what a session does to
    an op then counts as the device's.
    """

    agent: str
    n_sessions: int
    n_visits: int
    scale: float
    n_ops: int
    inconsistent: tuple[str, ...]


def session_reports(visits: Visits, drift: DriftFit, *, exclude: bool = False) -> tuple[SessionReport, ...]:
    """Return a report per session that has visits, in the order of `visits.session_ids`.

    With `exclude`, flagged sessions are marked as excluded if there are three or more and most are in line; leaving
    them out and fitting again is the caller's (`exclude_flagged`).
    """
    numbers = np.unique(visits.session)
    if not len(numbers):
        return ()
    speed = [drift.speed[visits.session == number] for number in numbers]
    scales = _relative(np.array([np.median(each) for each in speed]))
    ranges = np.array([np.ptp(np.quantile(each, [0.05, 0.95])) for each in speed])
    residuals, explained = sentinel_residuals(spread(visits, drift), numbers)
    reports = []
    for k, number in enumerate(numbers):
        reasons = _reasons(k, residuals, explained, ranges)
        reports.append(
            SessionReport(
                session_id=visits.session_ids[number],
                agent=visits.session_agents[number] if visits.session_agents else "",
                n_visits=len(speed[k]),
                scale=float(scales[k]),
                drift_range=float(ranges[k]),
                sentinel_residual=float(np.nan_to_num(residuals[k])),
                flagged=bool(reasons),
                excluded=False,
                reason="; ".join(reasons),
            )
        )
    n_flagged = sum(report.flagged for report in reports)
    if exclude and len(reports) >= FEWEST_SESSIONS and 2 * n_flagged < len(reports):
        reports = [replace(report, excluded=report.flagged) for report in reports]
    return tuple(reports)


def exclude_flagged(visits: Visits, reports: Iterable[SessionReport]) -> Visits:
    """Return the visits of the sessions that `reports` do not mark as excluded; sessions keep their numbers."""
    gone = {report.session_id for report in reports if report.excluded}
    keep = np.array([session_id not in gone for session_id in visits.session_ids], np.bool_)
    return visits.take(keep[visits.session])


def agent_reports(visits: Visits, drift: DriftFit) -> tuple[AgentReport, ...]:
    """Return a report per agent that has visits, in the order of their names; none if the visits name no agents."""
    if not visits.session_agents or not len(visits):
        return ()
    agent_of = np.array(visits.session_agents)
    told = spread(visits, drift)
    units, agent = told.agents, agent_of[told.agents.session]
    n_agents = np.bincount(units.op)[units.op]
    shared = n_agents > 1
    odd = np.zeros(len(units.op), np.bool_)
    odd[shared] = _inconsistent(told, agent, shared, n_agents)
    by_visit = agent_of[visits.session]
    names = np.unique(by_visit)
    scales = _relative(np.array([np.median(drift.speed[by_visit == name]) for name in names]))
    return tuple(
        AgentReport(
            agent=str(name),
            n_sessions=len(np.unique(visits.session[by_visit == name])),
            n_visits=int(np.sum(by_visit == name)),
            scale=float(scales[number]),
            n_ops=int(np.sum(shared & (agent == name))),
            inconsistent=tuple(visits.op_ids[op] for op in units.op[odd & (agent == name)]),
        )
        for number, name in enumerate(names)
    )


def _inconsistent(
    told: Spread, agent: NDArray[np.str_], shared: NDArray[np.bool_], n_agents: Ints
) -> NDArray[np.bool_]:
    """Return which of the `shared` effects of ops on agents differ from the other agents' mean; both sides in doubt."""
    if not shared.any():
        return np.zeros(0, np.bool_)
    from scipy.special import stdtr
    from scipy.stats import false_discovery_control

    units = told.agents
    others = n_agents - 1
    sums = (np.bincount(units.op, weights=column)[units.op] for column in (units.value, units.variance))
    of_values, of_variances = (total - own for total, own in zip(sums, (units.value, units.variance), strict=True))
    difference = (units.value - of_values / np.maximum(others, 1))[shared]
    variance = (units.variance + of_variances / np.maximum(others, 1) ** 2)[shared]
    for name in np.unique(agent[shared]):
        here = agent[shared] == name
        difference[here] -= np.median(difference[here])  # its scale is no difference between ops
    doubt = np.sqrt(np.maximum(variance, _TINY))
    p = 2.0 * stdtr(np.minimum(told.agent_freedom[units.op[shared]], 1e6), -np.abs(difference) / doubt)
    return np.asarray(false_discovery_control(p) <= FALSE_DISCOVERIES)


def sentinel_residuals(told: Spread, numbers: Ints) -> tuple[Floats, Floats]:
    """Return each session's own share of how far its ops lie from where others have them, and what is expected of it.

    Shapes (sessions,), standard deviations of log time; NaN for a session that shares too few ops. What the differences
    of A from B and of A from C have in common is A's own, so three sessions tell whose the differences are; of two,
    each gets half. Expected is what the session's instances and visits explain. Source: the three-cornered hat, Gray
    and Allan, Proc. 28th Annual Symposium on Frequency Control, 1974; a mean over the pairs of B and C.
    """
    units = told.sessions
    n = len(numbers)
    cells = np.full((int(units.op.max()) + 1, n), np.nan)
    column = np.searchsorted(numbers, units.session)
    cells[units.op, column] = units.value
    residuals = np.full(n, np.nan)
    for a in range(n):
        off = [cells[:, a] - cells[:, b] for b in range(n) if b != a]
        spreads = [_common(each, each) for each in off]
        shares = [
            (share, 1.0 / max(b * c, _TINY))  # a session far off makes its shares uncertain: they weigh less
            for (first, b), (second, c) in combinations(zip(off, spreads, strict=True), 2)
            if b is not None and c is not None and (share := _common(first, second)) is not None
        ] or [(0.5 * b, 1.0) for b in spreads if b is not None]
        if shares:
            own, weight = np.array(shares).T
            residuals[a] = np.sqrt(max(0.0, float(np.average(own, weights=weight))))
    expected = np.array([np.sqrt(np.median(units.variance[column == k])) for k in range(n)])
    return residuals, expected


def _common(first: Floats, second: Floats) -> float | None:
    """Return the covariance of two sessions' differences from a third over the ops they share; None for too few."""
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < FEWEST_OPS:
        return None
    clipped = []
    for values in (first[both], second[both]):
        off = values - np.median(values)
        most = _WILD * _MAD_SIGMA * float(np.median(np.abs(off)))
        clipped.append(np.clip(off, -most, most))  # one op alone puts no session out of line
    return float(np.mean(clipped[0] * clipped[1]))


def _reasons(k: int, residuals: Floats, expected: Floats, ranges: Floats) -> list[str]:
    """Return by which rules session `k` is out of line."""
    others = np.arange(len(ranges)) != k
    reasons: list[str] = []
    if not others.any():
        return reasons
    if np.isnan(residuals[k]):
        reasons.append(f"shares fewer than {FEWEST_OPS} ops with every other session: its scale is not tied to theirs")
    else:
        bounds = [LEAST_RESIDUAL, OUT_OF_LINE * float(expected[k])]
        known = residuals[others & np.isfinite(residuals)]
        if len(known) > 1:  # of two sessions each is as far from the other
            bounds.append(OUT_OF_LINE * float(np.median(known)))
        if residuals[k] > max(bounds):
            reasons.append(f"its ops are off by {residuals[k]:.1%}, more than {max(bounds):.1%}")
    bound = max(LEAST_DRIFT, RESTLESS * float(np.median(ranges[others])))
    if ranges[k] > bound:
        reasons.append(f"its speed drifted by {np.expm1(ranges[k]):.0%}, more than {np.expm1(bound):.0%}")
    return reasons


def _relative(scales: Floats) -> Floats:
    """Return each value less the mean of the others; 0 for the only one."""
    n = len(scales)
    return (scales - scales.mean()) * n / (n - 1) if n > 1 else np.zeros(n)
