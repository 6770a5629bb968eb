"""The campaigns a coordinator leases, with what was last known of them, and their shares of the devices' time.

What the store says of a campaign is read again only when something happened that decides what is leased, or right
before a lease of it is given: the work for a report does not grow with the campaigns, nor with what they have measured.
"""

from __future__ import annotations

from collections.abc import Collection

from lutbuilder.coordinator import schedule, shares
from lutbuilder.coordinator.schedule import CampaignProgress, Leasable
from lutbuilder.coordinator.shares import Claim, Shares
from lutbuilder.coordinator.store import Store


class Campaigns:
    """Campaigns by id. The caller holds the board's lock. Raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._own: dict[str, None] = {}  # offered here, in this order
        self._wanted: tuple[str, ...] = ()  # what the owner named last
        self._known: dict[str, Leasable] = {}
        self._aged: set[str] = set()  # rounds came in since it was read
        self._measured_ns: dict[str, int] = {}  # how much of each is in the shares
        self.shares: Shares = {}
        self.errors: dict[str, Exception] = {}

    def offer(self, campaign_id: str) -> None:
        """Lease a campaign from now on."""
        self._own.setdefault(campaign_id)

    def is_offered(self, campaign_id: str) -> bool:
        """Return whether a campaign is leased here, and nothing is wrong with it."""
        return (campaign_id in self._own or campaign_id in self._wanted) and campaign_id not in self.errors

    def ids(self) -> list[str]:
        """Return the campaigns that are leased here."""
        return [name for name in dict.fromkeys((*self._own, *self._wanted)) if name not in self.errors]

    def over(self, campaign_id: str) -> None:
        """Forget a campaign that has ended."""
        self._own.pop(campaign_id, None)
        self._wanted = tuple(name for name in self._wanted if name != campaign_id)
        for known in (self._known, self._measured_ns):
            known.pop(campaign_id, None)
        self._aged.discard(campaign_id)

    def known(self, campaign_id: str) -> Leasable | None:
        """Return a campaign as it was last read; None: it has to be read."""
        return self._known.get(campaign_id)

    def is_aged(self, campaign_id: str) -> bool:
        """Return whether rounds came in since a campaign was read."""
        return campaign_id in self._aged

    def read(self, campaign_id: str) -> Leasable:
        """Return a campaign as the store has it now, and charge what was measured of it elsewhere."""
        progress = self._store.progress(campaign_id)
        self._charge(progress, progress.measured_ns)
        found = self._known[campaign_id] = schedule.leasable(progress)
        self._aged.discard(campaign_id)
        return found

    def changed(self, campaign_id: str) -> None:
        """Something happened that decides what is leased of a campaign: it has to be read again."""
        self._known.pop(campaign_id, None)

    def measured(self, campaign_id: str, round_ns: int) -> None:
        """A round came in."""
        self._aged.add(campaign_id)
        known = self._known.get(campaign_id)
        if known is not None:
            self._charge(known.progress, self._measured_ns.get(campaign_id, 0) + round_ns)

    def look_again(self, wanted: Collection[str]) -> None:
        """Other coordinators may have done anything meanwhile. `wanted`: lease these beside those offered here."""
        self._known.clear()
        self._wanted = tuple(wanted)

    def _charge(self, progress: CampaignProgress, measured_ns: int) -> None:
        campaign_id = progress.campaign_id
        before_ns = self._measured_ns.setdefault(campaign_id, progress.measured_ns)  # of before does not count
        if measured_ns > before_ns:
            claim = Claim(
                campaign_id=campaign_id,
                environment=progress.spec.env_id,
                priority=progress.priority,
                owner=progress.owner,
            )
            self.shares = shares.charged(self.shares, claim, (measured_ns - before_ns) / 1e9)
            self._measured_ns[campaign_id] = measured_ns
