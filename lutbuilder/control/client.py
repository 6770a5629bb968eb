"""ControlClient: the calls of `ControlApi` over gRPC. Every call has a deadline and may be repeated without harm."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from lutbuilder.campaign.job import JobSpec
from lutbuilder.control import control_pb2 as pb
from lutbuilder.control import control_pb2_grpc, convert
from lutbuilder.control.api import (
    MAX_WATCH_S,
    AgentView,
    CampaignView,
    JobView,
    LeaseView,
    LutChunk,
    LutPart,
    Page,
    Watched,
)
from lutbuilder_agent.errors import Unreachable
from lutbuilder_agent.wire.client import open_channel
from lutbuilder_agent.wire.failures import Explain, never_explained, translated

if TYPE_CHECKING:
    from google.protobuf.message import Message

_WATCH_MARGIN_S = 10.0
_TO_AGENTS = "; is it running"  # where wire/failures.py begins its advice to agents


class ControlClient:
    """A coordinator at "host:port" as people use it. Connects on the first call; safe from any thread.

    Raises the errors of ControlApi. Without `credentials` it speaks plaintext. `explain` is asked when a connection
    cannot be made: it returns what waiting does not heal. `dial` gives both for this user.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        explain: Explain = never_explained,
        deadline_s: float = 20.0,
    ) -> None:
        self._address = address
        self._explain = explain
        self._deadline_s = deadline_s
        self._channel = open_channel(address, credentials)
        stub = control_pb2_grpc.ControlServiceStub
        self._stub = stub(self._channel)  # type: ignore[no-untyped-call]  # grpcio-tools generates no types
        self._closed = threading.Event()

    @property
    def address(self) -> str:
        """Where the coordinator is, as given."""
        return self._address

    def submit(self, spec: JobSpec, *, job_id: str) -> JobView:
        """See ControlApi.submit."""
        return convert.job_from_proto(self._call(self._stub.SubmitJob, convert.submission_to_proto(spec, job_id)).job)

    def watch(self, job_id: str, *, seen: str = "", wait_s: float = 0.0) -> Watched:
        """See ControlApi.watch."""
        wait_s = min(wait_s, MAX_WATCH_S)
        request = pb.WatchJobRequest(job_id=job_id, seen=seen, wait_s=wait_s)
        answer = self._call(self._stub.WatchJob, request, deadline_s=wait_s + _WATCH_MARGIN_S)
        return Watched(job=convert.job_from_proto(answer.job), seen=answer.seen)

    def cancel_job(self, job_id: str) -> JobView:
        """See ControlApi.cancel_job."""
        return convert.job_from_proto(self._call(self._stub.CancelJob, pb.CancelJobRequest(job_id=job_id)).job)

    def jobs(self, *, active_only: bool = False, after: str = "") -> Page[JobView]:
        """See ControlApi.jobs."""
        answer = self._call(self._stub.ListJobs, pb.ListJobsRequest(active_only=active_only, page_token=after))
        return Page(items=tuple(map(convert.job_from_proto, answer.jobs)), after=answer.next_page_token)

    def agents(self, *, after: str = "") -> Page[AgentView]:
        """See ControlApi.agents."""
        answer = self._call(self._stub.ListAgents, pb.ListAgentsRequest(page_token=after))
        return Page(items=tuple(map(convert.agent_from_proto, answer.agents)), after=answer.next_page_token)

    def campaigns(self, *, active_only: bool = False, campaign_id: str = "", after: str = "") -> Page[CampaignView]:
        """See ControlApi.campaigns."""
        request = pb.ListCampaignsRequest(active_only=active_only, campaign_id=campaign_id, page_token=after)
        answer = self._call(self._stub.ListCampaigns, request)
        return Page(items=tuple(map(convert.campaign_from_proto, answer.campaigns)), after=answer.next_page_token)

    def leases(self, *, after: str = "") -> Page[LeaseView]:
        """See ControlApi.leases."""
        answer = self._call(self._stub.ListLeases, pb.ListLeasesRequest(page_token=after))
        return Page(items=tuple(map(convert.lease_from_proto, answer.leases)), after=answer.next_page_token)

    def drain(self, agent: str, drained: bool) -> AgentView:
        """See ControlApi.drain."""
        answer = self._call(self._stub.DrainAgent, pb.DrainAgentRequest(name=agent, drained=drained))
        return convert.agent_from_proto(answer.agent)

    def release_agent(self, agent: str) -> None:
        """See ControlApi.release_agent."""
        self._call(self._stub.ReleaseQuarantine, pb.ReleaseQuarantineRequest(agent=agent))

    def release_op(self, campaign_id: str, op_id: str) -> None:
        """See ControlApi.release_op."""
        request = pb.ReleaseQuarantineRequest(campaign_id=campaign_id, op_id=op_id)
        self._call(self._stub.ReleaseQuarantine, request)

    def cancel_campaign(self, campaign_id: str, reason: str) -> CampaignView:
        """See ControlApi.cancel_campaign."""
        request = pb.CancelCampaignRequest(campaign_id=campaign_id, reason=reason)
        return convert.campaign_from_proto(self._call(self._stub.CancelCampaign, request).campaign)

    def fetch_lut(self, name: str, version: int, part: LutPart, offset: int) -> LutChunk:
        """See ControlApi.fetch_lut."""
        request = convert.fetch_to_proto(name, version, part, offset)
        return convert.chunk_from_proto(self._call(self._stub.FetchLut, request))

    def close(self) -> None:
        """Give up the connection; calls under way end with Unreachable. May be called twice."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Message, *, deadline_s: float | None = None) -> Any:
        try:
            with translated(self._address, self._closed, self._explain):
                return method(request, timeout=self._deadline_s if deadline_s is None else deadline_s)
        except Unreachable as error:
            words, advice, _ = str(error).partition(_TO_AGENTS)
            if not advice:
                raise
            raise Unreachable(
                f"{words[:300]}: start it there (lutbuilder serve), or name another: --coordinator HOST:PORT"
            ) from error


def dial(address: str, *, insecure_plaintext: bool, warn: Callable[[str], None]) -> ControlClient:
    """Return a client for this user's commands: with the certificate of this user, or in plaintext on loopback.

    Raises NotAuthenticated if there is no certificate for an address off loopback.
    """
    from lutbuilder_agent import trust

    keeper = trust.approach(address, control=True, insecure_plaintext=insecure_plaintext, warn=warn)
    identity = None if keeper is None else keeper.identity
    return ControlClient(
        address,
        credentials=None if keeper is None else keeper.credentials(),
        explain=lambda: trust.explain(address, identity),
    )
