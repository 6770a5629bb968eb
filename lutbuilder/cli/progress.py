"""Progress of a campaign on stderr: a live panel on a terminal, a line every few seconds elsewhere.

Nothing is drawn between two calls of `update`: no refresh thread, for the machine must be silent while ops are timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from lutbuilder.cli.values import duration_text, percent_text

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable
    from rich.live import Live

    from lutbuilder.campaign.request import Progress

LINE_EVERY_S = 5.0


class ProgressView:
    """Shows `Progress` as it comes; a context manager. A terminal as `stream` gets the panel; `clock` gives seconds."""

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live: Live | None = None
        self._phase = ""
        self._message = ""
        self._line_at_s = -LINE_EVERY_S

    def __enter__(self) -> ProgressView:
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, highlight=False)
            if not console.is_dumb_terminal:
                self._live = Live(console=console, auto_refresh=False, transient=True)
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Show one moment. A new message is always shown; other lines at most one every few seconds."""
        new_message = progress.message not in ("", self._message)
        if self._live is not None:
            if new_message:
                self._live.console.print(progress.message, markup=False, soft_wrap=True)
            self._live.update(_Panel(progress), refresh=True)
        else:
            now_s = self._clock()
            due = progress.phase != self._phase or now_s - self._line_at_s >= LINE_EVERY_S
            if new_message or due:
                text = f"[{progress.phase}] {figures(progress)}".rstrip()
                print(f"{text}\n{progress.message}" if new_message else text, file=self._stream, flush=True)
                self._line_at_s = now_s
        self._phase = progress.phase
        self._message = progress.message or self._message


def figures(progress: Progress) -> str:
    """Return what is known of a moment in one line; what is not known is left out."""
    parts = [f"{duration_text(progress.elapsed_s)} elapsed"]
    if progress.eta_s is not None:
        parts.append(f"eta {duration_text(progress.eta_s)}")
    if progress.max_rounds:
        parts.append(f"round {progress.round}/{progress.max_rounds}")
    if progress.n_ops:
        rotation = "" if progress.n_rotation is None else f", {progress.n_rotation} in rotation"
        parts.append(f"{progress.n_precise}/{progress.n_ops} ops precise{rotation}")
    if progress.worst_precision is not None:
        parts.append(f"worst ±{percent_text(progress.worst_precision)}")
    if progress.ops_per_s is not None:
        parts.append(f"{progress.ops_per_s:.1f} visits/s")
    if progress.drift is not None:
        parts.append(f"machine drift {percent_text(progress.drift)}")
    if progress.n_failed:
        parts.append(f"{progress.n_failed} failed")
    return ", ".join(parts)


class _Panel:
    """The live picture: a bar of how far the campaign is, then the figures."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __rich__(self) -> ConsoleRenderable:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 1))
        done = share_done(self._progress)
        bar.add_row(
            Text(self._progress.phase, style="bold"),
            ProgressBar(total=1.0, completed=done, width=40, pulse=False),
            Text(f"{100 * done:.0f} %"),
        )
        return Group(bar, Text(figures(self._progress), style="dim"))


def share_done(progress: Progress) -> float:
    """Return how far the campaign is, from 0 to 1: by time where an ETA is known, else by precise ops."""
    if progress.phase == "done":
        return 1.0
    if progress.eta_s is not None and progress.elapsed_s + progress.eta_s > 0:
        return progress.elapsed_s / (progress.elapsed_s + progress.eta_s)
    return progress.n_precise / progress.n_ops if progress.n_ops else 0.0
