"""LayerGraph: it survives its bytes, refuses nonsense, and its weights are a pure function of it."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.errors import ShapeError, SpecError
from lutbuilder_agent.graph import Layer, LayerGraph, layer_weights, weight_shape
from lutbuilder_agent.reference import evaluate, example_input
from tests.strategies import layer_graphs

CONV = Layer(kind="conv2d", inputs=(0,), out_channels=6, kernel=3, stride=2)


def graph_of(*layers: Layer, channels: int = 4, height: int = 7, width: int = 8) -> LayerGraph:
    return LayerGraph(batch=2, in_channels=channels, height=height, width=width, layers=layers)


@given(layer_graphs())
def test_a_graph_survives_its_bytes(graph: LayerGraph) -> None:
    again = LayerGraph.from_bytes(graph.to_bytes())
    assert again == graph
    assert again.key == graph.key
    assert again.to_bytes() == graph.to_bytes()


@given(layer_graphs(), layer_graphs())
def test_keys_are_equal_exactly_when_graphs_are(a: LayerGraph, b: LayerGraph) -> None:
    assert (a.key == b.key) == (a == b)


LAYER_FIELDS = [field.name for field in fields(Layer)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_foreign_bytes_are_a_spec_error(raw: bytes) -> None:
    with pytest.raises(SpecError):
        LayerGraph.from_bytes(raw)


@given(
    graph=layer_graphs(),
    field=st.sampled_from(
        ["format", "batch", "in_channels", "height", "width", "layers", "layer", "extra", *LAYER_FIELDS]
    ),
    value=JSON,
)
def test_a_field_of_another_kind_never_slips_through(graph: LayerGraph, field: str, value: Any) -> None:
    body = json.loads(graph.to_bytes())
    if field == "layer":
        body["layers"][0] = value
    elif field in LAYER_FIELDS:
        body["layers"][0][field] = value
    else:
        body[field] = value
    try:
        again = LayerGraph.from_bytes(json.dumps(body).encode())
    except SpecError:
        return
    assert LayerGraph.from_bytes(again.to_bytes()) == again  # only another legal graph gets this far


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((), "1 to 4096 layers"),
        ((Layer(kind="softmax", inputs=(0,)),), "unknown layer kind 'softmax'"),  # type: ignore[arg-type]  # the claim
        ((Layer(kind="add", inputs=(0, 0), act="gelu"),), "unknown activation 'gelu'"),  # type: ignore[arg-type]  # the claim
        ((Layer(kind="add", inputs=(0,)),), "2 earlier tensors"),
        ((Layer(kind="identity", inputs=(1,)),), "1 earlier tensors"),
        ((CONV, Layer(kind="add", inputs=(0, 1))), "shapes differ"),
        ((Layer(kind="conv2d", inputs=(0,)),), "out_channels must be an integer from 1"),
        ((Layer(kind="conv2d", inputs=(0,), out_channels=4, kernel=2),), "kernel must be odd"),
        ((Layer(kind="conv2d", inputs=(0,), out_channels=4, groups=3),), "groups=3 must divide"),
        ((Layer(kind="conv2d", inputs=(0,), out_channels=4, stride=0),), "stride must be"),
        ((Layer(kind="add", inputs=(0, 0), out_channels=4),), "has no out_channels, got 4"),
        ((Layer(kind="global_avg_pool", inputs=(0,)), Layer(kind="global_avg_pool", inputs=(1,))), "4-d input"),
        ((Layer(kind="softmax", inputs=(0,)),), "pip install -U lutbuilder-agent"),  # type: ignore[arg-type]  # the claim
        ((Layer(kind="conv2d", inputs=(0,), out_channels=4, kernel=3, padding=3),), "padding must be .* from -1 to 2"),
        ((Layer(kind="conv2d", inputs=(0,), out_channels=4, kernel=9, padding=0),), "larger than the padded map"),
        ((Layer(kind="linear", inputs=(0,), out_channels=4, padding=0),), "has no padding, got 0"),
        ((Layer(kind="mul", inputs=(0, 0)),), r"the gate must be \(2, 4, 1, 1\), got \(2, 4, 7, 8\)"),
        ((Layer(kind="channel_shuffle", inputs=(0,), groups=3),), "groups=3 must be above 1 and divide 4"),
        ((Layer(kind="channel_shuffle", inputs=(0,)),), "groups=1 must be above 1"),
        ((Layer(kind="avg_pool", inputs=(0,), kernel=3, stride=3),), "kernel and stride must be 2, got 3 and 3"),
        ((Layer(kind="max_pool", inputs=(0,), kernel=1),), "kernel above 1"),
        ((Layer(kind="max_pool", inputs=(0,), kernel=3, padding=2),), "no more padding than half"),
        ((CONV, Layer(kind="max_pool", inputs=(1,), kernel=3)), r"layer 0 \(conv2d\) ends in none: give that one act"),
    ],
)
def test_nonsense_is_refused_in_words(layers: tuple[Layer, ...], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        graph_of(*layers)


def test_shapes_macs_and_params_count_what_they_say() -> None:
    graph = graph_of(
        CONV,
        Layer(kind="conv2d", inputs=(1,), out_channels=6, kernel=5, groups=6),
        Layer(kind="add", inputs=(1, 2)),
        Layer(kind="global_avg_pool", inputs=(3,)),
        Layer(kind="linear", inputs=(4,), out_channels=10),
    )
    assert graph.shapes == ((2, 4, 7, 8), (2, 6, 4, 4), (2, 6, 4, 4), (2, 6, 4, 4), (2, 6), (2, 10))
    assert graph.macs == 2 * (16 * 6 * 4 * 9 + 16 * 6 * 25 + 6 * 10)
    assert graph.params == (6 * 4 * 9 + 6) + (6 * 25 + 6) + (6 * 10 + 10)


def test_windows_shrink_a_map_by_the_rule_of_their_kind() -> None:
    graph = graph_of(
        Layer(kind="conv2d", inputs=(0,), out_channels=8, kernel=11, stride=4, padding=2, act="relu"),
        Layer(kind="max_pool", inputs=(1,), kernel=3, stride=2, padding=0),
        Layer(kind="max_pool", inputs=(1,), kernel=3, stride=2),
        Layer(kind="avg_pool", inputs=(1,), kernel=2, stride=2),
        Layer(kind="channel_shuffle", inputs=(4,), groups=4),
        Layer(kind="global_pool", inputs=(5,)),
        Layer(kind="mul", inputs=(5, 6)),
        Layer(kind="linear", inputs=(7,), out_channels=3),
        height=224,
        width=223,
    )
    assert [shape[1:] for shape in graph.shapes[1:]] == [
        (8, 55, 55), (8, 27, 27), (8, 28, 28), (8, 28, 28), (8, 28, 28), (8, 1, 1), (8, 28, 28), (3,)
    ]  # fmt: skip  # one layer, one shape
    assert graph.macs == 2 * (55 * 55 * 8 * 4 * 121 + 8 * 28 * 28 * 3)
    assert graph.params == (8 * 4 * 121 + 8) + (8 * 28 * 28 * 3 + 3)


def test_a_padded_max_pool_reads_what_a_relu_left_through_other_max_pools_too() -> None:
    pool = Layer(kind="max_pool", inputs=(1,), kernel=3)
    again = Layer(kind="max_pool", inputs=(2,), kernel=3)
    relu = Layer(kind="conv2d", inputs=(0,), out_channels=6, kernel=3, stride=2, act="relu")
    assert graph_of(relu, pool, again).shapes[-1] == (2, 6, 4, 4)
    with pytest.raises(SpecError, match=r"layer 2 \(max_pool\): .* layer 0 \(conv2d\) ends in none"):
        graph_of(CONV, Layer(kind="max_pool", inputs=(1,), kernel=3, padding=0), again)


def test_a_graph_keeps_the_bytes_it_had_before_layers_had_padding() -> None:
    assert b"padding" not in graph_of(CONV).to_bytes()
    assert graph_of(CONV).key == "835342817395f5bdc88501ff3b7163bed3f0c1e0775b4914b43442639e861c21"
    told = Layer(kind="conv2d", inputs=(0,), out_channels=6, kernel=3, stride=2, padding=0)
    assert json.loads(graph_of(told).to_bytes())["layers"][0]["padding"] == 0


@given(layer_graphs())
def test_weights_are_a_pure_function_of_graph_and_number(graph: LayerGraph) -> None:
    again = LayerGraph.from_bytes(graph.to_bytes())
    for number, layer in enumerate(graph.layers):
        shape = weight_shape(graph, layer)
        if shape is None:
            with pytest.raises(SpecError, match="has no weights"):
                layer_weights(graph, number)
            continue
        weight, bias = layer_weights(graph, number)
        assert (weight.shape, bias.shape) == (shape, (layer.out_channels,))
        assert weight.dtype == bias.dtype == np.float32
        for part, of_again in zip((weight, bias), layer_weights(again, number), strict=True):
            np.testing.assert_array_equal(part, of_again)


def test_changing_a_weight_in_place_changes_no_other_layer() -> None:
    graph = graph_of(CONV)
    before = [part.copy() for part in layer_weights(graph, 0)]
    for part in layer_weights(graph, 0):
        part *= 0
    for part, kept in zip(layer_weights(graph, 0), before, strict=True):
        np.testing.assert_array_equal(part, kept)


def test_weights_keep_activations_near_one_in_every_layer_of_a_deep_network() -> None:
    layers = tuple(
        Layer(kind="conv2d", inputs=(number,), out_channels=64, kernel=3, act="relu") for number in range(12)
    )
    for depth in (1, 12):
        front = LayerGraph(batch=1, in_channels=64, height=6, width=6, layers=layers[:depth])
        assert 0.05 < float(evaluate(front, example_input(front.shapes[0])).std()) < 20


def test_a_layer_with_more_weights_than_the_pool_has_values_starts_over() -> None:
    layer = Layer(kind="conv2d", inputs=(0,), out_channels=256)
    weight, _ = layer_weights(LayerGraph(batch=1, in_channels=512, height=1, width=1, layers=(layer,)), 0)
    values = weight.reshape(-1)
    np.testing.assert_array_equal(values[65_537:], values[: values.size - 65_537])


def test_the_reference_refuses_an_input_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 4, 7, 8\), got \(1, 4, 7, 8\)"):
        evaluate(graph_of(CONV), example_input((1, 4, 7, 8)))
