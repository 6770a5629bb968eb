"""Named targets: one TOML file a device, package data. A new device is a new file here and no code.

title = "NVIDIA V100 GPU"                   # one line for people
local = false                               # true: `collect` starts an agent on this very machine
runtimes = ["torch-channels_last"]          # what makes sense there; the first is the default
threads = 1                                 # default threads
start_agent = ["ssh ... {port}", "... {coordinator}"]    # what to type, in order, until an agent dials in
evidence = "not verified on the hardware"   # how far we have tried it
options = { device = "cuda" }               # runtime options that make it this silicon; may be left out
peak_gmacs = 62500.0                        # 1e9 multiply-accumulates a second, in its fastest precision; the same
[match]                                     # globs; one that fits makes it this device; case is ignored
device = ["*v100*"]                         # against Fingerprint.device ...
gpu = ["*v100*"]                            # ... or against a fact of the fingerprint
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from lutbuilder_agent.errors import SpecError, unknown_name

if TYPE_CHECKING:
    from lutbuilder_agent.records import Fingerprint

_SUFFIX = ".toml"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTarget:
    """A device by name: how to know it, what to run on it, and how to start an agent there."""

    name: str
    title: str
    local: bool
    runtimes: tuple[str, ...]
    threads: int
    start_agent: tuple[str, ...]
    evidence: str
    match: tuple[tuple[str, tuple[str, ...]], ...]  # (what, globs): `device`, or the name of a fact
    options: tuple[tuple[str, str], ...] = ()  # runtime options, as in Plan
    peak_gmacs: float | None = None  # what no table of it may exceed, in 1e9 MAC/s; None: not known

    def __post_init__(self) -> None:
        if not self.title or not self.runtimes or not self.match or not self.evidence:
            raise SpecError(f"device {self.name!r} needs a title, runtimes, evidence and a [match] table")
        if type(self.threads) is not int or self.threads < 1:
            raise SpecError(f"device {self.name!r}: threads must be a positive integer, got {self.threads!r}")
        if not self.local and not any("{coordinator}" in line for line in self.start_agent):
            raise SpecError(f"device {self.name!r}: no line of start_agent names {{coordinator}}")
        if self.peak_gmacs is not None and self.peak_gmacs <= 0:
            raise SpecError(f"device {self.name!r}: peak_gmacs must be positive, got {self.peak_gmacs}")

    @property
    def runtime(self) -> str:
        """The default runtime."""
        return self.runtimes[0]

    def matches(self, fingerprint: Fingerprint) -> bool:
        """Say whether an agent with this fingerprint is this device."""
        facts = {**dict(fingerprint.facts), "device": fingerprint.device}
        return any(
            fnmatch.fnmatchcase(facts.get(what, "").casefold(), glob.casefold())
            for what, globs in self.match
            for glob in globs
            if what in facts
        )

    def is_slug(self, slug: str) -> bool:
        """Say whether `slug` (Fingerprint.device) is this device's."""
        globs = dict(self.match).get("device", ())
        return any(fnmatch.fnmatchcase(slug.casefold(), glob.casefold()) for glob in globs)

    def agent_lines(self, coordinator: str) -> tuple[str, ...]:
        """Return what to type, in this order, so that an agent on the device dials `coordinator` (HOST:PORT)."""
        port = coordinator.rpartition(":")[2]
        return tuple(line.replace("{coordinator}", coordinator).replace("{port}", port) for line in self.start_agent)


def names() -> tuple[str, ...]:
    """Return the names of all devices, this machine first."""
    from importlib.resources import files

    found = sorted(item.name.removesuffix(_SUFFIX) for item in files(__name__).iterdir() if item.name.endswith(_SUFFIX))
    return tuple(sorted(found, key=lambda name: (name != "cpu", name)))


@lru_cache(maxsize=64)
def get(name: str) -> DeviceTarget:
    """Return the device of that name. Raises UnknownName with the nearest names."""
    from importlib.resources import files

    if name not in names():
        raise unknown_name("device", name, names())
    return parse(name, files(__name__).joinpath(name + _SUFFIX).read_text(encoding="utf-8"))


def resolve(name: str, *, here: str) -> DeviceTarget:
    """Return the device a person means: a named one, or one by the slug of its silicon, as in the name of a table.

    `here` is this machine's slug (Fingerprint.device). Raises UnknownName with the nearest names.
    """
    if name in names():
        return get(name)
    if name == here:
        return get("cpu")
    slugs = [device for device in map(get, names()) if device.name != "cpu" and device.is_slug(name)]
    if slugs:
        return slugs[0]
    raise unknown_name("device", name, [*names(), here])


def elsewhere(name: str, slugs: Iterable[str]) -> DeviceTarget:
    """Return the device meant where agents are of other machines: a named one, or one by its silicon's slug.

    `slugs` are those of the agents. Such a device has the runtimes and threads of any CPU. Raises UnknownName.
    """
    slugs = sorted(set(slugs))
    if name in names():
        return get(name)
    known = [device for device in map(get, names()) if device.name != "cpu" and device.is_slug(name)]
    if known:
        return known[0]
    if name in slugs:
        return replace(get("cpu"), name=name, title=name, local=False, match=(("device", (name,)),))
    raise unknown_name("device", name, [*names(), *slugs])


def parse(name: str, text: str) -> DeviceTarget:
    """Return a device from its TOML. Raises SpecError naming the field that is wrong, missing or unknown."""
    values = _toml(name, text)
    wanted = {field.name for field in fields(DeviceTarget)} - {"name"}
    for field in sorted(wanted - {"options", "peak_gmacs", "start_agent"} - set(values)):
        raise SpecError(f"device {name!r}: {field} is missing")
    for field in sorted(set(values) - wanted):
        raise SpecError(f"device {name!r}: unknown field {field!r}")
    return DeviceTarget(
        name=name,
        title=_typed(name, "title", values["title"], str),
        local=_typed(name, "local", values["local"], bool),
        runtimes=_strings(name, "runtimes", values["runtimes"]),
        threads=_typed(name, "threads", values["threads"], int),
        start_agent=_strings(name, "start_agent", values.get("start_agent", [])),
        evidence=_typed(name, "evidence", values["evidence"], str),
        options=tuple(
            (option, _typed(name, f"options.{option}", value, str))
            for option, value in sorted(_typed(name, "options", values.get("options", {}), dict).items())
        ),
        peak_gmacs=_typed(name, "peak_gmacs", values["peak_gmacs"], float) if "peak_gmacs" in values else None,
        match=tuple(
            (what, _strings(name, f"match.{what}", globs))
            for what, globs in _typed(name, "match", values["match"], dict).items()
        ),
    )


def _toml(name: str, text: str) -> dict[str, Any]:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"device {name!r} is not TOML: {error}") from error
    return values


def _typed(name: str, field: str, value: object, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise SpecError(f"device {name!r}: {field} must be a {kind.__name__}, got {value!r}")
    return value


def _strings(name: str, field: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise SpecError(f"device {name!r}: {field} must be a list of texts, got {value!r}")
    return tuple(value)
