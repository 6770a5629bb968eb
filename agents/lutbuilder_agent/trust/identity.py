"""Identities on disk: what one program of this machine is to one coordinator, in one file of its own."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lutbuilder_agent.errors import NotAuthenticated, SpecError, TrustError
from lutbuilder_agent.private_files import read_private, write_private
from lutbuilder_agent.wire.join_api import ROLES, Role, certificate_name

if TYPE_CHECKING:
    import grpc

JOIN_LINE = "get a line to paste where it runs: lutbuilder security token"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n")
_KEY = re.compile(r"-----BEGIN (?:EC )?PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END (?:EC )?PRIVATE KEY-----\n")


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
            path = identity_path(address, "" if control else certificate_name(name))
        else:
            found = sorted(folder.glob("agents/*/identity.pem"))
            if len(found) > 1:
                names = ", ".join(path.parent.name for path in found)
                raise TrustError(f"several agents of this machine have joined {address}: {names}; choose: --name NAME")
            if not found:
                return None
            (path,) = found
        raw = read_private(path)
        return None if raw is None else identity_of(raw, path)

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
                f"{JOIN_LINE}"
            )
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.encode(),
            private_key=self.key.encode(),
            certificate_chain=self.certificate.encode(),
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


def identity_path(address: str, agent: str) -> Path:
    """Return the file of an agent's identity, or with "" that of the commands. Raises TrustError without a home."""
    folder = identity_folder(address)
    if folder is None:
        raise TrustError("this user has no home folder to keep a certificate in: export XDG_CONFIG_HOME=FOLDER")
    return (folder / "agents" / agent if agent else folder / "control") / "identity.pem"


def joined_addresses(*, control: bool = False) -> tuple[str, ...]:
    """Return the coordinators that the commands of this user, or agents, have joined from here, as HOST:PORT."""
    config = _config_folder(os.environ)
    pattern = "*/control/identity.pem" if control else "*/agents/*/identity.pem"
    found = [] if config is None else (config / "lutbuilder" / "coordinators").glob(pattern)
    folders = {path.parents[1 if control else 2].name for path in found}
    return tuple(sorted(":".join(name.rsplit("_", 1)) for name in folders))


def _config_folder(environ: Mapping[str, str]) -> Path | None:
    chosen = Path(environ.get("XDG_CONFIG_HOME", ""))
    if chosen.is_absolute():
        return chosen
    try:
        return Path.home() / ".config" if environ.get("HOME") != "" else None
    except RuntimeError:  # no HOME, and no entry in the user database: a container
        return None


# --- what is taken from a file and from the wire


def identity_of(raw: bytes, path: Path) -> Identity:
    """Return the identity of a file. Raises TrustError if it holds none."""
    try:
        first, _, rest = raw.decode("ascii").partition("\n")
        about = json.loads(first)
        if about["format"] != 1:
            raise ValueError(f"format {about['format']}")
        key, certificates = one_key(rest), _CERTIFICATE.findall(rest)
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
        raise TrustError(f"{path} is damaged, or of a newer release: remove it and join again; {JOIN_LINE}") from error


def one_certificate(text: str) -> str:
    """Return the only certificate of a text. Raises TrustError if there is none, or another."""
    return _only(_CERTIFICATE.findall(text), "certificate")


def one_key(text: str) -> str:
    """Return the only private key of a text. Raises TrustError if there is none, or another."""
    return _only(_KEY.findall(text), "private key")


def certificates(text: str) -> str:
    """Return the certificates of a text and nothing else of it. Raises TrustError if there is none."""
    found = _CERTIFICATE.findall(text)
    if not found:
        raise TrustError("the coordinator named no CA to trust: its release and this one do not fit")
    return "".join(found)


def _only(found: list[str], what: str) -> str:
    if len(found) != 1:
        raise TrustError(f"{len(found)} PEM blocks hold a {what} where there must be one")
    return found[0]


def _day(moment_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment_s))
