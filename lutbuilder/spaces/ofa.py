"""Once-for-all's two mobile spaces: depth, kernel and expansion are elastic, the widths are one multiplier.

Layer j of a stage runs iff j <= its depth; variables r, d1.., k1.., e1.. with layers counted through all stages.
Source: Cai, Gan, Wang, Zhang, Han, Once-for-All, ICLR 2020, section 4.1, and its released supernets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lutbuilder.op import OpSpec
from lutbuilder.spaces.proxyless import WIDTHS as PROXYLESS_WIDTHS
from lutbuilder.spaces.shapes import deep_enough, fixed, logits, mbconv, pointwise, pool, scaled, stem, strided
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable
from lutbuilder_agent.errors import UnknownName

DEPTHS = (2, 3, 4)
KERNELS = (3, 5, 7)
EXPANDS = (3, 4, 6)
_MBV3_WIDTHS: Mapping[str, tuple[int, ...]] = {  # stem, the five stages, the two convolutions of the head
    "w1.0": (16, 24, 40, 80, 112, 160, 960, 1280),
    "w1.2": (24, 32, 48, 96, 136, 192, 1152, 1536),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """Up to `layers` layers of `width` channels; the first has the stride. More than DEPTHS[0] layers: elastic."""

    width: int
    stride: int
    act: str
    se: bool = False
    layers: int = DEPTHS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One elastic layer; `reduction` is the stride of everything before it, `depth` None where it always runs."""

    kernel: str
    expand: str
    depth: str | None
    position: int
    in_channels: int
    stage: _Stage
    reduction: int
    stride: int
    batch: int


def ofa_proxyless(
    variant: str, *, resolutions: Sequence[int], batch: int = 1, name: str = "ofa_proxyless"
) -> SearchSpace:
    """Return the ProxylessNAS skeleton at width 1.0 or 1.3: 103 distinct ops a resolution, ReLU6, no squeeze-excite."""
    if variant not in ("w1.0", "w1.3"):
        raise UnknownName(f"unknown width {variant!r} of ofa_proxyless; known: w1.0, w1.3")
    widths = PROXYLESS_WIDTHS[variant]
    strides, layers = (2, 2, 2, 1, 2, 1), (4, 4, 4, 4, 4, 1)
    stages = [
        _Stage(width=width, stride=stride, act="relu6", layers=count)
        for width, stride, count in zip(widths.stages, strides, layers, strict=True)
    ]
    head = pointwise(widths.stages[-1], widths.head, 1, "relu6", batch)
    return _space(
        name,
        resolutions,
        stem=stem(widths.stem, 1, "relu6", batch),
        first=mbconv(widths.stem, widths.first, 1, 3, 1, 1, "relu6", batch=batch),
        stages=stages,
        tail=[
            scaled("head", head, 32, stage="head"),
            scaled("logits", logits(widths.head, 1, batch), 32, stage="head"),
        ],
    )


def ofa_mbv3(variant: str, *, resolutions: Sequence[int], batch: int = 1, name: str = "ofa_mbv3") -> SearchSpace:
    """Return the MobileNetV3 skeleton at width 1.0 or 1.2: 96 distinct ops and 7371^5 archs a resolution.

    The head pools before its second convolution, so that only its first two ops depend on the resolution.
    """
    if variant not in _MBV3_WIDTHS:
        raise UnknownName(f"unknown width {variant!r} of ofa_mbv3; known: {', '.join(_MBV3_WIDTHS)}")
    first, *widths, expanded, features = _MBV3_WIDTHS[variant]
    rules = zip(widths, (2, 2, 2, 1, 2), (False, True, False, True, True), strict=True)
    stages = [
        _Stage(width=width, stride=stride, se=se, act="relu" if number < 2 else "hswish")
        for number, (width, stride, se) in enumerate(rules)
    ]
    return _space(
        name,
        resolutions,
        stem=stem(first, 1, "hswish", batch),
        first=mbconv(first, first, 1, 3, 1, 1, "relu", batch=batch),
        stages=stages,
        tail=[
            scaled("head", pointwise(widths[-1], expanded, 1, "hswish", batch), 32, stage="head"),
            scaled("pool", pool(expanded, 1, batch), 32, stage="head"),
            fixed("features", pointwise(expanded, features, 1, "hswish", batch), stage="head"),
            fixed("logits", logits(features, 1, batch), stage="head"),
        ],
    )


def _space(
    name: str,
    resolutions: Sequence[int],
    *,
    stem: OpSpec,
    first: OpSpec,
    stages: Sequence[_Stage],
    tail: Sequence[Site],
) -> SearchSpace:
    """Return the space of `stages` between a stem with one fixed block and a tail; all ops are of any map."""
    depths: list[Variable] = []
    kernels: list[Variable] = []
    expands: list[Variable] = []
    sites = [scaled("stem", stem, 1, stage="stem"), scaled("first", first, 2, stage="stem")]
    channels, reduction = first.out_channels, 2
    for number, stage in enumerate(stages, start=1):
        depth = f"d{number}"
        if stage.layers > DEPTHS[0]:
            depths.append(Variable(name=depth, values=DEPTHS))
        for position in range(1, stage.layers + 1):
            layer = _Layer(
                kernel=f"k{len(kernels) + 1}", expand=f"e{len(kernels) + 1}",
                depth=depth if position > DEPTHS[0] else None, position=position, in_channels=channels, stage=stage,
                reduction=reduction, stride=stage.stride if position == 1 else 1, batch=stem.batch,
            )  # fmt: skip  # one layer, three lines
            gate = deep_enough(depth, position) if layer.depth else None
            kernels.append(Variable(name=layer.kernel, values=KERNELS, active_when=gate))
            expands.append(Variable(name=layer.expand, values=EXPANDS, active_when=gate))
            gates = (depth,) if layer.depth else ()
            sites.append(
                Site(
                    name=f"layer{len(kernels)}",
                    scope=("r", *gates, layer.kernel, layer.expand),
                    op=partial(_layer, layer),
                    stage=f"stage {number}",
                )
            )
            channels, reduction = stage.width, reduction * layer.stride
    picture = Variable(name="r", values=tuple(resolutions))
    return SearchSpace(name=name, variables=(picture, *depths, *kernels, *expands), sites=(*sites, *tail))


def _layer(layer: _Layer, assignment: Assignment) -> OpSpec | None:
    if layer.depth is not None and int(assignment[layer.depth]) < layer.position:
        return None
    return mbconv(
        layer.in_channels,
        layer.stage.width,
        int(assignment[layer.expand]),
        int(assignment[layer.kernel]),
        strided(int(assignment["r"]), layer.reduction),
        layer.stride,
        layer.stage.act,
        layer.stage.se,
        batch=layer.batch,
    )
