"""Readings as a pandas DataFrame.

Columns: time (UTC), device_id, device_type, seq, one per label, one per field, faults, hit. Ids,
types, labels, faults and hit are categorical; rows are ordered by time, device, seq, sub and copy.
With the truth: true_time and true_<field>. With the wire: rows that never left, and how those that
left fared. A device may have been in several groups: its id is one category, its labels are those
of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any
from warnings import warn

import numpy as np
import numpy.typing as npt

from iotsim.acks import Acks
from iotsim.capture import common_kind, field_kinds
from iotsim.errors import BadValue, UnknownName
from iotsim.faults.base import NEVER_US
from iotsim.publishers.payload import message_ids
from iotsim.readings import WIRE_COLUMNS, Column, Group, Ints, Readings, gateways_of

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
    truth: bool = False,
    wire: bool = False,
    acks: Acks | None = None,
    run_id: str = "",
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
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
    truth : bool
        Also `true_time` and `true_<field>`: what it was without the faults.
    wire : bool
        Also the rows that never left, and columns `sub`, `copy`, `withheld`, `acked`, `latency`.
    acks : Acks, optional
        What brokers said; without it a latency is the simulated one of the device's link.
    run_id : str
        First part of the ids that `acks` knows.
    watch : callable
        Passes on the fields that it is given, and sees how far it is.

    Raises
    ------
    UnknownName
        If a named field does not occur.
    BadValue
        If a field has the name of a label, or of a column that `truth` or `wire` adds.
    """
    import pandas as pd

    chunks = [shown for chunk in chunks if len(shown := chunk if wire else chunk.sent())]
    kinds = with_declared(declared or {}, chunks)
    wanted = list(kinds) if fields is None else _wanted(fields, kinds)
    check_columns(groups, chunks, wanted)
    _check_added(groups, wanted, truth=truth, wire=wire)
    _warn_if_large(chunks, len(wanted))
    rows = _Rows.of(groups, chunks)
    data = _key_columns(groups, rows)
    for name in watch(wanted):
        data[name] = _values(name, kinds[name], chunks, rows.order)
    for name in ("faults", "hit"):
        data[name] = _causes(name, chunks, rows.order)
    if truth:
        data |= _true_columns(declared or {}, wanted, kinds, rows)
    if wire:
        data |= _wire_columns(rows, acks, run_id)
    table = pd.DataFrame(data, copy=False)
    return _long(table, wanted, truth=truth) if tidy else table


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    # Rows as they came: `place` is a device among those of all groups, `code` the category of its
    # id; `order` puts them in order.
    chunks: Sequence[Readings]
    ids: list[str]
    place: npt.NDArray[np.int32]
    code: npt.NDArray[np.int32]
    time_us: Ints
    seq: Ints
    order: npt.NDArray[np.intp]

    @classmethod
    def of(cls, groups: Sequence[Group], chunks: Sequence[Readings]) -> _Rows:
        offsets = np.cumsum([0, *(len(group) for group in groups)]).tolist()
        begin = {group.index: offset for group, offset in zip(groups, offsets, strict=False)}
        place = _joined([chunk.device + np.int32(begin[chunk.group.index]) for chunk in chunks],
                        np.int32)
        time_us = _joined([chunk.time_us for chunk in chunks])
        seq = _joined([chunk.seq for chunk in chunks])
        ids, codes = _devices(groups)
        code = place if codes is None else codes[place]
        keys = [seq, code, time_us]
        if any(chunk.marks is not None for chunk in chunks):
            keys = [_whole("copy", chunks), _whole("sub", chunks), *keys]
        return cls(chunks, ids, place, code, time_us, seq, np.lexsort(keys))


def _joined(parts: Sequence[npt.NDArray[Any]], kind: Any = np.int64) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=kind), *parts])


def _whole(name: str, chunks: Sequence[Readings]) -> Ints:
    # An array of the marks over all rows; zeros where a chunk has none.
    arrays = [None if chunk.marks is None else getattr(chunk.marks, name) for chunk in chunks]
    return _joined([np.zeros(len(chunk), np.int64) if array is None else array
                    for chunk, array in zip(chunks, arrays, strict=True)])


def _devices(groups: Sequence[Group]) -> tuple[list[str], npt.NDArray[np.int32] | None]:
    # The ids, each once, and the code of each device of each group if any is in several.
    every = [name for group in groups for name in group.ids]
    codes = {name: i for i, name in enumerate(dict.fromkeys(every))}
    if len(codes) == len(every):
        return every, None
    return list(codes), np.array([codes[name] for name in every], dtype=np.int32)


def _key_columns(groups: Sequence[Group], rows: _Rows) -> dict[str, Any]:
    labels = _group_columns(groups, rows.place[rows.order])
    return {
        "time": _times(rows.time_us[rows.order]),
        "device_id": _categorical(rows.code[rows.order], rows.ids),
        "device_type": labels.pop("device_type"),
        "seq": rows.seq[rows.order],
        **labels,
    }


def _times(time_us: Ints) -> Any:
    import pandas as pd

    return pd.DatetimeIndex(time_us.view("datetime64[us]")).tz_localize("UTC")


def _causes(name: str, chunks: Sequence[Readings], order: npt.NDArray[np.intp]) -> Any:
    # The categories are the names that occur: a fault that was cleared long ago is none of them.
    found: list[tuple[tuple[str, ...], Any]] = []
    for chunk in chunks:
        codes = None if chunk.marks is None else getattr(chunk.marks, name)
        if chunk.marks is None or codes is None:
            found.append((("",), np.zeros(len(chunk), dtype=np.int16)))
        else:
            found.append((chunk.marks.names, codes))
    seen = {names[i] for names, codes in found for i in np.flatnonzero(np.bincount(codes)).tolist()}
    known = ["", *sorted(seen - {""})]
    place = {word: i for i, word in enumerate(known)}
    parts = [np.array([place.get(word, 0) for word in names], dtype=np.int16)[codes]
             for names, codes in found]
    return _categorical(_joined(parts, np.int16)[order], known)


def _true_columns(
    declared: Mapping[str, str], wanted: Sequence[str], kinds: Mapping[str, str], rows: _Rows
) -> dict[str, Any]:
    chunks = [
        chunk if chunk.marks is None or not chunk.marks.truth
        else replace(chunk, columns={**chunk.columns, **chunk.marks.truth})
        for chunk in rows.chunks
    ]
    plain = with_declared(declared, chunks)
    true_us = rows.time_us - _whole("shift_us", chunks)
    return {
        "true_time": _times(true_us[rows.order]),
        **{f"true_{name}": _values(name, plain.get(name, kinds[name]), chunks, rows.order)
           for name in wanted},
    }


def _wire_columns(rows: _Rows, acks: Acks | None, run_id: str) -> dict[str, Any]:
    import pandas as pd

    chunks, order = rows.chunks, rows.order
    delay_us = _whole("delay_us", chunks)
    latency_s = np.where(delay_us == NEVER_US, np.nan, delay_us / 1e6)
    acked = np.full(len(order), None, dtype=object)
    if acks is not None:
        acked, seconds = acks.lookup(chain.from_iterable(_ids(chunks, run_id)))
        latency_s += seconds
    stayed = _whole("withheld", chunks) != 0
    latency_s[stayed] = np.nan
    acked[stayed] = None
    return {
        "sub": _whole("sub", chunks)[order],
        "copy": _whole("copy", chunks)[order],
        "withheld": _causes("withheld", chunks, order),
        "acked": pd.array(acked[order], dtype="boolean"),
        "latency": latency_s[order],
    }


def _ids(chunks: Sequence[Readings], run_id: str) -> Iterable[list[str]]:
    names: dict[int, list[str]] = {}
    for chunk in chunks:
        group = chunk.group
        if group.index not in names:
            names[group.index] = [f"{run_id}/{name}" for name in group.ids]
        yield message_ids(chunk, names[group.index])


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


def _check_added(
    groups: Sequence[Group], wanted: Sequence[str], *, truth: bool, wire: bool
) -> None:
    added = dict.fromkeys(WIRE_COLUMNS, "wire") if wire else {}
    if truth:
        added |= dict.fromkeys(("true_time", *(f"true_{name}" for name in wanted)), "truth")
    for kind, names in (("field", wanted), ("label", _label_names(groups))):
        for name in names:
            if name in added:
                raise BadValue(kind, name, f"is the name of a column that {added[name]}=True adds",
                               f"Rename it, or leave {added[name]}= out; fields= chooses fields.")


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
    gateways = _gateways(groups)
    if gateways is not None:
        names, place_of = gateways
        columns["gateway"] = _categorical(place_of[codes], names)
    for name in _label_names(groups):
        if name not in columns:
            columns[name] = per_device([group.labels.get(name) for group in groups])
    return columns


def _gateways(groups: Sequence[Group]) -> tuple[list[str], npt.NDArray[np.int32]] | None:
    found = [gateways_of(group) for group in groups]
    if not any(found):
        return None
    known: dict[str, int] = {}
    places: list[int] = []
    for group, names in zip(groups, found, strict=True):
        if names is None:  # of other devices it may be a label
            own = group.labels.get("gateway")
            place = -1 if own is None else known.setdefault(own, len(known))
            places += [place] * len(group)
        else:
            places += [known.setdefault(name, len(known)) for name in names]
    return list(known), np.array(places, dtype=np.int32)


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


def _long(table: pd.DataFrame, fields: list[str], *, truth: bool) -> pd.DataFrame:
    true = [f"true_{name}" for name in fields] if truth else []
    keys = [name for name in table.columns if name not in {*fields, *true}]
    # A field may itself be called "value": pandas refuses the name while it is still a column.
    apart = {"\0field": "field", "\0value": "value", "\0true": "true_value"}
    name, value, true_value = apart
    long = table.melt(keys, fields, name, value)
    if truth:
        long[true_value] = table.melt([], true, name, value)[value]
    long = long.rename(columns=apart)
    return long.sort_values(["time", "device_id"], kind="stable", ignore_index=True)
