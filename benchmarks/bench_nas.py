"""How fast search code gets its answers: architectures predicted per second, and ExpectedLatency per step.

    python benchmarks/bench_nas.py [--lut PATH] [--space proxyless] [--rounds 9] [--json]

Everything runs on one core. The contestants take turns within a round, so that a machine that slows down slows all of
them; ratios are taken within a round, and medians over the rounds are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch read it

import numpy as np
import torch

from lutbuilder import ExpectedLatency, Lut, spaces
from lutbuilder.lower import lower
from lutbuilder.nas.compiled import CostTable, FunctionTable, compile_space
from lutbuilder.spaces import SearchSpace

ARCHS = 1_000_000
LOOP_ARCHS = 5_000  # what the plain loop gets; it is slow
STEPS = 300


def synthetic_table() -> FunctionTable:
    """The synthetic LUT of the search-space tests: 0.01 ms + MACs / 1e8 ms an op."""
    return FunctionTable(name="synthetic", cost=lambda op: 0.01 + lower(op).macs / 1e8, call_overhead_ms=0.01)


def plain_loop(space: SearchSpace, table: CostTable) -> Callable[[list[list[int]]], list[float]]:
    """Return what search code without lutbuilder does: a dictionary keyed by strings, looked up op by op."""
    ms = {
        op.label(): float(cost) for op, cost in zip(space.ops(), table.column(space.ops(), "latency_ms"), strict=True)
    }
    fixed = compile_space(space, table).fixed
    chosen = [(site.scope, ops) for site, ops in zip(space.sites, space.site_ops, strict=True) if site.scope]
    if any(len(scope) != 1 for scope, _ in chosen):
        sys.exit(f"the plain loop knows spaces of one variable a site, {space.name} has more")
    labels = [(space.positions[scope[0]], [op.label() if op else None for op in ops]) for scope, ops in chosen]

    def run(archs: list[list[int]]) -> list[float]:
        costs = []
        for arch in archs:
            total = fixed
            for column, names in labels:
                name = names[arch[column]]
                if name is not None:
                    total += ms[name]
            costs.append(total)
        return costs

    return run


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call took, in s."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def step_us(latency: ExpectedLatency, *, per_variable: bool) -> float:
    """Return the median of forward + backward in us, for one distribution over archs."""
    variables = latency.compiled.space.variables
    padded = torch.zeros(latency.shape, requires_grad=True)
    vectors = [torch.zeros(len(v.values), requires_grad=True) for v in variables]
    leaves = vectors if per_variable else [padded]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        latency(vectors if per_variable else padded).backward()

    return median(seconds(step) for _ in range(STEPS)) * 1e6


def measure(space: SearchSpace, table: CostTable, rounds: int) -> dict[str, float]:
    """Return every figure by name; the unit is in the name."""
    torch.set_num_threads(1)
    compile_s = seconds(lambda: compile_space(space, table))
    compiled = compile_space(space, table)
    latency = ExpectedLatency(table, space)
    archs = space.sample(np.random.default_rng(0), ARCHS).astype(np.int8)
    few = archs[:LOOP_ARCHS].tolist()
    loop = plain_loop(space, table)
    worst = float(np.abs(compiled.predict(archs[:LOOP_ARCHS]) - loop(few)).max())
    if worst > 1e-9:
        sys.exit(f"predict and the plain loop differ by {worst} ms")
    step_us(latency, per_variable=False), step_us(latency, per_variable=True)  # both warm
    predict, plain, padded, listed = [], [], [], []
    for _ in range(rounds):
        predict.append(ARCHS / seconds(lambda: compiled.predict(archs)))
        plain.append(LOOP_ARCHS / seconds(lambda: loop(few)))
        padded.append(step_us(latency, per_variable=False))
        listed.append(step_us(latency, per_variable=True))
    return {
        "predict_archs_per_s": median(predict),
        "plain_loop_archs_per_s": median(plain),
        "predict_over_plain_loop": median(p / q for p, q in zip(predict, plain, strict=True)),
        "forward_backward_padded_us": median(padded),
        "forward_backward_per_variable_us": median(listed),
        "compile_ms": compile_s * 1e3,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lut", help="a LUT to use instead of the synthetic one")
    parser.add_argument("--space", default="proxyless")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    table: CostTable = synthetic_table()
    batch = 1
    if given.lut:
        lut = Lut.load(given.lut)
        table, batch = lut, lut.meta.target.batch
    figures = measure(spaces.get(given.space, batch=batch), table, given.rounds)
    if given.json:
        print(json.dumps({"space": given.space, "lut": given.lut, "rounds": given.rounds, **figures}))
        return
    print(f"{given.space}, {given.lut or 'synthetic LUT'}, one core, median of {given.rounds} interleaved rounds")
    print(f"predict                       {figures['predict_archs_per_s'] / 1e6:8.1f} million archs/s")
    print(f"plain per-op loop             {figures['plain_loop_archs_per_s'] / 1e6:8.3f} million archs/s")
    print(f"predict / plain loop          {figures['predict_over_plain_loop']:8.0f} x")
    print(f"forward + backward, padded    {figures['forward_backward_padded_us']:8.0f} us")
    print(f"forward + backward, per layer {figures['forward_backward_per_variable_us']:8.0f} us")
    print(f"compile space against LUT     {figures['compile_ms']:8.1f} ms")


if __name__ == "__main__":
    main()
