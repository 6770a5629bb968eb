"""Expectation and gradient for spaces of every make: depth gates, resolutions, bilinear widths, bits, failed ops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lutbuilder import ExpectedLatency, spaces
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.op import OpSpec
from lutbuilder.spaces import SearchSpace
from tests.small_spaces import every_encoding, plain_cost, priced_spaces
from tests.worked_example import GATED, GATED_TABLE


def by_op(op: OpSpec) -> float:
    return 1 + int(op.op_id[:6], 16) / 2**24


BY_OP = FunctionTable(name="by op", cost=by_op, call_overhead_ms=0.5)


def vectors(space: SearchSpace, probs: Tensor) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return [probs[number, :size].detach().numpy() for number, size in enumerate(space.sizes)]


@given(priced_spaces(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_expectation_is_the_mean_over_all_draws_that_can_run(
    priced: tuple[SearchSpace, FunctionTable], seed: int
) -> None:
    space, table = priced
    latency = ExpectedLatency(table, space, allow_infeasible=True)
    rng = np.random.default_rng(seed)
    probs = torch.zeros(2, *latency.shape, dtype=torch.float64)
    for one in probs:
        for number, size in enumerate(space.sizes):
            weights = rng.random(size) * (rng.random(size) < 0.8) + np.eye(size)[rng.integers(size)]
            one[number, :size] = torch.tensor(weights / weights.sum())
    together = latency(probs, kind="probs")
    for one, mine in zip(probs, together, strict=True):
        able = total = 0.0
        for row in every_encoding(space):
            chance = math.prod(float(one[number, value]) for number, value in enumerate(row))
            arch = space.canonical(row[None])[0]
            cost = plain_cost(space, table, arch) if space.allowed(arch[None])[0] else math.inf
            if chance > 0 and cost < math.inf:
                able, total = able + chance, total + chance * cost
        mean = total / able if able else math.inf
        assert float(mine) == pytest.approx(mean)
        assert float(latency(one, kind="probs")) == pytest.approx(mean)
        assert compile_space(space, table).expected(vectors(space, one)) == pytest.approx(mean)


@given(priced_spaces())
@settings(max_examples=20, deadline=None)
def test_gradients_are_exact_for_any_scopes_and_constraints(priced: tuple[SearchSpace, FunctionTable]) -> None:
    space, table = priced
    latency = ExpectedLatency(table, space, allow_infeasible=True)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, *latency.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    if torch.isfinite(latency(logits)).all():
        assert torch.autograd.gradcheck(latency, (logits,))
        assert torch.autograd.gradgradcheck(latency, (logits[0],), atol=1e-4)


def test_apq_at_even_logits_is_the_mean_of_its_archs_and_descends() -> None:
    space = spaces.get("apq")
    latency = ExpectedLatency(BY_OP, space)
    costs = latency.predict(space.sample(np.random.default_rng(0), 20_000))
    logits = torch.zeros(latency.shape, dtype=torch.float64, requires_grad=True)
    value = latency(logits)
    assert float(value.detach()) == pytest.approx(costs.mean(), abs=4 * costs.std() / math.sqrt(len(costs)))
    (slope,) = torch.autograd.grad(value, logits)
    step = 1e-3
    assert float(latency(logits - step * slope).detach()) == pytest.approx(
        float(value.detach() - step * (slope**2).sum()), abs=1e-3 * step * float((slope**2).sum())
    )


def test_straight_through_choices_learn_what_the_others_would_cost() -> None:
    """The slope of a choice with probability 0 is exact: nothing is divided by its chance."""
    latency = ExpectedLatency(GATED_TABLE, GATED)
    sure = torch.zeros(latency.shape, dtype=torch.float64)
    for variable, value in enumerate((1, 0, 0, 1, 1)):
        sure[variable, value] = 1.0
    sure.requires_grad_()
    latency(sure, kind="probs").backward()
    assert sure.grad is not None
    changed = latency.predict(np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]]))
    assert float(sure.grad[1, 1] - sure.grad[1, 0]) == pytest.approx(changed[0] - changed[1])


@pytest.mark.parametrize(
    "name",
    ["ofa_proxyless", "ofa_mbv3", "ofa_resnet50", "attentivenas", "fbnet", "haq", "apq", "amc", "netadapt-step32"],
)
def test_presets_have_their_numpy_expectation_and_its_slopes(name: str) -> None:
    space = spaces.get(name)
    latency = ExpectedLatency(BY_OP, space)
    assert latency.shape == (len(space.sizes), max(space.sizes))
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(latency.shape, generator=generator, dtype=torch.float64)
    for number, variable in enumerate(space.variables):
        if space.forbidden and 7 in variable.values:  # the one choice APQ forbids at 4 bits
            logits[number, variable.values.index(7)] = -math.inf
    probs = torch.softmax(logits.masked_fill(~latency.valid, -math.inf), -1).requires_grad_()
    value = latency(probs, kind="probs")
    value.backward()
    mine = vectors(space, probs)
    expected = latency.compiled.expected(mine)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-12)
    assert probs.grad is not None
    rng = np.random.default_rng(0)
    for number in rng.choice(len(space.sizes), size=4, replace=False).tolist():
        # Linear in each vector: the slope along a value is what the expectation becomes when that value is sure.
        slopes = probs.grad[number, : space.sizes[number]].numpy()
        choice = int(rng.choice(np.flatnonzero(mine[number] > 0)))
        sure = [np.eye(space.sizes[n])[choice] if n == number else vector for n, vector in enumerate(mine)]
        change = latency.compiled.expected(sure) - expected
        assert slopes[choice] - slopes @ mine[number] == pytest.approx(change, abs=1e-9)


def test_one_hot_choices_of_a_gated_preset_are_its_prediction() -> None:
    space = spaces.get("ofa_mbv3")
    latency = ExpectedLatency(BY_OP, space)
    archs = space.sample(np.random.default_rng(0), 5)
    hot = torch.nn.functional.one_hot(torch.tensor(archs, dtype=torch.int64), latency.shape[1]).double()
    assert latency(hot, kind="probs").numpy() == pytest.approx(latency.predict(archs), rel=1e-12)
