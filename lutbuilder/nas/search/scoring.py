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

    What it gives are views of what was there at that moment; nothing that was added ever changes. Not safe from
    several threads.
    """

    def __init__(self, space: SearchSpace, n_limits: int) -> None:
        self._archs: Archs = np.empty((0, len(space.sizes)), dtype=encoding_dtype(space))
        self._scores: Floats = np.empty(0)
        self._costs: Floats = np.empty((0, n_limits))
        self._met: set[bytes] = set()
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def archs(self) -> Archs:
        """Encodings, shape (n, n_variables)."""
        return self._archs[: self._n]

    @property
    def scores(self) -> Floats:
        """What the accuracy function said, shape (n,)."""
        return self._scores[: self._n]

    @property
    def costs(self) -> Floats:
        """Predicted costs, shape (n_limits, n)."""
        costs: Floats = self._costs[: self._n].T
        return costs

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
        start, self._n = self._n, self._n + len(archs)
        if self._n > len(self._archs):  # twice as long each time, so that adding takes as long as what is added
            spare = max(self._n, 2 * start) - start
            self._archs = np.concatenate([self._archs[:start], np.empty((spare, archs.shape[1]), self._archs.dtype)])
            self._scores = np.concatenate([self._scores[:start], np.empty(spare)])
            self._costs = np.concatenate([self._costs[:start], np.empty((spare, len(costs)))])
        self._archs[start : self._n] = archs
        self._scores[start : self._n] = scores
        self._costs[start : self._n] = costs.T

    def restore(self, archs: Archs, scores: Floats, costs: Floats) -> None:
        """Take back what a state file kept."""
        self.claim(archs, len(archs))
        self.add(archs, scores, costs)


def accuracy_name(accuracy: Accuracy) -> str:
    """Return what an accuracy function is called, for messages and state files."""
    named = accuracy if hasattr(accuracy, "__qualname__") else type(accuracy)
    return f"{named.__module__}:{named.__qualname__}"
