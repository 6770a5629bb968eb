"""What the coordinator does for a fleet: work per result, memory, and how fast it is back after a kill.

    python benchmarks/bench_coordinator.py [--results 1000 10000 100000] [--agents 256] [--runs 3] [--json]

So many agents at once, simulated in this process, lease, report rounds of 8 visits with 200 samples each, and lease
again, over a real store on the disk; there is no network, whose part bench_fleet.py measures. The first line of a size
is the wall time of everything a coordinator does for its results (leases included), and the share of it for one; then
what the process holds in memory. After the largest size its coordinator is dropped as by a kill: printed are the time
to open the store again until its first lease could be given, with every visit read as a controller would, and until
all agents are adopted with the leases they had. Every size runs in a process of its own; medians over the runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
OPS = 8
SAMPLES = 200
LEASE_ROUNDS = 24
CAMPAIGNS = 8
TARGETS: Mapping[str, float] = {
    "results_per_s": 1000.0,
    "rss_mb": 250.0,
    "replay_s": 3.0,
    "adopted_s": 5.0,
}


def rss_mb() -> float:
    """Return the resident memory of this process, in MB (1e6 bytes)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024 / 1e6


def one_size(folder: Path, results: int, agents: int) -> dict[str, float]:
    """Measure a fleet until there are so many results, and its coordinator after a kill."""
    from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
    from lutbuilder.coordinator.schedule import Decision
    from lutbuilder.coordinator.service import Coordinator
    from lutbuilder.coordinator.store import Store
    from lutbuilder.op import OpSpec
    from lutbuilder_agent.records import (
        AgentHello,
        ArtifactRef,
        Fingerprint,
        Lease,
        Plan,
        Report,
        RuntimeReport,
        Timing,
    )

    class Names:
        def ref(self, op: CampaignOp, format: str) -> ArtifactRef:
            return ArtifactRef(sha256=hashlib.sha256(op.op_id.encode()).hexdigest(), format="graph", size_bytes=1)

        def fetch(self, sha256: str) -> bytes:
            return b"."

    fingerprint = Fingerprint(device="bench", facts=())
    convs = [OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8) for n in range(1, OPS + 1)]
    specs = [
        CampaignSpec(
            space=f"bench-{number}",
            target=Target(device="bench", runtime="simulated"),
            plan=Plan(runtime="simulated"),
            env_id=fingerprint.env_id,
            runtime_version="1",
            ops=tuple(map(CampaignOp.of, convs)),
            budget_s=1e9,
            precision=0.01,
            max_rounds=1 << 20,
            lease_rounds=LEASE_ROUNDS,
            agents=agents,
        )
        for number in range(CAMPAIGNS)
    ]
    hellos = [
        AgentHello(
            name=f"agent-{number}",
            agent_version="1",
            fingerprint=fingerprint,
            runtimes=(RuntimeReport(name="simulated", version="1"),),
        )
        for number in range(agents)
    ]
    samples_ns = tuple(1_000_000 + 997 * (number * number % 101) for number in range(SAMPLES))

    def report_of(session_id: str, lease: Lease, number: int) -> Report:
        timings = tuple(
            Timing(
                op_id=op.op_id, round=number, order=order, instance=0, start_ns=number * 1_000_000 + order,
                warmup_ns=(1,), samples_ns=samples_ns,
            )
            for order, op in enumerate(lease.ops)
        )  # fmt: skip  # one line reads as one record
        return Report(
            report_id=f"{session_id}-{lease.lease_id}-{number}", session_id=session_id, lease_id=lease.lease_id,
            lease_epoch=lease.epoch, campaign_id=lease.campaign_id, round=number, timings=timings,
            round_ns=1_000_000_000, timed_ns=900_000_000,
        )  # fmt: skip  # the same

    def coordinator_on(store: Store) -> Coordinator:
        made = Coordinator(store, Names(), lambda campaign_id, report: Decision())
        for spec in specs:
            made.offer(spec.key)
        return made

    def leased(coordinator: Coordinator, session_id: str) -> Lease:
        answer = coordinator.lease(session_id, "ok", 0.0)
        assert isinstance(answer, Lease), answer
        return answer

    store = Store.open(folder / "campaigns.sqlite")
    for spec in specs:
        store.create_campaign(spec, now_s=0.0, owner=spec.space)
    coordinator = coordinator_on(store)
    sessions = [coordinator.register(hello).session_id for hello in hellos]
    began_s = time.perf_counter()
    leases = {session_id: leased(coordinator, session_id) for session_id in sessions}
    rounds = {session_id: leases[session_id].first_round for session_id in sessions}
    done = 0
    outside_s = 0.0
    while done < results:
        for session_id in sessions:
            at_s = time.perf_counter()
            report = report_of(session_id, leases[session_id], rounds[session_id])
            outside_s += time.perf_counter() - at_s  # making it is the agent's work
            ack = coordinator.report(report)
            done += OPS
            rounds[session_id] += 1
            if ack.stop:
                leases[session_id] = leased(coordinator, session_id)
                rounds[session_id] = leases[session_id].first_round
            if done >= results:
                break
    took_s = time.perf_counter() - began_s - outside_s
    figures = {
        "work_s": took_s,
        "us_per_result": took_s / done * 1e6,
        "results_per_s": done / took_s,
        "rss_mb": rss_mb(),
    }
    held = {lease.lease_id for lease in coordinator.leases()}
    store.close()
    del coordinator, store

    began_s = time.perf_counter()
    with Store.open(folder / "campaigns.sqlite") as store:
        coordinator = coordinator_on(store)
        coordinator.tick()
        for spec in specs:
            store.visits([spec.key])
        figures["replay_s"] = time.perf_counter() - began_s
        for session_id in sessions:
            cancelled = coordinator.heartbeat(session_id, leases[session_id].lease_id, 0.0)
            assert not cancelled, "an agent lost its lease"
        figures["adopted_s"] = time.perf_counter() - began_s
        assert {lease.lease_id for lease in coordinator.leases()} == held
    return figures


def measure(results: Sequence[int], agents: int, runs: int) -> dict[int, dict[str, float]]:
    """Return the medians of every size, each run in a fresh process and folder."""
    found: dict[int, dict[str, float]] = {}
    for size in results:
        seen: list[dict[str, float]] = []
        for _ in range(runs):
            words = [sys.executable, __file__, "--one", str(size), "--agents", str(agents)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            seen.append(json.loads(done.stdout))
        found[size] = {name: median(run[name] for run in seen) for name in seen[0]}
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--agents", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.one is not None:
        with tempfile.TemporaryDirectory(prefix="lutbuilder-bench-") as scratch:
            print(json.dumps(one_size(Path(scratch), given.one, given.agents)))
        return
    figures = measure(given.results, given.agents, given.runs)
    if given.json:
        print(json.dumps({"agents": given.agents, "runs": given.runs, "sizes": figures, "targets": TARGETS}))
        return
    print(f"{given.agents} agents, rounds of {OPS} visits with {SAMPLES} samples, medians of {given.runs} processes")
    print(f"{'results':>8} {'work':>9} {'per result':>11} {'results/s':>10} {'memory':>8} {'replay':>8} {'adopted':>8}")
    for size, seen in figures.items():
        print(
            f"{size:>8} {seen['work_s']:>7.2f} s {seen['us_per_result']:>8.0f} us {seen['results_per_s']:>10.0f}"
            f" {seen['rss_mb']:>5.0f} MB {seen['replay_s']:>6.2f} s {seen['adopted_s']:>6.2f} s"
        )
    wanted = ", ".join(f"{name} {value:g}" for name, value in TARGETS.items())
    print(f"targets: {wanted}")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "agents")]
    main()
