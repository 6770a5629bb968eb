"""Files: a LUT is opened whole or refused, published whole or not at all, and found by name."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lutbuilder.lut import SCHEMA_VERSION, Lut, Row, list_luts, publish, write_samples
from lutbuilder.lut.schema import FOOTER_KEY, canonical_json, content_sha256, parse_json, rows_to_table
from lutbuilder.lut.store import FileCalls, decode_lut, encode_lut, resolve
from lutbuilder_agent.errors import LutConflict, LutCorrupt, LutError, LutNotFound, LutNotWritable, LutTooNew
from lutbuilder_agent.records import Fingerprint, Timing
from tests.lut_examples import example_meta, example_op, example_row, failed_row

NAME = "example-cpu/onnxruntime-fp32-bs1"


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def no_links(*paths: Path) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


# --- publishing


def test_the_first_version_is_number_one(tmp_path: Path):
    lut = publish([example_row()], example_meta(), folder=tmp_path)
    assert files_below(tmp_path) == [f"{NAME}/v0001.parquet"]
    assert (lut.version, lut.name, lut.path) == (1, NAME, tmp_path / NAME / "v0001.parquet")
    assert (lut.meta.parent_version, lut.meta.parent_sha256) == (None, None)
    assert lut[example_op()] == example_row()


def test_a_further_version_names_its_parent_and_holds_its_rows(tmp_path: Path):
    first = publish([example_row(example_op(0))], example_meta(), folder=tmp_path)
    before = first.path.read_bytes()
    second = publish([example_row(example_op(1))], example_meta(sessions=("s2",)), folder=tmp_path, base=first)
    assert (second.version, second.meta.parent_version) == (2, 1)
    assert second.meta.parent_sha256 == first.content_hash
    assert {row.op for row in second} == {example_op(0), example_op(1)}
    assert second.meta.sessions == ("s1", "s2")
    assert first.path.read_bytes() == before, "a version never changes"


def test_quality_is_counted_over_all_rows_of_the_version(tmp_path: Path):
    publish([example_row(example_op(0))], example_meta(), folder=tmp_path)
    lut = publish([failed_row(example_op(1))], example_meta(), folder=tmp_path)
    assert (lut.meta.quality.n_rows, lut.meta.quality.n_failed, lut.meta.quality.wall_s) == (2, 1, 170.0)


def test_a_publisher_without_a_base_still_loses_nothing(tmp_path: Path):
    publish([example_row(example_op(0))], example_meta(), folder=tmp_path)
    assert len(publish([example_row(example_op(1))], example_meta(), folder=tmp_path)) == 2


def test_a_base_from_elsewhere_is_the_parent_of_the_first_version_here(tmp_path: Path):
    base = publish([example_row(example_op(0))], example_meta(), folder=tmp_path / "theirs")
    lut = publish([example_row(example_op(1))], example_meta(), folder=tmp_path / "ours", base=base)
    assert (lut.version, len(lut)) == (2, 2)


def test_a_validation_is_stored_as_a_further_version_with_the_same_rows(tmp_path: Path):
    first = publish([example_row()], example_meta(), folder=tmp_path)
    second = publish([], replace(first.meta, validation={"mape": 0.009}), folder=tmp_path, base=first)
    assert second.rows() == first.rows()
    assert Lut.load(second.path).meta.validation == {"mape": 0.009}


def test_a_published_file_is_a_useful_table_for_pandas_alone(tmp_path: Path):
    lut = publish([example_row(), failed_row(example_op(1))], example_meta(), folder=tmp_path)
    frame = pd.read_parquet(lut.path)
    assert frame.set_index("op_id").loc[example_op().op_id, "latency_ms"] == 1.0
    assert frame["latency_ms"].isna().sum() == 1


def test_a_published_file_may_be_read_by_everyone_the_umask_allows(tmp_path: Path):
    before = os.umask(0o022)
    try:
        lut = publish([example_row()], example_meta(), folder=tmp_path)
    finally:
        os.umask(before)
    assert lut.path.stat().st_mode & 0o777 == 0o644


def test_another_fingerprint_is_refused_and_publishes_nothing(tmp_path: Path):
    publish([example_row()], example_meta(), folder=tmp_path)
    other = Fingerprint(device="example-cpu", facts=(("kernel", "6.8"), ("model", "Example 9000")))
    with pytest.raises(LutConflict, match=r"fingerprint fact 'kernel' was '6.1' and is now '6.8'"):
        publish([example_row()], example_meta(fingerprint=other), folder=tmp_path)
    assert files_below(tmp_path) == [f"{NAME}/v0001.parquet"]
    lut = publish([example_row(example_op(1))], example_meta(fingerprint=other), folder=tmp_path, new_conditions=True)
    assert (lut.version, [row.op for row in lut]) == (2, [example_op(1)])


@pytest.mark.parametrize("link", [os.link, no_links], ids=["hard_links", "no_hard_links"])
def test_who_loses_a_number_merges_onto_the_winner(tmp_path: Path, link: Callable[[Path, Path], None]):
    publish([example_row(example_op(0))], example_meta(), folder=tmp_path)
    waiting = [example_row(example_op(1))]

    def link_after_the_winner(scratch: Path, path: Path) -> None:
        if waiting:  # another process is faster, between our merge and our link
            publish([waiting.pop()], example_meta(sessions=("winner",)), folder=tmp_path)
        link(scratch, path)

    files = FileCalls(link=link_after_the_winner)
    lut = publish([example_row(example_op(2))], example_meta(), folder=tmp_path, files=files)
    assert (lut.version, lut.meta.parent_version) == (3, 2)
    assert lut.meta.parent_sha256 == Lut.load(tmp_path / f"{NAME}@2").content_hash
    assert {row.op for row in lut} == {example_op(n) for n in range(3)}
    assert lut.meta.sessions == ("s1", "winner")
    assert files_below(tmp_path) == [f"{NAME}/v000{n}.parquet" for n in (1, 2, 3)]


PUBLISHER = """
import errno, sys
from pathlib import Path
from lutbuilder.lut import publish
from lutbuilder.lut.store import FileCalls
from tests.lut_examples import example_meta, example_op, example_row

def no_links(*paths):
    raise OSError(errno.EPERM, "Operation not permitted")

me = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for name, files in (("hard_links", FileCalls()), ("no_hard_links", FileCalls(link=no_links))):
    for turn in range(3):
        rows = [example_row(example_op(10 * me + turn)), example_row(example_op(0), n_visits=me)]
        publish(rows, example_meta(sessions=(f"s{me}-{turn}",)), folder=Path(sys.argv[1]) / name, files=files)
"""


def test_four_concurrent_publishers_lose_nothing(tmp_path: Path, root: Path):
    path = os.pathsep.join([str(root), str(root / "agents")])
    publishers = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), str(me)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(1, 5)
    ]
    for publisher in publishers:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "ready\n"
    for publisher in publishers:
        assert publisher.stdin is not None
        publisher.stdin.write("go\n")
        publisher.stdin.flush()
    for publisher in publishers:
        _, told = publisher.communicate(timeout=120)
        assert publisher.returncode == 0, told
    for name in ("hard_links", "no_hard_links"):
        home = tmp_path / name / NAME
        assert files_below(home) == [f"v{n:04d}.parquet" for n in range(1, 13)]
        newest = Lut.load(home)
        numbers = {0, *(10 * me + turn for me in range(1, 5) for turn in range(3))}
        assert {row.op for row in newest} == {example_op(number) for number in numbers}
        assert newest[example_op(0)].n_visits == 4, "the best of four rows"
        assert len(newest.meta.sessions) == 12
        chain = [Lut.load(f"{home}@{version}").meta for version in range(1, 13)]
        assert [meta.parent_sha256 for meta in chain] == [None, *(meta.content_sha256 for meta in chain[:-1])]


# --- what a publisher that died leaves behind


def test_a_scratch_file_of_a_killed_publisher_is_ignored(tmp_path: Path):
    publish([example_row()], example_meta(), folder=tmp_path)
    (tmp_path / NAME / ".v0002-killed.tmp").write_bytes(b"half a file")
    assert Lut.load(tmp_path / NAME).version == 1
    assert publish([example_row(example_op(1))], example_meta(), folder=tmp_path).version == 2


def test_readers_take_the_version_before_a_claimed_number(tmp_path: Path):
    publish([example_row()], example_meta(), folder=tmp_path)
    (tmp_path / NAME / "v0002.parquet").touch()
    assert Lut.load(tmp_path / NAME).version == 1
    assert list_luts(tmp_path)[0].versions == (1,)
    with pytest.raises(LutCorrupt, match=r"v0002\.parquet is empty: another lutbuilder is publishing"):
        Lut.load(tmp_path / NAME / "v0002.parquet")


def test_a_publisher_waits_for_a_claim_to_be_filled(tmp_path: Path):
    first = publish([example_row(example_op(0))], example_meta(), folder=tmp_path)
    other = publish([example_row(example_op(1))], example_meta(), folder=tmp_path / "other", base=first)
    claim = tmp_path / NAME / "v0002.parquet"
    claim.touch()
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            other.path.replace(claim)

    lut = publish([example_row(example_op(2))], example_meta(), folder=tmp_path, files=FileCalls(sleep=sleep))
    assert (lut.version, len(lut), len(naps)) == (3, 3, 3)


def test_a_claim_that_is_never_filled_is_told_with_what_to_type(tmp_path: Path):
    publish([example_row()], example_meta(), folder=tmp_path)
    claim = tmp_path / NAME / "v0002.parquet"
    claim.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LutNotWritable, match=rf"remove it and repeat the command: rm {claim}"):
        publish([example_row()], example_meta(), folder=tmp_path, files=FileCalls(sleep=lambda seconds: None))


# --- folders that cannot be written


@dataclass(frozen=True)
class Fails:
    """A system call that fails with one errno."""

    number: int

    def __call__(self, *arguments: object) -> int:
        raise OSError(self.number, os.strerror(self.number))


def short_write_then_full(limit: int) -> Callable[[int, bytes | memoryview], int]:
    left = [limit]

    def write(handle: int, chunk: bytes | memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = os.write(handle, chunk[: left[0]])
        left[0] -= done
        return done

    return write


BROKEN = {
    "full": (FileCalls(write=Fails(errno.ENOSPC)), "No space left on device; free some space"),
    "quota": (FileCalls(write=Fails(errno.EDQUOT)), "free some space"),
    "full halfway": (FileCalls(write=short_write_then_full(1000)), "No space left on device; free some space"),
    "full at fsync": (FileCalls(fsync=Fails(errno.EIO)), "Input/output error"),
    "read-only": (FileCalls(open=Fails(errno.EROFS)), "Read-only file system; make it writable"),
    "forbidden": (FileCalls(open=Fails(errno.EACCES)), "Permission denied; make it writable"),
    "full at link": (FileCalls(link=Fails(errno.ENOSPC)), "free some space"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_cannot_be_written_is_told_and_left_as_it_was(tmp_path: Path, name: str):
    publish([example_row()], example_meta(), folder=tmp_path)
    before = {file: (tmp_path / file).read_bytes() for file in files_below(tmp_path)}
    files, told = BROKEN[name]
    with pytest.raises(LutNotWritable) as caught:
        publish([example_row(example_op(1))], example_meta(), folder=tmp_path, files=files)
    assert str(tmp_path / NAME) in str(caught.value)
    assert told in str(caught.value)
    assert "--luts DIR" in str(caught.value)
    assert {file: (tmp_path / file).read_bytes() for file in files_below(tmp_path)} == before


def test_a_rename_that_fails_gives_the_claimed_number_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "replace", Fails(errno.EIO))
    with pytest.raises(LutNotWritable, match="Input/output error"):
        publish([example_row()], example_meta(), folder=tmp_path, files=FileCalls(link=no_links))
    assert files_below(tmp_path) == []


def test_a_luts_folder_that_is_a_file_is_told(tmp_path: Path):
    (tmp_path / "luts").write_text("not a folder")
    with pytest.raises(LutNotWritable, match="cannot publish into"):
        publish([example_row()], example_meta(), folder=tmp_path / "luts")


def test_a_filesystem_that_cannot_sync_folders_is_no_obstacle(tmp_path: Path):
    def fsync(handle: int) -> None:
        if os.path.isdir(f"/dev/fd/{handle}"):  # noqa: PTH112  # pathlib has no way to ask about an open handle
            raise OSError(errno.EINVAL, "Invalid argument")
        os.fsync(handle)

    assert publish([example_row()], example_meta(), folder=tmp_path, files=FileCalls(fsync=fsync)).version == 1


REFUSED_FOR_REAL = """
import resource, sys
from pathlib import Path
from lutbuilder.lut import publish
from lutbuilder_agent.errors import LutNotWritable
from tests.lut_examples import example_meta, example_op, example_row
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    publish([example_row(example_op(n)) for n in range(400)], example_meta(), folder=Path(sys.argv[1]))
except LutNotWritable as error:
    print(error)
print([str(path) for path in Path(sys.argv[1]).rglob("*") if path.is_file()])
"""
MOUNTS = {
    "full": ("mount -t tmpfs -o size=16k tmpfs {}", "No space left on device"),
    "read-only": ("mount -t tmpfs -o ro tmpfs {}", "Read-only file system"),
    "limit": ("true", "File too large"),
}


@pytest.mark.parametrize("name", MOUNTS)
def test_a_disk_that_is_really_full_or_read_only_is_told_and_left_empty(tmp_path: Path, root: Path, name: str):
    """The kernel's own errors: a file size limit everywhere, real filesystems where a user may mount them."""
    mount, told = MOUNTS[name]
    folder = tmp_path / "luts"
    folder.mkdir()
    own_mounts = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mount.format(folder)} && exec "$@"', "sh"]
    probe = [*own_mounts, "true"]
    may_mount = shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    if name != "limit" and not may_mount:
        name, told = "limit", MOUNTS["limit"][1]
    done = subprocess.run(
        [*([] if name == "limit" else own_mounts), sys.executable, "-c", REFUSED_FOR_REAL, str(folder), name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert message.startswith(f"cannot publish into {folder / NAME}: {told}")
    assert left == "[]"


# --- refusing what is not a whole LUT


@pytest.fixture(scope="module")
def raw() -> bytes:
    rows = [example_row(example_op(n), latency_ms=1.0 + n / 10_000) for n in range(30)]
    return encode_lut([*rows, failed_row(example_op(99), reason="unsupported: größer")], example_meta(version=1))


def refooted(raw: bytes, **changes: object) -> bytes:
    """The same file with other footer fields and, unless given, a hash that fits them."""
    table = pq.read_table(io.BytesIO(raw))
    footer = {**parse_json(table.schema.metadata[FOOTER_KEY]), **changes}
    if "content_sha256" not in changes:
        footer["content_sha256"] = content_sha256(table, footer)
    return parquet(table.replace_schema_metadata({FOOTER_KEY: canonical_json(footer)}))


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_a_newer_schema_prints_the_upgrade_line(tmp_path: Path, raw: bytes):
    (tmp_path / "new.parquet").write_bytes(refooted(raw, schema_version=SCHEMA_VERSION + 1))
    told = rf"new\.parquet is of schema {SCHEMA_VERSION + 1}; .* pip install --upgrade lutbuilder"
    with pytest.raises(LutTooNew, match=told):
        Lut.load(tmp_path / "new.parquet")


def test_a_field_of_a_newer_lutbuilder_prints_the_upgrade_line(tmp_path: Path, raw: bytes):
    (tmp_path / "new.parquet").write_bytes(refooted(raw, tool_version="9.0", stars=5))
    with pytest.raises(LutTooNew, match=r"new\.parquet was written by lutbuilder 9\.0: .* stars; upgrade: pip install"):
        Lut.load(tmp_path / "new.parquet")


def foreign() -> bytes:
    return parquet(pa.table({"op": ["conv"], "ms": [1.0]}))


def other_columns(raw: bytes) -> bytes:
    return parquet(pq.read_table(io.BytesIO(raw)).drop_columns(["p90_ms"]))


def other_value(raw: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(raw))
    number = table.schema.get_field_index("latency_ms")
    halved = pa.array([None if ms is None else ms / 2 for ms in table.column(number).to_pylist()])
    return parquet(table.set_column(number, table.schema.field(number), halved))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda raw: b"", "is empty"),
        (lambda raw: b"hello", "not a parquet file, or was cut short"),
        (lambda raw: raw[: len(raw) // 2], "not a parquet file, or was cut short"),
        (lambda raw: raw[:-1], "not a parquet file, or was cut short"),
        (lambda raw: foreign(), "is not a lutbuilder table"),
        (other_columns, f"does not have the columns of schema {SCHEMA_VERSION}"),
        (other_value, "was changed after it was published"),
        (lambda raw: refooted(raw, tool_version="2", content_sha256="0" * 64), "was changed after it was published"),
        (lambda raw: refooted(raw, schema_version=0), "damaged footer"),
        (lambda raw: refooted(raw, schema_version="1"), "damaged footer"),
        (lambda raw: refooted(raw, target=None), "malformed footer"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_a_cure(tmp_path, raw, damage: Callable[[bytes], bytes], told: str):
    path = tmp_path / "damaged.parquet"
    path.write_bytes(damage(raw))
    with pytest.raises(LutCorrupt, match=told) as caught:
        Lut.load(path)
    assert str(caught.value).startswith(str(path))
    assert "Restore the file" in str(caught.value)


@pytest.mark.parametrize("footer", [b"[]", b"{", b"\xff", b"[" * 100_000, b'{"schema_version": 1e999}'])
def test_a_footer_that_is_no_json_object_is_refused(raw: bytes, footer: bytes):
    table = pq.read_table(io.BytesIO(raw)).replace_schema_metadata({FOOTER_KEY: footer})
    with pytest.raises(LutCorrupt, match="damaged footer"):
        decode_lut(parquet(table))


def test_rows_no_row_may_hold_are_refused_when_read(tmp_path: Path, raw: bytes):
    """A wrong op_id under a right hash: only somebody who recomputed the hash can write it."""
    table = rows_to_table([example_row()])
    table = table.set_column(0, table.schema.field(0), pa.array(["0" * 16]))
    footer = parse_json(pq.read_table(io.BytesIO(raw)).schema.metadata[FOOTER_KEY])
    footer["content_sha256"] = content_sha256(table, footer)
    path = tmp_path / "forged.parquet"
    path.write_bytes(parquet(table.replace_schema_metadata({FOOTER_KEY: canonical_json(footer)})))
    with pytest.raises(LutCorrupt, match=r"forged\.parquet: op_id 0000"):
        Lut.load(path).rows()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_never_give_another_table(raw: bytes, seed: int):
    """Flipped, missing and repeated bytes: the same table, LutCorrupt or LutTooNew. Never anything else."""
    rng = random.Random(seed)
    whole, meta = decode_lut(raw)
    refused = 0
    for _ in range(250):
        damaged = bytearray(raw)
        start = rng.randrange(len(raw))
        way = rng.choice(["flip", "flip", "flip many", "cut", "drop", "repeat"])
        if way == "flip":
            damaged[start] ^= 1 << rng.randrange(8)
        elif way == "flip many":
            for _ in range(8):
                damaged[rng.randrange(len(raw))] = rng.randrange(256)
        elif way == "cut":
            del damaged[start:]
        elif way == "drop":
            del damaged[start : start + rng.randrange(1, 40)]
        else:
            damaged[start:start] = damaged[start : start + rng.randrange(1, 40)]
        try:
            table, read = decode_lut(bytes(damaged))
        except (LutCorrupt, LutTooNew):
            refused += 1
        else:
            assert table.equals(whole), (seed, way, start)
            assert read == meta, (seed, way, start)
    assert refused > 150


# --- finding


@pytest.fixture
def luts(tmp_path: Path) -> Path:
    folder = tmp_path / "luts"
    for number in range(2):
        publish([example_row(example_op(number))], example_meta(), folder=folder)
    publish([example_row(cache=None)], example_meta(device="other-cpu", cache="flushed"), folder=folder)
    return folder


def test_luts_are_listed_with_their_versions(luts: Path):
    listed = list_luts(luts)
    assert [(entry.name, entry.versions) for entry in listed] == [
        (NAME, (1, 2)),
        ("other-cpu/onnxruntime-fp32-bs1-flushed", (1,)),
    ]
    assert listed[0].path() == luts / NAME / "v0002.parquet"
    assert listed[0].path(1) == luts / NAME / "v0001.parquet"
    assert list_luts(luts / "nowhere") == ()


@pytest.mark.parametrize("form", ["{luts}/{name}", "{name}", "{luts}/{name}@2", "{name}@2", "{name}@v2", "{name}@0002"])
def test_a_lut_is_found_by_folder_or_name_with_or_without_a_version(luts: Path, form: str):
    assert Lut.load(form.format(luts=luts, name=NAME), folder=luts).path == luts / NAME / "v0002.parquet"


def test_a_lut_is_found_below_luts_where_one_stands(luts: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(luts.parent)
    assert Lut.load(f"luts/{NAME}@1").version == 1
    assert Lut.load(NAME).version == 2
    assert Lut.load(Path("luts") / NAME / "v0001.parquet").version == 1


def test_any_parquet_file_may_be_opened_under_any_name(luts: Path, tmp_path: Path):
    copy = tmp_path / "mine@7.parquet"
    shutil.copy(luts / NAME / "v0002.parquet", copy)
    lut = Lut.load(copy)
    assert (lut.version, lut.spec) == (2, str(copy))
    assert Lut.load(lut.spec).content_hash == lut.content_hash


def test_a_version_that_is_not_there_is_told_with_those_that_are(luts: Path):
    with pytest.raises(LutNotFound, match=rf"has no version 7; it has 1, 2. Open the newest with '{luts / NAME}'"):
        Lut.load(f"{luts / NAME}@7")


def test_a_lut_that_is_not_there_is_told_with_those_that_are_and_how_to_collect_it(luts: Path):
    with pytest.raises(LutNotFound) as caught:
        Lut.load("pixel1/litert-fp32-bs4-t2", folder=luts)
    assert f"{luts / NAME}@2, {luts}/other-cpu/onnxruntime-fp32-bs1-flushed@1" in str(caught.value)
    assert str(caught.value).endswith(
        "lutbuilder collect --device pixel1 --space proxyless --runtime litert --bs 4 --threads 2"
    )


def test_a_folder_of_luts_is_not_a_lut(luts: Path):
    with pytest.raises(LutNotFound, match=rf"below {luts}/other-cpu there is: .*-flushed@1\. Collect it: lutbuilder"):
        Lut.load(luts / "other-cpu")


@pytest.mark.parametrize("spec", ["", "x" * 5000, "nothing@3", "a/../b"])
def test_nonsense_is_not_found(tmp_path: Path, spec: str):
    with pytest.raises(LutNotFound, match="there is: none"):
        resolve(spec, folder=tmp_path)


def test_a_path_that_cannot_be_read_is_told(tmp_path: Path):
    from lutbuilder.lut.store import read_lut

    with pytest.raises(LutError, match=r"cannot read .*: Is a directory"):
        read_lut(tmp_path)
    with pytest.raises(LutNotFound, match="luts list"):
        read_lut(tmp_path / "gone.parquet")


def test_a_copied_version_is_told_instead_of_passing_for_a_newer_one(luts: Path):
    shutil.copy(luts / NAME / "v0001.parquet", luts / NAME / "v0003.parquet")
    with pytest.raises(LutCorrupt, match=r"v0003\.parquet holds version 1 .*: it was copied or renamed; remove it"):
        Lut.load(luts / NAME)
    with pytest.raises(LutCorrupt, match="copied or renamed"):
        publish([example_row()], example_meta(), folder=luts)


# --- samples


@dataclass(frozen=True)
class Visit:
    campaign_id: str
    session_id: str
    timing: Timing


def visit(number: int) -> Visit:
    timing = Timing(
        op_id="a" * 16,
        round=number,
        order=1,
        instance=number % 3,
        start_ns=10 * number,
        warmup_ns=(900,) * (number % 2),
        samples_ns=(100 + number, 101, 99),
        preempted=(1,) if number % 2 else (),
        throttled=(None, (), (0, 2))[number % 3],
    )
    return Visit("c1", f"s{number % 2}", timing)


@pytest.mark.parametrize("count", [0, 1, 4001])
def test_samples_lie_beside_the_version_and_hold_every_visit(luts: Path, count: int):
    lut = Lut.load(NAME, folder=luts)
    path = write_samples((visit(number) for number in range(count)), lut=lut)
    assert path == luts / NAME / "samples" / "v0002.parquet"
    read = [
        Visit(
            line.pop("campaign_id"),
            line.pop("session_id"),
            Timing(**{name: tuple(value) if isinstance(value, list) else value for name, value in line.items()}),
        )
        for line in pq.read_table(path).to_pylist()
    ]
    assert read == [visit(number) for number in range(count)]
    assert parse_json(pq.read_schema(path).metadata[b"lutbuilder.samples"])["content_sha256"] == lut.content_hash
    assert [entry.versions for entry in list_luts(luts)] == [(1, 2), (1,)], "samples are no versions"


def test_samples_of_a_version_are_never_overwritten(luts: Path):
    lut = Lut.load(NAME, folder=luts)
    before = write_samples([visit(0)], lut=lut).read_bytes()
    assert write_samples([visit(1)], lut=lut).read_bytes() == before


def test_samples_that_cannot_be_written_are_told(luts: Path):
    lut = Lut.load(NAME, folder=luts)
    with pytest.raises(LutNotWritable, match="samples"):
        write_samples([visit(0)], lut=lut, files=FileCalls(write=Fails(errno.ENOSPC)))
    assert not (luts / NAME / "samples" / "v0002.parquet").exists()


def test_an_empty_table_is_a_table():
    table, _ = decode_lut(encode_lut([], example_meta()))
    assert table.num_rows == 0
    rows: list[Row] = list(Lut(table=table, meta=example_meta(), path=Path("x")))
    assert rows == []
