"""An error at any statement of any call: the store holds all of it or nothing, and the call again gives the same."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lutbuilder.campaign.job import JobSpec
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.store import CommitResult, Store, StoredLease, engine
from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.records import Failure
from tests.postgres import PostgresServer, running_server
from tests.store_examples import HELLO, OPS, SPEC, dump, filled, grant, report, restore, session, timing

JOB = JobSpec(kind="collect", request="{}")
CRASH = Failure(op_id=OPS[1].op_id, round=5, reason="crashed", detail="signal 11")
NEW_ROUND = report(5, timings=(timing(0, samples_ns=(7,), preempted=()), *report(5).timings), failures=(CRASH,))
STOP = Decision(stop=True, reason="precision", drop=(OPS[0].op_id,))

# Every method that writes, with a call that changes something in each table it can.
CALLS: dict[str, Callable[[Store], object]] = {
    "create_campaign": lambda store: store.create_campaign(replace(SPEC, repeat=1), now_s=9.0, priority=2, owner="x"),
    "finish_campaign": lambda store: store.finish_campaign(SPEC.key, "budget", 9.0),
    "open_session": lambda store: store.open_session(HELLO, "s2", now_s=9.0),
    "set_agent": lambda store: store.set_agent("bob", drained=True, quarantined="3 ops failed"),
    "grant_lease": lambda store: grant(store, "l2", "b1", batch=1, owner="me"),
    "reshape_lease": lambda store: store.reshape_lease("l1", first_round=1, rounds=2),
    "end_lease": lambda store: store.end_lease("l1", "lost", now_s=9.0),
    "beat_leases": lambda store: store.beat_leases("", {"l1": 90.0}),
    "adopt_leases": lambda store: store.adopt_leases("s1", "me"),
    "finish_batch": lambda store: store.finish_batch(SPEC.key, 0, "failed", now_s=9.0),
    "commit_report": lambda store: store.commit_report(NEW_ROUND, now_s=9.0),
    "record_decision": lambda store: store.record_decision(report(0), STOP, finished_batch=0, now_s=9.0),
    "record_failure": lambda store: store.record_failure(SPEC.key, "b1", CRASH),
    "excuse_failures": lambda store: store.excuse_failures(SPEC.key, [OPS[0].op_id], agent="alice"),
    "release_op": lambda store: store.release_op(SPEC.key, OPS[0].op_id),
    "submit_job": lambda store: store.submit_job(JOB, job_id="job-3", now_s=9.0),
    "claim_job": lambda store: store.claim_job("me", now_s=9.0),
    "update_job": lambda store: store.update_job("job-2", runner="a", state="done", lut="toy@1", now_s=9.0),
    "cancel_job": lambda store: store.cancel_job("job-2", now_s=9.0),
    "beat_coordinator": lambda store: store.beat_coordinator("b"),
    "forget_coordinator": lambda store: store.forget_coordinator("a"),
}
READS: dict[str, Callable[[Store], object]] = {
    "campaign": lambda store: store.campaign(SPEC.key),
    "campaigns": lambda store: store.campaigns(),
    "progress": lambda store: store.progress(SPEC.key),
    "next_round": lambda store: store.next_round(SPEC.key),
    "session": lambda store: store.session("s1"),
    "newest_session": lambda store: store.newest_session("alice"),
    "sessions": lambda store: store.sessions([SPEC.key]),
    "agents": lambda store: store.agents(),
    "agent_flags": lambda store: store.agent_flags(),
    "active_leases": lambda store: store.active_leases(),
    "leases": lambda store: store.leases(active=False),
    "reports": lambda store: store.reports([SPEC.key]),
    "conflicts": lambda store: store.conflicts([SPEC.key]),
    "failures": lambda store: store.failures(SPEC.key),
    "occasions": lambda store: store.occasions(SPEC.key),
    "passed": lambda store: store.passed(SPEC.key, [OPS[0].op_id], besides="bob"),
    "visits": lambda store: store.visits([SPEC.key]).block_ns.tolist(),
    "raw_visits": lambda store: tuple(store.raw_visits([SPEC.key])),
    "job": lambda store: store.job("job-1"),
    "jobs": lambda store: store.jobs(),
    "coordinators": lambda store: store.coordinators(),
    "counts": lambda store: store.counts(),
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store an engine for all tests: each begins with what `prepared` put there."""
    if request.param == "sqlite":
        url = str(tmp_path_factory.mktemp("store") / "campaigns.sqlite")
    else:
        url = request.getfixturevalue("postgres").new_database()
    with Store.open(url) as store:
        prepared(store)
        yield store


@pytest.fixture(scope="module")
def beginning(opened: Store) -> dict[str, list[tuple[Any, ...]]]:
    return dump(opened)


@pytest.fixture
def store(opened: Store, beginning: dict[str, list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(engine, "PAUSES_S", (0.0, 0.0))
    restore(opened, beginning)
    return opened


def prepared(store: Store) -> None:
    """Something of everything."""
    filled(store)
    session(store, "b1", name="bob")
    store.commit_report(report(0, failures=(replace(CRASH, op_id=OPS[0].op_id),)), now_s=3.0)
    for number, runner in enumerate(("", "a"), start=1):
        store.submit_job(replace(JOB, priority=1 - number), job_id=f"job-{number}", now_s=3.0)
        if runner:
            store.claim_job(runner, now_s=3.0, besides=[])
            store.update_job("job-1", runner=runner, state="queued", now_s=3.0)
            store.claim_job(runner, now_s=3.0)
    for job in store.jobs():  # the first waits, the second runs
        store.update_job(job.job_id, runner=job.runner, state="queued", now_s=3.0)
    store.claim_job("z", now_s=3.0)
    store.claim_job("a", now_s=3.0)
    store.update_job("job-1", runner="z", state="queued", now_s=3.0)
    store.beat_coordinator("a")


def plain(outcome: object) -> object:
    """What a repeated call must give again: all but that it was repeated."""
    if isinstance(outcome, CommitResult):
        seen = outcome.n_new + outcome.n_repeated
        return replace(outcome, n_new=seen, n_repeated=0, repeated_report=False, failures_new=0)
    if isinstance(outcome, bool):  # whether it was this call that ended a lease
        return None
    if isinstance(outcome, tuple):
        return tuple(replace(one, beat=0) if isinstance(one, StoredLease) else one for one in outcome)
    return outcome


def settled(dumped: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """A dump without beats: how far they have moved means nothing."""
    from lutbuilder.coordinator.store import schema

    out = dict(dumped)
    for table in (schema.leases, schema.coordinators):
        place = list(table.columns).index(table.c.beat)
        out[table.name] = [(*row[:place], *row[place + 1 :]) for row in dumped[table.name]]
    return out


@dataclass
class Statements:
    """Counts what a store's database is asked, and interferes with one of it."""

    store: Store
    at: int = 0  # 0: never
    act: Callable[[Any], None] = lambda cursor: None
    after: bool = False
    seen: int = 0

    def before(self, cursor: Any, *_: object) -> None:
        self.seen += 1
        if self.seen == self.at and not self.after:
            self.act(cursor)

    def behind(self, _connection: object, cursor: Any, *_: object) -> None:
        if self.seen == self.at and self.after:
            self.act(cursor)

    @contextmanager
    def watched(self) -> Iterator[Statements]:
        writer = self.store._db._writer
        events = [("do_execute", self.before), ("do_executemany", self.before), ("after_cursor_execute", self.behind)]
        for name, listener in events:
            sa.event.listen(writer, name, listener)
        try:
            yield self
        finally:
            for name, listener in events:
                sa.event.remove(writer, name, listener)


def _driver(store: Store) -> Any:
    return store._db._writer.dialect.loaded_dbapi


def test_every_method_of_a_store_is_here() -> None:
    """A new method needs a call above, and the decorator that makes it outlive a broken connection."""
    public = {name for name, found in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_")} - {
        "close",
        "reading",
        "writing",
    }
    assert public == CALLS.keys() | READS.keys()
    assert {name for name in public if not hasattr(getattr(Store, name), "__wrapped__")} == {"raw_visits"}
    writing = {name for name in public if "writing()" in inspect.getsource(getattr(Store, name))}
    assert writing | {"commit_report"} == CALLS.keys()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CALLS)
def test_an_error_at_any_statement_leaves_nothing_and_the_call_again_gives_the_same(
    store: Store, name: str, when: str
) -> None:
    call, before = CALLS[name], dump(store)
    with Statements(store).watched() as statements:
        outcome = call(store)
    after = dump(store)
    assert statements.seen > 0
    assert settled(after) != settled(before) or "beat" in name or after["leases"] != before["leases"]
    operational = _driver(store).OperationalError

    def refuse(cursor: Any) -> None:
        raise operational("injected")

    for number in range(1, statements.seen + 1):
        restore(store, before)
        with (
            Statements(store, at=number, act=refuse, after=when == "after").watched(),
            pytest.raises(StoreError, match="injected"),
        ):
            call(store)
        assert dump(store) == before, f"at statement {number}"
        assert plain(call(store)) == plain(outcome)
        assert settled(dump(store)) == settled(after)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CALLS)
def test_an_error_at_the_commit_leaves_all_or_nothing_and_the_call_again_gives_the_same(
    store: Store, name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, before = CALLS[name], dump(store)
    outcome = call(store)
    after = dump(store)
    restore(store, before)
    dialect = store._db._writer.dialect
    commit = dialect.do_commit

    def refuse(connection: Any) -> None:
        if when == "after":
            commit(connection)  # it is done, and the answer gets lost
        raise _driver(store).OperationalError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(dialect, "do_commit", refuse)
        with pytest.raises(StoreError, match="injected"):
            call(store)
    assert settled(dump(store)) == settled(after if when == "after" else before)
    assert plain(call(store)) == plain(outcome)
    assert settled(dump(store)) == settled(after)


# --- PostgreSQL alone: connections break, and the server gives way


@pytest.fixture
def remote(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(engine, "PAUSES_S", (0.0, 0.0))
    with Store.open(postgres_url) as opened:
        prepared(opened)
        yield opened


@pytest.mark.parametrize("opened", ["postgresql"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_a_connection_that_breaks_at_any_statement_is_not_noticed(
    store: Store, postgres: PostgresServer, name: str
) -> None:
    call, before = CALLS[name], dump(store)
    with Statements(store).watched() as statements:
        outcome = call(store)
    after = dump(store)

    def kill(cursor: Any) -> None:
        postgres.execute(f"SELECT pg_terminate_backend({cursor.connection.info.backend_pid}, 5000)")

    for number in range(1, statements.seen + 1):
        restore(store, before)
        with Statements(store, at=number, act=kill).watched():
            assert plain(call(store)) == plain(outcome)
        assert settled(dump(store)) == settled(after), f"at statement {number}"


@pytest.mark.parametrize("opened", ["postgresql"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_a_connection_that_breaks_after_the_commit_is_not_noticed(
    store: Store, postgres: PostgresServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, before = CALLS[name], dump(store)
    outcome = call(store)
    after = dump(store)
    restore(store, before)
    dialect = store._db._writer.dialect
    commit, broken = dialect.do_commit, []

    def lose_the_answer(connection: Any) -> None:
        commit(connection)
        if not broken:
            broken.append(connection.dbapi_connection.info.backend_pid)
            postgres.execute(f"SELECT pg_terminate_backend({broken[0]}, 5000)")
            connection.dbapi_connection.execute("SELECT 1")

    monkeypatch.setattr(dialect, "do_commit", lose_the_answer)
    assert plain(call(store)) == plain(outcome)
    assert broken
    assert settled(dump(store)) == settled(after)


@pytest.mark.parametrize("opened", ["postgresql"], indirect=True)
@pytest.mark.parametrize("name", READS)
def test_a_reader_does_not_notice_that_its_connections_broke(store: Store, postgres: PostgresServer, name: str) -> None:
    seen = READS[name](store)
    assert postgres.disconnect_all(store.where.partition("?")[0].rpartition("/")[2]) > 0
    store._columns.clear()  # so that visits are read again
    assert READS[name](store) == seen


def test_a_server_that_crashes_and_comes_back_has_what_it_acknowledged(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PAUSES_S", (0.0, 0.0))
    with running_server() as own, Store.open(own.new_database()) as store:
        prepared(store)
        assert store.commit_report(NEW_ROUND, now_s=9.0).n_new == 4
        own.restart()
        assert len(store.visits([SPEC.key])) == 8
        assert store.commit_report(NEW_ROUND, now_s=9.0).repeated_report


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_a_call_that_had_to_give_way_is_made_again(remote: Store, state: str) -> None:
    before, errors = dump(remote), _driver(remote).errors

    def give_way(cursor: Any) -> None:
        raise errors.lookup(state)("injected")

    with Statements(remote, at=3, act=give_way).watched() as statements:
        remote.finish_campaign(SPEC.key, "budget", 9.0)
    assert statements.seen == 3 + 4, "one attempt as far as its third statement, one whole"
    assert dump(remote) != before


def test_a_call_that_always_has_to_give_way_ends(remote: Store) -> None:
    def give_way(*_: object) -> None:
        raise _driver(remote).errors.SerializationFailure("injected")

    sa.event.listen(remote._db._writer, "do_execute", give_way)
    with pytest.raises(StoreError, match="injected"):
        remote.finish_campaign(SPEC.key, "budget", 9.0)


def test_a_writer_that_hangs_is_waited_for_and_named(
    postgres_url: str, remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_S", 0.1)
    with Store.open(postgres_url) as other, remote.writing():
        with pytest.raises(StoreError, match=r"locked by another coordinator for 0\.1 s"):
            other.finish_campaign(SPEC.key, "budget", 9.0)
        assert other.campaign(SPEC.key).state == "active", "readers do not wait"


def test_a_coordinator_that_was_stopped_in_a_commit_does_not_hold_up_the_others(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server throws it out; when it goes on, its call is made again."""
    monkeypatch.setattr(engine, "_IDLE_S", 0.2)
    with Store.open(postgres_url) as stopped, Store.open(postgres_url) as other:
        prepared(other)

        def stop(cursor: Any) -> None:
            assert other.create_campaign(replace(SPEC, repeat=5), now_s=9.0)

        with Statements(stopped, at=3, act=stop).watched():
            stopped.finish_campaign(SPEC.key, "budget", 9.0)
        assert stopped.campaign(SPEC.key).state == "done"


def test_a_user_without_rights_is_named(postgres: PostgresServer) -> None:
    postgres_url = postgres.new_database()
    Store.open(postgres_url).close()
    postgres.execute("DROP ROLE IF EXISTS guest")
    postgres.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(StoreError, match="give its user the right"):
        Store.open(postgres_url.replace("lutbuilder@", "guest:secret@"))


def test_a_database_of_another_program_is_refused_and_left_alone(postgres: PostgresServer) -> None:
    postgres_url = postgres.new_database()
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    postgres.execute("CREATE TABLE meta (name TEXT, value TEXT)", database=name)
    with pytest.raises(StoreError, match=r"tables of another program \(meta\).*createdb"):
        Store.open(postgres_url)
    assert postgres.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database=name) == [(1,)]


def test_two_schemas_of_one_database_are_two_stores(postgres: PostgresServer) -> None:
    postgres_url = postgres.new_database()
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    stores = []
    for team in ("vision", "speech"):
        postgres.execute(f"CREATE SCHEMA {team}", database=name)
        stores.append(Store.open(f"{postgres_url}&options=-csearch_path%3D{team}"))
    stores[0].create_campaign(SPEC, now_s=1.0)
    with stores[0].writing():
        assert stores[1].campaigns() == ()
        assert stores[1].create_campaign(SPEC, now_s=2.0) == SPEC.key, "their writers do not wait for each other"
    for store in stores:
        store.close()


# --- SQLite alone: the process is killed


KILLED = """
import os, shutil, signal, sys
import sqlalchemy as sa
from lutbuilder.coordinator.store import Store
from tests.contract.test_store_faults import CALLS, Statements, dump, prepared, settled

folder, name = sys.argv[1:]
template, work = os.path.join(folder, "template.sqlite"), os.path.join(folder, "work.sqlite")
with Store.open(template) as store:
    prepared(store)
    before = dump(store)
shutil.copyfile(template, work)
with Store.open(work) as store, Statements(store).watched() as statements:
    CALLS[name](store)
with Store.open(work) as store:
    after = dump(store)

def kill(cursor):
    os.kill(os.getpid(), signal.SIGKILL)

for number in range(1, statements.seen + 2):
    for end in ("", "-wal", "-shm"):
        if os.path.exists(work + end):
            os.unlink(work + end)
    shutil.copyfile(template, work)
    child = os.fork()
    if child == 0:
        store = Store.open(work)
        with Statements(store, at=number, act=kill, after=number % 2 == 0).watched():
            CALLS[name](store)
        kill(None)  # right after the commit, before anybody was told
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with Store.open(work) as store:
        expected = after if number > statements.seen else before
        assert settled(dump(store)) == settled(expected), number
        CALLS[name](store)
        assert settled(dump(store)) == settled(after), number
print(statements.seen)
"""


@pytest.mark.parametrize("name", ["commit_report", "open_session", "grant_lease", "finish_campaign", "record_decision"])
def test_a_process_killed_at_any_statement_leaves_all_or_nothing(tmp_path: Path, root: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
