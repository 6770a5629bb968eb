"""Schema 1: campaigns, sessions, leases and every visit, as first released (in SQLite)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Count = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table("meta", sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text))
    op.create_table(
        "campaigns",
        sa.Column("campaign_id", sa.Text, primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("finished_s", sa.Float),
    )
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("epoch", Count, nullable=False),
        sa.Column("agent_version", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("runtimes", sa.Text, nullable=False),
        sa.Column("registered_s", sa.Float, nullable=False),
        sa.UniqueConstraint("agent", "epoch"),
    )
    op.create_table(
        "leases",
        sa.Column("lease_id", sa.Text, primary_key=True),
        sa.Column("campaign_id", sa.Text, nullable=False),
        sa.Column("batch", Count, nullable=False),
        sa.Column("epoch", Count, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("first_round", Count, nullable=False),
        sa.Column("rounds", Count, nullable=False),
        sa.Column("granted_s", sa.Float, nullable=False),
        sa.Column("ended_s", sa.Float),
        sa.UniqueConstraint("campaign_id", "batch", "epoch"),
    )
    op.create_table(
        "batches",
        sa.Column("campaign_id", sa.Text, primary_key=True),
        sa.Column("batch", Count, primary_key=True, autoincrement=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("finished_s", sa.Float, nullable=False),
    )
    op.create_table(
        "reports",
        sa.Column("report_id", sa.Text, primary_key=True),
        sa.Column("campaign_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("lease_id", sa.Text, nullable=False),
        sa.Column("lease_epoch", Count, nullable=False),
        sa.Column("batch", Count),
        sa.Column("round", Count, nullable=False),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("round_ns", sa.BigInteger, nullable=False),
        sa.Column("timed_ns", sa.BigInteger, nullable=False),
        sa.Column("committed_s", sa.Float, nullable=False),
        sa.Column("decision", sa.Text),
    )
    op.create_index("reports_of_campaign", "reports", ["campaign_id", "round"])
    op.create_table(
        "visits",
        sa.Column("visit_no", Count, primary_key=True, autoincrement=True),
        sa.Column("campaign_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("round", Count, nullable=False),
        sa.Column("op_id", sa.Text, nullable=False),
        sa.Column("place", Count, nullable=False),
        sa.Column("instance", Count, nullable=False),
        sa.Column("start_ns", sa.BigInteger, nullable=False),
        sa.Column("block_ns", sa.Float, nullable=False),
        sa.Column("p90_ns", sa.Float, nullable=False),
        sa.Column("n_calls", Count, nullable=False),
        sa.Column("n_preempted", Count, nullable=False),
        sa.Column("samples", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("campaign_id", "session_id", "round", "op_id", "place"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "conflicts",
        sa.Column("campaign_id", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("round", Count, primary_key=True, autoincrement=False),
        sa.Column("op_id", sa.Text, primary_key=True),
        sa.Column("place", Count, primary_key=True, autoincrement=False),
        sa.Column("payload_sha256", sa.Text, primary_key=True),
        sa.Column("report_id", sa.Text, nullable=False),
        sa.Column("instance", Count, nullable=False),
        sa.Column("start_ns", sa.BigInteger, nullable=False),
        sa.Column("samples", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "failures",
        sa.Column("failure_no", Count, primary_key=True, autoincrement=True),
        sa.Column("campaign_id", sa.Text, nullable=False),
        sa.Column("op_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("round", Count, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.UniqueConstraint("campaign_id", "op_id", "session_id", "round", "reason"),
    )
    op.create_table(
        "drops",
        sa.Column("campaign_id", sa.Text, primary_key=True),
        sa.Column("op_id", sa.Text, primary_key=True),
    )


def downgrade() -> None:
    """There is no way back: a copy of the old store is kept beside it."""
    raise NotImplementedError("open the copy that was kept when the store was upgraded")
