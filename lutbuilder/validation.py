"""`validate`: held-out whole networks, timed in the same rounds as the ops, against the sum of the table's rows.

The list of networks is fixed and hashed before anything is timed; no network's time enters any row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.collect import draft, publish_draft, runtime_version, timed_fraction
from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.campaign.host import hosting
from lutbuilder.campaign.plan import campaign_ops, overhead_op
from lutbuilder.campaign.request import OnProgress, ValidateOutcome, ValidateRequest
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec
from lutbuilder.stats.drift import DriftFit
from lutbuilder.stats.quality import (
    Accuracy,
    NetworkResult,
    ValidationReport,
    accuracy,
    deciles,
    linear_baseline,
)
from lutbuilder_agent.errors import CampaignFailed, Interrupted, LutConflict, SpecError

if TYPE_CHECKING:
    from lutbuilder.lut import Lut, Row
    from lutbuilder.op import OpSpec
    from lutbuilder.spaces import SearchSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A network that is timed to check the table, never to make it. `group` is random or searched."""

    ops: tuple[OpSpec, ...]
    group: str


def validate(request: ValidateRequest, on_progress: OnProgress) -> ValidateOutcome:
    """Time held-out networks with the ops of a LUT, publish the refitted rows with the report, and return both.

    Raises what `collect` raises; LutConflict if this device is not the one the LUT speaks for; SpecError for fewer than
    3 networks.
    """
    from lutbuilder import devices, spaces
    from lutbuilder.lut import Lut, merge
    from lutbuilder_agent.fingerprint import fingerprint

    if request.n_random + request.n_searched < 3:
        raise SpecError("a validation needs at least 3 networks: --random 60 --searched 20")
    base = Lut.load(request.lut, folder=request.luts)
    luts = base.path.parent.parent.parent  # the folder the LUT was found in, whatever --luts says
    target = base.meta.target
    device = devices.resolve(target.device, here=fingerprint().device)
    if not (request.space or base.meta.spaces):
        raise SpecError(f"{base.spec} does not say which space it covers: --space NAME")
    space = spaces.get(request.space or base.meta.spaces[0], batch=target.batch)
    held_out = choose(space, base, request)
    digest = networks_sha256(held_out)
    try:
        with hosting(
            device, target.runtime, listen="127.0.0.1:0", state_dir=request.state_dir, on_progress=on_progress
        ) as host:
            agent = host.find_agent(device, target.runtime, wait_s=None)
            if agent.fingerprint.env_id != base.meta.fingerprint.env_id:
                changed = _changed(base, dict(agent.fingerprint.facts))
                raise LutConflict(
                    f"{base.spec} was measured in another environment ({changed}): "
                    f"measure anew: lutbuilder collect --runtime {target.runtime} --new-conditions"
                )
            host.tell("preparing", f"{len(held_out)} held-out networks, list sha256 {digest[:16]}")
            spec = CampaignSpec(
                space=space.name,
                target=target,
                plan=replace(base.meta.plan, seed=request.seed),
                env_id=agent.fingerprint.env_id,
                runtime_version=runtime_version(agent, target.runtime),
                ops=(*campaign_ops(space.ops(), space.ops()), *(CampaignOp.network(net.ops) for net in held_out)),
                budget_s=request.budget_s,
                precision=0.01,
                max_rounds=request.rounds,
                purpose="validate",
            )
            spec = _next_repeat(spec, {c.campaign_id: c.state for c in host.store.campaigns()})
            state = host.run(spec)
            made = draft(host, state, agent)
            merged, _ = merge(base, made.rows, made.meta)
            here = summarise(spec.ops, host.store.visits([spec.key]))
            report = make_report(
                held_out,
                spec,
                rows={row.op_id: row for row in merged},
                fitted=made.summary,
                here=here,
                undrifted=summarise(spec.ops, here.visits, window=0),
                base={row.op_id: row for row in base.rows()},
                rounds=state.rounds,
                wall_s=host.elapsed_s(),
                timed=timed_fraction(host, state),
                digest=digest,
            )
            made = replace(made, meta=replace(made.meta, validation=report.to_json()))
            lut = publish_draft(host, made, luts=luts, base=base)
            return ValidateOutcome(report=report, lut=lut, wall_s=host.elapsed_s())
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; every acknowledged visit is kept: the same command continues where this one stopped"
        ) from None


def choose(space: SearchSpace, base: Lut, request: ValidateRequest) -> tuple[HeldOut, ...]:
    """Return the networks: random ones spread over the whole latency range, ones a search would pick. No two equal."""
    from lutbuilder.nas.compiled import compile_space
    from lutbuilder.nas.sampling import searched_archs, spread_archs

    compiled = compile_space(space, base)
    rng = np.random.default_rng(request.seed)
    chosen: dict[tuple[OpSpec, ...], str] = {}
    for group, archs in (
        ("searched", searched_archs(compiled, request.n_searched, rng) if request.n_searched else ()),
        ("random", spread_archs(compiled, request.n_random, rng) if request.n_random else ()),
    ):
        for arch in archs:
            chosen.setdefault(space.arch_ops(arch), group)
    return tuple(HeldOut(ops=ops, group=group) for ops, group in chosen.items())


def networks_sha256(networks: Sequence[HeldOut]) -> str:
    """Return the hash of the list of networks, their order and groups included."""
    body = [[net.group, [op.op_id for op in net.ops]] for net in networks]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def make_report(
    networks: Sequence[HeldOut],
    spec: CampaignSpec,
    *,
    rows: Mapping[str, Row],
    fitted: Summary,
    here: Summary,
    undrifted: Summary,
    base: Mapping[str, Row],
    rounds: int,
    wall_s: float,
    timed: float,
    digest: str,
) -> ValidationReport:
    """Return the report. Truth and sums come from one fit, `fitted`; the undrifted ones from plain medians of `here`.

    Networks that were not timed, or of which an op failed, are left out. Raises CampaignFailed for fewer than 3 others.
    """
    from lutbuilder.lower import lower_network

    ids = [CampaignOp.network(net.ops).op_id for net in networks]
    plain = _gross_rows(undrifted)
    kept = [
        (net, i)
        for net, i in zip(networks, ids, strict=True)
        if i in fitted.by_id
        and i in undrifted.by_id
        and np.isfinite(network_sum(net.ops, rows))
        and np.isfinite(_summary_sum(net.ops, plain))
    ]
    if len(kept) < 3:
        raise CampaignFailed(
            f"only {len(kept)} of {len(networks)} networks were timed, and all their ops too, in {rounds} rounds: "
            "--budget 20m"
        )
    names = [i for _, i in kept]
    measured = np.array([fitted.by_id[i].time_ms for i in names])
    predicted = np.array([network_sum(net.ops, rows) for net, _ in kept])
    undrifted_ms = np.array([_summary_sum(net.ops, plain) for net, _ in kept])
    undrifted_truth = np.array([undrifted.by_id[i].time_ms for i in names])
    macs = np.array([float(lower_network(net.ops).macs) for net, _ in kept])
    depth = np.array([float(len(net.ops)) for net, _ in kept])
    scale = _session_scale(here, base)
    published: Accuracy | None = None
    before = np.array([network_sum(net.ops, base) for net, _ in kept])
    if scale is not None and np.isfinite(before).all():
        # Truth of this session alone, at this session's own speed, which is what `scale` brings the old rows to.
        alone = np.array([here.by_id[i].time_ms for i in names])
        published = accuracy(before * scale, alone)
    retests = [r for i in names if (r := here.by_id[i].test_retest) is not None]
    results = tuple(
        NetworkResult(
            op_id=i,
            group=net.group,
            measured_ms=float(measured[k]),
            predicted_ms=float(predicted[k]),
            undrifted_ms=float(undrifted_ms[k]),
            macs=int(macs[k]),
            n_ops=len(net.ops),
            n_visits=fitted.by_id[i].n_visits,
            n_instances=fitted.by_id[i].n_instances,
            test_retest=here.by_id[i].test_retest,
        )
        for k, (net, i) in enumerate(kept)
    )
    roles = {op.op_id: op.role for op in spec.ops}
    return ValidationReport(
        lut_sum=accuracy(predicted, measured),
        undrifted=accuracy(undrifted_ms, undrifted_truth),
        published=published,
        flops_linear=accuracy(linear_baseline(macs, measured), measured),
        depth_linear=accuracy(linear_baseline(depth, measured), measured),
        deciles=deciles(predicted, measured),
        test_retest_floor=float(np.median(retests)) if retests else None,
        instance_floor=instance_sd(here.drift, here.visits.op_ids, {i for i, r in roles.items() if r == "network"}),
        op_instance_sd=instance_sd(here.drift, here.visits.op_ids, {i for i, r in roles.items() if r == "op"}),
        session_scale=scale,
        networks_sha256=digest,
        rounds=rounds,
        wall_s=wall_s,
        timed_fraction=timed,
        networks=results,
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


def instance_sd(drift: DriftFit, op_ids: Sequence[str], wanted: set[str]) -> float | None:
    """Return the standard deviation of log time between instances of one op or network, pooled over `wanted`.

    None where none of them has two instances: not known is not 0.
    """
    groups: dict[int, list[float]] = {}
    for op, theta in zip(drift.group_op, drift.group_theta, strict=True):
        if op_ids[op] in wanted:
            groups.setdefault(int(op), []).append(float(theta))
    variances = [float(np.var(thetas, ddof=1)) for thetas in groups.values() if len(thetas) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else None


def _gross_rows(summary: Summary) -> dict[str, float]:
    return {estimate.op_id: estimate.time_ms for estimate in summary.rows}


def _summary_sum(ops: Sequence[OpSpec], gross_ms: Mapping[str, float]) -> float:
    missing = float("nan")
    total = sum(gross_ms.get(op.op_id, missing) for op in ops)
    return total - sum(gross_ms.get(overhead_op(op).op_id, missing) for op in ops[1:])


def _session_scale(here: Summary, base: Mapping[str, Row]) -> float | None:
    """Return how much slower this session is than the table, by the ops both have: the median ratio of gross times."""
    ratios = []
    for estimate in here.rows:
        row = base.get(estimate.op_id)
        if row is not None and row.latency_ms is not None and row.call_overhead_ms is not None:
            ratios.append(estimate.time_ms / (row.latency_ms + row.call_overhead_ms))
    return float(np.median(ratios)) if ratios else None


def _next_repeat(spec: CampaignSpec, states: Mapping[str, str]) -> CampaignSpec:
    while states.get(spec.key, "active") != "active":
        spec = replace(spec, repeat=spec.repeat + 1)
    return spec


def _changed(base: Lut, facts: Mapping[str, str]) -> str:
    before = dict(base.meta.fingerprint.facts)
    changed = [name for name in sorted({*before, *facts}) if before.get(name) != facts.get(name)]
    told = [f"{name} was {before.get(name)!r}, is {facts.get(name)!r}" for name in changed[:3]]
    return ", ".join(told) or "another device"
