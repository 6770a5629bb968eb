"""What people type (3m, 1%, 127.0.0.1:0) as numbers and back. Pure; a refusal is a SpecError saying how to write it."""

from __future__ import annotations

import math
import re
from typing import cast, get_args

from lutbuilder_agent.errors import SpecError
from lutbuilder_agent.records import Cache

_DURATION = re.compile(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s?)?")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_LONGEST_S = 30 * 86_400.0


def duration_s(text: str, *, option: str, zero: bool = False) -> float:
    """Return seconds for `90s`, `1h30m`, `7d` or a plain number of seconds; at most 30 days, 0 only where `zero`."""
    found = _DURATION.fullmatch(text.strip().lower())
    parts = found.groups() if found else ()
    if not any(parts) or not all(part is None or _NUMBER.fullmatch(part) for part in parts):
        raise SpecError(f"{option} {text!r} is not a duration; write it as 90s, 1h30m or 7d")
    days, hours, minutes, seconds = (float(part or 0) for part in parts)
    total_s = 86_400 * days + 3600 * hours + 60 * minutes + seconds
    if not (0 <= total_s <= _LONGEST_S) or (total_s == 0 and not zero):
        raise SpecError(f"{option} {text!r} must be {'from 0' if zero else 'above 0'} to 30 days; try 3m")
    return total_s


def fraction(text: str, *, option: str) -> float:
    """Return 0.01 for `1%` or `0.01`; above 0 and below 1, so that a forgotten percent sign is caught."""
    body = text.strip()
    percent = body.endswith("%")
    number = body.removesuffix("%").rstrip()
    if not _NUMBER.fullmatch(number):
        raise SpecError(f"{option} {text!r} is not a fraction; write it as 1% or 0.01")
    value = float(number) / (100 if percent else 1)
    if not 0 < value < 1:
        hint = f"did you mean {number}%?" if not percent and 0 < value < 100 else "write it as 1% or 0.01"
        raise SpecError(f"{option} {text!r} must be above 0% and below 100%; {hint}")
    return value


def whole(value: int, *, option: str, least: int, most: int) -> int:
    """Return `value` if it lies in [least, most]."""
    if not least <= value <= most:
        raise SpecError(f"{option} must be from {least} to {most}, got {value}")
    return value


def cache_state(text: str, *, option: str) -> Cache:
    """Return one of hot, rotating, flushed, cold."""
    for cache in get_args(Cache):
        if text.strip().lower() == cache:
            return cast(Cache, cache)
    raise SpecError(f"{option} {text!r} is unknown; write one of {', '.join(get_args(Cache))}")


def named_value(text: str, *, option: str, like: str = "xnnpack=0") -> tuple[str, str]:
    """Return name and value of `NAME=VALUE`; a refusal gives `like` as an example."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SpecError(f"{option} {text!r} is not NAME=VALUE; write it as {like}")
    return name.strip(), value.strip()


def listen_address(text: str, *, option: str) -> str:
    """Return `HOST:PORT` (port 0: any free one) if it reads as that; nobody looks the host up yet."""
    host, _, port = text.strip().rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        like = "127.0.0.1:0 or 127.0.0.1:7070" if option == "--listen" else "lab:7070 or 127.0.0.1:7070"
        raise SpecError(f"{option} {text!r} is not HOST:PORT; write it as {like}")
    return f"{host}:{int(port)}"


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: 850ms, 2.5s, 12s, 3m05s, 1h02m."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if 0 < seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    whole_s = round(seconds)
    if whole_s < 60:
        return f"{seconds:.1f}s" if seconds < 9.95 and whole_s != seconds else f"{whole_s}s"
    if whole_s < 3600:
        return f"{whole_s // 60}m{whole_s % 60:02d}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"


_UNITS = {
    "ms": {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "mj": {"uj": 1e-3, "µj": 1e-3, "mj": 1.0, "j": 1e3},
}


def amount(text: str, *, option: str, column: str) -> float:
    """Return `12ms`, `900us` or `30mJ` in the unit of `column` (ms, mj); a plain number where a column has none."""
    body = text.strip().lower()
    units = _UNITS.get(column.rpartition("_")[2])
    number = body.rstrip("abcdefghijklmnopqrstuvwxyzµ ")
    unit = body[len(number) :].strip()
    if not _NUMBER.fullmatch(number) or unit not in (units if units is not None else {""}):
        raise SpecError(f"{option} {text!r} is no amount of {column}; write it as {amount_of(column)}")
    return float(number) * (units[unit] if units is not None else 1.0)


def amount_of(column: str) -> str:
    """Return an example of what `amount` takes for a column."""
    return {"ms": "12ms", "mj": "30mJ"}.get(column.rpartition("_")[2], "1000000")


def amount_text(value: float, column: str, *, digits: int = 6) -> str:
    """Return an amount as people read it: 5.99943 ms, 30 mJ, 9,992,837 where a column is a count."""
    unit = {"ms": "ms", "mj": "mJ"}.get(column.rpartition("_")[2])
    return f"{value:,.0f}" if unit is None else f"{value:.{digits}g} {unit}"


def percent_text(value: float | None, digits: int = 1) -> str:
    """Return 0.0123 as `1.2 %`; `-` when it is not known."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"
