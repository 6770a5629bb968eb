"""Artifacts: valid files, equal bytes for equal graphs, and the layout each engine is fast with."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings

from lutbuilder.artifacts import artifact_ref, build
from lutbuilder.lower import lower
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import MissingExtra, SpecError
from lutbuilder_agent.graph import Layer, LayerGraph, layer_weights
from lutbuilder_agent.records import FORMATS
from tests.strategies import layer_graphs

MBCONV: dict[str, Any] = {
    "kind": "mbconv",
    "in_channels": 8,
    "out_channels": 8,
    "height": 6,
    "width": 6,
    "mid_channels": 24,
    "kernel": 5,
    "act": "relu6",
}
GRAPH = lower(OpSpec(**MBCONV, residual=True))


def conv(*, kernel: int, stride: int, extent: int, groups: int = 1) -> LayerGraph:
    layer = Layer(kind="conv2d", inputs=(0,), out_channels=4, kernel=kernel, stride=stride, groups=groups)
    return LayerGraph(batch=1, in_channels=4, height=extent, width=extent, layers=(layer,))


# --- Every format.


@settings(max_examples=30)
@given(layer_graphs())
def test_equal_graphs_give_equal_bytes(graph: LayerGraph) -> None:
    again = LayerGraph.from_bytes(graph.to_bytes())
    for format in FORMATS:
        assert build(graph, format) == build(again, format)  # type: ignore[arg-type]  # FORMATS lists the literals


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_gives_the_same_bytes(
    fresh_python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, hash_seed: str
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
    code = f"""
from lutbuilder.artifacts import artifact_ref, build
from lutbuilder_agent.graph import LayerGraph
graph = LayerGraph.from_bytes({GRAPH.to_bytes()!r})
print(*(artifact_ref(build(graph, format), format).sha256 for format in ("onnx", "tflite", "graph")))
"""
    assert fresh_python(code).split() == [
        hashlib.sha256(build(GRAPH, format)).hexdigest() for format in ("onnx", "tflite", "graph")
    ]


def test_a_reference_names_the_bytes() -> None:
    ref = artifact_ref(b"abc", "onnx")
    assert ref.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (ref.format, ref.size_bytes) == ("onnx", 3)


def test_the_graph_format_is_the_graphs_own_bytes() -> None:
    assert LayerGraph.from_bytes(build(GRAPH, "graph")) == GRAPH


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="'coreml'; known: onnx, tflite, graph"):
        build(GRAPH, "coreml")  # type: ignore[arg-type]  # the claim


@pytest.mark.parametrize(
    ("format", "module", "package", "line"),
    [
        ("onnx", "lutbuilder.artifacts.onnx", "onnx", r"pip install lutbuilder"),
        ("tflite", "lutbuilder.artifacts.tflite", "flatbuffers", r"pip install 'lutbuilder\[litert\]'"),
    ],
)
def test_a_missing_package_names_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch, format: Any, module: str, package: str, line: str
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # what makes `import` say ModuleNotFoundError
    with pytest.raises(MissingExtra, match=f"'{package}': {line}"):
        build(GRAPH, format)


# --- ONNX.


@settings(max_examples=30)
@given(layer_graphs())
def test_the_onnx_checker_finds_nothing(graph: LayerGraph) -> None:
    model = onnx.load_from_string(build(graph, "onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    shapes = [
        tuple(dim.dim_value for dim in tensor.type.tensor_type.shape.dim)
        for tensor in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [graph.shapes[0], graph.shapes[-1]]


def test_an_onnx_mbconv_is_plain_convs_clips_and_an_add() -> None:
    model = onnx.load_from_string(build(GRAPH, "onnx"))
    assert [node.op_type for node in model.graph.node] == ["Conv", "Clip", "Conv", "Clip", "Conv", "Add"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[2].attribute}
    assert attributes == {"kernel_shape": [5, 5], "strides": [1, 1], "pads": [2, 2, 2, 2], "group": 24}


SE = lower(OpSpec(**{**MBCONV, "act": "hswish", "se": True, "se_channels": 4}))
SWISH = lower(OpSpec(**{**MBCONV, "act": "swish", "stride": 2, "shortcut": True, "out_channels": 12}))
SHUFFLE = lower(OpSpec(**{**MBCONV, "groups": 2}))
MAX_POOL: dict[str, Any] = {"kind": "max_pool", "in_channels": 4, "out_channels": 4, "kernel": 3, "stride": 2}


def onnx_names(graph: LayerGraph) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(build(graph, "onnx")).graph.node]


def test_onnx_has_its_own_operators_for_what_blocks_are_made_of() -> None:
    squeeze = ["GlobalAveragePool", "Conv", "Relu", "Conv", "HardSigmoid", "Mul"]
    assert onnx_names(SE) == ["Conv", "HardSwish", "Conv", "HardSwish", *squeeze, "Conv"]
    swish = ["Conv", "Sigmoid", "Mul"]
    assert onnx_names(SWISH) == [*swish, *swish, "Conv", "AveragePool", "Conv", "Add"]
    shuffle = ["Reshape", "Transpose", "Reshape"]
    assert onnx_names(SHUFFLE) == ["Conv", "Clip", *shuffle, "Conv", "Clip", "Conv"]
    linear = OpSpec(kind="linear", in_channels=8, out_channels=5, height=3, width=3, act="relu")
    assert onnx_names(lower(linear)) == ["Flatten", "Gemm", "Relu"]
    assert onnx_names(lower(OpSpec(**MAX_POOL, height=8, width=8))) == ["MaxPool"]


def test_onnx_initializers_are_the_weights_of_the_graph() -> None:
    model = onnx.load_from_string(build(GRAPH, "onnx"))
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for number in range(3):
        weight, bias = layer_weights(GRAPH, number)
        np.testing.assert_array_equal(values[f"w{number}"], weight)
        np.testing.assert_array_equal(values[f"b{number}"], bias)


# --- TFLite.


def parsed(graph: LayerGraph) -> tuple[Any, list[str]]:
    """Return the model as the schema's objects, and the names of its operators."""
    raw = build(graph, "tflite")
    assert schema.Model.ModelBufferHasIdentifier(raw, 0)
    model = schema.ModelT.InitFromPackedBuf(raw)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    operators = model.subgraphs[0].operators
    return model, [names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in operators]


def test_a_tflite_mbconv_is_three_convolutions_with_their_activations_inside() -> None:
    model, names = parsed(GRAPH)
    assert names == ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD"]
    acts = [operator.builtinOptions.fusedActivationFunction for operator in model.subgraphs[0].operators]
    assert acts == [schema.ActivationFunctionType.RELU6] * 2 + [schema.ActivationFunctionType.NONE] * 2
    assert model.version == 3
    assert len(model.buffers[0].data if model.buffers[0].data is not None else b"") == 0


def test_a_tflite_model_has_the_signature_tools_look_for() -> None:
    model, _ = parsed(GRAPH)
    (signature,) = model.signatureDefs
    assert signature.signatureKey == b"serving_default"
    assert [(entry.name, entry.tensorIndex) for entry in signature.inputs] == [(b"input", model.subgraphs[0].inputs[0])]
    assert [entry.tensorIndex for entry in signature.outputs] == list(model.subgraphs[0].outputs)


def test_tflite_weights_are_ohwi_and_depthwise_weights_1hwc() -> None:
    model, _ = parsed(GRAPH)
    tensors = {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}

    def values(name: str) -> np.ndarray[Any, Any]:
        tensor = tensors[name]
        found: np.ndarray[Any, Any] = np.frombuffer(bytes(model.buffers[tensor.buffer].data), "<f4")
        return found.reshape(tuple(tensor.shape))

    np.testing.assert_array_equal(values("w0"), layer_weights(GRAPH, 0)[0].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(values("w1"), layer_weights(GRAPH, 1)[0].transpose(1, 2, 3, 0))
    assert values("w1").shape == (1, 5, 5, 24)


@pytest.mark.parametrize(
    ("kernel", "stride", "extent", "padded"),
    [
        (3, 1, 8, False),
        (7, 1, 2, False),  # a map smaller than the kernel
        (3, 2, 7, False),  # an odd map: SAME is symmetric
        (3, 2, 8, True),
        (5, 2, 56, True),
        (1, 2, 8, False),
        (7, 3, 8, True),
    ],
)
@pytest.mark.parametrize("groups", [1, 4], ids=["dense", "depthwise"])
def test_tflite_pads_by_an_op_of_its_own_only_where_same_is_not_symmetric(
    kernel: int, stride: int, extent: int, padded: bool, groups: int
) -> None:
    model, names = parsed(conv(kernel=kernel, stride=stride, extent=extent, groups=groups))
    assert names == (["PAD"] if padded else []) + ["DEPTHWISE_CONV_2D" if groups > 1 else "CONV_2D"]
    padding = model.subgraphs[0].operators[-1].builtinOptions.padding
    assert padding == (schema.Padding.VALID if padded else schema.Padding.SAME)


def test_tflite_has_its_own_operators_for_what_blocks_are_made_of() -> None:
    gate = [
        "MEAN",
        "CONV_2D",
        "CONV_2D",
        "MUL",
        "MUL",
    ]  # the hard sigmoid: relu6 in the convolution, then a sixth of it
    assert parsed(SE)[1] == ["CONV_2D", "HARD_SWISH", "DEPTHWISE_CONV_2D", "HARD_SWISH", *gate, "CONV_2D"]
    swish = ["LOGISTIC", "MUL"]
    _, names = parsed(SWISH)
    padded = ["PAD", "DEPTHWISE_CONV_2D"]
    assert names == ["CONV_2D", *swish, *padded, *swish, "CONV_2D", "AVERAGE_POOL_2D", "CONV_2D", "ADD"]
    shuffle = ["RESHAPE", "TRANSPOSE", "RESHAPE"]
    assert parsed(SHUFFLE)[1] == ["CONV_2D", *shuffle, "DEPTHWISE_CONV_2D", "CONV_2D"]
    linear = OpSpec(kind="linear", in_channels=8, out_channels=5, height=3, width=3, act="relu")
    assert parsed(lower(linear))[1] == ["FULLY_CONNECTED"]


def test_a_tflite_hard_sigmoid_finds_its_3_in_the_bias() -> None:
    model, _ = parsed(SE)
    tensors = {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}
    bias = np.frombuffer(bytes(model.buffers[tensors["b4"].buffer].data), "<f4")
    np.testing.assert_array_equal(bias, layer_weights(SE, 4)[1] + np.float32(3))


def test_tflite_linear_weights_of_a_map_are_in_the_order_of_its_channels_last() -> None:
    graph = lower(OpSpec(kind="linear", in_channels=2, out_channels=5, height=3, width=4))
    model, _ = parsed(graph)
    (weight,) = (tensor for tensor in model.subgraphs[0].tensors if tensor.name == b"w0")
    found = np.frombuffer(bytes(model.buffers[weight.buffer].data), "<f4").reshape(5, 3, 4, 2)
    np.testing.assert_array_equal(found, layer_weights(graph, 0)[0].reshape(5, 2, 3, 4).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("op", "names", "padding"),
    [
        ({**MAX_POOL, "height": 8, "width": 8}, ["PAD", "MAX_POOL_2D"], "VALID"),
        ({**MAX_POOL, "height": 7, "width": 7}, ["MAX_POOL_2D"], "SAME"),  # an odd map: SAME is symmetric
        ({**MAX_POOL, "height": 55, "width": 55, "padding": 0}, ["MAX_POOL_2D"], "VALID"),
        (
            {**MAX_POOL, "kind": "conv", "kernel": 11, "stride": 4, "padding": 2, "height": 24, "width": 24},
            ["PAD", "CONV_2D"],
            "VALID",
        ),
        ({**MAX_POOL, "kind": "conv", "padding": 0, "height": 9, "width": 9}, ["CONV_2D"], "VALID"),
    ],
    ids=["resnet-pool", "odd-pool", "alexnet-pool", "alexnet-conv", "unpadded-conv"],
)
def test_tflite_pads_as_much_as_told(op: dict[str, Any], names: list[str], padding: str) -> None:
    model, found = parsed(lower(OpSpec(**op)))
    assert found == names
    assert model.subgraphs[0].operators[-1].builtinOptions.padding == getattr(schema.Padding, padding)


def test_tflite_constants_lie_on_16_byte_boundaries() -> None:
    raw = build(GRAPH, "tflite")
    model = schema.Model.GetRootAs(raw)
    start = np.frombuffer(raw, np.uint8).ctypes.data
    offsets = [
        model.Buffers(number).DataAsNumpy().ctypes.data - start
        for number in range(model.BuffersLength())
        if model.Buffers(number).DataLength()
    ]
    assert len(offsets) == 6
    assert [offset % 16 for offset in offsets] == [0] * 6


def test_a_tflite_identity_hands_its_input_through_and_copies_one_element() -> None:
    model, names = parsed(lower(OpSpec(kind="identity", in_channels=8, out_channels=8, height=5, width=5)))
    subgraph = model.subgraphs[0]
    assert names == ["SLICE"]
    assert subgraph.outputs[0] == subgraph.inputs[0]
    assert list(subgraph.tensors[subgraph.outputs[1]].shape) == [1, 1, 1, 1]
