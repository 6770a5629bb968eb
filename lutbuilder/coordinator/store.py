"""The campaign store: campaigns, sessions, leases and every visit, in SQLite through SQLAlchemy Core.

Every method that writes is one transaction: killed at any moment, a store holds exactly what was committed, and nothing
is acknowledged before that (WAL, synchronous=FULL). Safe from any thread, and from several processes: writers queue.

Schema history: 1 - first release.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator import samples
from lutbuilder.coordinator.schedule import CampaignProgress, Decision, LeaseState, StoredFailure
from lutbuilder.stats.records import Visits
from lutbuilder_agent import __version__
from lutbuilder_agent.errors import StoreError, UnknownName, UnknownSession
from lutbuilder_agent.records import (
    AgentHello,
    Conditions,
    Failure,
    Fingerprint,
    OpId,
    Report,
    RuntimeReport,
    Session,
    Timing,
)

__all__ = [
    "AgentState",
    "CampaignState",
    "CommitResult",
    "Conflict",
    "RawVisit",
    "Store",
    "StoredFailure",
    "StoredLease",
    "StoredReport",
]

SCHEMA_VERSION = 1
APPLICATION_ID = 0x6C757462  # "lutb": tells our files from any other SQLite file
BUSY_S = 10.0  # how long a writer waits for another process
_PAGE = 2000  # rows a raw read holds at a time

CampaignPhase = Literal["active", "done", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignState:
    """A campaign and how far it is. `rounds` counts committed rounds of all its batches and sessions."""

    campaign_id: str
    spec: CampaignSpec
    state: CampaignPhase
    reason: str  # why it ended; "" while active
    rounds: int
    measured_ns: int  # sum of the rounds' wall time on the device
    timed_ns: int  # of which inside timed visits
    created_s: float
    finished_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """An agent in one session: what it said when it registered, and when its last report was committed."""

    name: str
    session_id: str
    epoch: int
    agent_version: str
    fingerprint: Fingerprint
    runtimes: tuple[RuntimeReport, ...]
    registered_s: float
    last_report_s: float | None

    @property
    def hello(self) -> AgentHello:
        """What the agent said, without the protocol range."""
        return AgentHello(
            name=self.name,
            agent_version=self.agent_version,
            fingerprint=self.fingerprint,
            runtimes=self.runtimes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLease:
    """A lease as it is remembered over restarts; deadlines are not, they are on a clock that ends with the process."""

    lease_id: str
    campaign_id: str
    batch: int
    epoch: int
    session_id: str
    agent: str
    state: LeaseState
    first_round: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReport:
    """A committed round: when, in which session, under which conditions."""

    report_id: str
    campaign_id: str
    session_id: str
    round: int
    late: bool
    before: Conditions | None
    after: Conditions | None
    round_ns: int
    timed_ns: int
    committed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RawVisit:
    """One visit with all that was seen."""

    campaign_id: str
    session_id: str
    timing: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A second timing under the key of a visit that was already there: kept aside, never in place of the first."""

    campaign_id: str
    session_id: str
    report_id: str
    timing: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """What a commit did. `late`: the lease is not the session's any more; `decision`: made when it came first."""

    n_new: int
    n_repeated: int
    n_conflicts: int
    late: bool
    repeated_report: bool
    decision: Decision | None
    campaign_active: bool


_metadata = sa.MetaData()
_meta = sa.Table("meta", _metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text))
_campaigns = sa.Table(
    "campaigns",
    _metadata,
    sa.Column("campaign_id", sa.Text, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("finished_s", sa.Float),
)
_sessions = sa.Table(
    "sessions",
    _metadata,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("agent_version", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("runtimes", sa.Text, nullable=False),
    sa.Column("registered_s", sa.Float, nullable=False),
    sa.UniqueConstraint("agent", "epoch"),
)
_leases = sa.Table(
    "leases",
    _metadata,
    sa.Column("lease_id", sa.Text, primary_key=True),
    sa.Column("campaign_id", sa.Text, nullable=False),
    sa.Column("batch", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("first_round", sa.Integer, nullable=False),
    sa.Column("rounds", sa.Integer, nullable=False),
    sa.Column("granted_s", sa.Float, nullable=False),
    sa.Column("ended_s", sa.Float),
    sa.UniqueConstraint("campaign_id", "batch", "epoch"),
)
_batches = sa.Table(  # batches that are done
    "batches",
    _metadata,
    sa.Column("campaign_id", sa.Text, primary_key=True),
    sa.Column("batch", sa.Integer, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("finished_s", sa.Float, nullable=False),
)
_reports = sa.Table(
    "reports",
    _metadata,
    sa.Column("report_id", sa.Text, primary_key=True),
    sa.Column("campaign_id", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("lease_id", sa.Text, nullable=False),
    sa.Column("lease_epoch", sa.Integer, nullable=False),
    sa.Column("batch", sa.Integer),  # null: of a lease this store never gave
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("before", sa.Text),
    sa.Column("after", sa.Text),
    sa.Column("round_ns", sa.BigInteger, nullable=False),
    sa.Column("timed_ns", sa.BigInteger, nullable=False),
    sa.Column("committed_s", sa.Float, nullable=False),
    sa.Column("decision", sa.Text),  # null: nothing was decided (yet)
    sa.Index("reports_of_campaign", "campaign_id", "round"),
)
_visits = sa.Table(
    "visits",
    _metadata,
    sa.Column("visit_no", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("campaign_id", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("op_id", sa.Text, nullable=False),
    sa.Column("place", sa.Integer, nullable=False),  # Timing.order; ORDER is a word of SQL
    sa.Column("instance", sa.Integer, nullable=False),
    sa.Column("start_ns", sa.BigInteger, nullable=False),
    sa.Column("block_ns", sa.Float, nullable=False),
    sa.Column("p90_ns", sa.Float, nullable=False),
    sa.Column("n_calls", sa.Integer, nullable=False),
    sa.Column("n_preempted", sa.Integer, nullable=False),
    sa.Column("samples", sa.LargeBinary, nullable=False),  # see coordinator/samples.py
    sa.UniqueConstraint("campaign_id", "session_id", "round", "op_id", "place"),
    sqlite_autoincrement=True,  # numbers are never reused: readers continue after the last they saw
)
_conflicts = sa.Table(
    "conflicts",
    _metadata,
    sa.Column("campaign_id", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("op_id", sa.Text, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("payload_sha256", sa.Text, primary_key=True),
    sa.Column("report_id", sa.Text, nullable=False),
    sa.Column("instance", sa.Integer, nullable=False),
    sa.Column("start_ns", sa.BigInteger, nullable=False),
    sa.Column("samples", sa.LargeBinary, nullable=False),
)
_failures = sa.Table(
    "failures",
    _metadata,
    sa.Column("failure_no", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("campaign_id", sa.Text, nullable=False),
    sa.Column("op_id", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.UniqueConstraint("campaign_id", "op_id", "session_id", "round", "reason"),
)
_drops = sa.Table(
    "drops",
    _metadata,
    sa.Column("campaign_id", sa.Text, primary_key=True),
    sa.Column("op_id", sa.Text, primary_key=True),
)

_VISIT_COLUMNS = (
    "round", "place", "instance", "start_ns", "block_ns", "p90_ns", "n_calls", "n_preempted",
)  # fmt: skip  # one line reads as one record
_FLOATS = ("block_ns", "p90_ns")
_READ_VISITS = sa.select(
    _visits.c.visit_no, _visits.c.op_id, _visits.c.session_id, *(_visits.c[name] for name in _VISIT_COLUMNS)
)


@dataclass(slots=True)
class _Columns:
    """The visits of one campaign read so far. Mutable, because it grows; only `Store.visits` touches it."""

    last_no: int = 0
    op_ids: dict[str, int] = field(default_factory=dict)
    session_ids: dict[str, int] = field(default_factory=dict)
    op: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    session: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    values: tuple[NDArray[Any], ...] = tuple(
        np.empty(0, np.float64 if name in _FLOATS else np.int64) for name in _VISIT_COLUMNS
    )

    def extend(self, rows: Sequence[Any]) -> None:
        """Append rows of _READ_VISITS."""
        numbers, op_ids, session_ids, *values = zip(*rows, strict=True)
        self.last_no = numbers[-1]
        self.op = np.append(self.op, [self.op_ids.setdefault(op_id, len(self.op_ids)) for op_id in op_ids])
        self.session = np.append(
            self.session, [self.session_ids.setdefault(name, len(self.session_ids)) for name in session_ids]
        )
        self.values = tuple(
            np.concatenate([old, np.array(new, old.dtype)]) for old, new in zip(self.values, values, strict=True)
        )


class Store:
    """The campaign store in one SQLite file; open it with `Store.open`. Every method raises StoreError if it cannot."""

    def __init__(self, engine: sa.Engine, path: Path) -> None:
        self._path = path
        self._reader = engine
        self._writer = engine.execution_options(lutbuilder_begin="BEGIN IMMEDIATE")
        self._writing = threading.Lock()
        self._caching = threading.Lock()
        self._columns: dict[str, _Columns] = {}
        self._specs: dict[str, CampaignSpec] = {}  # parsed once: a campaign's spec never changes
        self._agent_of: dict[str, str] = {}  # nor does a session's agent

    @classmethod
    def open(cls, path_or_url: str | Path) -> Store:
        """Open, or create, the store at a path or `sqlite:///path`.

        Raises StoreError for a file that is no store, is damaged, cannot be written, or is from a newer lutbuilder.
        """
        path = _path_of(path_or_url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot create the folder of the campaign store, {path.parent}: {error.strerror}. "
                "Choose another: export LUTBUILDER_STATE=FOLDER"
            ) from error
        engine = _engine(path)
        store = cls(engine, path)
        try:
            store._prepare()
        except BaseException:
            engine.dispose()
            raise
        return store

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def close(self) -> None:
        """Let go of the file; nothing is lost without it."""
        self._reader.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- campaigns

    def create_campaign(self, spec: CampaignSpec, *, now_s: float) -> str:
        """Make sure the campaign exists, and return its id, `spec.key`. One that is there stays as it is, even done."""
        with self._write() as connection:
            known = connection.execute(
                sa.select(_campaigns.c.state).where(_campaigns.c.campaign_id == spec.key)
            ).first()
            if known is None:
                connection.execute(
                    _campaigns.insert().values(
                        campaign_id=spec.key,
                        spec=json.dumps(spec.canonical()),
                        state="active",
                        reason="",
                        created_s=now_s,
                    )
                )
        return spec.key

    def campaign(self, campaign_id: str) -> CampaignState:
        """Return a campaign and how far it is. Raises UnknownName."""
        found = self._campaigns(_campaigns.c.campaign_id == campaign_id)
        if not found:
            raise self._unknown_campaign(campaign_id)
        return found[0]

    def campaigns(self) -> tuple[CampaignState, ...]:
        """Return every campaign, oldest first."""
        return self._campaigns(sa.true())

    def finish_campaign(
        self, campaign_id: str, reason: str, now_s: float, *, state: Literal["done", "cancelled"] = "done"
    ) -> None:
        """End a campaign, and every lease of it. One that has ended keeps its first reason. Raises UnknownName."""
        with self._write() as connection:
            if self._phase(connection, campaign_id) == "active":
                connection.execute(
                    _campaigns.update()
                    .where(_campaigns.c.campaign_id == campaign_id)
                    .values(state=state, reason=reason, finished_s=now_s)
                )
                connection.execute(
                    _leases.update()
                    .where(_leases.c.campaign_id == campaign_id, _leases.c.state == "active")
                    .values(state=state, ended_s=now_s)
                )

    def progress(self, campaign_id: str) -> CampaignProgress:
        """Return what decides what is still to be leased. Raises UnknownName."""
        spec = self.campaign(campaign_id).spec
        with self._read() as connection:
            done = connection.scalars(sa.select(_batches.c.batch).where(_batches.c.campaign_id == campaign_id)).all()
            rounds = connection.execute(
                sa.select(_reports.c.batch, _reports.c.session_id, _reports.c.round)
                .where(_reports.c.campaign_id == campaign_id, _reports.c.batch.is_not(None))
                .distinct()
            ).all()
            dropped = connection.scalars(sa.select(_drops.c.op_id).where(_drops.c.campaign_id == campaign_id)).all()
        by_batch: dict[int, int] = {}
        for batch, _, _ in rounds:
            by_batch[batch] = by_batch.get(batch, 0) + 1
        return CampaignProgress(
            campaign_id=campaign_id,
            spec=spec,
            done=frozenset(done),
            rounds=by_batch,
            next_round=self.next_round(campaign_id),
            dropped=frozenset(dropped),
            failures=self.failures(campaign_id),
        )

    def next_round(self, campaign_id: str) -> int:
        """Return the number after the highest round that any report or visit of a campaign names; 0 for a new one."""
        with self._read() as connection:
            highest = [
                connection.scalar(sa.select(sa.func.max(table.c.round)).where(table.c.campaign_id == campaign_id))
                for table in (_reports, _visits)
            ]
        return max((number for number in highest if number is not None), default=-1) + 1

    # --- sessions and leases

    def next_epoch(self, agent: str) -> int:
        """Return the epoch of an agent name's next session, from 1 up."""
        with self._read() as connection:
            highest = connection.scalar(sa.select(sa.func.max(_sessions.c.epoch)).where(_sessions.c.agent == agent))
        return (highest or 0) + 1

    def record_session(self, hello: AgentHello, session: Session, *, now_s: float) -> None:
        """Remember a session with all that its agent said."""
        with self._write() as connection:
            connection.execute(
                _sessions.insert().values(
                    session_id=session.session_id,
                    agent=hello.name,
                    epoch=session.epoch,
                    agent_version=hello.agent_version,
                    device=hello.fingerprint.device,
                    facts=json.dumps(hello.fingerprint.facts),
                    runtimes=json.dumps([asdict(report) for report in hello.runtimes]),
                    registered_s=now_s,
                )
            )

    def session(self, session_id: str) -> AgentState:
        """Return one session. Raises UnknownSession."""
        found = self._agent_states(_sessions.c.session_id == session_id)
        if not found:
            raise self._unknown_session(session_id)
        return found[0]

    def sessions(self, campaign_ids: Sequence[str]) -> tuple[AgentState, ...]:
        """Return the sessions that reported for any of these campaigns, in the order they began."""
        reported = sa.select(_reports.c.session_id).where(_reports.c.campaign_id.in_(campaign_ids))
        return self._agent_states(_sessions.c.session_id.in_(reported))

    def agents(self) -> tuple[AgentState, ...]:
        """Return every agent ever seen in its latest session, by name."""
        latest: dict[str, AgentState] = {}
        for state in self._agent_states(sa.true()):
            if state.name not in latest or state.epoch > latest[state.name].epoch:
                latest[state.name] = state
        return tuple(latest[name] for name in sorted(latest))

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
        beside: Collection[str] = (),
    ) -> int:
        """Record a lease and return its epoch, one above the last of that batch.

        The batch's older leases are cancelled, but for those in `beside`, which other agents hold.
        """
        with self._write() as connection:
            of_batch = (_leases.c.campaign_id == campaign_id, _leases.c.batch == batch)
            epoch = (connection.scalar(sa.select(sa.func.max(_leases.c.epoch)).where(*of_batch)) or 0) + 1
            connection.execute(
                _leases.update()
                .where(*of_batch, _leases.c.state == "active", _leases.c.lease_id.not_in(beside))
                .values(state="cancelled", ended_s=now_s)
            )
            connection.execute(
                _leases.insert().values(
                    lease_id=lease_id,
                    campaign_id=campaign_id,
                    batch=batch,
                    epoch=epoch,
                    session_id=session_id,
                    state="active",
                    first_round=first_round,
                    rounds=rounds,
                    granted_s=now_s,
                )
            )
        return epoch

    def shorten_lease(self, lease_id: str, rounds: int) -> None:
        """Record for how many rounds a lease really is."""
        with self._write() as connection:
            connection.execute(_leases.update().where(_leases.c.lease_id == lease_id).values(rounds=rounds))

    def end_lease(self, lease_id: str, state: LeaseState, *, now_s: float) -> None:
        """Record how an active lease ended; one that has ended stays as it is."""
        with self._write() as connection:
            connection.execute(
                _leases.update()
                .where(_leases.c.lease_id == lease_id, _leases.c.state == "active")
                .values(state=state, ended_s=now_s)
            )

    def active_leases(self, campaign_id: str) -> tuple[StoredLease, ...]:
        """Return a campaign's leases that have not ended, as far as this store knows."""
        columns = [_leases.c[name] for name in StoredLease.__dataclass_fields__ if name != "agent"]
        with self._read() as connection:
            rows = connection.execute(
                sa.select(*columns, _sessions.c.agent)
                .join(_sessions, _sessions.c.session_id == _leases.c.session_id)
                .where(_leases.c.campaign_id == campaign_id, _leases.c.state == "active")
                .order_by(_leases.c.batch)
            ).mappings()
            return tuple(StoredLease(**row) for row in rows)

    # --- reports

    def commit_report(self, report: Report, *, now_s: float) -> CommitResult:
        """Commit a report, all of it or nothing; when this returns, it survives a power cut.

        Keys are (campaign, op, session, round, order): the same visit again changes nothing, another one under the same
        key is kept as a conflict. A late report's visits are stored like any others. Raises UnknownName (campaign) and
        UnknownSession for what this store never saw.
        """
        with self._write() as connection:
            active = self._phase(connection, report.campaign_id) == "active"
            if not self._exists(connection, _sessions.c.session_id == report.session_id):
                raise self._unknown_session(report.session_id)
            lease = connection.execute(
                sa.select(_leases.c.state, _leases.c.epoch, _leases.c.session_id, _leases.c.batch).where(
                    _leases.c.lease_id == report.lease_id, _leases.c.campaign_id == report.campaign_id
                )
            ).first()
            late = lease is None or lease[:3] != ("active", report.lease_epoch, report.session_id)
            known = connection.execute(
                sa.select(_reports.c.decision).where(_reports.c.report_id == report.report_id)
            ).first()
            new, repeated, conflicts = self._new_visits(connection, report)
            if new:
                connection.execute(_visits.insert(), new)
            self._keep_conflicts(connection, conflicts)
            self._keep_failures(connection, report)
            if known is None:
                connection.execute(
                    _reports.insert().values(
                        report_id=report.report_id,
                        campaign_id=report.campaign_id,
                        session_id=report.session_id,
                        lease_id=report.lease_id,
                        lease_epoch=report.lease_epoch,
                        batch=None if lease is None else lease.batch,
                        round=report.round,
                        late=late,
                        before=_conditions_text(report.before),
                        after=_conditions_text(report.after),
                        round_ns=report.round_ns,
                        timed_ns=report.timed_ns,
                        committed_s=now_s,
                    )
                )
        return CommitResult(
            n_new=len(new),
            n_repeated=repeated,
            n_conflicts=len(conflicts),
            late=late,
            repeated_report=known is not None,
            decision=None if known is None or known.decision is None else _decision(known.decision),
            campaign_active=active,
        )

    def record_decision(self, report: Report, decision: Decision, *, finished_batch: int | None, now_s: float) -> None:
        """Remember what was decided after a report: its drops, and with `finished_batch` that the batch is done."""
        with self._write() as connection:
            connection.execute(
                _reports.update()
                .where(_reports.c.report_id == report.report_id)
                .values(decision=json.dumps(asdict(decision)))
            )
            self._keep_drops(connection, report.campaign_id, decision.drop)
            if finished_batch is not None:
                self._finish_batch(connection, report.campaign_id, finished_batch, decision.reason, now_s)

    def finish_batch(self, campaign_id: str, batch: int, reason: str, *, now_s: float) -> None:
        """Record that a batch is done, and end its lease."""
        with self._write() as connection:
            self._finish_batch(connection, campaign_id, batch, reason, now_s)

    def record_failure(self, campaign_id: str, session_id: str, failure: Failure) -> None:
        """Remember a failure that no report carried: an artifact that cannot be built."""
        with self._write() as connection:
            self._insert_failures(connection, campaign_id, session_id, (failure,))

    def failures(self, campaign_id: str) -> tuple[StoredFailure, ...]:
        """Return the ops that failed, by op id; each with its latest reason and on how many occasions it failed."""
        with self._read() as connection:
            rows = connection.execute(
                sa.select(_failures.c.op_id, _failures.c.reason, _failures.c.detail)
                .where(_failures.c.campaign_id == campaign_id)
                .order_by(_failures.c.failure_no)
            ).all()
        attempts: dict[str, int] = {}
        latest: dict[str, tuple[Any, str]] = {}
        for op_id, reason, detail in rows:
            attempts[op_id] = attempts.get(op_id, 0) + 1
            latest[op_id] = (reason, detail)
        return tuple(
            StoredFailure(op_id=op_id, reason=latest[op_id][0], detail=latest[op_id][1], attempts=attempts[op_id])
            for op_id in sorted(latest)
        )

    def reports(self, campaign_ids: Sequence[str]) -> tuple[StoredReport, ...]:
        """Return the committed rounds of these campaigns with their conditions, in the order they were committed."""
        columns = [_reports.c[name] for name in StoredReport.__dataclass_fields__]
        with self._read() as connection:
            rows = connection.execute(
                sa.select(*columns)
                .where(_reports.c.campaign_id.in_(campaign_ids))
                .order_by(_reports.c.committed_s, _reports.c.report_id)
            ).mappings()
            return tuple(
                StoredReport(**{**row, "before": _conditions(row["before"]), "after": _conditions(row["after"])})
                for row in rows
            )

    # --- visits

    def visits(self, campaign_ids: Sequence[str]) -> Visits:
        """Return the columns of every visit of these campaigns. Read-only arrays.

        Asked again, it reads only what came since: cheap enough to decide after every round.
        """
        with self._caching:
            parts = [self._refreshed(campaign_id) for campaign_id in dict.fromkeys(campaign_ids)]
            op_ids = {op_id: number for number, op_id in enumerate(dict.fromkeys(i for p in parts for i in p.op_ids))}
            session_ids = {name: n for n, name in enumerate(dict.fromkeys(i for p in parts for i in p.session_ids))}
            op = _joined([_renumbered(part.op, part.op_ids, op_ids) for part in parts], np.int64)
            session = _joined([_renumbered(part.session, part.session_ids, session_ids) for part in parts], np.int64)
            columns = {
                "order" if name == "place" else name: _joined(
                    [part.values[number] for part in parts], np.float64 if name in _FLOATS else np.int64
                )
                for number, name in enumerate(_VISIT_COLUMNS)
            }
            agents = self._agents_of(session_ids)
        return Visits(
            op_ids=tuple(op_ids),
            session_ids=tuple(session_ids),
            session_agents=agents,
            op=op,
            session=session,
            **columns,
        )

    def raw_visits(self, campaign_ids: Sequence[str]) -> Iterator[RawVisit]:
        """Yield every visit of these campaigns with its samples, in the order of their commits; a page at a time."""
        last_no = 0
        while True:
            with self._read() as connection:
                rows = connection.execute(
                    sa.select(_visits)
                    .where(_visits.c.campaign_id.in_(campaign_ids), _visits.c.visit_no > last_no)
                    .order_by(_visits.c.visit_no)
                    .limit(_PAGE)
                ).all()
            if not rows:
                return
            for row in rows:
                yield RawVisit(campaign_id=row.campaign_id, session_id=row.session_id, timing=_timing(row))
            last_no = rows[-1].visit_no

    def conflicts(self, campaign_ids: Sequence[str]) -> tuple[Conflict, ...]:
        """Return the timings that came under the key of another."""
        with self._read() as connection:
            rows = connection.execute(
                sa.select(_conflicts)
                .where(_conflicts.c.campaign_id.in_(campaign_ids))
                .order_by(*_conflicts.primary_key.columns)
            ).all()
        return tuple(
            Conflict(
                campaign_id=row.campaign_id, session_id=row.session_id, report_id=row.report_id, timing=_timing(row)
            )
            for row in rows
        )

    # --- the parts

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._writing, _explained(self._path, "written"), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with _explained(self._path, "read"), self._reader.begin() as connection:
            yield connection

    def _prepare(self) -> None:
        """Check that the file is a store this release can use, or make an empty file one."""
        with self._write() as connection:
            tables = set(connection.scalars(sa.text("SELECT name FROM sqlite_master WHERE type = 'table'")))
            mark = connection.scalar(sa.text("PRAGMA application_id"))
            if not tables and mark in (0, APPLICATION_ID):
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                _metadata.create_all(connection)
                connection.execute(
                    _meta.insert(),
                    [
                        {"name": "schema_version", "value": str(SCHEMA_VERSION)},
                        {"name": "created_by", "value": __version__},
                    ],
                )
            elif mark != APPLICATION_ID or "meta" not in tables:
                raise StoreError(
                    f"{self._path} is a database of another program, not a campaign store; nothing was changed. "
                    "Choose another folder: export LUTBUILDER_STATE=FOLDER"
                )
            self._check_version(connection)
            verdict = connection.scalar(sa.text("PRAGMA quick_check(1)"))
            if verdict != "ok":
                raise StoreError(_damaged(self._path, str(verdict)))
        with _explained(self._path, "written"), self._reader.connect() as connection:
            connection.connection.driver_connection.execute("PRAGMA journal_mode = WAL")  # type: ignore[union-attr]  # an open connection has one

    def _check_version(self, connection: sa.Connection) -> None:
        found = connection.scalar(sa.select(_meta.c.value).where(_meta.c.name == "schema_version"))
        version = int(found) if found is not None and found.isdigit() else 0
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self._path} was written by a newer lutbuilder (store schema {version}, this one knows "
                f"{SCHEMA_VERSION}): pip install -U lutbuilder"
            )
        if version < 1:
            raise StoreError(_damaged(self._path, f"its schema version is {found!r}"))

    def _campaigns(self, condition: sa.ColumnElement[bool]) -> tuple[CampaignState, ...]:
        with self._read() as connection:
            rows = connection.execute(sa.select(_campaigns).where(condition).order_by(_campaigns.c.created_s)).all()
            sums = connection.execute(
                sa.select(
                    _reports.c.campaign_id,
                    _reports.c.session_id,
                    _reports.c.round,
                    sa.func.sum(_reports.c.round_ns),
                    sa.func.sum(_reports.c.timed_ns),
                )
                .where(_reports.c.campaign_id.in_([row.campaign_id for row in rows]))
                .group_by(_reports.c.campaign_id, _reports.c.session_id, _reports.c.round)
            ).all()
        totals: dict[str, list[int]] = {}
        for campaign_id, _, _, round_ns, timed_ns in sums:
            total = totals.setdefault(campaign_id, [0, 0, 0])
            total[:] = total[0] + 1, total[1] + int(round_ns), total[2] + int(timed_ns)
        states = []
        for row in rows:
            rounds, measured_ns, timed_ns = totals.get(row.campaign_id, (0, 0, 0))
            states.append(
                CampaignState(
                    campaign_id=row.campaign_id,
                    spec=self._spec(row.campaign_id, row.spec),
                    state=row.state,
                    reason=row.reason,
                    rounds=rounds,
                    measured_ns=measured_ns,
                    timed_ns=timed_ns,
                    created_s=row.created_s,
                    finished_s=row.finished_s,
                )
            )
        return tuple(states)

    def _spec(self, campaign_id: str, text: str) -> CampaignSpec:
        if campaign_id not in self._specs:
            self._specs[campaign_id] = CampaignSpec.from_canonical(json.loads(text))
        return self._specs[campaign_id]

    def _agent_states(self, condition: sa.ColumnElement[bool]) -> tuple[AgentState, ...]:
        last_report = (
            sa.select(sa.func.max(_reports.c.committed_s))
            .where(_reports.c.session_id == _sessions.c.session_id)
            .scalar_subquery()
        )
        with self._read() as connection:
            rows = connection.execute(
                sa.select(_sessions, last_report.label("last_report_s"))
                .where(condition)
                .order_by(_sessions.c.registered_s, _sessions.c.epoch)
            ).all()
        return tuple(
            AgentState(
                name=row.agent,
                session_id=row.session_id,
                epoch=row.epoch,
                agent_version=row.agent_version,
                fingerprint=Fingerprint(
                    device=row.device, facts=tuple((name, value) for name, value in json.loads(row.facts))
                ),
                runtimes=tuple(RuntimeReport(**report) for report in json.loads(row.runtimes)),
                registered_s=row.registered_s,
                last_report_s=row.last_report_s,
            )
            for row in rows
        )

    def _phase(self, connection: sa.Connection, campaign_id: str) -> CampaignPhase:
        phase: CampaignPhase | None = connection.scalar(
            sa.select(_campaigns.c.state).where(_campaigns.c.campaign_id == campaign_id)
        )
        if phase is None:
            raise self._unknown_campaign(campaign_id)
        return phase

    def _unknown_campaign(self, campaign_id: str) -> UnknownName:
        return UnknownName(
            f"campaign {campaign_id} is not in {self._path}: it belongs to another store; start its coordinator with "
            "LUTBUILDER_STATE set to that store's folder"
        )

    def _unknown_session(self, session_id: str) -> UnknownSession:
        return UnknownSession(f"session {session_id} is not in {self._path}: the agent has to register again")

    @staticmethod
    def _exists(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> bool:
        return bool(connection.scalar(sa.select(sa.exists().where(condition))))

    @staticmethod
    def _new_visits(
        connection: sa.Connection, report: Report
    ) -> tuple[list[dict[str, Any]], int, list[dict[str, Any]]]:
        """Return (rows to insert, how many were there already, conflicting rows)."""
        there: dict[tuple[int, str, int], tuple[int, int, bytes]] = {
            (row.round, row.op_id, row.place): (row.instance, row.start_ns, row.samples)
            for row in connection.execute(
                sa.select(
                    _visits.c.round,
                    _visits.c.op_id,
                    _visits.c.place,
                    _visits.c.instance,
                    _visits.c.start_ns,
                    _visits.c.samples,
                ).where(
                    _visits.c.campaign_id == report.campaign_id,
                    _visits.c.session_id == report.session_id,
                    _visits.c.round.in_({timing.round for timing in report.timings}),
                )
            )
        }
        new: list[dict[str, Any]] = []
        conflicts: list[dict[str, Any]] = []
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
                conflicts.append({**row, "report_id": report.report_id, "payload_sha256": digest})
        return new, repeated, conflicts

    def _keep_conflicts(self, connection: sa.Connection, conflicts: Iterable[dict[str, Any]]) -> None:
        for row in conflicts:
            key = [column == row[column.name] for column in _conflicts.primary_key.columns]
            if not self._exists(connection, sa.and_(*key)):
                connection.execute(_conflicts.insert().values(row))

    def _keep_failures(self, connection: sa.Connection, report: Report) -> None:
        self._insert_failures(connection, report.campaign_id, report.session_id, report.failures)

    def _insert_failures(
        self, connection: sa.Connection, campaign_id: str, session_id: str, failures: Iterable[Failure]
    ) -> None:
        for failure in failures:
            row = {
                "campaign_id": campaign_id,
                "op_id": failure.op_id,
                "session_id": session_id,
                "round": failure.round,
                "reason": failure.reason,
            }
            if not self._exists(connection, sa.and_(*(_failures.c[name] == value for name, value in row.items()))):
                connection.execute(_failures.insert().values(**row, detail=failure.detail))

    def _keep_drops(self, connection: sa.Connection, campaign_id: str, op_ids: Iterable[OpId]) -> None:
        for op_id in dict.fromkeys(op_ids):
            if not self._exists(connection, sa.and_(_drops.c.campaign_id == campaign_id, _drops.c.op_id == op_id)):
                connection.execute(_drops.insert().values(campaign_id=campaign_id, op_id=op_id))

    def _finish_batch(self, connection: sa.Connection, campaign_id: str, batch: int, reason: str, now_s: float) -> None:
        here = sa.and_(_batches.c.campaign_id == campaign_id, _batches.c.batch == batch)
        if not self._exists(connection, here):
            connection.execute(
                _batches.insert().values(campaign_id=campaign_id, batch=batch, reason=reason, finished_s=now_s)
            )
        connection.execute(
            _leases.update()
            .where(_leases.c.campaign_id == campaign_id, _leases.c.batch == batch, _leases.c.state == "active")
            .values(state="done", ended_s=now_s)
        )

    def _refreshed(self, campaign_id: str) -> _Columns:
        columns = self._columns.setdefault(campaign_id, _Columns())
        with self._read() as connection:
            rows = connection.execute(
                _READ_VISITS.where(_visits.c.campaign_id == campaign_id, _visits.c.visit_no > columns.last_no).order_by(
                    _visits.c.visit_no
                )
            ).all()
        if rows:
            columns.extend(rows)
        return columns

    def _agents_of(self, session_ids: Collection[str]) -> tuple[str, ...]:
        """Return the name of each session's agent."""
        if not self._agent_of.keys() >= set(session_ids):
            with self._read() as connection:
                self._agent_of |= {r.session_id: r.agent for r in connection.execute(sa.select(_sessions))}
        return tuple(self._agent_of[session_id] for session_id in session_ids)


def _path_of(path_or_url: str | Path) -> Path:
    """Return the file of a path or sqlite URL. Raises StoreError for another engine's URL, and for a folder."""
    text = str(path_or_url)
    if "://" in text:
        if not text.startswith("sqlite:///"):
            raise StoreError(
                f"{sa.make_url(text).render_as_string(hide_password=True)}: campaigns are kept in SQLite in this "
                "release: give a file, or sqlite:///FILE"
            )
        text = text.removeprefix("sqlite:///")
    path = Path(text)
    if path.is_dir():
        raise StoreError(f"{path} is a folder; name a file in it, e.g. {path / 'campaigns.sqlite'}")
    return path


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_S, "check_same_thread": False}
    )

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where `begun` says, not where the driver guesses
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # A writer takes the write lock at once: upgrading a reader fails at once when another process writes.
        connection.exec_driver_sql(connection.get_execution_options().get("lutbuilder_begin", "BEGIN"))

    return engine


@contextmanager
def _explained(path: Path, done: str) -> Iterator[None]:
    """Turn the database's errors into StoreError: what, where, what next."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise StoreError(_explanation(path, str(error.orig), done)) from error
    except sqlite3.Error as error:  # from the driver itself, where SQLAlchemy is not in between
        raise StoreError(_explanation(path, str(error), done)) from error


def _explanation(path: Path, words: str, done: str) -> str:
    lower = words.lower()
    if "file is not a database" in lower or "file is encrypted" in lower:
        return (
            f"{path} is not a campaign store (no SQLite file); nothing was changed. "
            "Choose another folder: export LUTBUILDER_STATE=FOLDER"
        )
    if "malformed" in lower or "disk i/o error" in lower:
        return _damaged(path, words)
    if "full" in lower:
        return (
            f"the disk of {path} is full: free some space and run the same command again; "
            "what was acknowledged is safe in the store"
        )
    if "readonly" in lower or "unable to open" in lower:
        return (
            f"{path} cannot be {done} ({words}): make it and its folder writable, "
            "or choose another folder: export LUTBUILDER_STATE=FOLDER"
        )
    if "locked" in lower:
        return f"{path} has been locked by another process for {BUSY_S:g} s: end the other lutbuilder, then try again"
    return f"{path} cannot be {done}: {words}"


def _damaged(path: Path, words: str) -> str:
    return (
        f"{path} is damaged ({words}); nothing was changed. Restore it from a backup, or move it away "
        f"(mv {path} {path}.damaged) and measure anew; published tables do not need it"
    )


def _renumbered(codes: NDArray[np.int64], before: dict[str, int], after: dict[str, int]) -> NDArray[np.int64]:
    return np.array([after[name] for name in before], np.int64)[codes]


def _joined(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    """Return the parts one after another, read-only: a single part is shared with the cache."""
    joined = parts[0].view() if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])
    joined.flags.writeable = False
    return joined


def _timing(row: Any) -> Timing:
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


def _conditions_text(conditions: Conditions | None) -> str | None:
    return None if conditions is None else json.dumps(asdict(conditions))


def _conditions(text: str | None) -> Conditions | None:
    return None if text is None else Conditions(**json.loads(text))


def _decision(text: str) -> Decision:
    body = json.loads(text)
    return Decision(**{**body, "drop": tuple(body["drop"])})
