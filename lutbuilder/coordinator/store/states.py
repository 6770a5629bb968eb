"""What the store gives back: frozen records, each a row or a few of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator.schedule import Decision, LeaseState
from lutbuilder_agent.records import (
    AgentHello,
    Conditions,
    FailureReason,
    Fingerprint,
    OpId,
    RuntimeReport,
    Timing,
)

CampaignPhase = Literal["active", "done", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignState:
    """A campaign and how far it is. `rounds` counts committed rounds of all its batches and sessions."""

    campaign_id: str
    spec: CampaignSpec
    state: CampaignPhase
    reason: str  # why it ended; "" while active
    rounds: int
    measured_ns: int  # sum of the rounds' wall time on the device
    timed_ns: int  # of which inside timed visits
    created_s: float
    finished_s: float | None
    priority: int = 0  # higher first
    owner: str = ""  # whom it is measured for; "": nobody was named


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """An agent in one session: what it said when it registered, and when its last report was committed.

    `drained` and `quarantined` (why; "" if it is not) are of the agent, whatever session it is in.
    """

    name: str
    session_id: str
    epoch: int
    agent_version: str
    fingerprint: Fingerprint
    runtimes: tuple[RuntimeReport, ...]
    registered_s: float
    last_report_s: float | None
    clock_domain: str = ""  # as the agent said it; "": its own
    drained: bool = False
    quarantined: str = ""

    @property
    def hello(self) -> AgentHello:
        """What the agent said, without the protocol range."""
        return AgentHello(
            name=self.name,
            agent_version=self.agent_version,
            fingerprint=self.fingerprint,
            runtimes=self.runtimes,
            clock_domain=self.clock_domain,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFlags:
    """What was decided about an agent: no new leases for a drained one; `quarantined`: why, "" if it is not."""

    drained: bool = False
    quarantined: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLease:
    """A lease as it is remembered over restarts; deadlines are not, they are on a clock that ends with the process.

    `owner` is the coordinator that watches over it and moves `beat` while it is extended; `quiet_s` is the silence its
    agent announced with the last beat. `domain` is the clock domain it occupies.
    """

    lease_id: str
    campaign_id: str
    batch: int
    epoch: int
    session_id: str
    agent: str
    state: LeaseState
    first_round: int
    rounds: int
    owner: str = ""
    beat: int = 0
    quiet_s: float = 0.0
    domain: str = ""
    granted_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReport:
    """A committed round: when, in which session, under which conditions."""

    report_id: str
    campaign_id: str
    session_id: str
    round: int
    late: bool
    before: Conditions | None
    after: Conditions | None
    round_ns: int
    timed_ns: int
    committed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RawVisit:
    """One visit with all that was seen."""

    campaign_id: str
    session_id: str
    timing: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A second timing under the key of a visit that was already there: kept aside, never in place of the first."""

    campaign_id: str
    session_id: str
    report_id: str
    timing: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureOccasion:
    """One occasion on which an op failed: the evidence behind StoredFailure. `excused`: it no longer counts."""

    op_id: OpId
    agent: str
    session_id: str
    round: int
    reason: FailureReason
    detail: str
    excused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """What a commit did. `late`: the lease is not the session's any more; `decision`: made when it came first.

    `batch` is the one its lease was for, None for a lease that this store never gave.
    """

    n_new: int
    n_repeated: int
    n_conflicts: int
    late: bool
    repeated_report: bool
    decision: Decision | None
    campaign_active: bool
    failures_new: int = 0
    batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCounts:
    """How many campaigns, jobs and leases there are, by state."""

    campaigns: Mapping[str, int]
    jobs: Mapping[str, int]
    leases: Mapping[str, int]
