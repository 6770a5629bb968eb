"""What every test shares. Fixtures live here only if more than one folder of tests uses them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres import PostgresServer, missing, running_server

# A busy two-core machine takes its time; and what CI finds must be findable again.
settings.register_profile("lutbuilder", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("lutbuilder")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def fresh_python(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that runs code in a process of its own, sees this checkout first, and gives its stdout.

    For claims about what an import loads: this process has long loaded everything.
    """

    def run(code: str) -> str:
        path = os.pathsep.join([str(ROOT), str(ROOT / "agents")])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server. Where none can be, tests that need one are skipped; in CI they fail."""
    reason = missing()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with running_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """The URL of an empty store: a schema of its own."""
    return postgres.new_schema()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a test may make a store, once in a file and once in PostgreSQL."""
    if request.param == "sqlite":
        return str(tmp_path / "campaigns.sqlite")
    url: str = request.getfixturevalue("postgres_url")
    return url
