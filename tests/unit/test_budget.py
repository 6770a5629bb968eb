"""Counts, uniform samples and marginals of the archs within a budget: equal to listing them, and right beyond 2^64."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from lutbuilder import spaces
from lutbuilder.nas import budget as budgets
from lutbuilder.nas import counting
from lutbuilder.nas.budget import AdditiveScore, Budget, Feasible
from lutbuilder.nas.compiled import CompiledSpace, FunctionTable, compile_space
from lutbuilder.op import OpSpec
from lutbuilder.spaces import Assignment, Condition, SearchSpace, Site, Variable
from lutbuilder_agent.errors import Infeasible, ShapeError, SpecError
from tests.small_spaces import every_arch, priced_spaces, small_spaces
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE, GATED, GATED_TABLE, conv

COMPILED = compile_space(EXAMPLE, EXAMPLE_TABLE)
DOUBLED_AND_ODD = FunctionTable(name="energy", cost=lambda op: 2.0 + op.op_id.count("a"))


def rows(archs: NDArray[Any]) -> set[tuple[int, ...]]:
    return set(map(tuple, archs.tolist()))


# --- The worked example


@pytest.mark.parametrize("tick", [0.1, 0.7, 1e-3])
def test_worked_example_count_and_samples_under_5_ms(tick: float) -> None:
    feasible = Feasible(COMPILED, Budget(5.0), tick=tick)
    count = feasible.count()
    assert count.lower <= 5 <= count.upper
    assert count.exact or tick == 0.7
    archs = feasible.sample(np.random.default_rng(0), 4000)
    w, d, k = archs.mean(axis=0)
    assert (w, d, k) == pytest.approx((2 / 5, 1 / 5, 2 / 5), abs=0.03)
    assert len(rows(archs)) == 5


def test_worked_example_marginals() -> None:
    marginals = Feasible(COMPILED, Budget(5.0), tick=0.1).marginals()
    for shares in (marginals.probabilities, marginals.low, marginals.high):
        assert [p.tolist() for p in shares] == [
            pytest.approx([0.6, 0.4]),
            pytest.approx([0.8, 0.2]),
            pytest.approx([0.6, 0.4]),
        ]


@pytest.mark.parametrize(
    ("low", "high", "count"), [(3.0, 7.1, 8), (4.2, 5.0, 3), (5.7, 5.7, 2), (3.01, 3.59, 0), (0.0, math.inf, 8)]
)
def test_worked_example_windows_include_both_limits(low: float, high: float, count: int) -> None:
    assert Feasible(COMPILED, Budget(high, min_cost=low), tick=0.1).count() == budgets.Count(lower=count, upper=count)


def test_call_overhead_counts() -> None:
    compiled = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, call_overhead_ms=0.5))
    assert Feasible(compiled, Budget(5.5), tick=0.1).count().upper == 5


# --- Equal to listing


def table_of(compiled: CompiledSpace, archs: NDArray[Any], draw: st.DataObject) -> Budget:
    """A budget around the cost of one arch, with or without a lower limit."""
    costs = np.sort(compiled.predict(archs))
    costs = costs[np.isfinite(costs)]
    assume(len(costs) > 0)
    low, high = sorted(draw.draw(st.lists(st.sampled_from(costs.tolist()), min_size=2, max_size=2), label="limits"))
    return Budget(high, min_cost=low if draw.draw(st.booleans(), label="window") else -math.inf)


@given(priced_spaces(whole=True), st.data())
@settings(max_examples=60, deadline=None)
def test_whole_ticks_count_list_and_divide_exactly_the_feasible_archs(
    priced: tuple[SearchSpace, FunctionTable], draw: st.DataObject
) -> None:
    space, table = priced
    archs, compiled = every_arch(space), compile_space(space, table)
    budget = table_of(compiled, archs, draw)
    wanted = archs[budget.holds(compiled.predict(archs))]
    feasible = Feasible(compiled, budget, tick=1.0)
    # Limbs of 7 bits: even a small space carries, borrows and compares several of them.
    vars(feasible._grid)["_bits"] = draw.draw(st.sampled_from([feasible._grid._bits, 7]), label="bits")
    assert feasible.count() == budgets.Count(lower=len(wanted), upper=len(wanted))
    listed = feasible.candidates(range(len(wanted)))
    assert len(rows(listed)) == len(listed)
    assert rows(listed) == rows(wanted)
    marginals = feasible.marginals()
    for number, size in enumerate(space.sizes):
        shares = np.bincount(wanted[:, number], minlength=size) / len(wanted)
        for found in (marginals.probabilities, marginals.low, marginals.high):
            assert found[number] == pytest.approx(shares)


@given(priced_spaces(), st.sampled_from([1e-6, 0.013, 0.2, 5.0]), st.data())
@settings(max_examples=60, deadline=None)
def test_real_costs_are_counted_between_bounds_and_sampled_within_the_budget(
    priced: tuple[SearchSpace, FunctionTable], tick: float, draw: st.DataObject
) -> None:
    space, table = priced
    archs, compiled = every_arch(space), compile_space(space, table)
    budget = table_of(compiled, archs, draw)
    wanted = archs[budget.holds(compiled.predict(archs))]
    feasible = Feasible(compiled, budget, tick=tick)
    count = feasible.count()
    assert count.lower <= len(wanted) <= count.upper <= len(archs)
    candidates = feasible.candidates(range(count.upper))
    assert len(rows(candidates)) == count.upper
    assert rows(wanted) <= rows(candidates)
    assert rows(feasible.sample(np.random.default_rng(0), 20)) <= rows(wanted)
    marginals = feasible.marginals()
    for number, size in enumerate(space.sizes):
        shares = np.bincount(wanted[:, number], minlength=size) / len(wanted)
        assert (marginals.low[number] <= shares + 1e-12).all()
        assert (marginals.high[number] >= shares - 1e-12).all()
        assert (marginals.low[number] <= marginals.probabilities[number] + 1e-12).all()
        assert (marginals.high[number] >= marginals.probabilities[number] - 1e-12).all()


@given(priced_spaces(whole=True), st.sampled_from([(1.0, 1.0), (0.5, 3.0), None]), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_several_budgets_hold_together(
    priced: tuple[SearchSpace, FunctionTable], ticks: tuple[float, float] | None, three: bool, draw: st.DataObject
) -> None:
    space, table = priced
    archs, compiled = every_arch(space), compile_space(space, table)
    other = compile_space(space, replace(table, name="other", cost=lambda op: float(int(op.op_id[:3], 16) % 7)))
    third = compile_space(space, replace(table, name="third", cost=lambda op: float(op.out_channels % 3)))
    budget, also = table_of(compiled, archs, draw), [(other, table_of(other, archs, draw))]
    if three:
        also.append((third, table_of(third, archs, draw)))
        ticks = ticks and (*ticks, 1.0)
    held = budget.holds(compiled.predict(archs))
    for costs, further in also:
        held &= further.holds(costs.predict(archs))
    wanted = archs[held]
    feasible = Feasible(compiled, budget, tick=ticks, also=also)
    count = feasible.count()
    assert count.lower <= len(wanted) <= count.upper
    assert count.exact or ticks is None or ticks[:2] != (1.0, 1.0)
    if len(wanted):
        assert feasible.listed is not None
        assert rows(feasible.listed) == rows(wanted)
        draws = feasible.draw(np.random.default_rng(0), 20)
        assert rows(draws.archs) <= rows(wanted)
        return
    with pytest.raises(Infeasible, match="and at most"):
        feasible.sample(np.random.default_rng(0), 1)


@given(small_spaces())
@settings(max_examples=40, deadline=None)
def test_without_a_limit_the_count_is_that_of_the_space(space: SearchSpace) -> None:
    compiled = compile_space(space, FunctionTable(name="free", cost=lambda op: 1.0))
    if space.n_archs():
        count = Feasible(compiled, Budget(math.inf)).count()
        assert count == budgets.Count(lower=space.n_archs(), upper=space.n_archs())
    else:
        with pytest.raises(Infeasible, match="no arch that can run"):
            Feasible(compiled, Budget(math.inf))


# --- Uniform


@pytest.mark.parametrize("tick", [0.02, 0.4, 3.0])
@pytest.mark.parametrize("with_energy", [False, True])
def test_samples_are_uniform_on_the_feasible_archs_at_any_tick(tick: float, with_energy: bool) -> None:
    """Chi-square with a fixed seed; a coarse tick makes rejection take part, repeated costs make shared moves."""
    space = layered(depths=(1, 2), layers=2, stages=2)
    compiled = compile_space(space, ladder(0.31))
    energy = compile_space(space, DOUBLED_AND_ODD)
    archs = every_arch(space)
    costs, joules = compiled.predict(archs), energy.predict(archs)
    budget, second = Budget(float(np.quantile(costs, 0.4))), Budget(float(np.quantile(joules, 0.7)))
    held = budget.holds(costs) & (second.holds(joules) | (not with_energy))
    feasible = Feasible(
        compiled,
        budget,
        tick=(tick, tick * 2) if with_energy else tick,
        also=[(energy, second)] if with_energy else (),
    )
    draws = feasible.draw(np.random.default_rng(5), 30 * int(held.sum()))
    numbers = {row: number for number, row in enumerate(map(tuple, archs[held].tolist()))}
    seen = np.bincount([numbers[row] for row in map(tuple, draws.archs.tolist())], minlength=len(numbers))
    assert stats.chisquare(seen).pvalue > 0.01
    assert len(numbers) > 50
    assert draws.acceptance < 0.9 or tick < 3.0 or with_energy
    assert draws.estimate == pytest.approx(len(numbers), rel=0.1)


def test_samples_are_reproducible_by_seed_and_canonical() -> None:
    space = layered(depths=(2, 3, 4), layers=4, stages=5)
    feasible = Feasible(compile_space(space, ladder(1.0)), Budget(150.0), tick=1.0)
    first, again, other = (feasible.sample(np.random.default_rng(seed), 200) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert space.canonical(first).tolist() == first.tolist()
    assert feasible.sample(np.random.default_rng(0), 0).shape == (0, len(space.sizes))


# --- Beyond 64 bits


def layered(*, depths: tuple[int, ...], layers: int, stages: int, resolutions: int = 1) -> SearchSpace:
    """OFA in small: stages of gated layers, each with a kernel and an expansion; every op another one."""
    variables = [Variable(name="r", values=tuple(range(resolutions)))]
    sites = []
    for stage in range(stages):
        depth = f"d{stage}"
        variables.append(Variable(name=depth, values=depths))
        for layer in range(layers):
            gate = None
            if layer >= depths[0]:
                gate = Condition(scope=(depth,), holds=lambda a, d=depth, n=layer: int(a[d]) > n)
            names = tuple(f"{letter}{stage}_{layer}" for letter in "ke")
            variables += [Variable(name=name, values=(0, 1, 2), active_when=gate) for name in names]

            def op(
                a: Assignment, d: str = depth, n: int = layer, names: tuple[str, ...] = names, s: int = stage
            ) -> OpSpec | None:
                if int(a[d]) <= n:
                    return None
                k, e = (int(a[name]) for name in names)
                return conv(1 + 4 * s + n, 1 + 9 * int(a["r"]) + 3 * k + e)

            sites.append(Site(name=f"s{stage}l{layer}", scope=("r", depth, *names), op=op))
    return SearchSpace(name="layered", variables=tuple(variables), sites=tuple(sites))


def whole_cost(op: OpSpec) -> int:
    return 1 + (op.in_channels * 7 + op.out_channels * 5) % 13


def ladder(unit: float) -> FunctionTable:
    return FunctionTable(name="ladder", cost=lambda op: unit * whole_cost(op))


def polynomial(stage: int, resolution: int) -> list[int]:
    """How many choices of a stage cost 0, 1, 2, ...; the slow way, layer by layer with Python integers."""
    found = [0] * 200
    for depth in (2, 3, 4):
        ways = [1]
        for layer in range(depth):
            costs = [whole_cost(conv(1 + 4 * stage + layer, 1 + 9 * resolution + cell)) for cell in range(9)]
            ways = multiplied(ways, [costs.count(cost) for cost in range(14)])
        found = [one + other for one, other in itertools.zip_longest(found, ways, fillvalue=0)]
    return found


def multiplied(one: list[int], other: list[int]) -> list[int]:
    product = [0] * (len(one) + len(other) - 1)
    for place, ways in enumerate(one):
        if ways:
            for shift, more in enumerate(other):
                product[place + shift] += ways * more
    return product


def test_ofa_in_small_is_counted_exactly_beyond_2_to_the_64() -> None:
    space = layered(depths=(2, 3, 4), layers=4, stages=5, resolutions=2)
    compiled = compile_space(space, ladder(1.0))
    ways = [0]
    for resolution in range(2):
        whole = [1]
        for stage in range(5):
            whole = multiplied(whole, polynomial(stage, resolution))
        ways = [one + other for one, other in itertools.zip_longest(ways, whole, fillvalue=0)]
    assert sum(ways) == space.n_archs() == 2 * 7371**5 > 2**65
    for limit in (30, 77, 120, 180, 300):
        assert Feasible(compiled, Budget(limit), tick=1.0).count().lower == sum(ways[: limit + 1])
    window = Feasible(compiled, Budget(120, min_cost=110), tick=1.0)
    assert window.count() == budgets.Count(lower=sum(ways[110:121]), upper=sum(ways[110:121]))
    archs = window.sample(np.random.default_rng(3), 2000)
    assert np.bincount(compiled.predict(archs).astype(int))[110:] / 2000 == pytest.approx(
        [count / sum(ways[110:121]) for count in ways[110:121]], abs=0.05
    )
    shares = window.marginals().probabilities
    assert [shares[1].tolist(), shares[-1].tolist()] == [
        pytest.approx(np.bincount(archs[:, v], minlength=3) / 2000, abs=0.05) for v in (1, len(space.sizes) - 1)
    ]


@pytest.mark.parametrize("n_variables", [30, 120])
def test_counts_of_hundreds_of_bits_are_exact(n_variables: int) -> None:
    """Variables that cost 0 to 3: coefficients of (1 + x + x^2 + x^3)^n, up to 240 bits; one changes nothing."""
    names = [f"v{number}" for number in range(n_variables)]

    def site(number: int) -> Site:
        return Site(
            name=names[number],
            scope=(names[number],),
            op=lambda a: None if a[names[number]] == 0 else conv(number + 1, int(a[names[number]])),
        )

    space = SearchSpace(
        name="long",
        variables=(
            *(Variable(name=name, values=(0, 1, 2, 3)) for name in names),
            Variable(name="idle", values=tuple(range(7))),
        ),
        sites=tuple(site(number) for number in range(n_variables)),
    )
    compiled = compile_space(space, FunctionTable(name="index", cost=lambda op: float(op.out_channels)))
    ways = [1]
    for _ in range(n_variables):
        ways = multiplied(ways, [1, 1, 1, 1])
    limit = n_variables + 7
    feasible = Feasible(compiled, Budget(limit), tick=1.0)
    assert feasible.count().upper == feasible.count().lower == 7 * sum(ways[: limit + 1])
    archs = feasible.sample(np.random.default_rng(0), 3000)
    assert (compiled.predict(archs) <= limit).all()
    assert archs[:, :-1].mean() == pytest.approx(
        sum(cost * count for cost, count in enumerate(ways[: limit + 1])) / sum(ways[: limit + 1]) / n_variables,
        abs=0.01,
    )
    assert np.bincount(archs[:, -1]) / 3000 == pytest.approx(np.full(7, 1 / 7), abs=0.03)
    assert feasible.marginals().probabilities[-1] == pytest.approx(np.full(7, 1 / 7))


@pytest.mark.parametrize(
    "name", ["proxyless", "fbnet", "ofa_mbv3", "ofa_resnet50", "attentivenas", "apq", "haq", "amc-ladder", "amc-v2"]
)
def test_every_arch_of_a_preset_is_counted_once(name: str) -> None:
    space = spaces.get(name)
    compiled = compile_space(space, FunctionTable(name="uneven", cost=lambda op: 0.1 + int(op.op_id[:4], 16) / 2**17))
    low, high = compiled.min_over(), compiled.max_over()
    every = Feasible(compiled, Budget(math.inf), tick=(high - low) / 1000)
    assert every.count() == budgets.Count(lower=space.n_archs(), upper=space.n_archs())
    some = Feasible(compiled, Budget((low + high) / 2), tick=(high - low) / 1000)
    assert 0 < some.count().lower < some.count().upper < space.n_archs()
    archs = some.sample(np.random.default_rng(0), 100)
    assert some.holds(archs).all()
    assert space.canonical(archs).tolist() == archs.tolist()
    assert space.allowed(archs).all()


def test_archs_of_a_part_of_the_budget_are_drawn_uniformly_from_the_same_tables() -> None:
    space = layered(depths=(1, 2), layers=2, stages=2)
    compiled = compile_space(space, ladder(0.31))
    archs = every_arch(space)
    costs = compiled.predict(archs)
    feasible = Feasible(compiled, Budget(float(np.quantile(costs, 0.8))), tick=0.2)
    part = Budget(float(np.quantile(costs, 0.5)), min_cost=float(np.quantile(costs, 0.45)))
    numbers = feasible.numbers(part)
    assert 0 < numbers.start < numbers.stop < feasible.n_candidates
    wanted = archs[part.holds(costs)]
    assert rows(wanted) <= rows(feasible.candidates(numbers))
    drawn = feasible.draw(
        np.random.default_rng(2), 40 * len(wanted), among=numbers, keep=lambda a: part.holds(compiled.predict(a))
    ).archs
    seen, times = np.unique(drawn, axis=0, return_counts=True)
    assert rows(seen) == rows(wanted)
    assert stats.chisquare(times).pvalue > 0.01
    assert feasible.numbers(Budget(0.1)) == range(0)


# --- What cannot be


def test_impossible_budget_names_the_minimum_and_its_arch() -> None:
    with pytest.raises(
        Infeasible,
        match=r"no arch of 'example' costs at most 2\.9 in latency_ms; archs cost 3 to 7\.1 in latency_ms, "
        r"the cheapest is w=16, d=1, k=3$",
    ):
        Feasible(COMPILED, Budget(2.9))
    with pytest.raises(Infeasible, match=r"at most 9, at least 8 in latency_ms; archs cost 3 to 7\.1"):
        Feasible(COMPILED, Budget(9.0, min_cost=8.0))


def test_the_arch_named_leaves_out_what_is_inactive() -> None:
    with pytest.raises(Infeasible, match=r"the cheapest is d=1, k1=3, b1=4$"):
        Feasible(compile_space(GATED, GATED_TABLE), Budget(1.0))


def test_budgets_that_exclude_each_other_count_0_and_cannot_be_sampled() -> None:
    against = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, cost=lambda op: 10.0 - EXAMPLE_TABLE.cost(op)), "energy_mj")
    feasible = Feasible(COMPILED, Budget(3.0), tick=(0.1, 0.1), also=[(against, Budget(against.min_over()))])
    assert feasible.count() == budgets.Count(lower=0, upper=0)
    for ask in (lambda: feasible.sample(np.random.default_rng(0), 1), feasible.marginals):
        with pytest.raises(
            Infeasible,
            match=r"archs cost .* in latency_ms, the cheapest is w=16, d=1, k=3 \(it costs .* in energy_mj\)",
        ):
            ask()


def test_window_between_two_archs_ends_in_an_error_not_in_a_loop() -> None:
    with pytest.raises(Infeasible, match=r"at most 3\.5, at least 3\.1"):
        Feasible(COMPILED, Budget(3.5, min_cost=3.1), tick=0.1).sample(np.random.default_rng(0), 1)
    coarse = Feasible(COMPILED, Budget(3.5, min_cost=3.1), tick=1.0)
    assert coarse.count().lower == 0 < coarse.count().upper
    with pytest.raises(
        Infeasible, match=r"at least 3\.1 in latency_ms \(near it they cost 3, 3\.6\); archs cost 3 to 7"
    ):
        coarse.sample(np.random.default_rng(0), 1)


def test_an_empty_window_too_large_to_list_names_a_finer_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "LISTABLE", 0)
    coarse = Feasible(COMPILED, Budget(3.5, min_cost=3.1), tick=1.0)
    assert coarse.listed is None
    with pytest.raises(SpecError, match=r"0 of \d+ archs drawn were within the budget.*finer ticks, tick=0.125"):
        coarse.sample(np.random.default_rng(0), 1)
    against = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, cost=lambda op: 10.0 - EXAMPLE_TABLE.cost(op)), "energy_mj")
    monkeypatch.setattr(counting, "_MOST_TICKS", 3)
    both = Feasible(COMPILED, Budget(3.5, min_cost=3.1), also=[(against, Budget(against.max_over()))])
    with pytest.raises(SpecError, match=r"hardly any or no arch keeps all budgets together, raise one"):
        both.sample(np.random.default_rng(0), 1)


def test_a_rare_arch_among_few_candidates_is_drawn_from_a_list() -> None:
    space = layered(depths=(1, 2), layers=2, stages=2)
    compiled = compile_space(space, ladder(0.31))
    costs = np.unique(compiled.predict(every_arch(space)))
    only = Feasible(compiled, Budget(costs[1], min_cost=costs[1]), tick=30.0)
    draws = only.draw(np.random.default_rng(0), 3000)
    wanted = only.holds(every_arch(space)).sum()
    assert draws.acceptance == pytest.approx(wanted / only.n_candidates)
    assert draws.acceptance < 0.01
    assert len(rows(draws.archs)) == wanted
    assert draws.archs.shape == (3000, len(space.sizes))


# --- Ticks that nobody asked for


def test_without_a_tick_the_unit_of_the_column_changes_nothing() -> None:
    space = layered(depths=(2, 3, 4), layers=4, stages=5)
    drawn = []
    for unit in (1e-3, 1.0, 1e6):
        compiled = compile_space(space, ladder(unit))
        feasible = Feasible(compiled, Budget(140.0 * unit, min_cost=100.0 * unit))
        assert feasible.ticks[0] == pytest.approx(0.04 * unit)
        drawn.append(feasible.sample(np.random.default_rng(0), 500).tolist())
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("width", [1e-3, 1e-6, 0.0])
def test_a_narrow_window_high_up_takes_no_larger_tables_and_is_kept(width: float) -> None:
    space = layered(depths=(1, 2), layers=2, stages=2)
    compiled = compile_space(space, FunctionTable(name="uneven", cost=lambda op: 1 + int(op.op_id[:4], 16) / 2**16))
    archs = every_arch(space)
    costs = compiled.predict(archs)
    top = float(np.sort(costs)[-20])
    window = Budget(top, min_cost=top * (1 - width))
    feasible = Feasible(compiled, window)
    assert sum(feasible._grid.bytes) < 20e6
    wanted = archs[window.holds(costs)]
    assert rows(feasible.sample(np.random.default_rng(0), 40 * len(wanted))) == rows(wanted)


def test_ticks_grow_until_the_tables_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_space(layered(depths=(2, 3, 4), layers=4, stages=5), ladder(0.31))
    small = Feasible(compiled, Budget(45.0))
    monkeypatch.setattr(counting, "_FITTING_BYTES", sum(small._grid.bytes) // 20)
    smaller = Feasible(compiled, Budget(45.0))
    assert sum(smaller._grid.bytes) <= sum(small._grid.bytes) // 20
    assert smaller.ticks[0] > 10 * small.ticks[0]
    assert smaller.holds(smaller.sample(np.random.default_rng(0), 100)).all()
    assert smaller.count().lower <= small.count().lower <= small.count().upper <= smaller.count().upper
    monkeypatch.setattr(counting, "_FITTING_BYTES", 1)  # more than one tick a state can never be asked for
    assert Feasible(compiled, Budget(45.0))._grid.longest == 1


@pytest.mark.parametrize("name", ["proxyless", "ofa_mbv3", "ofa_resnet50", "attentivenas", "apq", "haq", "amc-ladder"])
def test_latency_and_energy_are_kept_together_on_every_preset(name: str) -> None:
    space = spaces.get(name)
    ms = compile_space(space, FunctionTable(name="uneven", cost=lambda op: 0.1 + int(op.op_id[:4], 16) / 2**17))
    mj = compile_space(space, FunctionTable(name="energy", cost=lambda op: 0.1 + int(op.op_id[2:6], 16) / 2**17), "mj")
    budgets_ = [Budget(c.min_over() + 0.3 * (c.max_over() - c.min_over())) for c in (ms, mj)]
    both = Feasible(ms, budgets_[0], also=[(mj, budgets_[1])])
    draws = both.draw(np.random.default_rng(0), 200)
    assert both.holds(draws.archs).all()
    assert draws.acceptance > 0.02
    assert len(np.unique(draws.archs, axis=0)) == 200
    count = both.count()
    assert count.lower / 2 <= draws.estimate <= count.upper * 2
    assert 0 < count.upper < space.n_archs()


def test_space_whose_every_arch_fails_is_infeasible() -> None:
    broken = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, runs=lambda op: op.kind != "mbconv"))
    with pytest.raises(Infeasible, match="no arch that can run: mbconv"):
        Feasible(broken, Budget(5.0))


def test_tables_too_large_name_a_tick_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_space(layered(depths=(2, 3, 4), layers=4, stages=5), ladder(1.0))
    monkeypatch.setattr(counting, "MAX_BYTES", 200_000)
    small = Feasible(compiled, Budget(150.0), tick=1e-3)
    with pytest.raises(SpecError, match="take coarser ticks") as caught:
        small.sample(np.random.default_rng(0), 1)
    named = re.search(r"\(tick=([0-9.e-]+)\)", str(caught.value))
    assert named is not None
    assert len(Feasible(compiled, Budget(150.0), tick=float(named[1])).sample(np.random.default_rng(0), 5)) == 5
    with pytest.raises(SpecError, match=r"tick=[0-9.]+, [0-9.]+\)"):
        Feasible(compiled, Budget(150.0), tick=(1e-2, 1e-2), also=[(compiled, Budget(150.0))]).count()


def test_counting_alone_needs_two_tables_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_space(layered(depths=(2, 3, 4), layers=4, stages=5), ladder(1.0))
    whole = Feasible(compiled, Budget(150.0), tick=1.0)
    monkeypatch.setattr(counting, "MAX_BYTES", sum(whole._grid.bytes) - 1)
    lean = Feasible(compiled, Budget(150.0), tick=1.0)
    assert lean.count().exact
    with pytest.raises(SpecError, match="take coarser ticks"):
        lean.marginals()
    monkeypatch.undo()
    assert lean.count() == whole.count()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Budget(math.nan), "a budget goes from min_cost up to max_cost, got -inf to nan"),
        (lambda: Budget(1.0, min_cost=2.0), "got 2 to 1"),
        (lambda: Feasible(COMPILED, Budget(5.0), tick=0.0), "a tick is above 0, got 0"),
        (lambda: Feasible(COMPILED, Budget(5.0), tick=1e-15).count(), "cannot be counted in ticks of 1e-15"),
        (
            lambda: Feasible(COMPILED, Budget(5.0), also=[(compile_space(GATED, GATED_TABLE), Budget(9.0))]),
            "all budgets are of one space, got 'example' and 'gated'",
        ),
        (
            lambda: Feasible(COMPILED, Budget(5.0), tick=0.1, also=[(COMPILED, Budget(5.0))]),
            "2 budgets have a tick each",
        ),
        (
            lambda: Feasible(COMPILED, Budget(5.0), also=[(COMPILED, Budget(5.0))]).numbers(Budget(4.0)),
            "under one budget alone",
        ),
        (lambda: Feasible(COMPILED, Budget(5.0), tick=0.1).candidates([5]), "arch numbers go from 0 to 4"),
        (lambda: Feasible(COMPILED, Budget(5.0)).sample(np.random.default_rng(0), -1), "cannot draw -1"),
    ],
)
def test_nonsense_is_refused(build: Callable[[], object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        build()


@pytest.mark.parametrize(
    ("budget", "binds"), [(Budget(7.1), False), (Budget(7.0), True), (Budget(8.0, min_cost=3.1), True)]
)
def test_a_budget_that_excludes_nothing_does_not_bind(budget: Budget, binds: bool) -> None:
    assert Feasible(COMPILED, budget).binds == binds


def test_limits_hold_to_a_billionth() -> None:
    held = Budget(0.3, min_cost=0.3).holds(np.array([0.1 + 0.2, 0.3, 0.3 + 1e-6, 0.3 - 1e-6, math.inf]))
    assert held.tolist() == [True, True, False, False, False]
    assert Budget(math.inf).holds(np.array([1e9, math.inf])).tolist() == [True, False]


# --- Scores


@given(small_spaces(), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_an_additive_score_is_the_sum_over_active_variables_and_tables(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=size) for size in space.sizes]
    names = tuple(variable.name for variable in space.variables[:2])
    table = rng.normal(size=space.sizes[:2])
    score = AdditiveScore(space=space, values=values, tables=[(names, table)], base=2.0)
    for arch in every_arch(space)[:30]:
        chosen = space.decode(arch)
        slow = 2.0 + table[tuple(arch[:2])]
        for number, variable in enumerate(space.variables):
            gate = variable.active_when
            if gate is None or gate.holds({name: chosen[name] for name in gate.scope}):
                slow += values[number][arch[number]]
        assert score(arch[None]) == pytest.approx([slow])


def test_a_cost_is_a_score_to_be_kept_low() -> None:
    compiled = compile_space(GATED, replace(GATED_TABLE, call_overhead_ms=0.5))
    archs = every_arch(GATED)
    assert AdditiveScore.of_costs(compiled).score(archs) == pytest.approx(-compiled.predict(archs))
    with pytest.raises(SpecError, match="below 0"):
        AdditiveScore.of_costs(compiled, weight=1.0)


@pytest.mark.parametrize(
    ("values", "tables", "said"),
    [
        ([np.zeros(2)] * 2, [], "each of 3 variables, got 2"),
        ([np.zeros(2), np.zeros(3), np.zeros(2)], [], "d has 2 values"),
        ([np.zeros(2), np.full(2, math.nan), np.zeros(2)], [], "d has 2 values"),
        ([np.zeros(2)] * 3, [(("w", "z"), np.zeros((2, 2)))], "variables of space 'example'"),
        ([np.zeros(2)] * 3, [(("w", "k"), np.zeros((2, 3)))], r"is of shape \(2, 2\)"),
        ([np.zeros(2)] * 3, [(("w",), np.array([0.0, math.inf]))], "finite or -inf"),
    ],
)
def test_a_score_that_does_not_fit_the_space_is_refused(values: Any, tables: Any, said: str) -> None:
    with pytest.raises((ShapeError, SpecError), match=said):
        AdditiveScore(space=EXAMPLE, values=values, tables=tables)
