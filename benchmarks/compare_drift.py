"""Which model of the machine's speed gives tables that repeat, and that predict whole networks?

    python benchmarks/compare_drift.py [--only NAME,...] [--models NAME,...] [--json]
    python benchmarks/compare_drift.py STORE [--save FOLDER]

Without STORE the recorded validations of tests/recorded/; STORE is a campaign store (campaigns.sqlite) or its folder,
of which every finished validation is used, one by one. `--save` records them as tests/recorded/README.md says.

Figures, in per cent; "R rounds" are blocks of R rounds that follow each other, each fitted alone, averaged over blocks:

    op R      median over ops of how far op effects from R rounds are from those of the other rounds
    net R     mean over networks of how far the sum of op effects is from the network's own effect, both of R rounds
    all       the same from all rounds, and `gain`: by how much less than with the running median over 15 visits, with
              the 95 % interval of a bootstrap over networks
    spread    standard deviation of that error over networks: what is left of it without the bias
    retest    median over networks of how far their effects from the first and the second half of rounds are apart
    shift     mean over networks of the sum from all rounds, relative to that of a steady machine: an op slows those it
              is visited together with, and a model that follows the machine too closely makes it pay for that
    common    as `all`, but all models' sums against the same truth: the median over models of the networks' effects
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the recorded visits lie with the tests

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpttrf, dpttrs
from scipy.ndimage import median_filter, uniform_filter1d

from lutbuilder.stats import drift
from lutbuilder.stats.drift import fit, grouped_median
from lutbuilder.stats.records import Visits
from tests.recorded_visits import Recorded, load, names, recorded, save

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ROUNDS = (4, 8, 16)
BLOCKS = 6  # of R rounds at most
STEPS = 40
SETTLED = 1e-5
REFERENCE, STEADY = "median of 15", "none, t"
RESAMPLES = 2000
_FULL_WEIGHT = 4.0
_MAD_SIGMA = 1.4826


# --- The models: all give op effects from visits of one session


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Visits in the order they were made; `train` numbers stretches of time in which several ops took turns."""

    log_t: Floats
    op: Ints
    group: Ints
    group_op: Ints
    train: Ints
    n_ops: int

    @classmethod
    def of(cls, visits: Visits) -> Seen:
        order = np.lexsort((visits.order, visits.start_ns))
        op = visits.op[order]
        keys, group = np.unique(op * 1000 + visits.instance[order], return_inverse=True)
        start, spent = visits.start_ns[order], (visits.block_ns * visits.n_calls)[order]
        apart = start[1:] > start[:-1] + 0.6 * spent[:-1]  # one began before the last could have been over
        return cls(
            log_t=np.log(visits.block_ns[order]),
            op=op,
            group=group.reshape(-1),
            group_op=keys // 1000,
            train=np.concatenate([[0], np.cumsum(apart)]),
            n_ops=len(visits.op_ids),
        )


Smoother = Callable[[Floats, Floats, Seen], Floats]  # residuals, noise of each visit's op, visits -> log slowdown
Model = Callable[[Visits], Floats]


def two_way(smoother: Smoother | None, visits: Visits, *, robust: bool, mates: bool = False) -> Floats:
    """Return op effects, alternating with what `smoother` makes of the residuals; None: the machine is steady.

    Op effects are means over instances of medians over visits or, if `robust`, of means reweighted as by a t
    distribution with 4 degrees of freedom. `mates`: what the other ops of a train cost explains residuals too.
    """
    seen = Seen.of(visits)
    theta = effects(seen.log_t, np.ones(len(seen.op)), seen, robust=False)
    speed, slowed = np.zeros(len(seen.op)), np.zeros(len(seen.op))
    noise = np.ones(seen.n_ops)
    for step in range(STEPS):
        left = seen.log_t - theta[seen.op] - speed - slowed
        noise = noise_of(left, seen) if step < STEPS // 2 else noise
        if smoother is not None:
            speed = smoother(seen.log_t - theta[seen.op] - slowed, noise[seen.op], seen)
            speed = speed - np.median(speed)
        left = seen.log_t - theta[seen.op] - speed - slowed
        weight = 5.0 / (4.0 + (left / noise[seen.op]) ** 2) if robust else np.ones(len(left))
        if mates:
            slowed = slowed_by_mates(left + slowed, weight / noise[seen.op] ** 2, theta, seen)
        before, theta = theta, effects(seen.log_t - speed - slowed, weight, seen, robust=robust)
        if np.nanmax(np.abs(theta - before)) < SETTLED:
            break
    return theta


def effects(values: Floats, weight: Floats, seen: Seen, *, robust: bool) -> Floats:
    """Return means over instances; an instance with few visits weighs less."""
    total = np.bincount(seen.group, weights=weight, minlength=len(seen.group_op))
    if robust:
        of_group = np.bincount(seen.group, weights=weight * values, minlength=len(seen.group_op)) / total
    else:
        of_group = grouped_median(values, seen.group, len(seen.group_op))
    share = np.minimum(total, _FULL_WEIGHT)
    over = np.bincount(seen.group_op, weights=share, minlength=seen.n_ops)
    return np.bincount(seen.group_op, weights=share * of_group, minlength=seen.n_ops) / np.where(over > 0, over, np.nan)


def noise_of(left: Floats, seen: Seen) -> Floats:
    """Return the scale of each op's noise, shrunk to the typical."""
    count = np.bincount(seen.op, minlength=seen.n_ops)
    own = np.nan_to_num(_MAD_SIGMA * grouped_median(np.abs(left), seen.op, seen.n_ops))
    typical = np.median(own[count > 0])
    return np.maximum(np.sqrt((count * own**2 + 8.0 * typical**2) / (count + 8.0)), 1e-5)


def slowed_by_mates(left: Floats, precision: Floats, theta: Floats, seen: Seen) -> Floats:
    """Return the part of residuals that the other ops of a visit's train explain: as the log of their time together."""
    spent = np.exp(theta[seen.op])
    others = np.bincount(seen.train, weights=spent)[seen.train] - spent
    size = np.bincount(seen.train)[seen.train]
    told = np.zeros(len(left))
    told[size > 2] = np.log(others[size > 2])
    told[size > 2] -= told[size > 2].mean()
    common = np.sum(precision * told * left) / max(float(np.sum(precision * told**2)), 1e-12)
    of_op = np.bincount(seen.op, weights=precision * told**2, minlength=seen.n_ops)
    with_it = np.bincount(seen.op, weights=precision * told * left, minlength=seen.n_ops)
    slope = (with_it + common / 0.02**2) / (of_op + 1.0 / 0.02**2)  # of an op, shrunk to that of all
    return np.asarray(slope[seen.op] * told)


def running_median(window: int) -> Smoother:
    def smooth(left: Floats, _noise: Floats, _seen: Seen) -> Floats:
        return np.asarray(median_filter(left, size=min(window, len(left)), mode="nearest"))

    return smooth


def running_mean(window: int) -> Smoother:
    """Of residuals cut at 5 standard deviations of their ops."""

    def smooth(left: Floats, noise: Floats, _seen: Seen) -> Floats:
        return np.asarray(uniform_filter1d(np.clip(left, -5 * noise, 5 * noise), size=window, mode="nearest"))

    return smooth


def running_pseudomedian(window: int) -> Smoother:
    """Hodges and Lehmann, Annals of Mathematical Statistics 34(2), 1963: the median of the means of all pairs."""
    first, second = np.triu_indices(window)

    def smooth(left: Floats, _noise: Floats, _seen: Seen) -> Floats:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(left, window // 2, mode="edge"), window)
        return np.asarray(np.median(0.5 * (around[:, first] + around[:, second]), axis=1), np.float64)

    return smooth


def robust_lowess(window: int) -> Smoother:
    """Cleveland, Journal of the American Statistical Association 74(368), 1979; local means, weighted by ops' noise."""
    kernel = (1.0 - np.abs(np.linspace(-1.0, 1.0, window + 2)[1:-1]) ** 3) ** 3

    def smooth(left: Floats, noise: Floats, _seen: Seen) -> Floats:
        level, robustness = np.zeros(len(left)), np.ones(len(left))
        for _ in range(4):
            weight = robustness / noise**2
            over = np.convolve(np.pad(weight, window // 2, mode="edge"), kernel, mode="valid")
            level = np.convolve(np.pad(weight * left, window // 2, mode="edge"), kernel, mode="valid") / over
            off = np.clip(np.abs(left - level) / (6.0 * noise), 0.0, 1.0)
            robustness = np.maximum((1.0 - off**2) ** 2, 1e-6)
        return level

    return smooth


def random_walk(seen_: Floats, precision: Floats, tie: Floats) -> tuple[Floats, float]:
    """Return the smoothed level of a Gaussian local level, and the log determinant that its likelihood needs."""
    diagonal = precision.copy()
    diagonal[:-1] += tie
    diagonal[1:] += tie
    pivots, factor, _ = dpttrf(diagonal, -tie)
    level, _ = dpttrs(pivots, factor, precision * seen_)
    return level, float(np.log(pivots).sum())


def local_level(*, robust: bool) -> Smoother:
    """Rauch-Tung-Striebel smoother of a local level, its variance by maximum likelihood; t noise if `robust`."""

    def smooth(left: Floats, noise: Floats, _seen: Seen) -> Floats:
        level = median_filter(left, size=min(15, len(left)), mode="nearest")
        for _ in range(3):
            scale = noise if robust else np.full(len(left), _MAD_SIGMA * float(np.median(np.abs(left - level))))
            precision = 5.0 / (4.0 + ((left - level) / scale) ** 2) / scale**2 if robust else 1.0 / scale**2
            found: list[tuple[float, Floats]] = []
            for step in np.geomspace(1e-4, 0.3, 15):
                tie = np.full(len(left) - 1, step**-2)
                level, determinant = random_walk(left, precision, tie)
                deviance = determinant + 2 * len(tie) * np.log(step) - float((precision * left) @ level)
                found.append((deviance, level))
            level = min(found, key=lambda each: each[0])[1]
        return level

    return smooth


def piecewise_constant(left: Floats, noise: Floats, seen: Seen) -> Floats:
    """PELT (Killick, Fearnhead and Eckley, JASA 107(500), 2012) over trains; weighted squares, BIC penalty."""
    cut = np.clip(left, -5 * noise, 5 * noise)
    precision = np.bincount(seen.train, weights=noise**-2)
    sums = np.concatenate([[0.0], np.cumsum(np.bincount(seen.train, weights=cut / noise**2))])
    weights = np.concatenate([[0.0], np.cumsum(precision)])
    n = len(precision)
    # Trains differ by more than their visits' noise explains: the penalty has to know.
    mean = np.diff(sums) / precision
    excess = max(1.0, float(np.median(precision[1:] * np.diff(mean) ** 2)) / 2 / 0.455)
    penalty = 3.0 * excess * np.log(n)
    best, last = np.zeros(n + 1), np.zeros(n + 1, np.int64)
    best[0] = -penalty
    candidates = np.array([0])
    for end in range(1, n + 1):
        gain = (sums[end] - sums[candidates]) ** 2 / (weights[end] - weights[candidates])
        total = best[candidates] - gain
        place = int(np.argmin(total))
        best[end], last[end] = total[place] + penalty, candidates[place]
        candidates = np.append(candidates[total <= best[end]], end)
    level, end = np.zeros(n), n
    while end > 0:
        level[last[end] : end] = (sums[end] - sums[last[end]]) / (weights[end] - weights[last[end]])
        end = int(last[end])
    return np.asarray(level[seen.train])


def two_states(left: Floats, noise: Floats, seen: Seen) -> Floats:
    """A hidden Markov model over trains, a fast and a slow machine; expectations by forward and backward passes."""
    n = int(seen.train[-1]) + 1
    scale = np.maximum(noise, 0.01)
    levels = np.array([np.quantile(left, 0.2), np.quantile(left, 0.95)])
    stay, probability = 0.95, np.zeros((n, 2))
    for _ in range(5):
        off = (left[:, None] - levels) / scale[:, None]
        told = np.stack([np.bincount(seen.train, weights=-2.5 * np.log1p(each**2 / 4.0)) for each in off.T], axis=1)
        told = np.exp(np.maximum(told - told.max(axis=1, keepdims=True), -50.0))
        change = np.array([[stay, 1.0 - stay], [1.0 - stay, stay]])
        forward, backward = np.full((n, 2), 0.5), np.full((n, 2), 0.5)
        for i in range(n):
            ahead = told[i] * ((forward[i - 1] @ change) if i else 0.5)
            forward[i] = ahead / ahead.sum()
        for i in range(n - 2, -1, -1):
            behind = change @ (told[i + 1] * backward[i + 1])
            backward[i] = behind / behind.sum()
        probability = forward * backward
        probability /= probability.sum(axis=1, keepdims=True)
        switching = np.abs(np.diff(probability[:, 1])).mean()
        stay = float(np.clip(1.0 - switching, 0.5, 0.999))
        weight = probability[seen.train] * (5.0 / (4.0 + off**2)) / scale[:, None] ** 2
        levels = (weight * left[:, None]).sum(axis=0) / weight.sum(axis=0)
    return np.asarray((probability @ levels)[seen.train])


def low_rank(visits: Visits, *, rank: int) -> Floats:
    """Ops respond differently to what slows the machine, shrunk to equally (prior sd 0.3): t = theta + s (1 + lambda).

    With rank 2 there is a second slowdown besides, of which the loadings are free: of memory, say, and not of compute.
    Levels and noise are those of a local level with t noise and steps.
    """
    seen = Seen.of(visits)
    theta = fit(visits).theta
    speed, second = np.zeros(len(seen.op)), np.zeros(len(seen.op))
    more, loading = np.zeros(seen.n_ops), np.zeros(seen.n_ops)
    loading[np.argsort(theta)[seen.n_ops // 2 :]] = 1.0  # large ones first feel a second slowdown
    for _ in range(STEPS):
        left = seen.log_t - theta[seen.op] - speed * (1.0 + more[seen.op]) - second * loading[seen.op]
        noise = noise_of(left, seen)
        precision = 5.0 / (4.0 + (left / noise[seen.op]) ** 2) / noise[seen.op] ** 2
        step = 0.2 * float(np.median(noise))
        for which in range(rank):
            part = 1.0 + more[seen.op] if which == 0 else loading[seen.op]
            old = speed if which == 0 else second
            tie = 3.0 / (2.0 + (np.diff(old) / step) ** 2) / step**2
            weight = np.maximum(precision * part**2, 1e-9)
            target = (left + old * part) * part / np.maximum(part**2, 1e-9)
            new, _ = random_walk(np.clip(target, -2.0, 2.0), weight, tie)
            new = new - np.median(new)
            left = left + (old - new) * part
            speed, second = (new, second) if which == 0 else (speed, new)
        of_op = partial(np.bincount, seen.op, minlength=seen.n_ops)
        rest = left + speed * more[seen.op]
        more = of_op(weights=precision * speed * rest) / (of_op(weights=precision * speed**2) + 0.3**-2)
        if rank > 1:
            rest = left + second * loading[seen.op]
            loading = of_op(weights=precision * second * rest) / (of_op(weights=precision * second**2) + 1.0)
            loading /= max(float(np.abs(loading).max()), 1e-9)
        clean = seen.log_t - speed * (1.0 + more[seen.op]) - second * loading[seen.op]
        before, theta = theta, effects(clean, precision * noise[seen.op] ** 2, seen, robust=True)
        if np.nanmax(np.abs(theta - before)) < SETTLED:
            break
    return theta


def shipped(visits: Visits, *, wander: float | None = None) -> Floats:
    """Return the op effects of the model in use; `wander`: how closely it follows the machine."""
    if wander is None:
        return fit(visits).theta
    usual = drift._WANDER
    try:
        drift._WANDER = wander
        return fit(visits).theta
    finally:
        drift._WANDER = usual


MODELS: Mapping[str, Model] = {
    "none, medians": partial(two_way, None, robust=False),
    "none, t": partial(two_way, None, robust=True),
    **{f"median of {n}": partial(two_way, running_median(n), robust=False) for n in (5, 9, 15, 31, 61)},
    **{f"median of {n}, t": partial(two_way, running_median(n), robust=True) for n in (9, 15, 31)},
    "mean of 15, t": partial(two_way, running_mean(15), robust=True),
    "pseudomedian of 15, t": partial(two_way, running_pseudomedian(15), robust=True),
    "robust lowess of 31, t": partial(two_way, robust_lowess(31), robust=True),
    "local level, ML": partial(two_way, local_level(robust=False), robust=False),
    "local level, ML, t": partial(two_way, local_level(robust=True), robust=True),
    "piecewise constant, t": partial(two_way, piecewise_constant, robust=True),
    "two states, t": partial(two_way, two_states, robust=True),
    "rank 1, t": partial(low_rank, rank=1),
    "rank 2, t": partial(low_rank, rank=2),
    "median of 15, t, mates": partial(two_way, running_median(15), robust=True, mates=True),
    **{f"jumps, t, wander {wander:g}": partial(shipped, wander=wander) for wander in (0.1, 0.4)},
    "local level with jumps, t": shipped,
}
SHIPPED = "local level with jumps, t"  # the model in use


# --- Judging them


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One model on one record, in per cent; see the module."""

    record: str
    model: str
    op: Mapping[int, float]
    network: Mapping[int, float]
    all_rounds: float
    gain: float
    gain_lo: float
    gain_hi: float
    spread: float
    retest: float
    shift: float
    common: float
    seconds: float


def judge(record: Recorded, models: Mapping[str, Model], *, seed: int = 0) -> list[Figures]:
    """Return the figures of every model on one record."""
    seconds: dict[str, float] = {}
    whole: dict[str, Floats] = {}
    for name, model in {**models, REFERENCE: MODELS[REFERENCE], STEADY: MODELS[STEADY]}.items():
        start = time.perf_counter()
        whole[name] = model(record.visits)
        seconds[name] = time.perf_counter() - start
    on_one_scale = np.stack([whole[name] - offset(whole[name], whole[STEADY], record) for name in models])
    truth = record.networks_ns(np.nanmedian(on_one_scale, axis=0))
    sums = {name: record.sums_ns(theta - offset(theta, whole[STEADY], record)) for name, theta in whole.items()}
    pick = np.random.default_rng(seed).integers(0, len(truth), (RESAMPLES, len(truth)))
    usual = np.abs(errors(record, whole[REFERENCE]))
    figures = []
    for name, model in models.items():
        error = errors(record, whole[name])
        gains = (usual - np.abs(error))[pick].mean(axis=1)
        lo, hi = np.quantile(gains, [0.025, 0.975])
        half = n_rounds(record) // 2
        halves = [model(record.rounds(*part)) for part in ((0, half), (half, 2 * half))]
        apart = (halves[0] - halves[1] - offset(halves[0], halves[1], record))[record.role == "network"]
        figures.append(
            Figures(
                record=record.name,
                model=name,
                op={length: 100.0 * op_error(record, model, length) for length in ROUNDS},
                network={length: 100.0 * network_error(record, model, length) for length in ROUNDS},
                all_rounds=100.0 * float(np.abs(error).mean()),
                gain=100.0 * float(gains.mean()),
                gain_lo=100.0 * float(lo),
                gain_hi=100.0 * float(hi),
                spread=100.0 * float(error.std()),
                retest=100.0 * float(np.median(np.abs(apart))),
                shift=100.0 * float(np.mean(sums[name] / sums[STEADY] - 1.0)),
                common=100.0 * float(np.abs(sums[name] / truth - 1.0).mean()),
                seconds=seconds[name],
            )
        )
    return figures


def n_rounds(record: Recorded) -> int:
    return int(record.visits.round.max()) + 1


def blocks(record: Recorded, length: int) -> list[tuple[int, int]]:
    """Return up to BLOCKS disjoint blocks of rounds, as (first, last + 1)."""
    return [(n * length, (n + 1) * length) for n in range(min(BLOCKS, n_rounds(record) // length))]


def errors(record: Recorded, theta: Floats) -> Floats:
    """Return the relative error of each network's sum against the network's own effect."""
    return record.sums_ns(theta) / record.networks_ns(theta) - 1.0


def network_error(record: Recorded, model: Model, length: int) -> float:
    """Return the mean of the absolute `errors` from blocks of `length` rounds."""
    found = [np.abs(errors(record, model(record.rounds(*block)))).mean() for block in blocks(record, length)]
    return float(np.mean(found))


def op_error(record: Recorded, model: Model, length: int) -> float:
    """Return the median distance of op effects from blocks of `length` rounds to those from the rounds outside."""
    found = []
    for first, last in blocks(record, length):
        inside = (record.visits.round >= first) & (record.visits.round < last)
        theta, other = model(record.visits.take(inside)), model(record.visits.take(~inside))
        found.append(np.median(np.abs(theta - other - offset(theta, other, record))[record.ops]))
    return float(np.mean(found))


def offset(theta: Floats, other: Floats, record: Recorded) -> float:
    """Return how much slower the typical speed of one fit is than that of another, told by the ops."""
    return float(np.median((theta - other)[record.ops]))


@lru_cache(maxsize=1)
def shipped_records() -> tuple[Recorded, ...]:
    """Return what is recorded with the tests."""
    return tuple(load(name) for name in names())


def stored(path: Path, folder: Path | None) -> list[Recorded]:
    """Return every validation of a store that has come to an end; with `folder` each is recorded there."""
    from lutbuilder.campaign.state import STORE_NAME
    from lutbuilder.coordinator.store import Store

    store = Store.open(path / STORE_NAME if path.is_dir() else path)
    records = []
    for number, campaign in enumerate(store.campaigns()):
        spec = campaign.spec
        if spec.purpose != "validate" or campaign.state != "done":
            continue
        visits = store.visits([campaign.campaign_id])
        records.append(recorded(spec.ops, visits, name=f"{spec.target.runtime}-{number}"))
        if folder is not None:
            about = {"device": spec.target.device, "runtime": f"{spec.target.runtime} {spec.runtime_version}"}
            about |= {"space": spec.space, "plan": f"{spec.plan.cache}, trains of {spec.plan.train_ops}"}
            print(f"wrote {save(records[-1], folder, provenance=about)}")
    return records


def table(figures: Sequence[Figures]) -> Iterable[str]:
    """Yield the lines of the table of one record."""
    heads = [*(f"op {n}" for n in ROUNDS), *(f"net {n}" for n in ROUNDS), "all"]
    tail = ["spread", "retest", "shift", "common"]
    yield f"{figures[0].record}"
    yield f"  {'model':<26}" + "".join(f"{each:>7}" for each in heads) + f"{'gain (95 %)':>24}" + "".join(
        f"{each:>7}" for each in tail
    ) + f"{'s':>6}"  # fmt: skip  # one line of a table
    for each in figures:
        first = [*(each.op[n] for n in ROUNDS), *(each.network[n] for n in ROUNDS), each.all_rounds]
        gain = f"{each.gain:+.2f} ({each.gain_lo:+.2f} to {each.gain_hi:+.2f})"
        last = [each.spread, each.retest, each.shift, each.common]
        columns = ["".join(f"{value:7.2f}" for value in values) for values in (first, last)]
        yield f"  {each.model:<26}{columns[0]}{gain:>24}{columns[1]}{each.seconds:6.2f}"


def main() -> None:
    """Parse, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    parser.add_argument("--only", default="", help="records, by the beginning of their names")
    parser.add_argument("--models", default="", help="models, by the beginning of their names, separated by ;")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    records: Sequence[Recorded] = shipped_records() if given.store is None else stored(given.store, given.save)
    chosen = {
        name: model
        for name, model in MODELS.items()
        if not given.models or any(name.startswith(part.strip()) for part in given.models.split(";"))
    }
    every = []
    for record in records:
        if given.only and not any(record.name.startswith(part) for part in given.only.split(",")):
            continue
        figures = judge(record, chosen)
        every += figures
        if not given.json:
            print("\n".join(table(figures)), flush=True)
    if given.json:
        print(json.dumps([asdict(each) for each in every]))


if __name__ == "__main__":
    main()
