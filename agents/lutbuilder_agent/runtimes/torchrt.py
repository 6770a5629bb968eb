"""PyTorch, eager: an nn.Module built from the graph, in one memory format, on the CPU or a CUDA device.

Eager mode is what a researcher's own timing loop runs: one kernel launch a layer, activations in place, nothing fused.
The memory format is part of the target: channels_last and contiguous are two runtimes in the registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lutbuilder_agent.errors import RuntimeUnavailable, UnsupportedOp
from lutbuilder_agent.graph import LayerGraph, layer_weights
from lutbuilder_agent.records import Format
from lutbuilder_agent.reference import example_input
from lutbuilder_agent.runtimes.parts import BlockingPrepared, checked_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from lutbuilder_agent.runtimes import Prepared


class TorchRuntime:
    """PyTorch eager, float32. Options: `memory_format` channels_last|contiguous, `device` cpu|cuda."""

    format: Format = "graph"

    def __init__(self, *, threads: int, options: Mapping[str, str]) -> None:
        chosen = checked_options(
            "torch",
            options,
            defaults={"memory_format": "channels_last", "device": "cpu"},
            choices={"memory_format": ("channels_last", "contiguous"), "device": ("cpu", "cuda")},
        )
        try:
            import torch
        except ModuleNotFoundError:
            raise  # `load` answers with the line to type
        except (ImportError, OSError) as error:  # OSError: a shared library of the wheel does not load
            raise RuntimeUnavailable(f"torch is installed but does not import here: {error}") from error
        if chosen["device"] == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailable(
                f"torch {torch.__version__} sees no CUDA device here; leave out the option device=cuda"
            )
        if chosen["device"] == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # the target says fp32
            torch.backends.cudnn.benchmark = True  # pick the fastest kernel, as deployments of fixed shapes do
        torch.set_num_threads(threads)
        self._torch = torch
        self._device = torch.device(chosen["device"])
        self._memory_format = (
            torch.channels_last if chosen["memory_format"] == "channels_last" else torch.contiguous_format
        )

    def version(self) -> str:
        return str(self._torch.__version__)

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def prepare(self, artifact: bytes, *, instance: int) -> Prepared:
        torch = self._torch
        graph = LayerGraph.from_bytes(artifact)
        module = _module(graph, place=self._place)
        placed = self._place(example_input(graph.shapes[0]))
        prepared = BlockingPrepared(
            call=lambda: module(placed),
            rewrite_input=lambda: placed.mul_(1.0),
            run=lambda x: module(self._place(x)).cpu().contiguous().numpy().copy(),
            input_shape=graph.shapes[0],
        )
        if self._device.type == "cuda":
            prepared.timed_call = _timed_by_events(lambda: module(placed))
        try:
            prepared.timed_call()  # eager mode tells only by running what it cannot run
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        except (NotImplementedError, RuntimeError) as error:
            raise UnsupportedOp(f"torch {self.version()}: {error}") from error
        return prepared

    def _place(self, array: NDArray[np.float32]) -> Tensor:
        """Return a copy on the device, 4-d ones in the memory format of the target."""
        tensor = self._torch.from_numpy(array.copy()).to(self._device)
        return tensor.contiguous(memory_format=self._memory_format) if tensor.ndim == 4 else tensor


def _module(graph: LayerGraph, *, place: Callable[[NDArray[np.float32]], Tensor]) -> nn.Module:
    """Return `graph` as a module that computes in inference mode; `place` puts a weight where it belongs."""
    import torch
    from torch import nn

    class Add(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    class Mul(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * b

    class GlobalAvgPool(nn.Module):
        def __init__(self, keeps_map: bool) -> None:
            super().__init__()
            self.keeps_map = keeps_map

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3), keepdim=self.keeps_map)

    def layer_module(number: int) -> nn.Module:
        layer = graph.layers[number]
        if layer.kind in ("conv2d", "linear"):
            return weighted_module(number)
        if layer.kind == "add":
            return Add()
        if layer.kind == "mul":
            return Mul()
        if layer.kind in ("global_avg_pool", "global_pool"):
            return GlobalAvgPool(keeps_map=layer.kind == "global_pool")
        if layer.kind == "avg_pool":
            return nn.AvgPool2d(layer.kernel, layer.stride, ceil_mode=True, count_include_pad=False)
        if layer.kind == "max_pool":
            return nn.MaxPool2d(layer.kernel, layer.stride, padding=layer.side)
        if layer.kind == "channel_shuffle":
            return nn.ChannelShuffle(layer.groups)
        return nn.Identity()  # hands its input on: what is timed is the call alone, nothing is copied

    def weighted_module(number: int) -> nn.Module:
        layer = graph.layers[number]
        source = graph.shapes[layer.inputs[0]]
        weight, bias = layer_weights(graph, number)
        # device="meta": no random initialisation, the weights are the graph's.
        module: nn.Conv2d | nn.Linear
        if layer.kind == "linear":
            module = nn.Linear(weight.shape[1], layer.out_channels, device="meta")
        else:
            module = nn.Conv2d(
                source[1],
                layer.out_channels,
                layer.kernel,
                stride=layer.stride,
                padding=layer.side,
                groups=layer.groups,
                device="meta",
            )
        module.weight = nn.Parameter(place(weight), requires_grad=False)
        module.bias = nn.Parameter(place(bias), requires_grad=False)
        return nn.Sequential(nn.Flatten(), module) if layer.kind == "linear" and len(source) == 4 else module

    acts: dict[str, Callable[..., nn.Module]] = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "hswish": nn.Hardswish,
        "swish": nn.SiLU,
        "hsigmoid": nn.Hardsigmoid,
    }

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList()
            # (module, tensors it reads, tensor it writes, tensors nobody reads afterwards)
            self.plan: list[tuple[nn.Module, tuple[int, ...], int, tuple[int, ...]]] = []
            last_read = {source: number for number, layer in enumerate(graph.layers) for source in layer.inputs}
            for number, layer in enumerate(graph.layers):
                released = tuple(tensor for tensor, reader in last_read.items() if reader == number)
                self.plan.append((layer_module(number), layer.inputs, number + 1, released))
                if layer.act != "none":
                    # In place, as models ship it; an identity, or a shuffle of nothing, has no output of its own.
                    act = acts[layer.act](inplace=layer.kind not in ("identity", "channel_shuffle"))
                    self.plan.append((act, (number + 1,), number + 1, ()))
            self.parts.extend(module for module, _, _, _ in self.plan)

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            tensors = {0: x}
            for module, sources, target, released in self.plan:
                tensors[target] = module(*[tensors[source] for source in sources])
                for tensor in released:
                    del tensors[tensor]  # as eager code does that rebinds x: memory is reused while warm
            return tensors[len(graph.layers)]

    return Network().eval()


def _timed_by_events(call: Callable[[], object]) -> Callable[[], int]:
    """Return a call timed on the device, from first kernel to last, gaps of late launches included."""
    import torch

    event: Any = torch.cuda.Event  # torch does not type its constructor
    start, end = event(enable_timing=True), event(enable_timing=True)

    def timed_call() -> int:
        start.record()
        call()
        end.record()
        end.synchronize()
        return max(1, round(1e6 * float(start.elapsed_time(end))))  # events count in ms

    return timed_call
