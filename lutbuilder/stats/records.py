"""What the statistics read (Visits: columns) and what they give (OpEstimate: one op's summary)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from lutbuilder_agent.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """Columns of equal length n, one entry a visit; `op` and `session` index `op_ids` and `session_ids`.

    `block_ns` is the visit's median over calls that were not disturbed, in ns per call; `p90_ns` its 90th percentile;
    `start_ns` counts within the session. Order of visits does not matter. `session_agents` names the agent of every
    session, parallel to `session_ids`; empty: one agent made them all.
    """

    op_ids: tuple[str, ...]
    session_ids: tuple[str, ...]
    op: NDArray[np.int64]
    session: NDArray[np.int64]
    round: NDArray[np.int64]
    order: NDArray[np.int64]
    instance: NDArray[np.int64]
    start_ns: NDArray[np.int64]
    block_ns: NDArray[np.float64]
    p90_ns: NDArray[np.float64]
    n_calls: NDArray[np.int64]
    n_preempted: NDArray[np.int64]
    session_agents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"columns of visits differ in length: {lengths}")
        if self.session_agents and len(self.session_agents) != len(self.session_ids):
            raise ShapeError(f"{len(self.session_agents)} agents named for {len(self.session_ids)} sessions")
        if len(self.block_ns) and not (np.isfinite(self.block_ns).all() and self.block_ns.min() > 0):
            raise ShapeError("block_ns must be finite and positive")

    def __len__(self) -> int:
        return len(self.op)

    def take(self, keep: NDArray[np.bool_]) -> Visits:
        """Return the visits where `keep` is true; ops and sessions keep their numbers."""
        return replace(self, **{name: getattr(self, name)[keep] for name in COLUMNS})


COLUMNS = (
    "op", "session", "round", "order", "instance", "start_ns", "block_ns", "p90_ns", "n_calls", "n_preempted",
)  # fmt: skip  # one line reads as one record


@dataclass(frozen=True, slots=True, kw_only=True)
class OpEstimate:
    """One op's cost with its uncertainty, call overhead still inside; times in ms, fractions from 0 to 1.

    `lo_ms` and `hi_ms` bound the 95 % interval; both None below 6 rounds. `test_retest` is the relative difference of
    the estimates from even and from odd rounds; None below 4 rounds, or where all are even or all odd. `residual_mad`
    is the spread of single visits that the fit leaves, 1.4826 MAD of log time. `session_sd` is the standard deviation
    of log time between sessions, of one agent or several, once their scales are tied, shrunk over the ops; None for one
    session. `freedom` is the interval's degrees of freedom: half of it is `stdtrit(freedom, 0.975)` standard errors.
    `net_half_ms` is half the 95 % interval of the time less its call overhead, which is known from some of the same
    visits; None where the overhead or one of the intervals is not known.
    """

    op_id: str
    time_ms: float
    lo_ms: float | None
    hi_ms: float | None
    p90_ms: float
    n_visits: int
    n_rounds: int
    n_instances: int
    n_sessions: int
    test_retest: float | None
    preempted_fraction: float
    bimodal: bool
    residual_mad: float
    session_sd: float | None = None
    n_agents: int = 1
    freedom: float = inf
    net_half_ms: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval, relative to the estimate."""
        if self.lo_ms is None or self.hi_ms is None:
            return None
        return 0.5 * (self.hi_ms - self.lo_ms) / self.time_ms
