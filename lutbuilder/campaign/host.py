"""Hosting a campaign: the store, a coordinator that listens, an agent beside it or somewhere else, until it is done."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lutbuilder.campaign.controller import Controller
from lutbuilder.campaign.request import OnProgress, Phase, Progress
from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.campaign.state import STORE_NAME, default_state_folder
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.embedded import EmbeddedAgent, agent_folder
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer, mismatch
from lutbuilder.coordinator.service import Coordinator, Event, serve
from lutbuilder.coordinator.store import AgentState, CampaignState, Store
from lutbuilder.devices import DeviceTarget
from lutbuilder_agent.errors import NoAgent, RuntimeUnavailable, StoreError
from lutbuilder_agent.records import Report

_POLL_S = 2.0  # how often a dead local agent would be noticed; nothing else needs it
_RENEWAL_POLL_S = 0.05  # while it ends in order to be started again
_T = TypeVar("_T")
_PUBLISH_S = 3.0  # of a budget kept for the fit and the file


class Interrupts:
    """Ctrl-C, heeded only where nothing is half done.

    An exception raised just anywhere may leave a lock taken, and then the process never ends. From `defer` on Ctrl-C is
    noted, `wake` gets whoever waits to look, and `check` raises KeyboardInterrupt. Only the main thread can, and only
    that one is interrupted; what is ignored (nohup, a shell's background) stays ignored.
    """

    def __init__(self) -> None:
        self._came = False
        self._restore = ExitStack()

    def defer(self, wake: Callable[[], None]) -> None:
        """Note Ctrl-C until `restore`. `wake` is called in a thread of its own: it may need a lock we hold."""

        def note(signum: int, frame: object) -> None:
            if not self._came:
                self._came = True
                threading.Thread(target=wake, daemon=True, name="lutbuilder-interrupt").start()

        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and before not in (signal.SIG_IGN, None):
            signal.signal(signal.SIGINT, note)
            self._restore.callback(signal.signal, signal.SIGINT, before)

    def check(self) -> None:
        """Raise KeyboardInterrupt if it came."""
        if self._came:
            raise KeyboardInterrupt

    def restore(self) -> None:
        """Let Ctrl-C mean again what it meant before."""
        self._restore.close()


@dataclass(kw_only=True)
class Host:
    """An open store and a listening coordinator. Mutable: it is given one campaign at a time to run."""

    store: Store
    coordinator: Coordinator
    address: str
    started_s: float
    on_progress: OnProgress
    embedded: EmbeddedAgent | None
    interrupts: Interrupts
    _controller: Controller | None = field(default=None)
    _waited_s: float = field(default=0.0)
    _visits: int = field(default=0)

    def elapsed_s(self) -> float:
        """Seconds since this host opened, but for those it waited for agents of other machines."""
        return time.monotonic() - self.started_s - self._waited_s

    def tell(self, phase: Phase, message: str = "") -> None:
        """Show a phase without figures."""
        self.on_progress(Progress(phase=phase, message=message, elapsed_s=self.elapsed_s()))

    def find_agent(self, device: DeviceTarget, runtime: str, *, wait_s: float | None) -> AgentState:
        """Wait for an agent that is this device and can run the runtime; return it. Raises NoAgent after `wait_s`."""
        if device.local:
            self.tell("starting", f"starting an agent for {runtime} on this machine")
        else:
            lines = "\n".join(f"    {line}" for line in device.agent_lines(self.address))
            self.tell("waiting", f"waiting for an agent on {device.title}. Type:\n{lines}")
        refused = ""

        def suitable() -> AgentState | None:
            nonlocal refused
            for agent in self.coordinator.agents():
                if not (device.local or device.matches(agent.fingerprint)):
                    refused = f"; agent {agent.name} is a {agent.fingerprint.device}"
                    continue
                report = next((r for r in agent.runtimes if r.name == runtime), None)
                if report is not None and report.available:
                    return agent
                refused = f"; agent {agent.name} cannot run {runtime}: {report.reason if report else 'not probed'}"
                if device.local:
                    raise RuntimeUnavailable(f"{runtime} does not run on this machine: {refused.partition(': ')[2]}")
            return None

        found = self._await(suitable, wait_s=wait_s, elsewhere=not device.local)
        if found is None:
            raise NoAgent(
                f"no agent of {device.title} came within {wait_s:g} s{refused}. Start one on the device: "
                f"{device.agent_lines(self.address)[-1]}; then repeat this command, with a longer --wait"
            )
        return found

    def await_agents(self, spec: CampaignSpec, *, wait_s: float | None) -> None:
        """Wait until as many agents as the campaign allows can measure it. Raises NoAgent after `wait_s`."""

        def suitable() -> list[AgentState]:
            return [a for a in self.coordinator.agents() if mismatch(spec, a.hello) is None]

        if len(suitable()) >= spec.agents:
            return
        name = f"another {spec.target.device}" if spec.agents == 2 else f"{spec.agents - 1} more {spec.target.device}"
        line = f"lutbuilder-agent run --coordinator {self.address}"
        self.tell("waiting", f"waiting for {name}: bring the port {self.address} there, and type\n    {line}")
        if self._await(lambda: len(suitable()) >= spec.agents or None, wait_s=wait_s, elsewhere=True) is None:
            others = [f"; {why}" for a in self.coordinator.agents() if (why := mismatch(spec, a.hello)) is not None]
            raise NoAgent(
                f"{len(suitable())} of {spec.agents} agents came within {wait_s:g} s{''.join(others)}. Start the "
                f"others ({line}) and repeat this command, or do with fewer: --agents {max(1, len(suitable()))}"
            )

    def _await(self, ask: Callable[[], _T | None], *, wait_s: float | None, elsewhere: bool) -> _T | None:
        """Return what `ask` gives once it is not None; None after `wait_s`. Waits for other machines do not count."""
        since_s = time.monotonic()
        try:
            while (found := ask()) is None:
                self._keep_alive()
                self.interrupts.check()
                if wait_s is not None and time.monotonic() >= since_s + wait_s:
                    return None
                time.sleep(0.1)
            return found
        finally:
            if elsewhere:
                self._waited_s += time.monotonic() - since_s

    def run(self, spec: CampaignSpec) -> CampaignState:
        """Run the campaign to its end and return its final state; what earlier runs measured of it counts."""
        campaign_id = self.store.create_campaign(spec, now_s=time.time())
        controller = Controller(self.store, spec, elapsed_s=self.elapsed_s, reserve_s=_PUBLISH_S)
        self._controller = controller
        state = self.store.campaign(campaign_id)
        if state.state != "active":
            return state
        self.coordinator.offer(campaign_id)
        serial = -1
        shown = -1
        first_s, first_rounds = self.elapsed_s(), state.rounds
        self._visits = 0
        while state.state == "active":
            renewing = self.embedded is not None and self.coordinator.is_over(self.embedded.name)
            poll_s = _RENEWAL_POLL_S if renewing else _POLL_S
            moment = self.coordinator.wait(campaign_id, poll_s, seen=serial)
            serial, state = moment.serial, moment.campaign
            self.interrupts.check()
            self._keep_alive()
            if state.rounds != shown:
                shown = state.rounds
                self.on_progress(self._progress(spec, controller, state, first_s, first_rounds))
        self._controller = None
        return state

    def decide(self, campaign_id: str, report: Report) -> Decision:
        """What the coordinator asks after every commit."""
        controller = self._controller
        return Decision() if controller is None else controller.decide(campaign_id, report)

    def narrow(self, lease: HeldLease, offer: Offer) -> Offer:
        """What the coordinator asks before every lease."""
        controller = self._controller
        return offer if controller is None else controller.next_lease(lease, offer)

    def seen(self, event: Event) -> None:
        """Count what comes in, for the progress line."""
        self._visits += event.n_timings

    def _keep_alive(self) -> None:
        if self.embedded is not None:
            happened = self.embedded.keep_alive()
            if happened is not None:
                self.tell("preparing", happened)

    def _progress(
        self, spec: CampaignSpec, controller: Controller, state: CampaignState, first_s: float, first_rounds: int
    ) -> Progress:
        look = controller.look
        now_s = self.elapsed_s()
        rounds = state.rounds - first_rounds
        round_s = (now_s - first_s) / rounds if rounds else None
        left = [spec.budget_s - controller.spent_s]
        if round_s is not None:
            left.append((spec.max_rounds - state.rounds) * round_s)
        return Progress(
            phase="timing" if state.rounds else "preparing",
            message="" if state.rounds else f"loading {len(spec.ops)} artifacts, {spec.plan.instances} times each",
            round=state.rounds,
            max_rounds=spec.max_rounds,
            n_ops=sum(op.role == "op" for op in spec.ops),
            n_precise=look.n_precise,
            n_rotation=look.n_rotation,
            elapsed_s=now_s,
            eta_s=max(0.0, min(left)),
            ops_per_s=self._visits / (now_s - first_s) if rounds else None,
            drift=look.drift,
            worst_precision=look.worst_precision,
            n_failed=look.n_failed,
        )


@contextmanager
def hosting(
    device: DeviceTarget,
    runtime: str,
    *,
    listen: str,
    state_dir: Path | None,
    on_progress: OnProgress,
) -> Iterator[Host]:
    """Open the store, listen, and start an agent if the device is this machine; end all of it on the way out.

    Ctrl-C is heeded while the host waits; fitting, publishing and the way out are short and not cut in two.
    Raises StoreError, PortInUse.
    """
    folder = default_state_folder(state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the state folder {folder}: {error.strerror}; choose one: --state-dir DIR"
        ) from error
    with ExitStack() as stack:
        interrupts = Interrupts()
        stack.callback(interrupts.restore)
        store = stack.enter_context(Store.open(folder / STORE_NAME))
        hosts: list[Host] = []
        coordinator = Coordinator(
            store,
            ArtifactShelf(),
            lambda campaign_id, report: hosts[0].decide(campaign_id, report),
            narrow=lambda lease, offer: hosts[0].narrow(lease, offer),
        )
        server = stack.enter_context(serve(coordinator, listen))
        embedded = None
        if device.local:
            embedded = EmbeddedAgent(coordinator=server.address, runtime=runtime, folder=agent_folder(folder, runtime))
        host = Host(
            store=store,
            coordinator=coordinator,
            address=server.address,
            started_s=time.monotonic(),
            on_progress=on_progress,
            embedded=embedded,
            interrupts=interrupts,
        )
        hosts.append(host)
        coordinator.on_event.append(host.seen)
        if embedded is not None:
            coordinator.restarted.add(embedded.name)
            stack.callback(embedded.stop)
            embedded.start()
        stack.callback(coordinator.shut_down)
        interrupts.defer(coordinator.release_waiters)
        yield host
