"""`lutbuilder calibrate`: correct a table by whole networks, or take over the table of another device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, StateDir, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.places import ByCoordinator, InsecurePlaintext, Priority, check_alone, remotely
from lutbuilder.cli.values import duration_s, duration_text, fraction, listen_address, named_value, percent_text, whole

if TYPE_CHECKING:
    from lutbuilder.campaign.calibrated import CalibrationReport
    from lutbuilder.campaign.request import CalibrateOutcome

_NETWORKS, _NETWORKS_FROM = 16, 10


def calibrate(
    lut: Annotated[
        str | None,
        typer.Argument(help="Table to correct: luts/DEVICE/NAME, ...@VERSION, or a file.", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="LUT",
            help="Take over this table of another device of the same class; no op is timed here.",
            show_default=False,
        ),
    ] = None,
    nets: Annotated[
        int | None, typer.Option(help="Networks to time [default: 16; with --from 10].", show_default=False)
    ] = None,
    space: Annotated[str | None, typer.Option(help="Search space [default: the table's].", show_default=False)] = None,
    rounds: Annotated[int, typer.Option(help="Rounds at most.")] = 24,
    lease_rounds: Annotated[int, typer.Option(help="Prepare everything anew after so many rounds; 0: never.")] = 12,
    instances: Annotated[
        int | None, typer.Option(help="Fresh preparations of everything [default: the table's].", show_default=False)
    ] = None,
    budget: Annotated[str, typer.Option(help="Stop after this long: 90s, 10m, 1h30m.")] = "10m",
    seed: Annotated[int, typer.Option(help="Seed of the choice of networks.")] = 0,
    device: Annotated[str, typer.Option(help="With --from: the device to make a table for.")] = "cpu",
    worst: Annotated[
        str, typer.Option(help="With --from: refuse the table if networks left out of the fit are further off.")
    ] = "5%",
    wait: Annotated[
        str | None,
        typer.Option(help="With --from: how long to wait for an agent of another machine.", show_default=False),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="With --from: where agents dial in.", show_default=False),
    ] = None,
    runtime_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="With --from: an option of the runtime; may be repeated.", show_default=False
        ),
    ] = None,
    coordinator: ByCoordinator = None,
    priority: Priority = 0,
    insecure_plaintext: InsecurePlaintext = False,
    luts: LutsFolder = Path("luts"),
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Correct a table by whole networks.

    Times a few networks with the table's ops and carriers, finds out in which ways networks cost more or less than
    their sums say, and publishes a version with calibrated rows beside the measured ones. It stays a plain sum of rows;
    where the networks say nothing, so do the corrections. No network of a validation is used, and `validate` uses none
    of these.
    Typed again, further networks join the fit. With --from, the table of another device of the same class is scaled by
    networks alone, or refused if this device works in another way. Killed or interrupted, the same command continues.

    \b
    Examples:
      lutbuilder calibrate luts/<device>/onnxruntime-fp32-bs1
      lutbuilder calibrate luts/<device>/litert-fp32-bs1 --nets 32 --rounds 36 --budget 20m --json
      lutbuilder calibrate --from luts/<other-device>/onnxruntime-fp32-bs1 --nets 10
      lutbuilder calibrate --from luts/<other-device>/torch-fp32-bs8 --device v100 --listen 127.0.0.1:7070
      lutbuilder calibrate luts/<device>/onnxruntime-fp32-bs1 --coordinator lab:7070
    """
    with errors_shown(as_json=json_, debug=debug, resumable=True):
        from lutbuilder import devices, spaces
        from lutbuilder.campaign.request import CalibrateRequest
        from lutbuilder.cli.progress import ProgressView
        from lutbuilder_agent.fingerprint import fingerprint

        if coordinator is None:
            check_alone(priority, insecure_plaintext)
            device = devices.resolve(device, here=fingerprint().device).name
        if space is not None:
            spaces.get(space)
        usual = _NETWORKS if source is None else _NETWORKS_FROM
        request = CalibrateRequest(
            lut=lut,
            source=source,
            space=space,
            n_networks=whole(usual if nets is None else nets, option="--nets", least=6, most=128),
            device=device,
            instances=None if instances is None else whole(instances, option="--instances", least=1, most=64),
            rounds=whole(rounds, option="--rounds", least=6, most=10_000),
            lease_rounds=whole(lease_rounds, option="--lease-rounds", least=0, most=1_000_000),
            budget_s=duration_s(budget, option="--budget"),
            seed=whole(seed, option="--seed", least=0, most=(1 << 63) - 1),
            worst=fraction(worst, option="--worst"),
            luts=luts,
            state_dir=state_dir,
            listen=None if listen is None else listen_address(listen, option="--listen"),
            wait_s=None if wait is None else duration_s(wait, option="--wait", zero=True),
            runtime_options=tuple(named_value(one, option="--runtime-option") for one in runtime_option or ()),
        )
        if coordinator is not None:
            with (
                remotely(
                    coordinator,
                    luts=luts,
                    priority=priority,
                    insecure_plaintext=insecure_plaintext,
                    listen=listen,
                    state_dir=state_dir,
                ) as remote,
                ProgressView() as view,
            ):
                outcome = remote.calibrate(request, view.update)
        else:
            from lutbuilder.calibration import calibrate as run

            with ProgressView() as view:
                outcome = run(request, view.update)
        show(outcome, as_json=json_)


def show(outcome: CalibrateOutcome, *, as_json: bool) -> None:
    """Print what came out."""
    if as_json:
        emit_json(
            {
                "lut": {"name": outcome.lut.name, "version": outcome.lut.version, "path": str(outcome.lut.path)},
                "rounds": outcome.rounds,
                "wall_s": outcome.wall_s,
                "report": outcome.report,
            }
        )
        return
    show_report(outcome.report)
    say(f"published {outcome.lut.name}@{outcome.lut.version}; took {duration_text(outcome.wall_s)}")
    print(outcome.lut.path)


def show_report(report: CalibrationReport) -> None:
    """Print what the networks said of the rows, and what came of it."""
    new = [network for network in report.networks if not network.carrier]
    measured = sorted(network.measured_ms for network in new)
    carriers = len(report.networks) - len(new)
    also = f" and {carriers} carriers of the collection" if carriers else ""
    pairs(
        "\ncalibration",
        [
            ("rows of", report.source or report.table),
            ("networks", f"{len(new)}{also}, {measured[0]:.3f} to {measured[-1]:.3f} ms"),
            ("noise", f"{percent_text(report.noise, 2)} of a network's time; the method's error is "
                      f"{report.over_noise:.2f} times that"),
            ("rank", f"{report.spearman:.4f} (Spearman, networks left out)"),
            ("outliers", ", ".join(report.outliers) or "none"),
            ("method", _METHODS[report.method]),
        ],
    )  # fmt: skip  # a list of lines reads as one
    table(
        "",
        ["prediction of networks left out", "MAPE", "RMSPE", ""],
        [
            (
                name,
                percent_text(errors.mape, 2),
                percent_text(errors.rms, 2),
                "chosen" if method == report.method else "",
            )
            for method, name, errors in (
                ("none", "rows as they were", report.before),
                ("affine", f"{report.intercept_ms:+.4f} ms {report.slope:+.4f} x sum", report.affine),
                ("ridge", "corrected rows (ridge)", report.ridge),
            )
        ],
        right=["MAPE", "RMSPE"],
    )


_METHODS = {
    "none": "none: the rows predict networks as well as any correction",
    "affine": "affine: rows scaled, the constant in the call overhead, of which a network has one",
    "ridge": "ridge: every row corrected as far as networks say so",
}
