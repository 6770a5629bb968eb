"""`lutbuilder luts`: the tables there are, and what is in one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.values import duration_text, percent_text

if TYPE_CHECKING:
    from lutbuilder.lut import Lut

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def luts() -> None:
    """List tables and show one.

    \b
    Examples:
      lutbuilder luts list
      lutbuilder luts show luts/<device>/onnxruntime-fp32-bs1
    """


@app.command("list")
def list_(luts: LutsFolder = Path("luts"), json_: Json = False, debug: Debug = False) -> None:
    """List the tables below a folder.

    With the newest version of each, its rows, its precision, and how well it predicts whole networks. A file that
    cannot be opened is named on stderr; the others are listed all the same.

    \b
    Examples:
      lutbuilder luts list
      lutbuilder luts list --luts /srv/luts --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.lut import Lut, list_luts
        from lutbuilder_agent.errors import LutError

        found: list[Lut] = []
        refused: list[tuple[Path, LutError]] = []
        for entry in list_luts(luts):
            try:
                found.append(Lut.load(entry.path()))
            except LutError as why:
                refused.append((entry.path(), why))
        if json_:
            emit_json({"luts": [as_data(lut) for lut in found], "refused": [_refused(*one) for one in refused]})
        elif found:
            columns = ["table", "version", "rows", "precision", "MAPE", "space", "created"]
            table("", columns, [_line(lut) for lut in found], right=["version", "rows", "precision", "MAPE"])
        elif not refused:
            say(f"no tables below {luts}; collect one: lutbuilder collect --device cpu")
        if refused:
            if not json_:
                for _, error in refused:
                    say(f"error[{error.code}]: {error}")
            raise typer.Exit(refused[0][1].exit_status)


@app.command()
def show(
    lut: Annotated[
        str | None,
        typer.Argument(
            help="luts/DEVICE/NAME, ...@VERSION, or a file [default: the newest there is].", show_default=False
        ),
    ] = None,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show a table and its evidence.

    Where it comes from, how good it is, how well it predicts whole networks, and every row.

    \b
    Examples:
      lutbuilder luts show
      lutbuilder luts show luts/<device>/onnxruntime-fp32-bs1@3
      lutbuilder luts show luts/<device>/litert-fp32-bs1/v0001.parquet --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.lut import Lut

        found = _newest(luts) if lut is None else Lut.load(lut, folder=luts)
        if json_:
            emit_json({**as_data(found), "meta": found.meta.footer(), "rows": found.rows()})
            return
        pairs(f"{found.name}@{found.version}", _provenance(found))
        pairs("\nquality", _quality(found))
        if found.meta.validation is not None:
            _show_validation(found.meta.validation)
        table("", ["op", "latency ms", "±", "call ms", "p90 ms", "rounds", "status"], _rows(found), right=_NUMBERS)


def as_data(lut: Lut) -> dict[str, object]:
    """Return what `--json` prints of a table in a list."""
    return {
        "name": lut.name,
        "version": lut.version,
        "path": str(lut.path),
        "n_rows": len(lut),
        "target": lut.meta.target,
        "runtime_version": lut.meta.runtime_version,
        "spaces": list(lut.meta.spaces),
        "created": lut.meta.created,
        "quality": lut.meta.quality,
        "validation": lut.meta.validation,
    }


_NUMBERS = ("latency ms", "±", "call ms", "p90 ms", "rounds")


def _newest(folder: Path) -> Lut:
    from lutbuilder.lut import Lut, list_luts
    from lutbuilder_agent.errors import LutNotFound

    found = [Lut.load(entry.path()) for entry in list_luts(folder)]
    if not found:
        raise LutNotFound(f"no tables below {folder}; collect one: lutbuilder collect --device cpu")
    return max(found, key=lambda lut: lut.meta.created)


def _refused(path: Path, error: Any) -> dict[str, str]:
    return {"path": str(path), "code": error.code, "message": str(error)}


def _line(lut: Lut) -> tuple[str, ...]:
    quality = lut.meta.quality
    return (
        lut.name,
        str(lut.version),
        str(len(lut)),
        "-" if quality.median_half_width is None else f"±{percent_text(quality.median_half_width)}",
        _mape(lut.meta.validation),
        ", ".join(lut.meta.spaces),
        lut.meta.created,
    )


def _mape(validation: Mapping[str, Any] | None) -> str:
    from lutbuilder.stats.quality import ValidationReport
    from lutbuilder_agent.errors import SpecError

    if validation is None:
        return "-"
    try:
        return percent_text(ValidationReport.from_json(validation).lut_sum.mape.value, 2)
    except SpecError:  # a report of another lutbuilder; `luts show --json` has it as it stands
        return "?"


def _show_validation(validation: Mapping[str, Any]) -> None:
    from lutbuilder.cli.validate import show_report
    from lutbuilder.stats.quality import ValidationReport
    from lutbuilder_agent.errors import SpecError

    try:
        report = ValidationReport.from_json(validation)
    except SpecError as error:
        print(f"\nvalidation: written by another lutbuilder ({error}); see it with --json")
        return
    show_report(report)


def _provenance(lut: Lut) -> list[tuple[str, str]]:
    meta = lut.meta
    target = meta.target
    return [
        ("file", str(lut.path)),
        ("device", f"{target.device}, environment {meta.fingerprint.env_id}"),
        ("runtime", f"{target.runtime} {meta.runtime_version}"),
        ("set-up", f"{target.dtype}, batch {target.batch}, {target.threads} thread(s), cache {target.cache}"),
        ("spaces", ", ".join(meta.spaces)),
        ("created", f"{meta.created} by lutbuilder {meta.tool_version}"),
        ("parent", "" if meta.parent_version is None else f"version {meta.parent_version}"),
        ("ended by", meta.stop_reason or ""),
        ("conditions", meta.conditions),
        ("content", f"sha256 {meta.content_sha256[:16]}..."),
    ]


def _quality(lut: Lut) -> list[tuple[str, str]]:
    quality = lut.meta.quality
    # An empty call takes microseconds, so its relative interval says nothing: the worst op is what one asks for.
    widths = [row.half_width for row in lut.rows() if row.kind != "identity" and row.half_width is not None]
    worst = percent_text(max(widths, default=None))
    return [
        ("rows", f"{quality.n_rows}, {quality.n_failed} without a latency"),
        (
            "precision",
            f"±{percent_text(quality.median_half_width)} median, ±{worst} worst op",
        ),
        ("test-retest", f"{percent_text(quality.median_test_retest, 2)} median, even against odd rounds"),
        ("rounds", "" if quality.rounds is None else str(quality.rounds)),
        ("sessions", "" if quality.sessions is None else str(quality.sessions)),
        ("time", "" if quality.wall_s is None else duration_text(quality.wall_s)),
        (
            "timed",
            "" if quality.timed_fraction is None else f"{percent_text(quality.timed_fraction)} of it inside visits",
        ),
    ]


def _rows(lut: Lut) -> list[tuple[str, ...]]:
    return [
        (
            row.op.label(),
            _ms(row.latency_ms),
            percent_text(row.half_width),
            _ms(row.call_overhead_ms),
            _ms(row.p90_ms),
            str(row.n_rounds),
            row.exec_status if not row.reason else f"{row.exec_status}: {row.reason}",
        )
        for row in sorted(lut.rows(), key=lambda row: row.kind == "identity")  # overheads last
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
