"""CoordinatorClient: the calls of `AgentApi` over gRPC. Every call has a deadline and may be repeated without harm."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from lutbuilder_agent.errors import ArtifactCorrupt, WireError
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
from lutbuilder_agent.wire.failures import Explain, error_from, never_explained, translated

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["CoordinatorClient", "Idle", "error_from", "is_loopback", "open_channel", "translated"]

# A lease's artifacts are built before it is answered: whole networks take about 0.1 s each, and once only.
_LEASE_MARGIN_S = 30.0
_FETCH_DEADLINE_S = 120.0


class CoordinatorClient:
    """A coordinator at "host:port". Connects on the first call; safe from any thread.

    Raises the errors of AgentApi, Unreachable when nobody answers in time, ProtocolMismatch when something else does,
    NotAuthenticated or NotAllowed when the coordinator does not let this caller in. Without `credentials` it speaks
    plaintext (for loopback). `explain` is asked when no connection can be made: it returns what waiting does not heal.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        explain: Explain = never_explained,
        deadline_s: float = 10.0,
    ) -> None:
        self._address = address
        self._explain = explain
        self._deadline_s = deadline_s
        self._channel = open_channel(address, credentials)
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

    def lease(self, session_id: str, state: DeviceState, wait_s: float, *, ahead_of: str = "") -> LeaseAnswer:
        """See AgentApi.lease."""
        wait_s = min(wait_s, MAX_WAIT_S)
        request = convert.lease_request_to_proto(session_id, state, wait_s, ahead_of)
        answer = self._call(self._stub.Lease, request, deadline_s=wait_s + _LEASE_MARGIN_S)
        return convert.lease_answer_from_proto(answer)

    def fetch(self, session_id: str, sha256: str, offset: int = 0) -> Iterator[bytes]:
        """See AgentApi.fetch. Cut off in the middle (Unreachable), ask again from what has arrived.

        Raises ArtifactCorrupt if a chunk is not the one that comes next.
        """
        with translated(self._address, self._closed, self._explain):
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
        with translated(self._address, self._closed, self._explain):
            return method(request, timeout=self._deadline_s if deadline_s is None else deadline_s)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Return a channel to a coordinator, without credentials in plaintext; nothing is sent yet."""
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
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def is_loopback(address: str) -> bool:
    """Return whether "host:port" names this machine's loopback interface."""
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
