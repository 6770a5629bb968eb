"""A table rests on the sessions that are in line: which those are is decided by rule, and no op is lost by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lutbuilder.campaign.draft import in_line
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.stats.records import Visits
from tests.lut_examples import example_op
from tests.simulated_visits import Machine, changed, log_spread, simulate

N_OPS = 30
OPS = tuple(CampaignOp.of(example_op(number)) for number in range(N_OPS))
MACHINE = Machine(slow=1.0, noise=0.01, wave=0.02, session_log_scales=(0.0, 0.01, -0.01, 0.0))


def visits(*, odd: float, session_ops: Sequence[Sequence[int]] | None = None) -> Visits:
    """Four sessions, the second with every op off by so much (sd of log time)."""
    seen = simulate(log_spread(N_OPS), rounds=18, seed=5, machine=MACHINE, session_ops=session_ops).visits
    off = np.where(np.arange(4)[:, None] == 1, odd, 0.0) * np.random.default_rng(5).standard_normal((4, N_OPS))
    loud = changed(seen, block_ns=seen.block_ns * np.exp(off[seen.session, seen.op]))
    return replace(loud, op_ids=tuple(op.op_id for op in OPS))


def test_a_session_out_of_line_is_left_out_of_the_fit_and_named():
    seen = visits(odd=0.08)
    summary, reports, speed = in_line(OPS, seen)
    assert [report.session_id for report in reports if report.excluded] == ["s1"]
    assert {seen.session_ids[number] for number in np.unique(summary.visits.session)} == {"s0", "s2", "s3"}
    alone, _, _ = in_line(OPS, seen.take(seen.session != 1))
    assert [row.time_ms for row in summary.rows] == [row.time_ms for row in alone.rows]
    assert speed.shape == (len(seen),), "what the machine did is told of all sessions"


def test_a_flagged_session_counts_where_that_is_asked_for_and_stays_flagged():
    seen = visits(odd=0.08)
    summary, reports, _ = in_line(OPS, seen, keep_flagged=True)
    assert [(report.session_id, report.excluded) for report in reports if report.flagged] == [("s1", False)]
    assert len(summary.visits) == len(seen)


def test_sessions_in_line_all_count():
    seen = visits(odd=0.0)
    summary, reports, _ = in_line(OPS, seen)
    assert not any(report.excluded for report in reports)
    assert len(summary.visits) == len(seen)


def test_no_session_leaves_that_alone_knows_an_op():
    most = range(N_OPS - 1)
    seen = visits(odd=0.08, session_ops=[most, range(N_OPS), most, most])
    summary, reports, _ = in_line(OPS, seen)
    assert [report.session_id for report in reports if report.flagged] == ["s1"]
    assert not any(report.excluded for report in reports)
    assert len(summary.rows) == N_OPS
