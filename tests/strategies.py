"""Hypothesis strategies for ops and graphs: every kind, every legal combination, small enough to run."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lutbuilder.op import ACTS as OP_ACTS
from lutbuilder.op import OP_KINDS, OpSpec
from lutbuilder_agent.graph import ACTS as LAYER_ACTS
from lutbuilder_agent.graph import Layer, LayerGraph

# A busy machine must not fail a test: how long an example takes is not what these tests claim.
settings.register_profile("lutbuilder", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lutbuilder")

_BITS = st.sampled_from([*range(1, 9), 16, 32])


@st.composite
def op_specs(draw: st.DrawFn, max_channels: int = 2048, max_extent: int = 512, plain: bool = False) -> OpSpec:
    """Any OpSpec that is allowed; `plain`: only what graph layers express, with groups that divide any channels."""
    kind: Any = draw(st.sampled_from([kind for kind in OP_KINDS if not (plain and kind == "lump")]))
    channels = st.integers(1, max_channels)
    in_channels = draw(channels)
    equal = kind in ("identity", "max_pool", "global_pool")
    out_channels = in_channels if equal else draw(st.one_of(st.just(in_channels), channels))
    fields: dict[str, Any] = {
        "height": draw(st.integers(1, max_extent)),
        "width": draw(st.integers(1, max_extent)),
        "batch": draw(st.integers(1, 64)),
    }
    if not plain:
        fields |= {"w_bits": draw(_BITS), "a_bits": draw(_BITS)}
    windows = kind in ("conv", "mbconv", "bottleneck", "max_pool")
    if windows:
        fields["kernel"] = draw(st.sampled_from([3, 5, 7] if kind == "max_pool" else [1, 3, 5, 7]))
    if windows or kind == "lump":
        fields["stride"] = draw(st.integers(1, 3))
    if kind in ("conv", "max_pool"):
        fields["padding"] = draw(_padding(fields, kind))
    if kind in ("conv", "mbconv") and not plain:
        fields["groups"] = draw(st.integers(1, 8))
    if kind in ("conv", "mbconv", "bottleneck", "linear"):
        fields["act"] = draw(st.sampled_from(OP_ACTS))
    if kind == "mbconv" or (kind == "conv" and not plain):
        fields["se"] = draw(st.booleans())
    if kind in ("mbconv", "bottleneck"):
        fields |= draw(_block(kind, in_channels, channels))
    if kind in ("conv", "mbconv", "bottleneck"):
        joins = ["nothing"]
        if (fields["stride"], in_channels) == (1, out_channels):
            joins += ["residual"] * (fields.get("padding", -1) == -1)
        elif kind != "conv" and fields["stride"] <= 2:
            joins.append("shortcut")
        fields |= {name: True for name in [draw(st.sampled_from(joins))] if name != "nothing"}
    if kind == "mbconv" and fields["se"]:
        fields["se_channels"] = draw(st.sampled_from([0, 3]))  # the rule gives multiples of 8
    return OpSpec(kind=kind, in_channels=in_channels, out_channels=out_channels, **fields)


@st.composite
def _block(draw: st.DrawFn, kind: str, in_channels: int, channels: st.SearchStrategy[int]) -> dict[str, Any]:
    mid_channels = draw(st.one_of(st.just(in_channels), channels))
    expands = kind == "mbconv" and mid_channels == in_channels and draw(st.booleans())
    return {"mid_channels": mid_channels, "expand_conv": expands}


@st.composite
def _padding(draw: st.DrawFn, fields: dict[str, Any], kind: str) -> int:
    """Padding that leaves at least one window, is not the default said aloud, and is no more than engines take."""
    kernel, extent = fields["kernel"], min(fields["height"], fields["width"])
    most = kernel // 2 if kind == "max_pool" else kernel - 1
    allowed = [n for n in range(most + 1) if extent + 2 * n >= kernel and n != (kernel - 1) // 2]
    return draw(st.sampled_from([-1, *allowed]))


@st.composite
def layer_graphs(draw: st.DrawFn, max_layers: int = 6, max_channels: int = 12, max_extent: int = 11) -> LayerGraph:
    """Any small LayerGraph: chains and branches of all layer kinds, odd and even maps, grouped and depthwise convs.

    Feed it no negative values where a padded max_pool reads its input.
    """
    batch = draw(st.integers(1, 2))
    in_channels, height, width = (draw(st.integers(1, most)) for most in (max_channels, max_extent, max_extent))
    layers: list[Layer] = []
    graph: LayerGraph | None = None
    for _ in range(draw(st.integers(1, max_layers))):
        shapes = ((batch, in_channels, height, width),) if graph is None else graph.shapes
        layers.append(draw(_layers(shapes, layers, max_channels)))
        graph = LayerGraph(batch=batch, in_channels=in_channels, height=height, width=width, layers=tuple(layers))
    assert graph is not None, "at least one layer is drawn"
    return graph


@st.composite
def _layers(draw: st.DrawFn, shapes: tuple[tuple[int, ...], ...], before: list[Layer], max_channels: int) -> Layer:
    """Any layer that can follow layers `before`, whose tensors have `shapes`."""
    last = len(shapes) - 1
    source = draw(st.one_of(st.just(last), st.integers(0, last)))
    shape = shapes[source]
    gates = [n for n, other in enumerate(shapes) if other == (*shape[:2], 1, 1)]
    unsigned = source == 0 or before[source - 1].act in ("relu", "relu6", "hsigmoid")
    pools = [3, 5] if unsigned else [kernel for kernel in (3, 5) if kernel <= min(shape[2:], default=0)]
    divisors = [n for n in range(1, shape[1] + 1) if shape[1] % n == 0]
    kinds = ["identity", "add", "linear"]
    if len(shape) == 4:
        kinds += ["conv2d", "conv2d", "conv2d", "global_avg_pool", "global_pool", "avg_pool"]
        kinds += ["mul"] * bool(gates) + ["max_pool"] * bool(pools) + ["channel_shuffle"] * (shape[1] > 1)
    kind: Any = draw(st.sampled_from(kinds))
    inputs: tuple[int, ...] = (source,)
    fields: dict[str, Any] = {}
    if kind == "add":
        inputs = (source, draw(st.sampled_from([n for n, other in enumerate(shapes) if other == shape])))
    elif kind == "mul":
        inputs = (source, draw(st.sampled_from(gates)))
    elif kind == "linear":
        fields["out_channels"] = draw(st.integers(1, max_channels))
    elif kind == "avg_pool":
        fields |= {"kernel": 2, "stride": 2}
    elif kind == "channel_shuffle":
        fields["groups"] = draw(st.sampled_from(divisors[1:]))
    elif kind == "max_pool":
        kernel, stride = draw(st.sampled_from(pools)), draw(st.integers(1, 3))
        fields = {"kernel": kernel, "stride": stride, "padding": -1 if unsigned else 0}
    elif kind == "conv2d":
        groups, kernel = draw(st.sampled_from(divisors)), draw(st.sampled_from([1, 3, 5, 7]))
        fields = {
            "out_channels": groups * draw(st.integers(1, max(1, max_channels // groups))),
            "groups": groups,
            "kernel": kernel,
            "stride": draw(st.integers(1, 3)),
            "padding": draw(st.sampled_from([-1, *(n for n in range(kernel) if min(shape[2:]) + 2 * n >= kernel)])),
        }
    return Layer(kind=kind, inputs=inputs, act=draw(st.sampled_from(LAYER_ACTS)), **fields)
