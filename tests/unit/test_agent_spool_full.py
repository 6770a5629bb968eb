"""A full spool: measuring stops before a round would be lost, says so, and goes on when there is room."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from lutbuilder_agent.errors import StoreError, UnknownName, Unreachable
from lutbuilder_agent.spool import Spool
from tests.agent_bench import Bench, failing
from tests.agent_fakes import lease, report

QUOTA = 150_000  # two rounds of the bench at most: room for 64 KiB more is set aside before each


@pytest.fixture
def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Bench:
    caplog.set_level(logging.INFO, "lutbuilder_agent")
    return Bench(tmp_path)


def test_an_agent_that_was_cut_off_measures_until_its_spool_is_full_and_goes_on_when_it_is_delivered(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.worker.sample = lambda op_id, round: [10**9] * 3000  # some 45 KB a round of three ops
    bench.worker.on_round = lambda round: bench.clock.sleep(1.0)
    full_at: list[int] = []

    def away(call: str) -> None:
        if call == "report" and bench.clock.now_s < 200.0:
            if any("is full" in message for message in caplog.messages):
                full_at.append(len(bench.worker.rounds))
            raise Unreachable("away")

    bench.coordinator.on_call = away
    bench.coordinator.leases = [lease(1, rounds=9), lease(1, rounds=7, first_round=2)]
    assert bench.run(spool_quota_bytes=QUOTA) == 0
    assert full_at
    assert set(full_at) == {2}, "nothing was measured while it was full"
    assert bench.coordinator.rounds == list(range(9))
    assert bench.waiting() == []
    assert any("Until there is room nothing is measured, and nothing is lost" in m for m in caplog.messages)


def test_a_spool_full_of_what_nobody_takes_gives_its_lease_back_and_waits_for_its_user(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = report("foreign", samples=[10**9] * 18_000)
    path = Spool.open(bench.spool_dir, warn=pytest.fail).put(foreign)
    bench.coordinator.leases = [lease(1, rounds=2)]

    def refuse(call: str) -> None:
        if call == "report" and path.exists():
            raise UnknownName("no such campaign here")
        if call == "lease" and bench.coordinator.states == ["draining"]:
            assert not path.exists()

    def sleep(seconds: float) -> None:
        bench.clock.now_s += seconds
        if bench.clock.now_s > 300.0:
            path.unlink(missing_ok=True)  # the user moves it elsewhere

    bench.coordinator.on_call = refuse
    bench.clock.sleep = sleep  # type: ignore[method-assign]  # the fake clock, not the agent
    assert bench.run(spool_quota_bytes=140_000) == 0
    assert bench.coordinator.states[0] == "draining"
    assert bench.coordinator.rounds == [0, 1]
    still = [message for message in caplog.messages if message.startswith("still nothing is measured")]
    assert 2 <= len(still) <= 4, "once a minute"
    assert "the spool has room again: measuring goes on" in caplog.messages


def test_waiting_for_room_ends_after_the_time_that_was_given(bench: Bench) -> None:
    Spool.open(bench.spool_dir, warn=pytest.fail).put(report("foreign", samples=[10**9] * 18_000))
    bench.coordinator.on_call = failing(StoreError("busy"), "report", times=10**6)
    bench.coordinator.leases = [lease(1)]
    with pytest.raises((StoreError, Unreachable), match="gave up after"):
        bench.run(spool_quota_bytes=140_000, give_up_after_s=30.0)
    assert bench.worker.rounds == []


def test_a_disk_that_is_full_after_all_sends_the_round_from_memory_and_waits_for_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a file system that cannot set room aside, somebody else takes what was free while the round was measured."""
    really = os.fsync
    full = False

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(descriptor)

    def allocate(handle: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "cannot")

    def fill(round: int) -> None:
        nonlocal full
        full = round == 1

    def sleep(seconds: float) -> None:
        nonlocal full
        bench.clock.now_s += seconds
        full = bench.clock.now_s < 150.0

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    free = 10**9
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(free, free, 0 if full else free))
    bench.worker.on_round = fill
    bench.clock.sleep = sleep  # type: ignore[method-assign]  # the fake clock, not the agent
    bench.coordinator.leases = [lease(1, rounds=3), lease(2, rounds=1, first_round=2)]
    assert bench.run() == 0
    assert bench.coordinator.rounds == [0, 1, 2]
    assert bench.coordinator.states == ["ok", "draining", "ok", "ok"]
    assert any("Sending the round before anything else" in message for message in caplog.messages)
    assert bench.clock.now_s >= 150.0


def test_a_lease_whose_artifacts_the_cache_may_not_hold_ends_the_agent_with_the_option_to_type(bench: Bench) -> None:
    bench.coordinator.leases = [lease(n_ops=3)]
    with pytest.raises(StoreError, match=r"lease lease-1 cannot be measured here: 3 artifacts .*--cache-quota 1M"):
        bench.run(cache_quota_bytes=5000)
    assert bench.coordinator.states == ["ok", "draining"]
    assert bench.coordinator.fetched == []
