"""Who is next: device time shared fairly among owners, and among the campaigns of one owner. Pure functions.

Priorities are strict. Within one, the owner that was given the least device time is next, and of its campaigns the one
that was given the least: start-time fair queueing in two levels (Goyal, Vin, Cheng, Start-time Fair Queueing, SIGCOMM
1996), in seconds measured on the devices. A lease is charged when it is given, at what its campaign's rounds took so
far, and corrected by what is measured; so of those who always have work none gets less than its share minus one lease.
Who comes, or comes back, starts where the least served of the others stands (as a task that wakes does under Linux's
fair scheduler): it neither claims the time of before nor has to wait for anybody, and nobody starves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

LineKey = tuple[str, ...]  # environment and priority; and the owner, for the line of its campaigns
_UNKNOWN_S = 1.0  # what a round is charged while nothing at all was measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A campaign that wants device time of an environment: it has room for another lease, or leases in hand."""

    campaign_id: str
    environment: str
    priority: int = 0
    owner: str = ""
    round_s: float | None = None  # what a round took so far; None: not known
    rounds_in_hand: int = 0  # still to come of its leases
    leases: int = 0  # in hand
    open: bool = True  # it could be given to the agent that asks


@dataclass(frozen=True, slots=True)
class Line:
    """Some who want the same devices. `given_s`: device seconds each was given, on the line's own scale."""

    given_s: Mapping[str, float] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()  # who wanted something at the last turn
    now_s: float = 0.0  # where the least served stood

    def entered(self, in_hand_s: Mapping[str, float]) -> Line:
        """Return the line with those in it who want something now, each with the seconds of its leases in hand."""
        given = {name: s for name, s in self.given_s.items() if name in in_hand_s or s > self.now_s}
        stayed = [given[name] + s for name, s in in_hand_s.items() if name in self.waiting]
        now_s = max(self.now_s, min(stayed, default=self.now_s))
        for name in in_hand_s:
            if name not in self.waiting:
                given[name] = max(given.get(name, now_s), now_s)
        return Line(given, frozenset(in_hand_s), now_s)

    def charged(self, name: str, seconds: float) -> Line:
        """Return the line after `name` was given so many seconds more."""
        return replace(self, given_s={**self.given_s, name: self.given_s.get(name, self.now_s) + seconds})


Shares = Mapping[LineKey, Line]


def charged(shares: Shares, claim: Claim, seconds: float) -> Shares:
    """Return the shares after the claim's campaign was measured for so many seconds."""
    owners, campaigns = _owners(claim), _campaigns(claim)
    return {
        **shares,
        owners: shares.get(owners, Line()).charged(claim.owner, seconds),
        campaigns: shares.get(campaigns, Line()).charged(claim.campaign_id, seconds),
    }


def turn(shares: Shares, claims: Sequence[Claim]) -> tuple[str, Shares] | None:
    """Return the campaign that is next for an agent, and the shares as they stand then; None if no claim is open.

    All claims are of one environment, the oldest campaign first: it is next where nothing else decides.
    """
    priority = max((claim.priority for claim in claims if claim.open), default=None)
    if priority is None:
        return None
    rivals = [claim for claim in claims if claim.priority == priority]
    known = [claim.round_s for claim in rivals if claim.round_s is not None]
    usual_s = sum(known) / len(known) if known else _UNKNOWN_S
    after = dict(shares)

    def first(rivals: Sequence[Claim], key: LineKey, name_of: Callable[[Claim], str]) -> str:
        in_hand_s: dict[str, float] = defaultdict(float)
        leases: dict[str, int] = defaultdict(int)
        for claim in rivals:
            round_s = usual_s if claim.round_s is None else claim.round_s
            in_hand_s[name_of(claim)] += claim.rounds_in_hand * round_s
            leases[name_of(claim)] += claim.leases
        line = after[key] = shares.get(key, Line()).entered(in_hand_s)
        open_ = dict.fromkeys(name_of(claim) for claim in rivals if claim.open)
        return min(open_, key=lambda name: (line.given_s[name] + in_hand_s[name], leases[name]))

    owner = first(rivals, _owners(rivals[0]), lambda claim: claim.owner)
    own = [claim for claim in rivals if claim.owner == owner]
    return first(own, _campaigns(own[0]), lambda claim: claim.campaign_id), after


def _owners(claim: Claim) -> LineKey:
    return claim.environment, str(claim.priority)


def _campaigns(claim: Claim) -> LineKey:
    return claim.environment, str(claim.priority), claim.owner
