"""Evolutionary search under hard limits: OFA's and APQ's by accuracy, AttentiveNAS's and AlphaNet's by latency bucket.

One loop serves them all: archs that keep every limit are scored, some are kept as parents, children are bred from them.
Everything but the accuracy function works on the whole population at once.
Sources: Cai et al., Once-for-All, ICLR 2020; Wang et al., APQ, CVPR 2020; Wang et al., AttentiveNAS, CVPR 2021; Wang et
al., AlphaNet, ICML 2021.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.compiled import Floats
from lutbuilder.nas.pareto import undominated
from lutbuilder.nas.search.genes import Archs, Genome
from lutbuilder.nas.search.limits import Limit, Limits, as_limits
from lutbuilder.nas.search.loop import OnProgress, Progress, drive
from lutbuilder.nas.search.scoring import Accuracy, Archive, accuracy_name, score
from lutbuilder.nas.search.state import Identity, Saved, StateFile, digest
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import SpecError

_ATTEMPTS = 20  # at breeding a generation; what is missing then is drawn from the whole feasible set
_SPARE = 1.2  # times as many candidates as the last generations needed, so that one attempt nearly always does
_MOST_CROSSED, _MOST_MUTATED = 4, 16  # candidates bred for one child that is wanted
_PACE = 0.3  # of what a generation says about how many candidates it takes
_CROSSED, _MUTATED = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult:
    """What a search found: encodings (n, n_variables), scores (n,), and costs (n_limits, n).

    In the order of its schedule: of Evolution best first, of ByBucket the cheapest bucket first. `history` holds every
    arch that was scored. `exhausted`: the search ended early, for every feasible arch was scored.
    """

    space: SearchSpace
    archs: Archs
    scores: Floats
    costs: Floats
    generations: int
    history: Archive
    exhausted: bool

    def front(self) -> NDArray[np.intp]:
        """Return the rows no other row beats in both score and first cost, cheapest first."""
        return np.asarray(undominated(self.costs[0], self.scores), dtype=np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(ABC):
    """How many archs a search begins with and breeds a generation; `keep` says which become parents."""

    first: int
    mutated: int
    crossed: int
    generations: int

    def __post_init__(self) -> None:
        if min(self.first, self.mutated + self.crossed) < 1 or min(self.mutated, self.crossed, self.generations) < 0:
            raise SpecError(
                f"a search begins with 1 or more archs and breeds 1 or more a generation; got {self.first} at first, "
                f"{self.mutated} mutated, {self.crossed} crossed, {self.generations} generations"
            )

    @abstractmethod
    def genome(self, space: SearchSpace) -> Genome:
        """Return how archs of `space` vary unless the caller says otherwise."""

    @abstractmethod
    def keep(self, scores: Floats, costs: Floats) -> NDArray[np.intp]:
        """Return which of the archs with these scores (n,) and first costs (n,) become parents, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evolution(Schedule):
    """OFA's and APQ's: the best archs ever scored are parents; of equal ones the cheaper."""

    first: int = 100
    mutated: int = 50
    crossed: int = 50
    generations: int = 500
    parents: int = 25

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if self.parents < 1:
            raise SpecError(f"an evolution keeps 1 or more parents, got {self.parents}")

    @classmethod
    def sized(cls, population: int, generations: int) -> Evolution:
        """Return the published proportions at another size: a quarter are parents, half the children are mutated."""
        half = population // 2
        return cls(
            first=population,
            parents=max(1, population // 4),
            mutated=population - half,
            crossed=half,
            generations=generations,
        )

    def genome(self, space: SearchSpace) -> Genome:
        """Return OFA's variation: a layer's variables together and a depth at 0.1, the resolution at 0.5."""
        return Genome.of(space)

    def keep(self, scores: Floats, costs: Floats) -> NDArray[np.intp]:
        """Return the best `parents`, best first."""
        return np.lexsort((costs, -scores))[: self.parents]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByBucket(Schedule):
    """AttentiveNAS's and AlphaNet's: the best arch of every bucket (cost in multiples of `step`) is a parent."""

    step: float
    first: int = 512
    mutated: int = 128
    crossed: int = 128
    generations: int = 20

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if not (math.isfinite(self.step) and self.step > 0):
            raise SpecError(f"a bucket is wider than 0, got {self.step:g}")

    @classmethod
    def sized(cls, population: int, generations: int, *, step: float) -> ByBucket:
        """Return the published proportions at another size: a quarter each of mutated and crossed children."""
        quarter = max(1, population // 4)
        return cls(first=population, mutated=quarter, crossed=quarter, generations=generations, step=step)

    def genome(self, space: SearchSpace) -> Genome:
        """Return AttentiveNAS's variation: every variable on its own at 0.2, to another value than it has."""
        alone = [(variable.name,) for variable in space.variables]
        return Genome.of(space, genes=alone, rate=0.2, rates={}, another=True)

    def keep(self, scores: Floats, costs: Floats) -> NDArray[np.intp]:
        """Return the best of each bucket, cheapest bucket first."""
        buckets = np.rint(costs / self.step)
        order = np.lexsort((costs, -scores, buckets))
        first = np.concatenate([[True], np.diff(buckets[order]) > 0])[: len(order)]
        return np.asarray(order[first])


def search(
    limits: Limits | Limit | Sequence[Limit],
    accuracy: Accuracy,
    how: Schedule | None = None,
    *,
    seed: int,
    genome: Genome | None = None,
    on_progress: OnProgress | None = None,
    state: StateFile | None = None,
) -> SearchResult:
    """Return the archs with the best `accuracy` that keep all limits, as far as `how` (default: OFA's) looks for them.

    The first archs are drawn exactly uniformly from those that keep the limits; every child that keeps them, and was
    not met before, is scored. Fixed by the arguments. With `state` a search that was killed continues from its last
    written generation and ends as if nothing had happened; a finished one can be continued for more generations.

    Raises Infeasible, naming the lowest cost, if no arch keeps the limits; SpecError or ShapeError for what
    `accuracy` or the state file does wrong. Warns LimitNeverBinds.
    """
    limits = as_limits(limits)
    limits.warn_if_loose()
    how = Evolution() if how is None else how
    genome = how.genome(limits.space) if genome is None else genome
    if genome.space.key != limits.space.key:
        raise SpecError(f"the genome is of space {genome.space.name!r}, the limits are of {limits.space.name!r}")
    run = _Run(limits, accuracy, how, genome, seed=seed)
    alive = drive(run, generations=how.generations, on_progress=on_progress, state=state)
    return run.result(exhausted=not alive)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pool:
    """The parents: archs with scores and costs, shapes (n, n_variables), (n,), (n_limits, n)."""

    archs: Archs
    scores: Floats
    costs: Floats

    def joined(self, archs: Archs, scores: Floats, costs: Floats) -> _Pool:
        return _Pool(
            archs=np.concatenate([self.archs, archs]),
            scores=np.concatenate([self.scores, scores]),
            costs=np.concatenate([self.costs, costs], axis=1),
        )

    def kept_by(self, how: Schedule) -> _Pool:
        rows = how.keep(self.scores, self.costs[0])
        return _Pool(archs=self.archs[rows], scores=self.scores[rows], costs=self.costs[:, rows])


class _Run:
    """A search between two generations. What it is made of is what a state file holds."""

    def __init__(self, limits: Limits, accuracy: Accuracy, how: Schedule, genome: Genome, *, seed: int) -> None:
        self._limits = limits
        self._accuracy = accuracy
        self._how = how
        self._genome = genome
        self._rng = np.random.default_rng(seed)
        self._archive = Archive(limits.space, len(limits.limits))
        self._pool = self._everything()
        self._yield = np.array([0.5, 0.5])  # new archs within the limits per candidate, of late: crossed, mutated
        self.generation = 0
        self.identity: Identity = {
            "method": type(how).__name__,
            "seed": seed,
            "accuracy function": accuracy_name(accuracy),
            **{field.name: getattr(how, field.name) for field in fields(how) if field.name != "generations"},
            "genes": digest(np.array(genome.rates), genome.gene_numbers, np.array(genome.another)),
            **limits.identity,
        }

    def begin(self) -> None:
        """Draw and score the first population."""
        drawn = self._drawn(self._how.first)
        self._take_in(drawn, self._limits.costs(drawn))

    def step(self) -> bool:
        """Breed, score and select once; return False if every feasible arch was scored.

        Of a set too large to list, children and draws may all have been met: then the generation has none.
        """
        archs, costs = self._children()
        if len(archs):
            self._take_in(archs, costs)
        elif self._limits.feasible.listed is not None:
            return False
        self.generation += 1
        return True

    def progress(self, generations: int) -> Progress:
        best = int(np.lexsort((self._pool.costs[0], -self._pool.scores))[0])
        return Progress(
            generation=self.generation,
            generations=generations,
            n_scored=len(self._archive),
            best_score=float(self._pool.scores[best]),
            best_cost=float(self._pool.costs[0, best]),
        )

    def result(self, *, exhausted: bool) -> SearchResult:
        return SearchResult(
            space=self._limits.space,
            archs=self._pool.archs,
            scores=self._pool.scores,
            costs=self._pool.costs,
            generations=self.generation,
            history=self._archive,
            exhausted=exhausted,
        )

    def saved(self) -> Saved:
        everything = self._everything()
        return Saved(
            generation=self.generation,
            rng=self._rng.bit_generator.state,
            arrays={
                "archs": everything.archs,
                "scores": everything.scores,
                "costs": everything.costs,
                "yield": self._yield.copy(),
            },
        )

    def restore(self, saved: Saved) -> None:
        self.generation = saved.generation
        self._rng.bit_generator.state = saved.rng
        self._yield = saved.arrays["yield"]
        self._archive.restore(saved.arrays["archs"], saved.arrays["scores"], saved.arrays["costs"])
        # Selecting from all archs at once gives what selecting generation by generation gave: ties go to the earlier.
        self._pool = self._everything().kept_by(self._how)

    def _everything(self) -> _Pool:
        return _Pool(archs=self._archive.archs, scores=self._archive.scores, costs=self._archive.costs)

    def _take_in(self, archs: Archs, costs: Floats) -> None:
        scores = score(self._accuracy, archs)
        self._archive.add(archs, scores, costs)
        self._pool = self._pool.joined(archs, scores, costs).kept_by(self._how)

    def _children(self) -> tuple[Archs, Floats]:
        """Return new archs that keep the limits, and their costs: as many as are wanted unless fewer are left.

        Bred in bulk with spares and sifted: by rejection, as published, but never for ever. Where crossing gives too
        few that were not met before (late parents are much alike) mutation gives more.
        """
        archs, costs = [self._pool.archs[:0]], [self._pool.costs[:, :0]]
        missing, crossed = self._how.mutated + self._how.crossed, self._how.crossed
        for _ in range(_ATTEMPTS):
            n_crossed, n_mutated = self._planned(missing, crossed)
            born = self._born(n_mutated, n_crossed)
            born_costs = self._limits.costs(born)
            kept = np.flatnonzero(self._limits.held(born, born_costs))
            middle = int(np.searchsorted(kept, n_crossed))
            for kind, rows, at_most, n in (
                (_CROSSED, kept[:middle], crossed, n_crossed),
                (_MUTATED, kept[middle:] - n_crossed, missing, n_mutated),
            ):
                start = n_crossed if kind == _MUTATED else 0
                wanted = min(at_most, missing)
                if not (n and wanted):
                    continue
                new = rows[self._archive.claim(born[rows + start], wanted)]
                looked_at = new[-1] + 1 if len(new) == wanted else n
                self._yield[kind] += _PACE * (len(new) / looked_at - self._yield[kind])
                archs.append(born[new + start])
                costs.append(born_costs[:, new + start])
                missing -= len(new)
            if not missing:
                break
            crossed = 0
        else:
            archs.append(self._drawn(missing))
            costs.append(self._limits.costs(archs[-1]))
        return np.concatenate(archs), np.concatenate(costs, axis=1)

    def _planned(self, missing: int, crossed: int) -> tuple[int, int]:
        """Return how many to cross and to mutate, so that as many as are missing are likely new and within limits."""
        n_crossed = math.ceil(crossed * min(_SPARE / max(self._yield[_CROSSED], 1e-9), _MOST_CROSSED))
        expected = min(crossed, n_crossed * self._yield[_CROSSED] / _SPARE)
        rate = min(_SPARE / max(self._yield[_MUTATED], 1e-9), _MOST_MUTATED)
        return n_crossed, math.ceil((missing - expected) * rate)

    def _drawn(self, n: int) -> Archs:
        """Return at most `n` archs of the whole feasible set that were never met: all there are if it can be listed."""
        listed = self._limits.listed() if len(self._archive) else None
        drawn = self._limits.sample(self._rng, n) if listed is None else self._rng.permutation(listed)
        return drawn[self._archive.claim(drawn, n)]

    def _born(self, n_mutated: int, n_crossed: int) -> Archs:
        """Return crossed children, then mutated ones."""
        parents = self._pool.archs[self._rng.integers(len(self._pool.archs), size=n_mutated + 2 * n_crossed)]
        crossed = self._genome.crossed(parents[:n_crossed], parents[n_crossed : 2 * n_crossed], self._rng)
        return np.concatenate([crossed, self._genome.mutated(parents[2 * n_crossed :], self._rng)])
