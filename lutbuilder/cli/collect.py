"""`lutbuilder collect`: measure what a table still lacks, and publish it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, StateDir, emit_json, errors_shown, say
from lutbuilder.cli.places import ByCoordinator, InsecurePlaintext, Priority, check_alone, remotely
from lutbuilder.cli.values import (
    cache_state,
    duration_s,
    duration_text,
    fraction,
    listen_address,
    named_value,
    percent_text,
    whole,
)

if TYPE_CHECKING:
    from lutbuilder.campaign.request import CollectOutcome


def collect(
    device: Annotated[
        str, typer.Option(help="What to measure: cpu is this machine; see `lutbuilder devices`.")
    ] = "cpu",
    space: Annotated[
        str, typer.Option(help="Search space, .toml file, or mine:space of mine.py; see `lutbuilder spaces`.")
    ] = "proxyless",
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime, litert or torch [default: the device's].", show_default=False)
    ] = None,
    bs: Annotated[int, typer.Option("--bs", help="Batch size.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the runtime [default: the device's].", show_default=False)
    ] = None,
    budget: Annotated[str, typer.Option(help="Stop after this long: 90s, 3m, 1h30m.")] = "3m",
    precision: Annotated[str, typer.Option(help="Stop when every op's 95% interval is this narrow.")] = "1%",
    max_rounds: Annotated[int, typer.Option(help="Stop after so many rounds.")] = 400,
    instances: Annotated[int, typer.Option(help="Fresh preparations of every op.")] = 3,
    carriers: Annotated[
        int, typer.Option(help="Random whole networks timed along, to correct ops for what a network does; 0: none.")
    ] = 16,
    sessions: Annotated[
        int, typer.Option(help="Sessions, each with a newly started agent; they share the budget.")
    ] = 1,
    agents: Annotated[int, typer.Option(help="Agents that measure at once, on equal devices.")] = 1,
    keep_flagged: Annotated[
        bool, typer.Option("--keep-flagged", help="Leave no session out, even one out of line with the others.")
    ] = False,
    max_ops: Annotated[
        int | None,
        typer.Option(
            help="Measure so many of the missing ops at most, impute the others [default: measure all].",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the visiting order.")] = 0,
    wait: Annotated[
        str | None,
        typer.Option(help="How long to wait for an agent of another machine [default: for ever].", show_default=False),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where agents dial in [default: any free port; 127.0.0.1:7070 for another machine].",
            show_default=False,
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure once more what is precise already.")] = False,
    cache: Annotated[
        str | None, typer.Option(help="hot, rotating, cold or flushed [default: the runtime's].", show_default=False)
    ] = None,
    runtime_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="An option of the runtime; may be given several times.", show_default=False
        ),
    ] = None,
    lease_rounds: Annotated[
        int, typer.Option(hidden=True, help="Prepare every op anew after so many rounds; 0: never.")
    ] = 24,
    new_conditions: Annotated[
        bool, typer.Option("--new-conditions", help="Start anew where driver, version or settings changed.")
    ] = False,
    accept_noisy: Annotated[
        bool, typer.Option("--accept-noisy", help="Publish, marked, what was measured too badly to be published.")
    ] = False,
    coordinator: ByCoordinator = None,
    priority: Priority = 0,
    insecure_plaintext: InsecurePlaintext = False,
    luts: LutsFolder = Path("luts"),
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Time every op of a space and publish the table.

    Prints the table's path on stdout and progress on stderr. Killed or interrupted, the same command continues. With
    --coordinator it is done there, by agents of its fleet, and goes on without this command; --device is then a named
    device, the silicon of an agent (see `lutbuilder agents`), or cpu for the agents' one kind of CPU.

    \b
    Examples:
      lutbuilder collect --device cpu --space proxyless --budget 3m --precision 1%
      lutbuilder collect --device cpu --runtime litert --threads 1
      lutbuilder collect --device cpu --budget 9m --sessions 3
      lutbuilder collect --device v100 --bs 8 --listen 127.0.0.1:7070 --wait 30m
      lutbuilder collect --device cpu --space amc --max-ops 400 --budget 10m
      lutbuilder collect --coordinator lab:7070 --device pixel1 --priority 5
      lutbuilder luts show "$(lutbuilder collect --device cpu)"
    """
    with errors_shown(as_json=json_, debug=debug, resumable=True):
        from lutbuilder import devices, spaces
        from lutbuilder.campaign.request import CollectRequest
        from lutbuilder.cli.progress import ProgressView
        from lutbuilder_agent import runtimes
        from lutbuilder_agent.fingerprint import fingerprint

        if coordinator is None:
            check_alone(priority, insecure_plaintext)
            device = devices.resolve(device, here=fingerprint().device).name
        spaces.get(space, batch=whole(bs, option="--bs", least=1, most=4096))
        request = CollectRequest(
            device=device,
            space=space,
            runtime=None if runtime is None else runtimes.entry(runtime)[0],
            batch=bs,
            threads=None if threads is None else whole(threads, option="--threads", least=1, most=1024),
            budget_s=duration_s(budget, option="--budget"),
            precision=fraction(precision, option="--precision"),
            max_rounds=whole(max_rounds, option="--max-rounds", least=1, most=1_000_000),
            instances=whole(instances, option="--instances", least=1, most=64),
            carriers=whole(carriers, option="--carriers", least=0, most=1024),
            sessions=whole(sessions, option="--sessions", least=1, most=100),
            agents=whole(agents, option="--agents", least=1, most=100),
            keep_flagged=keep_flagged,
            max_ops=None if max_ops is None else whole(max_ops, option="--max-ops", least=1, most=1_000_000),
            seed=whole(seed, option="--seed", least=0, most=(1 << 63) - 1),
            luts=luts,
            state_dir=state_dir,
            listen=None if listen is None else listen_address(listen, option="--listen"),
            wait_s=None if wait is None else duration_s(wait, option="--wait", zero=True),
            again=again,
            lease_rounds=whole(lease_rounds, option="--lease-rounds", least=0, most=1_000_000),
            new_conditions=new_conditions,
            accept_noisy=accept_noisy,
            cache=None if cache is None else cache_state(cache, option="--cache"),
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
                outcome = remote.collect(request, view.update)
        else:
            from lutbuilder.campaign.collect import collect as run

            with ProgressView() as view:
                outcome = run(request, view.update)
        show(outcome, as_json=json_)


def show(outcome: CollectOutcome, *, as_json: bool) -> None:
    """Print what came out."""
    if as_json:
        emit_json(as_data(outcome))
        return
    for line in summary(outcome):
        say(line)
    print(outcome.lut.path)


def as_data(outcome: CollectOutcome) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "lut": {"name": outcome.lut.name, "version": outcome.lut.version, "path": str(outcome.lut.path)},
        "rows": len(outcome.lut),
        "published": outcome.published,
        "stop_reason": outcome.stop_reason,
        "n_measured": outcome.n_measured,
        "n_failed": outcome.n_failed,
        "rounds": outcome.rounds,
        "wall_s": outcome.wall_s,
        "timed_fraction": outcome.timed_fraction,
        "resumed": outcome.resumed,
        "notes": list(outcome.notes),
    }


def summary(outcome: CollectOutcome) -> list[str]:
    """Return what happened, in lines for people."""
    table = f"{outcome.lut.name}@{outcome.lut.version}"
    if not outcome.published:
        lines = [f"{table} has every op at the wanted precision: nothing to measure (--again measures once more)"]
    else:
        resumed = ", continued from an earlier run" if outcome.resumed else ""
        failed = f", {outcome.n_failed} failed" if outcome.n_failed else ""
        lines = [
            f"published {table}: {len(outcome.lut)} rows, {outcome.n_measured} measured now{failed}",
            f"{outcome.rounds} rounds in {duration_text(outcome.wall_s)}, ended by {outcome.stop_reason}{resumed}; "
            f"{percent_text(outcome.timed_fraction)} of the time inside timed visits",
        ]
    return [*lines, *outcome.notes]
