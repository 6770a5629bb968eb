"""Lookups: a missing op is an error that says what to type, never 0; and nothing heavy is loaded for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutbuilder.lut import Lut, Row, publish
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import OpNotInLut, UnknownName
from lutbuilder_agent.records import Fingerprint
from tests.lut_examples import example_meta, example_op, example_row, failed_row

OPS = [example_op(number) for number in range(4)]


def collected(folder: Path, *rows: Row, **meta: Any) -> Lut:
    return publish(rows, example_meta(**meta), folder=folder)


@pytest.fixture
def lut(tmp_path: Path) -> Lut:
    rows = [example_row(op, latency_ms=1.0 + 0.002 * n, energy_mj=None) for n, op in enumerate(OPS[:3])]
    return collected(tmp_path, *rows, failed_row(OPS[3]))


def test_latencies_come_in_the_order_of_the_ops_asked_for(lut: Lut):
    asked = [OPS[2], OPS[0], OPS[2]]
    latency_ms = lut.latency_ms(asked)
    assert latency_ms.tolist() == [1.004, 1.0, 1.004]
    assert latency_ms.dtype == np.float64
    assert lut.latency_ms([]).shape == (0,)


def test_a_lookup_gives_the_whole_row(lut: Lut):
    assert lut[OPS[1]] == example_row(OPS[1], latency_ms=1.002)
    assert lut[OPS[1]].op == OPS[1]
    assert lut[OPS[3]].reason == "crashed: signal 11"


def test_a_lut_says_what_it_is(lut: Lut):
    assert (len(lut), lut.version, lut.name) == (4, 1, "example-cpu/onnxruntime-fp32-bs1")
    assert OPS[0] in lut
    assert OPS[3] in lut
    assert example_op(77) not in lut
    assert OPS[0].op_id not in lut
    assert [row.op for row in lut] == OPS
    assert repr(lut) == f"Lut('{lut.path.parent}@1', 4 rows)"
    assert Lut.load(lut.spec).content_hash == lut.content_hash


def test_a_missing_op_names_the_nearest_rows_and_the_command(lut: Lut):
    with pytest.raises(OpNotInLut) as caught:
        lut[example_op(4)]
    assert str(caught.value) == (
        f"{example_op(4).label()} is not in {lut.path.parent}@1; nearest: {OPS[3].label()}; {OPS[2].label()}; "
        f"{OPS[1].label()}. Measure it: lutbuilder collect --device cpu --space proxyless --runtime onnxruntime --bs 1"
    )


def test_several_missing_ops_are_counted(lut: Lut):
    with pytest.raises(OpNotInLut, match=r"is not in \S+@1 \(and 2 more ops\); nearest: "):
        lut.latency_ms([OPS[0], *(example_op(n) for n in (4, 5, 6))])


def test_an_op_of_another_batch_is_told_as_such(lut: Lut):
    with pytest.raises(OpNotInLut) as caught:
        lut.latency_ms([example_op(batch=8)])
    assert "is of batch 8, but" in str(caught.value)
    assert "was measured at batch 1. A LUT holds one batch size; measure the other:" in str(caught.value)
    assert str(caught.value).endswith("--runtime onnxruntime --bs 8")


def test_a_failed_op_has_no_latency_and_says_why(lut: Lut):
    with pytest.raises(OpNotInLut) as caught:
        lut.latency_ms([OPS[0], OPS[3]])
    assert f"has no latency for {OPS[3].label()}: failed, crashed: signal 11." in str(caught.value)
    assert str(caught.value).endswith("--bs 1 --again")


def test_a_column_has_nan_where_the_row_has_null(lut: Lut):
    assert np.isnan(lut.column(OPS, "energy_mj")).all()
    assert np.isnan(lut.column(OPS, "latency_ms")).tolist() == [False, False, False, True]
    assert lut.column(OPS, "n_rounds").tolist() == [20.0, 20.0, 20.0, 0.0]
    with pytest.raises(OpNotInLut):
        lut.column([example_op(4)], "energy_mj")


def test_texts_come_in_the_order_of_the_ops_asked_for(lut: Lut):
    assert lut.texts([OPS[3], OPS[0]], "exec_status") == ("failed", "native")
    assert lut.texts([OPS[3], OPS[0]], "reason") == ("crashed: signal 11", None)
    with pytest.raises(OpNotInLut):
        lut.texts([example_op(4)], "reason")
    with pytest.raises(UnknownName, match=r"no text column 'latency_ms'; there are: .*evidence, method"):
        lut.texts(OPS, "latency_ms")


@pytest.mark.parametrize("name", ["latency", "stop_reason", "op_id", ""])
def test_a_column_that_is_no_number_is_refused_naming_those_that_are(lut: Lut, name: str):
    with pytest.raises(UnknownName, match=r"has no numeric column .* there are: latency_ms, latency_lo_ms"):
        lut.column(OPS, name)


def test_the_command_names_the_device_threads_and_space(tmp_path: Path):
    pixel = Fingerprint(device="google-pixel", facts=())
    lut = collected(tmp_path, device="google-pixel", runtime="litert", fingerprint=pixel, threads=2, spaces=("mine",))
    with pytest.raises(OpNotInLut) as caught:
        lut[OPS[0]]
    assert "nearest: none, the table is empty" in str(caught.value)
    assert str(caught.value).endswith(
        "lutbuilder collect --device pixel1 --space mine --runtime litert --bs 1 --threads 2"
    )


def test_the_nearest_rows_are_of_the_same_kind_first(tmp_path: Path):
    conv = OpSpec(kind="conv", in_channels=16, out_channels=24, height=28, width=28, kernel=3)
    far = example_op(in_channels=200, mid_channels=1200, height=7, width=7)
    near = example_op(50)
    lut = collected(tmp_path, *(example_row(op) for op in (conv, far, near)))
    assert [row.op for row in lut.nearest(example_op(0))] == [near, far, conv]
    assert [row.op for row in lut.nearest(conv, 1)] == [conv]


def test_a_near_row_whose_label_is_the_same_names_the_difference(tmp_path: Path):
    lut = collected(tmp_path, example_row(example_op(out_channels=16, act="relu6")))
    with pytest.raises(OpNotInLut, match=r"nearest: mbconv 16x28x28 k3 s1 e3 -> 16 with act=relu6\. Measure"):
        lut[example_op(out_channels=16, act="relu")]


def test_lookups_prefer_a_latency_then_direct_evidence_then_the_method_nearest_to_networks(tmp_path: Path):
    a, b, c, d = OPS
    lut = collected(
        tmp_path,
        failed_row(a, evidence="measured"),
        example_row(a, latency_ms=1.001, evidence="modelled"),
        example_row(b, latency_ms=1.002, evidence="modelled", method="calibrated"),
        example_row(b, latency_ms=1.003, evidence="measured", method="imputed"),
        example_row(c, latency_ms=1.004, method="isolated"),
        example_row(c, latency_ms=1.005, method="calibrated"),
        failed_row(d),
        failed_row(d, method="context"),
    )
    assert len(lut) == 8
    assert lut.latency_ms([a, b, c]).tolist() == [1.001, 1.003, 1.005]
    assert lut[c].method == "calibrated"
    assert lut[d].method == "context"
    assert len({row.op for row in lut.nearest(a, 7)}) == 4, "each op once"


def test_pandas_sees_the_same_table(lut: Lut):
    frame = lut.to_pandas()
    assert frame.columns.tolist() == lut.table.column_names
    assert frame["latency_ms"].tolist()[:3] == [1.0, 1.002, 1.004]


def test_neither_a_lookup_nor_a_publication_loads_pandas(fresh_python: Any, root: Path):
    code = f"""
import sys
from pathlib import Path
from lutbuilder.lut import Lut
lut = Lut.load({str(root / "tests/golden/lut-schema-1.parquet")!r})
ops = [row.op for row in lut if row.latency_ms is not None]
lut.latency_ms(ops)
print(len(ops), sorted({{"pandas", "torch", "grpc", "scipy"}} & set(sys.modules)))
from dataclasses import replace
from lutbuilder.lut import publish
again = publish(lut.rows(), replace(lut.meta, version=0), folder=Path("luts"))
print(again.rows() == lut.rows(), "pandas" in sys.modules)
"""
    assert fresh_python(code).splitlines() == ["4 []", "True False"]


def test_importing_the_package_of_luts_leaves_its_callers_alone(fresh_python: Any):
    """campaign and coordinator are above this package; importing it must not drag them in."""
    code = """
import sys, lutbuilder.lut
print([name for name in sys.modules if name.startswith(("lutbuilder.coordinator", "lutbuilder.nas"))])
"""
    assert fresh_python(code) == "[]"
