"""What an importer makes of a file: entries, one a value; and rows, where several entries are of one op."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lutbuilder.lower import lower
from lutbuilder.lut.rows import LATENCY_FLOOR_MS
from lutbuilder.lut.schema import Method, Row
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import BadTable, LutConflict, SpecError

Unit = Literal["ms", "us", "s", "cycles"]
TO_MS: Mapping[str, float] = {"ms": 1.0, "us": 1e-3, "s": 1e3}
JOIN = "; "  # between the files and keys of a row that rests on several
DDOF = "ddof=unknown"  # no published file says whether it divided by n or by n - 1
NO_CLOCK = "no clock given"
_NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What only the user can know of a table; None where the format says it, or nobody does."""

    preset: str | None = None
    unit: Unit | None = None
    columns: str | None = None
    batch: int | None = None
    clock_mhz: float | None = None
    quantity: str | None = None
    method: Method | None = None
    drop_invalid: bool = False

    def __post_init__(self) -> None:
        if self.clock_mhz is not None and not (math.isfinite(self.clock_mhz) and self.clock_mhz > 0):
            raise SpecError(f"the clock must be above 0 MHz, got {self.clock_mhz}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One value of a published table and the op it is of.

    `value` and `std` are in `unit`. A `value` of None: the table says that the op cannot run, and `reason` why.
    `method` None: nobody says how it was measured. `note` is what to know of the spread.
    """

    op: OpSpec
    key: str
    value: float | None
    unit: Unit = "ms"
    energy_mj: float | None = None
    count: int | None = None
    std: float | None = None
    method: Method | None = None
    note: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one file held: its entries, what was left out on request, and what to know of either."""

    entries: tuple[Entry, ...]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    about: str = ""  # what the table is, if it is not what its numbers look like


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """Samples by their number, mean and population variance; variance None: not recorded."""

    count: int
    mean: float
    variance: float | None

    def __post_init__(self) -> None:
        if self.count < 1 or (self.variance is not None and self.variance < 0):
            raise SpecError(f"a statistic has samples and no negative variance, got {self.count} and {self.variance}")

    def pooled(self, other: Statistic) -> Statistic:
        """Return the statistic of both samples together; exact, as if they had been kept.

        Source: Chan, Golub, LeVeque, Algorithms for computing the sample variance, The American Statistician 37 (1983).
        """
        n = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / n
        if self.variance is None or other.variance is None:
            return Statistic(count=n, mean=mean, variance=None)
        between = (other.mean - self.mean) ** 2 * self.count * other.count / n
        within = self.count * self.variance + other.count * other.variance
        return Statistic(count=n, mean=mean, variance=(within + between) / n)


def averaged(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return one entry an op: where a file has a value for each of several layers of one shape, their mean."""
    by_op: dict[OpSpec, list[Entry]] = {}
    for entry in entries:
        by_op.setdefault(entry.op, []).append(entry)
    return tuple(told[0] if len(told) == 1 else _average(told) for told in by_op.values())


def _average(told: Sequence[Entry]) -> Entry:
    values = [entry.value for entry in told if entry.value is not None]
    same = len(set(values)) == 1
    between = f"mean of {len(values)} layers of this shape, {min(values):g} to {max(values):g} {told[0].unit}"
    return replace(
        told[0],
        key=JOIN.join(entry.key for entry in told),
        value=values[0] if same else sum(values) / len(values),
        reason=told[0].reason if same else between,
    )


def entry_row(entry: Entry, *, format: str, file: str, sha256: str, clock_mhz: float | None = None) -> Row:
    """Return the row of an entry: evidence imported, in ms and mJ; cycles need a clock to have a latency."""
    cycles = int(entry.value) if entry.unit == "cycles" and entry.value is not None else None
    reason, latency_ms, factor = entry.reason, None, TO_MS.get(entry.unit, 1.0)
    if cycles is not None and clock_mhz is None:
        reason = NO_CLOCK if reason is None else f"{reason}; {NO_CLOCK}"
    elif cycles is not None and clock_mhz is not None:
        latency_ms = cycles / (clock_mhz * 1e3)
    elif entry.value is not None:
        latency_ms = entry.value * factor
    macs, params = _size(entry.op)
    std_ms = None if entry.std is None else entry.std * factor
    low, high = _interval(latency_ms, entry.count, std_ms)
    return Row.of(
        entry.op,
        latency_ms=latency_ms,
        latency_lo_ms=low,
        latency_hi_ms=high,
        energy_mj=entry.energy_mj,
        macs=macs,
        params=params,
        cycles=cycles,
        evidence="imported",
        method=entry.method,
        exec_status="unsupported" if entry.value is None else "native",
        reason=reason,
        imported_format=format,
        imported_file=file,
        imported_sha256=sha256,
        imported_key=entry.key,
        imported_value=None if entry.value is None else float(entry.value),
        imported_unit=None if entry.value is None else entry.unit,
        imported_count=entry.count,
        imported_std_ms=std_ms,
        dispersion_note=entry.note,
    )


def pool_rows(rows: Iterable[Row]) -> Row:
    """Return one row for all the imported `rows` of one op: their samples pooled, all their files named.

    Rows that agree to the last digit are one value told several times, not several samples. Raises LutConflict for a
    row that was not imported, BadTable for values that differ where counts to weigh them are missing.
    """
    told = tuple(rows)
    for row in told:
        if row.evidence != "imported":
            raise LutConflict(f"{row.op.label()}: {row.evidence} and imported rows do not make one statistic")
    different: dict[tuple[object, ...], Row] = {}
    for row in told:
        different.setdefault(_value(row), row)
    if len(told) == 1:
        return told[0]
    return replace(
        told[0] if len(different) == 1 else _pooled(tuple(different.values())),
        imported_file=_joined(row.imported_file for row in told),
        imported_sha256=_joined(row.imported_sha256 for row in told),
        imported_key=_joined(row.imported_key for row in told),
    )


def _pooled(rows: Sequence[Row]) -> Row:
    first = rows[0]
    counts = [row.imported_count for row in rows]
    values = [row.latency_ms for row in rows]
    units = {row.imported_unit for row in rows}
    if None in counts or None in values or len(units) > 1 or any(row.cycles is not None for row in rows):
        told = " and ".join(f"{row.imported_value} {row.imported_unit} ({row.imported_key})" for row in rows[:3])
        raise BadTable(
            f"{first.imported_file}: {len(rows)} values of {first.op.label()}, {told}, and no counts to weigh them. "
            "Nothing was imported; import the files into a table each"
        )
    total: Statistic | None = None
    for row, n, ms in zip(rows, counts, values, strict=True):
        variance = None if row.imported_std_ms is None else row.imported_std_ms**2
        one = Statistic(count=int(n or 0), mean=float(ms or 0.0), variance=variance)
        total = one if total is None else total.pooled(one)
    if total is None:
        raise SpecError("a statistic of no rows")
    std_ms = None if total.variance is None else math.sqrt(total.variance) or None
    low, high = _interval(total.mean, total.count, std_ms)
    return replace(
        first,
        latency_ms=total.mean,
        latency_lo_ms=low,
        latency_hi_ms=high,
        imported_value=total.mean / TO_MS[str(first.imported_unit)],
        imported_count=total.count,
        imported_std_ms=std_ms,
        method=first.method if len({row.method for row in rows}) == 1 else None,
        dispersion_note=_joined(row.dispersion_note for row in rows) or None,
    )


def _interval(ms: float | None, count: int | None, std_ms: float | None) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a mean; None, None where count or spread do not say how well it is known."""
    if ms is None or count is None or std_ms is None:
        return None, None
    half = _NORMAL_95 * std_ms / math.sqrt(count)
    return max(ms - half, min(ms, LATENCY_FLOOR_MS)), ms + half


def _value(row: Row) -> tuple[object, ...]:
    return (
        row.latency_ms, row.cycles, row.energy_mj, row.imported_count, row.imported_std_ms, row.exec_status, row.reason,
    )  # fmt: skip  # one list, one line


def _joined(texts: Iterable[str | None]) -> str:
    return JOIN.join(dict.fromkeys(text for text in texts if text is not None))


def _size(op: OpSpec) -> tuple[int | None, int | None]:
    """Return MACs and parameters, which do not depend on the bits; None, None where the op has no graph."""
    try:
        graph = lower(op if (op.w_bits, op.a_bits) == (32, 32) else replace(op, w_bits=32, a_bits=32))
    except SpecError:
        return None, None
    return graph.macs, graph.params
