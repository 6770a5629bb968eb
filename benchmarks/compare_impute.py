"""How well a few measured shapes of a width grid tell the others: share measured against error, by how they are chosen.

    python benchmarks/compare_impute.py [--shares 5,10,15,20,25] [--seeds 8] [--grid FILE] [--json]
    python benchmarks/compare_impute.py --record STATE_DIR FILE

The grid was measured whole (tests/recorded_grid.py says where and how), so the truth of what is imputed is known, but
for its own noise. Designs, each over `--seeds` random 85 % of the shapes as candidates, so that there is something to
average over: `ours`, what `collect --max-ops` measures; `spread`, its first stage alone; `random` shapes. And two other
ways to fill the gaps from our shapes: `physics`, a fit of bytes, MACs and weights; `lines`, linear interpolation
between measured widths, what most published tables do.

Figures: of the shapes not measured the mean absolute error, its 95th percentile and maximum in %, how many of their
intervals at nominal 90 % cover, and how many are not positive; of 300 random networks of the space the mean and largest
error of the sum over their shapes against the whole grid's sum: `gross` with the call overhead of every op, `net`
without, as tables have it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the recorded grid lies with the tests

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.estimates import summarise
from lutbuilder.campaign.knots import impute_ops, log_sd, next_knots, shapes_of
from lutbuilder.campaign.plan import expected_uses, overhead_op
from lutbuilder.coordinator.store import Store
from lutbuilder.op import OpSpec
from tests.recorded_grid import FILE, Grid, load, save

NETWORKS = 300
NORMAL_90 = 1.644854
CANDIDATES = 0.85


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one choice of shapes leads to; per cent, but for counts and the covered fraction."""

    share: float
    mape: float
    p95: float
    worst: float
    covered_90: float
    not_positive: float
    network_mape: float
    network_worst: float
    net_network_mape: float


def judged(
    grid: Grid, knots: Sequence[OpSpec], networks: NDArray[np.float64], dense_net: NDArray[np.float64]
) -> Figures:
    """Return how well `knots` tell the other shapes of `grid`."""
    known = {op: grid.ops[op] for op in knots}
    told = impute_ops(grid.shapes, known)
    truth, noise = truths(grid)
    rest = np.array([op not in known for op in grid.shapes])
    reach = np.hypot(told.radius(0.9) * told.sd, NORMAL_90 * noise)  # the truth is a measurement, too
    covered = np.abs(np.log(told.ms / truth)) <= reach
    filled = np.where(rest, told.ms, truth)
    return figures(
        grid, filled, rest, networks, covered=float(covered[rest].mean()),
        net=error(networks @ net_ms(grid, knots), networks @ dense_net)[0],
    )  # fmt: skip  # one call


def figures(
    grid: Grid, filled: NDArray[np.float64], rest: NDArray[np.bool_], networks: NDArray[np.float64],
    *, covered: float = float("nan"), net: float = float("nan"),
) -> Figures:  # fmt: skip  # one line reads as one list
    """Return the figures of a grid whose shapes `rest` were filled in, by whatever means."""
    truth, _ = truths(grid)
    relative = 100 * np.abs(filled / truth - 1)[rest]
    network_mape, network_worst = error(networks @ filled, networks @ truth)
    return Figures(
        share=100 * float(np.mean(~rest)),
        mape=float(relative.mean()),
        p95=float(np.quantile(relative, 0.95)),
        worst=float(relative.max()),
        covered_90=covered,
        not_positive=float((filled <= 0).sum()),
        network_mape=network_mape,
        network_worst=network_worst,
        net_network_mape=net,
    )


def truths(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the measured latency of every shape, ms, call overhead inside, and the standard deviation of its log."""
    estimates = [grid.ops[op] for op in grid.shapes]
    return np.array([e.time_ms for e in estimates]), np.array([log_sd(e) for e in estimates])


def net_ms(grid: Grid, knots: Sequence[OpSpec]) -> NDArray[np.float64]:
    """Return the latency of every shape less call overhead, as a table has it once `knots` are measured."""
    rows = grid.net_ms(knots)
    return np.array([rows[op] for op in grid.shapes])


def error(predicted: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and largest absolute relative error in per cent."""
    relative = 100 * np.abs(predicted / truth - 1)
    return float(relative.mean()), float(relative.max())


def physics(grid: Grid, knots: Sequence[OpSpec]) -> NDArray[np.float64]:
    """Return the shapes' latency by a fit of bytes, calls, weights and MACs, each kind of op its own."""
    from scipy.optimize import nnls

    shapes = shapes_of(grid.shapes)
    truth, _ = truths(grid)
    known = np.isin(np.arange(len(truth)), [grid.shapes.index(op) for op in knots])
    filled = truth.copy()
    for group in np.unique(shapes.group):
        mine = shapes.group == group
        work = shapes.work[0][:, :5]
        weights, _ = nnls(work[mine & known] / truth[mine & known, None], np.ones(int((mine & known).sum())))
        filled[mine & ~known] = work[mine & ~known] @ weights
    return np.asarray(filled)


def lines(grid: Grid, knots: Sequence[OpSpec]) -> NDArray[np.float64]:
    """Return the shapes' latency by lines between knots of equal kind and extents; outside them the nearest knot's."""
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

    truth, _ = truths(grid)
    slices: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, op in enumerate(grid.shapes):
        slices[op.kernel, op.stride, op.height].append(i)
    filled = truth.copy()
    chosen = set(knots)
    for members in slices.values():
        widths = np.array([(grid.shapes[i].in_channels, grid.shapes[i].out_channels) for i in members], dtype=float)
        known = np.array([grid.shapes[i] in chosen for i in members])
        values = truth[members]
        if not known.any():
            filled[members] = np.nan
        elif grid.shapes[members[0]].groups > 1:
            filled[members] = np.interp(widths[:, 0], widths[known, 0], values[known])
        else:
            guess = NearestNDInterpolator(widths[known], values[known])(widths)
            if known.sum() >= 4:
                inside = LinearNDInterpolator(widths[known], values[known])(widths)
                guess = np.where(np.isnan(inside), guess, inside)
            filled[members] = np.where(known, values, guess)
    return np.asarray(filled)


def compare(grid: Grid, shares: Sequence[float], seeds: int) -> dict[str, list[Figures]]:
    """Return for every design the mean figures at each share."""
    made: dict[str, list[Figures]] = defaultdict(list)
    networks = grid.networks(NETWORKS, seed=0)
    dense_net = net_ms(grid, grid.shapes)
    uses = expected_uses(grid.space)
    for share in shares:
        count = round(share / 100 * len(grid.shapes))
        found: dict[str, list[Figures]] = defaultdict(list)
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            allowed = [op for op in grid.shapes if rng.random() < CANDIDATES]
            ours = grid.knots(count, allowed)
            found["ours"].append(judged(grid, ours, networks, dense_net))
            spread = next_knots(grid.shapes, allowed, {}, uses, count)
            found["spread"].append(judged(grid, spread, networks, dense_net))
            drawn = [grid.shapes[i] for i in rng.permutation(len(grid.shapes))[:count]]
            found["random"].append(judged(grid, drawn, networks, dense_net))
            rest = np.array([op not in set(ours) for op in grid.shapes])
            found["physics"].append(figures(grid, physics(grid, ours), rest, networks))
            found["lines"].append(figures(grid, lines(grid, ours), rest, networks))
        for design, all_of in found.items():
            means = {f.name: float(np.mean([getattr(one, f.name) for one in all_of])) for f in fields(Figures)}
            made[design].append(Figures(**means))
    return made


def record(state_dir: Path, path: Path) -> None:
    """Write the estimates of the newest campaign in a state folder to `path`."""
    with Store.open(state_dir / "campaigns.sqlite") as store:
        state = max((c for c in store.campaigns() if c.rounds), key=lambda c: c.created_s)
        spec = state.spec
        rows = {row.op_id: row for row in summarise(spec.ops, store.visits([spec.key])).rows}
    members = [op for campaign_op in spec.ops if campaign_op.role == "op" for op in campaign_op.ops]
    ops = [op for op in dict.fromkeys([*members, *map(overhead_op, members)]) if op.op_id in rows]
    provenance = {
        "space": spec.space, "target": asdict(spec.target), "plan": asdict(spec.plan), "rounds": state.rounds,
        "runtime_version": spec.runtime_version, "env_id": spec.env_id, "campaign": spec.key,
    }  # fmt: skip  # one record
    save(path, ops, [rows[op.op_id] for op in ops], provenance)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", default="5,10,15,20,25", help="per cent of the shapes that are measured")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--grid", type=Path, default=FILE)
    parser.add_argument("--record", nargs=2, type=Path, metavar=("STATE_DIR", "FILE"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.record:
        record(*arguments.record)
        return
    grid = load(arguments.grid)
    _, noise = truths(grid)
    made = compare(grid, [float(share) for share in arguments.shares.split(",")], arguments.seeds)
    if arguments.json:
        print(json.dumps({design: [asdict(one) for one in all_of] for design, all_of in made.items()}, indent=1))
        return
    print(f"{len(grid.shapes)} shapes, measured within {100 * np.median(noise):.2f} % (median standard deviation)")
    print("design    share   MAPE    p95  worst  cover  <= 0  networks: gross worst   net")
    for design, all_of in made.items():
        for one in all_of:
            of_shapes = (
                f"{one.mape:6.2f} {one.p95:6.2f} {one.worst:6.1f} {100 * one.covered_90:6.1f} {one.not_positive:5.1f}"
            )
            of_networks = f"{one.network_mape:15.2f} {one.network_worst:5.2f} {one.net_network_mape:5.2f}"
            print(f"{design:8} {one.share:5.1f}% {of_shapes}  {of_networks}")


if __name__ == "__main__":
    main()
