"""Lists of a fleet: once or again and again, as a table or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import typer

from lutbuilder.cli.console import emit_json, plain, say, table
from lutbuilder.cli.values import duration_text

if TYPE_CHECKING:
    from lutbuilder.cli.places import Place
    from lutbuilder.control.api import ControlApi, Page

T = TypeVar("T")
EVERY_S = 2.0

Watch = Annotated[
    bool, typer.Option("--watch", help="Show it again every 2 s until Ctrl-C; with --json one line of JSON each time.")
]


@dataclass(frozen=True, kw_only=True)
class Listing(Generic[T]):
    """One kind of list: how to ask for it and how to show it. `line` gets an item and the seconds since the epoch."""

    name: str
    ask: Callable[[ControlApi, str], Page[T]]
    columns: Sequence[str]
    line: Callable[[T, float], Sequence[str]]
    empty: str  # what to say when there is nothing, and what to type
    right: Sequence[str] = ()
    data: Callable[[T], object] = plain

    def items(self, at: Place) -> tuple[T, ...]:
        """Return all of it."""
        from functools import partial

        from lutbuilder.control.api import everything

        return () if at.api is None else everything(partial(self.ask, at.api))

    def show(self, at: Place, *, watch: bool, as_json: bool, sleep: Callable[[float], None] = time.sleep) -> None:
        """Print the list, with `watch` again and again until Ctrl-C."""
        if watch and not as_json and sys.stdout.isatty():
            self._live(at, sleep)
            return
        while True:
            items = self.items(at)
            if as_json:
                body = {"store": at.where, self.name: [self.data(item) for item in items]}
                if watch:
                    print(json.dumps(plain(body), allow_nan=False), flush=True)
                else:
                    emit_json(body)
            elif items:
                table("", self.columns, self._lines(items), right=self.right)
            else:
                say(f"{self.empty} ({at.where})")
            if not watch:
                return
            sys.stdout.flush()
            sleep(EVERY_S)

    def _lines(self, items: Iterable[T]) -> list[Sequence[str]]:
        now_s = time.time()
        return [self.line(item, now_s) for item in items]

    def _live(self, at: Place, sleep: Callable[[float], None]) -> None:
        from rich import box
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        from lutbuilder_agent.errors import Unreachable

        title = ""
        shown = Table()
        with Live(shown, auto_refresh=False, screen=False) as live:
            while True:
                try:
                    items = self.items(at)
                    title = f"{at.where}  {time.strftime('%H:%M:%S')}  {len(items)} {self.name}"
                except Unreachable as error:  # it may be starting again: the last picture stays
                    live.update(Table(title=f"{title}\n{error}", title_justify="left", box=None), refresh=True)
                    sleep(EVERY_S)
                    continue
                shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
                for column in self.columns:
                    shown.add_column(column, justify="right" if column in self.right else "left", overflow="fold")
                for line in self._lines(items):
                    shown.add_row(*(Text(cell) for cell in line))
                live.update(shown, refresh=True)
                sleep(EVERY_S)


def ago(moment_s: float | None, now_s: float) -> str:
    """Return how long ago a moment was."""
    return "-" if moment_s is None else f"{duration_text(max(0.0, now_s - moment_s))} ago"
