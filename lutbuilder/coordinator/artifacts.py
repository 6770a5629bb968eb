"""ArtifactShelf: the artifacts of campaign ops, built when asked for and named by sha256.

Building is deterministic, so a whole network (some 16 MB) is hashed for its lease, forgotten, and built again when an
agent fetches it: a shelf keeps a few artifacts in memory, not a campaign's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from lutbuilder.campaign.spec import CampaignOp
from lutbuilder_agent.errors import ArtifactCorrupt, UnknownName
from lutbuilder_agent.graph import LayerGraph
from lutbuilder_agent.records import ArtifactRef, Format

Build = Callable[[LayerGraph, Format], bytes]
DEFAULT_CAPACITY_BYTES = 64 * 1024 * 1024


def build_artifact(graph: LayerGraph, format: Format) -> bytes:
    """Build with `lutbuilder.artifacts`, imported when the first artifact is wanted."""
    from lutbuilder.artifacts import build

    return build(graph, format)


class ArtifactShelf:
    """Artifacts by op and by sha256. Safe from any thread. At most `capacity_bytes` stay in memory, always the last."""

    def __init__(self, *, build: Build = build_artifact, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self._build = build
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._building = threading.Lock()  # one at a time: two networks at once would double the memory
        self._refs: dict[tuple[str, Format], ArtifactRef] = {}
        self._origins: dict[str, tuple[CampaignOp, Format]] = {}
        self._held: OrderedDict[str, bytes] = OrderedDict()

    def ref(self, op: CampaignOp, format: Format) -> ArtifactRef:
        """Return the name of an op's artifact, building it the first time.

        Raises SpecError for an op that is not lowered yet, UnsupportedOp for a layer the format cannot express.
        """
        with self._lock:
            known = self._refs.get((op.op_id, format))
        if known is not None:
            return known
        raw = self._built(op, format)
        ref = _ref_of(raw, format)
        with self._lock:
            self._refs[(op.op_id, format)] = ref
            self._origins[ref.sha256] = (op, format)
            self._keep(ref.sha256, raw)
        return ref

    def fetch(self, sha256: str) -> bytes:
        """Return the bytes of an artifact that `ref` has named.

        Raises UnknownName for another sha256, ArtifactCorrupt if building it again gave other bytes.
        """
        with self._lock:
            if sha256 in self._held:
                self._held.move_to_end(sha256)
                return self._held[sha256]
            origin = self._origins.get(sha256)
        if origin is None:
            raise UnknownName(
                f"artifact {sha256[:12]} was not named by any lease of this coordinator (it restarted?): "
                "ask for a lease again"
            )
        raw = self._built(*origin)
        if _ref_of(raw, origin[1]).sha256 != sha256:
            raise ArtifactCorrupt(
                f"artifact {sha256[:12]} of op {origin[0].op_id} came out different when built again: "
                "a package changed under the running coordinator; restart it"
            )
        with self._lock:
            self._keep(sha256, raw)
        return raw

    def _built(self, op: CampaignOp, format: Format) -> bytes:
        from lutbuilder.lower import lower_network

        graph = lower_network(op.ops)
        with self._building:
            return self._build(graph, format)

    def _keep(self, sha256: str, raw: bytes) -> None:
        self._held[sha256] = raw
        self._held.move_to_end(sha256)
        while len(self._held) > 1 and sum(map(len, self._held.values())) > self._capacity_bytes:
            self._held.popitem(last=False)


def _ref_of(raw: bytes, format: Format) -> ArtifactRef:
    from lutbuilder.artifacts import artifact_ref

    return artifact_ref(raw, format)
