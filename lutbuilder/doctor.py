"""What `lutbuilder doctor` finds: checks as data, each with what to type where something is missing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lutbuilder.campaign.state import default_state_folder
from lutbuilder.urls import Place
from lutbuilder_agent.errors import LutbuilderError

if TYPE_CHECKING:
    from lutbuilder_agent.records import Fingerprint, RuntimeReport

State = Literal["ok", "note", "problem"]
OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. note: works without it; problem: nothing can be collected. `cure`: what to type, or ""."""

    what: str
    state: State
    found: str
    cure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """Every check, fit for an issue. `ready`: a table of this machine's CPU can be collected."""

    ready: bool
    checks: tuple[Check, ...]
    fingerprint: Fingerprint


def examine(*, luts: Place, state_dir: Path | None) -> DoctorReport:
    """Look at this machine. Probes every runtime in a process of its own, so it takes seconds; changes nothing."""
    from lutbuilder import __version__
    from lutbuilder_agent import __version__ as agent_version
    from lutbuilder_agent.fingerprint import fingerprint
    from lutbuilder_agent.records import PROTOCOL_VERSION
    from lutbuilder_agent.runtimes import RUNTIMES
    from lutbuilder_agent.runtimes.probe import probe_all

    here = fingerprint()
    versions = f"lutbuilder {__version__}, lutbuilder-agent {agent_version}, wire protocol {PROTOCOL_VERSION}"
    checks = (
        check_python(sys.version_info[:2]),
        Check(what="versions", state="ok", found=versions),
        Check(what="platform", state="ok", found=platform.platform()),
        Check(what="device", state="ok", found=f"{here.device}, environment {here.env_id}"),
        check_load(os.cpu_count(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None),
        *check_runtimes(probe_all(tuple(RUNTIMES))),
        check_luts(luts),
        check_folder("campaigns", default_state_folder(state_dir), cure="export LUTBUILDER_STATE=DIR"),
    )
    return DoctorReport(ready=all(check.state != "problem" for check in checks), checks=checks, fingerprint=here)


def check_python(version: tuple[int, ...]) -> Check:
    """Judge the interpreter, (major, minor)."""
    found = ".".join(str(part) for part in version)
    if OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return Check(what="python", state="ok", found=found)
    cure = f"use Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}"
    return Check(what="python", state="problem", found=f"{found} is not supported", cure=cure)


def check_load(cores: int | None, load_1min: float | None) -> Check:
    """Note a busy machine: timings stay right, but take more rounds to become precise."""
    if cores is None or load_1min is None:
        return Check(what="load", state="note", found="cannot be read here")
    found = f"{load_1min:.2f} on {cores} cores"
    if load_1min > 0.5 * cores:
        return Check(what="load", state="note", found=f"{found}: busy, a table will take longer")
    return Check(what="load", state="ok", found=found)


def check_runtimes(reports: Sequence[RuntimeReport]) -> tuple[Check, ...]:
    """Judge the engines: one that is missing is a note; none but the simulated one is a problem."""
    real = any(report.available and report.name != "simulated" for report in reports)
    checks = []
    for report in reports:
        if report.available:
            checks.append(Check(what=f"runtime {report.name}", state="ok", found=report.version))
        else:
            reason = report.reason or "unavailable"
            checks.append(
                Check(
                    what=f"runtime {report.name}",
                    state="note" if real else "problem",
                    found=reason,
                    cure="" if "pip install" in reason else _install_line(report.name),
                )
            )
    return tuple(checks)


def _install_line(runtime: str) -> str:
    from lutbuilder_agent.runtimes import entry

    extra = entry(runtime)[1].extra
    return f"pip install 'lutbuilder-agent[{extra}]'" if extra else ""


def check_luts(luts: Place) -> Check:
    """Say whether tables can be kept there: a folder that may be written, or a bucket that answers."""
    if isinstance(luts, Path):
        return check_folder("tables", luts, cure="--luts DIR with a folder you may write")
    from lutbuilder.lut import list_luts

    try:
        found = len(list_luts(luts))
    except LutbuilderError as error:
        return Check(what="tables", state="problem", found=str(error))
    return Check(what="tables", state="ok", found=f"{luts}: {found} tables")


def check_folder(what: str, folder: Path, *, cure: str) -> Check:
    """Say whether files can be made in `folder`, which need not exist yet. Creates nothing."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        return Check(what=what, state="problem", found=f"{folder}: {existing} is a file", cure=cure)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(what=what, state="problem", found=f"{folder}: {existing} may not be written", cure=cure)
    return Check(what=what, state="ok", found=str(folder))
