"""A coordinator and a worker in memory, for tests of the agent: fakes made of functions, answering like the real."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lutbuilder_agent.errors import UnknownName, Unreachable
from lutbuilder_agent.records import (
    AgentHello,
    ArtifactRef,
    DeviceState,
    Failure,
    Fingerprint,
    Lease,
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
from lutbuilder_agent.wire.api import Idle, LeaseAnswer

CHUNK_BYTES = 1000
FINGERPRINT = Fingerprint(device="fake-1", facts=(("os", "none"),))
RUNTIMES = (RuntimeReport(name="simulated", version="1"),)


def artifact(number: int) -> bytes:
    """Some bytes that differ by `number`."""
    return bytes([number % 251]) * 2500 + str(number).encode()


def leased_op(number: int, raw: bytes | None = None) -> LeasedOp:
    """An op whose artifact is `artifact(number)`, or `raw`."""
    raw = artifact(number) if raw is None else raw
    ref = ArtifactRef(sha256=hashlib.sha256(raw).hexdigest(), format="graph", size_bytes=len(raw))
    return LeasedOp(op_id=f"op-{number}", artifact=ref)


def lease(number: int = 1, *, n_ops: int = 3, rounds: int = 2, first_round: int = 0, ttl_s: float = 30.0) -> Lease:
    """A lease of ops 0 to n_ops - 1."""
    return Lease(
        lease_id=f"lease-{number}",
        epoch=number,
        campaign_id="campaign",
        ops=tuple(leased_op(n) for n in range(n_ops)),
        plan=Plan(runtime="simulated"),
        first_round=first_round,
        rounds=rounds,
        ttl_s=ttl_s,
    )


def report(report_id: str = "r-1", *, samples: Sequence[int] = (1000, 1001), round: int = 0) -> Report:
    """A report of one visit."""
    timing = Timing(
        op_id="op-0", round=round, order=0, instance=0, start_ns=5, warmup_ns=(9,), samples_ns=tuple(samples)
    )
    return Report(
        report_id=report_id,
        session_id="session-0",
        lease_id="lease-1",
        lease_epoch=1,
        campaign_id="campaign",
        round=round,
        timings=(timing,),
    )


def _acknowledge(report: Report) -> ReportAck:
    return ReportAck(report_id=report.report_id)


def _nothing(call: str) -> None:
    return None


@dataclass
class FakeCoordinator:
    """Hands out `leases` in turn, those in `ahead` to whoever asks for one to follow; keeps every report by id.

    `on_call` runs before every call and may raise; `answer` makes the acknowledgement of a stored report, or raises as
    if the answer was lost. `connections` counts how often somebody connected, `open` how many are connected now.
    """

    leases: list[Lease] = field(default_factory=list)
    ahead: list[Lease] = field(default_factory=list)
    protocol: int = 2
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    answer: Callable[[Report], ReportAck] = _acknowledge
    on_call: Callable[[str], None] = _nothing
    cancelled: Callable[[str], bool] = lambda lease_id: False
    shut_down: bool = False

    calls: list[str] = field(default_factory=list)
    hellos: list[AgentHello] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)
    quiet_s: list[float] = field(default_factory=list)
    beats: list[str] = field(default_factory=list)
    fetched: list[tuple[str, int]] = field(default_factory=list)
    states: list[DeviceState] = field(default_factory=list)
    connections: int = 0
    open: int = 0

    def __post_init__(self) -> None:
        if not self.artifacts:
            numbers = range(16)
            self.artifacts = {leased_op(n).artifact.sha256: artifact(n) for n in numbers}

    def connect(self) -> FakeClient:
        self.connections += 1
        self.open += 1
        return FakeClient(self)

    @property
    def rounds(self) -> list[int]:
        """Rounds of the reports, in the order of their first arrival."""
        return [report.round for report in self.reports.values()]

    # --- AgentApi

    def register(self, hello: AgentHello, *, caller: object = None) -> Session:
        self._called("register")
        self.hellos.append(hello)
        number = len(self.hellos)
        return Session(session_id=f"session-{number}", epoch=number, protocol=self.protocol, heartbeat_s=10.0)

    def lease(
        self, session_id: str, state: DeviceState, wait_s: float, *, ahead_of: str = "", caller: object = None
    ) -> LeaseAnswer:
        self._called(f"lease ahead of {ahead_of}" if ahead_of else "lease")
        if ahead_of:
            return self.ahead.pop(0) if self.ahead else Idle(ask_again_s=0.0)
        self.states.append(state)
        if state == "ok" and self.leases:
            return self.leases.pop(0)
        return Idle(ask_again_s=1.0, shut_down=self.shut_down)

    def fetch(self, session_id: str, sha256: str, offset: int) -> Iterator[bytes]:
        self._called("fetch")
        self.fetched.append((sha256, offset))
        if sha256 not in self.artifacts:
            raise UnknownName(f"no artifact {sha256}")
        raw = self.artifacts[sha256]
        for start in range(offset, len(raw), CHUNK_BYTES):
            self._called("chunk")
            yield raw[start : start + CHUNK_BYTES]

    def report(self, report: Report) -> ReportAck:
        self._called("report")
        self.reports.setdefault(report.report_id, report)
        return self.answer(report)

    def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool:
        self._called("heartbeat")
        self.beats.append(lease_id)
        self.quiet_s.append(quiet_s)
        return self.cancelled(lease_id)

    def _called(self, call: str) -> None:
        self.calls.append(call)
        self.on_call(call)


class FakeClient:
    """One connection to a FakeCoordinator; every call on a closed one is Unreachable."""

    def __init__(self, coordinator: FakeCoordinator) -> None:
        self._coordinator = coordinator
        self._closed = False

    def register(self, hello: AgentHello) -> Session:
        return self._open().register(hello)

    def lease(self, session_id: str, state: DeviceState, wait_s: float, *, ahead_of: str = "") -> LeaseAnswer:
        return self._open().lease(session_id, state, wait_s, ahead_of=ahead_of)

    def fetch(self, session_id: str, sha256: str, offset: int) -> Iterator[bytes]:
        return self._open().fetch(session_id, sha256, offset)

    def report(self, report: Report) -> ReportAck:
        return self._open().report(report)

    def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool:
        return self._open().heartbeat(session_id, lease_id, quiet_s)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._coordinator.open -= 1

    def _open(self) -> FakeCoordinator:
        if self._closed:
            raise Unreachable("this connection was closed")
        return self._coordinator


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRound:
    """What a FakeWorker saw."""

    timings: tuple[Timing, ...]
    failures: tuple[Failure, ...]
    round_ns: int
    timed_ns: int


@dataclass
class FakeWorker:
    """Times nothing: `sample(op_id, round)` is what a visit sees. `on_round` runs in every round and may raise."""

    sample: Callable[[OpId, int], Sequence[int] | Failure] = lambda op_id, round: (1000 + round, 1001 + round)
    on_round: Callable[[int], None] = lambda round: None
    prepare_failures: tuple[Failure, ...] = ()
    ops: list[OpId] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    dropped: list[OpId] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    retired: int = 0
    closed: int = 0
    reached: Reached = field(default_factory=Reached)

    def begin(self, ops: Sequence[tuple[LeasedOp, Path]]) -> None:
        failed = {failure.op_id for failure in self.prepare_failures}
        self.ops = [op.op_id for op, _ in ops if op.op_id not in failed]
        self.paths = [path for _, path in ops]

    def loaded(self) -> tuple[Failure, ...]:
        return self.prepare_failures

    def run_round(self, round: int, *, at_end: AtEnd | None = None) -> FakeRound:
        self.on_round(round)
        self.rounds.append(round)
        timings: list[Timing] = []
        failures: list[Failure] = []
        for order, op_id in enumerate(list(self.ops)):
            seen = self.sample(op_id, round)
            if isinstance(seen, Failure):
                failures.append(seen)
                self.ops.remove(op_id)
                continue
            timings.append(
                Timing(
                    op_id=op_id,
                    round=round,
                    order=order,
                    instance=0,
                    start_ns=round * 1_000_000 + order,
                    warmup_ns=(2000,),
                    samples_ns=tuple(seen),
                )
            )
        if at_end is not None:
            at_end(self.reached)
        return FakeRound(timings=tuple(timings), failures=tuple(failures), round_ns=5_000_000, timed_ns=4_000_000)

    def drop(self, op_ids: Sequence[OpId]) -> None:
        self.dropped += op_ids
        self.ops = [op_id for op_id in self.ops if op_id not in op_ids]

    def retire(self) -> None:
        self.retired += 1

    def close(self) -> None:
        self.closed += 1


@dataclass
class FakeClock:
    """Time that passes only when somebody sleeps."""

    now_s: float = 100.0
    slept_s: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds
