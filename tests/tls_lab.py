"""A coordinator as `lutbuilder serve` makes it, with TLS on loopback, and callers of every kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from lutbuilder.control.serve import ServeOptions, Serving, serving
from lutbuilder.coordinator import trust as coordinator_trust
from lutbuilder.coordinator.trust.authority import Trust
from lutbuilder.coordinator.trust.certificates import (
    IDENTITY_S,
    KeyPair,
    PublicKey,
    key_of_request,
    make_ca,
    make_identity,
    new_client_key,
)
from lutbuilder_agent.trust import new_key
from lutbuilder_agent.wire.join_api import JoinAsk, Role, TokenAsk

CODE = "lutbuilder-code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a caller shows to the coordinator: a certificate and its key (PEM), or nothing."""

    certificate: str = ""
    key: str = field(default="", repr=False)
    ca: str = ""  # that the caller trusts
    metadata: tuple[tuple[str, str], ...] = ()

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.ca.encode(), self.key.encode() or None, self.certificate.encode() or None
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: a gRPC status, and our code, "" for none."""

    status: grpc.StatusCode
    code: str
    details: str


@dataclass
class TlsLab:
    """The running coordinator, and a second handle on its trust, as another process on the same store has one."""

    serving: Serving
    trust: Trust

    @property
    def address(self) -> str:
        return self.serving.address

    @property
    def join(self) -> str:
        return self.serving.join

    @property
    def ca(self) -> str:
        return self.trust._bundle(now_s=time.time())

    def signer(self) -> KeyPair:
        return self.trust._signing_key(self.trust._ledger.cas(now_s=time.time()))

    def token(self, **asked) -> str:
        return self.trust.issue_token(TokenAsk(**asked), by="test").token

    def joined(self, name: str, role: Role) -> Shown:
        """Let somebody join."""
        key, csr = new_key(name)
        ask = JoinAsk(token=self.token(role=role), role=role, name=name, request_id=f"{time.time_ns():032x}", csr=csr)
        return Shown(certificate=self.trust.join(ask, peer="test").certificate, key=key, ca=self.ca)

    def living_for(self, name: str, role: Role, seconds: float) -> Shown:
        """Return a certificate that the ledger knows and that ends in `seconds`, which may be negative."""
        key, csr = new_key(name)
        return self._known(key_of_request(csr), key, name, role, now_s=time.time() - IDENTITY_S + seconds)

    def foreign(self, name: str, role: Role) -> Shown:
        """Return a certificate with the right words of the wrong CA."""
        public, key = new_client_key()
        issued = make_identity(make_ca(now_s=time.time()), public, name, role, now_s=time.time())
        return Shown(certificate=issued.certificate, key=key, ca=self.ca)

    def _known(self, public: PublicKey, key: str, name: str, role: Role, *, now_s: float) -> Shown:
        ca = self.signer()
        issued = make_identity(ca, public, name, role, now_s=now_s)
        self.trust._ledger.add_certificate(issued, name=name, role=role, ca_sha256=ca.sha256, now_s=now_s)
        return Shown(certificate=issued.certificate, key=key, ca=self.ca)


@contextmanager
def tls_lab(folder: Path) -> Iterator[TlsLab]:
    """Run a coordinator with TLS on free ports of loopback."""
    options = ServeOptions(
        luts=folder / "luts",
        listen="127.0.0.1:0",
        state_dir=folder / "state",
        metrics=None,
        join="127.0.0.1:0",
        tls=True,
    )
    stop = threading.Event()
    with serving(options) as running:
        runner = threading.Thread(target=running.run, args=(stop,), daemon=True)
        runner.start()
        try:
            yield TlsLab(running, coordinator_trust.open(running.folder, store=running.store))
        finally:
            stop.set()
            runner.join()


def call(
    channel: grpc.Channel,
    method: str,
    request: bytes = b"",
    *,
    streams: tuple[bool, bool] = (False, False),
    metadata: tuple[tuple[str, str], ...] = (),
    timeout_s: float = 10.0,
) -> Answer:
    """Make a call of raw bytes and say how it ended; a stream's first message is enough. `streams`: in, out."""
    kind = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[streams]
    given = iter([request]) if streams[0] else request
    try:
        answer = kind(method)(given, timeout=timeout_s, metadata=metadata)
        if streams[1]:
            next(answer)
            answer.cancel()
    except StopIteration:
        pass
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        return Answer(error.code(), str(trailing.get(CODE, "")), error.details() or "")
    return Answer(grpc.StatusCode.OK, "", "")
