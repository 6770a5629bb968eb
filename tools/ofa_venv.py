"""Build the environment in which the stock `ofa` package runs as its authors released it; print its Python.

    $(python tools/ofa_venv.py) -I my_script.py     # there `import ofa` works; -I: whatever PYTHONPATH says

`ofa` calls `yaml.load` without a loader, which PyYAML 6 refuses, so it gets PyYAML 5 and an environment of its own;
torch and numpy come from the environment that runs this. What it imports and never uses to predict a latency
(torchvision, PIL, gdown, a module that torch dropped) is stubbed; nothing of the package itself is patched. Built once,
under .venv-ofa in the checkout unless --cache names another folder, and again when anything it is made of changes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ofa==0.1.0.post202307202001", "PyYAML==5.3.1")
STUBS = '''"""Modules that ofa imports and prediction never calls: any name in them is an empty class."""

import importlib.machinery
import sys
import types


class _Stub(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


def _stub(name):
    module = _Stub(name)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)


for _name in (
    "PIL", "PIL.Image", "gdown", "torchvision", "torchvision.transforms", "torchvision.transforms.functional",
    "torchvision.datasets", "torch._six",
):
    _stub(_name)
sys.modules["torch._six"].string_classes = (str, bytes)
'''


def main() -> int:
    """Build what is not there yet and print the path of the environment's Python."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-ofa", help="folder of the environment")
    cache = parser.parse_args().cache.absolute()
    if importlib.util.find_spec("torch") is None:
        print("ofa needs torch: pip install 'lutbuilder[torch]'", file=sys.stderr)
        return 69
    print(build(cache))
    return 0


def build(cache: Path) -> Path:
    """Return the Python of the environment in `cache`; safe from several processes at once."""
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / "env"
    python = home / "bin" / "python"
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    made_of = hashlib.sha256(repr((PACKAGES, STUBS, outer, sys.version)).encode()).hexdigest()
    stamp = home / "made-of"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == made_of:
            return python
        venv.create(home, clear=True, with_pip=False, symlinks=True)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        inner = home / "lib" / version / "site-packages"
        # Without its C extension, which compiles on old Pythons only and would be tried wherever libyaml's headers are.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--use-pep517", "--config-settings=--global-option=--without-libyaml", "--target", str(inner)]
        done = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"cannot install {' and '.join(PACKAGES)}:\n{done.stdout}{done.stderr}")
        (inner / "ofa_stubs.py").write_text(STUBS, encoding="utf-8")
        (inner / "ofa_stubs.pth").write_text("\n".join(["import ofa_stubs", *outer]), encoding="utf-8")
        stamp.write_text(made_of, encoding="utf-8")
    return python


if __name__ == "__main__":
    sys.exit(main())
