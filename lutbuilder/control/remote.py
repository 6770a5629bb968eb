"""`lutbuilder collect|validate|calibrate --coordinator`: the same outcome as here, worked out by a coordinator of many.

The command submits a job, shows its progress, and downloads the table that comes out. It may be killed at any moment:
the job goes on, and the same command, or `lutbuilder jobs attach`, watches it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lutbuilder.campaign.job import JobSpec
from lutbuilder.campaign.request import (
    CalibrateOutcome,
    CalibrateRequest,
    CollectOutcome,
    CollectRequest,
    OnProgress,
    Progress,
    StopReason,
    ValidateOutcome,
    ValidateRequest,
)
from lutbuilder.control.api import MAX_WATCH_S, ControlApi, JobOutcome, JobView, LutChunk, LutPart
from lutbuilder.control.order import Order, Request, lut_words
from lutbuilder.urls import Place
from lutbuilder_agent.errors import (
    ArtifactCorrupt,
    CampaignFailed,
    Interrupted,
    LutConflict,
    LutNotFound,
    LutNotWritable,
    SpecError,
    Unreachable,
)
from lutbuilder_agent.wire.status import error_of

if TYPE_CHECKING:
    from lutbuilder.lut import Lut

_PATIENCE_S = 600.0  # with a coordinator that does not answer in the middle of a job
_PAUSE_S = 1.0
_SUBMITS = 4  # tries; the id of the job stays the same


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A coordinator of many, for one command. `luts` is this user's folder of tables."""

    api: ControlApi
    address: str
    luts: Place
    priority: int = 0
    owner: str = ""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex[:16]

    def collect(self, request: CollectRequest, on_progress: OnProgress) -> CollectOutcome:
        """See lutbuilder.campaign.collect.collect; Interrupted says how to attach again."""
        return self.collected(self._done(request, on_progress))

    def validate(self, request: ValidateRequest, on_progress: OnProgress) -> ValidateOutcome:
        """See lutbuilder.validation.validate; a list of networks is saved when the job is done."""
        if request.save_networks is not None and request.save_networks.exists():
            raise SpecError(f"{request.save_networks} is there already: choose another name")
        job = self._done(replace(request, lut=self._name_there(request.lut)), on_progress)
        outcome = self.validated(job)
        if request.save_networks is not None:
            _save(request.save_networks, _outcome(job).networks)
        return outcome

    def calibrate(self, request: CalibrateRequest, on_progress: OnProgress) -> CalibrateOutcome:
        """See lutbuilder.calibration.calibrate."""
        if (request.lut is None) == (request.source is None):
            raise SpecError("name the table to calibrate, or with --from the table of another device to start from")
        lut = None if request.lut is None else self._name_there(request.lut)
        source = None if request.source is None else self._name_there(request.source)
        return self.calibrated(self._done(replace(request, lut=lut, source=source), on_progress))

    # --- a job from its submission to its end

    def submit(self, request: Request) -> JobView:
        """Ask for a job; one that is not over and asks the very same is returned instead."""
        order = Order(request=_carried(request), files=_files(request), coordinator=self.address)
        spec = JobSpec(kind=order.kind, request=order.to_json(), priority=self.priority, owner=self.owner)
        job_id = self.new_id()
        for left in reversed(range(_SUBMITS)):
            try:
                return self.api.submit(spec, job_id=job_id)
            except Unreachable:
                if not left:
                    raise
                self.sleep(_PAUSE_S)
        raise Unreachable(f"no coordinator answers at {self.address}")  # never: the last try raises

    def follow(self, job: JobView, on_progress: OnProgress) -> JobView:
        """Show a job's progress until it is over, and return it done.

        Raises what the job raised there; Interrupted on Ctrl-C, with the commands that attach again and that cancel;
        Unreachable if nobody answers for long.
        """
        again = f"Attach again: lutbuilder jobs attach {job.job_id} --coordinator {self.address}"
        try:
            last = self._followed(job, on_progress, again)
        except KeyboardInterrupt:
            raise Interrupted(
                f"detached; job {job.job_id} goes on at {self.address}. {again}; give it up: lutbuilder jobs cancel "
                f"{job.job_id} --coordinator {self.address}"
            ) from None
        if last.phase == "cancelled":
            raise CampaignFailed(
                f"job {job.job_id} was cancelled{f' ({last.message})' if last.message else ''}; what it measured is "
                "kept: the same command goes on with it"
            )
        if last.phase == "failed":
            raise error_of(last.error_code or CampaignFailed.code, last.message)
        return last

    def _followed(self, job: JobView, on_progress: OnProgress, again: str) -> JobView:
        seen, silent_since_s = "", None
        told: Progress | None = None
        while True:
            try:
                watched = self.api.watch(job.job_id, seen=seen, wait_s=MAX_WATCH_S)
            except Unreachable as error:
                now_s = self.clock()
                if silent_since_s is None:
                    silent_since_s = now_s
                    on_progress(Progress(phase="waiting", message=f"{self.address} does not answer; trying again"))
                if now_s - silent_since_s > _PATIENCE_S:
                    raise Unreachable(f"{error}. Job {job.job_id} goes on when it is back. {again}") from error
                self.sleep(_PAUSE_S)
                continue
            silent_since_s, seen = None, watched.seen
            shown = _shown(watched.job, self.address)
            if shown != told:
                told = shown
                on_progress(shown)
            if watched.job.over:
                return watched.job

    def _done(self, request: Request, on_progress: OnProgress) -> JobView:
        return self.follow(self.submit(request), on_progress)

    # --- what came out

    def collected(self, job: JobView) -> CollectOutcome:
        """Return the outcome of a collect that is done, its table downloaded."""
        told = _outcome(job)
        return CollectOutcome(
            lut=self.fetched(job.lut),
            published=told.published,
            stop_reason=cast("StopReason | None", told.stop_reason or None),
            n_measured=told.n_measured,
            n_failed=told.n_failed,
            rounds=told.rounds,
            wall_s=told.wall_s,
            timed_fraction=told.timed_fraction,
            resumed=told.resumed,
            notes=told.notes,
        )

    def validated(self, job: JobView) -> ValidateOutcome:
        """Return the outcome of a validate that is done, its table downloaded."""
        from lutbuilder.stats.quality import ValidationReport

        told, lut = _outcome(job), self.fetched(job.lut)
        if lut.meta.validation is None:
            raise LutConflict(f"{lut.path} has no report of a validation: another version was published meanwhile")
        report = ValidationReport.from_json(lut.meta.validation)
        return ValidateOutcome(report=report, lut=lut, wall_s=told.wall_s, timed_before=told.timed_before)

    def calibrated(self, job: JobView) -> CalibrateOutcome:
        """Return the outcome of a calibrate that is done, its table downloaded."""
        from lutbuilder.campaign.calibrated import CalibrationReport

        told, lut = _outcome(job), self.fetched(job.lut)
        if lut.meta.calibration is None:
            raise LutConflict(f"{lut.path} has no calibrated rows: another version was published meanwhile")
        report = CalibrationReport.from_json(lut.meta.calibration)
        return CalibrateOutcome(report=report, lut=lut, rounds=told.rounds, wall_s=told.wall_s)

    # --- tables

    def fetched(self, spec: str) -> Lut:
        """Download a table, NAME@VERSION, with its raw visits into this user's folder; return it, checked.

        A file that is there already is kept if it is the same. Raises LutConflict if it is another one.
        """
        from lutbuilder.lut import Lut

        name, version = lut_words(spec)
        table = self._download(name, version, "table")
        with suppress(LutNotFound):  # a table of rows that were imported, or whose visits another coordinator has
            self._download(name, version, "samples")
        return Lut.load(table)

    def _download(self, name: str, version: int, part: LutPart) -> Place:
        """Fetch a file, going on where an earlier try stopped; it appears whole, or not at all."""
        from lutbuilder.lut.folder import key
        from lutbuilder.lut.store import keep_bytes, read_place

        first = self._piece(name, version, part, 0)
        path = self.luts / key(name, version, part)

        def is_there() -> bool:
            try:
                there = hashlib.sha256(read_place(path)).hexdigest()
            except LutNotFound:
                return False
            if there != first.sha256:
                raise LutConflict(
                    f"{path} is another table than the coordinator's {name}@{version}: keep the coordinator's tables "
                    "in a folder of their own, --luts DIR. Nothing is lost: the same command fetches it again"
                )
            return True

        if is_there():
            return path
        partial = _partial(path, first.sha256)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # another command of this user may be fetching it, too
                if is_there():
                    return path
                if file.tell() > first.size_bytes:
                    file.truncate(0)
                file.seek(0, os.SEEK_END)
                while (offset := file.tell()) < first.size_bytes:
                    piece = first if offset == 0 else self._piece(name, version, part, offset)
                    if piece.sha256 != first.sha256 or piece.offset != offset or not piece.chunk:
                        raise ArtifactCorrupt(
                            f"{name}@{version} changed while it was downloaded: type the command again"
                        )
                    file.write(piece.chunk)
                file.flush()
                raw = partial.read_bytes()
                if hashlib.sha256(raw).hexdigest() != first.sha256:
                    partial.unlink()
                    raise ArtifactCorrupt(
                        f"what came of {name}@{version} is not what was sent (its sha256 differs): type the command "
                        "again"
                    )
                keep_bytes(raw, name, version, part, folder=self.luts)
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise LutNotWritable(
                f"cannot write {path}: {error.strerror or error}; choose another folder: --luts DIR. The table is kept "
                "at the coordinator: the same command fetches it again"
            ) from error
        return path

    def _piece(self, name: str, version: int, part: LutPart, offset: int) -> LutChunk:
        since_s = self.clock()
        while True:
            try:
                return self.api.fetch_lut(name, version, part, offset)
            except Unreachable:
                if self.clock() - since_s > _PATIENCE_S / 10:
                    raise
                self.sleep(_PAUSE_S)

    def _name_there(self, text: str) -> str:
        """Return NAME or NAME@VERSION, as the coordinator knows it, of what a person typed as a table.

        Raises LutConflict if this user has a table of that name and version that is not the coordinator's.
        """
        from lutbuilder.lut.folder import version_of
        from lutbuilder.lut.store import read_place, resolve

        try:
            path = resolve(text, folder=self.luts)
        except LutNotFound:
            return _trimmed(text, self.luts)
        version = version_of(path)
        name = "/".join(path.parts[-3:-1])
        spec = f"{name}@{version}"
        theirs = self._piece(name, version or 0, "table", 0)
        if hashlib.sha256(read_place(path)).hexdigest() != theirs.sha256:
            raise LutConflict(
                f"{path} is not the {spec} of {self.address}: tables measured here and there are numbered apart. Keep "
                "the coordinator's in a folder of their own: --luts DIR"
            )
        return spec


# --- the parts


def _carried(request: Request) -> Request:
    """Return a request as it travels: the name of a TOML file instead of its path."""
    if isinstance(request, ValidateRequest):
        return replace(
            request,
            networks=None if request.networks is None else Path(request.networks.name),
            save_networks=None if request.save_networks is None else Path(request.save_networks.name),
        )
    return request


def _files(request: Request) -> dict[str, str]:
    """Return the texts of the files a request names."""
    from lutbuilder.spaces.registry import SUFFIX

    found = {}
    if request.space is not None and request.space.endswith(SUFFIX):
        found["space"] = _read(Path(request.space))
    if isinstance(request, ValidateRequest) and request.networks is not None:
        found["networks"] = _read(request.networks)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}; check the path") from error


def _save(path: Path, text: str) -> None:
    if not text:
        raise SpecError(f"the list of networks is too long to be sent: {path} was not written; validate without it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot write the list of networks to {path}: {error}; choose another file") from error


def _outcome(job: JobView) -> JobOutcome:
    if job.outcome is None or not job.lut:
        raise CampaignFailed(f"job {job.job_id} is done but tells no outcome: fetch its table, lutbuilder jobs attach")
    return job.outcome


def _shown(job: JobView, address: str) -> Progress:
    """Return what a progress line shows of a job."""
    if job.progress is not None and job.phase == "running":
        return job.progress
    if job.over:
        return job.progress or Progress(phase="done")
    waiting = f"job {job.job_id} at {address}: {job.title}"
    return Progress(phase="waiting", message=f"{waiting} ({job.message})" if job.message else waiting)


def _partial(path: Place, sha256: str) -> Path:
    """Return where a download grows: beside the file it becomes, or in the user's cache for one in a bucket."""
    from lutbuilder.lut.cache import cache_folder

    folder = path.parent if isinstance(path, Path) else cache_folder()
    return folder / f".{path.stem}-{sha256[:16]}.part"


def _trimmed(text: str, luts: Place) -> str:
    """Return a table's name without the folder in front of it."""
    words = text.removeprefix(f"{luts}/")
    return words.rstrip("/")
