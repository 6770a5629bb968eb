"""`lutbuilder agents`: who measures, how each is doing; and taking one out or back in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, StateDir, emit_json, errors_shown, say
from lutbuilder.cli.lists import Listing, Watch, ago
from lutbuilder.cli.places import Coordinator, InsecurePlaintext, StoreUrl, check_behind, place
from lutbuilder.cli.values import duration_text

if TYPE_CHECKING:
    from lutbuilder.control.api import AgentView

app = typer.Typer(rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The agent, as `lutbuilder agents` calls it.")]


@app.callback(invoke_without_command=True)
def agents(
    context: typer.Context,
    watch: Watch = False,
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List the agents that have registered.

    With their device, the runtimes that run there, how each is doing, and when it was last heard of. A coordinator
    knows whether an agent is idle, measuring, silent, drained or quarantined; the store alone says `unknown` of one
    that holds no lease.

    \b
    Examples:
      lutbuilder agents
      lutbuilder agents --coordinator lab:7070 --watch
      lutbuilder agents --json
      lutbuilder agents drain bench-pi --coordinator lab:7070
    """
    if check_behind(context):
        return
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        _LIST.show(at, watch=watch, as_json=json_)


@app.command()
def drain(
    name: Name,
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Let an agent take no new lease; the one it holds ends with its next report. `resume` takes it back in.

    \b
    Examples:
      lutbuilder agents drain bench-pi
      lutbuilder agents drain bench-pi --coordinator lab:7070
    """
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        agent = at.known.drain(name, True)
        if json_:
            emit_json(as_data(agent))
        else:
            say(f"agent {agent.name} is drained: it takes no new lease until lutbuilder agents resume {agent.name}")


@app.command()
def resume(
    name: Name,
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Let a drained agent take leases again.

    \b
    Examples:
      lutbuilder agents resume bench-pi
      lutbuilder agents resume bench-pi --coordinator lab:7070
    """
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        agent = at.known.drain(name, False)
        if json_:
            emit_json(as_data(agent))
        else:
            say(f"agent {agent.name} takes leases again")


@app.command()
def release(
    name: Name,
    coordinator: Coordinator = None,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    insecure_plaintext: InsecurePlaintext = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Let an agent that was found sick take leases again, after it was set right.

    \b
    Examples:
      lutbuilder agents release bench-pi
      lutbuilder agents release bench-pi --coordinator lab:7070
    """
    with (
        errors_shown(as_json=json_, debug=debug),
        place(coordinator, store=store, state_dir=state_dir, insecure_plaintext=insecure_plaintext) as at,
    ):
        at.known.release_agent(name)
        if json_:
            emit_json({"released": name})
        else:
            say(f"agent {name} is released: it takes leases again")


def as_data(agent: AgentView) -> dict[str, object]:
    """Return what `--json` prints of an agent."""
    return {
        "name": agent.name,
        "state": agent.phase,
        "reason": agent.reason,
        "device": agent.device,
        "env_id": agent.env_id,
        "clock_domain": agent.clock_domain,
        "agent_version": agent.agent_version,
        "runtimes": list(agent.runtimes),
        "session_id": agent.session_id,
        "lease_id": agent.lease_id,
        "visits_per_s": agent.visits_per_s,
        "heard_s": agent.heard_s,
        "registered_s": agent.registered_s,
        "last_report_s": agent.last_report_s,
    }


def _line(agent: AgentView, now_s: float) -> tuple[str, ...]:
    running = [f"{runtime.name} {runtime.version}" for runtime in agent.runtimes if runtime.available]
    heard = agent.registered_s if agent.last_report_s is None else agent.last_report_s
    return (
        agent.name,
        f"{agent.phase}: {agent.reason}" if agent.reason else agent.phase,
        agent.device,
        agent.env_id,
        ", ".join(running) or "none",
        agent.agent_version,
        "-" if agent.visits_per_s is None else f"{agent.visits_per_s:.1f}",
        ago(heard, now_s) if agent.heard_s is None else f"{duration_text(agent.heard_s)} ago",
    )


_LIST: Listing[AgentView] = Listing(
    name="agents",
    ask=lambda api, after: api.agents(after=after),
    columns=["agent", "state", "device", "environment", "runtimes", "version", "visits/s", "last heard of"],
    right=["visits/s"],
    line=_line,
    data=as_data,
    empty="no agent has registered yet; start one: lutbuilder-agent run --coordinator HOST:PORT",
)
