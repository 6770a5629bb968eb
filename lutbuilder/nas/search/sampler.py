"""Latency-conditioned sampling for supernet training: archs of a drawn latency, the predicted best or worst of a few.

Source: Wang et al., AttentiveNAS, CVPR 2021, section 4: training the best (BestUp) or the worst (WorstUp) of k archs of
the same cost. There archs of a cost are found by rejection; here they are drawn exactly uniformly.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.search.genes import Archs, encoding_dtype
from lutbuilder.nas.search.limits import Limit, Limits
from lutbuilder.nas.search.scoring import Accuracy, score
from lutbuilder_agent.errors import Infeasible, SpecError

Attention = Literal["best", "worst"]
Targets = Literal["archs", "buckets"]
_SPARE = 8  # archs drawn beyond those wanted, for the few that are of a neighbouring bucket
_REDRAWS = 50


class LatencySampler:
    """Draws archs for a training step: a target bucket first, then `k` archs of it, of which the predictor picks one.

    A bucket is cost rounded to a multiple of `step`, in the unit of the limit. `targets`: "archs" draws buckets as
    often as the archs within the limit fall into them, "buckets" all equally often. Fixed by the arguments and by the
    generator of each call; nothing else changes a draw. Safe from one thread at a time.
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
    ) -> None:
        if not (math.isfinite(step) and step > 0) or k < 1:
            raise SpecError(f"a sampler has buckets wider than 0 and draws 1 or more archs of one; got {step:g}, {k}")
        if attention not in ("best", "worst") or targets not in ("archs", "buckets"):
            raise SpecError(f"attention is best or worst, targets are archs or buckets; got {attention!r}, {targets!r}")
        self._whole = Limits.of(limit)
        self._whole.warn_if_loose()
        self._limit = limit
        self._predictor = predictor
        self._step = step
        self._sign = 1.0 if attention == "best" else -1.0
        self._k = k
        self._targets = targets
        self._windows: dict[int, Limits | None] = {}  # of the buckets met so far; None: empty

    def draw(self, rng: np.random.Generator, n: int) -> Archs:
        """Return `n` archs, canonical encodings of shape (n, n_variables); the predictor is called once."""
        targets, order = np.unique(self.targets(rng, n), return_inverse=True)
        drawn = np.empty((n, self._k, len(self._whole.space.sizes)), dtype=encoding_dtype(self._whole.space))
        for number, target in enumerate(targets.tolist()):
            places = np.flatnonzero(order == number)
            archs = self._of_bucket(target, rng, len(places) * self._k)
            if archs is None:
                raise Infeasible(f"no arch of {self._whole.space.name!r} costs {target * self._step:.6g}")
            drawn[places] = archs.reshape(len(places), self._k, -1)
        flat = drawn.reshape(n * self._k, -1)
        scores = self._sign * score(self._predictor, flat).reshape(n, self._k)
        return np.asarray(drawn[np.arange(n), scores.argmax(axis=1)])

    def targets(self, rng: np.random.Generator, n: int) -> NDArray[np.intp]:
        """Return the buckets of `n` draws, as multiples of `step`."""
        if self._targets == "archs":
            return self._bucket(self._whole.sample(rng, n))
        there = self.buckets()
        return np.array(there, dtype=np.intp)[rng.integers(len(there), size=n)]

    def buckets(self) -> tuple[int, ...]:
        """Return every bucket that holds an arch, as multiples of `step`; the first call looks into each."""
        compiled = self._limit.compiled
        low = max(self._limit.min_cost, compiled.min_over())
        high = min(self._limit.max_cost, compiled.max_over())
        every = range(round(low / self._step), round(high / self._step) + 1)
        look = np.random.default_rng(0)
        return tuple(target for target in every if self._of_bucket(target, look, 1) is not None)

    def _bucket(self, archs: Archs) -> NDArray[np.intp]:
        """Return the bucket of each arch; halves go to the even neighbour, as numpy rounds."""
        return np.rint(self._limit.compiled.predict(archs) / self._step).astype(np.intp)

    def _of_bucket(self, target: int, rng: np.random.Generator, n: int) -> Archs | None:
        """Return `n` archs of a bucket, uniform and independent; None if it is empty."""
        if target not in self._windows:
            self._windows[target] = self._window(target)
        window = self._windows[target]
        if window is None:
            return None
        # A limit holds to a billionth, so that a few archs beyond an edge are drawn too: they are of another bucket.
        found = [np.empty((0, len(self._whole.space.sizes)), dtype=encoding_dtype(self._whole.space))]
        missing = n
        for _ in range(_REDRAWS):
            archs = window.sample(rng, missing + _SPARE)
            found.append(archs[self._bucket(archs) == target][:missing])
            missing -= len(found[-1])
            if not missing:
                return np.concatenate(found)
        self._windows[target] = None
        return None

    def _window(self, target: int) -> Limits | None:
        """Return the limits of a bucket, None if nothing is within."""
        low = max((target - 0.5) * self._step, self._limit.min_cost)
        high = min((target + 0.5) * self._step, self._limit.max_cost)
        try:
            window = Limits.of(Limit(compiled=self._limit.compiled, min_cost=low, max_cost=high))
            window.sample(np.random.default_rng(0), 1)
        except Infeasible:
            return None
        return window
