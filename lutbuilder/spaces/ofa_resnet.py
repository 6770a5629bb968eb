"""Once-for-all's ResNet-50 space: elastic depth, elastic widths by multiplier, and an expansion ratio a block.

Variables r; d0 (2: the optional convolution of the stem runs); w0 and w1 (stem), w2 to w5 (stages); d1 to d4 (layers
above a stage's base depth); e1 to e18. A stage's first block pools and projects its input beside itself.
Source: Cai, Gan, Wang, Zhang, Han, Once-for-All, ICLR 2020, and its released ResNet-50 supernet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from lutbuilder.op import OpSpec
from lutbuilder.spaces.shapes import deep_enough, logits, make_divisible, pool, stem, strided
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable

MULTIPLIERS = (0.65, 0.8, 1.0)
EXPANDS = (0.2, 0.25, 0.35)
EXTRA_DEPTHS = (0, 1, 2)
_STEM_ON = 2  # the value of d0 at which the stem's optional convolution runs
_WIDTHS: Mapping[str, tuple[int, ...]] = {  # channels at each multiplier
    "w0": (24, 24, 32),
    "w1": (40, 48, 64),
    "w2": (168, 208, 256),
    "w3": (336, 408, 512),
    "w4": (664, 816, 1024),
    "w5": (1328, 1640, 2048),
}
_BASE_DEPTHS = (2, 2, 4, 2)
_STRIDES = (1, 2, 2, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Names of the variables a block reads; `depth` "" where it always runs, `before` that of its input's width."""

    before: str
    width: str
    depth: str
    position: int
    expand: str
    stride: int
    reduction: int
    batch: int

    @property
    def scope(self) -> tuple[str, ...]:
        names = ("r", self.before, self.width, self.depth, self.expand)
        return tuple(dict.fromkeys(name for name in names if name))


def ofa_resnet50(*, resolutions: Sequence[int], batch: int = 1, name: str = "ofa_resnet50") -> SearchSpace:
    """Return the space: 163 distinct ops and 2,458,914,796,962 archs a resolution."""
    depths = [Variable(name="d0", values=(0, _STEM_ON))]
    expands: list[Variable] = []
    sites = [
        Site(name="stem1", scope=("r", "w0"), op=partial(_first, batch), stage="stem"),
        Site(name="stem2", scope=("r", "d0", "w0"), op=partial(_optional, batch), stage="stem"),
        Site(name="stem3", scope=("r", "w0", "w1"), op=partial(_second, batch), stage="stem"),
        Site(name="max_pool", scope=("r", "w1"), op=partial(_max_pool, batch), stage="stem"),
    ]
    reduction = 4
    for number, (base, stride) in enumerate(zip(_BASE_DEPTHS, _STRIDES, strict=True), start=1):
        before, width, depth = f"w{number}", f"w{number + 1}", f"d{number}"
        depths.append(Variable(name=depth, values=EXTRA_DEPTHS))
        for position in range(1, base + EXTRA_DEPTHS[-1] + 1):
            expand = f"e{len(expands) + 1}"
            extra = position - base  # runs iff the extra depth is not below it
            gate = deep_enough(depth, extra) if extra > 0 else None
            expands.append(Variable(name=expand, values=EXPANDS, active_when=gate))
            block = _Block(
                before=before if position == 1 else width, width=width, depth=depth if extra > 0 else "",
                position=extra, expand=expand, stride=stride if position == 1 else 1, reduction=reduction, batch=batch,
            )  # fmt: skip  # one block, two lines
            op = partial(_block, block)
            sites.append(Site(name=f"block{len(expands)}", scope=block.scope, op=op, stage=f"stage {number}"))
            reduction *= block.stride
    sites += [
        Site(name="pool", scope=("r", "w5"), op=partial(_pool, reduction, batch), stage="head"),
        Site(name="logits", scope=("w5",), op=partial(_logits, batch), stage="head"),
    ]
    picture = Variable(name="r", values=tuple(resolutions))
    widths = [Variable(name=width, values=MULTIPLIERS) for width in _WIDTHS]
    return SearchSpace(name=name, variables=(picture, *depths, *widths, *expands), sites=tuple(sites))


def _channels(width: str, assignment: Assignment) -> int:
    return _WIDTHS[width][MULTIPLIERS.index(float(assignment[width]))]


# Module-level functions under `partial`, not lambdas: a supernet that holds the space can be pickled.
def _first(batch: int, assignment: Assignment) -> OpSpec:
    return stem(_channels("w0", assignment), int(assignment["r"]), "relu", batch)


def _optional(batch: int, assignment: Assignment) -> OpSpec | None:
    if int(assignment["d0"]) != _STEM_ON:
        return None
    channels = _channels("w0", assignment)
    return _conv(channels, channels, strided(int(assignment["r"]), 2), batch, residual=True)


def _second(batch: int, assignment: Assignment) -> OpSpec:
    channels = _channels("w0", assignment), _channels("w1", assignment)
    return _conv(*channels, strided(int(assignment["r"]), 2), batch)


def _max_pool(batch: int, assignment: Assignment) -> OpSpec:
    channels, extent = _channels("w1", assignment), strided(int(assignment["r"]), 2)
    return OpSpec(
        kind="max_pool", in_channels=channels, out_channels=channels, height=extent, width=extent, kernel=3, stride=2,
        batch=batch,
    )  # fmt: skip  # one shape, one line


def _block(block: _Block, assignment: Assignment) -> OpSpec | None:
    if block.depth and int(assignment[block.depth]) < block.position:
        return None
    out_channels = _channels(block.width, assignment)
    return _bottleneck(
        _channels(block.before, assignment),
        make_divisible(round(out_channels * float(assignment[block.expand]))),
        out_channels,
        strided(int(assignment["r"]), block.reduction),
        block.stride,
        block.batch,
    )


def _pool(reduction: int, batch: int, assignment: Assignment) -> OpSpec:
    return pool(_channels("w5", assignment), strided(int(assignment["r"]), reduction), batch)


def _logits(batch: int, assignment: Assignment) -> OpSpec:
    return logits(_channels("w5", assignment), 1, batch)


def _conv(in_channels: int, out_channels: int, extent: int, batch: int, *, residual: bool = False) -> OpSpec:
    return OpSpec(
        kind="conv", in_channels=in_channels, out_channels=out_channels, height=extent, width=extent, kernel=3,
        act="relu", residual=residual, batch=batch,
    )  # fmt: skip  # one shape, one line


@lru_cache(maxsize=16_384)
def _bottleneck(in_channels: int, mid_channels: int, out_channels: int, extent: int, stride: int, batch: int) -> OpSpec:
    keeps_shape = stride == 1 and in_channels == out_channels
    return OpSpec(
        kind="bottleneck", in_channels=in_channels, mid_channels=mid_channels, out_channels=out_channels,
        height=extent, width=extent, kernel=3, stride=stride, act="relu", residual=keeps_shape,
        shortcut=not keeps_shape, batch=batch,
    )  # fmt: skip  # one shape, one line
