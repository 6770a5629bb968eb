"""Latency-conditioned sampling for supernet training: archs of a drawn latency, the predicted best or worst of a few.

Source: Wang et al., AttentiveNAS, CVPR 2021, section 4: training the best (BestUp) or the worst (WorstUp) of k archs of
the same cost. There archs of a cost are found by rejection; here they are drawn exactly uniformly.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.budget import Budget, Feasible
from lutbuilder.nas.search.genes import Archs, encoding_dtype
from lutbuilder.nas.search.limits import Limit, Limits
from lutbuilder.nas.search.scoring import Accuracy, score
from lutbuilder_agent.errors import SpecError

Attention = Literal["best", "worst"]
Targets = Literal["archs", "buckets"]


class LatencySampler:
    """Draws archs for a training step: a target bucket first, then `k` archs of it, of which the predictor picks one.

    A bucket is cost rounded to a multiple of `step`, in the unit of the limit. `targets`: "archs" draws buckets as
    often as the archs within the limit fall into them, "buckets" all equally often. One set of tables serves all
    buckets; `tick` is theirs, see `Feasible`: buckets narrower than a few ticks cost draws. Fixed by the arguments and
    by the generator of each call; nothing else changes a draw. Safe from one thread at a time.
    """

    def __init__(
        self,
        limit: Limit,
        predictor: Accuracy,
        *,
        step: float,
        attention: Attention = "best",
        k: int = 3,
        targets: Targets = "archs",
        tick: float | None = None,
    ) -> None:
        if not (math.isfinite(step) and step > 0) or k < 1:
            raise SpecError(f"a sampler has buckets wider than 0 and draws 1 or more archs of one; got {step:g}, {k}")
        if attention not in ("best", "worst") or targets not in ("archs", "buckets"):
            raise SpecError(f"attention is best or worst, targets are archs or buckets; got {attention!r}, {targets!r}")
        limit.refuse_confidence("a sampler draws buckets")
        limits = Limits.of(limit)
        limits.warn_if_loose()
        self._feasible = limits.feasible if tick is None else Feasible(limit.compiled, limit.budget, tick=tick)
        self._space = limit.compiled.space
        self._predictor = predictor
        self._step = step
        self._sign = 1.0 if attention == "best" else -1.0
        self._k = k
        self._targets = targets
        self._there: tuple[int, ...] | None = None

    def draw(self, rng: np.random.Generator, n: int) -> Archs:
        """Return `n` archs, canonical encodings of shape (n, n_variables); the predictor is called once."""
        targets, order = np.unique(self.targets(rng, n), return_inverse=True)
        drawn = np.empty((n, self._k, len(self._space.sizes)), dtype=encoding_dtype(self._space))
        for number, target in enumerate(targets.tolist()):
            places = np.flatnonzero(order == number)
            archs = self._of_bucket(target, rng, len(places) * self._k)
            drawn[places] = archs.reshape(len(places), self._k, -1)
        flat = drawn.reshape(n * self._k, -1)
        scores = self._sign * score(self._predictor, flat).reshape(n, self._k)
        return np.asarray(drawn[np.arange(n), scores.argmax(axis=1)])

    def targets(self, rng: np.random.Generator, n: int) -> NDArray[np.intp]:
        """Return the buckets of `n` draws, as multiples of `step`."""
        if self._targets == "archs":
            return self._bucket(self._feasible.sample(rng, n))
        there = self.buckets()
        return np.array(there, dtype=np.intp)[rng.integers(len(there), size=n)]

    def buckets(self) -> tuple[int, ...]:
        """Return every bucket that holds an arch, as multiples of `step`; the first call looks into each.

        One that cannot be listed and that 100,000 draws around it missed is taken for empty; a finer tick misses fewer.
        """
        if self._there is None and self._feasible.n_candidates:
            ((lowest, highest),) = self._feasible.ranges
            low, high = self._feasible.budget.bounds
            every = range(round(max(low, lowest) / self._step), round(min(high, highest) / self._step) + 1)
            self._there = tuple(target for target in every if self._holds_any(target))
        return self._there or ()

    def _bucket(self, archs: Archs) -> NDArray[np.intp]:
        """Return the bucket of each arch; halves go to the even neighbour, as numpy rounds."""
        return np.rint(self._feasible.compiled.predict(archs) / self._step).astype(np.intp)

    def _of_bucket(self, target: int, rng: np.random.Generator, n: int) -> Archs:
        """Return `n` archs of a bucket, uniform and independent. Raises Infeasible if it is empty."""
        part = Budget((target + 0.5) * self._step, min_cost=(target - 0.5) * self._step)
        return self._feasible.draw(
            rng, n, among=self._feasible.numbers(part), keep=lambda archs: self._bucket(archs) == target
        ).archs

    def _holds_any(self, target: int) -> bool:
        try:
            self._of_bucket(target, np.random.default_rng(0), 1)
        except SpecError:  # none there, or hardly any
            return False
        return True
