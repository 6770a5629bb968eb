"""Fronts and the best under a budget: equal to listing, and to each other where nothing can be listed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.nas import pareto
from lutbuilder.nas.budget import AdditiveScore, Budget, Feasible
from lutbuilder.nas.compiled import CompiledSpace, FunctionTable, compile_space
from lutbuilder.nas.pareto import best_under, pareto_front
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import Infeasible, SpecError
from tests.small_spaces import every_arch, priced_spaces
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE, GATED, GATED_TABLE

UNEVEN = FunctionTable(name="uneven", cost=lambda op: 0.1 + int(op.op_id[:6], 16) / 2**25)


def random_score(space: SearchSpace, seed: int, *, whole: bool = False) -> AdditiveScore:
    rng = np.random.default_rng(seed)
    values = [rng.integers(0, 6, size).astype(float) if whole else rng.random(size) for size in space.sizes]
    names = tuple(variable.name for variable in space.variables[-2:])
    table = rng.integers(0, 3, space.sizes[-2:]).astype(float)
    return AdditiveScore(space=space, values=values, tables=[(names, table)], base=1.0)


def listed_front(costs: NDArray[Any], scores: NDArray[Any]) -> list[tuple[float, float]]:
    points = sorted(zip(costs.tolist(), (-scores).tolist(), strict=True))
    front: list[tuple[float, float]] = []
    for cost, lost in points:
        if math.isfinite(cost) and (not front or -lost > front[-1][1] + 1e-9):
            front.append((cost, -lost))
    return front


def listed(compiled: CompiledSpace, score: AdditiveScore) -> tuple[NDArray[Any], NDArray[Any]]:
    archs = every_arch(compiled.space)
    return compiled.predict(archs), score.score(archs)


@given(st.booleans().flatmap(lambda whole: priced_spaces(whole=whole)), st.integers(0, 2**32), st.booleans())
@settings(max_examples=80, deadline=None)
def test_exact_front_is_that_of_the_list(priced: tuple[SearchSpace, FunctionTable], seed: int, whole: bool) -> None:
    space, table = priced
    compiled, score = compile_space(space, table), random_score(space, seed, whole=whole)
    costs, scores = listed(compiled, score)
    if not np.isfinite(costs).any():
        with pytest.raises(Infeasible, match="no arch that can run"):
            pareto_front(compiled, score)
        return
    front = pareto_front(compiled, score)
    wanted = listed_front(costs, scores)
    assert list(zip(front.costs, front.scores, strict=True)) == [pytest.approx(point) for point in wanted]
    assert front.cost_error == 0.0
    assert compiled.predict(front.archs) == pytest.approx(front.costs)
    limit = float(np.median(costs[np.isfinite(costs)]))
    within = pareto_front(compiled, score, budget=Budget(limit))
    assert len(within.costs) == sum(cost <= limit + 1e-9 for cost, _ in wanted)


@given(priced_spaces(), st.integers(0, 2**32), st.sampled_from([1e-4, 0.1, 1.0]))
@settings(max_examples=60, deadline=None)
def test_front_in_ticks_is_beaten_by_its_cost_error_at_most(
    priced: tuple[SearchSpace, FunctionTable], seed: int, tick: float
) -> None:
    space, table = priced
    compiled, score = compile_space(space, table), random_score(space, seed)
    costs, scores = listed(compiled, score)
    if not np.isfinite(costs).any():
        return
    front = pareto_front(compiled, score, tick=tick)
    assert (np.diff(front.costs) > 0).all()
    assert (np.diff(front.scores) > 0).all()
    for cost, wanted in listed_front(costs, scores):
        as_good = front.costs[front.scores >= wanted - 1e-9]
        assert as_good.min() <= cost + front.cost_error + 1e-9
    assert 0.0 <= front.cost_error <= tick * len(space.sites) + 1e-9


@given(priced_spaces(), st.integers(0, 2**32), st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=60, deadline=None)
def test_front_in_ticks_of_a_feasible_budget_holds_an_arch(
    priced: tuple[SearchSpace, FunctionTable], seed: int, tick: float
) -> None:
    space, table = priced
    compiled, score = compile_space(space, table), random_score(space, seed)
    if not math.isfinite(compiled.min_over()):
        return
    front = pareto_front(compiled, score, budget=Budget(compiled.min_over()), tick=tick)
    assert front.costs == pytest.approx([compiled.min_over()])


@given(priced_spaces(), st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_best_under_a_budget_is_that_of_the_list(
    priced: tuple[SearchSpace, FunctionTable], seed: int, share: float
) -> None:
    space, table = priced
    compiled, score = compile_space(space, table), random_score(space, seed)
    costs, scores = listed(compiled, score)
    finite = costs[np.isfinite(costs)]
    if not finite.size:
        return
    limit = float(np.quantile(finite, share))
    best = best_under(compiled, score, Budget(limit))
    assert best.cost <= limit * (1 + 1e-9)
    assert best.score == pytest.approx(scores[costs <= limit + 1e-9].max())
    assert (best.cost, best.score) == pytest.approx((compiled.predict(best.arch[None])[0], score(best.arch[None])[0]))


def test_best_under_any_budget_lies_on_the_exact_front_of_proxyless() -> None:
    """2e17 archs: two algorithms, one answer."""
    space = spaces.get("proxyless")
    compiled = compile_space(space, UNEVEN)
    rng = np.random.default_rng(0)
    score = AdditiveScore(space=space, values=[rng.integers(0, 40, size).astype(float) for size in space.sizes])
    front = pareto_front(compiled, score)
    assert len(front.archs) > 100
    low, high = compiled.min_over(), compiled.max_over()
    for limit in np.linspace(low, high, 9).tolist():
        on_front = front.scores[front.costs <= limit + 1e-9].max()
        assert best_under(compiled, score, Budget(limit)).score == pytest.approx(on_front)
    ticked = pareto_front(compiled, score, tick=(high - low) / 500)
    for cost, wanted in zip(front.costs, front.scores, strict=True):
        assert ticked.costs[ticked.scores >= wanted - 1e-9].min() <= cost + ticked.cost_error + 1e-9


def test_best_under_real_valued_scores_is_at_least_the_front_in_ticks() -> None:
    space = spaces.get("proxyless")
    compiled = compile_space(space, UNEVEN)
    rng = np.random.default_rng(1)
    score = AdditiveScore(space=space, values=[rng.random(size) for size in space.sizes])
    front = pareto_front(compiled, score, tick=1e-3)
    for cost, scored in list(zip(front.costs, front.scores, strict=True))[:: max(1, len(front.costs) // 8)]:
        best = best_under(compiled, score, Budget(float(cost)))
        assert best.score >= scored - 1e-9
        below = front.scores[front.costs <= best.cost + front.cost_error].max()
        assert best.score <= below + 1e-9


def test_latency_against_energy_is_a_front_too() -> None:
    latency = compile_space(GATED, GATED_TABLE)
    energy = compile_space(
        GATED, FunctionTable(name="energy", cost=lambda op: 9.0 - op.kernel + op.w_bits / 50), "energy_mj"
    )
    front = pareto_front(latency, AdditiveScore.of_costs(energy))
    archs = every_arch(GATED)
    assert list(zip(front.costs, front.scores, strict=True)) == [
        pytest.approx(point) for point in listed_front(latency.predict(archs), -energy.predict(archs))
    ]


# --- A lower limit


def window_of(costs: NDArray[Any], low: float, high: float) -> Budget:
    low, high = sorted([low, high])
    return Budget(float(np.quantile(costs, high)), min_cost=float(np.quantile(costs, low)))


@given(
    st.booleans().flatmap(lambda whole: priced_spaces(whole=whole)),
    st.integers(0, 2**32),
    st.booleans(),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=120, deadline=None)
def test_best_and_front_of_a_window_are_those_of_the_list(
    priced: tuple[SearchSpace, FunctionTable], seed: int, dearer_is_worse: bool, low: float, high: float
) -> None:
    space, table = priced
    compiled = compile_space(space, table)
    score = AdditiveScore.of_costs(compiled) if dearer_is_worse else random_score(space, seed)
    costs, scores = listed(compiled, score)
    finite = np.isfinite(costs)
    if not finite.any():
        return
    window = window_of(costs[finite], low, high)
    within = window.holds(costs)
    best = best_under(compiled, score, window) if within.any() else None
    if best is None:
        for ask in (
            lambda: best_under(compiled, score, window),
            lambda: pareto_front(compiled, score, budget=window),
            lambda: pareto_front(compiled, score, budget=window, tick=0.1),
        ):
            with pytest.raises(Infeasible):
                ask()
        return
    assert window.holds(np.array([best.cost])).all()
    assert best.score == pytest.approx(scores[within].max())
    assert (best.cost, best.score) == pytest.approx((compiled.predict(best.arch[None])[0], score(best.arch[None])[0]))
    wanted = listed_front(costs[within], scores[within])
    front = pareto_front(compiled, score, budget=window)
    assert list(zip(front.costs, front.scores, strict=True)) == [pytest.approx(point) for point in wanted]
    ticked = pareto_front(compiled, score, budget=window, tick=0.1)
    assert window.holds(ticked.costs).all()
    assert len(ticked.costs) > 0
    first, last = window.min_cost + ticked.cost_error, window.max_cost - ticked.cost_error
    for cost, scored in zip(costs[within], scores[within], strict=True):
        if first <= cost <= last:
            assert ticked.costs[ticked.scores >= scored - 1e-9].min() <= cost + ticked.cost_error + 1e-9


@given(
    priced_spaces(),
    st.integers(0, 2**32),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
@settings(max_examples=120, deadline=None)
def test_the_best_is_found_from_any_guess(
    priced: tuple[SearchSpace, FunctionTable], seed: int, low: float, high: float, guess: int
) -> None:
    """The guess from ticks is nearly always the best already; what improves it is asked to begin anywhere."""
    space, table = priced
    compiled, score = compile_space(space, table), random_score(space, seed)
    costs, scores = listed(compiled, score)
    finite = np.isfinite(costs)
    if not finite.any():
        return
    for window in (window_of(costs[finite], low, high), Budget(float(np.quantile(costs[finite], high)))):
        within = np.flatnonzero(window.holds(costs))
        if not len(within):
            continue
        any_one = every_arch(space)[within[guess % len(within)]] if guess % 3 else None  # none: archs are drawn
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pareto, "_first_guess", lambda *_, any_one=any_one: any_one)
            best = best_under(compiled, score, window)
        assert window.holds(np.array([best.cost])).all()
        assert best.score == pytest.approx(scores[within].max())


@pytest.mark.parametrize("rising", [True, False])
def test_a_window_of_proxyless_holds_the_best_of_its_front(rising: bool) -> None:
    """2e17 archs, and where dearer is worse no front without a lower limit has any of those."""
    space = spaces.get("proxyless")
    compiled = compile_space(space, UNEVEN)
    rng = np.random.default_rng(2)
    if rising:
        score = AdditiveScore(space=space, values=[rng.random(size) for size in space.sizes])
    else:
        costly = AdditiveScore.of_costs(compiled)
        score = AdditiveScore(
            space=space, values=[0.01 * rng.random(size) for size in space.sizes], tables=costly.tables
        )
    low, high = compiled.min_over(), compiled.max_over()
    for share in (0.3, 0.9):
        floor = low + share * (high - low)
        window = Budget(floor + 0.02 * (high - low), min_cost=floor)
        best = best_under(compiled, score, window)
        assert window.holds(np.array([best.cost])).all()
        front = pareto_front(compiled, score, budget=window, tick=(high - low) / 4000)
        assert window.holds(front.costs).all()
        assert front.scores[-1] <= best.score + 1e-9
        surely = front.costs >= best.cost - front.cost_error
        assert best.score - front.scores[-1] <= 1e-9 or surely[-1]
        drawn = Feasible(compiled, window).sample(rng, 500)
        assert score.score(drawn).max() <= best.score + 1e-9
        narrow = Budget(floor + 1e-6 * (high - low), min_cost=floor)  # narrower than a tick of any table
        inside = best_under(compiled, score, narrow)
        assert narrow.holds(np.array([inside.cost])).all()
        assert score.score(drawn).mean() < inside.score <= best.score + 1e-9


def test_an_empty_window_names_what_is_beside_it() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    score = random_score(EXAMPLE, 0)
    for budget, says in (
        (Budget(9.0, min_cost=8.0), r"costs at most 9, at least 8 in latency_ms; archs cost 3 to 7\.1"),
        (Budget(3.5, min_cost=3.1), r"costs at most 3\.5, at least 3\.1 in latency_ms; archs cost 3 to 7\.1"),
    ):
        with pytest.raises(Infeasible, match=says):
            best_under(compiled, score, budget)
        with pytest.raises(Infeasible, match=says):
            pareto_front(compiled, score, budget=budget)
        with pytest.raises(Infeasible, match=says):
            pareto_front(compiled, score, budget=budget, tick=0.1)


# --- What cannot be


def test_impossible_budget_names_the_cheapest() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    score = random_score(EXAMPLE, 0)
    for ask in (
        lambda: best_under(compiled, score, Budget(2.0)),
        lambda: pareto_front(compiled, score, budget=Budget(2.0)),
    ):
        with pytest.raises(Infeasible, match=r"costs at most 2 in latency_ms; the cheapest costs 3: w=16, d=1, k=3"):
            ask()


def test_nonsense_is_refused() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    with pytest.raises(SpecError, match="score of space 'gated' does not fit space 'example'"):
        best_under(compiled, random_score(GATED, 0), Budget(5.0))
    with pytest.raises(SpecError, match="a tick is above 0"):
        pareto_front(compiled, random_score(EXAMPLE, 0), tick=0.0)
    forbidden = AdditiveScore(space=EXAMPLE, values=[np.zeros(2)] * 3, tables=[(("w",), np.full(2, -math.inf))])
    with pytest.raises(Infeasible, match="has a score"):
        pareto_front(compiled, forbidden)


def test_front_too_long_to_be_exact_names_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_space(spaces.get("proxyless"), UNEVEN)
    score = random_score(compiled.space, 1)
    monkeypatch.setattr(pareto, "_MAX_POINTS", 200)
    with pytest.raises(SpecError, match="count costs in ticks, for example tick="):
        pareto_front(compiled, score)
    monkeypatch.setattr(pareto, "MAX_BYTES", 20_000)
    with pytest.raises(SpecError, match="take a tick of"):
        pareto_front(compiled, score, tick=1e-3)
