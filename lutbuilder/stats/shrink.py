"""Variances of few: many ops with two or three replicates each lend each other what one cannot know alone.

Source: Smyth, Linear models and empirical Bayes methods, Statistical Applications in Genetics and Molecular Biology
3(1), 2004, sections 3 and 6: the variance of each op is drawn from a scaled inverse chi-square whose scale and degrees
of freedom are estimated from all of them. With equal ops the estimate is pooled, with unequal ones it is the op's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SMALLEST = 1e-2  # of the median ratio; less says only that readings happened to agree, or that the timer is coarse
_TINY = 1e-300


def shrunk(ratio: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """Return (ratio, degrees of freedom) of every op, drawn towards what all ops have in common.

    `ratio`: mean square over what was expected of it, `freedom`: its degrees of freedom; both of shape (ops,). An op of
    0 degrees of freedom gets what the others have in common, and 1 with infinitely many if there are no others.
    """
    from scipy.special import digamma, polygamma

    some = freedom > 0
    if not some.any():
        return np.ones_like(ratio), np.full(len(ratio), np.inf)
    r, d = np.maximum(ratio[some], max(_SMALLEST * float(np.median(ratio[some])), _TINY)), freedom[some]
    common = float((d * r).sum() / d.sum())
    prior = np.inf if len(r) > 2 else 0.0  # two ops cannot tell whether ops differ
    if len(r) > 2:
        logs = np.log(r) - digamma(d / 2) + np.log(d / 2)
        excess = float(logs.var(ddof=1) - polygamma(1, d / 2).mean())
        if excess > 0:  # the ops differ by more than so few replicates explain
            prior = 2.0 * _trigamma_inverse(excess)
            common = float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))
    mixed = (prior * common + d * r) / (prior + d) if np.isfinite(prior) else np.full(len(r), common)
    factor, certain = np.full(len(ratio), common), np.full(len(ratio), prior or d.sum())
    factor[some], certain[some] = mixed, prior + d
    return factor, np.minimum(certain, d.sum())  # no more is known than all replicates together can tell


def extra_variance(mean_square: Floats, freedom: Floats, known: Floats) -> float:
    """Return what must be added to `known` variances for the mean squares to be as they are; at least 0.

    The median op decides, so that one wild op does not widen every row. Shapes (ops,).
    """
    from scipy.special import gammaincinv

    some = freedom > 0
    if not some.any():
        return 0.0
    half = freedom[some] / 2
    typical = mean_square[some] * half / gammaincinv(half, 0.5)  # median of a chi-square over its degrees of freedom
    return max(0.0, float(np.median(typical - known[some])))


def _trigamma_inverse(value: float) -> float:
    """Return x with trigamma(x) = value > 0: Newton's method on 1 / trigamma, which is nearly linear (Smyth, 2004)."""
    from scipy.special import polygamma

    x = 0.5 + 1.0 / value
    for _ in range(50):
        at = polygamma(1, x)
        step = at * (1.0 - at / value) / polygamma(2, x)
        x += step
        if abs(step) < 1e-8 * x:
            break
    return float(x)
