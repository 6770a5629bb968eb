"""Imputation: the latency of shapes nobody measured, from the measured ones (*knots*) of the same kind of op.

    log t[shape] = log(work[shape] . w) + g(shape) + noise,    w >= 0

The first part is physics: a nonnegative combination of amounts of work (bytes, MACs), reckoned in the tile that
explains the knots best, for a kernel that handles 16 channels at a time takes as long for 24 as for 32. The second is a
Gaussian process over log sizes, with effects of how a width is aligned and of single widths. Intervals are the
process's own, scaled by the errors at the knots when each is left out in turn. What comes out is positive, and grows
with every width unless the knots say otherwise.
Sources: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, sections 2.2, 5.4.1 and 5.4.2; Vovk et
al., Algorithmic Learning in a Random World, 2005 (intervals scaled by held-out errors); Mukarjee & Stern, JASA 89(425),
1994 (monotone in several arguments: the mean of both envelopes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lutbuilder_agent.errors import ShapeError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_WIDEST_TILE = 64  # being a multiple of more than that makes no difference
_FIT_KNOTS = 240  # so many knots tell a group's hyperparameters; all of them enter the prediction
_FOLDS = 24
_RIDGE = 0.001  # draws a group's own physics towards that of all groups where its knots are few
_LEAST_SHARE = 1e-3
_PHYSICS_VARIANCE = 0.05**2  # of log time: physics explains a time no better than that
_BLOCK = 512  # shapes at a time: bounds memory
_MOST_CELLS = 40_000_000  # of the table that choosing knots needs: 320 MB
_LEAST_VARIANCE = 1e-10
_PRIOR_KNOTS = 4.0  # how many leave-one-out errors outweigh the belief that all extents are alike
_LEVELS = (0.5, 0.95)  # the scores between these quantiles scale the intervals

# Hyperparameters are exponentials of normal variables: median and log standard deviation before any knot is seen.
_SMOOTH, _ALIGNED, _LINE, _LOOSE = (0.08, 1.0), (0.03, 1.0), (0.01, 1.0), (0.01, 0.7)
_REACH = (1.5, 0.7)  # lengthscale of a log size: a factor of 4.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Shapes:
    """What tells n shapes apart. Only shapes of one group say something about each other.

    group (n,): number of the kind of op. widths (n, w): channels. extents (n, e): its other sizes, positive.
    work (t, n, p): p amounts of work, none negative and the first positive, reckoned in each of t tiles.
    Raises ShapeError.
    """

    group: Ints
    widths: Ints
    extents: Floats
    work: Floats

    def __post_init__(self) -> None:
        n = len(self.group)
        for name, axes, along in (("group", 1, 0), ("widths", 2, 0), ("extents", 2, 0), ("work", 3, 1)):
            shape = getattr(self, name).shape
            if len(shape) != axes or shape[along] != n:
                raise ShapeError(f"{name} of {n} shapes has {axes} axes, number {along} over the shapes; got {shape}")
        if (self.widths < 1).any() or (self.extents <= 0).any():
            raise ShapeError("widths and extents are positive")
        if (self.work < 0).any() or (self.work[:, :, 0] <= 0).any():
            raise ShapeError("no amount of work is negative, and the first is positive")

    def __len__(self) -> int:
        return len(self.group)


@dataclass(frozen=True, kw_only=True, eq=False)
class Imputation:
    """What the knots say about all n shapes; NaN where a shape's group has no knot.

    ms (n,): the expected latency. sd (n,): standard deviation of its logarithm before calibration. scores (k,): the
    knots' leave-one-out errors in units of their predicted standard deviation, sorted by size, without sign.
    """

    ms: Floats
    sd: Floats
    scores: Floats
    fields: tuple[Field, ...]

    def radius(self, level: float) -> float:
        """Return how many `sd` reach as far as a share `level` of the knots did, each left out in turn.

        A normal quantile, stretched by the scores between their middle and their 95 % quantile: a single quantile of
        some hundred scores is known to 3 % only.
        """
        from scipy.special import ndtri

        n = len(self.scores)
        levels = (np.arange(n) + 0.5) / n
        used = (levels >= _LEVELS[0]) & (levels <= _LEVELS[1]) if n >= 10 else np.ones(n, dtype=np.bool_)
        normal = ndtri(0.5 + levels[used] / 2)
        stretch = float(self.scores[used] @ normal / (normal @ normal))
        return float(ndtri(0.5 + level / 2)) * stretch

    def interval(self, level: float) -> tuple[Floats, Floats]:
        """Return both ends, in ms, of the interval that holds a shape's true latency with probability `level`."""
        reach = np.exp(self.radius(level) * self.sd)
        return self.ms / reach, self.ms * reach


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """The Gaussian process of one group of m shapes, k of them knots.

    members (m,): their numbers among all shapes. knots (k,): places among the members. factor (k, k): lower Cholesky
    factor of the knots' covariance, noise included. noise: typical variance of a knot's measurement.
    """

    members: Ints
    geometry: _Geometry
    hyper: Floats
    knots: Ints
    factor: Floats
    noise: float


def impute(shapes: Shapes, knots: Ints, ms: Floats, noise_sd: Floats) -> Imputation:
    """Return what `knots` (k,), numbers of shapes measured as `ms` (k,) with `noise_sd` (k,), say about all shapes.

    noise_sd is the standard deviation of the logarithm of the measured latency. The order of shapes and of knots does
    not matter. Raises ShapeError without knots, for a knot named twice, and where a latency or noise is not positive.
    """
    _check_knots(shapes, knots, ms, noise_sd)
    # One order for any order: sums and optimisers see the same numbers.
    order = np.lexsort((*shapes.widths[knots].T, *shapes.extents[knots].T, shapes.group[knots]))
    knots, log_ms, noise = knots[order], np.log(ms[order]), noise_sd[order] ** 2  # by group first of all
    physics = _physics(shapes, knots, log_ms, noise)
    expected, sd = np.full(len(shapes), np.nan), np.full(len(shapes), np.nan)
    fields, scores = [], []
    for members, geometry in _groups(shapes):
        mine = np.flatnonzero(shapes.group[knots] == shapes.group[members[0]])
        if not len(mine):
            continue
        work = _own_work(shapes, members, physics, knots[mine], log_ms[mine], noise[mine])
        places = np.searchsorted(members, knots[mine])
        fit = _fit_field(members, geometry, places, work, log_ms[mine], noise[mine])
        expected[members], sd[members] = fit.log_ms, fit.sd
        fields.append(fit.field)
        scores.append(fit.scores)
    stretch = _stretch(shapes, knots, np.concatenate(scores))
    return Imputation(
        ms=np.exp(expected),
        sd=sd * stretch,
        scores=np.sort(np.abs(np.concatenate(scores) / stretch[knots])),
        fields=tuple(fields),
    )


def _stretch(shapes: Shapes, knots: Ints, scores: Floats) -> Floats:
    """Return by how much the standard deviations of each shape, (n,), are to be stretched; `scores` (k,) are knots'.

    One process does not fit all extents alike: what leaves the caches is less smooth. So each group and extents has a
    factor of its own as far as its knots tell one, drawn towards that of all, and that towards 1.
    """
    keys = np.column_stack([shapes.group, shapes.extents])
    numbers = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    count = np.bincount(numbers[knots], minlength=numbers.max() + 1)
    squares = np.bincount(numbers[knots], weights=scores**2, minlength=len(count))
    common = (squares.sum() + _PRIOR_KNOTS) / (len(knots) + _PRIOR_KNOTS)
    return np.asarray(np.sqrt((squares + _PRIOR_KNOTS * common) / (count + _PRIOR_KNOTS))[numbers])


def choose(
    shapes: Shapes, weight: Floats, count: int, *, imputation: Imputation | None = None, taken: Ints | None = None
) -> Ints:
    """Return up to `count` shapes to measure next, the most telling first.

    Each is the one with the largest weight x standard deviation once those before it are measured: with weight =
    expected uses x latency that is what the shape contributes to a network's error. `weight` (n,) is >= 0; shapes of
    weight 0 are never chosen. Without an `imputation` nothing is measured yet, and the process says what it believes
    before. `taken` will be measured anyway: they count as measured and are not chosen.
    """
    fields = list(imputation.fields) if imputation is not None else []
    known = {int(shapes.group[field.members[0]]) for field in fields}
    fields += [
        Field(
            members=members, geometry=geometry, hyper=geometry.prior()[0], knots=np.zeros(0, np.int64),
            factor=np.zeros((0, 0)), noise=1e-4,
        )
        for members, geometry in _groups(shapes)
        if int(shapes.group[members[0]]) not in known
    ]  # fmt: skip  # a field is one thing
    taken = np.zeros(0, np.int64) if taken is None else taken
    queues = [_Queue(field, weight[field.members], count, taken) for field in fields]
    chosen: list[int] = []
    while queues and len(chosen) < count:
        best = max(queues, key=lambda queue: queue.top)
        if best.top <= 0:
            break
        chosen.append(best.take())
    return np.array(chosen, dtype=np.int64)


def monotone(shapes: Shapes, ms: Floats, knots: Ints, lo: Floats, hi: Floats) -> Floats:
    """Return `ms` (n,) made non-decreasing in every width, and true to the knots' intervals `lo`, `hi` (k,) in ms.

    Shapes are comparable where group and extents are equal. Where one knot's interval lies wholly above that of a
    wider knot, the order of those extents holds only among shapes whose every width is aligned alike (24 channels may
    cost more than 32), and among those of an alignment that contradicts itself not at all.
    """
    made: Floats = ms.copy()
    place = np.full(len(shapes), -1)
    place[knots] = np.arange(len(knots))
    keys = np.column_stack([shapes.group, shapes.extents])
    numbers = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    for number in np.unique(numbers[np.isfinite(ms)]):
        members = np.flatnonzero(numbers == number)
        for pool in _comparable(shapes.widths[members], place[members], lo, hi):
            chosen = members[pool]
            known = place[chosen]
            axes = _Axes.of(shapes.widths[chosen])
            least = axes.largest_below(np.where(known >= 0, lo[known], -np.inf))
            most = axes.smallest_above(np.where(known >= 0, hi[known], np.inf))
            inside = np.clip(ms[chosen], least, most)
            made[chosen] = 0.5 * (axes.largest_below(inside) + axes.smallest_above(inside))
    return made


# --- Physics


def _physics(shapes: Shapes, knots: Ints, log_ms: Floats, noise: Floats) -> Floats:
    """Return what all groups together say each shape costs in each tile, (t, n) ms; 1 where that is nothing."""
    costs = np.stack([work @ _weights(work[knots], log_ms, noise) for work in shapes.work])
    return np.where(costs > 0, costs, 1.0)


def _own_work(shapes: Shapes, members: Ints, physics: Floats, knots: Ints, log_ms: Floats, noise: Floats) -> _Work:
    """Return a group's amounts of work in the tile that predicts its knots best when they are left out."""
    tiles = [
        _Work(
            columns=np.column_stack([common[members], work[members]]),
            knots=np.searchsorted(members, knots),
            log_ms=log_ms,
            noise=noise,
        )
        for common, work in zip(physics, shapes.work, strict=True)
    ]
    errors = [float(np.sum((log_ms - work.left_out()) ** 2 / (noise + _PHYSICS_VARIANCE))) for work in tiles]
    return tiles[int(np.argmin(errors))]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """Amounts of work (m, 1 + p) of a group's shapes in one tile, the first being what all groups say; and its knots.

    knots (k,): places among the shapes; log_ms and noise (variance), (k,): what was measured there.
    """

    columns: Floats
    knots: Ints
    log_ms: Floats
    noise: Floats

    def log_cost(self, used: Ints) -> Floats:
        """Return the log cost of all shapes, (m,), told by the knots whose numbers are `used`."""
        weights = _weights(self.columns[self.knots[used]], self.log_ms[used], self.noise[used], ridge=_RIDGE)
        return np.asarray(np.log(self.columns @ weights))

    def left_out(self) -> Floats:
        """Return the log cost of each knot told by the others, (k,)."""
        told = np.empty(len(self.knots))
        for fold in _folds(len(self.knots)):
            rest = np.setdiff1d(np.arange(len(self.knots)), fold)
            told[fold] = self.log_cost(rest if len(rest) else fold)[self.knots[fold]]
        return told


def _weights(work: Floats, log_ms: Floats, noise: Floats, *, ridge: float = 0.0) -> Floats:
    """Return weights >= 0, (p,), of the least relative error; the first is > 0, `ridge` holds the others down."""
    from scipy.optimize import nnls

    trust = np.sqrt(_PHYSICS_VARIANCE / (noise + _PHYSICS_VARIANCE))
    relative = work * (trust / np.exp(log_ms))[:, None]
    scale = np.where(relative.any(axis=0), relative.mean(axis=0) / trust.mean(), 1.0)
    held = np.sqrt(ridge * trust.sum()) * np.eye(work.shape[1])[1:]
    rows = np.vstack([relative / scale, held])
    target = np.concatenate([trust, np.zeros(len(held))])
    found, _ = nnls(rows, target)
    found[0] = max(found[0], _LEAST_SHARE)  # the first amount is never 0, so the sum is not
    return np.asarray(found / scale)


def _folds(count: int) -> list[Ints]:
    """Return the numbers 0 .. count - 1 in at most _FOLDS parts, neighbours in different ones."""
    parts = min(count, _FOLDS)
    return [np.arange(first, count, parts) for first in range(parts)]


# --- Order


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Axes:
    """Shapes on the grid that their widths span; `cells` holds each shape's place on every axis."""

    sizes: tuple[int, ...]
    cells: tuple[Ints, ...]

    @classmethod
    def of(cls, widths: Ints) -> _Axes:
        """Return the axes of widths (m, w)."""
        cells = tuple(np.unique(column, return_inverse=True)[1].reshape(-1) for column in _telling(widths).T)
        return cls(sizes=tuple(int(cell.max()) + 1 for cell in cells), cells=cells)

    def largest_below(self, values: Floats) -> Floats:
        """Return for each shape the largest value among those no wider, itself included."""
        return self._accumulated(values, np.maximum, -np.inf, slice(None))

    def smallest_above(self, values: Floats) -> Floats:
        """Return for each shape the smallest value among those no narrower, itself included."""
        return self._accumulated(values, np.minimum, np.inf, slice(None, None, -1))

    def _accumulated(self, values: Floats, better: np.ufunc, empty: float, direction: slice) -> Floats:
        if not self.sizes:
            return values
        grid = np.full(self.sizes, empty)
        grid[self.cells] = values
        for axis in range(grid.ndim):
            turned = np.moveaxis(grid, axis, 0)[direction]
            better.accumulate(turned, axis=0, out=turned)
        return np.asarray(grid[self.cells])


def _comparable(widths: Ints, place: Ints, lo: Floats, hi: Floats) -> Iterator[Ints]:
    """Yield the parts of shapes of equal extents within which wider is not faster; `place` is a knot's number or -1."""
    everything = np.arange(len(widths))
    if not _contradicts(widths, place, lo, hi):
        yield everything
        return
    alike = np.unique(np.gcd(widths, _WIDEST_TILE), axis=0, return_inverse=True)[1].reshape(-1)
    for number in np.unique(alike):
        pool = np.flatnonzero(alike == number)
        if not _contradicts(widths[pool], place[pool], lo, hi):
            yield pool


def _contradicts(widths: Ints, place: Ints, lo: Floats, hi: Floats) -> bool:
    """Return whether a knot's whole interval lies above that of a knot at least as wide."""
    known = np.flatnonzero(place >= 0)
    if not len(known):
        return False
    axes = _Axes.of(widths[known])
    return bool((axes.largest_below(lo[place[known]]) > hi[place[known]]).any())


# --- The process


@dataclass(frozen=True, kw_only=True, eq=False)
class _Geometry:
    """Where the m shapes of a group lie: log sizes (m, d), alignment and line of each width (m, w).

    Sizes that do not vary, or vary as another does, are left out. A line is all shapes of one width and equal extents.
    """

    sizes: Floats
    aligned: Ints
    lines: Ints

    @classmethod
    def of(cls, widths: Ints, extents: Floats) -> _Geometry:
        """Return the geometry of shapes with these widths (m, w) and extents (m, e)."""
        varied, around = _telling(widths), _telling(extents)
        lines = [
            np.unique(np.column_stack([width, around]), axis=0, return_inverse=True)[1].reshape(-1)
            for width in varied.T
        ]
        return cls(
            sizes=np.log(np.column_stack([varied, around])),
            aligned=np.gcd(varied, _WIDEST_TILE),
            lines=np.array(lines, dtype=np.int64).reshape(varied.shape[::-1]).T,
        )

    def take(self, places: Ints) -> _Geometry:
        """Return the geometry of some of the shapes."""
        return _Geometry(sizes=self.sizes[places], aligned=self.aligned[places], lines=self.lines[places])

    def prior(self) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the log hyperparameters: lengthscales, smooth, aligned, line, loose."""
        medians, spreads = zip(*[_REACH] * self.sizes.shape[1], _SMOOTH, _ALIGNED, _LINE, _LOOSE, strict=True)
        return np.log(medians), np.array(spreads)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pairs:
    """What the covariance of a shapes with b others depends on: squared log distances (d, a, b), and alike widths."""

    squares: Floats
    aligned: Floats  # (a, b): over the widths, sum of how alike they are aligned
    lines: Floats  # (a, b): number of lines both are on

    @classmethod
    def of(cls, one: _Geometry, other: _Geometry) -> _Pairs:
        """Return the pairs of every shape of `one` with every shape of `other`."""
        steps = np.log2(one.aligned.T[:, :, None] / other.aligned.T[:, None, :])
        return cls(
            squares=(one.sizes.T[:, :, None] - other.sizes.T[:, None, :]) ** 2,
            aligned=np.exp(-np.abs(steps)).sum(axis=0),
            lines=(one.lines.T[:, :, None] == other.lines.T[:, None, :]).sum(axis=0).astype(np.float64),
        )

    def covariance(self, hyper: Floats) -> Floats:
        """Return the covariance, (a, b), without what is of a shape alone."""
        reach, (smooth, aligned, line, _) = np.exp(-2 * hyper[:-4]), np.exp(2 * hyper[-4:])
        near = np.tensordot(reach, self.squares, axes=1)
        # What an alignment or a width does changes more slowly than the rest: nine times the squared reach.
        return np.asarray(smooth * _matern(near) + _matern(near / 9.0) * (aligned * self.aligned + line * self.lines))


def _matern(squared: Floats) -> Floats:
    """Matern 5/2 correlation of squared scaled distances."""
    distance = np.sqrt(5.0 * squared)
    return np.asarray((1.0 + distance + 5.0 / 3.0 * squared) * np.exp(-distance))


def _variance(geometry: _Geometry, hyper: Floats) -> float:
    """Variance of one shape before any is measured, what is of it alone included."""
    smooth, aligned, line, loose = np.exp(2 * hyper[-4:])
    return float(smooth + loose + geometry.aligned.shape[1] * (aligned + line))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """A group's posterior: log_ms and sd (m,), the knots' signed scores (k,), and the field they come from."""

    log_ms: Floats
    sd: Floats
    scores: Floats
    field: Field


def _fit_field(members: Ints, geometry: _Geometry, knots: Ints, work: _Work, log_ms: Floats, noise: Floats) -> _Fit:
    """Return the posterior of one group: `knots` are places among the members; log_ms and noise are theirs."""
    from scipy.linalg import cho_solve, solve_triangular

    cost = work.log_cost(np.arange(len(knots)))
    residual = log_ms - cost[knots]
    there = geometry.take(knots)
    some = np.arange(0, len(knots), -(-len(knots) // _FIT_KNOTS))
    hyper = _hyperparameters(there.take(some), residual[some], noise[some])
    loose = np.exp(2 * hyper[-1])
    covariance = _Pairs.of(there, there).covariance(hyper)
    covariance[np.diag_indices_from(covariance)] += noise + loose + _LEAST_VARIANCE
    factor: Floats = np.linalg.cholesky(covariance).astype(np.float64)
    pull = cho_solve((factor, True), residual)
    mean, variance = np.empty(len(members)), np.full(len(members), _variance(geometry, hyper))
    for block in np.array_split(np.arange(len(members)), -(-len(members) // _BLOCK)):
        shared = _Pairs.of(geometry.take(block), there).covariance(hyper)
        mean[block] = shared @ pull
        variance[block] -= (solve_triangular(factor, shared.T, lower=True) ** 2).sum(axis=0)
    inverse = cho_solve((factor, True), np.eye(len(knots)))
    # Each knot told by the others, physics included: the process's part has a closed form.
    without = log_ms - work.left_out()
    changed = residual + (without - residual) * np.eye(len(knots))
    scores = np.einsum("ij,ij->i", inverse, changed) / np.sqrt(np.diag(inverse))
    return _Fit(
        log_ms=cost + mean,
        sd=np.sqrt(np.maximum(variance, _LEAST_VARIANCE)),
        scores=scores,
        field=Field(
            members=members, geometry=geometry, hyper=hyper, knots=knots, factor=factor, noise=float(np.median(noise))
        ),
    )


def _hyperparameters(geometry: _Geometry, residual: Floats, noise: Floats) -> Floats:
    """Return the log hyperparameters of the largest posterior density given the knots' residuals."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve
    from scipy.optimize import minimize

    mean, spread = geometry.prior()
    pairs = _Pairs.of(geometry, geometry)

    def cost(hyper: Floats) -> float:
        covariance = pairs.covariance(hyper)
        covariance[np.diag_indices_from(covariance)] += noise + np.exp(2 * hyper[-1]) + _LEAST_VARIANCE
        try:
            factor = cho_factor(covariance, lower=True)
        except LinAlgError:
            return np.inf
        fit = 0.5 * float(residual @ cho_solve(factor, residual)) + float(np.log(np.diag(factor[0])).sum())
        return fit + 0.5 * float((((hyper - mean) / spread) ** 2).sum())

    return np.asarray(minimize(cost, mean, method="L-BFGS-B", options={"maxiter": 60}).x)


class _Queue:
    """A group's shapes, the most telling first; mutable: taking one tells about the others of its group."""

    def __init__(self, field: Field, weight: Floats, count: int, taken: Ints) -> None:
        from scipy.linalg import solve_triangular

        knots = len(field.knots)
        taken = np.flatnonzero(np.isin(field.members, taken))
        variance = np.full(len(field.members), _variance(field.geometry, field.hyper))
        there = field.geometry.take(field.knots)
        shared = np.empty((knots, len(field.members)))
        if knots:
            for block in np.array_split(np.arange(len(field.members)), -(-len(field.members) // _BLOCK)):
                pairs = _Pairs.of(there, field.geometry.take(block))
                shared[:, block] = solve_triangular(field.factor, pairs.covariance(field.hyper), lower=True)
            variance -= (shared**2).sum(axis=0)
        weight = weight.copy()
        weight[field.knots] = 0.0
        score = weight * np.sqrt(np.maximum(variance, 0.0))
        score[taken] = np.inf  # these are told first of all
        rows = knots + len(taken) + count
        keep = np.sort(np.argsort(-score, kind="stable")[: max(len(taken) + count, _MOST_CELLS // rows)])
        self._field = field
        self._geometry = field.geometry.take(keep)
        self._members, self._weight, self._variance = field.members[keep], weight[keep], variance[keep]
        self._told = np.empty((min(rows, knots + len(keep)), len(keep)))
        self._told[:knots] = shared[:, keep]
        self._filled = knots
        for place in np.searchsorted(keep, taken):
            self._tell(int(place))

    @property
    def top(self) -> float:
        """The largest weight x standard deviation left; 0 where nothing is."""
        return float(self._score().max(initial=0.0))

    def take(self) -> int:
        """Return the number of the shape with the largest score, and go on as if it were measured."""
        place = int(np.argmax(self._score()))
        self._tell(place)
        return int(self._members[place])

    def _tell(self, place: int) -> None:
        """Go on as if the shape at `place` were measured."""
        told = self._told[: self._filled]
        pairs = _Pairs.of(self._geometry.take(np.array([place])), self._geometry)
        loose = float(np.exp(2 * self._field.hyper[-1]))
        left = pairs.covariance(self._field.hyper)[0] - told[:, place] @ told
        row = left / np.sqrt(left[place] + loose + self._field.noise + _LEAST_VARIANCE)
        self._told[self._filled] = row
        self._filled += 1
        self._variance = self._variance - row**2
        self._weight[place] = 0.0

    def _score(self) -> Floats:
        return np.asarray(self._weight * np.sqrt(np.maximum(self._variance, 0.0)))


def _groups(shapes: Shapes) -> Iterator[tuple[Ints, _Geometry]]:
    """Yield the numbers of each group's shapes, rising, with their geometry."""
    for group in np.unique(shapes.group):
        members = np.flatnonzero(shapes.group == group)
        yield members, _Geometry.of(shapes.widths[members], shapes.extents[members])


_Sizes = TypeVar("_Sizes", np.int64, np.float64)


def _telling(sizes: NDArray[_Sizes]) -> NDArray[_Sizes]:
    """Return the columns that vary, each once."""
    kept: list[int] = []
    for number, column in enumerate(sizes.T):
        if (column != column[:1]).any() and not any((column == sizes[:, other]).all() for other in kept):
            kept.append(number)
    return sizes[:, kept]


def _check_knots(shapes: Shapes, knots: Ints, ms: Floats, noise_sd: Floats) -> None:
    if not len(knots) or knots.shape != ms.shape or knots.shape != noise_sd.shape or knots.ndim != 1:
        raise ShapeError(f"knots, ms and noise_sd are (k,), k > 0; got {knots.shape}, {ms.shape}, {noise_sd.shape}")
    if len(np.unique(knots)) != len(knots) or knots.min() < 0 or knots.max() >= len(shapes):
        raise ShapeError(f"knots are different numbers from 0 to {len(shapes) - 1}")
    if not (np.isfinite(ms).all() and (ms > 0).all() and np.isfinite(noise_sd).all() and (noise_sd > 0).all()):
        raise ShapeError("every knot has a positive latency and a positive noise_sd")
