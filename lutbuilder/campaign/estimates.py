"""From visits to what a table is made of: op estimates, and the call overhead of every input shape among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.plan import Shape, input_shape, overhead_op
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.stats.drift import DriftFit, fit
from lutbuilder.stats.interval import estimate_from, quantile
from lutbuilder.stats.records import OpEstimate, Visits
from lutbuilder.stats.shrink import shrunk

_FLOOR_MS = 1e-6  # an overhead that cannot be told from nothing; 1 ns


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The two-way fit of a campaign and what follows from it. `rows` has ops and overheads; pairs are used up in it."""

    visits: Visits
    drift: DriftFit
    by_id: Mapping[str, OpEstimate]  # everything that was visited, pairs and networks too, call overhead inside
    rows: tuple[OpEstimate, ...]  # ops, and one overhead estimate per input shape under the id of its identity op

    def worst_half_width(self, op_ids: Iterable[str]) -> float | None:
        """Return the widest relative half interval among `op_ids`; None while one of them has none."""
        widths = [self.by_id[i].half_width if i in self.by_id else None for i in op_ids]
        known = [w for w in widths if w is not None]
        return max(known) if known and len(known) == len(widths) else None


def summarise(ops: Iterable[CampaignOp], visits: Visits, *, steady: bool = False) -> Summary:
    """Return the summary of `visits`; `steady` leaves the drift model out, for comparison."""
    ops = tuple(ops)
    drift = fit(visits, steady=steady)
    by_id = {estimate.op_id: estimate for estimate in estimate_from(visits, drift)}
    overheads = call_overheads(ops, by_id)
    rows: dict[str, OpEstimate] = {}
    for op in ops:
        if op.role not in ("op", "overhead") or op.op_id not in by_id:
            continue
        identity = overhead_op(op.ops[0]).op_id
        overhead = overheads.get(identity) or (Overhead.of(by_id[identity]) if identity in by_id else None)
        row = by_id[op.op_id]
        if op.role == "op" and overhead is not None:
            row = replace(row, net_half_ms=net_half_ms(op.op_id, overhead, by_id))
        rows[op.op_id] = row
    rows |= {identity: overhead.estimate for identity, overhead in overheads.items()}
    return Summary(visits=visits, drift=drift, by_id=by_id, rows=tuple(rows.values()))


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Call overhead of one input shape: a sum of op times, each with a factor, and what its interval is made of."""

    estimate: OpEstimate
    factors: Mapping[str, float]  # by op_id
    disagreement: Variance  # of the pairs, beyond what the intervals of their members explain

    @classmethod
    def of(cls, estimate: OpEstimate) -> Overhead:
        """Measured as an op of its own: an empty call."""
        return cls(estimate=estimate, factors={estimate.op_id: 1.0}, disagreement=Variance(0.0, np.inf))


@dataclass(frozen=True, slots=True)
class Variance:
    """A variance in ms^2, and how many degrees of freedom it was estimated from."""

    ms2: float
    freedom: float

    @classmethod
    def sum_of(cls, parts: Iterable[Variance]) -> Variance:
        """Return the variance of a sum of independent parts (Satterthwaite, Biometrics Bulletin 2(6), 1946)."""
        parts = tuple(parts)
        total = sum(part.ms2 for part in parts)
        doubt = sum(part.ms2**2 / part.freedom for part in parts)
        return cls(total, total**2 / doubt if doubt > 0.0 else np.inf)

    @property
    def half_ms(self) -> float:
        """Half the 95 % interval."""
        return float(quantile(np.array(self.freedom)) * np.sqrt(self.ms2))


def call_overheads(ops: Iterable[CampaignOp], by_id: Mapping[str, OpEstimate]) -> dict[str, Overhead]:
    """Return the call overhead of every input shape with pairs, by the id of the shape's identity op.

    The mean over the shape's pairs of A + B - AB, each with the weight of its precision. To first order the overhead
    depends on the shape only; where pairs disagree by more than their members' intervals explain, that is part of the
    interval and evens out the weights. How much they do is known from few pairs a shape, so it is shrunk over the
    shapes. Source: random effects, DerSimonian and Laird, Controlled Clinical Trials 7(3), 1986.
    """
    shapes: dict[Shape, list[CampaignOp]] = defaultdict(list)
    for op in ops:
        if op.role == "pair":
            members = (op.op_id, op.ops[0].op_id, op.ops[1].op_id)
            if all(member in by_id for member in members):
                shapes[input_shape(op.ops[1])].append(op)
    found = [_Pairs(pairs, by_id) for pairs in shapes.values()]
    ratio, freedom = (np.array([getattr(pairs, name) for pairs in found]) for name in ("ratio", "freedom"))
    factors, certain = shrunk(ratio, freedom)
    overheads = [
        pairs.overhead(float(factor), float(free)) for pairs, factor, free in zip(found, factors, certain, strict=True)
    ]
    return {overhead.estimate.op_id: overhead for overhead in overheads}


def net_half_ms(op_id: str, overhead: Overhead, by_id: Mapping[str, OpEstimate]) -> float | None:
    """Return half the 95 % interval, in ms, of an op's time less its overhead; None if a part has no interval.

    An op is often a member of its own shape's pairs: its time enters both, and its errors partly cancel.
    """
    factors = defaultdict(float, {member: -factor for member, factor in overhead.factors.items()})
    factors[op_id] += 1.0
    members = _variance(factors, by_id)
    return None if members is None else Variance.sum_of((members, overhead.disagreement)).half_ms


def half_ms(estimate: OpEstimate) -> float | None:
    """Return half the 95 % interval in ms; None without one."""
    if estimate.lo_ms is None or estimate.hi_ms is None:
        return None
    return 0.5 * (estimate.hi_ms - estimate.lo_ms)


def _variance(factors: Mapping[str, float], by_id: Mapping[str, OpEstimate]) -> Variance | None:
    """Return the variance of a sum of op times, whose errors are independent; None if one has no interval."""
    parts = []
    for op_id, factor in factors.items():
        half = half_ms(by_id[op_id])
        if half is None:
            return None
        free = by_id[op_id].freedom
        parts.append(Variance((factor * half / float(quantile(np.array(free)))) ** 2, free))
    return Variance.sum_of(parts)


class _Pairs:
    """The pairs of one input shape: what each saved, and how far that can be off."""

    def __init__(self, pairs: list[CampaignOp], by_id: Mapping[str, OpEstimate]) -> None:
        self._pairs, self._by_id = pairs, by_id
        self._ids = list(dict.fromkeys(i for p in pairs for i in (p.op_id, p.ops[0].op_id, p.ops[1].op_id)))
        self._factors = np.zeros((len(pairs), len(self._ids)))  # two pairs often share a member
        for number, pair in enumerate(pairs):
            for op_id, factor in ((pair.ops[0].op_id, 1.0), (pair.ops[1].op_id, 1.0), (pair.op_id, -1.0)):
                self._factors[number, self._ids.index(op_id)] += factor
        self._saved_ms = self._factors @ np.array([by_id[op_id].time_ms for op_id in self._ids])
        variances = [_variance({op_id: 1.0}, by_id) for op_id in self._ids]
        self._known = all(variance is not None for variance in variances)
        members = np.array([0.0 if variance is None else variance.ms2 for variance in variances])
        self._covariance = (self._factors * members) @ self._factors.T
        weights = self._weights(0.0)
        self._expected = float(weights @ np.diag(self._covariance) - weights @ self._covariance @ weights)
        self.freedom = float(len(pairs) - 1) if self._expected > 0.0 else 0.0
        seen = float(weights @ (self._saved_ms - weights @ self._saved_ms) ** 2)
        self.ratio = seen / self._expected if self.freedom else 1.0

    def overhead(self, factor: float, freedom: float) -> Overhead:
        """Return the shape's overhead; its pairs differ by `factor` times the variance their members explain."""
        weights = self._weights(0.0)
        own_ms2 = float(weights @ np.diag(self._covariance))
        # Of one pair nothing is seen; as of the other shapes, its variance is `factor` times what its members say.
        left = self._expected / own_ms2 / (1.0 - float(weights @ weights)) if self.freedom else 1.0
        extra_ms2 = max(0.0, factor - 1.0) * own_ms2 * left
        weights = self._weights(extra_ms2)
        extra = Variance(extra_ms2 * float(weights @ weights), freedom)
        factors = dict(zip(self._ids, (weights @ self._factors).tolist(), strict=True))
        members = _variance(factors, self._by_id)
        half = None if members is None else Variance.sum_of((members, extra)).half_ms
        time_ms = max(float(weights @ self._saved_ms), _FLOOR_MS)
        told = [self._by_id[pair.op_id] for pair in self._pairs]
        return Overhead(
            factors=factors,
            disagreement=extra,
            estimate=replace(
                told[0],
                op_id=overhead_op(self._pairs[0].ops[1]).op_id,
                time_ms=time_ms,
                lo_ms=None if half is None else max(time_ms - half, 0.5 * _FLOOR_MS),
                hi_ms=None if half is None else time_ms + half,
                p90_ms=time_ms,
                n_visits=sum(pair.n_visits for pair in told),
                n_rounds=min(pair.n_rounds for pair in told),
                n_instances=sum(pair.n_instances for pair in told),
                test_retest=None,  # of a small difference, it says nothing
                bimodal=any(pair.bimodal for pair in told),
                session_sd=None,  # of the pair, not of the difference
            ),
        )

    def _weights(self, extra_ms2: float) -> NDArray[np.float64]:
        variances = np.diag(self._covariance) + extra_ms2
        weights = 1.0 / variances if self._known and variances.min() > 0.0 else np.ones(len(variances))
        return np.asarray(weights / weights.sum())
