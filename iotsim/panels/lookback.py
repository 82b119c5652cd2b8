"""What can be seen of a result: lines over all of it, and the devices at any moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue
from iotsim.faults.base import NEVER_US
from iotsim.frames import with_declared
from iotsim.panels.past import NUMBERS, Past, Piece
from iotsim.panels.watch import CELLS, POINTS, QUANTILES, STATES
from iotsim.panels.windows import WHERE_CHARS
from iotsim.plotting.canvas import bins_of, cut, edges_of
from iotsim.plotting.windows import lanes_in
from iotsim.readings import Ints
from iotsim.result import Result

COLUMNS = ("time", "q05", "q25", "q50", "q75", "q95", "picked", "left", "withheld", "hit")
assert len(QUANTILES) == 5
ROWS_MAX = 30_000_000  # that a panel reads of a file
SORTED_ROWS = 1_000_000  # readings that bands are drawn from; of more, those of every n-th device
SAMPLED_MIN = 50  # devices
WINDOWS_SHOWN = 60
CARRIED = 1.0  # intervals that a line goes on without a reading
ALMOST = 1 - 1e-9

Table = npt.NDArray[np.float64]


class Lookback:
    """A result to look back through.

    Parameters
    ----------
    result : Result

    Attributes
    ----------
    fields : list of str
        Those of numbers.
    field, unit : str
        The one that lines and map show.
    since_us, until_us : int
        What there is: from the start, or from the first reading if those before it are gone.
    picked : int or None
        The device whose line is drawn, by its number.
    """

    def __init__(self, result: Result) -> None:
        if result._in_file and result.rows > ROWS_MAX:
            raise BadValue("result", result.name, f"has {result.rows:,} readings in {result.path}, "
                           f"too many to look back through (at most {ROWS_MAX:,})",
                           "Read a part of the file with pandas.")
        self.result = result
        self.picked: int | None = None
        chunks = [chunk for chunk in result._left(None, None)[1] if len(chunk)]
        people = None if result.history is None else result.history.population
        self._pieces = [] if people is None else [
            Piece.of(chunk, people.slots[chunk.group.index][chunk.device]) for chunk in chunks]
        self.ids: Sequence[str] = () if people is None else people.ids
        kinds = with_declared(result._declared(), chunks)
        self.fields = [name for name, kind in kinds.items() if kind in NUMBERS]
        self.since_us, self.until_us = self._span()
        self._past = None if result.history is None else Past(result, self._pieces)
        self.windows = self._shades()
        self.field = ""
        self.look_at(self.fields[0] if self.fields else "")

    def _span(self) -> tuple[int, int]:
        start_us, end_us = self.result.start_us, self.result.end_us
        if not self._pieces:
            return start_us, max(end_us, start_us + 1)
        first_us = min(piece.first_us for piece in self._pieces)
        near = first_us - start_us < 0.05 * max(1, end_us - first_us)
        last_us = max(int(piece.at_us.max()) for piece in self._pieces)
        return (start_us if near else first_us), max(end_us, last_us + 1)

    def seconds(self, at_us: int) -> float:
        """Return an instant in simulated seconds since the start of the run."""
        return (at_us - self.result.start_us) / 1e6

    def look_at(self, field: str) -> None:
        """Look at a field: everything is read once."""
        self.field = field
        if self._past is not None:
            self._past.look_at(field)
        self._edges_us = edges_of(self.since_us, self.until_us, self._bins())
        self._table = np.full((len(self._edges_us) - 1, len(COLUMNS)), np.nan)
        middle_us = (self._edges_us[:-1] + self._edges_us[1:]) / 2
        self._table[:, 0] = (middle_us - self.result.start_us) / 1e6
        self._count()
        self._table[:, 1:6] = self._bands()
        self.pick(self.picked)
        self.range = self._range()

    @property
    def unit(self) -> str:
        """The unit of the field; empty if it has none, or several."""
        profiles = (member.profile for member in self.result.fleet.members)
        units = {one.unit or "" for profile in profiles if profile is not None
                 for one in profile.fields if one.name == self.field}
        return units.pop() if len(units) == 1 else ""

    # -- lines ----------------------------------------------------------------------------------

    def _bins(self) -> int:
        # About as many as a device has readings: a bin without any would look like a gap.
        rows, heard = 0, np.zeros(len(self.ids), dtype=np.bool_)
        for piece in self._pieces:
            if self.field in piece.readings.columns:
                heard[piece.slots] = True
                rows += len(piece.slots)
        return min(POINTS, max(1, rows // max(1, int(heard.sum()))))

    def _count(self) -> None:
        bins = len(self._table)
        counts = np.zeros((3, bins))
        for piece in self._pieces:
            place = bins_of(piece.at_us, self._edges_us)
            gone = piece.left_us < NEVER_US
            counts[0] += np.bincount(place[gone], minlength=bins)
            counts[1] += np.bincount(place[~gone], minlength=bins)
            marks = piece.readings.marks
            if marks is not None:
                counts[2] += np.bincount(place[marks.hit > 0], minlength=bins)
        self._table[:, 7:] = (counts / (np.diff(self._edges_us) / 1e6)).T

    @property
    def stride(self) -> int:
        """Of how many devices one is in the bands."""
        rows = sum(len(piece.slots) for piece in self._pieces)
        return max(1, min(len(self.ids) // SAMPLED_MIN, -(-rows // SORTED_ROWS)))

    def _bands(self) -> Table:
        bins, stride = len(self._table), self.stride
        places, found = [np.empty(0, np.int64)], [np.empty(0)]
        for piece in self._pieces:
            values = piece.values(self.field)
            if values is None:
                continue
            drawn = np.isfinite(values) & (piece.left_us < NEVER_US)
            if stride > 1:
                drawn &= piece.slots % stride == 0
            places.append(bins_of(piece.at_us[drawn], self._edges_us))
            found.append(values[drawn])
        place, value = np.concatenate(places), np.concatenate(found)
        return _quantiles(place, value, bins)

    def pick(self, slot: int | None) -> None:
        """Draw the line of a device; of none without one."""
        self.picked = slot if slot is not None and 0 <= slot < len(self.ids) else None
        line = self._table[:, COLUMNS.index("picked")]
        line[:] = np.nan
        if self.picked is None:
            return
        for piece in self._pieces:
            values = piece.values(self.field)
            mine = piece.slots == self.picked
            if values is not None and mine.any():
                mine &= np.isfinite(values) & (piece.left_us < NEVER_US)
                line[bins_of(piece.at_us[mine], self._edges_us)] = values[mine]
        line[:] = _carried(line, self._carry())

    def _carry(self) -> int:
        # For how many bins the last value stands, where a device reports less often than that.
        history = self.result.history
        if history is None or self.picked is None:
            return 0
        profile = history.population.profiles[int(history.population.variant[self.picked])]
        width_us = (self.until_us - self.since_us) / len(self._table)
        return 0 if profile is None else math.ceil(CARRIED * profile.interval_us / width_us)

    def _range(self) -> tuple[float, float]:
        bands = self._table[:, 1:6]
        if np.isnan(bands).all():
            return 0.0, 1.0
        low, high = float(np.nanmin(bands)), float(np.nanmax(bands))
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        return low - room, high + room

    def packed(self) -> bytes:
        """Return the lines as float32; times count from `since_us`."""
        table = self._table.copy()
        table[:, 0] -= self.seconds(self.since_us)
        return table.astype(np.float32).tobytes()

    @property
    def table(self) -> Table:
        """The lines, shape (bins, columns); times since the start of the run."""
        return self._table

    def _shades(self) -> list[dict[str, Any]]:
        # The windows of faults; of very many, those that were longest on most devices.
        found = [(begin, end, count, lane) for lane in lanes_in(self.result.history)
                 for begin, end, count in lane.runs(self.since_us, self.until_us)]
        found.sort(key=lambda one: -(one[1] - one[0]) * one[2])
        self.windows_hidden = max(0, len(found) - WINDOWS_SHOWN)
        return [{"name": lane.name, "where": cut(lane.where, WHERE_CHARS), "devices": count,
                 "from": self.seconds(begin), "to": self.seconds(end)}
                for begin, end, count, lane in sorted(found[:WINDOWS_SHOWN],
                                                      key=lambda one: one[0])]

    # -- a moment -------------------------------------------------------------------------------

    def moment(self, at_us: int) -> tuple[dict[str, Any], bytes]:
        """Return the devices as they were at a moment: facts, and the bytes of the map."""
        if self._past is None:
            return {"map": {}, "active": [], "value": None, "state": ""}, b""
        cells, state, values = self._past.moment(at_us, *self.range)
        value = math.nan if self.picked is None else float(values[self.picked])
        facts = {
            "map": {"cells": len(cells.state), "each": cells.each, "low": cells.low,
                    "high": cells.high, "states": dict(zip(STATES, cells.counts, strict=True))},
            "active": [_active(window, at_us) for window in
                       self._past.windows(at_us)[:WINDOWS_SHOWN]],
            "value": None if math.isnan(value) else value,
            "state": "" if self.picked is None else STATES[state[self.picked]],
        }
        return facts, cells.state.tobytes() + cells.value.tobytes() + cells.overdue.tobytes()

    def slot_of(self, cell: Any, device_id: Any) -> int | None:
        """Return the first device of a cell of the map, or the one with an id."""
        if isinstance(device_id, str) and device_id in self.ids:
            return self.ids.index(device_id)
        if isinstance(cell, int) and cell >= 0:
            return cell * self.each
        return None

    @property
    def each(self) -> int:
        """How many devices a cell of the map stands for."""
        return max(1, -(-len(self.ids) // CELLS))


def _active(window: Any, at_us: int) -> dict[str, Any]:
    end_us = min(window.end_us, window.over_us)
    return {"name": window.name, "devices": int((window.ends_us > at_us).sum()),
            "left": None if end_us >= NEVER_US else (end_us - at_us) / 1e6}


def _quantiles(place: Ints, value: Table, bins: int) -> Table:
    # One sort of place + scaled value: within each bin the values stand in order.
    found = np.full((bins, len(QUANTILES)), np.nan)
    if not len(value):
        return found
    low = float(value.min())
    span = (float(value.max()) - low) or 1.0
    keys = np.sort(place + (value - low) * (ALMOST / span))
    counts = np.bincount(place, minlength=bins)
    starts = np.cumsum(counts) - counts
    there = np.flatnonzero(counts)
    for i, share in enumerate(QUANTILES):
        rows = starts[there] + np.rint(share * (counts[there] - 1)).astype(np.int64)
        found[there, i] = low + (keys[rows] - there) * (span / ALMOST)
    return found


def _carried(line: Table, most: int) -> Table:
    known = np.where(np.isnan(line), -1, np.arange(len(line)))
    last = np.maximum.accumulate(known)
    near = (last >= 0) & (np.arange(len(line)) - last <= most)
    return np.where(near, line[np.maximum(last, 0)], np.nan)
