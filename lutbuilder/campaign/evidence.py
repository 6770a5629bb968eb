"""What a version of a table was fitted to beside its visits, as it is kept with them: enough to fit them again.

Visits name what they are of by an id. Only this says which ops a pair or a network of that id is made of, what failed,
who measured, and under which rules sessions were left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lutbuilder.campaign.spec import CampaignOp, Role
from lutbuilder.coordinator.samples import summary
from lutbuilder.op import OpSpec
from lutbuilder.stats.records import COLUMNS, Visits
from lutbuilder_agent.errors import SpecError

if TYPE_CHECKING:
    from lutbuilder.lut.store import RawVisit

Purpose = Literal["collect", "validate", "calibrate"]
_FLOATS = ("block_ns", "p90_ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedOp:
    """An op that was given up, and why."""

    op_id: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a fit rests on beside the visits. Orders matter: a fit of the same in the same order is the same bit by bit.

    `sessions`, `purpose`, `precision` and `reason` are of the campaign that the version was published for, the others
    of all campaigns of its pool. `imputed_space`: the space whose other ops were imputed; "" if none were.
    """

    campaign_ids: tuple[str, ...]
    ops: tuple[CampaignOp, ...]
    failures: tuple[FailedOp, ...]
    agents: Mapping[str, str]  # by session
    sessions: tuple[str, ...]
    purpose: Purpose
    precision: float
    reason: str
    imputed_space: str = ""
    keep_flagged: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; ops that several networks share are written once."""
        members = {op.op_id: op.canonical() for visited in self.ops for op in visited.ops}
        return {
            "campaigns": list(self.campaign_ids),
            "members": members,
            "ops": [[op.op_id, op.role, [member.op_id for member in op.ops]] for op in self.ops],
            "failures": [[failed.op_id, failed.reason, failed.detail] for failed in self.failures],
            "agents": dict(self.agents),
            "sessions": list(self.sessions),
            "purpose": self.purpose,
            "precision": self.precision,
            "reason": self.reason,
            "imputed_space": self.imputed_space,
            "keep_flagged": self.keep_flagged,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Evidence:
        """Inverse of `to_json`, also after a trip through JSON. Raises SpecError for what no `to_json` wrote."""
        try:
            members = {op_id: OpSpec.from_canonical(fields) for op_id, fields in body["members"].items()}
            if odd := [op_id for op_id, op in members.items() if op.op_id != op_id]:
                raise SpecError(f"op {odd[0]} does not have that id")
            ops = tuple(_op(op_id, role, ids, members) for op_id, role, ids in body["ops"])
            failures = (FailedOp(op_id=op_id, reason=why, detail=detail) for op_id, why, detail in body["failures"])
            if body["purpose"] not in get_args(Purpose):
                raise SpecError(f"purpose is {body['purpose']!r}")
            return cls(
                campaign_ids=tuple(body["campaigns"]),
                ops=ops,
                failures=tuple(failures),
                agents=dict(body["agents"]),
                sessions=tuple(body["sessions"]),
                purpose=body["purpose"],
                precision=float(body["precision"]),
                reason=str(body["reason"]),
                imputed_space=str(body["imputed_space"]),
                keep_flagged=bool(body["keep_flagged"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"not what visits were fitted with: {error}") from error


def _op(op_id: str, role: Role, members: Sequence[str], ops: Mapping[str, OpSpec]) -> CampaignOp:
    if role not in get_args(Role):
        raise SpecError(f"role of {op_id} is {role!r}")
    return CampaignOp(op_id=op_id, role=role, ops=tuple(ops[member] for member in members))


def visits_of(raw_visits: Iterable[RawVisit], evidence: Evidence) -> Visits:
    """Return the columns the statistics read, as the store gives them of the same visits: in the same order.

    Raises SpecError for a visit of a campaign or session that `evidence` does not name.
    """
    by_campaign: dict[str, list[tuple[Any, ...]]] = {name: [] for name in evidence.campaign_ids}
    for visit in raw_visits:
        timing = visit.timing
        if visit.campaign_id not in by_campaign or visit.session_id not in evidence.agents:
            raise SpecError(f"a visit of campaign {visit.campaign_id}, session {visit.session_id}, which nothing names")
        by_campaign[visit.campaign_id].append(
            (
                timing.op_id,
                visit.session_id,
                timing.round,
                timing.order,
                timing.instance,
                timing.start_ns,
                *summary(timing.samples_ns, timing.disturbed),
                len(timing.samples_ns),
                len(set(timing.preempted)),
            )
        )
    rows = [row for visits in by_campaign.values() for row in visits]
    columns: dict[str, tuple[Any, ...]] = dict(zip(COLUMNS, zip(*rows, strict=True), strict=False))
    op_ids, session_ids = (tuple(dict.fromkeys(columns.get(name, ()))) for name in ("op", "session"))
    for name, ids in (("op", op_ids), ("session", session_ids)):
        numbers = {one: number for number, one in enumerate(ids)}
        columns[name] = tuple(numbers[one] for one in columns.get(name, ()))
    arrays: dict[str, Any] = {
        name: np.array(columns.get(name, ()), np.float64 if name in _FLOATS else np.int64) for name in COLUMNS
    }
    agents = tuple(evidence.agents[name] for name in session_ids)
    return Visits(op_ids=op_ids, session_ids=session_ids, session_agents=agents, **arrays)
