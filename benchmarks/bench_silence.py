"""Is the agent silent while its worker times? Heartbeats on and off, round by round, and a noisy agent as a control.

    python benchmarks/bench_silence.py [--runtime onnxruntime] [--seconds 240] [--ops 10] [--json]

A real agent process, its worker and a coordinator on loopback measure one lease. Rounds come in threes, shuffled:

    on      a heartbeat right before the round, as often as an agent ever sends one; then the agent as it is
    off     no heartbeat, and the agent process is stopped (SIGSTOP) while its worker times: nothing of it can run
    noisy   a control that has to show: a thread of the agent sends heartbeats over an open connection all the time

All three time the same instances of the same ops, so the shift is that of a round's mean log time against the same
three's `off`; printed are the medians over the threes with their 95 % bootstrap intervals. The goal is 0.5 %: met if
the whole interval is within it; where the machine was too restless to tell, the seconds that would do are named.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.005
MODES = ("on", "off", "noisy")
_SETTLE_S = 0.03  # from the report of a round until the next one surely runs: hang up, conditions, one pipe message
_PATIENCE_S = 120.0
_NOISE_S = 0.0005  # between two heartbeats of the noisy thread
_JUMP_S = 1e4  # what the agent's clock gains in a round, so that it announces the next as a long silence


def mode(round: int) -> str:
    """Return the mode of a round, the same in all processes: every three rounds have each mode once, shuffled."""
    from lutbuilder_agent.timing import shuffled

    return shuffled(MODES, seed=0, round=round // 3)[round % 3]


# --- the agent's process


@dataclass
class Moods:
    """What the worker's wrapper tells the rest of the agent: the clock that jumps, and whether to be noisy."""

    gained_s: float = 0.0
    noisy: threading.Event = field(default_factory=threading.Event)

    def clock_s(self) -> float:
        return time.monotonic() + self.gained_s


class MoodyRounds:
    """A real worker that sets the agent's mood before and after every round."""

    def __init__(self, worker: Any, moods: Moods) -> None:
        self._worker = worker
        self._moods = moods

    def run_round(self, round: int, *, at_end: Any = None) -> Any:
        if mode(round) == "noisy":
            self._moods.noisy.set()
        seen = self._worker.run_round(round, at_end=at_end)
        self._moods.noisy.clear()
        if mode(round + 1) == "on":
            self._moods.gained_s += _JUMP_S
        return seen

    def __getattr__(self, name: str) -> Any:  # prepare, drop, close
        return getattr(self._worker, name)


def run_agent(address: str, runtime: str, folder: Path) -> None:
    """Be the agent until there is no more work."""
    from lutbuilder_agent.errors import LutbuilderError
    from lutbuilder_agent.orphan import die_with_parent
    from lutbuilder_agent.runtimes.probe import probe
    from lutbuilder_agent.session import Agent
    from lutbuilder_agent.wire.client import CoordinatorClient
    from lutbuilder_agent.worker import Worker

    die_with_parent(os.getppid())
    moods = Moods()

    def make_noise() -> None:
        with CoordinatorClient(address) as client:
            while True:
                moods.noisy.wait()
                try:
                    client.heartbeat("nobody", "", 0.0)
                except LutbuilderError:
                    time.sleep(_NOISE_S)  # "no such session" is an answer: the round trip was made

    threading.Thread(target=make_noise, daemon=True).start()
    Agent(
        lambda: CoordinatorClient(address),
        name="silence",
        cache_dir=folder / "cache",
        spool_dir=folder / "spool",
        runtimes=(probe(runtime),),
        worker_factory=lambda plan: MoodyRounds(Worker(plan), moods),
        give_up_after_s=5.0,
        clock_s=moods.clock_s,
    ).run()


# --- the coordinator's process


@dataclass(frozen=True)
class Window:
    """From when to when (perf_counter_ns) a round's visits count: the agent is in its mode for sure."""

    begin_ns: int
    end_ns: int


def measure(runtime: str, n_ops: int, seconds: float, folder: Path) -> tuple[list[Any], dict[int, Window], int]:
    """Run the campaign; return its raw visits, the window of every round, and how many heartbeats of it came."""
    from lutbuilder import spaces
    from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
    from lutbuilder.coordinator.artifacts import ArtifactShelf
    from lutbuilder.coordinator.schedule import Decision
    from lutbuilder.coordinator.service import Coordinator, serve
    from lutbuilder.coordinator.store import Store
    from lutbuilder.lower import lower
    from lutbuilder_agent import runtimes
    from lutbuilder_agent.records import Plan

    name, entry = runtimes.entry(runtime)
    ops = sorted(spaces.get("proxyless").ops(), key=lambda op: lower(op).macs)
    ops = ops[:: max(1, len(ops) // n_ops)][:n_ops]
    reported: queue.Queue[tuple[int, float]] = queue.Queue()
    until_s = time.monotonic() + seconds

    def decide(campaign_id: str, report: Any) -> Decision:
        if not report.timings:
            return Decision()
        done = time.monotonic() >= until_s and report.round % 3 == 2
        reported.put((report.round + 1, -1.0 if done else report.round_ns / 1e9))
        return Decision(stop=done, reason="budget" if done else "")

    class Counting(Coordinator):
        """A coordinator that counts the heartbeats of whoever holds a lease: the noisy thread holds none."""

        beats = 0

        def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool:
            self.beats += bool(lease_id)
            return super().heartbeat(session_id, lease_id, quiet_s)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "agents")])}
    windows: dict[int, Window] = {}
    with Store.open(folder / "campaigns.sqlite") as store:
        coordinator = Counting(store, ArtifactShelf(), decide)
        with serve(coordinator) as server:
            command = [sys.executable, __file__, "--agent", server.address, "--runtime", name, "--folder", str(folder)]
            agent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            try:
                (state,) = awaited_agents(coordinator, agent)
                spec = CampaignSpec(
                    space="proxyless",
                    target=Target(device=state.fingerprint.device, runtime=name, cache="hot"),
                    plan=Plan(runtime=name, instances=1, min_block_ns=8_000_000, options=entry.options),
                    env_id=state.fingerprint.env_id,
                    runtime_version=state.runtimes[0].version,
                    ops=tuple(CampaignOp.of(op) for op in ops),
                    budget_s=seconds,
                    precision=0.01,
                    max_rounds=1_000_000,
                )
                coordinator.offer(store.create_campaign(spec, now_s=time.time()))
                while (told := reported.get(timeout=_PATIENCE_S))[1] > 0:
                    windows[told[0]] = one_round(agent.pid, *told)
            finally:
                agent.send_signal(signal.SIGCONT)
                agent.terminate()
                agent.wait()
        return list(store.raw_visits([spec.key])), windows, coordinator.beats


def one_round(agent: int, round: int, round_s: float) -> Window:
    """Watch over one round that takes about `round_s`; stop the agent meanwhile if the round is one without it."""
    time.sleep(_SETTLE_S)
    if mode(round) != "off":
        return Window(time.perf_counter_ns(), sys.maxsize)
    os.kill(agent, signal.SIGSTOP)
    begin_ns = time.perf_counter_ns()
    time.sleep(max(0.0, 1.1 * round_s - _SETTLE_S))
    end_ns = time.perf_counter_ns()
    os.kill(agent, signal.SIGCONT)
    return Window(begin_ns, end_ns)


def awaited_agents(coordinator: Any, agent: subprocess.Popen[bytes]) -> Sequence[Any]:
    """Return the agents once there is one."""
    until_s = time.monotonic() + _PATIENCE_S
    while not coordinator.agents():
        if time.monotonic() > until_s or agent.poll() is not None:
            sys.exit("the agent did not register")
        time.sleep(0.05)
    found: Sequence[Any] = coordinator.agents()
    return found


# --- what came of it


def shifts(visits: Sequence[Any], windows: Mapping[int, Window], *, seed: int = 0) -> dict[str, Any]:
    """Return how far `on` and `noisy` rounds are from the `off` round of their three, with intervals, and the counts.

    A round's level is the mean over its visits of log time relative to the op's own median over all rounds.
    """
    import numpy as np

    by_op: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for visit in visits:
        timing = visit.timing
        window = windows.get(timing.round)
        inside = window is not None and timing.start_ns >= window.begin_ns
        if inside and window is not None and timing.start_ns + sum(timing.samples_ns) <= window.end_ns:
            by_op[timing.op_id].append((timing.round, float(np.log(np.median(timing.samples_ns)))))
    levels: dict[int, list[float]] = defaultdict(list)
    for seen in by_op.values():
        centre = float(np.median([level for _, level in seen]))
        for round, level in seen:
            levels[round].append(level - centre)
    threes: dict[int, dict[str, float]] = defaultdict(dict)
    for round, values in levels.items():
        threes[round // 3][mode(round)] = float(np.mean(values))
    whole = [three for three in threes.values() if len(three) == len(MODES)]
    result: dict[str, Any] = {"threes": len(whole), "visits": sum(map(len, levels.values())), "ops": len(by_op)}
    rng = np.random.default_rng(seed)
    for name in ("on", "noisy"):
        shift = np.expm1([three[name] - three["off"] for three in whole])
        drawn = np.median(rng.choice(shift, (4000, len(shift))), axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        result[name] = {"shift": float(np.median(shift)), "lo": float(low), "hi": float(high)}
    return result


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--ops", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--agent", metavar="ADDRESS", help=argparse.SUPPRESS)  # this script as the agent's process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.agent:
        run_agent(given.agent, given.runtime, given.folder)
        return
    with tempfile.TemporaryDirectory(prefix="lutbuilder-bench-") as folder:
        visits, windows, beats = measure(given.runtime, given.ops, given.seconds, Path(folder))
    result = {"heartbeats": beats, **shifts(visits, windows)}
    if given.json:
        print(json.dumps({"runtime": given.runtime, "goal": GOAL, **result}))
        return
    print("\n".join(lines(given.runtime, result, given.seconds)))


def lines(runtime: str, result: Mapping[str, Any], seconds: float) -> list[str]:
    """Return what was seen in `seconds`, and what it says of the goal."""
    counts = ", ".join(f"{result[name]} {name}" for name in ("ops", "threes", "visits", "heartbeats"))
    shown = [f"{runtime}: {counts}"]
    for name, says in (("on", "heartbeats on against off"), ("noisy", "control: a noisy agent against off")):
        told = result[name]
        goal = f"   goal {100 * GOAL:g} %: {verdict(told, seconds)}" if name == "on" else "   has to show"
        shift, lo, hi = (100 * told[figure] for figure in ("shift", "lo", "hi"))
        shown.append(f"{says:<36} {shift:+6.2f} %  ({lo:+.2f} to {hi:+.2f}){goal}")
    if result["noisy"]["lo"] <= GOAL:
        shown.append("the control does not show, so the figure above it says nothing: measure longer")
    return shown


def verdict(told: Mapping[str, float], seconds: float) -> str:
    """Return whether the goal is met: by the whole interval, by none of it, or how long to measure until it tells."""
    if told["lo"] >= -GOAL and told["hi"] <= GOAL:
        return "met"
    if told["lo"] > GOAL or told["hi"] < -GOAL:
        return "MISSED"
    # An interval narrows with the square root of the time; a quarter of the goal on either side tells nearly always.
    longer = seconds * ((told["hi"] - told["lo"]) / 2 / (GOAL / 2)) ** 2
    return f"not resolved; --seconds {max(longer, 2 * seconds):.0f} should"


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "agents")]
    main()
