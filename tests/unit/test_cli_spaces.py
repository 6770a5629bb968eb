"""`lutbuilder spaces show` and `coverage`: what people and scripts read, and the command that measures the rest."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.cli.main import app
from lutbuilder.lut import Lut, Row, publish
from lutbuilder.lut.lut import collect_command
from lutbuilder.nas.compiled import compile_space
from lutbuilder.op import OpSpec
from lutbuilder.spaces.grid import knots
from lutbuilder.spaces.summary import arch_text, choices, joined, listed, stages
from lutbuilder_agent.errors import OpNotInLut
from tests.lut_examples import CACHE, example_meta, failed_row
from tests.synthetic import synthetic_ms
from tests.worked_example import EXAMPLE, GATED

Cli = Callable[[str], tuple[int, str, str]]
TINY = """
input = { resolution = 32 }
[variables]
k = [3, 5]
[[sites]]
name = "stem"
kind = "conv"
out_channels = 8
kernel = "k"
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs a command line in an empty folder and gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTBUILDER_STATE", str(tmp_path / "state"))

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="lutbuilder")
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def table_of(ops: Sequence[OpSpec], folder: Path, **meta: object) -> Lut:
    rows = [Row.of(op, latency_ms=synthetic_ms(op), cache=CACHE) for op in ops]
    return publish(rows, example_meta(**{"spaces": (), "batch": ops[0].batch, **meta}), folder=folder / "luts")


# --- What a space is


def test_show_groups_45_variables_in_a_few_lines(cli: Cli) -> None:
    status, out, _ = cli("spaces show ofa_mbv3")
    assert status == 0
    assert re.search(r"^ +architectures +108,793,277,462,862,429,255 \(1\.09e20\)$", out, re.M)
    assert re.search(r"^ +distinct ops +450 \(", out, re.M)
    assert re.search(r"^ ?stage 1 +2 to 4 +16 -> 24 +80..112 -> 40..56 +r, d1, k1..k4, e1..e4 +90$", out, re.M)
    assert re.search(r"^ ?k1..k20 +20 +3, 5, 7 +10 of them as d1..d5 say$", out, re.M)
    assert re.search(r"^ ?d1..d5 +5 +2, 3, 4 +always$", out, re.M)
    assert "... and 350 more ops: --ops lists all" in out
    assert len(cli("spaces show ofa_mbv3 --ops")[1].splitlines()) == len(out.splitlines()) + 350 - 1


def test_a_list_may_be_asked_for_by_name(cli: Cli) -> None:
    assert cli("spaces list") == cli("spaces")
    assert cli("spaces list --json") == cli("spaces --json")


def test_show_as_json_holds_stages_and_every_op(cli: Cli) -> None:
    shown = json.loads(cli("spaces show attentivenas-r224 --json")[1])
    assert (shown["n_archs"], shown["n_ops"], len(shown["ops"])) == ("110075314176", 230, 230)
    assert [stage["name"] for stage in shown["stages"]] == ["stem", *(f"mb{n}" for n in range(1, 8)), "head"]
    assert [stage["n_sites"] for stage in shown["stages"]] == [1, 2, 5, 6, 6, 8, 8, 2, 4]
    assert shown["variables"][0] == {"name": "r", "values": [224], "active_when": []}
    assert OpSpec.from_canonical({k: v for k, v in shown["ops"][0].items() if k not in ("op_id", "label")}).stride == 2


def test_show_takes_a_file_and_a_batch(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    status, out, _ = cli("spaces show tiny.toml --bs 4")
    assert status == 0
    assert "conv 3x32x32 k5 s1 -> 8 bs4" in out


def test_a_mistake_in_a_file_names_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace('"k"', '"q"'), encoding="utf-8")
    status, out, err = cli("spaces show tiny.toml")
    assert (status, out) == (65, "")
    assert "error[bad_spec]: tiny.toml: sites, number 1: 'stem': kernel = 'q': no 'q' here; there are: k" in err
    assert cli("spaces show nowhere.toml")[0] == 64
    assert cli("collect --space nowhere.toml")[0] == 64


def test_the_list_names_variants_and_resolutions(cli: Cli) -> None:
    status, out, _ = cli("spaces")
    assert status == 0
    assert re.search(r"^ ?ofa_mbv3 +w1\.0, w1\.2 +160 to 224 \(5\); fine: 128 to 224 \(25\) ", out, re.M)
    assert "attentivenas (alphanet)" in out
    listed_ = {space["name"]: space for space in json.loads(cli("spaces --json")[1])["spaces"]}
    assert listed_["attentivenas"]["grids"] == {"": [192, 224, 256, 288]}
    assert set(listed_) == set(spaces.SPACES)


# --- What a table has of it


def test_a_whole_space_is_covered_and_ends_with_0(cli: Cli, tmp_path: Path) -> None:
    lut = table_of(spaces.get("proxyless").ops(), tmp_path)
    status, out, _ = cli(f"spaces coverage proxyless {lut.path}")
    assert status == 0
    assert re.search(r"^ +covered +70 of 70 ops have a row \(70 measured\)$", out, re.M)
    assert "collect" not in out
    shown = cli(f"spaces show proxyless --lut {lut.path}")[1]
    assert re.search(r"^ +coverage +70 of 70 ops have a row \(70 measured\)$", shown, re.M)


def test_what_is_missing_is_listed_with_the_command_that_measures_it(cli: Cli, tmp_path: Path) -> None:
    ops = spaces.get("proxyless", batch=8).ops()
    lut = table_of(ops[:-2], tmp_path, threads=2)
    status, out, _ = cli(f"spaces coverage proxyless {lut.spec}")
    assert status == 1
    assert re.search(r"^ +covered +68 of 70 ops have a row", out, re.M)
    assert all(f"{op.op_id}  {op.label()}" in re.sub(r" {2,}", "  ", out) for op in ops[-2:])
    (command,) = re.findall(r"^ +measure them +(.*)$", out, re.M)
    assert command == collect_command(
        device="cpu", space="proxyless", runtime="onnxruntime", batch=8, threads=2, cache=CACHE
    )
    told = json.loads(cli(f"spaces coverage proxyless {lut.spec} --json")[1])
    assert (told["complete"], told["covered"], told["command"]) == (False, {"measured": 68}, command)
    assert [op["op_id"] for op in told["missing"]] == [op.op_id for op in ops[-2:]]


@pytest.mark.parametrize(
    ("space", "max_ops"),
    [("amc", " --max-ops 400"), ("amc-v2", " --max-ops 400"), ("netadapt", " --max-ops 400"),
     ("netadapt-step32", " --max-ops 400"), ("netadapt-alexnet", " --max-ops 400"),
     ("amc-ladder", ""), ("ofa_mbv3-fine", ""), ("ofa_resnet50", ""), ("attentivenas", "")],
)  # fmt: skip  # a space and its option
def test_of_a_large_grid_of_widths_some_are_measured_and_others_imputed(
    tmp_path: Path, space: str, max_ops: str
) -> None:
    ops = spaces.get(space).ops()
    assert (f" --max-ops {knots(ops)}" if knots(ops) else "") == max_ops
    lut = table_of(ops[:1], tmp_path)
    assert str(lut.missing(ops[1:], space=space)).endswith(f"--space {space} --runtime onnxruntime --bs 1{max_ops}")


def test_coverage_of_a_large_grid_prints_a_command_that_measures_some(cli: Cli, tmp_path: Path) -> None:
    lut = table_of(spaces.get("proxyless").ops()[:1], tmp_path)
    (command,) = re.findall(r"^ +measure them +(.*)$", cli(f"spaces coverage netadapt-step32 {lut.spec}")[1], re.M)
    assert command.endswith("--space netadapt-step32 --runtime onnxruntime --bs 1 --max-ops 400")


def test_many_missing_ops_are_listed_when_asked_for(cli: Cli, tmp_path: Path) -> None:
    lut = table_of(spaces.get("proxyless").ops(), tmp_path)
    out = cli(f"spaces coverage amc-ladder {lut.path}")[1]
    assert "... and 454 more ops: --ops lists all" in out
    every = cli(f"spaces coverage amc-ladder {lut.path} --ops")[1]
    assert len(every.splitlines()) == len(out.splitlines()) + 454 - 1
    assert len(json.loads(cli(f"spaces coverage amc-ladder {lut.path} --json")[1])["missing"]) == 554


def test_a_space_of_a_file_is_measured_and_covered_by_its_path(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    status, out, err = cli("collect --device simulated --space tiny.toml --budget 60s --max-rounds 8 --accept-noisy")
    assert status == 0, err
    assert Lut.load(out.strip()).meta.spaces == ("tiny.toml",)
    assert cli(f"spaces coverage tiny.toml {out.strip()}")[0] == 0
    assert cli(f"spaces coverage fbnet {out.strip()}")[0] == 1


def test_a_space_of_python_is_known_by_its_module_and_name(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(
        "from tests.worked_example import EXAMPLE as space\nnumber = 3\n", encoding="utf-8"
    )
    ops = spaces.get("mine:space", batch=2).ops()
    assert {replace(op, batch=1) for op in ops} == set(EXAMPLE.ops())
    lut = table_of(ops, tmp_path, spaces=("mine:space",))
    assert "--space mine:space " in lut.command()
    assert cli(f"spaces coverage mine:space {lut.spec}")[0] == 0
    assert "is no SearchSpace but 3" in cli("collect --space mine:number")[2]
    with pytest.raises(OpNotInLut, match=r"--space proxyless-w1\.1 ") as named:
        compile_space(spaces.get("proxyless-w1.1", batch=2), lut)
    assert "mine:space" not in str(named.value)
    with pytest.raises(OpNotInLut, match=r"lutbuilder collect .*--space MODULE:NAME "):
        compile_space(EXAMPLE, lut)
    assert pickle.loads(pickle.dumps(spaces.get("mine:space"))).key == spaces.get("mine:space").key


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine:number", "search space 'mine:number' is no SearchSpace but 3"),
        ("mine:nothing", "module 'mine' has no attribute 'nothing'"),
        ("nowhere_at_all:space", "no nowhere_at_all.py in "),
        ("mine.py:space", "is not MODULE:NAME; write it as mine:space for a file mine.py"),
        (":space", "is not MODULE:NAME"),
    ],
)
def test_what_is_no_space_of_python_is_answered_with_why(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text("number = 3\n", encoding="utf-8")
    status, out, err = cli(f"spaces show {name}")
    assert (status, out) == (65, "")
    assert says in err


def test_failed_and_imputed_rows_are_covered_and_told_apart(cli: Cli, tmp_path: Path) -> None:
    first, second, *rest = spaces.get("proxyless").ops()
    rows = [Row.of(op, latency_ms=1.0, cache=CACHE) for op in rest]
    rows += [failed_row(first), Row.of(second, latency_ms=1.0, method="imputed", evidence="modelled")]
    lut = publish(rows, example_meta(spaces=()), folder=tmp_path / "luts")
    told = json.loads(cli(f"spaces coverage proxyless {lut.path} --json")[1])
    assert told["covered"] == {"measured": 68, "failed": 1, "imputed": 1}
    assert told["complete"]


def test_ops_no_engine_runs_come_with_the_reason_and_no_command(cli: Cli, tmp_path: Path) -> None:
    lut = table_of(spaces.get("proxyless").ops()[:1], tmp_path)
    status, out, _ = cli(f"spaces coverage haq {lut.path} --json")
    told = json.loads(out)
    assert (status, told["command"], len(told["missing"])) == (1, None, 1858)
    assert all("32-bit" in op["not_measurable"] for op in told["missing"])
    assert re.search(
        r"^ +cannot be measured +1,858 of the missing ones, e\.g\. ", cli(f"spaces coverage haq {lut.path}")[1], re.M
    )


def test_the_batch_of_a_space_is_that_of_the_table(cli: Cli, tmp_path: Path) -> None:
    lut = table_of(spaces.get("fbnet", batch=4).ops(), tmp_path)
    assert cli(f"spaces coverage fbnet {lut.path}")[0] == 0
    shown = json.loads(cli(f"spaces show fbnet --lut {lut.path} --json")[1])
    assert (shown["coverage"]["complete"], shown["ops"][0]["batch"]) == (True, 4)


def test_the_command_quotes_a_path(tmp_path: Path) -> None:
    lut = table_of(spaces.get("proxyless").ops()[:1], tmp_path)
    assert "--space 'my spaces/tiny.toml'" in lut.command(space="my spaces/tiny.toml")


def test_the_command_names_the_device_a_table_is_of(tmp_path: Path) -> None:
    lut = table_of(spaces.get("proxyless").ops()[:1], tmp_path, device="simulated", runtime="simulated")
    assert "--device simulated --space fbnet --runtime simulated" in lut.command(space="fbnet")


def test_a_table_of_an_engine_that_is_not_ours_is_measured_on_the_default_one(tmp_path: Path) -> None:
    lut = table_of(spaces.get("proxyless").ops()[:1], tmp_path, runtime="published")
    assert "--runtime" not in lut.command()


# --- The lines themselves


def test_stages_are_runs_of_sites_and_say_what_they_read() -> None:
    assert [(s.name, s.n_sites, s.n_optional, s.channels, s.reads, s.n_ops) for s in stages(EXAMPLE)] == [
        ("stem", 1, 0, "3 -> 16..24", ("w",), 2),
        ("b1", 1, 0, "16..24 -> 32", ("w", "k"), 4),
        ("b2", 1, 1, "32 -> 32", ("d", "k"), 2),
    ]
    assert {s.map for s in stages(EXAMPLE)} == {"8 -> 8", "8 -> 4"}


def test_variables_that_differ_in_their_number_are_put_together() -> None:
    assert [(c.names, c.count, c.values, c.n_gated, c.gates) for c in choices(GATED)] == [
        (("d",), 1, (1, 2), 0, ()),
        (("k1",), 1, (3, 7), 0, ()),
        (("b1",), 1, (8, 4), 0, ()),
        (("k2",), 1, (7, 3), 1, ("d",)),
        (("b2",), 1, (4, 8), 1, ("d",)),
    ]
    widths = choices(spaces.get("apq"))
    assert [(c.names, len(c.values)) for c in widths if c.names[0].startswith("m")] == [
        (("m1",), 5), (("m2..m5",), 7), (("m6..m9",), 11), (("m10..m13",), 21), (("m14..m17",), 25),
        (("m18..m21",), 49),
    ]  # fmt: skip  # one list
    assert len(widths) < 20


def test_an_arch_is_a_line_that_shows_what_matters() -> None:
    space = spaces.get("ofa_mbv3-r224")
    text = arch_text(space, space.encode({**space.decode(np.zeros(len(space.sizes), int)), "d2": 4, "k8": 7}))
    assert text.startswith("r=224 d1..d5=2,4,2,2,2 k1..k20=3,3,-,-,3,3,3,7,3,3,-,-,")
    haq = spaces.get("haq")
    assert arch_text(haq, haq.sample(np.random.default_rng(0), 1)[0]).count("=") == 2
    assert arch_text(EXAMPLE, [1, 0, 1]) == "w=24 d=1 k=5"


def test_names_in_a_row_are_joined_and_long_lists_cut() -> None:
    assert joined(["r", "k1", "k2", "k3", "k5", "e1", "e2", "k4"]) == ("r", "k1..k5", "e1", "e2")
    assert joined(["w1", "a1", "w2", "a2", "w3", "w5", "x"]) == ("w1..w3", "w5", "a1", "a2", "x")
    assert [s.reads for s in stages(spaces.get("haq"))[1:3]] == [("w1", "w2", "a1", "a2"), ("w3..w8", "a3..a8")]
    assert listed((3, 5, 7)) == "3, 5, 7"
    assert listed(tuple(range(8, 129, 8))) == "8, 16, 24, ... 128 (16 values)"
