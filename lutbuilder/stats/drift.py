"""The two-way fit: op effects and machine speed, together, from interleaved visits (measurement.md, "The method").

    log t[visit] = theta[op] + s(time of visit) + noise

`s` is the running median of the residuals of the visits around it in time, nearly all of them visits of other ops;
theta is the op's mean over instances of the median over its visits. The two alternate until neither moves. Sessions,
and campaigns of one session, are brought to one scale by the ops they share, however few those are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutbuilder.stats.records import Visits

WINDOW = 15  # visits, about a train; docs/decisions/0003 compares windows on recorded visits
_MAX_STEPS = 30
_MAX_POLISH = 100
_TORN = 8.0  # times the typical gap between the medians with and without a visit itself
_SETTLED = 1e-5  # relative: a hundredth of the tightest interval anyone asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftFit:
    """Op effects and machine speed. Shapes: n visits, m ops, j (op, session, instance) groups that have visits.

    `theta` (m,): log ns of each op at the campaign's typical speed, NaN for ops without visits. `speed` (n,): log
    slowdown at each visit, told by its neighbours. `residual` (n,): what neither explains. `group_theta`, `group_op`
    (j,): the effect of each instance and its op.
    """

    theta: NDArray[np.float64]
    speed: NDArray[np.float64]
    residual: NDArray[np.float64]
    group_theta: NDArray[np.float64]
    group_op: NDArray[np.int64]
    steps: int


def fit(visits: Visits, *, window: int = WINDOW) -> DriftFit:
    """Return the two-way fit; `window` 0 gives plain medians without a drift model, for comparison.

    Order of visits does not matter; sessions, and the campaigns of a session, have their own stretch of `s`.
    """
    n_ops = len(visits.op_ids)
    log_t = np.log(visits.block_ns)
    groups, group_op = _instances(visits)
    speed = np.zeros(len(visits))
    theta, group_theta = _op_effects(log_t, groups, group_op, n_ops)
    steps = 0
    if window and len(visits):
        stretches = _stretches(visits)
        moved = np.inf
        while moved >= _SETTLED and steps < _MAX_STEPS:
            steps += 1
            residual = log_t - theta[visits.op]
            for stretch in stretches:
                speed[stretch] = _running_median(residual[stretch], window)
                speed[stretch] -= np.median(speed[stretch])  # or it wanders where nothing ties the stretch to another
            for stretch, offset in zip(stretches, _offsets(log_t - speed, visits.op, stretches, n_ops), strict=True):
                speed[stretch] += offset
            speed -= np.median(speed)
            before = theta
            theta, group_theta = _op_effects(log_t - speed, groups, group_op, n_ops)
            moved = np.nanmax(np.abs(theta - before))
        # A visit counts in its own running median, which so takes up a part of what its instance differs by: a fit may,
        # an interval may not.
        residual = log_t - theta[visits.op]
        for stretch in stretches:
            speed[stretch] = _median_of_others(residual[stretch], window)
        _, group_theta = _op_effects(log_t - speed, groups, group_op, n_ops)
    return DriftFit(
        theta=theta,
        speed=speed,
        residual=log_t - theta[visits.op] - speed,
        group_theta=group_theta,
        group_op=group_op,
        steps=steps,
    )


def grouped_median(values: NDArray[np.float64], groups: NDArray[np.int64], n_groups: int) -> NDArray[np.float64]:
    """Return the median of `values` in each group 0 .. n_groups - 1; NaN for empty groups. One sort, no Python loop."""
    medians = np.full(n_groups, np.nan)
    if not len(values):
        return medians
    order = np.lexsort((values, groups))
    ranked = values[order]
    starts = np.searchsorted(groups[order], np.arange(n_groups + 1))
    counts = np.diff(starts)
    some = counts > 0
    low = starts[:-1][some] + (counts[some] - 1) // 2
    high = starts[:-1][some] + counts[some] // 2
    medians[some] = 0.5 * (ranked[low] + ranked[high])
    return medians


def _instances(visits: Visits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the (op, session, instance) combinations that occur; return each visit's number and each number's op."""
    if not len(visits):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    keys = np.stack([visits.op, visits.session, visits.instance], axis=1)
    unique, numbers = np.unique(keys, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), unique[:, 0].astype(np.int64)


def _op_effects(
    log_t: NDArray[np.float64], groups: NDArray[np.int64], group_op: NDArray[np.int64], n_ops: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return per-op means over instances of medians over visits, and those medians."""
    group_theta = grouped_median(log_t, groups, len(group_op))
    counts = np.bincount(groups, minlength=len(group_op)).astype(np.float64)
    # An instance seen once or twice says little yet; from a handful of visits on all instances weigh the same.
    weights = np.minimum(counts, 4.0)
    total = np.bincount(group_op, weights=weights, minlength=n_ops)
    weighted = np.bincount(group_op, weights=weights * group_theta, minlength=n_ops)
    return weighted / np.where(total > 0, total, np.nan), group_theta


def _stretches(visits: Visits) -> list[NDArray[np.int64]]:
    """Return each session's visits in the order they were made, anew where rounds start over: another campaign."""
    order = np.lexsort((visits.order, visits.start_ns, visits.session))
    cuts = np.flatnonzero((np.diff(visits.session[order]) != 0) | (np.diff(visits.round[order]) < 0)) + 1
    return [part.astype(np.int64) for part in np.split(order, cuts)]


def _offsets(
    log_t: NDArray[np.float64], op: NDArray[np.int64], stretches: list[NDArray[np.int64]], n_ops: int
) -> NDArray[np.float64]:
    """Return how much slower each stretch is than the others, told by the ops it shares with them; 0 if it shares none.

    Without it, where most ops of a stretch are in no other, the running median follows those: their theta takes up the
    stretch's scale, their residuals are 0, and the few that are shared are outvoted.
    Source: median polish, Tukey, Exploratory Data Analysis, 1977; means over the stretches, of which there are few.
    """
    offsets = np.zeros(len(stretches))
    if len(stretches) == 1:
        return offsets
    cells = np.stack([grouped_median(log_t[stretch], op[stretch], n_ops) for stretch in stretches], axis=1)
    cells = cells[np.isfinite(cells).sum(axis=1) > 1]
    seen = np.isfinite(cells)
    places = np.nonzero(seen)[1].astype(np.int64)
    for _ in range(_MAX_POLISH if len(cells) else 0):
        left = cells - offsets
        left -= np.nanmean(left, axis=1, keepdims=True)
        step = np.nan_to_num(grouped_median(left[seen], places, len(stretches)))
        offsets += step
        if np.abs(step).max() < _SETTLED:
            break
    return offsets


def _running_median(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    from scipy.ndimage import median_filter

    size = min(window | 1, len(values) - (1 - len(values) % 2))
    smooth: NDArray[np.float64] = median_filter(values, size=max(size, 1), mode="nearest")
    return smooth


def _median_of_others(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the running median without the value in the middle, unless it decides; of less than three, the value."""
    half = min(window | 1, len(values) - (1 - len(values) % 2)) // 2
    others: NDArray[np.float64] = values.copy()
    if half < 1:
        return others
    around = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, mode="reflect"), 2 * half + 1)
    others = np.median(np.delete(around, half, axis=1), axis=1)
    # Where the machine changes its speed the others are of two speeds and their median is of neither: the value itself
    # tells which one it belongs to.
    with_it = _running_median(values, window)
    gap = np.abs(others - with_it)
    return np.where(gap > _TORN * np.median(gap), with_it, others)
