"""`lutbuilder luts`: the tables there are, what is in one, what is wrong with it, and what differs between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lutbuilder.cli import interchange
from lutbuilder.cli.console import Debug, Json, LutsFolder, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.values import duration_text, fraction, percent_text

if TYPE_CHECKING:
    from lutbuilder.lut import Lut, Row
    from lutbuilder.lut.diff import Diff, RowDiff, Verdict
    from lutbuilder.lut.lint import Finding, Severity
    from lutbuilder.rebuild import Rebuilt
    from lutbuilder.stats.sessions import SessionReport
    from lutbuilder.urls import Place

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command("import")(interchange.import_)
app.command("export")(interchange.export)
app.command("formats")(interchange.formats)


@app.callback()
def luts() -> None:
    """List tables, show one, check them, compare two, read and write published ones.

    \b
    Examples:
      lutbuilder luts list
      lutbuilder luts show luts/<device>/onnxruntime-fp32-bs1
      lutbuilder luts lint luts/<device>/onnxruntime-fp32-bs1
      lutbuilder luts diff luts/<device>/onnxruntime-fp32-bs1@1 luts/<device>/onnxruntime-fp32-bs1@2
      lutbuilder luts rebuild luts/<device>/onnxruntime-fp32-bs1
      lutbuilder luts import --format ofa-mbv3-yaml note10/ --into note10/tflite-fp32-bs1
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
      lutbuilder luts list --luts s3://bucket/luts
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.lut import Lut, list_luts
        from lutbuilder_agent.errors import LutError

        found: list[Lut] = []
        refused: list[tuple[Place, LutError]] = []
        for entry in list_luts(luts):
            try:
                found.append(Lut.load(entry.path()))
            except LutError as why:
                refused.append((entry.path(), why))
        if json_:
            emit_json({"luts": [as_data(lut) for lut in found], "refused": [_refused(*one) for one in refused]})
        elif found:
            columns = ["table", "version", "rows", "precision", "MAPE", "space", "created", "marks"]
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
    every_row: Annotated[
        bool, typer.Option("--every-row", help="Also rows that a lookup leaves for a better one of the same op.")
    ] = False,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show a table and its evidence.

    Where it comes from, how good it is, how well it predicts whole networks, and the row that a lookup takes of every
    op. --json has every row.

    \b
    Examples:
      lutbuilder luts show
      lutbuilder luts show luts/<device>/onnxruntime-fp32-bs1@3
      lutbuilder luts show luts/<device>/litert-fp32-bs1/v0001.parquet --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.lut import Lut, preferred

        found = _newest(luts) if lut is None else Lut.load(lut, folder=luts)
        if json_:
            emit_json({**as_data(found), "meta": found.meta.footer(), "rows": found.rows()})
            return
        pairs(f"{found.name}@{found.version}", _provenance(found))
        pairs("\nquality", _quality(found))
        if len(found.meta.session_reports) > 1:
            print("\nsessions")
            table("", _SESSION_COLUMNS, map(_session, found.meta.session_reports), right=_SESSION_COLUMNS[2:6])
        if found.meta.validation is not None:
            _show_validation(found.meta.validation)
        columns = ["op", "latency ms", "±", "call ms", "p90 ms", "rounds", "instances", "sessions", "method", "status"]
        shown = found.rows() if every_row else tuple(preferred(found.rows()).values())
        table("", columns, _rows(shown), right=columns[1:-2])
        if len(shown) < len(found):
            say(f"{len(found) - len(shown)} more rows of the same ops, timed or fitted in another way: --every-row")


@app.command()
def lint(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LUT]...",
            help="luts/DEVICE/NAME, ...@VERSION, or a file [default: the newest version of every table].",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count like errors.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules and end.")] = False,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Check tables and say what is wrong with them.

    Every finding names its rule, the row, and the figure that crossed a threshold. Ends with 0 if there is no error,
    with 1 if there is one (with --strict: or a warning), with another status if a table cannot be opened.

    \b
    Examples:
      lutbuilder luts lint
      lutbuilder luts lint luts/<device>/onnxruntime-fp32-bs1@3 --strict
      lutbuilder luts lint --rules
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.lut import Lut, list_luts
        from lutbuilder.lut.lint import RULES, Sheet
        from lutbuilder.lut.lint import lint as findings_of
        from lutbuilder_agent.errors import LutNotFound

        if rules:
            if json_:
                emit_json(
                    {"rules": [{"id": r.id, "severity": r.severity, "name": r.name, "what": r.what} for r in RULES]}
                )
            else:
                table("", ["rule", "severity", "what"], [(rule.id, rule.severity, rule.what) for rule in RULES])
            return
        specs = tables or [str(entry.path()) for entry in list_luts(luts)]
        if not specs:
            raise LutNotFound(f"no tables below {luts}; collect one: lutbuilder collect --device cpu")
        named = [Lut.load(spec, folder=luts) for spec in specs]
        others = _imported_tables(named, luts)
        checked = [(lut, findings_of(Sheet.of(lut, others=others))) for lut in named]
        if json_:
            emit_json({"luts": [_linted(lut, findings) for lut, findings in checked]})
        else:
            for lut, findings in checked:
                _show_findings(lut, findings)
        fatal = ("error", "warning") if strict else ("error",)
        if any(finding.severity in fatal for _, findings in checked for finding in findings):
            raise typer.Exit(1)


@app.command()
def diff(
    a: Annotated[
        str, typer.Argument(help="Table before: luts/DEVICE/NAME, ...@VERSION, or a file.", show_default=False)
    ],
    b: Annotated[str, typer.Argument(help="Table after.", show_default=False)],
    min_effect: Annotated[str, typer.Option(help="The smallest change that matters.")] = "2%",
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Leave the scale common to all rows in their changes.")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture of it, too.", show_default=False)
    ] = None,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two tables: which ops became FASTER or SLOWER, which are the SAME, where one is UNSURE.

    Two collections of one target differ by a scale common to all rows: it is told once and taken out of them. FASTER
    and SLOWER: changed, with 5 % false discoveries, and by at least the minimum effect as estimated. SAME: below it
    with a probability of 95 %, given how all rows behave. Between different targets: ratios as they are.

    \b
    Examples:
      lutbuilder luts diff luts/<device>/onnxruntime-fp32-bs1@1 luts/<device>/onnxruntime-fp32-bs1@2
      lutbuilder luts diff luts/<device>/litert-fp32-bs1 luts/<device>/onnxruntime-fp32-bs1 --svg ratio.svg
      lutbuilder luts diff before.parquet after.parquet --min-effect 5% --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.lut import Lut
        from lutbuilder.lut.diff import diff as compare

        found = compare(
            Lut.load(a, folder=luts),
            Lut.load(b, folder=luts),
            min_effect=fraction(min_effect, option="--min-effect"),
            absolute=absolute,
        )
        if svg is not None:
            _write_picture(found, svg)
        if json_:
            emit_json(found)
        else:
            _show_diff(found)


@app.command("rebuild")
def rebuild_(
    lut: Annotated[str, typer.Argument(help="luts/DEVICE/NAME, or ...@VERSION.", show_default=False)],
    accept_noisy: Annotated[
        bool, typer.Option("--accept-noisy", help="Publish, marked, what was measured too badly to be published.")
    ] = False,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a table again from its visits, with the statistics of this lutbuilder, and publish it as a new version.

    Reads the visits that lie beside the version and those before it (samples/), measures nothing, and needs neither the
    device nor the campaign store. The same lutbuilder makes the same rows. Prints the new table's path on stdout.

    \b
    Examples:
      lutbuilder luts rebuild luts/<device>/onnxruntime-fp32-bs1
      lutbuilder luts rebuild luts/<device>/litert-fp32-bs1@2 --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.rebuild import rebuild

        made = rebuild(lut, luts=luts, accept_noisy=accept_noisy, on_step=say)
        if json_:
            emit_json(
                {
                    "lut": {"name": made.lut.name, "version": made.lut.version, "path": str(made.lut.path)},
                    "source_version": made.source.version,
                    "fitted_versions": list(made.steps),
                    "n_visits": made.n_visits,
                    "rows": len(made.lut),
                    "identical": made.identical,
                    "changed": made.changed,
                    "validation_left": made.validation_left,
                }
            )
            return
        for line in _rebuilt(made):
            say(line)
        print(made.lut.path)


def _rebuilt(made: Rebuilt) -> list[str]:
    """Return what happened, in lines for people."""
    of = f"{made.source.name}@{made.source.version}"
    lines = [f"published {made.lut.name}@{made.lut.version}: {len(made.lut)} rows, fitted to {made.n_visits} visits"]
    if made.identical:
        lines.append(f"every row is that of {of}")
    else:
        ratios = [ratio for ratio in made.changed.values() if ratio is not None]
        span = f", {_change(min(ratios))} to {_change(max(ratios))}" if ratios else ""
        lines.append(f"{len(made.changed)} latencies differ from those of {of}{span}: lutbuilder luts diff says which")
    if made.validation_left:
        lines.append(f"the validation of {of} was of other rows: lutbuilder validate {made.lut.path.parent}")
    return lines


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
        "quality": lut.quality,
        "noisy": list(lut.meta.noisy),
        "statuses": dict(Counter(row.status for row in lut.rows())),
        "validation": lut.meta.validation,
    }


_SESSION_COLUMNS = ("session", "agent", "visits", "scale", "drift", "residual", "judged")
_VERDICTS: tuple[Verdict, ...] = ("SLOWER", "FASTER", "UNSURE", "SAME")


def _newest(folder: Place) -> Lut:
    from lutbuilder.lut import Lut, list_luts
    from lutbuilder_agent.errors import LutNotFound

    found = [Lut.load(entry.path()) for entry in list_luts(folder)]
    if not found:
        raise LutNotFound(f"no tables below {folder}; collect one: lutbuilder collect --device cpu")
    return max(found, key=lambda lut: lut.meta.created)


def _imported_tables(named: Sequence[Lut], folder: Place) -> list[Lut]:
    """Return the tables that imported rows may be copied from: the named ones and the newest below `folder`."""
    from lutbuilder.lut import Lut, list_luts
    from lutbuilder_agent.errors import LutError

    found = {lut.path.absolute(): lut for lut in named if _has_imported(lut)}
    for entry in list_luts(folder) if found else ():
        if entry.path().absolute() not in found:
            try:
                lut = Lut.load(entry.path())
            except LutError:  # it is not the one to be checked; `luts list` names it
                continue
            if _has_imported(lut):
                found[lut.path.absolute()] = lut
    return list(found.values())


def _has_imported(lut: Lut) -> bool:
    return "imported" in lut.table.column("evidence").to_pylist()


def _refused(path: Place, error: Any) -> dict[str, str]:
    return {"path": str(path), "code": error.code, "message": str(error)}


def _line(lut: Lut) -> tuple[str, ...]:
    quality = lut.quality
    return (
        lut.name,
        str(lut.version),
        str(len(lut)),
        "-" if quality.median_half_width is None else f"±{percent_text(quality.median_half_width)}",
        _mape(lut.meta.validation),
        ", ".join(lut.meta.spaces),
        lut.meta.created,
        ", ".join(_marks(lut)),
    )


def _marks(lut: Lut) -> list[str]:
    """Return what one has to know of a table before anything else."""
    marks = [f"noisy ({', '.join(lut.meta.noisy)})"] if lut.meta.noisy else []
    counts = Counter(row.status for row in lut.rows() if row.kind != "identity")
    return marks + [f"{counts[status]} {status}" for status in ("calibrated", "imputed", "imported") if counts[status]]


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
        ("content", f"sha256 {meta.content_sha256[:16]}..., schema {meta.schema_version}"),
        ("marks", ", ".join(_marks(lut))),
    ]


def _quality(lut: Lut) -> list[tuple[str, str]]:
    quality = lut.quality
    statuses = Counter(row.status for row in lut.rows())
    pairs_told = ""
    if quality.n_monotone_pairs:
        pairs_told = f"{quality.n_monotone_violations} violations of {quality.n_monotone_pairs} pairs of ops"
    return [
        ("rows", f"{quality.n_rows}: {', '.join(f'{count} {status}' for status, count in statuses.items())}"),
        ("ops", f"±{percent_text(quality.median_half_width)} median, ±{percent_text(quality.max_half_width)} widest"),
        (
            "call overheads",
            ""
            if quality.median_overhead_half_width is None
            else f"{_of_overhead(quality.median_overhead_half_width)} median, "
            f"{_of_overhead(quality.max_overhead_half_width)} widest: microseconds, and inside the ops' intervals",
        ),
        ("test-retest", f"{percent_text(quality.median_test_retest, 2)} median, even against odd rounds"),
        (
            "residual",
            ""
            if quality.median_residual_mad is None
            else f"{percent_text(quality.median_residual_mad, 2)} median spread of single visits, drift taken out",
        ),
        ("monotone", pairs_told),
        (
            "disturbed",
            ""
            if quality.preempted_fraction is None
            else f"{percent_text(quality.preempted_fraction)} of calls preempted, "
            f"{percent_text(quality.bimodal_fraction)} of ops bimodal",
        ),
        ("rounds", "" if quality.rounds is None else str(quality.rounds)),
        ("sessions", "" if quality.sessions is None else str(quality.sessions)),
        ("machine", _speeds([speed for _, speed in lut.meta.drift_trace])),
        ("time", "" if quality.wall_s is None else duration_text(quality.wall_s)),
        (
            "timed",
            "" if quality.timed_fraction is None else f"{percent_text(quality.timed_fraction)} of it inside visits",
        ),
    ]


def _of_overhead(half_width: float | None) -> str:
    """Return how well a call overhead is known; one that is all but nothing has a relative interval of any size."""
    if half_width is not None and half_width > 1.0:
        return "more than itself"
    return f"±{percent_text(half_width)}"


_BARS = "▁▂▃▄▅▆▇█"
_BINS = 40


def _speeds(speeds: Sequence[float]) -> str:
    """Return the machine's speed over the campaign as a line of bars, and how far it moved."""
    if len(speeds) < 2:
        return ""
    low, high = min(speeds), max(speeds)
    bins = min(_BINS, len(speeds))
    parts = [speeds[len(speeds) * n // bins : len(speeds) * (n + 1) // bins] for n in range(bins)]
    means = [sum(part) / len(part) for part in parts]
    bars = "".join(_BARS[round((len(_BARS) - 1) * (mean - low) / (high - low or 1.0))] for mean in means)
    return f"speed {low:.2f} to {high:.2f} of the typical, over time {bars}"


def _session(report: SessionReport) -> tuple[str, ...]:
    judged = "left out: " if report.excluded else "flagged: " if report.flagged else "in line"
    return (
        report.session_id,
        report.agent,
        str(report.n_visits),
        f"{100 * report.scale:+.2f} %",
        percent_text(report.drift_range),
        percent_text(report.sentinel_residual, 2),
        judged + (report.reason if report.flagged or report.excluded else ""),
    )


def _rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [
        (
            row.op.label(),
            _ms(row.latency_ms),
            percent_text(row.half_width),
            _ms(row.call_overhead_ms),
            _ms(row.p90_ms),
            str(row.n_rounds),
            str(row.n_instances),
            str(row.n_sessions),
            (row.method or "").replace("_", " "),
            _status(row),
        )
        for row in sorted(rows, key=lambda row: row.kind == "identity")  # overheads last
    ]


def _status(row: Row) -> str:
    marks = [
        mark
        for mark, is_set in (
            ("bimodal", row.bimodal),
            ("not settled", row.settled is False),
            (f"{percent_text(row.throttled_fraction)} throttled", row.throttled_fraction),
            (row.exec_status, row.exec_status not in ("native", row.status)),
        )
        if is_set
    ]
    return ", ".join([row.status, *marks]) + (f": {row.reason}" if row.reason else "")


def _linted(lut: Lut, findings: Sequence[Finding]) -> dict[str, object]:
    counts = Counter(finding.severity for finding in findings)
    return {
        "name": lut.name,
        "version": lut.version,
        "path": str(lut.path),
        "n_rows": len(lut),
        "n_monotone_pairs": lut.quality.n_monotone_pairs,
        "counts": {severity: counts[severity] for severity in ("error", "warning", "info")},
        "findings": list(findings),
    }


def _show_findings(lut: Lut, findings: Sequence[Finding]) -> None:
    counts = Counter(finding.severity for finding in findings)
    told = ", ".join(f"{counts[one]} {many}" for one, many in _SEVERITIES if counts[one]) or "clean"
    print(f"{lut.name}@{lut.version}: {told} ({len(lut)} rows, {lut.quality.n_monotone_pairs} pairs)")
    if findings:
        lines = [(found.severity, found.rule, found.op or "table", found.message) for found in findings]
        table("", ["severity", "rule", "row", "found"], lines)


_SEVERITIES: tuple[tuple[Severity, str], ...] = (("error", "error(s)"), ("warning", "warning(s)"), ("info", "note(s)"))


def _show_diff(found: Diff) -> None:
    scale = ""
    if found.scale is not None:
        interval = f"{_change(found.scale_lo)} to {_change(found.scale_hi)}"
        scale = (
            f"{_change(found.scale)} ({interval}), {'left in the rows' if found.absolute else 'taken out of the rows'}"
        )
    counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in _VERDICTS)
    n_borrowed = sum(row.borrowed for row in found.rows)
    borrowed = f"{n_borrowed} of the SAME rest on the other rows: their own intervals are wide" if n_borrowed else ""
    pairs(
        f"{found.b} against {found.a}",
        [
            ("differ", "; ".join(found.differences) or "nothing in target and conditions"),
            ("common scale", scale),
            ("ranks", "" if found.rank_correlation is None else f"Spearman {found.rank_correlation:.4f}"),
            ("rows", f"{counts} at ±{100 * found.min_effect:g} %, of {len(found.rows)}"),
            ("", borrowed),
            ("only before", ", ".join(found.only_in_a)),
            ("only after", ", ".join(found.only_in_b)),
            *(("note", note) for note in found.notes),
        ],
    )
    ordered = sorted(found.rows, key=lambda row: (_VERDICTS.index(row.verdict), row.ratio))
    columns = ["op", "before ms", "after ms", "change", "95 % interval", "verdict", ""]
    table("", columns, map(_diff_line, ordered), right=columns[1:5])


def _diff_line(row: RowDiff) -> tuple[str, ...]:
    interval = "-" if row.ratio_lo is None else f"{_change(row.ratio_lo)} to {_change(row.ratio_hi)}"
    note = ", ".join(filter(None, ("by the other rows" if row.borrowed else "", row.note)))
    return (row.label, _ms(row.a_ms), _ms(row.b_ms), _change(row.ratio), interval, row.verdict, note)


def _change(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{100 * (ratio - 1):+.1f} %" if 0.5 < ratio < 2 else f"x {ratio:.3g}"


def _write_picture(found: Diff, path: Path) -> None:
    from lutbuilder.cli.diff_svg import diff_svg
    from lutbuilder_agent.errors import LutNotWritable

    try:
        path.write_text(diff_svg(found), encoding="utf-8")
    except OSError as error:
        raise LutNotWritable(f"cannot write {path}: {error.strerror}; choose another file for --svg") from error
    say(f"wrote {path}")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
