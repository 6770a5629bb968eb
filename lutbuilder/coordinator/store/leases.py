"""Leases: who may measure what. Granted in one transaction that sees all others, so that no slot is given twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from lutbuilder.coordinator.schedule import LeaseState
from lutbuilder.coordinator.store.campaigns import finish_batch
from lutbuilder.coordinator.store.engine import Part, retried
from lutbuilder.coordinator.store.schema import agents, batches, campaigns, leases, sessions
from lutbuilder.coordinator.store.states import StoredLease

_COLUMNS = [leases.c[name] for name in StoredLease.__dataclass_fields__ if name != "agent"]
_WITH_AGENT = sa.select(*_COLUMNS, sessions.c.agent).join(sessions, sessions.c.session_id == leases.c.session_id)
_ACTIVE = leases.c.state == "active"

# What every lease and every tick asks. Made once: making a statement takes longer than carrying it out.
_CAMPAIGN: sa.BindParameter[str] = sa.bindparam("campaign")
_BATCH: sa.BindParameter[int] = sa.bindparam("batch_")
_SESSION: sa.BindParameter[str] = sa.bindparam("session")
_LEASE: sa.BindParameter[str] = sa.bindparam("lease")
_AGENT: sa.BindParameter[str] = sa.bindparam("name")
_OWNER: sa.BindParameter[str] = sa.bindparam("owner_")
_IN_ORDER = (leases.c.campaign_id, leases.c.batch, leases.c.epoch)
_OF_BATCH = (leases.c.campaign_id == _CAMPAIGN, leases.c.batch == _BATCH)
_KNOWN = _WITH_AGENT.where(leases.c.lease_id == _LEASE)
_AGENT_OF = sa.select(sessions.c.agent).where(sessions.c.session_id == _SESSION)
_HOLDERS = sa.select(sa.func.count()).select_from(leases).where(_ACTIVE, *_OF_BATCH)
_LAST_EPOCH = sa.select(sa.func.max(leases.c.epoch)).where(*_OF_BATCH)
_INSERT = leases.insert()
_RESHAPE = (
    leases.update()
    .where(leases.c.lease_id == _LEASE)
    .values(first_round=sa.bindparam("first"), rounds=sa.bindparam("number"))
)
_END = leases.update().where(leases.c.lease_id == _LEASE, _ACTIVE)
_END = _END.values(state=sa.bindparam("how"), ended_s=sa.bindparam("now"))
_END_UNBEATEN = _END.where(leases.c.beat == sa.bindparam("seen"))
_BEAT = (
    leases.update()
    .where(_ACTIVE, leases.c.owner == _OWNER, leases.c.lease_id == _LEASE)
    .values(beat=leases.c.beat + 1, quiet_s=sa.bindparam("silence"))
)
_OWNED = sa.select(leases.c.lease_id).where(_ACTIVE, leases.c.owner == _OWNER)
_OF_SESSION = (_ACTIVE, leases.c.session_id == _SESSION)
_ADOPT = leases.update().where(*_OF_SESSION).values(owner=_OWNER, beat=leases.c.beat + 1)
_ADOPTED = _WITH_AGENT.where(*_OF_SESSION).order_by(*_IN_ORDER)
_ALL_ACTIVE = _WITH_AGENT.where(_ACTIVE).order_by(*_IN_ORDER)
_IS_ACTIVE = sa.select(
    sa.exists().where(campaigns.c.campaign_id == _CAMPAIGN, campaigns.c.state == "active")
    & ~sa.exists().where(batches.c.campaign_id == _CAMPAIGN, batches.c.batch == _BATCH)
)
_NEWEST = sa.select(sessions.c.session_id).where(sessions.c.agent == _AGENT).order_by(sessions.c.epoch.desc()).limit(1)
_IS_REFUSED = sa.select(
    sa.exists().where(agents.c.agent == _AGENT, sa.or_(agents.c.drained, agents.c.quarantined != ""))
)
_END_OF_AGENT = (
    leases.update()
    .where(_ACTIVE, leases.c.session_id.in_(sa.select(sessions.c.session_id).where(sessions.c.agent == _AGENT)))
    .values(state="cancelled", ended_s=sa.bindparam("now"))
)
_IN_DOMAIN = sa.select(leases.c.lease_id, leases.c.session_id).where(
    _ACTIVE, leases.c.domain == sa.bindparam("domain_")
)


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
            known = connection.execute(_KNOWN, {"lease": lease_id}).first()
            if known is not None:
                return _lease(known) if known.state == "active" else None
            agent = connection.scalar(_AGENT_OF, {"session": session_id})
            if agent is None:
                raise self._db.unknown_session(session_id)
            domain = domain or agent
            here = {"campaign": campaign_id, "batch_": batch}
            if (
                not connection.scalar(_IS_ACTIVE, here)
                or not _is_welcome(connection, agent, session_id)
                or int(connection.scalar(_HOLDERS, here) or 0) >= room
                or not _is_free(connection, domain, session_id, ahead_of)
            ):
                return None
            epoch = int(connection.scalar(_LAST_EPOCH, here) or 0) + 1
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
            connection.execute(_INSERT, {column.name: getattr(granted, column.name) for column in _COLUMNS})
        return granted

    @retried
    def reshape_lease(self, lease_id: str, *, first_round: int, rounds: int) -> None:
        """Record for which rounds a lease really is."""
        with self._db.writing() as connection:
            connection.execute(_RESHAPE, {"lease": lease_id, "first": first_round, "number": rounds})

    @retried
    def end_lease(self, lease_id: str, state: LeaseState, *, now_s: float, beat: int | None = None) -> bool:
        """Record how an active lease ended; one that has ended stays as it is. Return whether it is this that ended it.

        With `beat`: only if it has not moved since, so that nobody calls a lease lost that its owner has just extended.
        """
        given = {"lease": lease_id, "how": state, "now": now_s}
        with self._db.writing() as connection:
            if beat is None:
                return connection.execute(_END, given).rowcount > 0
            return connection.execute(_END_UNBEATEN, {**given, "seen": beat}).rowcount > 0

    @retried
    def beat_leases(self, owner: str, quiet_s: Mapping[str, float]) -> frozenset[str]:
        """Say that an owner's leases were extended, each with the silence announced; return those that still are its.

        The others have ended or belong to another coordinator by now.
        """
        if not quiet_s:
            return frozenset()
        with self._db.writing() as connection:
            connection.execute(
                _BEAT,
                [{"owner_": owner, "lease": lease_id, "silence": silence} for lease_id, silence in quiet_s.items()],
            )
            held = connection.scalars(_OWNED, {"owner_": owner}).all()
        return frozenset(held) & frozenset(quiet_s)

    @retried
    def adopt_leases(self, session_id: str, owner: str) -> tuple[StoredLease, ...]:
        """Give the active leases of a session to the coordinator that it calls now, and return them."""
        with self._db.writing() as connection:
            connection.execute(_ADOPT, {"owner_": owner, "session": session_id})
            return tuple(_lease(row) for row in connection.execute(_ADOPTED, {"session": session_id}))

    @retried
    def active_leases(self, campaign_id: str | None = None) -> tuple[StoredLease, ...]:
        """Return the leases that have not ended, of a campaign or of all, as far as this store knows."""
        wanted = _ALL_ACTIVE if campaign_id is None else _ALL_ACTIVE.where(leases.c.campaign_id == campaign_id)
        with self._db.reading() as connection:
            return tuple(_lease(row) for row in connection.execute(wanted))

    @retried
    def leases(self, *, active: bool = True) -> tuple[StoredLease, ...]:
        """Return the leases of all campaigns, those that have ended too unless only active ones are wanted."""
        with self._db.reading() as connection:
            wanted = _ALL_ACTIVE if active else _WITH_AGENT.order_by(*_IN_ORDER)
            return tuple(_lease(row) for row in connection.execute(wanted))

    @retried
    def finish_batch(self, campaign_id: str, batch: int, reason: str, *, now_s: float) -> None:
        """Record that a batch is done, and end its leases."""
        with self._db.writing() as connection:
            finish_batch(connection, campaign_id, batch, reason, now_s)


def end_leases_of(connection: sa.Connection, agent: str, now_s: float) -> None:
    """Cancel the active leases of all sessions of an agent."""
    connection.execute(_END_OF_AGENT, {"name": agent, "now": now_s})


def _is_welcome(connection: sa.Connection, agent: str, session_id: str) -> bool:
    of_agent = {"name": agent}
    return connection.scalar(_NEWEST, of_agent) == session_id and not connection.scalar(_IS_REFUSED, of_agent)


def _is_free(connection: sa.Connection, domain: str, session_id: str, ahead_of: str) -> bool:
    held = [(row.lease_id, row.session_id) for row in connection.execute(_IN_DOMAIN, {"domain_": domain})]
    return held == ([(ahead_of, session_id)] if ahead_of else [])


def _lease(row: Any) -> StoredLease:
    return StoredLease(**row._mapping)
