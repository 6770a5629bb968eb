"""Losses on tensors: finite values and exact gradients below a millisecond, where the originals break."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lutbuilder.nas import losses
from lutbuilder_agent.errors import SpecError

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
