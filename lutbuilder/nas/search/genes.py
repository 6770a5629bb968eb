"""How archs vary: which variables change together, mutation and crossover of whole populations, canonical throughout.

A variable that is inactive has no value of its own (it is pinned to its first). Where a child's depth makes it active,
it takes the value of the parent in which it was active, or is drawn anew: pinned values never leak into a deeper arch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder.spaces import SearchSpace
from lutbuilder.spaces.eliminate import Factor
from lutbuilder_agent.errors import SpecError, UnknownName

Archs = NDArray[Any]  # encodings, (N, n_variables), of `encoding_dtype`
OFA_RATES: Mapping[str, float] = {"r": 0.5}  # resolution changes more often than a layer does


def encoding_dtype(space: SearchSpace) -> np.dtype[Any]:
    """Return the narrowest integer type that holds every value number of `space`."""
    return np.dtype(np.int8 if max(space.sizes, default=0) <= 128 else np.int16)


def genes_of(space: SearchSpace) -> tuple[tuple[str, ...], ...]:
    """Return the variables of `space` in genes: those that enter the very same sites change together.

    A layer's kernel and expansion are one gene, a stage's depth or the resolution one each. Source: the mutation of
    Cai et al., Once-for-All, ICLR 2020, appendix.
    """
    sites: dict[str, tuple[int, ...]] = {
        variable.name: tuple(number for number, site in enumerate(space.sites) if variable.name in site.scope)
        for variable in space.variables
    }
    genes: dict[tuple[int, ...], list[str]] = {}
    for name, where in sites.items():
        genes.setdefault(where, []).append(name)
    return tuple(tuple(names) for names in genes.values())


def layer_genes(space: SearchSpace) -> tuple[tuple[str, ...], ...]:
    """Return the variables of `space` in genes of one layer each: those whose names end in the same number.

    A variable that decides whether others are active (a depth) stays alone, and so does one without a number. This is
    how APQ mutates: kernel, width and all four bit widths of a layer at once. Source: Wang et al., APQ, CVPR 2020.
    """
    deciding = {name for v in space.variables if v.active_when is not None for name in v.active_when.scope}
    genes: dict[str, list[str]] = {}
    for variable in space.variables:
        number = re.search(r"[0-9]+$", variable.name)
        alone = number is None or variable.name in deciding
        genes.setdefault(variable.name if alone or number is None else number[0], []).append(variable.name)
    return tuple(tuple(names) for names in genes.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Genome:
    """The genes of a space and the probability with which each mutates. Immutable; safe from any thread.

    `another`: a variable that mutates takes another value than it had; without it any value, its own included.
    """

    space: SearchSpace
    genes: tuple[tuple[str, ...], ...]
    rates: tuple[float, ...]
    another: bool = False

    def __post_init__(self) -> None:
        named = [name for gene in self.genes for name in gene]
        if sorted(named) != sorted(self.space.positions) or len(self.rates) != len(self.genes):
            raise SpecError(
                f"the genes of {self.space.name!r} hold each of its variables once and have a rate each; "
                f"got {len(self.genes)} genes of {len(named)} variables and {len(self.rates)} rates"
            )
        wrong = [rate for rate in self.rates if not 0 < rate <= 1]
        if wrong:
            raise SpecError(f"a mutation rate is above 0 and at most 1, got {wrong[0]:g}")

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        *,
        genes: Sequence[tuple[str, ...]] | None = None,
        rate: float = 0.1,
        rates: Mapping[str, float] | None = None,
        another: bool = False,
    ) -> Genome:
        """Return the genome of `space`: `genes_of` it unless `genes` says otherwise, each mutating at `rate`.

        `rates` gives the gene of a variable another rate; names the space does not have are ignored when `rates` is
        left out (then it is OFA's, 0.5 for the resolution). Raises UnknownName for others.
        """
        chosen = genes_of(space) if genes is None else tuple(genes)
        special = {n: r for n, r in OFA_RATES.items() if n in space.positions} if rates is None else dict(rates)
        strangers = [name for name in special if name not in space.positions]
        if strangers:
            known = ", ".join(space.positions)
            raise UnknownName(f"space {space.name!r} has no variable {strangers[0]!r}; known: {known}")
        of_gene = tuple(next((special[name] for name in gene if name in special), rate) for gene in chosen)
        return cls(space=space, genes=chosen, rates=of_gene, another=another)

    # --- Variation

    def mutated(self, parents: Archs, rng: np.random.Generator) -> Archs:
        """Return a child of each parent, canonical encodings of the same type and shape (N, n_variables)."""
        hit = (rng.random((len(parents), len(self.genes))) < self._gene_rates).take(self.gene_numbers, axis=1)
        draw = rng.random(parents.shape)
        fresh = (draw * self._sizes).astype(parents.dtype)
        chosen = fresh
        if self.another:  # 1 to size - 1 places further round; a variable of one value stays
            chosen = (parents + (1 + (draw * (self._sizes - 1)).astype(np.intp))) % self._sizes
        children = np.where(hit, chosen, parents).astype(parents.dtype, copy=False)
        return self._settled(children, fresh, self._awake(parents))

    def crossed(self, mothers: Archs, fathers: Archs, rng: np.random.Generator) -> Archs:
        """Return a child of each pair, every variable from either parent with probability 0.5, then made canonical."""
        of_mother = rng.integers(0, 2, size=mothers.shape, dtype=np.bool_)
        in_mother, in_father = self._awake(mothers), self._awake(fathers)
        drawn = of_mother[:, self._gated]
        of_mother[:, self._gated] = np.where(drawn, in_mother | ~in_father, in_mother & ~in_father)
        children = np.where(of_mother, mothers, fathers)
        fresh = children
        if self._wakes_anew:
            fresh = (rng.random(mothers.shape) * self._sizes).astype(mothers.dtype)
        return self._settled(children, fresh, in_mother | in_father)

    # --- Gates

    @cached_property
    def _levels(self) -> tuple[_Level, ...]:
        """Gated variables in the order their gates can be looked up: first those that only ungated variables gate."""
        depth: dict[int, int] = {}
        for number, gate in self.space.gates:  # a variable is gated by earlier ones only
            depth[number] = 1 + max((depth.get(v, 0) for v in gate.scope), default=0)
        return tuple(
            _Level.of([(n, gate) for n, gate in self.space.gates if depth[n] == level])
            for level in sorted(set(depth.values()))
        )

    @cached_property
    def _gated(self) -> NDArray[np.intp]:
        """Numbers of all gated variables, level after level."""
        return np.concatenate([np.empty(0, dtype=np.intp), *(level.numbers for level in self._levels)])

    @cached_property
    def _wakes_anew(self) -> bool:
        """Whether crossing can make a variable active that was so in neither parent: never behind a single gate."""
        return len(self._levels) > 1 or any(len(gate.scope) > 1 for _, gate in self.space.gates)

    def _awake(self, archs: Archs) -> NDArray[np.bool_]:
        """Return which of the gated variables are active in canonical archs, shape (N, n_gated)."""
        if not self._levels:
            return np.empty((len(archs), 0), dtype=np.bool_)
        return np.concatenate([level.active(archs) for level in self._levels], axis=1)

    def _settled(self, archs: Archs, fresh: Archs, had: NDArray[np.bool_]) -> Archs:
        """Make `archs` canonical, in place; a gated variable that wakes where it `had` no value takes the fresh one."""
        start = 0
        for level in self._levels:
            end = start + len(level.numbers)
            values = archs.take(level.numbers, axis=1)
            if not had[:, start:end].all():
                values = np.where(had[:, start:end], values, fresh.take(level.numbers, axis=1))
            archs[:, level.numbers] = values * level.active(archs)
            start = end
        return archs

    @cached_property
    def _sizes(self) -> NDArray[np.intp]:
        return np.array(self.space.sizes, dtype=np.intp)

    @cached_property
    def _gene_rates(self) -> NDArray[np.float64]:
        return np.array(self.rates)

    @cached_property
    def gene_numbers(self) -> NDArray[np.intp]:
        """The gene each variable belongs to, shape (n_variables,)."""
        home = {name: number for number, gene in enumerate(self.genes) for name in gene}
        return np.array([home[variable.name] for variable in self.space.variables], dtype=np.intp)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Level:
    """Gates looked up all at once: their tables end to end, and for each gate where an arch finds its element.

    Shapes: numbers and starts (n_gates,); scope and strides (longest scope, n_gates), stride 0 beyond a shorter scope.
    """

    numbers: NDArray[np.intp]
    scope: NDArray[np.intp]
    strides: NDArray[np.intp]
    starts: NDArray[np.intp]
    tables: NDArray[np.bool_]

    @classmethod
    def of(cls, gates: Sequence[tuple[int, Factor]]) -> _Level:
        longest = max(1, *(len(gate.scope) for _, gate in gates))
        scope = np.zeros((longest, len(gates)), dtype=np.intp)
        strides = np.zeros_like(scope)
        for column, (_, gate) in enumerate(gates):
            scope[: len(gate.scope), column] = gate.scope
            steps = np.cumprod([1, *gate.values.shape[:0:-1]])[::-1]  # the last variable varies fastest
            strides[: len(gate.scope), column] = steps[: len(gate.scope)]
        tables = [gate.values.ravel() for _, gate in gates]
        return cls(
            numbers=np.array([number for number, _ in gates], dtype=np.intp),
            scope=scope,
            strides=strides,
            starts=np.cumsum([0, *(table.size for table in tables[:-1])]),
            tables=np.concatenate(tables),
        )

    def active(self, archs: Archs) -> NDArray[np.bool_]:
        """Return each gate's answer for each arch, shape (N, n_gates)."""
        index = self.starts
        for variables, strides in zip(self.scope, self.strides, strict=True):
            index = index + archs.take(variables, axis=1) * strides
        return self.tables.take(index)
