"""What is the error of the tables of three_sessions.py made of?

    python benchmarks/take_apart.py three-sessions/litert-cold
    python benchmarks/take_apart.py three-sessions/litert-cold --pair 6aed4dbb940ad0b9,5cc99f7497ca8083 --json

Nothing is timed, and nothing is written there: the store of every finished session is copied and read. Of each session

1. the mean square of log(predicted / measured) over the held-out networks, table as published: bias squared; noise of
   the truth, which is what the leases of the validation do not have in common once each one's mean is taken out;
   chance in the visits of the collection, by a bootstrap over preparations of every op, pair and carrier; and the rest,
   which the leases have in common and chance does not explain;
2. the error of the table made again from the collection's visits with the code as it is, and with the fastest call of
   every visit of an op or a pair instead of the median (decision 0014);
3. the calibrated table's error as published, beside `calibrate` done again from the same visits with the code as it is,
   and again without the pattern `ends` (decision 0013);
4. with `--pair A,B`, op_ids or labels: how much more than predicted networks take that hold both, either, neither.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.calibrated import calibrate_rows
from lutbuilder.campaign.carriers import in_situ_rows, on_carriers_scale, timed_carriers
from lutbuilder.campaign.collect import pooled
from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec
from lutbuilder.coordinator.store import RawVisit, Store
from lutbuilder.lut import Row, make_rows, preferred
from lutbuilder.stats.records import Visits
from lutbuilder.validation import as_timed, carrier_scale, network_sum, session_scale
from lutbuilder_agent.errors import LutbuilderError, SpecError, UnknownName

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A mean square error and what it is the sum of; squares of fractions."""

    mean_square: float
    bias: float
    truth: float | None  # None for one lease: then it is in `rest`
    chance: float
    rest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A table against the held-out networks; fractions."""

    mape: float
    bias: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrations:
    """MAPE and bias of calibrated tables, fractions."""

    published: tuple[float, float] | None  # None where the table's own rows were best
    again: tuple[float, float]
    without_ends: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Networks that hold the same of two ops: how many, and their mean of measured / predicted - 1."""

    holds: str
    n: int
    more: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """One session."""

    session: int
    mape: float  # of the table as published
    again: Judged
    by_fastest: Judged
    parts: Parts
    calibrations: Calibrations | None  # None where nothing was calibrated
    groups: tuple[Group, ...]  # empty without a pair


def main() -> None:
    """Read, take apart, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of three_sessions.py")
    parser.add_argument("--pair", metavar="A,B", help="two ops, by op_id or label")
    parser.add_argument("--draws", type=int, default=100, help="of the bootstrap")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    pair = None if chosen.pair is None else tuple(chosen.pair.split(","))
    try:
        found = [session(home, pair=pair, draws=chosen.draws) for home in finished(chosen.folder)]
    except LutbuilderError as error:
        parser.error(str(error))
    print(json.dumps([asdict(one) for one in found]) if chosen.json else "\n".join(lines(found)))


def finished(folder: Path) -> list[Path]:
    """Return the folders of the sessions that were validated, in order; the others are named on stderr."""
    homes = sorted(folder.glob("session-[0-9]*"), key=lambda home: int(home.name.partition("-")[2]))
    for home in homes:
        if not (home / "validate.json").exists():
            print(f"{home} is not finished; left out", file=sys.stderr)
    if not (there := [home for home in homes if (home / "validate.json").exists()]):
        raise UnknownName(f"{folder} has no finished session of three_sessions.py")
    return there


def session(home: Path, *, pair: Sequence[str] | None, draws: int) -> Apart:
    """Return what the error of one session is made of."""
    report = json.loads((home / "validate.json").read_text())["report"]
    timed = {network["op_id"]: network for network in report["networks"]}
    measured, predicted = (np.array([net[name] for net in timed.values()]) for name in ("measured_ms", "published_ms"))
    with opened(home / "state" / "campaigns.sqlite") as store:
        campaigns = {campaign.spec.purpose: campaign for campaign in store.campaigns() if campaign.rounds}
        collection, validation = campaigns["collect"].spec, campaigns["validate"].spec
        known = {op.op_id: op for op in validation.ops}
        networks = [known[op_id] for op_id in timed]
        here = summarise(validation.ops, store.visits([campaigns["validate"].campaign_id]))
        visits = store.visits([campaigns["collect"].campaign_id])
        fastest = with_fastest(visits, collection.ops, store.raw_visits([campaigns["collect"].campaign_id]))
        calibrations = None
        if "calibrate" in campaigns and (home / "calibrated.json").exists():
            judged = json.loads((home / "calibrated.json").read_text())["report"]["calibrated"]
            pool = pooled(store, collection)
            own = {op.op_id for op in campaigns["calibrate"].spec.ops if op.role == "network"}
            again, without = recalibrated(
                collection, pool.ops, store.visits(pool.campaign_ids), own=own, here=here, networks=networks
            )
            calibrations = Calibrations(
                published=(judged["mape"]["value"], judged["bias"]["value"]) if judged else None,
                again=again,
                without_ends=without,
            )
    errors = np.log(predicted / measured)
    return Apart(
        session=int(home.name.partition("-")[2]),
        mape=float(np.abs(predicted / measured - 1.0).mean()),
        again=judged_again(collection, visits, here, networks),
        by_fastest=judged_again(collection, fastest, here, networks),
        parts=parts(
            errors,
            predicted_by_lease(here, networks, predicted, n_instances=validation.plan.instances),
            chance(collection, visits, networks, draws=draws),
        ),
        calibrations=calibrations,
        groups=() if pair is None else groups(pair, networks, measured / predicted - 1.0),
    )


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """Open a copy of a store: opening brings an old one up to date."""
    if not path.exists():
        raise UnknownName(f"{path} is not there: the folder of three_sessions.py holds its sessions' stores")
    with TemporaryDirectory() as scratch:
        for part in (path, path.with_name(path.name + "-wal")):
            if part.exists():
                shutil.copyfile(part, Path(scratch) / part.name)
        with Store.open(Path(scratch) / path.name) as store:
            yield store


# --- The table made again


def with_fastest(visits: Visits, ops: Sequence[CampaignOp], raw_visits: Iterable[RawVisit]) -> Visits:
    """Return the visits of one campaign with the fastest undisturbed call of all that is no whole network."""
    whole = {op.op_id for op in ops if op.is_whole}
    block_ns = visits.block_ns.copy()
    for number, timing in enumerate(visit.timing for visit in raw_visits):
        if timing.op_id not in whole:
            lost = set(timing.disturbed)
            kept = [ns for place, ns in enumerate(timing.samples_ns) if place not in lost]
            block_ns[number] = min(kept or timing.samples_ns)
    return replace(visits, block_ns=block_ns)


def judged_again(spec: CampaignSpec, visits: Visits, here: Summary, networks: Sequence[CampaignOp]) -> Judged:
    """Return the errors, at `here`'s scale, of the table that a collection's visits make."""
    summary = summarise(spec.ops, visits)
    rows = table(spec.ops, summary, spec)
    measured = np.array([here.by_id[network.op_id].time_ms for network in networks])
    best = preferred(rows)
    sums = np.array([network_sum(network.ops, best) for network in networks])
    off = told_scale(spec.ops, summary, rows, here) * sums / measured - 1.0
    return Judged(mape=float(np.abs(off).mean()), bias=float(off.mean()), worst=float(np.abs(off).max()))


def told_scale(ops: Sequence[CampaignOp], summary: Summary, rows: Sequence[Row], here: Summary) -> float:
    """Return how many times slower `here` is than the table of a summary: by carriers of in-situ rows, else by ops."""
    carriers = timed_carriers(ops, summary.by_id) if any(row.method == "in_situ" for row in rows) else ()
    return carrier_scale(here, carriers) or session_scale(here, as_timed(rows)) or np.nan


# --- The mean square error


def parts(errors: Floats, by_lease: Floats, chance: float) -> Parts:
    """Take errors, (networks,), apart; `by_lease` (networks, leases) are those against the truth of each lease."""
    variance = float(errors.var())
    patterns = by_lease - np.nanmean(by_lease, axis=0)
    pairs = [patterns[:, a] * patterns[:, b] for a, b in combinations(range(patterns.shape[1]), 2)]
    truth = variance - float(np.mean([np.nanmean(product) for product in pairs])) if pairs else None
    return Parts(
        mean_square=float((errors**2).mean()),
        bias=float(errors.mean() ** 2),
        truth=truth,
        chance=chance,
        rest=variance - (truth or 0.0) - chance,
    )


def predicted_by_lease(
    here: Summary, networks: Sequence[CampaignOp], predicted_ms: Floats, *, n_instances: int
) -> Floats:
    """Return log(predicted / measured) of the networks in each lease, which prepares `n_instances` of each anew.

    Shape (networks, leases); NaN for what a lease did not visit.
    """
    op, lease = instances(here.visits)
    lease = np.unique(lease // [1, n_instances], axis=0, return_inverse=True)[1].reshape(-1)
    found = np.full((len(networks), int(lease.max()) + 1), np.nan)
    for number, network in enumerate(networks):
        mine = op == here.visits.op_ids.index(network.op_id)
        for there in np.unique(lease[mine]):
            which = mine & (lease == there)
            theta = np.average(here.drift.group_theta[which], weights=here.drift.group_weight[which])
            found[number, there] = np.log(predicted_ms[number]) - (theta - np.log(1e6))
    return found


def chance(spec: CampaignSpec, visits: Visits, networks: Sequence[CampaignOp], *, draws: int, seed: int = 0) -> float:
    """Return the variance of the networks' sums, but for their mean, over tables of other preparations of the same ops.

    Every op's instances are drawn anew, with as many; its visits are moved by what that moves its mean, widened by
    sqrt(n / (n - 1)), and the table is made again. An op with one instance stays: of it nothing is known.
    """
    rng = np.random.default_rng(seed)
    drift = summarise(spec.ops, visits).drift
    mine = [np.flatnonzero(instances(visits)[0] == number) for number in range(len(visits.op_ids))]
    sums = []
    for _ in range(draws):
        moved = np.zeros(len(mine))
        for number, group in enumerate(mine):
            if len(group) > 1:
                drawn = rng.choice(group, len(group))
                means = [np.average(drift.group_theta[g], weights=drift.group_weight[g]) for g in (drawn, group)]
                moved[number] = (means[0] - means[1]) * np.sqrt(len(group) / (len(group) - 1))
        other = replace(visits, block_ns=visits.block_ns * np.exp(moved[visits.op]))
        rows = preferred(table(spec.ops, summarise(spec.ops, other), spec))
        sums.append(np.log([network_sum(network.ops, rows) for network in networks]))
    patterns = np.array(sums) - np.mean(sums, axis=1, keepdims=True)
    return float(patterns.var(axis=0, ddof=1).mean())


def instances(visits: Visits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return op, (j,), and session and instance, (j, 2), of the groups of a DriftFit, in its order."""
    unique = np.unique(np.stack([visits.op, visits.session, visits.instance], axis=1), axis=0)
    return unique[:, 0], unique[:, 1:]


def table(ops: Sequence[CampaignOp], summary: Summary, spec: CampaignSpec) -> tuple[Row, ...]:
    """Return the rows of a summary of `ops`, those in situ among them."""
    paired = any(op.role == "pair" for op in ops)
    rows = make_rows(ops, summary.rows, (), {}, method="context" if paired else "isolated", cache=spec.target.cache)
    return (*rows, *in_situ_rows(ops, rows, summary.by_id))


# --- Calibration


def recalibrated(
    spec: CampaignSpec,
    ops: Sequence[CampaignOp],
    visits: Visits,
    *,
    own: Collection[str],
    here: Summary,
    networks: Sequence[CampaignOp],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return MAPE and bias of the table of `visits`, at `here`'s scale, calibrated as it is and without `ends`.

    It is fitted to carriers and to the networks named in `own`.
    """
    summary = summarise(ops, visits)
    rows = table(ops, summary, spec)
    scale = told_scale(ops, summary, rows, here)
    measured = np.array([here.by_id[network.op_id].time_ms for network in networks])

    def errors(rows: Sequence[Row]) -> tuple[float, float]:
        made = calibrate_rows(
            rows,
            [op for op in ops if op.role == "carrier" or op.op_id in own],
            on_carriers_scale(ops, summary),
            covered=[op.ops[0] for op in spec.ops if op.role == "op"],
            table="",
            spaces=[spec.space],
        )
        best = preferred((*rows, *made.rows))
        off = scale * np.array([network_sum(network.ops, best) for network in networks]) / measured - 1.0
        return float(np.abs(off).mean()), float(off.mean())

    # Only of cold rows `ends` is a pattern.
    return errors(rows), errors([replace(row, cache="rotating") for row in rows])


# --- Two ops


def groups(pair: Sequence[str], networks: Sequence[CampaignOp], more: Floats) -> tuple[Group, ...]:
    """Return the networks that hold both ops, one, and none, and their mean of `more`, (networks,)."""
    names = {name for network in networks for op in network.ops for name in (op.op_id, op.label())}
    if len(pair) != 2 or (unknown := [name for name in pair if name not in names]):
        told = "two ops" if len(pair) != 2 else f"no op of the networks is {', '.join(unknown)}"
        raise SpecError(f"{told}: --pair A,B takes op_ids or labels such as {min(names, key=len)}")
    holds = np.array([[any(name in (op.op_id, op.label()) for op in net.ops) for name in pair] for net in networks])
    found = []
    for name, wanted in (("A and B", (1, 1)), ("A alone", (1, 0)), ("B alone", (0, 1)), ("neither", (0, 0))):
        which = (holds == wanted).all(axis=1)
        found.append(Group(holds=name, n=int(which.sum()), more=float(more[which].mean()) if which.any() else None))
    return tuple(found)


# --- What is printed


def lines(found: Sequence[Apart]) -> list[str]:
    """Return a block a session."""
    told: list[str] = []
    for one in found:
        p = one.parts
        truth = "not known" if p.truth is None else f"{1e4 * p.truth:.2f}"
        told += [
            f"session {one.session}: table as published, MAPE {100 * one.mape:.2f} %",
            f"  mean square error {1e4 * p.mean_square:.2f} %²: bias² {1e4 * p.bias:.2f}, noise of the truth {truth}, "
            f"chance in the table's visits {1e4 * p.chance:.2f}, the rest {1e4 * p.rest:.2f}",
        ]
        made = [
            f"{name} {100 * it.mape:.2f} ({100 * it.bias:+.2f}), worst {100 * it.worst:.1f}"
            for name, it in (("as it is", one.again), ("ops by their fastest calls", one.by_fastest))
        ]
        told.append(f"  table made again, MAPE % (bias): {'; '.join(made)}")
        if one.calibrations is not None:
            c = one.calibrations
            each = (("published", c.published), ("again", c.again), ("without ends", c.without_ends))
            cells = [f"{name} {100 * it[0]:.2f} ({100 * it[1]:+.2f})" for name, it in each if it is not None]
            told.append(f"  calibrated, MAPE % (bias): {', '.join(cells)}")
        if one.groups:
            cells = [f"{it.holds} {'-' if it.more is None else f'{100 * it.more:+.2f}'} ({it.n})" for it in one.groups]
            told.append(f"  measured over predicted, % (networks): {', '.join(cells)}")
    return told


if __name__ == "__main__":
    main()
