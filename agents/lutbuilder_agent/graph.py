"""LayerGraph: the small layer language every op, and every whole network, is lowered to.

A graph is declarative data: shapes and layers, no code and no weights. Weights are a pure function of the graph and
the layer number (`layer_weights`), so that an ONNX file, a TFLite file and a torch module made from one graph compute
the same function. Batch norm is folded: a conv or linear layer is weights + bias + activation, as engines deploy it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from lutbuilder_agent.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LayerKind = Literal["conv2d", "add", "global_avg_pool", "linear", "identity"]
Act = Literal["none", "relu", "relu6"]
GRAPH_FORMAT = "lutbuilder.graph/1"
LAYER_KINDS: tuple[str, ...] = get_args(LayerKind)
ACTS: tuple[str, ...] = get_args(Act)
_WEIGHT_FIELDS = {"out_channels": 0, "kernel": 1, "stride": 1, "groups": 1}
_USED_FIELDS = {"conv2d": tuple(_WEIGHT_FIELDS), "linear": ("out_channels",)}
_MAX_LAYERS = 4096
_MAX_EXTENT = 1 << 16
_POOL_SIZE = 65_537  # a prime: repeats do not line up with channel counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer. Tensor 0 is the graph's input, layer i writes tensor i + 1; `inputs` names tensors.

    conv2d: symmetric padding (kernel - 1) // 2, so out = (in - 1) // stride + 1 for odd kernels. add: `inputs` are two
    tensors of one shape. global_avg_pool: (N, C, H, W) -> (N, C). linear: (N, C) -> (N, out_channels).
    """

    kind: LayerKind
    inputs: tuple[int, ...]
    out_channels: int = 0
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    act: Act = "none"


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
        return tuple(shapes)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of conv and linear weights, the whole batch."""
        total = 0
        for layer, out in zip(self.layers, self.shapes[1:], strict=True):
            shape = weight_shape(self, layer)
            if shape is not None:
                pixels = out[2] * out[3] if len(out) == 4 else 1
                total += self.batch * pixels * _product(shape)
        return total

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
        body = {"format": GRAPH_FORMAT, **asdict(self)}
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
        return (layer.out_channels, in_channels)
    return None


def layer_weights(graph: LayerGraph, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (weight, bias) of layer `number`, float32; a pure function of its shape and number.

    Values are slices of one fixed normal pool scaled to keep activations near 1 (He et al. 2015): no engine meets
    denormals or overflow; a whole network costs a copy, not 4 million random draws.
    """
    import numpy as np

    layer = graph.layers[number]
    shape = weight_shape(graph, layer)
    if shape is None:
        raise SpecError(f"layer {number} ({layer.kind}) has no weights")
    offset = (number * 7919) % _POOL_SIZE
    scale = np.float32((2.0 / _product(shape[1:])) ** 0.5)
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
    wanted_inputs = 2 if layer.kind == "add" else 1
    if layer.kind not in LAYER_KINDS:
        raise SpecError(f"layer {number}: unknown layer kind {layer.kind!r}; known: {', '.join(LAYER_KINDS)}")
    if layer.act not in ACTS:
        raise SpecError(f"{where}: unknown activation {layer.act!r}; known: {', '.join(ACTS)}")
    if len(layer.inputs) != wanted_inputs or any(type(i) is not int or not 0 <= i < len(shapes) for i in layer.inputs):
        raise SpecError(f"{where}: inputs must be {wanted_inputs} earlier tensors, got {layer.inputs}")
    for name, default in _WEIGHT_FIELDS.items():
        value = getattr(layer, name)
        if name not in _USED_FIELDS.get(layer.kind, ()) and (type(value) is not int or value != default):
            raise SpecError(f"{where}: has no {name}, got {value!r}")
    source = shapes[layer.inputs[0]]
    if layer.kind == "add":
        if shapes[layer.inputs[1]] != source:
            raise SpecError(f"{where}: shapes differ: {source} and {shapes[layer.inputs[1]]}")
        return source
    if layer.kind == "identity":
        return source
    if layer.kind == "global_avg_pool":
        if len(source) != 4:
            raise SpecError(f"{where}: needs a 4-d input, got {source}")
        return source[:2]
    _check_extent(f"{where}: out_channels", layer.out_channels)
    if layer.kind == "linear":
        if len(source) != 2:
            raise SpecError(f"{where}: needs a 2-d input, got {source}")
        return (source[0], layer.out_channels)
    if len(source) != 4:
        raise SpecError(f"{where}: needs a 4-d input, got {source}")
    for name in ("kernel", "stride", "groups"):
        _check_extent(f"{where}: {name}", getattr(layer, name))
    if layer.kernel % 2 == 0:
        raise SpecError(f"{where}: kernel must be odd, got {layer.kernel}")
    if source[1] % layer.groups or layer.out_channels % layer.groups:
        raise SpecError(f"{where}: groups={layer.groups} must divide {source[1]} and {layer.out_channels}")
    rows, columns = ((extent - 1) // layer.stride + 1 for extent in source[2:])
    return (source[0], layer.out_channels, rows, columns)


def _check_extent(name: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= _MAX_EXTENT:
        raise SpecError(f"{name} must be an integer from 1 to {_MAX_EXTENT}, got {value!r}")


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for extent in shape:
        result *= extent
    return result
