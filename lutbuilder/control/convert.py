"""Records of the control service to protos and back, in pairs: the only module that knows both.

Every function raises WireError for what does not fit, as lutbuilder_agent.wire.convert does: an UNSPECIFIED or unknown
enum member, a number out of range. Nothing unknown becomes a default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast, get_args

from lutbuilder.campaign.job import JobKind, JobPhase, JobSpec
from lutbuilder.campaign.request import Phase, Progress
from lutbuilder.control import control_pb2 as pb
from lutbuilder.control.api import (
    AgentPhase,
    AgentView,
    CampaignPhase,
    CampaignView,
    JobOutcome,
    JobView,
    LeaseView,
    LutChunk,
    LutPart,
    OpFailure,
    RuntimeView,
)
from lutbuilder_agent.wire.convert import refusing

_MAX_S = 1e12  # of a time or a duration: 30,000 years


@refusing("JobProgress")
def progress_to_proto(progress: Progress) -> pb.JobProgress:
    return pb.JobProgress(
        phase=_member("PROGRESS_PHASE", progress.phase),
        message=progress.message,
        round=progress.round,
        max_rounds=progress.max_rounds,
        n_ops=progress.n_ops,
        n_precise=progress.n_precise,
        n_rotation=progress.n_rotation,
        elapsed_s=progress.elapsed_s,
        eta_s=progress.eta_s,
        ops_per_s=progress.ops_per_s,
        drift=progress.drift,
        worst_precision=progress.worst_precision,
        n_failed=progress.n_failed,
    )


@refusing("JobProgress")
def progress_from_proto(message: pb.JobProgress) -> Progress:
    return Progress(
        phase=cast(Phase, _value("PROGRESS_PHASE", pb.ProgressPhase, message.phase, get_args(Phase))),
        message=message.message,
        round=message.round,
        max_rounds=message.max_rounds,
        n_ops=message.n_ops,
        n_precise=message.n_precise,
        n_rotation=_maybe(message, "n_rotation"),
        elapsed_s=_finite("elapsed_s", message.elapsed_s),
        eta_s=_maybe(message, "eta_s"),
        ops_per_s=_maybe(message, "ops_per_s"),
        drift=_maybe(message, "drift"),
        worst_precision=_maybe(message, "worst_precision"),
        n_failed=message.n_failed,
    )


@refusing("JobOutcome")
def outcome_to_proto(outcome: JobOutcome) -> pb.JobOutcome:
    return pb.JobOutcome(
        published=outcome.published,
        stop_reason=outcome.stop_reason,
        n_measured=outcome.n_measured,
        n_failed=outcome.n_failed,
        rounds=outcome.rounds,
        wall_s=outcome.wall_s,
        timed_fraction=outcome.timed_fraction,
        resumed=outcome.resumed,
        notes=outcome.notes,
        timed_before=outcome.timed_before,
        networks=outcome.networks,
    )


@refusing("JobOutcome")
def outcome_from_proto(message: pb.JobOutcome) -> JobOutcome:
    return JobOutcome(
        published=message.published,
        stop_reason=message.stop_reason,
        n_measured=message.n_measured,
        n_failed=message.n_failed,
        rounds=message.rounds,
        wall_s=_seconds("wall_s", message.wall_s),
        timed_fraction=_maybe(message, "timed_fraction"),
        resumed=message.resumed,
        notes=tuple(message.notes),
        timed_before=message.timed_before,
        networks=message.networks,
    )


@refusing("Job")
def job_to_proto(job: JobView) -> pb.Job:
    return pb.Job(
        job_id=job.job_id,
        kind=_member("JOB_KIND", job.kind),
        title=job.title,
        priority=job.priority,
        owner=job.owner,
        phase=_member("JOB_PHASE", job.phase),
        message=job.message,
        error_code=job.error_code,
        campaign_ids=job.campaign_ids,
        lut=job.lut,
        created_s=job.created_s,
        finished_s=job.finished_s,
        runner=job.runner,
        progress=None if job.progress is None else progress_to_proto(job.progress),
        outcome=None if job.outcome is None else outcome_to_proto(job.outcome),
    )


@refusing("Job")
def job_from_proto(message: pb.Job) -> JobView:
    return JobView(
        job_id=message.job_id,
        kind=cast(JobKind, _value("JOB_KIND", pb.JobKind, message.kind, get_args(JobKind))),
        title=message.title,
        priority=message.priority,
        owner=message.owner,
        phase=cast(JobPhase, _value("JOB_PHASE", pb.JobPhase, message.phase, get_args(JobPhase))),
        message=message.message,
        error_code=message.error_code,
        campaign_ids=tuple(message.campaign_ids),
        lut=message.lut,
        created_s=_seconds("created_s", message.created_s),
        finished_s=_maybe(message, "finished_s"),
        runner=message.runner,
        progress=progress_from_proto(message.progress) if message.HasField("progress") else None,
        outcome=outcome_from_proto(message.outcome) if message.HasField("outcome") else None,
    )


@refusing("SubmitJobRequest")
def submission_to_proto(spec: JobSpec, job_id: str) -> pb.SubmitJobRequest:
    return pb.SubmitJobRequest(
        job_id=job_id,
        kind=_member("JOB_KIND", spec.kind),
        request=spec.request,
        priority=spec.priority,
        owner=spec.owner,
    )


@refusing("SubmitJobRequest")
def submission_from_proto(message: pb.SubmitJobRequest) -> tuple[JobSpec, str]:
    """Return the job and its id."""
    spec = JobSpec(
        kind=cast(JobKind, _value("JOB_KIND", pb.JobKind, message.kind, get_args(JobKind))),
        request=message.request,
        priority=message.priority,
        owner=message.owner,
    )
    return spec, message.job_id


@refusing("WatchJobRequest")
def watch_from_proto(message: pb.WatchJobRequest) -> tuple[str, str, float]:
    """Return (job_id, seen, wait_s)."""
    return message.job_id, message.seen, _seconds("wait_s", message.wait_s)


@refusing("AgentInfo")
def agent_to_proto(agent: AgentView) -> pb.AgentInfo:
    return pb.AgentInfo(
        name=agent.name,
        device=agent.device,
        env_id=agent.env_id,
        agent_version=agent.agent_version,
        runtimes=[
            pb.AgentRuntime(name=each.name, version=each.version, available=each.available, reason=each.reason)
            for each in agent.runtimes
        ],
        phase=_member("AGENT_PHASE", agent.phase),
        reason=agent.reason,
        clock_domain=agent.clock_domain,
        session_id=agent.session_id,
        registered_s=agent.registered_s,
        last_report_s=agent.last_report_s,
        heard_s=agent.heard_s,
        lease_id=agent.lease_id,
        visits_per_s=agent.visits_per_s,
    )


@refusing("AgentInfo")
def agent_from_proto(message: pb.AgentInfo) -> AgentView:
    return AgentView(
        name=message.name,
        device=message.device,
        env_id=message.env_id,
        agent_version=message.agent_version,
        runtimes=tuple(
            RuntimeView(name=each.name, version=each.version, available=each.available, reason=each.reason)
            for each in message.runtimes
        ),
        phase=cast(AgentPhase, _value("AGENT_PHASE", pb.AgentPhase, message.phase, get_args(AgentPhase))),
        reason=message.reason,
        clock_domain=message.clock_domain,
        session_id=message.session_id,
        registered_s=_seconds("registered_s", message.registered_s),
        last_report_s=_maybe(message, "last_report_s"),
        heard_s=_maybe(message, "heard_s"),
        lease_id=message.lease_id,
        visits_per_s=_maybe(message, "visits_per_s"),
    )


@refusing("CampaignInfo")
def campaign_to_proto(campaign: CampaignView) -> pb.CampaignInfo:
    return pb.CampaignInfo(
        campaign_id=campaign.campaign_id,
        purpose=campaign.purpose,
        space=campaign.space,
        lut_name=campaign.lut_name,
        phase=_member("CAMPAIGN_PHASE", campaign.phase),
        reason=campaign.reason,
        priority=campaign.priority,
        rounds=campaign.rounds,
        max_rounds=campaign.max_rounds,
        n_ops=campaign.n_ops,
        measured_s=campaign.measured_s,
        timed_s=campaign.timed_s,
        created_s=campaign.created_s,
        finished_s=campaign.finished_s,
        agents=campaign.agents,
        n_failed=campaign.n_failed,
        failures=[
            pb.OpFailure(
                op_id=each.op_id,
                label=each.label,
                reason=each.reason,
                detail=each.detail,
                attempts=each.attempts,
                agents=each.agents,
                final=each.final,
            )
            for each in campaign.failures
        ],
    )


@refusing("CampaignInfo")
def campaign_from_proto(message: pb.CampaignInfo) -> CampaignView:
    return CampaignView(
        campaign_id=message.campaign_id,
        purpose=message.purpose,
        space=message.space,
        lut_name=message.lut_name,
        phase=cast(CampaignPhase, _value("CAMPAIGN_PHASE", pb.CampaignPhase, message.phase, get_args(CampaignPhase))),
        reason=message.reason,
        priority=message.priority,
        rounds=message.rounds,
        max_rounds=message.max_rounds,
        n_ops=message.n_ops,
        measured_s=_seconds("measured_s", message.measured_s),
        timed_s=_seconds("timed_s", message.timed_s),
        created_s=_seconds("created_s", message.created_s),
        finished_s=_maybe(message, "finished_s"),
        agents=tuple(message.agents),
        n_failed=message.n_failed,
        failures=tuple(
            OpFailure(
                op_id=each.op_id,
                label=each.label,
                reason=each.reason,
                detail=each.detail,
                attempts=each.attempts,
                agents=tuple(each.agents),
                final=each.final,
            )
            for each in message.failures
        ),
    )


@refusing("LeaseInfo")
def lease_to_proto(lease: LeaseView) -> pb.LeaseInfo:
    return pb.LeaseInfo(
        lease_id=lease.lease_id,
        campaign_id=lease.campaign_id,
        batch=lease.batch,
        epoch=lease.epoch,
        agent=lease.agent,
        first_round=lease.first_round,
        rounds=lease.rounds,
        owner=lease.owner,
        granted_s=lease.granted_s,
        expires_in_s=lease.expires_in_s,
    )


@refusing("LeaseInfo")
def lease_from_proto(message: pb.LeaseInfo) -> LeaseView:
    return LeaseView(
        lease_id=message.lease_id,
        campaign_id=message.campaign_id,
        batch=message.batch,
        epoch=message.epoch,
        agent=message.agent,
        first_round=message.first_round,
        rounds=message.rounds,
        owner=message.owner,
        granted_s=_seconds("granted_s", message.granted_s),
        expires_in_s=_maybe(message, "expires_in_s"),
    )


@refusing("FetchLutRequest")
def fetch_to_proto(name: str, version: int, part: LutPart, offset: int) -> pb.FetchLutRequest:
    return pb.FetchLutRequest(name=name, version=version, part=_member("LUT_PART", part), offset=offset)


@refusing("FetchLutRequest")
def fetch_from_proto(message: pb.FetchLutRequest) -> tuple[str, int, LutPart, int]:
    """Return (name, version, part, offset)."""
    part = cast(LutPart, _value("LUT_PART", pb.LutPart, message.part, get_args(LutPart)))
    if message.offset >= 1 << 62:
        raise ValueError(f"offset {message.offset} is behind the end of any file")
    return message.name, message.version, part, message.offset


@refusing("FetchLutResponse")
def chunk_to_proto(piece: LutChunk) -> pb.FetchLutResponse:
    return pb.FetchLutResponse(
        version=piece.version,
        offset=piece.offset,
        chunk=piece.chunk,
        size_bytes=piece.size_bytes,
        sha256=piece.sha256,
    )


@refusing("FetchLutResponse")
def chunk_from_proto(message: pb.FetchLutResponse) -> LutChunk:
    return LutChunk(
        version=message.version,
        offset=message.offset,
        chunk=message.chunk,
        size_bytes=message.size_bytes,
        sha256=message.sha256,
    )


# --- the parts


def _member(prefix: str, value: str) -> Any:
    """Name of an enum member; protobuf refuses (ValueError) a name it does not know."""
    return f"{prefix}_{value.upper()}"


def _value(prefix: str, enum: Any, number: int, known: Sequence[str]) -> str:
    """Return the value of an enum member, e.g. "queued"; UNSPECIFIED is never one."""
    value = str(enum.Name(number)).removeprefix(f"{prefix}_").lower()  # ValueError for a number nobody named
    if value not in known:
        raise ValueError(f"{prefix} is {enum.Name(number)}, which is never a meaning")
    return value


def _maybe(message: Any, name: str) -> Any:
    """Return a figure that may be absent: None then."""
    if not message.HasField(name):
        return None
    value = getattr(message, name)
    return _finite(name, value) if isinstance(value, float) else value


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def _seconds(name: str, value: float) -> float:
    if not 0 <= value < _MAX_S:
        raise ValueError(f"{name} must be from 0 to {_MAX_S:g} seconds, got {value}")
    return value
