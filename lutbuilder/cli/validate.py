"""`lutbuilder validate`: prove a table against whole networks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, StateDir, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.values import duration_s, duration_text, percent_text, whole

if TYPE_CHECKING:
    from lutbuilder.stats.quality import Accuracy, Figure, ValidationReport


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
            show_report(outcome.report)
            say(f"stored with {table}; took {duration_text(outcome.wall_s)}")


def show_report(report: ValidationReport) -> None:
    """Print how well a table predicts whole networks, beside the floors no table beats and baselines it must beat."""
    predictors = [
        ("sum of the table", report.lut_sum),
        ("the same, no drift model", report.undrifted),
        ("table as published before", report.published),
        ("baseline: MACs", report.flops_linear),
        ("baseline: number of ops", report.depth_linear),
    ]
    columns = ["predictor", "MAPE (95 % interval)", "RMSPE", "bias", "±5 %", "±10 %", "worst", "Spearman", "Kendall"]
    rows = [(name, *_line(accuracy)) for name, accuracy in predictors if accuracy is not None]
    groups = Counter(network.group for network in report.networks)
    measured = sorted(network.measured_ms for network in report.networks)
    span = f", {measured[0]:.3f} to {measured[-1]:.3f} ms" if measured else ""
    pairs(
        "\nvalidation on held-out networks",
        [
            ("networks", ", ".join(f"{count} {group}" for group, count in groups.items()) + span),
            ("list", f"sha256 {report.networks_sha256[:16]}..., fixed before timing"),
            (
                "time",
                f"{duration_text(report.wall_s)}, {report.rounds} rounds, {percent_text(report.timed_fraction)} timed",
            ),
            ("floors", f"test-retest {percent_text(report.test_retest_floor, 2)}, {_instances(report)}"),
            ("by decile", "fastest " + "  ".join(percent_text(error, 2) for error in report.deciles) + " slowest"),
            (
                "session",
                "" if report.session_scale is None else f"scale {report.session_scale:.4f} of the published table",
            ),
        ],
    )
    table("", columns, rows, right=columns[1:])


def _instances(report: ValidationReport) -> str:
    network, op = percent_text(report.instance_floor, 2), percent_text(report.op_instance_sd, 2)
    return f"between instances of a network {network}, of an op {op}"


def _line(accuracy: Accuracy) -> tuple[str, ...]:
    return (
        f"{percent_text(accuracy.mape.value, 2)} ({100 * accuracy.mape.lo:.2f} to {100 * accuracy.mape.hi:.2f})",
        percent_text(accuracy.rmspe.value, 2),
        percent_text(accuracy.bias.value, 2),
        percent_text(accuracy.within_5.value),
        percent_text(accuracy.within_10.value),
        percent_text(accuracy.worst, 2),
        _rank(accuracy.spearman),
        _rank(accuracy.kendall),
    )


def _rank(figure: Figure) -> str:
    return f"{figure.value:.4f}"
