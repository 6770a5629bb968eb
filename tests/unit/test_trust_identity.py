"""An identity on this machine: one private file a coordinator and agent, renewed daily, of no use to anybody else."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.coordinator.trust.certificates import key_of_request, make_ca, make_identity
from lutbuilder_agent import trust
from lutbuilder_agent.errors import NotAuthenticated, SpecError, TrustError, Unreachable
from lutbuilder_agent.private_files import read_private, write_private
from lutbuilder_agent.trust import RENEW_AFTER_S, RETRY_AFTER_S, Identity, Keeper, approach, identity_folder, new_key
from lutbuilder_agent.wire.join_api import Admission

ADDRESS = "lab.example:7070"
NOW_S = 1_800_000_000.0


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def identity(name: str = "alice", *, address: str = ADDRESS, control: bool = False, now_s: float = NOW_S) -> Identity:
    ca = make_ca(now_s=now_s)
    key, csr = new_key(name)
    issued = make_identity(ca, key_of_request(csr), name, "reader" if control else "agent", now_s=now_s)
    folder = identity_folder(address)
    assert folder is not None
    return Identity(
        address=address,
        name=name,
        role="reader" if control else "agent",
        certificate=issued.certificate,
        key=key,
        ca=ca.certificate + make_ca(now_s=now_s).certificate,
        issued_s=now_s,
        expires_s=issued.expires_s,
        path=(folder / "control" if control else folder / "agents" / name) / "identity.pem",
    )


# --- on the disk


def test_an_identity_comes_back_as_it_was_saved():
    saved = identity()
    saved.save()
    assert Identity.load(ADDRESS) == saved
    assert Identity.load(ADDRESS, name="alice") == saved
    assert Identity.load(ADDRESS, name="bob") is None
    assert Identity.load(ADDRESS, control=True) is None
    assert Identity.load("other:7070") is None


def test_agents_and_commands_of_one_machine_have_identities_of_their_own():
    saved = [identity("alice"), identity("bob"), identity("me", control=True)]
    for one in saved:
        one.save()
    agents = [Identity.load(ADDRESS, name=name) for name in ("alice", "bob")]
    assert [*agents, Identity.load(ADDRESS, control=True)] == saved


def test_which_of_several_agents_is_meant_has_to_be_said():
    identity("alice").save()
    identity("bob").save()
    with pytest.raises(TrustError, match="alice, bob; choose: --name NAME"):
        Identity.load(ADDRESS)


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps no file modes")
def test_file_and_folders_are_their_owners_alone(config):
    one = identity()
    one.save()
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(one.path.parent.stat().st_mode) == 0o700
    one.path.chmod(0o644)
    with pytest.raises(TrustError, match="chmod 600"):
        Identity.load(ADDRESS)


def test_a_file_is_replaced_in_one_step_and_nothing_is_left_behind(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    write_private(path, b"old")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        with pytest.raises(TrustError, match="No space left"):
            write_private(path, b"new")
    assert read_private(path) == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cut", [0, 1, 40, 400, -30])
def test_a_torn_file_is_refused_with_what_to_do(cut):
    one = identity()
    one.save()
    one.path.write_bytes(one.path.read_bytes()[:cut])
    with pytest.raises(TrustError, match="remove it and join again"):
        Identity.load(ADDRESS)


@given(raw=st.binary(max_size=300))
def test_a_foreign_file_is_refused_never_a_crash(raw, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "foreign.pem"
    with pytest.raises(TrustError):
        trust._identity_of(raw, path)


def test_no_repr_shows_the_key():
    assert "PRIVATE" not in repr(identity())


# --- where


@pytest.mark.parametrize(
    "address",
    [
        *("", "lab", "lab:", ":7070", "lab:0", "lab:70000", "lab:7070/x"),
        *("../../etc:1", "a/b:1", "..:1", "a..b:1", "x\0y:1", "~:1"),
    ],
)
def test_no_address_leads_out_of_the_folder(address):
    with pytest.raises(SpecError, match="HOST:PORT"):
        identity_folder(address)


@pytest.mark.parametrize("name", ["../bob", "a/b", ".hidden", "", "a\0b", "a" * 65, "Ä"])
def test_no_name_leads_out_of_the_folder(name, config):
    with pytest.raises(SpecError):
        trust.join("127.0.0.1:1", token="x", ca="sha256:" + "0" * 64, name=name)
    if name:
        with pytest.raises(SpecError):
            Identity.load(ADDRESS, name=name)
    assert not config.exists()


@given(st.text(max_size=40))
def test_every_accepted_address_is_a_folder_right_below(address):
    try:
        folder = identity_folder(address, environ={"XDG_CONFIG_HOME": "/cfg"})
    except SpecError:
        return
    assert folder is not None
    assert folder.parent == Path("/cfg/lutbuilder/coordinators")
    assert folder.name not in ("", ".", "..")


def test_addresses_are_told_apart_by_host_and_port():
    folders = [identity_folder(a) for a in ("lab:7070", "LAB:7070", "lab:7071", "[::1]:7070", "127.0.0.1:7070")]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4


def test_a_user_without_a_home_has_no_identity_and_can_get_none(monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "")
    assert Identity.load(ADDRESS) is None


def test_no_token_is_spent_on_an_identity_that_cannot_be_kept(config, monkeypatch):
    config.write_text("a file where the folder should be")
    with pytest.raises(TrustError, match="cannot make the folder"):
        trust.join("127.0.0.1:1", token="x", ca="sha256:" + "0" * 64, name="alice")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "")
    with pytest.raises(TrustError, match="XDG_CONFIG_HOME"):
        trust.join("127.0.0.1:1", token="x", ca="sha256:" + "0" * 64, name="alice")


# --- renewal


def renewing(fresh: Identity, asked: list[Identity]):
    def renew(old: Identity) -> Admission:
        asked.append(old)
        return Admission(certificate=fresh.certificate, ca=fresh.ca, expires_s=fresh.expires_s)

    return renew


def test_a_certificate_is_renewed_when_it_is_a_day_old_and_kept():
    old = identity()
    old.save()
    fresh = identity(now_s=NOW_S + 86400)
    asked: list[Identity] = []
    now_s = NOW_S
    keeper = Keeper(old, renew=renewing(fresh, asked), clock=lambda: now_s)
    now_s = NOW_S + RENEW_AFTER_S - 1
    keeper.credentials()
    assert asked == []
    now_s += 1
    keeper.credentials()
    keeper.credentials()
    assert asked == [old]
    kept = Identity.load(ADDRESS)
    assert kept == keeper.identity
    assert (kept.certificate, kept.ca, kept.key) == (fresh.certificate, fresh.ca, old.key)
    assert kept.issued_s == now_s


def test_a_renewal_that_fails_changes_nothing_and_is_tried_again_in_an_hour(caplog):
    old = identity()
    asked = []

    def renew(identity: Identity) -> Admission:
        asked.append(identity)
        raise Unreachable("nobody answers")

    now_s = NOW_S + RENEW_AFTER_S
    keeper = Keeper(old, renew=renew, clock=lambda: now_s)
    keeper.credentials()
    keeper.credentials()
    assert len(asked) == 1
    now_s += RETRY_AFTER_S
    keeper.credentials()
    assert len(asked) == 2
    assert keeper.identity == old
    assert "trying again in an hour" in caplog.text


def test_an_answer_that_is_no_certificate_never_replaces_one():
    old = identity()
    old.save()
    for certificate, ca in (("", old.ca), (old.certificate * 2, old.ca), (old.certificate, "")):
        admission = Admission(certificate=certificate, ca=ca, expires_s=old.expires_s + 1)
        keeper = Keeper(old, renew=lambda _, answer=admission: answer, clock=lambda: NOW_S + RENEW_AFTER_S)
        keeper.credentials()
        assert Identity.load(ADDRESS) == old


def test_a_clock_that_was_set_back_does_not_put_renewal_off():
    old = replace(identity(), issued_s=NOW_S + 400 * 86400)
    asked: list[Identity] = []
    Keeper(old, renew=renewing(old, asked), clock=lambda: NOW_S).credentials()
    assert len(asked) == 1


def test_an_expired_certificate_says_to_join_again_before_anybody_is_called():
    old = identity()
    asked: list[Identity] = []
    keeper = Keeper(old, renew=renewing(old, asked), clock=lambda: old.expires_s)
    with pytest.raises(NotAuthenticated, match="expired on 2027-04-15: join again"):
        keeper.credentials()
    assert asked == []


# --- what a phone has


def test_a_device_without_cryptography_asks_for_a_key(fresh_python):
    """As on a phone where the package cannot be installed."""
    out = fresh_python(
        "import sys; sys.modules['cryptography'] = None\n"
        "from lutbuilder_agent.trust import new_key\nprint(new_key('alice'))"
    )
    assert out == "('', b'')"


def test_an_agent_that_has_joined_does_without_cryptography(fresh_python):
    identity().save()
    out = fresh_python(
        "import sys\nfrom lutbuilder_agent import trust\n"
        f"trust.approach({ADDRESS!r}).credentials()\n"
        "print('cryptography' in sys.modules)"
    )
    assert out == "False"


# --- which way to a coordinator


def test_loopback_without_an_identity_is_plaintext():
    assert approach("127.0.0.1:7070") is None


def test_off_loopback_there_is_no_plaintext_by_accident():
    with pytest.raises(NotAuthenticated, match="join first"):
        approach(ADDRESS)


def test_the_ugly_flag_warns_every_time_off_loopback_and_never_on_it():
    told: list[str] = []
    for _ in range(2):
        assert approach(ADDRESS, insecure_plaintext=True, warn=told.append) is None
    assert len(told) == 2
    assert all("WARNING: --insecure-plaintext" in line for line in told)
    approach("127.0.0.1:7070", insecure_plaintext=True, warn=told.append)
    assert len(told) == 2


def test_an_identity_is_used_wherever_there_is_one():
    for address in (ADDRESS, "127.0.0.1:7070"):
        one = identity(address=address)
        one.save()
        keeper = approach(address)
        assert keeper is not None
        assert keeper.identity == one


@pytest.mark.parametrize("pin", ["", "sha256:", "sha256:xyz", "md5:" + "0" * 64, "sha256:" + "0" * 63, "0" * 64])
def test_a_pin_that_is_none_is_refused_before_anybody_is_called(pin):
    with pytest.raises(SpecError, match="copy the whole line again"):
        trust.pinned_ca("127.0.0.1:1", pin)
