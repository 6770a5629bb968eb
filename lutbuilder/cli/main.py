"""`lutbuilder`: the commands; it starts in start.py. Help is plain text: drawing it would double the start."""

from __future__ import annotations

from typing import Annotated

import typer

from lutbuilder.cli import (
    agents,
    calibrate,
    campaigns,
    collect,
    devices,
    doctor,
    jobs,
    leases,
    luts,
    search,
    security,
    serve,
    spaces,
    store,
    validate,
)

app = typer.Typer(
    name="lutbuilder",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from lutbuilder import __version__

        print(f"lutbuilder {__version__}")
        raise typer.Exit


@app.callback()
def lutbuilder(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """What will this architecture cost on that device? Build, prove and read measured latency tables.

    \b
    Examples:
      lutbuilder collect --device cpu --space proxyless
      lutbuilder luts list
      lutbuilder calibrate luts/<device>/onnxruntime-fp32-bs1
      lutbuilder validate luts/<device>/onnxruntime-fp32-bs1
      lutbuilder search proxyless luts/<device>/onnxruntime-fp32-bs1 --limit 6ms --accuracy mine:accuracy
      lutbuilder serve --listen 0.0.0.0:7070
    """


app.command()(collect.collect)
app.command()(calibrate.calibrate)
app.command()(validate.validate)
app.command()(search.search)
app.add_typer(luts.app, name="luts")
app.command()(devices.devices)
app.add_typer(spaces.app, name="spaces")
app.command()(serve.serve)
app.add_typer(jobs.app, name="jobs")
app.add_typer(campaigns.app, name="campaigns")
app.add_typer(agents.app, name="agents")
app.command()(leases.leases)
app.add_typer(security.app, name="security")
app.add_typer(store.app, name="store")
app.command()(doctor.doctor)


def main() -> None:
    """Run the program and end the process with the exit status of its errors."""
    app()
