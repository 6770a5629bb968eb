"""Soak: a coordinator, its agents and their workers killed again and again at random moments; nothing comes of it.

A slice here; LUTBUILDER_SOAK=200, as `make soak` sets it, is the whole. LUTBUILDER_SOAK_SEED gives other moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.control.client import dial
from lutbuilder.lut import Lut, Row
from tests.desk import Desk
from tests.fleet import Lab

KILLS = int(os.environ.get("LUTBUILDER_SOAK", "4"))
SEED = int(os.environ.get("LUTBUILDER_SOAK_SEED", "1"))
# How many tables at once, of how many rounds, and the longest pause between two kills.
TABLES, ROUNDS, CALM_S = (1, 20, 0.6) if KILLS <= 4 else (3, 60, 1.2)
NAMES = ("one", "two", "three")
WORKER = "lutbuilder_agent.worker"
QUIET = ("--precision", "0.01%", "--carriers", "0", "--runtime-option", "noise_sigma=0.003")
Key = tuple[str, str, int, str]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.clear()


@pytest.fixture
def untroubled(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "untroubled")
    yield made
    made.clear()


class Storm:
    """Kills one process after another, starts it again, and asks for further tables whenever all are done."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self.lab = lab
        self.rng = rng
        self.person = lab.person("ann")
        self.kills: dict[str, int] = {"coordinator": 0, "agent": 0, "worker": 0}
        self.seen: dict[Key, int] = {}
        self.over: set[str] = set()
        self.batches: dict[int, subprocess.Popen[str]] = {}
        self.server = lab.serve()
        self.agents = {name: lab.agent(name) for name in NAMES}

    def blow(self, kills: int) -> None:
        """Kill so many, of each kind in turn, while there is work."""
        kinds = ["coordinator", "agent", "agent", "worker"]
        while sum(self.kills.values()) < kills:
            if all(client.poll() is not None for client in self.batches.values()):
                self.ask_for_more()
            time.sleep(self.rng.uniform(0.05, CALM_S))
            kind = kinds[sum(self.kills.values()) % len(kinds)]
            getattr(self, f"kill_{kind}")()

    def ask_for_more(self) -> None:
        rounds = str(self.rng.randrange(2 * ROUNDS // 3, 4 * ROUNDS // 3))
        for batch in range(len(self.batches) + 1, len(self.batches) + 1 + TABLES):
            words = ("--bs", str(batch), "--max-rounds", rounds, *QUIET)
            self.batches[batch] = self.person.start(*self.lab.asking(self.person, *words))

    def kill_coordinator(self) -> None:
        self.look()
        self.server.kill()
        self.lab.ended(self.server)
        self.kills["coordinator"] += 1
        time.sleep(self.rng.choice((0.0, 0.5)))
        self.server = self.lab.serve()

    def kill_agent(self) -> None:
        name = self.rng.choice(NAMES)
        self.agents[name].kill()
        self.lab.ended(self.agents[name])
        self.kills["agent"] += 1
        time.sleep(self.rng.choice((0.0, 0.5)))
        self.agents[name] = self.lab.agent(name)

    def kill_worker(self) -> None:
        workers = sorted(self.lab.processes(WORKER))
        if workers:
            try:
                os.kill(self.rng.choice(workers), signal.SIGKILL)
            except ProcessLookupError:  # it was faster
                return
            self.kills["worker"] += 1

    def look(self, *, whole: bool = False) -> None:
        """Read the store: what was there is there, as it was, and nothing is there twice.

        A campaign that was over the last time is left out, or a long storm would do nothing but read; not if `whole`.
        """
        with self.lab.store() as store:
            campaigns = store.campaigns()
            ids = {each.campaign_id for each in campaigns if whole or each.campaign_id not in self.over}
            visits = [
                ((v.campaign_id, v.session_id, v.timing.round, v.timing.op_id), hash(v.timing))
                for v in store.raw_visits(sorted(ids))
            ]
            assert store.conflicts(sorted(ids)) == ()
        now = dict(visits)
        assert len(now) == len(visits), "an op is visited once a round"
        before = {key: seen for key, seen in self.seen.items() if key[0] in ids}
        assert before.items() <= now.items(), "what was acknowledged stays"
        self.seen |= now
        self.over = {each.campaign_id for each in campaigns if each.state != "active"}


def rows_of(lut: Lut) -> dict[tuple[str, str, str], Row]:
    return {row.key: row for row in lut.rows()}


def like(row: Row) -> Any:
    """What the latency of the same row is on another day, in ms."""
    if row.op.kind == "identity":
        # A call's overhead, some 0.005 ms, is what is left of calls of whole milliseconds: A + B - AB, noise and all.
        return pytest.approx(row.latency_ms, abs=5e-3)
    return pytest.approx(row.latency_ms, rel=0.01, abs=1e-3)


def spooled(lab: Lab) -> list[str]:
    return [path.name for name in NAMES for path in (lab.folder / name / "spool").rglob("*") if path.is_file()]


@pytest.mark.timeout(120 + 8 * KILLS)
def test_whoever_is_killed_whenever_the_tables_are_those_of_a_quiet_day(lab: Lab, untroubled: Desk) -> None:
    quiet_day = untroubled.start(*untroubled.collecting("--max-rounds", str(ROUNDS), *QUIET))
    storm = Storm(lab, random.Random(SEED))
    storm.blow(KILLS)
    for batch, client in storm.batches.items():
        ended = storm.person.ended(client)
        assert ended.status == 0, f"batch {batch}: {ended.err}"
    assert sum(storm.kills.values()) == KILLS
    assert min(storm.kills.values()) >= KILLS // 4, "each kind was killed"

    with dial(lab.address, insecure_plaintext=False, warn=pytest.fail) as known:
        lab.wait_for(lambda: {agent.phase for agent in known.agents().items} == {"idle"})
        assert known.leases().items == ()
    storm.look(whole=True)
    assert lab.in_store(lambda store: store.active_leases() == ()), "no lease is stuck"
    assert not [name for name in spooled(lab) if name.endswith((".report", ".corrupt"))], "all was handed in"
    assert {agent.poll() for agent in storm.agents.values()} == {None}

    ended = untroubled.ended(quiet_day)
    assert ended.status == 0, ended.err
    failed = 0
    for batch in storm.batches:
        name = f"simulated/simulated-fp32-bs{batch}"
        rows = rows_of(Lut.load(storm.person.luts / name))
        if batch > 1:  # other ops, but as many
            assert len(rows) == len(untroubled.lut().rows())
        else:
            quiet = rows_of(untroubled.lut())
            assert rows.keys() == quiet.keys()
            for key, row in rows.items():
                if row.exec_status != "failed":
                    assert row.latency_ms == like(quiet[key]), row.op.label()
        killed = [row for row in rows.values() if row.exec_status == "failed"]
        # A worker that is killed looks out of memory, and an op it happens to on two devices is given up: as it should.
        assert all("signal 9" in str(row.reason) for row in killed), [row.reason for row in killed]
        failed += len(killed)
    assert failed <= storm.kills["worker"] // 2
