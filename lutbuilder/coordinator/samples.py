"""One visit's raw samples as bytes for the store, and the two numbers the statistics read of them: pure functions."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.records import Timing

# Byte 0: bytes per value, 4 or 8; then the counts of warm-up calls, samples and preempted positions.
_HEAD = struct.Struct("<BIII")
_P90 = 0.9


def pack(timing: Timing) -> bytes:
    """Return warm-up calls, samples and preempted positions as little-endian integers; 4 bytes each below 4.29 s.

    Compression is not worth it: 200 samples are 0.8 KB, and their low bits are noise.
    """
    values = (*timing.warmup_ns, *timing.samples_ns, *timing.preempted)
    width = 4 if max(values) < 1 << 32 else 8
    head = _HEAD.pack(width, len(timing.warmup_ns), len(timing.samples_ns), len(timing.preempted))
    return head + np.array(values, dtype=f"<u{width}").tobytes()


def unpack(raw: bytes) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return (warmup_ns, samples_ns, preempted) of what `pack` wrote. Raises StoreError for anything else."""
    try:
        width, n_warmup, n_samples, n_preempted = _HEAD.unpack_from(raw)
        values = np.frombuffer(raw, dtype={4: "<u4", 8: "<u8"}[width], offset=_HEAD.size).tolist()
    except (struct.error, KeyError, ValueError) as error:
        raise StoreError(f"not the samples of a visit: {error}") from error
    if len(values) != n_warmup + n_samples + n_preempted:
        raise StoreError(f"not the samples of a visit: {len(values)} values, not {n_warmup + n_samples + n_preempted}")
    return (
        tuple(values[:n_warmup]),
        tuple(values[n_warmup : n_warmup + n_samples]),
        tuple(values[n_warmup + n_samples :]),
    )


def summary(samples_ns: Sequence[int], preempted: Sequence[int]) -> tuple[float, float]:
    """Return (median, 90th percentile) in ns of the calls that kept their core; of all calls if none did.

    Percentiles interpolate linearly, as numpy's do; 20 samples are too few to be worth a trip into numpy.
    """
    lost = frozenset(preempted)
    kept = [ns for number, ns in enumerate(samples_ns) if number not in lost] if lost else samples_ns
    ordered = sorted(kept or samples_ns)
    return _quantile(ordered, 0.5), _quantile(ordered, _P90)


def _quantile(ordered: Sequence[int], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
