"""make_rows: call overhead comes off, failures keep their reason, and nothing measured disappears."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.campaign.plan import overhead_op
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.lut import LATENCY_FLOOR_MS, Row, make_rows
from lutbuilder.op import OpSpec
from lutbuilder.stats.records import OpEstimate
from tests.lut_examples import example_op

PROPERTY = settings(max_examples=50, deadline=None)  # no deadline: a busy machine is no failure
OP = example_op()
EMPTY = overhead_op(OP)


@dataclass(frozen=True)
class Failed:
    op_id: str
    reason: str
    detail: str = ""


def estimate(op: OpSpec, time_ms: float, *, half_ms: float | None = None, p90_ms: float | None = None) -> OpEstimate:
    return OpEstimate(
        op_id=op.op_id,
        time_ms=time_ms,
        lo_ms=None if half_ms is None else time_ms - half_ms,
        hi_ms=None if half_ms is None else time_ms + half_ms,
        p90_ms=1.2 * time_ms if p90_ms is None else p90_ms,
        n_visits=60,
        n_rounds=20,
        n_instances=3,
        n_sessions=2,
        test_retest=0.003,
        preempted_fraction=0.02,
        bimodal=True,
        residual_mad=0.005,
    )


def rows_of(
    estimates: list[OpEstimate], failures: list[Failed] | None = None, ops: list[OpSpec] | None = None
) -> dict[str, Row]:
    campaign_ops = [CampaignOp.of(op) for op in ops or [OP, EMPTY]]
    reasons = {OP.op_id: "precision"}
    return {row.op_id: row for row in make_rows(campaign_ops, estimates, failures or [], reasons, cache="hot")}


def test_what_sessions_and_agents_say_reaches_the_row():
    told = replace(estimate(OP, 1.5), session_sd=0.0125, n_agents=2)
    row = rows_of([told, estimate(EMPTY, 0.5)])[OP.op_id]
    assert (row.session_sd, row.n_agents) == (0.0125, 2)


def test_the_call_overhead_of_the_input_shape_is_subtracted():
    row = rows_of([estimate(OP, 1.5, half_ms=0.03, p90_ms=1.8), estimate(EMPTY, 0.5, half_ms=0.04)])[OP.op_id]
    assert row.latency_ms == pytest.approx(1.0)
    assert row.call_overhead_ms == 0.5
    assert row.p90_ms == pytest.approx(1.3)
    assert (row.latency_lo_ms, row.latency_hi_ms) == (pytest.approx(0.95), pytest.approx(1.05)), (
        "3, 4, 5: in quadrature"
    )
    assert (row.exec_status, row.reason, row.evidence, row.method, row.cache) == (
        "native",
        None,
        "measured",
        "isolated",
        "hot",
    )
    assert (row.exec_w_bits, row.exec_a_bits, row.stop_reason) == (32, 32, "precision")
    assert (row.n_visits, row.n_rounds, row.n_instances, row.n_sessions) == (60, 20, 3, 2)
    assert (row.test_retest, row.preempted_fraction, row.bimodal) == (0.003, 0.02, True)
    assert (row.residual_mad, row.session_sd, row.n_agents) == (0.005, None, 1)
    assert (row.settled, row.throttled_fraction) == (None, None), "estimates do not know"
    macs = 28 * 28 * (16 * 48 + 48 * 9 + 48 * 24)
    assert (row.macs, row.params) == (macs, 16 * 48 + 48 + 48 * 9 + 48 + 48 * 24 + 24)


def test_the_ends_of_a_lopsided_interval_meet_the_opposite_ends_of_the_overhead():
    op = replace(estimate(OP, 1.5), lo_ms=1.47, hi_ms=1.62)
    empty = replace(estimate(EMPTY, 0.5), lo_ms=0.45, hi_ms=0.54)
    row = rows_of([op, empty])[OP.op_id]
    assert row.latency_lo_ms == pytest.approx(1.0 - 0.05)  # 0.03 down, 0.04 of overhead up
    assert row.latency_hi_ms == pytest.approx(1.0 + 0.13)  # 0.12 up, 0.05 of overhead down


@pytest.mark.parametrize("without", [0, 1])
def test_without_both_intervals_there_is_none(without: int):
    halves: list[float | None] = [0.01, 0.01]
    halves[without] = None
    row = rows_of([estimate(OP, 1.5, half_ms=halves[0]), estimate(EMPTY, 0.5, half_ms=halves[1])])[OP.op_id]
    assert (row.latency_lo_ms, row.latency_hi_ms, row.half_width) == (None, None, None)


def test_a_call_overhead_is_a_row_of_its_own_time():
    row = rows_of([estimate(OP, 1.5), estimate(EMPTY, 0.5, half_ms=0.1, p90_ms=0.6)])[EMPTY.op_id]
    assert (row.kind, row.latency_ms, row.call_overhead_ms, row.p90_ms) == ("identity", 0.5, None, 0.6)
    assert (row.latency_lo_ms, row.latency_hi_ms) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (row.macs, row.params, row.exec_status) == (0, 0, "native")


@pytest.mark.parametrize("time_ms", [0.5, 0.45])
def test_an_op_not_above_its_call_overhead_gets_the_floor_and_says_so(time_ms: float):
    row = rows_of([estimate(OP, time_ms, half_ms=0.03), estimate(EMPTY, 0.5, half_ms=0.04)])[OP.op_id]
    assert row.latency_ms == LATENCY_FLOOR_MS > 0
    assert row.latency_lo_ms == LATENCY_FLOOR_MS
    assert row.latency_hi_ms == pytest.approx(max(time_ms - 0.5 + 0.05, LATENCY_FLOOR_MS))
    assert row.exec_status == "native"
    assert row.reason == f"not above the call overhead ({time_ms} ms with it, 0.5 ms alone); latency_ms is a floor"


@PROPERTY
@given(st.floats(1e-7, 1e6), st.floats(1e-7, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_row_is_ever_zero_negative_or_outside_its_interval(op_ms: float, empty_ms: float, half: float, other: float):
    rows = rows_of([estimate(OP, op_ms, half_ms=half), estimate(EMPTY, empty_ms, half_ms=other)])
    for row in rows.values():  # Row itself refuses what this test forbids
        assert row.latency_ms is not None
        assert row.latency_ms > 0


def test_an_interval_that_misses_its_own_estimate_is_widened_to_hold_it():
    op, empty = replace(estimate(OP, 1.5), lo_ms=1.6, hi_ms=1.7), replace(estimate(EMPTY, 0.5), lo_ms=0.3, hi_ms=0.4)
    rows = rows_of([op, empty])
    assert rows[OP.op_id].latency_lo_ms == 1.0
    assert rows[EMPTY.op_id].latency_hi_ms == 0.5


def test_an_op_whose_call_overhead_was_not_measured_is_failed_and_keeps_its_gross_time():
    rows = rows_of([estimate(OP, 1.5)], [Failed(EMPTY.op_id, "crashed")])
    row = rows[OP.op_id]
    assert (row.latency_ms, row.exec_status, row.n_visits) == (None, "failed", 60)
    assert row.reason == "call overhead (identity 16x28x28) was not measured; 1.5 ms with it"
    assert rows[EMPTY.op_id].reason == "crashed"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("unsupported", "unsupported"), ("crashed", "failed"), ("timed_out", "failed"), ("out_of_memory", "failed")],
)
def test_an_op_that_failed_is_a_row_with_the_engines_words(reason: str, status: str):
    row = rows_of([estimate(EMPTY, 0.5)], [Failed(OP.op_id, reason, "no kernel\n  for it")])[OP.op_id]
    assert (row.latency_ms, row.exec_status, row.reason) == (None, status, f"{reason}: no kernel for it")
    assert (row.n_visits, row.bimodal, row.preempted_fraction, row.exec_w_bits) == (0, None, None, None)
    assert row.macs is not None


def test_an_op_that_failed_at_times_keeps_its_latency_and_names_the_failure():
    row = rows_of([estimate(OP, 1.5), estimate(EMPTY, 0.5)], [Failed(OP.op_id, "crashed", "signal 11")])[OP.op_id]
    assert (row.latency_ms, row.exec_status, row.reason) == (1.0, "native", "crashed: signal 11")


def test_both_notes_are_kept():
    row = rows_of([estimate(OP, 0.4), estimate(EMPTY, 0.5)], [Failed(OP.op_id, "timed_out")])[OP.op_id]
    assert row.reason is not None
    assert row.reason.startswith("timed_out; not above the call overhead")


@pytest.mark.parametrize("later", [[], [Failed(OP.op_id, "crashed")]])
def test_a_wrong_output_is_failed_however_often_it_was_timed(later: list[Failed]):
    failures = [Failed(OP.op_id, "wrong_output", "off by 3"), *later]
    row = rows_of([estimate(OP, 1.5), estimate(EMPTY, 0.5)], failures)[OP.op_id]
    assert (row.latency_ms, row.exec_status, row.reason) == (None, "failed", "wrong_output: off by 3")
    assert row.n_visits == 60


def test_a_call_overhead_that_was_found_from_pairs_is_a_row_too():
    """Its identity op was never visited itself, so no campaign op names it."""
    rows = rows_of([estimate(OP, 1.5), estimate(EMPTY, 0.5)], ops=[OP])
    assert (rows[OP.op_id].latency_ms, rows[EMPTY.op_id].latency_ms) == (1.0, 0.5)


def test_what_was_never_visited_and_pairs_and_networks_give_no_row():
    joined = [CampaignOp.network((OP, example_op(2))), CampaignOp.pair(OP, example_op(2))]
    ops = [CampaignOp.of(OP), CampaignOp.of(EMPTY), CampaignOp.of(example_op(1)), *joined]
    estimates = [
        estimate(OP, 1.5),
        estimate(EMPTY, 0.5),
        *(replace(estimate(OP, 9.0), op_id=several.op_id) for several in joined),
    ]
    assert {row.op for row in make_rows(ops, estimates, [], {}, cache="hot")} == {OP, EMPTY}


def test_method_evidence_and_cache_are_recorded():
    campaign_ops = [CampaignOp.of(OP), CampaignOp.of(EMPTY)]
    estimates = [estimate(OP, 1.5), estimate(EMPTY, 0.5)]
    for row in make_rows(campaign_ops, estimates, [], {}, method="context", evidence="rtl_sim", cache="rotating"):
        assert (row.method, row.evidence, row.cache, row.stop_reason) == ("context", "rtl_sim", "rotating", None)


def test_an_op_that_cannot_be_lowered_can_still_be_unsupported():
    op = example_op(w_bits=4, a_bits=4)
    row = rows_of([], [Failed(op.op_id, "unsupported")], [op])[op.op_id]
    assert (row.exec_status, row.macs, row.params) == ("unsupported", None, None)


def test_a_stack_trace_is_cut_and_broken_text_is_mended():
    row = rows_of([], [Failed(OP.op_id, "crashed", "\ud800" + "x" * 5000)])[OP.op_id]
    assert row.reason is not None
    assert row.reason.startswith("crashed: ?xxx")
    assert row.reason.endswith("xxx...")
    assert len(row.reason) == 400
