"""The worked example of the search-space page, and a small gated, constrained space; several test files use both."""

from __future__ import annotations

from lutbuilder.nas.compiled import FunctionTable
from lutbuilder.op import OpSpec
from lutbuilder.spaces import Assignment, Condition, SearchSpace, Site, Variable


def conv(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, w_bits: int = 32) -> OpSpec:
    return OpSpec(
        kind="conv", in_channels=in_channels, out_channels=out_channels, height=8, width=8,
        kernel=kernel, stride=stride, w_bits=w_bits,
    )  # fmt: skip  # one shape, one line


def block(in_channels: int, kernel: int, stride: int) -> OpSpec:
    return OpSpec(
        kind="mbconv", in_channels=in_channels, mid_channels=in_channels, out_channels=32, height=8, width=8,
        kernel=kernel, stride=stride,
    )  # fmt: skip  # one shape, one line


def _stem(a: Assignment) -> OpSpec:
    return conv(3, int(a["w"]))


def _b1(a: Assignment) -> OpSpec:
    return block(int(a["w"]), int(a["k"]), 2)


def _b2(a: Assignment) -> OpSpec | None:
    return None if a["d"] == 1 else block(32, int(a["k"]), 1)


EXAMPLE = SearchSpace(
    name="example",
    variables=(
        Variable(name="w", values=(16, 24)),
        Variable(name="d", values=(1, 2)),
        Variable(name="k", values=(3, 5)),
    ),
    sites=(
        Site(name="stem", scope=("w",), op=_stem),
        Site(name="b1", scope=("w", "k"), op=_b1),
        Site(name="b2", scope=("d", "k"), op=_b2),
    ),
)
EXAMPLE_MS = {
    conv(3, 16): 1.0,
    conv(3, 24): 1.4,
    block(16, 3, 2): 2.0,
    block(16, 5, 2): 2.6,
    block(24, 3, 2): 2.8,
    block(24, 5, 2): 3.6,
    block(32, 3, 1): 1.5,
    block(32, 5, 1): 2.1,
}
EXAMPLE_TABLE = FunctionTable(name="example", cost=EXAMPLE_MS.__getitem__)


def _first(a: Assignment) -> OpSpec:
    return conv(3, 8, kernel=int(a["k1"]), w_bits=int(a["b1"]))


def _second(a: Assignment) -> OpSpec | None:
    return None if a["d"] == 1 else conv(8, 8, kernel=int(a["k2"]), w_bits=int(a["b2"]))


def _runs_second(a: Assignment) -> bool:
    return a["d"] == 2


# Depth 1 or 2; the second layer's kernel and bits matter at depth 2 only; neither layer may be 7 x 7 in 4 bits.
GATED = SearchSpace(
    name="gated",
    variables=(
        Variable(name="d", values=(1, 2)),
        Variable(name="k1", values=(3, 7)),
        Variable(name="b1", values=(8, 4)),
        Variable(name="k2", values=(7, 3), active_when=Condition(scope=("d",), holds=_runs_second)),
        Variable(name="b2", values=(4, 8), active_when=Condition(scope=("d",), holds=_runs_second)),
    ),
    sites=(
        Site(name="first", scope=("k1", "b1"), op=_first),
        Site(name="second", scope=("d", "k2", "b2"), op=_second),
    ),
    constraints=(
        Condition(scope=("k1", "b1"), holds=lambda a: not (a["k1"] == 7 and a["b1"] == 4)),
        Condition(scope=("k2", "b2"), holds=lambda a: not (a["k2"] == 7 and a["b2"] == 4)),
    ),
)
GATED_TABLE = FunctionTable(name="gated", cost=lambda op: op.kernel + op.w_bits / 100)
