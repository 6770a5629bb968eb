"""Several campaigns at once: each is decided by its own controller, and its budget is what agents spent on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lutbuilder.campaign.controllers import Controllers
from lutbuilder.campaign.spec import CampaignSpec
from lutbuilder.coordinator.schedule import Decision, HeldLease, Offer
from lutbuilder.coordinator.store import Store
from tests.store_examples import SPEC, report

OTHER = replace(SPEC, space="other", agents=2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "campaigns.sqlite") as opened:
        for spec in (SPEC, OTHER):
            opened.create_campaign(spec, now_s=1.0)
        yield opened


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def at(self, now_s: float) -> None:
        self.now_s = 100.0 + now_s


def lease(spec: CampaignSpec, lease_id: str) -> HeldLease:
    return HeldLease(
        lease_id=lease_id, epoch=1, campaign_id=spec.key, batch=0, session_id="s1", agent="alice", first_round=0,
        rounds=5, deadline_s=0.0,
    )  # fmt: skip  # one record, two lines


def offer(spec: CampaignSpec) -> Offer:
    return Offer(campaign_id=spec.key, batch=0, ops=spec.ops, first_round=0, rounds=5)


def reported(controllers: Controllers, spec: CampaignSpec, lease_id: str, *, session_id: str = "s1") -> None:
    controllers.decide(spec.key, report(campaign_id=spec.key, lease_id=lease_id, session_id=session_id))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def served(store: Store, clock: Clock) -> Controllers:
    made = Controllers(store, on_demand=True, clock=clock)
    made.add(SPEC)
    made.add(OTHER)
    return made


def test_time_is_spent_from_the_lease_to_the_report_and_on_to_the_next(served: Controllers, clock: Clock) -> None:
    served.narrow(lease(SPEC, "l1"), offer(SPEC))
    clock.at(3)
    reported(served, SPEC, "l1")
    clock.at(5)
    reported(served, SPEC, "l1")
    assert served.busy_s(SPEC.key) == 5.0
    clock.at(1000)
    assert served.busy_s(SPEC.key) == 5.0, "nothing is spent while it waits for its turn"


def test_what_an_agent_does_for_another_campaign_is_the_others(served: Controllers, clock: Clock) -> None:
    served.narrow(lease(SPEC, "l1"), offer(SPEC))
    clock.at(2)
    reported(served, SPEC, "l1")
    served.narrow(lease(OTHER, "l2"), offer(OTHER))  # ahead: the agent still works on the first
    clock.at(6)
    reported(served, SPEC, "l1")
    clock.at(8)
    reported(served, OTHER, "l2")
    assert served.busy_s(SPEC.key) == 6.0
    assert served.busy_s(OTHER.key) == 2.0 / OTHER.agents


def test_two_agents_side_by_side_spend_the_time_once(served: Controllers, clock: Clock) -> None:
    served.narrow(lease(OTHER, "l1"), offer(OTHER))
    served.narrow(replace(lease(OTHER, "l2"), session_id="s2"), offer(OTHER))
    clock.at(60)
    reported(served, OTHER, "l1")
    reported(served, OTHER, "l2", session_id="s2")
    assert served.busy_s(OTHER.key) == 60.0


def test_the_first_word_of_a_lease_of_an_earlier_process_costs_nothing(served: Controllers, clock: Clock) -> None:
    clock.at(50)
    reported(served, SPEC, "of-before")
    assert served.busy_s(SPEC.key) == 0.0
    clock.at(51)
    reported(served, SPEC, "of-before")
    assert served.busy_s(SPEC.key) == 1.0


def test_a_campaign_of_another_coordinators_job_is_decided_from_the_store(store: Store, clock: Clock) -> None:
    served = Controllers(store, on_demand=True, clock=clock)
    narrowed = served.narrow(lease(SPEC, "l1"), offer(SPEC))
    assert narrowed.ops == SPEC.ops
    clock.at(SPEC.budget_s + 1)
    over = served.decide(SPEC.key, report(campaign_id=SPEC.key, lease_id="l1", round=4))
    assert over == Decision(stop=True, reason="budget")


def test_an_embedded_host_decides_nothing_for_a_strange_campaign(store: Store) -> None:
    alone = Controllers(store)
    alone.add(SPEC, elapsed_s=lambda: 1e9)
    assert alone.decide(OTHER.key, report(campaign_id=OTHER.key)) == Decision()
    assert alone.narrow(lease(OTHER, "l1"), offer(OTHER)) == offer(OTHER)
    assert alone.decide(SPEC.key, report()).reason == "budget"


def test_a_controller_is_made_once_and_forgotten_with_its_campaign(served: Controllers, clock: Clock) -> None:
    first = served.add(SPEC)
    assert served.add(SPEC) is first
    served.narrow(lease(SPEC, "l1"), offer(SPEC))
    clock.at(1)
    reported(served, SPEC, "l1")
    served.remove(SPEC.key)
    assert served.busy_s(SPEC.key) == 0.0
    assert served.add(SPEC) is not first


def test_controllers_of_campaigns_that_ended_elsewhere_are_forgotten(served: Controllers, store: Store) -> None:
    first = served.add(SPEC)
    store.finish_campaign(SPEC.key, "precision", 2.0)
    third = replace(SPEC, space="third")
    store.create_campaign(third, now_s=1.0)
    served.decide(third.key, report(campaign_id=third.key))
    assert served.add(SPEC) is not first


def test_visits_are_counted_by_campaign(served: Controllers) -> None:
    served.seen(SPEC.key, 4)
    served.seen(OTHER.key, 1)
    served.seen(SPEC.key, 2)
    assert (served.visits(SPEC.key), served.visits(OTHER.key), served.visits("strange")) == (6, 1, 0)
