"""LUT files: opening them whole or not at all, finding them by name, publishing the next version atomically.

luts/<device>/<runtime>-<dtype>-bs<N>/v0001.parquet             one immutable version
luts/<device>/<runtime>-<dtype>-bs<N>/samples/v0001.parquet     the raw visits behind it
"""

from __future__ import annotations

import errno
import io
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types

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
    parse_json,
    rows_to_table,
    upgraded,
)
from lutbuilder_agent.errors import LutCorrupt, LutError, LutNoisy, LutNotFound, LutNotWritable, LutTooNew, SpecError
from lutbuilder_agent.records import Timing

_VERSION_FILE = re.compile(r"v(\d{4,9})\.parquet")
_SPEC = re.compile(r"(?P<name>.+)@v?(?P<version>\d{1,9})")
# The last part of Target.lut_name.
_CONDITIONS = re.compile(r"(?P<runtime>.+)-[a-z]+\d+-bs(?P<batch>\d+)(-t(?P<threads>\d+))?(-[a-z]+)?")
_SAMPLES = "samples"
_OF_VISIT = ("campaign_id", "session_id")
_SAMPLES_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in (*_OF_VISIT, "op_id")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("round", "order", "instance", "start_ns")),
        *(pa.field(name, pa.list_(pa.int64()), nullable=False) for name in ("warmup_ns", "samples_ns", "preempted")),
        pa.field("throttled", pa.list_(pa.int64())),  # null where the device has no throttle counters
    ]
)
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK})
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_MOST_RACES = 1000
_CLAIM_WAIT_S = 5.0
_CLAIM_POLL_S = 0.01
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
class FileCalls:
    """The system calls publishing makes, so that a test can hand in a full disk or a filesystem without hard links."""

    open: Callable[[Path, int, int], int] = os.open
    write: Callable[[int, bytes | memoryview], int] = os.write
    fsync: Callable[[int], None] = os.fsync
    link: Callable[[Path, Path], None] = os.link
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class LutEntry:
    """One LUT below a luts folder: its name, its folder, and the numbers of its versions, oldest first."""

    name: str
    folder: Path
    versions: tuple[int, ...]

    def path(self, version: int | None = None) -> Path:
        """Return the file of a version; None: the newest."""
        return self.folder / _file_name(self.versions[-1] if version is None else version)


def load(spec: str | Path, *, folder: Path = Path("luts")) -> Lut:
    """Open what `spec` names; see Lut.load."""
    path = resolve(spec, folder=folder)
    return _open(path, by_number=not _is(Path.is_file, Path(spec)))


def resolve(spec: str | Path, *, folder: Path = Path("luts")) -> Path:
    """Return the file that `spec` names: a file, a LUT's folder or its name below `folder`, either with "@<version>".

    Raises LutNotFound listing the versions or LUTs there are and the command that collects one.
    """
    if _is(Path.is_file, Path(spec)):
        return Path(spec)
    found = _SPEC.fullmatch(str(spec))
    name, wanted = (found["name"], int(found["version"])) if found else (str(spec), None)
    for home in (Path(name), folder / name):
        versions = _versions(home)
        if not versions:
            continue
        if wanted is None or wanted in versions:
            return home / _file_name(versions[-1] if wanted is None else wanted)
        told = ", ".join(map(str, versions))
        raise LutNotFound(f"{home} has no version {wanted}; it has {told}. Open the newest with {str(home)!r}")
    raise LutNotFound(_not_found_message(str(spec), name, folder))


def list_luts(folder: Path) -> tuple[LutEntry, ...]:
    """Return every LUT up to two folders below `folder`, sorted by name; none where there is none. Opens no file."""
    try:
        found = [*folder.glob("*/v*.parquet"), *folder.glob("*/*/v*.parquet")]
        homes = sorted({path.parent for path in found if path.parent.name != _SAMPLES})
    except OSError as error:
        raise LutError(f"cannot list {folder}: {error.strerror}; check its permissions") from error
    entries = [
        LutEntry(name=home.relative_to(folder).as_posix(), folder=home, versions=_versions(home)) for home in homes
    ]
    return tuple(entry for entry in entries if entry.versions)


def version_of(path: Path) -> int | None:
    """Return the version a file's name says; None for a file named otherwise."""
    found = _VERSION_FILE.fullmatch(path.name)
    return int(found[1]) if found else None


def read_lut(path: Path) -> tuple[pa.Table, LutMeta]:
    """Return the rows and footer of a LUT file, its content hash checked.

    Raises LutCorrupt for a truncated, tampered or foreign file, LutTooNew for a newer schema's, LutNotFound for none.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise LutNotFound(f"no file {path}; see what there is: lutbuilder luts list") from error
    except OSError as error:
        raise LutError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
    try:
        return decode_lut(raw)
    except LutTooNew as error:
        raise LutTooNew(f"{path} {error}") from error
    except LutCorrupt as error:
        raise LutCorrupt(
            f"{path} {error}. Restore the file (git checkout, a copy), or remove it to use the version before it"
        ) from error


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
    folder: Path,
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
    Raises LutConflict as `merge` does, LutNotWritable naming the folder (nothing is left behind there), LutCorrupt if
    the newest version is.
    """
    from lutbuilder.lut.lint import failed_gate

    files = files or FileCalls()
    home = folder / meta.name
    for _ in range(_MOST_RACES):
        parent = _parent(home, base, files)
        merged, merged_meta = merge(parent, rows, meta, new_conditions=new_conditions)
        failed = failed_gate(merged, merged_meta)
        if failed and not accept_noisy:
            told = "; ".join(f"{finding.rule}: {finding.message}" for finding in failed)
            raise LutNoisy(f"{meta.name} would be too noisy to publish: {told}")
        merged_meta = replace(merged_meta, noisy=tuple(sorted({finding.rule for finding in failed})))
        path = home / _file_name(merged_meta.version)
        won = _write_whole(path, encode_lut(merged, merged_meta), files)
        if won:
            return _open(path, by_number=True)
    raise LutNotWritable(f"{_MOST_RACES} other publishers were faster in {home}; stop them and repeat the command")


def write_samples(visits: Iterable[RawVisit], *, lut: Lut, files: FileCalls | None = None) -> Path:
    """Write the raw visits behind `lut` to samples/ beside it and return the file.

    Columns are campaign_id, session_id and the fields of Timing: enough to rebuild the rows. A file that is there
    stays: versions are immutable. Raises LutNotWritable.
    """
    files = files or FileCalls()
    path = lut.path.parent / _SAMPLES / lut.path.name
    if path.exists():
        return path
    _write_whole(path, _sample_bytes(visits, lut), files)
    return path


def _open(path: Path, *, by_number: bool) -> Lut:
    table, meta = read_lut(path)
    number = version_of(path)
    if by_number and number != meta.version:
        raise LutCorrupt(f"{path} holds version {meta.version} of {meta.name}: it was copied or renamed; remove it")
    return Lut(table=table, meta=meta, path=path)


def _parent(home: Path, base: Lut | None, files: FileCalls) -> Lut | None:
    newest = _newest_file(home, files)
    if newest is None:
        return base
    if base is not None and base.path.absolute() == newest.absolute():
        return base
    return _open(newest, by_number=True)


def _newest_file(home: Path, files: FileCalls) -> Path | None:
    """Return the newest version's file, waiting for a publisher that has claimed its number but not filled it yet."""
    path = home
    for _ in range(int(_CLAIM_WAIT_S / _CLAIM_POLL_S)):
        claimed = _versions(home, claimed=True)
        if not claimed:
            return None
        path = home / _file_name(claimed[-1])
        if claimed[-1] in _versions(home):
            return path
        files.sleep(_CLAIM_POLL_S)
    raise LutNotWritable(
        f"{path} is empty: another publisher claimed that number and did not finish within {_CLAIM_WAIT_S:g} s. "
        f"If no other lutbuilder is running, remove it and repeat the command: rm {path}"
    )


def _write_whole(path: Path, raw: bytes, files: FileCalls) -> bool:
    """Write a file that appears complete or not at all; return False, changing nothing, if that name is taken."""
    scratch = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.tmp")
    with _told_not_writable(path.parent):
        _make_folder(path.parent, files)
        try:
            _write_scratch(scratch, raw, files)
            won = _claim(scratch, path, files)
        finally:
            scratch.unlink(missing_ok=True)
        if won:
            _sync_folder(path.parent, files)
    return won


def _write_scratch(scratch: Path, raw: bytes, files: FileCalls) -> None:
    handle = files.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(raw)
        while rest:
            rest = rest[files.write(handle, rest) :]
        files.fsync(handle)
    finally:
        os.close(handle)


def _claim(scratch: Path, path: Path, files: FileCalls) -> bool:
    try:
        files.link(scratch, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    else:
        return True
    # No hard links here (FAT, some network mounts): an empty file claims the name, the rename fills it in one step.
    # Readers and publishers take an empty file for a claim (`_versions`, `_newest_file`).
    try:
        os.close(files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    try:
        scratch.replace(path)
    except OSError:
        path.unlink()
        raise
    return True


def _make_folder(folder: Path, files: FileCalls) -> None:
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in made:
        _sync_folder(part.parent, files)


def _sync_folder(folder: Path, files: FileCalls) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        files.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:  # some network mounts cannot; their rename is durable or nothing is
            raise
    finally:
        os.close(handle)


@contextmanager
def _told_not_writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise LutNotWritable(
            f"cannot publish into {folder}: {error.strerror or error}; {cure}, or choose another folder with "
            "--luts DIR. What was measured is kept: repeat the command to publish it"
        ) from error


def _versions(home: Path, *, claimed: bool = False) -> tuple[int, ...]:
    """Return the numbers of the versions in `home`, ascending; with `claimed` also those of files still empty."""
    try:
        paths = [path for path in home.iterdir() if version_of(path) is not None]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return ()
        raise LutError(f"cannot list {home}: {error.strerror}; check its permissions") from error
    return tuple(sorted(int(path.stem[1:]) for path in paths if claimed or _filled(path)))


def _filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:  # given up by its publisher a moment ago, or a link that leads nowhere
        return False


def _file_name(version: int) -> str:
    return f"v{version:04d}.parquet"


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError:  # a name the filesystem cannot hold, or a folder that may not be entered: nothing there
        return False


def _not_found_message(spec: str, name: str, folder: Path) -> str:
    below = Path(name) if name and _is(Path.is_dir, Path(name)) else folder
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


def _sample_bytes(visits: Iterable[RawVisit], lut: Lut) -> bytes:
    """Return a parquet file of `visits`, compressed chunk by chunk."""
    footer = {"lut": lut.name, "version": lut.version, "content_sha256": lut.meta.content_sha256}
    schema = _SAMPLES_SCHEMA.with_metadata({FOOTER_KEY + b".samples": canonical_json(footer)})
    sink = io.BytesIO()
    remaining = iter(visits)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        while chunk := list(islice(remaining, _SAMPLES_CHUNK)):
            columns = {
                name: [getattr(visit if name in _OF_VISIT else visit.timing, name) for visit in chunk]
                for name in schema.names
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
    return sink.getvalue()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
