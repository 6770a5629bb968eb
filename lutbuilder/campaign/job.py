"""Jobs: what a user asks of a coordinator that serves many, and how far it is. The store keeps them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from lutbuilder_agent.errors import SpecError

JobKind = Literal["collect", "validate", "calibrate"]
JobPhase = Literal["queued", "running", "done", "failed", "cancelled"]
MAX_REQUEST_BYTES = 192 * 1024  # a request with the files it names; a control message is at most 256 KiB
MAX_PRIORITY = 1000
_JOB_ID = re.compile(r"[0-9a-z][0-9a-z-]{3,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One `lutbuilder collect`, `validate` or `calibrate` for a coordinator to run.

    `request` is JSON; control/order.py writes and reads it.
    """

    kind: JobKind
    request: str
    priority: int = 0  # higher first; of equal ones the oldest
    owner: str = ""  # who asked, for people to read

    def __post_init__(self) -> None:
        if self.kind not in get_args(JobKind):
            raise SpecError(f"a job is one of {', '.join(get_args(JobKind))}, not {self.kind!r}")
        if abs(self.priority) > MAX_PRIORITY:
            raise SpecError(f"a priority is from {-MAX_PRIORITY} to {MAX_PRIORITY}, got {self.priority}")
        if len(self.owner) > 256 or not self.owner.isprintable():
            raise SpecError(f"the owner of a job is a line of at most 256 characters, got {self.owner[:40]!r}")
        if len(self.request.encode()) > MAX_REQUEST_BYTES:
            raise SpecError(
                f"a request of {len(self.request.encode())} bytes is above {MAX_REQUEST_BYTES}: name fewer networks, "
                "or run the command on the coordinator's machine"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """A job as the store keeps it. Times are seconds since the epoch on the clock of whoever wrote them."""

    job_id: str
    spec: JobSpec
    state: JobPhase
    created_s: float
    message: str = ""  # why it is where it is, for people
    campaign_ids: tuple[str, ...] = ()  # that it has begun, in this order
    lut: str = ""  # NAME@VERSION that came out
    progress: str = ""  # JSON (control/order); only the control package reads it
    finished_s: float | None = None
    runner: str = ""  # id of the coordinator that runs it

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")


def checked_job_id(text: str) -> str:
    """Return a job's id if it is one: 4 to 64 small letters, digits and dashes. Raises SpecError."""
    if not _JOB_ID.fullmatch(text):
        raise SpecError(f"{text[:80]!r} is not the id of a job; see them: lutbuilder jobs")
    return text
