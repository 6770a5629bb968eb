"""How long the two-way fit takes: a look at a campaign's visits must not keep its agent waiting.

    python benchmarks/bench_stats.py [--ops 300] [--rounds 60] [--repeats 9] [--json]

The visits are simulated: two machine states, AR(1) noise, three instances of every op. Prints medians over the repeats;
the goal is 2 s for the fit of 300 ops x 60 rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

import numpy as np
from scipy.signal import lfilter

from lutbuilder.stats.drift import fit
from lutbuilder.stats.interval import estimate_from
from lutbuilder.stats.records import Visits

GOAL_S = 2.0
_DWELL = 60.0  # mean visits in a machine state
_SLOW = 1.7
_NOISE, _RHO = 0.02, 0.5  # of log time, from one visit to the next
_INSTANCES, _INSTANCE_SIGMA = 3, 0.01


def simulated(n_ops: int, rounds: int, *, seed: int) -> Visits:
    """Return `rounds` shuffled rounds over `n_ops` ops on a machine of two speeds."""
    rng = np.random.default_rng(seed)
    n = n_ops * rounds
    op = np.concatenate([rng.permutation(n_ops) for _ in range(rounds)])
    round_, order = np.divmod(np.arange(n), n_ops)
    truth = np.linspace(np.log(5e4), np.log(5e6), n_ops)
    instance = round_ % _INSTANCES
    effect = _INSTANCE_SIGMA * rng.standard_normal((n_ops, _INSTANCES))
    is_slow = np.cumsum(rng.random(n) < 1.0 / _DWELL) % 2
    noise = _NOISE * np.sqrt(1 - _RHO**2) * lfilter([1.0], [1.0, -_RHO], rng.standard_normal(n))
    block_ns = np.exp(truth[op] + effect[op, instance] + np.log(_SLOW) * is_slow + noise)
    return Visits(
        op_ids=tuple(f"op{i}" for i in range(n_ops)),
        session_ids=("session",),
        op=op,
        session=np.zeros(n, np.int64),
        round=round_,
        order=order,
        instance=instance,
        start_ns=np.arange(n) * 14_000_000,
        block_ns=block_ns,
        p90_ns=1.1 * block_ns,
        n_calls=np.full(n, 10),
        n_preempted=np.zeros(n, np.int64),
    )


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call took, in s."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(n_ops: int, rounds: int, repeats: int) -> dict[str, float]:
    """Return every figure by name; the unit is in the name. Every repeat has other visits."""
    fit(simulated(10, 6, seed=0))  # scipy is loaded
    fits, plain, estimates, steps = [], [], [], []
    for repeat in range(repeats):
        visits = simulated(n_ops, rounds, seed=repeat)
        drift = fit(visits)
        steps.append(drift.steps)
        fits.append(seconds(partial(fit, visits)))
        plain.append(seconds(partial(fit, visits, steady=True)))
        estimates.append(seconds(partial(estimate_from, visits, drift)))
    return {
        "two_way_fit_s": median(fits),
        "two_way_fit_worst_s": max(fits),
        "plain_medians_s": median(plain),
        "estimates_s": median(estimates),
        "steps": median(steps),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = measure(given.ops, given.rounds, given.repeats)
    if given.json:
        print(json.dumps({"ops": given.ops, "rounds": given.rounds, "repeats": given.repeats, **figures}))
        return
    print(f"{given.ops} ops x {given.rounds} rounds, simulated visits, one core, median of {given.repeats}")
    print(f"two-way fit                   {figures['two_way_fit_s']:8.3f} s   (goal {GOAL_S:g} s)")
    print(f"the same, worst of all        {figures['two_way_fit_worst_s']:8.3f} s")
    print(f"plain medians                 {figures['plain_medians_s']:8.3f} s")
    print(f"estimates with intervals      {figures['estimates_s']:8.3f} s")
    print(f"steps until it settled        {figures['steps']:8.0f}")


if __name__ == "__main__":
    main()
