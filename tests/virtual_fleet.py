"""A fleet in virtual time, with every fault on demand: what is virtual is the clock, the network and the devices.

Coordinators, their keepers, the store and agents are the real ones. Each agent process runs in a thread of its own, of
which one runs at a time, handed on at every pause: a run is decided by its seed. A killed process does nothing more; a
killed coordinator loses all but its store, which lies in memory (tmpfs where there is one).
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from lutbuilder.campaign.spec import CampaignOp, CampaignSpec
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer
from lutbuilder.coordinator.service import Coordinator
from lutbuilder.coordinator.service.serving import Keeper
from lutbuilder.coordinator.store import Store
from lutbuilder_agent.errors import LutbuilderError, StoreError, UnknownName, Unreachable
from lutbuilder_agent.records import (
    AgentHello,
    ArtifactRef,
    Conditions,
    DeviceState,
    Failure,
    Fingerprint,
    Format,
    LeasedOp,
    OpId,
    Plan,
    Report,
    ReportAck,
    RuntimeReport,
    Session,
    Timing,
)
from lutbuilder_agent.rounds import AtEnd, Reached
from lutbuilder_agent.session import Agent
from lutbuilder_agent.wire.api import LeaseAnswer

TTL_S = 10.0
TICK_S = 4.0
DEADLINE_S = 6.0  # after which a call that nobody answers has failed
CONDITIONS = Conditions(monotonic_ns=0)
RUNTIMES = (RuntimeReport(name="simulated", version="1"),)
Fate = Literal["fine", "refused", "lost", "answer lost", "twice", "again later"]

_T = TypeVar("_T")


class Killed(BaseException):
    """A process got SIGKILL. Not an Exception: nothing handles it."""


class NodeKilled(BaseException):
    """A coordinator got SIGKILL."""


class World:
    """Virtual time: what is to happen when, and the process that runs now."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.wall_s = 1.7e9  # what a wall clock is ahead of now_s; it may jump
        self.running: Process | None = None
        self.watching: dict[Process, threading.Event] = {}
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.now_s

    def wall_clock(self) -> float:
        return self.wall_s + self.now_s

    def at(self, when_s: float, action: Callable[[], object]) -> None:
        """Do something then, or now if that is over."""
        heapq.heappush(self._queue, (max(when_s, self.now_s), next(self._numbers), action))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something in so many seconds."""
        self.at(self.now_s + seconds, action)

    def run(self, until_s: float, done: Callable[[], bool]) -> None:
        """Let things happen until they are done, or time is up."""
        while self._queue and not done():
            when_s, _, action = heapq.heappop(self._queue)
            if when_s > until_s:
                return
            self.now_s = when_s
            action()
            for process, event in tuple(self.watching.items()):
                if event.is_set():
                    del self.watching[process]
                    self.at(self.now_s, process.waker())


class Process:
    """A process of an agent: a thread that runs only between `wake` and its next pause."""

    def __init__(self, world: World, name: str, spool: Path, main: Callable[[Process], object]) -> None:
        self.name = name
        self.spool = spool
        self.killed = False
        self.ended = False
        self.error: Exception | None = None
        self.stopped_until_s = 0.0
        self.pauses_to_live: int | None = None
        self._world = world
        self._main = main
        self._in_call = False  # the coordinator's side of a call: it is not killed nor stopped with this process
        self._token = 0
        self._mine, self._theirs = threading.Lock(), threading.Lock()
        self._mine.acquire()
        self._theirs.acquire()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        world.after(0.0, self.waker())

    def pause(self, seconds: float) -> None:
        """Let time pass. Raises Killed."""
        self.check()
        if self.pauses_to_live is not None:
            self.pauses_to_live -= 1
            if self.pauses_to_live < 0:
                self.killed = True
                raise Killed
        self._sleep(seconds)
        self.check()

    def pause_in_call(self, event: threading.Event, seconds: float) -> None:
        """Wait in a coordinator for an event."""
        self._in_call = True
        self._world.watching[self] = event
        self._sleep(seconds)
        self._world.watching.pop(self, None)
        self._in_call = False

    def check(self) -> None:
        """Raise Killed in a killed process."""
        if self.killed:
            raise Killed

    def kill(self) -> None:
        """SIGKILL; from the main loop."""
        if not self.ended and not self.killed:
            self.killed = True
            self._world.after(0.0, self.waker())

    def waker(self) -> Callable[[], None]:
        """Return what ends the present pause, and does nothing once that is over."""
        token = self._token

        def wake() -> None:
            if self.ended or token != self._token:
                return
            if self.stopped_until_s > self._world.now_s and not self.killed and not self._in_call:
                self._world.at(self.stopped_until_s, wake)
                return
            self._token += 1
            self._world.running = self
            self._mine.release()
            self._theirs.acquire()
            self._world.running = None

        return wake

    def _sleep(self, seconds: float) -> None:
        self._world.after(seconds, self.waker())
        self._theirs.release()
        self._mine.acquire()

    def _run(self) -> None:
        self._mine.acquire()
        try:
            self.check()
            self._main(self)
        except Killed:
            pass
        except Exception as error:  # whatever it is: the test looks at it
            self.error = error
        finally:
            self.ended = True
            self._theirs.release()


# --- coordinators


class FaultyStore:
    """A store whose every call may fail, before or after it is done, or be the last thing its process does."""

    def __init__(self, store: Store, node: Node) -> None:
        self._store = store
        self._node = node

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._node.strike("before")
            answer = found(*args, **kwargs)
            self._node.strike("after")
            return answer

        self.__dict__[name] = call
        return call


class Node:
    """A coordinator's process on a store, and its keeper. It may be killed, stopped, and started again."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.name = name
        self.lives = 0
        self.alive = False
        self.stopped_until_s = 0.0
        self.kill_in: tuple[int, Literal["before", "after"]] | None = None  # store calls from now
        self.store_errors = 0.0  # probability of each call
        self._fleet = fleet

    def start(self) -> None:
        """Begin, with nothing but the store."""
        if self.alive:
            return
        fleet, world = self._fleet, self._fleet.world
        self.lives += 1
        self.alive = True
        self.kill_in = None
        ids = fleet.ids(f"{self.name}-{self.lives}")
        self.coordinator = Coordinator(
            cast("Store", FaultyStore(fleet.store, self)),
            fleet.artifacts,
            fleet.decide,
            narrow=fleet.narrow,
            offered=lambda: [spec.key for spec in fleet.specs],
            clock=world.clock,
            wall_clock=world.wall_clock,
            patience_clock=world.clock,
            pause=self._pause,
            new_id=lambda: next(ids),
            ttl_s=TTL_S,
            heartbeat_s=TTL_S / 3,
            coordinator_id=self.name,
        )
        self.coordinator.on_event.append(lambda event: fleet.events.append((event.kind, event.agent)))
        self.keeper = Keeper(self.coordinator, TICK_S, clock=world.clock)
        self._tick(self.lives)

    def die(self) -> None:
        """SIGKILL."""
        self.alive = False

    def strike(self, when: Literal["before", "after"]) -> None:
        """Let a store call go wrong, if it is to."""
        if not self.alive:
            raise NodeKilled
        if self.kill_in is not None and self.kill_in[1] == when:
            self.kill_in = self.kill_in[0] - 1, when
            if self.kill_in[0] < 0:
                self.die()
                raise NodeKilled
        if self.store_errors and self._fleet.chance.random() < self.store_errors:
            raise StoreError(f"{when} it was done, the disk failed")

    def serve(self, call: Callable[[Coordinator], _T]) -> _T:
        """Answer a call. Raises Unreachable if the process died over it."""
        life = self.lives
        try:
            answer = call(self.coordinator)
        except NodeKilled:
            raise Unreachable(f"{self.name} died") from None
        if life != self.lives or not self.alive:
            raise Unreachable(f"{self.name} died")
        return answer

    def serve_nobody(self, call: Callable[[Coordinator], object]) -> None:
        """Do what a call says whose caller is gone."""
        if self.alive:
            with suppress(LutbuilderError):
                self.serve(call)

    def _pause(self, event: threading.Event, seconds: float) -> None:
        running = self._fleet.world.running
        if running is not None:
            running.pause_in_call(event, seconds)

    def _tick(self, life: int) -> None:
        world = self._fleet.world
        if life != self.lives or not self.alive:
            return
        if self.stopped_until_s > world.now_s:
            world.at(self.stopped_until_s, lambda: self._tick(life))
            return
        try:
            self.keeper.step()
        except NodeKilled:
            return
        world.after(TICK_S, lambda: self._tick(life))


# --- the network


@dataclass(frozen=True, slots=True)
class Caller:
    """What a coordinator sees of who calls: it has gone, or is gone as soon as its process is."""

    process: Process | None

    def gone(self) -> bool:
        return self.process is None or self.process.killed

    def when_gone(self, wake: Callable[[], None]) -> None:
        pass  # a killed process wakes by itself


class VirtualClient:
    """A connection of an agent's process to a coordinator; the fleet says what becomes of each call."""

    def __init__(self, fleet: Fleet, process: Process, node: Node) -> None:
        self._fleet = fleet
        self._process = process
        self._node = node

    def register(self, hello: AgentHello) -> Session:
        return self._call(lambda coordinator, caller: coordinator.register(hello, caller=caller))

    def lease(self, session_id: str, state: DeviceState, wait_s: float, *, ahead_of: str = "") -> LeaseAnswer:
        return self._call(
            lambda coordinator, caller: coordinator.lease(session_id, state, wait_s, ahead_of=ahead_of, caller=caller)
        )

    def fetch(self, session_id: str, sha256: str, offset: int) -> Iterator[bytes]:
        return iter(self._call(lambda coordinator, caller: list(coordinator.fetch(session_id, sha256, offset))))

    def report(self, report: Report) -> ReportAck:
        return self._call(lambda coordinator, caller: self._fleet.acknowledged(report, coordinator.report(report)))

    def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool:
        return self._call(lambda coordinator, caller: coordinator.heartbeat(session_id, lease_id, quiet_s))

    def close(self) -> None:
        pass

    def _call(self, call: Callable[[Coordinator, Caller], _T]) -> _T:
        fleet, process, node, world = self._fleet, self._process, self._node, self._fleet.world
        process.pause(fleet.latency_s())
        fate = fleet.fate()
        if fate == "refused" or not node.alive:
            raise Unreachable(f"{node.name} refuses")
        if fate == "lost":
            process.pause(DEADLINE_S)
            raise Unreachable("the call was lost")
        held_s = node.stopped_until_s - world.now_s
        if held_s > DEADLINE_S:  # it lies in a socket, and is read when nobody waits for its answer any more
            world.at(node.stopped_until_s, lambda: node.serve_nobody(lambda c: call(c, Caller(None))))
            process.pause(DEADLINE_S)
            raise Unreachable("no answer")
        if held_s > 0.0:
            process.pause(held_s)
            if not node.alive:
                raise Unreachable(f"{node.name} died")
        error: LutbuilderError | None = None
        try:
            answer = node.serve(lambda c: call(c, Caller(process)))
        except LutbuilderError as raised:
            error = raised
        if fate == "twice":
            node.serve_nobody(lambda c: call(c, Caller(None)))
        if fate == "again later":
            world.after(
                fleet.chance.uniform(0.0, 2 * TTL_S), lambda: node.serve_nobody(lambda c: call(c, Caller(None)))
            )
        process.pause(fleet.latency_s())
        if fate == "answer lost":
            process.pause(DEADLINE_S)
            raise Unreachable("the answer was lost")
        if error is not None:
            raise error
        return answer


# --- devices


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualRound:
    """What a worker saw."""

    timings: tuple[Timing, ...]
    failures: tuple[Failure, ...]
    round_ns: int
    timed_ns: int


class VirtualWorker:
    """Times ops on a device whose truth is known, without noise; a poisonous op crashes it, a sick device every op."""

    def __init__(self, fleet: Fleet, process: Process, plan: Plan) -> None:
        self._fleet = fleet
        self._process = process
        self._plan = plan
        self._ops: list[LeasedOp] = []
        self.reached = Reached()

    def begin(self, ops: Sequence[tuple[LeasedOp, Path]]) -> None:
        self._ops = [op for op, _ in ops]

    def loaded(self) -> tuple[Failure, ...]:
        self._process.pause(0.2)
        return self._crashes(0) if self._process.name in self._fleet.sick else ()

    def run_round(self, round: int, *, at_end: AtEnd | None = None) -> VirtualRound:
        fleet, process = self._fleet, self._process
        took_s = fleet.round_s(process.name)
        process.pause(took_s / 2)  # killed here: in the middle of a visit
        failures = self._crashes(round)
        timings = []
        for order, op in enumerate(self._ops):
            truth_ns = fleet.truth_ns(op.op_id)
            timings.append(
                Timing(
                    op_id=op.op_id,
                    round=round,
                    order=order,
                    instance=0,
                    start_ns=next(fleet.visit_numbers) * 1_000_000,
                    warmup_ns=(truth_ns,),
                    samples_ns=(truth_ns,) * 3,
                )
            )
        process.pause(took_s / 2)
        self.reached = Reached(clock_ns=timings[-1].start_ns if timings else 0, instance=1)
        if at_end is not None:
            at_end(self.reached)
        process.pause(0.0)  # killed here: after measuring
        took_ns = int(took_s * 1e9)
        return VirtualRound(timings=tuple(timings), failures=failures, round_ns=took_ns, timed_ns=took_ns)

    def drop(self, op_ids: Sequence[OpId]) -> None:
        self._ops = [op for op in self._ops if op.op_id not in op_ids]

    def retire(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _crashes(self, round: int) -> tuple[Failure, ...]:
        sick = self._process.name in self._fleet.sick
        crashing = [op for op in self._ops if sick or op.op_id in self._fleet.poison]
        self._ops = [op for op in self._ops if op not in crashing]
        return tuple(Failure(op_id=op.op_id, round=round, reason="crashed", detail="signal 11") for op in crashing)


class VirtualArtifacts:
    """An artifact is the op's id: what an engine would make of it does not matter here."""

    def ref(self, op: CampaignOp, format: Format) -> ArtifactRef:
        raw = op.op_id.encode()
        return ArtifactRef(sha256=hashlib.sha256(raw).hexdigest(), format=format, size_bytes=len(raw))

    def fetch(self, sha256: str) -> bytes:
        if sha256 not in self._known:
            raise UnknownName(f"no artifact {sha256}")
        return self._known[sha256]

    def __init__(self, specs: Sequence[CampaignSpec]) -> None:
        ids = [op.op_id.encode() for spec in specs for op in spec.ops]
        self._known = {hashlib.sha256(raw).hexdigest(): raw for raw in ids}


# --- all of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """An agent of the fleet: its name, what it runs on, and the clock domain it shares."""

    name: str
    environment: str
    domain: str = ""

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(device="virtual", facts=(("environment", self.environment),))


@dataclass
class Fleet:
    """Campaigns, coordinators and agents, and what goes wrong with them. The store is its own alone, and empty."""

    folder: Path
    store: Store
    specs: Sequence[CampaignSpec]
    desks: Sequence[Desk]
    seed: int = 0
    nodes: int = 1
    poison: frozenset[OpId] = frozenset()
    priorities: Mapping[str, int] = field(default_factory=dict)
    decisions: Callable[[Store, str, Report], Decision] = lambda store, campaign_id, report: Decision()
    faults: float = 0.0  # probability that a call meets one
    sick: set[str] = field(default_factory=set)
    events: list[tuple[str, str]] = field(default_factory=list)
    acks: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = World()
        self.chance = random.Random(self.seed)
        self.artifacts = VirtualArtifacts(self.specs)
        self.visit_numbers = itertools.count(1)
        self._empty = {op.op_id for spec in self.specs for op in spec.ops if op.role == "overhead"}
        for number, spec in enumerate(self.specs):
            self.store.create_campaign(
                spec, now_s=float(number), priority=self.priorities.get(spec.key, 0), owner=spec.space
            )
        self.members = [Node(self, f"node-{number}") for number in range(self.nodes)]
        self.processes: list[Process] = []
        self._starts = itertools.count()
        for node in self.members:
            node.start()
        for desk in self.desks:
            self.start(desk)

    def close(self) -> None:
        """Kill everything that still runs."""
        for process in self.processes:
            process.kill()
        self.world.run(self.world.now_s, lambda: False)
        for node in self.members:
            node.die()

    def start(self, desk: Desk, *, place: str = "here") -> Process:
        """Start an agent's process; one of its name may run already, in another place."""
        folder = self.folder / desk.name / place
        ids = self.ids(f"{desk.name}-{next(self._starts)}")
        jitter = random.Random(f"{self.seed}-{desk.name}-{len(self.processes)}")

        def main(process: Process) -> None:
            Agent(
                lambda: self.connect(process),
                name=desk.name,
                clock_domain=desk.domain,
                cache_dir=folder / "cache",
                spool_dir=folder / "spool",
                fingerprint=desk.fingerprint,
                runtimes=RUNTIMES,
                worker_factory=lambda plan: VirtualWorker(self, process, plan),
                read_conditions=lambda: CONDITIONS,
                clock_s=self.world.clock,
                sleep=process.pause,
                jitter=jitter.random,
                new_id=lambda: next(ids),
            ).run()

        process = Process(self.world, desk.name, folder / "spool", main)
        self.processes.append(process)
        return process

    def running(self, name: str) -> list[Process]:
        """Return the processes of an agent that have not ended."""
        return [process for process in self.processes if process.name == name and not process.ended]

    def connect(self, process: Process) -> VirtualClient:
        """Return a connection to some coordinator that listens."""
        process.check()
        alive = [node for node in self.members if node.alive]
        if not alive:
            process.pause(self.latency_s())
            raise Unreachable("nobody listens")
        return VirtualClient(self, process, alive[self.chance.randrange(len(alive))])

    def run(self, seconds: float) -> bool:
        """Let so much time pass, at most; return whether all campaigns have ended and every round was delivered."""
        over = False

        def look() -> None:
            nonlocal over
            over = self.is_over()
            self.world.after(2.0, look)

        look()
        self.world.run(self.world.now_s + seconds, lambda: over)
        return over

    def is_over(self) -> bool:
        """Return whether all campaigns have ended and no running agent's spool holds a round."""
        spools = (process.spool for process in self.processes if not process.ended)
        return not self.store.campaigns(active=True) and not any(list(spool.glob("*.report")) for spool in spools)

    # --- what chance decides

    def fate(self) -> Fate:
        """Return what becomes of a call."""
        if not self.faults or self.chance.random() >= self.faults:
            return "fine"
        return self.chance.choice(("refused", "lost", "answer lost", "twice", "again later"))

    def latency_s(self) -> float:
        """Return how long a message takes."""
        return self.chance.uniform(0.001, 0.05)

    def round_s(self, name: str) -> float:
        """Return how long a round takes."""
        return self.chance.uniform(0.5, 2.0)

    def truth_ns(self, op_id: OpId) -> int:
        """Return what a perfect measurement of an op gives; an empty call takes less than any other."""
        if op_id in self._empty:
            return 20_000
        return 100_000 + int(hashlib.sha256(op_id.encode()).hexdigest()[:4], 16)

    def ids(self, prefix: str) -> Iterator[str]:
        """Yield ids that no other process makes, in no other run."""
        return (f"{prefix}.{self.seed}.{number}" for number in itertools.count())

    # --- what coordinators ask

    def decide(self, campaign_id: str, report: Report) -> Decision:
        return self.decisions(self.store, campaign_id, report)

    def narrow(self, lease: HeldLease, offer: Offer) -> Offer:
        return replace(offer, rounds=min(offer.rounds, self.chance.randint(1, 3)))

    def acknowledged(self, report: Report, ack: ReportAck) -> ReportAck:
        """Remember what was acknowledged, whether or not anybody hears of it."""
        self.acks.append(report)
        return ack
