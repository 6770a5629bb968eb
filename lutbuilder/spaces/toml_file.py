"""A search space described in a TOML file: variables, and sites whose fields may be expressions over them.

Channels and maps follow from one site to the next, and a site's scope is whatever its op turns out to depend on: the
file says neither. docs/spaces.md shows the format. Every error names file, key and value.
"""

from __future__ import annotations

import itertools
import keyword
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from lutbuilder.op import OpKind, OpSpec, make_divisible
from lutbuilder.spaces.expressions import FUNCTIONS, Expression
from lutbuilder.spaces.space import Assignment, Condition, SearchSpace, Site, Value, Variable
from lutbuilder_agent.errors import SpecError, UnknownName

_T = TypeVar("_T")
_MAX_CELLS = 200_000  # assignments of what one site depends on
_MAX_REPEAT = 1000
_COPY = "{i}"  # in a repeated entry: the number of the copy, from 1
_FLOW = ("in_channels", "height", "width")  # what a site takes
_SIZES = ("channels", "resolution", "height", "width")  # of the input
_BLOCKS = ("mbconv", "bottleneck")
# An op's fields with what they are where the file leaves them out (see `_usual`), in the order in which they are worked
# out: an expression may read those before its own.
_FIELDS: Mapping[str, int | bool] = {
    "out_channels": 0, "expand": 0, "mid_channels": 0, "kernel": 1, "stride": 1, "padding": -1, "groups": 1,
    "w_bits": 32, "a_bits": 32, "se": False, "se_channels": 0, "residual": False, "shortcut": False,
    "expand_conv": False,
}  # fmt: skip  # one list, three lines
_SITE_KEYS = ("name", "stage", "repeat", "when", "kind", "act", *_FIELDS)
_RESERVED = {*_FLOW, *_FIELDS, *FUNCTIONS, *keyword.kwlist}


def load(path: str, *, batch: int = 1) -> SearchSpace:
    """Return the space of a file, named by its path as given, with its ops at `batch`.

    Raises UnknownName if there is no such file, SpecError if it cannot be read or describes no space.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UnknownName(f"no file {path}; `lutbuilder spaces` lists the spaces that have a name") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    return parse(text, name=path, batch=batch)


def parse(text: str, *, name: str, batch: int = 1) -> SearchSpace:
    """Return the space that a TOML text describes, its ops at `batch`. Raises SpecError naming key and value."""
    with _at(name):
        body = _toml(text)
        _check_keys(body, ("input", "variables", "sites", "constraints"))
        variables = tuple(_variables(_typed(body, "variables", dict, {})))
        with _at("input"):
            chain = _Chain(variables=variables, batch=batch, flow=_input(_typed(body, "input", dict), variables))
        for number, site in enumerate(_typed(body, "sites", list, []), start=1):
            with _at(f"sites, number {number}"):
                if not isinstance(site, dict):
                    raise SpecError(f"a site is a table, got {site!r}")
                _check_keys(site, _SITE_KEYS)
                for copy in _copies(site):
                    chain.append(copy)
        unread = [variable.name for variable in variables if variable.name not in chain.read]
        if unread:
            raise SpecError(f"variables.{unread[0]}: no site reads it, so it would make equal networks look different")
        return SearchSpace(
            name=name,
            variables=variables,
            sites=tuple(chain.sites),
            constraints=tuple(_constraints(_typed(body, "constraints", list, []), variables)),
        )


def _toml(text: str) -> dict[str, Any]:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        values: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(f"not TOML: {error}") from error
    return values


# --- Variables and constraints


def _variables(entries: Mapping[str, Any]) -> list[Variable]:
    known: list[Variable] = []
    for name, entry in entries.items():
        with _at(f"variables.{name}"):
            table = entry if isinstance(entry, dict) else {"values": entry}
            _check_keys(table, ("values", "active_when", "repeat"))
            for copy in _copies({**table, "name": name}):
                known.append(_variable(copy, known))
    return known


def _variable(entry: Mapping[str, Any], known: Sequence[Variable]) -> Variable:
    name, values = str(entry["name"]), _typed(entry, "values", list)
    if not (name.isidentifier() and name.isascii()) or name in _RESERVED:
        raise SpecError(f"{name!r} cannot name a variable: letters, digits and _ only, and no word of the format")
    if any(name == other.name for other in known):
        raise SpecError(f"a second variable {name!r}")
    if not values or not all(type(value) in (int, float, str) for value in values):
        raise SpecError(f"values must be a list of numbers or texts, at least one, got {values!r}")
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise SpecError(f"values must be finite, got {values!r}")
    if len(set(values)) != len(values):
        raise SpecError(f"values must differ, got {values!r}")
    gate = _condition("active_when", entry["active_when"], known) if "active_when" in entry else None
    return Variable(name=name, values=tuple(values), active_when=gate)


def _constraints(texts: Sequence[Any], variables: Sequence[Variable]) -> Iterator[Condition]:
    for number, text in enumerate(texts, start=1):
        yield _condition(f"constraints, number {number}", text, variables)


def _condition(key: str, text: object, variables: Sequence[Variable]) -> Condition:
    expression = _given(key, text, [variable.name for variable in variables])
    if not isinstance(expression, Expression):
        raise SpecError(f"{key} must be an expression in quotes, got {text!r}")
    members = [variable for variable in variables if variable.name in expression.names]
    for assignment in _assignments(members):
        _value(key, expression, assignment)  # whatever has no value is found while the file is read
    return Condition(scope=tuple(variable.name for variable in members), holds=partial(_holds, expression))


def _holds(expression: Expression, assignment: Assignment) -> bool:
    return bool(expression.value(assignment))


# --- Sites


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table(Generic[_T]):
    """A value for every assignment of `names`, by their values in that order."""

    names: tuple[str, ...]
    rows: Mapping[tuple[Value, ...], _T]

    def least(self) -> _Table[_T]:
        """Return the same values by those names alone that they depend on."""
        names, rows = self.names, dict(self.rows)
        for name in self.names:
            place = names.index(name)
            fewer: dict[tuple[Value, ...], _T] = {}
            if all(fewer.setdefault((*key[:place], *key[place + 1 :]), value) == value for key, value in rows.items()):
                names, rows = (*names[:place], *names[place + 1 :]), fewer
        return _Table(names=names, rows=rows)


# A module-level function under `partial`, not a bound method: a supernet that holds the space can be pickled.
def _at_assignment(table: _Table[_T], assignment: Mapping[str, Any]) -> _T:
    return table.rows[tuple([assignment[name] for name in table.names])]


_Shape = tuple[int, int, int]  # channels, height, width


@dataclass(kw_only=True)
class _Chain:
    """Sites in execution order; `flow` is what the next one takes, `read` the variables input and sites mention."""

    variables: tuple[Variable, ...]
    batch: int
    flow: _Table[_Shape]
    sites: list[Site] = field(default_factory=list)
    read: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.read.update(self.flow.names)
        self.flow = self.flow.least()

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add the site that `entry` describes."""
        name = _typed(entry, "name", str)
        with _at(f"{name!r}"):
            stage, kind, act = (_typed(entry, key, str, usual) for key, usual in _WORDS.items())
            if {"expand", "mid_channels"} <= set(entry) or ("expand" in entry and kind not in _BLOCKS):
                raise SpecError(f"expand goes with {' and '.join(_BLOCKS)}, instead of mid_channels")
            given = self._formulas(entry)
            names = {word for value in given.values() if isinstance(value, Expression) for word in value.names}
            members = [v for v in self.variables if v.name in names or v.name in self.flow.names]
            ops: dict[tuple[Value, ...], OpSpec | None] = {}
            shapes: dict[tuple[Value, ...], _Shape] = {}
            for assignment in _assignments(members):
                cell = tuple(assignment.values())
                shapes[cell] = _at_assignment(self.flow, assignment)
                ops[cell] = op = self._op(kind, act, given, assignment, shapes[cell])
                if op is not None:
                    shapes[cell] = (op.out_channels, op.out_height, op.out_width)
            scope = tuple(variable.name for variable in members)
            chosen = _Table(names=scope, rows=ops).least()
            self.flow = _Table(names=scope, rows=shapes).least()
            self.read.update(scope)
            self.sites.append(Site(name=name, scope=chosen.names, op=partial(_at_assignment, chosen), stage=stage))

    def _formulas(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        known = [*(variable.name for variable in self.variables), *_FLOW]
        formulas = {"when": _given("when", entry.get("when", True), known)}
        for key in _FIELDS:
            if key in entry:
                formulas[key] = _given(key, entry[key], known)
            known.append(key)
        return formulas

    def _op(
        self, kind: str, act: str, given: Mapping[str, Any], assignment: Assignment, shape: _Shape
    ) -> OpSpec | None:
        there: dict[str, Any] = {**assignment, **dict(zip(_FLOW, shape, strict=True))}
        if not _value("when", given["when"], there):
            return None
        for key in _FIELDS:
            there[key] = _value(key, given[key], there) if key in given else _usual(key, kind, there)
        fields = {key: there[key] for key in (*_FLOW, *_FIELDS) if key != "expand"}
        try:
            return OpSpec(kind=cast(OpKind, kind), act=act, batch=self.batch, **fields)  # OpSpec checks the kind
        except SpecError as error:
            where = ", ".join(f"{name} = {value!r}" for name, value in assignment.items())
            raise SpecError(f"{error}{f' (where {where})' if where else ''}") from error


_WORDS: Mapping[str, str | None] = {"stage": "", "kind": None, "act": "none"}  # a site's texts; None: must be there


def _usual(key: str, kind: str, there: Mapping[str, Any]) -> Any:
    """Return what a field is that the file leaves out: blocks add their input where they can."""
    if key == "out_channels":
        return there["in_channels"]
    if key == "mid_channels" and there["expand"]:
        return make_divisible(round(there["in_channels" if kind == "mbconv" else "out_channels"] * there["expand"]))
    if key == "residual" and kind in _BLOCKS:
        return there["stride"] == 1 and there["in_channels"] == there["out_channels"]
    if key == "shortcut" and kind == "bottleneck":
        return not there["residual"]
    return _FIELDS[key]


def _input(entry: Mapping[str, Any], variables: Sequence[Variable]) -> _Table[_Shape]:
    """Return the shape of the picture by the variables it depends on."""
    _check_keys(entry, ("channels", "resolution", "height", "width"))
    sides = ("resolution", "resolution") if "resolution" in entry else ("height", "width")
    missing = [key for key in sides if key not in entry]
    if missing or ("resolution" in entry and {"height", "width"} & set(entry)):
        raise SpecError("it has a resolution, or else a height and a width")
    names = [variable.name for variable in variables]
    keys = ("channels", *sides)
    given = [_given(key, entry.get(key, 3), names) for key in keys]
    read = {name for value in given if isinstance(value, Expression) for name in value.names}
    members = [variable for variable in variables if variable.name in read]
    rows: dict[tuple[Value, ...], _Shape] = {}
    for assignment in _assignments(members):
        shape = [_value(key, value, assignment) for key, value in zip(keys, given, strict=True)]
        if min(shape) < 1:
            raise SpecError(f"channels and sides must be positive, got {shape} where {dict(assignment)}")
        rows[tuple(assignment.values())] = cast(_Shape, tuple(shape))
    return _Table(names=tuple(variable.name for variable in members), rows=rows)


# --- Keys and values


def _given(key: str, value: Any, known: Sequence[str]) -> Any:
    """Return a constant, or the Expression that a text is. Raises SpecError for an unknown name or another type."""
    with _at(f"{key} = {value!r}"):
        if not isinstance(value, str):
            return _checked(key, value)
        expression = Expression(value)
        unknown = sorted(expression.names.difference(known))
        if unknown:
            raise SpecError(f"no {unknown[0]!r} here; there are: {', '.join(known)}")
        return expression


def _value(key: str, given: Any, there: Mapping[str, Any]) -> Any:
    """Return the value of a constant or an Expression, of the type that `key` wants."""
    if not isinstance(given, Expression):
        return given
    with _at(f"{key} = {given.text!r}"):
        return _checked(key, given.value(there))


def _checked(key: str, value: Any) -> Any:
    kinds: tuple[type, ...]
    if key == "expand":
        wanted, kinds = "a number", (int, float)
    elif key in _SIZES or type(_FIELDS.get(key)) is int:
        wanted, kinds = "a whole number", (int,)
    else:
        wanted, kinds = "true or false", (bool,)
    if type(value) not in kinds:
        raise SpecError(f"it must be {wanted}, got {value!r}")
    return value


def _assignments(members: Sequence[Variable]) -> Iterator[dict[str, Value]]:
    """Return every assignment of `members`. Raises SpecError if there are too many."""
    count = math.prod(len(variable.values) for variable in members)
    if count > _MAX_CELLS:
        names = ", ".join(variable.name for variable in members)
        raise SpecError(f"depends on {names}, which have {count:,} combinations; {_MAX_CELLS:,} are the most")
    members = tuple(members)
    cells = itertools.product(*(variable.values for variable in members))
    return ({variable.name: value for variable, value in zip(members, cell, strict=True)} for cell in cells)


def _copies(entry: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield the entry, once for every number of its `repeat`."""
    if "repeat" not in entry:
        lost = [key for key, value in entry.items() if isinstance(value, str) and _COPY in value]
        if lost:
            raise SpecError(f"{lost[0]} = {entry[lost[0]]!r}: {_COPY} needs a repeat")
        return [entry]
    repeat = entry["repeat"]
    if type(repeat) is not int or not 1 <= repeat <= _MAX_REPEAT:
        raise SpecError(f"repeat must be a whole number from 1 to {_MAX_REPEAT}, got {repeat!r}")
    rest = {key: value for key, value in entry.items() if key != "repeat"}
    return [
        {key: value.replace(_COPY, str(i)) if isinstance(value, str) else value for key, value in rest.items()}
        for i in range(1, repeat + 1)
    ]


def _check_keys(entry: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            raise SpecError(f"unknown key {key!r} = {entry[key]!r}; known: {', '.join(known)}")


def _typed(entry: Mapping[str, Any], key: str, kind: type[_T], usual: _T | None = None) -> _T:
    value = entry.get(key, usual)
    if value is None:
        raise SpecError(f"{key} is missing")
    if type(value) is not kind:
        raise SpecError(f"{key} must be a {_CALLED[kind]}, got {value!r}")
    return value


_CALLED: Mapping[type, str] = {dict: "table", list: "list", str: "text"}


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Put in front of what goes wrong inside where it was."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
