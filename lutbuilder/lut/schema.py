"""What a LUT file holds: the columns of its rows, its footer, and how both are checked.

History of the schema; a golden file of each (tests/golden/lut-schema-N.parquet) is never regenerated, loads for ever.
  1  lutbuilder 0.1: groups key, cost, trust and knowledge; one JSON footer under `lutbuilder`; content hash over both.
  2  lutbuilder 0.2: columns n_agents, residual_mad, session_sd, throttled_fraction, settled; footer fields
     fitted_networks, calibration, noisy, session_reports, drift_trace and more of quality, whose widths are of ops
     alone: schema 1 mixed those of call overheads into them. Files of schema 1 read with nulls and defaults instead.
  3  lutbuilder 0.3: key columns expand_conv, shortcut, padding and se_channels; cycles, which may stand in for a
     latency; group imported, for rows of published tables; method may be null there; footer field carriers. Older
     files read with the defaults of OpSpec in the new key columns, so that every op keeps its op_id, and with nulls in
     the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from itertools import chain
from statistics import median
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
from numpy.typing import NDArray

from lutbuilder.campaign.spec import Target
from lutbuilder.lut.monotone import monotone_pairs
from lutbuilder.op import OpSpec
from lutbuilder.stats.sessions import SessionReport
from lutbuilder_agent.errors import LutTooNew, SpecError
from lutbuilder_agent.records import CACHES, Fingerprint, Plan

SCHEMA_VERSION = 3
FOOTER_KEY = b"lutbuilder"
UPGRADE = "pip install --upgrade lutbuilder"

Evidence = Literal["measured", "rtl_sim", "modelled", "imported"]
Method = Literal["isolated", "context", "in_situ", "calibrated", "imputed"]
ExecStatus = Literal[
    "native", "promoted", "weight_only", "bit_serial", "emulated", "unsupported", "failed"
]  # fmt: skip  # one line reads as one list
EVIDENCES: tuple[str, ...] = get_args(Evidence)  # most direct knowledge first: lookups prefer it
METHODS: tuple[str, ...] = get_args(Method)
EXEC_STATUSES: tuple[str, ...] = get_args(ExecStatus)
WITHOUT_LATENCY = ("unsupported", "failed")
Status = Literal["measured", "calibrated", "imputed", "failed", "unsupported", "imported", "modelled", "rtl_sim"]
MAX_TRACE = 200  # points of drift_trace: enough to see a throttle ramp, little beside the rows

ColumnType = Literal["string", "int64", "float64", "bool"]
Group = Literal["key", "cost", "trust", "knowledge", "imported"]

_IS_KIND: Mapping[ColumnType, Any] = {
    "string": pa.types.is_string,
    "int64": pa.types.is_int64,
    "float64": pa.types.is_float64,
    "bool": pa.types.is_boolean,
}
_PYTHON: Mapping[ColumnType, type] = {"string": str, "int64": int, "float64": float, "bool": bool}
_MAX_INT = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a LUT; the unit is in its name. `doc` says what a name alone does not.

    `since` is the schema it came with: files of older schemas read with `default` in it, which is null where the column
    is nullable. `nullable_since` is the first schema that allowed nulls. `least` is the smallest integer allowed.
    """

    name: str
    type: ColumnType
    group: Group
    nullable: bool = False
    doc: str = ""
    since: int = 1
    nullable_since: int = 1
    default: Any = None
    least: int = 0


COLUMNS: tuple[Column, ...] = (
    Column("op_id", "string", "key", doc="stable hash of the key columns; see lutbuilder.op"),
    Column("kind", "string", "key"),
    Column("in_channels", "int64", "key"),
    Column("mid_channels", "int64", "key", doc="0 for other kinds than mbconv"),
    Column("out_channels", "int64", "key"),
    Column("height", "int64", "key", doc="rows of the input map in pixels"),
    Column("width", "int64", "key", doc="columns of the input map in pixels"),
    Column("kernel", "int64", "key"),
    Column("stride", "int64", "key"),
    Column(
        "expand", "float64", "key", nullable=True, doc="mid_channels / in_channels; null for other kinds than mbconv"
    ),
    Column("groups", "int64", "key"),
    Column("se", "bool", "key", doc="squeeze-excite"),
    Column("act", "string", "key"),
    Column("residual", "bool", "key"),
    Column("w_bits", "int64", "key"),
    Column("a_bits", "int64", "key"),
    Column("batch", "int64", "key"),
    Column(
        "expand_conv", "bool", "key", doc="an expand conv although mid_channels == in_channels", since=3, default=False
    ),
    Column("shortcut", "bool", "key", doc="residual with a pool or a convolution on it", since=3, default=False),
    Column("padding", "int64", "key", doc="-1: (kernel - 1) // 2", since=3, default=-1, least=-1),
    Column("se_channels", "int64", "key", doc="0: a quarter of mid_channels, divisible by 8", since=3, default=0),
    Column("latency_ms", "float64", "cost", nullable=True, doc="net of call overhead; of an identity: the overhead"),
    Column("latency_lo_ms", "float64", "cost", nullable=True, doc="95 % interval of latency_ms; null below 6 rounds"),
    Column("latency_hi_ms", "float64", "cost", nullable=True),
    Column(
        "call_overhead_ms",
        "float64",
        "cost",
        nullable=True,
        doc="of a call with that input shape; null for an identity",
    ),
    Column("p90_ms", "float64", "cost", nullable=True, doc="90th percentile of visits, net of call overhead"),
    Column("energy_mj", "float64", "cost", nullable=True, doc="null without a counter"),
    Column("peak_memory_bytes", "int64", "cost", nullable=True),
    Column("macs", "int64", "cost", nullable=True, doc="of the whole batch; null where the op cannot be lowered"),
    Column("params", "int64", "cost", nullable=True),
    Column("cycles", "int64", "cost", nullable=True, doc="of the whole batch; may come without a latency", since=3),
    Column("n_visits", "int64", "trust"),
    Column("n_rounds", "int64", "trust"),
    Column("n_instances", "int64", "trust"),
    Column("n_sessions", "int64", "trust"),
    Column("n_agents", "int64", "trust", nullable=True, since=2),
    Column("test_retest", "float64", "trust", nullable=True, doc="relative difference of even and odd rounds"),
    Column(
        "residual_mad",
        "float64",
        "trust",
        nullable=True,
        doc="relative spread of single visits, machine drift taken out: 1.4826 MAD of log time",
        since=2,
    ),
    Column(
        "session_sd",
        "float64",
        "trust",
        nullable=True,
        doc="standard deviation of log time between sessions, their scales tied; null for one session",
        since=2,
    ),
    Column("preempted_fraction", "float64", "trust", nullable=True, doc="of the calls"),
    Column(
        "throttled_fraction",
        "float64",
        "trust",
        nullable=True,
        doc="of the calls; null where the device has no throttle counters",
        since=2,
    ),
    Column("bimodal", "bool", "trust", nullable=True),
    Column(
        "settled", "bool", "trust", nullable=True, doc="whether warm-up ended before the counted calls began", since=2
    ),
    Column("stop_reason", "string", "trust", nullable=True),
    Column("evidence", "string", "knowledge"),
    Column(
        "method", "string", "knowledge", nullable=True, doc="null: an imported table does not say", nullable_since=3
    ),
    Column(
        "cache", "string", "knowledge", nullable=True, doc="cache state the row was timed in; null if not timed here"
    ),
    Column("exec_status", "string", "knowledge"),
    Column("exec_w_bits", "int64", "knowledge", nullable=True),
    Column("exec_a_bits", "int64", "knowledge", nullable=True),
    Column("reason", "string", "knowledge", nullable=True, doc="why latency_ms is null, or what to know about it"),
    Column("imported_format", "string", "imported", nullable=True, doc="a name of lutbuilder.lut.interchange", since=3),
    Column("imported_file", "string", "imported", nullable=True, doc="names of the files, '; ' between them", since=3),
    Column("imported_sha256", "string", "imported", nullable=True, doc="of the files, in their order", since=3),
    Column("imported_key", "string", "imported", nullable=True, doc="the row's key as the file has it", since=3),
    Column("imported_value", "float64", "imported", nullable=True, doc="in imported_unit", since=3),
    Column("imported_unit", "string", "imported", nullable=True, since=3),
    Column("imported_count", "int64", "imported", nullable=True, doc="samples behind the value", since=3, least=1),
    Column("imported_std_ms", "float64", "imported", nullable=True, doc="null: not recorded", since=3),
    Column("dispersion_note", "string", "imported", nullable=True, doc="what is not known of that spread", since=3),
)
COLUMN_NAMES: tuple[str, ...] = tuple(column.name for column in COLUMNS)
_OP_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(OpSpec))
_IMPORTED: tuple[str, ...] = tuple(column.name for column in COLUMNS if column.group == "imported")
_FRACTIONS = ("preempted_fraction", "throttled_fraction")
_NOT_NEGATIVE = (
    "call_overhead_ms", "energy_mj", "test_retest", "residual_mad", "session_sd", "imported_std_ms", *_FRACTIONS,
)  # fmt: skip  # one list, one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One op's summary with its uncertainty: a field for every column of the schema, in its order.

    Build one with `Row.of(op, ...)`. A null `latency_ms` comes with a reason, and only with exec_status unsupported or
    failed, or with `cycles` whose clock is not known. Unique in a LUT: (op_id, evidence, method).
    """

    op_id: str
    kind: str
    in_channels: int
    mid_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int
    stride: int
    expand: float | None
    groups: int
    se: bool
    act: str
    residual: bool
    w_bits: int
    a_bits: int
    batch: int
    expand_conv: bool
    shortcut: bool
    padding: int
    se_channels: int
    latency_ms: float | None
    latency_lo_ms: float | None = None
    latency_hi_ms: float | None = None
    call_overhead_ms: float | None = None
    p90_ms: float | None = None
    energy_mj: float | None = None
    peak_memory_bytes: int | None = None
    macs: int | None = None
    params: int | None = None
    cycles: int | None = None
    n_visits: int = 0
    n_rounds: int = 0
    n_instances: int = 0
    n_sessions: int = 0
    n_agents: int | None = None
    test_retest: float | None = None
    residual_mad: float | None = None
    session_sd: float | None = None
    preempted_fraction: float | None = None
    throttled_fraction: float | None = None
    bimodal: bool | None = None
    settled: bool | None = None
    stop_reason: str | None = None
    evidence: str = "measured"
    method: str | None = "isolated"
    cache: str | None = None
    exec_status: str = "native"
    exec_w_bits: int | None = None
    exec_a_bits: int | None = None
    reason: str | None = None
    imported_format: str | None = None
    imported_file: str | None = None
    imported_sha256: str | None = None
    imported_key: str | None = None
    imported_value: float | None = None
    imported_unit: str | None = None
    imported_count: int | None = None
    imported_std_ms: float | None = None
    dispersion_note: str | None = None

    def __post_init__(self) -> None:
        for column in COLUMNS:
            _check_value(column, getattr(self, column.name))
        op = self.op
        if (self.op_id, self.expand) != (op.op_id, op.expand):
            raise SpecError(f"op_id {self.op_id} and expand {self.expand} are not those of {op.label()} ({op.op_id})")
        for name, allowed in (("evidence", EVIDENCES), ("method", METHODS), ("exec_status", EXEC_STATUSES)):
            value = getattr(self, name)
            untold = name == "method" and value is None and self.evidence == "imported"
            if value not in allowed and not untold:
                raise SpecError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if self.cache is not None and self.cache not in CACHES:
            raise SpecError(f"cache must be one of {', '.join(CACHES)}, got {self.cache!r}")
        self._check_cost()
        if self.evidence != "imported":
            foreign = [name for name in _IMPORTED if getattr(self, name) is not None]
            if foreign:
                raise SpecError(f"row {self.op_id}: {foreign[0]} goes with evidence imported, not {self.evidence}")

    def _check_cost(self) -> None:
        where = f"row {self.op_id}"
        for name in ("latency_ms", "latency_lo_ms", "latency_hi_ms", "p90_ms"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SpecError(f"{where}: {name} must be positive, got {value}")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise SpecError(f"{where}: {name} must not be negative, got {value}")
        for name in _FRACTIONS:
            value = getattr(self, name)
            if value is not None and value > 1:
                raise SpecError(f"{where}: {name} is a fraction, got {value}")
        may_lack = self.exec_status in WITHOUT_LATENCY
        if may_lack if self.latency_ms is not None else not may_lack and self.cycles is None:
            raise SpecError(f"{where}: latency_ms {self.latency_ms} does not go with exec_status {self.exec_status}")
        if self.latency_ms is None and not self.reason:
            raise SpecError(f"{where}: a null latency_ms needs a reason")
        if (self.latency_lo_ms is None) != (self.latency_hi_ms is None):
            raise SpecError(f"{where}: an interval has both ends or none")
        low, ms, high = self.latency_lo_ms, self.latency_ms, self.latency_hi_ms
        if low is not None and high is not None and (ms is None or not low <= ms <= high):
            raise SpecError(f"{where}: latency_ms {ms} is outside its interval {low} to {high}")

    @classmethod
    def of(cls, op: OpSpec, **values: Any) -> Row:
        """Return the row of `op` with the other columns given by name."""
        key = {name: getattr(op, name) for name in _OP_FIELDS}
        return cls(op_id=op.op_id, expand=op.expand, **key, **values)

    @property
    def op(self) -> OpSpec:
        """The op of this row, rebuilt from its key columns. Raises SpecError where they make no op."""
        return OpSpec(**{name: getattr(self, name) for name in _OP_FIELDS})

    @property
    def key(self) -> tuple[str, str, str]:
        """What is unique in a LUT."""
        return (self.op_id, self.evidence, self.method or "")

    @property
    def status(self) -> Status:
        """What kind of value this is, in one word: a calibrated or imputed one is never called measured."""
        if self.exec_status == "failed" or self.exec_status == "unsupported":
            return cast(Status, self.exec_status)
        if self.method == "calibrated" or self.method == "imputed":
            return cast(Status, self.method)
        return cast(Status, self.evidence)

    @property
    def half_width(self) -> float | None:
        """Half the 95 % interval relative to `latency_ms`; None without an interval."""
        if self.latency_ms is None or self.latency_lo_ms is None or self.latency_hi_ms is None:
            return None
        return 0.5 * (self.latency_hi_ms - self.latency_lo_ms) / self.latency_ms

    def values(self) -> tuple[Any, ...]:
        """The columns in the schema's order."""
        return tuple(getattr(self, name) for name in COLUMN_NAMES)


def measured_ops(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the measured row of every op, call overheads left out; of several the one nearest to whole networks."""
    ops = [row for row in rows if row.status == "measured" and row.kind != "identity"]
    return tuple({row.op_id: row for row in sorted(ops, key=lambda row: METHODS.index(str(row.method)))}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class QualitySummary:
    """How good a version is. Widths, test-retest and residual MAD are relative; None where nothing says.

    Those from `n_rows` to `n_monotone_violations` follow from the rows (`of`): from measured ops, but for the two of
    call overheads, which take microseconds, so that their relative widths say little about the table. The rest
    describes the newest campaign: fraction of its wall time inside timed visits, its wall time in seconds, rounds and
    sessions.
    """

    n_rows: int = 0
    n_failed: int = 0
    median_half_width: float | None = None
    max_half_width: float | None = None
    median_overhead_half_width: float | None = None
    max_overhead_half_width: float | None = None
    median_test_retest: float | None = None
    median_residual_mad: float | None = None
    bimodal_fraction: float | None = None  # of the ops
    preempted_fraction: float | None = None  # of the calls, mean over ops
    n_monotone_pairs: int | None = None  # ops that differ in kernel, expansion, channels or bits alone
    n_monotone_violations: int | None = None  # of which the larger is faster by more than the intervals allow
    timed_fraction: float | None = None
    wall_s: float | None = None
    rounds: int | None = None
    sessions: int | None = None

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        *,
        timed_fraction: float | None = None,
        wall_s: float | None = None,
        rounds: int | None = None,
        sessions: int | None = None,
    ) -> QualitySummary:
        """Summarise `rows`."""
        ops = measured_ops(rows)
        widths = _known(row.half_width for row in ops)
        overheads = _known(row.half_width for row in rows if row.status == "measured" and row.kind == "identity")
        retests = _known(row.test_retest for row in ops)
        residuals = _known(row.residual_mad for row in ops)
        preempted = _known(row.preempted_fraction for row in ops)
        bimodal = [row.bimodal for row in ops if row.bimodal is not None]
        pairs = monotone_pairs(ops)
        return cls(
            n_rows=len(rows),
            n_failed=sum(row.exec_status in WITHOUT_LATENCY for row in rows),
            median_half_width=median(widths) if widths else None,
            max_half_width=max(widths, default=None),
            median_overhead_half_width=median(overheads) if overheads else None,
            max_overhead_half_width=max(overheads, default=None),
            median_test_retest=median(retests) if retests else None,
            median_residual_mad=median(residuals) if residuals else None,
            bimodal_fraction=sum(bimodal) / len(bimodal) if bimodal else None,
            preempted_fraction=sum(preempted) / len(preempted) if preempted else None,
            n_monotone_pairs=len(pairs),
            n_monotone_violations=sum(pair.violated for pair in pairs),
            timed_fraction=timed_fraction,
            wall_s=wall_s,
            rounds=rounds,
            sessions=sessions,
        )


def _known(values: Iterable[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """A whole network that the rows were fitted to (campaign/carriers.py), and what it took, call overhead and all.

    Timed again in a later session, it says how that session's networks compare with the table's.
    """

    op_id: str
    op_ids: tuple[str, ...]  # its ops in order, all of them rows of the table
    time_ms: float


@dataclass(frozen=True, kw_only=True)
class LutMeta:
    """The footer: where a table comes from and what it speaks for. Publishing fills in version, parent, hash, quality.

    `name` is the folder below luts/, by default `target.lut_name`. `validation` and `calibration` are JSON-able; each
    says itself what it speaks about. `created` is ISO 8601 in UTC; the caller owns the clock. `noisy` names the rules
    of the gate that this version fails (lutbuilder.lut.lint). `drift_trace` is the newest campaign's machine: seconds
    since its first visit, and its speed relative to the typical (0.6: calls take 1 / 0.6 as long).
    """

    target: Target
    fingerprint: Fingerprint
    runtime_version: str
    plan: Plan
    tool_version: str
    created: str
    name: str = ""
    schema_version: int = SCHEMA_VERSION
    version: int = 0  # 0: not published yet
    parent_version: int | None = None
    parent_sha256: str | None = None
    content_sha256: str = ""
    spaces: tuple[str, ...] = ()
    quality: QualitySummary = QualitySummary()
    validation: Mapping[str, Any] | None = None
    sessions: tuple[str, ...] = ()
    stop_reason: str | None = None
    conditions: str = ""
    fitted_networks: tuple[str, ...] = ()  # ids of networks that any row was ever fitted to; never validated with
    carriers: tuple[Carrier, ...] = ()
    calibration: Mapping[str, Any] | None = None
    noisy: tuple[str, ...] = ()
    session_reports: tuple[SessionReport, ...] = ()
    drift_trace: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.target.lut_name)
        parts = self.name.split("/")
        if len(parts) != 2 or not all(_NAME_PART.fullmatch(part) for part in parts) or "samples" in parts:
            raise SpecError(f"a LUT is named like <device>/<runtime>-<dtype>-bs<N>, got {self.name!r}")
        if not _CREATED.fullmatch(self.created):
            raise SpecError(f"created must be ISO 8601 in UTC like 2025-01-31T12:00:00Z, got {self.created!r}")
        if self.version < 0:
            raise SpecError(f"version must not be negative, got {self.version}")
        if len(self.drift_trace) > MAX_TRACE:
            raise SpecError(f"drift_trace has at most {MAX_TRACE} points, got {len(self.drift_trace)}")
        for name in ("validation", "calibration"):
            if getattr(self, name) is not None:
                # What is written must be what is read: tuples become lists and keys strings before anybody compares.
                object.__setattr__(self, name, _plain(getattr(self, name)))

    def footer(self) -> dict[str, Any]:
        """Return the JSON value kept in the file."""
        return cast("dict[str, Any]", _plain(asdict(self)))

    @classmethod
    def from_footer(cls, footer: Mapping[str, Any]) -> LutMeta:
        """Inverse of `footer`. Raises SpecError naming the field, LutTooNew for fields this version does not know."""
        return _decode(cls, footer, "footer")


_NAME_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


def arrow_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """Return the pyarrow schema of the rows of a schema version, without the footer."""
    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    return pa.schema(
        [
            pa.field(c.name, types[c.type], nullable=c.nullable and c.nullable_since <= version)
            for c in COLUMNS
            if c.since <= version
        ]
    )


def upgraded(table: pa.Table) -> pa.Table:
    """Return a table of any past schema with the columns of this one; those it lacks hold their defaults."""
    schema = arrow_schema()
    if table.schema.names == schema.names:
        return table
    there = set(table.schema.names)
    arrays = [
        table.column(column.name)
        if column.name in there
        else packed([column.default] * table.num_rows, schema.field(column.name).type)
        for column in COLUMNS
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def rows_to_table(rows: Iterable[Row]) -> pa.Table:
    """Return the table of `rows`, sorted by their key columns so that it reads well and is the same for any order."""
    ordered = sorted(rows, key=_reading_order)
    columns = [[getattr(row, name) for row in ordered] for name in COLUMN_NAMES]
    schema = arrow_schema()
    arrays = [packed(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def packed(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of values that are of its kind, which nobody checks here; None is null.

    Made of its buffers, since pyarrow's own ways import pandas, as in `column_values`.
    """
    present = np.array([value is not None for value in values], dtype=np.bool_)
    validity = None if present.all() else _packed_bits(present)
    if pa.types.is_list(kind):
        lists = [() if value is None else value for value in values]
        items = packed(list(chain.from_iterable(lists)), kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [validity, _offsets(lists)], children=[items])
    if pa.types.is_string(kind):
        texts = [b"" if value is None else value.encode() for value in values]
        return pa.Array.from_buffers(kind, len(values), [validity, _offsets(texts), pa.py_buffer(b"".join(texts))])
    if pa.types.is_boolean(kind):
        data = _packed_bits(np.array([bool(value) for value in values], dtype=np.bool_))
    else:
        dtype = {pa.int64(): "<i8", pa.float64(): "<f8"}[kind]
        data = pa.py_buffer(np.array([0 if value is None else value for value in values], dtype=dtype))
    return pa.Array.from_buffers(kind, len(values), [validity, data])


def _offsets(parts: Sequence[Sequence[object]]) -> pa.Buffer:
    return pa.py_buffer(np.cumsum([0, *map(len, parts)], dtype="<i4"))


def _packed_bits(values: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def table_to_rows(table: pa.Table) -> tuple[Row, ...]:
    """Return the rows of `table`. Raises SpecError for values no row may hold."""
    return tuple(Row(**values) for values in table.to_pylist())


def column_values(table: pa.Table, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a numeric or bool column as (values, valid); values under null are 0.

    Reads the buffers directly: pyarrow's own to_numpy imports pandas, which costs ten times the lookup.
    """
    column = table.column(name)
    if column.num_chunks != 1:
        column = column.combine_chunks()
        array = column if isinstance(column, pa.Array) else column.chunk(0)
    else:
        array = column.chunk(0)
    validity, data = array.buffers()
    if pa.types.is_boolean(array.type):
        values: NDArray[Any] = _bits(data, array)
    else:
        dtype = np.dtype("<f8" if pa.types.is_floating(array.type) else "<i8")
        values = (
            np.frombuffer(data, dtype=dtype, count=len(array), offset=8 * array.offset)
            if len(array)
            else np.empty(0, dtype)
        )
    if array.null_count == 0:
        return values, np.ones(len(array), dtype=np.bool_)
    valid = _bits(validity, array)
    return np.where(valid, values, np.zeros_like(values)), valid


def _bits(buffer: pa.Buffer, array: pa.Array) -> NDArray[np.bool_]:
    if not len(array):
        return np.empty(0, dtype=np.bool_)
    packed = np.frombuffer(buffer, dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little")[array.offset : array.offset + len(array)].astype(np.bool_)


def content_sha256(table: pa.Table, footer: Mapping[str, Any]) -> str:
    """Return the hash of what the file says: the footer without this hash, and all values of all columns in row order.

    Nothing of parquet's encoding enters, so a rewritten file with equal content keeps its hash.
    """
    digest = hashlib.sha256()
    body = {name: value for name, value in footer.items() if name != "content_sha256"}
    _feed(digest, canonical_json(body))
    _feed(digest, str(table.num_rows).encode())
    for field in table.schema:
        kind = next(kind for kind, of_kind in _IS_KIND.items() if of_kind(field.type))
        _feed(digest, f"{field.name}:{kind}".encode())  # our names of types, not pyarrow's: those may change
        if kind == "string":
            texts = [None if text is None else text.encode() for text in table.column(field.name).to_pylist()]
            lengths = np.array([-1 if text is None else len(text) for text in texts], dtype="<i8")
            _feed(digest, lengths.tobytes())
            _feed(digest, b"".join(text for text in texts if text))
        else:
            values, valid = column_values(table, field.name)
            _feed(digest, valid.tobytes())
            _feed(digest, values.tobytes())
    return digest.hexdigest()


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of `value`: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`. Raises SpecError for anything else."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpecError("not a JSON object")
    return value


def _feed(digest: Any, chunk: bytes) -> None:
    digest.update(len(chunk).to_bytes(8, "little"))  # framed, so that no two contents give one stream
    digest.update(chunk)


def _reading_order(row: Row) -> tuple[Any, ...]:
    return (*(getattr(row, name) for name in _OP_FIELDS), *row.key)


def _plain(value: object) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"a LUT's footer must be JSON: {error}") from error


def _check_value(column: Column, value: object) -> None:
    if value is None:
        if not column.nullable:
            raise SpecError(f"{column.name} must not be null")
    elif not isinstance(value, _PYTHON[column.type]) or (column.type == "int64" and isinstance(value, bool)):
        raise SpecError(f"{column.name} must be a {column.type}, got {value!r}")
    elif column.type == "int64" and not column.least <= cast(int, value) <= _MAX_INT:
        raise SpecError(f"{column.name} must be from {column.least} to 2**63 - 1, got {value!r}")
    elif column.type == "float64" and not math.isfinite(cast(float, value)):
        raise SpecError(f"{column.name} must be finite, got {value!r}")
    elif column.type == "string":
        try:
            cast(str, value).encode()
        except UnicodeEncodeError as error:
            raise SpecError(f"{column.name} must be valid text: {error}") from error


_T = TypeVar("_T")


@lru_cache(maxsize=32)
def _hints(cls: Hashable) -> Mapping[str, Any]:
    return get_type_hints(cls)  # cached: it evaluates every annotation


def _decode(cls: type[_T], value: object, where: str) -> _T:
    """Build a frozen dataclass from JSON, checking every type.

    A field added after the file was written takes its default, which therefore has to mean what was done before.
    """
    if not isinstance(value, dict):
        raise SpecError(f"{where} must be an object")
    known = {field.name: field for field in fields(cast(Any, cls))}
    if unknown := sorted(set(value) - set(known)):
        raise LutTooNew(f"{where} has fields this lutbuilder does not know: {', '.join(unknown)}; upgrade: {UPGRADE}")
    hints = _hints(cast(Hashable, cls))
    given = {name: _decode_value(hints[name], value[name], f"{where}.{name}") for name in known if name in value}
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise SpecError(f"{where}.{name} is missing")
    return cls(**given)


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        return None if value is None else _decode_value(inner[0], value, where)
    if origin is Literal:
        if value not in args:
            raise SpecError(f"{where} must be one of {', '.join(map(str, args))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise SpecError(f"{where} must be a list, got {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_decode_value(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)
    if is_dataclass(hint):
        return _decode(cast(type, hint), value, where)
    wanted = dict if origin is not None else hint
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise SpecError(f"{where} must be a {wanted.__name__}, got {value!r}")
    return value
