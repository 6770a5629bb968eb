"""The cross-entropy method over an environment's actions: a plain optimiser where the papers train a DDPG agent.

Actions are drawn from a normal distribution a step, clipped to [0, 1]; it moves towards the best archs found so far. No
observations, no networks, nothing to tune. Source: Rubinstein, The cross-entropy method for combinatorial and
continuous optimization, Methodology and Computing in Applied Probability 1 (1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from lutbuilder.nas.compiled import Floats
from lutbuilder.nas.search.environment import Environment, rollout
from lutbuilder.nas.search.evolution import SearchResult
from lutbuilder.nas.search.loop import OnProgress, Progress, drive
from lutbuilder.nas.search.scoring import Accuracy, Archive, accuracy_name, score
from lutbuilder.nas.search.state import Identity, Saved, StateFile
from lutbuilder_agent.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """How many episodes an iteration has, how many of the best move the distribution, and how far they do.

    `narrowest` is the least standard deviation: it keeps the search from standing still.
    """

    episodes: int = 64
    iterations: int = 50
    elite: int = 8
    pace: float = 0.5
    narrowest: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.elite <= self.episodes or self.iterations < 0:
            raise SpecError(
                f"an iteration has episodes, some of them elite; got {self.episodes} episodes, {self.elite} elite, "
                f"{self.iterations} iterations"
            )
        if not (0 < self.pace <= 1 and math.isfinite(self.narrowest) and self.narrowest > 0):
            raise SpecError(
                f"the pace is above 0 and at most 1, the least deviation above 0; got {self.pace:g}, {self.narrowest:g}"
            )


def cross_entropy(
    environment: Environment,
    accuracy: Accuracy,
    how: CrossEntropy | None = None,
    *,
    seed: int,
    on_progress: OnProgress | None = None,
    state: StateFile | None = None,
) -> SearchResult:
    """Return the archs with the best `accuracy` that the environment's actions lead to, all within its limit.

    An arch is scored once however many actions lead to it. Fixed by the arguments; `state` as for `search`.
    Raises what the environment, `accuracy` and the state file raise.
    """
    how = CrossEntropy() if how is None else how
    run = _Run(environment, accuracy, how, seed=seed)
    drive(run, generations=how.iterations, on_progress=on_progress, state=state)
    return run.result()


class _Run:
    """The distribution and the elite between two iterations."""

    def __init__(self, environment: Environment, accuracy: Accuracy, how: CrossEntropy, *, seed: int) -> None:
        self._environment = environment
        self._accuracy = accuracy
        self._how = how
        self._rng = np.random.default_rng(seed)
        self._archive = Archive(environment.limits.space, len(environment.limits.limits))
        self._mean = np.full(environment.n_steps, 0.5)
        self._deviation = np.full(environment.n_steps, 0.5)
        self._actions = np.empty((0, environment.n_steps))  # of every arch of the archive, a row each
        self.generation = 0
        self.identity: Identity = {
            "method": f"CrossEntropy of {type(environment).__name__}",
            "seed": seed,
            "accuracy function": accuracy_name(accuracy),
            **{f"setting {f.name}": getattr(how, f.name) for f in fields(how) if f.name != "iterations"},
            **environment.identity,
        }

    def begin(self) -> None:
        self._play()

    def step(self) -> bool:
        elite = self._actions[self._elite()]
        pace = self._how.pace
        self._mean = (1 - pace) * self._mean + pace * elite.mean(axis=0)
        self._deviation = np.maximum((1 - pace) * self._deviation + pace * elite.std(axis=0), self._how.narrowest)
        self._play()
        self.generation += 1
        return True

    def progress(self, generations: int) -> Progress:
        best = self._elite()[0]
        return Progress(
            generation=self.generation,
            generations=generations,
            n_scored=len(self._archive),
            best_score=float(self._archive.scores[best]),
            best_cost=float(self._archive.costs[0, best]),
        )

    def result(self) -> SearchResult:
        elite = self._elite()
        return SearchResult(
            space=self._environment.limits.space,
            archs=self._archive.archs[elite],
            scores=self._archive.scores[elite],
            costs=self._archive.costs[:, elite],
            generations=self.generation,
            history=self._archive,
            exhausted=False,
        )

    def saved(self) -> Saved:
        return Saved(
            generation=self.generation,
            rng=self._rng.bit_generator.state,
            arrays={
                "archs": self._archive.archs,
                "scores": self._archive.scores,
                "costs": self._archive.costs,
                "actions": self._actions,
                "mean": self._mean,
                "deviation": self._deviation,
            },
        )

    def restore(self, saved: Saved) -> None:
        self.generation = saved.generation
        self._rng.bit_generator.state = saved.rng
        self._archive.restore(saved.arrays["archs"], saved.arrays["scores"], saved.arrays["costs"])
        self._actions = saved.arrays["actions"]
        self._mean, self._deviation = saved.arrays["mean"], saved.arrays["deviation"]

    def _play(self) -> None:
        """Play an iteration's episodes and score the archs that were never met."""
        noise = self._rng.standard_normal((self._how.episodes, self._environment.n_steps))
        actions: Floats = np.clip(self._mean + self._deviation * noise, 0.0, 1.0)
        archs = rollout(self._environment, actions)
        new = self._archive.claim(archs, len(archs))
        if new:
            scores = score(self._accuracy, archs[new])
            self._archive.add(archs[new], scores, self._environment.limits.costs(archs[new]))
            self._actions = np.concatenate([self._actions, actions[new]])

    def _elite(self) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Return the rows of the best archs ever met, best first; of equal ones the cheaper."""
        return np.lexsort((self._archive.costs[0], -self._archive.scores))[: self._how.elite]
