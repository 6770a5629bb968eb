"""A PostgreSQL server for tests: the distribution's own programs in a folder of their own, on a Unix socket only.

Its settings are those it comes with, fsync included, but for little memory. PostgreSQL refuses to run as root; started
by root it runs as an unprivileged user.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_START_S = 60.0
_USERS = ("postgres", "nobody")


def programs() -> Path | None:
    """Return the folder of initdb and postgres, None if they are not installed. Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


def missing() -> str | None:
    """Return why there can be no server here, None if there can."""
    if programs() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    try:
        import psycopg  # noqa: F401  # only whether it is there
    except ImportError:
        return "the driver of PostgreSQL is not installed: pip install 'lutbuilder[postgres]'"
    return None


@dataclass
class PostgresServer:
    """A running server. Its databases are empty when they are made, and gone with it."""

    folder: Path
    process: subprocess.Popen[bytes]
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def url(self, database: str = "postgres") -> str:
        """Return how to connect."""
        return f"postgresql://lutbuilder@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def new_schema(self) -> str:
        """Make an empty schema and return the URL of a store in it: as good as a database, and forty times cheaper."""
        name = f"test{next(self._numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self.url()}&options=-csearch_path%3D{name}"

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement outside any transaction and return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def disconnect_all(self, database: str) -> int:
        """End every other connection to a database at once, as an administrator does; return how many there were."""
        return len(
            self.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{database}' AND pid <> pg_backend_pid()"
            )
        )

    def restart(self) -> None:
        """Stop as after a crash, and start again."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()
        self.process = _started(self.folder)


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server in a new folder below the temporary one; end it and remove the folder on the way out."""
    folder = Path(tempfile.mkdtemp(prefix="lbpg-"))  # short: the path of a socket has at most 107 bytes
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam(_user())
            os.chown(folder, user.pw_uid, user.pw_gid)
        bin_folder = programs()
        assert bin_folder is not None, missing()
        words = [bin_folder / "initdb", "-D", folder / "data", "-U", "lutbuilder", "-A", "trust", "-E", "UTF8"]
        made = subprocess.run(
            [*words, "--locale=C", "--no-sync"], **_as_user(folder), capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stdout + made.stderr
        server = PostgresServer(folder, _started(folder))
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGQUIT)
            server.process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(folder: Path) -> subprocess.Popen[bytes]:
    bin_folder = programs()
    assert bin_folder is not None
    command = [bin_folder / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses="]
    command += ["-c", "shared_buffers=16MB", "-c", "max_connections=60"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **_as_user(folder))
    until_s = time.monotonic() + _START_S
    ready = [bin_folder / "pg_isready", "-h", folder, "-U", "lutbuilder", "-d", "postgres", "-q"]
    while subprocess.run(ready, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > until_s:
            process.kill()
            raise RuntimeError(f"PostgreSQL did not start:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")
        time.sleep(0.02)
    return process


def _user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _USERS if name in names)


def _as_user(folder: Path) -> dict[str, object]:
    """Return what makes a process an unprivileged one that ends with this process, however that ends."""
    given: dict[str, object] = {
        "cwd": folder,
        "env": {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
        "preexec_fn": _end_with_parent,
    }
    if os.geteuid() == 0:
        user = pwd.getpwnam(_user())
        given |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return given


def _end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGQUIT)
