"""The spool: a measured round is safe on disk before it is sent, and stays there until the coordinator committed it.

One file a report, named by a rising number and the report's id. A file says its own length and sha256, so half a file
(the power went) is never taken for a whole one. A file that was whole once and cannot be read is never deleted: it is
set aside as `.corrupt`.
Room for the next round is set aside before it is measured, so that a disk that fills up meanwhile costs nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lutbuilder_agent.errors import LutbuilderError, StoreError
from lutbuilder_agent.records import Report

SPOOL_FORMAT = "lutbuilder.spool/1"
DEFAULT_MAX_BYTES = 1 << 30  # some 20,000 rounds of 70 ops: days without a coordinator
_NAME = re.compile(r"(\d{10})-.+")
_HEADER = re.compile(rb"lutbuilder\.spool/1 ([0-9a-f]{64}) (\d{1,12})\n")
_MAX_HEADER = 128
_RESERVE = "reserve"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # file systems that cannot set room aside


class Spool:
    """Reports of one agent that no coordinator has acknowledged yet, oldest first. Used by one thread only."""

    def __init__(self, folder: Path, *, warn: Callable[[str], None], max_bytes: int, next_number: int) -> None:
        self.folder = folder
        self._reserve = folder / _RESERVE
        self._warn = warn
        self._max_bytes = max_bytes
        self._next_number = next_number

    @classmethod
    def open(cls, folder: Path, *, warn: Callable[[str], None], max_bytes: int = DEFAULT_MAX_BYTES) -> Spool:
        """Return the spool in `folder`, made if it is missing. Raises StoreError if it cannot be read.

        A round whose file was complete but not yet named when the agent was killed is taken in.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = [int(match[1]) for path in folder.iterdir() if (match := _NAME.match(path.name))]
        except OSError as error:
            raise _cannot("open", folder, error) from error
        spool = cls(folder, warn=warn, max_bytes=max_bytes, next_number=max(numbers, default=0) + 1)
        spool._take_in_unnamed()
        return spool

    def reserve(self, n_bytes: int) -> str:
        """Set room aside for the next report; return "" if there is room, else what is full and what would help.

        Raises StoreError if the folder cannot be used, or if no spool of this quota ever takes so many bytes.
        """
        if n_bytes > self._max_bytes:
            raise StoreError(
                f"a round may take {n_bytes} bytes, more than the whole spool {self.folder} may hold "
                f"({self._max_bytes}): run with --spool-quota {n_bytes * 4 >> 20 or 1}M"
            )
        try:
            used = sum(path.stat().st_size for path in self.folder.iterdir() if path != self._reserve)
            if used + n_bytes > self._max_bytes:
                return (
                    f"the spool {self.folder} is full: {used} of {self._max_bytes} bytes hold rounds that no "
                    "coordinator has acknowledged. Start the coordinator they belong to, or run with a larger "
                    "--spool-quota"
                )
            if self._allocated(n_bytes):
                return ""
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise _cannot("use", self.folder, error) from error
        return (
            f"the disk of the spool {self.folder} (or your quota on it) is full: {free} bytes are free and a round may "
            f"take {n_bytes}. Free some space, or run with --spool-dir on another disk"
        )

    def put(self, report: Report) -> Path:
        """Write a report and return its file once it is on the disk. Raises StoreError; then nothing was written."""
        payload = _encode(report)
        header = f"{SPOOL_FORMAT} {hashlib.sha256(payload).hexdigest()} {len(payload)}\n".encode()
        path = self.folder / f"{self._next_number:010d}-{report.report_id}.report"
        unnamed = path.with_suffix(".tmp")
        try:
            if self._reserve.exists():
                self._reserve.replace(unnamed)
            with os.fdopen(os.open(unnamed, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                file.truncate(len(header) + len(payload))
                file.write(header + payload)
                file.flush()
                os.fsync(file.fileno())
            unnamed.replace(path)
            _sync_folder(self.folder)
        except OSError as error:
            with suppress(OSError):  # the first error says more
                unnamed.unlink()
            raise _cannot("write to", self.folder, error) from error
        self._next_number += 1
        return path

    def paths(self) -> tuple[Path, ...]:
        """Return the files that wait, oldest first, without reading them."""
        try:
            return tuple(sorted(path for path in self.folder.iterdir() if path.suffix == ".report"))
        except OSError as error:
            raise _cannot("read", self.folder, error) from error

    def remove(self, path: Path) -> None:
        """Forget an acknowledged report; twice is as good as once."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot("remove an acknowledged report from", self.folder, error) from error

    def read(self, path: Path) -> Report | None:
        """Return the report in a file; None if it was set aside because it is no whole report."""
        try:
            return _decode(path.read_bytes())
        except (_NotAReport, LutbuilderError) as error:
            aside = path.with_name(path.name + ".corrupt")
            path.replace(aside)
            self._warn(f"spool file {path.name} cannot be read ({error}); kept as {aside}, nothing was deleted")
            return None
        except OSError as error:
            raise _cannot("read", path, error) from error

    def _take_in_unnamed(self) -> None:
        for unnamed in sorted(self.folder.glob("*.tmp")):
            try:
                _decode(unnamed.read_bytes())
                unnamed.replace(unnamed.with_suffix(".report"))
            except (_NotAReport, LutbuilderError):
                self._warn(f"the agent was killed while it wrote a round to {unnamed.name}: that round is gone")
                self.remove(unnamed)
            except OSError as error:
                raise _cannot("read", unnamed, error) from error

    def _allocated(self, n_bytes: int) -> bool:
        """Set `n_bytes` of the disk aside; False if it has no more."""
        handle = os.open(self._reserve, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(handle).st_size >= n_bytes:
                return True
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, n_bytes)
                return True
        except OSError as error:
            if error.errno in _FULL:
                return False
            if error.errno not in _NO_FALLOCATE:
                raise
        finally:
            os.close(handle)
        return shutil.disk_usage(self.folder).free >= n_bytes


class _NotAReport(Exception):
    """A spool file is cut, altered or foreign."""


def _encode(report: Report) -> bytes:
    from lutbuilder_agent.wire.convert import report_to_bytes

    return report_to_bytes(report)


def _decode(raw: bytes) -> Report:
    """Raises _NotAReport for a cut or altered file, WireError or SpecError for a payload that is no report."""
    from lutbuilder_agent.wire.convert import report_from_bytes

    header = _HEADER.match(raw[:_MAX_HEADER])
    if header is None:
        raise _NotAReport(f"does not start with {SPOOL_FORMAT}")
    payload = raw[header.end() :]
    if len(payload) != int(header[2]):
        raise _NotAReport(f"holds {len(payload)} of {int(header[2])} bytes")
    if hashlib.sha256(payload).hexdigest() != header[1].decode():
        raise _NotAReport("its sha256 does not match")
    return report_from_bytes(payload)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; a system that cannot open folders (Windows) needs no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot(what: str, where: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot {what} the spool {where}: {error.strerror or error}. Measured rounds are kept there until they are "
        "acknowledged; make it readable and writable, or run with --spool-dir FOLDER"
    )
