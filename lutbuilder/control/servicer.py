"""The gRPC side of `ControlApi`: every method decodes, makes one call, encodes. Requests above 256 KiB are refused."""

from __future__ import annotations

from dataclasses import replace

import grpc

from lutbuilder.control import control_pb2 as pb
from lutbuilder.control import control_pb2_grpc, convert
from lutbuilder.control.api import ControlApi
from lutbuilder.coordinator.trust import caller_of
from lutbuilder_agent.errors import WireError
from lutbuilder_agent.wire.join import speaks_tls
from lutbuilder_agent.wire.servicer import small, translated

SERVICE = "lutbuilder.v1.ControlService"


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """Serves a ControlApi."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api

    def SubmitJob(  # noqa: N802  # the proto's name
        self, request: pb.SubmitJobRequest, context: grpc.ServicerContext
    ) -> pb.SubmitJobResponse:
        with translated(context):
            spec, job_id = convert.submission_from_proto(small(request))
            if speaks_tls(context):  # then it is known who asks, whatever the request says
                spec = replace(spec, owner=caller_of(context).name)
            return small(pb.SubmitJobResponse(job=convert.job_to_proto(self._api.submit(spec, job_id=job_id))))

    def WatchJob(  # noqa: N802  # the proto's name
        self, request: pb.WatchJobRequest, context: grpc.ServicerContext
    ) -> pb.WatchJobResponse:
        with translated(context):
            job_id, seen, wait_s = convert.watch_from_proto(small(request))
            watched = self._api.watch(job_id, seen=seen, wait_s=wait_s)
            return small(pb.WatchJobResponse(job=convert.job_to_proto(watched.job), seen=watched.seen))

    def CancelJob(  # noqa: N802  # the proto's name
        self, request: pb.CancelJobRequest, context: grpc.ServicerContext
    ) -> pb.CancelJobResponse:
        with translated(context):
            return small(pb.CancelJobResponse(job=convert.job_to_proto(self._api.cancel_job(request.job_id))))

    def ListJobs(  # noqa: N802  # the proto's name
        self, request: pb.ListJobsRequest, context: grpc.ServicerContext
    ) -> pb.ListJobsResponse:
        with translated(context):
            page = self._api.jobs(active_only=request.active_only, after=small(request).page_token)
            jobs = [convert.job_to_proto(job) for job in page.items]
            return small(pb.ListJobsResponse(jobs=jobs, next_page_token=page.after))

    def ListAgents(  # noqa: N802  # the proto's name
        self, request: pb.ListAgentsRequest, context: grpc.ServicerContext
    ) -> pb.ListAgentsResponse:
        with translated(context):
            page = self._api.agents(after=small(request).page_token)
            agents = [convert.agent_to_proto(agent) for agent in page.items]
            return small(pb.ListAgentsResponse(agents=agents, next_page_token=page.after))

    def ListCampaigns(  # noqa: N802  # the proto's name
        self, request: pb.ListCampaignsRequest, context: grpc.ServicerContext
    ) -> pb.ListCampaignsResponse:
        with translated(context):
            page = self._api.campaigns(
                active_only=request.active_only, campaign_id=request.campaign_id, after=small(request).page_token
            )
            campaigns = [convert.campaign_to_proto(campaign) for campaign in page.items]
            return small(pb.ListCampaignsResponse(campaigns=campaigns, next_page_token=page.after))

    def ListLeases(  # noqa: N802  # the proto's name
        self, request: pb.ListLeasesRequest, context: grpc.ServicerContext
    ) -> pb.ListLeasesResponse:
        with translated(context):
            page = self._api.leases(after=small(request).page_token)
            leases = [convert.lease_to_proto(lease) for lease in page.items]
            return small(pb.ListLeasesResponse(leases=leases, next_page_token=page.after))

    def DrainAgent(  # noqa: N802  # the proto's name
        self, request: pb.DrainAgentRequest, context: grpc.ServicerContext
    ) -> pb.DrainAgentResponse:
        with translated(context):
            agent = self._api.drain(small(request).name, request.drained)
            return pb.DrainAgentResponse(agent=convert.agent_to_proto(agent))

    def ReleaseQuarantine(  # noqa: N802  # the proto's name
        self, request: pb.ReleaseQuarantineRequest, context: grpc.ServicerContext
    ) -> pb.ReleaseQuarantineResponse:
        with translated(context):
            agent, op = small(request).agent, (request.campaign_id, request.op_id)
            if bool(agent) == any(op) or any(op) != all(op):
                raise WireError("malformed ReleaseQuarantineRequest: it names an agent, or an op and its campaign")
            if agent:
                self._api.release_agent(agent)
            else:
                self._api.release_op(*op)
            return pb.ReleaseQuarantineResponse()

    def CancelCampaign(  # noqa: N802  # the proto's name
        self, request: pb.CancelCampaignRequest, context: grpc.ServicerContext
    ) -> pb.CancelCampaignResponse:
        with translated(context):
            campaign = self._api.cancel_campaign(small(request).campaign_id, request.reason)
            return pb.CancelCampaignResponse(campaign=convert.campaign_to_proto(campaign))

    def FetchLut(  # noqa: N802  # the proto's name
        self, request: pb.FetchLutRequest, context: grpc.ServicerContext
    ) -> pb.FetchLutResponse:
        with translated(context):
            return small(convert.chunk_to_proto(self._api.fetch_lut(*convert.fetch_from_proto(small(request)))))


def add_to_server(api: ControlApi, server: grpc.Server) -> None:
    """Serve `api` on a gRPC server."""
    add = control_pb2_grpc.add_ControlServiceServicer_to_server
    add(ControlServicer(api), server)  # type: ignore[no-untyped-call]  # grpcio-tools generates no types
