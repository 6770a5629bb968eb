"""Budgeted environments: whatever the actions, the arch keeps the limit; bounds are exact; the published rules hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.lower import lower
from lutbuilder.nas.budget import AdditiveScore
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.search import (
    BitEnvironment,
    ChannelEnvironment,
    CrossEntropy,
    Limit,
    LimitNeverBinds,
    StateFile,
    amc_cost_reward,
    amc_reward,
    cross_entropy,
    haq_reward,
    rollout,
)
from lutbuilder_agent.errors import Infeasible, ShapeError, SpecError
from tests.search_spaces import TABLE, bit_macs, bit_space, costs, more_is_better, ofa_like, quantile_of, width_space
from tests.small_spaces import every_arch

PROPERTY = settings(max_examples=40, deadline=None)  # no deadline: a busy machine is no failure


def table_of(seed: int) -> FunctionTable:
    """Costs without any order: fewer bits or channels may cost more, as in a noisy measured table."""
    return FunctionTable(
        name="any", cost=lambda op: float(np.random.default_rng([seed, int(op.op_id[:8], 16)]).random())
    )


def bits_of(environment: BitEnvironment, archs: np.ndarray) -> np.ndarray:
    values = [np.array(variable.values) for variable in environment.limits.space.variables]
    return np.stack([v[archs[:, n]] for n, v in enumerate(values)], axis=1)


# --- Both


@PROPERTY
@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans(), st.booleans())
@pytest.mark.filterwarnings("ignore::lutbuilder.nas.search.LimitNeverBinds")
def test_no_action_leads_over_the_limit(seed, share, bits, orderly):
    space = bit_space(3) if bits else width_space(4)
    compiled = costs(space, TABLE if orderly else table_of(seed))
    limit = Limit(compiled=compiled, max_cost=quantile_of(compiled, share))
    try:
        environment = BitEnvironment(limit=limit) if bits else ChannelEnvironment(limit=limit)
    except Infeasible:  # the cheapest arch uses values that the bounds exclude
        return
    actions = np.random.default_rng(seed).random((30, environment.n_steps))
    actions[0], actions[1] = 0.0, 1.0
    archs = rollout(environment, actions)
    assert limit.budget.holds(compiled.predict(archs)).all()
    assert environment.limits.kept(environment.limits.costs(archs)).all()


@pytest.mark.parametrize("make", [BitEnvironment, ChannelEnvironment])
def test_a_budget_below_the_cheapest_arch_is_refused_with_its_cost(make):
    compiled = costs(bit_space() if make is BitEnvironment else width_space())
    with pytest.raises(Infeasible, match="cheapest"):
        make(limit=Limit(compiled=compiled, max_cost=compiled.min_over() * 0.99))
    with pytest.warns(LimitNeverBinds):
        make(limit=Limit(compiled=compiled, max_cost=compiled.max_over() * 2))


@pytest.mark.parametrize("make", [BitEnvironment, ChannelEnvironment])
def test_actions_of_another_shape_or_range_are_refused(make):
    compiled = costs(bit_space() if make is BitEnvironment else width_space())
    environment = make(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.5)))
    n = environment.n_steps
    with pytest.raises(ShapeError, match=f"actions are of shape \\(N, {n}\\)"):
        rollout(environment, np.zeros((2, n + 1)))
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(SpecError, match="actions are from 0 to 1"):
            rollout(environment, np.full((2, n), wrong))


def test_spaces_of_other_variables_are_refused():
    for make in (BitEnvironment, ChannelEnvironment):
        gated = costs(ofa_like(1))
        with pytest.raises(SpecError, match="is not always active"):
            make(limit=Limit(compiled=gated, max_cost=quantile_of(gated, 0.5)))
        words = compile_space(spaces.get("proxyless"), TABLE)
        with pytest.raises(SpecError, match="'layer1' of 'proxyless' is no"):
            make(limit=Limit(compiled=words, max_cost=quantile_of(words, 0.5)))
        window = Limit(compiled=costs(bit_space()), min_cost=0.001, max_cost=1.0)
        with pytest.raises(SpecError, match="highest cost alone"):
            make(limit=window)
    wide = costs(width_space())
    with pytest.raises(SpecError, match="those are 1 to 8"):
        BitEnvironment(limit=Limit(compiled=wide, max_cost=quantile_of(wide, 0.5)))


# --- Bits


def test_actions_become_bits_by_the_published_rule_and_stay_in_range():
    compiled = costs(bit_space())
    limit = Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.9))
    environment = BitEnvironment(limit=limit)
    assert environment.bits(np.array([0.0, 0.07, 0.08, 0.5, 0.99, 1.0])).tolist() == [2, 2, 2, 5, 8, 8]
    every = BitEnvironment(limit=limit, low=1, high=8).bits(np.linspace(0, 1, 1001))
    assert sorted(set(every.tolist())) == list(range(1, 9))
    assert np.bincount(every)[1:].min() > 120  # an eighth of the actions each


def test_archs_over_budget_lose_bits_from_the_last_layer_backwards():
    compiled = costs(bit_space(3), FunctionTable(name="sum", cost=lambda op: float(op.w_bits + op.a_bits)))
    everything = np.ones((1, 6))  # 8 bits everywhere: 48; the last layer's variables have the single value 8
    for budget, expected in (
        (47, [8, 8, 8, 7, 8, 8]),
        (46, [8, 8, 7, 7, 8, 8]),
        (43, [7, 7, 7, 6, 8, 8]),
        (27, [3, 3, 3, 2, 8, 8]),
    ):
        environment = BitEnvironment(limit=Limit(compiled=compiled, max_cost=float(budget)))
        assert bits_of(environment, rollout(environment, everything)).tolist() == [expected]


def test_an_arch_within_the_budget_keeps_its_bits():
    compiled = costs(bit_space(3))
    environment = BitEnvironment(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.8)))
    archs = rollout(environment, np.full((1, 6), 0.3))
    assert bits_of(environment, archs).tolist() == [[4, 4, 4, 4, 8, 8]]


def test_fewer_bits_that_cost_more_end_at_the_cheapest_arch():
    compiled = costs(bit_space(3), FunctionTable(name="odd", cost=lambda op: 20.0 - op.w_bits - op.a_bits))
    environment = BitEnvironment(limit=Limit(compiled=compiled, max_cost=12.5))
    archs = rollout(environment, np.vstack([np.zeros(6), np.ones(6)]))
    assert bits_of(environment, archs).tolist() == [[8] * 6, [8] * 6]


def test_bits_of_a_coarser_space_are_the_nearest_it_has():
    compiled = costs(bit_space(3, values=(4, 6, 8)))
    environment = BitEnvironment(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.99)), low=4)
    assert set(bits_of(environment, rollout(environment, np.random.default_rng(0).random((50, 6)))).ravel()) == {
        4,
        6,
        8,
    }


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_the_exact_allocation_beats_every_arch_within_the_budget(share):
    space = bit_space(3, values=(2, 3, 5, 8))
    compiled = costs(space, table_of(3))
    environment = BitEnvironment(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, share)))
    values = [np.random.default_rng(n).random(size) for n, size in enumerate(space.sizes)]
    score = AdditiveScore(space=space, values=values)
    archs = every_arch(space)
    within = archs[environment.limit.budget.holds(compiled.predict(archs))]
    best = environment.best(score)
    assert environment.limit.budget.holds(compiled.predict(best[None])).all()
    assert score.score(best[None])[0] == pytest.approx(score.score(within).max())


def test_bounds_on_bits_are_kept_by_all_ways_to_an_arch():
    compiled = costs(bit_space(3))
    environment = BitEnvironment(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.5)), low=3, high=6)
    bits = bits_of(environment, rollout(environment, np.random.default_rng(1).random((50, 6))))
    assert (bits[:, :4].min(), bits[:, :4].max()) == (3, 6)
    score = AdditiveScore(space=bit_space(3), values=[np.arange(float(size)) for size in bit_space(3).sizes])
    assert (bits_of(environment, environment.best(score)[None])[:, :4] <= 6).all()
    for low, high in ((0, 8), (3, 2), (1, 9)):
        with pytest.raises(SpecError, match="bits are from 1 to 8"):
            BitEnvironment(limit=environment.limit, low=low, high=high)


def test_the_published_haq_budget_is_kept_on_its_network():
    space = spaces.get("haq")  # MobileNetV2, 53 layers, the ends fixed at 8 bits
    compiled = compile_space(space, FunctionTable(name="bit-macs", cost=bit_macs), "cycles")
    full = compiled.predict(np.array([[size - 1 for size in space.sizes]]))[0]
    environment = BitEnvironment(limit=Limit(compiled=compiled, max_cost=0.556 * full))
    archs = rollout(
        environment, np.vstack([np.ones(environment.n_steps), np.random.default_rng(0).random(environment.n_steps)])
    )
    spent = compiled.predict(archs)
    assert (spent <= 0.556 * full).all()
    assert spent[0] > 0.55 * full  # and used up


# --- Channels


def test_a_width_is_affordable_exactly_if_a_completion_is():
    compiled = costs(width_space(3), table_of(5))
    environment = ChannelEnvironment(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.3)), low=0.1)
    archs = every_arch(width_space(3))
    within = archs[environment.limit.budget.holds(compiled.predict(archs))]
    for t in range(3):
        prefixes = np.unique(within[:, :t], axis=0)
        affordable = environment.affordable(prefixes.astype(np.int8))
        for prefix, widths in zip(prefixes, affordable, strict=True):
            rows = within[(within[:, :t] == prefix).all(axis=1)]
            assert set(np.flatnonzero(widths).tolist()) == set(rows[:, t].tolist())


def test_actions_are_shares_of_the_full_width_rounded_to_its_grid():
    compiled = costs(width_space(3, full=80))
    environment = ChannelEnvironment(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.999)))
    widths = np.array(width_space(3, full=80).variables[0].values)
    archs = rollout(environment, np.array([[0.0, 0.3, 0.44], [0.26, 0.24, 0.96]]))
    assert widths[archs].tolist() == [[16, 24, 32], [24, 16, 80]]  # a fifth of 80 at least; 0.44 * 80 = 35 rounds to 32


def test_greedy_actions_use_the_budget_up_and_never_exceed_it():
    compiled = costs(width_space(6, full=64), FunctionTable(name="macs", cost=lambda op: lower(op).macs / 1e3))
    environment = ChannelEnvironment(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.5)))
    (arch,) = rollout(environment, np.ones((1, 6)))
    (cost,) = compiled.predict(arch[None])
    assert cost <= environment.limit.max_cost
    for column in range(6):  # no single layer could be a step wider
        wider = arch.copy()
        wider[column] += 1
        assert wider[column] == 8 or compiled.predict(wider[None])[0] > environment.limit.max_cost


@pytest.mark.parametrize("preset", ["amc", "amc-v2"])
def test_half_the_macs_of_the_published_networks_are_kept(preset):
    space = spaces.get(preset)
    compiled = compile_space(space, FunctionTable(name="macs", cost=lambda op: lower(op).macs / 1e6), "macs")
    environment = ChannelEnvironment(limit=Limit(compiled=compiled, max_cost=0.5 * compiled.max_over()))
    archs = rollout(environment, np.random.default_rng(0).random((16, environment.n_steps)))
    assert (compiled.predict(archs) <= 0.5 * compiled.max_over()).all()
    (widest,) = compiled.predict(rollout(environment, np.ones((1, environment.n_steps))))
    assert 0.45 * compiled.max_over() < widest <= 0.5 * compiled.max_over()


# --- Rewards


def test_rewards_are_those_of_the_papers():
    assert haq_reward(71.0, 70.0) == pytest.approx(0.1)
    assert amc_reward(70.5) == pytest.approx(0.705)
    assert amc_cost_reward(70.0, math.e) == pytest.approx(-0.3)
    assert amc_cost_reward(np.array([70.0, 71.0]), np.array([100.0, 100.0])).tolist() == pytest.approx(
        [-0.3 * math.log(100), -0.29 * math.log(100)]
    )


@pytest.mark.parametrize("cost", [1.0, 0.5, -3.0, np.array([2.0, 1.0])])
def test_a_cost_whose_logarithm_turns_the_reward_around_is_refused(cost):
    with pytest.raises(SpecError, match="above 1"):
        amc_cost_reward(70.0, cost)


# --- The plain agent


def agents():
    bits, widths = costs(bit_space(6)), costs(width_space(8, full=80))
    return [
        BitEnvironment(limit=Limit(compiled=bits, max_cost=quantile_of(bits, 0.3))),
        ChannelEnvironment(limit=Limit(compiled=widths, max_cost=quantile_of(widths, 0.3))),
    ]


@pytest.mark.parametrize("environment", agents())
def test_the_plain_agent_keeps_the_limit_and_beats_random_actions(environment):
    found = cross_entropy(environment, more_is_better, CrossEntropy(episodes=32, iterations=15), seed=1)
    assert environment.limits.kept(found.history.costs).all()
    assert len(np.unique(found.history.archs, axis=0)) == len(found.history)
    random = rollout(environment, np.random.default_rng(1).random((16 * 32, environment.n_steps)))
    assert found.scores[0] > more_is_better(random).max()
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("environment", agents())
def test_the_plain_agent_killed_and_resumed_ends_the_same(environment, tmp_path):
    how = CrossEntropy(episodes=8, iterations=7, elite=3)
    whole = cross_entropy(environment, more_is_better, how, seed=2)
    state = StateFile(path=tmp_path / "state.npz", every=2)

    def kill(progress):
        if progress.generation == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_entropy(environment, more_is_better, how, seed=2, on_progress=kill, state=state)
    found = cross_entropy(environment, more_is_better, how, seed=2, state=state)
    assert np.array_equal(found.history.archs, whole.history.archs)
    assert np.array_equal(found.scores, whole.scores)
    with pytest.raises(SpecError, match="another search: its seed is 2, this one's 3"):
        cross_entropy(environment, more_is_better, how, seed=3, state=state)


def test_settings_of_the_agent_that_make_no_sense_are_refused():
    for wrong in ({"elite": 0}, {"episodes": 4, "elite": 5}, {"iterations": -1}, {"pace": 0.0}, {"narrowest": 0.0}):
        with pytest.raises(SpecError):
            CrossEntropy(**wrong)
