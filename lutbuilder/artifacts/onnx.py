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
        if layer.act == "relu":
            body.node.append(helper.make_node("Relu", [before_act], [tensors[-1]]))
        elif layer.act == "relu6":
            body.node.append(helper.make_node("Clip", [before_act, "zero", "six"], [tensors[-1]]))
        if layer.kind in ("conv2d", "linear"):
            weight, bias = layer_weights(graph, number)
            body.initializer.append(_initializer(f"w{number}", weight))
            body.initializer.append(_initializer(f"b{number}", bias))
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
    if layer.kind == "conv2d":
        side = (layer.kernel - 1) // 2
        attributes: dict[str, Any] = {
            "kernel_shape": [layer.kernel] * 2,
            "strides": [layer.stride] * 2,
            "pads": [side] * 4,
            "group": layer.groups,
        }
        return [helper.make_node("Conv", [*sources, *weights], [output], **attributes)]
    if layer.kind == "linear":
        return [helper.make_node("Gemm", [*sources, *weights], [output], transB=1)]
    if layer.kind == "global_avg_pool":
        pooled = f"{output}_4d"
        return [
            helper.make_node("GlobalAveragePool", sources, [pooled]),
            helper.make_node("Flatten", [pooled], [output]),
        ]
    # An identity on its own costs one call and one copy of its input, which is what an isolated op pays on top of its
    # arithmetic: a call, and a pass over its tensors to change from NCHW to the engine's blocked layout and back.
    return [helper.make_node("Add" if layer.kind == "add" else "Identity", sources, [output])]


def _initializer(name: str, values: NDArray[np.float32]) -> TensorProto:
    raw = values.astype("<f4", copy=False).tobytes()
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape, raw_data=raw)
