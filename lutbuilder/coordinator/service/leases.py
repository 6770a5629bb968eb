"""The leases a coordinator knows of: its own, which it extends, and those of the store's other coordinators.

A lease of ours is lost when its deadline on our monotonic clock passes. One of another coordinator is lost when its
beat, a number in the store, has not moved for a ttl and the silence its agent announced, by our clock: clocks of
machines are never compared, and wall clocks decide nothing. Whoever hears of a lease's agent takes the lease over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import Asker, HeldLease, LeaseState, Offer
from lutbuilder.coordinator.store import Store, StoredLease

NEVER_S = float("inf")


class Leases:
    """Leases in memory over those of the store. The caller holds the board's lock.

    What the store refuses is not done in memory either: every method writes there first. Raises StoreError.
    """

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        ttl_s: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._owner = owner
        self._ttl_s = ttl_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._held: dict[str, HeldLease] = {}  # in the order they were given
        self._unsaid: set[str] = set()  # extended since their last beat
        self._beaten_s: dict[str, float] = {}

    def all(self) -> tuple[HeldLease, ...]:
        """Return every lease, also those that are ending and those of other coordinators."""
        return tuple(self._held.values())

    def get(self, lease_id: str) -> HeldLease | None:
        """Return a lease that has not ended."""
        lease = self._held.get(lease_id)
        return None if lease is None or lease.ending else lease

    def of_session(self, session_id: str) -> tuple[HeldLease, ...]:
        """Return the leases a session holds, in the order they were given."""
        return tuple(lease for lease in self._held.values() if lease.session_id == session_id and not lease.ending)

    def of_agent(self, name: str) -> tuple[HeldLease, ...]:
        """Return the leases an agent holds."""
        return tuple(lease for lease in self._held.values() if lease.agent == name and not lease.ending)

    # --- beginning

    def grant(self, lease_id: str, offer: Offer, asker: Asker, *, room: int, ahead_of: str = "") -> HeldLease | None:
        """Give a lease, which cannot expire until `start`; None if the store knows better: somebody was faster."""
        stored = self._store.grant_lease(
            lease_id,
            campaign_id=offer.campaign_id,
            batch=offer.batch,
            session_id=asker.session_id,
            first_round=offer.first_round,
            rounds=offer.rounds,
            owner=self._owner,
            domain=asker.domain,
            now_s=self._wall_clock(),
            room=room,
            ahead_of=ahead_of,
        )
        if stored is None:
            return None
        self._take_in(stored, deadline_s=NEVER_S)
        self._beaten_s[lease_id] = self._clock()
        return self._held[lease_id]

    def hold(self, lease: HeldLease, offer: Offer) -> HeldLease:
        """Keep a lease from expiring while it is made ready again for its agent, with the rounds of `offer`."""
        self._reshape(lease, offer)
        held = replace(
            self._held[lease.lease_id], first_round=offer.first_round, rounds=offer.rounds, deadline_s=NEVER_S
        )
        self._held[lease.lease_id] = held
        return held

    def unhold(self, lease_id: str) -> None:
        """Let a lease's time run: whatever becomes of it, it does not live for ever."""
        lease = self._held.get(lease_id)
        if lease is not None:
            self._held[lease_id] = replace(lease, deadline_s=self._clock() + self._ttl_s)

    def start(self, lease: HeldLease, offer: Offer) -> HeldLease:
        """Let a lease's time run, with the rounds of `offer`."""
        self._reshape(lease, offer)
        held = replace(
            self._held[lease.lease_id],
            first_round=offer.first_round,
            rounds=offer.rounds,
            deadline_s=self._clock() + self._ttl_s,
        )
        self._held[lease.lease_id] = held
        return held

    def _reshape(self, lease: HeldLease, offer: Offer) -> None:
        if (lease.first_round, lease.rounds) != (offer.first_round, offer.rounds):
            self._store.reshape_lease(lease.lease_id, first_round=offer.first_round, rounds=offer.rounds)

    def adopt(self, session_id: str) -> None:
        """Take over what a session that calls here holds in the store, and forget what it does not hold any more."""
        stored = {lease.lease_id: lease for lease in self._store.adopt_leases(session_id, self._owner)}
        for lease in self.of_session(session_id):
            if lease.lease_id not in stored:
                self._vanish(lease)
        for found in stored.values():
            known = self._held.get(found.lease_id)
            self._take_in(found, deadline_s=self._from_now_s(found) if known is None else known.deadline_s)
            self._beaten_s[found.lease_id] = self._clock()

    # --- going on

    def extend(self, session_id: str, *, quiet_s: float = 0.0, shorten: bool = True) -> None:
        """Give all leases of a session that has called another ttl, and the silence it announces.

        A call ends the silence announced before it, unless it may be an old one that comes again (not `shorten`).
        """
        self._keep(session_id, quiet_s, shorten)
        if quiet_s > 0.0:  # the other coordinators have to know before the silence begins
            self._beat(lease.lease_id for lease in self.of_session(session_id))
            if not self._owns_all(session_id):  # one of them had taken it over meanwhile
                self._keep(session_id, quiet_s, shorten)
                self._beat(lease.lease_id for lease in self.of_session(session_id))

    def _keep(self, session_id: str, quiet_s: float, shorten: bool) -> None:
        if not self._owns_all(session_id):
            self.adopt(session_id)
        until_s = self._clock() + self._ttl_s + quiet_s
        for lease in self.of_session(session_id):
            longer = not shorten or lease.deadline_s == NEVER_S
            self._held[lease.lease_id] = replace(
                lease, deadline_s=max(lease.deadline_s, until_s) if longer else until_s
            )
            self._unsaid.add(lease.lease_id)

    def _owns_all(self, session_id: str) -> bool:
        return all(lease.owner == self._owner for lease in self.of_session(session_id))

    def reported(self, lease_id: str, round: int) -> None:
        """Remember that a lease's round has come."""
        lease = self.get(lease_id)
        if lease is not None:
            self._held[lease_id] = replace(lease, reported=max(lease.reported, round))

    def beat(self) -> None:
        """Tell the other coordinators which leases live: each at most once in a quarter of the ttl."""
        now_s = self._clock()
        self._beat(
            [
                lease.lease_id
                for lease in self._held.values()
                if lease.owner == self._owner
                and not lease.ending
                and (lease.lease_id in self._unsaid or lease.deadline_s == NEVER_S)
                and now_s - self._beaten_s.get(lease.lease_id, -NEVER_S) >= self._ttl_s / 4
            ]
        )

    def _beat(self, lease_ids: Iterable[str]) -> None:
        now_s = self._clock()
        quiet_s = {
            lease_id: 0.0 if (until_s := self._held[lease_id].deadline_s) == NEVER_S else until_s - now_s - self._ttl_s
            for lease_id in lease_ids
        }
        if not quiet_s:
            return
        beaten = self._store.beat_leases(self._owner, {name: max(0.0, s) for name, s in quiet_s.items()})
        for lease_id in quiet_s:
            if lease_id not in beaten:
                continue
            lease = self._held[lease_id]
            self._held[lease_id] = replace(lease, beat=lease.beat + 1)
            self._beaten_s[lease_id] = now_s
            self._unsaid.discard(lease_id)
        if len(beaten) < len(quiet_s):  # not ours any more: it has ended, or went to another coordinator
            self.refresh()

    def refresh(self) -> bool:
        """Read what the other coordinators did; return whether anything began or ended."""
        stored = {lease.lease_id: lease for lease in self._store.active_leases()}
        changed = False
        for lease in self.all():
            if lease.lease_id not in stored and not lease.ending:
                self._vanish(lease)
                changed = True
        for found in stored.values():
            known = self._held.get(found.lease_id)
            changed |= known is None
            if known is None or (found.owner != self._owner and (found.owner, found.beat) != (known.owner, known.beat)):
                self._take_in(found, deadline_s=self._from_now_s(found))
        return changed

    def shift(self, seconds: float) -> None:
        """Move every deadline: so long this process did not run, and could not hear anybody."""
        for lease in self.all():
            self._held[lease.lease_id] = replace(lease, deadline_s=lease.deadline_s + seconds)

    # --- ending

    def end(self, lease: HeldLease, state: LeaseState, *, told: bool) -> None:
        """End a lease. Unless its agent is told now, it keeps its clock domain until it is."""
        self._store.end_lease(lease.lease_id, state, now_s=self._wall_clock())
        self._gone(lease, told=told)

    def forget(self, campaign_id: str, batch: int | None = None, *, told: str = "") -> None:
        """Forget the leases of a batch, or of a campaign, that the store has ended; session `told` is told now."""
        for lease in self.all():
            if lease.campaign_id == campaign_id and batch in (None, lease.batch) and not lease.ending:
                self._gone(lease, told=lease.session_id == told)

    def forget_agent(self, name: str) -> None:
        """Forget all leases of an agent that has begun anew; the store has ended them."""
        for lease in self.all():
            if lease.agent == name:
                self._gone(lease, told=True)

    def told(self, session_id: str) -> bool:
        """Note that a session knows which of its leases are over; return whether that set a clock domain free."""
        over = [lease for lease in self.all() if lease.session_id == session_id and lease.ending]
        for lease in over:
            self._gone(lease, told=True)
        return bool(over)

    def expire(self) -> tuple[tuple[HeldLease, ...], bool]:
        """End what has run out: return the leases that are lost, and whether a clock domain is free."""
        lost = []
        over = schedule.expired(self._held.values(), now_s=self._clock())
        for lease in over:
            # Not if another coordinator has heard of it meanwhile: then its beat has moved.
            if not lease.ending and self._store.end_lease(
                lease.lease_id, "lost", now_s=self._wall_clock(), beat=lease.beat
            ):
                lost.append(lease)
            self._gone(lease, told=True)
        return tuple(lost), bool(over)

    def next_expiry_s(self) -> float | None:
        """Return the seconds until the first lease expires, at least 0; None if there is none."""
        return schedule.next_expiry_s(self._held.values(), now_s=self._clock())

    # --- the parts

    def _take_in(self, stored: StoredLease, *, deadline_s: float) -> None:
        known = self._held.get(stored.lease_id)
        self._held[stored.lease_id] = HeldLease(
            lease_id=stored.lease_id,
            epoch=stored.epoch,
            campaign_id=stored.campaign_id,
            batch=stored.batch,
            session_id=stored.session_id,
            agent=stored.agent,
            first_round=stored.first_round,
            rounds=stored.rounds,
            deadline_s=deadline_s,
            domain=stored.domain,
            owner=stored.owner,
            beat=stored.beat,
            reported=-1 if known is None else known.reported,
        )

    def _from_now_s(self, stored: StoredLease) -> float:
        return self._clock() + self._ttl_s + stored.quiet_s

    def _vanish(self, lease: HeldLease) -> None:
        """It has ended in the store. If its agent calls here, it may not know yet."""
        self._gone(lease, told=lease.owner != self._owner)

    def _gone(self, lease: HeldLease, *, told: bool) -> None:
        self._unsaid.discard(lease.lease_id)
        self._beaten_s.pop(lease.lease_id, None)
        if told:
            self._held.pop(lease.lease_id, None)
        elif lease.lease_id in self._held:
            until_s = self._clock() + self._ttl_s if lease.deadline_s == NEVER_S else lease.deadline_s
            self._held[lease.lease_id] = replace(lease, ending=True, deadline_s=until_s)
