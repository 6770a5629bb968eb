"""Does our worker read what a plain loop reads? Every op side by side with a loop that shares no code with us.

    python benchmarks/check_harness.py --runtime onnxruntime [--ops 24] [--sessions 3] [--instances 4] [--json]
    python benchmarks/check_harness.py --runtime litert --tool 4

One side is the real worker (its own process, cache=hot), the other benchmarks/bare_loop.py (another process: the engine
and perf_counter). Both are alive at once and take turns, some 15 ms each, in random order, so that whatever the machine
does hits both. An op is prepared anew in every session and instance, since where a preparation lands in memory moves an
op by 1 to 2 %; the ratio ours / theirs is the mean over those, its 95 % interval what they differ by on both sides.

--tool N also runs the engine's own benchmark program N times an op, each run between two of our visits. LiteRT's wheel
has one (ai_edge_litert.tools.benchmark_litert_model; it times another API, CompiledModel, and rounds to 0.01 ms, so
only ops above 0.5 ms are compared). ONNX Runtime's wheel has none: onnxruntime_perf_test comes with source builds only,
and the profiler that the wheel has adds some 30 us to every call, which is 10 % of a typical op.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.special import stdtrit

from lutbuilder import spaces
from lutbuilder.artifacts import artifact_ref, build
from lutbuilder.lower import lower
from lutbuilder.op import OpSpec
from lutbuilder_agent import runtimes
from lutbuilder_agent.records import LeasedOp, Plan
from lutbuilder_agent.worker import Worker

HERE = Path(__file__).resolve().parent
GOAL = (0.98, 1.02)
BLOCK_S = 0.012
TOOL_LEAST_MS = 0.5
_TOOL = "ai_edge_litert.tools.benchmark_litert_model"


class BareLoop:
    """bare_loop.py as a process; `visit` returns the median of one block in ns."""

    def __init__(self, runtime: str, model: Path, copies: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "bare_loop.py"), runtime, str(model), str(copies)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=model.parent,
        )
        self._answer()

    def visit(self, copy: int) -> float:
        assert self._process.stdin is not None  # it is a pipe
        print(copy, BLOCK_S, file=self._process.stdin, flush=True)
        return 1e9 * median(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None  # it is a pipe
        return json.loads(self._process.stdout.readline())


class OurWorker:
    """A worker with one op; `visit` returns instance and median of one visit."""

    def __init__(self, runtime: str, model: Path, instances: int) -> None:
        name, entry = runtimes.entry(runtime)
        ref = artifact_ref(model.read_bytes(), entry.format)
        self._round = 0
        self._worker = Worker(Plan(runtime=name, instances=instances, min_block_ns=int(1e9 * BLOCK_S)))
        failures = self._worker.prepare([(LeasedOp(op_id="op", artifact=ref), model)])
        if failures:
            sys.exit(f"{model.name}: {failures[0].reason}: {failures[0].detail}")

    def visit(self) -> tuple[int, float]:
        self._round += 1
        (timing,) = self._worker.run_round(self._round).timings
        kept = [ns for number, ns in enumerate(timing.samples_ns) if number not in timing.disturbed]
        return timing.instance, median(kept or timing.samples_ns)

    def close(self) -> None:
        self._worker.close()


def compare(runtime: str, model: Path, chosen: argparse.Namespace, rng: random.Random) -> dict[str, Any]:
    """Return the ratio ours / theirs of one op, with its interval and the median of every session."""
    ours_by: dict[tuple[int, int], list[float]] = defaultdict(list)
    theirs_by: dict[tuple[int, int], list[float]] = defaultdict(list)
    sessions: list[float] = []
    levels: list[float] = []
    for session in range(chosen.sessions):
        ours, theirs = OurWorker(runtime, model, chosen.instances), BareLoop(runtime, model, chosen.instances)
        try:
            seen = []
            for _ in range(chosen.turns):
                copy = rng.randrange(chosen.instances)
                if rng.random() < 0.5:
                    (instance, a_ns), b_ns = ours.visit(), theirs.visit(copy)
                else:
                    b_ns, (instance, a_ns) = theirs.visit(copy), ours.visit()
                log = float(np.log(a_ns / b_ns))
                seen.append(log)
                levels.append(a_ns)
                ours_by[session, instance].append(log)
                theirs_by[session, copy].append(log)
            sessions.append(float(np.exp(median(seen))))
        finally:
            ours.close()
            theirs.close()
    per_ours = [median(logs) for logs in ours_by.values()]
    per_theirs = [median(logs) for logs in theirs_by.values()]
    variance = np.var(per_ours, ddof=1) / len(per_ours) + np.var(per_theirs, ddof=1) / len(per_theirs)
    half = float(stdtrit(min(len(per_ours), len(per_theirs)) - 1, 0.975)) * float(variance) ** 0.5
    centre = fmean(per_ours)
    return {
        "ms": median(levels) / 1e6,
        "ratio": float(np.exp(centre)),
        "lo": float(np.exp(centre - half)),
        "hi": float(np.exp(centre + half)),
        "sessions": sessions,
    }


def against_tool(model: Path, chosen: argparse.Namespace) -> float:
    """Return ours / LiteRT's benchmark program: the median over its runs, each against our visits around it."""
    report = model.with_suffix(".json")
    command = [sys.executable, "-m", _TOOL, f"--model={model}", "--num_threads=1", f"--result_json={report}"]
    ours = OurWorker("litert", model, chosen.instances)
    ratios = []
    try:
        for _ in range(chosen.tool):
            around = [ours.visit()[1] for _ in range(chosen.instances)]
            subprocess.run(command, check=True, capture_output=True, cwd=model.parent)
            around += [ours.visit()[1] for _ in range(chosen.instances)]
            theirs_ms = json.loads(report.read_text(encoding="utf-8"))["latency"]["median_ms"]
            ratios.append(median(around) / 1e6 / theirs_ms)
    finally:
        ours.close()
    return median(ratios)


def spread_ops(count: int) -> Sequence[OpSpec]:
    """Return ops of ProxylessNAS from the smallest to the largest."""
    ops = sorted(spaces.get("proxyless").ops(), key=lambda op: lower(op).macs)
    return [ops[round(i * (len(ops) - 1) / (count - 1))] for i in range(count)]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=("onnxruntime", "litert"), default="onnxruntime")
    parser.add_argument("--ops", type=int, default=24, help="at least 2")
    parser.add_argument("--sessions", type=int, default=3, help="pairs of processes an op")
    parser.add_argument("--instances", type=int, default=4, help="preparations on either side in a session")
    parser.add_argument("--turns", type=int, default=48, help="visits on either side in a session")
    parser.add_argument("--tool", type=int, default=0, metavar="N", help="runs of LiteRT's benchmark program an op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if chosen.tool and chosen.runtime != "litert":
        parser.error("--tool: ONNX Runtime's wheel has no benchmark program")
    rng = random.Random(chosen.seed)
    rows: list[dict[str, Any]] = []
    format = runtimes.entry(chosen.runtime)[1].format
    with tempfile.TemporaryDirectory(prefix="lutbuilder-bench-") as folder:
        model = Path(folder) / "model"
        for op in spread_ops(chosen.ops):
            model.write_bytes(build(lower(op), format))
            row = {"op": op.label(), "op_id": op.op_id, **compare(chosen.runtime, model, chosen, rng)}
            row["tool_ratio"] = against_tool(model, chosen) if chosen.tool and row["ms"] >= TOOL_LEAST_MS else None
            rows.append(row)
            if not chosen.json:
                tool = "" if row["tool_ratio"] is None else f"   tool {row['tool_ratio']:.3f}"
                said = f"{row['ratio']:.4f}  ({row['lo']:.4f} to {row['hi']:.4f})"
                print(f"{row['op']:<34} {row['ms']:8.3f} ms  {said}{tool}", flush=True)
    ratios = [row["ratio"] for row in rows]
    inside = sum(GOAL[0] <= ratio <= GOAL[1] for ratio in ratios)
    if chosen.json:
        print(
            json.dumps(
                {"runtime": chosen.runtime, "goal": GOAL, "inside": inside, "median": median(ratios), "ops": rows}
            )
        )
        return
    print(f"{inside} of {len(ratios)} ops within {GOAL[0]} to {GOAL[1]}; median {median(ratios):.4f}")


if __name__ == "__main__":
    main()
