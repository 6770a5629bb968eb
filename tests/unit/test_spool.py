"""The spool: what is in it is safe, and only an acknowledgement takes it out."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.records import Report
from lutbuilder_agent.spool import Spool
from tests.agent_fakes import report


def opened(folder: Path, warnings: list[str] | None = None, **settings: int) -> Spool:
    return Spool.open(folder, warn=(warnings if warnings is not None else []).append, **settings)


def waiting(spool: Spool) -> list[Report | None]:
    return [spool.read(path) for path in spool.paths()]


def test_reports_come_back_equal_and_oldest_first_after_a_restart(tmp_path: Path) -> None:
    reports = [report(f"r-{n}", round=n, samples=(n + 1,)) for n in range(12)]
    spool = opened(tmp_path / "spool")
    for one in reports[:6]:
        spool.put(one)
    spool = opened(tmp_path / "spool")
    for one in reports[6:]:
        spool.put(one)
    assert waiting(opened(tmp_path / "spool")) == reports


@given(st.lists(st.integers(1, 1 << 61), min_size=1, max_size=30))
def test_any_samples_survive_the_disk(tmp_path_factory: pytest.TempPathFactory, samples: list[int]) -> None:
    one = report(samples=samples)
    spool = opened(tmp_path_factory.mktemp("spool"))
    assert spool.read(spool.put(one)) == one


def test_an_acknowledged_report_is_gone_and_removing_it_twice_is_no_error(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    path = spool.put(report())
    spool.remove(path)
    spool.remove(path)
    assert waiting(opened(tmp_path)) == []


def test_a_report_is_synced_to_the_disk_before_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size > 0)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    opened(tmp_path).put(report())
    assert len(synced) == 2  # the file, and the folder that names it


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", "grown"])
def test_a_damaged_file_is_set_aside_with_a_warning_and_the_rest_is_offered(tmp_path: Path, damage: str) -> None:
    spool = opened(tmp_path)
    bad = spool.put(report("bad"))
    good = report("good")
    spool.put(good)
    raw = bad.read_bytes()
    damaged = {
        "cut": raw[:-3],
        "flipped": raw[:-1] + bytes([raw[-1] ^ 1]),
        "foreign": b"hello",
        "empty": b"",
        "grown": raw + b"x",
    }[damage]
    bad.write_bytes(damaged)
    warnings: list[str] = []
    spool = opened(tmp_path, warnings)
    assert waiting(spool) == [None, good]
    assert bad.with_name(bad.name + ".corrupt").read_bytes() == damaged
    assert "nothing was deleted" in warnings[0]
    assert waiting(spool) == [good]


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_spool(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("spool")
    (folder / "0000000001-x.report").write_bytes(raw)
    assert waiting(opened(folder)) == [None]


def test_a_kill_between_writing_and_naming_loses_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    path = spool.put(report())
    path.rename(path.with_suffix(".tmp"))
    assert waiting(opened(tmp_path)) == [report()]


def test_a_kill_in_the_middle_of_writing_leaves_no_half_report(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    path = spool.put(report())
    path.with_suffix(".tmp").write_bytes(path.read_bytes()[:-5])
    path.unlink()
    warnings: list[str] = []
    assert waiting(opened(tmp_path, warnings)) == []
    assert len(warnings) == 1


def test_numbers_go_on_rising_after_files_were_set_aside(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.put(report("a")).write_bytes(b"")
    waiting(opened(tmp_path))
    assert opened(tmp_path).put(report("b")).name.startswith("0000000002-")


def test_a_full_spool_refuses_and_says_what_to_do(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=400)
    kept = spool.put(report("a"))
    with pytest.raises(StoreError, match=r"is full: .* no coordinator has acknowledged.*--spool-dir"):
        spool.put(report("b", samples=range(1_000_000, 1_000_200)))
    assert spool.paths() == (kept,)


def test_room_is_asked_for_before_measuring(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=1000)
    spool.ensure_room(1000)
    with pytest.raises(StoreError):
        spool.ensure_room(1001)
    with pytest.raises(StoreError, match="bytes are free"):
        opened(tmp_path, max_bytes=1 << 60).ensure_room(1 << 59)


def test_a_disk_that_fails_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spool = opened(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write to the spool .*No space left on device.*--spool-dir"):
        spool.put(report())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_one_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open the spool"):
        opened(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot open the spool"):
        opened(tmp_path / "file" / "below")


def test_ids_with_dots_and_signs_name_files_that_are_found_again(tmp_path: Path) -> None:
    one = replace(report(), report_id="a.b+c-d_e.report.tmp")
    spool = opened(tmp_path)
    path = spool.put(one)
    assert spool.paths() == (path,)
    assert spool.read(path) == one
