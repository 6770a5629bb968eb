"""`serve`: a coordinator behind gRPC, and the thread that keeps its clock."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lutbuilder.coordinator.service.coordinator import Coordinator
from lutbuilder_agent.errors import PortInUse, SpecError, StoreError

if TYPE_CHECKING:
    import grpc

_log = logging.getLogger(__name__)
_SLOWEST_TICK_S = 4.0


class Keeper:
    """Ticks for a coordinator, and notices when the whole process has been stopped: `step` is due every `tick_s`."""

    def __init__(self, coordinator: Coordinator, tick_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.tick_s = tick_s
        self._coordinator = coordinator
        self._clock = clock
        self._asleep_s = max(4 * tick_s, coordinator.ttl_s / 4)
        self._last_s = clock()
        self._failing = False
        coordinator.watch_sleep(lambda: clock() - self._last_s > self._asleep_s)

    def step(self) -> None:
        """Tick. A store that does not answer is asked again next time."""
        slept_s = self._clock() - self._last_s
        if slept_s > self._asleep_s:
            self._coordinator.slept(slept_s)
        self._last_s = self._clock()
        try:
            self._coordinator.tick()
            self._failing = False
        except StoreError as error:
            if not self._failing:
                _log.warning("the store does not answer, trying again: %s", error)
            self._failing = True
        except Exception:  # the edge of a thread: whatever it was, leases have to go on living
            _log.exception("a tick failed")

    def leave(self) -> None:
        """Watch no more."""
        self._coordinator.watch_sleep(lambda: False)


class _KeeperThread:
    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="lutbuilder-tick")
        self._thread.start()

    def stop(self) -> None:
        """End the thread. May be called twice."""
        self._end.set()
        self._thread.join()
        self._keeper.leave()

    def _run(self) -> None:
        self._keeper.step()
        while not self._end.wait(self._keeper.tick_s):
            self._keeper.step()


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A coordinator that listens. `address` is "host:port" with the port that was really taken."""

    address: str
    _coordinator: Coordinator
    _server: grpc.Server
    _threads: ThreadPoolExecutor
    _keeper: _KeeperThread

    def stop(self, grace_s: float = 2.0) -> None:
        """Stop listening; calls under way have `grace_s` seconds to end. May be called twice."""
        self._coordinator.release_waiters()
        self._server.stop(grace_s).wait()
        self._keeper.stop()
        self._threads.shutdown(wait=False)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    coordinator: Coordinator,
    address: str = "127.0.0.1:0",
    *,
    credentials: grpc.ServerCredentials | None = None,
    interceptors: Sequence[grpc.ServerInterceptor[Any, Any]] = (),
    services: Sequence[Callable[[grpc.Server], None]] = (),
    insecure: bool = False,
    tick_s: float | None = None,
) -> RunningServer:
    """Listen at "host:port" (port 0: any free one) and serve the coordinator in background threads.

    Without `credentials` (TLS) only loopback is listened on, unless `insecure` says that this is known. `services` add
    themselves to the server before it starts. `tick_s`: how often to look at the clock and at the store for what other
    coordinators did; by default as often as the ttl needs, which a device beside it does not notice. Raises PortInUse,
    SpecError.
    """
    import grpc

    from lutbuilder_agent.wire.client import is_loopback
    from lutbuilder_agent.wire.servicer import SERVER_OPTIONS, add_to_server

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SpecError(f"cannot listen on {address!r}: give HOST:PORT, e.g. 127.0.0.1:0 for any free port")
    if credentials is None and not insecure and not is_loopback(address):
        raise SpecError(
            f"cannot listen on {address}: without TLS only loopback is served. Listen on 127.0.0.1:{port} and bring "
            f"the port to the device with ssh -R {port}:127.0.0.1:{port} DEVICE"
        )
    _check_free(host, int(port))
    threads = ThreadPoolExecutor(coordinator.max_waiting + 16, thread_name_prefix="lutbuilder-call")
    server = grpc.server(threads, interceptors=list(interceptors), options=SERVER_OPTIONS)
    add_to_server(coordinator, server)
    for add in services:
        add(server)
    try:
        if credentials is None:
            taken = server.add_insecure_port(address)
        else:
            taken = server.add_secure_port(address, credentials)
    except RuntimeError as error:  # somebody was faster than we after _check_free
        raise _in_use(address) from error
    if not taken:  # the same, as grpcio before 1.60 says it
        raise _in_use(address)
    server.start()
    keeper = _KeeperThread(
        Keeper(coordinator, min(_SLOWEST_TICK_S, coordinator.ttl_s / 8) if tick_s is None else tick_s)
    )
    return RunningServer(f"{host}:{taken}", coordinator, server, threads, keeper)


def _check_free(host: str, port: int) -> None:
    """Raise PortInUse or SpecError if one cannot listen there; gRPC itself only says that it failed, and logs noise."""
    name = host.strip("[]")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(f"{host}:{port}") from error
        raise SpecError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _in_use(address: str) -> PortInUse:
    return PortInUse(
        f"cannot listen on {address}: the port is in use, perhaps by another lutbuilder; "
        f"choose another, or any free one: --listen {address.rpartition(':')[0]}:0"
    )
