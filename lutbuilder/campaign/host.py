"""Hosting a campaign: the store, a coordinator that listens, an agent beside it or somewhere else, until it is done."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from lutbuilder.campaign.controller import Controller
from lutbuilder.campaign.controllers import Controllers
from lutbuilder.campaign.request import CollectRequest, OnProgress, Phase, Progress, command_line
from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.campaign.state import STORE_NAME, default_state_folder
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.embedded import EmbeddedAgent, agent_folder
from lutbuilder.coordinator.schedule import mismatch
from lutbuilder.coordinator.service import Coordinator, Event, serve
from lutbuilder.coordinator.store import AgentState, CampaignState, Store
from lutbuilder.devices import DeviceTarget
from lutbuilder_agent.errors import CampaignFailed, NoAgent, RuntimeUnavailable, StoreError

if TYPE_CHECKING:
    from lutbuilder.spaces import SearchSpace

_POLL_S = 2.0  # how often a dead local agent would be noticed; nothing else needs it
_RENEWAL_POLL_S = 0.05  # while it ends in order to be started again
_T = TypeVar("_T")


class Waits(Protocol):
    """What a host asks, again and again, while it waits: whether it shall go on."""

    def check(self) -> None:
        """Return, or raise what ends the command."""
        ...


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
    """An open store and a listening coordinator, for one command; its campaigns run one after the other."""

    store: Store
    coordinator: Coordinator
    controllers: Controllers
    address: str  # that agents dial
    started_s: float
    on_progress: OnProgress
    interrupts: Waits
    embedded: EmbeddedAgent | None = None
    look_every_s: float = 0.1  # for agents that are waited for
    _waited_s: float = field(default=0.0)

    def elapsed_s(self) -> float:
        """Seconds since this host opened, but for those it waited for agents of other machines."""
        return time.monotonic() - self.started_s - self._waited_s

    def busy_s(self) -> float:
        """Seconds that measuring may have taken: what the time inside timed visits is a share of."""
        return self.elapsed_s()

    def tell(self, phase: Phase, message: str = "") -> None:
        """Show a phase without figures."""
        self.on_progress(Progress(phase=phase, message=message, elapsed_s=self.elapsed_s()))

    def find_agent(self, device: DeviceTarget, runtime: str, *, wait_s: float | None) -> AgentState:
        """Wait for an agent that is this device and can run the runtime; return it. Raises NoAgent after `wait_s`."""
        self._tell_wanted(device, runtime)
        refused = ""

        def suitable() -> AgentState | None:
            nonlocal refused
            found = []
            for agent in self._agents():
                why = self._unfit(agent, device, runtime)
                if why is None:
                    found.append(agent)
                else:
                    refused = f"; {why}"
            return self._chosen(found, device, runtime) if found else None

        found = self._await(suitable, wait_s=wait_s, elsewhere=self.embedded is None)
        if found is None:
            raise NoAgent(
                f"no agent of {device.title} came within {wait_s:g} s{refused}. Start one on the device: "
                f"{self._agent_lines(device)[-1]}; then repeat this command, with a longer --wait"
            )
        return found

    def await_agents(self, spec: CampaignSpec, *, wait_s: float | None) -> None:
        """Wait until as many agents as the campaign allows can measure it. Raises NoAgent after `wait_s`.

        One that has measured it counts though it is gone: what was begun goes on with those that are left.
        """
        measured = {agent.name for agent in self.store.sessions([spec.key])}

        def suitable() -> set[str]:
            return measured.union(a.name for a in self._agents() if mismatch(spec, a.hello) is None)

        if len(suitable()) >= spec.agents:
            return
        name = f"another {spec.target.device}" if spec.agents == 2 else f"{spec.agents - 1} more {spec.target.device}"
        line = f"lutbuilder-agent run --coordinator {self.address}"
        self.tell("waiting", f"waiting for {name}: bring the port {self.address} there, and type\n    {line}")
        if self._await(lambda: len(suitable()) >= spec.agents or None, wait_s=wait_s, elsewhere=True) is None:
            others = [f"; {why}" for a in self._agents() if (why := mismatch(spec, a.hello)) is not None]
            raise NoAgent(
                f"{len(suitable())} of {spec.agents} agents came within {wait_s:g} s{''.join(others)}. Start the "
                f"others ({line}) and repeat this command, or do with fewer: --agents {max(1, len(suitable()))}"
            )

    def run(self, spec: CampaignSpec) -> CampaignState:
        """Run the campaign to its end and return its final state; what earlier runs measured of it counts.

        Raises CampaignFailed if somebody cancels it.
        """
        campaign_id = self._created(spec)
        self._controller(spec)
        try:
            state = self.store.campaign(campaign_id)
            if state.state == "active":
                self.coordinator.offer(campaign_id)
                state = self._until_over(spec, state)
        finally:
            self._ended(campaign_id)
        if state.state == "cancelled":
            raise CampaignFailed(
                f"campaign {campaign_id} was cancelled ({state.reason}); its visits are kept, and the same command "
                "measures anew"
            )
        return state

    def _until_over(self, spec: CampaignSpec, state: CampaignState) -> CampaignState:
        campaign_id, serial, shown = spec.key, -1, -1
        first_s, first_rounds = self.elapsed_s(), state.rounds
        while state.state == "active":
            renewing = self.embedded is not None and self.coordinator.is_over(self.embedded.name)
            poll_s = _RENEWAL_POLL_S if renewing else _POLL_S
            moment = self.coordinator.wait(campaign_id, poll_s, seen=serial)
            serial, state = moment.serial, moment.campaign
            self.interrupts.check()
            self._keep_alive()
            if state.rounds != shown:
                shown = state.rounds
                self.on_progress(self._progress(spec, state, first_s, first_rounds))
            if state.state == "active":
                self._pause()
        return state

    # --- what a host that shares its coordinator does in another way

    def _agents(self) -> tuple[AgentState, ...]:
        """Return the agents to choose from."""
        return self.coordinator.agents()

    def _tell_wanted(self, device: DeviceTarget, runtime: str) -> None:
        if device.local:
            self.tell("starting", f"starting an agent for {runtime} on this machine")
        else:
            self._tell_waiting(device)

    def _tell_waiting(self, device: DeviceTarget) -> None:
        lines = "\n".join(f"    {line}" for line in self._agent_lines(device))
        self.tell("waiting", f"waiting for an agent on {device.title}. Type:\n{lines}")

    def _agent_lines(self, device: DeviceTarget) -> tuple[str, ...]:
        return device.agent_lines(self.address)

    def _unfit(self, agent: AgentState, device: DeviceTarget, runtime: str) -> str | None:
        """Return why an agent will not do, or None if it will."""
        if not (device.local or device.matches(agent.fingerprint)):
            return f"agent {agent.name} is a {agent.fingerprint.device}"
        report = next((r for r in agent.runtimes if r.name == runtime), None)
        if report is not None and report.available:
            return None
        why = report.reason if report else "not probed"
        if self.embedded is not None:
            raise RuntimeUnavailable(f"{runtime} does not run on this machine: {why}")
        return f"agent {agent.name} cannot run {runtime}: {why}"

    def _chosen(self, found: list[AgentState], device: DeviceTarget, runtime: str) -> AgentState:
        return found[0]

    def _created(self, spec: CampaignSpec) -> str:
        return self.store.create_campaign(spec, now_s=time.time())

    def _controller(self, spec: CampaignSpec) -> Controller:
        return self.controllers.add(spec, elapsed_s=self.elapsed_s)

    def _ended(self, campaign_id: str) -> None:
        self.controllers.remove(campaign_id)

    def _pause(self) -> None:
        """Wait a little before looking again: nothing to spare here, one command watches one campaign."""

    # --- the parts

    def _await(self, ask: Callable[[], _T | None], *, wait_s: float | None, elsewhere: bool) -> _T | None:
        """Return what `ask` gives once it is not None; None after `wait_s`. Waits for other machines do not count."""
        since_s = time.monotonic()
        try:
            while (found := ask()) is None:
                self._keep_alive()
                self.interrupts.check()
                if wait_s is not None and time.monotonic() >= since_s + wait_s:
                    return None
                time.sleep(self.look_every_s)
            return found
        finally:
            if elsewhere:
                self._waited_s += time.monotonic() - since_s

    def _keep_alive(self) -> None:
        if self.embedded is not None:
            happened = self.embedded.keep_alive()
            if happened is not None:
                self.tell("preparing", happened)

    def _progress(self, spec: CampaignSpec, state: CampaignState, first_s: float, first_rounds: int) -> Progress:
        controller = self._controller(spec)
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
            ops_per_s=self.controllers.visits(spec.key) / (now_s - first_s) if rounds else None,
            drift=look.drift,
            worst_precision=look.worst_precision,
            n_failed=look.n_failed,
        )


class Opening(Protocol):
    """Where a command's campaigns run, and what names mean there: `ALONE`, or `Shared` in a coordinator of many."""

    def device(self, name: str) -> DeviceTarget:
        """Return the device a name means. Raises UnknownName."""
        ...

    def space(self, name: str, *, batch: int = 1) -> SearchSpace:
        """Return the search space a name means. Raises UnknownName, SpecError."""
        ...

    def host(
        self, device: DeviceTarget, runtime: str, *, listen: str, state_dir: Path | None, on_progress: OnProgress
    ) -> AbstractContextManager[Host]:
        """Return a host to run campaigns on. Raises StoreError, PortInUse."""
        ...

    def retyped(self, request: CollectRequest, *more: str) -> str:
        """Return the command that asks for a request, `more` words at its end, as whoever asked would type it."""
        ...


class Alone:
    """A coordinator of the command's own: it begins and ends with it."""

    def device(self, name: str) -> DeviceTarget:
        """See Opening."""
        from lutbuilder import devices
        from lutbuilder_agent.fingerprint import fingerprint

        return devices.resolve(name, here=fingerprint().device)

    def space(self, name: str, *, batch: int = 1) -> SearchSpace:
        """See Opening."""
        from lutbuilder import spaces

        return spaces.get(name, batch=batch)

    def host(
        self, device: DeviceTarget, runtime: str, *, listen: str, state_dir: Path | None, on_progress: OnProgress
    ) -> AbstractContextManager[Host]:
        """See Opening."""
        return hosting(device, runtime, listen=listen, state_dir=state_dir, on_progress=on_progress)

    def retyped(self, request: CollectRequest, *more: str) -> str:
        """See Opening."""
        return command_line(request, *more)


ALONE = Alone()


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
    folder = made_folder(state_dir)
    with ExitStack() as stack:
        interrupts = Interrupts()
        stack.callback(interrupts.restore)
        store = stack.enter_context(Store.open(folder / STORE_NAME))
        controllers = Controllers(store)
        coordinator = Coordinator(store, ArtifactShelf(), controllers.decide, narrow=controllers.narrow)
        coordinator.on_event.append(counting(controllers))
        server = stack.enter_context(serve(coordinator, listen))
        embedded = None
        if device.local:
            embedded = EmbeddedAgent(coordinator=server.address, runtime=runtime, folder=agent_folder(folder, runtime))
        host = Host(
            store=store,
            coordinator=coordinator,
            controllers=controllers,
            address=server.address,
            started_s=time.monotonic(),
            on_progress=on_progress,
            interrupts=interrupts,
            embedded=embedded,
        )
        if embedded is not None:
            coordinator.restarted.add(embedded.name)
            stack.callback(embedded.stop)
            embedded.start()
        stack.callback(coordinator.shut_down)
        interrupts.defer(coordinator.release_waiters)
        yield host


def counting(controllers: Controllers) -> Callable[[Event], None]:
    """Return a listener that counts the visits of every campaign, for progress lines."""

    def seen(event: Event) -> None:
        if event.n_timings:
            controllers.seen(event.campaign_id, event.n_timings)

    return seen


def made_folder(state_dir: Path | None) -> Path:
    """Return the state folder, made if it was not there. Raises StoreError."""
    folder = default_state_folder(state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the state folder {folder}: {error.strerror}; choose one: --state-dir DIR"
        ) from error
    return folder
