"""Calibrated rows: what they rest on, and when they no longer hold.

A calibrated row is a correction of measured ones. When any of those is measured anew, the correction is of values that
are no longer there, so all calibrated rows leave together: half of them would not sum up to anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lutbuilder.lut.schema import LutMeta, Row

SOURCES = "sources_sha256"  # the field of LutMeta.calibration that says what was corrected
_NO_SOURCE = ("calibrated", "in_situ")  # both are corrections themselves


def sources(rows: Iterable[Row]) -> dict[str, Row]:
    """Return the rows that a calibration corrects, by op_id: of each op what was measured or imputed of it alone."""
    from lutbuilder.lut.lut import preferred

    return preferred(row for row in rows if row.method not in _NO_SOURCE)


def sources_sha256(rows: Mapping[str, Row], op_ids: Iterable[str]) -> str:
    """Return the hash of the values of these ops' rows; an op without a row counts as such."""
    body = []
    for op_id in sorted(op_ids):
        row = rows.get(op_id)
        found = [row.evidence, row.method, row.latency_ms, row.call_overhead_ms] if row is not None else []
        body.append([op_id, *found])
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def without_stale(rows: tuple[Row, ...], meta: LutMeta) -> tuple[tuple[Row, ...], LutMeta]:
    """Return rows and footer without a calibration whose measured rows have changed since.

    One that says nothing of its sources (rows transferred from another device rest on nothing in this table) stays as
    long as it has rows.
    """
    record: Mapping[str, Any] = meta.calibration or {}
    calibrated = [row.op_id for row in rows if row.method == "calibrated"]
    if not calibrated:
        return rows, replace(meta, calibration=None) if record.get("method", "none") != "none" else meta
    if SOURCES not in record or record[SOURCES] == sources_sha256(sources(rows), calibrated):
        return rows, meta
    return tuple(row for row in rows if row.method != "calibrated"), replace(meta, calibration=None)
