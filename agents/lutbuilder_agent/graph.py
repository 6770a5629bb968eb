"""LayerGraph: the small layer language every op, and every whole network, is lowered to.

A graph is declarative data: shapes and layers, no code and no weights. Weights are a pure function of the graph and
the layer number (`layer_weights`), so that an ONNX file, a TFLite file and a torch module made from one graph compute
the same function. Batch norm is folded: a conv or linear layer is weights + bias + activation, as engines deploy it.

Kinds, activations and fields are only ever added, and a later field is written only where it says something: the bytes
of a graph never change, so the format keeps its number. An agent older than what a graph needs refuses it by the name
of the kind, activation or field it does not know.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from lutbuilder_agent.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LayerKind = Literal[
    "conv2d",
    "add",
    "global_avg_pool",
    "linear",
    "identity",
    "mul",
    "global_pool",
    "avg_pool",
    "max_pool",
    "channel_shuffle",
]
Act = Literal["none", "relu", "relu6", "hswish", "swish", "hsigmoid"]
GRAPH_FORMAT = "lutbuilder.graph/1"
LAYER_KINDS: tuple[str, ...] = get_args(LayerKind)
ACTS: tuple[str, ...] = get_args(Act)
_FIELD_DEFAULTS = {"out_channels": 0, "kernel": 1, "stride": 1, "groups": 1, "padding": -1}
_USED_FIELDS = {
    "conv2d": tuple(_FIELD_DEFAULTS),
    "linear": ("out_channels",),
    "avg_pool": ("kernel", "stride"),
    "max_pool": ("kernel", "stride", "padding"),
    "channel_shuffle": ("groups",),
}
_READ_TWO = ("add", "mul")
_READ_MAPS = ("conv2d", "mul", "global_avg_pool", "global_pool", "avg_pool", "max_pool", "channel_shuffle")
_NEVER_NEGATIVE = ("relu", "relu6", "hsigmoid")
_BRANCH_GAIN = 0.25
_MAX_LAYERS = 4096
_MAX_EXTENT = 1 << 16
_POOL_SIZE = 65_537  # a prime: repeats do not line up with channel counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer. Tensor 0 is the graph's input, layer i writes tensor i + 1; `inputs` names tensors.

    conv2d: `padding` zeros on every side, out = (in + 2 padding - kernel) // stride + 1; -1 means (kernel - 1) // 2, so
    out = (in - 1) // stride + 1 for odd kernels. max_pool: the same windows, padded with what never wins. With padding
    it reads what a ReLU left, or the graph's input, to be fed without negative values: so engines may pad with zeros.
    avg_pool: 2x2 windows, stride 2, the last one cut at the map's edge, so out = (in + 1) // 2.
    global_avg_pool: (N, C, H, W) -> (N, C). global_pool: (N, C, H, W) -> (N, C, 1, 1). linear: (N, C), or (N, C, H, W)
    flattened in this order, -> (N, out_channels). add: `inputs` are two tensors of one shape. mul: `inputs` are a map
    and a gate (N, C, 1, 1). channel_shuffle: channel g * (C / groups) + i goes to i * groups + g (Zhang et al.,
    ShuffleNet, CVPR 2018, section 3.1).
    Activations: hswish x * relu6(x + 3) / 6, hsigmoid relu6(x + 3) / 6 (Howard et al., MobileNetV3, ICCV 2019, section
    5.2), swish x * sigmoid(x).
    """

    kind: LayerKind
    inputs: tuple[int, ...]
    out_channels: int = 0
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    act: Act = "none"
    padding: int = -1

    @property
    def side(self) -> int:
        """Pixels of padding on each side of the map."""
        return (self.kernel - 1) // 2 if self.padding < 0 else self.padding


_LAYER_FIELDS = tuple(field.name for field in fields(Layer))


@dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """Layers in execution order; the input is (batch, in_channels, height, width), the last layer is the output."""

    batch: int
    in_channels: int
    height: int
    width: int
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) > _MAX_LAYERS:
            raise SpecError(f"a graph has 1 to {_MAX_LAYERS} layers, got {len(self.layers)}")
        for name in ("batch", "in_channels", "height", "width"):
            _check_extent(name, getattr(self, name))
        _ = self.shapes

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of every tensor, NCHW or NC; `shapes[0]` is the input, `shapes[-1]` the output."""
        shapes: list[tuple[int, ...]] = [(self.batch, self.in_channels, self.height, self.width)]
        for number, layer in enumerate(self.layers):
            shapes.append(_output_shape(number, layer, shapes))
            if layer.kind == "max_pool" and layer.side:
                _check_never_negative(number, self.layers)
        return tuple(shapes)

    @cached_property
    def branches(self) -> frozenset[int]:
        """Tensors that are added to another one: the first input of every add, which lowering makes the block's own."""
        return frozenset(layer.inputs[0] for layer in self.layers if layer.kind == "add")

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of conv and linear weights, the whole batch."""
        return sum(map(self._macs_of, range(len(self.layers))))

    @cached_property
    def grouped_macs(self) -> int:
        """Those of `macs` that are of layers with groups, depthwise ones above all."""
        return sum(self._macs_of(number) for number, layer in enumerate(self.layers) if layer.groups > 1)

    def _macs_of(self, number: int) -> int:
        shape, out = weight_shape(self, self.layers[number]), self.shapes[number + 1]
        if shape is None:
            return 0
        pixels = out[2] * out[3] if len(out) == 4 else 1
        return self.batch * pixels * _product(shape)

    @cached_property
    def params(self) -> int:
        """Weights and biases of all layers."""
        shapes = [(weight_shape(self, layer), layer.out_channels) for layer in self.layers]
        return sum(_product(shape) + out for shape, out in shapes if shape is not None)

    @cached_property
    def key(self) -> str:
        """sha256 of the canonical bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON; `from_bytes` gives an equal graph back."""
        layers = []
        for layer in self.layers:
            told = {name: getattr(layer, name) for name in _LAYER_FIELDS}
            if layer.padding == _FIELD_DEFAULTS["padding"]:
                del told["padding"]  # as graphs were written before the field was there: their keys stay
            layers.append(told)
        body: dict[str, Any] = {"format": GRAPH_FORMAT, "layers": layers}
        body |= {name: getattr(self, name) for name in ("batch", "in_channels", "height", "width")}
        return json.dumps(body, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> LayerGraph:
        """Parse what `to_bytes` wrote. Raises SpecError for anything else, unknown layers and fields included."""
        try:
            body = json.loads(raw)
            if not isinstance(body, dict) or body.pop("format", None) != GRAPH_FORMAT:
                raise SpecError(f"not a {GRAPH_FORMAT} graph")
            layers = tuple(Layer(**{**layer, "inputs": tuple(layer["inputs"])}) for layer in body.pop("layers"))
            return cls(layers=layers, **body)
        except SpecError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SpecError(f"not a {GRAPH_FORMAT} graph: {error}") from error


def weight_shape(graph: LayerGraph, layer: Layer) -> tuple[int, ...] | None:
    """Return OIHW for conv2d, (out, in) for linear, None for layers without weights."""
    in_channels = graph.shapes[layer.inputs[0]][1]
    if layer.kind == "conv2d":
        return (layer.out_channels, in_channels // layer.groups, layer.kernel, layer.kernel)
    if layer.kind == "linear":
        return (layer.out_channels, _product(graph.shapes[layer.inputs[0]][1:]))
    return None


def layer_weights(graph: LayerGraph, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (weight, bias) of layer `number`, float32; a pure function of its shape and number.

    Values are slices of one fixed normal pool scaled to keep activations near 1 (He et al. 2015): no engine meets
    denormals or overflow; a whole network costs a copy, not 4 million random draws. A branch that is added to something
    starts small, or every residual block would double the variance (Zhang et al., Fixup, ICLR 2019): with 26 of them a
    swish would meet inputs whose exponential is a denormal, which no trained network does.
    """
    import numpy as np

    layer = graph.layers[number]
    shape = weight_shape(graph, layer)
    if shape is None:
        raise SpecError(f"layer {number} ({layer.kind}) has no weights")
    offset = (number * 7919) % _POOL_SIZE
    scale = np.float32((2.0 / _product(shape[1:])) ** 0.5 * (_BRANCH_GAIN if number + 1 in graph.branches else 1.0))
    weight = _pool_values(offset, _product(shape)).reshape(shape) * scale
    return weight, _pool_values(offset % 1000, layer.out_channels) * np.float32(0.1)


def _pool_values(start: int, count: int) -> NDArray[np.float32]:
    """Return `count` values of the endlessly repeated pool from position `start`; a view where no repeat is needed."""
    import numpy as np

    pool = _weight_pool()
    return pool[start : start + count] if count <= _POOL_SIZE else np.resize(pool[start : start + _POOL_SIZE], count)


@lru_cache(maxsize=1)
def _weight_pool() -> NDArray[np.float32]:
    """Return the pool, twice over, so that every stretch of its length is one slice."""
    import numpy as np

    pool = np.random.Generator(np.random.PCG64(20190407)).standard_normal(_POOL_SIZE, dtype=np.float32)
    return np.concatenate([pool, pool])


def _output_shape(number: int, layer: Layer, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    where = f"layer {number} ({layer.kind})"
    _check_names(number, layer)
    wanted_inputs = 2 if layer.kind in _READ_TWO else 1
    if len(layer.inputs) != wanted_inputs or any(type(i) is not int or not 0 <= i < len(shapes) for i in layer.inputs):
        raise SpecError(f"{where}: inputs must be {wanted_inputs} earlier tensors, got {layer.inputs}")
    for name, default in _FIELD_DEFAULTS.items():
        value = getattr(layer, name)
        if name not in _USED_FIELDS.get(layer.kind, ()) and (type(value) is not int or value != default):
            raise SpecError(f"{where}: has no {name}, got {value!r}")
    source = shapes[layer.inputs[0]]
    if layer.kind in _READ_MAPS and len(source) != 4:
        raise SpecError(f"{where}: needs a 4-d input, got {source}")
    if layer.kind == "add" and shapes[layer.inputs[1]] != source:
        raise SpecError(f"{where}: shapes differ: {source} and {shapes[layer.inputs[1]]}")
    if layer.kind == "mul" and shapes[layer.inputs[1]] != (*source[:2], 1, 1):
        raise SpecError(f"{where}: the gate must be {(*source[:2], 1, 1)}, got {shapes[layer.inputs[1]]}")
    if layer.kind == "channel_shuffle":
        _check_extent(f"{where}: groups", layer.groups)
        if layer.groups == 1 or source[1] % layer.groups:
            raise SpecError(f"{where}: groups={layer.groups} must be above 1 and divide {source[1]}")
    if layer.kind in ("add", "mul", "identity", "channel_shuffle"):
        return source
    if layer.kind == "global_avg_pool":
        return source[:2]
    if layer.kind == "global_pool":
        return (*source[:2], 1, 1)
    if layer.kind == "linear":
        _check_extent(f"{where}: out_channels", layer.out_channels)
        return (source[0], layer.out_channels)
    return (source[0], _out_channels(where, layer, source[1]), *_strided(where, layer, source[2:]))


def _check_names(number: int, layer: Layer) -> None:
    # A graph from a newer lutbuilder is how an agent meets a name it does not know.
    for what, name, known in (("layer kind", layer.kind, LAYER_KINDS), ("activation", layer.act, ACTS)):
        if name not in known:
            raise SpecError(
                f"layer {number}: unknown {what} {name!r}; known: {', '.join(known)}. If a newer lutbuilder made the "
                "graph, update what reads it: pip install -U lutbuilder-agent"
            )


def _out_channels(where: str, layer: Layer, in_channels: int) -> int:
    """Return the channels a window layer gives."""
    if layer.kind != "conv2d":
        return in_channels
    _check_extent(f"{where}: out_channels", layer.out_channels)
    _check_extent(f"{where}: groups", layer.groups)
    if in_channels % layer.groups or layer.out_channels % layer.groups:
        raise SpecError(f"{where}: groups={layer.groups} must divide {in_channels} and {layer.out_channels}")
    return layer.out_channels


def _strided(where: str, layer: Layer, extents: tuple[int, ...]) -> tuple[int, ...]:
    """Return the extents a window layer gives."""
    _check_extent(f"{where}: kernel", layer.kernel)
    _check_extent(f"{where}: stride", layer.stride)
    if layer.kind == "avg_pool":
        if (layer.kernel, layer.stride) != (2, 2):
            raise SpecError(f"{where}: kernel and stride must be 2, got {layer.kernel} and {layer.stride}")
        return tuple((extent + 1) // 2 for extent in extents)
    if layer.kernel % 2 == 0:
        raise SpecError(f"{where}: kernel must be odd, got {layer.kernel}")
    if type(layer.padding) is not int or not -1 <= layer.padding < layer.kernel:
        raise SpecError(f"{where}: padding must be an integer from -1 to {layer.kernel - 1}, got {layer.padding!r}")
    if layer.kind == "max_pool" and not (layer.kernel > 1 and layer.side <= layer.kernel // 2):
        raise SpecError(f"{where}: needs a kernel above 1 and no more padding than half of it, got {layer.kernel}")
    if min(extents) + 2 * layer.side < layer.kernel:
        raise SpecError(f"{where}: kernel {layer.kernel} is larger than the padded map of {extents}")
    return tuple((extent + 2 * layer.side - layer.kernel) // layer.stride + 1 for extent in extents)


def _check_never_negative(number: int, layers: tuple[Layer, ...]) -> None:
    tensor = layers[number].inputs[0]
    while tensor and (layers[tensor - 1].kind, layers[tensor - 1].act) == ("max_pool", "none"):
        tensor = layers[tensor - 1].inputs[0]
    if tensor and layers[tensor - 1].act not in _NEVER_NEGATIVE:
        before = layers[tensor - 1]
        raise SpecError(
            f"layer {number} (max_pool): its padding may be zeros, so it reads what a ReLU left, but layer "
            f"{tensor - 1} ({before.kind}) ends in {before.act}: give that one act relu, or this one padding 0"
        )


def _check_extent(name: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= _MAX_EXTENT:
        raise SpecError(f"{name} must be an integer from 1 to {_MAX_EXTENT}, got {value!r}")


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for extent in shape:
        result *= extent
    return result
