"""The worker: a child process that owns the device, and the handle its parent holds.

The child loads every artifact (`plan.instances` times) and then times rounds. An op that crashes or hangs kills the
child, never the parent: a journal on disk keeps the visits of the broken round, a shared counter tells which op was
running, and a fresh child goes on without it. While a round runs the parent sleeps in one `poll`.

Both are files without a name, so that nothing is left behind however the two processes end. A child may be started
before there is anything for it to do (`spare`): it then waits in silence and takes up its work within a millisecond.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lutbuilder_agent.errors import (
    LutbuilderError,
    MissingExtra,
    RuntimeUnavailable,
    SpecError,
    UnsupportedOp,
)
from lutbuilder_agent.records import Failure, FailureReason, LeasedOp, OpId, Plan, Timing
from lutbuilder_agent.rounds import AtEnd, Reached

if TYPE_CHECKING:
    from lutbuilder_agent.runtimes import Prepared, Runtime

_MARK = struct.Struct("<qq")  # steps made so far, index of the op at work
_NOBODY = -1
_START_S = 120.0  # importing torch on a phone-class core


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """What one round saw; `round_ns` is its wall time in the worker, of which `timed_ns` was spent inside visits."""

    round: int
    timings: tuple[Timing, ...]
    failures: tuple[Failure, ...]
    round_ns: int
    timed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    op: LeasedOp
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _AreYouThere:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    plan: Plan
    loads: tuple[_Load, ...]
    first_instance: int
    not_before_ns: int
    sysroot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    error: LutbuilderError


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunRound:
    round: int
    skip: frozenset[OpId]  # dropped, or visited before the child was replaced
    first_order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoundDone:
    round_ns: int
    timed_ns: int
    end_ns: int  # when the last visit was over, on the session's clock


@dataclass(slots=True)
class _Seen:
    timings: list[Timing] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    round_ns: int = 0
    timed_ns: int = 0


class Worker:
    """A running worker for one lease. Not thread-safe; use as a context manager, or call `close`.

    Raises MissingExtra, RuntimeUnavailable or SpecError from `prepare` if the plan's runtime does not run here: that is
    no op's fault. No `start_ns` is below `not_before_ns`, nor below that of an earlier visit. Instances are numbered
    from `first_instance` on, anew after every respawn: a session's workers continue each other's clock and numbers.
    Throttle counters are read below `sysroot`. The first child is the `spare`, if there is one.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        not_before_ns: int = 0,
        first_instance: int = 0,
        sysroot: Path = Path("/"),
        spare: Child | None = None,
    ) -> None:
        self._plan = plan
        self._sysroot = sysroot
        self._spare = spare
        self._loads: list[_Load] = []
        self._dropped: set[OpId] = set()
        self._next_instance = first_instance
        self._last_ns = not_before_ns
        self._child: Child | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def prepare(self, ops: Sequence[tuple[LeasedOp, Path]]) -> tuple[Failure, ...]:
        """Load every artifact `plan.instances` times; return the ops that failed, the others are ready for rounds."""
        self.begin(ops)
        return self.loaded()

    def begin(self, ops: Sequence[tuple[LeasedOp, Path]]) -> None:
        """Have the child begin what `prepare` does; returns at once. `loaded` waits for it."""
        self._loads = [_Load(op=op, path=str(path)) for op, path in ops]
        if self._loads:
            self._start_loading()

    def loaded(self) -> tuple[Failure, ...]:
        """Wait for what `begin` began; return the ops that failed."""
        return self._await_loaded(round=0)

    @property
    def reached(self) -> Reached:
        """How far the session has come: the clock at the end of the last visit, the next instance's number."""
        return Reached(clock_ns=self._last_ns, instance=self._next_instance)

    def run_round(self, round: int, *, at_end: AtEnd | None = None) -> RoundResult:
        """Visit every op that is due in this round once. A failing op becomes a Failure and leaves the rotation.

        `at_end` is called as soon as the last visit is over, before any of them is read; not if the child died then.
        """
        seen = _Seen()
        started_ns = time.perf_counter_ns()
        wall_ns = 0
        visited: set[OpId] = set()
        blameless = 0
        while any(round % load.op.every == 0 and load.op.op_id not in visited for load in self._loads):
            if self._child is None:
                seen.failures += self._await_loaded(round=round)
                continue
            done, culprit = self._child.run_round(round, skip=visited | self._dropped, first_order=len(visited))
            wall_ns = time.perf_counter_ns() - started_ns
            if done is not None and at_end is not None:
                self._last_ns = max(self._last_ns, done.end_ns)
                at_end(self.reached)
            journal = self._child.read_journal()
            seen.timings += journal
            visited |= {timing.op_id for timing in journal}
            for timing in journal:  # before a respawn: the next child's clock goes on from here
                self._last_ns = max(self._last_ns, timing.start_ns + sum(timing.samples_ns))
            if done is not None:
                seen.round_ns += done.round_ns
                seen.timed_ns += done.timed_ns
                break
            blameless += culprit.op_id is None
            seen.failures += self._bury(culprit, round=round, blameless=blameless)
        if self._plan.runtime == "simulated":
            wall_ns = max(wall_ns, seen.round_ns)
        return RoundResult(
            round=round,
            timings=tuple(seen.timings),
            failures=tuple(seen.failures),
            round_ns=max(wall_ns, seen.timed_ns),
            timed_ns=seen.timed_ns,
        )

    def drop(self, op_ids: Sequence[OpId]) -> None:
        """Take ops out of the rotation; unknown ids are ignored."""
        gone = set(op_ids)
        self._dropped |= gone
        self._loads = [load for load in self._loads if load.op.op_id not in gone]

    def retire(self) -> None:
        """Kill the child, so that another may have the device; what it saw in its last round can still be read."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """End the child and remove its files. Safe to call twice."""
        if self._child is not None:
            self._child.end()
            self._child = None
        if self._spare is not None:
            self._spare.end()
            self._spare = None

    def _start_loading(self) -> None:
        """Hand everything that is still to be loaded to a child: the spare, or a new one."""
        waiting, self._spare = self._spare, None
        self.close()
        self._child = waiting or Child()
        self._child.begin(
            _Start(
                plan=self._plan,
                loads=tuple(self._loads),
                first_instance=self._next_instance,
                not_before_ns=self._last_ns,
                sysroot=str(self._sysroot),
            )
        )
        self._next_instance += self._plan.instances

    def _await_loaded(self, *, round: int) -> tuple[Failure, ...]:
        """Wait until a child has loaded everything, burying every op that kills one on the way."""
        failures: list[Failure] = []
        blameless = 0
        while self._loads:
            if self._child is None:
                self._start_loading()
                continue
            answer, culprit = self._child.loaded()
            if isinstance(answer, _Refused):
                self.close()
                raise answer.error
            if isinstance(answer, _Loaded):
                failures += answer.failures
                gone = {failure.op_id for failure in answer.failures}
                self._loads = [load for load in self._loads if load.op.op_id not in gone]
                break
            blameless += culprit.op_id is None
            failures += self._bury(culprit, round=round, blameless=blameless)
        return tuple(Failure(op_id=f.op_id, round=round, reason=f.reason, detail=f.detail) for f in failures)

    def _bury(self, culprit: _Death, *, round: int, blameless: int) -> tuple[Failure, ...]:
        """Return the failure of the op that ended the child and take it out; the child is gone afterwards.

        None if it was no op's doing: the child was waiting, or still importing the runtime. Raises RuntimeUnavailable
        if that comes again.
        """
        self.close()
        if culprit.op_id is None:
            if blameless > 1:
                raise RuntimeUnavailable(f"the worker for {self._plan.runtime} does not stay alive: {culprit.detail}")
            return ()
        self._loads = [load for load in self._loads if load.op.op_id != culprit.op_id]
        return (Failure(op_id=culprit.op_id, round=round, reason=culprit.reason, detail=culprit.detail),)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Death:
    op_id: OpId | None
    reason: FailureReason
    detail: str


class Child:
    """The parent's end of one child process, from its start to its end: it waits, loads, and runs rounds."""

    def __init__(self) -> None:
        self._ids: tuple[OpId, ...] = ()
        self._patience_s = _START_S
        self._asked_s = 0.0
        self._journal = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # open as long as the child; `end` closes it
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # the same
        self._pipe, theirs = _pipe()
        with tempfile.TemporaryFile() as mark, theirs:
            mark.write(_MARK.pack(0, _NOBODY))
            mark.flush()
            self._mark = mmap.mmap(mark.fileno(), _MARK.size)
            handles = [theirs.fileno(), mark.fileno(), self._journal.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lutbuilder_agent.worker", *map(str, [*handles, os.getpid()])],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,  # killed as a group, with whatever a runtime started
            )

    def is_there(self) -> bool:
        """Wait until the child has done its imports and sleeps; False if it died of them."""
        self._send(_AreYouThere())
        return isinstance(self._answer()[0], _AreYouThere)

    def begin(self, start: _Start) -> None:
        """Have the child load; `loaded` waits for it."""
        self._ids = tuple(load.op.op_id for load in start.loads)
        self._patience_s = start.plan.op_timeout_ns / 1e9
        self._send(start)

    def loaded(self) -> tuple[object, _Death]:
        """Return the child's answer to `begin`, or how it died."""
        return self._answer()

    def run_round(self, round: int, *, skip: set[OpId], first_order: int) -> tuple[_RoundDone | None, _Death]:
        self._journal.seek(0)  # where the child writes, too: it inherited the file with its position
        self._journal.truncate()
        self._send(_RunRound(round=round, skip=frozenset(skip), first_order=first_order))
        answer, death = self._answer()
        return (answer if isinstance(answer, _RoundDone) else None), death

    def read_journal(self) -> list[Timing]:
        """Return the visits of the last round, also when the child died in the middle of writing one."""
        timings: list[Timing] = []
        handle = self._journal.fileno()
        journal = io.BytesIO(os.pread(handle, os.fstat(handle).st_size, 0))
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:  # ends by EOFError; a torn last record is a visit that did not finish
                timings += pickle.load(journal)
        return timings

    def kill(self) -> None:
        """Kill the child and whatever a runtime started, and do not wait for it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the child, wait until it is gone and give up its files."""
        self.kill()
        self._process.wait()
        self._pipe.close()
        self._mark.close()
        self._journal.close()
        self._stderr.close()

    def _send(self, question: object) -> None:
        self._asked_s = time.monotonic()
        with contextlib.suppress(OSError):  # it died; `_answer` finds out how
            self._pipe.send(question)

    def _answer(self) -> tuple[object, _Death]:
        nothing = _Death(op_id=None, reason="crashed", detail="")
        try:
            steps = self._steps()
            while not self._pipe.poll(self._patience_s):
                if self._process.poll() is not None:
                    break
                now = self._steps()
                starting = now == 0 and time.monotonic() - self._asked_s < _START_S  # the runtime is being imported
                if now == steps and not starting:  # a whole patience without a single call finished
                    return None, self._death("timed_out", f"no call finished within {self._patience_s:g} s")
                steps = now
            else:
                return self._pipe.recv(), nothing
        except (EOFError, OSError):
            pass  # the child died; its exit status says how
        code = self._process.wait()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
        reason: FailureReason = "out_of_memory" if code == -signal.SIGKILL else "crashed"
        return None, self._death(reason, f"worker ended by {how}")

    def _death(self, reason: FailureReason, detail: str) -> _Death:
        index = _MARK.unpack(self._mark[:])[1]
        op_id = self._ids[index] if 0 <= index < len(self._ids) else None
        self._stderr.seek(0)
        words = self._stderr.read()[-500:].decode(errors="replace").strip()
        return _Death(op_id=op_id, reason=reason, detail=f"{detail}; {words}" if words else detail)

    def _steps(self) -> int:
        return int(_MARK.unpack(self._mark[:])[0])


def spare() -> Child | None:
    """Return a child process that waits for work in silence, its imports done; None if none can be had.

    Whoever gets none goes on without: the next worker starts a child of its own and says what is wrong.
    """
    child = Child()
    if child.is_there():
        return child
    child.end()
    return None


def _pipe() -> tuple[Connection, Connection]:
    import socket

    ours, theirs = socket.socketpair()
    return Connection(ours.detach()), Connection(theirs.detach())


# --- the child


@dataclass(slots=True)
class _Ready:
    """One op, loaded: its instances, and how often it has been visited."""

    index: int
    op: LeasedOp
    instances: list[Prepared]
    visits: int = 0


class _Bench:
    """The child's state: the runtime and everything it has loaded."""

    def __init__(self, start: _Start, runtime: Runtime, mark: mmap.mmap, journal: io.FileIO) -> None:
        from lutbuilder_agent.throttle import throttle_counters
        from lutbuilder_agent.timing import NETWORK_TURNS, make_flush, timer_facts

        self._plan = start.plan
        self._runtime = runtime
        self._least_block_ns = timer_facts(runtime.now_ns).least_block_ns
        self._throttle = throttle_counters(Path(start.sysroot))
        self._first_instance = start.first_instance
        self._shift_ns = max(0, start.not_before_ns - runtime.now_ns())  # a restarted virtual clock goes on, not back
        self._mark = mark
        self._steps = 0
        self._journal = journal
        self._turns = NETWORK_TURNS if start.plan.cache == "cold" else 1  # of whole networks
        self._flush = make_flush() if start.plan.cache == "flushed" else None
        self._ready: dict[OpId, _Ready] = {}

    def load(self, loads: Sequence[_Load]) -> tuple[Failure, ...]:
        """Load instance after instance of all ops: those of one op shall not lie side by side in memory."""
        failures: dict[OpId, Failure] = {}
        for k in range(self._plan.instances):
            for index, load in enumerate(loads):
                if load.op.op_id in failures:
                    continue
                self._step(index)
                try:
                    prepared = self._runtime.prepare(Path(load.path).read_bytes(), instance=self._first_instance + k)
                    ready = self._ready.setdefault(load.op.op_id, _Ready(index=index, op=load.op, instances=[]))
                    ready.instances.append(prepared)
                    prepared.timed_call()
                except (UnsupportedOp, SpecError, MemoryError) as error:
                    failures[load.op.op_id] = _failure(load.op, error)
                    self._ready.pop(load.op.op_id, None)
        self._step(_NOBODY)
        return tuple(failures.values())

    def run_round(self, round: int, *, skip: frozenset[OpId], first_order: int) -> _RoundDone:
        """Visit every op that is due, in trains or alone, and journal each visit as soon as it is over."""
        from lutbuilder_agent.timing import shuffled, trains

        started_ns = self._runtime.now_ns()
        timed_ns = 0
        due = [r for r in self._ready.values() if round % r.op.every == 0 and r.op.op_id not in skip]
        due = shuffled(due, seed=self._plan.seed, round=round)
        units = trains([ready for ready in due if ready.op.solo], length=self._turns)
        together = [ready for ready in due if not ready.op.solo]
        if together:
            units += trains(together, length=self._plan.train_ops)
        order = first_order
        for unit in shuffled(units, seed=self._plan.seed + 1, round=round):
            before_ns = self._runtime.now_ns()
            timings = self._visit(unit, round=round, order=order)
            timed_ns += self._runtime.now_ns() - before_ns
            order += len(unit)
            self._journal.write(pickle.dumps(timings))
        self._step(_NOBODY)
        now_ns = self._runtime.now_ns()
        return _RoundDone(round_ns=now_ns - started_ns, timed_ns=timed_ns, end_ns=now_ns + self._shift_ns)

    def _visit(self, unit: Sequence[_Ready], *, round: int, order: int) -> list[Timing]:
        from lutbuilder_agent.timing import preemptions, preemptions_of_all_threads, time_train

        chosen = [ready.visits % len(ready.instances) for ready in unit]
        blocks = time_train(
            [ready.instances[k] for ready, k in zip(unit, chosen, strict=True)],
            self._plan,
            now_ns=self._runtime.now_ns,
            on_call=lambda i: self._step(unit[i].index),
            lost_core=preemptions if self._plan.threads == 1 else preemptions_of_all_threads,
            throttle=None if self._throttle is None else self._throttle.read,
            flush=self._flush,
            least_ns=self._least_block_ns,
            # A small network finds its weights where larger ones have been: two or three calls bring them back.
            warm_up_ns=self._plan.min_block_ns if unit[0].op.solo and self._turns == 1 else 0,
        )
        for ready in unit:
            ready.visits += 1
        return [
            Timing(
                op_id=ready.op.op_id,
                round=round,
                order=order + i,
                instance=self._first_instance + k,
                start_ns=block.start_ns + self._shift_ns,
                warmup_ns=block.warmup_ns,
                samples_ns=block.samples_ns,
                preempted=block.preempted,
                throttled=block.throttled,
            )
            for i, (ready, k, block) in enumerate(zip(unit, chosen, blocks, strict=True))
        ]

    def _step(self, index: int) -> None:
        self._steps += 1
        _MARK.pack_into(self._mark, 0, self._steps, index)


def _failure(op: LeasedOp, error: Exception) -> Failure:
    reason: FailureReason = "bad_artifact"
    if isinstance(error, UnsupportedOp):
        reason = "unsupported"
    elif isinstance(error, MemoryError):
        reason = "out_of_memory"
    return Failure(op_id=op.op_id, round=0, reason=reason, detail=str(error)[:2000])


def _serve(pipe: Connection, mark: mmap.mmap, journal: io.FileIO) -> None:
    """Answer the parent until it closes the pipe."""
    import gc

    from lutbuilder_agent.runtimes import load

    while isinstance(start := pipe.recv(), _AreYouThere):
        pipe.send(start)
    try:
        runtime = load(start.plan.runtime, threads=start.plan.threads, options=dict(start.plan.options))
    except (MissingExtra, RuntimeUnavailable, SpecError) as error:
        pipe.send(_Refused(error=error))
        return
    bench = _Bench(start, runtime, mark, journal)
    pipe.send(_Loaded(failures=bench.load(start.loads)))
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection in the middle of a sample is not the op's time
    for question in _questions(pipe):
        pipe.send(bench.run_round(question.round, skip=question.skip, first_order=question.first_order))
        gc.collect()


def _questions(pipe: Connection) -> Iterator[_RunRound]:
    with contextlib.suppress(EOFError):
        while True:
            yield pipe.recv()


def main(arguments: Sequence[str]) -> None:
    """Entry of the child: the descriptors of pipe, mark and journal, and the parent's pid."""
    from lutbuilder_agent.orphan import die_with_parent

    pipe, mark, journal, parent = map(int, arguments)
    die_with_parent(parent)
    for signum in (signal.SIGINT, signal.SIGTERM):  # the parent's to answer; Slurm tells every process of a job
        signal.signal(signum, signal.SIG_IGN)
    _serve(Connection(pipe), mmap.mmap(mark, _MARK.size), io.FileIO(journal, "wb"))


if __name__ == "__main__":
    # Imported again under its own name, so that what is pickled to the parent has a name both sides know.
    from lutbuilder_agent import worker

    worker.main(sys.argv[1:])
