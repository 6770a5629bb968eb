"""What this device is (`fingerprint`: stable facts that name a LUT) and how it is set right now (`conditions`).

System files are read below `sysroot` only, so a tree of plain files stands in for a device in tests. psutil is not
needed: it does not install on every phone, and what it would add is in the same files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lutbuilder_agent.fingerprint.linux import (
    ProcessFacts,
    Survey,
    Unread,
    cpu_list,
    process_facts,
    read_conditions,
    read_text,
    survey,
)
from lutbuilder_agent.records import Conditions, Fingerprint

__all__ = ["ProcessFacts", "Survey", "Unread", "conditions", "cpu_list", "fingerprint", "process_facts", "survey"]


def fingerprint(sysroot: Path = Path("/"), *, process: ProcessFacts | None = None) -> Fingerprint:
    """Return the stable facts of the device below `sysroot`; the same on every call until somebody changes the device.

    Holds no host name, no path, no load and no current clock. What cannot be read is absent; `survey` says why.
    """
    return survey(sysroot, process=process).fingerprint


def conditions(sysroot: Path = Path("/"), *, clock_ns: Callable[[], int] = time.perf_counter_ns) -> Conditions:
    """Return load, clock, heat, throttling and stolen time at this moment; None where it cannot be read, never 0."""
    return read_conditions(sysroot, monotonic_ns=clock_ns(), read=read_text)
