"""Failures: which ops failed, where, how often; and who is excused."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa

from lutbuilder.coordinator.schedule import StoredFailure
from lutbuilder.coordinator.store.engine import Part, exists, retried
from lutbuilder.coordinator.store.schema import batches, campaigns, failures, sessions, visits
from lutbuilder.coordinator.store.states import FailureOccasion
from lutbuilder_agent.errors import UnknownName
from lutbuilder_agent.records import Failure, OpId


class Failures(Part):
    """The failures of a store's campaigns."""

    @retried
    def record_failure(self, campaign_id: str, session_id: str, failure: Failure) -> None:
        """Remember a failure that no report carried: an artifact that cannot be built."""
        with self._db.writing() as connection:
            insert_failures(connection, campaign_id, session_id, (failure,))

    @retried
    def failures(self, campaign_id: str) -> tuple[StoredFailure, ...]:
        """Return the ops that failed, by op id; each with its latest reason, how often, and on which agents.

        Occasions that were excused are left out, and ops of which all are.
        """
        with self._db.reading() as connection:
            return failures_of(connection, campaign_id)

    @retried
    def occasions(self, campaign_id: str) -> tuple[FailureOccasion, ...]:
        """Return every occasion on which an op of a campaign failed, oldest first, excused ones too."""
        with self._db.reading() as connection:
            rows = connection.execute(
                sa.select(
                    failures.c.op_id,
                    sa.func.coalesce(sessions.c.agent, "").label("agent"),
                    failures.c.session_id,
                    failures.c.round,
                    failures.c.reason,
                    failures.c.detail,
                    failures.c.excused,
                )
                .outerjoin(sessions, sessions.c.session_id == failures.c.session_id)
                .where(failures.c.campaign_id == campaign_id)
                .order_by(failures.c.failure_no)
            ).mappings()
            return tuple(FailureOccasion(**row) for row in rows)

    @retried
    def excuse_failures(self, campaign_id: str, op_ids: Collection[OpId], *, agent: str = "") -> None:
        """Let failures of these ops no longer count, those of one agent or all; they are kept."""
        with self._db.writing() as connection:
            _excuse(connection, campaign_id, op_ids, agent)

    @retried
    def release_op(self, campaign_id: str, op_id: OpId) -> None:
        """Give an op that was given up another chance: what it did so far no longer counts.

        Batches that ended because all their ops had failed are pending again, unless their campaign has ended. Raises
        UnknownName for an op that never failed there.
        """
        with self._db.writing() as connection:
            here = sa.and_(failures.c.campaign_id == campaign_id, failures.c.op_id == op_id)
            if not exists(connection, here):
                raise UnknownName(
                    f"op {op_id} never failed in campaign {campaign_id}: those that did: lutbuilder campaigns --json"
                )
            _excuse(connection, campaign_id, (op_id,), "")
            active = sa.select(campaigns.c.campaign_id).where(campaigns.c.state == "active")
            connection.execute(
                batches.delete().where(
                    batches.c.campaign_id == campaign_id,
                    batches.c.reason == "failed",
                    batches.c.campaign_id.in_(active),
                )
            )

    @retried
    def passed(self, campaign_id: str, op_ids: Collection[OpId], *, besides: str) -> frozenset[OpId]:
        """Return which of these ops have a visit by another agent than `besides`."""
        others = sa.select(sessions.c.session_id).where(sessions.c.agent != besides)
        with self._db.reading() as connection:
            return frozenset(
                connection.scalars(
                    sa.select(visits.c.op_id)
                    .distinct()
                    .where(
                        visits.c.campaign_id == campaign_id,
                        visits.c.session_id.in_(others),
                        visits.c.op_id.in_(tuple(op_ids)),
                    )
                )
            )


def failures_of(connection: sa.Connection, campaign_id: str) -> tuple[StoredFailure, ...]:
    """Return what `Failures.failures` returns."""
    rows = connection.execute(
        sa.select(failures.c.op_id, failures.c.reason, failures.c.detail, sessions.c.agent)
        .outerjoin(sessions, sessions.c.session_id == failures.c.session_id)
        .where(failures.c.campaign_id == campaign_id, failures.c.excused.is_(False))
        .order_by(failures.c.failure_no)
    ).all()
    by_op: dict[OpId, list[Any]] = {}
    for row in rows:
        by_op.setdefault(row.op_id, []).append(row)
    return tuple(
        StoredFailure(
            op_id=op_id,
            reason=found[-1].reason,
            detail=found[-1].detail,
            attempts=len(found),
            agents=tuple(sorted({row.agent for row in found if row.agent})),
        )
        for op_id, found in sorted(by_op.items())
    )


def insert_failures(connection: sa.Connection, campaign_id: str, session_id: str, found: Iterable[Failure]) -> int:
    """Keep failures that are new, and return how many are."""
    new = 0
    for failure in found:
        row = {
            "campaign_id": campaign_id,
            "op_id": failure.op_id,
            "session_id": session_id,
            "round": failure.round,
            "reason": failure.reason,
        }
        if not exists(connection, sa.and_(*(failures.c[name] == value for name, value in row.items()))):
            connection.execute(failures.insert().values(**row, detail=failure.detail, excused=False))
            new += 1
    return new


def _excuse(connection: sa.Connection, campaign_id: str, op_ids: Collection[OpId], agent: str) -> None:
    excused = failures.update().where(failures.c.campaign_id == campaign_id, failures.c.op_id.in_(tuple(op_ids)))
    if agent:
        of_agent = sa.select(sessions.c.session_id).where(sessions.c.agent == agent)
        excused = excused.where(failures.c.session_id.in_(of_agent))
    connection.execute(excused.values(excused=True))
