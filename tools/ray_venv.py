"""Build an environment with Ray for the test of its launch recipe; print its Python.

    $(python tools/ray_venv.py) examples/launch/ray/agents.py --help

Ray pins much and is large, so it is no dependency of ours. Built once, under .venv-ray in the checkout unless --cache
names another folder, and again when its version changes.
"""

from __future__ import annotations

import argparse
import fcntl
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ray==2.60.0"


def main() -> int:
    """Build what is not there yet and print the path of the environment's Python."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-ray", help="folder of the environment")
    print(build(parser.parse_args().cache.absolute()))
    return 0


def build(cache: Path) -> Path:
    """Return the Python of the environment in `cache`; safe from several processes at once."""
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / "env"
    python, stamp = home / "bin" / "python", home / "made-of"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == PACKAGE:
            return python
        venv.create(home, clear=True, with_pip=True, symlinks=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"cannot install {PACKAGE}:\n{done.stdout}{done.stderr}")
        stamp.write_text(PACKAGE, encoding="utf-8")
    return python


if __name__ == "__main__":
    sys.exit(main())
