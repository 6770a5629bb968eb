"""The machine's trace: speeds a person recognises, sessions end to end, never more points than asked for."""

from __future__ import annotations

import numpy as np
import pytest

from lutbuilder.stats.drift import fit
from lutbuilder.stats.trace import machine_trace
from tests.simulated_visits import Machine, log_spread, simulate

TWO_SPEEDS = Machine(slow=1.7, dwell=400.0, wave=0.0, noise=0.005, instance_sigma=0.0)


def test_the_trace_of_a_machine_of_two_speeds_has_both():
    seen = simulate(log_spread(20), rounds=100, seed=3, machine=TWO_SPEEDS)
    trace = machine_trace(seen.visits, fit(seen.visits).speed, sessions=["s0"], points=200)
    seconds, speeds = np.array(trace).T
    assert len(trace) == 200
    assert (np.diff(seconds) > 0).all()
    assert seconds[-1] == pytest.approx(seen.visits.start_ns.max() / 1e9, rel=0.01)
    assert max(speeds) / min(speeds) == pytest.approx(1.7, rel=0.02)


def test_sessions_follow_each_other_and_others_are_left_out():
    machine = Machine(slow=1.0, wave=0.0, noise=0.001, instance_sigma=0.0, session_log_scales=(0.0, 0.5, 0.0))
    seen = simulate(log_spread(10), rounds=20, seed=1, machine=machine)
    speed = fit(seen.visits).speed
    both = machine_trace(seen.visits, speed, sessions=["s0", "s1"], points=40)
    seconds, speeds = np.array(both).T
    assert (np.diff(seconds) >= 0).all()
    assert speeds[20:].mean() / speeds[:20].mean() == pytest.approx(np.exp(-0.5), rel=0.01)
    alone = machine_trace(seen.visits, speed, sessions=["s1"], points=40)
    assert alone[0][0] < 1.0
    assert seconds[-1] == pytest.approx(2 * alone[-1][0], rel=0.1)


@pytest.mark.parametrize(("points", "left"), [(7, 7), (10_000, 40), (1, 1)])
def test_there_are_at_most_as_many_points_as_visits(points: int, left: int):
    seen = simulate(log_spread(4), rounds=10, seed=0)
    assert len(machine_trace(seen.visits, fit(seen.visits).speed, sessions=["s0"], points=points)) == left


def test_a_session_nobody_measured_in_has_no_trace():
    seen = simulate(log_spread(4), rounds=10, seed=0)
    assert machine_trace(seen.visits, fit(seen.visits).speed, sessions=["gone"], points=9) == ()
