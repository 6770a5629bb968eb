"""What an interval costs beside a prediction: archs per second with and without, and the time to prepare.

    python benchmarks/bench_uncertainty.py [--space ofa_mbv3] [--space ...] [--rounds 7] [--json]

One thread, CPU time. Every row has an interval of 2 % and networks a common part of 1 %. Prediction and interval take
turns within a round; ratios are taken within a round, and medians over the rounds are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

import numpy as np

from lutbuilder import spaces
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.uncertainty import Uncertainty
from lutbuilder.op import OpSpec

SPACES = ("proxyless", "ofa_mbv3-w1.2", "attentivenas", "apq")
ARCHS = 200_000


def made_up_ms(op: OpSpec) -> float:
    """Some cost of any op, of any bits."""
    return 0.1 + int(op.op_id[:6], 16) / 2**24


def cpu_s(call: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(name: str, rounds: int) -> dict[str, float]:
    """Return every figure by name; the unit is in the name."""
    space = spaces.get(name)
    table = FunctionTable(name="made up", cost=made_up_ms)
    compiled = compile_space(space, table)
    compiled.predict(space.sample(np.random.default_rng(1), 10))  # prepares what the first prediction prepares
    prepared: list[Uncertainty] = []
    prepare_s = cpu_s(lambda: prepared.append(Uncertainty.about(compiled, table, assumed_half_width=0.02, common=0.01)))
    archs = space.sample(np.random.default_rng(0), ARCHS).astype(np.int8)
    limit = float(np.median(compiled.predict(archs)))
    seen: dict[str, list[float]] = {}
    for _ in range(rounds):
        predict_s = cpu_s(lambda: compiled.predict(archs))
        interval_s = cpu_s(lambda: prepared[0].predict(archs))
        filter_s = cpu_s(lambda: prepared[0].surely_below(archs, limit))
        figures = {
            "predict_archs_per_s": ARCHS / predict_s,
            "interval_archs_per_s": ARCHS / interval_s,
            "filter_archs_per_s": ARCHS / filter_s,
            "interval_over_predict": interval_s / predict_s,
        }
        for what, value in figures.items():
            seen.setdefault(what, []).append(value)
    return {what: median(values) for what, values in seen.items()} | {"prepare_ms": prepare_s * 1e3}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", action="append", help="a space to measure; may be repeated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    measured = {name: measure(name, given.rounds) for name in given.space or SPACES}
    if given.json:
        print(json.dumps({"archs": ARCHS, "rounds": given.rounds, "spaces": measured}))
        return
    print(f"million archs/s, {ARCHS:,} archs, one thread, CPU time, median of {given.rounds} interleaved rounds")
    print(f"{'space':16}{'predict':>10}{'interval':>10}{'filter':>10}{'times the time':>16}{'prepared in':>14}")
    for name, figures in measured.items():
        per_s = (figures[f"{what}_archs_per_s"] / 1e6 for what in ("predict", "interval", "filter"))
        rates = "".join(f"{rate:10.1f}" for rate in per_s)
        print(f"{name:16}{rates}{figures['interval_over_predict']:14.1f} x{figures['prepare_ms']:11.1f} ms")


if __name__ == "__main__":
    main()
