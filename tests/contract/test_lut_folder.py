"""Every place that tables can be in keeps the same promises: a folder, memory, and a bucket behind a real client."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lutbuilder.lut import Lut, list_luts, publish, write_samples
from lutbuilder.lut.folder import folder_at
from lutbuilder.lut.remote import PROOF, forget
from lutbuilder.lut.store import keep_bytes, lut_bytes, read_place, resolve, sampled
from lutbuilder.urls import Place, Url, place
from lutbuilder_agent.errors import LutConflict, LutCorrupt, LutNotFound
from tests.bucket import BucketServer, bucket_server
from tests.lut_examples import example_meta, example_op, example_row, visit_of

NAME = "example-cpu/onnxruntime-fp32-bs1"
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with bucket_server() as server:
        yield server


@pytest.fixture(params=["folder", "memory", "s3"])
def luts(
    request: pytest.FixtureRequest, tmp_path: Path, server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """An empty folder of tables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "folder":
        yield tmp_path / "luts"
        return
    url = f"memory://luts-{next(_NUMBERS)}/below"
    if request.param == "s3":
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        url = f"s3://{server.make_bucket()}/some/luts"
    forget()
    yield place(url)
    forget()


def test_a_folder_without_tables_is_empty_and_nothing_is_found_there(luts: Place) -> None:
    assert list_luts(luts) == ()
    folder = folder_at(luts)
    assert (folder.versions(NAME), folder.newest(NAME), folder.has(NAME, 1)) == ((), None, False)
    with pytest.raises(LutNotFound):
        folder.read(NAME, 1)
    with pytest.raises(LutNotFound, match=r"there is: none\. Collect it: lutbuilder collect"):
        Lut.load(NAME, folder=luts)


def test_what_is_created_is_read_again_and_never_changes(luts: Place) -> None:
    folder = folder_at(luts)
    assert folder.create(NAME, 3, b"first")
    assert not folder.create(NAME, 3, b"second")
    assert folder.read(NAME, 3) == b"first"
    assert folder.has(NAME, 3)
    assert not folder.has(NAME, 3, "samples")
    assert folder.create(NAME, 3, b"raw", "samples")
    assert folder.read(NAME, 3, "samples") == b"raw"
    assert (folder.versions(NAME), folder.newest(NAME)) == ((3,), 3)
    assert folder.tables() == {NAME: (3,)}


def test_a_place_is_checked_before_anything_is_published_and_holds_no_table_then(luts: Place) -> None:
    folder = folder_at(luts)
    for _ in range(2):
        folder.check()
        forget()  # as another process would
    assert folder.tables() == {}
    assert publish([example_row()], example_meta(), folder=luts).version == 1
    folder.check()
    assert folder.tables() == {NAME: (1,)}


def test_versions_follow_each_other_and_are_listed_by_name(luts: Place) -> None:
    first = publish([example_row(example_op(0))], example_meta(), folder=luts)
    second = publish([example_row(example_op(1))], example_meta(), folder=luts, base=first)
    publish([example_row()], example_meta(device="other-cpu"), folder=luts)
    assert (second.version, second.meta.parent_sha256) == (2, first.content_hash)
    assert second.path == luts / NAME / "v0002.parquet"
    assert [(entry.name, entry.versions) for entry in list_luts(luts)] == [
        (NAME, (1, 2)),
        ("other-cpu/onnxruntime-fp32-bs1", (1,)),
    ]
    assert Lut.load(list_luts(luts)[0].path(1)).content_hash == first.content_hash


def test_a_table_is_found_by_its_place_or_by_its_name(luts: Place) -> None:
    publish([example_row(example_op(0))], example_meta(), folder=luts)
    lut = publish([example_row(example_op(1))], example_meta(), folder=luts)
    for spec in (luts / NAME, str(luts / NAME), f"{luts / NAME}@2", NAME, f"{NAME}@v2", str(lut.path), lut.spec):
        assert Lut.load(spec, folder=luts).content_hash == lut.content_hash, spec
    assert Lut.load(f"{luts}/{NAME}@1").version == 1
    assert str(resolve(NAME, folder=luts)) == str(lut.path)
    with pytest.raises(LutNotFound, match=r"has no version 7; it has 1, 2"):
        Lut.load(f"{luts / NAME}@7")
    with pytest.raises(LutNotFound, match=r"onnxruntime-fp32-bs1@2"):
        Lut.load(luts / "example-cpu" / "another")
    with pytest.raises(LutNotFound):
        Lut.load(str(luts / NAME / "v0009.parquet"))


def test_a_table_that_was_copied_under_another_number_is_refused(luts: Place) -> None:
    lut = publish([example_row()], example_meta(), folder=luts)
    folder_at(luts).create(NAME, 2, read_place(lut.path))
    with pytest.raises(LutCorrupt, match="copied or renamed"):
        Lut.load(NAME, folder=luts)
    with pytest.raises(LutCorrupt, match="copied or renamed"):
        publish([example_row()], example_meta(), folder=luts)


def test_raw_visits_lie_beside_the_version_and_stay(luts: Place) -> None:
    lut = publish([example_row()], example_meta(), folder=luts)
    assert sampled(lut) == {}
    path = write_samples([visit_of("c1", 1), visit_of("c1", 2), visit_of("c2", 3)], lut=lut)
    assert path == luts / NAME / "samples" / "v0001.parquet"
    before = read_place(path)
    write_samples([visit_of("c3", 4)], lut=lut)
    assert read_place(path) == before
    assert sampled(lut) == {"c1": 2, "c2": 1}
    assert [entry.versions for entry in list_luts(luts)] == [(1,)], "raw visits are no version"


def test_a_validation_is_a_further_version_of_the_table_where_it_was_found(luts: Place) -> None:
    first = publish([example_row()], example_meta(), folder=luts)
    second = publish(
        [], replace(first.meta, validation={"mape": 0.009}), folder=first.path.parent.parent.parent, base=first
    )
    assert second.path == luts / NAME / "v0002.parquet"
    assert Lut.load(second.spec).meta.validation == {"mape": 0.009}


def test_the_bytes_of_a_table_are_those_that_were_published(luts: Place) -> None:
    lut = publish([example_row()], example_meta(), folder=luts)
    raw = read_place(lut.path)
    for version in (0, 1):
        found = lut_bytes(NAME, version, folder=luts)
        assert (found.version, found.raw) == (1, raw)
    with pytest.raises(LutNotFound, match="no samples of"):
        lut_bytes(NAME, 0, "samples", folder=luts)
    for name, version in ((NAME, 2), ("example-cpu/another", 0)):
        with pytest.raises(LutNotFound):
            lut_bytes(name, version, folder=luts)


def test_a_table_of_elsewhere_is_kept_under_its_number_unless_another_has_it(luts: Place, tmp_path: Path) -> None:
    raw = read_place(publish([example_row()], example_meta(), folder=tmp_path / "theirs").path)
    assert keep_bytes(raw, NAME, 4, folder=luts) == luts / NAME / "v0004.parquet"
    assert keep_bytes(raw, NAME, 4, folder=luts) == luts / NAME / "v0004.parquet"
    with pytest.raises(LutConflict, match=r"v0004\.parquet is another table.*--luts DIR"):
        keep_bytes(raw + b"x", NAME, 4, folder=luts)
    assert lut_bytes(NAME, 4, folder=luts).raw == raw


def test_two_publishers_of_one_number_give_two_versions(luts: Place) -> None:
    """Each has seen the same base; the slower one is refused and merges onto the faster one."""
    base = publish([example_row(example_op(0))], example_meta(), folder=luts)
    publish([example_row(example_op(1))], example_meta(sessions=("fast",)), folder=luts, base=base)
    lut = publish([example_row(example_op(2))], example_meta(sessions=("slow",)), folder=luts, base=base)
    assert (lut.version, lut.meta.parent_version) == (3, 2)
    assert {row.op for row in lut} == {example_op(n) for n in range(3)}


def test_the_proof_that_a_bucket_creates_once_is_no_table(luts: Place) -> None:
    publish([example_row()], example_meta(), folder=luts)
    assert [entry.name for entry in list_luts(luts)] == [NAME]
    if isinstance(luts, Url):
        assert b"Leave it here" in read_place(luts / PROOF)
