"""What a campaign visits: pairs that can follow each other, all that rows are made of, and sentinels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.campaign.plan import (
    PAIRS_PER_SHAPE,
    SENTINELS,
    campaign_ops,
    input_shape,
    make_plan,
    output_shape,
    overhead_op,
    pairs,
)
from lutbuilder.lower import feeds, lower, lower_network
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import UnknownName
from lutbuilder_agent.runtimes import RUNTIMES
from tests.strategies import op_specs

PROPERTY = settings(max_examples=40, deadline=None)  # no deadline: a busy machine is no failure
SPACES = ("proxyless", "proxyless-w1.3")
PROXYLESS = spaces.get("proxyless").ops()
STEM = PROXYLESS[0]


def conv(in_channels: int, out_channels: int, *, extent: int = 8, stride: int = 1, kernel: int = 1) -> OpSpec:
    return OpSpec(
        kind="conv",
        in_channels=in_channels,
        out_channels=out_channels,
        height=extent,
        width=extent,
        kernel=kernel,
        stride=stride,
    )


def macs(*ops: OpSpec) -> int:
    return sum(lower(op).macs for op in ops)


# --- Pairs


@pytest.mark.parametrize("per_shape", [1, 2, PAIRS_PER_SHAPE, 50])
@pytest.mark.parametrize("space", SPACES)
def test_pairs_follow_each_other_and_are_few_a_shape(space, per_shape):
    found = pairs(spaces.get(space).ops(), per_shape=per_shape)
    for first, second in found:
        assert output_shape(first) == input_shape(second)
        lower_network([first, second])
    counts = Counter(input_shape(second) for _, second in found)
    assert 1 <= min(counts.values()) <= max(counts.values()) <= per_shape
    assert len(set(found)) == len(found)


small_ops = op_specs(max_channels=2, max_extent=2, plain=True).map(lambda op: replace(op, batch=1))


@PROPERTY
@given(st.lists(small_ops, max_size=12), st.integers(1, 5))
def test_pairs_of_any_ops_can_run_as_one_graph(ops, per_shape):
    found = pairs(ops, per_shape=per_shape)
    assert all(op in ops and op.kind != "identity" for pair in found for op in pair)
    for pair in found:
        lower_network(pair)
    counts = Counter(input_shape(second) for _, second in found)
    assert max(counts.values(), default=0) <= per_shape
    real = [op for op in ops if op.kind != "identity"]
    assert set(counts) == {input_shape(b) for a in real for b in real if feeds(a, b)}


@pytest.mark.parametrize("space", SPACES)
def test_every_input_shape_but_the_stems_has_pairs(space):
    ops = spaces.get(space).ops()
    paired = {input_shape(second) for _, second in pairs(ops)}
    assert {input_shape(op) for op in ops} - paired == {input_shape(ops[0])}
    assert ops[0].in_channels == 3


def test_pairs_take_the_cheapest_ops():
    before = [conv(4, 8), conv(4, 8, kernel=3), conv(4, 8, kernel=5)]
    after = [conv(8, 4), conv(8, 4, kernel=3), conv(8, 4, kernel=5)]
    ((first, second), *_) = [pair for pair in pairs([*after, *before]) if pair[1] in after]
    assert (first, second) == (before[0], after[0])
    for shape in {input_shape(op) for op in PROXYLESS[1:]}:
        cheapest = min(
            macs(a, b) for a in PROXYLESS for b in PROXYLESS if output_shape(a) == input_shape(b) == shape and a != b
        )
        mine = [macs(*pair) for pair in pairs(PROXYLESS) if input_shape(pair[1]) == shape]
        assert min(mine) <= cheapest
        assert max(mine) <= 4 * cheapest


def test_pairs_of_a_shape_differ_in_both_members():
    before = [conv(4, 8, kernel=kernel) for kernel in (1, 3, 5)]
    after = [conv(8, 12, kernel=kernel) for kernel in (1, 3, 5)]
    found = pairs([*before, *after], per_shape=3)
    assert {first for first, _ in found} == set(before)
    assert {second for _, second in found} == set(after)


def test_an_op_may_follow_itself():
    twice = conv(8, 8)
    assert pairs([twice]) == ((twice, twice),)


def test_pairs_are_the_same_each_time_and_ignore_repeated_ops():
    assert pairs(PROXYLESS) == pairs(PROXYLESS)
    assert pairs([*PROXYLESS, *PROXYLESS]) == pairs(PROXYLESS)


def test_nothing_follows_logits():
    logits = OpSpec(kind="logits", in_channels=8, out_channels=10, height=4, width=4)
    assert pairs([logits, conv(10, 4, extent=1)]) == ()


# --- What a campaign visits


PARTS = {
    "all": PROXYLESS,
    "none": (),
    "stem": PROXYLESS[:1],
    "one": PROXYLESS[30:31],
    "last": PROXYLESS[-1:],
    "half": PROXYLESS[::2],
    "all_but_one": PROXYLESS[:-1],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_campaign_visits_all_that_the_rows_of_a_part_are_made_of(part):
    wanted = PARTS[part]
    found = campaign_ops(PROXYLESS, wanted)
    singles = {op.ops[0] for op in found if op.role != "pair"}
    joined = [op for op in found if op.role == "pair"]
    assert singles.issuperset(wanted)
    assert singles.issuperset(member for pair in joined for member in pair.ops)
    paired = {input_shape(pair.ops[1]) for pair in joined}
    for op in wanted:
        assert input_shape(op) in paired or overhead_op(op) in singles
    assert paired <= {input_shape(op) for op in wanted}


@pytest.mark.parametrize("part", PARTS)
def test_every_visited_op_has_an_id_of_its_own(part):
    ids = [op.op_id for op in campaign_ops(PROXYLESS, PARTS[part])]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_space_comes_with_sentinels_spread_over_the_rest(part):
    wanted = PARTS[part]
    singles = [op.ops[0] for op in campaign_ops(PROXYLESS, wanted) if op.role == "op"]
    others = [op for op in PROXYLESS if op not in wanted]
    assert len(set(singles) - set(wanted)) >= min(SENTINELS, len(others))
    if not others:
        assert set(singles) == set(wanted)


def test_only_shapes_without_pairs_are_called_empty():
    overheads = [op for op in campaign_ops(PROXYLESS, PROXYLESS) if op.role == "overhead"]
    assert [op.ops for op in overheads] == [(overhead_op(STEM),)]


def test_what_is_wanted_may_come_in_any_collection_and_order():
    assert campaign_ops(PROXYLESS, set(PROXYLESS[5:9])) == campaign_ops(PROXYLESS, PROXYLESS[8:4:-1])


def test_every_op_is_an_anchor_in_every_round():
    assert {(op.batch, op.every) for op in campaign_ops(PROXYLESS, PROXYLESS)} == {(0, 1)}


@PROPERTY
@given(op_specs())
def test_an_overhead_op_is_the_identity_of_the_input_shape(op):
    empty = overhead_op(op)
    assert empty.kind == "identity"
    assert input_shape(empty) == output_shape(empty) == input_shape(op)
    assert overhead_op(empty) == empty


@PROPERTY
@given(op_specs(max_channels=16, max_extent=16, plain=True))
def test_shapes_are_those_of_the_lowered_graph(op):
    graph = lower(op)
    assert graph.shapes[0] == input_shape(op)
    given_shape = graph.shapes[len(graph.layers)]
    assert (*given_shape, 1, 1)[:4] == output_shape(op)


# --- How it is timed


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("cache", [None, "hot", "rotating", "flushed", "cold"])
def test_a_plan_is_made_for_every_runtime_and_cache_state(runtime, cache):
    plan = make_plan(runtime, threads=2, cache=cache, instances=4, seed=7)
    assert (plan.runtime, plan.threads, plan.instances, plan.seed) == (runtime, 2, 4, 7)
    assert plan.cache == (cache or plan.cache)
    assert (plan.train_ops > 1) == (plan.cache in ("rotating", "cold"))


def test_options_given_win_over_the_runtimes_own_and_their_order_does_not_matter():
    assert make_plan("torch-contiguous", threads=1).options == (("memory_format", "contiguous"),)
    given_options = (("z", "1"), ("memory_format", "channels_last"))
    plan = make_plan("torch-contiguous", threads=1, options=given_options)
    assert plan.options == (("memory_format", "channels_last"), ("z", "1"))
    assert plan == make_plan("torch-contiguous", threads=1, options=given_options[::-1])


def test_a_plan_for_an_unknown_runtime_is_refused():
    with pytest.raises(UnknownName, match="abacus"):
        make_plan("abacus", threads=1)
