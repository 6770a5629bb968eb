"""Cheapest, dearest and bounds of completions equal listing every arch, for any gates, constraints and failed ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.nas.compiled import CompiledSpace, FunctionTable, compile_space
from lutbuilder.spaces import Assignment, Condition, SearchSpace, Site, Variable
from lutbuilder.spaces.eliminate import Factor, cheapest, eliminate, merged, reduced
from lutbuilder_agent.errors import Infeasible, ShapeError, SpecError, UnknownName
from tests.small_spaces import every_encoding, plain_cost, priced_spaces
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE, GATED, GATED_TABLE, block, conv

Floats = NDArray[np.float64]


def completions(space: SearchSpace, partial: Assignment) -> NDArray[np.int16]:
    """What `encode` gives for every assignment that has the choices of `partial`, the forbidden ones left out."""
    rows = every_encoding(space)
    for name, value in partial.items():
        number = space.positions[name]
        rows = rows[rows[:, number] == space.variables[number].values.index(value)]
    rows = np.unique(space.canonical(rows), axis=0)
    return rows[space.allowed(rows)]


def feasible_costs(space: SearchSpace, table: FunctionTable, archs: NDArray[Any]) -> Floats:
    costs = np.array([plain_cost(space, table, arch) for arch in archs])
    return costs[np.isfinite(costs)] if len(costs) else np.empty(0)


@st.composite
def priced_partials(draw: st.DrawFn) -> tuple[SearchSpace, FunctionTable, Assignment]:
    space, table = draw(priced_spaces())
    names = draw(st.lists(st.sampled_from(list(space.positions)), unique=True))
    return space, table, {n: draw(st.sampled_from(space.variables[space.positions[n]].values)) for n in names}


@given(priced_partials())
@settings(max_examples=150, deadline=None)
def test_bounds_and_their_archs_equal_listing_every_completion(
    drawn: tuple[SearchSpace, FunctionTable, Assignment],
) -> None:
    space, table, partial = drawn
    compiled = compile_space(space, table)
    among = completions(space, partial)
    costs = feasible_costs(space, table, among)
    low, high = costs.min(initial=math.inf), costs.max(initial=-math.inf)
    assert compiled.bounds(partial) == pytest.approx((low, high))
    for find, wanted in ((compiled.cheapest, low), (compiled.dearest, high)):
        if len(costs):
            cost, arch = find(partial)
            assert cost == pytest.approx(wanted)
            assert plain_cost(space, table, arch) == pytest.approx(wanted)
            assert arch.tolist() in among.tolist()
        else:
            with pytest.raises(Infeasible, match=r"no arch .*of space 'small' runs on priced"):
                find(partial)


@given(priced_spaces())
@settings(max_examples=100, deadline=None)
def test_bounds_of_every_prefix_equal_listing_its_completions(priced: tuple[SearchSpace, FunctionTable]) -> None:
    space, table = priced
    compiled = compile_space(space, table)
    rows = every_encoding(space)
    for n_fixed in range(len(space.sizes) + 1):
        prefixes = np.unique(rows[:, :n_fixed], axis=0)
        lows, highs = compiled.completion_bounds(prefixes)
        for prefix, low, high in zip(prefixes, lows, highs, strict=True):
            names = list(space.positions)[:n_fixed]
            partial = {name: int(number) for name, number in zip(names, prefix, strict=True)}
            costs = feasible_costs(space, table, completions(space, partial))
            assert (low, high) == pytest.approx((costs.min(initial=math.inf), costs.max(initial=-math.inf)))


@given(priced_spaces())
@settings(max_examples=60, deadline=None)
def test_bounds_narrow_along_an_arch_and_end_at_its_cost(priced: tuple[SearchSpace, FunctionTable]) -> None:
    space, table = priced
    compiled = compile_space(space, table)
    archs = every_encoding(space)
    bounds = np.array([compiled.completion_bounds(archs, n) for n in range(len(space.sizes) + 1)])
    lows, highs = bounds[:, 0], bounds[:, 1]
    assert (lows[1:] >= lows[:-1] - 1e-9).all()
    assert (highs[1:] <= highs[:-1] + 1e-9).all()
    costs = compiled.predict(space.canonical(archs))
    finite = np.isfinite(costs)
    assert lows[-1] == pytest.approx(costs)
    assert highs[-1][finite] == pytest.approx(costs[finite])
    assert (highs[-1][~finite] == -math.inf).all()


# --- The worked example


@pytest.mark.parametrize(
    ("partial", "low", "high"), [({}, 3.0, 7.1), ({"w": 24}, 4.2, 7.1), ({"k": 5}, 3.6, 7.1)]
)  # fmt: skip  # the page's row
def test_worked_example_cheapest_and_dearest(partial: Assignment, low: float, high: float) -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    cost, arch = compiled.cheapest(partial)
    assert (cost, EXAMPLE.decode(arch)) == (pytest.approx(low), {"w": 16, "d": 1, "k": 3} | dict(partial))
    cost, arch = compiled.dearest(partial)
    assert (cost, EXAMPLE.decode(arch)) == (pytest.approx(high), {"w": 24, "d": 2, "k": 5})


def test_worked_example_prefixes() -> None:
    lows, highs = compile_space(EXAMPLE, EXAMPLE_TABLE).completion_bounds(np.array([[0], [1]], np.int8))
    assert lows.tolist() == pytest.approx([3.0, 4.2])
    assert highs.tolist() == pytest.approx([5.7, 7.1])


# --- Presets too large to list


@pytest.fixture(scope="module", params=["proxyless", "ofa_mbv3", "attentivenas"])
def preset(request: pytest.FixtureRequest) -> CompiledSpace:
    table = FunctionTable(name="by op", cost=lambda op: 1 + int(op.op_id[:6], 16) / 2**24, call_overhead_ms=0.5)
    return compile_space(spaces.get(request.param), table)


def test_no_sample_of_a_preset_is_outside_the_bounds_which_are_attained(preset: CompiledSpace) -> None:
    (low, fastest), (high, slowest) = preset.cheapest(), preset.dearest()
    assert preset.bounds() == pytest.approx((low, high))
    assert preset.predict(np.array([fastest, slowest])) == pytest.approx([low, high])
    costs = preset.predict(preset.space.sample(np.random.default_rng(0), 2000))
    assert low < costs.min() < costs.max() < high


def test_prefix_bounds_of_a_preset_are_those_of_the_same_partial_assignment(preset: CompiledSpace) -> None:
    archs = preset.space.sample(np.random.default_rng(1), 3)
    names = list(preset.space.positions)
    for n_fixed in (0, 1, len(names) // 2, len(names)):
        lows, highs = preset.completion_bounds(archs, n_fixed)
        for arch, low, high in zip(archs, lows, highs, strict=True):
            decoded = preset.space.decode(arch)
            assert preset.bounds({name: decoded[name] for name in names[:n_fixed]}) == pytest.approx((low, high))


# --- Refusals


@pytest.mark.parametrize("find", [CompiledSpace.cheapest, CompiledSpace.dearest, CompiledSpace.bounds])
def test_unknown_variables_and_values_are_named(find: Callable[[CompiledSpace, Assignment], object]) -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    with pytest.raises(UnknownName, match="no variable 'z'"):
        find(compiled, {"z": 1})
    with pytest.raises(SpecError, match="k is one of"):
        find(compiled, {"k": 4})


@pytest.mark.parametrize(
    ("prefixes", "n_fixed"),
    [(np.zeros((2, 4), int), None), (np.zeros((2, 1), int), 2), (np.zeros(3, int), None), (np.zeros((2, 2)), None)],
)
def test_prefixes_of_another_shape_or_type_are_refused(prefixes: NDArray[Any], n_fixed: int | None) -> None:
    with pytest.raises(ShapeError, match="prefixes are integers of shape"):
        compile_space(EXAMPLE, EXAMPLE_TABLE).completion_bounds(prefixes, n_fixed)


def test_prefix_out_of_range_is_named() -> None:
    with pytest.raises(SpecError, match="d is a value number from 0 to 1, got -1"):
        compile_space(EXAMPLE, EXAMPLE_TABLE).completion_bounds(np.array([[0, -1]]))


def test_choices_of_which_no_completion_runs_are_named() -> None:
    compiled = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, runs=lambda op: op != block(24, 5, 2)))
    with pytest.raises(Infeasible, match=r"no arch with \{'w': 24, 'k': 5\} of space 'example' runs on example"):
        compiled.cheapest({"w": 24, "k": 5})
    without_stem = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, runs=lambda op: op.kind != "conv"))
    with pytest.raises(Infeasible, match="no arch of space 'example'"):
        without_stem.dearest()
    assert without_stem.bounds() == (math.inf, -math.inf)


def test_site_that_runs_an_inactive_choice_is_refused() -> None:
    always = replace(GATED.sites[1], op=lambda a: conv(8, 8, kernel=int(a["k2"]), w_bits=int(a["b2"])))
    careless = replace(GATED, sites=(GATED.sites[0], always), constraints=())
    with pytest.raises(SpecError, match="site 'second' of space 'gated' depends on b2 where it is inactive, at d=1"):
        compile_space(careless, GATED_TABLE)
    unasked = Site(name="third", scope=("b2",), op=lambda a: conv(4, 4, w_bits=int(a["b2"])))
    with pytest.raises(SpecError, match="site 'third' of space 'gated' depends on b2 where it is inactive, at d=1"):
        compile_space(replace(GATED, sites=(*GATED.sites, unasked)), GATED_TABLE)


# --- Chains of gates


def test_constraint_on_a_layer_whose_stage_is_gone_does_not_bind() -> None:
    # The third layer exists at depth 2 of a stage that itself exists in tall networks only; kernel 5 is forbidden.
    tall = Condition(scope=("h",), holds=lambda a: a["h"] == 2)
    deep = Condition(scope=("d",), holds=lambda a: a["d"] == 2)
    space = SearchSpace(
        name="chain",
        variables=(
            Variable(name="h", values=(1, 2)),
            Variable(name="d", values=(1, 2), active_when=tall),
            Variable(name="k", values=(5, 3), active_when=deep),
        ),
        sites=(
            Site(
                name="third",
                scope=("h", "d", "k"),
                op=lambda a: None if (a["h"], a["d"]) != (2, 2) else conv(8, 8, kernel=int(a["k"])),
            ),
        ),
        constraints=(Condition(scope=("k",), holds=lambda a: a["k"] == 3),),
    )
    compiled = compile_space(space, replace(GATED_TABLE, cost=lambda op: float(op.kernel)))
    assert space.n_archs() == 3
    assert compiled.bounds({"h": 1, "d": 2, "k": 5}) == (0.0, 0.0)
    assert compiled.bounds({"h": 2, "d": 2, "k": 5}) == (math.inf, -math.inf)
    assert compiled.bounds({"d": 2}) == (0.0, 3.0)


# --- Elimination


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_kept_variables_and_cheapest_assignments_equal_listing(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    scopes = data.draw(
        st.lists(st.lists(st.integers(0, len(sizes) - 1), unique=True, max_size=3), min_size=1, max_size=5)
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    factors = [
        Factor(scope=tuple(scope), values=rng.integers(0, 9, size=[sizes[v] for v in scope])) for scope in scopes
    ]
    everything = np.zeros(sizes)
    for factor in factors:
        spread = np.moveaxis(
            factor.values.reshape(factor.values.shape + (1,) * (len(sizes) - len(factor.scope))),
            range(len(factor.scope)),
            factor.scope,
        ) if factor.scope else factor.values  # fmt: skip  # one expression, one shape
        everything = everything + spread
    lowest, chosen = cheapest(factors)
    full = tuple(chosen.get(v, 0) for v in range(len(sizes)))
    assert lowest == everything.min() == everything[full]
    assert set(chosen) == {v for scope in scopes for v in scope}

    keep = data.draw(st.sets(st.sampled_from(range(len(sizes)))))
    left = reduced(factors, combine=np.add, reduce=np.minimum, keep=keep)
    assert {v for factor in left for v in factor.scope} <= keep
    small = merged(factors)
    assert len(small) <= len(factors)
    for values in np.ndindex(*(sizes[v] for v in sorted(keep))):
        held = dict(zip(sorted(keep), values, strict=True))
        least = everything[tuple(held.get(v, slice(None)) for v in range(len(sizes)))].min()
        assert sum(int(f.values[tuple(held[v] for v in f.scope)]) for f in left) == least
    assert eliminate(small, combine=np.add, reduce=np.minimum) == everything.min()
