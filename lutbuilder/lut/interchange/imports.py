"""From published files to a LUT: read them all, make rows, publish them at once, or nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast, get_args

from lutbuilder.campaign.spec import Target
from lutbuilder.lut.interchange import registry
from lutbuilder.lut.interchange.format import Format
from lutbuilder.lut.interchange.records import Reading, ReadOptions, entry_row, pool_rows
from lutbuilder.lut.interchange.source import Source, located
from lutbuilder.lut.lut import Lut
from lutbuilder.lut.schema import LutMeta, Row
from lutbuilder.lut.store import publish
from lutbuilder.urls import Place, place
from lutbuilder_agent.errors import BadTable, LutConflict, LutError, LutNotFound, SpecError
from lutbuilder_agent.records import Cache, Fingerprint, Plan

_CONDITIONS = re.compile(
    r"(?P<runtime>.+)-(?P<dtype>[a-z]+[0-9]*)-bs(?P<batch>[0-9]{1,5})(-t(?P<threads>[0-9]{1,4}))?"
    rf"(-(?P<cache>{'|'.join(get_args(Cache))}))?"
)
_ALWAYS = ("preset", "method", "drop_invalid")
_ABOUT_CHARS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of a space a table has: ops with a row, and the labels of those without one."""

    space: str
    n_ops: int
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of an import. `n_values` were read, `dropped` of them left out on request with the reason.

    `published` False: the newest version has these very rows already. `revised`: it had other values for the same ops,
    so this version holds the new edition of the table alone.
    """

    lut: Lut
    n_values: int
    n_rows: int
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    coverage: Coverage | None
    published: bool
    revised: bool


def import_tables(
    paths: Sequence[Path],
    *,
    format: str,
    into: str,
    folder: Place,
    created: str,
    tool_version: str,
    options: ReadOptions | None = None,
) -> Imported:
    """Read published files and publish their rows as the next version of LUT `into` below `folder`.

    A path may be a folder of files. The files of one call are one edition of one table: equal ops of several files are
    one statistic. Rows are added to those of earlier imports; where one says otherwise, the new edition starts a
    version of its own and the old one stays. `created` is ISO 8601 in UTC.
    Raises BadTable naming file and row, LutConflict where `into` holds measured rows, SpecError for an option that is
    missing or means nothing to the format. On any error nothing is written.
    """
    options = options or ReadOptions()
    fmt = registry.get(format)
    _check_options(fmt, options)
    target = target_of(into, folder)
    readings = [(source, fmt.read(source, options)) for source in map(Source.read, _files(paths, fmt))]
    rows = rows_of(fmt, readings, options)
    _check_batch(rows, target)
    base = _newest(folder, target)
    held = {} if base is None else {row.op_id: row for row in base.rows()}
    revised = any(row.op_id in held and _value(held[row.op_id]) != _value(row) for row in rows)
    there = {row.op_id for row in rows} | (set() if revised else held.keys())
    coverage = _coverage(options.preset or fmt.preset, there, target.batch)
    published = revised or any(row.op_id not in held for row in rows)
    lut = base
    if base is None or published:
        # A new edition has a fingerprint of its own, so that nothing of the old one is merged into it.
        fresh = Fingerprint(device=target.device, facts=(("edition", _edition(readings, base)),))
        meta = LutMeta(
            target=target,
            fingerprint=fresh if base is None or revised else base.meta.fingerprint,
            runtime_version="imported",
            plan=Plan(
                runtime=target.runtime,
                threads=target.threads,
                cache=target.cache,
                train_ops=2 if target.cache in ("rotating", "cold") else 1,
            ),
            tool_version=tool_version,
            created=created,
            spaces=(coverage.space,) if coverage is not None and not coverage.missing else (),
            conditions=_about(fmt, readings, base if not revised else None),
        )
        lut = publish(rows, meta, folder=folder, new_conditions=revised)
    if lut is None:
        raise LutError(f"{into} was not published; repeat the command")
    return Imported(
        lut=lut,
        n_values=sum(len(reading.entries) + len(reading.dropped) for _, reading in readings),
        n_rows=len(rows),
        dropped=tuple(told for _, reading in readings for told in reading.dropped),
        notes=tuple(told for _, reading in readings for told in reading.notes),
        coverage=coverage,
        published=published,
        revised=revised,
    )


def target_of(name: str, folder: Place) -> Target:
    """Return the target that a LUT's name tells, e.g. "note10/tflite-fp32-bs1"; the folder may stand before it.

    Raises SpecError saying how to write one.
    """
    parts = place(name).parts
    if parts[: len(folder.parts)] == folder.parts:
        parts = parts[len(folder.parts) :]
    found = _CONDITIONS.fullmatch(parts[1]) if len(parts) == 2 else None
    if found is None:
        raise SpecError(f"{name!r} names no table; write it as DEVICE/RUNTIME-DTYPE-bsN, like note10/tflite-fp32-bs1")
    target = Target(
        device=parts[0],
        runtime=found["runtime"],
        dtype=found["dtype"],
        batch=int(found["batch"]),
        threads=int(found["threads"] or 1),
        cache=cast(Cache, found["cache"] or "rotating"),
    )
    if target.lut_name != "/".join(parts):
        raise SpecError(f"{name!r} would be called {target.lut_name}; write it so")
    return target


def _check_options(fmt: Format, options: ReadOptions) -> None:
    default = ReadOptions()
    for field in fields(ReadOptions):
        given = getattr(options, field.name) != getattr(default, field.name)
        if given and field.name not in (*fmt.options, *_ALWAYS):
            takes = ", ".join(f"--{name}".replace("_", "-") for name in (*fmt.options, "method")) or "none"
            raise SpecError(f"--{field.name.replace('_', '-')} means nothing to {fmt.name}, which takes {takes}")


def _files(paths: Sequence[Path], fmt: Format) -> list[Path]:
    """Return the files that `paths` name, those of a folder sorted, each once."""
    found: dict[Path, None] = {}
    for path in paths:
        inside = sorted(path.glob(fmt.files)) if path.is_dir() else [path]
        if not inside:
            raise LutNotFound(f"no {fmt.files} in {path}; name the files, or the folder that holds them")
        found.update(dict.fromkeys(inside))
    return list(found)


def rows_of(fmt: Format, readings: Iterable[tuple[Source, Reading]], options: ReadOptions) -> tuple[Row, ...]:
    """Return one row an op. Raises BadTable where a value does not fit a row, and if no row is left."""
    by_op: dict[str, list[Row]] = {}
    for source, reading in readings:
        for entry in reading.entries:
            with located(source, f"key {entry.key!r}"):
                row = entry_row(
                    entry, format=fmt.name, file=source.name, sha256=source.sha256, clock_mhz=options.clock_mhz
                )
                by_op.setdefault(row.op_id, []).append(row)
    if not by_op:
        raise BadTable("every row was left out; nothing was imported")
    return tuple(pool_rows(rows) for rows in by_op.values())


def _check_batch(rows: Iterable[Row], target: Target) -> None:
    batches = {row.batch for row in rows}
    if batches != {target.batch}:
        told = ", ".join(map(str, sorted(batches)))
        raise LutConflict(
            f"the table is of batch {told}, {target.lut_name} of batch {target.batch}: "
            f"name it -bs{told}, or say --batch"
        )


def _newest(folder: Place, target: Target) -> Lut | None:
    """Return the newest version of the table, None where there is none. Raises LutConflict if it holds other rows."""
    try:
        lut = Lut.load(folder / target.lut_name)
    except LutNotFound:
        return None
    if any(row.evidence != "imported" for row in lut.rows()):
        raise LutConflict(
            f"{lut.spec} holds rows that were measured here; imported rows get a table of their own: "
            "choose another name"
        )
    return lut


def _value(row: Row) -> tuple[object, ...]:
    return (
        row.latency_ms, row.cycles, row.energy_mj, row.exec_status, row.method, row.imported_count, row.imported_std_ms,
    )  # fmt: skip  # one list, one line


def _coverage(name: str | None, op_ids: Collection[str], batch: int) -> Coverage | None:
    from lutbuilder import spaces

    if name is None:
        return None
    space = spaces.get(name, batch=batch)
    ops = space.ops()
    missing = tuple(op.label() for op in ops if op.op_id not in op_ids)
    return Coverage(space=space.name, n_ops=len(ops), missing=missing)


def _edition(readings: Iterable[tuple[Source, Reading]], base: Lut | None) -> str:
    """Return 16 hex digits over the files and what they follow: the same files may be read in another way."""
    parts = [*sorted(source.sha256 for source, _ in readings), base.content_hash if base is not None else ""]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _about(fmt: Format, readings: Iterable[tuple[Source, Reading]], base: Lut | None) -> str:
    told = dict.fromkeys((*((base.meta.conditions,) if base is not None else ()), f"imported from {fmt.name}"))
    told.update(dict.fromkeys(reading.about for _, reading in readings if reading.about))
    parts = dict.fromkeys(part for text in told for part in text.split("; ") if part)
    return "; ".join(parts)[:_ABOUT_CHARS]
