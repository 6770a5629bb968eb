"""Places: what people type, and that a URL reads as a path does."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from lutbuilder.urls import Url, place
from lutbuilder_agent.errors import SpecError


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("luts", "luts"),
        ("/srv/luts", "/srv/luts"),
        ("", "."),
        ("file:///srv/luts/", "/srv/luts"),
        ("FILE:///srv/luts", "/srv/luts"),
        ("file://localhost/srv", "/srv"),
        ("file:///", "/"),
        ("local:///srv", "/srv"),
        ("c:/luts", "c:/luts"),
        ("dev/name@3", "dev/name@3"),
    ],
)
def test_paths_and_file_urls_are_paths_of_this_machine(text: str, path: str) -> None:
    assert place(text) == Path(path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/luts/", "s3://bucket/luts"),
        ("S3://Bucket/Luts", "s3://Bucket/Luts"),
        ("memory:///luts", "memory://luts"),
        ("az://container@account/luts", "az://container@account/luts"),
        ("gs://bucket/a/b/c", "gs://bucket/a/b/c"),
    ],
)
def test_urls_stay_urls(text: str, shown: str) -> None:
    found = place(text)
    assert isinstance(found, Url)
    assert str(found) == shown
    assert place(shown) == found
    assert place(found) is found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://", "names no bucket; write it as s3://BUCKET/PREFIX"),
        ("memory:///", "names no bucket"),
        ("file://server/share", "another machine"),
        ("sftp://me:secret@host/luts", "holds a password: leave it out"),
    ],
)
def test_urls_that_make_no_sense_are_refused(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        place(text)
    assert "secret" not in str(caught.value)


def test_a_url_reads_as_a_path_does() -> None:
    path, url = (
        PurePosixPath("bucket/luts/phone/litert-fp32-bs1/v0003.parquet"),
        place("s3://bucket/luts/phone/litert-fp32-bs1/v0003.parquet"),
    )
    assert isinstance(url, Url)
    assert (url.name, url.stem, url.parts) == (path.name, path.stem, path.parts)
    assert str(url.parent) == f"s3://{path.parent}"
    assert str(url.parent.parent.parent / "other") == f"s3://{path.parent.parent.parent / 'other'}"
    assert url.parent / PurePosixPath("v0003.parquet") == url
    assert url / "" == url
    assert url.absolute() is url
    assert url.bucket == place("s3://bucket")
    assert url.bucket.parent == url.bucket
    assert len({url, place(str(url))}) == 1
