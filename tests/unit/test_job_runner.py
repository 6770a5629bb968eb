"""Jobs are claimed once, run in threads, stopped where nothing is half done, and continued by whoever comes next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.campaign.controllers import Controllers
from lutbuilder.campaign.host import Opening
from lutbuilder.campaign.job import JobPhase, JobSpec, JobState
from lutbuilder.campaign.request import CollectRequest, OnProgress, Progress
from lutbuilder.campaign.shared import Shared
from lutbuilder.control.api import MAX_NOTES, JobOutcome
from lutbuilder.control.control import Changes, Control
from lutbuilder.control.jobs import Result, Runner, _cut
from lutbuilder.control.order import Order, told_of
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.service import Coordinator
from lutbuilder.coordinator.store import Store
from lutbuilder_agent.errors import CampaignFailed, LutNoisy, StoreError
from tests.store_examples import SPEC

PATIENCE_S = 30.0
RESULT = Result(lut="phone/litert-fp32-bs1@3", outcome=JobOutcome(published=True, n_measured=70, rounds=9))
Does = Callable[[Order, Opening, OnProgress], Result]


def wait_for(claim: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.005)


@dataclass
class Desk:
    """A runner on a store; what its jobs do is in the test's hands."""

    folder: Path
    store: Store
    does: Does = lambda order, opening, on_progress: RESULT
    now_s: float = 100.0
    begun: list[int] = field(default_factory=list)  # seeds, in the order their jobs began
    events: list[tuple[str, JobPhase]] = field(default_factory=list)

    def runner(self, *, runner_id: str = "me", max_jobs: int = 16) -> Runner:
        coordinator = Coordinator(self.store, ArtifactShelf(), Controllers(self.store).decide, coordinator_id=runner_id)
        self.changes = Changes()
        self.control = Control(self.store, coordinator=coordinator, changes=self.changes)
        return Runner(
            self.store,
            coordinator,
            Controllers(self.store, on_demand=True),
            self.control,
            self.changes,
            luts=self.folder / "luts",
            address="lab:7070",
            max_jobs=max_jobs,
            perform=self._perform,
            on_event=lambda job, phase, message: self.events.append((job.job_id, phase)),
            wall_clock=lambda: 5.0,
            clock=lambda: self.now_s,
        )

    def submit(self, *, seed: int = 0, priority: int = 0) -> str:
        request = Order(request=CollectRequest(seed=seed), coordinator="lab:7070").to_json()
        job = self.store.submit_job(
            JobSpec(kind="collect", request=request, priority=priority), job_id=f"job-{seed}", now_s=float(seed)
        )
        return job.job_id

    def over(self, job_id: str) -> JobState:
        wait_for(lambda: self.store.job(job_id).over)
        return self.store.job(job_id)

    def _perform(self, order: Order, opening: Opening, luts: Path, on_progress: OnProgress) -> Result:
        assert luts == self.folder / "luts"
        self.begun.append(int(order.request.seed))
        return self.does(order, opening, on_progress)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Store.open(tmp_path / "campaigns.sqlite") as store:
        yield Desk(tmp_path, store)


def waits_of(opening: Opening) -> Any:
    assert isinstance(opening, Shared)
    return opening.waits


def until_told(desk: Desk) -> Does:
    """A job that goes on until it is told to stop, a second of its clock at every turn."""

    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        for _ in range(int(PATIENCE_S / 0.005)):
            desk.now_s += 1.0
            waits_of(opening).check()
            time.sleep(0.005)
        raise AssertionError("nobody told it to stop")

    return does


def test_a_job_that_is_done_says_what_came_out(desk: Desk) -> None:
    runner, job_id = desk.runner(), desk.submit()
    runner.look()
    job = desk.over(job_id)
    assert (job.state, job.lut, job.runner, job.finished_s) == ("done", RESULT.lut, "me", 5.0)
    assert told_of(job).outcome == RESULT.outcome
    assert desk.events == [(job_id, "running"), (job_id, "done")]


def test_jobs_begin_by_priority_and_then_by_age_no_more_at_once_than_allowed(desk: Desk) -> None:
    runner = desk.runner(max_jobs=2)
    go_on = threading.Event()

    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        assert go_on.wait(PATIENCE_S)
        return RESULT

    desk.does = does
    for seed, priority in ((1, 0), (2, 5), (3, 5), (4, 9)):
        desk.submit(seed=seed, priority=priority)
    runner.look()
    wait_for(lambda: len(desk.begun) == 2)
    assert sorted(desk.begun) == [2, 4]
    assert len(runner.running) == 2
    go_on.set()
    for seed in (4, 2):
        desk.over(f"job-{seed}")
    wait_for(lambda: not runner.running)
    runner.look()
    desk.over("job-1")
    assert sorted(desk.begun[2:]) == [1, 3]


@pytest.mark.parametrize(
    ("error", "code"),
    [(CampaignFailed("nothing was measured"), "campaign_failed"), (LutNoisy("too noisy"), "lut_noisy")],
)
def test_a_job_that_fails_says_why_with_the_errors_code(desk: Desk, error: Exception, code: str) -> None:
    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        raise error

    desk.does = does
    runner, job_id = desk.runner(), desk.submit()
    runner.look()
    job = desk.over(job_id)
    assert (job.state, job.message, told_of(job).error_code) == ("failed", str(error), code)


def test_a_bug_is_told_as_one_and_harms_no_other_job(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        if order.request.seed == 1:
            raise ZeroDivisionError("one by none")
        return RESULT

    desk.does = does
    runner = desk.runner()
    for seed in (1, 2):
        desk.submit(seed=seed)
    runner.look()
    assert desk.over("job-2").state == "done"
    job = desk.over("job-1")
    assert "ZeroDivisionError: one by none (a bug in lutbuilder" in job.message
    assert told_of(job).error_code == "internal"
    assert "met a bug" in caplog.text


def test_a_request_that_cannot_be_read_fails_and_does_not_come_back(desk: Desk) -> None:
    desk.store.submit_job(JobSpec(kind="collect", request="{"), job_id="job-x", now_s=1.0)
    runner = desk.runner()
    runner.look()
    assert "not JSON" in desk.over("job-x").message


def test_a_stop_puts_jobs_back_and_the_next_runner_continues_them(desk: Desk) -> None:
    desk.does = until_told(desk)
    runner, job_id = desk.runner(), desk.submit()
    runner.look()
    wait_for(lambda: desk.begun == [0])
    runner.stop(PATIENCE_S)
    job = desk.store.job(job_id)
    assert (job.state, job.runner) == ("queued", "")
    assert "goes on when one is started again" in job.message
    runner.look()
    assert desk.store.job(job_id).state == "queued", "a runner that stops begins nothing"
    desk.does = lambda order, opening, on_progress: RESULT
    desk.runner(runner_id="another").look()
    assert desk.over(job_id).runner == "another"


def test_a_runner_that_died_gets_its_own_jobs_back_at_once(desk: Desk) -> None:
    job_id = desk.submit()
    assert desk.store.claim_job("me", now_s=1.0) is not None
    desk.runner(runner_id="another").look()
    assert desk.begun == [], "nobody else's: it may be alive"
    desk.runner().look()
    assert desk.over(job_id).state == "done"


def test_a_job_that_goes_on_waits_for_the_environment_it_began_in(desk: Desk) -> None:
    seen: list[str] = []

    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        assert isinstance(opening, Shared)
        seen.append(opening.env_id)
        return RESULT

    desk.does = does
    job_id = desk.submit()
    desk.store.create_campaign(SPEC, now_s=1.0)
    desk.store.claim_job("me", now_s=1.0)
    desk.store.update_job(job_id, runner="me", now_s=1.0, campaign_ids=[SPEC.key])
    desk.runner().look()
    desk.over(job_id)
    assert seen == [SPEC.env_id]


def test_a_job_that_was_cut_off_before_its_campaign_was_made_begins_it(desk: Desk) -> None:
    job_id = desk.submit()
    desk.store.claim_job("me", now_s=1.0)
    desk.store.update_job(job_id, runner="me", now_s=1.0, campaign_ids=["named-not-made"])
    desk.runner().look()
    assert desk.over(job_id).state == "done"


def test_a_cancelled_job_stops_and_gives_up_its_campaign(desk: Desk) -> None:
    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        assert isinstance(opening, Shared)
        opening.began(SPEC.key)
        return until_told(desk)(order, opening, on_progress)

    desk.does = does
    desk.store.create_campaign(SPEC, now_s=1.0)
    runner, job_id = desk.runner(), desk.submit()
    runner.look()
    wait_for(lambda: desk.store.job(job_id).campaign_ids == (SPEC.key,))
    desk.control.cancel_job(job_id)
    wait_for(lambda: not runner.running)
    assert desk.store.job(job_id).state == "cancelled"
    assert desk.store.campaign(SPEC.key).state == "cancelled"
    assert desk.events[-1] == (job_id, "cancelled")


def test_a_job_cancelled_by_hand_in_the_store_begins_no_further_campaign(desk: Desk) -> None:
    begun = threading.Event()
    cancelled = threading.Event()

    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        assert isinstance(opening, Shared)
        begun.set()
        assert cancelled.wait(PATIENCE_S)
        opening.began(SPEC.key)
        raise AssertionError("it was to be told")

    desk.does = does
    runner, job_id = desk.runner(), desk.submit()
    runner.look()
    assert begun.wait(PATIENCE_S)
    desk.store.cancel_job(job_id, now_s=2.0)
    cancelled.set()
    wait_for(lambda: not runner.running)
    job = desk.store.job(job_id)
    assert (job.state, job.campaign_ids) == ("cancelled", ())


def test_a_campaign_cancelled_by_hand_cancels_its_job(desk: Desk) -> None:
    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        assert isinstance(opening, Shared)
        opening.began(SPEC.key)
        desk.control.cancel_campaign(SPEC.key, "wrong device")
        raise CampaignFailed("campaign was cancelled (wrong device)")

    desk.does = does
    desk.store.create_campaign(SPEC, now_s=1.0)
    runner, job_id = desk.runner(), desk.submit()
    runner.look()
    job = desk.over(job_id)
    assert job.state == "cancelled"
    assert "wrong device" in job.message


def test_a_job_the_store_fails_rests_and_is_tried_again(desk: Desk) -> None:
    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        if len(desk.begun) == 1:
            raise StoreError("the disk is full")
        return RESULT

    desk.does = does
    runner, job_id = desk.runner(), desk.submit()
    runner.look()
    wait_for(lambda: not runner.running)
    runner.look()
    assert (desk.begun, desk.store.job(job_id).state) == ([0], "running")
    desk.now_s += 60.0
    runner.look()
    assert desk.over(job_id).state == "done"
    assert desk.begun == [0, 0]


def test_progress_is_written_down_once_a_second_and_at_every_new_word(desk: Desk) -> None:
    written: list[str] = []
    update = desk.store.update_job

    def counted(job_id: str, **changes: Any) -> JobState:
        if "progress" in changes:
            written.append(str(changes["progress"]))
        return update(job_id, **changes)

    desk.store.update_job = counted  # type: ignore[method-assign]  # counts, and passes on

    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        on_progress(Progress(phase="waiting", message="for an agent"))
        for number in range(50):
            on_progress(Progress(phase="timing", round=number))
        desk.now_s += 2.0
        on_progress(Progress(phase="timing", round=50))
        return RESULT

    desk.does = does
    runner, job_id = desk.runner(), desk.submit()
    runner.look()
    job = desk.over(job_id)
    assert len(written) == 4  # waiting, timing, a second later, the end
    told = told_of(job).progress
    assert told is not None
    assert (told.phase, told.round) == ("done", 50)


def test_the_words_of_a_phase_stay_until_the_next(desk: Desk) -> None:
    seen: list[Progress | None] = []

    def does(order: Order, opening: Opening, on_progress: OnProgress) -> Result:
        for progress in (Progress(phase="waiting", message="type this"), Progress(phase="waiting", elapsed_s=1.0)):
            desk.now_s += 2.0
            on_progress(progress)
            seen.append(told_of(desk.store.job("job-0")).progress)
        on_progress(Progress(phase="timing"))
        seen.append(told_of(desk.store.job("job-0")).progress)
        return RESULT

    desk.does = does
    desk.submit()
    desk.runner().look()
    desk.over("job-0")
    assert [each.message for each in seen if each is not None] == ["type this", "type this", ""]


def test_many_notes_are_cut_to_what_a_message_carries() -> None:
    assert _cut(("a", "b")) == ("a", "b")
    cut = _cut(tuple(f"note {number}" for number in range(3 * MAX_NOTES)))
    assert len(cut) == MAX_NOTES
    assert cut[-1] == f"and {2 * MAX_NOTES + 1} more"
