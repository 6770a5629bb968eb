"""Jobs: what users asked of the coordinators of this store, and which of them runs it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from lutbuilder.campaign.job import JobPhase, JobSpec, JobState
from lutbuilder.coordinator.store.engine import Part, retried
from lutbuilder.coordinator.store.schema import jobs
from lutbuilder_agent.errors import SpecError, UnknownName

_OVER = ("done", "failed", "cancelled")


class Jobs(Part):
    """The jobs of a store."""

    @retried
    def submit_job(self, spec: JobSpec, *, job_id: str, now_s: float) -> JobState:
        """Queue a job and return it; the same id with the same spec again is the job that is there.

        Raises SpecError for an id that another job has.
        """
        with self._db.writing() as connection:
            known = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).first()
            if known is None:
                connection.execute(
                    jobs.insert().values(
                        job_id=job_id,
                        kind=spec.kind,
                        request=spec.request,
                        priority=spec.priority,
                        owner=spec.owner,
                        state="queued",
                        message="",
                        campaign_ids="[]",
                        lut="",
                        progress="",
                        created_s=now_s,
                        runner="",
                    )
                )
                known = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).one()
        state = _state(known)
        if state.spec != spec:
            raise SpecError(f"job {job_id} is there already and asks for something else: submit it under another id")
        return state

    @retried
    def job(self, job_id: str) -> JobState:
        """Return a job. Raises UnknownName."""
        with self._db.reading() as connection:
            return self._job(connection, job_id)

    @retried
    def jobs(self, *, active: bool = False) -> tuple[JobState, ...]:
        """Return every job, or every one that is not over, oldest first."""
        wanted = sa.select(jobs).order_by(jobs.c.created_s, jobs.c.job_id)
        if active:
            wanted = wanted.where(jobs.c.state.in_(("queued", "running")))
        with self._db.reading() as connection:
            return tuple(_state(row) for row in connection.execute(wanted))

    @retried
    def claim_job(
        self, runner: str, *, now_s: float, besides: Collection[str] = (), dead: Collection[str] = ()
    ) -> JobState | None:
        """Give a coordinator the job to run next, running from now on; None if there is none.

        It is the oldest of the highest priority among those that wait, those whose runner is in `dead`, and the
        coordinator's own that it does not name in `besides`: those it began before it died, or was told of in vain.
        """
        own = sa.and_(jobs.c.runner == runner, jobs.c.job_id.not_in(tuple(besides)))
        orphaned = sa.and_(jobs.c.state == "running", sa.or_(own, jobs.c.runner.in_(tuple(dead))))
        with self._db.writing() as connection:
            row = connection.execute(
                sa.select(jobs.c.job_id)
                .where(sa.or_(jobs.c.state == "queued", orphaned))
                .order_by(jobs.c.priority.desc(), jobs.c.created_s, jobs.c.job_id)
                .limit(1)
            ).first()
            if row is None:
                return None
            here = jobs.c.job_id == row.job_id
            connection.execute(jobs.update().where(here).values(state="running", runner=runner, finished_s=None))
            return self._job(connection, row.job_id)

    @retried
    def update_job(
        self,
        job_id: str,
        *,
        runner: str,
        now_s: float,
        state: JobPhase | None = None,
        message: str | None = None,
        campaign_ids: Sequence[str] | None = None,
        lut: str | None = None,
        progress: str | None = None,
    ) -> JobState:
        """Write down what is given, and return the job. Nothing changes if it is over, or another runner's by now.

        A job put back to `queued` has no runner. Raises UnknownName.
        """
        changes: dict[str, Any] = {
            "state": state,
            "message": message,
            "campaign_ids": None if campaign_ids is None else json.dumps(list(campaign_ids)),
            "lut": lut,
            "progress": progress,
            "runner": "" if state == "queued" else None,
            "finished_s": now_s if state in _OVER else None,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        with self._db.writing() as connection:
            if given:
                mine = (jobs.c.job_id == job_id, jobs.c.runner == runner, jobs.c.state.not_in(_OVER))
                connection.execute(jobs.update().where(*mine).values(**given))
            return self._job(connection, job_id)

    @retried
    def cancel_job(self, job_id: str, *, now_s: float) -> JobState:
        """End a job, its runner will notice; one that is over stays as it is. Return it. Raises UnknownName."""
        with self._db.writing() as connection:
            going = (jobs.c.job_id == job_id, jobs.c.state.not_in(_OVER))
            connection.execute(jobs.update().where(*going).values(state="cancelled", finished_s=now_s))
            return self._job(connection, job_id)

    def _job(self, connection: sa.Connection, job_id: str) -> JobState:
        row = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).first()
        if row is None:
            raise UnknownName(f"job {job_id} is not in {self._db.where}; those that are: lutbuilder jobs")
        return _state(row)


def _state(row: Any) -> JobState:
    return JobState(
        job_id=row.job_id,
        spec=JobSpec(kind=row.kind, request=row.request, priority=row.priority, owner=row.owner),
        state=row.state,
        created_s=row.created_s,
        message=row.message,
        campaign_ids=tuple(json.loads(row.campaign_ids)),
        lut=row.lut,
        progress=row.progress,
        finished_s=row.finished_s,
        runner=row.runner,
    )
