"""The guide of search runs as it is written: its Python, its files and its command lines, over made-up tables."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lutbuilder.cli.main import app
from lutbuilder.lower import lower
from lutbuilder.lut import Row, publish
from lutbuilder.nas import losses
from lutbuilder.op import OpSpec
from lutbuilder.spaces import get
from tests.lut_examples import example_meta, example_row
from tests.published_tables import haq_cycles, npy

Cost = Callable[[OpSpec], float]


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a document in their order: language ("" where none is named) and text."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def by_macs(op: OpSpec) -> float:
    return 0.01 + lower(op).macs / 1e8


def by_bits(op: OpSpec) -> float:
    return 1e-9 * op.in_channels * op.out_channels * op.height * op.kernel * (op.w_bits + op.a_bits)


def measured(names: Iterable[str], scale: float) -> list[Row]:
    """Rows of whole spaces, +-2 % each."""
    ops = dict.fromkeys(op for name in names for op in get(name).ops())
    return [
        example_row(op, latency_ms=ms, latency_lo_ms=0.98 * ms, latency_hi_ms=1.02 * ms, p90_ms=ms, n_rounds=20)
        for op, ms in ((op, scale * by_macs(op)) for op in ops)
    ]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the guide is read in: tables under luts/, a published file, and nothing else."""
    phone = measured(("ofa_mbv3-w1.2", "proxyless", "attentivenas", "amc-ladder"), 1.0)
    publish(phone, example_meta(device="phone", runtime="litert"), folder=tmp_path / "luts")
    server = measured(("ofa_mbv3-w1.2",), 0.3)
    publish(server, example_meta(device="server", runtime="onnxruntime"), folder=tmp_path / "luts")
    apq = [Row.of(op, latency_ms=by_bits(op), evidence="imported") for op in get("apq").ops()]
    meta = example_meta(device="bitfusion", runtime="simulator", dtype="mixed", spaces=("apq",))
    publish(apq, meta, folder=tmp_path / "luts")
    (tmp_path / "haq.npy").write_bytes(npy(haq_cycles()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_the_guide_of_search_runs(root: Path, lab: Path) -> None:
    names: dict[str, Any] = {}
    ran = {"python": 0, "": 0}
    for language, text in blocks(root / "docs" / "search.md"):
        if text.startswith("# mine.py\n"):
            (lab / "mine.py").write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"docs/search.md, Python block {ran['python'] + 1}", "exec"), names)
        else:
            for line in text.splitlines():
                done = CliRunner().invoke(app, shlex.split(line)[1:])
                assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception}"
        ran[language] += 1
    assert ran == {"python": 13, "": 3}
    sys.modules.pop("mine", None)
    # What the guide says of its own results.
    assert len(names["below"]) < (names["mid"] <= 4.0).sum()
    assert (names["found"].costs <= 4.0).all()
    assert names["best"].score >= names["front"].scores.max()
    assert (names["by_stage"].predict(names["batch"]) <= 9.25).all()
    assert (names["cycles"].predict(names["archs_of_an_agent"]) <= 0.556 * names["eight_bits"]).all()
    assert (names["widths"].predict(names["thin"]) <= names["half"].max_cost * (1 + 1e-9)).all()
    assert (lab / "exported" / "224_lookup_table.yaml").exists()
    assert names["logits"].grad is not None
    assert np.isfinite(names["loss"].item())
    assert names["way"].ended == "limit"


def test_the_guide_names_every_loss(root: Path) -> None:
    text = (root / "docs" / "search.md").read_text(encoding="utf-8")
    table = {name for name in re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)}
    public = {
        name for name, value in vars(losses).items()
        if callable(value) and getattr(value, "__module__", "") == losses.__name__ and not name.startswith("_")
    }  # fmt: skip  # one set
    assert table | {"multi_target"} == public


@pytest.mark.parametrize("name", ["search.md", "spaces.md", "quality.md"])
def test_links_within_the_guides_lead_somewhere(root: Path, name: str) -> None:
    text = (root / "docs" / name).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = target.partition("#")
        assert target.startswith("https://") or not file or (root / "docs" / file).exists(), target
        assert file or heading in headings, target
