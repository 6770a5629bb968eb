"""The worker: real child processes on the simulated device, made to crash, hang, vanish and start again."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lutbuilder.artifacts import artifact_ref
from lutbuilder.lower import lower, lower_network
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import MissingExtra, RuntimeUnavailable, SpecError
from lutbuilder_agent.graph import LayerGraph
from lutbuilder_agent.records import ArtifactRef, Cache, Lease, LeasedOp, Plan, Timing
from lutbuilder_agent.rounds import Reached
from lutbuilder_agent.runtimes.simulated import true_ns
from lutbuilder_agent.session import Agent
from lutbuilder_agent.worker import RoundResult, Worker, spare
from tests.agent_fakes import FINGERPRINT, RUNTIMES, FakeCoordinator
from tests.desk import processes_with

PATIENCE_S = 30.0
HANG_NS = 300_000_000  # an op_timeout that tests can wait for


def op(number: int) -> OpSpec:
    return OpSpec(kind="conv", in_channels=4 * number, out_channels=4, height=8, width=8, kernel=3)


def graph(number: int) -> LayerGraph:
    return lower(op(number))


def ids(*numbers: int) -> list[str]:
    return sorted(op(number).op_id for number in numbers)


def visited(result: RoundResult) -> list[str]:
    return sorted(timing.op_id for timing in result.timings)


class Bench:
    """A folder of artifacts, and the workers a test has started; `numbers` are what `op` makes ops of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "tmp"
        self.workers: list[Worker] = []

    def ready(self, number: int, **changes: int | bool) -> tuple[LeasedOp, Path]:
        return self.leased(op(number).op_id, graph(number).to_bytes(), **changes)

    def leased(self, op_id: str, raw: bytes, **changes: int | bool) -> tuple[LeasedOp, Path]:
        ref = artifact_ref(raw, "graph")
        path = self.folder / ref.sha256
        path.write_bytes(raw)
        return LeasedOp(op_id=op_id, artifact=ref, **changes), path  # type: ignore[arg-type]  # every=int, solo=bool

    def worker(
        self,
        *,
        train_ops: int = 1,
        cache: Cache | None = None,
        instances: int = 2,
        calls: int | None = None,
        op_timeout_ns: int = 60_000_000_000,
        sysroot: Path = Path("/"),
        **options: str,
    ) -> Worker:
        """Return a worker; `calls` makes every visit so many calls long, which takes real time, some 5 us each."""
        self.workers.append(
            Worker(
                Plan(
                    runtime="simulated",
                    cache=cache or ("rotating" if train_ops > 1 else "hot"),
                    train_ops=train_ops,
                    instances=instances,
                    min_block_ns=60_000_000_000 if calls else 100_000,
                    max_calls=calls or 200,
                    op_timeout_ns=op_timeout_ns,
                    options=tuple(sorted(options.items())),
                ),
                sysroot=sysroot,
            )
        )
        return self.workers[-1]

    def children(self) -> list[int]:
        """The workers' processes of this test: those whose temporary folder is `scratch`."""
        return [pid for pid in processes_with(f"TMPDIR={self.scratch}") if "-m lutbuilder_agent.worker" in command(pid)]

    def once_a_visit_is_journaled(self, then: Callable[[int], None]) -> threading.Thread:
        """Start a thread that calls `then(child)` as soon as the child has finished a visit of the round it is in."""
        (child,) = self.children()
        journal = shared_file(child, 2)
        before = journal.stat().st_size  # of the round that is over; the next one starts by emptying it

        def watch() -> None:
            wait_for(lambda: 0 < journal.stat().st_size < (before or math.inf))
            then(child)

        thread = threading.Thread(target=watch)
        thread.start()
        return thread

    @property
    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.scratch.iterdir())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made.scratch))
    monkeypatch.setenv("TMPDIR", str(made.scratch))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "agents")]))
    yield made
    for worker in made.workers:
        worker.close()


def command(pid: int) -> str:
    """The command line of a process, "" for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def shared_file(worker: int, number: int) -> Path:
    """The file without a name behind a worker's n-th argument: 1 is the mark, 2 the journal."""
    handle = command(worker).split("-m lutbuilder_agent.worker ")[1].split()[number]
    return Path(f"/proc/{worker}/fd/{handle}")


def wait_for(claim: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.01)


# --- rounds


def test_every_op_is_visited_once_a_round_and_reads_its_true_time(bench: Bench) -> None:
    worker = bench.worker(noise_sigma="0")
    assert worker.prepare([bench.ready(n) for n in (1, 2, 3)]) == ()
    for number in range(3):
        result = worker.run_round(number)
        assert (visited(result), result.failures, result.round) == (ids(1, 2, 3), (), number)
        assert sorted(timing.order for timing in result.timings) == [0, 1, 2]
        for timing in result.timings:
            (truth,) = (true_ns(graph(n)) for n in (1, 2, 3) if op(n).op_id == timing.op_id)
            assert all(abs(ns - truth) <= 1 for ns in timing.samples_ns)
            assert sum(timing.samples_ns) >= 100_000 - truth
            assert len(timing.warmup_ns) == 1
        # Time is virtual: the round holds its visits and nothing else.
        assert 0 < result.timed_ns <= result.round_ns


def test_visits_take_the_instances_in_turn(bench: Bench) -> None:
    worker = bench.worker(instances=3)
    worker.prepare([bench.ready(1)])
    assert [worker.run_round(number).timings[0].instance for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_rounds_differ_in_order_and_the_same_round_of_the_same_seed_does_not(bench: Bench) -> None:
    def order(worker: Worker, number: int) -> list[str]:
        return [timing.op_id for timing in worker.run_round(number).timings]

    ops = [bench.ready(n) for n in range(1, 9)]
    first, second = bench.worker(), bench.worker()
    first.prepare(ops)
    second.prepare(ops)
    assert order(first, 0) == order(second, 0)
    assert order(first, 1) == order(second, 1)
    assert order(first, 2) != order(second, 3)


def test_an_op_of_every_third_round_is_visited_in_every_third_round(bench: Bench) -> None:
    worker = bench.worker()
    worker.prepare([bench.ready(1), bench.ready(2, every=3)])
    seen = [visited(worker.run_round(number)) for number in range(2, 8)]
    assert seen == [ids(1), ids(1, 2), ids(1), ids(1), ids(1, 2), ids(1)]


def test_a_round_in_which_nothing_is_due_is_empty(bench: Bench) -> None:
    worker = bench.worker()
    worker.prepare([bench.ready(1, every=2)])
    result = worker.run_round(1)
    assert (result.timings, result.failures, result.timed_ns) == ((), (), 0)


def test_the_calls_of_a_train_take_turns_and_a_solo_op_has_a_block_of_its_own(bench: Bench) -> None:
    worker = bench.worker(train_ops=4, noise_sigma="0")
    network = lower_network([OpSpec(kind="conv", in_channels=4, out_channels=4, height=8, width=8, kernel=3)] * 2)
    worker.prepare([*(bench.ready(n) for n in (1, 2, 3, 4)), bench.leased("net", network.to_bytes(), solo=True)])
    for number in range(3):
        seen = {timing.op_id: timing for timing in worker.run_round(number).timings}
        alone = seen.pop("net")
        spans = [(t.start_ns, t.start_ns + sum(t.samples_ns)) for t in seen.values()]
        assert max(start for start, _ in spans) < min(end for _, end in spans), "members of a train overlap"
        assert len({len(t.samples_ns) for t in seen.values()}) == 1
        end_ns = alone.start_ns + sum(alone.samples_ns)
        assert all(end <= alone.start_ns or start >= end_ns for start, end in spans), "a solo op overlaps nothing"
        assert sorted(t.order for t in (*seen.values(), alone)) == [0, 1, 2, 3, 4]


def test_networks_take_turns_with_each_other_where_the_cache_is_to_be_cold(bench: Bench) -> None:
    worker = bench.worker(train_ops=2, cache="cold", noise_sigma="0")
    graphs = [
        lower_network([OpSpec(kind="conv", in_channels=4, out_channels=4, height=n, width=n, kernel=3)] * 2)
        for n in range(8, 13)
    ]
    networks = [bench.leased(f"net{n}", graph.to_bytes(), solo=True) for n, graph in enumerate(graphs)]
    worker.prepare([*(bench.ready(n) for n in (1, 2)), *networks])
    for number in range(3):
        spans = {t.op_id: (t.start_ns, t.start_ns + sum(t.samples_ns)) for t in worker.run_round(number).timings}
        beside = {
            one: {other for other, (start, end) in spans.items() if start < spans[one][1] and spans[one][0] < end}
            for one in spans
        }
        assert sorted(len(beside[f"net{n}"]) for n in range(5)) == [2, 2, 3, 3, 3], "five networks, in two trains"
        assert {op_id for n in range(5) for op_id in beside[f"net{n}"]} == {f"net{n}" for n in range(5)}


def test_a_dropped_op_leaves_the_rotation_and_unknown_ones_are_ignored(bench: Bench) -> None:
    worker = bench.worker()
    worker.prepare([bench.ready(n) for n in (1, 2, 3)])
    assert visited(worker.run_round(0)) == ids(1, 2, 3)
    worker.drop([op(2).op_id, "nobody"])
    assert visited(worker.run_round(1)) == ids(1, 3)
    worker.drop(ids(1, 3))
    assert visited(worker.run_round(2)) == []


# --- disturbed calls


def test_calls_during_which_the_kernel_counted_throttling_are_named(bench: Bench) -> None:
    cpu = bench.folder / f"root/sys/devices/system/cpu/cpu{min(os.sched_getaffinity(0))}/thermal_throttle"
    cpu.mkdir(parents=True)
    counter = cpu / "core_throttle_count"
    counter.write_text("3\n")
    worker = bench.worker(calls=3000, sysroot=bench.folder / "root")
    worker.prepare([bench.ready(n) for n in range(1, 6)])
    assert {timing.throttled for timing in worker.run_round(0).timings} == {()}
    cool = threading.Event()

    def heat(pid: int) -> None:
        for count in range(4, 1 << 20):
            counter.write_text(f"{count}\n")
            if cool.wait(0.002):
                return

    heating = bench.once_a_visit_is_journaled(heat)
    first, *later = worker.run_round(1).timings
    cool.set()
    heating.join()
    hit = [timing for timing in later if timing.throttled]
    assert first.throttled == ()
    assert hit
    for timing in hit:
        assert timing.throttled is not None
        assert timing.throttled == tuple(range(timing.throttled[0], len(timing.samples_ns)))
    assert {timing.throttled for timing in worker.run_round(2).timings} == {()}, "a count that stays is no event"


def test_without_throttle_counters_nobody_knows(bench: Bench) -> None:
    worker = bench.worker(sysroot=bench.folder)
    worker.prepare([bench.ready(1)])
    assert [timing.throttled for timing in worker.run_round(0).timings] == [None]


# --- ops that fail


def test_an_op_that_crashes_while_it_is_loaded_costs_that_op_only(bench: Bench) -> None:
    worker = bench.worker(crash=graph(2).key[:20])
    (failure,) = worker.prepare([bench.ready(n) for n in (1, 2, 3)])
    assert (failure.op_id, failure.reason) == (op(2).op_id, "crashed")
    assert failure.detail == "worker ended by signal 11 (SIGSEGV)"
    assert visited(worker.run_round(0)) == ids(1, 3)
    assert len(bench.children()) == 1


def test_an_op_that_hangs_while_it_is_loaded_costs_that_op_only(bench: Bench) -> None:
    worker = bench.worker(hang=graph(2).key[:20], op_timeout_ns=HANG_NS)
    (failure,) = worker.prepare([bench.ready(n) for n in (1, 2, 3)])
    assert (failure.op_id, failure.reason) == (op(2).op_id, "timed_out")
    assert failure.detail == "no call finished within 0.3 s"
    assert visited(worker.run_round(0)) == ids(1, 3)
    assert len(bench.children()) == 1


def test_every_op_may_fail(bench: Bench) -> None:
    worker = bench.worker(crash=",".join(graph(n).key[:20] for n in (1, 2)))
    failures = worker.prepare([bench.ready(n) for n in (1, 2)])
    assert sorted(failure.op_id for failure in failures) == ids(1, 2)
    assert worker.run_round(0).timings == ()
    assert bench.children() == []


def test_what_the_engine_does_not_support_and_what_is_no_artifact_are_told_apart(bench: Bench) -> None:
    worker = bench.worker(unsupported=graph(2).key[:20])
    garbage = bench.leased("garbage", b"\x00 not a graph")
    unsupported, bad = worker.prepare([bench.ready(1), bench.ready(2), garbage])
    assert (unsupported.op_id, unsupported.reason) == (op(2).op_id, "unsupported")
    assert "was told not to support" in unsupported.detail
    assert (bad.op_id, bad.reason) == ("garbage", "bad_artifact")
    assert "not a lutbuilder.graph/1 graph" in bad.detail
    assert visited(worker.run_round(0)) == ids(1)


def test_an_artifact_that_vanished_is_that_ops_failure_with_the_words_of_the_child(bench: Bench) -> None:
    ref = ArtifactRef(sha256="0" * 64, format="graph", size_bytes=1)
    worker = bench.worker()
    (failure,) = worker.prepare([bench.ready(1), (LeasedOp(op_id="gone", artifact=ref), bench.folder / "gone")])
    assert (failure.op_id, failure.reason) == ("gone", "crashed")
    assert "exit status 1" in failure.detail
    assert "FileNotFoundError" in failure.detail
    assert visited(worker.run_round(0)) == ids(1)


# --- children that die in the middle of a round


def test_a_child_killed_in_a_round_costs_the_op_at_work_and_every_other_visit_is_kept(bench: Bench) -> None:
    worker = bench.worker(calls=12000)
    worker.prepare([bench.ready(n) for n in range(1, 9)])
    (child,) = bench.children()
    killer = bench.once_a_visit_is_journaled(lambda pid: os.kill(pid, signal.SIGKILL))
    result = worker.run_round(0)
    killer.join()
    (failure,) = result.failures
    assert failure.reason == "out_of_memory"  # what a kill from outside nearly always is
    assert failure.detail == "worker ended by signal 9 (SIGKILL)"
    assert visited(result) == sorted(set(ids(*range(1, 9))) - {failure.op_id})
    assert [timing.order for timing in result.timings] == list(range(7))
    generations = [timing.instance // 2 for timing in result.timings]
    assert generations[0] == 0, "the visits of before the kill are kept"
    assert generations[-1] == 1, "those of after it are on fresh instances"
    starts = [timing.start_ns for timing in result.timings]
    assert starts == sorted(starts), "the clock of the second child, which began at zero, goes on where the first was"
    assert result.round_ns >= result.timed_ns > 0
    assert visited(worker.run_round(1)) == visited(result)
    assert bench.children() != [child]


def test_a_child_that_stops_answering_in_a_round_has_timed_out(bench: Bench) -> None:
    worker = bench.worker(calls=12000, op_timeout_ns=HANG_NS)
    worker.prepare([bench.ready(n) for n in range(1, 5)])
    (child,) = bench.children()
    stopper = bench.once_a_visit_is_journaled(lambda pid: os.kill(pid, signal.SIGSTOP))
    result = worker.run_round(0)
    stopper.join()
    (failure,) = result.failures
    assert (failure.reason, failure.detail) == ("timed_out", "no call finished within 0.3 s")
    assert visited(result) == sorted(set(ids(1, 2, 3, 4)) - {failure.op_id})
    assert child not in bench.children()


def test_a_train_that_dies_in_the_middle_is_made_again_without_the_op_at_work(bench: Bench) -> None:
    worker = bench.worker(calls=12000, train_ops=4)
    worker.prepare([bench.ready(n) for n in range(1, 9)])
    killer = bench.once_a_visit_is_journaled(lambda pid: os.kill(pid, signal.SIGKILL))
    result = worker.run_round(0)
    killer.join()
    (failure,) = result.failures
    assert visited(result) == sorted(set(ids(*range(1, 9))) - {failure.op_id})
    assert [timing.instance // 2 for timing in result.timings] == [0] * 4 + [1] * 3


def test_a_child_killed_between_rounds_costs_no_op(bench: Bench) -> None:
    worker = bench.worker()
    worker.prepare([bench.ready(n) for n in (1, 2)])
    before = worker.run_round(0)
    (child,) = bench.children()
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: child not in bench.children())
    after = worker.run_round(1)
    assert (visited(after), after.failures) == (ids(1, 2), ())
    assert {timing.instance for timing in before.timings} == {0}
    assert {timing.instance for timing in after.timings} == {2}


def test_instances_are_numbered_anew_after_every_respawn(bench: Bench) -> None:
    worker = bench.worker(instances=3, crash=",".join(graph(n).key[:20] for n in (2, 3)))
    worker.prepare([bench.ready(n) for n in (1, 2, 3)])
    assert [worker.run_round(n).timings[0].instance for n in range(4)] == [6, 7, 8, 6]


def test_the_clock_of_a_session_never_goes_back_though_a_new_childs_clock_starts_at_zero(bench: Bench) -> None:
    worker = bench.worker(instances=1)
    worker.prepare([bench.ready(n) for n in range(1, 5)])
    seen: list[Timing] = []
    for number in range(4):
        if number == 2:
            os.kill(bench.children()[0], signal.SIGKILL)
        seen += worker.run_round(number).timings
    starts = [timing.start_ns for timing in seen]
    assert starts == sorted(starts)
    assert len({timing.instance for timing in seen}) == 2, "there were two children"


def test_no_visit_starts_before_the_time_a_worker_was_given(bench: Bench) -> None:
    with Worker(Plan(runtime="simulated", min_block_ns=0), not_before_ns=5_000_000_000) as worker:
        worker.prepare([bench.ready(1)])
        assert worker.run_round(0).timings[0].start_ns >= 5_000_000_000


def test_the_workers_of_a_session_continue_each_others_clock_and_numbers(bench: Bench) -> None:
    ops = [bench.ready(n) for n in (1, 2)]
    leases = [
        Lease(
            lease_id=f"lease-{number}",
            epoch=number,
            campaign_id="campaign",
            ops=tuple(leased for leased, _ in ops),
            plan=Plan(runtime="simulated", instances=2, min_block_ns=100_000),
            first_round=3 * number,
            rounds=3,
            ttl_s=30.0,
        )
        for number in range(3)
    ]
    artifacts = {leased.artifact.sha256: path.read_bytes() for leased, path in ops}
    coordinator = FakeCoordinator(leases=list(leases), artifacts=artifacts)
    agent = Agent(
        coordinator.connect,
        name="me",
        cache_dir=bench.folder / "cache",
        spool_dir=bench.folder / "spool",
        fingerprint=FINGERPRINT,
        runtimes=RUNTIMES,
        exit_when_idle=True,
    )
    assert agent.run() == 0
    assert coordinator.rounds == list(range(9))
    timings = [timing for report in coordinator.reports.values() for timing in report.timings]
    starts = [timing.start_ns for timing in timings]
    assert starts == sorted(starts)
    numbers = [timing.instance for timing in timings if timing.op_id == op(1).op_id]
    assert numbers == [0, 1, 0, 2, 3, 2, 4, 5, 4]


def test_after_a_respawn_dropped_ops_stay_away(bench: Bench) -> None:
    worker = bench.worker()
    worker.prepare([bench.ready(n) for n in (1, 2)])
    worker.drop(ids(1))
    os.kill(bench.children()[0], signal.SIGKILL)
    assert visited(worker.run_round(0)) == ids(2)


# --- runtimes that are not there


def test_a_missing_package_is_no_ops_failure_and_names_the_line_to_type(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = bench.folder / "stub"
    stub.mkdir()
    (stub / "onnxruntime.py").write_text("raise ModuleNotFoundError('hidden', name='onnxruntime')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(stub), os.environ["PYTHONPATH"]]))
    with Worker(Plan(runtime="onnxruntime")) as worker:
        with pytest.raises(MissingExtra, match=r"pip install 'lutbuilder-agent\[onnx\]'"):
            worker.prepare([bench.ready(1)])
        assert bench.children() == []


def test_importing_a_runtime_may_take_longer_than_a_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = bench.folder / "stub"
    stub.mkdir()
    (stub / "onnxruntime.py").write_text(
        "import time\ntime.sleep(1.0)\nraise ModuleNotFoundError('hidden', name='onnxruntime')\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(stub), os.environ["PYTHONPATH"]]))
    with Worker(Plan(runtime="onnxruntime", op_timeout_ns=50_000_000)) as worker, pytest.raises(MissingExtra):
        worker.prepare([bench.ready(1)])


def test_a_plan_that_makes_no_sense_to_its_runtime_is_refused(bench: Bench) -> None:
    with pytest.raises(SpecError, match="runtime 'simulated' has no option 'colour'"):
        bench.worker(colour="red").prepare([bench.ready(1)])


def test_a_runtime_that_dies_before_it_runs_anything_is_unavailable_and_blames_no_op(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = bench.folder / "stub"
    stub.mkdir()
    (stub / "onnxruntime.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(stub), os.environ["PYTHONPATH"]]))
    with (
        Worker(Plan(runtime="onnxruntime")) as worker,
        pytest.raises(RuntimeUnavailable, match=r"onnxruntime does not stay alive: worker ended by signal 6"),
    ):
        worker.prepare([bench.ready(1)])


# --- nothing is left behind


def test_close_leaves_no_process_and_no_file(bench: Bench) -> None:
    worker = bench.worker(crash=graph(2).key[:20])
    worker.prepare([bench.ready(1), bench.ready(2)])
    worker.run_round(0)
    assert len(bench.children()) == 1
    assert bench.left_behind == []
    worker.close()
    worker.close()  # twice is as good as once
    assert bench.children() == []
    assert bench.left_behind == []


def test_a_worker_that_prepared_nothing_has_no_child(bench: Bench) -> None:
    worker = bench.worker()
    assert worker.prepare([]) == ()
    assert bench.children() == []


PARENT = """
import sys
from pathlib import Path
from lutbuilder_agent.records import ArtifactRef, LeasedOp, Plan
from lutbuilder_agent.worker import Worker

worker = Worker(Plan(runtime="simulated", options=(("hang", "0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f"),)))
ref = ArtifactRef(sha256="0" * 64, format="graph", size_bytes=1)
worker.prepare([(LeasedOp(op_id="a", artifact=ref), Path(sys.argv[1]))])
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent_however_that_ends(bench: Bench, signum: signal.Signals) -> None:
    _, path = bench.ready(1)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path)])
    try:
        wait_for(lambda: len(bench.children()) == 1)
        mark = shared_file(bench.children()[0], 1)
        wait_for(lambda: mark.read_bytes()[:1] > b"\0")  # it counts steps: the op is at work
        parent.send_signal(signum)
        assert parent.wait(PATIENCE_S) == -signum
        wait_for(lambda: bench.children() == [])
        assert bench.left_behind == []
    finally:
        parent.kill()
        parent.wait()
        for child in bench.children():
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_to_be_told_to_end_is_the_parents_to_answer(bench: Bench, signum: signal.Signals) -> None:
    worker = bench.worker()
    worker.prepare([bench.ready(1)])
    (child,) = bench.children()
    os.kill(child, signum)
    assert visited(worker.run_round(0)) == ids(1)
    assert bench.children() == [child]


# --- one worker after the other

PLAN = Plan(runtime="simulated", instances=2, min_block_ns=100_000)


def test_a_child_that_waits_takes_up_its_work_and_goes_on_where_the_session_is(bench: Bench) -> None:
    waiting = spare()
    assert waiting is not None
    (child,) = bench.children()
    worker = Worker(PLAN, not_before_ns=10**15, first_instance=7, spare=waiting)
    bench.workers.append(worker)
    assert worker.prepare([bench.ready(1)]) == ()
    assert bench.children() == [child], "no other was started"
    (timing,) = worker.run_round(0).timings
    assert timing.start_ns >= 10**15
    assert timing.instance == 7
    assert worker.reached.instance == 7 + PLAN.instances
    assert worker.reached.clock_ns >= timing.start_ns


def test_a_child_that_died_while_it_waited_costs_nothing_but_time(bench: Bench) -> None:
    waiting = spare()
    assert waiting is not None
    os.kill(bench.children()[0], signal.SIGKILL)
    worker = Worker(PLAN, spare=waiting)
    bench.workers.append(worker)
    assert worker.prepare([bench.ready(1)]) == ()
    assert visited(worker.run_round(0)) == ids(1)


def test_the_end_of_a_round_is_told_once_before_its_visits_are_read_and_the_device_can_be_let_go(bench: Bench) -> None:
    worker = bench.worker()
    worker.prepare([bench.ready(n) for n in (1, 2, 3)])
    (child,) = bench.children()
    told: list[Reached] = []

    def at_end(reached: Reached) -> None:
        told.append(reached)
        worker.retire()
        wait_for(lambda: command(child) == "")

    seen = worker.run_round(0, at_end=at_end)
    assert visited(seen) == ids(1, 2, 3), "what it saw can still be read"
    (reached,) = told
    assert reached.clock_ns >= max(timing.start_ns + sum(timing.samples_ns) for timing in seen.timings)
    assert reached.instance == 2
    worker.close()


def test_a_round_whose_child_died_has_no_such_end(bench: Bench) -> None:
    worker = bench.worker()
    worker.prepare([bench.ready(1)])
    told: list[Reached] = []
    os.kill(bench.children()[0], signal.SIGKILL)
    seen = worker.run_round(0, at_end=told.append)
    assert visited(seen) == ids(1)
    assert len(told) == 1, "that of the child that replaced it"
