"""`lutbuilder leases`: who measures what right now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lutbuilder.cli.console import Debug, Json, StateDir, errors_shown
from lutbuilder.cli.lists import Listing, Watch, ago
from lutbuilder.cli.places import Coordinator, InsecurePlaintext, StoreUrl, place
from lutbuilder.cli.values import duration_text

if TYPE_CHECKING:
    from lutbuilder.control.api import LeaseView


def leases(
    watch: Watch = False,
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List the leases that are held: one is an agent's exclusive, expiring right to measure a batch.

    \b
    Examples:
      lutbuilder leases
      lutbuilder leases --coordinator lab:7070 --watch
      lutbuilder leases --json
    """
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        _LIST.show(at, watch=watch, as_json=json_)


def _line(lease: LeaseView, now_s: float) -> tuple[str, ...]:
    return (
        lease.agent,
        lease.campaign_id,
        str(lease.batch),
        f"{lease.first_round}..{lease.first_round + lease.rounds - 1}",
        ago(lease.granted_s, now_s),
        "-" if lease.expires_in_s is None else f"in {duration_text(lease.expires_in_s)}",
        lease.owner[:8] or "-",
        lease.lease_id,
    )


_LIST: Listing[LeaseView] = Listing(
    name="leases",
    ask=lambda api, after: api.leases(after=after),
    columns=["agent", "campaign", "batch", "rounds", "given", "runs out", "coordinator", "lease"],
    right=["batch", "rounds"],
    line=_line,
    empty="no lease is held: nothing is being measured",
)
