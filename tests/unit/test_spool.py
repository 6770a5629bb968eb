"""The spool: what is in it is safe, and only an acknowledgement takes it out."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
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


def test_a_full_spool_says_so_before_anything_is_measured_and_has_room_again_when_it_is_delivered(
    tmp_path: Path,
) -> None:
    spool = opened(tmp_path, max_bytes=1000)
    kept = spool.put(report("a", samples=range(1_000_000, 1_000_200)))
    assert re.search(r"is full: .* no coordinator has acknowledged.*--spool-quota", spool.reserve(500))
    assert spool.paths() == (kept,)
    spool.remove(kept)
    assert spool.reserve(500) == ""


def test_a_report_that_no_spool_of_this_quota_takes_is_an_error_with_the_quota_to_ask_for(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=3 << 20)
    assert spool.reserve(3 << 20) == ""
    with pytest.raises(StoreError, match=r"more than the whole spool .* run with --spool-quota 16M"):
        spool.reserve(4 << 20)


def test_room_set_aside_is_on_the_disk_and_serves_the_next_report_only(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert spool.reserve(50_000) == ""
    (reserve,) = tmp_path.iterdir()
    assert reserve.stat().st_blocks * 512 >= 50_000
    assert spool.paths() == ()
    path = spool.put(report())
    assert list(tmp_path.iterdir()) == [path]
    assert spool.read(path) == report()
    assert path.stat().st_size < 1000


def test_a_disk_that_fills_up_while_a_round_is_measured_costs_nothing(tmp_path: Path) -> None:
    """A real file system of 256 KiB, filled to the last byte by somebody else once the room is set aside."""
    script = SMALL_DISK.format(folder=tmp_path)
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-ec", script],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": PATH},
    )  # fmt: skip  # what is run, and how
    assert done.stdout.split() == ["reserved", "filled", "kept", "full"], done.stderr


PATH = os.pathsep.join(str(Path(__file__).resolve().parents[2] / part) for part in ("", "agents"))
SMALL_DISK = f"""
mount -t tmpfs -o size=256k tmpfs {{folder}}
exec {sys.executable} - {{folder}} <<'END'
import errno, sys
from pathlib import Path
from lutbuilder_agent.spool import Spool
from tests.agent_fakes import report

folder = Path(sys.argv[1])
spool = Spool.open(folder / "spool", warn=print)
large = report(samples=range(10**8, 10**8 + 20_000))
print(spool.reserve(120_000) or "reserved")
try:
    with (folder / "somebody").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
except OSError as error:
    print("filled" if error.errno == errno.ENOSPC else error)
print("kept" if spool.read(spool.put(large)) == large else "lost")
print("full" if "is full" in spool.reserve(120_000) else "room")
END
"""


# --- killed at every byte


KILLED_AT_EVERY_BYTE = """
import os, signal, sys
from pathlib import Path
from lutbuilder_agent import spool as module
from lutbuilder_agent.spool import Spool
from tests.agent_fakes import report

class Dying:
    # The os module, but the process dies of kill -9 before the nth byte or system call of a put.
    def __init__(self, at):
        self.left = at
    def step(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
    def fdopen(self, handle, mode):
        return File(handle, self)
    def fsync(self, handle):
        self.step()
        os.fsync(handle)
        self.step()
    def __getattr__(self, name):
        return getattr(os, name)

class File:
    def __init__(self, handle, dying):
        self.handle, self.dying = handle, dying
    def __enter__(self):
        return self
    def __exit__(self, *_):
        os.close(self.handle)
    def fileno(self):
        return self.handle
    def truncate(self, size):
        self.dying.step()
        os.ftruncate(self.handle, size)
        self.dying.step()
    def write(self, raw):
        for n in range(len(raw)):
            self.dying.step()
            os.write(self.handle, raw[n : n + 1])
        self.dying.step()
    def flush(self):
        self.dying.step()

folder, reserved = Path(sys.argv[1]), int(sys.argv[2])
deaths, states = 0, set()
while True:
    here = folder / str(deaths)
    old, new = report("old", round=1), report("new", round=2)
    spool = Spool.open(here, warn=print)
    spool.put(old)
    child = os.fork()
    if child == 0:
        if reserved:
            spool.reserve(reserved)
        module.os = Dying(deaths)
        spool.put(new)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    warned = []
    again = Spool.open(here, warn=warned.append)
    kept = [again.read(path) for path in again.paths()]
    assert kept in ([old], [old, new]), (deaths, kept)
    assert len(warned) <= 1
    leftover = [path.name for path in here.iterdir() if path.suffix not in (".report", "")]
    assert leftover == [], leftover
    third = report("third", round=3)
    again.put(third)
    assert [again.read(path) for path in again.paths()] == [*kept, third]
    states.add((len(kept), len(warned)))
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    deaths += 1
assert kept == [old, new]
print(deaths, sorted(states))
"""


@pytest.mark.parametrize("reserved", [0, 2000])
def test_a_kill_at_any_byte_of_a_report_leaves_all_of_it_or_nothing(tmp_path: Path, reserved: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_BYTE, str(tmp_path), str(reserved)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": PATH},
    )  # fmt: skip  # what is run, and how
    assert done.returncode == 0, done.stderr
    deaths, _, states = done.stdout.partition(" ")
    assert int(deaths) > 150, "as many as the file has bytes"
    # Before the file was made; half of it; all of it, not yet named. Nothing else.
    assert states.strip() in ("[(1, 0), (1, 1), (2, 0)]", "[(1, 1), (2, 0)]")


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
