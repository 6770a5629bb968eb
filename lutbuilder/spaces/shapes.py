"""What presets share: the map a strided layer leaves, inverted bottlenecks, and sites that only the resolution changes.

Ops are made once for equal arguments: the sites of a space ask for the same op thousands of times.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

from lutbuilder.op import OpSpec, make_divisible
from lutbuilder.spaces.space import Assignment, Condition, Site

__all__ = [
    "CLASSES", "deep_enough", "fixed", "logits", "make_divisible", "mbconv", "pointwise", "pool", "scaled", "stem",
    "strided",
]  # fmt: skip  # one list, one line

CLASSES = 1000  # of ImageNet, which every preset was published for
_KEPT = 65_536


def strided(extent: int, stride: int) -> int:
    """Return the rows (or columns) left of `extent` pixels by an odd kernel with padding (k - 1) / 2.

    Not `extent // stride`, which differs for odd maps. Halving twice is the same as striding by 4.
    """
    return (extent - 1) // stride + 1


# --- Ops


@lru_cache(maxsize=_KEPT)
def mbconv(
    in_channels: int,
    out_channels: int,
    expand: float,
    kernel: int,
    extent: int,
    stride: int,
    act: str,
    se: bool = False,
    shortcut: bool = False,
    batch: int = 1,
) -> OpSpec:
    """Return the inverted bottleneck on an `extent` x `extent` map, with a residual where its shape is kept.

    `shortcut`: where the shape is not kept, the input is added all the same, pooled and projected.
    """
    residual = stride == 1 and in_channels == out_channels
    return OpSpec(
        kind="mbconv", in_channels=in_channels, mid_channels=make_divisible(round(in_channels * expand)),
        out_channels=out_channels, height=extent, width=extent, kernel=kernel, stride=stride, act=act, se=se,
        residual=residual, shortcut=shortcut and not residual, batch=batch,
    )  # fmt: skip  # one shape, one line


@lru_cache(maxsize=_KEPT)
def pointwise(in_channels: int, out_channels: int, extent: int, act: str, batch: int = 1) -> OpSpec:
    """Return the 1x1 convolution on an `extent` x `extent` map."""
    return OpSpec(
        kind="conv", in_channels=in_channels, out_channels=out_channels, height=extent, width=extent, act=act,
        batch=batch,
    )  # fmt: skip  # one shape, one line


@lru_cache(maxsize=_KEPT)
def stem(out_channels: int, extent: int, act: str, batch: int = 1) -> OpSpec:
    """Return the 3x3 convolution with stride 2 that reads an `extent` x `extent` picture."""
    return OpSpec(
        kind="conv", in_channels=3, out_channels=out_channels, height=extent, width=extent, kernel=3, stride=2, act=act,
        batch=batch,
    )  # fmt: skip  # one shape, one line


@lru_cache(maxsize=_KEPT)
def pool(channels: int, extent: int, batch: int = 1) -> OpSpec:
    """Return the global average pool of an `extent` x `extent` map."""
    return OpSpec(
        kind="global_pool", in_channels=channels, out_channels=channels, height=extent, width=extent, batch=batch
    )


@lru_cache(maxsize=_KEPT)
def logits(in_channels: int, extent: int, batch: int = 1) -> OpSpec:
    """Return the classifier of 1000 classes; on a 1x1 map it is the fully connected layer alone."""
    return OpSpec(
        kind="logits", in_channels=in_channels, out_channels=CLASSES, height=extent, width=extent, batch=batch
    )


# --- Sites. Module-level functions under `partial`, not lambdas: a supernet that holds the space can be pickled.


def fixed(name: str, op: OpSpec, *, stage: str = "") -> Site:
    """Return a site without a choice."""
    return Site(name=name, scope=(), op=partial(_same, op), stage=stage)


def scaled(name: str, op: OpSpec, reduction: int, *, stage: str = "") -> Site:
    """Return a site that only the resolution `r` changes: `op` on the map that striding by `reduction` leaves of it."""
    return Site(name=name, scope=("r",), op=partial(_scaled, op, reduction), stage=stage)


def deep_enough(depth: str, position: int) -> Condition:
    """Return the condition that layer number `position` of a stage runs: the variable `depth` is not below it."""
    return Condition(scope=(depth,), holds=partial(_runs, depth, position))


def _same(op: OpSpec, assignment: Assignment) -> OpSpec:
    return op


def _scaled(op: OpSpec, reduction: int, assignment: Assignment) -> OpSpec:
    return _resized(op, strided(int(assignment["r"]), reduction))


@lru_cache(maxsize=_KEPT)
def _resized(op: OpSpec, extent: int) -> OpSpec:
    return replace(op, height=extent, width=extent)


def _runs(depth: str, position: int, assignment: Assignment) -> bool:
    return position <= int(assignment[depth])
