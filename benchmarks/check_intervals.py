"""Do intervals hold on recorded visits? Each instance of an op is predicted by the others, each campaign by another.

    python benchmarks/check_intervals.py STORE [--json]

STORE is a campaign store (campaigns.sqlite) or its folder. Nobody knows the truth of a real machine, but other
preparations of an op are draws around it. "instances": a campaign is fitted without one instance of everything, the
left out one is fitted alone, and their difference should lie in a 95 % interval made of both variances in 95 % of ops;
every instance in turn. "campaigns": the same for two campaigns of one table, each fitted alone; what is missing to 95 %
is what a session does to an op, and `session_sd` is how much that is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.state import STORE_NAME
from lutbuilder.coordinator.store import Store
from lutbuilder.stats.drift import fit
from lutbuilder.stats.interval import quantile, spread
from lutbuilder.stats.records import Visits

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often an interval of one half held the other half's estimate; `half_width` and `session_sd` are medians."""

    table: str
    what: str
    n: int
    covered: float
    half_width: float
    session_sd: float | None = None


def instances(table: str, visits: Visits) -> Coverage | None:
    """Return how often instances lie where the other ones of the same campaign say; None for one instance."""
    numbers = np.unique(visits.instance)
    hits, widths = [], []
    for left_out in numbers if len(numbers) > 1 else ():
        others, alone = visits.take(visits.instance != left_out), visits.take(visits.instance == left_out)
        here, there = fit(others), fit(alone).theta
        told = spread(others, here)
        per_op = np.bincount(others.op, minlength=len(visits.op_ids)) / np.maximum(
            np.bincount(alone.op, minlength=len(visits.op_ids)), 1
        )
        # One preparation is off by the root of as many times as much as the mean of so many.
        half = quantile(told.freedom) * np.sqrt(told.variance * (1.0 + per_op))
        apart = there - here.theta
        known = np.isfinite(apart) & np.isfinite(half)
        hits += list(np.abs(apart - np.median(apart[known]))[known] <= half[known])
        widths += list((quantile(told.freedom) * np.sqrt(told.variance))[known])
    if not hits:
        return None
    return Coverage(
        table=table, what="instances", n=len(hits), covered=float(np.mean(hits)), half_width=float(np.median(widths))
    )


def campaigns(table: str, first: Visits, second: Visits, both: Visits) -> Coverage | None:
    """Return how often the ops of two campaigns agree within both intervals; None if they share fewer than three."""
    effects: list[dict[str, tuple[float, float, float]]] = []
    for visits in (first, second):
        drift = fit(visits)
        told = spread(visits, drift)
        rows = zip(drift.theta.tolist(), told.variance.tolist(), told.freedom.tolist(), strict=True)
        effects.append(dict(zip(visits.op_ids, rows, strict=True)))
    shared = [op_id for op_id in effects[0] if op_id in effects[1]]
    if len(shared) < 3:
        return None
    a, b = (np.array([each[op_id] for op_id in shared]).T for each in effects)
    variance = a[1] + b[1]
    half = quantile(variance**2 / (a[1] ** 2 / a[2] + b[1] ** 2 / b[2])) * np.sqrt(variance)
    apart = a[0] - b[0]
    told = spread(both, fit(both))
    return Coverage(
        table=table,
        what="campaigns",
        n=len(shared),
        covered=float(np.mean(np.abs(apart - np.median(apart)) <= half)),
        half_width=float(np.median(half / np.sqrt(2.0))),
        session_sd=float(np.nanmedian(told.session_sd)),
    )


def check(store: Store) -> list[Coverage]:
    """Return a line for every campaign, and one for every two of the same target and way of timing."""
    found: list[Coverage | None] = []
    kept = [campaign for campaign in store.campaigns() if campaign.rounds >= 12]
    for campaign in kept:
        name = f"{campaign.spec.target.lut_name} {campaign.spec.purpose} {campaign.rounds} rounds"
        found.append(instances(name, store.visits([campaign.campaign_id])))
    for one, other in combinations(kept, 2):
        if (one.spec.target, one.spec.env_id) != (other.spec.target, other.spec.env_id):
            continue
        ids = [one.campaign_id, other.campaign_id]
        first, second = (store.visits([campaign_id]) for campaign_id in ids)
        found.append(campaigns(one.spec.target.lut_name, first, second, store.visits(ids)))
    return [each for each in found if each is not None]


def main() -> None:
    """Parse, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with Store.open(given.store / STORE_NAME if given.store.is_dir() else given.store) as store:
        lines = check(store)
    if given.json:
        print(json.dumps([asdict(line) for line in lines]))
        return
    for line in lines:
        between = "" if line.session_sd is None else f"  between sessions {line.session_sd:.2%}"
        print(f"{line.covered:6.1%} of {line.n:4} {line.what:9}  ±{line.half_width:.2%}{between}  {line.table}")


if __name__ == "__main__":
    main()
