"""Shape rules shared by all presets: divisible widths and the map a strided convolution leaves."""

from __future__ import annotations

import math

from lutbuilder_agent.errors import SpecError


def make_divisible(width: float, divisor: int = 8) -> int:
    """Return `width` in channels rounded to a multiple of `divisor`, never below 90 % of it.

    Source: the rule of the MobileNetV2 reference code, which every preset's published widths follow.
    """
    if not width > 0 or divisor < 1:
        raise SpecError(f"make_divisible needs a positive width and divisor, got {width} and {divisor}")
    rounded = max(divisor, math.floor((width + divisor / 2) / divisor) * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def strided(extent: int, stride: int) -> int:
    """Return the rows (or columns) left of `extent` pixels by an odd kernel with padding (k - 1) / 2.

    Not `extent // stride`, which differs for odd maps.
    """
    return (extent - 1) // stride + 1
