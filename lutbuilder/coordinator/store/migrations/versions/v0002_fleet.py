"""Schema 2: several coordinators, campaigns, teams and strangers on one store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

Count = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ZERO = sa.text("0")
EMPTY = sa.text("''")


def upgrade() -> None:
    """Add tables and columns; fill what follows from what is there."""
    _campaigns_and_rounds()
    _agents_and_leases()
    op.add_column("failures", sa.Column("excused", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("visits_in_order", "visits", ["campaign_id", "visit_no"])
    _jobs()
    _trust()
    op.execute("UPDATE meta SET value = '2' WHERE name = 'schema_version'")


def _campaigns_and_rounds() -> None:
    op.add_column("campaigns", sa.Column("priority", Count, nullable=False, server_default=ZERO))
    op.add_column("campaigns", sa.Column("owner", sa.Text, nullable=False, server_default=EMPTY))
    op.add_column("campaigns", sa.Column("rounds", Count, nullable=False, server_default=ZERO))
    op.add_column("campaigns", sa.Column("measured_ns", sa.BigInteger, nullable=False, server_default=ZERO))
    op.add_column("campaigns", sa.Column("timed_ns", sa.BigInteger, nullable=False, server_default=ZERO))
    op.add_column("campaigns", sa.Column("next_round", Count, nullable=False, server_default=ZERO))
    op.create_table(
        "batch_rounds",
        sa.Column("campaign_id", sa.Text, primary_key=True),
        sa.Column("batch", Count, primary_key=True, autoincrement=False),
        sa.Column("rounds", Count, nullable=False),
    )
    op.drop_index("reports_of_campaign", "reports")
    op.create_index("reports_of_session", "reports", ["campaign_id", "session_id", "round"])
    op.execute(
        """
        UPDATE campaigns SET
            rounds = (SELECT count(*) FROM (
                SELECT DISTINCT r.session_id, r.round FROM reports r WHERE r.campaign_id = campaigns.campaign_id) one),
            measured_ns = coalesce(
                (SELECT sum(r.round_ns) FROM reports r WHERE r.campaign_id = campaigns.campaign_id), 0),
            timed_ns = coalesce(
                (SELECT sum(r.timed_ns) FROM reports r WHERE r.campaign_id = campaigns.campaign_id), 0),
            next_round = 1 + coalesce((SELECT max(one.round) FROM (
                SELECT r.round FROM reports r WHERE r.campaign_id = campaigns.campaign_id
                UNION ALL
                SELECT v.round FROM visits v WHERE v.campaign_id = campaigns.campaign_id) one), -1)
        """
    )
    op.execute(
        """
        INSERT INTO batch_rounds (campaign_id, batch, rounds)
        SELECT one.campaign_id, one.batch, count(*) FROM (
            SELECT DISTINCT campaign_id, batch, session_id, round FROM reports WHERE batch IS NOT NULL) one
        GROUP BY one.campaign_id, one.batch
        """
    )


def _agents_and_leases() -> None:
    op.add_column("sessions", sa.Column("clock_domain", sa.Text, nullable=False, server_default=EMPTY))
    op.add_column("sessions", sa.Column("last_report_s", sa.Float))
    op.create_table(
        "agents",
        sa.Column("agent", sa.Text, primary_key=True),
        sa.Column("drained", sa.Boolean, nullable=False),
        sa.Column("quarantined", sa.Text, nullable=False),
    )
    op.add_column("leases", sa.Column("owner", sa.Text, nullable=False, server_default=EMPTY))
    op.add_column("leases", sa.Column("beat", Count, nullable=False, server_default=ZERO))
    op.add_column("leases", sa.Column("quiet_s", sa.Float, nullable=False, server_default=ZERO))
    op.add_column("leases", sa.Column("domain", sa.Text, nullable=False, server_default=EMPTY))
    op.create_index("leases_by_state", "leases", ["state", "campaign_id", "batch"])
    op.create_index("leases_of_session", "leases", ["session_id"])
    op.execute(
        """
        UPDATE sessions SET
            last_report_s = (SELECT max(r.committed_s) FROM reports r WHERE r.session_id = sessions.session_id)
        """
    )
    op.execute(
        """
        UPDATE leases SET
            domain = coalesce((SELECT s.agent FROM sessions s WHERE s.session_id = leases.session_id), '')
        """
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("priority", Count, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("campaign_ids", sa.Text, nullable=False),
        sa.Column("lut", sa.Text, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("finished_s", sa.Float),
        sa.Column("runner", sa.Text, nullable=False),
    )
    op.create_index("jobs_by_state", "jobs", ["state"])
    op.create_table(
        "coordinators",
        sa.Column("coordinator_id", sa.Text, primary_key=True),
        sa.Column("beat", Count, nullable=False),
    )


def _trust() -> None:
    op.create_table(
        "trust_cas",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("pem", sa.Text, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("until_s", sa.Float),
    )
    op.create_table(
        "trust_tokens",
        sa.Column("token_id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("uses_left", Count, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False),
        sa.Column("revoked_s", sa.Float),
    )
    op.create_table(
        "trust_joins",
        sa.Column("token_id", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("request_sha256", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("joined_s", sa.Float, nullable=False),
    )
    op.create_table(
        "trust_certificates",
        sa.Column("serial", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("ca_sha256", sa.Text, nullable=False),
        sa.Column("token_id", sa.Text, nullable=False),
        sa.Column("issued_s", sa.Float, nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False),
        sa.Column("revoked_s", sa.Float),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("trust_certificates_by_name", "trust_certificates", ["name"])


def downgrade() -> None:
    """There is no way back: a copy of the old store is kept beside it."""
    raise NotImplementedError("open the copy that was kept when the store was upgraded")
