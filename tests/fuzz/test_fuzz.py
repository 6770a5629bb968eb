"""Hostile bytes, many of them: a slice here, all of them by `make fuzz` (LUTBUILDER_FUZZ=1, LUTBUILDER_FUZZ_SEED=N).

Each kind runs in a process of its own, so that neither its memory nor its end is that of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from lutbuilder_agent.wire.client import open_channel
from tests.fleet import Lab

FULL = bool(os.environ.get("LUTBUILDER_FUZZ"))
SEED = os.environ.get("LUTBUILDER_FUZZ_SEED", "20261122")
MOST_BYTES = 1 << 30
CALM_S = 150 if not FULL else 3_000


def fuzzed(root: Path, kind: str, *counts: int) -> Any:
    """Run `python -m tests.fuzz.KIND` and return what it counted."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{kind}", SEED, *map(str, counts)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")])},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=CALM_S,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    print(done.stdout)  # shown by `make fuzz ARGS=-rP`
    return json.loads(done.stdout)


@pytest.mark.timeout(CALM_S + 10)
def test_a_mutated_message_is_answered_or_cleanly_refused(root: Path) -> None:
    messages, loopback = (100_000, 5_000) if FULL else (4_000, 500)
    told = fuzzed(root, "messages", messages, loopback)
    outcomes = told["handlers"]
    assert sum(outcomes.values()) == messages
    assert sum(told["loopback"].values()) == loopback
    assert min(outcomes[how] for how in ("answered", "refused", "undecodable")) > messages / 20, "all kinds are met"
    assert told["peak_bytes"] < MOST_BYTES


@pytest.mark.timeout(CALM_S + 10)
def test_a_mutated_table_is_refused_by_name_or_says_the_same(root: Path) -> None:
    files = 10_000 if FULL else 500
    told = fuzzed(root, "lut_files", files)
    assert told["broken"] == {}
    assert sum(told["files"].values()) == files
    assert told["files"]["LutCorrupt"] > files / 2
    assert told["peak_bytes"] < MOST_BYTES


@pytest.mark.timeout(CALM_S + 10)
def test_a_mutated_artifact_ends_its_op_and_nothing_else(root: Path) -> None:
    artifacts = 10_002 if FULL else 150
    told = fuzzed(root, "artifacts", artifacts)
    for runtime, fates in told["artifacts"].items():
        assert sum(fates.values()) == artifacts // 3, runtime
        assert set(fates) <= {"bad_artifact", "crashed", "unsupported", "measured", "timed_out", "out_of_memory"}
        assert fates["bad_artifact"] > artifacts / 10, runtime
    assert told["grown_bytes"] < 64 << 20


def test_bytes_that_are_no_message_are_refused_without_a_traceback_in_the_log(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    try:
        server = lab.serve()
        channel: Any  # bytes in, bytes out: untyped
        with open_channel(lab.address, None) as channel:
            for _ in range(3):
                with pytest.raises(grpc.RpcError, match="deserializing"):
                    channel.unary_unary("/lutbuilder.v1.AgentService/Register")(b"\xff" * 100, timeout=30)
        told = lab.terminated(server)
        assert told.status == 0
        assert "Traceback" not in told.err
        assert "deserializing" not in told.err
    finally:
        lab.clear()
