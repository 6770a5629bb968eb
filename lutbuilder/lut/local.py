"""Tables in a folder of this machine: hard links publish them, nothing but the standard library is needed."""

from __future__ import annotations

import errno
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lutbuilder.lut.folder import KEPT, SAMPLES, LutPart, key, version_of
from lutbuilder_agent.errors import LutError, LutNotFound, LutNotWritable

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK})
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_CLAIM_WAIT_S = 5.0
_CLAIM_POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCalls:
    """The system calls publishing makes, so that a test can hand in a full disk or a filesystem without hard links."""

    open: Callable[[Path, int, int], int] = os.open
    write: Callable[[int, bytes | memoryview], int] = os.write
    fsync: Callable[[int], None] = os.fsync
    link: Callable[[Path, Path], None] = os.link
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A LutFolder on this machine's disks, network mounts included."""

    root: Path
    files: FileCalls = field(default_factory=FileCalls)

    def check(self) -> None:
        """See LutFolder.check; the folder is made. Only a try tells: an administrator may write where he may not."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise LutNotWritable(
                f"cannot put tables into {self.root}: {error.strerror or error}; make it writable, or choose another: "
                "--luts DIR"
            ) from error

    def tables(self) -> dict[str, tuple[int, ...]]:
        """See LutFolder.tables."""
        try:
            found = [*self.root.glob("*/v*.parquet"), *self.root.glob("*/*/v*.parquet")]
            homes = sorted({path.parent for path in found if path.parent.name != SAMPLES})
        except OSError as error:
            raise LutError(f"cannot list {self.root}: {error.strerror}; check its permissions") from error
        named = {home.relative_to(self.root).as_posix(): _versions(home) for home in homes}
        return {name: versions for name, versions in named.items() if versions}

    def versions(self, name: str) -> tuple[int, ...]:
        """See LutFolder.versions."""
        return _versions(self.root / name)

    def newest(self, name: str, *, least: int = 0) -> int | None:
        """See LutFolder.newest. Without hard links a publisher claims a number by an empty file, and fills it."""
        home = path = self.root / name
        for _ in range(int(_CLAIM_WAIT_S / _CLAIM_POLL_S)):
            claimed = _versions(home, claimed=True)
            if not claimed:
                return None
            path = self.root / key(name, claimed[-1])
            if claimed[-1] in _versions(home):
                return claimed[-1]
            self.files.sleep(_CLAIM_POLL_S)
        raise LutNotWritable(
            f"{path} is empty: another publisher claimed that number and did not finish within {_CLAIM_WAIT_S:g} s. "
            f"If no other lutbuilder is running, remove it and repeat the command: rm {path}"
        )

    def read(self, name: str, version: int, part: LutPart = "table") -> bytes:
        """See LutFolder.read."""
        return read_file(self.root / key(name, version, part))

    def has(self, name: str, version: int, part: LutPart = "table") -> bool:
        """See LutFolder.has."""
        return (self.root / key(name, version, part)).exists()

    def create(self, name: str, version: int, raw: bytes, part: LutPart = "table") -> bool:
        """See LutFolder.create."""
        path, files = self.root / key(name, version, part), self.files
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


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises LutNotFound, or LutError for one that cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise LutNotFound(f"no file {path}; see what there is: lutbuilder luts list") from error
    except OSError as error:
        raise LutError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error


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
    # Readers and publishers take an empty file for a claim (`_versions`, `newest`).
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
            f"--luts DIR. {KEPT}"
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
