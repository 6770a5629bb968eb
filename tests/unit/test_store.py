"""The store keeps what it acknowledged, keeps it once, and refuses what it cannot read."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator import samples
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.store import APPLICATION_ID, Store
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import StoreError, UnknownName, UnknownSession
from lutbuilder_agent.records import (
    AgentHello,
    Conditions,
    Failure,
    Fingerprint,
    Plan,
    Report,
    RuntimeReport,
    Session,
    Timing,
)

FINGERPRINT = Fingerprint(device="toy", facts=(("cpu.model", "toy"), ("os", "linux")))
HELLO = AgentHello(
    name="alice",
    agent_version="1.2",
    fingerprint=FINGERPRINT,
    runtimes=(RuntimeReport(name="simulated", version="1"), RuntimeReport(name="torch", available=False, reason="no")),
)
OPS = tuple(CampaignOp.of(OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8)) for n in range(1, 5))
SPEC = CampaignSpec(
    space="toy",
    target=Target(device="toy", runtime="simulated"),
    plan=Plan(runtime="simulated", options=(("noise", "0"),)),
    env_id=FINGERPRINT.env_id,
    runtime_version="1",
    ops=(*OPS, CampaignOp.network(tuple(op.ops[0] for op in OPS[:1]), every=2)),
    budget_s=10,
    precision=0.01,
    max_rounds=100,
)
BEFORE = Conditions(monotonic_ns=5, load_1min=0.5, cpu_mhz=None, throttle_count=3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "campaigns.sqlite") as opened:
        opened.create_campaign(SPEC, now_s=1.0)
        _session(opened, "s1")
        opened.grant_lease("l1", campaign_id=SPEC.key, batch=0, session_id="s1", first_round=0, rounds=100, now_s=2.0)
        yield opened


def _session(store: Store, session_id: str, *, name: str = "alice") -> None:
    hello = replace(HELLO, name=name)
    session = Session(session_id=session_id, epoch=store.next_epoch(name), protocol=1, heartbeat_s=10)
    store.record_session(hello, session, now_s=1.5)


def _timing(number: int, **changes: Any) -> Timing:
    timing = Timing(
        op_id=OPS[number % len(OPS)].op_id, round=0, order=number, instance=1, start_ns=1000 * number,
        warmup_ns=(900,), samples_ns=(100 + number, 300, 200, 9000), preempted=(3,),
    )  # fmt: skip  # one line reads as one record
    return replace(timing, **changes)


def _report(number: int = 0, **changes: Any) -> Report:
    report = Report(
        report_id=f"r{number}", session_id="s1", lease_id="l1", lease_epoch=1, campaign_id=SPEC.key, round=number,
        timings=tuple(_timing(place, round=number) for place in range(4)), before=BEFORE, after=BEFORE, round_ns=1000,
        timed_ns=900,
    )  # fmt: skip  # one line reads as one record
    return replace(report, **changes)


def _raw(store: Store) -> list[Timing]:
    return [visit.timing for visit in store.raw_visits([SPEC.key])]


# --- what is committed


def test_a_campaign_survives_reopening_and_is_created_once(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a" / "b" / "c.sqlite") as store:
        assert store.create_campaign(SPEC, now_s=1.0) == SPEC.key
        assert store.create_campaign(SPEC, now_s=2.0) == SPEC.key
    with Store.open(f"sqlite:///{tmp_path / 'a' / 'b' / 'c.sqlite'}") as store:
        (state,) = store.campaigns()
        assert state == store.campaign(SPEC.key)
        assert state.spec == SPEC
        assert (state.state, state.reason, state.rounds, state.created_s) == ("active", "", 0, 1.0)


def test_every_visit_comes_back_with_all_that_was_seen(store: Store) -> None:
    result = store.commit_report(_report(), now_s=3.0)
    assert (result.n_new, result.n_repeated, result.n_conflicts, result.late) == (4, 0, 0, False)
    assert _raw(store) == list(_report().timings)
    assert {(visit.campaign_id, visit.session_id) for visit in store.raw_visits([SPEC.key])} == {(SPEC.key, "s1")}


def test_a_raw_read_pages_through_everything(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lutbuilder.coordinator.store._PAGE", 3)
    for number in range(4):
        store.commit_report(_report(number), now_s=3.0)
    assert _raw(store) == [timing for number in range(4) for timing in _report(number).timings]


def test_columns_hold_the_median_over_calls_that_kept_their_core(store: Store) -> None:
    store.commit_report(_report(), now_s=3.0)
    store.commit_report(_report(1, timings=(_timing(0, round=1, preempted=(0, 1, 2, 3)),)), now_s=4.0)
    visits = store.visits([SPEC.key])
    assert visits.op_ids == tuple(op.op_id for op in OPS)
    assert visits.session_ids == ("s1",)
    assert visits.block_ns.tolist() == [200.0, 200.0, 200.0, 200.0, 250.0]  # the last: every call was preempted
    assert visits.n_calls.tolist() == [4] * 5
    assert visits.n_preempted.tolist() == [1, 1, 1, 1, 4]
    assert visits.order.tolist() == [0, 1, 2, 3, 0]
    assert visits.round.tolist() == [0, 0, 0, 0, 1]
    assert visits.start_ns.tolist() == [0, 1000, 2000, 3000, 0]


def test_throttled_calls_are_kept_and_leave_the_median_too(store: Store) -> None:
    store.commit_report(_report(timings=(_timing(0, throttled=(1, 3)), _timing(1, throttled=()))), now_s=3.0)
    assert [timing.throttled for timing in _raw(store)] == [(1, 3), ()]
    visits = store.visits([SPEC.key])
    assert visits.block_ns.tolist() == [150.0, 200.0]  # of 100 and 200; of 101, 200 and 300
    assert visits.n_calls.tolist() == [4, 4]
    assert visits.n_preempted.tolist() == [1, 1]


def test_columns_read_step_by_step_equal_columns_read_at_once(store: Store) -> None:
    other = replace(SPEC, repeat=1)
    store.create_campaign(other, now_s=1.0)
    _session(store, "s2", name="bob")
    for number in range(3):
        store.commit_report(_report(number), now_s=3.0)
        store.commit_report(_report(number, report_id=f"x{number}", campaign_id=other.key, session_id="s2"), now_s=3.0)
        store.visits([SPEC.key])
    with Store.open(store.path) as fresh:
        for campaign_ids in ([SPEC.key], [other.key, SPEC.key], [SPEC.key, SPEC.key], []):
            stepwise, at_once = store.visits(campaign_ids), fresh.visits(campaign_ids)
            assert (stepwise.op_ids, stepwise.session_ids) == (at_once.op_ids, at_once.session_ids)
            for name in ("op", "session", "round", "order", "instance", "start_ns", "block_ns", "p90_ns", "n_calls"):
                assert np.array_equal(getattr(stepwise, name), getattr(at_once, name))
    both = store.visits([SPEC.key, other.key])
    assert len(both) == 24
    assert [both.session_ids[number] for number in both.session] == ["s1"] * 12 + ["s2"] * 12


def test_columns_cannot_be_changed_under_the_next_reader(store: Store) -> None:
    store.commit_report(_report(), now_s=3.0)
    with pytest.raises(ValueError, match="read-only"):
        store.visits([SPEC.key]).block_ns[0] = 1.0


def test_visits_of_another_process_are_seen(store: Store) -> None:
    store.visits([SPEC.key])
    with Store.open(store.path) as other:
        other.commit_report(_report(), now_s=3.0)
    assert len(store.visits([SPEC.key])) == 4


def test_a_campaign_sums_its_rounds(store: Store) -> None:
    store.commit_report(_report(0), now_s=3.0)
    store.commit_report(_report(1), now_s=4.0)
    store.commit_report(_report(1), now_s=5.0)
    state = store.campaign(SPEC.key)
    assert (state.rounds, state.measured_ns, state.timed_ns) == (2, 2000, 1800)
    assert store.next_round(SPEC.key) == 2
    assert [(r.round, r.before, r.late) for r in store.reports([SPEC.key])] == [(0, BEFORE, False), (1, BEFORE, False)]


def test_a_finished_campaign_keeps_its_first_reason_and_ends_its_leases(store: Store) -> None:
    store.finish_campaign(SPEC.key, "precision", 9.0)
    store.finish_campaign(SPEC.key, "budget", 10.0)
    state = store.campaign(SPEC.key)
    assert (state.state, state.reason, state.finished_s) == ("done", "precision", 9.0)
    assert store.active_leases(SPEC.key) == ()
    result = store.commit_report(_report(), now_s=11.0)
    assert (result.n_new, result.late, result.campaign_active) == (4, True, False)


# --- the same again, late, in conflict


def test_the_same_report_again_changes_nothing(store: Store) -> None:
    store.commit_report(_report(), now_s=3.0)
    again = store.commit_report(_report(), now_s=4.0)
    assert (again.n_new, again.n_repeated, again.n_conflicts, again.repeated_report) == (0, 4, 0, True)
    assert len(_raw(store)) == 4
    assert store.campaign(SPEC.key).rounds == 1


def test_the_same_visits_under_another_report_id_are_stored_once(store: Store) -> None:
    store.commit_report(_report(), now_s=3.0)
    again = store.commit_report(_report(report_id="other"), now_s=4.0)
    assert (again.n_new, again.n_repeated) == (0, 4)
    assert len(_raw(store)) == 4
    assert store.campaign(SPEC.key).rounds == 1  # one round, told twice


def test_another_timing_under_the_same_key_is_kept_aside_and_overwrites_nothing(store: Store) -> None:
    store.commit_report(_report(), now_s=3.0)
    changed = _timing(2, samples_ns=(7,), preempted=())
    for _ in range(2):
        result = store.commit_report(_report(report_id="r9", timings=(changed, _timing(3))), now_s=4.0)
        assert (result.n_new, result.n_repeated, result.n_conflicts) == (0, 1, 1)
    assert _raw(store) == list(_report().timings)
    (conflict,) = store.conflicts([SPEC.key])
    assert conflict.timing == changed
    assert (conflict.session_id, conflict.report_id) == ("s1", "r9")


def test_a_key_twice_in_one_report_is_stored_once(store: Store) -> None:
    twice = (_timing(0), _timing(0), _timing(0, start_ns=7))
    result = store.commit_report(_report(timings=twice), now_s=3.0)
    assert (result.n_new, result.n_repeated, result.n_conflicts) == (1, 1, 1)


@pytest.mark.parametrize("ending", ["lost", "cancelled", "done"])
def test_a_report_of_an_ended_lease_is_late_and_stored(store: Store, ending: Any) -> None:
    store.end_lease("l1", ending, now_s=3.0)
    result = store.commit_report(_report(), now_s=4.0)
    assert (result.late, result.n_new) == (True, 4)
    assert len(store.visits([SPEC.key])) == 4
    assert store.reports([SPEC.key])[0].late


@pytest.mark.parametrize("change", [{"lease_epoch": 0}, {"lease_id": "never-given"}, {"session_id": "s2"}])
def test_a_report_of_another_lease_epoch_or_session_is_late_and_stored(store: Store, change: dict[str, Any]) -> None:
    _session(store, "s2", name="bob")
    result = store.commit_report(_report(**change), now_s=4.0)
    assert (result.late, result.n_new) == (True, 4)


def test_a_new_lease_of_a_batch_has_a_higher_epoch_and_ends_the_old_one(store: Store) -> None:
    _session(store, "s2", name="bob")
    epoch = store.grant_lease("l2", campaign_id=SPEC.key, batch=0, session_id="s2", first_round=3, rounds=97, now_s=5.0)
    assert epoch == 2
    (active,) = store.active_leases(SPEC.key)
    assert (active.lease_id, active.agent, active.epoch, active.first_round) == ("l2", "bob", 2, 3)
    assert store.commit_report(_report(), now_s=6.0).late


def test_leases_of_other_agents_go_on_beside_a_new_one_of_the_same_batch(store: Store) -> None:
    _session(store, "s2", name="bob")
    lease = {"campaign_id": SPEC.key, "batch": 0, "session_id": "s2", "first_round": 3, "rounds": 97, "now_s": 5.0}
    assert store.grant_lease("l2", beside=("l1",), **lease) == 2  # type: ignore[arg-type]  # mypy cannot see which is which
    assert [(held.lease_id, held.epoch) for held in store.active_leases(SPEC.key)] == [("l1", 1), ("l2", 2)]
    assert not store.commit_report(_report(), now_s=6.0).late


def test_a_lease_that_was_shortened_says_for_how_many_rounds_it_is(store: Store) -> None:
    store.shorten_lease("l1", 12)
    assert [(lease.first_round, lease.rounds) for lease in store.active_leases(SPEC.key)] == [(0, 12)]


def test_what_this_store_never_saw_is_refused_by_name(store: Store) -> None:
    with pytest.raises(UnknownSession, match="register again"):
        store.commit_report(_report(session_id="s9"), now_s=3.0)
    with pytest.raises(UnknownName, match="nowhere"):
        store.commit_report(_report(campaign_id="nowhere"), now_s=3.0)
    with pytest.raises(UnknownName):
        store.campaign("nowhere")
    with pytest.raises(UnknownSession):
        store.session("s9")


# --- failures, drops, decisions, sessions


def test_failures_are_counted_by_occasion_with_the_latest_words(store: Store) -> None:
    op_id = OPS[0].op_id
    for place, (number, detail) in enumerate(((0, "first"), (0, "first, told again"), (1, "second"))):
        failure = Failure(op_id=op_id, round=number, reason="crashed", detail=detail)
        store.commit_report(_report(number, report_id=f"f{place}", failures=(failure,)), now_s=3.0)
    (stored,) = store.failures(SPEC.key)
    assert (stored.op_id, stored.reason, stored.detail, stored.attempts) == (op_id, "crashed", "second", 2)
    assert stored.final


def test_an_artifact_that_cannot_be_built_is_a_failure_of_its_op(store: Store) -> None:
    store.record_failure(SPEC.key, "s1", Failure(op_id=OPS[1].op_id, round=0, reason="unsupported", detail="se"))
    assert [(failure.op_id, failure.final) for failure in store.failures(SPEC.key)] == [(OPS[1].op_id, True)]


def test_a_decision_is_remembered_with_its_drops_and_its_batch(store: Store) -> None:
    store.commit_report(_report(), now_s=3.0)
    decision = Decision(stop=True, reason="precision", drop=(OPS[0].op_id, OPS[0].op_id))
    for _ in range(2):
        store.record_decision(_report(), decision, finished_batch=0, now_s=4.0)
    progress = store.progress(SPEC.key)
    assert (progress.dropped, progress.done, progress.rounds, progress.next_round) == ({OPS[0].op_id}, {0}, {0: 1}, 1)
    assert store.active_leases(SPEC.key) == ()
    again = store.commit_report(_report(), now_s=5.0)
    assert again.decision == decision


def test_sessions_and_agents_say_what_they_are(store: Store) -> None:
    _session(store, "s2")
    _session(store, "s3", name="bob")
    store.commit_report(_report(), now_s=3.0)
    (session,) = store.sessions([SPEC.key])
    assert (session.session_id, session.epoch, session.last_report_s) == ("s1", 1, 3.0)
    assert session.hello == HELLO
    assert session.fingerprint.env_id == SPEC.env_id
    assert [(agent.name, agent.session_id, agent.epoch) for agent in store.agents()] == [
        ("alice", "s2", 2),
        ("bob", "s3", 1),
    ]


def test_many_threads_commit_without_losing_a_visit(store: Store) -> None:
    errors: list[BaseException] = []

    def commit(numbers: range) -> None:
        try:
            for number in numbers:
                store.commit_report(_report(number), now_s=3.0)
                store.visits([SPEC.key])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(range(start, 40, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.visits([SPEC.key])) == len(_raw(store)) == 160


# --- killed, damaged, foreign, full


def test_a_commit_waits_for_the_disk(store: Store) -> None:
    """No test can cut the power; this one reads what SQLite promises for it: WAL and synchronous = FULL (2)."""
    with store._write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


KILLED = """
import sys
from dataclasses import replace
from lutbuilder.coordinator.store import Store
from lutbuilder.campaign.spec import CampaignSpec
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
        assert reopened.next_round(SPEC.key) == len(whole)


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


def test_a_store_of_a_newer_lutbuilder_is_refused_with_the_upgrade(store: Store) -> None:
    store.close()
    connection = sqlite3.connect(store.path)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    with connection:
        connection.execute("UPDATE meta SET value = '2' WHERE name = 'schema_version'")
    connection.close()
    with pytest.raises(StoreError, match="pip install -U lutbuilder"):
        Store.open(store.path)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_store_is_refused(store: Store, kept: float) -> None:
    for number in range(60):
        store.commit_report(_report(number), now_s=3.0)
    store.close()
    size = store.path.stat().st_size
    os.truncate(store.path, int(size * kept))
    with pytest.raises(StoreError, match=r"damaged.*mv"):
        Store.open(store.path)
    assert store.path.stat().st_size == int(size * kept)


def test_a_store_with_overwritten_pages_is_refused(store: Store) -> None:
    for number in range(60):
        store.commit_report(_report(number), now_s=3.0)
    store.close()
    with store.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 20_000)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(store.path)


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(tmp_path)


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StoreError, match="LUTBUILDER_STATE"):
        Store.open(tmp_path / "state" / "campaigns.sqlite")


def test_another_database_engine_is_refused_without_its_password() -> None:
    with pytest.raises(StoreError, match="SQLite") as caught:
        Store.open("postgresql://user:secret@host/db")
    assert "secret" not in str(caught.value)


def _with_pragma(store: Store, pragma: str) -> None:
    """Put every connection of a store under a real limit of SQLite."""
    from sqlalchemy import event

    @event.listens_for(store._writer, "begin")
    def limited(connection: Any) -> None:
        connection.exec_driver_sql(pragma)


def test_a_full_disk_is_named_and_loses_nothing(store: Store) -> None:
    store.commit_report(_report(0), now_s=3.0)
    _with_pragma(store, "PRAGMA max_page_count = 1")  # the file may not grow: SQLITE_FULL, as on a full disk
    big = tuple(_timing(n, round=1, samples_ns=tuple(range(1, 201)), preempted=()) for n in range(400))
    with pytest.raises(StoreError, match=r"disk of .* is full: free some space"):
        store.commit_report(_report(1, timings=big), now_s=4.0)
    with Store.open(store.path) as reopened:
        assert len(reopened.visits([SPEC.key])) == 4
        assert reopened.commit_report(_report(1, timings=big), now_s=5.0).n_new == 400


def test_a_store_that_cannot_be_written_is_named(store: Store) -> None:
    _with_pragma(store, "PRAGMA query_only = 1")  # what SQLite says of a read-only file, for root too
    with pytest.raises(StoreError, match=r"cannot be written .* make it and its folder writable"):
        store.commit_report(_report(), now_s=3.0)


def test_a_folder_that_takes_no_files_is_named() -> None:
    with pytest.raises(StoreError, match=r"/proc.*LUTBUILDER_STATE"):
        Store.open("/proc/campaigns.sqlite")  # where not even root may create a file


def test_a_writer_that_never_ends_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lutbuilder.coordinator.store.BUSY_S", 0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked by another process"):
        Store.open(store.path)
    other.close()


# --- samples

NS = st.integers(1, (1 << 62) - 1) | st.integers(1, 10**9)


@given(st.lists(NS, max_size=3), st.lists(NS, min_size=1, max_size=20), st.data())
def test_samples_survive_packing(warmup: list[int], values: list[int], data: st.DataObject) -> None:
    positions = st.lists(st.integers(0, len(values) - 1), max_size=3).map(tuple)
    preempted, throttled = data.draw(positions), data.draw(st.none() | positions)
    timing = _timing(0, warmup_ns=tuple(warmup), samples_ns=tuple(values), preempted=preempted, throttled=throttled)
    calls = samples.Calls(timing.warmup_ns, timing.samples_ns, timing.preempted, timing.throttled)
    assert samples.unpack(samples.pack(timing)) == calls


def test_samples_of_a_device_without_throttle_counters_are_stored_as_they_always_were() -> None:
    written = bytes.fromhex("04 01000000 02000000 01000000 84030000 64000000 2c010000 01000000")  # by lutbuilder 0.1.0
    timing = _timing(0, warmup_ns=(900,), samples_ns=(100, 300), preempted=(1,))
    assert samples.unpack(written) == samples.Calls((900,), (100, 300), (1,), None)
    assert samples.pack(timing) == written


@given(st.binary(max_size=60))
def test_bytes_that_are_no_samples_are_refused(raw: bytes) -> None:
    try:
        parts = samples.unpack(raw)
    except StoreError:
        return  # the one refusal there is; any other exception fails this test
    lists = (parts.warmup_ns, parts.samples_ns, parts.preempted, parts.throttled or ())
    head = samples._HEAD.size + (0 if parts.throttled is None else samples._FOURTH.size)
    assert head + sum(map(len, lists)) * (raw[0] & 0xF) == len(raw)


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=30), st.data())
def test_the_summary_is_numpys(values: list[int], data: st.DataObject) -> None:
    preempted = data.draw(st.sets(st.integers(0, len(values) - 1)))
    kept = [ns for number, ns in enumerate(values) if number not in preempted] or values
    expected = np.percentile(kept, [50, 90])
    assert np.allclose(samples.summary(values, tuple(preempted)), expected, rtol=1e-12)


def test_two_hundred_samples_take_less_than_a_kibibyte() -> None:
    assert len(samples.pack(_timing(0, samples_ns=(9_876_543,) * 200, preempted=()))) < 1024
