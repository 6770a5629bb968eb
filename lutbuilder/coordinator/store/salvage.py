"""Saving what can be read of a damaged store file into a new one, and saying what is lost.

Damage comes in pages: a disk that lost some, a copy that was cut. SQLite refuses a whole query for one bad page, so
rows are asked for one after another, past every gap. What comes back is believed only if it makes sense: samples must
give the summary that was stored with them, a campaign's spec its own key, and nothing may belong to a campaign or
session that is lost.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator import samples
from lutbuilder.coordinator.store import schema
from lutbuilder.coordinator.store.engine import APPLICATION_ID, open_database
from lutbuilder.coordinator.store.prepare import prepare
from lutbuilder_agent.errors import LutbuilderError, StoreError
from lutbuilder_agent.records import Fingerprint, RuntimeReport

_ROWS = 500  # inserted at a time
_PATIENCE = 20_000  # row numbers in a row that cannot be read before the rest of a table is given up
_BEGINNING = -(1 << 62)  # before every row number

_Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SalvagedTable:
    """What became of a table. `lost` counts the rows known to be gone; not `complete`: there may have been more."""

    name: str
    kept: int
    lost: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What was saved of the store `source` into `target`."""

    source: Path
    target: Path
    tables: tuple[SalvagedTable, ...]

    @property
    def lossless(self) -> bool:
        """Whether everything was there."""
        return all(table.complete and not table.lost for table in self.tables)


def salvage(source: Path, target: Path) -> Salvage:
    """Copy what can be read of a store file into a new store; the damaged one stays as it is.

    Raises StoreError if the target exists, if the source is no file of ours, or if nothing of it can be read.
    """
    if target.exists():
        raise StoreError(f"{target} is there already; name another file: --into FILE")
    making = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".salvage-") as folder,
            closing(_opened(_copied(source, Path(folder)), source)) as damaged,
        ):
            tables = _saved(damaged, making)
        if not any(table.kept for table in tables):
            raise StoreError(f"nothing of {source} can be read; restore it from a backup, or measure anew")
        making.replace(target)
    except OSError as error:
        raise StoreError(
            f"cannot save {source} into {target}: {error.strerror or error}. Name one where there is room: --into FILE"
        ) from error
    finally:
        for path in (making, *(making.with_name(making.name + end) for end in ("-wal", "-shm"))):
            path.unlink(missing_ok=True)
    return Salvage(source=source, target=target, tables=tables)


def _copied(source: Path, folder: Path) -> Path:
    """Return a copy to work on, its journal included: reading a damaged store must not change it."""
    copy = folder / source.name
    shutil.copyfile(source, copy)
    journal = source.with_name(f"{source.name}-wal")
    if journal.exists():
        shutil.copyfile(journal, copy.with_name(journal.name))
    return copy


def _opened(copy: Path, source: Path) -> sqlite3.Connection:
    damaged = sqlite3.connect(copy, isolation_level=None)
    try:
        damaged.execute("PRAGMA writable_schema = ON")  # else a file that was cut is refused before its first page
        mark = damaged.execute("PRAGMA application_id").fetchone()[0]
        tables = {row[0] for row in damaged.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        damaged.close()
        raise StoreError(
            f"nothing of {source} can be read ({error}): its first page is gone, or it never was a campaign store. "
            "Restore it from a backup, or measure anew"
        ) from error
    if mark != APPLICATION_ID or "campaigns" not in tables:
        damaged.close()
        raise StoreError(f"{source} is a database of another program, not a campaign store; nothing was read")
    return damaged


def _saved(damaged: sqlite3.Connection, making: Path) -> tuple[SalvagedTable, ...]:
    making.unlink(missing_ok=True)
    database = open_database(making)
    try:
        prepare(database)
        with database.writing() as connection:
            saved = tuple(_Saver(damaged, connection).tables())
            _recount(connection)
        with database.writing() as connection:
            database.check(connection)
    finally:
        database.close()
    return saved


class _Saver:
    """Copies table after table, campaigns and sessions first: what belongs to a lost one is lost as well."""

    def __init__(self, damaged: sqlite3.Connection, connection: sa.Connection) -> None:
        self._damaged = damaged
        self._connection = connection
        self._known: dict[str, set[str]] = {}

    def tables(self) -> Iterator[SalvagedTable]:
        """Copy all, and tell what became of each."""
        there = {row[0] for row in self._damaged.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in (
            schema.campaigns, schema.sessions, schema.agents, schema.leases, schema.batches, schema.reports,
            schema.visits, schema.conflicts, schema.failures, schema.drops, schema.jobs, schema.trust_cas,
            schema.trust_tokens, schema.trust_joins, schema.trust_certificates,
        ):  # fmt: skip  # a list of names
            if table.name in there:
                yield self._table(table)

    def _table(self, table: sa.Table) -> SalvagedTable:
        kept = lost = 0
        together: list[_Row] = []
        scan = _Scan(self._damaged, table)
        for row in scan.rows():
            if self._makes_sense(table, row):
                together.append(row)
            else:
                lost += 1
            if len(together) == _ROWS:
                kept += self._insert(table, together)
                together = []
        kept += self._insert(table, together)
        if table in (schema.campaigns, schema.sessions):
            key = next(iter(table.primary_key.columns))
            self._known[key.name] = set(self._connection.scalars(sa.select(key)))
        return SalvagedTable(name=table.name, kept=kept, lost=scan.read + scan.lost - kept, complete=scan.complete)

    def _insert(self, table: sa.Table, rows: Sequence[_Row]) -> int:
        """Insert rows, but for those whose key is taken: two rows of one key cannot both be right."""
        before = self._connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
        if rows:
            self._connection.execute(table.insert().prefix_with("OR IGNORE"), list(rows))
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0) - int(before)

    def _makes_sense(self, table: sa.Table, row: _Row) -> bool:
        for name, known in self._known.items():
            if name in row and row[name] not in known:
                return False
        for name, value in row.items():
            column = table.c[name]
            if not (isinstance(value, _TYPES[type(_plain(column.type))]) or (value is None and column.nullable)):
                return False
            if isinstance(value, str) and "\0" in value:  # a page that is gone reads as zeros
                return False
        check = _CHECKS.get(table.name)
        try:
            return check is None or check(row)
        except (LutbuilderError, ValueError, TypeError, KeyError, AttributeError):
            return False


def _plain(kind: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    return sa.Text() if isinstance(kind, schema.Words) else kind


_TYPES: dict[type[sa.types.TypeEngine[Any]], tuple[type, ...]] = {
    sa.Text: (str,),
    sa.BigInteger: (int,),
    sa.Boolean: (int,),
    sa.Float: (float, int),
    sa.LargeBinary: (bytes,),
}


def _whole_campaign(row: _Row) -> bool:
    return bool(CampaignSpec.from_canonical(json.loads(row["spec"])).key == row["campaign_id"])


def _whole_session(row: _Row) -> bool:
    Fingerprint(device=row["device"], facts=tuple((name, value) for name, value in json.loads(row["facts"])))
    return all(RuntimeReport(**report) for report in json.loads(row["runtimes"]))


def _whole_report(row: _Row) -> bool:
    texts = [row["before"], row["after"], row["decision"]]
    return all(isinstance(json.loads(text), dict) for text in texts if text is not None)


def _whole_visit(row: _Row) -> bool:
    calls = samples.unpack(row["samples"])
    disturbed = sorted({*calls.preempted, *(calls.throttled or ())})
    summary = samples.summary(calls.samples_ns, disturbed)
    return summary == (row["block_ns"], row["p90_ns"]) and len(calls.samples_ns) == row["n_calls"]


_CHECKS: dict[str, Callable[[_Row], bool]] = {
    "campaigns": _whole_campaign,
    "sessions": _whole_session,
    "reports": _whole_report,
    "visits": _whole_visit,
    "conflicts": lambda row: bool(samples.unpack(row["samples"]).samples_ns),
    "jobs": lambda row: isinstance(json.loads(row["campaign_ids"]), list),
}


class _Scan:
    """Reads a table by its row numbers, past what cannot be read."""

    def __init__(self, damaged: sqlite3.Connection, table: sa.Table) -> None:
        self.read = 0
        self.lost = 0
        self.complete = True
        self._damaged = damaged
        there = {row[1] for row in damaged.execute(f"PRAGMA table_info({table.name})")}
        self._columns = [column.name for column in table.columns if column.name in there]
        names = ", ".join(f'"{name}"' for name in self._columns)
        # By row number: an index may be damaged too, and is not needed.
        self._from = f"SELECT rowid, {names} FROM {table.name} NOT INDEXED WHERE rowid >= ? ORDER BY rowid"
        self._last_given = self._numbered_up_to(table)

    def rows(self) -> Iterator[_Row]:
        """Yield every row that can be read."""
        wanted = _BEGINNING
        while True:
            try:
                for row in self._damaged.execute(self._from, (wanted,)):
                    wanted = row[0] + 1
                    yield self._row(row)
                break
            except (sqlite3.DatabaseError, OverflowError):
                # Perhaps of the row behind the one that comes next: the driver reads one ahead.
                wanted = max(wanted, 1)
                found = self._first_readable(wanted)
                if found is None:
                    self.complete = self._last_given is not None
                    break
                self.lost += found[0] - wanted
                wanted = found[0] + 1
                yield self._row(found)
        if self._last_given is not None:
            self.lost += max(0, self._last_given - max(wanted, 1) + 1)

    def _row(self, row: Sequence[Any]) -> _Row:
        self.read += 1
        return dict(zip(self._columns, row[1:], strict=True))

    def _first_readable(self, wanted: int) -> Sequence[Any] | None:
        """Return the first row from number `wanted` on that can be read; None if there is none."""
        end = wanted + _PATIENCE if self._last_given is None else self._last_given + 1
        for number in range(wanted, end):
            try:
                row: Sequence[Any] | None = self._damaged.execute(f"{self._from} LIMIT 1", (number,)).fetchone()
            except (sqlite3.DatabaseError, OverflowError):
                continue
            return row
        return None

    def _numbered_up_to(self, table: sa.Table) -> int | None:
        """Return the highest number ever given in a table that remembers it."""
        try:
            row = self._damaged.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table.name,)).fetchone()
        except sqlite3.DatabaseError:
            return None
        return None if row is None else int(row[0])


def _recount(connection: sa.Connection) -> None:
    """Make the running sums those of the reports that are there."""
    for statement in (
        """
        UPDATE campaigns SET
            rounds = (SELECT count(*) FROM (
                SELECT DISTINCT r.session_id, r.round FROM reports r WHERE r.campaign_id = campaigns.campaign_id)),
            measured_ns = coalesce(
                (SELECT sum(r.round_ns) FROM reports r WHERE r.campaign_id = campaigns.campaign_id), 0),
            timed_ns = coalesce(
                (SELECT sum(r.timed_ns) FROM reports r WHERE r.campaign_id = campaigns.campaign_id), 0),
            next_round = max(
                next_round,
                1 + coalesce((SELECT max(r.round) FROM reports r WHERE r.campaign_id = campaigns.campaign_id), -1),
                1 + coalesce((SELECT max(v.round) FROM visits v WHERE v.campaign_id = campaigns.campaign_id), -1))
        """,
        """
        INSERT INTO batch_rounds (campaign_id, batch, rounds)
        SELECT campaign_id, batch, count(*) FROM (
            SELECT DISTINCT campaign_id, batch, session_id, round FROM reports WHERE batch IS NOT NULL)
        GROUP BY campaign_id, batch
        """,
        """
        UPDATE sessions SET
            last_report_s = (SELECT max(r.committed_s) FROM reports r WHERE r.session_id = sessions.session_id)
        """,
        """
        UPDATE leases SET domain = coalesce(
            (SELECT s.agent FROM sessions s WHERE s.session_id = leases.session_id), '')
        WHERE domain = ''
        """,
    ):
        connection.exec_driver_sql(statement)
