"""Device time is shared by priority, then by owner, then by campaign; nobody starves, whoever comes and goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.coordinator import shares
from lutbuilder.coordinator.shares import Claim, Shares

ENVIRONMENT = "e1"


@dataclass
class Pool:
    """Agents of one kind that are given leases as they come free, in virtual time; a lease measures what it takes."""

    agents: int
    lease_s: Callable[[str], float]  # of a campaign's next lease
    claims: dict[str, Claim] = field(default_factory=dict)
    given_s: Counter[str] = field(default_factory=Counter)  # leases given, at what they take
    busy: list[tuple[float, str, float]] = field(default_factory=list)  # until, campaign, seconds
    longest_s: float = 0.0
    now_s: float = 0.0
    shares: Shares = field(default_factory=dict)

    def add(self, campaign_id: str, *, owner: str = "", priority: int = 0) -> None:
        self.claims[campaign_id] = Claim(
            campaign_id=campaign_id, environment=ENVIRONMENT, owner=owner, priority=priority
        )

    def run(self, leases: int) -> None:
        """Give so many leases."""
        for _ in range(leases):
            if len(self.busy) == self.agents:
                self.busy.sort()
                self.now_s, campaign_id, seconds = self.busy.pop(0)
                if campaign_id in self.claims:
                    self.shares = shares.charged(self.shares, self.claims[campaign_id], seconds)
            found = shares.turn(self.shares, self._claims())
            assert found is not None
            campaign_id, self.shares = found
            seconds = self.lease_s(campaign_id)
            self.longest_s = max(self.longest_s, seconds)
            self.given_s[campaign_id] += seconds
            self.busy.append((self.now_s + seconds, campaign_id, seconds))

    def _claims(self) -> list[Claim]:
        in_hand = Counter(campaign_id for _, campaign_id, _ in self.busy)
        return [
            replace(claim, leases=in_hand[name], rounds_in_hand=in_hand[name], round_s=self._typical_s(name))
            for name, claim in self.claims.items()
        ]

    def _typical_s(self, campaign_id: str) -> float | None:
        taken = [seconds for _, name, seconds in self.busy if name == campaign_id]
        return sum(taken) / len(taken) if taken else None


LENGTHS = st.lists(st.floats(0.1, 30.0), min_size=2, max_size=5)


@given(LENGTHS, st.integers(1, 60))
def test_of_equal_priority_nobody_gets_less_than_the_share_minus_one_lease(
    lengths: Sequence[float], leases: int
) -> None:
    pool = Pool(1, lambda name: lengths[int(name)])
    for number in range(len(lengths)):
        pool.add(str(number))
    pool.run(leases)
    share_s = sum(pool.given_s.values()) / len(lengths)
    assert all(pool.given_s[name] >= share_s - pool.longest_s - 1e-6 for name in pool.claims)


@given(st.randoms(use_true_random=False), st.integers(2, 5), st.integers(1, 80))
def test_nor_where_every_lease_takes_another_time(random: object, campaigns: int, leases: int) -> None:
    draw: Callable[[float, float], float] = random.uniform  # type: ignore[attr-defined]  # hypothesis' own Random
    pool = Pool(1, lambda name: draw(0.1, 20.0))
    for number in range(campaigns):
        pool.add(str(number))
    pool.run(leases)
    share_s = sum(pool.given_s.values()) / campaigns
    assert all(pool.given_s[name] >= share_s - pool.longest_s - 1e-6 for name in pool.claims)


@given(LENGTHS, st.integers(2, 12), st.integers(1, 120))
def test_nor_where_many_agents_measure_at_once(lengths: Sequence[float], agents: int, leases: int) -> None:
    pool = Pool(agents, lambda name: lengths[int(name)])
    for number in range(len(lengths)):
        pool.add(str(number))
    pool.run(leases)
    share_s = sum(pool.given_s.values()) / len(lengths)
    # While nothing is known of a campaign its first leases are charged at a guess: those, and one more.
    assert all(pool.given_s[name] >= share_s - (agents + 1) * pool.longest_s for name in pool.claims)


@given(st.integers(2, 12))
def test_agents_that_come_free_at_once_are_divided_at_once(agents: int) -> None:
    pool = Pool(agents, lambda name: 10.0)
    pool.add("a")
    pool.add("b")
    pool.run(agents)
    counts = Counter(name for _, name, _ in pool.busy)
    assert abs(counts["a"] - counts["b"]) <= 1


def test_priorities_are_strict() -> None:
    pool = Pool(1, lambda name: 1.0)
    pool.add("low")
    pool.add("high", priority=1)
    pool.run(20)
    assert pool.given_s == {"high": 20.0}
    pool.claims["high"] = replace(pool.claims["high"], open=False)  # its batches are all leased
    pool.run(1)
    assert pool.given_s["low"] == 1.0


def test_an_owner_gets_no_more_for_having_more_campaigns() -> None:
    pool = Pool(1, lambda name: 1.0)
    pool.add("lone", owner="ann")
    for number in range(3):
        pool.add(f"many-{number}", owner="bob")
    pool.run(60)
    assert abs(pool.given_s["lone"] - 30.0) <= 1.0
    assert all(abs(pool.given_s[f"many-{number}"] - 10.0) <= 1.0 for number in range(3))


def test_who_comes_late_claims_nothing_of_the_past_and_waits_for_nobody() -> None:
    pool = Pool(1, lambda name: 1.0)
    pool.add("old")
    pool.run(100)
    pool.add("new")
    pool.run(20)
    assert abs(pool.given_s["new"] - 10.0) <= 1.0


def test_who_was_idle_for_long_saves_up_nothing() -> None:
    pool = Pool(1, lambda name: 1.0)
    pool.add("a")
    pool.add("b")
    pool.run(10)
    away = pool.claims.pop("b")
    pool.run(100)
    pool.claims["b"] = away
    before_s = pool.given_s["a"]
    pool.run(20)
    assert abs(pool.given_s["a"] - before_s - 10.0) <= 1.0


def test_an_endless_row_of_newcomers_starves_nobody() -> None:
    pool = Pool(1, lambda name: 1.0)
    pool.add("old")
    pool.run(3)
    before_s = pool.given_s["old"]
    for number in range(40):
        pool.add(f"new-{number}")
        pool.run(1)
        pool.claims.pop(f"new-{number}")
    assert pool.given_s["old"] - before_s >= 19.0


def test_a_campaign_that_nobody_may_have_is_nobody_s_turn() -> None:
    claim = Claim(campaign_id="a", environment=ENVIRONMENT, open=False)
    assert shares.turn({}, [claim]) is None
    assert shares.turn({}, []) is None


def test_what_is_given_in_one_environment_costs_nothing_in_another() -> None:
    here = Claim(campaign_id="a", environment="here", owner="ann")
    given_ = shares.charged({}, here, 1000.0)
    there = replace(here, campaign_id="b", environment="there")
    rival = Claim(campaign_id="c", environment="there", owner="bob", leases=1, rounds_in_hand=1)
    found = shares.turn(given_, [rival, there])
    assert found is not None
    assert found[0] == "b"
