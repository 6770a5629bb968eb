"""Fingerprint and conditions of a Linux-like host (Android included), from /proc and /sys below a sysroot.

A field that cannot be read is absent, with its reason in `Survey.unread`: a permission denied is not a zero. Facts are
what stays until somebody changes the machine or its settings; bogomips, MHz, loads and host names are never among them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lutbuilder_agent.errors import SpecError
from lutbuilder_agent.records import Conditions, Fingerprint

Read = Callable[[Path], str]

_VENDORS = {
    "AuthenticAMD": "amd",
    "GenuineIntel": "intel",
    "HygonGenuine": "hygon",
    "CentaurHauls": "centaur",
    "Shanghai": "zhaoxin",
}
# (implementer, part) of ARM cores, from the CPU ID registers; Kryo names as Qualcomm's kernels print them.
_ARM_CORES = {
    ("0x41", "0xd03"): "cortex-a53",
    ("0x41", "0xd04"): "cortex-a35",
    ("0x41", "0xd05"): "cortex-a55",
    ("0x41", "0xd07"): "cortex-a57",
    ("0x41", "0xd08"): "cortex-a72",
    ("0x41", "0xd09"): "cortex-a73",
    ("0x41", "0xd0a"): "cortex-a75",
    ("0x41", "0xd0b"): "cortex-a76",
    ("0x41", "0xd0c"): "neoverse-n1",
    ("0x41", "0xd0d"): "cortex-a77",
    ("0x41", "0xd40"): "neoverse-v1",
    ("0x41", "0xd41"): "cortex-a78",
    ("0x41", "0xd42"): "cortex-a78ae",
    ("0x41", "0xd44"): "cortex-x1",
    ("0x41", "0xd46"): "cortex-a510",
    ("0x41", "0xd47"): "cortex-a710",
    ("0x41", "0xd48"): "cortex-x2",
    ("0x41", "0xd49"): "neoverse-n2",
    ("0x41", "0xd4d"): "cortex-a715",
    ("0x41", "0xd4e"): "cortex-x3",
    ("0x41", "0xd4f"): "neoverse-v2",
    ("0x51", "0x804"): "kryo-4xx-gold",
    ("0x51", "0x805"): "kryo-4xx-silver",
}
_GOVERNORS = "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_DRIVERS = "sys/devices/system/cpu/cpu*/cpufreq/scaling_driver"
_MAX_TEMPERATURE_C = 150.0  # above it, and below -40, a zone reports that it has no sensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What only the running process knows. `allowed_cpus` is its affinity mask, None where the system has none."""

    machine: str  # instruction set, e.g. "x86_64"
    system: str  # e.g. "linux"
    python: str  # major.minor
    libc: str  # e.g. "glibc-2.36"; empty if unknown
    allowed_cpus: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A system file that could not be read, and the errno name: ENOENT is not there, EACCES is denied."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A fingerprint, and the files that could not be read while it was taken."""

    fingerprint: Fingerprint
    unread: tuple[Unread, ...]


def process_facts() -> ProcessFacts:
    """Return the facts of this process."""
    allowed = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
    return ProcessFacts(
        machine=platform.machine() or "unknown",
        system=platform.system().lower() or sys.platform,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        libc=_libc(),
        allowed_cpus=allowed,
    )


def read_text(path: Path) -> str:
    """Return a system file's text; bytes that are no UTF-8 become replacement characters. Raises OSError."""
    return path.read_bytes().decode(errors="replace")


def survey(sysroot: Path = Path("/"), *, process: ProcessFacts | None = None, read: Read = read_text) -> Survey:
    """Return the fingerprint of the host below `sysroot` and what could not be read. A missing file is no error."""
    files = _Files(sysroot, read)
    process = process or process_facts()
    processors = parse_cpuinfo(files.text("proc/cpuinfo") or "")
    first: Mapping[str, str] = processors[0] if processors else {}
    android = _android(files)
    cores = _arm_cores(processors)
    is_x86 = "model name" in first and "cpu family" in first
    board_model = files.text("proc/device-tree/model")
    soc = files.text("sys/devices/soc0/machine")

    if is_x86:
        device = x86_device(
            first.get("vendor_id", ""), first["model name"], first["cpu family"], first.get("model", "")
        )
    else:
        device = _board_device(android, board_model, soc, cores) or _slug(f"{process.system}-{process.machine}")
    facts: dict[str, str | None] = {
        "arch": process.machine,
        "python": process.python,
        "libc": process.libc,
        "os": android.get("os") or _os_release(files.text("etc/os-release")),
        "android.build": android.get("build"),
        "kernel": _kernel(process.system, files.text("proc/sys/kernel/osrelease")),
        "kernel.aslr": files.text("proc/sys/kernel/randomize_va_space"),
        "board.vendor": files.text("sys/class/dmi/id/sys_vendor"),
        "board.product": files.text("sys/class/dmi/id/product_name"),
        "board.model": board_model,
        "board.soc": soc,
        "hypervisor": _hypervisor(first, files.text("sys/hypervisor/type")),
        "limit.cpu_max": _cpu_max(files.text("sys/fs/cgroup/cpu.max")),
        "gpu": _nvidia_models(files.texts("proc/driver/nvidia/gpus/*/information")),
        **_cpu_facts(files, processors, cores, process),
        **_clock_facts(files),
        **_cache_facts(files),
    }
    known = tuple(sorted((name, _one_line(value)) for name, value in facts.items() if value))
    return Survey(fingerprint=Fingerprint(device=device, facts=known), unread=files.unread())


def read_conditions(sysroot: Path, *, monotonic_ns: int, read: Read = read_text) -> Conditions:
    """Return the conditions below `sysroot`, stamped `monotonic_ns`. A field that cannot be read is None."""
    files = _Files(sysroot, read)
    cpu = "sys/devices/system/cpu"
    clocks_khz = files.numbers(f"{cpu}/cpu*/cpufreq/scaling_cur_freq")
    throttles = files.numbers(f"{cpu}/cpu*/thermal_throttle/core_throttle_count")
    return Conditions(
        monotonic_ns=monotonic_ns,
        load_1min=_number((files.text("proc/loadavg") or "").partition(" ")[0]),
        cpu_mhz=sum(clocks_khz) / len(clocks_khz) / 1000 if clocks_khz else None,
        temperature_c=_hottest_c(files),
        throttle_count=int(sum(throttles)) if throttles else None,
        steal_s=_steal_s(files.text("proc/stat") or ""),
    )


def _nvidia_models(texts: Iterable[str]) -> str | None:
    """Return the models of the NVIDIA GPUs the driver lists, equal ones once; None without any."""
    models = (line.partition(":")[2].strip() for text in texts for line in text.splitlines() if "Model:" in line)
    return ", ".join(dict.fromkeys(model for model in models if model)) or None


def parse_cpuinfo(text: str) -> tuple[Mapping[str, str], ...]:
    """Return one mapping a logical CPU. Lines ARM kernels print once for all (Hardware, Serial) are left out."""
    processors: list[Mapping[str, str]] = []
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
        if "processor" in fields:
            processors.append(fields)
    return tuple(processors)


def x86_device(vendor: str, model_name: str, family: str, model: str) -> str:
    """Return the slug of an x86 CPU: vendor and model words without marks, clocks and core counts.

    A name without a digit is generic ("AMD EPYC" on a virtual machine), so family and model numbers follow it.

    >>> x86_device("AuthenticAMD", "AMD EPYC", "25", "17")
    'amd-epyc-25-17'
    >>> x86_device("GenuineIntel", "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "6", "158")
    'intel-core-i7-9750h'
    """
    words = model_name.lower()
    for pattern in (
        r"\((r|tm|c)\)",
        r"@.*",
        r"\bwith\b.*",
        r"\bversion\b.*",
        r"\b\d+(st|nd|rd|th) gen\b",
        r"\b(\d+|dual|triple|quad|six|eight|twelve|sixteen)-core\b",
        r"\b\d+(\.\d+)?\s*[gm]hz\b",
        r"\b(cpu|processor)\b",
    ):
        words = re.sub(pattern, " ", words)
    maker = _VENDORS.get(vendor, vendor.lower())
    slug = _slug(words)
    if maker and maker not in slug.split("-"):
        slug = _slug(f"{maker} {slug}")
    return slug if re.search(r"\d", slug) else _slug(f"{slug} {family} {model}")


def cpu_list(text: str) -> tuple[int, ...]:
    """Return the CPUs of a kernel list such as "0-3,6", sorted. Raises SpecError for anything else.

    >>> cpu_list("0-2,5")
    (0, 1, 2, 5)
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise SpecError(f"not a list of CPUs: {text!r}; write for example 4-6 or 0,2")
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(cpus))


class _Files:
    """Small text files below a sysroot; remembers which could not be read, and why."""

    def __init__(self, sysroot: Path, read: Read) -> None:
        self._sysroot = sysroot
        self._read = read
        self._unread: dict[str, str] = {}

    def text(self, path: str) -> str | None:
        """Return the stripped text, None if it is empty or cannot be read."""
        try:
            raw = self._read(self._sysroot / path)
        except OSError as error:
            self._unread[path] = errno.errorcode.get(error.errno or 0, type(error).__name__)
            return None
        return raw.replace("\0", " ").strip() or None

    def texts(self, pattern: str) -> list[str]:
        """Return the texts of all files that match, in the order of the numbers in their paths."""
        paths = sorted(self._sysroot.glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])
        found = [self.text(path.relative_to(self._sysroot).as_posix()) for path in paths]
        return [text for text in found if text is not None]

    def numbers(self, pattern: str) -> list[float]:
        numbers = [_number(text) for text in self.texts(pattern)]
        return [number for number in numbers if number is not None]

    def folders(self, pattern: str) -> list[str]:
        return sorted(path.relative_to(self._sysroot).as_posix() for path in self._sysroot.glob(pattern))

    def unread(self) -> tuple[Unread, ...]:
        return tuple(Unread(path=path, reason=reason) for path, reason in sorted(self._unread.items()))


def _cpu_facts(
    files: _Files, processors: Sequence[Mapping[str, str]], cores: Mapping[int, str], process: ProcessFacts
) -> dict[str, str | None]:
    first: Mapping[str, str] = processors[0] if processors else {}
    cpu = "sys/devices/system/cpu"
    present = _cpus(files.text(f"{cpu}/present")) or tuple(range(len(processors)))
    online = _cpus(files.text(f"{cpu}/online")) or present
    allowed = None if process.allowed_cpus is None else tuple(n for n in process.allowed_cpus if n in online)
    smt = files.text(f"{cpu}/smt/active")
    flags = sorted({flag for one in processors for flag in (one.get("flags") or one.get("Features") or "").split()})
    capacities = files.texts(f"{cpu}/cpu*/cpu_capacity")
    return {
        "cpu.vendor": first.get("vendor_id"),
        "cpu.model": first.get("model name"),
        "cpu.family": first.get("cpu family"),
        "cpu.model_number": first.get("model"),
        "cpu.stepping": first.get("stepping"),
        # A hypervisor shows a made-up microcode, or its own host's, which changes when the machine is moved.
        "cpu.microcode": None if "hypervisor" in flags else first.get("microcode"),
        "cpu.count": str(len(present)) if present else None,
        "cpu.online": None if online == present else str(len(online)),
        # Kinds and counts, not numbers: a container may be given other cores of the same kind at its next start.
        "cpu.allowed": _grouped(cores.get(n, "cpu") for n in allowed) if allowed and allowed != online else None,
        "cpu.cores": _grouped(cores.values()) if cores else None,
        "cpu.capacity": _grouped(capacities) if len(set(capacities)) > 1 else None,
        "cpu.flags": hashlib.sha256(" ".join(flags).encode()).hexdigest()[:12] if flags else None,
        "cpu.smt": {"1": "on", "0": "off"}.get(smt or ""),
        "cpu.isolated": files.text(f"{cpu}/isolated"),
    }


def _clock_facts(files: _Files) -> dict[str, str | None]:
    cpu = "sys/devices/system/cpu"
    no_turbo = files.text(f"{cpu}/intel_pstate/no_turbo")
    boost = files.text(f"{cpu}/cpufreq/boost") or {"0": "1", "1": "0"}.get(no_turbo or "")
    return {
        "clock.boost": {"0": "off", "1": "on"}.get(boost or ""),
        "clock.driver": "+".join(sorted(set(files.texts(_DRIVERS)))),
        "clock.governor": "+".join(sorted(set(files.texts(_GOVERNORS)))),
        "clock.source": files.text("sys/devices/system/clocksource/clocksource0/current_clocksource"),
    }


def _cache_facts(files: _Files) -> dict[str, str | None]:
    facts: dict[str, str | None] = {}
    for folder in files.folders("sys/devices/system/cpu/cpu0/cache/index*"):
        level, kind, size = (files.text(f"{folder}/{name}") for name in ("level", "type", "size"))
        if level and kind and size:
            suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
            facts[f"cache.l{level}{suffix}"] = size
    return facts


def _arm_cores(processors: Sequence[Mapping[str, str]]) -> dict[int, str]:
    cores: dict[int, str] = {}
    for one in processors:
        number = one.get("processor", "")
        implementer, part = one.get("CPU implementer", "").lower(), one.get("CPU part", "").lower()
        if number.isdecimal() and implementer and part:
            cores[int(number)] = _ARM_CORES.get((implementer, part), f"{implementer}-{part}")
    return cores


def _android(files: _Files) -> dict[str, str]:
    """Return what build.prop says: os, build, brand, model; empty where there is no Android."""
    properties: dict[str, str] = {}
    for path in ("system/build.prop", "vendor/build.prop"):
        for line in (files.text(path) or "").splitlines():
            name, equals, value = line.strip().partition("=")
            if equals and value:
                properties.setdefault(name, value)

    def first(*names: str) -> str:
        return next((properties[name] for name in names if name in properties), "")

    release = first("ro.build.version.release", "ro.system.build.version.release")
    found = {
        "os": f"android-{release}" if release else "",
        "build": first("ro.build.fingerprint", "ro.system.build.fingerprint", "ro.vendor.build.fingerprint"),
        "brand": first("ro.product.brand", "ro.product.vendor.brand", "ro.product.system.brand"),
        "model": first("ro.product.model", "ro.product.vendor.model", "ro.product.system.model"),
    }
    return {name: value for name, value in found.items() if value}


def _board_device(
    android: Mapping[str, str], board_model: str | None, soc: str | None, cores: Mapping[int, str]
) -> str:
    """Return the slug of a board or phone: product name, else SoC, else cores; empty if nothing is known."""
    if "model" in android:
        brand, model = android.get("brand", ""), android["model"]
        return _slug(model if model.lower().startswith(brand.lower()) else f"{brand} {model}")
    # Virtual ARM machines all call themselves linux,dummy-virt: that names no silicon.
    if board_model and not board_model.startswith("linux,dummy"):
        return _slug(re.sub(r"\brev\b.*", "", board_model.lower()))
    if soc:
        return _slug(soc)
    return _slug("arm " + " ".join(sorted(set(cores.values()), reverse=True))) if cores else ""


def _hypervisor(first: Mapping[str, str], kind: str | None) -> str | None:
    if kind:
        return kind
    if "flags" not in first:
        return None
    return "yes" if "hypervisor" in first["flags"].split() else "no"


def _os_release(text: str | None) -> str | None:
    fields = dict(line.split("=", 1) for line in (text or "").splitlines() if "=" in line)
    name, version = (fields.get(key, "").strip().strip("\"'") for key in ("ID", "VERSION_ID"))
    return "-".join(part for part in (name, version) if part) or None


def _kernel(system: str, release: str | None) -> str | None:
    match = re.match(r"\d+\.\d+", release or "")
    return f"{system}-{match[0]}" if match else None


def _cpu_max(text: str | None) -> str | None:
    """Return a cgroup's quota in CPUs ("1.5"), None without a limit."""
    quota, _, period = (text or "").partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return f"{int(quota) / int(period):g}"


def _hottest_c(files: _Files) -> float | None:
    zones = files.numbers("sys/class/thermal/thermal_zone*/temp") or files.numbers("sys/class/hwmon/hwmon*/temp*_input")
    celsius = [milli / 1000 for milli in zones if -40 <= milli / 1000 <= _MAX_TEMPERATURE_C]
    return max(celsius) if celsius else None


def _steal_s(stat: str) -> float | None:
    """Return stolen seconds since boot: the eighth number of /proc/stat's cpu line, in clock ticks (proc(5))."""
    fields = stat.partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu" or not fields[8].isdecimal():
        return None
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _libc() -> str:
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):  # not glibc (musl, bionic) or not POSIX
        name = None
    return (name or "-".join(part for part in platform.libc_ver() if part)).replace(" ", "-")


def _cpus(text: str | None) -> tuple[int, ...]:
    try:
        return cpu_list(text) if text else ()
    except SpecError:
        return ()


def _grouped(names: Iterable[str]) -> str:
    """Return "4xcortex-a55+4xcortex-a76" for eight core names in any order."""
    return "+".join(f"{count}x{name}" for name, count in sorted(Counter(names).items()))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:256]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64].strip("-") or "unknown"
