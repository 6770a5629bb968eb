"""X.509: a CA, the coordinator's certificate, and certificates that say a name and a role. Pure: time is an argument.

All keys are ECDSA P-256, all signatures ECDSA with SHA-256: what every TLS 1.3 implementation has. A certificate of an
identity is good for TLS clients only and the coordinator's for servers only, so that no agent can pose as coordinator.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lutbuilder_agent.errors import NotAuthenticated, SpecError, TrustError
from lutbuilder_agent.wire.join_api import ROLES, Role

PublicKey = ec.EllipticCurvePublicKey

CA_S = 10 * 365 * 86400.0  # replaced by `rotate`, not by waiting
SERVER_S = 90 * 86400.0
SERVER_RENEW_S = 30 * 86400.0  # left when a new one is made
IDENTITY_S = 90 * 86400.0  # renewed daily while its owner lives; one that was away longer joins again
_SKEW_S = 3600.0  # certificates begin this much earlier: devices' clocks are behind


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str = field(repr=False)

    @property
    def sha256(self) -> str:
        """The certificate's fingerprint: sha256 of its DER, 64 hex digits."""
        return fingerprint_of(self.certificate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that was just signed."""

    certificate: str  # PEM
    serial: str  # hex
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What a client's certificate says; whether it is still good is another question."""

    serial: str
    name: str
    role: Role
    expires_s: float


def make_ca(*, now_s: float) -> KeyPair:
    """Return a new CA. Its name has random digits, so that two CAs in one bundle are never taken for one another."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"lutbuilder CA {serial % 16**8:08x}")])
    builder = _builder(name, name, key.public_key(), serial, now_s=now_s, life_s=CA_S)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return KeyPair(certificate=_pem(builder.sign(key, hashes.SHA256())), key=_key_pem(key))


def make_server(ca: KeyPair, names: Sequence[str], *, now_s: float) -> KeyPair:
    """Return a certificate for a coordinator that is reached under these host names and IP addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject("lutbuilder coordinator", "coordinator")
    san = x509.SubjectAlternativeName([_general_name(name) for name in names])
    certificate = _signed(
        ca, subject, key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, now_s=now_s, life_s=SERVER_S, san=san
    )
    return KeyPair(certificate=_pem(certificate), key=_key_pem(key))


def make_identity(ca: KeyPair, public_key: PublicKey, name: str, role: Role, *, now_s: float) -> Issued:
    """Return a certificate for a client's key that says who it is and what it may do."""
    certificate = _signed(
        ca, _subject(name, role), public_key, ExtendedKeyUsageOID.CLIENT_AUTH, now_s=now_s, life_s=IDENTITY_S
    )
    return Issued(
        certificate=_pem(certificate),
        serial=f"{certificate.serial_number:x}",
        expires_s=certificate.not_valid_after_utc.timestamp(),
    )


def new_client_key() -> tuple[PublicKey, str]:
    """Return a new public key and its private key (PEM), for a joiner that cannot make one itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.public_key(), _key_pem(key)


def key_of_request(csr: bytes) -> PublicKey:
    """Return the key of a PKCS #10 request (DER) whose sender holds it. Nothing else of the request counts.

    Raises SpecError for anything but a P-256 key with a good signature.
    """
    try:
        request = x509.load_der_x509_csr(csr)
        key, signed = request.public_key(), request.is_signature_valid
    except Exception as error:  # a stranger's bytes, and cryptography has a class for each way of being wrong
        raise SpecError(f"that is no certificate request that can be read here: {type(error).__name__}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SpecError("the key of a certificate request must be ECDSA P-256")
    if not signed:
        raise SpecError("the signature of the certificate request is wrong")
    return key


def key_of_certificate(certificate: bytes) -> PublicKey:
    """Return the key of a client's certificate (PEM). Raises NotAuthenticated for one we cannot have issued."""
    key = _read(certificate).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NotAuthenticated("the key of this certificate is not ECDSA P-256: it was not issued here")
    return key


def read_peer(certificate: bytes) -> Peer:
    """Return what a client's certificate (PEM) says. Raises NotAuthenticated for one that says no name and role."""
    read = _read(certificate)
    names = read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    units = read.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    role = next((role for role in ROLES if len(units) == 1 and units[0].value == role), None)
    if len(names) != 1 or role is None:
        raise NotAuthenticated("this certificate does not say one name and one role: it was not issued to a client")
    return Peer(
        serial=f"{read.serial_number:x}",
        name=str(names[0].value),
        role=role,
        expires_s=read.not_valid_after_utc.timestamp(),
    )


def fingerprint_of(certificate: str) -> str:
    """Return the sha256 of a certificate's DER, 64 hex digits."""
    return hashlib.sha256(_der(certificate)).hexdigest()


def expiry_s(certificate: str) -> float:
    """Return when a certificate (PEM) expires, in Unix seconds."""
    return _read(certificate.encode()).not_valid_after_utc.timestamp()


def server_names(certificate: str) -> tuple[str, ...]:
    """Return the host names and addresses a server certificate (PEM) is for."""
    san = _read(certificate.encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(
        str(name) for name in (*san.get_values_for_type(x509.DNSName), *san.get_values_for_type(x509.IPAddress))
    )


def is_signed_by(certificate: str, ca: KeyPair) -> bool:
    """Return whether a CA signed a certificate (both PEM)."""
    try:
        _read(certificate.encode()).verify_directly_issued_by(_read(ca.certificate.encode()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def key_fits(pair: KeyPair) -> bool:
    """Return whether the private key is the certificate's."""
    try:
        key = serialization.load_pem_private_key(pair.key.encode(), None)
    except (ValueError, TypeError):
        return False
    return bool(key.public_key() == _read(pair.certificate.encode()).public_key())


def usable_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names as a certificate can hold them, each once; what is neither host name nor address is left out."""
    kept: dict[str, None] = {}
    for name in names:
        plain = name.strip("[]").rstrip(".").lower()
        try:
            _general_name(plain)
        except ValueError:
            continue
        kept[str(_address(plain) or plain)] = None
    return tuple(kept)


def _signed(
    ca: KeyPair,
    subject: x509.Name,
    public_key: PublicKey,
    purpose: x509.ObjectIdentifier,
    *,
    now_s: float,
    life_s: float,
    san: x509.SubjectAlternativeName | None = None,
) -> x509.Certificate:
    authority = _read(ca.certificate.encode())
    signer = serialization.load_pem_private_key(ca.key.encode(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TrustError("the key of the CA is no ECDSA key: it was not made by lutbuilder")
    life_s = min(life_s, authority.not_valid_after_utc.timestamp() - now_s)
    if life_s <= 0:
        raise TrustError("the CA has expired: make a new one, and have everyone join again: lutbuilder security rotate")
    serial = x509.random_serial_number()
    builder = _builder(subject, authority.subject, public_key, serial, now_s=now_s, life_s=life_s)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(issuer, critical=False)
    if san is not None:
        builder = builder.add_extension(san, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: PublicKey,
    serial: int,
    *,
    now_s: float,
    life_s: float,
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(now_s, timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(now - timedelta(seconds=_SKEW_S))
        .not_valid_after(now + timedelta(seconds=life_s))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str, unit: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _general_name(name: str) -> x509.GeneralName:
    """Return a host name or an address as a certificate holds it. Raises ValueError."""
    address = _address(name)
    if address is not None:
        return x509.IPAddress(address)
    if not name or not name.isascii() or any(c.isspace() or c in "/:@" for c in name) or len(name) > 253:
        raise ValueError(f"{name!r} is no host name")
    return x509.DNSName(name)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _read(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError as error:
        raise NotAuthenticated(f"that is no certificate: {error}") from error


def _der(certificate: str) -> bytes:
    return _read(certificate.encode()).public_bytes(serialization.Encoding.DER)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode("ascii")
