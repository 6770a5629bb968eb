"""Width grids: which few ops of a large space to measure (*knots*), and rows for the others, imputed from them.

A call's time and the call overhead of a shape are imputed each on its own, and subtracted where measured ones are: in
`make_rows`. An imputed row is evidence `modelled`, method `imputed`, without visits; it never displaces a measured one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lutbuilder.campaign.estimates import summarise
from lutbuilder.campaign.plan import (
    SENTINELS,
    Shape,
    expected_uses,
    input_shape,
    output_shape,
    overhead_op,
    pairs,
    weighted,
)
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec
from lutbuilder.lower import lower
from lutbuilder.op import OpSpec
from lutbuilder.stats.impute import Imputation, Shapes, choose, impute, monotone
from lutbuilder.stats.interval import LEVEL, quantile
from lutbuilder.stats.records import OpEstimate
from lutbuilder_agent.records import Cache

if TYPE_CHECKING:
    from lutbuilder.coordinator.store import Store
    from lutbuilder.lut.rows import FailureOfOp
    from lutbuilder.lut.schema import Evidence, Method, Row
    from lutbuilder.spaces import SearchSpace

TILES = (1, 8, 16, 32, 64)  # channels that kernels handle at a time, on one engine or another
STAGES = (0.7, 0.3)  # of the ops and of the time: the later ones go where the errors of networks come from
_LEAST_STAGED = 24  # fewer knots are all chosen at once
_SEEDED = 0.25  # of the first knots, so many are there for the call overheads
_PAIRS_PER_SHAPE = 2  # overheads of a grid vouch for each other
_UNKNOWN_SD = 0.05  # of log time, of an op visited too few times to have an interval
_LEAST_SD = 1e-4


# --- Which ops to measure


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one campaign of several measures: at most `count` new ops, until `share` of the whole budget is spent."""

    count: int
    share: float


def stages(count: int) -> tuple[Stage, ...]:
    """Return how `count` knots come: most of them spread out, the others where these say that errors come from."""
    if count < _LEAST_STAGED:
        return (Stage(count=count, share=1.0),)
    ends = np.cumsum(STAGES)
    numbers = np.diff(np.round(ends * count), prepend=0.0)
    return tuple(Stage(count=int(n), share=float(end)) for n, end in zip(numbers, ends, strict=True))


def staged(
    space: SearchSpace,
    spec: CampaignSpec,
    wanted: Sequence[OpSpec],
    count: int,
    measured: Callable[[], Mapping[OpSpec, OpEstimate]],
) -> Iterator[CampaignSpec]:
    """Yield, stage after stage, `spec` for what to visit next so that `count` of `wanted` are measured in the end.

    `measured` gives the estimates of what was measured before, the stages yielded so far included: so a command that
    is started again finds the same stages. Budgets count from the start of the first.
    """
    uses = expected_uses(space)
    left = dict.fromkeys(wanted)
    for stage in stages(count):
        known = measured()
        chosen = next_knots(space.ops(), left, known, uses, stage.count)
        taken = set(chosen)
        left = dict.fromkeys(op for op in left if op not in taken)
        if chosen:
            ops = knot_ops(space.ops(), known, chosen, uses)
            yield replace(spec, ops=ops, budget_s=spec.budget_s * stage.share)


def estimates_of(store: Store, campaign_ids: Collection[str]) -> dict[OpSpec, OpEstimate]:
    """Return what these campaigns of `store` measured of each op, call overhead still inside."""
    campaigns = [c for c in store.campaigns() if c.campaign_id in campaign_ids and c.rounds]
    ops = {op.op_id: op for campaign in campaigns for op in campaign.spec.ops}
    if not ops:
        return {}
    summary = summarise(ops.values(), store.visits([campaign.campaign_id for campaign in campaigns]))
    return {op.ops[0]: summary.by_id[i] for i, op in ops.items() if op.role == "op" and i in summary.by_id}


def next_knots(
    space_ops: Sequence[OpSpec],
    candidates: Collection[OpSpec],
    known: Mapping[OpSpec, OpEstimate],
    uses: Mapping[OpSpec, float],
    count: int,
) -> tuple[OpSpec, ...]:
    """Return up to `count` of `candidates` to measure next, in the order of `space_ops`.

    Without any estimate in `known` they spread over all widths, and some of them follow each other so that call
    overhead can be told. With estimates they are those that add most to a network's error: uses x uncertainty in ms.
    """
    shapes = shapes_of(space_ops)
    candidates = set(candidates)
    allowed = np.array([op in candidates for op in space_ops], dtype=np.float64)
    if any(op in known for op in space_ops):  # a table may hold ops of other spaces, too
        told = impute_ops(space_ops, known)
        use = np.array([uses[op] for op in space_ops])
        weight = allowed * use * np.nan_to_num(told.ms, nan=float(np.nanmax(told.ms)))
        chosen = choose(shapes, weight, count, imputation=told)
        return tuple(space_ops[i] for i in np.sort(chosen))
    seeds = {op for op in _seeds(space_ops, min(count, max(2, round(_SEEDED * count)))) if op in candidates}
    places = np.flatnonzero([op in seeds for op in space_ops])
    chosen = choose(shapes, allowed, count - len(places), taken=places)
    return tuple(space_ops[i] for i in np.sort(np.concatenate([places, chosen])))


def _seeds(space_ops: Sequence[OpSpec], count: int) -> list[OpSpec]:
    """Return up to `count` ops that follow each other at spread out shapes, the cheapest that do."""
    macs = {op: lower(op).macs for op in space_ops}
    giving: dict[Shape, OpSpec] = {}
    taking: dict[Shape, OpSpec] = {}
    for op in sorted(space_ops, key=macs.__getitem__, reverse=True):  # the cheapest comes last and stays
        taking[input_shape(op)] = op
        if op.kind != "logits":
            giving[output_shape(op)] = op
    inner = [overhead_op(op) for shape, op in taking.items() if shape in giving]
    if not inner:
        return []
    order = choose(shapes_of(inner), np.ones(len(inner)), len(inner))
    found: dict[OpSpec, None] = {}
    for i in order:
        shape = input_shape(inner[i])
        both = {giving[shape]: None, taking[shape]: None}
        if len(found | both) <= count:
            found |= both
    return list(found)


def knot_ops(
    space_ops: Sequence[OpSpec],
    known: Collection[OpSpec],
    wanted: Collection[OpSpec],
    uses: Mapping[OpSpec, float],
) -> tuple[CampaignOp, ...]:
    """Return what to visit so that `wanted` are measured: they, pairs, empty calls, and sentinels among `known`.

    As `campaign_ops`, but pairs are formed among the knots only, and where none can be the call overhead is imputed
    from other shapes, not taken from an empty call, which is another thing. Shapes that had pairs already get no more.
    """
    old, new = set(known).difference(wanted), set(wanted)
    before = [op for op in space_ops if op in old]
    knots = [op for op in space_ops if op in old or op in new]
    done = {input_shape(second) for _, second in pairs(before, per_shape=1)}
    joined = [pair for pair in pairs(knots, per_shape=_PAIRS_PER_SHAPE) if input_shape(pair[1]) not in done]
    given = {output_shape(op) for op in space_ops if op.kind != "logits"}
    fresh = [op for op in space_ops if op in new]
    empty = [overhead_op(op) for op in fresh if input_shape(op) not in given]
    sentinels = before[:: max(1, len(before) // SENTINELS)]
    singles = dict.fromkeys([*fresh, *(op for pair in joined for op in pair), *sentinels, *empty])
    made = (*(CampaignOp.of(op) for op in singles), *(CampaignOp.pair(a, b) for a, b in joined))
    return weighted(made, uses)


# --- Rows


@dataclass(frozen=True, kw_only=True)
class ImputedRows:
    """`make_rows` for a space of which only some ops were measured: the others get imputed rows."""

    space_ops: tuple[OpSpec, ...]

    def __call__(
        self,
        campaign_ops: Iterable[CampaignOp],
        estimates: Sequence[OpEstimate],
        failures: Iterable[FailureOfOp],
        stop_reasons: Mapping[str, str],
        *,
        method: Method = "isolated",
        evidence: Evidence = "measured",
        cache: Cache,
    ) -> tuple[Row, ...]:
        """Return the rows of what was measured or failed, and a row for every other op and shape of the space."""
        from lutbuilder.lut.rows import make_rows

        campaign_ops, failures = tuple(campaign_ops), tuple(failures)
        by_id = {estimate.op_id: estimate for estimate in estimates}
        alone = {op.op_id for op in campaign_ops if op.role == "overhead"}  # empty calls are no differences of pairs
        shapes = tuple(dict.fromkeys(overhead_op(op) for op in self.space_ops))
        overheads = imputed(shapes, by_id, leave_out=alone)
        ops = imputed(self.space_ops, by_id, leave_out={failure.op_id for failure in failures})
        measured = make_rows(
            campaign_ops, (*estimates, *overheads.values()), failures, stop_reasons,
            method=method, evidence=evidence, cache=cache,
        )  # fmt: skip  # one call
        borrowed = {op.op_id for op in overheads}
        rows = [_noted(row, borrowed) for row in measured if row.op_id not in borrowed]
        known = [by_id[op.op_id] for op in shapes if op.op_id in by_id]
        modelled = make_rows(
            [CampaignOp.of(op) for op in (*ops, *overheads)], (*ops.values(), *overheads.values(), *known), (), {},
            method="imputed", evidence="modelled", cache=cache,
        )  # fmt: skip  # one call
        own = borrowed | {op.op_id for op in ops}
        return (*rows, *(_unmeasured(row) for row in modelled if row.op_id in own))


def imputed(
    ops: Sequence[OpSpec], by_id: Mapping[str, OpEstimate], *, leave_out: Collection[str] = ()
) -> dict[OpSpec, OpEstimate]:
    """Return an estimate, of no visits, for every op without one in `by_id` whose kind has one; gross, as those are.

    Ops whose id is in `leave_out` are neither told nor listened to.
    """
    known = {op: by_id[op.op_id] for op in ops if op.op_id in by_id and op.op_id not in leave_out}
    if not known or all(op.op_id in by_id or op.op_id in leave_out for op in ops):
        return {}
    told = impute_ops(ops, known)
    lo, hi = told.interval(LEVEL)
    return {
        op: OpEstimate(
            op_id=op.op_id, time_ms=float(told.ms[i]), lo_ms=float(lo[i]), hi_ms=float(hi[i]),
            p90_ms=float(told.ms[i]), n_visits=0, n_rounds=0, n_instances=0, n_sessions=0, test_retest=None,
            preempted_fraction=0.0, bimodal=False, residual_mad=0.0,
        )
        for i, op in enumerate(ops)
        if op.op_id not in by_id and op.op_id not in leave_out and np.isfinite(told.ms[i])
    }  # fmt: skip  # one estimate


def impute_ops(ops: Sequence[OpSpec], known: Mapping[OpSpec, OpEstimate]) -> Imputation:
    """Return what the estimates in `known` say about all `ops`, in their order; wider is never faster (`monotone`)."""
    shapes = shapes_of(ops)
    places = np.array([i for i, op in enumerate(ops) if op in known])
    estimates = [known[ops[i]] for i in places]
    told = impute(shapes, places, np.array([e.time_ms for e in estimates]), np.array([log_sd(e) for e in estimates]))
    lo, hi = np.array([_ends(estimate) for estimate in estimates]).T
    return replace(told, ms=monotone(shapes, told.ms, places, lo, hi))


def log_sd(estimate: OpEstimate) -> float:
    """Standard deviation of the logarithm of the estimated time."""
    half = estimate.half_width
    return _UNKNOWN_SD if half is None else max(half / float(quantile(np.array(estimate.freedom))), _LEAST_SD)


def _ends(estimate: OpEstimate) -> tuple[float, float]:
    """Both ends of the 95 % interval in ms; a wide one where too few visits tell none."""
    if estimate.lo_ms is None or estimate.hi_ms is None:
        reach = np.exp(2.0 * _UNKNOWN_SD)
        return float(estimate.time_ms / reach), float(estimate.time_ms * reach)
    return estimate.lo_ms, estimate.hi_ms


def _noted(row: Row, borrowed: Collection[str]) -> Row:
    """A measured row that says so where its call overhead was imputed."""
    if row.kind == "identity" or row.latency_ms is None or overhead_op(row.op).op_id not in borrowed:
        return row
    note = "call overhead imputed from other shapes"
    return replace(row, reason=note if row.reason is None else f"{row.reason}; {note}")


def _unmeasured(row: Row) -> Row:
    """An imputed row, without anything that only visits tell."""
    from lutbuilder.lut.schema import COLUMNS

    told_by_visits: dict[str, Any] = {c.name: None if c.nullable else 0 for c in COLUMNS if c.group == "trust"}
    return replace(row, **told_by_visits, p90_ms=None, cache=None)


# --- What tells ops apart


def shapes_of(ops: Sequence[OpSpec]) -> Shapes:
    """Return the ops as shapes: grouped by all but their sizes, with their work in every tile of TILES."""
    kinds: dict[tuple[object, ...], int] = {}
    group = [kinds.setdefault(_kind(op), len(kinds)) for op in ops]
    plain = np.array([_work(op) for op in ops], dtype=np.float64)
    # Some of an op's work is done in tiles and some is not, so every tile's columns have both.
    work = [np.hstack([plain, np.array([_work(_tiled(op, tile)) for op in ops])]) for tile in TILES]
    return Shapes(
        group=np.array(group, dtype=np.int64),
        widths=np.array([(op.in_channels, max(op.mid_channels, 1), op.out_channels) for op in ops], dtype=np.int64),
        extents=np.array([(op.height * op.width, op.out_height * op.out_width) for op in ops], dtype=np.float64),
        work=np.array(work),
    )


def _kind(op: OpSpec) -> tuple[object, ...]:
    groups = "depthwise" if _is_depthwise(op) else op.groups
    joins = (op.residual, op.shortcut)
    return (op.kind, op.kernel, op.padding, groups, op.act, joins, op.se, op.w_bits, op.a_bits, op.batch)


@lru_cache(maxsize=1 << 17)  # a grid of 16 thousand ops, in five tiles
def _work(op: OpSpec) -> tuple[float, ...]:
    """Elements read and written, a call, weights, MACs."""
    graph = lower(op)
    moved = (op.in_channels * op.height * op.width, op.out_channels * op.out_height * op.out_width)
    return (*map(float, moved), 1.0, float(graph.params), float(graph.macs))


def _tiled(op: OpSpec, tile: int) -> OpSpec:
    """The op with its channels rounded up to whole tiles; grouped convolutions but depthwise ones as they are."""
    if op.groups > 1 and not _is_depthwise(op):
        return op
    widths = {name: -(-getattr(op, name) // tile) * tile for name in ("in_channels", "mid_channels", "out_channels")}
    # Two widths of one tile are equal as tiles: a shortcut between them is the input itself.
    equal = op.stride == 1 and widths["in_channels"] == widths["out_channels"]
    return replace(
        op,
        **widths,
        groups=widths["in_channels"] if _is_depthwise(op) else 1,
        shortcut=op.shortcut and not equal,
        residual=op.residual or (op.shortcut and equal),
    )


def _is_depthwise(op: OpSpec) -> bool:
    return op.groups > 1 and op.groups == op.in_channels == op.out_channels
