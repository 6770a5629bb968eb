"""Do ops read the same in trains of a few as in trains of all? Rotations with and without a matched footprint.

    python benchmarks/compare_rotation.py --runtime litert --rounds 25

All ways take turns in one process, train by train, over the same prepared ops of ProxylessNAS. Between any two trains
the same six ops are timed, and every train is taken relative to those before and after it: that takes out what the
machine does. A fit would not do here, it takes out what a train does to its own ops as well. A rotation is made for the
16 fastest ops, or the 16 slowest: what of the others has to stay so that these read as they do among all? Prints by how
many per cent its ops read differently than in trains of all ops: the median, with its bootstrap standard error.
"""

from __future__ import annotations

import argparse
import gc
import json
import time

import numpy as np
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.artifacts import build
from lutbuilder.campaign.plan import campaign_ops, make_plan
from lutbuilder.campaign.rotation import LEAST_TRAINS, footprint, with_anchors
from lutbuilder.lower import lower_network
from lutbuilder_agent import runtimes
from lutbuilder_agent.records import Plan
from lutbuilder_agent.runtimes import Prepared
from lutbuilder_agent.timing import shuffled, time_train, trains

WANTED = 16
PROBES = 6


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    plan = make_plan(chosen.runtime, threads=1)
    ops = campaign_ops(spaces.get("proxyless").ops(), spaces.get("proxyless").ops())
    runtime = runtimes.load(plan.runtime, threads=plan.threads, options=dict(plan.options))
    form = runtimes.entry(plan.runtime)[1].format
    prepared = [runtime.prepare(build(lower_network(op.ops), form), instance=0) for op in ops]
    took_ns = np.array([min(one.timed_call() for _ in range(3)) for one in prepared], np.float64)
    footprints = np.array([footprint(op) for op in ops])
    ways = rotations(took_ns, footprints, least=LEAST_TRAINS * plan.train_ops)
    results = []
    for name, shift in shifts(prepared, plan, ways, rounds=chosen.rounds).items():
        rng = np.random.default_rng(0)
        medians = [np.median(rng.choice(shift, len(shift))) for _ in range(1000)]
        results.append(
            {
                "rotation": name,
                "n_ops": len(ways[name]),
                "weights": float(footprints[ways[name], 0].mean() / footprints[:, 0].mean()),
                "activations": float(footprints[ways[name], 1].mean() / footprints[:, 1].mean()),
                "shift": float(np.median(shift)),
                "error": float(np.std(medians)),
            }
        )
    if chosen.json:
        print(json.dumps(results))
        return
    for row in results:
        print(
            f"{row['rotation']}, {row['n_ops']} ops, mean footprint of all x {row['weights']:.2f} weights and "
            f"x {row['activations']:.2f} activations: {row['shift']:+.2%} +- {row['error']:.2%}"
        )


def rotations(
    took_ns: NDArray[np.float64], footprints: NDArray[np.float64], *, least: int
) -> dict[str, NDArray[np.int64]]:
    """Return the ops of every way, by name; all of them first."""
    ranked = np.argsort(took_ns)
    ways = {"all": np.arange(len(took_ns))}
    for name, wanted in (("fastest", ranked[:WANTED]), ("slowest", ranked[-WANTED:])):
        chosen = np.isin(np.arange(len(took_ns)), wanted)
        for how, measures in (("any anchors", np.ones((len(took_ns), 1))), ("matched", footprints)):
            ways[f"{name}, {how}"] = np.flatnonzero(with_anchors(chosen, took_ns, took_ns, measures, least=least))
    return ways


def shifts(
    prepared: list[Prepared], plan: Plan, ways: dict[str, NDArray[np.int64]], *, rounds: int
) -> dict[str, NDArray[np.float64]]:
    """Return how much longer each op of a way takes than among all, relative."""
    gc.collect()
    gc.disable()
    probe = [prepared[i] for i in np.linspace(0, len(prepared) - 1, PROBES).astype(int)]
    seen: dict[str, list[list[float]]] = {name: [[] for _ in prepared] for name in ways}
    before = _log_ns(probe, plan)
    for number in range(rounds):
        units = [
            (name, train)
            for place, name in enumerate(ways)
            for train in trains(shuffled(ways[name].tolist(), seed=place, round=number), length=plan.train_ops)
        ]
        for name, train in shuffled(units, seed=len(ways), round=number):
            found = _log_ns([prepared[i] for i in train], plan)
            after = _log_ns(probe, plan)
            speed = float(np.mean(before + after)) / 2
            for i, log_ns in zip(train, found, strict=True):
                seen[name][i].append(log_ns - speed)
            before = after
    effect = {name: np.array([np.median(found) if len(found) else np.nan for found in seen[name]]) for name in ways}
    return {name: np.expm1(effect[name] - effect["all"])[ways[name]] for name in ways if name != "all"}


def _log_ns(members: list[Prepared], plan: Plan) -> NDArray[np.float64]:
    blocks = time_train(members, plan, now_ns=time.perf_counter_ns, on_call=_nothing)
    return np.log([np.median(block.samples_ns) for block in blocks])


def _nothing(_: int) -> None: ...


if __name__ == "__main__":
    main()
