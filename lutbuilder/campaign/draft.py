"""From visits to the next version of a table before it has a number: a pure function, which a rebuild calls again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lutbuilder.campaign.carriers import in_situ_rows, timed_carriers
from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.campaign.evidence import Evidence
from lutbuilder.campaign.knots import ImputedRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lutbuilder.campaign.spec import CampaignOp
    from lutbuilder.lut import LutMeta, Row
    from lutbuilder.lut.store import RawVisit
    from lutbuilder.op import OpSpec
    from lutbuilder.stats.records import Visits
    from lutbuilder.stats.sessions import SessionReport


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The next version before it has a number: rows, footer, the fit they come from, and what that was made of.

    `n_visits`: of each campaign of the store. What comes in later, of a campaign that goes on, is of the next draft.
    """

    rows: tuple[Row, ...]
    meta: LutMeta
    summary: Summary
    evidence: Evidence
    n_visits: Mapping[str, int] = field(default_factory=dict)


def fitted(
    evidence: Evidence,
    visits: Visits,
    raw_visits: Iterable[RawVisit],
    meta: LutMeta,
    *,
    impute: Sequence[OpSpec] = (),
) -> Draft:
    """Return the draft of a version: a pure function, so that what was kept of a version makes it again bit by bit.

    `meta` is the footer as far as it does not follow from the fit; `impute` are the ops of `evidence.imputed_space`.
    """
    from lutbuilder.lut import make_rows
    from lutbuilder.lut.schema import MAX_TRACE
    from lutbuilder.stats.trace import machine_trace

    summary, reports, speed = in_line(evidence.ops, visits, keep_flagged=evidence.keep_flagged)
    reasons = {
        op_id: "precision"
        if (half := estimate.half_width) is not None and half <= evidence.precision
        else evidence.reason
        for op_id, estimate in summary.by_id.items()
    }
    paired = any(op.role == "pair" for op in evidence.ops)
    make = ImputedRows(space_ops=tuple(impute)) if impute else make_rows
    rows = make(
        evidence.ops,
        summary.rows,
        evidence.failures,
        reasons,
        method="context" if paired else "isolated",
        cache=meta.target.cache,
    )
    rows = with_calls(rows, raw_visits)
    rows = (*rows, *in_situ_rows(evidence.ops, rows, summary.by_id))
    meta = replace(
        meta,
        carriers=timed_carriers(evidence.ops, summary.by_id),
        session_reports=reports,
        drift_trace=machine_trace(visits, speed, sessions=set(evidence.sessions), points=MAX_TRACE),
    )
    return Draft(rows=rows, meta=meta, summary=summary, evidence=evidence)


def in_line(
    ops: Sequence[CampaignOp], visits: Visits, *, keep_flagged: bool = False
) -> tuple[Summary, tuple[SessionReport, ...], NDArray[np.float64]]:
    """Return the fit of the sessions in line, the report of every session, and the log slowdown at every visit.

    Which session is left out is decided by rule (stats/sessions.py); none is whose leaving would lose an op, and none
    at all with `keep_flagged`.
    """
    from lutbuilder.stats.sessions import exclude_flagged, session_reports

    everything = summarise(ops, visits)
    reports = session_reports(visits, everything.drift, exclude=not keep_flagged)
    kept = exclude_flagged(visits, reports)
    if len(kept) == len(visits):
        return everything, reports, everything.drift.speed
    if set(kept.op.tolist()) < set(visits.op.tolist()):
        return everything, session_reports(visits, everything.drift), everything.drift.speed
    return summarise(ops, kept), reports, everything.drift.speed


def with_calls(rows: Sequence[Row], raw_visits: Iterable[RawVisit]) -> tuple[Row, ...]:
    """Return the rows with what only raw calls tell: whether the op was warm, how many of its calls ran throttled."""
    from lutbuilder.stats.warmup import told_by_calls

    told = told_by_calls(raw_visits)

    def completed(row: Row) -> Row:
        calls = told.get(row.op_id)
        if calls is None:
            return row
        return replace(row, settled=calls.warmup.settled, throttled_fraction=calls.throttled_fraction)

    return tuple(map(completed, rows))
