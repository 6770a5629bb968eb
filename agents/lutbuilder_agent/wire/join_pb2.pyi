from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_AGENT: _ClassVar[Role]
    ROLE_READER: _ClassVar[Role]
    ROLE_ADMIN: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_AGENT: Role
ROLE_READER: Role
ROLE_ADMIN: Role

class JoinRequest(_message.Message):
    __slots__ = ("token", "role", "name", "request_id", "csr")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    token: str
    role: Role
    name: str
    request_id: str
    csr: bytes
    def __init__(self, token: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., name: _Optional[str] = ..., request_id: _Optional[str] = ..., csr: _Optional[bytes] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("certificate", "ca", "private_key", "port", "expires_s")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    ca: str
    private_key: str
    port: int
    expires_s: float
    def __init__(self, certificate: _Optional[str] = ..., ca: _Optional[str] = ..., private_key: _Optional[str] = ..., port: _Optional[int] = ..., expires_s: _Optional[float] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate", "ca", "expires_s")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    ca: str
    expires_s: float
    def __init__(self, certificate: _Optional[str] = ..., ca: _Optional[str] = ..., expires_s: _Optional[float] = ...) -> None: ...

class IssueTokenRequest(_message.Message):
    __slots__ = ("role", "ttl_s", "uses", "name")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    role: Role
    ttl_s: float
    uses: int
    name: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., ttl_s: _Optional[float] = ..., uses: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class IssueTokenResponse(_message.Message):
    __slots__ = ("token", "token_id", "join_address", "ca", "ttl_s")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    JOIN_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    token: str
    token_id: str
    join_address: str
    ca: str
    ttl_s: float
    def __init__(self, token: _Optional[str] = ..., token_id: _Optional[str] = ..., join_address: _Optional[str] = ..., ca: _Optional[str] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class ListIdentitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Identity(_message.Message):
    __slots__ = ("serial", "name", "role", "issued_s", "expires_s", "revoked_s", "reason", "ca_sha256")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    REVOKED_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CA_SHA256_FIELD_NUMBER: _ClassVar[int]
    serial: str
    name: str
    role: Role
    issued_s: float
    expires_s: float
    revoked_s: float
    reason: str
    ca_sha256: str
    def __init__(self, serial: _Optional[str] = ..., name: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., issued_s: _Optional[float] = ..., expires_s: _Optional[float] = ..., revoked_s: _Optional[float] = ..., reason: _Optional[str] = ..., ca_sha256: _Optional[str] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("token_id", "role", "name", "uses_left", "expires_s", "revoked_s")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    USES_LEFT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    REVOKED_S_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    role: Role
    name: str
    uses_left: int
    expires_s: float
    revoked_s: float
    def __init__(self, token_id: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., name: _Optional[str] = ..., uses_left: _Optional[int] = ..., expires_s: _Optional[float] = ..., revoked_s: _Optional[float] = ...) -> None: ...

class Authority(_message.Message):
    __slots__ = ("sha256", "created_s", "until_s", "expires_s")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    created_s: float
    until_s: float
    expires_s: float
    def __init__(self, sha256: _Optional[str] = ..., created_s: _Optional[float] = ..., until_s: _Optional[float] = ..., expires_s: _Optional[float] = ...) -> None: ...

class ListIdentitiesResponse(_message.Message):
    __slots__ = ("identities", "tokens", "authorities")
    IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    identities: _containers.RepeatedCompositeFieldContainer[Identity]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    authorities: _containers.RepeatedCompositeFieldContainer[Authority]
    def __init__(self, identities: _Optional[_Iterable[_Union[Identity, _Mapping]]] = ..., tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ..., authorities: _Optional[_Iterable[_Union[Authority, _Mapping]]] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("name", "serial", "token_id", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    serial: str
    token_id: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., serial: _Optional[str] = ..., token_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokeResponse(_message.Message):
    __slots__ = ("certificates", "tokens")
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    certificates: int
    tokens: int
    def __init__(self, certificates: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class RotateRequest(_message.Message):
    __slots__ = ("overlap_s",)
    OVERLAP_S_FIELD_NUMBER: _ClassVar[int]
    overlap_s: float
    def __init__(self, overlap_s: _Optional[float] = ...) -> None: ...

class RotateResponse(_message.Message):
    __slots__ = ("sha256", "old_until_s")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OLD_UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    old_until_s: float
    def __init__(self, sha256: _Optional[str] = ..., old_until_s: _Optional[float] = ...) -> None: ...
