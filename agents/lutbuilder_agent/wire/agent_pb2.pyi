from lutbuilder_agent.wire import measure_pb2 as _measure_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_STATE_UNSPECIFIED: _ClassVar[DeviceState]
    DEVICE_STATE_OK: _ClassVar[DeviceState]
    DEVICE_STATE_HOT: _ClassVar[DeviceState]
    DEVICE_STATE_LOW_BATTERY: _ClassVar[DeviceState]
    DEVICE_STATE_DRAINING: _ClassVar[DeviceState]
DEVICE_STATE_UNSPECIFIED: DeviceState
DEVICE_STATE_OK: DeviceState
DEVICE_STATE_HOT: DeviceState
DEVICE_STATE_LOW_BATTERY: DeviceState
DEVICE_STATE_DRAINING: DeviceState

class RegisterRequest(_message.Message):
    __slots__ = ("agent_name", "agent_version", "protocol_min", "protocol_max", "fingerprint", "runtimes", "clock_domain")
    AGENT_NAME_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    agent_name: str
    agent_version: str
    protocol_min: int
    protocol_max: int
    fingerprint: _measure_pb2.Fingerprint
    runtimes: _containers.RepeatedCompositeFieldContainer[_measure_pb2.RuntimeReport]
    clock_domain: str
    def __init__(self, agent_name: _Optional[str] = ..., agent_version: _Optional[str] = ..., protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., fingerprint: _Optional[_Union[_measure_pb2.Fingerprint, _Mapping]] = ..., runtimes: _Optional[_Iterable[_Union[_measure_pb2.RuntimeReport, _Mapping]]] = ..., clock_domain: _Optional[str] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("session_id", "epoch", "protocol", "heartbeat_s")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    epoch: int
    protocol: int
    heartbeat_s: float
    def __init__(self, session_id: _Optional[str] = ..., epoch: _Optional[int] = ..., protocol: _Optional[int] = ..., heartbeat_s: _Optional[float] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("session_id", "state", "wait_s", "ahead_of")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    AHEAD_OF_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    state: DeviceState
    wait_s: float
    ahead_of: str
    def __init__(self, session_id: _Optional[str] = ..., state: _Optional[_Union[DeviceState, str]] = ..., wait_s: _Optional[float] = ..., ahead_of: _Optional[str] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("lease", "ask_again_s", "shut_down")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ASK_AGAIN_S_FIELD_NUMBER: _ClassVar[int]
    SHUT_DOWN_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    ask_again_s: float
    shut_down: bool
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., ask_again_s: _Optional[float] = ..., shut_down: bool = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "epoch", "campaign_id", "ops", "plan", "first_round", "rounds", "ttl_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    OPS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    campaign_id: str
    ops: _containers.RepeatedCompositeFieldContainer[_measure_pb2.LeasedOp]
    plan: _measure_pb2.Plan
    first_round: int
    rounds: int
    ttl_s: float
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., campaign_id: _Optional[str] = ..., ops: _Optional[_Iterable[_Union[_measure_pb2.LeasedOp, _Mapping]]] = ..., plan: _Optional[_Union[_measure_pb2.Plan, _Mapping]] = ..., first_round: _Optional[int] = ..., rounds: _Optional[int] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class FetchArtifactRequest(_message.Message):
    __slots__ = ("session_id", "sha256", "offset")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    sha256: str
    offset: int
    def __init__(self, session_id: _Optional[str] = ..., sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchArtifactResponse(_message.Message):
    __slots__ = ("offset", "chunk")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    offset: int
    chunk: bytes
    def __init__(self, offset: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("report_id", "session_id", "lease_id", "lease_epoch", "campaign_id", "round", "timings", "failures", "before", "after", "round_ns", "timed_ns")
    REPORT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    ROUND_NS_FIELD_NUMBER: _ClassVar[int]
    TIMED_NS_FIELD_NUMBER: _ClassVar[int]
    report_id: str
    session_id: str
    lease_id: str
    lease_epoch: int
    campaign_id: str
    round: int
    timings: _containers.RepeatedCompositeFieldContainer[_measure_pb2.Timing]
    failures: _containers.RepeatedCompositeFieldContainer[_measure_pb2.Failure]
    before: _measure_pb2.Conditions
    after: _measure_pb2.Conditions
    round_ns: int
    timed_ns: int
    def __init__(self, report_id: _Optional[str] = ..., session_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., campaign_id: _Optional[str] = ..., round: _Optional[int] = ..., timings: _Optional[_Iterable[_Union[_measure_pb2.Timing, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[_measure_pb2.Failure, _Mapping]]] = ..., before: _Optional[_Union[_measure_pb2.Conditions, _Mapping]] = ..., after: _Optional[_Union[_measure_pb2.Conditions, _Mapping]] = ..., round_ns: _Optional[int] = ..., timed_ns: _Optional[int] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("report_id", "stop", "drop")
    REPORT_ID_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    report_id: str
    stop: bool
    drop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, report_id: _Optional[str] = ..., stop: bool = ..., drop: _Optional[_Iterable[str]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("session_id", "lease_id", "quiet_s")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    QUIET_S_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease_id: str
    quiet_s: float
    def __init__(self, session_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., quiet_s: _Optional[float] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: bool = ...) -> None: ...
