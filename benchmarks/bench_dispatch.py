"""How long a device waits between two batches: from the end of the last visit to the next worker beginning to load.

    python benchmarks/bench_dispatch.py [--batches 300] [--plaintext] [--json]

A real coordinator process, a real `lutbuilder-agent run` and its workers, on loopback with mutual TLS, on the
simulated device. Every batch has one round, so every round is the last of its lease, and artifacts of its own. The
clocks are read inside the workers: when the last visit of a batch was over, and when the next worker, told what to
load, calls for its runtime. Printed are the median and the 99th percentile; the goals are 2 and 20 ms.

For comparison the same campaign is measured by an agent that may not ask ahead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOALS_MS = {"p50_ms": 2.0, "p99_ms": 20.0}
OPS = 4
_PATIENCE_S = 300.0

# Runs in every process of the agent, before anything else: notes both moments, nothing more.
PROBE = """
import os, time

def _install():
    path = os.environ.get("LUTBUILDER_BENCH_GAPS")
    if not path or "lutbuilder_agent.worker" not in " ".join(__import__("sys").orig_argv):
        return
    from lutbuilder_agent import runtimes, worker
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    load, run_round, visit = runtimes.load, worker._Bench.run_round, worker._Bench._visit
    ended_ns = 0

    def probed_load(*words, **named):
        os.write(handle, b"begin %d\\n" % time.perf_counter_ns())
        return load(*words, **named)

    def probed_visit(self, *words, **named):
        nonlocal ended_ns
        seen = visit(self, *words, **named)
        ended_ns = time.perf_counter_ns()
        return seen

    def probed_round(self, *words, **named):
        done = run_round(self, *words, **named)
        os.write(handle, b"end %d\\n" % ended_ns)
        return done

    runtimes.load, worker._Bench.run_round, worker._Bench._visit = probed_load, probed_round, probed_visit

_install()
"""
OLD_AGENT = """
import sys
from lutbuilder_agent import records
records.PROTOCOL_VERSION = 1
records.AgentHello.__init__.__kwdefaults__["protocol_max"] = 1
from lutbuilder_agent.cli import main
sys.exit(main())
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This checkout first, folders of our own, and the probe in front of every Python."""
    path = os.pathsep.join([str(folder / "probe"), str(ROOT), str(ROOT / "agents")])
    own = {"XDG_CONFIG_HOME": str(folder / "config"), "LUTBUILDER_AGENT_STATE": str(folder / "state")}
    return {**os.environ, "PYTHONPATH": path, **own, **more}


# --- the coordinator's process


def run_coordinator(folder: Path, batches: int, *, tls: bool) -> None:
    """Serve one campaign; print where, and how to join; end when it is done."""
    from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
    from lutbuilder.coordinator import trust
    from lutbuilder.coordinator.artifacts import ArtifactShelf
    from lutbuilder.coordinator.schedule import Decision
    from lutbuilder.coordinator.service import Coordinator, serve
    from lutbuilder.coordinator.store import Store
    from lutbuilder.op import OpSpec
    from lutbuilder_agent.fingerprint import fingerprint
    from lutbuilder_agent.orphan import die_with_parent
    from lutbuilder_agent.records import Plan

    die_with_parent(os.getppid())

    def op(batch: int, number: int) -> CampaignOp:
        channels = 1 + batch * OPS + number
        return CampaignOp.of(OpSpec(kind="conv", in_channels=channels, out_channels=4, height=8, width=8), batch=batch)

    seen = fingerprint()
    spec = CampaignSpec(
        space="bench",
        target=Target(device=seen.device, runtime="simulated"),
        plan=Plan(runtime="simulated", instances=1, min_block_ns=100_000),
        env_id=seen.env_id,
        runtime_version="1",
        ops=tuple(op(batch, number) for batch in range(batches) for number in range(OPS)),
        budget_s=3600.0,
        precision=0.01,
        max_rounds=1,
    )
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(folder / "campaigns.sqlite"))
        coordinator = Coordinator(store, ArtifactShelf(), lambda campaign_id, report: Decision())
        campaign = store.create_campaign(spec, now_s=time.time())
        coordinator.offer(campaign)
        if tls:
            trusted = trust.open(folder / "coordinator", ["127.0.0.1"], store=store)
            server = stack.enter_context(
                serve(
                    coordinator,
                    credentials=trusted.server_credentials(),
                    interceptors=[trusted.interceptor()],
                )
            )
            port = int(server.address.rpartition(":")[2])
            joins = stack.enter_context(trusted.serve_join("127.0.0.1:0", main_port=port))
            print(trusted.join_line(joins.address).strip().splitlines()[-1], flush=True)
        else:
            server = stack.enter_context(serve(coordinator))
        print(server.address, flush=True)
        serial, state = -1, "active"
        while state == "active":
            moment = coordinator.wait(campaign, 10.0, seen=serial)
            serial, state = moment.serial, moment.campaign.state
        print("done", flush=True)
        sys.stdin.readline()


@contextmanager
def coordinator_process(folder: Path, batches: int, *, tls: bool) -> Iterator[subprocess.Popen[str]]:
    """Start it, and end it."""
    words = [sys.executable, __file__, "--serve", str(folder), "--batches", str(batches)]
    process = subprocess.Popen(
        words + ([] if tls else ["--plaintext"]),
        env=environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- the measurement


def gaps_ms(batches: int, folder: Path, *, tls: bool, ahead: bool) -> list[float]:
    """Measure a campaign and return the gap before every batch but the first."""
    (folder / "probe").mkdir(parents=True)
    (folder / "probe" / "sitecustomize.py").write_text(PROBE, encoding="utf-8")
    with coordinator_process(folder, batches, tls=tls) as coordinator:
        assert coordinator.stdout is not None
        if tls:
            joining = coordinator.stdout.readline().split()
            words = [sys.executable, "-m", "lutbuilder_agent", *joining[1:], "--name", "bench"]
            subprocess.run(words, env=environment(folder), check=True, stdout=subprocess.DEVNULL)
        address = coordinator.stdout.readline().strip()
        options = ["--name", "bench", "--runtimes", "simulated", "--exit-when-idle"]
        command = ["-m", "lutbuilder_agent"] if ahead else ["-c", OLD_AGENT]
        with (folder / "agent.log").open("w") as log:
            agent = subprocess.Popen(
                [sys.executable, *command, "run", "--coordinator", address, *options],
                env=environment(folder, LUTBUILDER_BENCH_GAPS=str(folder / "gaps")),
                stderr=log,
            )
        try:
            if agent.wait(_PATIENCE_S) != 0:
                sys.exit(f"the agent ended with {agent.returncode}: {(folder / 'agent.log').read_text()[-500:]}")
        finally:
            agent.kill()
    marks = [line.split() for line in (folder / "gaps").read_text(encoding="ascii").splitlines()]
    moments = sorted((int(ns), what) for what, ns in marks)
    whole = [what for _, what in moments] == ["begin", "end"] * batches
    if not whole:
        sys.exit(f"of {batches} batches, {len(moments)} moments were seen, or not in turn")
    return [(begin[0] - end[0]) / 1e6 for end, begin in zip(moments[1::2], moments[2::2], strict=False)]


def summary(gaps: list[float]) -> dict[str, Any]:
    """Return the count and the figures of some gaps, in ms."""
    return {"gaps": len(gaps), "p50_ms": median(gaps), "p99_ms": quantiles(gaps, n=100)[98], "max_ms": max(gaps)}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--plaintext", action="store_true", help="no TLS")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # this script as coordinator
    given = parser.parse_args()
    if given.serve:
        run_coordinator(given.serve, given.batches, tls=not given.plaintext)
        return
    with tempfile.TemporaryDirectory(prefix="lutbuilder-bench-") as scratch:
        tls = not given.plaintext
        ahead = summary(gaps_ms(given.batches, Path(scratch) / "ahead", tls=tls, ahead=True))
        without = summary(gaps_ms(max(20, given.batches // 5), Path(scratch) / "without", tls=tls, ahead=False))
    if given.json:
        print(json.dumps({"tls": tls, "goals_ms": GOALS_MS, "ahead": ahead, "without": without}))
        return
    print(f"dispatch gap between batches, {'mutual TLS' if tls else 'plaintext'} on loopback")
    for name, told in (("next lease ahead", ahead), ("without", without)):
        goals = "   goals 2 and 20" if told is ahead else ""
        print(
            f"  {name:<18} p50 {told['p50_ms']:7.2f}  p99 {told['p99_ms']:7.2f}  max {told['max_ms']:7.2f} ms"
            f"  of {told['gaps']} gaps{goals}"
        )


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "agents")]
    main()
