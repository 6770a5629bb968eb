"""A command that asks a coordinator: it submits once, watches through every cut, and leaves the job alone on Ctrl-C."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.campaign.job import JobSpec
from lutbuilder.campaign.request import CalibrateRequest, CollectRequest, Progress, ValidateRequest
from lutbuilder.control.api import JobOutcome, JobView, LutChunk, LutPart, Watched
from lutbuilder.control.order import order_of
from lutbuilder.control.remote import Remote
from lutbuilder.lut import Lut, publish
from lutbuilder_agent.errors import (
    ArtifactCorrupt,
    CampaignFailed,
    Interrupted,
    LutConflict,
    LutNoisy,
    LutNotFound,
    SpecError,
    Unreachable,
)
from tests.lut_examples import example_meta, example_row

QUEUED = JobView(job_id="abcd", kind="collect", title="proxyless on cpu, batch 1", phase="queued", created_s=1.0)
RUNNING = replace(QUEUED, phase="running")
TIMING = replace(RUNNING, progress=Progress(phase="timing", round=3))
DONE = replace(QUEUED, phase="done", lut="phone/litert-fp32-bs1@1", outcome=JobOutcome(published=True))
Step = JobView | BaseException


@dataclass
class FakeApi:
    """A coordinator that answers what it is told to: a list of steps, an exception raised at its turn."""

    steps: list[Step]
    submits: list[Step] = field(default_factory=lambda: [QUEUED])
    submitted: list[tuple[JobSpec, str]] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)

    def submit(self, spec: JobSpec, *, job_id: str) -> JobView:
        self.submitted.append((spec, job_id))
        return self._next(self.submits)

    def watch(self, job_id: str, *, seen: str = "", wait_s: float = 0.0) -> Watched:
        self.watched.append(seen)
        return Watched(job=self._next(self.steps), seen=f"seen-{len(self.watched)}")

    @staticmethod
    def _next(steps: list[Step]) -> JobView:
        step = steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step


class Clock:
    """Time passes only in sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def remote(api: FakeApi, tmp_path: Path = Path("luts"), **changes: Any) -> Remote:
    clock = Clock()
    made = Remote(
        api=api,  # type: ignore[arg-type]  # the calls of a job are all that is made of it here
        address="lab:7070",
        luts=tmp_path,
        owner="ann@desk",
        sleep=clock.sleep,
        clock=clock,
        new_id=lambda: "made-by-me",
    )
    return replace(made, **changes)


def follow(*steps: Step) -> tuple[JobView, list[Progress]]:
    told: list[Progress] = []
    return remote(FakeApi(list(steps))).follow(QUEUED, told.append), told


def test_a_job_is_shown_until_it_is_done() -> None:
    job, told = follow(QUEUED, RUNNING, TIMING, TIMING, DONE)
    assert job == DONE
    assert [progress.phase for progress in told] == ["waiting", "timing", "done"]
    assert told[0].message == "job abcd at lab:7070: proxyless on cpu, batch 1"


def test_what_was_seen_is_handed_back() -> None:
    api = FakeApi([QUEUED, RUNNING, DONE])
    remote(api).follow(QUEUED, lambda progress: None)
    assert api.watched == ["", "seen-1", "seen-2"]


def test_a_coordinator_that_is_away_is_asked_again_and_the_job_goes_on() -> None:
    away = Unreachable("nobody answers")
    job, told = follow(RUNNING, away, away, away, TIMING, DONE)
    assert job == DONE
    assert [progress.message for progress in told if progress.message].count(
        "lab:7070 does not answer; trying again"
    ) == 1


def test_a_coordinator_that_stays_away_is_given_up_with_the_words_to_come_back() -> None:
    with pytest.raises(
        Unreachable, match=r"Job abcd goes on when it is back.*lutbuilder jobs attach abcd --coordinator lab:7070"
    ):
        follow(*[Unreachable("nobody answers")] * 1000)


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back_and_how_to_give_it_up() -> None:
    with pytest.raises(Interrupted) as told:
        follow(RUNNING, KeyboardInterrupt())
    assert str(told.value) == (
        "detached; job abcd goes on at lab:7070. Attach again: lutbuilder jobs attach abcd --coordinator lab:7070; "
        "give it up: lutbuilder jobs cancel abcd --coordinator lab:7070"
    )


def test_what_a_job_failed_of_is_raised_here() -> None:
    with pytest.raises(LutNoisy, match="too noisy"):
        follow(replace(QUEUED, phase="failed", message="too noisy", error_code="lut_noisy"))
    with pytest.raises(CampaignFailed, match=r"was cancelled \(job wanted no more\)"):
        follow(replace(QUEUED, phase="cancelled", message="job wanted no more"))


def test_a_submission_that_was_cut_off_is_repeated_under_the_same_id() -> None:
    api = FakeApi([], submits=[Unreachable("cut"), Unreachable("cut"), QUEUED])
    assert remote(api).submit(CollectRequest()) == QUEUED
    assert [job_id for _, job_id in api.submitted] == ["made-by-me"] * 3


def test_nobody_there_is_told_soon() -> None:
    with pytest.raises(Unreachable):
        remote(FakeApi([], submits=[Unreachable("nobody")] * 10)).submit(CollectRequest())


def test_a_submission_says_who_asks_and_how_urgent_it_is() -> None:
    api = FakeApi([])
    remote(api, priority=9).submit(CollectRequest(seed=4))
    (spec, _), *_ = api.submitted
    assert (spec.owner, spec.priority, spec.kind) == ("ann@desk", 9, "collect")
    order = order_of(spec)
    assert (order.request, order.coordinator) == (CollectRequest(seed=4), "lab:7070")


def test_files_travel_with_the_request(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("title = 'x'", encoding="utf-8")
    (tmp_path / "nets.json").write_text("[1]", encoding="utf-8")
    api = FakeApi([])
    remote(api).submit(
        ValidateRequest(
            lut="a/b",
            space=str(tmp_path / "mine.toml"),
            networks=tmp_path / "nets.json",
        )
    )
    order = order_of(api.submitted[0][0])
    assert dict(order.files) == {"space": "title = 'x'", "networks": "[1]"}
    assert isinstance(order.request, ValidateRequest)
    assert order.request.networks == Path("nets.json")


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda far: far.submit(CollectRequest(space="gone.toml")), "cannot read gone.toml"),
        (lambda far: far.calibrate(CalibrateRequest(), lambda progress: None), "name the table to calibrate"),
        (
            lambda far: far.validate(ValidateRequest(lut="a/b", save_networks=Path(__file__)), lambda progress: None),
            "is there already",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(ask: Callable[[Remote], Any], says: str) -> None:
    api = FakeApi([])
    with pytest.raises(SpecError, match=says):
        ask(remote(api))
    assert api.submitted == []


# --- tables


class Shelf:
    """A coordinator's tables, sent in pieces of a few bytes; `cuts` of them are lost on the way."""

    def __init__(self, lut: Lut, *, piece: int = 1000, cuts: int = 0) -> None:
        self.files: dict[LutPart, bytes] = {"table": lut.path.read_bytes()}
        self.name, self.piece, self.cuts = lut.name, piece, cuts
        self.asked: list[tuple[LutPart, int]] = []

    def fetch_lut(self, name: str, version: int, part: LutPart, offset: int) -> LutChunk:
        self.asked.append((part, offset))
        if part not in self.files or name != self.name:
            raise LutNotFound(f"no {part} of {name}@{version} here")
        if offset and self.cuts:
            self.cuts -= 1
            raise Unreachable("cut")
        raw = self.files[part]
        chunk = raw[offset : offset + self.piece]
        digest = hashlib.sha256(raw).hexdigest()
        return LutChunk(version=1, offset=offset, chunk=chunk, size_bytes=len(raw), sha256=digest)


@pytest.fixture
def lut(tmp_path: Path) -> Lut:
    return publish([example_row()], example_meta(device="phone", runtime="litert"), folder=tmp_path / "theirs")


def fetching(shelf: Shelf, tmp_path: Path) -> Remote:
    return remote(shelf, tmp_path / "ours")  # type: ignore[arg-type]  # only tables are asked for


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "ours").rglob("*") if path.is_file())


def test_a_table_arrives_whole_through_every_cut(lut: Lut, tmp_path: Path) -> None:
    shelf = Shelf(lut, cuts=3)
    shelf.files["samples"] = b"0123456789" * 500
    got = fetching(shelf, tmp_path).fetched(f"{lut.name}@1")
    assert got.path.read_bytes() == lut.path.read_bytes()
    assert (got.path.parent / "samples" / got.path.name).read_bytes() == shelf.files["samples"]
    assert files(tmp_path) == ["v0001.parquet", "v0001.parquet"]


def test_a_download_that_was_killed_goes_on_where_it_was(lut: Lut, tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        fetching(Shelf(lut, piece=700, cuts=10_000), tmp_path).fetched(f"{lut.name}@1")
    (partial,) = files(tmp_path)
    assert partial.endswith(".part")
    again = Shelf(lut, piece=700)
    fetching(again, tmp_path).fetched(f"{lut.name}@1")
    assert ("table", 700) in again.asked
    assert [offset for part, offset in again.asked if part == "table"].count(0) == 1, "asked once for what it is"
    assert files(tmp_path) == ["v0001.parquet"]


def test_a_table_that_is_there_is_not_fetched_again(lut: Lut, tmp_path: Path) -> None:
    shelf = Shelf(lut)
    for _ in range(2):
        fetching(shelf, tmp_path).fetched(f"{lut.name}@1")
    assert [part for part, offset in shelf.asked if offset] == ["table"] * (len(shelf.files["table"]) // 1000)


def test_another_table_under_that_name_is_never_overwritten(lut: Lut, tmp_path: Path) -> None:
    mine = publish(
        [example_row(latency_ms=3.0, latency_lo_ms=2.9, latency_hi_ms=3.1)],
        example_meta(device="phone", runtime="litert"),
        folder=tmp_path / "ours",
    )
    before = mine.path.read_bytes()
    far = fetching(Shelf(lut), tmp_path)
    with pytest.raises(LutConflict, match=r"a folder of their own, --luts DIR"):
        far.fetched(f"{lut.name}@1")
    with pytest.raises(LutConflict, match="numbered apart"):
        far._name_there(lut.name)
    assert mine.path.read_bytes() == before


def test_bytes_that_are_not_what_was_promised_are_thrown_away(lut: Lut, tmp_path: Path) -> None:
    shelf = Shelf(lut)
    honest = shelf.fetch_lut

    def tampered(name: str, version: int, part: LutPart, offset: int) -> LutChunk:
        piece = honest(name, version, part, offset)
        return replace(piece, chunk=bytes(len(piece.chunk))) if offset else piece

    shelf.fetch_lut = tampered  # type: ignore[method-assign]  # somebody in between
    with pytest.raises(ArtifactCorrupt, match="its sha256 differs"):
        fetching(shelf, tmp_path).fetched(f"{lut.name}@1")
    assert files(tmp_path) == []


def test_what_a_person_calls_a_table_becomes_the_coordinators_name_for_it(lut: Lut, tmp_path: Path) -> None:
    far = fetching(Shelf(lut), tmp_path)
    assert far._name_there(f"{tmp_path / 'ours'}/{lut.name}") == lut.name, "not here yet: it may be there"
    path = far.fetched(f"{lut.name}@1").path
    for text in (str(path), str(path.parent), lut.name, f"{lut.name}@1"):
        assert far._name_there(text) == f"{lut.name}@1"
