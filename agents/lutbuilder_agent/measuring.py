"""Measuring a lease round by round, and after it the one that was granted to follow it.

While the worker times a round nothing else of the agent runs: no heartbeat, no upload, no log line. The connection is
closed before every round, because an open gRPC channel wakes its own threads some twenty times a second even when
nobody calls (seen on a 2-core cloud VM, grpcio 1.85); connecting again costs 2 ms.

Before the last round of a lease the agent asks for the next one, fetches its artifacts, and has a child process wait in
silence. When the last visit is over that child begins to load at once, and the round is handed in meanwhile: between
two leases the device waits neither for the disk nor for the network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from lutbuilder_agent.cache import ArtifactCache
from lutbuilder_agent.delivery import Delivery, expected_bytes
from lutbuilder_agent.errors import (
    ArtifactCorrupt,
    SpecError,
    StoreError,
    UnknownName,
    UnknownSession,
    Unreachable,
)
from lutbuilder_agent.link import Link, Registration
from lutbuilder_agent.records import (
    ArtifactRef,
    Conditions,
    Failure,
    FailureReason,
    Lease,
    LeasedOp,
    OpId,
    Report,
    ReportAck,
)
from lutbuilder_agent.rounds import Reached, Rounds, Workers
from lutbuilder_agent.stopping import Stopper
from lutbuilder_agent.wire.api import Idle
from lutbuilder_agent.wire.protocol import LEASES_AHEAD

log = logging.getLogger("lutbuilder_agent")

_LOAD_S = 0.5  # generous time to load one instance, for the silence announced before a lease's first round


class InHand:
    """A lease with its artifacts on the disk, and what changes while it is measured."""

    def __init__(
        self, lease: Lease, session_id: str, ready: Sequence[tuple[LeasedOp, Path]], failures: tuple[Failure, ...]
    ) -> None:
        self.lease = lease
        self.session_id = session_id
        self.ready = ready
        self.failures = failures  # of ops whose artifacts are wrong
        self.worker: Rounds | None = None  # from when it has begun to load
        self.is_ahead = False  # granted while another was measured, and nothing was heard of it since
        self.live = {op.op_id for op in lease.ops}
        self.over = False
        self._dropped: list[OpId] = []

    def report(self, report_id: str, round: int, failures: tuple[Failure, ...]) -> Report:
        """Return a report of this lease, still without timings."""
        return Report(
            report_id=report_id,
            session_id=self.session_id,
            lease_id=self.lease.lease_id,
            lease_epoch=self.lease.epoch,
            campaign_id=self.lease.campaign_id,
            round=round,
            timings=(),
            failures=failures,
        )

    def lose(self, failures: Sequence[Failure]) -> None:
        """Take ops that failed out of the rotation; the worker has done so already."""
        self.live.difference_update(failure.op_id for failure in failures)

    def obey(self, report: Report, ack: ReportAck) -> None:
        """Take in an answer; one about another lease says nothing about this one."""
        if report.lease_id != self.lease.lease_id or report.lease_epoch != self.lease.epoch:
            return
        self.over = self.over or ack.stop
        dropped = [op_id for op_id in ack.drop if op_id in self.live]
        self.live.difference_update(dropped)
        self._dropped += dropped

    def take_dropped(self) -> tuple[OpId, ...]:
        """Return the ops dropped since the last call."""
        dropped, self._dropped = tuple(self._dropped), []
        return dropped

    def close(self) -> None:
        """End the worker, if there is one."""
        if self.worker is not None:
            self.worker.close()


class Measuring:
    """Measures leases with one worker after the other. Used by one thread."""

    def __init__(
        self,
        *,
        link: Link,
        registration: Registration,
        delivery: Delivery,
        cache: ArtifactCache,
        workers: Workers,
        stopper: Stopper,
        read_conditions: Callable[[], Conditions],
        clock_s: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._link = link
        self._registration = registration
        self._delivery = delivery
        self._cache = cache
        self._workers = workers
        self._stopper = stopper
        self._read_conditions = read_conditions
        self._clock_s = clock_s
        self._new_id = new_id
        self._reached = Reached()
        self._last_round: dict[tuple[str, str], int] = {}  # by session and campaign: no round is measured twice
        self._next: InHand | None = None

    def run(self, lease: Lease) -> bool:
        """Measure a lease, and those granted to follow it, until there is none.

        A lease ends when its rounds are done, no op is left, the coordinator stops or cancels it, or the spool has no
        room for another round. Returns whether anything came of the last one, be it a failure.
        """
        try:
            self._next = self._fetched(lease, wait=True)
            fruitful = True
            while self._next is not None:
                in_hand, self._next = self._next, None
                try:
                    fruitful = self._one_lease(in_hand)
                finally:
                    in_hand.close()
            return fruitful
        except UnknownName as error:
            log.warning("lease %s is void: %s", lease.lease_id, error)
            return False
        finally:
            if self._next is not None:
                self._next.close()
                self._next = None
            self._workers.close()

    def _one_lease(self, in_hand: InHand) -> bool:
        lease = in_hand.lease
        last = lease.first_round + lease.rounds - 1
        first = max(lease.first_round, 1 + self._last_round.get((in_hand.session_id, lease.campaign_id), -1))
        if first > last:
            log.info("lease %s: rounds %d to %d were measured already", lease.lease_id, lease.first_round, last)
            return False
        log.info(
            "lease %s: %d ops with %s, rounds %d to %d, campaign %s",
            lease.lease_id,
            len(lease.ops),
            lease.plan.runtime,
            first,
            last,
            lease.campaign_id,
        )
        quiet_s = _first_silence_s(lease)
        if not self._announce(in_hand, quiet_s):
            return False
        self._link.hang_up()
        failures = (*in_hand.failures, *self._load(in_hand, first))
        fruitful = False
        if failures:
            log.warning("%d of %d ops cannot be prepared, e.g. %s", len(failures), len(lease.ops), failures[0])
            fruitful = self._hand_in(in_hand, in_hand.report(self._new_id(), first, failures))
        for number in range(first, last + 1):
            worker = in_hand.worker
            if worker is None or in_hand.over or not in_hand.live or self._is_full(in_hand):
                break
            worker.drop(in_hand.take_dropped())
            if number == last:
                self._next = self._look_ahead(in_hand)
            if not self._announce(in_hand, quiet_s):
                break
            started_s = self._clock_s()
            fruitful |= self._one_round(in_hand, worker, number)
            quiet_s = 2 * (self._clock_s() - started_s)
        return fruitful

    def _load(self, in_hand: InHand, first_round: int) -> tuple[Failure, ...]:
        """Load the ops and return those that failed: all of them if the plan itself makes no sense to the runtime.

        They count for the lease's first round: an op that fails in a second lease has failed a second time.
        """
        if not in_hand.ready:
            return ()
        worker = in_hand.worker or self._begin(in_hand)
        try:
            return tuple(replace(failure, round=first_round) for failure in worker.loaded())
        except SpecError as error:
            return tuple(_failure(op, first_round, "unsupported", str(error)) for op, _ in in_hand.ready)

    def _begin(self, in_hand: InHand) -> Rounds:
        session = self._registration.current()
        name = f"{self._registration.hello.name}-{session.epoch}"
        in_hand.worker = worker = self._workers.start(in_hand.lease.plan, self._reached, session=name)
        worker.begin(in_hand.ready)
        return worker

    def _one_round(self, in_hand: InHand, worker: Rounds, number: int) -> bool:
        """Measure one round in silence and hand it in; return whether it is safe."""
        follower = self._next if self._next is not None and self._next.ready else None
        self._link.hang_up()
        if follower is not None:
            self._workers.make_ready()
        after: Conditions | None = None

        def hand_over(reached: Reached) -> None:
            nonlocal after
            after = self._read_conditions()
            self._reached = reached
            if follower is not None:
                self._let_follow(worker, follower)

        with self._stopper.round():
            before = self._read_conditions()
            seen = worker.run_round(number, at_end=hand_over)
            after = after or self._read_conditions()
            self._reached = worker.reached
            self._last_round[in_hand.session_id, in_hand.lease.campaign_id] = number
            report = replace(
                in_hand.report(self._new_id(), number, seen.failures),
                timings=seen.timings,
                before=before,
                after=after,
                round_ns=seen.round_ns,
                timed_ns=seen.timed_ns,
            )
            safe = self._hand_in(in_hand, report)
            log.info(
                "round %d: %d visits in %.2f s, %d failures, %d ops go on",
                number,
                len(seen.timings),
                seen.round_ns / 1e9,
                len(seen.failures),
                0 if in_hand.over else len(in_hand.live),
            )
        return safe

    def _let_follow(self, worker: Rounds, follower: InHand) -> None:
        """Have the next lease's worker begin to load, now that the device is free."""
        worker.retire()
        try:
            self._begin(follower)
        except OSError as error:  # no process could be started: the round in hand matters more, and it is tried again
            log.warning("the next worker did not start at once: %s", error)
            follower.close()
            follower.worker = None

    def _is_full(self, in_hand: InHand) -> bool:
        lease = in_hand.lease
        full = self._delivery.lacks_room(expected_bytes(lease.plan, len(lease.ops)))
        if full:
            log.error("%s. Until there is room nothing is measured, and nothing is lost", full)
        return bool(full)

    def _hand_in(self, in_hand: InHand, report: Report) -> bool:
        """Hand a report in and obey the answers; return whether the coordinator has it or may still take it."""
        in_hand.lose(report.failures)
        handed = self._delivery.hand_in(report)
        for part, ack in handed.acks:
            in_hand.obey(part, ack)
        in_hand.over = in_hand.over or handed.refused
        return not handed.refused

    # --- before a lease is measured

    def _look_ahead(self, in_hand: InHand) -> InHand | None:
        """Ask for the lease that is to follow, with one try, and fetch its artifacts; None if there is none."""
        lease = in_hand.lease
        if self._registration.current().protocol < LEASES_AHEAD:
            return None
        try:
            answer = self._registration.ask_once(
                lambda client, session_id: client.lease(session_id, "ok", 0.0, ahead_of=lease.lease_id)
            )
            if isinstance(answer, Idle) or answer.lease_id == lease.lease_id:
                return None
            follower = self._fetched(answer, wait=False, besides=[op.artifact for op in lease.ops])
            follower.is_ahead = True
            return follower
        except (Unreachable, UnknownSession, UnknownName, StoreError) as error:  # it comes again when its turn has come
            log.info("nothing is made ready for the next lease: %s", error)
            return None

    def _fetched(self, lease: Lease, *, wait: bool, besides: Collection[ArtifactRef] = ()) -> InHand:
        """Return the lease with a file of verified bytes for each op, and a Failure for every op whose bytes are wrong.

        Without `wait`, one try for each. Raises UnknownName if the coordinator no longer knows an artifact: the lease
        is void. StoreError if the cache folder cannot be written, or is allowed less than this lease needs.
        """
        ask = self._registration.ask if wait else self._registration.ask_once
        ready: list[tuple[LeasedOp, Path]] = []
        failures: list[Failure] = []
        in_hand = InHand(lease, self._registration.current().session_id, ready, ())
        told_s = self._clock_s()
        try:
            too_small = self._cache.make_room([op.artifact for op in lease.ops], besides=besides)
            if too_small:
                raise StoreError(f"lease {lease.lease_id} cannot be measured here: {too_small}")
            for op in lease.ops:
                if self._clock_s() - told_s > lease.ttl_s / 3:
                    self._announce(in_hand, 0.0)
                    told_s = self._clock_s()
                try:
                    path = ask(
                        lambda client, session_id: self._cache.get(
                            op.artifact,  # noqa: B023  # called before the next turn
                            lambda offset: client.fetch(session_id, op.artifact.sha256, offset),  # noqa: B023  # the same
                        )
                    )
                    ready.append((op, path))
                except ArtifactCorrupt as error:
                    log.error("op %s: %s", op.op_id, error)
                    failures.append(_failure(op, lease.first_round, "bad_artifact", str(error)))
        except OSError as error:
            raise StoreError(
                f"cannot keep artifacts in {self._cache.folder}: {error.strerror or error}. Free space or make it "
                "writable, or run with --cache-dir FOLDER"
            ) from error
        in_hand.failures = tuple(failures)
        return in_hand

    def _announce(self, in_hand: InHand, quiet_s: float) -> bool:
        """Say how long this agent will be silent, if its lease might run out meanwhile; False if it was cancelled.

        Reports extend a lease by themselves. A coordinator that cannot be reached changes nothing: measuring goes on.
        A lease that was granted ahead may have been cancelled before it began: about that one it always asks.
        """
        lease = in_hand.lease
        if 0.0 < quiet_s <= lease.ttl_s / 2 and not in_hand.is_ahead:
            return True
        in_hand.is_ahead = False
        try:
            cancelled = self._registration.ask_once(
                lambda client, session_id: client.heartbeat(session_id, lease.lease_id, quiet_s)
            )
        except Unreachable:
            return True
        except UnknownSession:
            self._registration.begin()
            return True
        if cancelled:
            log.info("lease %s was cancelled", lease.lease_id)
        return not cancelled


def _first_silence_s(lease: Lease) -> float:
    """Return how long loading, or a lease's first round, may take at most: no time of its ops is known yet."""
    instances = len(lease.ops) * lease.plan.instances
    blocks_s = 4 * len(lease.ops) * lease.plan.min_block_ns / 1e9
    return instances * _LOAD_S + blocks_s + lease.plan.op_timeout_ns / 1e9


def _failure(op: LeasedOp, round: int, reason: FailureReason, detail: str) -> Failure:
    return Failure(op_id=op.op_id, round=round, reason=reason, detail=detail[:1000])
