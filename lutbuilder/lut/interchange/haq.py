"""HAQ's table: what a layer costs at each of 8 x 8 bit widths, as an array without shapes, unit or clock.

The layers are those of a preset; values are cycles of a simulator for the whole batch.
Source: Wang et al., HAQ, CVPR 2019, and its released table.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from lutbuilder.lut.interchange.format import Format, Page, Written
from lutbuilder.lut.interchange.records import JOIN, Entry, Reading, ReadOptions
from lutbuilder.lut.interchange.source import Invalid, Malformed, Source, located, npy
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError

PRESET = "haq"
BATCH = 16
SIMULATED = "simulator output, not measured on any device; cycles of the whole batch"
_WIDTHS = range(1, 9)
_FREE = "-free"


def _read(source: Source, options: ReadOptions) -> Reading:
    layers = layer_ops(options.preset or PRESET, options.batch or BATCH)
    with located(source):
        cycles = _array(source)
        if len(cycles) != len(layers):
            raise Malformed(f"{len(cycles)} layers, but preset {options.preset or PRESET} has {len(layers)}")
    dropped: list[str] = []
    first: dict[OpSpec, int] = {}
    alike: dict[OpSpec, list[int]] = {}
    kept: list[tuple[OpSpec, int, int, int]] = []
    for number, ops in enumerate(layers):
        with located(source, f"layer {number}"):
            _check_layer(cycles[number])
        alike.setdefault(ops[0][0], []).append(number)
        before = first.setdefault(ops[0][0], number)
        if before != number:
            with located(source, f"layer {number}"):
                if not np.array_equal(cycles[number], cycles[before]):
                    raise Malformed(f"differs from layer {before}, which is of the same shape")
            continue
        for w_bits in _WIDTHS:
            for a_bits in _WIDTHS:
                where = f"layer {number} W{w_bits}A{a_bits}"
                with located(source, where, dropped=dropped if options.drop_invalid else None):
                    value = int(cycles[number, w_bits - 1, a_bits - 1])
                    if value <= 0:
                        raise Invalid(f"cycles must be positive, got {value}")
                    kept.append((ops[w_bits - 1][a_bits - 1], number, w_bits, a_bits))
    entries = tuple(
        Entry(
            op=op,
            key=JOIN.join(f"[{same}, {w_bits - 1}, {a_bits - 1}]" for same in alike[layers[number][0][0]]),
            value=int(cycles[number, w_bits - 1, a_bits - 1]),
            unit="cycles",
            method=options.method or "isolated",
        )
        for op, number, w_bits, a_bits in kept
    )
    return Reading(entries=entries, dropped=tuple(dropped), about=SIMULATED)


def layer_ops(preset: str, batch: int) -> list[list[list[OpSpec]]]:
    """Return the ops of a preset's layers at all bits: [layer][w_bits - 1][a_bits - 1].

    The ends are taken as free: published tables hold them at all bits. Raises SpecError for another preset than HAQ's.
    """
    from lutbuilder import spaces

    base, _, variant = preset.removesuffix(_FREE).partition("-")
    if base != PRESET:
        raise SpecError(
            f"--preset {preset} has no layers of one weight and one activation width; try --preset {PRESET}"
        )
    space = spaces.get(f"{base}-{variant or 'v2'}{_FREE}", batch=batch)
    layers = []
    for site in space.sites:
        w, a = site.scope
        ops = [[site.op({w: w_bits, a: a_bits}) for a_bits in _WIDTHS] for w_bits in _WIDTHS]
        layers.append([[op for op in line if op is not None] for line in ops])
    return layers


def _array(source: Source) -> NDArray[np.int64]:
    found = npy(source)
    if found.descr not in ("<i8", ">i8") or len(found.shape) != 3 or found.shape[1:] != (8, 8):
        raise Malformed(f"{found.descr} of shape {found.shape}, not 64-bit integers of shape (layers, 8, 8)")
    n = 64 * found.shape[0]
    if len(found.body) != 8 * n:
        raise Malformed(f"{len(found.body)} bytes of values, not {8 * n}: the file was cut short, or has more")
    values = np.frombuffer(found.body, dtype=found.descr).astype(np.int64)
    return values.reshape(found.shape, order="F" if found.fortran_order else "C")


def _check_layer(cycles: NDArray[np.int64]) -> None:
    for axis, name in ((0, "weight"), (1, "activation")):
        falls = np.argwhere(np.diff(cycles, axis=axis) < 0)
        if len(falls):
            w, a = (int(number) + 1 for number in falls[0])
            raise Malformed(f"one more {name} bit than W{w}A{a} costs fewer cycles; is it of another layout?")


def _write(page: Page) -> Written:
    space = page.space
    if space is None:
        raise SpecError(f"this format has no shapes in it: name the layers, like --preset {PRESET}")
    layers = layer_ops(space.name, next(op.batch for op in space.ops()))
    ops = tuple(dict.fromkeys(op for layer in layers for line in layer for op in line))
    page.require(ops)
    values = np.array([[[page.cell(op).value for op in line] for line in layer] for layer in layers])
    file = io.BytesIO()
    np.save(file, np.rint(values).astype("<i8"), allow_pickle=False)
    return Written(contents={"": file.getvalue()}, ops=ops)


HAQ_NPY = Format(
    name="haq-npy",
    summary="HAQ, .npy of integers [layers, 8, 8]: cycles of the batch by bits; layers of --preset, haq by default",
    read=_read,
    write=_write,
    options=("preset", "batch", "clock_mhz"),
    files="*.npy",
    preset=PRESET,
    column="cycles",
    whole=True,
)
