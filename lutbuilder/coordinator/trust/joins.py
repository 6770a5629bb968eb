"""The join port: a small gRPC server of its own, the only one that talks to strangers.

grpcio can demand a client certificate on a port or not ask for one, nothing in between; and who has no certificate yet
must be able to join. So joins have a port of their own, with few threads, small messages and short connections: a
stranger reaches neither the main server's threads nor any message decoder but that of JoinRequest.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from lutbuilder.coordinator.trust.names import outward_address
from lutbuilder_agent.errors import PortInUse, SpecError
from lutbuilder_agent.wire.join import JOIN_OPTIONS, add_join_to_server
from lutbuilder_agent.wire.join_api import JoinApi

DEFAULT_JOIN_PORT = 7072
_THREADS = 4
_MOST_CALLS = 16  # at once, the queue included; others are told RESOURCE_EXHAUSTED


@dataclass(frozen=True, slots=True)
class RunningJoins:
    """A join port that is open. `address` is "host:port" as listened on, `advertised` as join lines name it."""

    address: str
    advertised: str
    _server: grpc.Server
    _threads: ThreadPoolExecutor

    def stop(self, grace_s: float = 1.0) -> None:
        """Stop listening. May be called twice."""
        self._server.stop(grace_s).wait()
        self._threads.shutdown(wait=False)

    def __enter__(self) -> RunningJoins:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve_joins(api: JoinApi, address: str, credentials: grpc.ServerCredentials, *, advertised: str) -> RunningJoins:
    """Open the join port at "host:port". Raises PortInUse, SpecError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SpecError(f"cannot serve joins at {address!r}: give HOST:PORT, e.g. 0.0.0.0:{DEFAULT_JOIN_PORT}")
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="lutbuilder-join")
    server = grpc.server(threads, options=JOIN_OPTIONS, maximum_concurrent_rpcs=_MOST_CALLS)
    add_join_to_server(api, server)
    try:
        taken = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise _in_use(address) from error
    if not taken:  # the same, as grpcio before 1.60 says it
        raise _in_use(address)
    server.start()
    name = advertised or _advertised_host(host)
    return RunningJoins(f"{host}:{taken}", f"{name}:{taken}", server, threads)


def _advertised_host(host: str) -> str:
    """Return what others call a host that is listened on: a wildcard is no address to type."""
    return outward_address() or "localhost" if host in ("0.0.0.0", "[::]", "::", "*") else host


def _in_use(address: str) -> PortInUse:
    return PortInUse(
        f"cannot serve joins at {address}: the port is in use, or the host is not this machine's; choose another: "
        "lutbuilder serve --join HOST:PORT"
    )
