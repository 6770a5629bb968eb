"""What a coordinator tells its owner, and the functions its owner gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer
from lutbuilder.coordinator.store import CampaignState
from lutbuilder_agent.records import ArtifactRef, FailureReason, Format, Report

EventKind = Literal["registered", "leased", "lost", "reported", "finished", "quarantined"]
Decide = Callable[[str, Report], Decision]
Narrow = Callable[[HeldLease, Offer], Offer]


class Artifacts(Protocol):
    """Where artifacts come from: `ArtifactShelf`, or a fake of two functions."""

    def ref(self, op: CampaignOp, format: Format) -> ArtifactRef: ...
    def fetch(self, sha256: str) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a progress line or a metric may want to show. Fields that mean nothing for its kind are empty."""

    kind: EventKind
    agent: str = ""
    campaign_id: str = ""
    round: int | None = None
    n_timings: int = 0  # new ones
    failures: tuple[FailureReason, ...] = ()
    late: bool = False
    commit_s: float = 0.0  # what committing the report took
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A campaign when `wait` returned; hand `serial` back to wait for what comes after."""

    serial: int
    campaign: CampaignState
