"""Write tests/golden/lut-schema-<N>.parquet for the schema of this tree: once, when a schema is released, never again.

    python tools/make_golden_lut.py

A file that is there stays: the tests demand that it loads for ever, whatever becomes of the code below. So after a
change of the schema: raise SCHEMA_VERSION, let the rows below hold what is new, run this, and pin in
tests/unit/test_lut_schema.py what the file holds. The author of a schema may change everything here but older files.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "agents")]

from lutbuilder.campaign.spec import Target  # noqa: E402  # the path above comes first
from lutbuilder.lut import SCHEMA_VERSION, LutMeta, QualitySummary, Row  # noqa: E402  # as above
from lutbuilder.lut.store import encode_lut  # noqa: E402  # as above
from lutbuilder.op import OpSpec  # noqa: E402  # as above
from lutbuilder.stats.sessions import SessionReport  # noqa: E402  # as above
from lutbuilder_agent.records import Fingerprint, Plan  # noqa: E402  # as above

STEM = OpSpec(kind="conv", in_channels=3, out_channels=32, height=224, width=224, kernel=3, stride=2, act="relu6")
BLOCK = OpSpec(
    kind="mbconv",
    in_channels=16,
    mid_channels=96,
    out_channels=24,
    height=112,
    width=112,
    kernel=5,
    stride=2,
    act="relu6",
)
WIDER = replace(BLOCK, mid_channels=48)
FOUR_BITS = replace(STEM, w_bits=4)
EMPTY = OpSpec(kind="identity", in_channels=3, out_channels=3, height=224, width=224)
CRASHED = OpSpec(kind="logits", in_channels=1280, out_channels=1000, height=7, width=7)
SQUEEZED = replace(BLOCK, se=True, se_channels=16, act="swish", shortcut=True)
UNEXPANDED = replace(BLOCK, mid_channels=16, expand_conv=True, groups=2, act="relu")
LARGE = OpSpec(kind="conv", in_channels=3, out_channels=64, height=224, width=224, kernel=11, stride=4, padding=2)
HEAD = OpSpec(kind="lump", in_channels=3, out_channels=16, height=224, width=224, stride=2)


def imported(op: OpSpec, **columns: Any) -> Row:
    """A row of a published table."""
    origin = {"imported_format": "haq-npy", "imported_file": "golden.npy", "imported_sha256": "ef" * 32}
    return Row.of(op, evidence="imported", **origin, **columns)


def rows() -> list[Row]:
    """One row of every status that a campaign or an import gives, every column of the schema filled somewhere."""
    measured = Row.of(
        STEM,
        latency_ms=1.25,
        latency_lo_ms=1.24,
        latency_hi_ms=1.2625,
        call_overhead_ms=0.0625,
        p90_ms=1.375,
        energy_mj=0.5,
        peak_memory_bytes=1 << 20,
        macs=10838016,
        params=896,
        n_visits=60,
        n_rounds=20,
        n_instances=6,
        n_sessions=2,
        n_agents=1,
        test_retest=0.0035,
        residual_mad=0.0125,
        session_sd=0.0075,
        preempted_fraction=0.0125,
        throttled_fraction=0.25,
        bimodal=False,
        settled=True,
        stop_reason="precision",
        evidence="measured",
        method="context",
        cache="rotating",
        exec_status="native",
        exec_w_bits=32,
        exec_a_bits=32,
    )
    return [
        measured,
        replace(measured, method="calibrated", latency_ms=1.2375, latency_lo_ms=1.23, latency_hi_ms=1.245),
        Row.of(
            BLOCK,
            latency_ms=3.5,
            call_overhead_ms=0.03125,
            n_visits=5,
            n_rounds=5,
            n_instances=5,
            n_sessions=1,
            n_agents=1,
            residual_mad=0.05,
            bimodal=True,
            settled=False,
            stop_reason="budget",
            method="context",
            cache="rotating",
        ),
        Row.of(
            WIDER,
            latency_ms=1.75,
            latency_lo_ms=1.5,
            latency_hi_ms=2.0,
            evidence="modelled",
            method="imputed",
        ),
        Row.of(
            FOUR_BITS,
            latency_ms=None,
            exec_status="unsupported",
            reason="unsupported: keine 4-Bit-Gewichte für conv",
        ),
        Row.of(EMPTY, latency_ms=0.0625, n_visits=60, n_rounds=20, n_instances=6, n_sessions=2, method="context"),
        Row.of(CRASHED, latency_ms=None, exec_status="failed", reason="crashed: signal 11", method="context"),
        Row.of(SQUEEZED, latency_ms=4.25, n_visits=6, n_rounds=6, n_instances=3, n_sessions=1, method="context"),
        Row.of(UNEXPANDED, latency_ms=1.0625, n_visits=6, n_rounds=6, n_instances=3, n_sessions=1, method="context"),
        imported(LARGE, latency_ms=None, cycles=200720, reason="no clock given", method="isolated"),
        imported(
            HEAD,
            latency_ms=0.2958984375,
            latency_lo_ms=0.25,
            latency_hi_ms=0.341796875,
            energy_mj=0.5,
            method=None,
            imported_key="head",
            imported_value=295.8984375,
            imported_unit="us",
            imported_count=982,
            imported_std_ms=0.0625,
            dispersion_note="var_unverified; ddof=unknown",
        ),
    ]


def meta() -> LutMeta:
    """A footer with every field filled."""
    return LutMeta(
        target=Target(device="golden-cpu", runtime="onnxruntime"),
        fingerprint=Fingerprint(
            device="golden-cpu", facts=(("flags", "avx2 fma"), ("kernel", "6.1.0"), ("model", "Golden 3"))
        ),
        runtime_version="1.31.1",
        plan=Plan(runtime="onnxruntime", cache="rotating", train_ops=12, instances=3, seed=7, options=(("spin", "0"),)),
        tool_version="0.3.0",
        created="2026-01-31T12:00:00Z",
        version=2,
        parent_version=1,
        parent_sha256="ab" * 32,
        spaces=("proxyless",),
        quality=QualitySummary.of(rows(), timed_fraction=0.9375, wall_s=172.5, rounds=20, sessions=2),
        validation={"mape": 0.0094, "within_5": 1.0, "note": None},
        sessions=("golden-1", "golden-2"),
        stop_reason="precision",
        conditions="governor=performance; 36 °C",
        fitted_networks=("net-0123456789abcdef",),
        calibration={"method": "affine", "a_ms": -0.0125, "b": 0.99, "n_networks": 16},
        noisy=("L901",),
        session_reports=(
            SessionReport(
                session_id="golden-1",
                agent="lab-1",
                n_visits=40,
                scale=-0.005,
                drift_range=0.5,
                sentinel_residual=0.0125,
                flagged=False,
                excluded=False,
                reason="",
            ),
            SessionReport(
                session_id="golden-2",
                agent="lab-1",
                n_visits=20,
                scale=0.005,
                drift_range=0.75,
                sentinel_residual=0.05,
                flagged=True,
                excluded=True,
                reason="ops lie 5 % from the other sessions'",
            ),
        ),
        drift_trace=((0.5, 1.0), (1.5, 0.625)),
    )


def main() -> int:
    """Write the file, or say that it is there."""
    path = ROOT / "tests" / "golden" / f"lut-schema-{SCHEMA_VERSION}.parquet"
    try:
        with path.open("xb") as file:
            file.write(encode_lut(rows(), meta()))
    except FileExistsError:
        print(f"{path.name} is there and stays as it is")
        return 1
    print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
