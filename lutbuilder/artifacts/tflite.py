"""TFLite writer: schema version 3 through the generated schema classes that ship with ai-edge-litert; no converter.

The model speaks NHWC: input `input`, output `output`, float32, one signature `serving_default`. Convolution weights are
OHWI, depthwise weights 1 x K x K x C. Activations are fused wherever the op has the field for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
import numpy as np
from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]  # ships no types

from lutbuilder_agent.graph import Layer, LayerGraph, layer_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ACTS: dict[str, int] = {
    "none": schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}
# Kinds whose operator has a field for the activation.
_HAS_ACT_FIELD = ("conv2d", "linear", "add", "mul", "max_pool", "avg_pool")
_DATA_ALIGNMENT = 16  # the schema's force_align of Buffer.data, which the Python generator does not honour


def build_tflite(graph: LayerGraph) -> bytes:
    """Return the flatbuffer of `graph`; TFLite has an op for every layer a graph can hold."""
    writer = Writer()
    # Which TFLite tensor holds graph tensor i: an identity adds no op, its output *is* its input.
    held = [writer.tensor("input", _nhwc(graph.shapes[0]))]
    for number, layer in enumerate(graph.layers):
        held.append(_append_layer(writer, graph, number, [held[source] for source in layer.inputs]))
    outputs = [held[-1]]
    if not writer.operators:
        outputs.append(_one_element(writer, held[0], graph.shapes[0]))
    return writer.finish(inputs=[held[0]], outputs=outputs)


class Writer:
    """One subgraph being written: tensors, constant buffers, operators, in order of creation."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self._codes: list[int] = []
        self._buffers: list[_Buffer] = [_Buffer(None)]  # buffer 0 is empty by definition: "no constant data"

    def tensor(
        self, name: str, shape: tuple[int, ...], *, buffer: int = 0, type_: int = schema.TensorType.FLOAT32
    ) -> int:
        self.tensors.append(schema.TensorT(name=name, shape=list(shape), type=type_, buffer=buffer))
        return len(self.tensors) - 1

    def constant(self, name: str, values: NDArray[Any]) -> int:
        """Add a float32 or int32 tensor with its values in a buffer of its own."""
        type_ = schema.TensorType.FLOAT32 if values.dtype.kind == "f" else schema.TensorType.INT32
        self._buffers.append(_Buffer(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))))
        return self.tensor(name, values.shape, buffer=len(self._buffers) - 1, type_=type_)

    def operator(self, code: int, inputs: list[int], outputs: list[int], options: Any = None) -> None:
        if code not in self._codes:
            self._codes.append(code)
        kind = 0 if options is None else getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self._codes.index(code),
                inputs=inputs,
                outputs=outputs,
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def finish(self, *, inputs: list[int], outputs: list[int]) -> bytes:
        def mapping(name: str, tensor: int) -> Any:
            return schema.TensorMapT(name=name, tensorIndex=tensor)

        model = schema.ModelT(
            version=3,
            description="lutbuilder",
            operatorCodes=[
                schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=1)
                for code in self._codes
            ],
            subgraphs=[
                schema.SubGraphT(
                    name="main", tensors=self.tensors, operators=self.operators, inputs=inputs, outputs=outputs
                )
            ],
            buffers=self._buffers,
            # Without a signature, tools that look up "serving_default" refuse the model.
            signatureDefs=[
                schema.SignatureDefT(
                    signatureKey="serving_default",
                    subgraphIndex=0,
                    inputs=[mapping("input", inputs[0])],
                    outputs=[mapping("output", outputs[0])],
                )
            ],
        )
        # Asking for the room at once spares the builder its copies while it doubles.
        builder = flatbuffers.Builder(4096 + 1024 * len(self.operators) + sum(len(b.raw) + 64 for b in self._buffers))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class _Buffer(schema.BufferT):  # type: ignore[misc]  # the generated schema has no types
    """Constant data, written as one aligned copy; the generated class would write it byte by byte, unaligned."""

    def __init__(self, values: NDArray[Any] | None) -> None:
        super().__init__()
        self.raw: NDArray[np.uint8] = values.reshape(-1).view(np.uint8) if values is not None else np.empty(0, np.uint8)

    def Pack(self, builder: Any) -> Any:  # noqa: N802  # the schema's name
        vector = None
        if self.raw.size:
            builder.StartVector(1, len(self.raw), _DATA_ALIGNMENT)
            builder.head -= len(self.raw)
            builder.Bytes[builder.head : builder.head + len(self.raw)] = self.raw.data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def _append_layer(writer: Writer, graph: LayerGraph, number: int, sources: list[int]) -> int:
    """Write layer `number` with its activation and return the TFLite tensor that holds its output."""
    layer = graph.layers[number]
    op = schema.BuiltinOperator
    shape = _nhwc(graph.shapes[number + 1])
    act = _fused_act(layer)
    if layer.kind == "identity":
        held = sources[0]
    elif layer.kind == "channel_shuffle":
        held = _append_shuffle(writer, graph, number, sources[0])
    elif layer.kind in ("global_avg_pool", "global_pool"):
        axes = writer.constant(f"axes{number}", np.array([1, 2], np.int32))
        held = writer.tensor(f"t{number + 1}", shape)
        options = schema.ReducerOptionsT(keepDims=layer.kind == "global_pool")
        writer.operator(op.MEAN, [sources[0], axes], [held], options)
    elif layer.kind in ("avg_pool", "max_pool"):
        held = _append_pool(writer, graph, number, sources[0], act)
    elif layer.kind in ("add", "mul"):
        held = writer.tensor(f"t{number + 1}", shape)
        if layer.kind == "add":
            writer.operator(op.ADD, sources, [held], schema.AddOptionsT(fusedActivationFunction=act))
        else:
            writer.operator(op.MUL, sources, [held], schema.MulOptionsT(fusedActivationFunction=act))
    elif layer.kind == "linear":
        weight, bias = layer_weights(graph, number)
        # A map is flattened by the operator itself, channels last: the weights are put in that order instead.
        weight = _flat_weights(weight, graph.shapes[layer.inputs[0]])
        operands = [sources[0], writer.constant(f"w{number}", weight), writer.constant(f"b{number}", bias)]
        held = writer.tensor(f"t{number + 1}", shape)
        writer.operator(
            op.FULLY_CONNECTED, operands, [held], schema.FullyConnectedOptionsT(fusedActivationFunction=act)
        )
    else:
        held = _append_conv(writer, graph, number, sources[0], act)
    return _append_act(writer, layer, number, held, shape)


def _fused_act(layer: Layer) -> int:
    """Return the activation that the layer's own operator applies."""
    if layer.kind == "conv2d" and layer.act == "hsigmoid":
        return _ACTS["relu6"]  # the first part of it: `_append_conv` adds the 3, `_append_act` divides by 6
    fused = layer.kind in _HAS_ACT_FIELD and layer.act in _ACTS
    return _ACTS[layer.act if fused else "none"]


def _append_act(writer: Writer, layer: Layer, number: int, source: int, shape: tuple[int, ...]) -> int:
    """Write what of the activation the layer's own operator does not apply; return the tensor that holds its output."""
    op = schema.BuiltinOperator

    def step(name: str, code: int, inputs: list[int], options: Any = None) -> int:
        output = writer.tensor(f"t{number + 1}_{name}", shape)
        writer.operator(code, inputs, [output], options)
        return output

    if layer.act == "none" or (layer.act in _ACTS and layer.kind in _HAS_ACT_FIELD):
        return source
    if layer.act in _ACTS:
        return step("act", op.RELU if layer.act == "relu" else op.RELU6, [source])
    if layer.act == "hswish":
        return step("act", op.HARD_SWISH, [source], schema.HardSwishOptionsT())
    if layer.act == "swish":
        gate = step("gate", op.LOGISTIC, [source])
        return step("act", op.MUL, [source, gate], schema.MulOptionsT())
    if layer.kind != "conv2d":
        three = writer.constant(f"three{number}", np.array(3.0, np.float32))
        source = step("upper", op.ADD, [source, three], schema.AddOptionsT(fusedActivationFunction=_ACTS["relu6"]))
    sixth = writer.constant(f"sixth{number}", np.array(1 / 6, np.float32))
    return step("act", op.MUL, [source, sixth], schema.MulOptionsT())


def _append_shuffle(writer: Writer, graph: LayerGraph, number: int, source: int) -> int:
    op = schema.BuiltinOperator
    batch, rows, columns, channels = shape = _nhwc(graph.shapes[number + 1])
    groups = graph.layers[number].groups
    split = (batch, rows * columns, groups, channels // groups)
    swapped = (batch, rows * columns, channels // groups, groups)

    def reshape(name: str, held: int, extents: tuple[int, ...]) -> int:
        wanted = writer.constant(f"{name}_shape", np.array(extents, np.int32))
        output = writer.tensor(name, extents)
        writer.operator(op.RESHAPE, [held, wanted], [output], schema.ReshapeOptionsT(newShape=list(extents)))
        return output

    held = reshape(f"split{number}", source, split)
    order = writer.constant(f"order{number}", np.array([0, 1, 3, 2], np.int32))
    output = writer.tensor(f"swapped{number}", swapped)
    writer.operator(op.TRANSPOSE, [held, order], [output], schema.TransposeOptionsT())
    return reshape(f"t{number + 1}", output, shape)


def _append_pool(writer: Writer, graph: LayerGraph, number: int, source: int, act: int) -> int:
    layer = graph.layers[number]
    op = schema.BuiltinOperator
    padding = schema.Padding.SAME  # of the average: it cuts the last window at the edge, as the graph does
    if layer.kind == "max_pool":
        # Its padding may be zeros (see Layer), which the PAD of Keras's ResNets are; XNNPACK takes no other constant.
        source, padding = _padded(writer, graph, number, source)
    options = schema.Pool2DOptionsT(
        padding=padding,
        strideH=layer.stride,
        strideW=layer.stride,
        filterHeight=layer.kernel,
        filterWidth=layer.kernel,
        fusedActivationFunction=act,
    )
    output = writer.tensor(f"t{number + 1}", _nhwc(graph.shapes[number + 1]))
    writer.operator(op.MAX_POOL_2D if layer.kind == "max_pool" else op.AVERAGE_POOL_2D, [source], [output], options)
    return output


def _append_conv(writer: Writer, graph: LayerGraph, number: int, source: int, act: int) -> int:
    layer = graph.layers[number]
    in_channels = graph.shapes[layer.inputs[0]][1]
    weight, bias = layer_weights(graph, number)
    if layer.act == "hsigmoid":
        bias = bias + np.float32(3)  # relu6(x + 3) / 6: converters fold the sum into the bias, so it costs nothing
    source, padding = _padded(writer, graph, number, source)
    strides = {"strideH": layer.stride, "strideW": layer.stride}
    common = {"padding": padding, "fusedActivationFunction": act, **strides}
    depthwise = layer.groups == in_channels and layer.groups > 1
    options: Any
    if depthwise:
        code = schema.BuiltinOperator.DEPTHWISE_CONV_2D
        options = schema.DepthwiseConv2DOptionsT(depthMultiplier=layer.out_channels // in_channels, **common)
        weight = weight.transpose(1, 2, 3, 0)
    else:
        code = schema.BuiltinOperator.CONV_2D
        options = schema.Conv2DOptionsT(**common)
        weight = weight.transpose(0, 2, 3, 1)
    operands = [source, writer.constant(f"w{number}", weight), writer.constant(f"b{number}", bias)]
    output = writer.tensor(f"t{number + 1}", _nhwc(graph.shapes[number + 1]))
    writer.operator(code, operands, [output], options)
    return output


def _padded(writer: Writer, graph: LayerGraph, number: int, source: int) -> tuple[int, int]:
    """Return the tensor that layer `number` reads, padded if need be, and the padding its operator adds.

    SAME puts the odd row at the end, torch and ONNX at the start: other numbers for even maps at stride 2. So the
    padding is an op of its own where the two differ, which XNNPACK folds back into a convolution.
    """
    layer = graph.layers[number]
    extents, outs = graph.shapes[layer.inputs[0]][2:], graph.shapes[number + 1][2:]
    pads = [_needed_padding(extent, out, layer) for extent, out in zip(extents, outs, strict=True)]
    same = tuple((extent - 1) // layer.stride + 1 for extent in extents) == outs
    if same and all(before == (before + after) // 2 for before, after in pads):
        return source, schema.Padding.SAME
    if not any(map(any, pads)):
        return source, schema.Padding.VALID
    amounts = writer.constant(f"pads{number}", np.array([(0, 0), *pads, (0, 0)], np.int32))
    batch, rows, columns, channels = _nhwc(graph.shapes[layer.inputs[0]])
    padded = writer.tensor(f"padded{number}", (batch, rows + sum(pads[0]), columns + sum(pads[1]), channels))
    writer.operator(schema.BuiltinOperator.PAD, [source, amounts], [padded], schema.PadOptionsT())
    return padded, schema.Padding.VALID


def _needed_padding(extent: int, out: int, layer: Layer) -> tuple[int, int]:
    """Return (before, after): the symmetric padding of the graph, less the trailing part that no window reaches."""
    reach = (out - 1) * layer.stride + layer.kernel
    return layer.side, max(0, reach - extent - layer.side)


def _flat_weights(weight: NDArray[np.float32], source: tuple[int, ...]) -> NDArray[np.float32]:
    """Return linear weights for an input of shape `source` flattened with its channels last."""
    if len(source) == 2:
        return weight
    maps = weight.reshape(len(weight), *source[1:])
    flat: NDArray[np.float32] = maps.transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return flat


def _one_element(writer: Writer, source: int, shape: tuple[int, ...]) -> int:
    """Slice one element out of the input into a second output."""
    begin = writer.constant("begin", np.zeros(len(shape), np.int32))
    size = writer.constant("size", np.ones(len(shape), np.int32))
    output = writer.tensor("one_element", (1,) * len(shape))
    writer.operator(schema.BuiltinOperator.SLICE, [source, begin, size], [output], schema.SliceOptionsT())
    return output


def _nhwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else shape
