"""The artifact cache: bytes named by their sha256, verified before every use, downloads resumed where they were cut.

A folder belongs to one agent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lutbuilder_agent.errors import ArtifactCorrupt
from lutbuilder_agent.records import ArtifactRef

DEFAULT_QUOTA_BYTES = 2 << 30
Fetch = Callable[[int], Iterator[bytes]]  # first byte wanted -> the bytes from there to the end
_BLOCK = 1 << 20


class ArtifactCache:
    """Artifacts in `folder`, at most `quota_bytes` of them after a `trim`; the least recently used leave first."""

    def __init__(self, folder: Path, *, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        self.folder = folder
        self._quota_bytes = quota_bytes

    def get(self, ref: ArtifactRef, fetch: Fetch) -> Path:
        """Return a file that holds exactly the promised bytes, downloading what is missing of them.

        What a cut download left is kept, and the next call asks `fetch` for the rest only; errors of `fetch` pass
        through. Raises ArtifactCorrupt if bytes fetched from the very start have another sha256 or length, OSError if
        the folder cannot be written.
        """
        path = self.folder / ref.sha256
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and _is(path, ref):
            os.utime(path)  # used now: the last to leave
            return path
        path.unlink(missing_ok=True)
        part = self.folder / f"{ref.sha256}.part"
        resumed = part.is_file() and part.stat().st_size > 0
        _download(part, ref, fetch)
        if resumed and not _is(part, ref):  # what an earlier run left was bad: once more from the start
            part.unlink()
            _download(part, ref, fetch)
        if not _is(part, ref):
            size = part.stat().st_size
            part.unlink()
            raise ArtifactCorrupt(
                f"artifact {ref.sha256[:12]}...: the coordinator sent {size} bytes whose sha256 is not the promised "
                f"one (promised: {ref.size_bytes} bytes). Restart the coordinator; it builds the artifact again"
            )
        part.replace(path)
        return path

    def trim(self, *, keep: Collection[str] = ()) -> None:
        """Delete the least recently used artifacts until the quota holds; never one whose sha256 is in `keep`."""
        try:
            entries = [(path, path.stat()) for path in self.folder.iterdir() if path.is_file()]
        except FileNotFoundError:  # nothing was ever kept
            return
        total = sum(status.st_size for _, status in entries)
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if total <= self._quota_bytes:
                return
            if path.name.partition(".")[0] not in keep:
                path.unlink(missing_ok=True)
                total -= status.st_size


def _download(part: Path, ref: ArtifactRef, fetch: Fetch) -> None:
    """Append what `part` lacks of the artifact; stops one chunk past the promised size: no peer fills the disk."""
    with part.open("ab") as file:
        offset = file.tell()
        if offset > ref.size_bytes:
            file.truncate(0)
            offset = 0
        if offset == ref.size_bytes and offset > 0:
            return
        for chunk in fetch(offset):
            file.write(chunk)
            offset += len(chunk)
            if offset > ref.size_bytes:
                return


def _is(path: Path, ref: ArtifactRef) -> bool:
    """Say whether a file has the promised length and sha256."""
    if path.stat().st_size != ref.size_bytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == ref.sha256
