"""Certificates say one name and one role, for one purpose and a time; what strangers send is refused, never trusted."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.coordinator.trust import certificates
from lutbuilder.coordinator.trust.certificates import (
    CA_S,
    IDENTITY_S,
    SERVER_S,
    KeyPair,
    expiry_s,
    fingerprint_of,
    is_signed_by,
    key_fits,
    key_of_certificate,
    key_of_request,
    make_ca,
    make_identity,
    make_server,
    new_client_key,
    read_peer,
    server_names,
    usable_names,
)
from lutbuilder_agent.errors import NotAuthenticated, SpecError, TrustError
from lutbuilder_agent.trust import new_key

NOW_S = 1_800_000_000.0
CA = make_ca(now_s=NOW_S)


def read(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def issue(name: str = "alice", role="agent", *, ca: KeyPair = CA, now_s: float = NOW_S):
    return make_identity(ca, new_client_key()[0], name, role, now_s=now_s)


@pytest.mark.parametrize("role", ["agent", "reader", "admin"])
def test_a_certificate_says_name_role_and_end_and_is_found_by_its_serial(role):
    issued = issue("bench-pi_2", role)
    peer = read_peer(issued.certificate.encode())
    assert (peer.name, peer.role, peer.serial) == ("bench-pi_2", role, issued.serial)
    assert peer.expires_s == issued.expires_s == NOW_S + IDENTITY_S
    assert is_signed_by(issued.certificate, CA)


def test_every_certificate_has_a_serial_of_its_own():
    assert len({issue().serial for _ in range(20)}) == 20


def test_an_agent_cannot_pose_as_a_server_nor_sign_certificates():
    client = read(issue().certificate)
    server = read(make_server(CA, ["lab"], now_s=NOW_S).certificate)
    purposes = [list(c.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for c in (client, server)]
    assert purposes == [[ExtendedKeyUsageOID.CLIENT_AUTH], [ExtendedKeyUsageOID.SERVER_AUTH]]
    for certificate in (client, server):
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    authority = read(CA.certificate).extensions
    assert authority.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)


def test_a_certificate_of_another_ca_is_not_of_this_one():
    other = make_ca(now_s=NOW_S)
    assert fingerprint_of(other.certificate) != CA.sha256
    assert not is_signed_by(issue(ca=other).certificate, CA)


def test_nothing_outlives_the_ca_that_signed_it():
    end_s = NOW_S + CA_S
    assert issue(now_s=end_s - 86400.0).expires_s == end_s
    with pytest.raises(TrustError, match="rotate"):
        issue(now_s=end_s)


def test_a_device_whose_clock_is_half_an_hour_behind_can_begin_at_once():
    pair = make_server(CA, ["lab"], now_s=NOW_S)
    for pem in (CA.certificate, pair.certificate, issue().certificate):
        assert read(pem).not_valid_before_utc < datetime.fromtimestamp(NOW_S - 1800, timezone.utc)
    assert expiry_s(pair.certificate) == NOW_S + SERVER_S


def test_a_server_certificate_is_for_every_usable_name_once():
    names = usable_names(["Lab.Example.", "lab.example", "10.0.0.7", "[::1]", "::1", "bad name", "a/b", "", "x" * 300])
    assert names == ("lab.example", "10.0.0.7", "::1")
    assert set(server_names(make_server(CA, names, now_s=NOW_S).certificate)) == set(names)


def test_a_key_that_is_another_certificates_is_noticed():
    assert key_fits(CA)
    assert not key_fits(KeyPair(certificate=CA.certificate, key=make_ca(now_s=NOW_S).key))
    assert not key_fits(KeyPair(certificate=CA.certificate, key="no key"))


def test_no_repr_shows_a_private_key():
    assert "PRIVATE" not in repr(CA)


# --- what strangers send


def csr(key, *, tamper: bool = False) -> bytes:
    said = {NameOID.COMMON_NAME: "root", NameOID.ORGANIZATIONAL_UNIT_NAME: "admin"}
    name = x509.Name([x509.NameAttribute(kind, value) for kind, value in said.items()])
    built = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    raw = bytearray(built.public_bytes(serialization.Encoding.DER))
    if tamper:
        raw[-1] ^= 1
    return bytes(raw)


def test_only_the_key_of_a_request_counts_whatever_its_subject_says():
    key = ec.generate_private_key(ec.SECP256R1())
    issued = make_identity(CA, key_of_request(csr(key)), "alice", "agent", now_s=NOW_S)
    peer = read_peer(issued.certificate.encode())
    assert (peer.name, peer.role) == ("alice", "agent")
    assert key_of_certificate(issued.certificate.encode()) == key.public_key()


def test_the_agents_own_request_is_understood():
    private, request = new_key("alice")
    assert serialization.load_pem_private_key(private.encode(), None).public_key() == key_of_request(request)


def test_a_request_whose_sender_does_not_hold_the_key_is_refused():
    with pytest.raises(SpecError, match=r"signature|read"):
        key_of_request(csr(ec.generate_private_key(ec.SECP256R1()), tamper=True))


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_other_keys_than_p256_are_refused(key):
    with pytest.raises(SpecError, match="P-256"):
        key_of_request(csr(key))


@settings(max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 255))
def test_malformed_requests_are_refused_and_nothing_else_happens(raw, at, byte):
    mutated = bytearray(GOOD_CSR)
    mutated[at % len(mutated)] ^= byte
    for candidate in (raw, bytes(mutated)):
        try:
            key = key_of_request(candidate)
        except SpecError:
            continue
        assert key == GOOD_KEY.public_key() or byte != 0


GOOD_KEY = ec.generate_private_key(ec.SECP256R1())
GOOD_CSR = csr(GOOD_KEY)


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff" * 64])
def test_what_is_no_certificate_is_nobody(pem):
    with pytest.raises(NotAuthenticated):
        read_peer(pem)


def test_a_certificate_without_a_role_is_nobody():
    with pytest.raises(NotAuthenticated, match="one name and one role"):
        read_peer(CA.certificate.encode())
    with pytest.raises(NotAuthenticated, match="one name and one role"):
        read_peer(make_server(CA, ["lab"], now_s=NOW_S).certificate.encode())


def test_a_certificate_with_two_roles_is_nobody():
    key = ec.generate_private_key(ec.SECP256R1())
    units = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role) for role in ("agent", "admin")]
    name = x509.Name([*units, x509.NameAttribute(NameOID.COMMON_NAME, "alice")])
    now = datetime.fromtimestamp(NOW_S, timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now).not_valid_after(now)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(NotAuthenticated, match="one name and one role"):
        read_peer(pem)


def test_the_module_asks_no_clock():
    assert "time" not in vars(certificates)
