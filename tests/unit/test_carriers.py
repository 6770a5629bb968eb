"""Carriers: chosen over the whole range, and what they say of ops inside networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.campaign.carriers import choose_carriers, in_situ_rows, on_carriers_scale
from lutbuilder.campaign.estimates import Summary, summarise
from lutbuilder.campaign.plan import overhead_op
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.lower import lower, lower_network
from lutbuilder.lut import Row
from lutbuilder.stats.records import OpEstimate
from tests.simulated_visits import STEADY, log_spread, simulate

SPACE = spaces.get("proxyless")
OVERHEAD_MS = 0.01
CARRIERS = 16  # as many as a collection times
NOISE = 0.003


def an_estimate(op_id: str, time_ms: float, *, half: float = 2 * NOISE) -> OpEstimate:
    return OpEstimate(
        op_id=op_id,
        time_ms=time_ms,
        lo_ms=time_ms * (1 - half),
        hi_ms=time_ms * (1 + half),
        p90_ms=time_ms,
        n_visits=30,
        n_rounds=30,
        n_instances=6,
        n_sessions=1,
        test_retest=0.0,
        preempted_fraction=0.0,
        bimodal=False,
        residual_mad=0.01,
    )


def rows_of(alone_ms: dict[str, float]) -> tuple[Row, ...]:
    rows = []
    for op in SPACE.ops():
        ms = alone_ms[op.op_id]
        rows.append(
            Row.of(
                op,
                latency_ms=ms,
                latency_lo_ms=ms * 0.98,
                latency_hi_ms=ms * 1.02,
                call_overhead_ms=OVERHEAD_MS,
                method="context",
                cache="rotating",
            )
        )
        identity = overhead_op(op)
        if identity.op_id not in {row.op_id for row in rows}:
            rows.append(Row.of(identity, latency_ms=OVERHEAD_MS, method="context", cache="rotating"))
    return tuple(rows)


@pytest.fixture(scope="module")
def alone_ms() -> dict[str, float]:
    return {op.op_id: 0.05 + lower(op).macs * 2e-8 for op in SPACE.ops()}


def times(carriers: tuple[CampaignOp, ...], true_ms: dict[str, float], *, seed: int) -> dict[str, OpEstimate]:
    rng = np.random.default_rng(seed)
    return {
        c.op_id: an_estimate(
            c.op_id,
            (OVERHEAD_MS + sum(true_ms[op.op_id] for op in c.ops)) * float(np.exp(NOISE * rng.standard_normal())),
        )
        for c in carriers
    }


def error(rows: tuple[Row, ...], true_ms: dict[str, float], *, seed: int) -> float:
    """Mean relative error of the sums of 200 random networks."""
    ms = {row.op_id: row.latency_ms or 0.0 for row in rows}
    nets = [SPACE.arch_ops(arch) for arch in SPACE.sample(np.random.default_rng(seed), 200)]
    sums = np.array([sum(ms[op.op_id] for op in net) for net in nets])
    truth = np.array([sum(true_ms[op.op_id] for op in net) for net in nets])
    return float(np.abs(sums / truth - 1).mean())


@pytest.mark.parametrize(("number", "size"), [(0, "macs"), (1, "grouped_macs")])
def test_carriers_fill_the_range_of_macs_and_of_depthwise_macs_and_are_all_different(number: int, size: str) -> None:
    carriers = choose_carriers(SPACE, CARRIERS, seed=3)
    assert len({c.op_id for c in carriers}) == CARRIERS
    sizes = np.array([getattr(lower_network(list(c.ops)), size) for c in carriers], dtype=float)
    half = sizes[number::2]  # chosen by this size, one after the other
    assert (np.diff(half) > 0).all()
    assert half.max() > 3.5 * half.min()
    assert np.diff(half).max() < 0.35 * np.ptp(half)
    assert np.ptp(half) > 0.8 * np.ptp(sizes)


def test_where_no_layer_has_groups_carriers_are_spread_by_macs_alone() -> None:
    dense = spaces.get("ofa_resnet50")
    carriers = choose_carriers(dense, 6, seed=3)
    sizes = [lower_network(list(c.ops)) for c in carriers]
    assert {graph.grouped_macs for graph in sizes} == {0}
    assert (np.diff([graph.macs for graph in sizes]) > 0).all()


def test_the_same_seed_gives_the_same_carriers_and_another_one_others() -> None:
    first, again, other = (choose_carriers(SPACE, 4, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert not {c.op_id for c in first} & {c.op_id for c in other}


def test_carriers_are_timed_like_networks_and_named_like_them() -> None:
    (carrier,) = choose_carriers(SPACE, 1, seed=0)
    assert carrier.role == "carrier"
    assert carrier.is_whole
    assert carrier.op_id == CampaignOp.network(carrier.ops).op_id


@pytest.mark.parametrize(
    "inside",
    [
        pytest.param(lambda op, ms: ms * 1.025, id="everything is 2.5 % slower"),
        pytest.param(lambda op, ms: ms - 0.006, id="every op saves 6 us"),
        pytest.param(lambda op, ms: ms * (1.05 if op.height >= 56 else 1.0), id="large maps cost 5 % more"),
    ],
)
def test_in_situ_rows_hold_what_a_network_does_to_its_ops(inside, alone_ms) -> None:  # type: ignore[no-untyped-def]  # a lambda of the table above
    true_ms = {op.op_id: inside(op, alone_ms[op.op_id]) for op in SPACE.ops()}
    carriers = choose_carriers(SPACE, CARRIERS, seed=0)
    rows = rows_of(alone_ms)
    found = in_situ_rows(carriers, rows, times(carriers, true_ms, seed=1))
    assert {row.op_id for row in found} == {op.op_id for op in SPACE.ops()}
    assert all(row.method == "in_situ" and row.evidence == "measured" for row in found)
    assert error(found, true_ms, seed=5) < 0.35 * error(rows, true_ms, seed=5)


def test_where_sums_are_right_already_the_correction_stays_within_the_noise(alone_ms: dict[str, float]) -> None:
    carriers = choose_carriers(SPACE, CARRIERS, seed=0)
    found = in_situ_rows(carriers, rows_of(alone_ms), times(carriers, alone_ms, seed=2))
    assert not found or error(found, alone_ms, seed=6) < NOISE


def test_one_carrier_that_is_far_off_does_not_bend_the_rows(alone_ms: dict[str, float]) -> None:
    true_ms = {op_id: 1.02 * ms for op_id, ms in alone_ms.items()}
    carriers = choose_carriers(SPACE, CARRIERS, seed=0)
    estimates = times(carriers, true_ms, seed=1)
    broken = carriers[3].op_id
    estimates[broken] = an_estimate(broken, 1.3 * estimates[broken].time_ms)
    found = in_situ_rows(carriers, rows_of(alone_ms), estimates)
    assert error(found, true_ms, seed=5) < 0.006


def test_too_few_carriers_make_no_in_situ_rows(alone_ms: dict[str, float]) -> None:
    carriers = choose_carriers(SPACE, 5, seed=0)
    assert in_situ_rows(carriers, rows_of(alone_ms), times(carriers, alone_ms, seed=1)) == ()


def test_a_carrier_with_a_failed_op_is_left_out(alone_ms: dict[str, float]) -> None:
    carriers = choose_carriers(SPACE, 6, seed=0)
    gone = carriers[0].ops[3]
    rows = tuple(
        replace(row, latency_ms=None, latency_lo_ms=None, latency_hi_ms=None, exec_status="failed", reason="crashed")
        if row.op_id == gone.op_id
        else row
        for row in rows_of(alone_ms)
    )
    assert in_situ_rows(carriers, rows, times(carriers, alone_ms, seed=1)) == ()


# --- Networks on the scale of their session's carriers

MORE = 0.02  # how much longer networks take in the second session than its ops tell


def two_sessions(n_again: int, *, more: float = MORE) -> tuple[tuple[CampaignOp, ...], Summary]:
    """Ops and carriers timed in two sessions, of the carriers only `n_again` in the second; networks only there."""
    carriers = choose_carriers(SPACE, CARRIERS, seed=0)
    nets = tuple(CampaignOp.network(SPACE.arch_ops(arch)) for arch in SPACE.sample(np.random.default_rng(5), 8))
    ops = (*(CampaignOp.of(op) for op in SPACE.ops()), *carriers, *nets)
    n_first, whole = len(ops) - len(nets), len(SPACE.ops())
    second = [*range(whole + n_again), *range(n_first, len(ops))]
    made = simulate(
        log_spread(len(ops)),
        rounds=8,
        seed=1,
        machine=replace(STEADY, noise=0.001, session_log_scales=(0.0, 0.1)),
        session_ops=(range(n_first), second),
    ).visits
    slower = (made.session == 1) & (made.op >= whole)
    visits = replace(
        made,
        op_ids=tuple(op.op_id for op in ops),
        block_ns=made.block_ns * np.where(slower, np.exp(more), 1.0),
    )
    return ops, summarise(ops, visits)


@pytest.mark.parametrize("more", [MORE, -0.05, 0.0])
def test_networks_are_as_long_as_their_sessions_carriers_say_and_not_as_its_ops_do(more: float) -> None:
    ops, summary = two_sessions(CARRIERS, more=more)
    truth = dict(zip((op.op_id for op in ops), log_spread(len(ops)), strict=True))

    def log_level(times: Mapping[str, OpEstimate], role: str) -> float:
        return float(
            np.median([np.log(1e6 * times[op.op_id].time_ms) - truth[op.op_id] for op in ops if op.role == role])
        )

    tied = on_carriers_scale(ops, summary)
    assert log_level(tied, "network") == pytest.approx(log_level(tied, "carrier"), abs=0.001)
    untied = log_level(summary.by_id, "network") - log_level(summary.by_id, "carrier")
    assert untied == pytest.approx(more / 2, abs=0.001), "the carriers' own times are of both sessions"
    for op in ops:
        before, after = summary.by_id[op.op_id], tied[op.op_id]
        if op.role != "network":
            assert after == before
        else:
            assert after.half_width == pytest.approx(before.half_width)
            assert after.p90_ms / before.p90_ms == pytest.approx(after.time_ms / before.time_ms)


@pytest.mark.parametrize("n_again", [0, 5])
def test_where_fewer_than_six_carriers_were_timed_again_no_network_is_moved(n_again: int) -> None:
    ops, summary = two_sessions(n_again)
    assert on_carriers_scale(ops, summary) == summary.by_id
