"""TF-NAS's table: ms of inverted bottlenecks by their channels in the middle, as a pickle.

Only multiples of 8 channels were timed; the values between lie on lines, and those below 8 on lines drawn further,
which is where negative latencies come from. Such values are read as imputed.
Source: Hu, Wu, He, TF-NAS, ECCV 2020, and its released tables.
"""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lutbuilder.lut.interchange.format import Format, Page, Written
from lutbuilder.lut.interchange.records import Entry, Reading, ReadOptions
from lutbuilder.lut.interchange.source import Malformed, Source, check_size, located, number, positive
from lutbuilder.lut.interchange.unpickle import pickled, unpickled
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError

BASE = "base"
STEP = 8
ON_A_LINE = 1e-9  # relative
ALL_AT_ONCE = "stem, first block, head, pool and classifier, summed"

_N = "[1-9][0-9]{0,5}"
_KEY = re.compile(rf"MBInvertedResBlock_({_N})_({_N})_(0|{_N})_({_N})_k({_N})_s({_N})_([a-z0-9]+)")


def _read(source: Source, options: ReadOptions) -> Reading:
    if options.batch is None:
        raise SpecError(
            "tfnas-pickle does not say its batch: --batch 32 for the published GPU table, 1 for the CPU one"
        )
    with located(source):
        table = unpickled(source)
        if type(table) not in (dict, OrderedDict) or not table:
            raise Malformed("not a mapping of blocks by name")
    entries: list[Entry] = []
    dropped: list[str] = []
    skips = dropped if options.drop_invalid else None
    for key, values in table.items() if isinstance(table, dict) else ():
        with located(source, f"key {key!r}", dropped=skips):
            if key == BASE:
                base_ms = positive(values, "latency")
                entries.append(
                    Entry(op=_base(options.batch), key=BASE, value=base_ms, method="isolated", reason=ALL_AT_ONCE)
                )
                continue
            parse = _parsed(key)
            curve = _curve(values)
            check_size(len(entries) + len(curve))
            for mid in curve:
                with located(source, f"key {key!r} mid {mid}", dropped=skips):
                    entries.append(
                        Entry(
                            op=_op(*parse, mid=mid, batch=options.batch),
                            key=f"{key} {mid}",
                            value=positive(curve[mid], "latency"),
                            method="imputed" if _is_imputed(curve, mid) else options.method or "isolated",
                        )
                    )
    return Reading(entries=tuple(entries), dropped=tuple(dropped))


def _base(batch: int) -> OpSpec:
    return OpSpec(kind="lump", in_channels=3, out_channels=1000, height=224, width=224, stride=224, batch=batch)


def _parsed(key: object) -> tuple[int, int, int, int, int, int, str]:
    found = _KEY.fullmatch(key) if type(key) is str else None
    if found is None:
        raise Malformed("not base or MBInvertedResBlock_{map}_{cin}_{se}_{cout}_k{kernel}_s{stride}_{act}")
    *numbers, act = found.groups()
    extent, in_channels, se_channels, out_channels, kernel, stride = map(int, numbers)
    return extent, in_channels, se_channels, out_channels, kernel, stride, act


def _curve(values: object) -> Mapping[int, Any]:
    """Return values by channels in the middle, as far as their keys make sense."""
    if type(values) not in (dict, OrderedDict) or not isinstance(values, dict) or not values:
        raise Malformed("not a mapping of ms by channels in the middle")
    if not all(type(mid) is int and mid > 0 for mid in values):
        wrong = next(mid for mid in values if type(mid) is not int or mid <= 0)
        raise Malformed(f"channels in the middle {wrong!r}, not an integer from 1")
    return values


def _op(
    extent: int,
    in_channels: int,
    se_channels: int,
    out_channels: int,
    kernel: int,
    stride: int,
    act: str,
    *,
    mid: int,
    batch: int,
) -> OpSpec:
    op = OpSpec(
        kind="mbconv", in_channels=in_channels, mid_channels=mid, out_channels=out_channels, height=extent,
        width=extent, kernel=kernel, stride=stride, se=se_channels > 0, act=act,
        residual=stride == 1 and in_channels == out_channels, batch=batch,
    )  # fmt: skip  # one shape, three lines
    return op if op.squeeze_channels == se_channels else replace(op, se_channels=se_channels)


def _is_imputed(curve: Mapping[int, Any], mid: int) -> bool:
    """Whether a value lies on the line through its two neighbours that are multiples of 8 (8 and 16 below 8)."""
    if mid % STEP == 0:
        return False
    low = max(mid // STEP * STEP, STEP)
    high = low + STEP
    if low not in curve or high not in curve:
        return False
    at_low, at_high, value = (number(curve[place], "latency") for place in (low, high, mid))
    line = at_low + (at_high - at_low) * (mid - low) / STEP
    return abs(value - line) <= ON_A_LINE * max(abs(value), abs(line))


# --- Writing


def _write(page: Page) -> Written:
    page.require(ops := page.ops())
    table: OrderedDict[str, Any] = OrderedDict()
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for op in ops:
        if op == _base(op.batch):
            table[BASE] = page.cell(op).value
            continue
        key = (
            f"MBInvertedResBlock_{op.height}_{op.in_channels}_{op.squeeze_channels}_{op.out_channels}"
            f"_k{op.kernel}_s{op.stride}_{op.act}"
        )
        try:
            said = _op(*_parsed(key), mid=op.mid_channels, batch=op.batch) == op
        except (Malformed, SpecError):
            said = False
        if not said:
            raise SpecError(f"{op.label()} cannot be said by a key of this format; the nearest is {key}")
        curves[key][op.mid_channels] = page.cell(op).value
    for key, curve in sorted(curves.items()):
        table[key] = OrderedDict(sorted(curve.items()))
    return Written(contents={"": pickled(table)}, ops=ops)


def _is_base(op: OpSpec) -> bool:
    return op.kind == "lump"


TFNAS_PICKLE = Format(
    name="tfnas-pickle",
    summary="TF-NAS, pickle: ms of inverted bottlenecks by channels in the middle; needs --batch",
    read=_read,
    write=_write,
    options=("batch",),
    files="*.pkl",
    carries=_is_base,
    pickled=True,
)
