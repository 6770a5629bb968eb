"""APQ's table: latency and energy of convolutions at 4, 6 and 8 bits, from a simulator, as one JSON object.

Source: Wang et al., APQ, CVPR 2020, and its released table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from lutbuilder.lut.interchange.format import Format, Page, Written
from lutbuilder.lut.interchange.records import Entry, Reading, ReadOptions
from lutbuilder.lut.interchange.source import Invalid, Malformed, Source, json_object, located, number, positive
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError

PRESET = "apq"
BITS = (4, 6, 8)
SIMULATED = "simulator output, not measured on any device"
LACKING = "the table has no 7 x 7 depthwise convolutions with 4-bit activations"

_N = "[1-9][0-9]{0,5}"
_KEY = re.compile(rf"\(({_N}), ({_N}), ({_N}), ({_N}), ({_N}), (0|{_N}), ({_N})\)-W([468])A([468])")
_LUMPS = ("head", "tail")
_Shape = tuple[int, int, int, int, int, int]  # channels in and out, map, kernel, stride, groups


def _read(source: Source, options: ReadOptions) -> Reading:
    batch = options.batch or 1
    acts, lumps = _of_preset(options.preset or PRESET, batch)
    entries: list[Entry] = []
    dropped: list[str] = []
    with located(source):
        rows = json_object(source)
        if not rows:
            raise Malformed("holds no rows")
    for key, fields in rows.items():
        with located(source, f"key {key!r}", dropped=dropped if options.drop_invalid else None):
            op = lumps[key] if key in lumps else _op(key, acts, batch)
            if type(fields) is not dict or set(fields) != {"latency", "energy"}:
                raise Malformed("a row has latency and energy, and nothing else")
            energy_mj = number(fields["energy"], "energy")
            if energy_mj < 0:
                raise Invalid(f"energy must not be negative, got {energy_mj}")
            entries.append(
                Entry(
                    op=op,
                    key=key,
                    value=positive(fields["latency"], "latency"),
                    energy_mj=energy_mj,
                    method=options.method or "isolated",
                )
            )
    return Reading(
        entries=(*entries, *_lacking(entries, options)),
        dropped=tuple(dropped),
        about=SIMULATED,
    )


@lru_cache(maxsize=4)
def _of_preset(name: str, batch: int) -> tuple[Mapping[_Shape, str], Mapping[str, OpSpec]]:
    """Return what keys do not say: the activation behind every shape of the preset, and the ops of head and tail."""
    from lutbuilder import spaces

    ops = spaces.get(name, batch=batch).ops()
    lumps = [op for op in ops if op.kind == "lump"]
    if len(lumps) != len(_LUMPS):
        raise SpecError(f"--preset {name} has no head and tail; this table is of --preset {PRESET}")
    return {_shape(op): op.act for op in ops if op.kind == "conv"}, dict(zip(_LUMPS, lumps, strict=True))


def _op(key: str, acts: Mapping[_Shape, str], batch: int) -> OpSpec:
    found = _KEY.fullmatch(key)
    if found is None:
        raise Malformed("not head, tail or (cin, cout, map, kernel, stride, padding, groups)-W<4|6|8>A<4|6|8>")
    in_channels, out_channels, extent, kernel, stride, padding, groups, w_bits, a_bits = map(int, found.groups())
    if padding != kernel // 2:
        raise Malformed(f"padding {padding} is not half of kernel {kernel}")
    if groups != 1 and not groups == in_channels == out_channels:
        raise Malformed(f"{groups} groups of {in_channels} -> {out_channels} channels: neither 1 nor depthwise")
    shape = (in_channels, out_channels, extent, kernel, stride, groups)
    return OpSpec(
        kind="conv", in_channels=in_channels, out_channels=out_channels, height=extent, width=extent, kernel=kernel,
        stride=stride, groups=groups, act=acts.get(shape, "none"), w_bits=w_bits, a_bits=a_bits, batch=batch,
    )  # fmt: skip  # one shape, two lines


def _lacking(entries: list[Entry], options: ReadOptions) -> list[Entry]:
    """Return the rows that the simulator does not have, as rows that say so."""
    there = {entry.op for entry in entries}
    wide = {replace(op, w_bits=8, a_bits=8): None for op in there if op.kernel == 7 and op.groups > 1}
    lacking = [replace(op, w_bits=w_bits, a_bits=4) for op in wide for w_bits in BITS]
    return [
        Entry(op=op, key=_key(op), value=None, reason=LACKING, method=options.method or "isolated")
        for op in lacking
        if op not in there
    ]


def _shape(op: OpSpec) -> _Shape:
    return (op.in_channels, op.out_channels, op.height, op.kernel, op.stride, op.groups)


def _key(op: OpSpec) -> str:
    in_channels, out_channels, extent, kernel, stride, groups = _shape(op)
    shape = (in_channels, out_channels, extent, kernel, stride, kernel // 2, groups)
    return f"{shape}-W{op.w_bits}A{op.a_bits}"


def _write(page: Page) -> Written:
    batches = {op.batch for op in page.ops()}
    batch = batches.pop() if len(batches) == 1 else 1
    acts, lumps = _of_preset(PRESET, batch)
    names = {op: name for name, op in lumps.items()}
    keys: dict[OpSpec, str] = {}
    for op in page.ops():
        row = page.rows.get(op.op_id)
        if row is not None and row.exec_status == "unsupported":
            continue
        key = names.get(op) or _key(op)
        try:
            said = names.get(op) is not None or _op(key, acts, batch) == op
        except (Malformed, SpecError):
            said = False
        if not said:
            raise SpecError(
                f"{op.label()} cannot be said by a key of this format; --preset {PRESET} names those that can"
            )
        keys[op] = key
    page.require(keys, also="energy_mj")
    body = {key: {"energy": page.rows[op.op_id].energy_mj, "latency": page.cell(op).value} for op, key in keys.items()}
    return Written(contents={"": json.dumps(dict(sorted(body.items()))).encode()}, ops=tuple(keys))


def _is_tail(op: OpSpec) -> bool:
    return op.kind == "lump" and op.in_channels != 3


APQ_JSON = Format(
    name="apq-json",
    summary="APQ, one JSON object: ms and mJ of convolutions by shape and bits, with head and tail",
    read=_read,
    write=_write,
    options=("preset", "batch"),
    files="*.dict",
    preset=PRESET,
    carries=_is_tail,
)
