"""`lutbuilder validate`: prove a table against whole networks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, StateDir, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.places import ByCoordinator, InsecurePlaintext, Priority, check_alone, remotely
from lutbuilder.cli.values import duration_s, duration_text, percent_text, whole

if TYPE_CHECKING:
    from lutbuilder.campaign.request import ValidateOutcome
    from lutbuilder.stats.quality import Accuracy, Decile, Figure, ValidationReport


def validate(
    lut: Annotated[str, typer.Argument(help="Table: luts/DEVICE/NAME, ...@VERSION, or a file.", show_default=False)],
    space: Annotated[str | None, typer.Option(help="Search space [default: the table's].", show_default=False)] = None,
    random: Annotated[
        int | None,
        typer.Option(help="Random networks, spread over the space's latency range [default: 60].", show_default=False),
    ] = None,
    searched: Annotated[
        int | None,
        typer.Option(help="Networks that a search for low latency chose [default: 20].", show_default=False),
    ] = None,
    networks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The networks of this file instead: what --save-networks wrote, or a JSON list of archs.",
            show_default=False,
        ),
    ] = None,
    save_networks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the list there before anything is timed.", show_default=False),
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Fresh preparations of everything [default: the table's].", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds at most.")] = 24,
    budget: Annotated[str, typer.Option(help="Stop after this long: 90s, 15m, 1h30m.")] = "15m",
    seed: Annotated[int, typer.Option(help="Seed of the choice of networks.")] = 1,
    again: Annotated[
        bool, typer.Option("--again", help="Time the networks once more; without it, stored visits of them do.")
    ] = False,
    lease_rounds: Annotated[
        int,
        typer.Option(help="Prepare everything anew after so many rounds: 48 rounds by 16 give 9 instances; 0: never."),
    ] = 0,
    coordinator: ByCoordinator = None,
    priority: Priority = 0,
    insecure_plaintext: InsecurePlaintext = False,
    luts: LutsFolder = Path("luts"),
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Prove a table against whole networks.

    Times held-out networks in the same rounds as the table's ops and says how well their sums predict them. The list of
    networks is fixed before anything is timed; none of them was used to fit the table. The result is stored with the
    table, as a further version. Killed or interrupted, the same command continues; of networks that were timed already
    it makes a new report.

    \b
    Examples:
      lutbuilder validate luts/<device>/onnxruntime-fp32-bs1
      lutbuilder validate luts/<device>/litert-fp32-bs1@2 --random 60 --searched 20 --budget 20m --json
      lutbuilder validate luts/<device>/onnxruntime-fp32-bs1 --rounds 48 --lease-rounds 16 --budget 30m
      lutbuilder validate luts/<device>/onnxruntime-fp32-bs1 --save-networks networks.json
      lutbuilder validate luts/<device>/litert-fp32-bs1 --networks networks.json
      lutbuilder validate luts/<device>/litert-fp32-bs1 --coordinator lab:7070
    """
    with errors_shown(as_json=json_, debug=debug, resumable=True):
        from lutbuilder import spaces
        from lutbuilder.campaign.request import ValidateRequest
        from lutbuilder.cli.progress import ProgressView
        from lutbuilder_agent.errors import SpecError

        if space is not None:
            spaces.get(space)
        if networks is not None and (random is not None or searched is not None):
            raise SpecError("--networks FILE says which networks; leave out --random and --searched")
        request = ValidateRequest(
            lut=lut,
            space=space,
            n_random=whole(60 if random is None else random, option="--random", least=0, most=10_000),
            n_searched=whole(20 if searched is None else searched, option="--searched", least=0, most=10_000),
            networks=networks,
            save_networks=save_networks,
            instances=None if instances is None else whole(instances, option="--instances", least=1, most=64),
            rounds=whole(rounds, option="--rounds", least=1, most=10_000),
            budget_s=duration_s(budget, option="--budget"),
            seed=whole(seed, option="--seed", least=0, most=(1 << 63) - 1),
            luts=luts,
            state_dir=state_dir,
            again=again,
            lease_rounds=whole(lease_rounds, option="--lease-rounds", least=0, most=1_000_000),
        )
        if coordinator is not None:
            with (
                remotely(
                    coordinator,
                    luts=luts,
                    priority=priority,
                    insecure_plaintext=insecure_plaintext,
                    state_dir=state_dir,
                ) as remote,
                ProgressView() as view,
            ):
                outcome = remote.validate(request, view.update)
        else:
            from lutbuilder.validation import validate as run

            check_alone(priority, insecure_plaintext)
            with ProgressView() as view:
                outcome = run(request, view.update)
        show(outcome, as_json=json_)


def show(outcome: ValidateOutcome, *, as_json: bool) -> None:
    """Print what came out."""
    if as_json:
        emit_json(
            {
                "lut": {"name": outcome.lut.name, "version": outcome.lut.version, "path": str(outcome.lut.path)},
                "wall_s": outcome.wall_s,
                "timed_before": outcome.timed_before,
                "report": outcome.report,
            }
        )
        return
    show_report(outcome.report)
    before = "; the networks were timed before (--again times them once more)" if outcome.timed_before else ""
    say(f"stored with {outcome.lut.name}@{outcome.lut.version}; took {duration_text(outcome.wall_s)}{before}")


def show_report(report: ValidationReport) -> None:
    """Print how well a table predicts whole networks, beside the floors no table beats and baselines it must beat."""
    in_situ = "" if report.ops_alone is None else ", in-situ rows"
    shared = " (its rows rest on this session too)" if report.published_shares_visits else ""
    predictors = [
        (f"table as published{in_situ}{shared}", report.published),
        ("table as published, its scale told by ops", report.published_by_ops),
        ("table as published, calibrated rows", report.calibrated),
        ("table as published, ops as timed alone", report.ops_alone),
        ("table with this session's op visits pooled in", report.lut_sum),
        ("medians of this session, no drift model", report.undrifted),
        ("baseline: MACs, fitted to these networks", report.flops_linear),
        ("baseline: MACs, each network held out", report.flops_linear_held_out),
        ("baseline: depth and resolution, fitted to these", report.depth_linear),
        ("baseline: depth and resolution, held out", report.depth_linear_held_out),
    ]
    columns = ["predictor", "MAPE (95 % interval)", "/ truth", "RMSPE", "bias", "±5 %", "±10 %"]
    columns += ["worst", "Spearman", "Kendall"]
    rows = [(name, *_line(accuracy, report)) for name, accuracy in predictors if accuracy is not None]
    pairs(
        "\nvalidation on held-out networks",
        [
            ("table", report.table),
            ("networks", _networks(report)),
            ("list", f"sha256 {report.networks_sha256[:16]}..., fixed before timing"),
            (
                "time",
                f"{duration_text(report.wall_s)}, {report.rounds} rounds, {percent_text(report.timed_fraction)} timed",
            ),
            ("floors", f"test-retest {percent_text(report.test_retest_floor, 2)}, {_instances(report)}"),
            ("truth", _truth(report)),
            ("excess error", _excess(report)),
            ("fastest tenth", _decile(report.fastest)),
            ("slowest tenth", _decile(report.slowest)),
            ("by decile", "fastest " + "  ".join(percent_text(error, 2) for error in report.deciles) + " slowest"),
            (
                "session",
                ""
                if report.session_scale is None
                else f"took {report.session_scale:.4f} times as long as the table as published; all tables are judged "
                + _told_by(report),
            ),
        ],
    )
    table("", columns, rows, right=columns[1:])


def _told_by(report: ValidationReport) -> str:
    if report.published_by_ops is None or report.ops_scale is None:
        return "at its speed, told by ops"
    return f"at its speed, told by their carriers (by ops: {report.ops_scale:.4f})"


def _networks(report: ValidationReport) -> str:
    groups = Counter(network.group for network in report.networks)
    counts = [network.n_instances for network in report.networks]
    told = ", ".join(f"{count} {group}" for group, count in groups.items())
    if report.networks:
        measured = sorted(network.measured_ms for network in report.networks)
        several = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        told += f", {measured[0]:.3f} to {measured[-1]:.3f} ms, {several} instances each"
    fitted = f"; none of the {report.n_fitted} the table was fitted to" if report.n_fitted else ""
    return told + fitted


def _instances(report: ValidationReport) -> str:
    network, op = percent_text(report.instance_floor, 2), percent_text(report.op_instance_sd, 2)
    return f"between instances of a network {network}, of an op {op}"


def _truth(report: ValidationReport) -> str:
    if report.truth_noise is None:
        return ""
    truth, run = percent_text(report.truth_noise, 2), percent_text(report.run_noise, 2)
    return f"expected error of a network's measured time {truth}, of one preparation of it {run}"


def _excess(report: ValidationReport) -> str:
    if report.excess_error is None or report.excess_over_run is None:
        return ""
    truth, run = (
        f"{figure.value:.2f} ({figure.lo:.2f} to {figure.hi:.2f})"
        for figure in (report.excess_error, report.excess_over_run)
    )
    return f"MAPE of the pooled table is {truth} times the truth's error, {run} times one preparation's"


def _decile(decile: Decile | None) -> str:
    if decile is None:
        return ""
    error = f"MAPE {_interval(decile.mape)}, bias {_interval(decile.bias)}, worst {percent_text(decile.worst, 2)}"
    return f"{decile.from_ms:.3f} to {decile.to_ms:.3f} ms: {error}"


def _line(accuracy: Accuracy, report: ValidationReport) -> tuple[str, ...]:
    return (
        _interval(accuracy.mape),
        f"{accuracy.mape.value / report.truth_noise:.2f}" if report.truth_noise else "-",
        percent_text(accuracy.rmspe.value, 2),
        percent_text(accuracy.bias.value, 2),
        percent_text(accuracy.within_5.value),
        percent_text(accuracy.within_10.value),
        percent_text(accuracy.worst, 2),
        _rank(accuracy.spearman),
        _rank(accuracy.kendall),
    )


def _interval(figure: Figure) -> str:
    return f"{percent_text(figure.value, 2)} ({100 * figure.lo:.2f} to {100 * figure.hi:.2f})"


def _rank(figure: Figure) -> str:
    return f"{figure.value:.4f}"
