"""Who may measure what, now: pure functions of campaigns, leases and a clock that the caller reads.

A campaign is cut into batches. One lease is one batch and the sentinels, held by one agent, for some rounds. A batch is
pending, leased (by as many agents as the campaign allows) or done; a lease ends done (told to stop, or its rounds are
in), lost (expired) or cancelled (given back, or handed over). A batch that is not done may be leased again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lutbuilder.campaign.spec import ALL_BATCHES, CampaignOp, CampaignSpec
from lutbuilder_agent import runtimes
from lutbuilder_agent.errors import UnknownName
from lutbuilder_agent.records import AgentHello, FailureReason, OpId

LeaseState = Literal["active", "done", "lost", "cancelled"]

FINAL_REASONS: tuple[FailureReason, ...] = ("unsupported", "bad_artifact")  # trying again gives the same
FINAL_ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows from a committed report. `stop`: the lease's batch is done, for `reason`; `drop`: ops leaving it.

    `renew`: the session has had its share; its lease ends, and its agent goes on in a new session.
    """

    stop: bool = False
    reason: str = ""
    drop: tuple[OpId, ...] = ()
    renew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLease:
    """A lease as the coordinator keeps it. `deadline_s` is on the coordinator's monotonic clock."""

    lease_id: str
    epoch: int
    campaign_id: str
    batch: int
    session_id: str
    agent: str
    first_round: int
    rounds: int
    deadline_s: float

    @property
    def last_round(self) -> int:
        """Number of the last round it is for."""
        return self.first_round + self.rounds - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFailure:
    """What is known of an op that failed: its latest reason and detail, and on how many occasions it failed."""

    op_id: OpId
    reason: FailureReason
    detail: str
    attempts: int

    @property
    def final(self) -> bool:
        """Whether the op is given up: its reason repeats itself, or it failed twice."""
        return self.reason in FINAL_REASONS or self.attempts >= FINAL_ATTEMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignProgress:
    """A campaign with all that decides what is still to be leased."""

    campaign_id: str
    spec: CampaignSpec
    done: Collection[int]  # batches
    rounds: Mapping[int, int]  # rounds committed so far, by batch
    next_round: int
    dropped: Collection[OpId]
    failures: Sequence[StoredFailure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A batch that may be leased now: these ops, these rounds."""

    campaign_id: str
    batch: int
    ops: tuple[CampaignOp, ...]
    first_round: int
    rounds: int


def batches(spec: CampaignSpec) -> tuple[int, ...]:
    """Return the numbers of a campaign's batches in order; sentinels alone make one batch, number 0."""
    return tuple(sorted({op.batch for op in spec.ops if op.batch != ALL_BATCHES})) or (0,)


def batch_ops(progress: CampaignProgress, batch: int) -> tuple[CampaignOp, ...]:
    """Return what a lease of `batch` still visits: its ops and the sentinels, without those dropped or given up.

    Empty once none of the batch's own ops is left, however many sentinels are: they serve the others.
    """
    gone = {failure.op_id for failure in progress.failures if failure.final}.union(progress.dropped)
    left = tuple(op for op in progress.spec.ops if op.batch in (batch, ALL_BATCHES) and op.op_id not in gone)
    has_own = any(op.batch == batch for op in progress.spec.ops)
    return left if not has_own or any(op.batch == batch for op in left) else ()


def exhausted(progress: CampaignProgress, batch: int) -> str | None:
    """Return why a batch that nobody stopped has nothing left to do, or None if it has.

    "max_rounds": all rounds are in. "failed": every op left failed for good; "precision": every op left was dropped.
    """
    if progress.rounds.get(batch, 0) >= progress.spec.max_rounds:
        return "max_rounds"
    if batch_ops(progress, batch):
        return None
    own = {op.op_id for op in progress.spec.ops if op.batch == batch}
    return "precision" if own.intersection(progress.dropped) else "failed"


def mismatch(spec: CampaignSpec, hello: AgentHello) -> str | None:
    """Return why an agent cannot measure a campaign, naming what differs, or None if it can.

    The environment's id covers the device and every stable fact of it; the runtime must have passed its probe, in the
    campaign's version of it.
    """
    if hello.fingerprint.env_id != spec.env_id:
        return (
            f"agent {hello.name} ({hello.fingerprint.device}, environment {hello.fingerprint.env_id}) is not the "
            f"{spec.target.device} of environment {spec.env_id}"
        )
    wanted = canonical_runtime(spec.plan.runtime)
    for report in hello.runtimes:
        if canonical_runtime(report.name) != wanted:
            continue
        if not report.available:
            return f"runtime {wanted} does not run on agent {hello.name}: {report.reason}"
        if report.version != spec.runtime_version:
            return f"runtime {wanted} of agent {hello.name} is {report.version}, not {spec.runtime_version}"
        return None
    return f"agent {hello.name} has no runtime {wanted}: lutbuilder-agent doctor there says what it has"


def canonical_runtime(name: str) -> str:
    """Return a runtime's registry name; a name this release does not know is its own."""
    try:
        return runtimes.entry(name)[0]
    except UnknownName:
        return name


def next_offer(progresses: Iterable[CampaignProgress], leases: Sequence[HeldLease], hello: AgentHello) -> Offer | None:
    """Return the first batch that has room for an agent and suits it, or None. Campaigns come oldest first.

    A batch has room while fewer agents hold leases of it than its campaign allows. An agent times for one lease only,
    so one that holds a lease gets no offer.
    """
    if any(lease.agent == hello.name for lease in leases):
        return None
    holders = Counter((lease.campaign_id, lease.batch) for lease in leases)
    for progress in progresses:
        if mismatch(progress.spec, hello) is not None:
            continue
        for batch in batches(progress.spec):
            full = holders[(progress.campaign_id, batch)] >= progress.spec.agents
            if batch in progress.done or full or exhausted(progress, batch):
                continue
            return offer(progress, batch)
    return None


def offer(progress: CampaignProgress, batch: int) -> Offer:
    """Return what a lease of `batch` would be: its ops that are left, from the campaign's next round on.

    At most `lease_rounds` rounds: the batch is pending again after them, and whoever leases it prepares it anew.
    """
    left = progress.spec.max_rounds - progress.rounds.get(batch, 0)
    return Offer(
        campaign_id=progress.campaign_id,
        batch=batch,
        ops=batch_ops(progress, batch),
        first_round=progress.next_round,
        rounds=min(left, progress.spec.lease_rounds or left),
    )


def expired(leases: Iterable[HeldLease], *, now_s: float) -> tuple[HeldLease, ...]:
    """Return the leases whose deadline has passed."""
    return tuple(lease for lease in leases if lease.deadline_s <= now_s)


def next_expiry_s(leases: Iterable[HeldLease], *, now_s: float) -> float | None:
    """Return the seconds until the first lease expires, at least 0; None if there is none."""
    deadlines = [lease.deadline_s for lease in leases]
    return max(0.0, min(deadlines) - now_s) if deadlines else None
