"""Leases: who may measure what. Granted in one transaction that sees all others, so that no slot is given twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from lutbuilder.coordinator.schedule import LeaseState
from lutbuilder.coordinator.store.campaigns import finish_batch
from lutbuilder.coordinator.store.engine import Part, exists, retried
from lutbuilder.coordinator.store.schema import agents, batches, campaigns, leases, sessions
from lutbuilder.coordinator.store.states import StoredLease

_COLUMNS = [leases.c[name] for name in StoredLease.__dataclass_fields__ if name != "agent"]
_WITH_AGENT = sa.select(*_COLUMNS, sessions.c.agent).join(sessions, sessions.c.session_id == leases.c.session_id)
_ACTIVE = leases.c.state == "active"


class Leases(Part):
    """The leases of a store's campaigns, of all its coordinators."""

    @retried
    def grant_lease(
        self,
        lease_id: str,
        *,
        campaign_id: str,
        batch: int,
        session_id: str,
        first_round: int,
        rounds: int,
        now_s: float,
        owner: str = "",
        domain: str = "",
        room: int = 1,
        ahead_of: str = "",
    ) -> StoredLease | None:
        """Give a lease of a batch with the next epoch, or None where another coordinator was faster or minds changed.

        None: the campaign is not active, the batch is done or has `room` active leases, the session is not its agent's
        newest, the agent is drained or quarantined, or its clock domain (`domain`, or the agent's own) has a lease.
        With `ahead_of`: that lease of the same session, and only that, is in the domain.
        The same `lease_id` again is the same lease, if it is still active. Raises UnknownSession.
        """
        with self._db.writing() as connection:
            known = connection.execute(_WITH_AGENT.where(leases.c.lease_id == lease_id)).first()
            if known is not None:
                return _lease(known) if known.state == "active" else None
            agent = connection.scalar(sa.select(sessions.c.agent).where(sessions.c.session_id == session_id))
            if agent is None:
                raise self._db.unknown_session(session_id)
            domain = domain or agent
            of_batch = (leases.c.campaign_id == campaign_id, leases.c.batch == batch)
            if (
                not _is_open(connection, campaign_id, batch)
                or not _is_welcome(connection, agent, session_id)
                or len(connection.scalars(sa.select(leases.c.lease_id).where(_ACTIVE, *of_batch)).all()) >= room
                or not _is_free(connection, domain, session_id, ahead_of)
            ):
                return None
            epoch = int(connection.scalar(sa.select(sa.func.max(leases.c.epoch)).where(*of_batch)) or 0) + 1
            granted = StoredLease(
                lease_id=lease_id,
                campaign_id=campaign_id,
                batch=batch,
                epoch=epoch,
                session_id=session_id,
                agent=agent,
                state="active",
                first_round=first_round,
                rounds=rounds,
                owner=owner,
                domain=domain,
                granted_s=now_s,
            )
            connection.execute(
                leases.insert().values({column.name: getattr(granted, column.name) for column in _COLUMNS})
            )
        return granted

    @retried
    def reshape_lease(self, lease_id: str, *, first_round: int, rounds: int) -> None:
        """Record for which rounds a lease really is."""
        with self._db.writing() as connection:
            connection.execute(
                leases.update().where(leases.c.lease_id == lease_id).values(first_round=first_round, rounds=rounds)
            )

    @retried
    def end_lease(self, lease_id: str, state: LeaseState, *, now_s: float, beat: int | None = None) -> bool:
        """Record how an active lease ended; one that has ended stays as it is. Return whether it is this that ended it.

        With `beat`: only if it has not moved since, so that nobody calls a lease lost that its owner has just extended.
        """
        ended = leases.update().where(leases.c.lease_id == lease_id, _ACTIVE)
        if beat is not None:
            ended = ended.where(leases.c.beat == beat)
        with self._db.writing() as connection:
            return connection.execute(ended.values(state=state, ended_s=now_s)).rowcount > 0

    @retried
    def beat_leases(self, owner: str, quiet_s: Mapping[str, float]) -> frozenset[str]:
        """Say that an owner's leases were extended, each with the silence announced; return those that still are its.

        The others have ended or belong to another coordinator by now.
        """
        if not quiet_s:
            return frozenset()
        mine = (_ACTIVE, leases.c.owner == owner)
        with self._db.writing() as connection:
            connection.execute(
                leases.update()
                .where(*mine, leases.c.lease_id == sa.bindparam("extended"))
                .values(beat=leases.c.beat + 1, quiet_s=sa.bindparam("silence")),
                [{"extended": lease_id, "silence": silence} for lease_id, silence in quiet_s.items()],
            )
            held = connection.scalars(sa.select(leases.c.lease_id).where(*mine)).all()
        return frozenset(held) & frozenset(quiet_s)

    @retried
    def adopt_leases(self, session_id: str, owner: str) -> tuple[StoredLease, ...]:
        """Give the active leases of a session to the coordinator that it calls now, and return them."""
        of_session = (_ACTIVE, leases.c.session_id == session_id)
        with self._db.writing() as connection:
            connection.execute(leases.update().where(*of_session).values(owner=owner, beat=leases.c.beat + 1))
            return _leases(connection, _WITH_AGENT.where(*of_session))

    @retried
    def active_leases(self, campaign_id: str | None = None) -> tuple[StoredLease, ...]:
        """Return the leases that have not ended, of a campaign or of all, as far as this store knows."""
        wanted = _WITH_AGENT.where(_ACTIVE)
        if campaign_id is not None:
            wanted = wanted.where(leases.c.campaign_id == campaign_id)
        with self._db.reading() as connection:
            return _leases(connection, wanted)

    @retried
    def leases(self, *, active: bool = True) -> tuple[StoredLease, ...]:
        """Return the leases of all campaigns, those that have ended too unless only active ones are wanted."""
        with self._db.reading() as connection:
            return _leases(connection, _WITH_AGENT.where(_ACTIVE) if active else _WITH_AGENT)

    @retried
    def finish_batch(self, campaign_id: str, batch: int, reason: str, *, now_s: float) -> None:
        """Record that a batch is done, and end its leases."""
        with self._db.writing() as connection:
            finish_batch(connection, campaign_id, batch, reason, now_s)


def end_leases_of(connection: sa.Connection, agent: str, now_s: float) -> None:
    """Cancel the active leases of all sessions of an agent."""
    of_agent = sa.select(sessions.c.session_id).where(sessions.c.agent == agent)
    connection.execute(
        leases.update().where(_ACTIVE, leases.c.session_id.in_(of_agent)).values(state="cancelled", ended_s=now_s)
    )


def _is_open(connection: sa.Connection, campaign_id: str, batch: int) -> bool:
    of_campaign = (campaigns.c.campaign_id == campaign_id, campaigns.c.state == "active")
    done = sa.and_(batches.c.campaign_id == campaign_id, batches.c.batch == batch)
    return exists(connection, sa.and_(*of_campaign)) and not exists(connection, done)


def _is_welcome(connection: sa.Connection, agent: str, session_id: str) -> bool:
    newest = sa.select(sessions.c.session_id).where(sessions.c.agent == agent).order_by(sessions.c.epoch.desc())
    refused = sa.and_(agents.c.agent == agent, sa.or_(agents.c.drained, agents.c.quarantined != ""))
    return connection.scalar(newest.limit(1)) == session_id and not exists(connection, refused)


def _is_free(connection: sa.Connection, domain: str, session_id: str, ahead_of: str) -> bool:
    here = sa.select(leases.c.lease_id, leases.c.session_id).where(_ACTIVE, leases.c.domain == domain)
    held = [(row.lease_id, row.session_id) for row in connection.execute(here)]
    return held == ([(ahead_of, session_id)] if ahead_of else [])


def _leases(connection: sa.Connection, wanted: sa.Select[Any]) -> tuple[StoredLease, ...]:
    ordered = wanted.order_by(leases.c.campaign_id, leases.c.batch, leases.c.epoch)
    return tuple(_lease(row) for row in connection.execute(ordered))


def _lease(row: Any) -> StoredLease:
    return StoredLease(**row._mapping)
