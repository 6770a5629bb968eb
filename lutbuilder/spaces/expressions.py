"""Expressions in the file of a space: arithmetic and comparisons over its variables. They are read, never executed.

The grammar is Python's, cut down to numbers, texts, names, + - * / // %, comparisons, `in (..)`, and, or, not,
`a if b else c`, and the functions min, max, round, ceil, floor and divisible (lutbuilder.op.make_divisible).
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lutbuilder.op import make_divisible
from lutbuilder_agent.errors import SpecError

Names = Mapping[str, Any]
_Meaning = Callable[[Names], Any]
_LONGEST = 200  # characters: deeper nesting than that would exhaust the stack

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min, "max": max, "round": round, "ceil": math.ceil, "floor": math.floor, "divisible": make_divisible,
}  # fmt: skip  # one list, two lines
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: lambda a: -_number(a),
    ast.UAdd: lambda a: +_number(a),
    ast.Not: operator.not_,
}


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression by its text. Raises SpecError when made from what is none; can be pickled."""

    text: str

    def __post_init__(self) -> None:
        _parsed(self.text)

    @property
    def names(self) -> frozenset[str]:
        """The names whose values it needs."""
        return _parsed(self.text)[1]

    def value(self, names: Names) -> Any:
        """Return its value. Raises SpecError where there is none: a division by zero, a text where a number belongs."""
        try:
            return _parsed(self.text)[0](names)
        except (ArithmeticError, TypeError, ValueError) as error:
            there = ", ".join(f"{name} = {names[name]!r}" for name in sorted(self.names))
            raise SpecError(f"{self.text!r} has no value{f' where {there}' if there else ''}: {error}") from error


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[_Meaning, frozenset[str]]:
    if len(text) > _LONGEST:
        raise SpecError(f"an expression has {_LONGEST} characters at most, got {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about code that would be odd if it ran
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SpecError(f"{text!r} is no expression: {error}") from error
    names: set[str] = set()
    return _meaning(tree.body, names), frozenset(names)


def _meaning(node: ast.expr, names: set[str]) -> _Meaning:
    """Return the function that gives the value of `node`; what it reads is added to `names`."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, str, bool):
        constant = node.value
        return lambda _: constant
    if isinstance(node, ast.Name):
        name = node.id
        names.add(name)
        return lambda there: there[name]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        unary, inner = _UNARY[type(node.op)], _meaning(node.operand, names)
        return lambda there: unary(inner(there))
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        binary, left, right = _ARITHMETIC[type(node.op)], _meaning(node.left, names), _meaning(node.right, names)
        return lambda there: binary(_number(left(there)), _number(right(there)))
    if isinstance(node, ast.BoolOp):
        parts = [_meaning(part, names) for part in node.values]
        if isinstance(node.op, ast.And):
            return lambda there: all(part(there) for part in parts)
        return lambda there: any(part(there) for part in parts)
    if isinstance(node, ast.IfExp):
        test, yes, no = (_meaning(part, names) for part in (node.test, node.body, node.orelse))
        return lambda there: yes(there) if test(there) else no(there)
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARISONS for op in node.ops):
        terms = [_meaning(term, names) for term in (node.left, *node.comparators)]
        compare = [_COMPARISONS[type(op)] for op in node.ops]
        return lambda there: all(c(a(there), b(there)) for c, a, b in zip(compare, terms, terms[1:], strict=False))
    if isinstance(node, (ast.Tuple, ast.List)):
        items = [_meaning(item, names) for item in node.elts]
        return lambda there: tuple(item(there) for item in items)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in FUNCTIONS:
            raise SpecError(f"no function {node.func.id!r}; there are: {', '.join(FUNCTIONS)}")
        function, given = FUNCTIONS[node.func.id], [_meaning(item, names) for item in node.args]
        return lambda there: function(*(item(there) for item in given))
    raise SpecError(f"{ast.unparse(node)!r} is not allowed here; see docs/spaces.md for what an expression may hold")


def _number(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return value
    raise TypeError(f"{value!r} is not a number")
