"""Trust: a coordinator's CA, its own certificate, and everything that is done with them.

In <state>/trust, readable by their owner only: `ca-<16 hex digits>.pem`, a CA's certificate and key, two of them during
a rotation; `server.pem`, the coordinator's own; `listening.json`, where joins were last served. Which CA is trusted and
until when, tokens and certificates are in the store, because two coordinators may share it. The CA's key is not there:
whoever reads a database or its backup shall not be able to make an admin.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from lutbuilder.coordinator.trust import certificates
from lutbuilder.coordinator.trust.audit import Sparing, audit
from lutbuilder.coordinator.trust.certificates import Issued, KeyPair
from lutbuilder.coordinator.trust.guard import Caller, Guard, peer_of
from lutbuilder.coordinator.trust.ledger import Ca, Ledger
from lutbuilder.coordinator.trust.names import own_names
from lutbuilder.coordinator.trust.tokens import new_token, read_token, read_token_id, shown_id
from lutbuilder_agent.errors import LutbuilderError, NotAuthenticated, TrustError
from lutbuilder_agent.private_files import read_private, write_private
from lutbuilder_agent.wire.join_api import (
    Admission,
    Inventory,
    IssuedToken,
    JoinAsk,
    Revocation,
    Revoked,
    Role,
    Rotated,
    TokenAsk,
)

if TYPE_CHECKING:
    from lutbuilder.coordinator.store import Store
    from lutbuilder.coordinator.trust.joins import RunningJoins

log = logging.getLogger(__name__)

OVERLAP_S = 7 * 86400.0  # agents that live fetch the new CA within a day; a week is for those that were away
_WARN_CA_S = 365 * 86400.0


class Trust:
    """Whom a coordinator trusts, and how it proves to be itself. Safe from any thread; open it with `trust.open`.

    Implements JoinApi and SecurityApi. What it changes holds from the next call on, in this process and in every other
    one on the same store.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        names: Sequence[str] = (),
        *,
        wall_clock: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.folder = folder
        self.names = certificates.usable_names((*names, *own_names()))
        self.is_new = False  # whether this process made the CA
        self._store = store
        self._ledger = Ledger(store)
        self._wall_clock = wall_clock
        self._random_bytes = random_bytes
        self._changing = threading.Lock()  # guards the files and what was read of them
        self._keys: dict[str, KeyPair] = {}
        self._server: tuple[str, KeyPair] | None = None  # with the sha256 of the CA that signed it
        self._agents: dict[str, str] = {}
        self._sparing = Sparing()
        self._port = 0
        self._join_address = ""

    # --- opening

    def prepare(self, *, needs_key: bool = True) -> None:
        """Make sure there is a CA. Raises TrustError if its key is needed and not in this folder."""
        now_s = self._wall_clock()
        with self._locked_folder():
            cas = self._ledger.cas(now_s=now_s)
            if not cas:
                pair = self._newest_key() or self._keep_ca(certificates.make_ca(now_s=now_s))
                if self._ledger.add_first_ca(pair.certificate, pair.sha256, now_s=now_s):
                    self.is_new = True
                    audit.info("made a CA: sha256:%s", pair.sha256)
                cas = self._ledger.cas(now_s=now_s)
        if needs_key:
            self._signing_key(cas)
        left_s = certificates.expiry_s(cas[0].certificate) - now_s
        if left_s < _WARN_CA_S:
            log.warning("the CA expires in %.0f days: lutbuilder security rotate", left_s / 86400)

    @property
    def pin(self) -> str:
        """What a join line pins: the sha256 of the CA that signs the coordinator's own certificate."""
        return f"sha256:{self._server_ca(self._ledger.cas(now_s=self._wall_clock())).sha256}"

    # --- gRPC

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a listener that wants a client certificate on every connection.

        A new certificate or CA is used from the next connection on: nothing has to be restarted.
        """
        return self._credentials(require_client=True)

    def join_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a listener that asks for no client certificate."""
        return self._credentials(require_client=False)

    def interceptor(self) -> Guard:
        """Return the interceptor for the server that has `server_credentials`."""
        return Guard(self.identify, self._agent_of)

    def add_to_server(self, server: grpc.Server) -> None:
        """Serve SecurityService on the server that has the interceptor, or on plaintext loopback."""
        from lutbuilder_agent.wire.join import add_security_to_server

        add_security_to_server(self, server)

    def serve_join(self, address: str, *, main_port: int, advertised: str = "") -> RunningJoins:
        """Serve joins at "host:port" (port 0: any free one), and tell joiners of `main_port`.

        `advertised` is the host that join lines name; by default the one listened on, or this machine's address.
        Raises PortInUse, SpecError.
        """
        from lutbuilder.coordinator.trust.joins import serve_joins

        self._port = main_port
        joins = serve_joins(self, address, self.join_credentials(), advertised=advertised)
        self._join_address = joins.advertised
        text = json.dumps({"join": joins.advertised, "main_port": main_port})
        write_private(self.folder / "listening.json", text.encode())
        return joins

    # --- JoinApi

    def join(self, ask: JoinAsk, *, peer: str) -> Admission:
        """See JoinApi.join."""
        now_s = self._wall_clock()
        private_key = ""
        shown = "a token"

        def issue() -> tuple[Issued, str]:
            nonlocal private_key
            if ask.csr:
                public_key = certificates.key_of_request(ask.csr)
            else:
                public_key, private_key = certificates.new_client_key()
            return self._issue(public_key, ask.name, ask.role, now_s=now_s)

        try:
            token = read_token(ask.token)
            shown = f"token {shown_id(token.token_id)}"
            issued = self._ledger.redeem(token, ask, request_sha256=_digest(ask), issue=issue, now_s=now_s)
        except LutbuilderError as error:
            if self._sparing.due(("join", peer.rpartition(":")[0], error.code)):
                audit.warning(
                    "refused to let %r join as %s from %s with %s: %s", ask.name, ask.role, peer, shown, error
                )
            raise
        audit.info("%s joined as %s from %s with %s: certificate %s", ask.name, ask.role, peer, shown, issued.serial)
        return Admission(
            certificate=issued.certificate,
            ca=self._bundle(now_s=now_s),
            private_key=private_key,
            port=self._port,
            expires_s=issued.expires_s,
        )

    # --- SecurityApi

    def renew(self, certificate: bytes) -> Admission:
        """See SecurityApi.renew."""
        now_s = self._wall_clock()
        peer = peer_of(certificate)
        issued, ca_sha256 = self._issue(certificates.key_of_certificate(certificate), peer.name, peer.role, now_s=now_s)
        self._ledger.renew(peer.serial, issued, ca_sha256=ca_sha256, now_s=now_s)
        audit.info("renewed %s (%s): certificate %s after %s", peer.name, peer.role, issued.serial, peer.serial)
        return Admission(certificate=issued.certificate, ca=self._bundle(now_s=now_s), expires_s=issued.expires_s)

    def issue_token(self, ask: TokenAsk, *, by: str) -> IssuedToken:
        """See SecurityApi.issue_token."""
        token = new_token(self._random_bytes)
        self._ledger.add_token(token, ask, now_s=self._wall_clock())
        audit.info(
            "%s issued token %s: role %s, name %s, %d uses, %.0f s",
            by, shown_id(token.token_id), ask.role, ask.name or "any", ask.uses, ask.ttl_s,
        )  # fmt: skip  # one line of the log is one line here
        return IssuedToken(
            token=token.text,
            token_id=token.token_id,
            role=ask.role,
            join_address=self._join_address or self.last_join_address(),
            ca=self.pin,
            ttl_s=ask.ttl_s,
        )

    def inventory(self) -> Inventory:
        """See SecurityApi.inventory."""
        return self._ledger.inventory(now_s=self._wall_clock())

    def revoke(self, what: Revocation, *, by: str) -> Revoked:
        """See SecurityApi.revoke. A token may be given by its id or as a whole."""
        if what.token_id:
            what = Revocation(token_id=read_token_id(what.token_id), reason=what.reason)
        revoked = self._ledger.revoke(what, now_s=self._wall_clock())
        audit.info(
            "%s revoked %s: %d certificates, %d tokens; %s",
            by, what.name or what.serial or shown_id(what.token_id), revoked.certificates, revoked.tokens,
            what.reason or "no reason given",
        )  # fmt: skip  # one line of the log is one line here
        return revoked

    def rotate(self, overlap_s: float = OVERLAP_S, *, by: str = "") -> Rotated:
        """See SecurityApi.rotate.

        While both are trusted the coordinator's own certificate stays signed by the old CA, which everyone knows, and
        clients' certificates come from the new one; then the new one signs both.
        """
        now_s = self._wall_clock()
        with self._locked_folder():
            pair = self._keep_ca(certificates.make_ca(now_s=now_s))
            try:
                self._ledger.replace_ca(pair.certificate, pair.sha256, now_s=now_s, overlap_s=overlap_s)
            except LutbuilderError:
                self._ca_path(pair.sha256).unlink(missing_ok=True)
                raise
        audit.info("%s rotated the CA: sha256:%s, the old one until %.0f", by, pair.sha256, now_s + overlap_s)
        return Rotated(sha256=pair.sha256, old_until_s=now_s + overlap_s)

    # --- for the owner of the coordinator

    def join_line(self, address: str, *, ask: TokenAsk | None = None) -> str:
        """Issue a token and return the line to paste on the device; by default for one agent, within a day."""
        return line_for(self.issue_token(ask or TokenAsk(), by="the coordinator"), address)

    @staticmethod
    def join_qr(line: str) -> str:
        """Return the line as a QR code made of characters, for a terminal."""
        import io

        import segno

        drawn = io.StringIO()
        segno.make(line, error="l", micro=False).terminal(out=drawn, border=2, compact=True)
        return drawn.getvalue()

    def last_join_address(self) -> str:
        """Return where joins were last served from this folder, "" if never."""
        raw = read_private(self.folder / "listening.json")
        return "" if raw is None else str(json.loads(raw).get("join", ""))

    def server_certificate(self) -> KeyPair:
        """Return the coordinator's own certificate, made anew if it nears its end or lacks a name."""
        return self._server_pair(self._ledger.cas(now_s=self._wall_clock()))

    def identify(self, certificate: bytes) -> Caller:
        """Return whose certificate (PEM) this is. Raises NotAuthenticated unless it is good at this moment."""
        peer = peer_of(certificate)
        standing = self._ledger.standing(peer.serial)
        now_s = self._wall_clock()
        if standing is None or (standing.name, standing.role) != (peer.name, peer.role):
            raise NotAuthenticated(
                f"the certificate of {peer.name} was not issued here, or is superseded: join again; {_JOIN_LINE}"
            )
        if standing.revoked_s is not None:
            why = f" ({standing.reason})" if standing.reason else ""
            raise NotAuthenticated(f"the certificate of {peer.name} was revoked{why}: join again; {_JOIN_LINE}")
        if now_s >= peer.expires_s:
            raise NotAuthenticated(f"the certificate of {peer.name} has expired: join again; {_JOIN_LINE}")
        if standing.ca_until_s is not None and now_s >= standing.ca_until_s:
            raise NotAuthenticated(
                f"the certificate of {peer.name} is of a CA that was replaced: join again; {_JOIN_LINE}"
            )
        return Caller(name=peer.name, role=peer.role)

    # --- certificates

    def _issue(self, public_key: certificates.PublicKey, name: str, role: Role, *, now_s: float) -> tuple[Issued, str]:
        pair = self._signing_key(self._ledger.cas(now_s=now_s))
        return certificates.make_identity(pair, public_key, name, role, now_s=now_s), pair.sha256

    def _bundle(self, *, now_s: float) -> str:
        return "".join(ca.certificate for ca in self._ledger.cas(now_s=now_s))

    def _credentials(self, *, require_client: bool) -> grpc.ServerCredentials:
        cas = self._ledger.cas(now_s=self._wall_clock())
        given = self._key_of_configuration(cas)
        first = self._configuration(cas)

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Asked before every handshake; None goes on with what there is."""
            nonlocal given
            try:
                cas = self._ledger.cas(now_s=self._wall_clock())
                wanted = self._key_of_configuration(cas)
                if wanted == given:
                    return None
                configuration = self._configuration(cas)
            except LutbuilderError:
                log.exception("the certificates in use stay, because new ones could not be read or made")
                return None
            given = wanted
            return configuration

        return grpc.dynamic_ssl_server_credentials(
            first,
            fetch,  # type: ignore[arg-type]  # the stubs do not know that it may return None
            require_client_authentication=require_client,
        )

    def _key_of_configuration(self, cas: Sequence[Ca]) -> tuple[str, ...]:
        """Return what a configuration is made of, to see whether there is a new one."""
        return (self._server_pair(cas).sha256, *(ca.sha256 for ca in cas))

    def _configuration(self, cas: Sequence[Ca]) -> grpc.ServerCertificateConfiguration:
        """Return the certificate to show, with every CA behind it: a joiner looks there for the one it has pinned."""
        server = self._server_pair(cas)
        bundle = "".join(ca.certificate for ca in cas).encode()
        chain = server.certificate.encode() + bundle
        return grpc.ssl_server_certificate_configuration([(server.key.encode(), chain)], root_certificates=bundle)

    def _server_ca(self, cas: Sequence[Ca]) -> KeyPair:
        """Return the CA that signs our own certificate: the old one while it is trusted, for everyone knows it."""
        for ca in reversed(cas):
            pair = self._key(ca.sha256)
            if pair is not None:
                return pair
        return self._signing_key(cas)

    def _server_pair(self, cas: Sequence[Ca]) -> KeyPair:
        now_s = self._wall_clock()
        ca = self._server_ca(cas)
        with self._changing:
            if self._server is not None and self._server[0] == ca.sha256 and self._is_fresh(self._server[1], now_s):
                return self._server[1]
            path = self.folder / "server.pem"
            pair = _pair_of(read_private(path))
            if pair is None or not (
                self._is_fresh(pair, now_s) and certificates.is_signed_by(pair.certificate, ca)
                and set(certificates.server_names(pair.certificate)) >= set(self.names)
            ):  # fmt: skip  # what makes it usable, together
                pair = certificates.make_server(ca, self.names, now_s=now_s)
                write_private(path, (pair.key + pair.certificate).encode())
                log.info("made a certificate for %s", ", ".join(self.names))
            self._server = (ca.sha256, pair)
            return pair

    @staticmethod
    def _is_fresh(pair: KeyPair, now_s: float) -> bool:
        return certificates.expiry_s(pair.certificate) - now_s > certificates.SERVER_RENEW_S

    # --- files

    def _signing_key(self, cas: Sequence[Ca]) -> KeyPair:
        pair = self._key(cas[0].sha256)
        if pair is None:
            raise TrustError(
                f"the key of this store's CA is not in {self.folder}: copy {self._ca_path(cas[0].sha256).name} there "
                "from the trust folder of the coordinator that made it (chmod 600), or, if it is lost, make a new CA "
                "and have everyone join again: lutbuilder security rotate --overlap 0"
            )
        return pair

    def _key(self, sha256: str) -> KeyPair | None:
        pair = self._keys.get(sha256)
        if pair is None:
            pair = _pair_of(read_private(self._ca_path(sha256)))
            if pair is None or pair.sha256 != sha256 or not certificates.key_fits(pair):
                return None
            self._keys[sha256] = pair
        return pair

    def _newest_key(self) -> KeyPair | None:
        """Return the CA a folder already has when the store is new; the one that expires last, if there are several."""
        found = [_pair_of(read_private(path)) for path in self.folder.glob("ca-*.pem")]
        usable = [pair for pair in found if pair is not None and certificates.key_fits(pair)]
        return max(usable, key=lambda pair: certificates.expiry_s(pair.certificate), default=None)

    def _keep_ca(self, pair: KeyPair) -> KeyPair:
        write_private(self._ca_path(pair.sha256), (pair.key + pair.certificate).encode())
        return pair

    def _ca_path(self, sha256: str) -> Path:
        return self.folder / f"ca-{sha256[:16]}.pem"

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """One process at a time makes a CA."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TrustError(
                f"cannot use {self.folder}: {error.strerror}; make it writable, or choose another: --state-dir DIR"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _agent_of(self, session_id: str) -> str:
        """Return whose session it is; a session's agent never changes. Raises UnknownSession."""
        name = self._agents.get(session_id)
        if name is None:
            name = self._store.session(session_id).name
            if len(self._agents) > 10_000:
                self._agents.clear()
            self._agents[session_id] = name
        return name


_JOIN_LINE = "get a line to paste where the coordinator runs: lutbuilder security token"


def line_for(issued: IssuedToken, address: str = "") -> str:
    """Return the command that joins with a token: the agent's for agents, the commands' for readers and admins."""
    where = address or issued.join_address or "HOST:PORT"
    secret = f"{where} --token {issued.token} --ca {issued.ca}"
    if issued.role == "agent":
        return f"lutbuilder-agent join {secret}"
    return f"lutbuilder security join {secret} --role {issued.role}"


def _digest(ask: JoinAsk) -> str:
    """Return what tells a repeated request from another one of the same id."""
    return hashlib.sha256(json.dumps([ask.role, ask.name, ask.csr.hex()]).encode()).hexdigest()


def _pair_of(raw: bytes | None) -> KeyPair | None:
    """Return the key and certificate of a file of ours, None if it holds none."""
    key, mark, certificate = (raw or b"").decode("ascii", "replace").partition("-----BEGIN CERTIFICATE-----")
    if not mark or "PRIVATE KEY" not in key:
        return None
    try:
        pair = KeyPair(certificate=mark + certificate, key=key)
        certificates.expiry_s(pair.certificate)
    except NotAuthenticated:  # not a certificate: a torn or edited file
        return None
    return pair
