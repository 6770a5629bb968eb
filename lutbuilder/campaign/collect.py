"""`collect`: measure what a table still lacks of a space, and publish the next version."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from lutbuilder.campaign.carriers import choose_carriers
from lutbuilder.campaign.draft import Draft, fitted
from lutbuilder.campaign.estimates import Summary
from lutbuilder.campaign.evidence import Evidence, FailedOp
from lutbuilder.campaign.host import ALONE, Host, Opening
from lutbuilder.campaign.knots import estimates_of, staged
from lutbuilder.campaign.plan import campaign_ops, expected_uses, make_plan
from lutbuilder.campaign.request import CollectOutcome, CollectRequest, OnProgress, StopReason
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder_agent import __version__  # one version for both distributions
from lutbuilder_agent.errors import CampaignFailed, Interrupted, LutNoisy, LutNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lutbuilder.coordinator.schedule import StoredFailure
    from lutbuilder.coordinator.store import AgentState, CampaignState, Store
    from lutbuilder.lut import Lut, LutMeta
    from lutbuilder.lut.store import RawVisit
    from lutbuilder.op import OpSpec
    from lutbuilder.spaces import SearchSpace
    from lutbuilder.stats.records import Visits
    from lutbuilder.urls import Place
    from lutbuilder_agent.records import Fingerprint, Plan


def collect(request: CollectRequest, on_progress: OnProgress, *, opening: Opening = ALONE) -> CollectOutcome:
    """Measure the ops of the request's space that its LUT lacks, publish the next version, and return it.

    Killed at any moment and called again with an equal request, it continues: visits are in the store before they are
    acknowledged. Raises what the parts raise: UnknownName, NoAgent, CampaignFailed, LutConflict, LutNotWritable,
    StoreError, PortInUse; Interrupted on Ctrl-C.
    """
    from lutbuilder_agent import runtimes

    device = opening.device(request.device)
    runtime, _ = runtimes.entry(request.runtime or device.runtime)
    space = opening.space(request.space, batch=request.batch)
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
        alone = device.local and request.agents == 1
        listen = request.listen or ("127.0.0.1:0" if alone else "127.0.0.1:7070")
        with opening.host(device, runtime, listen=listen, state_dir=request.state_dir, on_progress=on_progress) as host:
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
            if request.max_ops is not None and base is not None and not fresh:
                wanted = tuple(op for op in wanted if op not in base or base[op].evidence == "modelled")
            if base is not None and not wanted:
                keep_samples(host.store, base)
                return _nothing_missing(base, host)
            few = request.max_ops is not None and request.max_ops < len(wanted)
            spec = CampaignSpec(
                space=space.name,
                target=target,
                plan=plan,
                env_id=env_id,
                runtime_version=version,
                ops=(CampaignOp.of(wanted[0]),)
                if few
                else (
                    *campaign_ops(space.ops(), wanted, uses=expected_uses(space)),
                    *choose_carriers(space, request.carriers, seed=request.seed),
                ),
                budget_s=request.budget_s,
                precision=request.precision,
                max_rounds=request.max_rounds,
                lease_rounds=request.lease_rounds,
                sessions=request.sessions,
                agents=request.agents,
            )
            check_poolable(base, spec, agent, new_conditions=request.new_conditions)
            host.await_agents(unpublished(spec, host.store, base), wait_s=request.wait_s)
            stages: Iterable[CampaignSpec] = (spec,)
            known: set[str] = set()
            if request.max_ops is not None and few:
                known = set(pooled(host.store, spec).campaign_ids).intersection(behind(host.store, base))
                stages = staged(space, spec, wanted, request.max_ops, lambda: estimates_of(host.store, known))
            states: list[CampaignState] = []
            resumed = False
            for stage in stages:
                spec = unpublished(stage, host.store, base)
                resumed |= any(c.campaign_id == spec.key and c.rounds for c in host.store.campaigns())
                states.append(host.run(spec))
                known.add(spec.key)
            visited = {op.op_id for state in states for op in state.spec.ops}
            wanted = tuple(op for op in wanted if op.op_id in visited)
            state = in_all(states)
            made = draft(
                host,
                state,
                agent,
                impute=space if request.max_ops is not None else None,
                keep_flagged=request.keep_flagged,
            )
            try:
                lut = publish_draft(
                    host,
                    made,
                    luts=request.luts,
                    base=base,
                    new_conditions=request.new_conditions,
                    accept_noisy=request.accept_noisy,
                )
            except LutNoisy as error:
                raise LutNoisy(
                    f"{error}. Every visit is kept. Find out what disturbs the machine and measure longer (--budget), "
                    f"or publish what there is, marked noisy: {opening.retyped(request, '--accept-noisy')}"
                ) from error
            outcome = _outcome(host, state, lut, made.summary, wanted=wanted, resumed=resumed)
            return replace(outcome, notes=(*outcome.notes, *_uncalibrated(base, lut)))
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; every acknowledged visit is kept: the same command continues where this one stopped"
        ) from None


def newest(name: str, folder: Place) -> Lut | None:
    """Return the newest version of a LUT, or None if there is none."""
    from lutbuilder.lut import Lut

    try:
        return Lut.load(folder / name)
    except LutNotFound:
        return None


def missing(ops: Sequence[OpSpec], base: Lut | None, precision: float) -> tuple[OpSpec, ...]:
    """Return the ops `base` has no measured row of, or a latency that is known less well than `precision`.

    A row whose campaign ended by precision is done: its interval also holds the call overhead's, which no op betters.
    """
    if base is None:
        return tuple(ops)
    from lutbuilder.lut.calibrated import sources

    found = sources(base.rows())  # a calibrated row says nothing of how well its op was measured

    def lacks(op: OpSpec) -> bool:
        row = found.get(op.op_id)
        if row is None or row.evidence == "modelled":
            return True
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
        conditions=f"precision {spec.precision:g}, budget {spec.budget_s:g} s, {timer(agent, spec.target.runtime)}",
    )


def timer(agent: AgentState, runtime: str) -> str:
    """Return what the agent's probe found of the clock the runtime is timed with."""
    report = next((report for report in agent.runtimes if report.name == runtime), None)
    if report is None or report.timer_overhead_ns is None:
        return "timer not measured"
    return f"timer {report.timer_overhead_ns} ns a reading in steps of {report.timer_quantum_ns} ns"


def runtime_version(agent: AgentState, runtime: str) -> str:
    """Return the version of the engine as the agent's probe read it."""
    return next(report.version for report in agent.runtimes if report.name == runtime)


def unpublished(spec: CampaignSpec, store: Store, base: Lut | None) -> CampaignSpec:
    """Return the first repeat of a campaign that is not over and published: the one to run, continue or publish."""
    known = {campaign.campaign_id: campaign for campaign in store.campaigns()}
    while spec.key in known and known[spec.key].state != "active":
        sessions = {session.session_id for session in store.sessions([spec.key])}
        if known[spec.key].state == "done" and sessions and not _holds(base, known[spec.key], sessions):
            return spec  # measured, but its publishing failed: disk full, read-only folder
        spec = replace(spec, repeat=spec.repeat + 1)
    return spec


def _holds(base: Lut | None, campaign: CampaignState, sessions: set[str]) -> bool:
    """Return whether a campaign that is done is in a table, as far as sessions and times tell.

    Agents of a fleet measure for many campaigns in one session: a table of another one, made before this one ended,
    names the session, too.
    """
    if base is None or not sessions <= set(base.meta.sessions):
        return False
    created = datetime.fromisoformat(base.meta.created.replace("Z", "+00:00"))
    return campaign.finished_s is None or math.floor(campaign.finished_s) <= created.timestamp()


@dataclass(frozen=True, kw_only=True)
class Pool:
    """All campaigns whose visits may be fitted together: one target, environment, engine version and way of timing."""

    campaign_ids: tuple[str, ...]
    ops: tuple[CampaignOp, ...]
    failures: tuple[StoredFailure, ...]
    sessions: tuple[str, ...]
    spaces: tuple[str, ...]

    @classmethod
    def of(cls, store: Store, campaigns: Sequence[CampaignState]) -> Pool:
        """Return the pool of these campaigns of `store`."""
        ids = tuple(campaign.campaign_id for campaign in campaigns)
        return cls(
            campaign_ids=ids,
            ops=tuple({op.op_id: op for campaign in campaigns for op in campaign.spec.ops}.values()),
            failures=tuple(failure for i in ids for failure in store.failures(i) if failure.final),
            sessions=tuple(sorted({session.session_id for session in store.sessions(ids)})),
            spaces=tuple(sorted({campaign.spec.space for campaign in campaigns})),
        )


def pooled(store: Store, spec: CampaignSpec) -> Pool:
    """Return the pool that `spec` belongs to; its own visits are part of it."""
    return Pool.of(
        store,
        [
            campaign
            for campaign in store.campaigns()
            if campaign.rounds
            and (campaign.spec.target, campaign.spec.env_id, campaign.spec.runtime_version)
            == (spec.target, spec.env_id, spec.runtime_version)
            and _conditions("", "", campaign.spec.plan) == _conditions("", "", spec.plan)
        ],
    )


def draft(
    host: Host,
    state: CampaignState,
    agent: AgentState,
    *,
    impute: SearchSpace | None = None,
    keep_flagged: bool = False,
) -> Draft:
    """Fit the campaign's pool and make rows, imputed ones for those ops of `impute` that were not measured.

    Raises CampaignFailed, with the reasons, if nothing was measured.
    """
    from lutbuilder.lut import QualitySummary

    host.tell("fitting")
    spec = state.spec
    pool = pooled(host.store, spec)
    n_visits, visits = _at_once(host.store, pool.campaign_ids)
    if not len(visits):
        told = "; ".join(list(dict.fromkeys(f"{f.reason}: {f.detail}" for f in host.store.failures(spec.key)))[:3])
        raise CampaignFailed(f"nothing was measured ({state.reason}). {told or 'Type `lutbuilder doctor`'}")
    made = fitted(
        _evidence(
            host.store, pool, visits, state, imputed_space=impute.name if impute else "", keep_flagged=keep_flagged
        ),
        visits,
        _raw_visits(host.store, n_visits),
        replace(
            footer(spec, agent),
            spaces=pool.spaces,
            sessions=pool.sessions,
            # Even where they corrected nothing: that was their word too.
            fitted_networks=tuple(sorted(op.op_id for op in pool.ops if op.role == "carrier")),
            stop_reason=state.reason,
            quality=QualitySummary(
                timed_fraction=timed_fraction(host, state),
                wall_s=max(host.busy_s(), state.measured_ns / 1e9),
                rounds=state.rounds,
                sessions=len(pool.sessions),
            ),
        ),
        impute=() if impute is None else impute.ops(),
    )
    return replace(made, n_visits=n_visits)


def _at_once(store: Store, campaign_ids: Sequence[str]) -> tuple[dict[str, int], Visits]:
    """Return how many visits each campaign has, and those visits: campaigns of a fleet may go on meanwhile."""
    while True:
        counts = {campaign_id: len(store.visits([campaign_id])) for campaign_id in campaign_ids}
        visits = store.visits(campaign_ids)
        if len(visits) == sum(counts.values()):
            return counts, visits


def _raw_visits(store: Store, n_visits: Mapping[str, int]) -> Iterator[RawVisit]:
    """Yield the first so many visits of each campaign, in the order they were committed."""
    left = dict(n_visits)
    for visit in store.raw_visits(tuple(n_visits)):
        if left[visit.campaign_id]:
            left[visit.campaign_id] -= 1
            yield visit


def _evidence(
    store: Store, pool: Pool, visits: Visits, state: CampaignState, *, imputed_space: str, keep_flagged: bool
) -> Evidence:
    return Evidence(
        campaign_ids=pool.campaign_ids,
        ops=pool.ops,
        failures=tuple(FailedOp(op_id=f.op_id, reason=f.reason, detail=f.detail) for f in pool.failures),
        agents=dict(zip(visits.session_ids, visits.session_agents, strict=True)),
        sessions=tuple(session.session_id for session in store.sessions([state.campaign_id])),
        purpose=state.spec.purpose,
        precision=state.spec.precision,
        reason=state.reason,
        imputed_space=imputed_space,
        keep_flagged=keep_flagged,
    )


def publish_draft(
    host: Host,
    made: Draft,
    *,
    luts: Place,
    base: Lut | None,
    new_conditions: bool = False,
    accept_noisy: bool = True,
) -> Lut:
    """Publish a draft as the next version, with the raw visits beside it. Raises what `publish` raises.

    Where `base` is calibrated and the visits of its networks are here, the calibrated rows are fitted again with the
    measured ones.
    """
    from lutbuilder.campaign.calibrated import refitted
    from lutbuilder.lut import publish, write_samples

    made = refitted(made, base, new_conditions=new_conditions)
    host.tell("publishing")
    lut = publish(
        made.rows, made.meta, folder=luts, base=base, new_conditions=new_conditions, accept_noisy=accept_noisy
    )
    write_samples(_raw_visits(host.store, made.n_visits), lut=lut, fit=made.evidence.to_json())
    return lut


def in_all(states: Sequence[CampaignState]) -> CampaignState:
    """Return the last of a command's campaigns, with the rounds and times of all of them."""
    return replace(
        states[-1],
        rounds=sum(state.rounds for state in states),
        measured_ns=sum(state.measured_ns for state in states),
        timed_ns=sum(state.timed_ns for state in states),
    )


def behind(store: Store, lut: Lut | None) -> list[str]:
    """Return the campaigns of `store` whose visits are in `lut`."""
    if lut is None:
        return []
    return [
        campaign.campaign_id
        for campaign in store.campaigns()
        if campaign.rounds
        and campaign.spec.target == lut.meta.target
        and {session.session_id for session in store.sessions([campaign.campaign_id])} <= set(lut.meta.sessions)
    ]


def keep_samples(store: Store, lut: Lut) -> None:
    """Write the raw visits behind `lut` beside it if they are missing there: a kill or a full disk came in between."""
    from lutbuilder.lut import write_samples
    from lutbuilder.lut.store import has_samples

    ids = set(behind(store, lut))
    campaigns = [campaign for campaign in store.campaigns() if campaign.campaign_id in ids]
    if not campaigns or has_samples(lut):
        return
    newest = max(campaigns, key=lambda campaign: campaign.finished_s or campaign.created_s)
    pool = Pool.of(store, campaigns)
    n_visits, visits = _at_once(store, pool.campaign_ids)
    # The command that made the table is gone; what it was told shows in what it made.
    reports, imputed = lut.meta.session_reports, any(row.method == "imputed" for row in lut.rows())
    evidence = _evidence(
        store,
        pool,
        visits,
        newest,
        imputed_space=newest.spec.space if imputed else "",
        keep_flagged=any(report.flagged for report in reports) and not any(report.excluded for report in reports),
    )
    write_samples(_raw_visits(store, n_visits), lut=lut, fit=evidence.to_json())


def timed_fraction(host: Host, state: CampaignState) -> float:
    """Share of the wall time inside timed visits; a resumed campaign's earlier runs count with their rounds only."""
    wall_s = max(host.busy_s(), state.measured_ns / 1e9)
    return min(1.0, state.timed_ns / 1e9 / wall_s)


def _nothing_missing(base: Lut, host: Host) -> CollectOutcome:
    return CollectOutcome(
        lut=base, published=False, stop_reason=None, n_measured=0, n_failed=0, rounds=0, wall_s=host.elapsed_s(),
        timed_fraction=None, resumed=False,
    )  # fmt: skip  # nothing happened: one line says it


def _outcome(
    host: Host, state: CampaignState, lut: Lut, summary: Summary, *, wanted: Sequence[OpSpec], resumed: bool
) -> CollectOutcome:
    from lutbuilder.stats.sessions import agent_reports

    ids = {op.op_id for op in wanted}
    failed = [row for row in lut.rows() if row.op_id in ids and row.latency_ms is None]
    notes = [f"{row.op.label()}: {row.exec_status}, {row.reason}" for row in failed]
    if state.reason == "budget":
        widths = [estimate.half_width for estimate in summary.rows if estimate.op_id in ids]
        n_wide = sum(width is None or width > state.spec.precision for width in widths)
        if n_wide:
            short = f"{n_wide} of {len(ids)} ops are not yet at the wanted precision"
            notes.append(f"{short}: the same command goes on measuring them")
    mine = {session.session_id for session in host.store.sessions([state.campaign_id])}
    for report in lut.meta.session_reports:
        if report.flagged and report.session_id in mine:
            judged = (
                "left out of the table" if report.excluded else "out of line with the others, but part of the table"
            )
            notes.append(f"session {report.session_id} is {judged}: {report.reason}")
    for each in agent_reports(summary.visits, summary.drift):
        if each.inconsistent:
            differ = f"{len(each.inconsistent)} of {each.n_ops} ops differ on agent {each.agent} from the other agents"
            notes.append(f"{differ} by more than their noise: it may be another device")
    if lut.meta.noisy:
        notes.append(f"marked noisy ({', '.join(lut.meta.noisy)}): lutbuilder luts lint {lut.spec} says why")
    n_imputed = sum(row.status == "imputed" and row.kind != "identity" for row in lut.rows())
    if n_imputed:
        notes.append(f"{n_imputed} ops are imputed, not measured: without --max-ops they are measured, too")
    return CollectOutcome(
        lut=lut,
        published=True,
        stop_reason=_stop_reason(state.reason),
        n_measured=len({row.op_id for row in lut.rows() if row.op_id in ids and row.latency_ms is not None}),
        n_failed=len(failed),
        rounds=state.rounds,
        wall_s=host.elapsed_s(),
        timed_fraction=timed_fraction(host, state),
        resumed=resumed,
        notes=tuple(notes),
    )


def _uncalibrated(base: Lut | None, lut: Lut) -> tuple[str, ...]:
    """Return what to say where the version before was calibrated and this one is not any more."""
    if base is None or base.meta.calibration is None or lut.meta.calibration is not None:
        return ()
    return (
        f"the calibration of version {base.version} left with the rows it corrected: lutbuilder calibrate "
        f"{lut.path.parent}",
    )


def _stop_reason(reason: str) -> StopReason:
    known: dict[str, StopReason] = {"precision": "precision", "budget": "budget", "max_rounds": "max_rounds"}
    return known.get(reason, "interrupted")
