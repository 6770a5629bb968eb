"""`collect`: measure what a table still lacks of a space, and publish the next version."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.campaign.host import Host, hosting
from lutbuilder.campaign.plan import campaign_ops, make_plan
from lutbuilder.campaign.request import CollectOutcome, CollectRequest, OnProgress, StopReason
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder_agent import __version__  # one version for both distributions
from lutbuilder_agent.errors import CampaignFailed, Interrupted, LutNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lutbuilder.coordinator.schedule import StoredFailure
    from lutbuilder.coordinator.store import AgentState, CampaignState, Store
    from lutbuilder.lut import Lut, LutMeta, Row
    from lutbuilder.op import OpSpec
    from lutbuilder_agent.records import Fingerprint, Plan


def collect(request: CollectRequest, on_progress: OnProgress) -> CollectOutcome:
    """Measure the ops of the request's space that its LUT lacks, publish the next version, and return it.

    Killed at any moment and called again with an equal request, it continues: visits are in the store before they are
    acknowledged. Raises what the parts raise: UnknownName, NoAgent, CampaignFailed, LutConflict, LutNotWritable,
    StoreError, PortInUse; Interrupted on Ctrl-C.
    """
    from lutbuilder import devices, spaces
    from lutbuilder_agent import runtimes
    from lutbuilder_agent.fingerprint import fingerprint

    device = devices.resolve(request.device, here=fingerprint().device)
    runtime, _ = runtimes.entry(request.runtime or device.runtime)
    space = spaces.get(request.space, batch=request.batch)
    plan = make_plan(
        runtime,
        threads=request.threads or device.threads,
        cache=request.cache,
        instances=request.instances,
        seed=request.seed,
        options=(*device.options, *request.runtime_options),
    )
    try:
        # An agent elsewhere keeps dialling the address it was given, so a repeated command must listen there again.
        listen = request.listen or ("127.0.0.1:0" if device.local else "127.0.0.1:7070")
        with hosting(device, runtime, listen=listen, state_dir=request.state_dir, on_progress=on_progress) as host:
            agent = host.find_agent(device, runtime, wait_s=request.wait_s)
            target = Target(
                device=silicon(agent.fingerprint, runtime, dict(plan.options)),
                runtime=runtime,
                batch=request.batch,
                threads=plan.threads,
                cache=plan.cache,
            )
            base = newest(target.lut_name, request.luts)
            env_id = agent.fingerprint.env_id
            version = runtime_version(agent, runtime)
            # Rows of another environment, engine version or way of timing say nothing about this machine as it is now.
            fresh = base is None or _conditions(
                base.meta.fingerprint.env_id, base.meta.runtime_version, base.meta.plan
            ) != (_conditions(env_id, version, plan))
            wanted = space.ops() if request.again or fresh else missing(space.ops(), base, request.precision)
            if base is not None and not wanted:
                keep_samples(host.store, base)
                return _nothing_missing(base, host)
            spec = CampaignSpec(
                space=space.name,
                target=target,
                plan=plan,
                env_id=env_id,
                runtime_version=version,
                ops=campaign_ops(space.ops(), wanted),
                budget_s=request.budget_s,
                precision=request.precision,
                max_rounds=request.max_rounds,
            )
            check_poolable(base, spec, agent, new_conditions=request.new_conditions)
            spec = unpublished(spec, host.store, base)
            resumed = any(c.campaign_id == spec.key and c.rounds for c in host.store.campaigns())
            state = host.run(spec)
            made = draft(host, state, agent)
            lut = publish_draft(host, made, luts=request.luts, base=base, new_conditions=request.new_conditions)
            return _outcome(host, state, lut, made.summary, wanted=wanted, resumed=resumed)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; every acknowledged visit is kept: the same command continues where this one stopped"
        ) from None


def newest(name: str, folder: Path) -> Lut | None:
    """Return the newest version of a LUT, or None if there is none."""
    from lutbuilder.lut import Lut

    try:
        return Lut.load(folder / name)
    except LutNotFound:
        return None


def missing(ops: Sequence[OpSpec], base: Lut | None, precision: float) -> tuple[OpSpec, ...]:
    """Return the ops without a row in `base`, or with a latency that is known less well than `precision`.

    A row whose campaign ended by precision is done: its interval also holds the call overhead's, which no op betters.
    """
    if base is None:
        return tuple(ops)

    def lacks(op: OpSpec) -> bool:
        if op not in base:
            return True
        row = base[op]
        if row.latency_ms is None:
            return False  # it failed for good when it was measured; --again tries it once more
        if row.half_width is None:
            return True
        return row.half_width > precision and row.stop_reason != "precision"

    return tuple(op for op in ops if lacks(op))


def silicon(fingerprint: Fingerprint, runtime: str, options: Mapping[str, str]) -> str:
    """Return the slug of what really runs the ops: the GPU for a CUDA runtime, else the fingerprint's own device."""
    if runtime == "simulated":
        return "simulated"
    gpu = dict(fingerprint.facts).get("gpu")
    if options.get("device") == "cuda" and gpu:
        return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return fingerprint.device


def _conditions(env_id: str, version: str, plan: Plan) -> tuple[str, str, Plan]:
    return env_id, version, replace(plan, seed=0, instances=1)


def check_poolable(base: Lut | None, spec: CampaignSpec, agent: AgentState, *, new_conditions: bool) -> None:
    """Raise the LutConflict that publishing would raise, before anything is timed."""
    from lutbuilder.lut import merge

    merge(base, (), footer(spec, agent), new_conditions=new_conditions)


def footer(spec: CampaignSpec, agent: AgentState) -> LutMeta:
    """Return what the footer of a campaign's table says of where it comes from, made now."""
    from lutbuilder.lut import LutMeta

    return LutMeta(
        target=spec.target,
        fingerprint=agent.fingerprint,
        runtime_version=spec.runtime_version,
        plan=spec.plan,
        tool_version=__version__,
        created=datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        conditions=f"precision {spec.precision:g}, budget {spec.budget_s:g} s",
    )


def runtime_version(agent: AgentState, runtime: str) -> str:
    """Return the version of the engine as the agent's probe read it."""
    return next(report.version for report in agent.runtimes if report.name == runtime)


def unpublished(spec: CampaignSpec, store: Store, base: Lut | None) -> CampaignSpec:
    """Return the first repeat of a campaign that is not over and published: the one to run, continue or publish."""
    known = {campaign.campaign_id: campaign for campaign in store.campaigns()}
    published = set(base.meta.sessions) if base is not None else set()
    while spec.key in known and known[spec.key].state != "active":
        sessions = {session.session_id for session in store.sessions([spec.key])}
        if known[spec.key].state == "done" and sessions and not sessions <= published:
            return spec  # measured, but its publishing failed: disk full, read-only folder
        spec = replace(spec, repeat=spec.repeat + 1)
    return spec


@dataclass(frozen=True, kw_only=True)
class Pool:
    """All campaigns whose visits may be fitted together: one target, environment, engine version and way of timing."""

    campaign_ids: tuple[str, ...]
    ops: tuple[CampaignOp, ...]
    failures: tuple[StoredFailure, ...]
    sessions: tuple[str, ...]
    spaces: tuple[str, ...]


def pooled(store: Store, spec: CampaignSpec) -> Pool:
    """Return the pool that `spec` belongs to; its own visits are part of it."""
    campaigns = [
        campaign
        for campaign in store.campaigns()
        if campaign.rounds
        and (campaign.spec.target, campaign.spec.env_id, campaign.spec.runtime_version)
        == (spec.target, spec.env_id, spec.runtime_version)
        and _conditions("", "", campaign.spec.plan) == _conditions("", "", spec.plan)
    ]
    ids = tuple(campaign.campaign_id for campaign in campaigns)
    return Pool(
        campaign_ids=ids,
        ops=tuple({op.op_id: op for campaign in campaigns for op in campaign.spec.ops}.values()),
        failures=tuple(failure for i in ids for failure in store.failures(i) if failure.final),
        sessions=tuple(sorted({session.session_id for session in store.sessions(ids)})),
        spaces=tuple(sorted({campaign.spec.space for campaign in campaigns})),
    )


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The next version before it has a number: rows, footer, and the fit they come from."""

    rows: tuple[Row, ...]
    meta: LutMeta
    summary: Summary
    pool: Pool


def draft(host: Host, state: CampaignState, agent: AgentState) -> Draft:
    """Fit the campaign's pool and make rows. Raises CampaignFailed, with the reasons, if nothing was measured."""
    from lutbuilder.lut import QualitySummary, make_rows

    host.tell("fitting")
    spec = state.spec
    pool = pooled(host.store, spec)
    visits = host.store.visits(pool.campaign_ids)
    if not len(visits):
        told = "; ".join(list(dict.fromkeys(f"{f.reason}: {f.detail}" for f in host.store.failures(spec.key)))[:3])
        raise CampaignFailed(f"nothing was measured ({state.reason}). {told or 'Type `lutbuilder doctor`'}")
    summary = summarise(pool.ops, visits)
    reasons = {
        op_id: "precision" if (half := estimate.half_width) is not None and half <= spec.precision else state.reason
        for op_id, estimate in summary.by_id.items()
    }
    paired = any(op.role == "pair" for op in pool.ops)
    rows = make_rows(
        pool.ops,
        summary.rows,
        pool.failures,
        reasons,
        method="context" if paired else "isolated",
        cache=spec.target.cache,
    )
    meta = replace(
        footer(spec, agent),
        spaces=pool.spaces,
        sessions=pool.sessions,
        stop_reason=state.reason,
        quality=QualitySummary(
            timed_fraction=timed_fraction(host, state),
            wall_s=host.elapsed_s(),
            rounds=state.rounds,
            sessions=len(pool.sessions),
        ),
    )
    return Draft(rows=rows, meta=meta, summary=summary, pool=pool)


def publish_draft(host: Host, made: Draft, *, luts: Path, base: Lut | None, new_conditions: bool = False) -> Lut:
    """Publish a draft as the next version, with the raw visits beside it."""
    from lutbuilder.lut import publish, write_samples

    host.tell("publishing")
    lut = publish(made.rows, made.meta, folder=luts, base=base, new_conditions=new_conditions)
    write_samples(host.store.raw_visits(made.pool.campaign_ids), lut=lut)
    return lut


def keep_samples(store: Store, lut: Lut) -> None:
    """Write the raw visits behind `lut` beside it if they are missing there: a kill or a full disk came in between."""
    from lutbuilder.lut import write_samples

    behind = [
        campaign.campaign_id
        for campaign in store.campaigns()
        if campaign.rounds
        and campaign.spec.target == lut.meta.target
        and {session.session_id for session in store.sessions([campaign.campaign_id])} <= set(lut.meta.sessions)
    ]
    if behind:
        write_samples(store.raw_visits(behind), lut=lut)


def timed_fraction(host: Host, state: CampaignState) -> float:
    """Share of the wall time inside timed visits; a resumed campaign's earlier runs count with their rounds only."""
    wall_s = max(host.elapsed_s(), state.measured_ns / 1e9)
    return min(1.0, state.timed_ns / 1e9 / wall_s)


def _nothing_missing(base: Lut, host: Host) -> CollectOutcome:
    return CollectOutcome(
        lut=base, published=False, stop_reason=None, n_measured=0, n_failed=0, rounds=0, wall_s=host.elapsed_s(),
        timed_fraction=None, resumed=False,
    )  # fmt: skip  # nothing happened: one line says it


def _outcome(
    host: Host, state: CampaignState, lut: Lut, summary: Summary, *, wanted: Sequence[OpSpec], resumed: bool
) -> CollectOutcome:
    ids = {op.op_id for op in wanted}
    failed = [row for row in lut.rows() if row.op_id in ids and row.latency_ms is None]
    notes = [f"{row.op.label()}: {row.exec_status}, {row.reason}" for row in failed]
    if state.reason == "budget":
        widths = [estimate.half_width for estimate in summary.rows if estimate.op_id in ids]
        n_wide = sum(width is None or width > state.spec.precision for width in widths)
        if n_wide:
            short = f"{n_wide} of {len(ids)} ops are not yet at the wanted precision"
            notes.append(f"{short}: the same command goes on measuring them")
    return CollectOutcome(
        lut=lut,
        published=True,
        stop_reason=_stop_reason(state.reason),
        n_measured=sum(row.op_id in ids and row.latency_ms is not None for row in lut.rows()),
        n_failed=len(failed),
        rounds=state.rounds,
        wall_s=host.elapsed_s(),
        timed_fraction=timed_fraction(host, state),
        resumed=resumed,
        notes=tuple(notes),
    )


def _stop_reason(reason: str) -> StopReason:
    known: dict[str, StopReason] = {"precision": "precision", "budget": "budget", "max_rounds": "max_rounds"}
    return known.get(reason, "interrupted")
