"""A campaign, its agents and their reports, small enough to read: what the tests of the store put into it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.store import Store, StoredLease, schema
from lutbuilder.op import OpSpec
from lutbuilder_agent.records import AgentHello, Conditions, Fingerprint, Plan, Report, RuntimeReport, Timing

FINGERPRINT = Fingerprint(device="toy", facts=(("cpu.model", "toy"), ("os", "linux")))
HELLO = AgentHello(
    name="alice",
    agent_version="1.2",
    fingerprint=FINGERPRINT,
    runtimes=(RuntimeReport(name="simulated", version="1"), RuntimeReport(name="torch", available=False, reason="no")),
)
OPS = tuple(CampaignOp.of(OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8)) for n in range(1, 5))
SPEC = CampaignSpec(
    space="toy",
    target=Target(device="toy", runtime="simulated"),
    plan=Plan(runtime="simulated", options=(("noise", "0"),)),
    env_id=FINGERPRINT.env_id,
    runtime_version="1",
    ops=(*OPS, CampaignOp.network(tuple(op.ops[0] for op in OPS[:1]), every=2)),
    budget_s=10,
    precision=0.01,
    max_rounds=100,
)
BEFORE = Conditions(monotonic_ns=5, load_1min=0.5, cpu_mhz=None, throttle_count=3)


def session(store: Store, session_id: str, *, name: str = "alice") -> int:
    """Register an agent and return its session's epoch."""
    return store.open_session(replace(HELLO, name=name), session_id, now_s=1.5)


def grant(store: Store, lease_id: str = "l1", session_id: str = "s1", **changes: Any) -> StoredLease | None:
    """Lease the first batch of the campaign, but for what is changed."""
    given: dict[str, Any] = {"campaign_id": SPEC.key, "batch": 0, "first_round": 0, "rounds": 100, "now_s": 2.0}
    return store.grant_lease(lease_id, session_id=session_id, **{**given, **changes})


def timing(number: int, **changes: Any) -> Timing:
    """One visit."""
    made = Timing(
        op_id=OPS[number % len(OPS)].op_id, round=0, order=number, instance=1, start_ns=1000 * number,
        warmup_ns=(900,), samples_ns=(100 + number, 300, 200, 9000), preempted=(3,),
    )  # fmt: skip  # one line reads as one record
    return replace(made, **changes)


def report(number: int = 0, **changes: Any) -> Report:
    """A round of four visits."""
    made = Report(
        report_id=f"r{number}", session_id="s1", lease_id="l1", lease_epoch=1, campaign_id=SPEC.key, round=number,
        timings=tuple(timing(place, round=number) for place in range(4)), before=BEFORE, after=BEFORE, round_ns=1000,
        timed_ns=900,
    )  # fmt: skip  # one line reads as one record
    return replace(made, **changes)


def filled(store: Store) -> Store:
    """A store with the campaign, one agent and its lease."""
    store.create_campaign(SPEC, now_s=1.0)
    session(store, "s1")
    assert grant(store) is not None
    return store


def raw(store: Store) -> list[Timing]:
    """Every visit of the campaign."""
    return [visit.timing for visit in store.raw_visits([SPEC.key])]


def dump(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, without the numbers that the database gives out: it never takes one back."""
    with store.reading() as connection:
        return {
            table.name: [
                tuple(value for column, value in zip(table.columns, row, strict=True) if not _is_numbered(column))
                for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns))
            ]
            for table in schema.metadata.sorted_tables
        }


def restore(store: Store, dumped: dict[str, list[tuple[Any, ...]]]) -> None:
    """Make a store hold what was dumped, and nothing else."""
    with store.writing() as connection:
        for table in schema.metadata.sorted_tables:
            connection.execute(table.delete())
            names = [column.name for column in table.columns if not _is_numbered(column)]
            rows = [dict(zip(names, row, strict=True)) for row in dumped[table.name]]
            if rows:
                connection.execute(table.insert(), rows)


def _is_numbered(column: sa.Column[Any]) -> bool:
    return column.primary_key and column.autoincrement is True
