"""How much sooner do adaptive rounds know what fixed ones know? Campaigns on the simulated device, in virtual time.

    python benchmarks/bench_adaptive.py [--space proxyless] [--seeds 2] [--precision 1%] [--budget 60] [--json]

Fixed rounds visit every op in every round and prepare everything anew every 24 rounds; adaptive ones let ops go that
are precise, and choose how long a preparation lasts. Both run the real store, coordinator and controller
(tests/virtual_campaign.py) on the same noise: a clock of two speeds, ops of 0.02 to 4 ms that are not equally noisy,
preparations that differ. Asked is the time until every op is known to the wanted precision, and the time until the
error of a random network, as the intervals have it, is what fixed rounds reach in the budget. The goal is 60 % of the
time of fixed rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the virtual device lies beside the tests

from lutbuilder import spaces
from lutbuilder.campaign.controller import Controller
from lutbuilder.campaign.estimates import Summary, half_ms, summarise
from lutbuilder.campaign.rotation import part_of_error
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec
from lutbuilder.coordinator.store import Store
from tests.virtual_campaign import EveryOp, open_store, play, space_ops, spec_of, truth_ms

GOAL = 0.60
_OUT_OF_REACH = 1e-4  # a precision no budget reaches: then all of it goes where it lowers a network's error


@dataclass(frozen=True, kw_only=True)
class Result:
    """One seed: seconds of virtual time, and which share of the final intervals holds the truth."""

    seed: int
    adaptive_s: float
    fixed_s: float
    adaptive_cover: float
    fixed_cover: float
    adaptive_error_s: float
    fixed_error_s: float
    network_error: float  # relative; what fixed rounds reach in fixed_error_s
    least_ratio: float  # of the two times, if every op had just its share of the visits from the beginning


def main() -> None:
    """Parse, play, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="proxyless")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--precision", default="1%")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds, for the network error")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    precision = float(chosen.precision.removesuffix("%")) / 100.0
    ops = space_ops(spaces.get(chosen.space))
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    results = [compare(ops, seed, precision=precision, budget_s=chosen.budget) for seed in seeds]
    time_ratio = sum(r.adaptive_s for r in results) / sum(r.fixed_s for r in results)
    error_ratio = sum(r.adaptive_error_s for r in results) / sum(r.fixed_error_s for r in results)
    if chosen.json:
        rows = [asdict(result) for result in results]
        print(json.dumps({"results": rows, "time_ratio": time_ratio, "error_ratio": error_ratio, "goal": GOAL}))
        return
    for r in results:
        print(
            f"seed {r.seed}: all ops to {chosen.precision} in {r.adaptive_s:.0f} s, fixed rounds {r.fixed_s:.0f} s "
            f"({r.adaptive_s / r.fixed_s:.0%}); intervals hold {r.adaptive_cover:.0%} and {r.fixed_cover:.0%}; "
            f"network error {r.network_error:.2%} in {r.adaptive_error_s:.0f} s, fixed rounds {r.fixed_error_s:.0f} s "
            f"({r.adaptive_error_s / r.fixed_error_s:.0%})"
        )
    spread = sorted(r.adaptive_s / r.fixed_s for r in results)
    least = median(r.least_ratio for r in results)
    print(
        f"time to {chosen.precision}: {time_ratio:.0%} of fixed rounds (median {median(spread):.0%}, "
        f"{spread[0]:.0%} to {spread[-1]:.0%}), goal {GOAL:.0%}; to an equal network error: {error_ratio:.0%} "
        f"(with leases of equal length no choice of visits gets below {least:.0%}: many ops make up the error alike)"
    )


def compare(ops: tuple[CampaignOp, ...], seed: int, *, precision: float, budget_s: float) -> Result:
    """Return how long both take to the precision, and to the network error that fixed rounds reach in the budget."""
    wanted = spec_of(ops, seed=seed, precision=precision)
    adaptive_s, adaptive_cover = to_precision(wanted, Controller)
    fixed_s, fixed_cover = to_precision(wanted, EveryOp)
    limited = spec_of(ops, seed=seed, precision=_OUT_OF_REACH, budget_s=budget_s)
    fixed, least_ratio = errors(limited, EveryOp)
    fixed_error_s, error = fixed[-1]
    reached = [seconds for seconds, found in errors(limited, Controller)[0] if found <= error]
    return Result(
        seed=seed,
        adaptive_s=adaptive_s,
        fixed_s=fixed_s,
        adaptive_cover=adaptive_cover,
        fixed_cover=fixed_cover,
        adaptive_error_s=min(reached, default=float("inf")),
        fixed_error_s=fixed_error_s,
        network_error=error,
        least_ratio=least_ratio,
    )


def to_precision(spec: CampaignSpec, kind: type[Controller]) -> tuple[float, float]:
    """Return the virtual seconds to the end of a campaign, and the share of its intervals that hold the truth."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder)) as store:
        played = play(spec, store, kind=kind)
        if played.state.reason != "precision":
            raise SystemExit(f"the campaign ended by {played.state.reason}: a larger budget or a lower precision")
        return played.seconds, coverage(spec, summary_of(spec, store))


def errors(spec: CampaignSpec, kind: type[Controller]) -> tuple[list[tuple[float, float]], float]:
    """Return at the end of every lease the virtual seconds and a random network's relative error; and `least_ratio`."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder)) as store:
        seen: list[tuple[float, float]] = []
        play(
            spec,
            store,
            kind=kind,
            on_lease_end=lambda seconds: seen.append((seconds, network_error(spec, summary_of(spec, store)))),
        )
        return seen, least_ratio(spec, store)


def least_ratio(spec: CampaignSpec, store: Store) -> float:
    """Return the time that visits in proportion to error over root cost need, over that of equally many of every op.

    Source: Neyman, Journal of the Royal Statistical Society 97(4), 1934, with unequal costs.
    """
    summary = summary_of(spec, store)
    visits = summary.visits
    cost = np.bincount(visits.op, weights=visits.n_calls * visits.block_ns) / np.bincount(visits.op)
    costs = dict(zip(visits.op_ids, cost, strict=True))
    told = [(op, summary.by_id[op.op_id], costs[op.op_id]) for op in spec.ops]
    one = np.array([part_of_error(op.use) * (half_ms(each) or 0.0) * each.n_visits**0.5 for op, each, _ in told])
    each_cost = np.array([cost for _, _, cost in told])
    return float(np.sum(one * each_cost**0.5) ** 2 / (np.sum(one**2) * np.sum(each_cost)))


def summary_of(spec: CampaignSpec, store: Store) -> Summary:
    """Return the fit of all visits of a campaign."""
    return summarise(spec.ops, store.visits([spec.key]))


def network_error(spec: CampaignSpec, summary: Summary) -> float:
    """Return half the 95 % interval of a random network, root mean square over them, relative to their mean time."""
    parts = [part_of_error(op.use) * (half_ms(summary.by_id[op.op_id]) or float("inf")) for op in spec.ops]
    mean_ms = sum(op.use * truth_ms(op) for op in spec.ops if op.role == "op")
    return float(np.hypot.reduce(parts)) / mean_ms


def coverage(spec: CampaignSpec, summary: Summary) -> float:
    """Return the share of intervals that hold the truth, the scale common to all ops taken out."""
    off = np.array([np.log(summary.by_id[op.op_id].time_ms / truth_ms(op)) for op in spec.ops])
    halves = np.array([summary.by_id[op.op_id].half_width or 0.0 for op in spec.ops])
    return float(np.mean(np.abs(off - np.mean(off)) <= halves))


if __name__ == "__main__":
    main()
