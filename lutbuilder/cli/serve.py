"""`lutbuilder serve`: a coordinator of many, until it is told to end."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, LutsFolder, StateDir, emit_json, errors_shown, say
from lutbuilder.cli.places import StoreUrl
from lutbuilder.cli.values import listen_address, whole

if TYPE_CHECKING:
    from rich.live import Live

    from lutbuilder.control.serve import Serving

_LOGGERS = ("lutbuilder", "lutbuilder_agent")
_STATUS_EVERY_S = 2.0


def serve(
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where agents and people dial in; port 0: any free one.")
    ] = "127.0.0.1:7070",
    store: StoreUrl = None,
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where Prometheus may look, in plaintext; off: nowhere.")
    ] = "127.0.0.1:7071",
    join: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where strangers with a token join; none: nowhere [default: the host of --listen, port 7072].",
            show_default=False,
        ),
    ] = None,
    advertise: Annotated[
        str,
        typer.Option(metavar="HOST", help="The name others know this machine by, for certificates and join lines."),
    ] = "",
    tls_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="A further name or address for the certificate; may be given several times.",
            show_default=False,
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="TLS on loopback, too; anywhere else it is always on.")] = False,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure-plaintext-to-anyone",
            help="No TLS and no certificates: whoever reaches the port may do everything. For a network of your own.",
        ),
    ] = False,
    jobs: Annotated[int, typer.Option(help="Jobs that run at once.")] = 16,
    luts: LutsFolder = Path("luts"),
    state_dir: StateDir = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a log line.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Say where it listens as one JSON object on stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Hold a fleet: listen to agents and to people, and run their jobs until SIGTERM or Ctrl-C.

    Prints the address on stdout once it listens, then log lines on stderr. It may be killed at any moment; started
    again on the same folder it goes on, and so do its agents and its jobs. Off loopback everything is TLS: the first
    start makes a CA and prints the line that lets a first agent join.

    \b
    Examples:
      lutbuilder serve
      lutbuilder serve --listen 0.0.0.0:7070 --luts /srv/luts --state-dir /srv/lutbuilder
      lutbuilder serve --listen 0.0.0.0:7070 --store postgresql://lab@db/lutbuilder --advertise lab.example.org
      lutbuilder serve --listen 127.0.0.1:0 --metrics off --log-json
    """
    # Before grpc is loaded: it logs every handshake of a stranger that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.control.serve import ServeOptions, serving

        options = ServeOptions(
            luts=luts.absolute(),
            listen=listen_address(listen, option="--listen"),
            state_dir=state_dir,
            store=store,
            metrics=None if metrics == "off" else listen_address(metrics, option="--metrics"),
            join="" if join == "none" else None if join is None else listen_address(join, option="--join"),
            advertise=advertise,
            tls_names=tuple(tls_name or ()),
            tls=tls,
            insecure=insecure,
            max_jobs=whole(jobs, option="--jobs", least=1, most=1000),
        )
        with _StatusLine() as status, _logging(status, as_json=log_json), _told_to_end() as stop:
            with serving(options) as running:
                _announce(running, options.secure, as_json=json_)
                running.run(stop, each=lambda: status.show(running))
            logging.getLogger("lutbuilder.serve").info("ended; started again, it goes on where it was")


def _announce(running: Serving, secure: bool, *, as_json: bool) -> None:
    """Say where it listens, and how to join."""
    from lutbuilder_agent.wire.client import is_loopback

    if not secure and not is_loopback(running.address):
        say(
            "WARNING: --insecure-plaintext-to-anyone: whoever reaches "
            f"{running.address} may submit jobs, cancel yours and hand in numbers; nothing is encrypted"
        )
    say(f"agents: lutbuilder-agent run --coordinator {running.dial}")
    if running.join:
        say(f"joining first: at {running.join}; get a line to paste on a device: lutbuilder security token")
    if running.metrics:
        say(f"metrics: http://{running.metrics}/metrics")
    if running.join_line and sys.stderr.isatty():  # a token is a secret: it belongs into no journal
        from lutbuilder.coordinator.trust.authority import Trust

        say(f"the first agent joins within a day with\n    {running.join_line}")
        say(Trust.join_qr(running.join_line))
    if as_json:
        emit_json(
            {
                "address": running.address,
                "dial": running.dial,
                "metrics": running.metrics,
                "join": running.join,
                "join_line": running.join_line,
                "state_dir": running.folder,
            }
        )
    else:
        print(running.address)
    sys.stdout.flush()


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Yield what SIGTERM and Ctrl-C set. A second signal is taken as it comes: whoever sends it is in a hurry."""
    stop = threading.Event()

    def note(signum: int, frame: object) -> None:
        stop.set()
        signal.signal(signum, before[signal.Signals(signum)])

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        if before[signum] is not signal.SIG_IGN:  # what is ignored stays ignored: nohup, or a shell's background
            signal.signal(signum, note)
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# --- what it says while it runs


class _StatusLine:
    """One line at the bottom of a terminal; nothing anywhere else. Drawn when told to, by no thread of its own."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._due = 0

    def __enter__(self) -> _StatusLine:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=sys.stderr, highlight=False)
            if not console.is_dumb_terminal:
                self._live = Live(console=console, auto_refresh=False, transient=True)
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, running: Serving) -> None:
        """Draw the line anew, every other time: a store is not asked every second for a line's sake."""
        self._due += 1
        if self._live is not None and self._due % int(_STATUS_EVERY_S) == 1:
            from rich.text import Text

            self._live.update(Text(status_text(running), style="dim"), refresh=True)

    def say(self, text: str) -> None:
        """Print a line above."""
        if self._live is not None:
            self._live.console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def status_text(running: Serving) -> str:
    """Return what a coordinator does, in one line."""
    from lutbuilder_agent.errors import StoreError

    try:
        fleet = running.coordinator.fleet()
        jobs = running.store.counts().jobs
    except StoreError as error:
        return f"{running.address}  the store fails: {error}"
    states = Counter(view.state for view in fleet)
    agents = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none yet"
    visits = sum(view.visits_per_s or 0.0 for view in fleet if view.state == "measuring")
    return (
        f"{running.address}  agents: {agents}  jobs: {jobs.get('running', 0)} running, {jobs.get('queued', 0)} queued  "
        f"{visits:.0f} visits/s"
    )


class _Handler(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(self.format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


@contextmanager
def _logging(status: _StatusLine, *, as_json: bool) -> Iterator[None]:
    """Send what lutbuilder logs to stderr, above the status line."""
    from lutbuilder.coordinator.trust.tokens import RedactTokens

    handler = _Handler(status.say)
    handler.addFilter(RedactTokens())
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.handlers, each.propagate = [handler], False
        each.setLevel(logging.INFO)
    try:
        yield
    finally:
        for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
            each.handlers, each.propagate = handlers, propagate
            each.setLevel(level)
