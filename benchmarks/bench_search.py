"""What a search costs beside the accuracy function: OFA's evolution, 500 generations of 100, on its MobileNetV3 space.

    python benchmarks/bench_search.py [--lut PATH] [--space ofa_mbv3] [--generations 500] [--rounds 5] [--json]

The accuracy function takes no time to speak of. CPU time of one thread, as the process counts it, medians over the
rounds with their range. Beside it, in the same rounds, what the predictions alone would take op by op in a dictionary,
as the published code does it: the ratio is of one round.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

import numpy as np
from figures import Figures, as_json, over, synthetic_table
from numpy.typing import NDArray

from lutbuilder import Lut, spaces
from lutbuilder.nas.compiled import CompiledSpace, CostTable, compile_space
from lutbuilder.nas.search import Evolution, Genome, Limit, Limits, search
from lutbuilder.spaces import SearchSpace

LOOPED_ARCHS = 2_000  # what the plain loop gets; it is slow
SHARE = 0.3  # of the range from the cheapest to the dearest arch: the limit
GOAL_S = 0.1  # for the latency side


def constant_time(archs: NDArray[np.int16]) -> NDArray[np.float64]:
    """Score archs by a sum over what they choose: nothing beside a supernet."""
    weights = np.random.default_rng(0).random(archs.shape[1])
    return archs @ weights


class Watch:
    """Counts the CPU seconds spent in some methods of a class, and the archs they were called with."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.archs = 0

    @contextmanager
    def on(self, owner: type, *names: str) -> Iterator[None]:
        """Watch the methods until the block ends."""
        kept = {name: getattr(owner, name) for name in names}
        for name, method in kept.items():
            setattr(owner, name, self._wrapped(method, counts=name == names[0]))
        try:
            yield
        finally:
            for name, method in kept.items():
                setattr(owner, name, method)

    def _wrapped(self, method: Callable[..., Any], *, counts: bool) -> Callable[..., Any]:
        def call(own: Any, rows: Any, *more: Any) -> Any:
            start = time.process_time()
            answer = method(own, rows, *more)
            self.spent_s += time.process_time() - start
            self.archs += len(rows) if counts else 0
            return answer

        return call


def ours(compiled: CompiledSpace, max_cost: float, generations: int, seed: int) -> dict[str, float]:
    """Return CPU seconds of one search by what they were spent on."""
    start = time.process_time()
    limits = Limits.of(Limit(compiled=compiled, max_cost=max_cost))
    limits.sample(np.random.default_rng(seed), Evolution().first)
    first = time.process_time() - start
    how = Evolution(generations=generations)
    latency, variation = Watch(), Watch()
    with latency.on(Limits, "costs", "kept"), variation.on(Genome, "mutated", "crossed"):
        start = time.process_time()
        found = search(limits, constant_time, how, seed=seed)
        whole = time.process_time() - start
    if found.costs.max() > max_cost or len(found.history) != how.first + generations * (how.mutated + how.crossed):
        sys.exit("the search did not score what it should have")
    return {
        "first": first,
        "latency": latency.spent_s,
        "predicted": latency.archs,
        "variation": variation.spent_s,
        "whole": whole,
    }


def op_by_op(space: SearchSpace, table: CostTable, archs: list[list[int]]) -> float:
    """Return CPU seconds an arch when every op of it is looked up by its name."""
    ms = dict(zip((op.label() for op in space.ops()), table.column(space.ops(), "latency_ms").tolist(), strict=True))
    sites = [
        ([space.positions[name] for name in site.scope], [op.label() if op else None for op in ops])
        for site, ops in zip(space.sites, space.site_ops, strict=True)
    ]
    start = time.process_time()
    for arch in archs:
        total = 0.0
        for scope, labels in sites:
            cell = 0
            for variable in scope:
                cell = cell * space.sizes[variable] + arch[variable]
            label = labels[cell]
            if label is not None:
                total += ms[label]
    return (time.process_time() - start) / len(archs)


def measure(space: SearchSpace, table: CostTable, generations: int, rounds: int) -> Figures:
    """Return every figure by name; the unit is in the name."""
    compiled = compile_space(space, table)
    low, high = compiled.min_over(), compiled.max_over()
    max_cost = low + SHARE * (high - low)
    archs = space.sample(np.random.default_rng(0), LOOPED_ARCHS).tolist()
    ours(compiled, max_cost, 20, seed=0)  # warm
    seen = []
    for _ in range(rounds):
        mine, loop_s = ours(compiled, max_cost, generations, seed=1), op_by_op(space, table, archs)
        seen.append(
            {
                "limit_ms": max_cost,
                "latency_side_s": mine["latency"],
                "predicted_archs": mine["predicted"],
                "mutation_crossover_repair_s": mine["variation"],
                "whole_loop_s": mine["whole"],
                "first_archs_exactly_uniform_s": mine["first"],
                "op_by_op_over_latency_side": mine["predicted"] * loop_s / mine["latency"],
            }
        )
    return over(seen)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lut", help="a LUT to use instead of the synthetic one")
    parser.add_argument("--space", default="ofa_mbv3")
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    table: CostTable = synthetic_table()
    batch = 1
    if given.lut:
        lut = Lut.load(given.lut)
        table, batch = lut, lut.meta.target.batch
    figures = measure(spaces.get(given.space, batch=batch), table, given.generations, given.rounds)
    if given.json:
        print(as_json({"space": given.space, "lut": given.lut, "generations": given.generations, **figures}))
        return
    what = f"{given.space}, {given.lut or 'synthetic LUT'}, {given.generations} generations of 100"
    limit_ms, archs = figures["limit_ms"].median, figures["predicted_archs"].median
    print(f"{what}, limit {limit_ms:.3f} ms; CPU time of one thread, medians of {given.rounds} rounds (range)")
    print(f"latency side: all predictions and limits {figures['latency_side_s'].text('s', digits=3, at_most=GOAL_S)}")
    ratio = figures["op_by_op_over_latency_side"].text(f"x: the same {archs:,.0f} archs op by op", digits=0)
    print(f"                                         {ratio}")
    print(f"mutation, crossover and repair           {figures['mutation_crossover_repair_s'].text('s', digits=3)}")
    print(f"the whole loop, constant-time accuracy   {figures['whole_loop_s'].text('s', digits=3)}")
    print(f"before it: 100 archs, exactly uniform    {figures['first_archs_exactly_uniform_s'].text('s', digits=3)}")


if __name__ == "__main__":
    main()
