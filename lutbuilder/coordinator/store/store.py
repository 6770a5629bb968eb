"""Store: all topics of the campaign store over one database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import sqlalchemy as sa

from lutbuilder.coordinator.store.campaigns import Campaigns
from lutbuilder.coordinator.store.coordinators import Coordinators
from lutbuilder.coordinator.store.engine import Database, SqliteFile, open_database
from lutbuilder.coordinator.store.failures import Failures
from lutbuilder.coordinator.store.jobs import Jobs
from lutbuilder.coordinator.store.leases import Leases
from lutbuilder.coordinator.store.prepare import prepare
from lutbuilder.coordinator.store.reports import Reports
from lutbuilder.coordinator.store.sessions import Sessions
from lutbuilder.coordinator.store.visits import ReadVisits
from lutbuilder_agent.errors import StoreError


class Store(Campaigns, Sessions, Leases, Reports, Failures, ReadVisits, Jobs, Coordinators):
    """The campaign store in a SQLite file or a PostgreSQL database; open it with `Store.open`.

    Safe from any thread, and from several processes. Every method that writes is one transaction: killed at any moment,
    a store holds all of it or nothing. Every method may be called again with the same arguments, and then gives what it
    would have given: whoever got no answer asks once more. All raise StoreError if they cannot.
    """

    @classmethod
    def open(cls, path_or_url: str | Path) -> Store:
        """Open, or create, the store at a path, `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`.

        A store of an older release is brought up to date, a file after a copy of it was kept beside it. Raises
        StoreError for what is no store, is damaged, cannot be written, or is from a newer lutbuilder.
        """
        database = open_database(path_or_url)
        try:
            prepare(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def __init__(self, database: Database) -> None:
        super().__init__(database)

    @property
    def where(self) -> str:
        """The file, or the URL without its password: what to show people."""
        return self._db.where

    @property
    def path(self) -> Path:
        """The file. Raises StoreError where there is none."""
        if not isinstance(self._db, SqliteFile):
            raise StoreError(f"{self.where} is no file")
        return self._db.path

    @property
    def on_error(self) -> list[Callable[[StoreError], None]]:
        """Who is told of every error of the database, in the thread that met it. They must not raise."""
        return self._db.on_error

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """One transaction that sees one moment; for those who keep tables of their own here (store/schema.py)."""
        return self._db.reading()

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """One transaction with the store to itself, committed on the way out, or nothing of it is there."""
        return self._db.writing()

    def close(self) -> None:
        """Let go of the database; nothing is lost without it."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
