"""The committed wire code says what the protos say, and every field of the protos is explained."""

from __future__ import annotations

import importlib.util
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from lutbuilder.control import control_pb2
from lutbuilder_agent.wire import agent_pb2, join_pb2, measure_pb2

ROOT = Path(__file__).resolve().parents[2]
PROTOS = {
    "agent.proto": agent_pb2,
    "control.proto": control_pb2,
    "join.proto": join_pb2,
    "measure.proto": measure_pb2,
}
FIELD = re.compile(r"^  (?:repeated |optional )?([\w.]+) (\w+) = (\d+);$", re.MULTILINE)
MEMBER = re.compile(r"^  ([A-Z][A-Z0-9_]+) = (\d+);$", re.MULTILINE)
BLOCK = re.compile(r"^(message|enum) (\w+) \{(?:\n(.*?)^)?\}", re.MULTILINE | re.DOTALL)


def _text(name: str) -> str:
    return (ROOT / "protos" / "lutbuilder" / "v1" / name).read_text(encoding="utf-8")


def _make_protos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_protos", ROOT / "tools" / "make_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_proto_is_checked_here() -> None:
    assert {path.name for path in (ROOT / "protos").rglob("*.proto")} == set(PROTOS)


@pytest.mark.parametrize("name", PROTOS)
def test_the_generated_code_has_the_fields_and_members_of_its_proto(name: str) -> None:
    """Needs no protoc, so `make test` sees a forgotten `make protos`; `make check` compares the files themselves."""
    descriptor = PROTOS[name].DESCRIPTOR
    messages, enums = {}, {}
    for kind, block, body in BLOCK.findall(_text(name)):
        if kind == "message":
            messages[block] = {(field, int(number)) for _, field, number in FIELD.findall(body)}
        else:
            enums[block] = {(member, int(number)) for member, number in MEMBER.findall(body)}
    assert messages == {
        message.name: {(field.name, field.number) for field in message.fields}
        for message in descriptor.message_types_by_name.values()
    }
    assert enums == {
        enum.name: {(value.name, value.number) for value in enum.values}
        for enum in descriptor.enum_types_by_name.values()
    }


@pytest.mark.parametrize("name", PROTOS)
def test_every_line_of_a_proto_that_declares_something_has_a_comment_above(name: str) -> None:
    lines = _text(name).splitlines()
    declares = re.compile(r"\s*(message|enum|service|rpc)\b|\s+[\w. ]+ = \d+;")
    bare = [line for above, line in pairwise(lines) if declares.match(line) and not above.strip().startswith("//")]
    assert bare == []


def test_generated_imports_point_into_the_packages() -> None:
    tool = _make_protos()
    assert tool.scratch_text('import "lutbuilder/v1/measure.proto";') == 'import "lutbuilder_agent/wire/measure.proto";'
    assert tool.scratch_text('import "lutbuilder/v1/control.proto";') == 'import "lutbuilder/control/control.proto";'
    assert "from lutbuilder_agent.wire import measure_pb2" in Path(agent_pb2.__file__).read_text(encoding="utf-8")


def test_the_agent_carries_nothing_that_only_people_call() -> None:
    wire = ROOT / "agents" / "lutbuilder_agent" / "wire"
    assert not [path for path in wire.glob("*_pb2*") if b"ControlService" in path.read_bytes()]
    assert _make_protos().package("control.proto") == Path("lutbuilder/control")


def test_staleness_shows_as_a_diff_in_both_directions() -> None:
    tool = _make_protos()
    assert tool.stale({"a_pb2.py": "x = 1\n"}, {"a_pb2.py": "x = 1\n"}) == []
    assert "+x = 2" in tool.stale({"a_pb2.py": "x = 2\n"}, {"a_pb2.py": "x = 1\n"})
    assert "-x = 1" in tool.stale({}, {"gone_pb2.py": "x = 1\n"})


def test_the_pinned_generator_is_the_lowest_grpcio_the_agent_allows() -> None:
    project = (ROOT / "agents" / "pyproject.toml").read_text(encoding="utf-8")
    (lowest,) = re.findall(r'"grpcio>=([\d.]+)', project)
    assert _make_protos().PIN in (lowest, f"{lowest}.0")
