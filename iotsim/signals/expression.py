"""Arithmetic over fields: numbers, names, + − * /, min, max, where and comparisons, nothing else.

The text is parsed into a tree, every node of which is on a list; nothing of it is ever executed.
Arrays and single floats give the same bits. Null (NaN) in gives null out, except that a
comparison with null is false; a division by zero is null.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from iotsim.errors import BadValue
from iotsim.signals.base import Floats

CHARS_MAX, NODES_MAX, DEPTH_MAX = 1000, 200, 30
_ALLOWED = "Use numbers, field names, + - * /, min(), max(), where(a < b, x, y) and comparisons."

Many: TypeAlias = Callable[[Mapping[str, Floats]], Any]
One: TypeAlias = Callable[[Mapping[str, float]], Any]


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression.

    Attributes
    ----------
    names : tuple of str
        The fields it reads, in order of appearance.
    many : callable
        Fields as float64 arrays -> array, or a float where no field is read.
    one : callable
        Fields as floats -> float.
    """

    names: tuple[str, ...]
    many: Many
    one: One


@dataclass(frozen=True, slots=True)
class _Node:
    many: Many
    one: One
    truth: bool = False


def parse(text: Any) -> Expression:
    """Return the expression in a text.

    Raises
    ------
    BadValue
        If it is not an expression, uses anything else, or is too long or too deep.

    Examples
    --------
    >>> parse("min(100, 2 * level + 1)").one({"level": 60.0})
    100.0
    """
    if not isinstance(text, str):
        raise BadValue("expression", text, "is not text", _ALLOWED)
    if len(text) > CHARS_MAX:
        raise BadValue("expression", text, "is over 1,000 characters", "Split it into fields.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise BadValue("expression", text, "is not an expression", _ALLOWED) from None
    reader = _Reader(text)
    node = reader.number(tree.body, 0)
    return Expression(tuple(reader.names), node.many, node.one)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.names, self._nodes = text, dict[str, None](), 0

    def _refuse(self, node: ast.AST, why: str = "") -> BadValue:
        what = why or f"uses {ast.unparse(node)!r}, which is not on the list"
        return BadValue("expression", self.text, what, _ALLOWED)

    def number(self, node: ast.AST, depth: int) -> _Node:
        self._nodes += 1
        if self._nodes > NODES_MAX or depth > DEPTH_MAX:
            raise self._refuse(node, "is too long or too deep")
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            inside = self.number(node.operand, depth + 1)
            return _unary(inside) if isinstance(node.op, ast.USub) else inside
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            left, right = self.number(node.left, depth + 1), self.number(node.right, depth + 1)
            return _binary(_BINARY[type(node.op)], left, right)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node, node.func.id, depth + 1)
        if isinstance(node, ast.Compare):
            raise self._refuse(node, f"uses {ast.unparse(node)!r} as a number; put it in where()")
        raise self._refuse(node)

    def _constant(self, node: ast.Constant) -> _Node:
        if type(node.value) not in (int, float):
            raise self._refuse(node)
        try:
            value = float(node.value)  # type: ignore[arg-type]  # checked above
        except OverflowError:
            value = math.inf
        if not abs(value) <= 1e100:
            raise self._refuse(node, "has a number that is too large")
        return _Node(lambda fields: value, lambda fields: value)

    def _name(self, name: str) -> _Node:
        self.names[name] = None
        return _Node(lambda fields: fields[name], lambda fields: fields[name])

    def _call(self, node: ast.Call, name: str, depth: int) -> _Node:
        if name == "where" and len(node.args) == 3:
            test = self._comparison(node.args[0], depth)
            yes, no = self.number(node.args[1], depth), self.number(node.args[2], depth)
            return _Node(
                lambda fields: np.where(test.many(fields), yes.many(fields), no.many(fields)),
                lambda fields: yes.one(fields) if test.one(fields) else no.one(fields),
            )
        if name in _EXTREMES and len(node.args) >= 2:
            found = self.number(node.args[0], depth)
            for argument in node.args[1:]:
                found = _binary(_EXTREMES[name], found, self.number(argument, depth))
            return found
        raise self._refuse(node)

    def _comparison(self, node: ast.AST, depth: int) -> _Node:
        if not isinstance(node, ast.Compare) or any(type(op) not in _COMPARE for op in node.ops):
            raise self._refuse(node, f"asks where({ast.unparse(node)}, …), not a comparison")
        sides = [self.number(side, depth + 1) for side in (node.left, *node.comparators)]
        tests = [
            _binary(_COMPARE[type(op)], left, right)
            for op, left, right in zip(node.ops, sides, sides[1:], strict=False)
        ]
        found = tests[0]
        for test in tests[1:]:
            found = _binary((np.logical_and, lambda a, b: a and b), found, test)
        return found


Operation: TypeAlias = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]


def _binary(operation: Operation, left: _Node, right: _Node) -> _Node:
    on_many, on_one = operation
    return _Node(
        lambda fields: on_many(left.many(fields), right.many(fields)),
        lambda fields: on_one(left.one(fields), right.one(fields)),
    )


def _unary(inside: _Node) -> _Node:
    return _Node(
        lambda fields: np.negative(inside.many(fields)), lambda fields: -inside.one(fields)
    )


def _divide_many(a: Any, b: Any) -> Any:
    return np.divide(a, np.where(np.equal(b, 0.0), np.nan, b))


def _divide_one(a: float, b: float) -> float:
    return math.nan if b == 0.0 else a / b


def _less_many(a: Any, b: Any) -> Any:
    # Not np.minimum: of +0 and −0 it may return either, depending on the processor.
    return np.where(np.isnan(a) | (a <= b), a, b)


def _less_one(a: float, b: float) -> float:
    return a if a != a or a <= b else b


def _more_many(a: Any, b: Any) -> Any:
    return np.where(np.isnan(a) | (a >= b), a, b)


def _more_one(a: float, b: float) -> float:
    return a if a != a or a >= b else b


_BINARY: dict[type, Operation] = {
    ast.Add: (np.add, lambda a, b: a + b),
    ast.Sub: (np.subtract, lambda a, b: a - b),
    ast.Mult: (np.multiply, lambda a, b: a * b),
    ast.Div: (_divide_many, _divide_one),
}
_EXTREMES: dict[str, Operation] = {
    "min": (_less_many, _less_one),
    "max": (_more_many, _more_one),
}
_COMPARE: dict[type, Operation] = {
    ast.Lt: (np.less, lambda a, b: a < b),
    ast.LtE: (np.less_equal, lambda a, b: a <= b),
    ast.Gt: (np.greater, lambda a, b: a > b),
    ast.GtE: (np.greater_equal, lambda a, b: a >= b),
    ast.Eq: (np.equal, lambda a, b: a == b),
    ast.NotEq: (np.not_equal, lambda a, b: a != b),
}
