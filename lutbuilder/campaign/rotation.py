"""What the next lease visits and for how long: pure functions of what is known so far and of the time that is left.

An op that is known well enough leaves the rotation, one whose interval has grown comes back: each lease's list is made
anew from all visits. Where the time does not suffice for every op, it goes where use x interval width in ms is widest.
Some ops stay although they are done: a train's caches have to hold what a network's hold, and drift is told by many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.spec import CampaignOp

LEAST_OPS = 12  # of a rotation: the median of fewer neighbours follows drift badly
MOST_LOADING = 1 / 5  # of a campaign's time
_SIZES_TRIED = 64
_LAST_LEASES = 3
_MEDIAN = math.pi / 2  # variance of a median of many normal values, times their number; theirs is 1

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of one campaign op. `half_ms` is half its 95 % interval; `visit_s` what one visit of it takes.

    `between_sd` and `visit_sd` are standard deviations of log time: between its instances, and from visit to visit.
    """

    time_ms: float
    half_ms: float | None
    n_visits: int
    visit_s: float
    between_sd: float
    visit_sd: float

    def lacking(self, precision: float) -> float:
        """Return how many more visits make it precise; `precision` is half the interval relative to the estimate.

        Half the interval shrinks like one over the root of the visits, for instances come in proportion to them.
        """
        if self.half_ms is None:
            return float("inf")
        return self.n_visits * max(0.0, (self.half_ms / (precision * self.time_ms)) ** 2 - 1.0)


def next_ops(
    ops: Sequence[CampaignOp], known: Mapping[str, Standing], *, precision: float, train_ops: int, left_s: float
) -> tuple[CampaignOp, ...]:
    """Return those of `ops` that the next lease visits, in their order; `left_s` is what is left for timed visits.

    All that lack precision, if the time suffices for all of them; else those that bring down the error of a random
    network the most, precise or not. Then anchors, so that sizes stay spread and there are two trains at least. Whole
    networks always stay.
    """
    singles = [op for op in ops if not op.is_whole]
    if any(op.op_id not in known or known[op.op_id].half_ms is None for op in singles):
        return tuple(ops)
    standings = [known[op.op_id] for op in singles]
    half_ms = np.array([standing.half_ms for standing in standings], np.float64)
    time_ms = np.array([standing.time_ms for standing in standings])
    visits = np.array([standing.n_visits for standing in standings], np.float64)
    visit_s = np.array([standing.visit_s for standing in standings])
    lacking = np.array([standing.lacking(precision) for standing in standings])
    error = np.array([part_of_error(op.use) for op in singles]) * half_ms
    gain = error**2 / (visits * visit_s)  # how fast its square falls, per second spent on the op
    chosen = lacking > 0.0
    if lacking @ visit_s > left_s:
        chosen = worthwhile(error, visits, visit_s, left_s=left_s)
    chosen = chosen | anchors(chosen, time_ms, gain, train_ops=train_ops)
    kept = {op.op_id for op, is_in in zip(singles, chosen, strict=True) if is_in}
    return tuple(op for op in ops if op.is_whole or op.op_id in kept)


def part_of_error(use: float) -> float:
    """Return what the interval of an op is multiplied by in the root mean square error of a random network.

    `use` is how often networks contain it, on average. One that a network has or has not counts by its probability:
    the mean of the square of 0 or 1. One that is there `use` times at least counts `use` times.
    """
    return float(max(use, use**2) ** 0.5)


def worthwhile(error: Floats, visits: Floats, visit_s: Floats, *, left_s: float) -> NDArray[np.bool_]:
    """Return which ops to visit for the rest of the time, all equally often, so that a network's error ends smallest.

    Shapes (ops,). `error` is each op's part, in ms; a network's is the root of their sum of squares. A lease later the
    question comes again, so that in the end each op gets its share (Neyman allocation) and not all or nothing.
    """
    order = np.argsort(-(error**2) / (visits * visit_s), kind="stable")
    squares, counts, spent_s = error[order] ** 2, visits[order], np.cumsum(visit_s[order])
    sizes = np.unique(np.geomspace(1, len(order), _SIZES_TRIED).round().astype(np.int64))
    more = left_s / spent_s[sizes - 1]  # visits of each, if the first so many are visited
    inside = np.arange(len(order)) < sizes[:, None]
    after = np.where(inside, squares * counts / (counts + more[:, None]), squares).sum(axis=1)
    chosen = np.zeros(len(order), np.bool_)
    chosen[order[: sizes[np.argmin(after)]]] = True
    return chosen


def anchors(chosen: NDArray[np.bool_], time_ms: Floats, gain: Floats, *, train_ops: int) -> NDArray[np.bool_]:
    """Return which further ops stay: one of every size class that has none, then the most useful up to two trains.

    Shapes (ops,). Size classes are equal parts of the ops ranked by time, as many as a train has members.
    """
    least = max(2 * train_ops, LEAST_OPS)
    staying = chosen.copy()
    ranked = np.argsort(time_ms, kind="stable")
    for group in np.array_split(ranked, min(max(train_ops, LEAST_OPS), len(ranked))):
        if not staying[group].any():
            staying[group[np.argmax(gain[group])]] = True
    for place in np.argsort(-gain, kind="stable"):
        if staying.sum() >= least:
            break
        staying[place] = True
    return staying & ~chosen


def phase_rounds(
    *, load_s: float, round_s: float, between_sd: float, visit_sd: float, instances: int, most: int
) -> int:
    """Return the rounds of a lease after which new instances say more than further rounds of these; at most `most`.

    In the time T come T / (load + R round) leases, and an op's variance is between / instances + visit / R over their
    number: least at R = sqrt(load / round x instances x visit / between). At least two visits an instance.
    """
    if between_sd <= 0.0:
        return most
    best = math.sqrt(max(load_s, 0.0) / round_s * instances * _MEDIAN) * visit_sd / between_sd
    loading = load_s / round_s * (1.0 / MOST_LOADING - 1.0)
    whole = instances * math.ceil(max(best, loading) / instances)
    return min(most, max(2 * instances, whole))


def rounds_that_fit(wanted: int, *, left_s: float, load_s: float, round_s: float) -> int:
    """Return `wanted` rounds; towards the end about as many, so that equal leases fill the time left. 0: none fits."""
    leases = max(1, round(left_s / (load_s + wanted * round_s)))
    return wanted if leases > _LAST_LEASES else max(0, math.floor((left_s / leases - load_s) / round_s))
