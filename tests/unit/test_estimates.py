"""Call overhead comes out of pairs; a campaign's summary has a row for every op and every input shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.campaign.estimates import Variance, call_overheads, half_ms, net_half_ms, summarise
from lutbuilder.campaign.plan import Shape, campaign_ops, input_shape, overhead_op, pairs
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.lower import lower
from lutbuilder.op import OpSpec
from lutbuilder.stats.records import OpEstimate
from tests.simulated_visits import STEADY, Machine, Simulated, simulate

PROPERTY = settings(max_examples=40, deadline=None)  # no deadline: a busy machine is no failure
FLOOR_MS = 1e-6
PROXYLESS = spaces.get("proxyless").ops()
TWICE = OpSpec(kind="conv", in_channels=8, out_channels=8, height=8, width=8)
EMPTY = overhead_op(TWICE)


def estimate(op_id: str, time_ms: float, *, half: float | None = 0.01, n_visits: int = 30) -> OpEstimate:
    """An estimate with a relative half interval of `half`."""
    return OpEstimate(
        op_id=op_id,
        time_ms=time_ms,
        lo_ms=None if half is None else time_ms * (1 - half),
        hi_ms=None if half is None else time_ms * (1 + half),
        p90_ms=1.1 * time_ms,
        n_visits=n_visits,
        n_rounds=n_visits,
        n_instances=3,
        n_sessions=1,
        test_retest=0.004,
        preempted_fraction=0.0,
        bimodal=False,
        residual_mad=0.005,
    )


def true_ms(op: CampaignOp, overhead_ms: Mapping[Shape, float]) -> float:
    """Cost of a call: the ops' own, and the overhead of the first one's input shape."""
    own = sum(0.01 + lower(each).macs / 1e8 for each in op.ops if each.kind != "identity")
    return own + overhead_ms[input_shape(op.ops[0])]


def twice_alone_and_in_a_pair(alone_ms: float, both_ms: float, *, half: float | None = 0.01) -> dict[str, OpEstimate]:
    """Estimates of an op, and of it following itself."""
    times = {TWICE.op_id: alone_ms, CampaignOp.pair(TWICE, TWICE).op_id: both_ms}
    return {op_id: estimate(op_id, time_ms, half=half) for op_id, time_ms in times.items()}


TWICE_OPS = (CampaignOp.of(TWICE), CampaignOp.pair(TWICE, TWICE))


# --- Call overhead


@PROPERTY
@given(st.integers(0, 2**32 - 1))
def test_a_known_additive_overhead_is_recovered_for_every_shape_with_pairs(seed):
    rng = np.random.default_rng(seed)
    overhead_ms = {shape: float(rng.uniform(0.001, 0.1)) for shape in map(input_shape, PROXYLESS)}
    ops = campaign_ops(PROXYLESS, PROXYLESS)
    found = call_overheads(ops, {op.op_id: estimate(op.op_id, true_ms(op, overhead_ms)) for op in ops})
    shapes = {input_shape(second): overhead_op(second).op_id for _, second in pairs(PROXYLESS)}
    assert set(found) == set(shapes.values())
    for shape, identity in shapes.items():
        assert found[identity].estimate.op_id == identity
        assert found[identity].estimate.time_ms == pytest.approx(overhead_ms[shape], rel=1e-6)


def test_a_pair_of_equal_ops_counts_its_op_twice():
    found = call_overheads(TWICE_OPS, twice_alone_and_in_a_pair(1.0, 1.9))[EMPTY.op_id]
    assert found.estimate.time_ms == pytest.approx(0.1)
    assert dict(found.factors) == {TWICE.op_id: 2.0, TWICE_OPS[1].op_id: -1.0}
    # One error, twice in the sum: 2 * 0.01 and the pair's 0.019, in quadrature; not sqrt(2) * 0.01.
    assert half_ms(found.estimate) == pytest.approx(np.hypot(0.02, 0.019))


@pytest.mark.parametrize("both_ms", [2.0, 2.3])
def test_an_overhead_that_is_not_positive_is_floored(both_ms):
    found = call_overheads(TWICE_OPS, twice_alone_and_in_a_pair(1.0, both_ms))[EMPTY.op_id].estimate
    assert found.time_ms == FLOOR_MS
    assert found.lo_ms is not None
    assert found.hi_ms is not None
    assert 0 < found.lo_ms <= found.time_ms < found.hi_ms


def following(*before_channels: int) -> tuple[list[OpSpec], list[CampaignOp]]:
    """Ops of these widths, and a campaign in which TWICE follows each of them."""
    before = [replace(TWICE, in_channels=n) for n in before_channels]
    return before, [*(CampaignOp.of(op) for op in (*before, TWICE)), *(CampaignOp.pair(op, TWICE) for op in before)]


def test_precise_pairs_weigh_more():
    before, ops = following(2, 4)
    by_id = {op.op_id: estimate(op.op_id, 1.9 if op.role == "pair" else 1.0, half=1e-6) for op in ops}
    for op, half in zip(before, (0.01, 0.02), strict=True):
        by_id[op.op_id] = estimate(op.op_id, 1.0 + half, half=half / (1 + half))  # saves 0.11 and 0.12 ms
    found = call_overheads(ops, by_id)[EMPTY.op_id]
    assert found.estimate.time_ms == pytest.approx(0.8 * 0.11 + 0.2 * 0.12, rel=1e-3)


def test_pairs_that_disagree_widen_the_interval_and_weigh_alike():
    before, ops = following(2, 4, 6)
    saved = {2: 0.10, 4: 0.13, 6: 0.90}  # ms
    by_id = {op.op_id: estimate(op.op_id, 1.0, half=0.01 if op.role == "op" else 0.001) for op in ops}
    for op in before:
        pair = CampaignOp.pair(op, TWICE).op_id
        by_id[pair] = estimate(pair, 2.0 - saved[op.in_channels], half=0.001)
    found = call_overheads(ops, by_id)[EMPTY.op_id].estimate
    assert found.time_ms == pytest.approx(np.mean(list(saved.values())), rel=0.01)
    # Three readings that disagree are as good as any three: a t interval of 2 degrees of freedom.
    assert found.hi_ms is not None
    expected = 4.303 * np.std(list(saved.values()), ddof=1) / np.sqrt(3)
    assert found.hi_ms - found.time_ms == pytest.approx(expected, rel=0.01)
    assert (found.n_visits, found.n_rounds, found.n_instances) == (90, 30, 9)


def test_pairs_that_agree_still_have_their_members_uncertainty_and_a_shared_one_counts_in_full():
    _, ops = following(2, 4)
    by_id = {op.op_id: estimate(op.op_id, 1.9 if op.role == "pair" else 1.0) for op in ops}
    found = call_overheads(ops, by_id)[EMPTY.op_id]
    # TWICE is in both pairs: its error does not average out. The other op and the pair do.
    assert half_ms(found.estimate) == pytest.approx(np.sqrt(0.01**2 + (0.01**2 + 0.019**2) / 2))
    assert found.disagreement.ms2 == 0.0


def test_net_of_an_overhead_measured_on_the_op_itself_its_errors_cancel():
    by_id = twice_alone_and_in_a_pair(1.0, 1.9)
    found = call_overheads(TWICE_OPS, by_id)[EMPTY.op_id]
    # A - (2 A - AA) = AA - A: one times the op's error, not sqrt(1 + 2^2) times.
    assert net_half_ms(TWICE.op_id, found, by_id) == pytest.approx(np.hypot(0.01, 0.019))


def test_net_of_another_ops_overhead_the_errors_add_up():
    ops = (*TWICE_OPS, CampaignOp.of(other := replace(TWICE, out_channels=16)))
    by_id = twice_alone_and_in_a_pair(1.0, 1.9) | {other.op_id: estimate(other.op_id, 3.0)}
    found = call_overheads(ops, by_id)[EMPTY.op_id]
    assert net_half_ms(other.op_id, found, by_id) == pytest.approx(np.sqrt(0.03**2 + 0.02**2 + 0.019**2))


def test_few_degrees_of_freedom_widen_a_sum_less_than_its_parts():
    one, other = Variance(1.0, 2.0), Variance(1.0, 2.0)
    assert one.half_ms == pytest.approx(4.303, abs=1e-3)
    both = Variance.sum_of((one, other))
    assert (both.ms2, both.freedom) == (2.0, 4.0)
    assert both.half_ms == pytest.approx(2.776 * np.sqrt(2), abs=1e-3)


def test_one_member_without_an_interval_leaves_the_overhead_without_one():
    by_id = twice_alone_and_in_a_pair(1.0, 1.9, half=None)
    found = call_overheads(TWICE_OPS, by_id)[EMPTY.op_id]
    assert (found.estimate.lo_ms, found.estimate.hi_ms, half_ms(found.estimate)) == (None, None, None)
    assert net_half_ms(TWICE.op_id, found, by_id) is None
    assert found.estimate.time_ms == pytest.approx(0.1)


def test_a_pair_with_a_member_that_was_not_timed_is_left_out():
    by_id = twice_alone_and_in_a_pair(1.0, 1.9)
    for gone in by_id:
        assert call_overheads(TWICE_OPS, {i: each for i, each in by_id.items() if i != gone}) == {}


# --- Summaries


def a_campaign(
    overhead_ms: Mapping[Shape, float], *, rounds: int, machine: Machine, seed: int = 0
) -> tuple[tuple[CampaignOp, ...], Simulated]:
    """The ops of ProxylessNAS' campaign and simulated visits of them."""
    ops = campaign_ops(PROXYLESS, PROXYLESS)
    truth = np.log([1e6 * true_ms(op, overhead_ms) for op in ops])
    seen = simulate(truth, rounds=rounds, seed=seed, machine=machine)
    return ops, replace(seen, visits=replace(seen.visits, op_ids=tuple(op.op_id for op in ops)))


def flat(value_ms: float) -> dict[Shape, float]:
    return dict.fromkeys(map(input_shape, PROXYLESS), value_ms)


def test_rows_are_ops_and_one_overhead_an_input_shape():
    ops, seen = a_campaign(flat(0.02), rounds=6, machine=STEADY)
    summary = summarise(ops, seen.visits)
    wanted = {op.op_id for op in PROXYLESS} | {overhead_op(op).op_id for op in PROXYLESS}
    assert {row.op_id for row in summary.rows} == wanted
    assert len(summary.rows) == len(wanted)
    assert set(summary.by_id) == {op.op_id for op in ops}
    for op in PROXYLESS:
        row = next(row for row in summary.rows if row.op_id == overhead_op(op).op_id)
        assert row.time_ms == pytest.approx(0.02, rel=1e-6)


def test_a_summary_finds_overheads_through_a_machine_that_changes_speed():
    machine = Machine(noise=0.01, instance_sigma=0.002)
    ops, seen = a_campaign(flat(0.05), rounds=30, machine=machine)
    fitted, plain = (summarise(ops, seen.visits, steady=steady) for steady in (False, True))
    scale = float(np.exp(np.mean(fitted.drift.theta - seen.truth)))

    def error(rows: tuple[OpEstimate, ...]) -> float:
        found = {row.op_id: row.time_ms / scale for row in rows}
        return float(np.median([abs(found[overhead_op(op).op_id] - 0.05) for op in PROXYLESS]))

    assert error(fitted.rows) < 0.01
    assert error(plain.rows) > 2 * error(fitted.rows)


def test_what_was_not_visited_has_no_row():
    ops, seen = a_campaign(flat(0.02), rounds=6, machine=STEADY)
    mute = seen.visits.take(seen.visits.op != 0)
    summary = summarise(ops, mute)
    assert ops[0].op_id not in {row.op_id for row in summary.rows}
    assert ops[0].op_id not in summary.by_id
    nothing = summarise(ops, seen.visits.take(seen.visits.op < 0))
    assert (nothing.rows, dict(nothing.by_id)) == ((), {})


def test_the_worst_half_width_is_known_only_if_all_are():
    ops, seen = a_campaign(flat(0.02), rounds=12, machine=Machine())
    few = seen.visits.take((seen.visits.op != 3) | (seen.visits.round < 5))
    summary = summarise(ops, few)
    ids = [op.op_id for op in ops]
    widths = [summary.by_id[i].half_width for i in ids[:3]]
    assert summary.worst_half_width(ids[:3]) == max(width for width in widths if width is not None)
    assert summary.worst_half_width(ids[:4]) is None  # too few rounds
    assert summary.worst_half_width([*ids[:3], "never visited"]) is None
    assert summary.worst_half_width([]) is None
