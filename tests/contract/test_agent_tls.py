"""`lutbuilder-agent` and mutual TLS: it joins with one line, works, and says in one line what is wrong."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lutbuilder.coordinator import trust as trusting
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.service import Coordinator, RunningServer, serve
from lutbuilder.coordinator.store import Store
from lutbuilder.coordinator.trust.authority import Trust
from lutbuilder.coordinator.trust.certificates import SERVER_S
from lutbuilder_agent import cli, trust
from lutbuilder_agent.errors import NotAllowed, NotAuthenticated, SpecError, Unreachable
from lutbuilder_agent.fingerprint import fingerprint
from lutbuilder_agent.records import AgentHello, RuntimeReport
from lutbuilder_agent.trust import Identity
from lutbuilder_agent.wire.api import MAX_WAIT_S
from lutbuilder_agent.wire.client import CoordinatorClient
from lutbuilder_agent.wire.join_api import JoinAsk, Revocation, TokenAsk
from tests.tcp_proxy import Proxy

FOR_EVER_S = 20.0  # an agent that has not ended by then does not end


@dataclass
class Lab:
    """A coordinator with TLS, and everything an agent on this machine types."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self, name: str = "one") -> Lab:
        store = self.stack.enter_context(Store.open(self.folder / f"{name}.sqlite"))
        self.coordinator = Coordinator(store, ArtifactShelf(), lambda campaign_id, report: Decision())
        self.trust: Trust = trusting.open(self.folder / name, ["127.0.0.1"], store=store)
        self.server: RunningServer = self.stack.enter_context(
            serve(
                self.coordinator,
                credentials=self.trust.server_credentials(),
                interceptors=[self.trust.interceptor()],
            )
        )
        port = int(self.server.address.rpartition(":")[2])
        self.joins = self.stack.enter_context(self.trust.serve_join("127.0.0.1:0", main_port=port))
        return self

    def line(self, **asked: object) -> list[str]:
        """The words to type after `lutbuilder-agent`, as the coordinator prints them."""
        line = self.trust.join_line(self.joins.address, ask=replace(TokenAsk(), **asked))  # type: ignore[arg-type]  # a test's words
        return re.search(r"lutbuilder-agent (join .*)", line)[1].split()  # type: ignore[index]  # it is there

    def join(self, name: str = "me") -> Identity:
        assert cli.main([*self.line(), "--name", name]) == 0
        self.capsys.readouterr()
        identity = Identity.load(self.server.address, name=name)
        assert identity is not None
        return identity

    def run(self, *options: str, address: str = "") -> tuple[int, str]:
        """Run the agent until it ends; return its status and the last line it said."""
        command = ["run", "--coordinator", address or self.server.address, "--runtimes", "simulated", *options]
        status = cli.main(command)
        said = self.capsys.readouterr().err
        assert "Traceback" not in said
        return status, said.strip().splitlines()[-1]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Lab]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("LUTBUILDER_AGENT_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(
        "lutbuilder_agent.runtimes.probe.probe_all", lambda names: (RuntimeReport(name="simulated", version="1"),)
    )
    logger = logging.getLogger("lutbuilder_agent")
    before = (logger.handlers, logger.level, logger.propagate)
    made = Lab(tmp_path, capsys).start()
    with made.stack:
        yield made
    logger.handlers, logger.level, logger.propagate = before


def damaged(identity: Identity, **changes: object) -> None:
    replace(identity, **changes).save()  # type: ignore[arg-type]  # a test's words


def test_one_pasted_line_is_all_an_agent_needs(lab: Lab) -> None:
    assert cli.main([*lab.line(), "--name", "me"]) == 0
    said = lab.capsys.readouterr().out.splitlines()
    assert said[-1] == f"lutbuilder-agent run --coordinator {lab.server.address} --name me"
    status, _ = lab.run("--exit-when-idle")
    assert status == 0
    assert [agent.name for agent in lab.coordinator.agents()] == ["me"], "the certificate's name needs no --name"


def test_an_agent_that_has_not_joined_is_told_to_and_ends(lab: Lab) -> None:
    status, line = lab.run()
    assert status == NotAuthenticated.exit_status
    assert "asks for a certificate, and this machine has none for it: join first" in line
    assert "lutbuilder security token" in line


def test_a_revoked_agent_ends_with_the_reason(lab: Lab) -> None:
    lab.join()
    lab.trust.revoke(Revocation(name="me", reason="stolen"), by="test")
    status, line = lab.run()
    assert status == NotAuthenticated.exit_status
    assert "the certificate of me was revoked (stolen): join again" in line


def test_an_agent_that_is_revoked_while_it_waits_for_work_does_not_go_on_for_ever(lab: Lab) -> None:
    lab.join()

    def revoke() -> None:
        while lab.coordinator.waiting == 0:
            time.sleep(0.01)
        lab.trust.revoke(Revocation(name="me", reason="retired"), by="test")
        lab.coordinator.release_waiters()  # the long-poll returns, as it does within 30 s

    thread = threading.Thread(target=revoke)
    thread.start()
    status, line = lab.run()
    thread.join()
    assert status == NotAuthenticated.exit_status
    assert "was revoked (retired)" in line


def test_an_agent_under_another_name_than_its_certificates_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = lab.join()
    keeper = trust.Keeper(identity)
    monkeypatch.setattr(trust, "approach", lambda *_, **__: keeper)
    status, line = lab.run("--name", "somebody-else")
    assert status == NotAllowed.exit_status
    assert "me" in line
    assert "somebody-else" in line


def test_a_certificate_that_has_expired_here_says_to_join_again(lab: Lab) -> None:
    damaged(lab.join(), expires_s=1000.0)
    status, line = lab.run()
    assert status == NotAuthenticated.exit_status
    assert "expired on 1970-01-01: join again" in line


def test_another_coordinator_at_the_same_address_is_not_talked_to(lab: Lab) -> None:
    identity = lab.join()
    other = Lab(lab.folder, lab.capsys).start("two")
    with other.stack:
        replace(identity, address=other.server.address, path=_path_for(other.server, identity.name)).save()
        status, line = lab.run(address=other.server.address)
    assert status == NotAuthenticated.exit_status
    assert "is not the coordinator this machine has joined: its certificate is of another CA" in line


def test_a_certificate_of_another_ca_is_not_let_in_and_its_agent_ends(lab: Lab) -> None:
    mine = lab.join()
    other = Lab(lab.folder, lab.capsys).start("two")
    with other.stack:
        theirs = other.join()
    damaged(mine, certificate=theirs.certificate, key=theirs.key)
    status, line = lab.run()
    assert status == NotAuthenticated.exit_status
    assert "hangs up on the certificate of me" in line


def test_tls_to_a_coordinator_without_tls_says_so(lab: Lab) -> None:
    identity = lab.join()
    with Store.open(lab.folder / "plain.sqlite") as store:
        coordinator = Coordinator(store, ArtifactShelf(), lambda campaign_id, report: Decision())
        with serve(coordinator) as server:
            replace(identity, address=server.address, path=_path_for(server, identity.name)).save()
            status, line = lab.run(address=server.address)
    assert status == NotAuthenticated.exit_status
    assert "speaks plaintext, not TLS" in line


def test_a_plaintext_coordinator_that_comes_back_is_not_taken_for_a_stranger(lab: Lab) -> None:
    with Store.open(lab.folder / "plain.sqlite") as store:
        coordinator = Coordinator(store, ArtifactShelf(), lambda campaign_id, report: Decision())
        with serve(coordinator) as server, Proxy(server.address) as proxy:
            proxy.cut_after_answered = 1  # the first connection is reset as soon as the coordinator says anything
            status, line = lab.run("--exit-when-idle", address=proxy.address)
    assert status == 0, line


def test_a_coordinator_that_is_just_away_is_waited_for(lab: Lab) -> None:
    lab.join()
    address = lab.server.address
    lab.server.stop(0.0)
    began_s = time.monotonic()
    status, line = lab.run("--give-up-after", "1", address=address)
    assert status == Unreachable.exit_status
    assert "gave up after" in line
    assert time.monotonic() - began_s < FOR_EVER_S


def test_a_wrong_pin_sends_no_token_anywhere(lab: Lab) -> None:
    words = [word if not word.startswith("sha256:") else "sha256:" + "0" * 64 for word in lab.line()]
    assert cli.main([*words, "--name", "me"]) == NotAuthenticated.exit_status
    said = lab.capsys.readouterr().err
    assert "nothing was sent" in said
    assert Identity.load(lab.server.address) is None
    assert cli.main([*words[:-1], "nonsense"]) == SpecError.exit_status


def test_a_used_token_is_refused_in_one_line(lab: Lab) -> None:
    words = lab.line(uses=1)
    assert cli.main([*words, "--name", "me"]) == 0
    assert cli.main([*words, "--name", "you"]) == NotAuthenticated.exit_status
    said = lab.capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("lutbuilder-agent: ")
    assert "Traceback" not in "\n".join(said)


def test_a_token_may_come_from_stdin(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    words = lab.line()
    token = words[words.index("--token") + 1]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    words[words.index("--token") + 1] = "-"
    assert cli.main([*words, "--name", "me"]) == 0


def test_a_coordinator_whose_certificate_has_expired_is_waited_for_and_said_so(lab: Lab) -> None:
    """It is renewed there, or this machine's clock gets set: no reason to end."""
    then_s = time.time() - SERVER_S - 86400.0
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(lab.folder / "old.sqlite"))
        old = Trust(store, lab.folder / "old" / "trust", ["127.0.0.1"], wall_clock=lambda: then_s)
        old.prepare()
        coordinator = Coordinator(store, ArtifactShelf(), lambda campaign_id, report: Decision())
        server = stack.enter_context(serve(coordinator, credentials=old.server_credentials()))
        key, csr = trust.new_key("me")
        token = old.issue_token(TokenAsk(), by="test").token
        admission = old.join(JoinAsk(token=token, role="agent", name="me", request_id="0" * 32, csr=csr), peer="test")
        Identity(
            address=server.address,
            name="me",
            role="agent",
            certificate=admission.certificate,
            key=key,
            ca=admission.ca,
            issued_s=time.time(),
            expires_s=time.time() + 1000.0,
            path=_path_for(server, "me"),
        ).save()
        status, line = lab.run("--give-up-after", "1", address=server.address)
    assert status == Unreachable.exit_status
    assert "has expired by this machine's clock" in line
    assert "start the coordinator again, which renews it" in line


def test_an_idle_agent_costs_less_than_100_bytes_a_second(lab: Lab) -> None:
    """It makes one call in 30 s over a connection that stays open, and sends no pings."""
    identity = lab.join()
    with Proxy(lab.server.address) as proxy:
        with CoordinatorClient(proxy.address, credentials=identity.credentials()) as client:
            hello = AgentHello(name="me", agent_version="1", fingerprint=fingerprint(), runtimes=())
            session_id = client.register(hello).session_id
            client.lease(session_id, "ok", 0.0)
            before = proxy.bytes
            for _ in range(5):
                client.lease(session_id, "ok", 0.0)
            a_call = (proxy.bytes - before) / 5
        assert proxy.connections == 1
    assert a_call < 100 * MAX_WAIT_S


def _path_for(server: RunningServer, name: str) -> Path:
    folder = trust.identity_folder(server.address)
    assert folder is not None
    return folder / "agents" / name / "identity.pem"
