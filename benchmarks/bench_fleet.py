"""A fleet of real processes: how soon work is leased again, how soon agents are back, how much one coordinator takes.

    python benchmarks/bench_fleet.py [death] [ending] [reset] [restart] [load] [--json]

Everything is a process of its own on loopback: `lutbuilder serve` with its own settings, and `lutbuilder-agent run` on
the simulated device, which sleeps while a real one would work. Without a word all are measured:

    death     an agent is killed by SIGKILL in a round; until another agent has a lease of the batch. Medians of 5
    ending    the same with SIGTERM: it finishes the round in hand, hands it in and gives the lease back. Medians of 5
    reset     the same with SIGKILL, and it is started again at once under its name, as systemd does. Medians of 5
    restart   the coordinator is killed while 32 agents measure, and started again 10 s later, when all agents' pauses
              are at their longest; from when it listens until it has heard of every agent and each has the lease it
              had. Also from its start as a process. Medians of 3
    load      32 real agents and 256 simulated ones (one process, 16 threads, gRPC) hand in rounds of 8 results with 200
              samples for 20 s: committed results a second, the coordinator's memory and CPU time
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "agents")]

from lutbuilder.control.client import ControlClient  # noqa: E402  # from this checkout, wherever it is started
from tests.fleet import Lab  # noqa: E402  # the same

GOALS: Mapping[str, float] = {
    "death_s": 30.0,
    "ending_s": 2.0,
    "reset_s": 2.0,
    "restart_s": 5.0,
    "results_per_s": 1000.0,
    "rss_mb": 250.0,
}
PARTS = ("death", "ending", "reset", "restart", "load")
REAL, SIMULATED, THREADS, SAMPLES = 32, 256, 16, 200
JOBS = 3  # of the simulated agents: one takes at most 100
LOAD_S = 20.0
_AWAY_S = 10.0
_PATIENCE_S = 120.0
# 8 ops: seven kernels and the logits; the empty call comes on top.
SPACE = """
input = { channels = 3, resolution = 16 }
[variables]
k = [1, 3, 5, 7, 9, 11]
[[sites]]
name = "stem"
kind = "conv"
out_channels = 8
kernel = "k"
[[sites]]
name = "logits"
kind = "logits"
out_channels = 10
"""


@contextmanager
def lab() -> Iterator[Lab]:
    """A coordinator's folder; whatever runs there has ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="lutbuilder-bench-") as folder:
        made = Lab(Path(folder) / "lab")
        try:
            yield made
        finally:
            made.clear()


def ask_for_work(here: Lab, agents: int, *, call_ms: float, batch: int = 1) -> None:
    """Have a table measured that never gets done; a call takes `call_ms`. Returns when agents could begin."""
    space = here.folder / "space.toml"
    space.write_text(SPACE, encoding="utf-8")
    words = ["--space", str(space), "--bs", str(batch), "--agents", str(agents), "--max-rounds", "1000000"]
    words += ["--precision", "0.0001%", "--carriers", "0", "--lease-rounds", "0"]
    words += ["--runtime-option", "realtime=1", "--runtime-option", f"overhead_ns={call_ms * 1e6:.0f}"]
    with ControlClient(here.address) as control:
        jobs = len(control.jobs().items)
        client = here.start(*here.asking(here, *words))
        until(lambda: len(control.jobs().items) > jobs)
    client.kill()  # the job goes on without it


def until(claim: Callable[[], bool], *, every_s: float = 0.02) -> None:
    """Wait for something."""
    end_s = time.monotonic() + _PATIENCE_S
    while not claim():
        if time.monotonic() > end_s:
            sys.exit("it did not happen in two minutes")
        time.sleep(every_s)


def held(here: Lab) -> dict[str, str]:
    """Return the lease every agent has."""
    with here.store() as store:
        return {lease.agent: lease.lease_id for lease in store.active_leases()}


# --- an agent ends


def leased_again_s(signum: int, *, again: bool = False) -> float:
    """End an agent that measures; return the seconds until its work is leased again, to itself if started `again`."""
    with lab() as here:
        here.serve()
        ask_for_work(here, 1, call_ms=1.0)
        agents = {"one": here.agent("one")}
        until(lambda: here.rounds() >= 3)
        agents["two"] = here.agent("two")
        with ControlClient(here.address) as control, here.store() as store:
            until(lambda: len(control.agents().items) == 2)
            (lost,) = store.active_leases()
            seen = here.rounds()
            until(lambda: here.rounds() > seen, every_s=0.001)
            time.sleep(0.03)  # into the next round
            began_s = time.monotonic()
            agents[lost.agent].send_signal(signum)
            if again:
                agents[lost.agent].wait()
                here.agent(lost.agent)
            until(lambda: [lease.lease_id for lease in store.active_leases()] not in ([], [lost.lease_id]))
            return time.monotonic() - began_s


def ends(signum: int, repeats: int, *, again: bool = False) -> dict[str, float]:
    """Measure `leased_again_s`; deaths all at once, since nothing but waiting happens in them."""
    with ThreadPoolExecutor(repeats if signum == signal.SIGKILL and not again else 1) as threads:
        seen = list(threads.map(lambda _: leased_again_s(signum, again=again), range(repeats)))
    return {"median": median(seen), "low": min(seen), "high": max(seen), "repeats": repeats}


# --- the coordinator ends


def restart() -> tuple[float, float]:
    """Return the seconds until all agents are adopted: since it listened again, and since it was started."""
    with lab() as here:
        server = here.serve()
        ask_for_work(here, REAL, call_ms=40.0)
        names = {f"agent-{number}" for number in range(REAL)}
        for name in names:
            here.agent(name)
        until(lambda: set(held(here)) == names, every_s=0.5)
        seen = here.rounds()
        until(lambda: here.rounds() >= seen + 2 * REAL, every_s=0.2)
        before = held(here)
        server.kill()
        server.communicate()
        time.sleep(_AWAY_S)
        started_s = time.monotonic()
        here.serve()
        listening_s = time.monotonic()
        with ControlClient(here.address) as client:

            def adopted() -> bool:
                heard = [agent for agent in client.agents().items if agent.heard_s is not None]
                return {agent.name: agent.lease_id for agent in heard} == before

            until(adopted)
            now_s = time.monotonic()
    return now_s - listening_s, now_s - started_s


def restarts(repeats: int) -> dict[str, float]:
    """Measure `restart`."""
    seen = [restart() for _ in range(repeats)]
    listening, started = ([run[k] for run in seen] for k in (0, 1))
    return {
        "median": median(listening),
        "low": min(listening),
        "high": max(listening),
        "since_start": median(started),
        "repeats": repeats,
    }


# --- all at once


def swarm(address: str, seconds: float) -> None:
    """Be 256 agents that hand in one round after the other; print how many results were acknowledged."""
    from lutbuilder_agent.fingerprint import fingerprint
    from lutbuilder_agent.records import AgentHello, Lease, Report, RuntimeReport, Timing
    from lutbuilder_agent.wire.client import CoordinatorClient

    here, rng = fingerprint(), random.Random(1)
    kinds = [tuple(rng.randrange(900_000, 1_100_000) for _ in range(SAMPLES)) for _ in range(64)]
    ready, go = threading.Barrier(THREADS + 1), threading.Event()
    done = [0] * THREADS

    def round_of(session_id: str, lease: Lease, number: int) -> Report:
        timings = tuple(
            Timing(
                op_id=op.op_id, round=number, order=order, instance=0, start_ns=number * 1_000_000_000 + order,
                warmup_ns=(1_000_000,), samples_ns=kinds[rng.randrange(64)],
            )
            for order, op in enumerate(lease.ops)
        )  # fmt: skip  # one line reads as one record
        return Report(
            report_id=f"{lease.lease_id}-{number}", session_id=session_id, lease_id=lease.lease_id,
            lease_epoch=lease.epoch, campaign_id=lease.campaign_id, round=number, timings=timings,
            round_ns=1_000_000_000, timed_ns=900_000_000,
        )  # fmt: skip  # the same

    def run(part: int) -> None:
        with CoordinatorClient(address) as client:
            leases: dict[str, tuple[Lease, int]] = {}
            sessions = [
                client.register(
                    AgentHello(
                        name=f"simulated-{number}", agent_version="1", fingerprint=here,
                        runtimes=(RuntimeReport(name="simulated", version="1"),), clock_domain=f"simulated-{number}",
                    )
                ).session_id
                for number in range(part, SIMULATED, THREADS)
            ]  # fmt: skip  # one line reads as one record

            def lease_to(session_id: str, first: int = 0) -> None:
                lease = client.lease(session_id, "ok", 30.0)
                assert isinstance(lease, Lease), "there is not enough work"
                leases[session_id] = lease, max(first, lease.first_round)

            for session_id in sessions:
                lease_to(session_id)
            ready.wait()
            go.wait()
            while time.monotonic() < end_s:
                for session_id in sessions:
                    lease, number = leases[session_id]
                    ack = client.report(round_of(session_id, lease, number))
                    done[part] += len(lease.ops)
                    leases[session_id] = lease, number + 1
                    if ack.stop:  # on a busy machine a lease may have run out before all had one
                        lease_to(session_id, number + 1)

    threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in range(THREADS)]
    for thread in threads:
        thread.start()
    ready.wait(_PATIENCE_S)
    print("ready", flush=True)
    sys.stdin.readline()
    end_s = time.monotonic() + seconds
    go.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"acknowledged": sum(done)}), flush=True)


def load(seconds: float) -> dict[str, float]:
    """Measure a coordinator that has all agents at once."""
    with lab() as here:
        server = here.serve()
        ask_for_work(here, REAL, call_ms=40.0)
        for number in range(REAL):
            here.agent(f"agent-{number}")
        until(lambda: len(held(here)) == REAL, every_s=0.5)
        for batch in range(2, 2 + JOBS):
            ask_for_work(here, -(-SIMULATED // JOBS), call_ms=40.0, batch=batch)
        words = [sys.executable, __file__, "--swarm", here.address, "--seconds", str(seconds)]
        crowd = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert crowd.stdin is not None
            assert crowd.stdout is not None
            if crowd.stdout.readline() != "ready\n":
                sys.exit("the simulated agents found no work")
            before, cpu_s, began_s = figures(here), used_s(server.pid), time.monotonic()
            crowd.stdin.write("\n")
            crowd.stdin.flush()
            told = json.loads(crowd.stdout.readline())
            took_s, busy_s, after = time.monotonic() - began_s, used_s(server.pid) - cpu_s, figures(here)
        finally:
            crowd.kill()
            crowd.communicate()
        results = after["lutbuilder_visits_total"] - before["lutbuilder_visits_total"]
        with here.store() as store:
            assert store.conflicts([campaign.campaign_id for campaign in store.campaigns()]) == ()
        return {
            "seconds": took_s,
            "results_per_s": results / took_s,
            "real_results_per_s": (results - told["acknowledged"]) / took_s,
            "results": after["lutbuilder_visits_total"],
            "rss_mb": memory_mb(server.pid),
            "cpu_s": busy_s,
            "cpu_ms_per_result": 1e3 * busy_s / results,
        }


def figures(here: Lab) -> dict[str, float]:
    """Return what the coordinator tells Prometheus, for names without labels."""
    lines = (line.rpartition(" ") for line in here.scraped().splitlines() if line[:1] != "#")
    return {name: float(value) for name, _, value in lines}


def used_s(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Return the most memory a process had resident so far, in MB (1e6 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6


# --- what comes of it


def verdict(seen: float, goal: str) -> str:
    """Return a goal and whether it is met."""
    at_least = goal == "results_per_s"
    met = seen >= GOALS[goal] if at_least else seen <= GOALS[goal]
    return f"goal {'>=' if at_least else '<='} {GOALS[goal]:g}: {'met' if met else 'MISSED'}"


def show(part: str, seen: Mapping[str, float]) -> None:
    """Print the figures of a part."""
    if part == "load":
        print(f"{REAL} agents and {SIMULATED} simulated ones, {seen['seconds']:.0f} s, {SAMPLES} samples a result")
        print(
            f"  committed  {seen['results_per_s']:8.0f} results/s   {verdict(seen['results_per_s'], 'results_per_s')}"
            f"   ({seen['real_results_per_s']:.0f} of them by real agents)"
        )
        print(f"  memory     {seen['rss_mb']:8.0f} MB          {verdict(seen['rss_mb'], 'rss_mb')}")
        print(f"  CPU        {seen['cpu_s']:8.1f} s, {seen['cpu_ms_per_result']:.2f} ms a result")
        return
    words = {
        "death": "agent killed (SIGKILL) -> leased again",
        "ending": "agent ended (SIGTERM) -> leased again",
        "reset": "agent killed and started again -> leased again",
        "restart": f"coordinator listens again -> {REAL} agents adopted",
    }
    range_ = f"{seen['low']:.2f} to {seen['high']:.2f}, {seen['repeats']:.0f} times"
    print(f"{words[part]:<48}{seen['median']:7.2f} s ({range_})   {verdict(seen['median'], f'{part}_s')}")
    if part == "restart":
        print(f"{'    since it was started as a process':<48}{seen['since_start']:7.2f} s")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS))
    parser.add_argument("--repeats", type=int, help="instead of 5 and 3")
    parser.add_argument("--seconds", type=float, default=LOAD_S, help="of load")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--swarm", metavar="HOST:PORT", help=argparse.SUPPRESS)  # this script as simulated agents
    given = parser.parse_args()
    if given.swarm:
        swarm(given.swarm, given.seconds)
        return
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    measures: Mapping[str, Callable[[], dict[str, float]]] = {
        "death": lambda: ends(signal.SIGKILL, given.repeats or 5),
        "ending": lambda: ends(signal.SIGTERM, given.repeats or 5),
        "reset": lambda: ends(signal.SIGKILL, given.repeats or 5, again=True),
        "restart": lambda: restarts(given.repeats or 3),
        "load": lambda: load(given.seconds),
    }
    told: dict[str, Any] = {}
    for part in given.parts or PARTS:
        told[part] = measures[part]()
        if not given.json:
            show(part, told[part])
    if given.json:
        print(json.dumps({"goals": GOALS, **told}))


if __name__ == "__main__":
    main()
