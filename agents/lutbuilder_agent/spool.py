"""The spool: a measured round is safe on disk before it is sent, and stays there until the coordinator committed it.

One file a report, named by a rising number and the report's id. A file says its own length and sha256, so half a file
(the power went) is never taken for a whole one. Nothing that cannot be read is deleted: it is set aside as `.corrupt`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from lutbuilder_agent.errors import LutbuilderError, StoreError
from lutbuilder_agent.records import Report

SPOOL_FORMAT = "lutbuilder.spool/1"
DEFAULT_MAX_BYTES = 1 << 30
_NAME = re.compile(r"(\d{10})-.+")
_HEADER = re.compile(rb"lutbuilder\.spool/1 ([0-9a-f]{64}) (\d{1,12})\n")
_MAX_HEADER = 128


class Spool:
    """Reports of one agent that no coordinator has acknowledged yet, oldest first. Used by one thread only."""

    def __init__(self, folder: Path, *, warn: Callable[[str], None], max_bytes: int, next_number: int) -> None:
        self.folder = folder
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

    def put(self, report: Report) -> Path:
        """Write a report and return its file once it is on the disk. Raises StoreError; then nothing was written."""
        payload = _encode(report)
        header = f"{SPOOL_FORMAT} {hashlib.sha256(payload).hexdigest()} {len(payload)}\n".encode()
        self.ensure_room(len(header) + len(payload))
        path = self.folder / f"{self._next_number:010d}-{report.report_id}.report"
        unnamed = path.with_suffix(".tmp")
        try:
            with unnamed.open("wb") as file:
                file.write(header + payload)
                file.flush()
                os.fsync(file.fileno())
            unnamed.replace(path)
            _sync_folder(self.folder)
        except OSError as error:
            unnamed.unlink(missing_ok=True)
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

    def ensure_room(self, n_bytes: int) -> None:
        """Raise StoreError unless `n_bytes` more would fit the quota and the disk: ask before measuring, not after."""
        try:
            used = sum(path.stat().st_size for path in self.paths())
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise _cannot("read", self.folder, error) from error
        if used + n_bytes > self._max_bytes:
            raise StoreError(
                f"the spool {self.folder} is full: {used} of {self._max_bytes} bytes hold rounds that no coordinator "
                "has acknowledged. Measuring stops so that none is lost; start the coordinator they belong to and run "
                "the agent again with the same --spool-dir"
            )
        if n_bytes > free:
            raise StoreError(
                f"the disk of the spool {self.folder} is full: {free} bytes are free and a round needs {n_bytes}. "
                "Free some space, or run with --spool-dir on another disk"
            )

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
            if self.read(unnamed) is not None:
                unnamed.replace(unnamed.with_suffix(".report"))


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
