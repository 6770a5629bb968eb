"""Mutation and crossover: canonical children, genes that change together, no pinned values in deeper archs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.nas.search.genes import Genome, encoding_dtype, genes_of, layer_genes
from lutbuilder_agent.errors import SpecError, UnknownName
from tests.search_spaces import ofa_like
from tests.small_spaces import every_arch, small_spaces

PROPERTY = settings(max_examples=60, deadline=None)  # no deadline: a busy machine is no failure
OFA = ofa_like()


def drawn(space, seed: int, n: int):
    """Canonical encodings of the type a search uses."""
    rng = np.random.default_rng(seed)
    return space.canonical(rng.integers(0, space.sizes, size=(n, len(space.sizes)))).astype(encoding_dtype(space))


@PROPERTY
@given(small_spaces(max_variables=6, constrained=False), st.integers(0, 99), st.floats(0.05, 1.0), st.booleans())
def test_children_are_canonical_encodings(space, seed, rate, another):
    genome = Genome.of(space, rate=rate, another=another)
    rng = np.random.default_rng(seed)
    parents = drawn(space, seed, 40)
    for children in (genome.mutated(parents, rng), genome.crossed(parents, parents[::-1], rng)):
        assert children.shape == parents.shape
        assert children.dtype == parents.dtype
        assert (space.canonical(children) == children).all()


@PROPERTY
@given(small_spaces(max_variables=4), st.integers(0, 99))
def test_mutation_reaches_every_arch(space, seed):
    archs = every_arch(space)
    if len(archs) == 0:
        return
    parents = np.repeat(archs[:1], 4000, axis=0).astype(np.int8)
    children = Genome.of(space, rate=1.0).mutated(parents, np.random.default_rng(seed))
    assert {tuple(row) for row in archs.tolist()} <= {tuple(row) for row in children.tolist()}


def test_a_layers_kernel_and_width_are_one_gene_and_a_depth_is_another():
    genes = genes_of(OFA)
    assert ("k1", "e1") in genes
    assert {("r",), ("d1",), ("d2",)} <= set(genes)
    assert sorted(name for gene in genes for name in gene) == sorted(OFA.positions)


def test_layer_genes_go_by_number_and_leave_depths_alone():
    genes = layer_genes(OFA)
    assert {("r",), ("d1",), ("d2",), ("k1", "e1"), ("k6", "e6")} <= set(genes)


def test_the_resolution_mutates_more_often_than_a_layer():
    genome = Genome.of(OFA)
    assert dict(zip(genome.genes, genome.rates, strict=True))[("r",)] == 0.5
    assert dict(zip(genome.genes, genome.rates, strict=True))[("k1", "e1")] == 0.1


def test_rates_are_kept_and_genes_change_as_one():
    parents = np.zeros((20_000, len(OFA.sizes)), dtype=np.int8)
    parents[:, [1, 2]] = 2  # both stages at full depth, so that every layer is active
    changed = Genome.of(OFA, another=True).mutated(parents, np.random.default_rng(0)) != parents
    share = dict(zip(OFA.positions, changed.mean(axis=0), strict=True))
    assert share["r"] == pytest.approx(0.5, abs=0.02)
    assert share["k1"] == share["e1"] == pytest.approx(0.1, abs=0.01)
    assert (changed[:, OFA.positions["k1"]] == changed[:, OFA.positions["e1"]]).all()


def test_another_value_is_never_the_same_one_and_all_others_are_alike():
    space = spaces.get("proxyless")
    parents = np.full((6000, 21), 3, dtype=np.int8)
    children = Genome.of(space, rate=1.0, rates={}, another=True).mutated(parents, np.random.default_rng(1))
    counts = np.bincount(children[:, 1], minlength=7)
    assert counts[3] == 0
    assert counts[[0, 1, 2, 4, 5, 6]].min() > 850


def test_a_layer_that_wakes_up_is_drawn_anew():
    parents = OFA.canonical(np.zeros((4000, len(OFA.sizes)), dtype=np.int8)).astype(np.int8)  # shallow everywhere
    genome = Genome.of(OFA, rates={"r": 0.1, "d1": 1.0, "d2": 0.1}, rate=1e-9)
    children = genome.mutated(parents, np.random.default_rng(2))
    deep = children[children[:, OFA.positions["d1"]] == 2]
    counts = np.bincount(deep[:, OFA.positions["k3"]], minlength=3) / len(deep)
    assert counts == pytest.approx([1 / 3] * 3, abs=0.05)


def test_a_crossed_layer_comes_from_the_parent_that_has_it():
    deep = np.ones((500, len(OFA.sizes)), dtype=np.int8)
    deep[:, [1, 2]] = 2
    shallow = np.zeros_like(deep)
    children = Genome.of(OFA).crossed(deep, shallow, np.random.default_rng(3))
    third = children[children[:, OFA.positions["d1"]] == 2][:, OFA.positions["k3"]]
    assert len(third) > 100
    assert (third == 1).all()  # never the value the shallow parent's absent layer was pinned to


def test_crossing_takes_each_gene_from_either_parent_half_of_the_time():
    space = spaces.get("proxyless")
    zeros, ones = np.zeros((4000, 21), dtype=np.int8), np.ones((4000, 21), dtype=np.int8)
    share = Genome.of(space).crossed(zeros, ones, np.random.default_rng(4)).mean(axis=0)
    assert share == pytest.approx([0.5] * 21, abs=0.04)


def test_genes_that_miss_a_variable_or_name_a_stranger_are_refused():
    with pytest.raises(SpecError, match="hold each of its variables once"):
        Genome.of(OFA, genes=[("r",)])
    with pytest.raises(UnknownName, match="no variable 'res'; known: r, d1"):
        Genome.of(OFA, rates={"res": 0.5})
    with pytest.raises(SpecError, match="above 0 and at most 1"):
        Genome.of(OFA, rate=0.0)


def test_large_spaces_get_wider_numbers():
    assert encoding_dtype(OFA) == np.int8
    assert encoding_dtype(spaces.get("netadapt")) == np.int8  # 128 widths, numbers up to 127
