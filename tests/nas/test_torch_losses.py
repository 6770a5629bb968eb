"""Losses on tensors: finite values and exact gradients below a millisecond, where the originals break."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from lutbuilder.nas import losses
from lutbuilder.nas.compiled import FunctionTable
from lutbuilder.nas.expected_latency import ExpectedLatency
from lutbuilder_agent.errors import SpecError
from tests.worked_example import EXAMPLE, EXAMPLE_MS

Loss = Callable[[Tensor, Tensor, float], Tensor]


def fbnet(task_loss: Tensor, latency: Tensor, ref: float) -> Tensor:
    """FBNet's loss has no target."""
    return losses.fbnet(task_loss, latency)


EVERY: list[Loss] = [
    losses.mul_log, losses.mul_log_reference, losses.add_linear, losses.hinge, losses.power, fbnet,
]  # fmt: skip  # one line reads as one list
UNIT_FREE: list[Loss] = [losses.mul_log, losses.add_linear, losses.hinge, losses.power]


def inputs(latency_ms: float, task_loss: float = 2.0) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(task_loss, dtype=torch.float64, requires_grad=True),
        torch.tensor(latency_ms, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("ref", [0.5, 1.0])
@pytest.mark.parametrize("latency_ms", [0.5, 1.0, 0.01, 80.0])
def test_value_and_gradients_are_finite_below_and_at_a_millisecond(loss: Loss, ref: float, latency_ms: float) -> None:
    task_loss, latency = inputs(latency_ms)
    value = loss(task_loss, latency, ref)
    torch.autograd.backward(value)
    assert task_loss.grad is not None
    assert latency.grad is not None
    assert torch.isfinite(torch.stack([value, task_loss.grad, latency.grad])).all()


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize(("latency_ms", "ref"), [(0.5, 1.0), (0.7, 0.5)])
def test_gradients_are_exact(loss: Loss, latency_ms: float, ref: float) -> None:
    assert torch.autograd.gradcheck(lambda ce, ms: loss(ce, ms, ref), inputs(latency_ms))


@pytest.mark.parametrize("loss", EVERY)
def test_tensors_and_floats_agree(loss: Loss) -> None:
    floats: Callable[[float, float, float], float] = loss  # type: ignore[assignment]  # a loss takes either
    assert loss(*inputs(0.7), 0.5).item() == pytest.approx(floats(2.0, 0.7, 0.5))


@pytest.mark.parametrize("loss", UNIT_FREE)
def test_scaling_the_unit_scales_only_the_gradient(loss: Loss) -> None:
    task_loss, ms = inputs(0.5)
    scaled_loss, us = inputs(500.0)
    in_ms, in_us = loss(task_loss, ms, 1.0), loss(scaled_loss, us, 1000.0)
    torch.autograd.backward(in_ms)
    torch.autograd.backward(in_us)
    assert in_us.item() == pytest.approx(in_ms.item())
    assert ms.grad is not None
    assert us.grad is not None
    assert float(us.grad) * 1000 == pytest.approx(float(ms.grad))


@pytest.mark.parametrize("loss", [losses.mul_log, losses.mul_log_reference, losses.add_linear, fbnet])
def test_lower_latency_lowers_the_loss(loss: Loss) -> None:
    task_loss, latency = inputs(0.5)
    torch.autograd.backward(loss(task_loss, latency, 1.0))
    assert latency.grad is not None
    assert float(latency.grad) > 0


def test_mul_log_factor_is_as_published_for_a_whole_batch() -> None:
    factors = losses.mul_log(torch.ones(3), torch.tensor([1.0, 2.0, 4.0]), 2.0)
    assert factors.numpy() == pytest.approx([0.750729, 1.0, 1.270255], abs=5e-7)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("loss", EVERY)
def test_latency_that_would_spoil_the_parameters_is_refused(loss: Loss, wrong: float) -> None:
    with pytest.raises(SpecError, match="latency must be finite and"):
        loss(torch.ones(2), torch.tensor([1.0, wrong]), 1.0)


def test_single_precision_task_loss_mixes_with_a_double_latency() -> None:
    task_loss = torch.tensor(2.0, requires_grad=True)
    latency = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(losses.mul_log(task_loss, latency, 1.0))
    assert task_loss.grad is not None
    assert task_loss.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [1e-30, 1e-8, 1e-3])
def test_the_gradient_of_mul_log_is_finite_however_far_below_the_target(ratio: float, dtype: torch.dtype) -> None:
    """ln(1 + x) of a small x in float32 is ln 1, and the gradient of 0 to a power below 1 is infinite."""
    latency = torch.tensor(ratio, dtype=dtype, requires_grad=True)
    torch.autograd.backward(losses.mul_log(torch.ones((), dtype=dtype), latency, 1.0))
    assert latency.grad is not None
    assert torch.isfinite(latency.grad)
    assert float(latency.grad) > 0.0


@pytest.mark.parametrize(("unit", "scale"), [("us", 1e3), ("ns", 1e6), ("s", 1e-3)])
def test_the_published_forms_do_not_depend_on_the_unit_that_is_named(unit: losses.Unit, scale: float) -> None:
    task_loss, ms = inputs(0.5)
    _, other = inputs(0.5 * scale)
    for in_ms, in_unit in (
        (losses.mul_log_reference(task_loss, ms, 1.0), losses.mul_log_reference(task_loss, other, scale, unit=unit)),
        (losses.fbnet(task_loss, ms), losses.fbnet(task_loss, other, unit=unit)),
    ):
        ms.grad = other.grad = None
        torch.autograd.backward(in_ms)
        torch.autograd.backward(in_unit)
        assert in_unit.item() == pytest.approx(in_ms.item())
        assert ms.grad is not None
        assert other.grad is not None
        assert float(other.grad) * scale == pytest.approx(float(ms.grad))


# --- Several devices


def two_devices() -> tuple[Tensor, dict[str, Tensor], dict[str, tuple[Tensor, float]]]:
    task_loss, phone = inputs(30.0)
    _, server = inputs(0.5)
    return task_loss, {"phone": phone, "server": server}, {"phone": (phone, 20.0), "server": (server, 1.0)}


@pytest.mark.parametrize("form", UNIT_FREE)
@pytest.mark.parametrize("combine", ["max", "mean"])
def test_a_multi_target_loss_of_tensors_is_that_of_floats_and_its_gradients_are_exact(
    form: Loss, combine: Literal["max", "mean"]
) -> None:
    task_loss, latencies, targets = two_devices()
    value = losses.multi_target(task_loss, targets, combine=combine, form=form)
    floats = {device: (latency.item(), ref) for device, (latency, ref) in targets.items()}
    on_floats: Callable[[float, float, float], float] = form  # type: ignore[assignment]  # a loss takes either
    assert value.item() == pytest.approx(losses.multi_target(2.0, floats, combine=combine, form=on_floats))
    assert torch.autograd.gradcheck(
        lambda ce, phone, server: losses.multi_target(
            ce, {"phone": (phone, 20.0), "server": (server, 1.0)}, combine=combine, form=form
        ),
        (task_loss, *latencies.values()),
    )


def test_under_max_only_the_device_furthest_above_its_target_is_pushed() -> None:
    task_loss, latencies, targets = two_devices()
    torch.autograd.backward(losses.multi_target(task_loss, targets))
    assert latencies["phone"].grad is not None
    assert latencies["server"].grad is not None
    assert (float(latencies["phone"].grad) > 0, float(latencies["server"].grad)) == (True, 0.0)


def test_devices_that_tie_share_the_gradient() -> None:
    _, a = inputs(10.0)
    task_loss, b = inputs(1.0)
    torch.autograd.backward(losses.multi_target(task_loss, {"a": (a, 20.0), "b": (b, 2.0)}, form=losses.add_linear))
    assert a.grad is not None
    assert b.grad is not None
    assert float(a.grad) * 20.0 == pytest.approx(float(b.grad) * 2.0)
    assert float(a.grad) > 0


def test_a_multi_target_loss_takes_a_batch_element_by_element() -> None:
    phone, server = torch.tensor([30.0, 10.0]), torch.tensor([0.5, 2.0])
    value = losses.multi_target(torch.tensor(2.0), {"phone": (phone, 20.0), "server": (server, 1.0)})
    assert value.tolist() == pytest.approx([float(losses.mul_log(2.0, 1.5, 1.0)), float(losses.mul_log(2.0, 2.0, 1.0))])


@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
def test_the_device_whose_latency_would_spoil_the_parameters_is_named(wrong: float) -> None:
    task_loss, _, targets = two_devices()
    with pytest.raises(SpecError, match="latency of server must be finite and positive"):
        losses.multi_target(task_loss, {**targets, "server": (torch.tensor(wrong), 1.0)})


def test_one_search_for_two_tables_moves_towards_what_both_can_run() -> None:
    """Two devices that like different ops: what is dear on the one that is late becomes less likely."""
    first = FunctionTable(name="first", cost=EXAMPLE_MS.__getitem__)
    other = FunctionTable(name="other", cost=lambda op: 5000.0 / EXAMPLE_MS[op])  # in us, and the other way round
    tables = {"first": ExpectedLatency(first, EXAMPLE), "other": ExpectedLatency(other, EXAMPLE)}
    refs = {"first": 3.0, "other": 12_000.0}
    logits = torch.zeros(tables["first"].shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=2.0)
    worst = []
    for _ in range(60):
        targets = {name: (table(logits), refs[name]) for name, table in tables.items()}
        worst.append(max(float(latency.detach()) / refs[name] for name, (latency, _) in targets.items()))
        optimizer.zero_grad()
        torch.autograd.backward(losses.multi_target(torch.ones((), dtype=torch.float64), targets))
        optimizer.step()
    assert worst[-1] < 0.9 * worst[0]
