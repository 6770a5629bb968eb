"""CompiledSpace: equal to the slow per-op sum, exact bounds, and clear refusals; the worked example's figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.lower import lower
from lutbuilder.lut import Lut, Row, publish
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.op import OpSpec
from lutbuilder.spaces import Assignment, SearchSpace, Site, Variable
from lutbuilder_agent.errors import OpNotInLut, ShapeError, SpecError, UnknownName
from tests.lut_examples import example_meta, example_row, failed_row
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE, GATED, GATED_TABLE, block, conv

PROXYLESS = spaces.get("proxyless")


def uneven_ms(op: OpSpec) -> float:
    """MACs-like costs that differ for every op, so that a swapped cell shows."""
    return (0.01 + lower(op).macs / 1e8) * (0.8 + int(op.op_id[:4], 16) / 2**17)


UNEVEN = FunctionTable(name="uneven", cost=uneven_ms, call_overhead_ms=0.025)


def slow_sum(space: SearchSpace, arch: NDArray[Any]) -> float:
    return sum(uneven_ms(op) for op in space.arch_ops(arch)) + 0.025


def all_archs(space: SearchSpace) -> NDArray[np.int64]:
    return np.array(list(itertools.product(*map(range, space.sizes))))


def one_hot(space: SearchSpace, arch: NDArray[Any]) -> list[NDArray[np.float64]]:
    return [np.eye(size)[number] for size, number in zip(space.sizes, arch, strict=True)]


# --- The worked example


def test_worked_example_costs_of_all_eight_archs() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    costs = compiled.predict(all_archs(EXAMPLE))
    assert np.round(np.sort(costs), 9).tolist() == [3.0, 3.6, 4.2, 4.5, 5.0, 5.7, 5.7, 7.1]
    assert costs.mean() == pytest.approx(4.85)
    assert (costs <= 5.0 + 1e-9).sum() == 5


def test_worked_example_tensors_lookup_and_sensitivity() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    stem, b1, b2 = compiled.sites
    assert (stem.scope, stem.costs.tolist()) == ((0,), [1.0, 1.4])
    assert (b1.scope, b1.costs.tolist()) == ((0, 2), [[2.0, 2.6], [2.8, 3.6]])
    assert (b2.scope, b2.costs.tolist()) == ((1, 2), [[0.0, 0.0], [1.5, 2.1]])
    deepest = EXAMPLE.encode({"w": 24, "d": 2, "k": 5})
    assert compiled.predict(deepest[None])[0] == pytest.approx(7.1)
    even = np.array([0.5, 0.5])
    assert compiled.expected([even, even, np.array([1.0, 0.0])]) == pytest.approx(4.35)
    assert compiled.expected([even, even, np.array([0.0, 1.0])]) == pytest.approx(5.35)


def test_worked_example_expectation() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    even = np.array([0.5, 0.5])
    assert compiled.expected([even, even, np.array([0.25, 0.75])]) == pytest.approx(1.2 + 2.925 + 0.975)


@pytest.mark.parametrize(
    ("partial", "low", "high"), [({}, 3.0, 7.1), ({"w": 24}, 4.2, 7.1), ({"k": 5}, 3.6, 7.1)]
)  # fmt: skip  # the page's row
def test_worked_example_bounds(partial: Assignment, low: float, high: float) -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    assert compiled.min_over(partial) == pytest.approx(low)
    assert compiled.max_over(partial) == pytest.approx(high)


# --- predict


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_predict_equals_the_slow_sum_for_every_integer_type(dtype: type[np.generic]) -> None:
    archs = PROXYLESS.sample(np.random.default_rng(1), 100)
    slow = np.array([slow_sum(PROXYLESS, arch) for arch in archs])
    compiled = compile_space(PROXYLESS, UNEVEN)
    assert np.abs(compiled.predict(archs.astype(dtype)) - slow).max() < 1e-9
    many = np.tile(archs.astype(dtype), (30, 1))  # few archs are looked up otherwise than many
    assert np.abs(compiled.predict(many) - np.tile(slow, 30)).max() < 1e-9


@pytest.mark.parametrize("name", ["proxyless", "attentivenas"])  # 21 variables, and 28
def test_bytes_row_by_row_cost_what_the_same_numbers_cost_otherwise(name: str) -> None:
    space = spaces.get(name)
    compiled = compile_space(space, FunctionTable(name="by op", cost=lambda op: int(op.op_id[:6], 16) / 2**24))
    archs = space.sample(np.random.default_rng(1), 3000)
    expected = compiled.predict(archs.astype(np.int64)).tolist()
    for dtype in (np.int8, np.uint8):
        assert compiled.predict(archs.astype(dtype)).tolist() == expected


@pytest.mark.parametrize(
    "laid_out", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2], lambda a: a[::-1][::-1], lambda a: a[:0]]
)
def test_memory_layout_does_not_matter(laid_out: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    compiled = compile_space(PROXYLESS, UNEVEN)
    archs = PROXYLESS.sample(np.random.default_rng(2), 50).astype(np.int8)
    view = laid_out(archs)
    assert compiled.predict(view).tolist() == compiled.predict(archs)[: len(view)].tolist()


def test_archs_beyond_one_chunk_cost_what_they_cost_alone() -> None:
    compiled = compile_space(PROXYLESS, UNEVEN)
    archs = PROXYLESS.sample(np.random.default_rng(3), 70_000)
    costs = compiled.predict(archs)
    for start in (0, 32_760, 65_530, 69_990):
        assert costs[start : start + 10].tolist() == compiled.predict(archs[start : start + 10]).tolist()


@st.composite
def tabled_spaces(draw: st.DrawFn) -> tuple[SearchSpace, FunctionTable]:
    """Spaces of sites over any scopes, large ones included, with random costs; a tenth of the ops failed."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    names = [f"v{number}" for number in range(len(sizes))]
    seed = draw(st.integers(0, 2**32))

    def site(number: int) -> Site:
        scope = tuple(draw(st.lists(st.sampled_from(names), unique=True, max_size=3)))

        def op(a: Assignment) -> OpSpec | None:
            cell = [int(a[name]) for name in scope]
            return (
                None if sum(cell) % 7 == 1 else conv(number + 1, 1 + int(np.ravel_multi_index(cell, [20] * len(cell))))
            )

        return Site(name=f"site{number}", scope=scope, op=op)

    space = SearchSpace(
        name="tabled",
        variables=tuple(Variable(name=n, values=tuple(range(s))) for n, s in zip(names, sizes, strict=True)),
        sites=tuple(site(number) for number in range(draw(st.integers(1, 4)))),
    )
    table = FunctionTable(
        name="random",
        cost=lambda op: float(np.random.default_rng([seed, op.in_channels, op.out_channels]).random()),
        runs=lambda op: op.out_channels % 10 != 3,
    )
    return space, table


@given(tabled_spaces())
@settings(max_examples=40, deadline=None)
def test_predict_expectation_and_bounds_equal_the_per_op_sum_for_any_scopes(
    tabled: tuple[SearchSpace, FunctionTable],
) -> None:
    space, table = tabled
    compiled = compile_space(space, table)
    archs = space.sample(np.random.default_rng(0), 30)
    slow = [sum(table.cost(op) if table.runs(op) else math.inf for op in space.arch_ops(arch)) for arch in archs]
    assert compiled.predict(archs) == pytest.approx(np.array(slow))
    assert [compiled.expected(one_hot(space, arch)) for arch in archs[:5]] == pytest.approx(slow[:5])
    partial = {name: value for name, value in space.decode(archs[0]).items() if name != "v0"}
    row = np.repeat(archs[:1], space.sizes[0], axis=0)
    row[:, 0] = np.arange(space.sizes[0])
    completions = compiled.predict(row)
    feasible = completions[np.isfinite(completions)]
    assert compiled.min_over(partial) == pytest.approx(feasible.min(initial=math.inf))
    assert compiled.max_over(partial) == pytest.approx(feasible.max(initial=-math.inf))


# --- Infeasible choices


def test_broken_constraint_costs_infinity_where_it_is_active() -> None:
    compiled = compile_space(GATED, GATED_TABLE)
    archs = GATED.canonical(all_archs(GATED))
    assert (np.isfinite(compiled.predict(archs)) == GATED.allowed(archs)).all()
    assert compiled.infeasible == ()  # the table can run all there is


def test_failed_row_costs_infinity_and_is_named() -> None:
    failed = block(24, 5, 2)
    compiled = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, runs=lambda op: op != failed))
    costs = compiled.predict(all_archs(EXAMPLE))
    assert np.isinf(costs).sum() == 2
    assert compiled.infeasible == (failed.label(),)
    assert compiled.max_over() == pytest.approx(5.7)
    assert compiled.min_over({"w": 24, "k": 5}) == math.inf


def test_draws_that_cannot_run_have_no_share_in_the_expectation() -> None:
    compiled = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, runs=lambda op: op != block(24, 5, 2)))
    first, second, even = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.5, 0.5])
    assert compiled.expected([first, even, even]) == pytest.approx(1.0 + 2.3 + 0.9)
    costs = compiled.predict(all_archs(EXAMPLE))
    assert compiled.expected([even, even, even]) == pytest.approx(costs[np.isfinite(costs)].mean())
    assert compiled.expected([second, even, second]) == math.inf


def test_expectation_over_apq_is_finite_and_the_mean_of_its_archs() -> None:
    space = spaces.get("apq")
    compiled = compile_space(space, FunctionTable(name="by op", cost=lambda op: int(op.op_id[:6], 16) / 2**24))
    costs = compiled.predict(space.sample(np.random.default_rng(0), 40_000))
    even = [np.full(size, 1 / size) for size in space.sizes]
    assert compiled.expected(even) == pytest.approx(costs.mean(), abs=4 * costs.std() / 200)


def test_op_that_only_forbidden_assignments_need_may_be_missing() -> None:
    covered = set(GATED.ops())
    compiled = compile_space(GATED, replace(GATED_TABLE, covers=lambda op: op in covered))
    assert np.isfinite(compiled.predict(GATED.sample(np.random.default_rng(0), 50))).all()


# --- Rows


def test_missing_rows_are_all_named_at_once() -> None:
    missing = {block(16, 3, 2), block(32, 5, 1)}
    with pytest.raises(OpNotInLut, match="2 of the 8 ops of space 'example' are not in example@0") as caught:
        compile_space(EXAMPLE, replace(EXAMPLE_TABLE, covers=lambda op: op not in missing))
    assert all(op.label() in str(caught.value) for op in missing)


def test_null_in_a_row_that_ran_is_refused() -> None:
    with pytest.raises(OpNotInLut, match=r"has no energy_mj for 1 ops that ran: conv 3x8x8"):
        compile_space(
            EXAMPLE,
            replace(EXAMPLE_TABLE, cost=lambda op: math.nan if op == conv(3, 16) else 1.0),
            "energy_mj",
        )


@pytest.mark.parametrize(
    ("column", "include", "added"),
    [("latency_ms", True, 0.5), ("p90_ms", True, 0.5), ("latency_ms", False, 0.0), ("energy_mj", True, 0.0)],
)
def test_one_call_overhead_a_network_is_added_to_columns_net_of_it(column: str, include: bool, added: float) -> None:
    table = replace(EXAMPLE_TABLE, call_overhead_ms=0.5)
    compiled = compile_space(EXAMPLE, table, column, include_call_overhead=include)
    assert compiled.call_overhead_ms == added
    assert compiled.min_over() == pytest.approx(3.0 + added)
    assert compiled.predict(np.zeros((1, 3), dtype=int))[0] == pytest.approx(3.0 + added)


def test_table_without_call_overheads_adds_none() -> None:
    assert compile_space(EXAMPLE, EXAMPLE_TABLE).call_overhead_ms == 0.0


def test_provenance_says_which_table_space_and_evidence() -> None:
    provenance = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, version=3, content_hash="abc")).provenance
    assert (provenance.lut, provenance.lut_version, provenance.lut_hash) == ("example", 3, "abc")
    assert (provenance.space, provenance.space_key, provenance.column) == ("example", EXAMPLE.key, "latency_ms")
    assert provenance.evidence == (("modelled", 8),)


def test_costs_laid_end_to_end_come_back_unchanged() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    doubled = compiled.with_costs(compiled.flat * 2, call_overhead_ms=1.0, provenance=compiled.provenance)
    assert doubled.predict(all_archs(EXAMPLE)) == pytest.approx(2 * compiled.predict(all_archs(EXAMPLE)) + 1.0)
    with pytest.raises(ShapeError, match="has 10 site costs"):
        compiled.with_costs(compiled.flat[1:], call_overhead_ms=1.0, provenance=compiled.provenance)


def test_compiled_costs_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        compile_space(EXAMPLE, EXAMPLE_TABLE).sites[0].costs[0] = 0.0


# --- Refusals


@pytest.mark.parametrize("number", [2, -1, 200, 257, 65_536, -65_536])
def test_value_number_out_of_range_is_named_whatever_the_integer_type(number: int) -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64):
        if np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
            for many in (5, 3000):
                archs = np.zeros((many, 3), dtype=dtype)
                archs[3, 1] = number
                with pytest.raises(SpecError, match=f"d is a value number from 0 to 1, got {number}"):
                    compiled.predict(archs)


def test_negative_bytes_are_found_where_a_variable_has_more_values_than_a_byte_says() -> None:
    many = SearchSpace(
        name="many",
        variables=(Variable(name="v", values=tuple(range(300))),),
        sites=(Site(name="s", scope=("v",), op=lambda a: conv(3, 1 + int(a["v"]))),),
    )
    compiled = compile_space(many, FunctionTable(name="by channels", cost=lambda op: float(op.out_channels)))
    for n in (5, 3000):
        archs = np.full((n, 1), 127, np.int8)
        assert compiled.predict(archs).tolist() == [128.0] * n
        archs[3] = -1
        with pytest.raises(SpecError, match="v is a value number from 0 to 299, got -1"):
            compiled.predict(archs)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), dtype=int), np.zeros(3, dtype=int), np.zeros((2, 3))])
def test_archs_of_another_shape_or_type_are_refused(wrong: NDArray[Any]) -> None:
    with pytest.raises(ShapeError, match=r"integers of shape \(N, 3\) for space 'example'"):
        compile_space(EXAMPLE, EXAMPLE_TABLE).predict(wrong)


def test_probability_vector_of_another_length_names_the_variable() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    even = np.array([0.5, 0.5])
    with pytest.raises(ShapeError, match="k has 2 values"):
        compiled.expected([even, even, np.ones(3) / 3])
    with pytest.raises(ShapeError, match="each of 3 variables, got 2"):
        compiled.expected([even, even])


def test_bounds_name_unknown_variables_and_values() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    with pytest.raises(UnknownName, match="no variable 'z'"):
        compiled.min_over({"z": 1})
    with pytest.raises(SpecError, match="k is one of"):
        compiled.max_over({"k": 4})


# --- A real LUT file


def published(folder: Path, rows: list[Row], **meta: Any) -> Lut:
    return publish(rows, example_meta(**meta), folder=folder, base=None)


def row_of(op: OpSpec, **changes: Any) -> Row:
    ms = uneven_ms(op)
    return example_row(op, latency_ms=ms, latency_lo_ms=0.99 * ms, latency_hi_ms=1.01 * ms, cache=None, **changes)


def test_real_lut_predicts_what_its_rows_say(tmp_path: Path) -> None:
    lut = Lut.load(published(tmp_path, [row_of(op, call_overhead_ms=0.025) for op in PROXYLESS.ops()]).path)
    compiled = compile_space(PROXYLESS, lut)
    archs = PROXYLESS.sample(np.random.default_rng(4), 50)
    assert np.abs(compiled.predict(archs) - [slow_sum(PROXYLESS, arch) for arch in archs]).max() < 1e-9
    assert compiled.provenance.evidence == (("measured", 70),)
    assert compiled.provenance.lut_hash == lut.content_hash
    high = compile_space(PROXYLESS, lut, "latency_hi_ms")
    assert high.predict(archs) - 0.025 == pytest.approx(1.01 * (compiled.predict(archs) - 0.025))


def test_failed_row_of_a_real_lut_is_infeasible(tmp_path: Path) -> None:
    ops = PROXYLESS.ops()
    failed = ops[40]
    lut = published(tmp_path, [failed_row(op, cache=None) if op == failed else row_of(op) for op in ops])
    compiled = compile_space(PROXYLESS, lut)
    assert compiled.infeasible == (failed.label(),)
    archs = PROXYLESS.sample(np.random.default_rng(5), 300)
    holds = np.array([failed in PROXYLESS.arch_ops(arch) for arch in archs])
    assert holds.any()
    assert (np.isinf(compiled.predict(archs)) == holds).all()


def test_lut_of_another_batch_size_says_so(tmp_path: Path) -> None:
    lut = published(tmp_path, [row_of(op) for op in PROXYLESS.ops()])
    with pytest.raises(OpNotInLut, match=r"70 of the 70 ops .* measured at batch 1.*lutbuilder collect .*--bs 8"):
        compile_space(spaces.get("proxyless", batch=8), lut)


def test_column_without_values_is_refused(tmp_path: Path) -> None:
    lut = published(tmp_path, [row_of(op) for op in PROXYLESS.ops()])
    with pytest.raises(OpNotInLut, match="has no energy_mj for 70 ops that ran"):
        compile_space(PROXYLESS, lut, "energy_mj")
    with pytest.raises(UnknownName, match="no numeric column 'cost'"):
        compile_space(PROXYLESS, lut, "cost")
