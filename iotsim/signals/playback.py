"""Recorded values, played back tick by tick."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iotsim.errors import BadValue, MissingExtra, UnknownName
from iotsim.readings import Ints
from iotsim.seeding import draws, scaled
from iotsim.signals.base import Floats, Signal, Single, Site, Source, Span, Steps, Tick, register

ROWS_MAX = 10_000_000
SIZE_BYTES_MAX = 1_000_000_000
_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "None")


@register("playback")
@dataclass(frozen=True, slots=True)
class Playback(Signal):
    """One column of a CSV or Parquet file, a row for each tick.

    Parameters
    ----------
    path : str
        Relative to the profile's file, or to the working directory in code.
    column : str
        Its values are numbers.
    loop : bool
        Whether it begins again at the end; if not, the last value stays.
    start : {"first", "random"}
        At the first row, or at a row from each device's own stream.
    missing : {"null", "hold"}
        Whether a missing value is published as null or as the last known one.
    sha256 : str, optional
        What `content_sha256` must be; a saved profile has it.

    Attributes
    ----------
    content_sha256 : str
        Hash of the column's values.
    """

    path: Any
    column: Any
    loop: bool = True
    start: str = "first"
    missing: str = "null"
    sha256: str | None = field(default=None, compare=False)
    content_sha256: str = field(init=False, repr=False)
    values: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, choices in (("start", ("first", "random")), ("missing", ("null", "hold"))):
            if getattr(self, name) not in choices:
                raise UnknownName(f"value of {name!r}", getattr(self, name), choices)
        if not isinstance(self.loop, bool):
            raise BadValue("loop", self.loop, "is not true or false", "Give true or false.")
        if not isinstance(self.column, str):
            raise BadValue("column", self.column, "is not the name of a column", "Give text.")
        values = _read(self.path, self.column)
        values[~np.isfinite(values)] = np.nan
        found = hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()
        if self.sha256 is not None and self.sha256 != found:
            raise BadValue("path", str(self.path), "is not what it was: its values have changed",
                           "Put the old file back, or drop sha256.")
        if self.missing == "hold":
            known_rows = np.where(np.isfinite(values), np.arange(len(values)), 0)
            values = values[np.maximum.accumulate(known_rows)]
        values.setflags(write=False)
        object.__setattr__(self, "content_sha256", found)
        object.__setattr__(self, "values", values)

    @classmethod
    def located(cls, parameters: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        """Return the parameters with a relative path resolved against a folder."""
        path = parameters.get("path")
        if not isinstance(path, (str, Path)) or Path(path).is_absolute():
            return parameters
        return {**parameters, "path": os.path.abspath(folder / path)}

    def spec(self) -> dict[str, Any]:
        """Return the signal as plain JSON values, with the hash of what it plays."""
        # dataclass(slots=True) makes a second class, which a bare super() would not know.
        return {**Signal.spec(self), "sha256": self.content_sha256}

    @property
    def walks(self) -> bool:
        """Yes: there is a row for each tick and none in between."""
        return True

    @property
    def span(self) -> Span:
        """From the least to the greatest recorded value."""
        finite = self.values[np.isfinite(self.values)]
        return (float(finite.min()), float(finite.max())) if finite.size else None

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        return _Playback(self.values, self.loop, self._starts(site))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        values, loop, first = self.values, self.loop, int(self._starts(site)[0])

        def value(tick: Tick) -> float:
            row = first + tick.n
            return float(values[row % len(values) if loop else min(row, len(values) - 1)])

        return value

    def _starts(self, site: Site) -> Ints:
        if self.start == "first":
            return np.zeros(len(site.parents), dtype=np.int64)
        words = draws(site.keys(self.version, "start"), np.zeros(1, dtype=np.uint64))
        return scaled(words, len(self.values))


@dataclass(slots=True)
class _Playback:
    values: Floats
    loop: bool
    starts: Ints

    def step(self, steps: Steps) -> Floats:
        rows = steps.counters.view(np.int64) + self.starts[steps.devices]
        if self.loop:
            rows %= len(self.values)
        else:
            np.minimum(rows, len(self.values) - 1, out=rows)
        found: Floats = self.values[rows]
        return found


def _read(path: Any, column: str) -> Floats:
    allowed = "Give the path of a .csv or .parquet file."
    if not isinstance(path, (str, Path)) or "\0" in str(path):
        raise BadValue("path", path, "is not a path", allowed)
    file = Path(path)
    try:
        size = file.stat().st_size if file.is_file() else -1
    except (OSError, ValueError):
        size = -1
    if size < 0:
        raise BadValue("path", str(path), "is not a file that can be read", allowed)
    if size > SIZE_BYTES_MAX:
        raise BadValue("path", str(path), "is over 1 GB", "Cut the file.")
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix.lower() not in readers:
        raise BadValue("path", str(path), "is neither CSV nor Parquet", allowed)
    values = readers[file.suffix.lower()](file, column)
    if len(values) == 0:
        raise BadValue("path", str(path), "has no rows", "Give a file with at least one.")
    if len(values) > ROWS_MAX:
        raise BadValue("path", str(path), "has over 10,000,000 rows", "Cut the file.")
    return values


def _unusable(file: Path, column: str) -> BadValue:
    # Says nothing of what the file holds: it may not be what the user thought it was.
    return BadValue("column", column, f"is not a column of numbers in {file.name}",
                    "Look at the file's header and types.")


def _read_csv(file: Path, column: str) -> Floats:
    # Not pandas: how it rounds decimal digits has changed between its versions.
    found = array("d")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream)
            place = next(rows, []).index(column)
            for row in rows:
                text = row[place].strip() if place < len(row) else ""
                if row:
                    found.append(math.nan if text in _MISSING else float(text))
                if len(found) > ROWS_MAX:
                    break
    except (OSError, ValueError, csv.Error):
        raise _unusable(file, column) from None
    return np.array(found, dtype=np.float64)


def _read_parquet(file: Path, column: str) -> Floats:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("playback of Parquet", "pyarrow", "arrow") from None
    try:
        with parquet.ParquetFile(file) as opened:
            if opened.metadata.num_rows > ROWS_MAX:
                return np.empty(ROWS_MAX + 1)
            data = opened.read(columns=[column]).column(column).cast(pa.float64())
        return np.array(data.to_numpy(), dtype=np.float64)
    except (OSError, ValueError, LookupError, pa.ArrowException):
        raise _unusable(file, column) from None
