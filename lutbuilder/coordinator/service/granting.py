"""Who asks for work gets it: the lease it has, the next one, or one to go on with after the one in hand."""

from __future__ import annotations

from collections.abc import Callable

from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import HeldLease, Offer
from lutbuilder.coordinator.service.board import Board
from lutbuilder.coordinator.service.events import Artifacts, Event, Narrow
from lutbuilder.coordinator.service.fleet import Live
from lutbuilder_agent import runtimes
from lutbuilder_agent.errors import SpecError, StoreError, UnsupportedOp
from lutbuilder_agent.records import DeviceState, Failure, Lease, LeasedOp
from lutbuilder_agent.wire.api import Idle

ASK_AGAIN_S: dict[DeviceState, float] = {"ok": 1.0, "hot": 30.0, "low_battery": 60.0, "draining": 5.0}
PATIENCE_TTLS = 4.0  # how long an op that failed on one agent waits for another one to try it, in ttls

Granted = tuple[HeldLease, Offer, CampaignSpec]


class Granting:
    """Grants leases and fills them with artifacts."""

    def __init__(self, board: Board, artifacts: Artifacts, narrow: Narrow, new_id: Callable[[], str]) -> None:
        self._board = board
        self._artifacts = artifacts
        self._narrow = narrow
        self._new_id = new_id
        self._withheld_s: dict[tuple[str, str, int], float] = {}  # agent, campaign, batch: since when

    # --- with the lock held

    def give_back(self, live: Live, state: DeviceState) -> Idle:
        """End what an agent holds that cannot measure now."""
        for lease in self._board.leases.of_agent(live.state.name):
            self._board.end(lease, "cancelled", told=True)
        if self._board.leases.told(live.state.session_id):
            self._board.call_up()
        return Idle(ask_again_s=ASK_AGAIN_S[state], shut_down=self._board.shut_down)

    def grant(self, live: Live) -> Granted | None:
        """Return the session's lease, the one it has or a new one; it cannot expire until it is filled."""
        board = self._board
        if board.leases.told(live.state.session_id):
            board.call_up()
        for held in board.leases.of_session(live.state.session_id):
            again = self._again(live, held)
            if again is not None:
                return again
        return self._new(live, None)

    def grant_ahead(self, live: Live, ahead_of: str) -> Granted | None:
        """Return what the session goes on with after a lease it holds; None if there is nothing, or no such lease."""
        held = self._board.leases.of_session(live.state.session_id)
        first = next((lease for lease in held if lease.lease_id == ahead_of), None)
        if first is None:
            return None
        following = [lease for lease in held if lease is not first]
        return self._again(live, following[0]) if following else self._new(live, first)

    def _again(self, live: Live, held: HeldLease) -> Granted | None:
        """Give a lease once more, as far as its rounds have not come; end it if there is nothing left of it."""
        board = self._board
        board.leases.extend(live.state.session_id)
        current = board.leases.get(held.lease_id)
        if current is None:  # it has ended at another coordinator
            return None
        campaign = None if board.fleet.barred(live.state.name) else board.current(held.campaign_id)
        if board.leases.get(held.lease_id) is None:  # reading its campaign ended it
            return None
        offer = None if campaign is None else schedule.resumed(campaign.progress, current)
        if campaign is None or offer is None:
            board.end(current, "cancelled", told=True)
            return None
        return board.leases.hold(current, offer), offer, campaign.progress.spec

    def _new(self, live: Live, ahead_of: HeldLease | None) -> Granted | None:
        board = self._board
        if board.fleet.barred(live.state.name):
            return None
        others = board.fleet.others(live.state.name, board.leases.all())
        refreshed = False
        while True:
            campaigns = board.leasable()
            found = schedule.next_offer(
                campaigns,
                board.leases.all(),
                live.asker,
                board.campaigns.shares,
                ahead_of=ahead_of,
                others=others,
                overdue=self._overdue(live),
            )
            if found is None:
                return None
            offer, given = found
            if board.campaigns.is_aged(offer.campaign_id):  # its rounds may all be in by now
                board.read(offer.campaign_id)
                continue
            spec = next(c.progress.spec for c in campaigns if c.progress.campaign_id == offer.campaign_id)
            held = board.leases.grant(
                self._new_id(),
                offer,
                live.asker,
                room=spec.agents,
                ahead_of="" if ahead_of is None else ahead_of.lease_id,
            )
            if held is not None:
                board.campaigns.shares = given
                board.touch(
                    offer.campaign_id,
                    Event(kind="leased", agent=live.state.name, campaign_id=offer.campaign_id, round=offer.first_round),
                )
                return held, offer, spec
            if refreshed:
                return None
            refreshed = True  # another coordinator was faster: see what it left
            board.leases.refresh()
            board.campaigns.changed(offer.campaign_id)
            board.fleet.flags = board.store.agent_flags()
            if board.fleet.barred(live.state.name):
                return None

    def _overdue(self, live: Live) -> set[tuple[str, int]]:
        """Return what was withheld from an agent for long enough, and keep count of it."""
        board = self._board
        name, now_s = live.state.name, board.clock()
        others = board.fleet.others(name, board.leases.all())
        overdue = set()
        for campaign in board.leasable():
            if all(failure.final for failure in campaign.progress.failures):
                continue
            for batch in campaign.batches:
                key = (name, campaign.progress.campaign_id, batch)
                if not schedule.withheld(campaign.progress, batch, live.asker, others):
                    self._withheld_s.pop(key, None)
                elif now_s - self._withheld_s.setdefault(key, now_s) >= PATIENCE_TTLS * board.ttl_s:
                    overdue.add(key[1:])
        return overdue

    # --- without the lock

    def filled(self, held: HeldLease, offer: Offer, spec: CampaignSpec) -> Lease | None:
        """Return the lease with its artifacts named, or None if it came to nothing.

        An op that cannot be built is a failure of that op, stored, and the lease is made anew without it; anything else
        that goes wrong ends the leasing of its campaign, but for the store, which may be there again later.
        """
        board = self._board
        failed = False
        ops: list[LeasedOp] = []
        try:
            offer = self._narrow(held, offer)
            format = runtimes.entry(spec.plan.runtime)[1].format
            for op in offer.ops:
                try:
                    artifact = self._artifacts.ref(op, format)
                    ops.append(LeasedOp(op_id=op.op_id, artifact=artifact, every=op.every, solo=op.is_whole))
                except (SpecError, UnsupportedOp) as error:
                    failure = Failure(
                        op_id=op.op_id, round=held.first_round, reason="unsupported", detail=f"not built: {error}"
                    )
                    board.store.record_failure(held.campaign_id, held.session_id, failure)
                    failed = True
            with board.lock:
                current = board.leases.get(held.lease_id)
                if current is None:  # fenced or cancelled meanwhile
                    return None
                if failed:
                    board.campaigns.changed(held.campaign_id)
                    board.end(current, "cancelled", told=True)
                    return None
                current = board.leases.start(current, offer)
        except Exception as error:  # whatever it is, the owner of the campaign has to see it: `wait` raises it
            with board.lock:
                board.leases.unhold(held.lease_id)
                if not isinstance(error, StoreError):
                    board.fail(held.campaign_id, error)
                current = board.leases.get(held.lease_id)
                if current is not None:
                    board.end(current, "cancelled", told=True)
            raise
        return Lease(
            lease_id=current.lease_id,
            epoch=current.epoch,
            campaign_id=current.campaign_id,
            ops=tuple(ops),
            plan=spec.plan,
            first_round=current.first_round,
            rounds=current.rounds,
            ttl_s=board.ttl_s,
        )
