"""The agent's session: register, lease, fetch artifacts, measure round by round, report; nothing measured is lost.

One thread does everything in turn, so that while the worker times a round nothing else of the agent runs: no heartbeat,
no upload, no log line. The connection is closed before every round, because an open gRPC channel wakes its own threads
some twenty times a second even when nobody calls (seen on a 2-core cloud VM, grpcio 1.85); connecting again costs 2 ms.

A round is on the disk (spool.py) before it is sent and leaves it when the coordinator has committed it. A coordinator
that does not answer is asked again with growing pauses; meanwhile an agent that holds a lease goes on measuring.
"""

from __future__ import annotations

import logging
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from lutbuilder_agent import __version__
from lutbuilder_agent.cache import ArtifactCache
from lutbuilder_agent.errors import (
    ArtifactCorrupt,
    LutbuilderError,
    ProtocolMismatch,
    SpecError,
    StaleLease,
    StoreError,
    UnknownName,
    UnknownSession,
    Unreachable,
)
from lutbuilder_agent.fingerprint import conditions
from lutbuilder_agent.fingerprint import fingerprint as this_device
from lutbuilder_agent.records import (
    AgentHello,
    Conditions,
    Failure,
    FailureReason,
    Fingerprint,
    Lease,
    LeasedOp,
    OpId,
    Plan,
    Report,
    ReportAck,
    RuntimeReport,
    Session,
    Timing,
)
from lutbuilder_agent.spool import Spool
from lutbuilder_agent.wire.api import MAX_WAIT_S, AgentApi

log = logging.getLogger("lutbuilder_agent")

_T = TypeVar("_T")
_EXIT_WAIT_S = 0.2  # how long an agent that ends when idle waits for work before it believes there is none
_MAX_SAMPLES = 250_000  # of one report: at most 15 bytes each, positions included, on a wire that takes 4 MiB
_ROUND_BYTES = 1 << 16  # room asked of the spool before the first round, when no round's size is known yet
_LOAD_S = 0.5  # generous time to load one instance, for the silence announced before a lease's first round
_LOG_EVERY_S = 60.0


class Client(AgentApi, Protocol):
    """A connection to a coordinator: `wire.client.CoordinatorClient`, or a coordinator in this process."""

    def close(self) -> None:
        """Give up the connection and its threads."""
        ...


class RoundSeen(Protocol):
    """What a worker saw in one round (`worker.RoundResult`); times in nanoseconds."""

    @property
    def timings(self) -> tuple[Timing, ...]: ...
    @property
    def failures(self) -> tuple[Failure, ...]: ...
    @property
    def round_ns(self) -> int: ...
    @property
    def timed_ns(self) -> int: ...


class Rounds(Protocol):
    """A worker as the session uses it (`worker.Worker`)."""

    def prepare(self, ops: Sequence[tuple[LeasedOp, Path]]) -> tuple[Failure, ...]: ...
    def run_round(self, round: int) -> RoundSeen: ...
    def drop(self, op_ids: Sequence[OpId]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pauses between tries: doubling from `first_s` up to `cap_s`, each shortened at random by up to a half.

    The random part keeps a fleet from coming back in step; the cap lets a restarted coordinator find its agents in 5 s.
    """

    first_s: float = 0.25
    cap_s: float = 4.0

    def pause_s(self, tries: int, jitter: float) -> float:
        """Return the pause after `tries` failures in a row (from 1); `jitter` is uniform in [0, 1)."""
        full_s = min(self.cap_s, self.first_s * 2.0 ** min(tries - 1, 32))
        return full_s * (1.0 - 0.5 * jitter)


class StopRequested(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception, so that no handler for errors swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Link:
    """The way to the coordinator: connects when it is needed, hangs up for silence, pauses between failed tries."""

    def __init__(
        self,
        client_factory: Callable[[], Client],
        *,
        backoff: Backoff,
        give_up_after_s: float | None,
        clock_s: Callable[[], float],
        sleep: Callable[[float], None],
        jitter: Callable[[], float],
    ) -> None:
        self._client_factory = client_factory
        self._backoff = backoff
        self._give_up_after_s = give_up_after_s
        self._clock_s = clock_s
        self._sleep = sleep
        self._jitter = jitter
        self._client: Client | None = None
        self._tries = 0
        self._failing_since_s = 0.0
        self._pause_until_s = 0.0
        self._logged_s = 0.0

    def ask(self, call: Callable[[Client], _T]) -> _T:
        """Return the answer, however long the coordinator is away. Raises Unreachable only after `give_up_after_s`."""
        while True:
            pause_s = self._pause_until_s - self._clock_s()
            if self._tries and pause_s > 0:
                self._sleep(pause_s)
            try:
                return self._try(call)
            except Unreachable as error:
                away_s = self._clock_s() - self._failing_since_s
                if self._give_up_after_s is not None and away_s >= self._give_up_after_s:
                    raise Unreachable(f"{error} (gave up after {away_s:.0f} s)") from error

    def ask_once(self, call: Callable[[Client], _T]) -> _T:
        """Return the answer of one try. Raises Unreachable, at once and without a try while a pause lasts."""
        if self._tries and self._clock_s() < self._pause_until_s:
            raise Unreachable("the coordinator did not answer a moment ago")
        return self._try(call)

    def hang_up(self) -> None:
        """Close the connection and with it every thread it has; the next call connects again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _try(self, call: Callable[[Client], _T]) -> _T:
        try:
            if self._client is None:
                self._client = self._client_factory()
            answer = call(self._client)
        except Unreachable as error:
            self._failed(error)
            raise
        except StoreError as error:  # a coordinator that cannot commit is asked again later, like one that is away
            away = Unreachable(f"the coordinator cannot use its store: {error}")
            self._failed(away)
            raise away from error
        except LutbuilderError:  # an answer, if not the wanted one
            self._answered()
            raise
        self._answered()
        return answer

    def _answered(self) -> None:
        if self._tries:
            log.info("the coordinator answers again")
        self._tries = 0

    def _failed(self, error: Unreachable) -> None:
        self.hang_up()  # a channel that failed once may stay broken after the network changed
        now_s = self._clock_s()
        if self._tries == 0:
            self._failing_since_s = now_s
        self._tries += 1
        pause_s = self._backoff.pause_s(self._tries, self._jitter())
        if self._give_up_after_s is not None:
            pause_s = max(0.0, min(pause_s, self._failing_since_s + self._give_up_after_s - now_s))
        self._pause_until_s = now_s + pause_s
        if self._tries == 1 or now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("%s. Trying again, with pauses of up to %g s", error, self._backoff.cap_s)


class Agent:
    """Measures for one coordinator under one name. `run` is its whole life; it is used by one thread.

    `client_factory` is called for every connection, `worker_factory` for every lease. The spool folder and the cache
    folder belong to this agent alone. Unless given, `fingerprint` is this device's and all `runtimes` are probed.
    Clock, pauses, randomness and ids are arguments, so that tests neither wait nor guess.
    """

    def __init__(
        self,
        client_factory: Callable[[], Client],
        *,
        name: str,
        cache_dir: Path,
        spool_dir: Path,
        fingerprint: Fingerprint | None = None,
        runtimes: tuple[RuntimeReport, ...] | None = None,
        worker_factory: Callable[[Plan], Rounds] | None = None,
        exit_when_idle: bool = False,
        give_up_after_s: float | None = None,
        backoff: Backoff = Backoff(),  # frozen: every agent may share this one
        read_conditions: Callable[[], Conditions] = conditions,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._hello = AgentHello(
            name=name,
            agent_version=__version__,
            fingerprint=this_device() if fingerprint is None else fingerprint,
            runtimes=_probe_all() if runtimes is None else runtimes,
        )
        self._link = Link(
            client_factory,
            backoff=backoff,
            give_up_after_s=give_up_after_s,
            clock_s=clock_s,
            sleep=sleep,
            jitter=jitter,
        )
        self._worker_factory = worker_factory or self._real_worker
        self._not_before_ns = 0  # where the last visit ended: a session's clock does not go back, a virtual one neither
        self._first_instance = 0  # of the next worker: numbers are not used twice in a session
        self._cache = ArtifactCache(cache_dir)
        self._spool = Spool.open(spool_dir, warn=log.warning)
        self._exit_when_idle = exit_when_idle
        self._backoff = backoff
        self._read_conditions = read_conditions
        self._clock_s = clock_s
        self._sleep = sleep
        self._jitter = jitter
        self._new_id = new_id
        self._session: Session | None = None
        self._refused: set[Path] = set()  # spool files this coordinator does not want; kept on the disk
        self._backlog = False  # the spool holds a round that could not be sent yet
        self._fruitless = 0  # leases in a row that gave nothing
        self._leased = False
        self._shielded = False
        self._stop_signum: int | None = None

    def run(self) -> int:
        """Measure until the coordinator says to end (0) or a signal came (128 + its number); return the exit status.

        Raises StaleLease if a newer agent of this name took over, ProtocolMismatch with the upgrade to make,
        Unreachable after `give_up_after_s`, StoreError if the spool or the cache cannot be written, RuntimeUnavailable
        or MissingExtra if a runtime that passed its probe does not load. In every case the spool is kept and the lease
        is given back.
        """
        try:
            self._register()
            self._deliver(wait=True)
            while self._one_turn():
                pass
            return 0
        except StopRequested as stop:
            log.info("%s", stop)
            return 128 + stop.signum
        finally:
            if self._leased:
                self._give_back()
            self._link.hang_up()
            self._say_what_waits()

    def stop(self, signum: int) -> None:
        """End `run` now, or as soon as the round in hand is on the disk. To be called by a signal handler.

        Raises StopRequested in the thread that runs `run`, where Python runs signal handlers.
        """
        if self._shielded:
            self._stop_signum = signum
        else:
            raise StopRequested(signum)

    # --- one lease

    def _one_turn(self) -> bool:
        """Ask for work and do it, or wait a little; False when it is time to end."""
        wait_s = _EXIT_WAIT_S if self._exit_when_idle else MAX_WAIT_S
        answer = self._ask(lambda client, session_id: client.lease(session_id, "ok", wait_s))
        if self._backlog:
            self._deliver(wait=False)
        if isinstance(answer, Lease):
            self._leased = True
            self._fruitless = 0 if self._measure(answer) else self._fruitless + 1
            self._leased = False
            if self._fruitless:  # the same lease may come back at once: do not spin
                self._sleep(self._backoff.pause_s(self._fruitless, self._jitter()))
            return True
        if answer.shut_down or self._exit_when_idle:
            log.info("the coordinator %s: ending", "wants this agent to end" if answer.shut_down else "has no work")
            return False
        self._rest(answer.ask_again_s)
        return True

    def _rest(self, rest_s: float) -> None:
        """Wait as long as the coordinator asked, saying now and then that this agent is alive."""
        until_s = self._clock_s() + rest_s
        while (left_s := until_s - self._clock_s()) > 0:
            beat_s = self._known_session().heartbeat_s or rest_s
            self._link.hang_up()
            self._sleep(min(left_s, beat_s))
            if left_s > beat_s:
                self._ask(lambda client, session_id: client.heartbeat(session_id, "", 0.0))

    def _measure(self, lease: Lease) -> bool:
        """Measure a lease until its rounds are done, no op is left, or the coordinator stops or cancels it.

        Returns whether anything came of it, be it a failure.
        """
        last_round = lease.first_round + lease.rounds - 1
        log.info(
            "lease %s: %d ops with %s, rounds %d to %d, campaign %s",
            lease.lease_id,
            len(lease.ops),
            lease.plan.runtime,
            lease.first_round,
            last_round,
            lease.campaign_id,
        )
        in_hand = _LeaseInHand(lease, self._known_session().session_id)
        try:
            ready, failures = self._artifacts(lease)
        except UnknownName as error:
            log.warning("lease %s is void: %s", lease.lease_id, error)
            return False
        quiet_s = _first_silence_s(lease)
        if not self._announce(lease, quiet_s):
            return False
        self._link.hang_up()
        worker = self._worker_factory(lease.plan)
        try:
            fruitful = False
            failures += _prepare(worker, ready, lease.first_round)
            if failures:
                log.warning("%d of %d ops cannot be prepared, e.g. %s", len(failures), len(lease.ops), failures[0])
                fruitful = self._hand_in(in_hand, in_hand.report(self._new_id(), lease.first_round, failures))
            for number in range(lease.first_round, last_round + 1):
                worker.drop(in_hand.take_dropped())
                if in_hand.over or not in_hand.live or not self._announce(lease, quiet_s):
                    break
                started_s = self._clock_s()
                fruitful |= self._one_round(in_hand, worker, number)
                quiet_s = 2 * (self._clock_s() - started_s)
            return fruitful
        finally:
            worker.close()

    def _one_round(self, in_hand: _LeaseInHand, worker: Rounds, number: int) -> bool:
        """Measure one round in silence and hand it in; return whether it is safe."""
        self._spool.ensure_room(in_hand.round_bytes)
        self._link.hang_up()
        before = self._read_conditions()
        seen = worker.run_round(number)
        for timing in seen.timings:
            self._not_before_ns = max(self._not_before_ns, timing.start_ns + sum(timing.samples_ns))
            self._first_instance = max(self._first_instance, timing.instance + 1)
        report = replace(
            in_hand.report(self._new_id(), number, seen.failures),
            timings=seen.timings,
            before=before,
            after=self._read_conditions(),
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

    def _real_worker(self, plan: Plan) -> Rounds:
        from lutbuilder_agent.worker import Worker

        if ("session", "own") in plan.options:  # of the simulated device: nothing else tells it whose worker it is
            own = {"session": f"{self._hello.name}-{self._known_session().epoch}", "clock_ns": str(self._not_before_ns)}
            plan = replace(plan, options=tuple(sorted({**dict(plan.options), **own}.items())))
        return Worker(plan, not_before_ns=self._not_before_ns, first_instance=self._first_instance)

    def _artifacts(self, lease: Lease) -> tuple[list[tuple[LeasedOp, Path]], tuple[Failure, ...]]:
        """Return each op with a file of its verified bytes, and a Failure for every op whose bytes are wrong.

        Raises UnknownName if the coordinator no longer knows an artifact: the lease is void. StoreError if the cache
        folder cannot be written.
        """
        ready: list[tuple[LeasedOp, Path]] = []
        failures: list[Failure] = []
        told_s = self._clock_s()
        try:
            for op in lease.ops:
                if self._clock_s() - told_s > lease.ttl_s / 3:
                    self._announce(lease, 0.0)
                    told_s = self._clock_s()
                try:
                    ready.append((op, self._artifact(op)))
                except ArtifactCorrupt as error:
                    log.error("op %s: %s", op.op_id, error)
                    failures.append(_failure(op, lease.first_round, "bad_artifact", str(error)))
            self._cache.trim(keep={op.artifact.sha256 for op in lease.ops})
        except OSError as error:
            raise StoreError(
                f"cannot keep artifacts in {self._cache.folder}: {error.strerror or error}. Free space or make it "
                "writable, or run with --cache-dir FOLDER"
            ) from error
        return ready, tuple(failures)

    def _artifact(self, op: LeasedOp) -> Path:
        return self._ask(
            lambda client, session_id: self._cache.get(
                op.artifact, lambda offset: client.fetch(session_id, op.artifact.sha256, offset)
            )
        )

    def _announce(self, lease: Lease, quiet_s: float) -> bool:
        """Say how long this agent will be silent, if its lease might run out meanwhile; False if it was cancelled.

        Reports extend a lease by themselves. A coordinator that cannot be reached changes nothing: measuring goes on.
        """
        if 0.0 < quiet_s <= lease.ttl_s / 2:
            return True
        session_id = self._known_session().session_id
        try:
            cancelled = self._link.ask_once(lambda client: client.heartbeat(session_id, lease.lease_id, quiet_s))
        except Unreachable:
            return True
        except UnknownSession:
            self._register()
            return True
        if cancelled:
            log.info("lease %s was cancelled", lease.lease_id)
        return not cancelled

    # --- reports

    def _hand_in(self, in_hand: _LeaseInHand, report: Report) -> bool:
        """Put a report on the disk, send it and obey the answer; return whether it is safe, here or there.

        Raises StoreError if the spool cannot be written, after sending the report straight from memory.
        """
        parts = tuple(split_report(report, max_samples=_MAX_SAMPLES, new_id=self._new_id))
        paths: list[Path] = []
        try:
            with self._shield():
                for part in parts:
                    paths.append(self._spool.put(part))
        except StoreError as error:
            self._send_from_memory(parts[len(paths) :], error)
            raise
        in_hand.lose(report.failures)
        in_hand.round_bytes = max(in_hand.round_bytes, 2 * sum(path.stat().st_size for path in paths))
        if self._backlog:
            acked = self._deliver(wait=False)
        else:
            offered = [(part, self._offer(path, part, wait=False)) for part, path in zip(parts, paths, strict=True)]
            acked = [(part, ack) for part, ack in offered if ack is not None]
        for part, ack in acked:
            in_hand.obey(part, ack)
        if self._refused.intersection(paths):
            in_hand.over = True
            return False
        return True

    def _send_from_memory(self, parts: Sequence[Report], spool_error: StoreError) -> None:
        """Send what the disk did not take, however long it takes. Raises StoreError saying what is lost."""
        log.error("%s. Sending the round before giving up", spool_error)
        try:
            for part in parts:
                self._link.ask(lambda client: client.report(part))  # noqa: B023  # called before the next turn
        except (LutbuilderError, StopRequested) as error:
            raise StoreError(
                f"{spool_error}. Round {parts[0].round} could not be sent either ({error}) and is lost"
            ) from spool_error

    def _deliver(self, *, wait: bool) -> list[tuple[Report, ReportAck]]:
        """Offer what the spool holds, oldest first; return what was acknowledged. Without `wait`, one try each."""
        acked: list[tuple[Report, ReportAck]] = []
        self._backlog = False
        for path in self._spool.paths():
            report = None if path in self._refused else self._spool.read(path)
            if report is None:
                continue
            ack = self._offer(path, report, wait=wait)
            if ack is not None:
                acked.append((report, ack))
            elif self._backlog:
                break
        return acked

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
            self._backlog = True
            return None
        except (StaleLease, ProtocolMismatch):
            raise
        except LutbuilderError as error:
            in_hand = self._session is not None and report.session_id == self._session.session_id
            if isinstance(error, UnknownSession) and in_hand and again:
                self._register()
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

    def _give_back(self) -> None:
        """Hand back the lease, so that another agent need not wait until it runs out. One try: it does run out."""
        session_id = self._known_session().session_id
        try:
            self._link.ask_once(lambda client: client.lease(session_id, "draining", 0.0))
        except (LutbuilderError, StopRequested) as error:
            log.info("the lease runs out by itself (%s)", error)

    def _say_what_waits(self) -> None:
        try:
            waiting = len(self._spool.paths())
        except StoreError as error:  # the error that ends `run` says more
            log.warning("%s", error)
            return
        if waiting:
            log.warning("%d reports wait in %s and are offered at the next start", waiting, self._spool.folder)

    # --- the session

    def _register(self) -> Session:
        self._session = self._link.ask(lambda client: client.register(self._hello))
        log.info("registered as %s, session %s", self._hello.name, self._session.session_id)
        return self._session

    def _known_session(self) -> Session:
        return self._session or self._register()

    def _ask(self, call: Callable[[Client, str], _T]) -> _T:
        """Return the coordinator's answer, however long it takes; registers again if it does not know the session."""
        unknown = 0
        while True:
            session_id = self._known_session().session_id
            try:
                return self._link.ask(lambda client: call(client, session_id))  # noqa: B023  # called before the next turn
            except UnknownSession:
                unknown += 1
                if unknown > 1:
                    self._sleep(self._backoff.pause_s(unknown, self._jitter()))
                self._register()
                self._deliver(wait=False)

    @contextmanager
    def _shield(self) -> Iterator[None]:
        """Hold back a signal until the data in hand is on the disk."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._stop_signum is not None:
            raise StopRequested(self._stop_signum)


class _LeaseInHand:
    """What changes while a lease is measured."""

    def __init__(self, lease: Lease, session_id: str) -> None:
        self.lease = lease
        self.live = {op.op_id for op in lease.ops}
        self.over = False
        self.round_bytes = _ROUND_BYTES
        self._session_id = session_id
        self._dropped: list[OpId] = []

    def report(self, report_id: str, round: int, failures: tuple[Failure, ...]) -> Report:
        """Return a report of this lease, still without timings."""
        return Report(
            report_id=report_id,
            session_id=self._session_id,
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


def _first_silence_s(lease: Lease) -> float:
    """Return how long loading, or a lease's first round, may take at most: no time of its ops is known yet."""
    instances = len(lease.ops) * lease.plan.instances
    blocks_s = 4 * len(lease.ops) * lease.plan.min_block_ns / 1e9
    return instances * _LOAD_S + blocks_s + lease.plan.op_timeout_ns / 1e9


def _prepare(worker: Rounds, ready: Sequence[tuple[LeasedOp, Path]], round: int) -> tuple[Failure, ...]:
    """Load the ops and return those that failed: all of them if the plan itself makes no sense to the runtime.

    They count for `round`, the lease's first: an op that fails in a second lease has failed a second time.
    """
    try:
        return tuple(replace(failure, round=round) for failure in worker.prepare(ready))
    except SpecError as error:
        return tuple(_failure(op, round, "unsupported", str(error)) for op, _ in ready)


def _failure(op: LeasedOp, round: int, reason: FailureReason, detail: str) -> Failure:
    return Failure(op_id=op.op_id, round=round, reason=reason, detail=detail[:1000])


def _probe_all() -> tuple[RuntimeReport, ...]:
    from lutbuilder_agent.runtimes import RUNTIMES
    from lutbuilder_agent.runtimes.probe import probe_all

    return probe_all(tuple(RUNTIMES))
