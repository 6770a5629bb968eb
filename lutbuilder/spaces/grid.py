"""Channel pruning of MobileNetV1, 224 x 224: one width a layer, every op a pointwise or depthwise conv on a width grid.

The grids are large (16 to 22 thousand ops): `collect --max-ops` measures some of them and imputes the others.
Sources: Howard et al., MobileNets, 2017, table 1 (the network); He et al., AMC, ECCV 2018, and Yang et al., NetAdapt,
ECCV 2018 (the widths a layer may take).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from lutbuilder.op import OpSpec
from lutbuilder.spaces.shapes import strided
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable
from lutbuilder_agent.errors import UnknownName

RESOLUTION = 224
CLASSES = 1000
STEM = 32
PAIRS = (  # (full width of the pointwise convolution, stride of the depthwise one before it)
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip  # one network, two lines
# Multiples of 64, 32, 16 and 8 and their neighbours: few enough that every op can be measured, and as uneven as AMC's.
LADDER = (
    8, 16, 24, 32, 40, 48, 64, 72, 96, 104, 128, 160, 192, 200, 256, 320, 384, 392, 512, 640, 768, 776, 1024,
)  # fmt: skip  # one list, one line


def amc_widths(full: int) -> tuple[int, ...]:
    """Return the widths AMC lets a layer of `full` channels take: multiples of 8 from a fifth of it up."""
    return tuple(range(8 * math.ceil(max(1, round(0.2 * full)) / 8), full + 1, 8))


def ladder_widths(full: int) -> tuple[int, ...]:
    """Return those of `amc_widths` that are on LADDER."""
    return tuple(width for width in amc_widths(full) if width in LADDER)


def stepped_widths(full: int, *, step: int) -> tuple[int, ...]:
    """Return all multiples of `step` up to `full`, NetAdapt's grid."""
    return tuple(range(step, full + 1, step))


_WIDTHS: Mapping[str, Mapping[str, Callable[[int], tuple[int, ...]]]] = {
    "amc": {"v1": amc_widths, "ladder": ladder_widths},
    "netadapt": {"step8": partial(stepped_widths, step=8), "step32": partial(stepped_widths, step=32)},
}


def amc(variant: str = "v1", *, batch: int = 1, name: str = "amc") -> SearchSpace:
    """Return AMC's space: 14 widths (stem and 13 pointwise convs), 16,344 ops; `ladder`: the same on 23 widths."""
    return _pruned(_chosen("amc", variant), batch=batch, name=name)


def netadapt(variant: str = "step8", *, batch: int = 1, name: str = "netadapt") -> SearchSpace:
    """Return NetAdapt's space of MobileNetV1: all multiples of 8 (22,288 ops) or of 32 channels (1,486 ops)."""
    return _pruned(_chosen("netadapt", variant), batch=batch, name=name)


def _chosen(preset: str, variant: str) -> Callable[[int], tuple[int, ...]]:
    widths = _WIDTHS[preset].get(variant)
    if widths is None:
        raise UnknownName(f"unknown width grid {variant!r} of {preset}; known: {', '.join(_WIDTHS[preset])}")
    return widths


def _pruned(widths: Callable[[int], tuple[int, ...]], *, batch: int, name: str) -> SearchSpace:
    """Return the space of all MobileNetV1s whose layers take `widths`; variables w0 (stem), w1 to w13 (pointwise)."""
    variables = [Variable(name="w0", values=widths(STEM))]
    sites = [Site(name="stem", scope=("w0",), op=partial(_stem, batch))]
    extent = strided(RESOLUTION, 2)
    for number, (full, stride) in enumerate(PAIRS, start=1):
        before, after = f"w{number - 1}", f"w{number}"
        variables.append(Variable(name=after, values=widths(full)))
        sites.append(Site(name=f"dw{number}", scope=(before,), op=partial(_depthwise, before, extent, stride, batch)))
        extent = strided(extent, stride)
        scope = (before, after)
        sites.append(Site(name=f"pw{number}", scope=scope, op=partial(_pointwise, before, after, extent, batch)))
    last = f"w{len(PAIRS)}"
    sites.append(Site(name="logits", scope=(last,), op=partial(_logits, last, extent, batch)))
    return SearchSpace(name=name, variables=tuple(variables), sites=tuple(sites))


# Module-level functions under `partial`, not lambdas: a supernet that holds the space can be pickled.
def _stem(batch: int, assignment: Assignment) -> OpSpec:
    return OpSpec(
        kind="conv", in_channels=3, out_channels=int(assignment["w0"]), height=RESOLUTION, width=RESOLUTION,
        kernel=3, stride=2, act="relu", batch=batch,
    )  # fmt: skip  # one shape, one line


def _depthwise(before: str, extent: int, stride: int, batch: int, assignment: Assignment) -> OpSpec:
    channels = int(assignment[before])
    return OpSpec(
        kind="conv", in_channels=channels, out_channels=channels, height=extent, width=extent, kernel=3, stride=stride,
        groups=channels, act="relu", batch=batch,
    )  # fmt: skip  # one shape, one line


def _pointwise(before: str, after: str, extent: int, batch: int, assignment: Assignment) -> OpSpec:
    return OpSpec(
        kind="conv", in_channels=int(assignment[before]), out_channels=int(assignment[after]), height=extent,
        width=extent, act="relu", batch=batch,
    )  # fmt: skip  # one shape, one line


def _logits(last: str, extent: int, batch: int, assignment: Assignment) -> OpSpec:
    return OpSpec(
        kind="logits", in_channels=int(assignment[last]), out_channels=CLASSES, height=extent, width=extent, batch=batch
    )
