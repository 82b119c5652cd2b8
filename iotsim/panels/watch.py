"""What the readings of a live run say: each device's last value, and how the fleet has been.

`Watch.took` is called with all readings as they come, so it only writes them down, a few array
assignments for each piece. `Watch.sample` looks at what is there and adds one point to the lines;
`cells` gives one byte a device, or a few devices, for the map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iotsim.engine.simulation import Simulation
from iotsim.faults.base import Window
from iotsim.readings import Column, Readings

POINTS = 600  # of a line
SAMPLED = 10_000  # devices that a band is drawn from; of more, every n-th
CELLS = 10_000  # of the map; with more devices, a cell stands for several
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SILENT_AFTER = 2.5  # intervals without a reading
OFFENDERS = 4  # of each kind
FAR = 2.0  # widths of the band from 5 to 95 %, away from the median
LARGEST = 1e37  # of what is drawn, so that float32 holds sums of it
FIELDS_MAX = 500  # that are offered
ALL = slice(None)
NOTHING = 255  # a cell without a value
STATES = ("not heard yet", "stopped", "fine", "fault", "silent")  # the worst last
UNHEARD, STOPPED, FINE, FAULT, SILENT = range(len(STATES))

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The map of the devices, one byte a cell.

    Attributes
    ----------
    state : uint8 array
        Codes into `STATES`: the worst of the cell.
    value, overdue : uint8 array
        0 to 254 of the range; of its first device; `NOTHING` where there is none. `overdue` is in
        tenths of an interval.
    low, high : float
        The range of `value`.
    each : int
        How many devices a cell stands for.
    counts : list of int
        How many devices are in each of `STATES`.
    """

    state: Bytes
    value: Bytes
    overdue: Bytes
    low: float
    high: float
    each: int
    counts: list[int]


class Watch:
    """What is known of each device of a simulation, and the last points of its lines.

    Parameters
    ----------
    simulation : Simulation
    field : str
        The numeric field that is looked at; empty if there is none.
    """

    def __init__(self, simulation: Simulation, field: str) -> None:
        self.field = field
        self.picked: int | None = None  # a slot
        self.numbers: dict[str, bool] = {}  # fields that were seen, and whether they are numbers
        self._simulation = simulation
        self._values = np.empty(0, dtype=np.float32)
        self._heard_us = np.empty(0, dtype=np.int64)
        self._withheld = np.empty(0, dtype=np.bool_)
        self._paces = np.empty(0, dtype=np.float32)
        self._paces_of: object = None
        self._open: list[Window] = []
        self._windows_seen = 0
        self._grow()

    def __len__(self) -> int:
        return len(self._values)

    def took(self, readings: Readings) -> None:
        """Write readings down."""
        people = self._simulation.population
        self._grow()
        slots = people.slots[readings.group.index][readings.device]
        marks = readings.marks
        if marks is not None and marks.withheld is not None:
            withheld = marks.withheld > 0
            self._withheld[slots] = withheld
            if withheld.any():
                readings, slots = readings.take(~withheld), slots[~withheld]
        else:
            self._withheld[slots] = False
        self._heard_us[slots] = readings.time_us
        if not readings.columns.keys() <= self.numbers.keys() and len(self.numbers) < FIELDS_MAX:
            self.numbers.update({name: column.kind in ("float", "int")
                                 for name, column in readings.columns.items()})
        column = readings.columns.get(self.field)
        if column is not None and is_number(column):
            values = column.values
            if column.present is not None:
                slots, values = slots[column.present], values[column.present]
            self._values[slots] = np.clip(values, -LARGEST, LARGEST)

    def _grow(self) -> None:
        more = len(self._simulation.population) - len(self._values)
        if not more:
            return
        self._values = np.append(self._values, np.full(more, np.nan, np.float32))
        self._heard_us = np.append(self._heard_us, np.full(more, -1, np.int64))
        self._withheld = np.append(self._withheld, np.zeros(more, np.bool_))

    def look_at(self, field: str, chunks: list[Readings]) -> None:
        """Look at another field, beginning with the readings that are held of it."""
        self.field = field
        self._values[:] = np.nan
        for chunk in chunks:
            self.took(chunk)

    # -- lines ----------------------------------------------------------------------------------

    def bands(self, now_us: int) -> list[float]:
        """Return the quantiles of the last values, of devices that are heard; NaN if none is."""
        self._grow()
        some = slice(None, len(self), self.stride)
        values = self._values[some]
        alive = self._simulation.population.ended_us[some] > now_us  # nobody is late any more
        values = values[alive & ~self._is_silent(now_us, some) & ~np.isnan(values)]
        if not len(values):
            return [math.nan] * len(QUANTILES)
        values.sort()
        places = [round(share * (len(values) - 1)) for share in QUANTILES]
        return [float(value) for value in values[places]]

    @property
    def stride(self) -> int:
        """Of how many devices one is in the bands."""
        return max(1, -(-len(self._values) // SAMPLED))

    def value_of(self, slot: int | None) -> float:
        """Return the last value of a device, or NaN."""
        return math.nan if slot is None or slot >= len(self) else float(self._values[slot])

    def offenders(self, now_us: int) -> list[tuple[int, str]]:
        """Return the devices that stand out most: slots, and why in words."""
        overdue = self._overdue(now_us)
        found = [(slot, f"silent for {overdue[slot] + 1:.0f} intervals")
                 for slot in _largest(overdue, SILENT_AFTER - 1)]
        low, _, middle, _, high = self.bands(now_us)
        if high > low:
            far = np.abs(self._values - middle) / (high - low)
            far[np.isnan(far) | self._is_silent(now_us)] = 0
            found += [(slot, f"at {self._values[slot]:.4g}") for slot in _largest(far, FAR)]
        return found

    # -- the map --------------------------------------------------------------------------------

    def cells(self, now_us: int, low: float, high: float) -> Cells:
        """Return the map of the devices as they are now; see `cells_of`."""
        return cells_of(self.states(now_us), self._values, self._overdue(now_us), low, high)

    def states(self, now_us: int) -> Bytes:
        """Return the state of every device, shape (slots,)."""
        people = self._simulation.population
        self._grow()
        state = np.where(self._heard_us < 0, UNHEARD, FINE).astype(np.uint8)
        for window in self._open_windows(now_us):
            if window.begin_us <= now_us:
                state[window.slots[window.ends_us > now_us]] = FAULT
        state[self._is_silent(now_us)] = SILENT
        state[people.ended_us <= now_us] = STOPPED
        return state

    def _open_windows(self, now_us: int) -> list[Window]:
        # A long run has many that are over; time does not go back.
        windows = self._simulation.deeds.windows
        self._open += windows[self._windows_seen :]
        self._windows_seen = len(windows)
        self._open = [one for one in self._open if now_us < min(one.end_us, one.over_us)]
        return self._open

    def _is_silent(self, now_us: int, some: slice = ALL) -> npt.NDArray[np.bool_]:
        return self._withheld[some] | (self._overdue(now_us, some) > SILENT_AFTER - 1)

    def _overdue(self, now_us: int, some: slice = ALL) -> Floats:
        # In intervals; of scripted devices, which have none, nobody knows.
        heard_us = self._heard_us[some]
        late = (now_us - heard_us).astype(np.float32) * self._per_us()[some] - np.float32(1)
        late[heard_us < 0] = 0
        return late

    def _per_us(self) -> Floats:
        # Intervals in a µs; 0 where there are none.
        key = (len(self._simulation.deeds.done), len(self), len(self._simulation.blocks))
        if key != self._paces_of:
            found = np.zeros(len(self), dtype=np.float32)
            for block in self._simulation.blocks:
                found[block.slots] = 1 / block.profile.interval_us
            self._paces, self._paces_of = found, key
        return self._paces


def cells_of(state: Bytes, values: Floats, overdue: Floats, low: float, high: float) -> Cells:
    """Return the map of devices, of arrays of shape (slots,).

    Parameters
    ----------
    state, values, overdue : array
    low, high : float
        What the colours of values reach from and to.
    """
    each = max(1, -(-len(state) // CELLS))
    counts: list[int] = np.bincount(state, minlength=len(STATES)).tolist()
    late = np.clip(overdue * 10, 0, NOTHING - 1).astype(np.uint8)
    span = high - low if high > low else 1.0
    scaled = np.clip((values[::each] - low) / span, 0, 1) * (NOTHING - 1)
    shade = np.where(np.isnan(scaled), NOTHING, np.nan_to_num(scaled)).astype(np.uint8)
    if each > 1:
        starts = np.arange(0, len(state), each)
        state = np.maximum.reduceat(state, starts)
        late = np.maximum.reduceat(late, starts)
    return Cells(state, shade, late, low, high, each, counts)


def _largest(values: Floats, above: float) -> list[int]:
    high = np.flatnonzero(values > above)
    if len(high) > OFFENDERS:
        high = high[np.argpartition(values[high], -OFFENDERS)[-OFFENDERS:]]
    ranked: list[int] = high[np.argsort(-values[high], kind="stable")].tolist()
    return ranked


def is_number(column: Column) -> bool:
    """Return whether a column can be drawn as a line."""
    return column.kind in ("float", "int", "bool")


class Ring:
    """The last points of several lines, oldest first; the first column is the time.

    Parameters
    ----------
    columns : int
    points : int
    """

    def __init__(self, columns: int, points: int = POINTS) -> None:
        self._held = np.full((points, columns), np.nan, dtype=np.float64)
        self._rows = self._next = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, row: list[float]) -> None:
        """Add a point to every line."""
        self._held[self._next] = row
        self._next = (self._next + 1) % len(self._held)
        self._rows = min(self._rows + 1, len(self._held))

    def table(self) -> npt.NDArray[np.float64]:
        """Return the points, shape (rows, columns)."""
        return np.roll(self._held, -self._next, axis=0)[len(self._held) - self._rows :]

    def packed(self) -> tuple[float, bytes]:
        """Return the first time, and the table as float32 with times counted from there."""
        table = self.table()
        if not len(table):
            return 0.0, b""
        first = float(table[0, 0])
        table[:, 0] -= first
        return first, table.astype(np.float32).tobytes()


def field_names(simulation: Simulation, more: Any = ()) -> list[str]:
    """Return the numeric fields that profiles have, and others that were seen, in order."""
    names = dict.fromkeys(
        field.name for profile in simulation.population.profiles if profile is not None
        for field in profile.fields if field.kind in ("float", "int"))
    return list(dict.fromkeys([*names, *more]))
