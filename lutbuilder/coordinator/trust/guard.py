"""The interceptor: who is calling, is that still true, and may they? Asked anew for every call, on old channels too.

A channel outlives what it was opened with: a certificate may be revoked or expire while it is up, and TLS looks only
once. So every call looks at the certificate's row in the store, and every message of a stream does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc

from lutbuilder.coordinator.trust.audit import Sparing, audit
from lutbuilder.coordinator.trust.certificates import Peer, read_peer
from lutbuilder.coordinator.trust.roles import ALLOWED
from lutbuilder_agent.errors import LutbuilderError, NotAllowed, NotAuthenticated, UnknownSession
from lutbuilder_agent.wire.join import peer_certificate, speaks_tls
from lutbuilder_agent.wire.join_api import Role
from lutbuilder_agent.wire.servicer import translated

_AGENT_SERVICE = "/lutbuilder.v1.AgentService/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a call. On a loopback listener without TLS nobody is told apart: no name, and everything is allowed."""

    name: str
    role: Role


LOOPBACK = Caller(name="", role="admin")


class Guard(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs, not at run time
    """Lets a call through if its caller's role allows it, and an agent's only if it is about that agent.

    `identify` returns the caller of a certificate (PEM) or raises NotAuthenticated; `agent_of` returns the agent a
    session belongs to or raises UnknownSession. Raises nothing itself: it answers UNAUTHENTICATED or PERMISSION_DENIED.
    """

    def __init__(
        self,
        identify: Callable[[bytes], Caller],
        agent_of: Callable[[str], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identify = identify
        self._agent_of = agent_of
        self._sparing = Sparing(clock)

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the method's handler, guarded."""
        handler = continuation(details)
        return None if handler is None else _guarded(handler, details.method, self._admit)

    def _admit(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        """Return if the call may go on. Raises NotAuthenticated, NotAllowed, StoreError."""
        try:
            caller = self._caller(context)
            if caller.role not in ALLOWED.get(method, ()):
                raise NotAllowed(_not_allowed(method, caller))
            if method.startswith(_AGENT_SERVICE):
                self._check_own(method, request, caller)
        except (NotAuthenticated, NotAllowed) as error:
            self._tell(method, context, error)
            raise

    def _caller(self, context: grpc.ServicerContext) -> Caller:
        certificate = peer_certificate(context)
        if certificate is None:
            raise NotAuthenticated(
                "this coordinator wants a certificate: join first; get a line to paste where it runs: "
                "lutbuilder security token"
            )
        return self._identify(certificate)

    def _check_own(self, method: str, request: Any, caller: Caller) -> None:
        """Raise NotAllowed if an agent speaks of another agent's name or session."""
        if method.endswith("/Register"):
            owner = request.agent_name
        else:
            try:
                owner = self._agent_of(request.session_id)
            except UnknownSession:
                return  # the service says so itself, and an agent registers again
        if owner != caller.name:
            raise NotAllowed(
                f"the certificate is for agent {caller.name!r}, and the call is about agent {owner[:80]!r}: run it "
                f"under its own name, --name {caller.name}, or join once more with the other"
            )

    def _tell(self, method: str, context: grpc.ServicerContext, error: LutbuilderError) -> None:
        """One line for the audit log, unless it was written a moment ago."""
        host = context.peer().rpartition(":")[0]
        certificate = peer_certificate(context)
        name = "a stranger" if certificate is None else peer_of(certificate).name
        if self._sparing.due((method, name, host, error.code)):
            audit.warning("refused %s to %s from %s: %s", method, name, host, error)


def caller_of(context: grpc.ServicerContext) -> Caller:
    """Return who makes a call that the guard has let through; LOOPBACK where nothing is encrypted."""
    if not speaks_tls(context):
        return LOOPBACK
    certificate = peer_certificate(context)
    if certificate is None:
        raise NotAuthenticated("this call came without a certificate")
    peer = peer_of(certificate)
    return Caller(name=peer.name, role=peer.role)


@lru_cache(maxsize=2048)  # the same few certificates come with every call, and reading one costs more than the call
def peer_of(certificate: bytes) -> Peer:
    """Return what a certificate (PEM) says. Raises NotAuthenticated."""
    return read_peer(certificate)


def _not_allowed(method: str, caller: Caller) -> str:
    name = method.rpartition("/")[2]
    roles = sorted(ALLOWED.get(method, ()))
    if not roles:
        return f"{name} is not served here to anybody"
    return (
        f"{caller.name} is {_article(caller.role)}, and {name} is for {' or '.join(roles)}: join with a token of that "
        f"role; lutbuilder security token --role {roles[0]}"
    )


def _article(role: str) -> str:
    return f"{'an' if role[0] in 'ao' else 'a'} {role}"


Admit = Callable[[str, Any, grpc.ServicerContext], None]


def _guarded(handler: Any, method: str, admit: Admit) -> Any:
    """Return the handler with `admit` before it, and, where it streams, before every message it sends."""
    if handler.response_streaming:

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with translated(context):
                admit(method, request, context)
            answers = (handler.stream_stream if handler.request_streaming else handler.unary_stream)(request, context)
            for answer in answers:
                with translated(context):
                    admit(method, request, context)
                yield answer

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, handler.request_deserializer, handler.response_serializer)

    def unary(request: Any, context: grpc.ServicerContext) -> Any:
        with translated(context):
            admit(method, request, context)
        return (handler.stream_unary if handler.request_streaming else handler.unary_unary)(request, context)

    make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(unary, handler.request_deserializer, handler.response_serializer)
