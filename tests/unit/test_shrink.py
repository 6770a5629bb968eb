"""Variances of few are drawn to what all have in common, as far as they have something in common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.stats.shrink import extra_variance, shrunk

PROPERTY = settings(max_examples=60, deadline=None)  # no deadline: a busy machine is no failure


def mean_squares(variances: np.ndarray, freedom: int, *, seed: int) -> np.ndarray:
    return variances * np.random.default_rng(seed).chisquare(freedom, len(variances)) / freedom


def test_equal_variances_are_pooled():
    seen = mean_squares(np.full(200, 4.0), 2, seed=0)
    factor, freedom = shrunk(seen, np.full(200, 2.0))
    assert np.median(factor) == pytest.approx(4.0, rel=0.2)
    assert np.std(np.log(factor)) < 0.1 * np.std(np.log(seen))
    assert freedom.min() > 20


def test_unequal_variances_stay_apart():
    """Drawn as the model has it, inverse chi-square of 4 degrees of freedom: these are found, and added to an op's."""
    variances = 4.0 / np.random.default_rng(1).chisquare(4, 2000)
    seen = mean_squares(variances, 3, seed=2)
    factor, freedom = shrunk(seen, np.full(2000, 3.0))
    assert freedom == pytest.approx(np.full(2000, 4.0 + 3.0), rel=0.15)
    error = np.log(factor / variances)
    assert np.std(error) < 0.8 * np.std(np.log(seen / variances))
    assert np.std(error) < 0.8 * np.std(np.log(variances))


def test_an_op_without_replicates_gets_what_the_others_have_in_common():
    ratio = np.append(mean_squares(np.full(50, 9.0), 3, seed=0), 1.0)
    factor, freedom = shrunk(ratio, np.append(np.full(50, 3.0), 0.0))
    assert factor[-1] == pytest.approx(9.0, rel=0.3)
    assert freedom[-1] <= 150.0


def test_without_any_replicates_nothing_is_known_and_nothing_is_changed():
    factor, freedom = shrunk(np.array([5.0, 7.0]), np.zeros(2))
    assert list(factor) == [1.0, 1.0]
    assert list(freedom) == [np.inf, np.inf]


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_have_nothing_in_common_that_one_could_know(n):
    ratio, freedom = np.array([0.5, 8.0])[:n], np.array([2.0, 3.0])[:n]
    found, certain = shrunk(ratio, freedom)
    assert found == pytest.approx(ratio)
    assert list(certain) == list(freedom)


def test_readings_that_happen_to_agree_exactly_are_not_taken_at_their_word():
    factor, freedom = shrunk(np.array([0.0, 1.0, 0.9, 1.1, 1.2, 0.8]), np.full(6, 4.0))
    assert factor[0] > 0.02
    assert np.isfinite(factor).all()
    assert (freedom > 0).all()


@PROPERTY
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 30)), min_size=1, max_size=20))
def test_whatever_is_given_factors_are_finite_and_nobody_knows_more_than_all(given_):
    ratio, freedom = (np.array(column, float) for column in zip(*given_, strict=True))
    factor, certain = shrunk(ratio, freedom)
    assert (factor >= 0).all()
    assert np.isfinite(factor).all()
    assert (certain <= max(freedom.sum(), 0) + 1e-9).all() or not freedom.any()
    assert (certain > 0).all()


@pytest.mark.parametrize("extra", [0.0, 0.5, 3.0])
def test_extra_variance_is_what_known_variances_leave(extra):
    known = np.linspace(0.1, 1.0, 2001)
    found = extra_variance(mean_squares(known + extra, 2, seed=3), np.full(2001, 2.0), known)
    assert found == pytest.approx(extra, abs=0.12)


def test_one_wild_op_does_not_widen_the_others():
    seen = mean_squares(np.ones(21), 5, seed=0)
    tame = extra_variance(seen, np.full(21, 5.0), np.zeros(21))
    seen[seen.argmax()] = 1e6
    assert extra_variance(seen, np.full(21, 5.0), np.zeros(21)) == tame


def test_extra_variance_is_never_negative_and_unknown_ops_do_not_count():
    assert extra_variance(np.array([1.0, 1.0]), np.array([3.0, 3.0]), np.array([5.0, 5.0])) == 0.0
    assert extra_variance(np.array([9.0]), np.zeros(1), np.zeros(1)) == 0.0
