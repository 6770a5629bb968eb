"""Two tables row by row: which ops changed, which did not, and how far both answers can be wrong.

What is compared are log ratios d[i] = log(b[i] / a[i]) with their standard errors s[i]. Two collections of one and the
same target already differ by a scale common to all ops (another session, another frequency), so

    d[i] = scale + change[i] + error[i],    error[i] ~ N(0, s[i]^2)
    change[i] ~ N(0, scatter^2) with probability 1 - changed, else N(0, (5 * effect)^2)

Scale, scatter and the share of changed rows are estimated from all rows together. That is what makes SAME attainable:
an interval of +-2 % in both tables says +-2.8 % of their ratio and alone never proves a difference below 2 %, but where
seventy rows stand still, a seventy-first without a sign of moving most likely stands still too.

Sources: two-groups model, Efron, Statistical Science 23(1), 2008; common scale and scatter of estimates with known
errors, DerSimonian and Laird, Controlled Clinical Trials 7(3), 1986; false discovery rate, Benjamini and Hochberg,
JRSS B 57(1), 1995.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutbuilder_agent.errors import ShapeError

Floats = NDArray[np.float64]

MIN_ROWS = 10  # below, the rows do not say what is common to them, and every one speaks for itself alone
_CHANGED_SD = 5.0  # how far a changed row moves, in minimum effects: a tenth is typical for 2 %
_SCATTERS = 11  # values of `scatter` that are tried, from 0 to half the minimum effect: what moves more has changed
_SLACK = 0.5  # log likelihood that a smaller scatter may lose
_STEPS = 60
_SETTLED = 1e-7
_PSEUDO_ROWS = 1.0  # a changed and an unchanged row nobody saw: a short table does not prove that nothing changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two tables say of each other; logs of ratios b / a. Shapes (n,) are of the rows, in their order.

    `change` is each row's log ratio without the common scale (with it where it was not taken out), `change_sd` its
    standard error. `adjusted_p` is the Benjamini-Hochberg adjusted p-value of no change, `p_same` the probability that
    the change is smaller than the minimum effect, given how all rows behave. `moved_share`: estimated share of changed
    rows. `common`: whether scale, scatter and share could be estimated at all (`MIN_ROWS`).
    """

    change: Floats
    change_sd: Floats
    adjusted_p: Floats
    p_same: Floats
    scale: float
    scale_sd: float
    scatter: float
    moved_share: float
    common: bool


def compare(log_ratio: Floats, log_sd: Floats, *, effect: float, absolute: bool = False) -> Comparison:
    """Return what the log ratios of two tables' rows say; `effect` is the smallest relative change that matters.

    `absolute` leaves the common scale in the changes. Raises ShapeError for vectors that do not fit each other, or a
    standard error that is not positive.
    """
    if log_ratio.shape != log_sd.shape or log_ratio.ndim != 1 or not (log_sd > 0).all():
        raise ShapeError(
            f"need two equal vectors, the second positive, got shapes {log_ratio.shape} and {log_sd.shape}"
        )
    from scipy.special import ndtr

    least = float(np.log1p(effect))
    spread = _CHANGED_SD * least
    common = len(log_ratio) >= MIN_ROWS
    if common:
        told = _together(log_ratio, log_sd, least=least, spread=spread)
    else:
        told = _Together(scale=0.0, scale_sd=0.0, scatter=0.0, share=0.5, stays=np.zeros(len(log_ratio)))
    rest = log_ratio - told.scale
    change = log_ratio if absolute else rest
    change_sd = np.hypot(log_sd, told.scale_sd)
    p = 2.0 * ndtr(-np.abs(change) / np.hypot(change_sd, told.scatter))
    kept = told.scale if absolute else 0.0
    within = [_within(rest, change_sd, prior, kept=kept, least=least) for prior in (told.scatter, spread)]
    return Comparison(
        change=change,
        change_sd=change_sd,
        adjusted_p=adjusted(p),
        p_same=told.stays * within[0] + (1.0 - told.stays) * within[1],
        scale=told.scale,
        scale_sd=told.scale_sd,
        scatter=told.scatter,
        moved_share=told.share,
        common=common,
    )


def adjusted(p: Floats) -> Floats:
    """Return Benjamini-Hochberg adjusted p-values: those at most q together hold a share q of false discoveries.

    The same as scipy.stats.false_discovery_control, whose import takes longer than the whole comparison.
    """
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    result = np.empty_like(p)
    result[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Together:
    scale: float
    scale_sd: float
    scatter: float
    share: float
    stays: Floats  # (n,) probability that a row is not among the changed ones


def _together(log_ratio: Floats, log_sd: Floats, *, least: float, spread: float) -> _Together:
    """Fit the model of the module by expectation maximisation, for all values of the scatter at once.

    The smallest scatter that is nearly as likely as the best one wins: intervals that cover need none.
    """
    scatter = np.linspace(0.0, 0.5 * least, _SCATTERS)[:, None]
    narrow, wide = log_sd**2 + scatter**2, log_sd**2 + spread**2
    scale = np.full((_SCATTERS, 1), np.median(log_ratio))
    share = np.full((_SCATTERS, 1), 0.1)
    for _ in range(_STEPS):
        stays, likelihood = _split(log_ratio - scale, narrow, wide, share)
        weights = stays / narrow
        before = scale
        scale = (weights @ log_ratio / np.maximum(weights.sum(axis=1), 1e-300))[:, None]
        share = (((1.0 - stays).sum(axis=1) + _PSEUDO_ROWS) / (len(log_ratio) + 2.0 * _PSEUDO_ROWS))[:, None]
        if np.abs(scale - before).max() < _SETTLED:
            break
    best = int(np.argmax(likelihood >= likelihood.max() - _SLACK))
    return _Together(
        scale=float(scale[best, 0]),
        scale_sd=float(weights[best].sum() ** -0.5),
        scatter=float(scatter[best, 0]),
        share=float(share[best, 0]),
        stays=stays[best],
    )


def _split(rest: Floats, narrow: Floats, wide: Floats, share: Floats) -> tuple[Floats, Floats]:
    """Return the probability of each row to be unchanged, and the log likelihood; in logs, or a far row divides 0/0."""
    unchanged = np.log1p(-share) - 0.5 * (rest**2 / narrow + np.log(narrow))
    changed = np.log(share) - 0.5 * (rest**2 / wide + np.log(wide))
    either = np.logaddexp(unchanged, changed)
    stays: Floats = np.exp(unchanged - either)
    likelihood: Floats = either.sum(axis=1)
    return stays, likelihood


def _within(rest: Floats, sd: Floats, prior: float, *, kept: float, least: float) -> Floats:
    """Return the probability that |kept + change| <= least, for a change ~ N(0, prior^2) seen as `rest` +- `sd`."""
    from scipy.special import ndtr

    prior = max(prior, 1e-6)  # a millionth: nothing, but no division by nothing
    share = prior**2 / (sd**2 + prior**2)
    middle, width = kept + share * rest, sd * np.sqrt(share)
    inside: Floats = ndtr((least - middle) / width) - ndtr((-least - middle) / width)
    return inside
