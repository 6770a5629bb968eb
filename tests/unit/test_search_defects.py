"""What published search code gets wrong, one test a defect: none of it is copied here."""

from __future__ import annotations

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.search import (
    BitEnvironment,
    ChannelEnvironment,
    Evolution,
    Genome,
    Limit,
    LimitNeverBinds,
    layer_genes,
    rollout,
    search,
)
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import Infeasible, OpNotInLut, SpecError
from tests.search_spaces import TABLE, bit_space, costs, more_is_better, ofa_like, quantile_of

OFA = ofa_like()
MS = costs(OFA)


def test_defect_1_an_infeasible_limit_is_an_error_that_names_the_minimum_and_never_hangs():
    with pytest.raises(Infeasible, match=f"{MS.min_over():.6g}"):
        search(Limit(compiled=MS, max_cost=MS.min_over() * 0.999), more_is_better, seed=0)


def test_defect_1_a_limit_that_one_arch_in_thousands_keeps_is_searched_at_once():
    limit = Limit(compiled=MS, max_cost=MS.min_over() * 1.0001)
    found = search(limit, more_is_better, seed=0)
    assert found.exhausted
    assert (MS.predict(found.archs) <= limit.max_cost).all()


def test_defect_2_all_of_the_first_population_and_all_children_are_scored_and_may_become_parents():
    batches: list[np.ndarray] = []

    def last_is_best(archs):
        batches.append(archs.copy())
        return 1000.0 * len(batches) + np.arange(len(archs))  # the very last child of a generation wins

    how = Evolution(first=30, parents=4, mutated=10, crossed=10, generations=3)
    found = search(Limit(compiled=MS, max_cost=quantile_of(MS, 0.5)), last_is_best, how, seed=1)
    assert [len(batch) for batch in batches] == [30, 20, 20, 20]
    assert (found.archs == batches[-1][::-1][:4]).all()
    assert len(found.history) == 90


def test_defect_3_there_is_no_default_limit_and_one_above_the_dearest_arch_is_warned_of():
    with pytest.raises(TypeError, match="max_cost"):
        Limit(compiled=MS)
    with pytest.raises(SpecError, match="needs a limit"):
        search([], more_is_better, seed=0)
    with pytest.warns(LimitNeverBinds, match="never binds"):
        search(Limit(compiled=MS, max_cost=MS.max_over()), more_is_better, Evolution(generations=1), seed=0)


def test_defect_4_mutation_makes_stages_shallower_as_readily_as_deeper():
    space = spaces.get("apq")
    genome = Genome.of(space, genes=layer_genes(space))
    depth = space.positions["d1"]
    parents = space.sample(np.random.default_rng(0), 6000).astype(np.int8)
    change = genome.mutated(parents, np.random.default_rng(1))[:, depth].astype(int) - parents[:, depth]
    deeper, shallower = (change > 0).sum(), (change < 0).sum()
    assert min(deeper, shallower) > 100
    assert deeper == pytest.approx(shallower, rel=0.35)


def test_defect_4_a_rule_is_not_tested_on_layers_that_do_not_run():
    space = spaces.get("apq")
    shallow = space.canonical(np.zeros((1, len(space.sizes)), dtype=np.int16))[0]
    forbidden = shallow.copy()  # layer 4 is absent at depth 2: seven by seven in 4 bits there breaks nothing
    forbidden[space.positions["k4"]] = space.variables[space.positions["k4"]].values.index(7)
    forbidden[space.positions["dw_a4"]] = space.variables[space.positions["dw_a4"]].values.index(4)
    assert (space.canonical(forbidden[None])[0] == shallow).all()
    assert space.allowed(space.canonical(forbidden[None])).all()
    broken = space.canonical(np.zeros((1, len(space.sizes)), dtype=np.int16))
    broken[0, space.positions["k1"]] = space.variables[space.positions["k1"]].values.index(7)
    broken[0, space.positions["dw_a1"]] = space.variables[space.positions["dw_a1"]].values.index(4)
    assert not space.allowed(broken).any()


@pytest.mark.parametrize("bits", [-1, 0, 9])
def test_defect_5_bits_outside_1_to_8_are_refused_never_looked_up_from_the_other_end(bits):
    space = bit_space()
    with pytest.raises(SpecError, match="w0 is one of"):
        space.encode({name: bits if name == "w0" else 8 for name in space.positions})
    with pytest.raises(SpecError):
        OpSpec(kind="conv", in_channels=8, out_channels=8, height=8, width=8, a_bits=bits)
    with pytest.raises(SpecError, match="w0 is a value number from 0 to 7, got -1"):
        costs(space).predict(np.array([[-1] + [0] * (len(space.sizes) - 1)]))


def test_defect_5_action_0_is_the_fewest_bits_and_not_one_below():
    compiled = costs(bit_space())
    environment = BitEnvironment(limit=Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.9)), low=1)
    assert environment.bits(np.array([0.0])).tolist() == [1]


def test_defect_6_channels_of_every_residual_group_are_equal_the_last_one_too():
    space = spaces.get("amc-v2")
    compiled = compile_space(space, FunctionTable(name="any", cost=lambda op: float(op.in_channels)), "macs")
    environment = ChannelEnvironment(limit=Limit(compiled=compiled, max_cost=0.6 * compiled.max_over()))
    archs = rollout(environment, np.random.default_rng(0).random((20, environment.n_steps)))
    for arch in archs:
        ops = dict(zip((site.name for site in space.sites), space.arch_ops(arch), strict=True))
        for blocks in (
            (2, 3),
            (4, 5, 6),
            (7, 8, 9, 10),
            (11, 12, 13),
            (14, 15, 16),
        ):  # those whose outputs are added up
            assert len({ops[f"project{block}"].out_channels for block in blocks}) == 1


def test_defect_7_a_missing_op_is_an_error_never_a_constant():
    missing = OFA.ops()[7]
    with pytest.raises(OpNotInLut, match=r"1 of the \d+ ops of space 'ofa-like' are not in uneven"):
        compile_space(OFA, FunctionTable(name="uneven", cost=TABLE.cost, covers=lambda op: op != missing))
