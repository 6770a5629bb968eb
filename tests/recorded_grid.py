"""A width grid measured whole on a real machine: what imputation is judged by.

`recorded/amc-ladder.parquet` holds every estimate of one campaign, call overhead inside: space amc-ladder, ONNX
Runtime, fp32, batch 1, 1 thread, trains of 12, on 2 cores of an AMD EPYC (family 25, model 17) in a cloud VM; 46
rounds, 3 instances of every op, one session of 8 minutes. Its `provenance` says the rest. Another one is recorded by

    lutbuilder collect --space amc-ladder --runtime onnxruntime --budget 8m --state-dir DIR
    python benchmarks/compare_impute.py --record DIR FILE
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.knots import ImputedRows, knot_ops, next_knots, stages
from lutbuilder.campaign.plan import expected_uses, input_shape
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.op import OpSpec
from lutbuilder.spaces import SearchSpace, get
from lutbuilder.stats.records import OpEstimate

FILE = Path(__file__).parent / "recorded" / "amc-ladder.parquet"
# What is kept of an estimate. A list of its own: a recorded file must not change with the class.
_KEPT = ("time_ms", "lo_ms", "hi_ms", "freedom", "n_visits", "n_rounds", "n_instances", "n_sessions", "residual_mad")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A space of which everything was measured. `overheads` are by the identity op of their shape."""

    space: SearchSpace
    ops: Mapping[OpSpec, OpEstimate]
    overheads: Mapping[OpSpec, OpEstimate]
    provenance: Mapping[str, Any]

    @property
    def shapes(self) -> tuple[OpSpec, ...]:
        """The pointwise and depthwise convolutions: stem and logits are few and of other kinds."""
        return tuple(op for op in self.ops if op.kind == "conv" and (op.kernel == 1 or op.groups > 1))

    def knots(self, count: int, allowed: Collection[OpSpec] | None = None) -> tuple[OpSpec, ...]:
        """Return the ops `collect --max-ops` would measure here, among `allowed`, in the order of the space."""
        space_ops, uses = self.shapes, expected_uses(self.space)
        left = dict.fromkeys(space_ops if allowed is None else allowed)
        known: dict[OpSpec, OpEstimate] = {}
        for stage in stages(count):
            for op in next_knots(space_ops, left, known, uses, stage.count):
                known[op] = self.ops[op]
                del left[op]
        return tuple(op for op in space_ops if op in known)

    def net_ms(self, knots: Collection[OpSpec]) -> dict[OpSpec, float]:
        """Return the latency, less call overhead, of every shape once `knots` are measured.

        As knots' overheads count those of shapes at which a pair could have been formed among them.
        """
        space_ops = self.shapes
        visited = knot_ops(space_ops, (), knots, expected_uses(self.space))
        paired = {input_shape(op.ops[1]) for op in visited if op.role == "pair"}
        told = [self.ops[op] for op in knots]
        told += [estimate for op, estimate in self.overheads.items() if input_shape(op) in paired]
        make = ImputedRows(space_ops=space_ops)
        rows = make([CampaignOp.of(op) for op in knots], told, (), {}, method="context", cache="rotating")
        by_id = {row.op_id: row.latency_ms for row in rows}
        return {op: by_id[op.op_id] or np.nan for op in space_ops}

    def networks(self, count: int, *, seed: int) -> NDArray[np.float64]:
        """Return how often each of `shapes` is in each of `count` random networks, shape (count, shapes)."""
        number = {op: i for i, op in enumerate(self.shapes)}
        counts = np.zeros((count, len(number)))
        for row, arch in zip(counts, self.space.sample(np.random.default_rng(seed), count), strict=True):
            for op in self.space.arch_ops(arch):
                if op in number:
                    row[number[op]] += 1
        return counts


def load(path: Path = FILE) -> Grid:
    """Read a recorded grid."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types

    table = pq.read_table(path)
    provenance = json.loads(table.schema.metadata[b"provenance"])
    estimates = {}
    for row in table.to_pylist():
        op = OpSpec.from_canonical(json.loads(row.pop("op")))
        estimates[op] = OpEstimate(
            op_id=op.op_id, **row, p90_ms=row["time_ms"], test_retest=None, preempted_fraction=0.0, bimodal=False
        )
    return Grid(
        space=get(provenance["space"], batch=provenance["target"]["batch"]),
        ops={op: told for op, told in estimates.items() if op.kind != "identity"},
        overheads={op: told for op, told in estimates.items() if op.kind == "identity"},
        provenance=provenance,
    )


def save(path: Path, ops: Sequence[OpSpec], estimates: Sequence[OpEstimate], provenance: Mapping[str, Any]) -> None:
    """Write a grid for `load`."""
    import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {"op": [json.dumps(op.canonical(), sort_keys=True) for op in ops]}
    columns |= {name: [getattr(estimate, name) for estimate in estimates] for name in _KEPT}
    table = pa.table(columns).replace_schema_metadata({"provenance": json.dumps(provenance, sort_keys=True)})
    pq.write_table(table, path, compression="zstd")
