"""LutFolder: what publishing and opening tables needs of a place, be it a folder of this machine or one of a bucket.

<root>/<device>/<runtime>-<dtype>-bs<N>/v0001.parquet             one immutable version
<root>/<device>/<runtime>-<dtype>-bs<N>/samples/v0001.parquet     the raw visits behind it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from lutbuilder.urls import Place

LutPart = Literal["table", "samples"]
SAMPLES = "samples"
KEPT = "What was measured is kept: repeat the command to publish it"
_VERSION_FILE = re.compile(r"v(\d{4,9})\.parquet")


class LutFolder(Protocol):
    """Files that appear whole or not at all and never change, by the name of a table ("" for the root) and a version.

    Any number of processes may use one at once. Every method raises LutError for a place that does not answer or may
    not be entered, with what to do about it.
    """

    @property
    def root(self) -> Place:
        """Where it is."""
        ...

    def check(self) -> None:
        """Raise LutError, with what to do, unless tables can be listed, read and published here; publish none."""
        ...

    def tables(self) -> Mapping[str, tuple[int, ...]]:
        """Return the versions, ascending, of every table up to two levels below the root. Opens no file."""
        ...

    def versions(self, name: str) -> tuple[int, ...]:
        """Return the versions of a table, ascending; none where there is no such table."""
        ...

    def newest(self, name: str, *, least: int = 0) -> int | None:
        """Return the newest version for a publisher, who must not miss one: `least` was there a moment ago.

        Waits for a version that is just being published. Raises LutNotWritable if that does not end.
        """
        ...

    def read(self, name: str, version: int, part: LutPart = "table") -> bytes:
        """Return a file. Raises LutNotFound."""
        ...

    def has(self, name: str, version: int, part: LutPart = "table") -> bool:
        """Whether a file is there."""
        ...

    def create(self, name: str, version: int, raw: bytes, part: LutPart = "table") -> bool:
        """Make a file appear, durable; return False if there is one, which stays as it is. Raises LutNotWritable."""
        ...


def folder_at(root: Place) -> LutFolder:
    """Return the folder of a place. Raises MissingExtra for a URL that no installed package opens."""
    from lutbuilder.lut.local import LocalFolder

    if isinstance(root, Path):
        return LocalFolder(root)
    from lutbuilder.lut.remote import RemoteFolder

    return RemoteFolder(root)


def key(name: str, version: int, part: LutPart = "table") -> str:
    """Return where a file of a table is, below the root."""
    parts = (name, SAMPLES if part == "samples" else "", f"v{version:04d}.parquet")
    return "/".join(filter(None, parts))


def version_of(path: Place) -> int | None:
    """Return the version a file's name says; None for a file named otherwise."""
    found = _VERSION_FILE.fullmatch(path.name)
    return int(found[1]) if found else None
