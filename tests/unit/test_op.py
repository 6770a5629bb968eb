"""OpSpec: it survives its canonical form, its ids never move, and it refuses nonsense."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.op import OP_KINDS, OpSpec
from lutbuilder_agent.errors import SpecError
from tests.strategies import op_specs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "op_ids.json").read_text())
MBCONV: dict[str, Any] = {
    "kind": "mbconv",
    "in_channels": 24,
    "out_channels": 24,
    "height": 56,
    "width": 56,
    "mid_channels": 72,
    "kernel": 5,
}


@given(op_specs())
def test_an_op_survives_its_canonical_form(op: OpSpec) -> None:
    canonical = op.canonical()
    again = OpSpec.from_canonical(json.loads(json.dumps(canonical)))
    assert again == op
    assert again.op_id == op.op_id
    assert list(canonical) == sorted(canonical)


@given(op_specs(), op_specs())
def test_ids_are_equal_exactly_when_ops_are(a: OpSpec, b: OpSpec) -> None:
    assert (a.op_id == b.op_id) == (a == b)


@given(op_specs())
def test_an_id_is_16_hex_digits_and_a_label_one_line(op: OpSpec) -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", op.op_id)
    assert op.label().startswith(f"{op.kind} {op.in_channels}x{op.height}x{op.width}")
    assert "\n" not in op.label()


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: entry["label"])
def test_published_ids_never_move(entry: dict[str, Any]) -> None:
    op = OpSpec.from_canonical(entry["op"])
    assert op.op_id == entry["op_id"]
    assert op.label() == entry["label"]
    assert op.canonical() == entry["op"]  # a field added later with a default does not show up in old ops


def test_the_golden_ids_cover_every_kind_and_every_field() -> None:
    assert {entry["op"]["kind"] for entry in GOLDEN} == set(OP_KINDS)
    assert {name for entry in GOLDEN for name in entry["op"]} == {field.name for field in fields(OpSpec)}
    assert len({entry["op_id"] for entry in GOLDEN}) == len(GOLDEN)


def test_a_canonical_form_leaves_defaults_out() -> None:
    assert OpSpec(**MBCONV, stride=1, batch=1, se=False).canonical() == MBCONV


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "shuffle"}, "unknown op kind 'shuffle'; known: conv, mbconv"),
        ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
        ({"height": 5.5}, "height must be a positive integer, got 5.5"),
        ({"batch": True}, "batch must be a positive integer, got True"),
        ({"mid_channels": -1}, "mid_channels must be an integer >= 0"),
        ({"mid_channels": 0}, "kind mbconv needs mid_channels"),
        ({"kind": "conv"}, "mid_channels does not go with kind conv, got 72; it has: kernel, stride"),
        ({"kind": "bottleneck", "groups": 2}, "groups does not go with kind bottleneck"),
        ({"padding": 1}, "padding does not go with kind mbconv"),
        ({"se_channels": 16}, "se_channels needs se"),
        ({"se": True, "se_channels": 24}, "se_channels 24 is what mid_channels 72 gives: leave it out"),
        ({"expand_conv": True}, "expand_conv goes with mid_channels == in_channels"),
        ({"shortcut": True}, "a shortcut needs stride 2, or stride 1 and other out_channels"),
        ({"shortcut": True, "stride": 3}, "a shortcut needs stride 2"),
        ({"shortcut": True, "residual": True}, "a shortcut needs .* and no residual"),
        ({"shortcut": "yes"}, "shortcut must be true or false"),
        ({"kind": "conv", "mid_channels": 0, "padding": 2}, "padding 2 is what kernel 5 gives: leave it out"),
        ({"kind": "conv", "mid_channels": 0, "padding": -2}, "padding must be an integer >= -1, got -2"),
        ({"kind": "conv", "mid_channels": 0, "padding": 0, "height": 4}, "kernel 5 is larger than the map of 4x56"),
        ({"kind": "conv", "mid_channels": 0, "padding": 0, "residual": True}, "no padding of its own"),
        ({"kind": "max_pool", "mid_channels": 0, "kernel": 1}, "a max_pool needs a kernel above 1"),
        ({"kind": "max_pool", "mid_channels": 0, "out_channels": 32}, "kind max_pool has equal in_channels"),
        ({"kind": "lump", "mid_channels": 0, "kernel": 3}, "kernel does not go with kind lump, got 3; it has: stride"),
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"act": "gelu"}, "unknown activation 'gelu'"),
        ({"w_bits": 9}, "w_bits must be 1 to 8, 16 or 32, got 9"),
        ({"a_bits": 8.0}, "a_bits must be 1 to 8, 16 or 32, got 8.0"),
        ({"residual": True, "stride": 2}, "a residual needs stride 1"),
        ({"residual": True, "out_channels": 32}, "a residual needs stride 1 and equal"),
        ({"residual": 1}, "residual must be true or false"),
        ({"kind": "identity", "mid_channels": 0, "kernel": 1, "out_channels": 7}, "kind identity has equal"),
        ({"kind": "identity", "mid_channels": 0}, "kernel does not go with kind identity, got 5; it has: no fields of"),
        ({"kind": "logits", "mid_channels": 0, "kernel": 1, "act": "relu"}, "act does not go with kind logits"),
        ({"colour": "red"}, "not an op: .*colour"),
    ],
)
def test_nonsense_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        OpSpec.from_canonical({**MBCONV, **change})


def test_a_missing_field_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="width"):
        OpSpec.from_canonical({name: value for name, value in MBCONV.items() if name != "width"})


@given(extent=st.integers(1, 300), stride=st.integers(1, 4))
def test_output_maps_round_up(extent: int, stride: int) -> None:
    op = OpSpec(**{**MBCONV, "height": extent, "stride": stride})
    assert op.out_height == -(-extent // stride)


@given(extent=st.integers(11, 300), stride=st.integers(1, 4), padding=st.integers(0, 4))
def test_padding_of_its_own_changes_the_output_map(extent: int, stride: int, padding: int) -> None:
    op = OpSpec(
        kind="conv", in_channels=3, out_channels=8, height=extent, width=extent, kernel=11, stride=stride,
        padding=padding,
    )  # fmt: skip  # one shape, one line
    assert op.out_height == len(range(-padding, extent + padding - 10, stride))  # places of the first row of a window
    assert op.out_width == op.out_height


def test_alexnet_and_resnet_pools_leave_the_published_maps() -> None:
    pool = {"kind": "max_pool", "in_channels": 64, "out_channels": 64, "kernel": 3, "stride": 2}
    assert [OpSpec(**pool, height=n, width=n, padding=0).out_height for n in (55, 27, 13)] == [27, 13, 6]
    assert OpSpec(**pool, height=112, width=112).out_height == 56


def test_kinds_that_end_in_a_vector_leave_one_pixel() -> None:
    for kind in ("logits", "linear", "global_pool"):
        op = OpSpec(kind=kind, in_channels=8, out_channels=8, height=7, width=5)
        assert (op.out_height, op.out_width) == (1, 1)


@given(op_specs())
def test_an_op_survives_pickling_and_hashes_alike(op: OpSpec) -> None:
    again = pickle.loads(pickle.dumps(op))
    assert again == op
    assert hash(again) == hash(op)
    assert replace(op, batch=op.batch + 1) not in {op: None}


def test_the_squeeze_is_a_quarter_made_divisible_unless_stated() -> None:
    assert OpSpec(**MBCONV, se=True).squeeze_channels == 24  # 18 would be less than nine tenths of
    assert OpSpec(**MBCONV, se=True, se_channels=20).squeeze_channels == 20
    assert OpSpec(**MBCONV).squeeze_channels == 0


def test_an_expansion_ratio_belongs_to_mbconv_alone() -> None:
    assert OpSpec(**MBCONV).expand == 3.0
    assert OpSpec(kind="logits", in_channels=8, out_channels=4, height=7, width=7).expand is None
    assert OpSpec(kind="logits", in_channels=8, out_channels=4, height=7, width=7).out_height == 1
