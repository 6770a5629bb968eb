"""Samples survive their trip through the store's bytes, and the summary is that of a textbook."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.coordinator import samples
from lutbuilder_agent.errors import StoreError
from tests.store_examples import timing

NS = st.integers(1, (1 << 62) - 1) | st.integers(1, 10**9)


@given(st.lists(NS, max_size=3), st.lists(NS, min_size=1, max_size=20), st.data())
def test_samples_survive_packing(warmup: list[int], values: list[int], data: st.DataObject) -> None:
    positions = st.lists(st.integers(0, len(values) - 1), max_size=3).map(tuple)
    preempted, throttled = data.draw(positions), data.draw(st.none() | positions)
    made = timing(0, warmup_ns=tuple(warmup), samples_ns=tuple(values), preempted=preempted, throttled=throttled)
    calls = samples.Calls(made.warmup_ns, made.samples_ns, made.preempted, made.throttled)
    assert samples.unpack(samples.pack(made)) == calls


def test_samples_of_a_device_without_throttle_counters_are_stored_as_they_always_were() -> None:
    written = bytes.fromhex("04 01000000 02000000 01000000 84030000 64000000 2c010000 01000000")  # by lutbuilder 0.1.0
    made = timing(0, warmup_ns=(900,), samples_ns=(100, 300), preempted=(1,))
    assert samples.unpack(written) == samples.Calls((900,), (100, 300), (1,), None)
    assert samples.pack(made) == written


@given(st.binary(max_size=60))
def test_bytes_that_are_no_samples_are_refused(raw: bytes) -> None:
    try:
        parts = samples.unpack(raw)
    except StoreError:
        return  # the one refusal there is; any other exception fails this test
    lists = (parts.warmup_ns, parts.samples_ns, parts.preempted, parts.throttled or ())
    head = samples._HEAD.size + (0 if parts.throttled is None else samples._FOURTH.size)
    assert head + sum(map(len, lists)) * (raw[0] & 0xF) == len(raw)


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=30), st.data())
def test_the_summary_is_numpys(values: list[int], data: st.DataObject) -> None:
    preempted = data.draw(st.sets(st.integers(0, len(values) - 1)))
    kept = [ns for number, ns in enumerate(values) if number not in preempted] or values
    expected = np.percentile(kept, [50, 90])
    assert np.allclose(samples.summary(values, tuple(preempted)), expected, rtol=1e-12)


def test_two_hundred_samples_take_less_than_a_kibibyte() -> None:
    assert len(samples.pack(timing(0, samples_ns=(9_876_543,) * 200, preempted=()))) < 1024
