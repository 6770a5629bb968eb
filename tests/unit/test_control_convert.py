"""Every record of the control service survives the wire, and nothing unknown is let in as a default."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.campaign.job import JobKind, JobPhase, JobSpec
from lutbuilder.campaign.request import Phase, Progress
from lutbuilder.control import control_pb2 as pb
from lutbuilder.control import convert
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
from lutbuilder_agent.errors import WireError

TEXTS = st.text(max_size=20)
COUNTS = st.integers(0, (1 << 31) - 1)
MOMENTS = st.floats(0, 1e11)
FIGURES = st.none() | st.floats(-1e9, 1e9)
MAYBE_MOMENTS = st.none() | MOMENTS
WORDS = st.lists(TEXTS, max_size=3).map(tuple)


def one_of(literal: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(get_args(literal))


PROGRESSES = st.builds(
    Progress,
    phase=one_of(Phase),
    message=TEXTS,
    round=COUNTS,
    max_rounds=COUNTS,
    n_ops=COUNTS,
    n_precise=COUNTS,
    n_rotation=st.none() | COUNTS,
    elapsed_s=MOMENTS,
    eta_s=MAYBE_MOMENTS,
    ops_per_s=FIGURES,
    drift=FIGURES,
    worst_precision=FIGURES,
    n_failed=COUNTS,
)
OUTCOMES = st.builds(
    JobOutcome,
    published=st.booleans(),
    stop_reason=TEXTS,
    n_measured=COUNTS,
    n_failed=COUNTS,
    rounds=COUNTS,
    wall_s=MOMENTS,
    timed_fraction=FIGURES,
    resumed=st.booleans(),
    notes=WORDS,
    timed_before=st.booleans(),
    networks=TEXTS,
)
JOBS = st.builds(
    JobView,
    job_id=TEXTS,
    kind=one_of(JobKind),
    title=TEXTS,
    phase=one_of(JobPhase),
    created_s=MOMENTS,
    priority=st.integers(-1000, 1000),
    owner=TEXTS,
    message=TEXTS,
    error_code=TEXTS,
    campaign_ids=WORDS,
    lut=TEXTS,
    finished_s=MAYBE_MOMENTS,
    runner=TEXTS,
    progress=st.none() | PROGRESSES,
    outcome=st.none() | OUTCOMES,
)
AGENTS = st.builds(
    AgentView,
    name=TEXTS,
    device=TEXTS,
    env_id=TEXTS,
    agent_version=TEXTS,
    runtimes=st.lists(
        st.builds(RuntimeView, name=TEXTS, version=TEXTS, available=st.booleans(), reason=TEXTS), max_size=3
    ).map(tuple),
    phase=one_of(AgentPhase),
    session_id=TEXTS,
    registered_s=MOMENTS,
    reason=TEXTS,
    clock_domain=TEXTS,
    last_report_s=MAYBE_MOMENTS,
    heard_s=MAYBE_MOMENTS,
    lease_id=TEXTS,
    visits_per_s=FIGURES,
)
FAILURES = st.builds(
    OpFailure,
    op_id=TEXTS,
    label=TEXTS,
    reason=TEXTS,
    detail=TEXTS,
    attempts=COUNTS,
    agents=WORDS,
    final=st.booleans(),
)
CAMPAIGNS = st.builds(
    CampaignView,
    campaign_id=TEXTS,
    purpose=TEXTS,
    space=TEXTS,
    lut_name=TEXTS,
    phase=one_of(CampaignPhase),
    reason=TEXTS,
    priority=st.integers(-1000, 1000),
    rounds=COUNTS,
    max_rounds=COUNTS,
    n_ops=COUNTS,
    measured_s=MOMENTS,
    timed_s=MOMENTS,
    created_s=MOMENTS,
    finished_s=MAYBE_MOMENTS,
    n_failed=COUNTS,
    agents=WORDS,
    failures=st.lists(FAILURES, max_size=2).map(tuple),
)
LEASES = st.builds(
    LeaseView,
    lease_id=TEXTS,
    campaign_id=TEXTS,
    batch=COUNTS,
    epoch=COUNTS,
    agent=TEXTS,
    first_round=COUNTS,
    rounds=COUNTS,
    owner=TEXTS,
    granted_s=MOMENTS,
    expires_in_s=MAYBE_MOMENTS,
)
CHUNKS = st.builds(
    LutChunk, version=COUNTS, offset=COUNTS, chunk=st.binary(max_size=9), size_bytes=COUNTS, sha256=TEXTS
)
PAIRS = [
    (convert.progress_to_proto, convert.progress_from_proto, PROGRESSES),
    (convert.outcome_to_proto, convert.outcome_from_proto, OUTCOMES),
    (convert.job_to_proto, convert.job_from_proto, JOBS),
    (convert.agent_to_proto, convert.agent_from_proto, AGENTS),
    (convert.campaign_to_proto, convert.campaign_from_proto, CAMPAIGNS),
    (convert.lease_to_proto, convert.lease_from_proto, LEASES),
    (convert.chunk_to_proto, convert.chunk_from_proto, CHUNKS),
]


@pytest.mark.parametrize(("to_proto", "from_proto", "records"), PAIRS, ids=lambda each: getattr(each, "__name__", ""))
def test_every_record_survives_the_wire(to_proto: Any, from_proto: Any, records: st.SearchStrategy[Any]) -> None:
    @given(records)
    def survives(record: Any) -> None:
        message = to_proto(record)
        assert from_proto(type(message).FromString(message.SerializeToString())) == record

    survives()


@given(
    st.builds(JobSpec, kind=one_of(JobKind), request=TEXTS, priority=st.integers(-1000, 1000), owner=st.just("ann")),
    TEXTS,
)
def test_a_submission_survives_the_wire(spec: JobSpec, job_id: str) -> None:
    assert convert.submission_from_proto(convert.submission_to_proto(spec, job_id)) == (spec, job_id)


@given(TEXTS, COUNTS, one_of(LutPart), COUNTS)
def test_a_fetch_survives_the_wire(name: str, version: int, part: LutPart, offset: int) -> None:
    assert convert.fetch_from_proto(convert.fetch_to_proto(name, version, part, offset)) == (
        name, version, part, offset,
    )  # fmt: skip  # one tuple, one line


@pytest.mark.parametrize(
    ("enum", "literal"),
    [
        (pb.JobKind, JobKind),
        (pb.JobPhase, JobPhase),
        (pb.ProgressPhase, Phase),
        (pb.AgentPhase, AgentPhase),
        (pb.CampaignPhase, CampaignPhase),
        (pb.LutPart, LutPart),
    ],
)
def test_every_member_of_an_enum_has_its_word_and_every_word_its_member(enum: Any, literal: Any) -> None:
    names = list(enum.keys())
    prefix = names[0].removesuffix("_UNSPECIFIED")
    assert enum.Value(names[0]) == 0
    assert {name.removeprefix(f"{prefix}_").lower() for name in names[1:]} == set(get_args(literal))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (convert.job_from_proto, pb.Job(job_id="j", kind=1)),
        (convert.job_from_proto, pb.Job(job_id="j", phase=1)),
        (convert.job_from_proto, pb.Job(kind=1, phase=1, created_s=float("nan"))),
        (convert.job_from_proto, pb.Job(kind=77, phase=1)),
        (convert.job_from_proto, pb.Job(kind=1, phase=1, progress=pb.JobProgress())),
        (convert.job_from_proto, pb.Job(kind=1, phase=1, progress=pb.JobProgress(phase=1, eta_s=float("inf")))),
        (convert.submission_from_proto, pb.SubmitJobRequest(job_id="abcd", request="{}")),
        (convert.submission_from_proto, pb.SubmitJobRequest(job_id="abcd", kind=1, priority=5000)),
        (convert.submission_from_proto, pb.SubmitJobRequest(job_id="abcd", kind=1, owner="two\nlines")),
        (convert.submission_from_proto, pb.SubmitJobRequest(job_id="abcd", kind=1, request="x" * (193 * 1024))),
        (convert.watch_from_proto, pb.WatchJobRequest(job_id="abcd", wait_s=-1.0)),
        (convert.agent_from_proto, pb.AgentInfo(name="a")),
        (convert.campaign_from_proto, pb.CampaignInfo(campaign_id="c")),
        (convert.lease_from_proto, pb.LeaseInfo(lease_id="l", granted_s=-2.0)),
        (convert.fetch_from_proto, pb.FetchLutRequest(name="a/b")),
        (convert.fetch_from_proto, pb.FetchLutRequest(name="a/b", part=1, offset=1 << 63)),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_does_not_fit_is_refused(read: Any, message: Any) -> None:
    with pytest.raises(WireError, match="malformed"):
        read(message)
