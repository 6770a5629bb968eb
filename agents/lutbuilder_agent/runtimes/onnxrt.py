"""ONNX Runtime on the CPU: one session a preparation, input and output bound beforehand.

All sessions of a process take their intermediate tensors from one arena, unless told otherwise. With an arena each, ops
called in turns find those tensors cold, which inside one network they are not; the sum of isolated ops then reads
about 7 % higher (seen on 2 cores of an AMD EPYC with 1 MiB of L2 each, ONNX Runtime 1.31.1).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lutbuilder_agent.errors import RuntimeUnavailable, SpecError, UnsupportedOp
from lutbuilder_agent.records import Format
from lutbuilder_agent.reference import example_input
from lutbuilder_agent.runtimes.parts import BlockingPrepared, checked_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lutbuilder_agent.runtimes import Prepared

_ERRORS_ONLY = 3  # ORT's log severity: no warnings about initializers or unreadable CPU masks between samples


class OnnxRuntime:
    """ONNX Runtime, CPU provider, all graph optimisations. Option `arena`: "shared" (default) or "own", see above."""

    format: Format = "onnx"

    def __init__(self, *, threads: int, options: Mapping[str, str]) -> None:
        chosen = checked_options(
            "onnxruntime", options, defaults={"arena": "shared"}, choices={"arena": ("shared", "own")}
        )
        try:
            import onnxruntime  # type: ignore[import-untyped]  # ships no types
        except ModuleNotFoundError:
            raise  # `load` answers with the line to type
        except ImportError as error:
            raise RuntimeUnavailable(f"onnxruntime is installed but does not import here: {error}") from error
        self._ort = onnxruntime
        self._threads = threads
        self._shares_arena = chosen["arena"] == "shared"

    def version(self) -> str:
        return str(self._ort.__version__)

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def prepare(self, artifact: bytes, *, instance: int) -> Prepared:
        ort = self._ort
        session = self._session(artifact)
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        if not all(isinstance(extent, int) for extent in (*source.shape, *target.shape)):
            raise SpecError(f"the model has open extents: input {source.shape}, output {target.shape}")
        shape = tuple(source.shape)
        placed = example_input(shape)  # the OrtValue is backed by this array, no copy in between
        output = ort.OrtValue.ortvalue_from_shape_and_type(target.shape, np.float32)
        binding = session.io_binding()
        binding.bind_ortvalue_input(source.name, ort.OrtValue.ortvalue_from_numpy(placed))
        binding.bind_ortvalue_output(target.name, output)
        call = partial(session.run_with_iobinding, binding)

        def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
            placed[...] = x
            call()
            found: NDArray[np.float32] = output.numpy().copy()
            return found

        rewrite_input = partial(np.multiply, placed, np.float32(1), out=placed)
        return BlockingPrepared(call=call, rewrite_input=rewrite_input, run=run, input_shape=shape)

    def _session(self, artifact: bytes) -> Any:
        ort = self._ort
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.log_severity_level = _ERRORS_ONLY
        if self._shares_arena:
            _register_shared_arena()
            settings.add_session_config_entry("session.use_env_allocators", "1")
        state = ort.capi.onnxruntime_pybind11_state
        try:
            # The provider by name: by default ORT would also list one that calls a cloud service.
            return ort.InferenceSession(artifact, settings, providers=["CPUExecutionProvider"])
        except (state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.NoModel) as error:
            raise SpecError(f"not an ONNX model that can be loaded: {error}") from error
        except (state.NotImplemented, state.Fail) as error:
            raise UnsupportedOp(f"onnxruntime {self.version()}: {error}") from error


@lru_cache(maxsize=1)
def _register_shared_arena() -> None:
    import onnxruntime as ort

    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, None)  # once a process; a second time is an error
