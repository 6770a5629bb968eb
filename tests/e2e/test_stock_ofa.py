"""Stock `ofa` reads exported tables unchanged and predicts what lutbuilder predicts, to a billionth of a ms.

The package comes from the package index, once. Where that cannot be reached the tests are skipped with what pip said,
except in CI (environment CI=true): there they fail with it, so that this promise is never left unchecked unseen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lut import Lut, Row, publish
from lutbuilder.lut.interchange import export_table
from lutbuilder.nas.compiled import CompiledSpace, compile_space
from tests.lut_examples import example_meta

N_ARCHS = 300
N_BUILT = 3  # networks that are built and walked through, too: that takes longer
EXACT_MS = 1e-9


@pytest.fixture(scope="module")
def ofa(root: Path) -> Path:
    """The Python of the package's own environment; built once, kept in the checkout."""
    command = [sys.executable, str(root / "tools" / "ofa_venv.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    return python_or_reason(done.returncode, done.stdout, done.stderr, ci=os.environ.get("CI") == "true")


def python_or_reason(status: int, out: str, err: str, *, ci: bool) -> Path:
    """What tools/ofa_venv.py printed; without the package a skip that gives the reason, in CI a failure with it."""
    if status:
        reason = f"the environment of stock ofa cannot be built, which needs the package index: {err.strip()[-300:]}"
        (pytest.fail if ci else pytest.skip)(reason)
    return Path(out.strip())


def test_without_the_package_ci_fails_with_the_reason_and_others_skip_with_it() -> None:
    for ci, outcome in ((True, pytest.fail.Exception), (False, pytest.skip.Exception)):
        with pytest.raises(outcome, match="needs the package index: no network here"):
            python_or_reason(1, "", "no network here", ci=ci)
    assert python_or_reason(0, "/there/python\n", "", ci=True) == Path("/there/python")


def published(folder: Path, space: str, *, seed: int) -> Lut:
    """A table of the whole space, measured by nobody: log-normal latencies and a call overhead."""
    rng = np.random.default_rng(seed)
    ops = spaces.get(space).ops()
    rows = [
        Row.of(op, latency_ms=float(ms), call_overhead_ms=0.0137, n_visits=30)
        for op, ms in zip(ops, rng.lognormal(-2, 1, len(ops)), strict=True)
    ]
    return publish(rows, example_meta(spaces=(space,)), folder=folder)


def arch(compiled: CompiledSpace, encoding: Any) -> dict[str, Any]:
    """An encoding as ofa writes an architecture; a layer that does not run still has a kernel there."""
    values = compiled.space.decode(encoding)
    layers = [name for name in values if name.startswith("k")]
    return {
        "ks": [values[name] for name in layers],
        "e": [values["e" + name[1:]] for name in layers],
        "d": [values[f"d{number}"] for number in range(1, 6)] + [1] * (len(layers) == 21),
        "image_size": values["r"],
    }


@pytest.mark.parametrize(
    ("net", "width", "space", "format"),
    [
        ("mbv3", 1.0, "ofa_mbv3-fine", "ofa-mbv3-yaml"),
        ("mbv3", 1.2, "ofa_mbv3-w1.2-fine", "ofa-mbv3-yaml"),
        ("proxyless", 1.0, "ofa_proxyless-fine", "ofa-proxyless-yaml"),
        ("proxyless", 1.3, "ofa_proxyless-w1.3", "ofa-proxyless-yaml"),
    ],
)
def test_stock_ofa_predicts_the_same(
    ofa: Path, root: Path, tmp_path: Path, net: str, width: float, space: str, format: str
):
    lut = published(tmp_path, space, seed=len(space))
    compiled = compile_space(spaces.get(space), lut)
    assert compiled.call_overhead_ms == 0.0137
    export_table(lut, tmp_path / "out", format=format, tool_version="0", constant_ms=compiled.call_overhead_ms)
    archs = compiled.space.sample(np.random.default_rng(0), N_ARCHS)
    resolutions = [int(r) for r in compiled.space.variables[0].values]
    assert set(compiled.space.variables[0].values) == {compiled.space.decode(row)["r"] for row in archs}
    asked = {
        "net": net, "width": width, "folder": str(tmp_path / "out"), "resolutions": resolutions, "n_built": N_BUILT,
        "archs": [arch(compiled, row) for row in archs],
    }  # fmt: skip  # one request
    done = subprocess.run(
        [str(ofa), "-I", str(root / "tests" / "stock_ofa.py")],
        input=json.dumps(asked), capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
    )  # fmt: skip  # one command
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours = compiled.predict(archs)
    assert np.abs(np.array(found["model"]) - ours).max() < EXACT_MS
    assert np.abs(np.array(found["table"]) - ours[:N_BUILT]).max() < EXACT_MS
    told = [(ms, our) for ms, our in zip(found["estimator"] or [], ours, strict=False) if ms is not None]
    assert (len(told) > 20) is (width == 1.2)
    assert all(abs(ms - our) < EXACT_MS for ms, our in told)
