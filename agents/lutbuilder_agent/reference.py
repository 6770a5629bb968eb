"""What a graph computes, in numpy: the oracle every runtime is compared with. Slow, small, and obviously right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lutbuilder_agent.errors import ShapeError
from lutbuilder_agent.graph import Layer, LayerGraph, layer_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray


def evaluate(graph: LayerGraph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the graph's output for input `x`; NCHW in, NCHW (or NC) out. Computed in float64, rounded once at the end.

    Raises ShapeError if `x` does not have the graph's input shape.
    """
    if x.shape != graph.shapes[0]:
        raise ShapeError(f"the graph takes an input of shape {graph.shapes[0]}, got {x.shape}")
    tensors = [x.astype(np.float64)]
    for number, layer in enumerate(graph.layers):
        source = tensors[layer.inputs[0]]
        if layer.kind == "conv2d":
            y = _conv2d(source, layer, graph.shapes[number + 1], *layer_weights(graph, number))
        elif layer.kind == "linear":
            weight, bias = layer_weights(graph, number)
            y = source.reshape(len(source), -1) @ weight.T + bias
        elif layer.kind in ("global_avg_pool", "global_pool"):
            y = source.mean(axis=(2, 3), keepdims=layer.kind == "global_pool")
        elif layer.kind == "avg_pool":
            y = np.nanmean(list(_taps(source, layer, graph.shapes[number + 1], fill=np.nan)), axis=0)
        elif layer.kind == "max_pool":
            y = np.max(list(_taps(source, layer, graph.shapes[number + 1], fill=-np.inf)), axis=0)
        elif layer.kind == "channel_shuffle":
            split = source.reshape(len(source), layer.groups, -1, *source.shape[2:])
            y = split.swapaxes(1, 2).reshape(source.shape)
        elif layer.kind == "add":
            y = source + tensors[layer.inputs[1]]
        elif layer.kind == "mul":
            y = source * tensors[layer.inputs[1]]
        else:
            y = source
        tensors.append(_activated(y, layer))
    return tensors[-1].astype(np.float32)


def example_input(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a fixed normal input of `shape`, what every runtime is timed on: no zeros, no denormals."""
    return np.random.Generator(np.random.PCG64(224)).standard_normal(shape, dtype=np.float32)


def _conv2d(
    x: NDArray[np.float64],
    layer: Layer,
    shape: tuple[int, ...],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> NDArray[np.float64]:
    batch, _, rows, columns = shape
    groups = layer.groups
    weights = weight.reshape(groups, layer.out_channels // groups, -1, layer.kernel**2).astype(np.float64)
    y = np.zeros((batch, groups, layer.out_channels // groups, rows * columns))
    for number, seen in enumerate(_taps(x, layer, shape, fill=0.0)):
        y += weights[..., number] @ seen.reshape(batch, groups, -1, rows * columns)
    return y.reshape(shape) + bias[:, None, None]


def _taps(
    x: NDArray[np.float64], layer: Layer, shape: tuple[int, ...], *, fill: float
) -> Iterator[NDArray[np.float64]]:
    """Give, for every cell of the layer's window, row by row, what it sees at each place; (N, C, rows, columns)."""
    step, (rows, columns) = layer.stride, shape[2:]
    sides = (layer.side, layer.kernel)  # more after the map than any window reaches
    padded = np.pad(x, ((0, 0), (0, 0), sides, sides), constant_values=fill)
    for i in range(layer.kernel):
        for j in range(layer.kernel):
            yield padded[:, :, i : i + (rows - 1) * step + 1 : step, j : j + (columns - 1) * step + 1 : step]


def _activated(y: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    if layer.act == "relu":
        return np.maximum(y, 0.0)
    if layer.act == "relu6":
        return np.clip(y, 0.0, 6.0)
    if layer.act == "hswish":
        return y * np.clip(y + 3.0, 0.0, 6.0) / 6.0
    if layer.act == "hsigmoid":
        return np.clip(y + 3.0, 0.0, 6.0) / 6.0
    if layer.act == "swish":
        return y * (0.5 + 0.5 * np.tanh(0.5 * y))  # the logistic function, without an exponential that overflows
    return y
