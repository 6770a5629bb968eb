"""Merging: pure, the same in any order, never worse than before, and never across conditions."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.lut import Lut, LutMeta, Row, merge, merge_rows
from lutbuilder.lut.schema import Carrier, rows_to_table
from lutbuilder.stats.sessions import SessionReport
from lutbuilder_agent.errors import LutConflict
from lutbuilder_agent.records import Fingerprint
from tests.lut_examples import CACHE, FINGERPRINT, example_meta, example_op, example_row, failed_row

PROPERTY = settings(max_examples=50, deadline=None)  # no deadline: a busy machine is no failure


def a_lut(*rows: Row, meta: LutMeta | None = None, version: int = 1) -> Lut:
    meta = replace(meta or example_meta(), version=version, content_sha256="ab" * 32)
    return Lut(table=rows_to_table(rows), meta=meta, path=Path(f"luts/{meta.name}/v{version:04d}.parquet"))


def wide(**changes: Any) -> Row:
    return example_row(latency_lo_ms=0.9, latency_hi_ms=1.1, **changes)


def narrow(**changes: Any) -> Row:
    return example_row(latency_lo_ms=0.999, latency_hi_ms=1.001, **changes)


# --- which row stays

BETTER_FIRST = {
    "a measurement before a failure": (wide(n_visits=1), failed_row(n_visits=1000)),
    "an interval before none": (wide(), example_row(latency_lo_ms=None, latency_hi_ms=None, n_visits=1000)),
    "a narrower interval before a wider": (narrow(n_visits=1), wide(n_visits=1000)),
    "more sessions before a narrower interval": (wide(n_sessions=2), narrow(n_sessions=1)),
    "more visits at equal width": (example_row(n_visits=2), example_row(n_visits=1)),
    "a failure that saw more before one that saw less": (failed_row(n_visits=5), failed_row(n_visits=4)),
}


@pytest.mark.parametrize("name", BETTER_FIRST)
def test_of_two_rows_of_an_op_the_one_resting_on_more_stays(name: str):
    best, other = BETTER_FIRST[name]
    for base, new in permutations((best, other)):
        rows, _ = merge(a_lut(base), [new], example_meta())
        assert rows == (best,)


def test_equals_are_told_apart_by_content_not_by_who_came_first():
    one, two = example_row(p90_ms=1.2), example_row(p90_ms=1.3)
    assert merge_rows([one, two]) == merge_rows([two, one])


ROWS = (
    example_row(example_op(0)),
    narrow(op=example_op(0)),
    wide(op=example_op(0), n_sessions=2),
    failed_row(example_op(0)),
    example_row(example_op(1), method="calibrated"),
    example_row(example_op(1)),
)


def test_the_order_of_rows_does_not_matter():
    wanted = merge_rows(ROWS)
    assert len(wanted) == 3
    assert all(merge_rows(order) == wanted for order in permutations(ROWS))


@st.composite
def competing_rows(draw: st.DrawFn) -> Row:
    """Rows of few ops that differ in everything that decides between them."""
    op = example_op(draw(st.integers(0, 2)))
    if draw(st.booleans()):
        return failed_row(op, reason=draw(st.sampled_from(["a", "b"])), n_visits=draw(st.integers(0, 2)))
    half = draw(st.sampled_from([None, 0.01, 0.1]))
    return example_row(
        op,
        latency_lo_ms=None if half is None else 1.0 - half,
        latency_hi_ms=None if half is None else 1.0 + half,
        p90_ms=draw(st.sampled_from([1.0, 2.0])),
        n_visits=draw(st.integers(0, 2)),
        n_sessions=draw(st.integers(1, 2)),
        method=draw(st.sampled_from(["isolated", "context"])),
    )


@PROPERTY
@given(st.lists(competing_rows(), max_size=8), st.data())
def test_campaigns_may_arrive_in_any_order_and_any_grouping(rows: list[Row], data: st.DataObject):
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    at_once, _ = merge(None, rows, example_meta())
    first, meta = merge(None, shuffled[:cut], example_meta())
    in_two, _ = merge(a_lut(*first, meta=meta), shuffled[cut:], example_meta())
    assert in_two == at_once
    assert merge_rows([*at_once, *at_once]) == at_once


@PROPERTY
@given(st.lists(competing_rows(), max_size=8), st.lists(competing_rows(), max_size=8))
def test_no_measured_row_ever_disappears(base: list[Row], new: list[Row]):
    before = merge_rows(base)
    after = {row.key: row for row in merge(a_lut(*before), new, example_meta())[0]}
    for row in before:
        assert row.key in after
        assert after[row.key].latency_ms is not None or row.latency_ms is None


# --- the footer


def test_the_first_version_has_no_parent():
    _, meta = merge(None, [example_row()], example_meta())
    assert (meta.version, meta.parent_version, meta.parent_sha256) == (1, None, None)


def test_a_further_version_follows_its_parent_and_covers_both():
    base = a_lut(example_row(), meta=example_meta(spaces=("a", "c"), sessions=("s1",)), version=4)
    rows, meta = merge(base, [failed_row(example_op(1))], example_meta(spaces=("b",), sessions=("s2",), created=LATER))
    assert (meta.version, meta.parent_version, meta.parent_sha256) == (5, 4, "ab" * 32)
    assert (meta.spaces, meta.sessions, meta.created) == (("a", "b", "c"), ("s1", "s2"), LATER)
    assert (meta.quality.n_rows, meta.quality.n_failed, meta.quality.rounds) == (2, 1, 20)
    assert len(rows) == 2


LATER = "2025-02-01T00:00:00Z"


def a_session(session_id: str, **changes: Any) -> SessionReport:
    return SessionReport(
        **{
            "session_id": session_id, "agent": "lab-1", "n_visits": 40, "scale": 0.0, "drift_range": 0.1,
            "sentinel_residual": 0.0, "flagged": False, "excluded": False, "reason": "", **changes,
        }
    )  # fmt: skip  # one record


def test_session_reports_and_fitted_networks_accumulate_and_the_newest_report_of_a_session_counts():
    old, again = a_session("s2"), a_session("s2", flagged=True, reason="restless")
    base = a_lut(
        example_row(), meta=example_meta(session_reports=(a_session("s1"), old), fitted_networks=("net-2", "net-3"))
    )
    meta = example_meta(session_reports=(again, a_session("s3")), fitted_networks=("net-1", "net-2"))
    _, merged = merge(base, [example_row()], meta)
    assert merged.session_reports == (a_session("s1"), again, a_session("s3"))
    assert merged.fitted_networks == ("net-1", "net-2", "net-3")


def test_the_carriers_of_the_newest_fit_stay_until_a_fit_has_others():
    old, new = (Carrier(op_id=f"net-{k}", op_ids=("a", "b"), time_ms=10.0 + k) for k in (1, 2))
    base = a_lut(example_row(), meta=example_meta(carriers=(old,)))
    assert merge(base, [example_row()], example_meta())[1].carriers == (old,)
    assert merge(base, [example_row()], example_meta(carriers=(new,)))[1].carriers == (new,)


def test_new_conditions_leave_behind_what_was_known_of_sessions_and_fits():
    base = a_lut(example_row(), meta=example_meta(session_reports=(a_session("s1"),), fitted_networks=("net-2",)))
    _, merged = merge(base, [example_row()], example_meta(fingerprint=NEWER_KERNEL), new_conditions=True)
    assert (merged.session_reports, merged.fitted_networks) == ((), ())


def imputed(ms: float, half: float) -> Row:
    return example_row(
        latency_ms=ms, latency_lo_ms=ms - half, latency_hi_ms=ms + half, method="imputed", evidence="modelled",
        n_visits=0, n_rounds=0, n_instances=0, n_sessions=0,
    )  # fmt: skip  # one record


def test_a_newly_imputed_value_displaces_the_old_one_even_if_that_claimed_to_be_narrower():
    rows, _ = merge(a_lut(imputed(1.0, 0.01)), [imputed(2.0, 0.5)], example_meta())
    assert rows == (imputed(2.0, 0.5),)


def test_an_imputed_row_leaves_when_its_op_is_measured():
    other = example_row(example_op(1), method="imputed", evidence="modelled", n_visits=0)
    rows, _ = merge(a_lut(imputed(1.0, 0.01), other), [wide()], example_meta())
    assert set(rows) == {wide(), other}


def test_merging_changes_neither_its_base_nor_its_rows():
    base, new = a_lut(wide()), [narrow()]
    merge(base, new, example_meta())
    assert base.rows() == (wide(),)
    assert new == [narrow()]


# --- what is never pooled

NEWER_KERNEL = Fingerprint(
    device="example-cpu", facts=(("driver", "570"), ("kernel", "6.8"), ("model", "Example 9000"))
)
PLAN = example_meta().plan
ADVICE = "repeat the command with --new-conditions"
OWN_NAME = "publish it under its own name"


@pytest.mark.parametrize(
    ("changes", "told", "advice"),
    [
        ({"device": "other-cpu"}, "target.device was 'example-cpu' and is now 'other-cpu'", OWN_NAME),
        ({"runtime": "litert"}, "target.runtime was 'onnxruntime' and is now 'litert'", OWN_NAME),
        ({"dtype": "fp16"}, "target.dtype was 'fp32' and is now 'fp16'", OWN_NAME),
        ({"batch": 8}, "target.batch was 1 and is now 8", OWN_NAME),
        ({"threads": 2}, "target.threads was 1 and is now 2; plan.threads was 1 and is now 2", ADVICE),
        ({"cache": "flushed"}, f"target.cache was {CACHE!r} and is now 'flushed'", ADVICE),
        ({"runtime_version": "1.21.0"}, "runtime_version was '1.20.0' and is now '1.21.0'", ADVICE),
        ({"plan": replace(PLAN, threads=2)}, "plan.threads was 1 and is now 2", ADVICE),
        ({"plan": replace(PLAN, cache="rotating", train_ops=5)}, "plan.train_ops was", ADVICE),
        ({"plan": replace(PLAN, options=(("spin", "0"),))}, "plan.options was () and is now (('spin', '0'),)", ADVICE),
        (
            {"fingerprint": NEWER_KERNEL},
            "fingerprint fact 'driver' was None and is now '570'; fingerprint fact 'kernel' was '6.1' and is now '6.8'",
            ADVICE,
        ),
        (
            {"fingerprint": replace(FINGERPRINT, device="example-cpu-b")},
            "fingerprint.device was 'example-cpu' and is now 'example-cpu-b'",
            ADVICE,
        ),
    ],
)
def test_other_conditions_are_refused_naming_field_and_both_values(changes: dict[str, Any], told: str, advice: str):
    with pytest.raises(LutConflict) as caught:
        merge(a_lut(example_row()), [], example_meta(**changes))
    assert told in str(caught.value)
    assert "luts/example-cpu/onnxruntime-fp32-bs1@1" in str(caught.value)
    assert str(caught.value).endswith(advice)


@pytest.mark.parametrize("changes", [{"seed": 7}, {"instances": 5}, {"min_block_ns": 1}], ids=repr)
def test_how_long_and_in_which_order_was_measured_is_no_condition(changes: dict[str, Any]):
    plan = replace(example_meta().plan, **changes)
    rows, _ = merge(a_lut(example_row()), [example_row(example_op(1))], example_meta(plan=plan))
    assert len(rows) == 2


def test_new_conditions_start_a_version_of_their_own_rows():
    base = a_lut(example_row(example_op(0)), meta=example_meta(spaces=("old",), sessions=("old",)), version=3)
    fresh = example_meta(fingerprint=NEWER_KERNEL, spaces=("new",), sessions=("new",))
    rows, meta = merge(base, [example_row(example_op(1))], fresh, new_conditions=True)
    assert rows == (example_row(example_op(1)),)
    assert (meta.version, meta.parent_version, meta.spaces, meta.sessions) == (4, 3, ("new",), ("new",))


def test_new_conditions_that_turn_out_to_be_the_old_ones_pool_as_ever():
    rows, _ = merge(a_lut(example_row()), [example_row(example_op(1))], example_meta(), new_conditions=True)
    assert len(rows) == 2


@pytest.mark.parametrize("changes", [{"device": "b"}, {"runtime": "litert"}, {"dtype": "fp16"}, {"batch": 8}], ids=repr)
def test_new_conditions_never_make_another_target(changes: dict[str, Any]):
    with pytest.raises(LutConflict, match=OWN_NAME):
        merge(a_lut(example_row()), [], example_meta(**changes), new_conditions=True)


def test_a_row_of_another_batch_is_refused():
    with pytest.raises(LutConflict, match=r"batch differs: .* is of batch 8, LUT .*-bs1 of batch 1; .* batch=8"):
        merge(None, [example_row(example_op(batch=8))], example_meta())


def test_a_row_timed_in_another_cache_state_is_refused():
    with pytest.raises(
        LutConflict, match=r"cache differs: .* was timed flushed, LUT .* speaks for .*; .*cache='flushed'"
    ):
        merge(None, [example_row(cache="flushed")], example_meta())
