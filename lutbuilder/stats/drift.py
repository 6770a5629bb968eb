"""The two-way fit: op effects and machine speed, together, from interleaved visits (measurement.md, "The method").

    log t[visit] = theta[op] + instance + s(time of visit) + noise

`s` is a local level: it wanders a little from visit to visit, and now and then it jumps. Noise and steps of `s` have
Student's t distributions: an outlying visit moves neither its op nor `s`, and a machine of two speeds is followed over
its jumps. Every visit tells `s` as much as its op is steady; theta is the op's mean over its instances of the mean over
their visits. Everything is reweighted until theta no longer moves. Sessions, and campaigns of one session, are brought
to one scale by the ops they share, however few those are.

docs/decisions/0005 compares this with other models on recorded visits, and says why `s` must not follow the machine
more closely: an op slows the ops it is visited together with, and would pay for it.

Sources: local level, Durbin and Koopman, Time Series Analysis by State Space Methods, 2nd ed. 2012, chapter 2; t by
reweighting, Lange, Little and Taylor, Journal of the American Statistical Association 84(408), 1989.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutbuilder.stats.records import Visits

# docs/decisions/0005: chosen on some recorded sessions, judged on others; a factor of 3 either way changes little.
_WANDER = 0.2  # standard deviation of a step of log speed from visit to visit, over that of the typical op's noise
_NOISE_FREEDOM = 4.0  # of the t distributions
_STEP_FREEDOM = 2.0
_INSTANCE_SD = 0.05  # of log time: twice what is measured, or instances were drawn together and intervals too narrow
_PRIOR_VISITS = 8.0  # what the noise of the typical op counts in an op's own
_FULL_WEIGHT = 4.0  # in visits: an instance seen once or twice says little yet; from these on all weigh the same
_START_WINDOW = 15  # visits; the running median that the fit starts from knows the machine's states
_SCALE_STEPS = 8  # then the ops' noise is settled, and only what depends on it still moves
_MAX_STEPS = 60
_MAX_POLISH = 100
_SETTLED = 1e-5  # relative: a hundredth of the tightest interval anyone asks for
_LEAST_NOISE = 1e-5  # a steady machine with a coarse timer has none
_MAD_SIGMA = 1.4826

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftFit:
    """Op effects and machine speed. Shapes: n visits, m ops, j (op, session, instance) groups that have visits.

    `theta` (m,): log ns of each op at the campaign's typical speed, NaN for ops without visits. `speed` (n,): log
    slowdown at each visit, told by its neighbours. `residual` (n,): what neither explains. `group_theta`, `group_op`
    (j,): the effect of each instance and its op; `group_weight` (j,): its weight in theta, in visits.
    """

    theta: Floats
    speed: Floats
    residual: Floats
    group_theta: Floats
    group_weight: Floats
    group_op: Ints
    steps: int


def fit(visits: Visits, *, steady: bool = False) -> DriftFit:
    """Return the two-way fit; `steady` takes the machine for steady: plain medians, for comparison.

    Order of visits does not matter; sessions, and the campaigns of a session, have their own stretch of `s`.
    """
    order = np.lexsort((visits.instance, visits.op, visits.order, visits.start_ns, visits.session))
    groups, group_op = _instances(visits)
    n_ops = len(visits.op_ids)
    there = _Sorted(
        log_t=np.log(visits.block_ns[order]),
        op=visits.op[order],
        group=groups[order],
        group_op=group_op,
        n_ops=n_ops,
        stretch=_stretches(visits.session[order], visits.round[order], visits.instance[order]),
    )
    if steady or not len(visits):
        speed, steps = np.zeros(len(visits)), 0
        effects = _medians(there.log_t, there)
    else:
        effects, speed, steps = _two_way(there)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    speed = speed[back]
    return DriftFit(
        theta=effects.theta,
        speed=speed,
        residual=np.log(visits.block_ns) - effects.theta[visits.op] - speed,
        group_theta=effects.group_theta,
        group_weight=effects.group_weight,
        group_op=group_op,
        steps=steps,
    )


def grouped_median(values: Floats, groups: Ints, n_groups: int) -> Floats:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sorted:
    """The visits in the order they were made, session after session; `stretch` (n,) numbers the stretches from 0."""

    log_t: Floats
    op: Ints
    group: Ints
    group_op: Ints
    n_ops: int
    stretch: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class _Effects:
    """Of ops (m,) and of instances (j,), in log time; weights in visits."""

    theta: Floats
    group_theta: Floats
    group_weight: Floats


def _two_way(there: _Sorted) -> tuple[_Effects, Floats, int]:
    """Return op effects, the log slowdown at each visit as the others tell it, and how many steps it took to settle."""
    log_t, op = there.log_t, there.op
    effects = _medians(log_t, there)
    speed = _to_one_scale(_running_median(log_t - effects.theta[op], there.stretch), there)
    effects = _medians(log_t - speed, there)
    expected = effects.theta[op]
    seen = np.unique(op)
    noise = np.ones(there.n_ops)
    for steps in range(1, _MAX_STEPS + 1):
        left = log_t - speed - expected
        if steps <= _SCALE_STEPS:
            noise = _noise(left, there)
        weight = (_NOISE_FREEDOM + 1.0) / (_NOISE_FREEDOM + (left / noise[op]) ** 2)
        step = _WANDER * float(np.median(noise[seen]))
        level = _Level.of(log_t - expected, weight / noise[op] ** 2, _ties(speed, step, there))
        speed = _to_one_scale(level.value, there)
        before = effects.theta
        effects = _means(log_t - speed, weight, there)
        expected = _expected(log_t - speed, weight, effects, noise, there)
        if np.nanmax(np.abs(effects.theta - before)) < _SETTLED:
            break
    # A visit counts in the level it is on, which so takes up a part of what its instance differs by: a fit may, an
    # interval may not.
    speed = speed + level.others - level.value
    return replace(effects, group_theta=_means(log_t - speed, weight, there).group_theta), speed, steps


@dataclass(frozen=True, slots=True)
class _Level:
    """A local level at each visit: given all visits, and given all but the visit itself. Shapes (n,)."""

    value: Floats
    others: Floats

    @classmethod
    def of(cls, seen: Floats, precision: Floats, tie: Floats) -> _Level:
        """Return the smoothed level of what is `seen` with `precision` (n,); `tie` (n - 1,) is that of its steps.

        A Gaussian random walk seen through Gaussian noise is one tridiagonal system; its pivots from either end give
        the variances too.
        """
        from scipy.linalg.lapack import dpttrf, dpttrs

        if len(seen) == 1:  # LAPACK wants something beside the diagonal
            return cls(seen, seen)
        diagonal = precision.copy()
        diagonal[:-1] += tie
        diagonal[1:] += tie
        forward, factor, _ = dpttrf(diagonal, -tie)
        backward, _, _ = dpttrf(diagonal[::-1].copy(), -tie[::-1])
        value, _ = dpttrs(forward, factor, precision * seen)
        own = precision / (forward + backward[::-1] - diagonal)  # share of the visit in its own level
        others = np.where(own < 1.0 - 1e-9, (value - own * seen) / np.maximum(1.0 - own, 1e-9), value)
        return cls(value, others)


def _ties(speed: Floats, step: float, there: _Sorted) -> Floats:
    """Return the precision of the steps of log speed, (n - 1,): little where it jumps, none between stretches."""
    jump = (np.diff(speed) / step) ** 2
    tie = (_STEP_FREEDOM + 1.0) / (_STEP_FREEDOM + jump) / step**2
    return np.where(np.diff(there.stretch) != 0, 0.0, tie)


def _noise(left: Floats, there: _Sorted) -> Floats:
    """Return the scale of each op's noise, shrunk to that of the typical op, shape (m,)."""
    count = np.bincount(there.op, minlength=there.n_ops)
    own = np.nan_to_num(_MAD_SIGMA * grouped_median(np.abs(left), there.op, there.n_ops))
    typical = float(np.median(own[count > 0]))
    variance = (count * own**2 + _PRIOR_VISITS * typical**2) / (count + _PRIOR_VISITS)
    return np.maximum(np.sqrt(variance), _LEAST_NOISE)


def _expected(values: Floats, weight: Floats, effects: _Effects, noise: Floats, there: _Sorted) -> Floats:
    """Return what the other visits of its instance, and as far as those say little its op, expect of each visit, (n,).

    The visit itself has no say, or one that is alone would never be outlying.
    """
    total = np.bincount(there.group, weights=weight, minlength=len(there.group_op))
    others = np.maximum(total[there.group] - weight, 1e-12)
    theirs = ((total * effects.group_theta)[there.group] - weight * values) / others
    told = _INSTANCE_SD**2 / (_INSTANCE_SD**2 + noise[there.op] ** 2 / others)
    of_op = effects.theta[there.op]
    return np.asarray(of_op + told * (theirs - of_op))


def _medians(values: Floats, there: _Sorted) -> _Effects:
    """Return per-op means over instances of medians over visits."""
    count = np.bincount(there.group, minlength=len(there.group_op)).astype(np.float64)
    return _over_instances(grouped_median(values, there.group, len(there.group_op)), count, there)


def _means(values: Floats, weight: Floats, there: _Sorted) -> _Effects:
    """Return per-op means over instances of weighted means over visits."""
    n_groups = len(there.group_op)
    total = np.bincount(there.group, weights=weight, minlength=n_groups).astype(np.float64)
    return _over_instances(np.bincount(there.group, weights=weight * values, minlength=n_groups) / total, total, there)


def _over_instances(group_theta: Floats, visits: Floats, there: _Sorted) -> _Effects:
    weight = np.minimum(visits, _FULL_WEIGHT)
    total = np.bincount(there.group_op, weights=weight, minlength=there.n_ops)
    weighted = np.bincount(there.group_op, weights=weight * group_theta, minlength=there.n_ops)
    theta = weighted / np.where(total > 0, total, np.nan)
    return _Effects(theta=theta, group_theta=group_theta, group_weight=weight)


def _instances(visits: Visits) -> tuple[Ints, Ints]:
    """Number the (op, session, instance) combinations that occur; return each visit's number and each number's op."""
    if not len(visits):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    keys = np.stack([visits.op, visits.session, visits.instance], axis=1)
    unique, numbers = np.unique(keys, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), unique[:, 0].astype(np.int64)


def _stretches(session: Ints, round_: Ints, instance: Ints) -> Ints:
    """Number the stretches of sorted visits: sessions, anew where rounds start over, which is another campaign, and
    where everything is prepared anew, which is another lease.

    A lease may visit other ops than the one before. Were it of the same stretch, its new instances would take up most
    of an error of its scale, and ops of many leases would read some tenths of a per cent off those of few.
    """
    number = session * (int(instance.max(initial=0)) + 1) + instance
    anew = np.maximum.accumulate(number)[:-1] < np.minimum.accumulate(number[::-1])[::-1][1:]
    starts = anew | (np.diff(session) != 0) | (np.diff(round_) < 0)
    return np.concatenate([np.zeros(min(1, len(session)), np.int64), np.cumsum(starts)])


def _to_one_scale(speed: Floats, there: _Sorted) -> Floats:
    """Return `speed` so that all stretches are on one scale, on which the median visit is at 0.

    A stretch's own scale is in no visit of it: only the ops that it shares with others tell it.
    """
    n_stretches = int(there.stretch[-1]) + 1
    if n_stretches > 1:
        speed = speed - grouped_median(speed, there.stretch, n_stretches)[there.stretch]
        speed += _offsets(there.log_t - speed, there, n_stretches)[there.stretch]
    return np.asarray(speed - np.median(speed))


def _offsets(values: Floats, there: _Sorted, n_stretches: int) -> Floats:
    """Return how much slower each stretch is than the others, told by the ops it shares with them; 0 if it shares none.

    Without it, where most ops of a stretch are in no other, the level follows those: their theta takes up the stretch's
    scale, their residuals are 0, and the few that are shared are outvoted.
    Source: median polish, Tukey, Exploratory Data Analysis, 1977; means over the stretches, of which there are few.
    """
    offsets = np.zeros(n_stretches)
    cells = grouped_median(values, there.op * n_stretches + there.stretch, there.n_ops * n_stretches)
    cells = cells.reshape(there.n_ops, n_stretches)
    cells = cells[np.isfinite(cells).sum(axis=1) > 1]
    seen = np.isfinite(cells)
    columns, of_column = np.arange(n_stretches), seen.sum(axis=0)
    of_row = np.maximum(seen.sum(axis=1, keepdims=True), 1)
    low, high = (of_column - 1) // 2, of_column // 2
    for _ in range(_MAX_POLISH if len(cells) else 0):
        left = cells - offsets
        left -= np.where(seen, left, 0.0).sum(axis=1, keepdims=True) / of_row
        left.sort(axis=0)  # what was not seen comes last
        step = np.where(of_column > 0, 0.5 * (left[low, columns] + left[high, columns]), 0.0)
        offsets += step
        if np.abs(step).max() < _SETTLED:
            break
    return offsets


def _running_median(values: Floats, stretch: Ints) -> Floats:
    parts = np.split(values, np.flatnonzero(np.diff(stretch)) + 1)
    return np.concatenate([median_of_neighbours(part, min(_START_WINDOW, len(part))) for part in parts])


def median_of_neighbours(values: Floats, size: int) -> Floats:
    """Return the median of the `size` values around each one, the ends repeated outwards.

    scipy.ndimage.median_filter gives the same; its import takes longer than a fit.
    """
    before = size // 2
    padded = np.pad(values, (before, size - 1 - before), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)
    medians: Floats = np.partition(windows, before, axis=1)[:, before]
    return medians
