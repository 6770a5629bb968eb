"""The loop every search runs in: begin or take up a saved state, step, report, save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lutbuilder.nas.search.state import Identity, Saved, StateFile
from lutbuilder_agent.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a search stands after a generation; 0 is what it began with."""

    generation: int
    generations: int
    n_scored: int
    best_score: float
    best_cost: float  # of the arch with the best score, by the first limit


OnProgress = Callable[[Progress], None]


class Run(Protocol):
    """A search between two generations. What `saved` gives, `restore` takes back, and nothing else matters."""

    @property
    def identity(self) -> Identity:
        """What must agree for a state to be of this search."""
        ...

    @property
    def generation(self) -> int:
        """Generations done."""
        ...

    def begin(self) -> None:
        """Find and score the first archs."""
        ...

    def step(self) -> bool:
        """Do a generation; False if there is none to be done."""
        ...

    def progress(self, generations: int) -> Progress:
        """Say where the search stands on its way to `generations`."""
        ...

    def saved(self) -> Saved:
        """Return all it is made of."""
        ...

    def restore(self, saved: Saved) -> None:
        """Become what `saved` was made of."""
        ...


def drive(run: Run, *, generations: int, on_progress: OnProgress | None, state: StateFile | None) -> bool:
    """Bring `run` to `generations`, from `state` if that holds it; return False if it ended before.

    Raises SpecError for a state file that is damaged, of another search, or further than `generations`. However it
    ends, the state file holds the last generation that was done.
    """
    saved = state.read(run.identity) if state else None
    if saved is None:
        run.begin()
    elif saved.generation > generations:
        raise SpecError(
            f"the state file is of generation {saved.generation}, the search is to end at {generations}: ask for as "
            "many or more"
        )
    else:
        run.restore(saved)
    written_s = -math.inf if saved is None else state.clock() if state else 0.0
    unwritten = run.saved() if state and saved is None else None
    alive = True
    try:
        while True:
            ended = run.generation >= generations or not alive
            if state and unwritten and (ended or state.due(run.generation, since_s=written_s)):
                whole, unwritten = unwritten, None  # what cannot be written is not tried twice
                state.write(run.identity, whole)
                written_s = state.clock()
            if on_progress and alive:
                on_progress(run.progress(generations))
            if ended:
                return alive
            alive = run.step()
            if state:
                unwritten = run.saved()
    except BaseException:  # Ctrl-C above all, but whatever ends it: the last generation that was done is kept
        if state and unwritten:
            state.write(run.identity, unwritten)
        raise
