"""What a search knows: the user's accuracy function, called on whole batches, and every arch it was asked about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.compiled import Floats
from lutbuilder.nas.search.genes import Archs, encoding_dtype
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import ShapeError, SpecError

# Encodings (N, n_variables) -> a figure each, (N,): higher is better. Called once a generation.
Accuracy = Callable[[NDArray[np.int16]], Any]


def score(accuracy: Accuracy, archs: Archs) -> Floats:
    """Return what `accuracy` says of each arch, shape (N,); it gets a copy, which it may change.

    Raises ShapeError unless it gives one number an arch, SpecError naming the arch where that is not finite, and for
    an exception of its own one that says which function and how many archs.
    """
    name = accuracy_name(accuracy)
    try:
        said = accuracy(archs.astype(np.int16))
    except Exception as error:  # user's code: whatever it raises is told with what it was asked
        raise SpecError(
            f"accuracy function {name} raised {type(error).__name__}: {error} (asked about {len(archs)} archs)"
        ) from error
    try:
        scores = np.asarray(said, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"accuracy function {name} gives no numbers: {error}") from error
    if scores.shape != (len(archs),):
        raise ShapeError(f"accuracy function {name} gives shape {scores.shape} for {len(archs)} archs, not one each")
    if not np.isfinite(scores).all():
        worst = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise SpecError(f"accuracy function {name} gives {scores[worst]} for arch {archs[worst].tolist()}")
    return scores


class Archive:
    """Every arch a search has scored, in the order it did, with score and costs. An arch is scored once.

    Not safe from several threads.
    """

    def __init__(self, space: SearchSpace, n_limits: int) -> None:
        self._archs: list[Archs] = [np.empty((0, len(space.sizes)), dtype=encoding_dtype(space))]
        self._scores: list[Floats] = [np.empty(0)]
        self._costs: list[Floats] = [np.empty((n_limits, 0))]
        self._met: set[bytes] = set()
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def archs(self) -> Archs:
        """Encodings, shape (n, n_variables)."""
        return np.concatenate(self._archs)

    @property
    def scores(self) -> Floats:
        """What the accuracy function said, shape (n,)."""
        return np.concatenate(self._scores)

    @property
    def costs(self) -> Floats:
        """Predicted costs, shape (n_limits, n)."""
        return np.concatenate(self._costs, axis=1)

    def claim(self, archs: Archs, at_most: int) -> list[int]:
        """Return the rows of the first `at_most` archs that were never met before, and count those as met."""
        raw = np.ascontiguousarray(archs).tobytes()
        width = archs.shape[1] * archs.itemsize
        rows: list[int] = []
        for row in range(len(archs)):
            if len(rows) == at_most:
                break
            key = raw[row * width : (row + 1) * width]
            if key not in self._met:
                self._met.add(key)
                rows.append(row)
        return rows

    def add(self, archs: Archs, scores: Floats, costs: Floats) -> None:
        """Keep archs that were claimed; shapes (n, n_variables), (n,), (n_limits, n)."""
        self._archs.append(archs)
        self._scores.append(scores)
        self._costs.append(costs)
        self._n += len(archs)

    def restore(self, archs: Archs, scores: Floats, costs: Floats) -> None:
        """Take back what a state file kept."""
        self.claim(archs, len(archs))
        self.add(archs, scores, costs)


def accuracy_name(accuracy: Accuracy) -> str:
    """Return what an accuracy function is called, for messages and state files."""
    named = accuracy if hasattr(accuracy, "__qualname__") else type(accuracy)
    return f"{named.__module__}:{named.__qualname__}"
