"""What a coordinator shows to Prometheus: names with units, counters that only rise, and nothing a job would wait for.

Counters and the histogram are fed by events; gauges are read from coordinator and store when somebody scrapes.
"""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from lutbuilder import __version__
from lutbuilder.control.api import AgentPhase
from lutbuilder_agent.errors import PortInUse, SpecError, StoreError
from lutbuilder_agent.records import FAILURE_REASONS

if TYPE_CHECKING:
    from types import TracebackType

    from lutbuilder.coordinator.service import Coordinator, Event
    from lutbuilder.coordinator.store import Store

# A commit takes a fraction of a millisecond on an SSD, a disk that is busy or remote some hundred.
_COMMIT_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_JOBS = ("queued", "running", "done", "failed", "cancelled")
_CAMPAIGNS = ("active", "done", "cancelled")


class Metrics:
    """The metrics of one coordinator. `registry` is what a scrape is answered from. Safe from any thread."""

    def __init__(self, store: Store, coordinator: Coordinator) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._registered = Counter("lutbuilder_agent_registrations_total", "Sessions that agents began.", registry=own)
        self._granted = Counter("lutbuilder_leases_granted_total", "Leases given to agents.", registry=own)
        self._lost = Counter(
            "lutbuilder_leases_lost_total", "Leases whose agents were not heard of in time.", registry=own
        )
        self._reports = Counter(
            "lutbuilder_reports_total", "Reports committed; late: their lease was over.", ["late"], registry=own
        )
        self._visits = Counter("lutbuilder_visits_total", "Visits committed for the first time.", registry=own)
        self._failures = Counter(
            "lutbuilder_op_failures_total", "Failures that agents reported.", ["reason"], registry=own
        )
        self._sick = Counter("lutbuilder_agents_quarantined_total", "Times an agent was found sick.", registry=own)
        self._commits = Histogram(
            "lutbuilder_commit_seconds",
            "Time to commit a report to the store.",
            buckets=_COMMIT_BUCKETS_S,
            registry=own,
        )
        self._store_errors = Counter("lutbuilder_store_errors_total", "Calls of the store that failed.", registry=own)
        for late in ("false", "true"):
            self._reports.labels(late=late)
        for reason in FAILURE_REASONS:  # all series are there from the beginning: a rate needs the zero before the one
            self._failures.labels(reason=reason)
        self.registry.register(_Gauges(store, coordinator))
        ProcessCollector(registry=self.registry)
        coordinator.on_event.append(self.seen)
        store.on_error.append(self.store_failed)

    def seen(self, event: Event) -> None:
        """Count what a coordinator tells."""
        if event.kind == "registered":
            self._registered.inc()
        elif event.kind == "leased":
            self._granted.inc()
        elif event.kind == "lost":
            self._lost.inc()
        elif event.kind == "quarantined":
            self._sick.inc()
        elif event.kind == "reported":
            self._reports.labels(late=str(event.late).lower()).inc()
            self._visits.inc(event.n_timings)
            self._commits.observe(event.commit_s)
            for reason, n in Tally(event.failures).items():
                self._failures.labels(reason=reason).inc(n)

    def store_failed(self, error: StoreError) -> None:
        """Count a call of the store that failed."""
        self._store_errors.inc()


class _Gauges(Collector):
    """What there is at the moment of a scrape."""

    def __init__(self, store: Store, coordinator: Coordinator) -> None:
        self._store = store
        self._coordinator = coordinator

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything: the registry asks when they are registered."""
        return iter(self._families({}, {}, {}, 0, 0))

    def collect(self) -> Iterator[Metric]:
        """Read them all; of a store that fails, only that it does."""
        try:
            counts = self._store.counts()
            agents: Mapping[str, int] = Tally(str(view.state) for view in self._coordinator.fleet())
        except StoreError:
            return iter(self._families(None, {}, {}, len(self._coordinator.leases()), self._coordinator.waiting))
        leases = len(self._coordinator.leases())
        return iter(self._families(agents, counts.jobs, counts.campaigns, leases, self._coordinator.waiting))

    def _families(
        self,
        agents: Mapping[str, int] | None,
        jobs: Mapping[str, int],
        campaigns: Mapping[str, int],
        leases: int,
        waiting: int,
    ) -> list[Metric]:
        up = GaugeMetricFamily("lutbuilder_store_up", "Whether the store answers.", value=float(agents is not None))
        build = GaugeMetricFamily(
            "lutbuilder_build_info", "What runs here; always 1.", labels=["version", "python_version"]
        )
        build.add_metric([__version__, platform.python_version()], 1)
        found: list[Metric] = [build, up]
        for name, text, states, values in (
            ("lutbuilder_agents", "Agents known, by how they are doing.", get_args(AgentPhase)[:-1], agents),
            ("lutbuilder_jobs", "Jobs of the store, by where they are.", _JOBS, jobs),
            ("lutbuilder_campaigns", "Campaigns of the store, by where they are.", _CAMPAIGNS, campaigns),
        ):
            family = GaugeMetricFamily(name, text, labels=["state"])
            for state in () if agents is None else states:
                family.add_metric([state], (values or {}).get(state, 0))
            found.append(family)
        found.append(GaugeMetricFamily("lutbuilder_leases", "Leases that are held.", value=leases))
        found.append(
            GaugeMetricFamily("lutbuilder_waiting_calls", "Calls of idle agents that wait for work.", value=waiting)
        )
        return found


class MetricsServer:
    """Answers GET /metrics at "host:port" until it is closed. `address` has the port that was really taken."""

    def __init__(self, metrics: Metrics, address: str) -> None:
        host, _, port = address.rpartition(":")
        # They would be a second series of every counter, which says when it was zero: nobody plots that.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client types most of its functions
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), metrics.registry)
        except OSError as error:
            raise PortInUse(
                f"cannot show metrics at {address}: {error.strerror or error}; choose another: --metrics HOST:PORT, or "
                "none: --metrics off"
            ) from error
        except ValueError as error:
            raise SpecError(f"--metrics {address!r} is not HOST:PORT") from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop answering. May be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
