"""A lab: a coordinator that serves, its agents, and people at desks of their own, all as real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lutbuilder.coordinator.store import Store
from tests.desk import PATIENCE_S, Desk, Ended

SERVE, AGENT = "serve --listen", "lutbuilder_agent run"
# Two ops, and a device slow enough for a round to take a tenth of a second.
SMALL_SPACE = """
input = { channels = 3, resolution = 16 }
[variables]
k = [3]
[[sites]]
name = "stem"
kind = "conv"
out_channels = 8
kernel = "k"
[[sites]]
name = "logits"
kind = "logits"
out_channels = 10
"""
STEADY = ("--runtime-option", "realtime=1", "--runtime-option", "speed=0.002")


class Lab(Desk):
    """A desk whose coordinator serves. Further people are Desks in folders of their own: `person`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.served = folder / "served"  # the coordinator's own tables
        self.address = "127.0.0.1:0"
        self.metrics = ""
        self.told: dict[str, Any] = {}  # what `serve --json` said when it began to listen
        self._people: list[Desk] = []

    @property
    def serving(self) -> tuple[str, ...]:
        """The words of a `serve` at the address it had before."""
        folders = ("--state-dir", str(self.state), "--luts", str(self.served))
        return ("serve", "--listen", self.address, "--metrics", "127.0.0.1:0", *folders, "--json")

    def serve(self, *words: str, first: str = "") -> subprocess.Popen[str]:
        """Start the coordinator, at the address it had before, and return once it listens."""
        process = self.start(*self.serving, *words, first=first)
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, self.ended(process).err
            text += line
        self.told = told = json.loads(text)
        self.address, self.metrics = told["address"], told["metrics"]
        return process

    def agent(self, name: str, *words: str) -> subprocess.Popen[str]:
        """Start an agent of the simulated runtime in a clock domain of its own."""
        folders = [word for kind in ("cache", "spool") for word in (f"--{kind}-dir", str(self.folder / name / kind))]
        command = [sys.executable, "-m", "lutbuilder_agent", "run", "--coordinator", self.address, "--name", name]
        domain = ("--clock-domain", name, "--runtimes", "simulated")
        return self._spawn([*command, *domain, *folders, *words])

    def person(self, name: str) -> Desk:
        """Return somebody's desk: another machine, as far as folders go."""
        made = Desk(self.folder / f"desk-of-{name}")
        made.within = self.within
        self._people.append(made)
        return made

    def asking(self, desk: Desk, *words: str) -> tuple[str, ...]:
        """Return the words of a `collect` that has this lab do it."""
        where = ("--coordinator", self.address, "--luts", str(desk.luts))
        return ("collect", "--device", "simulated", *where, "--budget", "1h", "--json", *words)

    def ask(self, *words: str) -> Any:
        """Return what a command about the fleet answers in JSON."""
        ended = self.run(*words, "--coordinator", self.address, "--json")
        assert ended.status == 0, ended.err
        return ended.json

    def store(self) -> Store:
        return Store.open(self.state / "campaigns.sqlite")

    def in_store(self, look: Callable[[Store], bool]) -> bool:
        """Look at the store from outside while others write."""
        with self.store() as store:
            return look(store)

    def scraped(self) -> str:
        """Return what Prometheus would get."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.metrics}/metrics", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())

    def terminated(self, process: subprocess.Popen[str]) -> Ended:
        process.send_signal(signal.SIGTERM)
        return self.ended(process)

    def clear(self) -> None:
        for person in self._people:
            person.clear()
        super().clear()
