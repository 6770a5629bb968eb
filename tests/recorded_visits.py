"""Visits of validations on a real machine: what drift models are judged by. recorded/README.md says where and when.

A file holds what the two-way fit reads, and how each network is made of ops, so that a table's error on networks can be
computed without a store. `python benchmarks/compare_drift.py STORE --save FOLDER` records others.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.plan import overhead_op
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.stats.records import COLUMNS, Visits

FOLDER = Path(__file__).parent / "recorded"
_ROLES = ("op", "overhead", "pair", "network")
# What is kept of a visit, and how. Medians of calls are kept to 1e-7; a recorded file must not change with the class.
_KEPT = {
    "op": np.uint16,
    "round": np.uint16,
    "order": np.uint16,
    "instance": np.uint8,
    "start_us": np.uint32,
    "block_ns": np.float32,
    "n_calls": np.uint16,
    "n_preempted": np.uint16,
}

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One campaign. Shapes: m ops (networks and pairs among them), k networks, j shapes with pairs, p pairs.

    `parts` (k, m): how often a network has each op, less the empty calls of shapes without pairs; `calls` (k, j): how
    often it lacks the call overhead of each shape; `pairs` (p, 4): shape, first, second and pair, as numbers.
    """

    name: str
    visits: Visits
    role: NDArray[np.str_]
    parts: NDArray[np.int16]
    calls: NDArray[np.int16]
    pairs: NDArray[np.int16]

    @property
    def ops(self) -> NDArray[np.bool_]:
        """Which of the m are single ops."""
        return np.asarray(self.role == "op")

    def networks_ns(self, theta: Floats) -> Floats:
        """Return what the fit says of each network itself, (k,), in the order of `parts`."""
        return np.asarray(np.exp(theta[self.role == "network"]))

    def sums_ns(self, theta: Floats) -> Floats:
        """Return each network's sum of op effects less its call overheads, (k,): medians of A + B - AB over pairs."""
        time = np.exp(np.nan_to_num(theta))
        shape, first, second, both = self.pairs.T
        saved = time[first] + time[second] - time[both]
        overhead = np.array([max(1.0, float(np.median(saved[shape == n]))) for n in range(self.calls.shape[1])])
        return np.asarray(self.parts @ time - self.calls @ overhead)

    def rounds(self, first: int, last: int) -> Visits:
        """Return the visits of rounds `first` .. `last` - 1."""
        return self.visits.take((self.visits.round >= first) & (self.visits.round < last))


def recorded(ops: Iterable[CampaignOp], visits: Visits, *, name: str) -> Recorded:
    """Return a validation's visits with the make-up of its networks; only ops that were visited are kept."""
    by_id = {op.op_id: op for op in ops}
    number = {op_id: n for n, op_id in enumerate(visits.op_ids)}
    shapes: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for op_id, op in by_id.items():
        if op.role == "pair" and op_id in number:
            members = (number[op.ops[0].op_id], number[op.ops[1].op_id], number[op_id])
            shapes[overhead_op(op.ops[1]).op_id].append(members)
    place = {shape: n for n, shape in enumerate(shapes)}
    networks = [by_id[op_id] for op_id in visits.op_ids if by_id[op_id].role == "network"]
    parts = np.zeros((len(networks), len(visits.op_ids)), np.int16)
    calls = np.zeros((len(networks), len(shapes)), np.int16)
    for row, network in enumerate(networks):
        for part in network.ops:
            parts[row, number[part.op_id]] += 1
        for part in network.ops[1:]:
            empty = overhead_op(part).op_id
            if empty in place:
                calls[row, place[empty]] += 1
            else:
                parts[row, number[empty]] -= 1
    return Recorded(
        name=name,
        visits=visits,
        role=np.array([by_id[op_id].role for op_id in visits.op_ids]),
        parts=parts,
        calls=calls,
        pairs=np.array([(place[shape], *members) for shape, found in shapes.items() for members in found], np.int16),
    )


def save(record: Recorded, folder: Path, *, provenance: dict[str, str]) -> Path:
    """Write `record` to `visits-NAME.npz` in `folder`; return the file. Samples and names of ops are left out."""
    visits = record.visits
    kept = {name: getattr(visits, name) for name in _KEPT if name != "start_us"}
    kept["start_us"] = (visits.start_ns - visits.start_ns.min()) // 1000
    order = np.lexsort((visits.order, visits.start_ns))
    path = folder / f"visits-{record.name}.npz"
    np.savez_compressed(
        path,
        **{name: kept[name][order].astype(dtype) for name, dtype in _KEPT.items()},
        role=np.array([_ROLES.index(role) for role in record.role], np.uint8),
        parts=record.parts.astype(np.int8),
        calls=record.calls.astype(np.int8),
        pairs=record.pairs,
        provenance=np.frombuffer(json.dumps(provenance, sort_keys=True).encode(), np.uint8),
    )
    return path


def load(name: str, *, folder: Path = FOLDER) -> Recorded:
    """Return what `save` wrote; ops are named by their numbers, and the 90th percentile is the median again."""
    with np.load(folder / f"visits-{name}.npz") as file:
        columns = {column: file[column] for column in _KEPT}
        role = np.array(_ROLES)[file["role"]]
        parts, calls, pairs = (file[part].astype(np.int16) for part in ("parts", "calls", "pairs"))
    block_ns = columns["block_ns"].astype(np.float64)
    filled = {
        **{column: columns[column].astype(np.int64) for column in COLUMNS if column in columns},
        "session": np.zeros(len(block_ns), np.int64),
        "start_ns": columns["start_us"].astype(np.int64) * 1000,
        "block_ns": block_ns,
        "p90_ns": block_ns,
    }
    visits = Visits(op_ids=tuple(f"{n:03d}" for n in range(len(role))), session_ids=(name,), **filled)
    return Recorded(name=name, visits=visits, role=role, parts=parts, calls=calls, pairs=pairs)


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the names of what is recorded in `folder`."""
    return tuple(sorted(path.stem.removeprefix("visits-") for path in folder.glob("visits-*.npz")))


def provenance(name: str, *, folder: Path = FOLDER) -> dict[str, str]:
    """Return where a record comes from."""
    with np.load(folder / f"visits-{name}.npz") as file:
        return dict(json.loads(file["provenance"].tobytes()))
