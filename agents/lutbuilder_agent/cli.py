"""`lutbuilder-agent run|join|doctor`: parse, call one function, print. argparse only: nothing to install for it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lutbuilder_agent import __version__
from lutbuilder_agent.cache import DEFAULT_QUOTA_BYTES
from lutbuilder_agent.errors import LutbuilderError, SpecError
from lutbuilder_agent.fingerprint import cpu_list, survey
from lutbuilder_agent.orphan import die_with_parent
from lutbuilder_agent.places import clock_domain, default_name, state_folders
from lutbuilder_agent.records import RuntimeReport
from lutbuilder_agent.spool import DEFAULT_MAX_BYTES

_RUN_EXAMPLES = """\
examples:
  lutbuilder-agent run --coordinator 192.168.1.20:7070
      measure for that coordinator until Ctrl-C; SIGTERM lets the round in hand finish first
  lutbuilder-agent run --coordinator lab:7070 --name bench-pi --cores 2-3
      under a name of your own, on two cores only
  lutbuilder-agent run --coordinator 127.0.0.1:7070 --exit-when-idle --give-up-after 60
      for scripts: end when there is no work, or when nobody answers for a minute
  lutbuilder-agent run --coordinator lab:7070 --spool-quota 200M --cache-quota 500M
      on a device with a small disk
"""
_JOIN_EXAMPLES = """\
examples:
  lutbuilder-agent join lab:7072 --token ABCD-EFGH --ca sha256:0123abcd
      the line that `lutbuilder security token` prints where the coordinator runs, pasted here
  lutbuilder-agent join lab:7072 --token ABCD-EFGH --ca sha256:0123abcd --name bench-pi
      under a name of your own: run --name bench-pi afterwards
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
            from lutbuilder_agent.doctor import doctor

            return doctor(_probe(None), as_json=arguments.json)
        return _join(arguments) if arguments.command == "join" else _run(arguments)
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|join|doctor")

    raw = argparse.RawDescriptionHelpFormatter
    run = commands.add_parser("run", help="measure for a coordinator", epilog=_RUN_EXAMPLES, formatter_class=raw)
    run.add_argument("--coordinator", required=True, type=_address, metavar="HOST:PORT", help="where it listens")
    run.add_argument("--name", type=_name, help="this agent's name, the same at every start (default: host and device)")
    run.add_argument("--cache-dir", type=Path, metavar="FOLDER", help="artifacts, this agent's alone")
    run.add_argument(
        "--cache-quota",
        type=_size,
        metavar="SIZE",
        default=DEFAULT_QUOTA_BYTES,
        help="its most, e.g. 500M (default: 2G)",
    )
    run.add_argument("--spool-dir", type=Path, metavar="FOLDER", help="rounds not acknowledged yet, this agent's alone")
    run.add_argument(
        "--spool-quota",
        type=_size,
        metavar="SIZE",
        default=DEFAULT_MAX_BYTES,
        help="its most, e.g. 200M; measuring stops while it is full (default: 1G)",
    )
    run.add_argument(
        "--clock-domain",
        type=_name,
        metavar="NAME",
        help="agents that share clocks or power, and so take turns (default: all agents of this host)",
    )
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
    run.add_argument(
        "--insecure-plaintext",
        action="store_true",
        help="no encryption, off loopback too: anybody on the way can read and change everything",
    )
    # For a program that starts an agent of its own: PID is that program's. On Linux the thread that starts the agent
    # has to live as long as the agent is wanted: the kernel takes the end of that thread for the end of the parent.
    run.add_argument("--die-with-parent", type=int, metavar="PID", help=argparse.SUPPRESS)

    join = commands.add_parser("join", help="become known to a coordinator", epilog=_JOIN_EXAMPLES, formatter_class=raw)
    join.add_argument("address", type=_address, metavar="HOST:PORT", help="where it lets agents join")
    join.add_argument("--token", required=True, help="good for a short time, for so many agents; -: read it from stdin")
    join.add_argument("--ca", required=True, metavar="sha256:HEX", help="which coordinator it has to be")
    join.add_argument("--name", type=_name, help="this agent's name (default: host and device)")
    join.add_argument(
        "--coordinator",
        type=_address,
        metavar="HOST:PORT",
        help="where it is reached afterwards, if that is not the same host",
    )

    doctor = commands.add_parser(
        "doctor", help="what this device is and which runtimes run", epilog=_DOCTOR_EXAMPLES, formatter_class=raw
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


# --- join


def _join(arguments: argparse.Namespace) -> int:
    from lutbuilder_agent import trust

    _log_to_stderr(as_json=False)
    name = arguments.name or default_name(platform.node(), survey().fingerprint.device)
    # Every user of this machine sees a command line.
    token = sys.stdin.readline().strip() if arguments.token == "-" else arguments.token
    identity = trust.join(
        arguments.address, token=token, ca=arguments.ca, name=name, coordinator=arguments.coordinator or ""
    )
    until = time.strftime("%Y-%m-%d", time.gmtime(identity.expires_s))
    print(f"joined as {identity.name}; the certificate is good until {until} and renews itself while the agent runs")
    print(f"lutbuilder-agent run --coordinator {identity.address} --name {identity.name}")
    return 0


# --- run


def _run(arguments: argparse.Namespace) -> int:
    from lutbuilder_agent import trust
    from lutbuilder_agent.link import Client
    from lutbuilder_agent.session import Agent
    from lutbuilder_agent.stopping import StopRequested

    if arguments.die_with_parent is not None:
        die_with_parent(arguments.die_with_parent, signal.SIGTERM)
    _log_to_stderr(as_json=arguments.log_json)
    pin(parse_cores(arguments.cores))
    address: str = arguments.coordinator
    keeper = trust.approach(address, name=arguments.name or "", insecure_plaintext=arguments.insecure_plaintext)
    seen = survey()
    joined_as = "" if keeper is None else keeper.identity.name
    name = arguments.name or joined_as or default_name(platform.node(), seen.fingerprint.device)
    folders = state_folders(name)

    def connect() -> Client:
        from lutbuilder_agent.wire.client import CoordinatorClient

        if keeper is None:
            return CoordinatorClient(address, explain=lambda: trust.explain(address))
        credentials = keeper.credentials()
        return CoordinatorClient(
            address, credentials=credentials, explain=lambda: trust.explain(address, keeper.identity)
        )

    agent = Agent(
        connect,
        name=name,
        cache_dir=arguments.cache_dir or folders.cache,
        spool_dir=arguments.spool_dir or folders.spool,
        cache_quota_bytes=arguments.cache_quota,
        spool_quota_bytes=arguments.spool_quota,
        clock_domain=arguments.clock_domain or clock_domain(),
        fingerprint=seen.fingerprint,
        runtimes=_probe(arguments.runtimes),
        exit_when_idle=arguments.exit_when_idle,
        give_up_after_s=arguments.give_up_after,
    )
    # Whoever started an agent of its own and ends, or ends it, does not wait for a round.
    on_term = agent.drain if arguments.die_with_parent is None else agent.stop
    try:
        with _handling_signals({"SIGINT": agent.stop, "SIGTERM": on_term, "SIGHUP": agent.stop}):
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


def _probe(names: tuple[str, ...] | None) -> tuple[RuntimeReport, ...]:
    from lutbuilder_agent.runtimes import RUNTIMES
    from lutbuilder_agent.runtimes.probe import probe_all

    return probe_all(RUNTIMES if names is None else names)


@contextmanager
def _handling_signals(handlers: Mapping[str, Callable[[int], None]]) -> Iterator[None]:
    """Have signals call their handlers, by name; put the old handlers back afterwards."""
    before = {}
    for name, handle in handlers.items():
        signum = getattr(signal, name, None)  # Windows has no SIGHUP
        # What is ignored stays ignored: nohup, or a shell's background, said so.
        if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, _handler(handle))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _handler(handle: Callable[[int], None]) -> Callable[[int, object], None]:
    return lambda signum, frame: handle(signum)


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


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,12})([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    n_bytes = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()] if match else 0
    if not 1 << 20 <= n_bytes <= 1 << 50:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of at least 1M, for example 500M or 2G")
    return n_bytes
