"""`lutbuilder-agent run|doctor`: parse, call one function, print. argparse only: a phone installs nothing for it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lutbuilder_agent import __version__
from lutbuilder_agent.errors import LutbuilderError, RuntimeUnavailable, SpecError
from lutbuilder_agent.fingerprint import Survey, conditions, cpu_list, survey
from lutbuilder_agent.orphan import die_with_parent
from lutbuilder_agent.records import Conditions, RuntimeReport

_RUN_EXAMPLES = """\
examples:
  lutbuilder-agent run --coordinator 192.168.1.20:7070
      measure for that coordinator until Ctrl-C
  lutbuilder-agent run --coordinator lab:7070 --name bench-pi --cores 2-3
      under a name of your own, on two cores only
  lutbuilder-agent run --coordinator 127.0.0.1:7070 --exit-when-idle --give-up-after 60
      for scripts: end when there is no work, or when nobody answers for a minute
"""
_DOCTOR_EXAMPLES = """\
examples:
  lutbuilder-agent doctor
      what this device is, how it is set, and which runtimes run here
  lutbuilder-agent doctor --json > doctor.json
      the same, fit for a script or an issue
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; an error is one line on stderr, never a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "doctor":
            return _doctor(as_json=arguments.json)
        return _run(arguments)
    except LutbuilderError as error:
        print(f"lutbuilder-agent: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:  # before the agent has its own handlers
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lutbuilder-agent",
        description="Runs beside the device: leases ops from a lutbuilder coordinator, times them, reports each sample",
    )
    parser.add_argument("--version", action="version", version=f"lutbuilder-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|doctor")

    raw = argparse.RawDescriptionHelpFormatter
    run = commands.add_parser("run", help="measure for a coordinator", epilog=_RUN_EXAMPLES, formatter_class=raw)
    run.add_argument("--coordinator", required=True, type=_address, metavar="HOST:PORT", help="where it listens")
    run.add_argument("--name", type=_name, help="this agent's name, the same at every start (default: host and device)")
    run.add_argument("--cache-dir", type=Path, metavar="FOLDER", help="artifacts, this agent's alone")
    run.add_argument("--spool-dir", type=Path, metavar="FOLDER", help="rounds not acknowledged yet, this agent's alone")
    run.add_argument(
        "--cores", default="none", metavar="MASK|none", help="CPUs to use: 0x70, 4-6 or 0,2 (default: none, no pinning)"
    )
    run.add_argument(
        "--runtimes", type=_names, metavar="NAME[,NAME]", help="probe and offer these runtimes only (default: all)"
    )
    run.add_argument("--exit-when-idle", action="store_true", help="end with status 0 when there is no work")
    run.add_argument(
        "--give-up-after", type=_seconds, metavar="SECONDS", help="end when nobody answers so long (default: never)"
    )
    run.add_argument("--log-json", action="store_true", help="one JSON object a log line")
    # For a program that starts an agent of its own: PID is that program's. On Linux the thread that starts the agent
    # has to live as long as the agent is wanted: the kernel takes the end of that thread for the end of the parent.
    run.add_argument("--die-with-parent", type=int, metavar="PID", help=argparse.SUPPRESS)

    doctor = commands.add_parser(
        "doctor", help="what this device is and which runtimes run", epilog=_DOCTOR_EXAMPLES, formatter_class=raw
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


# --- run


def _run(arguments: argparse.Namespace) -> int:
    from lutbuilder_agent.session import Agent, Client, StopRequested

    if arguments.die_with_parent is not None:
        die_with_parent(arguments.die_with_parent, signal.SIGTERM)
    _log_to_stderr(as_json=arguments.log_json)
    pin(parse_cores(arguments.cores))
    seen = survey()
    name = arguments.name or default_name(platform.node(), seen.fingerprint.device)
    folders = state_folders(name)

    def connect() -> Client:
        from lutbuilder_agent.wire.client import CoordinatorClient

        return CoordinatorClient(arguments.coordinator)

    agent = Agent(
        connect,
        name=name,
        cache_dir=arguments.cache_dir or folders.cache,
        spool_dir=arguments.spool_dir or folders.spool,
        fingerprint=seen.fingerprint,
        runtimes=_probe(arguments.runtimes),
        exit_when_idle=arguments.exit_when_idle,
        give_up_after_s=arguments.give_up_after,
    )
    try:
        with _handling_signals(agent.stop):
            return agent.run()
    except StopRequested as stop:  # a second signal, while the first was being obeyed
        return 128 + stop.signum


def parse_cores(text: str) -> tuple[int, ...] | None:
    """Return the CPUs of "0x70", "4-6" or "0,2", None for "none". Raises SpecError for anything else."""
    if text.lower() == "none":
        return None
    if not text.lower().startswith("0x"):
        return cpu_list(text)
    try:
        mask = int(text, 16)
    except ValueError:
        mask = 0
    cpus = tuple(bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    if not cpus:
        raise SpecError(f"not a CPU mask: {text!r}; write for example 0x70, 4-6 or none")
    return cpus


def pin(cpus: tuple[int, ...] | None) -> None:
    """Let this process and the workers it starts use `cpus` only. Raises SpecError for CPUs that are not there."""
    if cpus is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise SpecError(f"{platform.system()} cannot pin a process to CPUs; run without --cores")
    allowed = os.sched_getaffinity(0)
    if not allowed.issuperset(cpus):
        missing = ", ".join(str(cpu) for cpu in cpus if cpu not in allowed)
        raise SpecError(
            f"--cores: CPU {missing} is not available here; there are {', '.join(map(str, sorted(allowed)))}"
        )
    os.sched_setaffinity(0, cpus)


def default_name(host: str, device: str) -> str:
    """Return a name that is the same at every start: host and device.

    >>> default_name("Lab-PC.local", "amd-epyc-25-17")
    'lab-pc-amd-epyc-25-17'
    """
    host = re.sub(r"[^a-z0-9]+", "-", host.partition(".")[0].lower()).strip("-")[:48].strip("-")
    return "-".join(part for part in (host, device) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where an agent of one name keeps artifacts and unacknowledged rounds."""

    cache: Path
    spool: Path


def state_folders(name: str) -> Folders:
    """Return the folders of the agent `name`: under $LUTBUILDER_AGENT_STATE, else where XDG says, else under home."""
    state = os.environ.get("LUTBUILDER_AGENT_STATE")
    if state:
        return Folders(cache=Path(state) / "cache" / name, spool=Path(state) / "spool" / name)
    cache = os.environ.get("XDG_CACHE_HOME") or _home() / ".cache"
    kept = os.environ.get("XDG_STATE_HOME") or _home() / ".local" / "state"
    return Folders(
        cache=Path(cache) / "lutbuilder-agent" / "artifacts" / name,
        spool=Path(kept) / "lutbuilder-agent" / "spool" / name,
    )


def _home() -> Path:
    """Return the user's home, also where HOME is empty or the user has none (containers)."""
    if os.environ.get("HOME") != "":
        try:
            return Path.home()
        except RuntimeError:  # no HOME, and no entry in the user database
            pass
    return Path(tempfile.gettempdir()) / f"lutbuilder-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def _probe(names: tuple[str, ...] | None) -> tuple[RuntimeReport, ...]:
    from lutbuilder_agent.runtimes import RUNTIMES
    from lutbuilder_agent.runtimes.probe import probe_all

    return probe_all(RUNTIMES if names is None else names)


@contextmanager
def _handling_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and a closed terminal call `stop`; put the old handlers back afterwards."""
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)  # Windows has no SIGHUP
        # What is ignored stays ignored: nohup, or a shell's background, said so.
        if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, lambda number, _frame: stop(number))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _log_to_stderr(*, as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("lutbuilder_agent")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time_s": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line)


# --- doctor


def _doctor(*, as_json: bool) -> int:
    from lutbuilder_agent.timing import timer_facts

    seen, now, runtimes = survey(), conditions(), _probe(None)
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
    yield f"  artifacts          {folders.cache}"
    yield f"  spool              {folders.spool} ({_waiting(folders.spool)} reports wait)"
    governor = dict(seen.fingerprint.facts).get("clock.governor", "performance")
    if governor != "performance":
        yield f"hint: the clock governor is {governor}; steadier: sudo cpupower frequency-set -g performance"


def _waiting(spool: Path) -> int:
    return len(list(spool.glob("*.report")))


# --- argument types: argparse prints what they raise


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, for example 192.168.1.20:7070")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", text):
        raise argparse.ArgumentTypeError(f"{text!r} may hold letters, digits and ._+- only, the first no sign")
    return text


def _names(text: str) -> tuple[str, ...]:
    from lutbuilder_agent.errors import UnknownName
    from lutbuilder_agent.runtimes import entry

    try:
        return tuple(dict.fromkeys(entry(name.strip())[0] for name in text.split(",")))
    except UnknownName as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e7:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
