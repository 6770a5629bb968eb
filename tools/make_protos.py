"""Regenerate the *_pb2* modules from protos/; with --check, only say whether they are fresh.

What agents speak is generated into agents/lutbuilder_agent/wire/, what only the coordinator's side speaks into
lutbuilder/control/: the agent does not grow by it. Generated Python imports follow the proto path, and ours must say
`from lutbuilder_agent.wire import ...`. So the protos are copied to a scratch tree shaped like the packages, and the
`import` lines of those copies are adjusted; the output is committed as generated, never patched. Run it with an
interpreter that has the pinned grpcio-tools (`make protos` does).
The pin is the lowest grpcio we support: generated code refuses older runtimes, not newer ones.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PIN = "1.64.0"
ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos" / "lutbuilder" / "v1"
WIRE, CONTROL = Path("lutbuilder_agent/wire"), Path("lutbuilder/control")
COMMITTED = {WIRE: ROOT / "agents" / WIRE, CONTROL: ROOT / CONTROL}  # package -> where its generated code is kept
ELSEWHERE: Mapping[str, Path] = {"control.proto": CONTROL}  # all others are part of the agent


def package(proto: str) -> Path:
    """Return the package that a proto's generated code lives in."""
    return ELSEWHERE.get(proto, WIRE)


def scratch_text(text: str) -> str:
    """Return a proto's text with its import lines pointing at the packages the generated code lives in."""
    return re.sub(
        r'^import "lutbuilder/v1/(\w+\.proto)"',
        lambda found: f'import "{package(found[1]).as_posix()}/{found[1]}"',
        text,
        flags=re.MULTILINE,
    )


def generate(folder: Path) -> Path:
    """Generate into `folder` and return its root. Raises CalledProcessError if protoc refuses a proto."""
    source, output = folder / "protos", folder / "python"
    output.mkdir()
    for proto in sorted(PROTOS.glob("*.proto")):
        copy = source / package(proto.name) / proto.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(scratch_text(proto.read_text(encoding="utf-8")), encoding="utf-8")
    names = [str(path.relative_to(source)) for path in sorted(source.rglob("*.proto"))]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{source}"]
        + [f"--{plugin}_out={output}" for plugin in ("python", "pyi", "grpc_python")]
        + names,
        check=True,
    )
    return output


def generated(folders: Mapping[Path, Path]) -> dict[str, str]:
    """Return the text of every generated module, by its name with its package; `folders` says where packages are."""
    return {
        (name / path.name).as_posix(): path.read_text(encoding="utf-8")
        for name, folder in folders.items()
        for path in sorted(folder.glob("*_pb2*.py*"))
    }


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
        root = generate(Path(scratch))
        fresh = generated({name: root / name for name in COMMITTED})
    committed = generated(COMMITTED)
    if check:
        diff = stale(fresh, committed)
        print(
            "\n".join([*diff, "generated wire code is stale: make protos"]) if diff else "generated wire code is fresh"
        )
        return 1 if diff else 0
    for name in committed.keys() - fresh.keys():
        _place(name).unlink()
    for name, text in fresh.items():
        _place(name).write_text(text, encoding="utf-8")
    print(f"wrote {len(fresh)} modules to {' and '.join(str(f.relative_to(ROOT)) for f in COMMITTED.values())}")
    return 0


def _place(name: str) -> Path:
    """Return where a generated module is kept."""
    path = Path(name)
    return COMMITTED[path.parent] / path.name


if __name__ == "__main__":
    sys.exit(main())
