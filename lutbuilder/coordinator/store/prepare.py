"""Opening a store: an empty database becomes one, an old one is upgraded, a newer or foreign one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from lutbuilder.coordinator.store.engine import Database
from lutbuilder.coordinator.store.schema import REVISION, SCHEMA_VERSION, alembic_version, meta, metadata
from lutbuilder_agent import __version__
from lutbuilder_agent.errors import StoreError

if TYPE_CHECKING:
    from alembic.config import Config

_FIRST = "0001"  # stores of the first release carry no mark of alembic's


def prepare(database: Database) -> None:
    """Make the database a store of this release, in one transaction: another process sees the old one or the new one.

    Raises StoreError for one that is not ours, is damaged, cannot be written, or is from a newer lutbuilder.
    """
    with database.writing() as connection:
        if database.claim(connection):
            _create(connection)
        found = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "schema_version"))
        version = int(found) if found is not None and found.isdigit() else 0
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{database.where} was written by a newer lutbuilder (store schema {version}, this one knows "
                f"{SCHEMA_VERSION}): pip install -U lutbuilder"
            )
        if version < 1:
            raise database.damaged(f"its schema version is {found!r}")
        if version < SCHEMA_VERSION:
            database.keep_copy(connection, f".before-{REVISION}")
            migrate(connection)
    database.settle()
    with database.reading() as connection:  # nobody waits while a large file is read through
        database.check(connection)


def migrate(connection: sa.Connection) -> None:
    """Bring the tables that a connection sees to this release's schema; commits nothing."""
    from alembic import command  # some 100 ms: not for the thousand times that a store is up to date

    config = _config(connection)
    tables = set(sa.inspect(connection).get_table_names())
    if "campaigns" in tables and alembic_version.name not in tables:
        command.stamp(config, _FIRST)
    command.upgrade(config, REVISION)


def _create(connection: sa.Connection) -> None:
    metadata.create_all(connection, checkfirst=False)  # there is nothing: each would be looked for by itself
    connection.execute(
        meta.insert(),
        [
            {"name": "application", "value": "lutbuilder"},
            {"name": "schema_version", "value": str(SCHEMA_VERSION)},
            {"name": "created_by", "value": __version__},
        ],
    )
    connection.execute(alembic_version.insert().values(version_num=REVISION))


def _config(connection: sa.Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
