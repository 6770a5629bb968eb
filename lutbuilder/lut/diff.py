"""Two tables compared row by row: FASTER, SLOWER, SAME or UNSURE; docs/quality.md says what each word promises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from lutbuilder.lut.lut import Lut, preferred
from lutbuilder.lut.schema import Row
from lutbuilder.stats.compare import MIN_ROWS, Comparison, compare
from lutbuilder_agent.errors import LutConflict, SpecError

Verdict = Literal["FASTER", "SLOWER", "SAME", "UNSURE"]

FALSE_DISCOVERIES = 0.05  # share of FASTER and SLOWER rows that did not change at all
SURE = 0.95  # probability, given all rows, that a row called SAME changed by less than the minimum effect
_QUANTILE = 1.959964  # of the 95 % interval
_WIDEST = 0.5  # relative half-width above which a row says nothing: its latency cannot be told from its call overhead
_BORROWED = 5.0  # minimum effects: where a change's own interval is wider, SAME rests on the other rows, and says so
_TOO_WIDE = 10.0  # minimum effects: where it is wider still, there is no SAME
_EXACT = 1e-4  # relative: no interval is narrower, or two equal calibrated tables would divide by nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDiff:
    """One op in both tables. `ratio` is b / a with its 95 % interval, the common scale taken out where there is one.

    `adjusted_p` and `p_same` as in lutbuilder.stats.compare; None, like the interval, where a table has no interval.
    `borrowed`: SAME because the other rows stand still; the row's own interval is wider than five minimum effects.
    """

    op_id: str
    label: str
    verdict: Verdict
    a_ms: float
    b_ms: float
    ratio: float
    ratio_lo: float | None
    ratio_hi: float | None
    adjusted_p: float | None
    p_same: float | None
    borrowed: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What table `b` says compared to table `a`. `scale` is the ratio b / a common to all rows, with its 95 % interval.

    `absolute`: the scale is still inside the rows' ratios; always so between different targets, and where fewer than
    ten rows say what is common. `differences` are what of target and conditions differs, `notes` what to know.
    """

    a: str
    b: str
    same_target: bool
    absolute: bool
    min_effect: float
    scale: float | None
    scale_lo: float | None
    scale_hi: float | None
    moved_share: float | None
    rank_correlation: float | None
    rows: tuple[RowDiff, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    def count(self, verdict: Verdict) -> int:
        """How many rows got a verdict."""
        return sum(row.verdict == verdict for row in self.rows)


def diff(a: Lut, b: Lut, *, min_effect: float = 0.02, absolute: bool = False) -> Diff:
    """Compare the rows that lookups take, ops only: call overheads are inside them. Pure.

    FASTER, SLOWER: the change is not zero, at a false discovery rate of 5 % over the rows, and is estimated beyond
    `min_effect`. SAME: otherwise, and below `min_effect` with a probability of 95 %, given how all rows behave.
    UNSURE: neither, or an interval too wide to say, or none. Raises LutConflict for tables without a common op,
    SpecError for a `min_effect` that is not between 0 and 1.
    """
    if not 0.0 < min_effect < 1.0:
        raise SpecError(f"the minimum effect must be between 0 and 1, got {min_effect}; 0.02 is 2 %")
    in_a, in_b = _ops(a), _ops(b)
    both = [op_id for op_id in in_a if op_id in in_b]
    silent = [lut.spec for lut, ops in ((a, in_a), (b, in_b)) if not ops]
    if silent:
        raise LutConflict(f"there is no latency in {silent[0]} to compare; see why: lutbuilder luts show {silent[0]}")
    if not both:
        raise LutConflict(
            f"{a.spec} and {b.spec} have no op in common: batch {a.meta.target.batch} and {b.meta.target.batch}, "
            f"spaces {', '.join(a.meta.spaces) or '-'} and {', '.join(b.meta.spaces) or '-'}; "
            "see what there is: lutbuilder luts list"
        )
    different = tuple(_differences(a, b))
    same_target = a.meta.target == b.meta.target
    known = [i for i in both if _says_something(in_a[i]) and _says_something(in_b[i])]
    log_ratio = np.array([np.log(_ms(in_b[i]) / _ms(in_a[i])) for i in known])
    log_sd = np.array([np.hypot(_log_sd(in_a[i]), _log_sd(in_b[i])) for i in known])
    absolute = absolute or not same_target or len(known) < MIN_ROWS
    told = compare(log_ratio, log_sd, effect=min_effect, absolute=absolute)
    place = {op_id: number for number, op_id in enumerate(known)}
    scale_out = 0.0 if absolute else told.scale
    return Diff(
        a=a.spec,
        b=b.spec,
        same_target=same_target,
        absolute=absolute,
        min_effect=min_effect,
        scale=float(np.exp(told.scale)) if told.common else None,
        scale_lo=float(np.exp(told.scale - _QUANTILE * told.scale_sd)) if told.common else None,
        scale_hi=float(np.exp(told.scale + _QUANTILE * told.scale_sd)) if told.common else None,
        moved_share=told.moved_share if told.common else None,
        rank_correlation=_rank_correlation([_ms(in_a[i]) for i in both], [_ms(in_b[i]) for i in both]),
        rows=tuple(_row(in_a[i], in_b[i], told, place.get(i), min_effect, scale_out) for i in both),
        only_in_a=tuple(row.op.label() for op_id, row in in_a.items() if op_id not in in_b),
        only_in_b=tuple(row.op.label() for op_id, row in in_b.items() if op_id not in in_a),
        differences=different,
        notes=tuple(_notes(a, b, len(known))),
    )


def _ops(lut: Lut) -> dict[str, Row]:
    """Return the rows that lookups take, by op_id, in the table's order; those without a latency left out."""
    rows = preferred(row for row in lut.rows() if row.kind != "identity")
    return {op_id: row for op_id, row in rows.items() if row.latency_ms is not None}


def _row(a: Row, b: Row, told: Comparison, place: int | None, min_effect: float, scale_out: float) -> RowDiff:
    about = f"{a.status} in A, {b.status} in B" if a.status != b.status else ""
    if place is None:
        silent = " and ".join(name for name, row in (("A", a), ("B", b)) if not _says_something(row))
        return RowDiff(
            op_id=a.op_id,
            label=a.op.label(),
            verdict="UNSURE",
            a_ms=_ms(a),
            b_ms=_ms(b),
            ratio=float(_ms(b) / _ms(a) * np.exp(-scale_out)),
            ratio_lo=None,
            ratio_hi=None,
            adjusted_p=None,
            p_same=None,
            note="; ".join(filter(None, (f"no interval below ±{_WIDEST:.0%} in {silent}", about))),
        )
    change, sd = float(told.change[place]), float(told.change_sd[place])
    adjusted_p, p_same = float(told.adjusted_p[place]), float(told.p_same[place])
    effect = float(np.log1p(min_effect))
    width = _QUANTILE * sd / effect
    verdict: Verdict = "UNSURE"
    if adjusted_p <= FALSE_DISCOVERIES and abs(change) >= effect:
        verdict = "SLOWER" if change > 0 else "FASTER"
    elif p_same >= SURE and width <= _TOO_WIDE:
        verdict = "SAME"
    return RowDiff(
        op_id=a.op_id,
        label=a.op.label(),
        verdict=verdict,
        a_ms=_ms(a),
        b_ms=_ms(b),
        ratio=float(np.exp(change)),
        ratio_lo=float(np.exp(change - _QUANTILE * sd)),
        ratio_hi=float(np.exp(change + _QUANTILE * sd)),
        adjusted_p=adjusted_p,
        p_same=p_same,
        borrowed=verdict == "SAME" and width > _BORROWED,
        note=about,
    )


def _differences(a: Lut, b: Lut) -> Iterable[str]:
    old, new = a.meta, b.meta
    for field in fields(old.target):
        before, after = getattr(old.target, field.name), getattr(new.target, field.name)
        if before != after:
            yield f"{field.name} {before} -> {after}"
    if old.runtime_version != new.runtime_version:
        yield f"{old.target.runtime} {old.runtime_version} -> {new.runtime_version}"
    if old.target.device == new.target.device:
        facts, later = dict(old.fingerprint.facts), dict(new.fingerprint.facts)
        for name in sorted({*facts, *later}):
            if facts.get(name) != later.get(name):
                yield f"{name} {facts.get(name, '-')} -> {later.get(name, '-')}"


def _notes(a: Lut, b: Lut, n_known: int) -> Iterable[str]:
    shared = len(set(a.meta.sessions) & set(b.meta.sessions))
    if shared:
        yield f"the tables share {shared} session(s): they rest on the same visits and look more alike than they are"
    if n_known < MIN_ROWS:
        yield f"only {n_known} rows have intervals in both: too few to tell a common scale, every row stands alone"
    for name, lut in (("A", a), ("B", b)):
        if len(lut.meta.sessions) == 1:
            yield f"{name} rests on one session: what differs from session to session is not in its intervals"
        if lut.meta.noisy:
            yield f"{name} is marked noisy ({', '.join(lut.meta.noisy)})"


def _ms(row: Row) -> float:
    if row.latency_ms is None:
        raise SpecError(f"row {row.op_id} has no latency")
    return row.latency_ms


def _says_something(row: Row) -> bool:
    return row.half_width is not None and row.half_width <= _WIDEST


def _log_sd(row: Row) -> float:
    return max(row.half_width or 0.0, _EXACT) / _QUANTILE


def _rank_correlation(a_ms: list[float], b_ms: list[float]) -> float | None:
    """Return Spearman's rank correlation of two tables; None where one is constant."""
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (np.array(a_ms), np.array(b_ms))]
    if len(a_ms) < 3 or not all(np.ptp(values) for values in (a_ms, b_ms)):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
