"""Programs one protocol version apart work together, or say on both ends which of them to upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.errors import ProtocolMismatch, SpecError, WireError
from lutbuilder_agent.graph import Layer, LayerGraph
from lutbuilder_agent.records import PROTOCOL_OLDEST, PROTOCOL_VERSION, AgentHello, Session
from lutbuilder_agent.wire import agent_pb2, convert, measure_pb2
from lutbuilder_agent.wire.client import CoordinatorClient
from lutbuilder_agent.wire.protocol import agreed, check_answer
from lutbuilder_agent.wire.servicer import add_to_server
from tests.agent_bench import Bench
from tests.agent_fakes import FINGERPRINT, RUNTIMES, FakeCoordinator, lease

OLDER, NEWER = PROTOCOL_OLDEST - 1, PROTOCOL_VERSION + 1
VERSIONS = st.integers(1, 9)


def hello(oldest: int = PROTOCOL_OLDEST, newest: int = PROTOCOL_VERSION) -> AgentHello:
    return AgentHello(
        name="me",
        agent_version="9",
        fingerprint=FINGERPRINT,
        runtimes=RUNTIMES,
        protocol_min=oldest,
        protocol_max=newest,
    )


@contextmanager
def served(coordinator: FakeCoordinator) -> Iterator[CoordinatorClient]:
    """A client of a coordinator behind real gRPC."""
    server = grpc.server(ThreadPoolExecutor(2))
    add_to_server(coordinator, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with CoordinatorClient(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        server.stop(None).wait()


class Negotiating(FakeCoordinator):
    """A coordinator of the protocols from `oldest` to `newest`."""

    oldest: int = PROTOCOL_OLDEST
    newest: int = PROTOCOL_VERSION

    def register(self, hello: AgentHello, *, caller: object = None) -> Session:
        self.protocol = agreed(hello, oldest=self.oldest, newest=self.newest)
        return super().register(hello)


def speaking(oldest: int, newest: int) -> Negotiating:
    coordinator = Negotiating()
    coordinator.oldest, coordinator.newest = oldest, newest
    return coordinator


@given(VERSIONS, VERSIONS, VERSIONS, VERSIONS)
def test_the_newest_that_both_know_is_chosen_and_without_one_the_older_is_told_to_upgrade(
    a: int, b: int, c: int, d: int
) -> None:
    agent, coordinator = sorted((a, b)), sorted((c, d))
    both = set(range(agent[0], agent[1] + 1)) & set(range(coordinator[0], coordinator[1] + 1))
    asked = hello(*agent)
    if both:
        assert agreed(asked, oldest=coordinator[0], newest=coordinator[1]) == max(both)
        return
    older = "agent: pip install -U lutbuilder-agent" if agent[1] < coordinator[0] else "coordinator: pip install"
    with pytest.raises(ProtocolMismatch, match=f"upgrade the {older}"):
        agreed(asked, oldest=coordinator[0], newest=coordinator[1])


def test_an_agent_of_the_protocol_before_works_with_this_coordinator() -> None:
    assert agreed(hello(1, 1)) == 1


def test_an_agent_of_the_protocol_after_that_still_knows_ours_works_with_this_coordinator() -> None:
    assert agreed(hello(PROTOCOL_VERSION, NEWER)) == PROTOCOL_VERSION


def test_an_agent_that_is_too_new_gets_failed_precondition_with_the_upgrade_to_make() -> None:
    with served(speaking(PROTOCOL_OLDEST, PROTOCOL_VERSION)) as client:
        with pytest.raises(ProtocolMismatch, match="upgrade the coordinator: pip install -U lutbuilder") as told:
            client.register(hello(NEWER, NEWER))
        assert isinstance(told.value.__cause__, grpc.RpcError)
        assert told.value.__cause__.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_an_agent_that_is_too_old_gets_failed_precondition_with_the_upgrade_to_make() -> None:
    with served(speaking(NEWER, NEWER)) as client:
        with pytest.raises(ProtocolMismatch, match="upgrade the agent: pip install -U lutbuilder-agent") as told:
            client.register(hello())
        assert isinstance(told.value.__cause__, grpc.RpcError)
        assert told.value.__cause__.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(("oldest", "newest", "asks_ahead"), [(1, 1, False), (1, 2, True), (2, 3, True)])
def test_this_agent_measures_for_a_coordinator_one_protocol_older_or_newer(
    tmp_path: Path, oldest: int, newest: int, asks_ahead: bool
) -> None:
    bench = Bench(tmp_path, coordinator=speaking(oldest, newest))
    bench.coordinator.leases = [lease(rounds=2)]
    bench.coordinator.ahead = [lease(2, rounds=1, first_round=2)]
    assert bench.run() == 0
    assert bench.coordinator.rounds == ([0, 1, 2] if asks_ahead else [0, 1])


@pytest.mark.parametrize(("oldest", "newest"), [(NEWER, NEWER + 1)])
def test_this_agent_ends_with_the_upgrade_to_make_where_no_protocol_is_shared(
    tmp_path: Path, oldest: int, newest: int
) -> None:
    bench = Bench(tmp_path, coordinator=speaking(oldest, newest))
    with pytest.raises(ProtocolMismatch, match="pip install -U lutbuilder-agent"):
        bench.run()


@pytest.mark.parametrize(("chosen", "line"), [(OLDER, "pip install -U lutbuilder$"), (NEWER, "lutbuilder-agent$")])
def test_a_coordinator_that_chooses_a_protocol_nobody_offered_is_not_worked_for(
    tmp_path: Path, chosen: int, line: str
) -> None:
    bench = Bench(tmp_path, coordinator=FakeCoordinator(protocol=chosen))
    with pytest.raises(ProtocolMismatch, match=line):
        bench.run()
    assert bench.coordinator.calls == ["register"]
    check_answer(hello(), Session(session_id="s", epoch=1, protocol=PROTOCOL_VERSION, heartbeat_s=1.0))


# --- what a newer peer may say that this one does not know: an error, never a default


class Foreign:
    """A servicer that answers a lease call with whatever message it was given."""

    def __init__(self, answer: agent_pb2.LeaseResponse) -> None:
        self.answer = answer

    def add_to(self, server: grpc.Server) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            lambda request, context: self.answer,
            request_deserializer=agent_pb2.LeaseRequest.FromString,
            response_serializer=agent_pb2.LeaseResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("lutbuilder.v1.AgentService", {"Lease": handler})
        server.add_generic_rpc_handlers((service,))


def _answer(**changes: Any) -> agent_pb2.LeaseResponse:
    message = convert.lease_answer_to_proto(lease(n_ops=1))
    plan = measure_pb2.Plan(**changes.pop("plan", {}))
    message.lease.plan.MergeFrom(plan)
    for name, value in changes.items():
        setattr(message.lease.ops[0].artifact, name, value)
    return message


@pytest.mark.parametrize(
    "answer", [_answer(plan={"cache": 77}), _answer(format=77)], ids=["unknown cache", "unknown format"]
)
def test_a_lease_with_a_meaning_this_agent_does_not_know_is_a_wire_error(answer: agent_pb2.LeaseResponse) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    Foreign(answer).add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with CoordinatorClient(f"127.0.0.1:{port}") as client, pytest.raises(WireError, match="77"):
            client.lease("s", "ok", 0.0)
    finally:
        server.stop(None).wait()


def test_an_artifact_with_a_layer_this_agent_does_not_know_is_refused_by_name() -> None:
    graph = LayerGraph(batch=1, in_channels=3, height=8, width=8, layers=(Layer(kind="identity", inputs=(0,)),))
    raw = graph.to_bytes().replace(b"identity", b"hologram")
    with pytest.raises(SpecError, match=r"unknown layer kind 'hologram'.*pip install -U lutbuilder-agent"):
        LayerGraph.from_bytes(raw)


def test_hellos_of_this_release_offer_every_protocol_it_knows() -> None:
    offered = AgentHello(name="me", agent_version="1", fingerprint=FINGERPRINT, runtimes=())
    assert (offered.protocol_min, offered.protocol_max) == (1, 2)
