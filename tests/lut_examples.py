"""LUT rows and footers for tests: small, valid, every field overridable; and strategies for any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from lutbuilder.campaign.spec import Target
from lutbuilder.lut import LutMeta, QualitySummary, Row
from lutbuilder.lut.schema import EVIDENCES, EXEC_STATUSES, METHODS, WITHOUT_LATENCY
from lutbuilder.op import OpSpec
from lutbuilder_agent.records import CACHES, Fingerprint, Plan, Timing
from tests.strategies import op_specs

CACHE = Target(device="example-cpu", runtime="onnxruntime").cache
FINGERPRINT = Fingerprint(device="example-cpu", facts=(("kernel", "6.1"), ("model", "Example 9000")))


def example_op(number: int = 0, **changes: Any) -> OpSpec:
    """A MBConv, another one for every number."""
    fields: dict[str, Any] = {"in_channels": 16, "out_channels": 24, "height": 28, "width": 28, "kernel": 3}
    return OpSpec(**{"kind": "mbconv", "mid_channels": 48 + number, **fields, **changes})


def example_row(op: OpSpec | None = None, **changes: Any) -> Row:
    """A measured row of 1.0 ms +- 1 %."""
    measured: dict[str, Any] = {
        "latency_ms": 1.0,
        "latency_lo_ms": 0.99,
        "latency_hi_ms": 1.01,
        "call_overhead_ms": 0.02,
        "p90_ms": 1.1,
        "macs": 1000,
        "params": 100,
        "n_visits": 60,
        "n_rounds": 20,
        "n_instances": 3,
        "n_sessions": 1,
        "test_retest": 0.004,
        "preempted_fraction": 0.01,
        "bimodal": False,
        "stop_reason": "precision",
        "cache": CACHE,
        "exec_w_bits": 32,
        "exec_a_bits": 32,
    }
    return Row.of(op or example_op(), **{**measured, **changes})


def failed_row(op: OpSpec | None = None, **changes: Any) -> Row:
    """A row of an op that crashed."""
    failed = {"latency_ms": None, "exec_status": "failed", "reason": "crashed: signal 11", "cache": CACHE}
    return Row.of(op or example_op(), **{**failed, **changes})


def example_meta(**changes: Any) -> LutMeta:
    """The footer of `example_row`s; fields of target and plan are given by their own names."""
    target = {name: changes.pop(name) for name in ("device", "runtime", "dtype", "batch") if name in changes}
    both = {"cache": CACHE, **{name: changes.pop(name) for name in ("threads", "cache") if name in changes}}
    train_ops = 12 if both["cache"] in ("rotating", "cold") else 1
    plan = {"runtime": target.get("runtime", "onnxruntime"), "train_ops": train_ops, **both}
    fields: dict[str, Any] = {
        "target": Target(**{"device": "example-cpu", "runtime": "onnxruntime", **target, **both}),
        "plan": Plan(**plan),
        "fingerprint": FINGERPRINT,
        "runtime_version": "1.20.0",
        "tool_version": "0.1.0",
        "created": "2025-01-31T12:00:00Z",
        "spaces": ("proxyless",),
        "sessions": ("s1",),
        "stop_reason": "precision",
        "quality": QualitySummary(timed_fraction=0.93, wall_s=170.0, rounds=20, sessions=1),
    }
    return LutMeta(**{**fields, **changes})


_MS = st.floats(1e-9, 1e9)
_COUNT = st.integers(0, 2**63 - 1)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Any row that is allowed."""
    status = draw(st.sampled_from(EXEC_STATUSES))
    evidence = draw(st.sampled_from(EVIDENCES))
    columns: dict[str, Any] = {
        "exec_status": status,
        "evidence": evidence,
        "method": draw(st.sampled_from([*METHODS, None] if evidence == "imported" else METHODS)),
        "cycles": draw(st.none() | _COUNT),
        "cache": draw(st.none() | st.sampled_from(CACHES)),
        "bimodal": draw(st.none() | st.booleans()),
        "settled": draw(st.none() | st.booleans()),
        "n_agents": draw(st.none() | _COUNT),
        "throttled_fraction": draw(st.none() | st.floats(0, 1)),
        "stop_reason": draw(st.none() | _TEXT),
        "preempted_fraction": draw(st.none() | st.floats(0, 1)),
        "test_retest": draw(st.none() | st.floats(0, 1e9)),
    }
    for name in ("energy_mj", "call_overhead_ms", "residual_mad", "session_sd"):
        columns[name] = draw(st.none() | st.floats(0, 1e9))
    for name in ("peak_memory_bytes", "macs", "params", "exec_w_bits", "exec_a_bits"):
        columns[name] = draw(st.none() | _COUNT)
    for name in ("n_visits", "n_rounds", "n_instances", "n_sessions"):
        columns[name] = draw(_COUNT)
    if evidence == "imported":
        for name in ("format", "file", "sha256", "key", "unit"):
            columns[f"imported_{name}"] = draw(st.none() | _TEXT)
        columns |= {
            "imported_value": draw(st.none() | st.floats(-1e9, 1e9)),
            "imported_count": draw(st.none() | st.integers(1, 2**63 - 1)),
            "imported_std_ms": draw(st.none() | st.floats(0, 1e9)),
            "dispersion_note": draw(st.none() | _TEXT),
        }
    if status in WITHOUT_LATENCY or (columns["cycles"] is not None and draw(st.booleans())):
        columns |= {"latency_ms": None, "reason": draw(_TEXT.filter(bool))}
    else:
        low, middle, high = sorted(draw(st.tuples(_MS, _MS, _MS)))
        columns |= {"latency_ms": middle, "p90_ms": draw(st.none() | _MS), "reason": draw(st.none() | _TEXT)}
        if draw(st.booleans()):
            columns |= {"latency_lo_ms": low, "latency_hi_ms": high}
    return Row.of(draw(op_specs()), **columns)


def tables(max_size: int = 6) -> st.SearchStrategy[list[Row]]:
    """Any rows that may stand in one LUT."""
    return st.lists(rows(), max_size=max_size, unique_by=lambda row: row.key)


@dataclass(frozen=True)
class StoredVisit:
    """A raw visit as the coordinator's store gives it."""

    campaign_id: str
    session_id: str
    timing: Timing


def visit_of(campaign_id: str, round_: int) -> StoredVisit:
    """A visit of one op, another one for every round."""
    timing = Timing(
        op_id=example_op().op_id,
        round=round_,
        order=0,
        instance=0,
        start_ns=round_,
        warmup_ns=(),
        samples_ns=(100, 101),
        preempted=(),
        throttled=None,
    )
    return StoredVisit(campaign_id, "s1", timing)
