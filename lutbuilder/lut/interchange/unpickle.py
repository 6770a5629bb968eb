"""Reading plain data out of pickles without running any: a short list of names, and stand-ins for what numpy stores.

A pickle is a program. This one may make numbers, texts, lists, tuples, dicts and OrderedDicts; a global of any other
name is refused before anything is called. What it may do to memory and time is bounded by looking through its opcodes
first: those that plain data never needs, memo numbers out of the blue and deep nesting are refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from lutbuilder.lut.interchange.source import Malformed, Source, npy

Globals = Mapping[tuple[str, str], Callable[..., Any]]

_DEEPEST = 16
# Everything else makes objects of classes, reads buffers from elsewhere, or asks for memory it does not fill.
_OPCODES = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "LONG1",
    "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "PUT",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
))  # fmt: skip  # one list
_FILLS = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS"))
_NESTS = frozenset(("LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "DICT", "REDUCE", "BUILD"))
_FORMATS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i"}


class _Dtype:
    """Stands in for numpy.dtype: the type of one number, or "a Python object"."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if code not in _FORMATS and code not in ("O", "O8"):
            raise Malformed(f"numbers of numpy type {code!r} are not read")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise Malformed("a damaged numpy type")
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """Stands in for a numpy array without axes that holds one Python object."""

    value: object = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, held = state
        if shape != () or type(dtype) is not _Dtype or dtype.code in _FORMATS or type(held) is not list:
            raise Malformed("a numpy array that is not one Python object")
        (self.value,) = held


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, raw: bytes) -> float:
    if type(dtype) is not _Dtype or type(raw) is not bytes:
        raise Malformed("a damaged numpy number")
    return float(struct.unpack(dtype.order + _FORMATS[dtype.code], raw)[0])


_PLAIN: Globals = {("collections", "OrderedDict"): OrderedDict}
_NUMPY: Globals = {
    **_PLAIN,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{
        (module, name): stand_in
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, stand_in in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, raw: bytes, *, file: str, allowed: Globals) -> None:
        super().__init__(io.BytesIO(raw))
        self._file = file
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        found = self._allowed.get((module, name))
        if found is None:
            raise Malformed(f"refused global {module}.{name} in {self._file}")
        return found


def unpickled(source: Source) -> object:
    """Return the plain data in a pickle file. Raises Malformed, naming a global that is refused."""
    return _load(source.raw, file=source.name, allowed=_PLAIN)


def unpickled_npy(source: Source) -> object:
    """Return the object in an .npy file of one Python object, numpy numbers in it as floats. Raises Malformed."""
    found = npy(source)
    if (found.descr, found.shape) != ("|O", ()):
        raise Malformed(f"an array of {found.descr!r} with shape {found.shape}, not one Python object")
    array = _load(found.body, file=source.name, allowed=_NUMPY)
    if type(array) is not _Array:
        raise Malformed("no numpy array inside")
    return array.value


def pickled(value: object) -> bytes:
    """Return a pickle of protocol 2, which Python 2 and every numpy read; of builtin types and OrderedDict alone."""
    return pickle.dumps(value, protocol=2)


def _load(raw: bytes, *, file: str, allowed: Globals) -> object:
    try:
        _look_through(raw)
        return _Unpickler(raw, file=file, allowed=allowed).load()
    except Malformed:
        raise
    except Exception as error:  # a program somebody else wrote may fail in any way; whatever it is, it is refused
        raise Malformed(f"not a pickle of plain data ({type(error).__name__}: {error})") from error


def _look_through(raw: bytes) -> None:
    """Raise Malformed for opcodes that plain data does not need, and for what would cost more than it holds.

    Follows how deep everything on the stack is nested, as far as that matters: a tuple of shared tuples thirty deep
    takes as long to hash as 2^30 of them.
    """
    stack: list[int | None] = []  # depth of what is there; None: a mark
    memo: dict[int, int] = {}
    for place, (opcode, arg, _) in enumerate(pickletools.genops(raw)):
        name = opcode.name
        if name not in _OPCODES:
            raise Malformed(f"opcode {name} is not read: plain data does not need it")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(memo) if arg is None else int(arg)
            if slot > place:
                raise Malformed(f"memo number {slot} after {place} opcodes")
            memo[slot] = _depth(stack[-1])
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(arg or 0)])
        else:
            _step(stack, opcode)


def _step(stack: list[int | None], opcode: Any) -> None:
    taken: list[int] = []
    before = list(opcode.stack_before)
    if pickletools.markobject in before:
        while stack[-1] is not None:
            taken.append(_depth(stack.pop()))
        stack.pop()
        before = before[: before.index(pickletools.markobject)]
    taken += [_depth(stack.pop()) for _ in before]
    deepest = max(taken, default=0)
    if opcode.name in _NESTS:
        deepest += 1
    elif opcode.name in _FILLS:
        deepest = max(taken[-1], 1 + max(taken[:-1], default=0))
    if deepest > _DEEPEST:
        raise Malformed(f"nested more than {_DEEPEST} deep")
    stack.extend(None if kind is pickletools.markobject else deepest for kind in opcode.stack_after)


def _depth(depth: int | None) -> int:
    if depth is None:
        raise Malformed("a mark where a value belongs")
    return depth
