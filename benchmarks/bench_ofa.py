"""How much faster than the stock `ofa` package the same table answers: subnets per second, side by side in one run.

    python benchmarks/bench_ofa.py [--rounds 9] [--model-subnets 20000] [--json]

A table of OFA-MobileNetV3 (w1.2, five resolutions, made-up latencies) is exported to the package's own files. 20,000
random subnets are then predicted by lutbuilder and by two parts of the package as released, which runs in an
environment of its own (tools/ofa_venv.py): its tutorial's `LatencyTable`, and `Mbv3LatencyModel` over an OFA network.
All must agree to 1e-9 ms. lutbuilder gets them as int8 encodings row by row, the same column by column (numpy's order
"F"), and packed; making those is not in the figures, as making the package's dictionaries is not.

Contestants take turns within a round, each on one thread; what is compared is CPU seconds of their process per subnet,
ratios within a round, medians over the rounds. Each part of the package gets all subnets once, a share in each round;
Mbv3LatencyModel takes about a millisecond for one, so --model-subnets may give it the first few only. Without a package
index to install the package from, nothing is measured, and the exit status is 69.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it, and for the other process

import numpy as np
from figures import Figures, as_json, cpu_s, not_measured, over
from numpy.typing import NDArray

from lutbuilder import Lut, SearchSpace, __version__, spaces
from lutbuilder.campaign.spec import Target
from lutbuilder.lower import lower
from lutbuilder.lut import LutMeta, Row, publish
from lutbuilder.lut.interchange import export_table
from lutbuilder.nas.compiled import CompiledSpace, compile_space
from lutbuilder_agent.records import Fingerprint, Plan

ROOT = Path(__file__).resolve().parents[1]
SPACE, WIDTH = "ofa_mbv3-w1.2", 1.2  # the width that the package's LatencyTable knows
SUBNETS = 20_000
MANY = 1_000_000  # so many that their encodings and costs come from memory, not from a cache
OVERHEAD_MS = 0.013  # a network's call overhead, which the exporter adds to the op every network has once
COPIED_BYTES = 1 << 28  # 256 MiB, read and written
AT_LEAST_S = 0.05  # of our own side in a round: one prediction is too short to time
KEPT = ("rows", "columns", "packed")  # how lutbuilder's subnets lie in memory
GOALS = {"LatencyTable": 3_000, "Mbv3LatencyModel": 40_000}


def table(folder: Path, space: SearchSpace) -> Lut:
    """Return a published table of `space`: 0.01 ms + MACs / 1e8, uneven from op to op."""
    rows = [
        Row.of(
            op,
            latency_ms=(0.01 + lower(op).macs / 1e8) * (1.0 + int(op.op_id[:4], 16) / 2**18),
            call_overhead_ms=OVERHEAD_MS,
            evidence="modelled",
        )
        for op in space.ops()
    ]
    meta = LutMeta(
        target=Target(device="made-up", runtime="simulated"),
        fingerprint=Fingerprint(device="made-up", facts=()),
        runtime_version="1",
        plan=Plan(runtime="simulated"),
        tool_version=__version__,
        created="2025-01-31T12:00:00Z",
        spaces=(SPACE,),
    )
    return publish(rows, meta, folder=folder)


def as_dicts(space: SearchSpace, archs: NDArray[Any]) -> list[dict[str, Any]]:
    """Return each arch as the package writes it: resolution, depths, kernels, expansions."""
    columns = {
        variable.name: np.array(variable.values)[archs[:, number]].tolist()
        for number, variable in enumerate(space.variables)
    }
    lists = {"d": [f"d{n}" for n in range(1, 6)], "ks": [f"k{n}" for n in range(1, 21)]}
    lists["e"] = [f"e{n}" for n in range(1, 21)]
    return [
        {"r": columns["r"][i], **{key: [columns[name][i] for name in names] for key, names in lists.items()}}
        for i in range(len(archs))
    ]


class Stock:
    """The stock package in its own process: predicts, and says how much CPU time that took."""

    def __init__(self, ask: IO[str], told: IO[str]) -> None:
        self._ask, self._told = ask, told
        self.resolutions: list[int] = self._answer()["resolutions"]

    def predict(self, contestant: str, archs: Sequence[dict[str, Any]]) -> tuple[list[float], float]:
        """Return the ms of each arch, and the CPU seconds of all."""
        self._ask.write(json.dumps({"contestant": contestant, "archs": list(archs)}) + "\n")
        self._ask.flush()
        answer = self._answer()
        return answer["ms"], answer["cpu_s"]

    def _answer(self) -> dict[str, Any]:
        line = self._told.readline()
        if not line:
            sys.exit("the stock package's process ended; its last words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def stock(folder: Path) -> Iterator[Stock]:
    """Run the stock package over the tables in `folder`."""
    built = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "ofa_venv.py")], capture_output=True, text=True, check=False
    )
    if built.returncode:
        not_measured(f"the stock package is not there to compare with. {built.stderr.strip()}")
    words = [
        built.stdout.strip(),
        "-W",
        "ignore",
        str(Path(__file__).with_name("stock_ofa.py")),
        str(folder),
        str(WIDTH),
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None  # both are asked for above
        assert process.stdout is not None
        yield Stock(process.stdin, process.stdout)


def measure(compiled: CompiledSpace, other: Stock, rounds: int, model_subnets: int) -> Figures:
    """Return every figure by name; the unit is in the name."""
    space = compiled.space
    rng = np.random.default_rng(0)
    archs = space.sample(rng, SUBNETS).astype(np.int8)
    many = space.sample(rng, MANY).astype(np.int8)
    kept = {"rows": archs, "columns": np.asfortranarray(archs), "packed": compiled.pack(archs)}
    kept_many = {"rows": many, "columns": np.asfortranarray(many), "packed": compiled.pack(many)}
    expected = compiled.predict(archs)
    worst = max(float(np.abs(compiled.predict(each) - expected).max()) for each in kept.values())
    source, room = np.ones(COPIED_BYTES // 8), np.zeros(COPIED_BYTES // 8)
    np.copyto(room, source)  # the first copy asks for memory
    shares = {
        "LatencyTable": np.array_split(np.arange(SUBNETS), rounds),
        "Mbv3LatencyModel": np.array_split(np.arange(model_subnets), rounds),
    }
    for contestant in shares:
        other.predict(contestant, as_dicts(space, archs[:10]))  # warm
    seen = []
    for number in range(rounds):
        bytes_per_s = 2 * COPIED_BYTES / cpu_s(lambda: np.copyto(room, source), at_least_s=AT_LEAST_S)
        figures = {"memory_bytes_per_s": bytes_per_s}
        mine = {}
        for name in KEPT:
            mine[name] = SUBNETS / cpu_s(partial(compiled.predict, kept[name]), at_least_s=AT_LEAST_S)
            figures[f"{name}_subnets_per_s"] = mine[name]
            figures[f"{name}_bytes"] = kept_many[name].nbytes / MANY
            each_s = cpu_s(partial(compiled.predict, kept_many[name]), at_least_s=AT_LEAST_S) / MANY
            figures[f"{name}_1m_subnets_per_s"] = 1.0 / each_s
            # Read once, and 8 bytes written: what a prediction cannot do without.
            figures[f"{name}_1m_of_bandwidth"] = (figures[f"{name}_bytes"] + 8) / bytes_per_s / each_s
        for contestant, parts in shares.items():
            part = parts[number]
            ms, spent_s = other.predict(contestant, as_dicts(space, archs[part]))
            worst = max(worst, float(np.abs(np.array(ms) - expected[part]).max()))
            figures[f"{contestant}_subnets_per_s"] = len(part) / spent_s
            for name, per_s in mine.items():
                figures[f"{name}_over_{contestant}"] = per_s * spent_s / len(part)
        seen.append(figures | {"worst_difference_ms": worst})
    if not worst <= 1e-9:
        sys.exit(f"lutbuilder and the stock package differ by {worst} ms")
    return over(seen)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model-subnets", type=int, default=SUBNETS, help="how many Mbv3LatencyModel gets")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    space = spaces.get(SPACE)
    with tempfile.TemporaryDirectory() as scratch:
        lut = table(Path(scratch) / "luts", space)
        folder = Path(scratch) / "exported"
        export_table(
            lut, folder, format="ofa-mbv3-yaml", tool_version=__version__, evidence=("modelled",),
            constant_ms=OVERHEAD_MS,
        )  # fmt: skip  # one call
        with stock(folder) as other:
            figures = measure(compile_space(space, lut), other, given.rounds, given.model_subnets)
    if given.json:
        print(as_json({"space": SPACE, "subnets": SUBNETS, "rounds": given.rounds, **figures}))
        return
    print(f"{SPACE}, {len(space.ops())} ops, {SUBNETS:,} subnets, one thread, CPU time, medians of {given.rounds}")
    print(f"interleaved rounds (range); all predictions agree to {figures['worst_difference_ms'].high:.1e} ms")
    asked = {"LatencyTable": SUBNETS, "Mbv3LatencyModel": given.model_subnets}
    for contestant in GOALS:
        rate = figures[f"{contestant}_subnets_per_s"].text("subnets/s", digits=0)
        print(f"stock {contestant:24} {rate}, {asked[contestant]:,} subnets")
    for name in KEPT:
        print(f"lutbuilder, {name:18} {figures[f'{name}_subnets_per_s'].text('million subnets/s', scale=1e6)}")
        for contestant, goal in GOALS.items():
            ratio = figures[f"{name}_over_{contestant}"].text(f"x {contestant}", digits=0, at_least=goal)
            print(f"{'':30} {ratio}")
    copied = figures["memory_bytes_per_s"].text("GB/s", scale=1e9)
    print(f"memory copies                  {copied}; at {MANY:,} subnets, of what that could feed:")
    for name in KEPT:
        size, per_s = figures[f"{name}_bytes"].median, figures[f"{name}_1m_subnets_per_s"].median / 1e6
        share = figures[f"{name}_1m_of_bandwidth"].text("%", scale=0.01)
        print(f"    {name:8} {size:3.0f} + 8 bytes a subnet {per_s:8.1f} million subnets/s {share}")


if __name__ == "__main__":
    main()
