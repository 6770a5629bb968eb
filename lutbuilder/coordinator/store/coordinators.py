"""Coordinators: who else works on this store, told by beats, because nobody knows what time it is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from lutbuilder.coordinator.store.engine import Part, retried
from lutbuilder.coordinator.store.schema import campaigns, coordinators, jobs, leases
from lutbuilder.coordinator.store.states import StoreCounts


class Coordinators(Part):
    """The coordinators of a store, and how much there is for them."""

    @retried
    def beat_coordinator(self, owner: str) -> None:
        """Say that a coordinator lives. One whose beat stands still for long, on the reader's own clock, is dead."""
        with self._db.writing() as connection:
            here = coordinators.c.coordinator_id == owner
            counted = connection.execute(coordinators.update().where(here).values(beat=coordinators.c.beat + 1))
            if not counted.rowcount:
                connection.execute(coordinators.insert().values(coordinator_id=owner, beat=1))

    @retried
    def coordinators(self) -> Mapping[str, int]:
        """Return the beat of every coordinator that has not gone."""
        with self._db.reading() as connection:
            return {row.coordinator_id: row.beat for row in connection.execute(sa.select(coordinators))}

    @retried
    def forget_coordinator(self, owner: str) -> None:
        """A coordinator has gone, or is dead for sure: its leases are anybody's, its jobs wait for another runner."""
        with self._db.writing() as connection:
            connection.execute(coordinators.delete().where(coordinators.c.coordinator_id == owner))
            connection.execute(
                leases.update().where(leases.c.state == "active", leases.c.owner == owner).values(owner="")
            )
            connection.execute(
                jobs.update().where(jobs.c.state == "running", jobs.c.runner == owner).values(state="queued", runner="")
            )

    @retried
    def counts(self) -> StoreCounts:
        """Return how many campaigns, jobs and leases there are in which state."""
        with self._db.reading() as connection:
            by_state = [
                {row[0]: row[1] for row in connection.execute(sa.select(column, sa.func.count()).group_by(column))}
                for column in (campaigns.c.state, jobs.c.state, leases.c.state)
            ]
        return StoreCounts(campaigns=by_state[0], jobs=by_state[1], leases=by_state[2])
