"""SearchSpace: named variables, sites whose op is a pure function of a few of them, and what follows from the two.

An *assignment* maps variable names to values; an *encoding* is the row of value numbers of one arch, in the order of
the variables. Arrays of encodings have shape (N, n_variables).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutbuilder.op import OpSpec
from lutbuilder.spaces.eliminate import Factor, eliminate
from lutbuilder_agent.errors import ShapeError, SpecError, UnknownName

Value = int | float | str
Assignment = Mapping[str, Value]
_MAX_REDRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A predicate; `holds` gets an assignment of exactly the variables of `scope`."""

    scope: tuple[str, ...]
    holds: Callable[[Assignment], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A categorical choice. Where `active_when` fails it changes no op and is pinned to its first value."""

    name: str
    values: tuple[Value, ...]
    active_when: Condition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where one op is chosen; `op` gets an assignment of exactly `scope`. None: nothing runs, it costs 0.

    `stage` names the part of the network it belongs to, for people who read a listing; it is no part of a space's key.
    """

    name: str
    scope: tuple[str, ...]
    op: Callable[[Assignment], OpSpec | None]
    stage: str = ""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Variables, sites in execution order, and constraints every arch must keep. Immutable; safe from any thread.

    A constraint is looked at only where all its variables are active. A variable may be gated by earlier variables
    only, so that one pass makes an encoding canonical: then one network has one encoding.
    """

    name: str
    variables: tuple[Variable, ...]
    sites: tuple[Site, ...]
    constraints: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        _check_distinct(f"space {self.name!r}: sites", [site.name for site in self.sites])
        _check_distinct(f"space {self.name!r}: variables", [variable.name for variable in self.variables])
        known: set[str] = set()
        for variable in self.variables:
            _check_distinct(f"variable {variable.name!r}: values", variable.values)
            if variable.active_when is not None:
                _check_scope(f"variable {variable.name!r}: active_when", variable.active_when.scope, known)
            known.add(variable.name)
        for site in self.sites:
            _check_scope(f"site {site.name!r}", site.scope, known)
        for number, constraint in enumerate(self.constraints):
            _check_scope(f"constraint {number}", constraint.scope, known)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many values each variable has."""
        return tuple(len(variable.values) for variable in self.variables)

    @cached_property
    def _limits(self) -> NDArray[np.int64]:
        return np.array(self.sizes)

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Column of each variable in an encoding."""
        return {variable.name: number for number, variable in enumerate(self.variables)}

    @cached_property
    def key(self) -> str:
        """16 hex digits over variables, values, and every op of every site: equal keys, equal tables."""
        body = {
            "variables": [[variable.name, list(variable.values)] for variable in self.variables],
            "sites": [
                [site.name, list(site.scope), [op.op_id if op else None for op in ops]]
                for site, ops in zip(self.sites, self.site_ops, strict=True)
            ],
            "forbidden": [[list(f.scope), f.values.astype(int).ravel().tolist()] for f in self.forbidden],
        }
        return hashlib.sha256(json.dumps(body, separators=(",", ":")).encode()).hexdigest()[:16]

    # --- Ops

    @cached_property
    def site_ops(self) -> tuple[tuple[OpSpec | None, ...], ...]:
        """For each site its op under every assignment of its scope, the last variable of the scope varying fastest."""
        return tuple(tuple(site.op(a) for a in self._assignments(site.scope)) for site in self.sites)

    def ops(self) -> tuple[OpSpec, ...]:
        """Return the coverage: every distinct op some allowed arch can contain, in site order.

        Walks each site's own scope, never whole archs; what a constraint within that scope forbids is left out.
        """
        found: dict[OpSpec, None] = {}
        for site, ops in zip(self.sites, self.site_ops, strict=True):
            forbidden = self._forbidden_within(site.scope)
            found.update((op, None) for op, out in zip(ops, forbidden, strict=True) if op is not None and not out)
        return tuple(found)

    def arch_ops(self, encoding: ArrayLike) -> tuple[OpSpec, ...]:
        """Return the ops of one arch in execution order; a whole network for `lower_network`.

        Raises SpecError for an encoding that is out of range or breaks a constraint.
        """
        row = self.canonical(np.asarray(encoding)[None])[0]
        if not self.allowed(row[None])[0]:
            raise SpecError(f"space {self.name!r}: {self.decode(row)} breaks a constraint")
        values = self.decode(row)
        chosen = (site.op({name: values[name] for name in site.scope}) for site in self.sites)
        return tuple(op for op in chosen if op is not None)

    # --- Encodings

    def encode(self, assignment: Assignment) -> NDArray[np.int16]:
        """Return the canonical encoding, shape (n_variables,).

        Variables that are inactive, or have one value only, may be left out of `assignment`.
        Raises UnknownName for an unknown variable, SpecError for an unknown value or an active variable left out.
        """
        strangers = [name for name in assignment if name not in self.positions]
        if strangers:
            known = ", ".join(self.positions)
            raise UnknownName(f"space {self.name!r} has no variable {strangers[0]!r}; known: {known}")
        full = {variable.name: assignment.get(variable.name, variable.values[0]) for variable in self.variables}
        for variable in self.variables:
            if full[variable.name] not in variable.values:
                raise SpecError(f"{variable.name} is one of {variable.values}, got {full[variable.name]!r}")
            if not self._is_active(variable, full):
                full[variable.name] = variable.values[0]
            elif variable.name not in assignment and len(variable.values) > 1:
                raise SpecError(f"{variable.name} is active here and needs a value: one of {variable.values}")
        return np.array([v.values.index(full[v.name]) for v in self.variables], dtype=np.int16)

    def decode(self, encoding: ArrayLike) -> dict[str, Value]:
        """Return the assignment of one encoding, as it stands. Raises ShapeError, or SpecError out of range."""
        row = self._check_encodings(np.asarray(encoding)[None])[0]
        return {v.name: v.values[number] for v, number in zip(self.variables, row.tolist(), strict=True)}

    def canonical(self, archs: NDArray[Any]) -> NDArray[np.int16]:
        """Return the same networks with every inactive variable at its first value, shape (N, n_variables)."""
        fixed = self._check_encodings(archs).astype(np.int16)
        for number, active in self.gates:
            rows = active.values[tuple(fixed[:, v] for v in active.scope)]
            fixed[~rows, number] = 0
        return fixed

    def allowed(self, archs: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which canonical encodings keep every constraint, shape (N,)."""
        rows = self._check_encodings(archs)
        allowed = np.ones(len(rows), dtype=np.bool_)
        for factor in self.forbidden:
            allowed &= ~factor.values[tuple(rows[:, v] for v in factor.scope)]
        return allowed

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int16]:
        """Return `n` random canonical encodings: every variable uniform and independent, then depth-gated.

        Draws that break a constraint are drawn again. Raises SpecError if hardly any draw keeps them.
        """
        kept: list[NDArray[np.int16]] = [np.empty((0, len(self.sizes)), dtype=np.int16)]
        missing = n
        for _ in range(_MAX_REDRAWS):
            if missing <= 0:
                return np.concatenate(kept)[:n]
            draws = self.canonical(rng.integers(0, self.sizes, size=(missing, len(self.sizes))))
            kept.append(draws[self.allowed(draws)])
            missing -= len(kept[-1])
        raise SpecError(
            f"space {self.name!r}: {n - missing} of {n} archs keep its constraints after {_MAX_REDRAWS} redraws"
        )

    def n_archs(self) -> int:
        """Return the exact number of different networks, an unbounded integer."""
        ones = [Factor(scope=(number,), values=_as_counts(np.ones(size))) for number, size in enumerate(self.sizes)]
        gates = [Factor(scope=pin.scope, values=_as_counts(pin.values)) for pin in self.pins]
        allowed = [Factor(scope=f.scope, values=_as_counts(~f.values)) for f in self.forbidden]
        return int(eliminate([*ones, *gates, *allowed], combine=np.multiply, reduce=np.add))

    # --- Tables over scopes

    @cached_property
    def forbidden(self) -> tuple[Factor, ...]:
        """One boolean table a constraint: true where all its variables are active and it fails.

        Its scope is the constraint's and that of the gates of its variables, and of theirs, so that it says the same
        of an assignment and of its canonical form.
        """
        return tuple(self._forbidden_by(constraint) for constraint in self.constraints)

    def _forbidden_by(self, constraint: Condition) -> Factor:
        names = dict.fromkeys(constraint.scope)
        for variable in reversed(self.variables):  # gates are earlier variables, so one pass finds chains of them
            if variable.name in names and variable.active_when is not None:
                names.update(dict.fromkeys(variable.active_when.scope))
        members = [variable for variable in self.variables if variable.name in names]

        def broken(a: dict[str, Value]) -> bool:
            inactive = set()
            for variable in members:
                if not self._is_active(variable, a):
                    a[variable.name] = variable.values[0]
                    inactive.add(variable.name)
            active = inactive.isdisjoint(constraint.scope)
            return active and not constraint.holds({name: a[name] for name in constraint.scope})

        return self._factor(tuple(names), [broken(a) for a in self._assignments(tuple(names))])

    @cached_property
    def gates(self) -> tuple[tuple[int, Factor], ...]:
        """Each gated variable's number with the boolean table of when it is active."""
        return tuple(
            (number, self._factor(gate.scope, [bool(gate.holds(a)) for a in self._assignments(gate.scope)]))
            for number, gate in ((n, v.active_when) for n, v in enumerate(self.variables))
            if gate is not None
        )

    @cached_property
    def pins(self) -> tuple[Factor, ...]:
        """Which values each gated variable may have: any where it is active, the first alone where it is not."""
        return tuple(
            Factor(scope=(*gate.scope, number), values=gate.values[..., None] | (np.arange(self.sizes[number]) == 0))
            for number, gate in self.gates
        )

    def _forbidden_within(self, scope: tuple[str, ...]) -> list[bool]:
        """For every assignment of `scope`: does a constraint that lies wholly within it fail?"""
        columns = {self.positions[name]: number for number, name in enumerate(scope)}
        inside = [factor for factor in self.forbidden if set(factor.scope) <= columns.keys()]
        sizes = [self.sizes[v] for v in columns]
        if not inside:
            return [False] * math.prod(sizes)
        return [
            any(factor.values[tuple(cell[columns[v]] for v in factor.scope)] for factor in inside)
            for cell in itertools.product(*map(range, sizes))
        ]

    def _assignments(self, scope: tuple[str, ...]) -> Iterator[dict[str, Value]]:
        values = [self.variables[self.positions[name]].values for name in scope]
        return (dict(zip(scope, cell, strict=True)) for cell in itertools.product(*values))

    def _factor(self, scope: tuple[str, ...], cells: Sequence[bool]) -> Factor:
        numbers = tuple(self.positions[name] for name in scope)
        return Factor(scope=numbers, values=np.array(cells, dtype=np.bool_).reshape([self.sizes[n] for n in numbers]))

    def _is_active(self, variable: Variable, assignment: Assignment) -> bool:
        gate = variable.active_when
        return gate is None or bool(gate.holds({name: assignment[name] for name in gate.scope}))

    def _check_encodings(self, archs: NDArray[Any]) -> NDArray[Any]:
        if archs.ndim != 2 or archs.shape[1] != len(self.sizes) or archs.dtype.kind not in "iu":
            raise ShapeError(
                f"encodings of space {self.name!r} are integers of shape (N, {len(self.sizes)}), "
                f"got {archs.dtype} of shape {archs.shape}"
            )
        wrong = (archs < 0) | (archs >= self._limits)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            name, top = self.variables[column].name, self.sizes[column] - 1
            raise SpecError(f"arch {row}: {name} is a value number from 0 to {top}, got {archs[row, column]}")
        return archs


def _as_counts(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(int).astype(object)  # Python integers: the counts exceed 2^64


def _check_distinct(what: str, members: Sequence[object]) -> None:
    if not members or len(set(members)) != len(members):
        raise SpecError(f"{what}: at least one, each once; got {', '.join(map(str, members)) or 'none'}")


def _check_scope(what: str, scope: tuple[str, ...], known: set[str]) -> None:
    if len(set(scope)) != len(scope):
        raise SpecError(f"{what}: a variable is named twice in its scope {scope}")
    unknown = [name for name in scope if name not in known]
    if unknown:
        there = ", ".join(sorted(known)) or "none"
        raise SpecError(f"{what}: no variable {unknown[0]!r} before it; there are: {there}")
