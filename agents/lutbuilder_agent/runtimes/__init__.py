"""Runtimes: one file an engine. The registry names them; nothing is imported until it is asked for.

A runtime is done when the contract suite (tests/contract/test_runtimes.py) passes for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from lutbuilder_agent.errors import MissingExtra, unknown_name
from lutbuilder_agent.records import Format

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Prepared(Protocol):
    """One instance of an artifact: loaded, its input placed where the engine wants it. Used by one thread only."""

    def timed_call(self) -> int:
        """Run once, blocking until the output exists, and return how long it took in ns by the runtime's own clock."""
        ...

    def warm_input(self) -> None:
        """Write the input once more in place, so that caches hold it as they would after the op before it had run."""
        ...

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the output for input `x`; NCHW in, NCHW (or NC) out, whatever the engine's layout. Not for timing."""
        ...

    def close(self) -> None:
        """Free everything; calling anything else afterwards is an error."""
        ...


class Runtime(Protocol):
    """An engine in this process with its settings. Construct with `(threads=..., options=...)`."""

    format: Format

    def version(self) -> str:
        """Engine version as the LUT records it, e.g. "1.31.1"."""
        ...

    def now_ns(self) -> int:
        """The clock `start_ns` is read from: monotonic; virtual on the simulated device."""
        ...

    def prepare(self, artifact: bytes, *, instance: int) -> Prepared:
        """Load an artifact anew: fresh session, fresh weights, fresh memory.

        Raises UnsupportedOp (the engine's words) if the engine cannot run it, SpecError if the bytes are malformed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a runtime lives, the artifact format it takes, and the extra of lutbuilder-agent that installs it.

    `has_caches`: what ran before a call changes how long it takes, as on every real machine.
    """

    path: str
    format: Format
    extra: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    has_caches: bool = True


RUNTIMES: Mapping[str, Entry] = {
    "onnxruntime": Entry("lutbuilder_agent.runtimes.onnxrt:OnnxRuntime", "onnx", "onnx"),
    "litert": Entry("lutbuilder_agent.runtimes.litert:LiteRt", "tflite", "litert"),
    "torch-channels_last": Entry(
        "lutbuilder_agent.runtimes.torchrt:TorchRuntime", "graph", "torch", (("memory_format", "channels_last"),)
    ),
    "torch-contiguous": Entry(
        "lutbuilder_agent.runtimes.torchrt:TorchRuntime", "graph", "torch", (("memory_format", "contiguous"),)
    ),
    "simulated": Entry("lutbuilder_agent.runtimes.simulated:SimulatedRuntime", "graph", "simulated", has_caches=False),
}
ALIASES: Mapping[str, str] = {"torch": "torch-channels_last", "onnx": "onnxruntime", "tflite": "litert"}


def entry(name: str) -> tuple[str, Entry]:
    """Return the canonical name and entry of a runtime or alias. Raises UnknownName listing what there is."""
    canonical = ALIASES.get(name, name)
    if canonical not in RUNTIMES:
        raise unknown_name("runtime", name, [*RUNTIMES, *ALIASES])
    return canonical, RUNTIMES[canonical]


def load(name: str, *, threads: int, options: Mapping[str, str] | None = None) -> Runtime:
    """Import and construct a runtime. Raises UnknownName, or MissingExtra with the line to type."""
    canonical, found = entry(name)
    module, _, attribute = found.path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
        return cast(Runtime, factory(threads=threads, options={**dict(found.options), **(options or {})}))
    except ModuleNotFoundError as error:
        if found.extra is None or (error.name or "").startswith("lutbuilder"):
            raise
        raise MissingExtra(
            f"runtime {canonical!r} needs the package {error.name!r}: pip install 'lutbuilder-agent[{found.extra}]'"
        ) from error
