"""Imputation judged on a real machine: a width grid measured whole, of which a quarter is shown and the rest predicted.

The figures are means over designs that differ in which 85 % of the shapes may be measured at all.
`benchmarks/compare_impute.py` prints them for other shares and other ways to choose and to fill in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from lutbuilder.campaign.knots import impute_ops, log_sd
from tests.recorded_grid import Grid, load

SHARE = 0.25
DESIGNS = 4
NORMAL_90 = 1.644854


@dataclass(frozen=True)
class Judged:
    """What one design predicts of the shapes it did not measure: errors, and those of random networks, relative."""

    share: float
    error: NDArray[np.float64]
    covered: NDArray[np.bool_]
    predicted: NDArray[np.float64]
    networks: NDArray[np.float64]
    net_networks: NDArray[np.float64]


@pytest.fixture(scope="module")
def grid() -> Grid:
    return load()


@pytest.fixture(scope="module")
def judged(grid: Grid) -> list[Judged]:
    shapes = grid.shapes
    truth = np.array([grid.ops[op].time_ms for op in shapes])
    noise = np.array([log_sd(grid.ops[op]) for op in shapes])
    networks = grid.networks(200, seed=0)
    whole = np.array(list(grid.net_ms(shapes).values()))
    found = []
    for seed in range(DESIGNS):
        rng = np.random.default_rng(seed)
        knots = grid.knots(int(SHARE * len(shapes)), [op for op in shapes if rng.random() < 0.85])
        told = impute_ops(shapes, {op: grid.ops[op] for op in knots})
        rest = ~np.isin(np.arange(len(shapes)), [shapes.index(op) for op in knots])
        filled = np.where(rest, told.ms, truth)
        # The truth is a measurement, too: its own noise adds to what the interval promises.
        reach = np.hypot(told.radius(0.9) * told.sd, NORMAL_90 * noise)
        net = np.array(list(grid.net_ms(knots).values()))
        found.append(
            Judged(
                share=float(np.mean(~rest)),
                error=np.abs(told.ms / truth - 1)[rest],
                covered=(np.abs(np.log(told.ms / truth)) <= reach)[rest],
                predicted=told.ms,
                networks=np.abs(networks @ filled / (networks @ truth) - 1),
                net_networks=np.abs(networks @ net / (networks @ whole) - 1),
            )
        )
    return found


def test_the_grid_is_as_large_and_as_well_measured_as_the_claims_need(grid: Grid) -> None:
    assert len(grid.shapes) == 541
    assert len({op.height for op in grid.shapes}) == 5
    assert min(estimate.n_visits for estimate in grid.ops.values()) >= 40
    assert min(estimate.n_instances for estimate in grid.ops.values()) >= 3
    assert np.median([log_sd(grid.ops[op]) for op in grid.shapes]) < 0.01


def test_a_quarter_of_the_shapes_tells_the_others_within_3_percent_and_19_of_20_within_10(judged: list[Judged]) -> None:
    assert max(one.share for one in judged) <= 0.25
    for one in judged:
        assert one.error.mean() < 0.015, "wanted: 3 %"
        assert np.quantile(one.error, 0.95) < 0.04, "wanted: 10 %"


def test_intervals_at_nominal_90_percent_hold_87_to_93_percent_of_the_shapes(judged: list[Judged]) -> None:
    assert 0.87 <= np.mean([one.covered.mean() for one in judged]) <= 0.93


def test_no_prediction_is_negative(judged: list[Judged]) -> None:
    assert all((one.predicted > 0).all() for one in judged)


def test_networks_summed_from_a_quarter_of_the_shapes_are_those_summed_from_all(judged: list[Judged]) -> None:
    for one in judged:
        assert one.networks.mean() < 0.006
        assert one.networks.max() < 0.025
        assert one.net_networks.mean() < 0.01, "with the call overheads imputed as well"


def test_chosen_shapes_tell_more_than_random_ones(grid: Grid, judged: list[Judged]) -> None:
    truth = np.array([grid.ops[op].time_ms for op in grid.shapes])
    networks = grid.networks(200, seed=0)
    at_random = []
    for seed in range(3):
        drawn = np.random.default_rng(seed).permutation(len(truth))[: int(SHARE * len(truth))]
        told = impute_ops(grid.shapes, {grid.shapes[i]: grid.ops[grid.shapes[i]] for i in drawn})
        filled = told.ms.copy()
        filled[drawn] = truth[drawn]
        at_random.append(np.abs(networks @ filled / (networks @ truth) - 1).mean())
    assert np.mean([one.networks.mean() for one in judged]) < 0.5 * np.mean(at_random)
