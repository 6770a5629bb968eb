"""The README's table of sessions, from the folders that three_sessions.py wrote: every finished session, none chosen.

    python benchmarks/readme_rows.py three-sessions/onnxruntime three-sessions/litert three-sessions/litert-cold

A column a folder, in the order given; in a cell every session of the folder, in order. Nothing is run. A session that
is not finished is named on stderr and left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from three_sessions import CommandFailed, Errors, Figures, Options, run_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A folder: what its sessions have in common, and their figures."""

    options: Options
    sessions: tuple[Figures, ...]

    @property
    def head(self) -> str:
        """Return engine and cache state, and how many sessions."""
        caches = ", ".join(dict.fromkeys(session.cache for session in self.sessions))
        n = len(self.sessions)
        return f"{self.options.runtime}, {caches}, {n} session{'s' if n != 1 else ''}"


def read(folder: Path) -> Column:
    """Return what a folder holds. Raises CommandFailed for one without a finished session."""
    try:
        options = Options(**json.loads((folder / "options.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CommandFailed(f"{folder} is no folder of three_sessions.py: {error}", 65) from error
    numbers = sorted(int(path.name.partition("-")[2]) for path in folder.glob("session-[0-9]*"))
    found = []
    for number in numbers:
        try:
            found.append(run_session(number, options, folder, _never))
        except CommandFailed as failed:
            print(f"{folder}: session {number} is not finished ({failed}); left out", file=sys.stderr)
    if not found:
        raise CommandFailed(f"{folder} has no finished session", 65)
    return Column(options=options, sessions=tuple(found))


def rows(columns: Sequence[Column]) -> list[str]:
    """Return the lines of a Markdown table: a row a figure, the goals last. Rows that nobody has are left out."""
    calibrated = sorted({column.options.calibrate for column in columns if column.options.calibrate})
    wanted: list[tuple[str, Callable[[Figures], float | None], Callable[[Iterable[float]], str], str]] = [
        ("table as published, MAPE", lambda f: _mape(f.published), _percents, "0.7 %"),
        ("worst network", lambda f: f.published and f.published.worst, _percents_1, "3 %"),
        ("bias", lambda f: f.published and f.published.bias, _signed, ""),
        ("Spearman", lambda f: f.published and f.published.spearman, _span("{:.4f}", 1), "0.998"),
        ("scale told by ops, MAPE", lambda f: _mape(f.published_by_ops), _percents, ""),
        ("ops as timed alone, MAPE", lambda f: _mape(f.ops_alone), _percents, ""),
        (f"calibrated with {' or '.join(map(str, calibrated))} networks", lambda f: _mape(f.calibrated), _percents,
         "0.5 %"),
        ("line through MACs, fitted on other networks", lambda f: _mape(f.macs_held_out),
         _span("{:.1f}", 100, " %"), ""),
        ("MAPE, this session's op visits pooled in, / noise of the networks' truth",
         lambda f: _mape(f.pooled) / f.truth_noise if f.pooled and f.truth_noise else None, _span("{:.1f}", 1), "1.5"),
        ("held-out networks, instances of each: at least", lambda f: f.n_instances, _span("{:.0f}", 1), "3"),
        ("collection", lambda f: f.collect_s, _span("{:.0f}", 1, " s"), "180 s"),
    ]  # fmt: skip  # a row of the table reads as a row
    heads = ["plain sum against held-out networks, each session", *(column.head for column in columns), "goal"]
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for name, figure, text, goal in wanted:
        seen = [[figure(session) for session in column.sessions] for column in columns]
        if any(value is not None for values in seen for value in values):
            cells = [text(value for value in values if value is not None) for values in seen]
            lines.append(_line([name, *cells, goal]))
    return lines


def _never(words: Sequence[str]) -> dict[str, Any]:
    raise CommandFailed(f"`lutbuilder {words[0]}` was not run", 65)


def _mape(errors: Errors | None) -> Any:
    return None if errors is None else errors.mape


def _percents(values: Iterable[float]) -> str:
    return _each("{:.2f}", values)


def _percents_1(values: Iterable[float]) -> str:
    return _each("{:.1f}", values)


def _signed(values: Iterable[float]) -> str:
    return _each("{:+.1f}", values)


def _each(form: str, values: Iterable[float]) -> str:
    told = ", ".join(form.format(100 * value) for value in values)
    return f"{told} %" if told else ""


def _span(form: str, scale: float, unit: str = "") -> Callable[[Iterable[float]], str]:
    def text(values: Iterable[float]) -> str:
        ordered = [form.format(scale * value) for value in sorted(values)]
        return " to ".join(dict.fromkeys((ordered[0], ordered[-1]))) + unit if ordered else ""

    return text


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read the folders, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    try:
        print("\n".join(rows([read(folder) for folder in parser.parse_args().folders])))
    except CommandFailed as failed:
        parser.exit(failed.status, f"{failed}\n")


if __name__ == "__main__":
    main()
