"""NetAdapt: a network made cheaper step by step, each step the most accurate of one proposal a layer.

Source: Yang et al., NetAdapt, ECCV 2018, algorithm 1; its released scripts for the schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lutbuilder.nas.compiled import Floats
from lutbuilder.nas.search.genes import Archs, encoding_dtype
from lutbuilder.nas.search.limits import Limit, Limits
from lutbuilder.nas.search.loop import OnProgress, Progress, drive
from lutbuilder.nas.search.scoring import Accuracy, accuracy_name, score
from lutbuilder.nas.search.state import Identity, Saved, StateFile
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class NetAdapt:
    """By which share of the first cost an iteration makes the network cheaper, and how that share shrinks."""

    step: float = 0.025
    decay: float = 0.96
    iterations: int = 30

    def __post_init__(self) -> None:
        if not (0 < self.step < 1 and 0 < self.decay <= 1) or self.iterations < 0:
            raise SpecError(
                f"NetAdapt's step is between 0 and 1, its decay above 0 and at most 1; got {self.step:g}, "
                f"{self.decay:g}, {self.iterations} iterations"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """The network after each iteration, the one begun with first: encodings (n, n_variables), scores and costs (n,).

    `ended`: "limit" where the last one keeps the limit; "iterations" where they ran out before; "stuck" where no layer
    alone could make the network cheaper by a step. `n_scored`: networks the accuracy function was asked about.
    """

    archs: Archs
    scores: Floats
    costs: Floats
    ended: Literal["limit", "iterations", "stuck"]
    n_scored: int


def netadapt(
    limit: Limit,
    accuracy: Accuracy,
    how: NetAdapt | None = None,
    *,
    start: ArrayLike | None = None,
    on_progress: OnProgress | None = None,
    state: StateFile | None = None,
) -> Trajectory:
    """Return the networks on the way from `start` (an encoding; default: the largest values) down to the limit.

    An iteration makes, for every variable alone, the largest smaller value its own that saves the step, and keeps the
    proposal with the best `accuracy`, which is asked about all of them at once and may tune each for a while; of equal
    ones the cheapest. The last step is as small as the limit asks for. Values of a variable are numbers, the smallest
    first. The state is written after every iteration. Raises Infeasible, naming the lowest cost, if no arch keeps the
    limit; else as `search`.
    """
    how = NetAdapt() if how is None else how
    limit.refuse_confidence("NetAdapt goes down")
    limits = Limits.of(limit)
    limits.warn_if_loose()
    check_order(limits.space)
    largest = [size - 1 for size in limits.space.sizes]
    first = limits.space.canonical(np.asarray(largest if start is None else start, dtype=np.int64)[None])
    run = _Run(limits, accuracy, how, first.astype(encoding_dtype(limits.space)))
    if state:
        state = replace(state, every=1)  # an iteration may tune a network for each layer
    drive(run, generations=how.iterations, on_progress=on_progress, state=state)
    return run.trajectory()


def check_order(space: SearchSpace) -> None:
    """Raise SpecError, naming a variable, for a space whose values are no numbers, the smallest first."""
    for variable in space.variables:
        numbers = [value for value in variable.values if not isinstance(value, str)]
        if len(numbers) < len(variable.values) or numbers != sorted(numbers):
            raise SpecError(f"variable {variable.name!r} has no order to go down: {variable.values}")


class _Run:
    """The networks so far. A generation is an iteration."""

    def __init__(self, limits: Limits, accuracy: Accuracy, how: NetAdapt, first: Archs) -> None:
        self._limits = limits
        self._accuracy = accuracy
        self._how = how
        self._archs = first
        self._costs = limits.costs(first)[0]
        self._scores = np.empty(0)
        self._stuck = False
        self._n_scored = 1
        if not math.isfinite(self._costs[0]):
            raise SpecError(f"NetAdapt cannot begin with {limits.space.decode(first[0])}: it cannot run")
        self.generation = 0
        self.identity: Identity = {
            "method": "NetAdapt",
            "accuracy function": accuracy_name(accuracy),
            "start": str(first[0].tolist()),
            "step": how.step,
            "decay": how.decay,
            **limits.identity,
        }

    def begin(self) -> None:
        self._scores = score(self._accuracy, self._archs)

    def step(self) -> bool:
        saving = self._how.step * self._how.decay**self.generation * float(self._costs[0])
        if self._kept():
            return False
        archs, costs = self._proposals(max(float(self._costs[-1]) - saving, self._limits.limits[0].max_cost))
        self._stuck = not len(archs)
        if self._stuck:
            return False
        scores = score(self._accuracy, archs)
        self._n_scored += len(archs)
        best = int(np.lexsort((costs, -scores))[0])
        self._archs = np.concatenate([self._archs, archs[best, None]])
        self._scores = np.append(self._scores, scores[best])
        self._costs = np.append(self._costs, costs[best])
        self.generation += 1
        return True

    def progress(self, generations: int) -> Progress:
        return Progress(
            generation=self.generation,
            generations=generations,
            n_scored=self._n_scored,
            best_score=float(self._scores[-1]),
            best_cost=float(self._costs[-1]),
        )

    def saved(self) -> Saved:
        return Saved(
            generation=self.generation,
            rng={},
            arrays={
                "archs": self._archs,
                "scores": self._scores,
                "costs": self._costs,
                "n_scored": np.array(self._n_scored),
            },
        )

    def restore(self, saved: Saved) -> None:
        self.generation = saved.generation
        self._archs, self._scores = saved.arrays["archs"], saved.arrays["scores"]
        self._costs, self._n_scored = saved.arrays["costs"], int(saved.arrays["n_scored"])

    def trajectory(self) -> Trajectory:
        return Trajectory(
            archs=self._archs,
            scores=self._scores,
            costs=self._costs,
            ended="limit" if self._kept() else "stuck" if self._stuck else "iterations",
            n_scored=self._n_scored,
        )

    def _kept(self) -> bool:
        return bool(self._limits.kept(self._costs[None, -1:])[0])

    def _proposals(self, most: float) -> tuple[Archs, Floats]:
        """Return, for each variable that can, the arch with its largest smaller value that costs `most` or less."""
        now = self._archs[-1]
        variables = np.repeat(np.arange(len(now)), now)  # every smaller value of every variable, smallest first
        numbers = np.concatenate([np.arange(number) for number in now.tolist()])
        archs = np.repeat(now[None], len(variables), axis=0)
        archs[np.arange(len(variables)), variables] = numbers
        archs = self._limits.space.canonical(archs).astype(now.dtype)
        costs = self._limits.costs(archs)[0]
        cheap = np.flatnonzero(costs <= most)
        largest = np.append(variables[cheap][1:] != variables[cheap][:-1], True)[: len(cheap)]
        rows = cheap[largest]
        return archs[rows], costs[rows]
