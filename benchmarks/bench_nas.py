"""How fast search code gets its answers: archs predicted per second, ExpectedLatency per step, a space compiled.

    python benchmarks/bench_nas.py [--lut PATH --space NAME] [--rounds 9] [--json]

CPU time of one thread. The contestants take turns within a round, so that a machine that slows down slows all of them;
ratios are taken within a round, and medians over the rounds are printed with their range. `--lut` and `--space` put one
real table in place of the usual two spaces over a synthetic one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch read it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # example rows lie beside the tests

import numpy as np
import torch
from figures import Figures, as_json, cpu_s, over, synthetic_table

from lutbuilder import ExpectedLatency, Lut, op, spaces
from lutbuilder.lut import publish
from lutbuilder.nas.compiled import CostTable, compile_space
from lutbuilder.nas.packed import PackedArchs
from lutbuilder.spaces import SearchSpace
from tests.lut_examples import example_meta, example_row

ARCHS = 1_000_000
REPEATS = 8  # packed archs are that many times more: more bytes than any cache here holds
LOOP_ARCHS = 5_000  # what the plain loop gets; it is slow
STEPS = 300
LOOP_STEPS = 3
PREDICTED = ("proxyless", "ofa_mbv3-w1.0")  # the latter with five resolutions
DIFFERENTIATED = ("proxyless", "alphanet")
COMPILED = "ofa_mbv3-w1.0-fine"  # 25 resolutions, 1,257 ops
AT_LEAST = {
    ("proxyless", "packed_archs_per_s"): 30e6,
    ("ofa_mbv3-w1.0", "packed_archs_per_s"): 20e6,
    ("proxyless", "reference_loop_over_padded"): 20.0,
    ("proxyless", "reference_loop_over_per_variable"): 20.0,
    ("alphanet", "reference_loop_over_padded"): 20.0,
    ("alphanet", "reference_loop_over_per_variable"): 20.0,
}
AT_MOST = {
    ("proxyless", "padded_us"): 150.0,
    ("proxyless", "per_variable_us"): 150.0,
    ("alphanet", "padded_us"): 500.0,
    ("alphanet", "per_variable_us"): 500.0,
    (COMPILED, "first_ms"): 100.0,
}


def labels(space: SearchSpace, table: CostTable) -> tuple[dict[str, float], list[tuple[list[int], list[str | None]]]]:
    """Return ms by an op's string, and for each site that has a choice its variables and the string of every cell."""
    ops = space.ops()
    ms = {op.op_id: float(cost) for op, cost in zip(ops, table.column(ops, "latency_ms"), strict=True)}
    chosen = [
        ([space.positions[name] for name in site.scope], [op.op_id if op else None for op in cells])
        for site, cells in zip(space.sites, space.site_ops, strict=True)
        if site.scope
    ]
    return ms, chosen


def plain_loop(space: SearchSpace, table: CostTable) -> Callable[[list[list[int]]], list[float]]:
    """Return what search code without lutbuilder does: a dictionary keyed by strings, looked up op by op."""
    ms, chosen = labels(space, table)
    fixed = compile_space(space, table).fixed
    sites = [([(v, space.sizes[v]) for v in scope], names) for scope, names in chosen]

    def run(archs: list[list[int]]) -> list[float]:
        costs = []
        for arch in archs:
            total = fixed
            for scope, names in sites:
                cell = 0
                for variable, size in scope:
                    cell = cell * size + arch[variable]
                name = names[cell]
                if name is not None:
                    total += ms[name]
            costs.append(total)
        return costs

    return run


def reference_loop(space: SearchSpace, table: CostTable) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """Return expected latency as reference search code writes it: a look-up by string and a product a candidate op."""
    ms, chosen = labels(space, table)
    fixed = compile_space(space, table).fixed
    sites = [
        (scope, list(itertools.product(*(range(space.sizes[v]) for v in scope))), names) for scope, names in chosen
    ]

    def run(logits: list[torch.Tensor]) -> torch.Tensor:
        probs = [torch.softmax(vector, -1) for vector in logits]
        total = torch.tensor(fixed)
        for scope, cells, names in sites:
            for cell, name in zip(cells, names, strict=True):
                if name is not None:
                    mass = probs[scope[0]][cell[0]]
                    for variable, number in zip(scope[1:], cell[1:], strict=True):
                        mass = mass * probs[variable][number]
                    total = total + mass * ms[name]
        return total

    return run


def step_us(call: Callable[[], torch.Tensor], leaves: list[torch.Tensor], steps: int) -> float:
    """Return the median of forward + backward in us, for one distribution over archs."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        call().backward()

    return median(cpu_s(step) for _ in range(steps)) * 1e6


def measure_predict(space: SearchSpace, table: CostTable) -> Iterator[dict[str, float]]:
    """Archs per second: packed, plain encodings, a per-op loop; and a plain read of the bytes packed archs move."""
    compiled = compile_space(space, table)
    archs = space.sample(np.random.default_rng(0), ARCHS).astype(np.int8)
    once = compiled.pack(archs)
    packed = PackedArchs(packing=once.packing, columns=tuple(np.tile(column, REPEATS) for column in once.columns))
    moved = np.ones((packed.nbytes + 8 * len(packed)) // 8, np.uint64)  # codes in, costs out
    few = archs[:LOOP_ARCHS].tolist()
    loop = plain_loop(space, table)
    slow = np.array(loop(few))
    worst = max(np.abs(compiled.predict(given)[:LOOP_ARCHS] - slow).max() for given in (archs, once))
    if worst > 1e-9:
        sys.exit(f"predict and the plain loop differ by {worst} ms")
    while True:
        packed_per_s = len(packed) / cpu_s(lambda: compiled.predict(packed))
        encodings_per_s = ARCHS / cpu_s(lambda: compiled.predict(archs))
        loop_per_s = LOOP_ARCHS / cpu_s(lambda: loop(few))
        read_per_s = len(packed) / cpu_s(moved.max)
        yield {
            "packed_archs_per_s": packed_per_s,
            "encodings_archs_per_s": encodings_per_s,
            "plain_loop_archs_per_s": loop_per_s,
            "packed_over_plain_loop": packed_per_s / loop_per_s,
            "encodings_over_plain_loop": encodings_per_s / loop_per_s,
            "packed_bytes_per_arch": once.nbytes / len(once),
            "memory_read_archs_per_s": read_per_s,
            "packed_of_memory_read": packed_per_s / read_per_s,
        }


def measure_expected(space: SearchSpace, table: CostTable) -> Iterator[dict[str, float]]:
    """Forward + backward of one distribution: one padded tensor, a tensor a variable, and a per-op Python loop.

    `autograd_alone`: a product with all tensors joined into one, the least there is to do with a tensor a variable.
    """
    latency = ExpectedLatency(table, space)
    padded = torch.zeros(latency.shape, requires_grad=True)
    vectors = [torch.zeros(size, requires_grad=True) for size in space.sizes]
    weights = torch.ones(sum(space.sizes))
    loop = reference_loop(space, table)
    if not torch.isclose(latency(padded).float(), loop(vectors), rtol=1e-4):
        sys.exit(f"ExpectedLatency says {float(latency(padded))}, the loop {float(loop(vectors))}")
    while True:
        seen = {
            "padded_us": step_us(lambda: latency(padded), [padded], STEPS),
            "per_variable_us": step_us(lambda: latency(vectors), vectors, STEPS),
            "autograd_alone_us": step_us(lambda: torch.cat(vectors) @ weights, vectors, STEPS),
            "reference_loop_us": step_us(lambda: loop(vectors), vectors, LOOP_STEPS),
        }
        yield seen | {
            f"reference_loop_over_{name}": seen["reference_loop_us"] / seen[f"{name}_us"]
            for name in ("padded", "per_variable")
        }


def measure_compile() -> Iterator[dict[str, float]]:
    """Compile a large space against a LUT file: with every hash still to compute, and once more."""
    rows = [
        example_row(op, latency_ms=ms, latency_lo_ms=0.99 * ms, latency_hi_ms=1.01 * ms)
        for op in spaces.get(COMPILED).ops()
        for ms in [synthetic_table().cost(op)]
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = publish(rows, example_meta(), folder=Path(folder)).path
        while True:
            space = spaces.get(COMPILED)
            cells = sum(map(len, space.site_ops))  # built before the clock starts: this is no part of compiling
            load_s = cpu_s(lambda: Lut.load(path))
            lut = Lut.load(path)
            op._op_id.cache_clear()  # as in a process that has just started
            compiling = partial(compile_space, space, lut)
            yield {
                "ops": len(rows),
                "cells": cells,
                "load_lut_ms": load_s * 1e3,
                "first_ms": cpu_s(compiling) * 1e3,
                "again_ms": cpu_s(compiling) * 1e3,
            }


def rounds_of(measured: Iterator[dict[str, float]], rounds: int) -> Figures:
    """Return the figures over so many rounds; one before them warms everything."""
    return over(itertools.islice(measured, 1, rounds + 1))


def show(name: str, figures: Figures) -> None:
    """Print the figures of one space."""
    print(f"\n{name}")
    for what, unit, scale, digits in (
        ("packed_archs_per_s", "million archs/s", 1e6, 1),
        ("encodings_archs_per_s", "million archs/s", 1e6, 1),
        ("plain_loop_archs_per_s", "million archs/s", 1e6, 3),
        ("packed_over_plain_loop", "x", 1, 0),
        ("encodings_over_plain_loop", "x", 1, 0),
        ("packed_bytes_per_arch", "bytes", 1, 0),
        ("memory_read_archs_per_s", "million archs/s: a plain read of the codes and costs", 1e6, 0),
        ("packed_of_memory_read", "% of that", 0.01, 1),
        ("padded_us", "us, forward + backward", 1, 0),
        ("per_variable_us", "us, forward + backward", 1, 0),
        ("autograd_alone_us", "us, forward + backward of torch.cat(tensors) @ weights", 1, 0),
        ("reference_loop_us", "us, forward + backward", 1, 0),
        ("reference_loop_over_padded", "x", 1, 0),
        ("reference_loop_over_per_variable", "x", 1, 1),
        ("ops", "ops", 1, 0),
        ("cells", "cells of all sites", 1, 0),
        ("load_lut_ms", "ms", 1, 1),
        ("first_ms", "ms", 1, 1),
        ("again_ms", "ms", 1, 1),
    ):
        if what in figures:
            goals = {"at_least": AT_LEAST.get((name, what)), "at_most": AT_MOST.get((name, what))}
            print(f"  {what:34} {figures[what].text(unit, scale=scale, digits=digits, **goals)}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lut", help="a LUT to use instead of the synthetic one, for --space alone")
    parser.add_argument("--space")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table: CostTable = synthetic_table()
    batch = 1
    if given.lut:
        lut = Lut.load(given.lut)
        table, batch = lut, lut.meta.target.batch
    predicted, differentiated = ((given.space,),) * 2 if given.space else (PREDICTED, DIFFERENTIATED)
    figures: dict[str, Figures] = {}
    for name in dict.fromkeys((*predicted, *differentiated)):
        space = spaces.get(name, batch=batch)
        figures[name] = {}
        if name in predicted:
            figures[name] |= rounds_of(measure_predict(space, table), given.rounds)
        if name in differentiated:
            figures[name] |= rounds_of(measure_expected(space, table), given.rounds)
    if not given.space:
        figures[COMPILED] = rounds_of(measure_compile(), given.rounds)
    if given.json:
        print(as_json({"lut": given.lut, "rounds": given.rounds, "spaces": figures}))
        return
    print(
        f"{given.lut or 'synthetic LUT'}, CPU time of one thread, medians of {given.rounds} interleaved rounds (range)"
    )
    for name, found in figures.items():
        show(name, found)


if __name__ == "__main__":
    main()
