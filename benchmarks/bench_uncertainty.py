"""What an interval costs beside a prediction: archs per second with and without, and the time to prepare.

    python benchmarks/bench_uncertainty.py [--space ofa_mbv3] [--space ...] [--rounds 7] [--json]

One thread, CPU time. Every row has an interval of 2 % and networks a common part of 1 %. Prediction and interval take
turns within a round; ratios are taken within a round, and medians over the rounds are printed with their range.
"""

from __future__ import annotations

import argparse
import os
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

import numpy as np
from figures import Figures, as_json, cpu_s, over

from lutbuilder import spaces
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.uncertainty import Uncertainty
from lutbuilder.op import OpSpec

SPACES = ("proxyless", "ofa_mbv3-w1.2", "attentivenas", "apq")
ARCHS = 200_000


def made_up_ms(op: OpSpec) -> float:
    """Some cost of any op, of any bits."""
    return 0.1 + int(op.op_id[:6], 16) / 2**24


def measure(name: str, rounds: int) -> Figures:
    """Return every figure by name; the unit is in the name."""
    space = spaces.get(name)
    table = FunctionTable(name="made up", cost=made_up_ms)
    compiled = compile_space(space, table)
    archs = space.sample(np.random.default_rng(0), ARCHS).astype(np.int8)
    limit = float(np.median(compiled.predict(archs)))
    about = partial(Uncertainty.about, compiled, table, assumed_half_width=0.02, common=0.01)
    told = about()
    told.predict(archs)  # prepares what the first interval prepares
    seen = []
    for _ in range(rounds):
        predict_s = cpu_s(lambda: compiled.predict(archs))
        interval_s = cpu_s(lambda: told.predict(archs))
        filter_s = cpu_s(lambda: told.surely_below(archs, limit))
        seen.append(
            {
                "predict_archs_per_s": ARCHS / predict_s,
                "interval_archs_per_s": ARCHS / interval_s,
                "filter_archs_per_s": ARCHS / filter_s,
                "interval_over_predict": interval_s / predict_s,
                "prepare_ms": cpu_s(about) * 1e3,
            }
        )
    return over(seen)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", action="append", help="a space to measure; may be repeated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    measured = {name: measure(name, given.rounds) for name in given.space or SPACES}
    if given.json:
        print(as_json({"archs": ARCHS, "rounds": given.rounds, "spaces": measured}))
        return
    print(f"{ARCHS:,} archs, one thread, CPU time, medians of {given.rounds} interleaved rounds (range)")
    for name, figures in measured.items():
        print(name)
        for what in ("predict", "interval", "filter"):
            print(f"  {what:24} {figures[f'{what}_archs_per_s'].text('million archs/s', scale=1e6)}")
        print(f"  {'interval over predict':24} {figures['interval_over_predict'].text('x the time')}")
        print(f"  {'prepared once in':24} {figures['prepare_ms'].text('ms')}")


if __name__ == "__main__":
    main()
