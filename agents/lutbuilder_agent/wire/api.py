"""The calls an agent may make of a coordinator, as functions of records: one contract, in process or over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from lutbuilder_agent.errors import SpecError
from lutbuilder_agent.records import AgentHello, DeviceState, Lease, Report, ReportAck, Session

CHUNK_BYTES = 256 * 1024  # an artifact's chunk
CONTROL_BYTES = 256 * 1024  # every other message, except
REPORT_BYTES = 4 * 1024 * 1024  # reports
FRAME_BYTES = 1024  # what a chunk's own message adds to it, at most
MAX_WAIT_S = 30.0  # a lease call waits no longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """There is no lease now: ask again in `ask_again_s` seconds, or, with `shut_down`, end."""

    ask_again_s: float
    shut_down: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ask_again_s < 1e6:
            raise SpecError(f"ask_again_s must be from 0 to 1e6 seconds, got {self.ask_again_s}")


LeaseAnswer = Lease | Idle


class AgentApi(Protocol):
    """What every deployment of a coordinator keeps, in process or remote. Safe from any thread; calls may be repeated.

    UnknownSession: this coordinator's store has never seen the session; register again. StaleLease: a newer agent of
    the same name has registered; do not register again, end. Unreachable (remote only): nobody answers; try later.
    """

    def register(self, hello: AgentHello) -> Session:
        """Begin a session; an older session of the same agent name is fenced and its lease handed over.

        Raises ProtocolMismatch with the upgrade to make.
        """
        ...

    def lease(self, session_id: str, state: DeviceState, wait_s: float, *, ahead_of: str = "") -> LeaseAnswer:
        """Return work, waiting up to `wait_s` (at most 30 s) for it. A session that holds a lease is given it again.

        With `ahead_of`, the lease the session works on, the answer is another one to follow it, or Idle. A session
        holds two at most; whatever extends or ends the session's right to the first does so to the second.
        A state other than "ok" gives the session's leases back and returns Idle. Raises UnknownSession, StaleLease.
        """
        ...

    def fetch(self, session_id: str, sha256: str, offset: int) -> Iterator[bytes]:
        """Yield an artifact's bytes from `offset` on, in chunks of at most 256 KiB; whoever asks verifies the sha256.

        Raises UnknownSession, UnknownName for an artifact that no lease of this coordinator named: lease again.
        """
        ...

    def report(self, report: Report) -> ReportAck:
        """Hand in a round; returns only after it is committed. The same report again is acknowledged again.

        A late report (lease expired, cancelled or another's by now) is kept as extra visits and answered with stop. A
        spooled report keeps the session and lease it was made in. Raises UnknownSession or UnknownName (campaign) if
        this coordinator's store never saw them: such a report belongs elsewhere, and offering it again is no use.
        """
        ...

    def heartbeat(self, session_id: str, lease_id: str, quiet_s: float) -> bool:
        """Extend the session's leases by their ttl plus `quiet_s` seconds of announced silence; True: this one is over.

        `lease_id` is "" while idle. Raises UnknownSession, StaleLease.
        """
        ...
