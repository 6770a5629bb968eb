"""What a device is: stable, readable without rights, the same for every process of the machine."""

from __future__ import annotations

import doctest
import errno
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder_agent.errors import SpecError
from lutbuilder_agent.fingerprint import ProcessFacts, conditions, cpu_list, fingerprint, linux, survey
from lutbuilder_agent.fingerprint.linux import parse_cpuinfo, read_text, x86_device
from lutbuilder_agent.records import Conditions

TREES = Path(__file__).parent.parent / "fixtures" / "sysroot"
NAMES = ("pixel4", "raspberry_pi4", "ryzen", "xeon_vm")
X86 = ProcessFacts(machine="x86_64", system="linux", python="3.12", libc="glibc-2.36")
ARM = replace(X86, machine="aarch64")


def process_of(tree: str) -> ProcessFacts:
    return ARM if tree in ("pixel4", "raspberry_pi4") else X86


def denying(*denied: str) -> Callable[[Path], str]:
    """A reader that is refused every path that ends with one of `denied`; file modes do not bind root, this does."""

    def read(path: Path) -> str:
        if path.as_posix().endswith(denied):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_text(path)

    return read


@pytest.mark.parametrize("tree", NAMES)
def test_the_full_record_of_every_tree_is_the_expected_one(tree: str) -> None:
    seen = fingerprint(TREES / tree, process=process_of(tree))
    now = conditions(TREES / tree, clock_ns=lambda: 7)
    expected = json.loads((TREES / f"{tree}.json").read_text())
    assert {"device": seen.device, "facts": dict(seen.facts), "conditions": asdict(now)} == expected


def test_an_empty_host_still_has_a_device_and_no_made_up_number(tmp_path: Path) -> None:
    seen = fingerprint(tmp_path, process=X86)
    assert seen.device == "linux-x86-64"
    assert dict(seen.facts) == {"arch": "x86_64", "libc": "glibc-2.36", "python": "3.12"}
    assert conditions(tmp_path, clock_ns=lambda: 1) == Conditions(monotonic_ns=1)


def test_a_denied_file_is_absent_with_its_reason_and_changes_nothing_else() -> None:
    full = dict(fingerprint(TREES / "ryzen", process=X86).facts)
    seen = survey(TREES / "ryzen", process=X86, read=denying("scaling_governor", "sys_vendor"))
    assert dict(seen.fingerprint.facts) == {
        name: value for name, value in full.items() if name not in ("clock.governor", "board.vendor")
    }
    reasons = {one.path: one.reason for one in seen.unread}
    assert reasons["sys/class/dmi/id/sys_vendor"] == "EACCES"
    assert reasons["sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"] == "EACCES"
    assert reasons["proc/device-tree/model"] == "ENOENT"


def test_denied_sensors_are_none_and_never_zero() -> None:
    read = denying("temp", "scaling_cur_freq", "core_throttle_count", "stat", "loadavg")
    assert linux.read_conditions(TREES / "ryzen", monotonic_ns=3, read=read) == Conditions(monotonic_ns=3)


def test_loads_clocks_and_heat_never_move_the_environment(tmp_path: Path) -> None:
    for tree in ("ryzen", "pixel4"):
        before = survey(TREES / tree, process=process_of(tree))

        def hot(path: Path) -> str:
            text = read_text(path)
            if path.name in ("temp", "scaling_cur_freq", "loadavg", "stat", "core_throttle_count"):
                return "99999 9 9 9 9 9 9 9 9 9"
            return text.replace("99.123", "11.000").replace("7600.05", "1.00").replace("38.40", "1.00")

        assert survey(TREES / tree, process=process_of(tree), read=hot).fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("scaling_governor", "schedutil"),
        ("cpufreq/boost", "0"),
        ("smt/active", "1"),
        ("osrelease", "6.9.1"),
        (
            "proc/cpuinfo",
            "processor : 0\nvendor_id : AuthenticAMD\ncpu family : 25\nmodel : 33\nmodel name : AMD Ryzen 7",
        ),
    ],
)
def test_another_setting_is_another_environment(path: str, text: str) -> None:
    def changed(file: Path) -> str:
        return text if file.as_posix().endswith(path) else read_text(file)

    before = survey(TREES / "ryzen", process=X86).fingerprint
    assert survey(TREES / "ryzen", process=X86, read=changed).fingerprint.env_id != before.env_id


def test_a_hypervisors_microcode_is_no_fact() -> None:
    assert "cpu.microcode" not in dict(fingerprint(TREES / "xeon_vm", process=X86).facts)
    assert "cpu.microcode" in dict(fingerprint(TREES / "ryzen", process=X86).facts)


def test_being_pinned_is_a_fact_of_kinds_and_counts_not_of_core_numbers() -> None:
    def allowed(tree: str, *cpus: int) -> str | None:
        process = replace(process_of(tree), allowed_cpus=cpus)
        return dict(fingerprint(TREES / tree, process=process).facts).get("cpu.allowed")

    assert allowed("xeon_vm", 0, 1, 2, 3) is None
    assert allowed("xeon_vm", 0, 1) == allowed("xeon_vm", 2, 3) == "2xcpu"
    assert allowed("pixel4", 4, 5, 6, 7) == "4xkryo-4xx-gold"
    assert allowed("pixel4", 0, 1, 2, 3) == "4xkryo-4xx-silver"


def test_this_machine_gives_the_same_record_twice_without_its_host_name_or_paths() -> None:
    first, second = fingerprint(), fingerprint()
    assert first == second
    values = [value for _, value in first.facts]
    assert not any(value.startswith("/") or str(Path.home()) in value for value in values)
    assert platform.node() not in values
    assert platform.node() != first.device
    assert dict(first.facts)["python"] == ".".join(platform.python_version_tuple()[:2])


def test_conditions_are_stamped_by_the_clock_they_are_given() -> None:
    assert conditions(clock_ns=lambda: 42).monotonic_ns == 42


@pytest.mark.parametrize(
    ("vendor", "name", "family", "model", "device"),
    [
        ("AuthenticAMD", "AMD EPYC", "25", "17", "amd-epyc-25-17"),
        ("AuthenticAMD", "AMD EPYC 7B13 64-Core Processor", "25", "1", "amd-epyc-7b13"),
        ("AuthenticAMD", "AMD EPYC 9B14", "25", "17", "amd-epyc-9b14"),
        ("AuthenticAMD", "AMD EPYC-Rome Processor", "23", "49", "amd-epyc-rome-23-49"),
        ("AuthenticAMD", "AMD Ryzen 7 PRO 4750U with Radeon Graphics", "23", "96", "amd-ryzen-7-pro-4750u"),
        ("AuthenticAMD", "AMD FX(tm)-8350 Eight-Core Processor", "21", "2", "amd-fx-8350"),
        ("GenuineIntel", "Intel(R) Xeon(R) CPU @ 2.20GHz", "6", "85", "intel-xeon-6-85"),
        ("GenuineIntel", "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", "6", "106", "intel-xeon-platinum-8370c"),
        ("GenuineIntel", "Intel Xeon Processor (Skylake, IBRS)", "6", "85", "intel-xeon-skylake-ibrs-6-85"),
        ("GenuineIntel", "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "6", "158", "intel-core-i7-9750h"),
        ("GenuineIntel", "11th Gen Intel(R) Core(TM) i7-1185G7 @ 3.00GHz", "6", "140", "intel-core-i7-1185g7"),
        ("GenuineIntel", "QEMU Virtual CPU version 2.5+", "15", "107", "intel-qemu-virtual-15-107"),
        ("HygonGenuine", "Hygon C86 7285 32-core Processor", "24", "2", "hygon-c86-7285"),
    ],
)
def test_a_cpu_is_named_by_vendor_and_model_only(vendor: str, name: str, family: str, model: str, device: str) -> None:
    assert x86_device(vendor, name, family, model) == device


@given(st.text(max_size=80), st.text(max_size=120), st.text(max_size=8), st.text(max_size=8))
def test_whatever_a_cpu_calls_itself_its_device_can_name_a_folder(
    vendor: str, name: str, family: str, model: str
) -> None:
    device = x86_device(vendor, name, family, model)
    assert 0 < len(device) <= 64
    assert set(device) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert device.strip("-") == device


@given(st.text())
def test_any_cpuinfo_parses_and_only_cpus_come_out(text: str) -> None:
    assert all("processor" in one for one in parse_cpuinfo(text))


@given(st.binary(max_size=400))
def test_any_bytes_in_a_system_file_give_a_record(raw: bytes) -> None:
    def garbage(path: Path) -> str:
        return raw.decode(errors="replace")

    seen = survey(TREES / "pixel4", process=ARM, read=garbage).fingerprint
    assert seen.device
    assert linux.read_conditions(TREES / "pixel4", monotonic_ns=1, read=garbage).monotonic_ns == 1


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_cpu_list_gives_back_the_cpus_it_was_written_from(cpus: set[int]) -> None:
    assert cpu_list(",".join(str(cpu) for cpu in cpus)) == tuple(sorted(cpus))
    low, high = min(cpus), max(cpus)
    assert cpu_list(f"{low}-{high}\n") == tuple(range(low, high + 1))


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1,,2", "0x3", "1-2-3"])
def test_what_is_no_cpu_list_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError, match="write for example 4-6 or 0,2"):
        cpu_list(text)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(linux).failed == 0
