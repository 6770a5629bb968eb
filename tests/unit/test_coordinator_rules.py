"""The rules of a fleet, on real coordinators over one store, in process, under a clock that the test holds."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.schedule import Decision
from lutbuilder.coordinator.service import Coordinator, Event
from lutbuilder.coordinator.service.fleet import SILENT_S
from lutbuilder.coordinator.service.serving import Keeper
from lutbuilder.coordinator.store import Store
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import CampaignFailed, StaleLease, StoreError, UnknownName
from lutbuilder_agent.records import (
    AgentHello,
    ArtifactRef,
    Failure,
    Fingerprint,
    Lease,
    Plan,
    Report,
    RuntimeReport,
    Timing,
)
from lutbuilder_agent.wire.api import Idle

TTL_S = 30.0
FINGERPRINT = Fingerprint(device="toy", facts=())
HELLO = AgentHello(
    name="alice", agent_version="1", fingerprint=FINGERPRINT, runtimes=(RuntimeReport(name="simulated", version="1"),)
)
OPS = tuple(CampaignOp.of(OpSpec(kind="conv", in_channels=n, out_channels=n, height=8, width=8)) for n in range(1, 5))
SPEC = CampaignSpec(
    space="toy",
    target=Target(device="toy", runtime="simulated"),
    plan=Plan(runtime="simulated"),
    env_id=FINGERPRINT.env_id,
    runtime_version="1",
    ops=OPS,
    budget_s=10,
    precision=0.01,
    max_rounds=50,
)
OTHER = replace(SPEC, space="other")


class Names:
    """Artifacts that are only names."""

    def ref(self, op: CampaignOp, format: str) -> ArtifactRef:
        return ArtifactRef(sha256=hashlib.sha256(op.op_id.encode()).hexdigest(), format="graph", size_bytes=1)

    def fetch(self, sha256: str) -> bytes:
        return b"."


class Site:
    """A store, and coordinators on it that share a clock; each tells its events."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 1000.0
        self.store = Store.open(folder / "campaigns.sqlite")
        self.events: list[Event] = []
        self.decide: Callable[[str, Report], Decision] = lambda campaign_id, report: Decision()

    def coordinator(self, name: str = "one", *specs: CampaignSpec, **given: Any) -> Coordinator:
        made = Coordinator(
            self.store,
            Names(),
            lambda campaign_id, report: self.decide(campaign_id, report),
            clock=lambda: self.now_s,
            wall_clock=lambda: self.now_s,
            ttl_s=TTL_S,
            coordinator_id=name,
            **given,
        )
        made.on_event.append(self.events.append)
        for spec in specs or (SPEC,):
            made.offer(self.store.create_campaign(spec, now_s=self.now_s))
        return made

    def kinds(self, kind: str) -> list[str]:
        return [event.agent for event in self.events if event.kind == kind]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.store.close()


def _join(coordinator: Coordinator, name: str = "alice", **changes: Any) -> tuple[str, Lease]:
    session_id = coordinator.register(replace(HELLO, name=name, **changes)).session_id
    return session_id, _lease(coordinator, session_id)


def _lease(coordinator: Coordinator, session_id: str, **given: Any) -> Lease:
    answer = coordinator.lease(session_id, "ok", 0.0, **given)
    assert isinstance(answer, Lease)
    return answer


def _idle(coordinator: Coordinator, session_id: str, **given: Any) -> bool:
    return isinstance(coordinator.lease(session_id, "ok", 0.0, **given), Idle)


def _report(session_id: str, lease: Lease, round: int, *, failed: Sequence[CampaignOp] = ()) -> Report:
    gone = {op.op_id for op in failed}
    timings = tuple(
        Timing(op_id=op.op_id, round=round, order=place, instance=0, start_ns=round, warmup_ns=(), samples_ns=(5,))
        for place, op in enumerate(lease.ops)
        if op.op_id not in gone
    )
    return Report(
        report_id=f"{session_id}-{lease.lease_id}-{round}",
        session_id=session_id,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        campaign_id=lease.campaign_id,
        round=round,
        timings=timings,
        failures=tuple(Failure(op_id=op.op_id, round=round, reason="crashed") for op in failed),
        round_ns=1_000_000_000,
    )


# --- leases ahead


def test_a_lease_ahead_follows_the_one_in_hand_and_lives_as_long(site: Site) -> None:
    one = site.coordinator("one", SPEC, OTHER)
    session_id, first = _join(one)
    ahead = _lease(one, session_id, ahead_of=first.lease_id)
    assert ahead.campaign_id != first.campaign_id
    assert _lease(one, session_id, ahead_of=first.lease_id) == ahead, "the answer was lost, say"
    assert _lease(one, session_id).lease_id == first.lease_id
    for number in range(3):
        site.now_s += TTL_S - 1
        assert not one.report(_report(session_id, first, number)).stop
    assert not one.heartbeat(session_id, ahead.lease_id, 0.0)
    one.finish(first.campaign_id, "enough")
    assert one.report(_report(session_id, first, 3)).stop
    assert _lease(one, session_id).lease_id == ahead.lease_id


def test_ahead_of_a_lease_that_is_not_held_there_is_nothing(site: Site) -> None:
    one = site.coordinator("one", SPEC, OTHER)
    session_id = one.register(HELLO).session_id
    assert _idle(one, session_id, ahead_of="nothing")
    assert site.store.active_leases() == ()


def test_a_session_that_is_over_or_drained_loses_both_its_leases(site: Site) -> None:
    one = site.coordinator("one", SPEC, OTHER)
    site.decide = lambda campaign_id, report: Decision(renew=True)
    session_id, first = _join(one)
    ahead = _lease(one, session_id, ahead_of=first.lease_id)
    assert one.report(_report(session_id, first, 0)).stop
    assert one.heartbeat(session_id, ahead.lease_id, 0.0)
    session_id, first = _join(one)
    ahead = _lease(one, session_id, ahead_of=first.lease_id)
    one.lease(session_id, "draining", 0.0)
    assert one.heartbeat(session_id, ahead.lease_id, 0.0)
    assert site.store.active_leases() == ()


# --- clock domains


def test_agents_of_one_clock_domain_take_turns(site: Site) -> None:
    one = site.coordinator("one", SPEC, OTHER)
    alice, lease = _join(one, "alice", clock_domain="host")
    bob = one.register(replace(HELLO, name="bob", clock_domain="host")).session_id
    assert _idle(one, bob)
    assert _idle(one, alice, ahead_of=lease.lease_id), "bob would never have his turn"
    one.lease(alice, "draining", 0.0)
    assert _lease(one, bob).campaign_id == lease.campaign_id


def test_a_domain_is_free_only_when_its_agent_knows_that_its_lease_is_over(site: Site) -> None:
    one = site.coordinator("one", SPEC, OTHER)
    alice, lease = _join(one, "alice", clock_domain="host")
    bob = one.register(replace(HELLO, name="bob", clock_domain="host")).session_id
    eve = one.register(replace(HELLO, name="eve")).session_id
    one.finish(lease.campaign_id, "enough", state="cancelled")
    assert _idle(one, bob), "alice may be in the middle of a round"
    assert not _idle(one, eve)
    assert one.report(_report(alice, lease, 0)).stop
    one.finish(OTHER.key, "enough", state="cancelled")
    assert one.leases() == ()
    one.offer(site.store.create_campaign(replace(SPEC, repeat=1), now_s=1.0))
    assert not _idle(one, bob)


def test_a_domain_whose_agent_is_never_heard_again_is_free_after_the_ttl(site: Site) -> None:
    one = site.coordinator("one", SPEC, OTHER)
    _, lease = _join(one, "alice", clock_domain="host")
    bob = one.register(replace(HELLO, name="bob", clock_domain="host")).session_id
    one.finish(lease.campaign_id, "enough", state="cancelled")
    site.now_s += TTL_S
    assert not _idle(one, bob)


# --- drained and quarantined


def test_a_drained_agent_hands_in_its_round_and_gets_nothing_more(site: Site) -> None:
    one = site.coordinator()
    alice, lease = _join(one)
    one.drain("alice")
    assert not one.heartbeat(alice, lease.lease_id, 0.0)
    assert one.report(_report(alice, lease, 0)).stop
    assert _idle(one, alice)
    assert [view.state for view in one.fleet()] == ["drained"]
    _join(one, "bob")
    one.drain("alice", False)
    one.lease(one.fleet()[1].session_id, "draining", 0.0)
    assert not _idle(one, alice)
    with pytest.raises(UnknownName):
        one.drain("nobody")


def test_a_sick_device_is_quarantined_and_its_failures_are_not_those_of_its_ops(site: Site) -> None:
    one = site.coordinator("one", replace(SPEC, agents=2))
    alice, first = _join(one, "alice")
    bob, second = _join(one, "bob")
    assert one.report(_report(alice, first, 0, failed=OPS)).stop
    assert site.kinds("quarantined") == []
    assert not one.report(_report(bob, second, 1)).stop, "what failed with alice passes with bob"
    assert site.kinds("quarantined") == ["alice"]
    (view,) = [view for view in one.fleet() if view.name == "alice"]
    assert view.state == "quarantined"
    assert view.reason.startswith("4 ops failed here in a row, of which 4 pass on other agents")
    assert site.store.failures(replace(SPEC, agents=2).key) == ()
    assert _idle(one, alice)
    again = one.register(HELLO).session_id
    assert _idle(one, again), "a new session is still the same device"
    one.release_agent("alice")
    assert not _idle(one, again)


def test_a_device_that_fails_where_nobody_else_measures_is_not_blamed(site: Site) -> None:
    one = site.coordinator()
    for number in range(3):
        alice, lease = _join(one)
        assert one.report(_report(alice, lease, lease.first_round, failed=OPS)).stop, number
    assert site.kinds("quarantined") == []
    assert one.wait(SPEC.key, 0.0).campaign.reason == "failed"


def test_an_op_that_was_given_up_can_be_tried_again(site: Site) -> None:
    one = site.coordinator()
    for _ in range(3):
        alice, lease = _join(one)
        one.report(_report(alice, lease, lease.first_round, failed=OPS[:1]))
    assert OPS[0].op_id not in [op.op_id for op in _lease(one, alice).ops]
    one.release_op(SPEC.key, OPS[0].op_id)
    assert OPS[0].op_id in [op.op_id for op in _lease(one, alice).ops]


# --- several campaigns


def test_the_owner_of_two_campaigns_gets_no_more_than_the_owner_of_one(site: Site) -> None:
    specs = [replace(SPEC, space=name, lease_rounds=1) for name in ("a", "b", "c")]
    for spec, owner in zip(specs, ("ann", "bob", "bob"), strict=True):
        site.store.create_campaign(spec, now_s=site.now_s, owner=owner)
    one = site.coordinator("one", *specs)
    session_id = one.register(HELLO).session_id
    given = []
    for _ in range(12):
        lease = _lease(one, session_id)
        given.append(next(spec.space for spec in specs if spec.key == lease.campaign_id))
        one.report(_report(session_id, lease, lease.first_round))
    assert (given.count("a"), given.count("b"), given.count("c")) == (6, 3, 3)


def test_a_campaign_of_higher_priority_goes_first(site: Site) -> None:
    site.store.create_campaign(SPEC, now_s=1.0)
    site.store.create_campaign(OTHER, now_s=2.0, priority=5)
    one = site.coordinator("one", SPEC, OTHER)
    assert _join(one)[1].campaign_id == OTHER.key


def test_what_goes_wrong_with_one_campaign_leaves_the_others_alone(site: Site) -> None:
    def decide(campaign_id: str, report: Report) -> Decision:
        if campaign_id == SPEC.key:
            raise CampaignFailed("this one is broken")
        return Decision()

    site.decide = decide
    one = site.coordinator("one", SPEC, OTHER)
    alice, lease = _join(one)
    assert one.report(_report(alice, lease, 0)).stop
    with pytest.raises(CampaignFailed, match="this one is broken"):
        one.wait(SPEC.key, 0.0)
    assert one.wait(OTHER.key, 0.0).campaign.state == "active"
    assert _lease(one, alice).campaign_id == OTHER.key


def test_campaigns_that_the_owner_names_are_leased_from_the_next_tick_on(site: Site) -> None:
    named: list[str] = []
    one = site.coordinator("one", OTHER, offered=lambda: named)
    alice, _ = _join(one)
    bob = one.register(replace(HELLO, name="bob")).session_id
    named += [site.store.create_campaign(SPEC, now_s=1.0), "not there yet"]
    assert _idle(one, bob)
    one.tick()
    assert _lease(one, bob).campaign_id == SPEC.key
    named.clear()
    one.tick()
    assert one.report(_report(alice, _lease(one, alice), 0)).stop is False


# --- two coordinators on one store


def test_two_coordinators_share_one_queue(site: Site) -> None:
    one, two = site.coordinator("one", SPEC, OTHER), site.coordinator("two", SPEC, OTHER)
    _, first = _join(one, "alice")
    _, second = _join(two, "bob")
    assert first.campaign_id != second.campaign_id
    eve = two.register(replace(HELLO, name="eve")).session_id
    assert _idle(two, eve)
    assert {lease.owner for lease in two.leases()} == {"one", "two"}


def test_a_lease_of_another_coordinator_is_lost_when_its_beat_stands_still(site: Site) -> None:
    one, two = site.coordinator("one"), site.coordinator("two")
    alice, lease = _join(one)
    two.tick()
    bob = two.register(replace(HELLO, name="bob")).session_id
    for _ in range(3):
        site.now_s += TTL_S - 1
        assert not one.heartbeat(alice, lease.lease_id, 0.0)
        one.tick()
        two.tick()
        assert _idle(two, bob)
    site.now_s += TTL_S
    assert _lease(two, bob).epoch > lease.epoch
    assert site.kinds("lost") == ["alice"]
    assert one.report(_report(alice, lease, 0)).stop, "a late report"
    assert len(site.store.visits([SPEC.key])) == len(OPS)


def test_an_announced_silence_holds_for_the_other_coordinator_too(site: Site) -> None:
    one, two = site.coordinator("one"), site.coordinator("two")
    alice, lease = _join(one)
    assert not one.heartbeat(alice, lease.lease_id, 100.0)
    two.tick()
    bob = two.register(replace(HELLO, name="bob")).session_id
    site.now_s += TTL_S + 99
    assert _idle(two, bob)
    site.now_s += 1
    assert not _idle(two, bob)


def test_whoever_hears_of_an_agent_takes_its_lease_over(site: Site) -> None:
    one, two = site.coordinator("one"), site.coordinator("two")
    alice, lease = _join(one)
    assert not two.report(_report(alice, lease, 0)).stop, "its first coordinator is not reached any more"
    assert [held.owner for held in two.leases()] == ["two"]
    site.now_s += TTL_S - 1
    assert not two.heartbeat(alice, lease.lease_id, 0.0)
    site.now_s += 2
    one.tick()
    assert site.kinds("lost") == [], "the first one sees that the beat has moved"
    assert not one.heartbeat(alice, lease.lease_id, 0.0), "and the agent may come back"
    two.tick()
    assert [held.owner for held in two.leases()] == ["one"]


def test_an_agent_that_begins_anew_at_another_coordinator_fences_itself_everywhere(site: Site) -> None:
    one, two = site.coordinator("one"), site.coordinator("two")
    old, lease = _join(one)
    _, again = _join(two)
    assert again.epoch > lease.epoch
    assert one.report(_report(old, lease, 0)).stop
    with pytest.raises(StaleLease, match="newer agent named alice"):
        one.lease(old, "ok", 0.0)


def test_what_one_coordinator_decides_holds_for_the_other(site: Site) -> None:
    one, two = site.coordinator("one"), site.coordinator("two")
    alice, lease = _join(one)
    two.drain("alice")
    two.finish(SPEC.key, "enough", state="cancelled")
    one.tick()
    assert one.heartbeat(alice, lease.lease_id, 0.0)
    assert [view.state for view in one.fleet()] == ["drained"]
    assert one.wait(SPEC.key, 0.0).campaign.reason == "enough"


def test_a_coordinator_that_stands_still_is_dead_by_the_clock_of_the_others(site: Site) -> None:
    one, two = site.coordinator("one"), site.coordinator("two")
    for _ in range(4):
        one.tick()
        two.tick()
        site.now_s += TTL_S / 3
        assert one.dead_coordinators() == frozenset()
    for _ in range(4):
        one.tick()
        site.now_s += TTL_S / 3
    assert one.dead_coordinators() == {"two"}
    two.tick()
    one.tick()
    assert one.dead_coordinators() == frozenset()


def test_a_failed_op_waits_for_the_agents_of_another_coordinator(site: Site) -> None:
    one, two = site.coordinator("one"), site.coordinator("two")
    bob = two.register(replace(HELLO, name="bob")).session_id
    site.now_s += 5.0
    two.tick()
    one.tick()
    alice, lease = _join(one)
    assert one.report(_report(alice, lease, 0, failed=OPS[:1])).stop
    assert _idle(one, alice)
    assert OPS[0].op_id in [op.op_id for op in _lease(two, bob).ops]


# --- clocks


def test_a_report_ends_the_silence_that_was_announced_before_it(site: Site) -> None:
    one = site.coordinator()
    alice, lease = _join(one)
    bob = one.register(replace(HELLO, name="bob")).session_id
    assert not one.heartbeat(alice, lease.lease_id, 1000.0)
    first = _report(alice, lease, 0)
    assert not one.report(first).stop
    assert not one.heartbeat(alice, lease.lease_id, 500.0)
    assert not one.report(first).stop, "the network brings it once more"
    site.now_s += TTL_S + 499
    assert _idle(one, bob)
    assert not one.report(_report(alice, lease, 1)).stop
    site.now_s += TTL_S
    assert not _idle(one, bob)


def test_a_coordinator_that_was_stopped_calls_nobody_lost(site: Site) -> None:
    one = site.coordinator()
    keeper = Keeper(one, 1.0, clock=lambda: site.now_s)
    alice, lease = _join(one)
    bob = one.register(replace(HELLO, name="bob")).session_id
    keeper.step()
    site.now_s += 10 * TTL_S  # SIGSTOP, and SIGCONT
    assert _idle(one, bob), "a call that was read before the keeper noticed"
    keeper.step()
    assert not one.heartbeat(alice, lease.lease_id, 0.0)
    for _ in range(40):
        site.now_s += 1.0
        keeper.step()
    assert not _idle(one, bob), "but silence is silence"


def test_a_tick_survives_a_store_that_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site.coordinator()
    keeper = Keeper(one, 1.0, clock=lambda: site.now_s)
    _join(one)

    def fails(*_: object) -> None:
        raise StoreError("the disk is away")

    monkeypatch.setattr(site.store, "active_leases", fails)
    keeper.step()
    monkeypatch.undo()
    keeper.step()
    assert len(one.leases()) == 1


def test_wall_clocks_decide_nothing(site: Site) -> None:
    one = site.coordinator()
    alice, lease = _join(one)
    one._board.wall_clock = lambda: 0.0  # what it says is for show
    one.tick()
    assert not one.report(_report(alice, lease, 0)).stop
    one._board.wall_clock = lambda: 1e12
    one.tick()
    assert not one.report(_report(alice, lease, 1)).stop


# --- who waits


def test_only_as_many_are_woken_as_there_is_work_for(site: Site) -> None:
    one = site.coordinator()
    alice, lease = _join(one)
    woken: list[str] = []
    answers: list[str] = []

    def wait(name: str, session_id: str) -> None:
        answer = one.lease(session_id, "ok", 20.0)
        woken.append(name)
        answers.append(type(answer).__name__)

    threads = []
    for name in ("bob", "eve", "dan"):
        session_id = one.register(replace(HELLO, name=name)).session_id
        thread = threading.Thread(target=wait, args=(name, session_id))
        thread.start()
        threads.append(thread)
        while one.waiting < len(threads):
            thread.join(0.005)
    one.report(_report(alice, lease, 0))
    assert woken == []
    one.lease(alice, "draining", 0.0)
    threads[0].join(10)
    assert (woken, answers) == (["bob"], ["Lease"])
    assert one.waiting == 2
    one.release_waiters()
    for thread in threads:
        thread.join(10)
    assert answers == ["Lease", "Idle", "Idle"]


# --- the page of agents


def test_the_page_says_what_every_agent_does(site: Site) -> None:
    one = site.coordinator()
    alice, lease = _join(one, "alice", clock_domain="host")
    one.register(replace(HELLO, name="bob"))
    for number in range(3):
        site.now_s += 2.0
        one.report(_report(alice, lease, number))
    one.register(replace(HELLO, name="eve"))
    measuring, idle, _ = one.fleet()
    assert (measuring.name, measuring.state, measuring.clock_domain) == ("alice", "measuring", "host")
    assert [held.lease_id for held in measuring.leases] == [lease.lease_id]
    assert measuring.visits_per_s == pytest.approx(len(OPS) / 2.0)
    assert (idle.state, idle.heard_s, idle.visits_per_s) == ("idle", 6.0, None)
    site.now_s += SILENT_S + 1.0
    one.tick()
    assert [view.state for view in one.fleet()] == ["silent"] * 3
    assert [view.heard_s for view in site.coordinator("two").fleet()] == [None] * 3
    assert dict(one.heard()) == {"alice": SILENT_S + 1.0, "bob": SILENT_S + 7.0, "eve": SILENT_S + 1.0}
