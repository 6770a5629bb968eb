"""How light lutbuilder is: start of a process, memory of an idle agent, size of an agent's installation.

    python benchmarks/bench_footprint.py [--runs 9] [--no-venv] [--json]

Every run is a fresh process; medians over the runs are printed beside their targets. The agent is measured as it waits
for work at a coordinator, before any runtime is loaded: in plaintext on loopback, and over TLS with the certificate it
has joined with. The virtual environment is built by pip in a temporary folder
from a copy of agents/, which needs a package index; --no-venv leaves it out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
TARGETS: Mapping[str, float] = {
    "import_lutbuilder_ms": 60.0,
    "help_ms": 300.0,
    "agent_rss_mb": 60.0,
    "agent_tls_rss_mb": 60.0,
    "agent_venv_mb": 60.0,
}
SAYS: Mapping[str, str] = {
    "python_ms": "python -c pass",
    "import_lutbuilder_ms": "import lutbuilder",
    "help_ms": "lutbuilder --help",
    "agent_rss_mb": "agent, waiting for work",
    "agent_tls_rss_mb": "agent, the same over TLS",
    "agent_venv_mb": "venv with lutbuilder-agent",
    "agent_venv_grpcio_mb": "  of which grpcio, protobuf",
    "agent_venv_pip_mb": "  of which pip, setuptools",
}
PARTS: Mapping[str, tuple[str, ...]] = {
    "agent_venv_grpcio_mb": ("grpc", "google"),
    "agent_venv_pip_mb": ("pip", "setuptools", "pkg_resources"),
}
_IMPORT = "import time; t = time.perf_counter(); import lutbuilder; print((time.perf_counter() - t) * 1e3)"
_HELP = "from lutbuilder.cli.main import main; main()"
_PATIENCE_S = 30.0


def environment() -> dict[str, str]:
    """The environment of every process measured: this checkout first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "agents")])}


def python(*words: str) -> str:
    """Run python and return its stdout."""
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True).stdout


def wall_ms(run: Callable[[], object]) -> float:
    """Return how long `run` took."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def agent_rss_mb(folder: Path, *, tls: bool) -> float:
    """Return the resident memory of an agent that has registered and waits for work, in MB (1e6 bytes)."""
    from lutbuilder.control.serve import ServeOptions, serving

    agent_program = [sys.executable, "-m", "lutbuilder_agent"]
    env = {**environment(), "XDG_CONFIG_HOME": str(folder / "config")}
    options = ServeOptions(
        luts=folder / "luts",
        listen="127.0.0.1:0",
        state_dir=folder / "state",
        metrics=None,
        join="127.0.0.1:0",
        tls=tls,
    )
    with serving(options) as running:
        name = ["--name", "bench"]
        if tls:
            join = [*agent_program, *running.join_line.split()[1:], *name]
            subprocess.run(join, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        command = [
            *agent_program, "run", "--coordinator", running.dial, *name, "--runtimes", "simulated",
            "--cache-dir", str(folder / "cache"), "--spool-dir", str(folder / "spool"),
        ]  # fmt: skip  # an option and its value share a line
        agent = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        try:
            until_s = time.monotonic() + _PATIENCE_S
            while not running.coordinator.agents():
                if time.monotonic() > until_s:
                    sys.exit("the agent did not register")
                time.sleep(0.05)
            time.sleep(0.5)  # it asks for work, and waits
            status = Path(f"/proc/{agent.pid}/status").read_text(encoding="ascii")
            resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
            return int(resident) * 1024 / 1e6
        finally:
            agent.terminate()
            agent.wait()


def disk_mb(folder: Path) -> float:
    """Return what a folder takes on disk, in MB."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) / 1e6


def agent_venv_mb(folder: Path) -> dict[str, float]:
    """Build a virtual environment with lutbuilder-agent and no runtime; return what it and its parts take on disk."""
    home, source = folder / "venv", folder / "agents"
    shutil.copytree(ROOT / "agents", source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(source)]
    subprocess.run(pip, check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    return {
        "agent_venv_mb": disk_mb(home),
        **{name: sum(map(disk_mb, (packages / part for part in parts))) for name, parts in PARTS.items()},
    }


def measure(runs: int, *, with_venv: bool) -> dict[str, float]:
    """Return every figure by name; the unit is in the name."""
    python("-c", _IMPORT), python("-c", _HELP, "--help")  # both are compiled now
    seen: dict[str, list[float]] = {name: [] for name in SAYS}
    with tempfile.TemporaryDirectory(prefix="lutbuilder-bench-") as scratch:
        for number in range(runs):
            seen["python_ms"].append(wall_ms(lambda: python("-c", "pass")))
            seen["import_lutbuilder_ms"].append(float(python("-c", _IMPORT)))
            seen["help_ms"].append(wall_ms(lambda: python("-c", _HELP, "--help")))
            for figure, tls in (("agent_rss_mb", False), ("agent_tls_rss_mb", True)):
                folder = Path(scratch) / f"{number}-{figure}"
                folder.mkdir()
                seen[figure].append(agent_rss_mb(folder, tls=tls))
        if with_venv:
            for name, size_mb in agent_venv_mb(Path(scratch)).items():
                seen[name].append(size_mb)
    return {name: median(values) for name, values in seen.items() if values}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="fresh processes of each kind, at least 5")
    parser.add_argument("--no-venv", action="store_true", help="do not build the virtual environment")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    runs = max(5, given.runs)
    figures = measure(runs, with_venv=not given.no_venv)
    if given.json:
        print(json.dumps({"runs": runs, **figures, "targets": TARGETS}))
        return
    print(f"medians of {runs} fresh processes each")
    for name, value in figures.items():
        unit = name.rpartition("_")[2].replace("mb", "MB")
        target = f"   target {TARGETS[name]:.0f} {unit}" if name in TARGETS else ""
        print(f"{SAYS[name]:<30} {value:8.1f} {unit}{target}")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "agents")]
    main()
