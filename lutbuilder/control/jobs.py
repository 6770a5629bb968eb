"""Running what was asked: every job in a thread, through the very functions that the command line calls.

A job that was cut off (SIGTERM, kill -9, power) is claimed again and does the same from the beginning: what it had
measured is in the store, so it continues.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from lutbuilder.campaign.controllers import Controllers
from lutbuilder.campaign.host import Opening
from lutbuilder.campaign.job import JobPhase, JobState
from lutbuilder.campaign.request import (
    CalibrateRequest,
    CollectRequest,
    OnProgress,
    Progress,
    ValidateRequest,
)
from lutbuilder.campaign.shared import Shared
from lutbuilder.control.api import MAX_LISTED, MAX_NOTES, MAX_TEXT, JobOutcome
from lutbuilder.control.control import Changes, Control
from lutbuilder.control.order import Order, Told, lut_words, order_of
from lutbuilder.coordinator.service import Coordinator
from lutbuilder.coordinator.store import Store
from lutbuilder.urls import Place
from lutbuilder_agent.errors import Interrupted, LutbuilderError, StoreError, UnknownName

log = logging.getLogger("lutbuilder.serve")

_CHECK_S = 1.0  # how often a job looks whether it was cancelled
_TELL_S = 1.0  # how often its progress is written down
_REST_S = 15.0  # before a job is tried again that the store failed
_NOTE_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a job came to: its table, NAME@VERSION, and the figures."""

    lut: str
    outcome: JobOutcome


Perform = Callable[[Order, Opening, Place, OnProgress], Result]


class JobEvent(Protocol):
    """Is told that a job began ("running") or ended, with a line for people."""

    def __call__(self, job: JobState, phase: JobPhase, message: str) -> None: ...


def perform(order: Order, opening: Opening, luts: Place, on_progress: OnProgress) -> Result:
    """Do what an order says and return what came out. Raises what `collect`, `validate` and `calibrate` raise."""
    with tempfile.TemporaryDirectory(prefix="lutbuilder-job-") as scratch:
        request = _placed(order, luts, Path(scratch))
        if isinstance(request, CollectRequest):
            from lutbuilder.campaign.collect import collect

            collected = collect(request, on_progress, opening=opening)
            return Result(
                lut=f"{collected.lut.name}@{collected.lut.version}",
                outcome=JobOutcome(
                    published=collected.published,
                    stop_reason=collected.stop_reason or "",
                    n_measured=collected.n_measured,
                    n_failed=collected.n_failed,
                    rounds=collected.rounds,
                    wall_s=collected.wall_s,
                    timed_fraction=collected.timed_fraction,
                    resumed=collected.resumed,
                    notes=_cut(collected.notes),
                ),
            )
        if isinstance(request, ValidateRequest):
            from lutbuilder.validation import validate

            validated = validate(request, on_progress, opening=opening)
            listed = request.save_networks.read_text(encoding="utf-8") if request.save_networks else ""
            return Result(
                lut=f"{validated.lut.name}@{validated.lut.version}",
                outcome=JobOutcome(
                    published=True,
                    wall_s=validated.wall_s,
                    timed_before=validated.timed_before,
                    networks=listed if len(listed.encode()) <= MAX_LISTED else "",
                ),
            )
        from lutbuilder.calibration import calibrate

        calibrated = calibrate(request, on_progress, opening=opening)
        return Result(
            lut=f"{calibrated.lut.name}@{calibrated.lut.version}",
            outcome=JobOutcome(published=True, rounds=calibrated.rounds, wall_s=calibrated.wall_s),
        )


def _placed(order: Order, luts: Place, scratch: Path) -> CollectRequest | ValidateRequest | CalibrateRequest:
    """Return the request as it is to be run here: tables of our folder, files of a scratch folder."""

    def of_ours(words: str | None) -> str | None:
        if words is None:
            return None
        name, version = lut_words(words)
        return f"{luts / name}{f'@{version}' if version else ''}"

    request = replace(order.request, luts=luts)
    if isinstance(request, CalibrateRequest):
        return replace(request, lut=of_ours(request.lut), source=of_ours(request.source))
    if isinstance(request, ValidateRequest):
        request = replace(request, lut=of_ours(request.lut) or "")
        if request.networks is not None:
            listed = scratch / request.networks.name
            listed.write_text(order.files["networks"], encoding="utf-8")
            request = replace(request, networks=listed)
        if request.save_networks is not None:
            request = replace(request, save_networks=scratch / "saved" / request.save_networks.name)
    return request


def _cut(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Return notes as a message can carry them."""
    more = (f"and {len(notes) - MAX_NOTES + 1} more",) if len(notes) > MAX_NOTES else ()
    return (*(note[:_NOTE_CHARS] for note in notes[: MAX_NOTES - len(more)]), *more)


@dataclass(kw_only=True)
class _Running:
    """A job in its thread. Mutable: it goes on."""

    job: JobState
    thread: threading.Thread
    rests_until_s: float = 0.0  # the store failed it


class Runner:
    """Claims the jobs of a store for one coordinator and runs them. `look` has to be called now and then."""

    def __init__(
        self,
        store: Store,
        coordinator: Coordinator,
        controllers: Controllers,
        control: Control,
        changes: Changes,
        *,
        luts: Place,
        address: str,
        max_jobs: int = 16,
        perform: Perform = perform,
        on_event: JobEvent = lambda job, phase, message: None,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._coordinator = coordinator
        self._controllers = controllers
        self._control = control
        self._changes = changes
        self._luts = luts
        self._address = address
        self._max_jobs = max_jobs
        self._perform = perform
        self._on_event = on_event
        self._wall_clock = wall_clock
        self._clock = clock
        self._known_sessions = frozenset(agent.session_id for agent in store.agents())
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards what follows
        self._running: dict[str, _Running] = {}

    @property
    def running(self) -> tuple[str, ...]:
        """Ids of the jobs in threads now."""
        with self._lock:
            return tuple(job_id for job_id, each in self._running.items() if each.thread.is_alive())

    def look(self) -> None:
        """Begin the jobs that may begin. Raises StoreError."""
        while not self._stopping.is_set():
            now_s = self._clock()
            with self._lock:
                for job_id, each in list(self._running.items()):
                    if not each.thread.is_alive() and now_s >= each.rests_until_s:
                        del self._running[job_id]
                if len(self._running) >= self._max_jobs:
                    return
                ours = tuple(self._running)
            job = self._store.claim_job(
                self._coordinator.coordinator_id,
                now_s=self._wall_clock(),
                besides=ours,
                dead=self._coordinator.dead_coordinators(),
            )
            if job is None:
                return
            thread = threading.Thread(target=self._run, args=(job,), daemon=True, name=f"lutbuilder-job-{job.job_id}")
            with self._lock:
                self._running[job.job_id] = _Running(job=job, thread=thread)
            thread.start()

    def stop(self, grace_s: float) -> None:
        """Let every job stop where nothing is half done, and wait for that; the store knows where to continue."""
        self._stopping.set()
        until_s = self._clock() + grace_s
        with self._lock:
            threads = [each.thread for each in self._running.values()]
        for thread in threads:
            thread.join(max(0.0, until_s - self._clock()))

    def _run(self, job: JobState) -> None:
        record = _Record(
            self._store, self._coordinator.coordinator_id, job, self._changes, self._wall_clock, self._clock
        )
        waits = _Waits(record, self._stopping, self._clock)
        self._on_event(job, "running", "continues" if job.campaign_ids else "begins")
        try:
            order = order_of(job.spec)
            opening = Shared(
                store=self._store,
                coordinator=self._coordinator,
                controllers=self._controllers,
                address=self._address,
                waits=waits,
                began=record.began,
                priority=job.spec.priority,
                env_id=self._env_id(job),
                known_sessions=self._known_sessions,
                spaces=_spaces(order),
                coordinator_address=order.coordinator,
            )
            result = self._perform(order, opening, self._luts, record.progressed)
            state = record.over("done", lut=result.lut, outcome=result.outcome)
            self._on_event(state, state.state, state.lut)
        except StoreError as error:  # a full disk, say: nothing is lost, and it is tried again
            log.error("job %s rests for %g s: %s", job.job_id, _REST_S, error)
            self._rest(job.job_id)
        except LutbuilderError as error:
            self._failed(record, error.code, str(error))
        except Exception as error:
            log.exception("job %s met a bug", job.job_id)
            told = f"{type(error).__name__}: {error} (a bug in lutbuilder: please report it; the coordinator's log has"
            self._failed(record, LutbuilderError.code, f"{told} more)")

    def _failed(self, record: _Record, code: str, message: str) -> None:
        """Write down how a job ended that did not come to its end."""
        try:
            job = record.look()
            if job.state == "cancelled":
                self._control.give_up_campaigns(job)
                self._on_event(job, "cancelled", "")
            elif code == Interrupted.code and self._stopping.is_set():
                record.put_back("the coordinator was stopped; the job goes on when one is started again")
                self._on_event(job, "queued", "is put back")
            elif job.runner == self._coordinator.coordinator_id and not job.over:
                cancelled = any(self._store.campaign(each).state == "cancelled" for each in job.campaign_ids[-1:])
                state = record.over("cancelled" if cancelled else "failed", message=message, error_code=code)
                self._on_event(state, state.state, message)
        except StoreError as error:
            log.error("job %s rests for %g s: %s", record.job_id, _REST_S, error)
            self._rest(record.job_id)

    def _rest(self, job_id: str) -> None:
        with self._lock:
            self._running[job_id].rests_until_s = self._clock() + _REST_S

    def _env_id(self, job: JobState) -> str:
        """Return the environment that a job which goes on began in; "" if it may begin in any."""
        try:
            return self._store.campaign(job.campaign_ids[0]).spec.env_id if job.campaign_ids else ""
        except UnknownName:  # it was cut off between naming its campaign and making it
            return ""


def _spaces(order: Order) -> Mapping[str, str]:
    space = order.request.space
    return {space: order.files["space"]} if space is not None and "space" in order.files else {}


@dataclass(kw_only=True)
class _Told:
    """What was last written down of a job's progress. Mutable: it goes on."""

    at_s: float = float("-inf")
    progress: Progress | None = None


@dataclass
class _Record:
    """A job in the store, as its runner writes it down. Used by the job's thread."""

    _store: Store
    _runner: str
    _job: JobState
    _changes: Changes
    _wall_clock: Callable[[], float]
    _clock: Callable[[], float]
    _told: _Told = field(default_factory=_Told)

    @property
    def job_id(self) -> str:
        return self._job.job_id

    def look(self) -> JobState:
        return self._store.job(self._job.job_id)

    def check(self) -> None:
        """Raise Interrupted if the job is not ours any more, or is over."""
        self._heed(self.look())

    def began(self, campaign_id: str) -> None:
        """Write down a campaign before it begins. Raises Interrupted for a job that is not to go on."""
        known = self._job.campaign_ids
        if campaign_id not in known:
            self._job = replace(self._job, campaign_ids=(*known, campaign_id))
        self._heed(self._update(campaign_ids=self._job.campaign_ids))

    def progressed(self, progress: Progress) -> None:
        """Write down a moment, unless one of the same kind was written a second ago."""
        before, now_s = self._told.progress, self._clock()
        message = progress.message[:MAX_TEXT]
        if before is not None and before.phase == progress.phase:
            message = message or before.message
        progress = replace(progress, message=message)
        news = before is None or (before.phase, before.message) != (progress.phase, progress.message)
        if news or now_s - self._told.at_s >= _TELL_S:
            self._told = _Told(at_s=now_s, progress=progress)
            self._heed(self._update(progress=Told(progress=progress).to_json(), message=""))

    def over(
        self,
        state: JobPhase,
        *,
        lut: str = "",
        message: str = "",
        error_code: str = "",
        outcome: JobOutcome | None = None,
    ) -> JobState:
        last = self._told.progress
        progress = None if last is None else replace(last, phase="done", message="", eta_s=None)
        told = Told(progress=progress, outcome=outcome, error_code=error_code)
        return self._update(state=state, lut=lut, message=message[:MAX_TEXT], progress=told.to_json())

    def put_back(self, message: str) -> JobState:
        return self._update(state="queued", message=message)

    def _update(self, **changes: object) -> JobState:
        state = self._store.update_job(self._job.job_id, runner=self._runner, now_s=self._wall_clock(), **changes)  # type: ignore[arg-type]  # the fields of update_job, passed on
        self._changes.tell()
        return state

    def _heed(self, job: JobState) -> None:
        if job.over or job.runner != self._runner:
            raise Interrupted(
                f"job {job.job_id} is {job.state}" + ("" if job.over else " and another coordinator's now")
            )


@dataclass
class _Waits:
    """What a job's host asks while it waits; see Waits."""

    _record: _Record
    _stopping: threading.Event
    _clock: Callable[[], float]
    _looked_s: float = field(default=float("-inf"))

    def check(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("the coordinator is stopping")
        if self._clock() - self._looked_s >= _CHECK_S:
            self._looked_s = self._clock()
            self._record.check()
