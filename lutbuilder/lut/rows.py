"""Rows from estimates: call overhead is subtracted here, and failures become rows that say why they have no latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import hypot
from typing import TYPE_CHECKING, Any, Protocol

from lutbuilder.campaign.plan import overhead_op
from lutbuilder.lower import lower
from lutbuilder.lut.schema import Evidence, Method, Row
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError
from lutbuilder_agent.records import Cache

if TYPE_CHECKING:
    from lutbuilder.campaign.spec import CampaignOp
    from lutbuilder.stats.records import OpEstimate

LATENCY_FLOOR_MS = 1e-6  # 1 ns: what an op gets that cannot be told from its call overhead
_REASON_CHARS = 400  # engines answer with whole stack traces
_UNTRUSTED = ("wrong_output", "bad_artifact")  # whatever was timed, it was not this op


class FailureOfOp(Protocol):
    """What is read of a failure; both lutbuilder_agent.records.Failure and the store's own record fit."""

    @property
    def op_id(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def detail(self) -> str: ...


def make_rows(
    campaign_ops: Iterable[CampaignOp],
    estimates: Sequence[OpEstimate],
    failures: Iterable[FailureOfOp],
    stop_reasons: Mapping[str, str],
    *,
    method: Method = "isolated",
    evidence: Evidence = "measured",
    cache: Cache,
) -> tuple[Row, ...]:
    """Return a row for every op, and the call overhead of every input shape, that was measured or failed.

    `estimates` are of ops, and of call overheads under the id of the shape's identity op (`overhead_op`), however those
    were measured; pairs, networks and what was never visited give no row. `stop_reasons` is by op_id.
    latency_ms is the op's estimate minus the call overhead of its input shape; its interval is the estimate's own
    (`net_half_ms`), else combines both intervals in quadrature, and stays above 0.
    - An identity's latency_ms is the overhead itself, its call_overhead_ms null: it is one, it does not have one.
    - An op not above its overhead gets LATENCY_FLOOR_MS, an upper end that still holds its uncertainty, and a reason:
      a network can still be summed, and the row says that the value is a floor.
    - An op whose overhead was not measured is `failed`, its gross time in the reason: a gross value among net ones
      would be a few per cent off and look like any other.
    - An op with visits and with failures keeps its latency and names the failure; with a wrong output it is `failed`.
    """
    by_id = {estimate.op_id: estimate for estimate in estimates}
    failed: dict[str, FailureOfOp] = {}
    for failure in failures:  # the last word counts, but nothing excuses a wrong output
        held = failed.get(failure.op_id)
        if held is None or held.reason not in _UNTRUSTED:
            failed[failure.op_id] = failure
    rows: dict[str, Row] = {}
    ops = [campaign_op.ops[0] for campaign_op in campaign_ops if campaign_op.role in ("op", "overhead")]
    for op in dict.fromkeys([*ops, *(overhead_op(op) for op in ops)]):
        columns = _common(op, by_id.get(op.op_id), failed.get(op.op_id))
        if columns is None:
            continue
        if columns.get("exec_status", "native") == "native":
            estimate = by_id[op.op_id]
            columns |= (
                _own_time(op, estimate) if op.kind == "identity" else _net(op, estimate, by_id, columns["reason"])
            )
        rows[op.op_id] = Row.of(
            op, **columns, stop_reason=stop_reasons.get(op.op_id), method=method, evidence=evidence, cache=cache
        )
    return tuple(rows.values())


def _common(op: OpSpec, estimate: OpEstimate | None, failure: FailureOfOp | None) -> dict[str, Any] | None:
    """Return the columns that do not depend on the call overhead; None if the op was never visited."""
    if estimate is None and failure is None:
        return None
    reason = (
        None if failure is None else _text(f"{failure.reason}: {failure.detail}" if failure.detail else failure.reason)
    )
    columns: dict[str, Any] = {**_size(op), "reason": reason}
    if estimate is not None:
        columns |= {
            "n_visits": int(estimate.n_visits),
            "n_rounds": int(estimate.n_rounds),
            "n_instances": int(estimate.n_instances),
            "n_sessions": int(estimate.n_sessions),
            "n_agents": int(estimate.n_agents),
            "test_retest": None if estimate.test_retest is None else float(estimate.test_retest),
            "residual_mad": float(estimate.residual_mad),
            "session_sd": None if estimate.session_sd is None else float(estimate.session_sd),
            "preempted_fraction": float(estimate.preempted_fraction),
            "bimodal": bool(estimate.bimodal),
        }
    if failure is not None and (estimate is None or failure.reason in _UNTRUSTED):
        unsupported = failure.reason == "unsupported"
        columns |= {"latency_ms": None, "exec_status": "unsupported" if unsupported else "failed"}
    return columns


def _own_time(op: OpSpec, estimate: OpEstimate) -> dict[str, Any]:
    time_ms = float(estimate.time_ms)
    low, high = _interval(estimate)
    return {
        "latency_ms": time_ms,
        "latency_lo_ms": None if low is None else max(time_ms - low, min(time_ms, LATENCY_FLOOR_MS)),
        "latency_hi_ms": None if high is None else time_ms + high,
        "p90_ms": float(estimate.p90_ms),
        "exec_w_bits": op.w_bits,
        "exec_a_bits": op.a_bits,
    }


def _net(op: OpSpec, estimate: OpEstimate, by_id: Mapping[str, OpEstimate], reason: str | None) -> dict[str, Any]:
    """Return the cost columns of an op, net of the call overhead of its input shape."""
    identity = overhead_op(op)
    overhead = by_id.get(identity.op_id)
    gross_ms = float(estimate.time_ms)
    if overhead is None:
        missing = f"call overhead ({identity.label()}) was not measured; {gross_ms:.6g} ms with it"
        return {"latency_ms": None, "exec_status": "failed", "reason": _join(reason, missing)}
    overhead_ms = float(overhead.time_ms)
    net_ms = gross_ms - overhead_ms
    (low, high), (overhead_low, overhead_high) = _interval(estimate), _interval(overhead)
    columns: dict[str, Any] = {
        "latency_ms": max(net_ms, LATENCY_FLOOR_MS),
        "call_overhead_ms": overhead_ms,
        "p90_ms": max(float(estimate.p90_ms) - overhead_ms, LATENCY_FLOOR_MS),
        "exec_w_bits": op.w_bits,
        "exec_a_bits": op.a_bits,
    }
    if estimate.net_half_ms is not None:
        columns["latency_lo_ms"] = max(net_ms - estimate.net_half_ms, LATENCY_FLOOR_MS)
        columns["latency_hi_ms"] = max(net_ms + estimate.net_half_ms, LATENCY_FLOOR_MS)
    elif low is not None and high is not None and overhead_low is not None and overhead_high is not None:
        # The difference is lowest where the op is at its low end and the overhead at its high end.
        columns["latency_lo_ms"] = max(net_ms - hypot(low, overhead_high), LATENCY_FLOOR_MS)
        columns["latency_hi_ms"] = max(net_ms + hypot(high, overhead_low), LATENCY_FLOOR_MS)
    if net_ms < LATENCY_FLOOR_MS:
        told = f"not above the call overhead ({gross_ms:.6g} ms with it, {overhead_ms:.6g} ms alone)"
        columns["reason"] = _join(reason, f"{told}; latency_ms is a floor")
    return columns


def _interval(estimate: OpEstimate) -> tuple[float | None, float | None]:
    """Return how far the 95 % interval reaches below and above the estimate, in ms; None, None without one."""
    if estimate.lo_ms is None or estimate.hi_ms is None:
        return None, None
    # A bootstrap interval may miss its own estimate; a row's never does.
    return max(float(estimate.time_ms - estimate.lo_ms), 0.0), max(float(estimate.hi_ms - estimate.time_ms), 0.0)


def _size(op: OpSpec) -> dict[str, int | None]:
    try:
        graph = lower(op)
    except SpecError:  # what no graph layer expresses yet can still be named unsupported
        return {"macs": None, "params": None}
    return {"macs": graph.macs, "params": graph.params}


def _text(words: str) -> str:
    """Return `words` on one line, short, and encodable whatever an engine printed."""
    line = " ".join(words.encode("utf-8", "replace").decode().split())
    return line if len(line) <= _REASON_CHARS else line[: _REASON_CHARS - 3] + "..."


def _join(reason: str | None, more: str) -> str:
    return more if reason is None else f"{reason}; {more}"
