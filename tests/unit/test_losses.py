"""Losses on plain floats: published values, unit safety, refusals. tests/nas/test_torch_losses.py has the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.nas import losses
from lutbuilder_agent.errors import SpecError

Loss = Callable[[float, float, float], float]
BY_NAME: dict[str, Loss] = {
    "mul_log": losses.mul_log, "add_linear": losses.add_linear, "hinge": losses.hinge, "power": losses.power,
}  # fmt: skip  # one line reads as one list
UNIT_FREE = list(BY_NAME.values())


@pytest.mark.parametrize(("ratio", "factor"), [(0.5, "0.750729"), (1.0, "1.000000"), (2.0, "1.270255")])
def test_mul_log_factor_is_as_published(ratio: float, factor: str) -> None:
    assert f"{losses.mul_log(1.0, ratio * 7.5, 7.5, beta=0.6):.6f}" == factor


@given(
    latency=st.floats(1e-6, 1e6),
    ref=st.floats(1e-6, 1e6),
    loss=st.sampled_from(UNIT_FREE),
    scale=st.sampled_from([1e-3, 1e3]),
)
def test_unit_of_latency_and_ref_changes_nothing(latency: float, ref: float, loss: Loss, scale: float) -> None:
    assert loss(2.0, latency * scale, ref * scale) == pytest.approx(loss(2.0, latency, ref), rel=1e-9)


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (0.5, {"mul_log": 2.0, "add_linear": 2.0, "hinge": 2.0, "power": 2.0}),
        (
            1.0,
            {"mul_log": 2.0 * 0.750729, "add_linear": 2.0 - 0.2 * 0.5, "hinge": 2.0, "power": 2.0 * 2.0**0.1},
        ),
    ],
)
def test_half_a_millisecond_is_an_ordinary_latency(ref: float, expected: dict[str, float]) -> None:
    for name, loss in BY_NAME.items():
        assert loss(2.0, 0.5, ref) == pytest.approx(expected[name], rel=1e-6)


def test_hinge_charges_only_above_the_target() -> None:
    assert losses.hinge(2.0, 3.0, 2.0, weight=0.5) == pytest.approx(2.25)


def test_reference_form_is_the_published_one_over_microseconds() -> None:
    expected = 2.0 * (math.log(500.0) / math.log(1000.0)) ** 0.6
    assert losses.mul_log_reference(2.0, 0.5, 1.0) == pytest.approx(expected)
    assert losses.mul_log_reference(2.0, 500.0, 1000.0, unit="us") == pytest.approx(expected)


def test_fbnet_form_is_the_published_one_over_microseconds() -> None:
    expected = 2.0 * 0.2 * math.log(500.0) ** 0.6
    assert losses.fbnet(2.0, 0.5) == pytest.approx(expected)
    assert losses.fbnet(2.0, 500_000.0, unit="ns") == pytest.approx(expected)
    assert losses.fbnet(2.0, 0.0005, unit="s") == pytest.approx(expected)


@pytest.mark.parametrize(("latency", "ref"), [(0.001, 1.0), (0.0005, 1.0), (1.0, 0.001), (1.0, 0.0)])
def test_reference_form_refuses_what_would_be_nan_or_infinite(latency: float, ref: float) -> None:
    with pytest.raises(SpecError, match=r"(latency|ref) must be finite and above 1 us"):
        losses.mul_log_reference(1.0, latency, ref)


def test_fbnet_refuses_a_microsecond() -> None:
    with pytest.raises(SpecError, match="latency must be finite and above 1 us"):
        losses.fbnet(1.0, 1.0, unit="us")


@pytest.mark.parametrize("loss", UNIT_FREE)
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_latency_and_ref_must_be_finite_and_positive(loss: Loss, wrong: float) -> None:
    with pytest.raises(SpecError, match="latency must be finite and positive"):
        loss(1.0, wrong, 1.0)
    with pytest.raises(SpecError, match="ref must be finite and positive"):
        loss(1.0, 1.0, wrong)


def test_unknown_unit_lists_the_units() -> None:
    with pytest.raises(SpecError, match="known: ns, us, ms, s"):
        losses.fbnet(1.0, 1.0, unit="m")  # type: ignore[arg-type]  # what a caller without mypy may write


def test_losses_and_the_compiled_space_need_no_torch(fresh_python: Callable[[str], str]) -> None:
    code = (
        "import sys, lutbuilder.nas.losses, lutbuilder.nas.sampling, lutbuilder.spaces; print('torch' in sys.modules)"
    )
    assert fresh_python(code) == "False"
