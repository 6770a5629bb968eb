"""Joining and security over gRPC: servicers that decode, call and encode, and clients that raise our errors."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from lutbuilder_agent.errors import Unreachable, WireError
from lutbuilder_agent.wire import join_convert as convert
from lutbuilder_agent.wire import join_pb2, join_pb2_grpc
from lutbuilder_agent.wire.client import open_channel
from lutbuilder_agent.wire.failures import Explain, never_explained, translated
from lutbuilder_agent.wire.join_api import (
    JOIN_BYTES,
    Admission,
    Inventory,
    IssuedToken,
    JoinApi,
    JoinAsk,
    Revocation,
    Revoked,
    Rotated,
    SecurityApi,
    TokenAsk,
)
from lutbuilder_agent.wire.servicer import translated as answering

if TYPE_CHECKING:
    from google.protobuf.message import Message

_M = TypeVar("_M", bound="Message")

JOIN_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", JOIN_BYTES),
    ("grpc.max_send_message_length", JOIN_BYTES),
    ("grpc.max_connection_idle_ms", 10_000),  # strangers are not kept
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.so_reuseport", 0),
)


def peer_certificate(context: grpc.ServicerContext) -> bytes | None:
    """Return the PEM of the certificate that the caller proved to hold the key of; None if it showed none."""
    found = context.auth_context().get("x509_pem_cert")
    return bytes(found[0]) if found else None


def speaks_tls(context: grpc.ServicerContext) -> bool:
    """Return whether the call came over TLS."""
    return b"ssl" in (context.auth_context().get("transport_security_type") or ())


# --- the coordinator's end


class JoinServicer(join_pb2_grpc.JoinServiceServicer):
    """Serves a JoinApi."""

    def __init__(self, api: JoinApi) -> None:
        self._api = api

    def Join(  # noqa: N802  # the proto's name
        self, request: join_pb2.JoinRequest, context: grpc.ServicerContext
    ) -> join_pb2.JoinResponse:
        with answering(context):
            return convert.admission_to_proto(
                self._api.join(convert.join_ask_from_proto(_small(request)), peer=context.peer())
            )


class SecurityServicer(join_pb2_grpc.SecurityServiceServicer):
    """Serves a SecurityApi, behind the interceptor that has checked the caller's role."""

    def __init__(self, api: SecurityApi) -> None:
        self._api = api

    def Renew(  # noqa: N802  # the proto's name
        self, request: join_pb2.RenewRequest, context: grpc.ServicerContext
    ) -> join_pb2.RenewResponse:
        with answering(context):
            certificate = peer_certificate(context)
            if certificate is None:
                raise WireError("there is nothing to renew: this connection is not encrypted")
            return convert.renewal_to_proto(self._api.renew(certificate))

    def IssueToken(  # noqa: N802  # the proto's name
        self, request: join_pb2.IssueTokenRequest, context: grpc.ServicerContext
    ) -> join_pb2.IssueTokenResponse:
        with answering(context):
            ask = convert.token_ask_from_proto(_small(request))
            return convert.issued_token_to_proto(self._api.issue_token(ask, by=_by(context)))

    def ListIdentities(  # noqa: N802  # the proto's name
        self, request: join_pb2.ListIdentitiesRequest, context: grpc.ServicerContext
    ) -> join_pb2.ListIdentitiesResponse:
        with answering(context):
            return convert.inventory_to_proto(self._api.inventory())

    def Revoke(  # noqa: N802  # the proto's name
        self, request: join_pb2.RevokeRequest, context: grpc.ServicerContext
    ) -> join_pb2.RevokeResponse:
        with answering(context):
            what = convert.revocation_from_proto(_small(request))
            return convert.revoked_to_proto(self._api.revoke(what, by=_by(context)))

    def Rotate(  # noqa: N802  # the proto's name
        self, request: join_pb2.RotateRequest, context: grpc.ServicerContext
    ) -> join_pb2.RotateResponse:
        with answering(context):
            overlap_s = convert.overlap_from_proto(_small(request))
            return convert.rotated_to_proto(self._api.rotate(overlap_s, by=_by(context)))


def add_join_to_server(api: JoinApi, server: grpc.Server) -> None:
    """Serve JoinService on a gRPC server."""
    add = join_pb2_grpc.add_JoinServiceServicer_to_server
    add(JoinServicer(api), server)  # type: ignore[no-untyped-call]  # grpcio-tools generates no types


def add_security_to_server(api: SecurityApi, server: grpc.Server) -> None:
    """Serve SecurityService on a gRPC server."""
    add = join_pb2_grpc.add_SecurityServiceServicer_to_server
    add(SecurityServicer(api), server)  # type: ignore[no-untyped-call]  # grpcio-tools generates no types


def _small(message: _M) -> _M:
    if message.ByteSize() > JOIN_BYTES:
        raise WireError(f"a {type(message).__name__} of {message.ByteSize()} bytes is above {JOIN_BYTES}")
    return message


def _is_crowded(error: BaseException | None) -> bool:
    """Whether grpc refused a call because so many are under way, not for its size; the word is grpcio's own."""
    if not isinstance(error, grpc.RpcError) or not isinstance(error, grpc.Call):
        return False
    return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "limit exceeded" in (error.details() or "").lower()


def _by(context: grpc.ServicerContext) -> str:
    found = context.auth_context().get("x509_common_name")
    return bytes(found[0]).decode("utf-8", "replace") if found else "loopback"


# --- the other end


class _Client:
    """A connection with deadlines and our errors."""

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials | None, *, explain: Explain, deadline_s: float
    ) -> None:
        self._address = address
        self._explain = explain
        self._deadline_s = deadline_s
        self._closed = threading.Event()
        self._channel = open_channel(address, credentials)

    def close(self) -> None:
        """Give up the connection. May be called twice."""
        self._closed.set()
        self._channel.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Message) -> Any:
        with translated(self._address, self._closed, self._explain):
            return method(request, timeout=self._deadline_s)


class JoinClient(_Client):
    """The join service at "host:port", over TLS with a pinned CA. Raises NotAuthenticated, Unreachable, WireError."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials,
        *,
        explain: Explain = never_explained,
        deadline_s: float = 10.0,
    ) -> None:
        super().__init__(address, credentials, explain=explain, deadline_s=deadline_s)
        stub = join_pb2_grpc.JoinServiceStub
        self._stub = stub(self._channel)  # type: ignore[no-untyped-call]  # grpcio-tools generates no types

    def __enter__(self) -> JoinClient:
        return self

    def join(self, ask: JoinAsk) -> Admission:
        """See JoinApi.join; may be repeated with the same ask."""
        try:
            answer = self._call(self._stub.Join, convert.join_ask_to_proto(ask))
        except WireError as error:
            if _is_crowded(error.__cause__):
                raise Unreachable(f"{self._address} has too many joins at once; try again in a moment") from error
            raise
        return convert.admission_from_proto(answer)


class SecurityClient(_Client):
    """The security service of a coordinator. Raises NotAuthenticated, NotAllowed, Unreachable and SecurityApi's."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        *,
        explain: Explain = never_explained,
        deadline_s: float = 10.0,
    ) -> None:
        super().__init__(address, credentials, explain=explain, deadline_s=deadline_s)
        stub = join_pb2_grpc.SecurityServiceStub
        self._stub = stub(self._channel)  # type: ignore[no-untyped-call]  # grpcio-tools generates no types

    def __enter__(self) -> SecurityClient:
        return self

    def renew(self) -> Admission:
        """See SecurityApi.renew, of the certificate this client shows."""
        return convert.renewal_from_proto(self._call(self._stub.Renew, join_pb2.RenewRequest()))

    def issue_token(self, ask: TokenAsk) -> IssuedToken:
        """See SecurityApi.issue_token."""
        answer = self._call(self._stub.IssueToken, convert.token_ask_to_proto(ask))
        return convert.issued_token_from_proto(answer, role=ask.role)

    def inventory(self) -> Inventory:
        """See SecurityApi.inventory."""
        answer = self._call(self._stub.ListIdentities, join_pb2.ListIdentitiesRequest())
        return convert.inventory_from_proto(answer)

    def revoke(self, what: Revocation) -> Revoked:
        """See SecurityApi.revoke."""
        return convert.revoked_from_proto(self._call(self._stub.Revoke, convert.revocation_to_proto(what)))

    def rotate(self, overlap_s: float) -> Rotated:
        """See SecurityApi.rotate."""
        return convert.rotated_from_proto(self._call(self._stub.Rotate, convert.overlap_to_proto(overlap_s)))
