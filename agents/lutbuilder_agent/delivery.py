"""Delivery: every round goes to the disk first, and stays there until the coordinator has committed it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lutbuilder_agent.errors import (
    LutbuilderError,
    NotAllowed,
    NotAuthenticated,
    ProtocolMismatch,
    StaleLease,
    StoreError,
    UnknownSession,
    Unreachable,
)
from lutbuilder_agent.link import Link, Registration
from lutbuilder_agent.records import Plan, Report, ReportAck, Timing
from lutbuilder_agent.spool import Spool
from lutbuilder_agent.stopping import Stopper, StopRequested

log = logging.getLogger("lutbuilder_agent")

_MAX_SAMPLES = 250_000  # of one report: at most 15 bytes each, positions included, on a wire that takes 4 MiB
_LEAST_ROOM_BYTES = 1 << 16
_MOST_ROOM_BYTES = 4 << 20  # asked for on a guess: rounds are seldom larger, and one that was is remembered
_SAMPLE_BYTES = 10
_VISIT_BYTES = 200
_ENDS_ALL = (StaleLease, ProtocolMismatch, NotAuthenticated, NotAllowed)  # no report's fault


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedIn:
    """What became of a round: the answers that came at once, and whether the coordinator refused it for good."""

    acks: tuple[tuple[Report, ReportAck], ...] = ()
    refused: bool = False


class Delivery:
    """Takes reports to the disk and from there to the coordinator, oldest first. Used by one thread."""

    def __init__(
        self, spool: Spool, link: Link, registration: Registration, stopper: Stopper, *, new_id: Callable[[], str]
    ) -> None:
        self._spool = spool
        self._link = link
        self._registration = registration
        self._stopper = stopper
        self._new_id = new_id
        self._refused: set[Path] = set()  # spool files this coordinator does not want; kept on the disk
        self._room_bytes = _LEAST_ROOM_BYTES
        self.backlog = False  # the spool holds a round that could not be sent yet

    def lacks_room(self, expected_bytes: int = 0) -> str:
        """Set room aside for the next round; return "" if there is room, else what is full and what would help.

        Rounds are expected to be twice as large as the largest so far, or `expected_bytes`. Raises StoreError if the
        spool cannot be used.
        """
        return self._spool.reserve(max(self._room_bytes, expected_bytes))

    def hand_in(self, report: Report) -> HandedIn:
        """Put a report on the disk and send it, with one try; it is safe, here or there, when this returns.

        Raises StoreError if the spool cannot be written, after sending the report straight from memory; a disk that is
        merely full raises nothing then, and `lacks_room` says so afterwards.
        """
        parts = tuple(split_report(report, max_samples=_MAX_SAMPLES, new_id=self._new_id))
        paths: list[Path] = []
        try:
            with self._stopper.shield():
                for part in parts:
                    paths.append(self._spool.put(part))
        except StoreError as error:
            acks = self._send_from_memory(parts[len(paths) :], error)
            if not self.lacks_room():
                raise
            return HandedIn(acks=acks)
        self._room_bytes = max(self._room_bytes, 2 * sum(path.stat().st_size for path in paths))
        if self.backlog:
            acked = self.deliver(wait=False)
        else:
            offered = [(part, self._offer(path, part, wait=False)) for part, path in zip(parts, paths, strict=True)]
            acked = [(part, ack) for part, ack in offered if ack is not None]
        return HandedIn(acks=tuple(acked), refused=not self._refused.isdisjoint(paths))

    def deliver(self, *, wait: bool) -> list[tuple[Report, ReportAck]]:
        """Offer what the spool holds, oldest first; return what was acknowledged. Without `wait`, one try each."""
        acked: list[tuple[Report, ReportAck]] = []
        self.backlog = False
        for path in self._spool.paths():
            report = None if path in self._refused else self._spool.read(path)
            if report is None:
                continue
            ack = self._offer(path, report, wait=wait)
            if ack is not None:
                acked.append((report, ack))
            elif self.backlog:
                break
        return acked

    def say_what_waits(self) -> None:
        """Log how many reports stay behind in the spool."""
        try:
            waiting = len(self._spool.paths())
        except StoreError as error:  # the error that ends `run` says more
            log.warning("%s", error)
            return
        if waiting:
            log.warning("%d reports wait in %s and are offered at the next start", waiting, self._spool.folder)

    def _send_from_memory(
        self, parts: Sequence[Report], spool_error: StoreError
    ) -> tuple[tuple[Report, ReportAck], ...]:
        """Send what the disk did not take, however long it takes. Raises StoreError saying what is lost."""
        log.error("%s. Sending the round before anything else", spool_error)
        acks: list[tuple[Report, ReportAck]] = []
        try:
            for part in parts:
                acks.append((part, self._link.ask(lambda client: client.report(part))))  # noqa: B023  # called at once
        except (LutbuilderError, StopRequested) as error:
            raise StoreError(
                f"{spool_error}. Round {parts[0].round} could not be sent either ({error}) and is lost"
            ) from spool_error
        return tuple(acks)

    def _offer(self, path: Path, report: Report, *, wait: bool, again: bool = True) -> ReportAck | None:
        """Send one spooled report; None if it stays in the spool: nobody answers (a backlog), or it is refused.

        UnknownSession about the session in hand means that the coordinator lost it: register, and offer once more.
        About an older session it means that the report belongs to another coordinator.
        """
        try:
            ack = (self._link.ask if wait else self._link.ask_once)(lambda client: client.report(report))
        except Unreachable:
            if wait:
                raise
            self.backlog = True
            return None
        except _ENDS_ALL:
            raise
        except LutbuilderError as error:
            in_hand = self._registration.is_current(report.session_id)
            if isinstance(error, UnknownSession) and in_hand and again:
                self._registration.begin()
                return self._offer(path, report, wait=wait, again=False)
            self._refused.add(path)
            log.warning(
                "the coordinator does not take a report (%s: %s). It stays in %s: run the agent against the one it was "
                "measured for",
                error.code,
                error,
                path,
            )
            return None
        self._spool.remove(path)
        return ack


def expected_bytes(plan: Plan, n_ops: int) -> int:
    """Return how much room a lease's first round may need on the disk, before the size of any is known."""
    calls = min(plan.max_calls, 1 << 20) + plan.warmup_calls
    return min(_MOST_ROOM_BYTES, n_ops * (_VISIT_BYTES + _SAMPLE_BYTES * calls))


def split_report(report: Report, *, max_samples: int, new_id: Callable[[], str]) -> Iterator[Report]:
    """Yield `report`, in parts of at most `max_samples` samples if it is larger; a visit is never cut.

    The first part carries the failures and the round's times, so that sums over parts are right.
    """
    parts: list[list[Timing]] = [[]]
    samples = 0
    for timing in report.timings:
        count = len(timing.samples_ns) + len(timing.warmup_ns)
        if parts[-1] and samples + count > max_samples:
            parts.append([])
            samples = 0
        parts[-1].append(timing)
        samples += count
    yield replace(report, timings=tuple(parts[0]))
    for part in parts[1:]:
        yield replace(report, report_id=new_id(), timings=tuple(part), failures=(), round_ns=0, timed_ns=0)
