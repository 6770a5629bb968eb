"""The simulated device: known true latencies, every kind of noise a real machine shows, and faults on demand.

Time is virtual, so a test of an hour of measuring takes a second; all randomness comes from `seed`. A call takes

    true_ns(graph) x instance effect x session effect x clock mode(t) x throttle ramp(t) x exp(AR(1) noise)

and is read through a timer of `quantum_ns`. Options, all strings (defaults in OPTIONS):

    overhead_ns               cost of an empty call, part of every true latency
    speed                     divides the cost of every layer
    noise_sigma, noise_rho    AR(1) noise of the log latency: standard deviation, correlation from one call to the next
    noise_spread              standard deviation of the log of how noisy a graph is, around noise_sigma
    clock_ratio               bimodal clock: calls in slow mode take this times as long (1: one mode)
    clock_dwell_s             mean stay in a mode, in virtual seconds
    session                   name of the session; another one draws another session effect and other noise. own: an
                              agent names it by itself and its session, and draws other noise in every lease
    session_sigma             standard deviation of the log session effect, common to all ops of a session
    instance_sigma            standard deviation of the log effect of one preparation of one graph
    throttle                  slowdown at full heat (0.3: calls take 30 % longer), grown linearly from the start
    throttle_ramp_s           virtual seconds until full heat
    quantum_ns                resolution of the timer
    seed                      what all randomness comes from
    clock_ns                  the virtual clock's first reading; from another one on, noise is other noise
    realtime                  1: calls also sleep for their duration, and now_ns is the host's clock
    crash, hang               prefixes of graph keys, comma separated: a timed call dies of SIGSEGV, or never returns
    unsupported               the same: preparing raises UnsupportedOp
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lutbuilder_agent.errors import SpecError, UnsupportedOp
from lutbuilder_agent.graph import Layer, LayerGraph, weight_shape
from lutbuilder_agent.records import Format
from lutbuilder_agent.reference import evaluate
from lutbuilder_agent.runtimes.parts import check_input, checked_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lutbuilder_agent.runtimes import Prepared

OPTIONS: Mapping[str, str] = {
    "overhead_ns": "5000",
    "speed": "1",
    "noise_sigma": "0.01",
    "noise_rho": "0.5",
    "noise_spread": "0",
    "clock_ratio": "1",
    "clock_dwell_s": "1",
    "session": "0",
    "session_sigma": "0",
    "instance_sigma": "0",
    "throttle": "0",
    "throttle_ramp_s": "60",
    "quantum_ns": "1",
    "seed": "0",
    "clock_ns": "0",
    "realtime": "0",
    "crash": "",
    "hang": "",
    "unsupported": "",
}
_NS_PER_MAC = 0.05  # 20 GMAC/s, about one core with AVX2
_DEPTHWISE_FACTOR = 4.0  # a depthwise MAC reuses nothing
_NS_PER_BYTE = 0.02  # 50 GB/s of cache
_SEPARATE_ACTS = ("hswish", "swish")  # most engines do not fuse these into a layer: another pass over its output
_AT_ONCE = 256  # draws of the noise
_LOWEST: Mapping[str, float] = {  # every number's least value; those not named here are at least 0
    "speed": 1e-6,
    "clock_ratio": 1.0,
    "clock_dwell_s": 1e-6,
    "throttle_ramp_s": 1e-6,
    "quantum_ns": 1.0,
}


def true_ns(graph: LayerGraph, options: Mapping[str, str] | None = None) -> float:
    """Return the latency a perfect measurement of `graph` would report, in ns, the overhead of the call included.

    Additive: a network's true latency is the sum over its ops, less all but one of their overheads.
    """
    return _call_ns(_work_ns(graph), _checked(options or {}))


class SimulatedRuntime:
    """The simulated device. All its instances share one virtual clock and one stream of noise."""

    format: Format = "graph"

    def __init__(self, *, threads: int, options: Mapping[str, str]) -> None:
        self.options = _checked(options)
        self._clock = _VirtualClock(self.options)

    def version(self) -> str:
        return "1"

    def now_ns(self) -> int:
        if self.options["realtime"] == "1":
            return time.perf_counter_ns()
        return int(self._clock.now_ns)

    def prepare(self, artifact: bytes, *, instance: int) -> Prepared:
        graph, work_ns = _read(artifact)
        if _selected(graph, self.options["unsupported"]):
            raise UnsupportedOp(f"the simulated device was told not to support graph {graph.key[:16]}")
        return _Simulated(graph, work_ns, instance, self.options, self._clock)


class _VirtualClock:
    """Virtual time, and everything that slows the whole device as it passes."""

    def __init__(self, options: Mapping[str, str]) -> None:
        def number(name: str) -> float:
            return float(options[name])

        session_rng = _rng(options, "session")
        since = () if options["clock_ns"] == "0" else (options["clock_ns"],)
        self._noise_rng = _rng(options, "noise", *since)
        self._mode_rng = _rng(options, "mode", *since)
        self._start_ns = self.now_ns = number("clock_ns")
        self._session_effect = number("session_sigma") * session_rng.standard_normal()
        self._noise_sigma, self._rho = number("noise_sigma"), number("noise_rho")
        self._new_share = math.sqrt(1.0 - self._rho**2)
        self._draws: list[float] = []  # of the noise, the next one last: one by one they take longer than all else
        self._noise = self._draw()
        self._dwell_ns = number("clock_dwell_s") * 1e9
        self._log_modes = (0.0, math.log(number("clock_ratio")))
        self._mode = int(self._mode_rng.integers(2))
        self._switch_ns = self.now_ns + self._mode_rng.exponential(self._dwell_ns)
        self._throttle, self._ramp_ns = number("throttle"), number("throttle_ramp_s") * 1e9
        self._quantum_ns = int(number("quantum_ns"))

    def advance(self, base_ns: float, noisiness: float) -> tuple[float, int]:
        """Let a call pass that takes `base_ns` undisturbed; return how long it took and what the timer read, in ns.

        `noisiness` multiplies the noise.
        """
        while self.now_ns >= self._switch_ns:
            self._mode = 1 - self._mode
            self._switch_ns += self._mode_rng.exponential(self._dwell_ns)
        self._noise = self._rho * self._noise + self._new_share * (self._draws.pop() if self._draws else self._draw())
        log_slowdown = self._session_effect + self._log_modes[self._mode]
        log_slowdown += self._noise_sigma * noisiness * self._noise
        ramp = 1.0 + self._throttle * min(1.0, (self.now_ns - self._start_ns) / self._ramp_ns)
        took_ns = base_ns * math.exp(log_slowdown) * ramp
        ticks_before = self.now_ns // self._quantum_ns
        self.now_ns += took_ns
        ticks = self.now_ns // self._quantum_ns - ticks_before
        return took_ns, max(1, int(ticks) * self._quantum_ns)  # a call below the quantum may read 0; no timing is 0

    def _draw(self) -> float:
        self._draws = self._noise_rng.standard_normal(_AT_ONCE)[::-1].tolist()
        return self._draws.pop()


class _Simulated:
    """One preparation of one graph on the simulated device."""

    def __init__(
        self, graph: LayerGraph, work_ns: float, instance: int, options: Mapping[str, str], clock: _VirtualClock
    ) -> None:
        self._graph = graph
        self._clock: _VirtualClock | None = clock
        self._realtime = options["realtime"] == "1"
        self._crashes = _selected(graph, options["crash"])
        self._hangs = _selected(graph, options["hang"])
        effect = _rng(options, "instance", graph.key, str(instance)).standard_normal()
        noisiness = _rng({**options, "session": ""}, "noisiness", graph.key).standard_normal()
        self._noisiness = math.exp(float(options["noise_spread"]) * noisiness)
        self._base_ns = _call_ns(work_ns, options) * math.exp(float(options["instance_sigma"]) * effect)

    def timed_call(self) -> int:
        clock = self._open_clock()
        if self._crashes:
            os.kill(os.getpid(), signal.SIGSEGV)
        while self._hangs:
            time.sleep(3600)
        took_ns, read_ns = clock.advance(self._base_ns, self._noisiness)
        if self._realtime:
            time.sleep(took_ns / 1e9)
        return read_ns

    def warm_input(self) -> None:
        self._open_clock()  # the model has no caches

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self._open_clock()
        check_input(x, self._graph.shapes[0])
        return evaluate(self._graph, x)

    def close(self) -> None:
        self._clock = None

    def _open_clock(self) -> _VirtualClock:
        if self._clock is None:
            raise SpecError("this prepared artifact is closed; prepare it again")
        return self._clock


@lru_cache(maxsize=4096)
def _read(artifact: bytes) -> tuple[LayerGraph, float]:
    """Return the graph of an artifact, which every lease prepares several times, and what its layers take."""
    graph = LayerGraph.from_bytes(artifact)
    return graph, _work_ns(graph)


def _work_ns(graph: LayerGraph) -> float:
    return sum(_layer_ns(graph, number, layer) for number, layer in enumerate(graph.layers))


def _call_ns(work_ns: float, options: Mapping[str, str]) -> float:
    return float(options["overhead_ns"]) + work_ns / float(options["speed"])


def _layer_ns(graph: LayerGraph, number: int, layer: Layer) -> float:
    if layer.kind == "identity":
        return 0.0
    output = graph.shapes[number + 1]
    shape = weight_shape(graph, layer)
    weights = math.prod(shape) if shape else 0
    moved = math.prod(output) + sum(math.prod(graph.shapes[source]) for source in layer.inputs) + weights
    if layer.act in _SEPARATE_ACTS:
        moved += 2 * math.prod(output)
    macs = weights * output[0] * math.prod(output[2:])
    depthwise = layer.kind == "conv2d" and layer.groups == graph.shapes[layer.inputs[0]][1] > 1
    return macs * _NS_PER_MAC * (_DEPTHWISE_FACTOR if depthwise else 1.0) + 4 * moved * _NS_PER_BYTE


def _checked(options: Mapping[str, str]) -> dict[str, str]:
    chosen = checked_options("simulated", options, defaults=OPTIONS, choices={"realtime": ("0", "1")})
    for name, value in chosen.items():
        if name in ("realtime", "crash", "hang", "unsupported", "seed", "session"):
            continue  # text
        lowest = _LOWEST.get(name, 0.0)
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not lowest <= number < math.inf:
            raise SpecError(f"runtime 'simulated': option {name} must be a number from {lowest:g}, got {value!r}")
    if float(chosen["noise_rho"]) >= 1.0:
        raise SpecError(f"runtime 'simulated': option noise_rho must be below 1, got {chosen['noise_rho']!r}")
    return chosen


def _selected(graph: LayerGraph, prefixes: str) -> bool:
    return any(graph.key.startswith(prefix) for prefix in prefixes.split(",") if prefix)


def _rng(options: Mapping[str, str], *purpose: str) -> np.random.Generator:
    """Return a stream of its own for `purpose`, the same whenever seed, session and purpose are."""
    name = "/".join((options["seed"], options["session"], *purpose))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))
