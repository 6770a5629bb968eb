"""Kill any process at any moment, type the same command again: it continues, and nothing is lost or counted twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from lutbuilder import spaces
from lutbuilder.campaign.host import Interrupts
from lutbuilder.coordinator.embedded import EmbeddedAgent
from lutbuilder.coordinator.store import RawVisit
from lutbuilder.lower import lower
from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.runtimes.simulated import OPTIONS, true_ns
from tests.desk import NAME, PATIENCE_S, Desk

OPS = spaces.get("proxyless").ops()
AGENT, WORKER = "lutbuilder_agent run", "lutbuilder_agent.worker"
ROUNDS = 20
IN_PHASES = ("--max-rounds", str(ROUNDS), "--precision", "0.01%", "--runtime-option", "noise_sigma=0.003")
CAMPAIGN = (*IN_PHASES, "--lease-rounds", "0")


def assert_final(desk: Desk, *, rounds: int = ROUNDS - 3) -> None:
    """The table holds the truth of every op, of so many rounds at least, and its raw visits lie beside it."""
    lut = desk.lut()
    for op in OPS:
        row = lut[op]
        truth_ms = (true_ns(lower(op)) - float(OPTIONS["overhead_ns"])) / 1e6
        assert row.latency_ms == pytest.approx(truth_ms, rel=0.03), op.label()
        assert row.n_rounds >= rounds
    assert set(lut.meta.sessions) == {visit.session_id for visit in desk.visits()}
    assert (lut.path.parent / "samples" / lut.path.name).is_file()
    assert not [name for name in desk.versions if name.endswith(".tmp")]
    assert list((desk.folder / "tmp").iterdir()) == [], "whatever was killed left no temporary file"


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it was faster
        return False
    return True


def test_collect_killed_at_any_moment_and_typed_again_continues(desk: Desk) -> None:
    rng = random.Random(1)
    words = desk.collecting(*CAMPAIGN)
    before: list[RawVisit] = []
    for _ in range(4):
        process = desk.start(*words)
        try:
            process.wait(rng.uniform(0.2, 1.8))
        except subprocess.TimeoutExpired:
            process.kill()
        desk.ended(process)
        desk.wait_for(lambda: desk.processes() == [])  # its agent and its worker have ended too
        if desk.rounds():
            now = desk.visits()
            assert now[: len(before)] == before, "what was acknowledged stays"
            before = now
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    assert desk.visits()[: len(before)] == before
    assert_final(desk)


def test_a_collect_of_several_leases_killed_between_them_continues_and_mixes_up_no_instances(desk: Desk) -> None:
    words = desk.collecting(*IN_PHASES, "--lease-rounds", "6")
    process = desk.start(*words)
    desk.wait_for(lambda: desk.rounds() >= 14)  # in the third lease
    process.kill()
    desk.ended(process)
    desk.wait_for(lambda: desk.processes() == [])
    before = desk.visits()
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    assert ended.json["resumed"]
    visits = desk.visits()
    assert visits[: len(before)] == before
    seen: dict[tuple[str, int], set[int]] = defaultdict(set)
    for visit in visits:
        seen[visit.session_id, visit.timing.instance].add(visit.timing.round)
    assert all(max(rounds) - min(rounds) < 6 for rounds in seen.values()), "a lease's instances end with it"
    first = {instance for session, instance in seen if session == before[0].session_id}
    assert len(first) >= 7, "three leases, of three instances the first two"
    assert_final(desk, rounds=6)


def test_a_campaign_that_was_killed_goes_on_where_it_was(desk: Desk) -> None:
    words = desk.collecting(*CAMPAIGN)
    process = desk.start(*words)
    desk.wait_for(lambda: desk.rounds() >= 5)
    process.kill()
    desk.ended(process)
    desk.wait_for(lambda: desk.processes() == [])
    before = desk.visits()
    rounds = {visit.timing.round for visit in before}
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    assert ended.json["resumed"]
    after = desk.visits()
    assert after[: len(before)] == before
    # A round that the killed command had measured and not acknowledged comes from the agent's spool: an extra one.
    assert ROUNDS <= ended.json["rounds"] <= ROUNDS + 1
    new = {visit.timing.round for visit in after[len(before) :]}
    assert len(new) <= ROUNDS - len(rounds) + 1
    assert len({visit.session_id for visit in after}) == 2
    assert_final(desk)


def test_an_agent_that_is_killed_is_started_again_and_its_rounds_count_once(desk: Desk) -> None:
    rng = random.Random(3)
    process = desk.start(*desk.collecting(*CAMPAIGN, "--max-rounds", "40"))
    for number in range(2):
        seen = desk.rounds()
        desk.wait_for(lambda: desk.rounds() >= seen + 3)  # noqa: B023  # called before the next turn
        time.sleep(rng.uniform(0.0, 0.15))
        assert [kill(agent) for agent in desk.processes(AGENT)] == [True], f"kill {number}"
    ended = desk.ended(process)
    assert ended.status == 0, ended.err
    assert [ended.err.count(f"the agent ended with status -9; start {n} of 4") for n in (2, 3, 4)] == [1, 1, 0]
    assert len({visit.session_id for visit in desk.visits()}) == 3
    assert_final(desk)
    assert desk.processes() == []


def test_a_worker_that_is_killed_costs_no_op_and_no_round(desk: Desk) -> None:
    rng = random.Random(4)
    process = desk.start(*desk.collecting(*CAMPAIGN, "--max-rounds", "40"))
    for number in range(3):
        seen = desk.rounds()
        desk.wait_for(lambda: desk.rounds() >= seen + 3)  # noqa: B023  # called before the next turn
        time.sleep(rng.uniform(0.0, 0.1))
        assert True in [kill(worker) for worker in desk.processes(WORKER)], f"kill {number}"
    ended = desk.ended(process)
    assert ended.status == 0, ended.err
    assert (ended.json["n_measured"], ended.json["n_failed"]) == (70, 0)
    assert "the agent ended" not in ended.err
    visits = [visit.timing for visit in desk.visits()]
    assert len({visit.session_id for visit in desk.visits()}) == 1
    starts = [[visit.start_ns for visit in visits if visit.round == n] for n in {visit.round for visit in visits}]
    for before, after in pairwise(starts):
        assert max(before) < min(after), "the session's clock goes on over every new worker"
    assert_final(desk)
    assert desk.processes() == []


def test_a_table_whose_publishing_was_killed_is_published_without_measuring_again(desk: Desk) -> None:
    words = desk.collecting(*CAMPAIGN)
    killed = desk.run(*words, first="import os; os.link = lambda *_: os.kill(os.getpid(), 9)")
    assert killed.status == -signal.SIGKILL
    desk.wait_for(lambda: desk.processes() == [])
    before = desk.visits()
    assert {visit.timing.round for visit in before} == set(range(ROUNDS))
    assert not (desk.luts / NAME / "v0001.parquet").exists()
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    assert ended.json["published"]
    assert desk.visits() == before
    assert desk.lut().version == 1


def test_raw_visits_that_a_kill_left_unwritten_are_written_by_the_next_command(desk: Desk) -> None:
    first = (
        "import os\n"
        "link = os.link\n"
        "os.link = lambda a, b: os.kill(os.getpid(), 9) if 'samples' in str(b) else link(a, b)"
    )
    words = desk.collecting("--max-rounds", "8", "--precision", "20%")
    killed = desk.run(*words, first=first)
    assert killed.status == -signal.SIGKILL
    desk.wait_for(lambda: desk.processes() == [])
    samples = desk.luts / NAME / "samples" / "v0001.parquet"
    assert desk.lut().version == 1
    assert not samples.exists()
    ended = desk.run(*words)
    assert ended.status == 0, ended.err
    assert not ended.json["published"]
    assert samples.is_file()


def test_ctrl_c_ends_with_130_and_says_that_the_same_command_continues(desk: Desk) -> None:
    process = desk.start(*desk.collecting(*CAMPAIGN))
    desk.wait_for(lambda: desk.rounds() >= 3)
    process.send_signal(signal.SIGINT)
    ended = desk.ended(process)
    assert ended.status == 130
    assert ended.error.startswith("error[interrupted]: interrupted; every acknowledged visit is kept")
    assert ended.error.endswith("the same command continues where this one stopped")
    assert ended.json["error"]["exit_status"] == 130
    assert desk.processes() == []
    assert {visit.timing.round for visit in desk.visits()} >= {0, 1, 2}
    assert desk.versions == []


def test_more_ctrl_c_while_the_first_is_obeyed_does_not_cut_the_ending_in_two(desk: Desk) -> None:
    impatient = (
        "import os, sys\n"
        "from lutbuilder.coordinator.service import RunningServer\n"
        "stop = RunningServer.stop\n"
        "def interrupted(self):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    stop(self)\n"
        "    print('the server has stopped', file=sys.stderr)\n"
        "RunningServer.stop = interrupted"
    )
    process = desk.start(*desk.collecting(*CAMPAIGN), first=impatient)
    desk.wait_for(lambda: desk.rounds() >= 3)
    process.send_signal(signal.SIGINT)
    ended = desk.ended(process)
    assert ended.status == 130
    assert "the server has stopped" in ended.err
    assert ended.error.startswith("error[interrupted]")
    assert desk.processes() == []


def test_ctrl_c_is_noted_at_once_and_heeded_where_nothing_is_half_done() -> None:
    woken = threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts = Interrupts()
    try:
        interrupts.defer(woken.set)
        interrupts.check()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert woken.wait(PATIENCE_S)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.restore()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupts.defer(woken.set)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "a shell's background stays deaf"
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_agents_never_share_a_folder(tmp_path: Path) -> None:
    def agent() -> EmbeddedAgent:
        return EmbeddedAgent(coordinator="127.0.0.1:1", runtime="simulated", folder=tmp_path / "agent", lock_s=0.0)

    first, second, third = agent(), agent(), agent()
    try:
        first.start()
        with pytest.raises(
            StoreError, match=r"another lutbuilder measures with .*: wait until it has ended .*--state-dir DIR"
        ):
            second.start()
        first.stop()
        third.start()
    finally:
        for one in (first, second, third):
            one.stop()


STARTER = """
import os, signal, sys
from pathlib import Path
from lutbuilder.coordinator.embedded import EmbeddedAgent

embedded = EmbeddedAgent(coordinator="127.0.0.1:1", runtime="simulated", folder=Path(sys.argv[1]))
embedded.start()
os.kill(embedded._process.pid, signal.SIGSTOP)
print(embedded._process.pid, flush=True)
os._exit(0)
"""


def test_a_folder_is_free_only_when_the_agent_of_a_killed_command_has_ended_too(desk: Desk) -> None:
    folder = desk.folder / "agent"
    started = subprocess.run(
        [sys.executable, "-c", STARTER, str(folder)], env=desk.env, capture_output=True, text=True, check=True
    )
    agent = EmbeddedAgent(coordinator="127.0.0.1:1", runtime="simulated", folder=folder, lock_s=0.0)
    try:
        with pytest.raises(StoreError, match="another lutbuilder measures with"):
            agent.start()
        assert kill(int(started.stdout))
        desk.wait_for(lambda: desk.processes() == [])
        agent.start()
    finally:
        agent.stop()
