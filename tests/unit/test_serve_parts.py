"""Metrics, health, reflection and the lock of a coordinator of many, each on its own."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lutbuilder.campaign.controllers import Controllers
from lutbuilder.control import serve as parts
from lutbuilder.control.control import Control
from lutbuilder.control.metrics import Metrics, MetricsServer
from lutbuilder.control.serve import ServeOptions, serving
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.service import Coordinator, Event
from lutbuilder.coordinator.store import Store
from lutbuilder_agent.errors import PortInUse, SpecError, StoreError
from tests.store_examples import SPEC, session


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "campaigns.sqlite") as opened:
        opened.create_campaign(SPEC, now_s=1.0)
        yield opened


@pytest.fixture
def coordinator(store: Store) -> Coordinator:
    return Coordinator(store, ArtifactShelf(), Controllers(store).decide, coordinator_id="me")


def scraped(metrics: Metrics) -> dict[str, float]:
    """Return every sample by its name and labels."""
    from prometheus_client import generate_latest

    text = generate_latest(metrics.registry).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {f"{each.name}{sorted(each.labels.items()) or ''}": each.value for each in samples}


def test_events_are_counted(store: Store, coordinator: Coordinator) -> None:
    metrics = Metrics(store, coordinator)
    tell = coordinator.on_event[-1]
    for event in (
        Event(kind="registered", agent="a"),
        Event(kind="leased", agent="a"),
        Event(kind="lost", agent="a"),
        Event(kind="quarantined", agent="a", reason="sick"),
        Event(kind="reported", n_timings=4, failures=("crashed", "crashed", "timed_out"), commit_s=0.003),
        Event(kind="reported", n_timings=2, late=True, commit_s=3.0),
        Event(kind="finished"),
    ):
        tell(event)
    seen = scraped(metrics)
    assert seen["lutbuilder_agent_registrations_total"] == 1
    assert seen["lutbuilder_leases_granted_total"] == 1
    assert seen["lutbuilder_leases_lost_total"] == 1
    assert seen["lutbuilder_agents_quarantined_total"] == 1
    assert seen["lutbuilder_reports_total[('late', 'false')]"] == 1
    assert seen["lutbuilder_reports_total[('late', 'true')]"] == 1
    assert seen["lutbuilder_visits_total"] == 6
    assert seen["lutbuilder_op_failures_total[('reason', 'crashed')]"] == 2
    assert seen["lutbuilder_op_failures_total[('reason', 'unsupported')]"] == 0
    assert seen["lutbuilder_commit_seconds_sum"] == pytest.approx(3.003)
    assert seen["lutbuilder_commit_seconds_bucket[('le', '0.005')]"] == 1


def test_gauges_say_what_there_is_at_the_moment(store: Store, coordinator: Coordinator) -> None:
    metrics = Metrics(store, coordinator)
    seen = scraped(metrics)
    assert seen["lutbuilder_campaigns[('state', 'active')]"] == 1
    assert seen["lutbuilder_agents[('state', 'silent')]"] == 0
    session(store, "s1")
    store.finish_campaign(SPEC.key, "precision", 2.0)
    seen = scraped(metrics)
    assert seen["lutbuilder_campaigns[('state', 'active')]"] == 0
    assert seen["lutbuilder_campaigns[('state', 'done')]"] == 1
    assert seen["lutbuilder_agents[('state', 'silent')]"] == 1
    assert any(name.startswith("lutbuilder_build_info") and value == 1 for name, value in seen.items())


def test_a_store_that_fails_shows_as_that_and_the_scrape_goes_on(
    store: Store, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(store, coordinator)

    def fails() -> Any:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "counts", fails)
    store.on_error[-1](StoreError("the disk is full"))
    seen = scraped(metrics)
    assert seen["lutbuilder_store_up"] == 0
    assert seen["lutbuilder_store_errors_total"] == 1
    assert not [name for name in seen if name.startswith(("lutbuilder_jobs", "lutbuilder_agents["))]
    assert seen["lutbuilder_waiting_calls"] == 0


def test_names_end_in_their_unit_or_in_total(store: Store, coordinator: Coordinator) -> None:
    families = list(Metrics(store, coordinator).registry.collect())
    for family in families:
        if family.name.startswith("lutbuilder_"):
            assert family.documentation.endswith((".", "over."))
            if family.type == "counter":
                assert all(each.name.endswith(("_total", "_created")) for each in family.samples)
            if family.type == "histogram":
                assert family.name.endswith("_seconds")
    assert {"counter", "gauge", "histogram"} == {each.type for each in families if each.name.startswith("lutbuilder_")}


def test_metrics_are_served_and_a_taken_port_is_told(store: Store, coordinator: Coordinator) -> None:
    metrics = Metrics(store, coordinator)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with MetricsServer(metrics, "127.0.0.1:0") as server:
        with opener.open(f"http://{server.address}/metrics", timeout=30) as answer:
            assert b"lutbuilder_store_up 1.0" in answer.read()
        with pytest.raises(PortInUse, match="--metrics HOST:PORT, or none: --metrics off"):
            MetricsServer(metrics, server.address)


# --- what is served where


class FakeServer:
    """Takes the names of what is added to it."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.names.update(handler.service_name() for handler in handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        self.names.add(service)


@pytest.mark.parametrize(
    ("listen", "shown"), [("127.0.0.1:0", True), ("localhost:0", True), ("[::1]:0", True), ("10.9.8.7:0", False)]
)
def test_reflection_is_for_loopback_only(
    store: Store, coordinator: Coordinator, listen: str, shown: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = FakeServer()

    def fake(coordinator: Coordinator, address: str, *, services: Any, **more: Any) -> Any:
        for add in services:
            add(taken)

    monkeypatch.setattr(parts, "serve", fake)
    options = ServeOptions(luts=tmp_path, listen=listen, insecure=True)
    parts._listening(options, coordinator, Control(store), parts._health(), None)
    assert {"lutbuilder.v1.ControlService", "grpc.health.v1.Health"} <= taken.names
    assert ("grpc.reflection.v1alpha.ServerReflection" in taken.names) is shown


@pytest.mark.parametrize(
    ("options", "secure"),
    [
        ({"listen": "127.0.0.1:7070"}, False),
        ({"listen": "127.0.0.1:7070", "tls": True}, True),
        ({"listen": "0.0.0.0:7070"}, True),
        ({"listen": "lab:7070"}, True),
        ({"listen": "0.0.0.0:7070", "insecure": True}, False),
    ],
)
def test_everything_off_loopback_is_tls_unless_somebody_said_the_ugly_word(
    options: dict[str, Any], secure: bool, tmp_path: Path
) -> None:
    assert ServeOptions(luts=tmp_path, **options).secure is secure


def test_tls_and_no_tls_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="exclude each other"):
        _ = ServeOptions(luts=tmp_path, tls=True, insecure=True).secure


@pytest.fixture
def options(tmp_path: Path) -> ServeOptions:
    return ServeOptions(luts=tmp_path / "luts", listen="127.0.0.1:0", state_dir=tmp_path / "state", metrics=None)


def test_a_coordinator_has_the_same_name_at_every_start(options: ServeOptions) -> None:
    with serving(options) as first:
        name = first.coordinator.coordinator_id
    with serving(options) as second:
        assert second.coordinator.coordinator_id == name
        with pytest.raises(StoreError, match="another lutbuilder serve uses"), serving(options):
            pass


def test_health_follows_the_store(options: ServeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    with serving(options) as running:
        stop = threading.Event()
        seen = []

        def look() -> None:
            context: Any = None
            seen.append(running._health.Check(HealthCheckRequest(service=""), context).status)
            if len(seen) == 2:
                monkeypatch.undo()
            if len(seen) == 3:
                stop.set()

        def fails(*_: Any, **__: Any) -> Any:
            raise StoreError("the disk is full")

        monkeypatch.setattr(running.store, "claim_job", fails)
        monkeypatch.setattr(parts, "_LOOK_S", 0.0)
        running.run(stop, each=look)
    down, up = HealthCheckResponse.NOT_SERVING, HealthCheckResponse.SERVING
    assert seen == [down, down, up]


def test_a_store_that_goes_on_failing_is_logged_once(
    options: ServeOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    with serving(options) as running, caplog.at_level(logging.ERROR):
        stop, turns = threading.Event(), []

        def fails(*_: Any, **__: Any) -> Any:
            raise StoreError("the disk is full")

        def count() -> None:
            turns.append(1)
            if len(turns) == 5:
                stop.set()

        monkeypatch.setattr(running.store, "claim_job", fails)
        monkeypatch.setattr(parts, "_LOOK_S", 0.0)
        running.run(stop, each=count)
    assert caplog.text.count("the disk is full") == 1


def test_a_wildcard_is_no_address_to_type() -> None:
    assert parts._dialled("127.0.0.1:4000", "", "") == "127.0.0.1:4000"
    assert parts._dialled("0.0.0.0:4000", "lab", "") == "lab:4000"
    assert parts._dialled("0.0.0.0:4000", "", "10.1.2.3:7072") == "10.1.2.3:4000"
    assert not parts._dialled("0.0.0.0:4000", "", "").startswith("0.0.0.0")


def test_options_are_kept_as_given(options: ServeOptions) -> None:
    with serving(replace(options, advertise="127.0.0.1")) as running:
        assert running.dial == running.address
        assert (running.join, running.join_line, running.metrics) == ("", "", "")
