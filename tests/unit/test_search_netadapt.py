"""NetAdapt: every step saves what it has to, the most accurate proposal is kept, and the limit ends it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.lower import lower
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.search import Limit, NetAdapt, StateFile, netadapt
from lutbuilder_agent.errors import Infeasible, SpecError
from tests.search_spaces import costs, more_is_better, quantile_of, width_space

PROPERTY = settings(max_examples=30, deadline=None)  # no deadline: a busy machine is no failure
SPACE = width_space(5, full=80)
MACS = compile_space(SPACE, FunctionTable(name="macs", cost=lambda op: lower(op).macs / 1e3))
LIMIT = Limit(compiled=MACS, max_cost=0.3 * MACS.max_over())


def test_each_step_saves_its_share_of_the_first_cost_until_the_limit_is_kept():
    how = NetAdapt(step=0.1, decay=0.9, iterations=50)
    found = netadapt(LIMIT, more_is_better, how)
    assert found.ended == "limit"
    assert found.costs[-1] <= LIMIT.max_cost < found.costs[-2]
    assert found.costs == pytest.approx(MACS.predict(found.archs))
    for iteration, (before, after) in enumerate(zip(found.costs, found.costs[1:], strict=False)):
        assert after <= max(before - 0.1 * 0.9**iteration * found.costs[0], LIMIT.max_cost) + 1e-9
    changed = (np.diff(found.archs.astype(int), axis=0) != 0).sum(axis=1)
    assert (changed == 1).all()  # one layer an iteration


def test_the_proposals_are_the_largest_of_each_layer_and_the_most_accurate_is_kept():
    asked: list[np.ndarray] = []

    def accuracy(archs):
        asked.append(archs.copy())
        return more_is_better(archs)

    found = netadapt(LIMIT, accuracy, NetAdapt(step=0.05, iterations=3))
    before = found.archs[0]
    assert (before == [9] * 5).all()
    most = found.costs[0] * 0.95
    proposals = asked[1]
    assert len(proposals) == 5  # any layer alone can save a twentieth
    for proposal in proposals:
        (column,) = np.flatnonzero(proposal != before)
        larger = proposal.copy()
        larger[column] += 1
        assert MACS.predict(proposal[None])[0] <= most < MACS.predict(larger[None])[0]
    assert found.scores[1] == more_is_better(proposals).max()
    assert found.n_scored == sum(len(archs) for archs in asked)


@PROPERTY
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.01, 0.3))
@pytest.mark.filterwarnings("ignore::lutbuilder.nas.search.LimitNeverBinds")
def test_it_ends_at_the_limit_or_says_why_not(seed, share, step):
    table = FunctionTable(
        name="any", cost=lambda op: float(np.random.default_rng([seed, int(op.op_id[:8], 16)]).random())
    )
    compiled = costs(width_space(4), table)
    limit = Limit(compiled=compiled, max_cost=quantile_of(compiled, share))
    found = netadapt(limit, more_is_better, NetAdapt(step=step, iterations=12))
    kept = bool(limit.budget.holds(found.costs[-1:])[0])
    assert kept == (found.ended == "limit")
    assert (np.diff(found.costs) < 0).all()
    if found.ended == "iterations":
        assert len(found.archs) == 13
    if found.ended == "stuck":
        assert len(found.archs) < 13


def test_layers_that_cannot_save_a_step_leave_it_stuck():
    found = netadapt(LIMIT, more_is_better, NetAdapt(step=0.6, decay=1.0, iterations=5))
    assert found.ended == "stuck"
    assert len(found.archs) == 1


def test_a_network_within_the_limit_is_left_as_it_is():
    start = np.array([2, 2, 2, 2, 2])
    found = netadapt(LIMIT, more_is_better, start=start)
    assert (found.ended, found.archs.tolist()) == ("limit", [start.tolist()])


def test_it_killed_and_resumed_ends_the_same(tmp_path):
    how = NetAdapt(step=0.05, iterations=40)
    whole = netadapt(LIMIT, more_is_better, how)
    state = StateFile(path=tmp_path / "state.npz", every=1000)
    written = []

    def kill(progress):
        written.append(state.generation())
        if progress.generation == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        netadapt(LIMIT, more_is_better, how, on_progress=kill, state=state)
    assert written == [0, 1, 2, 3, 4, 5]  # every iteration: one may take hours
    found = netadapt(LIMIT, more_is_better, how, state=state)
    assert len(whole.archs) > 6
    assert np.array_equal(found.archs, whole.archs)
    assert np.array_equal(found.scores, whole.scores)
    assert (found.ended, found.n_scored) == (whole.ended, whole.n_scored)
    with pytest.raises(SpecError, match="another search: its step is"):
        netadapt(LIMIT, more_is_better, NetAdapt(step=0.06, iterations=40), state=state)


def test_the_published_schedule_makes_a_mobilenet_cheaper_step_by_step():
    compiled = compile_space(
        spaces.get("netadapt-step32"), FunctionTable(name="macs", cost=lambda op: lower(op).macs / 1e6), "macs"
    )
    found = netadapt(Limit(compiled=compiled, max_cost=0.25 * compiled.max_over()), more_is_better)
    assert NetAdapt() == NetAdapt(step=0.025, decay=0.96, iterations=30)
    assert found.costs[0] == compiled.max_over()
    assert found.costs[10] <= found.costs[0] * (1 - 0.025 * (1 - 0.96**10) / 0.04)


def test_what_netadapt_cannot_begin_with_is_refused():
    with pytest.raises(Infeasible, match="cheapest"):
        netadapt(Limit(compiled=MACS, max_cost=MACS.min_over() / 2), more_is_better)
    words = compile_space(spaces.get("proxyless"), FunctionTable(name="macs", cost=lambda op: lower(op).macs / 1e6))
    with pytest.raises(SpecError, match="'layer1' has no order to go down"):
        netadapt(Limit(compiled=words, max_cost=quantile_of(words, 0.5)), more_is_better)
    failed = next(op for op in SPACE.ops() if op.out_channels == 80)
    broken = compile_space(
        SPACE, FunctionTable(name="broken", cost=lambda op: 1.0 + op.out_channels, runs=lambda op: op != failed)
    )
    with pytest.raises(SpecError, match="cannot begin with"):
        netadapt(Limit(compiled=broken, max_cost=200.0), more_is_better)
    for wrong in ({"step": 0.0}, {"step": 1.0}, {"decay": 0.0}, {"decay": 1.1}, {"iterations": -1}):
        with pytest.raises(SpecError):
            NetAdapt(**wrong)
