"""Lowering: an OpSpec, or a whole network as a list of OpSpecs, becomes one LayerGraph.

A network goes through the same functions as its ops, layer for layer, so that a table's sum and the network it predicts
differ in nothing but being run together.
"""

from __future__ import annotations

from collections.abc import Sequence

from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import ShapeError, SpecError
from lutbuilder_agent.graph import Layer, LayerGraph


def lower(op: OpSpec) -> LayerGraph:
    """Return the graph of one op. Raises SpecError for what no graph layer expresses yet."""
    return lower_network([op])


def lower_network(ops: Sequence[OpSpec]) -> LayerGraph:
    """Return one graph that runs `ops` in order. Raises ShapeError where one's output is not the next one's input."""
    if not ops:
        raise SpecError("a network has at least one op")
    layers: list[Layer] = []
    for number, op in enumerate(ops):
        if number and not _feeds(ops[number - 1], op):
            raise ShapeError(
                f"op {number} ({op.label()}) does not take what op {number - 1} ({ops[number - 1].label()}) gives"
            )
        _append(op, layers)
    first = ops[0]
    return LayerGraph(
        batch=first.batch, in_channels=first.in_channels, height=first.height, width=first.width, layers=tuple(layers)
    )


def _feeds(before: OpSpec, after: OpSpec) -> bool:
    gives = (before.batch, before.out_channels, before.out_height, before.out_width)
    return gives == (after.batch, after.in_channels, after.height, after.width) and before.kind != "logits"


def _append(op: OpSpec, layers: list[Layer]) -> None:
    if op.se or (op.w_bits, op.a_bits) != (32, 32):
        raise SpecError(f"{op.label()}: squeeze-excite and other bits than W32A32 are not lowered yet")
    source = len(layers)
    if op.kind == "identity":
        layers.append(Layer(kind="identity", inputs=(source,)))
    elif op.kind == "conv":
        _conv(layers, op.out_channels, kernel=op.kernel, stride=op.stride, groups=op.groups, act=op.act)
    elif op.kind == "logits":
        layers.append(Layer(kind="global_avg_pool", inputs=(source,)))
        layers.append(Layer(kind="linear", inputs=(source + 1,), out_channels=op.out_channels))
    else:
        if op.mid_channels != op.in_channels:
            _conv(layers, op.mid_channels, groups=op.groups, act=op.act)
        _conv(layers, op.mid_channels, kernel=op.kernel, stride=op.stride, groups=op.mid_channels, act=op.act)
        _conv(layers, op.out_channels, groups=op.groups)
    if op.residual:
        layers.append(Layer(kind="add", inputs=(len(layers), source)))


def _conv(
    layers: list[Layer], out_channels: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, act: str = "none"
) -> None:
    layers.append(
        Layer(
            kind="conv2d",
            inputs=(len(layers),),
            out_channels=out_channels,
            kernel=kernel,
            stride=stride,
            groups=groups,
            act=act,  # type: ignore[arg-type]  # checked by OpSpec and again by LayerGraph
        )
    )
