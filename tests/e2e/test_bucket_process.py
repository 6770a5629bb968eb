"""A lab whose tables are in a bucket: real processes, an S3 server on loopback, everybody publishing at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.lut import Lut
from lutbuilder.lut.folder import folder_at
from lutbuilder.lut.remote import forget
from lutbuilder.lut.store import read_place
from lutbuilder.urls import Url, place
from lutbuilder_agent.errors import LutNotWritable
from tests.bucket import SECRET, BucketServer, bucket_server
from tests.desk import NAME
from tests.fleet import Lab

SPACE = """
input = { channels = 3, resolution = 16 }
[variables]
k = [3, 5]
[[sites]]
name = "stem"
kind = "conv"
out_channels = 8
kernel = "k"
[[sites]]
name = "logits"
kind = "logits"
out_channels = 10
"""
SHORT = ("--max-rounds", "6", "--precision", "0.01%", "--carriers", "0", "--budget", "1h", "--json", "--accept-noisy")
PUBLISHERS = 3


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    with bucket_server() as server:
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)  # of this process, and so of those of a Desk
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        forget()
        yield server
        forget()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.clear()


def bucket(server: BucketServer) -> Url:
    found = place(f"s3://{server.make_bucket()}/luts")
    assert isinstance(found, Url)
    return found


def test_serve_ends_at_its_start_where_its_bucket_is_not_there(lab: Lab, server: BucketServer) -> None:
    ended = lab.run(*lab.serving, "--luts", "s3://nobodys/luts")
    assert (ended.status, ended.json["error"]["code"]) == (LutNotWritable.exit_status, LutNotWritable.code)
    assert ended.error.startswith("error[lut_not_writable]: cannot publish into s3://nobodys/luts: there is no bucket")
    assert ended.error.endswith("or choose another folder: --luts DIR|URL")
    assert SECRET not in ended.out + ended.err
    assert not lab.state.exists()


def test_a_coordinator_and_somebody_who_measures_alone_publish_into_one_bucket_at_once_and_lose_nothing(
    lab: Lab, server: BucketServer
) -> None:
    """Two jobs of a `serve`, and a `collect` by itself: all three hold the same number in their hands."""
    luts, daves = bucket(server), bucket(server)
    meeting = threading.Barrier(PUBLISHERS, timeout=50.0)

    def meet(environ: dict[str, Any]) -> None:
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"] == f"/{luts.rest}/{NAME}/v0001.parquet":
            meeting.wait()

    server.before = meet
    (lab.folder / "space.toml").write_text(SPACE, encoding="utf-8")
    asked = ("collect", "--device", "simulated", "--space", str(lab.folder / "space.toml"), *SHORT)
    lab.serve("--luts", str(luts))
    lab.agent("one")
    ann, bob, dave = (lab.person(name) for name in ("ann", "bob", "dave"))

    def asking(kept: Path | Url, seed: str) -> tuple[str, ...]:
        return (*asked, "--coordinator", lab.address, "--luts", str(kept), "--seed", seed)

    running = [
        (ann, ann.start(*asked, "--state-dir", str(ann.state), "--luts", str(luts))),
        (bob, bob.start(*asking(bob.luts, "1"))),
        (dave, dave.start(*asking(daves, "2"))),
    ]
    told = {}
    for desk, process in running:
        ended = desk.ended(process)
        assert ended.status == 0, ended.err
        assert SECRET not in ended.out + ended.err
        told[desk] = ended.json
    assert sorted(each["lut"]["version"] for each in told.values()) == [1, 2, 3], "to each a number of its own"
    for desk, kept in ((ann, luts), (bob, bob.luts), (dave, daves)):
        version = told[desk]["lut"]["version"]
        there = kept / NAME / f"v{version:04}.parquet"
        assert told[desk]["lut"]["path"] == str(there)
        assert read_place(there) == read_place(luts / NAME / f"v{version:04}.parquet")
        assert folder_at(kept).has(NAME, version, "samples"), "with the raw visits"

    chain = [Lut.load(f"{luts / NAME}@{version}").meta for version in (1, 2, 3)]
    assert [meta.parent_sha256 for meta in chain] == [None, *(meta.content_sha256 for meta in chain[:-1])]
    assert all(set(before.sessions) <= set(after.sessions) for before, after in itertools.pairwise(chain))
    measured = [{visit.session_id for visit in desk.visits()} for desk in (lab, ann)]
    assert set(chain[-1].sessions) == set().union(*measured)
    assert len(chain[-1].sessions) == sum(map(len, measured)) >= 2
    creating = [condition for method, path, condition in server.requests if method == "PUT" and "/v000" in path]
    assert creating == ["*"] * len(creating)
