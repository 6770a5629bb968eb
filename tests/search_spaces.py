"""Spaces small enough to search in tests: like OFA's, like HAQ's, like AMC's; costs that sizes alone do not explain."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from lutbuilder.lower import lower
from lutbuilder.nas.compiled import CompiledSpace, FunctionTable, compile_space
from lutbuilder.op import OpSpec
from lutbuilder.spaces import Assignment, Condition, SearchSpace, Site, Variable

DEPTHS, LAYERS = (1, 2, 3), 3


def uneven_ms(op: OpSpec) -> float:
    """Costs that grow with size and bits, up to 40 % either way, as on a device: fixed by the op."""
    macs = op.in_channels * op.out_channels * op.kernel**2 * op.height * op.width / op.groups
    return (0.01 + macs * (op.w_bits + op.a_bits) / 64 / 1e5) * (0.6 + int(op.op_id[:4], 16) / 2**16 * 0.8)


TABLE = FunctionTable(name="uneven", cost=uneven_ms)


def ofa_like(stages: int = 2) -> SearchSpace:
    """Resolution, a depth a stage, kernel and width a layer; layers beyond the depth do not run and have no choices."""
    variables = [Variable(name="r", values=(8, 12))]
    variables += [Variable(name=f"d{s}", values=DEPTHS) for s in range(1, stages + 1)]
    sites: list[Site] = []
    for layer in range(stages * LAYERS):
        depth, place, number = f"d{layer // LAYERS + 1}", layer % LAYERS + 1, layer + 1
        gate = Condition(scope=(depth,), holds=partial(_runs, depth, place)) if place > DEPTHS[0] else None
        variables += [
            Variable(name=f"k{number}", values=(3, 5, 7), active_when=gate),
            Variable(name=f"e{number}", values=(8, 16, 24), active_when=gate),
        ]
        scope = ("r", depth, f"k{number}", f"e{number}")
        sites.append(Site(name=f"layer{number}", scope=scope, op=partial(_layer, depth, place, number)))
    return SearchSpace(name="ofa-like", variables=tuple(variables), sites=tuple(sites))


def _runs(depth: str, place: int, a: Assignment) -> bool:
    return int(a[depth]) >= place


def _layer(depth: str, place: int, number: int, a: Assignment) -> OpSpec | None:
    if not _runs(depth, place, a):
        return None
    return OpSpec(
        kind="conv", in_channels=16, out_channels=int(a[f"e{number}"]), height=int(a["r"]), width=int(a["r"]),
        kernel=int(a[f"k{number}"]),
    )  # fmt: skip  # one shape, one line


def bit_space(layers: int = 4, *, values: tuple[int, ...] = tuple(range(1, 9))) -> SearchSpace:
    """Weight and activation bits a layer, as in HAQ; the last layer is fixed at 8 bits."""
    variables: list[Variable] = []
    sites: list[Site] = []
    for n in range(layers):
        chosen = values if n < layers - 1 else (8,)
        variables += [Variable(name=f"w{n}", values=chosen), Variable(name=f"a{n}", values=chosen)]
        sites.append(Site(name=f"layer{n}", scope=(f"w{n}", f"a{n}"), op=partial(_quantised, n)))
    return SearchSpace(name="bits", variables=tuple(variables), sites=tuple(sites))


def _quantised(n: int, a: Assignment) -> OpSpec:
    return OpSpec(
        kind="conv", in_channels=8 * (n + 1), out_channels=8, height=8, width=8, kernel=3, w_bits=int(a[f"w{n}"]),
        a_bits=int(a[f"a{n}"]),
    )  # fmt: skip  # one shape, one line


def width_space(layers: int = 4, *, full: int = 40) -> SearchSpace:
    """Output widths in multiples of 8, as in AMC; an op sees its own width and the one before."""
    widths = tuple(range(8, full + 1, 8))
    variables = [Variable(name=f"w{n}", values=widths) for n in range(layers)]
    sites = [Site(name="stem", scope=("w0",), op=_stem)]
    sites += [Site(name=f"pw{n}", scope=(f"w{n - 1}", f"w{n}"), op=partial(_pointwise, n)) for n in range(1, layers)]
    return SearchSpace(name="widths", variables=tuple(variables), sites=tuple(sites))


def _stem(a: Assignment) -> OpSpec:
    return OpSpec(kind="conv", in_channels=3, out_channels=int(a["w0"]), height=8, width=8, kernel=3)


def _pointwise(n: int, a: Assignment) -> OpSpec:
    return OpSpec(kind="conv", in_channels=int(a[f"w{n - 1}"]), out_channels=int(a[f"w{n}"]), height=8 + n, width=8)


def costs(space: SearchSpace, table: FunctionTable = TABLE) -> CompiledSpace:
    """The space over the uneven costs."""
    return compile_space(space, table)


def quantile_of(compiled: CompiledSpace, share: float) -> float:
    """A cost so far up the range from the cheapest to the dearest arch."""
    return compiled.min_over() + share * (compiled.max_over() - compiled.min_over())


def bit_macs(op: OpSpec) -> float:
    """Multiply-accumulates times the bits of both operands."""
    return float(lower(replace(op, w_bits=32, a_bits=32)).macs * op.w_bits * op.a_bits)


def more_is_better(archs: np.ndarray) -> np.ndarray:
    """A stand-in for accuracy: larger value numbers are better, earlier variables more so; the same for equal archs."""
    weights = 1.0 / (1.0 + np.arange(archs.shape[1]))
    return 50.0 + np.sqrt(archs.astype(np.float64)) @ weights
