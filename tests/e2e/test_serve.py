"""A coordinator of many, its agents and the people who ask it: real processes on loopback, killed at any moment."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from lutbuilder import spaces
from lutbuilder.campaign.state import STORE_NAME
from lutbuilder.coordinator.store import Store
from lutbuilder.lower import lower
from lutbuilder.lut import Lut
from lutbuilder_agent.runtimes.simulated import OPTIONS, true_ns
from tests.desk import NAME, Desk
from tests.fleet import AGENT, Lab

OPS = spaces.get("proxyless").ops()
SHORT = ("--max-rounds", "12", "--precision", "0.01%", "--carriers", "0", "--runtime-option", "noise_sigma=0.003")
LONG = ("--max-rounds", "4000", *SHORT[2:])
MIDDLE = ("--max-rounds", "60", *SHORT[2:])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.clear()


def assert_true(lut: Lut, *, ops: Any = OPS) -> None:
    """The table holds the truth of every op."""
    for op in ops:
        truth_ms = (true_ns(lower(op)) - float(OPTIONS["overhead_ns"])) / 1e6
        assert lut[op].latency_ms == pytest.approx(truth_ms, rel=0.03), op.label()


def loaded(desk: Desk, name: str = NAME) -> Lut:
    return Lut.load(desk.luts / name)


def test_two_people_are_served_at_once_by_two_agents(lab: Lab) -> None:
    lab.serve()
    for name in ("one", "two"):
        lab.agent(name)
    ann, bob = lab.person("ann"), lab.person("bob")
    clients = [ann.start(*lab.asking(ann, *MIDDLE)), bob.start(*lab.asking(bob, *MIDDLE, "--bs", "2"))]

    def both_measure() -> bool:
        with lab.store() as store:
            return {lease.agent for lease in store.active_leases()} == {"one", "two"}

    lab.wait_for(both_measure)
    for desk, client, name in zip((ann, bob), clients, (NAME, "simulated/simulated-fp32-bs2"), strict=True):
        ended = desk.ended(client)
        assert ended.status == 0, ended.err
        assert ended.json["published"]
        assert ended.json["n_failed"] == 0
        theirs = lab.served / name / "v0001.parquet"
        ours = desk.luts / name / "v0001.parquet"
        assert (ended.json["lut"]["path"], ours.read_bytes()) == (str(ours), theirs.read_bytes())
        assert (ours.parent / "samples" / ours.name).is_file()
        assert "job " in ended.err
        assert "[timing]" in ended.err
    assert_true(loaded(ann))
    assert_true(loaded(bob, "simulated/simulated-fp32-bs2"), ops=spaces.get("proxyless", batch=2).ops())
    assert {(job["state"], job["lut"]) for job in lab.ask("jobs")["jobs"]} == {
        ("done", "simulated/simulated-fp32-bs2@1"),
        ("done", f"{NAME}@1"),
    }
    assert {agent["name"]: agent["state"] for agent in lab.ask("agents")["agents"]} == {"one": "idle", "two": "idle"}
    lab.visits()  # nothing was stored twice


def test_what_is_urgent_overtakes_what_was_first(lab: Lab) -> None:
    lab.serve()
    lab.agent("one")
    ann, bob = lab.person("ann"), lab.person("bob")
    slow = ann.start(*lab.asking(ann, *LONG))
    lab.wait_for(lambda: lab.rounds() >= 2)
    urgent = bob.run(*lab.asking(bob, *SHORT, "--bs", "2", "--priority", "10"))
    assert urgent.status == 0, urgent.err
    assert slow.poll() is None, "the one that was first goes on"
    jobs = {job["priority"]: job for job in lab.ask("jobs")["jobs"]}
    assert (jobs[10]["state"], jobs[0]["state"]) == ("done", "running")
    campaigns = {campaign["priority"]: campaign for campaign in lab.ask("campaigns")["campaigns"]}
    assert set(campaigns) == {0, 10}
    seen = lab.rounds()
    lab.wait_for(lambda: lab.rounds() > seen)


def test_a_cancelled_job_ends_its_client_and_frees_its_agent(lab: Lab) -> None:
    lab.serve()
    lab.agent("one")
    ann = lab.person("ann")
    client = ann.start(*lab.asking(ann, *LONG))
    lab.wait_for(lambda: lab.rounds() >= 2)
    (job,) = lab.ask("jobs", "--active")["jobs"]
    assert lab.ask("jobs", "cancel", job["job_id"])["state"] == "cancelled"
    ended = ann.ended(client)
    assert ended.status == 1
    assert f"job {job['job_id']} was cancelled" in ended.error
    lab.wait_for(lambda: lab.ask("agents")["agents"][0]["state"] == "idle")
    assert lab.ask("jobs", "--active")["jobs"] == []
    (campaign,) = lab.ask("campaigns")["campaigns"]
    assert (campaign["state"], campaign["reason"]) == ("cancelled", f"job {job['job_id']} was cancelled")
    again = ann.run(*lab.asking(ann, *SHORT))
    assert again.status == 0, again.err
    assert_true(loaded(ann))


def test_a_drained_agent_hands_its_work_over_until_it_is_resumed(lab: Lab) -> None:
    lab.serve()
    lab.agent("one")
    ann = lab.person("ann")
    ann.start(*lab.asking(ann, *LONG))
    lab.wait_for(lambda: lab.rounds() >= 2)
    assert lab.ask("agents", "drain", "one")["state"] == "drained"
    lab.wait_for(lambda: lab.ask("leases")["leases"] == [])
    seen = lab.rounds()
    lab.agent("two")
    lab.wait_for(lambda: {lease["agent"] for lease in lab.ask("leases")["leases"]} == {"two"})
    lab.wait_for(lambda: lab.rounds() > seen + 1)
    assert {agent["name"]: agent["state"] for agent in lab.ask("agents")["agents"]} == {
        "one": "drained",
        "two": "measuring",
    }
    lab.ask("agents", "resume", "one")
    lab.ask("agents", "drain", "two")
    lab.wait_for(lambda: {lease["agent"] for lease in lab.ask("leases")["leases"]} == {"one"})


def test_a_coordinator_killed_in_the_middle_and_started_again_makes_the_same_table(lab: Lab) -> None:
    server = lab.serve()
    agent = lab.agent("one")
    ann = lab.person("ann")
    client = ann.start(*lab.asking(ann, *MIDDLE, "--lease-rounds", "0"))
    lab.wait_for(lambda: lab.rounds() >= 5)
    server.kill()
    lab.ended(server)
    before = lab.visits()
    lab.serve()
    ended = ann.ended(client)
    assert ended.status == 0, ended.err
    assert "does not answer; trying again" in ended.err
    after = lab.visits()
    assert after[: len(before)] == before, "what was acknowledged stays"
    assert ended.json["rounds"] in (60, 61), (
        "a round that the agent had not handed in comes from its spool: an extra one"
    )
    lut = loaded(ann)
    assert_true(lut)
    assert all(row.n_rounds >= 57 for row in lut.rows() if row.kind != "identity")
    assert agent.poll() is None, "the agent found its coordinator again"
    (job,) = lab.ask("jobs")["jobs"]
    assert (job["state"], len(job["campaign_ids"])) == ("done", 1)


def test_told_to_end_it_puts_its_jobs_back_and_goes_on_with_them_when_it_is_started_again(lab: Lab) -> None:
    server = lab.serve()
    agent = lab.agent("one")
    ann = lab.person("ann")
    client = ann.start(*lab.asking(ann, *MIDDLE))
    lab.wait_for(lambda: lab.rounds() >= 5)
    ended = lab.terminated(server)
    assert ended.status == 0, ended.err
    assert "is put back" in ended.err
    with lab.store() as store:
        (job,) = store.jobs()
        assert (job.state, job.runner) == ("queued", "")
    assert agent.poll() is None
    local = lab.run("jobs", "--state-dir", str(lab.state), "--json").json["jobs"]
    assert [(each["state"], each["message"][:27]) for each in local] == [("queued", "the coordinator was stopped")]
    server = lab.serve()
    done = ann.ended(client)
    assert done.status == 0, done.err
    assert_true(loaded(ann))
    assert lab.processes(AGENT) == [agent.pid]
    lab.terminated(server)


def test_who_detaches_may_attach_again_and_so_may_whoever_types_the_command_again(lab: Lab) -> None:
    lab.serve()
    lab.agent("one")
    ann = lab.person("ann")
    client = ann.start(*lab.asking(ann, *MIDDLE))
    lab.wait_for(lambda: lab.rounds() >= 2)
    client.send_signal(signal.SIGINT)
    ended = ann.ended(client)
    assert ended.status == 130
    (job,) = lab.ask("jobs")["jobs"]
    assert f"detached; job {job['job_id']} goes on at {lab.address}" in ended.error
    assert f"lutbuilder jobs attach {job['job_id']} --coordinator {lab.address}" in ended.error
    killed = ann.start(*lab.asking(ann, *MIDDLE))
    lab.wait_for(lambda: lab.rounds() >= 6)
    killed.kill()
    ann.ended(killed)
    attached = ann.start(
        "jobs", "attach", job["job_id"], "--coordinator", lab.address, "--luts", str(ann.luts), "--json"
    )
    again = ann.run(*lab.asking(ann, *MIDDLE))
    assert again.status == 0, again.err
    watched = ann.ended(attached)
    assert watched.status == 0, watched.err
    assert watched.json == again.json
    assert_true(loaded(ann))
    assert [each["job_id"] for each in lab.ask("jobs")["jobs"]] == [job["job_id"]], "it was one job all the time"
    asked_anew = ann.run(*lab.asking(ann, *MIDDLE))
    assert asked_anew.status == 0, asked_anew.err
    assert len(lab.ask("jobs")["jobs"]) == 2


def test_a_table_is_calibrated_and_proved_there_and_reported_here(lab: Lab) -> None:
    lab.serve()
    lab.agent("one")
    ann = lab.person("ann")
    collected = ann.run(*lab.asking(ann, "--max-rounds", "8", "--precision", "20%"))
    assert collected.status == 0, collected.err
    where = ("--coordinator", lab.address, "--luts", str(ann.luts), "--json")
    listed = ann.folder / "networks.json"
    few = ("--random", "2", "--searched", "1", "--rounds", "8", "--save-networks", str(listed))
    proved = ann.run("validate", str(ann.luts / NAME), *few, *where)
    assert proved.status == 0, proved.err
    assert (proved.json["lut"]["version"], proved.json["report"]["table"]) == (2, f"{NAME}@1")
    body = json.loads(listed.read_text(encoding="utf-8"))
    assert [network["id"] for network in body["networks"]] == [
        network["op_id"] for network in proved.json["report"]["networks"]
    ]
    again = ann.run("validate", f"{NAME}@2", "--networks", str(listed), "--rounds", "8", *where)
    assert again.status == 0, again.err
    assert again.json["timed_before"]
    calibrated = ann.run("calibrate", NAME, "--nets", "8", "--rounds", "6", *where)
    assert calibrated.status == 0, calibrated.err
    assert len([net for net in calibrated.json["report"]["networks"] if not net["carrier"]]) == 8
    assert loaded(ann).meta.calibration is not None
    assert sorted(path.name for path in (ann.luts / NAME).glob("v*")) == [f"v000{n}.parquet" for n in (1, 2, 3, 4)]


def test_what_cannot_be_done_is_told_where_it_was_asked(lab: Lab) -> None:
    lab.serve()
    ann = lab.person("ann")
    for words, status, says in (
        (("collect", "--device", "pixle1"), 64, "unknown device 'pixle1'"),
        (("collect", "--device", "v100", "--wait", "0s"), 75, "no agent of NVIDIA V100"),
        (("validate", NAME), 66, f"no LUT '{lab.served / NAME}'"),
        (("collect", "--listen", "127.0.0.1:0"), 65, "the coordinator's own business"),
        (("jobs", "attach", "no-such-job"), 64, "no-such-job is not in"),
    ):
        ended = ann.run(*words, "--coordinator", lab.address)
        assert (ended.status, says in ended.error) == (status, True), ended.err
    alone = ann.run("collect", "--priority", "3")
    assert alone.status == 65
    assert "go with --coordinator" in alone.error


def test_it_shows_its_health_its_metrics_and_what_there_is_to_call(lab: Lab) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    server = lab.serve()
    lab.agent("one")
    ann = lab.person("ann")
    assert ann.run(*lab.asking(ann, *SHORT)).status == 0
    with grpc.insecure_channel(lab.address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "lutbuilder.v1.AgentService", "lutbuilder.v1.ControlService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"lutbuilder.v1.AgentService", "lutbuilder.v1.ControlService", "grpc.health.v1.Health"} <= set(services)
    figures = {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lab.scraped().splitlines() if line[:1] != "#")
    }
    assert figures['lutbuilder_agents{state="idle"}'] == 1
    assert figures['lutbuilder_jobs{state="done"}'] == 1
    assert figures['lutbuilder_campaigns{state="done"}'] == 1
    assert figures['lutbuilder_reports_total{late="false"}'] == 12
    assert figures["lutbuilder_commit_seconds_count"] == 12
    assert figures["lutbuilder_visits_total"] == len(lab.visits())
    assert figures['lutbuilder_op_failures_total{reason="crashed"}'] == 0
    assert figures["lutbuilder_leases"] == 0
    assert figures["lutbuilder_leases_granted_total"] >= 1
    assert figures["lutbuilder_store_errors_total"] == 0
    assert figures["lutbuilder_store_up"] == 1
    lab.terminated(server)


def test_a_state_folder_has_one_coordinator(lab: Lab) -> None:
    lab.serve()
    second = lab.run_alone("serve", "--listen", "127.0.0.1:0", "--metrics", "off", "--state-dir", str(lab.state))
    assert second.status == 74
    assert "another lutbuilder serve uses" in second.error


def test_the_store_of_a_coordinator_that_is_down_can_be_looked_at_and_set_right(lab: Lab) -> None:
    server = lab.serve()
    lab.agent("one")
    ann = lab.person("ann")
    client = ann.start(*lab.asking(ann, *LONG))
    lab.wait_for(lambda: lab.rounds() >= 2)
    server.kill()
    lab.ended(server)
    client.kill()

    def local(*words: str) -> Any:
        ended = lab.run(*words, "--state-dir", str(lab.state), "--json")
        assert ended.status == 0, ended.err
        return ended.json

    (lease,) = local("leases")["leases"]
    assert lease["agent"] == "one"
    (agent,) = local("agents")["agents"]
    assert (agent["state"], agent["lease_id"]) == ("measuring", lease["lease_id"])
    assert local("agents", "drain", "one")["state"] == "drained"
    (campaign,) = local("campaigns", "--active")["campaigns"]
    assert campaign["rounds"] == lab.rounds()
    (job,) = local("jobs", "--active")["jobs"]
    assert local("jobs", "cancel", job["job_id"])["state"] == "cancelled"
    assert local("campaigns", "show", campaign["campaign_id"])["state"] == "cancelled"
    lab.serve()
    assert {each["name"]: each["state"] for each in lab.ask("agents")["agents"]} == {"one": "drained"}
    with Store.open(lab.state / STORE_NAME) as store:
        assert store.active_leases() == ()
