"""Control: the calls of `ControlApi` on a store, with the coordinator that serves it or without one."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lutbuilder.campaign.job import JobSpec, JobState, checked_job_id
from lutbuilder.control.api import (
    FETCH_BYTES,
    MAX_FAILURES,
    MAX_TEXT,
    MAX_WATCH_S,
    PAGE_ITEMS,
    AgentPhase,
    AgentView,
    CampaignView,
    JobView,
    LeaseView,
    LutChunk,
    LutPart,
    OpFailure,
    Page,
    RuntimeView,
    T,
    Watched,
)
from lutbuilder.control.order import lut_words, order_of, view
from lutbuilder.urls import Place
from lutbuilder_agent.errors import SpecError, UnknownName

if TYPE_CHECKING:
    from lutbuilder.coordinator.schedule import HeldLease
    from lutbuilder.coordinator.service import Coordinator
    from lutbuilder.coordinator.store import AgentState, CampaignState, Store

_POLL_S = 0.5  # how often a watch looks at the store: another coordinator may run the job
_MAX_WATCHING = 32  # watches held open; each takes a thread of the server
_DETAIL = 300  # characters of an engine's words in a list


class Changes:
    """Lets those who watch jobs wait for word of the one who runs them. Safe from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._serial = 0
        self._closed = False

    def tell(self) -> None:
        """Something changed."""
        with self._changed:
            self._serial += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def serial(self) -> int:
        """Counts what was told."""
        with self._changed:
            return self._serial

    def wait(self, seen: int, timeout_s: float) -> bool:
        """Return once something was told after `seen`, or after `timeout_s`; False if nobody is to wait any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._serial > seen or self._closed, timeout_s)
            return not self._closed


class Control:
    """Implements ControlApi over a store. Safe from any thread.

    With a `coordinator`, lists say what it knows of agents, and it is told at once what changes; without one they say
    what the store holds, and a coordinator of that store finds out by itself within seconds. `luts` is the folder that
    jobs publish into; without one there are no tables to fetch here.
    """

    def __init__(
        self,
        store: Store,
        *,
        coordinator: Coordinator | None = None,
        luts: Place | None = None,
        changes: Changes | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._coordinator = coordinator
        self._luts = luts
        self._changes = changes or Changes()
        self._wall_clock = wall_clock
        self._submitting = threading.Lock()
        self._watching = threading.Semaphore(_MAX_WATCHING)
        self._hashes: dict[tuple[str, int, str], str] = {}  # of files, which never change once published

    # --- jobs

    def submit(self, spec: JobSpec, *, job_id: str) -> JobView:
        """See ControlApi.submit."""
        checked_job_id(job_id)
        order_of(spec)  # refused now, not when it is run
        with self._submitting:
            active = self._store.jobs(active=True)
            same = (spec.kind, spec.request, spec.owner)
            for job in active:
                if job.job_id != job_id and (job.spec.kind, job.spec.request, job.spec.owner) == same:
                    return view(job)
            job = self._store.submit_job(spec, job_id=job_id, now_s=self._wall_clock())
        self._changes.tell()
        return view(job)

    def watch(self, job_id: str, *, seen: str = "", wait_s: float = 0.0) -> Watched:
        """See ControlApi.watch."""
        free = self._watching.acquire(blocking=False)
        try:
            until_s = time.monotonic() + min(wait_s, MAX_WATCH_S if free else 2 * _POLL_S)
            while True:
                serial = self._changes.serial
                job = self._store.job(checked_job_id(job_id))
                now = _digest(job)
                left_s = until_s - time.monotonic()
                if now != seen or job.over or left_s <= 0 or not self._changes.wait(serial, min(left_s, _POLL_S)):
                    return Watched(job=view(job), seen=now)
        finally:
            if free:
                self._watching.release()

    def cancel_job(self, job_id: str) -> JobView:
        """See ControlApi.cancel_job."""
        job = self._store.cancel_job(checked_job_id(job_id), now_s=self._wall_clock())
        if job.state == "cancelled":
            self.give_up_campaigns(job)
        self._changes.tell()
        return view(job)

    def give_up_campaigns(self, job: JobState) -> None:
        """Cancel the campaigns of a job that no other job wants."""
        wanted = {each for other in self._store.jobs(active=True) for each in other.campaign_ids}
        for campaign_id in job.campaign_ids:
            if campaign_id not in wanted:
                self._finish(campaign_id, f"job {job.job_id} was cancelled")

    def jobs(self, *, active_only: bool = False, after: str = "") -> Page[JobView]:
        """See ControlApi.jobs."""
        page = _page(self._store.jobs(active=active_only)[::-1], after)
        return Page(items=tuple(view(job, outcome=False) for job in page.items), after=page.after)

    # --- agents, campaigns, leases

    def agents(self, *, after: str = "") -> Page[AgentView]:
        """See ControlApi.agents."""
        page = _page(self._store.agents(), after)
        return Page(items=self._agent_views(page.items), after=page.after)

    def campaigns(self, *, active_only: bool = False, campaign_id: str = "", after: str = "") -> Page[CampaignView]:
        """See ControlApi.campaigns."""
        if campaign_id:
            return Page(items=(self._campaign_view(self._store.campaign(campaign_id), failures=True),))
        page = _page(self._store.campaigns(active=active_only)[::-1], after)
        return Page(items=tuple(self._campaign_view(state) for state in page.items), after=page.after)

    def leases(self, *, after: str = "") -> Page[LeaseView]:
        """See ControlApi.leases."""
        ours = {} if self._coordinator is None else {held.lease_id: held for held in self._coordinator.leases()}
        stored = self._store.active_leases()
        page = _page(sorted(stored, key=lambda lease: (lease.campaign_id, lease.batch, lease.agent)), after)
        now_s = time.monotonic()
        return Page(
            items=tuple(
                LeaseView(
                    lease_id=lease.lease_id,
                    campaign_id=lease.campaign_id,
                    batch=lease.batch,
                    epoch=lease.epoch,
                    agent=lease.agent,
                    first_round=lease.first_round,
                    rounds=lease.rounds,
                    owner=lease.owner,
                    granted_s=lease.granted_s,
                    expires_in_s=_left_s(ours.get(lease.lease_id), now_s),
                )
                for lease in page.items
            ),
            after=page.after,
        )

    def drain(self, agent: str, drained: bool) -> AgentView:
        """See ControlApi.drain."""
        if self._coordinator is not None:
            self._coordinator.drain(agent, drained)
        else:
            self._store.set_agent(agent, drained=drained)
        return self._agent_views([self._agent(agent)])[0]

    def release_agent(self, agent: str) -> None:
        """See ControlApi.release_agent."""
        if self._coordinator is not None:
            self._coordinator.release_agent(agent)
        else:
            self._store.set_agent(agent, quarantined="")

    def release_op(self, campaign_id: str, op_id: str) -> None:
        """See ControlApi.release_op."""
        if self._coordinator is not None:
            self._coordinator.release_op(campaign_id, op_id)
        else:
            self._store.release_op(campaign_id, op_id)

    def cancel_campaign(self, campaign_id: str, reason: str) -> CampaignView:
        """See ControlApi.cancel_campaign."""
        self._finish(campaign_id, reason[:MAX_TEXT] or "cancelled")
        self._changes.tell()
        return self._campaign_view(self._store.campaign(campaign_id))

    # --- tables

    def fetch_lut(self, name: str, version: int, part: LutPart, offset: int) -> LutChunk:
        """See ControlApi.fetch_lut."""
        from lutbuilder.lut.store import lut_bytes

        if self._luts is None:
            raise SpecError("there are no tables to fetch here: ask the coordinator, --coordinator HOST:PORT")
        lut_words(name)
        found = lut_bytes(name, version, part, folder=self._luts)
        which = (name, found.version, part)
        if which not in self._hashes:
            self._hashes[which] = hashlib.sha256(found.raw).hexdigest()
        return LutChunk(
            version=found.version,
            offset=offset,
            chunk=found.raw[offset : offset + FETCH_BYTES],
            size_bytes=len(found.raw),
            sha256=self._hashes[which],
        )

    # --- the parts

    def _finish(self, campaign_id: str, reason: str) -> None:
        if self._coordinator is not None:
            self._coordinator.finish(campaign_id, reason, state="cancelled")
        else:
            self._store.finish_campaign(campaign_id, reason, self._wall_clock(), state="cancelled")

    def _agent(self, name: str) -> AgentState:
        found = self._store.newest_session(name)
        if found is None:
            raise UnknownName(f"no agent {name[:80]!r} has registered; see them: lutbuilder agents")
        return found

    def _agent_views(self, states: Sequence[AgentState]) -> tuple[AgentView, ...]:
        seen = {} if self._coordinator is None else {each.name: each for each in self._coordinator.fleet()}
        leased = {lease.agent: lease.lease_id for lease in self._store.active_leases()[::-1]}
        flags = self._store.agent_flags()
        views = []
        for state in states:
            flag, live = flags.get(state.name), seen.get(state.name)
            phase: AgentPhase = "measuring" if state.name in leased else "unknown"
            if live is not None:
                phase = live.state
            elif flag is not None and flag.quarantined:
                phase = "quarantined"
            elif flag is not None and flag.drained:
                phase = "drained"
            views.append(
                AgentView(
                    name=state.name,
                    device=state.fingerprint.device,
                    env_id=state.fingerprint.env_id,
                    agent_version=state.agent_version,
                    runtimes=tuple(
                        RuntimeView(
                            name=each.name, version=each.version, available=each.available, reason=each.reason[:_DETAIL]
                        )
                        for each in state.runtimes
                    ),
                    phase=phase,
                    session_id=state.session_id,
                    registered_s=state.registered_s,
                    reason="" if flag is None else flag.quarantined[:MAX_TEXT],
                    clock_domain=state.clock_domain,
                    last_report_s=state.last_report_s,
                    heard_s=None if live is None else live.heard_s,
                    lease_id=leased.get(state.name, ""),
                    visits_per_s=None if live is None else live.visits_per_s,
                )
            )
        return tuple(views)

    def _campaign_view(self, state: CampaignState, *, failures: bool = False) -> CampaignView:
        spec = state.spec
        failed = sorted(self._store.failures(state.campaign_id), key=lambda failure: not failure.final)
        labels = {op.op_id: " + ".join(each.label() for each in op.ops) for op in spec.ops} if failures else {}
        working = {lease.agent for lease in self._store.active_leases(state.campaign_id)}
        return CampaignView(
            campaign_id=state.campaign_id,
            purpose=spec.purpose,
            space=spec.space,
            lut_name=spec.target.lut_name,
            phase=state.state,
            reason=state.reason[:MAX_TEXT],
            priority=state.priority,
            rounds=state.rounds,
            max_rounds=spec.max_rounds,
            n_ops=len(spec.ops),
            measured_s=state.measured_ns / 1e9,
            timed_s=state.timed_ns / 1e9,
            created_s=state.created_s,
            finished_s=state.finished_s,
            n_failed=sum(failure.final for failure in failed),
            agents=tuple(sorted(working)),
            failures=tuple(
                OpFailure(
                    op_id=failure.op_id,
                    label=labels.get(failure.op_id, "")[:_DETAIL],
                    reason=failure.reason,
                    detail=failure.detail[:_DETAIL],
                    attempts=failure.attempts,
                    agents=failure.agents[:MAX_FAILURES],
                    final=failure.final,
                )
                for failure in failed[:MAX_FAILURES]
            )
            if failures
            else (),
        )


def _page(items: Sequence[T], after: str) -> Page[T]:
    """Return the items from number `after` on, as many as a page has."""
    if after and not (after.isascii() and after.isdecimal() and len(after) < 12):
        raise SpecError(f"{after[:40]!r} is not a page of this list")
    start = int(after or 0)
    end = start + PAGE_ITEMS
    return Page(items=tuple(items[start:end]), after=str(end) if end < len(items) else "")


def _left_s(lease: HeldLease | None, now_s: float) -> float | None:
    """Return the seconds a lease has left; None for another coordinator's, and for one that cannot expire yet."""
    if lease is None or math.isinf(lease.deadline_s):
        return None
    return max(0.0, lease.deadline_s - now_s)


def _digest(job: JobState) -> str:
    """Return what changes when any word of a job does."""
    told = replace(job, spec=JobSpec(kind=job.spec.kind, request=""))
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
