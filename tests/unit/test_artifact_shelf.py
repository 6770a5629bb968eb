"""The shelf builds what is asked for, holds little, and gives the same bytes again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.lower import lower_network
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import ArtifactCorrupt, SpecError, UnknownName
from lutbuilder_agent.graph import LayerGraph


def _op(channels: int, *, se: bool = False) -> CampaignOp:
    return CampaignOp.of(
        OpSpec(kind="conv", in_channels=channels, out_channels=channels, height=8, width=8, kernel=3, se=se)
    )


def _counted(built: list[str], *, pad: int = 0) -> Callable[[LayerGraph, str], bytes]:
    def build(graph: LayerGraph, format: str) -> bytes:
        built.append(f"{graph.in_channels} {format}")
        return graph.to_bytes().ljust(pad, b".")

    return build


def test_an_artifact_is_its_lowered_graph_named_by_sha256() -> None:
    shelf = ArtifactShelf()
    network = CampaignOp.network((_op(4).ops[0], _op(4).ops[0]))
    ref = shelf.ref(network, "graph")
    raw = shelf.fetch(ref.sha256)
    assert LayerGraph.from_bytes(raw) == lower_network(network.ops)
    assert (hashlib.sha256(raw).hexdigest(), len(raw), ref.format) == (ref.sha256, ref.size_bytes, "graph")


def test_an_artifact_asked_for_twice_is_built_once() -> None:
    built: list[str] = []
    shelf = ArtifactShelf(build=_counted(built))
    assert shelf.ref(_op(1), "onnx") == shelf.ref(_op(1), "onnx")
    shelf.fetch(shelf.ref(_op(1), "onnx").sha256)
    assert built == ["1 onnx"]
    shelf.ref(_op(1), "tflite")
    assert built == ["1 onnx", "1 tflite"]


def test_what_does_not_fit_is_built_again_when_it_is_fetched() -> None:
    built: list[str] = []
    shelf = ArtifactShelf(build=_counted(built, pad=1000), capacity_bytes=2500)
    refs = [shelf.ref(_op(channels), "onnx") for channels in (1, 2, 3)]
    assert hashlib.sha256(shelf.fetch(refs[2].sha256)).hexdigest() == refs[2].sha256
    assert built == ["1 onnx", "2 onnx", "3 onnx"]
    assert hashlib.sha256(shelf.fetch(refs[0].sha256)).hexdigest() == refs[0].sha256
    assert built == ["1 onnx", "2 onnx", "3 onnx", "1 onnx"]
    shelf.fetch(refs[2].sha256)  # used a moment ago: still there
    assert len(built) == 4


def test_one_artifact_larger_than_the_shelf_is_held_all_the_same() -> None:
    built: list[str] = []
    shelf = ArtifactShelf(build=_counted(built, pad=1000), capacity_bytes=10)
    shelf.fetch(shelf.ref(_op(1), "onnx").sha256)
    assert built == ["1 onnx"]


def test_a_builder_that_gives_other_bytes_the_second_time_is_found_out() -> None:
    built: list[str] = []

    def moody(graph: LayerGraph, format: str) -> bytes:
        built.append(format)
        return graph.to_bytes() + str(len(built)).encode()

    shelf = ArtifactShelf(build=moody, capacity_bytes=10)
    ref = shelf.ref(_op(1), "onnx")
    shelf.ref(_op(2), "onnx")
    with pytest.raises(ArtifactCorrupt, match="restart it"):
        shelf.fetch(ref.sha256)


def test_what_was_never_named_is_unknown_and_what_cannot_be_lowered_is_refused() -> None:
    shelf = ArtifactShelf()
    with pytest.raises(UnknownName, match="ask for a lease again"):
        shelf.fetch("0" * 64)
    with pytest.raises(SpecError, match="no engine here runs"):
        shelf.ref(_op(1, se=True), "onnx")
