"""`lutbuilder-agent doctor`: what this device is, how it is set, and which runtimes run here."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from lutbuilder_agent import __version__
from lutbuilder_agent.errors import RuntimeUnavailable
from lutbuilder_agent.fingerprint import Survey, conditions, survey
from lutbuilder_agent.places import Folders, clock_domain, default_name, state_folders
from lutbuilder_agent.records import Conditions, RuntimeReport


def doctor(runtimes: Sequence[RuntimeReport], *, as_json: bool) -> int:
    """Print the record of this device and return the exit status: not 0 if no engine runs here."""
    from lutbuilder_agent.timing import timer_facts

    seen, now = survey(), conditions()
    folders = state_folders(default_name(platform.node(), seen.fingerprint.device))
    timer = timer_facts()
    if as_json:
        facts = {"overhead_ns": timer.overhead_ns, "quantum_ns": timer.quantum_ns}
        print(json.dumps({**_doctor_json(seen, now, runtimes, folders), "timer": facts}, indent=2))
    else:
        print("\n".join(doctor_lines(seen, now, runtimes, folders)))
        print(f"timer: {timer.overhead_ns} ns a reading, steps of {timer.quantum_ns} ns")
    if any(report.available and report.name != "simulated" for report in runtimes):
        return 0
    print("no engine runs here; the usual one: pip install 'lutbuilder-agent[onnx]'", file=sys.stderr)
    return RuntimeUnavailable.exit_status


def _doctor_json(
    seen: Survey, now: Conditions, runtimes: Sequence[RuntimeReport], folders: Folders
) -> dict[str, object]:
    return {
        "agent_version": __version__,
        "device": seen.fingerprint.device,
        "env_id": seen.fingerprint.env_id,
        "facts": dict(seen.fingerprint.facts),
        "unread": [asdict(one) for one in seen.unread],
        "conditions": asdict(now),
        "runtimes": [asdict(report) for report in runtimes],
        "clock_domain": clock_domain(),
        "cache_dir": str(folders.cache),
        "spool_dir": str(folders.spool),
        "reports_waiting": _waiting(folders.spool),
    }


def doctor_lines(seen: Survey, now: Conditions, runtimes: Sequence[RuntimeReport], folders: Folders) -> Iterator[str]:
    """Yield what `doctor` prints: the record, what cannot be read and why, what to type where something is amiss."""
    yield f"lutbuilder-agent {__version__}"
    yield f"device       {seen.fingerprint.device}   environment {seen.fingerprint.env_id}"
    for name, value in seen.fingerprint.facts:
        yield f"  {name:<18} {value}"
    for one in seen.unread:
        if one.reason != "ENOENT":
            yield f"  cannot read /{one.path}: {one.reason}"
    yield "conditions"
    for label, reading, unit in (
        ("load, 1 minute", now.load_1min, ""),
        ("core clock", now.cpu_mhz, " MHz"),
        ("hottest zone", now.temperature_c, " degC"),
        ("throttle events", now.throttle_count, ""),
        ("time stolen", now.steal_s, " s"),
    ):
        yield f"  {label:<18} {'cannot be read here' if reading is None else f'{reading:g}{unit}'}"
    yield "runtimes"
    for report in runtimes:
        yield f"  {report.name:<20} {f'runs, version {report.version}' if report.available else report.reason}"
    yield "state"
    yield f"  clock domain       {clock_domain() or 'none: this agent takes turns with no other'}"
    yield f"  artifacts          {folders.cache}"
    yield f"  spool              {folders.spool} ({_waiting(folders.spool)} reports wait)"
    governor = dict(seen.fingerprint.facts).get("clock.governor", "performance")
    if governor != "performance":
        yield f"hint: the clock governor is {governor}; steadier: sudo cpupower frequency-set -g performance"


def _waiting(spool: Path) -> int:
    return len(list(spool.glob("*.report")))
