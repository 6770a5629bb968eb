"""`validate`: held-out whole networks, timed in the same rounds as the ops, against the sum of the table's rows.

The list of networks is fixed before anything is timed: its hash is part of the campaign, and a report is made only of
a campaign that still holds that list. No held-out network's time enters any row, and no network that a table was
fitted to is held out. What two validations measured of a network is never pooled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.carriers import carriers_of, midmean
from lutbuilder.campaign.collect import draft, publish_draft, runtime_version, timed_fraction
from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.campaign.host import ALONE, Opening
from lutbuilder.campaign.plan import campaign_ops, overhead_op
from lutbuilder.campaign.request import OnProgress, ValidateOutcome, ValidateRequest
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec
from lutbuilder.networks import HeldOut, choose, networks_sha256, read_networks, refuse_fitted, save_networks
from lutbuilder.stats.calibrate import LEAST_NETWORKS
from lutbuilder.stats.drift import DriftFit
from lutbuilder.stats.quality import (
    Accuracy,
    NetworkResult,
    ValidationReport,
    accuracy,
    deciles,
    excess,
    linear_baseline,
    pooled_sd,
    truth_noise,
)
from lutbuilder_agent.errors import CampaignFailed, Interrupted, LutConflict, SpecError

if TYPE_CHECKING:
    from lutbuilder.coordinator.store import CampaignState
    from lutbuilder.lut import Lut, Row
    from lutbuilder.lut.schema import Carrier
    from lutbuilder.op import OpSpec
    from lutbuilder.spaces import SearchSpace

Floats = NDArray[np.float64]
_MOST_OPS = 300  # of a table that are timed beside the networks: they tell its scale, and a round stays short


def validate(request: ValidateRequest, on_progress: OnProgress, *, opening: Opening = ALONE) -> ValidateOutcome:
    """Time held-out networks with the ops of a LUT, publish the refitted rows with the report, and return both.

    Networks that this store has timed already under an equal request are not timed again unless `again`: the report is
    then of the stored visits and of the LUT as it is now. Raises what `collect` raises; LutConflict if this device is
    not the one the LUT speaks for; SpecError for fewer than 3 networks, a bad list of them, or one the LUT was fitted
    to.
    """
    from lutbuilder.lut import Lut, merge

    if request.networks is None and request.n_random + request.n_searched < 3:
        raise SpecError("a validation needs at least 3 networks: --random 60 --searched 20")
    base = Lut.load(request.lut, folder=request.luts)
    luts = base.path.parent.parent.parent  # the folder the LUT was found in, whatever --luts says
    target = base.meta.target
    device = opening.device(target.device)
    if not (request.space or base.meta.spaces):
        raise SpecError(f"{base.spec} does not say which space it covers: --space NAME")
    space = opening.space(request.space or base.meta.spaces[0], batch=target.batch)
    networks = held_out(space, base, request)
    if request.save_networks is not None:
        save_networks(networks, space, request.save_networks, batch=target.batch)
    digest = networks_sha256(networks)
    try:
        with opening.host(
            device, target.runtime, listen="127.0.0.1:0", state_dir=request.state_dir, on_progress=on_progress
        ) as host:
            agent = host.find_agent(device, target.runtime, wait_s=None)
            if agent.fingerprint.env_id != base.meta.fingerprint.env_id:
                changed = _changed(base, dict(agent.fingerprint.facts))
                raise LutConflict(
                    f"{base.spec} was measured in another environment ({changed}): "
                    f"measure anew: lutbuilder collect --runtime {target.runtime} --new-conditions"
                )
            host.tell("preparing", f"{len(networks)} held-out networks, list sha256 {digest[:16]}")
            spec = CampaignSpec(
                space=space.name,
                target=target,
                plan=replace(
                    base.meta.plan, seed=request.seed, instances=request.instances or base.meta.plan.instances
                ),
                env_id=agent.fingerprint.env_id,
                runtime_version=runtime_version(agent, target.runtime),
                ops=(
                    *anchors(space, base),
                    *carriers_of(base),
                    *(CampaignOp.network(network.ops) for network in networks),
                ),
                budget_s=request.budget_s,
                precision=0.01,
                max_rounds=request.rounds,
                lease_rounds=request.lease_rounds,
                purpose="validate",
                networks_sha256=digest,
            )
            campaigns = {campaign.campaign_id: campaign for campaign in host.store.campaigns()}
            spec = to_run(spec, campaigns, again=request.again)
            timed_before = spec.key in campaigns and campaigns[spec.key].state == "done"
            state = host.run(spec)
            check_list(state.spec, networks)
            made = draft(host, state, agent)
            merged, merged_meta = merge(base, made.rows, made.meta)
            visits = host.store.visits([spec.key])
            report = make_report(
                networks,
                spec,
                pooled=merged,
                published=base.rows(),
                carriers=base.meta.carriers,
                pooled_carriers=merged_meta.carriers,
                here=summarise(spec.ops, visits),
                undrifted=summarise(spec.ops, visits, steady=True),
                about=About(
                    table=f"{base.name}@{base.version}",
                    seed=None if request.networks is not None else request.seed,
                    n_fitted=len(base.meta.fitted_networks),
                    published_shares_visits=not set(base.meta.sessions).isdisjoint(
                        session.session_id for session in host.store.sessions([spec.key])
                    ),
                    rounds=state.rounds,
                    wall_s=max(host.busy_s(), state.measured_ns / 1e9),
                    timed_fraction=timed_fraction(host, state),
                ),
            )
            made = replace(made, meta=replace(made.meta, validation=report.to_json()))
            lut = publish_draft(host, made, luts=luts, base=base)
            return ValidateOutcome(report=report, lut=lut, wall_s=host.elapsed_s(), timed_before=timed_before)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; every acknowledged visit is kept: the same command continues where this one stopped"
        ) from None


# --- What is timed


def held_out(space: SearchSpace, base: Lut, request: ValidateRequest) -> tuple[HeldOut, ...]:
    """Return the networks a request lists or chooses, none of which `base` was fitted to; else SpecError."""
    if request.networks is None:
        return choose(
            space,
            base,
            n_random=request.n_random,
            n_searched=request.n_searched,
            seed=request.seed,
            avoid=base.meta.fitted_networks,
        )
    networks = read_networks(request.networks, space, batch=base.meta.target.batch)
    refuse_fitted(networks, base)
    return networks


def anchors(space: SearchSpace, base: Lut) -> tuple[CampaignOp, ...]:
    """Return the ops to time beside the networks: those of the space that `base` has measured, and their overheads.

    Of a table with more than _MOST_OPS, so many spread over it. Imputed rows are checked by the networks alone.
    """
    imputed = {row.op_id for row in base.rows() if row.evidence == "modelled"}
    measured = [op for op in space.ops() if op.op_id not in imputed]
    return campaign_ops(measured, measured[:: -(-len(measured) // _MOST_OPS) or 1])


def to_run(spec: CampaignSpec, campaigns: Mapping[str, CampaignState], *, again: bool) -> CampaignSpec:
    """Return the repeat of a campaign to run or continue; without `again` also one that is done and measured."""
    while (known := campaigns.get(spec.key)) is not None and known.state != "active":
        if known.state == "done" and known.reason != "failed" and not again:
            break
        spec = replace(spec, repeat=spec.repeat + 1)
    return spec


def check_list(stored: CampaignSpec, networks: Sequence[HeldOut]) -> None:
    """Raise CampaignFailed unless the networks of a stored campaign are those whose hash it was created with."""
    timed = [op.ops for op in stored.ops if op.role == "network"]
    groups = [network.group for network in networks]
    found = [HeldOut(arch=(), ops=ops, group=group) for ops, group in zip(timed, groups, strict=False)]
    if len(timed) != len(groups) or networks_sha256(found) != stored.networks_sha256:
        raise CampaignFailed(
            f"campaign {stored.key} does not hold the list of networks that was fixed before timing (sha256 "
            f"{stored.networks_sha256[:16] or 'none'}...): its store was changed. Time them anew: --again"
        )


# --- What came out


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a report says of its making; the fields of ValidationReport of these names."""

    table: str = ""
    seed: int | None = None
    n_fitted: int = 0
    published_shares_visits: bool = False
    rounds: int
    wall_s: float
    timed_fraction: float


def make_report(
    networks: Sequence[HeldOut],
    spec: CampaignSpec,
    *,
    pooled: Iterable[Row],
    published: Iterable[Row],
    here: Summary,
    undrifted: Summary,
    about: About,
    carriers: Sequence[Carrier] = (),
    pooled_carriers: Sequence[Carrier] = (),
) -> ValidationReport:
    """Return the report of a campaign over `networks`.

    `here` is the fit of this campaign's visits alone and gives the networks' truth, `undrifted` their plain medians;
    `published` are the rows of the table as it was, `pooled` those with this campaign's op visits in them, and
    `carriers` and `pooled_carriers` what either was fitted to. Calibrated rows of `published` are judged beside the
    measured ones. Networks that were not timed, or of which an op failed, are
    left out. Raises CampaignFailed for fewer than 3 others.
    """
    from lutbuilder.lower import lower_network
    from lutbuilder.lut import preferred

    published, pooled = tuple(published), tuple(pooled)
    # A table taken over from another device has calibrated rows alone, and a scale that networks of this one gave it.
    before = preferred(row for row in published if row.method != "calibrated") or preferred(published)
    now = preferred(row for row in pooled if row.method != "calibrated") or preferred(pooled)
    kept = [net for net in networks if net.op_id in here.by_id and np.isfinite(network_sum(net.ops, now))]
    scale_now = _scale(here, pooled, pooled_carriers)
    if len(kept) < 3 or scale_now is None:
        raise CampaignFailed(
            f"only {len(kept)} of {len(networks)} networks were timed, and all their ops too, in {about.rounds} "
            "rounds: --budget 20m"
        )
    names = [net.op_id for net in kept]
    truth = np.array([here.by_id[name].time_ms for name in names])
    predicted = scale_now * network_sums(kept, now)
    alone = as_timed(published)
    ops_scale = session_scale(here, alone) if alone or not published else 1.0
    scale = _scale(here, published, carriers)
    scaled = float("nan") if scale is None else scale
    published_ms = scaled * network_sums(kept, before)
    by_ops_ms = (float("nan") if ops_scale is None or scale == ops_scale else ops_scale) * network_sums(kept, before)
    has_calibrated = any(row.method == "calibrated" for row in published)
    calibrated_ms = scaled * network_sums(kept, preferred(published)) if has_calibrated else np.full(len(kept), np.nan)
    is_in_situ = any(row.method == "in_situ" for row in published)
    alone_ms = (ops_scale or float("nan")) * network_sums(kept, alone) if is_in_situ else np.full(len(kept), np.nan)
    plain = {estimate.op_id: estimate.time_ms for estimate in undrifted.rows}
    undrifted_ms = np.array([_gross_sum(net.ops, plain) for net in kept])
    undrifted_truth = np.array([undrifted.by_id[name].time_ms for name in names])
    macs = np.array([float(lower_network(net.ops).macs) for net in kept])
    depth = np.array([[len(net.ops), net.ops[0].height * net.ops[0].width] for net in kept], dtype=np.float64)
    lut_sum = accuracy(predicted, truth)
    tenths = deciles(predicted, truth)
    retests = [r for name in names if (r := here.by_id[name].test_retest) is not None]
    noise = truth_noise(replicates(here.drift, here.visits.op_ids, set(names)))
    timed_ops = {op.op_id for op in spec.ops if op.role == "op"}
    return ValidationReport(
        lut_sum=lut_sum,
        undrifted=_accuracy(undrifted_ms, undrifted_truth),
        published=_accuracy(published_ms, truth),
        calibrated=_accuracy(calibrated_ms, truth),
        ops_alone=_accuracy(alone_ms, truth),
        published_by_ops=_accuracy(by_ops_ms, truth),
        flops_linear=accuracy(linear_baseline(macs, truth), truth),
        depth_linear=accuracy(linear_baseline(depth, truth), truth),
        flops_linear_held_out=accuracy(linear_baseline(macs, truth, held_out=True), truth),
        depth_linear_held_out=accuracy(linear_baseline(depth, truth, held_out=True), truth),
        deciles=tuple(tenth.mape.value for tenth in tenths),
        fastest=tenths[0],
        slowest=tenths[-1],
        test_retest_floor=float(np.median(retests)) if retests else None,
        instance_floor=instance_sd(here.drift, here.visits.op_ids, set(names)),
        op_instance_sd=instance_sd(here.drift, here.visits.op_ids, timed_ops),
        truth_noise=None if noise is None else noise.of_truth,
        run_noise=None if noise is None else noise.of_run,
        excess_error=None if noise is None else excess(lut_sum.mape, noise.of_truth),
        excess_over_run=None if noise is None else excess(lut_sum.mape, noise.of_run),
        session_scale=scale,
        ops_scale=ops_scale,
        networks_sha256=spec.networks_sha256,
        campaign_id=spec.key,
        table=about.table,
        seed=about.seed,
        n_fitted=about.n_fitted,
        published_shares_visits=about.published_shares_visits,
        rounds=about.rounds,
        wall_s=about.wall_s,
        timed_fraction=about.timed_fraction,
        networks=tuple(
            NetworkResult(
                op_id=net.op_id,
                group=net.group,
                measured_ms=float(truth[k]),
                predicted_ms=float(predicted[k]),
                undrifted_ms=_known(undrifted_ms[k]),
                published_ms=_known(published_ms[k]),
                calibrated_ms=_known(calibrated_ms[k]),
                macs=int(macs[k]),
                n_ops=len(net.ops),
                n_visits=here.by_id[net.op_id].n_visits,
                n_instances=here.by_id[net.op_id].n_instances,
                test_retest=here.by_id[net.op_id].test_retest,
            )
            for k, net in enumerate(kept)
        ),
    )


def network_sum(ops: Sequence[OpSpec], rows: Mapping[str, Row]) -> float:
    """Return the plain sum of a network's rows plus the one call overhead it has, in ms.

    Infinite if a row failed or is not there.
    """
    found = [rows.get(op.op_id) for op in ops]
    latencies = [row.latency_ms for row in found if row is not None and row.latency_ms is not None]
    if len(latencies) < len(found) or found[0] is None:
        return float("inf")
    return sum(latencies) + (found[0].call_overhead_ms or 0.0)


def network_sums(networks: Sequence[HeldOut], rows: Mapping[str, Row]) -> Floats:
    """Return `network_sum` of each network, shape (networks,)."""
    return np.array([network_sum(network.ops, rows) for network in networks])


def as_timed(rows: Iterable[Row]) -> Mapping[str, Row]:
    """Return the rows as ops were timed, without what networks said of them: they tie sessions to each other."""
    from lutbuilder.lut import preferred

    return preferred(row for row in rows if row.method in ("isolated", "context"))


def _scale(here: Summary, rows: Sequence[Row], carriers: Sequence[Carrier]) -> float | None:
    """Return a table's scale in this session, told by what the table is made of: carriers of in-situ rows, else ops."""
    in_situ = any(row.method == "in_situ" for row in rows)
    if in_situ and (scale := carrier_scale(here, carriers)) is not None:
        return scale
    return session_scale(here, as_timed(rows)) if as_timed(rows) or not rows else 1.0


def carrier_scale(here: Summary, carriers: Sequence[Carrier]) -> float | None:
    """Return how many times slower `here` is than a table, by the carriers it was fitted to: the midmean of ratios.

    In-situ rows are at the level of their carriers' session, and what a session does to networks it does not do to ops
    timed alone (docs/decisions/0008). No held-out network enters it. None for fewer than 6 carriers.
    """
    ratios = [here.by_id[it.op_id].time_ms / it.time_ms for it in carriers if it.op_id in here.by_id]
    if len(ratios) < LEAST_NETWORKS:
        return None
    return midmean(np.array(ratios))


def session_scale(here: Summary, rows: Mapping[str, Row]) -> float | None:
    """Return how many times slower `here` is than the table: the median ratio of gross times of ops both measured.

    No network enters it. None if they share no op.
    """
    ratios = []
    for estimate in here.rows:
        row = rows.get(estimate.op_id)
        if row is not None and row.evidence == "measured" and row.latency_ms and row.call_overhead_ms is not None:
            ratios.append(estimate.time_ms / (row.latency_ms + row.call_overhead_ms))
    return float(np.median(ratios)) if ratios else None


def replicates(drift: DriftFit, op_ids: Sequence[str], wanted: Collection[str]) -> list[Floats]:
    """Return the log times of the instances of each op or network of `wanted` that has any, a vector each."""
    groups: dict[int, list[float]] = {}
    for op, theta in zip(drift.group_op.tolist(), drift.group_theta.tolist(), strict=True):
        if op_ids[op] in wanted:
            groups.setdefault(op, []).append(theta)
    return [np.array(thetas) for thetas in groups.values()]


def instance_sd(drift: DriftFit, op_ids: Sequence[str], wanted: Collection[str]) -> float | None:
    """Return the standard deviation of log time between instances of one op or network, pooled over `wanted`.

    None where none of them has two instances: not known is not 0.
    """
    return pooled_sd(replicates(drift, op_ids, wanted))


def _accuracy(predicted_ms: Floats, truth_ms: Floats) -> Accuracy | None:
    """Return the errors of a predictor that has a value for every network; None of any other: it is not comparable."""
    return accuracy(predicted_ms, truth_ms) if np.isfinite(predicted_ms).all() else None


def _known(value_ms: float) -> float | None:
    return float(value_ms) if np.isfinite(value_ms) else None


def _gross_sum(ops: Sequence[OpSpec], gross_ms: Mapping[str, float]) -> float:
    missing = float("nan")
    total = sum(gross_ms.get(op.op_id, missing) for op in ops)
    return total - sum(gross_ms.get(overhead_op(op).op_id, missing) for op in ops[1:])


def _changed(base: Lut, facts: Mapping[str, str]) -> str:
    before = dict(base.meta.fingerprint.facts)
    changed = [name for name in sorted({*before, *facts}) if before.get(name) != facts.get(name)]
    told = [f"{name} was {before.get(name)!r}, is {facts.get(name)!r}" for name in changed[:3]]
    return ", ".join(told) or "another device"
