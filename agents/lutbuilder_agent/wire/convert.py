"""Records to protos and back: the only module that knows both. `<type>_to_proto`, `<type>_from_proto` come in pairs.

Every function raises WireError for what does not fit: a missing part, an UNSPECIFIED or unknown enum member, a number
out of range. Nothing unknown becomes a default. The tests round-trip every type and walk every enum member.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from lutbuilder_agent.errors import WireError
from lutbuilder_agent.records import (
    CACHES,
    DEVICE_STATES,
    FAILURE_REASONS,
    FORMATS,
    AgentHello,
    ArtifactRef,
    Cache,
    Conditions,
    DeviceState,
    Failure,
    FailureReason,
    Fingerprint,
    Format,
    Lease,
    LeasedOp,
    Plan,
    Report,
    ReportAck,
    RuntimeReport,
    Session,
    Timing,
)
from lutbuilder_agent.wire import agent_pb2, measure_pb2
from lutbuilder_agent.wire.api import Idle, LeaseAnswer

if TYPE_CHECKING:
    from google.protobuf.message import Message

DETAIL_BYTES = 4096  # of a failure's text
_MAX_COUNT = 1 << 62  # fits the 64-bit integers of every store
_MAX_ROUND = 1 << 31

_M = TypeVar("_M", bound="Message")


class _Enum(Protocol):
    def keys(self) -> list[str]: ...
    def Name(self, number: int) -> str: ...  # noqa: N802  # protobuf's own spelling


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn the refusals of records and of protobuf (both ValueErrors or TypeErrors) into WireError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise WireError(f"malformed {what}: {error}") from error


def parse(kind: type[_M], raw: bytes) -> _M:
    """Return the message in `raw`. Raises WireError for bytes that are none."""
    from google.protobuf.message import DecodeError

    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise WireError(f"not a {kind.__name__}: {error}") from error
    return message


# --- what a device is


@refusing("Fingerprint")
def fingerprint_to_proto(fingerprint: Fingerprint) -> measure_pb2.Fingerprint:
    return measure_pb2.Fingerprint(device=fingerprint.device, facts=_facts_to_proto(fingerprint.facts))


@refusing("Fingerprint")
def fingerprint_from_proto(message: measure_pb2.Fingerprint) -> Fingerprint:
    return Fingerprint(device=message.device, facts=_facts_from_proto(message.facts))


@refusing("RuntimeReport")
def runtime_report_to_proto(report: RuntimeReport) -> measure_pb2.RuntimeReport:
    return measure_pb2.RuntimeReport(
        name=report.name,
        version=report.version,
        available=report.available,
        reason=report.reason,
        timer_overhead_ns=report.timer_overhead_ns,
        timer_quantum_ns=report.timer_quantum_ns,
    )


@refusing("RuntimeReport")
def runtime_report_from_proto(message: measure_pb2.RuntimeReport) -> RuntimeReport:
    return RuntimeReport(
        name=message.name,
        version=message.version,
        available=message.available,
        reason=message.reason,
        timer_overhead_ns=message.timer_overhead_ns if message.HasField("timer_overhead_ns") else None,
        timer_quantum_ns=message.timer_quantum_ns if message.HasField("timer_quantum_ns") else None,
    )


@refusing("Conditions")
def conditions_to_proto(conditions: Conditions) -> measure_pb2.Conditions:
    return measure_pb2.Conditions(
        monotonic_ns=conditions.monotonic_ns,
        load_1min=conditions.load_1min,
        cpu_mhz=conditions.cpu_mhz,
        temperature_c=conditions.temperature_c,
        throttle_count=conditions.throttle_count,
        steal_s=conditions.steal_s,
    )


@refusing("Conditions")
def conditions_from_proto(message: measure_pb2.Conditions) -> Conditions:
    def reading(name: str) -> float | None:
        if not message.HasField(name):
            return None
        return _finite(name, getattr(message, name))

    throttles = message.throttle_count if message.HasField("throttle_count") else None
    return Conditions(
        monotonic_ns=_count("monotonic_ns", message.monotonic_ns),
        load_1min=reading("load_1min"),
        cpu_mhz=reading("cpu_mhz"),
        temperature_c=reading("temperature_c"),
        throttle_count=None if throttles is None else _count("throttle_count", throttles),
        steal_s=reading("steal_s"),
    )


# --- what to measure


@refusing("Plan")
def plan_to_proto(plan: Plan) -> measure_pb2.Plan:
    return measure_pb2.Plan(
        runtime=plan.runtime,
        threads=plan.threads,
        cache=_member("CACHE", plan.cache),
        train_ops=plan.train_ops,
        instances=plan.instances,
        min_calls=plan.min_calls,
        warmup_calls=plan.warmup_calls,
        min_block_ns=plan.min_block_ns,
        max_calls=plan.max_calls,
        op_timeout_ns=plan.op_timeout_ns,
        seed=plan.seed,
        options=_facts_to_proto(plan.options),
    )


@refusing("Plan")
def plan_from_proto(message: measure_pb2.Plan) -> Plan:
    return Plan(
        runtime=message.runtime,
        threads=message.threads,
        cache=cast(Cache, _value("CACHE", measure_pb2.Cache, message.cache, CACHES)),
        train_ops=message.train_ops,
        instances=message.instances,
        min_calls=message.min_calls,
        warmup_calls=message.warmup_calls,
        min_block_ns=message.min_block_ns,
        max_calls=message.max_calls,
        op_timeout_ns=message.op_timeout_ns,
        seed=message.seed,
        options=_facts_from_proto(message.options),
    )


@refusing("ArtifactRef")
def artifact_ref_to_proto(ref: ArtifactRef) -> measure_pb2.ArtifactRef:
    return measure_pb2.ArtifactRef(sha256=ref.sha256, format=_member("FORMAT", ref.format), size_bytes=ref.size_bytes)


@refusing("ArtifactRef")
def artifact_ref_from_proto(message: measure_pb2.ArtifactRef) -> ArtifactRef:
    return ArtifactRef(
        sha256=message.sha256,
        format=cast(Format, _value("FORMAT", measure_pb2.Format, message.format, FORMATS)),
        size_bytes=message.size_bytes,
    )


@refusing("LeasedOp")
def leased_op_to_proto(op: LeasedOp) -> measure_pb2.LeasedOp:
    artifact = artifact_ref_to_proto(op.artifact)
    return measure_pb2.LeasedOp(op_id=op.op_id, artifact=artifact, every=op.every, solo=op.solo)


@refusing("LeasedOp")
def leased_op_from_proto(message: measure_pb2.LeasedOp) -> LeasedOp:
    _require(message.HasField("artifact"), "LeasedOp", "artifact")
    artifact = artifact_ref_from_proto(message.artifact)
    return LeasedOp(op_id=message.op_id, artifact=artifact, every=message.every, solo=message.solo)


@refusing("Lease")
def lease_to_proto(lease: Lease) -> agent_pb2.Lease:
    return agent_pb2.Lease(
        lease_id=lease.lease_id,
        epoch=lease.epoch,
        campaign_id=lease.campaign_id,
        ops=[leased_op_to_proto(op) for op in lease.ops],
        plan=plan_to_proto(lease.plan),
        first_round=lease.first_round,
        rounds=lease.rounds,
        ttl_s=lease.ttl_s,
    )


@refusing("Lease")
def lease_from_proto(message: agent_pb2.Lease) -> Lease:
    _require(message.HasField("plan"), "Lease", "plan")
    return Lease(
        lease_id=message.lease_id,
        epoch=message.epoch,
        campaign_id=message.campaign_id,
        ops=tuple(leased_op_from_proto(op) for op in message.ops),
        plan=plan_from_proto(message.plan),
        first_round=message.first_round,
        rounds=message.rounds,
        ttl_s=message.ttl_s,
    )


# --- what was seen


@refusing("Timing")
def timing_to_proto(timing: Timing) -> measure_pb2.Timing:
    return measure_pb2.Timing(
        op_id=timing.op_id,
        round=timing.round,
        order=timing.order,
        instance=timing.instance,
        start_ns=timing.start_ns,
        warmup_ns=timing.warmup_ns,
        samples_ns=timing.samples_ns,
        preempted=timing.preempted,
        throttled=None if timing.throttled is None else measure_pb2.Positions(at=timing.throttled),
    )


@refusing("Timing")
def timing_from_proto(message: measure_pb2.Timing) -> Timing:
    return Timing(
        op_id=message.op_id,
        round=message.round,
        order=message.order,
        instance=message.instance,
        start_ns=message.start_ns,
        warmup_ns=tuple(message.warmup_ns),
        samples_ns=tuple(message.samples_ns),
        preempted=tuple(message.preempted),
        throttled=tuple(message.throttled.at) if message.HasField("throttled") else None,
    )


@refusing("Failure")
def failure_to_proto(failure: Failure) -> measure_pb2.Failure:
    """Details of more than 4 KiB are cut, what is no Unicode is replaced: an engine's last words may be anything."""
    detail = failure.detail.encode("utf-8", "replace")[:DETAIL_BYTES].decode("utf-8", "ignore")
    return measure_pb2.Failure(
        op_id=failure.op_id, round=failure.round, reason=_member("FAILURE_REASON", failure.reason), detail=detail
    )


@refusing("Failure")
def failure_from_proto(message: measure_pb2.Failure) -> Failure:
    if len(message.detail.encode()) > DETAIL_BYTES:
        raise WireError(f"malformed Failure: detail is longer than {DETAIL_BYTES} bytes")
    reason = _value("FAILURE_REASON", measure_pb2.FailureReason, message.reason, FAILURE_REASONS)
    return Failure(op_id=message.op_id, round=message.round, reason=cast(FailureReason, reason), detail=message.detail)


@refusing("ReportRequest")
def report_to_proto(report: Report) -> agent_pb2.ReportRequest:
    return agent_pb2.ReportRequest(
        report_id=report.report_id,
        session_id=report.session_id,
        lease_id=report.lease_id,
        lease_epoch=report.lease_epoch,
        campaign_id=report.campaign_id,
        round=report.round,
        timings=[timing_to_proto(timing) for timing in report.timings],
        failures=[failure_to_proto(failure) for failure in report.failures],
        before=None if report.before is None else conditions_to_proto(report.before),
        after=None if report.after is None else conditions_to_proto(report.after),
        round_ns=report.round_ns,
        timed_ns=report.timed_ns,
    )


@refusing("ReportRequest")
def report_from_proto(message: agent_pb2.ReportRequest) -> Report:
    return Report(
        report_id=message.report_id,
        session_id=message.session_id,
        lease_id=message.lease_id,
        lease_epoch=_count("lease_epoch", message.lease_epoch),
        campaign_id=message.campaign_id,
        round=_count("round", message.round, _MAX_ROUND),
        timings=tuple(timing_from_proto(timing) for timing in message.timings),
        failures=tuple(failure_from_proto(failure) for failure in message.failures),
        before=conditions_from_proto(message.before) if message.HasField("before") else None,
        after=conditions_from_proto(message.after) if message.HasField("after") else None,
        round_ns=_count("round_ns", message.round_ns),
        timed_ns=_count("timed_ns", message.timed_ns),
    )


def report_to_bytes(report: Report) -> bytes:
    """Return a report as the agent's spool keeps it: its message, encoded."""
    return report_to_proto(report).SerializeToString()


def report_from_bytes(raw: bytes) -> Report:
    """Return the report in `raw`. Raises WireError for bytes that are none."""
    return report_from_proto(parse(agent_pb2.ReportRequest, raw))


@refusing("ReportResponse")
def ack_to_proto(ack: ReportAck) -> agent_pb2.ReportResponse:
    return agent_pb2.ReportResponse(report_id=ack.report_id, stop=ack.stop, drop=ack.drop)


@refusing("ReportResponse")
def ack_from_proto(message: agent_pb2.ReportResponse) -> ReportAck:
    _require(bool(message.report_id), "ReportResponse", "report_id")
    return ReportAck(report_id=message.report_id, stop=message.stop, drop=tuple(message.drop))


# --- sessions, and the requests that are no record of their own


@refusing("RegisterRequest")
def hello_to_proto(hello: AgentHello) -> agent_pb2.RegisterRequest:
    return agent_pb2.RegisterRequest(
        agent_name=hello.name,
        agent_version=hello.agent_version,
        protocol_min=hello.protocol_min,
        protocol_max=hello.protocol_max,
        fingerprint=fingerprint_to_proto(hello.fingerprint),
        runtimes=[runtime_report_to_proto(report) for report in hello.runtimes],
        clock_domain=hello.clock_domain,
    )


@refusing("RegisterRequest")
def hello_from_proto(message: agent_pb2.RegisterRequest) -> AgentHello:
    _require(message.HasField("fingerprint"), "RegisterRequest", "fingerprint")
    if not 1 <= message.protocol_min <= message.protocol_max:
        raise WireError(
            "malformed RegisterRequest: "
            f"protocols {message.protocol_min} to {message.protocol_max} are no range from 1 up"
        )
    return AgentHello(
        name=message.agent_name,
        agent_version=message.agent_version,
        fingerprint=fingerprint_from_proto(message.fingerprint),
        runtimes=tuple(runtime_report_from_proto(report) for report in message.runtimes),
        protocol_min=message.protocol_min,
        protocol_max=message.protocol_max,
        clock_domain=message.clock_domain,
    )


@refusing("RegisterResponse")
def session_to_proto(session: Session) -> agent_pb2.RegisterResponse:
    return agent_pb2.RegisterResponse(
        session_id=session.session_id,
        epoch=session.epoch,
        protocol=session.protocol,
        heartbeat_s=session.heartbeat_s,
    )


@refusing("RegisterResponse")
def session_from_proto(message: agent_pb2.RegisterResponse) -> Session:
    _require(bool(message.session_id), "RegisterResponse", "session_id")
    return Session(
        session_id=message.session_id,
        epoch=_count("epoch", message.epoch),
        protocol=message.protocol,
        heartbeat_s=_seconds("heartbeat_s", message.heartbeat_s),
    )


@refusing("LeaseRequest")
def lease_request_to_proto(
    session_id: str, state: DeviceState, wait_s: float, ahead_of: str = ""
) -> agent_pb2.LeaseRequest:
    member = _member("DEVICE_STATE", state)
    return agent_pb2.LeaseRequest(session_id=session_id, state=member, wait_s=wait_s, ahead_of=ahead_of)


@refusing("LeaseRequest")
def lease_request_from_proto(message: agent_pb2.LeaseRequest) -> tuple[str, DeviceState, float, str]:
    """Return (session_id, state, wait_s, ahead_of)."""
    state = _value("DEVICE_STATE", agent_pb2.DeviceState, message.state, DEVICE_STATES)
    return message.session_id, cast(DeviceState, state), _seconds("wait_s", message.wait_s), message.ahead_of


@refusing("LeaseResponse")
def lease_answer_to_proto(answer: LeaseAnswer) -> agent_pb2.LeaseResponse:
    if isinstance(answer, Idle):
        return agent_pb2.LeaseResponse(ask_again_s=answer.ask_again_s, shut_down=answer.shut_down)
    return agent_pb2.LeaseResponse(lease=lease_to_proto(answer))


@refusing("LeaseResponse")
def lease_answer_from_proto(message: agent_pb2.LeaseResponse) -> LeaseAnswer:
    if message.HasField("lease"):
        return lease_from_proto(message.lease)
    return Idle(ask_again_s=_seconds("ask_again_s", message.ask_again_s), shut_down=message.shut_down)


@refusing("FetchArtifactRequest")
def fetch_request_to_proto(session_id: str, sha256: str, offset: int) -> agent_pb2.FetchArtifactRequest:
    return agent_pb2.FetchArtifactRequest(session_id=session_id, sha256=sha256, offset=offset)


@refusing("FetchArtifactRequest")
def fetch_request_from_proto(message: agent_pb2.FetchArtifactRequest) -> tuple[str, str, int]:
    """Return (session_id, sha256, offset)."""
    return message.session_id, message.sha256, _count("offset", message.offset)


@refusing("HeartbeatRequest")
def heartbeat_to_proto(session_id: str, lease_id: str, quiet_s: float) -> agent_pb2.HeartbeatRequest:
    return agent_pb2.HeartbeatRequest(session_id=session_id, lease_id=lease_id, quiet_s=quiet_s)


@refusing("HeartbeatRequest")
def heartbeat_from_proto(message: agent_pb2.HeartbeatRequest) -> tuple[str, str, float]:
    """Return (session_id, lease_id, quiet_s)."""
    return message.session_id, message.lease_id, _seconds("quiet_s", message.quiet_s)


# --- the parts


def _facts_to_proto(facts: Iterable[tuple[str, str]]) -> list[measure_pb2.Fact]:
    return [measure_pb2.Fact(name=name, value=value) for name, value in facts]


def _facts_from_proto(facts: Iterable[measure_pb2.Fact]) -> tuple[tuple[str, str], ...]:
    return tuple((fact.name, fact.value) for fact in facts)


def _member(prefix: str, value: str) -> str:
    """Name of an enum member; protobuf refuses (ValueError) a name it does not know."""
    return f"{prefix}_{value.upper()}"


def _value(prefix: str, enum: _Enum, number: int, known: Sequence[str]) -> str:
    """Return the value of an enum member, e.g. "hot"; UNSPECIFIED is never one."""
    value = enum.Name(number).removeprefix(f"{prefix}_").lower()  # ValueError for a number nobody named
    if value not in known:
        raise WireError(f"{prefix} is {enum.Name(number)}, which is never a meaning")
    return value


def _require(present: bool, what: str, part: str) -> None:
    if not present:
        raise WireError(f"malformed {what}: {part} is missing")


def _count(name: str, value: int, high: int = _MAX_COUNT) -> int:
    if value > high:
        raise ValueError(f"{name} must be at most {high}, got {value}")
    return value


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def _seconds(name: str, value: float) -> float:
    if not 0 <= value < 1e7:
        raise ValueError(f"{name} must be from 0 to 1e7 seconds, got {value}")
    return value
