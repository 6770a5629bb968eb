"""Tables: opening them whole or not at all, finding them by name, publishing the next version of one.

lutbuilder.lut.folder says where the files are.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types

from lutbuilder.lut.folder import SAMPLES, LutFolder, LutPart, folder_at, key, version_of
from lutbuilder.lut.local import FileCalls, LocalFolder, read_file
from lutbuilder.lut.lut import Lut, collect_command
from lutbuilder.lut.merge import merge
from lutbuilder.lut.schema import (
    FOOTER_KEY,
    SCHEMA_VERSION,
    UPGRADE,
    LutMeta,
    Row,
    arrow_schema,
    canonical_json,
    content_sha256,
    packed,
    parse_json,
    rows_to_table,
    upgraded,
)
from lutbuilder.urls import Place, Url, place
from lutbuilder_agent.errors import LutConflict, LutCorrupt, LutNoisy, LutNotFound, LutNotWritable, LutTooNew, SpecError
from lutbuilder_agent.records import Timing

if TYPE_CHECKING:
    from lutbuilder.lut.lint import Finding

_SPEC = re.compile(r"(?P<name>.+)@v?(?P<version>\d{1,9})")
# The last part of Target.lut_name.
_CONDITIONS = re.compile(r"(?P<runtime>.+)-[a-z]+\d+-bs(?P<batch>\d+)(-t(?P<threads>\d+))?(-[a-z]+)?")
_OF_VISIT = ("campaign_id", "session_id")
_SAMPLES_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in (*_OF_VISIT, "op_id")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("round", "order", "instance", "start_ns")),
        *(pa.field(name, pa.list_(pa.int64()), nullable=False) for name in ("warmup_ns", "samples_ns", "preempted")),
        pa.field("throttled", pa.list_(pa.int64())),  # null where the device has no throttle counters
    ]
)
_SAMPLES_KEY = FOOTER_KEY + b".samples"
_RESTORE = "restore the file (a copy), or measure anew"
_MOST_RACES = 1000
_SAMPLES_CHUNK = 2000  # visits held as Python objects at a time
# What pyarrow raises for bytes that are no parquet file or a damaged one; found by flipping bytes (test_lut_store.py).
_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, MemoryError, OverflowError)


class RawVisit(Protocol):
    """What is read of a stored visit; the coordinator's record fits."""

    @property
    def campaign_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def timing(self) -> Timing: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LutEntry:
    """One LUT below a luts folder: its name, its folder, and the numbers of its versions, oldest first."""

    name: str
    folder: Place
    versions: tuple[int, ...]

    def path(self, version: int | None = None) -> Place:
        """Return the file of a version; None: the newest."""
        return self.folder / key("", self.versions[-1] if version is None else version)


@dataclass(frozen=True, slots=True, kw_only=True)
class LutBytes:
    """A file of a table as it is stored."""

    version: int
    raw: bytes


def load(spec: str | Place, *, folder: Place = Path("luts")) -> Lut:
    """Open what `spec` names; see Lut.load."""
    path = resolve(spec, folder=folder)
    return _open(path, by_number=not _is_file(spec))


def resolve(spec: str | Place, *, folder: Place = Path("luts")) -> Place:
    """Return the file that `spec` names: a file, a LUT's folder or its name below `folder`, either with "@<version>".

    Raises LutNotFound listing the versions or LUTs there are and the command that collects one.
    """
    if _is_file(spec):
        return place(spec)
    found = _SPEC.fullmatch(str(spec))
    name, wanted = (found["name"], int(found["version"])) if found else (str(spec), None)
    named = place(name)
    for home in (named,) if isinstance(named, Url) else (named, folder / name):
        versions = folder_at(home).versions("")
        if not versions:
            continue
        if wanted is None or wanted in versions:
            return home / key("", versions[-1] if wanted is None else wanted)
        told = ", ".join(map(str, versions))
        raise LutNotFound(f"{home} has no version {wanted}; it has {told}. Open the newest with {str(home)!r}")
    raise LutNotFound(_not_found_message(str(spec), name, folder))


def list_luts(folder: Place) -> tuple[LutEntry, ...]:
    """Return every LUT up to two folders below `folder`, sorted by name; none where there is none. Opens no file."""
    tables = folder_at(folder).tables()
    return tuple(LutEntry(name=name, folder=folder / name, versions=tables[name]) for name in sorted(tables))


def read_place(path: Place) -> bytes:
    """Return the bytes of a file of any name. Raises LutNotFound, or LutError for one that cannot be read."""
    if isinstance(path, Path):
        return read_file(path)
    from lutbuilder.lut.remote import read_url

    return read_url(path)


def read_lut(path: Place) -> tuple[pa.Table, LutMeta]:
    """Return the rows and footer of a LUT file, its content hash checked.

    Raises LutCorrupt for a truncated, tampered or foreign file, LutTooNew for a newer schema's, LutNotFound for none.
    """
    raw = read_place(path)
    try:
        return decode_lut(raw)
    except LutTooNew as error:
        raise LutTooNew(f"{path} {error}") from error
    except LutCorrupt as error:
        raise LutCorrupt(
            f"{path} {error}. Restore the file (git checkout, a copy), or remove it to use the version before it"
        ) from error


def read_samples(lut: Lut) -> bytes:
    """Return the file of the raw visits behind a table. Raises LutNotFound where it does not lie beside it."""
    return read_place(lut.path.parent / SAMPLES / lut.path.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVisit:
    """A visit as it lies beside a table."""

    campaign_id: str
    session_id: str
    timing: Timing


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The raw visits beside a version of a table, and what else it was fitted with; None in files that lack it."""

    path: Place
    fit: Mapping[str, Any] | None
    raw: bytes

    def visits(self) -> Iterator[KeptVisit]:
        """Yield every visit in the order it was measured. Raises LutCorrupt."""
        try:
            file = pq.ParquetFile(pa.BufferReader(self.raw), page_checksum_verification=True)
            for batch in file.iter_batches(_SAMPLES_CHUNK, use_threads=False):
                for line in batch.to_pylist():
                    campaign_id, session_id = (line.pop(name) for name in _OF_VISIT)
                    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in line.items()}
                    yield KeptVisit(campaign_id=campaign_id, session_id=session_id, timing=Timing(**values))
        except _PARQUET_ERRORS as error:
            raise LutCorrupt(f"the raw visits {self.path} are damaged ({_first_line(error)}); {_RESTORE}") from error


def has_samples(lut: Lut) -> bool:
    """Whether raw visits lie beside a version of a table."""
    return folder_at(lut.path.parent).has("", lut.version, "samples")


def open_samples(lut: Lut) -> Samples:
    """Return the raw visits beside a version of a table. Raises LutNotFound; LutCorrupt for those of another table."""
    path = lut.path.parent / SAMPLES / lut.path.name
    raw = read_samples(lut)
    try:
        schema = pq.read_schema(pa.BufferReader(raw))
        footer = parse_json((schema.metadata or {}).get(_SAMPLES_KEY, b"{}"))
    except _PARQUET_ERRORS as error:
        raise LutCorrupt(f"the raw visits {path} are damaged ({_first_line(error)}); {_RESTORE}") from error
    if footer.get("content_sha256") != lut.content_hash or not schema.equals(_SAMPLES_SCHEMA, check_metadata=False):
        raise LutCorrupt(f"{path} does not hold the raw visits of {lut.spec}: it was copied or changed; {_RESTORE}")
    return Samples(path=path, fit=footer.get("fit"), raw=raw)


def sampled(lut: Lut) -> Mapping[str, int]:
    """Return how many raw visits of each campaign lie beside a table, {} if there are none. Raises LutCorrupt."""
    try:
        raw = read_samples(lut)
    except LutNotFound:
        return {}
    try:
        table = pq.read_table(pa.BufferReader(raw), columns=["campaign_id"])
    except _PARQUET_ERRORS as error:
        raise LutCorrupt(f"the raw visits beside {lut.path} are damaged ({_first_line(error)}); remove them") from error
    return Counter(table.column("campaign_id").to_pylist())


def lut_bytes(name: str, version: int, part: LutPart = "table", *, folder: Place) -> LutBytes:
    """Return a file of the table `name` as it is stored; version 0: the newest. Raises LutNotFound."""
    path = resolve(f"{folder / name}@{version}" if version else folder / name, folder=folder)
    number = version_of(path)
    if number is None:
        raise LutNotFound(f"{path} is a file, not a version of a table")
    try:
        return LutBytes(version=number, raw=folder_at(folder).read(name, number, part))
    except LutNotFound as error:
        raise LutNotFound(f"no {part} of {name}@{number} here") from error


def keep_bytes(raw: bytes, name: str, version: int, part: LutPart = "table", *, folder: Place) -> Place:
    """Keep a file of a table that was published elsewhere under its number, and return where it is.

    One that is there stays if it is the same. Raises LutConflict if it is another, LutNotWritable.
    """
    kept = folder_at(folder)
    path = folder / key(name, version, part)
    if not kept.create(name, version, raw, part) and kept.read(name, version, part) != raw:
        raise LutConflict(
            f"{path} is another {part} than the {name}@{version} to be kept there: versions are numbered apart in "
            "every folder. Choose another one: --luts DIR"
        )
    return path


def encode_lut(rows: Iterable[Row], meta: LutMeta) -> bytes:
    """Return the bytes of a LUT file; its footer carries `meta` with schema version and content hash filled in."""
    table = rows_to_table(rows)
    meta = replace(meta, schema_version=SCHEMA_VERSION)  # whatever file it was read from
    meta = replace(meta, content_sha256=content_sha256(table, meta.footer()))
    sink = io.BytesIO()
    footer = canonical_json(meta.footer())
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: footer}), sink, compression="zstd")
    return sink.getvalue()


def decode_lut(raw: bytes) -> tuple[pa.Table, LutMeta]:
    """Inverse of `encode_lut`. Raises LutCorrupt or LutTooNew with a message that goes behind the file's name."""
    if not raw:
        raise LutCorrupt("is empty: another lutbuilder is publishing it right now, or was killed doing so")
    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        stored = (file.metadata.metadata or {}).get(FOOTER_KEY)
    except _PARQUET_ERRORS as error:
        raise LutCorrupt(f"is not a parquet file, or was cut short or damaged ({_first_line(error)})") from error
    if stored is None:
        raise LutCorrupt("is not a lutbuilder table: it is parquet without lutbuilder's footer")
    try:
        footer = parse_json(stored)
    except SpecError as error:
        raise LutCorrupt(f"has a damaged footer ({error})") from error
    version = footer.get("schema_version")
    if type(version) is not int or version < 1:
        raise LutCorrupt(f"has a damaged footer (schema_version is {version!r})")
    if version > SCHEMA_VERSION:
        raise LutTooNew(f"is of schema {version}; this lutbuilder reads up to {SCHEMA_VERSION}. Upgrade: {UPGRADE}")
    try:
        if not file.schema_arrow.equals(arrow_schema(version), check_metadata=False):
            raise LutCorrupt(f"does not have the columns of schema {version}")
        table = file.read(use_threads=False).combine_chunks()
        found = content_sha256(table, footer)
    except _PARQUET_ERRORS as error:
        raise LutCorrupt(f"is damaged ({_first_line(error)})") from error
    if found != footer.get("content_sha256"):
        raise LutCorrupt("was changed after it was published: its content hash does not match")
    try:
        meta = LutMeta.from_footer(footer)
    except LutTooNew as error:
        raise LutTooNew(f"was written by lutbuilder {footer.get('tool_version')}: {error}") from error
    except SpecError as error:
        raise LutCorrupt(f"has a malformed footer ({error})") from error
    return upgraded(table.replace_schema_metadata(None)), meta


def publish(
    rows: Sequence[Row],
    meta: LutMeta,
    *,
    folder: Place,
    base: Lut | None = None,
    new_conditions: bool = False,
    accept_noisy: bool = True,
    files: FileCalls | None = None,
) -> Lut:
    """Publish the next version of LUT `meta.name` below `folder`, resting on its newest version and `rows`; return it.

    Atomic and durable: a reader sees the whole version or none, and what was returned survives a power cut. Any number
    of processes may publish at once: who loses a number merges onto the winner and tries the next, so nothing is lost.
    `base` is what the rows were collected against; it spares a read if it is still the newest, and is the parent of the
    first version in a folder that has none. A version that fails the gate (lutbuilder.lut.lint, rules L9xx) is marked
    with those rules; without `accept_noisy` it is not published at all, which raises LutNoisy with the reasons.
    `files` is for a folder of this machine. Raises LutConflict as `merge` does, LutNotWritable naming the folder
    (nothing is left behind there), LutCorrupt if the newest version is.
    """
    from lutbuilder.lut.lint import failed_gate

    kept = _folder(folder, files)
    home = folder / meta.name
    taken = 0
    for _ in range(_MOST_RACES):
        parent = _parent(kept, meta.name, base, taken)
        merged, merged_meta = merge(parent, rows, meta, new_conditions=new_conditions)
        failed = failed_gate(merged, merged_meta)
        if failed and not accept_noisy:
            raise _too_noisy(meta, failed)
        merged_meta = replace(merged_meta, noisy=tuple(sorted({finding.rule for finding in failed})))
        if kept.create(meta.name, merged_meta.version, encode_lut(merged, merged_meta)):
            return _open(home / key("", merged_meta.version), by_number=True)
        taken = merged_meta.version
    raise LutNotWritable(f"{_MOST_RACES} other publishers were faster in {home}; stop them and repeat the command")


def publish_instead(rows: Sequence[Row], meta: LutMeta, *, parent: Lut, newest: int, accept_noisy: bool = True) -> Lut:
    """Publish `rows` as they are as the version after `newest`, in place of `parent`'s; return it.

    For rows that are `parent`'s, made anew: nothing is merged. The gate is that of `publish`. Raises LutConflict if
    `newest` is not the newest version any more, LutNoisy, LutNotWritable.
    """
    from lutbuilder.lut.lint import failed_gate

    home = parent.path.parent
    meta = replace(
        meta,
        version=newest + 1,
        parent_version=parent.version,
        parent_sha256=parent.meta.content_sha256,
        content_sha256="",
    )
    failed = failed_gate(rows, meta)
    if failed and not accept_noisy:
        raise _too_noisy(meta, failed)
    meta = replace(meta, noisy=tuple(sorted({finding.rule for finding in failed})))
    kept = folder_at(home)
    if kept.newest("", least=newest) != newest or not kept.create("", meta.version, encode_lut(rows, meta)):
        raise LutConflict(f"somebody else published into {home} meanwhile; type the same command again")
    return _open(home / key("", meta.version), by_number=True)


def write_samples(
    visits: Iterable[RawVisit], *, lut: Lut, fit: Mapping[str, Any] | None = None, files: FileCalls | None = None
) -> Place:
    """Write the raw visits behind `lut` to samples/ beside it and return the file.

    Columns are campaign_id, session_id and the fields of Timing. With `fit`, JSON-able, the file is enough to rebuild
    the rows (lutbuilder/rebuild.py). A file that is there stays: versions are immutable. Raises LutNotWritable.
    """
    home = lut.path.parent
    kept = _folder(home, files)
    if version_of(lut.path) != lut.version:
        raise LutNotWritable(f"{lut.path} is no published version: its raw visits have no place beside it")
    if not kept.has("", lut.version, "samples"):
        kept.create("", lut.version, _sample_bytes(visits, lut, fit), "samples")
    return home / key("", lut.version, "samples")


def _too_noisy(meta: LutMeta, failed: Iterable[Finding]) -> LutNoisy:
    told = "; ".join(f"{finding.rule}: {finding.message}" for finding in failed)
    return LutNoisy(f"{meta.name} would be too noisy to publish: {told}")


def _folder(root: Place, files: FileCalls | None) -> LutFolder:
    return LocalFolder(root, files) if files is not None and isinstance(root, Path) else folder_at(root)


def _open(path: Place, *, by_number: bool) -> Lut:
    table, meta = read_lut(path)
    number = version_of(path)
    if by_number and number != meta.version:
        raise LutCorrupt(f"{path} holds version {meta.version} of {meta.name}: it was copied or renamed; remove it")
    return Lut(table=table, meta=meta, path=path)


def _parent(kept: LutFolder, name: str, base: Lut | None, taken: int) -> Lut | None:
    newest = kept.newest(name, least=taken)
    if newest is None:
        return base
    path = kept.root / key(name, newest)
    if base is not None and base.path.absolute() == path.absolute():
        return base
    return _open(path, by_number=True)


def _is_file(spec: str | Place) -> bool:
    """Whether this names a file, not a table. Of a URL its name tells: nobody is asked."""
    where = place(spec)
    return _is(Path.is_file, where) if isinstance(where, Path) else where.name.endswith(".parquet")


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError:  # a name the filesystem cannot hold, or a folder that may not be entered: nothing there
        return False


def _not_found_message(spec: str, name: str, folder: Place) -> str:
    named = place(name)
    if isinstance(named, Url):  # of a bucket nobody knows what is a folder: the prefix itself, or that of all tables
        below: Place = named if list_luts(named) else named.parent.parent
    else:
        below = named if name and _is(Path.is_dir, named) else folder
    entries = list_luts(below)
    listed = ", ".join(f"{entry.folder}@{entry.versions[-1]}" for entry in entries[:10]) or "none"
    more = f" and {len(entries) - 10} more" if len(entries) > 10 else ""
    return f"no LUT {spec!r}; below {below} there is: {listed}{more}. Collect it: {_collect_command(name)}"


def _collect_command(name: str) -> str:
    """Return the command that would collect a LUT of that name, as far as the name tells."""
    from lutbuilder import devices

    device, _, conditions = "/".join(Path(name).parts[-2:]).rpartition("/")
    device = device if device in devices.names() else "cpu"
    found = _CONDITIONS.fullmatch(conditions)
    if found is None:
        return collect_command(device=device)
    return collect_command(
        device=device, runtime=found["runtime"], batch=int(found["batch"]), threads=int(found["threads"] or 1)
    )


def _sample_bytes(visits: Iterable[RawVisit], lut: Lut, fit: Mapping[str, Any] | None) -> bytes:
    """Return a parquet file of `visits`, compressed chunk by chunk."""
    footer: dict[str, Any] = {"lut": lut.name, "version": lut.version, "content_sha256": lut.meta.content_sha256}
    if fit is not None:
        footer["fit"] = fit
    schema = _SAMPLES_SCHEMA.with_metadata({_SAMPLES_KEY: canonical_json(footer)})
    sink = io.BytesIO()
    remaining = iter(visits)
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        while chunk := list(islice(remaining, _SAMPLES_CHUNK)):
            columns = [
                packed(
                    [getattr(visit if field.name in _OF_VISIT else visit.timing, field.name) for visit in chunk],
                    field.type,
                )
                for field in schema
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return sink.getvalue()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
