"""What the next lease visits and for how long: pure functions of what is known so far and of the time that is left.

An op that is known well enough leaves the rotation, one whose interval has grown comes back: each lease's list is made
anew from all visits. Where the time does not suffice for every op, it goes where use x interval width in ms is widest.
Some ops stay although they are done: trains of those left have to touch as much memory as trains of all, or the caches
are other caches; and drift is told by many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.lower import lower_network

LEAST_OPS = 12  # of a rotation: the median of fewer neighbours follows drift badly
LEAST_TRAINS = 3
# How far the mean footprint of a rotation may be off that of all ops. Seen with ONNX Runtime and LiteRT on an AMD EPYC
# 25-17, ops of ProxylessNAS (benchmarks/compare_rotation.py): trains of ops with 28 % less to touch make each other
# 1.3 to 5 % faster, of 30 % more 1 % slower, of the same 0.0 to 0.3 % +- 0.3 %.
FOOTPRINT_OFF = 0.03
MOST_LOADING = 1 / 5  # of a campaign's time
_SIZES_TRIED = 32
_LAST_LEASES = 3
_MEDIAN = math.pi / 2  # variance of a median of many normal values, times their number; theirs is 1

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


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
    network the most, precise or not. Then anchors. Whole networks always stay.
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
    least = max(LEAST_OPS, LEAST_TRAINS * train_ops)
    footprints = np.array([footprint(op) for op in singles]) if train_ops > 1 else np.ones((len(singles), 1))
    complete = partial(with_anchors, time_ms=time_ms, gain=gain, footprints=footprints, least=least)
    if lacking @ visit_s <= left_s:
        chosen = complete(lacking > 0.0)
    else:
        chosen = worthwhile(error, visits, visit_s, left_s=left_s, complete=complete)
    kept = {op.op_id for op, is_in in zip(singles, chosen, strict=True) if is_in}
    return tuple(op for op in ops if op.is_whole or op.op_id in kept)


def part_of_error(use: float) -> float:
    """Return what the interval of an op is multiplied by in the root mean square error of a random network.

    `use` is how often networks contain it, on average. One that a network has or has not counts by its probability:
    the mean of the square of 0 or 1. One that is there `use` times at least counts `use` times.
    """
    return float(max(use, use**2) ** 0.5)


def worthwhile(
    error: Floats, visits: Floats, visit_s: Floats, *, left_s: float, complete: Callable[[Mask], Mask]
) -> Mask:
    """Return which ops to visit for the rest of the time, all equally often, so that a network's error ends smallest.

    Shapes (ops,). `error` is each op's part, in ms; a network's is the root of their sum of squares. `complete` adds
    the anchors that a choice needs. A lease later the question comes again, so that in the end each op gets its share
    (Neyman allocation) and not all or nothing.
    """
    ranks = np.argsort(np.argsort(-(error**2) / (visits * visit_s), kind="stable"), kind="stable")
    sizes = np.unique(np.linspace(1, len(ranks), min(len(ranks), _SIZES_TRIED)).round())
    choices = [complete(ranks < size) for size in sizes]

    def after(choice: Mask) -> float:
        more = left_s / visit_s[choice].sum()
        return float(np.sum(np.where(choice, error**2 * visits / (visits + more), error**2)))

    return min(choices, key=after)


def with_anchors(chosen: Mask, time_ms: Floats, gain: Floats, footprints: Floats, *, least: int) -> Mask:
    """Return which ops are visited: the chosen, the most useful of every size class that has none, and then others.

    Those make it `least` ops whose mean footprint is that of all. Shapes (ops,), footprints (ops, measures). Size
    classes are equal parts of the ops ranked by time.
    """
    staying: Mask = chosen.copy()
    ranked = np.argsort(time_ms, kind="stable")
    for group in np.array_split(ranked, min(LEAST_OPS, len(ranked))):
        if not staying[group].any():
            staying[group[np.argmax(gain[group])]] = True
    relative = footprints / footprints.mean(axis=0)
    total, count = relative[staying].sum(axis=0), int(staying.sum())
    while count < len(staying) and (count < least or np.abs(total / count - 1.0).max() > FOOTPRINT_OFF):
        off = (((total + relative) / (count + 1) - 1.0) ** 2).sum(axis=1)
        best = np.lexsort((-gain, off, staying))[0]
        staying[best] = True
        total, count = total + relative[best], count + 1
    return staying


@lru_cache(maxsize=65536)
def footprint(op: CampaignOp) -> tuple[float, float]:
    """Return how many weights and how many activations a call touches; at least 1 each."""
    graph = lower_network(op.ops)
    return float(max(1, graph.params)), float(sum(math.prod(shape) for shape in graph.shapes))


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
    whole = instances * math.ceil(min(max(best, loading), most) / instances)
    return min(most, max(2 * instances, whole))


def rounds_that_fit(wanted: int, *, left_s: float, load_s: float, round_s: float) -> int:
    """Return `wanted` rounds; towards the end about as many, so that equal leases fill the time left. 0: none fits."""
    leases = max(1, round(left_s / (load_s + wanted * round_s)))
    return wanted if leases > _LAST_LEASES else max(0, math.floor((left_s / leases - load_s) / round_s))
