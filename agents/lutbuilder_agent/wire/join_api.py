"""The calls that make strangers known and keep identities in order, as functions of records."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lutbuilder_agent.errors import SpecError

Role = Literal["agent", "reader", "admin"]
ROLES: tuple[Role, ...] = ("agent", "reader", "admin")

JOIN_BYTES = 16 * 1024  # a message on the join port, both ways
CSR_BYTES = 4 * 1024
MAX_TTL_S = 30 * 24 * 3600.0  # of a token
MAX_USES = 10_000
MAX_OVERLAP_S = 365 * 24 * 3600.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")  # X.509 gives a common name 64 characters


def certificate_name(name: str) -> str:
    """Return the name if a certificate may carry it. Raises SpecError."""
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"{name[:80]!r} cannot be the name in a certificate: 1 to 64 letters, digits and ._+-, the first no sign; "
            "choose one: --name NAME"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinAsk:
    """A token, and who wants to be known by it. The same `request_id` again costs no further use of the token."""

    token: str = field(repr=False)
    role: Role
    name: str
    request_id: str
    csr: bytes = b""  # DER; empty: the coordinator makes the key

    def __post_init__(self) -> None:
        certificate_name(self.name)
        if not re.fullmatch(r"[0-9a-f]{32}", self.request_id):
            raise SpecError("request_id must be 32 hex digits")
        if len(self.csr) > CSR_BYTES:
            raise SpecError(f"a csr of {len(self.csr)} bytes is above {CSR_BYTES}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A certificate, what to trust, and for a join the port to go to. All PEM; times in Unix seconds."""

    certificate: str
    ca: str
    expires_s: float
    private_key: str = field(default="", repr=False)
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAsk:
    """What a token shall be good for."""

    role: Role = "agent"
    ttl_s: float = 24 * 3600.0  # what kubeadm gives its bootstrap tokens
    uses: int = 1
    name: str = ""  # the only name that may join with it; "": any

    def __post_init__(self) -> None:
        if not 0 < self.ttl_s <= MAX_TTL_S:
            raise SpecError(f"a token lives for at most 30 days, got {self.ttl_s:g} s")
        if not 1 <= self.uses <= MAX_USES:
            raise SpecError(f"a token is good for 1 to {MAX_USES} joins, got {self.uses}")
        if self.name:
            certificate_name(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A token in the only moment when it can be read, and what else a join line says."""

    token: str = field(repr=False)
    token_id: str
    role: Role
    join_address: str  # HOST:PORT; "" when nothing serves joins
    ca: str  # sha256:HEX
    ttl_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCertificate:
    """A certificate that was issued. Times in Unix seconds; `revoked_s` is None while it is good."""

    serial: str
    name: str
    role: Role
    issued_s: float
    expires_s: float
    revoked_s: float | None
    reason: str
    ca_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownToken:
    """A token that was issued, without its secret. Times in Unix seconds."""

    token_id: str
    role: Role
    name: str
    uses_left: int
    expires_s: float
    revoked_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCa:
    """A CA that is trusted: until `until_s`, or, None, it is the one that signs. Times in Unix seconds."""

    sha256: str
    created_s: float
    until_s: float | None
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Who and what is known; expired ones are left out."""

    certificates: tuple[KnownCertificate, ...]
    tokens: tuple[KnownToken, ...]
    cas: tuple[KnownCa, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What shall be trusted no more: exactly one of everyone of a name, one certificate, one token."""

    name: str = ""
    serial: str = ""
    token_id: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.name, self.serial, self.token_id))) != 1:
            raise SpecError("say what to revoke: a name, a serial number or a token's id, one of them")
        if len(self.reason) > 200:
            raise SpecError(f"a reason has at most 200 characters, got {len(self.reason)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """How many certificates and tokens were good and are not any more."""

    certificates: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """The new CA, and until when (Unix seconds) the old one is trusted beside it."""

    sha256: str
    old_until_s: float


class JoinApi(Protocol):
    """What may be asked without a certificate."""

    def join(self, ask: JoinAsk, *, peer: str) -> Admission:
        """Exchange a token for a certificate; `peer` is where the call came from, for the audit log.

        Raises NotAuthenticated for a token that is wrong, expired, revoked, used up, or for another role or name.
        """
        ...


class SecurityApi(Protocol):
    """What keeps identities in order; the caller has been let through already, and `by` names it in the audit log."""

    def renew(self, certificate: bytes) -> Admission:
        """Certify the key of the caller's certificate (PEM) anew, under the same name and role."""
        ...

    def issue_token(self, ask: TokenAsk, *, by: str) -> IssuedToken:
        """Make a token."""
        ...

    def inventory(self) -> Inventory:
        """Return who and what is known."""
        ...

    def revoke(self, what: Revocation, *, by: str) -> Revoked:
        """Trust something no more, from the next call on. Raises UnknownName if there is none such."""
        ...

    def rotate(self, overlap_s: float, *, by: str) -> Rotated:
        """Make a new CA and trust the old one for `overlap_s` more seconds.

        Raises TrustError while an earlier rotation has not ended, unless `overlap_s` is 0.
        """
        ...
