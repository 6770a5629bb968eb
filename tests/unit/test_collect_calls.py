"""What only raw calls and the agent's own clock tell reaches the table: warm-up, throttling, timer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lutbuilder.campaign.collect import timer
from lutbuilder.campaign.draft import with_calls
from lutbuilder.coordinator.store import RawVisit, Store
from lutbuilder.lut import Row
from lutbuilder.op import OpSpec
from lutbuilder_agent.records import AgentHello, Fingerprint, RuntimeReport, Timing

OPS = [OpSpec(kind="conv", in_channels=n, out_channels=8, height=8, width=8, kernel=3) for n in (4, 8, 12)]
COLD, WARM, NEVER = OPS


def timing(op: OpSpec, samples: Sequence[int], *, throttled: tuple[int, ...] | None) -> Timing:
    return Timing(
        op_id=op.op_id, round=0, order=0, instance=0, start_ns=0, warmup_ns=(), samples_ns=tuple(samples),
        throttled=throttled,
    )  # fmt: skip  # one line reads as one record


def test_a_row_says_whether_its_op_was_warm_and_how_many_of_its_calls_ran_throttled() -> None:
    timings = [timing(COLD, (130, 100, 100, 100), throttled=(3,))] * 10
    timings += [timing(WARM, (100,) * 4, throttled=None)] * 10
    visits = [RawVisit(campaign_id="c", session_id="s", timing=one) for one in timings]
    rows = [Row.of(op, latency_ms=1.0) for op in OPS]
    cold, warm, never = with_calls(rows, visits)
    assert (cold.settled, cold.throttled_fraction) == (False, 0.25)
    assert (warm.settled, warm.throttled_fraction) == (True, None)
    assert never == rows[2], "of a row that rests on no visits of its own nothing is known"


def test_a_table_names_the_timer_of_the_agent_that_measured_it(tmp_path: Path) -> None:
    told = RuntimeReport(name="onnxruntime", version="1.2", timer_overhead_ns=50, timer_quantum_ns=40)
    hello = AgentHello(
        name="a",
        agent_version="1",
        fingerprint=Fingerprint(device="d", facts=()),
        runtimes=(told, replace(told, name="litert", timer_overhead_ns=None, timer_quantum_ns=None)),
    )
    with Store.open(tmp_path / "campaigns.sqlite") as store:
        store.open_session(hello, "s", now_s=0.0)
        agent = store.session("s")
    assert agent.runtimes == hello.runtimes
    assert timer(agent, "onnxruntime") == "timer 50 ns a reading in steps of 40 ns"
    assert timer(agent, "litert") == "timer not measured"
    assert agent.fingerprint.env_id == hello.fingerprint.env_id, "a timer is no part of the environment"
