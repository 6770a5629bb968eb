"""Arrays of non-negative integers wider than 64 bits, as limbs: uint64 arrays of `bits` bits each, the lowest first.

Counts of archs exceed 2^64 (APQ has 8e74). Arrays of Python integers hold them too, at a fiftieth of the speed. A limb
keeps its top bits free, so that many numbers can be added before anything is carried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Limbs = list[NDArray[np.uint64]]


def from_ints(numbers: Sequence[int], *, bits: int, n_limbs: int) -> Limbs:
    """Return the limbs of `numbers`, each of shape (n,). The numbers fit into n_limbs * bits bits."""
    mask = (1 << bits) - 1
    return [np.array([(n >> bits * limb) & mask for n in numbers], dtype=np.uint64) for limb in range(n_limbs)]


def to_ints(limbs: Iterable[NDArray[np.uint64]], *, bits: int) -> list[int]:
    """Return the numbers as Python integers, in the order of the flattened limbs."""
    parts = [limb.ravel().tolist() for limb in limbs]
    return [sum(part << bits * limb for limb, part in enumerate(number)) for number in zip(*parts, strict=True)]


def scaled(limbs: Sequence[NDArray[np.uint64]], *, bits: int) -> NDArray[np.float64]:
    """Return the numbers as floats, in units of the highest limb: they fit, however many limbs there are."""
    floats = np.zeros(limbs[0].shape)
    for limb in limbs:
        floats = np.ldexp(floats, -bits) + limb
    return floats


def total(limbs: Iterable[NDArray[np.uint64]], *, bits: int) -> int:
    """Return the exact sum of all numbers. Each limb holds fewer than 2^32 of them."""
    half = np.uint64(32)  # sums of halves stay below 2^64
    low = np.uint64(0xFFFF_FFFF)
    return sum(
        (int((limb & low).sum(dtype=np.uint64)) + (int((limb >> half).sum(dtype=np.uint64)) << 32)) << bits * number
        for number, limb in enumerate(limbs)
    )


def carry(limbs: Limbs, *, bits: int) -> None:
    """Bring every limb but the highest below 2^bits, in place; the numbers stay."""
    mask = np.uint64((1 << bits) - 1)
    for low, high in pairwise(limbs):
        high += low >> np.uint64(bits)
        low &= mask


def at_most(left: Limbs, right: Limbs) -> NDArray[np.bool_]:
    """Return where `left` <= `right`, both carried and of as many limbs; their shapes are broadcast."""
    holds = np.less_equal(left[0], right[0])
    for one, other in zip(left[1:], right[1:], strict=True):
        holds = np.where(one == other, holds, one < other)
    return holds


def subtract(whole: Limbs, part: Limbs, *, bits: int) -> None:
    """Take `part` from `whole`, in place; both carried, of as many limbs, and part <= whole. `bits` is at most 62."""
    mask = np.uint64((1 << bits) - 1)
    borrow = np.zeros_like(whole[0])
    for from_limb, limb in zip(whole, part, strict=True):
        from_limb -= limb
        from_limb -= borrow
        borrow = from_limb >> np.uint64(63)  # below 0 it wraps round, and its top bit is set
        from_limb &= mask
