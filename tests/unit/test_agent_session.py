"""The agent's session against a coordinator in memory: nothing measured is lost, and nothing counts twice."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.delivery import split_report
from lutbuilder_agent.errors import (
    LutbuilderError,
    ProtocolMismatch,
    RuntimeUnavailable,
    SpecError,
    StaleLease,
    StoreError,
    UnknownName,
    UnknownSession,
    Unreachable,
)
from lutbuilder_agent.link import Backoff
from lutbuilder_agent.records import Conditions, Failure, LeasedOp, Report, ReportAck
from lutbuilder_agent.spool import Spool
from tests.agent_bench import Bench, failing
from tests.agent_fakes import (
    FakeWorker,
    artifact,
    lease,
    leased_op,
    report,
)


@pytest.fixture
def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Bench:
    caplog.set_level(logging.INFO, "lutbuilder_agent")
    return Bench(tmp_path)


# --- measuring


def test_every_round_is_reported_with_its_conditions_and_leaves_the_spool(bench: Bench) -> None:
    bench.coordinator.leases = [lease(n_ops=3, rounds=4, first_round=5)]
    assert bench.run() == 0
    assert bench.coordinator.rounds == [5, 6, 7, 8]
    first = next(iter(bench.coordinator.reports.values()))
    assert [timing.op_id for timing in first.timings] == ["op-0", "op-1", "op-2"]
    assert (first.session_id, first.lease_id, first.lease_epoch, first.campaign_id) == (
        "session-1",
        "lease-1",
        1,
        "campaign",
    )
    assert (first.round_ns, first.timed_ns) == (5_000_000, 4_000_000)
    assert first.before == first.after == Conditions(monotonic_ns=1, load_1min=0.5)
    assert bench.waiting() == []
    assert bench.worker.closed == 1


def test_artifacts_are_verified_files_and_fetched_once_for_all_leases(bench: Bench) -> None:
    bench.coordinator.leases = [lease(1), lease(2, first_round=2)]
    bench.run()
    assert [path.read_bytes() for path in bench.worker.paths] == [artifact(n) for n in range(3)]
    assert len(bench.coordinator.fetched) == 3


def test_the_agent_is_silent_and_disconnected_while_the_worker_loads_and_times(bench: Bench) -> None:
    connected: list[int] = []

    class Watching(FakeWorker):
        def begin(self, ops: Sequence[tuple[LeasedOp, Path]]) -> None:
            connected.append(bench.coordinator.open)
            super().begin(ops)

    bench.worker = Watching(on_round=lambda round: connected.append(bench.coordinator.open))
    bench.coordinator.leases = [lease(rounds=3)]
    bench.run()
    assert connected == [0, 0, 0, 0]


def test_a_round_is_on_the_disk_before_it_is_sent(bench: Bench) -> None:
    on_disk: list[int] = []
    bench.coordinator.on_call = lambda call: on_disk.append(len(bench.waiting())) if call == "report" else None
    bench.coordinator.leases = [lease(rounds=3)]
    bench.run()
    assert on_disk == [1, 1, 1]


def test_stop_ends_the_lease_and_the_next_one_begins(bench: Bench) -> None:
    bench.coordinator.leases = [lease(1, rounds=9), lease(2, rounds=1, first_round=50)]
    bench.coordinator.answer = lambda report: ReportAck(report_id=report.report_id, stop=report.round == 1)
    bench.run()
    assert bench.coordinator.rounds == [0, 1, 50]
    assert bench.worker.closed == 2


def test_a_dropped_op_is_not_visited_again(bench: Bench) -> None:
    bench.coordinator.leases = [lease(n_ops=3, rounds=3)]
    bench.coordinator.answer = lambda report: ReportAck(
        report_id=report.report_id, drop=("op-1", "never-heard-of") if report.round == 0 else ()
    )
    bench.run()
    assert bench.worker.dropped == ["op-1"]
    assert [len(one.timings) for one in bench.coordinator.reports.values()] == [3, 2, 2]


def test_a_lease_whose_last_op_was_dropped_is_over(bench: Bench) -> None:
    bench.coordinator.leases = [lease(n_ops=2, rounds=9)]
    bench.coordinator.answer = lambda report: ReportAck(report_id=report.report_id, drop=("op-0", "op-1"))
    bench.run()
    assert bench.worker.rounds == [0]


def test_a_cancelled_lease_is_left_before_the_next_round(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=9, ttl_s=4.0)]
    bench.worker.on_round = lambda round: bench.clock.sleep(3.0)
    bench.coordinator.cancelled = lambda lease_id: bool(bench.worker.rounds)
    bench.run()
    assert bench.worker.rounds == [0]
    assert bench.worker.closed == 1


def test_silence_is_announced_for_loading_and_for_rounds_the_lease_would_not_outlive(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=3, ttl_s=30.0)]
    bench.worker.on_round = lambda round: bench.clock.sleep(1.0 if round == 0 else 20.0)
    bench.run()
    loading, first, after_the_long_round = bench.coordinator.quiet_s
    assert loading == first > 60.0  # one op may take its whole time limit
    assert after_the_long_round == 40.0


# --- failures


def test_an_op_that_fails_in_a_round_is_reported_and_the_rest_goes_on(bench: Bench) -> None:
    def sample(op_id: str, round: int) -> Sequence[int] | Failure:
        if op_id == "op-1" and round == 1:
            return Failure(op_id=op_id, round=round, reason="crashed", detail="signal 11")
        return (1000,)

    bench.worker.sample = sample
    bench.coordinator.leases = [lease(n_ops=2, rounds=3)]
    bench.run()
    reports = list(bench.coordinator.reports.values())
    assert [[failure.detail for failure in one.failures] for one in reports] == [[], ["signal 11"], []]
    assert [len(one.timings) for one in reports] == [2, 1, 1]


def test_ops_that_cannot_be_prepared_are_reported_at_once_and_the_rest_is_measured(bench: Bench) -> None:
    bench.worker.prepare_failures = (Failure(op_id="op-0", round=0, reason="unsupported", detail="no such layer"),)
    bench.coordinator.leases = [lease(n_ops=2, rounds=1)]
    bench.run()
    failed, measured = bench.coordinator.reports.values()
    assert (failed.failures[0].op_id, failed.timings) == ("op-0", ())
    assert [timing.op_id for timing in measured.timings] == ["op-1"]


def test_a_lease_none_of_whose_ops_can_be_prepared_is_over_without_a_round(bench: Bench) -> None:
    failures = tuple(Failure(op_id=f"op-{n}", round=0, reason="unsupported", detail="no") for n in range(3))
    bench.worker.prepare_failures = failures
    bench.coordinator.leases = [lease(n_ops=3)]
    bench.run()
    assert bench.worker.rounds == []
    assert [one.failures for one in bench.coordinator.reports.values()] == [failures]


def test_an_artifact_with_a_wrong_sha256_fails_its_op_only(bench: Bench) -> None:
    good, bad = leased_op(0), leased_op(1)
    bench.coordinator.artifacts = {good.artifact.sha256: artifact(0), bad.artifact.sha256: artifact(1)[:-1] + b"!"}
    bench.coordinator.leases = [lease(n_ops=2, rounds=1)]
    bench.run()
    failed, measured = bench.coordinator.reports.values()
    assert (failed.failures[0].op_id, failed.failures[0].reason) == ("op-1", "bad_artifact")
    assert "sha256" in failed.failures[0].detail
    assert [timing.op_id for timing in measured.timings] == ["op-0"]


def test_a_plan_the_runtime_cannot_make_sense_of_fails_every_op_with_its_words(bench: Bench) -> None:
    class Refusing(FakeWorker):
        def loaded(self) -> tuple[Failure, ...]:
            raise SpecError("unknown option 'colour'")

    bench.worker = Refusing()
    bench.coordinator.leases = [lease(n_ops=2)]
    assert bench.run() == 0
    (only,) = bench.coordinator.reports.values()
    assert [(one.op_id, one.reason, one.detail) for one in only.failures] == [
        ("op-0", "unsupported", "unknown option 'colour'"),
        ("op-1", "unsupported", "unknown option 'colour'"),
    ]
    assert bench.worker.closed == 1


def test_a_runtime_that_does_not_load_ends_the_agent_and_is_no_ops_fault(bench: Bench) -> None:
    class Broken(FakeWorker):
        def loaded(self) -> tuple[Failure, ...]:
            raise RuntimeUnavailable("the engine was removed")

    bench.worker = Broken()
    bench.coordinator.leases = [lease()]
    with pytest.raises(RuntimeUnavailable, match="removed"):
        bench.run()
    assert bench.coordinator.reports == {}
    assert bench.coordinator.states[-1] == "draining"
    assert bench.worker.closed == 1


# --- the coordinator is away


def test_a_coordinator_that_is_away_at_the_start_is_waited_for_with_growing_pauses(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    away = Unreachable("nobody answers at host:1; lutbuilder-agent run --coordinator HOST:PORT")
    bench.coordinator.on_call = failing(away, "register", times=7)
    bench.coordinator.leases = [lease(rounds=1)]
    assert bench.run() == 0
    assert bench.clock.slept_s[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert bench.coordinator.rounds == [0]
    told = [record.getMessage() for record in caplog.records if "--coordinator HOST:PORT" in record.getMessage()]
    assert bench.coordinator.connections == 8 + 2  # one a try; one after loading, one after the round
    assert len(told) == 1  # said with the next thing to type, and not at every try
    assert "the coordinator answers again" in caplog.messages


def test_giving_up_takes_as_long_as_was_asked_and_is_unreachable(bench: Bench) -> None:
    bench.coordinator.on_call = failing(Unreachable("nobody answers at host:1"), "register", times=10**6)
    with pytest.raises(Unreachable, match="gave up after 10 s"):
        bench.run(give_up_after_s=10.0)
    assert sum(bench.clock.slept_s) == pytest.approx(10.0)


def test_any_answer_starts_the_time_before_giving_up_anew(bench: Bench) -> None:
    def on_call(call: str) -> None:
        calls = len(bench.coordinator.calls)
        if calls == 3:  # register, lease, lease: an answer, though an unwelcome one
            bench.clock.sleep(60.0)
            raise UnknownSession("restarted")
        if calls > 1:
            raise Unreachable("away")

    bench.coordinator.on_call = on_call
    with pytest.raises(Unreachable, match="gave up after 100 s"):
        bench.run(give_up_after_s=100.0)
    assert sum(bench.clock.slept_s) == pytest.approx(0.25 + 60.0 + 100.0)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_random_between_half_and_all_of_a_capped_doubling(tries: int, jitter: float) -> None:
    backoff = Backoff(first_s=0.25, cap_s=4.0)
    full_s = backoff.pause_s(tries, 0.0)
    assert full_s <= 4.0
    assert full_s / 2 <= backoff.pause_s(tries, jitter) <= full_s
    assert backoff.pause_s(tries + 1, 0.0) == min(4.0, 2 * full_s)


def test_a_partitioned_agent_goes_on_measuring_and_delivers_everything_later(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=6)]
    seen_at_round_4: list[int] = []

    def on_round(round: int) -> None:
        bench.clock.sleep(1.0)
        if round == 4:
            seen_at_round_4.append(len(bench.coordinator.reports))
            bench.coordinator.on_call = lambda call: None

    def cut(call: str) -> None:
        if bench.worker.rounds:
            raise Unreachable("cut")

    bench.worker.on_round = on_round
    bench.coordinator.on_call = cut
    assert bench.run() == 0
    assert seen_at_round_4 == [0]
    assert bench.coordinator.rounds == [0, 1, 2, 3, 4, 5]
    assert bench.waiting() == []


def test_rounds_do_not_wait_for_a_coordinator_that_is_away(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=50)]
    bench.worker.on_round = lambda round: bench.clock.sleep(0.1)

    def away_for_30_rounds(call: str) -> None:
        if call == "report" and len(bench.worker.rounds) < 30:
            raise Unreachable("away")

    bench.coordinator.on_call = away_for_30_rounds
    assert bench.run() == 0
    assert bench.coordinator.calls.count("report") == 50 + 4  # in vain at once and after 0.25, 0.5 and 1 s more
    assert sum(bench.clock.slept_s) == pytest.approx(5.0)  # the rounds, and not one pause
    assert bench.coordinator.rounds == list(range(50))


def test_a_coordinator_whose_store_fails_is_asked_again_and_loses_nothing(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=4)]
    bench.worker.on_round = lambda round: bench.clock.sleep(1.0)
    bench.coordinator.on_call = failing(StoreError("disk full there"), "report", times=2)
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0, 1, 2, 3]
    assert bench.waiting() == []


def test_a_lost_acknowledgement_sends_the_same_report_again_and_changes_nothing(bench: Bench) -> None:
    lost: list[str] = []

    def answer(report: Report) -> ReportAck:
        if report.round == 0 and len(lost) < 3:
            lost.append(report.report_id)
            raise Unreachable("cut after the commit")
        return ReportAck(report_id=report.report_id)

    bench.coordinator.answer = answer
    bench.coordinator.leases = [lease(rounds=5)]
    bench.worker.on_round = lambda round: bench.clock.sleep(1.0)
    bench.run()
    assert len(set(lost)) == 1
    assert sorted(bench.coordinator.rounds) == [0, 1, 2, 3, 4]
    assert len(bench.coordinator.reports) == 5
    assert bench.waiting() == []


@pytest.mark.parametrize("cut_after", [0, 1, 2])
def test_a_cut_artifact_download_resumes_where_it_was(bench: Bench, cut_after: int) -> None:
    chunks = 0

    def on_call(call: str) -> None:
        nonlocal chunks
        if call == "chunk":
            chunks += 1
            if chunks == cut_after + 1:
                raise Unreachable("cut in the middle")

    bench.coordinator.on_call = on_call
    bench.coordinator.leases = [lease(n_ops=1, rounds=1)]
    assert bench.run() == 0
    assert [offset for _, offset in bench.coordinator.fetched] == [0, cut_after * 1000]
    assert bench.coordinator.rounds == [0]


# --- restarts, on either side


def test_a_crash_after_measuring_and_before_the_acknowledgement_loses_nothing(bench: Bench) -> None:
    class Killed(BaseException):
        """Stands in for SIGKILL: nothing of the agent runs afterwards but what Python unwinds."""

    def die(call: str) -> None:
        if call == "report":
            raise Killed

    bench.coordinator.leases = [lease(rounds=3)]
    bench.coordinator.on_call = die
    with pytest.raises(Killed):
        bench.run()
    (kept,) = bench.waiting()
    assert kept is not None
    assert bench.coordinator.reports == {}

    bench.coordinator.on_call = lambda call: None
    bench.coordinator.calls.clear()
    assert bench.run() == 0
    assert bench.coordinator.calls[:3] == ["register", "report", "lease"]  # the spool comes first
    assert bench.coordinator.reports == {kept.report_id: kept}
    assert bench.waiting() == []


def test_an_unknown_session_registers_again_offers_again_and_goes_on(bench: Bench) -> None:
    bench.coordinator.leases = [lease(1, rounds=3)]
    bench.coordinator.on_call = failing(UnknownSession("who are you?"), "report", times=1)
    assert bench.run() == 0
    assert len(bench.coordinator.hellos) == 2
    assert bench.coordinator.rounds == [0, 1, 2]
    assert bench.worker.closed == 1  # the worker and everything it has loaded stayed


def test_a_session_unknown_at_the_lease_call_registers_again(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=1)]
    bench.coordinator.on_call = failing(UnknownSession("restarted"), "lease", times=3)
    assert bench.run() == 0
    assert len(bench.coordinator.hellos) == 4
    assert bench.coordinator.rounds == [0]


@pytest.mark.parametrize("error", [UnknownSession("not mine"), UnknownName("no such campaign"), SpecError("no report")])
def test_a_report_that_belongs_elsewhere_stays_in_the_spool_and_blocks_nothing(
    bench: Bench, error: LutbuilderError, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(bench.spool_dir, warn=pytest.fail)
    foreign, mine = report("foreign"), report("mine", round=1)
    spool.put(foreign)
    spool.put(mine)

    def answer(report: Report) -> ReportAck:
        if report.report_id == "foreign":
            del bench.coordinator.reports["foreign"]
            raise error
        return ReportAck(report_id=report.report_id)

    bench.coordinator.answer = answer
    bench.coordinator.leases = [lease(rounds=2)]
    assert bench.run() == 0
    assert list(bench.coordinator.reports) == ["mine", "id-1", "id-2"]
    assert bench.waiting() == [foreign]
    assert any("does not take a report" in message for message in caplog.messages)
    assert bench.coordinator.calls.count("report") == 4  # it was not offered again and again


def test_a_refused_round_ends_its_lease_with_a_pause_and_stays_on_the_disk(bench: Bench) -> None:
    bench.coordinator.leases = [lease(1, rounds=9), lease(2, rounds=9)]
    bench.coordinator.on_call = failing(SpecError("malformed"), "report", times=2)
    bench.coordinator.answer = lambda report: ReportAck(report_id=report.report_id, stop=True)
    assert bench.run() == 0
    assert bench.worker.rounds == [0, 1]
    assert len(bench.waiting()) == 2
    assert bench.clock.slept_s == [0.25, 0.5]


def test_an_artifact_no_lease_ever_named_makes_the_lease_void(bench: Bench) -> None:
    bench.coordinator.artifacts = {"0" * 64: b"another"}
    bench.coordinator.leases = [lease()]
    assert bench.run() == 0
    assert bench.worker.rounds == []
    assert bench.clock.slept_s == [0.25]


def test_a_newer_agent_of_the_same_name_ends_this_one(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=9, ttl_s=4.0)]
    bench.worker.on_round = lambda round: bench.clock.sleep(3.0)

    def fenced(call: str) -> None:
        if call == "heartbeat" and bench.worker.rounds:
            raise StaleLease("a newer agent named agent has registered")

    bench.coordinator.on_call = fenced
    with pytest.raises(StaleLease):
        bench.run()
    assert bench.worker.closed == 1
    assert len(bench.coordinator.hellos) == 1


def test_a_report_refused_in_favour_of_a_newer_agent_is_kept_and_ends_this_one(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=9)]
    bench.coordinator.on_call = failing(StaleLease("a newer agent has registered"), "report", times=1)
    with pytest.raises(StaleLease):
        bench.run()
    assert len(bench.waiting()) == 1


def test_another_protocol_ends_the_agent_with_the_upgrade_to_make(bench: Bench) -> None:
    bench.coordinator.on_call = failing(ProtocolMismatch("pip install -U lutbuilder-agent"), "register", times=1)
    with pytest.raises(ProtocolMismatch, match="pip install -U"):
        bench.run()


# --- the disk


def test_a_spool_that_breaks_sends_the_round_from_memory_and_then_ends(bench: Bench) -> None:
    def break_the_disk(round: int) -> None:
        if round == 1:
            shutil.rmtree(bench.spool_dir)
            bench.spool_dir.write_text("no folder")
            bench.coordinator.on_call = failing(Unreachable("away"), "report", times=2)

    bench.worker.on_round = break_the_disk
    bench.coordinator.leases = [lease(rounds=5)]
    with pytest.raises(StoreError, match="--spool-dir"):
        bench.run()
    assert bench.coordinator.rounds == [0, 1]
    assert bench.worker.rounds == [0, 1]
    assert bench.worker.closed == 1


def test_a_round_that_can_neither_be_kept_nor_sent_is_called_lost(bench: Bench) -> None:
    def break_everything(round: int) -> None:
        shutil.rmtree(bench.spool_dir)
        bench.spool_dir.write_text("no folder")
        bench.coordinator.on_call = failing(Unreachable("away"), "report", times=10**6)

    bench.worker.on_round = break_everything
    bench.coordinator.leases = [lease()]
    with pytest.raises(StoreError, match=r"Round 0 could not be sent either .*away.* and is lost"):
        bench.run(give_up_after_s=5.0)


def test_a_cache_that_cannot_be_written_says_so(bench: Bench) -> None:
    (bench.folder / "cache").write_text("")
    bench.coordinator.leases = [lease()]
    with pytest.raises(StoreError, match="--cache-dir"):
        bench.run()


# --- signals


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_round_closes_the_worker_gives_the_lease_back_and_keeps_the_rest(
    bench: Bench, signum: int, status: int
) -> None:
    bench.worker.on_round = lambda round: bench.stop(signum) if round == 2 else None
    bench.coordinator.leases = [lease(rounds=9)]
    assert bench.run() == status
    assert bench.coordinator.rounds == [0, 1]
    assert bench.worker.closed == 1
    assert bench.coordinator.states == ["ok", "draining"]
    assert bench.coordinator.open == 0


def test_a_signal_while_a_round_is_written_waits_until_it_is_safe(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.fsync

    def interrupted(descriptor: int) -> None:
        bench.stop(signal.SIGTERM)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    bench.coordinator.leases = [lease(rounds=9)]
    assert bench.run() == 143
    assert len(list(bench.spool_dir.glob("*.report"))) == 1
    assert "report" not in bench.coordinator.calls
    assert bench.worker.closed == 1


def test_a_signal_while_the_coordinator_is_away_ends_the_wait(bench: Bench) -> None:
    bench.coordinator.on_call = failing(Unreachable("away"), "register", times=10**6)

    def sleep(seconds: float) -> None:
        bench.stop(signal.SIGINT)

    bench.clock.sleep = sleep  # type: ignore[method-assign]  # the fake clock, not the agent
    assert bench.run() == 130


def test_draining_finishes_the_round_in_hand_hands_it_in_and_gives_the_lease_back(bench: Bench) -> None:
    bench.worker.on_round = lambda round: bench.drain(signal.SIGTERM) if round == 2 else None
    bench.coordinator.leases = [lease(rounds=9)]
    assert bench.run() == 143
    assert bench.coordinator.rounds == [0, 1, 2]
    assert bench.worker.closed == 1
    assert bench.coordinator.states == ["ok", "draining"]
    assert bench.waiting() == []


def test_draining_twice_ends_at_once(bench: Bench) -> None:
    def twice(round: int) -> None:
        bench.drain(signal.SIGTERM)
        bench.drain(signal.SIGTERM)

    bench.worker.on_round = twice
    bench.coordinator.leases = [lease(rounds=9)]
    assert bench.run() == 143
    assert bench.coordinator.rounds == []
    assert bench.coordinator.states == ["ok", "draining"]


def test_draining_while_the_coordinator_is_away_keeps_the_round_on_the_disk_and_ends(bench: Bench) -> None:
    bench.worker.on_round = lambda round: bench.drain(signal.SIGTERM)
    bench.coordinator.on_call = failing(Unreachable("away"), "report", times=10**6)
    bench.coordinator.leases = [lease(rounds=9)]
    assert bench.run() == 143
    assert len(bench.waiting()) == 1


def test_draining_an_idle_agent_ends_it_at_once(bench: Bench) -> None:
    bench.clock.sleep = lambda seconds: bench.drain(signal.SIGTERM)  # type: ignore[method-assign]  # the fake clock
    assert bench.run(exit_when_idle=False) == 143


# --- idling


def test_an_idle_agent_asks_when_it_was_told_to_and_ends_when_told_to(bench: Bench) -> None:
    def later(call: str) -> None:
        bench.coordinator.shut_down = bench.coordinator.calls.count("lease") >= 3

    bench.coordinator.on_call = later
    assert bench.run(exit_when_idle=False) == 0
    assert bench.clock.slept_s == [1.0, 1.0]
    assert bench.coordinator.open == 0


def test_what_the_spool_still_holds_is_delivered_before_an_idle_agent_ends(bench: Bench) -> None:
    bench.coordinator.leases = [lease(rounds=1)]
    bench.coordinator.on_call = failing(Unreachable("away"), "report", times=1)
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0]
    assert bench.waiting() == []


# --- large rounds


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 100))
def test_a_split_report_holds_every_visit_once_and_adds_up(sizes: list[int], max_samples: int) -> None:
    timing = report().timings[0]
    whole = replace(
        report(),
        timings=tuple(replace(timing, order=n, samples_ns=(7,) * size) for n, size in enumerate(sizes)),
        failures=(Failure(op_id="op-9", round=0, reason="crashed"),),
        round_ns=100,
        timed_ns=90,
    )

    def ids() -> Iterator[str]:
        yield from (f"part-{n}" for n in range(10**6))

    numbered = ids()
    parts = list(split_report(whole, max_samples=max_samples, new_id=lambda: next(numbered)))
    assert tuple(timing for part in parts for timing in part.timings) == whole.timings
    assert sum(part.round_ns for part in parts) == 100
    assert sum(part.timed_ns for part in parts) == 90
    assert sum(len(part.failures) for part in parts) == 1
    assert len({part.report_id for part in parts}) == len(parts)
    for part in parts:
        samples = sum(len(t.samples_ns) + len(t.warmup_ns) for t in part.timings)
        assert samples <= max_samples or len(part.timings) == 1


def test_a_round_too_large_for_one_message_arrives_in_parts_within_the_limit(bench: Bench) -> None:
    from lutbuilder_agent.wire.api import REPORT_BYTES
    from lutbuilder_agent.wire.convert import report_to_bytes

    slow = tuple([1 << 61] * 120_000)
    bench.worker.sample = lambda op_id, round: slow
    bench.coordinator.leases = [lease(n_ops=4, rounds=1)]
    bench.run()
    parts = list(bench.coordinator.reports.values())
    assert len(parts) == 2
    assert all(len(report_to_bytes(part)) <= REPORT_BYTES for part in parts)
    assert sum(len(part.timings) for part in parts) == 4
    assert bench.waiting() == []
    every = tuple(range(len(slow)))
    worst = [replace(timing, preempted=every, throttled=every) for timing in parts[0].timings]
    assert len(report_to_bytes(replace(parts[0], timings=tuple(worst)))) <= REPORT_BYTES


# --- what the agent weighs


def test_importing_the_session_loads_no_engine_no_numpy_and_no_grpc(fresh_python: Callable[[str], str]) -> None:
    loaded = fresh_python(
        "import sys; import lutbuilder_agent.session, lutbuilder_agent.cli;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    heavy = {"grpc", "google", "numpy", "onnx", "onnxruntime", "pandas", "psutil", "pyarrow", "torch", "ai_edge_litert"}
    assert heavy.isdisjoint(loaded)
    assert "lutbuilder_agent" in loaded


def test_an_agent_is_small_before_a_runtime_loads(fresh_python: Callable[[str], str]) -> None:
    status = fresh_python(
        "import lutbuilder_agent.cli, lutbuilder_agent.session, lutbuilder_agent.worker\n"
        "from lutbuilder_agent.fingerprint import fingerprint, conditions\n"
        "from lutbuilder_agent.errors import Unreachable\n"
        "from lutbuilder_agent.wire.client import CoordinatorClient\n"
        "fingerprint(), conditions()\n"
        "try:\n"
        "    CoordinatorClient('127.0.0.1:1').heartbeat('session', '', 0.0)\n"
        "except Unreachable:\n"
        "    print(open('/proc/self/status').read())\n"
    )
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    assert int(match[1]) / 1024 <= 60.0
