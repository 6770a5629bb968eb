"""How often `lutbuilder luts diff` is right and wrong: simulated tables whose every change is known.

    python benchmarks/diff_error_rates.py

Two tables of 70 ops (or as many as said) whose 95 % intervals have the half-widths said, with a scale of 1.7 % between
them. First nothing changed (A/A): rows called SAME, pairs of tables with 95 % of their rows called SAME, pairs with any
row called FASTER or SLOWER. Then one op is 5 % slower: how often it is called SLOWER, UNSURE, and (wrongly) SAME. The
last line has rows that scatter by 0.7 % more than their intervals say, as sessions of one machine do. Takes 20 s.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from lutbuilder.lut.diff import FALSE_DISCOVERIES, SURE
from lutbuilder.stats.compare import compare

PAIRS = 1000
EFFECT = 0.02
CHANGE = np.log(1.05)
SETTINGS = [  # rows, half-widths from, to, scatter beyond them
    (70, 0.005, 0.01, 0.0),
    (70, 0.01, 0.01, 0.0),
    (70, 0.015, 0.015, 0.0),
    (70, 0.02, 0.02, 0.0),
    (70, 0.025, 0.025, 0.0),
    (70, 0.01, 0.025, 0.0),
    (30, 0.01, 0.025, 0.0),
    (200, 0.01, 0.025, 0.0),
    (70, 0.01, 0.02, 0.007),
]


def verdicts(log_ratio: np.ndarray, log_sd: np.ndarray) -> np.ndarray:
    """What `diff` calls the rows."""
    told = compare(log_ratio, log_sd, effect=EFFECT)
    changed = (told.adjusted_p <= FALSE_DISCOVERIES) & (np.abs(told.change) >= np.log1p(EFFECT))
    return np.where(
        changed, np.where(told.change > 0, "SLOWER", "FASTER"), np.where(told.p_same >= SURE, "SAME", "UNSURE")
    )


def main() -> None:
    """Print a line a setting."""
    print("rows  half-widths  scatter |  A/A: SAME  95% SAME  any change | +5 %: SLOWER  UNSURE  SAME")
    rng = np.random.default_rng(0)
    for rows, low, high, scatter in SETTINGS:
        same, mostly, wrong, found = [], [], [], Counter()
        for _ in range(PAIRS):
            halves = rng.uniform(low, high, (2, rows))
            log_sd = np.hypot(*halves) / 1.959964
            log_ratio = rng.normal(0.017, np.hypot(log_sd, scatter))
            called = verdicts(log_ratio, log_sd)
            same.append(np.mean(called == "SAME"))
            mostly.append(same[-1] >= 0.95)
            wrong.append(np.isin(called, ("FASTER", "SLOWER")).any())
            log_ratio[0] += CHANGE
            found[str(verdicts(log_ratio, log_sd)[0])] += 1
        print(
            f"{rows:4}  {low:5.1%}-{high:5.1%}  {scatter:7.1%} | {np.mean(same):10.1%} {np.mean(mostly):9.1%} "
            f"{np.mean(wrong):11.1%} | {found['SLOWER'] / PAIRS:12.1%} {found['UNSURE'] / PAIRS:7.1%} "
            f"{found['SAME'] / PAIRS:5.1%}"
        )


if __name__ == "__main__":
    main()
