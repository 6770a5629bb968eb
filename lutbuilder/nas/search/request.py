"""One search as it is asked for in words: a space, a table, limits by column, a method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lutbuilder.nas.compiled import CompiledSpace, Floats, compile_space
from lutbuilder.nas.search.crossentropy import CrossEntropy, cross_entropy
from lutbuilder.nas.search.environment import BitEnvironment, ChannelEnvironment, check_bits, check_widths
from lutbuilder.nas.search.evolution import ByBucket, Evolution, SearchResult, search
from lutbuilder.nas.search.genes import Archs, Genome, layer_genes
from lutbuilder.nas.search.limits import Limit, Limits
from lutbuilder.nas.search.loop import OnProgress
from lutbuilder.nas.search.netadapt import NetAdapt, check_order, netadapt
from lutbuilder.nas.search.scoring import Accuracy
from lutbuilder.nas.search.state import StateFile
from lutbuilder_agent.errors import SpecError, unknown_name

if TYPE_CHECKING:
    from lutbuilder.lut import Lut
    from lutbuilder.spaces import SearchSpace

METHODS: Mapping[str, str] = {
    "evolution": "OFA's evolutionary search: a layer's variables mutate together",
    "joint": "APQ's: all variables whose names end in a layer's number mutate together",
    "pareto": "AttentiveNAS's and AlphaNet's: the best of every latency bucket",
    "bits": "HAQ's bit widths under a budget, by the cross-entropy method",
    "channels": "AMC's channel widths under a budget, by the cross-entropy method",
    "netadapt": "NetAdapt's: the widest network made cheaper step by step",
}
ONE_LIMIT = {"bits": ("haq",), "channels": ("amc", "netadapt"), "netadapt": ("amc", "netadapt")}  # made for these
_CHECKS = {"bits": check_bits, "channels": check_widths, "netadapt": check_order}
_BUCKETS = 20  # of a pareto search, unless its width is given
_POPULATIONS = {"pareto": 512, "bits": 64, "channels": 64}
_GENERATIONS = {"pareto": 20, "bits": 50, "channels": 50, "netadapt": 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnLimit:
    """A limit on a column of the table, in its unit; an arch's cost is the sum over its ops.

    With a `confidence` an arch keeps `max_cost` if it costs no more with that probability, by the rows' intervals.
    """

    column: str
    max_cost: float
    min_cost: float = -math.inf
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What to look for, where, and by which method.

    What is None has its published value: OFA's and APQ's 500 generations of 100, AttentiveNAS's 20 from 512 archs, 30
    iterations as in NetAdapt's scripts. Ours are the 20 buckets, and the optimiser of bits and channels with its 50
    iterations of 64 episodes; HAQ trains its agent for 600 episodes, AMC for 800.
    """

    space: SearchSpace
    lut: Lut
    accuracy: Accuracy
    limits: tuple[ColumnLimit, ...]
    method: str = "evolution"
    seed: int = 1
    generations: int | None = None
    population: int | None = None
    bucket: float | None = None
    state: Path | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("search method", self.method, METHODS)
        if self.bucket is not None and self.method != "pareto":
            raise SpecError(f"buckets are of the method pareto, not of {self.method}")
        if self.population is not None and self.method == "netadapt":
            raise SpecError("netadapt has no population: every iteration proposes one network a layer")
        if self.method in ONE_LIMIT:
            self._check_space()
            if len(self.limits) > 1:
                raise SpecError(f"{self.method} keeps one limit; several are kept by evolution, joint and pareto")
            if math.isfinite(self.limits[0].min_cost):
                raise SpecError(f"{self.method} keeps a highest cost alone; leave the lowest out")
            if self.limits[0].confidence is not None:
                raise SpecError(
                    f"{self.method} keeps a limit as predicted; evolution, joint and pareto keep it at a confidence"
                )

    def _check_space(self) -> None:
        """Refuse a space that the method does not fit, naming the methods that do and the spaces it is for."""
        try:
            _CHECKS[self.method](self.space)
        except SpecError as error:
            made_for = " and ".join(ONE_LIMIT[self.method])
            raise SpecError(
                f"{error}. {self.method} searches {made_for}, and spaces like them; {self.space.name!r} is searched by "
                f"{', '.join(fitting(self.space))}"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchOutcome:
    """Archs that a search found, in its order: encodings (n, n_variables), scores (n,), costs (n_limits, n).

    Every one keeps every limit. `ended`: "generations" where they were done, "exhausted" where no feasible arch was
    left; of netadapt see `Trajectory.ended`. Its networks above the limit, on the way to it, are not here.
    """

    archs: Archs
    scores: Floats
    costs: Floats
    generations: int
    n_scored: int
    ended: str

    @classmethod
    def of(cls, result: SearchResult) -> SearchOutcome:
        """Return what a search gave."""
        return cls(
            archs=result.archs,
            scores=result.scores,
            costs=result.costs,
            generations=result.generations,
            n_scored=len(result.history),
            ended="exhausted" if result.exhausted else "generations",
        )


def fitting(space: SearchSpace) -> tuple[str, ...]:
    """Return the methods that can search `space`."""

    def fits(method: str) -> bool:
        try:
            _CHECKS[method](space)
        except SpecError:
            return False
        return True

    return tuple(method for method in METHODS if method not in _CHECKS or fits(method))


def run(request: SearchRequest, on_progress: OnProgress | None = None) -> SearchOutcome:
    """Search as `request` says. Raises OpNotInLut where the table lacks an op of the space; else as the method does."""
    limits = [
        Limit(
            compiled=_compiled(request, limit.column),
            max_cost=limit.max_cost,
            min_cost=limit.min_cost,
            confidence=limit.confidence,
        )
        for limit in request.limits
    ]
    state = StateFile(path=request.state) if request.state else None
    method, seed, accuracy = request.method, request.seed, request.accuracy
    generations = _GENERATIONS.get(method, 500) if request.generations is None else request.generations
    population = _POPULATIONS.get(method, 100) if request.population is None else request.population
    if method == "netadapt":
        how = NetAdapt(iterations=generations)
        found = netadapt(limits[0], accuracy, how, on_progress=on_progress, state=state)
        kept = Limits.of(limits[0]).kept(found.costs[None])
        return SearchOutcome(
            archs=found.archs[kept],
            scores=found.scores[kept],
            costs=found.costs[None, kept],
            generations=len(found.archs) - 1,
            n_scored=found.n_scored,
            ended=found.ended,
        )
    if method in ("bits", "channels"):
        environment = (BitEnvironment if method == "bits" else ChannelEnvironment)(limit=limits[0])
        episodes = CrossEntropy(episodes=population, elite=max(1, population // 8), iterations=generations)
        return SearchOutcome.of(
            cross_entropy(environment, accuracy, episodes, seed=seed, on_progress=on_progress, state=state)
        )
    if method == "pareto":
        step = _bucket(limits[0]) if request.bucket is None else request.bucket
        schedule: Evolution | ByBucket = ByBucket.sized(population, generations, step=step)
    else:
        schedule = Evolution.sized(population, generations)
    genome = Genome.of(request.space, genes=layer_genes(request.space)) if method == "joint" else None
    return SearchOutcome.of(
        search(Limits.of(*limits), accuracy, schedule, seed=seed, genome=genome, on_progress=on_progress, state=state)
    )


def _compiled(request: SearchRequest, column: str) -> CompiledSpace:
    return compile_space(request.space, request.lut, column)


def _bucket(limit: Limit) -> float:
    """Return a width that makes about 20 buckets, to one digit."""
    low = max(limit.min_cost, limit.compiled.min_over())
    width = max(limit.max_cost - low, 1e-9 * abs(limit.max_cost)) / _BUCKETS
    digit: float = 10 ** math.floor(math.log10(width))
    return math.ceil(width / digit) * digit
