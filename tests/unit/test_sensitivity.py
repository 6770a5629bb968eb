"""Sensitivity: means and largest changes equal listing every arch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from lutbuilder import spaces
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.spaces import SearchSpace
from tests.small_spaces import every_encoding, plain_cost, priced_spaces
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE, block


@given(priced_spaces())
@settings(max_examples=80, deadline=None)
def test_means_and_largest_changes_equal_listing_every_assignment(
    priced: tuple[SearchSpace, FunctionTable],
) -> None:
    space, table = priced
    rows = every_encoding(space)
    archs = space.canonical(rows)
    costs = np.full(len(rows), np.inf)
    for number in np.flatnonzero(space.allowed(archs)):
        costs[number] = plain_cost(space, table, archs[number])
    grid = costs.reshape(space.sizes)
    for axis, found in enumerate(compile_space(space, table).sensitivity()):
        assert found.variable == space.variables[axis].name
        columns = np.moveaxis(grid, axis, 0).reshape(space.sizes[axis], -1)
        first = columns[0]
        for value, column in enumerate(columns):
            feasible = column[np.isfinite(column)]
            both = np.isfinite(column) & np.isfinite(first)
            mean = feasible.mean() if len(feasible) else np.nan
            change = np.abs(column[both] - first[both]).max() if both.any() else np.nan
            assert found.mean[value] == pytest.approx(mean, nan_ok=True)
            assert found.max_change[value] == pytest.approx(change, nan_ok=True, abs=1e-12)
        assert found.mean_change == pytest.approx(found.mean - found.mean[0], nan_ok=True)


def test_worked_example_sensitivity() -> None:
    w, d, k = compile_space(EXAMPLE, EXAMPLE_TABLE).sensitivity()
    assert k.mean == pytest.approx([4.35, 5.35])
    assert k.mean_change == pytest.approx([0.0, 1.0])
    assert k.max_change == pytest.approx([0.0, 0.8 + 0.6])  # at w24, d2
    assert (w.variable, d.variable) == ("w", "d")
    assert d.max_change == pytest.approx([0.0, 2.1])


def test_fixed_costs_are_in_the_mean_and_not_in_the_changes() -> None:
    plain = compile_space(EXAMPLE, EXAMPLE_TABLE).sensitivity()[2]
    dearer = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, call_overhead_ms=0.5)).sensitivity()[2]
    assert dearer.mean == pytest.approx(plain.mean + 0.5)
    assert dearer.max_change == pytest.approx(plain.max_change)


def test_value_no_arch_can_have_is_not_a_number() -> None:
    never = compile_space(EXAMPLE, replace(EXAMPLE_TABLE, runs=lambda op: op not in (block(24, 3, 2), block(24, 5, 2))))
    w = never.sensitivity()[0]
    assert np.isnan(w.mean).tolist() == np.isnan(w.max_change).tolist() == [False, True]


@pytest.mark.parametrize("name", ["ofa_mbv3-w1.0-r224", "attentivenas"])
def test_means_of_a_preset_are_its_expectation_given_the_value(name: str) -> None:
    space = spaces.get(name)
    compiled = compile_space(space, FunctionTable(name="by op", cost=lambda op: 1 + int(op.op_id[:6], 16) / 2**24))
    found = compiled.sensitivity()
    for axis in (0, len(space.sizes) // 2, len(space.sizes) - 1):
        for value in range(space.sizes[axis]):
            probabilities = [np.full(size, 1 / size) for size in space.sizes]
            probabilities[axis] = np.eye(space.sizes[axis])[value]
            assert found[axis].mean[value] == pytest.approx(compiled.expected(probabilities))
