"""What joins and security say survives the wire; what makes no sense does not pass it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.errors import WireError
from lutbuilder_agent.wire import join_convert as convert
from lutbuilder_agent.wire import join_pb2
from lutbuilder_agent.wire.convert import parse
from lutbuilder_agent.wire.join_api import (
    CSR_BYTES,
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
    Rotated,
    TokenAsk,
)

texts = st.text(max_size=30)
roles = st.sampled_from(ROLES)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", fullmatch=True)
moments = st.floats(1, 4e9)
ends = st.none() | moments
counts = st.integers(0, 10_000)

asks = st.builds(
    JoinAsk,
    token=texts,
    role=roles,
    name=names,
    request_id=st.from_regex("[0-9a-f]{32}", fullmatch=True),
    csr=st.binary(max_size=64),
)
admissions = st.builds(
    Admission, certificate=texts, ca=texts, expires_s=moments, private_key=texts, port=st.integers(1, 65535)
)
token_asks = st.builds(
    TokenAsk, role=roles, ttl_s=st.floats(1, 1e6), uses=st.integers(1, 10_000), name=st.just("") | names
)
inventories = st.builds(
    Inventory,
    certificates=st.lists(
        st.builds(
            KnownCertificate, serial=texts, name=texts, role=roles, issued_s=moments, expires_s=moments, revoked_s=ends,
            reason=texts, ca_sha256=texts,
        ),
        max_size=3,
    ).map(tuple),
    tokens=st.lists(
        st.builds(
            KnownToken, token_id=texts, role=roles, name=texts, uses_left=counts, expires_s=moments, revoked_s=ends
        ),
        max_size=3,
    ).map(tuple),
    cas=st.lists(
        st.builds(KnownCa, sha256=texts, created_s=moments, until_s=ends, expires_s=moments), max_size=3
    ).map(tuple),
)  # fmt: skip  # a record and its fields share a line


@given(asks)
def test_a_join_survives_the_wire(ask):
    assert convert.join_ask_from_proto(convert.join_ask_to_proto(ask)) == ask


@given(admissions)
def test_an_admission_survives_the_wire(admission):
    assert convert.admission_from_proto(convert.admission_to_proto(admission)) == admission


@given(admissions)
def test_a_renewal_survives_the_wire_without_key_and_port(admission):
    again = convert.renewal_from_proto(convert.renewal_to_proto(admission))
    assert (again.certificate, again.ca, again.expires_s) == (admission.certificate, admission.ca, admission.expires_s)
    assert (again.private_key, again.port) == ("", 0)


@given(token_asks)
def test_a_wish_for_a_token_survives_the_wire(ask):
    assert convert.token_ask_from_proto(convert.token_ask_to_proto(ask)) == ask


@given(st.builds(IssuedToken, token=texts, token_id=texts, role=roles, join_address=texts, ca=texts, ttl_s=moments))
def test_an_issued_token_survives_the_wire(issued):
    assert convert.issued_token_from_proto(convert.issued_token_to_proto(issued), role=issued.role) == issued


@given(inventories)
def test_an_inventory_survives_the_wire(inventory):
    assert convert.inventory_from_proto(convert.inventory_to_proto(inventory)) == inventory


@given(
    st.builds(Revocation, name=names, reason=texts)
    | st.builds(Revocation, serial=names)
    | st.builds(Revocation, token_id=names)
)
def test_a_revocation_survives_the_wire(what):
    assert convert.revocation_from_proto(convert.revocation_to_proto(what)) == what


@given(counts, counts, st.floats(0, 1e7), texts)
def test_answers_to_admins_survive_the_wire(certificates, tokens, seconds, sha256):
    revoked = Revoked(certificates=certificates, tokens=tokens)
    assert convert.revoked_from_proto(convert.revoked_to_proto(revoked)) == revoked
    rotated = Rotated(sha256=sha256, old_until_s=seconds)
    assert convert.rotated_from_proto(convert.rotated_to_proto(rotated)) == rotated
    assert convert.overlap_from_proto(convert.overlap_to_proto(seconds)) == seconds


def test_every_role_has_a_member_and_every_member_but_unspecified_a_role():
    numbers = {join_pb2.Role.Value(convert.role_to_proto(role)) for role in ROLES}
    assert numbers == set(join_pb2.Role.values()) - {0}
    assert [convert.role_from_proto(join_pb2.Role.Value(convert.role_to_proto(role))) for role in ROLES] == list(ROLES)


@pytest.mark.parametrize("number", [0, 4, -1, 99])
def test_no_role_is_taken_for_another(number):
    with pytest.raises(WireError, match="no role"):
        convert.role_from_proto(number)


GOOD = {"token": "x", "role": 1, "name": "alice", "request_id": "0" * 32}


@pytest.mark.parametrize(
    "changed",
    [
        {"role": 0},
        {"name": ""},
        {"name": "../../etc/passwd"},
        {"name": "a/b"},
        {"name": "a\0b"},
        {"name": "a" * 65},
        {"name": "-rf"},
        {"request_id": ""},
        {"request_id": "../" + "0" * 29},
        {"request_id": "G" * 32},
        {"csr": b"x" * (CSR_BYTES + 1)},
    ],
)
def test_a_join_that_makes_no_sense_is_refused(changed):
    convert.join_ask_from_proto(join_pb2.JoinRequest(**GOOD))
    with pytest.raises(WireError):
        convert.join_ask_from_proto(join_pb2.JoinRequest(**{**GOOD, **changed}))


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan"), 1e300])
def test_an_overlap_is_a_number_of_seconds_up_to_a_year(seconds):
    with pytest.raises(WireError):
        convert.overlap_from_proto(join_pb2.RotateRequest(overlap_s=seconds))


@pytest.mark.parametrize("expires_s", [-1.0, float("inf"), float("nan"), 1e300])
def test_an_admission_ends_at_a_moment_a_clock_can_show(expires_s):
    with pytest.raises(WireError):
        convert.admission_from_proto(join_pb2.JoinResponse(port=1, expires_s=expires_s))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_join_or_refused(raw):
    try:
        convert.join_ask_from_proto(parse(join_pb2.JoinRequest, raw))
    except WireError:
        return


def test_no_repr_shows_a_token_or_a_key():
    shown = repr(JoinAsk(token="SECRET", role="agent", name="a", request_id="0" * 32))
    shown += repr(Admission(certificate="", ca="", expires_s=1.0, private_key="SECRET"))
    shown += repr(IssuedToken(token="SECRET", token_id="", role="agent", join_address="", ca="", ttl_s=1.0))
    assert "SECRET" not in shown
