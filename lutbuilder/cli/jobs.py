"""`lutbuilder jobs`: what was asked of a coordinator; watching one again, giving one up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, LutsFolder, StateDir, emit_json, errors_shown, plain, say
from lutbuilder.cli.lists import Listing, Watch, ago
from lutbuilder.cli.places import Coordinator, InsecurePlaintext, StoreUrl, check_behind, dialled, place
from lutbuilder.cli.values import duration_text

if TYPE_CHECKING:
    from lutbuilder.control.api import JobView

app = typer.Typer(rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="ID", help="The job, as `lutbuilder jobs` calls it.")]
Active = Annotated[bool, typer.Option("--active", help="Only those that are not over.")]


@app.callback(invoke_without_command=True)
def jobs(
    context: typer.Context,
    active: Active = False,
    watch: Watch = False,
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List the jobs, newest first: what `collect`, `validate` and `calibrate` asked of a coordinator.

    \b
    Examples:
      lutbuilder jobs --active
      lutbuilder jobs --coordinator lab:7070 --watch
      lutbuilder jobs attach 0123456789abcdef --coordinator lab:7070
      lutbuilder jobs cancel 0123456789abcdef --coordinator lab:7070
    """
    if check_behind(context):
        return
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        listing: Listing[JobView] = Listing(
            name="jobs",
            ask=lambda api, after: api.jobs(active_only=active, after=after),
            columns=["job", "does", "state", "of", "priority", "round", "eta", "table", "for", "asked"],
            right=["priority", "round", "eta"],
            line=_line,
            data=as_data,
            empty="no job is going"
            if active
            else "no job was asked for; ask: lutbuilder collect --coordinator HOST:PORT",
        )
        listing.show(at, watch=watch, as_json=json_)


@app.command()
def attach(
    job_id: Id,
    coordinator: Annotated[
        str, typer.Option("--coordinator", metavar="HOST:PORT", help="Where it runs.", show_default=False)
    ],
    luts: LutsFolder = Path("luts"),
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Watch a job again until it is over, and download its table; Ctrl-C lets it go on alone.

    Prints what the command that asked for it would have printed.

    \b
    Examples:
      lutbuilder jobs attach 0123456789abcdef --coordinator lab:7070
      lutbuilder jobs attach 0123456789abcdef --coordinator lab:7070 --luts lab-luts --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.cli import calibrate, collect, validate
        from lutbuilder.cli.progress import ProgressView
        from lutbuilder.control.remote import Remote

        with dialled(coordinator, insecure_plaintext=insecure_plaintext) as client, ProgressView() as view:
            remote = Remote(api=client, address=client.address, luts=luts)
            job = remote.follow(client.watch(job_id).job, view.update)
            if job.kind == "collect":
                collected = remote.collected(job)
            elif job.kind == "validate":
                validated = remote.validated(job)
            else:
                calibrated = remote.calibrated(job)
        if job.kind == "collect":
            collect.show(collected, as_json=json_)
        elif job.kind == "validate":
            validate.show(validated, as_json=json_)
        else:
            calibrate.show(calibrated, as_json=json_)


@app.command()
def cancel(
    job_id: Id,
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Give a job up, and the campaigns that no other job wants; what was measured is kept.

    \b
    Examples:
      lutbuilder jobs cancel 0123456789abcdef --coordinator lab:7070
    """
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        job = at.known.cancel_job(job_id)
        if json_:
            emit_json(as_data(job))
        elif job.phase == "cancelled":
            say(f"job {job.job_id} is cancelled; what it measured is kept")
        else:
            say(f"job {job.job_id} was over before: {job.phase}")


def as_data(job: JobView) -> dict[str, object]:
    """Return what `--json` prints of a job."""
    return {
        "job_id": job.job_id,
        "kind": job.kind,
        "title": job.title,
        "state": job.phase,
        "message": job.message,
        "error_code": job.error_code,
        "priority": job.priority,
        "owner": job.owner,
        "campaign_ids": list(job.campaign_ids),
        "lut": job.lut,
        "runner": job.runner,
        "progress": plain(job.progress),
        "created_s": job.created_s,
        "finished_s": job.finished_s,
    }


def _line(job: JobView, now_s: float) -> tuple[str, ...]:
    progress = None if job.over else job.progress
    state = job.phase if progress is None else f"{job.phase}, {progress.phase}"
    return (
        job.job_id,
        job.kind,
        f"{state}: {job.message.splitlines()[0][:80]}" if job.message else state,
        job.title,
        str(job.priority),
        f"{progress.round}/{progress.max_rounds}" if progress and progress.max_rounds else "-",
        duration_text(progress.eta_s) if progress and progress.eta_s is not None else "-",
        job.lut or "-",
        job.owner or "-",
        ago(job.created_s, now_s),
    )
