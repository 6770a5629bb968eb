"""Warm-up is tested, not assumed: on simulated visits where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.stats.warmup import Warmup, told_by_calls
from lutbuilder_agent.records import Timing

OP = "op"


@dataclass(frozen=True)
class Visit:
    timing: Timing


def visit(samples: list[int] | np.ndarray, **values: object) -> Visit:
    return Visit(
        Timing(
            op_id=str(values.pop("op_id", OP)),
            round=0,
            order=0,
            instance=0,
            start_ns=0,
            warmup_ns=(),
            samples_ns=tuple(int(ns) for ns in samples),
            **values,  # type: ignore[arg-type]  # preempted, throttled
        )
    )


def visits(
    n: int, *, calls: int = 12, first: float = 1.0, decay: float = 0.0, noise: float = 0.03, seed: int = 0
) -> list[Visit]:
    """Visits on a drifting machine of two speeds, skewed noise; the k-th call takes 1 + (first - 1) decay^k as long."""
    rng = np.random.default_rng(seed)
    plan = 1.0 + (first - 1.0) * np.power(decay, np.arange(calls))
    speed = np.exp(np.cumsum(0.02 * rng.standard_normal(n))) * np.where(rng.random(n) < 0.3, 1.7, 1.0)
    jitter = np.exp(noise * np.abs(rng.standard_normal((n, calls))) * rng.choice([1.0, 3.0], (n, calls), p=[0.9, 0.1]))
    return [visit(1e5 * speed[i] * plan * jitter[i]) for i in range(n)]


def of(raw: list[Visit]) -> Warmup:
    (found,) = told_by_calls(raw).values()
    return found.warmup


def test_an_op_that_is_still_cold_when_counting_begins_is_told_and_by_how_much() -> None:
    found = of(visits(60, first=1.08))
    assert found.settled is False
    assert found.ratio == pytest.approx(1.08, abs=0.015)


def test_a_warm_up_that_lasts_several_calls_is_told_too() -> None:
    assert of(visits(60, first=1.15, decay=0.6)).settled is False


def test_an_op_that_is_slower_later_is_not_settled_either() -> None:
    assert of(visits(60, first=0.9)).settled is False


def test_an_op_that_is_warm_is_settled_whatever_the_machine_does() -> None:
    assert of(visits(60)).settled is True


def test_of_warm_ops_none_is_accused_and_of_cold_ones_none_acquitted() -> None:
    warm = [of(visits(24, seed=seed)).settled for seed in range(150)]
    cold = [of(visits(24, first=1.06, seed=seed)).settled for seed in range(150)]
    assert False not in warm
    assert True not in cold
    assert sum(settled is True for settled in warm) > 75
    assert sum(settled is False for settled in cold) > 75


def test_noise_that_hides_the_answer_is_no_answer() -> None:
    assert of(visits(12, noise=0.3)).settled is None


def test_an_effect_below_two_percent_is_none() -> None:
    assert of(visits(2000, first=1.01, noise=0.02)).settled is True


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = of(visits(20, first=1.05, noise=0.05, seed=seed))
        assert found.lo is not None
        assert found.hi is not None
        held += found.lo <= 1.05 <= found.hi
    assert held >= 0.92 * 200


def test_too_few_visits_say_nothing() -> None:
    few = of(visits(5, first=2.0))
    assert (few.n_visits, few.ratio, few.settled) == (5, None, None)
    assert of(visits(6, first=2.0)).settled is False


def test_blocks_too_short_to_have_a_rest_say_nothing() -> None:
    assert of(visits(50, calls=2, first=2.0)).n_visits == 0


def test_a_disturbed_first_call_is_no_warm_up() -> None:
    raw = [visit([9000, 100, 101, 102], preempted=(0,)) for _ in range(20)]
    raw += [visit([9000, 100, 101, 102], throttled=(0, 1, 2, 3)) for _ in range(20)]
    assert of(raw).n_visits == 0
    calm = [visit([100, 9000, 100, 101], preempted=(1,)) for _ in range(20)]
    assert of(raw + calm).n_visits == 20
    assert of(raw + calm).ratio == pytest.approx(1.0, abs=0.01)


@given(st.permutations(range(12)))
def test_the_order_of_visits_does_not_matter(order: list[int]) -> None:
    raw = visits(12)
    assert told_by_calls(raw[i] for i in order) == told_by_calls(raw)


def test_every_op_is_judged_on_its_own() -> None:
    cold = [Visit(v.timing) for v in visits(40, first=1.2)]
    warm = [visit(v.timing.samples_ns, op_id="warm") for v in visits(40)]  # type: ignore[arg-type]  # a tuple will do
    found = told_by_calls([*cold, *warm])
    assert {op_id: told.warmup.settled for op_id, told in found.items()} == {OP: False, "warm": True}


def test_throttled_calls_are_a_fraction_of_those_whose_device_counts_throttling() -> None:
    raw = [
        visit([1, 1, 1, 1], throttled=(1, 2, 3)),
        visit([1, 1, 1, 1], throttled=()),
        visit([1, 1, 1, 1]),
        visit([1, 1], op_id="silent"),
        visit([1, 1], op_id="calm", throttled=()),
    ]
    fractions = {op_id: told.throttled_fraction for op_id, told in told_by_calls(raw).items()}
    assert fractions == {OP: 3 / 8, "silent": None, "calm": 0.0}
