"""Campaigns on the simulated device, whose truth is known, driven in process by the code that drives the worker's.

What the statistics are proved on end to end: shuffled rounds, trains and blocks (lutbuilder_agent.timing) on the real
simulated runtime, summed up as the store does. tests/simulated_visits.py makes visits without a device, and faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.plan import campaign_ops
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.coordinator.samples import summary
from lutbuilder.lower import lower_network
from lutbuilder.op import OpSpec
from lutbuilder.stats.records import Visits
from lutbuilder_agent.records import Plan
from lutbuilder_agent.runtimes.simulated import SimulatedRuntime, true_ns
from lutbuilder_agent.timing import shuffled, time_train, trains

OVERHEAD_NS = 5000.0  # the simulated device's own default


def _mbconv(in_channels: int, out_channels: int, size: int, *, expand: int, kernel: int = 3, stride: int = 1) -> OpSpec:
    return OpSpec(
        kind="mbconv",
        in_channels=in_channels,
        out_channels=out_channels,
        height=size,
        width=size,
        mid_channels=expand * in_channels,
        kernel=kernel,
        stride=stride,
    )


# Four shapes that follow each other. What the stem takes comes from nowhere: its call overhead is an empty call's.
SPACE = (
    OpSpec(kind="conv", in_channels=3, out_channels=8, height=56, width=56, kernel=3, stride=2, act="relu6"),
    *(_mbconv(8, 8, 28, expand=e, kernel=k) for e, k in ((2, 3), (3, 5))),
    *(_mbconv(8, 16, 28, expand=e, stride=2) for e in (3, 6)),
    *(_mbconv(16, 16, 14, expand=e, kernel=k) for e, k in ((2, 3), (6, 7))),
    *(_mbconv(16, 32, 14, expand=e, stride=2) for e in (3, 6)),
    *(_mbconv(32, 32, 7, expand=e, kernel=k) for e, k in ((3, 3), (6, 5))),
    *(_mbconv(32, 48, 7, expand=e) for e in (2, 4)),
    OpSpec(kind="logits", in_channels=48, out_channels=1000, height=7, width=7),
)
OPS: tuple[CampaignOp, ...] = campaign_ops(SPACE, SPACE)


@lru_cache(maxsize=1)
def artifacts() -> Mapping[str, bytes]:
    """Return what the runtime loads, by op_id."""
    return {op.op_id: lower_network(op.ops).to_bytes() for op in OPS}


@lru_cache(maxsize=1)
def true_call_ns() -> Mapping[str, float]:
    """Return how long a call takes on an undisturbed device, overhead included, by op_id."""
    return {op.op_id: true_ns(lower_network(op.ops)) for op in OPS}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How campaigns of one kind are measured, and on what a machine. `options` are the simulated runtime's.

    Every session has `leases` that share its `rounds`, and every lease prepares `instances` new instances. A session
    after the first leaves out `left_out` of the ops. `op_sigma`: what a session adds to each op, sd of log time.
    """

    rounds: int
    sessions: int = 1
    leases: int = 1
    instances: int = 3
    train_ops: int = 1
    left_out: int = 0
    op_sigma: float = 0.0
    options: tuple[tuple[str, str], ...] = ()


class Device:
    """One session on the simulated device: leases prepare ops and time rounds of them. Rounds count on."""

    def __init__(self, setting: Setting, *, seed: int, session: int = 0) -> None:
        self._setting = setting
        self._session = session
        self._plan = Plan(
            runtime="simulated",
            cache="rotating" if setting.train_ops > 1 else "hot",
            train_ops=setting.train_ops,
            instances=setting.instances,
            max_calls=8,
            min_block_ns=200_000,  # as short beside the usual 12 ms as these ops are beside usual ones
            seed=seed,
        )
        options = {**dict(setting.options), "seed": str(seed), "session": str(session)}
        self.runtime = SimulatedRuntime(threads=1, options=options)
        own = np.random.default_rng((seed, session)).standard_normal(len(OPS))
        self._own = {op.op_id: float(np.exp(setting.op_sigma * z)) for op, z in zip(OPS, own, strict=True)}
        self._instances = 0
        self._rounds = 0
        self.visits: list[tuple[str, int, int, int, int, int, float, float, int]] = []

    def lease(self, op_ids: Sequence[str], rounds: int) -> None:
        """Prepare these ops anew and time `rounds` of them, as the worker does."""
        n, plan = self._setting.instances, self._plan
        numbers = range(self._instances, self._instances + n)
        prepared = {op_id: [self.runtime.prepare(artifacts()[op_id], instance=i) for i in numbers] for op_id in op_ids}
        for visited in range(rounds):
            round_ = self._rounds + visited
            units = trains(shuffled(list(op_ids), seed=plan.seed, round=round_), length=plan.train_ops)
            order = 0
            for unit in shuffled(units, seed=plan.seed + 1, round=round_):
                members = [prepared[op_id][visited % n] for op_id in unit]
                blocks = time_train(members, plan, now_ns=self.runtime.now_ns, on_call=_nothing, lost_core=_never)
                for op_id, block in zip(unit, blocks, strict=True):
                    block_ns, p90_ns = summary(block.samples_ns, block.preempted)
                    own, instance = self._own[op_id], numbers[visited % n]
                    at = (op_id, self._session, round_, order, instance, block.start_ns)
                    self.visits.append((*at, own * block_ns, own * p90_ns, len(block.samples_ns)))
                    order += 1
        self._instances += n
        self._rounds += rounds


def campaign(setting: Setting, *, seed: int) -> Visits:
    """Return the visits of one campaign."""
    devices = []
    for session in range(setting.sessions):
        device = Device(setting, seed=seed, session=session)
        op_ids = [op.op_id for op in OPS]
        left = np.random.default_rng((seed, session)).permutation(len(OPS))[: len(OPS) - setting.left_out]
        for lease in range(setting.leases):
            rounds = setting.rounds * (lease + 1) // setting.leases - setting.rounds * lease // setting.leases
            device.lease(op_ids if session == 0 else [op_ids[i] for i in sorted(left)], rounds)
        devices.append(device)
    return visits_of(devices)


def visits_of(devices: Sequence[Device]) -> Visits:
    """Return what sessions have visited so far."""
    columns = list(zip(*(visit for device in devices for visit in device.visits), strict=True))
    numbers = {op.op_id: number for number, op in enumerate(OPS)}
    session, round_, order, instance, start_ns, n_calls = (np.array(columns[k], np.int64) for k in (1, 2, 3, 4, 5, 8))
    return Visits(
        op_ids=tuple(numbers),
        session_ids=tuple(f"s{number}" for number in range(len(devices))),
        op=np.array([numbers[op_id] for op_id in columns[0]]),
        session=session,
        round=round_,
        order=order,
        instance=instance,
        start_ns=start_ns,
        block_ns=np.array(columns[6]),
        p90_ns=np.array(columns[7]),
        n_calls=n_calls,
        n_preempted=np.zeros_like(n_calls),
    )


def windows(setting: Setting, *, seed: int, calls: int) -> NDArray[np.float64]:
    """Return `calls` consecutive calls of one op after the other, after one to warm up, as plain tools do; in ns.

    Shape (ops, calls), the ops in the order of OPS.
    """
    runtime = Device(setting, seed=seed).runtime
    seen = []
    for op in OPS:
        prepared = runtime.prepare(artifacts()[op.op_id], instance=0)
        prepared.timed_call()
        seen.append([prepared.timed_call() for _ in range(calls)])
    return np.array(seen, np.float64)


def _nothing(_: int) -> None: ...


def _never() -> int:
    return 0
