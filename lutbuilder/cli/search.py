"""`lutbuilder search`: the most accurate architectures that keep a limit, by a table and the user's own accuracy."""

from __future__ import annotations

import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.values import amount, duration_text, named_value, unit_of, whole

if TYPE_CHECKING:
    from lutbuilder.nas.search import Accuracy, Progress
    from lutbuilder.nas.search.request import SearchOutcome, SearchRequest

LINE_EVERY_S = 5.0


def search(
    space: Annotated[str, typer.Argument(help="Search space, e.g. ofa_mbv3-w1.2; `lutbuilder spaces` lists them.")],
    lut: Annotated[str, typer.Argument(help="Table: luts/DEVICE/NAME, ...@VERSION, or a file.", show_default=False)],
    limit: Annotated[str, typer.Option(help="The most a network may cost: 12ms, 900us.", show_default=False)],
    accuracy: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Your function from encodings (N, variables) to N figures, higher is better; the folder you are in "
            "is looked in first.",
            show_default=False,
        ),
    ],
    method: Annotated[
        str, typer.Option(help="evolution, joint, pareto, bits, channels or netadapt; see below.")
    ] = "evolution",
    at_least: Annotated[str | None, typer.Option(help="The least it may cost.", show_default=False)] = None,
    column: Annotated[str, typer.Option(help="Column of the table that is limited.")] = "latency_ms",
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=LIMIT",
            help="A further hard limit, e.g. energy_mj=30mJ; may be repeated.",
            show_default=False,
        ),
    ] = None,
    bucket: Annotated[
        str | None, typer.Option(help="Width of a bucket of pareto [default: a 20th of the range].", show_default=False)
    ] = None,
    generations: Annotated[
        int | None, typer.Option(help="Generations, or iterations [default: as published].", show_default=False)
    ] = None,
    population: Annotated[
        int | None, typer.Option(help="Archs a generation, or episodes [default: as published].", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes the result.")] = 1,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the state there every 10 generations, and continue from it if it is there.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Archs to show [default: 10, of pareto all].", show_default=False)
    ] = None,
    save_networks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what is shown as a list for validate --networks.", show_default=False),
    ] = None,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Search a space for accurate networks under a hard limit.

    Every network that is scored keeps every limit, by the table's sum over its ops. Methods: evolution (OFA), joint
    (APQ: a layer's widths, kernel and bits at once), pareto (AttentiveNAS, AlphaNet: the best of each cost bucket),
    bits (HAQ) and channels (AMC) with a plain optimiser in place of a trained agent, netadapt. A limit that no network
    keeps is refused with the lowest cost there is.

    \b
    Examples:
      lutbuilder search proxyless luts/<device>/onnxruntime-fp32-bs1 --limit 6ms --accuracy mine:accuracy
      lutbuilder search ofa_mbv3 <lut> --limit 12ms --accuracy mine:accuracy --seed 7 --resume search.npz
      lutbuilder search attentivenas <lut> --method pareto --limit 9ms --at-least 3ms --accuracy mine:accuracy
      lutbuilder search haq <lut> --method bits --column cycles --limit 9000000 --accuracy mine:accuracy --json
      lutbuilder search proxyless <lut> --limit 6ms --also energy_mj=30mJ --accuracy mine:accuracy --top 3
    """
    with errors_shown(as_json=json_, debug=debug, resumable=resume is not None):
        from lutbuilder import spaces
        from lutbuilder.lut import Lut
        from lutbuilder.nas.search.request import ColumnLimit, SearchRequest, run

        spaces.get(space)
        shown = whole(
            (100_000 if method == "pareto" else 10) if top is None else top, option="--top", least=1, most=100_000
        )
        first = ColumnLimit(
            column=column,
            max_cost=amount(limit, option="--limit", column=column),
            **({} if at_least is None else {"min_cost": amount(at_least, option="--at-least", column=column)}),
        )
        others = [named_value(text, option="--also") for text in also or ()]
        opened = Lut.load(lut, folder=luts)
        request = SearchRequest(
            space=spaces.get(space, batch=opened.meta.target.batch),
            lut=opened,
            accuracy=load_accuracy(accuracy),
            limits=(
                first,
                *(ColumnLimit(column=n, max_cost=amount(v, option=f"--also {n}", column=n)) for n, v in others),
            ),
            method=method,
            seed=whole(seed, option="--seed", least=0, most=(1 << 63) - 1),
            generations=None
            if generations is None
            else whole(generations, option="--generations", least=0, most=10**7),
            population=None if population is None else whole(population, option="--population", least=2, most=10**6),
            bucket=None if bucket is None else amount(bucket, option="--bucket", column=column),
            state=resume,
        )
        start_s = time.monotonic()
        with _notes() as notes:
            outcome = run(request, SearchView(unit=unit_of(column)).update)
        wall_s = time.monotonic() - start_s
        for note in notes:
            say(f"note: {note}")
        if save_networks is not None:
            _save(request, outcome, shown, save_networks)
        if json_:
            emit_json(_as_data(request, outcome, shown, wall_s=wall_s, notes=notes))
        else:
            _show(request, outcome, shown, wall_s=wall_s)
        if outcome.ended in ("iterations", "stuck"):
            raise typer.Exit(1)


def load_accuracy(text: str) -> Accuracy:
    """Return the function that MODULE:FUNCTION names, from an installed module or one in the current folder.

    Raises SpecError saying what is not there; what the module raises while it is imported is told with its name.
    """
    from lutbuilder_agent.errors import SpecError

    name, colon, attribute = text.partition(":")
    if not (name and colon and attribute):
        raise SpecError(f"--accuracy {text!r} is not MODULE:FUNCTION; write it as mine:accuracy for a file mine.py")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # user's code runs here
        raise SpecError(f"--accuracy {text!r}: importing {name} raised {type(error).__name__}: {error}") from error
    try:
        found = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise SpecError(f"--accuracy {text!r}: {error}") from error
    if not callable(found):
        raise SpecError(f"--accuracy {text!r} is no function but {found!r:.60}")
    accuracy: Accuracy = found
    return accuracy


class SearchView:
    """Progress on stderr: a line every few seconds. `clock` gives seconds."""

    def __init__(
        self, stream: TextIO | None = None, *, unit: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._unit = unit
        self._clock = clock
        self._start_s = self._line_at_s = clock()
        self._first: int | None = None

    def update(self, progress: Progress) -> None:
        """Show one moment, unless the last line is fresh."""
        now_s = self._clock()
        if self._first is None:
            self._first = progress.generation
        done = progress.generation - self._first
        if now_s - self._line_at_s < LINE_EVERY_S:
            return
        self._line_at_s = now_s
        elapsed_s = now_s - self._start_s
        eta = f", eta {duration_text(elapsed_s / done * (progress.generations - progress.generation))}" if done else ""
        print(
            f"[generation {progress.generation}/{progress.generations}] {duration_text(elapsed_s)} elapsed{eta}, "
            f"{progress.n_scored} scored, best {progress.best_score:.6g} at {progress.best_cost:.6g}{self._unit}",
            file=self._stream,
            flush=True,
        )


@contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect warnings about limits as notes; others go where they always go."""
    from lutbuilder.nas.search import LimitNeverBinds

    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LimitNeverBinds)
        yield notes
    for warning in caught:
        if issubclass(warning.category, LimitNeverBinds):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _rows(request: SearchRequest, outcome: SearchOutcome, shown: int) -> range:
    """The rows to show: the first, but of netadapt the last, where its cheapest networks are."""
    n = len(outcome.archs)
    return range(max(0, n - shown), n) if request.method == "netadapt" else range(min(n, shown))


def _as_data(
    request: SearchRequest, outcome: SearchOutcome, shown: int, *, wall_s: float, notes: list[str]
) -> dict[str, object]:
    rows = _rows(request, outcome, shown)
    return {
        "space": request.space.name,
        "lut": {"name": request.lut.name, "version": request.lut.version, "path": str(request.lut.path)},
        "method": request.method,
        "seed": request.seed,
        "limits": [
            {"column": limit.column, "max_cost": limit.max_cost, "min_cost": limit.min_cost} for limit in request.limits
        ],
        "generations": outcome.generations,
        "n_scored": outcome.n_scored,
        "ended": outcome.ended,
        "wall_s": wall_s,
        "notes": notes,
        "archs": [
            {
                "score": outcome.scores[row],
                "costs": {limit.column: outcome.costs[n, row] for n, limit in enumerate(request.limits)},
                "encoding": outcome.archs[row],
                "arch": request.space.decode(outcome.archs[row]),
            }
            for row in rows
        ],
    }


def _show(request: SearchRequest, outcome: SearchOutcome, shown: int, *, wall_s: float) -> None:
    told = [
        f"{limit.max_cost:g}{unit_of(limit.column)} of {limit.column}"
        + ("" if limit.min_cost == -float("inf") else f", at least {limit.min_cost:g}{unit_of(limit.column)}")
        for limit in request.limits
    ]
    ends = {
        "exhausted": "every network within the limits was scored",
        "iterations": "NOT within the limit: the iterations ran out, give --generations",
        "stuck": "NOT within the limit: no layer alone can save another step",
    }
    pairs(
        f"{request.method} search of {request.space.name}",
        [
            ("table", f"{request.lut.name}@{request.lut.version}"),
            ("limit", "; ".join(told)),
            ("took", f"{duration_text(wall_s)}, {outcome.generations} generations, seed {request.seed}"),
            ("scored", f"{outcome.n_scored} networks"),
            ("ended", ends.get(outcome.ended, "")),
        ],
    )
    columns = ["score", *(limit.column for limit in request.limits)]
    lines = [
        (
            f"{outcome.scores[row]:.6g}",
            *(f"{cost:.6g}" for cost in outcome.costs[:, row]),
            " ".join(f"{name}={value}" for name, value in request.space.decode(outcome.archs[row]).items()),
        )
        for row in _rows(request, outcome, shown)
    ]
    table("", [*columns, "arch"], lines, right=columns)


def _save(request: SearchRequest, outcome: SearchOutcome, shown: int, path: Path) -> None:
    from lutbuilder.networks import HeldOut, save_networks

    rows = _rows(request, outcome, shown)
    found = {
        network.op_id: network
        for network in (HeldOut.of(request.space, outcome.archs[row].tolist(), group="searched") for row in rows)
    }
    save_networks(tuple(found.values()), request.space, path, batch=request.lut.meta.target.batch)
    say(f"wrote {len(found)} networks to {path}")
