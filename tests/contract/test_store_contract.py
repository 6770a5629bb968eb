"""What the store keeps, whatever database it lives in: the same claims over SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from lutbuilder.campaign.job import JobSpec
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.store import AgentFlags, Store, StoredLease, reports, schema, visits
from lutbuilder_agent.errors import SpecError, StoreError, UnknownName, UnknownSession
from lutbuilder_agent.records import Failure
from tests.store_examples import BEFORE, HELLO, OPS, SPEC, filled, grant, raw, report, session, timing

JOB = JobSpec(kind="collect", request='{"space": "toy"}', owner="tests")
COLUMNS = ("op", "session", "round", "order", "instance", "start_ns", "block_ns", "p90_ns", "n_calls", "n_preempted")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url) as opened:
        yield filled(opened)


# --- opening


def test_a_campaign_survives_reopening_and_is_created_once(store_url: str) -> None:
    with Store.open(store_url) as store:
        assert store.create_campaign(SPEC, now_s=1.0) == SPEC.key
        assert store.create_campaign(SPEC, now_s=2.0) == SPEC.key
    with Store.open(store_url) as store:
        (state,) = store.campaigns()
        assert state == store.campaign(SPEC.key)
        assert state.spec == SPEC
        assert (state.state, state.reason, state.rounds, state.created_s) == ("active", "", 0, 1.0)


def test_a_store_of_a_newer_lutbuilder_is_refused_with_the_upgrade(store: Store, store_url: str) -> None:
    with store.writing() as connection:
        connection.execute(schema.meta.update().where(schema.meta.c.name == "schema_version").values(value="3"))
    with pytest.raises(StoreError, match=r"newer lutbuilder \(store schema 3.*pip install -U lutbuilder"):
        Store.open(store_url)
    with store.reading() as connection:
        assert connection.scalar(sa.select(schema.alembic_version.c.version_num)) == schema.REVISION


def test_a_store_without_its_version_is_refused(store: Store, store_url: str) -> None:
    with store.writing() as connection:
        connection.execute(schema.meta.delete().where(schema.meta.c.name == "schema_version"))
    with pytest.raises(StoreError, match="damaged"):
        Store.open(store_url)


def test_many_processes_and_threads_may_make_the_same_store_at_once(store_url: str) -> None:
    opened: list[Store] = []

    def make() -> None:
        opened.append(Store.open(store_url))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    opened[0].create_campaign(SPEC, now_s=1.0)
    for store in opened:
        assert store.campaign(SPEC.key).state == "active"
        store.close()


# --- what is committed


def test_every_visit_comes_back_with_all_that_was_seen(store: Store) -> None:
    result = store.commit_report(report(), now_s=3.0)
    assert (result.n_new, result.n_repeated, result.n_conflicts, result.late, result.batch) == (4, 0, 0, False, 0)
    assert raw(store) == list(report().timings)
    assert {(visit.campaign_id, visit.session_id) for visit in store.raw_visits([SPEC.key])} == {(SPEC.key, "s1")}


def test_the_largest_numbers_that_a_record_allows_are_kept(store: Store) -> None:
    most_ns, most = (1 << 62) - 1, 1 << 31
    big = timing(0, samples_ns=(most_ns, most_ns), warmup_ns=(), preempted=(), round=most, order=most, instance=most)
    store.commit_report(report(most, timings=(replace(big, start_ns=most_ns),), round_ns=most_ns), now_s=3.0)
    assert raw(store) == [replace(big, start_ns=most_ns)]
    assert store.visits([SPEC.key]).start_ns.tolist() == [most_ns]
    assert (store.campaign(SPEC.key).measured_ns, store.next_round(SPEC.key)) == (most_ns, most + 1)


def test_words_that_no_text_can_hold_do_not_keep_a_report_out(store: Store) -> None:
    failure = Failure(op_id=OPS[0].op_id, round=0, reason="crashed", detail="core\0dumped \udcff — «так»")
    store.commit_report(report(failures=(failure,)), now_s=3.0)
    (stored,) = store.failures(SPEC.key)
    assert stored.detail == "core\N{SYMBOL FOR NULL}dumped ? — «так»"
    store.open_session(replace(HELLO, agent_version="1\0"), "s2", now_s=1.0)
    assert store.session("s2").agent_version == "1\N{SYMBOL FOR NULL}"


@pytest.mark.parametrize("page", [1, 3, 16, 5000])
def test_reads_page_through_everything(store: Store, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(visits, "RAW_PAGE", page)
    monkeypatch.setattr(visits, "PAGE", page)
    for number in range(4):
        store.commit_report(report(number), now_s=3.0)
    assert raw(store) == [made for number in range(4) for made in report(number).timings]
    assert store.visits([SPEC.key]).round.tolist() == [number for number in range(4) for _ in range(4)]


def test_columns_hold_the_median_over_calls_that_kept_their_core(store: Store) -> None:
    store.commit_report(report(), now_s=3.0)
    store.commit_report(report(1, timings=(timing(0, round=1, preempted=(0, 1, 2, 3)),)), now_s=4.0)
    read = store.visits([SPEC.key])
    assert read.op_ids == tuple(op.op_id for op in OPS)
    assert read.session_ids == ("s1",)
    assert read.session_agents == ("alice",)
    assert read.block_ns.tolist() == [200.0, 200.0, 200.0, 200.0, 250.0]  # the last: every call was preempted
    assert read.n_calls.tolist() == [4] * 5
    assert read.n_preempted.tolist() == [1, 1, 1, 1, 4]
    assert read.order.tolist() == [0, 1, 2, 3, 0]
    assert read.round.tolist() == [0, 0, 0, 0, 1]
    assert read.start_ns.tolist() == [0, 1000, 2000, 3000, 0]


def test_throttled_calls_are_kept_and_leave_the_median_too(store: Store) -> None:
    store.commit_report(report(timings=(timing(0, throttled=(1, 3)), timing(1, throttled=()))), now_s=3.0)
    assert [made.throttled for made in raw(store)] == [(1, 3), ()]
    read = store.visits([SPEC.key])
    assert read.block_ns.tolist() == [150.0, 200.0]  # of 100 and 200; of 101, 200 and 300
    assert read.n_calls.tolist() == [4, 4]
    assert read.n_preempted.tolist() == [1, 1]


def test_columns_read_step_by_step_equal_columns_read_at_once(store: Store, store_url: str) -> None:
    other = replace(SPEC, repeat=1)
    store.create_campaign(other, now_s=1.0)
    session(store, "s2", name="bob")
    for number in range(3):
        store.commit_report(report(number), now_s=3.0)
        store.commit_report(report(number, report_id=f"x{number}", campaign_id=other.key, session_id="s2"), now_s=3.0)
        store.visits([SPEC.key])
    with Store.open(store_url) as fresh:
        for campaign_ids in ([SPEC.key], [other.key, SPEC.key], [SPEC.key, SPEC.key], []):
            stepwise, at_once = store.visits(campaign_ids), fresh.visits(campaign_ids)
            assert (stepwise.op_ids, stepwise.session_ids) == (at_once.op_ids, at_once.session_ids)
            for name in COLUMNS:
                assert np.array_equal(getattr(stepwise, name), getattr(at_once, name))
    both = store.visits([SPEC.key, other.key])
    assert len(both) == 24
    assert [both.session_ids[number] for number in both.session] == ["s1"] * 12 + ["s2"] * 12


def test_columns_that_were_given_out_never_change(store: Store) -> None:
    store.commit_report(report(), now_s=3.0)
    before = store.visits([SPEC.key])
    with pytest.raises(ValueError, match="read-only"):
        before.block_ns[0] = 1.0
    for number in range(1, 9):
        store.commit_report(report(number), now_s=3.0)
        assert len(store.visits([SPEC.key])) == 4 * (number + 1)
    assert before.round.tolist() == [0, 0, 0, 0]


def test_columns_that_nobody_asks_for_are_let_go_and_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "MOST_KEPT", 4)
    other = replace(SPEC, repeat=1)
    store.create_campaign(other, now_s=1.0)
    store.commit_report(report(), now_s=3.0)
    store.commit_report(report(report_id="x", campaign_id=other.key), now_s=3.0)
    for campaign_id in (SPEC.key, other.key, SPEC.key):
        assert len(store.visits([campaign_id])) == 4
        assert list(store._columns) == [campaign_id]
    assert len(store.visits([SPEC.key, other.key])) == 8


def test_visits_of_another_process_are_seen(store: Store, store_url: str) -> None:
    store.visits([SPEC.key])
    with Store.open(store_url) as other:
        other.commit_report(report(), now_s=3.0)
    assert len(store.visits([SPEC.key])) == 4


def test_a_campaign_sums_its_rounds(store: Store) -> None:
    store.commit_report(report(0), now_s=3.0)
    store.commit_report(report(1), now_s=4.0)
    store.commit_report(report(1), now_s=5.0)
    state = store.campaign(SPEC.key)
    assert (state.rounds, state.measured_ns, state.timed_ns) == (2, 2000, 1800)
    assert store.next_round(SPEC.key) == 2
    assert [(r.round, r.before, r.late) for r in store.reports([SPEC.key])] == [(0, BEFORE, False), (1, BEFORE, False)]


def test_running_sums_are_the_sums(store: Store) -> None:
    """Parts of a round, a late one, one of a lease never given, one again, two batches, two sessions."""
    session(store, "s2", name="bob")
    assert grant(store, "l2", "s2", batch=1) is not None
    parts = [
        report(0, timings=report(0).timings[:2]),
        report(0, report_id="r0b", timings=report(0).timings[2:]),
        report(1, lease_id="never-given"),
        report(2, session_id="s2", lease_id="l2", round_ns=7),
        report(0, report_id="s2r0", session_id="s2", lease_id="l2"),
        report(3, lease_epoch=9, timings=(timing(0, round=11),)),
        report(3, lease_epoch=9, timings=(timing(0, round=11),)),
        report(2, report_id="r2b", session_id="s2", lease_id="l1", round_ns=5, timings=()),
    ]
    for made in parts:
        store.commit_report(made, now_s=3.0)
    with store.reading() as connection:
        rows = connection.execute(sa.select(schema.reports)).all()
    distinct = {(row.session_id, row.round) for row in rows}
    by_batch: dict[int, set[tuple[str, int]]] = {}
    for row in rows:
        if row.batch is not None:
            by_batch.setdefault(row.batch, set()).add((row.session_id, row.round))
    state, progress = store.campaign(SPEC.key), store.progress(SPEC.key)
    assert (state.rounds, state.measured_ns) == (len(distinct), sum(row.round_ns for row in rows)) == (5, 5012)
    assert progress.rounds == {batch: len(rounds) for batch, rounds in by_batch.items()} == {0: 3, 1: 2}
    assert progress.next_round == 12
    assert progress.measured_ns == 5012


def test_a_finished_campaign_keeps_its_first_reason_and_ends_its_leases(store: Store) -> None:
    store.finish_campaign(SPEC.key, "precision", 9.0)
    store.finish_campaign(SPEC.key, "budget", 10.0)
    state = store.campaign(SPEC.key)
    assert (state.state, state.reason, state.finished_s) == ("done", "precision", 9.0)
    assert store.active_leases(SPEC.key) == ()
    result = store.commit_report(report(), now_s=11.0)
    assert (result.n_new, result.late, result.campaign_active) == (4, True, False)


def test_a_campaign_asked_for_again_is_as_urgent_as_the_most_urgent(store: Store) -> None:
    other = replace(SPEC, repeat=1)
    store.create_campaign(other, now_s=1.0, priority=3, owner="vision")
    store.create_campaign(other, now_s=1.0, priority=1, owner="speech")
    assert (store.campaign(other.key).priority, store.campaign(other.key).owner) == (3, "vision")
    store.create_campaign(other, now_s=1.0, priority=7)
    assert (store.progress(other.key).priority, store.progress(other.key).owner) == (7, "vision")
    store.finish_campaign(other.key, "budget", 2.0)
    store.create_campaign(other, now_s=1.0, priority=9)
    assert store.campaign(other.key).priority == 7
    assert [state.campaign_id for state in store.campaigns(active=True)] == [SPEC.key]
    assert len(store.campaigns()) == 2


# --- the same again, late, in conflict


def test_the_same_report_again_changes_nothing(store: Store) -> None:
    store.commit_report(report(), now_s=3.0)
    again = store.commit_report(report(), now_s=4.0)
    assert (again.n_new, again.n_repeated, again.n_conflicts, again.repeated_report) == (0, 4, 0, True)
    assert len(raw(store)) == 4
    assert store.campaign(SPEC.key).rounds == 1
    assert store.session("s1").last_report_s == 3.0


def test_the_same_visits_under_another_report_id_are_stored_once(store: Store) -> None:
    store.commit_report(report(), now_s=3.0)
    again = store.commit_report(report(report_id="other"), now_s=4.0)
    assert (again.n_new, again.n_repeated) == (0, 4)
    assert len(raw(store)) == 4
    assert store.campaign(SPEC.key).rounds == 1  # one round, told twice


def test_another_timing_under_the_same_key_is_kept_aside_and_overwrites_nothing(store: Store) -> None:
    store.commit_report(report(), now_s=3.0)
    changed = timing(2, samples_ns=(7,), preempted=())
    for _ in range(2):
        result = store.commit_report(report(report_id="r9", timings=(changed, timing(3))), now_s=4.0)
        assert (result.n_new, result.n_repeated, result.n_conflicts) == (0, 1, 1)
    assert raw(store) == list(report().timings)
    (conflict,) = store.conflicts([SPEC.key])
    assert conflict.timing == changed
    assert (conflict.session_id, conflict.report_id) == ("s1", "r9")


def test_a_key_twice_in_one_report_is_stored_once(store: Store) -> None:
    twice = (timing(0), timing(0), timing(0, start_ns=7))
    result = store.commit_report(report(timings=twice), now_s=3.0)
    assert (result.n_new, result.n_repeated, result.n_conflicts) == (1, 1, 1)


@pytest.mark.parametrize("ending", ["lost", "cancelled", "done"])
def test_a_report_of_an_ended_lease_is_late_and_stored(store: Store, ending: Any) -> None:
    store.end_lease("l1", ending, now_s=3.0)
    result = store.commit_report(report(), now_s=4.0)
    assert (result.late, result.n_new, result.batch) == (True, 4, 0)
    assert len(store.visits([SPEC.key])) == 4
    assert store.reports([SPEC.key])[0].late


@pytest.mark.parametrize("change", [{"lease_epoch": 0}, {"lease_id": "never-given"}, {"session_id": "s2"}])
def test_a_report_of_another_lease_epoch_or_session_is_late_and_stored(store: Store, change: dict[str, Any]) -> None:
    session(store, "s2", name="bob")
    result = store.commit_report(report(**change), now_s=4.0)
    assert (result.late, result.n_new) == (True, 4)


def test_what_this_store_never_saw_is_refused_by_name(store: Store) -> None:
    with pytest.raises(UnknownSession, match="register again"):
        store.commit_report(report(session_id="s9"), now_s=3.0)
    with pytest.raises(UnknownName, match="nowhere"):
        store.commit_report(report(campaign_id="nowhere"), now_s=3.0)
    with pytest.raises(UnknownName):
        store.campaign("nowhere")
    with pytest.raises(UnknownName):
        store.progress("nowhere")
    with pytest.raises(UnknownSession):
        store.session("s9")
    with pytest.raises(UnknownSession):
        grant(store, "l9", "s9")
    assert store.newest_session("nobody") is None
    assert raw(store) == []


def test_many_threads_commit_without_losing_a_visit(store: Store) -> None:
    errors: list[BaseException] = []

    def commit(numbers: range) -> None:
        try:
            for number in numbers:
                store.commit_report(report(number), now_s=3.0)
                store.visits([SPEC.key])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(range(start, 40, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.visits([SPEC.key])) == len(raw(store)) == 160
    assert store.campaign(SPEC.key).rounds == 40


def test_reports_that_wait_together_are_committed_together_and_refused_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thread is held up in its commit; all that came meanwhile need one more transaction."""
    held, go_on, commits = threading.Event(), threading.Event(), []
    whole = reports.Reports._commit

    def slow(self: Any, together: Any) -> None:
        commits.append(len(together))
        if len(commits) == 1:
            held.set()
            assert go_on.wait(20)
        whole(self, together)

    monkeypatch.setattr(reports.Reports, "_commit", slow)
    outcomes: dict[int, object] = {}

    def commit(number: int) -> None:
        made = report(number, session_id="s9") if number == 5 else report(number)
        try:
            outcomes[number] = store.commit_report(made, now_s=3.0)
        except UnknownSession as error:
            outcomes[number] = error

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(9)]
    threads[0].start()
    assert held.wait(20)
    for thread in threads[1:]:
        thread.start()
    while len(store._queue) < 8:
        pass
    go_on.set()
    for thread in threads:
        thread.join()
    assert commits == [1, 8]
    assert isinstance(outcomes.pop(5), UnknownSession)
    assert [outcome.n_new for outcome in outcomes.values()] == [4] * 8  # type: ignore[attr-defined]  # CommitResult each
    assert store.campaign(SPEC.key).rounds == 8


# --- failures, drops, decisions


def _failed(number: int, op: int = 0, **changes: Any) -> None:
    store, session_id = changes.pop("store"), changes.pop("session_id", "s1")
    failure = replace(Failure(op_id=OPS[op].op_id, round=number, reason="crashed", detail=f"in {number}"), **changes)
    made = report(number, report_id=f"{session_id}-{number}-{op}", session_id=session_id, failures=(failure,))
    store.commit_report(replace(made, timings=()), now_s=3.0)


def test_failures_are_counted_by_occasion_with_the_latest_words(store: Store) -> None:
    op_id = OPS[0].op_id
    told = []
    for place, (number, detail) in enumerate(((0, "first"), (0, "first, told again"), (1, "second"))):
        failure = Failure(op_id=op_id, round=number, reason="crashed", detail=detail)
        result = store.commit_report(report(number, report_id=f"f{place}", failures=(failure,)), now_s=3.0)
        told.append(result.failures_new)
    (stored,) = store.failures(SPEC.key)
    assert told == [1, 0, 1]
    assert (stored.op_id, stored.reason, stored.detail, stored.attempts) == (op_id, "crashed", "second", 2)
    assert stored.agents == ("alice",)


def test_failures_tell_on_how_many_devices(store: Store) -> None:
    session(store, "b1", name="bob")
    session(store, "b2", name="bob")
    for session_id in ("s1", "b1", "b2"):
        _failed(0, store=store, session_id=session_id)
    (stored,) = store.failures(SPEC.key)
    assert (stored.attempts, stored.agents, stored.devices) == (3, ("alice", "bob"), 2)


def test_an_artifact_that_cannot_be_built_is_a_failure_of_its_op(store: Store) -> None:
    store.record_failure(SPEC.key, "s1", Failure(op_id=OPS[1].op_id, round=0, reason="unsupported", detail="se"))
    assert [(failure.op_id, failure.final) for failure in store.failures(SPEC.key)] == [(OPS[1].op_id, True)]


def test_failures_of_a_sick_device_are_excused_and_kept(store: Store) -> None:
    session(store, "b1", name="bob")
    _failed(0, store=store)
    _failed(0, store=store, session_id="b1")
    _failed(0, op=1, store=store, session_id="b1")
    store.excuse_failures(SPEC.key, [OPS[0].op_id, OPS[1].op_id], agent="bob")
    assert [(failure.op_id, failure.agents) for failure in store.failures(SPEC.key)] == [(OPS[0].op_id, ("alice",))]
    _failed(0, store=store, session_id="b1", detail="told again")
    kept = [(occasion.agent, occasion.excused) for occasion in store.occasions(SPEC.key)]
    assert kept == [("alice", False), ("bob", True), ("bob", True)]
    _failed(1, store=store, session_id="b1")
    assert [failure.attempts for failure in store.failures(SPEC.key)] == [2]  # a new occasion counts


def test_an_op_that_is_released_has_never_failed_and_its_batch_is_pending(store: Store) -> None:
    _failed(0, store=store)
    store.finish_batch(SPEC.key, 0, "failed", now_s=4.0)
    store.finish_batch(SPEC.key, 1, "precision", now_s=4.0)
    for _ in range(2):
        store.release_op(SPEC.key, OPS[0].op_id)
        progress = store.progress(SPEC.key)
        assert (progress.failures, progress.done) == ((), {1})
    assert [occasion.excused for occasion in store.occasions(SPEC.key)] == [True]
    with pytest.raises(UnknownName, match="never failed"):
        store.release_op(SPEC.key, OPS[1].op_id)


def test_a_campaign_that_has_ended_stays_so_when_an_op_is_released(store: Store) -> None:
    _failed(0, store=store)
    store.finish_batch(SPEC.key, 0, "failed", now_s=4.0)
    store.finish_campaign(SPEC.key, "failed", 5.0)
    store.release_op(SPEC.key, OPS[0].op_id)
    assert (store.campaign(SPEC.key).state, store.progress(SPEC.key).done) == ("done", {0})


def test_ops_that_pass_elsewhere_are_told_from_those_that_do_not(store: Store) -> None:
    session(store, "b1", name="bob")
    store.commit_report(report(timings=(timing(0), timing(1))), now_s=3.0)
    store.commit_report(report(1, session_id="b1", timings=(timing(2, round=1),)), now_s=3.0)
    wanted = [op.op_id for op in OPS]
    assert store.passed(SPEC.key, wanted, besides="bob") == {OPS[0].op_id, OPS[1].op_id}
    assert store.passed(SPEC.key, wanted[:1], besides="alice") == set()
    assert store.passed(SPEC.key, wanted, besides="alice") == {OPS[2].op_id}


def test_a_decision_is_remembered_with_its_drops_and_its_batch(store: Store) -> None:
    store.commit_report(report(), now_s=3.0)
    decision = Decision(stop=True, reason="precision", drop=(OPS[0].op_id, OPS[0].op_id))
    for _ in range(2):
        store.record_decision(report(), decision, finished_batch=0, now_s=4.0)
    progress = store.progress(SPEC.key)
    assert (progress.dropped, progress.done, progress.rounds, progress.next_round) == ({OPS[0].op_id}, {0}, {0: 1}, 1)
    assert store.active_leases(SPEC.key) == ()
    again = store.commit_report(report(), now_s=5.0)
    assert again.decision == decision


# --- sessions and agents


def test_sessions_and_agents_say_what_they_are(store: Store) -> None:
    assert (session(store, "s2"), session(store, "s3", name="bob")) == (2, 1)
    store.commit_report(report(), now_s=3.0)
    (stored,) = store.sessions([SPEC.key])
    assert (stored.session_id, stored.epoch, stored.last_report_s) == ("s1", 1, 3.0)
    assert stored.hello == HELLO
    assert stored.fingerprint.env_id == SPEC.env_id
    assert [(agent.name, agent.session_id, agent.epoch) for agent in store.agents()] == [
        ("alice", "s2", 2),
        ("bob", "s3", 1),
    ]
    newest = store.newest_session("alice")
    assert newest is not None
    assert newest.session_id == "s2"


def test_a_session_opened_twice_is_one_session(store: Store) -> None:
    assert session(store, "s2") == session(store, "s2") == 2
    assert session(store, "s1") == 1


def test_a_new_session_fences_every_older_one_of_its_name(store: Store) -> None:
    session(store, "b1", name="bob")
    assert grant(store, "l2", "b1", batch=1) is not None
    session(store, "s2")
    assert [lease.lease_id for lease in store.active_leases()] == ["l2"]
    assert store.commit_report(report(), now_s=3.0).late
    assert grant(store, "l3", "s1") is None, "the old session gets nothing any more"
    assert grant(store, "l3", "s2") is not None


def test_a_clock_domain_is_kept_as_the_agent_said_it(store: Store) -> None:
    store.open_session(replace(HELLO, name="carol", clock_domain="rack-7"), "c1", now_s=1.0)
    assert (store.session("c1").clock_domain, store.session("c1").hello.clock_domain) == ("rack-7", "rack-7")
    assert store.session("s1").clock_domain == ""


def test_what_was_decided_about_an_agent_outlives_its_sessions(store: Store) -> None:
    assert store.agent_flags() == {}
    assert store.set_agent("alice", drained=True) == AgentFlags(drained=True)
    assert store.set_agent("alice", quarantined="3 ops failed") == AgentFlags(drained=True, quarantined="3 ops failed")
    session(store, "s2")
    assert store.agent_flags() == {"alice": AgentFlags(drained=True, quarantined="3 ops failed")}
    assert (store.session("s2").drained, store.session("s2").quarantined) == (True, "3 ops failed")
    assert store.agents()[0].drained
    assert store.set_agent("alice", drained=False, quarantined="") == AgentFlags()
    assert store.agent_flags() == {}
    with pytest.raises(UnknownName, match="lutbuilder agents"):
        store.set_agent("alicia", drained=True)


# --- leases


def test_a_lease_is_granted_with_the_next_epoch_of_its_batch(store: Store) -> None:
    store.end_lease("l1", "lost", now_s=3.0)
    granted = grant(store, "l2", first_round=3, rounds=97, owner="lab", domain="rack", now_s=5.0)
    assert granted == StoredLease(
        lease_id="l2", campaign_id=SPEC.key, batch=0, epoch=2, session_id="s1", agent="alice", state="active",
        first_round=3, rounds=97, owner="lab", beat=0, quiet_s=0.0, domain="rack", granted_s=5.0,
    )  # fmt: skip  # one line reads as one record
    assert store.active_leases(SPEC.key) == store.active_leases() == store.leases() == (granted,)
    assert [lease.state for lease in store.leases(active=False)] == ["lost", "active"]
    assert store.commit_report(report(), now_s=6.0).late


def test_the_same_lease_asked_for_twice_is_one_lease(store: Store) -> None:
    store.end_lease("l1", "done", now_s=3.0)
    assert grant(store, "l2") == grant(store, "l2")
    store.end_lease("l2", "done", now_s=3.0)
    assert grant(store, "l2") is None
    assert len(store.leases(active=False)) == 2


def test_no_lease_where_there_is_no_room(store: Store) -> None:
    session(store, "b1", name="bob")
    assert grant(store, "l2", "b1") is None
    assert grant(store, "l2", "b1", room=2) is not None
    session(store, "c1", name="carol")
    assert grant(store, "l3", "c1", room=2) is None
    assert [lease.lease_id for lease in store.active_leases()] == ["l1", "l2"]


def test_no_lease_of_a_batch_or_campaign_that_is_done(store: Store) -> None:
    session(store, "b1", name="bob")
    store.finish_batch(SPEC.key, 1, "precision", now_s=3.0)
    assert grant(store, "l2", "b1", batch=1) is None
    store.finish_campaign(SPEC.key, "budget", 3.0)
    assert grant(store, "l2", "b1", batch=2) is None
    assert grant(store, "l2", "b1", campaign_id="nowhere") is None


@pytest.mark.parametrize("flags", [{"drained": True}, {"quarantined": "sick"}])
def test_no_lease_for_an_agent_that_shall_not_work(store: Store, flags: dict[str, Any]) -> None:
    session(store, "b1", name="bob")
    store.set_agent("bob", **flags)
    assert grant(store, "l2", "b1", batch=1) is None
    store.set_agent("bob", drained=False, quarantined="")
    assert grant(store, "l2", "b1", batch=1) is not None


def test_a_clock_domain_holds_one_lease_at_a_time(store: Store) -> None:
    for name in ("bob", "carol"):
        session(store, f"{name}-1", name=name)
    assert grant(store, "l2", "bob-1", batch=1, domain="host") is not None
    assert grant(store, "l3", "carol-1", batch=2, domain="host") is None
    assert grant(store, "l3", "bob-1", batch=2, domain="host") is None
    assert grant(store, "l3", "carol-1", batch=2) is not None, "a domain of its own"
    assert grant(store, "l4", "s1", batch=3) is None, "an agent without a domain is one"


def test_a_lease_ahead_follows_the_one_the_agent_has_and_no_other(store: Store) -> None:
    session(store, "b1", name="bob")
    assert grant(store, "l2", "s1", batch=1, ahead_of="never-given") is None
    assert grant(store, "l2", "b1", batch=1, ahead_of="l1", domain="alice") is None, "another agent's"
    assert grant(store, "l2", "s1", batch=1, ahead_of="l1") is not None
    assert grant(store, "l3", "s1", batch=2, ahead_of="l1") is None, "two at most"
    assert grant(store, "l3", "s1", batch=2, ahead_of="l2") is None
    store.end_lease("l1", "done", now_s=3.0)
    assert grant(store, "l3", "s1", batch=2, ahead_of="l2") is not None


def test_a_lease_that_was_reshaped_says_for_which_rounds_it_is(store: Store) -> None:
    store.reshape_lease("l1", first_round=4, rounds=12)
    assert [(lease.first_round, lease.rounds) for lease in store.active_leases(SPEC.key)] == [(4, 12)]


def test_a_lease_ends_once(store: Store) -> None:
    assert store.end_lease("l1", "lost", now_s=3.0)
    assert not store.end_lease("l1", "done", now_s=4.0)
    assert [lease.state for lease in store.leases(active=False)] == ["lost"]


def test_a_beat_says_which_leases_are_still_the_owners(store: Store) -> None:
    for number, name in enumerate(("bob", "carol", "dave"), start=1):
        session(store, name, name=name)
        assert grant(store, f"m{number}", name, batch=number, owner="me") is not None
    store.end_lease("m2", "lost", now_s=3.0)
    store.adopt_leases("dave", "another")
    assert store.beat_leases("me", {"m1": 0.0, "m2": 5.0, "m3": 0.0, "l1": 0.0}) == {"m1"}
    assert store.beat_leases("me", {"m1": 90.0}) == {"m1"}
    beats = {lease.lease_id: (lease.owner, lease.beat, lease.quiet_s) for lease in store.active_leases()}
    assert beats == {"l1": ("", 0, 0.0), "m1": ("me", 2, 90.0), "m3": ("another", 1, 0.0)}
    assert store.beat_leases("me", {}) == frozenset()


def test_nobody_calls_a_lease_lost_that_has_just_been_extended(store: Store) -> None:
    (seen,) = store.adopt_leases("s1", "me")
    assert (seen.owner, seen.beat) == ("me", 1)
    store.beat_leases("me", {"l1": 0.0})
    assert not store.end_lease("l1", "lost", now_s=3.0, beat=seen.beat)
    assert store.end_lease("l1", "lost", now_s=3.0, beat=2)


# --- coordinators and jobs


def test_coordinators_are_told_by_their_beats(store: Store) -> None:
    for owner in ("a", "b", "a"):
        store.beat_coordinator(owner)
    assert store.coordinators() == {"a": 2, "b": 1}
    store.forget_coordinator("a")
    assert store.coordinators() == {"b": 1}


def test_what_a_coordinator_leaves_behind_is_anybodys(store: Store) -> None:
    store.beat_coordinator("a")
    store.adopt_leases("s1", "a")
    store.submit_job(JOB, job_id="job-1", now_s=1.0)
    assert store.claim_job("a", now_s=2.0) is not None
    store.forget_coordinator("a")
    assert [lease.owner for lease in store.active_leases()] == [""]
    assert (store.job("job-1").state, store.job("job-1").runner) == ("queued", "")


def test_a_job_is_kept_as_it_was_asked_for(store: Store) -> None:
    made = store.submit_job(JOB, job_id="job-1", now_s=1.0)
    assert (made.spec, made.state, made.created_s, made.runner, made.campaign_ids) == (JOB, "queued", 1.0, "", ())
    assert store.submit_job(JOB, job_id="job-1", now_s=9.0) == made == store.job("job-1")
    with pytest.raises(SpecError, match="another id"):
        store.submit_job(replace(JOB, priority=1), job_id="job-1", now_s=1.0)
    with pytest.raises(UnknownName):
        store.job("job-2")
    assert store.jobs() == store.jobs(active=True) == (made,)


def test_the_oldest_of_the_most_urgent_jobs_is_claimed_first(store: Store) -> None:
    for job_id, priority, now_s in (("late", 0, 3.0), ("early", 0, 2.0), ("urgent", 5, 4.0)):
        store.submit_job(replace(JOB, priority=priority), job_id=job_id, now_s=now_s)
    claimed = []
    while (job := store.claim_job("me", now_s=5.0, besides=claimed)) is not None:
        assert (job.state, job.runner) == ("running", "me")
        claimed.append(job.job_id)
    assert claimed == ["urgent", "early", "late"]


def test_a_job_is_claimed_again_by_its_own_runner_or_when_that_is_dead(store: Store) -> None:
    store.submit_job(JOB, job_id="job-1", now_s=1.0)
    first = store.claim_job("a", now_s=2.0)
    assert first == store.claim_job("a", now_s=2.0), "the answer was lost, or the runner started again"
    assert store.claim_job("a", now_s=2.0, besides=["job-1"]) is None
    assert store.claim_job("b", now_s=2.0) is None
    second = store.claim_job("b", now_s=2.0, dead=["a"])
    assert second is not None
    assert second.runner == "b"
    assert store.update_job("job-1", runner="a", state="done", now_s=3.0) == second, "a is not its runner any more"


def test_a_job_says_how_far_it_is_until_it_is_over(store: Store) -> None:
    store.submit_job(JOB, job_id="job-1", now_s=1.0)
    store.claim_job("a", now_s=2.0)
    told = store.update_job("job-1", runner="a", campaign_ids=["c1", "c2"], progress="{}", message="timing", now_s=3.0)
    assert (told.campaign_ids, told.progress, told.message, told.state) == (("c1", "c2"), "{}", "timing", "running")
    assert store.update_job("job-1", runner="a", now_s=3.0) == told
    done = store.update_job("job-1", runner="a", state="done", lut="toy@1", now_s=4.0)
    assert (done.state, done.lut, done.finished_s, done.message) == ("done", "toy@1", 4.0, "timing")
    assert store.update_job("job-1", runner="a", state="failed", now_s=5.0) == done
    assert store.cancel_job("job-1", now_s=5.0) == done
    assert store.jobs(active=True) == ()


def test_a_cancelled_job_stays_cancelled_whatever_its_runner_says(store: Store) -> None:
    store.submit_job(JOB, job_id="job-1", now_s=1.0)
    store.claim_job("a", now_s=2.0)
    cancelled = store.cancel_job("job-1", now_s=3.0)
    assert (cancelled.state, cancelled.finished_s) == ("cancelled", 3.0)
    assert store.update_job("job-1", runner="a", state="done", now_s=4.0) == cancelled
    assert store.claim_job("a", now_s=5.0) is None


def test_a_job_put_back_waits_for_anybody(store: Store) -> None:
    store.submit_job(JOB, job_id="job-1", now_s=1.0)
    store.claim_job("a", now_s=2.0)
    back = store.update_job("job-1", runner="a", state="queued", now_s=3.0)
    assert (back.state, back.runner, back.finished_s) == ("queued", "", None)
    assert store.claim_job("b", now_s=4.0) is not None


def test_a_store_counts_what_it_has(store: Store) -> None:
    store.submit_job(JOB, job_id="job-1", now_s=1.0)
    store.end_lease("l1", "lost", now_s=3.0)
    counts = store.counts()
    assert (counts.campaigns, counts.jobs, counts.leases) == ({"active": 1}, {"queued": 1}, {"lost": 1})


# --- tables of others


def test_others_read_and_write_their_tables_in_transactions(store: Store) -> None:
    row = {"sha256": "ab", "pem": "PEM", "created_s": 1.0}
    with store.writing() as connection:
        connection.execute(schema.trust_cas.insert().values(row))

    def changes_its_mind() -> None:
        with store.writing() as connection:
            connection.execute(schema.trust_cas.delete())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        changes_its_mind()
    with store.reading() as connection:
        assert connection.execute(sa.select(schema.trust_cas)).all() == [("ab", "PEM", 1.0, None)]


def test_errors_are_told_to_who_wants_to_know(store: Store) -> None:
    told: list[StoreError] = []
    store.on_error.append(told.append)
    with pytest.raises(StoreError) as caught, store.writing() as connection:
        connection.exec_driver_sql("SELECT nothing FROM nowhere")
    assert told == [caught.value]
