"""What a coordinator knows, under one lock: leases, campaigns, agents, and who waits for what.

Nothing here is needed after a crash: the store has all of it. Methods are called with the lock held, unless they say
otherwise.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import HeldLease, Leasable, LeaseState
from lutbuilder.coordinator.service.campaigns import Campaigns
from lutbuilder.coordinator.service.events import Event
from lutbuilder.coordinator.service.fleet import Fleet, Live
from lutbuilder.coordinator.service.leases import Leases
from lutbuilder.coordinator.service.waiting import Waiting
from lutbuilder.coordinator.store import AgentState, Store
from lutbuilder_agent.errors import StaleLease, UnknownName
from lutbuilder_agent.wire.api import MAX_WAIT_S


class Board:
    """The state of a coordinator and the few things that may be done to it as a whole. Raises StoreError."""

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        ttl_s: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.lock = threading.RLock()
        self.store = store
        self.owner = owner
        self.ttl_s = ttl_s
        self.clock = clock
        self.wall_clock = wall_clock
        self.leases = Leases(store, owner=owner, ttl_s=ttl_s, clock=clock, wall_clock=wall_clock)
        self.campaigns = Campaigns(store)
        self.fleet = Fleet(clock)
        self.waiting = Waiting()
        self.over: set[str] = set()  # sessions that have had their share
        self.shut_down = False
        self.closing = False
        self.overslept: Callable[[], bool] = lambda: False  # this process was stopped and does not know it yet
        self.on_event: list[Callable[[Event], None]] = []
        self._events: list[Event] = []
        self._things = 0  # counts the changes that may give a waiting agent work
        self._serials: dict[str, int] = defaultdict(int)  # of campaigns; "" counts for all of them
        self._changed: dict[str, threading.Condition] = {}

    # --- who calls

    def session(self, session_id: str) -> Live:
        """Return the agent of a session that may act: the newest of its name. One of an earlier process is adopted.

        Raises UnknownSession, StaleLease.
        """
        live = self.fleet.of_session(session_id)
        if live is None:
            state = self.store.session(session_id)
            self.check_newest(state)
            live = self.fleet.began(state)
            self.leases.adopt(session_id)
            self.fleet.flags = self.store.agent_flags()
        live.heard_s = self.clock()
        return live

    def check_newest(self, state: AgentState) -> None:
        """Raise StaleLease if an agent of the same name has begun a newer session, here or at another coordinator."""
        newest = self.store.newest_session(state.name)
        if newest is not None and newest.epoch > state.epoch:
            raise StaleLease(
                f"a newer agent named {state.name} has registered (epoch {newest.epoch}, this one has {state.epoch}): "
                "end this one, or give it another name: lutbuilder-agent run --name NAME"
            )

    # --- campaigns

    def leasable(self) -> list[Leasable]:
        """Return the campaigns that are leased here and active, in the order they were offered."""
        found = []
        for campaign_id in self.campaigns.ids():
            campaign = self.campaigns.known(campaign_id) or self.read(campaign_id)
            if campaign is not None:
                found.append(campaign)
        return found

    def current(self, campaign_id: str) -> Leasable | None:
        """Return a campaign as it is now; None if it has ended or is not leased here."""
        if not self.campaigns.is_offered(campaign_id):
            return None
        known = self.campaigns.known(campaign_id)
        return self.read(campaign_id) if known is None or self.campaigns.is_aged(campaign_id) else known

    def read(self, campaign_id: str, *, reason: str = "", told: str = "") -> Leasable | None:
        """Read a campaign, end what is exhausted of it, and return it; None if it has ended.

        A campaign whose last batch is done ends with `reason`, or with that of a batch that was exhausted. Session
        `told` learns of it now.
        """
        try:
            found = self.campaigns.read(campaign_id)
        except UnknownName:
            self.campaigns.over(campaign_id)
            return None
        progress = found.progress
        if not progress.active:
            self.campaigns.over(campaign_id)
            self.leases.forget(campaign_id, told=told)
            return None
        reasons = {batch: schedule.exhausted(progress, batch) for batch in schedule.batches(progress.spec)}
        for batch in set(reasons).difference(progress.done, found.batches):
            self.store.finish_batch(campaign_id, batch, str(reasons[batch]), now_s=self.wall_clock())
            self.leases.forget(campaign_id, batch, told=told)
        if found.batches:
            return found
        self.finish(campaign_id, reason or next(filter(None, reasons.values()), "precision"), "done", told=told)
        return None

    def finish(self, campaign_id: str, reason: str, state: Literal["done", "cancelled"], *, told: str = "") -> None:
        """End a campaign; session `told` learns of it now, the others when they call. Raises UnknownName."""
        self.store.finish_campaign(campaign_id, reason, self.wall_clock(), state=state)
        self.campaigns.over(campaign_id)
        self.leases.forget(campaign_id, told=told)
        self.touch(campaign_id, Event(kind="finished", campaign_id=campaign_id, reason=reason))
        self.call_up()

    def fail(self, campaign_id: str, error: Exception) -> None:
        """Lease a campaign no more: its owner sees the error in `wait`."""
        self.campaigns.errors.setdefault(campaign_id, error)
        self.touch(campaign_id)

    # --- leases

    def end(self, lease: HeldLease, state: LeaseState, *, told: bool) -> None:
        """End a lease: its batch is pending again, unless it is done."""
        self.leases.end(lease, state, told=told)
        self.touch(lease.campaign_id)
        self.call_up()

    def expire(self) -> None:
        """End the leases that have run out; not before a process that was stopped has seen who is still there."""
        if self.overslept():
            return
        lost, changed = self.leases.expire()
        for lease in lost:
            self.touch(lease.campaign_id, Event(kind="lost", agent=lease.agent, campaign_id=lease.campaign_id))
        if changed:
            self.call_up()

    def wait_s(self) -> float:
        """Return how long one may wait without looking at the clock: until the next lease expires, in bounds."""
        left_s = self.leases.next_expiry_s()
        return MAX_WAIT_S if left_s is None else min(max(left_s, 0.01), MAX_WAIT_S)

    # --- who waits

    @property
    def things(self) -> int:
        """A number that changes whenever there may be work for an agent that asked in vain."""
        return self._things

    def call_up(self, *, again: bool = False) -> None:
        """There may be work now: wake as many waiting agents as could get some. `again`: one was woken in vain."""
        if not again:
            self._things += 1
        waiters = list(self.waiting.idle(self._things))
        if not waiters:
            return
        leases = [lease for lease in self.leases.all() if not lease.ending]
        holders = Counter((lease.campaign_id, lease.batch) for lease in leases)
        room: list[list[Leasable]] = []
        for campaign in self.leasable():
            campaign_id, most = campaign.progress.campaign_id, campaign.progress.spec.agents
            room.append([campaign] * sum(max(0, most - holders[(campaign_id, batch)]) for batch in campaign.batches))
        busy = {name for lease in self.leases.all() for name in (lease.agent, lease.domain)}
        for waiter in waiters:
            room = [slots for slots in room if slots]
            if not room:
                return
            asker = waiter.asker
            if busy.isdisjoint((asker.name, asker.domain)) and not self.fleet.barred(asker.name):
                slots = next((slots for slots in room if schedule.suits(slots[0].progress.spec, asker)), None)
                if slots is not None:
                    waiter.called.set()
                    busy.update((asker.name, asker.domain))
                    slots.pop()

    def call_all(self) -> None:
        """Let everybody that waits look again: agents and owners."""
        self._things += 1
        self.waiting.call_all()
        self.touch()

    # --- owners

    def touch(self, campaign_id: str = "", event: Event | None = None) -> None:
        """Something changed: wake the owner who waits for that campaign, or all. Events are told by `tell`."""
        self._serials[campaign_id] += 1
        if event is not None:
            self._events.append(event)
        for name in (campaign_id,) if campaign_id else tuple(self._changed):
            if name in self._changed:
                self._changed[name].notify_all()

    def serial(self, campaign_id: str) -> int:
        """Return the number of changes so far that an owner of a campaign may want to see."""
        return self._serials[campaign_id] + self._serials[""]

    def await_change(self, campaign_id: str, timeout_s: float) -> None:
        """Wait for a change, letting go of the lock meanwhile."""
        self._changed.setdefault(campaign_id, threading.Condition(self.lock)).wait(timeout_s)

    def tell(self) -> None:
        """Tell the events so far; called without the lock."""
        with self.lock:
            events, self._events = self._events, []
        for event in events:
            for callback in tuple(self.on_event):
                callback(event)

    # --- sick devices

    def quarantine(self, live: Live, reason: str) -> None:
        """Lease nothing to a sick device any more; its failures are not those of its ops."""
        name = live.state.name
        self.store.set_agent(name, quarantined=reason)
        failed: dict[str, list[str]] = defaultdict(list)
        for campaign_id, op_id in live.streak:
            failed[campaign_id].append(op_id)
        for campaign_id, op_ids in failed.items():
            self.store.excuse_failures(campaign_id, op_ids, agent=name)
            self.campaigns.changed(campaign_id)
        live.streak = ()
        self.fleet.flags = self.store.agent_flags()
        for lease in self.leases.of_agent(name):
            self.end(lease, "cancelled", told=False)
        self.touch(event=Event(kind="quarantined", agent=name, reason=reason))
        self.call_up()

    def suspect(self, live: Live) -> None:
        """Quarantine an agent if the ops that failed on it in a row pass on others."""
        name = live.state.name
        of_campaign: dict[str, list[str]] = defaultdict(list)
        for campaign_id, op_id in live.streak:
            of_campaign[campaign_id].append(op_id)
        passed: set[tuple[str, str]] = set()
        for campaign_id, op_ids in of_campaign.items():
            with suppress(UnknownName):
                passed.update((campaign_id, op) for op in self.store.passed(campaign_id, op_ids, besides=name))
        reason = schedule.sickness(live.streak, passed)
        if reason is not None:
            self.quarantine(live, reason)
