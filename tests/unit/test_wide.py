"""Wide integers: limbs say what Python integers say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.nas import wide

numbers = st.lists(st.integers(0, 2**130 - 1), min_size=1, max_size=20)
bits = st.integers(3, 60)


def limbs_for(bits: int) -> int:
    return -(-140 // bits)


@given(numbers, bits)
def test_numbers_survive_limbs(numbers: list[int], bits: int) -> None:
    limbs = wide.from_ints(numbers, bits=bits, n_limbs=limbs_for(bits))
    assert wide.to_ints(limbs, bits=bits) == numbers
    assert wide.total(limbs, bits=bits) == sum(numbers)
    floats = wide.scaled(limbs, bits=bits)
    assert np.ldexp(floats, bits * (len(limbs) - 1)) == pytest.approx(np.array(numbers, dtype=float), rel=1e-12)


@given(numbers, bits)
def test_carrying_changes_no_number(numbers: list[int], bits: int) -> None:
    limbs = [3 * limb for limb in wide.from_ints(numbers, bits=bits, n_limbs=limbs_for(bits))]
    wide.carry(limbs, bits=bits)
    assert wide.to_ints(limbs, bits=bits) == [3 * number for number in numbers]
    assert all((limb < 2**bits).all() for limb in limbs)


@given(st.lists(st.tuples(st.integers(0, 2**130 - 1), st.integers(0, 2**130 - 1)), min_size=1, max_size=20), bits)
def test_comparison_and_difference_are_those_of_integers(pairs: list[tuple[int, int]], bits: int) -> None:
    pairs += [(one, one) for one, _ in pairs]
    left, right = (
        wide.from_ints([pair[side] for pair in pairs], bits=bits, n_limbs=limbs_for(bits)) for side in (0, 1)
    )
    assert wide.at_most(left, right).tolist() == [one <= other for one, other in pairs]
    high, low = (
        wide.from_ints([pick(pair) for pair in pairs], bits=bits, n_limbs=limbs_for(bits)) for pick in (max, min)
    )
    wide.subtract(high, low, bits=bits)
    assert wide.to_ints(high, bits=bits) == [abs(one - other) for one, other in pairs]


@pytest.mark.parametrize("top", [2**60 - 1, 2**60 - 12345])
def test_totals_of_many_full_limbs_do_not_overflow(top: int) -> None:
    assert wide.total([np.full(1000, top, dtype=np.uint64)] * 2, bits=60) == 1000 * (top + (top << 60))
