"""Campaigns: what is to be measured, for whom, and how far it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, cast

import sqlalchemy as sa

from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator.schedule import CampaignProgress
from lutbuilder.coordinator.store.engine import Database, Part, retried
from lutbuilder.coordinator.store.failures import failures_of
from lutbuilder.coordinator.store.schema import batch_rounds, batches, campaigns, drops, leases
from lutbuilder.coordinator.store.states import CampaignPhase, CampaignState


class Campaigns(Part):
    """The campaigns of a store."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._specs: dict[str, CampaignSpec] = {}  # parsed once: a campaign's spec never changes

    @retried
    def create_campaign(self, spec: CampaignSpec, *, now_s: float, priority: int = 0, owner: str = "") -> str:
        """Make sure the campaign exists, and return its id, `spec.key`. One that is there stays as it is, even done.

        Only its priority rises, while it is active: whoever asks for the same is as urgent as the most urgent of them.
        """
        with self._db.writing() as connection:
            here = campaigns.c.campaign_id == spec.key
            known = connection.execute(sa.select(campaigns.c.state, campaigns.c.priority).where(here)).first()
            if known is None:
                connection.execute(
                    campaigns.insert().values(
                        campaign_id=spec.key,
                        spec=json.dumps(spec.canonical()),
                        state="active",
                        reason="",
                        created_s=now_s,
                        priority=priority,
                        owner=owner,
                    )
                )
            elif known.state == "active" and known.priority < priority:
                connection.execute(campaigns.update().where(here).values(priority=priority))
        return spec.key

    @retried
    def campaign(self, campaign_id: str) -> CampaignState:
        """Return a campaign and how far it is. Raises UnknownName."""
        with self._db.reading() as connection:
            row = connection.execute(sa.select(campaigns).where(campaigns.c.campaign_id == campaign_id)).first()
        if row is None:
            raise self._db.unknown_campaign(campaign_id)
        return self._state(row)

    @retried
    def campaigns(self, *, active: bool = False) -> tuple[CampaignState, ...]:
        """Return every campaign, or every active one, oldest first."""
        wanted = sa.select(campaigns).order_by(campaigns.c.created_s, campaigns.c.campaign_id)
        if active:
            wanted = wanted.where(campaigns.c.state == "active")
        with self._db.reading() as connection:
            rows = connection.execute(wanted).all()
        return tuple(self._state(row) for row in rows)

    @retried
    def finish_campaign(
        self, campaign_id: str, reason: str, now_s: float, *, state: Literal["done", "cancelled"] = "done"
    ) -> None:
        """End a campaign, and every lease of it. One that has ended keeps its first reason. Raises UnknownName."""
        with self._db.writing() as connection:
            if phase_of(self._db, connection, campaign_id) == "active":
                connection.execute(
                    campaigns.update()
                    .where(campaigns.c.campaign_id == campaign_id)
                    .values(state=state, reason=reason, finished_s=now_s)
                )
                connection.execute(
                    leases.update()
                    .where(leases.c.campaign_id == campaign_id, leases.c.state == "active")
                    .values(state=state, ended_s=now_s)
                )

    @retried
    def progress(self, campaign_id: str) -> CampaignProgress:
        """Return what decides what is still to be leased. Raises UnknownName."""
        with self._db.reading() as connection:
            row = connection.execute(sa.select(campaigns).where(campaigns.c.campaign_id == campaign_id)).first()
            if row is None:
                raise self._db.unknown_campaign(campaign_id)
            done = connection.scalars(sa.select(batches.c.batch).where(batches.c.campaign_id == campaign_id)).all()
            rounds = connection.execute(
                sa.select(batch_rounds.c.batch, batch_rounds.c.rounds).where(batch_rounds.c.campaign_id == campaign_id)
            ).all()
            dropped = connection.scalars(sa.select(drops.c.op_id).where(drops.c.campaign_id == campaign_id)).all()
            failures = failures_of(connection, campaign_id)
        return CampaignProgress(
            campaign_id=campaign_id,
            spec=self._spec(row),
            done=frozenset(done),
            rounds=cast(Mapping[int, int], {batch: number for batch, number in rounds}),
            next_round=row.next_round,
            dropped=frozenset(dropped),
            failures=failures,
            priority=row.priority,
            owner=row.owner,
            measured_ns=row.measured_ns,
            active=row.state == "active",
        )

    @retried
    def next_round(self, campaign_id: str) -> int:
        """Return the number after the highest round that any report or visit of a campaign names; 0 for a new one."""
        with self._db.reading() as connection:
            wanted = sa.select(campaigns.c.next_round).where(campaigns.c.campaign_id == campaign_id)
            return int(connection.scalar(wanted) or 0)

    def _state(self, row: Any) -> CampaignState:
        return CampaignState(
            campaign_id=row.campaign_id,
            spec=self._spec(row),
            state=row.state,
            reason=row.reason,
            rounds=row.rounds,
            measured_ns=row.measured_ns,
            timed_ns=row.timed_ns,
            created_s=row.created_s,
            finished_s=row.finished_s,
            priority=row.priority,
            owner=row.owner,
        )

    def _spec(self, row: Any) -> CampaignSpec:
        if row.campaign_id not in self._specs:
            self._specs[row.campaign_id] = CampaignSpec.from_canonical(json.loads(row.spec))
        return self._specs[row.campaign_id]


def phase_of(database: Database, connection: sa.Connection, campaign_id: str) -> CampaignPhase:
    """Return a campaign's state. Raises UnknownName."""
    phase: CampaignPhase | None = connection.scalar(
        sa.select(campaigns.c.state).where(campaigns.c.campaign_id == campaign_id)
    )
    if phase is None:
        raise database.unknown_campaign(campaign_id)
    return phase


def finish_batch(connection: sa.Connection, campaign_id: str, batch: int, reason: str, now_s: float) -> None:
    """Write down that a batch is done, and end its leases; one that is done keeps its first reason."""
    here = (batches.c.campaign_id == campaign_id, batches.c.batch == batch)
    if connection.execute(sa.select(batches.c.batch).where(*here)).first() is None:
        connection.execute(
            batches.insert().values(campaign_id=campaign_id, batch=batch, reason=reason, finished_s=now_s)
        )
    connection.execute(
        leases.update()
        .where(leases.c.campaign_id == campaign_id, leases.c.batch == batch, leases.c.state == "active")
        .values(state="done", ended_s=now_s)
    )
