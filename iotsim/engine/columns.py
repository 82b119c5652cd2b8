"""Columns of what scripted devices emit: any JSON values, field by field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from iotsim.readings import Column

_ABSENT = object()


def column_of(rows: list[dict[str, Any]], name: str) -> Column:
    """Return the column of one field of rows of JSON values; a missing key is absent."""
    values = [row.get(name, _ABSENT) for row in rows]
    present = None
    if any(value is _ABSENT for value in values):
        present = np.array([value is not _ABSENT for value in values])
        values = [None if value is _ABSENT else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    holes = any(value is None for value in values)
    if kinds == {float}:
        floats = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
        floats[~np.isfinite(floats)] = np.nan
        return Column("float", floats + 0.0, present=present)
    if kinds == {int} and not holes:
        return Column("int", np.array(values, dtype=np.int64), present=present)
    if kinds == {bool} and not holes:
        return Column("bool", np.array(values, dtype=np.bool_), present=present)
    return _coded("text" if kinds == {str} else "json", values, present)


def _coded(kind: Any, values: list[Any], present: Any) -> Column:
    place: dict[Any, int] = {}
    categories: list[Any] = []
    codes = []
    for value in values:
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            codes.append(-1)
            continue
        value = value + 0.0 if isinstance(value, float) else value
        known = (type(value), repr(value))
        if known not in place:
            place[known] = len(categories)
            categories.append(value)
        codes.append(place[known])
    return Column(kind, np.array(codes, dtype=np.int32), tuple(categories), present)
