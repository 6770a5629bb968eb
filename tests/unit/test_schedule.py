"""The scheduler under a clock that the test holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.campaign.spec import ALL_BATCHES, CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import Asker, CampaignProgress, HeldLease, Offer, StoredFailure, Streak
from lutbuilder.op import OpSpec
from lutbuilder_agent.records import AgentHello, Failure, Fingerprint, Plan, Report, RuntimeReport, Timing

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


def _asker(hello: AgentHello = HELLO, **changes: Any) -> Asker:
    return Asker.of(replace(hello, **changes), "s0")


def _next(
    progresses: Sequence[CampaignProgress], leases: Sequence[HeldLease], hello: AgentHello = HELLO, **given: Any
) -> Offer | None:
    campaigns = [schedule.leasable(progress) for progress in progresses]
    found = schedule.next_offer(campaigns, leases, _asker(hello), {}, **given)
    return None if found is None else found[0]


def test_a_lease_is_one_batch_and_the_sentinels() -> None:
    offer = _next([_progress()], ())
    assert offer is not None
    assert (offer.batch, offer.ops) == (0, (OPS[0], OPS[1], OPS[4]))
    assert (offer.first_round, offer.rounds) == (0, 10)


def test_a_leased_batch_goes_to_nobody_else() -> None:
    second = _next([_progress()], [_lease()])
    assert second is not None
    assert second.batch == 1
    assert _next([_progress()], [_lease(), _lease(lease_id="l2", batch=1, agent="eve")]) is None


def test_as_many_agents_as_a_campaign_allows_hold_the_same_batch() -> None:
    shared = _progress(spec=replace(SPEC, agents=2), next_round=3)
    one, two = _lease(agent="bob"), _lease(lease_id="l2", agent="eve")
    second = _next([shared], [one])
    assert second is not None
    assert (second.batch, second.ops, second.first_round) == (0, schedule.offer(shared, 0).ops, 3)
    third = _next([shared], [one, two])
    assert third is not None
    assert third.batch == 1
    assert _next([shared], [replace(one, agent="alice")]) is None


def test_an_agent_holds_one_lease_at_a_time() -> None:
    assert _next([_progress()], [_lease(agent="alice")]) is None


def test_a_batch_that_is_done_is_not_leased_again() -> None:
    offer = _next([_progress(done=(0,))], ())
    assert offer is not None
    assert offer.batch == 1
    assert _next([_progress(done=(0, 1))], ()) is None


def test_a_resumed_batch_goes_on_with_the_next_round_and_the_rounds_it_still_lacks() -> None:
    offer = _next([_progress(rounds={0: 4, 1: 7}, next_round=11)], ())
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
        (_failure(OPS[0], attempts=2, agents=("alice",)), False),
        (_failure(OPS[0], attempts=3, agents=("alice",)), True),
        (_failure(OPS[0], attempts=2, agents=("alice", "bob")), True),
        (_failure(OPS[0], reason="unsupported"), True),
        (_failure(OPS[0], reason="bad_artifact"), True),
        (_failure(OPS[0], reason="timed_out"), False),
    ],
)
def test_an_op_is_given_up_after_three_attempts_two_devices_or_a_reason_that_repeats(
    failure: StoredFailure, given_up: bool
) -> None:
    assert failure.final is given_up
    assert (OPS[0] not in schedule.batch_ops(_progress(failures=(failure,)), 0)) is given_up


def test_a_batch_whose_ops_all_failed_has_failed() -> None:
    failures = tuple(_failure(op, attempts=3) for op in OPS[:2])
    assert schedule.exhausted(_progress(failures=failures), 0) == "failed"
    assert schedule.exhausted(_progress(failures=failures), 1) is None


def test_what_is_known_of_a_given_up_op_can_be_read() -> None:
    failure = _failure(OPS[0], attempts=3, agents=("alice", "bob"), detail="signal 11")
    assert failure.evidence == "crashed 3 times on alice, bob: signal 11"
    assert _failure(OPS[0], reason="unsupported").evidence == "unsupported once"


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
    assert _next([_progress()], (), other) is None


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
    offer = _next([progress], leases)
    if offer is None:
        free = {0, 1} - done - {lease.batch for lease in leases}
        assert any(lease.agent == "alice" for lease in leases) or all(schedule.exhausted(progress, b) for b in free)
        return
    assert offer.batch not in done
    assert all(lease.batch != offer.batch and lease.agent != "alice" for lease in leases)
    assert 1 <= offer.rounds <= SPEC.max_rounds
    assert any(op.batch == offer.batch for op in offer.ops)
    assert not {op.op_id for op in offer.ops} & (dropped | {f.op_id for f in failures if f.final})


# --- a lease once more, and a lease ahead


def test_a_lease_asked_for_again_is_what_is_left_of_it() -> None:
    held = _lease(first_round=4, rounds=4)
    again = schedule.resumed(_progress(next_round=6, rounds={0: 2}), held)
    assert again is not None
    assert (again.batch, again.first_round, again.rounds) == (0, 6, 2)
    assert schedule.resumed(_progress(next_round=2), held) == replace(again, first_round=4, rounds=4)


@pytest.mark.parametrize("changes", [{"next_round": 8}, {"rounds": {0: 10}}, {"done": (0,)}])
def test_a_lease_of_which_nothing_is_left_is_not_given_again(changes: dict[str, Any]) -> None:
    assert schedule.resumed(_progress(**changes), _lease(first_round=4, rounds=4)) is None


def test_a_lease_ahead_is_of_another_batch_and_its_rounds_come_after() -> None:
    first = _lease(agent="alice", session_id="s0", first_round=3, rounds=4)
    ahead = _next([_progress(next_round=4)], [first], ahead_of=first)
    assert ahead is not None
    assert (ahead.batch, ahead.first_round) == (1, 7)
    shared = _progress(spec=replace(SPEC, agents=2), done=(1,))
    assert _next([shared], [first], ahead_of=first) is None, "the rest of the same batch is not ahead of itself"


def test_an_agent_holds_two_leases_at_most() -> None:
    first = _lease(agent="alice", session_id="s0")
    second = _lease(lease_id="l2", batch=1, agent="alice", session_id="s0")
    three = _progress(spec=replace(SPEC, ops=(*OPS, _op(6, batch=2))))
    assert _next([three], [first, second], ahead_of=first) is None


# --- clock domains


def test_a_clock_domain_has_one_lease_at_a_time() -> None:
    held = _lease(agent="gpu", domain="host", campaign_id="another")
    cpu = replace(HELLO, clock_domain="host")
    assert _next([_progress()], [held], cpu) is None
    assert _next([_progress()], [held]) is not None, "alice is of a domain of her own"
    assert _next([_progress()], [replace(held, ending=True)], cpu) is None, "its agent may still be measuring"
    assert _next([_progress()], [], cpu) is not None


def test_a_lease_that_is_ending_keeps_its_domain_but_not_its_batch() -> None:
    offer = _next([_progress()], [_lease(ending=True)])
    assert offer is not None
    assert offer.batch == 0


def test_nothing_is_given_ahead_where_another_agent_of_the_domain_waits() -> None:
    first = _lease(agent="alice", session_id="s0", domain="host")
    cpu = replace(HELLO, clock_domain="host")
    gpu = _asker(cpu, name="gpu")
    assert _next([_progress()], [first], cpu, ahead_of=first) is not None
    assert _next([_progress()], [first], cpu, ahead_of=first, others=[gpu]) is None


# --- failures elsewhere, and sick devices


def test_a_failed_op_waits_for_another_agent_that_could_try_it() -> None:
    failed = _progress(failures=(_failure(OPS[0], agents=("alice",)),))
    bob, stranger = _asker(name="bob"), _asker(name="eve", runtimes=())
    first = _next([failed], (), others=[bob])
    assert first is not None
    assert first.batch == 1, "batch 0 waits for bob"
    alone = _next([failed], (), others=[stranger])
    assert alone is not None
    assert alone.batch == 0
    overdue = _next([failed], (), others=[bob], overdue={(SPEC.key, 0)})
    assert overdue is not None
    assert overdue.batch == 0
    assert schedule.withheld(failed, 0, _asker(), [bob])
    assert not schedule.withheld(failed, 0, bob, [_asker()])
    assert not schedule.withheld(replace(failed, dropped=(OPS[0].op_id,)), 0, _asker(), [bob])


def test_a_failed_sentinel_holds_every_batch_back() -> None:
    failed = _progress(failures=(_failure(OPS[4], agents=("alice",)),))
    assert _next([failed], (), others=[_asker(name="bob")]) is None


def _said(*failed: CampaignOp, timed: bool = False) -> Report:
    timing = Timing(op_id=OPS[4].op_id, round=0, order=0, instance=0, start_ns=0, warmup_ns=(), samples_ns=(1,))
    return Report(
        report_id="r",
        session_id="s0",
        lease_id="l1",
        lease_epoch=1,
        campaign_id=SPEC.key,
        round=0,
        timings=(timing,) if timed else (),
        failures=tuple(Failure(op_id=op.op_id, round=0, reason="crashed") for op in failed),
    )


def test_a_streak_is_of_different_ops_and_ends_with_whatever_was_timed() -> None:
    streak: Streak = ()
    for report in (_said(OPS[0]), _said(OPS[0], OPS[1]), _said(OPS[2])):
        streak = schedule.streak_after(streak, report)
    assert streak == tuple((SPEC.key, op.op_id) for op in OPS[:3])
    assert schedule.streak_after(streak, _said(OPS[3], timed=True)) == ()


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_device_is_sick_when_three_ops_that_failed_in_a_row_pass_elsewhere(failed: int, passed: int) -> None:
    streak = tuple((SPEC.key, op.op_id) for op in OPS[:failed])
    reason = schedule.sickness(streak, streak[:passed])
    assert (reason is not None) == (min(failed, passed) >= 3)
    if reason is not None:
        assert reason.startswith(f"{failed} ops failed here in a row, of which {min(failed, passed)} pass on other")
        assert OPS[0].op_id in reason


def test_where_there_is_no_elsewhere_it_is_not_the_device() -> None:
    assert schedule.sickness(tuple((SPEC.key, op.op_id) for op in OPS), ()) is None
    assert schedule.sickness(tuple(("other", op.op_id) for op in OPS), [(SPEC.key, op.op_id) for op in OPS]) is None
