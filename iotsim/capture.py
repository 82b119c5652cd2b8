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

DEFAULT_LIVE = "10m"


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


class Capture:
    """Readings in chunks, oldest first, within a bound.

    Parameters
    ----------
    bound : Bound
    """

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.evicted_rows = 0
        self.newest_us = 0
        self._chunks: deque[Readings] = deque()
        self._rows = 0

    def add(self, readings: Readings) -> None:
        """Keep readings, and let go of what falls out of the bound."""
        if not len(readings):
            return
        self._chunks.append(readings)
        self._rows += len(readings)
        self.newest_us = max(self.newest_us, int(readings.time_us.max()))
        if self.bound.span_us is not None:
            oldest_us = self.newest_us - self.bound.span_us
            while int(self._chunks[0].time_us.max()) <= oldest_us:
                self._evict()
        elif self.bound.rows is not None:
            while self._rows - len(self._chunks[0]) >= self.bound.rows:
                self._evict()

    def _evict(self) -> None:
        gone = self._chunks.popleft()
        self._rows -= len(gone)
        self.evicted_rows += len(gone)

    @property
    def rows(self) -> int:
        """How many rows are held."""
        return self._rows

    @property
    def size_bytes(self) -> int:
        """How many bytes the held rows take."""
        return sum(chunk.size_bytes for chunk in self._chunks)

    def chunks(self) -> list[Readings]:
        """Return the held rows, exactly those within the bound."""
        held = list(self._chunks)
        if self.bound.span_us is not None:
            oldest_us = self.newest_us - self.bound.span_us
            return [_since(chunk, oldest_us) for chunk in held]
        if self.bound.rows is not None and held and self._rows > self.bound.rows:
            held[0] = held[0].take(slice(self._rows - self.bound.rows, None))
        return held

    def freeze(self) -> Capture:
        """Return a copy that later readings do not change."""
        copy = Capture(self.bound)
        copy._chunks = deque(self._chunks)
        copy._rows, copy.evicted_rows = self._rows, self.evicted_rows
        copy.newest_us = self.newest_us
        return copy


def _since(chunk: Readings, oldest_us: int) -> Readings:
    recent = chunk.time_us > oldest_us
    return chunk if bool(recent.all()) else chunk.take(recent)


def merged(chunks: list[Readings]) -> dict[int, list[Readings]]:
    """Return chunks by group, in the order of the groups."""
    groups: dict[int, list[Readings]] = {}
    for chunk in chunks:
        groups.setdefault(chunk.group.index, []).append(chunk)
    return dict(sorted(groups.items()))


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
