"""The artifact cache: bytes named by their sha256, verified before every use, downloads resumed where they were cut.

A folder belongs to one agent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lutbuilder_agent.errors import ArtifactCorrupt
from lutbuilder_agent.records import ArtifactRef

DEFAULT_QUOTA_BYTES = 2 << 30
Fetch = Callable[[int], Iterator[bytes]]  # first byte wanted -> the bytes from there to the end
_BLOCK = 1 << 20


class ArtifactCache:
    """Artifacts in `folder`, at most `quota_bytes` of them; the least recently used leave first."""

    def __init__(self, folder: Path, *, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        self.folder = folder
        self._quota_bytes = quota_bytes

    def make_room(self, refs: Collection[ArtifactRef], *, besides: Collection[ArtifactRef] = ()) -> str:
        """Let the least recently used leave until `refs` fit beside `besides`; neither of the two ever leaves.

        Returns "" once they fit, else what is too small and what would help. Raises OSError if the folder cannot be
        used.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = {ref.sha256: ref.size_bytes for ref in (*besides, *refs)}
        if sum(sizes.values()) > self._quota_bytes:
            return (
                f"{len(sizes)} artifacts of {sum(sizes.values())} bytes are more than the cache {self.folder} may hold "
                f"({self._quota_bytes} bytes): run with --cache-quota {(sum(sizes.values()) >> 20) + 1}M"
            )
        entries = [(path, path.stat()) for path in self.folder.iterdir() if path.is_file()]
        held = {path.name.partition(".")[0]: status.st_size for path, status in entries}
        wanted = sum(max(0, size - held.get(sha256, 0)) for sha256, size in sizes.items())
        total = sum(status.st_size for _, status in entries)
        free = shutil.disk_usage(self.folder).free
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if total + wanted <= self._quota_bytes and wanted <= free:
                break
            if path.name.partition(".")[0] not in sizes:
                path.unlink(missing_ok=True)
                total -= status.st_size
                free += status.st_size
        if wanted > free:
            raise OSError(errno.ENOSPC, f"{free} bytes are free and {wanted} are wanted", str(self.folder))
        return ""

    def get(self, ref: ArtifactRef, fetch: Fetch) -> Path:
        """Return a file that holds exactly the promised bytes, downloading what is missing of them.

        What a cut download left is kept, also over a restart, and the next call asks `fetch` for the rest only; errors
        of `fetch` pass through. Bytes with another sha256 or length are dropped and fetched once more from the very
        start. Raises ArtifactCorrupt if those are wrong too, OSError if the folder cannot be written.
        """
        path = self.folder / ref.sha256
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and _is(path, ref):
            os.utime(path)  # used now: the last to leave
            return path
        path.unlink(missing_ok=True)
        part = self.folder / f"{ref.sha256}.part"
        for _ in range(2):
            _download(part, ref, fetch)
            if _is(part, ref):
                part.replace(path)
                return path
            size = part.stat().st_size
            part.unlink()
        raise ArtifactCorrupt(
            f"artifact {ref.sha256[:12]}...: the coordinator sent {size} bytes whose sha256 is not the promised one, "
            f"twice (promised: {ref.size_bytes} bytes). Restart the coordinator; it builds the artifact again"
        )


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
