"""The devices of a capture as they were at any moment of it.

Readings stay where they are. Every million of them or so the state of all devices is kept, so that
a moment is the last state that was kept before it, and the readings from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iotsim.faults.base import NEVER_US, Window
from iotsim.frames import floats_of
from iotsim.panels.watch import (
    FAULT,
    FINE,
    SILENT,
    SILENT_AFTER,
    STOPPED,
    UNHEARD,
    Bytes,
    Cells,
    Floats,
    cells_of,
)
from iotsim.readings import Column, Ints, Readings
from iotsim.result import Result

KEPT_ROWS = 500_000  # readings between two states that are kept
KEPT_BYTES = 64_000_000  # of all states together
NUMBERS = ("float", "int", "bool")


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some readings of a capture.

    Attributes
    ----------
    slots : int64 array
        The device of each row.
    at_us : int64 array
        When it was made, by the simulation's clock.
    left_us : int64 array
        When it left its device; `NEVER_US` if it never did.
    """

    readings: Readings
    slots: Ints
    at_us: Ints
    left_us: Ints
    first_us: int
    last_us: int

    @classmethod
    def of(cls, readings: Readings, slots: Ints) -> Piece:
        """Return readings of devices."""
        at_us, marks = readings.time_us, readings.marks
        if marks is not None and marks.shift_us is not None:
            at_us = at_us - marks.shift_us
        left_us = at_us
        if marks is not None and marks.delay_us is not None:
            left_us = np.where(marks.delay_us >= NEVER_US, NEVER_US, at_us + marks.delay_us)
        if marks is not None and marks.withheld is not None:
            left_us = np.where(marks.withheld > 0, NEVER_US, left_us)
        gone = left_us[left_us < NEVER_US]
        last_us = max(int(at_us.max()), int(gone.max(initial=0)))
        return cls(readings, slots, at_us, left_us, int(at_us.min()), last_us)

    def values(self, field: str) -> npt.NDArray[np.float64] | None:
        """Return the values of a field, NaN where it has none; None if nobody has it."""
        column: Column | None = self.readings.columns.get(field)
        if column is None or column.kind not in NUMBERS:
            return None
        values = floats_of(column)
        return values if column.present is None else np.where(column.present, values, np.nan)


@dataclass(slots=True, eq=False)
class _State:
    # Of every device after some of the pieces: what it said last, and whether it could.
    value: Floats
    heard_us: Ints
    made_us: Ints
    held: npt.NDArray[np.bool_]
    step_us: Ints

    def copy(self) -> _State:
        return _State(self.value.copy(), self.heard_us.copy(), self.made_us.copy(),
                      self.held.copy(), self.step_us.copy())

    @property
    def size_bytes(self) -> int:
        return sum(part.nbytes for part in (self.value, self.heard_us, self.made_us, self.held,
                                            self.step_us))


class Past:
    """The devices of a result, at any moment.

    Parameters
    ----------
    result : Result
        With a history.
    pieces : sequence of Piece
        Its readings, those of a device in order of time.
    """

    def __init__(self, result: Result, pieces: Sequence[Piece]) -> None:
        assert result.history is not None
        self._people = result.history.population
        self._windows = list(result.history.deeds.windows)
        self._pieces = pieces
        self._changes = any("every_us" in done.parameters for done in result.history.deeds.done)
        self._begin_us = np.array([one.begin_us for one in self._windows], dtype=np.int64)
        self._over_us = np.array([min(one.end_us, one.over_us) for one in self._windows],
                                 dtype=np.int64)
        intervals = [0 if one is None else one.interval_us for one in self._people.profiles]
        self._interval_us = np.array([*intervals, 0], dtype=np.int64)[self._people.variant]
        self._kept: list[tuple[int, int, _State]] = []  # (good from, pieces it knows, state)
        self.field = ""

    def look_at(self, field: str) -> None:
        """Look at a field: read everything once, and keep some states on the way."""
        self.field, self._kept = field, []
        state, rows, good_us = self._fresh(), 0, -NEVER_US
        most = max(1, KEPT_BYTES // max(1, state.size_bytes))
        total = sum(len(piece.slots) for piece in self._pieces)
        every = max(KEPT_ROWS, -(-total // most))
        for i, piece in enumerate(self._pieces):
            if rows >= every and good_us < piece.last_us:
                self._kept.append((good_us, i, state.copy()))
                rows = 0
            self._take(state, piece, NEVER_US - 1)
            good_us, rows = max(good_us, piece.last_us), rows + len(piece.slots)

    def _fresh(self) -> _State:
        size = len(self._people)
        return _State(np.full(size, np.nan, np.float32), np.full(size, -1, np.int64),
                      np.full(size, -1, np.int64), np.zeros(size, np.bool_),
                      np.zeros(size, np.int64))

    def _take(self, state: _State, piece: Piece, now_us: int) -> None:
        slots, at_us, left = piece.slots, piece.at_us, piece.left_us < NEVER_US
        values = piece.values(self.field)
        if piece.last_us > now_us:  # what is on its way is not there yet, and nothing is lost
            there = (at_us <= now_us) & ((piece.left_us <= now_us) | ~left)
            slots, at_us, left = slots[there], at_us[there], left[there]
            values = None if values is None else values[there]
        if self._changes:
            steps_us = at_us - state.made_us[slots]
            state.step_us[slots] = np.where(state.made_us[slots] >= 0, steps_us, 0)
            state.made_us[slots] = at_us
        whole = bool(left.all())
        state.held[slots] = False if whole else ~left
        if not whole:
            slots, at_us = slots[left], at_us[left]
            values = None if values is None else values[left]
        state.heard_us[slots] = at_us
        if values is not None:
            known = ~np.isnan(values)
            state.value[slots[known]] = values[known]

    def _at(self, now_us: int) -> _State:
        known = [one for one in self._kept if one[0] <= now_us]
        state, first = (known[-1][2].copy(), known[-1][1]) if known else (self._fresh(), 0)
        for piece in self._pieces[first:]:
            if piece.first_us <= now_us:
                self._take(state, piece, now_us)
        return state

    def windows(self, now_us: int) -> list[Window]:
        """Return the faults that are active at a moment."""
        active = np.flatnonzero((self._begin_us <= now_us) & (self._over_us > now_us))
        return [self._windows[i] for i in active.tolist()]

    def moment(self, now_us: int, low: float, high: float) -> tuple[Cells, Bytes, Floats]:
        """Return the map at a moment, and the state and the last value of every device.

        Parameters
        ----------
        now_us : int
        low, high : float
            What the colours of values reach from and to.
        """
        found = self._at(now_us)
        interval_us = self._interval_us
        if self._changes:
            interval_us = np.where(found.step_us > 0, found.step_us, interval_us)
        known = (interval_us > 0) & (found.heard_us >= 0)
        overdue = np.where(known, (now_us - found.heard_us) / np.maximum(interval_us, 1) - 1, 0.0)
        state = np.where(found.heard_us < 0, UNHEARD, FINE).astype(np.uint8)
        for window in self.windows(now_us):
            state[window.slots[window.ends_us > now_us]] = FAULT
        silent = found.held | (overdue > SILENT_AFTER - 1)
        state[silent & (self._people.began_us <= now_us)] = SILENT
        state[self._people.ended_us <= now_us] = STOPPED
        return cells_of(state, found.value, overdue, low, high), state, found.value
