"""What a campaign measures: the ops a table lacks, what their call overhead is made of, and sentinels.

Call overhead is what an op costs more alone than inside a network: the call itself, and whatever an engine does at the
borders of a graph (ONNX Runtime reorders the layout of the input and of the output). For an input shape that another op
produces it is measured as A + B - AB over *pairs* of ops that follow each other; for a shape that only enters the
network it is the time of an empty call, an identity of that shape.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.op import OpSpec
from lutbuilder_agent import runtimes
from lutbuilder_agent.records import Cache, Plan

if TYPE_CHECKING:
    from lutbuilder.spaces import SearchSpace

PAIRS_PER_SHAPE = 4
SENTINELS = 12
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How a runtime is timed by default. Chosen by which predicted whole networks best: docs/decisions/0002."""

    cache: Cache
    train_ops: int
    warmup_calls: int


# A train has to bring about the cache state of a network: its weights together are about as large as a network's.
# LiteRT keeps a separate arena for every artifact, so fewer ops already fill the caches; for the same reason its first
# calls are slower for longer (stats/warmup.py: with one warm-up call 24 of 101 ops are not settled, with three 2).
_ACQUISITION: Mapping[str, Acquisition] = {
    "onnxruntime": Acquisition("rotating", 12, 2),
    "litert": Acquisition("rotating", 5, 3),
}
_DEFAULT_ACQUISITION = Acquisition("rotating", 8, 2)


def make_plan(
    runtime: str,
    *,
    threads: int,
    cache: Cache | None = None,
    instances: int = 3,
    seed: int = 0,
    options: tuple[tuple[str, str], ...] = (),
) -> Plan:
    """Return the plan for a runtime (a registry name); `cache` None takes the runtime's own acquisition."""
    _, entry = runtimes.entry(runtime)
    acquisition = _ACQUISITION.get(runtime, _DEFAULT_ACQUISITION)
    cache = cache or acquisition.cache
    return Plan(
        runtime=runtime,
        threads=threads,
        cache=cache,
        train_ops=acquisition.train_ops if cache in ("rotating", "cold") else 1,
        warmup_calls=acquisition.warmup_calls,
        instances=instances,
        seed=seed,
        options=tuple(sorted({**dict(entry.options), **dict(options)}.items())),
    )


def overhead_op(op: OpSpec) -> OpSpec:
    """Return the identity op of `op`'s input shape: its row carries the call overhead of every op of this shape."""
    return OpSpec(
        kind="identity",
        in_channels=op.in_channels,
        out_channels=op.in_channels,
        height=op.height,
        width=op.width,
        batch=op.batch,
    )


def input_shape(op: OpSpec) -> Shape:
    """Return (batch, channels, height, width) of the op's input."""
    return (op.batch, op.in_channels, op.height, op.width)


def output_shape(op: OpSpec) -> Shape:
    """Return (batch, channels, height, width) of the op's output; 1 x 1 for logits."""
    return (op.batch, op.out_channels, op.out_height, op.out_width)


def pairs(ops: Iterable[OpSpec], *, per_shape: int = PAIRS_PER_SHAPE) -> tuple[tuple[OpSpec, OpSpec], ...]:
    """Return up to `per_shape` pairs of ops for every shape at which one of `ops` can follow another.

    The cheapest ones: the overhead is a difference of times, and the smaller they are the better it is known. Each pair
    of a shape has a first and a second op as different as possible from the pairs before it.
    """
    from lutbuilder.lower import feeds, lower

    ops = [op for op in dict.fromkeys(ops) if op.kind != "identity"]
    macs = {op: lower(op).macs for op in ops}
    giving: dict[Shape, list[OpSpec]] = defaultdict(list)
    for op in ops:
        giving[output_shape(op)].append(op)
    found: list[tuple[OpSpec, OpSpec]] = []
    for shape in dict.fromkeys(input_shape(op) for op in ops):
        taking = sorted((op for op in ops if input_shape(op) == shape), key=macs.__getitem__)
        following = ((a, b) for a in giving[shape] for b in taking if feeds(a, b))
        left = sorted(following, key=lambda pair: macs[pair[0]] + macs[pair[1]])[: 4 * per_shape]
        used: dict[OpSpec, int] = defaultdict(int)
        for _ in range(min(per_shape, len(left))):
            best = min(left, key=lambda pair: (used[pair[0]] + used[pair[1]], macs[pair[0]] + macs[pair[1]]))
            left.remove(best)
            used[best[0]] += 1
            used[best[1]] += 1
            found.append(best)
    return tuple(found)


def expected_uses(space: SearchSpace) -> dict[OpSpec, float]:
    """Return how often a random arch contains each op, on average: every variable uniform, whatever constraints say."""
    uses: dict[OpSpec, float] = defaultdict(float)
    for ops in space.site_ops:
        for op in ops:
            if op is not None:
                uses[op] += 1.0 / len(ops)
    return dict(uses)


def campaign_ops(
    space_ops: Sequence[OpSpec], wanted: Collection[OpSpec], *, uses: Mapping[OpSpec, float] | None = None
) -> tuple[CampaignOp, ...]:
    """Return what to visit so that `wanted`, a part of `space_ops`, gets rows: it, pairs, empty calls, sentinels.

    Sentinels are ops that have a row already; they tie this campaign's scale to earlier ones. One batch: every op is an
    anchor for every other. `uses` (of all `space_ops`) says how often a network contains an op; without, all count 1.
    """
    asked = set(wanted)
    wanted = [op for op in space_ops if op in asked]
    shapes = {input_shape(op) for op in wanted}
    joined = [pair for pair in pairs(space_ops) if input_shape(pair[1]) in shapes]
    paired = {input_shape(pair[1]) for pair in joined}
    empty = [overhead_op(op) for op in wanted if input_shape(op) not in paired]
    others = [op for op in space_ops if op not in asked]
    sentinels = others[:: max(1, len(others) // SENTINELS)] if others else []
    singles = dict.fromkeys([*wanted, *(op for pair in joined for op in pair), *sentinels, *empty])
    made = (*(CampaignOp.of(op) for op in singles), *(CampaignOp.pair(a, b) for a, b in joined))
    return made if uses is None else weighted(made, uses)


def weighted(ops: Sequence[CampaignOp], uses: Mapping[OpSpec, float]) -> tuple[CampaignOp, ...]:
    """Return the ops with their `use` set: how often a network's latency contains an op's time.

    Call overhead is in it once for every op of the shape; each of a shape's pairs, or its empty call, has its part.
    """
    of_shape: dict[Shape, float] = defaultdict(float)
    for op, use in uses.items():
        of_shape[input_shape(op)] += use
    n_pairs = Counter(input_shape(op.ops[1]) for op in ops if op.role == "pair")

    def use_of(op: CampaignOp) -> float:
        if op.role == "pair":
            shape = input_shape(op.ops[1])
            return of_shape[shape] / n_pairs[shape]
        return of_shape[input_shape(op.ops[0])] if op.role == "overhead" else uses[op.ops[0]]

    return tuple(replace(op, use=round(use_of(op), 9)) for op in ops)
