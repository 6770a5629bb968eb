"""`lutbuilder agents`: who has measured for this machine's campaigns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lutbuilder.cli.console import Debug, Json, StateDir, emit_json, errors_shown, say, table
from lutbuilder.cli.values import duration_text

if TYPE_CHECKING:
    from lutbuilder.coordinator.store import AgentState


def agents(state_dir: StateDir = None, json_: Json = False, debug: Debug = False) -> None:
    """List the agents that have registered.

    With their device, the runtimes that run there, and when each was last heard of.

    \b
    Examples:
      lutbuilder agents
      lutbuilder agents --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.campaign.state import default_store

        path = default_store(state_dir)
        found: tuple[AgentState, ...] = ()
        if path.exists():  # looking must not make one
            from lutbuilder.coordinator.store import Store

            with Store.open(path) as store:
                found = store.agents()
        if json_:
            emit_json({"store": path, "agents": [as_data(agent) for agent in found]})
        elif not found:
            say(f"no agent has registered yet (store: {path}); start one: lutbuilder-agent run --coordinator HOST:PORT")
        else:
            now_s = time.time()
            columns = ["agent", "device", "environment", "runtimes", "version", "last heard of"]
            table("", columns, [_line(agent, now_s=now_s) for agent in found])


def as_data(agent: AgentState) -> dict[str, object]:
    """Return what `--json` prints of an agent."""
    return {
        "name": agent.name,
        "device": agent.fingerprint.device,
        "env_id": agent.fingerprint.env_id,
        "agent_version": agent.agent_version,
        "runtimes": list(agent.runtimes),
        "registered_s": agent.registered_s,
        "last_report_s": agent.last_report_s,
    }


def _line(agent: AgentState, *, now_s: float) -> tuple[str, ...]:
    running = [f"{runtime.name} {runtime.version}" for runtime in agent.runtimes if runtime.available]
    heard_s = agent.registered_s if agent.last_report_s is None else agent.last_report_s
    return (
        agent.name,
        agent.fingerprint.device,
        agent.fingerprint.env_id,
        ", ".join(running) or "none",
        agent.agent_version,
        f"{duration_text(max(0.0, now_s - heard_s))} ago",
    )
