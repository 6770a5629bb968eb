"""Records of join_api to protos and back; like `convert`, it raises WireError for whatever does not fit."""

from __future__ import annotations

import math

from lutbuilder_agent.errors import WireError
from lutbuilder_agent.wire import join_pb2
from lutbuilder_agent.wire.convert import refusing
from lutbuilder_agent.wire.join_api import (
    MAX_OVERLAP_S,
    ROLES,
    Admission,
    Inventory,
    IssuedToken,
    JoinAsk,
    KnownCa,
    KnownCertificate,
    KnownToken,
    Revocation,
    Revoked,
    Role,
    Rotated,
    TokenAsk,
)


def role_to_proto(role: Role) -> str:
    """Return the name of the role's enum member."""
    return f"ROLE_{role.upper()}"


def role_from_proto(number: int) -> Role:
    """Return the role of an enum member; UNSPECIFIED and unknown ones are refused."""
    for role in ROLES:
        if join_pb2.Role.Value(role_to_proto(role)) == number:
            return role
    raise WireError(f"role {number} is no role known here")


@refusing("JoinRequest")
def join_ask_to_proto(ask: JoinAsk) -> join_pb2.JoinRequest:
    return join_pb2.JoinRequest(
        token=ask.token, role=role_to_proto(ask.role), name=ask.name, request_id=ask.request_id, csr=ask.csr
    )


@refusing("JoinRequest")
def join_ask_from_proto(message: join_pb2.JoinRequest) -> JoinAsk:
    return JoinAsk(
        token=message.token,
        role=role_from_proto(message.role),
        name=message.name,
        request_id=message.request_id,
        csr=message.csr,
    )


@refusing("JoinResponse")
def admission_to_proto(admission: Admission) -> join_pb2.JoinResponse:
    return join_pb2.JoinResponse(
        certificate=admission.certificate,
        ca=admission.ca,
        private_key=admission.private_key,
        port=admission.port,
        expires_s=admission.expires_s,
    )


@refusing("JoinResponse")
def admission_from_proto(message: join_pb2.JoinResponse) -> Admission:
    if not 0 < message.port < 65536:
        raise WireError(f"malformed JoinResponse: {message.port} is no port")
    return Admission(
        certificate=message.certificate,
        ca=message.ca,
        private_key=message.private_key,
        port=message.port,
        expires_s=_moment(message.expires_s),
    )


@refusing("RenewResponse")
def renewal_to_proto(admission: Admission) -> join_pb2.RenewResponse:
    return join_pb2.RenewResponse(certificate=admission.certificate, ca=admission.ca, expires_s=admission.expires_s)


@refusing("RenewResponse")
def renewal_from_proto(message: join_pb2.RenewResponse) -> Admission:
    return Admission(certificate=message.certificate, ca=message.ca, expires_s=_moment(message.expires_s))


@refusing("IssueTokenRequest")
def token_ask_to_proto(ask: TokenAsk) -> join_pb2.IssueTokenRequest:
    return join_pb2.IssueTokenRequest(role=role_to_proto(ask.role), ttl_s=ask.ttl_s, uses=ask.uses, name=ask.name)


@refusing("IssueTokenRequest")
def token_ask_from_proto(message: join_pb2.IssueTokenRequest) -> TokenAsk:
    return TokenAsk(role=role_from_proto(message.role), ttl_s=message.ttl_s, uses=message.uses, name=message.name)


@refusing("IssueTokenResponse")
def issued_token_to_proto(issued: IssuedToken) -> join_pb2.IssueTokenResponse:
    return join_pb2.IssueTokenResponse(
        token=issued.token,
        token_id=issued.token_id,
        join_address=issued.join_address,
        ca=issued.ca,
        ttl_s=issued.ttl_s,
    )


@refusing("IssueTokenResponse")
def issued_token_from_proto(message: join_pb2.IssueTokenResponse, *, role: Role) -> IssuedToken:
    return IssuedToken(
        token=message.token,
        token_id=message.token_id,
        role=role,  # as asked for: the answer does not repeat it
        join_address=message.join_address,
        ca=message.ca,
        ttl_s=_moment(message.ttl_s),
    )


@refusing("ListIdentitiesResponse")
def inventory_to_proto(inventory: Inventory) -> join_pb2.ListIdentitiesResponse:
    return join_pb2.ListIdentitiesResponse(
        identities=[
            join_pb2.Identity(
                serial=one.serial,
                name=one.name,
                role=role_to_proto(one.role),
                issued_s=one.issued_s,
                expires_s=one.expires_s,
                revoked_s=one.revoked_s or 0.0,
                reason=one.reason,
                ca_sha256=one.ca_sha256,
            )
            for one in inventory.certificates
        ],
        tokens=[
            join_pb2.Token(
                token_id=one.token_id,
                role=role_to_proto(one.role),
                name=one.name,
                uses_left=one.uses_left,
                expires_s=one.expires_s,
                revoked_s=one.revoked_s or 0.0,
            )
            for one in inventory.tokens
        ],
        authorities=[
            join_pb2.Authority(
                sha256=one.sha256, created_s=one.created_s, until_s=one.until_s or 0.0, expires_s=one.expires_s
            )
            for one in inventory.cas
        ],
    )


@refusing("ListIdentitiesResponse")
def inventory_from_proto(message: join_pb2.ListIdentitiesResponse) -> Inventory:
    return Inventory(
        certificates=tuple(
            KnownCertificate(
                serial=one.serial,
                name=one.name,
                role=role_from_proto(one.role),
                issued_s=_moment(one.issued_s),
                expires_s=_moment(one.expires_s),
                revoked_s=_moment(one.revoked_s) or None,
                reason=one.reason,
                ca_sha256=one.ca_sha256,
            )
            for one in message.identities
        ),
        tokens=tuple(
            KnownToken(
                token_id=one.token_id,
                role=role_from_proto(one.role),
                name=one.name,
                uses_left=one.uses_left,
                expires_s=_moment(one.expires_s),
                revoked_s=_moment(one.revoked_s) or None,
            )
            for one in message.tokens
        ),
        cas=tuple(
            KnownCa(
                sha256=one.sha256,
                created_s=_moment(one.created_s),
                until_s=_moment(one.until_s) or None,
                expires_s=_moment(one.expires_s),
            )
            for one in message.authorities
        ),
    )


@refusing("RevokeRequest")
def revocation_to_proto(what: Revocation) -> join_pb2.RevokeRequest:
    return join_pb2.RevokeRequest(name=what.name, serial=what.serial, token_id=what.token_id, reason=what.reason)


@refusing("RevokeRequest")
def revocation_from_proto(message: join_pb2.RevokeRequest) -> Revocation:
    return Revocation(name=message.name, serial=message.serial, token_id=message.token_id, reason=message.reason)


@refusing("RevokeResponse")
def revoked_to_proto(revoked: Revoked) -> join_pb2.RevokeResponse:
    return join_pb2.RevokeResponse(certificates=revoked.certificates, tokens=revoked.tokens)


def revoked_from_proto(message: join_pb2.RevokeResponse) -> Revoked:
    return Revoked(certificates=message.certificates, tokens=message.tokens)


@refusing("RotateRequest")
def overlap_to_proto(overlap_s: float) -> join_pb2.RotateRequest:
    return join_pb2.RotateRequest(overlap_s=overlap_s)


def overlap_from_proto(message: join_pb2.RotateRequest) -> float:
    overlap_s = message.overlap_s
    if not 0 <= overlap_s <= MAX_OVERLAP_S:
        raise WireError(f"malformed RotateRequest: an overlap is from 0 s to a year, got {overlap_s:g} s")
    return overlap_s


@refusing("RotateResponse")
def rotated_to_proto(rotated: Rotated) -> join_pb2.RotateResponse:
    return join_pb2.RotateResponse(sha256=rotated.sha256, old_until_s=rotated.old_until_s)


def rotated_from_proto(message: join_pb2.RotateResponse) -> Rotated:
    return Rotated(sha256=message.sha256, old_until_s=_moment(message.old_until_s))


def _moment(seconds: float) -> float:
    """Return a number of seconds that a clock can show. Raises WireError."""
    if not math.isfinite(seconds) or not 0 <= seconds < 1e12:
        raise WireError(f"{seconds} is no number of seconds")
    return seconds
