"""Who may measure what, now: pure functions of campaigns, leases, agents and a clock that the caller reads.

A campaign is cut into batches. One lease is one batch and the sentinels, held by one agent, for some rounds. A batch is
pending, leased (by as many agents as the campaign allows) or done; a lease ends done (told to stop, or its rounds are
in), lost (expired) or cancelled (given back, or handed over). A batch that is not done may be leased again.

One lease per clock domain at a time: agents that share silicon or its clock would disturb each other. An agent may hold
a second lease, of another batch, to go on with; nobody else's. Which campaign is next is said by shares.py.

An op that failed is given up where trying again gives the same, or after so many attempts, or on so many devices; until
then its next attempt goes to another agent, if there is one that could make it. A device that fails op after op, while
these pass elsewhere, is sick: it gets no lease any more, and its failures do not count against the ops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lutbuilder.campaign.spec import ALL_BATCHES, CampaignOp, CampaignSpec
from lutbuilder.coordinator import shares
from lutbuilder.coordinator.shares import Claim, Shares
from lutbuilder_agent import runtimes
from lutbuilder_agent.errors import UnknownName
from lutbuilder_agent.records import AgentHello, FailureReason, OpId, Report

LeaseState = Literal["active", "done", "lost", "cancelled"]

FINAL_REASONS: tuple[FailureReason, ...] = ("unsupported", "bad_artifact")  # trying again gives the same
FINAL_ATTEMPTS = 3
FINAL_DEVICES = 2
SICK_OPS = 3  # different ops that fail in a row and pass elsewhere


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
    """A lease as a coordinator keeps it. `deadline_s` is on that coordinator's monotonic clock.

    `ending`: it is over for everybody but its agent, which has not been told yet and may still be measuring: until it
    is told, or the deadline, it keeps its clock domain and nothing else.
    """

    lease_id: str
    epoch: int
    campaign_id: str
    batch: int
    session_id: str
    agent: str
    first_round: int
    rounds: int
    deadline_s: float
    domain: str = ""  # "": the agent's own
    owner: str = ""  # the coordinator that extends it
    beat: int = 0  # as last seen in the store
    reported: int = -1  # the last round seen of it
    ending: bool = False

    @property
    def last_round(self) -> int:
        """Number of the last round it is for."""
        return self.first_round + self.rounds - 1

    @property
    def rounds_left(self) -> int:
        """How many of its rounds have not come, as far as seen; none of one that is ending."""
        return 0 if self.ending else self.last_round - max(self.reported, self.first_round - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFailure:
    """What is known of an op that failed: its latest reason and detail, on how many occasions, and on which agents."""

    op_id: OpId
    reason: FailureReason
    detail: str
    attempts: int
    agents: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        """On how many devices it failed."""
        return len(self.agents)

    @property
    def final(self) -> bool:
        """Whether the op is given up: its reason repeats itself, or it failed too often, or on too many devices."""
        return self.reason in FINAL_REASONS or self.attempts >= FINAL_ATTEMPTS or self.devices >= FINAL_DEVICES

    @property
    def evidence(self) -> str:
        """Say what happened, for the one who has to judge it."""
        often = "once" if self.attempts == 1 else f"{self.attempts} times"
        where = f" on {', '.join(self.agents)}" if self.agents else ""
        return f"{self.reason} {often}{where}" + (f": {self.detail}" if self.detail else "")


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
    priority: int = 0  # higher first
    owner: str = ""
    measured_ns: int = 0  # sum of the rounds' wall time on the devices
    active: bool = True  # it has not ended

    @property
    def round_s(self) -> float | None:
        """What a round took on average, in seconds; None before the first."""
        rounds = sum(self.rounds.values())
        return self.measured_ns / 1e9 / rounds if rounds and self.measured_ns else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leasable:
    """A campaign and its batches that have something left to do: `leasable` makes it, once for many questions."""

    progress: CampaignProgress
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """An agent that may be leased to. `environment` is its fingerprint's id, `domain` its clock domain."""

    hello: AgentHello
    session_id: str
    environment: str
    domain: str

    @classmethod
    def of(cls, hello: AgentHello, session_id: str) -> Asker:
        """Hash the fingerprint once."""
        return cls(hello=hello, session_id=session_id, environment=hello.fingerprint.env_id, domain=domain_of(hello))

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.hello.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A batch that may be leased now: these ops, these rounds."""

    campaign_id: str
    batch: int
    ops: tuple[CampaignOp, ...]
    first_round: int
    rounds: int


# --- what is left to do


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


def leasable(progress: CampaignProgress) -> Leasable:
    """Return the campaign with its batches that are neither done nor exhausted."""
    left = [batch for batch in batches(progress.spec) if batch not in progress.done]
    return Leasable(progress=progress, batches=tuple(batch for batch in left if exhausted(progress, batch) is None))


# --- who can do it


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
    return _runtime_mismatch(spec, hello)


def suits(spec: CampaignSpec, asker: Asker) -> bool:
    """Return whether an agent can measure a campaign."""
    return asker.environment == spec.env_id and _runtime_mismatch(spec, asker.hello) is None


def _runtime_mismatch(spec: CampaignSpec, hello: AgentHello) -> str | None:
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


def domain_of(hello: AgentHello) -> str:
    """Return the clock domain an agent measures in: its own, unless it shares one."""
    return hello.clock_domain or hello.name


def domain_is_free(
    leases: Iterable[HeldLease], asker: Asker, *, ahead_of: HeldLease | None = None, others: Iterable[Asker] = ()
) -> bool:
    """Return whether an agent may be given a lease as far as clocks go.

    Ahead of the end of one it holds (`ahead_of`): if that is all there is in the domain, and no other live agent is of
    it, which would never have its turn.
    """
    there = [lease.lease_id for lease in leases if asker.name == lease.agent or asker.domain == _domain(lease)]
    if ahead_of is None:
        return not there
    return there == [ahead_of.lease_id] and all(other.domain != asker.domain for other in others)


def _domain(lease: HeldLease) -> str:
    return lease.domain or lease.agent


def withheld(progress: CampaignProgress, batch: int, asker: Asker, others: Iterable[Asker]) -> bool:
    """Return whether an op of a batch failed on this agent and is to be tried by one of the others first."""
    failed = {f.op_id for f in progress.failures if not f.final and asker.name in f.agents}.difference(progress.dropped)
    if not failed or not any(op.op_id in failed for op in progress.spec.ops if op.batch in (batch, ALL_BATCHES)):
        return False
    return any(suits(progress.spec, other) for other in others)


# --- what an agent gets


def next_offer(
    campaigns: Sequence[Leasable],
    leases: Sequence[HeldLease],
    asker: Asker,
    given: Shares,
    *,
    ahead_of: HeldLease | None = None,
    others: Sequence[Asker] = (),
    overdue: Collection[tuple[str, int]] = (),
) -> tuple[Offer, Shares] | None:
    """Return the batch an agent gets and the shares as they stand then; None if there is nothing for it.

    Campaigns come oldest first. A batch has room while fewer agents hold leases of it than its campaign allows; its
    batches are given in order. `others`: the live agents beside this one that may be leased to. `overdue`: (campaign,
    batch) that were withheld from this agent for long enough.
    """
    if not domain_is_free(leases, asker, ahead_of=ahead_of, others=others):
        return None
    in_hand = [lease for lease in leases if not lease.ending]
    holders = Counter((lease.campaign_id, lease.batch) for lease in in_hand)
    rounds_in_hand: Counter[str] = Counter()
    for lease in in_hand:
        rounds_in_hand[lease.campaign_id] += lease.rounds_left
    n_leases = Counter(lease.campaign_id for lease in in_hand)
    claims: list[Claim] = []
    chosen: dict[str, tuple[CampaignProgress, int]] = {}
    for campaign in campaigns:
        progress = campaign.progress
        campaign_id, spec = progress.campaign_id, progress.spec
        if spec.env_id != asker.environment:
            continue
        room = [batch for batch in campaign.batches if holders[(campaign_id, batch)] < spec.agents]
        if not room and not n_leases[campaign_id]:
            continue
        if room and suits(spec, asker):
            for batch in room:
                followed = ahead_of is not None and (ahead_of.campaign_id, ahead_of.batch) == (campaign_id, batch)
                waits = (campaign_id, batch) not in overdue and withheld(progress, batch, asker, others)
                if not followed and not waits:
                    chosen[campaign_id] = progress, batch
                    break
        claims.append(
            Claim(
                campaign_id=campaign_id,
                environment=spec.env_id,
                priority=progress.priority,
                owner=progress.owner,
                round_s=progress.round_s,
                rounds_in_hand=rounds_in_hand[campaign_id],
                leases=n_leases[campaign_id],
                open=campaign_id in chosen,
            )
        )
    found = shares.turn(given, claims)
    if found is None:
        return None
    progress, batch = chosen[found[0]]
    mine = [lease for lease in leases if lease.session_id == asker.session_id and lease.campaign_id == found[0]]
    return offer(progress, batch, after=max((lease.last_round for lease in mine), default=-1)), found[1]


def offer(progress: CampaignProgress, batch: int, *, after: int = -1) -> Offer:
    """Return what a lease of `batch` would be: its ops that are left, from the campaign's next round on.

    At most `lease_rounds` rounds: the batch is pending again after them, and whoever leases it prepares it anew. Its
    rounds come after round `after`: a session that holds two leases never has two rounds of one number.
    """
    left = progress.spec.max_rounds - progress.rounds.get(batch, 0)
    return Offer(
        campaign_id=progress.campaign_id,
        batch=batch,
        ops=batch_ops(progress, batch),
        first_round=max(progress.next_round, after + 1),
        rounds=min(left, progress.spec.lease_rounds or left),
    )


def resumed(progress: CampaignProgress, lease: HeldLease) -> Offer | None:
    """Return what is left of a lease whose agent asks for it again; None if its rounds are behind or its ops gone."""
    left = progress.spec.max_rounds - progress.rounds.get(lease.batch, 0)
    first = max(lease.first_round, progress.next_round)
    rounds = min(left, lease.last_round - first + 1)
    ops = batch_ops(progress, lease.batch)
    if rounds < 1 or not ops or lease.batch in progress.done:
        return None
    return Offer(campaign_id=lease.campaign_id, batch=lease.batch, ops=ops, first_round=first, rounds=rounds)


def expired(leases: Iterable[HeldLease], *, now_s: float) -> tuple[HeldLease, ...]:
    """Return the leases whose deadline has passed."""
    return tuple(lease for lease in leases if lease.deadline_s <= now_s)


def next_expiry_s(leases: Iterable[HeldLease], *, now_s: float) -> float | None:
    """Return the seconds until the first lease expires, at least 0; None if there is none."""
    deadlines = [lease.deadline_s for lease in leases]
    return max(0.0, min(deadlines) - now_s) if deadlines else None


# --- sick devices

Streak = tuple[tuple[str, OpId], ...]  # (campaign, op) that failed on an agent since it last timed anything, each once


def streak_after(streak: Streak, report: Report) -> Streak:
    """Return an agent's streak of failures after a report of its. Whatever it timed ends the streak."""
    if report.timings:
        return ()
    return tuple(dict.fromkeys((*streak, *((report.campaign_id, failure.op_id) for failure in report.failures))))


def sickness(streak: Streak, passed: Collection[tuple[str, OpId]]) -> str | None:
    """Return why a device is sick, or None: it failed so many different ops in a row that passed elsewhere.

    `passed`: those of the streak that another agent has timed. Where there is no elsewhere, nothing passed, and it is
    the ops' fault.
    """
    elsewhere = list(dict.fromkeys(op_id for campaign_id, op_id in streak if (campaign_id, op_id) in passed))
    if len(elsewhere) < SICK_OPS:
        return None
    named = ", ".join(elsewhere[:SICK_OPS])
    return f"{len(streak)} ops failed here in a row, of which {len(elsewhere)} pass on other agents: {named}"
