"""Artifacts: a LayerGraph as the bytes a runtime loads. No exporter; equal graphs give equal bytes."""

from __future__ import annotations

import hashlib

from lutbuilder_agent.errors import MissingExtra, SpecError
from lutbuilder_agent.graph import LayerGraph
from lutbuilder_agent.records import FORMATS, ArtifactRef, Format

__all__ = ["artifact_ref", "build"]


def build(graph: LayerGraph, format: Format) -> bytes:
    """Return the bytes of `graph` for runtimes that take `format`; the same bytes for the same graph, on every machine.

    Raises: SpecError for an unknown format, MissingExtra (with the line to type) if the package that knows the format
    is not installed.
    """
    try:
        if format == "onnx":
            from lutbuilder.artifacts.onnx import build_onnx

            return build_onnx(graph)
        if format == "tflite":
            from lutbuilder.artifacts.tflite import build_tflite

            return build_tflite(graph)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lutbuilder"):
            raise
        # ONNX is what a plain install builds; TFLite comes with the extra of its runtime.
        line = "pip install lutbuilder" if format == "onnx" else "pip install 'lutbuilder[litert]'"
        raise MissingExtra(f"building a {format} artifact needs the package {error.name!r}: {line}") from error
    if format == "graph":
        return graph.to_bytes()
    raise SpecError(f"unknown artifact format {format!r}; known: {', '.join(FORMATS)}")


def artifact_ref(raw: bytes, format: Format) -> ArtifactRef:
    """Return the name of `raw`: its sha256, format and size in bytes."""
    return ArtifactRef(sha256=hashlib.sha256(raw).hexdigest(), format=format, size_bytes=len(raw))
