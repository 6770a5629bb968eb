"""When a campaign is done: looks at the visits once per several rounds and says stop, with the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutbuilder.campaign.estimates import summarise
from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.store import Store
from lutbuilder_agent.records import Report

FIRST_LOOK = 8  # rounds; below 6 there are no intervals
LOOK_EVERY = 16  # few looks: each one is a chance to stop too early by luck
_DRIFT_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the last look saw; fractions. `drift` is the machine's speed range over the last rounds, max / min - 1."""

    rounds: int
    n_precise: int
    worst_precision: float | None
    drift: float | None
    n_failed: int


class Controller:
    """Decides for one campaign. `decide` is called by one thread at a time; `look` may be read from any.

    `elapsed_s` gives the seconds this command has run so far; what earlier runs of it measured counts too.
    """

    def __init__(self, store: Store, spec: CampaignSpec, *, elapsed_s: Callable[[], float], reserve_s: float) -> None:
        self._store = store
        self._spec = spec
        self._elapsed_s = elapsed_s
        self._reserve_s = reserve_s
        self._wanted = tuple(op.op_id for op in spec.ops if op.role == "op")
        self._before_s = store.campaign(spec.key).measured_ns / 1e9
        self._lock = threading.Lock()
        self._look = Look(rounds=0, n_precise=0, worst_precision=None, drift=None, n_failed=0)

    @property
    def look(self) -> Look:
        """The last look."""
        with self._lock:
            return self._look

    @property
    def spent_s(self) -> float:
        """Seconds of the budget that are gone: this run, and what earlier runs measured."""
        return self._before_s + self._elapsed_s()

    def decide(self, campaign_id: str, report: Report) -> Decision:
        """Return what follows from `report`, which is committed already."""
        if campaign_id != self._spec.key:
            return Decision()
        rounds = report.round + 1
        if rounds >= FIRST_LOOK and (rounds - FIRST_LOOK) % LOOK_EVERY == 0 and self._precise(rounds):
            return Decision(stop=True, reason="precision")
        if self.spent_s + report.round_ns / 1e9 + self._reserve_s > self._spec.budget_s:
            return Decision(stop=True, reason="budget")
        if rounds >= self._spec.max_rounds:
            return Decision(stop=True, reason="max_rounds")
        return Decision()

    def _precise(self, rounds: int) -> bool:
        visits = self._store.visits([self._spec.key])
        summary = summarise(self._spec.ops, visits)
        failed = {failure.op_id for failure in self._store.failures(self._spec.key) if failure.final}
        wanted = [op_id for op_id in self._wanted if op_id not in failed]
        widths = [summary.by_id[i].half_width if i in summary.by_id else None for i in wanted]
        precise = sum(w is not None and w <= self._spec.precision for w in widths)
        known = [w for w in widths if w is not None]
        recent = visits.round >= rounds - _DRIFT_ROUNDS
        speed = summary.drift.speed[recent]
        with self._lock:
            self._look = Look(
                rounds=rounds,
                n_precise=precise,
                worst_precision=max(known) if known else None,
                drift=float(np.expm1(np.ptp(speed))) if len(speed) else None,
                n_failed=len(failed),
            )
        # A validation goes on to its last round: its networks have no precision to reach.
        return precise == len(wanted) and self._spec.purpose == "collect"
