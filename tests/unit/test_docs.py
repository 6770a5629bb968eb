"""The guides run as they are written: their Python, their files and their command lines, over made-up tables."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lutbuilder.cli.main import app
from lutbuilder.lower import lower, lower_network
from lutbuilder.lut import Row, publish
from lutbuilder.nas import losses
from lutbuilder.op import OpSpec
from lutbuilder.spaces import SPACES, get
from tests.lut_examples import example_meta, example_row
from tests.published_tables import as_yaml, haq_cycles, mbv3_rows, npy

DOCS = Path(__file__).parents[2] / "docs"


def blocks(path: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a document in their order: language ("" where none is named) and text."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [(str(language), str(text)) for language, text in found]


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


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables under luts/, and published files."""
    folder = tmp_path_factory.mktemp("shelf")
    phone = measured(("ofa_mbv3-w1.2", "proxyless", "attentivenas", "amc-ladder"), 1.0)
    publish(phone, example_meta(device="phone", runtime="litert"), folder=folder / "luts")
    server = measured(("ofa_mbv3-w1.2", "ofa_mbv3"), 0.3)
    publish(server, example_meta(device="server", runtime="onnxruntime"), folder=folder / "luts")
    apq = [Row.of(op, latency_ms=by_bits(op), evidence="imported") for op in get("apq").ops()]
    meta = example_meta(device="bitfusion", runtime="simulator", dtype="mixed", spaces=("apq",))
    publish(apq, meta, folder=folder / "luts")
    (folder / "haq.npy").write_bytes(npy(haq_cycles()))
    (folder / "note10").mkdir()
    (folder / "note10" / "160_lookup_table.yaml").write_bytes(as_yaml(mbv3_rows(160, "w1.2")))
    return folder


@pytest.fixture
def lab(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a guide is read in: a shelf of one's own, and nothing else."""
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def run(guide: Path, lab: Path) -> tuple[Counter[str], dict[str, Any]]:
    """Run every block of a guide in its order; return how many there were a language, and the names Python made."""
    names: dict[str, Any] = {}
    ran: Counter[str] = Counter()
    for language, text in blocks(guide):
        ran[language] += 1
        if text.startswith("# mine.py\n"):
            (lab / "mine.py").write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"{guide.name}, Python block {ran['python']}", "exec"), names)
        elif language == "toml":
            (lab / "space.toml").write_text(text, encoding="utf-8")
            assert get("space.toml").n_archs() > 0
        else:
            for line in text.splitlines():
                words = shlex.split(line.removeprefix("$ ").replace("<device>", "server"), comments=True)
                done = CliRunner().invoke(app, words[1:])
                assert (words[0], done.exit_code) == ("lutbuilder", 0), f"{line}\n{done.output}\n{done.exception}"
    sys.modules.pop("mine", None)
    return ran, names


def test_the_guide_of_spaces_runs(root: Path, lab: Path) -> None:
    ran, _ = run(root / "docs" / "spaces.md", lab)
    assert ran == {"": 2, "python": 1, "toml": 1}
    # What the guide says of its own results.
    space = get("mine:space", batch=2)
    assert (len(space.ops()), space.n_archs(), {op.batch for op in space.ops()}) == (26, 1296, {2})
    for arch in space.sample(np.random.default_rng(0), 3):
        assert lower_network(space.arch_ops(arch)).shapes[-1] == (2, 1000)


def test_a_space_of_ones_own_takes_ten_lines_of_python(root: Path) -> None:
    text = (root / "docs" / "spaces.md").read_text(encoding="utf-8")
    assert "## A space in ten lines of Python\n" in text
    (code,) = (code for language, code in blocks(root / "docs" / "spaces.md") if language == "python")
    lines = code.removeprefix("# mine.py\n").splitlines()
    assert len([line for line in lines if line]) == 10
    assert max(map(len, lines)) <= 120


def test_the_table_of_presets_has_the_right_counts(root: Path) -> None:
    text = (root / "docs" / "spaces.md").read_text(encoding="utf-8")
    for name in ("amc", "netadapt", "haq"):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        _, _, ops, archs = (cell.strip() for cell in row.strip("|").split("|"))
        for variant, n_ops, n_archs in zip(SPACES[name].variants, ops.split("; "), archs.split("; "), strict=True):
            space = get(f"{name}-{variant}")
            assert f"{len(space.ops()):,}" == n_ops, space.name
            base, _, power = n_archs.partition("^")
            assert f"{space.n_archs():.1e}" == f"{int(base) ** int(power) if power else float(base):.1e}", space.name


def test_the_guide_of_interchange_runs(root: Path, lab: Path) -> None:
    ran, _ = run(root / "docs" / "interchange.md", lab)
    assert ran == {"console": 1}
    assert (lab / "tables" / "224_lookup_table.yaml").exists()
    assert (lab / "luts" / "note10" / "tflite-fp32-bs1").exists()


def test_the_guide_of_search_runs(root: Path, lab: Path) -> None:
    ran, names = run(root / "docs" / "search.md", lab)
    assert ran == {"python": 13, "": 3}
    # What the guide says of its own results.
    assert len(names["below"]) < (names["mid"] <= 4.0).sum()
    assert (names["found"].costs <= 4.0).all()
    assert names["best"].score >= names["front"].scores.max()
    assert (names["by_stage"].predict(names["batch"]) <= 9.0 * (1 + 1e-9)).all()
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


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_links_within_the_guides_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = target.partition("#")
        assert target.startswith("https://") or not file or (path.parent / file).exists(), target
        assert file or heading in headings, target
