"""What a campaign measures: which call-overhead ops go with which ops."""

from __future__ import annotations

from collections.abc import Iterable

from lutbuilder.op import OpSpec


def overhead_op(op: OpSpec) -> OpSpec:
    """Return the identity op of `op`'s input shape: an empty call, whose time is the call overhead inside `op`'s own time."""
    return OpSpec(
        kind="identity",
        in_channels=op.in_channels,
        out_channels=op.in_channels,
        height=op.height,
        width=op.width,
        batch=op.batch,
    )


def with_overheads(ops: Iterable[OpSpec]) -> tuple[OpSpec, ...]:
    """Return `ops` and the overhead ops they need, each once, in first-seen order."""
    ops = tuple(ops)
    return tuple(dict.fromkeys([*ops, *(overhead_op(op) for op in ops)]))
