"""The values that a condition sees in a view of a run."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from iotsim.errors import BadValue
from iotsim.faults.base import fault_name
from iotsim.observed import observed_of

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.stage import View

Declared: TypeAlias = Mapping[str, frozenset[str]]

MODEL = ("devices", "errors", "faults", "now", "readings", "withheld")
OBSERVED = ("acknowledged", "dropped", "in_flight", "late", "lateness_p99", "latency_p50",
            "latency_p99", "lost", "offered", "queued", "refused", "unknown")
OF_BROKERS = tuple(name for name in OBSERVED if name not in ("late", "lateness_p99"))
_SEEN_CHARS_MAX = 400

ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}
COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}


def word(node: ast.expr, bad: Callable[[str], BadValue]) -> str:
    """Return the name of a field or fault, bare or in quotes."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise bad(f"has {ast.unparse(node)[:40]!r} where a name belongs")


class NotNumbers(Exception):
    """A field that holds no numbers was asked for some."""


class Reader:
    """Reads the values of a condition out of a view, and remembers what it saw."""

    def __init__(self, view: View, declared: Declared) -> None:
        self._view, self._declared = view, declared
        self._frame: pd.DataFrame | None = None
        self._seen: dict[str, Any] = {}

    def told(self) -> str:
        """Return every name and function with its value."""
        text = ", ".join(f"{name}={_shown(value)}" for name, value in self._seen.items())
        return text if len(text) <= _SEEN_CHARS_MAX else text[: _SEEN_CHARS_MAX - 1] + "…"

    def value(self, node: ast.expr) -> Any:
        """Return what a part of the condition comes to."""
        if isinstance(node, ast.BoolOp):
            # All parts, so that the report says what each of them saw.
            parts = [self.value(part) for part in node.values]
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        if isinstance(node, ast.UnaryOp):
            inner = self.value(node.operand)
            if isinstance(node.op, ast.Not):
                return not inner
            return -inner if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.Compare):
            values = [self.value(part) for part in (node.left, *node.comparators)]
            pairs = zip(node.ops, values[:-1], values[1:], strict=True)
            return all(COMPARE[type(op)](one, other) for op, one, other in pairs)
        if isinstance(node, ast.BinOp):
            return _arithmetic(type(node.op), self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Constant):
            return node.value
        name = ast.unparse(node)
        if name not in self._seen:
            self._seen[name] = self._look(node)
        return self._seen[name]

    def _look(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._named(node.id)
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        if name == "count":
            return len(self._rows())
        if name == "share":
            return self._share(node.args[0])
        of = word(node.args[0], lambda why: BadValue("condition", "", why))
        if name == "active":
            return self._view.faults.get(fault_name(of), 0)
        return self._over(name, of)

    def _named(self, name: str) -> Any:
        if name in OBSERVED:
            snapshot = self._view.observed
            assert snapshot is not None, "a condition with live names is not read offline"
            return getattr(observed_of(snapshot), name)
        if name == "now":
            return self._view.now_s
        if name == "faults":
            return sum(1 for devices in self._view.faults.values() if devices)
        return getattr(self._view, name)

    def _rows(self) -> pd.DataFrame:
        if self._frame is None:
            self._frame = self._view.frame()
        return self._frame

    def _over(self, function: str, name: str) -> float:
        rows = self._rows()
        if function == "nulls":
            return self._nulls(rows, name)
        if name not in rows.columns:
            return math.nan
        values = _numbers(rows[name])
        values = values[~_isnan(values)]
        if not len(values):
            return math.nan
        if function == "last":
            return float(values[-1])
        return float(getattr(values, function)())

    def _nulls(self, rows: pd.DataFrame, name: str) -> int:
        if name not in rows.columns:
            return 0
        empty = rows[name].isna()
        kinds = rows["device_type"].astype(str)
        has = set(self._declared.get(name, ())) | set(kinds[~empty].unique())
        return int((empty & kinds.isin(has)).sum())

    def _share(self, node: ast.expr) -> float:
        rows = self._rows()
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if not len(rows) or not names <= set(rows.columns):
            return math.nan
        columns = {name: _numbers(rows[name]) for name in names}
        there = ~_isnan(sum(columns.values()) if columns else 0.0)
        held = _Columns(columns).value(node)
        counted = int(there.sum())
        return float((held & there).sum() / counted) if counted else math.nan


class _Columns:
    """Evaluates a condition over columns, row by row at once."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns

    def value(self, node: ast.expr) -> Any:
        """Return what a part of the condition comes to in every row."""
        import numpy as np

        if isinstance(node, ast.BoolOp):
            parts = [np.asarray(self.value(part)) for part in node.values]
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return join.reduce(np.broadcast_arrays(*parts))
        if isinstance(node, ast.UnaryOp):
            inner = self.value(node.operand)
            if isinstance(node.op, ast.Not):
                return np.logical_not(inner)
            return -inner if isinstance(node.op, ast.USub) else inner
        with np.errstate(all="ignore"):
            if isinstance(node, ast.Compare):
                values = [self.value(part) for part in (node.left, *node.comparators)]
                pairs = zip(node.ops, values[:-1], values[1:], strict=True)
                held = [np.asarray(COMPARE[type(op)](one, two)) for op, one, two in pairs]
                return np.logical_and.reduce(np.broadcast_arrays(*held))
            if isinstance(node, ast.BinOp):
                return ARITHMETIC[type(node.op)](self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Name):
            return self._columns[node.id]
        assert isinstance(node, ast.Constant)
        return np.float64(node.value)  # type: ignore[arg-type]


def _numbers(column: Any) -> Any:
    import numpy as np
    import pandas as pd

    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
        raise NotNumbers(f"{column.name} holds no numbers")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _isnan(values: Any) -> Any:
    import numpy as np

    return np.isnan(values)


def _arithmetic(kind: type, one: Any, other: Any) -> Any:
    try:
        return ARITHMETIC[kind](one, other)
    except ZeroDivisionError:
        return math.nan
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
