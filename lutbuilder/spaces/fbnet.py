"""The FBNet search space: 22 layers, each one of eight inverted bottlenecks or nothing, 224 x 224.

Source: Wu et al., FBNet, CVPR 2019, tables 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from lutbuilder.op import OpSpec
from lutbuilder.spaces.shapes import fixed, logits, mbconv, pointwise, stem
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable
from lutbuilder_agent.errors import UnknownName

RESOLUTION = 224
STEM = 16
WIDTHS = (16, 24, 32, 64, 112, 184, 352)
DEPTHS = (1, 4, 4, 4, 4, 4, 1)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
SKIP = "skip"
# Of the head's convolution; "lean": no expand convolution at expansion 1, as the model definitions published later.
VARIANTS: Mapping[str, tuple[int, bool]] = {
    "h1504": (1504, True),
    "h1984": (1984, True),
    "h1504-lean": (1504, False),
    "h1984-lean": (1984, False),
}


class _Candidate(NamedTuple):
    kernel: int
    expand: int
    groups: int


CANDIDATES: Mapping[str, _Candidate] = {
    f"k{kernel}e{expand}" + ("g2" if groups == 2 else ""): _Candidate(kernel, expand, groups)
    for kernel in (3, 5)
    for expand, groups in ((1, 1), (1, 2), (3, 1), (6, 1))
}


def fbnet(variant: str = "h1504", *, batch: int = 1, name: str = "fbnet") -> SearchSpace:
    """Return the space: one variable a layer, 9^16 * 8^6 archs of 99 distinct ops.

    A layer that keeps shape (16 of 22) may also be `skip`: nothing runs. `g2` groups both 1x1 convolutions by 2.
    """
    if variant not in VARIANTS:
        raise UnknownName(f"unknown variant {variant!r} of fbnet; known: {', '.join(VARIANTS)}")
    head_channels, expand_conv = VARIANTS[variant]
    first = stem(STEM, RESOLUTION, "relu", batch)
    variables: list[Variable] = []
    sites = [fixed("stem", first, stage="stem")]
    channels, extent = STEM, first.out_height
    for number, (width, depth, first_stride) in enumerate(zip(WIDTHS, DEPTHS, STRIDES, strict=True), start=1):
        for position in range(depth):
            layer = f"layer{len(variables) + 1}"
            plain = mbconv(channels, width, 1, 1, extent, first_stride if position == 0 else 1, "relu", batch=batch)
            variables.append(Variable(name=layer, values=(*CANDIDATES, SKIP) if plain.residual else (*CANDIDATES,)))
            op = partial(_candidate, layer, plain, expand_conv)
            sites.append(Site(name=layer, scope=(layer,), op=op, stage=f"stage {number}"))
            channels, extent = width, plain.out_height
    sites += [
        fixed("head", pointwise(channels, head_channels, extent, "relu", batch), stage="head"),
        fixed("logits", logits(head_channels, extent, batch), stage="head"),
    ]
    return SearchSpace(name=name, variables=tuple(variables), sites=tuple(sites))


# A module-level function under `partial`, not a lambda: a supernet that holds the space can be pickled.
def _candidate(layer: str, plain: OpSpec, expand_conv: bool, assignment: Assignment) -> OpSpec | None:
    chosen = CANDIDATES.get(str(assignment[layer]))
    if chosen is None:
        return None
    return replace(
        plain, kernel=chosen.kernel, mid_channels=plain.in_channels * chosen.expand, groups=chosen.groups,
        expand_conv=expand_conv and chosen.expand == 1,
    )  # fmt: skip  # one shape, one line
