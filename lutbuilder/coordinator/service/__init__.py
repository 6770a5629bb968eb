"""The calls agents make, over a store: `Coordinator` in process, `serve` puts it behind gRPC.

board.py holds what a coordinator knows, under one lock; leases.py, campaigns.py and fleet.py are its parts. granting.py
answers who asks for work, reports.py takes what was measured, serving.py listens.
"""

from lutbuilder.coordinator.service.coordinator import DEFAULT_HEARTBEAT_S, DEFAULT_TTL_S, Coordinator
from lutbuilder.coordinator.service.events import Event, Moment
from lutbuilder.coordinator.service.fleet import AgentView
from lutbuilder.coordinator.service.serving import RunningServer, serve

__all__ = [
    "DEFAULT_HEARTBEAT_S",
    "DEFAULT_TTL_S",
    "AgentView",
    "Coordinator",
    "Event",
    "Moment",
    "RunningServer",
    "serve",
]
