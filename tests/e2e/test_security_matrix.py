"""Every call x every kind of caller, over the TLS listeners of a coordinator as `lutbuilder serve` makes it.

The calls are read out of the protos and the descriptors, so that a new one fails here until it has a row in
trust/roles.py; the rows of the matrix are the kinds of callers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from lutbuilder.control import control_pb2
from lutbuilder.coordinator.trust.roles import ALLOWED
from lutbuilder_agent.wire import agent_pb2, join_pb2
from lutbuilder_agent.wire.join_api import ROLES, Revocation
from tests.tls_lab import Answer, Shown, TlsLab, call, tls_lab

ROOT = Path(__file__).resolve().parents[2]
FILES: tuple[FileDescriptor, ...] = (
    agent_pb2.DESCRIPTOR,
    control_pb2.DESCRIPTOR,
    join_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
)


@dataclass(frozen=True, slots=True)
class Rpc:
    name: str
    streams: tuple[bool, bool]


TOKENS = ("none", "wrong", "expired", "revoked", "of a reader", "of an admin", "used up", "good")


def _rpcs() -> tuple[Rpc, ...]:
    return tuple(
        Rpc(f"/{service.full_name}/{method.name}", (method.client_streaming, method.server_streaming))
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
    )


RPCS = _rpcs()
JOIN = "/lutbuilder.v1.JoinService/Join"
# What is sent where nothing at all would do harm or wait: everything else is an empty message.
SAMPLES: Mapping[str, bytes] = {
    "/lutbuilder.v1.AgentService/Register": agent_pb2.RegisterRequest(agent_name="alice").SerializeToString(),
    "/lutbuilder.v1.SecurityService/Rotate": join_pb2.RotateRequest(overlap_s=-1).SerializeToString(),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
        list_services=""
    ).SerializeToString(),
}

# A kind of caller -> what it meets at a call that is for `allowed`: a gRPC status and our code, or None: let through.
Outcome = tuple[str, str] | None
CLOSED: Outcome = ("UNAVAILABLE", "")  # the TLS handshake fails: no handler ever runs
UNKNOWN: Outcome = ("UNAUTHENTICATED", "not_authenticated")
FORBIDDEN: Outcome = ("PERMISSION_DENIED", "not_allowed")
NOT_SERVED: Outcome = ("UNIMPLEMENTED", "")
KINDS: Mapping[str, Callable[[frozenset[str]], Outcome]] = {
    "plaintext": lambda allowed: CLOSED,
    "no credentials": lambda allowed: CLOSED,
    "wrong token": lambda allowed: CLOSED,
    "certificate of another CA": lambda allowed: CLOSED,
    "expired": lambda allowed: CLOSED,
    "expired on an open channel": lambda allowed: UNKNOWN,
    "revoked": lambda allowed: UNKNOWN,
    "revoked on an open channel": lambda allowed: UNKNOWN,
    "signed but never issued": lambda allowed: UNKNOWN,
    "reader": lambda allowed: None if "reader" in allowed else FORBIDDEN,
    "agent": lambda allowed: None if "agent" in allowed else FORBIDDEN,
    "admin": lambda allowed: None if "admin" in allowed else FORBIDDEN,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsLab]:
    with tls_lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(scope="module")
def callers(lab: TlsLab) -> Iterator[Mapping[str, tuple[grpc.Channel, Shown]]]:
    """Every kind of caller, with a channel of its own."""
    admin = lab.joined("root", "admin")
    revoked, open_then_revoked = lab.joined("mallory", "admin"), lab.joined("trudy", "admin")
    unknown = lab.joined("nobody", "admin")
    lab.trust._ledger.renew(_serial(unknown), _issued("x"), ca_sha256=lab.signer().sha256, now_s=time.time())
    ending = lab.living_for("ending", "admin", 2.0)
    shown = {
        "plaintext": Shown(),
        "no credentials": Shown(ca=lab.ca),
        "wrong token": Shown(ca=lab.ca, metadata=(("authorization", f"Bearer {'-'.join(['ABCD'] * 8)}"),)),
        "certificate of another CA": lab.foreign("root", "admin"),
        "expired": lab.living_for("late", "admin", -1.0),
        "expired on an open channel": ending,
        "revoked": revoked,
        "revoked on an open channel": open_then_revoked,
        "signed but never issued": _unissued(lab),
        "reader": lab.joined("reader", "reader"),
        "agent": lab.joined("alice", "agent"),
        "admin": admin,
    }
    lab.trust.revoke(Revocation(name="mallory"), by="test")
    channels: dict[str, tuple[grpc.Channel, Shown]] = {}
    for kind, one in shown.items():
        channel = grpc.insecure_channel(lab.address) if kind == "plaintext" else _channel(lab.address, one)
        channels[kind] = (channel, one)
    for kind in ("expired on an open channel", "revoked on an open channel"):
        assert call(channels[kind][0], "/grpc.health.v1.Health/Check").status is grpc.StatusCode.OK
    lab.trust.revoke(Revocation(name="trudy"), by="test")
    time.sleep(2.1)  # until "ending" has
    yield channels
    for channel, _ in channels.values():
        channel.close()


def _channel(address: str, shown: Shown) -> grpc.Channel:
    options = [("grpc.use_local_subchannel_pool", 1)]  # no channel goes on with another one's connection
    return grpc.secure_channel(address, shown.credentials(), options)


def _serial(shown: Shown) -> str:
    from lutbuilder.coordinator.trust.certificates import read_peer

    return read_peer(shown.certificate.encode()).serial


def _issued(name: str):
    from lutbuilder.coordinator.trust.certificates import Issued

    return Issued(certificate=name, serial=name, expires_s=time.time() + 60)


def _unissued(lab: TlsLab) -> Shown:
    from lutbuilder.coordinator.trust.certificates import make_identity, new_client_key

    public, key = new_client_key()
    certificate = make_identity(lab.signer(), public, "root", "admin", now_s=time.time()).certificate
    return Shown(certificate=certificate, key=key, ca=lab.ca)


def outcome(answer: Answer) -> Outcome:
    """What a caller met, None if it was let through, whatever the call itself then said."""
    if answer.status is grpc.StatusCode.UNAVAILABLE and not answer.code:
        return CLOSED
    if answer.status is grpc.StatusCode.UNIMPLEMENTED and not answer.code:
        return NOT_SERVED
    if answer.code in ("not_authenticated", "not_allowed"):
        return (answer.status.name, answer.code)
    return None


def test_every_rpc_of_the_protos_is_in_the_matrix_and_has_its_row_of_roles() -> None:
    written = set()
    for path in (ROOT / "protos").rglob("*.proto"):
        text = path.read_text(encoding="utf-8")
        for service, body in re.findall(r"^service (\w+) \{\n(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL):
            written |= {f"/lutbuilder.v1.{service}/{rpc}" for rpc in re.findall(r"^  rpc (\w+)\(", body, re.MULTILINE)}
    ours = {rpc.name for rpc in RPCS if rpc.name.startswith("/lutbuilder.v1.")}
    assert ours == written
    assert {rpc.name for rpc in RPCS} == set(ALLOWED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name.rpartition(".")[2])
def test_a_call_of_this_kind_of_caller(rpc: Rpc, kind: str, callers) -> None:
    channel, shown = callers[kind]
    answer = call(channel, rpc.name, SAMPLES.get(rpc.name, b""), streams=rpc.streams, metadata=shown.metadata)
    expected = KINDS[kind](ALLOWED[rpc.name])
    if rpc.name == JOIN and expected != CLOSED:  # it is not served on this port at all
        expected = NOT_SERVED
    assert outcome(answer) == expected, answer


@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if rpc.name != JOIN], ids=lambda rpc: rpc.name.rpartition(".")[2])
def test_the_join_port_serves_nothing_but_joins_to_anybody(rpc: Rpc, lab: TlsLab, callers) -> None:
    for kind in ("no credentials", "admin"):
        with _channel(lab.join, callers[kind][1]) as channel:
            answer = call(channel, rpc.name, SAMPLES.get(rpc.name, b""), streams=rpc.streams)
            assert outcome(answer) == NOT_SERVED, (kind, answer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", TOKENS)
def test_a_join_depends_on_its_token_alone(kind: str, token: str, lab: TlsLab, callers) -> None:
    shown = callers[kind][1]
    request = join_pb2.JoinRequest(
        token=tokens(lab)[token](), role=join_pb2.ROLE_AGENT, name="joiner", request_id=f"{time.time_ns():032x}"
    )
    channel = grpc.insecure_channel(lab.join) if kind == "plaintext" else _channel(lab.join, replace(shown, ca=lab.ca))
    with channel:
        answer = call(channel, JOIN, request.SerializeToString())
    if kind == "plaintext":
        assert outcome(answer) == CLOSED
    else:
        assert outcome(answer) == (None if token == "good" else UNKNOWN), answer
        assert token != "good" or answer.status is grpc.StatusCode.OK


def tokens(lab: TlsLab) -> Mapping[str, Callable[[], str]]:
    def revoked() -> str:
        token = lab.token()
        lab.trust.revoke(Revocation(token_id=token), by="test")
        return token

    def expired() -> str:
        token = lab.token(ttl_s=0.001)
        time.sleep(0.002)
        return token

    def used_up() -> str:
        token = lab.token()
        ask = join_pb2.JoinRequest(
            token=token, role=join_pb2.ROLE_AGENT, name="first", request_id=f"{time.time_ns():032x}"
        )
        with _channel(lab.join, Shown(ca=lab.ca)) as channel:
            assert call(channel, JOIN, ask.SerializeToString()).status is grpc.StatusCode.OK
        return token

    return {
        "none": lambda: "",
        "wrong": lambda: "0" * 32,
        "expired": expired,
        "revoked": revoked,
        "of a reader": lambda: lab.token(role="reader"),
        "of an admin": lambda: lab.token(role="admin"),
        "used up": used_up,
        "good": lab.token,
    }


def test_the_matrix_has_every_role() -> None:
    assert set(ROLES) <= set(KINDS)
