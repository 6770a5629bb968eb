"""The schema: what a row and a footer may hold, and what the content hash notices."""

from __future__ import annotations

import io
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.lut import COLUMNS, SCHEMA_VERSION, Lut, LutMeta, QualitySummary, Row
from lutbuilder.lut.schema import Carrier, arrow_schema, content_sha256, packed, rows_to_table, table_to_rows
from lutbuilder.lut.store import decode_lut, encode_lut
from lutbuilder.op import OpSpec
from lutbuilder.stats.sessions import SessionReport
from lutbuilder_agent.errors import LutTooNew, SpecError
from tests.lut_examples import example_meta, example_op, example_row, failed_row, rows, tables
from tests.strategies import op_specs

PROPERTY = settings(max_examples=50, deadline=None)  # no deadline: a busy machine is no failure
GROUPS = {
    "key": "op_id kind in_channels mid_channels out_channels height width kernel stride expand groups se act residual "
    "w_bits a_bits batch expand_conv shortcut padding se_channels",
    "cost": "latency_ms latency_lo_ms latency_hi_ms call_overhead_ms p90_ms energy_mj peak_memory_bytes macs params "
    "cycles",
    "trust": "n_visits n_rounds n_instances n_sessions n_agents test_retest residual_mad session_sd preempted_fraction "
    "throttled_fraction bimodal settled stop_reason",
    "knowledge": "evidence method cache exec_status exec_w_bits exec_a_bits reason",
    "imported": "imported_format imported_file imported_sha256 imported_key imported_value imported_unit "
    "imported_count imported_std_ms dispersion_note",
}


INTS = st.integers(-(1 << 63), (1 << 63) - 1)
KINDS = {
    pa.int64(): INTS,
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(st.characters(codec="utf-8"), max_size=5),
    pa.list_(pa.int64()): st.lists(INTS, max_size=4),
}


@PROPERTY
@given(st.data(), st.sampled_from(list(KINDS)))
def test_packed_columns_are_those_of_pyarrow(data: st.DataObject, kind: pa.DataType):
    values = data.draw(st.lists(st.none() | KINDS[kind], max_size=20))
    made = packed(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, type=kind))


@pytest.mark.parametrize(("value", "kind"), [(1 << 63, pa.int64()), ("\udcff", pa.string()), (1, pa.int32())])
def test_what_no_column_can_hold_is_not_packed(value: object, kind: pa.DataType):
    with pytest.raises((OverflowError, UnicodeEncodeError, KeyError)):
        packed([value], kind)


def test_the_columns_are_those_of_the_format_page():
    assert {group: " ".join(c.name for c in COLUMNS if c.group == group) for group in GROUPS} == GROUPS


def test_the_key_columns_are_the_fields_of_an_op():
    names = {column.name: column for column in COLUMNS if column.group == "key"}
    ops = {field.name: field for field in fields(OpSpec)}
    assert set(names) == {"op_id", "expand", *ops}
    # What an older file lacks is what an op without that field meant.
    assert all(column.default == ops[name].default for name, column in names.items() if column.since > 1)


def test_a_row_has_a_field_for_every_column_with_its_type_and_nullability():
    python = {"string": str, "int64": int, "float64": float, "bool": bool}
    hints = get_type_hints(Row)
    assert [field.name for field in fields(Row)] == [column.name for column in COLUMNS]
    for column in COLUMNS:
        kinds = set(get_args(hints[column.name]) or (hints[column.name],))
        assert kinds == {python[column.type], *([type(None)] if column.nullable else [])}, column.name


@PROPERTY
@given(op_specs())
def test_a_row_gives_its_op_back(op: OpSpec):
    row = Row.of(op, latency_ms=1.0)
    assert row.op == op
    assert row.op_id == op.op_id


@PROPERTY
@given(rows())
def test_a_row_survives_a_dict(row: Row):
    assert Row(**asdict(row)) == row


@PROPERTY
@given(tables())
def test_rows_survive_the_file(table: list[Row]):
    read, meta = decode_lut(encode_lut(table, example_meta()))
    assert sorted(table_to_rows(read), key=lambda row: row.key) == sorted(table, key=lambda row: row.key)
    assert meta == replace(example_meta(), content_sha256=meta.content_sha256)


@pytest.mark.parametrize(
    "changes",
    [
        {"latency_ms": 0.0},
        {"latency_ms": -1.0},
        {"latency_ms": float("nan")},
        {"latency_ms": float("inf")},
        {"latency_ms": 1},  # an integer is not a measurement
        {"latency_ms": None},
        {"latency_ms": None, "exec_status": "failed", "latency_lo_ms": None, "latency_hi_ms": None},
        {"exec_status": "failed", "reason": "crashed"},
        {"latency_lo_ms": None},
        {"latency_lo_ms": 1.005},
        {"latency_hi_ms": 0.5},
        {"p90_ms": 0.0},
        {"call_overhead_ms": -0.01},
        {"energy_mj": -1.0},
        {"preempted_fraction": 1.5},
        {"test_retest": -0.1},
        {"residual_mad": -0.1},
        {"session_sd": -0.1},
        {"throttled_fraction": 1.5},
        {"throttled_fraction": -0.5},
        {"settled": 1},
        {"n_agents": -1},
        {"n_visits": -1},
        {"n_visits": 1.5},
        {"n_visits": True},
        {"n_visits": None},
        {"macs": 2**63},
        {"bimodal": 1},
        {"evidence": "guessed"},
        {"method": None},
        {"latency_ms": None, "latency_lo_ms": None, "latency_hi_ms": None, "cycles": 5},
        {"latency_ms": None, "cycles": 5, "reason": "no clock given"},
        {"cycles": -1},
        {"imported_format": "apq-json"},
        {"evidence": "imported", "imported_count": 0},
        {"evidence": "imported", "imported_std_ms": -0.5},
        {"method": "magic"},
        {"exec_status": "fine"},
        {"cache": "warm"},
        {"reason": "\ud800"},
    ],
    ids=repr,
)
def test_a_row_refuses_nonsense(changes: dict[str, Any]):
    with pytest.raises(SpecError):
        example_row(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"op_id": "0" * 16}, {"expand": 6.0}, {"in_channels": 17}, {"kernel": 2}, {"padding": -2}, {"se_channels": -1}],
    ids=repr,
)
def test_a_row_refuses_key_columns_that_do_not_belong_together(changes: dict[str, Any]):
    with pytest.raises(SpecError):
        replace(example_row(), **changes)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "measured"),
        ({"method": "context"}, "measured"),
        ({"method": "calibrated"}, "calibrated"),
        ({"method": "imputed", "evidence": "modelled", "n_visits": 0}, "imputed"),
        ({"method": "imputed"}, "imputed"),
        ({"evidence": "imported"}, "imported"),
        ({"evidence": "modelled"}, "modelled"),
        ({"evidence": "rtl_sim"}, "rtl_sim"),
        ({"exec_status": "emulated"}, "measured"),
        *(
            ({"latency_ms": None, "latency_lo_ms": None, "latency_hi_ms": None, "reason": "x", "exec_status": s}, s)
            for s in ("failed", "unsupported")
        ),
    ],
    ids=repr,
)
def test_the_status_of_a_row_never_calls_measured_what_is_not(changes: dict[str, Any], status: str):
    assert example_row(**changes).status == status


def test_cycles_stand_in_for_a_latency_whose_clock_is_not_known():
    unclocked = {"latency_ms": None, "latency_lo_ms": None, "latency_hi_ms": None, "reason": "no clock given"}
    row = example_row(evidence="imported", cycles=200_720, **unclocked)
    assert (row.status, row.latency_ms, row.cycles) == ("imported", None, 200_720)
    assert QualitySummary.of([row]).n_failed == 0


def test_the_half_width_is_relative():
    assert example_row(latency_ms=2.0, latency_lo_ms=1.9, latency_hi_ms=2.3).half_width == pytest.approx(0.1)
    assert example_row(latency_lo_ms=None, latency_hi_ms=None).half_width is None


def test_quality_counts_failures_and_leaves_out_what_is_not_known():
    measured = [example_row(example_op(n), latency_hi_ms=1.01 + 0.1 * n, test_retest=0.1 * n) for n in range(3)]
    quality = QualitySummary.of([*measured, failed_row(example_op(3))], wall_s=2.0)
    assert (quality.n_rows, quality.n_failed, quality.wall_s, quality.rounds) == (4, 1, 2.0, None)
    assert quality.median_half_width == pytest.approx(0.06)
    assert quality.max_half_width == pytest.approx(0.11)
    assert quality.median_test_retest == pytest.approx(0.1)
    assert QualitySummary.of([failed_row()]).max_half_width is None


def test_quality_tells_the_widths_of_ops_from_those_of_call_overheads():
    overhead = OpSpec(kind="identity", in_channels=16, out_channels=16, height=28, width=28)
    rows_ = [example_row(), example_row(overhead, latency_lo_ms=0.5, latency_hi_ms=1.5, test_retest=0.9)]
    quality = QualitySummary.of(rows_)
    assert (quality.median_half_width, quality.max_half_width) == pytest.approx((0.01, 0.01))
    assert (quality.median_overhead_half_width, quality.max_overhead_half_width) == pytest.approx((0.5, 0.5))
    assert quality.median_test_retest == pytest.approx(0.004)


def test_quality_speaks_of_measured_rows_and_counts_what_was_seen_in_them():
    rows_ = [
        example_row(example_op(0), residual_mad=0.02, bimodal=True, preempted_fraction=0.5),
        example_row(example_op(1), residual_mad=0.04, preempted_fraction=0.0),
        example_row(example_op(2), residual_mad=None, bimodal=None, preempted_fraction=None),
        example_row(example_op(0), method="calibrated", latency_hi_ms=9.0, residual_mad=0.9),
        example_row(example_op(3), method="imputed", evidence="modelled", latency_hi_ms=9.0, bimodal=True),
    ]
    quality = QualitySummary.of(rows_)
    assert quality.n_rows == 5
    assert quality.max_half_width == pytest.approx(0.01)
    assert quality.median_residual_mad == pytest.approx(0.03)
    assert quality.bimodal_fraction == 0.5
    assert quality.preempted_fraction == 0.25


def test_quality_counts_pairs_and_the_larger_ops_that_are_faster():
    slow, fast = {"latency_ms": 2.0, "latency_hi_ms": 2.1, "latency_lo_ms": 1.9}, {}
    rows_ = [example_row(example_op(0), **fast), example_row(example_op(0, kernel=5), **slow)]
    assert (QualitySummary.of(rows_).n_monotone_pairs, QualitySummary.of(rows_).n_monotone_violations) == (1, 0)
    rows_ = [example_row(example_op(0), **slow), example_row(example_op(0, kernel=5), **fast)]
    assert (QualitySummary.of(rows_).n_monotone_pairs, QualitySummary.of(rows_).n_monotone_violations) == (1, 1)


SESSION = SessionReport(
    session_id="s1", agent="lab-1", n_visits=40, scale=-0.005, drift_range=0.5, sentinel_residual=0.0125, flagged=True,
    excluded=False, reason="restless",
)  # fmt: skip  # one record, two lines


def test_the_footer_survives_json():
    meta = example_meta(
        version=3,
        parent_version=2,
        parent_sha256="ab" * 32,
        content_sha256="cd" * 32,
        validation={"mape": 0.01, "deciles": (0.1, None), "ok": True, "nested": {"a": [1]}},
        conditions="governor=performance, 36 °C",
        fitted_networks=("net-1", "net-2"),
        carriers=(Carrier(op_id="net-1", op_ids=("a", "b"), time_ms=12.5),),
        calibration={"b": 0.99, "residuals": (0.1, -0.1)},
        noisy=("L901",),
        session_reports=(SESSION,),
        drift_trace=((0.5, 1.0), (1.5, 0.625)),
    )
    assert LutMeta.from_footer(meta.footer()) == meta
    assert meta.calibration == {"b": 0.99, "residuals": [0.1, -0.1]}
    assert meta.validation == {"mape": 0.01, "deciles": [0.1, None], "ok": True, "nested": {"a": [1]}}


def test_a_footer_without_a_field_that_came_later_takes_its_default():
    footer = example_meta(conditions="x").footer()
    del footer["conditions"], footer["plan"]["options"], footer["target"]["cache"]
    assert LutMeta.from_footer(footer) == example_meta()


def test_a_drift_trace_is_a_picture_and_no_recording():
    example_meta(drift_trace=((0.0, 1.0),) * 200)
    with pytest.raises(SpecError, match="at most 200 points, got 201"):
        example_meta(drift_trace=((0.0, 1.0),) * 201)


@pytest.mark.parametrize("path", ["launch_mode", "plan.launch_mode", "target.nodes", "quality.stars"])
def test_a_footer_with_an_unknown_field_is_of_a_newer_lutbuilder(path: str):
    footer: dict[str, Any] = example_meta().footer()
    *outer, name = path.split(".")
    (footer[outer[0]] if outer else footer)[name] = "eager"
    with pytest.raises(LutTooNew, match=rf"{name}; upgrade: pip install --upgrade lutbuilder"):
        LutMeta.from_footer(footer)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("version", "3", "footer.version must be a int"),
        ("version", True, "footer.version must be a int"),
        ("created", 5, "footer.created must be a str"),
        ("created", "yesterday", "ISO 8601"),
        ("name", "../../etc", "named like"),
        ("spaces", "proxyless", "footer.spaces must be a list"),
        ("spaces", [1], r"footer.spaces\[0\] must be a str"),
        ("target", [], "footer.target must be an object"),
        ("target.cache", "lukewarm", "footer.target.cache must be one of hot, rotating, flushed"),
        ("plan.threads", 0, "threads must be an integer from 1"),
        ("fingerprint.facts", [["a"]], r"footer.fingerprint.facts\[0\] must be a list"),
        ("quality.wall_s", "long", "footer.quality.wall_s must be a float"),
        ("validation", 3, "footer.validation must be a dict"),
        ("calibration", [], "footer.calibration must be a dict"),
        ("noisy", [1], r"footer.noisy\[0\] must be a str"),
        ("drift_trace", [[1.0]], r"footer.drift_trace\[0\] must be a list"),
        ("drift_trace", [[1.0, "fast"]], r"footer.drift_trace\[0\]\[1\] must be a float"),
        ("session_reports", [{"session_id": "s"}], r"footer.session_reports\[0\]\.agent is missing"),
    ],
)
def test_a_malformed_footer_is_told_by_field(path: str, value: object, told: str):
    footer: dict[str, Any] = example_meta().footer()
    *outer, name = path.split(".")
    (footer[outer[0]] if outer else footer)[name] = value
    with pytest.raises(SpecError, match=told):
        LutMeta.from_footer(footer)


def test_a_footer_without_its_target_is_refused():
    footer = example_meta().footer()
    del footer["target"]
    with pytest.raises(SpecError, match=r"footer\.target is missing"):
        LutMeta.from_footer(footer)


@pytest.mark.parametrize(
    "changes", [{"created": "2025-01-31 12:00"}, {"version": -1}, {"validation": {"x": float("nan")}}]
)
def test_a_footer_refuses_nonsense(changes: dict[str, Any]):
    with pytest.raises(SpecError):
        example_meta(**changes)


@PROPERTY
@given(tables(max_size=4), st.randoms())
def test_the_content_hash_ignores_the_order_of_rows(table: list[Row], random: Any):
    shuffled = list(table)
    random.shuffle(shuffled)
    assert content_sha256(rows_to_table(table), {}) == content_sha256(rows_to_table(shuffled), {})


CHANGED: dict[str, Any] = {
    "string": lambda value: (value or "") + "x",
    "int64": lambda value: (value or 0) + 1,
    "float64": lambda value: (value or 0.0) + 1e-12,
    "bool": lambda value: not value,
}


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_the_content_hash_notices_every_column(column: Any):
    table = rows_to_table([example_row(example_op(0)), example_row(example_op(1))])
    values = table.column(column.name).to_pylist()
    changed = [values[0], CHANGED[column.type](values[1])]
    assert content_sha256(_with(table, column.name, changed), {}) != content_sha256(table, {})
    if column.nullable:
        nulled = _with(table, column.name, [values[0], None])
        zero = CHANGED[column.type](None) if column.type == "string" else type(changed[1])(0)
        hashes = {content_sha256(t, {}) for t in (nulled, _with(table, column.name, [values[0], zero]))}
        assert len(hashes) == 2, "null is not zero"


def _with(table: Any, name: str, values: list[Any]) -> Any:
    import pyarrow as pa

    number = table.schema.get_field_index(name)
    return table.set_column(number, table.schema.field(name), pa.array(values, type=table.schema.field(name).type))


def test_the_content_hash_does_not_depend_on_how_parquet_encodes():
    raw = encode_lut([example_row(example_op(n)) for n in range(50)], example_meta())
    table = pq.read_table(io.BytesIO(raw))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False, row_group_size=7, data_page_version="2.0")
    assert sink.getvalue() != raw
    read, meta = decode_lut(sink.getvalue())
    assert meta == decode_lut(raw)[1]
    assert read.equals(decode_lut(raw)[0])


# --- Golden files: written once by the lutbuilder that introduced the schema, never again.


def test_there_is_a_golden_file_of_every_schema(root: Path):
    names = {path.name for path in (root / "tests/golden").glob("lut-schema-*.parquet")}
    assert names == {f"lut-schema-{version}.parquet" for version in range(1, SCHEMA_VERSION + 1)}


def test_the_golden_file_of_schema_1_loads_for_ever(root: Path):
    lut = Lut.load(root / "tests/golden/lut-schema-1.parquet")
    assert lut.content_hash == "05d7e81628f6e10d34a9b64a65c1685c0b57532b944effe677f937965947672a"
    meta = lut.meta
    assert (meta.schema_version, meta.name, meta.version) == (1, "golden-cpu/onnxruntime-fp32-bs1-hot", 2)
    assert (meta.parent_version, meta.parent_sha256, meta.tool_version) == (1, "ab" * 32, "0.1.0")
    assert (meta.target.device, meta.target.runtime, meta.target.batch) == ("golden-cpu", "onnxruntime", 1)
    assert dict(meta.fingerprint.facts) == {"flags": "avx2 fma", "kernel": "6.1.0", "model": "Golden 1"}
    assert (meta.plan.seed, meta.plan.instances, meta.plan.options) == (7, 3, (("spin", "0"),))
    assert (meta.spaces, meta.sessions, meta.stop_reason) == (("proxyless",), ("golden-1", "golden-2"), "precision")
    assert (meta.quality.n_rows, meta.quality.n_failed, meta.quality.wall_s) == (6, 2, 172.5)
    assert meta.validation == {"mape": 0.0094, "within_5": 1.0, "note": None}
    assert (meta.created, meta.conditions) == ("2025-01-31T12:00:00Z", "governor=performance; 36 °C")
    by_id = {row.op_id: row for row in lut}
    assert {op_id: row.latency_ms for op_id, row in by_id.items()} == {
        "cc9b79dbceb75938": 1.25,
        "23a1caced370301c": None,
        "7f539416c520d936": 0.0625,
        "a090e4885c54e25b": 0.1,
        "f42ab203bf51e81f": 3.5,
        "af63027ab7cccc63": None,
    }
    assert by_id["cc9b79dbceb75938"] == Row.of(
        OpSpec(kind="conv", in_channels=3, out_channels=32, height=224, width=224, kernel=3, stride=2, act="relu6"),
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
        n_instances=3,
        n_sessions=1,
        test_retest=0.0035,
        preempted_fraction=0.0125,
        bimodal=False,
        stop_reason="precision",
        evidence="measured",
        method="isolated",
        cache="hot",
        exec_status="native",
        exec_w_bits=32,
        exec_a_bits=32,
        reason=None,
    )
    assert by_id["23a1caced370301c"].reason == "unsupported: keine 4-Bit-Gewichte für conv"
    assert by_id["f42ab203bf51e81f"].bimodal is True
    assert by_id["a090e4885c54e25b"].latency_lo_ms is None


def test_a_file_of_schema_1_has_the_later_columns_empty_and_its_quality_counted_anew(root: Path):
    lut = Lut.load(root / "tests/golden/lut-schema-1.parquet")
    assert lut.table.schema.names == arrow_schema().names
    later = [column.name for column in COLUMNS if column.since == 2]
    assert later == ["n_agents", "residual_mad", "session_sd", "throttled_fraction", "settled"]
    for name in later:
        assert lut.table.column(name).null_count == len(lut), name
    assert np.isnan(lut.column([row.op for row in lut], "residual_mad")).all()
    assert (lut.meta.noisy, lut.meta.session_reports, lut.meta.drift_trace) == ((), (), ())
    assert (lut.meta.fitted_networks, lut.meta.calibration) == ((), None)
    assert lut.quality == replace(
        QualitySummary.of(lut.rows()), timed_fraction=lut.meta.quality.timed_fraction, wall_s=172.5,
        rounds=lut.meta.quality.rounds, sessions=lut.meta.quality.sessions,
    )  # fmt: skip  # one record, two lines


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_older_schema_has_the_columns_of_schema_3_at_their_defaults(root: Path, version: int):
    lut = Lut.load(root / f"tests/golden/lut-schema-{version}.parquet")
    assert lut.table.schema == arrow_schema()
    for column in COLUMNS:
        if column.since == 3:
            assert set(lut.table.column(column.name).to_pylist()) == {column.default}, column.name
    assert all(row.op_id == row.op.op_id for row in lut)


def test_a_column_that_came_later_is_null_or_has_a_default_in_older_files():
    assert all(column.nullable is (column.default is None) for column in COLUMNS if column.since > 1)
    assert {column.since for column in COLUMNS} <= set(range(1, SCHEMA_VERSION + 1))


def test_what_was_read_from_an_older_file_is_written_as_the_schema_of_today(root: Path):
    old = Lut.load(root / "tests/golden/lut-schema-1.parquet")
    table, meta = decode_lut(encode_lut(old.rows(), old.meta))
    assert meta.schema_version == SCHEMA_VERSION
    assert table_to_rows(table) == old.rows()


def test_the_golden_file_of_schema_2_loads_for_ever(root: Path):
    lut = Lut.load(root / "tests/golden/lut-schema-2.parquet")
    assert lut.content_hash == "fead23e7af31ce9aad226c6f205ed3f7adce6add98bbf80883d44dc4b5c0214d"
    meta = lut.meta
    assert (meta.schema_version, meta.name, meta.version) == (2, "golden-cpu/onnxruntime-fp32-bs1", 2)
    assert (meta.parent_version, meta.parent_sha256, meta.tool_version) == (1, "ab" * 32, "0.2.0")
    assert (meta.target.cache, meta.plan.train_ops, meta.plan.seed) == ("rotating", 12, 7)
    assert dict(meta.fingerprint.facts) == {"flags": "avx2 fma", "kernel": "6.1.0", "model": "Golden 2"}
    assert meta.fitted_networks == ("net-0123456789abcdef",)
    assert meta.calibration == {"method": "affine", "a_ms": -0.0125, "b": 0.99, "n_networks": 16}
    assert (meta.noisy, meta.drift_trace) == (("L901",), ((0.5, 1.0), (1.5, 0.625)))
    assert [(r.session_id, r.n_visits, r.flagged, r.excluded) for r in meta.session_reports] == [
        ("golden-1", 40, False, False),
        ("golden-2", 20, True, True),
    ]
    assert (meta.session_reports[1].scale, meta.session_reports[1].drift_range) == (0.005, 0.75)
    quality = lut.quality
    assert quality is meta.quality
    assert (quality.n_rows, quality.n_failed, quality.wall_s, quality.median_residual_mad) == (7, 2, 172.5, 0.03125)
    assert (quality.n_monotone_pairs, quality.n_monotone_violations, quality.bimodal_fraction) == (0, 0, 0.5)
    by_key = {(row.op_id, row.status): row for row in lut}
    assert {key: row.latency_ms for key, row in by_key.items()} == {
        ("cc9b79dbceb75938", "measured"): 1.25,
        ("cc9b79dbceb75938", "calibrated"): 1.2375,
        ("cddfb56401521df2", "measured"): 3.5,
        ("cf4d7fce9cc34e45", "imputed"): 1.75,
        ("5bc273fa95210cb9", "unsupported"): None,
        ("7f539416c520d936", "measured"): 0.0625,
        ("a090e4885c54e25b", "failed"): None,
    }
    row = by_key[("cc9b79dbceb75938", "measured")]
    assert (row.n_instances, row.n_sessions, row.n_agents, row.residual_mad) == (6, 2, 1, 0.0125)
    assert (row.session_sd, row.throttled_fraction, row.settled) == (0.0075, 0.25, True)
    assert by_key[("cddfb56401521df2", "measured")].settled is False
    assert lut[row.op].latency_ms == 1.2375, "a lookup takes the calibrated value"


def test_the_golden_file_of_schema_3_loads_for_ever(root: Path):
    lut = Lut.load(root / "tests/golden/lut-schema-3.parquet")
    assert lut.content_hash == "a2232d043a0317bc5d02b95f8005a25a63e5ed84b012dbf20b7779d94a43118f"
    meta = lut.meta
    assert (meta.schema_version, meta.name, meta.version) == (3, "golden-cpu/onnxruntime-fp32-bs1", 2)
    assert (meta.parent_version, meta.parent_sha256, meta.tool_version) == (1, "ab" * 32, "0.3.0")
    assert dict(meta.fingerprint.facts)["model"] == "Golden 3"
    assert (meta.noisy, meta.fitted_networks, meta.created) == (
        ("L901",),
        ("net-0123456789abcdef",),
        "2026-01-31T12:00:00Z",
    )
    assert (meta.quality.n_rows, meta.quality.n_failed, meta.quality.median_residual_mad) == (11, 2, 0.03125)
    by_key = {(row.op_id, row.status): row for row in lut}
    assert {key: row.latency_ms for key, row in by_key.items()} == {
        ("5bc273fa95210cb9", "unsupported"): None,
        ("cc9b79dbceb75938", "calibrated"): 1.2375,
        ("cc9b79dbceb75938", "measured"): 1.25,
        ("d3dca86b615cb602", "imported"): None,
        ("7f539416c520d936", "measured"): 0.0625,
        ("a090e4885c54e25b", "failed"): None,
        ("e62c8f183e80c5bb", "imported"): 0.2958984375,
        ("ea6f33e5c56fffaa", "measured"): 1.0625,
        ("cf4d7fce9cc34e45", "imputed"): 1.75,
        ("cddfb56401521df2", "measured"): 3.5,
        ("6df607fc789e87fe", "measured"): 4.25,
    }
    squeezed, unexpanded = (by_key[(op_id, "measured")].op for op_id in ("6df607fc789e87fe", "ea6f33e5c56fffaa"))
    assert (squeezed.se, squeezed.se_channels, squeezed.act, squeezed.shortcut) == (True, 16, "swish", True)
    assert (unexpanded.expand_conv, unexpanded.groups, unexpanded.mid_channels) == (True, 2, 16)
    unclocked = by_key[("d3dca86b615cb602", "imported")]
    assert (unclocked.cycles, unclocked.reason, unclocked.padding) == (200720, "no clock given", 2)
    lump = by_key[("e62c8f183e80c5bb", "imported")]
    assert (lump.kind, lump.method, lump.energy_mj, lump.imported_format) == ("lump", None, 0.5, "haq-npy")
    assert (lump.imported_value, lump.imported_unit, lump.imported_count) == (295.8984375, "us", 982)
    assert (lump.imported_std_ms, lump.imported_key, lump.imported_sha256) == (0.0625, "head", "ef" * 32)
    assert lump.dispersion_note == "var_unverified; ddof=unknown"
