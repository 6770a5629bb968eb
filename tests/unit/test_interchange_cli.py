"""`lutbuilder luts import`, `export` and `formats`: what people type, and what it answers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.cli.main import app
from lutbuilder.lut import Lut, Row, publish
from lutbuilder.lut.interchange import FORMATS
from lutbuilder.nas.compiled import compile_space
from tests import published_tables as made
from tests.lut_examples import example_meta

Cli = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs a command line in an empty folder and gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="lutbuilder")
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_formats_are_listed_with_what_they_take(cli: Cli):
    status, out, _ = cli("luts formats")
    assert status == 0
    assert all(name in out for name in FORMATS)
    listed = json.loads(cli("luts formats --json")[1])["formats"]
    assert {entry["name"] for entry in listed} == set(FORMATS)
    assert next(e for e in listed if e["name"] == "haq-npy")["options"] == ["preset", "batch", "clock_mhz"]


def test_a_published_folder_becomes_a_table_and_says_what_it_covers(cli: Cli):
    Path("note10").mkdir()
    for r in (160, 224):
        Path(f"note10/{r}_lookup_table.yaml").write_bytes(made.as_yaml(made.mbv3_rows(r, "w1.2")))
    line = "luts import --format ofa-mbv3-yaml note10 --into note10/tflite-fp32-bs1 --preset ofa_mbv3-w1.2"
    status, out, err = cli(line)
    assert status == 0, err
    assert out.strip() == "luts/note10/tflite-fp32-bs1/v0001.parquet"
    assert "published note10/tflite-fp32-bs1@1: " in err
    assert "of the 450 ops of ofa_mbv3-w1.2" in err
    assert "missing: conv 3x176x176" in err
    again = json.loads(cli(f"{line} --json")[1])
    assert (again["published"], again["lut"]["version"], again["coverage"]["n_ops"]) == (False, 1, 450)
    assert "imported" in cli("luts list")[1]
    assert cli("luts show luts/note10/tflite-fp32-bs1")[0] == 0
    assert cli("luts lint luts/note10/tflite-fp32-bs1")[0] == 0


def test_cycles_without_a_clock_are_shown_and_linted(cli: Cli):
    Path("t.npy").write_bytes(made.npy(made.haq_cycles()))
    status, _, err = cli("luts import --format haq-npy t.npy --into bitfusion/simulator-mixed-bs16")
    assert (status, "covers 1858 of the 1858 ops of haq" in err) == (0, True)
    name = "luts/bitfusion/simulator-mixed-bs16"
    assert "no clock given" in cli(f"luts show {name}")[1]
    assert "L605" in cli(f"luts lint {name}")[1]
    cli("luts import --format haq-npy t.npy --into bitfusion/simulator-mixed-bs16 --clock-mhz 500")
    lut = Lut.load(name)
    assert lut.version == 2
    assert lut.quality.n_failed == 0
    assert all(row.latency_ms is not None for row in lut)


def test_what_is_left_out_is_counted_and_what_is_wrong_is_told(cli: Cli):
    table = made.tfnas()
    table["MBInvertedResBlock_112_16_0_24_k3_s2_relu"][1] = -0.504
    Path("t.pkl").write_bytes(made.as_pickle(table))
    line = "luts import --format tfnas-pickle t.pkl --into titan/torch-fp32-bs32 --batch 32"
    status, out, err = cli(line)
    assert (status, out) == (65, "")
    assert err.startswith("error[bad_table]: t.pkl, key 'MBInvertedResBlock_112_16_0_24_k3_s2_relu' mid 1: ")
    assert not Path("luts").exists()
    assert json.loads(cli(f"{line} --json")[1])["error"]["code"] == "bad_table"
    status, out, err = cli(f"{line} --drop-invalid")
    assert (status, "left out 1 invalid rows:" in err) == (0, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--format nope --into a/b-fp32-bs1", "unknown format 'nope'"),
        (
            "--format fbnet-txt --into a/b-fp32-bs1 --unit furlongs",
            "--unit 'furlongs' is unknown; write one of ms, us, s",
        ),
        ("--format fbnet-txt --into a/b-fp32-bs1 --method magic", "--method 'magic' is unknown"),
        ("--format fbnet-txt --into a/b-fp32-bs1 --batch 0", "--batch must be from 1"),
        ("--format haq-npy --into a/b-fp32-bs1 --clock-mhz=-5", "the clock must be above 0 MHz"),
        ("--format fbnet-txt --into b --unit us", "names no table"),
        ("--format fbnet-txt --into a/b-fp32-bs1 --unit us", "no file x"),
    ],
)
def test_a_command_that_cannot_work_says_what_to_type(cli: Cli, options: str, told: str):
    status, out, err = cli(f"luts import x {options}")
    assert status != 0
    assert out == ""
    assert told in err
    assert "Traceback" not in err


def measured(folder: Path, space: str) -> Lut:
    rng = np.random.default_rng(0)
    ops = spaces.get(space).ops()
    latencies = zip(ops, rng.lognormal(-2, 1, len(ops)).tolist(), strict=True)
    rows = [Row.of(op, latency_ms=ms, call_overhead_ms=0.0137, n_visits=30) for op, ms in latencies]
    return publish(rows, example_meta(spaces=(space,)), folder=folder)


def test_an_export_predicts_what_the_table_predicts_call_overhead_and_all(cli: Cli, tmp_path: Path):
    lut = measured(tmp_path / "luts", "proxyless")
    status, out, err = cli(f"luts export {lut.path} mobile.yaml --format proxyless-yaml --scale 1.25 --offset-ms 0.5")
    assert (status, out.strip()) == (0, "mobile.yaml"), err
    assert "wrote 70 values" in err
    cli("luts import --format proxyless-yaml mobile.yaml --into other/tflite-fp32-bs1 --preset proxyless")
    space = spaces.get("proxyless")
    archs = space.sample(np.random.default_rng(0), 50)
    ours = compile_space(space, lut).predict(archs)
    theirs = compile_space(space, Lut.load("luts/other/tflite-fp32-bs1")).predict(archs)
    assert np.allclose(theirs, 1.25 * ours + 0.5, rtol=0, atol=1e-9)
    sidecar = json.loads(Path("mobile.yaml.provenance.json").read_text(encoding="utf-8"))
    assert sidecar["constants"]["per_network_ms"] == pytest.approx(1.25 * 0.0137 + 0.5)
    assert (sidecar["column"], sidecar["evidence"], sidecar["preset"]) == ("latency_ms", {"measured": 70}, "proxyless")


def test_an_export_without_the_call_overhead_is_the_rows_alone(cli: Cli, tmp_path: Path):
    lut = measured(tmp_path / "luts", "ofa_mbv3-r224")
    line = f"luts export {lut.path} out --format ofa-mbv3-yaml --no-call-overhead --json"
    written = json.loads(cli(line)[1])
    assert [Path(name).name for name in written["files"]] == ["224_lookup_table.yaml"]
    assert Path(written["sidecar"]).name == "out.provenance.json"
    assert written["n_values"] == 96
    text = Path(written["files"][0]).read_text(encoding="utf-8")
    logits: Any = next(row for row in lut if row.kind == "logits")
    assert f"mean: {logits.latency_ms!r}\n" in text


def test_an_export_that_lacks_rows_lists_them(cli: Cli, tmp_path: Path):
    lut = measured(tmp_path / "luts", "proxyless")
    status, _, err = cli(f"luts export {lut.path} out --format ofa-proxyless-yaml --preset ofa_proxyless-r224")
    assert status == 66
    assert "e4" in err
    assert "--evidence measured,imported" in err
    status, _, err = cli(f"luts export {lut.path} out --format tfnas-pickle")
    assert (status, "--allow-pickle" in err) == (65, True)


def test_rows_copied_from_another_device_are_found_among_the_tables(cli: Cli):
    rows = made.mbv3_rows()
    slower = {key: {**row, "mean": row["mean"] * 1.37} for key, row in rows.items()}
    copied = "Logits-input:1x1x1280-output:1000"
    for device, table in (("note8", rows), ("note10", {**slower, copied: rows[copied]})):
        Path("224_lookup_table.yaml").write_bytes(made.as_yaml(table))
        cli(f"luts import --format ofa-mbv3-yaml 224_lookup_table.yaml --into {device}/tflite-fp32-bs1")
    found = json.loads(cli("luts lint luts/note10/tflite-fp32-bs1 --json")[1])["luts"][0]["findings"]
    (told,) = [finding for finding in found if finding["rule"] == "L601"]
    assert told["op"] == "logits 1280x1x1 -> 1000"
    assert "copied-from note8/tflite-fp32-bs1@1, as 1 of 96 rows" in told["message"]
