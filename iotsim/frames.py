"""Readings as a pandas DataFrame.

Columns: time (UTC), device_id, device_type, seq, one per label, one per field, faults, hit. Ids,
types, labels, faults and hit are categorical; rows are ordered by time, then device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from warnings import warn

import numpy as np
import numpy.typing as npt

from iotsim.capture import common_kind, field_kinds
from iotsim.errors import BadValue, UnknownName
from iotsim.readings import Column, Group, Readings

if TYPE_CHECKING:
    import pandas as pd

ROWS_WARNED = 20_000_000


def frame(
    groups: Sequence[Group],
    chunks: Sequence[Readings],
    *,
    declared: Mapping[str, str] | None = None,
    fields: Iterable[str] | str | None = None,
    tidy: bool = False,
) -> pd.DataFrame:
    """Return readings as a DataFrame.

    Parameters
    ----------
    groups : sequence of Group
        All groups that may occur, in order; they give the categories.
    chunks : sequence of Readings
    declared : mapping of field name to kind, optional
        Fields that have a column even if no reading has them; they come first.
    fields : str or iterable of str, optional
        Which fields; all if not given.
    tidy : bool
        Long form: one row per reading and field, in columns `field` and `value`.

    Raises
    ------
    UnknownName
        If a named field does not occur.
    BadValue
        If a field has the name of a label.
    """
    import pandas as pd

    chunks = [chunk for chunk in chunks if len(chunk)]
    kinds = with_declared(declared or {}, chunks)
    wanted = list(kinds) if fields is None else _wanted(fields, kinds)
    check_columns(groups, chunks, wanted)
    _warn_if_large(chunks, len(wanted))
    codes, time_us, seq = _keys(groups, chunks)
    order = np.lexsort((seq, codes, time_us))
    data: dict[str, Any] = {
        "time": pd.DatetimeIndex(time_us[order].view("datetime64[us]")).tz_localize("UTC"),
        "device_id": _categorical(codes[order], _all_ids(groups)),
        **_group_columns(groups, codes[order]),
    }
    data["seq"] = seq[order]
    for name in ("device_type", *_label_names(groups)):
        data[name] = data.pop(name)
    data = {name: data[name] for name in _ordered(groups)}
    for name in wanted:
        data[name] = _values(name, kinds[name], chunks, order)
    nothing = np.zeros(len(order), dtype=np.int8)
    for name in ("faults", "hit"):
        data[name] = _categorical(nothing, [""])
    table = pd.DataFrame(data, copy=False)
    return _long(table, wanted) if tidy else table


def with_declared(declared: Mapping[str, str], chunks: Sequence[Readings]) -> dict[str, str]:
    """Return the kinds of fields: those declared, with what the readings hold."""
    kinds = dict(declared)
    for name, kind in field_kinds(list(chunks)).items():
        kinds[name] = common_kind(kinds.get(name, kind), kind)
    return kinds


def check_columns(
    groups: Sequence[Group], chunks: Iterable[Readings], names: Iterable[str]
) -> None:
    """Raise if a field would have the name of a label: both are columns."""
    labels = {name: group.device_type for group in groups for name in group.labels}
    for name in names:
        if name in labels:
            types = (chunk.group.device_type for chunk in chunks if name in chunk.columns)
            who = next(types, "another type")
            raise BadValue("field", name, f"of {who!r} is a label of {labels[name]!r}",
                           "Both are columns of the same table: rename one, or look at one "
                           "device_type= or fields= at a time.")


def _ordered(groups: Sequence[Group]) -> list[str]:
    return ["time", "device_id", "device_type", "seq", *_label_names(groups)]


def _wanted(fields: Iterable[str] | str, kinds: dict[str, Any]) -> list[str]:
    names = [fields] if isinstance(fields, str) else list(fields)
    for name in names:
        if name not in kinds:
            raise UnknownName("field", name, kinds)
    return names


def _warn_if_large(chunks: Sequence[Readings], n_fields: int) -> None:
    rows = sum(len(chunk) for chunk in chunks)
    if rows > ROWS_WARNED:
        size_gb = rows * (40 + 8 * n_fields) / 1e9
        warn(
            f"this frame has {rows:,} rows, about {size_gb:.1f} GB. Stream to disk with "
            "generate(..., to='x.parquet'), or filter: frame(device_type=, fields=, last=).",
            stacklevel=4,
        )


def _keys(
    groups: Sequence[Group], chunks: Sequence[Readings]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    offsets = np.cumsum([0, *(len(group) for group in groups)])
    place = {group.index: int(offsets[i]) for i, group in enumerate(groups)}
    codes = [chunk.device + np.int32(place[chunk.group.index]) for chunk in chunks]
    none = np.empty(0, dtype=np.int64)
    return (
        np.concatenate(codes) if codes else none.astype(np.int32),
        np.concatenate([chunk.time_us for chunk in chunks]) if chunks else none,
        np.concatenate([chunk.seq for chunk in chunks]) if chunks else none,
    )


def _all_ids(groups: Sequence[Group]) -> list[str]:
    return [name for group in groups for name in group.ids]


def _label_names(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group.labels))


def _categorical(codes: npt.NDArray[Any], known: list[str]) -> Any:
    import pandas as pd

    categories: Any = known
    return pd.Categorical.from_codes(codes, categories)


def _group_columns(groups: Sequence[Group], codes: npt.NDArray[np.int32]) -> dict[str, Any]:
    sizes = [len(group) for group in groups]

    def per_device(values: list[str | None]) -> Any:
        known = list(dict.fromkeys(value for value in values if value is not None))
        place = [-1 if value is None else known.index(value) for value in values]
        device = np.repeat(np.array(place, dtype=np.int32), sizes)
        return _categorical(device[codes], known)

    columns = {"device_type": per_device([group.device_type for group in groups])}
    for name in _label_names(groups):
        columns[name] = per_device([group.labels.get(name) for group in groups])
    return columns


def _values(name: str, kind: str, chunks: Sequence[Readings], order: npt.NDArray[Any]) -> Any:
    import pandas as pd

    parts = [(len(chunk), chunk.columns.get(name)) for chunk in chunks]
    if kind == "float":
        return np.concatenate([*(_floats(*part) for part in parts), np.empty(0)])[order]
    if kind == "text":
        known, codes = _text_codes(parts)
        return _categorical(codes[order], known)
    holes = any(
        column is None or column.present is not None or column.kind != kind for _, column in parts
    )
    if kind in ("int", "bool") and not parts:
        return np.empty(0, dtype=np.int64 if kind == "int" else np.bool_)
    if kind in ("int", "bool") and not holes:
        return np.concatenate([column.values for _, column in parts if column is not None])[order]
    none = np.empty(0, dtype=object)
    objects = np.concatenate([*(objects_of(*part) for part in parts), none])[order]
    if kind == "int":
        return pd.array(objects, dtype="Int64")
    return pd.array(objects, dtype="boolean") if kind == "bool" else objects


def _floats(size: int, column: Column | None) -> npt.NDArray[np.float64]:
    if column is None:
        return np.full(size, np.nan)
    values = floats_of(column)
    return values if column.present is None else np.where(column.present, values, np.nan)


def floats_of(column: Column) -> npt.NDArray[np.float64]:
    """Return the values of a column of numbers; null is NaN."""
    if column.kind == "json":
        known = [float(value) for value in column.categories]
        return np.asarray(np.array([*known, np.nan], dtype=np.float64)[column.values])
    return np.asarray(column.values, dtype=np.float64)


def _text_codes(parts: list[tuple[int, Column | None]]) -> tuple[list[str], npt.NDArray[np.int32]]:
    known: dict[str, int] = {}
    codes = [np.empty(0, dtype=np.int32)]
    for size, column in parts:
        if column is None:
            codes.append(np.full(size, -1, dtype=np.int32))
            continue
        place = [known.setdefault(value, len(known)) for value in column.categories]
        local = np.array([*place, -1], dtype=np.int32)[column.values]
        codes.append(local if column.present is None else np.where(column.present, local, -1))
    return list(known), np.concatenate(codes)


def objects_of(size: int, column: Column | None) -> npt.NDArray[np.object_]:
    """Return the values of a column as Python objects; None where there is none."""
    made = np.full(size, None, dtype=object)
    if column is None:
        return made
    if column.kind in ("text", "json"):
        known = [*column.categories, None]
        values: list[Any] = [known[code] for code in column.values.tolist()]
    else:
        values = [None if value != value else value for value in column.values.tolist()]
    for i, value in enumerate(values):
        if column.present is None or column.present[i]:
            made[i] = value
    return made


def _long(table: pd.DataFrame, fields: list[str]) -> pd.DataFrame:
    keys = [name for name in table.columns if name not in fields]
    # A field may itself be called "value": pandas refuses the name while it is still a column.
    apart = {"\0field": "field", "\0value": "value"}
    name, value = apart
    long = table.melt(keys, fields, name, value).rename(columns=apart)
    return long.sort_values(["time", "device_id"], kind="stable", ignore_index=True)
