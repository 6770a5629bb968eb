"""Several processes on one store share one queue: what one was given no other gets, what one commits all see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lutbuilder.coordinator.store import Store
from tests.store_examples import SPEC, report, session

BATCHES = 1000
PREAMBLE = """
import json, sys, time
from dataclasses import replace
from lutbuilder.coordinator.store import Store
from tests.store_examples import SPEC, grant, report, session

url, name = sys.argv[1:]
store = Store.open(url)
print("ready", flush=True)
sys.stdin.readline()
"""
SLOTS = f"""
won = []
for batch in sorted(range({BATCHES}), key=lambda batch: batch ^ (name == "attic")):  # neighbours the other way round
    if grant(store, f"{{name}}-{{batch}}", name, batch=batch, owner=name, domain=f"{{name}}-{{batch}}") is not None:
        won.append(batch)
    while len(won) == 1 and len({{lease.owner for lease in store.active_leases()}}) == 1:
        time.sleep(0.001)  # the other is not awake yet: what is to be shown is two at once
print(json.dumps(sorted(won)))
"""
DOMAIN = """
won, seen = 0, 0
while won < 150:
    lease = grant(store, f"{name}-{seen}", name, batch=hash(name) % 1000, owner=name, domain="the host", room=9)
    seen += 1
    if lease is not None:
        held = [other.lease_id for other in store.active_leases() if other.domain == "the host"]
        assert held == [lease.lease_id], held
        assert store.end_lease(lease.lease_id, "done", now_s=3.0)
        won += 1
print(json.dumps([won, seen]))
"""
COMMITS = """
for number in range(150):
    made = report(number, report_id=f"{name}-{number}", session_id=name)
    assert store.commit_report(made, now_s=3.0).n_new == 4
print(json.dumps(True))
"""


class Processes:
    """Processes that are ready, and begin at the same time."""

    def __init__(self, root: Path, url: str, names: Sequence[str], code: str) -> None:
        path = os.pathsep.join([str(root), str(root / "agents")])
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", PREAMBLE + code, url, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
            for name in names
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def begin(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def results(self) -> list[list[int]]:
        outputs = [process.communicate(timeout=150)[0] for process in self._processes]
        assert [process.returncode for process in self._processes] == [0] * len(outputs)
        return [json.loads(output) for output in outputs]


@pytest.fixture
def shared(store_url: str) -> str:
    with Store.open(store_url) as store:
        store.create_campaign(SPEC, now_s=1.0)
        for name in ("lab", "attic"):
            session(store, name, name=name)
    return store_url


def test_no_slot_is_given_twice(root: Path, shared: str) -> None:
    processes = Processes(root, shared, ["lab", "attic"], SLOTS)
    processes.begin()
    lab, attic = processes.results()
    assert sorted([*lab, *attic]) == list(range(BATCHES))
    assert lab, "the other did not leave anything"
    assert attic, "the other did not leave anything"
    with Store.open(shared) as store:
        assert [lease.batch for lease in store.active_leases()] == list(range(BATCHES))


def test_a_clock_domain_never_holds_two_leases(root: Path, shared: str) -> None:
    processes = Processes(root, shared, ["lab", "attic"], DOMAIN)
    processes.begin()
    assert [won for won, _ in processes.results()] == [150, 150]


def test_one_who_reads_along_misses_nothing_that_others_commit(root: Path, shared: str) -> None:
    """He goes on after the highest number he saw: none may become visible behind it."""
    processes = Processes(root, shared, ["lab", "attic"], COMMITS)
    with Store.open(shared) as along, Store.open(shared) as fresh:
        processes.begin()
        while processes.running():
            along.visits([SPEC.key])
        processes.results()
        read, whole = along.visits([SPEC.key]), fresh.visits([SPEC.key])
        assert len(read) == len(whole) == 2 * 150 * len(report().timings)
        assert np.array_equal(read.round, whole.round)
        assert along.campaign(SPEC.key).rounds == 300
