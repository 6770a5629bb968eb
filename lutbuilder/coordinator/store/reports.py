"""Reports: what agents measured, committed before it is acknowledged, once, whatever way it comes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from lutbuilder.coordinator import samples
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.store.campaigns import finish_batch
from lutbuilder.coordinator.store.engine import Database, Part, exists, retried
from lutbuilder.coordinator.store.failures import insert_failures
from lutbuilder.coordinator.store.schema import (
    batch_rounds,
    campaigns,
    conflicts,
    drops,
    leases,
    reports,
    sessions,
    visits,
)
from lutbuilder.coordinator.store.states import CommitResult, Conflict, StoredReport
from lutbuilder_agent.errors import LutbuilderError, StoreError, UnknownName, UnknownSession
from lutbuilder_agent.records import Conditions, OpId, Report, Timing

MOST_AT_ONCE = 64  # reports in one transaction

# What every report asks of the database. Made once: making a statement takes longer than carrying it out.
_CAMPAIGN: sa.BindParameter[str] = sa.bindparam("campaign")
_SESSION: sa.BindParameter[str] = sa.bindparam("session")
_KNOWN = (
    sa.select(
        campaigns.c.state,
        campaigns.c.next_round,
        sessions.c.session_id.label("session_known"),
        leases.c.state.label("lease_state"),
        leases.c.epoch,
        leases.c.session_id.label("lease_session"),
        leases.c.batch,
        reports.c.report_id,
        reports.c.decision,
    )
    .select_from(
        campaigns.outerjoin(sessions, sessions.c.session_id == _SESSION)
        .outerjoin(
            leases, sa.and_(leases.c.lease_id == sa.bindparam("lease"), leases.c.campaign_id == campaigns.c.campaign_id)
        )
        .outerjoin(reports, reports.c.report_id == sa.bindparam("report"))
    )
    .where(campaigns.c.campaign_id == _CAMPAIGN)
)
_VISITS_OF_ROUNDS = sa.select(
    visits.c.round, visits.c.op_id, visits.c.place, visits.c.instance, visits.c.start_ns, visits.c.samples
).where(
    visits.c.campaign_id == _CAMPAIGN,
    visits.c.session_id == _SESSION,
    visits.c.round.in_(sa.bindparam("rounds", expanding=True)),
)
_INSERT_VISITS = visits.insert()
_INSERT_REPORT = reports.insert()
_BATCHES_OF_ROUND = sa.select(reports.c.batch).where(
    reports.c.campaign_id == _CAMPAIGN, reports.c.session_id == _SESSION, reports.c.round == sa.bindparam("round_")
)
_COUNT = (
    campaigns.update()
    .where(campaigns.c.campaign_id == _CAMPAIGN)
    .values(
        rounds=campaigns.c.rounds + sa.bindparam("more"),
        measured_ns=campaigns.c.measured_ns + sa.bindparam("round_ns_"),
        timed_ns=campaigns.c.timed_ns + sa.bindparam("timed_ns_"),
        next_round=sa.bindparam("next"),
    )
)
_HEARD = sessions.update().where(sessions.c.session_id == _SESSION).values(last_report_s=sa.bindparam("now"))
_COUNT_BATCH = (
    batch_rounds.update()
    .where(batch_rounds.c.campaign_id == _CAMPAIGN, batch_rounds.c.batch == sa.bindparam("batch_"))
    .values(rounds=batch_rounds.c.rounds + 1)
)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A report in the queue. Mutable: whoever commits it writes down what came of it."""

    report: Report
    now_s: float
    outcome: CommitResult | LutbuilderError | None = None


class Reports(Part):
    """The reports of a store's campaigns."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._queue: list[_Waiting] = []
        self._queueing = threading.Lock()  # guards the queue
        self._committing = threading.Lock()  # held by the thread that commits for those who wait

    @retried
    def commit_report(self, report: Report, *, now_s: float) -> CommitResult:
        """Commit a report, all of it or nothing; when this returns, it survives a power cut.

        Keys are (campaign, op, session, round, order): the same visit again changes nothing, another one under the same
        key is kept as a conflict. A late report's visits are stored like any others. Reports that come at the same time
        share one transaction. Raises UnknownName (campaign) and UnknownSession for what this store never saw.
        """
        mine = _Waiting(report, now_s)
        with self._queueing:
            self._queue.append(mine)
        with self._committing:
            if mine.outcome is None:  # else another thread has committed it with its own
                self._commit_with_others(mine)
        if isinstance(mine.outcome, CommitResult):
            return mine.outcome
        raise mine.outcome or StoreError(f"{self._db.where}: the report was not committed; send it again")

    def _commit_with_others(self, mine: _Waiting) -> None:
        """Commit a report and those that wait. What goes wrong is raised for this one; the others try by themselves."""
        with self._queueing:
            others = [waiting for waiting in self._queue if waiting is not mine]
            together, self._queue = [mine, *others[: MOST_AT_ONCE - 1]], others[MOST_AT_ONCE - 1 :]
        try:
            self._commit(together)
        except Exception:
            if len(together) == 1:
                raise
            self._commit([mine])  # perhaps it was for another's sake

    def _commit(self, together: Sequence[_Waiting]) -> None:
        """Commit reports in one transaction, those that are refused left out; each learns what came of it."""
        outcomes: list[CommitResult | LutbuilderError] = []
        with self._db.writing() as connection:
            for waiting in together:
                try:
                    outcomes.append(self._committed(connection, waiting.report, waiting.now_s))
                except (UnknownName, UnknownSession) as refused:  # before anything of it was written
                    outcomes.append(refused)
        for waiting, outcome in zip(together, outcomes, strict=True):
            waiting.outcome = outcome

    def _committed(self, connection: sa.Connection, report: Report, now_s: float) -> CommitResult:
        ids = {
            "campaign": report.campaign_id,
            "session": report.session_id,
            "lease": report.lease_id,
            "report": report.report_id,
        }
        known = connection.execute(_KNOWN, ids).first()
        if known is None:
            raise self._db.unknown_campaign(report.campaign_id)
        if known.session_known is None:
            raise self._db.unknown_session(report.session_id)
        late = (known.lease_state, known.epoch, known.lease_session) != (
            "active",
            report.lease_epoch,
            report.session_id,
        )
        new, repeated, odd = _new_visits(connection, report)
        if new:
            connection.execute(_INSERT_VISITS, new)
        _keep_conflicts(connection, odd)
        failures_new = insert_failures(connection, report.campaign_id, report.session_id, report.failures)
        if known.report_id is None:
            _count(connection, report, known.batch, next_round=known.next_round, now_s=now_s)
            connection.execute(
                _INSERT_REPORT,
                {
                    "report_id": report.report_id,
                    "campaign_id": report.campaign_id,
                    "session_id": report.session_id,
                    "lease_id": report.lease_id,
                    "lease_epoch": report.lease_epoch,
                    "batch": known.batch,
                    "round": report.round,
                    "late": late,
                    "before": _conditions_text(report.before),
                    "after": _conditions_text(report.after),
                    "round_ns": report.round_ns,
                    "timed_ns": report.timed_ns,
                    "committed_s": now_s,
                },
            )
        return CommitResult(
            n_new=len(new),
            n_repeated=repeated,
            n_conflicts=len(odd),
            late=late,
            repeated_report=known.report_id is not None,
            decision=None if known.decision is None else _decision(known.decision),
            campaign_active=known.state == "active",
            failures_new=failures_new,
            batch=known.batch,
        )

    @retried
    def record_decision(self, report: Report, decision: Decision, *, finished_batch: int | None, now_s: float) -> None:
        """Remember what was decided after a report: its drops, and with `finished_batch` that the batch is done."""
        with self._db.writing() as connection:
            connection.execute(
                reports.update()
                .where(reports.c.report_id == report.report_id)
                .values(decision=json.dumps(asdict(decision)))
            )
            _keep_drops(connection, report.campaign_id, decision.drop)
            if finished_batch is not None:
                finish_batch(connection, report.campaign_id, finished_batch, decision.reason, now_s)

    @retried
    def reports(self, campaign_ids: Sequence[str]) -> tuple[StoredReport, ...]:
        """Return the committed rounds of these campaigns with their conditions, in the order they were committed."""
        columns = [reports.c[name] for name in StoredReport.__dataclass_fields__]
        with self._db.reading() as connection:
            rows = connection.execute(
                sa.select(*columns)
                .where(reports.c.campaign_id.in_(tuple(campaign_ids)))
                .order_by(reports.c.committed_s, reports.c.report_id)
            ).mappings()
            return tuple(
                StoredReport(**{**row, "before": _conditions(row["before"]), "after": _conditions(row["after"])})
                for row in rows
            )

    @retried
    def conflicts(self, campaign_ids: Sequence[str]) -> tuple[Conflict, ...]:
        """Return the timings that came under the key of another."""
        with self._db.reading() as connection:
            rows = connection.execute(
                sa.select(conflicts)
                .where(conflicts.c.campaign_id.in_(tuple(campaign_ids)))
                .order_by(*conflicts.primary_key.columns)
            ).all()
        return tuple(
            Conflict(
                campaign_id=row.campaign_id, session_id=row.session_id, report_id=row.report_id, timing=timing_of(row)
            )
            for row in rows
        )


def timing_of(row: Any) -> Timing:
    """Return the timing in a row of `visits` or `conflicts`. Raises StoreError for samples that are none."""
    calls = samples.unpack(row.samples)
    return Timing(
        op_id=row.op_id,
        round=row.round,
        order=row.place,
        instance=row.instance,
        start_ns=row.start_ns,
        warmup_ns=calls.warmup_ns,
        samples_ns=calls.samples_ns,
        preempted=calls.preempted,
        throttled=calls.throttled,
    )


def _count(connection: sa.Connection, report: Report, batch: int | None, *, next_round: int, now_s: float) -> None:
    """Add a report that is about to be inserted to the running sums."""
    here = {"campaign": report.campaign_id, "session": report.session_id, "batch_": batch, "now": now_s}
    batches_of_round = set(connection.scalars(_BATCHES_OF_ROUND, {**here, "round_": report.round}))
    highest = max([report.round, *(timing.round for timing in report.timings)])
    sums = {
        "more": 0 if batches_of_round else 1,
        "round_ns_": report.round_ns,
        "timed_ns_": report.timed_ns,
        "next": max(next_round, highest + 1),
    }
    connection.execute(_COUNT, {**here, **sums})
    connection.execute(_HEARD, here)
    if batch is None or batch in batches_of_round:
        return
    if not connection.execute(_COUNT_BATCH, here).rowcount:
        connection.execute(batch_rounds.insert().values(campaign_id=report.campaign_id, batch=batch, rounds=1))


def _new_visits(connection: sa.Connection, report: Report) -> tuple[list[dict[str, Any]], int, list[dict[str, Any]]]:
    """Return (rows to insert, how many were there already, conflicting rows)."""
    rounds = sorted({timing.round for timing in report.timings})
    given = {"campaign": report.campaign_id, "session": report.session_id, "rounds": rounds}
    there: dict[tuple[int, str, int], tuple[int, int, bytes]] = {
        (row.round, row.op_id, row.place): (row.instance, row.start_ns, row.samples)
        for row in connection.execute(_VISITS_OF_ROUNDS, given)
    }
    new: list[dict[str, Any]] = []
    odd: list[dict[str, Any]] = []
    repeated = 0
    for timing in report.timings:
        key = (timing.round, timing.op_id, timing.order)
        payload = (timing.instance, timing.start_ns, samples.pack(timing))
        row = {
            "campaign_id": report.campaign_id,
            "session_id": report.session_id,
            "round": timing.round,
            "op_id": timing.op_id,
            "place": timing.order,
            "instance": timing.instance,
            "start_ns": timing.start_ns,
            "samples": payload[2],
        }
        if key not in there:
            there[key] = payload
            block_ns, p90_ns = samples.summary(timing.samples_ns, timing.disturbed)
            row |= {"block_ns": block_ns, "p90_ns": p90_ns}
            row |= {"n_calls": len(timing.samples_ns), "n_preempted": len(set(timing.preempted))}
            new.append(row)
        elif there[key] == payload:
            repeated += 1
        else:
            digest = hashlib.sha256(repr(payload).encode()).hexdigest()
            odd.append({**row, "report_id": report.report_id, "payload_sha256": digest})
    return new, repeated, odd


def _keep_conflicts(connection: sa.Connection, odd: Iterable[dict[str, Any]]) -> None:
    for row in odd:
        key = [column == row[column.name] for column in conflicts.primary_key.columns]
        if not exists(connection, sa.and_(*key)):
            connection.execute(conflicts.insert().values(row))


def _keep_drops(connection: sa.Connection, campaign_id: str, op_ids: Iterable[OpId]) -> None:
    for op_id in dict.fromkeys(op_ids):
        if not exists(connection, sa.and_(drops.c.campaign_id == campaign_id, drops.c.op_id == op_id)):
            connection.execute(drops.insert().values(campaign_id=campaign_id, op_id=op_id))


def _conditions_text(conditions: Conditions | None) -> str | None:
    return None if conditions is None else json.dumps(asdict(conditions))


def _conditions(text: str | None) -> Conditions | None:
    return None if text is None else Conditions(**json.loads(text))


def _decision(text: str) -> Decision:
    body = json.loads(text)
    return Decision(**{**body, "drop": tuple(body["drop"])})
