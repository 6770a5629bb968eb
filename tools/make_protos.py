"""Regenerate agents/lutbuilder_agent/wire/*_pb2* from protos/; with --check, only say whether they are fresh.

Generated Python imports follow the proto path, and ours must say `from lutbuilder_agent.wire import ...`. So the protos
are copied to a scratch tree shaped like the package, and the `import` lines of those copies are adjusted; the output is
committed as generated, never patched. Run it with an interpreter that has the pinned grpcio-tools (`make protos` does).
The pin is the lowest grpcio we support: generated code refuses older runtimes, not newer ones.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

PIN = "1.64.0"
ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos" / "lutbuilder" / "v1"
PACKAGE = Path("lutbuilder_agent") / "wire"
COMMITTED = ROOT / "agents" / PACKAGE


def scratch_text(text: str) -> str:
    """Return a proto's text with its import lines pointing at the package the generated code lives in."""
    return text.replace('import "lutbuilder/v1/', f'import "{PACKAGE.as_posix()}/')


def generate(folder: Path) -> Path:
    """Generate into `folder` and return where the modules are. Raises CalledProcessError if protoc refuses a proto."""
    source, output = folder / "protos", folder / "python"
    (source / PACKAGE).mkdir(parents=True)
    output.mkdir()
    for proto in sorted(PROTOS.glob("*.proto")):
        (source / PACKAGE / proto.name).write_text(scratch_text(proto.read_text(encoding="utf-8")), encoding="utf-8")
    names = [str(path.relative_to(source)) for path in sorted((source / PACKAGE).iterdir())]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{source}"]
        + [f"--{plugin}_out={output}" for plugin in ("python", "pyi", "grpc_python")]
        + names,
        check=True,
    )
    return output / PACKAGE


def generated(folder: Path) -> dict[str, str]:
    """Return the text of every generated module in `folder`, by file name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*_pb2*.py*"))}


def stale(fresh: dict[str, str], committed: dict[str, str]) -> list[str]:
    """Return the lines of a diff from what is committed to what the protos give; empty when fresh."""
    lines: list[str] = []
    for name in sorted({*fresh, *committed}):
        before, after = committed.get(name, "").splitlines(), fresh.get(name, "").splitlines()
        lines += difflib.unified_diff(before, after, f"committed/{name}", f"fresh/{name}", n=1, lineterm="")
    return lines


def main() -> int:
    """Write, or check, the generated modules. Exit status 1: stale; 2: wrong or missing grpcio-tools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the committed code is stale")
    check: bool = parser.parse_args().check
    try:
        found = importlib.metadata.version("grpcio-tools")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != PIN:
        print(f"grpcio-tools {PIN} is needed, found {found}: make protos (or pip install grpcio-tools=={PIN})")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generated(generate(Path(scratch)))
    committed = generated(COMMITTED)
    if check:
        diff = stale(fresh, committed)
        print(
            "\n".join([*diff, "generated wire code is stale: make protos"]) if diff else "generated wire code is fresh"
        )
        return 1 if diff else 0
    for name in committed.keys() - fresh.keys():
        (COMMITTED / name).unlink()
    for name, text in fresh.items():
        (COMMITTED / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(fresh)} modules to {COMMITTED.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
