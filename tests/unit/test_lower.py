"""Lowering: an op keeps its shapes, a network is its ops in a row, and nothing is quietly left out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from lutbuilder.lower import lower, lower_network
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
    if op.kind == "logits":
        assert graph.shapes[-1] == (op.batch, op.out_channels)
    else:
        assert graph.shapes[-1] == (op.batch, op.out_channels, op.out_height, op.out_width)


def test_groups_go_with_the_dense_convolutions() -> None:
    graph = lower(OpSpec(**{**MBCONV, "groups": 4}))
    assert [layer.groups for layer in graph.layers] == [4, 96, 4, 1]
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


@pytest.mark.parametrize("change", [{"se": True}, {"w_bits": 8}, {"a_bits": 8}])
def test_what_no_layer_expresses_is_refused_not_dropped(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="not lowered yet"):
        lower(OpSpec(**{**MBCONV, **change}))
