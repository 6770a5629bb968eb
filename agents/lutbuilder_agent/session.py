"""The agent's session: register, lease, measure, report, again; nothing measured is lost.

One thread does everything in turn, so that while the worker times a round nothing else of the agent runs (measuring.py
says how silent it is). A round is on the disk before it is sent and leaves it when the coordinator has committed it
(delivery.py, spool.py). A coordinator that does not answer is asked again with growing pauses (link.py); meanwhile an
agent that holds a lease goes on measuring.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from lutbuilder_agent import __version__
from lutbuilder_agent.cache import DEFAULT_QUOTA_BYTES, ArtifactCache
from lutbuilder_agent.delivery import Delivery
from lutbuilder_agent.errors import LutbuilderError, StoreError
from lutbuilder_agent.fingerprint import conditions
from lutbuilder_agent.fingerprint import fingerprint as this_device
from lutbuilder_agent.link import Backoff, Client, Link, Patience, Registration
from lutbuilder_agent.measuring import Measuring
from lutbuilder_agent.records import AgentHello, Conditions, Fingerprint, Lease, Plan, RuntimeReport
from lutbuilder_agent.rounds import RealWorkers, Rounds, WorkersFrom
from lutbuilder_agent.spool import DEFAULT_MAX_BYTES, Spool
from lutbuilder_agent.stopping import Stopper, StopRequested
from lutbuilder_agent.wire.api import MAX_WAIT_S

log = logging.getLogger("lutbuilder_agent")

_EXIT_WAIT_S = 0.2  # how long an agent that ends when idle waits for work before it believes there is none
_LOG_EVERY_S = 60.0
_BACKOFF = Backoff()  # frozen: every agent may share this one


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
        cache_quota_bytes: int = DEFAULT_QUOTA_BYTES,
        spool_quota_bytes: int = DEFAULT_MAX_BYTES,
        clock_domain: str = "",
        fingerprint: Fingerprint | None = None,
        runtimes: tuple[RuntimeReport, ...] | None = None,
        worker_factory: Callable[[Plan], Rounds] | None = None,
        exit_when_idle: bool = False,
        give_up_after_s: float | None = None,
        backoff: Backoff = _BACKOFF,
        read_conditions: Callable[[], Conditions] = conditions,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        hello = AgentHello(
            name=name,
            agent_version=__version__,
            fingerprint=this_device() if fingerprint is None else fingerprint,
            runtimes=_probe_all() if runtimes is None else runtimes,
            clock_domain=clock_domain,
        )
        self._patience = Patience(
            backoff=backoff, give_up_after_s=give_up_after_s, clock_s=clock_s, sleep=sleep, jitter=jitter
        )
        self._exit_when_idle = exit_when_idle
        self._stopper = Stopper()
        self._link = Link(client_factory, self._patience)
        self._registration = Registration(self._link, hello, self._patience)
        spool = Spool.open(spool_dir, warn=log.warning, max_bytes=spool_quota_bytes)
        self._delivery = Delivery(spool, self._link, self._registration, self._stopper, new_id=new_id)
        self._registration.on_renewal = lambda: self._delivery.deliver(wait=False)
        self._measuring = Measuring(
            link=self._link,
            registration=self._registration,
            delivery=self._delivery,
            cache=ArtifactCache(cache_dir, quota_bytes=cache_quota_bytes),
            workers=RealWorkers() if worker_factory is None else WorkersFrom(worker_factory),
            stopper=self._stopper,
            read_conditions=read_conditions,
            clock_s=clock_s,
            new_id=new_id,
        )
        self._fruitless = 0  # leases in a row that gave nothing
        self._leased = False  # or perhaps

    def run(self) -> int:
        """Measure until the coordinator says to end (0) or a signal came (128 + its number); return the exit status.

        Raises StaleLease if a newer agent of this name took over, ProtocolMismatch with the upgrade to make,
        NotAuthenticated or NotAllowed if the coordinator does not let this agent in, Unreachable after
        `give_up_after_s`, StoreError if the spool or the cache cannot be used, RuntimeUnavailable or MissingExtra if a
        runtime that passed its probe does not load. In every case the spool is kept and the lease is given back.
        """
        try:
            self._registration.begin()
            self._delivery.deliver(wait=True)
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
            self._delivery.say_what_waits()

    def stop(self, signum: int) -> None:
        """End `run` now, or as soon as the round in hand is on the disk. To be called by a signal handler.

        Raises StopRequested in the thread that runs `run`, where Python runs signal handlers.
        """
        self._stopper.now(signum)

    def drain(self, signum: int) -> None:
        """End `run` when the round in hand is measured and handed in; the second time like `stop`."""
        self._stopper.drain(signum)

    def _one_turn(self) -> bool:
        """Ask for work and do it, or wait a little; False when it is time to end."""
        if self._delivery.backlog:  # first: the coordinator then knows which rounds are measured
            self._delivery.deliver(wait=True)
        full = self._delivery.lacks_room()
        if full:
            self._wait_for_room(full)
        wait_s = _EXIT_WAIT_S if self._exit_when_idle else MAX_WAIT_S
        self._leased = True  # an agent that ends while it asks may be given one in that moment
        answer = self._registration.ask(lambda client, session_id: client.lease(session_id, "ok", wait_s))
        self._leased = isinstance(answer, Lease)
        if isinstance(answer, Lease):
            self._fruitless = 0 if self._measuring.run(answer) else self._fruitless + 1
            self._leased = False
            if self._fruitless:  # the same lease may come back at once: do not spin
                self._patience.pause(self._fruitless)
            return True
        if answer.shut_down or self._exit_when_idle:
            log.info("the coordinator %s: ending", "wants this agent to end" if answer.shut_down else "has no work")
            return False
        self._rest(answer.ask_again_s)
        return True

    def _wait_for_room(self, full: str) -> None:
        """Measure nothing until the spool has room again, delivering what can be delivered; the lease is given back.

        Raises StoreError if it takes longer than `give_up_after_s`.
        """
        log.error("%s. Until there is room nothing is measured, and nothing is lost", full)
        self._give_back()
        since_s = logged_s = self._patience.clock_s()
        tries = 0
        while full:
            tries += 1
            self._link.hang_up()
            self._patience.pause(tries)
            self._delivery.deliver(wait=False)
            full = self._delivery.lacks_room()
            now_s = self._patience.clock_s()
            give_up_after_s = self._patience.give_up_after_s
            if full and give_up_after_s is not None and now_s - since_s >= give_up_after_s:
                raise StoreError(f"{full} (gave up after {now_s - since_s:.0f} s)")
            if full and now_s - logged_s >= _LOG_EVERY_S:
                logged_s = now_s
                log.error("still nothing is measured: %s", full)
        log.info("the spool has room again: measuring goes on")

    def _rest(self, rest_s: float) -> None:
        """Wait as long as the coordinator asked, saying now and then that this agent is alive."""
        clock_s = self._patience.clock_s
        until_s = clock_s() + rest_s
        while (left_s := until_s - clock_s()) > 0:
            beat_s = self._registration.current().heartbeat_s or rest_s
            self._link.hang_up()
            self._patience.sleep(min(left_s, beat_s))
            if left_s > beat_s:
                self._registration.ask(lambda client, session_id: client.heartbeat(session_id, "", 0.0))

    def _give_back(self) -> None:
        """Hand back the lease, so that another agent need not wait until it runs out. One try: it does run out."""
        try:
            self._registration.ask_once(lambda client, session_id: client.lease(session_id, "draining", 0.0))
        except (LutbuilderError, StopRequested) as error:
            log.info("the lease runs out by itself (%s)", error)


def _probe_all() -> tuple[RuntimeReport, ...]:
    from lutbuilder_agent.runtimes import RUNTIMES
    from lutbuilder_agent.runtimes.probe import probe_all

    return probe_all(tuple(RUNTIMES))
