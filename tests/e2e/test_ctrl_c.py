"""Ctrl-C while a program starts ends it with status 130 and without a traceback, whatever it was just importing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lutbuilder_agent.errors import LutNotFound, Unreachable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECTS = {"lutbuilder": "pyproject.toml", "lutbuilder-agent": "agents/pyproject.toml"}
# Commands that get as far as they can, and the status they end with; and at how many imports each a double is made.
STARTS = {
    "lutbuilder": (("calibrate", "nothing"), LutNotFound.exit_status, 120),
    "lutbuilder-agent": (
        ("run", "--coordinator", "127.0.0.1:1", "--runtimes", "simulated", "--give-up-after", "0"),
        Unreachable.exit_status,
        40,
    ),
}

# What pip writes, behind a hook of the import machinery: at every so many imports the process is doubled, and the
# double gets Ctrl-C. So one start shows what becomes of it at several moments, however fast a machine is.
PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it switched off

class Interrupts:
    count = 0

    def find_spec(self, name, path=None, target=None):
        self.count += 1
        if self.count % {every} or len(sys._current_frames()) > 1:
            return None
        told = os.path.join({folder!r}, f"{{self.count:05}}-{{name}}")
        double = os.fork()
        if not double:
            out = os.open(told, os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
            return None
        status = os.waitstatus_to_exitcode(os.waitpid(double, 0)[1])
        os.rename(told, f"{{told}}-{{status}}")

sys.meta_path.insert(0, Interrupts())
from {module} import {function}
sys.exit({function}())
"""


def entry(root: Path, program: str) -> tuple[str, str]:
    """Return the module and the function that the installed program calls."""
    project = tomllib.loads((root / PROJECTS[program]).read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"][program].partition(":")
    return module, function


@pytest.mark.parametrize("program", PROJECTS)
def test_ctrl_c_at_any_moment_of_a_start_ends_it_without_a_traceback(program: str, root: Path, tmp_path: Path) -> None:
    module, function = entry(root, program)
    folder = tmp_path / "ended"
    folder.mkdir()
    words, status, every = STARTS[program]
    code = PROGRAM.format(every=every, folder=str(folder), module=module, function=function)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "LUTBUILDER_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**kept, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, "the start itself goes on: " + done.stderr
    ended = sorted(folder.iterdir())
    assert len(ended) >= 4, "a start imports more than that"
    for path in ended:
        told = path.read_text(encoding="utf-8")
        assert path.name.endswith(f"-{128 + signal.SIGINT}"), (path.name, told)
        assert "Traceback" not in told, (path.name, told)
        assert "ignored" not in told, (path.name, told)
