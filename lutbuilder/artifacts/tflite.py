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

_ACTS = {
    "none": schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}
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
    """Write layer `number` and return the TFLite tensor that holds its output."""
    layer = graph.layers[number]
    shape = _nhwc(graph.shapes[number + 1])
    act = _ACTS[layer.act]
    if layer.kind in ("identity", "global_avg_pool"):
        held = sources[0]
        if layer.kind == "global_avg_pool":
            axes = writer.constant(f"axes{number}", np.array([1, 2], np.int32))
            held = writer.tensor(f"t{number + 1}", shape)
            writer.operator(
                schema.BuiltinOperator.MEAN, [sources[0], axes], [held], schema.ReducerOptionsT(keepDims=False)
            )
        if layer.act == "none":
            return held
        code = schema.BuiltinOperator.RELU if layer.act == "relu" else schema.BuiltinOperator.RELU6
        output = writer.tensor(f"t{number + 1}_act", shape)
        writer.operator(code, [held], [output])
        return output
    if layer.kind == "add":
        output = writer.tensor(f"t{number + 1}", shape)
        options = schema.AddOptionsT(fusedActivationFunction=act)
        writer.operator(schema.BuiltinOperator.ADD, sources, [output], options)
        return output
    weight, bias = layer_weights(graph, number)
    if layer.kind == "linear":
        operands = [sources[0], writer.constant(f"w{number}", weight), writer.constant(f"b{number}", bias)]
        output = writer.tensor(f"t{number + 1}", shape)
        options = schema.FullyConnectedOptionsT(fusedActivationFunction=act)
        writer.operator(schema.BuiltinOperator.FULLY_CONNECTED, operands, [output], options)
        return output
    return _append_conv(writer, graph, number, sources[0], weight, bias)


def _append_conv(
    writer: Writer, graph: LayerGraph, number: int, source: int, weight: NDArray[np.float32], bias: NDArray[np.float32]
) -> int:
    layer = graph.layers[number]
    _, in_channels, *extents = graph.shapes[layer.inputs[0]]
    pads = [_needed_padding(extent, layer) for extent in extents]
    if all(before == (before + after) // 2 for before, after in pads):
        padding = schema.Padding.SAME
    else:
        # SAME puts the odd row at the end, torch and ONNX at the start: other numbers for even maps at stride 2. So the
        # padding is an op of its own here, which XNNPACK folds back into the convolution.
        padding = schema.Padding.VALID
        amounts = writer.constant(f"pads{number}", np.array([(0, 0), *pads, (0, 0)], np.int32))
        batch, rows, columns, channels = _nhwc(graph.shapes[layer.inputs[0]])
        shape = (batch, rows + sum(pads[0]), columns + sum(pads[1]), channels)
        padded = writer.tensor(f"padded{number}", shape)
        writer.operator(schema.BuiltinOperator.PAD, [source, amounts], [padded], schema.PadOptionsT())
        source = padded
    strides = {"strideH": layer.stride, "strideW": layer.stride}
    common = {"padding": padding, "fusedActivationFunction": _ACTS[layer.act], **strides}
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


def _needed_padding(extent: int, layer: Layer) -> tuple[int, int]:
    """Return (before, after): the symmetric padding of the graph, less the trailing part that no window reaches."""
    before = (layer.kernel - 1) // 2
    reach = (extent - 1) // layer.stride * layer.stride + layer.kernel
    return before, max(0, reach - extent - before)


def _one_element(writer: Writer, source: int, shape: tuple[int, ...]) -> int:
    """Slice one element out of the input into a second output."""
    begin = writer.constant("begin", np.zeros(len(shape), np.int32))
    size = writer.constant("size", np.ones(len(shape), np.int32))
    output = writer.tensor("one_element", (1,) * len(shape))
    writer.operator(schema.BuiltinOperator.SLICE, [source, begin, size], [output], schema.SliceOptionsT())
    return output


def _nhwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else shape
