"""Benchmarks say whether a goal is met, and `make bench` never passes in silence over what it could not measure."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_silence
from benchmarks.check_harness import Seen, judged


@pytest.fixture
def figures(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("figures")


@pytest.mark.parametrize(
    ("goal", "verdict"),
    [
        ({"at_most": 3.0}, "goal 3.0: met"),
        ({"at_most": 2.5}, "goal 2.5: met in the median"),
        ({"at_most": 1.9}, "goal 1.9: MISSED"),
        ({"at_least": 1.0}, "goal 1.0: met"),
        ({"at_least": 2.0}, "goal 2.0: met in the median"),
        ({"at_least": 2.1}, "goal 2.1: MISSED"),
    ],
)
def test_a_figure_says_whether_its_goal_is_met(figures: Any, goal: dict[str, float], verdict: str) -> None:
    seen = figures.over([{"us": 3.0}, {"us": 1.0}, {"us": 2.0}])["us"]
    assert seen.text("us", **goal).split("; ") == ["       2.0 (1.0 to 3.0) us", verdict]


# --- check_harness.py


def two_loops(rng: np.random.Generator, *, bias: float = 0.0, preparation: float = 0.01, own: float = 0.0) -> Seen:
    """Return what three sessions of 4 preparations on either side see of an op, both sides noisy alike."""
    seen = Seen()
    off = bias + own * rng.standard_normal()
    for session in range(3):
        ours, theirs = (1e6 * np.exp(preparation * rng.standard_normal(4)) for _ in range(2))
        for turn in range(16):
            a, b = turn % 4, (turn // 4) % 4
            noise = np.exp(0.003 * rng.standard_normal(2))
            seen.add(session, a, b, ours[a] * np.exp(off) * noise[0], theirs[b] * noise[1])
    return seen


def test_two_loops_that_agree_are_inside_and_show_no_bias() -> None:
    rng = np.random.default_rng(1)
    found = judged({str(number): two_loops(rng) for number in range(24)})
    assert sum(op.inside for op in found.ops) == 24
    assert found.lo < 1.0 < found.hi
    assert found.hi - found.lo < 0.01, "24 ops together say more than each of them"
    assert 0.5 < found.spread / found.noise < 2.0
    told = "\n".join(found.lines())
    assert "24 of 24 ops within 0.98 to 1.02; 0 outside by their whole interval" in told
    assert "no bias that shows" in told
    assert "0.98 to 1.02: met" in told
    few = judged({str(number): two_loops(rng) for number in range(4)})
    assert few.lines()[-1].endswith("4 ops are too few to say")


def test_a_harness_that_adds_three_per_cent_is_told_from_noise() -> None:
    rng = np.random.default_rng(2)
    found = judged({str(number): two_loops(rng, bias=0.03, preparation=0.005) for number in range(24)})
    assert found.lo > 1.02
    assert sum(op.surely_outside for op in found.ops) > 4
    told = "\n".join(found.lines())
    assert ": a bias" in told
    assert "0.98 to 1.02: MISSED" in told


def test_ops_that_differ_by_noise_alone_are_not_called_missed() -> None:
    rng = np.random.default_rng(3)
    noisy = judged({str(number): two_loops(rng, preparation=0.1) for number in range(24)})
    assert sum(op.inside for op in noisy.ops) < 20
    assert noisy.lines()[-1].endswith("not told from noise")
    own = judged({str(number): two_loops(rng, preparation=0.002, own=0.05) for number in range(24)})
    assert own.spread > 5 * own.noise
    assert own.lines()[-1].endswith("MISSED")


def test_intervals_of_ratios_hold_the_truth() -> None:
    rng = np.random.default_rng(4)
    found = judged({str(number): two_loops(rng, bias=0.004) for number in range(200)})
    assert 0.9 <= np.mean([op.lo <= np.exp(0.004) <= op.hi for op in found.ops]) <= 0.99


# --- bench_silence.py


@pytest.mark.parametrize(
    ("lo", "hi", "says"),
    [
        (-0.002, 0.004, "met"),
        (0.006, 0.009, "MISSED"),
        (-0.009, -0.006, "MISSED"),
        (-0.001, 0.009, "not resolved; --seconds 400 should"),
        (-0.0005, 0.0055, "not resolved; --seconds 200 should"),
    ],
)
def test_a_shift_is_within_the_goal_by_its_whole_interval_or_the_time_it_takes_is_named(
    lo: float, hi: float, says: str
) -> None:
    assert bench_silence.verdict({"shift": (lo + hi) / 2, "lo": lo, "hi": hi}, 100.0) == says


def test_rounds_are_compared_within_their_three_so_that_drift_and_ops_cancel() -> None:
    rng = np.random.default_rng(5)
    effect = {"on": 0.002, "off": 0.0, "noisy": 0.05}
    visits = [
        SimpleNamespace(
            timing=SimpleNamespace(
                op_id=f"op{op}",
                round=round,
                start_ns=1000 * round,
                samples_ns=(
                    1e6 * (1 + op) * np.exp(0.3 * np.sin(round / 90) + effect[mode] + 0.01 * rng.standard_normal()),
                ),
            )
        )
        for round in range(900)
        for mode in (bench_silence.mode(round),)
        for op in range(5)
    ]
    windows = {round: bench_silence.Window(0, sys.maxsize) for round in range(900)}
    told = bench_silence.shifts(visits, windows)
    assert told["threes"] == 300
    for name in ("on", "noisy"):
        assert told[name]["lo"] < np.expm1(effect[name]) < told[name]["hi"]
        assert told[name]["hi"] - told[name]["lo"] < 0.005
    assert "goal 0.5 %: met" in bench_silence.lines("simulated", {**told, "heartbeats": 300}, 100.0)[1]


# --- readme_rows.py


@pytest.fixture
def readme_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("readme_rows")


def finished(folder: Path, session: int, *, mape: float, name: str = "cpu/litert-fp32-bs1") -> None:
    """Write what three_sessions.py keeps of a session without calibration."""
    errors = {
        **{name: {"value": mape, "lo": mape, "hi": mape} for name in ("mape", "bias", "spearman")},
        "worst": 3 * mape,
    }
    report = {
        **dict.fromkeys(("lut_sum", "published", "undrifted", "flops_linear_held_out"), errors),
        **dict.fromkeys(("test_retest_floor", "instance_floor", "truth_noise", "run_noise"), 0.002),
        **{name: {"mape": {"value": mape}} for name in ("fastest", "slowest")},
        **{"session_scale": 1.0, "networks": [{"n_instances": 9}], "wall_s": 60.0, "networks_sha256": "ab"},
    }
    report["lut_sum"] = {**errors, "n": 80}
    lut = {"name": name, "path": f"luts/{name}/v0001.parquet"}
    collected = {"lut": lut, "wall_s": 170.0 + session, "rounds": 100, "stop_reason": "budget"}
    home = folder / f"session-{session}"
    home.mkdir(parents=True)
    (home / "collect.json").write_text(json.dumps(collected), encoding="utf-8")
    (home / "validate.json").write_text(json.dumps({"report": report}), encoding="utf-8")


def begun(folder: Path) -> None:
    options = {
        "runtime": "litert", "device": "cpu", "space": "proxyless", "budget": "3m", "runtime_option": [], "random": 60,
        "searched": 20, "rounds": 24, "lease_rounds": 0, "instances": 3, "validate_budget": "30m", "calibrate": 0,
    }  # fmt: skip  # one record
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")


def test_every_finished_session_of_every_folder_is_in_the_table_and_no_other(
    readme_rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mapes in (("hot", (0.004, 0.011)), ("cold", (0.005,))):
        begun(tmp_path / name)
        for number, mape in enumerate(mapes, start=1):
            finished(tmp_path / name, number, mape=mape, name=f"cpu/litert-fp32-bs1{'-cold' * (name == 'cold')}")
    (tmp_path / "hot" / "session-3").mkdir()
    lines = readme_rows.rows([readme_rows.read(tmp_path / name) for name in ("hot", "cold")])
    assert lines[0].split(" | ")[1:3] == ["litert, rotating, 2 sessions", "litert, cold, 1 session"]
    assert lines[2] == "| table as published, MAPE | 0.40, 1.10 % | 0.50 % | 0.7 % |"
    assert "| collection | 171 to 172 s | 171 s | 180 s |" in lines
    assert (
        "| MAPE, this session's op visits pooled in, / noise of the networks' truth | 2.0 to 5.5 | 2.5 | 1.5 |" in lines
    )
    assert not any(line.startswith("| calibrated") for line in lines), "nobody calibrated"
    assert {line.count("|") for line in lines} == {5}
    assert "session 3 is not finished (`lutbuilder collect` was not run); left out" in capsys.readouterr().err


def test_a_folder_without_a_finished_session_is_refused(readme_rows: Any, tmp_path: Path) -> None:
    with pytest.raises(readme_rows.CommandFailed, match="is no folder of three_sessions"):
        readme_rows.read(tmp_path)
    begun(tmp_path)
    with pytest.raises(readme_rows.CommandFailed, match="has no finished session"):
        readme_rows.read(tmp_path)


# --- make bench


@pytest.fixture
def bench_folder(root: Path, tmp_path: Path) -> Path:
    """A checkout with two benchmarks, whose environment is this one."""
    shutil.copy(root / "Makefile", tmp_path)
    for name in ("pyproject.toml", "agents/pyproject.toml", ".venv/.made", ".venv/.dev"):  # in order of age
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv/bin").mkdir()
    (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (tmp_path / ".venv/bin/python").chmod(0o755)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/make_protos.py").write_text('PIN = "1"\n', encoding="utf-8")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/bench_z.py").write_text("print('measured z')\n", encoding="utf-8")
    return tmp_path


def make_bench(folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", "bench"], cwd=folder, env=clean, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_bench_goes_on_after_what_cannot_be_measured_and_fails_in_the_end(root: Path, bench_folder: Path) -> None:
    assert make_bench(bench_folder).returncode == 0
    script = (
        f"import sys; sys.path.insert(0, {str(root / 'benchmarks')!r})\nimport figures\nfigures.not_measured('why')\n"
    )
    (bench_folder / "benchmarks/bench_a.py").write_text(script, encoding="utf-8")
    done = make_bench(bench_folder)
    assert done.returncode != 0
    assert done.stdout.splitlines() == [
        "== benchmarks/bench_a.py",
        "NOT MEASURED: why",
        "== benchmarks/bench_z.py",
        "measured z",
        "not measured, or failed: benchmarks/bench_a.py",
    ]
