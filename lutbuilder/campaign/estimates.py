"""From visits to what a table is made of: op estimates, and the call overhead of every input shape among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lutbuilder.campaign.plan import Shape, input_shape, overhead_op
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.stats.drift import DriftFit, fit
from lutbuilder.stats.interval import estimate_from
from lutbuilder.stats.records import OpEstimate, Visits

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


def summarise(ops: Iterable[CampaignOp], visits: Visits, *, window: int | None = None) -> Summary:
    """Return the summary of `visits`; `window` 0 leaves the drift model out, for comparison."""
    ops = tuple(ops)
    drift = fit(visits) if window is None else fit(visits, window=window)
    by_id = {estimate.op_id: estimate for estimate in estimate_from(visits, drift)}
    rows = {op.op_id: by_id[op.op_id] for op in ops if op.role in ("op", "overhead") and op.op_id in by_id}
    for identity_id, overhead in call_overheads(ops, by_id).items():
        rows[identity_id] = overhead
    return Summary(visits=visits, drift=drift, by_id=by_id, rows=tuple(rows.values()))


def call_overheads(ops: Iterable[CampaignOp], by_id: Mapping[str, OpEstimate]) -> dict[str, OpEstimate]:
    """Return the call overhead of every input shape with pairs, by the id of the shape's identity op.

    The median over the shape's pairs of A + B - AB. Its interval holds what the members' intervals say and, if that is
    more, how far the pairs disagree: to first order the overhead depends on the shape only.
    """
    pairs: dict[Shape, list[CampaignOp]] = defaultdict(list)
    for op in ops:
        if op.role == "pair":
            members = (op.op_id, op.ops[0].op_id, op.ops[1].op_id)
            if all(member in by_id for member in members):
                pairs[input_shape(op.ops[1])].append(op)
    return {overhead_op(found[0].ops[1]).op_id: _overhead(found, by_id) for found in pairs.values()}


def _overhead(pairs: list[CampaignOp], by_id: Mapping[str, OpEstimate]) -> OpEstimate:
    saved, widths = [], []
    for pair in pairs:
        first, second, both = by_id[pair.ops[0].op_id], by_id[pair.ops[1].op_id], by_id[pair.op_id]
        saved.append(first.time_ms + second.time_ms - both.time_ms)
        halves = [half_ms(member) for member in (first, second, both)]
        if pair.ops[0] == pair.ops[1]:
            halves = [2.0 * halves[0] if halves[0] is not None else None, halves[2]]
        widths.append(None if None in halves else float(np.hypot.reduce([h for h in halves if h is not None])))
    time_ms = float(np.median(saved))
    known = [w for w in widths if w is not None]
    half: float | None = None
    if len(known) == len(widths):
        told = float(np.sqrt(np.mean(np.square(known)) / len(known)))
        spread = 1.96 * float(np.std(saved, ddof=1)) / len(saved) ** 0.5 if len(saved) > 1 else 0.0
        half = max(told, spread)
    composed = by_id[pairs[0].op_id]
    time_ms = max(time_ms, _FLOOR_MS)
    return replace(
        composed,
        op_id=overhead_op(pairs[0].ops[1]).op_id,
        time_ms=time_ms,
        lo_ms=None if half is None else max(time_ms - half, 0.5 * _FLOOR_MS),
        hi_ms=None if half is None else time_ms + half,
        p90_ms=time_ms,
        n_visits=sum(by_id[pair.op_id].n_visits for pair in pairs),
        n_rounds=min(by_id[pair.op_id].n_rounds for pair in pairs),
        n_instances=sum(by_id[pair.op_id].n_instances for pair in pairs),
        test_retest=None,  # of a small difference, it says nothing
        bimodal=any(by_id[pair.op_id].bimodal for pair in pairs),
    )


def half_ms(estimate: OpEstimate) -> float | None:
    """Return half the 95 % interval in ms; None without one."""
    if estimate.lo_ms is None or estimate.hi_ms is None:
        return None
    return 0.5 * (estimate.hi_ms - estimate.lo_ms)
