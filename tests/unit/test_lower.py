"""Lowering: an op keeps its shapes, a network is its ops in a row, and nothing is quietly left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from lutbuilder.lower import feeds, lower, lower_network
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import ShapeError, SpecError
from tests.strategies import op_specs

STEM = OpSpec(kind="conv", in_channels=3, out_channels=32, height=32, width=32, kernel=3, stride=2, act="relu6")
MBCONV: dict[str, Any] = {
    "kind": "mbconv",
    "in_channels": 32,
    "out_channels": 32,
    "height": 16,
    "width": 16,
    "mid_channels": 96,
    "kernel": 5,
    "act": "relu6",
    "residual": True,
}
LOGITS = OpSpec(kind="logits", in_channels=32, out_channels=10, height=16, width=16)


@given(op_specs(max_channels=64, plain=True))
def test_a_lowered_op_has_the_shapes_of_the_op(op: OpSpec) -> None:
    graph = lower(op)
    assert graph.shapes[0] == (op.batch, op.in_channels, op.height, op.width)
    if op.kind in ("logits", "linear"):
        assert graph.shapes[-1] == (op.batch, op.out_channels)
    else:
        assert graph.shapes[-1] == (op.batch, op.out_channels, op.out_height, op.out_width)


def layers_of(op: OpSpec) -> list[tuple[str, tuple[int, ...], int, str]]:
    """Return each layer's kind, inputs, channels out and activation: what tells the layers of a block apart."""
    graph = lower(op)
    return [
        (layer.kind, layer.inputs, shape[1], layer.act)
        for layer, shape in zip(graph.layers, graph.shapes[1:], strict=True)
    ]


def test_groups_go_with_the_dense_convolutions_and_shuffle_what_the_first_one_gives() -> None:
    graph = lower(OpSpec(**{**MBCONV, "groups": 4}))
    assert [(layer.kind, layer.groups) for layer in graph.layers] == [
        ("conv2d", 4), ("channel_shuffle", 4), ("conv2d", 96), ("conv2d", 4), ("add", 1)
    ]  # fmt: skip  # one block, one line
    with pytest.raises(SpecError, match="groups=5 must divide 32 and 96"):
        lower(OpSpec(**{**MBCONV, "groups": 5}))


def test_an_mbconv_is_expand_depthwise_project_add() -> None:
    expand, depthwise, project, add = lower(OpSpec(**MBCONV)).layers
    assert (expand.kernel, expand.out_channels, expand.groups, expand.act) == (1, 96, 1, "relu6")
    assert (depthwise.kernel, depthwise.out_channels, depthwise.groups, depthwise.act) == (5, 96, 96, "relu6")
    assert (project.kernel, project.out_channels, project.groups, project.act) == (1, 32, 1, "none")
    assert (add.kind, add.inputs, add.act) == ("add", (3, 0), "none")


def test_an_mbconv_that_expands_nothing_has_no_expand_layer() -> None:
    graph = lower(OpSpec(**{**MBCONV, "mid_channels": 32, "residual": False, "stride": 2}))
    assert [layer.groups for layer in graph.layers] == [32, 1]
    assert [layer.stride for layer in graph.layers] == [2, 1]


def test_an_mbconv_told_to_expand_to_as_many_channels_does() -> None:
    graph = lower(OpSpec(**{**MBCONV, "mid_channels": 32, "expand_conv": True, "groups": 2}))
    assert [(layer.kind, layer.groups) for layer in graph.layers] == [
        ("conv2d", 2), ("channel_shuffle", 2), ("conv2d", 32), ("conv2d", 2), ("add", 1)
    ]  # fmt: skip  # one block, one line


def test_squeeze_excite_gates_what_the_depthwise_convolution_gives() -> None:
    assert layers_of(OpSpec(**{**MBCONV, "se": True, "act": "hswish"})) == [
        ("conv2d", (0,), 96, "hswish"),
        ("conv2d", (1,), 96, "hswish"),
        ("global_pool", (2,), 96, "none"),
        ("conv2d", (3,), 24, "relu"),
        ("conv2d", (4,), 96, "hsigmoid"),
        ("mul", (2, 5), 96, "none"),
        ("conv2d", (6,), 32, "none"),
        ("add", (7, 0), 32, "none"),
    ]
    assert layers_of(OpSpec(**{**MBCONV, "se": True, "se_channels": 4}))[3][2] == 4


SHORTCUT = {**MBCONV, "residual": False, "shortcut": True, "act": "swish"}


def test_a_shortcut_pools_where_the_stride_is_2_and_convolves_where_the_channels_differ() -> None:
    def added(**change: Any) -> list[tuple[str, tuple[int, ...], int, str]]:
        return layers_of(OpSpec(**{**SHORTCUT, **change}))[3:]

    assert added(stride=2) == [("avg_pool", (0,), 32, "none"), ("add", (3, 4), 32, "none")]
    assert added(out_channels=40) == [("conv2d", (0,), 40, "none"), ("add", (3, 4), 40, "none")]
    assert added(stride=2, out_channels=40) == [
        ("avg_pool", (0,), 32, "none"),
        ("conv2d", (4,), 40, "none"),
        ("add", (3, 5), 40, "none"),
    ]
    odd = lower(OpSpec(**{**SHORTCUT, "stride": 2, "height": 15, "width": 9}))
    assert odd.shapes[-1] == (1, 32, 8, 5)


def test_a_bottleneck_activates_after_the_add() -> None:
    block: dict[str, Any] = {**MBCONV, "kind": "bottleneck", "mid_channels": 16, "kernel": 3, "act": "relu"}
    graph = lower(OpSpec(**block))
    assert [layer.kernel for layer in graph.layers] == [1, 3, 1, 1]
    assert layers_of(OpSpec(**block)) == [
        ("conv2d", (0,), 16, "relu"),
        ("conv2d", (1,), 16, "relu"),
        ("conv2d", (2,), 32, "none"),
        ("add", (3, 0), 32, "relu"),
    ]
    projected = OpSpec(**{**block, "residual": False, "shortcut": True, "stride": 2, "out_channels": 64})
    assert [layer.stride for layer in lower(projected).layers] == [1, 2, 1, 2, 1, 1]
    assert layers_of(projected)[-1] == ("add", (3, 5), 64, "relu")
    assert layers_of(OpSpec(**{**block, "residual": False}))[-1] == ("conv2d", (2,), 32, "relu")


def test_a_convolution_activates_before_its_residual_add() -> None:
    op = OpSpec(kind="conv", in_channels=8, out_channels=8, height=9, width=9, kernel=3, act="relu", residual=True)
    assert layers_of(op) == [("conv2d", (0,), 8, "relu"), ("add", (1, 0), 8, "none")]


def test_pools_and_fully_connected_ops_are_one_layer_each() -> None:
    def shapes_of(kind: Any, **fields: Any) -> tuple[str, tuple[int, ...]]:
        graph = lower(OpSpec(kind=kind, in_channels=6, **{"out_channels": 6, "height": 13, "width": 13, **fields}))
        (layer,) = graph.layers
        return layer.kind, graph.shapes[-1]

    assert shapes_of("max_pool", kernel=3, stride=2) == ("max_pool", (1, 6, 7, 7))
    assert shapes_of("max_pool", kernel=3, stride=2, padding=0) == ("max_pool", (1, 6, 6, 6))
    assert shapes_of("global_pool") == ("global_pool", (1, 6, 1, 1))
    assert shapes_of("linear", out_channels=10, act="relu") == ("linear", (1, 10))
    assert shapes_of("logits", out_channels=10, height=1, width=1) == ("linear", (1, 10))


def test_a_vector_feeds_fully_connected_ops_only() -> None:
    def linear(kind: Any, in_channels: int, extent: int = 1) -> OpSpec:
        return OpSpec(kind=kind, in_channels=in_channels, out_channels=10, height=extent, width=extent)

    network = lower_network([linear("linear", 8, extent=6), linear("linear", 10), linear("logits", 10)])
    assert network.shapes == ((1, 8, 6, 6), (1, 10), (1, 10), (1, 10))
    with pytest.raises(ShapeError, match="does not take"):
        lower_network([linear("linear", 8, extent=6), linear("conv", 10)])


def test_a_padded_max_pool_is_fed_by_a_relu() -> None:
    pool = OpSpec(kind="max_pool", in_channels=32, out_channels=32, height=16, width=16, kernel=3, stride=2)
    linear = OpSpec(**{**STEM.canonical(), "act": "none"})
    assert lower_network([STEM, pool]).shapes[-1] == (1, 32, 8, 8)
    assert lower_network([linear, OpSpec(**{**pool.canonical(), "padding": 0})]).shapes[-1] == (1, 32, 7, 7)
    for before in (linear, OpSpec(**MBCONV)):
        with pytest.raises(ShapeError, match="takes what a ReLU left; give it padding 0"):
            lower_network([before, pool])


def test_what_feeds_an_op_makes_a_network_with_it() -> None:
    shape: dict[str, Any] = {"in_channels": 8, "out_channels": 8, "height": 1, "width": 1}
    blocks: list[dict[str, Any]] = [
        {"kind": kind, "mid_channels": 16, "residual": True} for kind in ("mbconv", "bottleneck")
    ]
    plain: list[dict[str, Any]] = [{"kind": kind} for kind in ("identity", "global_pool", "linear", "logits")]
    windows: list[dict[str, Any]] = [
        {"kind": "conv"},
        {"kind": "conv", "residual": True},
        {"kind": "max_pool", "kernel": 3},
    ]
    ops = [OpSpec(**shape, **fields) for fields in (*blocks, *plain, *windows)]
    acts = [replace(op, act="relu") for op in ops if op.kind in ("conv", "mbconv", "bottleneck", "linear")]
    pairs = [(before, after) for before in ops + acts for after in ops + acts if feeds(before, after)]
    for before, after in pairs:
        assert lower_network([before, after]).macs == lower(before).macs + lower(after).macs
    pool = ops[-1]
    assert {before.label() for before, after in pairs if after == pool and before.act == "none"} == {pool.label()}
    assert {after.kind for before, after in pairs if before.kind == "linear"} == {"linear", "logits"}


def test_an_identity_is_one_empty_layer() -> None:
    graph = lower(OpSpec(kind="identity", in_channels=8, out_channels=8, height=5, width=5))
    assert [layer.kind for layer in graph.layers] == ["identity"]
    assert (graph.macs, graph.params) == (0, 0)


def test_a_network_does_the_work_of_its_ops_and_no_more() -> None:
    ops = [STEM, OpSpec(**MBCONV), OpSpec(**MBCONV), LOGITS]
    network = lower_network(ops)
    assert network.macs == sum(lower(op).macs for op in ops)
    assert network.params == sum(lower(op).params for op in ops)
    kinds = [layer.kind for layer in network.layers]
    assert kinds == [layer.kind for op in ops for layer in lower(op).layers]
    assert network.shapes[0] == (1, 3, 32, 32)
    assert network.shapes[-1] == (1, 10)


@pytest.mark.parametrize(
    "after",
    [
        OpSpec(**{**MBCONV, "in_channels": 24, "out_channels": 24}),
        OpSpec(**{**MBCONV, "width": 15}),
        OpSpec(**{**MBCONV, "batch": 2}),
    ],
    ids=["channels", "width", "batch"],
)
def test_ops_that_do_not_fit_are_named(after: OpSpec) -> None:
    with pytest.raises(ShapeError, match=r"op 1 \(mbconv .*\) does not take what op 0 \(conv 3x32x32"):
        lower_network([STEM, after])


def test_nothing_follows_the_logits() -> None:
    after = OpSpec(kind="identity", in_channels=10, out_channels=10, height=1, width=1)
    with pytest.raises(ShapeError, match="does not take"):
        lower_network([LOGITS, after])


def test_an_empty_network_is_refused() -> None:
    with pytest.raises(SpecError, match="at least one op"):
        lower_network([])


@pytest.mark.parametrize("change", [{"w_bits": 8}, {"a_bits": 8}])
def test_other_bits_are_refused_with_what_to_do_instead(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"32-bit weights and activations only.* import a table"):
        lower(OpSpec(**{**MBCONV, **change}))


def test_what_no_layer_expresses_is_refused_not_dropped() -> None:
    with pytest.raises(SpecError, match="runs squeeze-excite outside an mbconv; import a table"):
        lower(OpSpec(**{**STEM.canonical(), "se": True}))
    with pytest.raises(SpecError, match="runs a lump; import a table"):
        lower(OpSpec(kind="lump", in_channels=3, out_channels=16, height=224, width=224))
