"""How fast the archs within a budget are counted, sampled and ranked, and what rejection takes for the same samples.

    python benchmarks/bench_budget.py [--space ofa_mbv3-w1.0 ...] [--tick 0.001] [--draws 10000] [--rounds 5] [--json]

CPU time of one thread. An op costs 0.1 ms + MACs / 1e7 ms, a phone's order, times a random factor: ticks of 1 us never
divide such costs. Exact sampling and rejection take turns; medians over the rounds are printed with their range.
Rejection is what published searches do: draw every choice on its own, keep what predict says is within the limit. That
is not uniform on archs (it favours shallow ones, cheap here, of which there are few), and gives up after 2 million
draws.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

import numpy as np
from figures import as_json, over, timed

from lutbuilder import spaces
from lutbuilder.lower import lower
from lutbuilder.nas.budget import AdditiveScore, Budget, Feasible
from lutbuilder.nas.compiled import CompiledSpace, FunctionTable, compile_space
from lutbuilder.nas.pareto import best_under, pareto_front
from lutbuilder.op import OpSpec

DEFAULT = ("ofa_mbv3-w1.0", "ofa_mbv3-w1.2")
SHARES = (0.5, 0.01, 1e-6)  # of the archs that are within the limit
MOST_DRAWN = 2_000_000
GOAL_S = 2.0  # to count, and to draw 10,000, at 1 us ticks


def uneven_ms(op: OpSpec) -> float:
    """Cost of an op, 20 % off at most from what its MACs say."""
    return (0.1 + lower(op).macs / 1e7) * (0.8 + 0.4 * int(op.op_id[:8], 16) / 2**32)


def uneven_mj(op: OpSpec) -> float:
    """Energy of an op, related to its cost."""
    return uneven_ms(op) * (0.5 + int(op.op_id[8:12], 16) / 2**16)


def limit_for(compiled: CompiledSpace, share: float, tick: float) -> float:
    """Return a limit that about `share` of the archs keep, by bisection over exact counts at a coarse tick."""
    low, high = compiled.min_over(), compiled.max_over()
    wanted = share * compiled.space.n_archs()
    coarse = max(tick, (high - low) / 2000)
    for _ in range(12):
        middle = (low + high) / 2
        if Feasible(compiled, Budget(middle), tick=coarse).count().upper < wanted:
            low = middle
        else:
            high = middle
    return high


def reject(compiled: CompiledSpace, budget: Budget, n: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return how many of how many archs drawn were within the budget, when there were `n` or at the end of patience."""
    kept = drawn = 0
    while kept < n and drawn < MOST_DRAWN:
        kept += int(budget.holds(compiled.predict(compiled.space.sample(rng, n))).sum())
        drawn += n
    return kept, drawn


def measure_limit(compiled: CompiledSpace, budget: Budget, *, tick: float, draws: int, rounds: int) -> dict[str, Any]:
    """Return the figures of one limit: exact sampling and rejection in turn."""

    def count_and_sample(seed: int) -> tuple[Feasible, float]:
        feasible = Feasible(compiled, budget, tick=tick)
        feasible.count()
        return feasible, feasible.draw(np.random.default_rng(seed), draws).acceptance

    seen = []
    for seed in range(rounds):
        exact_s, (feasible, acceptance) = timed(partial(count_and_sample, seed))
        rejection_s, (kept, drew) = timed(partial(reject, compiled, budget, draws, np.random.default_rng(seed)))
        ratio, (marginals_s, _) = rejection_s / exact_s, timed(feasible.marginals)
        seen.append({"count_and_sample_s": exact_s, "rejection_over_exact": ratio, "marginals_s": marginals_s})
    count = feasible.count()
    return {
        "limit_ms": budget.max_cost,
        "lower": count.lower,
        "upper": count.upper,
        "acceptance": acceptance,
        "rejection_kept": kept,
        "rejection_drew": drew,
        **over(seen),
    }


def measure(name: str, *, tick: float, draws: int, rounds: int) -> dict[str, Any]:
    """Return every figure by name; the unit is in the name."""
    space = spaces.get(name)
    compiled = compile_space(space, FunctionTable(name="uneven", cost=uneven_ms))
    figures: dict[str, Any] = {"space": name, "archs": space.n_archs(), "tick_ms": tick, "draws": draws}
    for share in SHARES:
        budget = Budget(limit_for(compiled, share, tick))
        figures[f"{share:g}"] = measure_limit(compiled, budget, tick=tick, draws=draws, rounds=rounds)
    rng = np.random.default_rng(0)
    score = AdditiveScore(space=space, values=[rng.random(size) for size in space.sizes])
    budget = Budget(figures["0.01"]["limit_ms"])
    figures["best_under_s"], _ = timed(lambda: best_under(compiled, score, budget))
    figures["exact_front_s"], front = timed(lambda: pareto_front(compiled, score))
    figures["exact_front_points"] = len(front.costs)
    energy = compile_space(space, FunctionTable(name="energy", cost=uneven_mj), "energy_mj")
    also = (energy, Budget(limit_for(energy, 0.01, tick)))

    def two_budgets() -> float:
        feasible = Feasible(compiled, budget, also=[also])
        feasible.count()
        return feasible.draw(np.random.default_rng(0), draws).acceptance

    figures["two_budgets_s"], figures["two_budgets_acceptance"] = timed(two_budgets)
    return figures


def show(figures: dict[str, Any]) -> None:
    """Print the figures of one space."""
    print(
        f"{figures['space']}: {figures['archs']:.4g} archs, ticks of {figures['tick_ms'] * 1e3:g} us, "
        f"{figures['draws']} draws, medians (range)"
    )
    for share in SHARES:
        at = figures[f"{share:g}"]
        print(
            f"  limit {at['limit_ms']:7.3f} ms: {at['lower']:.6g} to {at['upper']:.6g} archs, 1 in "
            f"{figures['archs'] / at['upper']:.3g}; acceptance {at['acceptance']:.3f}"
        )
        print(f"    count + sample {at['count_and_sample_s'].text('s', digits=3, at_most=GOAL_S)}")
        print(f"    marginals      {at['marginals_s'].text('s', digits=3)}")
        kept = f"x the time for {at['rejection_kept']:,} kept of {at['rejection_drew']:,}"
        print(f"    rejection      {at['rejection_over_exact'].text(kept)}")
    print(f"  best score under {figures['0.01']['limit_ms']:.3f} ms, exact   {figures['best_under_s']:6.3f} s")
    print(f"  exact front, {figures['exact_front_points']} points           {figures['exact_front_s']:6.3f} s")
    print(
        f"  latency and energy limit, 256 x 256 ticks {figures['two_budgets_s']:6.3f} s (acceptance "
        f"{figures['two_budgets_acceptance']:.3f})"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", nargs="+", default=DEFAULT)
    parser.add_argument("--tick", type=float, default=1e-3, help="ms")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for name in given.space:
        figures = measure(name, tick=given.tick, draws=given.draws, rounds=given.rounds)
        if given.json:
            print(as_json(figures))
        else:
            show(figures)


if __name__ == "__main__":
    main()
