"""Published tables in and out: every format, on tables made up for the tests and on licensed ones where they are."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.lut import Lut, LutMeta, Row, publish, write_samples
from lutbuilder.lut.interchange import FORMATS, Imported, ReadOptions, Statistic, export_table, get, import_tables
from lutbuilder.lut.interchange.haq import layer_ops
from lutbuilder.lut.interchange.imports import rows_of, target_of
from lutbuilder.lut.interchange.records import pool_rows
from lutbuilder.lut.interchange.source import Source
from lutbuilder.lut.schema import rows_to_table
from lutbuilder.nas.compiled import compile_space
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import (
    BadTable,
    LutConflict,
    LutNotFound,
    LutNotWritable,
    OpNotInLut,
    SpecError,
    UnknownName,
)
from lutbuilder_agent.records import Timing
from tests import published_tables as made
from tests.lut_examples import example_meta, example_op, example_row

SHARED = Path(__file__).parents[2].parent / "shared/data"
WHEN = {"created": "2025-01-31T12:00:00Z", "tool_version": "0.3.0"}
INTO = "note10/tflite-fp32-bs1"


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., Imported]:
    """Return a function that writes files and imports them into a folder of the test's own."""

    def run(format: str, files: Mapping[str, bytes], *, into: str = INTO, **options: Any) -> Imported:
        home = tmp_path / "published"
        home.mkdir(exist_ok=True)
        for name, raw in files.items():
            (home / name).write_bytes(raw)
        return import_tables(
            [home / name for name in files], format=format, into=into, folder=tmp_path / "luts",
            options=ReadOptions(**options), **WHEN,
        )  # fmt: skip  # one call, two lines

    return run


def one(rows: Mapping[str, made.Fields]) -> dict[str, bytes]:
    return {"224_lookup_table.yaml": made.as_yaml(rows)}


def by_key(lut: Lut) -> dict[str, Row]:
    return {str(row.imported_key): row for row in lut}


# --- Tables keyed by text


@pytest.mark.parametrize("width", ["w1.0", "w1.2"])
@pytest.mark.parametrize("r", [160, 172, 224])
def test_a_table_of_once_for_all_has_the_ops_of_the_preset(bring: Any, r: int, width: str):
    rows = made.mbv3_rows(r, width)
    done = bring("ofa-mbv3-yaml", {f"{r}_lookup_table.yaml": made.as_yaml(rows)}, preset=f"ofa_mbv3-{width}-r{r}")
    assert len(rows) == done.n_rows == 96
    assert done.coverage is not None
    assert (done.coverage.n_ops, done.coverage.missing) == (96, ())
    assert {row.op for row in done.lut} == set(spaces.get(f"ofa_mbv3-{width}-r{r}").ops())
    assert done.lut.meta.spaces == (done.coverage.space,)
    for key, row in by_key(done.lut).items():
        assert (row.latency_ms, row.imported_count, row.imported_std_ms) == (
            rows[key]["mean"], rows[key]["count"], rows[key]["std"],
        )  # fmt: skip  # one comparison
        assert (row.evidence, row.method, row.status, row.n_visits) == ("imported", "in_situ", "imported", 0)
        assert (row.imported_format, row.imported_unit, row.imported_value) == ("ofa-mbv3-yaml", "ms", row.latency_ms)
        assert row.dispersion_note == "ddof=unknown"
        half = 1.96 * row.imported_std_ms / math.sqrt(row.imported_count)
        assert row.latency_lo_ms == pytest.approx(row.latency_ms - half, rel=1e-12)


def test_the_table_of_proxyless_has_ratios_and_variances(bring: Any):
    rows = made.proxyless_rows(ratios=(3, 6))
    done = bring("proxyless-yaml", {"mobile_trim.yaml": made.as_yaml(rows, var=True)}, preset="proxyless")
    assert (len(rows), done.n_rows) == (70, 70)
    assert done.coverage is not None
    assert done.coverage.missing == ()
    for key, row in by_key(done.lut).items():
        assert row.imported_std_ms == pytest.approx(rows[key]["std"], rel=1e-12)
        assert row.dispersion_note == "var_unverified; ddof=unknown"


def test_once_for_all_on_proxyless_has_the_ops_of_its_preset(bring: Any):
    rows = made.proxyless_rows(192)
    files = {"192_lookup_table.yaml": made.as_yaml(rows)}
    done = bring("ofa-proxyless-yaml", files, preset="ofa_proxyless-w1.0-r192")
    assert len(rows) == done.n_rows == 103
    assert {row.op for row in done.lut} == set(spaces.get("ofa_proxyless-w1.0-r192").ops())


def test_the_tables_of_all_resolutions_are_one_table_of_distinct_ops(bring: Any):
    files = {f"{r}_lookup_table.yaml": made.as_yaml(made.mbv3_rows(r)) for r in range(160, 225, 16)}
    done = bring("ofa-mbv3-yaml", files, preset="ofa_mbv3-w1.0")
    assert (done.n_values, done.n_rows) == (480, 450)
    assert done.coverage is not None
    assert done.coverage.missing == ()
    shared = done.lut[spaces.get("ofa_mbv3-w1.0").sites[-1].op({})]
    assert str(shared.imported_file).count("_lookup_table.yaml") == 5
    assert str(shared.imported_sha256).count("; ") == 4
    assert shared.imported_count == 900, "told five times, measured once"


def test_dynamic_ofa_is_the_same_in_json(bring: Any):
    rows = made.mbv3_rows(164)
    done = bring("dynamicofa-json", {"164_lookup_table.json": made.as_json(rows)}, preset="ofa_mbv3-fine")
    assert done.n_rows == 96
    assert by_key(done.lut)["Conv_2-input:1x1x960-output:1x1x1280"].latency_ms == 0.21


def test_a_csv_has_neither_counts_nor_a_method(bring: Any):
    rows = made.proxyless_rows(ratios=(3, 6))
    done = bring("proxyless-csv", {"mobile.csv": made.as_csv(rows)}, preset="proxyless")
    assert done.coverage is not None
    assert (done.n_rows, done.coverage.missing) == (70, ())
    assert {(row.imported_count, row.imported_std_ms, row.method, row.latency_lo_ms) for row in done.lut} == {
        (None, None, None, None)
    }


def test_counts_that_do_not_add_up_leave_the_method_open_unless_the_user_says_it(bring: Any):
    rows = made.mbv3_rows()
    key = next(key for key in rows if key.startswith("expanded_conv-input:56x56x24-output:28x28x40"))
    rows[key]["count"] = 300
    done = bring("ofa-mbv3-yaml", one(rows))
    assert {row.method for row in done.lut} == {None}
    assert "do not add up to one total" in done.notes[0]
    said = bring("ofa-mbv3-yaml", one(rows), method="in_situ")
    assert (said.revised, {row.method for row in said.lut}, said.notes) == (True, {"in_situ"}, ())
    rows[key]["count"] = 109  # 1 % off
    assert {row.method for row in bring("ofa-mbv3-yaml", one(rows)).lut} == {"in_situ"}


KEY = "Conv_1-input:7x7x160-output:7x7x960"


def changed(**fields: Any) -> bytes:
    """A table with other fields in one row; None takes a field away."""
    rows: dict[str, dict[str, Any]] = {key: dict(row) for key, row in made.mbv3_rows().items()}
    rows[KEY] = {name: value for name, value in {**rows[KEY], **fields}.items() if value is not None}
    text = []
    for key, row in rows.items():
        text += [f"{key}:", *(f"  {name}: {value}" for name, value in row.items())]
    return "\n".join(text).encode()


INVALID = [
    ("mean", "6.0329findstr04639175257", "mean must be a finite number, got '6.0329findstr04639175257'"),
    ("mean", -0.504, "mean must be positive, got '-0.504'"),
    ("mean", 0.0, "mean must be positive"),
    ("mean", ".nan", "mean must be a finite number"),
    ("mean", "1e999", "mean must be finite"),
    ("mean", '"1.0"', "mean must be a number"),
    ("count", 0, "count must be an integer from 1"),
    ("count", 1.5, "count must be an integer from 1"),
    ("std", -1.0, "std must not be negative"),
]


@pytest.mark.parametrize(("field", "value", "told"), INVALID)
def test_a_value_no_row_may_hold_is_told_with_file_key_and_field_and_can_be_left_out(
    bring: Any, tmp_path: Path, field: str, value: Any, told: str
):
    files = {"224_lookup_table.yaml": changed(**{field: value})}
    with pytest.raises(BadTable) as error:
        bring("ofa-mbv3-yaml", files)
    assert str(error.value).startswith(f"224_lookup_table.yaml, key {KEY!r}: {told}")
    assert "--drop-invalid" in str(error.value)
    assert not (tmp_path / "luts").exists()
    done = bring("ofa-mbv3-yaml", files, drop_invalid=True)
    assert (done.n_values, done.n_rows, len(done.dropped)) == (96, 95, 1)
    assert KEY in done.dropped[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mean": None}, "field mean is missing"),
        ({"count": None}, "field count is missing"),
        ({"median": 1.0}, "unknown field 'median'"),
        ({"var": 1.0}, "field var, where this format has std"),
    ],
)
def test_fields_that_are_missing_or_unknown_break_the_format(bring: Any, tmp_path: Path, fields: Any, told: str):
    with pytest.raises(BadTable, match=told):
        bring("ofa-mbv3-yaml", {"224_lookup_table.yaml": changed(**fields)}, drop_invalid=True)
    assert not (tmp_path / "luts").exists()


def test_a_spread_of_zero_or_none_was_not_recorded(bring: Any):
    rows = by_key(bring("ofa-mbv3-yaml", {"224_lookup_table.yaml": changed(std=0.0)}).lut)
    assert (rows[KEY].imported_std_ms, rows[KEY].latency_lo_ms, rows[KEY].dispersion_note) == (None, None, None)
    rows = by_key(bring("ofa-mbv3-yaml", {"224_lookup_table.yaml": changed(std=None)}).lut)
    assert rows[KEY].imported_std_ms is None


@pytest.mark.parametrize(
    ("format", "files", "told"),
    [
        ("proxyless-yaml", one(made.mbv3_rows()), "unknown layer type 'AvgPool2D'"),
        ("ofa-proxyless-yaml", {"224_lookup_table.yaml": made.as_yaml(made.proxyless_rows(), var=True)}, "has std"),
        ("proxyless-yaml", one(made.proxyless_rows()), "has var"),
        ("ofa-mbv3-yaml", {"192_lookup_table.yaml": made.as_yaml(made.mbv3_rows(224))}, "not 192x192"),
        ("ofa-mbv3-yaml", {"224_lookup_table.yaml": b""}, "holds no rows"),
        ("ofa-mbv3-yaml", {"224_lookup_table.yaml": b"a:\n mean: 1\n count: 1\n"}, "key 'a': not TYPE-input"),
        ("dynamicofa-json", {"224_lookup_table.json": b'{"a": 1}'}, "key 'a': not an object"),
        ("proxyless-csv", {"t.csv": b"112x112x16-56x56x24-expand:3-kernel:3-stride:2\n"}, "line 1: not KEY,MILLI"),
        ("proxyless-csv", {"t.csv": b"7x7x8-7x7x16,1.0\n\n7x7x8-7x7x16,1.0\n"}, "line 3: key .* is there twice"),
        ("proxyless-csv", {"t.csv": b"7x7x8-7x7x16,6.0329findstr04639175257\n"}, "line 1: the value must be a finite"),
        ("proxyless-csv", {"t.csv": b"\n"}, "holds no rows"),
    ],
)
def test_a_file_of_another_format_is_refused(bring: Any, tmp_path: Path, format: str, files: Any, told: str):
    with pytest.raises(BadTable, match=told):
        bring(format, files)
    assert not (tmp_path / "luts").exists()


# --- APQ


def test_apq_has_latency_and_energy_and_says_what_it_has_not(bring: Any):
    table = made.apq()
    done = bring("apq-json", {"apq.dict": made.as_json(table)}, into="bitfusion/simulator-mixed-bs1")
    rows = by_key(done.lut)
    for key, fields in table.items():
        assert (rows[key].latency_ms, rows[key].energy_mj) == (fields["latency"], fields["energy"])
    lacking = [row for row in done.lut if row.exec_status == "unsupported"]
    assert {(row.kernel, row.a_bits) for row in lacking} == {(7, 4)}
    assert len(lacking) == 12 * 3, "12 depthwise shapes, 3 weight widths"
    assert all("no 7 x 7" in str(row.reason) for row in lacking)
    assert "simulator output" in done.lut.meta.conditions
    preset = set(spaces.get("apq").ops())
    assert {row.op for row in done.lut if row.exec_status == "native"} <= preset
    assert done.coverage is not None
    assert len(done.coverage.missing) == done.coverage.n_ops - len(table)
    assert done.lut.meta.spaces == ()


@pytest.mark.parametrize(
    ("key", "fields", "told"),
    [
        ("(16, 64, 112, 1, 1, 1, 1)-W4A4", {"latency": 1, "energy": 1}, "padding 1 is not half of kernel 1"),
        ("(64, 64, 112, 3, 1, 1, 2)-W4A4", {"latency": 1, "energy": 1}, "neither 1 nor depthwise"),
        ("(16, 64, 112, 1, 1, 0, 1)-W5A4", {"latency": 1, "energy": 1}, "not head, tail or"),
        ("(16,64,112,1,1,0,1)-W4A4", {"latency": 1, "energy": 1}, "not head, tail or"),
        ("body", {"latency": 1, "energy": 1}, "not head, tail or"),
        ("head", {"latency": 1}, "latency and energy"),
        ("head", {"latency": 1, "energy": 1, "more": 1}, "latency and energy"),
        ("head", {"latency": 0, "energy": 1}, "latency must be positive"),
        ("head", {"latency": 1, "energy": -1}, "energy must not be negative"),
        ("head", 1, "latency and energy"),
    ],
)
def test_what_breaks_apqs_format_is_refused(bring: Any, key: str, fields: Any, told: str):
    with pytest.raises(BadTable, match=told):
        bring("apq-json", {"t.json": made.as_json({key: fields})}, into="bitfusion/simulator-mixed-bs1")


# --- HAQ


HAQ = "bitfusion/simulator-mixed-bs16"


def test_haq_gives_cycles_of_the_presets_layers_and_no_latency_without_a_clock(bring: Any):
    cycles = made.haq_cycles()
    done = bring("haq-npy", {"table.npy": made.npy(cycles)}, into=HAQ)
    assert done.n_rows == 31 * 64
    assert done.coverage is not None
    assert (done.coverage.n_ops, done.coverage.missing) == (1858, ())
    assert {row.latency_ms for row in done.lut} == {None}
    assert {(row.reason, row.imported_unit, row.batch, row.status) for row in done.lut} == {
        ("no clock given", "cycles", 16, "imported")
    }
    space = spaces.get("haq", batch=16)
    site = space.sites[5]
    op = site.op({site.scope[0]: 3, site.scope[1]: 2})
    assert op is not None
    assert done.lut[op].cycles == cycles[5, 2, 1]
    assert done.lut.column([op], "cycles")[0] == cycles[5, 2, 1]
    with pytest.raises(OpNotInLut, match=r"no clock given.*--clock-mhz"):
        done.lut.latency_ms([op])
    shared = next(row for row in done.lut if row.imported_key and row.imported_key.count("; ") == 2)
    assert shared.imported_key is not None
    assert shared.imported_key.startswith("[")


def test_haq_with_a_clock_has_a_latency(bring: Any):
    done = bring("haq-npy", {"table.npy": made.npy(made.haq_cycles())}, into=HAQ, clock_mhz=500.0)
    for row in done.lut:
        assert row.latency_ms == pytest.approx(row.cycles / 500e3)
        assert row.reason is None


def haq_changed(change: Callable[[Any], Any]) -> bytes:
    array = made.haq_cycles()
    changed = change(array)
    return made.npy(array if changed is None else changed)


def set_cell(array: Any, place: tuple[int, int, int], value: int) -> None:
    array[place] = value


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (haq_changed(lambda a: a[:52]), "52 layers, but preset haq has 53"),
        (haq_changed(lambda a: a.astype(np.float64)), "not 64-bit integers"),
        (haq_changed(lambda a: a[:, :, :7]), "not 64-bit integers of shape"),
        (haq_changed(lambda a: set_cell(a, (0, 3, 3), 1)), "layer 0: one more (weight|activation) bit than"),
        (haq_changed(lambda a: set_cell(a, (6, 7, 7), 10**9)), "layer 9: differs from layer 6"),
        (haq_changed(lambda a: -a[:, ::-1, ::-1].copy()), "cycles must be positive"),
        (made.npy(made.haq_cycles())[:-8], "27256 bytes|bytes of values"),
        (made.object_npy({"a": 1}), "not 64-bit integers"),
        (b"PK\x03\x04", "not an .npy file"),
    ],
    ids=range(9),
)
def test_an_array_that_is_not_haqs_is_refused(bring: Any, tmp_path: Path, raw: bytes, told: str):
    with pytest.raises(BadTable, match=told):
        bring("haq-npy", {"table.npy": raw}, into=HAQ)
    assert not (tmp_path / "luts").exists()


# --- NetAdapt


def test_netadapt_gives_seconds_of_a_batch_and_shared_layers_once(bring: Any):
    table = made.netadapt()
    done = bring("netadapt-pickle", {"lut.pkl": made.as_pickle(table)}, into="p100/torch-fp32-bs128")
    assert done.n_rows == 2 + 2 + 2 * 3 + 3 * 2
    rows = by_key(done.lut)
    row = rows["pointwise1 (16, 24)"]
    assert row.latency_ms == table["pointwise1"]["latency"][(16, 24)] * 1e3
    assert (row.imported_value, row.imported_unit, row.imported_count) == (row.latency_ms / 1e3, "s", 500)
    assert (row.batch, row.kind, row.height, row.act, row.method) == (128, "conv", 56, "none", "isolated")
    assert (rows["depthwise (8, 8)"].groups, rows["fc (24, 16)"].kind) == (8, "linear")


def test_netadapt_takes_the_ops_of_a_preset_where_the_layers_are_its(bring: Any):
    space = spaces.get("netadapt-step32", batch=128)
    table = OrderedDict(
        stem={**made.netadapt()["stem"], "num_out_channels": 32, "latency": {(3, 32): 1e-3}},
        fc={**made.netadapt()["fc"], "num_in_channels": 1024, "num_out_channels": 1000,
            "input_feature_map_size": [128, 1024, 1, 1], "latency": {(1024, 1000): 2e-3}},
    )  # fmt: skip  # two layers
    done = bring(
        "netadapt-pickle", {"lut.pkl": made.as_pickle(table)}, into="p100/torch-fp32-bs128", preset="netadapt-step32"
    )
    assert {row.op for row in done.lut} <= set(space.ops())
    assert {row.kind for row in done.lut} == {"conv", "logits"}
    assert all("timed alone" in str(row.reason) for row in done.lut)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"groups": None}, "field groups is missing"),
        ({"dilation": 1}, "unknown field 'dilation'"),
        ({"layer_type_str": "Conv3d"}, "unknown layer type 'Conv3d'"),
        ({"kernel_size": (3, 5)}, "not the same both ways"),
        ({"kernel_size": (2, 2)}, "must be odd"),
        ({"groups": 2}, "is_depthwise False with 2 groups"),
        ({"input_feature_map_size": [128, 8, 224, 224]}, "a map of 8 channels for a layer of 3"),
        ({"input_feature_map_size": [128, 3]}, "not \\[batch"),
        ({"latency": {3: 1.0}}, "channels 3 is no pair"),
        ({"latency": {(3, 16): -1.0}}, r"layer 'stem' \(3, 16\): latency must be positive, got -1.0"),
        ({"latency": {(3, 16): float("nan")}}, "latency must be finite"),
        ({"latency": [1.0]}, "latency is no mapping"),
        ({"stride": (0, 0)}, "stride must be an integer from 1"),
        ({"layer_type_str": "ConvTranspose2d"}, "a transposed convolution"),
    ],
)
def test_what_breaks_netadapts_format_is_refused(bring: Any, change: dict[str, Any], told: str):
    table = made.netadapt()
    table["stem"] = {name: value for name, value in {**table["stem"], **change}.items() if value is not None}
    with pytest.raises(BadTable, match=told):
        bring("netadapt-pickle", {"lut.pkl": made.as_pickle(table)}, into="p100/torch-fp32-bs128")


def test_a_table_of_macs_is_no_table_of_latencies(bring: Any):
    with pytest.raises(BadTable, match="these are MACs, not latencies"):
        bring("netadapt-pickle", {"macs.pkl": made.as_pickle([{(3, 16): 442368}])}, into="p100/torch-fp32-bs128")


# --- TF-NAS


TITAN = "titan/torch-fp32-bs32"


def test_tfnas_was_timed_at_multiples_of_8_and_imputed_between(bring: Any):
    table = made.tfnas()
    done = bring("tfnas-pickle", {"latency_gpu.pkl": made.as_pickle(table)}, into=TITAN, batch=32)
    assert done.n_rows == 1 + 2 * 24
    rows = by_key(done.lut)
    assert rows["base"].kind == "lump"
    assert "summed" in str(rows["base"].reason)
    first = "MBInvertedResBlock_112_16_0_24_k3_s2_relu"
    assert {int(key.split()[1]) for key, row in rows.items() if row.method == "isolated" and key.startswith(first)} == {
        8, 16, 24,
    }  # fmt: skip  # three knots
    assert rows[f"{first} 12"].status == "imputed"
    squeezed = rows["MBInvertedResBlock_14_80_80_80_k5_s1_swish 24"].op
    assert (squeezed.se, squeezed.squeeze_channels, squeezed.act, squeezed.residual) == (True, 80, "swish", True)
    assert squeezed.batch == 32


def test_a_value_off_the_line_was_timed(bring: Any):
    table = made.tfnas()
    key = "MBInvertedResBlock_112_16_0_24_k3_s2_relu"
    table[key][12] *= 1 + 1e-6
    rows = by_key(bring("tfnas-pickle", {"t.pkl": made.as_pickle(table)}, into=TITAN, batch=32).lut)
    assert (rows[f"{key} 12"].method, rows[f"{key} 13"].method) == ("isolated", "imputed")


def test_negative_latencies_are_told_by_key_and_counted_when_left_out(bring: Any, tmp_path: Path):
    table = made.tfnas()
    key = "MBInvertedResBlock_112_16_0_24_k3_s2_relu"
    table[key].update({1: -0.2331, 2: -0.2076})
    files = {"t.pkl": made.as_pickle(table)}
    with pytest.raises(BadTable, match=f"t.pkl, key '{key}' mid 1: latency must be positive, got -0.2331"):
        bring("tfnas-pickle", files, into=TITAN, batch=32)
    assert not (tmp_path / "luts").exists()
    done = bring("tfnas-pickle", files, into=TITAN, batch=32, drop_invalid=True)
    assert (done.n_rows, len(done.dropped)) == (47, 2)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"Block_1": {8: 1.0}}, "key 'Block_1': not base or MBInvertedResBlock"),
        ({"MBInvertedResBlock_14_80_80_80_k5_s1_gelu": {8: 1.0}}, "unknown activation 'gelu'"),
        ({"MBInvertedResBlock_14_80_80_80_k4_s1_relu": {8: 1.0}}, "must be odd"),
        ({"MBInvertedResBlock_14_80_80_80_k5_s1_relu": {0: 1.0}}, "channels in the middle 0"),
        ({"MBInvertedResBlock_14_80_80_80_k5_s1_relu": {}}, "not a mapping of ms"),
        ({"MBInvertedResBlock_14_80_80_80_k5_s1_relu": {8: "fast"}}, "mid 8: latency must be a number"),
        ([1.0], "not a mapping of blocks"),
    ],
)
def test_what_breaks_tfnas_format_is_refused(bring: Any, table: Any, told: str):
    with pytest.raises(BadTable, match=told):
        bring("tfnas-pickle", {"t.pkl": made.as_pickle(table)}, into=TITAN, batch=32)


# --- FBNet


S8 = "s8/caffe2-int8-bs1"


def test_fbnet_gives_means_of_equal_layers_and_skips_of_their_own(bring: Any):
    done = bring("fbnet-txt", {"s8.txt": made.fbnet()}, into=S8, unit="us")
    space = spaces.get("fbnet")
    assert done.coverage is not None
    assert done.coverage.n_ops - len(done.coverage.missing) == 96, "stem, head and logits are not in the file"
    skips = [row for row in done.lut if row.kind == "identity"]
    assert len(skips) == 6
    assert [row.latency_ms for row in skips] == [pytest.approx(1.5e-3)] * 6
    second = space.site_ops[2][0]  # first layer of the second stage, alone of its shape
    assert second is not None
    assert done.lut[second].latency_ms == pytest.approx(0.101)
    third = space.site_ops[3][0]  # layers 3, 4 and 5 are of one shape
    assert third is not None
    row = done.lut[third]
    assert row.latency_ms == pytest.approx(0.103)
    assert (row.imported_value, row.imported_unit, row.imported_count) == (pytest.approx(103.0), "us", None)
    assert "mean of 3 layers" in str(row.reason)
    assert "6 values of skip" in done.notes[0]


def test_search_pays_for_a_skip_what_the_table_says(bring: Any):
    table = bring("fbnet-txt", {"s8.txt": made.fbnet()}, into=S8, unit="us").lut
    space = spaces.get("fbnet")
    fixed = [Row.of(op, latency_ms=1.0, evidence="imported") for op in space.ops() if op not in table]
    lut = replace(table, table=rows_to_table([*table, *fixed]))
    compiled = compile_space(space, lut)
    skips = [number for number, ops in enumerate(space.site_ops) if None in ops]
    assert len(skips) == 16
    assert all(compiled.sites[number].costs[-1] == pytest.approx(1.5e-3) for number in skips)
    overheads = [replace(row, evidence="measured", **NOT_IMPORTED) if row.kind == "identity" else row for row in lut]
    compiled = compile_space(space, replace(lut, table=rows_to_table(overheads)))
    assert all(compiled.sites[number].costs[-1] == 0.0 for number in skips), "a call overhead is not a skip"


NOT_IMPORTED = {
    "method": "isolated",
    **dict.fromkeys(
        f"imported_{name}" for name in ("format", "file", "sha256", "key", "value", "unit", "count", "std_ms")
    ),
}


def test_a_skip_of_0_is_no_row(bring: Any):
    done = bring("fbnet-txt", {"s8.txt": made.fbnet().replace(b" 1.5\n", b" 0.0\n")}, into=S8, unit="us")
    assert [row for row in done.lut if row.kind == "identity"] == []


def test_fbnet_without_a_header_needs_its_columns(bring: Any):
    raw = made.fbnet(header=False, scale=1e-3)
    with pytest.raises(BadTable, match="has no header: name its columns, --columns ir_k3_e1,"):
        bring("fbnet-txt", {"t.txt": raw}, into=S8, unit="ms")
    done = bring("fbnet-txt", {"t.txt": raw}, into=S8, unit="ms", columns="preset")
    ordered = ",".join(["skip", *(word.decode() for word in made.fbnet().split()[:8])])
    swapped = "\n".join(" ".join([line.split()[-1], *line.split()[:-1]]) for line in raw.decode().splitlines())
    again = bring("fbnet-txt", {"u.txt": swapped.encode()}, into="s8/other-int8-bs1", unit="ms", columns=ordered)
    assert {row.op_id: row.latency_ms for row in done.lut} == {row.op_id: row.latency_ms for row in again.lut}


@pytest.mark.parametrize(
    ("raw", "options", "told"),
    [
        (made.fbnet(), {"columns": "preset"}, "leave --columns out"),
        (made.fbnet(header=False), {"columns": "a,b"}, "there must be each of"),
        (b"\n".join(made.fbnet().split(b"\n")[:18]), {}, "17 lines of values, but the preset has 22"),
        (made.fbnet().replace(b" 1.5\n", b"\n"), {}, "line 2: 8 values, not 9"),
        (made.fbnet().replace(b"105.0", b"1x5.0"), {}, "line 7 column ir_k3_e1: the value must be a finite"),
        (made.fbnet().replace(b"ir_k5_e6", b"ir_k7_e6"), {}, "there must be each of"),
        (made.fbnet().replace(b" 1.5\n", b" -1.5\n"), {}, "line 2 column skip: the value must be positive"),
        (b"", {"columns": "preset"}, "0 lines|1 lines"),
    ],
    ids=range(8),
)
def test_what_breaks_fbnets_format_is_refused(bring: Any, raw: bytes, options: Any, told: str):
    with pytest.raises(BadTable, match=told):
        bring("fbnet-txt", {"t.txt": raw}, into=S8, unit="us", **options)


# --- Once-for-all's efficiency table


GPU = "titan/torch-fp32-bs64"
LATENCY = {"quantity": "latency", "preset": "ofa_mbv3-w1.0"}


def test_the_efficiency_table_follows_the_rule_of_its_producer(bring: Any):
    files = {"lut.npy": made.object_npy(made.ofa_flops())}
    done = bring("ofa-flops-npy", files, into=GPU, quantity="latency", preset="ofa_mbv3-w1.2")
    widths = {row.in_channels for row in done.lut if row.kind == "mbconv"}
    assert widths == {19, 29, 48, 96, 134, 192}
    stem = next(row for row in done.lut if row.kernel == 3 and row.kind == "conv")
    assert (stem.in_channels, stem.out_channels, stem.latency_ms, stem.batch) == (4, 19, 1.5, 64)
    assert done.coverage is not None
    assert len(done.coverage.missing) > 0.9 * done.coverage.n_ops
    assert "block 0 at kernel 3" in done.lut.meta.conditions


def test_at_width_1_its_blocks_are_those_of_the_preset(bring: Any):
    done = bring("ofa-flops-npy", {"lut.npy": made.object_npy(made.ofa_flops())}, into=GPU, **LATENCY)
    space = set(spaces.get("ofa_mbv3-w1.0-r224", batch=64).ops())
    blocks = {row.op for row in done.lut if row.kind == "mbconv"}
    assert blocks - space == {op for op in blocks if op.kernel > 3 and op.mid_channels == op.in_channels}
    assert done.coverage is not None
    rows = by_key(done.lut)
    assert rows["[224]['mobile_inverted_blocks'][1][(3, 4)]"].latency_ms == pytest.approx(2.24 + 0 + 1.2)
    averaged = next(row for key, row in rows.items() if "[2][(3, 4)]" in key)
    assert "mean of 3 layers" in str(averaged.reason)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t[224]["other_blocks"].update({21: 1.0}), r"\['other_blocks'\]\[21\] is no place"),
        (lambda t: t[224]["mobile_inverted_blocks"][3].update({(9, 3): 1.0}), "is no place of this format"),
        (lambda t: t[224]["mobile_inverted_blocks"].pop(), "20 blocks, not 21"),
        (lambda t: t[224].pop("other_blocks"), "not a mapping with"),
        (lambda t: t.update({"224": t[224]}), "a resolution is an integer"),
        (lambda t: t[224]["other_blocks"].update({0: -1.0}), "the value must be positive, got -1.0"),
        (lambda t: t[224]["mobile_inverted_blocks"].__setitem__(2, 5), "block 2 is no mapping"),
    ],
    ids=range(7),
)
def test_what_breaks_the_efficiency_table_is_refused(bring: Any, change: Callable[[Any], Any], told: str):
    table = made.ofa_flops()
    change(table)
    with pytest.raises(BadTable, match=told):
        bring("ofa-flops-npy", {"lut.npy": made.object_npy(table)}, into=GPU, **LATENCY)


# --- What only the user can know


@pytest.mark.parametrize(
    ("format", "options", "told"),
    [
        ("tfnas-pickle", {}, "--batch 32 for the published GPU table"),
        ("fbnet-txt", {}, "--unit us for the published file with a header"),
        ("fbnet-txt", {"unit": "cycles"}, "--unit us"),
        ("ofa-flops-npy", {"preset": "ofa_mbv3-w1.0"}, "--quantity latency"),
        ("ofa-flops-npy", {"quantity": "flops", "preset": "ofa_mbv3-w1.0"}, "--quantity latency"),
        ("ofa-flops-npy", {"quantity": "latency"}, "--preset ofa_mbv3-w1.0 or"),
        ("haq-npy", {"preset": "fbnet"}, "try --preset haq"),
        ("fbnet-txt", {"preset": "haq", "unit": "us"}, "try --preset fbnet"),
        ("apq-json", {"preset": "fbnet"}, "this table is of --preset apq"),
        ("apq-json", {"clock_mhz": 500.0}, "--clock-mhz means nothing to apq-json, which takes --preset, --batch"),
        ("ofa-mbv3-yaml", {"unit": "ms"}, "--unit means nothing to ofa-mbv3-yaml, which takes --method"),
    ],
)
def test_what_is_missing_or_means_nothing_is_asked_for(bring: Any, format: str, options: Any, told: str):
    with pytest.raises(SpecError, match=told):
        bring(format, {"t": b"x"}, into="any/thing-fp32-bs1", **options)


@pytest.mark.parametrize("name", ["note10", "a/b", "a/b-fp32-bs1/c", "a/b-fp32-bs01", "a/b-fp32-bs1-rotating", ""])
def test_a_table_is_named_for_what_it_speaks(name: str):
    with pytest.raises(SpecError, match=r"DEVICE/RUNTIME-DTYPE-bsN|would be called"):
        target_of(name, Path("luts"))


@pytest.mark.parametrize("name", ["note10/tflite-fp32-bs1", "a/b-c-int8-bs16-t4-hot", "bitfusion/simulator-mixed-bs1"])
def test_a_name_is_the_name_of_its_target(name: str):
    assert target_of(name, Path("luts")).lut_name == target_of(f"luts/{name}", Path("luts")).lut_name == name


def test_the_batch_of_the_name_is_that_of_the_rows(bring: Any):
    with pytest.raises(LutConflict, match=r"the table is of batch 1, .* of batch 4: name it -bs1"):
        bring("ofa-mbv3-yaml", one(made.mbv3_rows()), into="note10/tflite-fp32-bs4")


def test_files_that_are_not_there_are_told(tmp_path: Path):
    where = {"format": "ofa-mbv3-yaml", "into": INTO, "folder": tmp_path / "luts", **WHEN}
    with pytest.raises(LutNotFound, match="no file"):
        import_tables([tmp_path / "no.yaml"], **where)
    with pytest.raises(LutNotFound, match=r"no \*_lookup_table.yaml in"):
        import_tables([tmp_path], **where)
    with pytest.raises(UnknownName, match="did you mean ofa-mbv3-yaml"):
        import_tables([tmp_path], **{**where, "format": "ofa-mbv3-yml"})


# --- Editions


def test_the_same_files_again_publish_nothing(bring: Any):
    first = bring("ofa-mbv3-yaml", one(made.mbv3_rows()))
    again = bring("ofa-mbv3-yaml", one(made.mbv3_rows()))
    assert (first.published, again.published, again.lut.version) == (True, False, 1)


def test_more_files_of_the_edition_add_rows(bring: Any):
    bring("ofa-mbv3-yaml", one(made.mbv3_rows()), preset="ofa_mbv3-w1.0-r224")
    rows = {k: v for k, v in made.mbv3_rows(160).items() if k not in made.mbv3_rows()}
    fresh = {k: v for k, v in rows.items() if "input:14x14" not in k and "input:7x7" not in k}
    done = bring("ofa-mbv3-yaml", {"160_lookup_table.yaml": made.as_yaml(fresh)})
    assert (done.revised, done.lut.version, len(done.lut)) == (False, 2, 96 + len(fresh))
    assert done.lut.meta.spaces == ("ofa_mbv3-r224",)


def test_other_values_for_the_same_ops_are_a_new_edition_beside_the_old(bring: Any):
    first = bring("ofa-mbv3-yaml", one(made.mbv3_rows()))
    second = bring("ofa-mbv3-yaml", {"160_lookup_table.yaml": made.as_yaml(made.mbv3_rows(160, scale=1.39))})
    assert (second.revised, second.lut.version, len(second.lut)) == (True, 2, 96)
    assert Lut.load(first.lut.path).latency_ms([next(iter(first.lut)).op])[0] > 0


def test_imported_rows_do_not_join_a_table_that_was_measured(bring: Any, tmp_path: Path):
    meta = example_meta(device="note10", runtime="tflite", cache="rotating")
    publish([example_row(cache="rotating")], meta, folder=tmp_path / "luts")
    with pytest.raises(LutConflict, match="holds rows that were measured here"):
        bring("ofa-mbv3-yaml", one(made.mbv3_rows()))


# --- Statistics


def test_samples_pool_exactly():
    pooled = Statistic(count=2, mean=1.0, variance=0.0).pooled(Statistic(count=2, mean=3.0, variance=0.0))
    assert pooled == Statistic(count=4, mean=2.0, variance=1.0)


@given(st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), min_size=2, max_size=4))
def test_pooling_is_what_the_samples_together_would_give(groups: list[list[float]]):
    told = [Statistic(count=len(g), mean=float(np.mean(g)), variance=float(np.var(g))) for g in groups]
    pooled = told[0]
    for other in told[1:]:
        pooled = pooled.pooled(other)
    samples = np.concatenate(groups)
    assert pooled.count == len(samples)
    assert pooled.mean == pytest.approx(float(samples.mean()))
    assert pooled.variance == pytest.approx(float(samples.var()), abs=1e-9)


def imported_row(ms: float, **columns: Any) -> Row:
    told = {"imported_value": ms, "imported_unit": "ms", "imported_file": f"{ms}.yaml", "imported_sha256": f"{ms}"}
    return Row.of(example_op(), evidence="imported", latency_ms=ms, **{**told, **columns})


def test_rows_of_one_op_pool_by_their_counts_and_keep_both_parents():
    row = pool_rows(
        [
            imported_row(1.0, imported_count=2, imported_std_ms=0.0),
            imported_row(3.0, imported_count=2, imported_std_ms=0.0),
        ]
    )
    assert (row.latency_ms, row.imported_count, row.imported_std_ms) == (2.0, 4, 1.0)
    assert (row.imported_file, row.imported_sha256) == ("1.0.yaml; 3.0.yaml", "1.0; 3.0")
    assert (row.p90_ms, row.latency_lo_ms) == (None, pytest.approx(2.0 - 0.98))


def test_one_spread_that_is_not_known_makes_the_pooled_one_unknown():
    row = pool_rows([imported_row(1.0, imported_count=1, imported_std_ms=0.5), imported_row(3.0, imported_count=1)])
    assert (row.latency_ms, row.imported_std_ms, row.latency_lo_ms) == (2.0, None, None)


def test_values_without_counts_do_not_pool():
    with pytest.raises(BadTable, match="no counts to weigh them"):
        pool_rows([imported_row(1.0), imported_row(3.0, imported_count=1)])
    assert pool_rows([imported_row(1.0), imported_row(1.0)]).latency_ms == 1.0


def test_measured_and_imported_rows_do_not_make_one_statistic():
    with pytest.raises(LutConflict, match="do not make one statistic"):
        pool_rows([imported_row(1.0), example_row()])


# --- Out again


ROUND_TRIPS: dict[str, Callable[[Any], Imported]] = {
    "proxyless-yaml": lambda bring: bring(
        "proxyless-yaml", {"m.yaml": made.as_yaml(made.proxyless_rows(ratios=(3, 6)), var=True)}, preset="proxyless"
    ),
    "ofa-proxyless-yaml": lambda bring: bring(
        "ofa-proxyless-yaml",
        {f"{r}_lookup_table.yaml": made.as_yaml(made.proxyless_rows(r, scale=1 + r / 1e4)) for r in (192, 224)},
    ),
    "ofa-mbv3-yaml": lambda bring: bring(
        "ofa-mbv3-yaml",
        {f"{r}_lookup_table.yaml": made.as_yaml(made.mbv3_rows(r, scale=1 + r / 1e4)) for r in range(160, 225, 16)},
        preset="ofa_mbv3-w1.0",
    ),
    "dynamicofa-json": lambda bring: bring(
        "dynamicofa-json", {"224_lookup_table.json": made.as_json(made.mbv3_rows())}, preset="ofa_mbv3-w1.0-r224"
    ),
    "proxyless-csv": lambda bring: bring("proxyless-csv", {"m.csv": made.as_csv(made.proxyless_rows())}),
    "apq-json": lambda bring: bring("apq-json", {"a.dict": made.as_json(made.apq())}),
    "haq-npy": lambda bring: bring("haq-npy", {"h.npy": made.npy(made.haq_cycles())}, into=HAQ),
    "fbnet-txt": lambda bring: bring("fbnet-txt", {"f.txt": made.fbnet()}, unit="us"),
    "netadapt-pickle": lambda bring: bring(
        "netadapt-pickle", {"n.pkl": made.as_pickle(alexnet())}, preset="netadapt-step32", into="p100/torch-fp32-bs1",
        batch=1,
    ),
    "tfnas-pickle": lambda bring: bring("tfnas-pickle", {"t.pkl": made.as_pickle(made.tfnas())}, into=TITAN, batch=32),
    "ofa-flops-npy": lambda bring: bring(
        "ofa-flops-npy", {"l.npy": made.object_npy(made.ofa_flops())}, into=GPU, quantity="latency",
        preset="ofa_mbv3-w1.0-r224",
    ),
}  # fmt: skip  # a table reads as one
PRESETS = {
    "ofa-proxyless-yaml": "ofa_proxyless-w1.0-r224", "netadapt-pickle": "netadapt-step32",
    "ofa-flops-npy": "ofa_mbv3-w1.0-r224",
}  # fmt: skip  # one mapping
AGAIN: dict[str, dict[str, Any]] = {
    "proxyless-yaml": {"preset": "proxyless"}, "fbnet-txt": {"unit": "ms"}, "tfnas-pickle": {"batch": 32},
    "ofa-flops-npy": {"quantity": "latency", "preset": "ofa_mbv3-w1.0-r224"},
    "netadapt-pickle": {"preset": "netadapt-step32"},
}  # fmt: skip  # one mapping


def alexnet() -> OrderedDict[str, Any]:
    """NetAdapt's table of MobileNetV1 at multiples of 32, layer by layer."""
    table: OrderedDict[str, Any] = OrderedDict()
    extent, before = 112, 32
    stem = {**made.netadapt()["stem"], "num_out_channels": 32, "latency": {(3, 32): 1e-3}}
    table["stem"] = stem
    pairs = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1))
    grid = lambda full: range(full, 0, -32)  # noqa: E731  # used four lines below and nowhere else
    for number, (out, stride) in enumerate(pairs, start=1):
        shape = {"input_feature_map_size": [1, before, extent, extent], "num_in_channels": before}
        table[f"dw{number}"] = {
            **made.netadapt()["depthwise"], **shape, "num_out_channels": before, "groups": before,
            "stride": (stride, stride), "latency": {(c, c): 1e-5 * c + 1e-8 * extent for c in grid(before)},
        }  # fmt: skip  # one layer
        extent //= stride
        shape = {"input_feature_map_size": [1, before, extent, extent], "num_in_channels": before}
        table[f"pw{number}"] = {
            **made.netadapt()["pointwise1"], **shape, "num_out_channels": out,
            "latency": {(i, o): 1e-9 * i * o + 1e-8 * extent for i in grid(before) for o in grid(out)},
        }  # fmt: skip  # one layer
        before = out
    table["fc"] = {
        **made.netadapt()["fc"], "num_in_channels": before, "num_out_channels": 1000,
        "input_feature_map_size": [1, before, 1, 1], "latency": {(i, 1000): 1e-7 * i for i in grid(before)},
    }  # fmt: skip  # one layer
    return table


@pytest.mark.parametrize("format", list(ROUND_TRIPS))
def test_what_was_exported_is_imported_as_it_was(bring: Any, tmp_path: Path, format: str):
    table = ROUND_TRIPS[format](bring).lut
    out = tmp_path / "out"
    written = export_table(
        table, out, format=format, tool_version="0.3.0", evidence=("imported",), preset=PRESETS.get(format),
        allow_pickle=get(format).pickled,
    )  # fmt: skip  # one call
    again = import_tables(
        written.files, format=format, into=f"again/{table.name.split('/')[1]}", folder=tmp_path / "luts",
        options=ReadOptions(**AGAIN.get(format, {})), **WHEN,
    ).lut  # fmt: skip  # one call
    old = {row.op_id: row for row in table}
    only_mean = format in ("fbnet-txt", "netadapt-pickle", "ofa-flops-npy", "tfnas-pickle", "proxyless-csv")
    assert len(again) == len(table) or format in ("ofa-proxyless-yaml", "haq-npy")
    for row in again:
        was = old[row.op_id]
        assert row.latency_ms == (pytest.approx(was.latency_ms, rel=1e-12) if only_mean else was.latency_ms)
        assert (row.cycles, row.energy_mj, row.exec_status) == (was.cycles, was.energy_mj, was.exec_status)
        assert only_mean or (row.imported_count, row.imported_std_ms) == (was.imported_count, was.imported_std_ms)
    sidecar = json.loads(written.sidecar.read_text(encoding="utf-8"))
    assert sidecar["table"] == {"name": table.name, "version": table.version, "content_sha256": table.content_hash}
    assert (sidecar["evidence"], sidecar["format"]) == ({"imported": written.n_values}, format)
    assert str(tmp_path) not in written.sidecar.read_text(encoding="utf-8")


def test_every_format_has_a_round_trip():
    assert set(ROUND_TRIPS) == set(FORMATS)
    assert {get(name).name for name in FORMATS} == set(FORMATS)


def test_keys_are_sorted_and_values_have_all_their_digits(bring: Any, tmp_path: Path):
    rows = made.proxyless_rows(ratios=(3, 6))
    rows[next(iter(rows))]["mean"] = 4.083755600814664
    raw = made.as_yaml(rows)
    lut = bring("ofa-proxyless-yaml", {"224_lookup_table.yaml": raw}, preset=None).lut
    written = export_table(lut, tmp_path / "o.yaml", format="proxyless-yaml", tool_version="0", evidence=("imported",))
    text = written.files[0].read_text(encoding="utf-8")
    keys = [line[:-1] for line in text.splitlines() if not line.startswith(" ")]
    assert keys == sorted(rows)
    assert "  mean: 4.083755600814664\n" in text


def measured(space: str, **meta: Any) -> tuple[list[Row], LutMeta]:
    ops = spaces.get(space).ops()
    rows = [
        example_row(op, latency_ms=1.0 + n, latency_lo_ms=0.9 + n, latency_hi_ms=1.1 + n) for n, op in enumerate(ops)
    ]
    return rows, example_meta(spaces=(space,), **meta)


def test_rows_that_were_not_measured_are_written_only_when_asked_for(bring: Any, tmp_path: Path):
    lut = bring("ofa-mbv3-yaml", one(made.mbv3_rows()), preset="ofa_mbv3-w1.0-r224").lut
    with pytest.raises(OpNotInLut, match="no latency_ms of the evidence asked for, of 96 ops: conv 3x224x224"):
        export_table(lut, tmp_path / "out", format="ofa-mbv3-yaml", tool_version="0")
    assert not (tmp_path / "out").exists()


def test_a_missing_op_of_the_preset_is_listed(tmp_path: Path):
    rows, meta = measured("proxyless")
    lut = publish(rows[1:], meta, folder=tmp_path)
    with pytest.raises(OpNotInLut, match=f"of 1 ops: {rows[0].op.label()}"):
        export_table(lut, tmp_path / "o.yaml", format="proxyless-yaml", tool_version="0")


@pytest.mark.parametrize("column", ["latency_ms", "energy_mj"])
def test_all_that_apqs_table_lacks_is_counted_with_the_command_that_lists_it(tmp_path: Path, column: str):
    ops = spaces.get("apq").ops()
    rows = [example_row(op, energy_mj=None if n < 30 else 0.1) for n, op in enumerate(ops)]
    rows = rows[30:] if column == "latency_ms" else rows
    lut = publish(rows, example_meta(spaces=("apq",)), folder=tmp_path)
    with pytest.raises(OpNotInLut) as told:
        export_table(lut, tmp_path / "apq.dict", format="apq-json", tool_version="0")
    named = ", ".join(op.label() for op in ops[:8])
    assert f"no {column} of the evidence asked for, of 30 ops: {named} and 22 more. " in str(told.value)
    assert str(told.value).endswith(f"how to measure it: lutbuilder spaces coverage apq {lut.spec}")
    assert not (tmp_path / "apq.dict").exists()


def test_all_layers_that_a_pickle_lacks_are_counted_at_once(tmp_path: Path):
    rows, meta = measured("netadapt-step32")
    lut = publish(rows[:3], meta, folder=tmp_path)
    n_timed = sum(row.op.kind not in ("max_pool", "global_pool") for row in rows[3:])
    with pytest.raises(OpNotInLut, match=f"asked for, of {n_timed} ops: "):
        export_table(lut, tmp_path / "n.pkl", format="netadapt-pickle", tool_version="0", allow_pickle=True)


@dataclass(frozen=True)
class Visit:
    campaign_id: str
    session_id: str
    timing: Timing


def visit(op_id: str, ms: int) -> Visit:
    samples_ns = (ms * 1_000_000,) * 3
    return Visit(
        campaign_id="c", session_id="s",
        timing=Timing(op_id=op_id, round=0, order=0, instance=0, start_ns=0, warmup_ns=(1,), samples_ns=samples_ns),
    )  # fmt: skip  # one visit


def test_counts_are_visits_and_spreads_those_of_raw_visits_where_these_are(tmp_path: Path):
    rows, meta = measured("proxyless")
    lut = publish(rows, meta, folder=tmp_path)
    write_samples([visit(row.op_id, ms) for row in rows[:2] for ms in (1, 3)], lut=lut)
    written = export_table(lut, tmp_path / "o.yaml", format="proxyless-yaml", tool_version="0")
    text = written.files[0].read_text(encoding="utf-8")
    assert text.count("var: 1.0\n") == 2
    assert text.count("var: 0.0\n") == 68
    assert text.count("count: 60\n") == 70
    sidecar = json.loads(written.sidecar.read_text(encoding="utf-8"))
    assert len(sidecar["std_unknown_written_as_0"]) == 68
    assert sidecar["count_unknown_written_as_1"] == []


def test_what_a_network_pays_once_is_in_the_row_that_every_network_has_once(tmp_path: Path):
    rows, meta = measured("proxyless")
    lut = publish(rows, meta, folder=tmp_path)
    written = export_table(
        lut, tmp_path / "o.yaml", format="proxyless-yaml", tool_version="0", constant_ms=0.25, scale=2.0
    )
    again = import_tables(
        written.files, format="proxyless-yaml", into=INTO, folder=tmp_path / "luts", **WHEN
    ).lut  # fmt: skip  # one call
    for row in rows:
        extra = 0.25 if row.kind == "logits" else 0.0
        assert again[row.op].latency_ms == pytest.approx(2.0 * float(row.latency_ms or 0) + extra, rel=1e-15)
    sidecar = json.loads(written.sidecar.read_text(encoding="utf-8"))
    assert sidecar["constants"] == {"per_network_ms": 0.25, "added": True, "scale": 2.0}


def test_another_column_is_another_table(tmp_path: Path):
    rows, meta = measured("proxyless")
    lut = publish(rows, meta, folder=tmp_path)
    written = export_table(lut, tmp_path / "hi", format="proxyless-csv", tool_version="0", column="latency_hi_ms")
    assert ",1.1\n" in written.files[0].read_text(encoding="utf-8")
    with pytest.raises(SpecError, match="proxyless-csv holds latency_ms, not cycles"):
        export_table(lut, tmp_path / "c", format="proxyless-csv", tool_version="0", column="cycles")


@pytest.mark.parametrize(
    ("format", "options", "told"),
    [
        ("tfnas-pickle", {}, "--allow-pickle writes one"),
        ("tfnas-pickle", {"allow_pickle": True}, "cannot be said by a key of this format"),
        ("ofa-mbv3-yaml", {}, "name a preset that has resolutions"),
        ("netadapt-pickle", {"allow_pickle": True}, "cannot be said|mbconv|no row|not"),
        ("apq-json", {}, "cannot be said by a key of this format"),
        ("fbnet-txt", {}, "try --preset fbnet"),
        ("proxyless-yaml", {"evidence": ("measured", "guessed")}, "evidence guessed; there are"),
        ("proxyless-yaml", {"evidence": ()}, "there are: measured"),
    ],
)
def test_what_a_format_cannot_say_is_refused(tmp_path: Path, format: str, options: Any, told: str):
    rows, meta = measured("proxyless")
    lut = publish(rows, meta, folder=tmp_path)
    with pytest.raises((SpecError, OpNotInLut), match=told):
        export_table(lut, tmp_path / "out", format=format, tool_version="0", **options)
    assert not (tmp_path / "out").exists()


def test_a_correction_that_depends_on_neighbours_cannot_be_exported(tmp_path: Path):
    rows, meta = measured("proxyless")
    rows = [replace(row, method="calibrated") for row in rows]
    lut = publish(rows, replace(meta, calibration={"method": "pairwise"}), folder=tmp_path)
    with pytest.raises(SpecError, match="calibrated by pairwise, which a table of single ops cannot hold"):
        export_table(lut, tmp_path / "out", format="proxyless-yaml", tool_version="0")


def test_files_that_are_there_stay_unless_the_user_says_otherwise(tmp_path: Path):
    rows, meta = measured("proxyless")
    lut = publish(rows, meta, folder=tmp_path)
    out = tmp_path / "o.yaml"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(LutNotWritable, match=r"o\.yaml is there already"):
        export_table(lut, out, format="proxyless-yaml", tool_version="0")
    assert out.read_text(encoding="utf-8") == "mine"
    export_table(lut, out, format="proxyless-yaml", tool_version="0", overwrite=True)
    assert out.read_text(encoding="utf-8") != "mine"
    with pytest.raises(LutNotWritable, match=r"cannot write|is there already"):
        export_table(lut, out / "inside", format="proxyless-yaml", tool_version="0")


# --- Files that were mutated


FILES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "proxyless-yaml": (made.as_yaml(made.proxyless_rows(ratios=(3,)), var=True), {}),
    "proxyless-csv": (made.as_csv(made.proxyless_rows(ratios=(3,))), {}),
    "ofa-mbv3-yaml": (made.as_yaml(made.mbv3_rows()), {}),
    "dynamicofa-json": (made.as_json(made.mbv3_rows()), {}),
    "apq-json": (made.as_json(dict(list(made.apq().items())[:20])), {}),
    "haq-npy": (made.npy(made.haq_cycles()), {}),
    "netadapt-pickle": (made.as_pickle(made.netadapt()), {}),
    "tfnas-pickle": (made.as_pickle(made.tfnas()), {"batch": 32}),
    "fbnet-txt": (made.fbnet(), {"unit": "us"}),
    "ofa-flops-npy": (made.object_npy(made.ofa_flops()), LATENCY),
}


@pytest.mark.parametrize("format", list(FILES))
@settings(max_examples=25)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused_clearly(format: str, data: st.DataObject):
    raw, options = FILES[format]
    place = data.draw(st.integers(0, len(raw)))
    cut = data.draw(st.integers(0, 12))
    new = data.draw(st.binary(max_size=4) | st.sampled_from([b"-", b"0", b"nan", b":", b"\n", b"}", b"x", b".", b"e9"]))
    mutated = Source.of("mutated", raw[:place] + new + raw[place + cut :])
    for drop_invalid in (False, True):
        given = ReadOptions(**options, drop_invalid=drop_invalid)
        told = ""
        try:
            rows = rows_of(get(format), [(mutated, get(format).read(mutated, given))], given)
        except BadTable as error:
            rows, told = (), str(error)
        assert (told.startswith("mutated") and "othing was imported" in told) or rows
        assert all(row.latency_ms is not None or row.cycles or row.exec_status == "unsupported" for row in rows)


# --- Licensed tables


@pytest.mark.skipif(not (SHARED / "apq").is_dir(), reason="needs the published APQ table in ../shared/data/apq")
def test_the_published_apq_table_goes_there_and_back(tmp_path: Path):
    (path,) = (SHARED / "apq").glob("*.dict")
    done = import_tables(
        [path], format="apq-json", into="bitfusion/simulator-mixed-bs1", folder=tmp_path, **WHEN
    )  # fmt: skip  # one call
    assert done.coverage is not None
    assert (done.coverage.n_ops, done.coverage.missing) == (6569, ())
    assert sum(row.exec_status == "unsupported" for row in done.lut) == 7011 - 6567
    rows = by_key(done.lut)
    assert (rows["head"].latency_ms, rows["head"].energy_mj) == (0.295904, 0.5061844841862639)
    assert rows["(488, 488, 14, 3, 1, 1, 488)-W4A4"].latency_ms == 0.089792
    space = spaces.get("apq")
    archs = space.sample(np.random.default_rng(0), 20)
    table = json.loads(path.read_text(encoding="utf-8"))
    for column, field in (("latency_ms", "latency"), ("energy_mj", "energy")):
        sums = [sum(table[apq_key(op)][field] for op in space.arch_ops(arch)) for arch in archs]
        assert np.allclose(compile_space(space, done.lut, column).predict(archs), sums, rtol=1e-12)
    written = export_table(done.lut, tmp_path / "a.dict", format="apq-json", tool_version="0", evidence=("imported",))
    assert json.loads(written.files[0].read_text(encoding="utf-8")) == json.loads(path.read_text(encoding="utf-8"))


def apq_key(op: OpSpec) -> str:
    """The key of an op, spelled out once more."""
    if op.kind == "lump":
        return "head" if op.in_channels == 3 else "tail"
    shape = (op.in_channels, op.out_channels, op.height, op.kernel, op.stride, op.kernel // 2, op.groups)
    return f"{shape}-W{op.w_bits}A{op.a_bits}"


@pytest.mark.skipif(not (SHARED / "haq").is_dir(), reason="needs the published HAQ table in ../shared/data/haq")
def test_the_published_haq_table_goes_there_and_back(tmp_path: Path):
    (path,) = (SHARED / "haq").glob("*.npy")
    done = import_tables([path], format="haq-npy", into=HAQ, folder=tmp_path, **WHEN)
    layers = layer_ops("haq", 16)
    cycles = [[done.lut[layer[w][a]].cycles for w, a in ((0, 0), (0, 1), (0, 2))] for layer in layers]
    assert cycles[0] == [200720, 401472, 602256]
    totals = {n: sum(int(done.lut[layer[n - 1][n - 1]].cycles or 0) for layer in layers) / 1e6 for n in (1, 8)}
    assert totals == {1: pytest.approx(3.434, abs=5e-4), 8: pytest.approx(39.625, abs=5e-4)}
    compiled = compile_space(spaces.get("haq-v2-free", batch=16), done.lut, "cycles")
    w4a8 = np.array([[3 if name[0] == "w" else 7 for name in compiled.space.positions]])
    assert compiled.predict(w4a8)[0] / 1e6 == pytest.approx(31.233, abs=5e-4)
    written = export_table(done.lut, tmp_path / "h.npy", format="haq-npy", tool_version="0", evidence=("imported",))
    assert np.array_equal(np.load(written.files[0]), np.load(path))
