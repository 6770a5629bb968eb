"""Mutated messages against everything that decodes one: `python -m tests.fuzz.messages SEED COUNT LOOPBACK`.

COUNT messages go through the handlers of the four services as gRPC would call them (decode, convert, call), on a real
coordinator with a real store, control and trust, and through the decoders of agent, spool and clients; LOOPBACK more
over a channel. Prints a tally. Whatever is neither a clean refusal nor an answer ends the run with the message's hex.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from lutbuilder.campaign.job import JobSpec
from lutbuilder.campaign.request import CalibrateRequest, CollectRequest, ValidateRequest
from lutbuilder.control import control_pb2 as control_pb
from lutbuilder.control import convert as control_convert
from lutbuilder.control.control import Changes, Control
from lutbuilder.control.order import Order
from lutbuilder.control.servicer import add_to_server as add_control
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.service import Coordinator, serve
from lutbuilder.coordinator.store import Store
from lutbuilder.coordinator.trust.authority import Trust
from lutbuilder.lut import publish
from lutbuilder_agent.errors import LutbuilderError, WireError
from lutbuilder_agent.records import Failure, Lease
from lutbuilder_agent.spool import Spool
from lutbuilder_agent.trust import new_key
from lutbuilder_agent.wire import agent_pb2, convert, join_convert, join_pb2
from lutbuilder_agent.wire.client import open_channel
from lutbuilder_agent.wire.join import add_join_to_server, add_security_to_server
from lutbuilder_agent.wire.join_api import JoinAsk, Revocation, TokenAsk
from lutbuilder_agent.wire.servicer import add_to_server as add_agents
from lutbuilder_agent.wire.status import CODE_KEY, STATUS
from tests.fuzz.mutations import mutated_message, peak_bytes
from tests.lut_examples import example_meta, example_row
from tests.store_examples import HELLO, OPS, SPEC, report

SLOWEST_S = 1.0
ROUND = 1_000  # messages between two new worlds: a message that is right may cancel, revoke or rotate what there is
_INTERNAL = grpc.StatusCode[STATUS["internal"]]
Decoder = Callable[[bytes], object]


class Broken(AssertionError):
    """A message was answered by something else than an answer or a clean refusal."""


class Refused(Exception):  # an outcome, and a good one
    """The call was ended with a status."""


class Call:
    """The context of one call, by a caller that proved to be the admin "root" and does not wait."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate
        self._code: object = None

    def is_active(self) -> bool:
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return True

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._certificate], "transport_security_type": [b"ssl"]}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._code = dict(metadata).get(CODE_KEY)

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        details.encode()  # what gRPC sends is text
        if code == _INTERNAL or not self._code:
            raise Broken(f"{code.name}: {details}")
        raise Refused(code.name)


class Handlers:
    """Stands for a grpc.Server and keeps what the servicers register."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same handlers under the older registration."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.by_name.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


class LastError(logging.Handler):
    """Keeps what a servicer logs of a bug, which the caller is not told."""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.format(record)

    text = ""


@dataclass(frozen=True, slots=True)
class World:
    """A coordinator in the middle of a campaign, and a good message for everything that reads one."""

    handlers: dict[str, Any]
    requests: tuple[tuple[str, bytes], ...]
    decoders: tuple[tuple[str, Decoder, bytes], ...]
    certificate: bytes
    coordinator: Coordinator
    control: Control
    trust: Trust


def world(folder: Path, closing: ExitStack) -> World:
    """Open one below `folder`; it is closed with `closing`."""
    store = Store.open(folder / "campaigns.sqlite")
    closing.callback(store.close)
    hours = count(step=3600)
    coordinator = Coordinator(
        store,
        ArtifactShelf(),
        lambda campaign_id, report: Decision(),
        patience_clock=lambda: float(next(hours)),
        pause=lambda event, timeout_s: None,
        coordinator_id="c0ffee",
    )
    store.create_campaign(SPEC, now_s=1.0)
    coordinator.offer(SPEC.key)
    changes = Changes()
    changes.close()  # nobody waits
    control = Control(store, coordinator=coordinator, luts=folder / "luts", changes=changes)
    lut = publish([example_row(op.ops[0]) for op in OPS], example_meta(), folder=folder / "luts")
    trust = Trust(store, folder / "trust", ["lab.example"])
    trust.prepare()

    hello = coordinator.register(HELLO)
    session = hello.session_id
    lease = coordinator.lease(session, "ok", 0.0)
    assert isinstance(lease, Lease)
    sha256 = lease.ops[0].artifact.sha256
    good = report(session_id=session, lease_id=lease.lease_id, lease_epoch=lease.epoch)
    broken = report(
        1, session_id=session, lease_id=lease.lease_id, lease_epoch=lease.epoch, timings=(),
        failures=(Failure(op_id=OPS[0].op_id, round=1, reason="crashed", detail="signal 11"),),
    )  # fmt: skip  # reads as one record
    jobs = [
        JobSpec(kind="collect", request=Order(request=CollectRequest(seed=1)).to_json(), priority=1, owner="ann"),
        JobSpec(kind="validate", request=Order(request=ValidateRequest(lut=f"{lut.name}@1")).to_json()),
        JobSpec(kind="calibrate", request=Order(request=CalibrateRequest(lut=lut.name)).to_json()),
    ]
    for number, job in enumerate(jobs):
        control.submit(job, job_id=f"job-{number}")
    asked = TokenAsk(role="admin", uses=1_000)
    token = trust.issue_token(asked, by="test")
    asks = [
        JoinAsk(token=token.token, role="admin", name="root", request_id=f"{n:032x}", csr=csr)
        for n, csr in enumerate((new_key("root")[1], b""), start=1)
    ]
    admission = trust.join(asks[0], peer="test")
    certificate = admission.certificate.encode()

    agent, manage, secure = (f"/lutbuilder.v1.{name}Service/" for name in ("Agent", "Control", "Security"))
    requests: list[tuple[str, Message]] = [
        (f"{agent}Register", convert.hello_to_proto(HELLO)),
        (f"{agent}Lease", convert.lease_request_to_proto(session, "ok", 0.0)),
        (f"{agent}Lease", convert.lease_request_to_proto(session, "ok", 30.0, lease.lease_id)),
        (f"{agent}FetchArtifact", convert.fetch_request_to_proto(session, sha256, 10)),
        (f"{agent}Report", convert.report_to_proto(good)),
        (f"{agent}Report", convert.report_to_proto(broken)),
        (f"{agent}Heartbeat", convert.heartbeat_to_proto(session, lease.lease_id, 1.0)),
        *((f"{manage}SubmitJob", control_convert.submission_to_proto(job, "job-9")) for job in jobs),
        (f"{manage}WatchJob", control_pb.WatchJobRequest(job_id="job-0", seen="x", wait_s=1.0)),
        (f"{manage}CancelJob", control_pb.CancelJobRequest(job_id="job-1")),
        (f"{manage}ListJobs", control_pb.ListJobsRequest(active_only=True, page_token="1")),
        (f"{manage}ListAgents", control_pb.ListAgentsRequest(page_token="1")),
        (f"{manage}ListCampaigns", control_pb.ListCampaignsRequest(active_only=True, campaign_id=SPEC.key)),
        (f"{manage}ListLeases", control_pb.ListLeasesRequest(page_token="1")),
        (f"{manage}DrainAgent", control_pb.DrainAgentRequest(name=HELLO.name, drained=False)),
        (f"{manage}ReleaseQuarantine", control_pb.ReleaseQuarantineRequest(agent=HELLO.name)),
        (f"{manage}ReleaseQuarantine", control_pb.ReleaseQuarantineRequest(campaign_id=SPEC.key, op_id=OPS[0].op_id)),
        (f"{manage}CancelCampaign", control_pb.CancelCampaignRequest(campaign_id=SPEC.key, reason="why")),
        (f"{manage}FetchLut", control_convert.fetch_to_proto(lut.name, 1, "table", 5)),
        *(("/lutbuilder.v1.JoinService/Join", join_convert.join_ask_to_proto(ask)) for ask in asks),
        (f"{secure}Renew", join_pb2.RenewRequest()),
        (f"{secure}IssueToken", join_convert.token_ask_to_proto(asked)),
        (f"{secure}ListIdentities", join_pb2.ListIdentitiesRequest()),
        (f"{secure}Revoke", join_convert.revocation_to_proto(Revocation(name="alice"))),
        (f"{secure}Rotate", join_convert.overlap_to_proto(60.0)),
    ]
    chunk = control.fetch_lut(lut.name, 1, "table", 0)
    answers: list[tuple[str, type[Message], Callable[[Any], object], Message]] = [
        ("Session", agent_pb2.RegisterResponse, convert.session_from_proto, convert.session_to_proto(hello)),
        ("Lease", agent_pb2.LeaseResponse, convert.lease_answer_from_proto, convert.lease_answer_to_proto(lease)),
        ("Report", agent_pb2.ReportRequest, convert.report_from_proto, convert.report_to_proto(good)),
        ("ReportAck", agent_pb2.ReportResponse, convert.ack_from_proto,
         agent_pb2.ReportResponse(report_id="r", stop=True, drop=["a", "b"])),
        ("Job", control_pb.Job, control_convert.job_from_proto,
         control_convert.job_to_proto(control.jobs().items[0])),
        ("Agent", control_pb.AgentInfo, control_convert.agent_from_proto,
         control_convert.agent_to_proto(control.agents().items[0])),
        ("Campaign", control_pb.CampaignInfo, control_convert.campaign_from_proto,
         control_convert.campaign_to_proto(control.campaigns().items[0])),
        ("LeaseInfo", control_pb.LeaseInfo, control_convert.lease_from_proto,
         control_convert.lease_to_proto(control.leases().items[0])),
        ("LutChunk", control_pb.FetchLutResponse, control_convert.chunk_from_proto,
         control_convert.chunk_to_proto(chunk)),
        ("Admission", join_pb2.JoinResponse, join_convert.admission_from_proto,
         join_convert.admission_to_proto(admission)),
        ("Token", join_pb2.IssueTokenResponse, lambda each: join_convert.issued_token_from_proto(each, role="admin"),
         join_convert.issued_token_to_proto(token)),
        ("Inventory", join_pb2.ListIdentitiesResponse, join_convert.inventory_from_proto,
         join_convert.inventory_to_proto(trust.inventory())),
    ]  # fmt: skip  # a table reads as one

    def reads(kind: type[Message], read: Callable[[Any], object]) -> Decoder:
        return lambda raw: read(convert.parse(kind, raw))

    spool = Spool.open(folder / "spool", warn=lambda text: None)

    def from_spool(raw: bytes) -> object:
        path = spool.folder / "0000000002-damaged.report"
        path.write_bytes(raw)
        if (found := spool.read(path)) is None:
            raise WireError("set aside")
        return found

    server: Any = Handlers()
    add_agents(coordinator, server)
    add_control(control, server)
    add_join_to_server(trust, server)
    add_security_to_server(trust, server)
    return World(
        handlers=server.by_name,
        requests=tuple((name, message.SerializeToString()) for name, message in requests),
        decoders=(
            *((name, reads(kind, read), message.SerializeToString()) for name, kind, read, message in answers),
            ("spool file", from_spool, spool.put(good).read_bytes()),
        ),
        certificate=certificate,
        coordinator=coordinator,
        control=control,
        trust=trust,
    )


def called(there: World, method: str, raw: bytes) -> str:
    """Make a call as gRPC would, and return how it ended."""
    handler = there.handlers[method]
    try:
        request = handler.request_deserializer(raw)
    except DecodeError:
        return "undecodable"
    call = Call(there.certificate)
    try:
        answers: Iterator[Any] = (
            handler.unary_stream(request, call)
            if handler.response_streaming
            else iter((handler.unary_unary(request, call),))
        )
        for answer in answers:
            handler.response_serializer(answer)
    except Refused:
        return "refused"
    return "answered"


def decoded(decode: Decoder, raw: bytes) -> str:
    """Decode as agent, spool or client do, and return how it ended."""
    try:
        decode(raw)
    except LutbuilderError:
        return "refused"
    return "answered"


def fuzz(seed: int, messages: int) -> Counter[str]:
    """Return how many ended how. Raises Broken with what it takes to see it again."""
    tally: Counter[str] = Counter()
    log = LastError()
    logging.getLogger("lutbuilder_agent.wire.servicer").addHandler(log)
    logging.getLogger("lutbuilder.audit").setLevel(logging.CRITICAL)
    for first in range(0, messages, ROUND):
        rng = random.Random(f"{seed}/{first}")
        with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
            there = world(Path(folder), closing)
            others = tuple(raw for _, raw in there.requests)
            tries = [
                *((name, raw, partial(called, there, name)) for name, raw in there.requests),
                *((name, raw, partial(decoded, decode)) for name, decode, raw in there.decoders),
            ]
            for _ in range(min(ROUND, messages - first)):
                name, raw, run = rng.choice(tries)
                sent = mutated_message(raw, rng, others)
                began_s = time.thread_time()
                try:
                    how = run(sent)
                except Exception as error:
                    raise Broken(f"{name}: {error!r} {log.text}\nof {sent[:4000].hex()} ({len(sent)} bytes)") from error
                took_s = time.thread_time() - began_s
                if took_s > SLOWEST_S:
                    raise Broken(f"{name} took {took_s:.1f} s of CPU for {sent[:4000].hex()} ({len(sent)} bytes)")
                tally[how] += 1
    return tally


def over_loopback(seed: int, messages: int) -> Counter[str]:
    """Send messages through a real channel, and return how many ended with which status."""
    rng = random.Random(seed)
    logging.getLogger("grpc").setLevel(logging.CRITICAL)  # it logs every message that is none
    tally: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
        there = world(Path(folder), closing)
        others = tuple(raw for _, raw in there.requests)
        services = (
            lambda server: add_control(there.control, server),
            lambda server: add_join_to_server(there.trust, server),
            lambda server: add_security_to_server(there.trust, server),
        )
        server = closing.enter_context(serve(there.coordinator, services=services))
        channel: Any = closing.enter_context(open_channel(server.address, None))  # bytes in, bytes out: untyped
        calls = {
            name: channel.unary_stream(name) if there.handlers[name].response_streaming else channel.unary_unary(name)
            for name, _ in there.requests
        }
        for _ in range(messages):
            name, raw = rng.choice(there.requests)
            sent = mutated_message(raw, rng, others)
            try:
                answer = calls[name](sent, timeout=30)
                if there.handlers[name].response_streaming:
                    list(answer)
                tally["OK"] += 1
            except grpc.RpcError as error:
                code, told = error.code(), [each.key for each in error.trailing_metadata() or ()]
                cut = code == _INTERNAL and "deserializing" in (error.details() or "")
                too_large = code == grpc.StatusCode.RESOURCE_EXHAUSTED
                if not (cut or too_large or (CODE_KEY in told and code != _INTERNAL)):
                    raise Broken(f"{name}: {code.name} {error.details()} of {sent[:4000].hex()}") from error
                tally[code.name] += 1
        assert convert.session_from_proto(
            agent_pb2.RegisterResponse.FromString(
                channel.unary_unary("/lutbuilder.v1.AgentService/Register")(
                    convert.hello_to_proto(HELLO).SerializeToString(), timeout=30
                )
            )
        ).session_id, "it is as alive as before"
    return tally


def main(seed: int, messages: int, loopback: int) -> None:
    """Run both, and print the tally and the most memory this process has held."""
    tally, sent = fuzz(seed, messages), over_loopback(seed, loopback)
    peak = peak_bytes()
    print(json.dumps({"handlers": tally, "loopback": sent, "peak_bytes": peak}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
