"""The timed block: rounds, trains and blocks, on calls and clocks that are functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.records import Plan
from lutbuilder_agent.timing import (
    Block,
    TimerFacts,
    calls_lacking,
    calls_wanted,
    make_flush,
    preemptions,
    preemptions_of_all_threads,
    shuffled,
    time_train,
    timer_facts,
    trains,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEDS = st.integers(min_value=0, max_value=(1 << 63) - 1)
ROUNDS = st.integers(min_value=0, max_value=1 << 31)


@dataclass
class Bench:
    """A virtual clock, and what was done in which order: ("flush"), ("warm", who), ("call", who)."""

    now_ns: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)
    on_calls: list[int] = field(default_factory=list)
    preempted: int = 0
    throttles: int = 0

    def op(
        self, name: str, ns: Callable[[int], int], *, preempted: tuple[int, ...] = (), throttling: tuple[int, ...] = ()
    ) -> FakePrepared:
        """An op whose n-th call takes `ns(n)`; `preempted` ones lose their core, in `throttling` the device slows."""
        return FakePrepared(bench=self, name=name, ns=ns, preempted=preempted, throttling=throttling)

    def train(
        self,
        members: list[FakePrepared],
        plan: Plan,
        *,
        flush: bool = False,
        counts_throttling: bool = False,
        least_ns: int = 0,
    ) -> list[Block]:
        return time_train(
            members,
            plan,
            now_ns=lambda: self.now_ns,
            on_call=self.on_calls.append,
            lost_core=lambda: self.preempted,
            throttle=self.throttle if counts_throttling else None,
            flush=(lambda: self.seen.append(("flush", ""))) if flush else None,
            least_ns=least_ns,
        )

    def throttle(self) -> int:
        self.seen.append(("throttle", ""))
        return self.throttles


@dataclass
class FakePrepared:
    """A Prepared made of a function of the call's number."""

    bench: Bench
    name: str
    ns: Callable[[int], int]
    preempted: tuple[int, ...]
    throttling: tuple[int, ...]
    calls: int = 0

    def timed_call(self) -> int:
        took_ns = self.ns(self.calls)
        self.bench.seen.append(("call", self.name))
        self.bench.preempted += self.calls in self.preempted
        self.bench.throttles += self.calls in self.throttling
        self.bench.now_ns += took_ns
        self.calls += 1
        return took_ns

    def warm_input(self) -> None:
        self.bench.seen.append(("warm", self.name))
        self.bench.now_ns += 7  # untimed, but time passes

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x

    def close(self) -> None:
        pass


def plan(**changes: int) -> Plan:
    return Plan(runtime="simulated", **{"min_block_ns": 1000, "max_calls": 50, **changes})  # type: ignore[arg-type]  # the numbers of a plan only


# --- the order of visits


@given(st.lists(st.integers()), SEEDS, ROUNDS)
def test_a_round_visits_everything_once(items: list[int], seed: int, round: int) -> None:
    assert sorted(shuffled(items, seed=seed, round=round)) == sorted(items)


@given(SEEDS, ROUNDS)
def test_the_order_is_a_pure_function_of_seed_and_round(seed: int, round: int) -> None:
    items = list(range(70))
    assert shuffled(items, seed=seed, round=round) == shuffled(tuple(items), seed=seed, round=round)
    assert items == list(range(70))


def test_the_order_never_changes_between_releases() -> None:
    assert shuffled("abcdefgh", seed=0, round=0) == list("fadgehcb")
    assert shuffled("abcdefgh", seed=0, round=1) == list("chgaefbd")


def test_every_round_and_every_seed_has_its_own_order() -> None:
    items = list(range(70))
    orders = {tuple(shuffled(items, seed=seed, round=round)) for seed in range(5) for round in range(20)}
    assert len(orders) == 100


@given(st.lists(st.integers(), max_size=200), st.integers(min_value=1, max_value=40))
def test_trains_cut_evenly_and_lose_nothing(items: list[int], length: int) -> None:
    cut = trains(items, length=length)
    assert [item for train in cut for item in train] == items
    sizes = [len(train) for train in cut]
    assert all(0 < size <= length for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert len(cut) == -(-len(items) // length)


# --- how many calls


@given(st.floats(min_value=0.0, max_value=1e12), st.integers(1, 100), st.integers(0, 400), st.integers(0, 10**9))
def test_a_visit_is_long_enough_within_the_bounds_of_its_plan(
    call_ns: float, min_calls: int, more: int, min_block_ns: int
) -> None:
    bounds = Plan(runtime="simulated", min_calls=min_calls, max_calls=min_calls + more, min_block_ns=min_block_ns)
    wanted = calls_wanted(call_ns, bounds)
    assert min_calls <= wanted <= min_calls + more
    if wanted < bounds.max_calls:
        assert wanted * max(1.0, call_ns) >= min_block_ns
    if wanted > min_calls:
        assert (wanted - 1) * max(1, int(call_ns)) < min_block_ns


def test_a_block_lasts_as_long_as_the_plan_wants() -> None:
    bench = Bench()
    (block,) = bench.train([bench.op("a", lambda n: 100)], plan(min_block_ns=1000, warmup_calls=2))
    assert (block.warmup_ns, block.samples_ns) == ((100, 100), (100,) * 10)


def test_a_slow_op_is_called_the_least_often_allowed_and_a_fast_one_the_most() -> None:
    bench = Bench()
    (slow,) = bench.train([bench.op("slow", lambda n: 10**9)], plan(min_calls=3))
    (fast,) = bench.train([bench.op("fast", lambda n: 1)], plan(max_calls=50))
    assert (len(slow.samples_ns), len(fast.samples_ns)) == (3, 50)


# --- blocks


def test_warm_up_calls_are_kept_apart_and_the_last_of_them_says_how_many_calls_follow() -> None:
    bench = Bench()
    cold_then_warm = bench.op("a", lambda n: 900 if n == 0 else 250)
    (block,) = bench.train([cold_then_warm], plan(min_block_ns=1000, warmup_calls=2))
    assert block.warmup_ns == (900, 250)
    assert block.samples_ns == (250,) * 4
    assert cold_then_warm.calls == 6


def test_a_block_starts_where_its_first_counted_call_starts() -> None:
    bench = Bench(now_ns=5000)
    (block,) = bench.train([bench.op("a", lambda n: 100)], plan(warmup_calls=3))
    assert block.start_ns == 5300


def test_a_call_that_lost_its_core_is_kept_counted_and_named() -> None:
    bench = Bench()
    # Calls 0 and 1 are the warm-up; those numbered 3 and 6 are counted calls 1 and 4.
    (block,) = bench.train(
        [bench.op("a", lambda n: 100 + n, preempted=(0, 3, 6))], plan(min_block_ns=500, warmup_calls=2)
    )
    assert block.preempted == (1, 4)
    assert block.samples_ns == (102, 103, 104, 105, 106)


def test_every_op_is_told_to_its_parent_before_it_runs() -> None:
    bench = Bench()
    bench.train([bench.op("a", lambda n: 500), bench.op("b", lambda n: 500)], plan(min_calls=2, min_block_ns=0))
    assert bench.on_calls == [0, 1] * 3


# --- trains


def test_a_lone_op_is_called_back_to_back_and_its_input_left_alone() -> None:
    bench = Bench()
    bench.train([bench.op("a", lambda n: 100)], plan(min_calls=3, min_block_ns=0))
    assert bench.seen == [("call", "a")] * 4


def test_in_a_train_the_calls_take_turns_each_after_its_input_was_written() -> None:
    bench = Bench()
    first, second = bench.train(
        [bench.op("a", lambda n: 100), bench.op("b", lambda n: 300)], plan(min_calls=2, min_block_ns=0)
    )
    turn = [("warm", "a"), ("call", "a"), ("warm", "b"), ("call", "b")]
    assert bench.seen == turn * 3
    assert (first.samples_ns, second.samples_ns) == ((100, 100), (300, 300))
    assert first.start_ns == 400 + 14 + 7  # after both warm-ups, and after its own input was written
    assert second.start_ns == first.start_ns + 100 + 7


def test_a_train_makes_as_many_passes_as_its_mean_call_needs() -> None:
    bench = Bench()
    blocks = bench.train([bench.op("a", lambda n: 100), bench.op("b", lambda n: 300)], plan(min_block_ns=1000))
    assert [len(block.samples_ns) for block in blocks] == [5, 5]


def test_preempted_calls_of_a_train_are_blamed_on_the_op_that_ran() -> None:
    bench = Bench()
    blocks = bench.train(
        [bench.op("a", lambda n: 500), bench.op("b", lambda n: 500, preempted=(2,))],
        plan(min_calls=3, min_block_ns=0),
    )
    assert [block.preempted for block in blocks] == [(), (1,)]


# --- throttling


def test_from_the_pass_on_in_which_a_counter_moved_every_call_of_the_visit_is_throttled() -> None:
    bench = Bench()
    # Calls 0 and 1 are the warm-up; b's call 4 is in counted pass 2.
    blocks = bench.train(
        [bench.op("a", lambda n: 100), bench.op("b", lambda n: 100, throttling=(4,))],
        plan(min_calls=5, min_block_ns=0, warmup_calls=2),
        counts_throttling=True,
    )
    assert [block.throttled for block in blocks] == [(2, 3, 4), (2, 3, 4)]
    assert [block.samples_ns for block in blocks] == [(100,) * 5] * 2, "kept and counted"


def test_throttling_that_began_in_the_warm_up_takes_the_whole_visit() -> None:
    bench = Bench()
    (block,) = bench.train(
        [bench.op("a", lambda n: 100, throttling=(0,))], plan(min_calls=3, min_block_ns=0), counts_throttling=True
    )
    assert block.throttled == (0, 1, 2)


def test_a_calm_device_throttled_no_call_and_one_without_counters_does_not_know() -> None:
    for counts, expected in ((True, ()), (False, None)):
        bench = Bench()
        (block,) = bench.train(
            [bench.op("a", lambda n: 100, throttling=() if counts else (2,))], plan(), counts_throttling=counts
        )
        assert block.throttled == expected


def test_counters_are_read_between_passes_only() -> None:
    bench = Bench()
    bench.train(
        [bench.op("a", lambda n: 100), bench.op("b", lambda n: 100)],
        plan(min_calls=2, min_block_ns=0),
        counts_throttling=True,
    )
    one_pass = [("warm", "a"), ("call", "a"), ("warm", "b"), ("call", "b")]
    assert bench.seen == [("throttle", ""), *one_pass, *one_pass, ("throttle", ""), *one_pass, ("throttle", "")]


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_caches_are_flushed_before_every_call_and_before_its_input_is_written(names: tuple[str, ...]) -> None:
    bench = Bench()
    bench.train([bench.op(name, lambda n: 100) for name in names], plan(min_calls=2, min_block_ns=0), flush=True)
    calls = [number for number, (what, _) in enumerate(bench.seen) if what == "call"]
    before = [bench.seen[number - len(names)] for number in calls]  # with a train, the warm input lies between
    assert before == [("flush", "")] * 3 * len(names)
    assert len([1 for what, _ in bench.seen if what == "flush"]) == len(calls)


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 20),
    st.integers(0, 10**7),
)
def test_every_member_of_a_train_is_called_equally_often(
    times: list[tuple[int, int]], warmup_calls: int, min_calls: int, more: int, min_block_ns: int
) -> None:
    bench = Bench()
    members = [bench.op(str(i), lambda n, t=t: t[n % 2]) for i, t in enumerate(times)]  # type: ignore[misc]  # mypy cannot type a default of a lambda
    chosen = plan(warmup_calls=warmup_calls, min_calls=min_calls, max_calls=min_calls + more, min_block_ns=min_block_ns)
    blocks = bench.train(members, chosen)
    last_warmup = [t[(warmup_calls - 1) % 2] for t in times]
    wanted = calls_wanted(sum(last_warmup) / len(times), chosen)
    assert {len(block.samples_ns) for block in blocks} == {wanted}
    assert {len(block.warmup_ns) for block in blocks} == {warmup_calls}
    assert {member.calls for member in members} == {warmup_calls + wanted}
    for member, block in zip(members, blocks, strict=True):
        assert (*block.warmup_ns, *block.samples_ns) == tuple(member.ns(n) for n in range(member.calls))
        assert block.preempted == ()


# --- the host's timer


def test_a_timer_is_known_by_what_reading_it_costs_and_by_its_smallest_step() -> None:
    now_ns = 0

    def clock() -> int:
        nonlocal now_ns
        now_ns += 30
        return now_ns // 20 * 20  # shows 20 ns steps, some of them 40

    assert timer_facts(clock, reads=101) == TimerFacts(overhead_ns=40, quantum_ns=20)


def test_a_coarse_timer_hardly_ever_moves() -> None:
    reads = iter([0] * 60 + [1_000_000] * 40)
    assert timer_facts(lambda: next(reads), reads=100) == TimerFacts(overhead_ns=0, quantum_ns=1_000_000)


def test_a_timer_that_never_moved_has_no_known_step() -> None:
    assert timer_facts(lambda: 5, reads=10) == TimerFacts(overhead_ns=0, quantum_ns=0)


@pytest.mark.parametrize("count", [preemptions, preemptions_of_all_threads])
def test_the_count_of_lost_cores_never_falls(count: Callable[[], int]) -> None:
    before = count()
    assert 0 <= before <= count()


def test_the_cores_lost_by_all_threads_are_at_least_those_lost_by_this_one() -> None:
    assert preemptions() <= preemptions_of_all_threads()


@given(st.integers(1, 10**4), st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_block_that_is_long_enough_lacks_nothing_and_a_short_one_grows_at_most_tenfold(
    calls: int, took_ns: float, least_ns: float
) -> None:
    lacking = calls_lacking(calls, took_ns, least_ns)
    assert (lacking == 0) == (took_ns >= least_ns)
    assert calls + lacking <= 10 * calls
    if 0 < lacking < 9 * calls and took_ns >= 1:
        assert took_ns + lacking * took_ns / calls >= least_ns * (1 - 1e-9)


def test_the_shortest_block_is_a_thousand_readings_or_steps_of_the_timer_whichever_is_more() -> None:
    assert TimerFacts(overhead_ns=40, quantum_ns=20).least_block_ns == 40_000
    assert TimerFacts(overhead_ns=0, quantum_ns=1_000_000).least_block_ns == 1_000_000_000
    assert TimerFacts(overhead_ns=0, quantum_ns=0).least_block_ns == 0


def coarse(call_ns: int, step_ns: int) -> Callable[[int], int]:
    """The n-th call as a clock of `step_ns` shows it, whatever it shows as 1 ns if that clock did not move."""
    return lambda n: (((n + 1) * call_ns) // step_ns - (n * call_ns) // step_ns) * step_ns or 1


@pytest.mark.parametrize("step_ns", [10_000, 1_000_000])
def test_on_a_coarse_clock_a_block_is_lengthened_until_it_is_a_thousand_steps_long(step_ns: int) -> None:
    bench = Bench()
    facts = TimerFacts(overhead_ns=0, quantum_ns=step_ns)
    (block,) = bench.train(
        [bench.op("a", coarse(150_000, step_ns))],
        plan(min_block_ns=1_000_000, max_calls=20),
        least_ns=facts.least_block_ns,
    )
    took_ns = sum(block.samples_ns)
    assert 1000 * step_ns <= took_ns <= 1100 * step_ns
    assert (len(block.samples_ns) > 20) == (1000 * step_ns > 20 * 150_000), "beyond max_calls where it takes that"


def test_on_a_fine_clock_no_block_is_lengthened() -> None:
    for least_ns in (0, 40_000):
        bench = Bench()
        (block,) = bench.train([bench.op("a", lambda n: 100_000)], plan(min_block_ns=1_000_000), least_ns=least_ns)
        assert len(block.samples_ns) == 10


def test_a_timer_that_stands_still_does_not_hold_a_block_for_ever() -> None:
    bench = Bench()
    (block,) = bench.train([bench.op("a", lambda n: 1)], plan(), least_ns=10**9)
    assert len(block.samples_ns) == 100_000


def test_in_a_train_the_mean_member_has_a_long_enough_block() -> None:
    bench = Bench()
    blocks = bench.train(
        [bench.op("a", lambda n: 100), bench.op("b", lambda n: 300)], plan(max_calls=5), least_ns=10_000
    )
    assert [len(block.samples_ns) for block in blocks] == [50, 50]


def test_flushing_writes_more_than_any_last_level_cache_holds() -> None:
    written = make_flush()()
    assert isinstance(written, np.ndarray)
    assert written.nbytes >= 64 << 20
