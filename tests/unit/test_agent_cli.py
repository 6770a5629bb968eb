"""`lutbuilder-agent`: what it understands, where it keeps things, what it says and the status it ends with."""

from __future__ import annotations

import doctest
import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent import cli, places
from lutbuilder_agent.doctor import doctor_lines
from lutbuilder_agent.errors import NotAuthenticated, ProtocolMismatch, SpecError, Unreachable
from lutbuilder_agent.fingerprint import ProcessFacts, conditions, survey
from lutbuilder_agent.records import RuntimeReport
from lutbuilder_agent.spool import Spool
from lutbuilder_agent.trust import Identity
from lutbuilder_agent.wire.servicer import add_to_server
from tests.agent_fakes import FakeCoordinator

TREES = Path(__file__).parent.parent / "fixtures" / "sysroot"
RUNS = RuntimeReport(name="onnxruntime", version="1.2.3")
SIMULATED = RuntimeReport(name="simulated", version="1")
MISSING = RuntimeReport(name="litert", available=False, reason="needs: pip install 'lutbuilder-agent[litert]'")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep every test away from the user's folders, and give the logger back as it was."""
    monkeypatch.setenv("LUTBUILDER_AGENT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    logger = logging.getLogger("lutbuilder_agent")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Runtimes answer at once: onnxruntime and simulated run, litert is missing. Gives the names asked for."""
    asked: list[Sequence[str]] = []

    def probe_all(names: Sequence[str]) -> tuple[RuntimeReport, ...]:
        asked.append(tuple(names))
        known = {report.name: report for report in (RUNS, SIMULATED, MISSING)}
        return tuple(known[name] for name in names if name in known)

    monkeypatch.setattr("lutbuilder_agent.runtimes.probe.probe_all", probe_all)
    return asked


@pytest.fixture
def serve() -> Iterator[Callable[[FakeCoordinator], str]]:
    """A function that puts a FakeCoordinator behind real gRPC and returns its address."""
    servers: list[grpc.Server] = []

    def start(coordinator: FakeCoordinator) -> str:
        server = grpc.server(ThreadPoolExecutor(4))
        add_to_server(coordinator, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


# --- what it understands


@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_mask_and_a_list_name_the_same_cpus(cpus: set[int]) -> None:
    mask = hex(sum(1 << cpu for cpu in cpus))
    assert cli.parse_cores(mask) == cli.parse_cores(",".join(map(str, cpus))) == tuple(sorted(cpus))


@pytest.mark.parametrize("text", ["none", "None"])
def test_none_pins_nothing(text: str) -> None:
    assert cli.parse_cores(text) is None
    before = os.sched_getaffinity(0)
    cli.pin(cli.parse_cores(text))
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("text", ["", "0x", "0x0", "0xzz", "big", "1-"])
def test_what_names_no_cpus_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError, match="write for example"):
        cli.parse_cores(text)


def test_a_cpu_that_is_not_there_ends_with_its_number_and_those_that_are(
    probed: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--coordinator", "127.0.0.1:1", "--cores", "4095"]) == SpecError.exit_status
    assert re.search(r"CPU 4095 is not available here; there are 0", capsys.readouterr().err)


def test_pinning_holds_for_the_processes_started_afterwards(fresh_python: Callable[[str], str]) -> None:
    seen = fresh_python(
        "import os, subprocess, sys; from lutbuilder_agent import cli\n"
        "first = min(os.sched_getaffinity(0)); cli.pin((first,))\n"
        "child = [sys.executable, '-c', 'import os; print(*os.sched_getaffinity(0))']\n"
        "print(first, subprocess.run(child, capture_output=True, text=True).stdout)"
    ).split()
    assert len(seen) == 2
    assert seen[0] == seen[1]


@pytest.mark.parametrize("address", ["host", "host:", ":7070", "host:x", "host:0", "host:70000"])
def test_an_address_without_host_and_port_is_refused_with_an_example(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--coordinator", address])
    assert ended.value.code == 2
    assert "HOST:PORT, for example" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--name", "a b", "letters, digits"),
        ("--runtimes", "abacus", "known: onnxruntime"),
        ("--give-up-after", "soon", "not a number of seconds"),
        ("--give-up-after", "-1", "not a number of seconds"),
        ("--spool-quota", "lots", "for example 500M or 2G"),
        ("--cache-quota", "1000", "no size of at least 1M"),
        ("--clock-domain", "a/b", "letters, digits"),
    ],
)
def test_a_bad_option_says_what_is_allowed(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--coordinator", "host:1", f"{option}={value}"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("1M", 1 << 20), ("500m", 500 << 20), ("2GiB", 2 << 30), ("3TB", 3 << 40)]
)
def test_sizes_are_written_with_a_letter(text: str, n_bytes: int) -> None:
    assert cli._parser().parse_args(["run", "--coordinator", "h:1", "--cache-quota", text]).cache_quota == n_bytes


@pytest.mark.parametrize("command", ["run", "join", "doctor"])
def test_help_shows_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    examples = re.findall(rf"^  lutbuilder-agent ({command}.*)$", shown, re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        cli._parser().parse_args(example.partition(" > ")[0].split())
    assert "--die-with-parent" not in shown


# --- where it keeps things, and what it is called


def test_state_lies_where_the_user_says_else_where_xdg_says_else_under_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTBUILDER_AGENT_STATE", str(tmp_path / "mine"))
    assert places.state_folders("a").cache == tmp_path / "mine" / "cache" / "a"
    assert places.state_folders("a").spool == tmp_path / "mine" / "spool" / "a"
    monkeypatch.delenv("LUTBUILDER_AGENT_STATE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    assert places.state_folders("a").cache == tmp_path / "c" / "lutbuilder-agent" / "artifacts" / "a"
    assert places.state_folders("a").spool == tmp_path / "s" / "lutbuilder-agent" / "spool" / "a"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.state_folders("a").cache == tmp_path / ".cache" / "lutbuilder-agent" / "artifacts" / "a"
    assert places.state_folders("a").spool == tmp_path / ".local" / "state" / "lutbuilder-agent" / "spool" / "a"


def test_without_a_home_state_lies_in_a_folder_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LUTBUILDER_AGENT_STATE", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    assert f"lutbuilder-{os.getuid()}" in places.state_folders("a").spool.parts
    assert places.state_folders("a").spool.is_absolute()


def test_two_names_never_share_a_folder() -> None:
    a, b = places.state_folders("a"), places.state_folders("b")
    assert len({a.cache, a.spool, b.cache, b.spool}) == 4


@given(st.text(max_size=300))
def test_any_host_name_makes_a_name_the_wire_takes(host: str) -> None:
    name = places.default_name(host, "amd-epyc-25-17")
    assert RuntimeReport(name=name).name.endswith("amd-epyc-25-17")


def test_agents_of_one_host_share_a_clock_domain_that_does_not_tell_the_hosts_id(tmp_path: Path) -> None:
    def host(name: str, boot_id: str) -> Path:
        kernel = tmp_path / name / "proc" / "sys" / "kernel" / "random"
        kernel.mkdir(parents=True)
        (kernel / "boot_id").write_text(boot_id + "\n")
        return tmp_path / name

    one = "6a1b0c9e-1111-4222-8333-123456789abc"
    domains = [places.clock_domain(host(name, boot)) for name, boot in (("a", one), ("b", one), ("c", one[::-1]))]
    assert domains[0] == domains[1] != domains[2]
    assert one[:8] not in domains[0]
    assert RuntimeReport(name=domains[0]).name.startswith("host-"), "a name that the wire takes"


def test_a_host_that_tells_no_id_shares_its_clocks_with_nobody(tmp_path: Path) -> None:
    assert places.clock_domain(tmp_path) == ""


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(places).failed == 0


# --- run


def test_nobody_there_says_what_to_type_and_ends_with_the_status_of_unreachable(
    probed: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--coordinator", "127.0.0.1:1", "--give-up-after", "0"]) == 68
    said = capsys.readouterr().err
    assert "127.0.0.1:1" in said
    assert "lutbuilder-agent run --coordinator HOST:PORT" in said
    assert "Traceback" not in said


def test_another_protocol_prints_the_upgrade_and_ends_with_its_status(
    probed: object, serve: Callable[[FakeCoordinator], str], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(call: str) -> None:
        raise ProtocolMismatch("upgrade the agent: pip install -U lutbuilder-agent")

    address = serve(FakeCoordinator(on_call=refuse))
    assert cli.main(["run", "--coordinator", address]) == 76
    assert "pip install -U lutbuilder-agent" in capsys.readouterr().err


def test_an_idle_coordinator_ends_an_agent_that_was_told_to_end_when_idle(
    probed: list[Sequence[str]], serve: Callable[[FakeCoordinator], str], tmp_path: Path
) -> None:
    coordinator = FakeCoordinator()
    before = signal.getsignal(signal.SIGTERM)
    command = ["run", "--coordinator", serve(coordinator), "--exit-when-idle", "--runtimes", "simulated,onnx,simulated"]
    assert cli.main([*command, "--name", "me"]) == 0
    (hello,) = coordinator.hellos
    assert hello.name == "me"
    assert hello.clock_domain == places.clock_domain() != ""
    assert hello.runtimes == (SIMULATED, RUNS)
    assert probed == [("simulated", "onnxruntime")]
    assert (tmp_path / "state" / "spool" / "me").is_dir()
    assert signal.getsignal(signal.SIGTERM) is before


def test_options_reach_the_agent(
    probed: object, serve: Callable[[FakeCoordinator], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    coordinator = FakeCoordinator()
    command = ["run", "--coordinator", serve(coordinator), "--exit-when-idle", "--runtimes", "simulated"]
    quotas: list[int] = []
    open_spool = Spool.open

    def watch(folder: Path, *, warn: Callable[[str], None], max_bytes: int) -> Spool:
        quotas.append(max_bytes)
        return open_spool(folder, warn=warn, max_bytes=max_bytes)

    monkeypatch.setattr(Spool, "open", watch)
    assert cli.main([*command, "--clock-domain", "bench-2", "--spool-quota", "3M"]) == 0
    assert coordinator.hellos[0].clock_domain == "bench-2"
    assert quotas == [3 << 20]


def test_off_loopback_nothing_is_said_in_plaintext(probed: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--coordinator", "192.0.2.1:7070", "--give-up-after", "0"]) == NotAuthenticated.exit_status
    said = capsys.readouterr().err
    assert "no certificate for an agent at 192.0.2.1:7070: join first" in said
    assert "Traceback" not in said


def test_the_ugly_flag_says_at_every_start_what_it_means(
    probed: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    class Nobody:
        def __init__(self, address: str, **_: object) -> None:
            tried.append(address)
            raise Unreachable("nobody answers")

    monkeypatch.setattr("lutbuilder_agent.wire.client.CoordinatorClient", Nobody)
    command = ["run", "--coordinator", "192.0.2.1:7070", "--give-up-after", "0", "--insecure-plaintext"]
    assert cli.main(command) == Unreachable.exit_status
    assert "WARNING: --insecure-plaintext" in capsys.readouterr().err
    assert tried == ["192.0.2.1:7070"]


def test_joining_prints_the_line_to_type_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def join(address: str, *, token: str, ca: str, name: str, coordinator: str) -> Identity:
        asked.append((address, token, ca, name, coordinator))
        return Identity(
            address="lab:7070", name=name, role="agent", certificate="", key="", ca="",
            issued_s=0.0, expires_s=1.8e9, path=tmp_path,
        )  # fmt: skip  # one identity

    monkeypatch.setattr("lutbuilder_agent.trust.join", join)
    pin = "sha256:" + "ab" * 32
    assert cli.main(["join", "lab:7072", "--token", "T-1", "--ca", pin, "--name", "pi"]) == 0
    assert asked == [("lab:7072", "T-1", pin, "pi", "")]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("joined as pi; the certificate is good until 2027-01-15")
    assert said[1] == "lutbuilder-agent run --coordinator lab:7070 --name pi"


def test_a_signal_that_was_ignored_stays_ignored_and_the_others_are_handled(
    probed: object, serve: Callable[[FakeCoordinator], str]
) -> None:
    handled: list[bool] = []

    def look(call: str) -> None:
        handled.append(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
        handled.append(signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL))

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert cli.main(["run", "--coordinator", serve(FakeCoordinator(on_call=look)), "--exit-when-idle"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert handled
    assert all(handled)


def test_log_lines_are_json_when_asked(
    probed: object, serve: Callable[[FakeCoordinator], str], capsys: pytest.CaptureFixture[str]
) -> None:
    address = serve(FakeCoordinator())
    assert cli.main(["run", "--coordinator", address, "--exit-when-idle", "--log-json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {"time_s", "level", "message"} == set(lines[0])
    assert lines[0]["message"].startswith("registered as ")


# --- doctor


def test_doctor_prints_every_runtime_with_the_line_to_type(probed: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "onnxruntime          runs, version 1.2.3" in shown
    assert "pip install 'lutbuilder-agent[litert]'" in shown
    assert "(0 reports wait)" in shown


def test_doctor_in_json_holds_the_whole_record(probed: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    seen = survey().fingerprint
    assert shown["device"] == seen.device
    assert shown["env_id"] == seen.env_id
    assert shown["facts"] == dict(seen.facts)
    assert [report["name"] for report in shown["runtimes"]] == ["onnxruntime", "litert", "simulated"]
    assert set(shown["conditions"]) >= {"load_1min", "cpu_mhz", "temperature_c", "throttle_count", "steal_s"}


def test_doctor_where_no_engine_runs_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lutbuilder_agent.runtimes.probe.probe_all", lambda names: (MISSING, SIMULATED))
    assert cli.main(["doctor"]) == 69
    assert "pip install 'lutbuilder-agent[onnx]'" in capsys.readouterr().err


def test_doctor_tells_denied_from_absent_and_gives_the_command_for_a_slow_governor() -> None:
    def read(path: Path) -> str:
        if path.name == "sys_vendor":
            raise PermissionError(13, "Permission denied")
        return path.read_text()

    process = ProcessFacts(machine="x86_64", system="linux", python="3.12", libc="")
    seen = survey(TREES / "ryzen", process=process, read=read)
    now = conditions(TREES / "ryzen", clock_ns=lambda: 1)
    lines = list(doctor_lines(seen, now, [RUNS], places.state_folders("a")))
    assert "  cannot read /sys/class/dmi/id/sys_vendor: EACCES" in lines
    assert not any("ENOENT" in line for line in lines)
    assert "  hottest zone       61.5 degC" in lines
    assert any("cpupower frequency-set -g performance" in line for line in lines)
