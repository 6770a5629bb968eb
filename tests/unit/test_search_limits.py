"""Limits: checked before a search, kept by every draw; what no arch keeps is refused with the lowest cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.search import BitEnvironment, ChannelEnvironment, Evolution, LatencySampler, netadapt, search
from lutbuilder.nas.search.limits import Limit, LimitNeverBinds, Limits, as_limits
from lutbuilder.nas.uncertainty import Uncertainty
from lutbuilder_agent.errors import Infeasible, SpecError
from tests.search_spaces import bit_space, costs, more_is_better, ofa_like, quantile_of, uneven_ms
from tests.small_spaces import every_arch, priced_spaces
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE

PROPERTY = settings(max_examples=40, deadline=None)  # no deadline: a busy machine is no failure
MS = compile_space(EXAMPLE, EXAMPLE_TABLE)
MJ = compile_space(EXAMPLE, FunctionTable(name="energy", cost=lambda op: 10.0 / op.out_channels), "energy_mj")
UJ = compile_space(EXAMPLE, FunctionTable(name="other", cost=lambda op: float(op.kernel)), "energy_mj")


def test_a_limit_no_arch_keeps_is_refused_with_the_lowest_cost_and_its_arch():
    with pytest.raises(Infeasible, match=r"(?s)3\b.*w=16, d=1, k=3"):
        Limits.of(Limit(compiled=MS, max_cost=2.9))
    with pytest.raises(Infeasible):
        Limits.of(Limit(compiled=MS, max_cost=9.0, min_cost=7.2))


def test_two_limits_that_only_exclude_each_other_are_refused_when_drawn():
    both = Limits.of(Limit(compiled=MS, max_cost=3.0), Limit(compiled=MJ, max_cost=MJ.min_over()))
    with pytest.raises(Infeasible):
        both.sample(np.random.default_rng(0), 1)


def test_a_space_without_an_arch_that_runs_is_refused():
    broken = compile_space(
        EXAMPLE, FunctionTable(name="broken", cost=lambda op: 1.0, runs=lambda op: op.kind != "conv")
    )
    with pytest.raises(Infeasible):
        Limits.of(Limit(compiled=broken, max_cost=9.0))


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf])
def test_a_limit_is_a_number(limit):
    with pytest.raises(SpecError, match="a limit is a number"):
        Limit(compiled=MS, max_cost=limit)


def test_limits_of_two_spaces_and_no_limit_at_all_are_refused():
    with pytest.raises(SpecError, match="of one space, got 'example' and 'bits'"):
        Limits.of(Limit(compiled=MS, max_cost=5.0), Limit(compiled=costs(bit_space()), max_cost=5.0))
    with pytest.raises(SpecError, match="needs a limit"):
        as_limits([])


def test_a_limit_above_every_arch_is_warned_of_and_a_window_is_not():
    with pytest.warns(LimitNeverBinds, match=r"never binds: archs of 'example' have latency_ms from 3 to 7\.1"):
        Limits.of(Limit(compiled=MS, max_cost=7.2)).warn_if_loose()
    Limits.of(Limit(compiled=MS, max_cost=7.2, min_cost=4.0)).warn_if_loose()


def test_the_cheapest_arch_is_the_cheapest():
    assert Limits.of(Limit(compiled=MS, max_cost=5.0)).cheapest.tolist() == [0, 0, 0]


@PROPERTY
@given(priced_spaces(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_draws_are_those_and_only_those_that_keep_the_limit(priced, low, high, seed):
    space, table = priced
    compiled = compile_space(space, table)
    archs = every_arch(space)
    finite = np.isfinite(compiled.predict(archs)) if len(archs) else np.zeros(0, dtype=bool)
    assume(finite.any())
    limit = Limit(
        compiled=compiled,
        max_cost=quantile_of(compiled, max(low, high)),
        min_cost=quantile_of(compiled, min(low, high)) - 0.1,
    )
    expected = archs[limit.budget.holds(compiled.predict(archs))]
    limits = Limits.of(limit)
    assert (limits.kept(limits.costs(archs.astype(np.int8))) == limit.budget.holds(compiled.predict(archs))).all()
    if len(expected) == 0:
        with pytest.raises(Infeasible):
            limits.sample(np.random.default_rng(seed), 1)
        return
    drawn = limits.sample(np.random.default_rng(seed), 60 * len(expected))
    assert {tuple(a) for a in drawn.tolist()} == {tuple(a) for a in expected.tolist()}


def test_three_limits_are_kept_together():
    limits = Limits.of(
        Limit(compiled=MS, max_cost=5.75), Limit(compiled=MJ, max_cost=1.4), Limit(compiled=UJ, max_cost=9.0)
    )
    drawn = limits.sample(np.random.default_rng(0), 50)
    archs = every_arch(EXAMPLE)
    kept = archs[(MS.predict(archs) <= 5.75) & (MJ.predict(archs) <= 1.4) & (UJ.predict(archs) <= 9.0)]
    assert {tuple(a) for a in drawn.tolist()} == {tuple(a) for a in kept.tolist()}
    assert 0 < len(kept) < 8


def test_a_third_limit_hardly_any_draw_keeps_names_the_lowest_costs():
    fewest = compile_space(EXAMPLE, FunctionTable(name="three", cost=lambda op: float(op.kernel)), "energy_mj")
    limits = Limits.of(
        Limit(compiled=MS, max_cost=7.1, min_cost=7.0),
        Limit(compiled=MJ, max_cost=9.0),
        Limit(compiled=fewest, max_cost=6.0),
    )
    with pytest.raises(
        Infeasible,
        match=r"no arch of 'example' costs at most 7\.1, at least 7 in latency_ms and .* and at most 6 in energy_mj; ",
    ):
        limits.sample(np.random.default_rng(0), 5)


# --- At a confidence


@dataclass(frozen=True, kw_only=True)
class Unsure:
    """A table of a space whose rows are off by up to `width`, each by another share of it."""

    name: str = "unsure"
    version: int = 1
    content_hash: str = ""
    width: float = 0.1

    def __contains__(self, op: object) -> bool:
        return True

    def column(self, ops, name):
        ms = np.array([uneven_ms(op) for op in ops])
        half = self.width * ms * np.array([int(op.op_id[4:8], 16) / 2**16 for op in ops])
        sides = {"latency_ms": 0, "latency_lo_ms": -1, "latency_hi_ms": 1}
        return ms + sides[name] * half if name in sides else np.full(len(ops), math.nan)

    def texts(self, ops, name):
        return ("native" if name == "exec_status" else "measured",) * len(ops)


def surely(compiled, max_cost, confidence=0.95):
    return Limit(compiled=compiled, max_cost=max_cost, confidence=confidence)


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("listable", [20_000, 0])
def test_draws_at_a_confidence_are_surely_below(share, listable, monkeypatch):
    monkeypatch.setattr("lutbuilder.nas.budget.LISTABLE", listable)
    compiled = compile_space(ofa_like(1), Unsure())
    archs = every_arch(compiled.space)
    limit = surely(compiled, quantile_of(compiled, share))
    sure = compiled.uncertainty.surely_below(archs, limit.max_cost, confidence=0.95)
    assert 0 < sure.sum() < (compiled.predict(archs) <= limit.max_cost).sum()
    limits = Limits.of(limit)
    assert (limits.held(archs.astype(np.int8), limits.costs(archs)) == sure).all()
    drawn = limits.sample(np.random.default_rng(0), 40 * int(sure.sum()))
    assert {tuple(a) for a in drawn.tolist()} <= {tuple(a) for a in archs[sure].tolist()}
    assert len(np.unique(drawn, axis=0)) > 0.9 * sure.sum()


def test_where_hardly_any_arch_is_surely_below_lower_limits_are_drawn_from():
    compiled = compile_space(spaces.get("ofa_mbv3-r224"), Unsure(width=0.2))
    unsure = Uncertainty.about(compiled, Unsure(width=0.2), common=0.2)
    limit = Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.2), confidence=0.95, uncertainty=unsure)
    limits = Limits.of(limit)
    near = limits.feasible.sample(np.random.default_rng(0), 500)
    assert unsure.surely_below(near, limit.max_cost).mean() < 0.1
    drawn = limits.sample(np.random.default_rng(0), 100)
    assert unsure.surely_below(drawn, limit.max_cost).all()
    assert len(np.unique(drawn, axis=0)) == 100
    found = search(limit, more_is_better, Evolution(first=40, mutated=20, crossed=20, generations=3), seed=1)
    assert unsure.surely_below(found.history.archs, limit.max_cost).all()
    assert len(found.history.scores) == 160


@pytest.mark.parametrize("space", [EXAMPLE, spaces.get("ofa_mbv3-r224")])
def test_a_limit_no_arch_keeps_surely_names_the_nearest(space):
    compiled = compile_space(space, Unsure(width=0.5))
    least = compiled.min_over()
    with pytest.raises(
        Infeasible, match=r"with probability 0\.999 in latency_ms; nearest: .* as predicted and surely at"
    ):
        Limits.of(surely(compiled, 1.001 * least, 0.999)).sample(np.random.default_rng(0), 1)
    with pytest.raises(Infeasible, match=rf"archs cost {least:.6g}"):
        Limits.of(surely(compiled, 0.9 * least))
    against = compile_space(space, FunctionTable(name="against", cost=lambda op: 1.0 / uneven_ms(op)), "energy_mj")
    both = Limits.of(surely(compiled, least), Limit(compiled=against, max_cost=against.min_over()))
    with pytest.raises(Infeasible, match="in energy_mj; archs cost"):
        both.sample(np.random.default_rng(0), 1)


def test_half_the_confidence_is_the_prediction_and_two_confidences_are_two_searches():
    compiled = compile_space(ofa_like(1), Unsure())
    limit = quantile_of(compiled, 0.3)
    archs = every_arch(compiled.space).astype(np.int8)
    plain, half, most = (Limits.of(surely(compiled, limit, confidence)) for confidence in (None, 0.5, 0.95))
    assert (plain.held(archs, plain.costs(archs)) == half.held(archs, half.costs(archs))).all()
    assert len({str(limits.identity) for limits in (plain, half, most)}) == 3
    for nonsense in (0.4, 1.0, math.nan):
        with pytest.raises(SpecError, match=r"confidence is from 0\.5 to below 1"):
            surely(compiled, limit, nonsense)


def test_only_search_keeps_a_limit_at_a_confidence():
    limit = surely(costs(bit_space()), 1.0)
    for ask in (
        lambda: BitEnvironment(limit=limit),
        lambda: ChannelEnvironment(limit=limit),
        lambda: netadapt(limit, more_is_better),
        lambda: LatencySampler(limit, more_is_better, step=0.1),
    ):
        with pytest.raises(SpecError, match="leave the confidence out, or use `search`"):
            ask()


def test_what_makes_two_searches_the_same_one():
    compiled = costs(ofa_like())
    limit = quantile_of(compiled, 0.4)
    told = Limits.of(Limit(compiled=compiled, max_cost=limit)).identity
    assert told == Limits.of(Limit(compiled=costs(ofa_like()), max_cost=limit)).identity
    dearer = compile_space(ofa_like(), FunctionTable(name="uneven", cost=lambda op: 0.001 * op.kernel))
    others = [Limit(compiled=compiled, max_cost=limit * 1.01), Limit(compiled=dearer, max_cost=0.02)]
    assert all(Limits.of(other).identity != told for other in others)


def test_several_limits_of_a_large_space_are_drawn_from_without_a_hitch():
    space = spaces.get("ofa_mbv3")
    ms = compile_space(space, FunctionTable(name="ms", cost=lambda op: op.out_channels * op.kernel * op.height / 1e4))
    mj = compile_space(space, FunctionTable(name="mj", cost=lambda op: 0.1 + op.mid_channels / 1e3), "energy_mj")
    tight = Limits.of(
        Limit(compiled=ms, max_cost=quantile_of(ms, 0.05)), Limit(compiled=mj, max_cost=quantile_of(mj, 0.1))
    )
    assert tight.kept(tight.costs(space.sample(np.random.default_rng(0), 20_000).astype(np.int8))).sum() == 0
    drawn = tight.sample(np.random.default_rng(0), 200)
    assert tight.kept(tight.costs(drawn)).all()
    assert (drawn == tight.sample(np.random.default_rng(0), 200)).all()
    assert len(np.unique(drawn, axis=0)) == 200


@pytest.mark.parametrize("listable", [20_000, 0])
def test_draws_under_two_limits_are_uniform(listable, monkeypatch):
    monkeypatch.setattr("lutbuilder.nas.budget.LISTABLE", listable)
    space = ofa_like(1)
    compiled, other = costs(space), compile_space(space, FunctionTable(name="k", cost=lambda op: float(op.kernel)))
    limits = Limits.of(
        Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.3)), Limit(compiled=other, max_cost=12.0)
    )
    archs = every_arch(space)
    n_kept = int(limits.kept(limits.costs(archs.astype(np.int8))).sum())
    assert 100 < n_kept < 1000
    drawn = limits.sample(np.random.default_rng(1), 40 * n_kept)
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == n_kept
    chi2 = ((counts - 40) ** 2 / 40).sum()
    assert abs(chi2 - n_kept) < 5 * (2 * n_kept) ** 0.5
