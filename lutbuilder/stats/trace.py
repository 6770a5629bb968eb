"""How fast the machine was while it was measured, as few points: what a person looks at and a rule judges."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from lutbuilder.stats.records import Visits


def machine_trace(
    visits: Visits, log_slowdown: NDArray[np.float64], *, sessions: Collection[str], points: int
) -> tuple[tuple[float, float], ...]:
    """Return up to `points` (seconds, speed) of the visits of `sessions`, one session after the other.

    `log_slowdown`, shape (visits,), is what the drift model says (DriftFit.speed); a point is the median over as many
    visits as any other. Speed 1 is the fit's typical one; at 0.6 calls take 1 / 0.6 as long.
    """
    wanted = [number for number, name in enumerate(visits.session_ids) if name in sessions]
    seconds: list[NDArray[np.float64]] = []
    slowdown: list[NDArray[np.float64]] = []
    end_s = 0.0
    for number in wanted:
        here = np.flatnonzero(visits.session == number)
        if not len(here):
            continue
        here = here[np.argsort(visits.start_ns[here], kind="stable")]
        since_s = end_s + (visits.start_ns[here] - visits.start_ns[here[0]]) / 1e9
        seconds.append(since_s)
        slowdown.append(log_slowdown[here])
        end_s = float(since_s[-1])
    if not seconds:
        return ()
    parts = min(points, sum(map(len, seconds)))
    pairs = zip(
        np.array_split(np.concatenate(seconds), parts), np.array_split(np.concatenate(slowdown), parts), strict=True
    )
    return tuple((round(float(np.median(s)), 3), round(float(np.exp(-np.median(d))), 4)) for s, d in pairs)
