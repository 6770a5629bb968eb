"""The APQ space: kernel, pruned expansion width and four bit widths for each of 21 layers, and depths, 224 x 224.

Variables d1 to d5; k1.., m1.. (channels between the pointwise convolutions), pw_w1.., pw_a1.., dw_w1.., dw_a1.. (bits
of weights and activations of pointwise and depthwise convolutions). A layer is three sites. What comes before and after
the layers was published as one number each: two lumps, which can be imported but not measured.
Source: Wang, Wang, Cai, Lin, Liu, Wang, Lin, Han, APQ, CVPR 2020, and its released latency table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

from lutbuilder.op import OpSpec
from lutbuilder.spaces.shapes import CLASSES, deep_enough, fixed, strided
from lutbuilder.spaces.space import Assignment, Condition, SearchSpace, Site, Variable

RESOLUTION = 224
WIDTHS = (16, 24, 40, 80, 96, 192, 320)  # before the first stage and after each
STRIDES = (2, 2, 2, 1, 2, 1)
LAYERS = (4, 4, 4, 4, 4, 1)
DEPTHS = (2, 3, 4)
KERNELS = (3, 5, 7)
BITS = (4, 6, 8)
_BITS_OF = ("pw_w", "pw_a", "dw_w", "dw_a")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer; its variables end in `number`, `depth` is "" where it always runs."""

    number: int
    depth: str
    position: int
    in_channels: int
    out_channels: int
    extent: int
    stride: int
    batch: int

    def absent(self, assignment: Assignment) -> bool:
        """Say whether the depth of the stage leaves this layer out."""
        return bool(self.depth) and int(assignment[self.depth]) < self.position

    def value(self, name: str, assignment: Assignment) -> int:
        """Return what this layer's variable `name` is."""
        return int(assignment[f"{name}{self.number}"])


def mid_widths(channels: int) -> tuple[int, ...]:
    """Return the widths a layer of `channels` may expand to: multiples of 8 from 4 to 6 times as many."""
    return tuple(range(4 * channels, 6 * channels + 1, 8))


def apq(*, batch: int = 1, name: str = "apq") -> SearchSpace:
    """Return the space: 6,567 distinct ops and two lumps, 8.14e74 archs; no 7 x 7 with 4-bit depthwise activations."""
    depths: list[Variable] = []
    layers: list[Variable] = []
    constraints: list[Condition] = []
    head, tail = _lumps(batch)
    sites = [fixed("head", head, stage="head")]
    channels, extent, number = WIDTHS[0], head.out_height, 0
    for stage, (width, stride, count) in enumerate(zip(WIDTHS[1:], STRIDES, LAYERS, strict=True), start=1):
        if count > DEPTHS[0]:
            depths.append(Variable(name=f"d{stage}", values=DEPTHS))
        for position in range(1, count + 1):
            number += 1
            gated = position > DEPTHS[0]
            layer = _Layer(
                number=number, depth=f"d{stage}" if gated else "", position=position, in_channels=channels,
                out_channels=width, extent=extent, stride=stride if position == 1 else 1, batch=batch,
            )  # fmt: skip  # one layer, two lines
            layers += _variables(layer)
            sites += _sites(layer, f"stage {stage}")
            constraints.append(Condition(scope=(f"k{number}", f"dw_a{number}"), holds=partial(_is_supported, layer)))
            channels, extent = width, strided(extent, layer.stride)
    return SearchSpace(
        name=name,
        variables=(*depths, *layers),
        sites=(*sites, fixed("tail", tail, stage="tail")),
        constraints=tuple(constraints),
    )


def _lumps(batch: int) -> tuple[OpSpec, OpSpec]:
    """Return head and tail; their strides only say which map they leave."""
    extent = strided(RESOLUTION, 32)
    head = OpSpec(
        kind="lump", in_channels=3, out_channels=WIDTHS[0], height=RESOLUTION, width=RESOLUTION, stride=2, batch=batch
    )
    tail = OpSpec(
        kind="lump", in_channels=WIDTHS[-1], out_channels=CLASSES, height=extent, width=extent, stride=extent,
        batch=batch,
    )  # fmt: skip  # one shape, one line
    return head, tail


def _variables(layer: _Layer) -> list[Variable]:
    gate = deep_enough(layer.depth, layer.position) if layer.depth else None
    values = {"k": KERNELS, "m": mid_widths(layer.in_channels), **dict.fromkeys(_BITS_OF, BITS)}
    return [Variable(name=f"{name}{layer.number}", values=v, active_when=gate) for name, v in values.items()]


def _sites(layer: _Layer, stage: str) -> list[Site]:
    n, gate = layer.number, (layer.depth,) if layer.depth else ()
    pointwise = (*gate, f"m{n}", f"pw_w{n}", f"pw_a{n}")
    depthwise = (*gate, f"k{n}", f"m{n}", f"dw_w{n}", f"dw_a{n}")
    return [
        Site(name=f"expand{n}", scope=pointwise, op=partial(_expand, layer), stage=stage),
        Site(name=f"dw{n}", scope=depthwise, op=partial(_depthwise, layer), stage=stage),
        Site(name=f"project{n}", scope=pointwise, op=partial(_project, layer), stage=stage),
    ]


# Module-level functions under `partial`, not lambdas: a supernet that holds the space can be pickled.
def _is_supported(layer: _Layer, assignment: Assignment) -> bool:
    return layer.value("k", assignment) != KERNELS[-1] or layer.value("dw_a", assignment) != BITS[0]


def _expand(layer: _Layer, assignment: Assignment) -> OpSpec | None:
    if layer.absent(assignment):
        return None
    w_bits, a_bits = layer.value("pw_w", assignment), layer.value("pw_a", assignment)
    mid = layer.value("m", assignment)
    return _conv(layer.in_channels, mid, layer.extent, 1, 1, 1, "relu6", w_bits, a_bits, layer.batch)


def _depthwise(layer: _Layer, assignment: Assignment) -> OpSpec | None:
    if layer.absent(assignment):
        return None
    w_bits, a_bits = layer.value("dw_w", assignment), layer.value("dw_a", assignment)
    mid, kernel = layer.value("m", assignment), layer.value("k", assignment)
    return _conv(mid, mid, layer.extent, kernel, layer.stride, mid, "relu6", w_bits, a_bits, layer.batch)


def _project(layer: _Layer, assignment: Assignment) -> OpSpec | None:
    if layer.absent(assignment):
        return None
    w_bits, a_bits = layer.value("pw_w", assignment), layer.value("pw_a", assignment)
    mid, extent = layer.value("m", assignment), strided(layer.extent, layer.stride)
    return _conv(mid, layer.out_channels, extent, 1, 1, 1, "none", w_bits, a_bits, layer.batch)


@lru_cache(maxsize=32_768)
def _conv(
    in_channels: int,
    out_channels: int,
    extent: int,
    kernel: int,
    stride: int,
    groups: int,
    act: str,
    w_bits: int,
    a_bits: int,
    batch: int,
) -> OpSpec:
    return OpSpec(
        kind="conv", in_channels=in_channels, out_channels=out_channels, height=extent, width=extent, kernel=kernel,
        stride=stride, groups=groups, act=act, w_bits=w_bits, a_bits=a_bits, batch=batch,
    )  # fmt: skip  # one shape, one line
