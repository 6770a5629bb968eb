"""Intervals cover what they say, and every column of an estimate is what its docstring promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.stats.drift import fit
from lutbuilder.stats.interval import MIN_ROUNDS, estimate, spread
from lutbuilder.stats.records import OpEstimate, Visits
from tests.simulated_visits import STEADY, Machine, Simulated, changed, log_spread, reordered, simulate

PROPERTY = settings(max_examples=15, deadline=None)  # no deadline: a busy machine is no failure
NOISE = replace(STEADY, noise=0.01)


def by_id(visits: Visits, *, steady: bool = False) -> dict[str, OpEstimate]:
    return {each.op_id: each for each in estimate(visits, steady=steady)}


# --- Coverage


def covered(seen: Simulated) -> float:
    """Share of ops whose interval holds the truth."""
    drift = fit(seen.visits)
    n_visits = np.bincount(seen.visits.op, minlength=len(seen.truth))
    half = spread(seen.visits, drift).half_widths(n_visits)
    return float(np.mean(np.abs(seen.errors(drift.theta)) <= half))


@pytest.mark.parametrize(
    ("rounds", "machine"),
    [
        (MIN_ROUNDS, Machine()),
        (24, Machine()),
        (48, Machine()),
        (24, Machine(slow=1.0)),
        (24, Machine(instance_sigma=0.0)),
        (24, Machine(instance_sigma=0.03)),
        (12, Machine(session_log_scales=(0.0, 0.2))),
    ],
    ids=["fewest_rounds", "usual", "many_rounds", "one_state", "equal_instances", "unequal_instances", "two_sessions"],
)
def test_the_interval_covers_on_a_drifting_machine(rounds, machine):
    """tests/unit/test_coverage.py has the simulated device and the alternatives; here the machine changes more."""
    seen = [simulate(log_spread(24), rounds=rounds, seed=1000 + seed, machine=machine) for seed in range(40)]
    assert 0.92 <= np.mean([covered(each) for each in seen]) <= 0.99


@pytest.mark.parametrize("n_ops", [3, 6, 12])
def test_the_interval_covers_where_few_ops_can_tell_each_other_little(n_ops):
    seen = [simulate(log_spread(n_ops), rounds=24, seed=seed) for seed in range(60)]
    assert 0.92 <= np.mean([covered(each) for each in seen]) <= 0.99


def test_an_op_whose_preparations_differ_more_has_a_wider_interval_and_is_covered():
    """A fifth of the ops with four times the others' instance effects: neither pooled nor left to their own."""
    rng = np.random.default_rng(0)
    all_covered, wild_covered, widths = [], [], []
    for seed in range(40):
        seen = simulate(log_spread(30), rounds=48, seed=seed, machine=Machine(instance_sigma=0.005), instances=6)
        is_wild = np.arange(30) % 5 == 0
        more = 0.02 * rng.standard_normal((30, 6)) * is_wild[:, None]
        visits = changed(
            seen.visits, block_ns=seen.visits.block_ns * np.exp(more[seen.visits.op, seen.visits.instance])
        )
        drift = fit(visits)
        half = spread(visits, drift).half_widths(np.bincount(visits.op))
        is_in = np.abs(seen.errors(drift.theta)) <= half
        all_covered.append(is_in.mean())
        wild_covered.append(is_in[is_wild].mean())
        widths.append(np.median(half[is_wild]) / np.median(half[~is_wild]))
    assert 0.92 <= np.mean(all_covered) <= 0.99
    assert np.mean(wild_covered) >= 0.85
    assert np.mean(widths) > 1.4  # the truth is 4; 30 ops of six instances each cannot tell it more exactly


def test_visits_that_stay_correlated_from_round_to_round_count_for_less():
    """Every op wanders on its own, AR(1) from one of its rounds to the next: 0.8 makes nine visits worth about one."""
    from scipy.signal import lfilter

    is_in, widths = [], []
    for seed in range(30):
        seen = simulate(log_spread(24), rounds=96, seed=seed, machine=replace(NOISE, noise=0.002))
        steps = np.random.default_rng(seed).standard_normal((96, 24))
        wander = 0.02 * np.sqrt(1 - 0.8**2) * lfilter([1.0], [1.0, -0.8], steps, axis=0)
        loud = changed(seen.visits, block_ns=seen.visits.block_ns * np.exp(wander[seen.visits.round, seen.visits.op]))
        is_in.append(covered(replace(seen, visits=loud)))
        widths.append(np.mean([each.half_width for each in estimate(loud)]))
    assert 0.88 <= np.mean(is_in) <= 0.99
    # 2.6 standard errors of 96 visits, were they independent, are 0.4 %.
    assert np.mean(widths) > 0.008


def test_more_rounds_narrow_the_interval():
    machine = Machine(slow=1.0)
    widths = [
        np.mean(
            [each.half_width for each in estimate(simulate(log_spread(30), rounds=n, seed=1, machine=machine).visits)]
        )
        for n in (8, 32, 128)
    ]
    assert widths[0] > widths[1] > widths[2]


def test_changes_of_the_machines_speed_cost_the_interval_little():
    """A visit at a change has neighbours of two speeds: half the change would be the largest error of all."""

    def width(dwell: float) -> float:
        seen = [simulate(log_spread(40), rounds=9, seed=seed, machine=Machine(dwell=dwell)) for seed in range(20)]
        return float(np.mean([np.median([each.half_width for each in estimate(one.visits)]) for one in seen]))

    assert width(60.0) < 1.08 * width(1e9)


def test_unequal_instances_widen_the_interval_and_more_of_them_narrow_it():
    def width(sigma: float, instances: int) -> float:
        machine = replace(NOISE, instance_sigma=sigma)
        seen = simulate(log_spread(30), rounds=48, seed=3, machine=machine, instances=instances)
        return float(np.mean([each.half_width for each in estimate(seen.visits)]))

    assert width(0.05, 3) > 3 * width(0.0, 3)
    assert width(0.05, 12) < 0.7 * width(0.05, 3)


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.05])
def test_instance_sd_is_the_standard_deviation_between_preparations(sigma):
    found = []
    for seed in range(10):
        machine = replace(NOISE, instance_sigma=sigma)
        visits = simulate(log_spread(40), rounds=48, seed=seed, machine=machine, instances=4).visits
        found.append(np.mean(spread(visits, fit(visits)).instance_sd ** 2))
    assert np.sqrt(np.mean(found)) == pytest.approx(sigma, rel=0.2, abs=0.002)


def test_one_instance_says_nothing_about_preparations_and_its_visits_are_all_there_is():
    visits = simulate(log_spread(20), rounds=24, seed=0, instances=1).visits
    told = spread(visits, fit(visits))
    assert np.isnan(told.instance_sd).all()
    assert set(told.freedom) == {23.0}


# --- Sessions and agents


def several(*, sigma: float, sessions: int, seed: int, agents: tuple[str, ...] = ()) -> Simulated:
    """Sessions that each have an effect of their own on every op, beside their scale."""
    scales = tuple(np.random.default_rng(seed).normal(0.0, 0.05, sessions))
    seen = simulate(log_spread(24), rounds=18, seed=seed, machine=replace(NOISE, session_log_scales=scales))
    own = sigma * np.random.default_rng((seed, 1)).standard_normal((sessions, 24))
    block_ns = seen.visits.block_ns * np.exp(own[seen.visits.session, seen.visits.op])
    return replace(seen, visits=replace(changed(seen.visits, block_ns=block_ns), session_agents=agents))


@pytest.mark.parametrize("sessions", [2, 3, 5])
@pytest.mark.parametrize("sigma", [0.0, 0.02])
def test_sessions_that_change_ops_widen_the_interval_so_that_it_covers(sessions, sigma):
    seen = [several(sigma=sigma, sessions=sessions, seed=seed) for seed in range(25)]
    assert 0.92 <= np.mean([covered(each) for each in seen]) <= 0.99


def test_session_sd_is_the_standard_deviation_between_sessions_and_unknown_for_one():
    found = [
        np.square([e.session_sd for e in estimate(several(sigma=0.02, sessions=3, seed=s).visits)]) for s in range(8)
    ]
    assert np.sqrt(np.mean(found)) == pytest.approx(0.02, rel=0.2)
    alone = estimate(several(sigma=0.02, sessions=1, seed=0).visits)
    assert {each.session_sd for each in alone} == {None}


def test_of_agents_with_one_session_each_session_sd_is_how_far_their_sessions_are_apart():
    visits = several(sigma=0.02, sessions=3, seed=0, agents=("a", "b", "c")).visits
    told = [each.session_sd for each in estimate(visits)]
    assert told == pytest.approx([each.session_sd for each in estimate(replace(visits, session_agents=()))])


def test_an_op_of_one_session_among_several_counts_their_spread_too():
    visits = several(sigma=0.03, sessions=3, seed=0).visits
    found = by_id(visits.take((visits.op != 4) | (visits.session == 0)))
    assert found["op4"].session_sd is None
    assert found["op4"].half_width is not None
    assert found["op4"].half_width > 0.05  # 2 * 0.03
    assert found["op5"].half_width is not None
    assert found["op5"].half_width < 0.05


def test_an_op_tied_to_its_scale_by_few_others_has_a_wider_interval():
    """Two sessions share four ops; all others are in one of them, and owe it how well those four tie it."""
    visits = simulate(
        log_spread(40),
        rounds=24,
        seed=0,
        machine=replace(NOISE, instance_sigma=0.02, session_log_scales=(0.0, 0.1)),
        session_ops=[range(22), range(18, 40)],
    ).visits
    told = spread(visits, fit(visits))
    tied, untied = told.variance[18:22], np.delete(told.variance, range(18, 22))
    assert np.median(untied) > 2.2 * np.median(tied)  # of half the instances: 2 times, without what the scale adds


def test_sessions_of_one_agent_are_alike_and_agents_count_as_such():
    """Two devices that differ by 3 % in every op, three sessions each: six sessions are not six devices."""
    agents = ("a", "a", "a", "b", "b", "b")
    seen = several(sigma=0.0, sessions=6, seed=0, agents=agents)
    own = 0.03 * np.random.default_rng(5).standard_normal((2, 24))
    which = (seen.visits.session > 2).astype(int)
    visits = changed(seen.visits, block_ns=seen.visits.block_ns * np.exp(own[which, seen.visits.op]))
    told = spread(visits, fit(visits))
    assert np.sqrt(np.mean(told.agent_sd**2)) == pytest.approx(0.03, rel=0.35)
    assert np.sqrt(np.mean(told.session_sd**2)) < 0.006
    blind = spread(replace(visits, session_agents=()), fit(visits))
    assert np.median(told.variance) > 1.8 * np.median(blind.variance)
    assert {each.n_agents for each in estimate(visits)} == {2}
    assert {each.n_agents for each in estimate(replace(visits, session_agents=()))} == {1}


# --- What an estimate says


def test_fewer_than_six_rounds_give_no_interval():
    five, six = (by_id(simulate(log_spread(5), rounds=n, seed=0).visits) for n in (MIN_ROUNDS - 1, MIN_ROUNDS))
    assert {(each.lo_ms, each.hi_ms, each.half_width) for each in five.values()} == {(None, None, None)}
    for each in six.values():
        assert each.lo_ms is not None
        assert each.hi_ms is not None
        assert each.lo_ms < each.time_ms < each.hi_ms
        assert each.half_width == pytest.approx(0.5 * (each.hi_ms - each.lo_ms) / each.time_ms)


def test_one_op_short_of_rounds_has_no_interval_beside_ops_that_have():
    visits = simulate(log_spread(5), rounds=12, seed=0).visits
    short = by_id(visits.take((visits.op != 1) | (visits.round < MIN_ROUNDS - 1)))
    assert [op for op, each in short.items() if each.half_width is None] == ["op1"]


def test_counts_are_of_visits_rounds_instances_and_sessions():
    machine = replace(STEADY, session_log_scales=(0.0, 0.1))
    visits = simulate(log_spread(2), rounds=7, seed=0, machine=machine, instances=3).visits
    found = by_id(visits.take((visits.op == 0) | (visits.session == 0)))
    assert [(e.n_visits, e.n_rounds, e.n_instances, e.n_sessions) for e in found.values()] == [
        (14, 14, 6, 2),
        (7, 7, 3, 1),
    ]


def test_ops_without_visits_have_no_estimate_and_the_others_keep_their_order():
    visits = simulate(log_spread(4), rounds=6, seed=0).visits
    found = estimate(visits.take(visits.op != 1))
    assert [each.op_id for each in found] == ["op0", "op2", "op3"]
    assert estimate(visits.take(visits.op < 0)) == ()


@pytest.mark.parametrize("rounds", [1, 2])
def test_one_or_two_visits_give_an_estimate_that_claims_nothing(rounds):
    (found,) = estimate(simulate(log_spread(1), rounds=rounds, seed=0, machine=STEADY).visits)
    assert found.time_ms == pytest.approx(0.05)
    assert (found.half_width, found.test_retest, found.bimodal) == (None, None, False)


def test_test_retest_is_the_relative_difference_of_even_and_odd_rounds():
    visits = simulate(log_spread(20), rounds=12, seed=0, machine=STEADY).visits
    slower = np.where((visits.op == 7) & (visits.round % 2 == 0), 1.04, 1.0)
    found = by_id(changed(visits, block_ns=visits.block_ns * slower))
    assert found["op7"].test_retest == pytest.approx(0.04, abs=1e-6)
    assert found["op8"].test_retest == pytest.approx(0.0, abs=1e-6)


def test_test_retest_needs_four_rounds_of_both_kinds():
    visits = simulate(log_spread(20), rounds=16, seed=0).visits
    assert by_id(visits.take(visits.round < 3))["op0"].test_retest is None
    assert by_id(visits.take(visits.round < 4))["op0"].test_retest is not None
    every_second = by_id(visits.take((visits.op != 5) | (visits.round % 2 == 0)))
    assert every_second["op5"].test_retest is None
    assert every_second["op6"].test_retest is not None


def test_an_op_with_two_modes_is_flagged_and_no_other():
    visits = simulate(log_spread(20), rounds=40, seed=0, machine=NOISE).visits
    slow = np.random.default_rng(0).permutation(40)[visits.round] < 14
    found = by_id(changed(visits, block_ns=visits.block_ns * np.where((visits.op == 3) & slow, 1.2, 1.0)))
    assert [op for op, each in found.items() if each.bimodal] == ["op3"]


@pytest.mark.parametrize(("n_slow", "flagged"), [(9, False), (10, True), (20, True), (30, True), (31, False)])
def test_a_mode_holds_at_least_a_quarter_of_the_visits(n_slow, flagged):
    visits = simulate(log_spread(30), rounds=40, seed=0, machine=STEADY).visits
    slow = np.random.default_rng(1).permutation(40)[visits.round] < n_slow
    found = by_id(changed(visits, block_ns=visits.block_ns * np.where((visits.op == 3) & slow, 1.2, 1.0)))
    assert found["op3"].bimodal is flagged


def test_a_machine_of_two_states_makes_no_op_bimodal():
    seen = simulate(log_spread(40), rounds=40, seed=2, machine=Machine(dwell=400.0, instance_sigma=0.0))
    assert not any(each.bimodal for each in estimate(seen.visits))
    assert any(each.bimodal for each in estimate(seen.visits, steady=True))


def test_preempted_fraction_is_of_calls():
    visits = simulate(log_spread(2), rounds=6, seed=0).visits
    n_calls = np.where(visits.op == 0, 10, 30)
    n_preempted = np.where((visits.op == 0) & (visits.round == 2), 9, 0)
    found = by_id(changed(visits, n_calls=n_calls, n_preempted=n_preempted))
    assert (found["op0"].preempted_fraction, found["op1"].preempted_fraction) == (9 / 60, 0.0)


def test_p90_is_the_median_of_the_visits_own_with_the_machines_speed_taken_out():
    seen = simulate(log_spread(30), rounds=24, seed=0, machine=Machine(instance_sigma=0.0))
    for each in estimate(changed(seen.visits, p90_ns=1.3 * seen.visits.block_ns)):
        assert each.p90_ms == pytest.approx(1.3 * each.time_ms, rel=0.03)


@PROPERTY
@given(factor=st.floats(1e-6, 1e6))
def test_a_constant_rescale_of_time_rescales_every_estimate(factor):
    visits = simulate(log_spread(6), rounds=8, seed=6).visits
    rescaled = by_id(changed(visits, block_ns=visits.block_ns * factor, p90_ns=visits.p90_ns * factor))
    for op, each in by_id(visits).items():
        for name in ("time_ms", "lo_ms", "hi_ms", "p90_ms"):
            assert getattr(rescaled[op], name) == pytest.approx(factor * getattr(each, name), rel=1e-9)
        assert rescaled[op].test_retest == pytest.approx(each.test_retest, abs=1e-9)


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_visits_does_not_matter(seed):
    visits = simulate(log_spread(6), rounds=8, seed=7, machine=Machine(session_log_scales=(0.0, 0.1))).visits
    shuffled = np.random.default_rng(seed).permutation(len(visits))
    assert estimate(reordered(visits, shuffled)) == estimate(visits)
