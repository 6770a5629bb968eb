"""1,000 seeded schedules of faults, in virtual time: nothing lost, nothing doubled, nothing stuck, the same LUT.

Each seed draws a fleet (campaigns with priorities and owners, agents that share clock domains, one coordinator or two
on one store, an op that crashes every device) and what goes wrong with it: agents killed at any pause (idle, in the
middle of a visit, after measuring, after their report and before its acknowledgement), stopped, started twice under a
name, drained; calls refused, lost, unanswered, doubled, repeated later; coordinators killed before or after any call of
the store, stopped, started again; a store that fails; wall clocks that jump; a sick device; a cancelled campaign. Then
quiet, and time to finish. Agents, coordinators and the store are the real ones (tests/virtual_fleet.py); the store's
file is in memory where the system has a place for it, and every coordinator opens it for itself. A failing seed prints
the command that plays it again.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import pytest

from lutbuilder.campaign.estimates import summarise
from lutbuilder.campaign.spec import ALL_BATCHES, CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.schedule import SICK_OPS, Decision
from lutbuilder.coordinator.store import Store, schema
from lutbuilder.lut import make_rows
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import LutbuilderError, StaleLease
from lutbuilder_agent.records import Plan, Timing
from tests.virtual_fleet import TICK_S, TTL_S, Desk, Fleet, Node, Process

SEEDS = 1000
CHUNKS = 40
FAULTS_S = 12.0  # how long things go wrong: about as long as an undisturbed run takes
PATIENCE_S = 900.0  # and how long all may take then
MEMORY = Path("/dev/shm")
_PLAYED = os.environ.get("LUTBUILDER_SEED")

PLAN = Plan(runtime="simulated", instances=1, op_timeout_ns=1_000_000_000, min_block_ns=1_000_000)
DESKS = (
    Desk(name="ada", environment="one", domain="host"),
    Desk(name="ben", environment="two", domain="host"),
    Desk(name="cay", environment="one"),
    Desk(name="dot", environment="one"),
)


def _conv(kernel: int, width: int, batch: int = 0) -> CampaignOp:
    return CampaignOp.of(
        OpSpec(kind="conv", in_channels=4, out_channels=width, height=8, width=8, kernel=kernel), batch=batch
    )


EMPTY = CampaignOp.of(OpSpec(kind="identity", in_channels=4, out_channels=4, height=8, width=8), batch=ALL_BATCHES)
FIRST = tuple(_conv(kernel, 4) for kernel in (1, 3, 5))
SECOND = tuple(_conv(kernel, 8, batch=1) for kernel in (1, 3, 5))


def _spec(space: str, environment: str, ops: tuple[CampaignOp, ...], rounds: int, **changes: int) -> CampaignSpec:
    spec = CampaignSpec(
        space=space,
        target=Target(device="virtual", runtime="simulated", cache="hot"),
        plan=PLAN,
        env_id=Desk(name="x", environment=environment).fingerprint.env_id,
        runtime_version="1",
        ops=(*ops, EMPTY),
        budget_s=10,
        precision=0.01,
        max_rounds=rounds,
        lease_rounds=2,
    )
    return replace(spec, **changes)


POISON = SECOND[1].op_id


@lru_cache
def _specs(*, poisoned: bool) -> tuple[CampaignSpec, ...]:
    """Return three campaigns of two owners. One with a poisonous op has rounds enough for it to crash three leases."""
    return (
        _spec("ann", "one", (*FIRST, *SECOND), 6 if poisoned else 3),
        _spec("bob", "one", FIRST, 9, agents=2),
        _spec("bob", "two", FIRST, 3),
    )


def _stops(looker: sqlite3.Connection, spec: CampaignSpec) -> Decision:
    """The campaign of two agents drops an op on its way, and is precise before its last round."""
    if spec.agents == 1:
        return Decision()
    counted = looker.execute("SELECT op_id, count(*) FROM visits WHERE campaign_id = ? GROUP BY op_id", (spec.key,))
    seen = Counter(dict(counted.fetchall()))
    if all(seen[op.op_id] >= 3 for op in FIRST[:2]) and seen[FIRST[2].op_id]:
        return Decision(stop=True, reason="precision")
    return Decision(drop=(FIRST[2].op_id,)) if seen[FIRST[2].op_id] == 2 else Decision()


@dataclass(frozen=True)
class Cast:
    """Who takes part."""

    desks: int
    nodes: int
    poisoned: bool

    def fleet(self, folder: Path, seed: int) -> Fleet:
        """Start them."""
        specs = _specs(poisoned=self.poisoned)
        memory = _wiped()
        return Fleet(
            folder=folder,
            stores=memory.stores,
            looker=memory.looker,
            specs=specs,
            desks=DESKS[: self.desks],
            seed=seed,
            nodes=self.nodes,
            poison=frozenset({POISON}) if self.poisoned else frozenset(),
            priorities={specs[1].key: seed % 2},
            decisions=_stops,
        )


def _in_memory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lutbuilder-", dir=MEMORY if MEMORY.is_dir() else None)


@contextmanager
def _fleet(cast: Cast, seed: int) -> Iterator[Fleet]:
    """A fleet that runs, and is gone afterwards. Its agents call in their own threads: no signal interrupts them."""
    with _in_memory() as folder, patch("lutbuilder_agent.link.aside", lambda work: work()):
        fleet = cast.fleet(Path(folder), seed)
        try:
            yield fleet
        finally:
            fleet.close()


@dataclass(frozen=True)
class Memory:
    """One store: opened by who looks at it and by two coordinators, and a plain connection to its file."""

    stores: tuple[Store, Store, Store]
    looker: sqlite3.Connection
    folder: tempfile.TemporaryDirectory[str]  # removed with the process


@lru_cache
def _memory() -> Memory:
    folder = _in_memory()
    path = Path(folder.name) / "campaigns.sqlite"
    stores = Store.open(path), Store.open(path), Store.open(path)
    return Memory(stores, sqlite3.connect(path, check_same_thread=False, isolation_level=None), folder)


def _wiped() -> Memory:
    """Return an empty store: the same one every time, its statements compiled."""
    memory = _memory()
    kept = (schema.meta, schema.alembic_version)
    wiped = "".join(f"DELETE FROM {table};" for table in schema.metadata.tables.values() if table not in kept)
    memory.looker.executescript(f"BEGIN IMMEDIATE;{wiped}COMMIT;")
    for store in memory.stores:
        store._columns.clear()  # visits that were read of a campaign: it is there again, without any
    return memory


def _rows(store: Store, spec: CampaignSpec) -> Mapping[str, tuple[object, ...]]:
    """Return what the LUT says of every op: it does not depend on who measured it, nor how often."""
    summary = summarise(spec.ops, store.visits([spec.key]))
    failures = [failure for failure in store.failures(spec.key) if failure.final]
    rows = make_rows(spec.ops, summary.rows, failures, {}, cache=spec.target.cache)
    return {
        row.op_id: (row.exec_status, row.reason, None if row.latency_ms is None else round(row.latency_ms, 9))
        for row in rows
    }


@lru_cache
def _undisturbed(poisoned: bool) -> tuple[Mapping[str, tuple[object, ...]], ...]:
    """Return the rows of every campaign where nothing goes wrong."""
    with _fleet(Cast(desks=4, nodes=1, poisoned=poisoned), SEEDS + poisoned) as fleet:
        assert fleet.run(PATIENCE_S)
        return tuple(_rows(fleet.store, spec) for spec in fleet.specs)


# --- what goes wrong


KINDS = (
    "kill_agent", "stop_agent", "second_agent", "drain_agent", "kill_node", "stop_node", "bad_store", "jump_clock",
    "bad_network",
)  # fmt: skip  # a list reads as a list


class Trouble:
    """Draws what goes wrong, when, and does it."""

    def __init__(self, fleet: Fleet, seed: int, kinds: Collection[str] = KINDS) -> None:
        self.fleet = fleet
        self.world = fleet.world
        self.draw = random.Random(f"trouble-{seed}")
        self.cancelled: set[str] = set()  # perhaps: the coordinator that was told may have died of it
        self.surely_cancelled: set[str] = set()
        self.sick = ""
        self.log: list[str] = []
        self.kinds = [
            self.draw.choice([kind for kind in KINDS if kind in kinds]) for _ in range(self.draw.randint(1, 6))
        ]
        for kind in self.kinds:
            self.world.after(self.draw.uniform(0.0, FAULTS_S), getattr(self, kind))
        if self.draw.random() < 0.15:
            self.world.after(self.draw.uniform(0.0, 10.0), self.cancel)
        if self.draw.random() < 0.2 and len(fleet.desks) > 3:
            self.world.after(self.draw.uniform(0.0, 5.0), self.sicken)
        self.world.after(FAULTS_S + 2 * TTL_S, self.quiet)

    def agent(self) -> Process | None:
        """Return some process of an agent."""
        running = [process for process in self.fleet.processes if not process.ended]
        return self.draw.choice(running) if running else None

    def node(self) -> Node:
        """Return some coordinator."""
        return self.draw.choice(self.fleet.members)

    def say(self, words: str) -> None:
        self.log.append(f"{self.world.now_s:.3f} {words}")

    def kill_agent(self) -> None:
        """SIGKILL at one of its next pauses, and started again later."""
        process = self.agent()
        if process is not None:
            process.pauses_to_live = self.draw.randint(0, 12)
            away_s = self.draw.choice((0.5, 3.0, 2.5 * TTL_S))
            self.say(f"kill {process.name} in {process.pauses_to_live} pauses, for {away_s} s")
            self.world.after(away_s, lambda: self.start_again(process.name))

    def start_again(self, name: str) -> None:
        """Start an agent of which no process runs."""
        if not self.fleet.running(name):
            self.fleet.start(next(desk for desk in self.fleet.desks if desk.name == name))
        elif any(process.pauses_to_live is not None for process in self.fleet.running(name)):
            self.world.after(1.0, lambda: self.start_again(name))

    def stop_agent(self) -> None:
        """SIGSTOP."""
        process = self.agent()
        if process is not None:
            process.stopped_until_s = self.world.now_s + self.draw.choice((1.0, TTL_S, 3 * TTL_S))
            self.say(f"stop {process.name} until {process.stopped_until_s:.1f}")

    def second_agent(self) -> None:
        """Somebody starts an agent of a name that runs already, elsewhere."""
        process = self.agent()
        if process is not None:
            self.say(f"second {process.name}")
            desk = next(desk for desk in self.fleet.desks if desk.name == process.name)
            self.fleet.start(desk, place=f"there-{len(self.fleet.processes)}")

    def drain_agent(self) -> None:
        """An agent is drained, for a while."""
        desk = self.draw.choice(self.fleet.desks)

        def drain(on: bool) -> None:
            alive = [node for node in self.fleet.members if node.alive]
            for node in alive[:1]:
                node.serve_nobody(lambda coordinator: coordinator.drain(desk.name, on))

        self.say(f"drain {desk.name}")
        drain(True)
        self.world.after(self.draw.uniform(1.0, 20.0), lambda: drain(False))

    def kill_node(self) -> None:
        """SIGKILL before or after one of its next calls of the store, and started again later."""
        node = self.node()
        node.kill_in = (self.draw.randint(0, 25), self.draw.choice(("before", "after")))
        self.say(f"kill {node.name} in {node.kill_in}")
        self.world.after(self.draw.choice((1.0, 5.0, 2 * TTL_S)), lambda: self.restart(node))

    def restart(self, node: Node) -> None:
        """Start a coordinator that died; one that does not, is killed."""
        node.die()
        self.say(f"start {node.name}")
        node.start()

    def stop_node(self) -> None:
        """SIGSTOP."""
        node = self.node()
        node.stopped_until_s = self.world.now_s + self.draw.choice((1.0, TTL_S, 3 * TTL_S))
        self.say(f"stop {node.name} until {node.stopped_until_s:.1f}")

    def bad_store(self) -> None:
        """A coordinator's store fails now and then."""
        node = self.node()
        node.store_errors = 0.2
        self.say(f"bad store of {node.name}")

        def good() -> None:
            node.store_errors = 0.0

        self.world.after(self.draw.uniform(1.0, 10.0), good)

    def jump_clock(self) -> None:
        """An hour forth or back."""
        self.world.wall_s += self.draw.choice((-3600.0, 3600.0))
        self.say("clock jumps")

    def bad_network(self) -> None:
        """One call in five goes wrong."""
        self.fleet.faults = 0.2
        self.say("bad network")

        def good() -> None:
            self.fleet.faults = 0.0

        self.world.after(self.draw.uniform(1.0, 15.0), good)

    def cancel(self) -> None:
        """A user cancels a campaign."""
        spec = self.draw.choice(self.fleet.specs)
        if self.fleet.store.campaign(spec.key).state == "active":
            self.cancelled.add(spec.key)
            self.say(f"cancel {spec.key}")
            alive = [node for node in self.fleet.members if node.alive and not node.store_errors]
            for node in alive[:1]:
                with suppress(LutbuilderError):
                    node.serve(lambda coordinator: coordinator.finish(spec.key, "enough", state="cancelled"))
                    self.surely_cancelled.add(spec.key)

    def sicken(self) -> None:
        """From now on every op crashes on one device."""
        self.sick = "dot"
        self.fleet.sick.add("dot")
        self.say("dot is sick")

    def quiet(self) -> None:
        """Nothing goes wrong any more, and everything that ended is started again."""
        self.say("quiet")
        self.fleet.faults = 0.0
        for node in self.fleet.members:
            node.kill_in = None
            node.store_errors = 0.0
            node.start()
        for process in self.fleet.processes:
            process.pauses_to_live = None
        for desk in self.fleet.desks:
            self.start_again(desk.name)
            if self.fleet.store.agent_flags().get(desk.name, None) and desk.name != self.sick:
                self.fleet.store.set_agent(desk.name, drained=False)


# --- what has to hold


def _check(fleet: Fleet, trouble: Trouble, undisturbed: Sequence[Mapping[str, tuple[object, ...]]]) -> None:
    store = fleet.store
    assert fleet.audit.broken == []
    keys = [spec.key for spec in fleet.specs]
    stored = {_key(v.campaign_id, v.session_id, v.timing): v.timing for v in store.raw_visits(keys)}
    for report in fleet.acks:  # no acknowledged visit is lost
        for timing in report.timings:
            key = _key(report.campaign_id, report.session_id, timing)
            assert stored.get(key) == timing, f"acknowledged and lost: {key}"
    assert store.conflicts(keys) == (), "a round was measured twice under one key"
    assert max(Counter(timing.start_ns for timing in stored.values()).values()) == 1, "a visit is there twice"
    reports = store.reports(keys)
    assert len({report.report_id for report in reports}) == len(reports)
    for spec in fleet.specs:  # what was counted is what is there
        state = store.campaign(spec.key)
        own = [report for report in reports if report.campaign_id == spec.key]
        assert state.rounds == len({(report.session_id, report.round) for report in own})
        assert state.measured_ns == sum(report.round_ns for report in own)
        assert state.state == ("cancelled" if spec.key in trouble.cancelled and state.reason == "enough" else "done")
        assert state.state == "cancelled" or spec.key not in trouble.surely_cancelled
    assert store.active_leases() == ()
    assert all(lease.state != "active" for lease in store.leases(active=False))
    flags = store.agent_flags()
    assert {name for name, flag in flags.items() if flag.quarantined} <= {trouble.sick}, flags
    for process in fleet.processes:
        assert process.error is None or isinstance(process.error, StaleLease), process.error
    for spec, expected in zip(fleet.specs, undisturbed, strict=True):
        if store.campaign(spec.key).state == "done":
            ops = {op.op_id for op in spec.ops}
            timed = {key[3] for key in stored if key[0] == spec.key}
            given_up = {failure.op_id for failure in store.failures(spec.key) if failure.final}
            assert given_up == fleet.poison & ops, spec.space
            assert timed | given_up == ops, spec.space
            if fleet.seed % 4 == 0:  # it follows from the above and takes its time
                assert _rows(store, spec) == expected, spec.space
    for key, timing in stored.items():
        assert set(timing.samples_ns) == {fleet.truth_ns(key[3])}


def _key(campaign_id: str, session_id: str, timing: Timing) -> tuple[str, str, int, str, int]:
    return campaign_id, session_id, timing.round, timing.op_id, timing.order


def play(
    seed: int, *, cast: Cast | None = None, kinds: Collection[str] = KINDS, sick: bool = False
) -> tuple[Trouble, Fleet]:
    """Play one seed, and check everything; what it draws may be given. Raises AssertionError."""
    draw = random.Random(f"cast-{seed}")
    drawn = Cast(desks=draw.choice((2, 3, 4, 4)), nodes=draw.choice((1, 1, 2)), poisoned=draw.random() < 0.4)
    cast = cast or drawn
    undisturbed = _undisturbed(cast.poisoned)
    with _fleet(cast, seed) as fleet:
        trouble = Trouble(fleet, seed, kinds)
        if sick:
            trouble.sicken()
        try:
            over = fleet.run(FAULTS_S + PATIENCE_S)
            assert over, f"still active: {fleet.store.campaigns(active=True)}, leases {fleet.store.active_leases()}"
            _check(fleet, trouble, undisturbed)
        except BaseException:
            print(f"{cast}", *trouble.log, sep="\n    ")
            raise
    return trouble, fleet


def digest(seed: int) -> str:
    """Play one seed, and return a digest of all that happened, of every time and every id."""
    trouble, fleet = play(seed)
    told = [trouble.log, fleet.world.now_s, fleet.events, fleet.measured, fleet.acks]
    return hashlib.sha256(repr(told).encode()).hexdigest()


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # agents say what went wrong, and a lot does
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_of_faults_loses_doubles_or_blocks_anything(chunk: int) -> None:
    seeds = [int(_PLAYED)] if _PLAYED else range(chunk, SEEDS, CHUNKS)
    for seed in seeds:
        try:
            play(seed)
        except BaseException:
            print(f"\nagain: LUTBUILDER_SEED={seed} python -m pytest '{__file__}' -k 'schedule and [0]'")
            raise


@pytest.mark.parametrize("seed", range(8))
def test_a_sick_device_is_found_out_and_changes_nothing(seed: int) -> None:
    """Whatever becomes of the others: faults that make its coordinator forget what it did are left out."""
    kinds = ("stop_agent", "jump_clock", "bad_network")
    _, fleet = play(seed, cast=Cast(desks=4, nodes=1 + seed % 2, poisoned=seed % 4 > 1), kinds=kinds, sick=True)
    failed_ops = {(report.campaign_id, failure.op_id) for report in fleet.acks for failure in report.failures}
    assert len(failed_ops) >= SICK_OPS
    assert fleet.store.agent_flags()["dot"].quarantined
    assert all("dot" not in failure.agents for spec in fleet.specs for failure in fleet.store.failures(spec.key))
    kinds_of_dot = [kind for _, kind, agent, _ in fleet.events if agent == "dot"]
    assert "leased" not in kinds_of_dot[kinds_of_dot.index("quarantined") :]


@pytest.mark.parametrize("seed", range(6))
def test_an_agent_that_dies_for_good_loses_its_lease_in_time(seed: int) -> None:
    """Within a ttl and the silence it announced, and the two ticks it takes to see that."""
    held = "SELECT l.lease_id FROM leases l JOIN sessions USING (session_id) WHERE l.state = 'active' AND agent = ?"
    with _fleet(Cast(desks=4, nodes=1 + seed % 2, poisoned=False), SEEDS + seed) as fleet:
        fleet.world.run(fleet.world.now_s + 20.0, lambda: fleet.looker.execute(held, ("cay",)).fetchone() is not None)
        (lost,) = fleet.looker.execute(held, ("cay",)).fetchone()
        (died,) = fleet.running("cay")
        died.kill()
        fleet.run(2.5 * TTL_S + 2 * TICK_S)
        (state,) = fleet.looker.execute("SELECT state FROM leases WHERE lease_id = ?", (lost,)).fetchone()
        assert state != "active"  # lost; or done, where another agent measured the same and was enough
        assert fleet.run(PATIENCE_S)
        rows = tuple(_rows(fleet.store, spec) for spec in fleet.specs)
    assert rows == _undisturbed(False)


def test_a_seed_plays_the_same_twice_and_in_another_process(root: Path) -> None:
    """Also where sets and dicts of strings are in another order, as they are in every new process."""
    seeds = (7, 19, 23, 31)
    code = (
        "import logging, sys; logging.disable(logging.CRITICAL)\n"
        "from tests.faults.test_schedules import digest\n"
        "print(hash('lutbuilder'), *[digest(int(seed)) for seed in sys.argv[1:]])"
    )
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    path = os.pathsep.join([str(root), str(root / "agents")])
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, seeds)],
        env={**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        here = [digest(seed) for seed in seeds]
        assert [digest(seed) for seed in seeds[:1]] == here[:1]
        out, _ = process.communicate(timeout=120)
    order, *there = out.split()
    assert int(order) != hash("lutbuilder")
    assert there == here


def test_nothing_disturbs_who_measures_in_a_clock_domain_where_nothing_goes_wrong() -> None:
    for nodes in (1, 2):
        with _fleet(Cast(desks=4, nodes=nodes, poisoned=False), SEEDS + 7) as fleet:
            assert fleet.run(PATIENCE_S)
        by_domain = sorted(fleet.measured)
        assert len({name for domain, _, _, name in by_domain if domain == "host"}) == 2
        for before, after in itertools.pairwise(by_domain):
            assert before[0] != after[0] or before[2] <= after[1] + 1e-9, (before, after)
        assert fleet.audit.broken == []
