"""How well a table predicts whole networks: error, rank, floors and baselines, each with a bootstrap interval.

Definitions follow nn-Meter (Zhang et al., MobiSys 2021) for ±5 % and ±10 % accuracy and RMSPE. All errors are relative
to the measured network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lutbuilder_agent.errors import ShapeError, SpecError

_RESAMPLES = 1000
_MEAN_ABS_NORMAL = float(np.sqrt(2.0 / np.pi))  # E|x| of a standard normal x


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
class Decile:
    """A tenth of the networks by measured latency, `from_ms` to `to_ms`, and how well they were predicted."""

    n: int
    from_ms: float
    to_ms: float
    mape: Figure
    bias: Figure
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthNoise:
    """How far what was measured of a network is from the network's own mean over all its preparations.

    Both are expected absolute relative errors, so that a MAPE may be divided by them. With s the standard deviation of
    log time between instances of one network (visit noise of an instance's median inside, pooled over networks), and
    normal errors: `of_truth` is the mean over networks of sqrt(2/pi) * s / sqrt(n), the error of a truth that is the
    mean of n instances; `of_run` is sqrt(2/pi) * s, what a single preparation shows. What is common to all instances of
    a session is in neither.
    """

    of_truth: float
    of_run: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkResult:
    """One held-out network: measured and predicted milliseconds. `group` is random, searched or listed."""

    op_id: str
    group: str
    measured_ms: float
    predicted_ms: float
    undrifted_ms: float | None  # predicted by medians without a drift model, from the same visits
    macs: int
    n_ops: int
    n_visits: int
    n_instances: int
    test_retest: float | None
    published_ms: float | None = None  # predicted by the table as published, at this session's scale
    calibrated_ms: float | None = None  # the same with the table's calibrated rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """A LUT against held-out networks timed in the same rounds as its ops (measurement.md, "Whole networks").

    A network's truth is what this validation alone measured of it. A table is brought to this session's speed by the
    carriers its in-situ rows were fitted to, else by the median ratio of its ops' times, before any held-out network is
    looked at. Fields with a default came after the first release.
    """

    lut_sum: Accuracy  # plain sum of measured rows, this session's op visits pooled in
    undrifted: Accuracy | None  # plain sum from plain medians of this session's visits, truth from plain medians too
    published: Accuracy | None  # plain sum of measured rows of the table as it was before this session
    flops_linear: Accuracy  # baseline: a + b * MACs, fitted on these very networks
    depth_linear: Accuracy  # baseline: a + b * number of ops + c * input pixels, fitted on these very networks
    deciles: tuple[float, ...]  # MAPE of the plain sum in tenths of the networks, fastest first
    test_retest_floor: float | None  # median relative difference of a network's even and odd rounds; None below 4
    instance_floor: float | None  # standard deviation between instances of one network, relative, pooled; None for one
    op_instance_sd: float | None  # the same between instances of one op
    session_scale: float | None  # how many times slower this session was than the table as published, as it is judged
    networks_sha256: str  # of the list of networks, fixed before timing
    rounds: int
    wall_s: float
    timed_fraction: float
    networks: tuple[NetworkResult, ...]
    table: str = ""  # which table: NAME@VERSION
    campaign_id: str = ""  # which visits
    seed: int | None = None  # of the choice of networks; None: they were listed
    n_fitted: int = 0  # networks this table was fitted to, none of them among these
    published_shares_visits: bool = False  # the rows as published rest on op visits of this very session
    calibrated: Accuracy | None = None  # the table as published with its calibrated rows; None: it has none
    ops_alone: Accuracy | None = None  # the table as published without its in-situ rows; None: it has none
    ops_scale: float | None = None  # the same told by ops alone
    published_by_ops: Accuracy | None = None  # the table as published, judged at ops_scale; None: no other scale
    flops_linear_held_out: Accuracy | None = None  # the baselines once more, each network predicted by a fit without it
    depth_linear_held_out: Accuracy | None = None
    fastest: Decile | None = None
    slowest: Decile | None = None
    truth_noise: float | None = None  # TruthNoise.of_truth; None for one instance
    run_noise: float | None = None  # TruthNoise.of_run
    excess_error: Figure | None = None  # MAPE of lut_sum / truth_noise; the interval is the MAPE's
    excess_over_run: Figure | None = None  # MAPE of lut_sum / run_noise

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the LUT's footer and for --json."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ValidationReport:
        """Inverse of `to_json`; what an older release did not write takes its default. Raises SpecError otherwise."""
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
    return Accuracy(
        n=n,
        mape=_mean(np.abs(error), picks),
        rmspe=_mean(error**2, picks, root=True),
        bias=_mean(error, picks),
        within_5=_mean((np.abs(error) <= 0.05).astype(float), picks),
        within_10=_mean((np.abs(error) <= 0.10).astype(float), picks),
        spearman=_rank(predicted_ms, measured_ms, picks, kendall=False),
        kendall=_rank(predicted_ms, measured_ms, picks[:200], kendall=True),
        worst=float(np.abs(error).max()),
    )


def deciles(predicted_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> tuple[Decile, ...]:
    """Return the tenths of the networks, ordered by measured latency, fastest first; fewer than ten: one a network."""
    order = np.argsort(measured_ms, kind="stable")
    error = (predicted_ms / measured_ms - 1.0)[order]
    rng = np.random.default_rng(0)
    tenths = []
    for part in np.array_split(np.arange(len(order)), min(10, len(order))):
        picks = rng.integers(0, len(part), (_RESAMPLES, len(part)))
        tenths.append(
            Decile(
                n=len(part),
                from_ms=float(measured_ms[order[part[0]]]),
                to_ms=float(measured_ms[order[part[-1]]]),
                mape=_mean(np.abs(error[part]), picks),
                bias=_mean(error[part], picks),
                worst=float(np.abs(error[part]).max()),
            )
        )
    return tuple(tenths)


def truth_noise(replicates: Sequence[NDArray[np.float64]]) -> TruthNoise | None:
    """Return the noise of the networks' truth from the log times of each network's instances, a vector a network.

    None where no network has two instances.
    """
    sd = pooled_sd(replicates)
    if sd is None:
        return None
    counts = np.array([len(logs) for logs in replicates], dtype=np.float64)
    return TruthNoise(
        of_truth=_MEAN_ABS_NORMAL * sd * float(np.mean(counts**-0.5)),
        of_run=_MEAN_ABS_NORMAL * sd,
    )


def pooled_sd(replicates: Sequence[NDArray[np.float64]]) -> float | None:
    """Return the standard deviation within the vectors, variances pooled by their degrees of freedom.

    Two or three instances of one network say too little on their own. None where no vector has two values.
    """
    freedom = sum(len(values) - 1 for values in replicates)
    if not freedom:
        return None
    return float(np.sqrt(sum(float(np.sum((values - values.mean()) ** 2)) for values in replicates) / freedom))


def excess(mape: Figure, noise: float | None) -> Figure | None:
    """Return how many times the noise of the truth a MAPE is; the noise is taken as known. None without noise."""
    if not noise:
        return None
    return Figure(value=mape.value / noise, lo=mape.lo / noise, hi=mape.hi / noise)


def linear_baseline(
    features: NDArray[np.float64], measured_ms: NDArray[np.float64], *, held_out: bool = False
) -> NDArray[np.float64]:
    """Return a + features . b fitted to `measured_ms` by relative least squares; features (networks, k) or (networks,).

    In-sample, so flattered; `held_out` predicts each network by a fit to all the others. A feature that never changes
    adds nothing.
    """
    columns = features.reshape(len(measured_ms), -1)
    size = np.abs(columns).max(axis=0)
    design = np.column_stack([np.ones(len(columns)), columns / np.where(size > 0, size, 1.0)])
    if not held_out:
        fitted: NDArray[np.float64] = design @ _relative_fit(design, measured_ms)
        return fitted
    others = ~np.eye(len(design), dtype=np.bool_)
    return np.array(
        [row @ _relative_fit(design[keep], measured_ms[keep]) for row, keep in zip(design, others, strict=True)]
    )


def _relative_fit(design: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    solution = np.linalg.lstsq(design / measured_ms[:, None], np.ones(len(measured_ms)), rcond=1e-10)[0]
    return np.asarray(solution, dtype=np.float64)


def _mean(values: NDArray[np.float64], picks: NDArray[np.int64], *, root: bool = False) -> Figure:
    draws = values[picks].mean(axis=1)
    value = float(values.mean())
    return _figure(value**0.5 if root else value, draws**0.5 if root else draws)


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
    if is_dataclass(kind) and isinstance(value, Mapping):
        kinds = get_type_hints(kind)
        needed = {field.name for field in fields(kind) if field.default is MISSING}
        if needed <= value.keys() <= kinds.keys():
            return kind(**{name: _read(kinds[name], value[name], f"{where}.{name}") for name in value})  # type: ignore[operator]  # a class, says is_dataclass of a type
    elif get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_read(of[0], each, f"{where}[{number}]") for number, each in enumerate(value))
    elif type(None) in of:
        return None if value is None else _read(of[0], value, where)
    elif (kind is float and type(value) in (int, float)) or type(value) is kind:
        return value
    raise SpecError(f"not a validation report: {where} must be {getattr(kind, '__name__', kind)}, got {value!r:.60}")
