"""TLS on loopback, as it goes wrong in the wild: each case ends in one clear line, and lets nobody in."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.service import Coordinator, serve
from lutbuilder.coordinator.store import Store
from lutbuilder_agent import trust
from lutbuilder_agent.errors import (
    LutbuilderError,
    NotAllowed,
    NotAuthenticated,
    SpecError,
    UnknownSession,
    Unreachable,
    WireError,
)
from lutbuilder_agent.records import AgentHello, Fingerprint, Report, RuntimeReport
from lutbuilder_agent.trust import Identity, Keeper
from lutbuilder_agent.wire.client import CoordinatorClient
from lutbuilder_agent.wire.join import SecurityClient
from lutbuilder_agent.wire.join_api import JOIN_BYTES, Revocation, TokenAsk
from tests.tls_lab import Shown, TlsLab, call, tls_lab

HELLO = AgentHello(
    name="alice",
    agent_version="1",
    fingerprint=Fingerprint(device="toy", facts=(("cpu.model", "toy"),)),
    runtimes=(RuntimeReport(name="simulated", version="1"),),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsLab]:
    with tls_lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def plaintext(tmp_path: Path) -> Iterator[str]:
    """The address of a coordinator without TLS."""
    with (
        Store.open(tmp_path / "plain.sqlite") as store,
        serve(Coordinator(store, ArtifactShelf(), lambda campaign_id, report: Decision())) as server,
    ):
        yield server.address


def joined(lab: TlsLab, name: str = "alice", role="agent", **asked) -> Identity:
    token = lab.token(role=role, **asked)
    return trust.join(lab.join, token=token, ca=lab.trust.pin, name=name, role=role)


def connected(identity: Identity, address: str = "") -> CoordinatorClient:
    address = address or identity.address
    return CoordinatorClient(
        address, credentials=identity.credentials(), explain=lambda: trust.explain(address, identity), deadline_s=5.0
    )


def error_of(ask: Callable[[], object]) -> LutbuilderError:
    with pytest.raises(LutbuilderError) as met:
        ask()
    return met.value


# --- who joins is in


def test_a_join_gives_an_identity_that_works_at_once(lab):
    identity = joined(lab)
    assert identity.address == lab.address
    with connected(identity) as client:
        assert client.register(HELLO).epoch >= 1


def test_a_key_made_here_never_crosses_the_wire(lab, monkeypatch):
    seen = []
    real = lab.trust.__class__.join

    def spying(self, ask, *, peer):
        admission = real(self, ask, peer=peer)
        seen.append((ask.csr, admission.private_key))
        return admission

    monkeypatch.setattr(lab.trust.__class__, "join", spying)
    identity = joined(lab)
    assert [(bool(csr), key) for csr, key in seen] == [(True, "")]
    monkeypatch.setattr(trust, "new_key", lambda name: ("", b""))  # as where cryptography is not installed
    without = joined(lab, "bob")
    assert [(bool(csr), key) for csr, key in seen[1:]] == [(False, without.key)]
    assert identity.key != without.key
    with connected(without) as client:
        client.register(replace(HELLO, name="bob"))


def test_a_lost_answer_is_asked_for_again_and_costs_one_use(lab, monkeypatch):
    from lutbuilder_agent.wire.join import JoinClient

    real, lost = JoinClient.join, []

    def losing(self, ask):
        answer = real(self, ask)
        if not lost:
            lost.append(answer)
            raise Unreachable("the answer was lost")
        return answer

    monkeypatch.setattr(JoinClient, "join", losing)
    identity = trust.join(lab.join, token=lab.token(), ca=lab.trust.pin, name="alice", sleep=lambda seconds: None)
    with connected(identity) as client:
        client.register(HELLO)


# --- the wrong other end


def test_a_wrong_pin_sends_nothing(lab, monkeypatch):
    monkeypatch.setattr("lutbuilder_agent.wire.join.JoinClient.join", lambda *_: pytest.fail("the token was sent"))
    error = error_of(lambda: trust.join(lab.join, token=lab.token(), ca="sha256:" + "0" * 64, name="alice"))
    assert isinstance(error, NotAuthenticated)
    assert "is not the coordinator of this join line" in str(error)
    assert "nothing was sent" in str(error)


def test_a_pinned_certificate_that_did_not_sign_the_server_is_no_ca(lab, tmp_path):
    """An impostor shows the real CA behind a certificate of its own: the pin matches, the signature cannot."""
    with tls_lab(tmp_path / "impostor") as impostor:
        own = impostor.trust.server_certificate()
        chain = (own.certificate + lab.ca).encode()
        with _tls_server(own.key.encode(), chain) as address:
            error = error_of(lambda: trust.join(address, token=lab.token(), ca=lab.trust.pin, name="alice"))
    assert isinstance(error, NotAuthenticated)
    assert "is of another CA" in str(error)


def test_an_agents_certificate_does_not_make_it_a_coordinator(lab):
    """An agent that listens with its own certificate: signed by the right CA, and for TLS clients only."""
    thief = joined(lab, "thief")
    with _tls_server(thief.key.encode(), (thief.certificate + thief.ca).encode()) as address:
        error = error_of(lambda: trust.join(address, token=lab.token(), ca=lab.trust.pin, name="alice"))
        assert isinstance(error, NotAuthenticated)
        with connected(joined(lab), address) as client:
            assert isinstance(error_of(lambda: client.register(HELLO)), NotAuthenticated)


def test_a_coordinator_of_another_ca_is_told_from_one_that_is_away(lab, tmp_path):
    identity = joined(lab)
    with tls_lab(tmp_path / "other") as other, connected(identity, other.address) as client:
        error = error_of(lambda: client.register(HELLO))
    assert isinstance(error, NotAuthenticated)
    assert "is not the coordinator this machine has joined" in str(error)


def test_a_name_that_the_certificate_is_not_for_is_refused_with_what_to_do(lab, monkeypatch):
    identity = joined(lab)
    port = lab.address.rpartition(":")[2]
    other = f"127.0.0.2:{port}"  # the same machine under another address; the kernel answers on all of 127/8
    forwarded = _forwarder(other, lab.address)
    with forwarded, connected(identity, other) as client:
        error = error_of(lambda: client.register(HELLO))
    assert isinstance(error, NotAuthenticated)
    assert "is not for the name '127.0.0.2'" in str(error)
    assert "--tls-name 127.0.0.2" in str(error)


def test_plaintext_to_a_tls_port_says_to_join(lab):
    with CoordinatorClient(lab.address, explain=lambda: trust.explain(lab.address, None)) as client:
        error = error_of(lambda: client.register(HELLO))
    assert isinstance(error, NotAuthenticated)
    assert "speaks TLS and asks for a certificate" in str(error)
    assert "lutbuilder security token" in str(error)


def test_tls_to_a_plaintext_port_says_so(lab, plaintext):
    with connected(joined(lab), plaintext) as client:
        error = error_of(lambda: client.register(HELLO))
    assert isinstance(error, NotAuthenticated)
    assert "speaks plaintext, not TLS" in str(error)
    error = error_of(lambda: trust.join(plaintext, token=lab.token(), ca=lab.trust.pin, name="alice"))
    assert "speaks plaintext, not TLS" in str(error)


def test_plaintext_to_a_plaintext_port_that_failed_once_may_heal(plaintext):
    assert trust.explain(plaintext, None) is None


def test_a_coordinator_that_is_away_may_come_back(lab):
    identity = joined(lab)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert trust.explain(gone, identity) is None
        with connected(identity, gone) as client:
            assert type(error_of(lambda: client.register(HELLO))) is Unreachable
        assert type(error_of(lambda: trust.join(gone, token="x", ca=lab.trust.pin, name="alice"))) is Unreachable


def test_a_server_that_accepts_and_says_nothing_is_given_up(lab, monkeypatch):
    monkeypatch.setattr(trust, "_PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert type(error_of(lambda: trust.pinned_ca(address, lab.trust.pin))) is Unreachable
        assert trust.explain(address, joined(lab)) is None


@pytest.mark.parametrize(("offset_s", "word"), [(-20 * 86400.0, "not valid yet"), (200 * 86400.0, "has expired")])
def test_a_coordinators_certificate_out_of_time_is_of_the_clock_and_may_heal(lab, offset_s, word):
    from lutbuilder.coordinator.trust.certificates import make_server

    identity = joined(lab)
    server = make_server(lab.signer(), ["127.0.0.1"], now_s=time.time() - offset_s)
    chain = (server.certificate + lab.ca).encode()
    with _tls_server(server.key.encode(), chain) as address, connected(identity, address) as client:
        error = error_of(lambda: client.register(HELLO))
    assert type(error) is Unreachable
    assert word in str(error)


# --- the wrong caller


def test_an_expired_certificate_is_refused_with_what_to_do(lab):
    late = lab.living_for("alice", "agent", -5.0)
    identity = replace(joined(lab), certificate=late.certificate, key=late.key)
    identity.save()
    with connected(identity) as client:
        error = error_of(lambda: client.register(HELLO))
    assert isinstance(error, NotAuthenticated)
    assert "hangs up on the certificate of alice" in str(error)


def test_a_revoked_agent_is_out_at_its_next_call_on_the_same_channel(lab):
    identity = joined(lab)
    with connected(identity) as client:
        session = client.register(HELLO)
        client.heartbeat(session.session_id, "", 0.0)
        lab.trust.revoke(Revocation(name="alice", reason="phone lost"), by="test")
        error = error_of(lambda: client.heartbeat(session.session_id, "", 0.0))
    assert isinstance(error, NotAuthenticated)
    assert "revoked (phone lost): join again" in str(error)


def test_an_agent_registers_under_its_own_name_only(lab):
    with connected(joined(lab, "alice")) as client:
        error = error_of(lambda: client.register(replace(HELLO, name="bob")))
    assert isinstance(error, NotAllowed)
    assert "--name alice" in str(error)


def test_an_agent_that_knows_anothers_session_cannot_act_in_it(lab):
    with connected(joined(lab, "victim")) as victim, connected(joined(lab, "mallory")) as mallory:
        session_id = victim.register(replace(HELLO, name="victim")).session_id
        report = Report(
            report_id="r", session_id=session_id, lease_id="l", lease_epoch=1, campaign_id="c", round=0, timings=()
        )
        for ask in (
            lambda: mallory.lease(session_id, "ok", 0.0),
            lambda: mallory.heartbeat(session_id, "", 0.0),
            lambda: mallory.report(report),
            lambda: list(mallory.fetch(session_id, "0" * 64)),
        ):
            assert isinstance(error_of(ask), NotAllowed)
        victim.heartbeat(session_id, "", 0.0)


def test_an_unknown_session_is_still_told_to_register_again(lab):
    with connected(joined(lab)) as client:
        assert isinstance(error_of(lambda: client.heartbeat("f" * 32, "", 0.0)), UnknownSession)


@pytest.mark.parametrize("name", ["../../root", "a/b", "..", "a\0b", "x" * 65, "-rf", ""])
def test_no_name_that_leads_out_of_a_folder_gets_a_certificate(lab, name):
    from lutbuilder_agent.wire import join_pb2

    request = join_pb2.JoinRequest(token=lab.token(), role=join_pb2.ROLE_AGENT, name=name, request_id="0" * 32)
    with grpc.secure_channel(lab.join, Shown(ca=lab.ca).credentials()) as channel:
        answer = call(channel, "/lutbuilder.v1.JoinService/Join", request.SerializeToString())
    assert (answer.status, answer.code) == (grpc.StatusCode.INVALID_ARGUMENT, "bad_message")


@pytest.mark.parametrize("sha256", ["../../../etc/passwd", "0" * 63, "A" * 64, "", "0" * 64 + "/x"])
def test_no_hash_that_leads_out_of_the_shelf_is_fetched(lab, sha256):
    with connected(joined(lab)) as client:
        session_id = client.register(HELLO).session_id
        error = error_of(lambda: list(client.fetch(session_id, sha256)))
    assert error.code in ("bad_message", "unknown_name")


def test_an_oversize_message_to_the_join_port_is_refused_unread(lab):
    with grpc.secure_channel(lab.join, Shown(ca=lab.ca).credentials()) as channel:
        answer = call(channel, "/lutbuilder.v1.JoinService/Join", b"\x0a" + b"\xff" * (JOIN_BYTES + 1))
    assert answer.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in answer.details


def test_an_oversize_message_to_the_main_port_is_refused_unread(lab):
    with grpc.secure_channel(lab.address, lab.joined("big", "admin").credentials()) as channel:
        answer = call(channel, "/lutbuilder.v1.ControlService/SubmitJob", b"\0" * (4 * 1024 * 1024 + 1))
    assert answer.status is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("raw", [b"\xff" * 100, b"\x0a\x7f", b"\x10\x63", b"\x00"])
def test_a_malformed_join_is_refused_and_the_port_lives_on(lab, raw):
    with grpc.secure_channel(lab.join, Shown(ca=lab.ca).credentials()) as channel:
        answer = call(channel, "/lutbuilder.v1.JoinService/Join", raw)
    assert answer.status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    joined(lab)


def test_strangers_that_hold_connections_open_do_not_keep_others_from_joining(lab):
    host, _, port = lab.join.rpartition(":")
    held = [socket.create_connection((host, int(port))) for _ in range(50)]  # not one of them says a word
    try:
        joined(lab)
    finally:
        for each in held:
            each.close()


def test_many_that_join_at_once_all_get_in(lab):
    token = lab.token(uses=24)
    names = [f"agent-{number}" for number in range(24)]

    def join_in(name: str) -> Identity:
        """A crowded port is asked again, as anybody would."""
        return trust.join(
            lab.join, token=token, ca=lab.trust.pin, name=name, tries=20, sleep=lambda seconds: time.sleep(0.05)
        )

    with ThreadPoolExecutor(24) as threads:
        found = list(threads.map(join_in, names))
    assert sorted(identity.name for identity in found) == sorted(names)


def test_a_used_up_token_and_one_of_another_role_are_refused_with_what_to_do(lab):
    token = lab.token()
    trust.join(lab.join, token=token, ca=lab.trust.pin, name="alice")
    error = error_of(lambda: trust.join(lab.join, token=token, ca=lab.trust.pin, name="bob"))
    assert isinstance(error, NotAuthenticated)
    assert "used up: get a new one" in str(error)
    for role in ("reader", "admin"):
        unused = lab.token()
        error = error_of(
            lambda role=role, unused=unused: trust.join(lab.join, token=unused, ca=lab.trust.pin, name="bob", role=role)
        )
        assert "is for the role agent" in str(error)


# --- rotation, while everything goes on


def test_old_and_new_agents_work_through_a_rotation_and_after_it(tmp_path):
    with tls_lab(tmp_path / "lab") as lab:
        old, sleeper = joined(lab, "old"), joined(lab, "sleeper")
        line_before = lab.token()
        pin_before = lab.trust.pin
        with connected(old) as client:
            client.register(replace(HELLO, name="old"))
            rotated = lab.trust.rotate(3600.0, by="test")
            client.register(replace(HELLO, name="old"))  # an open channel goes on
        new = joined(lab, "new")
        assert new.ca.count("BEGIN CERTIFICATE") == 2
        for identity in (old, new):
            with connected(identity) as client:
                client.register(replace(HELLO, name=identity.name))
        trust.join(lab.join, token=line_before, ca=pin_before, name="late")  # a line of before the rotation
        keeper = Keeper(old, clock=lambda: old.issued_s + trust.RENEW_AFTER_S)
        keeper.credentials()
        assert keeper.identity.ca.count("BEGIN CERTIFICATE") == 2

        _end_overlap(lab)
        assert lab.trust.pin == f"sha256:{rotated.sha256}"
        for identity in (keeper.identity, new):
            with connected(identity) as client:
                client.register(replace(HELLO, name=identity.name))
        fresh = joined(lab, "fresh")
        assert fresh.ca.count("BEGIN CERTIFICATE") == 1
        with connected(sleeper) as client:  # it slept through all of it
            error = error_of(lambda: client.register(replace(HELLO, name="sleeper")))
        assert isinstance(error, NotAuthenticated)
        assert "If the CA was replaced there, join again" in str(error)
        error = error_of(lambda: trust.join(lab.join, token=lab.token(), ca=pin_before, name="late2"))
        assert "the CA was rotated since" in str(error)


def test_a_rotation_without_overlap_puts_everybody_out_even_on_open_channels(tmp_path):
    with tls_lab(tmp_path / "lab") as lab:
        identity, admin = joined(lab), joined(lab, "root", "admin")
        with connected(identity) as agent, SecurityClient(admin.address, admin.credentials()) as security:
            agent.register(HELLO)
            security.rotate(0.0)
            for ask in (lambda: agent.register(HELLO), security.inventory):
                error = error_of(ask)
                assert isinstance(error, NotAuthenticated)
                assert "a CA that was replaced: join again" in str(error)
        with connected(joined(lab)) as again:
            again.register(HELLO)


def _end_overlap(lab: TlsLab) -> None:
    """Make the overlap's last moment be now, which a test cannot wait for."""
    import sqlalchemy as sa

    from lutbuilder.coordinator.store import schema

    with lab.serving.store.writing() as connection:
        connection.execute(
            schema.trust_cas.update()
            .where(schema.trust_cas.c.until_s.is_not(None))
            .values(until_s=sa.literal(time.time()))
        )


# --- an admin from afar


def test_an_admin_issues_lists_revokes_and_rotates_over_the_wire(tmp_path):
    with tls_lab(tmp_path / "lab") as lab:
        admin = joined(lab, "root", "admin")
        with SecurityClient(admin.address, admin.credentials()) as security:
            issued = security.issue_token(TokenAsk(role="reader", name="bob"))
            assert (issued.join_address, issued.ca) == (lab.join, lab.trust.pin)
            trust.join(issued.join_address, token=issued.token, ca=issued.ca, name="bob", role="reader")
            assert {one.name for one in security.inventory().certificates} == {"root", "bob"}
            assert security.revoke(Revocation(name="bob")).certificates == 1
            assert security.rotate(60.0).old_until_s > time.time()
            assert len(security.inventory().cas) == 2
            assert isinstance(error_of(lambda: security.rotate(60.0)), LutbuilderError)
            with pytest.raises(WireError):
                security.rotate(-1.0)
            with pytest.raises(SpecError):
                security.issue_token(TokenAsk(uses=0))


# --- servers of the tests' own


@contextmanager
def _tls_server(key: bytes, chain: bytes) -> Iterator[str]:
    """A gRPC server with any certificate, and nothing behind it."""
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextmanager
def _forwarder(at: str, to: str) -> Iterator[None]:
    """Carry TCP connections from one loopback address to another, as a tunnel does."""
    host, _, port = at.rpartition(":")
    target = (to.rpartition(":")[0], int(to.rpartition(":")[2]))
    listener = socket.create_server((host, int(port)))
    open_sockets: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # the other half has ended
            pass

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:  # closed below
                return
            far = socket.create_connection(target)
            open_sockets.extend((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in open_sockets:
            each.close()


def test_who_can_speaks_tls_1_3(lab):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, _, port = lab.join.rpartition(":")
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain) as connection:
        assert connection.version() == "TLSv1.3"
