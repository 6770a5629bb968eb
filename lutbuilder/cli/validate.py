"""`lutbuilder validate`: prove a table against whole networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, StateDir, emit_json, errors_shown, say
from lutbuilder.cli.values import duration_s, duration_text, whole


def validate(
    lut: Annotated[str, typer.Argument(help="Table: luts/DEVICE/NAME, ...@VERSION, or a file.", show_default=False)],
    space: Annotated[str | None, typer.Option(help="Search space [default: the table's].", show_default=False)] = None,
    random: Annotated[int, typer.Option(help="Random networks, spread over the space's latency range.")] = 60,
    searched: Annotated[int, typer.Option(help="Networks that a search for low latency chose.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds at most.")] = 24,
    budget: Annotated[str, typer.Option(help="Stop after this long: 90s, 15m, 1h30m.")] = "15m",
    seed: Annotated[int, typer.Option(help="Seed of the choice of networks.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Time the networks once more.")] = False,
    luts: LutsFolder = Path("luts"),
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Prove a table against whole networks.

    Times held-out networks in the same rounds as the table's ops and says how well their sums predict them. The result
    is stored with the table, as a further version. Killed or interrupted, the same command continues.

    \b
    Examples:
      lutbuilder validate luts/<device>/onnxruntime-fp32-bs1
      lutbuilder validate luts/<device>/litert-fp32-bs1@2 --random 60 --searched 20 --budget 20m --json
    """
    with errors_shown(as_json=json_, debug=debug, resumable=True):
        from lutbuilder import spaces
        from lutbuilder.campaign.request import ValidateRequest
        from lutbuilder.cli.progress import ProgressView

        if space is not None:
            spaces.get(space)
        request = ValidateRequest(
            lut=lut,
            space=space,
            n_random=whole(random, option="--random", least=0, most=10_000),
            n_searched=whole(searched, option="--searched", least=0, most=10_000),
            rounds=whole(rounds, option="--rounds", least=1, most=10_000),
            budget_s=duration_s(budget, option="--budget"),
            seed=whole(seed, option="--seed", least=0, most=(1 << 63) - 1),
            luts=luts,
            state_dir=state_dir,
            again=again,
        )
        from lutbuilder.validation import validate as run

        with ProgressView() as view:
            outcome = run(request, view.update)
        table = f"{outcome.lut.name}@{outcome.lut.version}"
        if json_:
            emit_json(
                {
                    "lut": {"name": outcome.lut.name, "version": outcome.lut.version, "path": str(outcome.lut.path)},
                    "wall_s": outcome.wall_s,
                    "report": outcome.report,
                }
            )
        else:
            from lutbuilder.cli.luts import show_validation

            show_validation(outcome.report)
            say(f"stored with {table}; took {duration_text(outcome.wall_s)}")
