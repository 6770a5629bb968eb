"""The store's file keeps what it acknowledged through kills and full disks, and what is no store is left alone."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.coordinator.store import APPLICATION_ID, Store, engine
from lutbuilder_agent.errors import MissingExtra, StoreError
from tests.store_examples import SPEC, filled, raw, report, timing

BIG = tuple(timing(n, round=1, samples_ns=tuple(range(1, 201)), preempted=()) for n in range(400))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "campaigns.sqlite") as opened:
        yield filled(opened)


# --- killed


def test_a_commit_waits_for_the_disk(store: Store) -> None:
    """No test can cut the power; this one reads what SQLite promises for it: WAL and synchronous = FULL (2)."""
    with store.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


KILLED = """
import sys
from dataclasses import replace
from lutbuilder.coordinator.store import Store
from lutbuilder_agent.records import Report, Timing

campaign_id, path = sys.argv[1:]
store = Store.open(path)
op_ids = [op.op_id for op in store.campaign(campaign_id).spec.ops]
first = Timing(op_id="x", round=0, order=0, instance=0, start_ns=1, warmup_ns=(), samples_ns=tuple(range(1, 21)))
for number in range(100_000):
    timings = tuple(replace(first, op_id=o, round=number, order=i) for i, o in enumerate(op_ids))
    store.commit_report(Report(report_id=f"k{number}", session_id="s1", lease_id="l1", lease_epoch=1,
        campaign_id=campaign_id, round=number, timings=timings), now_s=1.0)
    print(number, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 17])
def test_every_acknowledged_visit_is_there_after_kill_9(store: Store, acknowledged: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, SPEC.key, str(store.path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        seen = [int(lines.readline()) for _ in range(acknowledged)]
        process.send_signal(signal.SIGKILL)
        seen += [int(line) for line in lines.read().split()]  # acknowledged before the signal arrived
    assert process.returncode == -signal.SIGKILL
    with Store.open(store.path) as reopened:
        rounds = [visit.timing.round for visit in reopened.raw_visits([SPEC.key])]
        whole = {number for number in rounds if rounds.count(number) == len(SPEC.ops)}
        assert whole == set(rounds)  # all of a report or nothing
        assert whole >= set(seen)
        assert len(whole) - len(seen) in (0, 1)  # one more may be committed that nobody was told of
        assert reopened.next_round(SPEC.key) == reopened.campaign(SPEC.key).rounds == len(whole)


# --- damaged, foreign


def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"these are my notes, not a database\n" * 100)
    with pytest.raises(StoreError, match="not a campaign store"):
        Store.open(path)
    assert path.read_bytes() == b"these are my notes, not a database\n" * 100


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_store_is_refused_with_the_way_to_save_it(store: Store, kept: float) -> None:
    for number in range(60):
        store.commit_report(report(number), now_s=3.0)
    store.close()
    size = store.path.stat().st_size
    os.truncate(store.path, int(size * kept))
    with pytest.raises(StoreError, match=r"damaged.*lutbuilder store salvage"):
        Store.open(store.path)
    assert store.path.stat().st_size == int(size * kept)


def test_a_store_with_overwritten_pages_is_refused(store: Store) -> None:
    for number in range(60):
        store.commit_report(report(number), now_s=3.0)
    store.close()
    with store.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 20_000)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(store.path)


def test_a_store_that_is_damaged_while_it_is_open_is_named(store: Store) -> None:
    for number in range(60):
        store.commit_report(report(number), now_s=3.0)
    store.close()  # all of it is in the file now, nothing in the journal
    with Store.open(store.path) as reopened:
        with store.path.open("r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * (store.path.stat().st_size - 8192))
        reopened.close()  # the next connection has no page in memory
        with pytest.raises(StoreError, match="damaged"):
            raw(reopened)


# --- where no store can be


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(tmp_path)


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StoreError, match="LUTBUILDER_STATE"):
        Store.open(tmp_path / "state" / "campaigns.sqlite")


def test_a_sqlite_url_is_a_file(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'a' / 'b' / 'c.sqlite'}") as store:
        assert store.path == tmp_path / "a" / "b" / "c.sqlite"
        assert store.where == str(store.path)


@pytest.mark.parametrize("url", ["mysql://user:secret@host/db", "oracle://user:secret@host/db"])
def test_another_database_engine_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError, match="SQLite or PostgreSQL") as caught:
        Store.open(url)
    assert "secret" not in str(caught.value)


def test_a_url_that_makes_no_sense_is_refused_without_its_password() -> None:
    with pytest.raises(StoreError, match="cannot be read") as caught:
        Store.open("postgresql://user:se/cret@host:port/db")
    assert "se/cret" not in str(caught.value)


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match=r"cannot be reached .*is the server running") as caught:
        Store.open(f"postgresql://user:secret@/db?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lutbuilder\[postgres\]'"):
        Store.open("postgresql://user@host/db")


def test_a_folder_that_takes_no_files_is_named() -> None:
    with pytest.raises(StoreError, match=r"/proc.*LUTBUILDER_STATE"):
        Store.open("/proc/campaigns.sqlite")  # where not even root may create a file


# --- full, read-only, locked


def _with_pragma(store: Store, pragma: str) -> None:
    """Put every connection of a store under a real limit of SQLite."""
    from sqlalchemy import event

    @event.listens_for(store._db._writer, "begin")
    def limited(connection: Any) -> None:
        connection.exec_driver_sql(pragma)


def test_a_full_file_is_named_and_loses_nothing(store: Store) -> None:
    store.commit_report(report(0), now_s=3.0)
    _with_pragma(store, "PRAGMA max_page_count = 1")  # the file may not grow: SQLITE_FULL, as on a full disk
    with pytest.raises(StoreError, match=r"disk of .* is full: free some space"):
        store.commit_report(report(1, timings=BIG), now_s=4.0)
    with Store.open(store.path) as reopened:
        assert len(reopened.visits([SPEC.key])) == 4
        assert reopened.commit_report(report(1, timings=BIG), now_s=5.0).n_new == 400


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: a write fails, as on a disk that fails or is over its quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("room", [0, 5_000, 50_000, 200_000])
def test_a_disk_that_fails_in_the_middle_of_a_commit_is_named_and_loses_nothing(store: Store, room: int) -> None:
    store.commit_report(report(0), now_s=3.0)
    journal = store.path.with_name(store.path.name + "-wal")
    with _files_of_at_most(journal.stat().st_size + room):
        with pytest.raises(StoreError, match=r"disk of .* (is full|may be full)|it may be full"):
            store.commit_report(report(1, timings=BIG), now_s=4.0)
        assert len(raw(store)) == 4
    assert store.commit_report(report(1, timings=BIG), now_s=5.0).n_new == 400
    with Store.open(store.path) as reopened:
        assert len(reopened.visits([SPEC.key])) == 404


DISK = """
import os, sys
from lutbuilder.coordinator.store import Store
from lutbuilder_agent.errors import StoreError
from tests.store_examples import SPEC, filled, raw, report, timing

folder, free = sys.argv[1], int(sys.argv[2])
assert os.system(f"mount -t tmpfs -o size=2m lutbuilder {folder}") == 0
path = os.path.join(folder, "campaigns.sqlite")
store = filled(Store.open(path))
store.commit_report(report(0), now_s=3.0)
big = tuple(timing(n, round=1, samples_ns=tuple(range(1, 201)), preempted=()) for n in range(400))
filling = os.open(os.path.join(folder, "filling"), os.O_WRONLY | os.O_CREAT)
try:
    while os.write(filling, b"x" * 4096):
        pass
except OSError:
    os.ftruncate(filling, os.fstat(filling).st_size - free)
os.close(filling)
try:
    store.commit_report(report(1, timings=big), now_s=4.0)
except StoreError as error:
    assert "is full: free some space and run the same command again" in str(error), error
else:
    raise SystemExit("the disk was not full")
assert len(raw(store)) == 4
try:
    Store.open(os.path.join(folder, "new.sqlite"))
except StoreError as error:
    assert "is full" in str(error), error
os.unlink(os.path.join(folder, "filling"))
assert store.commit_report(report(1, timings=big), now_s=5.0).n_new == 400
assert len(Store.open(path).visits([SPEC.key])) == 404
print("kept")
"""


@pytest.mark.parametrize("free", [0, 8192, 120_000])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, root: Path, free: int) -> None:
    """A disk of 2 MiB in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    assert unshare is not None, "util-linux makes the disk: apt-get install util-linux"
    who = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    done = subprocess.run(
        [unshare, *who, sys.executable, "-c", DISK, str(tmp_path), str(free)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "kept"), done.stderr


@contextmanager
def _nobody() -> Iterator[None]:
    """Be a user whom permissions mean something to."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_must_not_be_written_is_named(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    store.close()
    for folder in (store.path.parent, *store.path.parents):
        if folder.is_relative_to(tmp_path_factory.getbasetemp().parent.parent) and folder.stat().st_uid == os.getuid():
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o755)  # /tmp itself may be among them: nothing is taken
    store.path.chmod(0o444)
    store.path.parent.chmod(0o555)
    with _nobody(), pytest.raises(StoreError, match=r"cannot be written .* make it and its folder writable"):
        Store.open(store.path)
    store.path.parent.chmod(0o755)


def test_a_store_that_becomes_read_only_is_named(store: Store) -> None:
    _with_pragma(store, "PRAGMA query_only = 1")  # what SQLite says of a read-only file, for root too
    with pytest.raises(StoreError, match=r"cannot be written .* make it and its folder writable"):
        store.commit_report(report(), now_s=3.0)


def test_opening_waits_for_one_who_reads_a_file_that_was_just_made(tmp_path: Path) -> None:
    """SQLite changes a file's journal only while nobody reads it, and says so at once instead of waiting."""
    database = engine.SqliteFile(tmp_path / "campaigns.sqlite")
    with database.writing() as connection:
        database.claim(connection)
        connection.exec_driver_sql("CREATE TABLE meta (name TEXT)")
    other = sqlite3.connect(database.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN")
    other.execute("SELECT * FROM meta").fetchall()
    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(database.settle)
        with pytest.raises(TimeoutError):
            settled.result(timeout=0.1)
        other.execute("ROLLBACK")
        settled.result(timeout=60)
    other.close()
    with database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    database.close()


def test_one_who_reads_a_new_file_for_ever_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_S", 0.05)
    database = engine.SqliteFile(tmp_path / "campaigns.sqlite")
    with database.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE meta (name TEXT)")
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM meta").fetchall()
    with pytest.raises(StoreError, match="locked by another process"):
        database.settle()
    other.close()
    database.close()


def test_a_writer_that_never_ends_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_S", 0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    assert other.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked by another process"):
        Store.open(store.path)
    other.close()
