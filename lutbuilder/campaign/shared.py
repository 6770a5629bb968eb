"""Hosts that share one coordinator: several campaigns at once, over agents that belong to nobody.

Nothing is started and nothing ended here: `lutbuilder serve` owns the store, the coordinator and its controllers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lutbuilder.campaign.controller import Controller
from lutbuilder.campaign.controllers import Controllers
from lutbuilder.campaign.host import Host, Waits
from lutbuilder.campaign.request import CollectRequest, OnProgress, command_line
from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator.service import Coordinator
from lutbuilder.coordinator.store import AgentState, Store
from lutbuilder.devices import DeviceTarget
from lutbuilder_agent.errors import SpecError

if TYPE_CHECKING:
    from lutbuilder.spaces import SearchSpace

_LOOK_S = 0.25  # between two looks at a campaign: in a coordinator of many, something changes all the time
_USUAL_LUTS = CollectRequest().luts
_AGENTS_S = 0.5  # between two looks for agents


@dataclass(kw_only=True)
class SharedHost(Host):
    """A host whose coordinator others use, too. Its campaigns' budgets are busy time: see Controllers."""

    priority: int
    began: Callable[[str], None]  # is told of every campaign before it begins
    known_sessions: frozenset[str]  # of before this coordinator: their agents may be long gone
    env_id: str  # the only environment that will do, of a job that goes on; "": any
    look_every_s: float = _AGENTS_S
    _busy_s: float = field(default=0.0)

    def busy_s(self) -> float:
        """See Host: what agents spent on this host's campaigns; waiting in queues is none of it."""
        return self._busy_s

    def _agents(self) -> tuple[AgentState, ...]:
        """Return the agents that call this coordinator, and those that are seen to call another one of the store."""
        found = {agent.name: agent for agent in self.coordinator.agents()}
        leased = {lease.session_id for lease in self.store.active_leases()}
        for agent in self.store.agents():
            if agent.session_id in leased or agent.session_id not in self.known_sessions:
                found.setdefault(agent.name, agent)
        return tuple(found[name] for name in sorted(found))

    def _tell_wanted(self, device: DeviceTarget, runtime: str) -> None:
        if not any(self._unfit(agent, device, runtime) is None for agent in self._agents()):
            self._tell_waiting(device)

    def _agent_lines(self, device: DeviceTarget) -> tuple[str, ...]:
        return (f"lutbuilder-agent run --coordinator {self.address}",)

    def _unfit(self, agent: AgentState, device: DeviceTarget, runtime: str) -> str | None:
        flags = self.store.agent_flags().get(agent.name)
        if flags is not None and flags.drained:
            return f"agent {agent.name} is drained: lutbuilder agents resume {agent.name}"
        if flags is not None and flags.quarantined:
            return f"agent {agent.name} is quarantined ({flags.quarantined}): lutbuilder agents release {agent.name}"
        if self.env_id and agent.fingerprint.env_id != self.env_id:
            return f"agent {agent.name} is of environment {agent.fingerprint.env_id}, the job began in {self.env_id}"
        return super()._unfit(agent, device, runtime)

    def _chosen(self, found: list[AgentState], device: DeviceTarget, runtime: str) -> AgentState:
        """Return an agent of the environment that most of them are in. Raises SpecError for different silicon."""
        slugs = sorted({agent.fingerprint.device for agent in found})
        if len(slugs) > 1 and device.local and runtime != "simulated":
            raise SpecError(
                f"{runtime} runs on agents of {len(slugs)} devices, {', '.join(slugs)}: say which one is meant: "
                f"--device {slugs[0]}"
            )
        often = Counter(agent.fingerprint.env_id for agent in found)
        return min(found, key=lambda agent: (-often[agent.fingerprint.env_id], agent.name))

    def _created(self, spec: CampaignSpec) -> str:
        self.began(spec.key)
        return self.store.create_campaign(spec, now_s=time.time(), priority=self.priority)

    def _controller(self, spec: CampaignSpec) -> Controller:
        return self.controllers.add(spec)

    def _ended(self, campaign_id: str) -> None:
        self._busy_s += self.controllers.busy_s(campaign_id)
        super()._ended(campaign_id)

    def _pause(self) -> None:
        time.sleep(_LOOK_S)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """An Opening (campaign/host.py) of one job in a coordinator of many.

    `spaces`: what the names of files mean that came with the job, name to text; no other file is a space here.
    """

    store: Store
    coordinator: Coordinator
    controllers: Controllers
    address: str
    waits: Waits
    began: Callable[[str], None]
    priority: int = 0
    env_id: str = ""
    known_sessions: frozenset[str] = frozenset()
    spaces: Mapping[str, str] = field(default_factory=dict)
    coordinator_address: str = ""  # as whoever asked dials it

    def device(self, name: str) -> DeviceTarget:
        """Return a device by its name, or by the slug of the silicon of an agent. Raises UnknownName."""
        from lutbuilder import devices

        return devices.elsewhere(name, [agent.fingerprint.device for agent in self.store.agents()])

    def space(self, name: str, *, batch: int = 1) -> SearchSpace:
        """See Opening; a name that came with a file means that file. Raises SpecError for any other file."""
        from lutbuilder import spaces
        from lutbuilder.spaces.registry import SUFFIX

        if name in self.spaces:
            from lutbuilder.spaces import toml_file

            return toml_file.parse(self.spaces[name], name=name, batch=batch)
        if name.endswith(SUFFIX):
            raise SpecError(f"{name} is a file of another machine: name it yourself, --space FILE{SUFFIX}")
        return spaces.get(name, batch=batch)

    @contextmanager
    def host(
        self, device: DeviceTarget, runtime: str, *, listen: str, state_dir: Path | None, on_progress: OnProgress
    ) -> Iterator[Host]:
        """See Opening; `listen` and `state_dir` are the coordinator's own business."""
        yield SharedHost(
            store=self.store,
            coordinator=self.coordinator,
            controllers=self.controllers,
            address=self.address,
            started_s=time.monotonic(),
            on_progress=on_progress,
            interrupts=self.waits,
            priority=self.priority,
            began=self.began,
            known_sessions=self.known_sessions,
            env_id=self.env_id,
        )

    def retyped(self, request: CollectRequest, *more: str) -> str:
        """See Opening; the folder of the tables is the coordinator's own."""
        where = ("--coordinator", self.coordinator_address) if self.coordinator_address else ()
        return command_line(replace(request, luts=_USUAL_LUTS), *more, *where)
