"""What the session needs of workers, and the real ones: one works, one more process may wait to take over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lutbuilder_agent.records import Failure, LeasedOp, OpId, Plan, Timing

if TYPE_CHECKING:
    from lutbuilder_agent.worker import Child


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How far a session has come: no later visit starts before `clock_ns`, no later instance is numbered below."""

    clock_ns: int = 0
    instance: int = 0


AtEnd = Callable[[Reached], None]


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
    """A worker as the session uses it (`worker.Worker`): `begin` to load, `loaded`, then rounds, then `close`."""

    @property
    def reached(self) -> Reached:
        """How far the session has come with what this worker did."""
        ...

    def begin(self, ops: Sequence[tuple[LeasedOp, Path]]) -> None:
        """Begin to load; returns at once."""
        ...

    def loaded(self) -> tuple[Failure, ...]:
        """Wait until everything is loaded; return the ops that failed."""
        ...

    def run_round(self, round: int, *, at_end: AtEnd | None = None) -> RoundSeen:
        """Visit every op that is due; `at_end` is called as soon as the last visit is over, before they are read."""
        ...

    def drop(self, op_ids: Sequence[OpId]) -> None:
        """Take ops out of the rotation."""
        ...

    def retire(self) -> None:
        """Let go of the device at once; what was seen can still be read."""
        ...

    def close(self) -> None:
        """End for good. Safe to call twice."""
        ...


class Workers(Protocol):
    """Where workers come from."""

    def make_ready(self) -> None:
        """Have whatever `start` needs wait in silence, so that the next worker begins to load at once."""
        ...

    def start(self, plan: Plan, since: Reached, *, session: str) -> Rounds:
        """Return a new worker, which goes on where the session is; `session` names it for the simulated device."""
        ...

    def close(self) -> None:
        """End what waits."""
        ...


class RealWorkers:
    """Workers that own a device (`worker.Worker`)."""

    def __init__(self) -> None:
        self._spare: Child | None = None

    def make_ready(self) -> None:
        """See Workers.make_ready: a child process, its imports done. Nothing of a runtime is loaded into it yet."""
        from lutbuilder_agent.worker import spare

        if self._spare is None:
            self._spare = spare()

    def start(self, plan: Plan, since: Reached, *, session: str) -> Rounds:
        """See Workers.start."""
        from lutbuilder_agent.worker import Worker

        if ("session", "own") in plan.options:  # of the simulated device: nothing else tells it whose worker it is
            own = {"session": session, "clock_ns": str(since.clock_ns)}
            plan = replace(plan, options=tuple(sorted({**dict(plan.options), **own}.items())))
        waiting, self._spare = self._spare, None
        return Worker(plan, not_before_ns=since.clock_ns, first_instance=since.instance, spare=waiting)

    def close(self) -> None:
        """See Workers.close."""
        if self._spare is not None:
            self._spare.end()
            self._spare = None


@dataclass(frozen=True, slots=True)
class WorkersFrom:
    """Workers that a function makes of a plan."""

    make: Callable[[Plan], Rounds]

    def make_ready(self) -> None:
        """See Workers.make_ready: there is nothing to wait for."""

    def start(self, plan: Plan, since: Reached, *, session: str) -> Rounds:
        """See Workers.start."""
        return self.make(plan)

    def close(self) -> None:
        """See Workers.close."""
