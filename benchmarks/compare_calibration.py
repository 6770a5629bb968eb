"""How much better do calibrated rows predict networks that took no part in the calibration?

    python benchmarks/compare_calibration.py --state-dir ~/.local/state/lutbuilder --nets 16 --splits 40

Reads the visits a store holds of validations. For every target it splits the validated networks at random, many times:
`--nets` of them calibrate, the others are predicted. Prints the mean absolute error of the rows as they are, of affine,
of ridge, and of what `lutbuilder calibrate` would have chosen; `floor` is what a perfect table would show, because the
networks' own times are that uncertain. `--spread` takes one network of the fit from every stratum of latency, as
`calibrate` does. Nothing is timed. `--save FILE` keeps what it read as arrays (tests/recorded/calibration.npz is one).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.campaign.calibrated import calibrate_rows
from lutbuilder.campaign.collect import pooled
from lutbuilder.campaign.estimates import summarise
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.campaign.state import default_store
from lutbuilder.coordinator.store import Store
from lutbuilder.lut import Row, make_rows, preferred
from lutbuilder.op import OpSpec
from lutbuilder.stats.calibrate import METHODS, Method
from lutbuilder.stats.interval import quantile
from lutbuilder.stats.records import OpEstimate
from lutbuilder.validation import network_sum

_MEAN_OF_NORMAL = (2 / np.pi) ** 0.5  # mean absolute value of a standard normal
_CHOSEN = "chosen"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A target's rows and validated networks, from one fit of all its visits."""

    name: str
    space: str
    batch: int
    rows: tuple[Row, ...]
    networks: tuple[CampaignOp, ...]
    by_id: Mapping[str, OpEstimate]


def main() -> None:
    """Parse, split, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-dir", type=Path, default=None, help="folder of the campaign store")
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--splits", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spread", action="store_true", help="spread the networks of the fit over the latency range")
    parser.add_argument("--save", type=Path, default=None, metavar="FILE", help="write rows and networks to an .npz")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found: list[dict[str, Any]] = []
    everything = read(default_store(chosen.state_dir))
    if chosen.save is not None:
        kept = {name: values for recorded in everything for name, values in arrays(recorded).items()}
        np.savez_compressed(chosen.save, allow_pickle=False, **kept)
        return
    for recorded in everything:
        if len(recorded.networks) < 2 * chosen.nets:
            continue
        errors = cross_validated(
            recorded, nets=chosen.nets, splits=chosen.splits, seed=chosen.seed, spread=chosen.spread
        )
        found.append({"target": recorded.name, "networks": len(recorded.networks), "floor": floor(recorded), **errors})
    if chosen.json:
        print(json.dumps(found))
        return
    columns = ("floor", *METHODS, _CHOSEN)
    print(f"{'target':44} {'nets':>5} " + " ".join(f"{column:>16}" for column in columns))
    for line in found:
        cells = [f"{100 * line['floor']:.2f} %"] + [
            f"{100 * np.mean(line[name]):.2f} ({100 * np.quantile(line[name], 0.9):.2f}) %" for name in columns[1:]
        ]
        print(f"{line['target']:44} {line['networks']:>5} " + " ".join(f"{cell:>16}" for cell in cells))
    print("mean over splits (90th percentile); MAPE of networks that took no part in the fit")


def read(path: Path) -> list[Recorded]:
    """Return every target of the store that has validated networks."""
    found: dict[str, Recorded] = {}
    with Store.open(path) as store:
        for campaign in store.campaigns():
            spec = campaign.spec
            if spec.purpose != "validate" or not campaign.rounds:
                continue
            pool = pooled(store, spec)
            name = f"{spec.target.lut_name} {pool.campaign_ids[0][:6]}"
            if name in found:
                continue
            summary = summarise(pool.ops, store.visits(pool.campaign_ids))
            rows = make_rows(pool.ops, summary.rows, pool.failures, {}, method="context", cache=spec.target.cache)
            known = preferred(row for row in rows if row.latency_ms is not None)
            networks = tuple(
                op
                for op in pool.ops
                if op.role == "network"
                and op.op_id in summary.by_id
                and summary.by_id[op.op_id].half_width is not None
                and all(member.op_id in known for member in op.ops)
            )
            found[name] = Recorded(
                name=name,
                space=spec.space,
                batch=spec.target.batch,
                rows=rows,
                networks=networks,
                by_id=summary.by_id,
            )
    return list(found.values())


def arrays(recorded: Recorded) -> dict[str, NDArray[Any]]:
    """Return rows and networks as arrays, their names beginning with the target's: ops in the order of the space."""
    rows = preferred(row for row in recorded.rows if row.kind != "identity")
    ops = [op for op in spaces.get(recorded.space, batch=recorded.batch).ops() if op.op_id in rows]
    place = {op: number for number, op in enumerate(ops)}
    counts = np.zeros((len(recorded.networks), len(ops)), dtype=np.int8)
    for number, network in enumerate(recorded.networks):
        for op in network.ops:
            counts[number, place[op]] += 1
    estimates = [recorded.by_id[network.op_id] for network in recorded.networks]
    columns = ("latency_ms", "latency_lo_ms", "latency_hi_ms", "call_overhead_ms")
    found: dict[str, NDArray[Any]] = {
        "op_id": np.array([op.op_id for op in ops]),
        "counts": counts,
        "network_ms": np.array([estimate.time_ms for estimate in estimates]),
        "network_half_width": np.array([estimate.half_width or np.nan for estimate in estimates]),
        "network_freedom": np.array([estimate.freedom for estimate in estimates]),
        **{name: np.array([getattr(rows[op.op_id], name) for op in ops], dtype=np.float64) for name in columns},
    }
    return {f"{recorded.name.split('/')[1].split('-fp32')[0]}.{name}": values for name, values in found.items()}


def floor(recorded: Recorded) -> float:
    """Return the mean absolute error a perfect table would show, by the standard errors of the networks' times."""
    widths = [recorded.by_id[network.op_id].half_width or 0.0 for network in recorded.networks]
    freedom = np.array([recorded.by_id[network.op_id].freedom for network in recorded.networks])
    return float(_MEAN_OF_NORMAL * np.mean(np.array(widths) / quantile(freedom)))


def cross_validated(recorded: Recorded, *, nets: int, splits: int, seed: int, spread: bool) -> dict[str, list[float]]:
    """Return the MAPE of networks outside the fit, by method, one value a split."""
    covered = spaces.get(recorded.space, batch=recorded.batch).ops()
    rng = np.random.default_rng(seed)
    errors: dict[str, list[float]] = {name: [] for name in (*METHODS, _CHOSEN)}
    for _ in range(splits):
        shuffled = [recorded.networks[number] for number in rng.permutation(len(recorded.networks)).tolist()]
        fitted = shuffled[:nets]
        if spread:
            ranked = sorted(shuffled, key=lambda network: recorded.by_id[network.op_id].time_ms)
            strata = np.array_split(np.arange(len(ranked)), nets)
            fitted = [ranked[int(rng.choice(stratum))] for stratum in strata]
        ids = {network.op_id for network in fitted}
        tested = [network for network in shuffled if network.op_id not in ids]
        made = {method: calibrated(recorded, fitted, covered, method) for method in (*METHODS[1:], None)}
        tables = {METHODS[0]: recorded.rows, METHODS[1]: made["affine"], METHODS[2]: made["ridge"], _CHOSEN: made[None]}
        for name, rows in tables.items():
            errors[name].append(mape(tested, preferred(rows), recorded.by_id))
    return errors


def calibrated(
    recorded: Recorded, fitted: Sequence[CampaignOp], covered: Sequence[OpSpec], method: Method | None
) -> tuple[Row, ...]:
    """Return the rows with calibrated ones beside them."""
    made = calibrate_rows(
        recorded.rows, fitted, recorded.by_id, covered=covered, table="", spaces=[recorded.space], method=method
    )
    return (*recorded.rows, *made.rows)


def mape(networks: Sequence[CampaignOp], rows: Mapping[str, Row], by_id: Mapping[str, OpEstimate]) -> float:
    """Return the mean absolute relative error of the plain sums."""
    return float(
        np.mean([abs(network_sum(network.ops, rows) / by_id[network.op_id].time_ms - 1.0) for network in networks])
    )


if __name__ == "__main__":
    main()
