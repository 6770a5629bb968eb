"""Visits: the columns that statistics read, kept in memory and read on from where they end; and all raw samples."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from lutbuilder.coordinator.store.engine import Database, Part, retried
from lutbuilder.coordinator.store.reports import timing_of
from lutbuilder.coordinator.store.schema import sessions, visits
from lutbuilder.coordinator.store.states import RawVisit
from lutbuilder.stats.records import Visits

PAGE = 5000  # rows a read holds at a time; as objects they take ten times the room of columns
RAW_PAGE = 1000  # with their samples
MOST_KEPT = 1_000_000  # visits in memory, of all campaigns; some 80 MB

_VALUES = (
    "round", "place", "instance", "start_ns", "block_ns", "p90_ns", "n_calls", "n_preempted",
)  # fmt: skip  # one line reads as one record
_FLOATS = ("block_ns", "p90_ns")
_KEPT = ("op", "session", *_VALUES)
_READ = sa.select(visits.c.visit_no, visits.c.op_id, visits.c.session_id, *(visits.c[name] for name in _VALUES))


@dataclass(slots=True)
class _Columns:
    """The visits of one campaign read so far. Mutable, because it grows; only `visits` touches it.

    What was read stays where it is: an array given out is a view of a first part, and never changes.
    """

    last_no: int = 0
    count: int = 0
    op_ids: dict[str, int] = field(default_factory=dict)
    session_ids: dict[str, int] = field(default_factory=dict)
    room: dict[str, NDArray[Any]] = field(
        default_factory=lambda: {name: np.empty(0, np.float64 if name in _FLOATS else np.int64) for name in _KEPT}
    )

    def extend(self, rows: Sequence[Any]) -> None:
        """Append rows of _READ."""
        numbers, op_ids, session_ids, *values = zip(*rows, strict=True)
        self.last_no = numbers[-1]
        columns: dict[str, Sequence[Any]] = dict(zip(_VALUES, values, strict=True))
        columns["op"] = [self.op_ids.setdefault(op_id, len(self.op_ids)) for op_id in op_ids]
        columns["session"] = [self.session_ids.setdefault(name, len(self.session_ids)) for name in session_ids]
        end = self.count + len(rows)
        if end > len(self.room["op"]):  # twice the room: a visit is moved once on average
            self.room = {name: np.resize(old, max(2 * len(old), end)) for name, old in self.room.items()}
        for name, column in columns.items():
            self.room[name][self.count : end] = column
        self.count = end

    def column(self, name: str) -> NDArray[Any]:
        """Return what was read of a column, read-only."""
        read = self.room[name][: self.count]
        read.flags.writeable = False
        return read


class ReadVisits(Part):
    """The visits of a store's campaigns."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._reading = threading.Lock()
        self._columns: dict[str, _Columns] = {}
        self._agent_of: dict[str, str] = {}  # a session's agent never changes

    @retried
    def visits(self, campaign_ids: Sequence[str]) -> Visits:
        """Return the columns of every visit of these campaigns. Read-only arrays.

        Asked again, it reads only what came since: cheap enough to decide after every round.
        """
        with self._reading:
            parts = [self._refreshed(campaign_id) for campaign_id in dict.fromkeys(campaign_ids)]
            op_ids = {op_id: number for number, op_id in enumerate(dict.fromkeys(i for p in parts for i in p.op_ids))}
            session_ids = {name: n for n, name in enumerate(dict.fromkeys(i for p in parts for i in p.session_ids))}
            columns = {name: _joined([part.column(name) for part in parts], name) for name in _VALUES}
            op = _joined([_renumbered(part.column("op"), part.op_ids, op_ids) for part in parts], "op")
            session = _joined(
                [_renumbered(part.column("session"), part.session_ids, session_ids) for part in parts], "session"
            )
            agents = self._agents_of(session_ids)
            self._forget_some()
        return Visits(
            op_ids=tuple(op_ids),
            session_ids=tuple(session_ids),
            session_agents=agents,
            op=op,
            session=session,
            order=columns.pop("place"),
            **columns,
        )

    def raw_visits(self, campaign_ids: Sequence[str]) -> Iterator[RawVisit]:
        """Yield every visit of these campaigns with its samples, in the order of their commits; a page at a time."""
        wanted = sa.select(visits).where(visits.c.campaign_id.in_(tuple(campaign_ids)))
        last_no = 0
        while rows := self._page(wanted, last_no, RAW_PAGE):
            for row in rows:
                yield RawVisit(campaign_id=row.campaign_id, session_id=row.session_id, timing=timing_of(row))
            last_no = rows[-1].visit_no

    @retried
    def _page(self, wanted: sa.Select[Any], last_no: int, most: int) -> Sequence[Any]:
        with self._db.reading() as connection:
            later = wanted.where(visits.c.visit_no > last_no).order_by(visits.c.visit_no)
            return connection.execute(later.limit(most)).all()

    def _refreshed(self, campaign_id: str) -> _Columns:
        columns = self._columns.pop(campaign_id, None) or _Columns()
        self._columns[campaign_id] = columns  # last: the one asked for most lately
        wanted = _READ.where(visits.c.campaign_id == campaign_id)
        while rows := self._page(wanted, columns.last_no, PAGE):
            columns.extend(rows)
            if len(rows) < PAGE:
                break
        return columns

    def _forget_some(self) -> None:
        """Let go of the columns that nobody asked for longest, but never of all: they are read again when needed."""
        while len(self._columns) > 1 and sum(columns.count for columns in self._columns.values()) > MOST_KEPT:
            del self._columns[next(iter(self._columns))]

    def _agents_of(self, session_ids: Collection[str]) -> tuple[str, ...]:
        """Return the name of each session's agent."""
        if not self._agent_of.keys() >= set(session_ids):
            with self._db.reading() as connection:
                rows = connection.execute(sa.select(sessions.c.session_id, sessions.c.agent)).all()
            self._agent_of |= {row.session_id: row.agent for row in rows}
        return tuple(self._agent_of[session_id] for session_id in session_ids)


def _renumbered(codes: NDArray[np.int64], before: dict[str, int], after: dict[str, int]) -> NDArray[np.int64]:
    if list(before) == list(after)[: len(before)]:
        return codes
    return np.array([after[name] for name in before], np.int64)[codes]


def _joined(parts: Sequence[NDArray[Any]], name: str) -> NDArray[Any]:
    """Return the parts one after another, read-only: a single part is shared with the cache."""
    if len(parts) == 1:
        return parts[0]
    joined = np.concatenate([np.empty(0, np.float64 if name in _FLOATS else np.int64), *parts])
    joined.flags.writeable = False
    return joined
