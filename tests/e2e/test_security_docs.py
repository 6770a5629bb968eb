"""docs/security.md is true: its commands run in the order they are written, and its files are where it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_join_process import LabDesk

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
LINES = tuple(
    line
    for block in re.findall(r"^```\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[LabDesk]:
    made = LabDesk(tmp_path / "desk")
    made.install()
    yield made
    made.clear()


def test_the_commands_of_the_guide_run_as_written(desk: LabDesk) -> None:
    first, *others = LINES
    assert first == "lutbuilder serve --listen 0.0.0.0:7070 --advertise lab"
    lab = desk.serve("--advertise", "127.0.0.1")  # the same on loopback, on free ports
    for line in others:
        ended = desk.type_in(typed(line, lab, desk))
        assert ended.status == 0, f"{line}\n{ended.out}{ended.err}"
    assert len(others) == 14
    (identity,) = (desk.folder / "config" / "lutbuilder" / "coordinators").glob("*/agents/bench-pi/identity.pem")
    assert identity.parents[2].name == lab["dial"].replace(":", "_")
    assert (identity.parents[2] / "control" / "identity.pem").exists()
    assert len(list((desk.state / "trust").glob("ca-*.pem"))) == 2  # the last command was a rotation
    assert (desk.state / "trust" / "server.pem").exists()


def typed(line: str, lab: dict, desk: LabDesk) -> str:
    """The line with this lab's addresses, and with a real token where the guide has dots."""
    words = shlex.split(line)
    if "--token" in words:
        role = words[words.index("--role") + 1] if "--role" in words else "agent"
        issued = desk.type_in(f"lutbuilder security token --role {role} --json").json
        line = line.replace("ABCD-EFGH-...", issued["token"]).replace("sha256:...", issued["ca"])
    if words[:2] == ["lutbuilder-agent", "run"]:
        line += " --exit-when-idle --runtimes simulated"
    return line.replace("lab:7070", lab["dial"]).replace("lab:7072", lab["join"])


def test_every_option_the_guide_names_exists(desk: LabDesk) -> None:
    helps = "".join(
        desk.type_in(line).out
        for line in (
            "lutbuilder serve --help",
            "lutbuilder agents --help",
            "lutbuilder-agent run --help",
            *(f"lutbuilder security {command} --help" for command in ("token", "join", "revoke", "rotate")),
        )
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert {option for option in named if option not in helps} == set()


def test_the_guide_names_every_role_and_every_file_of_trust() -> None:
    from lutbuilder_agent.wire.join_api import ROLES

    assert all(f"| {role} |" in TEXT for role in ROLES)
    for target in re.findall(r"`((?:lutbuilder|tests)/[\w/]+\.py)`", TEXT):
        assert (ROOT / target).exists(), target
