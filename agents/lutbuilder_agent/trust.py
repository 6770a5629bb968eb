"""How this machine and a coordinator know each other: join with a token and a pinned CA, identities on disk, TLS.

Joining, in this order: read the coordinator's CA certificate without trusting it; compare its sha256 with the pin; open
a second connection that trusts that CA alone; hand in the token; keep the certificate. Only PEM text is ever taken from
the wire. The key is made here where the package `cryptography` is installed, and then never leaves this machine. Else
the coordinator makes it and sends it over the connection just verified; it could issue itself a certificate like that.

An identity is one file, `identity.pem` (mode 0600): a line of JSON that says whose it is, the key, the certificate, and
the CAs to trust. One file, so that one rename replaces all of it. Its certificate is renewed once a day, with the same
key; with it come the CAs to trust, which is how a rotated CA reaches everybody.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutbuilder_agent.errors import LutbuilderError, NotAuthenticated, SpecError, TrustError, Unreachable
from lutbuilder_agent.private_files import private_folder, read_private, write_private
from lutbuilder_agent.wire.join_api import ROLES, Admission, JoinAsk, Role, certificate_name

if TYPE_CHECKING:
    import ssl

    import grpc

log = logging.getLogger("lutbuilder_agent")

RENEW_AFTER_S = 24 * 3600.0  # a certificate older than this is renewed: so a rotation reaches everybody within a day
RETRY_AFTER_S = 3600.0  # a renewal that failed is tried again after this
_PATIENCE_S = 10.0
_FIRST_WORD_S = 3.0
_NOT_YET, _EXPIRED, _WRONG_HOST, _WRONG_IP = 9, 10, 62, 64  # X509_V_ERR_* of OpenSSL's x509_vfy.h
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n")
_KEY = re.compile(r"-----BEGIN (?:EC )?PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END (?:EC )?PRIVATE KEY-----\n")
_JOIN_LINE = "get a line to paste where it runs: lutbuilder security token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What one program of this machine is to one coordinator. Times in Unix seconds, of this machine's clock.

    `address` is the coordinator's HOST:PORT for everything but joining; `ca` may hold two CAs during a rotation.
    """

    address: str
    name: str
    role: Role
    certificate: str
    key: str = field(repr=False)
    ca: str
    issued_s: float
    expires_s: float
    path: Path

    @classmethod
    def load(cls, address: str, *, name: str = "", control: bool = False) -> Identity | None:
        """Return the agent `name`'s identity at a coordinator, or with `control` the one of the commands; None if none.

        Without a name: that of the only agent there is. Raises TrustError if there are several, or the file is no use.
        """
        folder = identity_folder(address)
        if folder is None:
            return None
        if control or name:
            path = _identity_path(address, "" if control else certificate_name(name))
        else:
            found = sorted(folder.glob("agents/*/identity.pem"))
            if len(found) > 1:
                names = ", ".join(path.parent.name for path in found)
                raise TrustError(f"several agents of this machine have joined {address}: {names}; choose: --name NAME")
            if not found:
                return None
            (path,) = found
        raw = read_private(path)
        return None if raw is None else _identity_of(raw, path)

    def save(self) -> None:
        """Write the file, in one step. Raises TrustError."""
        about = {
            "format": 1,
            "address": self.address,
            "name": self.name,
            "role": self.role,
            "issued_s": self.issued_s,
            "expires_s": self.expires_s,
        }
        write_private(self.path, f"{json.dumps(about)}\n{self.key}{self.certificate}{self.ca}".encode())

    def credentials(self, *, now_s: float | None = None) -> grpc.ChannelCredentials:
        """Return what a gRPC channel needs. Raises NotAuthenticated if the certificate has expired."""
        import grpc

        now_s = time.time() if now_s is None else now_s
        if now_s >= self.expires_s:
            raise NotAuthenticated(
                f"the certificate of {self.name} for {self.address} expired on {_day(self.expires_s)}: join again; "
                f"{_JOIN_LINE}"
            )
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.encode(),
            private_key=self.key.encode(),
            certificate_chain=self.certificate.encode(),
        )


class Keeper:
    """An identity in use: gives credentials, and renews the certificate when it is a day old. Used by one thread.

    `renew` asks the coordinator (a function, so that tests need none). A renewal that fails changes nothing: the
    certificate is good for months, and what is wrong shows in the call that follows.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        renew: Callable[[Identity], Admission] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.identity = identity
        self._renew = renew or _renew
        self._clock = clock
        self._not_before_s = identity.issued_s + RENEW_AFTER_S

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel needs, after a renewal if one is due. Raises NotAuthenticated if it is too late."""
        now_s = self._clock()
        # A clock that was set back, or a file from the future, shall not put a renewal off for ever.
        due = now_s >= self._not_before_s or now_s < self.identity.issued_s - RENEW_AFTER_S
        if due and now_s < self.identity.expires_s:
            self._not_before_s = now_s + RETRY_AFTER_S
            try:
                fresh = renewed(self.identity, self._renew(self.identity), now_s=now_s)
                fresh.save()
            except LutbuilderError as error:
                log.warning("the certificate was not renewed (trying again in an hour): %s", error)
            else:
                self.identity = fresh
                self._not_before_s = now_s + RENEW_AFTER_S
        return self.identity.credentials(now_s=now_s)


def renewed(identity: Identity, admission: Admission, *, now_s: float) -> Identity:
    """Return the identity with a new certificate and the CAs to trust. Raises TrustError for an answer of no use."""
    return replace(
        identity,
        certificate=_one_certificate(admission.certificate),
        ca=_certificates(admission.ca),
        issued_s=now_s,
        expires_s=admission.expires_s,
    )


def approach(
    address: str,
    *,
    name: str = "",
    control: bool = False,
    insecure_plaintext: bool = False,
    warn: Callable[[str], None] = log.warning,
) -> Keeper | None:
    """Return how to speak to a coordinator: an identity, or None for plaintext.

    Plaintext is for loopback; anywhere else only with `insecure_plaintext`, and then `warn` is told at every start.
    Raises NotAuthenticated if there is no identity for an address off loopback, TrustError if its file is no use.
    """
    from lutbuilder_agent.wire.client import is_loopback

    if insecure_plaintext:
        if not is_loopback(address):
            warn(
                f"WARNING: --insecure-plaintext: nothing that goes to {address} and back is encrypted, and whoever is "
                "on the way can read it, change it, and send models of their own. Join instead: " + _JOIN_LINE
            )
        return None
    identity = Identity.load(address, name=name, control=control)
    if identity is not None:
        return Keeper(identity)
    if is_loopback(address):
        return None
    who = "the commands of this user" if control else f"agent {name}" if name else "an agent"
    raise NotAuthenticated(f"there is no certificate for {who} at {address}: join first; {_JOIN_LINE}")


def join(
    address: str,
    *,
    token: str,
    ca: str,
    name: str,
    role: Role = "agent",
    coordinator: str = "",
    clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    sleep: Callable[[float], None] = time.sleep,
    tries: int = 3,
) -> Identity:
    """Exchange a token for an identity, keep it on the disk, and return it.

    `address` is the join service's HOST:PORT; `ca` is "sha256:HEX", the pin. The identity is for `coordinator`, or for
    the port that the answer names, on the same host. Raises NotAuthenticated (pin, host name or token are wrong),
    Unreachable, SpecError, TrustError.
    """
    import grpc

    from lutbuilder_agent.wire.join import JoinClient

    ask = JoinAsk(token=token, role=role, name=certificate_name(name), request_id=new_id())
    agent = name if role == "agent" else ""
    private_folder(_identity_path(coordinator or address, agent).parents[3 if agent else 2])  # or the token is wasted
    pinned = pinned_ca(address, ca)
    private_key, csr = new_key(name)
    ask = replace(ask, csr=csr)
    credentials = grpc.ssl_channel_credentials(root_certificates=pinned.encode())
    for left in reversed(range(tries)):
        try:
            with JoinClient(address, credentials, explain=lambda: explain(address, ca=pinned)) as client:
                admission = client.join(ask)
            break
        except Unreachable:
            if not left:
                raise
            sleep(1.0)
    address = coordinator or f"{address.rpartition(':')[0]}:{admission.port}"
    identity = Identity(
        address=address,
        name=name,
        role=role,
        certificate=_one_certificate(admission.certificate),
        key=private_key or _one_key(admission.private_key),
        ca=_certificates(admission.ca),
        issued_s=clock(),
        expires_s=admission.expires_s,
        path=_identity_path(address, agent),
    )
    identity.save()
    return identity


def pinned_ca(address: str, pin: str) -> str:
    """Return the CA certificate (PEM) whose sha256 is the pin, from the chain the server shows; nothing is trusted yet.

    Raises NotAuthenticated if no certificate of the chain is the pinned one, Unreachable, SpecError for no pin.
    """
    wanted = re.fullmatch(r"sha256:([0-9a-fA-F]{64})", pin)
    if wanted is None:
        raise SpecError(f"--ca takes sha256: and 64 hex digits, got {pin[:80]!r}; copy the whole line again")
    chain = _shown_chain(address)
    for certificate in chain:
        if hmac.compare_digest(hashlib.sha256(certificate).hexdigest(), wanted[1].lower()):
            import ssl

            return ssl.DER_cert_to_PEM_cert(certificate)
    raise NotAuthenticated(
        f"{address} is not the coordinator of this join line: none of the {len(chain)} certificates it shows has the "
        "sha256 after --ca. Either the line is old (the CA was rotated since), or somebody is in between; "
        f"nothing was sent. {_JOIN_LINE}"
    )


def new_key(name: str) -> tuple[str, bytes]:
    """Return a new P-256 key (PEM) and a request for it (DER); ("", b"") where `cryptography` is not installed."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        return "", b""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode("ascii"), request.public_bytes(serialization.Encoding.DER)


# --- where identities are


def identity_folder(address: str, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of the identities for a coordinator: under $XDG_CONFIG_HOME or ~/.config. Creates nothing.

    None for a user without a home: a key is not kept in a temporary folder, where others may have been first. Raises
    SpecError for what is no HOST:PORT, so that no address leads out of the folder.
    """
    host, colon, port = address.rpartition(":")
    plain = host.strip("[]").lower()
    if not colon or not re.fullmatch(r"[a-z0-9]([a-z0-9.:_-]*[a-z0-9])?|::1?", plain) or ".." in plain:
        raise SpecError(f"{address!r} is not HOST:PORT, for example 192.168.1.20:7070")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise SpecError(f"{address!r} is not HOST:PORT: {port!r} is no port")
    config = _config_folder(environ)
    if config is None:
        return None
    return config / "lutbuilder" / "coordinators" / f"{plain.replace(':', '-')}_{int(port)}"


def _identity_path(address: str, agent: str) -> Path:
    """Return the file of an agent's identity, or with "" that of the commands. Raises TrustError without a home."""
    folder = identity_folder(address)
    if folder is None:
        raise TrustError("this user has no home folder to keep a certificate in: export XDG_CONFIG_HOME=FOLDER")
    return (folder / "agents" / agent if agent else folder / "control") / "identity.pem"


def _config_folder(environ: Mapping[str, str]) -> Path | None:
    chosen = Path(environ.get("XDG_CONFIG_HOME", ""))
    if chosen.is_absolute():
        return chosen
    try:
        return Path.home() / ".config" if environ.get("HOME") != "" else None
    except RuntimeError:  # no HOME, and no entry in the user database: a container
        return None


def _identity_of(raw: bytes, path: Path) -> Identity:
    """Return the identity of a file. Raises TrustError if it holds none."""
    try:
        first, _, rest = raw.decode("ascii").partition("\n")
        about = json.loads(first)
        if about["format"] != 1:
            raise ValueError(f"format {about['format']}")
        key, certificates = _one_key(rest), _CERTIFICATE.findall(rest)
        if len(certificates) < 2 or about["role"] not in ROLES or key + "".join(certificates) != rest:
            raise ValueError("something is missing")  # a file that was cut is not used for what is left of it
        return Identity(
            address=str(about["address"]),
            name=certificate_name(about["name"]),
            role=about["role"],
            certificate=certificates[0],
            key=key,
            ca="".join(certificates[1:]),
            issued_s=float(about["issued_s"]),
            expires_s=float(about["expires_s"]),
            path=path,
        )
    except (ValueError, KeyError, TypeError, TrustError) as error:
        raise TrustError(f"{path} is damaged, or of a newer release: remove it and join again; {_JOIN_LINE}") from error


def _one_certificate(text: str) -> str:
    return _only(_CERTIFICATE.findall(text), "certificate")


def _one_key(text: str) -> str:
    return _only(_KEY.findall(text), "private key")


def _certificates(text: str) -> str:
    found = _CERTIFICATE.findall(text)
    if not found:
        raise TrustError("the coordinator named no CA to trust: its release and this one do not fit")
    return "".join(found)


def _only(found: list[str], what: str) -> str:
    if len(found) != 1:
        raise TrustError(f"{len(found)} PEM blocks hold a {what} where there must be one")
    return found[0]


def _renew(identity: Identity) -> Admission:
    from lutbuilder_agent.wire.join import SecurityClient

    with SecurityClient(
        identity.address, identity.credentials(), explain=lambda: explain(identity.address, identity)
    ) as client:
        return client.renew()


def _day(moment_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment_s))


# --- what is wrong with a connection, asked of a plain TLS handshake


def explain(address: str, identity: Identity | None = None, *, ca: str = "") -> LutbuilderError | None:
    """Return why a connection to a coordinator fails, for what no retry mends: NotAuthenticated; None if it may heal.

    gRPC says "unavailable" for all of it. To be called after that, with the identity used (None: plaintext). A
    coordinator's certificate that has expired or is not valid yet is Unreachable: it is renewed there, or this
    machine's clock gets set.
    """
    trusted = identity.ca if identity is not None else ca
    if not trusted:
        return _asks_for_a_certificate(address)
    try:
        refused = all(_hangs_up(address, trusted, identity) for _ in range(2))  # twice: it may just be starting again
    except NotAuthenticated as error:
        return error
    except Unreachable as error:
        of_the_clock = getattr(error.__cause__, "verify_code", 0) in (_NOT_YET, _EXPIRED)
        return error if of_the_clock else None
    if refused and identity is not None:
        return NotAuthenticated(
            f"{address} hangs up on the certificate of {identity.name}: it has expired by the clock there, or its CA "
            f"was replaced: join again; {_JOIN_LINE}"
        )
    return None


def _asks_for_a_certificate(address: str) -> LutbuilderError | None:
    """Return the error for somebody who spoke plaintext to a coordinator with TLS; None if it speaks plaintext too."""
    try:
        _shown_chain(address)
    except (NotAuthenticated, Unreachable):
        return None
    return NotAuthenticated(
        f"{address} speaks TLS and asks for a certificate, and this machine has none for it: join first; {_JOIN_LINE}"
    )


def _hangs_up(address: str, ca: str, identity: Identity | None) -> bool:
    """Return whether the server ends the connection right after a handshake that satisfied this end."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca)
    if identity is not None:
        context.load_cert_chain(identity.path)
    with _handshake(address, context) as connection:
        connection.settimeout(_FIRST_WORD_S)
        try:
            return connection.recv(1) == b""  # a gRPC server speaks first: its settings
        except TimeoutError:
            return False
        except (ssl.SSLError, ConnectionError):
            return True


def _shown_chain(address: str) -> list[bytes]:
    """Return the certificates (DER) a server shows, unverified. Raises NotAuthenticated if it speaks no TLS."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _handshake(address, context) as connection:
        return _chain(connection)


def _chain(connection: ssl.SSLSocket) -> list[bytes]:
    """Return the chain as DER: a public method from Python 3.13 on, and the same one level below before."""
    import ssl

    if hasattr(connection, "get_unverified_chain"):
        public: list[bytes] = connection.get_unverified_chain()
        return public
    below: Any = connection._sslobj  # type: ignore[attr-defined]  # no public name before 3.13
    der: int = ssl._ssl.ENCODING_DER  # type: ignore[attr-defined]  # the same
    return [certificate.public_bytes(der) for certificate in below.get_unverified_chain() or ()]


def _handshake(address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return a connection after its handshake. Raises Unreachable, and NotAuthenticated for what no retry mends."""
    import ssl

    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context.set_alpn_protocols(["h2"])
    try:
        plain = socket.create_connection((host, int(port)), timeout=_PATIENCE_S)
    except OSError as error:
        raise Unreachable(f"nobody answers at {address}: {error.strerror or error}; is the address right?") from error
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise _mistrust(address, host, error) from error
    except ssl.SSLError as error:
        plain.close()
        if error.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
            raise NotAuthenticated(
                f"{address} speaks plaintext, not TLS: it is not the coordinator that this certificate or join line is "
                "for, or it was started with --insecure-plaintext"
            ) from error
        raise Unreachable(f"no TLS connection to {address}: {error.reason or error}") from error
    except OSError as error:
        plain.close()
        raise Unreachable(f"{address} ended the connection: {error.strerror or error}") from error


def _mistrust(address: str, host: str, error: ssl.SSLCertVerificationError) -> LutbuilderError:
    """Return our error for a server certificate that does not verify."""
    if error.verify_code == _NOT_YET:
        return Unreachable(
            f"the certificate of {address} is not valid yet by this machine's clock ({_now()}): set the clock"
        )
    if error.verify_code == _EXPIRED:
        return Unreachable(
            f"the certificate of {address} has expired by this machine's clock ({_now()}): set the clock, or start the "
            "coordinator again, which renews it"
        )
    if error.verify_code in (_WRONG_HOST, _WRONG_IP):
        return NotAuthenticated(
            f"the certificate of {address} is not for the name {host!r}: use a name it is for (lutbuilder security "
            f"show, there), or add this one there: lutbuilder serve --tls-name {host}"
        )
    return NotAuthenticated(
        f"{address} is not the coordinator this machine has joined: its certificate is of another CA "
        f"({error.verify_message}). If the CA was replaced there, join again; {_JOIN_LINE}"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
