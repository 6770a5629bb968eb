"""Tables in a bucket: concurrent publishers lose nothing, whatever the server does; what cannot work is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lutbuilder.cli.main import app
from lutbuilder.control.serve import ServeOptions, serving
from lutbuilder.doctor import check_luts
from lutbuilder.lut import Lut, list_luts, publish, write_samples
from lutbuilder.lut import remote as remote_module
from lutbuilder.lut.folder import folder_at
from lutbuilder.lut.remote import PROOF, RemoteFolder, forget
from lutbuilder.lut.store import read_place
from lutbuilder.urls import Url, place
from lutbuilder_agent.errors import LutbuilderError, LutError, LutNotFound, LutNotWritable
from tests.bucket import SECRET, BucketServer, bucket_server
from tests.lut_examples import example_meta, example_op, example_row, visit_of

NAME = "example-cpu/onnxruntime-fp32-bs1"
PRECONDITION = b"<Error><Code>%s</Code><Message>made up</Message></Error>"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    with bucket_server() as server:
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        forget()
        yield server
        forget()


@pytest.fixture
def luts(server: BucketServer) -> Url:
    found = place(f"s3://{server.make_bucket()}/some/luts")
    assert isinstance(found, Url)
    return found


def puts(server: BucketServer) -> list[tuple[str, str | None]]:
    return [(path.rpartition("/")[2], condition) for method, path, condition in server.requests if method == "PUT"]


# --- several publishers

PUBLISHER = """
import sys
from lutbuilder.lut import publish
from lutbuilder.urls import place
from tests.lut_examples import example_meta, example_op, example_row

me = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(3):
    rows = [example_row(example_op(10 * me + turn)), example_row(example_op(0), n_visits=me)]
    print(publish(rows, example_meta(sessions=(f"s{me}-{turn}",)), folder=place(sys.argv[1])).version, flush=True)
"""


def started(root: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()


def test_four_publisher_processes_lose_nothing(luts: Url, server: BucketServer, root: Path) -> None:
    publishers = [started(root, PUBLISHER, str(luts), str(me)) for me in range(1, 5)]
    for publisher in publishers:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "ready\n"
    for publisher in publishers:
        told(publisher, "go\n")
    versions: list[int] = []
    for publisher in publishers:
        out, err = publisher.communicate(timeout=150)
        assert publisher.returncode == 0, err
        versions += map(int, out.split())
    assert sorted(versions) == list(range(1, 13)), "every publish has a number of its own"
    home = luts / NAME
    newest = Lut.load(home)
    numbers = {0, *(10 * me + turn for me in range(1, 5) for turn in range(3))}
    assert {row.op for row in newest} == {example_op(number) for number in numbers}
    assert newest[example_op(0)].n_visits == 4, "the best of four rows"
    assert len(newest.meta.sessions) == 12
    chain = [Lut.load(f"{home}@{version}").meta for version in range(1, 13)]
    assert [meta.parent_sha256 for meta in chain] == [None, *(meta.content_sha256 for meta in chain[:-1])]
    assert {condition for _, condition in puts(server)} == {"*", None}
    assert all(condition == "*" for name, condition in puts(server) if name.endswith(".parquet"))


def test_every_number_of_a_stale_listing_is_passed_over(luts: Url, server: BucketServer) -> None:
    """A server may list what was there a moment ago; the objects themselves say what is there now."""
    publish([example_row(example_op(0))], example_meta(), folder=luts)
    old = folder_at(luts).versions(NAME)
    for number in (1, 2, 3):
        publish([example_row(example_op(number))], example_meta(), folder=luts)

    class Stale(RemoteFolder):
        def versions(self, name: str) -> tuple[int, ...]:
            return old

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_module, "RemoteFolder", Stale)
        lut = publish([example_row(example_op(4))], example_meta(), folder=luts)
    assert (lut.version, lut.meta.parent_version) == (5, 4)
    assert {row.op for row in lut} == {example_op(number) for number in range(5)}


@pytest.mark.parametrize("code", [b"ConditionalRequestConflict", b"OperationAborted"])
def test_a_put_that_met_another_one_is_tried_again(luts: Url, server: BucketServer, code: bytes) -> None:
    left = [2]

    def conflict(environ: dict[str, Any]) -> tuple[str, bytes] | None:
        if environ["REQUEST_METHOD"] != "PUT" or not environ["PATH_INFO"].endswith(".parquet") or not left[0]:
            return None
        left[0] -= 1
        return "409 Conflict", PRECONDITION % code

    server.before = conflict
    assert publish([example_row()], example_meta(), folder=luts).version == 1
    assert [name for name, _ in puts(server)].count("v0001.parquet") == 3


def test_a_refusal_without_a_reason_is_a_number_that_is_taken(luts: Url, server: BucketServer) -> None:
    """Some servers say 412 and not which condition it was."""
    publish([example_row(example_op(0))], example_meta(), folder=luts)
    theirs = publish([example_row(example_op(1))], example_meta(), folder=luts)

    def bare(environ: dict[str, Any]) -> tuple[str, bytes] | None:
        taken = environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("v0002.parquet")
        return ("412 Precondition Failed", PRECONDITION % b"PreconditionFailed") if taken else None

    server.before = bare
    lut = publish([example_row(example_op(2))], example_meta(), folder=luts, base=Lut.load(f"{luts / NAME}@1"))
    assert (lut.version, lut.meta.parent_sha256) == (3, theirs.content_hash)
    assert not folder_at(luts).create(NAME, 2, b"other bytes")


def test_a_put_whose_answer_was_lost_is_not_published_twice(luts: Url, server: BucketServer) -> None:
    """The client sends it again and is refused by its own object."""
    folder = folder_at(luts)
    assert folder.create(NAME, 1, b"mine")
    assert folder.create(NAME, 1, b"mine")
    assert not folder.create(NAME, 1, b"theirs")


def test_a_server_that_ignores_the_condition_is_refused_and_nothing_is_overwritten(
    luts: Url, server: BucketServer
) -> None:
    lut = publish([example_row(example_op(0))], example_meta(), folder=luts)
    before = read_place(lut.path)
    other = place(f"{luts.parent}/others")

    def forgetful(environ: dict[str, Any]) -> None:
        environ.pop("HTTP_IF_NONE_MATCH", None)

    server.before = forgetful
    for folder in (luts, other):
        forget()  # as another process would
        with pytest.raises(
            LutNotWritable, match=r"takes no notice of the condition.*--luts DIR. What was measured is kept"
        ):
            publish([example_row(example_op(1))], example_meta(), folder=folder)
    assert read_place(lut.path) == before
    assert [entry.versions for entry in list_luts(luts)] == [(1,)]
    assert list_luts(other) == ()


def test_a_plugin_that_looks_before_it_writes_is_refused(server: BucketServer, luts: Url) -> None:
    """fsspec's own "create" is a look and a write: two publishers would both find nothing."""
    import fsspec
    from fsspec.spec import AbstractFileSystem

    class Looks(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
        protocol = "looks"

        def find(self, path: str, **options: object) -> list[str]:
            return []

    fsspec.register_implementation("looks", Looks)
    with pytest.raises(
        LutNotWritable, match=r"looks:// here \(Looks\) cannot create an object only where there is none"
    ):
        publish([example_row()], example_meta(), folder=place("looks://bucket/luts"))


# --- publishers that die

KILLED = """
import os, signal, sys
from lutbuilder.lut import publish, write_samples
from lutbuilder.urls import place
from tests.lut_examples import example_meta, example_op, example_row, visit_of

lut = publish([example_row(example_op(1))], example_meta(), folder=place(sys.argv[1]))
if sys.argv[2] == "before the samples":
    os.kill(os.getpid(), signal.SIGKILL)
write_samples([visit_of("c1", 1)], lut=lut)
"""


def test_a_publisher_killed_between_table_and_samples_leaves_a_whole_version(
    luts: Url, server: BucketServer, root: Path
) -> None:
    first = publish([example_row(example_op(0))], example_meta(), folder=luts)
    killed = started(root, KILLED, str(luts), "before the samples")
    assert killed.wait(timeout=60) == -signal.SIGKILL
    killed.communicate()
    lut = Lut.load(luts / NAME)
    assert (lut.version, len(lut), lut.meta.parent_sha256) == (2, 2, first.content_hash)
    write_samples([visit_of("c1", 1)], lut=lut)  # what the same command does when it is typed again
    assert folder_at(luts).has(NAME, 2, "samples")


@pytest.mark.parametrize("at", ["v0002.parquet", "samples/v0002.parquet"])
def test_of_an_upload_that_was_cut_nothing_is_visible(luts: Url, server: BucketServer, root: Path, at: str) -> None:
    """Killed in the middle of a PUT: an object is there whole or not at all."""
    publish([example_row(example_op(0))], example_meta(), folder=luts)
    reached, go_on = threading.Event(), threading.Event()

    def hold(environ: dict[str, Any]) -> tuple[str, bytes] | None:
        if environ["REQUEST_METHOD"] != "PUT" or not environ["PATH_INFO"].endswith(f"{NAME}/{at}"):
            return None
        reached.set()
        go_on.wait(60)
        return "500 Internal Server Error", b""  # nobody listens any more

    server.before = hold
    killed = started(root, KILLED, str(luts), "never")
    assert reached.wait(60)
    killed.kill()
    killed.communicate()
    go_on.set()
    server.before = None
    whole = at.startswith("samples")
    assert [entry.versions for entry in list_luts(luts)] == [(1, 2) if whole else (1,)]
    assert not folder_at(luts).has(NAME, 2, "samples")
    lut = publish([example_row(example_op(2))], example_meta(), folder=luts)
    assert (lut.version, len(lut)) == ((3, 3) if whole else (2, 2))


# --- downloads


def test_a_version_is_downloaded_once_and_again_when_the_bucket_has_another(
    luts: Url, server: BucketServer, tmp_path: Path
) -> None:
    lut = publish([example_row()], example_meta(), folder=luts)
    server.requests.clear()

    def gets() -> int:
        found = sum(method == "GET" and path.endswith(".parquet") for method, path, _ in server.requests)
        server.requests.clear()
        return found

    assert Lut.load(lut.spec).content_hash == lut.content_hash
    assert gets() == 0, "it was read back when it was published"
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    for expected in (1, 0):
        assert Lut.load(lut.spec).content_hash == lut.content_hash
        assert gets() == expected
    other = publish([example_row(example_op(7))], example_meta(), folder=tmp_path / "other")
    server.replace(lut.path, read_place(other.path))
    assert Lut.load(lut.spec).content_hash == other.content_hash
    assert gets() == 1


# --- the command line

run = CliRunner()


def lutbuilder(*words: str) -> Any:
    return run.invoke(app, list(words), catch_exceptions=False)


def test_every_command_about_tables_takes_a_url(luts: Url, tmp_path: Path) -> None:
    publish([example_row(example_op(0))], example_meta(), folder=luts)
    lut = publish(
        [example_row(example_op(1), latency_ms=2.0, latency_lo_ms=1.9, latency_hi_ms=2.1)], example_meta(), folder=luts
    )
    write_samples([visit_of("c1", 1)], lut=lut)
    listed = json.loads(lutbuilder("luts", "list", "--luts", str(luts), "--json").stdout)
    assert [(each["name"], each["version"], each["path"]) for each in listed["luts"]] == [(NAME, 2, str(lut.path))]
    for words in (["luts", "show"], ["luts", "lint"]):
        done = lutbuilder(*words, NAME, "--luts", str(luts), "--json")
        assert done.exit_code in (0, 1), done.output
        assert str(luts) in done.stdout
    shown = json.loads(lutbuilder("luts", "show", f"{luts}/{NAME}@1", "--json").stdout)
    assert (shown["version"], shown["n_rows"]) == (1, 1)
    assert lutbuilder("luts", "diff", f"{NAME}@1", f"{luts}/{NAME}@2", "--luts", str(luts)).exit_code == 0
    checked = check_luts(luts)
    assert (checked.state, checked.found) == ("ok", f"{luts}: 1 tables")
    assert check_luts(Url("s3", "nobodys/luts")).state == "problem"


def test_a_published_table_is_imported_into_a_bucket_and_exported_from_it(luts: Url, tmp_path: Path) -> None:
    source = tmp_path / "haq.npy"
    from tests.published_tables import haq_cycles, npy

    source.write_bytes(npy(haq_cycles()))
    done = lutbuilder(
        "luts", "import", "--format", "haq-npy", str(source), "--into", "bitfusion/simulator-mixed-bs16",
        "--clock-mhz", "500", "--luts", str(luts), "--json",
    )  # fmt: skip  # a command line
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["lut"]["path"] == f"{luts}/bitfusion/simulator-mixed-bs16/v0001.parquet"
    again = lutbuilder(
        "luts", "import", "--format", "haq-npy", str(source), "--into", f"{luts}/bitfusion/simulator-mixed-bs16",
        "--clock-mhz", "500", "--luts", str(luts), "--json",
    )  # fmt: skip  # a command line
    assert not json.loads(again.stdout)["published"]
    out = tmp_path / "again.npy"
    done = lutbuilder(
        "luts", "export", "bitfusion/simulator-mixed-bs16", str(out), "--format", "haq-npy", "--evidence", "imported",
        "--luts", str(luts),
    )  # fmt: skip  # a command line
    assert done.exit_code == 0, done.output
    assert out.stat().st_size > 0


# --- what cannot work


def one_line(error: LutbuilderError) -> str:
    text = str(error)
    assert "\n" not in text
    assert SECRET not in text
    return text


def both(luts: Url) -> Sequence[Callable[[], object]]:
    return (lambda: list_luts(luts), lambda: publish([example_row()], example_meta(), folder=luts))


def test_missing_credentials_are_told(luts: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget()
    for call in both(luts):
        with pytest.raises(LutError) as caught:
            call()
        assert "no credentials for s3://bucket" in one_line(caught.value)
        assert "AWS_ACCESS_KEY_ID" in str(caught.value)


def test_a_bucket_that_is_not_there_is_told(server: BucketServer) -> None:
    luts = Url("s3", "nobodys/luts")
    with pytest.raises(LutNotFound, match="there is no bucket s3://nobodys: make it"):
        list_luts(luts)
    with pytest.raises(LutNotFound, match="there is no bucket s3://nobodys"):
        Lut.load(luts / NAME)
    with pytest.raises(LutError, match="there is no bucket s3://nobodys"):
        publish([example_row()], example_meta(), folder=luts)
    done = lutbuilder("luts", "list", "--luts", str(luts))
    assert (done.exit_code, "Traceback" in done.output) == (66, False)


def test_a_server_that_does_not_answer_is_told(luts: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget()
    for call in both(luts):
        with pytest.raises(LutError, match="check the network, and the endpoint") as caught:
            call()
        assert "127.0.0.1:9" in one_line(caught.value)


def test_what_may_not_be_written_is_told_and_read_all_the_same(luts: Url, server: BucketServer) -> None:
    publish([example_row()], example_meta(), folder=luts)
    forget()

    def read_only(environ: dict[str, Any]) -> tuple[str, bytes] | None:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return None
        return "403 Forbidden", PRECONDITION % b"AccessDenied"

    server.before = read_only
    with pytest.raises(LutNotWritable, match=r"the credentials do not allow it. What was measured is kept"):
        publish([example_row(example_op(1))], example_meta(), folder=luts)
    assert Lut.load(luts / NAME).version == 1


def test_a_server_that_fails_is_told(luts: Url, server: BucketServer) -> None:
    server.before = lambda environ: ("501 Not Implemented", PRECONDITION % b"NotImplemented")
    for call in both(luts):
        with pytest.raises(LutError) as caught:
            call()
        assert str(luts) in one_line(caught.value)


# --- before a coordinator serves


def options(luts: Url, tmp_path: Path) -> ServeOptions:
    return ServeOptions(luts=luts, listen="127.0.0.1:0", state_dir=tmp_path / "state", metrics=None)


def test_a_coordinator_tries_its_bucket_by_few_requests_and_leaves_one_object_for_good(
    luts: Url, server: BucketServer, tmp_path: Path
) -> None:
    for turn, most in (("first", 4), ("again", 3)):
        server.requests.clear()
        forget()  # as another process would
        with serving(options(luts, tmp_path)):
            pass
        assert len(server.requests) <= most, turn
        assert set(puts(server)) == {(PROOF, "*")}, "never without the condition"
    listed = folder_at(luts.bucket)
    assert isinstance(listed, RemoteFolder)
    assert listed._listed(luts.bucket) == [("some", "luts", PROOF)]


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [
        ("PUT", PROOF, "cannot publish into s3://BUCKET/some/luts: "),
        ("GET", "", "cannot list s3://BUCKET/some/luts: "),
        ("HEAD", PROOF, f"cannot read s3://BUCKET/some/luts/{PROOF}: "),
    ],
)
def test_a_right_that_is_missing_is_told_before_a_coordinator_serves(
    luts: Url, server: BucketServer, tmp_path: Path, method: str, path: str, told: str
) -> None:
    denied = f"/{luts / path}".replace("s3://", "") if path else f"/{luts.bucket.rest}"

    def deny(environ: dict[str, Any]) -> tuple[str, bytes] | None:
        asked = (environ["REQUEST_METHOD"], environ["PATH_INFO"].rstrip("/"))
        return ("403 Forbidden", PRECONDITION % b"AccessDenied") if asked == (method, denied) else None

    server.before = deny
    with pytest.raises(LutError) as caught, serving(options(luts, tmp_path)):
        pytest.fail("it serves")
    text = one_line(caught.value)
    assert text.startswith(told.replace("BUCKET", luts.bucket.rest)), text
    assert "the credentials do not allow it" in text
    assert text.endswith("s3:PutObject): put that right, or choose another folder: --luts DIR|URL")
    assert not (tmp_path / "state").exists(), "nothing has begun"
    server.before = None
    with serving(options(luts, tmp_path)):
        pass


def test_a_bucket_that_forgets_or_is_not_there_or_is_silent_is_told_before_a_coordinator_serves(
    luts: Url, server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(where: Url) -> str:
        with pytest.raises(LutNotWritable) as caught, serving(options(where, tmp_path)):
            pytest.fail("it serves")
        return one_line(caught.value)

    assert "there is no bucket s3://nobodys: make it, or check the endpoint (AWS_ENDPOINT_URL)" in refused(
        Url("s3", "nobodys/luts")
    )
    server.before = lambda environ: environ.pop("HTTP_IF_NONE_MATCH", None) and None
    assert refused(luts).endswith("Upgrade it, or choose another folder: --luts DIR"), "nothing is measured yet"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget()
    assert "check the network, and the endpoint (AWS_ENDPOINT_URL)" in refused(luts)


@pytest.mark.parametrize(
    ("missing", "url", "told"),
    [
        ("s3fs", "s3://b/l", "s3:// needs a further package: pip install 'lutbuilder[s3]'"),
        ("gcsfs", "gs://b/l", "gs:// needs a further package: pip install gcsfs"),
        ("fsspec", "s3://b/l", "s3://b needs fsspec: pip install 'lutbuilder[remote]'"),
        (
            "nothing",
            "bogus://b/l",
            "no package opens bogus://; write file:///DIR, s3://BUCKET/PREFIX, gs://... or az://...",
        ),
    ],
)
def test_packages_that_are_missing_are_told(
    fresh_python: Callable[[str], str], missing: str, url: str, told: str
) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from lutbuilder.lut import list_luts
from lutbuilder.urls import place
from lutbuilder_agent.errors import MissingExtra, UnknownName
try:
    list_luts(place({url!r}))
except (MissingExtra, UnknownName) as error:
    print(error)
"""
    assert fresh_python(code) == told


def test_a_folder_of_this_machine_loads_no_remote_package(fresh_python: Callable[[str], str], tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from lutbuilder.lut import Lut, list_luts, publish
from tests.lut_examples import example_meta, example_row
lut = publish([example_row()], example_meta(), folder=Path({str(tmp_path / "luts")!r}))
assert Lut.load("file://" + str(lut.path)).content_hash == lut.content_hash
print(sorted({{"s3fs", "botocore", "aiohttp", "lutbuilder.lut.remote"}} & set(sys.modules)))
"""
    assert fresh_python(code) == "[]"
