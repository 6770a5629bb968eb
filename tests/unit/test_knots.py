"""Which ops of a width grid are measured, and the rows the others get; latencies from the simulated device's truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.campaign.knots import ImputedRows, imputed, knot_ops, next_knots, shapes_of, staged, stages
from lutbuilder.campaign.plan import expected_uses, input_shape, make_plan, output_shape, overhead_op
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.lower import lower
from lutbuilder.lut import Row
from lutbuilder.op import OpSpec
from lutbuilder.stats.records import OpEstimate
from lutbuilder_agent.runtimes.simulated import true_ns
from tests.unit.test_lut_rows import Failed, estimate

SPACE = spaces.get("amc-ladder")
OPS = SPACE.ops()
USES = expected_uses(SPACE)
OVERHEAD_MS = 0.005  # of the simulated device


def gross_ms(op: OpSpec) -> float:
    return OVERHEAD_MS if op.kind == "identity" else true_ns(lower(op)) / 1e6


def measured(ops: Sequence[OpSpec], *, half: float = 0.01) -> dict[OpSpec, OpEstimate]:
    return {op: estimate(op, gross_ms(op), half_ms=half * gross_ms(op)) for op in ops}


def spec() -> CampaignSpec:
    return CampaignSpec(
        space=SPACE.name,
        target=Target(device="simulated", runtime="simulated"),
        plan=make_plan("simulated", threads=1),
        env_id="e" * 16,
        runtime_version="1",
        ops=(CampaignOp.of(OPS[0]),),
        budget_s=100.0,
        precision=0.01,
        max_rounds=100,
    )


def rows_after(knots: Sequence[OpSpec], *failures: Failed) -> dict[str, Row]:
    """The rows of a campaign that measured `knots` and their call overheads."""
    shapes = tuple(dict.fromkeys(overhead_op(op) for op in knots))
    told = [*measured(knots).values(), *measured(shapes, half=0.05).values()]
    make = ImputedRows(space_ops=OPS)
    rows = make([CampaignOp.of(op) for op in knots], told, failures, {}, method="context", cache="rotating")
    assert len({row.key for row in rows}) == len(rows)
    return {row.op_id: row for row in rows}


@pytest.mark.parametrize("count", [1, 23, 24, 25, 100, 137])
def test_the_stages_add_up_to_what_was_asked_for(count):
    planned = stages(count)
    assert sum(stage.count for stage in planned) == count
    assert [stage.share for stage in planned] == sorted(stage.share for stage in planned)
    assert planned[-1].share == 1.0


def test_the_first_knots_reach_every_kind_of_op_and_follow_each_other_at_shapes_of_every_resolution():
    knots = next_knots(OPS, OPS, {}, USES, 60)
    assert len(set(knots)) == 60
    kinds = {(op.kind, op.kernel, op.groups > 1) for op in OPS}
    assert {(op.kind, op.kernel, op.groups > 1) for op in knots} == kinds
    followed = {output_shape(op) for op in knots} & {input_shape(op) for op in knots}
    assert {height for _, _, height, _ in followed} == {112, 56, 28, 14, 7}


def test_knots_are_taken_from_the_candidates_only():
    allowed = OPS[::3]
    assert set(next_knots(OPS, allowed, {}, USES, 50)) <= set(allowed)
    assert set(next_knots(OPS, allowed, measured(OPS[1::3]), USES, 50)) <= set(allowed)


def test_what_was_measured_of_another_space_says_nothing_of_this_one():
    others = [op for op in spaces.get("proxyless").ops() if op not in set(OPS)]
    assert next_knots(OPS, OPS, measured(others), USES, 50) == next_knots(OPS, OPS, {}, USES, 50)


def test_later_knots_are_those_that_networks_use_and_that_cost_them_most():
    first = next_knots(OPS, OPS, {}, USES, 60)
    rest = [op for op in OPS if op not in set(first)]
    then = next_knots(OPS, rest, measured(first), USES, 30)
    cost = {op: USES[op] * gross_ms(op) for op in OPS}
    assert np.mean([cost[op] for op in then]) > 2 * np.mean([cost[op] for op in rest])
    assert not set(then) & set(first)


def test_a_stage_visits_its_ops_their_pairs_and_sentinels_but_no_empty_call_inside_the_network():
    known = next_knots(OPS, OPS, {}, USES, 60)
    fresh = next_knots(OPS, [op for op in OPS if op not in set(known)], measured(known), USES, 30)
    visited = knot_ops(OPS, known, fresh, USES)
    singles = {op.ops[0] for op in visited if op.role == "op"}
    assert set(fresh) <= singles <= set(fresh) | set(known)
    assert len(singles & set(known)) >= 12, "sentinels tie the stages together"
    assert [op.ops[0].in_channels for op in visited if op.role == "overhead"] in ([], [3])
    for op in visited:
        if op.role == "pair":
            assert output_shape(op.ops[0]) == input_shape(op.ops[1])
            assert {*op.ops} <= singles
    first = knot_ops(OPS, (), known, USES)
    before = {input_shape(op.ops[1]) for op in first if op.role == "pair"}
    assert before
    assert not before & {input_shape(op.ops[1]) for op in visited if op.role == "pair"}, "told once is told"


def test_the_same_visits_lead_to_the_same_stages():
    def run() -> list[CampaignSpec]:
        seen: dict[OpSpec, OpEstimate] = {}
        made = []
        for stage in staged(SPACE, spec(), OPS, 80, seen.copy):
            made.append(stage)
            seen.update(measured([op.ops[0] for op in stage.ops if op.role == "op"]))
        return made

    first, second = run(), run()
    assert [stage.key for stage in first] == [stage.key for stage in second]
    assert [stage.budget_s for stage in first] == [70.0, 100.0]
    ops = [op.ops[0] for stage in first for op in stage.ops if op.role == "op"]
    assert len(set(ops)) == 80, "at most so many ops are measured, members of pairs included"


def test_every_op_of_the_space_gets_a_row_and_imputed_ones_are_never_called_measured():
    knots = next_knots(OPS, OPS, {}, USES, 135)
    rows = rows_after(knots)
    assert {op.op_id for op in OPS} <= rows.keys()
    for op in OPS:
        row = rows[op.op_id]
        assert row.latency_ms is not None
        assert row.latency_lo_ms is not None
        assert row.latency_lo_ms > 0
        if op in set(knots):
            assert (row.status, row.evidence, row.method) == ("measured", "measured", "context")
        else:
            assert (row.status, row.evidence, row.method) == ("imputed", "modelled", "imputed")
            assert (row.n_visits, row.n_rounds, row.n_instances, row.n_sessions) == (0, 0, 0, 0)
            assert (row.test_retest, row.p90_ms, row.preempted_fraction, row.bimodal, row.cache) == (None,) * 5
            assert row.latency_ms + row.call_overhead_ms == pytest.approx(gross_ms(op), rel=0.05), op.label()


def test_call_overhead_nobody_measured_is_imputed_and_the_op_says_so():
    knots = [*next_knots(OPS, OPS, {}, USES, 135)]
    lonely = next(op for op in OPS if op not in knots and not any(input_shape(op) == input_shape(k) for k in knots))
    told = [*measured([*knots, lonely]).values()]
    told += measured(dict.fromkeys(overhead_op(op) for op in knots), half=0.05).values()
    visited = [CampaignOp.of(op) for op in (*knots, lonely)]
    rows = {row.op_id: row for row in ImputedRows(space_ops=OPS)(visited, told, (), {}, cache="rotating")}
    row, empty = rows[lonely.op_id], rows[overhead_op(lonely).op_id]
    assert row.status == "measured"
    assert row.reason == "call overhead imputed from other shapes"
    assert row.call_overhead_ms == empty.latency_ms == pytest.approx(OVERHEAD_MS, rel=0.05)
    assert empty.status == "imputed"


def test_an_op_that_failed_is_not_imputed():
    knots = next_knots(OPS, OPS, {}, USES, 100)
    broken = knots[7]
    rest = [op for op in knots if op != broken]
    shapes = tuple(dict.fromkeys(overhead_op(op) for op in rest))
    told = [*measured(rest).values(), *measured(shapes).values()]
    rows = ImputedRows(space_ops=OPS)(
        [CampaignOp.of(op) for op in knots], told, [Failed(broken.op_id, "crashed")], {}, cache="rotating"
    )
    assert {row.op_id: row.status for row in rows}[broken.op_id] == "failed"


def test_nothing_is_imputed_for_kinds_of_op_that_no_knot_is_of():
    pointwise = [op for op in OPS if op.kind == "conv" and op.kernel == 1]
    known = {op.op_id: told for op, told in measured(pointwise[::4]).items()}
    assert set(imputed(OPS, known)) == set(pointwise) - set(pointwise[::4])
    assert imputed(OPS, {}) == {}
    assert imputed(pointwise[::4], known) == {}


def test_an_op_seen_too_few_times_for_an_interval_still_says_something():
    known = {op.op_id: replace(told, lo_ms=None, hi_ms=None) for op, told in measured(OPS[::5]).items()}
    told = imputed(OPS, known)
    assert set(told) == set(OPS) - set(OPS[::5])
    assert all(one.half_width > 0.001 for one in told.values())
    assert np.median([abs(one.time_ms / gross_ms(op) - 1) for op, one in told.items()]) < 0.01


def test_shapes_tell_ops_apart_by_their_sizes_and_group_them_by_all_else():
    shapes = shapes_of(OPS)
    assert len(shapes) == len(OPS)
    groups = {(op.kind, op.kernel, op.groups > 1): shapes.group[i] for i, op in enumerate(OPS)}
    assert len(set(groups.values())) == len(groups) == 4
    dense = OpSpec(kind="conv", in_channels=24, out_channels=40, height=14, width=14)
    deep = OpSpec(kind="conv", in_channels=24, out_channels=24, height=14, width=14, kernel=3, stride=2, groups=24)
    work = shapes_of([dense, deep]).work
    assert work[:, 0, 4].tolist() == [24 * 40 * 196.0] * 5
    assert work[:, 0, 9].tolist() == [i * o * 196.0 for i, o in ((24, 40), (24, 40), (32, 48), (32, 64), (64, 64))]
    assert work[:, 1, 9].tolist() == [c * 9 * 49.0 for c in (24, 24, 32, 32, 64)]


def test_a_shortcut_between_widths_of_one_tile_needs_no_convolution_there():
    op = OpSpec(
        kind="mbconv", in_channels=24, out_channels=32, height=14, width=14, mid_channels=96, kernel=3, shortcut=True
    )  # fmt: skip  # one block, one line
    params = shapes_of([op]).work[:, 0, 8].tolist()
    padded = [(24, 96, 32), (24, 96, 32), (32, 96, 32), (32, 96, 32), (64, 128, 64)]
    convs = [i * m + m * 9 + m * o + (i * o if i != o else 0) for i, m, o in padded]
    biases = [2 * m + o + (o if i != o else 0) for i, m, o in padded]
    assert params == [float(weights + bias) for weights, bias in zip(convs, biases, strict=True)]
