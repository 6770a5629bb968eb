"""The wire: generated code, `convert` (the only place that knows both sides), client, servicer and status table.

Nothing outside this package imports a `*_pb2` module; callers see the records of `lutbuilder_agent.records` only.
`api.AgentApi` is the list of calls: the client speaks it over gRPC, the coordinator in process.
"""
