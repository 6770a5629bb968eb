"""Copies of files that were read from a bucket: by the sha256 of what is in them, in the user's cache folder.

A copy is used while the bucket says that the object is the one it was made of; so a version is downloaded once. The
folder may be removed at any time. A cache that cannot be read or written is no error: the bucket has everything.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 2 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the user's folder: below $XDG_CACHE_HOME, else ~/.cache; below the temporary folder without a home."""
    base = environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "lutbuilder" / "luts"
    try:
        home = Path.home() if environ.get("HOME") != "" else None
    except RuntimeError:  # no HOME, and no entry in the user database: a container
        home = None
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return (home / ".cache" if home else Path(tempfile.gettempdir()) / f"lutbuilder-{user}") / "lutbuilder" / "luts"


@dataclass(frozen=True, slots=True)
class Copies:
    """The cache in a folder. Safe from any number of threads and processes."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def get(self, url: str, tag: str) -> bytes | None:
        """Return the object `tag` of `url` if it was kept and its copy is sound."""
        try:
            sha256 = self._known(url, tag).read_text(encoding="ascii")
            if not _SHA256.fullmatch(sha256):
                return None
            raw = (self.folder / sha256).read_bytes()
        except (OSError, ValueError):
            return None
        return raw if hashlib.sha256(raw).hexdigest() == sha256 else None

    def keep(self, url: str, tag: str, raw: bytes) -> None:
        """Keep a copy; drop the oldest where all copies together are too large."""
        sha256 = hashlib.sha256(raw).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self.folder / sha256, raw)
            self._write(self._known(url, tag), sha256.encode())
            self._prune()
        except OSError:
            return

    def _known(self, url: str, tag: str) -> Path:
        """Return the small file that says which copy is the object `tag` of `url`."""
        return self.folder / f"{hashlib.sha256(repr((url, tag)).encode()).hexdigest()}.of"

    def _write(self, path: Path, raw: bytes) -> None:
        scratch = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            scratch.write_bytes(raw)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def _prune(self) -> None:
        found = []
        for path in self.folder.iterdir():
            try:
                seen = path.stat()
            except OSError:  # another process pruned it
                continue
            found.append((seen.st_mtime, seen.st_size, path))
        n_bytes = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if n_bytes <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            n_bytes -= size
