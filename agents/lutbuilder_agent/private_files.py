"""Files with secrets: written in one step, readable by their owner only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lutbuilder_agent.errors import TrustError


def write_private(path: Path, raw: bytes) -> None:
    """Replace the file by `raw` with mode 0600: a reader, or a power cut, sees the old bytes or the new ones.

    Missing folders are made, for their owner only. Raises TrustError if it cannot be written.
    """
    private_folder(path.parent)
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            Path(scratch).replace(path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise TrustError(
            f"cannot write {path}: {error.strerror or error}; free or unlock the folder, then try again"
        ) from error


def private_folder(path: Path) -> Path:
    """Make a folder, for its owner only, and return it. Raises TrustError if nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise TrustError(f"cannot make the folder {path}: {error.strerror or error}; make it writable") from error
    if not os.access(path, os.W_OK):
        raise TrustError(f"cannot write in {path}: make it writable")
    return path


def read_private(path: Path) -> bytes | None:
    """Return the bytes of a file with a secret, None if there is none.

    Raises TrustError if it cannot be read, or if every user of this machine may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & 0o007:
                raise TrustError(f"{path} holds a private key and everybody may read it: chmod 600 '{path}'")
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(f"cannot read {path}: {error.strerror or error}; chmod 600 it, or join again") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where a folder can be synced (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
