"""Every record survives the wire, and nothing unknown is let in as a default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.errors import WireError
from lutbuilder_agent.records import (
    CACHES,
    DEVICE_STATES,
    FAILURE_REASONS,
    FORMATS,
    AgentHello,
    ArtifactRef,
    Conditions,
    Failure,
    Fingerprint,
    Lease,
    LeasedOp,
    Plan,
    Report,
    ReportAck,
    RuntimeReport,
    Session,
    Timing,
)
from lutbuilder_agent.wire import agent_pb2, convert, measure_pb2
from lutbuilder_agent.wire.api import Idle

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", fullmatch=True)
TEXTS = st.text(max_size=30)
COUNTS = st.integers(0, (1 << 62) - 1)
ROUNDS = st.integers(0, 1 << 31)
NS = st.integers(1, (1 << 62) - 1)
READINGS = st.none() | st.floats(allow_nan=False, allow_infinity=False)

FINGERPRINTS = st.builds(
    Fingerprint,
    device=NAMES,
    facts=st.dictionaries(TEXTS, TEXTS, max_size=4).map(lambda facts: tuple(sorted(facts.items()))),
)
CONDITIONS = st.builds(
    Conditions,
    monotonic_ns=COUNTS,
    load_1min=READINGS,
    cpu_mhz=READINGS,
    temperature_c=READINGS,
    throttle_count=st.none() | COUNTS,
    steal_s=READINGS,
)
RUNTIME_REPORTS = st.builds(
    RuntimeReport,
    name=NAMES,
    version=TEXTS,
    available=st.booleans(),
    reason=TEXTS,
    timer_overhead_ns=st.none() | COUNTS,
    timer_quantum_ns=st.none() | COUNTS,
)
TURNS = ("rotating", "cold")
ROTATIONS = st.tuples(st.sampled_from(TURNS), st.integers(2, 1024)) | st.tuples(
    st.sampled_from([cache for cache in CACHES if cache not in TURNS]), st.just(1)
)
PLANS = st.tuples(ROTATIONS, st.integers(1, 10_000)).flatmap(
    lambda drawn: st.builds(
        Plan,
        runtime=NAMES,
        threads=st.integers(1, 1024),
        cache=st.just(drawn[0][0]),
        train_ops=st.just(drawn[0][1]),
        instances=st.integers(1, 64),
        min_calls=st.just(drawn[1]),
        warmup_calls=st.integers(1, 10_000),
        min_block_ns=st.integers(0, 60_000_000_000),
        max_calls=st.integers(drawn[1], 1_000_000),
        op_timeout_ns=st.integers(1_000_000, 86_400_000_000_000),
        seed=st.integers(0, (1 << 63) - 1),
        options=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
    )
)
REFS = st.builds(
    ArtifactRef,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    format=st.sampled_from(FORMATS),
    size_bytes=st.integers(0, 1 << 32),
)
LEASED_OPS = st.builds(LeasedOp, op_id=NAMES, artifact=REFS, every=st.integers(1, 1000), solo=st.booleans())
LEASES = st.builds(
    Lease,
    lease_id=NAMES,
    epoch=COUNTS,
    campaign_id=NAMES,
    ops=st.lists(LEASED_OPS, min_size=1, max_size=4, unique_by=lambda op: op.op_id).map(tuple),
    plan=PLANS,
    first_round=ROUNDS,
    rounds=st.integers(1, 1 << 31),
    ttl_s=st.floats(0.001, 9e6),
)
TIMINGS = st.lists(NS, min_size=1, max_size=20).flatmap(
    lambda samples: st.builds(
        Timing,
        op_id=NAMES,
        round=ROUNDS,
        order=ROUNDS,
        instance=ROUNDS,
        start_ns=COUNTS,
        warmup_ns=st.lists(NS, max_size=3).map(tuple),
        samples_ns=st.just(tuple(samples)),
        preempted=st.lists(st.integers(0, len(samples) - 1), max_size=3).map(tuple),
        throttled=st.none() | st.lists(st.integers(0, len(samples) - 1), max_size=3).map(tuple),
    )
)
FAILURES = st.builds(Failure, op_id=NAMES, round=ROUNDS, reason=st.sampled_from(FAILURE_REASONS), detail=TEXTS)
HELLOS = st.integers(1, 1 << 31).flatmap(
    lambda oldest: st.builds(
        AgentHello,
        name=NAMES,
        agent_version=TEXTS,
        fingerprint=FINGERPRINTS,
        runtimes=st.lists(RUNTIME_REPORTS, max_size=3).map(tuple),
        protocol_min=st.just(oldest),
        protocol_max=st.integers(oldest, (1 << 32) - 1),
        clock_domain=st.just("") | NAMES,
    )
)
SESSIONS = st.builds(
    Session, session_id=NAMES, epoch=COUNTS, protocol=st.integers(0, (1 << 32) - 1), heartbeat_s=st.floats(0, 9e6)
)
REPORTS = st.builds(
    Report,
    report_id=NAMES,
    session_id=NAMES,
    lease_id=NAMES,
    lease_epoch=COUNTS,
    campaign_id=NAMES,
    round=ROUNDS,
    timings=st.lists(TIMINGS, max_size=3).map(tuple),
    failures=st.lists(FAILURES, max_size=3).map(tuple),
    before=st.none() | CONDITIONS,
    after=st.none() | CONDITIONS,
    round_ns=COUNTS,
    timed_ns=COUNTS,
)
ACKS = st.builds(ReportAck, report_id=NAMES, stop=st.booleans(), drop=st.lists(NAMES, max_size=3).map(tuple))
IDLES = st.builds(Idle, ask_again_s=st.floats(0, 9e5), shut_down=st.booleans())

PAIRS: dict[str, tuple[st.SearchStrategy[Any], type[Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "fingerprint": (
        FINGERPRINTS, measure_pb2.Fingerprint, convert.fingerprint_to_proto, convert.fingerprint_from_proto),
    "conditions": (CONDITIONS, measure_pb2.Conditions, convert.conditions_to_proto, convert.conditions_from_proto),
    "runtime_report": (
        RUNTIME_REPORTS, measure_pb2.RuntimeReport, convert.runtime_report_to_proto, convert.runtime_report_from_proto),
    "plan": (PLANS, measure_pb2.Plan, convert.plan_to_proto, convert.plan_from_proto),
    "artifact_ref": (REFS, measure_pb2.ArtifactRef, convert.artifact_ref_to_proto, convert.artifact_ref_from_proto),
    "leased_op": (LEASED_OPS, measure_pb2.LeasedOp, convert.leased_op_to_proto, convert.leased_op_from_proto),
    "lease": (LEASES, agent_pb2.Lease, convert.lease_to_proto, convert.lease_from_proto),
    "timing": (TIMINGS, measure_pb2.Timing, convert.timing_to_proto, convert.timing_from_proto),
    "failure": (FAILURES, measure_pb2.Failure, convert.failure_to_proto, convert.failure_from_proto),
    "hello": (HELLOS, agent_pb2.RegisterRequest, convert.hello_to_proto, convert.hello_from_proto),
    "session": (SESSIONS, agent_pb2.RegisterResponse, convert.session_to_proto, convert.session_from_proto),
    "lease_answer": (
        LEASES | IDLES, agent_pb2.LeaseResponse, convert.lease_answer_to_proto, convert.lease_answer_from_proto),
    "report": (REPORTS, agent_pb2.ReportRequest, convert.report_to_proto, convert.report_from_proto),
    "ack": (ACKS, agent_pb2.ReportResponse, convert.ack_to_proto, convert.ack_from_proto),
}  # fmt: skip  # a table: one record, one line


@pytest.mark.parametrize("name", PAIRS)
def test_every_record_survives_the_wire(name: str) -> None:
    records, message, to_proto, from_proto = PAIRS[name]

    @given(records)
    def round_trip(record: Any) -> None:
        raw = to_proto(record).SerializeToString()
        assert from_proto(convert.parse(message, raw)) == record

    round_trip()


def test_every_pair_of_functions_is_in_the_table() -> None:
    requests = {"lease_request", "fetch_request", "heartbeat"}
    for suffix in ("_to_proto", "_from_proto"):
        public = {n.removesuffix(suffix) for n in vars(convert) if n.endswith(suffix) and not n.startswith("_")}
        assert public == {*PAIRS, *requests}


@given(st.text(max_size=20), st.sampled_from(DEVICE_STATES), st.floats(0, 9e6), COUNTS)
def test_requests_survive_the_wire(session_id: str, state: Any, seconds: float, offset: int) -> None:
    lease = convert.lease_request_to_proto(session_id, state, seconds, "l1")
    assert convert.lease_request_from_proto(lease) == (session_id, state, seconds, "l1")
    fetch = convert.fetch_request_to_proto(session_id, "ab", offset)
    assert convert.fetch_request_from_proto(fetch) == (session_id, "ab", offset)
    heartbeat = convert.heartbeat_to_proto(session_id, "l1", seconds)
    assert convert.heartbeat_from_proto(heartbeat) == (session_id, "l1", seconds)


@pytest.mark.parametrize(
    ("enum", "prefix", "values"),
    [
        (measure_pb2.Cache, "CACHE", CACHES),
        (measure_pb2.Format, "FORMAT", FORMATS),
        (measure_pb2.FailureReason, "FAILURE_REASON", FAILURE_REASONS),
        (agent_pb2.DeviceState, "DEVICE_STATE", DEVICE_STATES),
    ],
)
def test_enums_and_literals_have_the_same_members(enum: Any, prefix: str, values: tuple[str, ...]) -> None:
    assert [f"{prefix}_UNSPECIFIED", *(f"{prefix}_{value.upper()}" for value in values)] == enum.keys()


def _plan(**values: Any) -> measure_pb2.Plan:
    message = convert.plan_to_proto(Plan(runtime="onnxruntime"))
    message.MergeFrom(measure_pb2.Plan(**values))
    return message


REF: dict[str, Any] = {"sha256": "0" * 64, "format": "FORMAT_ONNX", "size_bytes": 1}
MALFORMED: dict[str, Callable[[], object]] = {
    "unspecified cache": lambda: convert.plan_from_proto(measure_pb2.Plan(runtime="x", threads=1)),
    "unknown cache": lambda: convert.plan_from_proto(_plan(cache=77)),
    "unspecified format": lambda: convert.artifact_ref_from_proto(measure_pb2.ArtifactRef(sha256="0" * 64)),
    "unspecified reason": lambda: convert.failure_from_proto(measure_pb2.Failure(op_id="a", round=1)),
    "unspecified state": lambda: convert.lease_request_from_proto(agent_pb2.LeaseRequest(session_id="s")),
    "short hash": lambda: convert.artifact_ref_from_proto(measure_pb2.ArtifactRef(**{**REF, "sha256": "ab"})),
    "no artifact": lambda: convert.leased_op_from_proto(measure_pb2.LeasedOp(op_id="a", every=1)),
    "no plan": lambda: convert.lease_from_proto(
        agent_pb2.Lease(lease_id="l", campaign_id="c", rounds=1, ttl_s=1, ops=[
            measure_pb2.LeasedOp(op_id="a", every=1, artifact=measure_pb2.ArtifactRef(**REF))])),
    "no fingerprint": lambda: convert.hello_from_proto(
        agent_pb2.RegisterRequest(agent_name="a", protocol_min=1, protocol_max=1)),
    "no samples": lambda: convert.timing_from_proto(measure_pb2.Timing(op_id="a")),
    "throttled beyond the samples": lambda: convert.timing_from_proto(
        measure_pb2.Timing(op_id="a", samples_ns=[5], throttled=measure_pb2.Positions(at=[1]))),
    "a timer that costs more than any store holds": lambda: convert.runtime_report_from_proto(
        measure_pb2.RuntimeReport(name="r", timer_overhead_ns=(1 << 64) - 1)),
    "zero sample": lambda: convert.timing_from_proto(measure_pb2.Timing(op_id="a", samples_ns=[5, 0])),
    "huge sample": lambda: convert.timing_from_proto(measure_pb2.Timing(op_id="a", samples_ns=[1 << 63])),
    "bad op id": lambda: convert.timing_from_proto(measure_pb2.Timing(op_id="../x", samples_ns=[5])),
    "round_ns no store can hold": lambda: convert.report_from_proto(agent_pb2.ReportRequest(
        report_id="r", session_id="s", lease_id="l", campaign_id="c", round_ns=(1 << 64) - 1)),
    "NaN load": lambda: convert.conditions_from_proto(measure_pb2.Conditions(load_1min=float("nan"))),
    "NaN wait": lambda: convert.lease_request_from_proto(
        agent_pb2.LeaseRequest(session_id="s", state="DEVICE_STATE_OK", wait_s=float("nan"))),
    "long detail": lambda: convert.failure_from_proto(
        measure_pb2.Failure(op_id="a", reason="FAILURE_REASON_CRASHED", detail="x" * 5000)),
    "inverted protocols": lambda: convert.hello_from_proto(agent_pb2.RegisterRequest(
        agent_name="a", protocol_min=2, protocol_max=1, fingerprint=measure_pb2.Fingerprint(device="d"))),
    "unknown state": lambda: convert.lease_request_from_proto(agent_pb2.LeaseRequest(session_id="s", state=9)),
    "unknown format": lambda: convert.artifact_ref_from_proto(measure_pb2.ArtifactRef(**{**REF, "format": 9})),
    "unknown reason": lambda: convert.failure_from_proto(measure_pb2.Failure(op_id="a", reason=99)),
    "a clock domain that is no name": lambda: convert.hello_from_proto(agent_pb2.RegisterRequest(
        agent_name="a", protocol_min=1, protocol_max=1, clock_domain="a/b",
        fingerprint=measure_pb2.Fingerprint(device="d"))),
    "unsorted facts": lambda: convert.fingerprint_from_proto(measure_pb2.Fingerprint(
        device="d", facts=[measure_pb2.Fact(name="b"), measure_pb2.Fact(name="a")])),
    "nameless session": lambda: convert.session_from_proto(agent_pb2.RegisterResponse(epoch=1)),
    "nameless ack": lambda: convert.ack_from_proto(agent_pb2.ReportResponse(stop=True)),
    "negative on the way out": lambda: convert.conditions_to_proto(Conditions(monotonic_ns=-1)),
    "no Unicode on the way out": lambda: convert.fingerprint_to_proto(
        Fingerprint(device="d", facts=(("cpu", "\udc80"),))),
}  # fmt: skip  # a table: one malformed message, one entry


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_messages_are_wire_errors(name: str) -> None:
    with pytest.raises(WireError):
        MALFORMED[name]()


@given(st.binary(max_size=200))
def test_fuzzed_bytes_are_a_record_or_a_wire_error(raw: bytes) -> None:
    for _, message, _, from_proto in PAIRS.values():
        try:
            from_proto(convert.parse(message, raw))
        except WireError:
            continue  # the one refusal there is; any other exception fails this test


@given(REPORTS.map(lambda report: convert.report_to_proto(report).SerializeToString()), st.data())
def test_a_damaged_report_is_a_report_or_a_wire_error(raw: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(raw) - 1))
    damaged = raw[:position] + bytes([data.draw(st.integers(0, 255))]) + raw[position + 1 :]
    try:
        report = convert.report_from_proto(convert.parse(agent_pb2.ReportRequest, damaged))
    except WireError:
        return  # the one refusal there is; any other exception fails this test
    assert isinstance(report, Report)


def test_the_last_words_of_an_engine_are_cut_and_cleaned() -> None:
    failure = Failure(op_id="a", round=1, reason="crashed", detail="\udc80" + "é" * 5000)
    back = convert.failure_from_proto(convert.failure_to_proto(failure))
    assert len(back.detail.encode()) in (4095, 4096)
    assert back.detail.startswith("?é")


def test_what_an_older_agent_does_not_say_is_unknown_and_what_an_older_coordinator_does_not_know_is_skipped() -> None:
    timing = Timing(op_id="a", round=1, order=0, instance=0, start_ns=5, warmup_ns=(9,), samples_ns=(7, 8))
    report = RuntimeReport(name="r", version="1")
    old_timing, old_report = convert.timing_to_proto(timing), convert.runtime_report_to_proto(report)
    new_timing = convert.timing_to_proto(replace(timing, throttled=(1,)))
    new_report = convert.runtime_report_to_proto(replace(report, timer_overhead_ns=40, timer_quantum_ns=0))
    hello = AgentHello(name="a", agent_version="1", fingerprint=Fingerprint(device="d", facts=()), runtimes=())
    old_hello = convert.hello_to_proto(hello).SerializeToString()
    assert convert.hello_to_proto(replace(hello, clock_domain="lab")).SerializeToString().startswith(old_hello)
    old_ask = convert.lease_request_to_proto("s", "ok", 0.0).SerializeToString()
    assert convert.lease_request_to_proto("s", "ok", 0.0, "l1").SerializeToString().startswith(old_ask)
    # Fields an old program never heard of are the last bytes of a message, and it skips them by their tags alone.
    assert new_timing.SerializeToString().startswith(old_timing.SerializeToString())
    assert new_report.SerializeToString().startswith(old_report.SerializeToString())
    assert convert.timing_from_proto(old_timing).throttled is None
    assert convert.timing_from_proto(convert.timing_to_proto(replace(timing, throttled=()))).throttled == ()
    assert convert.runtime_report_from_proto(old_report).timer_overhead_ns is None


def test_a_result_of_200_samples_fits_in_a_kibibyte() -> None:
    timing = Timing(op_id="0" * 16, round=9, order=3, instance=2, start_ns=10**12, warmup_ns=(9_000_000,) * 3,
                    samples_ns=(9_876_543,) * 200)  # fmt: skip  # one visit
    assert convert.timing_to_proto(timing).ByteSize() <= 1024
