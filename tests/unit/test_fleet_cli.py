"""The commands about a fleet on a store of this machine: lists, and setting right what is wrong."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lutbuilder.campaign.job import JobSpec
from lutbuilder.campaign.request import CollectRequest
from lutbuilder.campaign.state import STORE_NAME, served_store
from lutbuilder.cli import lists, serve
from lutbuilder.cli.main import app
from lutbuilder.control.order import Order
from lutbuilder.coordinator.store import Store
from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.records import Failure
from tests.store_examples import OPS, SPEC, grant, report, session

Cli = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs a command line in an empty folder and gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTBUILDER_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("LUTBUILDER_STORE", raising=False)

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="lutbuilder")
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / STORE_NAME) as opened:
        opened.create_campaign(SPEC, now_s=1.0, priority=3)
        session(opened, "s1")
        assert grant(opened) is not None
        yield opened


def told(cli: Cli, line: str) -> Any:
    status, out, err = cli(f"{line} --json")
    assert status == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("agents", "no agent has registered yet; start one: lutbuilder-agent run"),
        ("campaigns", "no campaign was ever begun; begin one: lutbuilder collect"),
        ("campaigns --active", "no campaign is active"),
        ("leases", "no lease is held"),
        ("jobs", "no job was asked for; ask: lutbuilder collect --coordinator HOST:PORT"),
        ("jobs --active", "no job is going"),
    ],
)
def test_looking_where_nothing_is_makes_no_store_and_says_what_to_type(
    cli: Cli, tmp_path: Path, line: str, says: str
) -> None:
    status, out, err = cli(line)
    assert (status, out) == (0, "")
    assert says in err
    assert not (tmp_path / "state").exists()
    assert told(cli, line)[line.split()[0]] == []


@pytest.mark.parametrize(
    "line",
    ["agents drain a", "agents resume a", "agents release a", "campaigns show c", "campaigns cancel c",
     "campaigns release-op c o", "jobs cancel abcd"],
)  # fmt: skip  # a list of lines
def test_there_is_nothing_to_set_right_where_nothing_is(cli: Cli, tmp_path: Path, line: str) -> None:
    status, _, err = cli(line)
    assert status == 64
    assert "there is no store at" in err
    assert not (tmp_path / "state").exists()


def test_an_agent_is_drained_and_resumed(cli: Cli, store: Store) -> None:
    assert told(cli, "agents drain alice")["state"] == "drained"
    assert "drained" in cli("agents")[1]
    assert store.agent_flags()["alice"].drained
    status, _, err = cli("agents resume alice")
    assert (status, err) == (0, "agent alice takes leases again\n")
    assert not store.agent_flags()


def test_a_sick_agent_is_shown_with_its_reason_and_released(cli: Cli, store: Store) -> None:
    store.set_agent("alice", quarantined="3 ops in a row")
    assert "quarantined: 3 ops in a row" in cli("agents")[1]
    assert cli("agents release alice")[2] == "agent alice is released: it takes leases again\n"
    assert not store.agent_flags()
    assert cli("agents drain eve")[0] == 64


def test_a_campaign_is_listed_shown_with_its_failures_and_cancelled(cli: Cli, store: Store) -> None:
    for number in range(3):
        failure = Failure(op_id=OPS[0].op_id, round=number, reason="crashed", detail="boom")
        store.commit_report(report(number, timings=(), failures=(failure,)), now_s=2.0)
    (listed,) = told(cli, "campaigns")["campaigns"]
    assert (listed["campaign_id"], listed["priority"], listed["n_failed"]) == (SPEC.key, 3, 1)
    assert re.search(rf"^ ?{SPEC.key} +active .* 3/100 .* 1 +alice ", cli("campaigns")[1], flags=re.MULTILINE)
    status, out, err = cli(f"campaigns show {SPEC.key}")
    assert status == 0
    assert re.search(rf"{OPS[0].op_id} .* crashed +3 +alice +yes +boom", out)
    assert f"lutbuilder campaigns release-op {SPEC.key} OP_ID" in err
    assert told(cli, f"campaigns release-op {SPEC.key} {OPS[0].op_id}")["released"] == OPS[0].op_id
    assert told(cli, f"campaigns show {SPEC.key}")["n_failed"] == 0
    cancelled = told(cli, f"campaigns cancel {SPEC.key} --reason 'wrong device'")
    assert (cancelled["state"], cancelled["reason"]) == ("cancelled", "wrong device")
    assert told(cli, f"campaigns cancel {SPEC.key}")["reason"] == "wrong device", "it keeps its first reason"
    assert told(cli, "campaigns --active")["campaigns"] == []


def test_leases_are_listed(cli: Cli, store: Store) -> None:
    (lease,) = told(cli, "leases")["leases"]
    assert (lease["lease_id"], lease["agent"], lease["campaign_id"]) == ("l1", "alice", SPEC.key)
    assert re.search(rf"^ ?alice +{SPEC.key} +0 +0\.\.99 ", cli("leases")[1], flags=re.MULTILINE)


def test_jobs_are_listed_and_cancelled(cli: Cli, store: Store) -> None:
    request = Order(request=CollectRequest(runtime="litert")).to_json()
    store.submit_job(JobSpec(kind="collect", request=request, priority=4, owner="ann"), job_id="job-1", now_s=1.0)
    assert re.search(
        r"^ ?job-1 +collect +queued +proxyless on cpu, litert, batch 1 +4 +- +- +- +ann ", cli("jobs")[1], re.MULTILINE
    )
    assert told(cli, "jobs cancel job-1")["state"] == "cancelled"
    assert "was over before" not in cli("jobs cancel job-1")[2]
    assert told(cli, "jobs --active")["jobs"] == []


def test_options_in_front_of_a_word_would_be_lost_so_they_are_refused(cli: Cli, store: Store) -> None:
    status, _, err = cli("agents --coordinator 127.0.0.1:1 drain alice")
    assert status == 2
    assert "options go behind the word" in err
    assert not store.agent_flags()


def test_a_coordinator_has_a_store_of_its_own(cli: Cli) -> None:
    status, _, err = cli("agents --coordinator 127.0.0.1:1 --state-dir x")
    assert status == 65
    assert "leave out --store and --state-dir" in err


@pytest.mark.parametrize("line", ["collect --priority 3", "validate a/b --priority 3", "calibrate a/b --priority 3"])
def test_a_priority_without_a_coordinator_means_nothing(cli: Cli, line: str) -> None:
    status, _, err = cli(line)
    assert status == 65
    assert "go with --coordinator HOST:PORT" in err


def test_nobody_at_the_address_is_told(cli: Cli) -> None:
    status, _, err = cli("agents --coordinator 127.0.0.1:1")
    assert status == 68
    assert "error[unreachable]" in err
    assert "lutbuilder serve" in err


def test_an_address_off_this_machine_needs_a_certificate_or_the_word(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("jobs --coordinator 192.0.2.1:7070")
    assert status == 77
    assert "no certificate" in err


def test_watching_with_json_gives_a_line_each_time(cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []

    def sleep(seconds: float) -> None:
        turns.append(seconds)
        if len(turns) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(lists.time, "sleep", sleep)
    show = lists.Listing.show
    monkeypatch.setattr(lists.Listing, "show", lambda self, at, **more: show(self, at, **{**more, "sleep": sleep}))
    status, out, _ = cli("agents --watch --json")
    assert status == 130
    lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"store"')]
    assert [len(line["agents"]) for line in lines] == [1, 1, 1]
    assert turns == [lists.EVERY_S] * 3


def test_the_store_is_the_url_the_variable_or_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTBUILDER_STATE", str(tmp_path))
    monkeypatch.setenv("LUTBUILDER_STORE", "postgresql://db/lab")
    assert served_store(None, "sqlite:///x") == "sqlite:///x"
    assert served_store(None) == "postgresql://db/lab"
    assert served_store(tmp_path / "other") == tmp_path / "other" / STORE_NAME, "a chosen folder is chosen"
    monkeypatch.delenv("LUTBUILDER_STORE")
    assert served_store(None) == tmp_path / STORE_NAME


def test_the_status_line_says_what_there_is_or_that_the_store_fails() -> None:
    def view(state: str, rate: float | None = None) -> Any:
        return SimpleNamespace(state=state, visits_per_s=rate)

    counts = SimpleNamespace(jobs={"running": 2, "queued": 1})
    running: Any = SimpleNamespace(
        address="127.0.0.1:7070",
        coordinator=SimpleNamespace(fleet=lambda: (view("measuring", 70.4), view("idle", 9.0), view("measuring", 1.0))),
        store=SimpleNamespace(counts=lambda: counts),
    )
    assert serve.status_text(running) == (
        "127.0.0.1:7070  agents: 1 idle, 2 measuring  jobs: 2 running, 1 queued  71 visits/s"
    )

    def fails() -> Any:
        raise StoreError("the disk is full")

    running.store.counts = fails
    assert serve.status_text(running) == "127.0.0.1:7070  the store fails: the disk is full"
