"""OpSpec: it survives its canonical form, its ids never move, and it refuses nonsense."""

from __future__ import annotations

import json
import re
from dataclasses import fields
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
        ({"mid_channels": 0}, "mid_channels goes with kind mbconv"),
        ({"kind": "conv"}, "mid_channels goes with kind mbconv"),
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"act": "gelu"}, "unknown activation 'gelu'"),
        ({"w_bits": 9}, "w_bits must be 1 to 8, 16 or 32, got 9"),
        ({"a_bits": 8.0}, "a_bits must be 1 to 8, 16 or 32, got 8.0"),
        ({"residual": True, "stride": 2}, "a residual needs stride 1"),
        ({"residual": True, "out_channels": 32}, "a residual needs stride 1 and equal"),
        ({"residual": 1}, "residual must be true or false"),
        ({"kind": "identity", "mid_channels": 0, "kernel": 1, "out_channels": 7}, "an identity has equal"),
        ({"kind": "identity", "mid_channels": 0}, "kernel, stride, groups, act and residual go with conv and mbconv"),
        ({"kind": "logits", "mid_channels": 0, "kernel": 1, "act": "relu"}, "go with conv and mbconv, got kind logits"),
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


def test_an_expansion_ratio_belongs_to_mbconv_alone() -> None:
    assert OpSpec(**MBCONV).expand == 3.0
    assert OpSpec(kind="logits", in_channels=8, out_channels=4, height=7, width=7).expand is None
    assert OpSpec(kind="logits", in_channels=8, out_channels=4, height=7, width=7).out_height == 1
