"""The ProxylessNAS preset: golden counts and sums of the search-space page, asserted to every printed digit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lower import lower, lower_network
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.spaces.proxyless import WIDTHS, proxyless_search
from lutbuilder_agent.errors import UnknownName

NAMES = tuple(name for name in spaces.names() if name.startswith("proxyless"))
SYNTHETIC = FunctionTable(name="synthetic", cost=lambda op: 0.01 + lower(op).macs / 1e8)


@pytest.mark.parametrize("name", NAMES)
def test_every_width_has_70_ops_and_the_published_number_of_archs(name: str) -> None:
    space = spaces.get(name)
    kinds = [op.kind for op in space.ops()]
    assert (len(kinds), kinds.count("mbconv")) == (70, 67)
    assert space.n_archs() == 7**15 * 6**6 == 221_502_229_807_900_608


@pytest.mark.parametrize(
    ("name", "lowest", "uniform", "highest"),
    [("proxyless", "1.125289", "3.961577", "6.315907"), ("proxyless-w1.3", "1.859868", "6.555771", "10.299080")],
)
def test_golden_sums_on_the_synthetic_table(name: str, lowest: str, uniform: str, highest: str) -> None:
    compiled = compile_space(spaces.get(name), SYNTHETIC)
    even = [np.full(size, 1 / size) for size in compiled.space.sizes]
    assert f"{compiled.min_over():.6f}" == lowest
    assert f"{compiled.expected(even):.6f}" == uniform
    assert f"{compiled.max_over():.6f}" == highest


def test_21_layers_offer_the_candidates_in_the_published_order() -> None:
    space = spaces.get("proxyless")
    candidates = ("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6")
    assert [v.values for v in space.variables if len(v.values) == 6] == [candidates] * 6
    assert [v.values for v in space.variables if len(v.values) == 7] == [(*candidates, "zero")] * 15
    assert [number for number, size in enumerate(space.sizes, 1) if size == 6] == [1, 5, 9, 13, 17, 21]


def test_zero_runs_nothing_and_costs_nothing() -> None:
    space = spaces.get("proxyless")
    shallowest = [6 if size == 7 else 0 for size in space.sizes]
    assert len(space.arch_ops(shallowest)) == 2 + 6 + 2


def test_residuals_are_where_shape_is_kept() -> None:
    blocks = [op for op in spaces.get("proxyless").ops() if op.kind == "mbconv"]
    assert all(op.residual == (op.stride == 1 and op.in_channels == op.out_channels) for op in blocks)
    assert sum(op.residual for op in blocks) == 30


@pytest.mark.parametrize("name", NAMES)
def test_random_archs_are_whole_networks(name: str) -> None:
    space = spaces.get(name, batch=2)
    for arch in space.sample(np.random.default_rng(0), 5):
        assert lower_network(space.arch_ops(arch)).shapes[-1] == (2, 1000)


def test_mobilenet_v2_maps_follow_the_strides() -> None:
    space = spaces.get("proxyless")
    sizes = [op.height for op in space.arch_ops([0] * 21)]
    assert sizes == [224, 112, 112, *[56] * 4, *[28] * 4, *[14] * 8, *[7] * 5, 7][: len(sizes)]


def test_batch_and_width_change_the_key() -> None:
    keys = {spaces.get(name, batch=batch).key for name in NAMES for batch in (1, 8)}
    assert len(keys) == 10


def test_alias_is_the_same_space() -> None:
    assert spaces.get("proxyless_search-w1.3").name == "proxyless-w1.3"
    assert spaces.get("proxyless_search").key == spaces.get("proxyless").key


def test_unknown_width_lists_the_widths() -> None:
    with pytest.raises(UnknownName, match=", ".join(WIDTHS)):
        proxyless_search("w2.0")


def test_space_survives_pickling_with_a_supernet() -> None:
    space = spaces.get("proxyless")
    assert pickle.loads(pickle.dumps(space)).key == space.key
