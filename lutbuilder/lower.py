"""Lowering: an OpSpec, or a whole network as a list of OpSpecs, becomes one LayerGraph.

A network goes through the same functions as its ops, layer for layer, so that a table's sum and the network it predicts
differ in nothing but being run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import ShapeError, SpecError
from lutbuilder_agent.graph import Act, Layer, LayerGraph


def lower(op: OpSpec) -> LayerGraph:
    """Return the graph of one op. Raises SpecError for what no engine here runs: other bits than 32, lumps."""
    return lower_network([op])


def lower_network(ops: Sequence[OpSpec]) -> LayerGraph:
    """Return one graph that runs `ops` in order. Raises ShapeError where one's output is not the next one's input."""
    if not ops:
        raise SpecError("a network has at least one op")
    layers: list[Layer] = []
    for number, op in enumerate(ops):
        if number and (misfit := _misfit(ops[number - 1], op)):
            raise ShapeError(
                f"op {number} ({op.label()}) does not take what op {number - 1} ({ops[number - 1].label()}) gives: "
                f"{misfit}"
            )
        _append(op, layers)
    first = ops[0]
    return LayerGraph(
        batch=first.batch, in_channels=first.in_channels, height=first.height, width=first.width, layers=tuple(layers)
    )


def feeds(before: OpSpec, after: OpSpec) -> bool:
    """Return whether a network may have `after` right behind `before`."""
    return not _misfit(before, after)


def _misfit(before: OpSpec, after: OpSpec) -> str:
    """Return why `after` cannot run right behind `before`; empty if it can."""
    gives = (before.batch, before.out_channels, before.out_height, before.out_width)
    takes = (after.batch, after.in_channels, after.height, after.width)
    if gives != takes:
        return f"batch, channels and map are {gives}, not {takes}"
    if before.kind == "logits" or (before.kind == "linear" and after.kind not in ("linear", "logits")):
        return "it is a vector, no map"
    if after.kind == "max_pool" and after.padding != 0 and not _ends_in_relu(before):
        return "a max pool with padding takes what a ReLU left; give it padding 0, or the op before it act relu"
    return ""


def _ends_in_relu(op: OpSpec) -> bool:
    ends_in_act = op.kind == "bottleneck" or (op.kind == "conv" and not op.residual)
    return op.kind == "max_pool" or (ends_in_act and op.act in ("relu", "relu6"))


def _append(op: OpSpec, layers: list[Layer]) -> None:
    if (op.w_bits, op.a_bits) != (32, 32):
        raise SpecError(
            f"{op.label()}: engines here run 32-bit weights and activations only; for other bits import a table that "
            "was measured where they run: lutbuilder luts import --help"
        )
    source = len(layers)
    if op.kind == "identity":
        layers.append(Layer(kind="identity", inputs=(source,)))
    elif op.kind == "conv" and not op.se:
        _append_conv(
            layers,
            op.out_channels,
            kernel=op.kernel,
            stride=op.stride,
            groups=op.groups,
            act=_act(op),
            padding=op.padding,
        )
        _append_join(op, layers, source, act="none")
    elif op.kind == "mbconv":
        _append_mbconv(op, layers)
    elif op.kind == "bottleneck":
        _append_bottleneck(op, layers)
    elif op.kind == "max_pool":
        layers.append(Layer(kind="max_pool", inputs=(source,), kernel=op.kernel, stride=op.stride, padding=op.padding))
    elif op.kind == "global_pool":
        layers.append(Layer(kind="global_pool", inputs=(source,)))
    elif op.kind == "linear":
        layers.append(Layer(kind="linear", inputs=(source,), out_channels=op.out_channels, act=_act(op)))
    elif op.kind == "logits":
        if (op.height, op.width) != (1, 1):
            layers.append(Layer(kind="global_avg_pool", inputs=(source,)))
        layers.append(Layer(kind="linear", inputs=(len(layers),), out_channels=op.out_channels))
    else:
        what = "squeeze-excite outside an mbconv" if op.se else f"a {op.kind}"
        raise SpecError(
            f"{op.label()}: no engine here runs {what}; import a table that has it: lutbuilder luts import --help"
        )


def _append_mbconv(op: OpSpec, layers: list[Layer]) -> None:
    source = len(layers)
    if op.mid_channels != op.in_channels or op.expand_conv:
        _append_conv(layers, op.mid_channels, groups=op.groups, act=_act(op))
        if op.groups > 1:
            layers.append(Layer(kind="channel_shuffle", inputs=(len(layers),), groups=op.groups))
    _append_conv(layers, op.mid_channels, kernel=op.kernel, stride=op.stride, groups=op.mid_channels, act=_act(op))
    if op.se:
        squeezed = len(layers)
        layers.append(Layer(kind="global_pool", inputs=(squeezed,)))
        _append_conv(layers, op.squeeze_channels, act="relu")
        _append_conv(layers, op.mid_channels, act="hsigmoid")
        layers.append(Layer(kind="mul", inputs=(squeezed, len(layers))))
    _append_conv(layers, op.out_channels, groups=op.groups)
    _append_join(op, layers, source, act="none")


def _append_bottleneck(op: OpSpec, layers: list[Layer]) -> None:
    source = len(layers)
    joins = op.residual or op.shortcut
    _append_conv(layers, op.mid_channels, act=_act(op))
    _append_conv(layers, op.mid_channels, kernel=op.kernel, stride=op.stride, act=_act(op))
    _append_conv(layers, op.out_channels, act="none" if joins else _act(op))
    _append_join(op, layers, source, act=_act(op))


def _append_join(op: OpSpec, layers: list[Layer], source: int, *, act: Act) -> None:
    """Add the op's input, tensor `source`, to what the op has made of it, if the op says so."""
    made, beside = len(layers), source
    if op.shortcut and op.stride == 2:
        layers.append(Layer(kind="avg_pool", inputs=(beside,), kernel=2, stride=2))
        beside = len(layers)
    if op.shortcut and op.in_channels != op.out_channels:
        _append_conv(layers, op.out_channels, source=beside)
        beside = len(layers)
    if op.shortcut or op.residual:
        layers.append(Layer(kind="add", inputs=(made, beside), act=act))


def _append_conv(
    layers: list[Layer],
    out_channels: int,
    *,
    source: int | None = None,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: Act = "none",
    padding: int = -1,
) -> None:
    """Append a convolution of tensor `source`; None: of the last one."""
    layers.append(
        Layer(
            kind="conv2d",
            inputs=(len(layers) if source is None else source,),
            out_channels=out_channels,
            kernel=kernel,
            stride=stride,
            groups=groups,
            act=act,
            padding=padding,
        )
    )


def _act(op: OpSpec) -> Act:
    return cast(Act, op.act)  # OpSpec has checked it, LayerGraph does again
