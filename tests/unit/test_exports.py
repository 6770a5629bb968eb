"""What importing gives and costs: names match reality, and nothing heavy comes along."""

from __future__ import annotations

import importlib
import json
import pkgutil

import pytest

import lutbuilder
import lutbuilder_agent
from lutbuilder_agent.errors import MissingExtra

HEAVY = ("torch", "grpc", "pandas", "pyarrow", "numpy", "scipy", "sqlalchemy", "onnx", "onnxruntime", "rich", "typer")
# torch and the engines may be loaded by the module of that engine alone; pandas and pyarrow by none.
ENGINES = {
    "lutbuilder_agent.runtimes.torchrt",
    "lutbuilder_agent.runtimes.onnxrt",
    "lutbuilder_agent.runtimes.litert",
}

LOADED = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def modules(package) -> list[str]:
    """Every module of a package by name, the package first."""
    found = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    return [package.__name__, *found]


def test_importing_lutbuilder_loads_nothing_heavy(fresh_python):
    loaded = set(json.loads(fresh_python(f"import lutbuilder; {LOADED}")))
    assert loaded.isdisjoint(HEAVY)


def test_the_command_line_starts_without_anything_heavy(fresh_python):
    loaded = set(json.loads(fresh_python(f"import lutbuilder.cli.main; {LOADED}")))
    assert loaded.isdisjoint(set(HEAVY) - {"typer"})


def test_no_agent_module_loads_pandas_pyarrow_or_torch(fresh_python):
    names = [name for name in modules(lutbuilder_agent) if not name.endswith("__main__")]
    code = f"""
import importlib, json, sys
culprits = {{}}
for name in {names!r}:
    before = set(sys.modules)
    importlib.import_module(name)
    new = {{module.partition(".")[0] for module in set(sys.modules) - before}}
    heavy = sorted(new & {{"pandas", "pyarrow", "torch"}})
    if heavy:
        culprits[name] = heavy
print(json.dumps(culprits))
"""
    assert json.loads(fresh_python(code)) == {}


def test_the_agent_never_loads_lutbuilder(fresh_python):
    names = [name for name in modules(lutbuilder_agent) if not name.endswith("__main__")]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)\n{LOADED}"
    assert "lutbuilder" not in json.loads(fresh_python(code))


@pytest.mark.parametrize("name", lutbuilder.__all__)
def test_every_public_name_is_there(name):
    assert getattr(lutbuilder, name) is not None
    assert name in dir(lutbuilder)


@pytest.mark.parametrize("name", [*modules(lutbuilder), *modules(lutbuilder_agent)])
def test_all_matches_reality(name):
    if name.endswith(("__main__", "migrations.env")):  # a program's start; what alembic runs, and only it can
        assert importlib.util.find_spec(name) is not None
        return
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert sorted(set(listed)) == sorted(listed)
    assert [missing for missing in listed if not hasattr(module, missing)] == []


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Latency'"):
        lutbuilder.Latency  # noqa: B018  # the access is the test


def test_expected_latency_without_torch_says_what_to_install(fresh_python):
    code = """
import sys
sys.modules["torch"] = None  # what an import of a missing package does
from lutbuilder_agent.errors import MissingExtra
try:
    from lutbuilder import ExpectedLatency
except MissingExtra as error:
    print(error)
"""
    assert fresh_python(code) == "lutbuilder.ExpectedLatency needs torch: pip install 'lutbuilder[torch]'"
    assert issubclass(MissingExtra, ImportError)
