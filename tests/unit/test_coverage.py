"""The 95 % interval of a row holds the truth in 93 to 98 % of rows, on a device that does all that real ones do.

What the truth is: lutbuilder/stats/interval.py says it. Here an op's true time is known, times a scale that is common
to a whole campaign (session effect, clock, throttling) and that nobody can know: it is taken out of every method's
errors alike. Instance effects are draws around the op's time, and so are session effects of an op where there are
several sessions. 288 campaigns of 29 ops, pairs and empty calls; no seed was chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from lutbuilder.campaign.estimates import summarise
from lutbuilder.lut import make_rows
from lutbuilder.stats.interval import MIN_ROUNDS
from lutbuilder.stats.records import Visits
from tests.simulated_device import OPS, OVERHEAD_NS, Device, Setting, campaign, true_call_ns, visits_of, windows

CAMPAIGNS = 36  # of every setting
WINDOW = 50  # calls of a naive reading
NOISE = {
    "noise_sigma": "0.02",  # of a call; AR(1) from call to call
    "noise_rho": "0.6",
    "clock_ratio": "1.6",  # two modes, each for 40 visits or so
    "clock_dwell_s": "0.02",
    "session_sigma": "0.05",
    "throttle": "0.3",  # grows until about the seventh round
    "throttle_ramp_s": "0.1",
    "quantum_ns": "100",
    "instance_sigma": "0.015",
}


def machine(**options: str) -> tuple[tuple[str, str], ...]:
    return tuple((NOISE | options).items())


SETTINGS = {
    "fewest_rounds": Setting(rounds=MIN_ROUNDS, options=machine()),
    "many_rounds_in_trains": Setting(rounds=100, train_ops=6, options=machine(noise_rho="0.9")),
    "sixteen_instances_in_four_leases": Setting(rounds=48, leases=4, instances=4, options=machine()),
    "two_sessions": Setting(rounds=24, sessions=2, left_out=6, options=machine(quantum_ns="500")),
    "three_sessions_that_change_ops": Setting(rounds=16, sessions=3, op_sigma=0.01, options=machine()),
    "unequal_instances": Setting(rounds=30, instances=5, options=machine(instance_sigma="0.04", clock_dwell_s="0.1")),
}

PHASES = (9, 6, 6, 12, 18, 24)  # rounds: a look at 9, then each time about half as many later again
Hits = NDArray[np.bool_]


def row_hits(visits: Visits) -> dict[str, list[bool]]:
    """Return whether the truth is in each interval: of gross times, of rows, and of rows that are call overheads."""
    summary = summarise(OPS, visits)
    truth = true_call_ns()
    scale = float(np.mean([np.log(each.time_ms / truth[each.op_id]) for each in summary.by_id.values()]))
    hits: dict[str, list[bool]] = defaultdict(list)
    for each in summary.by_id.values():
        assert each.lo_ms is not None
        assert each.hi_ms is not None
        hits["gross"].append(each.lo_ms <= truth[each.op_id] * np.exp(scale) <= each.hi_ms)
    for row in make_rows(OPS, summary.rows, (), {}, method="context", cache="hot"):
        assert row.latency_lo_ms is not None
        assert row.latency_hi_ms is not None
        is_overhead = row.kind == "identity"
        true_ms = (OVERHEAD_NS if is_overhead else truth[row.op_id] - OVERHEAD_NS) * np.exp(scale)
        name = "overhead" if is_overhead else "net"
        hits[name].append(row.latency_lo_ms <= true_ms <= row.latency_hi_ms)
    return hits


def naive_hits(calls: NDArray[np.float64]) -> dict[str, Hits]:
    """Return whether the truth is in the usual intervals of usual readings; `calls` has shape (ops, WINDOW), in ns.

    Mean: 1.96 standard errors. Median: the order statistics between which a binomial variable is in 95 % of cases.
    Minimum: percentile bootstrap, in which it is one of the four least calls.
    """
    ranked = np.log(np.sort(calls, axis=1))
    mean, error = np.log(calls).mean(axis=1), np.log(calls).std(axis=1, ddof=1) / np.sqrt(WINDOW)
    lower = round(0.5 * WINDOW - 1.96 * np.sqrt(0.25 * WINDOW))
    return {
        "mean of 50": _hits(mean, mean - 1.96 * error, mean + 1.96 * error),
        "median of 50": _hits(np.median(ranked, axis=1), ranked[:, lower - 1], ranked[:, WINDOW - lower]),
        "minimum of 50": _hits(ranked[:, 0], ranked[:, 0], ranked[:, 3]),
    }


def _hits(value: NDArray[np.float64], lo: NDArray[np.float64], hi: NDArray[np.float64]) -> Hits:
    truth = np.log([true_call_ns()[op.op_id] for op in OPS])
    truth = truth + np.mean(value - truth)
    return np.asarray((lo <= truth) & (truth <= hi))


def coverage(parts: Iterable[dict[str, list[bool]] | dict[str, Hits]]) -> dict[str, float]:
    """Return the share of hits by name."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for part in parts:
        for name, of_part in part.items():
            hits[name] += list(of_part)
    return {name: float(np.mean(of_name)) for name, of_name in hits.items()}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_intervals_cover_the_truth_and_naive_ones_do_not(setting):
    """Of a nominal 95 %. Measured over 150 campaigns of each setting with seeds from 10000 on, in %:

    ================================  =====  ====  ========
    setting                           gross  net   overhead
    ================================  =====  ====  ========
    fewest_rounds                      93.6  94.8      95.9
    many_rounds_in_trains              95.2  94.9      94.9
    sixteen_instances_in_four_leases   96.1  96.3      96.7
    two_sessions                       95.6  95.7      94.8
    three_sessions_that_change_ops     95.4  95.7      95.5
    unequal_instances                  95.5  95.8      96.0
    ================================  =====  ====  ========

    Over the campaigns below: mean of 50 calls 3 to 6, median 5 to 7, minimum 2 to 3.
    """
    table = coverage(
        part
        for seed in range(CAMPAIGNS)
        for part in (row_hits(campaign(setting, seed=seed)), naive_hits(windows(setting, seed=seed, calls=WINDOW)))
    )
    assert 0.93 <= table["gross"] <= 0.98, table
    assert 0.93 <= table["net"] <= 0.98, table
    assert table["overhead"] >= 0.90, table  # three a campaign: their share is known to 2 %
    for naive in ("mean of 50", "median of 50", "minimum of 50"):
        assert table[naive] < 0.2, table


def stopped_at(precision: float, *, seed: int) -> tuple[Visits, int]:
    """Return the visits of a campaign that ends when all ops are precise, and how many looks it took.

    Phases of new instances; after each, ops that are precise leave, all but the ten least precise.
    """
    device = Device(Setting(rounds=sum(PHASES), options=machine()), seed=seed)
    rotation = [op.op_id for op in OPS]
    looks = 0
    for rounds in PHASES:
        looks += 1
        device.lease(rotation, rounds)
        visits = visits_of([device])
        widths = {each.op_id: each.half_width or np.inf for each in summarise(OPS, visits).by_id.values()}
        if max(widths.values()) <= precision:
            break
        ranked = sorted(widths, key=widths.__getitem__, reverse=True)
        rotation = [op_id for place, op_id in enumerate(ranked) if place < 10 or widths[op_id] > precision]
    return visits, looks


@pytest.mark.parametrize("precision", [0.016, 0.025])
def test_intervals_cover_when_looking_at_them_decides_when_to_stop(precision):
    """An interval that is narrow by luck ends its op's visits and so stays as it is: few looks keep that rare.

    Measured over 60 campaigns: gross 95.6, net 96.9 % at 1.6 %; 94.4, 95.6 % at 2.5 %.
    """
    campaigns = [stopped_at(precision, seed=seed) for seed in range(CAMPAIGNS)]
    looks = [n_looks for _, n_looks in campaigns]
    assert min(looks) < max(looks)
    spared = 1.0 - np.mean([len(visits) for visits, _ in campaigns]) / (len(OPS) * sum(PHASES))
    assert spared > 0.5
    table = coverage(row_hits(visits) for visits, _ in campaigns)
    assert 0.93 <= table["gross"] <= 0.98, table
    assert 0.93 <= table["net"] <= 0.98, table
