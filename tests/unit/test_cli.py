"""The command line: what people type is understood, or refused with what to type instead and no traceback."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.campaign.request import CollectRequest, Progress, command_line
from lutbuilder.campaign.spec import Target
from lutbuilder.campaign.state import STORE_NAME, state_folder
from lutbuilder.cli import values
from lutbuilder.cli.console import emit_json, errors_shown, plain
from lutbuilder.cli.main import app
from lutbuilder.cli.progress import LINE_EVERY_S, ProgressView, figures, share_done
from lutbuilder.coordinator.store import Store
from lutbuilder.doctor import Check, check_folder, check_load, check_python, check_runtimes
from lutbuilder.lut import LutMeta, Row, publish
from lutbuilder.op import OpSpec
from lutbuilder.stats.quality import NetworkResult, ValidationReport, accuracy, deciles, excess
from lutbuilder.stats.sessions import SessionReport
from lutbuilder_agent.cli import _parser as agent_parser
from lutbuilder_agent.errors import LutbuilderError, NoAgent, SpecError
from lutbuilder_agent.records import AgentHello, Fingerprint, Plan, RuntimeReport

COMMANDS = (
    "collect",
    "validate",
    "luts",
    "luts list",
    "luts show",
    "luts lint",
    "luts diff",
    "luts import",
    "luts export",
    "luts formats",
    "devices",
    "spaces",
    "spaces show",
    "spaces coverage",
    "serve",
    "jobs",
    "jobs attach",
    "jobs cancel",
    "campaigns",
    "campaigns show",
    "campaigns cancel",
    "campaigns release-op",
    "agents",
    "agents drain",
    "agents resume",
    "agents release",
    "leases",
    "doctor",
    "search",
)


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Return a function that runs a command line in an empty folder and gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTBUILDER_STATE", str(tmp_path / "state"))

    def run(line: str):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="lutbuilder")
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


# --- What people type


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("3m", 180),
        ("1h30m", 5400),
        ("1h0m5s", 3605),
        ("45", 45),
        ("0.5m", 30),
        (" 2H ", 7200),
        ("30d", 2_592_000),
        ("1d12h", 129_600),
        ("1.5", 1.5),
    ],
)
def test_durations_are_read_as_people_write_them(text, seconds):
    assert values.duration_s(text, option="--budget") == seconds


@pytest.mark.parametrize(
    "text", ["", "3x", "m", "1m30m", "30s1m", "-3m", "1.2.3s", ".", "..s", "1e3", "inf", "nan", "٣m"]
)
def test_what_is_no_duration_is_answered_with_how_to_write_one(text):
    with pytest.raises(SpecError, match=r"--budget .* is not a duration; write it as 90s, 1h30m or 7d"):
        values.duration_s(text, option="--budget")


@pytest.mark.parametrize("text", ["0", "0s", "31h999h", "1000h", "31d"])
def test_a_budget_is_above_zero_and_finite(text):
    with pytest.raises(SpecError):
        values.duration_s(text, option="--budget")


def test_waiting_may_be_zero():
    assert values.duration_s("0s", option="--wait", zero=True) == 0


@given(st.integers(min_value=1, max_value=359_999))
def test_a_printed_duration_reads_back_to_the_minute_or_better(seconds):
    again = values.duration_s(values.duration_text(seconds), option="--budget")
    assert abs(again - seconds) <= (0 if seconds < 3599 else 30)


def answer(read, text: str) -> float | str:
    """What `read` makes of a text: its value, or the message of its refusal."""
    try:
        return read(text, option="--typed")
    except SpecError as error:
        return str(error)


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{0,4}h?[0-9.]{0,4}m?[0-9.]{0,4}s?", fullmatch=True))
def test_any_text_is_a_duration_or_a_clear_refusal(text):
    told = answer(values.duration_s, text)
    assert "--typed" in told if isinstance(told, str) else 0 < told <= 30 * 86_400


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("0.5 %", 0.005), (".02", 0.02), ("99%", 0.99)]
)
def test_fractions_are_read_with_and_without_percent(text, value):
    assert values.fraction(text, option="--precision") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "1%%", "one", "-1%", "0", "0%", "100%", "1", "nan", "1e-2"])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(SpecError, match="--precision"):
        values.fraction(text, option="--precision")


def test_a_forgotten_percent_sign_is_noticed():
    with pytest.raises(SpecError, match=r"did you mean 2%\?"):
        values.fraction("2", option="--precision")


@given(st.text(max_size=10) | st.from_regex(r"[0-9.]{0,6} ?%?", fullmatch=True))
def test_any_text_is_a_fraction_or_a_clear_refusal(text):
    told = answer(values.fraction, text)
    assert "--typed" in told if isinstance(told, str) else 0 < told < 1


@given(st.floats(min_value=1e-4, max_value=0.99))
def test_a_fraction_means_the_same_with_and_without_percent(value):
    plain_text, percent = f"{value:.8f}", f"{100 * value:.8f}%"
    assert values.fraction(percent, option="-p") == pytest.approx(values.fraction(plain_text, option="-p"), abs=1e-7)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:7070", "[::1]:80", "0.0.0.0:65535"])
def test_an_address_is_host_and_port(text):
    assert values.listen_address(text, option="--listen") == text


@pytest.mark.parametrize("text", ["", "7070", ":7070", "host:", "host:x", "host:65536", "host:-1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(SpecError, match=r"is not HOST:PORT; write it as 127\.0\.0\.1:0"):
        values.listen_address(text, option="--listen")


# --- Help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_text_has_an_example(cli, command):
    status, out, _ = cli(f"{command} --help")
    assert status == 0
    assert "Examples:\n" in out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_is_understood_by_the_parser(cli, command):
    _, out, _ = cli(f"{command} --help")
    lines = re.findall(r"^ +(lutbuilder .*)$", out.partition("Examples:")[2].partition("\n\n")[0], flags=re.MULTILINE)
    assert lines
    for line in lines:
        parse(line)


def parse(line: str) -> None:
    """Parse a command line without running it; any word the program does not know is an error."""
    words = shlex.split(re.sub(r"<[a-z]+>|\bN\b", "1", re.sub(r'"\$\(.*\)"', "x", line)))[1:]
    command = typer.main.get_command(app)
    with command.make_context("lutbuilder", words, resilient_parsing=False) as context:
        while getattr(command, "commands", None):
            rest = [*getattr(context, "_protected_args", []), *context.args]
            if not rest:
                break
            name, command, rest = command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)


def test_the_parser_used_above_refuses_what_does_not_exist():
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse("lutbuilder collect --budgte 3m")
    with pytest.raises(Exception, match=r"(?i)no such command"):
        parse("lutbuilder luts delete")


def test_command_lines_in_the_docs_are_understood(root):
    commands = "|".join(command.name or command.callback.__name__ for command in app.registered_commands)
    groups = "|".join(group.name for group in app.registered_groups)
    for path in (root / "README.md", root / "CONTRIBUTING.md", root / "CHANGELOG.md", *(root / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        behind = r"(?:\$ |.*/bin/|.* -- )?"  # a prompt, or what starts it somewhere else
        lines = re.findall(rf"^{behind}(lutbuilder (?:{commands}|{groups})\b[^`#\n]*)", text, re.M)
        lines += re.findall(r"`(lutbuilder (?!--help)[^`]*--[^`]*)`", text)  # in a sentence, with options
        for line in lines:
            parse(line)
        assert lines or path.name != "README.md"
        for line in re.findall(rf"^{behind} *(lutbuilder-agent (?:run|join|doctor)\b[^`#|\n]*)", text, re.M):
            agent_parser().parse_args(shlex.split(line)[1:])


def test_the_version_is_the_package_version(cli):
    import lutbuilder

    assert cli("--version") == (0, f"lutbuilder {lutbuilder.__version__}\n", "")


# --- Bad input


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("collect --device v10", 64, "error[unknown_name]: unknown device 'v10'; did you mean v100"),
        (
            "collect --space proxyles",
            64,
            "error[unknown_name]: unknown search space 'proxyles'; did you mean proxyless",
        ),
        (
            "collect --runtime onnxruntme",
            64,
            "error[unknown_name]: unknown runtime 'onnxruntme'; did you mean onnxruntime",
        ),
        ("collect --budget 3x", 65, "error[bad_spec]: --budget '3x' is not a duration"),
        ("collect --precision 1", 65, "did you mean 1%?"),
        ("collect --bs 0", 65, "error[bad_spec]: --bs must be from 1 to 4096, got 0"),
        ("collect --threads 0", 65, "--threads must be from 1"),
        ("collect --listen nowhere", 65, "is not HOST:PORT"),
        ("collect --cache warm", 65, "write one of hot, rotating, flushed"),
        ("collect --wait never", 65, "--wait 'never' is not a duration"),
        ("validate luts/nothing/here", 66, "error[lut_not_found]"),
        ("validate x --random -1", 65, "--random must be from 0"),
        ("luts show nothing/here", 66, "error[lut_not_found]: no LUT 'nothing/here'"),
        ("luts show", 66, "collect one: lutbuilder collect --device cpu"),
        ("luts lint", 66, "collect one: lutbuilder collect --device cpu"),
        ("luts lint nothing/here", 66, "error[lut_not_found]: no LUT 'nothing/here'"),
        ("luts diff nothing/here nothing/there", 66, "error[lut_not_found]"),
        ("spaces show nothing", 64, "error[unknown_name]"),
        ("collect --nonsense", 2, "nonsense"),
        ("frobnicate", 2, "frobnicate"),
    ],
)
def test_bad_input_ends_with_one_clear_line_and_its_status(cli, line, status, says):
    code, out, err = cli(line)
    assert says in err
    assert (code, out) == (status, "")
    assert "Traceback" not in err


def test_with_json_an_error_is_one_json_object_on_stdout(cli):
    status, out, err = cli("collect --device v10 --json")
    error = json.loads(out)["error"]
    assert (status, error["code"], error["exit_status"]) == (64, "unknown_name", 64)
    assert "did you mean v100" in error["message"]
    assert "error[unknown_name]" in err


def test_debug_shows_the_traceback_of_an_expected_error(cli):
    _, _, err = cli("collect --device v10 --debug")
    assert "Traceback" in err
    assert err.rstrip().splitlines()[-1].startswith("error[unknown_name]")


@pytest.mark.parametrize("resumable", [True, False])
def test_ctrl_c_ends_with_130_and_says_that_nothing_is_lost(capsys, resumable):
    with pytest.raises(typer.Exit) as end, errors_shown(as_json=True, debug=False, resumable=resumable):
        raise KeyboardInterrupt
    out, err = capsys.readouterr()
    assert end.value.exit_code == 130
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert ("nothing acknowledged is lost; run the same command again to continue" in err) is resumable
    assert "Traceback" not in err


def test_an_agent_that_never_came_has_its_own_status(capsys):
    with pytest.raises(typer.Exit) as end, errors_shown(as_json=False, debug=False):
        raise NoAgent("no agent of device v100 came within 30s")
    assert end.value.exit_code == 75
    assert capsys.readouterr().err == "error[no_agent]: no agent of device v100 came within 30s\n"


def test_an_error_nobody_expected_is_a_bug_with_its_traceback(capsys):
    with pytest.raises(typer.Exit) as end, errors_shown(as_json=False, debug=False):
        raise ZeroDivisionError("division by zero")
    err = capsys.readouterr().err
    assert end.value.exit_code == LutbuilderError.exit_status
    assert "Traceback" in err
    assert "error[internal]: ZeroDivisionError" in err


# --- JSON


def test_json_has_no_word_for_what_is_not_finite(capsys):
    emit_json({"a": float("nan"), "b": float("inf"), "c": 1.5})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": None, "c": 1.5}


def test_records_paths_and_arrays_become_plain_values():
    value = {
        "check": Check(what="x", state="ok", found="y"),
        "path": Path("a/b"),
        "array": np.array([1.0, 2.0]),
        3: {4},
    }
    assert plain(value) == {
        "check": {"what": "x", "state": "ok", "found": "y", "cure": ""},
        "path": "a/b",
        "array": [1.0, 2.0],
        "3": [4],
    }


# --- Progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def timing(number: int) -> Progress:
    return Progress(phase="timing", round=number, max_rounds=400, n_ops=70, elapsed_s=number, eta_s=60.0)


def test_lines_come_at_most_every_few_seconds():
    stream, clock = io.StringIO(), Clock()
    with ProgressView(stream, clock=clock) as view:
        for number in range(100):
            clock.now_s = 0.1 * number
            view.update(timing(number))
    assert len(stream.getvalue().splitlines()) == 1 + int(9.9 / LINE_EVERY_S)


def test_a_new_phase_and_a_new_message_are_shown_at_once():
    stream = io.StringIO()
    with ProgressView(stream, clock=Clock()) as view:
        view.update(Progress(phase="starting"))
        view.update(Progress(phase="waiting", message="type on the device: lutbuilder-agent run --coordinator HOST:1"))
        view.update(Progress(phase="waiting", message="type on the device: lutbuilder-agent run --coordinator HOST:1"))
        view.update(Progress(phase="waiting", message="agent lab-1 came"))
    text = stream.getvalue()
    assert text.count("lutbuilder-agent run --coordinator HOST:1") == 1
    assert text.count("agent lab-1 came") == 1
    assert [line for line in text.splitlines() if line.startswith("[")] == [
        "[starting] 0s elapsed",
        "[waiting] 0s elapsed",
        "[waiting] 0s elapsed",
    ]


def test_a_line_tells_what_is_known_and_nothing_else():
    assert figures(Progress(phase="preparing", elapsed_s=2.0)) == "2s elapsed"
    known = Progress(
        phase="timing", round=12, max_rounds=400, n_ops=70, n_precise=38, elapsed_s=65.0, eta_s=80.0, ops_per_s=5.23,
        drift=0.124, worst_precision=0.0234, n_failed=1,
    )  # fmt: skip  # one record, two lines
    assert figures(known) == (
        "1m05s elapsed, eta 1m20s, round 12/400, 38/70 ops precise, worst ±2.3 %, 5.2 visits/s, machine drift 12.4 %, "
        "1 failed"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_nothing_is_drawn_between_two_updates(monkeypatch):
    import threading

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ProgressView(stream) as view:
        view.update(timing(1))
        drawn, threads = stream.getvalue(), threading.active_count()
        assert "round 1/400" in drawn
        assert not any(
            thread.name.startswith("Refresh") or "Live" in type(thread).__name__ for thread in threading.enumerate()
        )
        view.update(Progress(phase="timing", message="a [bracketed] message", elapsed_s=3.0))
        assert threading.active_count() == threads
    assert "a [bracketed] message" in stream.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with ProgressView(stream, clock=Clock()) as view:
        view.update(timing(3))
    assert stream.getvalue().startswith("[timing] 3s elapsed, eta 1m00s, round 3/400")


@pytest.mark.parametrize(
    ("progress", "share"),
    [
        (Progress(phase="starting"), 0.0),
        (Progress(phase="timing", n_ops=10, n_precise=4), 0.4),
        (Progress(phase="timing", elapsed_s=30.0, eta_s=90.0, n_ops=10, n_precise=9), 0.25),
        (Progress(phase="done"), 1.0),
    ],
)
def test_how_far_a_campaign_is(progress, share):
    assert share_done(progress) == share


# --- Tables


def a_row(**values) -> Row:
    op = OpSpec(kind="conv", in_channels=3, out_channels=8, height=8, width=8, kernel=3)
    return Row.of(op, **{"latency_ms": 1.5, "latency_lo_ms": 1.47, "latency_hi_ms": 1.53, "n_rounds": 12, **values})


def a_meta(**values) -> LutMeta:
    return LutMeta(
        **{
            "target": Target(device="test-cpu-1", runtime="onnxruntime"),
            "fingerprint": Fingerprint(device="test-cpu-1", facts=()),
            "runtime_version": "1.0",
            "plan": Plan(runtime="onnxruntime"),
            "tool_version": "0.1.0",
            "created": "2025-01-31T12:00:00Z",
            "spaces": ("proxyless",),
            **values,
        }
    )


def test_a_published_table_is_listed_and_shown(cli, tmp_path):
    lut = publish([a_row()], a_meta(), folder=tmp_path / "luts")
    status, out, _ = cli("luts list")
    assert status == 0
    assert "test-cpu-1/onnxruntime-fp32-bs1" in out
    assert "±2.0 %" in out
    for line in ("luts show", f"luts show {lut.path}", "luts show test-cpu-1/onnxruntime-fp32-bs1@1"):
        status, out, _ = cli(line)
        assert status == 0
        assert "conv 3x8x8 k3 s1 -> 8" in out
        assert "1.5000" in out


@pytest.mark.parametrize(("hi_ms", "told"), [(0.0015, "±50.0 %"), (26.0, "more than itself")])
def test_a_call_overhead_that_is_all_but_nothing_has_no_figure_of_millions_of_per_cent(cli, tmp_path, hi_ms, told):
    overhead = OpSpec(kind="identity", in_channels=3, out_channels=3, height=8, width=8)
    times = {"latency_ms": 0.001, "latency_lo_ms": 0.0005, "latency_hi_ms": hi_ms}
    publish([a_row(), Row.of(overhead, n_rounds=12, **times)], a_meta(), folder=tmp_path / "luts")
    assert f"{told} median, {told} widest: microseconds" in cli("luts show")[1]


def test_the_row_that_a_lookup_takes_is_shown_and_the_others_on_request(cli, tmp_path):
    publish(
        [a_row(), a_row(method="in_situ", latency_ms=1.5, latency_lo_ms=1.2, latency_hi_ms=1.8)],
        a_meta(),
        folder=tmp_path / "luts",
    )
    status, out, err = cli("luts show")
    assert (status, out.count("conv 3x8x8")) == (0, 1)
    assert "20.0 %" in out
    assert "in situ" in out
    assert "1 more rows" in err
    assert cli("luts show --every-row")[1].count("conv 3x8x8") == 2
    assert len(json.loads(cli("luts show --json")[1])["rows"]) == 2


def test_json_of_a_table_holds_every_row_and_the_footer(cli, tmp_path):
    publish([a_row()], a_meta(), folder=tmp_path / "luts")
    listed = json.loads(cli("luts list --json")[1])["luts"]
    assert [(lut["name"], lut["version"], lut["n_rows"]) for lut in listed] == [
        ("test-cpu-1/onnxruntime-fp32-bs1", 1, 1)
    ]
    shown = json.loads(cli("luts show --json")[1])
    assert shown["rows"][0]["latency_ms"] == 1.5
    assert shown["meta"]["target"]["device"] == "test-cpu-1"


def test_the_newest_table_is_shown_when_none_is_named(cli, tmp_path):
    older = a_meta(created="2024-01-31T12:00:00Z", target=Target(device="a-later-name", runtime="litert"))
    publish([a_row()], a_meta(), folder=tmp_path / "luts")
    publish([a_row()], older, folder=tmp_path / "luts")
    assert "test-cpu-1/onnxruntime-fp32-bs1@1" in cli("luts show")[1]


def test_a_damaged_table_is_named_and_the_others_are_listed(cli, tmp_path):
    publish([a_row()], a_meta(), folder=tmp_path / "luts")
    other = publish([a_row()], a_meta(target=Target(device="b", runtime="litert")), folder=tmp_path / "luts")
    other.path.write_bytes(other.path.read_bytes()[:-20])
    status, out, err = cli("luts list")
    assert status == 65
    assert "test-cpu-1/onnxruntime-fp32-bs1" in out
    assert "error[lut_corrupt]" in err
    assert "b/litert-fp32-bs1/v0001.parquet" in err
    status, out, _ = cli("luts list --json")
    told = json.loads(out)
    assert (status, len(told["luts"]), told["refused"][0]["code"]) == (65, 1, "lut_corrupt")


def test_a_failed_row_says_why(cli, tmp_path):
    failed = a_row(
        latency_ms=None, latency_lo_ms=None, latency_hi_ms=None, exec_status="unsupported", reason="no kernel for Conv"
    )
    publish([failed], a_meta(), folder=tmp_path / "luts")
    assert "unsupported: no kernel for Conv" in cli("luts show")[1]


def a_report() -> ValidationReport:
    measured = np.linspace(7.0, 20.0, 12)
    good = accuracy(measured * np.tile([0.99, 1.01], 6), measured)
    networks = tuple(
        NetworkResult(
            op_id=f"net-{number}", group="searched" if number < 3 else "random", measured_ms=float(ms),
            predicted_ms=float(ms), undrifted_ms=float(ms), macs=1, n_ops=20, n_visits=60, n_instances=3,
            test_retest=0.004,
        )
        for number, ms in enumerate(measured)
    )  # fmt: skip  # one record, two lines
    return ValidationReport(
        lut_sum=good, undrifted=good, published=None, flops_linear=good, depth_linear=good, deciles=(0.01,) * 10,
        test_retest_floor=0.004, instance_floor=0.0085, op_instance_sd=0.013, session_scale=None,
        networks_sha256="ab" * 32, rounds=20, wall_s=600.0, timed_fraction=0.93, networks=networks,
    )  # fmt: skip  # one record, three lines


def test_a_validated_table_shows_its_error_beside_the_floors(cli, tmp_path):
    publish([a_row()], a_meta(validation=a_report().to_json()), folder=tmp_path / "luts")
    out = cli("luts show")[1]
    assert re.search(r"table with this session's op visits pooled in +1\.00 % \(1\.00 to 1\.00\) ", out)
    assert "3 searched, 9 random, 7.000 to 20.000 ms, 3 instances each" in out
    assert "test-retest 0.40 %, between instances of a network 0.85 %, of an op 1.30 %" in out
    assert "table as published " not in out
    assert "excess error" not in out
    assert re.search(r"onnxruntime-fp32-bs1 .* 1\.00 %", cli("luts list")[1])


def test_a_full_report_names_both_tables_both_noises_and_both_ends(cli, tmp_path):
    report = a_report()
    tenths = deciles(np.linspace(7.07, 20.2, 12), np.linspace(7.0, 20.0, 12))
    full = replace(
        report, table="test-cpu-1/onnxruntime-fp32-bs1@3", published=report.lut_sum, calibrated=report.lut_sum,
        flops_linear_held_out=report.lut_sum, depth_linear_held_out=report.lut_sum, fastest=tenths[0],
        slowest=tenths[-1], truth_noise=0.004, run_noise=0.007, excess_error=excess(report.lut_sum.mape, 0.004),
        excess_over_run=excess(report.lut_sum.mape, 0.007), session_scale=1.01, n_fitted=16, seed=1,
    )  # fmt: skip  # one record, four lines
    publish([a_row()], a_meta(validation=full.to_json()), folder=tmp_path / "luts")
    out = cli("luts show")[1]
    assert re.search(r"table +test-cpu-1/onnxruntime-fp32-bs1@3", out)
    assert re.search(r"table as published +1\.00 % \(1\.00 to 1\.00\) +2\.50 ", out)
    assert re.search(r"table as published, calibrated rows +1\.00 %", out)
    assert re.search(r"baseline: MACs, each network held out +1\.00 %", out)
    assert "none of the 16 the table was fitted to" in out
    assert "expected error of a network's measured time 0.40 %, of one preparation of it 0.70 %" in out
    assert "is 2.50 (2.50 to 2.50) times the truth's error, 1.43 (1.43 to 1.43) times one preparation's" in out
    assert re.search(r"fastest tenth +7\.000 to 8\.182 ms: MAPE 1\.00 % \(1\.00 to 1\.00\), bias 1\.00 %", out)
    assert re.search(r"slowest tenth +20\.000 to 20\.000 ms: MAPE 1\.00 %", out)
    assert "took 1.0100 times as long as the table as published" in out


def test_a_list_of_networks_stands_alone(cli):
    status, _, err = cli("validate x --networks nets.json --random 3")
    assert (status, "leave out --random and --searched" in err) == (65, True)


def test_a_validation_of_another_lutbuilder_is_said_to_be_one(cli, tmp_path):
    publish([a_row()], a_meta(validation={"novel": 1}), folder=tmp_path / "luts")
    status, out, _ = cli("luts show")
    assert status == 0
    assert "written by another lutbuilder" in out
    assert json.loads(cli("luts show --json")[1])["validation"] == {"novel": 1}
    assert cli("luts list")[0] == 0


# --- Lint, diff, gate


def forty_ops(factor: float = 1.0, **changes) -> list[Row]:
    """Rows of ops that differ in two things each, ±1 %; `changes` are of the first one."""
    rows = []
    for number in range(40):
        op = OpSpec(kind="conv", in_channels=3 + number, out_channels=8 + number, height=8, width=8, kernel=3)
        ms = factor * (1.0 + 0.1 * number)
        values = {
            "latency_ms": ms, "latency_lo_ms": 0.99 * ms, "latency_hi_ms": 1.01 * ms, "call_overhead_ms": 0.1,
            "n_visits": 60, "n_rounds": 20, "n_instances": 3, "n_sessions": 2,
        }  # fmt: skip  # one record
        rows.append(Row.of(op, **{**values, **(changes if number == 0 else {})}))
    return rows


def test_lint_ends_with_0_without_errors_and_with_1_where_strict_finds_warnings(cli, tmp_path):
    publish(forty_ops(bimodal=True), a_meta(spaces=()), folder=tmp_path / "luts")
    for line in ("luts lint", "luts lint test-cpu-1/onnxruntime-fp32-bs1@1"):
        status, out, _ = cli(line)
        assert status == 0
        assert re.search(
            r"^test-cpu-1/onnxruntime-fp32-bs1@1: 1 warning\(s\), 1 note\(s\) \(40 rows, 0 pairs\)$", out, re.M
        )
        assert re.search(r"^ ?warning +L105 +conv 3x8x8 k3 s1 -> 8 +visits fall into two groups$", out, re.M)
    assert cli("luts lint --strict")[0] == 1


def test_lint_ends_with_1_for_an_error_and_gives_figures_as_json(cli, tmp_path):
    publish(forty_ops(), a_meta(), folder=tmp_path / "luts")  # says proxyless, has none of it
    status, out, _ = cli("luts lint --json")
    (told,) = json.loads(out)["luts"]
    assert (status, told["counts"]["error"], told["n_rows"]) == (1, 1, 40)
    found = next(finding for finding in told["findings"] if finding["rule"] == "L401")
    assert (found["severity"], found["figure"], found["threshold"], found["op_id"]) == ("error", 0.0, 1.0, None)


def test_lint_lists_its_rules(cli):
    assert re.search(r"^ ?L201 +warning +An op is faster than one", cli("luts lint --rules")[1], re.M)
    rules = json.loads(cli("luts lint --rules --json")[1])["rules"]
    assert {"id": "L105", "severity": "warning", "name": "bimodal"}.items() <= rules[9].items()


def two_tables(tmp_path, **second) -> str:
    publish(forty_ops(), a_meta(), folder=tmp_path / "a")
    slower = {name: 1.1 * second.get("factor", 1.0) * ms for name, ms in (
        ("latency_ms", 1.0), ("latency_lo_ms", 0.99), ("latency_hi_ms", 1.01))}  # fmt: skip  # one mapping
    publish(forty_ops(second.get("factor", 1.0), **slower), a_meta(**second.get("meta", {})), folder=tmp_path / "b")
    return " ".join(str(next((tmp_path / name).rglob("v0001.parquet"))) for name in "ab")


def test_diff_names_the_slower_op_and_the_scale_of_all(cli, tmp_path):
    both = two_tables(tmp_path, factor=1.02)
    status, out, _ = cli(f"luts diff {both}")
    assert status == 0
    assert re.search(r"common scale +\+2\.0 % \(.*\), taken out of the rows", out)
    assert "1 SLOWER, 0 FASTER, 0 UNSURE, 39 SAME at ±2 %, of 40" in out
    assert re.search(r"^ ?conv 3x8x8 k3 s1 -> 8 +1\.0000 +1\.1220 +\+10\.0 % .* SLOWER$", out, re.M)
    told = json.loads(cli(f"luts diff {both} --json --absolute --min-effect 1%")[1])
    assert (told["absolute"], told["min_effect"], len(told["rows"])) == (True, 0.01, 40)
    assert {row["verdict"] for row in told["rows"]} == {"SLOWER"}


def test_diff_writes_a_picture_or_says_why_not(cli, tmp_path):
    both = two_tables(tmp_path)
    status, _, err = cli(f"luts diff {both} --svg diff.svg")
    assert (status, "wrote diff.svg" in err) == (0, True)
    assert (tmp_path / "diff.svg").read_text(encoding="utf-8").startswith("<svg xmlns=")
    status, _, err = cli(f"luts diff {both} --svg nowhere/diff.svg")
    assert (status, "error[lut_not_writable]: cannot write nowhere/diff.svg" in err) == (73, True)


def test_diff_of_two_targets_is_a_table_of_ratios(cli, tmp_path):
    both = two_tables(tmp_path, factor=3.0, meta={"target": Target(device="test-cpu-1", runtime="litert")})
    out = cli(f"luts diff {both}")[1]
    assert "runtime onnxruntime -> litert" in out
    assert "left in the rows" in out
    assert re.search(r"^ ?conv 4x8x8 k3 s1 -> 9 +1\.1000 +3\.3000 +x 3 +x 2\.96 to x 3\.04 +SLOWER$", out, re.M)
    assert cli(f"luts diff {both} --min-effect 0")[0] == 65


def test_a_noisy_table_is_marked_wherever_it_is_named(cli, tmp_path):
    rows = [replace(row, latency_lo_ms=None, latency_hi_ms=None, n_rounds=3) for row in forty_ops()]
    publish(rows, a_meta(spaces=()), folder=tmp_path / "luts")
    assert re.search(r"onnxruntime-fp32-bs1 .* noisy \(L903\)$", cli("luts list")[1], re.M)
    assert re.search(r"^ +marks +noisy \(L903\)$", cli("luts show")[1], re.M)
    assert json.loads(cli("luts list --json")[1])["luts"][0]["noisy"] == ["L903"]
    status, out, _ = cli("luts lint")
    assert (status, "40 of 40 measured ops have no interval" in out) == (1, True)


def test_a_table_shows_its_sessions_its_machine_and_what_kind_its_rows_are(cli, tmp_path):
    session = SessionReport(
        session_id="s1", agent="lab-1", n_visits=40, scale=-0.005, drift_range=0.5, sentinel_residual=0.0125,
        flagged=False, excluded=False, reason="",
    )  # fmt: skip  # one record, two lines
    odd = replace(session, session_id="s2", flagged=True, excluded=True, reason="restless")
    rows = forty_ops(residual_mad=0.02, settled=False, throttled_fraction=0.25, preempted_fraction=0.125, bimodal=True)
    rows[1] = replace(rows[1], method="imputed", evidence="modelled", n_visits=0)
    rows.append(replace(rows[2], method="calibrated"))
    meta = a_meta(spaces=(), session_reports=(session, odd), drift_trace=((0.0, 1.0), (1.0, 0.5), (2.0, 1.0)))
    publish(rows, meta, folder=tmp_path / "luts")
    out = cli("luts show")[1]
    assert re.search(r"^ +marks +1 calibrated, 1 imputed$", out, re.M)
    assert re.search(r"^ +rows +41: 39 measured, 1 imputed, 1 calibrated$", out, re.M)
    assert re.search(r"^ +ops +±1\.0 % median, ±1\.0 % widest$", out, re.M)
    assert re.search(r"^ +machine +speed 0\.50 to 1\.00 of the typical, over time █▁█$", out, re.M)
    assert re.search(r"^ ?s1 +lab-1 +40 +-0\.50 % +50\.0 % +1\.25 % +in line$", out, re.M)
    assert re.search(r"^ ?s2 .* left out: restless$", out, re.M)
    assert re.search(r"^ ?conv 3x8x8 .* measured, bimodal, not settled, 25\.0 % throttled$", out, re.M)
    assert re.search(r"^ ?conv 4x8x8 .* imputed$", out, re.M)


REQUESTS = {
    "device": "simulated", "space": "proxyless-w1.3", "runtime": "simulated", "batch": 8, "threads": 2,
    "budget_s": 90.5, "precision": 0.0005, "max_rounds": 12, "instances": 2, "max_ops": 40, "cache": "hot", "seed": 7,
    "luts": Path("my tables"), "state_dir": Path("a/b"), "listen": "127.0.0.1:7171", "wait_s": 30.0, "lease_rounds": 5,
    "sessions": 3, "agents": 2, "carriers": 5, "again": True, "new_conditions": True, "accept_noisy": True,
    "keep_flagged": True, "runtime_options": (("a", "1"), ("b", "x y")),
}  # fmt: skip  # a value a field


def test_the_command_a_refusal_tells_to_type_makes_the_very_same_request(cli, monkeypatch):
    asked: list[CollectRequest] = []

    def refuse(request, on_progress):
        asked.append(request)
        raise NoAgent("nobody")

    monkeypatch.setattr("lutbuilder.campaign.collect.collect", refuse)
    assert set(REQUESTS) == {field.name for field in fields(CollectRequest)}, "every option is in the test"
    every = CollectRequest(**REQUESTS)
    for request in (CollectRequest(), every, *(CollectRequest(**{name: value}) for name, value in REQUESTS.items())):
        status, _, err = cli(command_line(request).removeprefix("lutbuilder "))
        assert (status, err.splitlines()[-1]) == (75, "error[no_agent]: nobody")
        assert asked[-1] == request
    assert command_line(CollectRequest(), "--accept-noisy") == "lutbuilder collect --accept-noisy"


# --- Devices, spaces, agents, doctor


def test_devices_are_listed_with_how_far_they_were_tried(cli):
    status, out, _ = cli("devices")
    assert status == 0
    assert re.search(r"^ ?v100 .*not verified on the hardware$", out, flags=re.MULTILINE)
    assert {d["name"] for d in json.loads(cli("devices --json")[1])["devices"]} >= {"cpu", "simulated", "v100"}


def test_a_space_is_shown_with_its_size_and_its_ops(cli):
    assert "proxyless" in cli("spaces")[1]
    status, out, _ = cli("spaces show proxyless")
    assert status == 0
    assert "221,502,229,807,900,608" in out
    assert "70 (" in out
    shown = json.loads(cli("spaces show proxyless --json")[1])
    assert (shown["n_archs"], len(shown["ops"]), len(shown["variables"])) == ("221502229807900608", 70, 21)


def test_looking_for_agents_makes_no_store(cli, tmp_path):
    status, out, err = cli("agents")
    assert (status, out) == (0, "")
    assert "no agent has registered yet" in err
    assert not (tmp_path / "state").exists()
    assert json.loads(cli("agents --json")[1])["agents"] == []


def test_agents_are_listed_with_what_runs_there(cli, tmp_path):
    hello = AgentHello(
        name="lab-1",
        agent_version="0.1.0",
        fingerprint=Fingerprint(device="test-cpu-1", facts=()),
        runtimes=(
            RuntimeReport(name="onnxruntime", version="1.31.1"),
            RuntimeReport(name="litert", available=False, reason="not installed"),
        ),
    )
    (tmp_path / "state").mkdir()
    with Store.open(tmp_path / "state" / STORE_NAME) as store:
        store.open_session(hello, "s1", now_s=1.0)
    status, out, _ = cli("agents")
    assert status == 0
    assert re.search(
        r"^ ?lab-1 +unknown +test-cpu-1 .* onnxruntime 1\.31\.1 +0\.1\.0 +- .* ago$", out, flags=re.MULTILINE
    )
    assert [agent["name"] for agent in json.loads(cli("agents --json")[1])["agents"]] == ["lab-1"]


@pytest.mark.parametrize(
    ("chosen", "environ", "folder"),
    [
        (Path("here"), {"LUTBUILDER_STATE": "/there"}, "here"),
        (None, {"LUTBUILDER_STATE": "/there", "XDG_STATE_HOME": "/xdg"}, "/there"),
        (None, {"XDG_STATE_HOME": "/xdg"}, "/xdg/lutbuilder"),
        (None, {"XDG_STATE_HOME": "relative"}, "/home/me/.local/state/lutbuilder"),
        (None, {"LUTBUILDER_STATE": ""}, "/home/me/.local/state/lutbuilder"),
    ],
)
def test_campaigns_are_kept_where_the_user_says(chosen, environ, folder):
    assert state_folder(chosen, environ=environ, home=Path("/home/me")) == Path(folder)
    assert STORE_NAME.endswith(".sqlite")


def test_doctor_judges_python():
    assert check_python((3, 11)).state == "ok"
    assert check_python((3, 9)).state == "problem"
    assert check_python((3, 15)).cure == "use Python 3.10 to 3.14"


def test_doctor_notes_a_busy_machine():
    assert check_load(2, 0.3).state == "ok"
    assert check_load(2, 1.9).state == "note"
    assert check_load(None, None).found == "cannot be read here"


def test_one_missing_runtime_is_a_note_and_none_at_all_is_a_problem():
    simulated = RuntimeReport(name="simulated", version="1")
    missing = RuntimeReport(name="litert", available=False, reason="no module named ai_edge_litert")
    there = RuntimeReport(name="onnxruntime", version="1.31.1")
    assert [check.state for check in check_runtimes([there, missing, simulated])] == ["ok", "note", "ok"]
    checks = check_runtimes([missing, simulated])
    assert checks[0].state == "problem"
    assert checks[0].cure == "pip install 'lutbuilder-agent[litert]'"


def test_doctor_finds_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    assert check_folder("tables", tmp_path / "a" / "b", cure="x").state == "ok"
    assert not (tmp_path / "a").exists()
    assert check_folder("tables", tmp_path / "file" / "b", cure="x").state == "problem"


def test_doctor_gives_a_report_fit_for_an_issue(cli):
    status, out, _ = cli("doctor --json")
    report = json.loads(out)
    assert status == (0 if report["ready"] else 1)
    assert {"python", "versions", "platform", "device", "tables", "campaigns"} <= {c["what"] for c in report["checks"]}
    assert all(check["state"] in ("ok", "note", "problem") for check in report["checks"])
