"""What a format is: how it is read, how it is written, and what only the user can know of its files."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lutbuilder.lut.interchange.records import Reading, ReadOptions
from lutbuilder.lut.interchange.source import Source
from lutbuilder.lut.lut import Lut, preferred
from lutbuilder.lut.schema import Row
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import OpNotInLut, SpecError

if TYPE_CHECKING:
    from lutbuilder.spaces import SearchSpace

_LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a file gets of a row: a value in the column's unit, samples behind it, their standard deviation in ms.

    The last two are None where nobody knows.
    """

    value: float
    count: int | None
    std_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Page:
    """The rows an exporter writes from: of the evidence asked for, one an op, in the column asked for.

    Every value is multiplied by `scale`; `constant_ms` is added to the op that carries what a network pays once.
    """

    lut: Lut
    column: str = "latency_ms"
    scale: float = 1.0
    constant_ms: float = 0.0
    carries: Callable[[OpSpec], bool] | None = None
    space: SearchSpace | None = None
    visit_std_ms: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, Row] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", preferred(self.lut.rows()))

    def ops(self) -> tuple[OpSpec, ...]:
        """Return the ops to write: all of the preset, or all there are; call overheads are none of them."""
        if self.space is not None:
            return self.space.ops()
        return tuple(row.op for row in self.rows.values() if not _is_overhead(row))

    def cell(self, op: OpSpec) -> Cell:
        """Return what the file gets of `op`. Raises OpNotInLut."""
        row = self.rows.get(op.op_id)
        value = None if row is None else self._value(row)
        if row is None or value is None:
            raise self._missing([op])
        std_ms = row.imported_std_ms if row.imported_std_ms is not None else self.visit_std_ms.get(op.op_id)
        return Cell(
            value=value * self.scale + (self.constant_ms if self.carries is not None and self.carries(op) else 0.0),
            count=row.imported_count or row.n_visits or None,
            std_ms=None if std_ms is None else std_ms * self.scale,
        )

    def has(self, op: OpSpec) -> bool:
        """Whether there is a value for `op`."""
        row = self.rows.get(op.op_id)
        return row is not None and self._value(row) is not None

    def require(self, ops: Iterable[OpSpec], *, also: str | None = None) -> None:
        """Raise OpNotInLut listing the ops that have no value here, or none in the column `also`."""
        ops = tuple(ops)
        missing = [op for op in ops if not self.has(op)]
        if missing:
            raise self._missing(missing)
        if also is not None:
            without = [op for op in ops if getattr(self.rows[op.op_id], also) is None]
            if without:
                raise self._missing(without, also)

    def by_resolution(self) -> dict[int, tuple[OpSpec, ...]]:
        """Return the ops of the preset by the value of its variable `r`. Raises SpecError for a space without it."""
        space = self.space
        if space is None or "r" not in space.positions:
            raise SpecError(
                "this format is a file a resolution: name a preset that has resolutions, like --preset ofa_mbv3-w1.2"
            )
        found: dict[int, dict[OpSpec, None]] = {int(r): {} for r in space.variables[space.positions["r"]].values}
        for site, ops in zip(space.sites, space.site_ops, strict=True):
            values = [space.variables[space.positions[name]].values for name in site.scope]
            for cell, op in zip(itertools.product(*values), ops, strict=True):
                chosen = dict(zip(site.scope, cell, strict=True)).get("r")
                for r in found if chosen is None else (int(chosen),):
                    if op is not None:
                        found[r][op] = None
        return {r: tuple(ops) for r, ops in found.items()}

    def _missing(self, ops: Sequence[OpSpec], column: str | None = None) -> OpNotInLut:
        named = ", ".join(op.label() for op in ops[:_LISTED])
        more = f" and {len(ops) - _LISTED} more" if len(ops) > _LISTED else ""
        space = None if self.space is None else self.space.name
        lacking = (
            f"or measure them: {self.lut.command()}"
            if space is None
            else "all that has no row at all, and how to measure it: "
            f"{shlex.join(['lutbuilder', 'spaces', 'coverage', space, self.lut.spec])}"
        )
        return OpNotInLut(
            f"{self.lut.name}@{self.lut.version} has no {column or self.column} of the evidence asked for, of "
            f"{len(ops)} ops: {named}{more}. Write what is not measured, too: --evidence measured,imported; {lacking}"
        )

    def _value(self, row: Row) -> float | None:
        value = getattr(row, self.column)
        return None if value is None else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an exporter made: bytes by file name, a single file under the name "", and the ops that are in them."""

    contents: Mapping[str, bytes]
    ops: tuple[OpSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A published format. `read` takes a file and what the user knows, `write` a page of rows.

    `options` are the fields of ReadOptions that mean something here, beside method and drop_invalid; `files` is what to
    look for in a folder; `preset` is the network it was made for, `whole` if a file always holds all of it; `column` is
    what it holds, `carries` the op that has what a network pays once, `spread` if it holds counts and deviations;
    `pickled` formats are written only on demand.
    """

    name: str
    summary: str
    read: Callable[[Source, ReadOptions], Reading]
    write: Callable[[Page], Written]
    options: tuple[str, ...] = ()
    files: str = "*"
    preset: str | None = None
    column: str = "latency_ms"
    carries: Callable[[OpSpec], bool] | None = None
    whole: bool = False
    spread: bool = False
    pickled: bool = False


def visit_std_ms(op_ids: Iterable[str], samples_ns: Iterable[Iterable[int]]) -> dict[str, float]:
    """Return the standard deviation of an op's visits in ms, by op_id; one visit has none. A visit is its median."""
    visits: dict[str, list[float]] = {}
    for op_id, samples in zip(op_ids, samples_ns, strict=True):
        visits.setdefault(op_id, []).append(float(np.median(np.fromiter(samples, dtype=np.float64))))
    return {op_id: float(np.std(values)) / 1e6 for op_id, values in visits.items() if len(values) > 1}


def _is_overhead(row: Row) -> bool:
    """Whether a row is the cost of an empty call, not of a layer: published skip layers are identities, too."""
    return row.kind == "identity" and row.evidence != "imported"
