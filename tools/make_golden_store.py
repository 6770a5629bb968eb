"""Write tests/golden/store-schema-<N>.sqlite for the schema of this tree: once, when a schema is released, never again.

    python tools/make_golden_store.py

A file that is there stays: the tests demand that it opens for ever with all it holds, whatever becomes of the code
below. So after a change of the schema: raise SCHEMA_VERSION, add the migration, let what follows fill what is new, run
this. The author of a schema may change everything here but older files.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "agents")]

from lutbuilder.campaign.job import JobSpec  # noqa: E402  # the path above comes first
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target  # noqa: E402  # as above
from lutbuilder.coordinator.schedule import Decision  # noqa: E402  # as above
from lutbuilder.coordinator.store import SCHEMA_VERSION, Store, schema  # noqa: E402  # as above
from lutbuilder.op import OpSpec  # noqa: E402  # as above
from lutbuilder_agent.records import (  # noqa: E402  # as above
    AgentHello,
    Conditions,
    Failure,
    Fingerprint,
    Plan,
    Report,
    RuntimeReport,
    Timing,
)

FINGERPRINT = Fingerprint(device="golden-cpu", facts=(("cpu.model", "Golden 3"), ("os", "Linux 6.1 \N{MICRO SIGN}")))
RUNTIMES = (
    RuntimeReport(name="onnxruntime", version="1.31.1", timer_overhead_ns=42, timer_quantum_ns=1),
    RuntimeReport(name="torch", available=False, reason="pip install 'lutbuilder-agent[torch]'"),
)
OPS = tuple(
    CampaignOp.of(OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8), batch=n % 2)
    for n in range(1, 6)
)
EMPTY = CampaignOp.of(OpSpec(kind="identity", in_channels=3, out_channels=3, height=8, width=8), batch=-1)
SPEC = CampaignSpec(
    space="golden",
    target=Target(device="golden-cpu", runtime="onnxruntime"),
    plan=Plan(runtime="onnxruntime", cache="rotating", train_ops=12, seed=7, options=(("spin", "0"),)),
    env_id=FINGERPRINT.env_id,
    runtime_version="1.31.1",
    ops=(*OPS, EMPTY, CampaignOp.carrier(tuple(op.ops[0] for op in OPS[:2]))),
    budget_s=180.0,
    precision=0.01,
    max_rounds=40,
    lease_rounds=8,
    sessions=2,
    agents=2,
)
FINISHED = replace(SPEC, repeat=1, sessions=1, agents=1)
CANCELLED = replace(SPEC, purpose="validate", networks_sha256="ab" * 32, repeat=2)
BEFORE = Conditions(monotonic_ns=5_000_000_000, load_1min=0.25, cpu_mhz=2450.5, temperature_c=36.5, throttle_count=3)
AFTER = Conditions(monotonic_ns=6_000_000_000, load_1min=0.5, steal_s=0.125)


TRUST: dict[str, dict[str, Any]] = {
    "trust_cas": {"sha256": "ab" * 32, "pem": "-----BEGIN CERTIFICATE-----", "created_s": 1.0, "until_s": 2.0},
    "trust_tokens": {
        "token_id": "T1", "digest": "cd" * 32, "role": "agent", "name": "alice", "uses_left": 1, "created_s": 1.0,
        "expires_s": 2.0, "revoked_s": None,
    },
    "trust_joins": {
        "token_id": "T1", "request_id": "R1", "request_sha256": "ef" * 32, "name": "alice", "joined_s": 1.5,
    },
    "trust_certificates": {
        "serial": "01", "name": "alice", "role": "agent", "ca_sha256": "ab" * 32, "token_id": "T1", "issued_s": 1.5,
        "expires_s": 9.0, "revoked_s": 3.0, "reason": "lost",
    },
}  # fmt: skip  # one line reads as a few columns


def timing(op: CampaignOp, round: int, order: int, **changes: Any) -> Timing:
    """One visit, every field filled and none like another's."""
    first = 1000 * (round + 1) + 10 * order
    made = Timing(
        op_id=op.op_id,
        round=round,
        order=order,
        instance=order % 3,
        start_ns=10_000_000_000 * round + 1_000_000 * order,
        warmup_ns=(5 * first,),
        samples_ns=tuple(first + n for n in (3, 0, 5, 900, 4)),
        preempted=(3,),
    )
    return replace(made, **changes)


def report(number: int, session_id: str, lease_id: str, *, epoch: int = 1, **changes: Any) -> Report:
    """A round of the first campaign: two ops, an empty call."""
    made = Report(
        report_id=f"golden-{session_id}-{number}",
        session_id=session_id,
        lease_id=lease_id,
        lease_epoch=epoch,
        campaign_id=SPEC.key,
        round=number,
        timings=tuple(timing(op, number, order) for order, op in enumerate((OPS[1], OPS[3], EMPTY))),
        before=BEFORE,
        after=AFTER,
        round_ns=2_000_000_000 + number,
        timed_ns=1_900_000_000 + number,
    )
    return replace(made, **changes)


def register(store: Store, name: str, session_id: str, *, now_s: float) -> None:
    """A session of an agent."""
    domain = "rack-7" if name == "bob" else ""
    hello = AgentHello(
        name=name, agent_version="0.1.0", fingerprint=FINGERPRINT, runtimes=RUNTIMES, clock_domain=domain
    )
    store.open_session(hello, session_id, now_s=now_s)


def fill(store: Store) -> None:
    """Every table, every column, every state and every nullable thing both ways."""
    for now_s, spec in ((100.5, SPEC), (101.0, FINISHED), (102.0, CANCELLED)):
        store.create_campaign(spec, now_s=now_s, priority=spec.repeat, owner="vision" if spec is SPEC else "")
    register(store, "alice", "a1", now_s=110.0)
    register(store, "bob", "b1", now_s=111.25)

    def grant(lease_id: str, session_id: str, *, batch: int, spec: CampaignSpec = SPEC, first_round: int = 0) -> None:
        granted = store.grant_lease(
            lease_id,
            campaign_id=spec.key,
            batch=batch,
            session_id=session_id,
            first_round=first_round,
            rounds=8,
            now_s=120.0,
            owner="lab",
            domain="rack-7" if session_id == "b1" else "",
        )
        assert granted is not None, lease_id

    grant("l-lost", "a1", batch=1)
    store.end_lease("l-lost", "lost", now_s=150.0)
    grant("l-bob", "b1", batch=0)
    grant("l-alice", "a1", batch=1, first_round=1)
    store.commit_report(report(0, "a1", "l-lost"), now_s=160.0)  # late, and kept
    store.commit_report(report(1, "a1", "l-alice", epoch=2), now_s=161.0)
    store.record_decision(report(1, "a1", "l-alice"), Decision(drop=(OPS[3].op_id,)), finished_batch=None, now_s=161.5)
    big = timing(OPS[1], 2, 0, samples_ns=(5_000_000_000, 5_000_000_001), preempted=(), throttled=(1,))
    calm = timing(OPS[1], 2, 1, throttled=())
    store.commit_report(report(2, "a1", "l-alice", epoch=2, timings=(big, calm), before=None, after=None), now_s=162.0)
    other = timing(OPS[1], 1, 0, samples_ns=(7, 8, 9), preempted=())
    store.commit_report(report(1, "a1", "l-alice", epoch=2, report_id="golden-other", timings=(other,)), now_s=163.0)
    crash = Failure(op_id=OPS[2].op_id, round=3, reason="crashed", detail="signal 11\n«Speicherzugriffsfehler»")
    store.commit_report(report(3, "b1", "l-bob", timings=(), failures=(crash,)), now_s=164.0)
    again = replace(crash, round=4, detail="signal 6")
    store.commit_report(report(4, "b1", "l-bob", timings=(), failures=(again,)), now_s=165.0)
    store.record_failure(SPEC.key, "b1", Failure(op_id=OPS[4].op_id, round=4, reason="unsupported", detail="not built"))
    store.commit_report(report(5, "b1", "never-given"), now_s=166.0)  # a lease of another store: batch unknown
    stop = Decision(stop=True, reason="precision")
    store.record_decision(report(2, "a1", "l-alice"), stop, finished_batch=1, now_s=167.0)
    register(store, "alice", "a2", now_s=170.0)
    grant("l-done", "a2", batch=0, spec=FINISHED)
    store.commit_report(report(0, "a2", "l-done", campaign_id=FINISHED.key), now_s=171.0)
    store.finish_batch(FINISHED.key, 0, "max_rounds", now_s=172.0)
    store.finish_campaign(FINISHED.key, "max_rounds", 173.0)
    grant("l-cancelled", "a2", batch=0, spec=CANCELLED)
    store.finish_campaign(CANCELLED.key, "interrupted", 174.0, state="cancelled")
    store.beat_leases("lab", {"l-bob": 90.0})
    store.beat_coordinator("lab")
    store.set_agent("bob", quarantined="3 ops failed")
    store.excuse_failures(SPEC.key, [OPS[2].op_id])
    job = JobSpec(kind="collect", request='{"space": "golden"}', priority=3, owner="vision")
    for number, state in enumerate(("done", "cancelled", "running", "queued"), start=1):
        store.submit_job(job, job_id=f"golden-{number}", now_s=180.0 + number)
        if state == "cancelled":
            store.cancel_job(f"golden-{number}", now_s=185.0)
        elif state != "queued":
            store.claim_job("lab", now_s=186.0, besides=["golden-1"])
            store.update_job(
                f"golden-{number}",
                runner="lab",
                now_s=187.0,
                state="done" if state == "done" else None,
                message="timing",
                campaign_ids=[SPEC.key],
                lut="golden-cpu@1",
                progress="{}",
            )
    with store.writing() as connection:
        for table, row in TRUST.items():
            connection.execute(schema.metadata.tables[table].insert().values(row))


def main() -> int:
    """Write the file, or say that it is there."""
    path = ROOT / "tests" / "golden" / f"store-schema-{SCHEMA_VERSION}.sqlite"
    if path.exists():
        print(f"{path.name} is there and stays as it is")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / path.name
        with Store.open(fresh) as store:
            fill(store)
        shutil.copyfile(fresh, path)  # closed: its journal is inside
    print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
