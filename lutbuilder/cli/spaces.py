"""`lutbuilder spaces`: the search spaces, and what is in one."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from lutbuilder.cli.console import Debug, Json, emit_json, errors_shown, pairs, table

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def list_spaces(context: typer.Context, json_: Json = False, debug: Debug = False) -> None:
    """List the search spaces, or show one.

    \b
    Examples:
      lutbuilder spaces
      lutbuilder spaces --json
      lutbuilder spaces show proxyless
    """
    if context.invoked_subcommand is not None:
        return
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.spaces import SPACES

        if json_:
            emit_json({"spaces": [{"name": name, **_entry(name)} for name in SPACES]})
        else:
            rows = [(name, ", ".join(entry.variants), entry.summary) for name, entry in SPACES.items()]
            table("", ["space", "variants (the first is the default)", "what"], rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Space, e.g. proxyless or proxyless-w1.3.")],
    bs: Annotated[int, typer.Option("--bs", help="Batch size.")] = 1,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show a space and its ops.

    Its size, its variables, and every distinct op that a table of it holds.

    \b
    Examples:
      lutbuilder spaces show proxyless
      lutbuilder spaces show proxyless-w1.3 --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.spaces import get

        space = get(name, batch=bs)
        ops = space.ops()
        if json_:
            emit_json(
                {
                    "name": space.name,
                    "n_archs": str(space.n_archs()),  # text: beyond what JSON readers keep exactly
                    "variables": [{"name": v.name, "values": list(v.values)} for v in space.variables],
                    "sites": [{"name": site.name, "scope": list(site.scope)} for site in space.sites],
                    "ops": [{"op_id": op.op_id, "label": op.label(), **op.canonical()} for op in ops],
                }
            )
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(op.kind for op in ops).items())
        pairs(
            space.name,
            [
                ("architectures", f"{space.n_archs():,}"),
                ("distinct ops", f"{len(ops)} ({kinds})"),
                ("sites", str(len(space.sites))),
                ("variables", str(len(space.variables))),
            ],
        )
        choices = [(v.name, ", ".join(str(value) for value in v.values)) for v in space.variables]
        table("", ["variable", "values"], choices)
        table("", ["op_id", "op"], [(op.op_id, op.label()) for op in ops])


def _entry(name: str) -> dict[str, object]:
    from lutbuilder.spaces import SPACES

    return {"summary": SPACES[name].summary, "variants": list(SPACES[name].variants)}
