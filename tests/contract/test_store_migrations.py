"""A store of every released schema opens for ever, with all it holds; and a migrated store is like a new one."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.store import Store, prepare, schema
from lutbuilder.coordinator.store.engine import Database, open_database
from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.records import Conditions, Failure, Report, RuntimeReport, Timing


@pytest.fixture
def golden(root: Path, tmp_path: Path) -> Path:
    """The store of the first release: a copy, for opening it changes it."""
    copy = tmp_path / "campaigns.sqlite"
    shutil.copyfile(root / "tests" / "golden" / "store-schema-1.sqlite", copy)
    return copy


def _rows(path: Path, tables: dict[str, list[str]]) -> dict[str, list[tuple[Any, ...]]]:
    connection = sqlite3.connect(path)
    try:
        return {
            name: connection.execute(f"SELECT {', '.join(columns)} FROM {name} ORDER BY rowid").fetchall()
            for name, columns in tables.items()
        }
    finally:
        connection.close()


def _tables(path: Path) -> dict[str, list[str]]:
    connection = sqlite3.connect(path)
    try:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [f'"{row[1]}"' for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}
    finally:
        connection.close()


def test_the_first_release_opens_with_every_value_it_holds(golden: Path) -> None:
    tables = _tables(golden)
    before = _rows(golden, tables)
    assert {name: len(rows) for name, rows in before.items() if name not in ("meta", "sqlite_sequence")} == {
        "campaigns": 3, "sessions": 3, "leases": 5, "batches": 2, "reports": 8, "visits": 14, "conflicts": 1,
        "failures": 3, "drops": 1,
    }  # fmt: skip  # one line reads as one record
    Store.open(golden).close()
    after = _rows(golden, tables)
    assert dict(after.pop("meta"))["schema_version"] == "2"
    assert dict(before.pop("meta")) == {"schema_version": "1", "created_by": "0.1.0"}
    assert after == before


def test_the_first_release_says_what_it_always_said(golden: Path) -> None:
    with Store.open(golden) as store:
        active, finished, cancelled = store.campaigns()
        ids = [state.campaign_id for state in (active, finished, cancelled)]
        assert [state.state for state in (active, finished, cancelled)] == ["active", "done", "cancelled"]
        assert [state.spec.key for state in (active, finished, cancelled)] == ids
        assert (finished.reason, finished.finished_s, cancelled.reason) == ("max_rounds", 173.0, "interrupted")
        assert (active.rounds, finished.rounds, cancelled.rounds) == (6, 1, 0)
        assert (active.measured_ns, active.timed_ns) == (14_000_000_016, 13_300_000_016)
        progress = store.progress(active.campaign_id)
        assert (progress.done, progress.rounds, progress.next_round) == ({1}, {0: 2, 1: 3}, 6)
        assert progress.dropped == {active.spec.ops[3].op_id}
        assert {(failure.reason, failure.attempts, failure.agents) for failure in progress.failures} == {
            ("unsupported", 1, ("bob",)),
            ("crashed", 2, ("bob",)),
        }
        assert "signal 6" in [failure.detail for failure in progress.failures]
        assert [(agent.name, agent.epoch, agent.last_report_s) for agent in store.agents()] == [
            ("alice", 2, 171.0),
            ("bob", 1, 166.0),
        ]
        assert store.session("a1").last_report_s == 163.0
        assert store.session("a1").runtimes[0] == RuntimeReport(
            name="onnxruntime", version="1.31.1", timer_overhead_ns=42, timer_quantum_ns=1
        )
        assert dict(store.session("a1").fingerprint.facts)["os"] == "Linux 6.1 \N{MICRO SIGN}"
        assert [(lease.lease_id, lease.agent, lease.domain, lease.owner) for lease in store.active_leases()] == [
            ("l-bob", "bob", "bob", "")
        ]
        visits = [visit.timing for visit in store.raw_visits(ids)]
        assert len(visits) == len(store.visits(ids)) == 14
        assert visits[0] == Timing(
            op_id=active.spec.ops[1].op_id, round=0, order=0, instance=0, start_ns=0, warmup_ns=(5000,),
            samples_ns=(1003, 1000, 1005, 1900, 1004), preempted=(3,),
        )  # fmt: skip  # one line reads as one record
        assert (visits[6].samples_ns, visits[6].throttled, visits[7].throttled) == (
            (5_000_000_000, 5_000_000_001),
            (1,),
            (),
        )
        (conflict,) = store.conflicts(ids)
        assert (conflict.report_id, conflict.timing.samples_ns) == ("golden-other", (7, 8, 9))
        reports = store.reports(ids)
        assert [report.late for report in reports] == [True, False, False, False, False, False, True, False]
        assert reports[0].before == Conditions(
            monotonic_ns=5_000_000_000, load_1min=0.25, cpu_mhz=2450.5, temperature_c=36.5, throttle_count=3
        )


def test_an_upgraded_store_goes_on_where_it_was(golden: Path) -> None:
    with Store.open(golden) as store:
        campaign = store.campaigns()[0]
        (lease,) = store.active_leases()
        agent = store.session(lease.session_id)
        made = Timing(
            op_id=campaign.spec.ops[1].op_id, round=7, order=0, instance=0, start_ns=1, warmup_ns=(), samples_ns=(5,)
        )
        report = Report(
            report_id="after", session_id=agent.session_id, lease_id=lease.lease_id, lease_epoch=lease.epoch,
            campaign_id=campaign.campaign_id, round=7, timings=(made,),
            failures=(Failure(op_id=made.op_id, round=7, reason="crashed"),),
        )  # fmt: skip  # one line reads as one record
        result = store.commit_report(report, now_s=200.0)
        assert (result.n_new, result.late, result.failures_new) == (1, False, 1)
        store.record_decision(report, Decision(stop=True, reason="budget"), finished_batch=0, now_s=201.0)
        assert store.progress(campaign.campaign_id).rounds == {0: 3, 1: 3}
        assert store.open_session(agent.hello, "b2", now_s=202.0) == 2


def test_a_copy_is_kept_before_an_upgrade_and_the_old_release_can_read_it(golden: Path) -> None:
    tables = _tables(golden)
    before = _rows(golden, tables)
    Store.open(golden).close()
    copy = golden.with_name("campaigns.sqlite.before-0002")
    assert _tables(copy) == tables
    assert _rows(copy, tables) == before
    assert sorted(path.name for path in golden.parent.iterdir()) == ["campaigns.sqlite", copy.name]
    Store.open(golden).close()
    assert _tables(copy) == tables, "opened again, an upgraded store is left as it is"


def test_the_journal_of_a_killed_release_is_upgraded_too(golden: Path) -> None:
    """Its last commits are in the journal only: the copy has them, and so has the store."""
    old = sqlite3.connect(golden)
    old.execute("PRAGMA journal_mode = WAL")
    old.execute("UPDATE campaigns SET reason = 'told late' WHERE state = 'cancelled'")
    old.commit()
    away = golden.with_name("killed")
    away.mkdir()
    for path in golden.parent.glob("campaigns.sqlite*"):
        shutil.copyfile(path, away / path.name)
    old.close()
    (away / "campaigns.sqlite-shm").unlink()
    assert (away / "campaigns.sqlite-wal").stat().st_size > 0
    with Store.open(away / "campaigns.sqlite") as store:
        assert store.campaigns()[2].reason == "told late"
    (rows,) = _rows(away / "campaigns.sqlite.before-0002", {"campaigns": ["reason"]}).values()
    assert ("told late",) in rows


@pytest.mark.parametrize("number", range(1, 60, 4))
def test_an_upgrade_that_fails_leaves_the_old_store(golden: Path, number: int) -> None:
    tables = _tables(golden)
    before = _rows(golden, tables)
    executed = 0

    def fail(*_: object) -> None:
        nonlocal executed
        executed += 1
        if executed == number:
            raise sqlite3.OperationalError("injected")

    database = open_database(golden)
    sa.event.listen(database._writer, "before_cursor_execute", fail)
    try:
        prepare.prepare(database)
    except (StoreError, sqlite3.OperationalError):
        assert _tables(golden) == tables
        assert _rows(golden, tables) == before
    else:
        assert executed < number, "an error was swallowed"
    finally:
        database.close()
    with Store.open(golden) as store:
        assert len(store.campaigns()) == 3


def test_one_of_several_upgrades_at_once_does_it(golden: Path) -> None:
    opened: list[Store] = []
    threads = [threading.Thread(target=lambda: opened.append(Store.open(golden))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(store.campaigns()) for store in opened] == [3] * 4
    for store in opened:
        store.close()


def test_the_first_release_refuses_an_upgraded_store(golden: Path) -> None:
    """It reads the version in `meta`, and so that has to stay where it was."""
    Store.open(golden).close()
    (rows,) = _rows(golden, {"meta": ["name", "value"]}).values()
    assert int(dict(rows)["schema_version"]) > 1


def test_the_next_golden_file_will_hold_something_of_everything(root: Path, store_url: str) -> None:
    spec = importlib.util.spec_from_file_location("make_golden_store", root / "tools" / "make_golden_store.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    with Store.open(store_url) as store:
        tool.fill(store)
        with store.reading() as connection:
            empty = {t.name for t in schema.metadata.sorted_tables if not connection.execute(sa.select(t)).first()}
        assert empty == set()
        assert {job.state for job in store.jobs()} == {"queued", "running", "done", "cancelled"}
        assert {lease.state for lease in store.leases(active=False)} == {"active", "lost", "done", "cancelled"}


# --- migrated = new


def _described(database: Database) -> dict[str, object]:
    """Everything an inspector sees of all tables; order of columns included, names of unnamed constraints not."""
    with database.reading() as connection:
        inspector = sa.inspect(connection)
        return {
            name: {
                "columns": [
                    (column["name"], str(column["type"]), column["nullable"], column["default"])
                    for column in inspector.get_columns(name)
                ],
                "key": inspector.get_pk_constraint(name)["constrained_columns"],
                "unique": sorted(one["column_names"] for one in inspector.get_unique_constraints(name)),
                "indexes": sorted((str(one["name"]), one["column_names"]) for one in inspector.get_indexes(name)),
            }
            for name in sorted(inspector.get_table_names())
        }


def _migrated(database: Database) -> None:
    with database.writing() as connection:
        prepare.migrate(connection)


def test_a_migrated_store_has_the_tables_of_a_new_one(store_url: str, request: pytest.FixtureRequest) -> None:
    migrated = open_database(store_url)
    _migrated(migrated)
    described = _described(migrated)
    migrated.close()
    if store_url.startswith("postgresql"):
        new_url = request.getfixturevalue("postgres").new_schema()
    else:
        new_url = f"{store_url}.new"
    Store.open(new_url).close()
    new = open_database(new_url)
    assert _described(new) == described
    assert set(described) == set(schema.metadata.tables)
    new.close()


def test_the_golden_file_has_the_tables_of_the_first_migration(golden: Path, tmp_path: Path) -> None:
    old = open_database(golden)
    described = _described(old)
    old.close()
    database = open_database(tmp_path / "new.sqlite")
    with database.writing() as connection:
        from alembic import command

        command.upgrade(prepare._config(connection), "0001")
    first = _described(database)
    database.close()
    first.pop("alembic_version")
    assert first == described


def test_alembic_sees_nothing_left_to_migrate(store_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = open_database(store_url)
    _migrated(database)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
    database.close()


def test_the_migrations_lead_to_the_schema_of_this_release(root: Path) -> None:
    names = sorted(path.name for path in (root / "lutbuilder/coordinator/store/migrations/versions").glob("v*.py"))
    assert [name[1:5] for name in names] == [f"{number:04}" for number in range(1, schema.SCHEMA_VERSION + 1)]
    assert int(schema.REVISION) == schema.SCHEMA_VERSION


def test_a_wheel_brings_the_migrations(root: Path, tmp_path: Path, golden: Path) -> None:
    """Built, unpacked where nothing of the checkout is, and asked to upgrade a store."""
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE", "lutbuilder"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copyfile
        (source / name).parent.mkdir(exist_ok=True)
        copy(root / name, source / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "import lutbuilder; assert lutbuilder.__file__.startswith(sys.argv[1]), lutbuilder.__file__\n"
        "from lutbuilder.coordinator.store import Store\n"
        "print(len(Store.open(sys.argv[3]).campaigns()))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "site"), str(root / "agents"), str(golden)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr
