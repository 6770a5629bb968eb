"""The launch recipes do what docs/launch says, as far as that can be seen on one machine without the schedulers."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.desk import PATIENCE_S
from tests.fleet import Lab

RECIPES = ("systemd", "slurm", "kubernetes", "ray")


@pytest.fixture
def launch(root: Path) -> Path:
    return root / "examples" / "launch"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.clear()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH with the `lutbuilder-agent` of this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "lutbuilder-agent", f'exec {sys.executable} -m lutbuilder_agent "$@"\n')
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
    path.chmod(0o755)


def environ(lab: Lab, programs: Path, **more: str) -> dict[str, str]:
    home = lab.folder / "home"
    home.mkdir(exist_ok=True)
    return {**lab.env, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home), **more}


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def with_tls(lab: Lab) -> tuple[str, str]:
    """Start a coordinator with TLS; return a token for one agent, and the CA's pin."""
    lab.serve("--tls", "--join", "127.0.0.1:0")
    words = lab.told["join_line"].split()
    return words[words.index("--token") + 1], words[words.index("--ca") + 1]


# --- all of them


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_was_tried_and_what_was_not(root: Path, recipe: str) -> None:
    text = (root / "docs" / "launch" / f"{recipe}.md").read_text(encoding="utf-8")
    assert "## Tried, and not tried" in text
    named = set(re.findall(r"examples/launch/([\w./-]+\w)", text))
    assert any(name.startswith(recipe) for name in named)
    assert [name for name in named if not (root / "examples" / "launch" / name).exists()] == []


def test_agents_listen_nowhere(launch: Path) -> None:
    """No recipe opens a port on a node: agents dial out."""
    for path in launch.rglob("*"):
        if path.is_file() and path.suffix != ".py" and "serve" not in path.name:
            told = path.read_text(encoding="utf-8")
            assert "hostPort" not in told, path
            assert "hostNetwork" not in told, path
    manifest = [part for part in yaml.safe_load_all((launch / "kubernetes" / "lutbuilder.yaml").read_text()) if part]
    (agents,) = (part for part in manifest if part["kind"] == "DaemonSet")
    assert all("ports" not in container for container in agents["spec"]["template"]["spec"]["containers"])


# --- agent.sh


def test_the_script_of_a_node_joins_once_and_runs_under_its_name(
    lab: Lab, launch: Path, programs: Path, tmp_path: Path
) -> None:
    token, ca = with_tls(lab)
    (tmp_path / "token").write_text(token, encoding="utf-8")
    joining = environ(
        lab,
        programs,
        LUTBUILDER_COORDINATOR=lab.address,
        LUTBUILDER_JOIN=lab.told["join"],
        LUTBUILDER_CA=ca,
        LUTBUILDER_TOKEN_FILE=str(tmp_path / "token"),
        LUTBUILDER_AGENT_NAME="node-1",
        LUTBUILDER_AGENT_STATE=str(tmp_path / "agent"),
    )
    command = [str(launch / "agent.sh"), "--exit-when-idle", "--runtimes", "simulated"]
    for turn in ("joins", "is known"):
        done = subprocess.run(command, env=joining, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        assert ("joined as node-1" in done.stdout) == (turn == "joins")
        assert token not in done.stdout + done.stderr
    with lab.store() as store:
        assert [agent.name for agent in store.agents()] == ["node-1"]


def test_the_script_of_a_node_says_what_it_lacks(launch: Path, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run([launch / "agent.sh"], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "LUTBUILDER_COORDINATOR: say where the coordinator is, HOST:PORT" in done.stderr


# --- systemd

HARDENED = ("NoNewPrivileges", "ProtectKernelModules", "ProtectKernelTunables", "PrivateTmp", "LockPersonality")


def unit(path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # systemd's names are case-sensitive
    parser.read(path, encoding="utf-8")
    return {name: dict(parser[name]) for name in parser.sections()}


@pytest.mark.parametrize("name", ["lutbuilder-serve", "lutbuilder-agent"])
def test_units_are_hardened_restart_and_name_options_that_exist(launch: Path, name: str, root: Path) -> None:
    service = unit(launch / "systemd" / f"{name}.service")["Service"]
    assert all(service[option] == "yes" for option in HARDENED)
    assert (service["ProtectSystem"], service["Restart"], service["CapabilityBoundingSet"]) == ("strict", "always", "")
    assert service["User"] != "root"
    words = service["ExecStart"].split()
    program = ["lutbuilder.cli.main"] if words[0].endswith("/lutbuilder") else ["lutbuilder_agent"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")]), "COLUMNS": "200"}
    start = [sys.executable, "-c", "from lutbuilder.cli.main import main; main()"]
    start = start if program == ["lutbuilder.cli.main"] else [sys.executable, "-m", *program]
    told = subprocess.run([*start, words[1], "--help"], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert [word for word in words if word.startswith("--") and word not in told.stdout] == []


def test_systemd_itself_finds_nothing_wrong_with_the_units(launch: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is missing: install the package systemd")
        pytest.skip("no systemd-analyze on this machine")
    copies = []
    for path in sorted((launch / "systemd").glob("*.service")):
        copy = tmp_path / path.name  # the program has to be there for systemd to be content
        copy.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(encoding="utf-8")))
        copies.append(str(copy))
    assert len(copies) == 2
    done = subprocess.run([analyze, "verify", *copies], capture_output=True, text=True, timeout=60, check=False)
    ours = [line for line in done.stderr.splitlines() if "lutbuilder-" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


# --- Slurm: what a real one does with it is in test_slurm.py


def test_a_slurm_job_says_what_it_lacks(launch: Path, tmp_path: Path) -> None:
    batch = launch / "slurm" / "agents.sbatch"
    assert subprocess.run(["bash", "-n", batch], check=False).returncode == 0
    for env, told in (
        ({}, "LUTBUILDER_COORDINATOR=lab:7070 agents.sbatch"),
        (
            {"LUTBUILDER_COORDINATOR": "lab:7070", "SLURM_SUBMIT_DIR": str(tmp_path)},
            "set LUTBUILDER_AGENT_SH to its path",
        ),
    ):
        done = subprocess.run(
            ["bash", batch],
            env={"PATH": os.environ["PATH"], **env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode != 0
        assert told in done.stderr


# --- Kubernetes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of kubernetes-validate, not ours
@pytest.mark.parametrize("name", ["lutbuilder.yaml", "gpu-job.yaml"])
def test_manifests_are_what_kubernetes_knows(launch: Path, name: str) -> None:
    import kubernetes_validate

    parts = [part for part in yaml.safe_load_all((launch / "kubernetes" / name).read_text(encoding="utf-8")) if part]
    assert parts
    for part in parts:
        kubernetes_validate.validate(part, "1.37", strict=True)
    broken = {**parts[-1], "spec": {**parts[-1]["spec"], "nodeSelektor": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def pods(launch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in (launch / "kubernetes").glob("*.yaml"):
        for part in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if part and part["kind"] in ("Deployment", "DaemonSet", "Job"):
                yield part["kind"], part["spec"]["template"]["spec"]


def test_pods_keep_secrets_in_secrets_and_run_with_no_rights(launch: Path) -> None:
    kinds = []
    for kind, pod in pods(launch):
        kinds.append(kind)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if kind == "Deployment":
            continue
        assert pod["nodeSelector"]
        known = {each["name"]: each for each in container["env"]}
        assert known["LUTBUILDER_AGENT_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
        (secret,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
        assert secret["secretName"] == known["LUTBUILDER_CA"]["valueFrom"]["secretKeyRef"]["name"] == "join"
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert all(limits[name] == amount for name, amount in requests.items()), "Guaranteed: nobody else on its CPUs"
    assert sorted(kinds) == ["DaemonSet", "Deployment", "Job"]


# --- Ray


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first run installs Ray
def test_a_ray_script_joins_from_a_node_that_matches_and_ends_its_agent_gently(
    lab: Lab, launch: Path, programs: Path, root: Path, tmp_path: Path
) -> None:
    built = subprocess.run(
        [sys.executable, root / "tools" / "ray_venv.py"], capture_output=True, text=True, timeout=480, check=False
    )
    assert built.returncode == 0, built.stderr
    python = Path(built.stdout.strip())
    token, ca = with_tls(lab)
    (tmp_path / "token").write_text(f"{token}\n", encoding="utf-8")
    short = Path("/tmp") / f"lb-ray-{os.getpid()}"  # Ray's sockets lie below it, and their paths must be short
    env = environ(lab, programs, RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    ray = [
        str(python.with_name("ray")), "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", "0",
        "--num-cpus", "2", "--resources", '{"measure": 1}', "--include-dashboard", "false", "--disable-usage-stats",
        "--object-store-memory", "80000000", "--temp-dir", str(short),
    ]  # fmt: skip  # a command line
    head = subprocess.Popen(ray, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    job = [
        str(python), str(launch / "ray" / "agents.py"), "--coordinator", lab.address, "--join", lab.told["join"],
        "--ca", ca, "--token-file", str(tmp_path / "token"), "--cpus", "1", "--prefix", "ray",
        "--resource", "measure=1", "--", "--runtimes", "simulated",
    ]  # fmt: skip  # a command line

    def known() -> list[tuple[str, str]]:
        with lab.store() as store:
            return [(agent.name, agent.session_id) for agent in store.agents()]

    try:
        until((short / "ray_current_cluster").exists)
        env["RAY_ADDRESS"] = (short / "ray_current_cluster").read_text(encoding="utf-8").strip()
        done = subprocess.run(
            [*job, "--exit-when-idle"], env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"ray-\S+ ended with 0", done.stdout), done.stdout
        assert token not in done.stdout + done.stderr
        ((name, first),) = known()
        assert name.startswith("ray-")

        # The token is used up: the node goes in with the certificate it has. Then as `ray job stop` ends it.
        running = subprocess.Popen(job, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            until(lambda: running.poll() is not None or known() != [(name, first)])
            running.terminate()
            said, _ = running.communicate(timeout=PATIENCE_S)
        finally:
            running.kill()
            running.wait()
        assert running.returncode == 130, said
        assert f"told to end; the agents ended with {128 + signal.SIGTERM}" in said
    finally:
        head.terminate()
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(short, ignore_errors=True)
