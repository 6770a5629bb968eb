"""A command that asks a coordinator: it submits once, watches through every cut, and leaves the job alone on Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.campaign.job import JobSpec
from lutbuilder.campaign.request import CalibrateRequest, CollectRequest, Progress, ValidateRequest
from lutbuilder.control.api import JobOutcome, JobView, Watched
from lutbuilder.control.order import order_of
from lutbuilder.control.remote import Remote
from lutbuilder_agent.errors import (
    CampaignFailed,
    Interrupted,
    LutNoisy,
    SpecError,
    Unreachable,
)

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
