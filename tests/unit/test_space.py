"""SearchSpace: coverage, counts, canonical encodings, constraints; the worked example's figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.op import OpSpec
from lutbuilder.spaces import Assignment, Condition, SearchSpace, Site, Variable
from lutbuilder.spaces.eliminate import Factor, eliminate
from lutbuilder.spaces.shapes import make_divisible, strided
from lutbuilder_agent.errors import ShapeError, SpecError, UnknownName
from tests.worked_example import EXAMPLE, EXAMPLE_MS, GATED, conv


def every_encoding(space: SearchSpace) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(list(itertools.product(*map(range, space.sizes))))


def brute_force_archs(space: SearchSpace) -> set[tuple[int, ...]]:
    rows = space.canonical(every_encoding(space))
    return {tuple(row) for row in rows[space.allowed(rows)].tolist()}


@st.composite
def any_spaces(draw: st.DrawFn) -> SearchSpace:
    """Small spaces with any gates and constraints over any scopes, chains of gates included."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    names = [f"v{number}" for number in range(len(sizes))]

    def condition(candidates: list[str]) -> Condition:
        scope = tuple(draw(st.lists(st.sampled_from(candidates), unique=True, min_size=1, max_size=3)))
        shape = [sizes[names.index(name)] for name in scope]
        truth = draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
        table = np.array(truth).reshape(shape)
        return Condition(scope=scope, holds=lambda a: bool(table[tuple(int(a[name]) for name in scope)]))

    variables = tuple(
        Variable(
            name=name,
            values=tuple(range(size)),
            active_when=condition(names[:number]) if number and draw(st.booleans()) else None,
        )
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    )
    constraints = tuple(condition(names) for _ in range(draw(st.integers(0, 2))))
    sites = (Site(name="stem", scope=(), op=lambda a: conv(3, 8)),)
    return SearchSpace(name="any", variables=variables, sites=sites, constraints=constraints)


# --- The worked example


def test_worked_example_has_8_ops_and_8_archs() -> None:
    assert set(EXAMPLE.ops()) == set(EXAMPLE_MS)
    assert len(EXAMPLE.ops()) == 8
    assert EXAMPLE.n_archs() == 8


def test_arch_ops_run_in_site_order_and_leave_out_what_does_not_run() -> None:
    deep = EXAMPLE.arch_ops(EXAMPLE.encode({"w": 24, "d": 2, "k": 5}))
    assert [round(EXAMPLE_MS[op], 6) for op in deep] == [1.4, 3.6, 2.1]
    shallow = EXAMPLE.arch_ops(EXAMPLE.encode({"w": 24, "d": 1, "k": 5}))
    assert [op.label() for op in shallow] == [op.label() for op in deep[:2]]


# --- Canonical encodings and counts


def test_inactive_variables_are_pinned_so_that_one_network_has_one_encoding() -> None:
    shallow = {tuple(row) for row in GATED.canonical(every_encoding(GATED)).tolist() if row[0] == 0}
    assert shallow == {(0, k1, b1, 0, 0) for k1 in (0, 1) for b1 in (0, 1)}


def test_inactive_variables_may_be_left_out_of_an_assignment() -> None:
    assert GATED.encode({"d": 1, "k1": 7, "b1": 8}).tolist() == [0, 1, 0, 0, 0]
    with pytest.raises(SpecError, match="k2 is active here and needs a value"):
        GATED.encode({"d": 2, "k1": 7, "b1": 8})


def test_constraint_is_ignored_where_its_variables_are_inactive() -> None:
    # The pinned values of the second layer, 7 x 7 in 4 bits, would break it.
    assert GATED.allowed(GATED.encode({"d": 1, "k1": 3, "b1": 4})[None]).all()
    assert not GATED.allowed(GATED.encode({"d": 2, "k1": 3, "b1": 4, "k2": 7, "b2": 4})[None]).any()


def test_count_with_gates_and_constraints_is_the_number_of_different_networks() -> None:
    assert GATED.n_archs() == 3 + 3 * 3 == len(brute_force_archs(GATED))


def test_coverage_leaves_out_what_a_constraint_forbids() -> None:
    assert len(GATED.ops()) == 6
    assert not [op for op in GATED.ops() if op.kernel == 7 and op.w_bits == 4]


def deep_enough(depth: str, layer: int) -> Condition:
    return Condition(scope=(depth,), holds=lambda a: layer <= int(a[depth]))


def test_ofa_depth_gates_count_exactly_beyond_64_bits() -> None:
    variables: list[Variable] = []
    for stage in range(5):
        depth = f"d{stage}"
        variables.append(Variable(name=depth, values=(2, 3, 4)))
        for layer in (1, 2, 3, 4):
            gate = deep_enough(depth, layer) if layer > 2 else None
            variables.append(Variable(name=f"k{stage}.{layer}", values=(3, 5, 7), active_when=gate))
            variables.append(Variable(name=f"e{stage}.{layer}", values=(3, 4, 6), active_when=gate))
    space = replace(EXAMPLE, variables=(*EXAMPLE.variables, *variables))
    assert space.n_archs() == 8 * (9**2 + 9**3 + 9**4) ** 5 == 8 * 21_758_655_492_572_485_851


@given(any_spaces())
@settings(max_examples=60, deadline=None)
def test_count_equals_listing_for_any_gates_and_constraints(space: SearchSpace) -> None:
    assert space.n_archs() == len(brute_force_archs(space))


@given(any_spaces(), st.data())
@settings(max_examples=60, deadline=None)
def test_encode_undoes_decode(space: SearchSpace, data: st.DataObject) -> None:
    row = np.array([data.draw(st.integers(0, size - 1)) for size in space.sizes])
    canonical = space.canonical(row[None])
    assert space.encode(space.decode(row)).tolist() == canonical[0].tolist()
    assert (space.canonical(canonical) == canonical).all()


def test_equal_ops_of_different_sites_collapse() -> None:
    twice = replace(EXAMPLE, sites=(*EXAMPLE.sites, replace(EXAMPLE.sites[0], name="again")))
    assert len(twice.ops()) == 8


# --- Sampling


def test_samples_are_canonical_allowed_and_reach_every_arch() -> None:
    archs = GATED.sample(np.random.default_rng(0), 500)
    assert archs.shape == (500, 5)
    assert {tuple(row) for row in archs.tolist()} == brute_force_archs(GATED)


def test_equal_seeds_give_equal_samples() -> None:
    first, second = (EXAMPLE.sample(np.random.default_rng(7), 20) for _ in range(2))
    assert (first == second).all()


def test_sampling_an_empty_space_ends_with_an_error() -> None:
    empty = replace(EXAMPLE, constraints=(Condition(scope=("w",), holds=lambda a: False),))
    assert empty.n_archs() == 0
    with pytest.raises(SpecError, match="0 of 5 archs keep its constraints"):
        empty.sample(np.random.default_rng(0), 5)


# --- Refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(EXAMPLE, sites=()), "sites: at least one"),
        (lambda: replace(EXAMPLE, sites=(EXAMPLE.sites[0],) * 2), "sites: at least one, each once"),
        (lambda: replace(EXAMPLE, variables=EXAMPLE.variables * 2), "variables: at least one, each once"),
        (lambda: replace(EXAMPLE, variables=EXAMPLE.variables[1:]), "site 'stem': no variable 'w'"),
        (
            lambda: replace(EXAMPLE, constraints=(Condition(scope=("q",), holds=lambda a: True),)),
            "constraint 0: no variable 'q'",
        ),
        (
            lambda: replace(EXAMPLE, sites=(replace(EXAMPLE.sites[0], scope=("w", "w")),)),
            "named twice in its scope",
        ),
        (
            lambda: replace(
                GATED, variables=(GATED.variables[3], *GATED.variables[:3], GATED.variables[4])
            ),
            "variable 'k2': active_when: no variable 'd' before it",
        ),
        (lambda: Variable(name="w", values=(1, 1)) and replace(
            EXAMPLE, variables=(Variable(name="w", values=(1, 1)), *EXAMPLE.variables[1:])
        ), "variable 'w': values: at least one, each once"),
    ],
)  # fmt: skip  # a table reads as one
def test_nonsense_spaces_are_refused_at_birth(build: Callable[[], SearchSpace], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


def test_unknown_variables_and_values_are_named() -> None:
    with pytest.raises(UnknownName, match=r"no variable 'z'; known: w, d, k"):
        EXAMPLE.encode({"w": 16, "d": 1, "k": 3, "z": 1})
    with pytest.raises(SpecError, match=r"w is one of \(16, 24\), got 17"):
        EXAMPLE.encode({"w": 17, "d": 1, "k": 3})


@pytest.mark.parametrize("wrong", [np.zeros((1, 2), dtype=int), np.zeros(3, dtype=int), np.zeros((1, 3))])
def test_encodings_of_another_shape_or_type_are_refused(wrong: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ShapeError, match=r"integers of shape \(N, 3\)"):
        EXAMPLE.canonical(wrong)


def test_value_number_out_of_range_names_arch_and_variable() -> None:
    with pytest.raises(SpecError, match="arch 1: d is a value number from 0 to 1, got 2"):
        EXAMPLE.canonical(np.array([[0, 0, 0], [0, 2, 0]]))


def test_arch_that_breaks_a_constraint_has_no_ops() -> None:
    with pytest.raises(SpecError, match="breaks a constraint"):
        GATED.arch_ops([0, 1, 1, 0, 0])


# --- Identity


def test_key_changes_with_values_and_ops_and_not_with_the_name() -> None:
    def wider(a: Assignment) -> OpSpec:
        return conv(3, int(a["w"]) + 8)

    keys = {
        EXAMPLE.key,
        replace(EXAMPLE, variables=(*EXAMPLE.variables[:2], Variable(name="k", values=(5, 3)))).key,
        replace(EXAMPLE, sites=(replace(EXAMPLE.sites[0], op=wider), *EXAMPLE.sites[1:])).key,
        replace(EXAMPLE, constraints=(Condition(scope=("w",), holds=lambda a: a["w"] == 16),)).key,
    }
    assert len(keys) == 4
    assert replace(EXAMPLE, name="other").key == EXAMPLE.key


# --- Registry


def test_every_registered_name_builds_a_space_of_that_name() -> None:
    for name in spaces.names():
        assert spaces.get(name).name == name


@pytest.mark.parametrize("name", ["resnet", "proxyless-w9", "proxyless-", ""])
def test_unknown_space_lists_the_names(name: str) -> None:
    with pytest.raises(UnknownName, match=r"known: proxyless, proxyless-w1\.1"):
        spaces.get(name)


# --- Shapes and elimination


@pytest.mark.parametrize(
    ("width", "divisible"), [(41.6, 40), (19.2, 24), (17.6, 16), (28.8, 32), (134.4, 136), (1, 8), (96, 96)]
)
def test_make_divisible_follows_the_published_widths(width: float, divisible: int) -> None:
    assert make_divisible(width) == divisible


def test_make_divisible_refuses_nonsense() -> None:
    with pytest.raises(SpecError, match="positive width"):
        make_divisible(0)


@pytest.mark.parametrize(("extent", "stride", "left"), [(224, 2, 112), (43, 2, 22), (7, 1, 7), (1, 2, 1)])
def test_strided_maps_follow_the_convolution_rule(extent: int, stride: int, left: int) -> None:
    assert strided(extent, stride) == left


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_elimination_equals_listing_every_assignment(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    scopes = data.draw(
        st.lists(st.lists(st.integers(0, len(sizes) - 1), unique=True, max_size=3), min_size=1, max_size=5)
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    factors = [
        Factor(scope=tuple(scope), values=rng.integers(0, 9, size=[sizes[v] for v in scope])) for scope in scopes
    ]
    mentioned = sorted({v for scope in scopes for v in scope})
    cells = [
        [factor.values[tuple(dict(zip(mentioned, cell, strict=True))[v] for v in factor.scope)] for factor in factors]
        for cell in itertools.product(*(range(sizes[v]) for v in mentioned))
    ]
    assert eliminate(factors, combine=np.multiply, reduce=np.add) == sum(math.prod(map(int, c)) for c in cells)
    assert eliminate(factors, combine=np.add, reduce=np.minimum) == min(sum(map(int, c)) for c in cells)
