"""What Trust promises over any store: tokens, certificates, revocation and rotation, in one process or between two."""

from __future__ import annotations

import logging
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lutbuilder.coordinator.store import Store
from lutbuilder.coordinator.trust import certificates
from lutbuilder.coordinator.trust.authority import OVERLAP_S, Trust, line_for
from lutbuilder.coordinator.trust.certificates import IDENTITY_S, SERVER_RENEW_S, SERVER_S, fingerprint_of, read_peer
from lutbuilder_agent.errors import NotAuthenticated, SpecError, TrustError, UnknownName
from lutbuilder_agent.trust import new_key
from lutbuilder_agent.wire.join_api import Admission, IssuedToken, JoinAsk, Revocation, TokenAsk

DAY_S = 86400.0
Joins = Callable[..., Admission]


@dataclass
class Lab:
    """One store, trust folders on it, and a clock that the test moves."""

    url: str
    folder: Path
    now_s: float = 1_800_000_000.0
    _stores: list[Store] = field(default_factory=list)
    _requests: int = 0

    def open(self, folder: str = "one", *, needs_key: bool = True) -> Trust:
        """Open a coordinator's trust, as another process would."""
        store = Store.open(self.url)
        self._stores.append(store)
        trust = Trust(store, self.folder / folder / "trust", ["lab.example"], wall_clock=lambda: self.now_s)
        trust.prepare(needs_key=needs_key)
        return trust

    def ask(self, token: str, name: str = "alice", role="agent", *, csr: bytes | None = None) -> JoinAsk:
        self._requests += 1
        if csr is None:
            csr = new_key(name)[1]
        return JoinAsk(token=token, role=role, name=name, request_id=f"{self._requests:032x}", csr=csr)

    def joined(self, trust: Trust, name: str = "alice", role="agent") -> bytes:
        """Let somebody join with a token of its own, and return its certificate."""
        token = trust.issue_token(TokenAsk(role=role), by="test").token
        return trust.join(self.ask(token, name, role), peer="test").certificate.encode()

    def close(self) -> None:
        for store in self._stores:
            store.close()


@pytest.fixture
def lab(store_url: str, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(store_url, tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def trust(lab: Lab) -> Trust:
    return lab.open()


def issue(trust: Trust, **asked) -> IssuedToken:
    return trust.issue_token(TokenAsk(**asked), by="test")


# --- the first start


def test_the_first_start_makes_a_ca_and_every_later_one_finds_it(lab, trust):
    assert trust.is_new
    again = lab.open()
    assert not again.is_new
    assert again.pin == trust.pin
    assert again.server_certificate() == trust.server_certificate()


def test_two_processes_that_start_at_once_make_one_ca(lab):
    opened: list[Trust] = []
    lab.open("warm-up")  # the store itself exists
    starting = [threading.Thread(target=lambda: opened.append(lab.open("warm-up"))) for _ in range(6)]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    assert len({trust.pin for trust in opened}) == 1


def test_files_with_keys_are_their_owners_alone(trust):
    trust.server_certificate()
    assert stat.S_IMODE(trust.folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in trust.folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3  # the CA, the server's, the lock


def test_no_key_and_no_token_is_in_the_store(lab, trust):
    token = issue(trust).token
    lab.joined(trust)
    trust.server_certificate()
    keys = [line for path in trust.folder.glob("*.pem") for line in path.read_text().splitlines() if "KEY" not in line]
    if not lab.url.startswith("postgresql"):
        with sqlite3.connect(lab.url) as connection:
            text = "\n".join(connection.iterdump())
        assert "PRIVATE KEY" not in text
        assert token[10:].replace("-", "") not in text.replace("-", "")
        assert keys[0] not in text


def test_a_second_coordinator_needs_the_ca_key_and_says_which_file_to_copy(lab, trust):
    with pytest.raises(TrustError, match=r"copy ca-[0-9a-f]{16}.pem there") as refused:
        lab.open("two")
    name = str(refused.value).partition("copy ")[2].split()[0]
    (lab.folder / "two" / "trust" / name).write_bytes((trust.folder / name).read_bytes())
    (lab.folder / "two" / "trust" / name).chmod(0o600)
    second = lab.open("two")
    assert second.pin == trust.pin
    certificate = lab.joined(second)
    assert trust.identify(certificate).name == "alice"


def test_a_key_file_with_another_key_is_not_used(lab, trust):
    (path,) = trust.folder.glob("ca-*.pem")
    other = certificates.make_ca(now_s=lab.now_s)
    path.write_text(other.key + other.certificate)
    with pytest.raises(TrustError, match="is not in"):
        lab.open()


def test_a_lost_store_keeps_its_ca_and_forgets_everybody(lab, trust, tmp_path):
    certificate = lab.joined(trust)
    fresh = Lab(str(tmp_path / "fresh.sqlite"), lab.folder, now_s=lab.now_s)
    again = fresh.open()
    assert again.pin == trust.pin
    with pytest.raises(NotAuthenticated, match="was not issued here"):
        again.identify(certificate)
    fresh.close()


# --- the coordinator's own certificate


def test_the_server_certificate_is_for_the_listen_names_and_this_machine(trust):
    names = certificates.server_names(trust.server_certificate().certificate)
    assert {"lab.example", "localhost", "127.0.0.1", "::1"} <= set(names)


def test_the_server_certificate_is_renewed_before_it_ends_without_a_restart(lab, trust):
    first = trust.server_certificate()
    lab.now_s += SERVER_S - SERVER_RENEW_S - 1
    assert trust.server_certificate() == first
    lab.now_s += 2
    second = trust.server_certificate()
    assert certificates.expiry_s(second.certificate) == pytest.approx(lab.now_s + SERVER_S, abs=1)


def test_a_new_listen_name_makes_a_new_certificate(lab, trust):
    first = trust.server_certificate()
    renamed = Trust(trust._store, trust.folder, ["phone-bridge.example"], wall_clock=lambda: lab.now_s)
    renamed.prepare()
    assert "phone-bridge.example" in certificates.server_names(renamed.server_certificate().certificate)
    assert renamed.server_certificate() != first


# --- tokens


@pytest.mark.parametrize("role", ["agent", "reader", "admin"])
def test_a_token_gives_a_certificate_of_its_role_and_name(lab, trust, role):
    token = issue(trust, role=role).token
    admission = trust.join(lab.ask(token, "alice", role), peer="test")
    caller = trust.identify(admission.certificate.encode())
    assert (caller.name, caller.role) == ("alice", role)
    assert fingerprint_of(admission.ca) == trust.pin.removeprefix("sha256:")
    assert admission.private_key == ""


def test_who_cannot_make_a_key_gets_one_and_it_fits(lab, trust):
    admission = trust.join(lab.ask(issue(trust).token, csr=b""), peer="test")
    assert certificates.key_fits(certificates.KeyPair(certificate=admission.certificate, key=admission.private_key))


def test_a_token_is_good_for_its_number_of_joins_and_no_more(lab, trust):
    token = issue(trust, uses=2).token
    for name in ("alice", "bob"):
        trust.join(lab.ask(token, name), peer="test")
    with pytest.raises(NotAuthenticated, match="used up"):
        trust.join(lab.ask(token, "carol"), peer="test")


def test_joins_at_once_do_not_use_a_token_more_often_than_it_allows(lab, trust):
    token = issue(trust, uses=3).token
    asks = [lab.ask(token, f"agent-{number}") for number in range(8)]
    outcomes: list[str] = []

    def try_it(ask: JoinAsk) -> None:
        try:
            trust.join(ask, peer="test")
            outcomes.append("in")
        except NotAuthenticated:
            outcomes.append("out")

    threads = [threading.Thread(target=try_it, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] * 3 + ["out"] * 5


def test_a_join_whose_answer_was_lost_costs_no_further_use(lab, trust):
    ask = lab.ask(issue(trust).token)
    lost = trust.join(ask, peer="test")
    kept = trust.join(ask, peer="test")
    assert trust.identify(kept.certificate.encode()).name == "alice"
    with pytest.raises(NotAuthenticated, match="replaced by a later join"):
        trust.identify(lost.certificate.encode())


def test_a_request_id_is_no_free_pass_for_another_request(lab, trust):
    ask = lab.ask(issue(trust, uses=5).token)
    trust.join(ask, peer="test")
    for other in (replace(ask, name="bob"), replace(ask, csr=new_key("alice")[1])):
        with pytest.raises(SpecError, match="came before with other contents"):
            trust.join(other, peer="test")


def test_an_expired_token_is_refused_to_the_second(lab, trust):
    token = issue(trust, ttl_s=60.0, uses=5).token
    lab.now_s += 59
    trust.join(lab.ask(token), peer="test")
    lab.now_s += 1
    with pytest.raises(NotAuthenticated, match="has expired"):
        trust.join(lab.ask(token), peer="test")


@pytest.mark.parametrize(
    ("given", "wanted"), [("agent", "admin"), ("agent", "reader"), ("reader", "admin"), ("admin", "agent")]
)
def test_a_token_for_another_role_is_refused(lab, trust, given, wanted):
    token = issue(trust, role=given, uses=9).token
    with pytest.raises(NotAuthenticated, match=f"for the role {given}, not {wanted}"):
        trust.join(lab.ask(token, role=wanted), peer="test")


def test_a_token_for_one_name_is_refused_to_another(lab, trust):
    token = issue(trust, name="bench-pi", uses=9).token
    with pytest.raises(NotAuthenticated, match="for the name bench-pi only"):
        trust.join(lab.ask(token, "alice"), peer="test")
    trust.join(lab.ask(token, "bench-pi"), peer="test")


def test_a_wrong_secret_learns_nothing_about_the_token(lab, trust):
    token = issue(trust, role="admin", name="root").token
    wrong_secret = token[:-1] + ("0" if token[-1] != "0" else "1")
    unknown = "0000-0000" + token[9:]
    told = []
    for guess in (wrong_secret, unknown):
        with pytest.raises(NotAuthenticated) as refused:
            trust.join(lab.ask(guess), peer="test")
        told.append(str(refused.value))
    assert told[0] == told[1]
    assert "root" not in told[0]


def test_a_refused_join_changes_nothing(lab, trust):
    certificate = lab.joined(trust, "alice")
    token = issue(trust).token
    for ask in (lab.ask(token, csr=b"no request"), lab.ask(token, role="admin"), lab.ask("0" * 32)):
        with pytest.raises((NotAuthenticated, SpecError)):
            trust.join(ask, peer="test")
    assert trust.identify(certificate).name == "alice"
    trust.join(lab.ask(token, "bob"), peer="test")  # its one use is still there


@pytest.mark.parametrize(
    "asked",
    [
        {"ttl_s": 0.0},
        {"ttl_s": -1.0},
        {"ttl_s": 31 * DAY_S},
        {"ttl_s": float("nan")},
        {"uses": 0},
        {"uses": 10**6},
        {"name": "../x"},
    ],
)
def test_tokens_that_make_no_sense_are_not_issued(trust, asked):
    with pytest.raises(SpecError):
        issue(trust, **asked)


def test_the_join_line_is_what_each_role_types(lab, trust):
    line = trust.join_line("lab.example:7072")
    assert line.startswith("lutbuilder-agent join lab.example:7072 --token ")
    assert line.endswith(f" --ca {trust.pin}")
    assert trust.join_line("h:1", ask=TokenAsk(role="admin")).startswith("lutbuilder security join h:1 --token ")
    assert line_for(issue(trust)).startswith("lutbuilder-agent join HOST:PORT --token ")


def test_the_qr_code_holds_the_line_and_fits_a_terminal(trust):
    drawn = trust.join_qr(trust.join_line("lab.example:7072"))
    rows = drawn.strip("\n").splitlines()
    assert 20 < len(rows) < 40
    assert max(map(len, rows)) < 80


# --- certificates


def test_a_second_join_under_a_name_replaces_the_first(lab, trust):
    first, second = lab.joined(trust), lab.joined(trust)
    assert trust.identify(second).name == "alice"
    with pytest.raises(NotAuthenticated, match=r"revoked \(replaced by a later join under the same name\): join again"):
        trust.identify(first)


def test_a_name_may_be_agent_and_admin_and_neither_replaces_the_other(lab, trust):
    agent, admin = lab.joined(trust, "alice", "agent"), lab.joined(trust, "alice", "admin")
    assert [trust.identify(one).role for one in (agent, admin)] == ["agent", "admin"]


def test_an_expired_certificate_is_refused_on_old_channels_too(lab, trust):
    certificate = lab.joined(trust)
    lab.now_s += IDENTITY_S - 1
    trust.identify(certificate)
    lab.now_s += 1
    with pytest.raises(NotAuthenticated, match="has expired: join again"):
        trust.identify(certificate)


def test_a_certificate_signed_with_our_key_but_unknown_to_the_store_is_refused(lab, trust):
    (path,) = trust.folder.glob("ca-*.pem")
    key, _, certificate = path.read_text().partition("-----BEGIN CERTIFICATE")
    ca = certificates.KeyPair(certificate="-----BEGIN CERTIFICATE" + certificate, key=key)
    forged = certificates.make_identity(ca, certificates.new_client_key()[0], "root", "admin", now_s=lab.now_s)
    with pytest.raises(NotAuthenticated, match="was not issued here"):
        trust.identify(forged.certificate.encode())


def test_renewal_keeps_key_name_and_role_and_the_old_one_until_the_new_one_is_used(lab, trust):
    first = lab.joined(trust, "alice", "reader")
    lab.now_s += DAY_S
    second = trust.renew(first).certificate.encode()
    assert certificates.key_of_certificate(first) == certificates.key_of_certificate(second)
    for one in (first, second):
        assert trust.identify(one).role == "reader"
    third = trust.renew(second).certificate.encode()
    assert trust.identify(third).name == "alice"
    trust.identify(second)
    with pytest.raises(NotAuthenticated, match="superseded"):
        trust.identify(first)


def test_a_renewal_whose_answer_was_lost_may_be_asked_for_again(lab, trust):
    first = lab.joined(trust)
    for _ in range(5):
        lost = trust.renew(first)
    assert trust.identify(lost.certificate.encode()).name == "alice"
    assert len([one for one in trust.inventory().certificates if one.name == "alice"]) == 2


def test_a_revoked_certificate_is_not_renewed(lab, trust):
    certificate = lab.joined(trust)
    trust.revoke(Revocation(name="alice"), by="test")
    with pytest.raises(NotAuthenticated, match="revoked"):
        trust.renew(certificate)


# --- revocation


def test_revoking_a_name_holds_from_the_next_call_on_in_every_process(lab, trust):
    other = lab.open()
    alice, bob = lab.joined(trust, "alice"), lab.joined(trust, "bob")
    assert other.identify(alice).name == "alice"
    revoked = trust.revoke(Revocation(name="alice", reason="phone lost"), by="test")
    assert (revoked.certificates, revoked.tokens) == (1, 1)
    for each in (trust, other):
        with pytest.raises(NotAuthenticated, match=r"revoked \(phone lost\)"):
            each.identify(alice)
        assert each.identify(bob).name == "bob"


def test_a_revoked_name_cannot_come_back_with_a_token_it_knows(lab, trust):
    token = issue(trust, uses=10).token
    trust.join(lab.ask(token, "alice"), peer="test")
    reserved = issue(trust, name="alice").token
    trust.revoke(Revocation(name="alice"), by="test")
    for known in (token, reserved):
        for name in ("alice", "mallory"):
            with pytest.raises(NotAuthenticated):
                trust.join(lab.ask(known, name), peer="test")
    trust.join(lab.ask(issue(trust).token, "alice"), peer="test")  # a new token is an admin's word


def test_one_certificate_is_revoked_by_its_serial(lab, trust):
    first = lab.joined(trust)
    second = trust.renew(first).certificate.encode()
    trust.revoke(Revocation(serial=read_peer(first).serial.upper()), by="test")
    with pytest.raises(NotAuthenticated):
        trust.identify(first)
    assert trust.identify(second).name == "alice"


def test_a_token_is_revoked_by_its_public_part(lab, trust):
    token = issue(trust).token
    assert trust.revoke(Revocation(token_id=token[:9]), by="test").tokens == 1
    with pytest.raises(NotAuthenticated, match="was revoked"):
        trust.join(lab.ask(token), peer="test")


@pytest.mark.parametrize("what", [{"name": "nobody"}, {"serial": "beef"}, {"token_id": "0000-0000"}])
def test_revoking_nothing_says_so(trust, what):
    with pytest.raises(UnknownName, match="lutbuilder security list"):
        trust.revoke(Revocation(**what), by="test")


@pytest.mark.parametrize("what", [{}, {"name": "a", "serial": "b"}, {"name": "a", "reason": "x" * 201}])
def test_a_revocation_names_one_thing(what):
    with pytest.raises(SpecError):
        Revocation(**what)


# --- rotation


def test_after_a_rotation_old_and_new_are_trusted_and_renewal_moves_an_agent_over(lab, trust):
    old_pin = trust.pin
    old = lab.joined(trust, "old")
    rotated = trust.rotate(by="test")
    assert rotated.old_until_s == lab.now_s + OVERLAP_S
    new = lab.joined(trust, "new")
    for one in (old, new):
        trust.identify(one)
    assert trust.pin == old_pin  # everyone knows it, so it still signs the coordinator's own
    assert certificates.is_signed_by(new.decode(), trust._signing_key(trust._ledger.cas(now_s=lab.now_s)))
    renewal = trust.renew(old)
    assert renewal.ca.count("BEGIN CERTIFICATE") == 2
    moved = renewal.certificate.encode()
    lab.now_s += OVERLAP_S + 1
    assert trust.pin == f"sha256:{rotated.sha256}"
    for one in (moved, new):
        trust.identify(one)
    with pytest.raises(NotAuthenticated, match="a CA that was replaced"):
        trust.identify(old)
    assert trust.renew(moved).ca.count("BEGIN CERTIFICATE") == 1


def test_the_server_certificate_changes_hands_when_the_overlap_ends(lab, trust):
    during = trust.server_certificate()
    rotated = trust.rotate(by="test")
    assert trust.server_certificate() == during
    lab.now_s += OVERLAP_S + 1
    after = trust.server_certificate()
    new = certificates.KeyPair(certificate=trust._ledger.cas(now_s=lab.now_s)[0].certificate, key="")
    assert new.sha256 == rotated.sha256
    assert certificates.is_signed_by(after.certificate, new)


def test_a_rotation_in_one_process_is_seen_by_the_others(lab, trust):
    other = lab.open()
    certificate = lab.joined(other, "alice")
    trust.rotate(0.0, by="test")
    assert other.pin == trust.pin
    with pytest.raises(NotAuthenticated, match="a CA that was replaced"):
        other.identify(certificate)
    assert trust.identify(lab.joined(other, "bob")).name == "bob"


def test_a_second_rotation_waits_for_the_first_unless_nothing_old_shall_be_trusted(lab, trust):
    first = lab.joined(trust, "first")
    trust.rotate(by="test")
    keys = set(trust.folder.glob("ca-*.pem"))
    with pytest.raises(TrustError, match=r"has not ended: .* another 168.0 hours"):
        trust.rotate(by="test")
    assert set(trust.folder.glob("ca-*.pem")) == keys
    second = lab.joined(trust, "second")
    trust.rotate(0.0, by="test")
    for one in (first, second):
        with pytest.raises(NotAuthenticated):
            trust.identify(one)
    assert len(trust.inventory().cas) == 1
    lab.now_s += 1
    trust.rotate(by="test")


def test_a_lost_ca_key_is_mended_by_a_new_ca(lab, trust):
    (path,) = trust.folder.glob("ca-*.pem")
    path.unlink()
    with pytest.raises(TrustError, match="rotate --overlap 0"):
        lab.open()
    mended = lab.open(needs_key=False)
    mended.rotate(0.0, by="test")
    assert mended.identify(lab.joined(mended)).name == "alice"


# --- what is shown and logged


def test_the_inventory_shows_who_and_what_is_known_without_secrets(lab, trust):
    token = issue(trust, role="reader", name="bob", uses=4)
    lab.joined(trust, "alice")
    found = trust.inventory()
    assert [(one.name, one.role, one.revoked_s) for one in found.certificates] == [("alice", "agent", None)]
    assert ("bob", "reader", 4) in [(one.name, one.role, one.uses_left) for one in found.tokens]
    assert [ca.until_s for ca in found.cas] == [None]
    assert token.token[10:] not in repr(found)
    lab.now_s += 100 * DAY_S
    later = trust.inventory()
    assert (later.certificates, later.tokens) == ((), ())


def test_everything_that_changes_trust_is_one_line_of_the_audit_log_without_a_token(lab, trust, caplog):
    with caplog.at_level(logging.DEBUG):
        token = issue(trust, uses=2).token
        certificate = trust.join(lab.ask(token), peer="ipv4:10.0.0.9:1").certificate.encode()
        trust.renew(certificate)
        for _ in range(50):
            with pytest.raises(NotAuthenticated):
                trust.join(lab.ask(token, role="admin"), peer="ipv4:10.0.0.9:1")
        trust.revoke(Revocation(name="alice"), by="root")
        trust.rotate(by="root")
    lines = [record.getMessage() for record in caplog.records if record.name == "lutbuilder.audit"]
    words = [
        "issued token",
        "joined as agent from ipv4:10.0.0.9:1",
        "renewed alice",
        "refused to let 'alice' join",
        "root revoked alice",
        "root rotated",
    ]
    assert [word for word, line in zip(words, lines, strict=True) if word in line] == words
    assert not any(token[10:] in record.getMessage() for record in caplog.records)
