"""A report comes in: commit, decide, acknowledge, in this order; and what its failures say of ops and devices."""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace

from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import Decision, HeldLease
from lutbuilder.coordinator.service.board import Board
from lutbuilder.coordinator.service.events import Decide, Event
from lutbuilder.coordinator.store import CommitResult
from lutbuilder_agent.errors import StaleLease, UnknownSession
from lutbuilder_agent.records import OpId, Report, ReportAck

_GO_ON = Decision()


class Reports:
    """Takes reports. Decisions about one campaign are made by one thread at a time."""

    def __init__(self, board: Board, decide: Decide) -> None:
        self._board = board
        self._decide = decide
        self._deciding: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def take(self, report: Report) -> ReportAck:
        """See AgentApi.report; called without the lock."""
        board = self._board
        with board.lock:
            board.expire()
            with suppress(StaleLease, UnknownSession):  # a late report is welcome; the store knows which is unknown
                board.session(report.session_id)
        began_s = board.clock()
        result = board.store.commit_report(report, now_s=board.wall_clock())
        with board.lock:
            lease = self._seen(report, result, board.clock() - began_s)
        if result.decision is not None:
            stop = result.decision.stop or lease is None
            ack = ReportAck(report_id=report.report_id, stop=stop, drop=result.decision.drop)
        elif lease is None:
            ack = ReportAck(report_id=report.report_id, stop=True)
        else:
            ack = self._decided(report, lease)
        if ack.stop:
            with board.lock:
                if board.leases.told(report.session_id):
                    board.call_up()
        return ack

    def _seen(self, report: Report, result: CommitResult, commit_s: float) -> HeldLease | None:
        """Take in what was committed; return its lease if that is current, and its campaign leased here."""
        board = self._board
        lease = self._current(report, result)
        if lease is not None:
            board.leases.reported(lease.lease_id, report.round)
        board.leases.extend(report.session_id, shorten=not result.repeated_report)
        if not result.repeated_report:
            board.campaigns.measured(report.campaign_id, report.round_ns)
        if report.failures:
            board.campaigns.changed(report.campaign_id)
        live = board.fleet.of_session(report.session_id)
        name = board.store.session(report.session_id).name if live is None else live.state.name
        board.touch(
            report.campaign_id,
            Event(
                kind="reported",
                agent=name,
                campaign_id=report.campaign_id,
                round=report.round,
                n_timings=result.n_new,
                failures=tuple(failure.reason for failure in report.failures),
                late=lease is None,
                commit_s=commit_s,
            ),
        )
        if not result.repeated_report:
            board.fleet.reported(report.session_id, report, result.n_new)
            for suspect in board.fleet.suspects(report):
                board.suspect(suspect)
        return None if lease is None else board.leases.get(lease.lease_id)

    def _current(self, report: Report, result: CommitResult) -> HeldLease | None:
        board = self._board
        lease = board.leases.get(report.lease_id)
        if result.late or not result.campaign_active:
            if lease is not None:  # it has ended at another coordinator
                board.leases.adopt(report.session_id)
                board.call_up()
            return None
        if lease is None or lease.owner != board.owner:
            board.leases.adopt(report.session_id)
            lease = board.leases.get(report.lease_id)
        if lease is not None and not board.campaigns.is_offered(report.campaign_id):
            # Its agent still works on a campaign of an earlier process that nobody wants here: it is set free.
            board.end(lease, "cancelled", told=True)
            return None
        return lease

    def _decided(self, report: Report, lease: HeldLease) -> ReportAck:
        board = self._board
        campaign_id = lease.campaign_id
        with self._deciding[campaign_id]:
            try:
                decision = self._decide(campaign_id, report)
            except Exception as error:  # the visits are safe; the owner of the campaign sees the error in `wait`
                with board.lock:
                    board.fail(campaign_id, error)
                    board.end(lease, "cancelled", told=True)
                return ReportAck(report_id=report.report_id, stop=True)
            with board.lock:
                decision = self._or_exhausted(decision, report, lease)
                if decision != _GO_ON:  # what goes without saying is not worth a write to the disk
                    board.store.record_decision(
                        report,
                        decision,
                        finished_batch=lease.batch if decision.stop else None,
                        now_s=board.wall_clock(),
                    )
                    board.campaigns.changed(campaign_id)
                self._follow(decision, report, lease)
                stop = decision.stop or board.leases.get(lease.lease_id) is None
                board.touch(campaign_id)
        return ReportAck(report_id=report.report_id, stop=stop, drop=decision.drop)

    def _follow(self, decision: Decision, report: Report, lease: HeldLease) -> None:
        """Do what was decided, and what follows from the report by itself."""
        board = self._board
        if decision.stop:
            board.leases.forget(lease.campaign_id, lease.batch, told=report.session_id)
            board.read(lease.campaign_id, reason=decision.reason, told=report.session_id)
            board.call_up()
        elif decision.renew:
            board.over.add(report.session_id)
            for held in board.leases.of_session(report.session_id):
                board.end(held, "done", told=True)
        elif self._is_last_round(report, lease):
            self._end(lease, "done")
        elif self._second_try_due(report, lease) or board.fleet.barred(lease.agent):
            self._end(lease, "cancelled")

    def _end(self, lease: HeldLease, state: schedule.LeaseState) -> None:
        current = self._board.leases.get(lease.lease_id)
        if current is not None:
            self._board.end(current, state, told=True)

    def _or_exhausted(self, decision: Decision, report: Report, lease: HeldLease) -> Decision:
        """Return the decision, made a stop if this was the last round or nothing is left to visit."""
        if decision.stop:
            return decision
        if self._is_last_round(report, lease) or report.failures or decision.drop:
            progress = self._board.campaigns.read(lease.campaign_id).progress
            dropped: frozenset[OpId] = frozenset({*progress.dropped, *decision.drop})
            reason = schedule.exhausted(replace(progress, dropped=dropped), lease.batch)
            if reason is not None:
                return replace(decision, stop=True, reason=reason)
        return decision

    def _is_last_round(self, report: Report, lease: HeldLease) -> bool:
        current = self._board.leases.get(lease.lease_id) or lease
        return report.round >= current.last_round

    def _second_try_due(self, report: Report, lease: HeldLease) -> bool:
        """Whether an op that failed in this lease is not given up: the batch is leased anew, with all that is left.

        A failure of before the lease says nothing new: an agent that repeats it shall not be sent round in circles.
        """
        failed = {failure.op_id for failure in report.failures if failure.round >= lease.first_round}
        if not failed:
            return False
        known = self._board.campaigns.known(lease.campaign_id)  # read a moment ago, because of the failures
        return known is None or any(f.op_id in failed and not f.final for f in known.progress.failures)
