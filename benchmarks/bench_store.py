"""What the campaign store takes: commits a second, opening with 100,000 results, and the memory they need.

    python benchmarks/bench_store.py [--results 100000] [--url postgresql://USER@HOST/NAME] [--json]

One result is one visit with 200 samples. Reports hold 20 of them, as a round of 20 ops does; `--each 1` commits every
result by itself. Every figure is the median of three runs, each in a process and a store of its own:

    commits     results a second that are safe on disk (WAL, synchronous=FULL), one thread and 16 threads
    growth      results a second while a store grows to 1k, 10k and all results: what a commit takes must not grow
    open        Store.open of the full store, its check included, and Store.visits: the columns of all results
    decide      one more report and the columns again, as after every round
    memory      resident size of a process that did the last two, above that of one that only imported them

The goals: 1,000 results a second, 3 s for opening and reading 100,000 results. The store is made below $TMPDIR: what a
commit takes is what that disk takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "agents")]

RUNS = 3
SAMPLES = 200
N_OPS = 100
GOAL_PER_S = 1000.0
GOAL_OPEN_S = 3.0


def reports(campaign_id: str, op_ids: list[str], first: int, count: int, each: int) -> Iterator[Any]:
    """Yield reports of `each` visits, numbered from `first`, like those of a device whose ops take 50 to 150 us."""
    from lutbuilder_agent.records import Report, Timing

    base = Timing(op_id="x", round=0, order=0, instance=0, start_ns=1, warmup_ns=(90_000,), samples_ns=(1,))
    kinds = [tuple(50_000 + 1000 * op + 7 * sample % 997 for sample in range(SAMPLES)) for op in range(N_OPS)]
    for number in range(first, first + count):
        timings = tuple(
            replace(base, op_id=op_ids[(number * each + n) % N_OPS], round=number, order=n, samples_ns=kinds[n % N_OPS])
            for n in range(each)
        )
        yield Report(
            report_id=f"r{number}", session_id="s1", lease_id="l1", lease_epoch=1, campaign_id=campaign_id,
            round=number, timings=timings, round_ns=2_000_000_000, timed_ns=1_900_000_000,
        )  # fmt: skip  # one line reads as one record


def filled(url: str) -> tuple[Any, str, list[str]]:
    """Return an open store with a campaign, its id and the ids of its ops."""
    from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
    from lutbuilder.coordinator.store import Store
    from lutbuilder.op import OpSpec
    from lutbuilder_agent.records import AgentHello, Fingerprint, Plan, RuntimeReport

    fingerprint = Fingerprint(device="toy", facts=())
    ops = tuple(
        CampaignOp.of(OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8))
        for n in range(1, N_OPS + 1)
    )
    spec = CampaignSpec(
        space="toy", target=Target(device="toy", runtime="simulated"), plan=Plan(runtime="simulated"), ops=ops,
        env_id=fingerprint.env_id, runtime_version="1", budget_s=1e6, precision=0.01, max_rounds=10**6,
    )  # fmt: skip  # one line reads as one record
    store = Store.open(url)
    store.create_campaign(spec, now_s=0.0)
    runtimes = (RuntimeReport(name="simulated", version="1"),)
    store.open_session(
        AgentHello(name="a", agent_version="1", fingerprint=fingerprint, runtimes=runtimes), "s1", now_s=0.0
    )
    lease = store.grant_lease(
        "l1", campaign_id=spec.key, batch=0, session_id="s1", first_round=0, rounds=10**6, now_s=0.0
    )
    assert lease is not None
    return store, spec.key, [op.op_id for op in ops]


def commit(url: str, results: int, each: int, threads: int) -> list[tuple[int, float]]:
    """Commit results into a new store; return (results so far, results a second lately) at 1k, 10k and the end."""
    store, campaign_id, op_ids = filled(url)
    marks = sorted({min(n, results) for n in (1000, 10_000, results)})
    told: list[tuple[int, float]] = []
    done = 0
    for mark in marks:
        made = list(reports(campaign_id, op_ids, done // each, (mark - done) // each, each))
        began = time.perf_counter()
        if threads == 1:
            for report in made:
                store.commit_report(report, now_s=1.0)
        else:
            parts = [made[n::threads] for n in range(threads)]
            workers = [
                threading.Thread(target=lambda p=part: [store.commit_report(r, now_s=1.0) for r in p]) for part in parts
            ]  # type: ignore[misc]  # a default argument binds now
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        took_s = time.perf_counter() - began
        told.append((mark, len(made) * each / took_s))
        done = mark
    store.close()
    return told


def replay(url: str) -> dict[str, float]:
    """Open a full store, read it, decide once more; return seconds and MiB."""
    import lutbuilder.coordinator.store as store_module

    before = _resident_mib()
    began = time.perf_counter()
    store = store_module.Store.open(url)
    opened = time.perf_counter()
    (campaign,) = store.campaigns()
    visits = store.visits([campaign.campaign_id])
    read = time.perf_counter()
    op_ids = [op.op_id for op in campaign.spec.ops]
    decide_s = []
    for report in reports(campaign.campaign_id, op_ids, campaign.rounds, 20, 20):
        start = time.perf_counter()
        store.commit_report(report, now_s=1.0)
        store.visits([campaign.campaign_id])
        store.progress(campaign.campaign_id)
        decide_s.append(time.perf_counter() - start)
    memory = _resident_mib() - before
    store.close()
    return {
        "results": float(len(visits)),
        "open_s": opened - began,
        "visits_s": read - opened,
        "decide_ms": 1e3 * statistics.median(decide_s),
        "memory_mib": memory,
    }


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _fresh(url: str | None, folder: Path, name: str) -> str:
    """Return where a run may make its store: a file, or a new schema of a database."""
    if url is None:
        return str(folder / f"{name}.sqlite")
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS bench_{name} CASCADE")
        connection.execute(f"CREATE SCHEMA bench_{name}")
    return f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dbench_{name}"


def _in_a_process(task: str, *words: object) -> Any:
    done = subprocess.run(
        [sys.executable, __file__, "--task", task, *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--each", type=int, default=20, help="results in one report")
    parser.add_argument("--url", help="a database of PostgreSQL instead of a file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        task, *words = given.task
        answer: object = replay(words[0]) if task == "replay" else commit(words[0], *map(int, words[1:]))
        print(json.dumps(answer))
        return
    grown, replays, rates = [], [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for threads in (1, 16):
            for each in (given.each, 1):
                few = min(given.results, 500 * each)
                urls = [_fresh(given.url, folder, f"c{threads}_{each}_{n}") for n in range(RUNS)]
                runs = [_in_a_process("commit", url, few, each, threads)[-1][1] for url in urls]
                rates[f"{threads} threads, {each} results a report"] = statistics.median(runs)
        for n in range(RUNS):
            url = _fresh(given.url, folder, f"full_{n}")
            grown.append(_in_a_process("commit", url, given.results, given.each, 1))
            replays.append(_in_a_process("replay", url))
    figures: dict[str, Any] = {
        "commits_per_s": rates,
        "growth_per_s": {mark: statistics.median(run[i][1] for run in grown) for i, (mark, _) in enumerate(grown[0])},
        **{key: statistics.median(run[key] for run in replays) for key in replays[0]},
        "goals": {"commits_per_s": GOAL_PER_S, "open_and_visits_s": GOAL_OPEN_S},
    }
    if given.json:
        print(json.dumps(figures, indent=2))
        return
    for label, rate in rates.items():
        print(f"{label:<34}{rate:10,.0f} results/s  (goal {GOAL_PER_S:,.0f})")
    for mark, rate in figures["growth_per_s"].items():
        print(f"while growing to {mark:>9,}        {rate:10,.0f} results/s")
    total_s = figures["open_s"] + figures["visits_s"]
    print(
        f"open {figures['open_s']:.2f} s + visits {figures['visits_s']:.2f} s = {total_s:.2f} s for "
        f"{figures['results']:,.0f} results  (goal {GOAL_OPEN_S:g} s)"
    )
    print(f"one more report, the columns and the progress again {figures['decide_ms']:.1f} ms")
    print(f"memory above the imports {figures['memory_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
