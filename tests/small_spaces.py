"""Strategies for search spaces small enough to list: gates (chains too), constraints, failed ops, any scopes.

What a clever algorithm answers about a space from here is compared with `every_arch` and the plain sum over its ops.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from lutbuilder.nas.compiled import FunctionTable
from lutbuilder.op import OpSpec
from lutbuilder.spaces import Assignment, Condition, SearchSpace, Site, Variable
from tests.worked_example import conv


@st.composite
def small_spaces(
    draw: st.DrawFn, *, max_variables: int = 5, max_values: int = 3, max_sites: int = 4, constrained: bool = True
) -> SearchSpace:
    """Any small space that keeps the promises of SearchSpace; every cell of every site is another op, or None.

    The values of a variable are 0, 1, ...: an encoding and its assignment look alike. No arch at all may be allowed.
    """
    sizes = draw(st.lists(st.integers(1, max_values), min_size=1, max_size=max_variables))
    names = [f"v{number}" for number in range(len(sizes))]

    def condition(candidates: list[str]) -> Condition:
        scope = tuple(draw(st.lists(st.sampled_from(candidates), unique=True, min_size=1, max_size=2)))
        shape = [sizes[names.index(name)] for name in scope]
        # Mostly true, so that most spaces have archs.
        truth = draw(st.lists(st.integers(0, 3), min_size=math.prod(shape), max_size=math.prod(shape)))
        table = np.array(truth).reshape(shape) > 0
        return Condition(scope=scope, holds=lambda a: bool(table[tuple(int(a[name]) for name in scope)]))

    variables = tuple(
        Variable(
            name=name,
            values=tuple(range(size)),
            active_when=condition(names[:number]) if number and draw(st.booleans()) else None,
        )
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    )
    gates = {variable.name: variable.active_when for variable in variables}

    def with_gates(scope: set[str]) -> tuple[str, ...]:
        """The scope and what its variables are gated by, so that a site knows when one of them is inactive."""
        for name in reversed(names):
            gate = gates[name]
            if name in scope and gate is not None:
                scope |= set(gate.scope)
        return tuple(draw(st.permutations(sorted(scope))))

    def site(number: int) -> Site:
        chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
        scope = with_gates(set(chosen))
        nothing = draw(st.integers(0, 6))

        def op(a: Assignment) -> OpSpec | None:
            values: dict[str, int] = {}
            for name in names:  # a gate looks at earlier variables only
                if name in scope:
                    gate = gates[name]
                    active = gate is None or gate.holds({other: values[other] for other in gate.scope})
                    values[name] = int(a[name]) if active else 0
            cell = 0
            for name in scope:
                cell = cell * max_values + (values[name] if name in chosen else 0)
            return None if cell % 7 == nothing else conv(number + 1, 1 + cell)

        return Site(name=f"site{number}", scope=scope, op=op)

    return SearchSpace(
        name="small",
        variables=variables,
        sites=tuple(site(number) for number in range(draw(st.integers(1, max_sites)))),
        constraints=tuple(condition(names) for _ in range(draw(st.integers(0, 2)) if constrained else 0)),
    )


@st.composite
def priced_spaces(
    draw: st.DrawFn, *, whole: bool = False, failing: bool = True, constrained: bool = True, **limits: int
) -> tuple[SearchSpace, FunctionTable]:
    """A small space and a table of random costs for it: whole numbers of ms from 0 to 8, or anything from 0 to 1 ms.

    With `failing`, in half of the tables about a tenth of the ops failed.
    """
    space = draw(small_spaces(constrained=constrained, **limits))
    seed = draw(st.integers(0, 2**32))
    fails = failing and draw(st.booleans())

    def drawn(op: OpSpec, purpose: int) -> np.random.Generator:
        return np.random.default_rng([seed, purpose, op.in_channels, op.out_channels])

    def cost(op: OpSpec) -> float:
        return float(drawn(op, 0).integers(0, 9)) if whole else float(drawn(op, 0).random())

    def runs(op: OpSpec) -> bool:
        return not fails or float(drawn(op, 1).random()) > 0.1

    return space, FunctionTable(name="priced", cost=cost, runs=runs)


def every_encoding(space: SearchSpace) -> NDArray[np.int16]:
    """All combinations of value numbers, canonical or not, allowed or not; shape (product of sizes, n_variables)."""
    return np.array(list(itertools.product(*map(range, space.sizes))), dtype=np.int16)


def every_arch(space: SearchSpace) -> NDArray[np.int16]:
    """Every arch of the space once, as canonical encodings in ascending order; shape (n_archs, n_variables)."""
    rows = np.unique(space.canonical(every_encoding(space)), axis=0)
    return rows[space.allowed(rows)]


def plain_cost(space: SearchSpace, table: FunctionTable, arch: NDArray[Any]) -> float:
    """The plain sum over the ops of one arch, call overhead included; +inf where one failed."""
    ops = space.arch_ops(arch)
    return sum(table.cost(op) if table.runs(op) else math.inf for op in ops) + (table.call_overhead_ms or 0.0)
