"""`lutbuilder serve`: one process that holds the store, listens to agents and to people, and runs their jobs.

It may be killed at any moment. Started again on the same folder it is the same coordinator to everybody: it adopts its
leases, goes on with its jobs, and its agents find it within seconds. SIGTERM only makes that quicker.
"""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lutbuilder.campaign.controllers import Controllers
from lutbuilder.campaign.host import counting, made_folder
from lutbuilder.campaign.job import JobPhase, JobState
from lutbuilder.campaign.state import served_store
from lutbuilder.control.control import Changes, Control
from lutbuilder.control.jobs import Runner
from lutbuilder.control.servicer import SERVICE, add_to_server
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.service import Coordinator, Event, RunningServer, serve
from lutbuilder.coordinator.store import Store
from lutbuilder.lut.folder import folder_at
from lutbuilder.urls import Place
from lutbuilder_agent.errors import SpecError, StoreError
from lutbuilder_agent.wire.client import is_loopback

if TYPE_CHECKING:
    import grpc
    from grpc_health.v1.health import HealthServicer

    from lutbuilder.coordinator.trust.authority import Trust

log = logging.getLogger("lutbuilder.serve")

DEFAULT_LISTEN = "127.0.0.1:7070"
DEFAULT_METRICS = "127.0.0.1:7071"
DEFAULT_JOIN_PORT = 7072
AGENT_SERVICE = "lutbuilder.v1.AgentService"
_LOOK_S = 1.0  # how often to look for jobs of other coordinators' clients; our own tell us
_JOBS_GRACE_S = 10.0  # to fit and publish what is measured, when we are told to end


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """One `lutbuilder serve`."""

    luts: Place
    listen: str = DEFAULT_LISTEN
    state_dir: Path | None = None  # None: $LUTBUILDER_STATE, else the user's state folder
    store: str | None = None  # URL of the store; None: $LUTBUILDER_STORE, else a file of the state folder
    metrics: str | None = DEFAULT_METRICS  # None: none
    join: str | None = None  # where strangers join; None: the host of `listen`, port 7072; "": nowhere
    advertise: str = ""  # the host that others know us by; "": the one listened on, or this machine's address
    tls_names: tuple[str, ...] = ()  # further host names and addresses that others know us by
    tls: bool = False  # on loopback, too
    insecure: bool = False  # off loopback without TLS
    max_jobs: int = 16

    @property
    def secure(self) -> bool:
        """Whether connections are encrypted. Raises SpecError for options that exclude each other."""
        if self.insecure and self.tls:
            raise SpecError("--tls and --insecure-plaintext-to-anyone exclude each other: leave one out")
        return self.tls or not (self.insecure or is_loopback(self.listen))


@dataclass(kw_only=True)
class Serving:
    """A coordinator that serves. Mutable: it goes on until its context ends."""

    address: str  # that is listened at
    dial: str  # as agents and people would type it
    metrics: str  # "" for none
    join: str  # where strangers join, "" without TLS
    join_line: str  # for the first agent, only of a CA that was made now
    folder: Path
    store: Store
    coordinator: Coordinator
    control: Control
    runner: Runner
    changes: Changes
    _health: HealthServicer
    _healthy: bool = True

    def run(self, stop: threading.Event, *, each: Callable[[], None] = lambda: None) -> None:
        """Begin jobs as they come until `stop` is set; call `each` about once a second."""
        while not stop.is_set():
            serial = self.changes.serial
            try:
                self.runner.look()
                self._say_health(True)
            except StoreError as error:
                if self._healthy:
                    log.error("the store fails, trying again: %s", error)
                self._say_health(False)
            each()
            self._await(stop, serial)

    def _await(self, stop: threading.Event, serial: int) -> None:
        """Return once somebody asked for something, or after a while; never waits when it is time to stop."""
        for _ in range(4):
            if stop.wait(_LOOK_S / 4) or self.changes.serial > serial:
                return

    def _say_health(self, healthy: bool) -> None:
        from grpc_health.v1.health_pb2 import HealthCheckResponse

        if healthy == self._healthy:
            return
        self._healthy = healthy
        status = HealthCheckResponse.SERVING if healthy else HealthCheckResponse.NOT_SERVING
        for service in ("", AGENT_SERVICE, SERVICE):
            self._health.set(service, status)


@contextmanager
def serving(options: ServeOptions) -> Iterator[Serving]:
    """Open the store, listen, and yield what is to be `run`; end all of it in order on the way out.

    Raises StoreError (also if another serve uses the folder), PortInUse, SpecError, TrustError, and LutError for a
    place of tables where none can be listed, read or published.
    """
    secure = options.secure
    _check_names(options)
    folder_at(options.luts).check()  # jobs would measure, and then fail
    folder = made_folder(options.state_dir)
    with ExitStack() as stack:
        stack.enter_context(_locked(folder))
        store = stack.enter_context(Store.open(served_store(options.state_dir, options.store)))
        changes = Changes()
        controllers = Controllers(store, on_demand=True)
        coordinator = Coordinator(
            store,
            ArtifactShelf(),
            controllers.decide,
            narrow=controllers.narrow,
            offered=lambda: {each for job in store.jobs(active=True) for each in job.campaign_ids},
            coordinator_id=_own_id(folder),
        )
        stack.callback(_forgotten, store, coordinator)
        coordinator.on_event.append(counting(controllers))
        coordinator.on_event.append(_logged)
        control = Control(store, coordinator=coordinator, luts=options.luts, changes=changes)
        trust = _opened_trust(folder, options, store) if secure else None
        health = _health()
        server = stack.enter_context(_listening(options, coordinator, control, health, trust))
        join, line = "", ""
        if trust is not None and options.join != "":
            joins = stack.enter_context(
                trust.serve_join(
                    options.join or f"{_host(options.listen)}:{DEFAULT_JOIN_PORT}",
                    main_port=_port(server.address),
                    advertised=options.advertise,
                )
            )
            join = joins.advertised
            line = trust.join_line(join) if trust.is_new else ""
        metrics = _metrics(options, stack, store, coordinator)
        dial = _dialled(server.address, options.advertise, join)
        runner = Runner(
            store,
            coordinator,
            controllers,
            control,
            changes,
            luts=options.luts,
            address=dial,
            max_jobs=options.max_jobs,
            on_event=_job_logged,
        )
        stack.callback(changes.close)
        stack.callback(runner.stop, _JOBS_GRACE_S)
        stack.callback(coordinator.release_waiters)  # this comes first: from now on nobody is given work
        stack.callback(health.enter_graceful_shutdown)
        yield Serving(
            address=server.address,
            dial=dial,
            metrics=metrics,
            join=join,
            join_line=line,
            folder=folder,
            store=store,
            coordinator=coordinator,
            control=control,
            runner=runner,
            changes=changes,
            _health=health,
        )


# --- the parts


def _check_names(options: ServeOptions) -> None:
    """Raise SpecError for what is no host name or address: it would be in every join line, and in no certificate."""
    named = [("--advertise", options.advertise)] if options.advertise else []
    for option, name in (*named, *(("--tls-name", name) for name in options.tls_names)):
        if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
            continue
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError as error:
            raise SpecError(
                f"{option} {name!r} is no host name or address; write it without a port, as lab.example.org"
            ) from error


def _listening(
    options: ServeOptions, coordinator: Coordinator, control: Control, health: HealthServicer, trust: Trust | None
) -> RunningServer:
    def add_health(server: grpc.Server) -> None:
        from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

        add_HealthServicer_to_server(health, server)

    services = [lambda server: add_to_server(control, server), add_health]
    if is_loopback(options.listen):
        services.append(_add_reflection)
    if trust is not None:
        services.append(trust.add_to_server)
    return serve(
        coordinator,
        options.listen,
        credentials=None if trust is None else trust.server_credentials(),
        interceptors=() if trust is None else (trust.interceptor(),),
        services=services,
        insecure=options.insecure,
    )


def _add_reflection(server: grpc.Server) -> None:
    """Let tools of this machine ask what there is to call. On loopback only: strangers need not know."""
    from grpc_reflection.v1alpha import reflection

    names = (AGENT_SERVICE, SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


def _health() -> HealthServicer:
    from grpc_health.v1 import health
    from grpc_health.v1.health_pb2 import HealthCheckResponse

    servicer = health.HealthServicer()
    for service in ("", AGENT_SERVICE, SERVICE):
        servicer.set(service, HealthCheckResponse.SERVING)
    return servicer


def _metrics(options: ServeOptions, stack: ExitStack, store: Store, coordinator: Coordinator) -> str:
    """Show metrics, and return where; "" for nowhere."""
    if options.metrics is None:
        return ""
    from lutbuilder.control.metrics import Metrics, MetricsServer

    return stack.enter_context(MetricsServer(Metrics(store, coordinator), options.metrics)).address


def _opened_trust(folder: Path, options: ServeOptions, store: Store) -> Trust:
    from lutbuilder.coordinator import trust

    names = [name for name in (options.advertise, _host(options.listen), *options.tls_names) if name]
    return trust.open(folder, names, store=store)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other coordinators out of a state folder. Raises StoreError if one is in it."""
    try:
        handle = os.open(folder / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot use the state folder {folder}: {error.strerror}; choose one: --state-dir DIR"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"another lutbuilder serve uses {folder}: end it first. Two coordinators of one store need a folder "
                "each: --state-dir DIR --store URL"
            ) from error
        yield
    finally:
        os.close(handle)


def _own_id(folder: Path) -> str:
    """Return the name this folder's coordinator has in the store, the same at every start."""
    path = folder / "coordinator.id"
    try:
        if path.exists():
            found = path.read_text(encoding="ascii").strip()
            if found:
                return found
        made = uuid.uuid4().hex
        scratch = path.with_suffix(".tmp")
        scratch.write_text(made + "\n", encoding="ascii")
        scratch.replace(path)
        return made
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot use {path}: {error}; choose another folder: --state-dir DIR") from error


def _forgotten(store: Store, coordinator: Coordinator) -> None:
    """Tell the store that this coordinator has ended, so that another one need not wait to see it stand still."""
    try:
        store.forget_coordinator(coordinator.coordinator_id)
    except StoreError as error:
        log.warning("the store could not be told of the end: %s", error)


def _dialled(address: str, advertise: str, join: str) -> str:
    """Return what to type to reach `address`: a wildcard is no address to type."""
    host = advertise or (_host(join) if join else _host(address))
    if host in ("0.0.0.0", "[::]", "::"):
        from lutbuilder.coordinator.trust.names import outward_address

        host = outward_address() or "localhost"
    return f"{host}:{_port(address)}"


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _logged(event: Event) -> None:
    """Put what matters to whoever looks after a fleet into the log; rounds do not."""
    if event.kind == "registered":
        log.info("agent %s registered", event.agent)
    elif event.kind == "lost":
        log.warning("agent %s is lost to campaign %s: not heard of in time", event.agent, event.campaign_id)
    elif event.kind == "quarantined":
        log.warning("agent %s is quarantined: %s", event.agent, event.reason)
    elif event.kind == "finished":
        log.info("campaign %s has ended", event.campaign_id)
    elif event.failures:
        reasons = ", ".join(event.failures)
        log.warning("agent %s, campaign %s, round %s: %s", event.agent, event.campaign_id, event.round, reasons)


def _job_logged(job: JobState, phase: JobPhase, message: str) -> None:
    level = logging.WARNING if phase == "failed" else logging.INFO
    log.log(level, "job %s (%s for %s): %s %s", job.job_id, job.spec.kind, job.spec.owner or "?", phase, message)
