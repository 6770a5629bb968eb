"""What the next lease visits: ops that lack precision, or those that count; anchors; and for how many rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.campaign.controller import Controller
from lutbuilder.campaign.rotation import (
    FOOTPRINT_OFF,
    LEAST_OPS,
    LEAST_TRAINS,
    MOST_LOADING,
    Standing,
    footprint,
    next_ops,
    part_of_error,
    phase_rounds,
    rounds_that_fit,
    worthwhile,
)
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.op import OpSpec
from tests.virtual_campaign import EveryOp, Played, convs, open_store, play, spec_of

PROPERTY = settings(max_examples=60, deadline=None)  # no deadline: a busy machine is no failure
N = 40
OPS = tuple(
    CampaignOp.of(OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8)) for n in range(1, N + 1)
)
NETWORK = CampaignOp.network(OPS[0].ops)
PRECISE, WIDE = 0.009, 0.02
FOR_EVER_S = 1e9


def standing(time_ms: float = 1.0, half: float | None = PRECISE, **changes: float) -> Standing:
    made = Standing(
        time_ms=time_ms,
        half_ms=None if half is None else half * time_ms,
        n_visits=20,
        visit_s=0.01,
        between_sd=0.01,
        visit_sd=0.01,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # mypy cannot see which field is which


def known(halves: Mapping[int, float | None], *, default: float | None = PRECISE) -> dict[str, Standing]:
    """The n-th op takes n ms; half intervals are relative, by place."""
    return {op.op_id: standing(n + 1.0, halves.get(n, default)) for n, op in enumerate(OPS)}


def chosen(
    standings: Mapping[str, Standing],
    *,
    train_ops: int = 1,
    left_s: float = FOR_EVER_S,
    ops: Sequence[CampaignOp] = OPS,
) -> list[int]:
    found = next_ops(ops, standings, precision=0.01, train_ops=train_ops, left_s=left_s)
    assert [op for op in ops if op in found] == list(found), "in the order they came"
    return [ops.index(op) for op in found]


# --- Which ops


def test_a_precise_op_leaves_and_comes_back_when_its_interval_has_grown() -> None:
    first = chosen(known(dict.fromkeys(range(20), WIDE)))
    assert set(range(20)) <= set(first)
    assert len(first) < N
    left_out = next(n for n in range(N) if n not in first)
    assert left_out in chosen(known({**dict.fromkeys(range(20), WIDE), left_out: WIDE}))


def test_before_every_op_has_an_interval_none_leaves() -> None:
    assert chosen(known({3: None})) == list(range(N))
    unseen = known({})
    del unseen[OPS[7].op_id]
    assert chosen(unseen) == list(range(N))


def test_whole_networks_always_stay() -> None:
    assert N in chosen(known({}), ops=(*OPS, NETWORK))


def test_anchors_are_of_every_size() -> None:
    staying = chosen(known({0: WIDE, 1: WIDE}))
    assert {0, 1} <= set(staying)
    assert len(staying) == LEAST_OPS + 1
    for part in np.array_split(np.arange(N), LEAST_OPS):  # the n-th op takes n ms
        assert set(part.tolist()) & set(staying)


@pytest.mark.parametrize("wanted", [range(5), range(20), range(N - 5, N), [0, N - 1], range(0, N, 2)])
@pytest.mark.parametrize("train_ops", [2, 4, 8])
def test_trains_of_those_left_touch_as_much_memory_as_trains_of_all(wanted: Sequence[int], train_ops: int) -> None:
    staying = chosen(known(dict.fromkeys(wanted, WIDE)), train_ops=train_ops)
    assert set(wanted) <= set(staying)
    assert len(staying) >= max(LEAST_OPS, LEAST_TRAINS * train_ops)
    every = np.array([footprint(op) for op in OPS])
    assert np.abs(every[staying].mean(axis=0) / every.mean(axis=0) - 1).max() <= FOOTPRINT_OFF or len(staying) == N


def test_a_footprint_counts_weights_and_all_tensors() -> None:
    assert footprint(OPS[3]) == (4 * 4 + 4, 2 * 4 * 8 * 8)
    assert footprint(CampaignOp.pair(OPS[3].ops[0], OPS[3].ops[0])) == (2 * (4 * 4 + 4), 3 * 4 * 8 * 8)


def test_a_campaign_of_few_ops_keeps_them_all() -> None:
    few = OPS[: LEAST_OPS - 1]
    assert chosen(known({0: WIDE}), ops=few) == list(range(LEAST_OPS - 1))


def test_the_anchor_of_a_size_is_the_op_that_counts_most() -> None:
    used = tuple(replace(op, use=5.0 if n % 3 == 2 else 0.1) for n, op in enumerate(OPS[:36]))
    assert chosen(known({}), ops=used) == list(range(2, 36, 3))


def test_when_time_is_short_it_goes_where_use_times_width_is_widest() -> None:
    every = known({}, default=WIDE)
    needed_s = sum(s.lacking(0.01) * s.visit_s for s in every.values())
    assert chosen(every, left_s=1.01 * needed_s) == list(range(N))
    short = chosen(every, left_s=0.02 * needed_s)
    assert set(range(N - 5, N)) <= set(short), "the slowest ops have the widest intervals in ms"
    assert 3 * len(short) < 2 * N
    rare = tuple(replace(op, use=1e-6) if n >= N - 5 else op for n, op in enumerate(OPS))
    assert set(range(N - 10, N - 5)) <= set(chosen(every, left_s=0.02 * needed_s, ops=rare))
    precise_but_large = known({N - 1: PRECISE}, default=WIDE)
    assert N - 1 in chosen(precise_but_large, left_s=0.5 * needed_s)


@PROPERTY
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1e4))
def test_no_other_number_of_ops_would_leave_a_network_a_smaller_error(seed: int, left_s: float) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 32))
    error, visit_s = rng.lognormal(0, 2, n), rng.lognormal(-4, 1, n)
    visits = rng.integers(6, 400, n).astype(np.float64)
    picked = worthwhile(error, visits, visit_s, left_s=left_s, complete=lambda choice: choice)
    assert picked.any()

    def after(inside: np.ndarray) -> float:
        more = left_s / visit_s[inside].sum()
        return float(np.sum(np.where(inside, error**2 * visits / (visits + more), error**2)))

    gain = error**2 / (visits * visit_s)
    assert gain[picked].min() >= gain[~picked].max(initial=0.0)
    order = np.argsort(-gain, kind="stable")
    for size in range(1, n + 1):
        assert after(picked) <= (1 + 1e-9) * after(np.isin(np.arange(n), order[:size]))


def test_what_anchors_cost_and_bring_is_part_of_the_choice() -> None:
    error, visits, visit_s = np.array([3.0, 2.9, 1.0]), np.full(3, 10.0), np.array([1.0, 1.0, 50.0])

    def chosen_with(dear: int) -> list[int]:
        def complete(choice: np.ndarray) -> np.ndarray:
            return choice | (np.arange(3) == 2) if choice[dear] else choice

        return [int(n) for n in np.flatnonzero(worthwhile(error, visits, visit_s, left_s=20.0, complete=complete))]

    assert chosen_with(2) == [0, 1]
    assert chosen_with(1) == [0], "the second would drag the dear third along"


@pytest.mark.parametrize("use", [0.1, 0.5, 1.0, 3.0])
def test_an_ops_part_of_a_random_networks_error_is_its_root_mean_square_use(use: float) -> None:
    rng = np.random.default_rng(1)
    whole, rest = divmod(use, 1.0)
    times = whole + (rng.random(200_000) < rest)
    assert part_of_error(use) == pytest.approx(np.sqrt(np.mean(times**2)), rel=0.02)


def test_what_an_op_lacks_follows_from_the_square_of_its_interval() -> None:
    assert standing(half=0.02, n_visits=30).lacking(0.01) == pytest.approx(90)
    assert standing(half=0.01, n_visits=30).lacking(0.01) == 0.0
    assert standing(half=None).lacking(0.01) == float("inf")


# --- For how long


def rounds(**changes: float) -> int:
    usual = {"load_s": 2.0, "round_s": 1.3, "between_sd": 0.005, "visit_sd": 0.015, "instances": 3, "most": 240}
    return phase_rounds(**{**usual, **changes})  # type: ignore[arg-type]  # mypy cannot see which argument is which


def test_a_lease_is_as_long_as_gives_the_narrowest_interval_for_the_time() -> None:
    load_s, round_s, between, visit = 30.0, 1.3, 0.005, 0.015

    def variance(n: int) -> float:
        return (load_s + n * round_s) * (between**2 / 3 + np.pi / 2 * visit**2 / n)

    best = min(range(3, 400), key=variance)
    found = rounds(load_s=load_s, between_sd=between, visit_sd=visit)
    loading = load_s / round_s * (1 / MOST_LOADING - 1)
    assert found % 3 == 0
    assert max(best, loading) <= found <= max(best, loading) + 3


def test_dear_loading_and_noisy_visits_make_leases_long_and_unequal_instances_short() -> None:
    assert rounds(load_s=20.0) > rounds() > rounds(load_s=0.1)
    assert rounds(visit_sd=0.1) > rounds()
    assert rounds(between_sd=0.0005) > rounds()
    assert rounds(load_s=0.0) == 6, "two visits an instance at least"
    assert rounds(between_sd=0.0) == rounds(load_s=1e6) == 240


@PROPERTY
@given(
    st.floats(0, 100), st.floats(0.01, 100), st.floats(0, 0.1), st.floats(0, 1), st.integers(1, 8), st.integers(1, 99)
)
def test_a_lease_has_at_least_one_round_and_at_most_what_is_allowed(
    load_s: float, round_s: float, between_sd: float, visit_sd: float, instances: int, most: int
) -> None:
    found = phase_rounds(
        load_s=load_s, round_s=round_s, between_sd=between_sd, visit_sd=visit_sd, instances=instances, most=most
    )
    assert 1 <= found <= most


@pytest.mark.parametrize(("left_s", "fitting"), [(1000.0, 10), (28.0, 12), (25.0, 10), (14.0, 12), (9.0, 7), (2.5, 0)])
def test_the_last_leases_share_the_time_that_is_left(left_s: float, fitting: int) -> None:
    assert rounds_that_fit(10, left_s=left_s, load_s=2.0, round_s=1.0) == fitting


# --- What it is worth


def played(folder: Path, seed: int, kind: type[Controller]) -> Played:
    with open_store(folder / f"{kind.__name__}-{seed}") as store:
        return play(spec_of(convs(), seed=seed, precision=0.03, train_ops=4), store, load_s=0.002, kind=kind)


def test_adaptive_rounds_reach_the_precision_in_60_percent_of_the_time_of_fixed_ones(tmp_path: Path) -> None:
    adaptive, fixed = ([played(tmp_path, seed, kind) for seed in (0, 1, 2)] for kind in (Controller, EveryOp))
    assert {one.state.reason for one in (*adaptive, *fixed)} == {"precision"}
    assert sum(one.seconds for one in adaptive) <= 0.6 * sum(one.seconds for one in fixed)
