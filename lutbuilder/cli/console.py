"""Where output goes: results on stdout, everything else on stderr; one JSON object where `--json` was asked for."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lutbuilder.urls import Place, place
from lutbuilder_agent.errors import Interrupted, LutbuilderError, SpecError


def _luts_place(text: str | Place) -> Place:
    try:
        return place(text)
    except SpecError as error:
        raise typer.BadParameter(str(error)) from error


Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
if TYPE_CHECKING:
    LutsFolder = Place
else:  # typer knows no unions
    LutsFolder = Annotated[
        Any,
        typer.Option(
            "--luts", metavar="DIR|URL", parser=_luts_place, help="Folder of the tables, s3://BUCKET/DIR too."
        ),
    ]
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="Folder of the campaign store [default: $LUTBUILDER_STATE or ~/.local/state/lutbuilder].",
        show_default=False,
    ),
]


@contextmanager
def errors_shown(*, as_json: bool, debug: bool, resumable: bool = False) -> Iterator[None]:
    """End the command with a clear line and the error's exit status; no traceback for what we expect unless `debug`.

    `resumable`: what was interrupted can be continued by typing it again. An error nobody expected is a bug and keeps
    its traceback.
    """
    try:
        yield
    except LutbuilderError as error:
        _show(error.code, str(error), error.exit_status, as_json=as_json, traceback=debug)
        raise typer.Exit(error.exit_status) from error
    except KeyboardInterrupt as error:
        advice = "nothing acknowledged is lost; run the same command again to continue"
        _show(
            Interrupted.code,
            advice if resumable else "stopped by Ctrl-C",
            Interrupted.exit_status,
            as_json=as_json,
            traceback=debug,
        )
        raise typer.Exit(Interrupted.exit_status) from error
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error} (a bug in lutbuilder: please report it with the traceback above)"
        _show(LutbuilderError.code, message, LutbuilderError.exit_status, as_json=as_json, traceback=True)
        raise typer.Exit(LutbuilderError.exit_status) from error


def check_writable(path: Path, *, option: str) -> None:
    """Refuse a path that no file can be written to, before time is spent on what it is to hold; its folder is made.

    Raises SpecError naming the option. Only a try tells: an administrator may write where permissions say no.
    """
    from tempfile import TemporaryFile

    from lutbuilder_agent.errors import SpecError

    if path.is_dir():
        raise SpecError(f"{option} {path} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SpecError(f"{option} {path} cannot be written: {error.strerror or error}; name another file") from error


def _show(code: str, message: str, exit_status: int, *, as_json: bool, traceback: bool) -> None:
    if traceback:
        import traceback as tracebacks

        tracebacks.print_exc(file=sys.stderr)
    if as_json:
        emit_json({"error": {"code": code, "message": message, "exit_status": exit_status}})
    print(f"error[{code}]: {message}", file=sys.stderr)


def emit_json(value: object) -> None:
    """Print one JSON object on stdout; what is not finite becomes null, because JSON has no word for it."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: object) -> Any:
    """Return a value as JSON knows it: records by their fields, paths as text, numpy scalars and arrays as numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):  # numpy, without importing it
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def say(text: str) -> None:
    """Print a line for people on stderr, so that stdout stays what a script reads."""
    print(text, file=sys.stderr)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table on stdout; columns named in `right` are aligned right. Never cut when stdout is not a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(shown)
    else:
        wide = Console(highlight=False, width=1000)
        with wide.capture() as text:
            wide.print(shown)
        print("\n".join(line.rstrip() for line in text.get().splitlines()))


def pairs(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns on stdout."""
    rows = [(name, value) for name, value in rows if value]
    width = max((len(name) for name, _ in rows), default=0)
    if title:
        print(title)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
