"""What a campaign does next: who measures what for how long, and when it is done and why.

It looks at the visits a few times only, each time half as many rounds later again: every look is a chance to stop too
early by luck. Where leases come in phases a look is taken at the end of one, and what the next lease visits follows
from it (rotation.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lutbuilder.campaign.estimates import Summary, half_ms, summarise
from lutbuilder.campaign.rotation import Standing, next_ops, phase_rounds, rounds_that_fit
from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer
from lutbuilder.coordinator.store import Store
from lutbuilder.stats.interval import spread
from lutbuilder_agent import runtimes
from lutbuilder_agent.records import OpId, Report

FIRST_LOOK = 8  # rounds; below 6 there are no intervals
LOOK_EVERY = 16  # rounds, where one lease has them all
LOOK_GROWTH = 1.5  # where leases come in phases
_DRIFT_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the last look saw; fractions. `drift` is the machine's speed range over the last rounds, max / min - 1.

    `n_rotation`: how many ops the leases visit, None before the first lease that leaves some out.
    """

    rounds: int
    n_precise: int
    worst_precision: float | None
    drift: float | None
    n_failed: int
    n_rotation: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the rotation is made of."""

    standings: Mapping[OpId, Standing]
    ops: frozenset[OpId] | None = None  # in the rotation since; None: not asked for yet


@dataclass(slots=True)
class _LeaseClock:
    """A lease under way. Mutable: its first report tells what loading took."""

    last_round: int
    granted_s: float
    ops: tuple[OpId, ...]
    loaded: bool = False


class Controller:
    """Decides for one campaign. `decide` is called by one thread at a time, `next_lease` and `look` from any.

    `elapsed_s` gives the seconds this command has run so far; what earlier runs of it measured counts too.
    """

    def __init__(self, store: Store, spec: CampaignSpec, *, elapsed_s: Callable[[], float], reserve_s: float) -> None:
        self._store = store
        self._spec = spec
        self._elapsed_s = elapsed_s
        self._reserve_s = reserve_s
        self._wanted = tuple(op.op_id for op in spec.ops if op.role == "op")
        self._before_s = store.campaign(spec.key).measured_ns / 1e9 / spec.agents
        self._lock = threading.Lock()  # guards everything below
        self._look = Look(rounds=0, n_precise=0, worst_precision=None, drift=None, n_failed=0)
        self._seen: _Seen | None = None
        self._looked_in: set[str] = set()  # sessions
        self._began: dict[str, int] = {}  # how many shares were over when a session was first seen
        self._next_look = 0.0  # not before so many rounds
        self._leases: dict[str, _LeaseClock] = {}
        self._load_s = 0.0  # of one op, all its instances
        self._slack = 1.0  # a round's wall time over the time of its visits' calls

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
        rounds = self._store.campaign(campaign_id).rounds
        lease_ends = self._clocked(report)
        number = self._session_number(report.session_id)
        if self._look_due(rounds, report.session_id, lease_ends):
            self._take_look(rounds, report.session_id)
            if self._all_precise():
                return self._over("precision", number)
        round_s = report.round_ns / 1e9
        needed_s = self._least_lease_s(round_s) if lease_ends else round_s
        if self.spent_s + needed_s > self._share_end_s(number):
            return self._over("budget", number)
        if rounds >= self._spec.max_rounds * number // self._spec.sessions:
            return self._over("max_rounds", number)
        return Decision()

    def next_lease(self, lease: HeldLease, offer: Offer) -> Offer:
        """Return what of `offer` a lease is for: where leases come in phases, some of its ops for a phase's rounds."""
        spec = self._spec
        if offer.campaign_id != spec.key or not spec.lease_rounds:
            return offer
        if spec.purpose == "collect":
            left_s = self._share_end_s(self._session_number(lease.session_id)) - self.spent_s
            first = self._rounds_in(lease.session_id) < FIRST_LOOK
            seen = self._knowledge()
            if first or seen is None:  # every session visits every op: its scale is told by all of them
                least = -(-FIRST_LOOK // spec.plan.instances) * spec.plan.instances
                offer = replace(offer, rounds=min(offer.rounds, least))
            else:
                offer = self._phase(self._rotation(offer, seen), seen, left_s=left_s)
        with self._lock:
            self._leases[lease.lease_id] = _LeaseClock(
                last_round=offer.first_round + offer.rounds - 1,
                granted_s=self._elapsed_s(),
                ops=tuple(op.op_id for op in offer.ops),
            )
            self._look = replace(self._look, n_rotation=sum(op.role == "op" for op in offer.ops))
        return offer

    # --- time

    def _clocked(self, report: Report) -> bool:
        """Learn what loading and a round take; return whether the report's lease ends with it."""
        with self._lock:
            lease = self._leases.get(report.lease_id)
            if lease is None:  # of an earlier process, or leases do not come in phases
                return False
            if not lease.loaded:
                lease.loaded = True
                took_s = self._elapsed_s() - lease.granted_s - report.round_ns / 1e9
                self._load_s = max(0.0, took_s) / len(lease.ops)
            if report.round_ns and self._seen is not None:
                timed_s = sum(self._seen.standings[i].visit_s for i in lease.ops if i in self._seen.standings)
                self._slack = report.round_ns / 1e9 / timed_s if timed_s else self._slack
            return report.round >= lease.last_round

    def _share_end_s(self, number: int) -> float:
        """Return how much of the budget is gone when an agent's `number`-th session has had its share."""
        reserve_s = self._reserve_s if number == self._spec.sessions else 0.0
        return self._spec.budget_s * number / self._spec.sessions - reserve_s

    def _least_lease_s(self, round_s: float) -> float:
        """Return what another lease takes at least: loading, and a visit of every instance."""
        with self._lock:
            load_s = self._load_s * (self._look.n_rotation or 0)
        return load_s + self._spec.plan.instances * round_s

    def _over(self, reason: str, number: int) -> Decision:
        """A session has had its share: the campaign's end if it is the last one."""
        return Decision(stop=True, reason=reason) if number == self._spec.sessions else Decision(renew=True)

    # --- sessions

    def _rounds_in(self, session_id: str) -> int:
        visits = self._store.visits([self._spec.key])
        if session_id not in visits.session_ids:
            return 0
        return len(np.unique(visits.round[visits.session == visits.session_ids.index(session_id)]))

    def _session_number(self, session_id: str) -> int:
        """Return which of its agent's sessions this is, from 1 to `spec.sessions`.

        One of too few rounds is none, unless its share was over before the next one began.
        """
        spec = self._spec
        if spec.sessions == 1:
            return 1
        rounds = self._store.campaign(spec.key).rounds
        gone = max(self.spent_s / spec.budget_s, rounds / spec.max_rounds)
        with self._lock:
            began = self._began.setdefault(session_id, int(gone * spec.sessions))
        agent = self._store.session(session_id).name
        before = [s.session_id for s in self._store.sessions([spec.key]) if s.name == agent]
        full = sum(other != session_id and self._rounds_in(other) >= FIRST_LOOK for other in before)
        return min(max(full, began) + 1, spec.sessions)

    # --- looks

    def _look_due(self, rounds: int, session_id: str, lease_ends: bool) -> bool:
        if not self._spec.lease_rounds:
            return rounds >= FIRST_LOOK and (rounds - FIRST_LOOK) % LOOK_EVERY == 0
        if not lease_ends or self._rounds_in(session_id) < FIRST_LOOK:
            return False
        return session_id not in self._looked_in or rounds >= self._next_look

    def _take_look(self, rounds: int, session_id: str) -> None:
        visits = self._store.visits([self._spec.key])
        summary = summarise(self._spec.ops, visits)
        failed = {failure.op_id for failure in self._store.failures(self._spec.key) if failure.final}
        widths = [summary.by_id[i].half_width if i in summary.by_id else None for i in self._wanted if i not in failed]
        known = [w for w in widths if w is not None]
        speed = summary.drift.speed[visits.round > visits.round.max(initial=0) - _DRIFT_ROUNDS]
        seen = _seen(summary)
        with self._lock:
            self._seen = seen
            self._looked_in.add(session_id)
            self._next_look = rounds + self._until_next_look(rounds, seen)
            self._look = Look(
                rounds=rounds,
                n_precise=sum(w <= self._spec.precision for w in known),
                worst_precision=max(known) if known else None,
                drift=float(np.expm1(np.ptp(speed))) if len(speed) else None,
                n_failed=len(failed),
                n_rotation=self._look.n_rotation,
            )

    def _until_next_look(self, rounds: int, seen: _Seen) -> float:
        """Return how many rounds later a look is worth it: when half of what is lacking has come, in bounds."""
        lacking = [lack for s in seen.standings.values() if (lack := s.lacking(self._spec.precision)) > 0.0]
        most = (LOOK_GROWTH - 1.0) * rounds
        return min(most, float(np.median(lacking))) if lacking else most

    @property
    def _trains_make_the_caches(self) -> bool:
        """Whether every op has to stay, because trains of those left would make other caches than trains of all do.

        Seen on two engines: after ops had left, the others read 1 to 1.7 % higher against whole networks
        (docs/decisions/0006).
        """
        plan = self._spec.plan
        return plan.train_ops > 1 and runtimes.entry(plan.runtime)[1].has_caches

    def _all_precise(self) -> bool:
        # A validation goes on to its last round: its networks have no precision to reach.
        return self.look.n_precise + self.look.n_failed >= len(self._wanted) and self._spec.purpose == "collect"

    def _knowledge(self) -> _Seen | None:
        """Return what the last look saw; a resumed campaign takes one now, if it has the rounds."""
        with self._lock:
            seen = self._seen
        if seen is not None or self._store.campaign(self._spec.key).rounds < FIRST_LOOK:
            return seen
        seen = _seen(summarise(self._spec.ops, self._store.visits([self._spec.key])))
        with self._lock:
            self._seen = self._seen or seen
            return self._seen

    # --- the next lease

    def _rotation(self, offer: Offer, seen: _Seen) -> Offer:
        """Return the offer with the ops that are in the rotation until the next look."""
        staying = seen.ops
        if staying is None:
            phase = self._phase(offer, seen, left_s=float("inf"))
            with self._lock:
                round_s, load_s = self._slack * _visits_s(offer, seen), self._load_s * len(offer.ops)
            timed = phase.rounds * _visits_s(offer, seen) / (load_s + phase.rounds * round_s)
            lacking = self._spec.max_rounds - self._store.campaign(self._spec.key).rounds
            left_s = min(self._share_end_s(self._spec.sessions) - self.spent_s, lacking * round_s)
            chosen = offer.ops
            if not self._trains_make_the_caches:
                chosen = next_ops(
                    offer.ops,
                    seen.standings,
                    precision=self._spec.precision,
                    train_ops=self._spec.plan.train_ops,
                    left_s=max(0.0, left_s * timed * self._spec.agents),
                )
            staying = frozenset(op.op_id for op in chosen)
            with self._lock:
                self._seen = replace(seen, ops=staying)
        kept = tuple(op for op in offer.ops if op.op_id in staying)
        return replace(offer, ops=kept or offer.ops)  # those in the rotation may all have failed since

    def _phase(self, offer: Offer, seen: _Seen, *, left_s: float) -> Offer:
        """Return the offer with as many rounds as pay and fit."""
        with self._lock:
            load_s, round_s = self._load_s * len(offer.ops), self._slack * _visits_s(offer, seen)
        standings = [seen.standings[op.op_id] for op in offer.ops if op.op_id in seen.standings]
        wide = [standing for standing in standings if standing.lacking(self._spec.precision)]
        between_sd, visit_sd = np.median([(s.between_sd, s.visit_sd) for s in wide or standings], axis=0)
        rounds = phase_rounds(
            load_s=load_s,
            round_s=round_s,
            between_sd=float(between_sd),
            visit_sd=float(visit_sd),
            instances=self._spec.plan.instances,
            most=offer.rounds,
        )
        if left_s < float("inf"):
            rounds = rounds_that_fit(rounds, left_s=left_s, load_s=load_s, round_s=round_s)
        return replace(offer, rounds=min(max(rounds, 1), offer.rounds))


def _seen(summary: Summary) -> _Seen:
    visits = summary.visits
    n_ops = len(visits.op_ids)
    counts = np.bincount(visits.op, minlength=n_ops)
    calls_ns = np.bincount(visits.op, weights=visits.n_calls * visits.block_ns, minlength=n_ops)
    between_sd = dict(zip(visits.op_ids, np.nan_to_num(spread(visits, summary.drift).instance_sd), strict=True))
    visit_s = dict(zip(visits.op_ids, calls_ns / np.maximum(counts, 1) / 1e9, strict=True))
    return _Seen(
        standings={
            op_id: Standing(
                time_ms=estimate.time_ms,
                half_ms=half_ms(estimate),
                n_visits=estimate.n_visits,
                visit_s=float(visit_s[op_id]),
                between_sd=float(between_sd[op_id]),
                visit_sd=estimate.residual_mad,
            )
            for op_id, estimate in summary.by_id.items()
        }
    )


def _visits_s(offer: Offer, seen: _Seen) -> float:
    """Return what a round of the offer's ops takes inside timed calls."""
    known = [seen.standings[op.op_id].visit_s for op in offer.ops if op.op_id in seen.standings]
    return float(np.mean(known)) * len(offer.ops) if known else 0.0
