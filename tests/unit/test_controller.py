"""A campaign ends by precision, budget or rounds, whichever comes first, and says which; earlier runs count too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lutbuilder.campaign.controller import FIRST_LOOK, LOOK_EVERY, Controller
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator import schedule
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer
from lutbuilder.coordinator.store import Store
from lutbuilder.op import OpSpec
from lutbuilder_agent.records import (
    AgentHello,
    Failure,
    FailureReason,
    Fingerprint,
    Plan,
    Report,
    RuntimeReport,
    Timing,
)

FINGERPRINT = Fingerprint(device="toy", facts=())
HELLO = AgentHello(
    name="alice", agent_version="1", fingerprint=FINGERPRINT, runtimes=(RuntimeReport(name="simulated", version="1"),)
)
CONVS = tuple(OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8) for n in range(1, 9))
SPEC = CampaignSpec(
    space="toy",
    target=Target(device="toy", runtime="simulated"),
    plan=Plan(runtime="simulated"),
    env_id=FINGERPRINT.env_id,
    runtime_version="1",
    ops=tuple(map(CampaignOp.of, CONVS)),
    budget_s=100.0,
    precision=0.01,
    max_rounds=60,
)
CONTINUE = Decision()
QUIET, NOISY = 0.0005, 0.1  # noise of a visit in log time


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "campaigns.sqlite") as opened:
        opened.open_session(HELLO, "s1", now_s=0.0)
        yield opened


def a_round(
    number: int,
    *,
    spec: CampaignSpec = SPEC,
    noise: float = QUIET,
    noisy: tuple[str, ...] = (),
    failures: tuple[Failure, ...] = (),
    round_s: float = 1.0,
    speed: float = 1.0,
) -> Report:
    """A round over all ops but those that failed: the n-th takes n ms times `speed`; `noisy` ops have NOISY visits."""
    rng = np.random.default_rng(number)
    failed = {failure.op_id for failure in failures}
    order = [int(i) for i in rng.permutation(len(spec.ops)) if spec.ops[i].op_id not in failed]
    timings = []
    for place, i in enumerate(order):
        op_id = spec.ops[i].op_id
        sigma = NOISY if op_id in noisy else noise
        took_ns = int(1e6 * (i + 1) * speed * np.exp(sigma * rng.standard_normal()))
        timings.append(
            Timing(
                op_id=op_id,
                round=number,
                order=place,
                instance=number % 3,
                start_ns=1_000_000_000 * number + 10_000_000 * place,
                warmup_ns=(took_ns,),
                samples_ns=(took_ns,) * 3,
            )
        )
    return Report(
        report_id=f"r{number}",
        session_id="s1",
        lease_id="l1",
        lease_epoch=1,
        campaign_id=spec.key,
        round=number,
        timings=tuple(timings),
        failures=failures,
        round_ns=int(round_s * 1e9),
    )


def controlled(store: Store, spec: CampaignSpec = SPEC, *, elapsed_s: Callable[[], float] = lambda: 0.0) -> Controller:
    store.create_campaign(spec, now_s=0.0)
    return Controller(store, spec, elapsed_s=elapsed_s, reserve_s=3.0)


def decisions(store: Store, controller: Controller, reports: Iterator[Report]) -> dict[int, Decision]:
    """Commit and decide report by report until one says stop; by the number of rounds."""
    made: dict[int, Decision] = {}
    for report in reports:
        store.commit_report(report, now_s=1.0)
        made[report.round + 1] = controller.decide(report.campaign_id, report)
        if made[report.round + 1].stop:
            break
    return made


# --- Precision


def test_a_precise_campaign_stops_at_the_first_look_and_not_before(store):
    made = decisions(store, controlled(store), (a_round(n) for n in range(60)))
    assert list(made) == list(range(1, FIRST_LOOK + 1))
    assert made.pop(FIRST_LOOK) == Decision(stop=True, reason="precision")
    assert set(made.values()) == {CONTINUE}


def test_a_campaign_that_gets_precise_between_looks_stops_at_the_next(store):
    made = decisions(store, controlled(store), (a_round(n, noise=0.012) for n in range(60)))
    assert (max(made), made[max(made)].reason) == (FIRST_LOOK + LOOK_EVERY, "precision")


def test_one_op_short_of_precision_keeps_all_going(store):
    controller = controlled(store)
    reports = (a_round(n, noisy=(SPEC.ops[3].op_id,)) for n in range(60))
    made = decisions(store, controller, reports)
    assert made[max(made)] == Decision(stop=True, reason="max_rounds")
    look = controller.look
    assert look.n_precise == len(SPEC.ops) - 1
    assert look.worst_precision is not None
    assert look.worst_precision > SPEC.precision


def test_precision_is_asked_of_ops_only(store):
    pair, network = CampaignOp.pair(CONVS[0], CONVS[0]), CampaignOp.network(CONVS[:1])
    empty = CampaignOp.of(OpSpec(kind="identity", in_channels=1, out_channels=1, height=8, width=8))
    spec = replace(SPEC, ops=(*SPEC.ops, pair, network, empty), precision=0.02)
    noisy = (pair.op_id, network.op_id, empty.op_id)
    made = decisions(store, controlled(store, spec), (a_round(n, spec=spec, noisy=noisy) for n in range(60)))
    assert (max(made), made[max(made)].reason) == (FIRST_LOOK, "precision")


@pytest.mark.parametrize(
    ("reason", "attempts", "stopped_by"),
    [("unsupported", 1, "precision"), ("crashed", 3, "precision"), ("crashed", 2, "max_rounds")],
)
def test_an_op_given_up_is_not_waited_for(store, reason: FailureReason, attempts, stopped_by):
    lost = SPEC.ops[2].op_id

    def reports() -> Iterator[Report]:
        for n in range(60):
            report = a_round(n, failures=(Failure(op_id=lost, round=n, reason=reason),))
            yield report if n < attempts else replace(report, failures=())

    controller = controlled(store)
    made = decisions(store, controller, reports())
    assert made[max(made)].reason == stopped_by
    assert controller.look.n_failed == (stopped_by == "precision")


def test_a_validation_never_stops_by_precision_and_still_says_how_precise_it_is(store):
    spec = replace(SPEC, purpose="validate", max_rounds=30)
    controller = controlled(store, spec)
    made = decisions(store, controller, (a_round(n, spec=spec) for n in range(60)))
    assert (max(made), made[max(made)].reason) == (30, "max_rounds")
    assert (controller.look.rounds, controller.look.n_precise) == (FIRST_LOOK + LOOK_EVERY, len(SPEC.ops))


# --- Rounds and budget


def test_a_noisy_campaign_stops_after_its_last_round(store):
    spec = replace(SPEC, max_rounds=11)
    made = decisions(store, controlled(store, spec), (a_round(n, spec=spec, noise=NOISY) for n in range(60)))
    assert (max(made), made[11]) == (11, Decision(stop=True, reason="max_rounds"))


def test_the_budget_leaves_room_for_one_more_round_and_for_publishing(store):
    now = iter([10.0, 80.0, 87.0, 87.5])
    controller = controlled(store, elapsed_s=lambda: next(now))
    made = decisions(store, controller, (a_round(n, noise=NOISY, round_s=10.0) for n in range(60)))
    # 87 + 10 + 3 is the budget of 100 s exactly; 87.5 is too late for another round.
    assert made == {1: CONTINUE, 2: CONTINUE, 3: CONTINUE, 4: Decision(stop=True, reason="budget")}


def test_what_earlier_runs_measured_counts_for_the_budget(store):
    first = controlled(store)
    assert first.spent_s == 0.0
    decisions(store, first, (a_round(n, noise=NOISY, round_s=10.0) for n in range(4)))
    assert first.spent_s == 0.0  # of this run the clock counts, not the rounds as well
    again = controlled(store, elapsed_s=lambda: 50.0)
    assert again.spent_s == pytest.approx(90.0)
    made = decisions(store, again, (a_round(n, noise=NOISY, round_s=10.0) for n in range(4, 60)))
    assert made == {5: Decision(stop=True, reason="budget")}


def test_a_resumed_campaign_decides_on_the_visits_of_all_runs(store):
    decisions(store, controlled(store), (a_round(n) for n in range(FIRST_LOOK - 1)))
    made = decisions(store, controlled(store), (a_round(n) for n in range(FIRST_LOOK - 1, 60)))
    assert made == {FIRST_LOOK: Decision(stop=True, reason="precision")}


# --- What it says meanwhile


def test_before_the_first_look_nothing_is_known(store):
    controller = controlled(store)
    decisions(store, controller, (a_round(n, noise=NOISY) for n in range(FIRST_LOOK - 1)))
    look = controller.look
    assert (look.rounds, look.n_precise, look.worst_precision, look.drift, look.n_failed) == (0, 0, None, None, 0)


def test_a_look_tells_the_machines_speed_range_over_the_last_rounds(store):
    controller = controlled(store)
    # Slow in the first rounds, which are no longer recent, and in the last one.
    reports = (a_round(n, speed={0: 3.0, 1: 3.0, FIRST_LOOK - 1: 1.5}.get(n, 1.0)) for n in range(FIRST_LOOK))
    decisions(store, controller, reports)
    assert controller.look.drift == pytest.approx(0.5, abs=0.1)


def test_reports_of_other_campaigns_are_not_decided_on(store):
    controller = controlled(store, replace(SPEC, max_rounds=1))
    other = replace(SPEC, repeat=1)
    store.create_campaign(other, now_s=0.0)
    report = a_round(30, spec=other, round_s=1000.0)
    store.commit_report(report, now_s=1.0)
    assert controller.decide(other.key, report) == CONTINUE


# --- Leases in phases

MANY = tuple(OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8) for n in range(1, 31))
PHASED = replace(SPEC, ops=tuple(map(CampaignOp.of, MANY)), lease_rounds=24, max_rounds=200)
LOUD = tuple(op.op_id for op in PHASED.ops[:4])


class Phases:
    """Leases and their rounds, one after the other; seconds pass as the rounds and loading take them."""

    def __init__(self, store: Store, spec: CampaignSpec, *, load_s: float = 0.0, noisy: tuple[str, ...] = ()) -> None:
        self.store = store
        self.spec = spec
        self.noisy = noisy
        self.load_s = load_s
        self.now_s = 0.0
        self.session = "s1"
        self.leases: list[Offer] = []
        self.controller = controlled(store, spec, elapsed_s=lambda: self.now_s)

    def lease(self, *, noise: float = QUIET) -> Decision:
        """Take a lease and do its rounds; return the last decision."""
        name = f"{self.spec.key}-{id(self)}-{len(self.leases)}"
        offered = schedule.offer(self.store.progress(self.spec.key), 0)
        lease = HeldLease(
            lease_id=name, epoch=1, campaign_id=self.spec.key, batch=0, session_id=self.session, agent="alice",
            first_round=offered.first_round, rounds=offered.rounds, deadline_s=1e9,
        )  # fmt: skip  # one line reads as one record
        offer = self.controller.next_lease(lease, offered)
        self.leases.append(offer)
        self.store.grant_lease(
            name,
            campaign_id=self.spec.key,
            batch=0,
            session_id=self.session,
            first_round=offer.first_round,
            rounds=offer.rounds,
            now_s=self.now_s,
        )
        self.now_s += self.load_s
        decision = CONTINUE
        for number in range(offer.first_round, offer.first_round + offer.rounds):
            made = a_round(number, spec=replace(self.spec, ops=offer.ops), noise=noise, noisy=self.noisy)
            report = replace(
                made, report_id=f"{name}-{number}", session_id=self.session, lease_id=name, campaign_id=self.spec.key
            )
            self.store.commit_report(report, now_s=1.0)
            self.now_s += 1.0
            decision = self.controller.decide(self.spec.key, report)
            if decision != CONTINUE:
                break
        self.store.end_lease(name, "done", now_s=self.now_s)
        return decision

    def renew(self, session: str) -> None:
        self.session = session
        self.store.open_session(HELLO, session, now_s=self.now_s)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """First round, rounds and ops of every lease."""
        return [(offer.first_round, offer.rounds, len(offer.ops)) for offer in self.leases]


def test_precise_ops_leave_after_the_first_lease_and_those_that_lack_precision_stay(store):
    phases = Phases(store, replace(PHASED, budget_s=1000.0), noisy=LOUD)
    while phases.lease() == CONTINUE and len(phases.leases) < 4:
        pass
    assert phases.shapes[0] == (0, 9, 30), "every op, as many rounds as a look needs, each instance equally often"
    assert all(12 <= n_ops <= 16 for _, _, n_ops in phases.shapes[1:]), "four, and one of every size"
    assert all(set(LOUD) <= {op.op_id for op in offer.ops} for offer in phases.leases)
    look = phases.controller.look
    assert 20 <= look.n_precise <= 26
    assert look.n_rotation == len(phases.leases[-1].ops)


def test_a_resumed_campaign_goes_on_with_the_same_rotation(store):
    phases = Phases(store, replace(PHASED, budget_s=1000.0), noisy=LOUD)
    assert (phases.lease(), phases.lease()) == (CONTINUE, CONTINUE)
    again = Phases(store, phases.spec, noisy=LOUD)
    again.lease()
    phases.lease()
    assert again.leases[0].ops == phases.leases[2].ops


def test_looks_are_taken_at_the_ends_of_leases_only(store):
    phases = Phases(store, replace(PHASED, lease_rounds=12))
    assert phases.lease() == Decision(stop=True, reason="precision")
    assert phases.shapes == [(0, 9, 30)]
    looks = [9]
    noisy = Phases(store, replace(PHASED, lease_rounds=12, repeat=1, budget_s=1000.0))
    while len(noisy.leases) < 8 and noisy.lease(noise=NOISY) == CONTINUE:
        looks.append(noisy.controller.look.rounds)
    ends = {first + rounds for first, rounds, _ in noisy.shapes}
    assert set(looks) <= ends
    assert len(set(looks)) < len(noisy.leases), "each look is a chance to stop too early by luck"


def test_without_phases_every_op_is_leased_for_all_rounds(store):
    phases = Phases(store, replace(PHASED, lease_rounds=0))
    phases.lease()
    assert phases.shapes == [(0, 200, 30)]
    assert phases.controller.look.n_rotation is None


def test_a_validation_visits_everything_in_every_lease(store):
    phases = Phases(store, replace(PHASED, purpose="validate", lease_rounds=10, max_rounds=25), noisy=LOUD)
    decisions = [phases.lease() for _ in range(3)]
    assert phases.shapes == [(0, 10, 30), (10, 10, 30), (20, 5, 30)]
    assert decisions[-1] == Decision(stop=True, reason="max_rounds")


def test_no_lease_begins_that_the_budget_has_no_time_to_load_and_use(store):
    phases = Phases(store, replace(PHASED, budget_s=120.0, lease_rounds=20), load_s=10.0)
    while (decision := phases.lease(noise=NOISY)) == CONTINUE:
        pass
    assert decision == Decision(stop=True, reason="budget")
    assert 120 - 3 - 13 < phases.now_s <= 120 - 3, "loading and three rounds more would not have fitted"


def test_a_campaign_that_was_measured_by_two_agents_has_spent_half_of_what_they_measured(store):
    spec = replace(PHASED, agents=2)
    phases = Phases(store, spec)
    phases.lease(noise=NOISY)
    assert controlled(store, spec).spent_s == pytest.approx(4.5)


# --- Sessions


def test_a_session_ends_with_its_share_of_the_budget_and_the_last_one_ends_the_campaign(store):
    phases = Phases(store, replace(PHASED, sessions=2, budget_s=60.0, precision=1e-6))
    while (decision := phases.lease(noise=NOISY)) == CONTINUE:
        pass
    assert decision == Decision(renew=True)
    assert 27.0 <= phases.now_s <= 30.0
    n_leases = len(phases.leases)
    phases.renew("s2")
    while (decision := phases.lease(noise=NOISY)) == CONTINUE:
        pass
    assert decision == Decision(stop=True, reason="budget")
    assert 54.0 <= phases.now_s <= 57.0
    assert phases.shapes[n_leases][2] == 30, "a new session visits every op: its scale is told by them"


def test_a_session_ends_with_its_share_of_the_rounds_or_once_all_is_precise(store):
    phases = Phases(store, replace(PHASED, sessions=2, max_rounds=20, precision=1e-6))
    assert (phases.lease(), phases.lease()) == (CONTINUE, Decision(renew=True))
    assert phases.store.campaign(phases.spec.key).rounds == 10
    early = Phases(store, replace(PHASED, sessions=2))
    assert early.lease() == Decision(renew=True)
    early.renew("s2")
    assert early.lease() == Decision(stop=True, reason="precision")
    assert early.shapes == [(0, 9, 30), (9, 9, 30)]


def test_a_session_that_was_killed_early_is_not_counted(store):
    phases = Phases(store, replace(PHASED, sessions=2, max_rounds=40, precision=1e-6, lease_rounds=4))
    phases.lease(noise=NOISY)  # four rounds, then it dies
    phases.renew("s2")
    while (decision := phases.lease(noise=NOISY)) == CONTINUE:
        pass
    assert decision == Decision(renew=True), "it is the first session still"
    phases.renew("s3")
    while (decision := phases.lease(noise=NOISY)) == CONTINUE:
        pass
    assert decision == Decision(stop=True, reason="max_rounds")


def test_a_session_whose_share_other_agents_used_up_is_not_made_up_for(store):
    phases = Phases(store, replace(PHASED, sessions=2, max_rounds=40, precision=1e-6, lease_rounds=4, agents=2))
    bob = replace(HELLO, name="bob")
    store.open_session(bob, "b1", now_s=0.0)
    phases.session = "b1"
    assert phases.lease(noise=NOISY) == CONTINUE  # four rounds
    phases.session = "s1"
    while (decision := phases.lease(noise=NOISY)) == CONTINUE:
        pass
    assert decision == Decision(renew=True), "alice has done the other sixteen of the share"
    phases.session = "b1"
    assert phases.lease(noise=NOISY) == Decision(renew=True)
    store.open_session(bob, "b2", now_s=0.0)
    phases.session = "b2"
    assert phases.lease(noise=NOISY) == CONTINUE, "bob's second session, short as the first was"


def test_without_phases_sessions_share_the_rounds_too(store):
    phases = Phases(store, replace(PHASED, sessions=2, max_rounds=20, lease_rounds=0, precision=1e-6))
    assert phases.lease(noise=NOISY) == Decision(renew=True)
    phases.renew("s2")
    assert phases.lease(noise=NOISY) == Decision(stop=True, reason="max_rounds")
