"""Lint: every rule finds its own defect in a table that is otherwise clean, and the gate lets normal tables pass."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from lutbuilder import spaces
from lutbuilder.campaign.spec import Target
from lutbuilder.lut import LATENCY_FLOOR_MS, Lut, LutMeta, QualitySummary, Row, publish
from lutbuilder.lut.lint import RULES, Sheet, failed_gate, lint
from lutbuilder.lut.monotone import monotone_pairs
from lutbuilder.lut.schema import rows_to_table
from lutbuilder.op import OpSpec
from lutbuilder.stats.quality import NetworkResult, ValidationReport, accuracy
from lutbuilder.stats.sessions import SessionReport
from lutbuilder_agent.errors import LutNoisy
from lutbuilder_agent.records import Fingerprint
from tests.lut_examples import example_meta, example_op, example_row, failed_row, tables

N = 16


def a_report(*, table: str = "example-cpu/onnxruntime-fp32-bs1@1", error: float = 0.01) -> ValidationReport:
    measured = np.linspace(7.0, 20.0, 6)
    told = accuracy(measured * (1 + error), measured)
    networks = tuple(
        NetworkResult(
            op_id=f"net-{number}", group="random", measured_ms=float(ms), predicted_ms=float(ms),
            undrifted_ms=float(ms), macs=1, n_ops=20, n_visits=60, n_instances=3, test_retest=0.004,
        )
        for number, ms in enumerate(measured)
    )  # fmt: skip  # one record, two lines
    return ValidationReport(
        lut_sum=told, undrifted=told, published=None, flops_linear=told, depth_linear=told, deciles=(0.01,) * 6,
        test_retest_floor=0.004, instance_floor=0.0085, op_instance_sd=0.013, session_scale=None, table=table,
        networks_sha256="ab" * 32, rounds=20, wall_s=600.0, timed_fraction=0.93, networks=networks,
    )  # fmt: skip  # one record, three lines


def a_row(number: int, **changes: Any) -> Row:
    """A row without a defect, of an op that no other differs from in one thing only."""
    op = changes.pop("op", None) or example_op(7 * number, height=14 + number)
    ms = 1.0 + 0.0101 * number + 0.00037 * number**2
    good = {
        "latency_ms": ms, "latency_lo_ms": 0.99 * ms, "latency_hi_ms": 1.01 * ms, "p90_ms": 1.1 * ms,
        "macs": 10_000_000, "n_sessions": 2, "n_agents": 1, "residual_mad": 0.02, "session_sd": 0.004,
        "throttled_fraction": 0.0, "settled": True,
    }  # fmt: skip  # one record
    return example_row(op, **{**good, **changes})


ROWS = tuple(a_row(number) for number in range(N))
META: LutMeta = replace(
    example_meta(
        spaces=(), sessions=("s1", "s2"), validation=a_report().to_json(),
        quality=QualitySummary(timed_fraction=0.93, wall_s=170.0, rounds=20, sessions=2),
        drift_trace=tuple((float(second), 1.0 - 0.3 * (second % 2)) for second in range(60)),
    ),
    version=2,
    parent_version=1,
)  # fmt: skip  # one footer


def sheet(*more: Row, rows: tuple[Row, ...] = ROWS, **meta: Any) -> Sheet:
    return Sheet(rows=(*rows, *more), meta=replace(META, **meta))


def one(**changes: Any) -> Sheet:
    """The clean table with a defect in its fourth row."""
    return sheet(rows=tuple(a_row(n, **(changes if n == 3 else {})) for n in range(N)))


def all_of(**changes: Any) -> Sheet:
    return sheet(rows=tuple(a_row(number, **changes) for number in range(N)))


def quality(**changes: Any) -> Sheet:
    return sheet(quality=replace(META.quality, **changes))


def trace(*speeds: float) -> Sheet:
    return sheet(drift_trace=tuple((float(second), speed) for second, speed in enumerate(speeds)))


SESSION = SessionReport(
    session_id="s2", agent="lab-1", n_visits=40, scale=0.0, drift_range=0.9, sentinel_residual=0.05, flagged=True,
    excluded=False, reason="restless",
)  # fmt: skip  # one record, two lines
DEPTHWISE = {"kind": "conv", "height": 8, "width": 8, "kernel": 3}


def depthwise(channels: int) -> OpSpec:
    return OpSpec(in_channels=channels, out_channels=channels, groups=channels, **DEPTHWISE)


def between_knots() -> Sheet:
    """Eight depthwise ops of which only the first and the last were measured."""
    return sheet(*(a_row(100 + n, op=depthwise(8 * (n + 1)), latency_ms=0.5 + 0.07 * n, **UNTOLD) for n in range(8)))


UNTOLD: dict[str, Any] = {"latency_lo_ms": 0.1, "latency_hi_ms": 9.0, "macs": None}
H100 = replace(META, target=Target(device="nvidia-h100", runtime="onnxruntime"), fingerprint=Fingerprint(
    device="nvidia-h100", facts=()))  # fmt: skip  # one footer


def published(number: int, ms: float | None, **columns: Any) -> Row:
    """An imported row of ops that differ in their kernel alone for equal numbers."""
    op = example_op(7 * number, height=14 + number, kernel=columns.pop("kernel", 3))
    return Row.of(
        op, **{"evidence": "imported", "method": "in_situ", "latency_ms": ms, "imported_value": ms, **columns}
    )


def another_table(ms: float) -> Lut:
    """A published table of another device with one row."""
    meta = replace(example_meta(device="other-device", spaces=()), version=1)
    return Lut(table=rows_to_table([published(50, ms)]), meta=meta, path=Path("v0001.parquet"))


@dataclass(frozen=True)
class Case:
    """A table with one defect, the rule that finds it, and the figure it tells."""

    rule: str
    sheet: Sheet
    figure: float | None
    told: str


CASES = (
    Case("L001", replace(sheet(), unreadable=("row 3: latency_ms must be positive",)), None, "row 3: latency_ms"),
    Case("L002", one(latency_ms=LATENCY_FLOOR_MS, latency_lo_ms=LATENCY_FLOOR_MS, latency_hi_ms=1.1 * LATENCY_FLOOR_MS),
         LATENCY_FLOOR_MS, "is a floor"),
    Case("L003", sheet(replace(ROWS[3], **{name: getattr(a_row(50), name) for name in (
        "op_id", "mid_channels", "expand", "height")})), ROWS[3].latency_ms, "verbatim the value of mbconv"),
    Case("L004", between_knots(), 6, "6 of 24 measured rows lie on lines"),
    Case("L005", sheet(a_row(50, method="imputed", evidence="modelled")), 60, "imputed, but claims 60 visits"),
    Case("L101", one(latency_lo_ms=None, latency_hi_ms=None, n_rounds=4), 4, "no interval after 4 rounds"),
    Case("L102", one(latency_lo_ms=0.8, latency_hi_ms=1.3), 0.2419, "±24.2% (> 10%)"),
    Case("L103", one(test_retest=0.07), 0.07, "differ by 7.0% (> 5%)"),
    Case("L104", one(residual_mad=0.3), 0.3, "visits spread by 30.0% (> 10%)"),
    Case("L105", one(bimodal=True), None, "two groups"),
    Case("L106", one(preempted_fraction=0.5), 0.5, "50% of the calls were preempted (> 20%)"),
    Case("L107", one(throttled_fraction=0.25), 0.25, "25% of the calls ran throttled (> 5%)"),
    Case("L108", one(settled=False), None, "warm-up had not ended"),
    Case("L109", one(n_instances=1), 1, "1 of 16 ops rest on fewer than 3 preparation(s), the least on 1"),
    Case("L110", all_of(n_sessions=1), 1, "16 of 16 ops rest on fewer than 2 session(s)"),
    Case("L111", one(session_sd=0.05), 0.05, "sessions spread by 5.0% (> 3%)"),
    Case("L201", sheet(a_row(3, op=replace(ROWS[3].op, kernel=5), latency_ms=0.5, latency_lo_ms=0.49,
         latency_hi_ms=0.51)), 0.5, "0.5000 ms, faster than mbconv"),
    Case("L202", one(macs=90_000_000), 87.07, "87.1 GMAC/s, the table's fastest tenth reaches 9.9"),
    Case("L203", one(macs=1_000_000), 0.967, "0.97 GMAC/s, ops of its kind and kernel reach 8.99"),
    Case("L204", Sheet(rows=tuple(replace(row, macs=10**15) for row in ROWS), meta=H100), 1e9, "the device can do 990"),
    Case("L205", one(call_overhead_ms=None), None, "no call overhead"),
    Case("L301", trace(*[1.0, 0.2] * 30), 5.0, "moved by a factor of 5.0 (> 3)"),
    Case("L302", trace(*[1.0] * 20, *[0.9] * 20, *[0.8] * 20), 0.2, "the last third ran 20% slower"),
    Case("L303", sheet(session_reports=(SESSION,)), 0.05, "session s2: restless"),
    Case("L304", sheet(session_reports=(replace(SESSION, excluded=True),)), 0.05, "session s2: restless"),
    Case("L305", quality(timed_fraction=0.3), 0.3, "30.0% of the campaign's time was timed (< 50%)"),
    Case("L401", sheet(spaces=("proxyless",)), 0.0, "proxyless: 0 of 70 ops have a row"),
    Case("L402", sheet(a_row(50, op=spaces.get("proxyless").ops()[0])), 1 / 70, "proxyless: 1 of 70 ops have a row"),
    Case("L403", sheet(failed_row(example_op(999))), None, "failed: crashed: signal 11"),
    Case("L404", sheet(failed_row(example_op(999), exec_status="unsupported", reason="no kernel")), None, "no kernel"),
    Case("L501", sheet(validation=None), None, "lutbuilder validate"),
    Case("L502", sheet(validation=a_report(table="example-cpu/onnxruntime-fp32-bs1@7").to_json(), version=9), None,
         "the validation is of example-cpu/onnxruntime-fp32-bs1@7"),
    Case("L503", sheet(validation=a_report(error=0.08).to_json()), 0.08, "MAPE 8.0% over 6 networks"),
    Case("L504", sheet(fitted_networks=("net-1", "net-3", "net-9")), 2, "2 of 6 networks"),
    Case("L505", sheet(replace(ROWS[3], method="calibrated")), 1, "1 calibrated rows"),
    Case("L601", replace(sheet(published(50, 1.23456)), others=(another_table(1.23456),)), 1.23456,
         "copied-from other-device/onnxruntime-fp32-bs1@1, as 1 of 1 rows"),
    Case("L602", sheet(published(50, 1.5), published(50, 1.4, kernel=5), published(50, 1.6, kernel=7)), 1,
         "in 1 of 3 pairs that differ in kernel or expansion alone the larger is faster"),
    Case("L603", sheet(published(50, 1.0, imported_std_ms=0.32), published(51, 1.0, imported_std_ms=0.01)), 0.165,
         "1 of 2 rows spread by more than 15%: median 16%, most 32%"),
    Case("L604", sheet(published(50, 1.5, method=None)), 1, "1 of 1 imported rows; import with --method"),
    Case("L605", sheet(published(50, None, cycles=5, reason="no clock given")), 1, "1 rows have cycles alone"),
    Case("L901", all_of(test_retest=0.2), 0.2, "differ by 20.0% (> 10%)"),
    Case("L902", all_of(latency_lo_ms=0.5, latency_hi_ms=2.0), None, "the typical op is known to"),
    Case("L903", all_of(latency_lo_ms=None, latency_hi_ms=None, n_rounds=5), 1.0, "16 of 16 measured ops have no"),
    Case("L904", trace(*[1.0, 0.05] * 30), 20.0, "moved by a factor of 20.0 (> 10)"),
    Case("L905", quality(timed_fraction=0.01), 0.01, "1.0% of the campaign's time was timed (< 2%)"),
)  # fmt: skip  # a case a line
# A table that fails the gate has other defects, too: each gate rule has a milder one of the same figure.
ALSO = {
    "L002": {"L203"}, "L004": {"L102"}, "L402": {"L402"}, "L901": {"L103"}, "L902": {"L102"}, "L903": {"L101"},
    "L904": {"L301"}, "L905": {"L305"},
}  # fmt: skip  # one mapping


def test_a_table_without_a_defect_is_clean():
    assert lint(sheet()) == ()


def test_every_rule_has_a_case():
    assert [case.rule for case in CASES] == [rule.id for rule in RULES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_defect_is_found_by_its_rule_and_by_no_other(case: Case):
    findings = lint(case.sheet)
    assert {finding.rule for finding in findings} <= {case.rule} | ALSO.get(case.rule, set())
    found = [finding for finding in findings if finding.rule == case.rule]
    assert found, findings
    assert case.told in found[0].message
    assert found[0].severity == next(rule.severity for rule in RULES if rule.id == case.rule)
    if case.figure is not None:
        assert found[0].figure == pytest.approx(case.figure, rel=0.01)


def test_a_finding_of_a_row_names_it():
    (found,) = lint(one(bimodal=True))
    assert (found.op_id, found.op) == (ROWS[3].op_id, ROWS[3].op.label())


# --- The registry


def test_ids_are_sorted_each_once_and_say_what_they_are_of():
    ids = [rule.id for rule in RULES]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"L[0-69]\d\d", rule_id) for rule_id in ids)
    assert all(rule.severity == "error" for rule in RULES if rule.gate)
    assert all(rule.what.endswith(".") and len(rule.what) < 120 for rule in RULES)


def test_the_document_lists_the_rules_as_they_are(root: Path):
    text = (root / "docs" / "quality.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (L\d+) \| (\w+) \| (.*) \|$", text, flags=re.MULTILINE)
    assert listed == [(rule.id, rule.severity, rule.what) for rule in RULES]


def test_released_ids_keep_their_rule():
    assert {rule.id: rule.name for rule in RULES} == {
        "L001": "unreadable-row", "L002": "at-the-floor", "L003": "duplicated-value", "L004": "hidden-imputation",
        "L005": "status-contradicts-visits", "L101": "no-interval", "L102": "wide-interval",
        "L103": "even-against-odd-rounds", "L104": "residual-spread", "L105": "bimodal", "L106": "preempted",
        "L107": "throttled", "L108": "not-settled", "L109": "few-instances", "L110": "one-session",
        "L111": "session-spread", "L201": "monotonicity", "L202": "faster-than-the-table",
        "L203": "slower-than-its-kind", "L204": "above-the-peak", "L205": "gross-value", "L301": "machine-speed-range",
        "L302": "slowed-down", "L303": "flagged-session", "L304": "excluded-session", "L305": "little-timed",
        "L401": "incomplete-space", "L402": "other-space", "L403": "failed-row", "L404": "unsupported-row",
        "L501": "not-validated", "L502": "validation-out-of-date", "L503": "predicts-badly",
        "L504": "validated-on-fitted", "L505": "calibrated-without-record",
        "L601": "copied-from", "L602": "larger-is-faster", "L603": "wide-dispersion", "L604": "unknown-method",
        "L605": "no-clock", "L901": "gate-test-retest", "L902": "gate-wide-intervals", "L903": "gate-no-intervals",
        "L904": "gate-speed-range", "L905": "gate-little-timed",
    }  # fmt: skip  # one list


@settings(max_examples=50, deadline=None)  # no deadline: a busy machine is no failure
@given(tables(max_size=12))
def test_any_rows_that_may_stand_in_a_table_can_be_checked(table: list[Row]):
    findings = lint(Sheet(rows=tuple(table), meta=META))
    json.dumps([finding.message for finding in findings])
    ranks = [("error", "warning", "info").index(finding.severity) for finding in findings]
    assert ranks == sorted(ranks)


def test_a_row_that_cannot_be_is_told_and_the_others_are_still_checked(tmp_path: Path):
    table = rows_to_table(one(bimodal=True).rows)
    values = table.to_pylist()
    values[5]["latency_ms"] = -1.0
    broken = Lut(table=type(table).from_pylist(values, schema=table.schema), meta=META, path=tmp_path / "v0002.parquet")
    findings = lint(Sheet.of(broken))
    assert [finding.rule for finding in findings] == ["L001", "L105"]
    assert "row 5" in findings[0].message


# --- Single rules, where they must keep quiet


@pytest.mark.parametrize(
    ("changes", "contradiction"),
    [
        ({"method": "imputed", "evidence": "modelled", "n_visits": 0}, None),
        ({"method": "imputed", "n_visits": 0}, "evidence says measured"),
        ({"n_visits": 0, "n_rounds": 0}, "rests on no visit"),
        ({"evidence": "imported", "n_visits": 0}, None),
        ({"method": "calibrated", "n_visits": 0}, None),
    ],
    ids=repr,
)
def test_only_rows_that_contradict_themselves_are_reported(changes: dict[str, Any], contradiction: str | None):
    told = [finding.message for finding in lint(sheet(a_row(50, **changes))) if finding.rule == "L005"]
    assert len(told) == (contradiction is not None)
    assert all(contradiction is not None and contradiction in message for message in told)


def test_measured_values_near_a_line_are_not_called_imputed():
    rng = np.random.default_rng(0)
    near = [float((0.5 + 0.07 * n) * np.exp(rng.normal(0, 1e-4))) for n in range(60)]
    rows = [a_row(100 + n, op=depthwise(8 * (n + 1)), latency_ms=ms, **UNTOLD) for n, ms in enumerate(near)]
    assert not [finding for finding in lint(sheet(*rows)) if finding.rule == "L004"]


def test_imputed_rows_that_say_so_may_lie_on_a_line():
    rows = tuple(
        replace(row, method="imputed", evidence="modelled", n_visits=0) if row.kind == "conv" else row
        for row in between_knots().rows
    )
    assert not [finding for finding in lint(sheet(rows=rows)) if finding.rule in ("L004", "L005")]


def test_a_covered_space_is_complete_also_with_imputed_rows():
    ops = spaces.get("proxyless").ops()
    rows = [a_row(number, op=op, macs=None) for number, op in enumerate(ops)]
    rows[3] = replace(rows[3], method="imputed", evidence="modelled", n_visits=0)
    findings = lint(sheet(rows=tuple(rows), spaces=("proxyless",)))
    assert not [finding for finding in findings if finding.rule == "L401"]
    (missing,) = (f for f in lint(sheet(rows=tuple(rows[1:]), spaces=("proxyless",))) if f.rule == "L401")
    assert "69 of 70" in missing.message


def test_a_space_nobody_knows_is_told_as_such():
    (found,) = lint(sheet(spaces=("atlantis",)))
    assert (found.rule, found.message) == ("L401", "space 'atlantis' is not known to this lutbuilder")


def test_a_validation_of_this_version_or_of_the_one_it_was_made_from_is_current():
    for version in (2, 1):
        assert lint(sheet(validation=a_report(table=f"example-cpu/onnxruntime-fp32-bs1@{version}").to_json())) == ()
    (found,) = lint(sheet(validation={"novel": 1}))
    assert (found.rule, "cannot be read" in found.message) == ("L502", True)


# --- Monotonicity


def pairs_of(*ops: OpSpec, **changes: Any) -> list[str]:
    return [pair.what for pair in monotone_pairs(example_row(op, **changes) for op in ops)]


def test_only_ops_that_differ_in_one_thing_make_a_pair():
    op = example_op()
    assert pairs_of(op, replace(op, kernel=5)) == ["kernel"]
    assert pairs_of(op, replace(op, mid_channels=96)) == ["expand"]
    assert pairs_of(op, replace(op, out_channels=32)) == ["width"]
    assert pairs_of(op, replace(op, kernel=5, mid_channels=96)) == []
    assert pairs_of(op, replace(op, height=56, width=56)) == []
    assert pairs_of(op, replace(op, kernel=5), replace(op, kernel=7)) == ["kernel", "kernel"], "next to each other"
    assert pairs_of(depthwise(8), depthwise(16)) == ["width"]
    assert pairs_of(op, replace(op, act="relu")) == []


def test_bits_count_only_where_the_engine_computes_in_them():
    op = example_op()
    few = replace(op, w_bits=8)
    rows = [example_row(op), example_row(few, exec_w_bits=8)]
    assert [pair.what for pair in monotone_pairs(rows)] == ["bits"]
    assert monotone_pairs([rows[0], replace(rows[1], exec_w_bits=32)]) == ()
    assert monotone_pairs([rows[0], replace(rows[1], exec_status="emulated")]) == ()


def test_rows_without_intervals_or_not_measured_make_no_pair():
    ops = (example_op(), example_op(kernel=5))
    assert pairs_of(*ops, latency_lo_ms=None, latency_hi_ms=None) == []
    assert pairs_of(*ops, method="imputed", evidence="modelled") == []


def test_a_violation_needs_intervals_that_do_not_touch():
    small, large = (
        example_row(),
        example_row(example_op(kernel=5), latency_ms=0.98, latency_lo_ms=0.97, latency_hi_ms=0.99),
    )
    assert [pair.violated for pair in monotone_pairs([small, large])] == [False]
    clearly = replace(large, latency_hi_ms=0.985)
    assert [pair.violated for pair in monotone_pairs([small, clearly])] == [True]
    assert [pair.violated for pair in monotone_pairs([small, replace(clearly, latency_ms=2.0, latency_hi_ms=2.1)])] == [
        False
    ]


# --- The gate


def test_published_tables_of_this_repository_have_no_error_and_pass_the_gate(root: Path):
    paths = sorted((root / "luts").glob("*/*/v*.parquet"))
    assert paths
    for path in paths:
        lut = Lut.load(path)
        assert [f for f in lint(Sheet.of(lut)) if f.severity == "error"] == [], path
        assert failed_gate(lut.rows(), lut.meta) == ()


GATED = [case for case in CASES if case.rule.startswith("L9")]


@pytest.mark.parametrize("case", GATED, ids=lambda case: case.rule)
def test_what_fails_the_gate_is_refused_with_the_reason_and_published_marked_when_accepted(tmp_path: Path, case: Case):
    rows, meta = case.sheet.rows, case.sheet.meta
    with pytest.raises(LutNoisy, match=rf"would be too noisy to publish: {case.rule}: "):
        publish(rows, meta, folder=tmp_path, accept_noisy=False)
    assert not list(tmp_path.rglob("*.parquet"))
    lut = publish(rows, meta, folder=tmp_path, accept_noisy=True)
    assert lut.meta.noisy == (case.rule,)
    assert Lut.load(lut.path).meta.noisy == (case.rule,)


def test_a_mark_leaves_when_better_rows_come(tmp_path: Path):
    noisy = publish(all_of(test_retest=0.2).rows, META, folder=tmp_path)
    assert noisy.meta.noisy == ("L901",)
    better = tuple(replace(row, n_sessions=3) for row in ROWS)
    assert publish(better, META, folder=tmp_path, base=noisy, accept_noisy=False).meta.noisy == ()


def test_a_mark_stays_when_a_validation_or_a_calibration_is_added(tmp_path: Path):
    noisy = publish(all_of(test_retest=0.2).rows, META, folder=tmp_path)
    assert publish((), META, folder=tmp_path, base=noisy).meta.noisy == ("L901",)


def test_rows_that_rest_on_no_visits_are_not_judged_by_the_gate(tmp_path: Path):
    rows = tuple(Row.of(row.op, latency_ms=1.0 + n) for n, row in enumerate(ROWS))
    assert publish(rows, META, folder=tmp_path, accept_noisy=False).meta.noisy == ()


@pytest.mark.parametrize(
    "normal",
    [
        lambda: sheet(drift_trace=trace(*[1.0, 0.55] * 50).meta.drift_trace),  # a machine of two speeds
        lambda: all_of(test_retest=0.03, latency_lo_ms=0.95, latency_hi_ms=1.35),
        lambda: quality(timed_fraction=0.3),
        lambda: one(latency_lo_ms=None, latency_hi_ms=None),
        lambda: sheet(*(failed_row(example_op(900 + n)) for n in range(40))),
        lambda: quality(timed_fraction=None),
    ],
)
def test_what_a_busy_small_machine_gives_in_three_minutes_passes(normal: Callable[[], Sheet]):
    made = normal()
    assert failed_gate(made.rows, made.meta) == ()
