"""CoordinatorClient: the calls of `AgentApi` over gRPC. Every call has a deadline and may be repeated without harm."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from lutbuilder_agent.errors import ArtifactCorrupt, LutbuilderError, ProtocolMismatch, Unreachable, WireError
from lutbuilder_agent.records import AgentHello, DeviceState, Report, ReportAck, Session
from lutbuilder_agent.wire import agent_pb2_grpc, convert
from lutbuilder_agent.wire.api import (
    CHUNK_BYTES,
    CONTROL_BYTES,
    FRAME_BYTES,
    MAX_WAIT_S,
    REPORT_BYTES,
    Idle,
    LeaseAnswer,
)
from lutbuilder_agent.wire.status import CODE_KEY, error_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["CoordinatorClient", "Idle"]

_T = TypeVar("_T")

# A lease's artifacts are built before it is answered: whole networks take about 0.1 s each.
_LEASE_MARGIN_S = 60.0
_FETCH_DEADLINE_S = 120.0


class CoordinatorClient:
    """A coordinator at "host:port". Connects on the first call; safe from any thread.

    Raises the errors of AgentApi, Unreachable when nobody answers in time, ProtocolMismatch when something else does.
    `credentials` is the seam for TLS: grpc.ChannelCredentials; None speaks plaintext (loopback only).
    """

    def __init__(
        self, address: str, *, credentials: grpc.ChannelCredentials | None = None, deadline_s: float = 10.0
    ) -> None:
        self._address = address
        self._deadline_s = deadline_s
        options = [
            ("grpc.max_send_message_length", REPORT_BYTES),
            ("grpc.max_receive_message_length", max(CONTROL_BYTES, CHUNK_BYTES) + FRAME_BYTES),
            # A restarted coordinator is found again within seconds; grpc's own ceiling is two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if is_loopback(address):
            options.append(("grpc.enable_http_proxy", 0))  # an http_proxy of the environment cannot reach our loopback
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        stub = agent_pb2_grpc.AgentServiceStub
        self._stub = stub(self._channel)  # type: ignore[no-untyped-call]  # grpcio-tools generates no types
        self._closed = threading.Event()

    @property
    def address(self) -> str:
        """Where the coordinator is, as given."""
        return self._address

    def register(self, hello: AgentHello) -> Session:
        """See AgentApi.register."""
        return convert.session_from_proto(self._call(self._stub.Register, convert.hello_to_proto(hello)))

    def lease(self, session_id: str, state: DeviceState, wait_s: float) -> LeaseAnswer:
        """See AgentApi.lease."""
        wait_s = min(wait_s, MAX_WAIT_S)
        request = convert.lease_request_to_proto(session_id, state, wait_s)
        answer = self._call(self._stub.Lease, request, deadline_s=wait_s + _LEASE_MARGIN_S)
        return convert.lease_answer_from_proto(answer)

    def fetch(self, session_id: str, sha256: str, offset: int = 0) -> Iterator[bytes]:
        """See AgentApi.fetch. Cut off in the middle (Unreachable), ask again from what has arrived.

        Raises ArtifactCorrupt if a chunk is not the one that comes next.
        """
        with self._translated():
            chunks = self._stub.FetchArtifact(
                convert.fetch_request_to_proto(session_id, sha256, offset), timeout=_FETCH_DEADLINE_S
            )
            try:
                for message in chunks:
                    if message.offset != offset:
                        raise ArtifactCorrupt(
                            f"artifact {sha256[:12]} from {self._address}: got the chunk at byte {message.offset}, "
                            f"expected {offset}; fetch it again"
                        )
                    offset += len(message.chunk)
                    yield message.chunk
            finally:
                chunks.cancel()  # whoever stops in the middle does not leave a sender behind

    def report(self, report: Report) -> ReportAck:
        """See AgentApi.report. Raises WireError for a report above 4 MiB, before it is sent."""
        message = convert.report_to_proto(report)
        if message.ByteSize() > REPORT_BYTES:
            raise WireError(
                f"report {report.report_id} is {message.ByteSize()} bytes, above {REPORT_BYTES}: "
                "lower max_calls of the plan"
            )
        ack = convert.ack_from_proto(self._call(self._stub.Report, message, deadline_s=3 * self._deadline_s))
        if ack.report_id != report.report_id:
            raise WireError(f"{self._address} acknowledged {ack.report_id}, not {report.report_id}")
        return ack

    def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool:
        """See AgentApi.heartbeat."""
        answer = self._call(self._stub.Heartbeat, convert.heartbeat_to_proto(session_id, lease_id, quiet_s))
        return bool(answer.cancelled)

    def close(self) -> None:
        """Give up the connection; calls under way end with Unreachable. May be called twice."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> CoordinatorClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Message, *, deadline_s: float | None = None) -> Any:
        with self._translated():
            return method(request, timeout=self._deadline_s if deadline_s is None else deadline_s)

    def _translated(self) -> _Translated:
        return _Translated(self._address, self._closed)


class _Translated:
    """Turns gRPC's errors into ours, on the way out of a `with`."""

    def __init__(self, address: str, closed: threading.Event) -> None:
        self._address = address
        self._closed = closed

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, grpc.RpcError):
            raise _error_from(error, self._address) from error
        if isinstance(error, ValueError) and self._closed.is_set():  # grpc's word for a call on a closed channel
            raise Unreachable(f"the connection to {self._address} was closed here") from error


def _error_from(error: Any, address: str) -> LutbuilderError:
    """Return our error for a grpc.RpcError: the code it carries, else what its status says."""
    for key, value in error.trailing_metadata() or ():
        if key == CODE_KEY:
            return error_of(
                value if isinstance(value, str) else value.decode("ascii", "replace"), error.details() or ""
            )
    status, details = error.code(), error.details()
    again = "is it running, and is the address right? lutbuilder-agent run --coordinator HOST:PORT"
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return Unreachable(f"nobody answers at {address}: {details}; {again}")
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"{address} did not answer in time; {again}")
    if status == grpc.StatusCode.UNIMPLEMENTED:
        return ProtocolMismatch(
            f"{address} does not know this call ({details}): it is no lutbuilder coordinator, or an older one; "
            "there: pip install -U lutbuilder"
        )
    return WireError(f"{address} answered {status.name}: {details}")


def is_loopback(address: str) -> bool:
    """Return whether "host:port" names this machine's loopback interface."""
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
