"""Intervals of networks: equal to the sum written out arch by arch, and true to their word on tables of known truth."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.lower import lower
from lutbuilder.lut import Lut, Row, publish
from lutbuilder.nas import uncertainty
from lutbuilder.nas.compiled import CompiledSpace, FunctionTable, compile_space
from lutbuilder.nas.uncertainty import Uncertainty
from lutbuilder.op import OpSpec
from lutbuilder.spaces import Assignment, SearchSpace, Site, Variable
from lutbuilder.stats.drift import fit
from lutbuilder.stats.interval import estimate_from
from lutbuilder.stats.quality import Accuracy, Figure, NetworkResult, ValidationReport
from lutbuilder_agent.errors import OpNotInLut, SpecError
from tests.lut_examples import example_meta, example_row, failed_row
from tests.simulated_visits import Machine, log_spread, simulate
from tests.worked_example import EXAMPLE, EXAMPLE_MS, EXAMPLE_TABLE, block, conv

Floats = NDArray[np.float64]
_Z = 1.959963984540054  # the normal quantile of 97.5 %


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A table of (latency, half its 95 % width) by op, in ms; a NaN: failed, or without an interval."""

    rows: Mapping[OpSpec, tuple[float, float]]
    name: str = "measured"
    version: int = 1
    content_hash: str = ""
    call_overhead_ms: float | None = None
    meta: SimpleNamespace | None = None

    def __contains__(self, op: object) -> bool:
        return op in self.rows

    def column(self, ops: Sequence[OpSpec], name: str) -> Floats:
        if name == "call_overhead_ms":
            return np.full(len(ops), math.nan if self.call_overhead_ms is None else self.call_overhead_ms)
        side = {"latency_ms": 0, "latency_lo_ms": -1, "latency_hi_ms": 1}[name]
        return np.array([self.rows[op][0] + (side * self.rows[op][1] if side else 0.0) for op in ops])

    def texts(self, ops: Sequence[OpSpec], name: str) -> tuple[str | None, ...]:
        if name != "exec_status":
            return ("measured",) * len(ops)
        return tuple("failed" if math.isnan(self.rows[op][0]) else "native" for op in ops)


def written_out(space: SearchSpace, table: Measured, arch: NDArray[Any]) -> tuple[float, float]:
    """The sum over the ops of one arch, and half its 95 % width: n uses of a row count n-fold, rows are independent."""
    uses = Counter(space.arch_ops(arch))
    mid = sum(n * table.rows[op][0] for op, n in uses.items())
    return mid, math.sqrt(sum((n * table.rows[op][1]) ** 2 for op, n in uses.items()))


def assert_as_written_out(space: SearchSpace, table: Measured, archs: NDArray[Any]) -> None:
    mid, lo, hi = Uncertainty.of(table, space).predict(archs)
    expected = np.array([written_out(space, table, arch) for arch in archs]).reshape(-1, 2)
    np.testing.assert_allclose(mid, expected[:, 0], rtol=1e-12)
    np.testing.assert_allclose(hi - mid, expected[:, 1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(lo, np.maximum(mid - expected[:, 1], 0.0), rtol=1e-9, atol=1e-9)


# --- Equal to the sum written out


def _site(number: int, scope: tuple[str, ...], chosen: Mapping[tuple[int, ...], OpSpec | None]) -> Site:
    def op(a: Assignment) -> OpSpec | None:
        return chosen[tuple(int(a[name]) for name in scope)]

    return Site(name=f"site{number}", scope=scope, op=op)


@st.composite
def sharing_spaces(draw: st.DrawFn) -> SearchSpace:
    """Any small space whose sites draw their ops from the same four, so that rows are used several times."""
    sizes = {f"v{number}": draw(st.integers(1, 3)) for number in range(draw(st.integers(1, 4)))}
    ops = st.sampled_from([None, *(conv(channels, 8) for channels in range(1, 5))])

    def site(number: int) -> Site:
        scope = tuple(draw(st.lists(st.sampled_from(list(sizes)), unique=True, max_size=3)))
        cells = itertools.product(*(range(sizes[name]) for name in scope))
        return _site(number, scope, {cell: draw(ops) for cell in cells})

    return SearchSpace(
        name="sharing",
        variables=tuple(Variable(name=name, values=tuple(range(size))) for name, size in sizes.items()),
        sites=tuple(site(number) for number in range(draw(st.integers(1, 6)))),
    )


def a_table(space: SearchSpace, seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    return Measured(rows={op: (float(rng.uniform(0.1, 1.0)), float(rng.uniform(0.0, 0.2))) for op in space.ops()})


@settings(max_examples=60)
@given(space=sharing_spaces(), seed=st.integers(0, 2**16), pair_cells=st.sampled_from([0, 6, 1 << 14]))
def test_width_equals_the_sum_over_rows_with_their_multiplicity(space: SearchSpace, seed: int, pair_cells: int) -> None:
    """Pairs of sites as tables, and compared arch by arch where a table would be too large."""
    archs = np.array(list(itertools.product(*map(range, space.sizes))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "_PAIR_CELLS", pair_cells)
        assert_as_written_out(space, a_table(space, seed), archs)


@pytest.mark.parametrize("name", ["proxyless", "ofa_mbv3-w1.0", "attentivenas", "haq", "amc-ladder"])
def test_presets_are_as_written_out(name: str) -> None:
    space = spaces.get(name)
    assert_as_written_out(space, a_table(space, 1), space.sample(np.random.default_rng(0), 60))


def test_a_row_used_three_times_counts_threefold() -> None:
    twice = _site(1, (), {(): conv(3, 8)}), _site(2, (), {(): conv(3, 8)})
    space = SearchSpace(
        name="thrice",
        variables=(Variable(name="v0", values=(0, 1)),),
        sites=(*twice, _site(3, ("v0",), {(0,): conv(3, 8), (1,): conv(4, 8)})),
    )
    table = Measured(rows={conv(3, 8): (1.0, 0.1), conv(4, 8): (1.0, 0.1)})
    mid, lo, hi = Uncertainty.of(table, space).predict(np.array([[0], [1]]))
    assert mid.tolist() == [3.0, 3.0]
    assert (hi - mid).tolist() == pytest.approx([0.3, math.hypot(0.2, 0.1)])
    assert (mid - lo).tolist() == pytest.approx([0.3, math.hypot(0.2, 0.1)])


def test_the_longer_side_of_an_uneven_interval_counts(tmp_path: Path) -> None:
    lut = published(tmp_path, {conv(3, 16): {"latency_ms": 1.0, "latency_lo_ms": 0.98, "latency_hi_ms": 1.05}})
    mid, _, hi = Uncertainty.of(lut, EXAMPLE).predict(EXAMPLE.encode({"w": 16, "d": 1, "k": 3})[None])
    assert hi - mid == pytest.approx([math.hypot(0.05, 0.01)])


def test_an_arch_that_cannot_run_is_infinite_and_never_below() -> None:
    ms = {op: (1.0, 0.1) for op in EXAMPLE.ops()}
    table = Measured(rows={**ms, block(32, 5, 1): (math.nan, math.nan)})
    told = Uncertainty.of(table, EXAMPLE, common=0.05)
    archs = np.array([EXAMPLE.encode({"w": 16, "d": 2, "k": k}) for k in (5, 3)])
    assert [ends[0] for ends in told.predict(archs)] == [math.inf] * 3
    assert told.surely_below(archs, 1e9).tolist() == [False, True]


# --- Rows without an interval


def test_rows_without_an_interval_are_named() -> None:
    table = Measured(rows={op: (1.0, math.nan if op.kind == "conv" else 0.1) for op in EXAMPLE.ops()})
    with pytest.raises(OpNotInLut, match=r"no interval of latency_ms for 2 of the 8 ops") as raised:
        compile_space(EXAMPLE, table).predict(np.array([[0, 0, 0]]), return_interval=True)
    assert conv(3, 16).label() in str(raised.value)
    assert "Uncertainty.of(lut, space, assumed_half_width=0.05)" in str(raised.value)


def test_an_assumed_width_is_relative_and_says_for_which_ops() -> None:
    table = Measured(rows={op: (2.0, math.nan if op.kind == "conv" else 0.1) for op in EXAMPLE.ops()})
    told = Uncertainty.of(table, EXAMPLE, assumed_half_width=0.05)
    assert told.assumed == (conv(3, 16), conv(3, 24))
    mid, _, hi = told.predict(np.array([[0, 0, 0]]))
    assert hi - mid == pytest.approx([math.hypot(2.0 * 0.05, 0.1)])


def test_imported_rows_have_the_width_they_are_given_and_no_other(tmp_path: Path) -> None:
    rows = [Row.of(op, latency_ms=1.0, evidence="imported") for op in EXAMPLE.ops()]
    lut = publish(rows, example_meta(), folder=tmp_path)
    exact = Uncertainty.of(lut, EXAMPLE, assumed_half_width=0.0)
    assert exact.assumed == EXAMPLE.ops()
    archs = EXAMPLE.sample(np.random.default_rng(0), 4)
    mid, lo, hi = exact.predict(archs)
    assert lo.tolist() == mid.tolist() == hi.tolist() == compile_space(EXAMPLE, lut).predict(archs).tolist()
    within = Uncertainty.of(lut, EXAMPLE, assumed_half_width=0.0, common=0.1).predict(archs)
    np.testing.assert_allclose(within.hi, 1.1 * within.mid)


def test_only_latency_has_intervals_of_its_own(tmp_path: Path) -> None:
    lut = published(tmp_path, {op: {"energy_mj": 3.0} for op in EXAMPLE.ops()}, validation=report(np.ones(9)))
    with pytest.raises(OpNotInLut, match="no interval of energy_mj for 8 of the 8 ops"):
        Uncertainty.of(lut, EXAMPLE, "energy_mj")
    told = Uncertainty.of(lut, EXAMPLE, "energy_mj", assumed_half_width=0.02)
    assert told.common == 0.0
    assert told.predict(np.array([[0, 0, 0]])).hi == pytest.approx([6.0 + math.hypot(0.06, 0.06)])


def test_a_function_is_exact() -> None:
    mid, lo, hi = compile_space(EXAMPLE, EXAMPLE_TABLE).predict(np.array([[1, 1, 1]]), return_interval=True)
    assert (mid.tolist(), lo.tolist()) == (hi.tolist(), hi.tolist())


# --- What a validation adds


def report(ratios: Floats, *, truth_noise: float | None = None, calibrated: Floats | None = None) -> ValidationReport:
    """A validation whose networks were predicted as 1 ms and measured as `ratios` ms; nobody reads the rest."""
    figure = Figure(value=0.0, lo=0.0, hi=0.0)
    errors = Accuracy(
        n=len(ratios), mape=figure, rmspe=figure, bias=figure, within_5=figure, within_10=figure, spearman=figure,
        kendall=figure, worst=0.0,
    )  # fmt: skip  # figures nobody reads
    networks = [
        NetworkResult(
            op_id=f"net{number}", group="random", measured_ms=float(ratio), predicted_ms=1.0, undrifted_ms=None, macs=1,
            n_ops=9, n_visits=9, n_instances=3, test_retest=None,
            calibrated_ms=None if calibrated is None else float(calibrated[number]),
        )
        for number, ratio in enumerate(ratios)
    ]  # fmt: skip  # figures nobody reads
    return ValidationReport(
        lut_sum=errors, undrifted=None, published=None, flops_linear=errors, depth_linear=errors, deciles=(),
        test_retest_floor=None, instance_floor=None, op_instance_sd=None, session_scale=None, networks_sha256="",
        rounds=9, wall_s=9.0, timed_fraction=0.9, networks=tuple(networks), truth_noise=truth_noise,
    )  # fmt: skip  # figures nobody reads


def published(
    folder: Path,
    changes: Mapping[OpSpec, Mapping[str, Any]],
    *,
    validation: ValidationReport | None = None,
    **all_: Any,
) -> Lut:
    """A table of EXAMPLE: 1 ms +- 1 % an op, no call overhead."""
    rows = [example_row(op, **{"call_overhead_ms": 0.0, **all_, **changes.get(op, {})}) for op in EXAMPLE.ops()]
    body = None if validation is None else validation.to_json()
    return publish(rows, example_meta(validation=body), folder=folder)


def test_a_validation_adds_the_error_that_rows_and_timing_noise_do_not_explain(tmp_path: Path) -> None:
    ratios = 1.0 + 0.05 * np.resize([1.0, -1.0], 2000)  # so many networks that the t quantile is the normal one
    noise_sd = 0.02
    validation = report(ratios, truth_noise=noise_sd * math.sqrt(2 / math.pi))
    told = compile_space(EXAMPLE, published(tmp_path, {}, validation=validation)).uncertainty
    # Two or three rows of 1 ms +- 0.01 ms a network explain 0.3 % to 0.4 %.
    assert told.common / _Z == pytest.approx(math.sqrt(0.05**2 - noise_sd**2), rel=0.01)
    mid, _, hi = told.predict(EXAMPLE.encode({"w": 16, "d": 1, "k": 3})[None])
    assert hi - mid == pytest.approx([math.hypot(0.01 * math.sqrt(2), 2.0 * told.common)])


def test_few_networks_say_less(tmp_path: Path) -> None:
    ratios = 1.0 + 0.05 * np.resize([1.0, -1.0], 2000)
    common = [uncertainty.unexplained(ratios[:n], known_sd=0.0) for n in (4, 10, 2000)]
    assert common == pytest.approx([0.05 * 2.776, 0.05 * 2.228, 0.05 * 1.961], rel=1e-3)


def test_a_validation_never_narrows_an_interval(tmp_path: Path) -> None:
    lut = published(tmp_path, {}, validation=report(np.full(40, 1.0 + 1e-4)))
    assert compile_space(EXAMPLE, lut).uncertainty.common == 0.0


def test_calibrated_rows_are_judged_as_calibrated(tmp_path: Path) -> None:
    ratios = np.full(40, 1.2)
    validation = report(ratios, calibrated=ratios / (1.0 + 0.03 * np.resize([1.0, -1.0], 40)))
    by_method = {
        method: compile_space(EXAMPLE, published(tmp_path / method, {}, validation=validation, method=method))
        for method in ("context", "calibrated")
    }
    common = {method: compiled.uncertainty.common for method, compiled in by_method.items()}
    assert common["context"] == pytest.approx(0.2 * 2.021, rel=0.01)
    assert common["calibrated"] == pytest.approx(0.03 * 2.021, rel=0.05)


def test_the_common_part_may_be_given(tmp_path: Path) -> None:
    lut = published(tmp_path, {}, validation=report(np.full(40, 1.5)))
    assert Uncertainty.of(lut, EXAMPLE, common=0.02).common == 0.02


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_widths_must_be_finite_and_not_negative(wrong: float) -> None:
    with pytest.raises(SpecError, match="assumed_half_width is relative"):
        Uncertainty.of(EXAMPLE_TABLE, EXAMPLE, assumed_half_width=wrong)
    with pytest.raises(SpecError, match="common is relative"):
        Uncertainty.of(EXAMPLE_TABLE, EXAMPLE, common=wrong)


# --- Filtering


def test_more_confidence_keeps_fewer_and_one_half_keeps_what_predict_says() -> None:
    space = spaces.get("proxyless")
    told = Uncertainty.of(a_table(space, 2), space)
    archs = space.sample(np.random.default_rng(0), 2000)
    limit = float(np.median(told.compiled.predict(archs)))
    kept = [told.surely_below(archs, limit, confidence=confidence) for confidence in (0.5, 0.8, 0.95, 0.999)]
    assert kept[0].tolist() == (told.compiled.predict(archs) <= limit).tolist()
    for wider, narrower in itertools.pairwise(kept):
        assert narrower.sum() < wider.sum()
        assert (wider | ~narrower).all()
    # One-sided 95 % is the upper end of the two-sided interval of 90 %.
    assert kept[2].tolist() == (told.predict(archs, confidence=0.9).hi <= limit).tolist()


@pytest.mark.parametrize(
    ("limit", "confidence"), [(0.0, 0.95), (math.inf, 0.95), (math.nan, 0.95), (1.0, 1.0), (1.0, 0.4)]
)
def test_a_filter_refuses_limits_and_confidences_that_mean_nothing(limit: float, confidence: float) -> None:
    with pytest.raises(SpecError, match=r"limit must be|confidence is"):
        Uncertainty.of(EXAMPLE_TABLE, EXAMPLE).surely_below(np.array([[0, 0, 0]]), limit, confidence=confidence)


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_an_interval_of_no_or_full_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(SpecError, match="confidence is between 0 and 1"):
        Uncertainty.of(EXAMPLE_TABLE, EXAMPLE).predict(np.array([[0, 0, 0]]), confidence=confidence)


# --- Coverage on tables of known truth

LAYERS = SearchSpace(
    name="layers",
    variables=tuple(Variable(name=f"k{number}", values=(0, 1, 2, 3)) for number in range(8)),
    sites=tuple(
        _site(
            number, (f"k{number}",), {(k,): conv(1 + number // 4, 8, kernel=2 * k + 1) if k else None for k in range(4)}
        )
        for number in range(8)
    ),
)  # two stages of four layers that share their rows, as in every preset
TRUE_MS = {op: 0.1 + lower(op).macs / 1e5 for op in LAYERS.ops()}
TRUTH = compile_space(LAYERS, FunctionTable(name="truth", cost=TRUE_MS.__getitem__))


def measured_once(rng: np.random.Generator, sd: float) -> Measured:
    """A table each of whose rows is off by its own relative error, of which its interval knows the size."""
    seen = {op: ms * (1.0 + sd * rng.standard_normal()) for op, ms in TRUE_MS.items()}
    return Measured(rows={op: (ms, _Z * sd * ms) for op, ms in seen.items()})


def runs(rng: np.random.Generator, n: int) -> NDArray[np.int16]:
    archs = LAYERS.sample(rng, 2 * n)
    return archs[archs.any(axis=1)][:n]


def test_intervals_cover_where_rows_are_all_that_is_off() -> None:
    rng = np.random.default_rng(1)
    inside, below = [], []
    for _ in range(400):
        told = Uncertainty.of(measured_once(rng, 0.03), LAYERS)
        archs = runs(rng, 10)
        truth = TRUTH.predict(archs)
        _, lo, hi = told.predict(archs)
        inside.append(np.mean((lo <= truth) & (truth <= hi)))
        below.append(np.mean(truth <= told.predict(archs, confidence=0.9).hi))
    assert 0.93 <= np.mean(inside) <= 0.98
    assert 0.93 <= np.mean(below) <= 0.98  # what `surely_below` at 0.95 rests on


@pytest.mark.parametrize(
    ("rows_sd", "bias_sd", "scatter_sd"), [(0.02, 0.0, 0.01), (0.02, 0.01, 0.01), (0.01, 0.0, 0.02), (0.01, 0.01, 0.02)]
)
def test_intervals_cover_where_a_validation_measured_what_rows_do_not_know(
    rows_sd: float, bias_sd: float, scatter_sd: float
) -> None:
    """Networks are off by a bias that a table has, and each by its own; 40 networks, timed with noise, say how far."""
    assert 0.93 <= covered_after_validation(rows_sd, bias_sd, scatter_sd) <= 0.98


@pytest.mark.parametrize(("rows_sd", "bias_sd"), [(0.03, 0.0), (0.01, 0.03)], ids=["rows_alone", "bias_alone"])
def test_intervals_cover_more_than_they_say_where_rows_or_a_bias_are_all_that_is_off(
    rows_sd: float, bias_sd: float
) -> None:
    """What rows got wrong shows in the validation too, and the sign of a bias is not used: never too narrow."""
    assert covered_after_validation(rows_sd, bias_sd, 0.0) >= 0.95


def covered_after_validation(rows_sd: float, bias_sd: float, scatter_sd: float) -> float:
    """Share of networks inside their interval, over 120 tables, each validated on 40 other networks."""
    rng = np.random.default_rng(2)
    noise_sd = 0.005
    inside = []
    for _ in range(120):
        table = measured_once(rng, rows_sd)
        seen = compile_space(LAYERS, table)
        bias = 1.0 + bias_sd * rng.standard_normal()

        def networks(n: int, bias: float = bias) -> tuple[NDArray[np.int16], Floats]:
            archs = runs(rng, n)
            return archs, TRUTH.predict(archs) * (bias + scatter_sd * rng.standard_normal(len(archs)))

        archs, truth = networks(40)
        ratios = truth * (1.0 + noise_sd * rng.standard_normal(40)) / seen.predict(archs)
        told = report(ratios, truth_noise=noise_sd * math.sqrt(2 / math.pi))
        meta = SimpleNamespace(validation=told.to_json())
        archs, truth = networks(20)
        _, lo, hi = Uncertainty.about(seen, Measured(rows=table.rows, meta=meta)).predict(archs)
        inside.append(np.mean((lo <= truth) & (truth <= hi)))
    return float(np.mean(inside))


def test_intervals_of_estimated_rows_cover_networks() -> None:
    """From visits of a drifting machine to rows, their intervals, and networks of eight of them."""
    ops = [conv(1 + number, 8) for number in range(24)]
    space = SearchSpace(
        name="estimated",
        variables=tuple(Variable(name=f"v{number}", values=tuple(range(6))) for number in range(8)),
        sites=tuple(
            _site(number, (f"v{number}",), {(k,): ops[6 * (number // 2) + k] for k in range(6)}) for number in range(8)
        ),
    )
    rng = np.random.default_rng(3)
    inside = []
    for seed in range(60):
        seen = simulate(log_spread(24), rounds=24, seed=seed, machine=Machine())
        drift = fit(seen.visits)
        rows = {}
        for op, each in zip(ops, estimate_from(seen.visits, drift), strict=True):
            assert each.hi_ms is not None
            rows[op] = (each.time_ms, each.hi_ms - each.time_ms)
        log_ms = seen.truth + np.mean(drift.theta - seen.truth) - math.log(1e6)  # at the campaign's own scale
        truth = FunctionTable(name="truth", cost=dict(zip(ops, np.exp(log_ms).tolist(), strict=True)).__getitem__)
        archs = space.sample(rng, 50)
        _, lo, hi = Uncertainty.of(Measured(rows=rows), space).predict(archs)
        true_ms = compile_space(space, truth).predict(archs)
        inside.append(np.mean((lo <= true_ms) & (true_ms <= hi)))
    assert 0.93 <= np.mean(inside) <= 0.98


# --- Where it hangs together


def test_the_compiled_space_gives_the_same_interval() -> None:
    table = a_table(EXAMPLE, 3)
    archs = EXAMPLE.sample(np.random.default_rng(0), 5)
    mid, lo, hi = compile_space(EXAMPLE, table).predict(archs, return_interval=True)
    expected = Uncertainty.of(table, EXAMPLE).predict(archs)
    assert [ends.tolist() for ends in (mid, lo, hi)] == [ends.tolist() for ends in expected]
    assert mid.tolist() == compile_space(EXAMPLE, table).predict(archs).tolist()


def test_costs_loaded_with_a_state_have_no_intervals() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    loaded: CompiledSpace = compiled.with_costs(
        compiled.flat * 2.0, call_overhead_ms=0.0, provenance=compiled.provenance
    )
    with pytest.raises(SpecError, match=r"their table has: Uncertainty\.of"):
        loaded.predict(np.array([[0, 0, 0]]), return_interval=True)


def test_a_failed_row_needs_no_interval(tmp_path: Path) -> None:
    rows = [example_row(op) if op != block(32, 5, 1) else failed_row(op) for op in EXAMPLE_MS]
    lut = publish(rows, example_meta(), folder=tmp_path)
    assert compile_space(EXAMPLE, lut).predict(np.array([[0, 1, 1]]), return_interval=True).hi.tolist() == [math.inf]


def test_intervals_need_neither_torch_nor_a_table_reader(fresh_python: Callable[[str], str]) -> None:
    code = (
        "import sys, lutbuilder.nas.uncertainty; print([m for m in ('torch', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    assert fresh_python(code) == "[]"
