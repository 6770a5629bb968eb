"""Reports on whole networks: exact where the truth is additive, honest about what was not timed, and storable."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.campaign.plan import campaign_ops, input_shape, overhead_op
from lutbuilder.campaign.request import ValidateRequest
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.store import CampaignState, Store
from lutbuilder.lower import lower, lower_network
from lutbuilder.lut import Lut, Row, make_rows, publish
from lutbuilder.lut.schema import Carrier
from lutbuilder.nas.compiled import compile_space
from lutbuilder.networks import HeldOut, choose, networks_sha256, read_networks, refuse_fitted, save_networks
from lutbuilder.op import OpSpec
from lutbuilder.stats.drift import fit
from lutbuilder.stats.quality import ValidationReport
from lutbuilder.validation import (
    About,
    anchors,
    check_list,
    held_out,
    instance_sd,
    make_report,
    network_sum,
    to_run,
    validate,
)
from lutbuilder_agent.errors import CampaignFailed, SpecError
from lutbuilder_agent.records import Plan
from tests.lut_examples import example_meta, example_op, example_row, failed_row
from tests.simulated_visits import STEADY, Machine, log_spread, simulate
from tests.worked_example import EXAMPLE

SPACE = spaces.get("proxyless")
OVERHEAD_MS = 0.03


def sampled(n: int) -> tuple[HeldOut, ...]:
    archs = SPACE.sample(np.random.default_rng(0), n)
    return tuple(
        HeldOut.of(SPACE, arch.tolist(), group="searched" if i < 2 else "random") for i, arch in enumerate(archs)
    )


NETWORKS = sampled(12)
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
    networks_sha256=networks_sha256(NETWORKS),
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
    rows: tuple[Row, ...]

    def report(
        self,
        *,
        networks: Sequence[HeldOut] = NETWORKS,
        rows: Iterable[Row] | None = None,
        base: Iterable[Row] | None = None,
        rounds: int = 8,
        carriers: Sequence[Carrier] = (),
    ) -> ValidationReport:
        return make_report(
            networks,
            SPEC,
            pooled=self.rows if rows is None else rows,
            published=self.rows if base is None else base,
            here=self.fitted,
            undrifted=self.undrifted,
            carriers=carriers,
            pooled_carriers=carriers,
            about=About(table="example-cpu/onnxruntime-fp32-bs1@1", rounds=rounds, wall_s=60.0, timed_fraction=0.9),
        )

    def without(self, op: OpSpec) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.op_id != op.op_id)


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
        undrifted=summarise(SPEC.ops, visits, steady=True),
        rows=rows,
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
    assert report.calibrated is None


def test_baselines_are_given_as_fitted_to_the_networks_and_as_held_out(drifting):
    report = drifting.report()
    for fitted, kept_out in (
        (report.flops_linear, report.flops_linear_held_out),
        (report.depth_linear, report.depth_linear_held_out),
    ):
        assert kept_out is not None
        assert kept_out.n == len(NETWORKS)
        assert kept_out.rmspe.value > fitted.rmspe.value


def test_the_fastest_and_the_slowest_tenth_are_told(drifting):
    report = drifting.report()
    measured = sorted(network.measured_ms for network in report.networks)
    assert report.fastest is not None
    assert report.slowest is not None
    assert (report.fastest.from_ms, report.slowest.to_ms) == (measured[0], measured[-1])
    assert (report.fastest.mape.value, report.slowest.mape.value) == (report.deciles[0], report.deciles[-1])


def test_a_report_says_what_was_timed_and_how_it_came_out(steady):
    report = steady.report()
    assert (report.rounds, report.wall_s, report.timed_fraction) == (8, 60.0, 0.9)
    assert (report.table, report.campaign_id) == ("example-cpu/onnxruntime-fp32-bs1@1", SPEC.key)
    assert report.networks_sha256 == networks_sha256(NETWORKS)
    for net, found in zip(NETWORKS, report.networks, strict=True):
        as_op = CampaignOp.network(net.ops)
        assert (found.op_id, found.group, found.n_ops) == (as_op.op_id, net.group, len(net.ops))
        assert found.macs == lower_network(net.ops).macs
        assert (found.measured_ms, found.predicted_ms) == pytest.approx((true_ms(as_op), true_ms(as_op)))
        assert (found.n_visits, found.n_instances) == (8, 3)
        for predicted_ms in (found.undrifted_ms, found.published_ms):
            assert predicted_ms == pytest.approx(found.predicted_ms)
        assert found.calibrated_ms is None


def test_on_a_machine_that_changes_speed_the_drift_model_pays(drifting):
    report = drifting.report()
    assert report.lut_sum.mape.value < 0.02
    assert report.lut_sum.mape.value < 0.5 * report.undrifted.mape.value
    assert report.test_retest_floor is not None
    assert 0.0 < report.test_retest_floor < 0.03
    assert report.instance_floor == pytest.approx(0.01, rel=0.6)  # 12 networks of 3 instances
    assert report.op_instance_sd == pytest.approx(0.01, rel=0.6)


def test_excess_errors_are_the_mape_in_units_of_the_truths_noise_and_of_one_preparations(drifting):
    report = drifting.report()
    assert report.truth_noise == pytest.approx(report.run_noise / 3**0.5)
    assert report.run_noise == pytest.approx((2 / np.pi) ** 0.5 * report.instance_floor)
    mape = report.lut_sum.mape
    for figure, noise in ((report.excess_error, report.truth_noise), (report.excess_over_run, report.run_noise)):
        assert (figure.lo, figure.value, figure.hi) == pytest.approx(
            (mape.lo / noise, mape.value / noise, mape.hi / noise)
        )


def scaled(rows: Iterable[Row], factor: float, **changes: str) -> tuple[Row, ...]:
    """The same rows, slower by a factor and without intervals."""
    return tuple(
        replace(
            row,
            latency_ms=None if row.latency_ms is None else row.latency_ms * factor,
            call_overhead_ms=None if row.call_overhead_ms is None else row.call_overhead_ms * factor,
            latency_lo_ms=None,
            latency_hi_ms=None,
            **changes,
        )
        for row in rows
    )


def test_tables_are_judged_at_this_sessions_scale(steady):
    report = steady.report(base=scaled(steady.rows, 1 / 1.25), rows=scaled(steady.rows, 1 / 1.1))
    assert report.session_scale == pytest.approx(1.25)
    for found in (report.published, report.lut_sum):
        assert found is not None
        assert found.worst < 1e-6


def test_the_scale_of_a_session_is_told_by_ops_and_never_by_networks(steady):
    ids = {network.op_id for network in NETWORKS}
    slower = {i: replace(e, time_ms=2 * e.time_ms) if i in ids else e for i, e in steady.fitted.by_id.items()}
    report = replace(steady, fitted=replace(steady.fitted, by_id=slower)).report()
    assert report.session_scale == pytest.approx(1.0)
    assert report.lut_sum.bias.value == pytest.approx(-0.5)


def test_calibrated_rows_are_judged_beside_the_measured_ones(steady):
    wrong = scaled(steady.rows, 1.0)
    wrong = tuple(replace(row, latency_ms=(row.latency_ms or 0) + 0.01) for row in wrong)
    corrected = tuple(replace(row, method="calibrated") for row in scaled(steady.rows, 1.0))
    for base in ((*wrong, *corrected), (*corrected, *wrong)):
        report = steady.report(base=base, rows=base)
        assert report.published is not None
        assert report.calibrated is not None
        assert report.published.mape.value > 0.005
        # the measured rows tell the scale of both: they are what this session repeats
        assert report.calibrated.bias.value == pytest.approx(report.session_scale - 1, abs=1e-6)
        assert report.lut_sum.mape.value == pytest.approx(report.published.mape.value)
        assert all(network.calibrated_ms < network.published_ms for network in report.networks)


def test_in_situ_rows_are_judged_beside_the_ops_as_timed_alone(steady):
    wrong = tuple(replace(row, latency_ms=(row.latency_ms or 0) + 0.01) for row in scaled(steady.rows, 1.0))
    corrected = tuple(replace(row, method="in_situ") for row in scaled(steady.rows, 1.0) if row.kind != "identity")
    report = steady.report(base=(*wrong, *corrected))
    assert report.published is not None
    assert report.ops_alone is not None
    assert report.published.bias.value == pytest.approx(report.session_scale - 1, abs=1e-4)
    assert report.ops_alone.mape.value > 0.005
    assert steady.report().ops_alone is None


def test_in_situ_rows_are_judged_at_the_scale_of_the_carriers_they_were_fitted_to(steady):
    rows = (*steady.rows, *(replace(row, method="in_situ") for row in steady.rows if row.kind != "identity"))
    ids = {network.op_id for network in NETWORKS}
    # In this session networks, carriers among them, take 1.02 times as long as their ops say; one carrier is disturbed.
    slower = {i: replace(e, time_ms=1.02 * e.time_ms) if i in ids else e for i, e in steady.fitted.by_id.items()}
    some = steady.fitted.by_id[NETWORKS[0].op_id]
    slower |= {f"net-{k}": replace(some, op_id=f"net-{k}", time_ms=10.2 if k else 30.0) for k in range(8)}
    carriers = tuple(Carrier(op_id=f"net-{k}", op_ids=(), time_ms=10.0) for k in range(9))  # one was not timed here
    session = replace(steady, fitted=replace(steady.fitted, by_id=slower))
    report = session.report(base=rows, rows=rows, carriers=carriers)
    assert report.session_scale == pytest.approx(1.02)
    assert report.ops_scale == pytest.approx(1.0)
    assert report.published is not None
    assert report.published.worst < 1e-6
    assert report.published_by_ops is not None
    assert report.published_by_ops.bias.value == pytest.approx(1 / 1.02 - 1)
    assert report.lut_sum.bias.value == pytest.approx(0.0, abs=1e-6), "the pooled table has carriers of its own"
    for told_by_ops in (session.report(base=rows, carriers=carriers[:5]), session.report(carriers=carriers)):
        assert told_by_ops.session_scale == pytest.approx(1.0), "5 of them were timed, or no row rests on them"
        assert told_by_ops.published_by_ops is None


def test_imputed_rows_are_predicted_with_and_tell_no_scale(steady):
    (stage, *_) = [op for op in NETWORKS[0].ops if op.kind == "mbconv"]
    imputed = tuple(
        replace(row, evidence="modelled", method="imputed", latency_ms=2 * (row.latency_ms or 0))
        if row.op == stage
        else row
        for row in scaled(steady.rows, 1.0)
    )
    report = steady.report(base=imputed)
    assert report.session_scale == pytest.approx(1.0)
    assert report.published is not None
    assert report.networks[0].published_ms > 1.005 * report.networks[0].measured_ms


def test_without_a_published_row_of_every_op_there_is_no_judgement_of_the_published_table(steady):
    some_op = NETWORKS[0].ops[3]
    lacking = steady.without(some_op)
    assert steady.report(base=lacking).published is None
    assert steady.report(base=(*lacking, failed_row(some_op))).published is None
    report = steady.report(base=())
    assert (report.session_scale, report.published) == (None, None)


def test_a_network_of_which_an_op_failed_is_left_out(steady):
    stage = [op for op in NETWORKS[0].ops if op.kind == "mbconv"]
    lost = next(op for op in stage if 1 <= sum(op in net.ops for net in NETWORKS) <= len(NETWORKS) - 3)
    left = tuple(CampaignOp.network(net.ops).op_id for net in NETWORKS if lost not in net.ops)
    for report in (
        steady.report(rows=(*steady.without(lost), failed_row(lost))),
        steady.report(rows=steady.without(lost)),
    ):
        assert tuple(found.op_id for found in report.networks) == left
        assert report.lut_sum.worst < 1e-6
        json.dumps(report.to_json(), allow_nan=False)


def test_an_op_that_was_not_timed_beside_the_networks_is_predicted_from_the_table_all_the_same(steady):
    (op, *_) = [op for op in NETWORKS[0].ops if op.kind == "mbconv"]
    report = timed(without=[op.op_id]).report(rows=steady.rows, base=steady.rows)
    assert report.lut_sum.worst < 1e-6
    assert report.published == report.lut_sum
    assert report.undrifted is None, "of this session alone there is no sum of that network"
    assert (report.networks[0].undrifted_ms, report.networks[0].published_ms is None) == (None, False)


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
    assert instance_sd(drift, visits.op_ids, {"op4", "op5"}) == pytest.approx(0.0, abs=1e-4)


def test_one_instance_says_nothing_about_the_spread_between_them():
    visits = simulate(log_spread(4), rounds=6, seed=1, instances=1).visits
    assert instance_sd(fit(visits), visits.op_ids, set(visits.op_ids)) is None


# --- The list of networks


def a_lut(ops: Sequence[OpSpec], folder: Path, **meta: Any) -> Lut:
    """A table of `ops` and of the overhead of every input shape."""
    rows = [example_row(op, latency_ms=own_ms(op), latency_lo_ms=None, latency_hi_ms=None) for op in ops]
    empty = [example_row(op, call_overhead_ms=None) for op in {input_shape(op): overhead_op(op) for op in ops}.values()]
    return publish([*rows, *empty], example_meta(**meta), folder=folder)


def asked(**changes: Any) -> ValidateRequest:
    return replace(ValidateRequest(lut="luts/example-cpu/onnxruntime-fp32-bs1", n_random=8, n_searched=3), **changes)


@pytest.fixture(scope="module")
def lut(tmp_path_factory: pytest.TempPathFactory) -> Lut:
    """A table of the whole space that was fitted to no network."""
    return a_lut(SPACE.ops(), tmp_path_factory.mktemp("luts"))


def test_the_networks_are_different_and_fixed_by_the_seed(lut):
    chosen = held_out(SPACE, lut, asked())
    assert len({net.ops for net in chosen}) == 11
    assert sum(net.group == "searched" for net in chosen) == 3
    assert held_out(SPACE, lut, asked()) == chosen
    assert networks_sha256(held_out(SPACE, lut, asked(seed=2))) != networks_sha256(chosen)
    for net in chosen:
        assert (net.ops, net.op_id) == (SPACE.arch_ops(net.arch), CampaignOp.network(net.ops).op_id)


def test_random_networks_fill_the_range_of_the_space(lut):
    compiled = compile_space(SPACE, lut)
    chosen = held_out(SPACE, lut, asked(n_searched=0))
    assert {net.group for net in chosen} == {"random"}
    costs = [sum(map(own_ms, net.ops)) for net in chosen]
    low, high = compiled.min_over() - 0.02, compiled.max_over() - 0.02  # one call overhead is added to a network
    strata = np.floor((np.array(costs) - low) / (high - low) * 8).clip(0, 7)
    assert len(set(strata)) >= 7


def test_a_searched_network_may_be_asked_for_alone(tmp_path):
    small = a_lut(EXAMPLE.ops(), tmp_path)
    chosen = choose(EXAMPLE, small, n_random=0, n_searched=2, seed=1)
    assert [net.group for net in chosen] == ["searched", "searched"]


def test_networks_the_table_was_fitted_to_are_not_chosen(lut, tmp_path):
    first = held_out(SPACE, lut, asked())
    fitted = a_lut(SPACE.ops(), tmp_path, fitted_networks=tuple(net.op_id for net in first))
    others = held_out(SPACE, fitted, asked())
    assert len(others) == len(first)
    assert not {net.op_id for net in others} & {net.op_id for net in first}
    assert [net.group for net in others] == [net.group for net in first]


def test_a_small_space_is_drawn_from_to_its_last_network_and_no_further(tmp_path):
    small = a_lut(EXAMPLE.ops(), tmp_path)
    there = {HeldOut.of(EXAMPLE, row, group="").op_id for row in np.ndindex(2, 2, 2)}
    five = choose(EXAMPLE, small, n_random=5, n_searched=0, seed=1)
    rest = choose(EXAMPLE, small, n_random=3, n_searched=0, seed=1, avoid=[net.op_id for net in five])
    assert {net.op_id for net in (*five, *rest)} == there
    with pytest.raises(SpecError, match="found only 3 of 4 different feasible archs"):
        choose(EXAMPLE, small, n_random=4, n_searched=0, seed=1, avoid=[net.op_id for net in five])


def test_the_hash_of_the_list_holds_order_groups_and_ops():
    digest = networks_sha256(NETWORKS)
    regrouped = (replace(NETWORKS[0], group="random"), *NETWORKS[1:])
    shortened = (replace(NETWORKS[0], ops=NETWORKS[0].ops[:-1]), *NETWORKS[1:])
    hashes = [networks_sha256(networks) for networks in (NETWORKS[::-1], NETWORKS[:-1], regrouped, shortened)]
    assert len({digest, *hashes}) == 5
    assert networks_sha256(sampled(12)) == digest


def test_fewer_than_three_networks_are_refused_before_anything_is_read():
    with pytest.raises(SpecError, match="at least 3 networks"):
        validate(asked(n_random=1, n_searched=1), lambda progress: None)


# --- Lists in files


def a_list(folder: Path, body: object) -> Path:
    path = folder / "networks.json"
    path.write_text(json.dumps(body), encoding="utf-8")
    return path


def test_a_saved_list_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "lists" / "networks.json"
    save_networks(NETWORKS, SPACE, path, batch=1)
    again = read_networks(path, SPACE, batch=1)
    assert again == NETWORKS
    assert json.loads(path.read_text())["networks_sha256"] == networks_sha256(again)


def test_the_same_list_may_be_saved_again_and_another_never_takes_its_place(tmp_path):
    path = tmp_path / "networks.json"
    save_networks(NETWORKS, SPACE, path, batch=1)
    before = path.read_bytes()
    save_networks(NETWORKS, SPACE, path, batch=1)
    with pytest.raises(SpecError, match=r"networks\.json is there already .* choose another name"):
        save_networks(NETWORKS[:5], SPACE, path, batch=1)
    assert path.read_bytes() == before


@settings(max_examples=20, deadline=None)  # no deadline: a busy machine is no failure
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_any_archs_can_be_listed_by_name_or_by_number(seed, by_name):
    archs = SPACE.sample(np.random.default_rng(seed), 4).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = a_list(Path(folder), [SPACE.decode(arch) if by_name else arch for arch in archs])
        found = read_networks(path, SPACE, batch=1)
    assert [list(net.arch) for net in found] == archs
    assert {net.group for net in found} == {"listed"}


ARCH = dict(SPACE.decode(NETWORKS[0].arch))
THREE = [list(net.arch) for net in NETWORKS[:3]]
FIRST, *_ = ARCH


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "is not a list of networks"),
        ("archs", "is not a list of networks"),
        ({"networks": {}}, "is not a list of networks"),
        ([], "lists 0 networks"),
        (THREE[:2], "lists 2 networks; a validation needs at least 3"),
        ([*THREE, THREE[1]], "network 3 is network 1 once more"),
        ([*THREE, 7], "network 3: an arch is an object of the values of 'proxyless' by name, or a list of 21"),
        ([*THREE, [0.5] * 21], "network 3: an arch is an object"),
        ([*THREE, [True] * 21], "network 3: an arch is an object"),
        ([*THREE, [0] * 20], "network 3: encodings of space 'proxyless' are integers of shape"),
        ([*THREE, [99] * 21], r"network 3: arch 0: .* is a value number from 0 to"),
        ([*THREE, [1 << 70] * 21], "network 3: an arch is an object"),
        ([*THREE, {**ARCH, "colour": 1}], "network 3: space 'proxyless' has no variable 'colour'"),
        ([*THREE, {**ARCH, FIRST: "k9e9"}], f"network 3: {FIRST} is one of"),
        ([*THREE, {**ARCH, FIRST: True}], "network 3: values of 'proxyless' are numbers or words"),
        ([*THREE, {FIRST: ARCH[FIRST]}], "network 3: .* is active here and needs a value"),
        ([*THREE, {"arch": ARCH, "group": 3}], "network 3: its group is a word"),
        ({"space": "proxyless-w1.3", "networks": THREE}, "networks of space 'proxyless-w1.3', the table is of"),
        ({"networks_sha256": "ab" * 32, "networks": THREE}, "the list was changed after it was saved"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_list_that_makes_no_sense_is_refused_with_its_file_and_entry(tmp_path, body, says):
    with pytest.raises(SpecError, match=says) as refused:
        read_networks(a_list(tmp_path, body), SPACE, batch=1)
    assert "networks.json" in str(refused.value)


@pytest.mark.parametrize("raw", [b"", b"[1, 2", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused(tmp_path, raw):
    path = tmp_path / "networks.json"
    path.write_bytes(raw)
    with pytest.raises(SpecError, match=r"networks\.json is not JSON"):
        read_networks(path, SPACE, batch=1)
    with pytest.raises(SpecError, match="cannot read the list of networks"):
        read_networks(tmp_path / "nothing.json", SPACE, batch=1)


def test_a_list_fits_another_batch_size(tmp_path):
    path = tmp_path / "networks.json"
    save_networks(NETWORKS, SPACE, path, batch=1)
    found = read_networks(path, spaces.get("proxyless", batch=8), batch=8)
    assert [net.arch for net in found] == [net.arch for net in NETWORKS]
    assert {op.batch for net in found for op in net.ops} == {8}


def test_listed_networks_the_table_was_fitted_to_are_refused_by_name(tmp_path):
    fitted = a_lut(SPACE.ops(), tmp_path, fitted_networks=(NETWORKS[4].op_id,))
    path = tmp_path / "networks.json"
    save_networks(NETWORKS, SPACE, path, batch=1)
    with pytest.raises(
        SpecError, match=rf"network 4 of the list, {NETWORKS[4].op_id}, was used to fit .*@1: .*Take it"
    ):
        held_out(SPACE, fitted, asked(networks=path))
    others = (*NETWORKS[:4], *NETWORKS[5:])
    refuse_fitted(others, fitted)
    save_networks(others, SPACE, tmp_path / "others.json", batch=1)
    assert held_out(SPACE, fitted, asked(networks=tmp_path / "others.json")) == others


# --- The campaign


def test_the_list_of_a_stored_campaign_is_checked_against_its_hash(tmp_path):
    with Store.open(tmp_path / "campaigns.sqlite") as store:
        stored = store.campaign(store.create_campaign(SPEC, now_s=0.0)).spec
    check_list(stored, NETWORKS)
    ops = tuple(op for op in stored.ops if op.op_id != NETWORKS[3].op_id)
    swapped = (*stored.ops[:-2], stored.ops[-1], stored.ops[-2])
    for changed, networks in (
        (replace(stored, ops=ops), NETWORKS),
        (replace(stored, ops=swapped), NETWORKS),
        (replace(stored, networks_sha256=""), NETWORKS),
        (stored, NETWORKS[:-1]),
        (stored, (replace(NETWORKS[0], group="random"), *NETWORKS[1:])),
    ):
        with pytest.raises(CampaignFailed, match=r"does not hold the list of networks that was fixed .* --again"):
            check_list(changed, networks)


def test_two_validations_share_a_campaign_only_if_they_ask_for_the_same():
    others = sampled(13)[1:]
    for changed in (
        replace(SPEC, networks_sha256=networks_sha256(others)),
        replace(SPEC, plan=replace(SPEC.plan, seed=2)),
        replace(SPEC, lease_rounds=8),
    ):
        assert changed.key != SPEC.key


def known(spec: CampaignSpec, **changes: Any) -> dict[str, CampaignState]:
    state = CampaignState(
        campaign_id=spec.key, spec=spec, state="done", reason="max_rounds", rounds=24, measured_ns=1, timed_ns=1,
        created_s=0.0, finished_s=1.0,
    )  # fmt: skip  # one record, two lines
    return {spec.key: replace(state, **changes)}


def test_networks_that_were_timed_are_timed_again_only_if_asked():
    second = replace(SPEC, repeat=1)
    assert to_run(SPEC, {}, again=False) == to_run(SPEC, {}, again=True) == SPEC
    assert to_run(SPEC, known(SPEC, state="active"), again=True) == SPEC
    assert to_run(SPEC, known(SPEC), again=False) == SPEC
    assert to_run(SPEC, known(SPEC), again=True) == second
    assert to_run(SPEC, known(SPEC) | known(second, state="active"), again=True) == second
    for ended in ({"reason": "failed"}, {"state": "cancelled"}):
        assert to_run(SPEC, known(SPEC, **ended), again=False) == second


def test_beside_the_networks_the_measured_ops_are_timed_and_no_imputed_one(tmp_path, lut):
    assert anchors(SPACE, lut) == campaign_ops(SPACE.ops(), SPACE.ops())
    guessed = [op for op in SPACE.ops() if op.kind == "mbconv"][::2]
    rows = [replace(row, evidence="modelled", method="imputed") if row.op in guessed else row for row in lut.rows()]
    partly = publish(rows, example_meta(), folder=tmp_path)
    timed_ops = {op.op_id for op in anchors(SPACE, partly) if op.role == "op"}
    assert timed_ops == {op.op_id for op in SPACE.ops() if op not in guessed}


def test_of_a_huge_table_some_ops_are_timed(lut, monkeypatch):
    monkeypatch.setattr("lutbuilder.validation._MOST_OPS", 20)
    found = anchors(SPACE, lut)
    assert 20 <= sum(op.role == "op" for op in found) < 0.7 * len(SPACE.ops())
    assert {op.ops[0] for op in found if op.role == "op"} <= set(SPACE.ops())
