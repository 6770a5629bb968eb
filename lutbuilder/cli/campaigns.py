"""`lutbuilder campaigns`: what is measured, how far it is, what failed; giving one up, trying an op again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, StateDir, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.lists import Listing, Watch, ago
from lutbuilder.cli.places import Coordinator, InsecurePlaintext, StoreUrl, check_behind, place
from lutbuilder.cli.values import duration_text

if TYPE_CHECKING:
    from lutbuilder.control.api import CampaignView

app = typer.Typer(rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="ID", help="The campaign, as `lutbuilder campaigns` calls it.")]
Active = Annotated[bool, typer.Option("--active", help="Only those that have not ended.")]


@app.callback(invoke_without_command=True)
def campaigns(
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
    """List the campaigns, newest first.

    A campaign is a space measured on a target under one plan; a job runs one or several.

    \b
    Examples:
      lutbuilder campaigns --active
      lutbuilder campaigns --coordinator lab:7070 --watch
      lutbuilder campaigns show 0123456789abcdef
      lutbuilder campaigns cancel 0123456789abcdef --coordinator lab:7070
    """
    if check_behind(context):
        return
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        listing: Listing[CampaignView] = Listing(
            name="campaigns",
            ask=lambda api, after: api.campaigns(active_only=active, after=after),
            columns=[
                "campaign",
                "state",
                "table",
                "space",
                "for",
                "priority",
                "rounds",
                "ops",
                "failed",
                "agents",
                "began",
            ],
            right=["priority", "rounds", "ops", "failed"],
            line=_line,
            data=as_data,
            empty="no campaign is active" if active else "no campaign was ever begun; begin one: lutbuilder collect",
        )
        listing.show(at, watch=watch, as_json=json_)


@app.command()
def show(
    campaign_id: Id,
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show a campaign with the ops that failed in it: why, how often, on which agents.

    \b
    Examples:
      lutbuilder campaigns show 0123456789abcdef
      lutbuilder campaigns show 0123456789abcdef --coordinator lab:7070 --json
    """
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        (campaign,) = at.known.campaigns(campaign_id=campaign_id).items
        if json_:
            emit_json(as_data(campaign))
            return
        pairs(
            f"campaign {campaign.campaign_id}",
            [
                ("state", f"{campaign.phase}: {campaign.reason}" if campaign.reason else campaign.phase),
                ("measures", f"{campaign.space} for {campaign.lut_name} ({campaign.purpose})"),
                ("priority", str(campaign.priority)),
                ("rounds", f"{campaign.rounds} of at most {campaign.max_rounds}"),
                ("on devices", f"{duration_text(campaign.measured_s)}, {duration_text(campaign.timed_s)} of it timed"),
                ("agents now", ", ".join(campaign.agents) or "none"),
            ],
        )
        if campaign.failures:
            table(
                "",
                ["op id", "op", "reason", "times", "on agents", "given up", "the engine's words"],
                [
                    (
                        failure.op_id,
                        failure.label,
                        failure.reason,
                        str(failure.attempts),
                        ", ".join(failure.agents),
                        "yes" if failure.final else "no",
                        failure.detail,
                    )
                    for failure in campaign.failures
                ],
                right=["times"],
            )
            say(f"try one that is given up again: lutbuilder campaigns release-op {campaign.campaign_id} OP_ID")


@app.command()
def cancel(
    campaign_id: Id,
    reason: Annotated[str, typer.Option(help="Why, for those who look later.")] = "cancelled by hand",
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Give a campaign up, and the job that runs it; what was measured is kept.

    \b
    Examples:
      lutbuilder campaigns cancel 0123456789abcdef
      lutbuilder campaigns cancel 0123456789abcdef --reason "wrong batch size" --coordinator lab:7070
    """
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        campaign = at.known.cancel_campaign(campaign_id, reason)
        if json_:
            emit_json(as_data(campaign))
        elif campaign.phase == "cancelled":
            say(f"campaign {campaign.campaign_id} is cancelled: its agents are told at their next report")
        else:
            say(f"campaign {campaign.campaign_id} had ended before: {campaign.phase} ({campaign.reason})")


@app.command("release-op")
def release_op(
    campaign_id: Id,
    op_id: Annotated[str, typer.Argument(metavar="OP_ID", help="The op, as `lutbuilder campaigns show` calls it.")],
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Try an op again that a campaign gave up; its failures are kept, but do not count any more.

    \b
    Examples:
      lutbuilder campaigns release-op 0123456789abcdef conv-0011223344556677
    """
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        at.known.release_op(campaign_id, op_id)
        if json_:
            emit_json({"campaign_id": campaign_id, "released": op_id})
        else:
            say(f"op {op_id} is tried again in campaign {campaign_id}, as long as that has not ended")


def as_data(campaign: CampaignView) -> dict[str, object]:
    """Return what `--json` prints of a campaign."""
    return {
        "campaign_id": campaign.campaign_id,
        "state": campaign.phase,
        "reason": campaign.reason,
        "purpose": campaign.purpose,
        "space": campaign.space,
        "lut": campaign.lut_name,
        "priority": campaign.priority,
        "rounds": campaign.rounds,
        "max_rounds": campaign.max_rounds,
        "n_ops": campaign.n_ops,
        "n_failed": campaign.n_failed,
        "measured_s": campaign.measured_s,
        "timed_s": campaign.timed_s,
        "agents": list(campaign.agents),
        "failures": list(campaign.failures),
        "created_s": campaign.created_s,
        "finished_s": campaign.finished_s,
    }


def _line(campaign: CampaignView, now_s: float) -> tuple[str, ...]:
    return (
        campaign.campaign_id,
        f"{campaign.phase}: {campaign.reason}" if campaign.reason else campaign.phase,
        campaign.lut_name,
        campaign.space,
        campaign.purpose,
        str(campaign.priority),
        f"{campaign.rounds}/{campaign.max_rounds}",
        str(campaign.n_ops),
        str(campaign.n_failed),
        ", ".join(campaign.agents) or "-",
        ago(campaign.created_s, now_s),
    )
