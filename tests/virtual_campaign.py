"""Whole campaigns in virtual time: store, coordinator and controller as they are, an agent on the simulated device.

An hour of measuring takes seconds: visits are made by the code the worker runs, loading takes the time it is said to,
and the controller reads the virtual clock. There are neither processes nor a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lutbuilder.campaign.controller import Controller
from lutbuilder.campaign.plan import campaign_ops, expected_uses
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer
from lutbuilder.coordinator.service import Coordinator
from lutbuilder.coordinator.store import CampaignState, Store
from lutbuilder.lower import lower_network
from lutbuilder.op import OpSpec
from lutbuilder.spaces import SearchSpace
from lutbuilder_agent.errors import UnknownSession
from lutbuilder_agent.graph import LayerGraph
from lutbuilder_agent.records import AgentHello, Fingerprint, Lease, Plan, Report, RuntimeReport, Timing
from lutbuilder_agent.runtimes import Prepared
from lutbuilder_agent.runtimes.simulated import SimulatedRuntime, true_ns
from lutbuilder_agent.timing import shuffled, time_train, trains

FINGERPRINT = Fingerprint(device="virtual", facts=())
HELLO = AgentHello(
    name="virtual", agent_version="1", fingerprint=FINGERPRINT, runtimes=(RuntimeReport(name="simulated", version="1"),)
)
# Like the recorded visits of ProxylessNAS on ONNX Runtime: a clock of two states, visits that differ by 1.7 % when
# drift is out, for some ops four times that, and preparations by 1 %.
REALISTIC: Mapping[str, str] = {
    "clock_ratio": "1.7",
    "clock_dwell_s": "0.8",
    "instance_sigma": "0.01",
    "noise_sigma": "0.03",
    "noise_rho": "0.9",
    "noise_spread": "0.6",
}
LOAD_S = 0.007  # of an op, once: 2 s for all instances of a campaign, as there


def spec_of(
    ops: tuple[CampaignOp, ...],
    *,
    seed: int = 0,
    options: Mapping[str, str] = REALISTIC,
    budget_s: float = 3600.0,
    precision: float = 0.01,
    max_rounds: int = 10_000,
    lease_rounds: int = 24,
    train_ops: int = 12,
    sessions: int = 1,
) -> CampaignSpec:
    """Return a campaign over `ops`; blocks are short, for they are played and not waited for."""
    plan = Plan(
        runtime="simulated",
        cache="rotating",
        train_ops=train_ops,
        min_block_ns=4_000_000,
        max_calls=6,
        options=tuple(sorted({**options, "seed": str(seed), "session": "own"}.items())),
        seed=seed,
    )
    return CampaignSpec(
        space="virtual",
        target=Target(device="virtual", runtime="simulated"),
        plan=plan,
        env_id=FINGERPRINT.env_id,
        runtime_version="1",
        ops=ops,
        budget_s=budget_s,
        precision=precision,
        max_rounds=max_rounds,
        lease_rounds=lease_rounds,
        sessions=sessions,
    )


def truth_ms(op: CampaignOp) -> float:
    """Return what a perfect measurement would report, call overhead inside."""
    return true_ns(lower_network(op.ops)) / 1e6


class EveryOp(Controller):
    """A controller that never leaves an op out: the fixed rounds that adaptive ones are compared with."""

    rounds = 24

    def _rotation(self, offer: Offer, seen: object) -> Offer:
        return offer

    def _phase(self, offer: Offer, seen: object, *, left_s: float) -> Offer:
        return replace(offer, rounds=min(self.rounds, offer.rounds))


@dataclass(kw_only=True)
class VirtualAgent:
    """Registers, leases, times, reports, until there is nothing to do. `load_s`: of one op once."""

    coordinator: Coordinator
    load_s: float
    name: str = HELLO.name
    clock_s: float = 0.0
    leases: list[Lease] = field(default_factory=list)
    on_lease_end: Callable[[], object] = lambda: None
    _epoch: int = 0
    _instances: int = 0

    def run(self) -> None:
        """Do all there is to do."""
        session_id = self._register()
        while True:
            try:
                answer = self.coordinator.lease(session_id, "ok", 0.0)
            except UnknownSession:
                session_id = self._register()
                continue
            if not isinstance(answer, Lease):
                return
            self.leases.append(answer)
            self._measure(session_id, answer)
            self.on_lease_end()

    def _register(self) -> str:
        session = self.coordinator.register(replace(HELLO, name=self.name))
        self._epoch, self._instances = session.epoch, 0
        return session.session_id

    def _measure(self, session_id: str, lease: Lease) -> None:
        plan = lease.plan
        self.clock_s += self.load_s * plan.instances * len(lease.ops)
        own = {"session": f"{self.name}-{self._epoch}", "clock_ns": str(int(self.clock_s * 1e9))}
        runtime = SimulatedRuntime(threads=1, options={**dict(plan.options), **own})
        prepared: dict[str, list[Prepared]] = {}
        for op in lease.ops:
            raw = b"".join(self.coordinator.fetch(session_id, op.artifact.sha256, 0))
            prepared[op.op_id] = [runtime.prepare(raw, instance=self._instances + k) for k in range(plan.instances)]
        for number in range(lease.first_round, lease.first_round + lease.rounds):
            before_ns = runtime.now_ns()
            timings = self._round(runtime, prepared, plan, number, number - lease.first_round)
            took_ns = runtime.now_ns() - before_ns
            self.clock_s += took_ns / 1e9
            ack = self.coordinator.report(
                Report(
                    report_id=f"{session_id}-{number}",
                    session_id=session_id,
                    lease_id=lease.lease_id,
                    lease_epoch=lease.epoch,
                    campaign_id=lease.campaign_id,
                    round=number,
                    timings=timings,
                    round_ns=took_ns,
                    timed_ns=took_ns,
                )
            )
            if ack.stop:
                break
        self._instances += plan.instances

    def _round(
        self, runtime: SimulatedRuntime, prepared: Mapping[str, Sequence[Prepared]], plan: Plan, number: int, visit: int
    ) -> tuple[Timing, ...]:
        timings: list[Timing] = []
        k = visit % plan.instances
        units = trains(shuffled(list(prepared), seed=plan.seed, round=number), length=plan.train_ops)
        for unit in shuffled(units, seed=plan.seed + 1, round=number):
            blocks = time_train(
                [prepared[op_id][k] for op_id in unit],
                plan,
                now_ns=runtime.now_ns,
                on_call=_nothing,
                lost_core=_never,
            )
            timings += [
                Timing(
                    op_id=op_id,
                    round=number,
                    order=len(timings) + i,
                    instance=self._instances + k,
                    start_ns=block.start_ns,
                    warmup_ns=block.warmup_ns,
                    samples_ns=block.samples_ns,
                    preempted=block.preempted,
                )
                for i, (op_id, block) in enumerate(zip(unit, blocks, strict=True))
            ]
        return tuple(timings)


@dataclass(frozen=True, kw_only=True)
class Played:
    """A campaign that is over."""

    state: CampaignState
    seconds: float  # of virtual time
    leases: tuple[Lease, ...]


def play(
    spec: CampaignSpec,
    store: Store,
    *,
    load_s: float = LOAD_S,
    kind: type[Controller] = Controller,
    on_lease_end: Callable[[float], object] = lambda seconds: None,
) -> Played:
    """Run a campaign from its beginning to its end; `on_lease_end` gets the virtual time."""
    store.create_campaign(spec, now_s=0.0)
    controllers: list[Controller] = []

    def decide(campaign_id: str, report: Report) -> Decision:
        return controllers[0].decide(campaign_id, report)

    def narrow(lease: HeldLease, offer: Offer) -> Offer:
        return controllers[0].next_lease(lease, offer)

    coordinator = Coordinator(store, ArtifactShelf(build=_as_it_is), decide, narrow=narrow, clock=lambda: 0.0)
    agent = VirtualAgent(coordinator=coordinator, load_s=load_s)
    agent.on_lease_end = lambda: on_lease_end(agent.clock_s)
    controllers.append(kind(store, spec, elapsed_s=lambda: agent.clock_s, reserve_s=0.0))
    coordinator.offer(spec.key)
    agent.run()
    return Played(state=store.campaign(spec.key), seconds=agent.clock_s, leases=tuple(agent.leases))


def open_store(folder: Path) -> Store:
    """Open a store of its own."""
    return Store.open(folder / "campaigns.sqlite")


def _as_it_is(graph: LayerGraph, format: str) -> bytes:
    return graph.to_bytes()


def _nothing(_: int) -> None: ...


def _never() -> int:
    return 0


def convs() -> tuple[CampaignOp, ...]:
    """Return 60 ops of 0.02 to 3 ms; a random network has ten of them, call overhead and all."""
    ops = [
        OpSpec(kind="conv", in_channels=width, out_channels=width, height=size, width=size, kernel=kernel)
        for width in range(8, 88, 8)
        for size, kernel in ((14, 1), (14, 3), (28, 1), (28, 3), (14, 5), (14, 7))
    ]
    return tuple(replace(CampaignOp.of(op), use=1 / 6) for op in ops)


def space_ops(space: SearchSpace) -> tuple[CampaignOp, ...]:
    """Return what a campaign over a whole space visits."""
    return campaign_ops(space.ops(), space.ops(), uses=expected_uses(space))
