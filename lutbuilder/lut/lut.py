"""Lut: one immutable version of a table, opened whole or refused, and looked up by op."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
from numpy.typing import NDArray

from lutbuilder.lut.schema import COLUMNS, EVIDENCES, LutMeta, QualitySummary, Row, column_values, table_to_rows
from lutbuilder.op import OpSpec
from lutbuilder.urls import Place
from lutbuilder_agent.errors import LutCorrupt, OpNotInLut, SpecError, UnknownName

if TYPE_CHECKING:
    import pandas as pd

    from lutbuilder_agent.records import Cache

_NUMERIC = tuple(c.name for c in COLUMNS if c.type in ("int64", "float64") and c.group != "key")
_TEXTS = tuple(c.name for c in COLUMNS if c.type == "string")
_SHAPE = ("in_channels", "mid_channels", "out_channels", "height", "width", "kernel", "stride", "groups", "batch")
_SAME = ("act", "se", "residual", "w_bits", "a_bits", "expand_conv", "shortcut", "padding", "se_channels")
_NEAREST = 3
# Nearest to a whole network first: a calibrated value was corrected by networks, an imputed one was never measured.
_METHOD_RANK = {method: rank for rank, method in enumerate(("calibrated", "in_situ", "context", "isolated", "imputed"))}
_EVIDENCE_RANK = {evidence: rank for rank, evidence in enumerate(EVIDENCES)}


@dataclass(frozen=True, eq=False, repr=False)
class Lut:
    """What ops cost on one target. Safe to share between threads; nothing in it changes.

    `table` holds a row per (op, evidence, method), `meta` the footer, `path` the file. Where an op has several rows,
    lookups take one with a latency first, then the most direct evidence, then the method nearest to whole networks.
    """

    table: pa.Table
    meta: LutMeta
    path: Place

    @classmethod
    def load(cls, spec: str | Place, *, folder: Place = Path("luts")) -> Lut:
        """Open "luts/h100/torch-fp16-bs8" (newest version), the same with "@3", or a parquet file.

        All of them may be in a bucket: "s3://bucket/luts/h100/torch-fp16-bs8@3". A name that is no path is looked for
        below `folder`.
        Raises LutNotFound listing what there is, LutCorrupt, LutTooNew.
        """
        from lutbuilder.lut.store import load

        return load(spec, folder=folder)

    @property
    def name(self) -> str:
        """Folder below luts/, e.g. "h100/torch-fp16-bs8"."""
        return self.meta.name

    @property
    def version(self) -> int:
        """Number of this issue of the table, from 1."""
        return self.meta.version

    @property
    def content_hash(self) -> str:
        """sha256 of rows and footer: the same hash, the same table."""
        return self.meta.content_sha256

    @property
    def spec(self) -> str:
        """What `Lut.load` opens this very version with."""
        from lutbuilder.lut.folder import version_of

        return f"{self.path.parent}@{self.version}" if version_of(self.path) == self.version else str(self.path)

    @cached_property
    def quality(self) -> QualitySummary:
        """How good this version is; counted anew for a file of schema 1, which mixed call overheads into its widths."""
        told = self.meta.quality
        if self.meta.schema_version > 1:
            return told
        return QualitySummary.of(
            self.rows(),
            timed_fraction=told.timed_fraction,
            wall_s=told.wall_s,
            rounds=told.rounds,
            sessions=told.sessions,
        )

    def __repr__(self) -> str:
        return f"Lut({self.spec!r}, {len(self)} rows)"

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows())

    def __contains__(self, op: object) -> bool:
        """Whether there is a row of `op`, failed ones included."""
        return isinstance(op, OpSpec) and op.op_id in self._number

    def __getitem__(self, op: OpSpec) -> Row:
        """Return the row of `op`, which may say that the op failed. Raises OpNotInLut naming the nearest rows."""
        number = self._number.get(op.op_id)
        if number is None:
            raise self.missing([op])
        return self._row(number)

    def rows(self) -> tuple[Row, ...]:
        """Return every row. Raises LutCorrupt where one holds what no row may hold."""
        try:
            return table_to_rows(self.table)
        except SpecError as error:
            raise LutCorrupt(f"{self.path}: {error}; take another version or collect again") from error

    def latency_ms(self, ops: Sequence[OpSpec]) -> NDArray[np.float64]:
        """Return the latency of each op in ms, net of call overhead; shape (len(ops),).

        Raises OpNotInLut where an op has no row, or has one that says it failed: a missing latency is never 0, nor NaN.
        """
        values = self.column(ops, "latency_ms")
        if np.isnan(values).any():
            raise self._without_latency([ops[i] for i in np.flatnonzero(np.isnan(values)).tolist()])
        return values

    def column(self, ops: Sequence[OpSpec], name: str) -> NDArray[np.float64]:
        """Return a numeric column for `ops`, unit as in the name, NaN where the row has a null; shape (len(ops),).

        Raises OpNotInLut where an op has no row, UnknownName for a column that does not exist or is not a number.
        """
        if name not in _NUMERIC:
            raise UnknownName(f"{self.spec} has no numeric column {name!r}; there are: {', '.join(_NUMERIC)}")
        return self._column(name)[self._numbers(ops)]

    def texts(self, ops: Sequence[OpSpec], name: str) -> tuple[str | None, ...]:
        """Return a text column for `ops`, such as `exec_status`; None where the row has a null. Raises as `column`."""
        if name not in _TEXTS:
            raise UnknownName(f"{self.spec} has no text column {name!r}; there are: {', '.join(_TEXTS)}")
        values: list[str | None] = self.table.column(name).to_pylist()
        return tuple(values[number] for number in self._numbers(ops).tolist())

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas table; the footer is not in it."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    @cached_property
    def _number(self) -> dict[str, int]:
        """Row number by op_id."""
        op_ids: list[str] = self.table.column("op_id").to_pylist()
        numbers = {op_id: number for number, op_id in enumerate(op_ids)}
        if len(numbers) == len(op_ids):
            return numbers
        has_latency = ~np.isnan(self._column("latency_ms"))
        evidence: list[str] = self.table.column("evidence").to_pylist()
        method: list[str] = self.table.column("method").to_pylist()
        preference = [_preference(has_latency[i], evidence[i], method[i]) for i in range(len(op_ids))]
        for number, op_id in enumerate(op_ids):
            if preference[number] < preference[numbers[op_id]]:
                numbers[op_id] = number
        return numbers

    def _numbers(self, ops: Sequence[OpSpec]) -> NDArray[np.int64]:
        numbers = np.fromiter((self._number.get(op.op_id, -1) for op in ops), dtype=np.int64, count=len(ops))
        if (numbers < 0).any():
            raise self.missing([ops[i] for i in np.flatnonzero(numbers < 0).tolist()])
        return numbers

    def _column(self, name: str) -> NDArray[np.float64]:
        values, valid = column_values(self.table, name)
        return np.where(valid, values.astype(np.float64), np.nan)

    def command(self, *, space: str | None = None, batch: int | None = None, max_ops: int | None = None) -> str:
        """Return the command that measures `space` on this LUT's target: its own space and batch if none is given.

        `max_ops`: how many of what is missing, to impute the others.
        """
        from lutbuilder import devices
        from lutbuilder_agent.runtimes import RUNTIMES

        target = self.meta.target
        # A LUT names the silicon, the command line a device. "cpu" fits every machine, so it is the last choice.
        fitting = [name for name in devices.names() if devices.get(name).matches(self.meta.fingerprint)]
        fitting += [name for name in devices.names() if name == target.device]
        return collect_command(
            device=next((name for name in fitting if name != "cpu"), "cpu"),
            space=space or (self.meta.spaces[0] if self.meta.spaces else "proxyless"),
            runtime=target.runtime if target.runtime in RUNTIMES else None,  # an imported table's may be another
            batch=target.batch if batch is None else batch,
            threads=target.threads,
            cache=target.cache,
            max_ops=max_ops,
        )

    def _row(self, number: int) -> Row:
        try:
            return table_to_rows(self.table.slice(number, 1))[0]
        except SpecError as error:
            raise LutCorrupt(f"{self.path}: {error}; take another version or collect again") from error

    def missing(self, ops: Sequence[OpSpec], *, space: str | None = None) -> OpNotInLut:
        """Return the error for ops without a row: what is nearest, and the command that measures `space`, if any."""
        from lutbuilder.spaces.grid import knots

        op = ops[0]
        more = f" (and {len(ops) - 1} more ops)" if len(ops) > 1 else ""
        command = self.command(space=space, batch=op.batch, max_ops=knots(ops))
        if op.batch != self.meta.target.batch:
            return OpNotInLut(
                f"{op.label()} is of batch {op.batch}, but {self.spec} was measured at batch {self.meta.target.batch}"
                f"{more}. A LUT holds one batch size; measure the other: {command}"
            )
        near = "; ".join(_described(row.op, op) for row in self.nearest(op)) or "none, the table is empty"
        return OpNotInLut(f"{op.label()} is not in {self.spec}{more}; nearest: {near}. Measure it: {command}")

    def _without_latency(self, ops: Sequence[OpSpec]) -> OpNotInLut:
        op, row = ops[0], self[ops[0]]
        more = f" (nor for {len(ops) - 1} more ops)" if len(ops) > 1 else ""
        advice = f"Measure again: {self.command(batch=op.batch)} --again"
        if row.cycles is not None:
            advice = "Take the column cycles, or import it again with --clock-mhz"
        status = row.exec_status if row.exec_status != "native" else f"{row.cycles} cycles"
        return OpNotInLut(f"{self.spec} has no latency for {op.label()}{more}: {status}, {row.reason}. {advice}")

    def nearest(self, op: OpSpec, count: int = _NEAREST) -> tuple[Row, ...]:
        """Return up to `count` rows nearest to `op`, each op once: its own kind first, then by log shape distance."""
        if not len(self):
            return ()
        numbers = np.array(sorted(self._number.values()))
        distance = np.zeros(len(numbers))
        for name in _SHAPE:
            values, _ = column_values(self.table, name)
            # 1 is added because mid_channels is 0 where an op has none
            distance += np.log((values[numbers] + 1.0) / (getattr(op, name) + 1.0)) ** 2
        for name in _SAME:
            texts = np.array(self.table.column(name).to_pylist(), dtype=object)
            distance += 0.01 * (texts[numbers] != getattr(op, name))  # breaks ties among equal shapes
        kinds = np.array(self.table.column("kind").to_pylist(), dtype=object)
        order = np.lexsort((distance, kinds[numbers] != op.kind))
        return tuple(self._row(int(numbers[i])) for i in order[:count])


def preferred(rows: Iterable[Row]) -> dict[str, Row]:
    """Return the row that a lookup takes where an op has several, by op_id."""
    best: dict[str, Row] = {}
    for row in rows:
        held = best.get(row.op_id)
        if held is None or _row_preference(row) < _row_preference(held):
            best[row.op_id] = row
    return best


def _row_preference(row: Row) -> tuple[bool, int, int]:
    return _preference(row.latency_ms is not None, row.evidence, row.method)


def _preference(has_latency: bool, evidence: str, method: str | None) -> tuple[bool, int, int]:
    return (not has_latency, _EVIDENCE_RANK.get(evidence, 99), _METHOD_RANK.get(method or "", 99))


def collect_command(
    *,
    device: str,
    space: str = "proxyless",
    runtime: str | None = None,
    batch: int = 1,
    threads: int = 1,
    cache: Cache = "rotating",
    max_ops: int | None = None,
) -> str:
    """Return the command line that measures `space` on a device named in lutbuilder.devices."""
    words = ["lutbuilder collect", f"--device {device}", f"--space {shlex.quote(space)}"]
    if runtime is not None:
        words.append(f"--runtime {runtime}")
    words.append(f"--bs {batch}")
    if threads != 1:
        words.append(f"--threads {threads}")
    if cache != "rotating":
        words.append(f"--cache {cache}")
    if max_ops is not None:
        words.append(f"--max-ops {max_ops}")
    return " ".join(words)


def _described(near: OpSpec, op: OpSpec) -> str:
    """Label of a near op, with what tells it from `op` where the label does not show it."""
    if near.label() != op.label():
        return near.label()
    return f"{near.label()} with " + ", ".join(
        f"{name}={getattr(near, name)}"
        for name in (*_SAME, "kernel", "groups", "mid_channels")
        if getattr(near, name) != getattr(op, name)
    )
