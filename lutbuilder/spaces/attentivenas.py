"""The AttentiveNAS space, which AlphaNet shares: elastic widths, and one kernel and one expansion a stage.

Variables r; w0 (stem), w1 to w7 (stages), w8 (last convolution); d1 to d7; k1 to k7; e2 to e5. Every block adds its
input: as it is where the shape is kept, else pooled and projected within the op.
Source: Wang, Li, Gong, Chandra, AttentiveNAS, CVPR 2021, table 1; Wang, Gong, Li, Liu, Chandra, AlphaNet, ICML 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lutbuilder.op import OpSpec
from lutbuilder.spaces.shapes import logits, mbconv, pointwise, pool, stem, strided
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable

STEM = (16, 24)
LAST = (1792, 1984)
KERNELS = (3, 5)
_HEAD_EXPAND = 6
_REDUCTION = 32  # of the map in front of the head


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The values a stage offers; `expands` of one value is no variable."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    expands: tuple[int, ...]
    stride: int
    se: bool


STAGES = (
    Stage(widths=(16, 24), depths=(1, 2), expands=(1,), stride=1, se=False),
    Stage(widths=(24, 32), depths=(3, 4, 5), expands=(4, 5, 6), stride=2, se=False),
    Stage(widths=(32, 40), depths=(3, 4, 5, 6), expands=(4, 5, 6), stride=2, se=True),
    Stage(widths=(64, 72), depths=(3, 4, 5, 6), expands=(4, 5, 6), stride=2, se=False),
    Stage(widths=(112, 120, 128), depths=(3, 4, 5, 6, 7, 8), expands=(4, 5, 6), stride=1, se=True),
    Stage(widths=(192, 200, 208, 216), depths=(3, 4, 5, 6, 7, 8), expands=(6,), stride=2, se=True),
    Stage(widths=(216, 224), depths=(1, 2), expands=(6,), stride=1, se=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Names of the variables a block reads; `before` is that of its input's width, `depth` "" where it always runs."""

    before: str
    width: str
    depth: str
    position: int
    kernel: str
    expand: str | int
    stride: int
    reduction: int
    se: bool
    batch: int

    @property
    def scope(self) -> tuple[str, ...]:
        expand = self.expand if isinstance(self.expand, str) else ""
        return tuple(dict.fromkeys(n for n in ("r", self.before, self.width, self.depth, self.kernel, expand) if n))


def attentivenas(*, resolutions: Sequence[int], batch: int = 1, name: str = "attentivenas") -> SearchSpace:
    """Return the space: 230 distinct ops a resolution, 440,301,256,704 archs over all four."""
    widths = [Variable(name="w0", values=STEM)]
    depths: list[Variable] = []
    kernels: list[Variable] = []
    expands: list[Variable] = []
    sites = [Site(name="stem", scope=("r", "w0"), op=partial(_stem, batch), stage="stem")]
    reduction = 2
    for number, stage in enumerate(STAGES, start=1):
        before, width, depth = f"w{number - 1}", f"w{number}", f"d{number}"
        widths.append(Variable(name=width, values=stage.widths))
        depths.append(Variable(name=depth, values=stage.depths))
        kernels.append(Variable(name=f"k{number}", values=KERNELS))
        expand: str | int = f"e{number}" if len(stage.expands) > 1 else stage.expands[0]
        if isinstance(expand, str):
            expands.append(Variable(name=expand, values=stage.expands))
        for position in range(1, stage.depths[-1] + 1):
            block = _Block(
                before=before if position == 1 else width, width=width,
                depth=depth if position > stage.depths[0] else "", position=position, kernel=f"k{number}",
                expand=expand, stride=stage.stride if position == 1 else 1, reduction=reduction, se=stage.se,
                batch=batch,
            )  # fmt: skip  # one block, four lines
            op = partial(_op, block)
            sites.append(Site(name=f"mb{number}.{position}", scope=block.scope, op=op, stage=f"mb{number}"))
            reduction *= block.stride
    last, features = f"w{len(STAGES)}", f"w{len(STAGES) + 1}"
    widths.append(Variable(name=features, values=LAST))
    sites += [
        Site(name="head", scope=("r", last), op=partial(_head, last, batch), stage="head"),
        Site(name="pool", scope=("r", last), op=partial(_pool, last, batch), stage="head"),
        Site(name="features", scope=(last, features), op=partial(_features, last, features, batch), stage="head"),
        Site(name="logits", scope=(features,), op=partial(_logits, features, batch), stage="head"),
    ]
    picture = Variable(name="r", values=tuple(resolutions))
    return SearchSpace(name=name, variables=(picture, *widths, *depths, *kernels, *expands), sites=tuple(sites))


# Module-level functions under `partial`, not lambdas: a supernet that holds the space can be pickled.
def _stem(batch: int, assignment: Assignment) -> OpSpec:
    return stem(int(assignment["w0"]), int(assignment["r"]), "swish", batch)


def _op(block: _Block, assignment: Assignment) -> OpSpec | None:
    if block.depth and int(assignment[block.depth]) < block.position:
        return None
    return mbconv(
        int(assignment[block.before]),
        int(assignment[block.width]),
        int(assignment[block.expand]) if isinstance(block.expand, str) else block.expand,
        int(assignment[block.kernel]),
        strided(int(assignment["r"]), block.reduction),
        block.stride,
        "swish",
        block.se,
        shortcut=True,
        batch=block.batch,
    )


def _head(last: str, batch: int, assignment: Assignment) -> OpSpec:
    channels = int(assignment[last])
    extent = strided(int(assignment["r"]), _REDUCTION)
    return pointwise(channels, _HEAD_EXPAND * channels, extent, "swish", batch)


def _pool(last: str, batch: int, assignment: Assignment) -> OpSpec:
    return pool(_HEAD_EXPAND * int(assignment[last]), strided(int(assignment["r"]), _REDUCTION), batch)


def _features(last: str, features: str, batch: int, assignment: Assignment) -> OpSpec:
    return pointwise(_HEAD_EXPAND * int(assignment[last]), int(assignment[features]), 1, "swish", batch)


def _logits(features: str, batch: int, assignment: Assignment) -> OpSpec:
    return logits(int(assignment[features]), 1, batch)
