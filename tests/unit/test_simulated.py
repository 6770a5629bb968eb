"""The simulated device: its truth adds up, each kind of noise is what its option says, and faults strike where told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from lutbuilder.lower import lower, lower_network
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError, UnsupportedOp
from lutbuilder_agent.graph import LayerGraph
from lutbuilder_agent.runtimes.simulated import OPTIONS, SimulatedRuntime, true_ns

STEM = OpSpec(kind="conv", in_channels=3, out_channels=16, height=32, width=32, kernel=3, stride=2, act="relu6")
MBCONV = OpSpec(
    kind="mbconv",
    in_channels=16,
    out_channels=16,
    height=16,
    width=16,
    mid_channels=48,
    kernel=5,
    act="relu6",
    residual=True,
)
LOGITS = OpSpec(kind="logits", in_channels=16, out_channels=10, height=16, width=16)
# One of everything that a network of the presets has, each taking what the one before it gives.
BLOCKS = (
    STEM,
    OpSpec(kind="max_pool", in_channels=16, out_channels=16, height=16, width=16, kernel=3, stride=2),
    OpSpec(
        kind="mbconv", in_channels=16, out_channels=24, height=8, width=8, mid_channels=48, kernel=3, stride=2,
        act="swish", se=True, shortcut=True, groups=2,
    ),
    OpSpec(
        kind="bottleneck", in_channels=24, out_channels=24, height=4, width=4, mid_channels=8, kernel=3, act="relu",
        residual=True,
    ),
    OpSpec(kind="global_pool", in_channels=24, out_channels=24, height=4, width=4),
    OpSpec(kind="conv", in_channels=24, out_channels=32, height=1, width=1, act="hswish"),
    OpSpec(kind="linear", in_channels=32, out_channels=20, height=1, width=1, act="relu"),
    OpSpec(kind="logits", in_channels=20, out_channels=10, height=1, width=1),
)  # fmt: skip  # one network, few lines
EMPTY = OpSpec(kind="identity", in_channels=16, out_channels=16, height=16, width=16)
QUIET = {"noise_sigma": "0"}


def samples_ns(
    graph: LayerGraph, count: int, *, instance: int = 0, device: SimulatedRuntime | None = None, **options: str
) -> NDArray[np.int64]:
    device = device or SimulatedRuntime(threads=1, options={**QUIET, **options})
    prepared = device.prepare(graph.to_bytes(), instance=instance)
    return np.array([prepared.timed_call() for _ in range(count)])


@pytest.mark.parametrize("ops", [(STEM, MBCONV, MBCONV, LOGITS), BLOCKS], ids=["mobilenet", "every kind"])
def test_the_truth_of_a_network_is_the_sum_of_its_ops_less_all_but_one_overhead(ops: tuple[OpSpec, ...]) -> None:
    overhead_ns = true_ns(lower(EMPTY))
    parts = sum(true_ns(lower(op)) - overhead_ns for op in ops)
    assert true_ns(lower_network(ops)) == pytest.approx(parts + overhead_ns, rel=1e-12)


def test_an_empty_call_costs_the_overhead_alone() -> None:
    assert true_ns(lower(EMPTY), {"overhead_ns": "1234", "speed": "7"}) == 1234.0


def test_a_faster_device_divides_all_but_the_overhead() -> None:
    slow, fast = (true_ns(lower(MBCONV), {"overhead_ns": "100", "speed": speed}) - 100 for speed in ("1", "4"))
    assert slow == pytest.approx(4 * fast)


def test_more_work_takes_longer() -> None:
    wider = OpSpec(**{**MBCONV.canonical(), "mid_channels": 96})
    larger = OpSpec(**{**MBCONV.canonical(), "kernel": 7})
    assert true_ns(lower(MBCONV)) < true_ns(lower(larger))
    assert true_ns(lower(MBCONV)) < true_ns(lower(wider))


def test_an_activation_that_engines_do_not_fuse_costs_a_pass_over_the_map() -> None:
    linear, relu, hswish, swish = (
        true_ns(lower(OpSpec(**{**STEM.canonical(), "act": act}))) for act in ("none", "relu", "hswish", "swish")
    )
    assert linear == relu < hswish == swish


def test_only_a_depthwise_convolution_pays_for_reusing_nothing() -> None:
    def per_mac(groups: int) -> float:
        graph = lower(OpSpec(**{**STEM.canonical(), "in_channels": 16, "groups": groups}))
        return (true_ns(graph) - true_ns(lower(EMPTY))) / graph.macs

    assert per_mac(1) < per_mac(2) < 1.5 * per_mac(1)
    assert per_mac(16) > 4 * per_mac(1)


def test_without_noise_every_sample_is_the_truth() -> None:
    graph = lower(MBCONV)
    assert np.abs(samples_ns(graph, 50) - true_ns(graph)).max() <= 1


def test_time_is_virtual_and_passes_by_what_calls_take() -> None:
    device = SimulatedRuntime(threads=1, options={**QUIET, "clock_ns": "1000000", "overhead_ns": "1000000000000"})
    assert device.now_ns() == 1_000_000
    took_ns = samples_ns(lower(EMPTY), 3, device=device).sum()  # 50 minutes
    assert device.now_ns() == 1_000_000 + took_ns


def test_noise_has_the_spread_and_the_memory_it_was_given() -> None:
    log_ns = np.log(samples_ns(lower(MBCONV), 20_000, noise_sigma="0.05", noise_rho="0.8"))
    assert log_ns.std() == pytest.approx(0.05, rel=0.1)
    assert np.corrcoef(log_ns[:-1], log_ns[1:])[0, 1] == pytest.approx(0.8, abs=0.03)
    assert np.corrcoef(log_ns[:-3], log_ns[3:])[0, 1] == pytest.approx(0.8**3, abs=0.06)


def test_noise_is_shared_by_the_ops_that_run_one_after_another() -> None:
    device = SimulatedRuntime(threads=1, options={"noise_sigma": "0.05", "noise_rho": "0.95"})
    a, b = (device.prepare(lower(op).to_bytes(), instance=0) for op in (STEM, MBCONV))
    pairs = np.log([(a.timed_call(), b.timed_call()) for _ in range(5000)])
    assert np.corrcoef(pairs.T)[0, 1] > 0.85


def test_a_bimodal_clock_has_two_speeds_and_stays_in_each_for_a_while() -> None:
    graph = lower(MBCONV)
    dwell_calls = 200
    dwell_s = str(true_ns(graph) * dwell_calls / 1e9)
    relative = samples_ns(graph, 20_000, clock_ratio="1.6", clock_dwell_s=dwell_s) / true_ns(graph)
    slow = relative > 1.3
    assert relative[slow] == pytest.approx(1.6, rel=1e-3)
    assert relative[~slow] == pytest.approx(1.0, rel=1e-3)
    stays = 1 + int(np.count_nonzero(slow[1:] != slow[:-1]))
    assert 20_000 / dwell_calls / 2.5 < stays < 20_000 / dwell_calls * 2


def test_a_session_moves_all_ops_by_one_factor_and_another_session_by_another() -> None:
    factors = set()
    for session in ("0", "1", "2"):
        options = {"session": session, "session_sigma": "0.1"}
        a, b = (samples_ns(lower(op), 3, **options)[0] / true_ns(lower(op)) for op in (STEM, MBCONV))
        assert a == pytest.approx(b, rel=1e-3)
        factors.add(round(math.log(a), 3))
    assert len(factors) == 3


def test_an_instance_has_an_effect_of_its_own_that_repeats() -> None:
    graph = lower(MBCONV)
    effects = [
        math.log(samples_ns(graph, 1, instance=i, instance_sigma="0.02")[0] / true_ns(graph)) for i in range(200)
    ]
    assert np.std(effects) == pytest.approx(0.02, rel=0.25)
    again = math.log(samples_ns(graph, 1, instance=7, instance_sigma="0.02")[0] / true_ns(graph))
    assert again == effects[7]
    assert effects[0] != math.log(samples_ns(lower(STEM), 1, instance_sigma="0.02")[0] / true_ns(lower(STEM)))


def test_throttling_grows_to_its_full_size_and_stays_there() -> None:
    graph = lower(MBCONV)
    ramp_s = str(true_ns(graph) * 1000 / 1e9)
    relative = samples_ns(graph, 3000, throttle="0.3", throttle_ramp_s=ramp_s) / true_ns(graph)
    assert relative[0] == pytest.approx(1.0, rel=1e-3)
    assert np.diff(relative[:800]).min() > -1e-3
    assert relative[1500:] == pytest.approx(1.3, rel=1e-3)


def test_a_coarse_timer_reads_whole_ticks_and_is_right_on_average() -> None:
    graph = lower(MBCONV)
    tick_ns = int(true_ns(graph) / 2.5)
    read_ns = samples_ns(graph, 2000, quantum_ns=str(tick_ns))
    assert set(read_ns) == {2 * tick_ns, 3 * tick_ns}
    assert read_ns.mean() == pytest.approx(true_ns(graph), rel=0.01)
    assert samples_ns(graph, 50, quantum_ns=str(10 * tick_ns)).min() > 0


@pytest.mark.parametrize("changed", [{}, {"seed": "1"}, {"session": "1"}])
def test_equal_options_repeat_every_sample_and_another_seed_or_session_does_not(changed: dict[str, str]) -> None:
    noisy = {"noise_sigma": "0.05", "clock_ratio": "1.5", "instance_sigma": "0.01"}
    first = samples_ns(lower(MBCONV), 20, **noisy)
    second = samples_ns(lower(MBCONV), 20, **noisy, **changed)
    assert np.array_equal(first, second) == (not changed)


def test_real_time_really_passes() -> None:
    device = SimulatedRuntime(threads=1, options={**QUIET, "realtime": "1", "overhead_ns": "3000000"})
    prepared = device.prepare(lower(EMPTY).to_bytes(), instance=0)
    start_ns, host_start_ns = device.now_ns(), time.perf_counter_ns()
    assert prepared.timed_call() == 3_000_000
    assert device.now_ns() - start_ns >= 3_000_000
    assert time.perf_counter_ns() - host_start_ns >= 3_000_000


def test_faults_strike_only_the_graphs_they_name() -> None:
    victim, other = lower(STEM), lower(MBCONV)
    device = SimulatedRuntime(threads=1, options={"unsupported": f"{'f' * 64},{victim.key[:10]}"})
    with pytest.raises(UnsupportedOp, match=victim.key[:16]):
        device.prepare(victim.to_bytes(), instance=0)
    assert device.prepare(other.to_bytes(), instance=0).timed_call() > 0


def test_a_crash_kills_the_process_at_the_timed_call(fresh_python: Callable[[str], str]) -> None:
    graph = lower(STEM)
    code = f"""
import os
from lutbuilder_agent.runtimes.simulated import SimulatedRuntime
if (child := os.fork()) == 0:
    device = SimulatedRuntime(threads=1, options={{"crash": {graph.key[:10]!r}}})
    prepared = device.prepare({graph.to_bytes()!r}, instance=0)
    print("prepared", flush=True)
    prepared.timed_call()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert fresh_python(code).split() == ["prepared", "-11"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_sigma", "-1"),
        ("noise_sigma", "nan"),
        ("noise_rho", "1"),
        ("clock_ratio", "0.5"),
        ("speed", "0"),
        ("quantum_ns", "0"),
        ("overhead_ns", "much"),
        ("throttle_ramp_s", "inf"),
        ("realtime", "yes"),
    ],
)
def test_a_senseless_option_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SpecError, match=name):
        SimulatedRuntime(threads=1, options={name: value})
    with pytest.raises(SpecError, match=name):
        true_ns(lower(STEM), {name: value})


def test_every_option_is_explained() -> None:
    from lutbuilder_agent.runtimes import simulated

    explained = {word.strip(",") for line in (simulated.__doc__ or "").splitlines() for word in line[4:30].split()}
    assert set(OPTIONS) <= explained
