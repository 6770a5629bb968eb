"""What a coordinator does for people: the same claims on a store alone, with a coordinator, and over gRPC."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.campaign.job import JobSpec
from lutbuilder.campaign.request import CollectRequest
from lutbuilder.control.api import FETCH_BYTES, PAGE_ITEMS, ControlApi, everything
from lutbuilder.control.client import ControlClient
from lutbuilder.control.control import Changes, Control
from lutbuilder.control.order import Order
from lutbuilder.control.servicer import add_to_server
from lutbuilder.coordinator.artifacts import ArtifactShelf, build_artifact
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.service import Coordinator, serve
from lutbuilder.coordinator.store import Store
from lutbuilder.lut import Lut, publish, write_samples
from lutbuilder_agent.errors import LutNotFound, SpecError, UnknownName, Unreachable, WireError
from lutbuilder_agent.graph import LayerGraph
from lutbuilder_agent.records import Failure, Format, Lease
from tests.lut_examples import example_meta, example_row
from tests.store_examples import HELLO, OPS, SPEC, grant, raw, report, session

DEPLOYMENTS = ["store", "coordinator", "loopback_grpc"]
RUNNER = "c0ffee"


def job_spec(*, owner: str = "ann", priority: int = 0, seed: int = 0) -> JobSpec:
    order = Order(request=CollectRequest(seed=seed))
    return JobSpec(kind="collect", request=order.to_json(), priority=priority, owner=owner)


@dataclass
class Bench:
    """A control in one deployment, and the store below it."""

    deployment: str
    folder: Path
    store: Store
    api: ControlApi
    changes: Changes
    _closing: list[Callable[[], Any]] = field(default_factory=list)

    @classmethod
    def open(cls, deployment: str, folder: Path) -> Bench:
        store = Store.open(folder / "campaigns.sqlite")
        store.create_campaign(SPEC, now_s=1.0)
        changes, closing = Changes(), [store.close]
        coordinator = None
        if deployment != "store":
            coordinator = Coordinator(
                store, ArtifactShelf(), lambda campaign_id, report: Decision(), coordinator_id=RUNNER
            )
        control = Control(store, coordinator=coordinator, luts=folder / "luts", changes=changes)
        bench = cls(deployment, folder, store, control, changes, closing)
        if deployment == "loopback_grpc":
            assert coordinator is not None
            server = serve(coordinator, services=(lambda each: add_to_server(control, each),))
            client = ControlClient(server.address)
            closing[:0] = [client.close, server.stop]
            bench.api = client
        return bench

    def close(self) -> None:
        for each in self._closing:
            each()

    def table(self, *, rows: int = 3) -> Lut:
        """Publish a table."""
        meta = example_meta(device="phone", runtime="litert")
        lut = publish([example_row(op.ops[0]) for op in OPS[:rows]], meta, folder=self.folder / "luts")
        return lut


@pytest.fixture(params=DEPLOYMENTS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench.open(request.param, tmp_path)
    yield made
    made.close()


# --- jobs


def test_a_job_is_queued_and_the_same_id_again_changes_nothing(bench: Bench) -> None:
    first = bench.api.submit(job_spec(priority=7), job_id="job-1")
    assert (first.phase, first.kind, first.owner, first.priority) == ("queued", "collect", "ann", 7)
    assert first.title == "proxyless on cpu, batch 1"
    assert bench.api.submit(job_spec(priority=7), job_id="job-1") == first
    with pytest.raises(SpecError, match="asks for something else"):
        bench.api.submit(job_spec(seed=5), job_id="job-1")
    assert [job.job_id for job in bench.api.jobs().items] == ["job-1"]


def test_who_types_the_same_command_again_gets_the_job_that_is_not_over(bench: Bench) -> None:
    bench.api.submit(job_spec(), job_id="job-1")
    assert bench.api.submit(job_spec(), job_id="job-2").job_id == "job-1"
    assert bench.api.submit(job_spec(owner="bob"), job_id="job-3").job_id == "job-3"
    assert bench.api.submit(job_spec(seed=1), job_id="job-4").job_id == "job-4"
    bench.api.cancel_job("job-1")
    assert bench.api.submit(job_spec(), job_id="job-5").job_id == "job-5"


@pytest.mark.parametrize("job_id", ["", "UPPER", "../../etc", "x" * 100])
def test_an_id_that_is_no_plain_word_is_refused(bench: Bench, job_id: str) -> None:
    with pytest.raises(SpecError, match="not the id of a job"):
        bench.api.submit(job_spec(), job_id=job_id)


def test_a_request_that_nobody_can_run_is_refused_at_once(bench: Bench) -> None:
    with pytest.raises(SpecError, match="no field"):
        bench.api.submit(JobSpec(kind="collect", request='{"request": {"colour": "red"}}'), job_id="job-1")
    assert bench.api.jobs().items == ()


def test_a_watch_tells_at_once_and_then_waits_for_what_changes(bench: Bench) -> None:
    bench.api.submit(job_spec(), job_id="job-1")
    first = bench.api.watch("job-1", wait_s=30.0)
    assert first.job.phase == "queued"
    assert bench.api.watch("job-1", seen=first.seen, wait_s=0.0) == first

    def run() -> None:
        bench.store.claim_job(RUNNER, now_s=2.0)
        bench.store.update_job("job-1", runner=RUNNER, now_s=2.0, message="it begins")
        bench.changes.tell()

    runner = threading.Timer(0.05, run)
    runner.start()
    second = bench.api.watch("job-1", seen=first.seen, wait_s=30.0)
    runner.join()
    assert second.job.phase == "running"
    assert second.seen != first.seen


def test_a_watch_sees_what_another_coordinator_writes(bench: Bench) -> None:
    bench.api.submit(job_spec(), job_id="job-1")
    seen = bench.api.watch("job-1").seen
    with Store.open(bench.folder / "campaigns.sqlite") as other:
        other.claim_job("another", now_s=2.0)
        assert bench.api.watch("job-1", seen=seen, wait_s=30.0).job.runner == "another"


def test_a_job_that_is_over_is_not_waited_for(bench: Bench) -> None:
    bench.api.submit(job_spec(), job_id="job-1")
    bench.api.cancel_job("job-1")
    seen = bench.api.watch("job-1").seen
    began_s = time.monotonic()
    assert bench.api.watch("job-1", seen=seen, wait_s=30.0).job.phase == "cancelled"
    assert time.monotonic() - began_s < 20


def test_a_job_that_is_not_there_is_unknown(bench: Bench) -> None:
    for call in (bench.api.watch, bench.api.cancel_job):
        with pytest.raises(UnknownName, match="job-9"):
            call("job-9")


def test_a_cancelled_job_takes_along_the_campaigns_that_nobody_else_wants(bench: Bench) -> None:
    for number in (1, 2):
        bench.api.submit(job_spec(seed=number), job_id=f"job-{number}")
        bench.store.claim_job(RUNNER, now_s=2.0, besides=("job-1",))
        bench.store.update_job(f"job-{number}", runner=RUNNER, now_s=2.0, campaign_ids=[SPEC.key])
    assert bench.api.cancel_job("job-1").phase == "cancelled"
    assert bench.store.campaign(SPEC.key).state == "active"
    bench.api.cancel_job("job-2")
    campaign = bench.store.campaign(SPEC.key)
    assert (campaign.state, campaign.reason) == ("cancelled", "job job-2 was cancelled")
    assert bench.api.cancel_job("job-2").phase == "cancelled"


def test_lists_come_in_pages_and_whole(bench: Bench) -> None:
    for number in range(2 * PAGE_ITEMS + 3):
        bench.store.submit_job(job_spec(seed=number), job_id=f"job-{number:03}", now_s=float(number))
    bench.api.cancel_job("job-000")
    ids = [job.job_id for job in everything(lambda after: bench.api.jobs(after=after))]
    assert ids == [f"job-{number:03}" for number in reversed(range(2 * PAGE_ITEMS + 3))]
    assert len(everything(lambda after: bench.api.jobs(active_only=True, after=after))) == 2 * PAGE_ITEMS + 2
    with pytest.raises(SpecError, match="not a page"):
        bench.api.jobs(after="-1")


# --- agents


def test_agents_are_listed_with_what_runs_there(bench: Bench) -> None:
    session(bench.store, "s1")
    session(bench.store, "s2", name="bob")
    agents = everything(lambda after: bench.api.agents(after=after))
    assert [agent.name for agent in agents] == ["alice", "bob"]
    alice = agents[0]
    assert (alice.device, alice.session_id, alice.agent_version) == ("toy", "s1", "1.2")
    assert [(each.name, each.available, each.reason) for each in alice.runtimes] == [
        ("simulated", True, ""),
        ("torch", False, "no"),
    ]
    assert alice.phase == ("unknown" if bench.deployment == "store" else "silent")


def test_a_drained_agent_is_shown_so_until_it_is_resumed(bench: Bench) -> None:
    session(bench.store, "s1")
    assert bench.api.drain("alice", True).phase == "drained"
    assert bench.store.agent_flags()["alice"].drained
    assert bench.api.drain("alice", True).phase == "drained"
    assert bench.api.drain("alice", False).phase != "drained"
    assert not bench.store.agent_flags()


def test_a_sick_agent_is_shown_with_the_reason_until_it_is_released(bench: Bench) -> None:
    session(bench.store, "s1")
    bench.store.set_agent("alice", quarantined="3 ops in a row")
    if bench.deployment != "store":
        bench.api.drain("alice", False)  # the coordinator reads flags now and then: this makes it now
    (alice,) = bench.api.agents().items
    assert (alice.phase, alice.reason) == ("quarantined", "3 ops in a row")
    bench.api.release_agent("alice")
    assert not bench.store.agent_flags()


def test_an_agent_that_never_came_is_unknown(bench: Bench) -> None:
    for call in (lambda: bench.api.drain("eve", True), lambda: bench.api.release_agent("eve")):
        with pytest.raises(UnknownName, match="eve"):
            call()


# --- campaigns and leases


def failing(store: Store) -> str:
    """Let an op fail so often that it is given up; return its id."""
    session(store, "s1")
    assert grant(store) is not None
    op_id = OPS[0].op_id
    for number in range(3):
        failure = Failure(op_id=op_id, round=number, reason="crashed", detail="boom")
        store.commit_report(report(number, timings=(), failures=(failure,)), now_s=2.0)
    return op_id


def test_a_campaign_is_shown_with_what_failed_and_an_op_can_be_tried_again(bench: Bench) -> None:
    op_id = failing(bench.store)
    (listed,) = bench.api.campaigns(active_only=True).items
    assert (listed.n_failed, listed.failures, listed.rounds, listed.agents) == (1, (), 3, ("alice",))
    (shown,) = bench.api.campaigns(campaign_id=SPEC.key).items
    (failure,) = shown.failures
    assert (failure.op_id, failure.reason, failure.detail, failure.attempts) == (op_id, "crashed", "boom", 3)
    assert (failure.agents, failure.final, failure.label) == (("alice",), True, OPS[0].ops[0].label())
    bench.api.release_op(SPEC.key, op_id)
    (shown,) = bench.api.campaigns(campaign_id=SPEC.key).items
    assert shown.n_failed == 0


def test_what_is_no_campaign_or_failed_op_is_unknown(bench: Bench) -> None:
    for call in (
        lambda: bench.api.campaigns(campaign_id="nope"),
        lambda: bench.api.cancel_campaign("nope", "why"),
        lambda: bench.api.release_op("nope", "op"),
        lambda: bench.api.release_op(SPEC.key, OPS[1].op_id),
    ):
        with pytest.raises(UnknownName):
            call()


def test_a_cancelled_campaign_keeps_what_was_measured_and_its_first_reason(bench: Bench) -> None:
    session(bench.store, "s1")
    assert grant(bench.store) is not None
    bench.store.commit_report(report(), now_s=2.0)
    campaign = bench.api.cancel_campaign(SPEC.key, "wrong device")
    assert (campaign.phase, campaign.reason, campaign.rounds) == ("cancelled", "wrong device", 1)
    assert len(raw(bench.store)) == 4
    assert bench.api.leases().items == ()
    assert bench.api.cancel_campaign(SPEC.key, "again").reason == "wrong device"
    assert bench.api.campaigns(active_only=True).items == ()


def test_a_lease_that_is_being_made_ready_is_listed_without_an_end(tmp_path: Path) -> None:
    seen: list[float | None] = []

    def build(graph: LayerGraph, format: Format) -> bytes:
        seen.extend(lease.expires_in_s for lease in client.leases().items)
        return build_artifact(graph, format)

    store = Store.open(tmp_path / "campaigns.sqlite")
    store.create_campaign(SPEC, now_s=1.0)
    coordinator = Coordinator(store, ArtifactShelf(build=build), lambda campaign_id, report: Decision())
    coordinator.offer(SPEC.key)
    control = Control(store, coordinator=coordinator)
    server = serve(coordinator, services=(lambda each: add_to_server(control, each),))
    with contextlib.closing(ControlClient(server.address)) as client:
        assert isinstance(coordinator.lease(coordinator.register(HELLO).session_id, "ok", 0.0), Lease)
        (lease,) = client.leases().items
    server.stop()
    store.close()
    assert seen
    assert set(seen) == {None}
    assert lease.expires_in_s is not None
    assert 0.0 < lease.expires_in_s <= coordinator.ttl_s


def test_leases_are_listed_with_who_holds_them(bench: Bench) -> None:
    session(bench.store, "s1")
    assert grant(bench.store, owner=RUNNER) is not None
    (lease,) = bench.api.leases().items
    assert (lease.lease_id, lease.agent, lease.campaign_id) == ("l1", "alice", SPEC.key)
    assert (lease.first_round, lease.rounds, lease.owner, lease.granted_s) == (0, 100, RUNNER, 2.0)
    (alice,) = bench.api.agents().items
    assert alice.lease_id == "l1"


# --- tables


def fetched(api: ControlApi, name: str, version: int, part: Any) -> bytes:
    raw = b""
    while True:
        piece = api.fetch_lut(name, version, part, len(raw))
        assert piece.offset == len(raw)
        assert len(piece.chunk) <= FETCH_BYTES
        raw += piece.chunk
        if len(raw) >= piece.size_bytes:
            assert hashlib.sha256(raw).hexdigest() == piece.sha256
            return raw


def test_a_table_comes_in_pieces_that_make_the_file(bench: Bench) -> None:
    lut = bench.table()
    big = lut.path.parent / "samples" / lut.path.name
    big.parent.mkdir()
    big.write_bytes(bytes(range(256)) * 1500)
    assert fetched(bench.api, lut.name, 1, "table") == lut.path.read_bytes()
    assert fetched(bench.api, lut.name, 0, "table") == lut.path.read_bytes()
    assert fetched(bench.api, lut.name, 1, "samples") == big.read_bytes()
    assert bench.api.fetch_lut(lut.name, 1, "samples", 1 << 40).chunk == b""


def test_samples_of_a_table_are_sent_as_they_were_written(bench: Bench) -> None:
    lut = bench.table()
    write_samples(iter(()), lut=lut)
    there = lut.path.parent / "samples" / lut.path.name
    assert fetched(bench.api, lut.name, 1, "samples") == there.read_bytes()


def test_what_is_no_table_is_not_found_and_no_name_leads_out_of_the_folder(bench: Bench) -> None:
    lut = bench.table()
    (bench.folder / "secret").write_text("x", encoding="utf-8")
    for name, version in ((lut.name, 9), ("phone/nothing", 0)):
        with pytest.raises(LutNotFound):
            bench.api.fetch_lut(name, version, "table", 0)
    with pytest.raises(LutNotFound, match="no samples of"):
        bench.api.fetch_lut(lut.name, 1, "samples", 0)
    for name in ("../secret", "/etc/passwd", str(lut.path), "a/../../b", f"{lut.name}@1/x", ""):
        with pytest.raises(SpecError, match="not the name of a table"):
            bench.api.fetch_lut(name, 0, "table", 0)


def test_a_store_alone_has_no_tables(tmp_path: Path) -> None:
    with Store.open(tmp_path / "campaigns.sqlite") as store, pytest.raises(SpecError, match="ask the coordinator"):
        Control(store).fetch_lut("a/b", 0, "table", 0)


# --- over the wire alone


def test_a_release_names_an_agent_or_an_op(tmp_path: Path) -> None:
    from lutbuilder.control import control_pb2 as pb

    bench = Bench.open("loopback_grpc", tmp_path)
    try:
        client: Any = bench.api
        for request in (
            pb.ReleaseQuarantineRequest(),
            pb.ReleaseQuarantineRequest(agent="a", campaign_id="c", op_id="o"),
            pb.ReleaseQuarantineRequest(campaign_id="c"),
        ):
            with pytest.raises(WireError, match="an agent, or an op"):
                client._call(client._stub.ReleaseQuarantine, request)
    finally:
        bench.close()


def test_nobody_at_the_address_is_unreachable_and_says_what_to_type(tmp_path: Path) -> None:
    with (
        ControlClient("127.0.0.1:1", deadline_s=5.0) as client,
        pytest.raises(Unreachable, match=r"lutbuilder serve.*--coordinator HOST:PORT") as told,
    ):
        client.jobs()
    assert "lutbuilder-agent" not in str(told.value)
