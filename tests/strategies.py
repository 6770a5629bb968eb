"""Hypothesis strategies for ops and graphs: every kind, every legal combination, small enough to run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lutbuilder.op import OP_KINDS, OpSpec
from lutbuilder_agent.graph import ACTS, Layer, LayerGraph

# A busy machine must not fail a test: how long an example takes is not what these tests claim.
settings.register_profile("lutbuilder", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lutbuilder")

_BITS = st.sampled_from([*range(1, 9), 16, 32])


@st.composite
def op_specs(draw: st.DrawFn, max_channels: int = 2048, max_extent: int = 512, plain: bool = False) -> OpSpec:
    """Any OpSpec that is allowed; `plain`: only what graph layers express, with groups that divide any channels."""
    kind = draw(st.sampled_from(OP_KINDS))
    channels = st.integers(1, max_channels)
    in_channels = draw(channels)
    out_channels = in_channels if kind == "identity" else draw(st.one_of(st.just(in_channels), channels))
    convolves = kind in ("conv", "mbconv")
    stride = draw(st.integers(1, 3)) if convolves else 1
    return OpSpec(
        kind=kind,
        in_channels=in_channels,
        out_channels=out_channels,
        height=draw(st.integers(1, max_extent)),
        width=draw(st.integers(1, max_extent)),
        mid_channels=draw(channels) if kind == "mbconv" else 0,
        kernel=draw(st.sampled_from([1, 3, 5, 7])) if convolves else 1,
        stride=stride,
        groups=draw(st.integers(1, 8)) if convolves and not plain else 1,
        se=False if plain else draw(st.booleans()),
        act=draw(st.sampled_from(ACTS)) if convolves else "none",
        residual=draw(st.booleans()) if convolves and stride == 1 and in_channels == out_channels else False,
        w_bits=32 if plain else draw(_BITS),
        a_bits=32 if plain else draw(_BITS),
        batch=draw(st.integers(1, 64)),
    )


@st.composite
def layer_graphs(draw: st.DrawFn, max_layers: int = 6, max_channels: int = 12, max_extent: int = 11) -> LayerGraph:
    """Any small LayerGraph: chains and branches of all layer kinds, odd and even maps, grouped and depthwise convs."""
    batch = draw(st.integers(1, 2))
    shapes = [(draw(st.integers(1, max_channels)), draw(st.integers(1, max_extent)), draw(st.integers(1, max_extent)))]
    layers: list[Layer] = []
    tensors: list[tuple[int, ...]] = list(shapes)
    for _ in range(draw(st.integers(1, max_layers))):
        source = draw(st.one_of(st.just(len(tensors) - 1), st.integers(0, len(tensors) - 1)))
        shape = tensors[source]
        equal = [number for number, other in enumerate(tensors) if other == shape]
        kinds = (
            ["identity", "add", "conv2d", "conv2d", "conv2d", "global_avg_pool"]
            if len(shape) == 3
            else ["linear", "identity"]
        )
        kind = draw(st.sampled_from(kinds))
        act = draw(st.sampled_from(ACTS))
        if kind == "add":
            layers.append(Layer(kind="add", inputs=(source, draw(st.sampled_from(equal))), act=act))
            tensors.append(shape)
        elif kind == "identity":
            layers.append(Layer(kind="identity", inputs=(source,), act=act))
            tensors.append(shape)
        elif kind == "global_avg_pool":
            layers.append(Layer(kind="global_avg_pool", inputs=(source,), act=act))
            tensors.append(shape[:1])
        elif kind == "linear":
            out_channels = draw(st.integers(1, max_channels))
            layers.append(Layer(kind="linear", inputs=(source,), out_channels=out_channels, act=act))
            tensors.append((out_channels,))
        else:
            groups = draw(st.sampled_from([n for n in range(1, shape[0] + 1) if shape[0] % n == 0]))
            out_channels = groups * draw(st.integers(1, max(1, max_channels // groups)))
            stride = draw(st.integers(1, 3))
            layers.append(
                Layer(
                    kind="conv2d",
                    inputs=(source,),
                    out_channels=out_channels,
                    kernel=draw(st.sampled_from([1, 3, 5, 7])),
                    stride=stride,
                    groups=groups,
                    act=act,
                )
            )
            tensors.append((out_channels, (shape[1] - 1) // stride + 1, (shape[2] - 1) // stride + 1))
    in_channels, height, width = shapes[0]
    return LayerGraph(batch=batch, in_channels=in_channels, height=height, width=width, layers=tuple(layers))
