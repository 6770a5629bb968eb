"""Which protocol two programs speak: the newest that both know, or the upgrade to make.

1   register, lease, fetch, report, heartbeat
2   a lease may be asked for ahead of the end of another one (LeaseRequest.ahead_of)
"""

from __future__ import annotations

from lutbuilder_agent.errors import ProtocolMismatch
from lutbuilder_agent.records import PROTOCOL_OLDEST, PROTOCOL_VERSION, AgentHello, Session

LEASES_AHEAD = 2  # the first protocol that has them


def agreed(hello: AgentHello, *, oldest: int = PROTOCOL_OLDEST, newest: int = PROTOCOL_VERSION) -> int:
    """Return the newest protocol that agent and coordinator speak. Raises ProtocolMismatch with the upgrade."""
    if hello.protocol_max < oldest:
        older, line = "agent", "pip install -U lutbuilder-agent"
    elif hello.protocol_min > newest:
        older, line = "coordinator", "pip install -U lutbuilder"
    else:
        return min(hello.protocol_max, newest)
    raise ProtocolMismatch(
        f"agent {hello.name} {hello.agent_version} speaks protocol {hello.protocol_min} to {hello.protocol_max}, "
        f"this coordinator {oldest} to {newest}; upgrade the {older}: {line}"
    )


def check_answer(hello: AgentHello, session: Session) -> None:
    """Raise ProtocolMismatch if the coordinator chose a protocol that this agent did not offer."""
    if not hello.protocol_min <= session.protocol <= hello.protocol_max:
        older = "agent" if session.protocol > hello.protocol_max else "coordinator"
        line = "pip install -U lutbuilder-agent" if older == "agent" else "there: pip install -U lutbuilder"
        raise ProtocolMismatch(
            f"the coordinator chose protocol {session.protocol}, this agent speaks {hello.protocol_min} to "
            f"{hello.protocol_max}; upgrade the {older}: {line}"
        )
