"""Held-out archs: spread over the whole range, or found by a search; different, canonical, and fixed by the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lower import lower
from lutbuilder.nas.compiled import CompiledSpace, FunctionTable, compile_space
from lutbuilder.nas.sampling import Archs, searched_archs, spread_archs
from lutbuilder.op import OpSpec
from lutbuilder.spaces import Condition
from lutbuilder_agent.errors import SpecError
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE, GATED, GATED_TABLE

Chooser = Callable[[CompiledSpace, int, np.random.Generator], Archs]


def uneven_ms(op: OpSpec) -> float:
    """Costs that MACs alone do not explain, as on a device: up to 25 % either way."""
    return (0.01 + lower(op).macs / 1e8) * (0.75 + int(op.op_id[:4], 16) / 2**17)


@pytest.fixture(scope="module")
def compiled() -> CompiledSpace:
    return compile_space(spaces.get("proxyless"), FunctionTable(name="uneven", cost=uneven_ms))


@pytest.fixture(scope="module")
def macs() -> CompiledSpace:
    return compile_space(spaces.get("proxyless"), FunctionTable(name="macs", cost=lambda op: lower(op).macs), "macs")


@pytest.mark.parametrize("choose", [spread_archs, searched_archs])
def test_archs_are_different_canonical_and_fixed_by_the_seed(choose: Chooser, compiled: CompiledSpace) -> None:
    archs = choose(compiled, 12, np.random.default_rng(5))
    assert archs.shape == (12, 21)
    assert len({tuple(row) for row in archs.tolist()}) == 12
    assert (compiled.space.canonical(archs) == archs).all()
    assert (archs == choose(compiled, 12, np.random.default_rng(5))).all()
    assert (archs != choose(compiled, 12, np.random.default_rng(6))).any()


def test_spread_archs_fill_the_range_evenly(compiled: CompiledSpace) -> None:
    low, high = compiled.min_over(), compiled.max_over()
    costs = np.sort(compiled.predict(spread_archs(compiled, 40, np.random.default_rng(0))))
    positions = (costs - low) / (high - low)
    assert positions[0] < 0.05
    assert positions[-1] > 0.95
    assert np.diff(positions).max() < 3 / 40
    uniform = (np.arange(40) + 0.5) / 40
    assert np.abs(positions - uniform).max() < 0.04


def test_uniform_archs_do_not_fill_the_range(compiled: CompiledSpace) -> None:
    # The reason spread_archs exists; should a space change this, the tilt is not needed there.
    low, high = compiled.min_over(), compiled.max_over()
    costs = compiled.predict(compiled.space.sample(np.random.default_rng(0), 1000))
    assert ((costs - low) / (high - low)).min() > 0.2


def test_searched_archs_cost_less_than_random_ones_with_as_many_macs(
    compiled: CompiledSpace, macs: CompiledSpace
) -> None:
    searched = searched_archs(compiled, 8, np.random.default_rng(1))
    spread = spread_archs(compiled, 300, np.random.default_rng(2))
    ms, millions = compiled.predict(spread), macs.predict(spread)
    for cost, floor in zip(compiled.predict(searched), macs.predict(searched), strict=True):
        rivals = ms[millions >= floor]
        assert rivals.size == 0 or cost < rivals.min()


def test_searched_archs_span_the_sizes(compiled: CompiledSpace, macs: CompiledSpace) -> None:
    sizes = macs.predict(searched_archs(compiled, 8, np.random.default_rng(1)))
    position = (sizes - macs.min_over()) / (macs.max_over() - macs.min_over())
    assert (np.diff(sizes) > 0).all()
    assert position[0] < 0.2
    assert position[-1] > 0.8


def test_every_arch_of_a_small_space_can_be_asked_for() -> None:
    archs = spread_archs(compile_space(EXAMPLE, EXAMPLE_TABLE), 8, np.random.default_rng(0))
    assert len({tuple(row) for row in archs.tolist()}) == 8


def test_chosen_archs_keep_gates_and_constraints() -> None:
    compiled = compile_space(GATED, GATED_TABLE)
    archs = spread_archs(compiled, 12, np.random.default_rng(0))
    assert GATED.allowed(archs).all()
    assert len({tuple(row) for row in archs.tolist()}) == 12


@pytest.mark.parametrize("choose", [spread_archs, searched_archs])
def test_archs_with_a_failed_op_are_never_chosen(choose: Chooser) -> None:
    space = spaces.get("proxyless")
    failed = space.ops()[30]
    table = FunctionTable(name="uneven", cost=uneven_ms, runs=lambda op: op != failed)
    archs = choose(compile_space(space, table), 6, np.random.default_rng(0))
    assert not any(failed in space.arch_ops(arch) for arch in archs)


def test_asking_for_more_archs_than_there_are_is_refused() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    with pytest.raises(SpecError, match="cannot choose 9 of the 8 archs of 'example'"):
        spread_archs(compiled, 9, np.random.default_rng(0))
    with pytest.raises(SpecError, match=r"after \d of 8; ask for fewer"):
        searched_archs(compiled, 8, np.random.default_rng(0))


@pytest.mark.parametrize("choose", [spread_archs, searched_archs])
def test_asking_for_none_is_refused(choose: Chooser) -> None:
    with pytest.raises(SpecError, match="cannot choose 0 of the 8"):
        choose(compile_space(EXAMPLE, EXAMPLE_TABLE), 0, np.random.default_rng(0))


@pytest.mark.parametrize("choose", [spread_archs, searched_archs])
def test_space_without_a_feasible_arch_is_refused(choose: Chooser) -> None:
    none = replace(EXAMPLE, constraints=(Condition(scope=("w",), holds=lambda a: False),))
    with pytest.raises(SpecError, match="cannot choose 1 of the 0 archs of 'example' that can run"):
        choose(compile_space(none, EXAMPLE_TABLE), 1, np.random.default_rng(0))
