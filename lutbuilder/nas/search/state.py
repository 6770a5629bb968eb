"""The state file of a search: written whole or not at all, read back by the same search only.

A numpy archive without pickles: arrays, and a text that says which search they are of and where it stands. What a
process that was killed leaves behind is the last state that was complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import uuid
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder_agent.errors import SpecError

_FORMAT = 1
_TEXT = "search"
_DAMAGE = (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError)

Identity = Mapping[str, str | int | float]  # what makes two searches the same one, by name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Saved:
    """Where a search stands after `generation`: its random generator and its arrays by name."""

    generation: int
    rng: Mapping[str, Any]  # BitGenerator.state
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """Where a search keeps itself: every so many generations, or seconds if those are over first, and when it ends.

    It ends by an exception too (Ctrl-C, a user's function that raises); a process that is killed loses what it did
    since the last writing. A search that finds its own state there continues it. `clock` gives seconds.
    """

    path: Path
    every: int = 10
    every_s: float = 30.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.every < 1 or not self.every_s >= 0:
            raise SpecError(
                f"a state is written every 1 or more generations, and after 0 or more seconds; got {self.every}, "
                f"{self.every_s:g} s"
            )

    def due(self, generation: int, *, since_s: float) -> bool:
        """Say whether the state after `generation` is to be written, the last one having been so at `since_s`."""
        return generation % self.every == 0 or self.clock() - since_s >= self.every_s

    def read(self, identity: Identity) -> Saved | None:
        """Return the state, None if there is no file yet.

        Raises SpecError for a damaged file, and for that of another search, naming the first thing that differs.
        """
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            text = json.loads(arrays.pop(_TEXT).tobytes())
            if text["format"] != _FORMAT:
                raise ValueError(f"format {text['format']}")
            told: dict[str, object] = text["identity"]
            saved = Saved(generation=int(text["generation"]), rng=text["rng"], arrays=arrays)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SpecError(
                f"cannot read the state of the search from {self.path}: {error.strerror or error}; name another file"
            ) from error
        except _DAMAGE as error:
            raise SpecError(
                f"{self.path} cannot be read as the state of a search: {error}; remove it to start anew, or name "
                "another file"
            ) from error
        for name in {**told, **identity}:
            if told.get(name) != identity.get(name):
                raise SpecError(
                    f"{self.path} is the state of another search: its {name} is {told.get(name)!r}, this one's "
                    f"{identity.get(name)!r}. Name another file, or remove this one to start anew"
                )
        return saved

    def generation(self) -> int | None:
        """Return the generation the file holds, of whatever search; None if there is no file or it cannot be read."""
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as archive:
                return int(json.loads(archive[_TEXT].tobytes())["generation"])
        except (OSError, *_DAMAGE):
            return None

    def write(self, identity: Identity, saved: Saved) -> None:
        """Replace the file in one step. Raises SpecError if it cannot be written; the state before stays then."""
        text = {
            "format": _FORMAT,
            "identity": dict(identity),
            "generation": saved.generation,
            "rng": saved.rng,
        }
        body = io.BytesIO()
        arrays: dict[str, Any] = {**saved.arrays, _TEXT: np.frombuffer(json.dumps(text).encode(), np.uint8)}
        np.savez(body, **arrays)
        scratch = self.path.with_name(f".{self.path.name}-{uuid.uuid4().hex}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with scratch.open("xb") as file:
                    file.write(body.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                scratch.replace(self.path)
            finally:
                scratch.unlink(missing_ok=True)
        except OSError as error:
            raise SpecError(
                f"cannot write the state of the search to {self.path}: {error.strerror or error}; name another file"
            ) from error


def digest(*arrays: NDArray[Any]) -> str:
    """Return 16 hex digits over the arrays' bytes."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]
