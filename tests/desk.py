"""A user at a machine: an empty home, folders of their own, commands, and real processes of what runs beside them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from lutbuilder.campaign.state import STORE_NAME
from lutbuilder.cli.main import app
from lutbuilder.coordinator.store import RawVisit, Store
from lutbuilder.lut import Lut

ROOT = Path(__file__).resolve().parents[1]
_PATH = [str(ROOT), str(ROOT / "agents")]
PATIENCE_S = 60.0
NAME = "simulated/simulated-fp32-bs1"
# A shell's background has Ctrl-C switched off, and so has whatever a test run from there starts.
_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
{first}
from lutbuilder.cli.main import main
main()
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one clear line an error ends with."""
        line = self.err.rstrip().rpartition("\n")[2]
        assert line.startswith("error["), self.err
        assert "Traceback" not in self.err
        return line


def processes_with(variable: str) -> list[int]:
    """Return the living processes that began with this environment variable, NAME=VALUE."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended while we looked, or is not ours
            continue
        if os.fsencode(variable) in environment:
            found.append(int(process.name))
    return found


class Desk:
    """Runs `lutbuilder` in `folder`. All its processes, agent and worker too, are known by their temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.luts = folder / "luts"
        self.path = [*_PATH]
        self.within: list[str] = []  # the words before every command, e.g. of a network namespace
        self._started: list[subprocess.Popen[str]] = []
        (folder / "tmp").mkdir(parents=True)

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "LUTBUILDER_"))}
        return {**kept, "HOME": "", "TMPDIR": str(self.folder / "tmp"), "PYTHONPATH": os.pathsep.join(self.path)}

    def start(self, *words: str, first: str = "") -> subprocess.Popen[str]:
        """Start `lutbuilder WORDS`; `first` is code that runs in that process before anything is imported."""
        return self._spawn([sys.executable, "-c", _PROGRAM.format(first=first), *words])

    def start_agent(self, *words: str) -> subprocess.Popen[str]:
        """Start `lutbuilder-agent WORDS`, with folders of its own."""
        folders = ("--cache-dir", str(self.folder / "cache"), "--spool-dir", str(self.folder / "spool"))
        return self._spawn([sys.executable, "-m", "lutbuilder_agent", *words, *folders])

    def run(self, *words: str, first: str = "") -> Ended:
        """Run `lutbuilder WORDS` to its end: as a process, or where that is all the same in this one.

        A new process spends a second on imports that this one has done. Agents and workers are processes as ever.
        """
        if first or self.within or self.path != _PATH:
            return self.ended(self.start(*words, first=first))
        away: dict[str, str | None] = dict.fromkeys(set(os.environ).difference(self.env))
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            done = CliRunner().invoke(app, list(words), env={**away, **self.env}, prog_name="lutbuilder")
        finally:
            os.chdir(before)
        return Ended(done.exit_code, done.stdout, done.stderr)

    def run_alone(self, *words: str) -> Ended:
        """The same, as a process in any case."""
        return self.ended(self.start(*words))

    def ended(self, process: subprocess.Popen[str]) -> Ended:
        out, err = process.communicate(timeout=PATIENCE_S)
        return Ended(process.returncode, out, err)

    def collecting(self, *words: str) -> tuple[str, ...]:
        """Return the words of a `collect` on the simulated device."""
        folders = ("--state-dir", str(self.state), "--luts", str(self.luts))
        return ("collect", "--device", "simulated", *folders, "--budget", "1h", "--json", *words)

    def lut(self, version: int | None = None) -> Lut:
        return Lut.load(f"{self.luts / NAME}{'' if version is None else f'@{version}'}")

    @property
    def versions(self) -> list[str]:
        """Every file below the luts folder, scratch files included."""
        return sorted(path.relative_to(self.luts).as_posix() for path in self.luts.rglob("*") if path.is_file())

    def processes(self, what: str = "") -> list[int]:
        """Return the processes of this desk that are alive and whose command line holds `what`."""
        found = []
        for pid in processes_with(f"TMPDIR={self.folder / 'tmp'}"):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
                continue
            if what in line:
                found.append(pid)
        return found

    def rounds(self) -> int:
        """Return how many rounds are committed, looking on from outside while others write."""
        try:
            with closing(sqlite3.connect(f"file:{self.state / STORE_NAME}?mode=ro", uri=True)) as connection:
                (found,) = connection.execute("SELECT count(*) FROM reports").fetchone()
        except sqlite3.OperationalError:  # not made yet
            return 0
        return int(found)

    def visits(self) -> list[RawVisit]:
        """Return every stored visit, raw samples and all; and check that none was stored twice or in two versions."""
        with Store.open(self.state / STORE_NAME) as store:
            ids = [campaign.campaign_id for campaign in store.campaigns()]
            visits = list(store.raw_visits(ids))
            assert store.conflicts(ids) == ()
        keys = {(visit.campaign_id, visit.session_id, visit.timing.round, visit.timing.op_id) for visit in visits}
        assert len(keys) == len(visits), "an op is visited once a round"
        return visits

    def wait_for(self, claim: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not claim():
            assert time.monotonic() < until_s, "it did not happen in time"
            time.sleep(0.01)

    def clear(self) -> None:
        """End everything, whatever state a failed test left it in."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self._started:
            process.communicate()

    def _spawn(self, command: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self.within, *command],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process
