"""The two-way fit finds op effects through a machine that changes speed, whatever the order and the scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lutbuilder.stats.drift import fit, grouped_median, median_of_neighbours
from lutbuilder.stats.records import COLUMNS, Visits
from lutbuilder_agent.errors import ShapeError
from tests.simulated_visits import STEADY, Machine, Simulated, changed, log_spread, reordered, simulate

PROPERTY = settings(max_examples=15, deadline=None)  # no deadline: a busy machine is no failure
NOISE = replace(STEADY, noise=0.01)


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.nanmean(np.square(values))))


def scaled(visits: Visits, factor: float) -> Visits:
    return changed(visits, block_ns=visits.block_ns * factor, p90_ns=visits.p90_ns * factor)


def without(visits: Visits) -> Visits:
    return visits.take(np.zeros(len(visits), np.bool_))


# --- Through a machine that changes speed


def test_the_fit_finds_op_effects_where_plain_medians_do_not():
    fitted, plain = [], []
    for seed in range(6):
        seen = simulate(log_spread(40), rounds=12, seed=seed)
        fitted.append(rms(seen.errors(fit(seen.visits).theta)))
        plain.append(rms(seen.errors(fit(seen.visits, steady=True).theta)))
    assert max(fitted) < 0.02
    assert min(plain) > 0.04
    assert sum(plain) > 5 * sum(fitted)


def test_the_speed_is_the_machines_and_the_residual_what_is_left():
    seen = simulate(log_spread(40), rounds=20, seed=1)
    drift = fit(seen.visits)
    error = drift.speed - seen.log_speed
    assert np.median(drift.speed) == pytest.approx(0.0, abs=0.01)
    assert np.median(np.abs(error - np.median(error))) < 0.01
    assert np.ptp(seen.log_speed) > 0.5
    rebuilt = drift.theta[seen.visits.op] + drift.speed + drift.residual
    assert rebuilt == pytest.approx(np.log(seen.visits.block_ns), abs=1e-9)


def test_ops_of_many_leases_and_ops_of_one_are_on_one_scale():
    off = []
    for seed in range(6):
        # Leases of one session: all ops in the first, a third of them in six others, on a machine of two speeds.
        machine = Machine(session_log_scales=(0.0, 0.5, 0.0, 0.5, 0.5, 0.0, 0.5))
        seen = simulate(log_spread(60), rounds=9, seed=seed, machine=machine, session_ops=[range(60), *[range(20)] * 6])
        lease = seen.visits.session
        visits = changed(
            seen.visits,
            session=np.zeros_like(lease),
            instance=seen.visits.instance + 3 * lease,  # every lease prepares its ops anew
            round=seen.visits.round + 9 * lease,
            start_ns=seen.visits.start_ns + 10**12 * lease,
        )
        error = seen.errors(fit(replace(visits, session_ids=("s",))).theta)
        off.append(error[:20].mean() - error[20:].mean())
    assert rms(np.array(off)) < 0.004, "an instance of an op differs by 1 % from the next"


def test_a_steady_machine_gives_the_exact_effects_and_no_speed():
    seen = simulate(log_spread(9), rounds=4, seed=0, machine=STEADY)
    drift = fit(seen.visits)
    assert drift.theta == pytest.approx(seen.truth, abs=1e-12)
    assert drift.speed == pytest.approx(np.zeros(len(seen.visits)), abs=1e-12)


def test_an_op_effect_is_the_mean_over_its_instances():
    seen = simulate(log_spread(30), rounds=24, seed=2, machine=replace(STEADY, instance_sigma=0.02), instances=4)
    drift = fit(seen.visits, steady=True)
    for op in range(30):
        mine = drift.group_theta[drift.group_op == op]
        assert len(mine) == 4
        assert drift.theta[op] == pytest.approx(mine.mean(), abs=1e-9)


def test_an_instance_seen_once_does_not_weigh_as_much_as_one_seen_often():
    seen = simulate(log_spread(1), rounds=9, seed=0, machine=STEADY)
    first_only = np.arange(9) == 0
    drift = fit(
        changed(
            seen.visits,
            instance=first_only.astype(np.int64),
            block_ns=np.where(first_only, 2.0, 1.0) * seen.visits.block_ns,
        ),
        steady=True,
    )
    assert drift.theta[0] - seen.truth[0] == pytest.approx(np.log(2.0) / 5)


def test_an_outlying_visit_moves_neither_its_op_nor_its_neighbours():
    seen = simulate(log_spread(20), rounds=12, seed=3, machine=NOISE)
    hit = np.where(np.arange(len(seen.visits)) == 77, 10.0, 1.0) * seen.visits.block_ns
    difference = fit(changed(seen.visits, block_ns=hit)).theta - fit(seen.visits).theta
    assert np.abs(difference).max() < 0.005


# --- What must not matter


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_visits_does_not_matter(seed):
    seen = simulate(log_spread(8), rounds=7, seed=5, machine=Machine(session_log_scales=(0.0, 0.3))).visits
    shuffled = np.random.default_rng(seed).permutation(len(seen))
    straight, mixed = fit(seen), fit(reordered(seen, shuffled))
    assert np.array_equal(mixed.theta, straight.theta)
    assert np.array_equal(mixed.speed, straight.speed[shuffled])
    assert np.array_equal(mixed.residual, straight.residual[shuffled])


@PROPERTY
@given(factor=st.floats(1e-6, 1e6))
def test_a_constant_rescale_of_time_rescales_the_effects(factor):
    seen = simulate(log_spread(8), rounds=7, seed=6).visits
    straight, rescaled = fit(seen), fit(scaled(seen, factor))
    assert rescaled.theta == pytest.approx(straight.theta + np.log(factor), abs=1e-9)
    assert rescaled.speed == pytest.approx(straight.speed, abs=1e-9)


# --- Sessions, and campaigns of one session


def two_sessions(shared: int, own: int, scale: float, *, machine: Machine = NOISE, seed: int = 0) -> Simulated:
    """Two sessions of `shared` common ops and `own` each of its own, the second exp(scale) times as slow."""
    truth = np.random.default_rng(seed).permutation(log_spread(shared + 2 * own))
    common = list(range(shared))
    return simulate(
        truth,
        rounds=12,
        seed=seed,
        machine=replace(machine, session_log_scales=(0.0, scale)),
        session_ops=[[*common, *range(shared, shared + own)], [*common, *range(shared + own, shared + 2 * own)]],
    )


@pytest.mark.parametrize("scale", [0.017, 0.2, -0.5])
@pytest.mark.parametrize(("shared", "own"), [(40, 0), (30, 10), (12, 12), (12, 58)])
def test_sessions_of_different_speed_are_tied_by_the_ops_they_share(shared, own, scale):
    seen = two_sessions(shared, own, scale)
    error = seen.errors(fit(seen.visits).theta)
    assert rms(error) < 0.006
    if own:
        between = error[shared : shared + own].mean() - error[shared + own :].mean()
        assert abs(between) < 0.006


def test_campaigns_of_one_session_are_tied_by_the_ops_they_share():
    apart = two_sessions(12, 58, 0.4)
    rounds = apart.visits
    later = rounds.session * (int(rounds.start_ns.max()) + 1)
    together = changed(rounds, session=np.zeros_like(rounds.session), start_ns=rounds.start_ns + later)
    assert rms(apart.errors(fit(together).theta)) < 0.006


def test_sessions_that_share_ops_only_through_a_third_are_tied_too():
    truth = log_spread(60)
    first, middle, last = range(20), [*range(15, 20), *range(20, 40), *range(40, 45)], range(40, 60)
    seen = simulate(
        truth,
        rounds=12,
        seed=4,
        machine=replace(NOISE, session_log_scales=(0.0, 0.3, -0.2)),
        session_ops=[first, middle, last],
    )
    assert rms(seen.errors(fit(seen.visits).theta)) < 0.01


def test_one_changed_op_does_not_mislead_the_tie():
    seen = two_sessions(12, 30, 0.2)
    visits = seen.visits
    doubled = np.where((visits.op == 3) & (visits.session == 1), 2.0, 1.0)
    error = fit(changed(visits, block_ns=visits.block_ns * doubled)).theta - seen.truth
    assert abs(error[12:42].mean() - error[42:].mean()) < 0.01


def test_sessions_without_a_common_op_keep_their_own_scale():
    seen = two_sessions(0, 10, 0.3)
    error = fit(seen.visits).theta - seen.truth
    assert error[10:].mean() - error[:10].mean() == pytest.approx(0.3, abs=0.01)


# --- Little to go by


def test_no_visits_give_no_effects():
    drift = fit(without(simulate(log_spread(3), rounds=2, seed=0).visits))
    assert np.isnan(drift.theta).all()
    assert (len(drift.speed), len(drift.residual), len(drift.group_op)) == (0, 0, 0)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("steady", [False, True])
def test_a_handful_of_visits_of_one_op_is_enough(n, steady):
    seen = simulate(log_spread(1), rounds=n, seed=0, machine=STEADY)
    drift = fit(seen.visits, steady=steady)
    assert drift.theta == pytest.approx(seen.truth)
    assert drift.residual == pytest.approx(np.zeros(n), abs=1e-12)


def test_an_op_without_visits_has_no_effect_and_disturbs_no_other():
    seen = simulate(log_spread(6), rounds=5, seed=0)
    mute = seen.visits.take(seen.visits.op != 2)
    alone = fit(replace(mute, op_ids=(*mute.op_ids, "never")))
    assert np.isnan(alone.theta[[2, 6]]).all()
    assert np.isfinite(alone.theta[[0, 1, 3, 4, 5]]).all()
    assert np.array_equal(alone.theta[:6], fit(mute).theta, equal_nan=True)


def test_visits_of_unequal_columns_or_impossible_times_are_refused():
    seen = simulate(log_spread(2), rounds=2, seed=0).visits
    with pytest.raises(ShapeError, match="differ in length"):
        replace(seen, op=seen.op[:-1])
    for nonsense in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ShapeError, match="finite and positive"):
            replace(seen, block_ns=np.where(np.arange(len(seen)) == 1, nonsense, seen.block_ns))


def test_take_keeps_the_numbers_of_ops_and_sessions():
    seen = simulate(log_spread(3), rounds=2, seed=0).visits
    kept = seen.take(seen.op == 2)
    assert (kept.op_ids, kept.session_ids, len(kept)) == (seen.op_ids, seen.session_ids, 2)
    assert all(len(getattr(kept, name)) == 2 for name in COLUMNS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-1e3, 1e3)), max_size=40))
def test_grouped_median_is_the_median_of_each_group(pairs):
    groups = np.array([group for group, _ in pairs], np.int64)
    values = np.array([value for _, value in pairs], np.float64)
    medians = grouped_median(values, groups, 6)
    for group in range(6):
        mine = values[groups == group]
        assert np.isnan(medians[group]) if not len(mine) else medians[group] == pytest.approx(np.median(mine))


def test_the_fit_settles():
    steps = [fit(simulate(log_spread(20), rounds=12, seed=seed).visits).steps for seed in range(3)]
    assert all(1 < n < 30 for n in steps)


@pytest.mark.parametrize("n", [1, 2, 7, 14, 15, 16, 100])
def test_the_running_median_is_scipys(n):
    from scipy.ndimage import median_filter

    values = np.random.default_rng(n).standard_normal(n).round(1)  # with ties
    for size in {min(15, n), min(4, n)}:
        assert (median_of_neighbours(values, size) == median_filter(values, size=size, mode="nearest")).all()
