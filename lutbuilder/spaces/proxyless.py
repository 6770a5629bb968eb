"""The ProxylessNAS search space: 21 layers over a fixed MobileNetV2 skeleton, 224 x 224, widths 1.0 to 1.4.

Source: Cai, Zhu, Han, ProxylessNAS, ICLR 2019, section 4, and its released search configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from lutbuilder.op import OpSpec
from lutbuilder.spaces.shapes import make_divisible, strided
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable
from lutbuilder_agent.errors import UnknownName

RESOLUTION = 224
CLASSES = 1000
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
    extent = strided(RESOLUTION, 2)
    stem = OpSpec(
        kind="conv", in_channels=3, out_channels=widths.stem, height=RESOLUTION, width=RESOLUTION, kernel=3, stride=2,
        act="relu6", batch=batch,
    )  # fmt: skip  # one shape, one line
    first = _block(widths.stem, widths.first, extent, stride=1, batch=batch)
    variables: list[Variable] = []
    sites = [_fixed("stem", stem), _fixed("first", replace(first, kernel=3))]
    channels = widths.first
    for out_channels, depth, first_stride in zip(widths.stages, DEPTHS, STRIDES, strict=True):
        for position in range(depth):
            layer = f"layer{len(variables) + 1}"
            block = _block(channels, out_channels, extent, stride=first_stride if position == 0 else 1, batch=batch)
            variables.append(Variable(name=layer, values=(*CANDIDATES, ZERO) if block.residual else (*CANDIDATES,)))
            sites.append(Site(name=layer, scope=(layer,), op=partial(_candidate, layer, block)))
            channels, extent = out_channels, block.out_height
    head = OpSpec(
        kind="conv",
        in_channels=channels,
        out_channels=widths.head,
        height=extent,
        width=extent,
        act="relu6",
        batch=batch,
    )
    logits = OpSpec(
        kind="logits", in_channels=widths.head, out_channels=CLASSES, height=extent, width=extent, batch=batch
    )
    sites += [_fixed("head", head), _fixed("logits", logits)]
    return SearchSpace(name=name, variables=tuple(variables), sites=tuple(sites))


def _block(in_channels: int, out_channels: int, extent: int, *, stride: int, batch: int) -> OpSpec:
    """The shape all candidates of a layer share; kernel 1 and expansion 1 stand for "not chosen yet"."""
    return OpSpec(
        kind="mbconv", in_channels=in_channels, mid_channels=in_channels, out_channels=out_channels,
        height=extent, width=extent, stride=stride, act="relu6",
        residual=stride == 1 and in_channels == out_channels, batch=batch,
    )  # fmt: skip  # one shape, one line


# Module-level functions under `partial`, not lambdas: a supernet that holds the space can be pickled.
def _candidate(layer: str, block: OpSpec, assignment: Assignment) -> OpSpec | None:
    chosen = CANDIDATES.get(str(assignment[layer]))
    if chosen is None:
        return None
    return replace(block, kernel=chosen.kernel, mid_channels=make_divisible(block.in_channels * chosen.expand))


def _fixed(name: str, op: OpSpec) -> Site:
    return Site(name=name, scope=(), op=partial(_same, op))


def _same(op: OpSpec, assignment: Assignment) -> OpSpec:
    return op
