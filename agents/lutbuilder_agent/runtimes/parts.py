"""Parts that several runtimes are made of: checking options, checking inputs, and a call timed by the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lutbuilder_agent.errors import ShapeError, SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def checked_options(
    runtime: str, options: Mapping[str, str], *, defaults: Mapping[str, str], choices: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """Return `defaults` overridden by `options`. Raises SpecError for an unknown option or a value not in `choices`."""
    for name, value in options.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise SpecError(f"runtime {runtime!r} has no option {name!r}; it has: {known}")
        if name in choices and value not in choices[name]:
            raise SpecError(
                f"runtime {runtime!r}: option {name} must be one of {', '.join(choices[name])}, got {value!r}"
            )
    return {**defaults, **options}


class BlockingPrepared:
    """A prepared artifact whose call blocks the thread until the output exists, so that the host's clock can time it.

    `call` runs the engine on the input already in place, `rewrite_input` writes that input over itself, `run` takes and
    gives what Prepared.run does. `timed_call` is a closure with everything bound beforehand: whatever it does besides
    calling is inside every sample.
    """

    def __init__(
        self,
        *,
        call: Callable[[], object],
        rewrite_input: Callable[[], object],
        run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        input_shape: tuple[int, ...],
    ) -> None:
        clock = time.perf_counter_ns

        def timed_call() -> int:
            start = clock()
            call()
            return (clock() - start) or 1  # a coarse clock may not have moved

        self.timed_call = timed_call
        self._rewrite_input = rewrite_input
        self._run = run
        self._input_shape = input_shape

    def warm_input(self) -> None:
        self._rewrite_input()

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        check_input(x, self._input_shape)
        return self._run(x)

    def close(self) -> None:
        # The closures hold the engine's session; without them nothing does.
        self.timed_call = _closed
        self._rewrite_input = _closed
        self._run = _closed_run


def check_input(x: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless `x` is float32 of `shape` (NCHW or NC)."""
    if x.shape != shape or x.dtype != "float32":
        raise ShapeError(f"this artifact takes float32 of shape {shape}, got {x.dtype} of shape {x.shape}")


def _closed() -> int:
    raise SpecError("this prepared artifact is closed; prepare it again")


def _closed_run(x: NDArray[np.float32]) -> NDArray[np.float32]:
    raise SpecError("this prepared artifact is closed; prepare it again")
