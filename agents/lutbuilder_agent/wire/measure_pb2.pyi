from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Cache(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_UNSPECIFIED: _ClassVar[Cache]
    CACHE_HOT: _ClassVar[Cache]
    CACHE_ROTATING: _ClassVar[Cache]
    CACHE_FLUSHED: _ClassVar[Cache]
    CACHE_COLD: _ClassVar[Cache]

class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORMAT_UNSPECIFIED: _ClassVar[Format]
    FORMAT_ONNX: _ClassVar[Format]
    FORMAT_TFLITE: _ClassVar[Format]
    FORMAT_GRAPH: _ClassVar[Format]

class FailureReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_REASON_UNSPECIFIED: _ClassVar[FailureReason]
    FAILURE_REASON_UNSUPPORTED: _ClassVar[FailureReason]
    FAILURE_REASON_CRASHED: _ClassVar[FailureReason]
    FAILURE_REASON_TIMED_OUT: _ClassVar[FailureReason]
    FAILURE_REASON_OUT_OF_MEMORY: _ClassVar[FailureReason]
    FAILURE_REASON_WRONG_OUTPUT: _ClassVar[FailureReason]
    FAILURE_REASON_BAD_ARTIFACT: _ClassVar[FailureReason]
    FAILURE_REASON_UNSTABLE: _ClassVar[FailureReason]
CACHE_UNSPECIFIED: Cache
CACHE_HOT: Cache
CACHE_ROTATING: Cache
CACHE_FLUSHED: Cache
CACHE_COLD: Cache
FORMAT_UNSPECIFIED: Format
FORMAT_ONNX: Format
FORMAT_TFLITE: Format
FORMAT_GRAPH: Format
FAILURE_REASON_UNSPECIFIED: FailureReason
FAILURE_REASON_UNSUPPORTED: FailureReason
FAILURE_REASON_CRASHED: FailureReason
FAILURE_REASON_TIMED_OUT: FailureReason
FAILURE_REASON_OUT_OF_MEMORY: FailureReason
FAILURE_REASON_WRONG_OUTPUT: FailureReason
FAILURE_REASON_BAD_ARTIFACT: FailureReason
FAILURE_REASON_UNSTABLE: FailureReason

class Fact(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("device", "facts")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    device: str
    facts: _containers.RepeatedCompositeFieldContainer[Fact]
    def __init__(self, device: _Optional[str] = ..., facts: _Optional[_Iterable[_Union[Fact, _Mapping]]] = ...) -> None: ...

class Conditions(_message.Message):
    __slots__ = ("monotonic_ns", "load_1min", "cpu_mhz", "temperature_c", "throttle_count", "steal_s")
    MONOTONIC_NS_FIELD_NUMBER: _ClassVar[int]
    LOAD_1MIN_FIELD_NUMBER: _ClassVar[int]
    CPU_MHZ_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    STEAL_S_FIELD_NUMBER: _ClassVar[int]
    monotonic_ns: int
    load_1min: float
    cpu_mhz: float
    temperature_c: float
    throttle_count: int
    steal_s: float
    def __init__(self, monotonic_ns: _Optional[int] = ..., load_1min: _Optional[float] = ..., cpu_mhz: _Optional[float] = ..., temperature_c: _Optional[float] = ..., throttle_count: _Optional[int] = ..., steal_s: _Optional[float] = ...) -> None: ...

class RuntimeReport(_message.Message):
    __slots__ = ("name", "version", "available", "reason", "timer_overhead_ns", "timer_quantum_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIMER_OVERHEAD_NS_FIELD_NUMBER: _ClassVar[int]
    TIMER_QUANTUM_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    available: bool
    reason: str
    timer_overhead_ns: int
    timer_quantum_ns: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., available: bool = ..., reason: _Optional[str] = ..., timer_overhead_ns: _Optional[int] = ..., timer_quantum_ns: _Optional[int] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("runtime", "threads", "cache", "instances", "min_calls", "warmup_calls", "min_block_ns", "max_calls", "op_timeout_ns", "seed", "options", "train_ops")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    MIN_CALLS_FIELD_NUMBER: _ClassVar[int]
    WARMUP_CALLS_FIELD_NUMBER: _ClassVar[int]
    MIN_BLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    OP_TIMEOUT_NS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_OPS_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    threads: int
    cache: Cache
    instances: int
    min_calls: int
    warmup_calls: int
    min_block_ns: int
    max_calls: int
    op_timeout_ns: int
    seed: int
    options: _containers.RepeatedCompositeFieldContainer[Fact]
    train_ops: int
    def __init__(self, runtime: _Optional[str] = ..., threads: _Optional[int] = ..., cache: _Optional[_Union[Cache, str]] = ..., instances: _Optional[int] = ..., min_calls: _Optional[int] = ..., warmup_calls: _Optional[int] = ..., min_block_ns: _Optional[int] = ..., max_calls: _Optional[int] = ..., op_timeout_ns: _Optional[int] = ..., seed: _Optional[int] = ..., options: _Optional[_Iterable[_Union[Fact, _Mapping]]] = ..., train_ops: _Optional[int] = ...) -> None: ...

class ArtifactRef(_message.Message):
    __slots__ = ("sha256", "format", "size_bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    format: Format
    size_bytes: int
    def __init__(self, sha256: _Optional[str] = ..., format: _Optional[_Union[Format, str]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class LeasedOp(_message.Message):
    __slots__ = ("op_id", "artifact", "every", "solo")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    SOLO_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    artifact: ArtifactRef
    every: int
    solo: bool
    def __init__(self, op_id: _Optional[str] = ..., artifact: _Optional[_Union[ArtifactRef, _Mapping]] = ..., every: _Optional[int] = ..., solo: bool = ...) -> None: ...

class Positions(_message.Message):
    __slots__ = ("at",)
    AT_FIELD_NUMBER: _ClassVar[int]
    at: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, at: _Optional[_Iterable[int]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("op_id", "round", "order", "instance", "start_ns", "warmup_ns", "samples_ns", "preempted", "throttled")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    WARMUP_NS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_NS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    round: int
    order: int
    instance: int
    start_ns: int
    warmup_ns: _containers.RepeatedScalarFieldContainer[int]
    samples_ns: _containers.RepeatedScalarFieldContainer[int]
    preempted: _containers.RepeatedScalarFieldContainer[int]
    throttled: Positions
    def __init__(self, op_id: _Optional[str] = ..., round: _Optional[int] = ..., order: _Optional[int] = ..., instance: _Optional[int] = ..., start_ns: _Optional[int] = ..., warmup_ns: _Optional[_Iterable[int]] = ..., samples_ns: _Optional[_Iterable[int]] = ..., preempted: _Optional[_Iterable[int]] = ..., throttled: _Optional[_Union[Positions, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("op_id", "round", "reason", "detail")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    round: int
    reason: FailureReason
    detail: str
    def __init__(self, op_id: _Optional[str] = ..., round: _Optional[int] = ..., reason: _Optional[_Union[FailureReason, str]] = ..., detail: _Optional[str] = ...) -> None: ...
