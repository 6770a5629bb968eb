"""ONNX writer: opset 17, IR 8, so that every onnxruntime in use since 2022 loads the file.

The model speaks NCHW: one input `input`, one output `output`, float32. Weights are initializers, raw little-endian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from lutbuilder_agent.graph import Layer, LayerGraph, layer_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OPSET = 17
IR_VERSION = 8


def build_onnx(graph: LayerGraph) -> bytes:
    """Return the serialised ModelProto of `graph`."""
    body = GraphProto(name="graph")
    tensors = ["input"]
    for number, layer in enumerate(graph.layers):
        last = number + 1 == len(graph.layers)
        tensors.append("output" if last else f"t{number + 1}")
        sources = [tensors[source] for source in layer.inputs]
        # Batch norm is folded, so an activation is all that can follow a layer; engines fuse the pair.
        before_act = tensors[-1] if layer.act == "none" else f"{tensors[-1]}_linear"
        body.node.extend(_layer_nodes(graph, number, sources, before_act))
        body.node.extend(_act_nodes(layer.act, before_act, tensors[-1]))
        if layer.kind in ("conv2d", "linear"):
            weight, bias = layer_weights(graph, number)
            body.initializer.append(_initializer(f"w{number}", weight))
            body.initializer.append(_initializer(f"b{number}", bias))
        elif layer.kind == "channel_shuffle":
            for name, extents in zip(
                (f"split{number}", f"joined{number}"), _shuffle_shapes(graph, number), strict=True
            ):
                body.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(extents)], extents))
    if any(layer.act == "relu6" for layer in graph.layers):
        for name, value in (("zero", 0.0), ("six", 6.0)):
            body.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
    body.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, graph.shapes[0]))
    body.output.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, graph.shapes[-1]))
    model = ModelProto(ir_version=IR_VERSION, producer_name="lutbuilder", graph=body)
    model.opset_import.add(domain="", version=OPSET)
    return model.SerializeToString(deterministic=True)


def _layer_nodes(graph: LayerGraph, number: int, sources: list[str], output: str) -> list[NodeProto]:
    layer: Layer = graph.layers[number]
    weights = [f"w{number}", f"b{number}"]
    window: dict[str, Any] = {
        "kernel_shape": [layer.kernel] * 2,
        "strides": [layer.stride] * 2,
        "pads": [layer.side] * 4,
    }
    if layer.kind == "conv2d":
        return [helper.make_node("Conv", [*sources, *weights], [output], **window, group=layer.groups)]
    if layer.kind == "linear":
        if len(graph.shapes[layer.inputs[0]]) == 2:
            return [helper.make_node("Gemm", [*sources, *weights], [output], transB=1)]
        flat = f"{output}_flat"
        return [
            helper.make_node("Flatten", sources, [flat]),
            helper.make_node("Gemm", [flat, *weights], [output], transB=1),
        ]
    if layer.kind == "max_pool":
        return [helper.make_node("MaxPool", sources, [output], **window)]
    if layer.kind == "avg_pool":
        # Padding that does not count is what ceil_mode means, and means the same to every engine.
        window["pads"] = [0, 0, *(extent % 2 for extent in graph.shapes[layer.inputs[0]][2:])]
        return [helper.make_node("AveragePool", sources, [output], **window, count_include_pad=0)]
    if layer.kind == "global_pool":
        return [helper.make_node("GlobalAveragePool", sources, [output])]
    if layer.kind == "global_avg_pool":
        pooled = f"{output}_4d"
        return [
            helper.make_node("GlobalAveragePool", sources, [pooled]),
            helper.make_node("Flatten", [pooled], [output]),
        ]
    if layer.kind == "channel_shuffle":
        split, swapped = f"{output}_split", f"{output}_swapped"
        return [
            helper.make_node("Reshape", [*sources, f"split{number}"], [split]),
            helper.make_node("Transpose", [split], [swapped], perm=[0, 2, 1, 3, 4]),
            helper.make_node("Reshape", [swapped, f"joined{number}"], [output]),
        ]
    # An identity on its own costs one call and one copy of its input, which is what an isolated op pays on top of its
    # arithmetic: a call, and a pass over its tensors to change from NCHW to the engine's blocked layout and back.
    return [helper.make_node({"add": "Add", "mul": "Mul"}.get(layer.kind, "Identity"), sources, [output])]


def _act_nodes(act: str, source: str, output: str) -> list[NodeProto]:
    if act == "none":
        return []
    if act == "relu6":
        return [helper.make_node("Clip", [source, "zero", "six"], [output])]
    if act == "hsigmoid":
        return [helper.make_node("HardSigmoid", [source], [output], alpha=1 / 6, beta=0.5)]
    if act == "swish":  # this opset has no operator for it; exporters write this pair
        gate = f"{output}_gate"
        return [helper.make_node("Sigmoid", [source], [gate]), helper.make_node("Mul", [source, gate], [output])]
    return [helper.make_node({"relu": "Relu", "hswish": "HardSwish"}[act], [source], [output])]


def _shuffle_shapes(graph: LayerGraph, number: int) -> tuple[list[int], list[int]]:
    """Return the shape with its channels split into groups, and the shape itself."""
    batch, channels, rows, columns = graph.shapes[number + 1]
    groups = graph.layers[number].groups
    return [batch, groups, channels // groups, rows, columns], [batch, channels, rows, columns]


def _initializer(name: str, values: NDArray[np.float32]) -> TensorProto:
    raw = values.astype("<f4", copy=False).tobytes()
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape, raw_data=raw)
