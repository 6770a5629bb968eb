"""Calibration: values of ops corrected by whole networks, so that a plain sum of them predicts networks better.

    log measured[network] = log sum(counts x value x exp(effect)) + noise[network] + own[network]

An effect is what networks say of an op beyond its row. Its prior is normal around 0 with a covariance that is a sum of
patterns (`Pattern`): all ops together, ops of a kind, each op on its own. How large each pattern is follows from the
networks themselves, by evidence: where they say nothing it stays small, and the values stay the rows'. `noise` is known
from replicates, `own` (what no sum can explain) is estimated like a pattern. One network that is far off is given
little weight, as if its noise were Student's. Values are positive whatever the networks say, and they are a plain sum.

Sources: evidence and posterior, MacKay, Bayesian interpolation, Neural Computation 4(3), 1992; leave-one-out in closed
form, Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, section 5.4.2; weights of Student's t, Lange,
Little & Taylor, JASA 84(408), 1989.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lutbuilder_agent.errors import ShapeError, SpecError

Floats = NDArray[np.float64]
Method = Literal["none", "affine", "ridge"]
METHODS: tuple[Method, ...] = ("none", "affine", "ridge")  # in order of need: the simplest first

LEAST_NETWORKS = 6
OUTLIER = 4.0  # standard errors a network is off from what the others say of it
WORTH_IT = 0.95  # affine has to bring the leave-one-out error below so much of the best other's
_FREEDOM = 4.0  # of Student's t: a network 4 standard errors off weighs a quarter, one 40 off a 300th
# Log-normal prior of a pattern's standard deviation: its typical one (0.3 % for what no sum explains) within a factor
# of e^2 either way. Weak: it keeps patterns that few networks tell apart from running off to 0 or to infinity.
_TYPICAL_OWN_SD = 0.003
_LOG_SD_SD = 2.0
_SD_BOUNDS = (1e-4, 2.0)
_OTHER_START = 3.0
_HESSIAN_STEP = 1e-3
_DRAWS = 64
_MAX_STEPS = 50
_SETTLED = 1e-4  # relative; a tenth of the best table's error
_MANY = 1e6  # degrees of freedom that are as good as infinitely many
_LEAST_NOISE = 1e-6  # a network known better than that would be an equation, not a measurement
_OVERHEAD_FLOOR_MS = 1e-6  # 1 ns: what is left of a call overhead that an intercept would make negative


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """What was measured. Shapes: n networks, m terms (ops, and the call overheads that networks begin with).

    `counts` (n, m): how often a network contains each term; `overhead` (m,) says which terms are call overheads, of
    which every network has exactly one. `measured_ms` (n,), `noise` (n,): its relative standard error, by replicates.
    """

    counts: Floats
    overhead: NDArray[np.bool_]
    measured_ms: Floats
    noise: Floats

    def __post_init__(self) -> None:
        n, m = self.counts.shape if self.counts.ndim == 2 else (-1, -1)
        if self.overhead.shape != (m,) or self.measured_ms.shape != (n,) or self.noise.shape != (n,):
            raise ShapeError(
                f"counts {self.counts.shape}, overhead {self.overhead.shape}, measured_ms {self.measured_ms.shape} and "
                f"noise {self.noise.shape} do not go together"
            )
        if n < LEAST_NETWORKS:
            raise SpecError(f"a calibration needs at least {LEAST_NETWORKS} networks, got {n}")
        positive = (self.measured_ms, self.noise)
        if not all(np.isfinite(v).all() and (v > 0).all() for v in positive) or not np.isfinite(self.counts).all():
            raise SpecError("counts must be finite, measured times and their noise finite and positive")
        if (self.counts < 0).any() or (self.counts[:, self.overhead].sum(axis=1) != 1).any():
            raise SpecError("every network contains each op 0 times or more, and exactly one call overhead")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A way in which true values may differ from the rows: log effects are factors x normal(0, sd).

    `factors` (m, k): a column of ones for what all terms share, a column a group; or (m,): each term on its own, times
    its factor. `sd` None: estimated from the networks, `typical_sd` being the middle of its prior.
    """

    name: str
    factors: Floats
    sd: float | None = None
    typical_sd: float = 0.02

    def seen(self, shares: Floats) -> Floats:
        """Return shares @ factors, shape (n, k)."""
        return np.asarray(shares * self.factors if self.factors.ndim == 1 else shares @ self.factors)

    def spread(self, seen: Floats) -> Floats:
        """Return factors @ seen.T, shape (m, n)."""
        return np.asarray(self.factors[:, None] * seen.T if self.factors.ndim == 1 else self.factors @ seen.T)

    def variance(self) -> Floats:
        """Return the variance of each term's effect at sd 1, shape (m,)."""
        squares = self.factors**2
        return np.asarray(squares if squares.ndim == 1 else squares.sum(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What one method makes of the rows.

    `values_ms` (m,); `log_sd` (m,): standard error of their logarithm; `loo` (n,): relative error predicted / measured
    - 1 of every network, predicted without it; `loo_error`: their root mean square, outliers weighted down. `scales`:
    standard deviations of patterns (ridge), or intercept_ms and slope (affine).
    """

    method: Method
    values_ms: Floats
    log_sd: Floats
    loo: Floats
    loo_error: float
    scales: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All three methods and the one to take. `weights` (n,) from 0 to 1, `distance` (n,): how many standard errors a
    network is off from what the others say of it; `outliers`: numbers of the networks further off than OUTLIER.
    """

    method: Method
    fits: tuple[Fit, ...]
    weights: Floats
    distance: Floats
    outliers: tuple[int, ...]

    @property
    def chosen(self) -> Fit:
        """The fit of the method to take."""
        return self.of(self.method)

    def of(self, method: Method) -> Fit:
        """Return the fit of a method."""
        return next(fit for fit in self.fits if fit.method == method)


def calibrate(networks: Networks, prior_ms: Floats, prior_sd: Floats, patterns: Sequence[Pattern]) -> Calibration:
    """Return the corrected values by all methods, and the method whose leave-one-out error is worth its freedom.

    `prior_ms` (m,): values of the rows, positive; `prior_sd` (m,): their own relative standard errors, which are a
    pattern of known size: each term on its own. Raises ShapeError, SpecError for values that are not positive.

    Methods: none (the rows as they are); affine `a + b x sum` by relative least squares, `a` going into the call
    overheads, of which every network has one, and which stay positive (`a` is bounded by that); ridge as described
    above.
    """
    m = networks.counts.shape[1]
    if prior_ms.shape != (m,) or prior_sd.shape != (m,) or any(p.factors.shape[:1] != (m,) for p in patterns):
        raise ShapeError(f"priors and patterns must have {m} terms, as the networks do")
    if not (np.isfinite(prior_ms).all() and (prior_ms > 0).all() and np.isfinite(prior_sd).all()):
        raise SpecError("values of rows must be finite and positive, their standard errors finite")
    own_rows = Pattern(name="row", factors=prior_sd, sd=1.0)
    ridge = _ridge(networks, prior_ms, (own_rows, *patterns))
    weights = ridge.weights
    predicted = networks.counts @ prior_ms
    untouched = predicted / networks.measured_ms - 1.0
    fits = (
        Fit(
            method="none", values_ms=prior_ms, log_sd=prior_sd, loo=untouched, scales={},
            loo_error=_rms(untouched, weights),
        ),
        _affine(networks, prior_ms, prior_sd, weights),
        Fit(
            method="ridge",
            values_ms=prior_ms * np.exp(ridge.effects),
            log_sd=ridge.effects_sd,
            loo=ridge.loo,
            loo_error=_rms(ridge.loo, weights),
            scales=MappingProxyType(ridge.scales),
        ),
    )  # fmt: skip  # one record, one line
    none, affine, shrunk = fits
    best = shrunk if shrunk.loo_error < none.loo_error else none
    if affine.loo_error < WORTH_IT * best.loo_error:  # it shrinks nothing, so by luck it is best too often
        best = affine
    return Calibration(
        method=best.method,
        fits=fits,
        weights=weights,
        distance=ridge.distance,
        outliers=tuple(np.flatnonzero(np.abs(ridge.distance) > OUTLIER).tolist()),
    )


def excess(fit: Fit, networks: Networks, weights: Floats, *, noise_freedom: float) -> tuple[float, float]:
    """Return how many times its noise a method's leave-one-out error is, and the probability of so much by noise alone.

    An F test of the weighted mean square error against the noise's, which is known with `noise_freedom` degrees of
    freedom. What a fit without the network lacks is taken for an error too.
    """
    from scipy.special import fdtrc

    noise = _rms(networks.noise, weights)
    ratio = fit.loo_error / noise
    return ratio, float(fdtrc(float(weights.sum()), min(noise_freedom, _MANY), ratio**2))


# --- Affine


def _affine(networks: Networks, prior_ms: Floats, prior_sd: Floats, weights: Floats) -> Fit:
    predicted, measured = networks.counts @ prior_ms, networks.measured_ms
    design = np.column_stack([np.ones_like(predicted), predicted]) / measured[:, None]
    (intercept, slope), hat, inverse = _least_squares(design, weights)
    lowest = float(prior_ms[networks.overhead].min()) - _OVERHEAD_FLOOR_MS
    if slope <= 0.0 or intercept < -slope * lowest:
        # The bound holds: a = -b x the smallest overhead, and b is fitted to what is left of the sums. Networks that
        # become faster as their sums grow leave nothing but a scale.
        lowest = lowest if slope > 0.0 else 0.0
        design = ((predicted - lowest) / measured)[:, None]
        (slope,), hat, inverse = _least_squares(design, weights)
        intercept = -slope * lowest
    residual = ((intercept + slope * predicted) / measured) - 1.0
    loo = residual / (1.0 - np.diag(hat))
    values = slope * prior_ms + np.where(networks.overhead, intercept, 0.0)
    freedom = max(1.0, float(weights.sum()) - design.shape[1])
    slope_sd = float(np.sqrt(inverse[-1, -1] * (weights * residual**2).sum() / freedom)) / slope
    return Fit(
        method="affine",
        values_ms=values,
        log_sd=np.hypot(prior_sd, slope_sd),
        loo=loo,
        loo_error=_rms(loo, weights),
        scales=MappingProxyType({"intercept_ms": float(intercept), "slope": float(slope)}),
    )


def _least_squares(design: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the coefficients that bring design x coefficients nearest to 1, the hat matrix, and (X'WX)^-1."""
    weighted = design * weights[:, None]
    inverse = np.linalg.pinv(design.T @ weighted)
    hat = design @ inverse @ weighted.T
    return inverse @ weighted.sum(axis=0), hat, inverse


# --- Ridge


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ridge:
    effects: Floats
    effects_sd: Floats
    loo: Floats
    weights: Floats
    distance: Floats
    scales: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """The sums linearised around some effects: target = shares @ effects + noise. Shapes (n,), (n, m), (n,), (n,)."""

    target: Floats
    shares: Floats
    noise2: Floats
    weights: Floats
    patterns: tuple[Pattern, ...]

    def posterior(self, log_sd: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return effects (m,), their variances (m,), what the other networks leave of each target, and its variance.

        `log_sd`: sizes of the patterns that are estimated, then of what no sum explains.
        """
        variances, own2 = self._sizes2(log_sd)
        noise2 = self.noise2 + own2
        reach = np.tensordot(variances, self._reach, 1)
        inverse = np.linalg.inv(np.tensordot(variances, self._grams, 1) + np.diag(noise2 / self.weights))
        told = reach @ inverse
        left_out = (inverse @ self.target) / np.diag(inverse)
        return (
            told @ self.target,
            np.maximum(variances @ self._spreads - (told * reach).sum(axis=1), 0.0),
            left_out,
            1.0 / np.diag(inverse) - noise2 / self.weights + noise2,
        )

    def surprise(self, log_sd: Floats) -> tuple[float, Floats]:
        """Return minus the log evidence of the sizes, their prior included, and its gradient."""
        variances, own2 = self._sizes2(log_sd)
        total = np.tensordot(variances, self._grams, 1) + np.diag((self.noise2 + own2) / self.weights)
        lower = np.linalg.cholesky(total)
        inverse = np.linalg.inv(lower)
        inverse = inverse.T @ inverse
        solved = inverse @ self.target
        away = (log_sd - self.typical) / _LOG_SD_SD
        value = 0.5 * self.target @ solved + np.log(np.diag(lower)).sum() + 0.5 * away @ away
        unknown = [gram for gram, pattern in zip(self._grams, self.patterns, strict=True) if pattern.sd is None]
        slopes = [(inverse * gram).sum() - solved @ gram @ solved for gram in unknown]
        slopes.append((np.diag(inverse) / self.weights).sum() - (solved**2 / self.weights).sum())
        return float(value), np.exp(2.0 * log_sd) * np.array(slopes) + away / _LOG_SD_SD

    @cached_property
    def typical(self) -> Floats:
        """The middle of the prior of `log_sd`."""
        return np.log([*(pattern.typical_sd for pattern in self.patterns if pattern.sd is None), _TYPICAL_OWN_SD])

    def _sizes2(self, log_sd: Floats) -> tuple[Floats, float]:
        """Return the variance of every pattern, and of what no sum explains."""
        estimated = iter(np.exp(2.0 * log_sd).tolist())
        variances = [next(estimated) if pattern.sd is None else pattern.sd**2 for pattern in self.patterns]
        return np.array(variances), next(estimated)

    # What patterns of size 1 are: seen by networks (n, n), between terms and networks (m, n), of each term (m,).

    @cached_property
    def _grams(self) -> Floats:
        return np.array([seen @ seen.T for seen in (pattern.seen(self.shares) for pattern in self.patterns)])

    @cached_property
    def _reach(self) -> Floats:
        return np.array([pattern.spread(pattern.seen(self.shares)) for pattern in self.patterns])

    @cached_property
    def _spreads(self) -> Floats:
        return np.array([pattern.variance() for pattern in self.patterns])


def _ridge(networks: Networks, prior_ms: Floats, patterns: tuple[Pattern, ...]) -> _Ridge:
    log_y = np.log(networks.measured_ms)
    noise2 = np.maximum(networks.noise, _LEAST_NOISE) ** 2
    off = log_y - np.log(networks.counts @ prior_ms)
    effects = np.full(len(prior_ms), np.median(off))  # where the sums are linearised first; the prior stays around 0
    off = off - np.median(off)
    weights = _student_weights(off / max(1.4826 * float(np.median(np.abs(off))), float(np.sqrt(noise2.max()))))
    start: Floats | None = None
    for _ in range(_MAX_STEPS):
        values = prior_ms * np.exp(effects)
        total = networks.counts @ values
        shares = networks.counts * values / total[:, None]
        linear = _Linear(
            target=log_y - np.log(total) + shares @ effects,
            shares=shares,
            noise2=noise2,
            weights=weights,
            patterns=patterns,
        )
        log_sd = start = _most_evident(linear, start)
        before = effects
        effects, variance, left_out, variance_left_out = linear.posterior(log_sd)
        distance = left_out / np.sqrt(variance_left_out)
        weights = _student_weights(distance)
        if max(np.abs(effects - before).max(), np.abs(weights - linear.weights).max()) < _SETTLED:
            break
    names = [pattern.name for pattern in patterns if pattern.sd is None]
    return _Ridge(
        effects=effects,
        effects_sd=np.sqrt(variance + _doubt(linear, log_sd)),
        loo=np.expm1(-left_out),
        weights=linear.weights,
        distance=distance,
        scales=dict(zip((*names, "own"), np.exp(log_sd).tolist(), strict=True)),
    )


def _most_evident(linear: _Linear, start: Floats | None) -> Floats:
    """Return the log sizes of the patterns to be estimated, `own` last, under which the target is most likely."""
    from scipy.optimize import minimize

    bounds = [(np.log(_SD_BOUNDS[0]), np.log(_SD_BOUNDS[1]))] * len(linear.typical)
    starts = [start] if start is not None else [linear.typical, linear.typical + np.log(_OTHER_START)]
    found = [minimize(linear.surprise, at, jac=True, method="L-BFGS-B", bounds=bounds) for at in starts]
    return np.asarray(min(found, key=lambda each: float(each.fun)).x, dtype=np.float64)


def _doubt(linear: _Linear, log_sd: Floats) -> Floats:
    """Return what not knowing the sizes adds to the variances of the effects, shape (m,).

    By the law of total variance over the sizes, which are about normal around `log_sd` (Laplace's method): few networks
    may find a pattern small that is not, and an interval has to hold that.
    """
    steps = _HESSIAN_STEP * np.eye(len(log_sd))
    slopes = [linear.surprise(log_sd + step)[1] - linear.surprise(log_sd - step)[1] for step in steps]
    values, vectors = np.linalg.eigh((np.array(slopes) + np.array(slopes).T) / (4 * _HESSIAN_STEP))
    root = vectors / np.sqrt(np.maximum(values, _LOG_SD_SD**-2))  # never vaguer than the prior of the sizes
    _, variance, _, _ = linear.posterior(log_sd)
    draws = np.random.default_rng(0).standard_normal((_DRAWS // 2, len(log_sd)))
    sizes = np.clip(log_sd + np.concatenate([draws, -draws]) @ root.T, *np.log(_SD_BOUNDS))
    drawn = [linear.posterior(each)[:2] for each in sizes]
    total = np.mean([v for _, v in drawn], axis=0) + np.var([e for e, _ in drawn], axis=0)
    return np.asarray(np.maximum(total - variance, 0.0))


def _student_weights(distance: Floats) -> Floats:
    return np.minimum(1.0, (_FREEDOM + 1.0) / (_FREEDOM + distance**2))


def _rms(errors: Floats, weights: Floats) -> float:
    return float(np.sqrt((weights * errors**2).sum() / weights.sum()))
