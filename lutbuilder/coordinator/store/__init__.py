"""The campaign store: campaigns, sessions, leases, jobs and every visit, in SQLite or PostgreSQL.

store.py       Store, which is all of the following over one database
campaigns.py sessions.py leases.py reports.py failures.py visits.py jobs.py coordinators.py
states.py      what it gives back
schema.py      its tables; migrations/ how they came to be; prepare.py opens and upgrades
engine.py      the two databases: transactions, errors, what to do when a connection breaks
salvage.py     what can still be read of a damaged file
"""

from lutbuilder.coordinator.schedule import StoredFailure
from lutbuilder.coordinator.store.engine import APPLICATION_ID
from lutbuilder.coordinator.store.schema import SCHEMA_VERSION
from lutbuilder.coordinator.store.states import (
    AgentFlags,
    AgentState,
    CampaignPhase,
    CampaignState,
    CommitResult,
    Conflict,
    FailureOccasion,
    RawVisit,
    StoreCounts,
    StoredLease,
    StoredReport,
)
from lutbuilder.coordinator.store.store import Store

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "AgentFlags",
    "AgentState",
    "CampaignPhase",
    "CampaignState",
    "CommitResult",
    "Conflict",
    "FailureOccasion",
    "RawVisit",
    "Store",
    "StoreCounts",
    "StoredFailure",
    "StoredLease",
    "StoredReport",
]
