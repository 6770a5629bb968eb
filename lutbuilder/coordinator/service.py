"""Coordinator: the calls of `AgentApi` over a store, in process; `serve` puts the same object behind gRPC.

Kill it at any moment: what was acknowledged is in the store, leases of the dead process are adopted when their session
calls again and are pending again after a ttl otherwise, and an agent with a new session fences its own old one at once.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import CampaignProgress, Decision, HeldLease, LeaseState, Offer
from lutbuilder.coordinator.store import AgentState, CampaignState, CommitResult, Store
from lutbuilder_agent import runtimes
from lutbuilder_agent.errors import (
    PortInUse,
    ProtocolMismatch,
    SpecError,
    StaleLease,
    UnknownSession,
    UnsupportedOp,
    WireError,
)
from lutbuilder_agent.records import (
    PROTOCOL_VERSION,
    AgentHello,
    ArtifactRef,
    DeviceState,
    Failure,
    Format,
    Lease,
    LeasedOp,
    OpId,
    Report,
    ReportAck,
    Session,
)
from lutbuilder_agent.wire.api import CHUNK_BYTES, MAX_WAIT_S, Idle, LeaseAnswer

if TYPE_CHECKING:
    import grpc

    from lutbuilder_agent.wire.servicer import Waker

DEFAULT_TTL_S = 30.0
DEFAULT_HEARTBEAT_S = 10.0
MAX_QUIET_S = 3600.0  # an agent may announce no longer a silence
_ASK_AGAIN_S: dict[DeviceState, float] = {"ok": 1.0, "hot": 30.0, "low_battery": 60.0, "draining": 5.0}
_NEVER_S = float("inf")


class Artifacts(Protocol):
    """Where artifacts come from: `ArtifactShelf`, or a fake of two functions."""

    def ref(self, op: CampaignOp, format: Format) -> ArtifactRef: ...
    def fetch(self, sha256: str) -> bytes: ...


Decide = Callable[[str, Report], Decision]
Narrow = Callable[[HeldLease, Offer], Offer]
EventKind = Literal["registered", "leased", "lost", "reported", "finished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a progress line may want to show. Fields that mean nothing for its kind are empty."""

    kind: EventKind
    agent: str = ""
    campaign_id: str = ""
    round: int | None = None
    n_timings: int = 0
    n_failures: int = 0
    late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A campaign when `wait` returned; hand `serial` back to wait for what comes after."""

    serial: int
    campaign: CampaignState


class Coordinator:
    """Implements AgentApi over a store. Safe from any thread.

    Leases are given for campaigns that were offered (`offer`, before `serve`); reports are kept for any campaign of the
    store. `decide` is called after a report is committed and before it is acknowledged, outside any transaction, by one
    thread at a time; only for a current lease of an active campaign, and for the same report again only if the process
    died before its decision was stored. Should it raise, the agent is told to stop, nothing is leased any more, and
    `wait` raises the error. A campaign whose last batch is done is finished with that batch's reason. An op that failed
    but is not given up yet ends the lease, so that the next one tries it again; so does the lease's last round, and
    while the campaign lacks rounds its agent leases the batch again and prepares it anew.
    `narrow` is asked, outside all locks, what of an offer goes into a lease: some of its ops, at most its rounds.
    A session whose decision said renew gets no lease any more: its agent has to register anew, or, if its name is in
    `restarted`, to end, because somebody here starts it again.
    Callbacks in `on_event` run in the calling thread, outside all locks; they must not raise.
    """

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        decide: Decide,
        *,
        narrow: Narrow = lambda lease, offer: offer,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        ttl_s: float = DEFAULT_TTL_S,
        heartbeat_s: float = DEFAULT_HEARTBEAT_S,
        max_waiting: int = 48,
    ) -> None:
        self.on_event: list[Callable[[Event], None]] = []
        self.restarted: set[str] = set()  # agents that the owner starts again when they have ended
        self.max_waiting = max_waiting  # long-polls held open; each takes a thread of the server
        self._store = store
        self._artifacts = artifacts
        self._decide = decide
        self._narrow = narrow
        self._clock = clock
        self._wall_clock = wall_clock
        self._new_id = new_id
        self._ttl_s = ttl_s
        self._heartbeat_s = heartbeat_s
        self._deciding = threading.Lock()
        self._changed = threading.Condition()  # guards everything below
        self._serial = 0
        self._offered: list[str] = []
        self._over: set[str] = set()  # sessions that have had their share
        self._live: dict[str, AgentState] = {}  # the newest session of every agent name seen by this process
        self._leases: dict[str, HeldLease] = {}
        self._events: list[Event] = []
        self._waiting = 0
        self._shut_down = False
        self._closing = False
        self._error: Exception | None = None

    # --- what the owner of a campaign calls

    def offer(self, campaign_id: str) -> None:
        """Lease this campaign's batches from now on. Its leases of an earlier process stay with their agents for a ttl.

        Raises UnknownName.
        """
        with self._changed:
            self._store.campaign(campaign_id)
            if campaign_id not in self._offered:
                self._offered.append(campaign_id)
                for lease in self._store.active_leases(campaign_id):
                    live = self._live.get(lease.agent)
                    if live is not None and live.session_id != lease.session_id:
                        self._store.end_lease(lease.lease_id, "cancelled", now_s=self._wall_clock())
                        continue
                    self._leases[lease.lease_id] = HeldLease(
                        lease_id=lease.lease_id,
                        epoch=lease.epoch,
                        campaign_id=campaign_id,
                        batch=lease.batch,
                        session_id=lease.session_id,
                        agent=lease.agent,
                        first_round=lease.first_round,
                        rounds=lease.rounds,
                        deadline_s=self._clock() + self._ttl_s,
                    )
            self._touch()
        self._tell()

    def finish(self, campaign_id: str, reason: str, *, state: Literal["done", "cancelled"] = "done") -> None:
        """End a campaign: its agents are told at their next report or heartbeat. Raises UnknownName."""
        with self._changed:
            self._finish(campaign_id, reason, state)
        self._tell()

    def wait(self, campaign_id: str, timeout_s: float, *, seen: int = -1) -> Moment:
        """Return once something has changed since `seen`, the campaign has ended, or `timeout_s` is over.

        Raises what `decide` or the building of artifacts raised; UnknownName.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self._changed:
                self._expire()
            self._tell()
            with self._changed:
                if self._error is not None:
                    raise self._error
                campaign = self._store.campaign(campaign_id)
                left_s = deadline_s - time.monotonic()
                if self._serial > seen or campaign.state != "active" or left_s <= 0:
                    return Moment(serial=self._serial, campaign=campaign)
                self._changed.wait(min(left_s, self._expiry_s()))

    def agents(self) -> tuple[AgentState, ...]:
        """Return the agents that have called since this process began, in their newest session."""
        with self._changed:
            return tuple(self._live.values())

    def is_over(self, agent: str) -> bool:
        """Return whether the agent's session has had its share, and its next one has not begun."""
        with self._changed:
            live = self._live.get(agent)
            return live is not None and live.session_id in self._over

    def shut_down(self) -> None:
        """Answer every lease call, those that wait included, with shut_down from now on. Reports are still taken."""
        with self._changed:
            self._shut_down = True
            self._touch()

    def release_waiters(self) -> None:
        """Let every lease call that waits, now and later, return at once: the server is about to stop."""
        with self._changed:
            self._closing = True
            self._touch()

    # --- AgentApi

    def register(self, hello: AgentHello) -> Session:
        """See AgentApi.register."""
        session = Session(session_id=self._new_id(), epoch=0, protocol=_protocol(hello), heartbeat_s=self._heartbeat_s)
        with self._changed:
            session = replace(session, epoch=self._store.next_epoch(hello.name))
            self._store.record_session(hello, session, now_s=self._wall_clock())
            self._live[hello.name] = self._store.session(session.session_id)
            for lease in [lease for lease in self._leases.values() if lease.agent == hello.name]:
                self._end(lease, "cancelled")
            self._touch(Event(kind="registered", agent=hello.name))
        self._tell()
        return session

    def lease(self, session_id: str, state: DeviceState, wait_s: float, *, caller: Waker | None = None) -> LeaseAnswer:
        """See AgentApi.lease. With a `caller`, nothing is given to one that has hung up."""
        deadline_s = time.monotonic() + min(wait_s, MAX_WAIT_S)
        if caller is not None:
            caller.when_gone(self._wake)
        while True:
            try:
                granted = self._await_grant(session_id, state, wait_s, deadline_s, caller)
            finally:
                self._tell()
            if isinstance(granted, Idle):
                return granted
            lease = self._filled(*granted)
            self._tell()
            if lease is not None:
                return lease

    def fetch(self, session_id: str, sha256: str, offset: int) -> Iterator[bytes]:
        """See AgentApi.fetch. Fetching extends the session's lease."""
        with self._changed:
            session = self._session(session_id)
            for lease in self._leases.values():
                if lease.session_id == session.session_id:
                    self._extend(lease.lease_id)
        raw = self._artifacts.fetch(sha256)
        if offset > len(raw):
            raise WireError(f"offset {offset} is behind the end of artifact {sha256[:12]}, which has {len(raw)} bytes")
        return (raw[start : start + CHUNK_BYTES] for start in range(offset, len(raw), CHUNK_BYTES))

    def report(self, report: Report) -> ReportAck:
        """See AgentApi.report. Commit, decide, acknowledge, in this order."""
        with self._changed:
            self._expire()
            with suppress(StaleLease, UnknownSession):  # a late report is welcome; the store knows which is unknown
                self._session(report.session_id)
        try:
            result = self._store.commit_report(report, now_s=self._wall_clock())
            with self._changed:
                lease = self._leases.get(report.lease_id)
                current = result.campaign_active and not result.late and lease is not None
                self._extend(report.lease_id)
                self._touch(
                    Event(
                        kind="reported",
                        agent=self._store.session(report.session_id).name,
                        campaign_id=report.campaign_id,
                        round=report.round,
                        n_timings=result.n_new,
                        n_failures=len(report.failures),
                        late=not current,
                    )
                )
            if result.decision is not None:
                stop = result.decision.stop or not current
                return ReportAck(report_id=report.report_id, stop=stop, drop=result.decision.drop)
            if not current or lease is None:
                self._release_unoffered(report, result)
                return ReportAck(report_id=report.report_id, stop=True)
            return self._decided(report, lease)
        finally:
            self._tell()

    def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool:
        """See AgentApi.heartbeat."""
        try:
            with self._changed:
                session = self._session(session_id)
                self._expire()
                if not lease_id:
                    return False
                lease = self._leases.get(lease_id)
                if lease is None or lease.session_id != session.session_id:
                    return True
                if self._store.campaign(lease.campaign_id).state != "active":
                    self._end(lease, "cancelled")
                    return True
                self._extend(lease_id, quiet_s=min(quiet_s, MAX_QUIET_S))
                return False
        finally:
            self._tell()

    # --- leases: all of this holds the lock, except where it says so

    def _session(self, session_id: str) -> AgentState:
        """Return a session that may act: the newest of its name. One of an earlier process is adopted."""
        for live in self._live.values():
            if live.session_id == session_id:
                return live
        state = self._store.session(session_id)
        newer = self._live.get(state.name)
        if newer is not None and newer.epoch > state.epoch:
            raise StaleLease(
                f"a newer agent named {state.name} has registered (epoch {newer.epoch}, this one has {state.epoch}): "
                "end this one, or give it another name: lutbuilder-agent run --name NAME"
            )
        self._live[state.name] = state
        return state

    def _await_grant(
        self, session_id: str, state: DeviceState, wait_s: float, deadline_s: float, caller: Waker | None
    ) -> tuple[HeldLease, Offer] | Idle:
        """Wait for a lease; takes the lock itself."""
        with self._changed:
            while True:
                session = self._session(session_id)
                self._expire()
                if state != "ok":
                    for lease in [held for held in self._leases.values() if held.agent == session.name]:
                        self._end(lease, "cancelled")
                    return Idle(ask_again_s=_ASK_AGAIN_S[state], shut_down=self._shut_down)
                if self._shut_down or (session_id in self._over and session.name in self.restarted):
                    return Idle(ask_again_s=0.0, shut_down=True)
                if session_id in self._over:
                    raise UnknownSession(f"session {session_id} has had its share: register, and go on in a new one")
                gone = caller is not None and caller.gone()
                granted = None if gone or self._error is not None else self._grant(session)
                if granted is not None:
                    return granted
                left_s = deadline_s - time.monotonic()
                crowded = self._waiting >= self.max_waiting
                if gone or left_s <= 0 or self._closing or crowded:
                    waited = wait_s >= _ASK_AGAIN_S["ok"] and not self._closing and not crowded
                    return Idle(ask_again_s=0.0 if waited else _ASK_AGAIN_S["ok"])
                self._waiting += 1
                try:
                    self._changed.wait(min(left_s, self._expiry_s()))
                finally:
                    self._waiting -= 1

    def _grant(self, session: AgentState) -> tuple[HeldLease, Offer] | None:
        """Return the session's lease, the one it has or a new one; it cannot expire while its artifacts are built."""
        progresses = [progress for progress in map(self._settled, tuple(self._offered)) if progress is not None]
        for held in self._leases.values():
            if held.session_id == session.session_id:
                progress = next((p for p in progresses if p.campaign_id == held.campaign_id), None)
                if progress is None:
                    break
                again = schedule.offer(progress, held.batch)
                held = replace(held, first_round=again.first_round, rounds=again.rounds, deadline_s=_NEVER_S)
                self._leases[held.lease_id] = held
                return held, again
        offer = schedule.next_offer(progresses, tuple(self._leases.values()), session.hello)
        if offer is None:
            return None
        lease_id = self._new_id()
        epoch = self._store.grant_lease(
            lease_id,
            campaign_id=offer.campaign_id,
            batch=offer.batch,
            session_id=session.session_id,
            first_round=offer.first_round,
            rounds=offer.rounds,
            now_s=self._wall_clock(),
            beside=tuple(self._leases),
        )
        held = HeldLease(
            lease_id=lease_id,
            epoch=epoch,
            campaign_id=offer.campaign_id,
            batch=offer.batch,
            session_id=session.session_id,
            agent=session.name,
            first_round=offer.first_round,
            rounds=offer.rounds,
            deadline_s=_NEVER_S,
        )
        self._leases[lease_id] = held
        self._touch(Event(kind="leased", agent=session.name, campaign_id=offer.campaign_id, round=offer.first_round))
        return held, offer

    def _filled(self, held: HeldLease, offer: Offer) -> Lease | None:
        """Return the lease with its artifacts named, or None if it came to nothing; takes the lock only at the end.

        An op that cannot be built is a failure of that op, stored, and the lease is made anew without it; anything else
        that goes wrong ends all leasing.
        """
        failed = False
        ops: list[LeasedOp] = []
        try:
            offer = self._narrow(held, offer)
            plan = self._store.campaign(held.campaign_id).spec.plan
            format = runtimes.entry(plan.runtime)[1].format
            for op in offer.ops:
                try:
                    artifact = self._artifacts.ref(op, format)
                    solo = op.is_whole
                    ops.append(LeasedOp(op_id=op.op_id, artifact=artifact, every=op.every, solo=solo))
                except (SpecError, UnsupportedOp) as error:
                    failure = Failure(
                        op_id=op.op_id, round=held.first_round, reason="unsupported", detail=f"not built: {error}"
                    )
                    self._store.record_failure(held.campaign_id, held.session_id, failure)
                    failed = True
        except Exception as error:  # whatever it is, the owner of the campaign has to see it: `wait` raises it
            with self._changed:
                self._fail(error)
                self._end(held, "cancelled")
            raise
        with self._changed:
            if held.lease_id not in self._leases:  # fenced or cancelled meanwhile
                return None
            if failed:
                self._end(held, "cancelled")
                return None
            held = replace(held, rounds=offer.rounds, deadline_s=self._clock() + self._ttl_s)
            self._leases[held.lease_id] = held
            self._store.shorten_lease(held.lease_id, held.rounds)
        return Lease(
            lease_id=held.lease_id,
            epoch=held.epoch,
            campaign_id=held.campaign_id,
            ops=tuple(ops),
            plan=plan,
            first_round=held.first_round,
            rounds=held.rounds,
            ttl_s=self._ttl_s,
        )

    def _settled(self, campaign_id: str) -> CampaignProgress | None:
        """Return an active campaign's progress after its exhausted batches were finished; None if it has ended."""
        if self._store.campaign(campaign_id).state != "active":
            return None
        progress = self._store.progress(campaign_id)
        for batch in schedule.batches(progress.spec):
            reason = None if batch in progress.done else schedule.exhausted(progress, batch)
            if reason is not None:
                self._store.finish_batch(campaign_id, batch, reason, now_s=self._wall_clock())
                self._forget(campaign_id, batch)
                progress = replace(progress, done=frozenset({*progress.done, batch}))
        return None if self._finish_if_done(progress, "") else progress

    def _finish_if_done(self, progress: CampaignProgress, reason: str) -> bool:
        if not set(schedule.batches(progress.spec)) <= set(progress.done):
            return False
        reasons = [schedule.exhausted(progress, batch) for batch in schedule.batches(progress.spec)]
        self._finish(progress.campaign_id, reason or next((r for r in reasons if r), "precision"), "done")
        return True

    def _finish(self, campaign_id: str, reason: str, state: Literal["done", "cancelled"]) -> None:
        self._store.finish_campaign(campaign_id, reason, self._wall_clock(), state=state)
        self._forget(campaign_id, None)
        self._touch(Event(kind="finished", campaign_id=campaign_id))

    def _forget(self, campaign_id: str, batch: int | None) -> None:
        for lease in list(self._leases.values()):
            if lease.campaign_id == campaign_id and batch in (None, lease.batch):
                del self._leases[lease.lease_id]

    def _expire(self) -> None:
        for lease in schedule.expired(self._leases.values(), now_s=self._clock()):
            self._end(lease, "lost")
            self._touch(Event(kind="lost", agent=lease.agent, campaign_id=lease.campaign_id))

    def _expiry_s(self) -> float:
        """Seconds until the next lease expires, in the bounds a lock can wait for."""
        left_s = schedule.next_expiry_s(self._leases.values(), now_s=self._clock())
        return MAX_WAIT_S if left_s is None else min(max(left_s, 0.01), MAX_WAIT_S)

    def _extend(self, lease_id: str, *, quiet_s: float = 0.0) -> None:
        lease = self._leases.get(lease_id)
        if lease is not None:
            deadline_s = max(lease.deadline_s, self._clock() + self._ttl_s + quiet_s)
            self._leases[lease_id] = replace(lease, deadline_s=deadline_s)

    def _end(self, lease: HeldLease, state: LeaseState) -> None:
        self._leases.pop(lease.lease_id, None)
        self._store.end_lease(lease.lease_id, state, now_s=self._wall_clock())
        self._touch()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._touch()

    def _touch(self, event: Event | None = None) -> None:
        """Something changed: wake whoever waits. Events are told by `_tell`, when the lock is free."""
        self._serial += 1
        if event is not None:
            self._events.append(event)
        self._changed.notify_all()

    # --- reports: these take the lock themselves

    def _decided(self, report: Report, lease: HeldLease) -> ReportAck:
        with self._deciding:
            try:
                decision = self._decide(report.campaign_id, report)
            except Exception as error:  # the visits are safe; the owner of the campaign sees the error in `wait`
                with self._changed:
                    self._fail(error)
                    self._end(lease, "cancelled")
                return ReportAck(report_id=report.report_id, stop=True)
            with self._changed:
                decision = self._or_exhausted(decision, report, lease)
                self._store.record_decision(
                    report,
                    decision,
                    finished_batch=lease.batch if decision.stop else None,
                    now_s=self._wall_clock(),
                )
                if decision.stop:
                    self._forget(lease.campaign_id, lease.batch)
                    self._finish_if_done(self._store.progress(lease.campaign_id), decision.reason)
                elif self._second_try_due(report, lease):
                    self._end(lease, "cancelled")
                elif decision.renew:
                    self._over.add(report.session_id)
                    self._end(lease, "done")
                elif self._is_last_round(report, lease):
                    self._end(lease, "done")
                ended = self._store.campaign(lease.campaign_id).state != "active"  # perhaps by `decide` itself
                stop = decision.stop or ended or lease.lease_id not in self._leases
                self._touch()
        return ReportAck(report_id=report.report_id, stop=stop, drop=decision.drop)

    def _or_exhausted(self, decision: Decision, report: Report, lease: HeldLease) -> Decision:
        """Return the decision, made a stop if this was the last round or nothing is left to visit."""
        if decision.stop:
            return decision
        if self._is_last_round(report, lease) or report.failures or decision.drop:
            progress = self._store.progress(lease.campaign_id)
            dropped: frozenset[OpId] = frozenset({*progress.dropped, *decision.drop})
            reason = schedule.exhausted(replace(progress, dropped=dropped), lease.batch)
            if reason is not None:
                return replace(decision, stop=True, reason=reason)
        return decision

    def _is_last_round(self, report: Report, lease: HeldLease) -> bool:
        return report.round >= self._leases.get(lease.lease_id, lease).last_round

    def _second_try_due(self, report: Report, lease: HeldLease) -> bool:
        """Whether an op that failed in this lease is not given up: the batch is leased anew, with all that is left.

        A failure of before the lease says nothing new: an agent that repeats it shall not be sent round in circles.
        """
        failed = {failure.op_id for failure in report.failures if failure.round >= lease.first_round}
        if not failed:
            return False
        return any(known.op_id in failed and not known.final for known in self._store.failures(lease.campaign_id))

    def _release_unoffered(self, report: Report, result: CommitResult) -> None:
        """An agent still works on a campaign of an earlier process that nobody offers here: it is set free."""
        if not result.late:
            self._store.end_lease(report.lease_id, "cancelled", now_s=self._wall_clock())

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _tell(self) -> None:
        with self._changed:
            events, self._events = self._events, []
        for event in events:
            for callback in tuple(self.on_event):
                callback(event)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A coordinator that listens. `address` is "host:port" with the port that was really taken."""

    address: str
    _coordinator: Coordinator
    _server: grpc.Server
    _threads: ThreadPoolExecutor

    def stop(self, grace_s: float = 2.0) -> None:
        """Stop listening; calls under way have `grace_s` seconds to end. May be called twice."""
        self._coordinator.release_waiters()
        self._server.stop(grace_s).wait()
        self._threads.shutdown(wait=False)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    coordinator: Coordinator,
    address: str = "127.0.0.1:0",
    *,
    credentials: grpc.ServerCredentials | None = None,
) -> RunningServer:
    """Listen at "host:port" (port 0: any free one) and serve the coordinator in background threads.

    `credentials` is the seam for TLS; without them only loopback is listened on. Raises PortInUse, SpecError.
    """
    import grpc

    from lutbuilder_agent.wire.client import is_loopback
    from lutbuilder_agent.wire.servicer import SERVER_OPTIONS, add_to_server

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SpecError(f"cannot listen on {address!r}: give HOST:PORT, e.g. 127.0.0.1:0 for any free port")
    if credentials is None and not is_loopback(address):
        raise SpecError(
            f"cannot listen on {address}: without TLS only loopback is served. Listen on 127.0.0.1:{port} and bring "
            f"the port to the device with ssh -R {port}:127.0.0.1:{port} DEVICE"
        )
    _check_free(host, int(port))
    threads = ThreadPoolExecutor(coordinator.max_waiting + 16, thread_name_prefix="lutbuilder-call")
    server = grpc.server(threads, options=SERVER_OPTIONS)
    add_to_server(coordinator, server)
    try:
        if credentials is None:
            taken = server.add_insecure_port(address)
        else:
            taken = server.add_secure_port(address, credentials)
    except RuntimeError as error:  # somebody was faster than we after _check_free
        raise _in_use(address) from error
    if not taken:  # the same, as grpcio before 1.60 says it
        raise _in_use(address)
    server.start()
    return RunningServer(f"{host}:{taken}", coordinator, server, threads)


def _check_free(host: str, port: int) -> None:
    """Raise PortInUse or SpecError if one cannot listen there; gRPC itself only says that it failed, and logs noise."""
    name = host.strip("[]")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(f"{host}:{port}") from error
        raise SpecError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _in_use(address: str) -> PortInUse:
    return PortInUse(
        f"cannot listen on {address}: the port is in use, perhaps by another lutbuilder; "
        f"choose another, or any free one: --listen {address.rpartition(':')[0]}:0"
    )


def _protocol(hello: AgentHello) -> int:
    """Return the newest protocol both speak. Raises ProtocolMismatch with the upgrade to make."""
    if hello.protocol_max < PROTOCOL_VERSION:
        older, line = "agent", "pip install -U lutbuilder-agent"
    elif hello.protocol_min > PROTOCOL_VERSION:
        older, line = "coordinator", "pip install -U lutbuilder"
    else:
        return PROTOCOL_VERSION
    raise ProtocolMismatch(
        f"agent {hello.name} {hello.agent_version} speaks protocol {hello.protocol_min} to {hello.protocol_max}, "
        f"this coordinator {PROTOCOL_VERSION}; upgrade the {older}: {line}"
    )
