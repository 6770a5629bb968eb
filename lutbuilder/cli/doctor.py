"""`lutbuilder doctor`: what works here, what does not, and what to type."""

from __future__ import annotations

from pathlib import Path

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, StateDir, emit_json, errors_shown

_MARK = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


def doctor(
    luts: LutsFolder = Path("luts"), state_dir: StateDir = None, json_: Json = False, debug: Debug = False
) -> None:
    """Check this machine and say what to type.

    Looks at Python, versions, device, folders, and every runtime in a process of its own. Ends with 0 if a table of
    this machine's CPU can be collected, with 1 if not.

    \b
    Examples:
      lutbuilder doctor
      lutbuilder doctor --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.doctor import examine

        report = examine(luts=luts, state_dir=state_dir)
        if json_:
            emit_json(report)
        else:
            for check in report.checks:
                print(f"{_MARK[check.state]} {check.what}: {check.found}")
                if check.cure:
                    print(f"        type: {check.cure}")
            print("ready to collect" if report.ready else "not ready to collect: see the problems above")
        if not report.ready:
            raise typer.Exit(1)
