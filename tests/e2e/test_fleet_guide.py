"""docs/fleet.md as it is written: every command in it, in its order, on one machine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desk import ROOT
from tests.fleet import Lab

BLOCK = re.compile(r"^```\n(lutbuilder.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.clear()


def commands() -> list[list[str]]:
    text = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
    return [shlex.split(line) for block in BLOCK.findall(text) for line in block.splitlines()]


def test_the_guide_from_nothing_to_a_lab_runs(lab: Lab) -> None:
    ran: dict[str, int] = {}
    for program, *words in commands():
        words = [lab.address if word == "lab:7070" else word for word in words]
        word = words[0] if program == "lutbuilder" else program
        ran[word] = ran.get(word, 0) + 1
        if word == "serve":
            assert words[1:3] == ["--listen", "127.0.0.1:7070"], "the default, which a test may not take"
            lab.state, lab.served = lab.folder / "state", lab.folder / "served"
            assert words[3:] == ["--state-dir", "state", "--luts", "served"]
            lab.serve()
        elif program == "lutbuilder-agent":
            start_agent(lab, words)
            lab.wait_for(lambda: len(lab.ask("agents")["agents"]) == ran[program])  # noqa: B023  # called at once
        else:
            ended = lab.run_alone(*words)
            assert ended.status == 0, f"{shlex.join(words)}\n{ended.err}"
            assert "Traceback" not in ended.err
    assert ran == {
        "serve": 1, "lutbuilder-agent": 2, "agents": 5, "collect": 2, "luts": 1, "validate": 1, "jobs": 2,
        "campaigns": 1, "leases": 1,
    }  # fmt: skip  # what the guide has, at a glance


def start_agent(lab: Lab, words: list[str]) -> None:
    """Start an agent as the guide says, with folders of its own below the lab's."""
    env = {**lab.env, "LUTBUILDER_AGENT_STATE": str(lab.folder / "agents")}
    lab._started.append(
        subprocess.Popen(
            [sys.executable, "-m", "lutbuilder_agent", *words],
            env=env,
            cwd=lab.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )


def test_every_metric_the_guide_names_is_there(lab: Lab) -> None:
    text = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`?(lutbuilder_[a-z_]+)", text))
    assert named
    lab.serve()
    scraped = lab.scraped()
    assert not [name for name in named if f"# TYPE {name} " not in scraped]
