"""Hostile bytes made from good ones: a protobuf message torn in ways that its wire format allows, or any file damaged.

Seeded and free of hypothesis: what matters here is how many, not how small the failing one is.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_DEEP = 600  # deeper than protobuf follows
_NUMBERS = (0, 1, 127, 128, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, 1 << 63)
_DOUBLES = (0.0, -0.0, -1.0, 1e-320, 29.9, 1e7, 1e18, 1.7e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    b"", b"\x00", b"a\x00b", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 70_000, b"../../../etc/passwd", b"/dev/zero",
    "\u202e\u0000\U0001f4a3".encode(), b"%s%n{0}", b"'; DROP TABLE reports; --", b"[" * 5_000, b'{"request":' * 400,
    b'{"request": {}}', b"nan", b"-1", b"9" * 5_000, b"null", b"\n\r\t",
)  # fmt: skip  # a list of words reads as one


@dataclass(slots=True)
class _Field:
    number: int
    kind: int
    value: int | bytes

    def encoded(self) -> bytes:
        key = varint(self.number << 3 | self.kind)
        if isinstance(self.value, int):
            return key + varint(self.value)
        return key + (varint(len(self.value)) if self.kind == _BYTES else b"") + self.value


def peak_bytes() -> int:
    """Return the most memory this program ever had. `ru_maxrss` would count the parent's, from before exec, as ours."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def mutated_message(raw: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Return a message with one to four things wrong, or, now and then, bytes that are no message at all."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.choice((0, 1, 10, 300, 3_000)))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        fields = _fields(raw)
        if fields is None or rng.random() < 0.2:
            raw = damaged(raw, rng)
        else:
            _tear(fields, rng, others)
            raw = b"".join(field.encoded() for field in fields)
    return raw


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Return a file or message with bits flipped, or a piece cut off, cut out, doubled, swapped or made up."""
    return rng.choice(_DAMAGES)(bytearray(raw), rng)


def _flip(raw: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _overwrite(raw: bytearray, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(raw) + 1), rng.choice((1, 4, 8, 100))
    new = rng.choice((b"\x00" * n, b"\xff" * n, rng.randbytes(n), b"\xff" * 9 + b"\x01"))
    return bytes(raw[:at] + new + raw[at + len(new) :])


def _cut(raw: bytearray, rng: random.Random) -> bytes:
    return bytes(raw[: rng.randrange(len(raw) + 1)])


def _piece(raw: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(raw) + 1)
    return start, min(len(raw), start + rng.choice((1, 2, 10, 200)))


def _cut_out(raw: bytearray, rng: random.Random) -> bytes:
    start, stop = _piece(raw, rng)
    return bytes(raw[:start] + raw[stop:])


def _double(raw: bytearray, rng: random.Random) -> bytes:
    start, stop = _piece(raw, rng)
    return bytes(raw[:stop] + raw[start:stop] * rng.choice((1, 2, 50)) + raw[stop:])


def _swap(raw: bytearray, rng: random.Random) -> bytes:
    start, stop = _piece(raw, rng)
    piece = raw[start:stop]
    del raw[start:stop]
    at = rng.randrange(len(raw) + 1)
    return bytes(raw[:at] + piece + raw[at:])


def _insert(raw: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return bytes(raw[:at] + rng.randbytes(rng.choice((1, 3, 30))) + raw[at:])


_DAMAGES: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _flip, _flip, _flip, _overwrite, _cut, _cut_out, _double, _swap, _insert,
)  # fmt: skip  # one list, one line


def _fields(raw: bytes) -> list[_Field] | None:
    """Return the fields of a message; None for bytes that are none."""
    found: list[_Field] = []
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    try:
        while at < len(raw):
            key = number()
            kind = key & 7
            if not key >> 3 or kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
                return None
            if kind == _VARINT:
                found.append(_Field(key >> 3, kind, number()))
                continue
            n = {_FIXED64: 8, _FIXED32: 4}.get(kind) or (number() if kind == _BYTES else 0)
            if at + n > len(raw):
                return None
            found.append(_Field(key >> 3, kind, raw[at : at + n]))
            at += n
    except IndexError:
        return None
    return found


def _tear(fields: list[_Field], rng: random.Random, others: Sequence[bytes]) -> None:
    """Do one thing to a message's fields, or to those of a message inside."""
    if not fields:
        fields.append(_made_up(rng))
        return
    at = rng.randrange(len(fields))
    field = fields[at]
    inner = _fields(field.value) if isinstance(field.value, bytes) and field.kind == _BYTES else None
    if inner and rng.random() < 0.5:
        _tear(inner, rng, others)
        field.value = b"".join(each.encoded() for each in inner)
        return
    what = rng.randrange(9)
    if what == 0:
        fields.insert(rng.randrange(len(fields) + 1), _Field(field.number, field.kind, field.value))
    elif what == 1:
        fields += [field] * rng.choice((1, 10, 1_000))
    elif what == 2:
        rng.shuffle(fields)
    elif what == 3:
        del fields[at]
    elif what == 4:
        field.number = rng.choice((*range(1, 20), (1 << 29) - 1))
    elif what == 5:
        fields[at] = _Field(field.number, *_any_value(rng))
    elif what == 6:
        fields.insert(at, _made_up(rng))
    elif what == 7:
        deep = b""
        for _ in range(rng.choice((3, 99, 101, _MOST_DEEP))):
            deep = _Field(field.number, _BYTES, deep).encoded()
        fields[at] = _Field(field.number, _BYTES, deep)
    else:
        _hostile(field, rng, others)


def _hostile(field: _Field, rng: random.Random, others: Sequence[bytes]) -> None:
    """Keep a field's type and make its value one that nobody expects."""
    if field.kind == _VARINT:
        field.value = rng.choice((*_NUMBERS, (1 << 64) - 1, (1 << 70) - 1, rng.getrandbits(64)))
    elif field.kind == _FIXED64:
        field.value = struct.pack("<d", rng.choice(_DOUBLES))
    elif field.kind == _FIXED32:
        field.value = rng.randbytes(4)
    else:
        field.value = rng.choice((rng.choice(_TEXTS), rng.choice(others), rng.randbytes(40)))


def _made_up(rng: random.Random) -> _Field:
    return _Field(rng.randrange(1, 16), *_any_value(rng))


def _any_value(rng: random.Random) -> tuple[int, int | bytes]:
    return rng.choice(
        (
            (_VARINT, rng.choice(_NUMBERS)),
            (_FIXED64, struct.pack("<d", rng.choice(_DOUBLES))),
            (_FIXED32, rng.randbytes(4)),
            (_BYTES, rng.choice(_TEXTS)),
        )
    )
