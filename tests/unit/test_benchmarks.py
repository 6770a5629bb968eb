"""Benchmarks say whether a goal is met, and `make bench` never passes in silence over what it could not measure."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


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
