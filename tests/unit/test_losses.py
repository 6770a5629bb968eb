"""Losses on plain floats: published values, unit safety, refusals. tests/nas/test_torch_losses.py has the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

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


# --- Several devices

TWO: Mapping[str, tuple[float, float]] = {"phone": (30.0, 20.0), "server": (0.5, 1.0)}  # half over, half under


@pytest.mark.parametrize("form", UNIT_FREE)
def test_max_is_the_loss_of_the_device_furthest_above_its_target(form: Loss) -> None:
    assert losses.multi_target(2.0, TWO, form=form) == pytest.approx(form(2.0, 30.0, 20.0))
    met = {"phone": (10.0, 20.0), "server": (0.9, 1.0)}
    assert losses.multi_target(2.0, met, form=form) == pytest.approx(form(2.0, 0.9, 1.0))


@pytest.mark.parametrize("form", UNIT_FREE)
def test_mean_is_the_weighted_mean_of_the_devices_losses(form: Loss) -> None:
    each = [form(2.0, *TWO["phone"]), form(2.0, *TWO["server"])]
    assert losses.multi_target(2.0, TWO, combine="mean", form=form) == pytest.approx(sum(each) / 2)
    weighted = losses.multi_target(2.0, TWO, combine="mean", weights={"server": 6.0, "phone": 2.0}, form=form)
    assert weighted == pytest.approx(0.25 * each[0] + 0.75 * each[1])


def test_a_device_under_its_target_makes_up_for_no_other_under_a_hinge() -> None:
    idle = {**TWO, "server": (1e-6, 1.0)}
    hinge = partial(losses.hinge, weight=0.5)
    for targets in (TWO, idle):
        assert losses.multi_target(2.0, targets, combine="mean", form=hinge) == pytest.approx(2.0 + 0.5 * 0.5 / 2)


@given(
    latencies=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4),
    scales=st.lists(st.sampled_from([1e-3, 1.0, 1e3]), min_size=4, max_size=4),
    combine=st.sampled_from(["max", "mean"]),
    form=st.sampled_from(UNIT_FREE),
)
def test_each_device_may_have_a_unit_of_its_own(
    latencies: list[float], scales: list[float], combine: Literal["max", "mean"], form: Loss
) -> None:
    in_ms = {f"d{n}": (latency, 3.0) for n, latency in enumerate(latencies)}
    mixed = {f"d{n}": (scales[n] * latency, scales[n] * 3.0) for n, latency in enumerate(latencies)}
    expected = losses.multi_target(2.0, in_ms, combine=combine, form=form)
    assert losses.multi_target(2.0, mixed, combine=combine, form=form) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("combine", ["max", "mean"])
@pytest.mark.parametrize("form", UNIT_FREE)
def test_one_device_alone_is_the_plain_loss(form: Loss, combine: Literal["max", "mean"]) -> None:
    alone = losses.multi_target(2.0, {"phone": (30.0, 20.0)}, combine=combine, form=form)
    assert alone == pytest.approx(form(2.0, 30.0, 20.0))


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_the_device_whose_latency_or_target_means_nothing_is_named(wrong: float) -> None:
    with pytest.raises(SpecError, match="latency of phone must be finite and positive"):
        losses.multi_target(1.0, {**TWO, "phone": (wrong, 1.0)})
    with pytest.raises(SpecError, match="ref of server must be finite and positive"):
        losses.multi_target(1.0, {**TWO, "server": (1.0, wrong)})


@pytest.mark.parametrize(
    "weights",
    [
        {"phone": 1.0},
        {"phone": 1.0, "pi": 1.0},
        {"phone": 0.0, "server": 0.0},
        {"phone": -1.0, "server": 3.0},
        {"phone": math.nan, "server": 1.0},
        {"phone": math.inf, "server": 1.0},
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=r"one weight for each of phone, server|weights are finite"):
        losses.multi_target(1.0, TWO, combine="mean", weights=weights)


def test_other_ways_to_ask_for_nothing_are_refused() -> None:
    with pytest.raises(SpecError, match="at least one device"):
        losses.multi_target(1.0, {})
    with pytest.raises(SpecError, match="combine must be 'max' or 'mean', got 'sum'"):
        losses.multi_target(1.0, TWO, combine="sum")  # type: ignore[arg-type]  # what a caller without mypy may write
    with pytest.raises(SpecError, match="weights go with combine='mean'"):
        losses.multi_target(1.0, TWO, weights={"phone": 1.0, "server": 1.0})


@given(ratio=st.floats(1e-300, 1e-3))
def test_mul_log_stays_above_zero_however_far_below_the_target(ratio: float) -> None:
    assert losses.mul_log(1.0, ratio, 1.0, beta=0.6) > 0.0


def test_losses_and_the_compiled_space_need_no_torch(fresh_python: Callable[[str], str]) -> None:
    code = (
        "import sys, lutbuilder.nas.losses, lutbuilder.nas.sampling, lutbuilder.spaces; print('torch' in sys.modules)"
    )
    assert fresh_python(code) == "False"
