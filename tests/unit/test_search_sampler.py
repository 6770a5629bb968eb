"""Latency-conditioned sampling: archs of the bucket asked for, uniform within it, the predicted best or worst of k."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from lutbuilder.nas import counting
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.search import LatencySampler, Limit, LimitNeverBinds
from lutbuilder_agent.errors import Infeasible, SpecError
from tests.search_spaces import costs, more_is_better, ofa_like, quantile_of
from tests.small_spaces import every_arch
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE

SPACE = ofa_like(1)
MS = costs(SPACE)
LIMIT = Limit(compiled=MS, min_cost=quantile_of(MS, 0.2), max_cost=quantile_of(MS, 0.6))
STEP = (MS.max_over() - MS.min_over()) / 25


def nothing(archs):
    """Every arch is as good as any other."""
    return np.zeros(len(archs))


def test_every_draw_is_within_the_limit_and_canonical():
    drawn = LatencySampler(LIMIT, more_is_better, step=STEP).draw(np.random.default_rng(0), 200)
    assert LIMIT.budget.holds(MS.predict(drawn)).all()
    assert (SPACE.canonical(drawn) == drawn).all()


@pytest.mark.parametrize("targets", ["archs", "buckets"])
def test_targets_are_drawn_as_archs_lie_or_all_alike(targets):
    sampler = LatencySampler(LIMIT, nothing, step=STEP, k=1, targets=targets)
    archs = every_arch(SPACE)
    there = Counter(np.rint(MS.predict(archs[LIMIT.budget.holds(MS.predict(archs))]) / STEP).astype(int).tolist())
    assert sampler.buckets() == tuple(sorted(there))
    n = 6000
    drawn = Counter(np.rint(MS.predict(sampler.draw(np.random.default_rng(1), n)) / STEP).astype(int).tolist())
    for bucket, count in there.items():
        share = count / sum(there.values()) if targets == "archs" else 1 / len(there)
        assert drawn[bucket] / n == pytest.approx(share, abs=5 * (share / n) ** 0.5)


def test_archs_of_a_bucket_are_drawn_uniformly():
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)  # 3.0 3.6 4.2 4.5 5.0 5.7 5.7 7.1
    sampler = LatencySampler(Limit(compiled=compiled, max_cost=6.0), nothing, step=2.0, k=1)
    drawn = sampler.draw(np.random.default_rng(2), 7000)
    counts = Counter(map(tuple, drawn.tolist()))
    # Bucket 2 (3.0 up to 5.0, for 2.5 rounds to the even 2) and bucket 3 (5.7 5.7) as often as their archs.
    assert set(counts) == {tuple(a) for a in every_arch(EXAMPLE)[compiled.predict(every_arch(EXAMPLE)) < 6].tolist()}
    assert min(counts.values()) > 850


def test_within_a_bucket_every_arch_is_drawn_alike():
    sampler = LatencySampler(LIMIT, nothing, step=STEP, k=1)
    archs = every_arch(SPACE)
    archs = archs[LIMIT.budget.holds(MS.predict(archs))]
    buckets = np.rint(MS.predict(archs) / STEP).astype(int)
    drawn = sampler.draw(np.random.default_rng(7), 40_000)
    target = int(np.median(buckets))
    here = {tuple(a) for a in archs[buckets == target].tolist()}
    counts = Counter(a for a in map(tuple, drawn.tolist()) if a in here)
    assert len(counts) == len(here) > 20
    assert stats.chisquare(list(counts.values())).pvalue > 0.01


def test_one_set_of_tables_serves_all_buckets(monkeypatch):
    made = []
    moved = counting._moved
    monkeypatch.setattr(counting, "_moved", lambda *a, **k: made.append(1) or moved(*a, **k))
    sampler = LatencySampler(LIMIT, nothing, step=STEP / 10)
    sampler.draw(np.random.default_rng(0), 1)
    n_tables = len(made)
    assert len(sampler.buckets()) > 50
    sampler.draw(np.random.default_rng(1), 50)
    assert len(made) == n_tables > 0


@pytest.mark.parametrize("step", [1.0, 2.0, 4.0])
def test_a_limit_on_the_edge_of_a_bucket_leaves_that_one_empty_or_a_single_cost(step):
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)  # 3.0 3.6 4.2 4.5 5.0 5.7 5.7 7.1
    edges = Limit(compiled=compiled, min_cost=4.5, max_cost=5.0)
    sampler = LatencySampler(edges, nothing, step=step, targets="buckets", k=1)
    drawn = sampler.draw(np.random.default_rng(0), 100)
    assert {round(cost, 9) for cost in compiled.predict(drawn).tolist()} == {4.5, 5.0}
    assert sampler.buckets() == tuple(sorted({round(4.5 / step), round(5.0 / step)}))


def test_best_and_worst_of_k_go_either_way():
    means = {
        (attention, k): more_is_better(
            LatencySampler(LIMIT, more_is_better, step=STEP, attention=attention, k=k).draw(
                np.random.default_rng(3), 400
            )
        ).mean()
        for attention, k in (("worst", 10), ("worst", 3), ("best", 1), ("best", 3), ("best", 10))
    }
    assert list(means.values()) == sorted(means.values())


def test_of_k_archs_the_predicted_best_is_kept():
    asked = []

    def predictor(archs):
        asked.append(archs.copy())
        return more_is_better(archs)

    drawn = LatencySampler(LIMIT, predictor, step=STEP, k=4).draw(np.random.default_rng(4), 50)
    (archs,) = asked  # one call for all of them
    scores = more_is_better(archs).reshape(50, 4)
    assert more_is_better(drawn) == pytest.approx(scores.max(axis=1))
    buckets = np.rint(MS.predict(archs) / STEP).reshape(50, 4)
    assert (buckets == buckets[:, :1]).all()


def test_the_generator_fixes_the_draws():
    sampler = LatencySampler(LIMIT, more_is_better, step=STEP)
    fresh = LatencySampler(LIMIT, more_is_better, step=STEP)
    first = sampler.draw(np.random.default_rng(5), 20)
    assert (first == sampler.draw(np.random.default_rng(5), 20)).all()
    assert (first == fresh.draw(np.random.default_rng(5), 20)).all()
    assert (first != sampler.draw(np.random.default_rng(6), 20)).any()


def test_one_bucket_for_the_whole_space_warns_once_of_the_limit_alone():
    with pytest.warns(LimitNeverBinds):
        sampler = LatencySampler(Limit(compiled=MS, max_cost=1e3), nothing, step=1e3)
    assert len(sampler.draw(np.random.default_rng(0), 5)) == 5


def test_what_a_sampler_cannot_be_is_refused():
    with pytest.raises(SpecError, match="buckets wider than 0"):
        LatencySampler(LIMIT, nothing, step=0.0)
    with pytest.raises(SpecError, match="draws 1 or more"):
        LatencySampler(LIMIT, nothing, step=1.0, k=0)
    with pytest.raises(SpecError, match="attention is best or worst"):
        LatencySampler(LIMIT, nothing, step=1.0, attention="up")
    with pytest.raises(Infeasible):
        LatencySampler(Limit(compiled=MS, max_cost=MS.min_over() / 2), nothing, step=1.0)


def test_empty_buckets_between_full_ones_are_left_out():
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)  # 3.0 3.6 4.2 4.5 5.0 5.7 5.7 7.1
    sampler = LatencySampler(Limit(compiled=compiled, max_cost=7.0), nothing, step=0.5, targets="buckets")
    assert sampler.buckets() == (6, 7, 8, 9, 10, 11)
    assert LatencySampler(Limit(compiled=compiled, max_cost=7.0), nothing, step=0.1).buckets() == (
        30,
        36,
        42,
        45,
        50,
        57,
    )


def test_buckets_of_archs_that_all_cost_alike():
    flat = compile_space(SPACE, FunctionTable(name="flat", cost=lambda op: 1.0))
    with pytest.warns(LimitNeverBinds):
        sampler = LatencySampler(Limit(compiled=flat, max_cost=3.0), nothing, step=1.0, targets="buckets")
    assert sampler.buckets() == (1, 2, 3)
