"""Published files as bytes, and readers that take nothing on trust: no object of a file's choice is ever built.

A reader of a format raises `Malformed` for what breaks the format and `Invalid` for a value no row may hold; `located`
turns both into BadTable, which names file and row. Only rows with an `Invalid` value may be left out on request.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lutbuilder_agent.errors import BadTable, LutError, LutNotFound, SpecError

MAX_BYTES = 64 << 20
MAX_ROWS = 2_000_000  # a pickle may tell of the same mapping under many names
_MAX_COUNT = (1 << 63) - 1
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"[0-9]{1,19}")
_NPY_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{1,16})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9, ]*)\),? ?\}\s*"
)
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by version of the .npy format
_SHOWN = 60


class Malformed(Exception):
    """What breaks the format of a file; `located` adds where."""


class Invalid(Malformed):
    """A value that no row may hold, in a row that is otherwise as the format wants it."""


class Number(str):
    """A number as the file writes it, not parsed yet: a prefix of it is never taken for the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that was read: its name without folders, its bytes, their sha256."""

    name: str
    raw: bytes = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, name: str, raw: bytes) -> Source:
        """Return the source of `raw`. Raises BadTable for more than 64 MiB."""
        if len(raw) > MAX_BYTES:
            raise BadTable(f"{name} has {len(raw):,} bytes; tables of more than {MAX_BYTES:,} are not read")
        return cls(name=name, raw=raw, sha256=hashlib.sha256(raw).hexdigest())

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a file. Raises LutNotFound, LutError for one that cannot be read, BadTable for one that is too large."""
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except FileNotFoundError as error:
            raise LutNotFound(f"no file {path}; name the published table's file, or the folder of its files") from error
        except OSError as error:
            raise LutError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
        return cls.of(path.name, raw)

    def text(self) -> str:
        """Return the bytes as UTF-8. Raises Malformed."""
        try:
            return self.raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Malformed(f"byte {error.start} is no UTF-8: this is not a text file") from error


@contextmanager
def located(source: Source, where: str = "", *, dropped: list[str] | None = None) -> Iterator[None]:
    """Turn what a reader raises inside into BadTable naming the file and `where`; keep an Invalid row in `dropped`.

    An op that cannot be (SpecError) breaks the format, too. Without `dropped` nothing is left out.
    """
    try:
        yield
    except (Malformed, SpecError) as error:
        told = f"{source.name}{', ' if where else ''}{where}: {error}"
        if isinstance(error, Invalid):
            if dropped is not None:
                dropped.append(told)
                return
            raise BadTable(f"{told}. Nothing was imported; --drop-invalid leaves such rows out") from error
        raise BadTable(f"{told}. Nothing was imported") from error


def check_size(n_rows: int) -> None:
    """Raise Malformed for a file of so many rows."""
    if n_rows > MAX_ROWS:
        raise Malformed(f"more than {MAX_ROWS:,} rows")


# --- Single values


def number(value: object, name: str) -> float:
    """Return a finite number, given as a file's text or as a float. Raises Invalid naming it."""
    if type(value) is Number:
        if not _NUMBER.fullmatch(value):
            raise Invalid(f"{name} must be a finite number, got {_shown(value)}")
        parsed = float(value)
    elif type(value) in (int, float):
        try:
            parsed = float(value)  # type: ignore[arg-type]  # the line above has looked
        except OverflowError as error:
            raise Invalid(f"{name} is too large") from error
    else:
        raise Invalid(f"{name} must be a number, got {_shown(value)}")
    if not math.isfinite(parsed):
        raise Invalid(f"{name} must be finite, got {_shown(value)}")
    return parsed


def positive(value: object, name: str) -> float:
    """Return a finite number above 0. Raises Invalid naming it."""
    parsed = number(value, name)
    if parsed <= 0:
        raise Invalid(f"{name} must be positive, got {_shown(value)}")
    return parsed


def spread(value: object, name: str) -> float | None:
    """Return a dispersion; None for 0, which published tables write where they recorded none. Raises Invalid."""
    parsed = number(value, name)
    if parsed < 0:
        raise Invalid(f"{name} must not be negative, got {_shown(value)}")
    return parsed or None


def count(value: object, name: str) -> int:
    """Return a number of samples, 1 or more. Raises Invalid naming it."""
    parsed = int(value) if type(value) is Number and _INTEGER.fullmatch(value) else value
    if type(parsed) is not int or not 1 <= parsed <= _MAX_COUNT:
        raise Invalid(f"{name} must be an integer from 1, got {_shown(value)}")
    return parsed


def plain(value: float) -> str:
    """Return a float with all its digits, as YAML 1.1 reads one, too: its exponents follow a point."""
    text = repr(float(value))
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _shown(value: object) -> str:
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


# --- Files of text


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of a file of rows: the line it starts in, and its fields. A value is Number where it stood unquoted."""

    line: int
    fields: Mapping[str, str]


def yaml_items(source: Source) -> dict[str, Item]:
    """Return the rows of a YAML file that maps keys to mappings of scalars.

    Goes through the parser's events, so that no tag, alias or depth of nesting can build anything. Raises Malformed for
    any of these, for a key or field that is there twice, and for what is no such mapping of mappings.
    """
    import yaml

    reader = _YamlRows()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C reads a table ten times as fast
    try:
        for event in yaml.parse(source.text(), Loader=loader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else "?"
        raise Malformed(f"line {line}: not YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a character that cannot be, escaped or not
        raise Malformed(f"not YAML ({str(error).splitlines()[0]})") from error
    return reader.rows


class _YamlRows:
    """Takes YAML events and holds the rows so far; a state machine of three depths: file, rows, fields."""

    def __init__(self) -> None:
        self.rows: dict[str, Item] = {}
        self._documents = 0
        self._depth = 0
        self._key: str | None = None
        self._field: str | None = None
        self._line = 0
        self._fields: dict[str, str] = {}

    def take(self, event: Any) -> None:
        """Take the next event. Raises Malformed."""
        kind = type(event).__name__
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise Malformed(f"line {line}: tag {event.tag!r} is not read; a table has keys and numbers alone")
        if kind == "AliasEvent" or getattr(event, "anchor", None) is not None:
            raise Malformed(f"line {line}: anchors and aliases are not read; a table has keys and numbers alone")
        if kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                raise Malformed(f"line {line}: a second document; a table is one")
        elif kind == "SequenceStartEvent":
            raise Malformed(f"line {line}: a list; a table maps keys to fields")
        elif kind == "MappingStartEvent":
            self._open(line)
        elif kind == "MappingEndEvent":
            self._close()
        elif kind == "ScalarEvent":
            self._scalar(event, line)

    def _open(self, line: int) -> None:
        if self._depth == 2 or (self._depth == 1 and self._key is None):
            raise Malformed(f"line {line}: a mapping inside a row; a row has fields with one number each")
        self._depth += 1
        self._fields = {}

    def _close(self) -> None:
        self._depth -= 1
        if self._depth == 1 and self._key is not None:
            self.rows[self._key] = Item(line=self._line, fields=self._fields)
            self._key = None

    def _scalar(self, event: Any, line: int) -> None:
        text = Number(event.value) if event.style in (None, "") else str(event.value)
        if self._depth == 0:
            raise Malformed(f"line {line}: {_shown(text)}, not a mapping of keys to fields")
        if self._depth == 1 and self._key is not None:
            raise Malformed(f"line {line}: key {_shown(self._key)} has no fields but {_shown(text)}")
        if self._depth == 1:
            self._key, self._line = str(text), line
            if self._key in self.rows:
                first = self.rows[self._key].line
                raise Malformed(f"line {line}: key {_shown(self._key)} is there twice, first in line {first}")
        elif self._field is None:
            self._field = str(text)
            if self._field in self._fields:
                raise Malformed(f"line {line}: field {_shown(self._field)} is there twice")
        else:
            self._fields[self._field] = text
            self._field = None


def json_object(source: Source) -> dict[str, Any]:
    """Return the object in a JSON file, its numbers as Number. Raises Malformed, also for a key that is there twice."""

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in members:
            if name in found:
                raise Malformed(f"key {_shown(name)} is there twice")
            found[name] = value
        return found

    try:
        value = json.loads(
            source.text(), object_pairs_hook=pairs, parse_float=Number, parse_int=Number, parse_constant=Number
        )
    except json.JSONDecodeError as error:
        raise Malformed(f"line {error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise Malformed("not a table: it nests too deeply") from error
    if type(value) is not dict:
        raise Malformed("not an object that maps keys to fields")
    return value


def lines(source: Source) -> Iterator[tuple[int, str]]:
    """Yield the lines that hold anything, numbered from 1. Raises Malformed."""
    for place, line in enumerate(source.text().split("\n"), start=1):
        if line.strip():
            yield place, line.strip()


# --- .npy


@dataclass(frozen=True, slots=True, kw_only=True)
class Npy:
    """An .npy file, its header parsed by hand: numpy's own reader would believe what it says about pickles."""

    descr: str
    fortran_order: bool
    shape: tuple[int, ...]
    body: bytes = field(repr=False)


def npy(source: Source) -> Npy:
    """Return header and body of an .npy file. Raises Malformed."""
    raw = source.raw
    n_bytes = _LENGTH_BYTES.get(raw[6]) if raw[:6] == b"\x93NUMPY" and len(raw) > 8 else None
    if n_bytes is None:
        raise Malformed("not an .npy file")
    start = 8 + n_bytes
    end = start + int.from_bytes(raw[8:start], "little")
    found = _NPY_HEADER.fullmatch(raw[start:end].decode("latin-1"))
    if found is None or end > len(raw):
        raise Malformed("an .npy file with a damaged header, or of several columns")
    numbers = [part.strip() for part in found["shape"].split(",") if part.strip()]
    if not all(_INTEGER.fullmatch(part) for part in numbers):
        raise Malformed("an .npy file with a damaged shape")
    return Npy(
        descr=found["descr"],
        fortran_order=found["fortran"] == "True",
        shape=tuple(map(int, numbers)),
        body=raw[end:],
    )
