"""Packed archs: nothing is lost, costs are those of the encodings, and an arch takes as few bytes as promised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.packed import PackedArchs
from lutbuilder.spaces import Condition, SearchSpace, Site, Variable
from lutbuilder_agent.errors import ShapeError, SpecError
from tests.small_spaces import every_arch, plain_cost, priced_spaces
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE, GATED, GATED_TABLE, conv


def by_op(op: Any) -> float:
    return float(int(op.op_id[:6], 16))


BY_OP = FunctionTable(name="by op", cost=by_op)
PROXYLESS = spaces.get("proxyless")
OFA = spaces.get("ofa_mbv3")


@given(priced_spaces())
@settings(max_examples=80, deadline=None)
def test_packing_loses_nothing_and_costs_what_the_ops_cost(priced: tuple[SearchSpace, FunctionTable]) -> None:
    space, table = priced
    compiled = compile_space(space, table)
    archs = every_arch(space)
    packed = compiled.pack(archs)
    assert packed.unpack().tolist() == archs.tolist()
    slow = np.array([plain_cost(space, table, arch) for arch in archs])
    assert compiled.predict(packed) == pytest.approx(slow, rel=1e-12)
    assert compiled.predict(archs) == pytest.approx(slow, rel=1e-12)


def test_inactive_choices_are_packed_as_the_network_they_stand_for() -> None:
    compiled = compile_space(GATED, GATED_TABLE)
    shallow = np.array([[0, 0, 0, k2, b2] for k2 in (0, 1) for b2 in (0, 1)])
    assert compiled.pack(shallow).unpack().tolist() == [[0, 0, 0, 0, 0]] * 4


@pytest.mark.parametrize(("space", "per_arch"), [(PROXYLESS, 8), (OFA, 10)], ids=["proxyless", "ofa_mbv3"])
def test_presets_pack_into_little_more_than_their_information(space: SearchSpace, per_arch: int) -> None:
    archs = space.sample(np.random.default_rng(0), 1000)
    packed = compile_space(space, BY_OP).pack(archs)
    assert packed.nbytes == per_arch * len(archs)
    assert np.log2(float(space.n_archs())) > 8 * (per_arch - 2)
    assert (packed.unpack() == archs).all()


@pytest.mark.parametrize("space", [PROXYLESS, OFA], ids=["proxyless", "ofa_mbv3"])
def test_packed_costs_of_presets_are_the_per_op_sums_to_1e_9(space: SearchSpace) -> None:
    compiled = compile_space(space, replace(BY_OP, cost=lambda op: by_op(op) / 2**24))
    archs = space.sample(np.random.default_rng(1), 200)
    slow = np.array([sum(by_op(op) / 2**24 for op in space.arch_ops(arch)) for arch in archs])
    assert np.abs(compiled.predict(compiled.pack(archs)) - slow).max() < 1e-9


def test_archs_beyond_one_chunk_cost_what_they_cost_alone() -> None:
    compiled = compile_space(PROXYLESS, BY_OP)
    archs = PROXYLESS.sample(np.random.default_rng(3), 70_000)
    assert (compiled.predict(compiled.pack(archs)) == compiled.predict(archs)).all()


def test_one_packing_serves_every_table_and_every_instance_of_a_space() -> None:
    archs = EXAMPLE.sample(np.random.default_rng(0), 10)
    packed = compile_space(EXAMPLE, EXAMPLE_TABLE).pack(archs)
    for space in (EXAMPLE, replace(EXAMPLE, name="another instance")):
        dearer = compile_space(space, replace(EXAMPLE_TABLE, cost=lambda op: 2 * EXAMPLE_TABLE.cost(op)))
        assert dearer.predict(packed) == pytest.approx(dearer.predict(archs))


def test_archs_of_another_space_are_refused() -> None:
    packed = compile_space(EXAMPLE, EXAMPLE_TABLE).pack(np.zeros((1, 3), int))
    with pytest.raises(ShapeError, match="packed archs of space 'example' are not of space 'gated'"):
        compile_space(GATED, GATED_TABLE).predict(packed)


def test_no_archs_pack_into_nothing() -> None:
    compiled = compile_space(EXAMPLE, EXAMPLE_TABLE)
    packed = compiled.pack(np.empty((0, 3), int))
    assert (len(packed), packed.nbytes, compiled.predict(packed).shape, packed.unpack().shape) == (0, 0, (0,), (0, 3))


@pytest.mark.parametrize(("width", "height", "per_arch"), [(255, 1, 2), (300, 1, 3), (300, 300, 5)])
def test_a_site_of_any_size_packs(width: int, height: int, per_arch: int) -> None:
    space = SearchSpace(
        name="wide",
        variables=(
            Variable(name="w", values=tuple(range(width))),
            Variable(name="h", values=tuple(range(height))),
            Variable(name="idle", values=tuple(range(255))),
        ),
        sites=(
            Site(
                name="conv",
                scope=("w", "h"),
                op=lambda a: conv(3, 1 + int(a["w"]) + int(a["h"])),
            ),
        ),
    )
    compiled = compile_space(space, replace(BY_OP, cost=lambda op: op.out_channels))
    archs = np.array([[0, 0, 1], [width - 1, height - 1, 254], [width // 2, height // 2, 0]])
    packed = compiled.pack(archs)
    assert packed.nbytes == per_arch * len(archs)
    assert (packed.unpack() == archs).all()
    sums = (1.0 + archs[:, 0] + archs[:, 1]).tolist()
    assert compiled.predict(packed).tolist() == compiled.predict(archs).tolist() == sums


def test_gates_within_a_group_take_no_room() -> None:
    # 2 depths x 8 kernels x 32 widths: 512 combinations, of which the shallow ones pin the second: 8 + 256 fit 16 bits
    # either way, 4 + 4 * 32 fit 8 bits only because the pinned ones are left out.
    deep = Condition(scope=("d",), holds=lambda a: a["d"] == 2)
    space = SearchSpace(
        name="gated group",
        variables=(
            Variable(name="d", values=(1, 2)),
            Variable(name="k", values=(1, 3, 5, 7)),
            Variable(name="w", values=tuple(range(1, 33)), active_when=deep),
        ),
        sites=(
            Site(
                name="conv",
                scope=("d", "k", "w"),
                op=lambda a: None if a["d"] == 1 else conv(int(a["w"]), 8, kernel=int(a["k"])),
            ),
        ),
    )
    assert space.n_archs() == 4 + 4 * 32
    assert compile_space(space, BY_OP).pack(np.array([[1, 3, 31]])).nbytes == 1


def test_codes_that_no_packing_makes_are_refused() -> None:
    packing = compile_space(EXAMPLE, EXAMPLE_TABLE).pack(np.zeros((1, 3), int)).packing
    with pytest.raises(SpecError, match="a code of space 'example' is below 8, got 8"):
        PackedArchs(packing=packing, columns=(np.array([8], np.uint8),))
    wrong: list[tuple[NDArray[Any], ...]] = [(), (np.array([1], np.uint16),), (np.array([[1]], np.uint8),)]
    for columns in wrong:
        with pytest.raises(ShapeError, match="1 columns of one length"):
            PackedArchs(packing=packing, columns=columns)


def test_encodings_out_of_range_are_refused() -> None:
    with pytest.raises(SpecError, match="d is a value number from 0 to 1, got 2"):
        compile_space(EXAMPLE, EXAMPLE_TABLE).pack(np.array([[0, 2, 0]]))
    with pytest.raises(ShapeError, match=r"integers of shape \(N, 3\)"):
        compile_space(EXAMPLE, EXAMPLE_TABLE).pack(np.zeros((1, 2), int))


@given(st.integers(0, 3))
@settings(max_examples=4, deadline=None)
def test_packing_does_not_depend_on_the_table(seed: int) -> None:
    archs = GATED.sample(np.random.default_rng(seed), 20)
    other = replace(GATED_TABLE, cost=lambda op: float(op.kernel * 1000 + seed))
    mine, theirs = (compile_space(GATED, table).pack(archs).columns for table in (GATED_TABLE, other))
    assert [c.tolist() for c in mine] == [c.tolist() for c in theirs]
