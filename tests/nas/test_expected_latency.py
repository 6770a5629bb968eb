"""ExpectedLatency: equal to the table's sum, exact gradients, and state that cannot end up in another space."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lutbuilder import ExpectedLatency, spaces
from lutbuilder.lower import lower
from lutbuilder.lut import Lut, publish
from lutbuilder.nas.compiled import FunctionTable
from lutbuilder.nas.expected_latency import two_path_probs
from lutbuilder.op import OpSpec
from lutbuilder.spaces import SearchSpace, Site, Variable
from lutbuilder_agent.errors import OpNotInLut, ShapeError, SpecError
from tests.lut_examples import example_meta, example_row
from tests.worked_example import EXAMPLE, EXAMPLE_TABLE, GATED, GATED_TABLE, block, conv


def uneven_ms(op: OpSpec) -> float:
    return (0.01 + lower(op).macs / 1e8) * (0.8 + int(op.op_id[:4], 16) / 2**17)


PROXYLESS = spaces.get("proxyless")
UNEVEN = FunctionTable(name="uneven", cost=uneven_ms, call_overhead_ms=0.025)


def triple(a: Any) -> OpSpec:
    return conv(int(a["u"]) + 1, 3 * int(a["x"]) + int(a["y"]) + 1)


# Scopes of 0 to 3 variables, two of one shape, a variable at several sites, one at none.
MIXED = SearchSpace(
    name="mixed",
    variables=(
        Variable(name="u", values=(0, 1)),
        Variable(name="x", values=(0, 1, 2)),
        Variable(name="y", values=(0, 1, 2)),
        Variable(name="idle", values=(0, 1, 2, 3)),
    ),
    sites=(
        Site(name="stem", scope=(), op=lambda a: conv(3, 8)),
        Site(name="u", scope=("u",), op=lambda a: None if a["u"] == 0 else conv(8, 8)),
        Site(name="ux", scope=("u", "x"), op=lambda a: conv(11, 2 * int(a["x"]) + int(a["u"]) + 1)),
        Site(name="uy", scope=("u", "y"), op=lambda a: conv(12, 2 * int(a["y"]) + int(a["u"]) + 1)),
        Site(name="xy", scope=("y", "x"), op=lambda a: conv(13, 3 * int(a["x"]) + int(a["y"]) + 1)),
        Site(name="uxy", scope=("u", "x", "y"), op=triple),
    ),
)
SPACES = {"proxyless": (PROXYLESS, UNEVEN), "example": (EXAMPLE, EXAMPLE_TABLE), "mixed": (MIXED, UNEVEN)}


@pytest.fixture(params=SPACES)
def latency(request: pytest.FixtureRequest) -> ExpectedLatency:
    space, table = SPACES[request.param]
    return ExpectedLatency(table, space)


@pytest.fixture
def example() -> ExpectedLatency:
    return ExpectedLatency(EXAMPLE_TABLE, EXAMPLE)


def one_hot(latency: ExpectedLatency, arch: np.ndarray[Any, Any]) -> Tensor:
    return nn.functional.one_hot(torch.tensor(arch, dtype=torch.int64), latency.shape[1]).float()


def random_logits(latency: ExpectedLatency, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((*batch, *latency.shape), generator=generator, dtype=dtype, requires_grad=True)


def item(value: Tensor) -> float:
    return float(value.detach())


def by_name(latency: ExpectedLatency, padded: Tensor) -> dict[str, Tensor]:
    variables = latency.compiled.space.variables
    return {v.name: padded[..., number, : len(v.values)] for number, v in enumerate(variables)}


# --- Value


def test_one_hot_is_the_sum_of_the_table(latency: ExpectedLatency) -> None:
    archs = latency.compiled.space.sample(np.random.default_rng(0), 20)
    predicted = latency.predict(archs)
    for arch, ms in zip(archs, predicted, strict=True):
        probs = one_hot(latency, arch)
        assert item(latency(probs, kind="probs")) == pytest.approx(ms, abs=1e-6)
        sure = torch.where(probs > 0, 0.0, -math.inf)
        assert item(latency(sure)) == pytest.approx(ms, abs=1e-6)


def test_expectation_is_the_mean_over_all_archs(example: ExpectedLatency) -> None:
    even = torch.tensor([0.5, 0.5])
    assert item(example([even, even, torch.tensor([0.25, 0.75])], kind="probs")) == pytest.approx(5.1)
    assert item(example(torch.zeros(example.shape))) == pytest.approx(4.85)


def test_torch_and_numpy_agree_on_any_distribution(latency: ExpectedLatency) -> None:
    logits = random_logits(latency)
    vectors = [torch.softmax(v, -1).detach().numpy() for v in by_name(latency, logits).values()]
    assert item(latency(logits)) == pytest.approx(latency.compiled.expected(vectors), rel=1e-12)


def test_mean_of_sampled_archs_approaches_the_expectation() -> None:
    latency = ExpectedLatency(UNEVEN, MIXED)
    logits = random_logits(latency)
    rng = np.random.default_rng(0)
    vectors = [torch.softmax(v, -1).detach().numpy() for v in by_name(latency, logits).values()]
    archs = np.stack([rng.choice(len(p), size=40_000, p=p) for p in vectors], axis=1)
    assert item(latency(logits)) == pytest.approx(latency.predict(archs).mean(), rel=0.01)


def test_every_form_of_input_gives_the_same(latency: ExpectedLatency) -> None:
    logits = random_logits(latency)
    named = by_name(latency, logits)
    forms = [
        logits,
        named,
        dict(reversed(named.items())),
        list(named.values()),
        iter(named.values()),
        nn.ParameterList(named.values()),
        nn.ParameterDict(named),
    ]
    values = [item(latency(form)) for form in forms]
    assert values == pytest.approx([values[0]] * len(forms), rel=1e-12)
    probs = {name: torch.softmax(vector, -1) for name, vector in named.items()}
    assert item(latency(probs, kind="probs")) == pytest.approx(values[0], rel=1e-12)


def test_leading_batch_dimensions_are_kept(latency: ExpectedLatency) -> None:
    logits = random_logits(latency, 2, 3)
    together = latency(logits)
    assert together.shape == (2, 3)
    assert latency(by_name(latency, logits)).detach().numpy() == pytest.approx(together.detach().numpy())
    for i, j in itertools.product(range(2), range(3)):
        assert item(together[i, j]) == pytest.approx(item(latency(logits[i, j])))


def test_padding_is_ignored_whatever_it_holds() -> None:
    latency = ExpectedLatency(UNEVEN, PROXYLESS)
    logits = random_logits(latency).detach()
    for garbage in (math.inf, -math.inf, math.nan, 1e30):
        spoilt = torch.where(latency.valid, logits, garbage).requires_grad_()
        value = latency(spoilt)
        value.backward()
        assert item(value) == pytest.approx(item(latency(logits)))
        assert spoilt.grad is not None
        assert (spoilt.grad[~latency.valid] == 0).all()
    probs = torch.where(latency.valid, torch.softmax(logits.masked_fill(~latency.valid, -math.inf), -1), math.nan)
    assert item(latency(probs, kind="probs")) == pytest.approx(item(latency(logits)))


def test_call_overhead_and_column_are_chosen_at_construction() -> None:
    table = replace(EXAMPLE_TABLE, call_overhead_ms=0.5)
    zeros = torch.zeros(3, 2)
    assert item(ExpectedLatency(table, EXAMPLE)(zeros)) == pytest.approx(5.35)
    assert item(ExpectedLatency(table, EXAMPLE, include_call_overhead=False)(zeros)) == pytest.approx(4.85)
    assert item(ExpectedLatency(table, EXAMPLE, column="energy_mj")(zeros)) == pytest.approx(4.85)


def test_predictions_come_with_an_interval_where_it_is_asked_for(latency: ExpectedLatency) -> None:
    archs = latency.compiled.space.sample(np.random.default_rng(0), 20)
    told = latency.predict(archs, return_interval=True)
    expected = latency.compiled.predict(archs, return_interval=True)
    assert [end.tolist() for end in told] == [end.tolist() for end in expected]
    assert told.mid.tolist() == latency.predict(archs).tolist()


# --- Gradients


@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_of_logits_are_exact(latency: ExpectedLatency, batch: tuple[int, ...]) -> None:
    logits = random_logits(latency, *batch)
    assert torch.autograd.gradcheck(latency, (logits,))


def test_gradients_of_probabilities_are_exact(latency: ExpectedLatency) -> None:
    probs = [torch.softmax(v, -1).detach().requires_grad_() for v in by_name(latency, random_logits(latency)).values()]
    assert torch.autograd.gradcheck(lambda *vectors: latency(vectors, kind="probs"), probs)


def test_second_derivatives_are_exact(example: ExpectedLatency) -> None:
    assert torch.autograd.gradgradcheck(example, (random_logits(example),))


def test_gradients_through_two_sampled_paths_are_exact_and_reach_only_those(latency: ExpectedLatency) -> None:
    logits = random_logits(latency)
    sampled = torch.stack([torch.zeros(latency.shape[0], dtype=torch.int64), torch.ones(latency.shape[0]).long()], -1)
    assert torch.autograd.gradcheck(lambda x: latency(two_path_probs(x, sampled), kind="probs"), (logits,))
    latency(two_path_probs(logits, sampled), kind="probs").backward()
    assert logits.grad is not None
    assert (logits.grad[:, 2:] == 0).all()


def test_gradient_of_a_sure_choice_is_finite(example: ExpectedLatency) -> None:
    logits = torch.tensor([[0.0, -math.inf]] * 3, requires_grad=True)
    example(logits).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_straight_through_samples_get_the_gradient_of_the_soft_ones(example: ExpectedLatency) -> None:
    logits = random_logits(example)
    hard = nn.functional.gumbel_softmax(logits, hard=True)
    example(hard, kind="probs").backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).all()


def test_descent_on_the_expectation_finds_the_fastest_arch() -> None:
    latency = ExpectedLatency(UNEVEN, PROXYLESS)
    logits = torch.zeros(latency.shape, requires_grad=True)
    for _ in range(100):
        (gradient,) = torch.autograd.grad(latency(logits), logits)
        logits = (logits - 1000 * gradient).detach().requires_grad_()
    best = logits.detach().masked_fill(~latency.valid, -math.inf).argmax(-1).numpy()
    assert latency.predict(best[None])[0] == pytest.approx(latency.compiled.min_over())


# --- Two paths


def test_two_path_probabilities_are_renormalised_over_the_sampled() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 9.0]])
    probs = two_path_probs(logits, torch.tensor([[0, 2], [1, 0]]))
    kept = 1 / (1 + math.exp(2.0))
    assert probs.numpy() == pytest.approx(np.array([[kept, 0.0, 1 - kept], [0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("sampled", [torch.zeros(3, 2).long(), torch.zeros(2, 4).long(), torch.zeros(2, 0).long()])
def test_sampled_paths_of_another_shape_are_refused(sampled: Tensor) -> None:
    with pytest.raises(ShapeError, match="paths <= values"):
        two_path_probs(torch.zeros(2, 3), sampled)


# --- Infeasible choices


def test_infeasible_choices_are_refused_unless_allowed() -> None:
    failed = block(24, 5, 2)
    with pytest.raises(SpecError, match=r"cannot run 1 choices of space 'example': mbconv 24x8x8 k5 s2"):
        ExpectedLatency(replace(EXAMPLE_TABLE, runs=lambda op: op != failed), EXAMPLE)


def test_archs_that_cannot_run_have_no_share_and_where_none_can_it_is_infinite_never_nan() -> None:
    latency = ExpectedLatency(
        replace(EXAMPLE_TABLE, runs=lambda op: op != block(24, 5, 2)), EXAMPLE, allow_infeasible=True
    )
    logits = torch.zeros(3, 3, 2, dtype=torch.float64)
    logits[1, 0, 1] = -math.inf
    logits[2, (0, 2), 0] = -math.inf  # w24 and k5 for sure
    logits.requires_grad_()
    value = latency(logits)
    costs = latency.predict(np.array(list(itertools.product(*map(range, EXAMPLE.sizes)))))
    assert value.tolist() == pytest.approx([costs[np.isfinite(costs)].mean(), 1.0 + 2.3 + 0.9, math.inf])
    value.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_failed_candidate_of_one_variable_may_be_masked_out() -> None:
    failed = PROXYLESS.site_ops[5][2]
    latency = ExpectedLatency(replace(UNEVEN, runs=lambda op: op != failed), PROXYLESS, allow_infeasible=True)
    whole = ExpectedLatency(UNEVEN, PROXYLESS)
    logits = random_logits(latency).detach()
    masked = logits.clone()
    for number, ops in enumerate(PROXYLESS.site_ops[2:-2]):
        if failed in ops:
            masked[number, ops.index(failed)] = -math.inf
    assert item(latency(masked)) == pytest.approx(item(whole(masked)))
    assert item(latency(logits)) == pytest.approx(item(latency(masked)))


def test_constraints_are_no_reason_to_refuse_a_space() -> None:
    latency = ExpectedLatency(GATED_TABLE, GATED)
    archs = GATED.canonical(np.array(list(itertools.product(*map(range, GATED.sizes)))))
    allowed = latency.predict(archs[GATED.allowed(archs)])  # each as often as even draws give it
    assert item(latency(torch.zeros(latency.shape))) == pytest.approx(allowed.mean())


def test_one_hot_choices_of_a_constrained_space_are_its_prediction() -> None:
    latency = ExpectedLatency(GATED_TABLE, GATED)
    for arch in GATED.canonical(np.array(list(itertools.product(*map(range, GATED.sizes))))):
        value = item(latency(one_hot(latency, arch), kind="probs"))
        assert value == pytest.approx(latency.predict(arch[None])[0])


def test_missing_op_is_refused() -> None:
    with pytest.raises(OpNotInLut, match="1 of the 8 ops of space 'example'"):
        ExpectedLatency(replace(EXAMPLE_TABLE, covers=lambda op: op != conv(3, 16)), EXAMPLE)


# --- Refused input


def test_wrong_shapes_name_the_variable(example: ExpectedLatency) -> None:
    good = torch.zeros(2)
    with pytest.raises(ShapeError, match=r"d needs shape \(2,\), one entry for each of its values \(1, 2\)"):
        example([good, torch.zeros(3), good])
    with pytest.raises(ShapeError, match=r"k needs shape \(5, 2\)"):
        example({"w": torch.zeros(5, 2), "d": torch.zeros(5, 2), "k": torch.zeros(4, 2)})
    with pytest.raises(ShapeError, match="w to k"):
        example(torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="each of 3 variables"):
        example([good, good])
    with pytest.raises(ShapeError, match="missing or unknown: k"):
        example({"w": good, "d": good})
    with pytest.raises(ShapeError, match="missing or unknown: z"):
        example({"w": good, "d": good, "k": good, "z": good})


@pytest.mark.parametrize("wrong", [[0.5, 0.6], [1.5, -0.5], [math.nan, 0.5], [0.0, 0.0]])
def test_what_is_no_distribution_is_refused_by_name(example: ExpectedLatency, wrong: list[float]) -> None:
    even = torch.tensor([0.5, 0.5])
    with pytest.raises(SpecError, match="probabilities of d must be >= 0 and sum to 1"):
        example([even, torch.tensor(wrong), even], kind="probs")
    example([even, torch.tensor(wrong), even], kind="probs", validate=False)


def test_half_precision_probabilities_pass_the_check(example: ExpectedLatency) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        probs = torch.softmax(random_logits(example).detach(), -1).to(dtype)
        assert item(example(probs, kind="probs")) == pytest.approx(
            item(example(probs.double() / probs.double().sum(-1, keepdim=True), kind="probs")), rel=0.01
        )


def test_unknown_kind_is_refused(example: ExpectedLatency) -> None:
    with pytest.raises(SpecError, match="'logits' or 'probs'"):
        example(torch.zeros(3, 2), kind="odds")


# --- State, device, dtype


def test_module_has_no_parameters_and_moves_with_its_dtype(latency: ExpectedLatency) -> None:
    logits = random_logits(latency, dtype=torch.float32)
    exact = item(latency(logits.double()))
    assert list(latency.parameters()) == []
    assert latency(logits).dtype == torch.float64
    single = copy.deepcopy(latency).to(torch.float32)
    assert single(logits).dtype == torch.float32
    assert item(single(logits)) == pytest.approx(exact, rel=1e-5)
    assert item(latency(logits)) == pytest.approx(exact, rel=1e-6)


def test_module_moves_to_another_device(latency: ExpectedLatency) -> None:
    moved = latency.to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}
    assert moved(torch.zeros(latency.shape, device="meta")).device.type == "meta"


def test_deepcopy_and_pickle_keep_the_value() -> None:
    latency = ExpectedLatency(UNEVEN, PROXYLESS)
    logits = random_logits(latency)
    for twin in (copy.deepcopy(latency), pickle.loads(pickle.dumps(latency))):
        assert item(twin(logits)) == item(latency(logits))
        assert twin.compiled.provenance == latency.compiled.provenance


def test_state_carries_costs_and_provenance_into_a_module_of_the_same_space(latency: ExpectedLatency) -> None:
    space = latency.compiled.space
    other = FunctionTable(name="other", cost=lambda op: uneven_ms(op) * 3, call_overhead_ms=9.0, version=2)
    target = nn.Sequential(ExpectedLatency(other, space))
    stored = io.BytesIO()
    torch.save(nn.Sequential(latency).state_dict(), stored)
    stored.seek(0)
    target.load_state_dict(torch.load(stored, weights_only=True))
    loaded = target[0]
    logits = random_logits(latency)
    archs = space.sample(np.random.default_rng(0), 10)
    assert isinstance(loaded, ExpectedLatency)
    assert item(loaded(logits)) == item(latency(logits))
    assert loaded.predict(archs).tolist() == latency.predict(archs).tolist()
    assert loaded.compiled.provenance == latency.compiled.provenance
    assert loaded.compiled.provenance.lut_version == 0


def test_state_of_another_space_is_refused_and_changes_nothing() -> None:
    latency = ExpectedLatency(UNEVEN, PROXYLESS)
    wider = ExpectedLatency(UNEVEN, spaces.get("proxyless-w1.3"))
    logits = random_logits(latency)
    before = item(latency(logits))
    with pytest.raises(SpecError, match=r"the state holds latency_ms of 'proxyless-w1\.3'"):
        latency.load_state_dict(wider.state_dict())
    with pytest.raises(SpecError, match="the state holds p90_ms"):
        latency.load_state_dict(ExpectedLatency(UNEVEN, PROXYLESS, "p90_ms").state_dict())
    assert item(latency(logits)) == before


def test_state_that_is_none_of_ours_is_refused(example: ExpectedLatency) -> None:
    state = example.state_dict()
    state["_extra_state"] = {"lut": "x"}
    with pytest.raises(SpecError, match="not the state of an ExpectedLatency"):
        example.load_state_dict(state)


def test_state_with_infeasible_costs_is_refused_where_they_are_not_allowed() -> None:
    table = replace(EXAMPLE_TABLE, runs=lambda op: op != block(24, 5, 2))
    state = ExpectedLatency(table, EXAMPLE, allow_infeasible=True).state_dict()
    with pytest.raises(SpecError, match="allow_infeasible=True"):
        ExpectedLatency(EXAMPLE_TABLE, EXAMPLE).load_state_dict(state)
    tolerant = ExpectedLatency(EXAMPLE_TABLE, EXAMPLE, allow_infeasible=True)
    tolerant.load_state_dict(state)
    assert item(tolerant(torch.zeros(3, 2))) == item(
        ExpectedLatency(table, EXAMPLE, allow_infeasible=True)(torch.zeros(3, 2))
    )


def test_description_names_table_space_and_column(example: ExpectedLatency) -> None:
    assert repr(example) == "ExpectedLatency(lut='example'@0, space='example', column='latency_ms')"


# --- A real LUT file


def test_real_lut_gives_the_sum_of_its_rows(tmp_path: Path) -> None:
    rows = [
        example_row(
            op, latency_ms=uneven_ms(op), latency_lo_ms=None, latency_hi_ms=None, call_overhead_ms=0.025, cache=None
        )
        for op in PROXYLESS.ops()
    ]
    lut = Lut.load(publish(rows, example_meta(), folder=tmp_path, base=None).path)
    latency = ExpectedLatency(lut, PROXYLESS)
    for arch in PROXYLESS.sample(np.random.default_rng(0), 5):
        expected = lut.latency_ms(PROXYLESS.arch_ops(arch)).sum() + 0.025
        assert item(latency(one_hot(latency, arch), kind="probs")) == pytest.approx(expected, abs=1e-6)
