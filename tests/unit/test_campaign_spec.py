"""A campaign's spec survives JSON, and its key names everything in it: the same command finds the same campaign."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.campaign.spec import ALL_BATCHES, CampaignOp, CampaignSpec, Target
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError
from lutbuilder_agent.records import CACHES, Plan
from tests.strategies import op_specs

PROPERTY = settings(max_examples=60, deadline=None)  # no deadline: a busy machine is no failure
OP = OpSpec(kind="conv", in_channels=8, out_channels=8, height=8, width=8)
NEXT = replace(OP, out_channels=16)
SPEC = CampaignSpec(
    space="proxyless",
    target=Target(device="example-cpu", runtime="onnxruntime"),
    plan=Plan(runtime="onnxruntime", options=(("a", "1"),)),
    env_id="0123456789abcdef",
    runtime_version="1.20.0",
    ops=(CampaignOp.of(OP), CampaignOp.pair(OP, NEXT), CampaignOp.network((OP, OP, NEXT), every=2)),
    budget_s=180.0,
    precision=0.01,
    max_rounds=400,
)

STORED = """
{"space": "proxyless", "env_id": "0123456789abcdef", "runtime_version": "1.20.0", "budget_s": 180.0, "precision":
0.01, "max_rounds": 400, "purpose": "collect", "repeat": 0, "target": {"device": "example-cpu", "runtime":
"onnxruntime", "dtype": "fp32", "batch": 1, "threads": 1, "cache": "rotating"}, "plan": {"runtime": "onnxruntime",
"threads": 1, "cache": "hot", "train_ops": 1, "instances": 3, "min_calls": 3, "warmup_calls": 1, "min_block_ns":
12000000, "max_calls": 200, "op_timeout_ns": 60000000000, "seed": 0, "options": [["a", "1"]]}, "ops": [{"op_id":
"5b9f7f478163414e", "role": "op", "ops": [{"height": 8, "in_channels": 8, "kind": "conv", "out_channels": 8,
"width": 8}], "batch": 0, "every": 1}, {"op_id": "pair-5b9f7f478163414e-f04a82d2763af089", "role": "pair", "ops":
[{"height": 8, "in_channels": 8, "kind": "conv", "out_channels": 8, "width": 8}, {"height": 8, "in_channels": 8,
"kind": "conv", "out_channels": 16, "width": 8}], "batch": 0, "every": 1}, {"op_id": "net-61b74ca9f95960a5", "role":
"network", "ops": [{"height": 8, "in_channels": 8, "kind": "conv", "out_channels": 8, "width": 8}, {"height": 8,
"in_channels": 8, "kind": "conv", "out_channels": 8, "width": 8}, {"height": 8, "in_channels": 8, "kind": "conv",
"out_channels": 16, "width": 8}], "batch": 0, "every": 2}]}
"""  # SPEC as the first release stored it; never regenerated
STORED_KEY = "8278039bb474f737"

_names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).map(lambda text: f"x{text}")


@st.composite
def campaign_ops(draw: st.DrawFn) -> CampaignOp:
    batch, every = draw(st.integers(ALL_BATCHES, 3)), draw(st.integers(1, 4))
    role = draw(st.sampled_from(["op", "pair", "network"]))
    if role == "op":
        return CampaignOp.of(draw(op_specs()), batch=batch)
    if role == "pair":
        return CampaignOp.pair(draw(op_specs()), draw(op_specs()), batch=batch)
    return CampaignOp.network(tuple(draw(st.lists(op_specs(), min_size=1, max_size=4))), batch=batch, every=every)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    cache = draw(st.sampled_from(CACHES))
    return Plan(
        runtime=draw(_names),
        threads=draw(st.integers(1, 64)),
        cache=cache,  # type: ignore[arg-type]  # drawn from the very list
        train_ops=draw(st.integers(2, 20)) if cache in ("rotating", "cold") else 1,
        instances=draw(st.integers(1, 8)),
        seed=draw(st.integers(0, (1 << 63) - 1)),
        options=tuple(draw(st.lists(st.tuples(st.text(), st.text()), max_size=3))),
    )


@st.composite
def specs(draw: st.DrawFn) -> CampaignSpec:
    plan = draw(plans())
    return CampaignSpec(
        space=draw(st.text()),
        target=Target(device=draw(_names), runtime=plan.runtime, batch=draw(st.integers(1, 64)), cache=plan.cache),
        plan=plan,
        env_id=draw(_names),
        runtime_version=draw(st.text()),
        ops=tuple(draw(st.lists(campaign_ops(), min_size=1, max_size=4, unique_by=lambda op: op.op_id))),
        budget_s=draw(st.floats(0.1, 1e6)),
        precision=draw(st.floats(1e-6, 1.0)),
        max_rounds=draw(st.integers(1, 10_000)),
        purpose=draw(st.sampled_from(["collect", "validate"])),
        repeat=draw(st.integers(0, 100)),
        lease_rounds=draw(st.integers(0, 100)),
        sessions=draw(st.integers(1, 5)),
        agents=draw(st.integers(1, 5)),
        networks_sha256=draw(st.sampled_from(["", "ab" * 32])),
    )


@PROPERTY
@given(specs())
def test_a_spec_survives_json(spec):
    again = CampaignSpec.from_canonical(json.loads(json.dumps(spec.canonical())))
    assert again == spec
    assert again.key == spec.key


def test_a_spec_stored_before_a_field_existed_is_read_and_keeps_its_key():
    found = CampaignSpec.from_canonical(json.loads(STORED))
    assert found == SPEC
    assert found.key == STORED_KEY


def test_the_key_is_16_hex_digits_and_does_not_move():
    assert SPEC.key == replace(SPEC).key
    assert len(SPEC.key) == 16
    int(SPEC.key, 16)


CHANGED: dict[str, Any] = {
    "space": "proxyless-w1.3",
    "target": replace(SPEC.target, batch=2),
    "plan": replace(SPEC.plan, seed=1),
    "env_id": "another",
    "runtime_version": "1.20.1",
    "ops": SPEC.ops[:2],
    "budget_s": 181.0,
    "precision": 0.02,
    "max_rounds": 401,
    "purpose": "validate",
    "repeat": 1,
    "lease_rounds": 12,
    "sessions": 3,
    "agents": 2,
    "networks_sha256": "ab" * 32,
}
CHANGED_TARGET: dict[str, Any] = {
    "device": "b",
    "runtime": "b",
    "dtype": "fp16",
    "batch": 2,
    "threads": 2,
    "cache": "hot",
}
CHANGED_PLAN: dict[str, Any] = {
    "runtime": "b",
    "threads": 2,
    "cache": "flushed",
    "train_ops": 7,
    "instances": 4,
    "min_calls": 4,
    "warmup_calls": 2,
    "min_block_ns": 1,
    "max_calls": 201,
    "op_timeout_ns": 1_000_000,
    "seed": 1,
    "options": (("a", "2"),),
}
CHANGED_OP: dict[str, Any] = {"op_id": "b", "role": "network", "ops": (NEXT,), "batch": 1, "every": 2, "use": 0.5}


@pytest.mark.parametrize("name", [field.name for field in fields(CampaignSpec)])
def test_the_key_changes_with_every_field(name):
    assert replace(SPEC, **{name: CHANGED[name]}).key != SPEC.key


@pytest.mark.parametrize("name", [field.name for field in fields(Target)])
def test_the_key_changes_with_every_field_of_the_target(name):
    assert replace(SPEC, target=replace(SPEC.target, **{name: CHANGED_TARGET[name]})).key != SPEC.key


@pytest.mark.parametrize("name", [field.name for field in fields(Plan)])
def test_the_key_changes_with_every_field_of_the_plan(name):
    rotating = replace(SPEC, plan=replace(SPEC.plan, cache="rotating", train_ops=6))
    before = rotating if name == "train_ops" else SPEC
    assert replace(before, plan=replace(before.plan, **{name: CHANGED_PLAN[name]})).key != before.key


@pytest.mark.parametrize("name", [field.name for field in fields(CampaignOp)])
def test_the_key_changes_with_every_field_of_an_op(name):
    changed = replace(SPEC.ops[0], **{name: CHANGED_OP[name]})
    assert replace(SPEC, ops=(changed, *SPEC.ops[1:])).key != SPEC.key


def test_a_campaign_names_at_least_one_op_and_each_once():
    for ops in ((), (SPEC.ops[0], SPEC.ops[0])):
        with pytest.raises(SpecError, match="at least one op, each once"):
            replace(SPEC, ops=ops)


def test_an_identity_is_an_overhead_and_everything_else_an_op():
    empty = OpSpec(kind="identity", in_channels=8, out_channels=8, height=8, width=8)
    assert (CampaignOp.of(empty).role, CampaignOp.of(OP).role) == ("overhead", "op")
    assert CampaignOp.of(OP).op_id == OP.op_id


def test_pairs_and_networks_are_named_by_their_ops_in_order():
    assert CampaignOp.pair(OP, NEXT).op_id != CampaignOp.pair(NEXT, OP).op_id
    assert CampaignOp.network((OP, NEXT)).op_id != CampaignOp.network((NEXT, OP)).op_id
    assert CampaignOp.network((OP, NEXT)) == CampaignOp.network((OP, NEXT))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "example-cpu/onnxruntime-fp32-bs1"),
        ({"batch": 8, "dtype": "fp16"}, "example-cpu/onnxruntime-fp16-bs8"),
        ({"threads": 4}, "example-cpu/onnxruntime-fp32-bs1-t4"),
        ({"cache": "hot"}, "example-cpu/onnxruntime-fp32-bs1-hot"),
        ({"threads": 4, "cache": "flushed"}, "example-cpu/onnxruntime-fp32-bs1-t4-flushed"),
    ],
)
def test_a_luts_folder_names_what_is_not_the_default(changes, name):
    assert replace(SPEC.target, **changes).lut_name == name
