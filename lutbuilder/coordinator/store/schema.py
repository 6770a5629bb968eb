"""The tables of the campaign store, the same in SQLite and PostgreSQL.

Schema history, each with its migration in migrations/versions: 1 - first release; 2 - several coordinators and
campaigns on one store: jobs, flags of agents, owners of leases, running sums, identities.

New columns come last: what a migration adds and what a new store is made with must be equal, and a test says so.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

SCHEMA_VERSION = 2
REVISION = "0002"  # the same, in alembic's words


class Words(sa.types.TypeDecorator[str]):
    """Free text that somebody else wrote. What PostgreSQL refuses in a text is replaced on the way in."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()


# Counts fit any range that a record allows; SQLite's integers all do, and there only INTEGER numbers rows by itself.
Count = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NONE = sa.text("0")
_EMPTY = sa.text("''")

metadata = sa.MetaData()
meta = sa.Table("meta", metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text))
alembic_version = sa.Table("alembic_version", metadata, sa.Column("version_num", sa.String(32), primary_key=True))
campaigns = sa.Table(
    "campaigns",
    metadata,
    sa.Column("campaign_id", sa.Text, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", Words, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("finished_s", sa.Float),
    sa.Column("priority", Count, nullable=False, server_default=_NONE),
    sa.Column("owner", Words, nullable=False, server_default=_EMPTY),
    # Sums over the reports, kept by whoever commits one: nobody has time to add them up after every report.
    sa.Column("rounds", Count, nullable=False, server_default=_NONE),
    sa.Column("measured_ns", sa.BigInteger, nullable=False, server_default=_NONE),
    sa.Column("timed_ns", sa.BigInteger, nullable=False, server_default=_NONE),
    sa.Column("next_round", Count, nullable=False, server_default=_NONE),
)
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("epoch", Count, nullable=False),
    sa.Column("agent_version", Words, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("runtimes", sa.Text, nullable=False),
    sa.Column("registered_s", sa.Float, nullable=False),
    sa.Column("clock_domain", Words, nullable=False, server_default=_EMPTY),
    sa.Column("last_report_s", sa.Float),
    sa.UniqueConstraint("agent", "epoch"),
)
agents = sa.Table(  # what people and the coordinator decided about an agent, whatever session it is in
    "agents",
    metadata,
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("drained", sa.Boolean, nullable=False),
    sa.Column("quarantined", Words, nullable=False),  # why; "" if it is not
)
leases = sa.Table(
    "leases",
    metadata,
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
    sa.Column("owner", sa.Text, nullable=False, server_default=_EMPTY),  # the coordinator that watches over it
    sa.Column("beat", Count, nullable=False, server_default=_NONE),  # moves while it is extended
    sa.Column("quiet_s", sa.Float, nullable=False, server_default=_NONE),  # announced with the last beat
    sa.Column("domain", Words, nullable=False, server_default=_EMPTY),
    sa.UniqueConstraint("campaign_id", "batch", "epoch"),
    sa.Index("leases_by_state", "state", "campaign_id", "batch"),
    sa.Index("leases_of_session", "session_id"),
)
batches = sa.Table(  # batches that are done
    "batches",
    metadata,
    sa.Column("campaign_id", sa.Text, primary_key=True),
    sa.Column("batch", Count, primary_key=True, autoincrement=False),
    sa.Column("reason", Words, nullable=False),
    sa.Column("finished_s", sa.Float, nullable=False),
)
batch_rounds = sa.Table(  # running sums, as those of campaigns
    "batch_rounds",
    metadata,
    sa.Column("campaign_id", sa.Text, primary_key=True),
    sa.Column("batch", Count, primary_key=True, autoincrement=False),
    sa.Column("rounds", Count, nullable=False),
)
reports = sa.Table(
    "reports",
    metadata,
    sa.Column("report_id", sa.Text, primary_key=True),
    sa.Column("campaign_id", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("lease_id", sa.Text, nullable=False),
    sa.Column("lease_epoch", Count, nullable=False),
    sa.Column("batch", Count),  # null: of a lease this store never gave
    sa.Column("round", Count, nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("before", sa.Text),
    sa.Column("after", sa.Text),
    sa.Column("round_ns", sa.BigInteger, nullable=False),
    sa.Column("timed_ns", sa.BigInteger, nullable=False),
    sa.Column("committed_s", sa.Float, nullable=False),
    sa.Column("decision", sa.Text),  # null: nothing was decided (yet)
    sa.Index("reports_of_session", "campaign_id", "session_id", "round"),
)
visits = sa.Table(
    "visits",
    metadata,
    sa.Column("visit_no", Count, primary_key=True, autoincrement=True),
    sa.Column("campaign_id", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("round", Count, nullable=False),
    sa.Column("op_id", sa.Text, nullable=False),
    sa.Column("place", Count, nullable=False),  # Timing.order; ORDER is a word of SQL
    sa.Column("instance", Count, nullable=False),
    sa.Column("start_ns", sa.BigInteger, nullable=False),
    sa.Column("block_ns", sa.Float, nullable=False),
    sa.Column("p90_ns", sa.Float, nullable=False),
    sa.Column("n_calls", Count, nullable=False),
    sa.Column("n_preempted", Count, nullable=False),
    sa.Column("samples", sa.LargeBinary, nullable=False),  # see coordinator/samples.py
    sa.UniqueConstraint("campaign_id", "session_id", "round", "op_id", "place"),
    sa.Index("visits_in_order", "campaign_id", "visit_no"),
    sqlite_autoincrement=True,  # numbers are never reused: readers continue after the last they saw
)
conflicts = sa.Table(
    "conflicts",
    metadata,
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
failures = sa.Table(
    "failures",
    metadata,
    sa.Column("failure_no", Count, primary_key=True, autoincrement=True),
    sa.Column("campaign_id", sa.Text, nullable=False),
    sa.Column("op_id", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("round", Count, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", Words, nullable=False),
    sa.Column("excused", sa.Boolean, nullable=False, server_default=sa.false()),  # kept, and no longer counted
    sa.UniqueConstraint("campaign_id", "op_id", "session_id", "round", "reason"),
)
drops = sa.Table(
    "drops",
    metadata,
    sa.Column("campaign_id", sa.Text, primary_key=True),
    sa.Column("op_id", sa.Text, primary_key=True),
)
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("request", Words, nullable=False),
    sa.Column("priority", Count, nullable=False),
    sa.Column("owner", Words, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("message", Words, nullable=False),
    sa.Column("campaign_ids", sa.Text, nullable=False),  # a JSON list
    sa.Column("lut", Words, nullable=False),
    sa.Column("progress", Words, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("finished_s", sa.Float),
    sa.Column("runner", sa.Text, nullable=False),
    sa.Index("jobs_by_state", "state"),
)
coordinators = sa.Table(
    "coordinators",
    metadata,
    sa.Column("coordinator_id", sa.Text, primary_key=True),
    sa.Column("beat", Count, nullable=False),
)
trust_cas = sa.Table(
    "trust_cas",
    metadata,
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("pem", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("until_s", sa.Float),
)
trust_tokens = sa.Table(
    "trust_tokens",
    metadata,
    sa.Column("token_id", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("name", Words, nullable=False),
    sa.Column("uses_left", Count, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("expires_s", sa.Float, nullable=False),
    sa.Column("revoked_s", sa.Float),
)
trust_joins = sa.Table(
    "trust_joins",
    metadata,
    sa.Column("token_id", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("request_sha256", sa.Text, nullable=False),
    sa.Column("name", Words, nullable=False),
    sa.Column("joined_s", sa.Float, nullable=False),
)
trust_certificates = sa.Table(
    "trust_certificates",
    metadata,
    sa.Column("serial", sa.Text, primary_key=True),
    sa.Column("name", Words, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("ca_sha256", sa.Text, nullable=False),
    sa.Column("token_id", sa.Text, nullable=False),
    sa.Column("issued_s", sa.Float, nullable=False),
    sa.Column("expires_s", sa.Float, nullable=False),
    sa.Column("revoked_s", sa.Float),
    sa.Column("reason", Words, nullable=False),
    sa.Index("trust_certificates_by_name", "name"),
)
