"""From a LUT to a published format: the file holds what its reader expects, a sidecar says where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutbuilder.lut.interchange import registry
from lutbuilder.lut.interchange.format import Format, Page, visit_std_ms
from lutbuilder.lut.lut import Lut
from lutbuilder.lut.schema import EVIDENCES, Row, rows_to_table
from lutbuilder.lut.store import read_samples
from lutbuilder_agent.errors import LutNotFound, LutNotWritable, SpecError

if TYPE_CHECKING:
    from lutbuilder.spaces import SearchSpace

SIDECAR = ".provenance.json"
COLUMNS = ("latency_ms", "latency_lo_ms", "latency_hi_ms", "p90_ms")
# Corrections that are in the rows themselves; one that depends on what stands beside an op could not be.
_PER_OP = (None, "none", "affine", "ridge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: the files, the sidecar, and how many values are in them."""

    files: tuple[Path, ...]
    sidecar: Path
    n_values: int


def with_evidence(lut: Lut, evidence: Sequence[str]) -> Lut:
    """Return the table with the rows of these kinds of evidence alone. Raises SpecError for an unknown one."""
    unknown = [kind for kind in evidence if kind not in EVIDENCES]
    if unknown or not evidence:
        raise SpecError(f"evidence {', '.join(unknown) or 'of no kind'}; there are: {', '.join(EVIDENCES)}")
    return replace(lut, table=rows_to_table(row for row in lut.rows() if row.evidence in evidence))


def space_of(lut: Lut, fmt: Format, preset: str | None) -> SearchSpace | None:
    """Return the space to write: the one asked for, else the only one the table covers, else the format's own."""
    from lutbuilder import spaces

    covered = lut.meta.spaces[0] if len(lut.meta.spaces) == 1 else None
    name = preset or covered or (fmt.preset if fmt.whole else None)
    return None if name is None else spaces.get(name, batch=lut.meta.target.batch)


def export_table(
    lut: Lut,
    out: Path,
    *,
    format: str,
    tool_version: str,
    preset: str | None = None,
    column: str | None = None,
    evidence: Sequence[str] = ("measured",),
    constant_ms: float = 0.0,
    scale: float = 1.0,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write `lut` in a published format to file `out`, or into folder `out` where the format is a file a resolution.

    Rows are those of `preset`, by default of the one space the table covers, else all there are; values are `column`
    (default latency_ms; cycles where the format has no unit) times `scale`. `constant_ms`, what a network pays once, is
    added to the op that every network has once; a format without such an op leaves it out, and the sidecar says so.
    Raises OpNotInLut listing ops without a row of this `evidence`, SpecError for what the format cannot say, and for a
    pickle without `allow_pickle`; LutNotWritable, also for a file that is there without `overwrite`.
    """
    fmt = registry.get(format)
    if fmt.pickled and not allow_pickle:
        raise SpecError(f"{fmt.name} is a pickle, which runs as a program where it is read; --allow-pickle writes one")
    column = fmt.column if column is None else column
    if column != fmt.column and not (fmt.column in COLUMNS and column in COLUMNS):
        raise SpecError(f"{fmt.name} holds {fmt.column}, not {column}")
    record = lut.meta.calibration
    if record is not None and record.get("method") not in _PER_OP:
        raise SpecError(f"{lut.spec} is calibrated by {record.get('method')}, which a table of single ops cannot hold")
    page = Page(
        lut=with_evidence(lut, evidence),
        column=column,
        scale=scale,
        constant_ms=constant_ms,
        carries=fmt.carries,
        space=space_of(lut, fmt, preset),
        visit_std_ms=_visit_std_ms(lut) if fmt.spread else {},
    )
    written = fmt.write(page)
    contents = {out / name if name else out: raw for name, raw in written.contents.items()}
    sidecar = (out.parent if out in contents else out) / f"{out.name}{SIDECAR}"
    rows = [page.rows[op.op_id] for op in written.ops]
    provenance = _provenance(fmt, page, lut, rows, contents, tool_version=tool_version)
    _write({**contents, sidecar: json.dumps(provenance, indent=2).encode()}, overwrite=overwrite)
    return Exported(files=tuple(contents), sidecar=sidecar, n_values=len(rows))


def _provenance(
    fmt: Format,
    page: Page,
    lut: Lut,
    rows: Sequence[Row],
    contents: Mapping[Path, bytes],
    *,
    tool_version: str,
) -> dict[str, Any]:
    """Return what the file itself cannot say."""
    unknown = [row for row in rows if not row.imported_count and not row.n_visits]
    flat = [row for row in rows if row.imported_std_ms is None and row.op_id not in page.visit_std_ms]
    added = fmt.carries is not None and any(fmt.carries(row.op) for row in rows)
    return {
        "format": fmt.name,
        "files": {path.name: hashlib.sha256(raw).hexdigest() for path, raw in contents.items()},
        "table": {"name": lut.name, "version": lut.version, "content_sha256": lut.content_hash},
        "device": lut.meta.target.device,
        "fingerprint": {"env_id": lut.meta.fingerprint.env_id, "facts": dict(lut.meta.fingerprint.facts)},
        "conditions": lut.meta.conditions,
        "preset": page.space.name if page.space is not None else None,
        "column": page.column,
        "evidence": dict(sorted(Counter(row.evidence for row in rows).items())),
        "methods": dict(sorted(Counter(row.method or "unknown" for row in rows).items())),
        "constants": {
            "per_network_ms": page.constant_ms,
            "added": added and page.constant_ms != 0.0,
            "scale": page.scale,
        },
        "std_unknown_written_as_0": _labels(flat) if fmt.spread else [],
        "count_unknown_written_as_1": _labels(unknown) if fmt.spread else [],
        "lutbuilder": tool_version,
    }


def _labels(rows: Iterable[Row]) -> list[str]:
    return sorted(row.op.label() for row in rows)


def _visit_std_ms(lut: Lut) -> dict[str, float]:
    """Return the spread of every op's visits, where the raw visits lie beside the table; {} where they do not."""
    import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types

    try:
        raw = read_samples(lut)
    except LutNotFound:
        return {}
    try:
        table = pq.read_table(pa.BufferReader(raw), columns=["op_id", "samples_ns"])
    except (OSError, ValueError) as error:
        raise LutNotFound(f"cannot read the raw visits of {lut.spec}; restore the file, or remove it") from error
    return visit_std_ms(table.column("op_id").to_pylist(), table.column("samples_ns").to_pylist())


def _write(contents: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Write all files; each appears whole. Nothing is written if one is there and may not be replaced."""
    there = [path for path in contents if path.exists()]
    if there and not overwrite:
        raise LutNotWritable(f"{there[0]} is there already; choose another place, or say --overwrite")
    for path, raw in contents.items():
        scratch = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_bytes(raw)
                scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)
        except OSError as error:
            raise LutNotWritable(f"cannot write {path}: {error.strerror}; choose another place") from error
