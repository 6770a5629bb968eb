"""In which ways rows may be off: what carriers and calibrations look for between ops alone and ops in networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutbuilder.lower import lower
from lutbuilder.op import OpSpec
from lutbuilder.stats.calibrate import Pattern

_OCTAVES = 2.0  # map sizes so far apart have little to do with each other
_TYPICAL_SD = 0.02
_TYPICAL_TRANSFER_SD = 0.05  # two devices of a class differ by more than a device from itself
_ENDS = ("conv", "logits", "linear", "global_pool", "max_pool")

Floats = NDArray[np.float64]


def patterns(
    ops: Sequence[OpSpec], prior_ms: Floats, *, typical_sd: float = _TYPICAL_SD, ends: bool = False
) -> tuple[Pattern, ...]:
    """Return the ways in which ops cost more or less inside networks than their rows say.

    `ops` are the first terms, call overheads follow. Each op on its own; all together; all by the same time (what an
    engine does between two ops); by weights read per millisecond, which a network finds in a farther cache than a loop
    does; by the size of the map, near sizes alike. With `ends`, also the ops before and after the stages, together:
    what a network costs more than its ops whatever its length.
    """
    n, values = len(ops), prior_ms[: len(ops)]
    sizes = np.log2([op.height * op.width for op in ops]) / 2.0
    levels, level = np.unique(sizes, return_inverse=True)
    near = np.exp(-0.5 * ((levels[:, None] - levels) / _OCTAVES) ** 2)
    eigenvalues, vectors = np.linalg.eigh(near)
    by_map = (vectors * np.sqrt(np.maximum(eigenvalues, 0.0)))[level]
    weights = np.log2([(lower(op).params + 1.0) / value for op, value in zip(ops, values.tolist(), strict=True)])
    spread = float(weights.std())
    columns = {
        "boundary": (np.median(values) / values)[:, None],
        "weights": ((weights - weights.mean()) / spread if spread > 0 else np.zeros(n))[:, None],
        "map": by_map,
    }
    if ends:
        columns["ends"] = np.array([[float(op.kind in _ENDS)] for op in ops])
    return (
        Pattern(name="op", factors=np.ones(len(prior_ms)), typical_sd=typical_sd),
        Pattern(name="all", factors=np.ones((len(prior_ms), 1)), typical_sd=typical_sd),
        *(
            Pattern(name=name, factors=_padded(factors, len(prior_ms)), typical_sd=typical_sd)
            for name, factors in columns.items()
        ),
    )


def transfer_patterns(ops: Sequence[OpSpec], prior_ms: Floats) -> tuple[Pattern, ...]:
    """Return the ways in which another device's rows are off: a free scale, and the same patterns, wider; by kernel."""
    kinds = [(op.kind, op.kernel) for op in ops]
    groups = list(dict.fromkeys(kinds))
    by_kind = np.array([[float(kind == group) for group in groups] for kind in kinds])
    wide = patterns(ops, prior_ms, typical_sd=_TYPICAL_TRANSFER_SD)
    return (
        *(replace(pattern, sd=1.0) if pattern.name == "all" else pattern for pattern in wide),
        Pattern(name="kernel", factors=_padded(by_kind, len(prior_ms)), typical_sd=_TYPICAL_TRANSFER_SD),
    )


def _padded(factors: Floats, n_terms: int) -> Floats:
    return np.vstack([factors, np.zeros((n_terms - len(factors), factors.shape[1]))])
