"""What differs between two runs, in words: device, field, stretch of time, exact reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from iotsim.digest import STRETCHES_MAX, Stretches
from iotsim.errors import shown
from iotsim.seeding import Words
from iotsim.units import clock_text, duration_text, instant_text

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.result import Result

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
    return exact_difference(_with_texts(one.frame()), _with_texts(other.frame())) or found


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
    return {
        name: (total, count)
        for ids, sums, rows in side.groups
        for name, total, count in zip(ids, sums.tolist(), rows.tolist(), strict=True)
        if count
    }


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
    throughout is like one that is absent.
    """
    one, other = (_plain(table).set_index(["device_id", "seq"]) for table in (expected, found))
    for table in (one, other):
        if not table.index.is_unique:
            name, seq = table.index[table.index.duplicated()][0]
            return f"device {name!r} has reading {seq} twice"
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
    (device, seq), time = missing.index[i], missing["time"].iloc[i]
    return time, device, -1, (
        f"device {device!r}: reading {seq} at {time.isoformat()} is missing in the {side} "
        f"({len(missing):,} such readings)"
    )


def _unequal(one: pd.DataFrame, other: pd.DataFrame, names: list[str]) -> list[_Place]:
    order = _ranked(one)
    places = []
    for k, name in enumerate(names):
        differs = ~_equal(one[name].to_numpy(), other[name].to_numpy())
        if differs.any():
            i = int(order[differs[order].argmax()])
            (device, seq), time = one.index[i], one["time"].iloc[i]
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


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    drop = [name for name in ("faults", "hit") if name in table.columns]
    return table.drop(columns=drop).astype({"device_id": object})


def _with_texts(table: pd.DataFrame) -> pd.DataFrame:
    # In a frame of `Result.frame`, columns of objects are those of lists, mappings and mixtures.
    mixed = [str(name) for name, kind in table.dtypes.items() if str(kind) == "object"]
    return table.assign(**{name: json_texts(table[name]) for name in mixed})


def _equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if one.dtype.kind == "f" and other.dtype.kind == "f":
        return np.asarray((one == other) | (np.isnan(one) & np.isnan(other)))
    import pandas as pd

    left, right = pd.Series(one, dtype=object), pd.Series(other, dtype=object)
    same = (left == right) | (left.isna() & right.isna())
    return same.to_numpy(dtype=np.bool_)
