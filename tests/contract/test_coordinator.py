"""What every deployment of a coordinator keeps: the same claims in process and over gRPC on loopback."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.campaign.spec import ALL_BATCHES, CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer
from lutbuilder.coordinator.service import Coordinator, Event, RunningServer, serve
from lutbuilder.coordinator.service.fleet import SILENT_S
from lutbuilder.coordinator.store import Store
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import (
    PortInUse,
    ProtocolMismatch,
    SpecError,
    StaleLease,
    StoreError,
    UnknownName,
    UnknownSession,
    Unreachable,
    WireError,
)
from lutbuilder_agent.graph import LayerGraph
from lutbuilder_agent.records import (
    PROTOCOL_VERSION,
    AgentHello,
    Conditions,
    Failure,
    Fingerprint,
    Lease,
    Plan,
    Report,
    ReportAck,
    RuntimeReport,
    Timing,
)
from lutbuilder_agent.wire.api import CHUNK_BYTES, AgentApi, Idle
from lutbuilder_agent.wire.client import CoordinatorClient

TTL_S = 30.0
BIG_BYTES = 2 * CHUNK_BYTES + 1000
FINGERPRINT = Fingerprint(device="toy", facts=(("cpu.model", "toy"),))
HELLO = AgentHello(
    name="alice", agent_version="1", fingerprint=FINGERPRINT, runtimes=(RuntimeReport(name="simulated", version="1"),)
)


def _op(channels: int, *, batch: int = 0, se: bool = False) -> CampaignOp:
    spec = OpSpec(kind="conv", in_channels=channels, out_channels=channels, height=8, width=8, se=se)
    return CampaignOp.of(spec, batch=batch)


OPS = (_op(1), _op(2), _op(3, batch=ALL_BATCHES))
SPEC = CampaignSpec(
    space="toy",
    target=Target(device="toy", runtime="simulated"),
    plan=Plan(runtime="simulated"),
    env_id=FINGERPRINT.env_id,
    runtime_version="1",
    ops=OPS,
    budget_s=10,
    precision=0.01,
    max_rounds=5,
)


def _build(graph: LayerGraph, format: str) -> bytes:
    """A fake artifact: its graph, padded beyond two chunks."""
    return graph.to_bytes().ljust(BIG_BYTES, b".")


@dataclass
class Bench:
    """A coordinator in one deployment, with everything its test holds in its hands: the clock and the decisions."""

    deployment: str
    folder: Path
    now_s: float = 1000.0
    decide: Callable[[str, Report], Decision] = lambda campaign_id, report: Decision()
    narrow: Callable[[HeldLease, Offer], Offer] = lambda lease, offer: offer
    decided: list[Report] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    _closing: list[Callable[[], None]] = field(default_factory=list)

    def start(self, *, spec: CampaignSpec | None = SPEC, name: str = "campaigns.sqlite") -> None:
        """Start a coordinator, after `stop` another one on the same store."""
        self.store = Store.open(self.folder / name)
        self.coordinator = Coordinator(
            self.store,
            ArtifactShelf(build=_build),
            self._decide,
            narrow=lambda lease, offer: self.narrow(lease, offer),
            clock=lambda: self.now_s,
            wall_clock=lambda: self.now_s,
            ttl_s=TTL_S,
        )
        self.coordinator.on_event.append(self.events.append)
        self._closing.append(self.store.close)
        if spec is not None:
            self.coordinator.offer(self.store.create_campaign(spec, now_s=self.now_s))
        self.api: AgentApi = self.coordinator
        if self.deployment == "loopback_grpc":
            server = serve(self.coordinator)
            client = CoordinatorClient(server.address)
            self._closing += [lambda: server.stop(0.2), client.close]
            self.api = client

    def stop(self) -> None:
        """End it; a coordinator writes nothing on its way out, so for the store this is as abrupt as a kill."""
        while self._closing:
            self._closing.pop()()

    def join(self, name: str = "alice") -> tuple[str, Lease]:
        """Register an agent and let it lease."""
        session_id = self.api.register(replace(HELLO, name=name)).session_id
        return session_id, self.lease(session_id)

    def lease(self, session_id: str) -> Lease:
        answer = self.api.lease(session_id, "ok", 0.0)
        assert isinstance(answer, Lease)
        return answer

    def visits(self) -> list[Timing]:
        return [visit.timing for visit in self.store.raw_visits([SPEC.key])]

    def _decide(self, campaign_id: str, report: Report) -> Decision:
        assert campaign_id == report.campaign_id
        self.decided.append(report)
        return self.decide(campaign_id, report)


@pytest.fixture(params=["in_process", "loopback_grpc"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(deployment=request.param, folder=tmp_path)
    made.start()
    yield made
    made.stop()


def _report(session_id: str, lease: Lease, round: int | None = None, **changes: Any) -> Report:
    number = lease.first_round if round is None else round
    timings = tuple(
        Timing(
            op_id=op.op_id, round=number, order=place, instance=0, start_ns=place, warmup_ns=(9,), samples_ns=(5, 6, 7)
        )
        for place, op in enumerate(lease.ops)
    )
    report = Report(
        report_id=f"{session_id[:8]}-{number}",
        session_id=session_id,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        campaign_id=lease.campaign_id,
        round=number,
        timings=timings,
        before=Conditions(monotonic_ns=1, load_1min=0.1),
        round_ns=100,
        timed_ns=90,
    )
    return replace(report, **changes)


# --- sessions


def test_an_agent_of_another_protocol_is_told_what_to_upgrade(bench: Bench) -> None:
    with pytest.raises(ProtocolMismatch, match="upgrade the coordinator: pip install -U lutbuilder"):
        bench.api.register(replace(HELLO, protocol_min=PROTOCOL_VERSION + 1, protocol_max=PROTOCOL_VERSION + 2))
    session = bench.api.register(replace(HELLO, protocol_min=1, protocol_max=PROTOCOL_VERSION + 9))
    assert session.protocol == PROTOCOL_VERSION
    assert bench.api.register(replace(HELLO, protocol_min=1, protocol_max=1)).protocol == 1


def test_a_session_nobody_knows_has_to_register(bench: Bench) -> None:
    for call in (
        lambda: bench.api.lease("nobody", "ok", 0.0),
        lambda: bench.api.heartbeat("nobody", "", 0.0),
        lambda: list(bench.api.fetch("nobody", "0" * 64, 0)),
        lambda: bench.api.report(_report("nobody", bench.join()[1])),
    ):
        with pytest.raises(UnknownSession, match="register"):
            call()


def test_a_new_session_of_a_name_takes_the_lease_of_the_old_one_at_once(bench: Bench) -> None:
    old, old_lease = bench.join()
    new, new_lease = bench.join()
    assert new != old
    assert new_lease.epoch > old_lease.epoch
    assert [op.op_id for op in new_lease.ops] == [op.op_id for op in old_lease.ops]
    with pytest.raises(StaleLease, match="newer agent named alice"):
        bench.api.lease(old, "ok", 0.0)
    with pytest.raises(StaleLease):
        bench.api.heartbeat(old, old_lease.lease_id, 0.0)


def test_a_fenced_session_still_hands_in_what_it_measured(bench: Bench) -> None:
    old, old_lease = bench.join()
    _, new_lease = bench.join()
    ack = bench.api.report(_report(old, old_lease))
    assert ack.stop
    assert len(bench.visits()) == 3
    assert bench.decided == []
    assert not bench.api.heartbeat(bench.store.agents()[0].session_id, new_lease.lease_id, 0.0)


# --- leases


def test_a_lease_names_every_op_of_its_batch_the_plan_and_the_artifacts(bench: Bench) -> None:
    session_id, lease = bench.join()
    assert [op.op_id for op in lease.ops] == [op.op_id for op in OPS]
    assert (lease.plan, lease.first_round, lease.rounds, lease.ttl_s) == (SPEC.plan, 0, 5, TTL_S)
    for op in lease.ops:
        chunks = list(bench.api.fetch(session_id, op.artifact.sha256, 0))
        assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, CHUNK_BYTES, 1000]
        raw = b"".join(chunks)
        assert (hashlib.sha256(raw).hexdigest(), len(raw)) == (op.artifact.sha256, op.artifact.size_bytes)


@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES, BIG_BYTES - 1, BIG_BYTES])
def test_a_download_resumes_at_any_offset(bench: Bench, offset: int) -> None:
    session_id, lease = bench.join()
    sha256 = lease.ops[0].artifact.sha256
    whole = b"".join(bench.api.fetch(session_id, sha256, 0))
    assert b"".join(bench.api.fetch(session_id, sha256, offset)) == whole[offset:]


def test_a_download_of_nothing_we_have_is_refused(bench: Bench) -> None:
    session_id, lease = bench.join()
    with pytest.raises(UnknownName, match="ask for a lease again"):
        list(bench.api.fetch(session_id, "0" * 64, 0))
    with pytest.raises(WireError, match="behind the end"):
        list(bench.api.fetch(session_id, lease.ops[0].artifact.sha256, BIG_BYTES + 1))


def test_a_session_that_asks_again_gets_the_lease_it_has(bench: Bench) -> None:
    session_id, lease = bench.join()
    assert bench.lease(session_id) == lease
    bench.api.report(_report(session_id, lease))
    again = bench.lease(session_id)
    assert (again.lease_id, again.epoch, again.first_round, again.rounds) == (lease.lease_id, lease.epoch, 1, 4)


def test_a_second_agent_waits_while_the_only_batch_is_leased(bench: Bench) -> None:
    bench.join("alice")
    bob = bench.api.register(replace(HELLO, name="bob")).session_id
    answer = bench.api.lease(bob, "ok", 0.0)
    assert isinstance(answer, Idle)
    assert answer.ask_again_s > 0
    assert not answer.shut_down


def test_two_agents_measure_two_batches_with_shared_sentinels(bench: Bench) -> None:
    bench.stop()
    spec = replace(SPEC, ops=(*OPS, _op(4, batch=1)))
    bench.start(spec=spec)
    _, first = bench.join("alice")
    _, second = bench.join("bob")
    assert {op.op_id for op in first.ops} & {op.op_id for op in second.ops} == {OPS[2].op_id}
    assert {op.op_id for op in first.ops} | {op.op_id for op in second.ops} == {op.op_id for op in spec.ops}


def test_another_device_gets_no_lease(bench: Bench) -> None:
    stranger = replace(HELLO, fingerprint=Fingerprint(device="toy", facts=(("cpu.model", "another"),)))
    assert isinstance(bench.api.lease(bench.api.register(stranger).session_id, "ok", 0.0), Idle)
    no_runtime = replace(HELLO, runtimes=(RuntimeReport(name="simulated", available=False, reason="signal 11"),))
    assert isinstance(bench.api.lease(bench.api.register(no_runtime).session_id, "ok", 0.0), Idle)


def test_a_lease_that_expires_goes_to_the_next_agent(bench: Bench) -> None:
    _, lost = bench.join("alice")
    bench.now_s += TTL_S
    bob, lease = bench.join("bob")
    assert lease.epoch > lost.epoch
    assert lease.lease_id != lost.lease_id
    assert [event.agent for event in bench.events if event.kind == "lost"] == ["alice"]
    assert not bench.api.heartbeat(bob, lease.lease_id, 0.0)


def test_a_late_report_becomes_extra_visits_and_a_stop(bench: Bench) -> None:
    alice, lost = bench.join("alice")
    bench.now_s += TTL_S
    ack = bench.api.report(_report(alice, lost))
    assert ack == ReportAck(report_id=ack.report_id, stop=True)
    assert len(bench.visits()) == 3
    assert bench.decided == []
    assert bench.api.heartbeat(alice, lost.lease_id, 0.0)


@pytest.mark.parametrize("means", ["report", "heartbeat", "fetch"])
def test_whatever_an_agent_does_extends_its_lease(bench: Bench, means: str) -> None:
    session_id, lease = bench.join()
    for number in range(3):
        bench.now_s += TTL_S - 1
        if means == "report":
            assert not bench.api.report(_report(session_id, lease, number)).stop
        elif means == "heartbeat":
            assert not bench.api.heartbeat(session_id, lease.lease_id, 0.0)
        else:
            assert list(bench.api.fetch(session_id, lease.ops[0].artifact.sha256, 0))
    assert not bench.api.heartbeat(session_id, lease.lease_id, 0.0)


def test_an_announced_silence_is_not_taken_for_death(bench: Bench) -> None:
    session_id, lease = bench.join()
    assert not bench.api.heartbeat(session_id, lease.lease_id, 100.0)
    bench.now_s += TTL_S + 99
    assert not bench.api.heartbeat(session_id, lease.lease_id, 0.0)
    bench.now_s += TTL_S
    assert bench.api.heartbeat(session_id, lease.lease_id, 0.0)


@pytest.mark.parametrize("state", ["hot", "low_battery", "draining"])
def test_a_device_that_cannot_measure_gives_its_lease_back(bench: Bench, state: Any) -> None:
    alice, lease = bench.join("alice")
    answer = bench.api.lease(alice, state, 0.0)
    assert isinstance(answer, Idle)
    assert answer.ask_again_s > 1
    assert bench.api.heartbeat(alice, lease.lease_id, 0.0)
    bench.join("bob")


def test_a_cancelled_campaign_is_told_at_the_next_heartbeat(bench: Bench) -> None:
    session_id, lease = bench.join()
    bench.coordinator.finish(SPEC.key, "the user said so", state="cancelled")
    assert bench.api.heartbeat(session_id, lease.lease_id, 0.0)
    assert bench.api.report(_report(session_id, lease)).stop
    assert len(bench.visits()) == 3
    assert isinstance(bench.api.lease(session_id, "ok", 0.0), Idle)


# --- long-poll


def _later(action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(0.05, action)
    timer.start()
    return timer


def test_a_waiting_agent_gets_the_campaign_that_is_offered_meanwhile(bench: Bench) -> None:
    bench.stop()
    bench.start(spec=None)
    session_id = bench.api.register(HELLO).session_id
    campaign_id = bench.store.create_campaign(SPEC, now_s=1.0)
    timer = _later(lambda: bench.coordinator.offer(campaign_id))
    answer = bench.api.lease(session_id, "ok", 20.0)
    timer.join()
    assert isinstance(answer, Lease)


def test_a_waiting_agent_is_told_to_end(bench: Bench) -> None:
    bench.join("alice")
    bob = bench.api.register(replace(HELLO, name="bob")).session_id
    timer = _later(bench.coordinator.shut_down)
    answer = bench.api.lease(bob, "ok", 20.0)
    timer.join()
    assert isinstance(answer, Idle)
    assert answer.shut_down


def test_after_shut_down_reports_are_still_taken(bench: Bench) -> None:
    session_id, lease = bench.join()
    bench.coordinator.shut_down()
    bench.api.report(_report(session_id, lease))
    assert len(bench.visits()) == 3


def test_more_waiting_agents_than_threads_are_asked_to_come_back(bench: Bench) -> None:
    bench.coordinator.max_waiting = 0
    bench.join("alice")
    bob = bench.api.register(replace(HELLO, name="bob")).session_id
    answer = bench.api.lease(bob, "ok", 20.0)
    assert isinstance(answer, Idle)
    assert answer.ask_again_s > 0


# --- reports


def test_a_report_is_in_the_store_before_it_is_decided_and_decided_before_it_is_acknowledged(bench: Bench) -> None:
    seen: list[int] = []

    def decide(campaign_id: str, report: Report) -> Decision:
        seen.append(len(bench.store.visits([campaign_id])))
        return Decision(drop=(OPS[0].op_id,))

    bench.decide = decide
    session_id, lease = bench.join()
    ack = bench.api.report(_report(session_id, lease))
    assert seen == [3]
    assert (ack.drop, ack.stop) == ((OPS[0].op_id,), False)
    assert bench.visits() == list(_report(session_id, lease).timings)
    assert [op.op_id for op in bench.lease(session_id).ops] == [OPS[1].op_id, OPS[2].op_id]


def test_a_second_report_changes_nothing_and_gets_the_same_answer(bench: Bench) -> None:
    bench.decide = lambda campaign_id, report: Decision(drop=(OPS[0].op_id,))
    session_id, lease = bench.join()
    first = bench.api.report(_report(session_id, lease))
    assert bench.api.report(_report(session_id, lease)) == first
    assert len(bench.decided) == 1
    assert len(bench.visits()) == 3
    assert bench.store.campaign(SPEC.key).rounds == 1


def test_a_report_committed_before_a_crash_but_not_decided_is_decided_when_it_comes_again(bench: Bench) -> None:
    session_id, lease = bench.join()
    bench.store.commit_report(_report(session_id, lease), now_s=1.0)
    bench.decide = lambda campaign_id, report: Decision(drop=(OPS[0].op_id,))
    assert bench.api.report(_report(session_id, lease)).drop == (OPS[0].op_id,)
    assert len(bench.visits()) == 3


def test_a_stop_ends_the_batch_and_with_the_last_batch_the_campaign(bench: Bench) -> None:
    bench.decide = lambda campaign_id, report: Decision(stop=report.round == 1, reason="precision")
    session_id, lease = bench.join()
    assert not bench.api.report(_report(session_id, lease, 0)).stop
    assert bench.api.report(_report(session_id, lease, 1)).stop
    state = bench.store.campaign(SPEC.key)
    assert (state.state, state.reason, state.rounds) == ("done", "precision", 2)
    assert isinstance(bench.api.lease(session_id, "ok", 0.0), Idle)
    assert bench.api.report(_report(session_id, lease, 1)).stop  # the acknowledgement was lost, say
    assert bench.api.report(_report(session_id, lease, 2)).stop  # measured before it arrived
    assert len(bench.visits()) == 9


def test_the_last_round_ends_the_batch(bench: Bench) -> None:
    session_id, lease = bench.join()
    stops = [bench.api.report(_report(session_id, lease, number)).stop for number in range(5)]
    assert stops == [False, False, False, False, True]
    assert bench.store.campaign(SPEC.key).reason == "max_rounds"


def test_a_batch_that_is_not_done_is_leased_anew_after_every_phase(bench: Bench) -> None:
    bench.stop()
    spec = replace(SPEC, lease_rounds=2)
    bench.start(spec=spec)
    session_id = bench.api.register(HELLO).session_id
    seen = []
    for _ in range(3):
        lease = bench.lease(session_id)
        last = lease.first_round + lease.rounds - 1
        stops = [bench.api.report(_report(session_id, lease, n)).stop for n in range(lease.first_round, last + 1)]
        seen.append((lease.lease_id, lease.first_round, lease.rounds, stops, len(lease.ops)))
    assert len({lease_id for lease_id, *_ in seen}) == 3
    assert [phase for _, *phase in seen] == [[0, 2, [False, True], 3], [2, 2, [False, True], 3], [4, 1, [True], 3]]
    state = bench.store.campaign(spec.key)
    assert (state.state, state.reason, state.rounds) == ("done", "max_rounds", 5)
    assert bench.store.active_leases(spec.key) == ()


def test_a_lease_holds_what_its_owner_wants_of_an_offer(bench: Bench) -> None:
    seen: list[tuple[str, Offer]] = []

    def narrow(lease: HeldLease, offer: Offer) -> Offer:
        seen.append((lease.lease_id, offer))
        return replace(offer, ops=offer.ops[:1], rounds=2)

    bench.narrow = narrow
    session_id, lease = bench.join()
    assert [(lease_id, len(offer.ops), offer.rounds) for lease_id, offer in seen] == [(lease.lease_id, 3, 5)]
    assert ([op.op_id for op in lease.ops], lease.rounds) == ([OPS[0].op_id], 2)
    assert [stored.rounds for stored in bench.store.active_leases(SPEC.key)] == [2]
    assert [bench.api.report(_report(session_id, lease, number)).stop for number in range(2)] == [False, True]
    assert bench.lease(session_id).first_round == 2, "the batch lacks three rounds"


def test_a_session_that_has_had_its_share_ends_its_lease_and_its_agent_goes_on_in_a_new_one(bench: Bench) -> None:
    bench.decide = lambda campaign_id, report: Decision(renew=report.round == 1)
    old, lease = bench.join()
    assert not bench.api.report(_report(old, lease, 0)).stop
    assert bench.api.report(_report(old, lease, 1)).stop
    assert bench.api.report(_report(old, lease, 1)).stop, "the acknowledgement was lost, say"
    assert bench.coordinator.is_over("alice")
    with pytest.raises(UnknownSession, match="has had its share: register"):
        bench.api.lease(old, "ok", 0.0)
    new, again = bench.join()
    assert new != old
    assert (again.first_round, len(again.ops)) == (2, 3)
    assert not bench.coordinator.is_over("alice")
    assert not bench.api.report(_report(new, again, 2)).stop
    assert len(bench.visits()) == 9


def test_an_agent_that_is_started_again_is_told_to_end_when_its_session_has_had_its_share(bench: Bench) -> None:
    bench.coordinator.restarted.add("alice")
    bench.decide = lambda campaign_id, report: Decision(renew=True)
    session_id, lease = bench.join()
    assert bench.api.report(_report(session_id, lease)).stop
    answer = bench.api.lease(session_id, "ok", 20.0)
    assert isinstance(answer, Idle)
    assert answer.shut_down


def test_agents_of_one_kind_measure_the_same_batch_at_once(bench: Bench) -> None:
    bench.stop()
    spec = replace(SPEC, agents=2, max_rounds=4)
    bench.start(spec=spec)
    alice, first = bench.join("alice")
    bench.api.report(_report(alice, first, 0))
    bob, second = bench.join("bob")
    assert [op.op_id for op in second.ops] == [op.op_id for op in first.ops]
    assert (second.first_round, second.lease_id != first.lease_id) == (1, True)
    third = bench.api.register(replace(HELLO, name="eve")).session_id
    assert isinstance(bench.api.lease(third, "ok", 0.0), Idle)
    assert not bench.api.report(_report(alice, first, 1)).stop, "bob has a round of this number, too"
    assert not bench.api.report(_report(bob, second, 1)).stop
    assert len(bench.store.visits([spec.key])) == 9
    bench.decide = lambda campaign_id, report: Decision(stop=True, reason="precision")
    assert bench.api.report(_report(bob, second, 2)).stop
    assert bench.api.heartbeat(alice, first.lease_id, 0.0)
    assert bench.api.report(_report(alice, first, 2)).stop
    assert bench.store.campaign(spec.key).rounds == 5


def test_after_a_restart_every_agent_of_a_batch_has_its_lease(bench: Bench) -> None:
    bench.stop()
    spec = replace(SPEC, agents=2)
    bench.start(spec=spec)
    (alice, first), (bob, second) = bench.join("alice"), bench.join("bob")
    bench.stop()
    bench.start(spec=spec)
    assert not bench.api.report(_report(alice, first, 0)).stop
    assert not bench.api.report(_report(bob, second, 0)).stop
    assert [bench.lease(session_id).lease_id for session_id in (alice, bob)] == [first.lease_id, second.lease_id]


def test_a_phase_that_ended_is_known_after_a_restart(bench: Bench) -> None:
    bench.stop()
    spec = replace(SPEC, lease_rounds=2)
    bench.start(spec=spec)
    session_id, lease = bench.join()
    for number in range(2):
        bench.api.report(_report(session_id, lease, number))
    bench.stop()
    bench.start(spec=spec)
    again = bench.lease(session_id)
    assert again.lease_id != lease.lease_id
    assert (again.first_round, again.rounds) == (2, 2)
    assert bench.api.report(_report(session_id, lease, 1)).stop, "the acknowledgement was lost, say"


def test_a_campaign_that_another_process_ends_stops_its_agent_with_the_next_report(bench: Bench) -> None:
    session_id, lease = bench.join()
    bench.store.finish_campaign(SPEC.key, "budget", bench.now_s)
    assert bench.api.report(_report(session_id, lease)).stop
    assert len(bench.visits()) == 3
    assert isinstance(bench.api.lease(session_id, "ok", 0.0), Idle)


def test_an_op_that_fails_for_good_leaves_and_the_rest_goes_on(bench: Bench) -> None:
    session_id, lease = bench.join()
    failure = Failure(op_id=OPS[0].op_id, round=0, reason="unsupported", detail="no such kernel")
    assert not bench.api.report(_report(session_id, lease, failures=(failure,))).stop
    assert [op.op_id for op in bench.lease(session_id).ops] == [OPS[1].op_id, OPS[2].op_id]
    (stored,) = bench.store.failures(SPEC.key)
    assert (stored.reason, stored.detail, stored.attempts) == ("unsupported", "no such kernel", 1)


def test_a_crash_is_tried_in_two_more_sessions_and_then_given_up(bench: Bench) -> None:
    for attempt in range(3):
        session_id, lease = bench.join()
        assert OPS[0].op_id in [op.op_id for op in lease.ops]
        failure = Failure(op_id=OPS[0].op_id, round=lease.first_round, reason="crashed", detail=f"signal {attempt}")
        bench.api.report(_report(session_id, lease, failures=(failure,)))
    assert OPS[0].op_id not in [op.op_id for op in bench.join()[1].ops]


def test_a_crash_ends_the_lease_so_that_the_next_one_tries_the_op_again(bench: Bench) -> None:
    session_id, lease = bench.join()
    failure = Failure(op_id=OPS[0].op_id, round=0, reason="crashed", detail="signal 11")
    assert bench.api.report(_report(session_id, lease, timings=(), failures=(failure,))).stop
    again = bench.lease(session_id)
    assert again.lease_id != lease.lease_id
    assert [op.op_id for op in again.ops] == [op.op_id for op in lease.ops]
    assert again.first_round == 1

    repeated = _report(session_id, again, failures=(failure,))  # of round 0: an agent that says the same again
    assert not bench.api.report(repeated).stop
    failure = replace(failure, round=2)
    assert bench.api.report(_report(session_id, again, 2, failures=(failure,))).stop
    third = bench.lease(session_id)
    failure = replace(failure, round=3)
    assert not bench.api.report(_report(session_id, third, 3, failures=(failure,))).stop, "it is given up now"
    assert OPS[0].op_id not in [op.op_id for op in bench.lease(session_id).ops]
    (known,) = bench.store.failures(SPEC.key)
    assert known.evidence == "crashed 3 times on alice: signal 11"


def test_a_failed_op_is_tried_by_another_agent_first_and_two_devices_settle_it(bench: Bench) -> None:
    alice, lease = bench.join("alice")
    bob = bench.api.register(replace(HELLO, name="bob")).session_id
    failure = Failure(op_id=OPS[0].op_id, round=0, reason="crashed", detail="signal 11")
    assert bench.api.report(_report(alice, lease, failures=(failure,))).stop
    assert isinstance(bench.api.lease(alice, "ok", 0.0), Idle), "bob could try it"
    second = bench.lease(bob)
    assert OPS[0].op_id in [op.op_id for op in second.ops]
    failure = replace(failure, round=second.first_round)
    assert not bench.api.report(_report(bob, second, failures=(failure,))).stop, "it is given up now"
    assert [known.final for known in bench.store.failures(SPEC.key)] == [True]


def test_an_op_that_failed_comes_back_to_its_agent_when_no_other_takes_it(bench: Bench) -> None:
    alice, lease = bench.join("alice")
    bench.api.register(replace(HELLO, name="bob"))
    failure = Failure(op_id=OPS[0].op_id, round=0, reason="crashed", detail="signal 11")
    assert bench.api.report(_report(alice, lease, failures=(failure,))).stop
    assert isinstance(bench.api.lease(alice, "ok", 0.0), Idle)
    bench.now_s += SILENT_S + 1.0  # bob was not heard of for so long
    assert OPS[0].op_id in [op.op_id for op in bench.lease(alice).ops]


def test_a_batch_whose_ops_all_failed_ends_with_that_reason(bench: Bench) -> None:
    session_id, lease = bench.join()
    failures = tuple(Failure(op_id=op.op_id, round=0, reason="unsupported") for op in OPS[:2])
    assert bench.api.report(_report(session_id, lease, timings=(), failures=failures)).stop
    assert bench.store.campaign(SPEC.key).reason == "failed"


def test_an_op_that_cannot_be_built_is_its_failure_and_the_lease_goes_on_without_it(bench: Bench) -> None:
    bench.stop()
    no_model = _op(7, se=True)  # squeeze-excite is not lowered
    spec = replace(SPEC, ops=(*OPS, no_model))
    bench.start(spec=spec)
    _, lease = bench.join()
    assert [op.op_id for op in lease.ops] == [op.op_id for op in OPS]
    (failure,) = bench.store.failures(spec.key)
    assert (failure.op_id, failure.reason, failure.final) == (no_model.op_id, "unsupported", True)


def test_a_campaign_none_of_whose_ops_can_be_built_has_failed(bench: Bench) -> None:
    bench.stop()
    spec = replace(SPEC, ops=(_op(7, se=True),))
    bench.start(spec=spec)
    session_id = bench.api.register(HELLO).session_id
    assert isinstance(bench.api.lease(session_id, "ok", 0.0), Idle)
    assert bench.coordinator.wait(spec.key, 0.0).campaign.reason == "failed"


def test_a_decision_that_fails_loses_no_visit_and_is_not_kept_quiet(bench: Bench) -> None:
    def decide(campaign_id: str, report: Report) -> Decision:
        raise StoreError("the disk is full")

    bench.decide = decide
    session_id, lease = bench.join()
    assert bench.api.report(_report(session_id, lease)).stop
    assert len(bench.visits()) == 3
    assert isinstance(bench.api.lease(session_id, "ok", 0.0), Idle)
    with pytest.raises(StoreError, match="the disk is full"):
        bench.coordinator.wait(SPEC.key, 10.0)


# --- the owner of a campaign


def test_the_owner_sees_each_step(bench: Bench) -> None:
    bench.decide = lambda campaign_id, report: Decision(stop=report.round == 1, reason="budget")
    session_id, lease = bench.join()
    bench.api.report(_report(session_id, lease, 0))
    bench.api.report(_report(session_id, lease, 1))
    assert [(event.kind, event.round) for event in bench.events] == [
        ("registered", None),
        ("leased", 0),
        ("reported", 0),
        ("reported", 1),
        ("finished", None),
    ]
    assert [(event.agent, event.n_timings) for event in bench.events if event.kind == "reported"] == [("alice", 3)] * 2


def test_waiting_ends_with_a_change_and_with_the_campaign(bench: Bench) -> None:
    before = bench.coordinator.wait(SPEC.key, 0.0)
    assert bench.coordinator.wait(SPEC.key, 0.0, seen=before.serial) == before
    timer = _later(lambda: bench.coordinator.finish(SPEC.key, "budget"))
    after = bench.coordinator.wait(SPEC.key, 20.0, seen=before.serial)
    timer.join()
    assert after.serial > before.serial
    assert after.campaign.reason == "budget"
    assert bench.coordinator.wait(SPEC.key, 20.0, seen=after.serial).campaign.state == "done"


def test_agents_that_called_are_listed(bench: Bench) -> None:
    bench.join("alice")
    bench.join("alice")
    bench.api.register(replace(HELLO, name="bob"))
    assert sorted((agent.name, agent.epoch) for agent in bench.coordinator.agents()) == [("alice", 2), ("bob", 1)]


# --- restarts


def test_a_restarted_coordinator_takes_up_the_lease_as_if_nothing_had_been(bench: Bench) -> None:
    session_id, lease = bench.join()
    bench.api.report(_report(session_id, lease, 0))
    bench.stop()
    bench.start()
    assert not bench.api.report(_report(session_id, lease, 1)).stop
    assert not bench.api.heartbeat(session_id, lease.lease_id, 0.0)
    again = bench.lease(session_id)
    assert (again.lease_id, again.first_round, again.rounds) == (lease.lease_id, 2, 3)
    assert len(bench.visits()) == 6
    assert len(bench.decided) == 2
    assert [agent.session_id for agent in bench.coordinator.agents()] == [session_id]


def test_after_a_restart_the_same_agent_goes_on_at_once_and_another_after_the_ttl(bench: Bench) -> None:
    bench.join("alice")
    bench.stop()
    bench.start()
    bob = bench.api.register(replace(HELLO, name="bob")).session_id
    assert isinstance(bench.api.lease(bob, "ok", 0.0), Idle)
    bench.now_s += TTL_S
    assert isinstance(bench.api.lease(bob, "ok", 0.0), Lease)
    bench.stop()
    bench.start()
    bench.join("bob")


def test_a_spooled_report_of_a_session_before_the_restart_is_taken(bench: Bench) -> None:
    old, lease = bench.join()
    bench.stop()
    bench.start()
    bench.join()
    assert bench.api.report(_report(old, lease)).stop
    assert len(bench.visits()) == 3


def test_a_spooled_report_for_another_store_is_refused_by_name(bench: Bench) -> None:
    session_id, lease = bench.join()
    bench.stop()
    bench.start(name="another.sqlite")
    with pytest.raises(UnknownSession):
        bench.api.report(_report(session_id, lease))
    new = bench.api.register(HELLO).session_id
    with pytest.raises(UnknownName, match="nowhere"):
        bench.api.report(_report(new, lease, campaign_id="nowhere"))


def test_an_agent_of_a_campaign_nobody_offers_any_more_is_set_free(bench: Bench) -> None:
    session_id, lease = bench.join()
    bench.stop()
    bench.start(spec=None)
    assert bench.api.report(_report(session_id, lease)).stop
    assert len(bench.visits()) == 3
    bench.coordinator.offer(SPEC.key)
    assert bench.lease(session_id).first_round == 1


def test_after_a_restart_dropped_ops_stay_dropped_and_done_batches_done(bench: Bench) -> None:
    bench.stop()
    spec = replace(SPEC, ops=(*OPS, _op(4, batch=1)))
    bench.start(spec=spec)
    bench.decide = lambda campaign_id, report: Decision(
        drop=(OPS[2].op_id,), stop=report.round == 0, reason="precision"
    )
    session_id, lease = bench.join()
    assert bench.api.report(_report(session_id, lease)).stop
    bench.stop()
    bench.start(spec=spec)
    assert [op.op_id for op in bench.join()[1].ops] == [spec.ops[3].op_id]


# --- what only a network has


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with Store.open(tmp_path / "campaigns.sqlite") as store:
        coordinator = Coordinator(store, ArtifactShelf(build=_build), lambda campaign_id, report: Decision())
        with serve(coordinator) as running:
            yield running


def test_a_taken_port_is_named_with_the_way_out(server: RunningServer, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.sqlite") as store:
        second = Coordinator(store, ArtifactShelf(build=_build), lambda campaign_id, report: Decision())
        with pytest.raises(PortInUse, match=r"--listen 127\.0\.0\.1:0"):
            serve(second, server.address)


@pytest.mark.parametrize("address", ["127.0.0.1", "here", "127.0.0.1:70000", ":5000", "0.0.0.0:0", "192.0.2.1:5000"])
def test_an_address_that_must_not_or_cannot_be_listened_on_is_refused(address: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "campaigns.sqlite") as store:
        coordinator = Coordinator(store, ArtifactShelf(build=_build), lambda campaign_id, report: Decision())
        with pytest.raises(SpecError, match="cannot listen on"):
            serve(coordinator, address)


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    import grpc

    with Store.open(tmp_path / "campaigns.sqlite") as store:
        coordinator = Coordinator(store, ArtifactShelf(build=_build), lambda campaign_id, report: Decision())
        with pytest.raises(SpecError, match=r"cannot listen on 192\.0\.2\.1:5000: "):
            serve(coordinator, "192.0.2.1:5000", credentials=grpc.local_server_credentials())


def test_nobody_there_is_unreachable_and_says_what_to_check() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with CoordinatorClient(address) as client, pytest.raises(Unreachable, match=address):
        client.register(HELLO)


def test_somebody_who_never_answers_is_unreachable() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with CoordinatorClient(address, deadline_s=0.2) as client, pytest.raises(Unreachable, match="did not answer"):
            client.register(HELLO)


def test_a_server_of_something_else_is_a_protocol_mismatch() -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with (
            CoordinatorClient(f"127.0.0.1:{port}") as client,
            pytest.raises(ProtocolMismatch, match="no lutbuilder coordinator"),
        ):
            client.register(HELLO)
    finally:
        other.stop(None).wait()


def test_a_closed_client_is_unreachable(server: RunningServer) -> None:
    client = CoordinatorClient(server.address)
    client.close()
    with pytest.raises(Unreachable, match="closed here"):
        client.register(HELLO)


def test_a_control_message_above_256_kib_is_refused(server: RunningServer) -> None:
    huge = replace(HELLO, fingerprint=Fingerprint(device="toy", facts=(("cpu.flags", "x" * 300_000),)))
    with CoordinatorClient(server.address) as client, pytest.raises(WireError, match="above 262144"):
        client.register(huge)


def _report_of(n_samples: int) -> Report:
    timing = Timing(
        op_id=OPS[0].op_id, round=0, order=0, instance=0, start_ns=0, warmup_ns=(), samples_ns=(9_876_543,) * n_samples
    )
    return Report(
        report_id="r1", session_id="s1", lease_id="l1", lease_epoch=1, campaign_id="c1", round=0, timings=(timing,)
    )


def test_a_report_of_4_mib_goes_through_and_a_larger_one_is_refused_before_it_is_sent(server: RunningServer) -> None:
    with CoordinatorClient(server.address) as client:
        with pytest.raises(UnknownName, match="c1"):  # it was read: the store does not know its campaign
            client.report(_report_of(1_000_000))
        with pytest.raises(WireError, match="max_calls"):
            client.report(_report_of(1_100_000))


def test_a_report_above_4_mib_is_refused_by_the_coordinator_too(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lutbuilder_agent.wire.client.REPORT_BYTES", 1 << 30)  # an agent without our limits
    with CoordinatorClient(server.address) as client, pytest.raises(WireError, match="RESOURCE_EXHAUSTED"):
        client.report(_report_of(1_100_000))


def test_an_agent_that_hung_up_while_it_waited_is_given_nothing(tmp_path: Path) -> None:
    bench = Bench(deployment="loopback_grpc", folder=tmp_path)
    bench.start(spec=None)
    try:
        assert isinstance(bench.api, CoordinatorClient)
        client = CoordinatorClient(bench.api.address)
        session_id = client.register(HELLO).session_id
        ended = threading.Event()

        def wait() -> None:
            with pytest.raises(Unreachable):
                client.lease(session_id, "ok", 20.0)
            ended.set()

        thread = threading.Thread(target=wait)
        thread.start()
        while bench.coordinator.waiting == 0:  # until its call has arrived
            thread.join(0.01)
        client.close()
        assert ended.wait(10)
        thread.join()
        seen_leaving = time.monotonic() + 10  # long before its 20 s are over
        while bench.coordinator.waiting and time.monotonic() < seen_leaving:
            ended.clear()
            ended.wait(0.01)
        assert bench.coordinator.waiting == 0
        bench.coordinator.offer(bench.store.create_campaign(SPEC, now_s=1.0))
        assert bench.store.active_leases(SPEC.key) == ()
        bench.join("bob")
    finally:
        bench.stop()


def test_a_bug_reaches_the_agent_as_an_internal_error_without_its_words(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(self: Coordinator, hello: AgentHello) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(Coordinator, "register", bug)
    with CoordinatorClient(server.address) as client, pytest.raises(Exception, match="its log says why") as caught:
        client.register(HELLO)
    assert getattr(caught.value, "code", None) == "internal"
    assert "secret" not in str(caught.value)


def test_a_stopped_server_lets_its_waiting_agents_go(tmp_path: Path) -> None:
    bench = Bench(deployment="loopback_grpc", folder=tmp_path)
    bench.start(spec=None)
    session_id = bench.api.register(HELLO).session_id
    timer = _later(bench.coordinator.release_waiters)
    answer = bench.api.lease(session_id, "ok", 20.0)
    timer.join()
    bench.stop()
    assert isinstance(answer, Idle)
    assert not answer.shut_down
