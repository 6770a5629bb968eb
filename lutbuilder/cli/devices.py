"""`lutbuilder devices`: the named targets."""

from __future__ import annotations

from lutbuilder.cli.console import Debug, Json, emit_json, errors_shown, table


def devices(json_: Json = False, debug: Debug = False) -> None:
    """List the devices that have a name.

    With what runs there (the default runtime first) and how far each was tried.

    \b
    Examples:
      lutbuilder devices
      lutbuilder devices --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.devices import get, names

        found = [get(name) for name in names()]
        if json_:
            emit_json({"devices": found})
        else:
            table(
                "",
                ["device", "what", "runtimes", "threads", "evidence"],
                [(d.name, d.title, ", ".join(d.runtimes), str(d.threads), d.evidence) for d in found],
                right=["threads"],
            )
