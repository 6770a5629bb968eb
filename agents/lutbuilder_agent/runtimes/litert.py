"""LiteRT (TensorFlow Lite) with XNNPACK: package ai_edge_litert, else tflite_runtime, which has the same interpreter.

LiteRT drops XNNPACK without a word where it cannot read the CPU's files, and then runs reference kernels many times
slower. So every preparation checks that the delegate took the whole graph, and refuses otherwise.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

import numpy as np

from lutbuilder_agent.errors import RuntimeUnavailable, SpecError, UnsupportedOp
from lutbuilder_agent.records import Format
from lutbuilder_agent.reference import example_input
from lutbuilder_agent.runtimes.parts import BlockingPrepared, checked_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lutbuilder_agent.runtimes import Prepared

_PACKAGES = (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime"))
_UNKNOWN_OP = ("Didn't find op", "unresolved custom op", "Registration failed")


class LiteRt:
    """LiteRT on the CPU. Option `xnnpack`: "1" (default) demands the delegate, "0" takes the engine's own kernels."""

    format: Format = "tflite"

    def __init__(self, *, threads: int, options: Mapping[str, str]) -> None:
        chosen = checked_options("litert", options, defaults={"xnnpack": "1"}, choices={"xnnpack": ("0", "1")})
        self._engine, self._version = _engine()
        resolvers = self._engine.OpResolverType
        self._wants_xnnpack = chosen["xnnpack"] == "1"
        self._resolver = resolvers.AUTO if self._wants_xnnpack else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._threads = threads

    def version(self) -> str:
        return self._version

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def prepare(self, artifact: bytes, *, instance: int) -> Prepared:
        interpreter = self._interpreter(artifact)
        (source,) = interpreter.get_input_details()
        target = interpreter.get_output_details()[0]
        if self._wants_xnnpack:
            self._check_delegate(interpreter)
        shape = _nchw(tuple(int(extent) for extent in source["shape"]))

        def place(x: NDArray[np.float32]) -> None:
            interpreter.set_tensor(source["index"], np.ascontiguousarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x))

        def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
            place(x)
            interpreter.invoke()
            y: NDArray[np.float32] = interpreter.get_tensor(target["index"])
            return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if y.ndim == 4 else y

        memory = interpreter.tensor(source["index"])

        def rewrite_input() -> None:
            view = memory()  # not kept: the interpreter refuses to run while somebody holds a view of its memory
            np.multiply(view, np.float32(1), out=view)

        place(example_input(shape))
        return BlockingPrepared(call=interpreter.invoke, rewrite_input=rewrite_input, run=run, input_shape=shape)

    def _interpreter(self, artifact: bytes) -> Any:
        try:
            interpreter = self._engine.Interpreter(
                model_content=artifact, num_threads=self._threads, experimental_op_resolver_type=self._resolver
            )
        except ValueError as error:
            if any(words in str(error) for words in _UNKNOWN_OP):
                raise UnsupportedOp(f"litert {self._version}: {error}") from error
            raise SpecError(f"not a TFLite model that can be loaded: {error}") from error
        try:
            interpreter.allocate_tensors()
        except RuntimeError as error:
            raise UnsupportedOp(f"litert {self._version}: {error}") from error
        return interpreter

    def _check_delegate(self, interpreter: Any) -> None:
        """Raise RuntimeUnavailable if XNNPACK is not there at all, UnsupportedOp if it left part of the graph."""
        operators = interpreter._get_ops_details()  # nothing public tells; both packages have it under this name
        delegates = [op for op in operators if op["op_name"] == "DELEGATE"]
        own = [op for op in operators if op["op_name"] != "DELEGATE"]
        if not delegates and not self._xnnpack_takes_a_convolution():
            raise RuntimeUnavailable(
                f"litert {self._version} runs without XNNPACK here: it drops the delegate silently if "
                "/sys/devices/system/cpu/possible or present cannot be read. Make them readable, or ask for the "
                "engine's own kernels: option xnnpack=0"
            )
        # Replaced operators stay in the list, so what the delegate left over shows only in what it reads and writes.
        produced = {tensor for op in own for tensor in op["outputs"]}
        wanted = {detail["index"] for detail in interpreter.get_output_details()} & produced
        written = {tensor for op in delegates for tensor in op["outputs"]}
        read = {tensor for op in delegates for tensor in op["inputs"]}
        if len(delegates) != 1 or read & produced or not wanted <= written:
            names = ", ".join(op["op_name"] for op in own)
            raise UnsupportedOp(f"litert {self._version}: XNNPACK does not take all of the operators ({names})")

    def _xnnpack_takes_a_convolution(self) -> bool:
        from lutbuilder_agent.runtimes.probe import probe_artifact

        operators = self._interpreter(probe_artifact("tflite"))._get_ops_details()
        return any(op["op_name"] == "DELEGATE" for op in operators)


def _engine() -> tuple[Any, str]:
    """Return the interpreter module and the version to record. Raises ModuleNotFoundError, or RuntimeUnavailable."""
    absent: list[ModuleNotFoundError] = []
    for package, distribution in _PACKAGES:
        try:
            module = importlib.import_module(f"{package}.interpreter")
        except ModuleNotFoundError as error:
            absent.append(error)
            continue
        except (ImportError, SystemError, AttributeError) as error:
            # A wheel tagged for an older glibc than it needs; tflite_runtime beside numpy 2.
            raise RuntimeUnavailable(f"{distribution} is installed but does not import here: {error}") from error
        # The legacy package has slower kernels: never the same target, so never the same version string.
        suffix = "" if package == "ai_edge_litert" else "+tflite-runtime"
        return module, installed_version(distribution) + suffix
    raise absent[0]  # `load` answers with the line to type


def _nchw(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[3], shape[1], shape[2]) if len(shape) == 4 else shape
