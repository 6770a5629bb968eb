"""The gRPC side of a coordinator: every method decodes, makes one call of an AgentApi, encodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from lutbuilder_agent.errors import LutbuilderError, WireError
from lutbuilder_agent.records import AgentHello, DeviceState, Report, ReportAck, Session
from lutbuilder_agent.wire import agent_pb2, agent_pb2_grpc, convert
from lutbuilder_agent.wire.api import CHUNK_BYTES, CONTROL_BYTES, FRAME_BYTES, REPORT_BYTES, LeaseAnswer
from lutbuilder_agent.wire.status import CODE_KEY, STATUS, status_name, wire_text

if TYPE_CHECKING:
    from google.protobuf.message import Message

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound="Message")

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", REPORT_BYTES),
    ("grpc.max_send_message_length", max(CONTROL_BYTES, CHUNK_BYTES) + FRAME_BYTES),
    ("grpc.so_reuseport", 0),  # by default two servers share a port silently; ours says PortInUse
)


class Waker(Protocol):
    """A handle on the caller of a long-poll: is it still there, and tell me when it leaves."""

    def gone(self) -> bool: ...
    def when_gone(self, wake: Callable[[], None]) -> None: ...


class ServedApi(Protocol):
    """AgentApi as the coordinator implements it: two of its calls also learn whether anybody still waits for an answer.

    A long-poll gives nothing to a caller that has hung up, and a registration whose caller has hung up does not fence
    the session of that caller's next try.
    """

    def register(self, hello: AgentHello, *, caller: Waker | None = None) -> Session: ...
    def lease(
        self, session_id: str, state: DeviceState, wait_s: float, *, ahead_of: str = "", caller: Waker | None = None
    ) -> LeaseAnswer: ...
    def fetch(self, session_id: str, sha256: str, offset: int) -> Iterator[bytes]: ...
    def report(self, report: Report) -> ReportAck: ...
    def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool: ...


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """Serves an AgentApi. Requests other than reports are refused above 256 KiB."""

    def __init__(self, api: ServedApi) -> None:
        self._api = api

    def Register(  # noqa: N802  # the proto's name
        self, request: agent_pb2.RegisterRequest, context: grpc.ServicerContext
    ) -> agent_pb2.RegisterResponse:
        with translated(context):
            hello = convert.hello_from_proto(small(request))
            return convert.session_to_proto(self._api.register(hello, caller=_Caller(context)))

    def Lease(  # noqa: N802  # the proto's name
        self, request: agent_pb2.LeaseRequest, context: grpc.ServicerContext
    ) -> agent_pb2.LeaseResponse:
        with translated(context):
            session_id, state, wait_s, ahead_of = convert.lease_request_from_proto(small(request))
            answer = self._api.lease(session_id, state, wait_s, ahead_of=ahead_of, caller=_Caller(context))
            return small(convert.lease_answer_to_proto(answer))

    def FetchArtifact(  # noqa: N802  # the proto's name
        self, request: agent_pb2.FetchArtifactRequest, context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.FetchArtifactResponse]:
        with translated(context):
            session_id, sha256, offset = convert.fetch_request_from_proto(small(request))
            for chunk in self._api.fetch(session_id, sha256, offset):
                yield agent_pb2.FetchArtifactResponse(offset=offset, chunk=chunk)
                offset += len(chunk)

    def Report(  # noqa: N802  # the proto's name
        self, request: agent_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> agent_pb2.ReportResponse:
        with translated(context):
            return convert.ack_to_proto(self._api.report(convert.report_from_proto(request)))

    def Heartbeat(  # noqa: N802  # the proto's name
        self, request: agent_pb2.HeartbeatRequest, context: grpc.ServicerContext
    ) -> agent_pb2.HeartbeatResponse:
        with translated(context):
            session_id, lease_id, quiet_s = convert.heartbeat_from_proto(small(request))
            return agent_pb2.HeartbeatResponse(cancelled=self._api.heartbeat(session_id, lease_id, quiet_s))


def add_to_server(api: ServedApi, server: grpc.Server) -> None:
    """Serve `api` on a gRPC server."""
    add = agent_pb2_grpc.add_AgentServiceServicer_to_server
    add(AgentServicer(api), server)  # type: ignore[no-untyped-call]  # grpcio-tools generates no types


class _Caller:
    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def gone(self) -> bool:
        return not self._context.is_active()

    def when_gone(self, wake: Callable[[], None]) -> None:
        self._context.add_callback(wake)


@contextmanager
def translated(context: grpc.ServicerContext) -> Iterator[None]:
    """End the call with the status and code of our error; a bug becomes INTERNAL, logged here, without its words."""
    try:
        yield
    except LutbuilderError as error:
        _abort(context, status_name(error), error.code, wire_text(error))
    except Exception:  # the edge of the program: the thread belongs to grpc, which would log and hide it
        if not context.is_active():  # the caller left, or abort() itself unwinds
            raise
        _log.exception("a call of an agent failed")
        _abort(context, STATUS["internal"], "internal", "the coordinator failed; its log says why")


def _abort(context: grpc.ServicerContext, status: str, code: str, message: str) -> None:
    context.set_trailing_metadata(((CODE_KEY, code),))
    context.abort(grpc.StatusCode[status], message)


def small(message: _M) -> _M:
    """Return the message, refused above 256 KiB. A lease of that size has some 2,000 ops: cut smaller batches."""
    if message.ByteSize() > CONTROL_BYTES:
        raise WireError(f"a {type(message).__name__} of {message.ByteSize()} bytes is above {CONTROL_BYTES}")
    return message
