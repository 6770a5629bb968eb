"""A space in a few lines for people: its stages, and its variables put together where they are alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike

from lutbuilder.op import OpSpec
from lutbuilder.spaces.space import SearchSpace, Site, Value, Variable


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Neighbouring sites of one `Site.stage`; a site without one is a stage of its own.

    channels and map: what the first site takes and the last one gives, e.g. "16..24 -> 24..32" and "112 -> 56".
    reads: names of variables, neighbours joined as in "k1..k4". n_optional: sites at which some archs run nothing.
    """

    name: str
    n_sites: int
    n_optional: int
    channels: str
    map: str
    reads: tuple[str, ...]
    n_ops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Variables of one kind with equal values. names: neighbours joined. n_gated: those that matter only sometimes."""

    names: tuple[str, ...]
    count: int
    values: tuple[Value, ...]
    n_gated: int
    gates: tuple[str, ...]


def stages(space: SearchSpace) -> tuple[Stage, ...]:
    """Return the stages of a space in execution order."""
    found = zip(space.sites, space.site_ops, strict=True)
    runs = groupby(found, key=lambda pair: pair[0].stage or pair[0].name)
    return tuple(_stage(space, name, list(members)) for name, members in runs)


def choices(space: SearchSpace) -> tuple[Choice, ...]:
    """Return the variables of a space, those that differ in a number at the end of their name alone put together."""
    alike: dict[tuple[str, tuple[Value, ...]], list[Variable]] = {}
    for variable in space.variables:
        alike.setdefault((_split(variable.name)[0], variable.values), []).append(variable)
    return tuple(
        Choice(
            names=joined(variable.name for variable in members),
            count=len(members),
            values=values,
            n_gated=sum(variable.active_when is not None for variable in members),
            gates=joined(dict.fromkeys(name for v in members if v.active_when for name in v.active_when.scope)),
        )
        for (_, values), members in alike.items()
    )


def arch_text(space: SearchSpace, encoding: ArrayLike) -> str:
    """Return an arch in a line: values of variables that differ in their number together, - where one is inactive."""
    row = np.asarray(encoding)
    idle = {number for number, gate in space.gates if not gate.values[tuple(row[v] for v in gate.scope)]}
    alike: dict[tuple[str, bool], list[tuple[int, str, str]]] = {}
    for number, (name, value) in enumerate(space.decode(row).items()):
        head, place = _split(name)
        alike.setdefault((head, place is None), []).append((place or 0, name, "-" if number in idle else str(value)))
    return " ".join(
        f"{','.join(joined(name for _, name, _ in members))}={','.join(value for _, _, value in members)}"
        for members in map(sorted, alike.values())
    )


def joined(names: Iterable[str]) -> tuple[str, ...]:
    """Return names that differ in a number at their end alone together, runs of numbers joined: "k1..k3", "e1"."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        head, number = _split(name)
        numbers.setdefault(head, []).extend([] if number is None else [number])
    return tuple(word for head, found in numbers.items() for word in _runs(head, sorted(found)))


def _runs(head: str, numbers: Sequence[int]) -> Iterator[str]:
    if not numbers:
        yield head
    for _, run in groupby(enumerate(numbers), key=lambda place: place[1] - place[0]):
        members = [f"{head}{number}" for _, number in run]
        yield from members if len(members) < 3 else [f"{members[0]}..{members[-1]}"]


def listed(values: Sequence[Value], most: int = 12) -> str:
    """Return values as one text; of more than `most` the first three and the last."""
    if len(values) <= most:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[:3]))}, ... {values[-1]} ({len(values)} values)"


def _stage(space: SearchSpace, name: str, members: Sequence[tuple[Site, tuple[OpSpec | None, ...]]]) -> Stage:
    ops = {op for _, chosen in members for op in chosen if op is not None}
    first = [op for op in members[0][1] if op is not None]
    last = [op for op in members[-1][1] if op is not None]
    takes = {(op.height, op.width) for op in first}
    gives = {(op.out_height, op.out_width) for op in last}
    return Stage(
        name=name,
        n_sites=len(members),
        n_optional=sum(None in chosen for _, chosen in members),
        channels=f"{_span({op.in_channels for op in first})} -> {_span({op.out_channels for op in last})}",
        map=f"{_extent(takes)} -> {_extent(gives)}",
        reads=joined(sorted({name for site, _ in members for name in site.scope}, key=space.positions.__getitem__)),
        n_ops=len(ops),
    )


def _extent(maps: set[tuple[int, int]]) -> str:
    rows, columns = _span({row for row, _ in maps}), _span({column for _, column in maps})
    return rows if all(row == column for row, column in maps) else f"{rows} x {columns}"


def _span(numbers: set[int]) -> str:
    if not numbers:
        return "-"  # nothing ever runs there
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)}..{max(numbers)}"


def _split(name: str) -> tuple[str, int | None]:
    """Return a name without the number at its end, and the number."""
    found = re.fullmatch(r"(.*?)([0-9]{1,9})", name)
    return (found[1], int(found[2])) if found else (name, None)
