"""Calibrated rows of a table and of another device's: what they rest on, what they say, and when they leave."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.calibration import calibrate, choose_networks, reserved, validated
from lutbuilder.campaign.calibrated import (
    Calibrated,
    calibrate_rows,
    refitted,
    transfer_rows,
    with_calibration,
)
from lutbuilder.campaign.collect import missing
from lutbuilder.campaign.draft import Draft
from lutbuilder.campaign.estimates import Summary
from lutbuilder.campaign.evidence import Evidence
from lutbuilder.campaign.plan import overhead_op
from lutbuilder.campaign.request import CalibrateRequest
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec
from lutbuilder.coordinator.store import Store
from lutbuilder.lower import lower
from lutbuilder.lut import Lut, Row, preferred, publish
from lutbuilder.nas.compiled import compile_space
from lutbuilder.networks import HeldOut, choose
from lutbuilder.op import OpSpec
from lutbuilder.stats.drift import fit
from lutbuilder.stats.records import OpEstimate
from lutbuilder.validation import network_sum
from lutbuilder_agent.errors import CampaignFailed, LutConflict, SpecError
from tests.lut_examples import CACHE, example_meta, failed_row
from tests.simulated_visits import log_spread, simulate
from tests.worked_example import EXAMPLE

SPACE = spaces.get("proxyless")
OPS = SPACE.ops()
CALL_MS = 0.03
RECORDED = Path(__file__).parents[1] / "recorded" / "calibration.npz"
Floats = NDArray[np.float64]
Bias = Callable[[OpSpec], float]


def own_ms(op: OpSpec) -> float:
    """What a table says of an op."""
    return 0.01 + lower(op).macs / 1e8


def networks(n: int, *, seed: int = 0, role: str = "network") -> tuple[CampaignOp, ...]:
    made = CampaignOp.carrier if role == "carrier" else CampaignOp.network
    return tuple(made(SPACE.arch_ops(arch)) for arch in SPACE.sample(np.random.default_rng(seed), n))


def row(op: OpSpec, latency_ms: float, *, sd: float = 0.005, **changes: Any) -> Row:
    half = 1.96 * sd * latency_ms
    measured: dict[str, Any] = {
        "latency_ms": latency_ms,
        "latency_lo_ms": latency_ms - half,
        "latency_hi_ms": latency_ms + half,
        "call_overhead_ms": CALL_MS,
        "p90_ms": 1.1 * latency_ms,
        "n_visits": 60,
        "n_sessions": 1,
        "method": "context",
        "cache": CACHE,
        "exec_w_bits": 32,
        "exec_a_bits": 32,
    }
    return Row.of(op, **{**measured, **changes})


def estimate(op_id: str, time_ms: float, *, noise: float = 0.003) -> OpEstimate:
    half = 1.96 * noise * time_ms
    return OpEstimate(
        op_id=op_id,
        time_ms=time_ms,
        lo_ms=time_ms - half,
        hi_ms=time_ms + half,
        p90_ms=time_ms,
        n_visits=24,
        n_rounds=24,
        n_instances=6,
        n_sessions=1,
        test_retest=0.003,
        preempted_fraction=0.0,
        bimodal=False,
        residual_mad=0.01,
    )


@dataclass(frozen=True, kw_only=True)
class Device:
    """What ops truly cost inside networks, against a table that says `own_ms` of them."""

    bias: Bias
    noise: float = 0.003
    seed: int = 0
    speed: float = 1.0

    def true_ms(self, ops: Sequence[OpSpec]) -> float:
        return (CALL_MS + sum(own_ms(op) * math.exp(self.bias(op)) for op in ops)) / self.speed

    def timed(self, nets: Sequence[CampaignOp]) -> dict[str, OpEstimate]:
        rng = np.random.default_rng(self.seed)
        return {
            net.op_id: estimate(
                net.op_id, self.true_ms(net.ops) * float(np.exp(self.noise * rng.standard_normal())), noise=self.noise
            )
            for net in nets
        }

    def error(self, rows: Mapping[str, Row], *, seed: int = 99) -> float:
        """Mean absolute error over 40 networks that no test fits to."""
        return float(
            np.mean([abs(network_sum(net.ops, rows) / self.true_ms(net.ops) - 1.0) for net in networks(40, seed=seed)])
        )


ROWS = tuple(row(op, own_ms(op)) for op in OPS)
COLD = Device(bias=lambda op: 0.06 * math.log2(28 / op.height) / 3)  # small maps, large weights: cold in networks


def calibrated(device: Device = COLD, rows: Sequence[Row] = ROWS, n: int = 16, **options: Any) -> Calibrated:
    nets = networks(n)
    return calibrate_rows(rows, nets, device.timed(nets), covered=OPS, table="t@1", spaces=["proxyless"], **options)


# --- A table of this device


def test_calibrated_rows_predict_networks_outside_the_fit_better() -> None:
    made = calibrated()
    assert made.report.method == "ridge"
    before, after = COLD.error(preferred(ROWS)), COLD.error(preferred((*ROWS, *made.rows)))
    assert after < 0.3 * before
    assert made.report.before.mape == pytest.approx(before, rel=0.5)
    assert made.report.after.mape < 0.5 * made.report.before.mape


def test_a_network_is_still_the_plain_sum_of_its_rows(tmp_path: Path) -> None:
    for method in ("affine", "ridge"):
        made = calibrated(Device(bias=lambda op: 0.05), method=method)
        lut = publish((*ROWS, *made.rows), example_meta(), folder=tmp_path / method)
        compiled = compile_space(SPACE, lut)
        archs = SPACE.sample(np.random.default_rng(5), 20)
        rows = preferred(lut.rows())
        sums = [network_sum(SPACE.arch_ops(arch), rows) for arch in archs]
        assert compiled.predict(archs) == pytest.approx(sums)
        assert [lut[op].method for op in OPS] == ["calibrated"] * 70
        assert all((lut[op].latency_ms or 0.0) > 0 for op in OPS)


def test_measured_rows_stay_beside_calibrated_ones_and_keep_what_they_say() -> None:
    made = calibrated()
    corrected = {found.op_id: found for found in made.rows}
    assert len(corrected) == 70
    for before in ROWS:
        after = corrected[before.op_id]
        assert (after.status, after.evidence, after.n_visits) == ("calibrated", "measured", 60)
        assert after.latency_lo_ms < after.latency_ms < after.latency_hi_ms  # type: ignore[operator]  # none is None
        assert after.p90_ms == pytest.approx(1.1 * (after.latency_ms or 0.0))
    assert preferred((*made.rows, *ROWS))[OPS[0].op_id].method == "calibrated"


def test_the_constant_of_an_affine_fit_is_the_call_overhead_of_the_ops_that_networks_begin_with() -> None:
    slow = Device(bias=lambda op: 0.0, noise=1e-5)
    nets = networks(16)
    timed = {i: replace(e, time_ms=e.time_ms + 0.2) for i, e in slow.timed(nets).items()}
    made = calibrate_rows(ROWS, nets, timed, covered=OPS, table="t@1", spaces=["proxyless"], method="affine")
    assert made.report.intercept_ms == pytest.approx(0.2, abs=0.01)
    stem = nets[0].ops[0]
    for found in made.rows:
        first = overhead_op(found.op) == overhead_op(stem)
        assert found.call_overhead_ms == pytest.approx(CALL_MS + 0.2 if first else CALL_MS, abs=0.01)


@pytest.mark.parametrize(("cache", "has"), [("cold", True), ("rotating", False)])
def test_in_the_cold_form_only_the_ops_that_every_network_has_once_may_be_off_together(cache: str, has: bool) -> None:
    made = calibrated(COLD, tuple(replace(row, cache=cache) for row in ROWS))
    assert ("ends" in made.report.scales) is has


def test_a_table_that_is_right_is_left_alone() -> None:
    right = Device(bias=lambda op: 0.0, noise=0.004)
    made = calibrated(right, rows=[row(op, own_ms(op), sd=1e-6) for op in OPS])
    assert (made.rows, made.report.method) == ((), "none")
    assert made.report.after == made.report.before
    assert len(made.report.networks) == 16


def test_the_machines_speed_while_networks_were_timed_is_told_by_its_ops() -> None:
    nets = networks(16)
    timed = {
        **COLD.timed(nets),
        **{op.op_id: estimate(op.op_id, own_ms(op) + CALL_MS) for op in OPS},
    }
    slower = {
        i: replace(e, time_ms=1.1 * e.time_ms, lo_ms=1.1 * (e.lo_ms or 0), hi_ms=1.1 * (e.hi_ms or 0))
        for i, e in timed.items()
    }
    for estimates in (timed, slower):
        made = calibrate_rows(ROWS, nets, estimates, covered=OPS, table="t@1", spaces=["proxyless"])
        assert COLD.error(preferred((*ROWS, *made.rows))) < 0.004


def test_carriers_join_the_fit_but_not_the_judgement() -> None:
    carriers, nets = networks(16, seed=7, role="carrier"), networks(16)
    timed = COLD.timed([*carriers, *nets])
    options: dict[str, Any] = {"covered": OPS, "table": "t@1", "spaces": ["proxyless"]}
    alone = calibrate_rows(ROWS, nets, timed, **options)
    both = calibrate_rows(ROWS, [*carriers, *nets], timed, **options)
    assert COLD.error(preferred((*ROWS, *both.rows))) < 0.0015
    assert Counter(network.carrier for network in both.report.networks) == {True: 16, False: 16}
    assert both.report.before.mape == pytest.approx(alone.report.before.mape)
    in_situ = [replace(found, method="in_situ") for found in both.rows]  # what carriers made of the rows before
    again = calibrate_rows((*ROWS, *in_situ), nets, timed, **options)
    assert again.report.before.mape < 0.5 * alone.report.before.mape


def test_a_network_that_is_off_is_named_and_its_error_does_not_count() -> None:
    nets = networks(16)
    timed = COLD.timed(nets)
    broken = nets[4].op_id
    timed[broken] = estimate(broken, 1.3 * timed[broken].time_ms)
    made = calibrate_rows(ROWS, nets, timed, covered=OPS, table="t@1", spaces=["proxyless"])
    assert made.report.outliers == (broken,)
    assert COLD.error(preferred((*ROWS, *made.rows))) < 0.006
    assert made.report.after.mape < 0.01


def test_a_network_of_which_an_op_has_no_latency_is_left_out() -> None:
    nets = networks(16)
    gone = next(op for op in nets[0].ops if 1 <= sum(op in net.ops for net in nets) <= 8)
    rows = [failed_row(op, method="context") if op == gone else row(op, own_ms(op)) for op in OPS]
    made = calibrate_rows(rows, nets, COLD.timed(nets), covered=OPS, table="t@1", spaces=["proxyless"])
    assert {network.op_id for network in made.report.networks} == {net.op_id for net in nets if gone not in net.ops}
    assert gone.op_id not in {found.op_id for found in made.rows}
    few = dict(list(COLD.timed(nets).items())[:5])
    with pytest.raises(CampaignFailed, match=r"only 5 of 16 networks were timed"):
        calibrate_rows(ROWS, nets, few, covered=OPS, table="t@1", spaces=["proxyless"])


def test_the_report_can_be_stored_and_says_what_it_was_fitted_to(tmp_path: Path) -> None:
    made = calibrated()
    body = json.loads(json.dumps(made.report.to_json(), allow_nan=False))
    assert (body["method"], body["table"], body["spaces"], body["source"]) == ("ridge", "t@1", ["proxyless"], None)
    assert [network["op_id"] for network in body["networks"]] == [net.op_id for net in networks(16)]
    assert len(body["networks_sha256"]) == len(body["sources_sha256"]) == 64
    lut = publish((*ROWS, *made.rows), example_meta(calibration=body), folder=tmp_path)
    assert Lut.load(lut.path).meta.calibration == body


# --- On recorded machines


@pytest.mark.parametrize(("runtime", "share"), [("onnxruntime", 0.75), ("torch-channels_last", 0.4), ("litert", 0.97)])
def test_on_recorded_networks_sixteen_of_them_better_the_prediction_of_the_others(runtime: str, share: float) -> None:
    """80 ProxylessNAS networks and 70 ops of one machine (benchmarks/compare_calibration.py --save), over 5 splits."""
    with np.load(RECORDED) as file:
        found = {name.partition(".")[2]: file[name] for name in file.files if name.startswith(f"{runtime}.")}
    by_id = {op.op_id: op for op in OPS}
    ops = [by_id[op_id] for op_id in found["op_id"].tolist()]
    rows = [
        Row.of(
            op,
            latency_ms=float(found["latency_ms"][k]),
            latency_lo_ms=float(found["latency_lo_ms"][k]),
            latency_hi_ms=float(found["latency_hi_ms"][k]),
            call_overhead_ms=float(found["call_overhead_ms"][k]),
            method="context",
        )
        for k, op in enumerate(ops)
    ]
    nets, timed = [], {}
    for k, counts in enumerate(found["counts"].tolist()):
        net = CampaignOp.network(tuple(op for op, count in zip(ops, counts, strict=True) for _ in range(count)))
        time_ms, half = float(found["network_ms"][k]), float(found["network_half_width"][k])
        nets.append(net)
        timed[net.op_id] = replace(
            estimate(net.op_id, time_ms),
            lo_ms=time_ms * (1 - half),
            hi_ms=time_ms * (1 + half),
            freedom=float(found["network_freedom"][k]),
        )
    before: list[float] = []
    after: list[float] = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(nets)).tolist()
        fitted, tested = [nets[k] for k in order[:16]], [nets[k] for k in order[16:]]
        made = calibrate_rows(rows, fitted, timed, covered=ops, table="t@1", spaces=["proxyless"])
        for errors, table in ((before, rows), (after, [*rows, *made.rows])):
            known = preferred(table)
            errors.append(
                float(np.mean([abs(network_sum(net.ops, known) / timed[net.op_id].time_ms - 1.0) for net in tested]))
            )
    assert np.mean(after) < share * np.mean(before)


# --- Leaving with the rows they correct


def a_lut(
    folder: Path, rows: Sequence[Row], made: Calibrated | None = None, base: Lut | None = None, **meta: Any
) -> Lut:
    fields: dict[str, Any] = dict(meta)
    if made is not None:
        ids = tuple(network.op_id for network in made.report.networks)
        fields |= {"calibration": made.report.to_json(), "fitted_networks": ids}
        rows = (*rows, *made.rows)
    return publish(rows, example_meta(**fields), folder=folder, base=base)


def test_calibrated_rows_stay_while_the_rows_they_correct_do(tmp_path: Path) -> None:
    first = a_lut(tmp_path, ROWS, calibrated())
    worse = [replace(ROWS[3], latency_lo_ms=0.5 * (ROWS[3].latency_ms or 0.0))]  # it changes nothing: a wider interval
    second = a_lut(tmp_path, worse, base=first)
    assert Counter(found.status for found in second.rows()) == {"measured": 70, "calibrated": 70}
    assert second.meta.calibration == first.meta.calibration


def test_calibrated_rows_leave_together_when_one_they_correct_is_measured_anew(tmp_path: Path) -> None:
    first = a_lut(tmp_path, ROWS, calibrated())
    anew = replace(ROWS[3], latency_ms=1.001 * (ROWS[3].latency_ms or 0.0), n_sessions=2)
    second = a_lut(tmp_path, [anew], base=first)
    assert Counter(found.status for found in second.rows()) == {"measured": 70}
    assert second.meta.calibration is None
    assert second[OPS[3]].latency_ms == anew.latency_ms
    assert set(second.meta.fitted_networks) == set(first.meta.fitted_networks), "no validation may ever use them"


def test_a_new_calibration_displaces_the_old_one_whole(tmp_path: Path) -> None:
    first = a_lut(tmp_path, ROWS, calibrated())
    second = a_lut(tmp_path, ROWS, calibrated(Device(bias=lambda op: -0.05)), base=first)
    assert Counter(found.status for found in second.rows()) == {"measured": 70, "calibrated": 70}
    assert second[OPS[9]].latency_ms == pytest.approx(0.95 * own_ms(OPS[9]), rel=0.02)
    right = calibrated(Device(bias=lambda op: 0.0), rows=[row(op, own_ms(op), sd=1e-6) for op in OPS])
    third = a_lut(tmp_path, ROWS, right, base=second)
    assert Counter(found.status for found in third.rows()) == {"measured": 70}
    assert third.meta.calibration is not None
    assert third.meta.calibration["method"] == "none"


def a_draft(rows: Sequence[Row], nets: Sequence[CampaignOp], estimates: Mapping[str, OpEstimate]) -> Draft:
    visits = simulate(log_spread(3), rounds=6, seed=0).visits
    return Draft(
        rows=tuple(rows),
        meta=example_meta(),
        summary=Summary(visits=visits, drift=fit(visits), by_id=estimates, rows=()),
        evidence=Evidence(
            campaign_ids=("c",),
            ops=(*(CampaignOp.of(op) for op in OPS), *nets),
            failures=(),
            agents={"s1": "me"},
            sessions=("s1",),
            purpose="collect",
            precision=0.01,
            reason="precision",
        ),
    )


def test_where_the_networks_visits_are_at_hand_calibrated_rows_are_fitted_again_with_the_measured_ones(
    tmp_path: Path,
) -> None:
    nets = networks(16)
    base = a_lut(tmp_path, ROWS, calibrated())
    anew = [row(op, 1.02 * own_ms(op), n_sessions=2) for op in OPS]
    made = refitted(a_draft(anew, nets, COLD.timed(nets)), base)
    assert Counter(found.status for found in made.rows) == {"measured": 70, "calibrated": 70}
    lut = publish(made.rows, made.meta, folder=tmp_path, base=base)
    assert Counter(found.status for found in lut.rows()) == {"measured": 70, "calibrated": 70}
    assert COLD.error(preferred(lut.rows())) < 0.006
    others = networks(6, seed=3)  # a validation's: timed, but never fitted
    assert refitted(a_draft(anew, [*nets, *others], COLD.timed([*nets, *others])), base).rows == made.rows


def test_without_their_visits_calibrated_rows_are_not_fitted_again(tmp_path: Path) -> None:
    base = a_lut(tmp_path, ROWS, calibrated())
    nets = networks(15)
    draft = a_draft([row(op, 1.02 * own_ms(op), n_sessions=2) for op in OPS], nets, COLD.timed(nets))
    assert refitted(draft, base) is draft
    assert refitted(draft, None) is draft
    vague = {i: replace(e, lo_ms=None, hi_ms=None) for i, e in COLD.timed(networks(16)).items()}
    unfit = a_draft(draft.rows, networks(16), vague)
    assert refitted(unfit, base) is unfit, "what was measured is published all the same"
    assert refitted(draft, a_lut(tmp_path / "other", ROWS)) is draft


def test_networks_of_a_calibration_are_named_so_that_no_validation_uses_them(tmp_path: Path) -> None:
    nets = networks(16)
    draft = with_calibration(a_draft(ROWS, nets, COLD.timed(nets)), calibrated())
    assert set(draft.meta.fitted_networks) == {net.op_id for net in nets}
    lut = publish(draft.rows, draft.meta, folder=tmp_path)
    avoided = choose(SPACE, lut, n_random=6, n_searched=2, seed=1, avoid=lut.meta.fitted_networks)
    assert not {net.op_id for net in avoided} & set(lut.meta.fitted_networks)


# --- Another device's table


def transferred(source: Lut, device: Device, n: int = 10, **options: Any) -> Calibrated:
    nets = networks(n)
    return transfer_rows(
        source,
        nets,
        device.timed(nets),
        covered=OPS,
        cache=CACHE,
        collect="lutbuilder collect --device cpu",
        spaces=["proxyless"],
        **options,
    )


@pytest.fixture
def source(tmp_path: Path) -> Lut:
    rows = [
        failed_row(op)
        if op.kind == "mbconv" and op.kernel == 7 and op.stride == 2 and op.height == 14
        else row(op, own_ms(op))
        for op in OPS
    ]
    return a_lut(tmp_path / "source", rows)


def alike(op: OpSpec) -> float:
    """Depthwise layers are relatively cheaper here, and no op is quite like the other device's."""
    own = int(op.op_id[-4:], 16) / 65536.0 - 0.5
    return (-0.1 * (op.kernel - 3) / 4 if op.kind == "mbconv" else 0.1) + 0.08 * own


def test_another_devices_table_is_scaled_by_ten_networks(tmp_path: Path) -> None:
    device = Device(bias=alike, speed=2.3)
    made = transferred(a_lut(tmp_path, ROWS), device)
    rows = preferred(made.rows)
    assert device.error(rows) < 0.015
    for found in made.rows:
        assert (found.evidence, found.method, found.status) == ("modelled", "calibrated", "calibrated")
        assert (found.n_visits, found.n_instances, found.n_sessions) == (0, 0, 0)
        assert "never measured here" in (found.reason or "")
    assert made.report.source == "example-cpu/onnxruntime-fp32-bs1@1"
    assert "sources_sha256" not in made.report.to_json()


def test_the_intervals_of_a_transfer_hold_the_truth_and_are_wider_than_measured_ones(tmp_path: Path) -> None:
    source, held, widths = a_lut(tmp_path, ROWS), [], []
    for seed in range(2):
        device = Device(bias=alike, speed=2.3, seed=seed)
        for found in transferred(source, device).rows:
            true_ms = device.true_ms([found.op]) - CALL_MS / device.speed
            held.append((found.latency_lo_ms or 9e9) <= true_ms <= (found.latency_hi_ms or 0.0))
            widths.append(found.half_width or 0.0)
    assert np.mean(held) >= 0.9
    assert np.median(widths) > 0.02, "rows of 1 % on the other device are not known that well here"


def test_what_failed_on_the_other_device_is_not_promised_here(source: Lut) -> None:
    usable = [net for net in networks(40) if all(source[op].latency_ms is not None for op in net.ops)][:10]
    device = Device(bias=alike, speed=0.5)
    made = transfer_rows(
        source,
        usable,
        device.timed(usable),
        covered=OPS,
        cache=CACHE,
        collect="lutbuilder collect",
        spaces=["proxyless"],
    )
    failed = [found for found in made.rows if found.latency_ms is None]
    assert len(failed) == sum(source[op].latency_ms is None for op in OPS) > 0
    assert all((found.reason or "").startswith("so on example-cpu/onnxruntime-fp32-bs1@1") for found in failed)


def unlike(spread: float) -> Bias:
    """Every op is faster or slower here by a factor of its own."""
    factors = dict(zip(OPS, spread * np.random.default_rng(1).standard_normal(len(OPS)), strict=True))
    return lambda op: float(factors[op])


def test_a_device_that_works_in_another_way_is_refused_with_figures_and_the_command_to_type(tmp_path: Path) -> None:
    source = a_lut(tmp_path, ROWS)
    told = r"does not carry over.*% off \(at most 5 %\).*Measure the ops: lutbuilder collect --device cpu"
    with pytest.raises(LutConflict, match=told):
        transferred(source, Device(bias=unlike(0.8)))


def test_how_far_off_another_devices_table_may_be_is_for_the_user_to_say(tmp_path: Path) -> None:
    source, device = a_lut(tmp_path, ROWS), Device(bias=unlike(0.15))
    with pytest.raises(LutConflict, match=r"at most 1 %"):
        transferred(source, device, worst=0.01)
    assert device.error(preferred(transferred(source, device, worst=0.2).rows)) < 0.08


def test_networks_that_are_timed_too_badly_are_told_from_another_regime(tmp_path: Path) -> None:
    with pytest.raises(CampaignFailed, match=r"timed too badly to tell.*--rounds"):
        transferred(a_lut(tmp_path, ROWS), Device(bias=lambda op: 0.0, noise=0.15))


def test_rows_of_another_device_are_missing_here_and_leave_when_measured(tmp_path: Path) -> None:
    made = transferred(a_lut(tmp_path / "source", ROWS), Device(bias=alike))
    base = a_lut(tmp_path / "here", (), made)
    assert Counter(found.status for found in base.rows()) == {"calibrated": 70}
    assert missing(OPS, base, 0.01) == OPS
    second = a_lut(tmp_path / "here", ROWS[:30], base=base)
    assert Counter(found.status for found in second.rows()) == {"measured": 30, "calibrated": 40}
    assert missing(OPS, second, 0.01) == OPS[30:]
    third = a_lut(tmp_path / "here", ROWS, base=second)
    assert Counter(found.status for found in third.rows()) == {"measured": 70}
    assert third.meta.calibration is None


@pytest.mark.parametrize("asked", [CalibrateRequest(), CalibrateRequest(lut="luts/x", source="luts/y")])
def test_one_table_is_named(asked: CalibrateRequest) -> None:
    with pytest.raises(SpecError, match="--from the table of another device"):
        calibrate(asked, lambda progress: None)


def test_too_few_networks_are_refused_before_anything_is_read() -> None:
    with pytest.raises(SpecError, match="at least 6 networks: --nets 16"):
        calibrate(CalibrateRequest(lut="luts/x", n_networks=5), lambda progress: None)


# --- Which networks


def test_the_networks_of_a_calibration_fill_the_range_and_none_is_one_a_validation_uses(tmp_path: Path) -> None:
    lut = a_lut(tmp_path, ROWS)
    kept = reserved(SPACE, lut)
    assert len(kept) == 80
    before = {HeldOut.of(SPACE, arch, group="").op_id for arch in SPACE.sample(np.random.default_rng(3), 5)}
    chosen = choose_networks(SPACE, lut, n=16, seed=1, avoid={*kept, *before})
    assert len({net.op_id for net in chosen}) == 16
    assert not {net.op_id for net in chosen} & (kept | before)
    assert choose_networks(SPACE, lut, n=16, seed=1, avoid={*kept, *before}) == chosen
    assert {net.op_id for net in chosen} != {net.op_id for net in choose_networks(SPACE, lut, n=16, seed=2, avoid=kept)}
    compiled = compile_space(SPACE, lut)
    low, high = compiled.min_over(), compiled.max_over()
    places = sorted((sum(map(own_ms, net.ops)) - low) / (high - low) for net in chosen)
    assert places[0] < 0.15
    assert places[-1] > 0.85
    assert max(np.diff(places)) < 0.25


def test_networks_of_any_validation_are_known_whether_published_or_only_timed(tmp_path: Path) -> None:
    checked, timed, fitted = networks(3, seed=1), networks(3, seed=2), networks(3, seed=3)
    first = a_lut(tmp_path / "luts", ROWS, validation={"networks": [{"op_id": net.op_id} for net in checked]})
    lut = a_lut(tmp_path / "luts", ROWS, base=first)
    assert lut.meta.validation is None, "it is an older version that was checked"
    spec = CampaignSpec(
        space=SPACE.name,
        target=lut.meta.target,
        plan=lut.meta.plan,
        env_id="0123456789abcdef",
        runtime_version="1.20.0",
        ops=(CampaignOp.of(OPS[0]), *timed),
        budget_s=900.0,
        precision=0.01,
        max_rounds=24,
        purpose="validate",
    )
    with Store.open(tmp_path / "campaigns.sqlite") as store:
        store.create_campaign(spec, now_s=0.0)
        store.create_campaign(replace(spec, ops=(CampaignOp.of(OPS[0]), *fitted), purpose="calibrate"), now_s=0.0)
        assert validated(lut, store) == {net.op_id for net in (*checked, *timed)}


def test_networks_that_were_fitted_before_are_not_chosen_again(tmp_path: Path) -> None:
    lut = a_lut(tmp_path, ROWS)
    first = choose_networks(SPACE, lut, n=8, seed=0, avoid=())
    ids = {net.op_id for net in first}
    assert not ids & {net.op_id for net in choose_networks(SPACE, lut, n=8, seed=0, avoid=ids)}


def test_a_space_with_hardly_more_networks_than_wanted_gives_those_it_has(tmp_path: Path) -> None:
    lut = a_lut(tmp_path, [row(op, own_ms(op)) for op in EXAMPLE.ops()])
    chosen = choose_networks(EXAMPLE, lut, n=7, seed=0, avoid=())
    assert len({net.op_id for net in chosen}) == 7
    with pytest.raises(SpecError, match="ask for fewer"):
        choose_networks(EXAMPLE, lut, n=7, seed=0, avoid={net.op_id for net in chosen})
