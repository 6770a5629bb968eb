"""`lutbuilder spaces`: the search spaces, what is in one, and how much of it a table covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, emit_json, errors_shown, pairs, table

if TYPE_CHECKING:
    from lutbuilder.lut import Lut
    from lutbuilder.op import OpSpec
    from lutbuilder.spaces import SearchSpace
    from lutbuilder.urls import Place

INCOMPLETE = 1  # exit status of `coverage`
_LISTED = 100  # ops that are listed unless all are asked for

app = typer.Typer(rich_markup_mode=None)
Name = Annotated[
    str, typer.Argument(help="Space, e.g. proxyless or ofa_mbv3-w1.2-r224; a .toml file; or mine:space of mine.py.")
]
AllOps = Annotated[bool, typer.Option("--ops", help="List every op, however many there are.")]


@app.callback(invoke_without_command=True)
def spaces(context: typer.Context, json_: Json = False, debug: Debug = False) -> None:
    """List the search spaces, show one, or compare one with a table.

    \b
    Examples:
      lutbuilder spaces list
      lutbuilder spaces show ofa_mbv3-w1.2
      lutbuilder spaces coverage ofa_mbv3 luts/<device>/onnxruntime-fp32-bs1
    """
    if context.invoked_subcommand is None:
        list_(json_, debug)


@app.command("list")
def list_(json_: Json = False, debug: Debug = False) -> None:
    """List the search spaces that have a name.

    \b
    Examples:
      lutbuilder spaces list
      lutbuilder spaces list --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.spaces import SPACES

        if json_:
            emit_json({"spaces": [{"name": name, **_entry(name)} for name in SPACES]})
        else:
            rows = [
                (_names(name), ", ".join(entry.variants), _grids(name), entry.summary) for name, entry in SPACES.items()
            ]
            table("", ["space", "variants (the first is the default)", "resolutions", "what"], rows)


@app.command()
def show(
    name: Name,
    lut: Annotated[
        str | None, typer.Option(help="Say how much of the space this table covers.", show_default=False)
    ] = None,
    bs: Annotated[
        int | None, typer.Option("--bs", help="Batch size [default: the table's, or 1].", show_default=False)
    ] = None,
    all_ops: AllOps = False,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show a space: its size, its stages, its variables and its ops.

    With --json every op is there, and with --lut how much of the space that table covers.

    \b
    Examples:
      lutbuilder spaces show proxyless
      lutbuilder spaces show ofa_mbv3-w1.2-r224 --ops
      lutbuilder spaces show proxyless --lut luts/<device>/onnxruntime-fp32-bs1
      lutbuilder spaces show my_space.toml --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.cli.values import whole
        from lutbuilder.spaces import get
        from lutbuilder.spaces.summary import choices, listed, stages

        found = _open(lut, luts) if lut is not None else None
        batch = bs if bs is not None else found.meta.target.batch if found is not None else 1
        space = get(name, batch=whole(batch, option="--bs", least=1, most=4096))
        ops = space.ops()
        if json_:
            emit_json(_shown(space, ops, found))
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(op.kind for op in ops).items())
        pairs(
            space.name,
            [
                ("architectures", _counted(space.n_archs())),
                ("distinct ops", f"{len(ops):,} ({kinds})"),
                ("sites", str(len(space.sites))),
                ("variables", str(len(space.variables))),
                ("constraints", str(len(space.constraints) or "")),
                ("coverage", _covered_text(found, ops) if found is not None else ""),
            ],
        )
        rows = [
            (s.name, _sites_text(s.n_sites, s.n_optional), s.channels, s.map, ", ".join(s.reads) or "-", f"{s.n_ops:,}")
            for s in stages(space)
        ]
        table("", ["stage", "sites", "channels", "map", "depends on", "ops"], rows, right=["ops"])
        variables = [
            (", ".join(c.names), str(c.count), listed(c.values), _matters(c.n_gated, c.count, c.gates))
            for c in choices(space)
        ]
        table("", ["variables", "count", "values", "matter"], variables, right=["count"])
        _list_ops("op", [(op.op_id, op.label()) for op in ops], all_ops)


@app.command()
def coverage(
    name: Name,
    lut: Annotated[str, typer.Argument(help="Table: luts/DEVICE/NAME, ...@VERSION, or a file.")],
    all_ops: AllOps = False,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List the ops of a space that a table has no row of, and the command that measures them.

    Ends with status 0 if the table has a row of every op, with 1 otherwise. Of a large grid of widths (amc, netadapt)
    the command measures some ops and imputes the others (--max-ops). A row may say that its op failed or is
    unsupported: it is covered, and networks with it cost infinitely much.

    \b
    Examples:
      lutbuilder spaces coverage proxyless luts/<device>/onnxruntime-fp32-bs1
      lutbuilder spaces coverage ofa_mbv3-fine luts/<device>/onnxruntime-fp32-bs1@3 --ops
      lutbuilder spaces coverage ofa_mbv3-fine luts/<device>/onnxruntime-fp32-bs1@3 --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.spaces import get

        found = _open(lut, luts)
        space = get(name, batch=found.meta.target.batch)
        ops = space.ops()
        told = _coverage(space, ops, found)
        if json_:
            emit_json({"space": space.name, "lut": found.name, "version": found.version, **told})
        else:
            pairs(
                f"{space.name} in {found.name}@{found.version}",
                [
                    ("covered", _covered_text(found, ops)),
                    ("measure them", told["command"] or ""),
                    ("cannot be measured", _refused_text(told)),
                ],
            )
            if told["missing"]:
                _list_ops("missing op", [(op["op_id"], op["label"]) for op in told["missing"]], all_ops)
    if not told["complete"]:
        raise typer.Exit(INCOMPLETE)


def _list_ops(title: str, ops: Sequence[tuple[str, str]], all_ops: bool) -> None:
    shown = ops if all_ops else ops[:_LISTED]
    table("", ["op_id", title], shown)
    if len(shown) < len(ops):
        print(f"... and {len(ops) - len(shown):,} more ops: --ops lists all")


def _open(lut: str, luts: Place) -> Lut:
    from lutbuilder.lut import Lut

    return Lut.load(lut, folder=luts)


def _shown(space: SearchSpace, ops: Sequence[OpSpec], lut: Lut | None) -> dict[str, Any]:
    from lutbuilder.spaces.summary import stages

    covered = (
        {} if lut is None else {"coverage": {"lut": lut.name, "version": lut.version, **_coverage(space, ops, lut)}}
    )
    return {
        "name": space.name,
        "n_archs": str(space.n_archs()),  # text: beyond what JSON readers keep exactly
        "n_ops": len(ops),
        "stages": stages(space),
        "variables": [
            {
                "name": v.name,
                "values": v.values,
                "active_when": v.active_when.scope if v.active_when else (),  # the variables that decide it
            }
            for v in space.variables
        ],
        "sites": [{"name": site.name, "stage": site.stage, "scope": site.scope} for site in space.sites],
        "constraints": [condition.scope for condition in space.constraints],
        **covered,
        "ops": [{"op_id": op.op_id, "label": op.label(), **op.canonical()} for op in ops],
    }


def _coverage(space: SearchSpace, ops: Sequence[OpSpec], lut: Lut) -> dict[str, Any]:
    from lutbuilder.lower import lower
    from lutbuilder.spaces.grid import knots
    from lutbuilder_agent.errors import SpecError

    missing = [op for op in ops if op not in lut]
    reasons: dict[tuple[Any, ...], str] = {}
    for op in missing:
        what = (op.kind, op.se, op.w_bits, op.a_bits)  # lowering asks for no more
        if what not in reasons:
            try:
                lower(op)
                reasons[what] = ""
            except SpecError as error:
                reasons[what] = str(error)
    refused = {op: reasons[op.kind, op.se, op.w_bits, op.a_bits] for op in missing}
    measurable = [op for op, reason in refused.items() if not reason]
    return {
        "complete": not missing,
        "n_ops": len(ops),
        "covered": dict(_statuses(lut, ops)),
        "command": lut.command(space=space.name, max_ops=knots(measurable)) if measurable else None,
        "missing": [{"op_id": op.op_id, "label": op.label(), "not_measurable": refused[op] or None} for op in missing],
    }


def _statuses(lut: Lut, ops: Sequence[OpSpec]) -> Counter[str]:
    """Return how many of the ops with a row were measured, imputed, imported, failed, ..."""
    there = [op for op in ops if op in lut]
    columns = (lut.texts(there, name) for name in ("exec_status", "method", "evidence"))
    return Counter(
        status if status in ("failed", "unsupported") else method if method in ("imputed", "calibrated") else evidence
        for status, method, evidence in zip(*columns, strict=True)
        if status and evidence
    )


def _covered_text(lut: Lut, ops: Sequence[OpSpec]) -> str:
    statuses = _statuses(lut, ops)
    kinds = ", ".join(f"{count:,} {status}" for status, count in statuses.most_common())
    return f"{statuses.total():,} of {len(ops):,} ops have a row{f' ({kinds})' if kinds else ''}"


def _refused_text(told: dict[str, Any]) -> str:
    refused = [op["not_measurable"] for op in told["missing"] if op["not_measurable"]]
    return f"{len(refused):,} of the missing ones, e.g. {refused[0]}" if refused else ""


def _counted(archs: int) -> str:
    """Return a count with commas, and its size in a few digits where nobody would count them."""
    size = f"{Decimal(archs):.2e}".replace("e+", "e")  # not a float: there are more archs than those reach
    return f"{archs:,}" + (f" ({size})" if archs >= 10**9 else "")


def _sites_text(count: int, optional: int) -> str:
    return f"{count - optional} to {count}" if optional else str(count)


def _matters(gated: int, count: int, gates: Sequence[str]) -> str:
    if not gated:
        return "always"
    return f"{'all' if gated == count else f'{gated} of them'} as {', '.join(gates)} say"


def _names(name: str) -> str:
    return name + "".join(f" ({alias})" for alias in _aliases(name))


def _aliases(name: str) -> list[str]:
    from lutbuilder.spaces.registry import ALIASES

    return [alias for alias, meant in ALIASES.items() if meant == name]


def _entry(name: str) -> dict[str, object]:
    from lutbuilder.spaces import SPACES

    entry = SPACES[name]
    return {"aliases": _aliases(name), "summary": entry.summary, "variants": list(entry.variants), "grids": entry.grids}


def _grids(name: str) -> str:
    from lutbuilder.spaces import SPACES

    grids = SPACES[name].grids.items()
    return "; ".join(
        f"{grid + ': ' if grid else ''}{values[0]} to {values[-1]} ({len(values)})" for grid, values in grids
    )
