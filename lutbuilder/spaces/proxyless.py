"""The ProxylessNAS search space: 21 layers over a fixed MobileNetV2 skeleton, 224 x 224, widths 1.0 to 1.4.

Source: Cai, Zhu, Han, ProxylessNAS, ICLR 2019, section 4, and its released search configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from lutbuilder.op import OpSpec
from lutbuilder.spaces.shapes import fixed, logits, make_divisible, mbconv, pointwise, stem
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable
from lutbuilder_agent.errors import UnknownName

RESOLUTION = 224
DEPTHS = (4, 4, 4, 4, 4, 1)
STRIDES = (2, 2, 2, 1, 2, 1)
ZERO = "zero"


class _Candidate(NamedTuple):
    kernel: int
    expand: int


CANDIDATES: Mapping[str, _Candidate] = {f"k{k}e{e}": _Candidate(k, e) for k in (3, 5, 7) for e in (3, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Channels after the stem, after the first block, after each stage, and after the head convolution."""

    stem: int
    first: int
    stages: tuple[int, int, int, int, int, int]
    head: int


WIDTHS: Mapping[str, Widths] = {
    "w1.0": Widths(stem=32, first=16, stages=(24, 40, 80, 96, 192, 320), head=1280),
    "w1.1": Widths(stem=32, first=16, stages=(24, 48, 88, 104, 208, 352), head=1408),
    "w1.2": Widths(stem=40, first=24, stages=(32, 48, 96, 112, 232, 384), head=1536),
    "w1.3": Widths(stem=40, first=24, stages=(32, 56, 104, 128, 248, 416), head=1664),
    "w1.4": Widths(stem=48, first=24, stages=(32, 56, 112, 136, 272, 448), head=1792),
}


def proxyless_search(variant: str = "w1.0", *, batch: int = 1, name: str = "proxyless") -> SearchSpace:
    """Return the space at one width: one variable a layer, 7^15 * 6^6 archs of 70 distinct ops.

    A layer that keeps shape (stride 1, equal widths) may also be `zero`: nothing runs, its input passes on.
    """
    widths = WIDTHS.get(variant)
    if widths is None:
        raise UnknownName(f"unknown width {variant!r} of proxyless; known: {', '.join(WIDTHS)}")
    first = stem(widths.stem, RESOLUTION, "relu6", batch)
    channels, extent = widths.first, first.out_height
    variables: list[Variable] = []
    sites = [
        fixed("stem", first, stage="stem"),
        fixed("first", mbconv(widths.stem, channels, 1, 3, extent, 1, "relu6", batch=batch), stage="stem"),
    ]
    for number, (out_channels, depth, first_stride) in enumerate(zip(widths.stages, DEPTHS, STRIDES, strict=True), 1):
        for position in range(depth):
            layer = f"layer{len(variables) + 1}"
            # What all candidates share; kernel 1 and expansion 1 stand for "not chosen yet".
            stride = first_stride if position == 0 else 1
            block = mbconv(channels, out_channels, 1, 1, extent, stride, "relu6", batch=batch)
            variables.append(Variable(name=layer, values=(*CANDIDATES, ZERO) if block.residual else (*CANDIDATES,)))
            op = partial(_candidate, layer, block)
            sites.append(Site(name=layer, scope=(layer,), op=op, stage=f"stage {number}"))
            channels, extent = out_channels, block.out_height
    sites += [
        fixed("head", pointwise(channels, widths.head, extent, "relu6", batch), stage="head"),
        fixed("logits", logits(widths.head, extent, batch), stage="head"),
    ]
    return SearchSpace(name=name, variables=tuple(variables), sites=tuple(sites))


# A module-level function under `partial`, not a lambda: a supernet that holds the space can be pickled.
def _candidate(layer: str, block: OpSpec, assignment: Assignment) -> OpSpec | None:
    chosen = CANDIDATES.get(str(assignment[layer]))
    if chosen is None:
        return None
    return replace(block, kernel=chosen.kernel, mid_channels=make_divisible(block.in_channels * chosen.expand))
