"""Who may call what: one row an rpc. What has no row is refused to everybody, so a new rpc is closed until it gets one.

The security matrix (tests/e2e/test_security_matrix.py) walks the descriptors of all services and fails for an rpc
without a row here, and for a row without an rpc.
"""

from __future__ import annotations

from collections.abc import Mapping

from lutbuilder_agent.wire.join_api import Role

_AGENT: frozenset[Role] = frozenset({"agent"})
_READ: frozenset[Role] = frozenset({"reader", "admin"})
_ADMIN: frozenset[Role] = frozenset({"admin"})
_ANYONE: frozenset[Role] = frozenset({"agent", "reader", "admin"})

# rpc full name -> roles that may call it. An agent's calls are, beyond that, about itself only: see guard.py.
ALLOWED: Mapping[str, frozenset[Role]] = {
    "/lutbuilder.v1.AgentService/Register": _AGENT,
    "/lutbuilder.v1.AgentService/Lease": _AGENT,
    "/lutbuilder.v1.AgentService/FetchArtifact": _AGENT,
    "/lutbuilder.v1.AgentService/Report": _AGENT,
    "/lutbuilder.v1.AgentService/Heartbeat": _AGENT,
    "/lutbuilder.v1.ControlService/ListAgents": _READ,
    "/lutbuilder.v1.ControlService/ListCampaigns": _READ,
    "/lutbuilder.v1.ControlService/ListLeases": _READ,
    "/lutbuilder.v1.ControlService/ListJobs": _READ,
    "/lutbuilder.v1.ControlService/WatchJob": _READ,
    "/lutbuilder.v1.ControlService/FetchLut": _READ,
    "/lutbuilder.v1.ControlService/SubmitJob": _ADMIN,
    "/lutbuilder.v1.ControlService/CancelJob": _ADMIN,
    "/lutbuilder.v1.ControlService/CancelCampaign": _ADMIN,
    "/lutbuilder.v1.ControlService/DrainAgent": _ADMIN,
    "/lutbuilder.v1.ControlService/ReleaseQuarantine": _ADMIN,
    "/lutbuilder.v1.SecurityService/Renew": _ANYONE,
    "/lutbuilder.v1.SecurityService/ListIdentities": _READ,
    "/lutbuilder.v1.SecurityService/IssueToken": _ADMIN,
    "/lutbuilder.v1.SecurityService/Revoke": _ADMIN,
    "/lutbuilder.v1.SecurityService/Rotate": _ADMIN,
    # Join needs no certificate but a token, which it checks itself. It is served on the join port, without the guard;
    # no row of roles opens it on the main port.
    "/lutbuilder.v1.JoinService/Join": frozenset(),
    "/grpc.health.v1.Health/Check": _ANYONE,
    "/grpc.health.v1.Health/Watch": _ANYONE,
    "/grpc.health.v1.Health/List": frozenset(),  # in the proto, and not implemented by grpcio's servicer
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READ,
}
