"""Cells of a column: how faults read and replace values, whatever kind carries them.

A whole-number field that gets a null, or a value that is not whole, becomes a json column of
Python numbers: what the other rows mean does not change by it, nor do their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from iotsim.faults.draft import Draft, Floats, Mask
from iotsim.readings import Column, Ints

_INT_LEAST, _INT_MOST = -(2.0**63), 2.0**63 - 1024  # the outermost floats that are int64
_TYPES: dict[str, set[type]] = {"float": {float, type(None)}, "int": {int}, "bool": {bool}}
_SCALARS = {bool, float, int, str}


def present(column: Column, rows: Ints) -> Mask:
    """Return in which of the rows the field exists."""
    if column.present is None:
        return np.ones(len(rows), dtype=np.bool_)
    return np.asarray(column.present[rows])


def numbers(column: Column, rows: Ints) -> tuple[Floats, Mask]:
    """Return the numbers of some rows (NaN is null), and which of them are whole by type."""
    if column.kind != "json":
        whole = np.full(len(rows), column.kind == "int")
        return np.asarray(column.values[rows].astype(np.float64)), whole
    types = [type(value) is int for value in column.categories]
    table = np.array([*map(float, column.categories), np.nan])
    wholes = np.array([*types, all(types)])  # a null is what the others are
    codes = column.values[rows]
    return np.asarray(table[codes]), np.asarray(wholes[codes])


def put(draft: Draft, name: str, rows: Ints, values: Floats, wanted: Mask, whole: Mask) -> Mask:
    """Put numbers into some rows of a field; return in which of them something changed.

    Parameters
    ----------
    draft : Draft
        Gets another column; the one it has is left alone.
    name : str
    rows : int64 array
    values : float64 array, shape (rows,)
        NaN and infinities become null.
    wanted : bool array, shape (rows,)
        Which of them to put.
    whole : bool array, shape (rows,)
        Which become whole numbers.
    """
    column = draft.columns[name]
    wanted = wanted & present(column, rows)
    values = np.where(whole, np.clip(np.rint(values), _INT_LEAST, _INT_MOST), values) + 0.0
    nulls = ~np.isfinite(values)
    if column.kind not in ("float", "int") or (
        column.kind == "int" and bool((wanted & (nulls | ~whole)).any())
    ):
        put_objects(draft, name, rows[wanted], _objects(values, nulls, whole, wanted))
        hit = np.zeros(len(rows), dtype=np.bool_)
        hit[wanted] = differ(column, draft.columns[name], rows[wanted])
        return hit
    old = column.values[rows]
    if column.kind == "float":
        values[nulls] = np.nan
        hit = wanted & ~((old == values) | (np.isnan(old) & nulls))
        new = values
    else:
        new = np.where(wanted, values, 0.0).astype(np.int64)
        hit = wanted & (old != new)
    if hit.any():
        changed = column.values.copy()
        changed[rows[hit]] = new[hit]
        _replace(draft, name, Column(column.kind, changed, column.categories, column.present))
    return np.asarray(hit)


def _objects(values: Floats, nulls: Mask, whole: Mask, wanted: Mask) -> list[Any]:
    rows = zip(values[wanted].tolist(), nulls[wanted].tolist(), whole[wanted].tolist(), strict=True)
    return [None if null else int(value) if is_int else value for value, null, is_int in rows]


def objects(column: Column, rows: Ints) -> list[Any]:
    """Return the values of some rows as Python objects; None is null."""
    values = column.values[rows].tolist()
    if column.kind == "float":
        return [None if value != value else value for value in values]
    if column.kind in ("text", "json"):
        return [None if code < 0 else column.categories[code] for code in values]
    return list(values)


def put_objects(draft: Draft, name: str, rows: Ints, values: Sequence[Any]) -> None:
    """Put Python objects into some rows of a field; None is null."""
    _replace(draft, name, with_objects(draft.columns[name], rows, values))


def with_objects(column: Column, rows: Ints, values: Sequence[Any]) -> Column:
    """Return a column with other values in some rows; None is null.

    The kind stays if it can hold them. Otherwise it becomes json, in which every other row means
    what it did.

    Examples
    --------
    >>> column = Column("int", np.array([5, 6, 7]))
    >>> objects(with_objects(column, np.array([1]), [None]), np.arange(3))
    [5, None, 7]
    """
    types = {type(value) for value in values}
    if column.kind in _TYPES and types <= _TYPES[column.kind]:
        changed = column.values.copy()
        changed[rows] = np.array(values, dtype=changed.dtype)  # None is NaN among floats
        return Column(column.kind, changed, (), column.present)
    coded = column if column.kind in ("text", "json") else _coded(column)
    kind = coded.kind if types <= {str, type(None)} else "json"
    places = {_key(value): i for i, value in enumerate(coded.categories)}
    known, codes = list(coded.categories), []
    for value in values:
        place = -1 if value is None else places.setdefault(_key(value), len(known))
        if place == len(known):
            known.append(value)
        codes.append(place)
    changed = coded.values.copy()
    changed[rows] = codes
    return Column(kind, changed, tuple(known), column.present)


def restored(changed: Column, truth: Column, rows: Ints) -> Column:
    """Return a changed column with what was true in some rows; it is there where it was there."""
    if changed.kind == truth.kind and changed.categories == truth.categories:
        values, present = changed.values.copy(), None
        values[rows] = truth.values[rows]
        if changed.present is not None or truth.present is not None:
            present = np.ones(len(values), dtype=np.bool_)
            present &= True if changed.present is None else changed.present
            present[rows] = True if truth.present is None else truth.present[rows]
        return Column(changed.kind, values, changed.categories, present)
    return with_objects(changed, rows, objects(truth, rows))


def differ(before: Column, after: Column, rows: Ints) -> Mask:
    """Return in which of the rows two columns mean something else; null is null."""
    if before is after:
        return np.zeros(len(rows), dtype=np.bool_)
    if before.kind == after.kind and before.kind in ("float", "int", "bool"):
        old, new = before.values[rows], after.values[rows]
        return np.asarray((old != new) & ~((old != old) & (new != new)))
    pairs = zip(objects(before, rows), objects(after, rows), strict=True)
    found = [_key(old) != _key(new) for old, new in pairs]
    return np.array(found, dtype=np.bool_)


def _key(value: Any) -> tuple[type, Any]:
    # 1, 1.0 and True are equal in Python and three things on the wire; a list has no hash.
    if type(value) in _SCALARS:
        return type(value), value
    return type(value), repr(value)


def _coded(column: Column) -> Column:
    distinct, codes = np.unique(column.values, return_inverse=True)
    codes = codes.reshape(-1).astype(np.int32)
    known = distinct.tolist()
    if column.kind == "float" and known and known[-1] != known[-1]:
        codes[codes == len(known) - 1] = -1
        known.pop()
    return Column("json", codes, tuple(known), column.present)


def _replace(draft: Draft, name: str, column: Column) -> None:
    draft.columns = {**draft.columns, name: column}
