"""The best archs a cost can buy: the exact front of cost against an additive score, and the best score under a budget.

Both go along the chain of the space and keep, in every state, only what could still be best. `best_under` is always
exact. An exact front can be as long as the space is rich; with ticks it is as long as the costs have ticks, and says
how much cheaper an arch could still be. A budget may have a lower limit: then a dearer beginning can be the better one
until the limit is reached for sure, and more of them are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lutbuilder.nas.budget import AdditiveScore, Budget, Feasible, described
from lutbuilder.nas.chain import Amount, Chain, Ints, Step
from lutbuilder.nas.compiled import CompiledSpace, Floats
from lutbuilder.nas.counting import MAX_BYTES, Archs
from lutbuilder.nas.ticks import TickedChain
from lutbuilder_agent.errors import Infeasible, SpecError

_SAME = 1e-12  # of the largest cost or score: what differs by less is a rounding error, not another point of a front
_MAX_POINTS = 10_000_000  # kept of an exact front, partial archs included; 28 bytes each
_MAX_EXTENDED = 50_000_000  # points looked at together
_SEARCH_TICKS = 8192  # of the bounds that `best_under` prunes with; its answer is exact at any
_WINDOW_TICKS = 64  # of a narrow window; where so fine tables would be too large, as many as there is room for
_FINE_BYTES = MAX_BYTES // 4
_LEAST_TICKS = 1 << 20  # of the whole range, where the budget leaves next to nothing of it
_CHUNK = 1 << 21
_PARTS = 10
_DRAWN = 32  # archs within a window, where its ticks show none


@dataclass(frozen=True, kw_only=True, eq=False)
class Front:
    """Archs none of which another one beats, (N, n_variables), in ascending order of cost and of score.

    There is one at least; where the budget has no lower limit, the cheapest of the space or a better one at its cost.
    For every arch of the space (and at least `cost_error` within the budget's limits) one of these has no lower score
    and costs at most `cost_error` more; 0: the front is exact.
    """

    archs: Archs
    costs: Floats
    scores: Floats
    cost_error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Best:
    """The arch with the highest score within a budget, (n_variables,), and what it costs and scores."""

    arch: Archs
    cost: float
    score: float


def pareto_front(
    compiled: CompiledSpace, score: AdditiveScore, *, budget: Budget | None = None, tick: float | None = None
) -> Front:
    """Return the archs of no higher cost and no lower score than any other in the budget; one for each such pair.

    tick: costs are taken in whole ticks of the column's unit, for spaces whose exact front would be too long, as it
    mostly is above a lower limit; `cost_error` of the front says what that leaves open. None: the front is exact.
    Raises Infeasible if no arch is within the budget, SpecError if the front is too long to be exact (it names a tick).
    """
    budget = budget or Budget(math.inf)
    chain, low, high = _limited(compiled, score, budget, () if tick is None else (tick,))
    if tick is None:
        archs, cost_error = _exact_front(chain, low, high), 0.0
    else:
        archs, cost_error = _ticked_front(chain, low, high, tick)
    costs, scores = compiled.predict(archs), score.score(archs)
    within = np.flatnonzero((costs >= low) & (costs <= high))
    if not len(within):  # all that the ticks show lies just beside the limits
        archs = _some_within(compiled, score, budget)
        costs, scores, within = compiled.predict(archs), score.score(archs), np.arange(len(archs))
    scales = _scales(chain)
    kept = within[undominated(np.rint(costs[within] / scales[0]), np.rint(scores[within] / scales[1]))]
    return Front(archs=archs[kept], costs=costs[kept], scores=scores[kept], cost_error=cost_error)


def best_under(compiled: CompiledSpace, score: AdditiveScore, budget: Budget) -> Best:
    """Return an arch of the highest score within `budget`; exact, whatever the costs are.

    Searches backwards from the end of the chain and prunes what even the best beginning, its cost rounded down to
    ticks, cannot make better than an arch already found. Raises Infeasible if no arch is within the budget, SpecError
    if too many come too close to the best, as they may in a narrow window.
    """
    chain, low, high = _limited(compiled, score, budget, ())
    lowest, highest = chain.span(0)
    tick = max((min(high, highest) - lowest) / _SEARCH_TICKS, (highest - lowest) / _LEAST_TICKS)
    found = _best_between(compiled, score, _BestScores.of(chain, high, tick), -math.inf, budget)
    if compiled.predict(found[None])[0] < low:  # seldom: more cost mostly buys more
        fine = max((high - low) / _WINDOW_TICKS, (highest - lowest) / _LEAST_TICKS)
        found = _best_between(compiled, score, _BestScores.of(chain, high, min(tick, fine)), low, budget)
    return Best(arch=found, cost=float(compiled.predict(found[None])[0]), score=float(score.score(found[None])[0]))


def _limited(
    compiled: CompiledSpace, score: AdditiveScore, budget: Budget, ticks: Sequence[float]
) -> tuple[Chain, float, float]:
    """The chain of cost and score, and what an arch may cost: -inf as the least where no arch costs less."""
    if score.space is not compiled.space and score.space.key != compiled.space.key:
        raise SpecError(f"a score of space {score.space.name!r} does not fit space {compiled.space.name!r}")
    if not all(0 < tick < math.inf for tick in ticks):
        raise SpecError(f"a tick is above 0, got {ticks[0]:g}")
    amounts = [Amount.cost(compiled), Amount(fixed=score.base, factors=score.factors)]
    chain = Chain.of(compiled.space, amounts, ticks=ticks)
    (lowest, highest), (low, high) = chain.span(0), budget.bounds
    if not math.isfinite(lowest) or not math.isfinite(chain.fixed[1]):
        raise Infeasible(f"space {compiled.space.name!r} has no arch that can run and has a score")
    if lowest > high:
        raise Infeasible(
            f"no arch of {compiled.space.name!r} costs {budget} in {compiled.provenance.column}; the cheapest costs "
            f"{lowest:.6g}: {described(compiled.space, chain.least(0))}"
        )
    if highest < low:
        raise Infeasible(
            f"no arch of {compiled.space.name!r} costs {budget} in {compiled.provenance.column}; archs cost "
            f"{lowest:.6g} to {highest:.6g}"
        )
    return chain, low if low > lowest else -math.inf, high


def _some_within(compiled: CompiledSpace, score: AdditiveScore, budget: Budget) -> Archs:
    """Some archs within `budget` that have a score. Raises Infeasible, naming what is near, if there is none."""
    archs = Feasible(compiled, budget).sample(np.random.default_rng(0), _DRAWN)
    archs = archs[np.isfinite(score.score(archs))]
    if not len(archs):
        raise Infeasible(f"no arch of {compiled.space.name!r} that was drawn within the budget ({budget}) has a score")
    return archs


def _scales(chain: Chain) -> tuple[float, float]:
    """What makes no difference, in cost and in score."""
    cost, score = (_SAME * max(*map(abs, chain.span(amount)), 1e-280) for amount in range(2))
    return cost, score


def undominated(costs: Floats, scores: Floats) -> Ints:
    """Return the points that no other one is as good as in both, and better in one; in ascending order, ties once."""
    order = np.argsort(costs, kind="stable")  # made of sorted runs, mostly
    best = np.maximum.accumulate(scores[order])
    rises = np.ones(len(order), dtype=np.bool_)
    rises[1:] = best[1:] > best[:-1]
    kept = order[rises]
    dearer = np.ones(len(kept), dtype=np.bool_)  # of points of one cost the last is the best
    dearer[:-1] = costs[kept[1:]] > costs[kept[:-1]]
    return kept[dearer]


def _of_use(costs: Floats, scores: Floats, early: NDArray[np.bool_]) -> Ints:
    """Return the best early point of every cost, and the undominated of the others; early ones cost less than those."""
    if not early.any():
        return undominated(costs, scores)
    first, late = np.flatnonzero(early), np.flatnonzero(~early)
    order = first[np.lexsort((-scores[first], costs[first]))]
    best = np.diff(costs[order], prepend=-math.inf) > 0
    return np.concatenate([order[best], late[undominated(costs[late], scores[late])]])


def _best_of_each(groups: Ints, costs: Floats, scores: Floats) -> Ints:
    """Return the undominated points of every group."""
    order = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[order], append=-1)) + 1
    parts = [order[start:end] for start, end in pairwise([0, *ends.tolist()])]
    kept = [part[undominated(costs[part], scores[part])] if len(part) > 1 else part for part in parts]
    return np.concatenate(kept) if kept else order


def _ranges(starts: Ints, counts: Ints) -> Ints:
    """Return start, start + 1, ... of each of the ranges, one after the other."""
    ends = np.cumsum(counts)
    found: Ints = np.arange(int(counts.sum())) + np.repeat(starts - (ends - counts), counts)
    return found


# --- The exact front


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Points:
    """Undominated partial archs of every state between two steps, those of a state together."""

    starts: Ints  # where the points of each state begin, (n_states + 1,)
    costs: Floats
    scores: Floats
    parents: Ints  # the point before the step
    cells: NDArray[np.int32]


def _exact_front(chain: Chain, low: float, high: float) -> Archs:
    scales = _scales(chain)
    points = [
        _Points(
            starts=np.array([0, 1]),
            costs=np.array([chain.fixed[0]]),
            scores=np.array([chain.fixed[1]]),
            parents=np.zeros(1, dtype=np.int64),
            cells=np.zeros(1, dtype=np.int32),
        )
    ]
    kept = 0
    least_to_come = chain.rest(0)[1:]
    most_to_come = chain.weighted(np.array([-1.0, 0.0])).rest(0)[1:]  # below 0
    for step, least, most in zip(chain.steps, least_to_come, most_to_come, strict=True):
        ends = np.isfinite(least)  # where there is a way to the end
        least[~ends] = most[~ends] = 0.0
        limits = _StepLimits(
            needed=np.where(ends, low + most, math.inf),
            enough=low - least,
            most=np.where(ends, high - least, -math.inf),
        )
        points.append(_extended(points[-1], step, limits, scales))
        kept += len(points[-1].costs)
        if kept > _MAX_POINTS:
            raise _too_long(chain, high)
    at = np.arange(len(points[-1].costs))
    archs = np.zeros((len(at), len(chain.sizes)), dtype=np.int16)
    for step, after in zip(reversed(chain.steps), reversed(points), strict=False):  # the first points have no step
        step.decide(archs, after.cells[at].astype(np.int64))
        at = after.parents[at]
    return archs


def _too_long(chain: Chain, high: float) -> SpecError:
    lowest, highest = chain.span(0)
    return SpecError(
        f"the exact front has too many points on its way (more than {_MAX_POINTS:,}); count costs in ticks, for "
        f"example tick={(min(high, highest) - lowest) / 10_000:.2g}, or lower the budget"
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _StepLimits:
    """What a point of each state may cost, from `needed` to `most`, so that some way to the end is within the limits.

    From `enough` on every way keeps the lower limit; only below that may a dearer point of no higher score be of use.
    """

    needed: Floats
    enough: Floats
    most: Floats


def _extended(before: _Points, step: Step, limits: _StepLimits, scales: tuple[float, float]) -> _Points:
    """The points after a step that may lead to the front."""
    useful = np.ones(len(step.cells), dtype=np.bool_)
    if (limits.enough == -math.inf).all():  # no lower limit: of the cells between two states the undominated will do
        useful[:] = False
        pairs = step.target * step.n_before + step.source
        useful[_best_of_each(pairs, step.amounts[0], step.amounts[1])] = True
    starts, parts = [0], []
    for target in range(step.n_after):
        first, last = step.starts[target], step.starts[target + 1]
        cells = first + np.flatnonzero(useful[first:last])
        source = step.source[cells]
        counts = before.starts[source + 1] - before.starts[source]
        if counts.sum() > _MAX_EXTENDED:
            raise SpecError(
                f"the exact front has too many points on its way ({counts.sum():,} in one step); count costs in ticks"
            )
        parents = _ranges(before.starts[source], counts)
        costs = before.costs[parents] + np.repeat(step.amounts[0, cells], counts)
        scores = before.scores[parents] + np.repeat(step.amounts[1, cells], counts)
        early = costs < limits.enough[target]
        kept = _of_use(np.rint(costs / scales[0]), np.rint(scores / scales[1]), early)
        kept = kept[(costs[kept] >= limits.needed[target]) & (costs[kept] <= limits.most[target])]
        chosen = np.repeat(step.cells[cells], counts)[kept].astype(np.int32)
        parts.append((costs[kept], scores[kept], parents[kept], chosen))
        starts.append(starts[-1] + len(kept))
    costs, scores, parents, chosen = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Points(starts=np.array(starts), costs=costs, scores=scores, parents=parents, cells=chosen)


# --- In ticks


def _ticked_front(chain: Chain, low: float, high: float, tick: float) -> tuple[Archs, float]:
    """The best arch of each number of ticks, and by how much one may be dearer than another of no more ticks."""
    ticked = TickedChain.of(chain, [tick])
    error_low, error_high = float(ticked.error_low[-1][0, 0]), float(ticked.error_high[-1][0, 0])
    last = _last_tick(ticked, high - error_low)
    widths = ticked.widths([last])
    tables = _best_scores(ticked, widths)
    scores = tables[-1][0]
    # Below `surely` the best arch of a tick may cost less than the lower limit, so must not outdo those of later ticks.
    perhaps, surely = (min(_first_tick(ticked, low - error), len(scores)) for error in (error_high, error_low))
    upto = np.maximum.accumulate(scores[surely:])
    rises = surely + np.flatnonzero(upto > np.append(-math.inf, upto)[:-1])
    doubtful = perhaps + np.flatnonzero(scores[perhaps:surely] > -math.inf)
    cost_error = error_high - error_low
    # Every way may round to a tick beyond the last; the cheapest arch is within the budget all the same.
    archs = np.concatenate([_traced(ticked, tables, widths, np.concatenate([doubtful, rises])), chain.least(0)[None]])
    return archs, cost_error if cost_error > _scales(chain)[0] * 1000 else 0.0


def _last_tick(ticked: TickedChain, high: float) -> int:
    """The last tick at which a way to the end may cost `high`; -1: none."""
    last = (high - float(ticked.lowest[-1][0, 0])) / ticked.ticks[0]
    return math.floor(min(max(last, -1.0), float(ticked.tops[-1][0, 0])))


def _first_tick(ticked: TickedChain, low: float) -> int:
    """The first tick at which a way to the end may cost `low`."""
    first = (low - float(ticked.lowest[-1][0, 0])) / ticked.ticks[0]
    return math.ceil(min(max(first, 0.0), float(ticked.tops[-1][0, 0]) + 1.0))


def _bytes(widths: list[Ints]) -> int:
    """What tables of these widths take."""
    return sum(8 * width.shape[1] * int(width.max()) for width in widths)


def _best_scores(ticked: TickedChain, widths: list[Ints]) -> list[Floats]:
    """The best score in every state at each tick, before the first step and after each; -inf: no way."""
    taken = _bytes(widths)
    if taken > MAX_BYTES:
        raise SpecError(
            f"tables of {taken / 1e6:,.0f} MB would be needed, more than {MAX_BYTES / 1e6:,.0f} MB: take a tick of "
            f"{1.05 * ticked.ticks[0] * taken / MAX_BYTES:.2g}"
        )
    tables = [np.full((1, 1), ticked.chain.fixed[1])]
    for moves, before, after in zip(ticked.moves, widths[:-1], widths[1:], strict=True):
        table = np.full((after.shape[1], int(after.max())), -math.inf)
        for number, (into, out_of) in moves.parts(before, after):
            there = table[into]
            np.maximum(there, tables[-1][out_of] + moves.gain[number], out=there)
        tables.append(table)
    return tables


def _traced(ticked: TickedChain, tables: list[Floats], widths: list[Ints], ticks: Ints) -> Archs:
    """The archs that reach the end at `ticks` with the score of the last table."""
    archs = np.zeros((len(ticks), len(ticked.chain.sizes)), dtype=np.int16)
    chunk = max(1, _CHUNK // max((moves.rows.shape[1] for moves in ticked.moves), default=1))
    for start in range(0, len(ticks), chunk):
        part = archs[start : start + chunk]
        at = ticks[None, start : start + chunk]
        everyone = np.arange(len(part))
        states = np.zeros(len(part), dtype=np.int64)
        for moves, table, width in zip(
            reversed(ticked.moves), reversed(tables[:-1]), reversed(widths[:-1]), strict=True
        ):
            choices, position, exists = moves.into(states, at, width, table.shape)
            scores = np.where(exists, table.ravel()[position] + moves.gain[choices], -math.inf)
            chosen = choices[everyone, scores.argmax(axis=1)]
            moves.step.decide(part, moves.cells[moves.first[chosen]])
            states, at = moves.source[chosen], at - moves.shift[:, chosen]
    return archs


# --- The best under a budget


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _BestScores:
    """The best score in every state at each tick of costs up to a limit."""

    ticked: TickedChain
    widths: list[Ints]
    tables: list[Floats]

    @classmethod
    def of(cls, chain: Chain, high: float, tick: float) -> _BestScores:
        """Return them at `tick`, or at a coarser one so that they are not too large."""
        while True:
            ticked = TickedChain.of(chain, [tick or 1.0])  # 0: all archs cost the same
            widths = ticked.widths([_last_tick(ticked, high - float(ticked.error_low[-1][0, 0]))])
            excess = _bytes(widths) / _FINE_BYTES
            if excess <= 1.0 or max(int(width.max()) for width in widths) <= 1:
                return cls(ticked=ticked, widths=widths, tables=_best_scores(ticked, widths))
            tick *= 1.1 * excess


def _best_between(
    compiled: CompiledSpace, score: AdditiveScore, scores: _BestScores, low: float, budget: Budget
) -> Archs:
    """The best arch that costs from `low` up to the budget's limit; `low` is the budget's own lower limit, or none."""
    high = budget.bounds[1]
    found = _first_guess(compiled, scores, low, high)
    if found is not None:
        floors = [float(score.score(found[None])[0])]
    else:  # any arch, and so a poor one: what it leaves open is looked at from the top, twice as far down each time
        archs = _some_within(compiled, score, budget)
        found = archs[int(score.score(archs).argmax())]
        floor, top = float(score.score(found[None])[0]), float(scores.tables[-1].max())
        floors = [top - (top - floor) / 2**part for part in range(_PARTS, -1, -1)]
    for floor in floors:
        better = _better(scores.ticked, scores.tables, low, high, floor)
        if better is not None:
            return better
    return found


def _first_guess(compiled: CompiledSpace, best: _BestScores, low: float, high: float) -> Archs | None:
    """A good arch that costs from `low` to `high`: the best of those whose ticks are within, else the cheapest of all.

    None if ticks show none and there is a lower limit.
    """
    ticked, scores = best.ticked, best.tables[-1][0]
    error_low, error_high = float(ticked.error_low[-1][0, 0]), float(ticked.error_high[-1][0, 0])
    ticks = np.arange(_first_tick(ticked, low - error_high), len(scores))
    ticks = ticks[np.isfinite(scores[ticks])]
    surely = (ticks >= _first_tick(ticked, low - error_low)) & (ticks <= _last_tick(ticked, high - error_high))
    candidates = ticks[~surely]
    if surely.any():
        candidates = np.append(candidates, ticks[surely][scores[ticks[surely]].argmax()])
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    archs = _traced(ticked, best.tables, best.widths, candidates)
    costs = compiled.predict(archs)
    within = np.flatnonzero((costs >= low) & (costs <= high))
    if len(within):
        found: Archs = archs[within[0]]
        return found
    return ticked.chain.least(0) if low == -math.inf else None


def _better(ticked: TickedChain, tables: list[Floats], low: float, high: float, found: float) -> Archs | None:
    """The best arch of a score above `found` that costs from `low` to `high`; None if there is none."""
    chain, tick = ticked.chain, ticked.ticks[0]
    scales = _scales(chain)
    states, costs, scores = np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1)
    ways: list[tuple[Step, Ints, Ints]] = []
    for place in reversed(range(len(chain.steps))):
        step = chain.steps[place]
        counts = step.starts[states + 1] - step.starts[states]
        if counts.sum() > _MAX_EXTENDED:
            raise SpecError(f"the best arch has too many near rivals ({counts.sum():,} in one step) to be told apart")
        cells = _ranges(step.starts[states], counts)
        parents = np.repeat(np.arange(len(states)), counts)
        reached = np.isfinite(ticked.lowest[place][0, step.source[cells]])
        cells, parents = cells[reached], parents[reached]
        source = step.source[cells]
        cost = costs[parents] + step.amounts[0, cells]
        gained = scores[parents] + step.amounts[1, cells]
        # A beginning that leaves the whole within the limits has between so few and so many ticks; the best score
        # there is the most it adds.
        beginning = cost + ticked.lowest[place][0, source]
        last = (high - beginning - ticked.error_low[place][0, source]) / tick
        first = (low - beginning - ticked.error_high[place][0, source]) / tick
        errors = float((ticked.error_high[place] - ticked.error_low[place]).max())
        bests = _best_of_last(tables[place], (high - low + errors) / tick)
        at = np.clip(last, -1, bests.shape[1] - 1).astype(np.int64)
        most = np.where((last >= 0) & (first <= at), bests[source, np.maximum(at, 0)] + gained, -math.inf)
        kept = np.flatnonzero(most > found + scales[1])
        early = beginning[kept] < low  # the lower limit is not yet kept by every beginning
        kept = kept[_rivals(source[kept], cost[kept], gained[kept], early, scales)]
        ways.append((step, cells[kept], parents[kept]))
        states, costs, scores = source[kept], cost[kept], gained[kept]
    if not len(states):
        return None
    chosen = np.array([int(scores.argmax())])
    arch = np.zeros((1, len(chain.sizes)), dtype=np.int16)
    for step, cells, parents in reversed(ways):
        step.decide(arch, step.cells[cells[chosen]])
        chosen = parents[chosen]
    best: Archs = arch[0]
    return best


def _best_of_last(table: Floats, ticks: float) -> Floats:
    """The best score of every state at each tick and in about `ticks` before it; never of fewer."""
    if ticks + 2 >= table.shape[1]:
        found: Floats = np.maximum.accumulate(table, axis=1)
        return found
    found, have, wanted = table, 1, int(ticks) + 2
    while have < wanted:
        step = min(have, wanted - have)
        longer = found.copy()
        np.maximum(longer[:, step:], found[:, :-step], out=longer[:, step:])
        found, have = longer, have + step
    return found


def _rivals(groups: Ints, costs: Floats, scores: Floats, early: NDArray[np.bool_], scales: tuple[float, float]) -> Ints:
    """Return which points of every group matter: of early ones the best of each cost, of others the undominated."""
    first, late = np.flatnonzero(early), np.flatnonzero(~early)
    rounded = np.rint(costs[first] / scales[0])
    order = np.lexsort((-scores[first], rounded, groups[first]))
    best = np.ones(len(order), dtype=np.bool_)
    best[1:] = (np.diff(groups[first][order]) > 0) | (np.diff(rounded[order]) > 0)
    return np.concatenate([first[order[best]], late[_best_of_each(groups[late], costs[late], scores[late])]])
