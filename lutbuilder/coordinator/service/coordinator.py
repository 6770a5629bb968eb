"""Coordinator: the calls of `AgentApi` over a store, in process; `serve` puts the same object behind gRPC.

Kill it at any moment: what was acknowledged is in the store, leases of the dead process are adopted when their session
calls again and are pending again after a ttl otherwise, and an agent with a new session fences its own old one at once.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from lutbuilder.coordinator.schedule import HeldLease
from lutbuilder.coordinator.service.board import Board
from lutbuilder.coordinator.service.events import Artifacts, Decide, Event, Moment, Narrow
from lutbuilder.coordinator.service.fleet import SILENT_S, AgentView
from lutbuilder.coordinator.service.granting import ASK_AGAIN_S, Granted, Granting
from lutbuilder.coordinator.service.reports import Reports
from lutbuilder.coordinator.service.waiting import Waiter
from lutbuilder.coordinator.store import AgentState, Store
from lutbuilder_agent.errors import UnknownSession, WireError
from lutbuilder_agent.records import AgentHello, DeviceState, Report, ReportAck, Session
from lutbuilder_agent.wire.api import CHUNK_BYTES, MAX_WAIT_S, Idle, LeaseAnswer
from lutbuilder_agent.wire.protocol import agreed

if TYPE_CHECKING:
    from lutbuilder_agent.wire.servicer import Waker

DEFAULT_TTL_S = 25.0  # a lease of an agent that died is seen within 3 s of its end: work is leased again within 30
DEFAULT_HEARTBEAT_S = 10.0
MAX_QUIET_S = 3600.0  # an agent may announce no longer a silence
_PRESUME_S = 5.0  # how often to read which agents there are, where others coordinate, too
MAX_WAITING = 320  # long-polls held open: 256 agents and those that come back before their last call was seen to end


class Coordinator:
    """Implements AgentApi over a store. Safe from any thread; several may share a store, on one machine or many.

    Leases are given for campaigns that were offered, here by `offer` or by name of `offered`, which is asked at every
    tick; reports are kept for any campaign of the store. `decide` is called after a report is committed and before it
    is acknowledged, outside any transaction, for each campaign by one thread at a time; only for a current lease of an
    active campaign, and for the same report again only if nothing was stored of what was decided. Should it raise, the
    agent is told to stop, that campaign is leased no more, and its `wait` raises the error. A campaign whose last batch
    is done is finished with that batch's reason. An op that failed but is not given up yet ends the lease, so that the
    next one tries it again; so does the lease's last round, and while the campaign lacks rounds the batch is leased and
    prepared anew. `narrow` is asked, outside all locks, what of an offer goes into a lease: some of its ops, at most
    its rounds. A session whose decision said renew gets no lease any more: its agent has to register anew, or, if its
    name is in `restarted`, to end, because somebody here starts it again.
    Callbacks in `on_event` run in the calling thread, outside all locks; they must not raise.

    Leases live on `clock`, calls that wait on `patience_clock`, pausing by `pause`; `wall_clock` is for show only.
    Somebody has to call `tick` now and then: `serve` does. `coordinator_id` names this coordinator over restarts; one
    that is given it shows in the store as alive, others give up its jobs when it stands still.
    """

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        decide: Decide,
        *,
        narrow: Narrow = lambda lease, offer: offer,
        offered: Callable[[], Collection[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        patience_clock: Callable[[], float] = time.monotonic,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        ttl_s: float = DEFAULT_TTL_S,
        heartbeat_s: float = DEFAULT_HEARTBEAT_S,
        max_waiting: int = MAX_WAITING,
        coordinator_id: str = "",
    ) -> None:
        self.restarted: set[str] = set()  # agents that the owner starts again when they have ended
        self.max_waiting = max_waiting  # each takes a thread of the server
        self.ttl_s = ttl_s
        self._store = store
        self._artifacts = artifacts
        self._new_id = new_id
        self._heartbeat_s = heartbeat_s
        self._offered = offered
        self._announced = bool(coordinator_id)
        self._board = Board(store, owner=coordinator_id or new_id(), ttl_s=ttl_s, clock=clock, wall_clock=wall_clock)
        self._board.look_around = self._look_around
        self._granting = Granting(self._board, artifacts, narrow, new_id)
        self._reports = Reports(self._board, decide)
        self._clock = clock
        self._patience_clock = patience_clock
        self._pause = pause
        self._beaten_s = float("-inf")
        self._beats: dict[str, tuple[int, float]] = {}  # other coordinators: their beat, and since when
        self._began_s: float | None = None
        self._presumed_s = float("-inf")

    @property
    def on_event(self) -> list[Callable[[Event], None]]:
        """Callbacks that are told what happens."""
        return self._board.on_event

    # --- what the owner of a campaign calls

    def offer(self, campaign_id: str) -> None:
        """Lease this campaign's batches from now on. Its leases of an earlier process stay with their agents for a ttl.

        Raises UnknownName.
        """
        with self._board.lock:
            self._store.campaign(campaign_id)
            self._board.leases.refresh()
            self._presume()
            self._board.campaigns.offer(campaign_id)
            self._board.touch(campaign_id)
            self._board.call_up()
        self._board.tell()

    def finish(self, campaign_id: str, reason: str, *, state: Literal["done", "cancelled"] = "done") -> None:
        """End a campaign: its agents are told at their next report or heartbeat. Raises UnknownName."""
        with self._board.lock:
            self._board.finish(campaign_id, reason, state)
        self._board.tell()

    def wait(self, campaign_id: str, timeout_s: float, *, seen: int = -1) -> Moment:
        """Return once something has changed since `seen`, the campaign has ended, or `timeout_s` is over.

        Raises what `decide` or the building of the campaign's artifacts raised; UnknownName.
        """
        board = self._board
        deadline_s = time.monotonic() + timeout_s
        while True:
            with board.lock:
                board.expire()
            board.tell()
            with board.lock:
                if campaign_id in board.campaigns.errors:
                    raise board.campaigns.errors[campaign_id]
                campaign = self._store.campaign(campaign_id)
                serial = board.serial(campaign_id)
                left_s = deadline_s - time.monotonic()
                if serial > seen or campaign.state != "active" or left_s <= 0:
                    return Moment(serial=serial, campaign=campaign)
                board.await_change(campaign_id, min(left_s, board.wait_s()))

    def shut_down(self) -> None:
        """Answer every lease call, those that wait included, with shut_down from now on. Reports are still taken."""
        with self._board.lock:
            self._board.shut_down = True
            self._board.call_all()

    def wake(self) -> None:
        """Let every lease call that waits look again: a campaign has come, or its priority has changed."""
        self.tick()

    def release_waiters(self) -> None:
        """Let every lease call that waits, now and later, return at once: the server is about to stop."""
        with self._board.lock:
            self._board.closing = True
            self._board.call_all()

    # --- what whoever keeps a fleet calls

    @property
    def coordinator_id(self) -> str:
        """The name of this coordinator in the store."""
        return self._board.owner

    @property
    def waiting(self) -> int:
        """How many lease calls wait."""
        return len(self._board.waiting)

    def agents(self) -> tuple[AgentState, ...]:
        """Return the agents that have called since this process began, in their newest session."""
        with self._board.lock:
            return self._board.fleet.states()

    def fleet(self) -> tuple[AgentView, ...]:
        """Return what every agent of the store does, by name, as far as it can be told from here."""
        known = self._store.agents()
        with self._board.lock:
            return self._board.fleet.views(known, self._board.leases.all())

    def heard(self) -> Mapping[str, float]:
        """Return the seconds since the last call of each agent that has called here."""
        with self._board.lock:
            return self._board.fleet.heard()

    def leases(self) -> tuple[HeldLease, ...]:
        """Return the leases that have not ended, those of the store's other coordinators as of the last tick."""
        with self._board.lock:
            return tuple(lease for lease in self._board.leases.all() if not lease.ending)

    def is_over(self, agent: str) -> bool:
        """Return whether the agent's session has had its share, and its next one has not begun."""
        with self._board.lock:
            live = self._board.fleet.named(agent)
            return live is not None and live.state.session_id in self._board.over

    def drain(self, agent: str, on: bool = True) -> None:
        """Give an agent no lease any more, until `drain(agent, False)`; the one in hand ends with its next report.

        Raises UnknownName.
        """
        self._flag(agent, drained=on)

    def release_agent(self, agent: str) -> None:
        """Lease to a quarantined agent again. Raises UnknownName."""
        self._flag(agent, quarantined="")

    def _flag(self, agent: str, *, drained: bool | None = None, quarantined: str | None = None) -> None:
        with self._board.lock:
            self._store.set_agent(agent, drained=drained, quarantined=quarantined)
            self._board.fleet.flags = self._store.agent_flags()
            live = self._board.fleet.named(agent)
            if live is not None and quarantined == "":
                live.streak = ()
            self._board.touch()
            self._board.call_up()
        self._board.tell()

    def release_op(self, campaign_id: str, op_id: str) -> None:
        """Try an op that was given up again: its failures are kept, but do not count. Raises UnknownName."""
        with self._board.lock:
            self._store.release_op(campaign_id, op_id)
            self._board.campaigns.changed(campaign_id)
            self._board.touch(campaign_id)
            self._board.call_up()
        self._board.tell()

    def dead_coordinators(self) -> frozenset[str]:
        """Return the coordinators of the store that stood still for a ttl of our clock."""
        with self._board.lock:
            now_s = self._clock()
            return frozenset(name for name, (_, since_s) in self._beats.items() if now_s - since_s >= self.ttl_s)

    def tick(self) -> None:
        """Do what time brings: say which leases live, end those that ran out, see what other coordinators did."""
        offered = self._offered()
        board = self._board
        with board.lock:
            board.expire()
            board.leases.beat()
            board.leases.refresh()
            board.fleet.flags = self._store.agent_flags()
            board.campaigns.look_again(offered)
            if self._announced:
                self._beat()
            self._presume()
            board.call_up()
        board.tell()

    def _presume(self) -> None:
        """Whoever has registered may be alive: of a process that has just begun, and where others coordinate, too."""
        now_s = self._clock()
        self._began_s = now_s if self._began_s is None else self._began_s
        if now_s >= self._presumed_s + _PRESUME_S and (now_s == self._began_s or self._others_coordinate()):
            self._presumed_s = now_s
            self._board.fleet.presume(self._store.agents(), now_s + SILENT_S)

    def _look_around(self) -> None:
        """Do so now: an op failed, and who could try it may have come to another coordinator a moment ago."""
        if self._others_coordinate():
            self._presumed_s = self._clock()
            self._board.fleet.presume(self._store.agents(), self._presumed_s + SILENT_S)

    def _others_coordinate(self) -> bool:
        now_s = self._clock()
        return any(now_s - since_s < self.ttl_s for _, since_s in self._beats.values())

    def slept(self, seconds: float) -> None:
        """Judge nobody by this time: this process was stopped and could hear nobody."""
        with self._board.lock:
            self._board.leases.shift(seconds)

    def watch_sleep(self, overslept: Callable[[], bool]) -> None:
        """Let no lease run out while `overslept` says so: `slept` is called before long."""
        self._board.overslept = overslept

    def _beat(self) -> None:
        now_s = self._clock()
        if now_s - self._beaten_s >= self.ttl_s / 4:
            self._store.beat_coordinator(self.coordinator_id)
            self._beaten_s = now_s
        found = self._store.coordinators()
        for name in set(self._beats).difference(found):
            del self._beats[name]
        for name, beat in found.items():
            if name != self.coordinator_id and self._beats.get(name, (None, 0.0))[0] != beat:
                self._beats[name] = beat, now_s

    # --- AgentApi

    def register(self, hello: AgentHello, *, caller: Waker | None = None) -> Session:
        """See AgentApi.register. With a `caller`, one that has hung up does not fence the session of its next try."""
        protocol = agreed(hello)
        session_id = self._new_id()
        board = self._board
        with board.lock:
            if caller is not None and caller.gone():
                raise WireError(f"agent {hello.name} hung up before it was registered")
            epoch = self._store.open_session(hello, session_id, now_s=board.wall_clock())
            board.fleet.flags = self._store.agent_flags()
            board.fleet.began(self._store.session(session_id))
            for lease in board.leases.of_agent(hello.name):
                board.campaigns.changed(lease.campaign_id)
            board.leases.forget_agent(hello.name)
            board.touch(event=Event(kind="registered", agent=hello.name))
            board.call_up()
        board.tell()
        return Session(session_id=session_id, epoch=epoch, protocol=protocol, heartbeat_s=self._heartbeat_s)

    def lease(
        self,
        session_id: str,
        state: DeviceState,
        wait_s: float,
        *,
        ahead_of: str = "",
        caller: Waker | None = None,
    ) -> LeaseAnswer:
        """See AgentApi.lease. With a `caller`, nothing is given to one that has hung up."""
        until_s = self._patience_clock() + min(wait_s, MAX_WAIT_S)
        board = self._board
        with board.lock:
            waiter = Waiter(asker=board.session(session_id).asker)
        if caller is not None:
            caller.when_gone(waiter.called.set)
        patient = wait_s >= ASK_AGAIN_S["ok"]
        while True:
            try:
                with board.lock:
                    answer = self._answer(session_id, state, ahead_of, waiter, caller)
                    if answer is None:
                        left_s = until_s - self._patience_clock()
                        crowded = len(board.waiting) >= self.max_waiting
                        if (
                            ahead_of
                            or left_s <= 0
                            or board.closing
                            or crowded
                            or (caller is not None and caller.gone())
                        ):
                            waited = patient and not board.closing and not crowded
                            return Idle(ask_again_s=0.0 if waited else ASK_AGAIN_S["ok"])
                        board.waiting.enter(waiter)
                        timeout_s = min(left_s, board.wait_s())
            finally:
                board.tell()
            if isinstance(answer, Idle):
                return answer
            if answer is not None:
                lease = self._granting.filled(*answer)
                board.tell()
                if lease is not None:
                    return lease
                continue
            self._pause(waiter.called, timeout_s)
            with board.lock:
                board.waiting.leave(waiter)

    def _answer(
        self, session_id: str, state: DeviceState, ahead_of: str, waiter: Waiter, caller: Waker | None
    ) -> Granted | Idle | None:
        """Return what there is for a session now; None: nothing. The lock is held."""
        board = self._board
        live = board.session(session_id)
        board.expire()
        if state != "ok":
            return self._granting.give_back(live, state)
        if board.shut_down or (session_id in board.over and live.state.name in self.restarted):
            return Idle(ask_again_s=0.0, shut_down=True)
        if session_id in board.over:
            raise UnknownSession(f"session {session_id} has had its share: register, and go on in a new one")
        called = waiter.called.is_set()
        waiter.called.clear()
        granted = None
        if caller is None or not caller.gone():
            granted = self._granting.grant_ahead(live, ahead_of) if ahead_of else self._granting.grant(live)
        if granted is None:
            waiter.tried = board.things
            if called:
                board.call_up(again=True)
            else:
                board.check_newest(live.state)
        return granted

    def fetch(self, session_id: str, sha256: str, offset: int) -> Iterator[bytes]:
        """See AgentApi.fetch. Fetching extends the session's leases."""
        with self._board.lock:
            self._board.session(session_id)
            self._board.leases.extend(session_id)
        raw = self._artifacts.fetch(sha256)
        if offset > len(raw):
            raise WireError(f"offset {offset} is behind the end of artifact {sha256[:12]}, which has {len(raw)} bytes")
        return (raw[start : start + CHUNK_BYTES] for start in range(offset, len(raw), CHUNK_BYTES))

    def report(self, report: Report) -> ReportAck:
        """See AgentApi.report. Commit, decide, acknowledge, in this order."""
        try:
            return self._reports.take(report)
        finally:
            self._board.tell()

    def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool:
        """See AgentApi.heartbeat."""
        board = self._board
        try:
            with board.lock:
                board.session(session_id)
                board.expire()
                if not lease_id:
                    return False
                lease = board.leases.get(lease_id)
                if lease is not None and self._store.campaign(lease.campaign_id).state != "active":
                    board.end(lease, "cancelled", told=True)
                    lease = None
                if lease is None or lease.session_id != session_id:
                    if board.leases.told(session_id):
                        board.call_up()
                    return True
                board.leases.extend(session_id, quiet_s=min(quiet_s, MAX_QUIET_S))
                return board.leases.get(lease_id) is None
        finally:
            board.tell()
