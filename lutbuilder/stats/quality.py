"""How well a table predicts whole networks: error, rank, floors and baselines, each with a bootstrap interval.

Definitions follow nn-Meter (Zhang et al., MobiSys 2021) for ±5 % and ±10 % accuracy and RMSPE. All errors are relative
to the measured network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lutbuilder_agent.errors import ShapeError, SpecError

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure and its 95 % bootstrap interval over networks."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Errors of one predictor over networks; fractions (0.01 is 1 %), rank correlations from -1 to 1."""

    n: int
    mape: Figure
    rmspe: Figure
    bias: Figure
    within_5: Figure
    within_10: Figure
    spearman: Figure
    kendall: Figure
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkResult:
    """One held-out network: measured and predicted milliseconds. `group` is random or searched."""

    op_id: str
    group: str
    measured_ms: float
    predicted_ms: float
    undrifted_ms: float  # predicted by medians without a drift model, from the same visits
    macs: int
    n_ops: int
    n_visits: int
    n_instances: int
    test_retest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """A LUT against held-out networks timed in the same rounds as its ops (measurement.md, "Whole networks")."""

    lut_sum: Accuracy  # the plain sum of rows
    undrifted: Accuracy  # the same sum from plain medians of the same visits, truth from plain medians too
    published: Accuracy | None  # the table as it was before this session, its scale taken from the ops of this session
    flops_linear: Accuracy  # baseline: a + b * MACs, fitted on these very networks
    depth_linear: Accuracy  # baseline: a + b * number of ops, fitted on these very networks
    deciles: tuple[float, ...]  # MAPE of the plain sum in tenths of the networks, fastest first
    test_retest_floor: float | None  # median relative difference of a network's even and odd rounds; None below 4
    instance_floor: float | None  # standard deviation between instances of one network, relative, pooled; None for one
    op_instance_sd: float | None  # the same between instances of one op
    session_scale: float | None  # how much faster or slower this session was than the published table
    networks_sha256: str  # of the list of networks, fixed before timing
    rounds: int
    wall_s: float
    timed_fraction: float
    networks: tuple[NetworkResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the LUT's footer and for --json."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ValidationReport:
        """Inverse of `to_json`. Raises SpecError for anything else."""
        report: ValidationReport = _read(cls, body, "report")
        return report


def accuracy(predicted_ms: NDArray[np.float64], measured_ms: NDArray[np.float64], *, seed: int = 0) -> Accuracy:
    """Return the errors of `predicted_ms` against `measured_ms`, both of shape (networks,), at least 3 networks."""
    if predicted_ms.shape != measured_ms.shape or predicted_ms.ndim != 1 or len(predicted_ms) < 3:
        raise ShapeError(f"need two equal vectors of at least 3, got {predicted_ms.shape} and {measured_ms.shape}")
    n = len(predicted_ms)
    picks = np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))
    picks = picks[np.ptp(picks, axis=1) > 0]  # one network drawn n times has no rank
    error = predicted_ms / measured_ms - 1.0

    def mean_of(values: NDArray[np.float64], *, root: bool = False) -> Figure:
        draws = values[picks].mean(axis=1)
        value = float(values.mean())
        return _figure(value**0.5 if root else value, draws**0.5 if root else draws)

    return Accuracy(
        n=n,
        mape=mean_of(np.abs(error)),
        rmspe=mean_of(error**2, root=True),
        bias=mean_of(error),
        within_5=mean_of((np.abs(error) <= 0.05).astype(float)),
        within_10=mean_of((np.abs(error) <= 0.10).astype(float)),
        spearman=_rank(predicted_ms, measured_ms, picks, kendall=False),
        kendall=_rank(predicted_ms, measured_ms, picks[:200], kendall=True),
        worst=float(np.abs(error).max()),
    )


def deciles(predicted_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the MAPE in tenths of the networks, ordered by measured latency, fastest first."""
    order = np.argsort(measured_ms, kind="stable")
    error = np.abs(predicted_ms / measured_ms - 1.0)[order]
    return tuple(float(part.mean()) for part in np.array_split(error, min(10, len(error))))


def linear_baseline(feature: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a + b * feature, fitted to `measured_ms` by relative least squares: in-sample, so flattered."""
    design = np.stack([np.ones_like(feature), feature], axis=1) / measured_ms[:, None]
    coefficients = np.linalg.lstsq(design, np.ones_like(measured_ms), rcond=None)[0]
    fitted: NDArray[np.float64] = coefficients[0] + coefficients[1] * feature
    return fitted


def _rank(
    predicted_ms: NDArray[np.float64], measured_ms: NDArray[np.float64], picks: NDArray[np.int64], *, kendall: bool
) -> Figure:
    if np.ptp(predicted_ms) == 0 or np.ptp(measured_ms) == 0:
        return Figure(value=0.0, lo=-1.0, hi=1.0)  # a constant prediction ranks nothing
    drawn = np.concatenate([np.arange(len(predicted_ms))[None], picks])
    a, b = predicted_ms[drawn], measured_ms[drawn]
    ranked = (np.ptp(a, axis=1) > 0) & (np.ptp(b, axis=1) > 0)
    values = (_kendall if kendall else _spearman)(a[ranked], b[ranked])
    return _figure(float(values[0]), values[1:])


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Spearman's rho of each row of `a` with the same row of `b`."""
    from scipy.stats import rankdata

    a, b = rankdata(a, axis=1), rankdata(b, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    rho: NDArray[np.float64] = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return rho


def _kendall(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Kendall's tau-b of each row of `a` with the same row of `b`."""
    taus = []
    for row_a, row_b in zip(a, b, strict=True):  # one at a time: all pairs of all rows would not fit into memory
        s, t = np.sign(row_a[:, None] - row_a), np.sign(row_b[:, None] - row_b)
        taus.append((s * t).sum() / np.sqrt((s * s).sum() * (t * t).sum()))
    return np.array(taus)


def _figure(value: float, draws: NDArray[np.float64]) -> Figure:
    lo, hi = np.quantile(draws, [0.025, 0.975]) if len(draws) else (value, value)
    return Figure(value=value, lo=float(lo), hi=float(hi))


def _read(kind: Any, value: object, where: str) -> Any:
    """Return JSON values as `kind`: a dataclass of this module, or a type of its fields. Raises SpecError."""
    of = get_args(kind)
    kinds = get_type_hints(kind) if is_dataclass(kind) else None
    if kinds is not None and isinstance(value, Mapping):
        if value.keys() == kinds.keys():
            return kind(**{name: _read(kinds[name], value[name], f"{where}.{name}") for name in kinds})
    elif get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_read(of[0], each, f"{where}[{number}]") for number, each in enumerate(value))
    elif type(None) in of:
        return None if value is None else _read(of[0], value, where)
    elif (kind is float and type(value) in (int, float)) or type(value) is kind:
        return value
    raise SpecError(f"not a validation report: {where} must be {getattr(kind, '__name__', kind)}, got {value!r:.60}")
