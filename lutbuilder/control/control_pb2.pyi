from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_KIND_UNSPECIFIED: _ClassVar[JobKind]
    JOB_KIND_COLLECT: _ClassVar[JobKind]
    JOB_KIND_VALIDATE: _ClassVar[JobKind]
    JOB_KIND_CALIBRATE: _ClassVar[JobKind]

class JobPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_PHASE_UNSPECIFIED: _ClassVar[JobPhase]
    JOB_PHASE_QUEUED: _ClassVar[JobPhase]
    JOB_PHASE_RUNNING: _ClassVar[JobPhase]
    JOB_PHASE_DONE: _ClassVar[JobPhase]
    JOB_PHASE_FAILED: _ClassVar[JobPhase]
    JOB_PHASE_CANCELLED: _ClassVar[JobPhase]

class ProgressPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROGRESS_PHASE_UNSPECIFIED: _ClassVar[ProgressPhase]
    PROGRESS_PHASE_STARTING: _ClassVar[ProgressPhase]
    PROGRESS_PHASE_WAITING: _ClassVar[ProgressPhase]
    PROGRESS_PHASE_PREPARING: _ClassVar[ProgressPhase]
    PROGRESS_PHASE_TIMING: _ClassVar[ProgressPhase]
    PROGRESS_PHASE_FITTING: _ClassVar[ProgressPhase]
    PROGRESS_PHASE_PUBLISHING: _ClassVar[ProgressPhase]
    PROGRESS_PHASE_DONE: _ClassVar[ProgressPhase]

class AgentPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGENT_PHASE_UNSPECIFIED: _ClassVar[AgentPhase]
    AGENT_PHASE_IDLE: _ClassVar[AgentPhase]
    AGENT_PHASE_MEASURING: _ClassVar[AgentPhase]
    AGENT_PHASE_SILENT: _ClassVar[AgentPhase]
    AGENT_PHASE_DRAINED: _ClassVar[AgentPhase]
    AGENT_PHASE_QUARANTINED: _ClassVar[AgentPhase]
    AGENT_PHASE_UNKNOWN: _ClassVar[AgentPhase]

class CampaignPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAMPAIGN_PHASE_UNSPECIFIED: _ClassVar[CampaignPhase]
    CAMPAIGN_PHASE_ACTIVE: _ClassVar[CampaignPhase]
    CAMPAIGN_PHASE_DONE: _ClassVar[CampaignPhase]
    CAMPAIGN_PHASE_CANCELLED: _ClassVar[CampaignPhase]

class LutPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LUT_PART_UNSPECIFIED: _ClassVar[LutPart]
    LUT_PART_TABLE: _ClassVar[LutPart]
    LUT_PART_SAMPLES: _ClassVar[LutPart]
JOB_KIND_UNSPECIFIED: JobKind
JOB_KIND_COLLECT: JobKind
JOB_KIND_VALIDATE: JobKind
JOB_KIND_CALIBRATE: JobKind
JOB_PHASE_UNSPECIFIED: JobPhase
JOB_PHASE_QUEUED: JobPhase
JOB_PHASE_RUNNING: JobPhase
JOB_PHASE_DONE: JobPhase
JOB_PHASE_FAILED: JobPhase
JOB_PHASE_CANCELLED: JobPhase
PROGRESS_PHASE_UNSPECIFIED: ProgressPhase
PROGRESS_PHASE_STARTING: ProgressPhase
PROGRESS_PHASE_WAITING: ProgressPhase
PROGRESS_PHASE_PREPARING: ProgressPhase
PROGRESS_PHASE_TIMING: ProgressPhase
PROGRESS_PHASE_FITTING: ProgressPhase
PROGRESS_PHASE_PUBLISHING: ProgressPhase
PROGRESS_PHASE_DONE: ProgressPhase
AGENT_PHASE_UNSPECIFIED: AgentPhase
AGENT_PHASE_IDLE: AgentPhase
AGENT_PHASE_MEASURING: AgentPhase
AGENT_PHASE_SILENT: AgentPhase
AGENT_PHASE_DRAINED: AgentPhase
AGENT_PHASE_QUARANTINED: AgentPhase
AGENT_PHASE_UNKNOWN: AgentPhase
CAMPAIGN_PHASE_UNSPECIFIED: CampaignPhase
CAMPAIGN_PHASE_ACTIVE: CampaignPhase
CAMPAIGN_PHASE_DONE: CampaignPhase
CAMPAIGN_PHASE_CANCELLED: CampaignPhase
LUT_PART_UNSPECIFIED: LutPart
LUT_PART_TABLE: LutPart
LUT_PART_SAMPLES: LutPart

class JobProgress(_message.Message):
    __slots__ = ("phase", "message", "round", "max_rounds", "n_ops", "n_precise", "n_rotation", "elapsed_s", "eta_s", "ops_per_s", "drift", "worst_precision", "n_failed")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MAX_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    N_OPS_FIELD_NUMBER: _ClassVar[int]
    N_PRECISE_FIELD_NUMBER: _ClassVar[int]
    N_ROTATION_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    OPS_PER_S_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    WORST_PRECISION_FIELD_NUMBER: _ClassVar[int]
    N_FAILED_FIELD_NUMBER: _ClassVar[int]
    phase: ProgressPhase
    message: str
    round: int
    max_rounds: int
    n_ops: int
    n_precise: int
    n_rotation: int
    elapsed_s: float
    eta_s: float
    ops_per_s: float
    drift: float
    worst_precision: float
    n_failed: int
    def __init__(self, phase: _Optional[_Union[ProgressPhase, str]] = ..., message: _Optional[str] = ..., round: _Optional[int] = ..., max_rounds: _Optional[int] = ..., n_ops: _Optional[int] = ..., n_precise: _Optional[int] = ..., n_rotation: _Optional[int] = ..., elapsed_s: _Optional[float] = ..., eta_s: _Optional[float] = ..., ops_per_s: _Optional[float] = ..., drift: _Optional[float] = ..., worst_precision: _Optional[float] = ..., n_failed: _Optional[int] = ...) -> None: ...

class JobOutcome(_message.Message):
    __slots__ = ("published", "stop_reason", "n_measured", "n_failed", "rounds", "wall_s", "timed_fraction", "resumed", "notes", "timed_before", "networks")
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    N_MEASURED_FIELD_NUMBER: _ClassVar[int]
    N_FAILED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    TIMED_FRACTION_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    TIMED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    published: bool
    stop_reason: str
    n_measured: int
    n_failed: int
    rounds: int
    wall_s: float
    timed_fraction: float
    resumed: bool
    notes: _containers.RepeatedScalarFieldContainer[str]
    timed_before: bool
    networks: str
    def __init__(self, published: bool = ..., stop_reason: _Optional[str] = ..., n_measured: _Optional[int] = ..., n_failed: _Optional[int] = ..., rounds: _Optional[int] = ..., wall_s: _Optional[float] = ..., timed_fraction: _Optional[float] = ..., resumed: bool = ..., notes: _Optional[_Iterable[str]] = ..., timed_before: bool = ..., networks: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "kind", "title", "priority", "owner", "phase", "message", "error_code", "campaign_ids", "lut", "created_s", "finished_s", "runner", "progress", "outcome")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_IDS_FIELD_NUMBER: _ClassVar[int]
    LUT_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    FINISHED_S_FIELD_NUMBER: _ClassVar[int]
    RUNNER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    kind: JobKind
    title: str
    priority: int
    owner: str
    phase: JobPhase
    message: str
    error_code: str
    campaign_ids: _containers.RepeatedScalarFieldContainer[str]
    lut: str
    created_s: float
    finished_s: float
    runner: str
    progress: JobProgress
    outcome: JobOutcome
    def __init__(self, job_id: _Optional[str] = ..., kind: _Optional[_Union[JobKind, str]] = ..., title: _Optional[str] = ..., priority: _Optional[int] = ..., owner: _Optional[str] = ..., phase: _Optional[_Union[JobPhase, str]] = ..., message: _Optional[str] = ..., error_code: _Optional[str] = ..., campaign_ids: _Optional[_Iterable[str]] = ..., lut: _Optional[str] = ..., created_s: _Optional[float] = ..., finished_s: _Optional[float] = ..., runner: _Optional[str] = ..., progress: _Optional[_Union[JobProgress, _Mapping]] = ..., outcome: _Optional[_Union[JobOutcome, _Mapping]] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("job_id", "kind", "request", "priority", "owner")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    kind: JobKind
    request: str
    priority: int
    owner: str
    def __init__(self, job_id: _Optional[str] = ..., kind: _Optional[_Union[JobKind, str]] = ..., request: _Optional[str] = ..., priority: _Optional[int] = ..., owner: _Optional[str] = ...) -> None: ...

class SubmitJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("job_id", "seen", "wait_s")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    seen: str
    wait_s: float
    def __init__(self, job_id: _Optional[str] = ..., seen: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("job", "seen")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    job: Job
    seen: str
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., seen: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("active_only", "page_token")
    ACTIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    active_only: bool
    page_token: str
    def __init__(self, active_only: bool = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AgentRuntime(_message.Message):
    __slots__ = ("name", "version", "available", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    available: bool
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., available: bool = ..., reason: _Optional[str] = ...) -> None: ...

class AgentInfo(_message.Message):
    __slots__ = ("name", "device", "env_id", "agent_version", "runtimes", "phase", "reason", "clock_domain", "session_id", "registered_s", "last_report_s", "heard_s", "lease_id", "visits_per_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ENV_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLOCK_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_S_FIELD_NUMBER: _ClassVar[int]
    LAST_REPORT_S_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    VISITS_PER_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    device: str
    env_id: str
    agent_version: str
    runtimes: _containers.RepeatedCompositeFieldContainer[AgentRuntime]
    phase: AgentPhase
    reason: str
    clock_domain: str
    session_id: str
    registered_s: float
    last_report_s: float
    heard_s: float
    lease_id: str
    visits_per_s: float
    def __init__(self, name: _Optional[str] = ..., device: _Optional[str] = ..., env_id: _Optional[str] = ..., agent_version: _Optional[str] = ..., runtimes: _Optional[_Iterable[_Union[AgentRuntime, _Mapping]]] = ..., phase: _Optional[_Union[AgentPhase, str]] = ..., reason: _Optional[str] = ..., clock_domain: _Optional[str] = ..., session_id: _Optional[str] = ..., registered_s: _Optional[float] = ..., last_report_s: _Optional[float] = ..., heard_s: _Optional[float] = ..., lease_id: _Optional[str] = ..., visits_per_s: _Optional[float] = ...) -> None: ...

class ListAgentsRequest(_message.Message):
    __slots__ = ("page_token",)
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_token: str
    def __init__(self, page_token: _Optional[str] = ...) -> None: ...

class ListAgentsResponse(_message.Message):
    __slots__ = ("agents", "next_page_token")
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    agents: _containers.RepeatedCompositeFieldContainer[AgentInfo]
    next_page_token: str
    def __init__(self, agents: _Optional[_Iterable[_Union[AgentInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class OpFailure(_message.Message):
    __slots__ = ("op_id", "label", "reason", "detail", "attempts", "agents", "final")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    label: str
    reason: str
    detail: str
    attempts: int
    agents: _containers.RepeatedScalarFieldContainer[str]
    final: bool
    def __init__(self, op_id: _Optional[str] = ..., label: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., attempts: _Optional[int] = ..., agents: _Optional[_Iterable[str]] = ..., final: bool = ...) -> None: ...

class CampaignInfo(_message.Message):
    __slots__ = ("campaign_id", "purpose", "space", "lut_name", "phase", "reason", "priority", "rounds", "max_rounds", "n_ops", "measured_s", "timed_s", "created_s", "finished_s", "agents", "n_failed", "failures")
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    LUT_NAME_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    N_OPS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_S_FIELD_NUMBER: _ClassVar[int]
    TIMED_S_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    FINISHED_S_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    N_FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    campaign_id: str
    purpose: str
    space: str
    lut_name: str
    phase: CampaignPhase
    reason: str
    priority: int
    rounds: int
    max_rounds: int
    n_ops: int
    measured_s: float
    timed_s: float
    created_s: float
    finished_s: float
    agents: _containers.RepeatedScalarFieldContainer[str]
    n_failed: int
    failures: _containers.RepeatedCompositeFieldContainer[OpFailure]
    def __init__(self, campaign_id: _Optional[str] = ..., purpose: _Optional[str] = ..., space: _Optional[str] = ..., lut_name: _Optional[str] = ..., phase: _Optional[_Union[CampaignPhase, str]] = ..., reason: _Optional[str] = ..., priority: _Optional[int] = ..., rounds: _Optional[int] = ..., max_rounds: _Optional[int] = ..., n_ops: _Optional[int] = ..., measured_s: _Optional[float] = ..., timed_s: _Optional[float] = ..., created_s: _Optional[float] = ..., finished_s: _Optional[float] = ..., agents: _Optional[_Iterable[str]] = ..., n_failed: _Optional[int] = ..., failures: _Optional[_Iterable[_Union[OpFailure, _Mapping]]] = ...) -> None: ...

class ListCampaignsRequest(_message.Message):
    __slots__ = ("active_only", "campaign_id", "page_token")
    ACTIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    active_only: bool
    campaign_id: str
    page_token: str
    def __init__(self, active_only: bool = ..., campaign_id: _Optional[str] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCampaignsResponse(_message.Message):
    __slots__ = ("campaigns", "next_page_token")
    CAMPAIGNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    campaigns: _containers.RepeatedCompositeFieldContainer[CampaignInfo]
    next_page_token: str
    def __init__(self, campaigns: _Optional[_Iterable[_Union[CampaignInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class LeaseInfo(_message.Message):
    __slots__ = ("lease_id", "campaign_id", "batch", "epoch", "agent", "first_round", "rounds", "owner", "granted_s", "expires_in_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    GRANTED_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    campaign_id: str
    batch: int
    epoch: int
    agent: str
    first_round: int
    rounds: int
    owner: str
    granted_s: float
    expires_in_s: float
    def __init__(self, lease_id: _Optional[str] = ..., campaign_id: _Optional[str] = ..., batch: _Optional[int] = ..., epoch: _Optional[int] = ..., agent: _Optional[str] = ..., first_round: _Optional[int] = ..., rounds: _Optional[int] = ..., owner: _Optional[str] = ..., granted_s: _Optional[float] = ..., expires_in_s: _Optional[float] = ...) -> None: ...

class ListLeasesRequest(_message.Message):
    __slots__ = ("page_token",)
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_token: str
    def __init__(self, page_token: _Optional[str] = ...) -> None: ...

class ListLeasesResponse(_message.Message):
    __slots__ = ("leases", "next_page_token")
    LEASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[LeaseInfo]
    next_page_token: str
    def __init__(self, leases: _Optional[_Iterable[_Union[LeaseInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DrainAgentRequest(_message.Message):
    __slots__ = ("name", "drained")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    name: str
    drained: bool
    def __init__(self, name: _Optional[str] = ..., drained: bool = ...) -> None: ...

class DrainAgentResponse(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: AgentInfo
    def __init__(self, agent: _Optional[_Union[AgentInfo, _Mapping]] = ...) -> None: ...

class ReleaseQuarantineRequest(_message.Message):
    __slots__ = ("agent", "campaign_id", "op_id")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    agent: str
    campaign_id: str
    op_id: str
    def __init__(self, agent: _Optional[str] = ..., campaign_id: _Optional[str] = ..., op_id: _Optional[str] = ...) -> None: ...

class ReleaseQuarantineResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelCampaignRequest(_message.Message):
    __slots__ = ("campaign_id", "reason")
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    campaign_id: str
    reason: str
    def __init__(self, campaign_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CancelCampaignResponse(_message.Message):
    __slots__ = ("campaign",)
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    campaign: CampaignInfo
    def __init__(self, campaign: _Optional[_Union[CampaignInfo, _Mapping]] = ...) -> None: ...

class FetchLutRequest(_message.Message):
    __slots__ = ("name", "version", "part", "offset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    part: LutPart
    offset: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., part: _Optional[_Union[LutPart, str]] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchLutResponse(_message.Message):
    __slots__ = ("version", "offset", "chunk", "size_bytes", "sha256")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    version: int
    offset: int
    chunk: bytes
    size_bytes: int
    sha256: str
    def __init__(self, version: _Optional[int] = ..., offset: _Optional[int] = ..., chunk: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...
