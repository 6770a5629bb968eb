"""Sessions are compared by rule: what is out of line is flagged, what is ordinary is not, and two never exclude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lutbuilder.stats.drift import fit
from lutbuilder.stats.records import Visits
from lutbuilder.stats.sessions import (
    LEAST_DRIFT,
    LEAST_RESIDUAL,
    SessionReport,
    agent_reports,
    exclude_flagged,
    session_reports,
)
from tests.simulated_visits import STEADY, Machine, changed, log_spread, simulate

MACHINE = Machine(slow=1.0, noise=0.01, wave=0.02)


def sessions(
    op_sigmas: Sequence[float],
    *,
    seed: int = 0,
    n_ops: int = 30,
    session_ops: Sequence[Sequence[int]] | None = None,
    agents: tuple[str, ...] = (),
    scales: tuple[float, ...] | None = None,
) -> Visits:
    """One session per entry, in which every op is off by so much (sd of log time), beside the session's scale."""
    rng = np.random.default_rng((seed, 3))
    drawn = tuple(rng.normal(0.0, 0.05, len(op_sigmas)))
    machine = replace(MACHINE, session_log_scales=scales or drawn)
    visits = simulate(log_spread(n_ops), rounds=18, seed=seed, machine=machine, session_ops=session_ops).visits
    own = np.array(op_sigmas)[:, None] * rng.standard_normal((len(op_sigmas), n_ops))
    loud = changed(visits, block_ns=visits.block_ns * np.exp(own[visits.session, visits.op]))
    return replace(loud, session_agents=agents)


def reports(visits: Visits, *, exclude: bool = False) -> tuple[SessionReport, ...]:
    return session_reports(visits, fit(visits), exclude=exclude)


def flagged(visits: Visits) -> list[str]:
    return [report.session_id for report in reports(visits) if report.flagged]


# --- What a report says


def test_a_report_tells_scale_drift_and_how_far_the_ops_are_off():
    visits = sessions([0.01, 0.01, 0.04, 0.01], scales=(0.0, 0.0, 0.0, 0.12), agents=("a", "a", "b", "b"))
    found = reports(visits)
    assert [(r.session_id, r.agent, r.n_visits) for r in found] == [
        (f"s{k}", agent, 540) for k, agent in enumerate("aabb")
    ]
    assert found[3].scale == pytest.approx(0.12, abs=0.02)
    assert found[0].scale == pytest.approx(-0.04, abs=0.02)  # relative to the others' mean
    assert found[2].sentinel_residual == pytest.approx(0.04, rel=0.4)
    for report in found:
        assert report.drift_range == pytest.approx(0.04, rel=0.5)  # a wave of 0.02 on either side


def test_the_only_session_is_compared_with_nothing():
    (only,) = reports(sessions([0.05]))
    assert (only.scale, only.sentinel_residual, only.flagged, only.reason, only.agent) == (0.0, 0.0, False, "", "")


def test_without_visits_there_are_no_reports():
    visits = sessions([0.0])
    nothing = visits.take(visits.op < 0)
    assert session_reports(nothing, fit(visits)) == ()
    assert agent_reports(nothing, fit(visits)) == ()


def test_the_residual_is_the_sessions_own_whoever_it_is_compared_with():
    """Of three sessions one is off by 5 %: each pair with it differs by 5 %, and still the others are not blamed."""
    found = [reports(sessions([0.0, 0.0, 0.05], seed=seed)) for seed in range(10)]
    means = np.mean([[r.sentinel_residual for r in each] for each in found], axis=0)
    assert means[2] == pytest.approx(0.05, rel=0.25)
    assert max(means[:2]) < 0.02


# --- Rules


@pytest.mark.parametrize("n", [3, 4, 6])
def test_a_session_whose_ops_are_out_of_line_is_flagged_and_no_other(n):
    for seed in range(6):
        assert flagged(sessions([0.005] * (n - 1) + [0.06], seed=seed)) == [f"s{n - 1}"]


@pytest.mark.parametrize("sigma", [0.0, 0.005, 0.02])
def test_sessions_that_are_alike_are_not_flagged_however_much_each_changes_ops(sigma):
    counts = [len(flagged(sessions([sigma] * 4, seed=seed))) for seed in range(15)]
    assert sum(counts) <= 1


def test_a_small_residual_is_never_flagged():
    quiet = replace(STEADY, noise=1e-5, session_log_scales=(0.0, 0.1, 0.2))
    visits = simulate(log_spread(30), rounds=18, seed=0, machine=quiet).visits
    own = 0.5 * LEAST_RESIDUAL * np.random.default_rng(0).standard_normal(30)
    louder = np.where(visits.session == 2, np.exp(own[visits.op]), 1.0)
    found = reports(changed(visits, block_ns=visits.block_ns * louder))
    assert found[2].sentinel_residual > 4 * max(r.sentinel_residual for r in found[:2])
    assert not any(r.flagged for r in found)


def test_of_two_sessions_that_disagree_both_are_flagged_for_nobody_knows_which_is_wrong():
    found = reports(sessions([0.0, 0.08]), exclude=True)
    assert [r.flagged for r in found] == [True, True]
    assert [r.excluded for r in found] == [False, False]
    assert found[0].sentinel_residual == pytest.approx(found[1].sentinel_residual)


def test_a_session_that_drifts_more_than_the_others_is_flagged():
    visits = sessions([0.0, 0.0, 0.0])
    heat = np.where(visits.session == 1, 1.0 + 3.0 * visits.start_ns / visits.start_ns.max(), 1.0)
    found = reports(changed(visits, block_ns=visits.block_ns * heat))
    assert [r.flagged for r in found] == [False, True, False]
    assert "drifted by" in found[1].reason
    assert found[1].drift_range == pytest.approx(np.log(3.85 / 1.15), abs=0.1)


def test_a_drift_below_the_least_is_never_flagged():
    visits = simulate(
        log_spread(20), rounds=18, seed=0, machine=replace(STEADY, noise=0.001, session_log_scales=(0.0, 0.0, 0.0))
    ).visits
    rise = 0.8 * LEAST_DRIFT * visits.start_ns / visits.start_ns.max()
    found = reports(changed(visits, block_ns=visits.block_ns * np.exp(np.where(visits.session == 0, rise, 0.0))))
    assert found[0].drift_range > 10 * found[1].drift_range
    assert not found[0].flagged


def test_a_session_that_shares_too_few_ops_is_flagged():
    found = reports(sessions([0.0] * 3, session_ops=[range(20), range(20), range(18, 30)]))
    assert [r.flagged for r in found] == [False, False, True]
    assert "its scale is not tied" in found[2].reason


# --- Exclusion


def test_flagged_sessions_are_left_out_by_rule_and_the_others_keep_their_numbers():
    visits = sessions([0.0, 0.06, 0.0, 0.0])
    marked = reports(visits, exclude=True)
    assert [r.excluded for r in marked] == [False, True, False, False]
    kept = exclude_flagged(visits, marked)
    assert kept.session_ids == visits.session_ids
    assert set(kept.session) == {0, 2, 3}
    assert len(kept) == len(visits) - marked[1].n_visits
    assert exclude_flagged(visits, reports(visits)) is not visits  # nothing was to be excluded
    assert len(exclude_flagged(visits, reports(visits))) == len(visits)


def test_nothing_is_excluded_where_most_are_out_of_line():
    """Of four, two drift: whether they or the calm ones are the rule nobody knows."""
    visits = sessions([0.0, 0.0, 0.0, 0.0])
    heat = np.where(visits.session < 2, 1.0 + 9.0 * visits.start_ns / visits.start_ns.max(), 1.0)
    found = reports(changed(visits, block_ns=visits.block_ns * heat), exclude=True)
    assert sum(r.flagged for r in found) in (0, 2)
    assert not any(r.excluded for r in found)


# --- Agents


def two_agents(*, sigma: float, odd: Sequence[int] = (), each: int = 3, seed: int = 0) -> Visits:
    """Two devices with `each` sessions; device b is 10 % slower, and 15 % faster still at the `odd` ops."""
    agents = ("a",) * each + ("b",) * each
    visits = sessions([sigma] * 2 * each, agents=agents, seed=seed, scales=(0.0,) * each + (0.1,) * each)
    is_odd = np.isin(visits.op, odd) & (visits.session >= each)
    return changed(visits, block_ns=visits.block_ns * np.where(is_odd, 0.85, 1.0))


def test_ops_that_one_device_runs_differently_are_named_and_its_scale_is_no_difference():
    visits = two_agents(sigma=0.005, odd=(3, 17))
    first, second = agent_reports(visits, fit(visits))
    assert (first.agent, first.n_sessions, first.n_visits, first.n_ops) == ("a", 3, 1620, 30)
    assert (first.scale, second.scale) == (pytest.approx(-0.1, abs=0.01), pytest.approx(0.1, abs=0.01))
    assert second.inconsistent == ("op3", "op17")


@pytest.mark.parametrize("each", [1, 3])
def test_devices_that_are_alike_have_few_inconsistent_ops(each):
    """Sessions that change ops are no difference between devices; of one session each that cannot be told."""
    sigma = 0.01 if each > 1 else 0.0
    found = [agent_reports(v := two_agents(sigma=sigma, each=each, seed=seed), fit(v)) for seed in range(12)]
    assert np.mean([len(report.inconsistent) > 0 for pair in found for report in pair]) <= 0.1


def test_without_names_there_are_no_agents():
    visits = sessions([0.0, 0.0])
    assert agent_reports(visits, fit(visits)) == ()
