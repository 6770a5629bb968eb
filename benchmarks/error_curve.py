"""How well does a table predict whole networks after 30 seconds of collecting, after 1, 3 and 10 minutes?

    lutbuilder collect --runtime onnxruntime --budget 10m --precision 0.01% --state-dir DIR --luts DIR/luts
    lutbuilder validate DIR/luts/<device>/onnxruntime-fp32-bs1 --state-dir DIR
    python benchmarks/error_curve.py DIR/campaigns.sqlite --runtime onnxruntime --minutes 0.5,1,3,10

Nothing is measured here. The visits of one long collection are cut off at each time, fitted and made into rows as if
the command had ended then; the rows predict the networks of a validation in the same store. Their scale is tied by the
ops that the validation timed, as for `table as published`; the networks' truth is the validation's alone. Next to it
the same without a drift model: medians of the collection's visits, against the same truth.

Time is wall time, loading and committing included. A round counts from when the coordinator committed it; a session
starts when its agent registered, or when the campaign was created if that is later; a collection in several sessions
has their times added up. Starting the command and its agent, one or two seconds, is in no store and not counted. With
adaptive rounds a cut shows what was known then, not what a command with that budget would have chosen to measure.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.carriers import in_situ_rows
from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.coordinator.store import CampaignState, Store
from lutbuilder.lut import Row, make_rows, preferred
from lutbuilder.networks import HeldOut
from lutbuilder.stats.quality import Accuracy, accuracy
from lutbuilder.stats.records import Visits
from lutbuilder.validation import as_timed, network_sums, session_scale
from lutbuilder_agent.errors import LutbuilderError, UnknownName


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a collection was worth at one moment. Errors over the networks whose ops all had rows by then."""

    minutes: float  # asked for
    measured_minutes: float  # when the last round that counts was committed
    rounds: int
    n_ops: int
    n_networks: int
    median_half_width: float | None  # of the ops' 95 % intervals, relative; None below 6 rounds
    with_drift_model: Accuracy | None  # None below 3 networks
    without: Accuracy | None


def main() -> None:
    """Read, cut, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="campaigns.sqlite of the state folder")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--minutes", default="0.5,1,3,10", help="comma separated")
    parser.add_argument("--collection", help="campaign id [default: the collection that took longest]")
    parser.add_argument("--validation", help="campaign id [default: the newest one]")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    minutes = [float(moment) for moment in chosen.minutes.split(",")]
    try:
        with Store.open(chosen.store) as store:
            collection, validation = campaigns(store, chosen.runtime, chosen.collection, chosen.validation)
            points = curve(store, collection, validation, minutes)
    except LutbuilderError as error:
        parser.error(str(error))
    ids = {"collection": collection.campaign_id, "validation": validation.campaign_id, "runtime": chosen.runtime}
    if chosen.json:
        print(json.dumps({**ids, "points": [asdict(point) for point in points]}))
        return
    print(f"{chosen.runtime}: collection {collection.campaign_id}, validation {validation.campaign_id}")
    names = ("minutes", "rounds", "networks", "± of ops %", "MAPE % (95 % interval)", "worst %", "Spearman")
    _print(*names, "no drift model: MAPE %", "worst %", "Spearman")
    for point in points:
        width = "-" if point.median_half_width is None else f"{100 * point.median_half_width:.2f}"
        counts = (f"{point.minutes:g}", str(point.rounds), str(point.n_networks), width)
        _print(*counts, *_told(point.with_drift_model), *_told(point.without, interval=False))


def _print(*cells: str) -> None:
    widths = (7, 6, 8, 10, 23, 7, 8, 22, 7, 8)
    print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


def _told(found: Accuracy | None, *, interval: bool = True) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    mape = f"{100 * found.mape.value:.2f}"
    if interval:
        mape += f" ({100 * found.mape.lo:.2f} to {100 * found.mape.hi:.2f})"
    return mape, f"{100 * found.worst:.2f}", f"{found.spearman.value:.4f}"


def campaigns(
    store: Store, runtime: str, collection: str | None, validation: str | None
) -> tuple[CampaignState, CampaignState]:
    """Return the collection and the validation to compare: those named, else the longest and the newest of a runtime.

    Raises UnknownName where there is none, or where the two are not of one target.
    """
    there = [campaign for campaign in store.campaigns() if campaign.spec.target.runtime == runtime and campaign.rounds]

    def found(purpose: str, wanted: str | None) -> CampaignState:
        fitting = [c for c in there if c.spec.purpose == purpose and wanted in (None, c.campaign_id)]
        if not fitting:
            named = "" if wanted is None else f" {wanted}"
            raise UnknownName(f"{store.path} holds no measured {purpose} campaign{named} of {runtime}")
        return max(fitting, key=lambda c: c.measured_ns if purpose == "collect" else c.created_s)

    pair = found("collect", collection), found("validate", validation)
    if pair[0].spec.target != pair[1].spec.target or pair[0].spec.env_id != pair[1].spec.env_id:
        raise UnknownName(
            f"collection {pair[0].campaign_id} and validation {pair[1].campaign_id} are of different targets: "
            "--collection, --validation"
        )
    return pair


def curve(
    store: Store, collection: CampaignState, validation: CampaignState, minutes: list[float]
) -> tuple[Point, ...]:
    """Return a point for each of `minutes`."""
    spec = validation.spec
    networks = tuple(HeldOut(arch=(), ops=op.ops, group="") for op in spec.ops if op.role == "network")
    here = summarise(spec.ops, store.visits([validation.campaign_id]))
    visits = store.visits([collection.campaign_id])
    times_s = visit_times_s(store, collection, visits)
    points = []
    for moment in minutes:
        kept = times_s <= 60 * moment
        cut = visits.take(kept)
        if not len(cut):
            raise UnknownName(f"no round of {collection.campaign_id} was over after {moment:g} minutes: --minutes")
        fitted, medians = table(collection, cut), table(collection, cut, steady=True)
        ops = [row for row in preferred(fitted).values() if row.kind != "identity"]
        widths = [row.half_width for row in ops if row.half_width is not None]
        errors, n_networks = predicted(networks, here, fitted)
        points.append(
            Point(
                minutes=moment,
                measured_minutes=float(times_s[kept].max()) / 60,
                rounds=len(set(zip(cut.session.tolist(), cut.round.tolist(), strict=True))),
                n_ops=sum(row.latency_ms is not None for row in ops),
                n_networks=n_networks,
                median_half_width=float(np.median(widths)) if widths else None,
                with_drift_model=errors,
                without=predicted(networks, here, medians)[0],
            )
        )
    return tuple(points)


def visit_times_s(store: Store, campaign: CampaignState, visits: Visits) -> NDArray[np.float64]:
    """Return after how many seconds of the campaign's wall time each visit was committed, shape (visits,)."""
    reports = store.reports([campaign.campaign_id])
    committed_s: dict[tuple[str, int], float] = {}  # a round may come in parts: its last one counts
    for report in reports:
        key = (report.session_id, report.round)
        committed_s[key] = max(report.committed_s, committed_s.get(key, 0.0))
    before_s = 0.0
    elapsed_s: dict[tuple[str, int], float] = {}
    for session in store.sessions([campaign.campaign_id]):
        start_s = max(session.registered_s, campaign.created_s)
        mine = {key: at_s for key, at_s in committed_s.items() if key[0] == session.session_id}
        elapsed_s |= {key: before_s + at_s - start_s for key, at_s in mine.items()}
        before_s += max(mine.values()) - start_s
    names = visits.session_ids
    pairs = zip(visits.session.tolist(), visits.round.tolist(), strict=True)
    return np.array([elapsed_s[names[session], round_] for session, round_ in pairs])


def table(campaign: CampaignState, visits: Visits, *, steady: bool = False) -> tuple[Row, ...]:
    """Return the rows that `collect` would have made of these visits; `steady`: without a drift model."""
    summary = summarise(campaign.spec.ops, visits, steady=steady)
    paired = any(op.role == "pair" for op in campaign.spec.ops)
    rows = make_rows(
        campaign.spec.ops,
        summary.rows,
        (),
        {},
        method="context" if paired else "isolated",
        cache=campaign.spec.target.cache,
    )
    return (*rows, *in_situ_rows(campaign.spec.ops, rows, summary.by_id))


def predicted(networks: tuple[HeldOut, ...], here: Summary, rows: tuple[Row, ...]) -> tuple[Accuracy | None, int]:
    """Return the errors of the plain sum at `here`'s scale, and over how many networks; None below 3."""
    timed = [network for network in networks if network.op_id in here.by_id]
    sums = network_sums(timed, preferred(rows))
    known = np.isfinite(sums)
    scale = session_scale(here, as_timed(rows))
    if known.sum() < 3 or scale is None:
        return None, int(known.sum())
    truth = np.array([here.by_id[network.op_id].time_ms for network in timed])
    return accuracy(scale * sums[known], truth[known]), int(known.sum())


if __name__ == "__main__":
    main()
