"""FBNet's table: a line a layer, a column a candidate, numbers separated by spaces.

Source: Wu et al., FBNet, CVPR 2019 (the space), and the tables that came with its re-implementations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lutbuilder.lut.interchange import source as files
from lutbuilder.lut.interchange.format import Format, Page, Written
from lutbuilder.lut.interchange.records import Entry, Reading, ReadOptions, averaged
from lutbuilder.lut.interchange.source import Malformed, Number, Source, lines, located, plain
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError

if TYPE_CHECKING:
    from lutbuilder.spaces import SearchSpace

PRESET = "fbnet"
SKIP = "skip"
CANDIDATES: Mapping[str, tuple[int, int, int]] = {  # kernel, expansion, groups, in the order of the published files
    "ir_k3_e1": (3, 1, 1),
    "ir_k3_s2": (3, 1, 2),
    "ir_k3_e3": (3, 3, 1),
    "ir_k3_e6": (3, 6, 1),
    "ir_k5_e1": (5, 1, 1),
    "ir_k5_s2": (5, 1, 2),
    "ir_k5_e3": (5, 3, 1),
    "ir_k5_e6": (5, 6, 1),
}
COLUMNS = (*CANDIDATES, SKIP)
IN_ORDER = "preset"


def _read(source: Source, options: ReadOptions) -> Reading:
    if options.unit is None or options.unit not in ("ms", "us"):
        raise SpecError(
            "fbnet-txt does not say its unit: --unit us for the published file with a header, ms for that without"
        )
    layers = layer_ops(options.preset or PRESET, options.batch or 1)
    with located(source):
        (place, first), *rest = list(lines(source)) or [(1, "")]
        columns, body = _columns(first.split(), options.columns), rest
        if columns is None:
            columns, body = _given(options.columns), [(place, first), *rest]
        if len(body) != len(layers):
            raise Malformed(f"{len(body)} lines of values, but the preset has {len(layers)} layers")
    dropped: list[str] = []
    entries: list[Entry] = []
    unused = 0
    for number, ((line, text), ops) in enumerate(zip(body, layers, strict=True), start=1):
        with located(source, f"line {line}"):
            words = text.split()
            if len(words) != len(columns):
                raise Malformed(f"{len(words)} values, not {len(columns)}")
        for name, word in zip(columns, words, strict=True):
            where = f"line {line} column {name}"
            with located(source, where, dropped=dropped if options.drop_invalid else None):
                if name == SKIP and (SKIP not in ops or files.number(Number(word), "the value") == 0.0):
                    unused += SKIP not in ops  # a skip that was not measured costs 0 anyway
                    continue
                value = files.positive(Number(word), "the value")
                key = f"layer {number} {name}"
                entries.append(Entry(op=ops[name], key=key, value=value, unit=options.unit, method=options.method))
    notes = [f"{source.name}: {unused} values of skip where layers change their shape were left out"] if unused else []
    return Reading(entries=averaged(entries), dropped=tuple(dropped), notes=tuple(notes))


def _columns(words: Sequence[str], given: str | None) -> tuple[str, ...] | None:
    """Return the columns that a header names; None where the first line is no header."""
    if not any(word[:1].isalpha() for word in words):
        return None
    if given is not None:
        raise Malformed("has a header that names its columns: leave --columns out")
    return _checked(words)


def _given(columns: str | None) -> tuple[str, ...]:
    if columns is None:
        raise Malformed(
            f"has no header: name its columns, --columns {','.join(COLUMNS)}, or --columns {IN_ORDER} for these"
        )
    return COLUMNS if columns == IN_ORDER else _checked(columns.split(","))


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    if sorted(names) != sorted(COLUMNS):
        raise Malformed(f"columns {' '.join(names)}; there must be each of {' '.join(COLUMNS)} once")
    return tuple(names)


def layer_ops(preset: str, batch: int) -> list[dict[str, OpSpec]]:
    """Return the op of each candidate in each layer, by column; skip where the layer may be skipped: an identity."""
    from lutbuilder import spaces

    if preset.partition("-")[0] != PRESET:
        raise SpecError(f"--preset {preset} does not have these nine candidates; try --preset {PRESET}")
    return _layers(spaces.get(preset, batch=batch))


def _layers(space: SearchSpace) -> list[dict[str, OpSpec]]:
    layers = []
    for site, chosen in zip(space.sites, space.site_ops, strict=True):
        if not site.scope:
            continue  # stem and head
        there = [op for op in chosen if op is not None]
        by_shape = {(op.kernel, op.mid_channels // op.in_channels, op.groups): op for op in there}
        ops = {name: by_shape[shape] for name, shape in CANDIDATES.items()}
        if None in chosen:
            like = there[0]
            ops[SKIP] = OpSpec(
                kind="identity", in_channels=like.in_channels, out_channels=like.in_channels, height=like.height,
                width=like.width, batch=like.batch,
            )  # fmt: skip  # one shape, two lines
        layers.append(ops)
    return layers


def _write(page: Page) -> Written:
    """In ms, with the header; a skip that nobody measured costs 0, and so does one that the space does not have."""
    name = PRESET if page.space is None else page.space.name
    layers = layer_ops(name, page.lut.meta.target.batch)
    written = tuple(dict.fromkeys(op for ops in layers for name, op in ops.items() if name != SKIP or _skips(page, op)))
    page.require(written)
    text = [" ".join(COLUMNS)]
    for ops in layers:
        cells = {name: page.cell(op).value for name, op in ops.items() if name != SKIP or _skips(page, op)}
        text.append(" ".join(plain(cells.get(name, 0.0)) for name in COLUMNS))
    return Written(contents={"": ("\n".join(text) + "\n").encode()}, ops=written)


def _skips(page: Page, op: OpSpec) -> bool:
    """Whether there is a row of a skipped layer: one that was published, for a measured identity is a call overhead."""
    return page.has(op) and page.rows[op.op_id].evidence == "imported"


FBNET_TXT = Format(
    name="fbnet-txt",
    summary="FBNet, 22 lines of 9 numbers: layers by candidates; needs --unit, and --columns without a header",
    read=_read,
    write=_write,
    options=("preset", "unit", "columns", "batch"),
    files="*.txt",
    preset=PRESET,
    whole=True,
)
