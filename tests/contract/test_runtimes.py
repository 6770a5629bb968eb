"""The contract of a runtime: every registered one keeps it; one that is not installed fails with the line to type."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.artifacts import build
from lutbuilder.lower import lower, lower_network
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import (
    MissingExtra,
    RuntimeUnavailable,
    ShapeError,
    SpecError,
    UnknownName,
    UnsupportedOp,
)
from lutbuilder_agent.graph import ACTS, LAYER_KINDS, Layer, LayerGraph, layer_weights
from lutbuilder_agent.records import RuntimeReport
from lutbuilder_agent.reference import example_input
from lutbuilder_agent.runtimes import ALIASES, RUNTIMES, Runtime, entry, load
from lutbuilder_agent.runtimes import probe as probe_module
from lutbuilder_agent.runtimes.probe import PROBE_GRAPH, probe, probe_all, probe_artifact
from lutbuilder_agent.runtimes.simulated import SimulatedRuntime
from tests.strategies import layer_graphs, op_specs

MBCONV = OpSpec(kind="mbconv", in_channels=8, out_channels=8, height=6, width=6, mid_channels=24, kernel=5, act="relu6")
RESIDUAL = OpSpec(**{**MBCONV.canonical(), "residual": True})


@pytest.fixture(scope="module", params=list(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    try:
        return load(request.param, threads=1)
    except MissingExtra as error:
        pytest.fail(str(error))


# --- It computes the function of the graph.


def check_output(runtime: Runtime, graph: LayerGraph) -> NDArray[np.float32]:
    x = fitting_input(graph)
    expected = torch_output(graph, x)
    prepared = runtime.prepare(build(graph, runtime.format), instance=0)
    found = prepared.run(x)
    prepared.close()
    assert found.shape == expected.shape == graph.shapes[-1]
    assert found.dtype == np.float32
    # float32 sums in another order: the error grows with the sums, not with the single element.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
    return found


def fitting_input(graph: LayerGraph) -> NDArray[np.float32]:
    """Return an input without negative values if a padded max pool reads it, as the graph language asks."""
    x = example_input(graph.shapes[0])
    return np.abs(x) if any(layer.kind == "max_pool" and 0 in layer.inputs for layer in graph.layers) else x


def torch_output(graph: LayerGraph, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same function said in torch, in float64, layer by layer."""
    torch_acts: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "none": lambda y: y,
        "relu": torch.relu,
        "relu6": torch.nn.functional.relu6,
        "hswish": torch.nn.functional.hardswish,
        "swish": torch.nn.functional.silu,
        "hsigmoid": torch.nn.functional.hardsigmoid,
    }
    tensors = [torch.from_numpy(x.astype(np.float64))]
    for number, layer in enumerate(graph.layers):
        tensors.append(torch_acts[layer.act](torch_layer(graph, number, [tensors[n] for n in layer.inputs])))
    return tensors[-1].numpy()


def torch_layer(graph: LayerGraph, number: int, sources: list[torch.Tensor]) -> torch.Tensor:
    layer, source = graph.layers[number], sources[0]
    if layer.kind in ("conv2d", "linear"):
        weight, bias = (torch.from_numpy(part.astype(np.float64)) for part in layer_weights(graph, number))
        if layer.kind == "linear":
            return torch.nn.functional.linear(source.flatten(1), weight, bias)
        return torch.nn.functional.conv2d(source, weight, bias, layer.stride, layer.side, groups=layer.groups)
    if layer.kind == "add":
        return source + sources[1]
    if layer.kind == "mul":
        return source * sources[1]
    if layer.kind in ("global_avg_pool", "global_pool"):
        pooled = torch.nn.functional.adaptive_avg_pool2d(source, 1)
        return pooled.flatten(1) if layer.kind == "global_avg_pool" else pooled
    if layer.kind == "avg_pool":
        return torch.nn.functional.avg_pool2d(source, 2, ceil_mode=True, count_include_pad=False)
    if layer.kind == "max_pool":
        return torch.nn.functional.max_pool2d(source, layer.kernel, layer.stride, layer.side)
    if layer.kind == "channel_shuffle":
        return torch.nn.functional.channel_shuffle(source, layer.groups)
    return source


def graph_of(*layers: Layer, channels: int = 4, height: int = 6, width: int = 6, batch: int = 1) -> LayerGraph:
    return LayerGraph(batch=batch, in_channels=channels, height=height, width=width, layers=layers)


EVERY_LAYER_KIND: tuple[tuple[Layer, ...], ...] = (
    (Layer(kind="identity", inputs=(0,)),),
    (Layer(kind="add", inputs=(0, 0)),),
    (Layer(kind="conv2d", inputs=(0,), out_channels=6, kernel=3),),
    (Layer(kind="global_avg_pool", inputs=(0,)),),
    (Layer(kind="global_avg_pool", inputs=(0,)), Layer(kind="linear", inputs=(1,), out_channels=5)),
    (Layer(kind="linear", inputs=(0,), out_channels=5),),
    (Layer(kind="global_pool", inputs=(0,)),),
    (Layer(kind="global_pool", inputs=(0,)), Layer(kind="mul", inputs=(0, 1))),
    (Layer(kind="avg_pool", inputs=(0,), kernel=2, stride=2),),
    (Layer(kind="max_pool", inputs=(0,), kernel=3, stride=2),),
    (Layer(kind="channel_shuffle", inputs=(0,), groups=2),),
)


def test_the_layers_checked_here_are_all_there_are() -> None:
    assert {layers[-1].kind for layers in EVERY_LAYER_KIND} == set(LAYER_KINDS)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("layers", EVERY_LAYER_KIND, ids=lambda layers: "-".join(layer.kind for layer in layers))
def test_every_layer_kind_computes_what_torch_computes(runtime: Runtime, layers: tuple[Layer, ...], act: Any) -> None:
    *before, last = layers
    for batch in (1, 2):
        check_output(runtime, graph_of(*before, replace(last, act=act), batch=batch))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize(
    ("groups", "out_channels"),
    [(1, 6), (4, 4), (4, 8), (2, 6)],
    ids=["dense", "depthwise", "depthwise-doubling", "grouped"],
)
def test_convolutions_pad_symmetrically_on_odd_and_even_maps(
    runtime: Runtime, kernel: int, stride: int, groups: int, out_channels: int
) -> None:
    for height, width in ((7, 7), (8, 8), (8, 5), (1, 2)):
        layer = Layer(
            kind="conv2d", inputs=(0,), out_channels=out_channels, kernel=kernel, stride=stride, groups=groups
        )
        check_output(runtime, graph_of(layer, height=height, width=width))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(11, 4, 2), (5, 1, 0), (5, 2, 3), (3, 1, 2)], ids=lambda number: str(number)
)
def test_convolutions_pad_by_as_much_as_they_are_told(runtime: Runtime, kernel: int, stride: int, padding: int) -> None:
    for height, width in ((23, 23), (24, 24), (24, 9)):
        layer = Layer(kind="conv2d", inputs=(0,), out_channels=3, kernel=kernel, stride=stride, padding=padding)
        check_output(runtime, graph_of(layer, height=height, width=width))


@pytest.mark.parametrize(
    "layer",
    [
        Layer(kind="max_pool", inputs=(0,), kernel=kernel, stride=stride, padding=padding)
        for kernel, stride, padding in ((3, 2, -1), (3, 2, 0), (3, 1, -1), (5, 2, -1), (5, 2, 1), (3, 3, -1))
    ]
    + [Layer(kind="avg_pool", inputs=(0,), kernel=2, stride=2)],
    ids=lambda layer: f"{layer.kind}-k{layer.kernel}-s{layer.stride}-p{layer.padding}",
)
def test_pools_see_the_same_windows_on_odd_and_even_maps(runtime: Runtime, layer: Layer) -> None:
    for height, width in ((7, 7), (8, 8), (8, 5), (1, 2)):
        if layer.kind == "avg_pool" or min(height, width) + 2 * layer.side >= layer.kernel:
            check_output(runtime, graph_of(layer, height=height, width=width))


def test_a_max_pool_without_padding_reads_negative_values_too(runtime: Runtime) -> None:
    pool = Layer(kind="max_pool", inputs=(1,), kernel=3, stride=2, padding=0)
    check_output(runtime, graph_of(Layer(kind="conv2d", inputs=(0,), out_channels=4), pool, height=7, width=7))


@settings(max_examples=20)
@given(op=op_specs(max_channels=12, max_extent=9, plain=True))
def test_any_op_computes_what_torch_computes(runtime: Runtime, op: OpSpec) -> None:
    check_output(runtime, lower(replace(op, batch=min(op.batch, 2))))


@pytest.mark.parametrize("act", [act for act in ACTS if act != "none"])
@pytest.mark.parametrize("kind", ["identity", "add", "channel_shuffle"])
def test_an_activation_leaves_the_tensor_it_reads_alone(runtime: Runtime, kind: Any, act: Any) -> None:
    groups = 4 if kind == "channel_shuffle" else 1  # as many as channels: a shuffle of nothing
    activated = Layer(kind=kind, inputs=(0, 0) if kind == "add" else (0,), act=act, groups=groups)
    check_output(runtime, graph_of(activated, Layer(kind="add", inputs=(0, 1))))


@settings(max_examples=25)
@given(graph=layer_graphs())
def test_any_small_graph_computes_what_torch_computes(runtime: Runtime, graph: LayerGraph) -> None:
    check_output(runtime, graph)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_whole_network_computes_what_torch_computes(runtime: Runtime, batch: int) -> None:
    check_output(runtime, lower_network(proxyless_like(extent=32, batch=batch)))


def proxyless_like(*, extent: int, batch: int) -> tuple[OpSpec, ...]:
    """A network of the ProxylessNAS space at width 1.0 (every stage, all kernels, both expansions) on a small input."""
    shared: dict[str, Any] = {"act": "relu6", "batch": batch}
    ops = [
        OpSpec(kind="conv", in_channels=3, out_channels=32, height=extent, width=extent, kernel=3, stride=2, **shared)
    ]

    def mbconv(out_channels: int, *, expand: int, kernel: int, stride: int = 1) -> None:
        channels, side = ops[-1].out_channels, ops[-1].out_height
        ops.append(
            OpSpec(
                kind="mbconv",
                in_channels=channels,
                out_channels=out_channels,
                height=side,
                width=side,
                mid_channels=channels * expand,
                kernel=kernel,
                stride=stride,
                residual=stride == 1 and channels == out_channels,
                **shared,
            )
        )

    mbconv(16, expand=1, kernel=3)
    for out_channels, stride in ((24, 2), (40, 2), (80, 2), (96, 1), (192, 2), (320, 1)):
        mbconv(out_channels, expand=6, kernel=5, stride=stride)
        mbconv(out_channels, expand=3, kernel=7)
        mbconv(out_channels, expand=3, kernel=3)
    side = ops[-1].out_height
    ops.append(OpSpec(kind="conv", in_channels=320, out_channels=1280, height=side, width=side, **shared))
    ops.append(OpSpec(kind="logits", in_channels=1280, out_channels=100, height=side, width=side, batch=batch))
    return tuple(ops)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("ofa_mbv3-r160", "litert"),
        ("ofa_mbv3-w1.2-r160", "onnxruntime"),
        ("ofa_proxyless-r160", "torch"),
        ("attentivenas-r192", "onnxruntime"),
        ("attentivenas-r192", "litert"),
        ("fbnet", "litert"),
        ("ofa_resnet50-r128", "torch"),
        ("ofa_resnet50-r132", "litert"),
        ("amc-v2", "onnxruntime"),
        ("netadapt-alexnet", "litert"),
    ],
)
def test_a_random_network_of_a_preset_computes_what_torch_computes(preset: str, name: str) -> None:
    space = spaces.get(preset)
    ops = space.arch_ops(space.sample(np.random.default_rng(4), 1)[0])
    network = lower_network(ops)
    assert network.macs == sum(lower(op).macs for op in ops)
    found = check_output(load(name, threads=1), network)
    assert 0.05 < float(found.std()) < 100, "activations neither vanish nor grow, as in a trained network"


# --- Instances, timing and clocks.


def test_two_instances_share_nothing(runtime: Runtime) -> None:
    graph = lower(RESIDUAL)
    artifact = build(graph, runtime.format)
    first, second = (runtime.prepare(artifact, instance=instance) for instance in range(2))
    x = example_input(graph.shapes[0])
    of_x = first.run(x)
    of_double = second.run(2 * x)
    np.testing.assert_array_equal(first.run(x), of_x)
    assert not np.array_equal(of_x, of_double)
    kept = of_x.copy()
    first.run(-x)
    np.testing.assert_array_equal(of_x, kept)  # an output handed out is the caller's own
    first.close()
    np.testing.assert_array_equal(second.run(2 * x), of_double)
    assert second.timed_call() > 0


def test_a_timed_call_returns_whole_positive_nanoseconds(runtime: Runtime) -> None:
    for graph in (lower(MBCONV), graph_of(Layer(kind="identity", inputs=(0,)))):
        prepared = runtime.prepare(build(graph, runtime.format), instance=0)
        for _ in range(5):
            took_ns = prepared.timed_call()
            assert type(took_ns) is int
            assert took_ns > 0


def test_warming_the_input_disturbs_nothing(runtime: Runtime) -> None:
    graph = lower(MBCONV)
    prepared = runtime.prepare(build(graph, runtime.format), instance=0)
    x = example_input(graph.shapes[0])
    expected = prepared.run(x)
    for _ in range(3):
        prepared.warm_input()
        assert prepared.timed_call() > 0
    np.testing.assert_array_equal(prepared.run(x), expected)


def test_the_clock_never_goes_back(runtime: Runtime) -> None:
    prepared = runtime.prepare(build(lower(MBCONV), runtime.format), instance=0)
    seen = [runtime.now_ns()]
    for _ in range(20):
        took_ns = prepared.timed_call()
        seen.append(runtime.now_ns())
        assert seen[-1] - seen[-2] >= took_ns - 1  # a call fits between two readings of the same clock
    assert all(type(ns) is int for ns in seen)


def test_the_version_is_a_name(runtime: Runtime) -> None:
    assert runtime.version()
    assert runtime.version() == runtime.version().strip()


# --- What it refuses, and how.


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: b"garbage" * 10,
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:16] + bytes(len(raw) - 16),
        lambda raw: b'{"format":"something else"}',
    ],
    ids=["empty", "garbage", "truncated", "zeroed", "foreign"],
)
def test_malformed_bytes_are_a_spec_error(runtime: Runtime, spoil: Callable[[bytes], bytes]) -> None:
    raw = build(lower(MBCONV), runtime.format)
    with pytest.raises(SpecError):
        runtime.prepare(spoil(raw), instance=0)


def test_an_input_of_another_shape_or_type_is_a_shape_error(runtime: Runtime) -> None:
    graph = lower(MBCONV)
    prepared = runtime.prepare(build(graph, runtime.format), instance=0)
    with pytest.raises(ShapeError):
        prepared.run(example_input((1, 8, 6, 7)))
    with pytest.raises(ShapeError):
        prepared.run(example_input(graph.shapes[0]).astype(np.float64))  # type: ignore[arg-type]  # the claim


def test_a_closed_instance_answers_with_an_error(runtime: Runtime) -> None:
    graph = lower(MBCONV)
    prepared = runtime.prepare(build(graph, runtime.format), instance=0)
    prepared.close()
    prepared.close()
    for use in (prepared.timed_call, prepared.warm_input, lambda: prepared.run(example_input(graph.shapes[0]))):
        with pytest.raises(SpecError, match="closed"):
            use()


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_an_unknown_option_is_refused_by_name(name: str) -> None:
    with pytest.raises(SpecError, match="no option 'colour'"):
        load(name, threads=1, options={"colour": "red"})


def test_an_unknown_runtime_is_refused_with_the_known_names() -> None:
    with pytest.raises(UnknownName, match="onnxruntime, litert"):
        load("abacus", threads=1)


@pytest.mark.parametrize("alias", list(ALIASES))
def test_an_alias_loads_what_it_stands_for(alias: str) -> None:
    assert entry(alias) == entry(ALIASES[alias])


@pytest.mark.parametrize(
    ("name", "packages", "line"),
    [
        ("onnxruntime", ["onnxruntime"], r"pip install 'lutbuilder-agent\[onnx\]'"),
        (
            "litert",
            ["ai_edge_litert.interpreter", "tflite_runtime.interpreter"],
            r"pip install 'lutbuilder-agent\[litert\]'",
        ),
        ("torch", ["torch"], r"pip install 'lutbuilder-agent\[torch\]'"),
    ],
)
def test_a_missing_package_names_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch, name: str, packages: list[str], line: str
) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)  # what makes `import` say ModuleNotFoundError
    with pytest.raises(MissingExtra, match=line):
        load(name, threads=1)


def test_onnxruntime_says_in_its_own_words_what_it_cannot_run() -> None:
    from onnx import TensorProto, helper

    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    bfloat16 = TensorProto.BFLOAT16
    body = helper.make_graph(
        [conv],
        "bfloat16 convolution",
        [
            helper.make_tensor_value_info("x", bfloat16, [1, 1, 4, 4]),
            helper.make_tensor_value_info("w", bfloat16, [1, 1, 1, 1]),
        ],
        [helper.make_tensor_value_info("y", bfloat16, [1, 1, 4, 4])],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    with pytest.raises(UnsupportedOp, match="NOT_IMPLEMENTED"):
        load("onnxruntime", threads=1).prepare(model.SerializeToString(), instance=0)


@pytest.mark.parametrize("with_convolution", [False, True], ids=["wholly", "partly"])
def test_litert_refuses_a_graph_that_xnnpack_does_not_take(with_convolution: bool) -> None:
    with pytest.raises(UnsupportedOp, match=r"XNNPACK does not take all.*CUMSUM"):
        load("litert", threads=1).prepare(cumsum_model(with_convolution=with_convolution), instance=0)


def cumsum_model(*, with_convolution: bool) -> bytes:
    """A TFLite model with an operator XNNPACK leaves to the reference kernels."""
    from ai_edge_litert import schema_py_generated as schema

    from lutbuilder.artifacts.tflite import Writer

    writer = Writer()
    source = x = writer.tensor("input", (1, 4, 4, 2))
    if with_convolution:
        weights = [
            writer.constant("w", np.ones((2, 1, 1, 2), np.float32)),
            writer.constant("b", np.ones(2, np.float32)),
        ]
        source = writer.tensor("t", (1, 4, 4, 2))
        writer.operator(
            schema.BuiltinOperator.CONV_2D, [x, *weights], [source], schema.Conv2DOptionsT(strideH=1, strideW=1)
        )
    axis = writer.constant("axis", np.array([1], np.int32))
    output = writer.tensor("output", (1, 4, 4, 2))
    writer.operator(schema.BuiltinOperator.CUMSUM, [source, axis], [output], schema.CumsumOptionsT())
    return writer.finish(inputs=[x], outputs=[output])


def test_litert_without_its_xnnpack_refuses_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load("litert", threads=1)
    without: Any = load("litert", threads=1, options={"xnnpack": "0"})
    monkeypatch.setattr(runtime, "_resolver", without._resolver)  # as if the delegate had been dropped silently
    artifact = build(lower(MBCONV), "tflite")
    with pytest.raises(RuntimeUnavailable, match="without XNNPACK"):
        runtime.prepare(artifact, instance=0)


def test_litert_runs_its_own_kernels_when_asked_to() -> None:
    check_output(load("litert", threads=1, options={"xnnpack": "0"}), lower(RESIDUAL))


def test_onnxruntime_computes_the_same_with_an_arena_of_its_own() -> None:
    check_output(load("onnxruntime", threads=1, options={"arena": "own"}), lower(RESIDUAL))


def test_torch_runs_on_cuda_or_says_that_there_is_none() -> None:
    if torch.cuda.is_available():
        runtime = load("torch", threads=1, options={"device": "cuda"})
        check_output(runtime, lower(RESIDUAL))
        assert runtime.prepare(lower(RESIDUAL).to_bytes(), instance=0).timed_call() > 0
    else:
        with pytest.raises(RuntimeUnavailable, match="no CUDA device"):
            load("torch", threads=1, options={"device": "cuda"})


# --- Probing in a process of its own.


@pytest.fixture(scope="module")
def reports() -> dict[str, RuntimeReport]:
    return {report.name: report for report in probe_all(RUNTIMES)}


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_a_probe_runs_an_op_and_tells_the_version(reports: dict[str, RuntimeReport], name: str) -> None:
    report = reports[name]
    assert report.available, report.reason
    assert report.reason == ""
    assert report.version == load(name, threads=1).version()
    assert report.timer_overhead_ns is not None
    assert report.timer_quantum_ns is not None
    if name == "simulated":
        assert (report.timer_overhead_ns, report.timer_quantum_ns) == (0, 0), "virtual time passes in calls only"
    else:
        assert report.timer_quantum_ns > 0


def test_a_probe_survives_a_runtime_that_crashes() -> None:
    report = probe("simulated", options={"crash": PROBE_GRAPH.key[:12]})
    assert not report.available
    assert report.version == ""
    assert report.reason == "unavailable: signal 11"


def test_a_probe_gives_up_on_a_runtime_that_hangs() -> None:
    report = probe("simulated", timeout_s=1.0, options={"hang": PROBE_GRAPH.key[:12]})
    assert not report.available
    assert report.reason == "unavailable: no answer within 1 s"


def test_a_probe_reports_the_runtimes_own_words() -> None:
    report = probe("simulated", options={"unsupported": PROBE_GRAPH.key[:12]})
    assert not report.available
    assert "told not to support" in report.reason
    assert (report.timer_overhead_ns, report.timer_quantum_ns) == (None, None)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda y: y[..., :1], "output of shape (1, 2, 8, 1) here, not (1, 2, 8, 8)"),
        (lambda y: y[:, :, 1:], "output of shape (1, 2, 7, 8) here, not (1, 2, 8, 8)"),
        (lambda y: y + 0.01, "wrong output here: off by 0.01"),
        (lambda y: y * np.nan, "wrong output here: off by nan"),
    ],
)
def test_a_probe_turns_down_a_runtime_that_computes_something_else(
    spoil: Callable[[Any], Any], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(SimulatedRuntime):
        def prepare(self, artifact: bytes, *, instance: int) -> Any:
            prepared = super().prepare(artifact, instance=instance)
            right = prepared.run
            prepared.run = lambda x: spoil(right(x))  # type: ignore[method-assign]  # the fault to be found
            return prepared

    monkeypatch.setattr(probe_module, "load", lambda name, **given: Wrong(threads=1, options={}))
    assert probe_module.main(["simulated"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["version"], says in answer["reason"]) == ("", True), answer["reason"]


def test_a_probe_of_an_alias_reports_the_canonical_name() -> None:
    with pytest.raises(UnknownName):
        probe("abacus")
    assert probe("torch", options={"colour": "red"}).name == "torch-channels_last"


@pytest.mark.parametrize("format", ["onnx", "tflite", "graph"])
def test_the_stored_probe_artifacts_are_what_the_builders_write(format: Any) -> None:
    assert probe_artifact(format) == build(PROBE_GRAPH, format)
