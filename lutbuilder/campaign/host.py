"""Hosting a campaign: the store, a coordinator that listens, an agent beside it or somewhere else, until it is done."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lutbuilder.campaign.controller import Controller
from lutbuilder.campaign.request import OnProgress, Phase, Progress
from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.campaign.state import STORE_NAME, default_state_folder
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.embedded import EmbeddedAgent, agent_folder
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.service import Coordinator, serve
from lutbuilder.coordinator.store import AgentState, CampaignState, Store
from lutbuilder.devices import DeviceTarget
from lutbuilder_agent.errors import NoAgent, RuntimeUnavailable, StoreError
from lutbuilder_agent.records import Report

_POLL_S = 2.0  # how often a dead local agent would be noticed; nothing else needs it
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

    def elapsed_s(self) -> float:
        """Seconds since this host opened."""
        return time.monotonic() - self.started_s

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
        deadline_s = None if wait_s is None else time.monotonic() + wait_s
        refused = ""
        while True:
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
            self._keep_alive()
            self.interrupts.check()
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise NoAgent(
                    f"no agent of {device.title} came within {wait_s:g} s{refused}. Start one on the device: "
                    f"{device.agent_lines(self.address)[-1]}; then repeat this command, with a longer --wait"
                )
            time.sleep(0.1)

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
        while state.state == "active":
            moment = self.coordinator.wait(campaign_id, _POLL_S, seen=serial)
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
            elapsed_s=now_s,
            eta_s=max(0.0, min(left)),
            ops_per_s=len(spec.ops) / round_s if round_s else None,
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
        asked: list[Callable[[str, Report], Decision]] = []
        coordinator = Coordinator(store, ArtifactShelf(), lambda campaign_id, report: asked[0](campaign_id, report))
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
        asked.append(host.decide)
        if embedded is not None:
            stack.callback(embedded.stop)
            embedded.start()
        stack.callback(coordinator.shut_down)
        interrupts.defer(coordinator.release_waiters)
        yield host
