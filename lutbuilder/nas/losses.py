"""Latency-aware losses: how an expected latency enters the training loss, or the reward, of a search.

Each function takes Python floats or torch tensors and gives what it was given; `latency` and `ref` are in one unit.
mul_log, add_linear, hinge and power give the same value whichever unit that is; mul_log_reference and fbnet are
defined in microseconds, so they take `unit` and convert inside. `multi_target` makes one loss of several devices'
latencies. Where a value would be NaN or infinite they raise SpecError: one NaN destroys the architecture parameters
unseen. (On a GPU that check waits for the device once.)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from lutbuilder_agent.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Number = TypeVar("Number", "float", "Tensor")
Unit = Literal["ns", "us", "ms", "s"]
US_PER_UNIT: Mapping[str, float] = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}


def mul_log(task_loss: Number, latency: Number, ref: float, *, alpha: float = 1.0, beta: float = 0.6) -> Number:
    """Return alpha * task_loss * ln(1 + (e - 1) latency / ref)^beta: alpha * task_loss at the target.

    The unit-free form of ProxylessNAS's `mul#log`; finite for every latency > 0. The factor
    is 0.751 / 1 / 1.270 at half / once / twice the target.
    """
    _check_above(0.0, latency=latency, ref=ref)
    return alpha * task_loss * _power(_ln_1_plus((math.e - 1.0) * (latency / ref)), beta)


def mul_log_reference(
    task_loss: Number, latency: Number, ref: float, *, alpha: float = 1.0, beta: float = 0.6, unit: Unit = "ms"
) -> Number:
    """Return alpha * task_loss * (ln latency / ln ref)^beta over microseconds, ProxylessNAS's own form, for comparison.

    Raises SpecError unless latency and ref are above 1 us, where the logarithm is positive.
    Source: Cai, Zhu, Han, ProxylessNAS, ICLR 2019, released code (the class's defaults; its command line: 0.2, 0.3).
    """
    scale = _us_per(unit)
    _check_above(1.0 / scale, latency=latency, ref=ref, why="above 1 us")
    return alpha * task_loss * _power(_ln(latency * scale) / math.log(ref * scale), beta)


def fbnet(task_loss: Number, latency: Number, *, alpha: float = 0.2, beta: float = 0.6, unit: Unit = "ms") -> Number:
    """Return task_loss * alpha * (ln latency)^beta over microseconds; there is no target.

    Raises SpecError unless latency is above 1 us. Source: Wu et al., FBNet, CVPR 2019, equation 2.
    """
    scale = _us_per(unit)
    _check_above(1.0 / scale, latency=latency, why="above 1 us")
    return task_loss * alpha * _power(_ln(latency * scale), beta)


def add_linear(task_loss: Number, latency: Number, ref: float, *, weight: float = 0.2) -> Number:
    """Return task_loss + weight * (latency - ref) / ref. Source: ProxylessNAS's `add#linear` (command line: 0.1)."""
    _check_above(0.0, latency=latency, ref=ref)
    return task_loss + weight * (latency / ref - 1.0)


def hinge(task_loss: Number, latency: Number, ref: float, *, weight: float = 1.0) -> Number:
    """Return task_loss + weight * max(0, latency / ref - 1): an arch under the target pays nothing."""
    _check_above(0.0, latency=latency, ref=ref)
    return task_loss + weight * _positive_part(latency / ref - 1.0)


def power(accuracy: Number, latency: Number, ref: float, *, exponent: float = 0.1) -> Number:
    """Return accuracy * (ref / latency)^exponent, a reward to maximise.

    Source: ProxylessNAS with reinforcement learning (0.1); MnasNet, Tan et al., CVPR 2019, uses 0.07.
    """
    _check_above(0.0, latency=latency, ref=ref)
    return accuracy * _power(ref / latency, exponent)


def multi_target(
    task_loss: Number,
    targets: Mapping[str, tuple[Number, float]],
    *,
    combine: Literal["max", "mean"] = "max",
    weights: Mapping[str, float] | None = None,
    form: Callable[[Number, Number, float], Number] = mul_log,
) -> Number:
    """Return one loss for several devices: `targets` gives each one's latency and ref, each pair in a unit of its own.

    "max" is the loss of the device furthest above its ref (of the highest latency / ref), and its gradient goes there
    alone; where several tie, they share it. "mean" is the mean of the devices' losses, by `weights` where given: one
    weight a device, only their proportions count. `form` is mul_log, add_linear, hinge, power (a reward: the "max" is
    still of the device furthest above), or one with settings, `partial(hinge, weight=0.5)`; all tensors broadcast.
    Raises SpecError for no device, for a latency or ref that is not finite and positive, naming the device, and for
    weights that are negative, all 0, or of other devices.
    """
    if not targets:
        raise SpecError("a multi-target loss needs at least one device: {'pixel1': (latency, ref)}")
    for device, (latency, ref) in targets.items():
        named: Any = {f"latency of {device}": latency, f"ref of {device}": ref}  # else mypy holds them against `why`
        _check_above(0.0, **named)
    ratios = {device: latency / ref for device, (latency, ref) in targets.items()}
    if combine == "mean":
        shares = _shares(targets, weights)
        return reduce(operator.add, [share * form(task_loss, ratios[device], 1.0) for device, share in shares.items()])
    if combine != "max":
        raise SpecError(f"combine must be 'max' or 'mean', got {combine!r}")
    if weights is not None:
        raise SpecError("weights go with combine='mean'; under 'max' change a device's ref instead")
    return form(task_loss, _highest(list(ratios.values())), 1.0)


# mypy cannot narrow a constrained type variable by isinstance, hence Any inside these five.
def _ln(x: Number) -> Number:
    value: Any = x
    return cast(Number, math.log(value) if isinstance(value, float) else value.log())


def _ln_1_plus(x: Number) -> Number:
    # Not ln(1 + x): for a small x that rounds to ln 1 = 0, whose power has an infinite gradient.
    value: Any = x
    return cast(Number, math.log1p(value) if isinstance(value, float) else value.log1p())


def _highest(values: Sequence[Number]) -> Number:
    of: Any = values
    return cast(Number, max(of) if isinstance(of[0], float) else reduce(lambda a, b: a.maximum(b), of))


def _power(x: Number, exponent: float) -> Number:
    value: Any = x
    return cast(Number, value**exponent)


def _positive_part(x: Number) -> Number:
    value: Any = x
    return cast(Number, max(0.0, value) if isinstance(value, float) else value.clamp(min=0.0))


def _shares(targets: Mapping[str, object], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return what part of a mean each device is; they sum to 1."""
    if weights is None:
        return dict.fromkeys(targets, 1.0 / len(targets))
    if weights.keys() != targets.keys():
        raise SpecError(f"one weight for each of {', '.join(targets)}; got {', '.join(weights) or 'none'}")
    total = sum(weights.values())
    if not (min(weights.values()) >= 0.0 and 0.0 < total < math.inf):
        raise SpecError(f"weights are finite, not negative and not all 0; got {dict(weights)}")
    return {device: weight / total for device, weight in weights.items()}


def _us_per(unit: str) -> float:
    if unit not in US_PER_UNIT:
        raise SpecError(f"unknown unit {unit!r}; known: {', '.join(US_PER_UNIT)}")
    return US_PER_UNIT[unit]


def _check_above(floor: float, *, why: str = "positive", **values: float | Tensor) -> None:
    for name, value in values.items():
        inside = (value > floor) & (value < math.inf)
        if not (inside if isinstance(inside, bool) else bool(inside.all())):
            raise SpecError(f"{name} must be finite and {why}, got {value}")
