"""Errors, ranks, intervals and baselines of whole networks are what their names say; reports survive JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from lutbuilder.stats.quality import (
    Accuracy,
    Decile,
    Figure,
    NetworkResult,
    ValidationReport,
    accuracy,
    deciles,
    excess,
    linear_baseline,
    pooled_sd,
    truth_noise,
)
from lutbuilder_agent.errors import ShapeError, SpecError

PROPERTY = settings(max_examples=30, deadline=None)  # no deadline: a busy machine is no failure
FIGURES = ("mape", "rmspe", "bias", "within_5", "within_10", "spearman", "kendall")


def networks(n: int, *, sigma: float = 0.05, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and measured ms of `n` networks; predictions are off by `sigma`, and by 1 % on average."""
    rng = np.random.default_rng(seed)
    measured = rng.uniform(5.0, 20.0, n)
    return measured * np.exp(0.01 + sigma * rng.standard_normal(n)), measured


def a_report() -> ValidationReport:
    predicted, measured = networks(12)
    good = accuracy(predicted, measured)
    tenths = deciles(predicted, measured)
    return ValidationReport(
        lut_sum=good,
        undrifted=good,
        published=None,
        flops_linear=good,
        depth_linear=good,
        deciles=tuple(tenth.mape.value for tenth in tenths),
        fastest=tenths[0],
        slowest=tenths[-1],
        table="example-cpu/onnxruntime-fp32-bs1@1",
        campaign_id="0123456789abcdef",
        seed=1,
        truth_noise=0.002,
        run_noise=0.0035,
        excess_error=excess(good.mape, 0.002),
        excess_over_run=excess(good.mape, 0.0035),
        test_retest_floor=0.004,
        instance_floor=0.0085,
        op_instance_sd=None,
        session_scale=1.01,
        networks_sha256="ab" * 32,
        rounds=20,
        wall_s=600.0,
        timed_fraction=0.93,
        networks=tuple(
            NetworkResult(
                op_id=f"net-{i}",
                group="random",
                measured_ms=float(measured[i]),
                predicted_ms=float(predicted[i]),
                undrifted_ms=float(predicted[i]),
                macs=1_000_000 + i,
                n_ops=20,
                n_visits=60,
                n_instances=3,
                test_retest=0.004 if i else None,
            )
            for i in range(12)
        ),
    )


# --- Accuracy


def test_errors_are_relative_to_the_measured_network():
    measured = np.array([10.0, 20.0, 40.0, 80.0])
    found = accuracy(np.array([10.4, 18.4, 40.0, 92.0]), measured)  # +4 %, -8 %, 0, +15 %
    assert found.n == 4
    assert found.mape.value == pytest.approx(0.0675)
    assert found.bias.value == pytest.approx(0.0275)
    assert found.rmspe.value == pytest.approx(np.sqrt((0.04**2 + 0.08**2 + 0.15**2) / 4))
    assert (found.within_5.value, found.within_10.value) == (0.5, 0.75)
    assert found.worst == pytest.approx(0.15)


@PROPERTY
@given(st.integers(3, 60), st.integers(0, 2**32 - 1), st.booleans())
def test_rank_correlations_are_scipys(n, seed, tied):
    predicted, measured = networks(n, sigma=0.3, seed=seed)
    if tied:
        predicted = np.round(predicted, 0)
    found = accuracy(predicted, measured)
    if np.ptp(predicted) == 0:
        assert found.spearman.value == found.kendall.value == 0.0
    else:
        assert found.spearman.value == pytest.approx(spearmanr(predicted, measured).statistic)
        assert found.kendall.value == pytest.approx(kendalltau(predicted, measured).statistic)


def test_a_perfect_prediction_has_no_error_and_rank_one():
    _, measured = networks(20)
    found = accuracy(measured, measured)
    assert (found.mape, found.rmspe, found.bias) == (Figure(value=0.0, lo=0.0, hi=0.0),) * 3
    assert found.within_5 == Figure(value=1.0, lo=1.0, hi=1.0)
    assert found.worst == 0.0
    for rank in (found.spearman, found.kendall):
        assert (rank.value, rank.lo, rank.hi) == pytest.approx((1.0, 1.0, 1.0))


def test_a_constant_prediction_ranks_nothing_and_says_so():
    _, measured = networks(20)
    found = accuracy(np.full(20, 10.0), measured)
    assert found.spearman == found.kendall == Figure(value=0.0, lo=-1.0, hi=1.0)


@PROPERTY
@given(st.integers(3, 80), st.integers(0, 2**32 - 1))
def test_every_interval_holds_its_figure(n, seed):
    found = accuracy(*networks(n, seed=seed))
    for name in FIGURES:
        figure = getattr(found, name)
        assert figure.lo - 1e-9 <= figure.value <= figure.hi + 1e-9, name


def test_the_bootstrap_is_seeded():
    predicted, measured = networks(20)
    assert accuracy(predicted, measured) == accuracy(predicted, measured)
    again = accuracy(predicted, measured, seed=1)
    assert again.mape.value == accuracy(predicted, measured).mape.value
    assert again.mape.lo != accuracy(predicted, measured).mape.lo


def test_the_interval_of_the_mape_covers_the_mape_of_all_networks():
    true_mape = float(np.mean(np.abs(np.exp(0.01 + 0.05 * np.random.default_rng(0).standard_normal(10**6)) - 1.0)))
    found = [accuracy(*networks(40, seed=seed)).mape for seed in range(120)]
    assert 0.88 <= np.mean([figure.lo <= true_mape <= figure.hi for figure in found]) <= 0.99


@pytest.mark.parametrize("shapes", [((2,), (2,)), ((4,), (5,)), ((2, 2), (2, 2))])
def test_too_few_or_unequal_networks_are_refused(shapes):
    with pytest.raises(ShapeError, match="two equal vectors of at least 3"):
        accuracy(np.ones(shapes[0]), np.ones(shapes[1]))


# --- Deciles and baselines


def test_deciles_go_from_the_fastest_networks_to_the_slowest():
    measured = np.random.default_rng(0).permutation(np.arange(1.0, 41.0))
    found = deciles(measured * (1.0 - measured / 1000), measured)
    assert len(found) == 10
    assert [tenth.mape.value for tenth in found] == pytest.approx([(i + 1.5) / 1000 for i in range(1, 41, 4)])
    assert [tenth.bias.value for tenth in found] == pytest.approx([-(i + 1.5) / 1000 for i in range(1, 41, 4)])
    assert [(tenth.n, tenth.from_ms, tenth.to_ms) for tenth in (found[0], found[-1])] == [
        (4, 1.0, 4.0),
        (4, 37.0, 40.0),
    ]
    assert found[-1].worst == pytest.approx(0.04)
    for tenth in found:
        assert tenth.mape.lo < tenth.mape.value < tenth.mape.hi


def test_fewer_than_ten_networks_have_a_tenth_each():
    found = deciles(np.array([2.2, 1.0, 3.0]), np.array([2.0, 1.0, 3.0]))
    assert [tenth.mape.value for tenth in found] == pytest.approx([0.0, 0.1, 0.0])


@PROPERTY
@given(st.floats(-5.0, 5.0), st.floats(0.01, 10.0), st.integers(0, 2**32 - 1))
def test_a_linear_baseline_is_exact_on_linear_data(a, b, seed):
    feature = np.random.default_rng(seed).uniform(1e8, 9e8, 20)
    measured = 10.0 + a + b * feature / 1e8
    assert linear_baseline(feature, measured) == pytest.approx(measured, rel=1e-6)


def test_a_linear_baseline_minimises_relative_errors():
    rng = np.random.default_rng(0)
    feature = rng.uniform(1.0, 20.0, 50)
    measured = (1.0 + feature) * np.exp(0.1 * rng.standard_normal(50))

    def loss(fitted: NDArray[np.float64]) -> float:
        return float(np.sum((fitted / measured - 1.0) ** 2))

    best = linear_baseline(feature, measured)
    a, b = np.linalg.solve(np.stack([np.ones(2), feature[:2]], axis=1), best[:2])
    for da, db in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert loss(a + da + (b + db) * feature) > loss(best)


def test_a_feature_that_never_changes_gives_a_constant():
    measured = np.array([1.0, 2.0, 3.0])
    assert np.ptp(linear_baseline(np.full(3, 21.0), measured)) == pytest.approx(0.0, abs=1e-12)


def test_a_held_out_baseline_is_what_a_fit_without_the_network_predicts():
    rng = np.random.default_rng(0)
    features = rng.uniform(1.0, 20.0, (12, 2))
    measured = (1.0 + features @ [1.0, 0.2]) * np.exp(0.1 * rng.standard_normal(12))
    found = linear_baseline(features, measured, held_out=True)
    for left_out in (0, 7, 11):
        others = np.arange(12) != left_out
        fitted = linear_baseline(features[others], measured[others])
        design = np.column_stack([np.ones(11), features[others]])
        weights = np.linalg.lstsq(design, fitted, rcond=None)[0]
        assert found[left_out] == pytest.approx(weights @ [1.0, *features[left_out]])


def test_a_held_out_baseline_is_not_flattered():
    predicted, measured = networks(15, sigma=0.2)
    fitted, held_out = (linear_baseline(predicted, measured, held_out=held_out) for held_out in (False, True))
    assert accuracy(held_out, measured).rmspe.value > accuracy(fitted, measured).rmspe.value


def test_a_constant_feature_beside_another_changes_nothing():
    predicted, measured = networks(20)
    with_pixels = np.column_stack([predicted, np.full(20, 224 * 224)])
    for held_out in (False, True):
        found = linear_baseline(with_pixels, measured, held_out=held_out)
        assert found == pytest.approx(linear_baseline(predicted, measured, held_out=held_out), rel=1e-6)


# --- Noise of the truth


def replicated(n: int, *, instances: int, sigma: float, seed: int = 0) -> list[NDArray[np.float64]]:
    """Log times of `instances` preparations of each of `n` networks."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(1.0, 3.0) + sigma * rng.standard_normal(instances) for _ in range(n)]


@pytest.mark.parametrize("instances", [2, 3, 9])
def test_noise_of_the_truth_is_the_expected_error_of_a_mean_and_of_one_preparation(instances):
    found = truth_noise(replicated(400, instances=instances, sigma=0.01))
    assert found is not None
    errors = 0.01 * np.random.default_rng(1).standard_normal((100_000, instances))
    assert found.of_run == pytest.approx(np.abs(errors).mean(), rel=0.08)
    assert found.of_truth == pytest.approx(np.abs(errors.mean(axis=1)).mean(), rel=0.08)


def test_a_perfect_table_has_an_excess_error_of_one():
    true_ms = np.random.default_rng(0).uniform(5.0, 20.0, 400)
    logs = np.log(true_ms)[:, None] + 0.01 * np.random.default_rng(1).standard_normal((400, 3))
    mape = accuracy(true_ms, np.exp(logs.mean(axis=1))).mape
    noise = truth_noise(list(logs))
    assert noise is not None
    found = excess(mape, noise.of_truth)
    assert found is not None
    assert found.value == pytest.approx(1.0, abs=0.1)
    assert found.lo < 1.0 < found.hi
    alone = excess(accuracy(true_ms, np.exp(logs[:, 0])).mape, noise.of_run)
    assert alone is not None
    assert alone.value == pytest.approx(1.0, abs=0.1)


def test_networks_of_unequal_replication_count_by_what_they_rest_on():
    few, many = np.array([0.0, 0.02]), np.array([0.0, 0.02, 0.01, 0.01])
    sd = np.sqrt((0.0002 + 0.0002) / 4)
    assert pooled_sd([few, many]) == pytest.approx(sd)
    found = truth_noise([few, many])
    assert found is not None
    assert found.of_truth == pytest.approx(np.sqrt(2 / np.pi) * sd * (2**-0.5 + 4**-0.5) / 2)


def test_one_instance_of_each_network_tells_no_noise():
    alone = replicated(5, instances=1, sigma=0.01)
    assert (truth_noise(alone), pooled_sd(alone)) == (None, None)
    assert excess(Figure(value=0.01, lo=0.0, hi=0.02), None) is None
    assert excess(Figure(value=0.01, lo=0.0, hi=0.02), 0.0) is None


# --- Reports


@pytest.mark.parametrize("published", [False, True])
def test_a_report_survives_json(published):
    report = a_report()
    if published:
        report = replace(report, published=report.lut_sum)
    assert ValidationReport.from_json(report.to_json()) == report
    assert ValidationReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


_numbers = st.floats(allow_nan=False, allow_infinity=False)
_figures = st.builds(Figure, value=_numbers, lo=_numbers, hi=_numbers)
_deciles = st.builds(
    Decile, n=st.integers(), from_ms=_numbers, to_ms=_numbers, mape=_figures, bias=_figures, worst=_numbers
)
_accuracies = st.builds(Accuracy, n=st.integers(), worst=_numbers, **dict.fromkeys(FIGURES, _figures))


@PROPERTY
@given(_accuracies, st.none() | _accuracies, st.lists(_numbers), st.none() | _numbers, st.text(), st.none() | _deciles)
def test_any_report_survives_json(found, published, tenths, floor, digest, slowest):
    report = replace(
        a_report(),
        lut_sum=found,
        published=published,
        deciles=tuple(tenths),
        test_retest_floor=floor,
        networks_sha256=digest,
        slowest=slowest,
        calibrated=published,
    )
    assert ValidationReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_report_of_the_first_release_is_read_and_takes_the_defaults_of_what_came_later():
    later = {
        "table", "campaign_id", "seed", "n_fitted", "published_shares_visits", "calibrated", "ops_alone",
        "flops_linear_held_out", "depth_linear_held_out", "fastest", "slowest", "truth_noise", "run_noise",
        "excess_error", "excess_over_run", "ops_scale", "published_by_ops",
    }  # fmt: skip  # one list, three lines
    body = {name: value for name, value in a_report().to_json().items() if name not in later}
    for network in body["networks"]:
        del network["published_ms"], network["calibrated_ms"]
    found = ValidationReport.from_json(body)
    assert found.lut_sum == a_report().lut_sum
    assert all(getattr(found, name) in (None, "", 0, False) for name in later)
    assert {network.published_ms for network in found.networks} == {None}


def damaged(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A report's JSON with the value at `path` replaced; Ellipsis removes it."""
    body = json.loads(json.dumps(a_report().to_json()))
    holder: Any = body
    for step in path[:-1]:
        holder = holder[step]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return dict(body)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("lut_sum",), ...),
        (("lut_sum",), None),
        (("lut_sum",), "good"),
        (("lut_sum", "mape"), 0.01),
        (("lut_sum", "mape", "lo"), ...),
        (("lut_sum", "mape", "lo"), "low"),
        (("lut_sum", "n"), 3.5),
        (("published",), 1),
        (("deciles",), 0.1),
        (("deciles", 2), None),
        (("networks", 0), {}),
        (("networks", 0, "n_ops"), True),
        (("networks",), "none"),
        (("networks_sha256",), 7),
        (("wall_s",), False),
        (("a column of the future",), 1),
    ],
    ids=str,
)
def test_a_malformed_report_is_refused_and_named(path, value):
    with pytest.raises(SpecError, match="not a validation report"):
        ValidationReport.from_json(damaged(path, value))


@pytest.mark.parametrize("body", [{}, [], "report", 3, None])
def test_what_is_no_report_at_all_is_refused(body):
    with pytest.raises(SpecError, match="not a validation report"):
        ValidationReport.from_json(body)


def test_the_place_of_a_malformed_value_is_told():
    with pytest.raises(SpecError, match=r"report\.networks\[3\]\.macs must be int, got 'many'"):
        ValidationReport.from_json(damaged(("networks", 3, "macs"), "many"))
