"""Tables keyed by text: ProxylessNAS's, once-for-all's two, Dynamic-OFA's, and their descendants without types.

One file is one resolution; values are in ms at batch 1, each a mean over networks that were run whole.
Sources: the tables of Cai et al., ProxylessNAS (ICLR 2019) and Once-for-All (ICLR 2020), and of Lou et al., Dynamic-OFA
(2021).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from lutbuilder.lut.interchange.format import Cell, Format, Page, Written
from lutbuilder.lut.interchange.keys import Form, bare_key_of, key_of, parse_bare_key, parse_key
from lutbuilder.lut.interchange.records import DDOF, Entry, Reading, ReadOptions
from lutbuilder.lut.interchange.source import (
    Malformed,
    Number,
    Source,
    count,
    json_object,
    lines,
    located,
    plain,
    positive,
    spread,
    yaml_items,
)
from lutbuilder.lut.schema import Method
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError

Dispersion = Literal["var", "std"]
Rows = Mapping[str, Mapping[str, Any]]

SAME_TOTAL = 0.02  # first layers of stages: every network has one of each, so their counts add up to one number
_FILE_OF_RESOLUTION = re.compile(r"([0-9]{1,5})_lookup_table\.(yaml|json)")
_NOT_IN_SITU = (
    "the counts of the stages' first layers do not add up to one total: whether the values are of whole networks or of "
    "layers alone is not known; --method says it"
)


def _read_yaml(form: Form, dispersion: Dispersion, source: Source, options: ReadOptions) -> Reading:
    with located(source):
        rows: dict[str, Mapping[str, Any]] = {key: item.fields for key, item in yaml_items(source).items()}
    return _reading(rows, form, dispersion, source, options)


def _read_json(form: Form, dispersion: Dispersion, source: Source, options: ReadOptions) -> Reading:
    with located(source):
        rows = json_object(source)
        for key, fields in rows.items():
            if type(fields) is not dict:
                raise Malformed(f"key {key!r}: not an object of count, mean and {dispersion}")
    return _reading(rows, form, dispersion, source, options)


def _reading(rows: Rows, form: Form, dispersion: Dispersion, source: Source, options: ReadOptions) -> Reading:
    entries: list[Entry] = []
    dropped: list[str] = []
    with located(source):
        if not rows:
            raise Malformed("holds no rows")
    for key, fields in rows.items():
        with located(source, f"key {key!r}", dropped=dropped if options.drop_invalid else None):
            op = parse_key(key, form)
            _check_fields(fields, dispersion)
            entries.append(_entry(op, key, fields, dispersion))
    with located(source):
        _check_resolution(source.name, entries)
    method: Method | None = options.method
    notes = []
    if method is None and _is_in_situ(entries):
        method = "in_situ"
    elif method is None:
        notes.append(f"{source.name}: {_NOT_IN_SITU}")
    return Reading(entries=tuple(_with_method(entries, method)), dropped=tuple(dropped), notes=tuple(notes))


def _check_fields(fields: Mapping[str, Any], dispersion: Dispersion) -> None:
    other = {"var": "std", "std": "var"}[dispersion]
    if other in fields:
        raise Malformed(f"field {other}, where this format has {dispersion}; is it of another format?")
    unknown = sorted(set(fields) - {"count", "mean", dispersion})
    if unknown:
        raise Malformed(f"unknown field {unknown[0]!r}; a row has count, mean and {dispersion}")
    for name in ("count", "mean"):
        if name not in fields:
            raise Malformed(f"field {name} is missing")


def _entry(op: OpSpec, key: str, fields: Mapping[str, Any], dispersion: Dispersion) -> Entry:
    given = spread(fields[dispersion], dispersion) if dispersion in fields else None
    std = given if given is None or dispersion == "std" else given**0.5
    note = None
    if std is not None:
        note = DDOF if dispersion == "std" else f"var_unverified; {DDOF}"
    return Entry(
        op=op,
        key=key,
        value=positive(fields["mean"], "mean"),
        count=count(fields["count"], "count"),
        std=std,
        note=note,
    )


def _with_method(entries: Iterable[Entry], method: Method | None) -> Iterable[Entry]:
    return (replace(entry, method=method) for entry in entries)


def _is_in_situ(entries: Iterable[Entry]) -> bool:
    """Whether the candidates of every stage's first layer were in (nearly) the same number of networks all together."""
    totals: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for entry in entries:
        op = entry.op
        if op.kind == "mbconv" and not op.residual and entry.count is not None:
            totals[(op.in_channels, op.out_channels, op.height, op.stride)].append(entry.count)
    sums = [sum(counts) for counts in totals.values() if len(counts) > 1]
    return len(sums) > 1 and max(sums) - min(sums) <= SAME_TOTAL * max(sums)


def _check_resolution(name: str, entries: Iterable[Entry]) -> None:
    """Raise Malformed where a file's name says another resolution than its first convolution."""
    found = _FILE_OF_RESOLUTION.fullmatch(name)
    if found is None:
        return
    for entry in entries:
        op = entry.op
        if (op.kind, op.kernel) == ("conv", 3) and (op.height, op.width) != (int(found[1]), int(found[1])):
            raise Malformed(f"key {entry.key!r} reads a picture of {op.height}x{op.width}, not {found[1]}x{found[1]}")


def _read_csv(source: Source, options: ReadOptions) -> Reading:
    entries: list[Entry] = []
    dropped: list[str] = []
    first: dict[str, int] = {}
    with located(source):
        numbered = list(lines(source))
        if not numbered:
            raise Malformed("holds no rows")
    for place, line in numbered:
        with located(source, f"line {place}", dropped=dropped if options.drop_invalid else None):
            key, comma, text = (part.strip() for part in line.partition(","))
            if not comma or "," in text:
                raise Malformed(f"not KEY,MILLISECONDS: {line[:80]!r}")
            op = parse_bare_key(key)
            if key in first:
                raise Malformed(f"key {key!r} is there twice, first in line {first[key]}")
            first[key] = place
            value = positive(Number(text), "the value")
            entries.append(Entry(op=op, key=key, value=value, method=options.method))
    return Reading(entries=tuple(entries), dropped=tuple(dropped))


# --- Writing


def _texts(page: Page, ops: Iterable[OpSpec], form: Form) -> dict[str, Cell]:
    """Return what is written of `ops` by key, sorted."""
    page.require(ops := tuple(ops))
    cells = {}
    for op in ops:
        try:
            cells[key_of(op, form)] = page.cell(op)
        except Malformed as error:
            raise SpecError(f"{error}; --preset names the ops to write") from error
    return dict(sorted(cells.items()))


def _yaml(cells: Mapping[str, Cell], dispersion: Dispersion) -> bytes:
    parts = []
    for key, cell in cells.items():
        std = cell.std_ms or 0.0
        parts.append(
            f"{key}:\n  count: {cell.count or 1}\n  mean: {plain(cell.value)}\n"
            f"  {dispersion}: {plain(std if dispersion == 'std' else std * std)}\n"
        )
    return "".join(parts).encode()


def _json(cells: Mapping[str, Cell]) -> bytes:
    body = {
        key: {"count": cell.count or 1, "mean": cell.value, "std": cell.std_ms or 0.0} for key, cell in cells.items()
    }
    return json.dumps(body, indent=1).encode()


def _write_one_yaml(page: Page) -> Written:
    return Written(contents={"": _yaml(_texts(page, page.ops(), "ratio"), "var")}, ops=page.ops())


def _write_yaml(form: Form, page: Page) -> Written:
    return _by_resolution(page, "yaml", lambda ops: _yaml(_texts(page, ops, form), "std"))


def _write_json(page: Page) -> Written:
    return _by_resolution(page, "json", lambda ops: _json(_texts(page, ops, "mid")))


def _by_resolution(page: Page, suffix: str, made_of: Callable[[Iterable[OpSpec]], bytes]) -> Written:
    tables = page.by_resolution()
    return Written(
        contents={f"{r}_lookup_table.{suffix}": made_of(ops) for r, ops in tables.items()},
        ops=tuple(dict.fromkeys(op for ops in tables.values() for op in ops)),
    )


def _write_csv(page: Page) -> Written:
    page.require(ops := page.ops())
    try:
        rows = {bare_key_of(op): page.cell(op).value for op in ops}
    except Malformed as error:
        raise SpecError(f"{error}; --preset names the ops to write") from error
    text = "".join(f"{key},{plain(value)}\n" for key, value in sorted(rows.items()))
    return Written(contents={"": text.encode()}, ops=ops)


def _is_classifier(op: OpSpec) -> bool:
    return op.kind == "logits"


PROXYLESS_YAML = Format(
    name="proxyless-yaml",
    summary="ProxylessNAS, YAML: count, mean and var by key; expand is a ratio",
    read=partial(_read_yaml, "ratio", "var"),
    write=_write_one_yaml,
    files="*.yaml",
    carries=_is_classifier,
    spread=True,
)
PROXYLESS_CSV = Format(
    name="proxyless-csv",
    summary="its descendants, CSV: a key without type and a value a line",
    read=_read_csv,
    write=_write_csv,
    files="*.csv",
    carries=_is_classifier,
)
OFA_PROXYLESS_YAML = Format(
    name="ofa-proxyless-yaml",
    summary="Once-for-all on ProxylessNAS, <res>_lookup_table.yaml: count, mean and std; expand is a ratio",
    read=partial(_read_yaml, "ratio", "std"),
    write=partial(_write_yaml, "ratio"),
    files="*_lookup_table.yaml",
    carries=_is_classifier,
    spread=True,
)
OFA_MBV3_YAML = Format(
    name="ofa-mbv3-yaml",
    summary="Once-for-all on MobileNetV3, <res>_lookup_table.yaml: expand is the channels in the middle",
    read=partial(_read_yaml, "mid", "std"),
    write=partial(_write_yaml, "mid"),
    files="*_lookup_table.yaml",
    carries=_is_classifier,
    spread=True,
)
DYNAMICOFA_JSON = Format(
    name="dynamicofa-json",
    summary="Dynamic-OFA, <res>_lookup_table.json: keys as in ofa-mbv3-yaml",
    read=partial(_read_json, "mid", "std"),
    write=_write_json,
    files="*_lookup_table.json",
    carries=_is_classifier,
    spread=True,
)
