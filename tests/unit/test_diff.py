"""Comparing tables: error rates are what the documents promise, and every word means what it says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lutbuilder.cli.diff_svg import diff_svg
from lutbuilder.lut import Lut, LutMeta, Row
from lutbuilder.lut.diff import FALSE_DISCOVERIES, SURE, Diff, diff
from lutbuilder.lut.schema import rows_to_table
from lutbuilder.op import OpSpec
from lutbuilder.stats.compare import MIN_ROWS, adjusted, compare
from lutbuilder.stats.interval import estimate
from lutbuilder_agent.errors import LutConflict, ShapeError, SpecError
from tests.lut_examples import example_meta, example_op, example_row, failed_row
from tests.simulated_visits import Machine, log_spread, simulate

Floats = NDArray[np.float64]

EFFECT = 0.02
LEAST = float(np.log1p(EFFECT))
SCALE = 0.017  # measurement.md: what sessions of one machine differ by
N_OPS = 70


def a_lut(rows: list[Row], **meta: Any) -> Lut:
    footer: LutMeta = replace(example_meta(**meta), version=1, content_sha256="ab" * 32)
    return Lut(table=rows_to_table(rows), meta=footer, path=Path(f"luts/{footer.name}/v0001.parquet"))


def a_row(number: int, ms: float, half: float | None = 0.01, **changes: Any) -> Row:
    ends = {} if half is None else {"latency_lo_ms": ms * (1 - half), "latency_hi_ms": ms * (1 + half)}
    return example_row(
        example_op(number), **{"latency_ms": ms, "latency_lo_ms": None, "latency_hi_ms": None, **ends, **changes}
    )


def called(log_ratio: Floats, log_sd: Floats) -> NDArray[np.str_]:
    """What `diff` calls rows of which only this much is known; tested against `diff` itself below."""
    told = compare(log_ratio, log_sd, effect=EFFECT)
    moved = (told.adjusted_p <= FALSE_DISCOVERIES) & (np.abs(told.change) >= LEAST)
    unmoved = np.where(told.p_same >= SURE, "SAME", "UNSURE")
    return np.where(moved, np.where(told.change > 0, "SLOWER", "FASTER"), unmoved)


def simulated(
    low: float, high: float, *, pairs: int, n: int = N_OPS, scatter: float = 0.0, changes: tuple[float, ...] = ()
) -> list[NDArray[np.str_]]:
    """Verdicts of pairs of tables with these half-widths; the first rows changed by `changes`, in log ratio."""
    rng = np.random.default_rng(int(1e6 * (low + 10 * high)) + n)
    verdicts = []
    for _ in range(pairs):
        log_sd = np.hypot(*rng.uniform(low, high, (2, n))) / 1.959964
        log_ratio = rng.normal(SCALE, np.hypot(log_sd, scatter))
        log_ratio[: len(changes)] += changes
        verdicts.append(called(log_ratio, log_sd))
    return verdicts


# --- Error rates


@pytest.mark.parametrize(
    ("low", "high", "same", "mostly"),
    [(0.01, 0.01, 0.99, 0.99), (0.01, 0.025, 0.98, 0.95), (0.025, 0.025, 0.97, 0.85), (0.005, 0.01, 0.99, 0.99)],
)
def test_two_tables_of_one_machine_are_the_same_in_95_of_100_rows(low: float, high: float, same: float, mostly: float):
    verdicts = simulated(low, high, pairs=300)
    shares = np.array([np.mean(each == "SAME") for each in verdicts])
    assert shares.mean() >= same
    assert np.mean(shares >= 0.95) >= mostly
    assert np.mean([np.isin(each, ("FASTER", "SLOWER")).any() for each in verdicts]) <= 0.075


def test_rows_that_scatter_more_than_their_intervals_say_raise_few_false_alarms():
    verdicts = simulated(0.01, 0.02, pairs=300, scatter=0.007)
    assert np.mean([np.isin(each, ("FASTER", "SLOWER")).any() for each in verdicts]) <= 0.12
    assert np.mean([np.mean(each == "SAME") for each in verdicts]) >= 0.95


@pytest.mark.parametrize(
    ("half", "found", "missed"), [(0.01, 0.98, 0.005), (0.015, 0.75, 0.08), (0.02, 0.4, 0.25), (0.025, 0.15, 0.45)]
)
def test_one_op_that_became_5_percent_slower_is_found_as_often_as_its_interval_allows(
    half: float, found: float, missed: float
):
    verdicts = Counter(str(each[0]) for each in simulated(half, half, pairs=300, changes=(np.log(1.05),)))
    assert verdicts["SLOWER"] / 300 >= found
    assert verdicts["FASTER"] == 0
    assert verdicts["SAME"] / 300 <= missed


def test_at_most_one_in_twenty_changes_is_a_false_discovery_where_many_rows_changed():
    changes = (0.1,) * 10 + (-0.1,) * 10
    false, true = [], []
    for each in simulated(0.01, 0.025, pairs=200, changes=changes):
        moved = np.isin(each, ("FASTER", "SLOWER"))
        false.append(moved[20:].sum() / max(1, moved.sum()))
        true.append(np.mean(each[:10] == "SLOWER") + np.mean(each[10:20] == "FASTER"))
    assert np.mean(false) <= 0.05
    assert np.mean(true) / 2 >= 0.95


def test_the_interval_of_the_common_scale_covers_it():
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(300):
        log_sd = np.hypot(*rng.uniform(0.01, 0.025, (2, N_OPS))) / 1.959964
        log_ratio = rng.normal(SCALE, log_sd)
        log_ratio[:5] += 0.2
        told = compare(log_ratio, log_sd, effect=EFFECT)
        covered.append(abs(told.scale - SCALE) <= 1.959964 * told.scale_sd)
    assert 0.91 <= np.mean(covered) <= 0.99


def test_rows_that_all_changed_are_not_called_scatter():
    rng = np.random.default_rng(4)
    log_sd = np.full(N_OPS, 0.01)
    verdicts = called(rng.normal(0.0, np.hypot(log_sd, 0.3)), log_sd)
    assert np.mean(np.isin(verdicts, ("FASTER", "SLOWER"))) > 0.8
    assert np.mean(verdicts == "SAME") < 0.1


# --- The statistics' parts


@settings(max_examples=50, deadline=None)  # no deadline: a busy machine is no failure
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adjusted_p_values_are_those_of_benjamini_and_hochberg(p: list[float]):
    from scipy.stats import false_discovery_control

    np.testing.assert_allclose(adjusted(np.array(p)), false_discovery_control(p), rtol=1e-12)


@settings(max_examples=50, deadline=None)  # no deadline: a busy machine is no failure
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(1e-4, 2.0)), min_size=1, max_size=40),
    st.floats(0.001, 0.5),
    st.booleans(),
)
def test_any_ratios_give_probabilities_and_a_turned_around_comparison_says_the_opposite(
    rows: list[tuple[float, float]], effect: float, absolute: bool
):
    log_ratio, log_sd = np.array(rows).T
    told = compare(log_ratio, log_sd, effect=effect, absolute=absolute)
    for values in (told.adjusted_p, told.p_same):
        assert ((values >= 0) & (values <= 1 + 1e-9)).all()
    back = compare(-log_ratio, log_sd, effect=effect, absolute=absolute)
    np.testing.assert_allclose(back.change, -told.change, atol=1e-6)
    np.testing.assert_allclose(back.adjusted_p, told.adjusted_p, atol=1e-6)


@pytest.mark.parametrize(
    ("log_ratio", "log_sd"),
    [(np.zeros(3), np.ones(2)), (np.zeros((2, 2)), np.ones((2, 2))), (np.zeros(2), np.zeros(2))],
)
def test_vectors_that_do_not_fit_are_refused(log_ratio: Floats, log_sd: Floats):
    with pytest.raises(ShapeError, match="two equal vectors"):
        compare(log_ratio, log_sd, effect=EFFECT)


# --- Tables


def tables(
    *,
    scale: float = SCALE,
    half: float = 0.01,
    n: int = N_OPS,
    seed: int = 0,
    changes: tuple[float, ...] = (),
    **b: Any,
) -> tuple[Lut, Lut]:
    """Two tables of ops from 0.1 to 10 ms, each value off by what its interval says."""
    rng = np.random.default_rng(seed)
    truth = np.exp(np.linspace(np.log(0.1), np.log(10.0), n))
    moved = truth * np.exp(scale + np.pad(changes, (0, n - len(changes))))
    noisy = [np.exp(rng.normal(0.0, half / 1.959964, n)) for _ in range(2)]
    before = [a_row(i, float(ms), half) for i, ms in enumerate(truth * noisy[0])]
    after = [a_row(i, float(ms), half) for i, ms in enumerate(moved * noisy[1])]
    return a_lut(before, sessions=("s1", "s2")), a_lut(after, **{"sessions": ("s3", "s4"), **b})


def by_op(found: Diff) -> dict[str, str]:
    return {row.op_id: row.verdict for row in found.rows}


def test_a_change_of_one_op_is_told_from_the_scale_common_to_all():
    a, b = tables(changes=(np.log(1.06), -np.log(1.06)), seed=1)
    found = diff(a, b)
    assert found.scale == pytest.approx(np.exp(SCALE), abs=0.003)
    assert found.scale_lo is not None
    assert found.scale_hi is not None
    assert found.scale_lo < np.exp(SCALE) < found.scale_hi
    slower, faster = example_op(0), example_op(1)
    verdicts = by_op(found)
    assert (verdicts[slower.op_id], verdicts[faster.op_id]) == ("SLOWER", "FASTER")
    assert found.count("SAME") >= N_OPS - 4
    (row,) = (row for row in found.rows if row.op_id == slower.op_id)
    assert row.ratio_lo is not None
    assert row.ratio_hi is not None
    assert row.ratio_lo < row.ratio < row.ratio_hi
    assert row.ratio == pytest.approx(1.06, abs=0.02)
    assert (found.same_target, found.absolute, found.differences, found.notes) == (True, False, (), ())


def test_the_verdicts_of_tables_are_those_the_error_rates_were_proved_with():
    a, b = tables(changes=(0.05, -0.05, 0.03, 0.2), half=0.015, seed=2)
    found = diff(a, b)
    half = [
        (before.half_width or 0.0, after.half_width or 0.0) for before, after in zip(a.rows(), b.rows(), strict=True)
    ]
    ratio = np.array([np.log((y.latency_ms or 0) / (x.latency_ms or 0)) for x, y in zip(a, b, strict=True)])
    expected = called(ratio, np.array([np.hypot(x, y) for x, y in half]) / 1.959964)
    assert [row.verdict for row in found.rows] == [str(word) for word in expected]


def test_absolute_leaves_the_common_scale_in_the_rows():
    a, b = tables(scale=0.06)
    assert diff(a, b).count("SAME") >= N_OPS - 2
    found = diff(a, b, absolute=True)
    assert found.absolute
    assert found.count("SLOWER") >= N_OPS - 2
    assert found.scale == pytest.approx(np.exp(0.06), abs=0.003)


def test_a_larger_minimum_effect_asks_for_a_larger_change():
    a, b = tables(changes=(np.log(1.06),), half=0.005)
    op_id = example_op(0).op_id
    assert by_op(diff(a, b))[op_id] == "SLOWER"
    assert by_op(diff(a, b, min_effect=0.10))[op_id] == "SAME"


@pytest.mark.parametrize("min_effect", [0.0, -0.1, 1.0])
def test_a_minimum_effect_is_a_fraction(min_effect: float):
    a, b = tables()
    with pytest.raises(SpecError, match=r"0\.02 is 2 %"):
        diff(a, b, min_effect=min_effect)


def test_a_table_against_itself_is_the_same_everywhere():
    a, _ = tables(half=0.02)
    found = diff(a, a)
    assert found.count("SAME") == N_OPS
    assert found.scale == pytest.approx(1.0)
    assert any("share 2 session(s)" in note for note in found.notes)


def test_without_an_interval_nobody_is_sure():
    a, b = tables()
    rows = [replace(row, latency_lo_ms=None, latency_hi_ms=None) if n < 2 else row for n, row in enumerate(b.rows())]
    silent = {row.op_id for row in rows[:2]}
    found = {row.op_id: row for row in diff(a, a_lut(rows)).rows}
    for op_id in silent:
        assert (found[op_id].verdict, found[op_id].ratio_lo, found[op_id].p_same) == ("UNSURE", None, None)
        assert "no interval below ±50% in B" in found[op_id].note


def test_a_row_that_cannot_be_told_from_its_overhead_says_nothing():
    a, b = tables()
    first = b.rows()[0]
    floor = replace(first, latency_ms=1e-6, latency_lo_ms=1e-6, latency_hi_ms=0.01)
    found = diff(a, a_lut([floor, *b.rows()[1:]]))
    assert by_op(found)[first.op_id] == "UNSURE"


def test_a_wide_row_is_the_same_only_by_the_others_and_says_so_and_a_very_wide_one_never():
    a, b = tables(half=0.01)
    rows = list(b.rows())
    for number, half in ((10, 0.03), (11, 0.12), (12, 0.3)):
        rows[number] = a_row(10_000 + number, 1.0, half)
    before = [*a.rows(), *(a_row(10_000 + number, 1.0) for number in (10, 11, 12))]
    found = {row.op_id: row for row in diff(a_lut(before), a_lut([*rows, *(b.rows()[10:13])])).rows}
    told = [found[example_op(10_000 + number).op_id] for number in (10, 11, 12)]
    assert [(row.verdict, row.borrowed) for row in told] == [("SAME", False), ("SAME", True), ("UNSURE", False)]


def test_few_rows_do_not_say_what_is_common_and_stand_alone():
    a, b = tables(n=MIN_ROWS - 1, scale=0.0, half=0.003)
    found = diff(a, b)
    assert (found.scale, found.moved_share, found.absolute) == (None, None, True)
    assert found.count("SAME") == MIN_ROWS - 1
    assert any(f"only {MIN_ROWS - 1} rows have intervals" in note for note in found.notes)
    a, b = tables(n=MIN_ROWS - 1, scale=0.0, half=0.02)
    assert diff(a, b).count("SAME") == 0, "alone, ±2 % never proves less than 2 %"


def test_tables_of_two_targets_are_compared_as_they_are():
    a, b = tables(scale=-0.5, runtime="litert")
    found = diff(a, b)
    assert (found.same_target, found.absolute) == (False, True)
    assert found.count("FASTER") == N_OPS
    assert "runtime onnxruntime -> litert" in found.differences
    assert found.rank_correlation == pytest.approx(1.0, abs=0.01)


def test_what_changed_about_the_machine_is_named():
    a, b = tables(runtime_version="1.31.1", fingerprint=replace(example_meta().fingerprint, facts=(("kernel", "6.2"),)))
    assert diff(a, b).same_target
    assert diff(a, b).differences == ("onnxruntime 1.20.0 -> 1.31.1", "kernel 6.1 -> 6.2", "model Example 9000 -> -")


def test_rows_of_one_table_only_are_listed_and_failed_ones_count_as_not_there():
    a, b = tables()
    extra = example_op(500)
    gone = a.rows()[3]
    rows = [*(row for row in b.rows() if row.op_id != gone.op_id), failed_row(gone.op), a_row(500, 1.0)]
    found = diff(a, a_lut(rows))
    assert (found.only_in_a, found.only_in_b) == ((gone.op.label(),), (extra.label(),))
    assert len(found.rows) == N_OPS - 1


def test_tables_without_a_common_op_are_refused():
    a, _ = tables()
    with pytest.raises(LutConflict, match="no op in common"):
        diff(a, a_lut([a_row(900, 1.0)]))


def test_a_table_without_latencies_is_refused_by_its_name():
    a, _ = tables()
    failed = a_lut([failed_row(row.op) for row in a.rows()])
    with pytest.raises(LutConflict, match=r"there is no latency in .* to compare; see why: lutbuilder luts show"):
        diff(a, failed)


def test_call_overheads_are_not_compared():
    a, b = tables()
    empty = OpSpec(kind="identity", in_channels=3, out_channels=3, height=8, width=8)
    found = diff(a_lut([*a.rows(), example_row(empty)]), a_lut([*b.rows(), example_row(empty, latency_hi_ms=9.0)]))
    assert len(found.rows) == N_OPS


def test_the_row_a_lookup_takes_is_compared_and_a_change_of_kind_is_said():
    a, b = tables(scale=0.0)
    first = b.rows()[0]
    found = diff(a, a_lut([*b.rows(), replace(first, method="calibrated")]))
    assert [row.note for row in found.rows if row.note] == ["measured in A, calibrated in B"]


def test_a_noisy_table_and_one_of_a_single_session_are_pointed_out():
    a, b = tables(noisy=("L901",), sessions=("s9",))
    assert diff(a, b).notes == (
        "B rests on one session: what differs from session to session is not in its intervals",
        "B is marked noisy (L901)",
    )


# --- From visits to verdicts


def collected(truth: Floats, *, seed: int) -> Lut:
    """A table collected on a simulated machine that drifts, in a session of its own speed."""
    machine = Machine(session_log_scales=(float(np.random.default_rng(seed).normal(0.0, 0.012)),), instance_sigma=0.006)
    seen = simulate(truth, rounds=60, seed=seed, machine=machine, instances=6)
    rows = [
        example_row(
            example_op(int(told.op_id.removeprefix("op"))),
            latency_ms=told.time_ms,
            latency_lo_ms=told.lo_ms,
            latency_hi_ms=told.hi_ms,
        )
        for told in estimate(seen.visits)
    ]
    return a_lut(rows, sessions=(f"s{seed}", f"t{seed}"))


def test_two_collections_on_a_drifting_machine_are_the_same_and_a_slower_op_stands_out():
    truth = log_spread(40)
    changed = truth.copy()
    changed[7] += np.log(1.05)
    same, slower, others = [], [], []
    for seed in range(4):
        before = collected(truth, seed=seed)
        same.append(diff(before, collected(truth, seed=100 + seed)).count("SAME") / 40)
        verdicts = by_op(diff(before, collected(changed, seed=200 + seed)))
        slower.append(verdicts.pop(example_op(7).op_id))
        others += [verdict for verdict in verdicts.values() if verdict in ("FASTER", "SLOWER")]
    assert np.mean(same) >= 0.95
    assert slower == ["SLOWER"] * 4
    assert others == []


# --- The picture


def test_the_picture_is_xml_with_a_point_and_a_word_for_every_row():
    a, b = tables(changes=(0.1, -0.1))
    root = ET.fromstring(diff_svg(diff(a, b)))
    name = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{name}svg"
    assert len(root.findall(f"{name}circle")) == N_OPS
    words = Counter(text.text for text in root.findall(f"{name}text"))
    found = diff(a, b)
    assert {word: words[word] for word in ("FASTER", "SLOWER", "SAME")} == {
        word: found.count(word) for word in ("FASTER", "SLOWER", "SAME")
    }
    width = float(root.attrib["width"])
    assert all(0 <= float(circle.attrib["cx"]) <= width for circle in root.findall(f"{name}circle"))


@pytest.mark.parametrize("scale", [0.0, 0.03, 0.4, 2.0, -3.0])
def test_the_picture_has_a_readable_axis_for_any_ratio(scale: float):
    a, b = tables(scale=scale, runtime="litert")
    root = ET.fromstring(diff_svg(diff(a, b)))
    ticks = [text for text in root.iter() if text.attrib.get("text-anchor") == "middle"]
    places = [float(tick.attrib["x"]) for tick in ticks]
    assert 3 <= len(ticks) <= 20
    assert places == sorted(places)
    assert min(np.diff(places)) > 20, "labels do not cover each other"


def test_the_picture_escapes_what_names_hold():
    a, b = tables()
    odd = replace(b, path=Path("<luts>&/v0001.parquet"))
    assert "&lt;luts&gt;&amp;" in diff_svg(diff(a, odd))
