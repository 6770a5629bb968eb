"""The lease that follows: ready before the last round of the one in hand, begun the moment its last visit is over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lutbuilder_agent.errors import LutbuilderError, StaleLease, UnknownName, UnknownSession, Unreachable
from lutbuilder_agent.records import Failure, LeasedOp, Plan, Report, ReportAck
from lutbuilder_agent.rounds import AtEnd, Reached
from tests.agent_bench import Bench, failing
from tests.agent_fakes import FakeRound, FakeWorker, artifact, lease, leased_op


@dataclass
class Diary(Bench):
    """A bench whose agent gets a worker of its own for every lease; `said` tells all that happened in order."""

    said: list[str] = field(default_factory=list)
    workers: list[FakeWorker] = field(default_factory=list)

    def start_worker(self, plan: Plan) -> FakeWorker:
        self.workers.append(Telling(self, len(self.workers) + 1))
        return self.workers[-1]

    def write(self, call: str) -> None:
        self.said.append(call if self.coordinator.open else f"offline {call}")


class Telling(FakeWorker):
    """A worker that writes into the diary."""

    def __init__(self, diary: Diary, number: int) -> None:
        super().__init__(reached=Reached(clock_ns=1000 * number, instance=number))
        self.diary, self.number = diary, number

    def tell(self, what: str) -> None:
        self.diary.said.append(f"worker {self.number} {what}, {self.diary.coordinator.open} connections")

    def begin(self, ops: Sequence[tuple[LeasedOp, Path]]) -> None:
        self.tell("begins")
        super().begin(ops)

    def run_round(self, round: int, *, at_end: AtEnd | None = None) -> FakeRound:
        self.tell(f"times round {round}")
        self.on_round(round)
        return super().run_round(round, at_end=at_end)

    def retire(self) -> None:
        self.tell("retires")
        super().retire()

    def close(self) -> None:
        self.tell("closes")
        super().close()


@pytest.fixture
def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Diary:
    caplog.set_level(logging.INFO, "lutbuilder_agent")
    made = Diary(tmp_path)
    made.coordinator.on_call = made.said.append
    return made


def test_the_next_worker_begins_when_the_last_visit_is_over_and_before_anything_is_sent(bench: Diary) -> None:
    bench.coordinator.leases = [lease(1, n_ops=1, rounds=2)]
    bench.coordinator.ahead = [lease(2, n_ops=1, rounds=1, first_round=2)]
    assert bench.run() == 0
    assert bench.said == [
        "register",
        "lease",
        "fetch", "chunk", "chunk", "chunk",
        "heartbeat",  # of the first lease: loading is a silence
        "worker 1 begins, 0 connections",
        "heartbeat",
        "worker 1 times round 0, 0 connections",
        "report",
        "lease ahead of lease-1",
        "heartbeat",
        "worker 1 times round 1, 0 connections",
        "worker 1 retires, 0 connections",
        "worker 2 begins, 0 connections",
        "report",
        "worker 1 closes, 1 connections",
        "heartbeat",  # of the second: was it cancelled meanwhile?
        "lease ahead of lease-2",
        "heartbeat",
        "worker 2 times round 2, 0 connections",
        "report",
        "worker 2 closes, 1 connections",
        "lease",
    ]  # fmt: skip  # a story: one step a line
    assert bench.coordinator.beats == ["lease-1"] * 3 + ["lease-2"] * 2
    assert bench.coordinator.rounds == [0, 1, 2]
    assert [one.lease_id for one in bench.coordinator.reports.values()] == ["lease-1", "lease-1", "lease-2"]


def test_artifacts_of_the_next_lease_are_there_before_the_last_round(bench: Diary) -> None:
    other = replace(lease(2, rounds=1, first_round=1), ops=(leased_op(7),))
    bench.coordinator.leases = [lease(1, n_ops=1, rounds=1)]
    bench.coordinator.ahead = [other]
    fetched: list[int] = []

    def note(call: str) -> None:
        if call == "fetch" and bench.workers:
            fetched.append(len(bench.workers[0].rounds))

    bench.coordinator.on_call = note
    assert bench.run() == 0
    assert fetched == [0]
    assert [path.read_bytes() for path in bench.workers[1].paths] == [artifact(7)]


def test_nothing_is_asked_ahead_of_a_coordinator_that_does_not_know_it(bench: Diary) -> None:
    bench.coordinator.protocol = 1
    bench.coordinator.leases = [lease(1, rounds=1), lease(2, rounds=1, first_round=1)]
    bench.coordinator.ahead = [lease(3)]
    assert bench.run() == 0
    assert not [call for call in bench.said if "ahead" in call]
    assert bench.coordinator.rounds == [0, 1]


def test_a_lease_ahead_that_was_cancelled_before_it_began_is_not_measured(bench: Diary) -> None:
    bench.coordinator.leases = [lease(1, rounds=1)]
    bench.coordinator.ahead = [lease(2, rounds=5, first_round=1)]
    bench.coordinator.cancelled = lambda lease_id: lease_id == "lease-2"
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0]
    assert [worker.closed > 0 for worker in bench.workers] == [True, True]


@pytest.mark.parametrize(
    "error", [Unreachable("cut"), UnknownName("no such artifact"), UnknownSession("who?")], ids=lambda e: e.code
)
@pytest.mark.parametrize("call", ["lease ahead of lease-1", "chunk"])
def test_whatever_goes_wrong_ahead_costs_the_lease_in_hand_nothing(
    bench: Diary, error: LutbuilderError, call: str
) -> None:
    def break_it(said: str) -> None:
        if said == call and bench.workers:  # chunks of the lease in hand come before its worker
            raise error

    bench.coordinator.on_call = break_it
    bench.coordinator.leases = [lease(1, n_ops=1, rounds=2)]
    bench.coordinator.ahead = [replace(lease(2, rounds=1, first_round=2), ops=(leased_op(9),))]
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0, 1]
    assert len(bench.workers) == 1


def test_a_newer_agent_ends_this_one_also_when_it_asks_ahead(bench: Diary) -> None:
    bench.coordinator.on_call = failing(StaleLease("a newer agent has registered"), "lease ahead of lease-1", times=1)
    bench.coordinator.leases = [lease(1, rounds=3)]
    with pytest.raises(StaleLease):
        bench.run()
    assert bench.coordinator.rounds == [0, 1]


def test_a_lease_that_is_stopped_early_is_followed_by_nothing_made_ready(bench: Diary) -> None:
    bench.coordinator.leases = [lease(1, rounds=5), lease(2, rounds=1, first_round=9)]
    bench.coordinator.answer = lambda report: ReportAck(report_id=report.report_id, stop=report.round == 1)
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0, 1, 9]
    assert [call for call in bench.said if "ahead" in call] == [
        "lease ahead of lease-2"
    ]  # whose only round is its last


def test_an_artifact_that_is_wrong_ahead_fails_its_op_when_the_lease_is_measured(bench: Diary) -> None:
    bad = leased_op(3)
    bench.coordinator.artifacts = {**bench.coordinator.artifacts, bad.artifact.sha256: b"x" * bad.artifact.size_bytes}
    bench.coordinator.leases = [lease(1, rounds=1)]
    bench.coordinator.ahead = [replace(lease(2, rounds=1, first_round=1), ops=(leased_op(0), bad))]
    assert bench.run() == 0
    first, failed, measured = bench.coordinator.reports.values()
    assert (first.lease_id, failed.lease_id, measured.lease_id) == ("lease-1", "lease-2", "lease-2")
    assert [(one.op_id, one.reason) for one in failed.failures] == [("op-3", "bad_artifact")]
    assert [timing.op_id for timing in measured.timings] == ["op-0"]


def test_the_answer_to_the_last_round_says_nothing_about_the_lease_that_follows(bench: Diary) -> None:
    bench.coordinator.answer = lambda report: ReportAck(report_id=report.report_id, stop=report.lease_id == "lease-1")
    bench.coordinator.leases = [lease(1, rounds=1)]
    bench.coordinator.ahead = [lease(2, rounds=2, first_round=1)]
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0, 1, 2]


def test_the_lease_that_follows_waits_for_a_cache_that_holds_one_of_both_only(bench: Diary) -> None:
    follower = replace(lease(2, rounds=1, first_round=1), ops=(leased_op(5), leased_op(6)))
    bench.coordinator.leases = [lease(1, n_ops=2, rounds=1), follower]
    bench.coordinator.ahead = [follower]
    assert bench.run(cache_quota_bytes=6000) == 0
    assert bench.coordinator.rounds == [0, 1]
    assert bench.said.index("worker 1 closes, 1 connections") < bench.said.index("worker 2 begins, 0 connections")


def test_a_worker_that_cannot_be_started_costs_the_round_before_nothing(bench: Diary) -> None:
    really = bench.start_worker

    def start(plan: Plan) -> FakeWorker:
        worker = really(plan)
        if len(bench.workers) == 2:
            raise OSError(11, "Resource temporarily unavailable")
        return worker

    bench.start_worker = start  # type: ignore[method-assign]  # the bench, not the agent
    bench.coordinator.leases = [lease(1, rounds=1)]
    bench.coordinator.ahead = [lease(2, rounds=1, first_round=1)]
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0, 1]


def test_what_follows_is_ended_when_the_lease_in_hand_breaks(bench: Diary) -> None:
    class Killed(BaseException):
        """Stands in for whatever ends the agent."""

    def die(call: str) -> None:
        if call == "report":
            raise Killed

    bench.coordinator.leases = [lease(1, rounds=1)]
    bench.coordinator.ahead = [lease(2, rounds=1, first_round=1)]
    bench.coordinator.on_call = die
    with pytest.raises(Killed):
        bench.run()
    assert [worker.closed for worker in bench.workers] == [1, 1]


def test_no_round_number_is_measured_twice_in_a_session_and_campaign(bench: Diary) -> None:
    """A lease that ran out while the agent was cut off comes again from the round that the coordinator knows of."""
    bench.coordinator.leases = [
        lease(1, rounds=3),
        lease(2, first_round=1, rounds=4),
        lease(3, first_round=2, rounds=2),
    ]
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0, 1, 2, 3, 4]
    assert [one.lease_id for one in bench.coordinator.reports.values()] == ["lease-1"] * 3 + ["lease-2"] * 2
    assert bench.clock.slept_s == [0.25]  # the third lease had nothing left


def test_another_session_counts_its_rounds_anew(bench: Diary) -> None:
    def lose_the_session(call: str) -> None:
        if call == "lease" and len(bench.coordinator.hellos) == 1 and bench.coordinator.reports:
            raise UnknownSession("it had its share")

    bench.coordinator.on_call = lose_the_session
    bench.coordinator.leases = [lease(1, rounds=2), lease(2, rounds=2)]
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0, 1, 0, 1]


def test_a_failure_in_the_last_round_is_reported_and_the_next_lease_begins_all_the_same(bench: Diary) -> None:
    def sample(op_id: str, round: int) -> Sequence[int] | Failure:
        return Failure(op_id=op_id, round=round, reason="crashed") if op_id == "op-1" else (1000,)

    def start(plan: Plan) -> FakeWorker:
        bench.workers.append(FakeWorker(sample=sample))
        return bench.workers[-1]

    bench.start_worker = start  # type: ignore[method-assign]  # the bench, not the agent
    bench.coordinator.leases = [lease(1, n_ops=2, rounds=1)]
    bench.coordinator.ahead = [lease(2, n_ops=1, rounds=1, first_round=1)]
    assert bench.run() == 0
    reports: list[Report] = list(bench.coordinator.reports.values())
    assert [(one.round, len(one.timings), len(one.failures)) for one in reports] == [(0, 1, 1), (1, 1, 0)]
