"""The artifact cache: exactly the promised bytes, fetched once, resumed after a cut, within a quota."""

from __future__ import annotations

import hashlib
import os
import shutil
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
    offsets: list[int] = []
    with pytest.raises(ArtifactCorrupt, match="not the promised one, twice"):
        ArtifactCache(tmp_path).get(ref_of(RAW), serving(wrong, offsets))
    assert offsets == [0, 0]
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_were_wrong_once_are_fetched_anew(tmp_path: Path) -> None:
    offsets: list[int] = []
    raws = [RAW[:-1] + b"\0", RAW]

    def fetch(offset: int) -> Iterator[bytes]:
        return serving(raws.pop(0), offsets)(offset)

    assert ArtifactCache(tmp_path).get(ref_of(RAW), fetch).read_bytes() == RAW
    assert offsets == [0, 0]


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
    assert sent <= 2 * (len(RAW) + 1024)  # twice
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


def test_the_least_recently_used_leave_first_and_leases_in_hand_keep_their_own(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, quota_bytes=3500)
    raws = [bytes([n]) * 1000 for n in range(5)]
    paths = [cache.get(ref_of(raw), serving(raw, [])) for raw in raws[:4]]
    for age, path in enumerate(paths):
        os.utime(path, (1000 + age, 1000 + age))
    cache.get(ref_of(raws[1]), never)  # used now
    assert cache.make_room([ref_of(raws[4])], besides=[ref_of(raws[0])]) == ""
    assert [path.exists() for path in paths] == [True, True, False, False]
    cache.get(ref_of(raws[4]), serving(raws[4], []))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3500


def test_what_is_there_already_needs_no_room(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, quota_bytes=2000)
    raws = [bytes([n]) * 1000 for n in range(2)]
    paths = [cache.get(ref_of(raw), serving(raw, [])) for raw in raws]
    assert cache.make_room([ref_of(raw) for raw in raws]) == ""
    assert all(path.exists() for path in paths)


def test_what_a_cut_download_left_counts_and_is_kept_for_its_lease(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, quota_bytes=len(RAW))
    with pytest.raises(Unreachable):
        cache.get(ref_of(RAW), serving(RAW, [], cut_at=2048))
    assert cache.make_room([ref_of(RAW)]) == ""
    offsets: list[int] = []
    assert cache.get(ref_of(RAW), serving(RAW, offsets)).read_bytes() == RAW
    assert offsets == [2048]
    assert cache.make_room([ref_of(b"other")]) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_lease_larger_than_the_quota_is_refused_with_the_option_to_type(tmp_path: Path) -> None:
    told = ArtifactCache(tmp_path, quota_bytes=2 << 20).make_room(
        [ArtifactRef(sha256=f"{n:064x}", format="onnx", size_bytes=1 << 20) for n in range(3)]
    )
    assert "3 artifacts of 3145728 bytes are more than the cache" in told
    assert told.endswith("--cache-quota 4M")


def test_one_artifact_of_several_ops_is_counted_once(tmp_path: Path) -> None:
    assert ArtifactCache(tmp_path, quota_bytes=len(RAW)).make_room([ref_of(RAW), ref_of(RAW)]) == ""


def test_a_disk_without_room_is_freed_of_old_artifacts_and_then_is_the_systems_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ArtifactCache(tmp_path)
    old = cache.get(ref_of(b"old" * 1000), serving(b"old" * 1000, []))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 2500))
    assert cache.make_room([ref_of(RAW)]) == ""
    assert not old.exists()
    with pytest.raises(OSError, match="2500 bytes are free and 5120 are wanted"):
        cache.make_room([ref_of(RAW)])


def test_room_is_made_in_a_cache_that_never_was(tmp_path: Path) -> None:
    assert ArtifactCache(tmp_path / "none").make_room([ref_of(RAW)]) == ""


def test_a_folder_that_cannot_be_written_raises_the_systems_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        ArtifactCache(tmp_path / "file").get(ref_of(RAW), never)
