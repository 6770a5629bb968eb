"""The interceptor closes what nobody has opened, asks anew for every message, and says each refusal once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from lutbuilder.coordinator.trust.audit import Sparing
from lutbuilder.coordinator.trust.certificates import make_ca, make_identity, make_server, new_client_key, read_peer
from lutbuilder.coordinator.trust.guard import LOOPBACK, Caller, Guard, caller_of
from lutbuilder.coordinator.trust.roles import ALLOWED
from lutbuilder_agent.errors import NotAuthenticated, StoreError
from lutbuilder_agent.wire.join_api import ROLES, Role
from tests.tls_lab import Answer, Shown, call

NOW_S = time.time()
CA = make_ca(now_s=NOW_S)
LISTED = "/lutbuilder.v1.ControlService/ListAgents"
Handlers = dict[str, grpc.RpcMethodHandler]


def shown(name: str, role: Role) -> Shown:
    public, key = new_client_key()
    return Shown(certificate=make_identity(CA, public, name, role, now_s=NOW_S).certificate, key=key, ca=CA.certificate)


def by_certificate(certificate: bytes) -> Caller:
    peer = read_peer(certificate)
    return Caller(name=peer.name, role=peer.role)


@contextmanager
def served(handlers: Handlers, identify: Callable[[bytes], Caller] = by_certificate) -> Iterator[str]:
    """Serve handlers behind a guard; return the address."""

    class Generic(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return handlers.get(details.method)

    server_pair = make_server(CA, ["127.0.0.1"], now_s=NOW_S)
    server = grpc.server(
        ThreadPoolExecutor(4), handlers=[Generic()], interceptors=[Guard(identify, lambda session_id: "alice")]
    )
    credentials = grpc.ssl_server_credentials(
        [(server_pair.key.encode(), server_pair.certificate.encode())], CA.certificate.encode(), True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def asked(address: str, who: Shown, method: str, **more) -> Answer:
    with grpc.secure_channel(address, who.credentials()) as channel:
        return call(channel, method, **more)


def answering(reply: bytes = b"") -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(lambda request, context: reply)


def test_an_rpc_without_a_row_is_refused_to_every_role():
    new = "/lutbuilder.v1.ControlService/BrandNew"
    assert new not in ALLOWED
    with served({new: answering()}) as address:
        for role in ROLES:
            answer = asked(address, shown("x", role), new)
            assert (answer.status, answer.code) == (grpc.StatusCode.PERMISSION_DENIED, "not_allowed")
            assert "not served here to anybody" in answer.details


def test_every_row_names_only_roles_there_are():
    assert all(allowed <= set(ROLES) for allowed in ALLOWED.values())


def test_a_refused_call_never_reaches_its_handler():
    reached = []
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: reached.append(1) or b"")
    with served({LISTED: handler}) as address:
        assert asked(address, shown("alice", "agent"), LISTED).code == "not_allowed"
        assert reached == []
        assert asked(address, shown("bob", "reader"), LISTED).status is grpc.StatusCode.OK
        assert reached == [1]


@pytest.mark.parametrize("streams", [(False, False), (False, True), (True, False), (True, True)])
def test_every_kind_of_call_is_guarded(streams):
    handler = {
        (False, False): grpc.unary_unary_rpc_method_handler(lambda request, context: b""),
        (False, True): grpc.unary_stream_rpc_method_handler(lambda request, context: iter([b""])),
        (True, False): grpc.stream_unary_rpc_method_handler(lambda requests, context: b""),
        (True, True): grpc.stream_stream_rpc_method_handler(lambda requests, context: iter([b""])),
    }[streams]
    with served({LISTED: handler}) as address:
        assert asked(address, shown("alice", "agent"), LISTED, streams=streams).code == "not_allowed"
        assert asked(address, shown("bob", "reader"), LISTED, streams=streams).status is grpc.StatusCode.OK


def test_a_stream_ends_with_the_message_after_its_caller_was_revoked():
    good = [True]

    def identify(certificate: bytes) -> Caller:
        if not good[0]:
            raise NotAuthenticated("revoked meanwhile")
        return by_certificate(certificate)

    def three(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"1"
        good[0] = False
        yield b"2"

    handler = grpc.unary_stream_rpc_method_handler(three)
    with served({LISTED: handler}, identify) as address:
        who = shown("bob", "reader")
        with grpc.secure_channel(address, who.credentials()) as channel:
            stream = channel.unary_stream(LISTED)(b"", timeout=10)
            assert next(stream) == b"1"
            with pytest.raises(grpc.RpcError) as ended:
                next(stream)
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_store_that_fails_lets_nobody_in():
    def identify(certificate: bytes) -> Caller:
        raise StoreError("the disk is gone")

    with served({LISTED: answering()}, identify) as address:
        answer = asked(address, shown("root", "admin"), LISTED)
    assert (answer.status, answer.code) == (grpc.StatusCode.INTERNAL, "store")


def test_a_servicer_learns_who_calls():
    seen = []
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: seen.append(caller_of(context)) or b"")
    with served({LISTED: handler}) as address:
        asked(address, shown("bob", "reader"), LISTED)
    assert seen == [Caller(name="bob", role="reader")]


def test_on_plaintext_loopback_everybody_is_an_admin_without_a_name():
    seen = []
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: seen.append(caller_of(context)) or b"")

    class Generic(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return handler

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Generic()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call(channel, LISTED)
    server.stop(0).wait()
    assert seen == [LOOPBACK] == [Caller(name="", role="admin")]


def test_a_refusal_is_one_line_of_the_audit_log_however_often_it_happens(caplog):
    who = shown("alice", "agent").credentials()
    with (
        caplog.at_level(logging.INFO, "lutbuilder.audit"),
        served({LISTED: answering()}) as address,
        grpc.secure_channel(address, who) as channel,
    ):
        for _ in range(20):
            call(channel, LISTED)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith(f"refused {LISTED} to alice from ipv4:127.0.0.1: ")


def test_what_was_said_may_be_said_again_after_a_while_and_memory_has_an_end():
    now_s = 0.0
    sparing = Sparing(lambda: now_s)
    assert sparing.due("a")
    assert not sparing.due("a")
    assert sparing.due("b")
    now_s = 10.0
    assert sparing.due("a")
    for number in range(5000):
        sparing.due(number)
    assert len(sparing._told) <= 1000
