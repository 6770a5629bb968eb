"""Sessions: who has registered, as what; and what was decided about an agent whatever session it is in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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


class Sessions(Part):
    """The sessions and agents of a store."""

    @retried
    def open_session(self, hello: AgentHello, session_id: str, *, now_s: float) -> int:
        """Begin a session with all that its agent said; return its epoch, one above the last of the agent's name.

        It fences: every lease of an older session of that name is cancelled. A session that has begun stays as it is.
        """
        with self._db.writing() as connection:
            known = connection.scalar(sa.select(sessions.c.epoch).where(sessions.c.session_id == session_id))
            if known is not None:
                return int(known)
            of_agent = sessions.c.agent == hello.name
            epoch = int(connection.scalar(sa.select(sa.func.max(sessions.c.epoch)).where(of_agent)) or 0) + 1
            end_leases_of(connection, hello.name, now_s)
            connection.execute(
                sessions.insert().values(
                    session_id=session_id,
                    agent=hello.name,
                    epoch=epoch,
                    agent_version=hello.agent_version,
                    device=hello.fingerprint.device,
                    facts=json.dumps(hello.fingerprint.facts),
                    runtimes=json.dumps([asdict(report) for report in hello.runtimes]),
                    registered_s=now_s,
                    clock_domain=hello.clock_domain,
                )
            )
        return epoch

    @retried
    def session(self, session_id: str) -> AgentState:
        """Return one session. Raises UnknownSession."""
        with self._db.reading() as connection:
            row = connection.execute(_WITH_FLAGS.where(sessions.c.session_id == session_id)).first()
        if row is None:
            raise self._db.unknown_session(session_id)
        return _state(row)

    @retried
    def newest_session(self, agent: str) -> AgentState | None:
        """Return an agent's latest session, None if it never had one."""
        newest = _WITH_FLAGS.where(sessions.c.agent == agent).order_by(sessions.c.epoch.desc()).limit(1)
        with self._db.reading() as connection:
            row = connection.execute(newest).first()
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
        newest = (
            sa.select(sessions.c.agent, sa.func.max(sessions.c.epoch).label("epoch"))
            .group_by(sessions.c.agent)
            .subquery()
        )
        wanted = _WITH_FLAGS.join(
            newest, sa.and_(newest.c.agent == sessions.c.agent, newest.c.epoch == sessions.c.epoch)
        )
        with self._db.reading() as connection:
            rows = connection.execute(wanted).all()
        return tuple(sorted((_state(row) for row in rows), key=lambda state: state.name))

    # --- what was decided about agents

    @retried
    def agent_flags(self) -> Mapping[str, AgentFlags]:
        """Return the agents that anything was decided about, by name."""
        with self._db.reading() as connection:
            rows = connection.execute(sa.select(agents)).all()
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
        fingerprint=Fingerprint(device=row.device, facts=tuple((name, value) for name, value in json.loads(row.facts))),
        runtimes=tuple(RuntimeReport(**report) for report in json.loads(row.runtimes)),
        registered_s=row.registered_s,
        last_report_s=row.last_report_s,
        clock_domain=row.clock_domain,
        drained=bool(row.drained),
        quarantined=row.quarantined or "",
    )
