"""What differs between two runs, in words: device, field, stretch of time, exact reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from warnings import warn

import numpy as np
import numpy.typing as npt
import orjson

from iotsim.digest import STRETCHES_MAX, Stretches
from iotsim.errors import BadValue, shown
from iotsim.seeding import Words
from iotsim.units import clock_text, duration_text, instant_text

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.result import Result

_NTH = "\0nth"
# When, which device, which field, and what to say: the smallest is the first difference.
_Place: TypeAlias = "tuple[Any, str, int, str]"


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """What a run can be compared by, without its readings.

    Attributes
    ----------
    digest : str
    start_us, end_us, rows : int
    groups : mapping of device ids (tuple) per group to (sums, rows)
    stretches : Stretches
    """

    digest: str
    start_us: int
    end_us: int
    rows: int
    groups: tuple[tuple[tuple[str, ...], Words, npt.NDArray[np.int64]], ...]
    stretches: Stretches


def fingerprint(result: Result) -> Fingerprint:
    """Return what a result can be compared by."""
    return Fingerprint(
        digest=result.digest,
        start_us=result.start_us,
        end_us=result.end_us,
        rows=result.rows,
        groups=tuple(
            (tuple(group.ids), sums, rows) for group, sums, rows in result.digests.devices()
        ),
        stretches=result.digests.stretches,
    )


def difference(one: Result, other: Result) -> str:
    """Return in words how two results differ; empty if they do not."""
    found = compare(fingerprint(one), fingerprint(other))
    if not found or one.start_us != other.start_us:
        return found
    if not _complete(one, other):
        return found
    frames = (_with_texts(side.frame(wire=True)) for side in (one, other))
    return exact_difference(*frames) or found


def differences(one: Result, other: Result) -> pd.DataFrame:
    """Return what differs between two results, a row per field: see `Result.compare`.

    Raises
    ------
    BadValue
        If they do not begin at the same time.
    """
    if one.start_us != other.start_us:
        raise BadValue("other", instant_text(other.start_us), "is where it begins; this run begins "
                       f"at {instant_text(one.start_us)}", "Give both the same start=.")
    if one.digest == other.digest:
        return _listed([])
    first, second = _keyed(*_shared_stretch(one, other))
    common = first.index.intersection(second.index, sort=False)
    mine, theirs = first.loc[common], second.loc[common]
    found = [_only(first.loc[first.index.difference(common, sort=False)], "first"),
             _only(second.loc[second.index.difference(common, sort=False)], "second")]
    names = list(dict.fromkeys((*first.columns, *second.columns)))
    found += [_differing(mine, theirs, name, k) for k, name in enumerate(names)]
    return _listed(found)


def _shared_stretch(one: Result, other: Result) -> list[pd.DataFrame]:
    # A capture that let readings go holds a stretch: before it there is nothing to compare.
    sides = (one, other)
    tables = [side.frame() if side._in_file else side.frame(wire=True) for side in sides]
    cut = [table["time"].min() for side, table in zip(sides, tables, strict=True)
           if side.capture.evicted_rows and not side._in_file and len(table)]
    tables = [table[table["withheld"] == ""] if "withheld" in table else table for table in tables]
    tables = [table.drop(columns="withheld", errors="ignore") for table in tables]
    if not cut:
        return tables
    since = max(cut)
    warn(f"only what came after {since.isoformat()} is compared: a capture holds no more. Keep all "
         "of it with capture='all', or stream it with to=.", stacklevel=4)
    return [table[table["time"] > since] for table in tables]


def _only(table: pd.DataFrame, side: str) -> pd.DataFrame:
    return _rows(table, "", None, None, side, 0)


def _differing(mine: pd.DataFrame, theirs: pd.DataFrame, name: str, rank: int) -> pd.DataFrame:
    import pandas as pd

    none = pd.Series(np.full(len(mine), None, dtype=object))
    columns = [table.get(name, none) for table in (mine, theirs)]
    if any(column is not none and str(column.dtype) == "object" for column in columns):
        cells = [json_texts(column.astype(object).where(column.notna(), None))
                 for column in columns]
    else:
        cells = columns
    differs = ~_equal(*(_plain_cells(column) for column in cells))
    value, other = (column[differs].astype(object).to_numpy() for column in columns)
    return _rows(mine[differs], name, value, other, "both", rank)


def _plain_cells(column: pd.Series[Any]) -> npt.NDArray[Any]:
    is_time = str(column.dtype).startswith("datetime64")
    return column.to_numpy(dtype="datetime64[us]") if is_time else column.to_numpy()


def _rows(
    table: pd.DataFrame, name: str, value: Any, other: Any, side: str, rank: int
) -> pd.DataFrame:
    import pandas as pd

    values = {"value": value, "other": other}
    made = pd.DataFrame({
        "time": table["time"].to_numpy(dtype="datetime64[us]"),
        "device_id": table.index.get_level_values("device_id").to_numpy(dtype=object),
        "seq": table.index.get_level_values("seq").to_numpy(dtype=np.int64),
        "field": np.full(len(table), name, dtype=object),
        **{key: np.full(len(table), None, dtype=object) if cells is None else cells
           for key, cells in values.items()},
        "side": np.full(len(table), side, dtype=object),
        "rank": np.full(len(table), rank),
    })
    return made.astype({"device_id": object, "field": object, "side": object})


def _listed(found: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    columns = ["time", "device_id", "seq", "field", "value", "other", "side"]
    found = [table for table in found if len(table)]
    if found:
        table = pd.concat(found, ignore_index=True)
        table = table.sort_values(["time", "device_id", "seq", "rank"], ignore_index=True,
                                  kind="stable")[columns]
    else:
        table = pd.DataFrame({name: np.empty(0, dtype=object) for name in columns})
    return table.astype({"time": "datetime64[us]", "seq": "int64"}).assign(
        time=lambda rows: rows["time"].dt.tz_localize("UTC"))


def _complete(one: Result, other: Result) -> bool:
    rows = one.capture.rows, other.capture.rows
    return rows == (one.rows, other.rows) and sum(rows) <= 5_000_000


def compare(expected: Fingerprint, found: Fingerprint) -> str:
    """Return in words how two fingerprints differ; empty if their digests are equal."""
    if expected.digest == found.digest:
        return ""
    if expected.start_us != found.start_us:
        return (
            f"the runs do not compare: one starts at {instant_text(expected.start_us)}, the other "
            f"at {instant_text(found.start_us)}. Give both the same start=."
        )
    parts = [_durations(expected, found), _devices(expected, found), _stretches(expected, found)]
    return "; ".join(part for part in parts if part) or "the digests differ"


def _durations(expected: Fingerprint, found: Fingerprint) -> str:
    lengths = [duration_text(side.end_us - side.start_us) for side in (expected, found)]
    return f"one lasts {lengths[0]}, the other {lengths[1]}" if lengths[0] != lengths[1] else ""


def _devices(expected: Fingerprint, found: Fingerprint) -> str:
    mine, theirs = _by_device(expected), _by_device(found)
    only = [(name, "the first") for name in mine if name not in theirs]
    only += [(name, "the second") for name in theirs if name not in mine]
    if only:
        name, side = only[0]
        return f"device {name!r} is only in {side} ({len(only):,} such devices)"
    differ = [name for name in mine if mine[name] != theirs[name]]
    if not differ:
        return ""
    first = differ[0]
    counts = mine[first][1], theirs[first][1]
    extra = f" with {counts[0]:,} and {counts[1]:,} readings" if counts[0] != counts[1] else ""
    return f"device {first!r} differs{extra} ({len(differ):,} of {len(mine):,} devices do)"


def _by_device(side: Fingerprint) -> Mapping[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for ids, sums, rows in side.groups:
        for name, total, count in zip(ids, sums.tolist(), rows.tolist(), strict=True):
            if count:  # a device that moved to other labels is in several groups
                before = found.get(name, (0, 0))
                found[name] = (before[0] + total) % 2**64, before[1] + count
    return found


def _stretches(expected: Fingerprint, found: Fingerprint) -> str:
    width_us = max(expected.stretches.width_us, found.stretches.width_us)
    mine, theirs = _coarse(expected.stretches, width_us), _coarse(found.stretches, width_us)
    names = [name for name in dict.fromkeys((*mine, *theirs)) if name]
    none = np.zeros(STRETCHES_MAX, dtype=np.uint64)
    for name in names:
        places = np.flatnonzero(mine.get(name, none) != theirs.get(name, none))
        if len(places):
            since_us = int(places[0]) * width_us
            return (
                f"field {name!r} differs between {clock_text(since_us)} and "
                f"{clock_text(since_us + width_us)} of the run"
            )
    return ""


def _coarse(stretches: Stretches, width_us: int) -> dict[str, Words]:
    copy = Stretches(stretches.start_us, stretches.width_us, dict(stretches.sums))
    while copy.width_us < width_us:
        copy.widen(copy.start_us + copy.width_us * STRETCHES_MAX)
    return copy.sums


def exact_difference(expected: pd.DataFrame, found: pd.DataFrame) -> str:
    """Return the first difference between two frames: the time, the device, and both values.

    First in time, then by device, then by the order of the fields. A field that is null
    throughout is like one that is absent. Readings of the same tick are told apart by `sub` and
    `copy` where both frames have them, else by their order.
    """
    one, other = _keyed(expected, found)
    names = list(dict.fromkeys((*one.columns, *other.columns)))
    for name in names:
        if any(name not in a and bool(b[name].notna().any()) for a, b in ((one, other),
                                                                          (other, one))):
            return f"field {name!r} is only in one of them"
    seen = [name for name in names if name in one and name in other]
    places = [place for place in (_lack(one, other, "second"), _lack(other, one, "first")) if place]
    if not one.index.equals(other.index):
        one = one.loc[one.index.intersection(other.index, sort=False)]
        other = other.loc[one.index]
    places += _unequal(one, other, seen)
    return min(places)[-1] if places else ""


def _lack(table: pd.DataFrame, other: pd.DataFrame, side: str) -> _Place | None:
    missing = table.loc[table.index.difference(other.index, sort=False)]
    if not len(missing):
        return None
    i = int(_ranked(missing)[0])
    (device, seq, *_), time = missing.index[i], missing["time"].iloc[i]
    nth = missing.index[i][-1] if _NTH in missing.index.names else 0
    if nth:
        here = "first" if side == "second" else "second"
        return time, device, -1, (
            f"device {device!r} has reading {seq} {_times(nth + 1)} in the {here} and "
            f"{_times(nth)} in the {side}, at {time.isoformat()}"
        )
    return time, device, -1, (
        f"device {device!r}: reading {seq} at {time.isoformat()} is missing in the {side} "
        f"({len(missing):,} such readings)"
    )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _unequal(one: pd.DataFrame, other: pd.DataFrame, names: list[str]) -> list[_Place]:
    order = _ranked(one)
    places = []
    for k, name in enumerate(names):
        differs = ~_equal(_plain_cells(one[name]), _plain_cells(other[name]))
        if differs.any():
            i = int(order[differs[order].argmax()])
            (device, seq, *_), time = one.index[i], one["time"].iloc[i]
            values = f"{_text(one[name].iloc[i])} and {_text(other[name].iloc[i])}"
            places.append((time, device, k, (
                f"device {device!r}, field {name!r} at {time.isoformat()} (reading {seq}): {values}"
            )))
    return places


def _ranked(table: pd.DataFrame) -> npt.NDArray[np.intp]:
    # Positions of the rows by time, then device.
    devices = table.index.get_level_values("device_id")
    codes = np.unique(devices.to_numpy(dtype=object), return_inverse=True)[1]
    return np.lexsort((codes, table["time"].to_numpy(dtype="datetime64[us]")))


class _JsonText(str):
    # Shown without quotes: it stands for a value, not for text.
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def json_texts(values: Iterable[Any]) -> Any:
    """Return the one JSON text of each value as a pandas Series; None for a null."""
    import pandas as pd

    return pd.Series([_json_text(value) for value in values], dtype=object)


def _json_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    return _JsonText(orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str).decode())


def _text(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return shown(value.item() if isinstance(value, np.generic) else value)


def _keyed(one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    tables = (one, other)
    within = [name for name in ("sub", "copy") if all(name in table for table in tables)
              and any(bool(table[name].any()) for table in tables)]
    drop = {"faults", "hit", "sub", "copy", "acked", "latency"}.difference(within)
    keys = ["device_id", "seq", *within]
    plain = [table.drop(columns=[name for name in table.columns if name in drop])
             .astype({"device_id": object}) for table in tables]
    if any(table.duplicated(keys).any() for table in plain):
        plain = [table.assign(**{_NTH: table.groupby(keys).cumcount()}) for table in plain]
        keys.append(_NTH)
    first, second = (table.set_index(keys) for table in plain)
    return first, second


def _with_texts(table: pd.DataFrame) -> pd.DataFrame:
    # In a frame of `Result.frame`, columns of objects are those of lists, mappings and mixtures.
    mixed = [str(name) for name, kind in table.dtypes.items() if str(kind) == "object"]
    return table.assign(**{name: json_texts(table[name]) for name in mixed})


def _equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if one.dtype.kind == "f" and other.dtype.kind == "f":
        return np.asarray((one == other) | (np.isnan(one) & np.isnan(other)))
    if one.dtype.kind == other.dtype.kind and one.dtype.kind in "iubM":
        return np.asarray(one == other)
    import pandas as pd

    left, right = pd.Series(one, dtype=object), pd.Series(other, dtype=object)
    same = (left == right) | (left.isna() & right.isna())
    return same.to_numpy(dtype=np.bool_)
