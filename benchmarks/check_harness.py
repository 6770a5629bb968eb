"""Does our worker read what a plain loop reads? Every op side by side with a loop that shares no code with us.

    python benchmarks/check_harness.py [--runtime onnxruntime] [--ops 24] [--sessions 3] [--instances 4] [--json]
    python benchmarks/check_harness.py --runtime litert --tool 4

One side is the real worker (its own process, cache=hot), the other benchmarks/bare_loop.py (another process: the engine
and perf_counter). Both are alive at once and take turns, some 15 ms each, in random order, so that whatever the machine
does hits both. An op is prepared anew in every session and instance, since where a preparation lands in memory moves an
op by 1 to 2 %; the ratio ours / theirs is the mean over those, its 95 % interval a bootstrap over them on both sides.
All ops together tell a bias from noise: the median of their ratios, and how far these lie apart, each with what noise
alone would give.

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.artifacts import artifact_ref, build
from lutbuilder.lower import lower
from lutbuilder.op import OpSpec
from lutbuilder_agent import runtimes
from lutbuilder_agent.records import LeasedOp, Plan
from lutbuilder_agent.worker import Worker

HERE = Path(__file__).resolve().parent
RUNTIMES = ("onnxruntime", "litert")
GOAL = (0.98, 1.02)
LEAST_INSIDE = 20  # ops
DRAWS = 4000
BLOCK_S = 0.012
TOOL_LEAST_MS = 0.5
Floats = NDArray[np.float64]
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


@dataclass
class Seen:
    """Log ratios ours / theirs of one op, turn by turn: by what either side had prepared. Mutable: turns are added."""

    ours: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    theirs: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    levels_ns: list[float] = field(default_factory=list)

    def add(self, session: int, instance: int, copy: int, ours_ns: float, theirs_ns: float) -> None:
        log = float(np.log(ours_ns / theirs_ns))
        self.ours[session, instance].append(log)
        self.theirs[session, copy].append(log)
        self.levels_ns.append(ours_ns)

    def drawn(self, rng: np.random.Generator) -> tuple[float, Floats]:
        """Return the log ratio, and what else it might have been: preparations on both sides drawn anew."""
        sides = [np.array([median(logs) for logs in side.values()]) for side in (self.ours, self.theirs)]
        centre = float(sides[0].mean())
        draws = np.full(DRAWS, centre)
        for side in sides:
            n = len(side)
            # So few draws of so few differ by less than the preparations do: by (n - 1) / n in variance.
            draws += (rng.choice(side, (DRAWS, n)).mean(axis=1) - side.mean()) * (n / (n - 1)) ** 0.5
        return centre, draws


def take_turns(runtime: str, model: Path, session: int, chosen: argparse.Namespace, rng: random.Random) -> Seen:
    """Return one session of an op: two fresh processes that take turns."""
    seen = Seen()
    ours, theirs = OurWorker(runtime, model, chosen.instances), BareLoop(runtime, model, chosen.instances)
    try:
        for _ in range(chosen.turns):
            copy = rng.randrange(chosen.instances)
            if rng.random() < 0.5:
                (instance, a_ns), b_ns = ours.visit(), theirs.visit(copy)
            else:
                b_ns, (instance, a_ns) = theirs.visit(copy), ours.visit()
            seen.add(session, instance, copy, a_ns, b_ns)
    finally:
        ours.close()
        theirs.close()
    return seen


def judged(seen: Mapping[str, Seen], *, seed: int = 0) -> Verdict:
    """Return what all ops say together, and each of them, with 95 % bootstrap intervals."""
    rng = np.random.default_rng(seed)
    found = {name: op.drawn(rng) for name, op in seen.items()}
    centres = np.array([centre for centre, _ in found.values()])
    draws = np.array([drawn for _, drawn in found.values()])  # an op a row
    picked = rng.integers(len(draws), size=(len(draws), DRAWS))  # ops are drawn, too
    medians = np.median(draws[picked, np.arange(DRAWS)], axis=0)
    noise = float(np.sqrt(np.mean(np.var(draws, axis=1))))
    lo, hi = np.percentile(medians, [2.5, 97.5])
    return Verdict(
        ops=tuple(
            OpRatio(
                op=name,
                ms=median(seen[name].levels_ns) / 1e6,
                ratio=float(np.exp(centre)),
                lo=float(np.exp(np.percentile(drawn, 2.5))),
                hi=float(np.exp(np.percentile(drawn, 97.5))),
            )
            for name, (centre, drawn) in found.items()
        ),
        median=float(np.exp(np.median(centres))),
        lo=float(np.exp(lo)),
        hi=float(np.exp(hi)),
        spread=float(np.std(centres, ddof=1)),
        noise=noise,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRatio:
    """Ours / theirs of one op, and its 95 % interval."""

    op: str
    ms: float
    ratio: float
    lo: float
    hi: float

    @property
    def inside(self) -> bool:
        return GOAL[0] <= self.ratio <= GOAL[1]

    @property
    def surely_outside(self) -> bool:
        """Whether all of the interval is: the two loops differ, and noise does not explain it."""
        return self.hi < GOAL[0] or self.lo > GOAL[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All ops. `spread`: standard deviation of their log ratios; `noise`: what it would be if all ratios were equal."""

    ops: tuple[OpRatio, ...]
    median: float
    lo: float
    hi: float
    spread: float
    noise: float

    def lines(self) -> list[str]:
        """Return it in words: how many are inside, whether there is a bias, whether ops differ by more than noise."""
        n, inside = len(self.ops), sum(op.inside for op in self.ops)
        outside = sum(op.surely_outside for op in self.ops)
        ratios = [op.ratio for op in self.ops]
        biased = "a bias" if not self.lo <= 1.0 <= self.hi else "no bias that shows"
        own = max(0.0, self.spread**2 - self.noise**2) ** 0.5
        met = "met" if inside >= LEAST_INSIDE else "MISSED" if n - outside < LEAST_INSIDE else "not told from noise"
        if n < LEAST_INSIDE:
            met = f"{n} ops are too few to say"
        return [
            f"{inside} of {n} ops within {GOAL[0]} to {GOAL[1]}; {outside} outside by their whole interval; "
            f"range {min(ratios):.4f} to {max(ratios):.4f}",
            f"median {self.median:.4f} ({self.lo:.4f} to {self.hi:.4f}): {biased}",
            f"ops differ by {100 * self.spread:.2f} % (sd); noise alone gives {100 * self.noise:.2f} %, "
            f"so {100 * own:.2f} % is their own",
            f"goal {LEAST_INSIDE} ops within {GOAL[0]} to {GOAL[1]}: {met}",
        ]


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


def check(runtime: str, chosen: argparse.Namespace) -> tuple[Verdict, dict[str, float]]:
    """Measure all ops on a runtime; return the verdict, and ours / tool by op where the tool was run."""
    rng = random.Random(chosen.seed)
    format = runtimes.entry(runtime)[1].format
    ops = {op.label(): op for op in spread_ops(chosen.ops)}
    seen = {name: Seen() for name in ops}
    tool: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="lutbuilder-bench-") as folder:
        model = Path(folder) / "model"
        for session in range(chosen.sessions):
            # An op's sessions lie far apart, so that no slow minute of the machine is all of it.
            for name in rng.sample(list(ops), len(ops)):
                model.write_bytes(build(lower(ops[name]), format))
                found = take_turns(runtime, model, session, chosen, rng)
                seen[name].ours.update(found.ours)
                seen[name].theirs.update(found.theirs)
                seen[name].levels_ns += found.levels_ns
                if chosen.tool and not session and runtime == "litert" and _ms(seen[name]) >= TOOL_LEAST_MS:
                    tool[name] = against_tool(model, chosen)
            print(f"{runtime}: session {session + 1} of {chosen.sessions} done", file=sys.stderr, flush=True)
    return judged(seen, seed=chosen.seed), tool


def _ms(seen: Seen) -> float:
    return median(seen.levels_ns) / 1e6


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=RUNTIMES, help="[default: both]")
    parser.add_argument("--ops", type=int, default=24, help="at least 2")
    parser.add_argument("--sessions", type=int, default=3, help="pairs of processes an op")
    parser.add_argument("--instances", type=int, default=4, help="preparations on either side in a session")
    parser.add_argument("--turns", type=int, default=48, help="visits on either side in a session")
    parser.add_argument("--tool", type=int, default=0, metavar="N", help="runs of LiteRT's benchmark program an op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if chosen.tool and chosen.runtime == "onnxruntime":
        parser.error("--tool: ONNX Runtime's wheel has no benchmark program")
    if chosen.ops < 2 or chosen.instances * chosen.sessions < 2:
        parser.error("at least 2 ops, and 2 preparations of each")
    said = {}
    for runtime in [chosen.runtime] if chosen.runtime else RUNTIMES:
        verdict, tool = check(runtime, chosen)
        said[runtime] = {**asdict(verdict), "inside": sum(op.inside for op in verdict.ops), "tool": tool}
        if chosen.json:
            continue
        print(runtime)
        for op in verdict.ops:
            beside = f"   tool {tool[op.op]:.3f}" if op.op in tool else ""
            print(f"{op.op:<34} {op.ms:8.3f} ms  {op.ratio:.4f}  ({op.lo:.4f} to {op.hi:.4f}){beside}")
        print("\n".join(verdict.lines()), flush=True)
    if chosen.json:
        print(json.dumps({"goal": GOAL, "least_inside": LEAST_INSIDE, "runtimes": said}))


if __name__ == "__main__":
    main()
