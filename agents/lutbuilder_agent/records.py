"""The types both sides of the wire share: what to measure (Plan, Lease) and what was seen (Timing, Failure).

All are frozen, keyword-only and refuse nonsense at birth. `wire/convert.py` alone turns them into protos.
Times ending in `_ns` are nanoseconds; `start_ns` counts on the session's own monotonic clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from lutbuilder_agent.errors import SpecError

PROTOCOL_VERSION = 2  # newest spoken here; 2 added leases ahead
PROTOCOL_OLDEST = 1

OpId = str  # see lutbuilder.op; opaque to the agent
Cache = Literal["hot", "rotating", "flushed", "cold"]
Format = Literal["onnx", "tflite", "graph"]
FailureReason = Literal[
    "unsupported", "crashed", "timed_out", "out_of_memory", "wrong_output", "bad_artifact", "unstable"
]
DeviceState = Literal["ok", "hot", "low_battery", "draining"]
CACHES: tuple[str, ...] = get_args(Cache)
FORMATS: tuple[str, ...] = get_args(Format)
FAILURE_REASONS: tuple[str, ...] = get_args(FailureReason)
DEVICE_STATES: tuple[str, ...] = get_args(DeviceState)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_MAX_NS = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a lease is to be timed (measurement.md).

    A visit is a block of at least `min_calls` counted calls lasting at least `min_block_ns`, after `warmup_calls` that
    are kept apart. A round visits every op of the lease once, in an order shuffled by (`seed`, round). Each artifact is
    prepared `instances` times; visits take them in turn. `threads`, `cache` and `runtime` are conditions of the target.
    With caches `rotating` and `cold`, `train_ops` ops are visited together, their calls taking turns; with `cold` whole
    networks take turns, too.
    """

    runtime: str
    threads: int = 1
    cache: Cache = "hot"
    train_ops: int = 1
    instances: int = 3
    min_calls: int = 3
    warmup_calls: int = 1
    min_block_ns: int = 12_000_000
    max_calls: int = 200
    op_timeout_ns: int = 60_000_000_000
    seed: int = 0
    options: tuple[tuple[str, str], ...] = ()  # runtime options, e.g. (("memory_format", "contiguous"),)

    def __post_init__(self) -> None:
        _check_name("runtime", self.runtime)
        if self.cache not in CACHES:
            raise SpecError(f"cache must be one of {', '.join(CACHES)}, got {self.cache!r}")
        for name, low, high in (
            ("threads", 1, 1024),
            ("train_ops", 1, 1024),
            ("instances", 1, 64),
            ("min_calls", 1, 10_000),
            ("warmup_calls", 1, 10_000),
            ("min_block_ns", 0, 60_000_000_000),
            ("max_calls", 1, 1_000_000),
            ("op_timeout_ns", 1_000_000, 86_400_000_000_000),
            ("seed", 0, (1 << 63) - 1),
        ):
            _check_int(name, getattr(self, name), low, high)
        if self.max_calls < self.min_calls:
            raise SpecError(f"max_calls ({self.max_calls}) is below min_calls ({self.min_calls})")
        if (self.cache in ("rotating", "cold")) != (self.train_ops > 1):
            raise SpecError(
                f"train_ops above 1 goes with cache rotating or cold, got {self.train_ops} and {self.cache}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRef:
    """An op in runnable form: bytes of `size_bytes`, named by their sha256."""

    sha256: str
    format: Format
    size_bytes: int

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise SpecError(f"sha256 must be 64 hex digits, got {self.sha256!r}")
        if self.format not in FORMATS:
            raise SpecError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        _check_int("size_bytes", self.size_bytes, 0, 1 << 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedOp:
    """One op of a lease. `every` = n: visited in every n-th round only (whole networks take longer than ops).

    `solo`: timed in a block of its own (a whole network makes its own cache state); with cache `cold` it takes turns
    with the others that are.
    """

    op_id: OpId
    artifact: ArtifactRef
    every: int = 1
    solo: bool = False

    def __post_init__(self) -> None:
        _check_name("op_id", self.op_id)
        _check_int("every", self.every, 1, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """An agent's exclusive, expiring right to measure `ops`, rounds `first_round` to `first_round + rounds - 1`."""

    lease_id: str
    epoch: int
    campaign_id: str
    ops: tuple[LeasedOp, ...]
    plan: Plan
    first_round: int
    rounds: int
    ttl_s: float

    def __post_init__(self) -> None:
        _check_name("lease_id", self.lease_id)
        _check_name("campaign_id", self.campaign_id)
        _check_int("epoch", self.epoch, 0, _MAX_NS)
        _check_int("first_round", self.first_round, 0, 1 << 31)
        _check_int("rounds", self.rounds, 1, 1 << 31)
        if not self.ops:
            raise SpecError("a lease has at least one op")
        ids = [op.op_id for op in self.ops]
        if len(set(ids)) != len(ids):
            raise SpecError("a lease names each op once")
        if not 0 < self.ttl_s < 1e7:
            raise SpecError(f"ttl_s must be positive, got {self.ttl_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one visit saw: raw samples in ns per call, never only a mean.

    `preempted` lists positions in `samples_ns` during which the core was lost, `throttled` those from the pass on in
    which the device's throttle counters moved; None: the device has no such counters. Both kinds are kept, counted, and
    left out of medians. `order` is the visit's place in its round; `instance` numbers preparations within the session.
    """

    op_id: OpId
    round: int
    order: int
    instance: int
    start_ns: int
    warmup_ns: tuple[int, ...]
    samples_ns: tuple[int, ...]
    preempted: tuple[int, ...] = ()
    throttled: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_name("op_id", self.op_id)
        for name in ("round", "order", "instance"):
            _check_int(name, getattr(self, name), 0, 1 << 31)
        _check_int("start_ns", self.start_ns, 0, _MAX_NS)
        if not self.samples_ns:
            raise SpecError("samples_ns must not be empty")
        for name in ("samples_ns", "warmup_ns"):
            values = getattr(self, name)
            if any(type(ns) is not int or not 0 < ns < _MAX_NS for ns in values):
                raise SpecError(f"{name} must be positive integers, got {values[:3]}")
        for name in ("preempted", "throttled"):
            positions = getattr(self, name) or ()
            if any(type(i) is not int or not 0 <= i < len(self.samples_ns) for i in positions):
                raise SpecError(f"{name} must be positions in samples_ns, got {positions[:3]}")

    @property
    def disturbed(self) -> tuple[int, ...]:
        """Positions in `samples_ns` that medians leave out: preempted or throttled, each once."""
        return tuple(sorted({*self.preempted, *(self.throttled or ())}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An expected failure of one op, as data: why, and the engine's own words."""

    op_id: OpId
    round: int
    reason: FailureReason
    detail: str = ""

    def __post_init__(self) -> None:
        _check_name("op_id", self.op_id)
        _check_int("round", self.round, 0, 1 << 31)
        if self.reason not in FAILURE_REASONS:
            raise SpecError(f"reason must be one of {', '.join(FAILURE_REASONS)}, got {self.reason!r}")


Outcome = Timing | Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How the device was set and loaded around a round; None where it cannot be read, never 0."""

    monotonic_ns: int
    load_1min: float | None = None
    cpu_mhz: float | None = None
    temperature_c: float | None = None
    throttle_count: int | None = None
    steal_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReport:
    """One runtime as probed on this device in a subprocess: `version` if it runs, else why not and what to type.

    What one reading of its clock costs and the smallest step that clock makes are measured by the probe; None: they
    were not (an older agent, or the runtime does not run).
    """

    name: str
    version: str = ""
    available: bool = True
    reason: str = ""
    timer_overhead_ns: int | None = None
    timer_quantum_ns: int | None = None

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        for name in ("timer_overhead_ns", "timer_quantum_ns"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0, _MAX_NS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What this device is: stable facts only (model, flags, caches, OS, libraries), sorted; `env_id` hashes them.

    Two fingerprints pool only if equal. Loads, temperatures and current clocks are Conditions, never here.
    """

    device: str  # slug of the silicon, e.g. "amd-epyc-9b14"; names the LUT folder
    facts: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        _check_name("device", self.device)
        names = [name for name, _ in self.facts]
        if names != sorted(set(names)):
            raise SpecError("facts must be sorted by name, each name once")

    @property
    def env_id(self) -> str:
        """First 16 hex digits of the sha256 of device and facts."""
        import hashlib
        import json

        body = json.dumps([self.device, self.facts], separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHello:
    """What an agent says when it registers. `name` is stable over restarts; a second one of a name fences the first.

    Agents of one `clock_domain` disturb each other (a host's CPU and GPU): among them one lease at a time. Empty: the
    agent is a domain of its own.
    """

    name: str
    agent_version: str
    fingerprint: Fingerprint
    runtimes: tuple[RuntimeReport, ...]
    protocol_min: int = PROTOCOL_OLDEST
    protocol_max: int = PROTOCOL_VERSION
    clock_domain: str = ""

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        if self.clock_domain:
            _check_name("clock_domain", self.clock_domain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The answer to AgentHello: one stretch in one environment. `epoch` fences older sessions of that name."""

    session_id: str
    epoch: int
    protocol: int
    heartbeat_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One finished round (or part of one) of a lease. The same `report_id` again is acknowledged, nothing changes."""

    report_id: str
    session_id: str
    lease_id: str
    lease_epoch: int
    campaign_id: str
    round: int
    timings: tuple[Timing, ...]
    failures: tuple[Failure, ...] = ()
    before: Conditions | None = None
    after: Conditions | None = None
    round_ns: int = 0  # wall time of the round on the device
    timed_ns: int = 0  # of which inside timed visits

    def __post_init__(self) -> None:
        for name in ("report_id", "session_id", "lease_id", "campaign_id"):
            _check_name(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportAck:
    """Given only after the store has committed. `stop`: the lease is over; `drop`: ops that leave the rotation."""

    report_id: str
    stop: bool = False
    drop: tuple[OpId, ...] = field(default=())


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise SpecError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise SpecError(
            f"{name} must be 1 to 128 letters, digits or ._+- starting with a letter or digit, got {value!r}"
        )
