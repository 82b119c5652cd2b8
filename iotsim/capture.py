"""What a run keeps of its readings: columns in numpy chunks, bounded by time or rows.

Chunks that fall out of the bound are counted, never lost silently: digest and publishers have
seen them, and a run with `to=` has them on disk.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from iotsim.errors import BadValue
from iotsim.readings import Column, Readings
from iotsim.units import Duration, duration_us


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a capture keeps: a stretch of simulated time, a number of rows, or all."""

    span_us: int | None = None
    rows: int | None = None

    @classmethod
    def of(cls, value: Duration | None) -> Bound:
        """Return the bound for what people write: `"10m"`, `1_000_000` rows, `"all"`, or None.

        Raises
        ------
        BadValue
            If it is neither a duration as text, nor a positive number of rows, nor "all".
        """
        allowed = "Give a time such as '10m', a number of rows such as 1_000_000, or 'all'."
        if value is None or value == "all":
            return cls()
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise BadValue("capture", value, "is not a bound", allowed)
        if isinstance(value, int):
            if value <= 0:
                raise BadValue("capture", value, "is not a positive number of rows", allowed)
            return cls(rows=value)
        if re.fullmatch(r"\s*[\d._]+\s*", value):
            raise BadValue("capture", value, "has no unit", allowed)
        return cls(span_us=duration_us(value, "capture"))


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    readings: Readings
    first_us: int
    last_us: int


class Capture:
    """Readings in chunks, oldest first, within a bound.

    Parameters
    ----------
    bound : Bound
    """

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.newest_us = 0
        self._held: deque[_Held] = deque()
        self._rows = self._evicted_rows = 0

    def add(self, readings: Readings) -> None:
        """Keep readings, and let go of what falls out of the bound."""
        if not len(readings):
            return
        times = readings.time_us
        held = _Held(readings, int(times.min()), int(times.max()))
        if self.bound.span_us is not None and held.last_us <= self.newest_us - self.bound.span_us:
            self._evicted_rows += len(readings)  # a device that was held up: too old already
            return
        self._held.append(held)
        self._rows += len(readings)
        self.newest_us = max(self.newest_us, held.last_us)
        if self.bound.span_us is not None:
            oldest_us = self.newest_us - self.bound.span_us
            while self._held[0].last_us <= oldest_us:
                self._evict()
        elif self.bound.rows is not None:
            while self._rows - len(self._held[0].readings) >= self.bound.rows:
                self._evict()

    def _evict(self) -> None:
        gone = len(self._held.popleft().readings)
        self._rows -= gone
        self._evicted_rows += gone

    @property
    def rows(self) -> int:
        """How many rows are held."""
        self._trim()
        return self._rows

    @property
    def evicted_rows(self) -> int:
        """How many rows fell out of the bound."""
        self._trim()
        return self._evicted_rows

    def _trim(self) -> None:
        # Whole chunks go as they come; what is left to cut is cut when somebody looks.
        if self.bound.span_us is not None:
            oldest_us = self.newest_us - self.bound.span_us
            for i, held in enumerate(self._held):
                if held.first_us <= oldest_us:
                    self._cut(i, held.readings.time_us > oldest_us)
        elif self.bound.rows is not None and self._rows > self.bound.rows:
            self._cut(0, slice(self._rows - self.bound.rows, None))

    def _cut(self, i: int, rows: Any) -> None:
        before = self._held[i].readings
        left = before.take(rows)
        first_us = int(left.time_us.min()) if len(left) else self.newest_us
        self._held[i] = _Held(left, first_us, self._held[i].last_us)
        self._rows -= len(before) - len(left)
        self._evicted_rows += len(before) - len(left)

    @property
    def size_bytes(self) -> int:
        """How many bytes the held rows take."""
        return sum(held.readings.size_bytes for held in self._held)

    def chunks(self) -> list[Readings]:
        """Return the held rows, exactly those within the bound."""
        self._trim()
        return [held.readings for held in self._held]

    def freeze(self) -> Capture:
        """Return a copy that later readings do not change."""
        copy = Capture(self.bound)
        copy._held = deque(self._held)
        copy._rows, copy._evicted_rows = self._rows, self._evicted_rows
        copy.newest_us = self.newest_us
        return copy


def field_kinds(chunks: list[Readings]) -> dict[str, Any]:
    """Return every field's kind over all chunks; mixed kinds become float or json."""
    kinds: dict[str, Any] = {}
    for chunk in chunks:
        for name, column in chunk.columns.items():
            kind, known = kind_of(column), kinds.get(name)
            kinds[name] = common_kind(known or kind, kind or known)
    return {name: kind or "float" for name, kind in kinds.items()}


def kind_of(column: Column) -> Any:
    """Return the plainest kind that holds a column's values; None if all are null."""
    if column.kind != "json":
        return column.kind
    names = {float: "float", int: "int", bool: "bool", str: "text"}
    kind: Any = None
    for found in {names.get(type(value), "json") for value in column.categories}:
        kind = common_kind(kind or found, found)
    return kind


def common_kind(one: Any, other: Any) -> Any:
    """Return the kind that holds the values of both."""
    if one == other:
        return one
    if {one, other} == {"int", "float"}:
        return "float"
    return "json"
