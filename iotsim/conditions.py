"""What `expect` says: a condition over a run, as text or as a function of its view.

Text is read over a whitelist of Python's syntax and never executed: numbers, comparisons, `and`,
`or`, `not`, `+ - * /`, the names below, and functions over the readings of a window.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from iotsim.condition_values import (
    ARITHMETIC,
    COMPARE,
    MODEL,
    OBSERVED,
    OF_BROKERS,
    Declared,
    NotNumbers,
    Reader,
    word,
)
from iotsim.errors import BadValue, UnknownName, told
from iotsim.facts import facts_html, line
from iotsim.faults.base import fault_name
from iotsim.members import script_hash
from iotsim.units import clock_text

if TYPE_CHECKING:
    from iotsim.stage import View

Status: TypeAlias = Literal["passed", "failed", "not evaluated"]
Check: TypeAlias = "Callable[[Any], Any]"

FIELD_FUNCTIONS = ("last", "max", "mean", "min", "nulls", "std")
FUNCTIONS = ("active", "count", "share", *FIELD_FUNCTIONS)
_CHARS_MAX, _NODES_MAX = 1000, 300
_EXAMPLE = "Write it as 'count() > 100' or 'mean(temperature) < 30 and faults == 0'."

_MARKS = {"passed": "✓", "failed": "✗", "not evaluated": "–"}


@dataclass(frozen=True, slots=True, repr=False)
class Expectation:
    """What became of one `expect`.

    Attributes
    ----------
    at_us : int
        When it was looked at, in simulated microseconds since the start.
    text : str
        The condition as it was written; the name of a function.
    message : str or None
        What it means, in the words of whoever wrote it.
    status : str
        passed, failed, or not evaluated: a name that only a live run knows, offline, or what
        becomes of messages in a run that publishes nowhere.
    seen : str
        The values it saw.
    last_us : int or None
        How far back it looked; None: to the start.
    is_text : bool
        Whether the condition was text.
    """

    at_us: int
    text: str
    message: str | None
    status: Status
    seen: str
    last_us: int | None = None
    is_text: bool = True

    @property
    def title(self) -> str:
        """Its message, or the condition."""
        return self.text if self.message is None else self.message

    def __repr__(self) -> str:
        return f"<Expectation {line(str(self))}>"

    def _repr_html_(self) -> str:
        seen = [("seen", self.seen)] if self.seen else []
        what = [("status", f"{_MARKS[self.status]} {self.status}"), ("condition", self.text)]
        return facts_html(f"Expectation {self.title}",
                          [("at", clock_text(self.at_us)), *what, *seen])

    def __str__(self) -> str:
        seen = f" ({self.seen})" if self.seen else ""
        said = "" if self.status != "not evaluated" else ": not evaluated"
        return f"{clock_text(self.at_us)} {_MARKS[self.status]} {self.title}{said}{seen}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that was read and checked.

    Attributes
    ----------
    text : str
    live_only : tuple of str
        The names in it that only a live run knows.
    reads : bool
        Whether it looks at readings.
    function : callable or None
        Of a view, if it is no text.
    code : str
        The hash of the function; empty for text.
    """

    text: str
    live_only: tuple[str, ...] = ()
    reads: bool = True
    function: Check | None = field(default=None, compare=False, repr=False)
    code: str = ""
    _tree: ast.expr | None = field(default=None, compare=False, repr=False)

    def judge(self, view: View, declared: Declared) -> tuple[Status, str]:
        """Return whether it holds, and the values it saw.

        Parameters
        ----------
        view : View
        declared : mapping of field name to device types
            Which types have a field at all: nulls of others do not count.
        """
        unknown = self._unknown(view)
        if unknown:
            return "not evaluated", unknown
        if self.function is not None:
            return _judge_function(self.function, view)
        assert self._tree is not None
        reader = Reader(view, declared)
        try:
            held = bool(reader.value(self._tree))
        except NotNumbers as error:
            return "failed", str(error)
        return ("passed" if held else "failed"), reader.told()

    def _unknown(self, view: View) -> str:
        # Which of the names nobody can know here, in words: nothing published loses nothing.
        if not self.live_only:
            return ""
        names, whose = self.live_only, "a live run only"
        seen = view.observed
        if seen is not None:
            if seen.publishers:
                return ""
            names = tuple(name for name in names if name in OF_BROKERS)
            whose = "a run that publishes somewhere"
        plural = "are" if len(names) > 1 else "is"
        return f"{', '.join(names)} {plural} known of {whose}" if names else ""


def condition_of(given: Any, fields: Iterable[str] | None = None) -> Condition:
    """Return the condition that people wrote.

    Parameters
    ----------
    given : str or callable (view) -> bool
    fields : iterable of str, optional
        The fields that devices have; any name may be one if not given.

    Raises
    ------
    BadValue, UnknownName
        If it is not a condition, or has a name that is not known.

    Examples
    --------
    >>> condition_of("acknowledged >= count()").live_only
    ('acknowledged',)
    """
    if isinstance(given, Condition):
        return given
    if callable(given):
        if inspect.iscoroutinefunction(given):
            raise BadValue("condition", given, "is a coroutine function",
                           "Give a plain function of the view.")
        name = getattr(given, "__name__", type(given).__name__)
        return Condition(name, function=given, code=script_hash(given))
    if not isinstance(given, str) or not given.strip() or not given.isprintable():
        raise BadValue("condition", given, "is not a condition", _EXAMPLE)
    if len(given) > _CHARS_MAX:
        raise BadValue("condition", given, f"is over {_CHARS_MAX:,} characters", _EXAMPLE)
    try:
        tree = ast.parse(given.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise BadValue("condition", given, "is not an expression", _EXAMPLE) from None
    reading = _Checker(given, None if fields is None else frozenset(fields))
    if reading.kind(tree) != "truth":
        raise BadValue("condition", given, "is a number, not a condition",
                       f"Compare it, as in '{given.strip()[:40]} > 0'.")
    return Condition(given.strip(), tuple(sorted(reading.live_only)), reading.reads, _tree=tree)


class _Checker:
    """Reads a condition once: whether all of it is allowed, and what it looks at."""

    def __init__(self, text: str, fields: frozenset[str] | None) -> None:
        self._text, self._fields, self._nodes = text, fields, 0
        self._in_share = False
        self.live_only: set[str] = set()
        self.reads = False

    def kind(self, node: ast.expr) -> Literal["number", "truth"]:
        self._nodes += 1
        if self._nodes > _NODES_MAX:
            raise self._bad("is too long")
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                self._want(part, "truth")
            return "truth"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._want(node.operand, "truth")
            return "truth"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            self._want(node.operand, "number")
            return "number"
        if isinstance(node, ast.Compare) and all(type(op) in COMPARE for op in node.ops):
            for part in (node.left, *node.comparators):
                self._want(part, "number")
            return "truth"
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            self._want(node.left, "number")
            self._want(node.right, "number")
            return "number"
        return self._leaf(node)

    def _leaf(self, node: ast.expr) -> Literal["number", "truth"]:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            if not _is_finite(node.value):
                raise self._bad("has a number that is too large")
            return "number"
        if isinstance(node, ast.Name):
            self._name(node.id)
            return "number"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            self._call(node.func.id, node.args)
            return "number"
        part = ast.unparse(node)
        raise self._bad(f"has {part[:40]!r}, which a condition cannot hold")

    def _name(self, name: str) -> None:
        if self._in_share:
            self._field(name)
        elif name in OBSERVED:
            self.live_only.add(name)
        elif name not in MODEL:
            if name in FUNCTIONS:
                raise self._bad(f"has {name} without its brackets")
            raise UnknownName("name in a condition", name, (*MODEL, *OBSERVED, *FUNCTIONS),
                              f"expect({self._text[:60]!r})")

    def _call(self, name: str, arguments: list[ast.expr]) -> None:
        if name not in FUNCTIONS or self._in_share:
            known = () if self._in_share else FUNCTIONS
            raise UnknownName("function of a condition", name, known,
                              f"expect({self._text[:60]!r})")
        if len(arguments) != (0 if name == "count" else 1):
            raise self._bad(f"has {name}() with {len(arguments)} arguments")
        if name == "active":
            fault_name(word(arguments[0], self._bad))
            return
        self.reads = True
        if name == "share":
            self._in_share = True
            self._want(arguments[0], "truth")
            self._in_share = False
        elif arguments:
            self._field(word(arguments[0], self._bad))

    def _field(self, name: str) -> None:
        if self._fields is not None and name not in self._fields:
            raise UnknownName("field", name, self._fields, f"expect({self._text[:60]!r})")

    def _want(self, node: ast.expr, kind: str) -> None:
        if self.kind(node) != kind:
            raise self._bad("compares what is no number" if kind == "number"
                            else "joins what is no condition")

    def _bad(self, why: str) -> BadValue:
        return BadValue("condition", self._text, why, _EXAMPLE)


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _judge_function(function: Check, view: View) -> tuple[Status, str]:
    # Whatever somebody's function does, it judges; it does not end a run.
    try:
        held = bool(function(view))
    except Exception as error:
        return "failed", f"it raised {told(error)}"
    return ("passed" if held else "failed"), ""
