"""The calls a person's command may make of a coordinator, as functions of records: one contract, local or remote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from lutbuilder.campaign.job import JobKind, JobPhase, JobSpec
from lutbuilder.campaign.request import Progress

MAX_WATCH_S = 30.0  # a watch waits no longer
FETCH_BYTES = 128 * 1024  # of a table's file a call returns at most
PAGE_ITEMS = 50  # of a list a call returns at most: a control message has at most 256 KiB ...
MAX_TEXT = 1500  # ... so texts for people have at most so many characters ...
MAX_NOTES = 50  # ... an outcome so many of them ...
MAX_LISTED = 128 * 1024  # ... and a list of networks so many bytes
MAX_FAILURES = 50  # of a campaign that are shown, those given up first

T = TypeVar("T")
AgentPhase = Literal["idle", "measuring", "silent", "drained", "quarantined", "unknown"]
CampaignPhase = Literal["active", "done", "cancelled"]
LutPart = Literal["table", "samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What came out of a job that is done; its LUT is fetched by name. Lines of `notes` are for people."""

    published: bool
    stop_reason: str = ""
    n_measured: int = 0
    n_failed: int = 0
    rounds: int = 0
    wall_s: float = 0.0
    timed_fraction: float | None = None
    resumed: bool = False
    notes: tuple[str, ...] = ()
    timed_before: bool = False
    networks: str = ""  # the file that --save-networks asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as people see it. `error_code`: of the error it ended with, "" for none."""

    job_id: str
    kind: JobKind
    title: str
    phase: JobPhase
    created_s: float
    priority: int = 0
    owner: str = ""
    message: str = ""
    error_code: str = ""
    campaign_ids: tuple[str, ...] = ()
    lut: str = ""
    finished_s: float | None = None
    runner: str = ""
    progress: Progress | None = None
    outcome: JobOutcome | None = None

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase in ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A job as it is; hand `seen` back to wait for what comes after."""

    job: JobView
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeView:
    """A runtime of an agent, as its probe found it."""

    name: str
    version: str
    available: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """An agent and how it is doing. Times are seconds since the epoch; `heard_s` seconds since its last call."""

    name: str
    device: str
    env_id: str
    agent_version: str
    runtimes: tuple[RuntimeView, ...]
    phase: AgentPhase
    session_id: str
    registered_s: float
    reason: str = ""
    clock_domain: str = ""
    last_report_s: float | None = None
    heard_s: float | None = None
    lease_id: str = ""
    visits_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpFailure:
    """An op that failed in a campaign; `final`: it is given up, and its row says so."""

    op_id: str
    label: str
    reason: str
    detail: str
    attempts: int
    agents: tuple[str, ...]
    final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignView:
    """A campaign and how far it is. Times are seconds since the epoch."""

    campaign_id: str
    purpose: str
    space: str
    lut_name: str
    phase: CampaignPhase
    reason: str
    priority: int
    rounds: int
    max_rounds: int
    n_ops: int
    measured_s: float
    timed_s: float
    created_s: float
    finished_s: float | None = None
    n_failed: int = 0  # ops that are given up
    agents: tuple[str, ...] = ()  # that hold leases of it now
    failures: tuple[OpFailure, ...] = ()  # only where one campaign was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A lease that is held. `expires_in_s`: None while it is made ready, and where another coordinator gave it."""

    lease_id: str
    campaign_id: str
    batch: int
    epoch: int
    agent: str
    first_round: int
    rounds: int
    owner: str
    granted_s: float
    expires_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LutChunk:
    """A piece of a table's file; `sha256` and `size_bytes` are of the whole of it."""

    version: int
    offset: int
    chunk: bytes
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Some items of a list; ask with `after` for those that follow, "" if there are none."""

    items: tuple[T, ...]
    after: str = ""


def everything(ask: Callable[[str], Page[T]]) -> tuple[T, ...]:
    """Return all items of a list that comes in pages: `ask` is called with "" and then with each `after`."""
    found: list[T] = []
    after = ""
    while True:
        page = ask(after)
        found += page.items
        if not page.after:
            return tuple(found)
        after = page.after


class ControlApi(Protocol):
    """What a coordinator does for people, in process or remote. Safe from any thread; calls may be repeated.

    Remote, every call also raises Unreachable when nobody answers in time, NotAuthenticated and NotAllowed.
    """

    def submit(self, spec: JobSpec, *, job_id: str) -> JobView:
        """Ask for a job; return it, or one of the same owner that is not over and asks the very same.

        `job_id` is the caller's choice, and the same one again changes nothing. Raises SpecError.
        """
        ...

    def watch(self, job_id: str, *, seen: str = "", wait_s: float = 0.0) -> Watched:
        """Return the job once something has changed since `seen`, or after `wait_s` (30 s at most). UnknownName."""
        ...

    def cancel_job(self, job_id: str) -> JobView:
        """Give a job up, and the campaigns that no other job wants; what was measured is kept. UnknownName."""
        ...

    def jobs(self, *, active_only: bool = False, after: str = "") -> Page[JobView]:
        """Return the jobs, newest first, without their outcomes."""
        ...

    def agents(self, *, after: str = "") -> Page[AgentView]:
        """Return every agent that ever registered, by name."""
        ...

    def campaigns(self, *, active_only: bool = False, campaign_id: str = "", after: str = "") -> Page[CampaignView]:
        """Return the campaigns, newest first; or the one of that id, with what failed in it. UnknownName."""
        ...

    def leases(self, *, after: str = "") -> Page[LeaseView]:
        """Return the leases that are held, by campaign and batch."""
        ...

    def drain(self, agent: str, drained: bool) -> AgentView:
        """Let an agent take no new lease, or leases again; the one it holds ends with its next report. UnknownName."""
        ...

    def release_agent(self, agent: str) -> None:
        """Let an agent that was found sick take leases again. UnknownName."""
        ...

    def release_op(self, campaign_id: str, op_id: str) -> None:
        """Try an op again that was given up in a campaign. UnknownName."""
        ...

    def cancel_campaign(self, campaign_id: str, reason: str) -> CampaignView:
        """Give a campaign up; what was measured is kept. One that has ended stays as it is. UnknownName."""
        ...

    def fetch_lut(self, name: str, version: int, part: LutPart, offset: int) -> LutChunk:
        """Return a piece of a published table's file, from `offset` on; version 0: the newest. LutNotFound."""
        ...
