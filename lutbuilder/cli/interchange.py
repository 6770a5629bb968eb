"""`lutbuilder luts import`, `export` and `formats`: published tables in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, emit_json, errors_shown, say, table

if TYPE_CHECKING:
    from lutbuilder.lut import Lut
    from lutbuilder.lut.interchange import Imported

_SHOWN = 5
_UNITS = ("ms", "us", "s")
_METHODS = ("isolated", "context", "in_situ")


def formats(json_: Json = False, debug: Debug = False) -> None:
    """List the published formats that can be read and written, and what only you know of such files.

    \b
    Examples:
      lutbuilder luts formats
      lutbuilder luts formats --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.lut.interchange import get, names

        found = [get(name) for name in names()]
        if json_:
            emit_json(
                {
                    "formats": [
                        {"name": f.name, "summary": f.summary, "options": f.options, "pickle": f.pickled} for f in found
                    ]
                }
            )
        else:
            options = {f.name: " ".join(f"--{name.replace('_', '-')}" for name in f.options) for f in found}
            table("", ["format", "what", "takes"], [(f.name, f.summary, options[f.name]) for f in found])


def import_(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Published files, or folders of them.", show_default=False)
    ],
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="See: lutbuilder luts formats.", show_default=False)
    ],
    into: Annotated[
        str,
        typer.Option(metavar="NAME", help="Table to make: DEVICE/RUNTIME-DTYPE-bsN.", show_default=False),
    ],
    preset: Annotated[
        str | None, typer.Option(metavar="SPACE", help="Search space the table is of.", show_default=False)
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of the values: ms, us or s.", show_default=False)] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Columns of a file without header; or preset.", show_default=False),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size the values are of.", show_default=False)] = None,
    clock_mhz: Annotated[
        float | None, typer.Option(metavar="MHZ", help="Clock that turns cycles into ms.", show_default=False)
    ] = None,
    quantity: Annotated[
        str | None, typer.Option(help="latency, where a file may hold something else.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="How values were measured: isolated, context or in_situ.", show_default=False),
    ] = None,
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave rows out whose value no row may hold; count them.")
    ] = False,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Read a published table and publish it as a LUT: evidence imported, the original text beside every value.

    All files of a command are one edition of one table. Prints the path of the LUT on stdout. Whatever breaks the
    format is an error that names file and row, and nothing is written.

    \b
    Examples:
      lutbuilder luts import --format ofa-mbv3-yaml note10/ --into note10/tflite-fp32-bs1 --preset ofa_mbv3-w1.2
      lutbuilder luts import --format haq-npy table.npy --into bitfusion/simulator-mixed-bs16 --clock-mhz 500
      lutbuilder luts import --format fbnet-txt s8.txt --into s8/caffe2-int8-bs1 --unit us
      lutbuilder luts import --format tfnas-pickle gpu.pkl --into titan/torch-fp32-bs32 --batch 32 --drop-invalid
    """
    with errors_shown(as_json=json_, debug=debug):
        from datetime import datetime, timezone

        from lutbuilder import __version__
        from lutbuilder.cli.values import whole
        from lutbuilder.lut.interchange import ReadOptions, import_tables

        outcome = import_tables(
            paths,
            format=format_,
            into=into,
            folder=luts,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            tool_version=__version__,
            options=ReadOptions(
                preset=preset,
                unit=None if unit is None else _one_of(unit, _UNITS, option="--unit"),  # type: ignore[arg-type]  # checked
                columns=columns,
                batch=None if batch is None else whole(batch, option="--batch", least=1, most=4096),
                clock_mhz=clock_mhz,
                quantity=quantity,
                method=None if method is None else _one_of(method, _METHODS, option="--method"),  # type: ignore[arg-type]  # checked
                drop_invalid=drop_invalid,
            ),
        )
        if json_:
            emit_json(_as_data(outcome))
        else:
            for line in _summary(outcome):
                say(line)
            print(outcome.lut.path)


def export(
    lut: Annotated[
        str, typer.Argument(help="Table to write: luts/DEVICE/NAME, ...@VERSION, or a file.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Argument(help="File to write, or folder where a format is a file a resolution.", show_default=False),
    ],
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="See: lutbuilder luts formats.", show_default=False)
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="SPACE", help="Space whose ops to write [default: the one the table covers].", show_default=False
        ),
    ] = None,
    evidence: Annotated[
        str, typer.Option(metavar="A,B,...", help="Rows to write: measured, rtl_sim, modelled, imported.")
    ] = "measured",
    column: Annotated[
        str | None, typer.Option(help="Column to write [default: latency_ms, or cycles].", show_default=False)
    ] = None,
    scale: Annotated[float, typer.Option(help="Multiply every value, as a calibration would.")] = 1.0,
    offset_ms: Annotated[float, typer.Option(help="Add this to every network, as a calibration would.")] = 0.0,
    call_overhead: Annotated[
        bool, typer.Option("--call-overhead/--no-call-overhead", help="Add what calling a network costs, once.")
    ] = True,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Write a pickle: a program to whoever reads it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Write a table in a published format, for the program that reads that format unchanged.

    A file NAME.provenance.json beside it says which table, device, rows and constants it was made of. Stock `ofa`
    predicts from ofa-mbv3-yaml and ofa-proxyless-yaml what this program predicts from the table.

    \b
    Examples:
      lutbuilder luts export luts/<device>/onnxruntime-fp32-bs1 tables/ --format ofa-mbv3-yaml --preset ofa_mbv3-w1.2
      lutbuilder luts export luts/bitfusion/simulator-mixed-bs1 apq.dict --format apq-json --evidence imported
      lutbuilder luts export luts/<device>/onnxruntime-fp32-bs1 mobile.yaml --format proxyless-yaml
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder import __version__
        from lutbuilder.lut import Lut
        from lutbuilder.lut.interchange import export_table

        found = Lut.load(lut, folder=luts)
        kinds = tuple(word.strip() for word in evidence.split(","))
        constant_ms = offset_ms
        if call_overhead:
            constant_ms += scale * _call_overhead_ms(found, format_, preset=preset, column=column, evidence=kinds)
        written = export_table(
            found,
            out,
            format=format_,
            tool_version=__version__,
            preset=preset,
            column=column,
            evidence=kinds,
            constant_ms=constant_ms,
            scale=scale,
            allow_pickle=allow_pickle,
            overwrite=overwrite,
        )
        if json_:
            emit_json({**_written(written.files, written.sidecar), "n_values": written.n_values})
        else:
            say(f"wrote {written.n_values} values of {found.name}@{found.version}; see {written.sidecar}")
            print(out)


def _call_overhead_ms(
    lut: Lut, format: str, *, preset: str | None, column: str | None, evidence: tuple[str, ...]
) -> float:
    """Return what this program adds to every network of the space, so that both predict the same."""
    from lutbuilder.lut.interchange import get, space_of, with_evidence
    from lutbuilder.nas.compiled import NET_COLUMNS, compile_space
    from lutbuilder_agent.errors import OpNotInLut

    fmt = get(format)
    space = space_of(lut, fmt, preset)
    if space is None or (column or fmt.column) not in NET_COLUMNS:
        return 0.0
    try:
        return compile_space(space, with_evidence(lut, evidence)).call_overhead_ms
    except OpNotInLut:  # the exporter lists them
        return 0.0


def _one_of(value: str, known: tuple[str, ...], *, option: str) -> str:
    from lutbuilder_agent.errors import SpecError

    if value not in known:
        raise SpecError(f"{option} {value!r} is unknown; write one of {', '.join(known)}")
    return value


def _written(files: tuple[Path, ...], sidecar: Path) -> dict[str, object]:
    return {"files": list(map(str, files)), "sidecar": str(sidecar)}


def _as_data(outcome: Imported) -> dict[str, object]:
    return {
        "lut": {"name": outcome.lut.name, "version": outcome.lut.version, "path": str(outcome.lut.path)},
        "published": outcome.published,
        "revised": outcome.revised,
        "n_values": outcome.n_values,
        "n_rows": outcome.n_rows,
        "dropped": list(outcome.dropped),
        "notes": list(outcome.notes),
        "coverage": outcome.coverage,
    }


def _summary(outcome: Imported) -> list[str]:
    """Return what happened, in lines for people."""
    named = f"{outcome.lut.name}@{outcome.lut.version}"
    lines = [f"{named} has these rows already" if not outcome.published else f"published {named}"]
    lines[0] += f": {outcome.n_rows} ops of {outcome.n_values} values"
    if outcome.revised:
        lines.append(f"another edition of the table: version {outcome.lut.version} holds it alone, older versions stay")
    if outcome.dropped:
        lines.append(f"left out {len(outcome.dropped)} invalid rows:")
        lines += [f"  {told}" for told in outcome.dropped[:_SHOWN]]
        lines += [f"  and {len(outcome.dropped) - _SHOWN} more"] * (len(outcome.dropped) > _SHOWN)
    cover = outcome.coverage
    if cover is not None:
        there = cover.n_ops - len(cover.missing)
        lines.append(f"covers {there} of the {cover.n_ops} ops of {cover.space}")
        if cover.missing:
            more = f" and {len(cover.missing) - _SHOWN} more" if len(cover.missing) > _SHOWN else ""
            lines.append(f"missing: {', '.join(cover.missing[:_SHOWN])}{more}")
    return [*lines, *(f"warning: {note}" for note in outcome.notes)]
