"""`lutbuilder search`: the most accurate architectures that keep a limit, by a table and the user's own accuracy."""

from __future__ import annotations

import math
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, check_writable, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.values import (
    amount,
    amount_of,
    amount_text,
    duration_text,
    fraction,
    named_value,
    whole,
)

if TYPE_CHECKING:
    from lutbuilder.lut import Lut
    from lutbuilder.nas.search import Accuracy, Progress
    from lutbuilder.nas.search.request import SearchOutcome, SearchRequest

LINE_EVERY_S = 5.0


def search(
    space: Annotated[
        str, typer.Argument(help="Search space, e.g. ofa_mbv3-w1.2; `lutbuilder spaces list` lists them.")
    ],
    lut: Annotated[str, typer.Argument(help="Table: luts/DEVICE/NAME, ...@VERSION, or a file.", show_default=False)],
    limit: Annotated[
        str,
        typer.Option(help="The most a network may cost: 12ms, 900us; 30mJ; 9000000 (cycles).", show_default=False),
    ],
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
        str, typer.Option(help="evolution, joint, pareto, bits, channels or netadapt; see above.")
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
    confidence: Annotated[
        str | None,
        typer.Option(
            help="A network counts as within --limit only with this probability, by the rows' intervals: 0.95 or 95%; "
            "for evolution, joint and pareto [default: by its predicted cost].",
            show_default=False,
        ),
    ] = None,
    bucket: Annotated[
        str | None, typer.Option(help="Width of a bucket of pareto [default: a 20th of the range].", show_default=False)
    ] = None,
    generations: Annotated[
        int | None,
        typer.Option(
            help="Generations, or iterations [default: as published; of bits and channels 50].", show_default=False
        ),
    ] = None,
    population: Annotated[
        int | None,
        typer.Option(
            help="Archs a generation, or episodes [default: as published; of bits and channels 64].", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes the result.")] = 1,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the search in this file while it runs, and continue the one that is in it.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Archs to show [default: 10, of pareto all].", show_default=False)
    ] = None,
    save_networks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write what is shown as a new list for validate --networks.", show_default=False
        ),
    ] = None,
    luts: LutsFolder = Path("luts"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Search a space for accurate networks under a hard limit.

    Every network that is shown or saved keeps every limit, by the table's sum over its ops. A limit that no network
    keeps is refused with the lowest cost there is. With --confidence a network is within the limit only if it costs no
    more with that probability. Methods: evolution (OFA), joint (APQ: a layer's widths, kernel and
    bits at once), pareto (AttentiveNAS, AlphaNet: the best of each cost bucket), bits (HAQ) and channels (AMC) with a
    plain optimiser in place of a trained agent, and netadapt, which comes down from the largest network and gives the
    one it reaches the limit with; if it does not get there, it gives none and ends with status 1.

    With --json all archs are encodings and values by name; the text shows - where a variable does not matter.

    \b
    Examples:
      lutbuilder search proxyless luts/<device>/onnxruntime-fp32-bs1 --limit 6ms --accuracy mine:accuracy
      lutbuilder search ofa_mbv3 <lut> --limit 12ms --accuracy mine:accuracy --seed 7 --resume search.npz
      lutbuilder search attentivenas <lut> --method pareto --limit 9ms --at-least 3ms --accuracy mine:accuracy
      lutbuilder search haq <lut> --method bits --column cycles --limit 9000000 --accuracy mine:accuracy --json
      lutbuilder search proxyless <lut> --limit 6ms --also energy_mj=30mJ --accuracy mine:accuracy --top 3
      lutbuilder search ofa_mbv3 <lut> --limit 12ms --confidence 0.95 --accuracy mine:accuracy
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder import spaces
        from lutbuilder.lut import Lut
        from lutbuilder.nas.search.request import ColumnLimit, SearchRequest, run
        from lutbuilder_agent.errors import SpecError

        spaces.get(space)
        shown = whole(
            (100_000 if method == "pareto" else 10) if top is None else top, option="--top", least=1, most=100_000
        )
        opened = Lut.load(lut, folder=luts)
        _check_column(column, opened, "--column {}")
        first = ColumnLimit(
            column=column,
            max_cost=amount(limit, option="--limit", column=column),
            **({} if at_least is None else {"min_cost": amount(at_least, option="--at-least", column=column)}),
            confidence=None if confidence is None else fraction(confidence, option="--confidence"),
        )
        if first.min_cost > first.max_cost:
            raise SpecError(f"--at-least {at_least} is above --limit {limit}")
        others: list[ColumnLimit] = []
        for text in also or ():
            name = text.partition("=")[0].strip()
            _check_column(name, opened, "--also {}={}")
            _, most = named_value(text, option="--also", like=f"{name}={amount_of(name)}")
            if name in (limit_.column for limit_ in (first, *others)):
                raise SpecError(f"{name} is limited twice; give its lowest limit")
            others.append(ColumnLimit(column=name, max_cost=amount(most, option=f"--also {name}", column=name)))
        _check_outputs(resume, save_networks)
        searched = spaces.get(space, batch=opened.meta.target.batch)
        say(f"searching {searched.name} by the costs of {opened.name}@{opened.version}")
        request = SearchRequest(
            space=searched,
            lut=opened,
            accuracy=load_accuracy(accuracy),
            limits=(first, *others),
            method=method,
            seed=whole(seed, option="--seed", least=0, most=(1 << 63) - 1),
            generations=None
            if generations is None
            else whole(generations, option="--generations", least=0, most=10**7),
            population=None if population is None else whole(population, option="--population", least=2, most=10**6),
            bucket=None if bucket is None else amount(bucket, option="--bucket", column=column),
            state=resume,
        )
        view = SearchView(column=column)
        start_s = time.monotonic()
        with _notes() as notes, _stopping(resume):
            outcome = run(request, view.update)
        wall_s = time.monotonic() - start_s
        reached = outcome.ended not in _SHORT
        if not reached:
            notes.append(f"no network within the limit, the last one costs {view.cost}: {_SHORT[outcome.ended]}")
        for note in notes:
            say(f"note: {note}")
        if json_:
            emit_json(_as_data(request, outcome, shown, wall_s=wall_s, notes=notes))
        else:
            _show(request, outcome, shown, wall_s=wall_s)
    if save_networks is not None and reached:
        with errors_shown(as_json=False, debug=debug):  # what was found is on stdout already, one object of it
            _save(request, outcome, shown, save_networks)
    if not reached:
        raise typer.Exit(1)


# How netadapt ends short of the limit.
_SHORT = {
    "iterations": "the iterations ran out; more --generations may get there, --method evolution begins there",
    "stuck": "no layer alone can save another step; --method evolution changes several",
}


def load_accuracy(text: str) -> Accuracy:
    """Return the function that MODULE:FUNCTION names. Raises SpecError saying what is not there."""
    from lutbuilder.spaces.registry import named
    from lutbuilder_agent.errors import SpecError

    found = named(text, what="--accuracy", like="mine:accuracy")
    if not callable(found):
        raise SpecError(f"--accuracy {text!r} is no function but {found!r:.60}")
    accuracy: Accuracy = found
    return accuracy


class SearchView:
    """Progress on stderr: a line once the first networks are scored, then one every few seconds.

    `clock` gives seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, *, column: str = "latency_ms", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._column = column
        self._clock = clock
        self._start_s = clock()
        self._line_at_s = -math.inf  # the first moment is shown at once
        self._first: int | None = None
        self.cost = "?"  # of the best network at the last moment

    def update(self, progress: Progress) -> None:
        """Show one moment, unless the last line is fresh."""
        now_s = self._clock()
        if self._first is None:
            self._first = progress.generation
        self.cost = amount_text(progress.best_cost, self._column)
        done = progress.generation - self._first
        if now_s - self._line_at_s < LINE_EVERY_S:
            return
        self._line_at_s = now_s
        elapsed_s = now_s - self._start_s
        eta = f", eta {duration_text(elapsed_s / done * (progress.generations - progress.generation))}" if done else ""
        print(
            f"[generation {progress.generation}/{progress.generations}] {duration_text(elapsed_s)} elapsed{eta}, "
            f"{progress.n_scored} scored, best {progress.best_score:.6g} at {self.cost}",
            file=self._stream,
            flush=True,
        )


def _check_column(name: str, lut: Lut, ask: str) -> None:
    """Refuse a column without costs, naming those the table has and what to type: `ask` with a name and an amount."""
    from lutbuilder.nas.compiled import COSTS, other_columns
    from lutbuilder_agent.errors import OpNotInLut, UnknownName

    there = [cost for cost in COSTS if lut.table.column(cost).null_count < len(lut)]
    if name in there:
        return
    take = ask.format(there[0], amount_of(there[0])) if there else ""
    if name in COSTS:
        raise OpNotInLut(f"{lut.spec} has no {name}. {other_columns(name, there, take=take)}")
    raise UnknownName(f"{lut.spec} has no column {name!r}; it has {', '.join(there) or 'none'}: take one, as {take}")


def _check_outputs(state: Path | None, networks: Path | None) -> None:
    """Refuse what cannot be written before the search, not after it."""
    from lutbuilder_agent.errors import SpecError

    if state is not None:
        check_writable(state, option="--resume")
    if networks is not None:
        check_writable(networks, option="--save-networks")
        if networks.exists():
            raise SpecError(f"--save-networks {networks} is there already; name another file, or remove it")


@contextmanager
def _stopping(state: Path | None) -> Iterator[None]:
    """Say of a search that Ctrl-C ends what is kept of it, and how it goes on."""
    from lutbuilder.nas.search import StateFile
    from lutbuilder_agent.errors import Interrupted

    try:
        yield
    except KeyboardInterrupt as error:
        told = "nothing is kept; with --resume FILE a search can go on where it was stopped"
        if state is not None:
            again = shlex.join(["lutbuilder", *sys.argv[1:]])
            done = StateFile(path=state).generation()
            told = (
                f"nothing is kept, the first networks were not scored yet. Start again: {again}"
                if done is None
                else f"{state} holds the search after generation {done}. Go on: {again}"
            )
        raise Interrupted(f"stopped by Ctrl-C; {told}") from error


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


def _as_data(
    request: SearchRequest, outcome: SearchOutcome, shown: int, *, wall_s: float, notes: list[str]
) -> dict[str, object]:
    return {
        "space": request.space.name,
        "lut": {"name": request.lut.name, "version": request.lut.version, "path": str(request.lut.path)},
        "method": request.method,
        "seed": request.seed,
        "limits": [
            {
                "column": limit.column,
                "max_cost": limit.max_cost,
                "min_cost": limit.min_cost,
                "confidence": limit.confidence,
            }
            for limit in request.limits
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
                "encoding": arch,
                "arch": request.space.decode(arch),
            }
            for row, arch in enumerate(outcome.archs[:shown])
        ],
    }


def _show(request: SearchRequest, outcome: SearchOutcome, shown: int, *, wall_s: float) -> None:
    from lutbuilder.spaces.summary import arch_text

    told = [f"{amount_text(limit.max_cost, limit.column, digits=10)} of {limit.column}" for limit in request.limits]
    first = request.limits[0]
    if math.isfinite(first.min_cost):
        told[0] += f", at least {amount_text(first.min_cost, first.column, digits=10)}"
    if first.confidence is not None:
        told[0] += f", with {100 * first.confidence:g} % confidence"
    pairs(
        f"{request.method} search of {request.space.name}",
        [
            ("table", f"{request.lut.name}@{request.lut.version}"),
            ("limit", "; ".join(told)),
            ("took", f"{duration_text(wall_s)}, {outcome.generations} generations, seed {request.seed}"),
            ("scored", f"{outcome.n_scored} networks"),
            ("ended", "every network within the limits was scored" if outcome.ended == "exhausted" else ""),
        ],
    )
    names = [limit.column for limit in request.limits]
    lines = [
        (
            f"{outcome.scores[row]:.6g}",
            *(amount_text(cost, name).split()[0] for cost, name in zip(outcome.costs[:, row], names, strict=True)),
            arch_text(request.space, arch),
        )
        for row, arch in enumerate(outcome.archs[:shown])
    ]
    if lines:
        table("", ["score", *names, "arch"], lines, right=["score", *names])


def _save(request: SearchRequest, outcome: SearchOutcome, shown: int, path: Path) -> None:
    from lutbuilder.networks import HeldOut, save_networks

    found = {
        network.op_id: network
        for network in (HeldOut.of(request.space, arch.tolist(), group="searched") for arch in outcome.archs[:shown])
    }
    save_networks(tuple(found.values()), request.space, path, batch=request.lut.meta.target.batch)
    say(f"wrote {len(found)} networks to {path}")
