"""Throttling as the kernel counts it, for the loop that times: cheap to read, and None where nothing counts it.

Linux counts thermal events by core and by package on Intel CPUs (drivers/thermal/intel/therm_throt.c). CPUs of other
makers and virtual machines have no such files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MOST_CORES = 8  # a reading costs about 1 us a file; beyond, the package's own counter speaks for its cores
_CPU = "sys/devices/system/cpu"
_BYTES = 32  # more than a 64-bit count takes


@dataclass(frozen=True, slots=True)
class ThrottleCounters:
    """Open counters of the cores this process may use. `read` gives their texts: equal means nothing happened."""

    handles: tuple[int, ...]

    def read(self) -> bytes:
        """Return all counts as one text; one that cannot be read any more (its core was switched off) is left out."""
        found = b""
        for handle in self.handles:
            with suppress(OSError):
                found += os.pread(handle, _BYTES, 0)
        return found

    def close(self) -> None:
        """Close the files; reading afterwards is an error of the caller."""
        for handle in self.handles:
            os.close(handle)


def throttle_counters(sysroot: Path = Path("/"), *, cpus: Sequence[int] | None = None) -> ThrottleCounters | None:
    """Return the counters of `cpus` (by default those this process may use) below `sysroot`; None if it has none."""
    if cpus is None:
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    names = [f"cpu{n}/thermal_throttle/core_throttle_count" for n in cpus]
    if len(cpus) > _MOST_CORES:
        packages = {_text(sysroot / _CPU / f"cpu{n}/topology/physical_package_id"): n for n in reversed(cpus)}
        names = [f"cpu{n}/thermal_throttle/package_throttle_count" for n in sorted(packages.values())]
    handles: list[int] = []
    for name in names:
        with suppress(OSError):
            handles.append(os.open(sysroot / _CPU / name, os.O_RDONLY | os.O_CLOEXEC))
    return ThrottleCounters(tuple(handles)) if handles else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
