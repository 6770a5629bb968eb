"""What a graph computes, in numpy: the oracle every runtime is compared with. Slow, small, and obviously right."""

from __future__ import annotations

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
            y = _conv2d(source, layer, *layer_weights(graph, number))
        elif layer.kind == "linear":
            weight, bias = layer_weights(graph, number)
            y = source @ weight.T + bias
        elif layer.kind == "global_avg_pool":
            y = source.mean(axis=(2, 3))
        elif layer.kind == "add":
            y = source + tensors[layer.inputs[1]]
        else:
            y = source
        tensors.append(_activated(y, layer))
    return tensors[-1].astype(np.float32)


def example_input(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a fixed normal input of `shape`, what every runtime is timed on: no zeros, no denormals."""
    return np.random.Generator(np.random.PCG64(224)).standard_normal(shape, dtype=np.float32)


def _conv2d(
    x: NDArray[np.float64], layer: Layer, weight: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float64]:
    batch, _, height, width = x.shape
    side, step, groups = (layer.kernel - 1) // 2, layer.stride, layer.groups
    rows, columns = (height - 1) // step + 1, (width - 1) // step + 1
    padded = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
    taps = weight.reshape(groups, layer.out_channels // groups, -1, layer.kernel, layer.kernel).astype(np.float64)
    y = np.zeros((batch, groups, layer.out_channels // groups, rows * columns))
    for i in range(layer.kernel):
        for j in range(layer.kernel):
            seen = padded[:, :, i : i + (rows - 1) * step + 1 : step, j : j + (columns - 1) * step + 1 : step]
            y += taps[..., i, j] @ seen.reshape(batch, groups, -1, rows * columns)
    return y.reshape(batch, layer.out_channels, rows, columns) + bias[:, None, None]


def _activated(y: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    if layer.act == "none":
        return y
    return np.clip(y, 0.0, 6.0 if layer.act == "relu6" else None)
