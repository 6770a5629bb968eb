"""The channel-pruning spaces: published counts, a published network, and grids of the kind the imputation needs."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lower import lower, lower_network
from lutbuilder.spaces.grid import LADDER, amc_widths, ladder_widths, stepped_widths
from lutbuilder_agent.errors import UnknownName

AMC_HALF_FLOPS = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)  # published, w0 to w13


@pytest.mark.parametrize(
    ("name", "count"), [("amc", 16_344), ("netadapt", 22_288), ("netadapt-step32", 1_486), ("amc-ladder", 554)]
)
def test_the_counts_of_ops_are_the_published_ones(name, count):
    assert len(spaces.get(name).ops()) == count


def test_the_unpruned_network_has_mobilenets_macs():
    space = spaces.get("amc")
    full = space.encode({variable.name: variable.values[-1] for variable in space.variables})
    ops = space.arch_ops(full)
    assert sum(lower(op).macs for op in ops) == 568_740_352
    assert lower_network(ops).macs == 568_740_352


def test_the_network_amc_published_is_in_its_space():
    space = spaces.get("amc")
    arch = space.encode({f"w{number}": width for number, width in enumerate(AMC_HALF_FLOPS)})
    assert space.arch_ops(arch)[-1].in_channels == AMC_HALF_FLOPS[-1]


def test_a_random_network_feeds_every_op_what_it_takes():
    space = spaces.get("amc-ladder", batch=2)
    for arch in space.sample(np.random.default_rng(0), 5):
        ops = space.arch_ops(arch)
        assert lower_network(ops).batch == 2
        assert all(a.out_channels == b.in_channels for a, b in pairwise(ops))


def test_the_ladder_is_dense_enough_to_be_measured_whole_and_uneven_enough_to_be_hard():
    ops = spaces.get("amc-ladder").ops()
    pointwise = [op for op in ops if op.kind == "conv" and op.kernel == 1]
    depthwise = [op for op in ops if op.groups > 1]
    assert len(pointwise) + len(depthwise) == 541
    for extent in {op.height for op in pointwise}:
        there = {(op.in_channels, op.out_channels) for op in pointwise if op.height == extent}
        ins, outs = {i for i, _ in there}, {o for _, o in there}
        assert there == {(i, o) for i in ins for o in outs}
    assert any(width % 16 for width in LADDER)
    assert any(width % 64 == 0 for width in LADDER)


def test_the_widths_of_a_layer():
    assert amc_widths(32) == (8, 16, 24, 32)
    assert amc_widths(512)[:2] == (104, 112)
    assert amc_widths(512)[-1] == 512
    assert ladder_widths(64) == (16, 24, 32, 40, 48, 64)
    assert stepped_widths(64, step=32) == (32, 64)


@pytest.mark.parametrize("name", ["amc-v9", "netadapt-step7"])
def test_an_unknown_grid_is_named(name):
    with pytest.raises(UnknownName, match="known"):
        spaces.get(name)


def test_a_space_of_a_width_grid_can_be_pickled():
    space = spaces.get("amc-ladder")
    assert pickle.loads(pickle.dumps(space)).key == space.key
