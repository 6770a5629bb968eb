"""The two databases a store may live in, and what both promise: one writer at a time, durable commits, clear errors.

A writing transaction has the whole store to itself, whatever process it is in: SQLite's write lock, or one advisory
lock of PostgreSQL. Nothing is lost by that, because commits of one process share a transaction, and three things are
won: what is read before a write still holds at its commit, no commit is ever refused for another one's sake, and visits
are numbered in the order in which they become visible. Readers see one moment and wait for nobody.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from lutbuilder.coordinator.store.schema import metadata
from lutbuilder_agent.errors import MissingExtra, StoreError, UnknownName, UnknownSession

APPLICATION_ID = 0x6C757462  # "lutb": tells our files, and our locks in PostgreSQL, from others
BUSY_S = 10.0  # how long a writer waits for another process
PAUSES_S = (0.05, 0.25, 1.0)  # before a call that lost its connection, or had to give way, is made again
_LOOK_AGAIN_S = 0.01
_IDLE_S = 15.0  # a stopped process may hold the writers' lock of PostgreSQL no longer
_NO_SPACE = "free some space and run the same command again; what was acknowledged is safe in the store"

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class Database(ABC):
    """One database: how to read it, how to write it, and what its errors mean. Safe from any thread."""

    # What opens a transaction. Said by ourselves: a listener of SQLAlchemy would be asked again at every statement.
    _begin_reading = ""
    _begin_writing = ""

    def __init__(self, where: str, reader: sa.Engine, writer: sa.Engine) -> None:
        self.where = where  # as shown to people: without a password
        self.on_error: list[Callable[[StoreError], None]] = []
        self._reader = reader
        self._writer = writer
        self._writing = threading.RLock()  # threads queue here; one that writes inside a write shall not hang

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction with the store to itself; committed on the way out, or nothing of it is there."""
        with self._writing, self.explained("written"), self._writer.begin() as connection:
            connection.exec_driver_sql(self._begin_writing)
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that sees one moment."""
        with self.explained("read"), self._reader.begin() as connection:
            if self._begin_reading:
                connection.exec_driver_sql(self._begin_reading)
            yield connection

    @contextmanager
    def explained(self, done: str) -> Iterator[None]:
        """Turn the database's errors into StoreError: what, where, what next."""
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error) as error:  # the driver's own where SQLAlchemy is not in between
            raise self._told(self.explanation(error, done)) from error
        except sa.exc.TimeoutError as error:
            raise self._told(f"{self.where} cannot be {done}: all connections are busy; try again") from error
        except sa.exc.InvalidRequestError as error:  # a connection that broke in the middle of a transaction
            raise self._told(f"{self.where} cannot be {done}: {error}") from error

    def close(self) -> None:
        """Let go of it; nothing is lost without it."""
        self._reader.dispose()

    def damaged(self, words: str) -> StoreError:
        """The error for a store whose content makes no sense."""
        return self._told(f"{self.where} is damaged ({words}); nothing was changed. Restore it from a backup")

    def unknown_campaign(self, campaign_id: str) -> UnknownName:
        """The error for a campaign this store never saw."""
        return UnknownName(
            f"campaign {campaign_id} is not in {self.where}; those that are: lutbuilder campaigns. If it is of another "
            "store, start its coordinator with that one: --state-dir DIR or --store URL"
        )

    def unknown_session(self, session_id: str) -> UnknownSession:
        """The error for a session this store never saw."""
        return UnknownSession(f"session {session_id} is not in {self.where}: the agent has to register again")

    @abstractmethod
    def explanation(self, error: Exception, done: str) -> str:
        """Return what to tell people of an error of the driver."""

    @abstractmethod
    def passes(self, error: BaseException | None) -> bool:
        """Whether the same call, made again, has a good chance. Every call of the store may be made again."""

    @abstractmethod
    def claim(self, connection: sa.Connection) -> bool:
        """Make an empty database ours and return True; False: it is ours already. Raises StoreError for another's."""

    @abstractmethod
    def check(self, connection: sa.Connection) -> None:
        """Raise StoreError if the database is damaged, as far as it can tell."""

    def settle(self) -> None:  # noqa: B027  # most have nothing to settle
        """Make settings that no transaction can make; called once, when the database is known to be ours."""

    def keep_copy(self, connection: sa.Connection, suffix: str) -> None:  # noqa: B027  # a server's administrator does
        """Keep a copy of the whole store beside it, if it is a file: a writer is about to change the tables."""

    def _told(self, message: str) -> StoreError:
        error = StoreError(message)
        for callback in tuple(self.on_error):
            callback(error)
        return error


class SqliteFile(Database):
    """A file: WAL, synchronous=FULL."""

    _begin_reading = "BEGIN"
    _begin_writing = "BEGIN IMMEDIATE"  # upgrading a reader fails at once when another process writes

    def __init__(self, path: Path) -> None:
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            connect_args={"timeout": BUSY_S, "check_same_thread": False},
            pool_size=8,
            max_overflow=24,
        )
        sa.event.listen(engine, "connect", _no_guessing)
        super().__init__(str(path), engine, engine.execution_options())
        self.path = path

    def explanation(self, error: Exception, done: str) -> str:
        words = str(getattr(error, "orig", None) or error)
        lower = words.lower()
        if "file is not a database" in lower or "file is encrypted" in lower:
            return (
                f"{self.path} is not a campaign store (no SQLite file); nothing was changed. "
                "Choose another folder: export LUTBUILDER_STATE=FOLDER"
            )
        if "malformed" in lower:
            return str(self.damaged(words))
        if "full" in lower:
            return f"the disk of {self.path} is full: {_NO_SPACE}"
        if "disk i/o error" in lower:
            return (
                f"the disk of {self.path} cannot be {done} ({words}): it may be full, over its quota or failing; see "
                "df and dmesg, then run the same command again; what was acknowledged is safe in the store"
            )
        if "readonly" in lower or "unable to open" in lower:
            return (
                f"{self.path} cannot be {done} ({words}): make it and its folder writable, "
                "or choose another folder: export LUTBUILDER_STATE=FOLDER"
            )
        if "locked" in lower:
            return (
                f"{self.path} has been locked by another process for {BUSY_S:g} s: end the other lutbuilder, then try "
                "again"
            )
        return f"{self.path} cannot be {done}: {words}"

    def passes(self, error: BaseException | None) -> bool:
        return False  # what it could wait for, it has waited for

    def damaged(self, words: str) -> StoreError:
        return self._told(
            f"{self.path} is damaged ({words}); nothing was changed. Restore it from a backup, or save what can be "
            f"read of it: lutbuilder store salvage {self.path}; published tables do not need it"
        )

    def claim(self, connection: sa.Connection) -> bool:
        tables = set(connection.scalars(sa.text("SELECT name FROM sqlite_master WHERE type = 'table'")))
        mark = connection.scalar(sa.text("PRAGMA application_id"))
        if not tables and mark in (0, APPLICATION_ID):
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            return True
        if mark != APPLICATION_ID or "meta" not in tables:
            raise self._told(
                f"{self.path} is a database of another program, not a campaign store; nothing was changed. "
                "Choose another folder: export LUTBUILDER_STATE=FOLDER"
            )
        return False

    def check(self, connection: sa.Connection) -> None:
        verdict = connection.scalar(sa.text("PRAGMA quick_check(1)"))
        if verdict != "ok":
            raise self.damaged(str(verdict))

    def settle(self) -> None:
        with self.explained("written"), self._reader.connect() as connection:
            wait_until_s = time.monotonic() + BUSY_S
            while not self._write_ahead(connection.connection.driver_connection, wait_until_s):
                time.sleep(_LOOK_AGAIN_S)

    def _write_ahead(self, connection: Any, wait_until_s: float) -> bool:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:  # SQLite itself does not wait here for others who open a new file
            if "locked" not in str(error) or time.monotonic() >= wait_until_s:
                raise
            return False
        return True

    def keep_copy(self, connection: sa.Connection, suffix: str) -> None:
        """Copy what is committed, the journal included; whole or not there, however the process ends."""
        self.check(connection)
        copy = self.path.with_name(self.path.name + suffix)
        making = copy.with_name(f"{copy.name}.part")
        with self.explained("copied"):
            making.unlink(missing_ok=True)
            source = sqlite3.connect(self.path, timeout=BUSY_S)
            target = sqlite3.connect(making)
            try:
                target.execute("PRAGMA synchronous = FULL")
                source.backup(target)
            finally:
                target.close()
                source.close()
            making.replace(copy)


class Postgres(Database):
    """A database of PostgreSQL, or one schema of it (`?options=-csearch_path%3DNAME` in the URL)."""

    # The schema is part of the key: stores in two schemas of one database do not wait for each other.
    _begin_writing = f"SELECT pg_advisory_xact_lock({APPLICATION_ID}, hashtext(current_schema()))"

    def __init__(self, url: sa.URL) -> None:
        try:
            engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), pool_size=5, max_overflow=10)
        except ModuleNotFoundError as error:
            raise MissingExtra("a store in PostgreSQL needs: pip install 'lutbuilder[postgres]'") from error
        sa.event.listen(engine, "connect", _patience_in_postgres)
        # Committed, not repeatable: what a writer reads it reads behind the lock, and so as the last writer left it.
        writer = engine.execution_options(isolation_level="READ COMMITTED")
        reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        super().__init__(url.render_as_string(hide_password=True), reader, writer)

    def explanation(self, error: Exception, done: str) -> str:
        cause = getattr(error, "orig", None) or error
        words = " ".join(str(cause).split())
        state = str(getattr(cause, "sqlstate", None) or "")
        if state == "55P03":
            return f"{self.where} has been locked by another coordinator for {BUSY_S:g} s: look for one that hangs"
        if state == "53100":
            return f"the disk of {self.where} is full: {_NO_SPACE}"
        if state in ("42501", "25006"):
            return f"{self.where} cannot be {done} ({words}): give its user the right to, or name another user"
        if state.startswith("XX"):
            return str(self.damaged(words))
        if not state or state.startswith(("08", "28", "3D", "53", "57P")):
            return (
                f"{self.where} cannot be reached ({words}): is the server running, the database made (createdb NAME) "
                "and the user allowed to use it? Try it: psql URL"
            )
        return f"{self.where} cannot be {done}: {words}"

    def passes(self, error: BaseException | None) -> bool:
        """Conflicts that the server resolved at our cost, and connections that broke; not: never came about."""
        state = str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")
        broken = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
        return broken or state in ("40001", "40P01", "57P01", "57P02", "57P03", "08000", "08003", "08006", "25P03")

    def claim(self, connection: sa.Connection) -> bool:
        tables = set(sa.inspect(connection).get_table_names())
        if not tables:
            return True
        mark = None
        if "meta" in tables:
            mark = connection.scalar(sa.text("SELECT value FROM meta WHERE name = 'application'"))
        if mark != "lutbuilder":
            raise self._told(
                f"{self.where} has tables of another program ({', '.join(sorted(tables)[:3])}); nothing was changed. "
                "Give campaigns a database of their own: createdb NAME"
            )
        return False

    def check(self, connection: sa.Connection) -> None:
        """Whether every table is there; the pages are the server's to watch over."""
        missing = set(metadata.tables) - set(sa.inspect(connection).get_table_names())
        if missing:
            raise self.damaged(f"without table {min(missing)}")


def open_database(path_or_url: str | Path) -> Database:
    """Return the database of a path, of `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.

    Raises StoreError for another engine's URL, and for a folder; MissingExtra without PostgreSQL's driver.
    """
    text = str(path_or_url)
    if "://" not in text:
        return _file(Path(text))
    if text.startswith("sqlite:///"):
        return _file(Path(text.removeprefix("sqlite:///")))
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise StoreError(
            "the store's URL cannot be read: write postgresql://USER:PASSWORD@HOST:PORT/NAME, with %40 for an @ in the "
            "password"
        ) from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise StoreError(
            f"{url.render_as_string(hide_password=True)}: campaigns are kept in SQLite or PostgreSQL: give a file, "
            "sqlite:///FILE, or postgresql://USER@HOST/NAME"
        )
    return Postgres(url)


def _file(path: Path) -> SqliteFile:
    if path.is_dir():
        raise StoreError(f"{path} is a folder; name a file in it, e.g. {path / 'campaigns.sqlite'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create the folder of the campaign store, {path.parent}: {error.strerror}. "
            "Choose another: export LUTBUILDER_STATE=FOLDER"
        ) from error
    return SqliteFile(path)


# --- what the engines do when a connection begins


def _no_guessing(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    connection.execute("PRAGMA synchronous = FULL")


def _patience_in_postgres(connection: Any, _: object) -> None:
    connection.execute(f"SET lock_timeout = '{BUSY_S:g}s'")
    connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_S:g}s'")
    connection.commit()


# --- what the parts of a store share


class Part:
    """A topic of the store: methods over its database."""

    def __init__(self, database: Database) -> None:
        self._db = database


_Any = TypeVar("_Any", bound=Part)


def retried(
    method: Callable[Concatenate[_Any, _Given], _Result],
) -> Callable[Concatenate[_Any, _Given], _Result]:
    """Make a method that may be called twice, as all of them may, outlive a connection that breaks."""

    @wraps(method)
    def again(self: _Any, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        for pause_s in PAUSES_S:
            try:
                return method(self, *args, **kwargs)
            except StoreError as error:
                if not self._db.passes(error.__cause__):
                    raise
            time.sleep(pause_s)
        return method(self, *args, **kwargs)

    return again


def exists(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> bool:
    """Return whether any row meets the condition."""
    return bool(connection.scalar(sa.select(sa.exists().where(condition))))
