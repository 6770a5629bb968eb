"""The agents a coordinator knows: who calls, who may be leased to, who is sick, and what each is doing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import Asker, HeldLease, Streak
from lutbuilder.coordinator.store import AgentFlags, AgentState
from lutbuilder_agent.records import OpId, Report
from lutbuilder_agent.wire.api import MAX_WAIT_S

AgentActivity = Literal["idle", "measuring", "silent", "drained", "quarantined"]

SILENT_S = MAX_WAIT_S + 15.0  # an idle agent asks again at least this often, tries of a bad network included
_RATE_S = 60.0  # a rate is of the last minute


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """What a page of agents shows of one. `heard_s`: seconds since its last call here, None if it never called here."""

    name: str
    device: str
    environment: str
    clock_domain: str
    session_id: str
    state: AgentActivity
    reason: str  # why it is quarantined
    leases: tuple[HeldLease, ...]  # the first is the one it works on
    visits_per_s: float | None  # over the last minute; None: it reported less than twice
    heard_s: float | None


@dataclass(slots=True)
class Live:
    """An agent in its newest session, as this process saw it. Mutable: it goes on."""

    state: AgentState
    asker: Asker
    heard_s: float
    streak: Streak = ()
    reports: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))  # when, how many visits

    def rate(self, now_s: float) -> float | None:
        """Return visits per second over the reports of the last minute."""
        recent = [(at_s, n) for at_s, n in self.reports if at_s >= now_s - _RATE_S]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        return sum(n for _, n in recent[1:]) / (recent[-1][0] - recent[0][0])


class Fleet:
    """Agents by name. The caller holds the board's lock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._live: dict[str, Live] = {}
        self._by_session: dict[str, Live] = {}
        self._presumed: dict[str, Asker] = {}
        self._presumed_until_s = 0.0
        self.flags: Mapping[str, AgentFlags] = {}

    def began(self, state: AgentState) -> Live:
        """Note the newest session of an agent; it keeps what is known of its device."""
        before = self._live.get(state.name)
        live = Live(state=state, asker=Asker.of(state.hello, state.session_id), heard_s=self._clock())
        if before is not None:
            live.streak, live.reports = before.streak, before.reports
            self._by_session.pop(before.state.session_id, None)
        self._live[state.name] = self._by_session[state.session_id] = live
        return live

    def of_session(self, session_id: str) -> Live | None:
        """Return an agent by its newest session."""
        return self._by_session.get(session_id)

    def named(self, name: str) -> Live | None:
        """Return an agent that has called here."""
        return self._live.get(name)

    def states(self) -> tuple[AgentState, ...]:
        """Return the agents that have called here, in their newest session."""
        return tuple(live.state for live in self._live.values())

    def heard(self) -> dict[str, float]:
        """Return the seconds since each agent's last call, by name."""
        now_s = self._clock()
        return {name: now_s - live.heard_s for name, live in self._live.items()}

    def barred(self, name: str) -> bool:
        """Return whether an agent gets no lease: it is drained or quarantined."""
        flags = self.flags.get(name)
        return flags is not None and (flags.drained or bool(flags.quarantined))

    def presume(self, states: Iterable[AgentState], until_s: float) -> None:
        """Take agents for alive until then that do not call here: not yet, or because they call another coordinator."""
        before = {asker.session_id: asker for asker in self._presumed.values()}
        self._presumed = {
            state.name: before.get(state.session_id) or Asker.of(state.hello, state.session_id) for state in states
        }
        self._presumed_until_s = until_s

    def others(self, name: str, leases: Collection[HeldLease]) -> list[Asker]:
        """Return the agents beside `name` that live and may be leased to."""
        now_s = self._clock()
        busy = {lease.agent for lease in leases}
        found = dict(self._presumed) if now_s < self._presumed_until_s else {}
        for other, live in self._live.items():
            if live.heard_s >= now_s - SILENT_S or other in busy:
                found[other] = live.asker
        return [asker for other, asker in found.items() if other != name and not self.barred(other)]

    def reported(self, session_id: str, report: Report, n_new: int) -> Live | None:
        """Take note of a report in an agent's newest session; return the agent, None for an older session."""
        live = self._by_session.get(session_id)
        if live is not None:
            live.streak = schedule.streak_after(live.streak, report)
            live.reports.append((self._clock(), n_new))
        return live

    def suspects(self, report: Report) -> list[Live]:
        """Return the agents that a report may prove sick: their streak is long, and has to do with it."""
        ops: set[tuple[str, OpId]] = {(report.campaign_id, timing.op_id) for timing in report.timings}
        return [
            live
            for live in self._live.values()
            if len(live.streak) >= schedule.SICK_OPS
            and not self.barred(live.state.name)
            and (live.state.session_id == report.session_id or not ops.isdisjoint(live.streak))
        ]

    def views(self, known: Sequence[AgentState], leases: Sequence[HeldLease]) -> tuple[AgentView, ...]:
        """Return what each agent does, by name: those that called here, and those the store knows (`known`)."""
        now_s = self._clock()
        states = {state.name: state for state in known} | {name: live.state for name, live in self._live.items()}
        found = []
        for name in sorted(states):
            state, live = states[name], self._live.get(name)
            own = tuple(lease for lease in leases if lease.agent == name and not lease.ending)
            flags = self.flags.get(name, AgentFlags())
            heard_s = None if live is None else now_s - live.heard_s
            activity: AgentActivity = "idle"
            if flags.quarantined:
                activity = "quarantined"
            elif flags.drained:
                activity = "drained"
            elif own:
                activity = "measuring"
            elif heard_s is None or heard_s > SILENT_S:
                activity = "silent"
            found.append(
                AgentView(
                    name=name,
                    device=state.fingerprint.device,
                    environment=state.fingerprint.env_id,
                    clock_domain=schedule.domain_of(state.hello),
                    session_id=state.session_id,
                    state=activity,
                    reason=flags.quarantined,
                    leases=own,
                    visits_per_s=None if live is None else live.rate(now_s),
                    heard_s=heard_s,
                )
            )
        return tuple(found)
