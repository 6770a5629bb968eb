"""Copies of downloaded tables: found again, checked, bounded, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lutbuilder.lut.cache import Copies, cache_folder

URL = "s3://bucket/luts/phone/litert-fp32-bs1/v0001.parquet"


def test_a_copy_is_of_one_object(tmp_path: Path) -> None:
    copies = Copies(tmp_path)
    assert copies.get(URL, "tag") is None
    copies.keep(URL, "tag", b"rows")
    assert copies.get(URL, "tag") == b"rows"
    assert copies.get(URL, "another tag") is None, "the bucket was emptied and filled again"
    assert copies.get(URL + "x", "tag") is None


def test_equal_contents_are_kept_once(tmp_path: Path) -> None:
    copies = Copies(tmp_path)
    copies.keep(URL, "tag", b"rows")
    copies.keep(URL + "x", "tag", b"rows")
    assert [path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".of"] == [b"rows"]
    assert copies.get(URL + "x", "tag") == b"rows"


@pytest.mark.parametrize("damage", ["copy", "name", "gone", "path"])
def test_a_damaged_copy_is_no_copy(tmp_path: Path, damage: str) -> None:
    copies = Copies(tmp_path)
    copies.keep(URL, "tag", b"rows")
    (known,) = tmp_path.glob("*.of")
    (copy,) = (path for path in tmp_path.iterdir() if path != known)
    if damage == "copy":
        copy.write_bytes(b"other rows")
    elif damage == "gone":
        copy.unlink()
    else:
        known.write_bytes(b"\xff" * 64 if damage == "name" else b"../../etc/passwd")
    assert copies.get(URL, "tag") is None
    copies.keep(URL, "tag", b"rows")
    assert copies.get(URL, "tag") == b"rows"


def test_the_oldest_copies_make_room(tmp_path: Path) -> None:
    copies = Copies(tmp_path, most_bytes=2500)
    for number in range(4):
        copies.keep(f"{URL}{number}", "tag", bytes([number]) * 1000)
        for path in tmp_path.iterdir():
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
    assert [copies.get(f"{URL}{number}", "tag") is not None for number in range(4)] == [False, False, True, True]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    copies = Copies(tmp_path / "file")
    copies.keep(URL, "tag", b"rows")
    assert copies.get(URL, "tag") is None


def test_the_cache_is_where_the_user_says(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "lutbuilder" / "luts"
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "lutbuilder" / "luts"
    assert cache_folder({"HOME": ""}).parts[-2:] == ("lutbuilder", "luts")
