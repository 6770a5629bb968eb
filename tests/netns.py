"""A bad network of our own: two network namespaces of this machine and the wire between them.

The wire is a thread of the test. Each namespace has a TUN device, and the thread carries whole IP packets from one to
the other: late, not at all, twice, or out of order. That is what `tc netem` does inside the kernel; many kernels come
without that module, and TCP at either end cannot tell the two apart.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

_TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_NUMBERS = itertools.count(1)


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Return why there can be no network of our own here, None if there can."""
    try:
        with bad_network():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        return f"network namespaces need root, ip (apt-get install iproute2) and {_TUN}: {error} {said}".strip()


@dataclass
class End:
    """A namespace with its end of the wire."""

    namespace: str
    address: str
    handle: int  # what is written here arrives in the namespace
    device: str = "wire"

    @property
    def within(self) -> list[str]:
        """The words before a command that is to run here."""
        return ["ip", "netns", "exec", self.namespace]

    def link(self, state: str) -> None:
        """Pull the cable out of this end ("down"), or put it in again ("up")."""
        _ip("-n", self.namespace, "link", "set", self.device, state)


@dataclass
class Wire:
    """Carries packets between two ends. Everything may be changed while it runs, from any thread.

    `delay_s` and `loss` (a share of the packets) hold in each direction; `to_far_s` and `to_near_s` are further delays
    of one. `doubled`: the share that comes twice; `shuffle_s`: a random further delay, so that packets overtake each
    other. `cut`: nothing passes and nobody is told, as when something on the way fails.
    """

    near: End
    far: End
    seed: int = 1
    delay_s: float = 0.0
    to_far_s: float = 0.0
    to_near_s: float = 0.0
    loss: float = 0.0
    doubled: float = 0.0
    shuffle_s: float = 0.0
    cut: bool = False
    count: Counter[str] = field(default_factory=Counter)  # carried, lost, doubled
    _under_way: list[tuple[float, int, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._numbers = itertools.count()
        self._end, self._told = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True, name="wire")
        self._thread.start()

    def close(self) -> None:
        os.close(self._told)
        self._thread.join()
        os.close(self._end)

    def _run(self) -> None:
        ends = {self.near.handle: (self.far.handle, "to_far_s"), self.far.handle: (self.near.handle, "to_near_s")}
        while True:
            due_s = self._under_way[0][0] - time.monotonic() if self._under_way else None
            ready, _, _ = select.select([*ends, self._end], [], [], None if due_s is None else max(0.0, due_s))
            if self._end in ready:
                return
            for handle in ready:
                other, delay = ends[handle]
                try:
                    packet = os.read(handle, 1 << 16)
                except OSError:  # its cable is out
                    time.sleep(0.001)
                    continue
                self._take(packet, other, getattr(self, delay))
            self._deliver(time.monotonic())

    def _take(self, packet: bytes, to: int, delay_s: float) -> None:
        if self.cut or self._random.random() < self.loss:
            self.count["lost"] += 1
            return
        times = 1 + (self._random.random() < self.doubled)
        self.count["doubled"] += times - 1
        for _ in range(times):
            due_s = time.monotonic() + self.delay_s + delay_s + self._random.random() * self.shuffle_s
            heapq.heappush(self._under_way, (due_s, next(self._numbers), to, packet))

    def _deliver(self, now_s: float) -> None:
        while self._under_way and self._under_way[0][0] <= now_s:
            *_, to, packet = heapq.heappop(self._under_way)
            if self.cut:
                self.count["lost"] += 1
                continue
            try:
                os.write(to, packet)
                self.count["carried"] += 1
            except OSError:  # its cable is out
                self.count["lost"] += 1


@contextmanager
def bad_network() -> Iterator[Wire]:
    """Make two namespaces and a wire that is still a good one; remove them on the way out.

    Raises OSError or CalledProcessError where that is not allowed.
    """
    number = next(_NUMBERS)
    with ExitStack() as stack:
        near, far = (
            stack.enter_context(_end(f"lb-{os.getpid()}-{number}-{name}", f"lb{os.getpid()}{name}"[:15], own, other))
            for name, own, other in (("near", "10.77.0.1", "10.77.0.2"), ("far", "10.77.0.2", "10.77.0.1"))
        )
        wire = Wire(near, far)
        stack.callback(wire.close)
        yield wire


@contextmanager
def _end(namespace: str, made_as: str, own: str, other: str) -> Iterator[End]:
    handle = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        _ip("netns", "add", namespace)
        try:
            fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", made_as.encode(), _IFF_TUN | _IFF_NO_PI))
            _ip("link", "set", made_as, "netns", namespace, "name", End.device)
            _ip("-n", namespace, "addr", "add", own, "peer", other, "dev", End.device)
            for device in (End.device, "lo"):
                _ip("-n", namespace, "link", "set", device, "up")
            yield End(namespace, own, handle)
        finally:
            _ip("netns", "delete", namespace)
    finally:
        os.close(handle)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)
