"""The artifact cache: exactly the promised bytes, fetched once, resumed after a cut, within a quota."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.cache import ArtifactCache, Fetch
from lutbuilder_agent.errors import ArtifactCorrupt, Unreachable
from lutbuilder_agent.records import ArtifactRef

RAW = bytes(range(256)) * 20


def ref_of(raw: bytes) -> ArtifactRef:
    return ArtifactRef(sha256=hashlib.sha256(raw).hexdigest(), format="onnx", size_bytes=len(raw))


def serving(raw: bytes, offsets: list[int], *, chunk: int = 512, cut_at: int | None = None) -> Fetch:
    """A fetch of `raw` that notes the offsets asked for, and breaks when it comes to byte `cut_at`."""

    def fetch(offset: int) -> Iterator[bytes]:
        offsets.append(offset)
        for start in range(offset, len(raw), chunk):
            if cut_at is not None and start + chunk > cut_at:
                raise Unreachable("cut")
            yield raw[start : start + chunk]

    return fetch


def never(offset: int) -> Iterator[bytes]:
    raise AssertionError("must not be fetched")


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_any_bytes_arrive_whole_and_are_fetched_once(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, chunk: int
) -> None:
    cache = ArtifactCache(tmp_path_factory.mktemp("cache"))
    assert cache.get(ref_of(raw), serving(raw, [], chunk=chunk)).read_bytes() == raw
    assert cache.get(ref_of(raw), never).read_bytes() == raw


@given(st.lists(st.integers(0, len(RAW) - 1), max_size=5))
def test_a_download_cut_anywhere_any_number_of_times_resumes_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    cache = ArtifactCache(tmp_path_factory.mktemp("cache"))
    offsets: list[int] = []
    arrived = 0
    for cut in sorted(cuts):
        with pytest.raises(Unreachable):
            cache.get(ref_of(RAW), serving(RAW, offsets, cut_at=max(cut, arrived)))
        assert offsets[-1] == arrived
        arrived += (max(cut, arrived) - arrived) // 512 * 512
    assert cache.get(ref_of(RAW), serving(RAW, offsets)).read_bytes() == RAW
    assert offsets == sorted(offsets)


def test_a_wrong_sha256_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    wrong = RAW[:-1] + b"\0"
    with pytest.raises(ArtifactCorrupt, match="not the promised one"):
        ArtifactCache(tmp_path).get(ref_of(RAW), serving(wrong, []))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [lambda raw: raw[:-100], lambda raw: raw + b"x" * 5000])
def test_a_wrong_length_is_refused_without_reading_on_for_ever(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    sent = 0

    def fetch(offset: int) -> Iterator[bytes]:
        nonlocal sent
        for start in range(offset, len(change(RAW)), 512):
            sent += 512
            yield change(RAW)[start : start + 512]

    with pytest.raises(ArtifactCorrupt):
        ArtifactCache(tmp_path).get(ref_of(RAW), fetch)
    assert sent <= len(RAW) + 1024
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [b"\0" * 700, RAW + b"more", b"\0" * len(RAW)])
def test_a_bad_part_of_an_earlier_run_is_fetched_again_from_the_start(tmp_path: Path, left: bytes) -> None:
    (tmp_path / f"{ref_of(RAW).sha256}.part").write_bytes(left)
    offsets: list[int] = []
    assert ArtifactCache(tmp_path).get(ref_of(RAW), serving(RAW, offsets)).read_bytes() == RAW
    assert offsets[-1] == 0


def test_a_corrupt_cached_file_is_fetched_again(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    path = cache.get(ref_of(RAW), serving(RAW, []))
    for damaged in (RAW[:-1], RAW[:-1] + b"\0", b""):
        path.write_bytes(damaged)
        offsets: list[int] = []
        assert cache.get(ref_of(RAW), serving(RAW, offsets)).read_bytes() == RAW
        assert offsets == [0]


def test_the_least_recently_used_leave_first_and_a_lease_keeps_its_own(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, quota_bytes=2500)
    raws = [bytes([n]) * 1000 for n in range(4)]
    paths = [cache.get(ref_of(raw), serving(raw, [])) for raw in raws]
    for age, path in enumerate(paths):
        os.utime(path, (1000 + age, 1000 + age))
    cache.get(ref_of(raws[1]), never)  # used now
    cache.trim(keep={ref_of(raws[0]).sha256})
    assert [path.exists() for path in paths] == [True, True, False, False]


def test_a_lease_larger_than_the_quota_is_kept_whole(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, quota_bytes=10)
    path = cache.get(ref_of(RAW), serving(RAW, []))
    cache.trim(keep={ref_of(RAW).sha256})
    assert path.exists()
    cache.trim()
    assert not path.exists()


def test_trimming_a_cache_that_never_was_is_no_error(tmp_path: Path) -> None:
    ArtifactCache(tmp_path / "none").trim()


def test_a_folder_that_cannot_be_written_raises_the_systems_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        ArtifactCache(tmp_path / "file").get(ref_of(RAW), never)
