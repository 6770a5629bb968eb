"""The scheduler under a clock that the test holds."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.campaign.spec import ALL_BATCHES, CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import CampaignProgress, HeldLease, StoredFailure
from lutbuilder.op import OpSpec
from lutbuilder_agent.records import AgentHello, Fingerprint, Plan, RuntimeReport

FINGERPRINT = Fingerprint(device="toy", facts=(("cpu.model", "toy"),))
HELLO = AgentHello(
    name="alice", agent_version="1", fingerprint=FINGERPRINT, runtimes=(RuntimeReport(name="simulated", version="1"),)
)


def _op(channels: int, *, batch: int = 0) -> CampaignOp:
    return CampaignOp.of(
        OpSpec(kind="conv", in_channels=channels, out_channels=channels, height=8, width=8), batch=batch
    )


OPS = (_op(1), _op(2), _op(3, batch=1), _op(4, batch=1), _op(5, batch=ALL_BATCHES))
SPEC = CampaignSpec(
    space="toy",
    target=Target(device="toy", runtime="simulated"),
    plan=Plan(runtime="simulated"),
    env_id=FINGERPRINT.env_id,
    runtime_version="1",
    ops=OPS,
    budget_s=10,
    precision=0.01,
    max_rounds=10,
)


def _progress(**changes: Any) -> CampaignProgress:
    empty = CampaignProgress(campaign_id=SPEC.key, spec=SPEC, done=(), rounds={}, next_round=0, dropped=(), failures=())
    return replace(empty, **changes)


def _lease(**changes: Any) -> HeldLease:
    lease = HeldLease(
        lease_id="l1", epoch=1, campaign_id=SPEC.key, batch=0, session_id="s1", agent="bob", first_round=0, rounds=10,
        deadline_s=30.0,
    )  # fmt: skip  # one line reads as one record
    return replace(lease, **changes)


def _failure(op: CampaignOp, **changes: Any) -> StoredFailure:
    return replace(StoredFailure(op_id=op.op_id, reason="crashed", detail="", attempts=1), **changes)


def test_a_lease_is_one_batch_and_the_sentinels() -> None:
    offer = schedule.next_offer([_progress()], (), HELLO)
    assert offer is not None
    assert (offer.batch, offer.ops) == (0, (OPS[0], OPS[1], OPS[4]))
    assert (offer.first_round, offer.rounds) == (0, 10)


def test_a_leased_batch_goes_to_nobody_else() -> None:
    second = schedule.next_offer([_progress()], [_lease()], HELLO)
    assert second is not None
    assert second.batch == 1
    assert schedule.next_offer([_progress()], [_lease(), _lease(lease_id="l2", batch=1, agent="eve")], HELLO) is None


def test_as_many_agents_as_a_campaign_allows_hold_the_same_batch() -> None:
    shared = _progress(spec=replace(SPEC, agents=2), next_round=3)
    one, two = _lease(agent="bob"), _lease(lease_id="l2", agent="eve")
    second = schedule.next_offer([shared], [one], HELLO)
    assert second is not None
    assert (second.batch, second.ops, second.first_round) == (0, schedule.offer(shared, 0).ops, 3)
    third = schedule.next_offer([shared], [one, two], HELLO)
    assert third is not None
    assert third.batch == 1
    assert schedule.next_offer([shared], [replace(one, agent="alice")], HELLO) is None


def test_an_agent_holds_one_lease_at_a_time() -> None:
    assert schedule.next_offer([_progress()], [_lease(agent="alice")], HELLO) is None


def test_a_batch_that_is_done_is_not_leased_again() -> None:
    offer = schedule.next_offer([_progress(done=(0,))], (), HELLO)
    assert offer is not None
    assert offer.batch == 1
    assert schedule.next_offer([_progress(done=(0, 1))], (), HELLO) is None


def test_a_resumed_batch_goes_on_with_the_next_round_and_the_rounds_it_still_lacks() -> None:
    offer = schedule.next_offer([_progress(rounds={0: 4, 1: 7}, next_round=11)], (), HELLO)
    assert offer is not None
    assert (offer.batch, offer.first_round, offer.rounds) == (0, 11, 6)


@pytest.mark.parametrize(("done", "rounds"), [(0, 4), (4, 4), (8, 2)])
def test_a_lease_covers_a_phase_and_the_last_one_what_is_left(done: int, rounds: int) -> None:
    phased = _progress(spec=replace(SPEC, lease_rounds=4), rounds={0: done}, next_round=done)
    assert (schedule.offer(phased, 0).first_round, schedule.offer(phased, 0).rounds) == (done, rounds)


def test_a_batch_with_all_its_rounds_is_exhausted() -> None:
    assert schedule.exhausted(_progress(rounds={0: 10}), 0) == "max_rounds"
    assert schedule.exhausted(_progress(rounds={0: 9}), 0) is None


def test_dropped_ops_leave_the_lease_and_sentinels_alone_are_no_work() -> None:
    dropped = _progress(dropped=(OPS[0].op_id,))
    assert schedule.batch_ops(dropped, 0) == (OPS[1], OPS[4])
    both = _progress(dropped=(OPS[0].op_id, OPS[1].op_id))
    assert schedule.batch_ops(both, 0) == ()
    assert schedule.exhausted(both, 0) == "precision"


@pytest.mark.parametrize(
    ("failure", "given_up"),
    [
        (_failure(OPS[0]), False),
        (_failure(OPS[0], attempts=2), True),
        (_failure(OPS[0], reason="unsupported"), True),
        (_failure(OPS[0], reason="bad_artifact"), True),
        (_failure(OPS[0], reason="timed_out"), False),
    ],
)
def test_an_op_is_given_up_after_two_attempts_or_a_reason_that_repeats(failure: StoredFailure, given_up: bool) -> None:
    assert failure.final is given_up
    assert (OPS[0] not in schedule.batch_ops(_progress(failures=(failure,)), 0)) is given_up


def test_a_batch_whose_ops_all_failed_has_failed() -> None:
    failures = tuple(_failure(op, attempts=2) for op in OPS[:2])
    assert schedule.exhausted(_progress(failures=failures), 0) == "failed"
    assert schedule.exhausted(_progress(failures=failures), 1) is None


def test_a_campaign_of_sentinels_only_is_one_batch() -> None:
    spec = replace(SPEC, ops=(OPS[4],))
    assert schedule.batches(spec) == (0,)
    assert schedule.batch_ops(_progress(spec=spec), 0) == (OPS[4],)


def test_another_environment_is_named_in_the_mismatch() -> None:
    other = replace(HELLO, fingerprint=Fingerprint(device="toy", facts=(("cpu.model", "other"),)))
    why = schedule.mismatch(SPEC, other)
    assert why is not None
    assert SPEC.env_id in why
    assert other.fingerprint.env_id in why
    assert schedule.next_offer([_progress()], (), other) is None


def test_a_runtime_that_failed_its_probe_is_not_leased_to() -> None:
    broken = replace(HELLO, runtimes=(RuntimeReport(name="simulated", available=False, reason="signal 11"),))
    assert "signal 11" in str(schedule.mismatch(SPEC, broken))
    assert "no runtime simulated" in str(schedule.mismatch(SPEC, replace(HELLO, runtimes=())))
    assert schedule.mismatch(SPEC, HELLO) is None


def test_another_version_of_the_runtime_is_not_leased_to() -> None:
    newer = replace(HELLO, runtimes=(RuntimeReport(name="simulated", version="2"),))
    assert "is 2, not 1" in str(schedule.mismatch(SPEC, newer))


def test_an_alias_of_a_runtime_is_that_runtime() -> None:
    spec = replace(SPEC, plan=Plan(runtime="onnx"))
    hello = replace(HELLO, runtimes=(RuntimeReport(name="onnxruntime", version="1"),))
    assert schedule.mismatch(spec, hello) is None
    assert schedule.canonical_runtime("abacus") == "abacus"


@pytest.mark.parametrize("order", list(permutations([(5.0, "a"), (10.0, "b"), (10.5, "c")])))
def test_a_lease_expires_at_its_deadline_in_whatever_order_leases_come(order: tuple[tuple[float, str], ...]) -> None:
    leases = [_lease(lease_id=name, deadline_s=deadline_s) for deadline_s, name in order]
    assert {lease.lease_id for lease in schedule.expired(leases, now_s=10.0)} == {"a", "b"}
    assert schedule.next_expiry_s(leases, now_s=4.0) == 1.0
    assert schedule.next_expiry_s(leases, now_s=99.0) == 0.0


def test_without_leases_nothing_expires() -> None:
    assert schedule.expired((), now_s=1e9) == ()
    assert schedule.next_expiry_s((), now_s=0.0) is None


@given(
    st.sets(st.sampled_from((0, 1))),
    st.dictionaries(st.sampled_from((0, 1)), st.integers(0, 12)),
    st.sets(st.sampled_from([op.op_id for op in OPS])),
    st.lists(st.builds(_failure, st.sampled_from(OPS), attempts=st.integers(1, 3)), max_size=3),
    st.lists(st.builds(_lease, batch=st.sampled_from((0, 1)), agent=st.sampled_from(("bob", "alice"))), max_size=2),
)
def test_an_offer_is_always_work_that_nobody_has_and_that_is_not_done(
    done: set[int],
    rounds: dict[int, int],
    dropped: set[str],
    failures: list[StoredFailure],
    leases: list[HeldLease],
) -> None:
    progress = _progress(done=done, rounds=rounds, dropped=dropped, failures=failures)
    offer = schedule.next_offer([progress], leases, HELLO)
    if offer is None:
        free = {0, 1} - done - {lease.batch for lease in leases}
        assert any(lease.agent == "alice" for lease in leases) or all(schedule.exhausted(progress, b) for b in free)
        return
    assert offer.batch not in done
    assert all(lease.batch != offer.batch and lease.agent != "alice" for lease in leases)
    assert 1 <= offer.rounds <= SPEC.max_rounds
    assert any(op.batch == offer.batch for op in offer.ops)
    assert not {op.op_id for op in offer.ops} & (dropped | {f.op_id for f in failures if f.final})
