"""`lutbuilder store`: looking after the file that holds all campaigns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lutbuilder.cli.console import Debug, Json, StateDir, emit_json, errors_shown, say, table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the campaign store.")


@app.command()
def salvage(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="The damaged store [default: this user's].", show_default=False),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FILE", help="Where to save it [default: FILE.salvaged].", show_default=False),
    ] = None,
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Copy what can be read of a damaged store into a new file, and say what is lost.

    The damaged file stays as it is. End every lutbuilder that uses it first.

    \b
    Examples:
      lutbuilder store salvage
      lutbuilder store salvage old/campaigns.sqlite --into new.sqlite --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.campaign.state import default_store
        from lutbuilder.coordinator.store.salvage import salvage as save

        source = file or default_store(state_dir)
        saved = save(source, into or source.with_name(f"{source.name}.salvaged"))
        if json_:
            emit_json(
                {"source": saved.source, "target": saved.target, "lossless": saved.lossless, "tables": saved.tables}
            )
            return
        rows = [
            (one.name, str(one.kept), str(one.lost) if one.complete else f"{one.lost} or more") for one in saved.tables
        ]
        table("", ["table", "rows kept", "rows lost"], rows, right=["rows kept", "rows lost"])
        verdict = "all of it was there" if saved.lossless else "lost visits can be measured again: repeat the commands"
        say(f"saved {saved.source} into {saved.target}: {verdict}")
        journal = saved.source.with_name(f"{saved.source.name}-wal")
        lines = [f"mv {saved.source} {saved.source}.damaged"]
        if journal.exists():  # left where it is it would be read as the new file's
            lines.append(f"mv {journal} {saved.source}.damaged-wal")
        say("\n  ".join(["To use it:", *lines, f"mv {saved.target} {saved.source}"]))
