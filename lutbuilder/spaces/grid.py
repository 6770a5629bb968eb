"""Channel pruning: one width a layer, every op a convolution or a fully connected layer on a grid of widths, 224 x 224.

The grids are large (8 to 22 thousand ops): `collect --max-ops` measures some of them and imputes the others.
Sources: He et al., AMC, ECCV 2018, and Yang et al., NetAdapt, ECCV 2018 (the widths a layer may take).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

from lutbuilder.op import OpSpec
from lutbuilder.spaces.published import ALEXNET_FC, Layer, alexnet, mobilenet_v1, mobilenet_v2
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable
from lutbuilder_agent.errors import UnknownName

# Multiples of 64, 32, 16 and 8 and their neighbours: few enough that every op can be measured, and as uneven as AMC's.
LADDER = (
    8, 16, 24, 32, 40, 48, 64, 72, 96, 104, 128, 160, 192, 200, 256, 320, 384, 392, 512, 640, 768, 776, 1024,
)  # fmt: skip  # one list, one line
_FC_STEP = 64
KNOTS = 400  # ops of a large grid that are measured, about ten minutes; the others are imputed
_LARGE, _WIDTHS = 1000, 100  # ops in all, and channels of one op at one place in the middle: from there on


def knots(ops: Sequence[OpSpec]) -> int | None:
    """Return how many of `ops` to measure, where most of many differ in channels alone; None: all of them.

    A grid of widths is smooth, so the others can be imputed; kernels, bits or resolutions say little of each other.
    """
    if len(ops) <= _LARGE:
        return None
    places = [(op.kind, op.height, op.width, op.kernel, op.stride, op.act, op.w_bits, op.a_bits) for op in ops]
    counts = Counter(places)
    return KNOTS if median(counts[place] for place in places) >= _WIDTHS else None


def amc_widths(full: int) -> tuple[int, ...]:
    """Return the widths AMC lets a layer of `full` channels take: multiples of 8 from a fifth of it up."""
    return tuple(range(8 * math.ceil(max(1, round(0.2 * full)) / 8), full + 1, 8))


def ladder_widths(full: int) -> tuple[int, ...]:
    """Return those of `amc_widths` that are on LADDER."""
    return tuple(width for width in amc_widths(full) if width in LADDER)


def stepped_widths(full: int, *, step: int) -> tuple[int, ...]:
    """Return all multiples of `step` up to `full`, NetAdapt's grid."""
    return tuple(range(step, full + 1, step))


def alexnet_widths(full: int) -> tuple[int, ...]:
    """Return NetAdapt's grid of AlexNet: multiples of 8 channels, of 64 in the fully connected layers."""
    return stepped_widths(full, step=_FC_STEP if full == ALEXNET_FC else 8)


def _relu6_everywhere() -> tuple[Layer, ...]:
    """Return MobileNetV2 with ReLU6 after the projections, too: layers of one shape are one op, as published counts."""
    return tuple(replace(layer, act="relu6") if layer.kind == "conv" else layer for layer in mobilenet_v2())


_Grid = tuple[Callable[[], tuple[Layer, ...]], Callable[[int], tuple[int, ...]]]
_AMC: Mapping[str, _Grid] = {
    "v1": (mobilenet_v1, amc_widths),
    "ladder": (mobilenet_v1, ladder_widths),
    "v2": (mobilenet_v2, amc_widths),
    "v2-relu6": (_relu6_everywhere, amc_widths),
}
_NETADAPT: Mapping[str, _Grid] = {
    "step8": (mobilenet_v1, partial(stepped_widths, step=8)),
    "step32": (mobilenet_v1, partial(stepped_widths, step=32)),
    "alexnet": (alexnet, alexnet_widths),
}


def amc(variant: str = "v1", *, batch: int = 1, name: str = "amc") -> SearchSpace:
    """Return AMC's space of MobileNetV1: 14 widths (stem and 13 pointwise convolutions), 16,344 ops.

    `ladder`: the same on 23 widths. `v2`: MobileNetV2, one output width for each group of residual blocks, 10,564 ops.
    `v2-relu6`: the same with a ReLU6 after its linear projections, which MobileNetV2 has not; the 10,411 ops that are
    published are those of shapes alone.
    """
    return _pruned("amc", _AMC, variant, batch=batch, name=name)


def netadapt(variant: str = "step8", *, batch: int = 1, name: str = "netadapt") -> SearchSpace:
    """Return NetAdapt's space of MobileNetV1: all multiples of 8 (22,288 ops) or of 32 channels (1,486 ops).

    `alexnet`: multiples of 8 channels, of 64 in the fully connected layers.
    """
    return _pruned("netadapt", _NETADAPT, variant, batch=batch, name=name)


def _pruned(preset: str, grids: Mapping[str, _Grid], variant: str, *, batch: int, name: str) -> SearchSpace:
    if variant not in grids:
        raise UnknownName(f"unknown width grid {variant!r} of {preset}; known: {', '.join(grids)}")
    network, widths = grids[variant]
    layers = network()
    full = {width.variable: width.full for layer in layers for width in (layer.before, layer.after) if width.variable}
    return SearchSpace(
        name=name,
        variables=tuple(Variable(name=variable, values=widths(count)) for variable, count in full.items()),
        sites=tuple(
            Site(name=layer.name, scope=_scope(layer), op=partial(_op, layer, batch), stage=layer.stage)
            for layer in layers
        ),
    )


def _scope(layer: Layer) -> tuple[str, ...]:
    return tuple(dict.fromkeys(width.variable for width in (layer.before, layer.after) if width.variable))


# A module-level function under `partial`, not a lambda: a supernet that holds the space can be pickled.
def _op(layer: Layer, batch: int, assignment: Assignment) -> OpSpec:
    before, after = (
        int(assignment[width.variable]) if width.variable else width.full for width in (layer.before, layer.after)
    )
    return layer.op(before, after, batch)
