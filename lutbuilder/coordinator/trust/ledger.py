"""What the store remembers of trust: CAs, tokens, certificates. SQL only; several coordinators may share the store.

Whoever is not in the ledger is not let in, so a store that was lost fails closed: everybody joins again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from lutbuilder.coordinator.store import schema
from lutbuilder.coordinator.trust.certificates import Issued, expiry_s
from lutbuilder.coordinator.trust.tokens import Token, shown_id
from lutbuilder_agent.errors import NotAuthenticated, SpecError, TrustError, UnknownName
from lutbuilder_agent.wire.join_api import (
    Inventory,
    JoinAsk,
    KnownCa,
    KnownCertificate,
    KnownToken,
    Revocation,
    Revoked,
    Role,
    TokenAsk,
)

if TYPE_CHECKING:
    from lutbuilder.coordinator.store import Store

_cas, _tokens = schema.trust_cas, schema.trust_tokens
_joins, _certificates = schema.trust_joins, schema.trust_certificates

_MOST_CERTIFICATES = 500
_MOST_TOKENS = 100
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Ca:
    """A CA's certificate (PEM). `until_s` None: it is the one that signs; else it is trusted until then."""

    sha256: str
    certificate: str
    created_s: float
    until_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of one certificate, and of the CA that signed it (`ca_until_s` as `Ca.until_s`)."""

    name: str
    role: Role
    revoked_s: float | None
    reason: str
    ca_until_s: float | None


class Ledger:
    """The tables of trust in a store. Every method raises StoreError if the store cannot be used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # One statement for every call that arrives: built once, because building costs more than running it.
        self._standing = (
            sa.select(
                _certificates.c.name,
                _certificates.c.role,
                _certificates.c.revoked_s,
                _certificates.c.reason,
                _cas.c.until_s,
            )
            .join(_cas, _cas.c.sha256 == _certificates.c.ca_sha256)
            .where(_certificates.c.serial == sa.bindparam("serial"))
        )

    # --- CAs

    def cas(self, *, now_s: float) -> tuple[Ca, ...]:
        """Return the CAs that are trusted, the one that signs first."""
        with self._store.reading() as connection:
            rows = connection.execute(
                sa.select(_cas).where(sa.or_(_cas.c.until_s.is_(None), _cas.c.until_s > now_s))
            ).all()
        found = [
            Ca(sha256=row.sha256, certificate=row.pem, created_s=row.created_s, until_s=row.until_s) for row in rows
        ]
        return tuple(sorted(found, key=lambda ca: (ca.until_s is not None, -ca.created_s)))

    def add_first_ca(self, certificate: str, sha256: str, *, now_s: float) -> bool:
        """Trust a CA if the store has never had one; return whether it was so."""
        with self._store.writing() as connection:
            if connection.scalar(sa.select(sa.func.count()).select_from(_cas)):
                return False
            connection.execute(_cas.insert().values(sha256=sha256, pem=certificate, created_s=now_s, until_s=None))
        return True

    def replace_ca(self, certificate: str, sha256: str, *, now_s: float, overlap_s: float) -> None:
        """Sign with a new CA from now on, and trust the old one for `overlap_s` more; 0: none but the new one.

        Raises TrustError if an earlier one is still trusted, unless `overlap_s` is 0.
        """
        with self._store.writing() as connection:
            retiring = connection.scalar(sa.select(sa.func.max(_cas.c.until_s)))
            if overlap_s > 0 and retiring is not None and retiring > now_s:
                raise TrustError(
                    f"the last rotation has not ended: the CA before this one is trusted for another "
                    f"{(retiring - now_s) / 3600:.1f} hours. Wait, or, if a key may be in wrong hands, trust nothing "
                    "older at once: lutbuilder security rotate --overlap 0"
                )
            live = sa.or_(_cas.c.until_s.is_(None), _cas.c.until_s > now_s)
            connection.execute(_cas.update().where(live).values(until_s=now_s + overlap_s))
            connection.execute(_cas.insert().values(sha256=sha256, pem=certificate, created_s=now_s, until_s=None))

    # --- tokens

    def add_token(self, token: Token, ask: TokenAsk, *, now_s: float) -> None:
        """Remember a token by its hash, and forget those that expired a day ago."""
        with self._store.writing() as connection:
            old = sa.select(_tokens.c.token_id).where(_tokens.c.expires_s < now_s - 86400.0)
            connection.execute(_joins.delete().where(_joins.c.token_id.in_(old)))
            connection.execute(_tokens.delete().where(_tokens.c.expires_s < now_s - 86400.0))
            connection.execute(
                _tokens.insert().values(
                    token_id=token.token_id,
                    digest=token.digest,
                    role=ask.role,
                    name=ask.name,
                    uses_left=ask.uses,
                    created_s=now_s,
                    expires_s=now_s + ask.ttl_s,
                    revoked_s=None,
                )
            )

    def redeem(
        self,
        token: Token,
        ask: JoinAsk,
        *,
        request_sha256: str,
        issue: Callable[[], tuple[Issued, str]],
        now_s: float,
    ) -> Issued:
        """Count a use of a token and record the certificate that `issue` signs (with its CA's sha256), or neither.

        A request that is repeated (same id, same contents) costs no further use. Certificates of the same name and role
        are revoked: a second one of a name replaces the first. Raises NotAuthenticated.
        """
        with self._store.writing() as connection:
            row = connection.execute(sa.select(_tokens).where(_tokens.c.token_id == token.token_id)).first()
            if not token.matches(_NO_DIGEST if row is None else row.digest) or row is None:
                raise NotAuthenticated("this token is not known here: copy the whole join line again, or get a new one")
            _check_token(row, ask, now_s=now_s)
            known = connection.scalar(
                sa.select(_joins.c.request_sha256).where(
                    _joins.c.token_id == token.token_id, _joins.c.request_id == ask.request_id
                )
            )
            if known not in (None, request_sha256):
                raise SpecError(f"request {ask.request_id} came before with other contents: choose another request_id")
            if known is None:
                if row.uses_left < 1:
                    raise NotAuthenticated(f"token {shown_id(token.token_id)} is used up: {_NEW_TOKEN}")
                connection.execute(
                    _tokens.update()
                    .where(_tokens.c.token_id == token.token_id)
                    .values(uses_left=_tokens.c.uses_left - 1)
                )
                connection.execute(
                    _joins.insert().values(
                        token_id=token.token_id,
                        request_id=ask.request_id,
                        request_sha256=request_sha256,
                        name=ask.name,
                        joined_s=now_s,
                    )
                )
            connection.execute(
                _certificates.update()
                .where(
                    _certificates.c.name == ask.name,
                    _certificates.c.role == ask.role,
                    _certificates.c.revoked_s.is_(None),
                )
                .values(revoked_s=now_s, reason="replaced by a later join under the same name")
            )
            issued, ca_sha256 = issue()
            _insert(
                connection, issued, name=ask.name, role=ask.role, ca=ca_sha256, token_id=token.token_id, now_s=now_s
            )
        return issued

    # --- certificates

    def standing(self, serial: str) -> Standing | None:
        """Return what is known of a certificate, None for one that was never issued here."""
        with self._store.reading() as connection:
            row = connection.execute(self._standing, {"serial": serial}).first()
        if row is None:
            return None
        return Standing(
            name=row.name, role=row.role, revoked_s=row.revoked_s, reason=row.reason, ca_until_s=row.until_s
        )

    def add_certificate(self, issued: Issued, *, name: str, role: Role, ca_sha256: str, now_s: float) -> None:
        """Record a certificate that nobody joined for."""
        with self._store.writing() as connection:
            _insert(connection, issued, name=name, role=role, ca=ca_sha256, token_id="", now_s=now_s)

    def renew(self, serial: str, issued: Issued, *, ca_sha256: str, now_s: float) -> None:
        """Record the successor of a certificate. It stays good itself, in case the answer is lost; older ones go.

        Raises NotAuthenticated if it was revoked meanwhile.
        """
        with self._store.writing() as connection:
            row = connection.execute(sa.select(_certificates).where(_certificates.c.serial == serial)).first()
            if row is None or row.revoked_s is not None:
                raise NotAuthenticated("this certificate was revoked")
            connection.execute(
                _certificates.delete().where(
                    _certificates.c.name == row.name,
                    _certificates.c.role == row.role,
                    _certificates.c.serial != serial,
                    _certificates.c.revoked_s.is_(None),
                )
            )
            connection.execute(_certificates.delete().where(_certificates.c.expires_s < now_s))
            _insert(connection, issued, name=row.name, role=row.role, ca=ca_sha256, token_id=row.token_id, now_s=now_s)

    # --- all of it

    def revoke(self, what: Revocation, *, now_s: float) -> Revoked:
        """Revoke by name (with the tokens that name joined with), serial or token id. Raises UnknownName."""
        with self._store.writing() as connection:
            certificates = _revoke_certificates(connection, what, now_s=now_s)
            tokens = _revoke_tokens(connection, what, now_s=now_s)
            if not certificates and not tokens:
                wanted = what.name or what.serial or what.token_id
                raise UnknownName(
                    f"there is no valid certificate or token {wanted!r} to revoke; what there is: lutbuilder security "
                    "list"
                )
        return Revoked(certificates=certificates, tokens=tokens)

    def inventory(self, *, now_s: float) -> Inventory:
        """Return what has not expired, newest first."""
        with self._store.reading() as connection:
            certificates = connection.execute(
                sa.select(_certificates)
                .where(_certificates.c.expires_s > now_s)
                .order_by(_certificates.c.issued_s.desc())
                .limit(_MOST_CERTIFICATES)
            ).all()
            tokens = connection.execute(
                sa.select(_tokens)
                .where(_tokens.c.expires_s > now_s)
                .order_by(_tokens.c.created_s.desc())
                .limit(_MOST_TOKENS)
            ).all()
        return Inventory(
            certificates=tuple(
                KnownCertificate(
                    serial=row.serial,
                    name=row.name,
                    role=row.role,
                    issued_s=row.issued_s,
                    expires_s=row.expires_s,
                    revoked_s=row.revoked_s,
                    reason=row.reason,
                    ca_sha256=row.ca_sha256,
                )
                for row in certificates
            ),
            tokens=tuple(
                KnownToken(
                    token_id=row.token_id,
                    role=row.role,
                    name=row.name,
                    uses_left=row.uses_left,
                    expires_s=row.expires_s,
                    revoked_s=row.revoked_s,
                )
                for row in tokens
            ),
            cas=tuple(
                KnownCa(
                    sha256=ca.sha256,
                    created_s=ca.created_s,
                    until_s=ca.until_s,
                    expires_s=expiry_s(ca.certificate),
                )
                for ca in self.cas(now_s=now_s)
            ),
        )


_NEW_TOKEN = "get a new one where the coordinator runs: lutbuilder security token"


def _check_token(row: Any, ask: JoinAsk, *, now_s: float) -> None:
    """Raise NotAuthenticated for a token that cannot be used like this. Its holder has proved to know its secret."""
    shown = shown_id(row.token_id)
    if row.revoked_s is not None:
        raise NotAuthenticated(f"token {shown} was revoked: {_NEW_TOKEN}")
    if now_s >= row.expires_s:
        raise NotAuthenticated(f"token {shown} has expired: {_NEW_TOKEN}")
    if row.role != ask.role:
        raise NotAuthenticated(
            f"token {shown} is for the role {row.role}, not {ask.role}: copy the whole join line again, or get another "
            f"one: lutbuilder security token --role {ask.role}"
        )
    if row.name not in ("", ask.name):
        raise NotAuthenticated(f"token {shown} is for the name {row.name} only: join with --name {row.name}")


def _insert(
    connection: sa.Connection, issued: Issued, *, name: str, role: Role, ca: str, token_id: str, now_s: float
) -> None:
    connection.execute(
        _certificates.insert().values(
            serial=issued.serial,
            name=name,
            role=role,
            ca_sha256=ca,
            token_id=token_id,
            issued_s=now_s,
            expires_s=issued.expires_s,
            revoked_s=None,
            reason="",
        )
    )


def _revoke_certificates(connection: sa.Connection, what: Revocation, *, now_s: float) -> int:
    if what.token_id:
        return 0
    chosen = _certificates.c.name == what.name if what.name else _certificates.c.serial == what.serial.lower()
    changed = connection.execute(
        _certificates.update()
        .where(chosen, _certificates.c.revoked_s.is_(None), _certificates.c.expires_s > now_s)
        .values(revoked_s=now_s, reason=what.reason)
    )
    return int(changed.rowcount)


def _revoke_tokens(connection: sa.Connection, what: Revocation, *, now_s: float) -> int:
    """Revoke a token, or those that a name knows: it could join with them again."""
    if what.serial:
        return 0
    known = sa.select(_joins.c.token_id).where(_joins.c.name == what.name)
    chosen = (
        sa.or_(_tokens.c.token_id.in_(known), _tokens.c.name == what.name)
        if what.name
        else _tokens.c.token_id == what.token_id
    )
    changed = connection.execute(
        _tokens.update()
        .where(chosen, _tokens.c.revoked_s.is_(None), _tokens.c.expires_s > now_s)
        .values(revoked_s=now_s)
    )
    return int(changed.rowcount)
