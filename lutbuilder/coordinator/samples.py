"""One visit's raw samples as bytes for the store, and the two numbers the statistics read of them: pure functions."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.records import Timing

# Byte 0: bytes per value, 4 or 8; then the counts of warm-up calls, samples and preempted positions. With _THROTTLES
# added to byte 0 a fourth count follows, of throttled positions: visits of devices without throttle counters, and all
# that were stored before there was a fourth count, have none.
_HEAD = struct.Struct("<BIII")
_FOURTH = struct.Struct("<I")
_THROTTLES = 0x10
_P90 = 0.9


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one visit; see Timing."""

    warmup_ns: tuple[int, ...]
    samples_ns: tuple[int, ...]
    preempted: tuple[int, ...]
    throttled: tuple[int, ...] | None


def pack(timing: Timing) -> bytes:
    """Return warm-up calls, samples and disturbed positions as little-endian integers; 4 bytes each below 4.29 s.

    Compression is not worth it: 200 samples are 0.8 KB, and their low bits are noise.
    """
    values = (*timing.warmup_ns, *timing.samples_ns, *timing.preempted, *(timing.throttled or ()))
    width = 4 if max(values) < 1 << 32 else 8
    counts = (len(timing.warmup_ns), len(timing.samples_ns), len(timing.preempted))
    if timing.throttled is None:
        head = _HEAD.pack(width, *counts)
    else:
        head = _HEAD.pack(width | _THROTTLES, *counts) + _FOURTH.pack(len(timing.throttled))
    return head + np.array(values, dtype=f"<u{width}").tobytes()


def unpack(raw: bytes) -> Calls:
    """Return what `pack` was given. Raises StoreError for anything else."""
    try:
        kind, *counts = _HEAD.unpack_from(raw)
        width, start, says_throttled = kind & ~_THROTTLES, _HEAD.size, bool(kind & _THROTTLES)
        if says_throttled:
            counts += _FOURTH.unpack_from(raw, start)
            start += _FOURTH.size
        values = np.frombuffer(raw, dtype={4: "<u4", 8: "<u8"}[width], offset=start).tolist()
    except (struct.error, KeyError, ValueError) as error:
        raise StoreError(f"not the samples of a visit: {error}") from error
    if len(values) != sum(counts):
        raise StoreError(f"not the samples of a visit: {len(values)} values, not {sum(counts)}")
    rest = iter(values)
    warmup_ns, samples_ns, preempted, *throttled = (tuple(islice(rest, count)) for count in counts)
    return Calls(warmup_ns, samples_ns, preempted, throttled[0] if says_throttled else None)


def summary(samples_ns: Sequence[int], disturbed: Sequence[int]) -> tuple[float, float]:
    """Return (median, 90th percentile) in ns of the calls that were not disturbed; of all calls if all were.

    Percentiles interpolate linearly, as numpy's do; 20 samples are too few to be worth a trip into numpy.
    """
    lost = frozenset(disturbed)
    kept = [ns for number, ns in enumerate(samples_ns) if number not in lost] if lost else samples_ns
    ordered = sorted(kept or samples_ns)
    return _quantile(ordered, 0.5), _quantile(ordered, _P90)


def _quantile(ordered: Sequence[int], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
