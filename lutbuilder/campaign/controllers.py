"""The controllers of the campaigns under way, by campaign: what a coordinator asks when it serves several at once.

A campaign that this process alone runs spends its budget in wall time. One that shares agents with others spends it in
the time that agents were busy with it: from a lease, or the agent's report before, to each report. Waiting in a queue
is never counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lutbuilder.campaign.controller import Controller
from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer
from lutbuilder.coordinator.store import Store
from lutbuilder_agent.records import Report

PUBLISH_S = 3.0  # of a budget kept for the fit and the file


@dataclass(slots=True)
class BusyClock:
    """Seconds that agents were busy with a campaign, of all agents that it may have at once. Mutable; guarded outside.

    Two agents that work side by side for a minute make a minute where the campaign allows two.
    """

    agents: int
    busy_s: float = 0.0
    leased_s: dict[str, float] = field(default_factory=dict)  # lease -> when it was given

    def leased(self, lease_id: str, now_s: float) -> None:
        """A lease begins."""
        self.leased_s[lease_id] = now_s

    def reported(self, lease_id: str, now_s: float, *, before_s: float | None) -> None:
        """A report of a lease came; the agent's one before, of any lease, at `before_s`; None: we know of none."""
        known_s = [moment for moment in (before_s, self.leased_s.get(lease_id)) if moment is not None]
        if known_s:  # the first word of a lease of an earlier process says nothing of when it began
            self.busy_s += (now_s - max(known_s)) / self.agents


class Controllers:
    """What `Coordinator` takes as `decide` and `narrow`, for any number of campaigns. Safe from any thread.

    With `on_demand`, a campaign that nobody here added gets a controller made from the store when it is first asked
    for: another coordinator of the same store may run its job. Without, nothing is decided for a strange campaign.
    """

    def __init__(self, store: Store, *, on_demand: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._on_demand = on_demand
        self._clock = clock
        self._lock = threading.Lock()  # guards everything below
        self._controllers: dict[str, Controller] = {}
        self._clocks: dict[str, BusyClock] = {}
        self._heard_s: dict[str, float] = {}  # session -> when its last report came
        self._visits: dict[str, int] = {}

    def add(self, spec: CampaignSpec, *, elapsed_s: Callable[[], float] | None = None) -> Controller:
        """Return the controller of a campaign of the store, which is made now if there is none.

        `elapsed_s` is the clock of its budget; None: busy time.
        """
        with self._lock:
            found = self._controllers.get(spec.key)
        if found is not None:
            return found
        clock = elapsed_s or (lambda: self.busy_s(spec.key))
        controller = Controller(self._store, spec, elapsed_s=clock, reserve_s=PUBLISH_S)
        with self._lock:
            if elapsed_s is None:
                self._clocks.setdefault(spec.key, BusyClock(agents=spec.agents))
            return self._controllers.setdefault(spec.key, controller)

    def remove(self, campaign_id: str) -> None:
        """Forget a campaign that has ended."""
        with self._lock:
            self._controllers.pop(campaign_id, None)
            self._clocks.pop(campaign_id, None)
            self._visits.pop(campaign_id, None)
            if not self._clocks:
                self._heard_s.clear()

    def decide(self, campaign_id: str, report: Report) -> Decision:
        """Return what follows from a committed report; nothing for a campaign that is strange here."""
        controller = self._of(campaign_id)
        with self._lock:
            clock, now_s = self._clocks.get(campaign_id), self._clock()
            if clock is not None:
                clock.reported(report.lease_id, now_s, before_s=self._heard_s.get(report.session_id))
            self._heard_s[report.session_id] = now_s
        return Decision() if controller is None else controller.decide(campaign_id, report)

    def narrow(self, lease: HeldLease, offer: Offer) -> Offer:
        """Return what of an offer goes into a lease."""
        controller = self._of(offer.campaign_id)
        with self._lock:
            clock = self._clocks.get(offer.campaign_id)
            if clock is not None:
                clock.leased(lease.lease_id, self._clock())
        return offer if controller is None else controller.next_lease(lease, offer)

    def busy_s(self, campaign_id: str) -> float:
        """Return how long agents were busy with a campaign since this process added it; 0 if it is not served."""
        with self._lock:
            clock = self._clocks.get(campaign_id)
            return 0.0 if clock is None else clock.busy_s

    def seen(self, campaign_id: str, n_timings: int) -> None:
        """Count visits that came in, for a progress line."""
        with self._lock:
            self._visits[campaign_id] = self._visits.get(campaign_id, 0) + n_timings

    def visits(self, campaign_id: str) -> int:
        """Return how many visits of a campaign came in since this process added it."""
        with self._lock:
            return self._visits.get(campaign_id, 0)

    def _of(self, campaign_id: str) -> Controller | None:
        with self._lock:
            found = self._controllers.get(campaign_id)
        if found is not None or not self._on_demand:
            return found
        for other in tuple(self._controllers):  # those that ended elsewhere: nobody here was told
            if self._store.campaign(other).state != "active":
                self.remove(other)
        return self.add(self._store.campaign(campaign_id).spec)
