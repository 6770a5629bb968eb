"""Sessions: who has registered, as what; and what was decided about an agent whatever session it is in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from lutbuilder.coordinator.store.engine import Part, exists, retried
from lutbuilder.coordinator.store.leases import end_leases_of
from lutbuilder.coordinator.store.schema import agents, reports, sessions
from lutbuilder.coordinator.store.states import AgentFlags, AgentState
from lutbuilder_agent.errors import UnknownName
from lutbuilder_agent.records import AgentHello, Fingerprint, RuntimeReport

_WITH_FLAGS = sa.select(sessions, agents.c.drained, agents.c.quarantined).outerjoin(
    agents, agents.c.agent == sessions.c.agent
)
# What nearly every call of an agent asks. Made once: making a statement takes longer than carrying it out.
_NAME: sa.BindParameter[str] = sa.bindparam("name")
_ONE = _WITH_FLAGS.where(sessions.c.session_id == sa.bindparam("session"))
_NEWEST_OF_ONE = _WITH_FLAGS.where(sessions.c.agent == _NAME).order_by(sessions.c.epoch.desc()).limit(1)
_NEWEST = (
    sa.select(sessions.c.agent, sa.func.max(sessions.c.epoch).label("epoch")).group_by(sessions.c.agent).subquery()
)
_NEWEST_OF_ALL = _WITH_FLAGS.join(
    _NEWEST, sa.and_(_NEWEST.c.agent == sessions.c.agent, _NEWEST.c.epoch == sessions.c.epoch)
)
_FLAGS = sa.select(agents)
_EPOCH = sa.select(sessions.c.epoch).where(sessions.c.session_id == sa.bindparam("session"))
_LAST_EPOCH = sa.select(sa.func.max(sessions.c.epoch)).where(sessions.c.agent == _NAME)
_INSERT = sessions.insert()


class Sessions(Part):
    """The sessions and agents of a store."""

    @retried
    def open_session(self, hello: AgentHello, session_id: str, *, now_s: float) -> int:
        """Begin a session with all that its agent said; return its epoch, one above the last of the agent's name.

        It fences: every lease of an older session of that name is cancelled. A session that has begun stays as it is.
        """
        with self._db.writing() as connection:
            known = connection.scalar(_EPOCH, {"session": session_id})
            if known is not None:
                return int(known)
            epoch = int(connection.scalar(_LAST_EPOCH, {"name": hello.name}) or 0) + 1
            end_leases_of(connection, hello.name, now_s)
            connection.execute(
                _INSERT,
                {
                    "session_id": session_id,
                    "agent": hello.name,
                    "epoch": epoch,
                    "agent_version": hello.agent_version,
                    "device": hello.fingerprint.device,
                    "facts": json.dumps(hello.fingerprint.facts),
                    "runtimes": json.dumps([asdict(report) for report in hello.runtimes]),
                    "registered_s": now_s,
                    "clock_domain": hello.clock_domain,
                },
            )
        return epoch

    @retried
    def session(self, session_id: str) -> AgentState:
        """Return one session. Raises UnknownSession."""
        with self._db.reading() as connection:
            row = connection.execute(_ONE, {"session": session_id}).first()
        if row is None:
            raise self._db.unknown_session(session_id)
        return _state(row)

    @retried
    def newest_session(self, agent: str) -> AgentState | None:
        """Return an agent's latest session, None if it never had one."""
        with self._db.reading() as connection:
            row = connection.execute(_NEWEST_OF_ONE, {"name": agent}).first()
        return None if row is None else _state(row)

    @retried
    def sessions(self, campaign_ids: Sequence[str]) -> tuple[AgentState, ...]:
        """Return the sessions that reported for any of these campaigns, in the order they began."""
        reported = sa.select(reports.c.session_id).distinct().where(reports.c.campaign_id.in_(tuple(campaign_ids)))
        wanted = _WITH_FLAGS.where(sessions.c.session_id.in_(reported))
        with self._db.reading() as connection:
            rows = connection.execute(wanted.order_by(sessions.c.registered_s, sessions.c.epoch)).all()
        return tuple(_state(row) for row in rows)

    @retried
    def agents(self) -> tuple[AgentState, ...]:
        """Return every agent ever seen in its latest session, by name."""
        with self._db.reading() as connection:
            rows = connection.execute(_NEWEST_OF_ALL).all()
        return tuple(sorted((_state(row) for row in rows), key=lambda state: state.name))

    # --- what was decided about agents

    @retried
    def agent_flags(self) -> Mapping[str, AgentFlags]:
        """Return the agents that anything was decided about, by name."""
        with self._db.reading() as connection:
            rows = connection.execute(_FLAGS).all()
        flags = {row.agent: AgentFlags(drained=row.drained, quarantined=row.quarantined) for row in rows}
        return {name: flag for name, flag in flags.items() if flag != AgentFlags()}

    @retried
    def set_agent(self, name: str, *, drained: bool | None = None, quarantined: str | None = None) -> AgentFlags:
        """Change what is given, and return all that was decided about an agent. Raises UnknownName."""
        with self._db.writing() as connection:
            row = connection.execute(sa.select(agents).where(agents.c.agent == name)).first()
            if row is None and not exists(connection, sessions.c.agent == name):
                raise UnknownName(f"no agent {name!r} has ever registered here; those that have: lutbuilder agents")
            before = AgentFlags() if row is None else AgentFlags(drained=row.drained, quarantined=row.quarantined)
            after = AgentFlags(
                drained=before.drained if drained is None else drained,
                quarantined=before.quarantined if quarantined is None else quarantined,
            )
            if row is None:
                connection.execute(agents.insert().values(agent=name, **asdict(after)))
            elif after != before:
                connection.execute(agents.update().where(agents.c.agent == name).values(**asdict(after)))
        return after


def _state(row: Any) -> AgentState:
    return AgentState(
        name=row.agent,
        session_id=row.session_id,
        epoch=row.epoch,
        agent_version=row.agent_version,
        fingerprint=_fingerprint(row.device, row.facts),
        runtimes=_runtimes(row.runtimes),
        registered_s=row.registered_s,
        last_report_s=row.last_report_s,
        clock_domain=row.clock_domain,
        drained=bool(row.drained),
        quarantined=row.quarantined or "",
    )


# What agents say of themselves never changes, and is read at nearly every call of theirs.
@lru_cache(maxsize=1024)
def _fingerprint(device: str, facts: str) -> Fingerprint:
    return Fingerprint(device=device, facts=tuple((name, value) for name, value in json.loads(facts)))


@lru_cache(maxsize=1024)
def _runtimes(text: str) -> tuple[RuntimeReport, ...]:
    return tuple(RuntimeReport(**report) for report in json.loads(text))
