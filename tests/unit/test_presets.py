"""The presets: golden counts and sums of the search-space page, asserted to every printed digit."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lower import lower_network
from lutbuilder.nas.compiled import compile_space
from lutbuilder.op import OpSpec
from lutbuilder.spaces import SearchSpace
from lutbuilder.spaces.apq import mid_widths
from lutbuilder.spaces.attentivenas import STAGES
from lutbuilder.spaces.fbnet import CANDIDATES
from lutbuilder.spaces.grid import alexnet_widths
from lutbuilder_agent.errors import SpecError, UnknownName
from tests.synthetic import SYNTHETIC, weight_macs

NAMES = tuple(name for name in spaces.names() if name.partition("-")[0] not in ("proxyless", "netadapt"))
RUNNABLE = (  # every op is fp32 and no lump, and the ops of an arch are a whole network
    "fbnet", "fbnet-h1984-lean", "ofa_proxyless-w1.3", "ofa_mbv3-w1.2-r172", "ofa_resnet50-r132", "attentivenas",
    "amc-v2", "netadapt-alexnet",
)  # fmt: skip  # one list, two lines
OPS = {
    "fbnet": 99, "fbnet-h1984-lean": 99, "ofa_proxyless": 475, "ofa_proxyless-w1.3": 475, "ofa_proxyless-r224": 103,
    "ofa_proxyless-w1.3-r160": 103, "ofa_proxyless-fine": 1291, "ofa_proxyless-w1.3-fine": 1291, "ofa_mbv3": 450,
    "ofa_mbv3-w1.2": 450, "ofa_mbv3-r224": 96, "ofa_mbv3-w1.2-r172": 96, "ofa_mbv3-fine": 1257,
    "ofa_mbv3-w1.2-fine": 1257, "ofa_resnet50": 2671, "ofa_resnet50-r224": 163, "ofa_resnet50-r132": 163,
    "attentivenas": 902, "attentivenas-r192": 230, "attentivenas-r224": 230, "attentivenas-r256": 230,
    "attentivenas-r288": 230, "apq": 6567 + 2, "haq": 1858, "haq-v1": 1154, "haq-v2-free": 1984, "haq-v1-free": 1280,
    "amc-v2": 10_564, "amc-v2-relu6": 10_411,
}  # fmt: skip  # one list
ARCHS = {
    "fbnet": 9**16 * 8**6,
    "ofa_proxyless-r224": (9**2 + 9**3 + 9**4) ** 5 * 9,
    "ofa_mbv3-r224": 21_758_655_492_572_485_851,
    "ofa_mbv3-fine": 25 * 7371**5,
    "ofa_resnet50-r224": 2_458_914_796_962,
    "attentivenas": 440_301_256_704,
    "haq": 64**51,
    "haq-v1-free": 64**28,
}
SUMS = {  # lowest, mean of a uniform draw, highest
    "ofa_proxyless-r224": ("1.691600", "3.314645", "6.315907"),
    "ofa_proxyless-w1.3-r224": ("2.805263", "5.484818", "10.299080"),
    "ofa_mbv3-r224": ("1.370033", "2.947260", "5.896662"),
    "ofa_mbv3-w1.2-r224": ("2.086850", "4.408850", "8.654438"),
    "ofa_mbv3-w1.2-r172": ("1.370271", "2.829272", "5.475843"),
    "ofa_mbv3-w1.2-r160": ("1.159277", "2.368461", "4.559067"),
    "attentivenas-r224": ("2.872884", "6.469794", "12.012567"),
    "attentivenas-r288": ("4.578509", "10.457380", "19.552852"),
}


def first_values(space: SearchSpace) -> list[int]:
    return [0] * len(space.sizes)


# --- Golden counts and sums


@pytest.mark.parametrize(("name", "count"), OPS.items())
def test_the_counts_of_distinct_ops_are_the_published_ones(name: str, count: int) -> None:
    assert len(spaces.get(name).ops()) == count


@pytest.mark.parametrize(("name", "count"), ARCHS.items())
def test_the_counts_of_archs_are_the_published_ones(name: str, count: int) -> None:
    assert spaces.get(name).n_archs() == count


@pytest.mark.parametrize(("name", "sums"), SUMS.items())
def test_golden_sums_on_the_synthetic_table(name: str, sums: tuple[str, str, str]) -> None:
    compiled = compile_space(spaces.get(name), SYNTHETIC)
    even = [np.full(size, 1 / size) for size in compiled.space.sizes]
    assert tuple(f"{ms:.6f}" for ms in (compiled.min_over(), compiled.expected(even), compiled.max_over())) == sums


@pytest.mark.parametrize(
    ("name", "one", "all_of_them"),
    [("ofa_proxyless", 103, 515), ("ofa_mbv3-w1.2", 96, 480), ("attentivenas", 230, 920)],
)
def test_resolutions_share_ops_but_each_has_as_many(name: str, one: int, all_of_them: int) -> None:
    space = spaces.get(name)
    singles = [spaces.get(f"{name}-r{r}").ops() for r in space.variables[0].values]
    assert [len(ops) for ops in singles] == [one] * len(singles)
    assert sum(map(len, singles)) == all_of_them
    assert set().union(*singles) == set(space.ops())


# --- Every preset


@pytest.mark.parametrize("name", NAMES)
def test_a_space_survives_pickling(name: str) -> None:
    space = spaces.get(name)
    again = pickle.loads(pickle.dumps(space))
    assert again.name == name
    arch = space.sample(np.random.default_rng(0), 1)[0]
    assert again.arch_ops(arch) == space.arch_ops(arch)


@pytest.mark.parametrize(
    "name", ["fbnet", "ofa_mbv3", "ofa_resnet50-r224", "attentivenas-r192", "apq", "haq", "amc-v2"]
)
def test_ops_are_of_the_batch_asked_for(name: str) -> None:
    assert {op.batch for op in spaces.get(name, batch=16).ops()} == {16}


@pytest.mark.parametrize("name", [*RUNNABLE, "apq", "haq", "haq-v1"])
def test_an_arch_is_a_chain_of_ops_from_the_picture_to_1000_classes(name: str) -> None:
    space = spaces.get(name)
    for arch in space.sample(np.random.default_rng(0), 5):
        ops = space.arch_ops(arch)
        assert (ops[0].in_channels, ops[-1].out_channels) == (3, 1000)
        for before, after in pairwise(ops):
            gives = (before.out_channels, before.out_height, before.out_width)
            assert gives == (after.in_channels, after.height, after.width), f"{before.label()} before {after.label()}"


@pytest.mark.parametrize("name", RUNNABLE)
def test_an_arch_lowers_to_a_whole_network(name: str) -> None:
    space = spaces.get(name, batch=2)
    for arch in space.sample(np.random.default_rng(0), 2):
        assert lower_network(space.arch_ops(arch)).shapes[-1] == (2, 1000)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_has_a_name(name: str) -> None:
    assert all(site.stage for site in spaces.get(name).sites)


# --- Once-for-all


def test_layers_beyond_the_depth_do_not_run_and_have_no_choice() -> None:
    space = spaces.get("ofa_mbv3-r224")
    shallow = {"d1": 2, "d2": 2, "d3": 2, "d4": 2, "d5": 2}
    layers = [number for number in range(1, 21) if (number - 1) % 4 < 2]
    arch = space.encode({**shallow, **{f"{v}{n}": {"k": 5, "e": 4}[v] for n in layers for v in "ke"}})
    blocks = [op for op in space.arch_ops(arch) if op.kind == "mbconv"]
    assert len(blocks) == 1 + 10
    assert {op.kernel for op in blocks[1:]} == {5}
    assert space.decode(arch)["k3"] == 3  # inactive: its first value


def test_mobilenet_v3_has_squeeze_excite_and_h_swish_where_published() -> None:
    space = spaces.get("ofa_mbv3-r224")
    deepest = space.encode({v.name: v.values[-1] for v in space.variables})
    ops = space.arch_ops(deepest)
    assert [op.act for op in ops[:2]] == ["hswish", "relu"]
    assert ops[1].residual
    stages = [ops[2 + 4 * n : 6 + 4 * n] for n in range(5)]
    assert [{op.act for op in stage} for stage in stages] == [{"relu"}, {"relu"}, {"hswish"}, {"hswish"}, {"hswish"}]
    assert [{op.se for op in stage} for stage in stages] == [{False}, {True}, {False}, {True}, {True}]
    assert [(op.kind, op.height) for op in ops[-4:]] == [("conv", 7), ("global_pool", 7), ("conv", 1), ("logits", 1)]


def test_odd_maps_are_rounded_up() -> None:
    space = spaces.get("ofa_mbv3-w1.2-r172")
    assert sorted({op.height for op in space.ops()}) == [1, 6, 11, 22, 43, 86, 172]


def test_resnet_blocks_project_where_the_shape_changes_and_the_stem_may_be_longer() -> None:
    space = spaces.get("ofa_resnet50-r224")
    blocks = [op for op in space.ops() if op.kind == "bottleneck"]
    assert all(op.shortcut != op.residual for op in blocks)
    assert all(op.shortcut == (op.in_channels != op.out_channels) for op in blocks)
    short = space.arch_ops(first_values(space))
    longer = space.arch_ops([*first_values(space)[:1], 1, *first_values(space)[2:]])
    assert [op.label() for op in longer if op not in short] == ["conv 24x112x112 k3 s1 -> 24"]


def test_mid_channels_of_resnet_follow_the_output_width() -> None:
    mids = {op.mid_channels for op in spaces.get("ofa_resnet50-r224").ops() if op.out_channels == 168}
    assert mids == {32, 40, 56}


# --- AttentiveNAS


def test_one_kernel_and_one_expansion_a_stage() -> None:
    space = spaces.get("attentivenas-r224")
    for arch in space.sample(np.random.default_rng(0), 20):
        values = space.decode(arch)
        blocks = [op for op in space.arch_ops(arch) if op.kind == "mbconv"]
        depths = [int(values[f"d{n}"]) for n in range(1, 8)]
        assert len(blocks) == sum(depths)
        starts = np.cumsum([0, *depths])
        for number, (start, end) in enumerate(pairwise(starts.tolist()), start=1):
            assert {op.kernel for op in blocks[start:end]} == {values[f"k{number}"]}
            assert {op.out_channels for op in blocks[start:end]} == {values[f"w{number}"]}
            assert {op.se for op in blocks[start:end]} == {STAGES[number - 1].se}


def test_every_block_adds_its_input_one_way_or_another() -> None:
    blocks = [op for op in spaces.get("attentivenas").ops() if op.kind == "mbconv"]
    assert all(op.residual != op.shortcut for op in blocks)
    pooled = [op for op in blocks if op.shortcut and op.in_channels == op.out_channels]
    assert {(op.in_channels, op.stride) for op in pooled} == {(24, 2), (32, 2)}
    assert {op.act for op in blocks} == {"swish"}


def test_alphanet_is_the_same_space() -> None:
    assert spaces.get("alphanet-r224").name == "attentivenas-r224"


# --- FBNet


def test_fbnet_offers_its_candidates_in_the_published_order() -> None:
    space = spaces.get("fbnet")
    assert tuple(CANDIDATES) == ("k3e1", "k3e1g2", "k3e3", "k3e6", "k5e1", "k5e1g2", "k5e3", "k5e6")
    assert len(space.variables) == 22
    assert sum(v.values[-1] == "skip" for v in space.variables) == 16
    assert {v.values[:8] for v in space.variables} == {tuple(CANDIDATES)}


def test_fbnet_expands_at_expansion_1_unless_lean() -> None:
    plain, lean = (
        [op for op in spaces.get(name).ops() if op.mid_channels and op.mid_channels == op.in_channels]
        for name in ("fbnet", "fbnet-h1504-lean")
    )
    assert all(op.expand_conv for op in plain)
    assert not any(op.expand_conv for op in lean)
    assert {op.groups for op in plain} == {1, 2}
    assert sum(map(weight_macs, plain)) > sum(map(weight_macs, lean))


# --- APQ


def test_apq_has_the_published_number_of_archs_and_widths() -> None:
    assert f"{float(spaces.get('apq').n_archs()):.3g}" == "8.14e+74"
    assert [len(mid_widths(c)) for c in (16, 24, 40, 80, 96, 192)] == [5, 7, 11, 21, 25, 49]


def test_apq_counts_shapes_and_leaves_out_7x7_with_4_bit_activations() -> None:
    ops = [op for op in spaces.get("apq").ops() if op.kind != "lump"]
    shapes = {(op.in_channels, op.out_channels, op.height, op.kernel, op.stride, op.groups) for op in ops}
    assert len(shapes) == 779
    assert len(shapes) * 9 - len(ops) == 444 == 3 * len({shape for shape in shapes if shape[3] == 7})
    assert not [op for op in ops if op.kernel == 7 and op.a_bits == 4]


def test_apq_refuses_an_arch_with_7x7_and_4_bit_activations_only_where_that_layer_runs() -> None:
    space = spaces.get("apq")
    values = {v.name: v.values[0] for v in space.variables}
    wanted = space.encode({**values, "k3": 7})  # layer 3 is beyond depth 2, dw_a3 is 4
    assert space.allowed(wanted[None]).all()
    assert not space.allowed(space.encode({**values, "k3": 7, "d1": 3})[None]).any()


# --- HAQ, AMC, NetAdapt


@pytest.mark.parametrize(
    ("name", "layers", "shapes", "macs"), [("haq", 53, 31, 300_774_272), ("haq-v1", 28, 20, 568_740_352)]
)
def test_haq_quantises_every_layer_of_the_published_network(name: str, layers: int, shapes: int, macs: int) -> None:
    space = spaces.get(name, batch=16)
    ops = space.arch_ops(first_values(space))
    assert len(ops) == layers
    assert (
        len({(op.kind, op.in_channels, op.out_channels, op.height, op.kernel, op.stride, op.groups) for op in ops})
        == shapes
    )
    assert sum(map(weight_macs, ops)) == macs
    bits = [(op.w_bits, op.a_bits) for op in ops]
    assert bits == [(8, 8), *[(1, 1)] * (layers - 2), (8, 8)]


def test_haq_names_bits_by_the_number_of_the_layer() -> None:
    space = spaces.get("haq")
    assert [v.name for v in space.variables[:2]] == ["w1", "a1"]
    assert [v.name for v in space.variables[-2:]] == ["w51", "a51"]
    free = spaces.get("haq-v2-free")
    ops = free.arch_ops(free.encode({v.name: 3 if v.name in ("w0", "a52") else 8 for v in free.variables}))
    assert [(ops[n].w_bits, ops[n].a_bits) for n in (0, 1, 52)] == [(3, 8), (8, 8), (8, 3)]


def test_haq_knows_no_bits_outside_1_to_8() -> None:
    space = spaces.get("haq")
    with pytest.raises(SpecError, match="w1 is one of"):
        space.encode({v.name: 0 for v in space.variables})


def test_pruned_mobilenet_v2_shares_the_width_of_a_residual_group() -> None:
    space = spaces.get("amc-v2")
    full = space.encode({v.name: v.values[-1] for v in space.variables})
    assert sum(map(weight_macs, space.arch_ops(full))) == 300_774_272
    narrow = space.encode({**space.decode(full), "w6": 96})
    changed = [op for op, before in zip(space.arch_ops(narrow), space.arch_ops(full), strict=True) if op != before]
    assert [96 in (op.in_channels, op.out_channels) for op in changed] == [True] * 6  # 3 projections, 3 expansions
    assert [v.values[-1] for v in space.variables if v.name[0] == "w"] == [32, 16, 24, 32, 64, 96, 160, 320, 1280]


def test_projections_of_pruned_mobilenet_v2_are_linear_and_the_other_form_says_so() -> None:
    acts = {}
    for name in ("amc-v2", "amc-v2-relu6"):
        space = spaces.get(name)
        full = space.arch_ops(space.encode({v.name: v.values[-1] for v in space.variables}))
        acts[name] = {op.act for site, op in zip(space.sites, full, strict=True) if site.name.startswith("project")}
    assert acts == {"amc-v2": {"none"}, "amc-v2-relu6": {"relu6"}}


def test_alexnet_has_the_published_maps_and_as_many_ops_as_its_widths_give() -> None:
    space = spaces.get("netadapt-alexnet")
    full = space.arch_ops(space.encode({v.name: v.values[-1] for v in space.variables}))
    assert [(op.kind, op.height) for op in full] == [
        ("conv", 224), ("max_pool", 55), ("conv", 27), ("max_pool", 27), ("conv", 13), ("conv", 13), ("conv", 13),
        ("max_pool", 13), ("linear", 6), ("linear", 1), ("logits", 1),
    ]  # fmt: skip  # one network
    assert alexnet_widths(64) == tuple(range(8, 65, 8))
    assert alexnet_widths(4096) == tuple(range(64, 4097, 64))
    n1, n2, n3, n4, n5, f6, f7 = space.sizes
    third = n2 * n3 + n3 * n4 - n2 * n5  # conv3 to conv5 are of one kind and one map
    assert len(space.ops()) == n1 + n1 * n2 + third + n5 * f6 + f6 * f7 + f7 + n1 + n2 + n5
    assert space.n_archs() == math.prod(space.sizes)


# --- Names


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("ofa_mbv3-w1.0", "ofa_mbv3"),
        ("ofa_mbv3-w1.0-fine", "ofa_mbv3-fine"),
        ("ofa_mbv3-w1.0-r224", "ofa_mbv3-r224"),
        ("ofa_mbv3-w1.2-fine", "ofa_mbv3-w1.2-fine"),
        ("alphanet", "attentivenas"),
        ("haq-v2", "haq"),
        ("haq-v1-free", "haq-v1-free"),
        ("fbnet-h1504-lean", "fbnet-h1504-lean"),
    ],
)
def test_one_space_has_one_name(typed: str, name: str) -> None:
    assert spaces.get(typed).name == name
    assert spaces.get(name).key == spaces.get(typed).key


@pytest.mark.parametrize(
    "name",
    ["ofa_mbv3-", "ofa_mbv3--r224", "ofa_mbv3-r224-fine", "ofa_mbv3-r0224", "proxyless-r224", "apq-w1.0", "haq-free"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UnknownName, match="known: proxyless"):
        spaces.get(name)


def test_a_resolution_the_space_was_not_published_for_lists_those_it_was() -> None:
    with pytest.raises(UnknownName, match="no resolution r230; there are: r128, r132"):
        spaces.get("ofa_mbv3-w1.2-r230")


def test_a_single_resolution_may_be_left_out_of_an_assignment() -> None:
    space = spaces.get("ofa_mbv3-r224")
    values = {v.name: v.values[0] for v in space.variables if v.name != "r"}
    assert space.encode(values).tolist() == space.encode({**values, "r": 224}).tolist()


def test_equal_ops_are_made_once() -> None:
    def stem() -> OpSpec | None:
        return spaces.get("ofa_mbv3-r224").site_ops[0][0]

    assert stem() is stem()
