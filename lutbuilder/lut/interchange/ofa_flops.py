"""Once-for-all's efficiency table of MobileNetV3 blocks, .npy: ms of a batch by block, kernel and expansion.

Shapes are not in the file. They follow the rule of the program that writes it, not that of the network: widths are
rounded and not made divisible, maps are divided and rounded down, and the classifier grows with the multiplier, so that
only some of these rows are ops of preset ofa_mbv3.
Source: the released tutorial of Cai et al., Once-for-All, ICLR 2020.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutbuilder.lut.interchange.format import Format, Page, Written
from lutbuilder.lut.interchange.records import Entry, Reading, ReadOptions, averaged
from lutbuilder.lut.interchange.source import Malformed, Source, check_size, located, positive
from lutbuilder.lut.interchange.unpickle import unpickled_npy
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError

BATCH = 64
PRESET = "ofa_mbv3"
KERNELS, EXPANDS = (3, 5, 7), (3, 4, 6)
BLOCKS, OTHERS = "mobile_inverted_blocks", "other_blocks"
HOW_TO_SUM = "a network is its blocks, block 0 at kernel 3 and expansion 1, and every one of other_blocks"

_VARIANT = re.compile(rf"{PRESET}-w(?P<width>[0-9]\.[0-9]+)(-.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    width: int
    stride: int
    act: str
    se: bool = False


_FIRST = _Stage(width=16, stride=1, act="relu")
_STAGES = (
    _Stage(width=24, stride=2, act="relu"),
    _Stage(width=40, stride=2, act="relu", se=True),
    _Stage(width=80, stride=2, act="hswish"),
    _Stage(width=112, stride=1, act="hswish", se=True),
    _Stage(width=160, stride=2, act="hswish", se=True),
)
_LAYERS, _EXPANDED, _FEATURES, _CLASSES = 4, 960, 1280, 1000
_N_BLOCKS = 1 + len(_STAGES) * _LAYERS


def _read(source: Source, options: ReadOptions) -> Reading:
    if options.quantity != "latency":
        raise SpecError("ofa-flops-npy holds MFLOPs or ms and does not say which: --quantity latency if it is latency")
    multiplier = width_multiplier(options.preset)
    batch = options.batch or BATCH
    with located(source):
        table = unpickled_npy(source)
        if type(table) is not dict or not table:
            raise Malformed("not a mapping of tables by resolution")
    entries: list[Entry] = []
    dropped: list[str] = []
    for r, parts in table.items() if isinstance(table, dict) else ():
        with located(source, f"[{r!r}]"):
            values = dict(_values(r, parts))
            check_size(len(entries) + len(values))
            ops = dict(places(int(r), multiplier, batch))
            strange = [place for place in values if place not in ops]
            if strange:
                raise Malformed(f"{strange[0]} is no place of this format")
        for place, value in values.items():
            key = f"[{r}]{place}"
            with located(source, key, dropped=dropped if options.drop_invalid else None):
                ms = positive(value, "the value")
                entries.append(Entry(op=ops[place], key=key, value=ms, method=options.method or "isolated"))
    return Reading(entries=averaged(entries), dropped=tuple(dropped), about=HOW_TO_SUM)


def width_multiplier(preset: str | None) -> float:
    """Return the width that a preset's name says. Raises SpecError for another preset, or a name without it."""
    found = _VARIANT.fullmatch(preset or "")
    if found is None:
        raise SpecError(f"ofa-flops-npy does not say its width: --preset {PRESET}-w1.0 or {PRESET}-w1.2, got {preset}")
    return float(found["width"])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands in a resolution's table: a block at a kernel and expansion, or another layer."""

    number: int
    kernel_expand: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.kernel_expand is None:
            return f"[{OTHERS!r}][{self.number}]"
        return f"[{BLOCKS!r}][{self.number}][{self.kernel_expand}]"


def places(r: int, multiplier: float, batch: int) -> Iterator[tuple[Place, OpSpec]]:
    """Yield every place of a resolution's table with its op."""

    def wide(channels: int) -> int:
        return round(channels * multiplier)

    def conv(before: int, after: int, extent: int, kernel: int, stride: int, act: str) -> OpSpec:
        return OpSpec(
            kind="conv", in_channels=wide(before), out_channels=wide(after), height=extent, width=extent, kernel=kernel,
            stride=stride, act=act, batch=batch,
        )  # fmt: skip  # one shape, two lines

    def block(before: int, stage: _Stage, extent: int, kernel: int, expand: int, stride: int) -> OpSpec:
        channels, mid = wide(before), wide(before) * expand
        return OpSpec(
            kind="mbconv", in_channels=channels, mid_channels=mid, out_channels=wide(stage.width), height=extent,
            width=extent, kernel=kernel, stride=stride, se=stage.se, act=stage.act,
            residual=stride == 1 and before == stage.width, batch=batch,
        )  # fmt: skip  # one shape, three lines

    yield Place(0), conv(3, _FIRST.width, r, 3, 2, "relu")
    for kernel in KERNELS:
        yield Place(0, (kernel, 1)), block(_FIRST.width, _FIRST, r // 2, kernel, 1, 1)
    width, extent, number = _FIRST.width, r // 2, 0
    for stage in _STAGES:
        for position in range(_LAYERS):
            number += 1
            stride = stage.stride if position == 0 else 1
            for kernel, expand in itertools.product(KERNELS, EXPANDS):
                yield Place(number, (kernel, expand)), block(width, stage, extent, kernel, expand, stride)
            width, extent = stage.width, extent // stride
    yield Place(number + 2), conv(width, _EXPANDED, r // 32, 1, 1, "hswish")
    yield Place(number + 3), conv(_EXPANDED, _FEATURES, 1, 1, 1, "hswish")
    classes = OpSpec(
        kind="logits", in_channels=wide(_FEATURES), out_channels=wide(_CLASSES), height=1, width=1, batch=batch
    )
    yield Place(number + 4), classes


def _values(r: object, parts: object) -> Iterator[tuple[Place, object]]:
    """Yield a resolution's values by their places, checking what holds them."""
    if type(r) is not int or not 32 <= r <= 4096:
        raise Malformed("a resolution is an integer from 32")
    if not isinstance(parts, dict) or set(parts) != {BLOCKS, OTHERS}:
        raise Malformed(f"not a mapping with {BLOCKS} and {OTHERS}")
    blocks, others = parts[BLOCKS], parts[OTHERS]
    if type(blocks) is not list or type(others) is not dict:
        raise Malformed(f"{BLOCKS} is a list, {OTHERS} a mapping")
    if len(blocks) != _N_BLOCKS:
        raise Malformed(f"{len(blocks)} blocks, not {_N_BLOCKS}")
    for number, block in enumerate(blocks):
        if type(block) is not dict:
            raise Malformed(f"block {number} is no mapping of ms by (kernel, expansion)")
        for key, value in block.items():
            yield Place(number, key), value
    for number, value in others.items():
        yield Place(number), value


# --- Writing


def _write(page: Page) -> Written:
    """The tables of the preset's resolutions; of block 0 what there is, for networks use (3, 1) alone."""
    multiplier = width_multiplier(None if page.space is None else _with_width(page.space.name))
    layout = {r: list(places(r, multiplier, page.lut.meta.target.batch)) for r in page.by_resolution()}
    written = {
        op: None
        for each in layout.values()
        for place, op in each
        if place.kernel_expand in (None, (3, 1)) or place.number or page.has(op)
    }
    page.require(written)
    table: dict[int, dict[str, Any]] = {}
    for r, each in layout.items():
        blocks: list[dict[tuple[int, int], float]] = [{} for _ in range(_N_BLOCKS)]
        others: dict[int, float] = {}
        for place, op in each:
            if op not in written:
                continue
            if place.kernel_expand is None:
                others[place.number] = page.cell(op).value
            else:
                blocks[place.number][place.kernel_expand] = page.cell(op).value
        table[r] = {BLOCKS: blocks, OTHERS: others}
    return Written(contents={"": _npy(table)}, ops=tuple(written))


def _with_width(name: str) -> str:
    return name if "-w" in name else name.replace(PRESET, f"{PRESET}-w1.0", 1)


def _npy(value: Mapping[int, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(value, dtype=object), allow_pickle=True)
    return file.getvalue()


OFA_FLOPS_NPY = Format(
    name="ofa-flops-npy",
    summary="Once-for-all's efficiency table, .npy of one object: ms of a batch; needs --quantity latency and --preset",
    read=_read,
    write=_write,
    options=("preset", "quantity", "batch"),
    files="*.npy",
    preset=f"{PRESET}-w1.0",
    pickled=True,
    whole=True,
)
