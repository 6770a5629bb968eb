"""CampaignSpec: a space measured on a target under one plan; canonical, so that the same command finds it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError
from lutbuilder_agent.records import Cache, Plan

Role = Literal["op", "overhead", "pair", "network", "carrier"]
ALL_BATCHES = -1  # a sentinel: visited in every batch
# Fields that the first release did not have. At these, their defaults, they are not written: a stored campaign's key
# must not move.
_LATER: Mapping[str, object] = {"lease_rounds": 0, "networks_sha256": "", "sessions": 1, "agents": 1, "use": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one LUT speaks for: device + runtime + conditions; `device` is the slug of Fingerprint.device."""

    device: str
    runtime: str
    dtype: str = "fp32"
    batch: int = 1
    threads: int = 1
    cache: Cache = "rotating"

    @property
    def lut_name(self) -> str:
        """Folder below luts/: `<device>/<runtime>-<dtype>-bs<N>`; `-t<threads>`, `-<cache>` where not the default."""
        threads = f"-t{self.threads}" if self.threads != 1 else ""
        cache = f"-{self.cache}" if self.cache != "rotating" else ""
        return f"{self.device}/{self.runtime}-{self.dtype}-bs{self.batch}{threads}{cache}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignOp:
    """One thing a campaign visits: an op, an empty call, or several OpSpecs run as one graph (a pair, a whole network).

    A pair is two ops that follow each other: what it saves against its two ops alone is the call overhead between them.
    """

    op_id: str
    role: Role
    ops: tuple[OpSpec, ...]
    batch: int = 0  # which lease batch; ALL_BATCHES for sentinels
    every: int = 1  # visited in every n-th round
    use: float = 1.0  # how often its time counts in the latency of a random network of the space, on average

    @classmethod
    def of(cls, op: OpSpec, *, batch: int = 0) -> CampaignOp:
        """An op (or overhead op, for an identity) on its own."""
        return cls(op_id=op.op_id, role="overhead" if op.kind == "identity" else "op", ops=(op,), batch=batch)

    @classmethod
    def pair(cls, first: OpSpec, second: OpSpec, *, batch: int = 0) -> CampaignOp:
        """Two ops as one graph."""
        return cls(op_id=f"pair-{first.op_id}-{second.op_id}", role="pair", ops=(first, second), batch=batch)

    @classmethod
    def network(cls, ops: tuple[OpSpec, ...], *, batch: int = 0, every: int = 1) -> CampaignOp:
        """A whole network, named by the hash of its ops."""
        body = "+".join(op.op_id for op in ops)
        op_id = f"net-{hashlib.sha256(body.encode()).hexdigest()[:16]}"
        return cls(op_id=op_id, role="network", ops=ops, batch=batch, every=every)

    @classmethod
    def carrier(cls, ops: tuple[OpSpec, ...], *, batch: int = 0) -> CampaignOp:
        """A whole network that is part of the fit: it says what ops cost in situ (campaign/carriers.py)."""
        return replace(cls.network(ops, batch=batch), role="carrier")

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole network, which is timed in a block of its own."""
        return self.role in ("network", "carrier")


_OF_OP = tuple(field.name for field in fields(CampaignOp) if field.name != "ops")


@dataclass(frozen=True, kw_only=True)
class CampaignSpec:
    """Everything that defines a campaign; `key` names it, so a killed command started again continues it."""

    space: str
    target: Target
    plan: Plan
    env_id: str  # fingerprint of the device; another environment is another campaign
    runtime_version: str  # and so is another version of the engine
    ops: tuple[CampaignOp, ...]
    budget_s: float
    precision: float  # wanted relative half-width of the 95 % interval
    max_rounds: int
    purpose: Literal["collect", "validate", "calibrate"] = "collect"
    repeat: int = 0  # n-th deliberate re-run of an otherwise equal campaign
    lease_rounds: int = 0  # a lease covers so many rounds at most, the next one prepares every op anew; 0: no limit
    sessions: int = 1  # of every agent, one after the other; they share budget and rounds equally
    agents: int = 1  # how many agents of this environment may measure the same batch at once
    networks_sha256: str = ""  # of a validation's list of networks, fixed here before anything is timed

    def __post_init__(self) -> None:
        ids = [op.op_id for op in self.ops]
        if not ids or len(set(ids)) != len(ids):
            raise SpecError("a campaign names at least one op, each once")

    @cached_property
    def key(self) -> str:
        """16 hex digits over everything above."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()[:16]

    def canonical(self) -> dict[str, Any]:
        """Plain values for JSON; `from_canonical` gives an equal spec back."""
        nested = ("target", "plan", "ops")
        body = _written({field.name: getattr(self, field.name) for field in fields(self) if field.name not in nested})
        body["target"] = asdict(self.target)
        body["plan"] = asdict(self.plan)
        body["ops"] = [
            {
                **_written({name: getattr(op, name) for name in _OF_OP}),
                "ops": [member.canonical() for member in op.ops],
            }
            for op in self.ops
        ]
        return body

    @classmethod
    def from_canonical(cls, body: dict[str, Any]) -> CampaignSpec:
        """Inverse of `canonical`, also after a trip through JSON."""
        values = dict(body)
        plan = dict(values.pop("plan"))
        plan["options"] = tuple((str(k), str(v)) for k, v in plan["options"])
        ops = tuple(
            CampaignOp(**{**op, "ops": tuple(OpSpec.from_canonical(o) for o in op["ops"])}) for op in values.pop("ops")
        )
        return cls(target=Target(**values.pop("target")), plan=Plan(**plan), ops=ops, **values)


def _written(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}
