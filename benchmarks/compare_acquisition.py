"""Which way of timing ops predicts whole networks best? Hot blocks and trains of several lengths, side by side.

    python benchmarks/compare_acquisition.py --runtime litert --trains 1,4,6,12 --rounds 12 --networks 24

All ways are interleaved in one process with the same networks, three instances of everything, so that drift hits
all alike. A train of 1 is the hot block. For each it prints the error of the plain sum with no call overhead taken
off, with that of an empty call, and with that measured over pairs (docs/decisions/0002).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import defaultdict
from typing import Any

import numpy as np

from lutbuilder import spaces
from lutbuilder.artifacts import build
from lutbuilder.campaign.plan import input_shape, make_plan, overhead_op, pairs
from lutbuilder.lower import lower_network
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.sampling import spread_archs
from lutbuilder.op import OpSpec
from lutbuilder_agent import runtimes
from lutbuilder_agent.timing import shuffled, time_train, trains

Key = tuple[OpSpec, ...]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--trains", default="1,6,12,20", help="train lengths, comma separated; 1 is the hot block")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    lengths = [int(length) for length in chosen.trains.split(",")]
    seen, networks = measure(chosen.runtime, lengths, chosen)
    results = [row for length in lengths for row in errors(seen, networks, length)]
    if chosen.json:
        print(json.dumps(results))
        return
    print(f"{'train':>5} {'overhead':>8} {'bias %':>7} {'MAPE %':>7} {'worst %':>7} {'scatter %':>9}")
    for row in results:
        print(
            f"{row['train']:>5} {row['overhead']:>8} {100 * row['bias']:>+7.2f} {100 * row['mape']:>7.2f} "
            f"{100 * row['worst']:>7.2f} {100 * row['scatter']:>9.2f}"
        )


def measure(runtime_name: str, lengths: list[int], chosen: Any) -> tuple[dict[Any, list[float]], list[Key]]:
    """Return visit medians in ns by (train length or "network", what was run), and the networks."""
    space = spaces.get("proxyless")
    ops = space.ops()
    by_macs = FunctionTable(name="macs", cost=lambda op: float(lower_network([op]).macs))
    archs = spread_archs(compile_space(space, by_macs), chosen.networks, np.random.default_rng(chosen.seed))
    networks: list[Key] = [space.arch_ops(arch) for arch in archs]
    singles: list[Key] = [(op,) for op in dict.fromkeys([*ops, *(overhead_op(op) for op in ops)])]
    singles += pairs(ops)
    name, entry = runtimes.entry(runtime_name)
    runtime = runtimes.load(name, threads=1)
    started_s = time.perf_counter()
    loaded = {
        key: [runtime.prepare(raw, instance=k) for k in range(chosen.instances)]
        for key in [*singles, *networks]
        if (raw := build(lower_network(list(key)), entry.format))
    }
    print(f"loaded {len(loaded)} artifacts x {chosen.instances} in {time.perf_counter() - started_s:.1f} s", flush=True)
    plan = make_plan(name, threads=1, cache="hot")
    seen: dict[Any, list[float]] = defaultdict(list)
    gc.disable()
    for round in range(chosen.rounds):
        units: list[tuple[Any, list[Key]]] = [("network", [net]) for net in networks]
        for length in lengths:
            mixed = shuffled(singles, seed=length, round=round)
            units += [(length, train) for train in trains(mixed, length=length)]
        for label, members in shuffled(units, seed=chosen.seed, round=round):
            blocks = time_train(
                [loaded[key][round % chosen.instances] for key in members],
                plan,
                now_ns=runtime.now_ns,
                on_call=lambda _: None,
            )
            for key, block in zip(members, blocks, strict=True):
                seen[label, key].append(float(np.median(block.samples_ns)))
    return seen, networks


def errors(seen: dict[Any, list[float]], networks: list[Key], length: int) -> list[dict[str, Any]]:
    """Return the error of the plain sum for one train length, a row for each kind of call overhead."""
    cost = {key: float(np.median(times)) for (label, key), times in seen.items() if label == length}
    truth = np.array([float(np.median(seen["network", net])) for net in networks])
    saved: dict[Any, list[float]] = defaultdict(list)
    for key in cost:
        if len(key) == 2:
            saved[input_shape(key[1])].append(cost[key[:1]] + cost[key[1:]] - cost[key])
    rows = []
    for overhead in ("none", "identity", "pairs"):

        def taken_off(op: OpSpec, overhead: str = overhead) -> float:
            if overhead == "pairs" and input_shape(op) in saved:
                return float(np.median(saved[input_shape(op)]))
            return 0.0 if overhead == "none" else cost[overhead_op(op),]

        total = np.array([sum(cost[op,] for op in net) - sum(map(taken_off, net[1:])) for net in networks])
        error = total / truth - 1.0
        rows.append(
            {
                "train": length,
                "overhead": overhead,
                "bias": float(error.mean()),
                "mape": float(np.abs(error).mean()),
                "worst": float(np.abs(error).max()),
                "scatter": float(np.std(error)),
            }
        )
    return rows


if __name__ == "__main__":
    main()
