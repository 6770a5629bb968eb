"""The house itself: packaging, pins, documents and examples say what is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lutbuilder
import lutbuilder_agent
from lutbuilder import devices
from lutbuilder.campaign.spec import Target
from lutbuilder.lut import LutMeta, Row, publish
from lutbuilder.spaces import get
from lutbuilder_agent.graph import Layer, LayerGraph
from lutbuilder_agent.records import Fingerprint, Plan

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def project(root) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def agent_project(root) -> dict:
    return tomllib.loads((root / "agents" / "pyproject.toml").read_text(encoding="utf-8"))


def requirement(lines: list[str], name: str) -> str:
    """The version part of a requirement, e.g. ">=1.64"."""
    found = [line for line in lines if re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0] == name]
    assert len(found) == 1, f"{name} is required {len(found)} times in {lines}"
    return re.sub(r"^[A-Za-z0-9_.-]+(\[[^]]*\])?", "", found[0]).partition(";")[0].strip()


# --- Packaging


def test_the_agent_requires_two_packages_without_upper_pins(agent_project):
    required = agent_project["project"]["dependencies"]
    assert {re.split(r"[<>=]", line)[0] for line in required} == {"grpcio", "protobuf"}
    assert all(re.fullmatch(r"[a-z]+>=[0-9.]+", line) for line in required)


def test_both_distributions_are_of_one_version_and_the_root_pins_the_agent(project):
    assert lutbuilder.__version__ == lutbuilder_agent.__version__
    assert requirement(project["project"]["dependencies"], "lutbuilder-agent") == f"=={lutbuilder_agent.__version__}"


def test_the_base_does_not_pull_torch(project, agent_project):
    for lines in (project["project"]["dependencies"], agent_project["project"]["dependencies"]):
        assert not any(line.startswith("torch") for line in lines)
        assert not any("[torch]" in line for line in lines)


def test_both_distributions_support_the_same_pythons(project, agent_project):
    assert project["project"]["requires-python"] == agent_project["project"]["requires-python"] == ">=3.10,<3.15"


def test_every_runtime_extra_exists_in_the_agent(agent_project):
    from lutbuilder_agent.runtimes import RUNTIMES

    extras = {entry.extra for entry in RUNTIMES.values() if entry.extra}
    assert extras <= set(agent_project["project"]["optional-dependencies"])


def test_generated_code_is_made_with_the_oldest_grpc_the_agent_supports(root, agent_project):
    pin = re.search(
        r'^PIN = "([0-9.]+)"', (root / "tools" / "make_protos.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    lowest = requirement(agent_project["project"]["dependencies"], "grpcio").removeprefix(">=")
    assert pin is not None
    assert pin[1] == f"{lowest}.0"


def test_package_data_is_named(project):
    assert "devices/*.toml" in project["tool"]["setuptools"]["package-data"]["lutbuilder"]


def test_every_package_is_found_and_agents_is_not_one(root, project):
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert include == ["lutbuilder", "lutbuilder.*"]
    for package in (root / "lutbuilder", root / "agents" / "lutbuilder_agent"):
        folders = {path.parent for path in package.rglob("*.py")}
        assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_make_installs_torch_first_and_by_its_version(root):
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    rule = makefile[makefile.index("$(VENV)/.dev:") :].splitlines()
    assert "torch==$(TORCH)" in rule[1]
    assert "[dev]" in rule[2]
    assert re.search(r"^TORCH +:= 2\.13\.0$", makefile, flags=re.MULTILINE)


# --- Documents


def test_no_text_names_a_machine_of_ours_or_a_registry(root):
    forbidden = re.compile(
        r"(?<![\w.])/(work|root)/|pypi\.org|files\.pythonhosted|registry\.npmjs|--(extra-)?index-url"
    )
    folders = ("agents", "lutbuilder", "docs", "examples", "tools", "protos", "benchmarks", ".ci", "tests")
    found = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    texts = [path for path in found if path.suffix in {".py", ".md", ".toml", ".proto", ".sh", ""}]
    texts += [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")]
    assert len(texts) > 50
    this = Path(__file__).resolve()
    guilty = [str(path) for path in texts if path != this and forbidden.search(path.read_text(encoding="utf-8"))]
    assert guilty == []


def snippets(path: Path, language: str) -> list[str]:
    """The fenced code blocks of a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_snippets_of_contributing_run(root):
    code = snippets(root / "CONTRIBUTING.md", "python")
    assert len(code) == 4
    names: dict = {}
    for number, snippet in enumerate(code):
        exec(compile(snippet, f"CONTRIBUTING.md snippet {number}", "exec"), names)
    graph = LayerGraph(batch=1, in_channels=2, height=8, width=8, layers=(Layer(kind="identity", inputs=(0,)),))
    abacus = names["Abacus"](threads=1, options={})
    assert abacus.prepare(graph.to_bytes(), instance=0).timed_call() > 0
    assert names["line"]["abacus"].extra == "abacus"


def test_the_device_snippet_of_contributing_reads(root):
    (text,) = snippets(root / "CONTRIBUTING.md", "toml")
    assert devices.parse("example", text).agent_lines("lab:7070") == ("lutbuilder-agent run --coordinator lab:7070",)


def test_the_readme_names_every_device_and_promises_none_that_was_not_tried(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## What is supported") : readme.index("<!-- measured:begin -->")]
    for name in devices.names():
        device = devices.get(name)
        word = {"jetson-orin": "Jetson Orin", "pixel1": "Pixel 1", "cpu": "CPU"}.get(name, name)
        lines = [line for line in table.splitlines() if word.lower() in line.lower() and line.startswith("|")]
        assert lines, f"README's support table lacks {name}"
        if device.evidence.startswith("not verified"):
            assert all(device.evidence in line for line in lines)


def test_links_in_the_documents_lead_somewhere(root):
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (root / name).read_text(encoding="utf-8")):
            assert target.startswith("https://") or (root / target).exists(), f"{name} links to {target}"


def test_decisions_are_numbered_without_gaps(root):
    numbers = sorted(int(path.name[:4]) for path in (root / "docs" / "decisions").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


# --- Examples


@pytest.fixture(scope="module")
def proxyless_lut(tmp_path_factory) -> Path:
    """A table of the whole space whose latencies are made up from MACs, as no device gave them."""
    from lutbuilder.lower import lower

    target = Target(device="made-up", runtime="simulated")
    meta = LutMeta(
        target=target,
        fingerprint=Fingerprint(device="made-up", facts=()),
        runtime_version="1",
        plan=Plan(runtime="simulated"),
        tool_version=lutbuilder.__version__,
        created="2025-01-31T12:00:00Z",
        spaces=("proxyless",),
    )
    ops = get("proxyless").ops()
    rows = [Row.of(op, latency_ms=0.02 + lower(op).macs / 4e7, call_overhead_ms=0.01) for op in ops]
    return publish(rows, meta, folder=tmp_path_factory.mktemp("luts")).path


def run_script(root: Path, *words: str) -> str:
    path = os.pathsep.join([str(root), str(root / "agents")])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test(root):
    assert {path.name for path in (root / "examples").glob("*.py")} == {"accuracy_by_size.py", "search_proxyless.py"}


def test_the_search_example_meets_its_target(root, proxyless_lut):
    out = run_script(
        root, str(root / "examples" / "search_proxyless.py"), str(proxyless_lut), "--target-ms", "6", "--steps", "150"
    )
    predicted = re.search(r"^predicted ([0-9.]+) ms for a target of 6 ms$", out, flags=re.MULTILINE)
    assert predicted is not None
    assert 3.0 < float(predicted[1]) < 6.6
    assert len(re.findall(r"^layer\d+ +(k[357]e[36]|zero)$", out, flags=re.MULTILINE)) == 21


def test_the_first_search_code_of_the_readme_runs(root, proxyless_lut, monkeypatch):
    (code,) = snippets(root / "README.md", "python")
    names: dict = {}
    exec(compile(code.replace("luts/<device>/onnxruntime-fp32-bs1", str(proxyless_lut)), "README.md", "exec"), names)
    assert names["expected_ms"].item() > 0
    assert names["logits"].grad.abs().sum().item() > 0
