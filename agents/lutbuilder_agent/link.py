"""The way to the coordinator: connects when it is needed, hangs up for silence, pauses between failed tries."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lutbuilder_agent.errors import LutbuilderError, StoreError, UnknownSession, Unreachable
from lutbuilder_agent.records import AgentHello, Session
from lutbuilder_agent.wire.api import AgentApi
from lutbuilder_agent.wire.protocol import check_answer

log = logging.getLogger("lutbuilder_agent")

_T = TypeVar("_T")
_LOG_EVERY_S = 60.0


class Client(AgentApi, Protocol):
    """A connection to a coordinator: `wire.client.CoordinatorClient`, or a coordinator in this process."""

    def close(self) -> None:
        """Give up the connection and its threads."""
        ...


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for others, and with what: clock, pauses and randomness are functions, so tests need none."""

    backoff: Backoff
    give_up_after_s: float | None
    clock_s: Callable[[], float]
    sleep: Callable[[float], None]
    jitter: Callable[[], float]

    def pause(self, tries: int) -> None:
        """Sleep as long as is right after `tries` failures in a row."""
        self.sleep(self.backoff.pause_s(tries, self.jitter()))


class Link:
    """One connection at a time. Errors that waiting does not heal (say a revoked certificate) pass straight through."""

    def __init__(self, client_factory: Callable[[], Client], patience: Patience) -> None:
        self._client_factory = client_factory
        self._patience = patience
        self._client: Client | None = None
        self._tries = 0
        self._failing_since_s = 0.0
        self._pause_until_s = 0.0
        self._logged_s = 0.0

    def ask(self, call: Callable[[Client], _T]) -> _T:
        """Return the answer, however long the coordinator is away. Raises Unreachable only after `give_up_after_s`."""
        while True:
            pause_s = self._pause_until_s - self._patience.clock_s()
            if self._tries and pause_s > 0:
                self._patience.sleep(pause_s)
            try:
                return self._try(call)
            except Unreachable as error:
                away_s = self._patience.clock_s() - self._failing_since_s
                give_up_after_s = self._patience.give_up_after_s
                if give_up_after_s is not None and away_s >= give_up_after_s:
                    raise Unreachable(f"{error} (gave up after {away_s:.0f} s)") from error

    def ask_once(self, call: Callable[[Client], _T]) -> _T:
        """Return the answer of one try. Raises Unreachable, at once and without a try while a pause lasts."""
        if self._tries and self._patience.clock_s() < self._pause_until_s:
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
        now_s = self._patience.clock_s()
        if self._tries == 0:
            self._failing_since_s = now_s
        self._tries += 1
        pause_s = self._patience.backoff.pause_s(self._tries, self._patience.jitter())
        give_up_after_s = self._patience.give_up_after_s
        if give_up_after_s is not None:
            pause_s = max(0.0, min(pause_s, self._failing_since_s + give_up_after_s - now_s))
        self._pause_until_s = now_s + pause_s
        if self._tries == 1 or now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("%s. Trying again, with pauses of up to %g s", error, self._patience.backoff.cap_s)


class Registration:
    """This agent's session at the coordinator: begun when it is needed, and anew when the coordinator has lost it.

    `on_renewal` runs after `ask` had to register again.
    """

    def __init__(self, link: Link, hello: AgentHello, patience: Patience) -> None:
        self.on_renewal: Callable[[], object] = lambda: None
        self._link = link
        self._hello = hello
        self._patience = patience
        self._session: Session | None = None

    @property
    def hello(self) -> AgentHello:
        """What the agent says of itself."""
        return self._hello

    def begin(self) -> Session:
        """Register, however long the coordinator is away. Raises ProtocolMismatch with the upgrade to make."""
        session = self._link.ask(lambda client: client.register(self._hello))
        check_answer(self._hello, session)
        self._session = session
        log.info("registered as %s, session %s", self._hello.name, session.session_id)
        return session

    def current(self) -> Session:
        """Return the session, begun if there is none."""
        return self._session or self.begin()

    def is_current(self, session_id: str) -> bool:
        """Return whether a session is the one in hand."""
        return self._session is not None and self._session.session_id == session_id

    def ask(self, call: Callable[[Client, str], _T]) -> _T:
        """Return the coordinator's answer, however long it takes; registers again if it does not know the session."""
        unknown = 0
        while True:
            session_id = self.current().session_id
            try:
                return self._link.ask(lambda client: call(client, session_id))  # noqa: B023  # called before the next turn
            except UnknownSession:
                unknown += 1
                if unknown > 1:
                    self._patience.pause(unknown)
                self.begin()
                self.on_renewal()

    def ask_once(self, call: Callable[[Client, str], _T]) -> _T:
        """Return the answer of one try. Raises Unreachable, UnknownSession."""
        session_id = self.current().session_id
        return self._link.ask_once(lambda client: call(client, session_id))
