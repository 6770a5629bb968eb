"""A TCP proxy on loopback that counts bytes, withholds answers, goes deaf, and cuts connections: the bad network."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends a reset


@dataclass(eq=False)
class _Pipe:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    answered: int = 0  # bytes that went back to the client

    def other(self, end: socket.socket) -> socket.socket:
        return self.server if end is self.client else self.client


@dataclass
class Proxy:
    """Passes connections at `address` on to `target`. Everything may be changed while it runs, from any thread.

    `deaf`: nothing passes in either direction and nothing is closed, as when a cable was pulled; new connections are
    accepted by the kernel and hear nothing. `withhold`: what the server says is taken and never passed on.
    """

    target: str
    deaf: bool = False
    withhold: bool = False
    cut_after_answered: int | None = None  # bytes after which a connection is reset, once
    slow_s: float = 0.0  # between two pieces of an answer
    asked_bytes: int = 0
    answered_bytes: int = 0
    connections: int = 0
    address: str = ""
    on_asked: Callable[[bytes], None] = lambda raw: None  # what a client says, before it is passed on
    _pipes: list[_Pipe] = field(default_factory=list)
    _ends: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tcp-proxy")
        self._thread.start()

    @property
    def bytes(self) -> int:
        """What passed so far, in both directions, without the headers of TCP and IP."""
        return self.asked_bytes + self.answered_bytes

    def cut(self) -> int:
        """Reset every connection; return how many there were."""
        with self._lock:
            pipes = list(self._pipes)
            for pipe in pipes:
                self._drop(pipe, reset=True)
        return len(pipes)

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        with self._lock:
            for pipe in list(self._pipes):
                self._drop(pipe, reset=False)
        self._selector.close()
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._ends.is_set():
            for key, _ in self._selector.select(0.05):
                if self.deaf:
                    self._ends.wait(0.01)
                    continue
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data in self._pipes:
                        assert isinstance(key.fileobj, socket.socket)
                        self._pass(key.data, key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        host, _, port = self.target.rpartition(":")
        try:
            server = socket.create_connection((host, int(port)), timeout=5.0)
        except OSError:  # refused there, so refused here
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        self.connections += 1
        pipe = _Pipe(client, server)
        self._pipes.append(pipe)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(end, selectors.EVENT_READ, pipe)

    def _pass(self, pipe: _Pipe, end: socket.socket) -> None:
        try:
            raw = end.recv(_CHUNK)
            if not raw:
                self._drop(pipe, reset=False)
                return
            if end is pipe.client:
                self.asked_bytes += len(raw)
                self.on_asked(raw)
            elif self.withhold:
                return
            else:
                if self.slow_s:
                    self._ends.wait(self.slow_s)
                self.answered_bytes += len(raw)
                pipe.answered += len(raw)
            pipe.other(end).sendall(raw)
        except OSError:  # one end is gone, and so is the other
            self._drop(pipe, reset=True)
            return
        if self.cut_after_answered is not None and pipe.answered >= self.cut_after_answered:
            self.cut_after_answered = None
            self._drop(pipe, reset=True)

    def _drop(self, pipe: _Pipe, *, reset: bool) -> None:
        self._pipes.remove(pipe)
        for end in (pipe.client, pipe.server):
            self._selector.unregister(end)
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()
