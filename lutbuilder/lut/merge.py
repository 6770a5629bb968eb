"""Merging rows into a LUT: pure, and the same whatever the order in which campaigns arrive."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lutbuilder.lut.calibrated import without_stale
from lutbuilder.lut.schema import LutMeta, QualitySummary, Row
from lutbuilder_agent.errors import LutConflict

if TYPE_CHECKING:
    from lutbuilder.lut.lut import Lut

_NEVER_POOLED = ("device", "runtime", "dtype", "batch")  # these name the LUT's folder: another value is another LUT
_CONDITIONS = ("threads", "cache")  # of target and plan alike
_DERIVED = ("calibrated", "imputed")


def merge(
    base: Lut | None, rows: Iterable[Row], meta: LutMeta, *, new_conditions: bool = False
) -> tuple[tuple[Row, ...], LutMeta]:
    """Return the rows and footer of the version that follows `base`, now resting on `rows` as well.

    Of two rows with one key the better stays (`better`), so precision never gets worse and a failure never displaces a
    measurement. Calibrated and imputed rows follow from measured ones: new ones displace old ones, and so do imported
    ones, of which none is better known; a modelled row leaves when its op is measured. Calibrated rows leave when rows
    they correct have changed (lut/calibrated.py), and a new calibration displaces the old one whole. Spaces, sessions
    and their reports, and fitted networks accumulate; a calibration stays with its rows, carriers until there are new
    ones; all else in the footer comes from `meta`. With `new_conditions` a base measured under other conditions is left
    behind: the new version starts with `rows` alone, the old one stays.
    Raises LutConflict naming the field where target, fingerprint, runtime version, threads, cache or runtime options
    differ (device, runtime, dtype and batch: even with `new_conditions`), or where a row is not of the target's batch
    or cache.
    """
    rows = tuple(rows)
    _check_rows(rows, meta)
    kept: tuple[Row, ...] = ()
    if base is not None:
        conflicts = tuple(_conflicts(base.meta, meta))
        refused = [c for c in conflicts if c[0].removeprefix("target.") in _NEVER_POOLED] or (
            [] if new_conditions else list(conflicts)
        )
        if refused:
            raise LutConflict(_conflict_message(base, refused))
        if not conflicts:
            # A value of a published table is that table's word: nothing says which of two editions is the better.
            remade = {row.key for row in rows if row.status in _DERIVED or row.evidence == "imported"}
            # In-situ rows are made of all visits of a pool at once: those of an older fit say nothing beside new ones.
            stale = {row.op_id for row in rows if row.status == "measured"}
            kept = tuple(
                row
                for row in base.rows()
                if row.key not in remade
                and not (row.method == "in_situ" and row.op_id in stale)
                and not (row.method == "calibrated" and meta.calibration is not None)
            )
            reports = {report.session_id: report for report in (*base.meta.session_reports, *meta.session_reports)}
            meta = replace(
                meta,
                spaces=tuple(sorted({*base.meta.spaces, *meta.spaces})),
                sessions=tuple(sorted({*base.meta.sessions, *meta.sessions})),
                session_reports=tuple(reports[session_id] for session_id in sorted(reports)),
                fitted_networks=tuple(sorted({*base.meta.fitted_networks, *meta.fitted_networks})),
                carriers=meta.carriers or base.meta.carriers,
                calibration=base.meta.calibration if meta.calibration is None else meta.calibration,
            )
    merged = merge_rows((*kept, *rows))
    measured = {row.op_id for row in merged if row.status == "measured"}
    merged = tuple(row for row in merged if row.evidence != "modelled" or row.op_id not in measured)
    merged, meta = without_stale(merged, meta)
    quality = meta.quality
    return merged, replace(
        meta,
        version=base.version + 1 if base is not None else 1,
        parent_version=base.version if base is not None else None,
        parent_sha256=base.meta.content_sha256 if base is not None else None,
        content_sha256="",
        quality=QualitySummary.of(
            merged,
            timed_fraction=quality.timed_fraction,
            wall_s=quality.wall_s,
            rounds=quality.rounds,
            sessions=quality.sessions,
        ),
    )


def conflicting(old: LutMeta, new: LutMeta) -> bool:
    """Whether rows of two tables must not be pooled: `merge` needs `new_conditions`, and leaves the old ones behind."""
    return next(_conflicts(old, new), None) is not None


def merge_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the best row of each key, sorted by key. Associative, commutative and idempotent."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        held = best.get(row.key)
        best[row.key] = row if held is None else better(held, row)
    return tuple(best[key] for key in sorted(best))


def better(a: Row, b: Row) -> Row:
    """Return the row that rests on more: a latency, an interval, more sessions, a narrower interval, more visits.

    Sessions come before width: an interval over two sessions holds the spread between them, and is wider and truer.
    Equals are told apart by their content, so that the answer does not depend on which came first.
    """
    return max(a, b, key=_rank)


def _rank(row: Row) -> tuple[Any, ...]:
    width = row.half_width
    return (
        row.latency_ms is not None,
        width is not None,
        row.n_sessions,
        -width if width is not None else 0.0,
        row.n_visits,
        json.dumps(row.values()),
    )


def _check_rows(rows: Sequence[Row], meta: LutMeta) -> None:
    for row in rows:
        if row.batch != meta.target.batch:
            raise LutConflict(
                f"batch differs: {row.op.label()} is of batch {row.batch}, LUT {meta.name} of batch "
                f"{meta.target.batch}; a LUT holds one batch size, publish it under a target with batch={row.batch}"
            )
        if row.cache is not None and row.cache != meta.target.cache:
            raise LutConflict(
                f"cache differs: {row.op.label()} was timed {row.cache}, LUT {meta.name} speaks for "
                f"{meta.target.cache}; publish this row under a target with cache={row.cache!r}"
            )


def _conflicts(old: LutMeta, new: LutMeta) -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, old value, new value) for everything that must agree before rows are pooled."""
    for name in (*_NEVER_POOLED, *_CONDITIONS):
        yield from _differs(f"target.{name}", getattr(old.target, name), getattr(new.target, name))
    yield from _differs("runtime_version", old.runtime_version, new.runtime_version)
    for name in ("runtime", "options", "train_ops", *_CONDITIONS):
        yield from _differs(f"plan.{name}", getattr(old.plan, name), getattr(new.plan, name))
    if old.fingerprint.env_id != new.fingerprint.env_id:
        yield from _differs("fingerprint.device", old.fingerprint.device, new.fingerprint.device)
        old_facts, new_facts = dict(old.fingerprint.facts), dict(new.fingerprint.facts)
        for name in sorted({*old_facts, *new_facts}):
            yield from _differs(f"fingerprint fact {name!r}", old_facts.get(name), new_facts.get(name))


def _differs(field: str, old: object, new: object) -> Iterator[tuple[str, Any, Any]]:
    if old != new:
        yield field, old, new


def _conflict_message(base: Lut, conflicts: Sequence[tuple[str, Any, Any]]) -> str:
    told = "; ".join(f"{field} was {old!r} and is now {new!r}" for field, old, new in conflicts)
    if any(field.removeprefix("target.") in _NEVER_POOLED for field, _, _ in conflicts):
        advice = "This is another LUT: publish it under its own name"
    else:
        advice = "Start a new version under the new conditions: repeat the command with --new-conditions"
    return f"cannot pool with {base.spec}: {told}. {advice}"
