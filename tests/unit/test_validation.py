"""Reports on whole networks: exact where the truth is additive, honest about what was not timed, and storable."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.campaign.plan import campaign_ops, input_shape, overhead_op
from lutbuilder.campaign.request import ValidateRequest
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.lower import lower, lower_network
from lutbuilder.lut import Lut, Row, make_rows, publish
from lutbuilder.nas.compiled import compile_space
from lutbuilder.op import OpSpec
from lutbuilder.stats.drift import fit
from lutbuilder.stats.quality import ValidationReport
from lutbuilder.validation import HeldOut, choose, instance_sd, make_report, network_sum, networks_sha256, validate
from lutbuilder_agent.errors import CampaignFailed, SpecError
from lutbuilder_agent.records import Plan
from tests.lut_examples import example_meta, example_op, example_row, failed_row
from tests.simulated_visits import STEADY, Machine, log_spread, simulate
from tests.worked_example import EXAMPLE

SPACE = spaces.get("proxyless")
OVERHEAD_MS = 0.03


def held_out(n: int) -> tuple[HeldOut, ...]:
    archs = SPACE.sample(np.random.default_rng(0), n)
    return tuple(
        HeldOut(ops=SPACE.arch_ops(arch), group="searched" if i < 2 else "random") for i, arch in enumerate(archs)
    )


NETWORKS = held_out(12)
SPEC = CampaignSpec(
    space=SPACE.name,
    target=Target(device="example-cpu", runtime="onnxruntime"),
    plan=Plan(runtime="onnxruntime"),
    env_id="0123456789abcdef",
    runtime_version="1.20.0",
    ops=(*campaign_ops(SPACE.ops(), SPACE.ops()), *(CampaignOp.network(net.ops) for net in NETWORKS)),
    budget_s=900.0,
    precision=0.01,
    max_rounds=24,
    purpose="validate",
)


def own_ms(op: OpSpec) -> float:
    return 0.0 if op.kind == "identity" else 0.01 + lower(op).macs / 1e8


def true_ms(op: CampaignOp) -> float:
    """An additive device: the ops' own costs and one overhead a call."""
    return OVERHEAD_MS + sum(map(own_ms, op.ops))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A validation's visits, fitted both ways, and the rows that follow."""

    fitted: Summary
    undrifted: Summary
    rows: Mapping[str, Row]

    def report(
        self,
        *,
        networks: Sequence[HeldOut] = NETWORKS,
        rows: Mapping[str, Row] | None = None,
        base: Mapping[str, Row] | None = None,
        rounds: int = 8,
    ) -> ValidationReport:
        return make_report(
            networks,
            SPEC,
            rows=self.rows if rows is None else rows,
            fitted=self.fitted,
            here=self.fitted,
            undrifted=self.undrifted,
            base=self.rows if base is None else base,
            rounds=rounds,
            wall_s=60.0,
            timed=0.9,
            digest=networks_sha256(networks),
        )


def timed(*, rounds: int = 8, machine: Machine = STEADY, instances: int = 3, without: Collection[str] = ()) -> Timed:
    """Simulated visits of SPEC on the additive device; ops `without` are never visited."""
    truth = np.log([1e6 * true_ms(op) for op in SPEC.ops])
    visits = simulate(truth, rounds=rounds, seed=0, machine=machine, instances=instances).visits
    visits = replace(visits, op_ids=tuple(op.op_id for op in SPEC.ops))
    gone = np.array([op.op_id in without for op in SPEC.ops])
    visits = visits.take(~gone[visits.op])
    fitted = summarise(SPEC.ops, visits)
    rows = make_rows(SPEC.ops, fitted.rows, (), {}, method="context", cache=SPEC.target.cache)
    return Timed(
        fitted=fitted,
        undrifted=summarise(SPEC.ops, visits, window=0),
        rows={row.op_id: row for row in rows},
    )


@pytest.fixture(scope="module")
def steady() -> Timed:
    return timed()


@pytest.fixture(scope="module")
def drifting() -> Timed:
    return timed(rounds=24, machine=Machine())


# --- Reports


def test_on_an_additive_device_the_sum_of_rows_is_the_network(steady):
    report = steady.report()
    for found in (report.lut_sum, report.undrifted, report.published):
        assert found is not None
        assert found.n == len(NETWORKS)
        assert found.worst < 1e-6
        assert found.spearman.value == pytest.approx(1.0)
    assert report.lut_sum.mape.value < report.flops_linear.mape.value
    assert report.lut_sum.mape.value < report.depth_linear.mape.value
    assert report.deciles == pytest.approx((0.0,) * 10, abs=1e-6)


def test_a_report_says_what_was_timed_and_how_it_came_out(steady):
    report = steady.report()
    assert (report.rounds, report.wall_s, report.timed_fraction) == (8, 60.0, 0.9)
    assert report.networks_sha256 == networks_sha256(NETWORKS)
    for net, found in zip(NETWORKS, report.networks, strict=True):
        as_op = CampaignOp.network(net.ops)
        assert (found.op_id, found.group, found.n_ops) == (as_op.op_id, net.group, len(net.ops))
        assert found.macs == lower_network(net.ops).macs
        assert (found.measured_ms, found.predicted_ms) == pytest.approx((true_ms(as_op), true_ms(as_op)))
        assert (found.n_visits, found.n_instances) == (8, 3)
        assert found.undrifted_ms == pytest.approx(found.predicted_ms)


def test_on_a_machine_that_changes_speed_the_drift_model_pays(drifting):
    report = drifting.report()
    assert report.lut_sum.mape.value < 0.02
    assert report.lut_sum.mape.value < 0.5 * report.undrifted.mape.value
    assert report.test_retest_floor is not None
    assert 0.0 < report.test_retest_floor < 0.03
    assert report.instance_floor == pytest.approx(0.01, rel=0.6)  # 12 networks of 3 instances
    assert report.op_instance_sd == pytest.approx(0.01, rel=0.6)


def test_the_published_table_is_judged_at_this_sessions_scale(steady):
    faster = {
        op_id: replace(
            row,
            latency_ms=row.latency_ms / 1.25,
            call_overhead_ms=None if row.call_overhead_ms is None else row.call_overhead_ms / 1.25,
            latency_lo_ms=None,
            latency_hi_ms=None,
        )
        for op_id, row in steady.rows.items()
        if row.latency_ms is not None
    }
    report = steady.report(base=faster)
    assert report.session_scale == pytest.approx(1.25)
    assert report.published is not None
    assert report.published.worst < 1e-6


def test_without_a_published_row_of_every_op_there_is_no_judgement_of_the_published_table(steady):
    some_op = NETWORKS[0].ops[3].op_id
    lacking = {op_id: row for op_id, row in steady.rows.items() if op_id != some_op}
    assert steady.report(base=lacking).published is None
    failed = {**steady.rows, some_op: failed_row(NETWORKS[0].ops[3])}
    assert steady.report(base=failed).published is None
    report = steady.report(base={})
    assert (report.session_scale, report.published) == (None, None)


def test_a_network_of_which_an_op_failed_is_left_out(steady):
    stage = [op for op in NETWORKS[0].ops if op.kind == "mbconv"]
    lost = next(op for op in stage if 1 <= sum(op in net.ops for net in NETWORKS) <= len(NETWORKS) - 3)
    left = tuple(CampaignOp.network(net.ops).op_id for net in NETWORKS if lost not in net.ops)
    for report in (
        steady.report(rows={**steady.rows, lost.op_id: failed_row(lost)}),
        steady.report(rows={op_id: row for op_id, row in steady.rows.items() if op_id != lost.op_id}),
        timed(without=[lost.op_id]).report(rows=steady.rows),
    ):
        assert tuple(found.op_id for found in report.networks) == left
        assert report.lut_sum.worst < 1e-6
        json.dumps(report.to_json(), allow_nan=False)


def test_a_network_that_was_not_timed_is_left_out():
    late = CampaignOp.network(NETWORKS[4].ops).op_id
    report = timed(without=[late]).report()
    assert len(report.networks) == len(NETWORKS) - 1
    assert late not in {found.op_id for found in report.networks}


def test_fewer_than_three_timed_networks_are_no_validation():
    ids = [CampaignOp.network(net.ops).op_id for net in NETWORKS]
    with pytest.raises(CampaignFailed, match=r"only 2 of 12 networks were timed.* in 5 rounds"):
        timed(without=ids[2:]).report(rounds=5)
    assert timed(without=ids[3:]).report().lut_sum.n == 3


@pytest.mark.parametrize(("rounds", "instances"), [(1, 1), (2, 3), (3, 1), (8, 1), (8, 3)])
def test_a_report_can_be_stored_however_little_was_timed(rounds, instances):
    report = timed(rounds=rounds, instances=instances, machine=Machine()).report(rounds=rounds)
    body = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert ValidationReport.from_json(body) == report
    assert (report.test_retest_floor is None) == (rounds < 4)
    several = min(rounds, instances) > 1
    assert (report.instance_floor is not None) == (report.op_instance_sd is not None) == several


# --- Sums and floors


def test_a_networks_sum_adds_one_call_overhead_to_its_rows():
    first, second = example_op(1), example_op(2)
    rows = {
        first.op_id: example_row(first, latency_ms=1.0, call_overhead_ms=0.02),
        second.op_id: example_row(second, latency_ms=1.01, call_overhead_ms=0.5),
    }
    assert network_sum([first, second, second], rows) == pytest.approx(3.04)
    assert network_sum([second, first], rows) == pytest.approx(2.51)


def test_a_failed_or_missing_row_makes_the_sum_infinite_and_not_small():
    first, second = example_op(1), example_op(2)
    rows = {first.op_id: example_row(first)}
    assert network_sum([first, second], rows) == float("inf")
    assert network_sum([second, first], rows) == float("inf")
    assert network_sum([first, second], {**rows, second.op_id: failed_row(second)}) == float("inf")


@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_instance_sd_is_the_spread_between_preparations(sigma):
    machine = replace(STEADY, instance_sigma=sigma)
    visits = simulate(log_spread(80), rounds=24, seed=1, machine=machine, instances=4).visits
    found = instance_sd(fit(visits), visits.op_ids, set(visits.op_ids))
    assert found == pytest.approx(sigma, rel=0.15)


def test_instance_sd_is_of_the_wanted_ops_only():
    visits = simulate(log_spread(20), rounds=12, seed=1, machine=STEADY).visits
    spread = np.where((visits.op == 3) & (visits.instance == 1), 1.1, 1.0)
    drift = fit(replace(visits, block_ns=visits.block_ns * spread))
    assert instance_sd(drift, visits.op_ids, {"op3"}) == pytest.approx(np.log(1.1) / np.sqrt(3), rel=1e-6)
    assert instance_sd(drift, visits.op_ids, {"op4", "op5"}) == pytest.approx(0.0, abs=1e-9)


def test_one_instance_says_nothing_about_the_spread_between_them():
    visits = simulate(log_spread(4), rounds=6, seed=1, instances=1).visits
    assert instance_sd(fit(visits), visits.op_ids, set(visits.op_ids)) is None


# --- The list of networks


def a_lut(ops: Sequence[OpSpec], folder: Path) -> Lut:
    """A table of `ops` and of the overhead of every input shape."""
    rows = [example_row(op, latency_ms=own_ms(op), latency_lo_ms=None, latency_hi_ms=None) for op in ops]
    empty = [example_row(op, call_overhead_ms=None) for op in {input_shape(op): overhead_op(op) for op in ops}.values()]
    return publish([*rows, *empty], example_meta(), folder=folder)


def asked(**changes: int) -> ValidateRequest:
    return replace(ValidateRequest(lut="luts/example-cpu/onnxruntime-fp32-bs1", n_random=8, n_searched=3), **changes)  # type: ignore[arg-type]  # numbers only


def test_the_networks_are_different_and_fixed_by_the_seed(tmp_path):
    lut = a_lut(SPACE.ops(), tmp_path)
    chosen = choose(SPACE, lut, asked())
    assert len({net.ops for net in chosen}) == len(chosen)
    assert 8 <= len(chosen) <= 11  # a random network that a search found too counts once
    assert sum(net.group == "searched" for net in chosen) == 3
    assert choose(SPACE, lut, asked()) == chosen
    assert networks_sha256(choose(SPACE, lut, asked(seed=2))) != networks_sha256(chosen)
    for net in chosen:
        lower_network(net.ops)


def test_random_networks_fill_the_range_of_the_space(tmp_path):
    lut = a_lut(SPACE.ops(), tmp_path)
    compiled = compile_space(SPACE, lut)
    chosen = choose(SPACE, lut, asked(n_searched=0))
    assert {net.group for net in chosen} == {"random"}
    costs = [sum(map(own_ms, net.ops)) for net in chosen]
    low, high = compiled.min_over() - 0.02, compiled.max_over() - 0.02  # one call overhead is added to a network
    strata = np.floor((np.array(costs) - low) / (high - low) * 8).clip(0, 7)
    assert len(set(strata)) >= 7


def test_a_searched_network_may_be_asked_for_alone(tmp_path):
    lut = a_lut(EXAMPLE.ops(), tmp_path)
    chosen = choose(EXAMPLE, lut, asked(n_random=0, n_searched=2))
    assert [net.group for net in chosen] == ["searched", "searched"]


def test_the_hash_of_the_list_holds_order_groups_and_ops():
    digest = networks_sha256(NETWORKS)
    regrouped = (replace(NETWORKS[0], group="random"), *NETWORKS[1:])
    shortened = (replace(NETWORKS[0], ops=NETWORKS[0].ops[:-1]), *NETWORKS[1:])
    hashes = [networks_sha256(networks) for networks in (NETWORKS[::-1], NETWORKS[:-1], regrouped, shortened)]
    assert len({digest, *hashes}) == 5
    assert networks_sha256(held_out(12)) == digest


def test_fewer_than_three_networks_are_refused_before_anything_is_read():
    with pytest.raises(SpecError, match="at least 3 networks"):
        validate(asked(n_random=1, n_searched=1), lambda progress: None)
