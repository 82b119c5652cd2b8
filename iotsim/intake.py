"""What a live run does with readings: small pieces are joined before they are kept.

Live slots give few rows at a time. They gather per group until there are enough, or somebody
looks; only then are they added to the digest, the capture and the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.arrow import Writer
from iotsim.capture import Capture
from iotsim.digest import Digest
from iotsim.readings import Column, Marks, Readings

Viewer: TypeAlias = Callable[[Readings], None]

ROWS_JOINED = 4096
BATCH_POWERS = 32


class Intake:
    """Takes readings in as they come.

    Parameters
    ----------
    digests : Digest
    capture : Capture
    writer : Writer or None
    viewers : list of callable (Readings)
        Told of all readings as they come; who is in it may change. One that fails is told no more.

    Attributes
    ----------
    rows, withheld_rows : int
    batches : list of int
        How many pieces of 1, 2, up to 4, up to 8 … readings there were.
    viewer_error : Exception or None
        Why the last viewer that failed did.
    """

    def __init__(
        self, digests: Digest, capture: Capture, writer: Writer | None,
        viewers: list[Viewer] | None = None,
    ) -> None:
        self.digests, self.capture, self.writer = digests, capture, writer
        self._viewers = [] if viewers is None else viewers
        self.viewer_error: Exception | None = None
        self.rows = self.withheld_rows = 0
        self.lock = threading.RLock()  # a frame may be asked for from any thread
        self._pieces: dict[int, list[Readings]] = {}
        self._waiting: dict[int, int] = {}
        self.batches = [0] * BATCH_POWERS

    def add(self, readings: Readings) -> None:
        """Take readings in."""
        index = readings.group.index
        with self.lock:
            self.rows += len(readings)
            self.batches[max(0, len(readings) - 1).bit_length()] += 1
            if readings.marks is not None and readings.marks.withheld is not None:
                self.withheld_rows += int((readings.marks.withheld > 0).sum())
            self._pieces.setdefault(index, []).append(readings)
            self._waiting[index] = self._waiting.get(index, 0) + len(readings)
            if self._waiting[index] >= ROWS_JOINED:
                self._pass_on(index)
        for view in tuple(self._viewers):
            try:
                view(readings)
            except Exception as error:  # who looks at a run does not end it
                self._viewers.remove(view)
                self.viewer_error = error

    @property
    def waiting_rows(self) -> int:
        """How many rows wait to be joined."""
        return sum(self._waiting.values())

    def flush(self) -> None:
        """Pass on what waits."""
        with self.lock:
            for index in list(self._pieces):
                self._pass_on(index)

    def _pass_on(self, index: int) -> None:
        pieces = self._pieces.pop(index, [])
        self._waiting[index] = 0
        for readings in joined(pieces):
            self.digests.add(readings)
            self.capture.add(readings)
            if self.writer is not None:
                self.writer.add(readings)


def joined(pieces: Sequence[Readings]) -> list[Readings]:
    """Return readings of one group with neighbours of the same columns made one."""
    runs: list[list[Readings]] = []
    for piece in pieces:
        if runs and shape_of(runs[-1][0]) == shape_of(piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [run[0] if len(run) == 1 else _join(run) for run in runs]


def shape_of(readings: Readings) -> tuple[object, ...]:
    """Return what readings must have alike to be joined."""
    # Rows without a truth of their own take what was published: the two must be alike.
    columns = {name: _like(column) for name, column in readings.columns.items()}
    truth = {} if readings.marks is None else readings.marks.truth
    apart = {name: like for name, column in truth.items()
             if (like := _like(column)) != columns.get(name)}
    return (*columns.items(), apart)


def _like(column: Column) -> tuple[object, ...]:
    return column.kind, column.categories, column.present is None


def _join(run: Sequence[Readings]) -> Readings:
    return Readings(
        group=run[0].group,
        device=np.concatenate([piece.device for piece in run]),
        seq=np.concatenate([piece.seq for piece in run]),
        time_us=np.concatenate([piece.time_us for piece in run]),
        columns={
            name: _together([piece.columns[name] for piece in run]) for name in run[0].columns
        },
        marks=_joined_marks(run),
    )


def _together(parts: Sequence[Column]) -> Column:
    present = None
    if parts[0].present is not None:
        present = np.concatenate([part.present for part in parts if part.present is not None])
    values = np.concatenate([part.values for part in parts])
    return Column(parts[0].kind, values, parts[0].categories, present)


def _joined_marks(run: Sequence[Readings]) -> Marks | None:
    if all(piece.marks is None for piece in run):
        return None
    codes: dict[str, int] = {"": 0}
    marks = [piece.marks or _no_marks(len(piece)) for piece in run]
    places = [
        np.array([codes.setdefault(name, len(codes)) for name in part.names], dtype=np.int16)
        for part in marks
    ]

    def coded(name: str) -> list[npt.NDArray[np.int16] | None]:
        arrays = [getattr(part, name) for part in marks]
        return [None if array is None else place[array]
                for place, array in zip(places, arrays, strict=True)]

    def filled(parts: Sequence[Any], kind: type[np.integer[Any]]) -> Any:
        if all(part is None for part in parts):
            return None
        return np.concatenate([np.zeros(len(piece), dtype=kind) if part is None else part
                               for part, piece in zip(parts, run, strict=True)])

    def plain(name: str, kind: type[np.integer[Any]]) -> Any:
        return filled([getattr(part, name) for part in marks], kind)

    names = dict.fromkeys(name for part in marks for name in part.truth)
    truth = {
        name: _together([part.truth.get(name) or piece.columns[name]
                         for part, piece in zip(marks, run, strict=True)])
        for name in names
    }
    faults, hit, withheld = (
        filled(coded(name), np.int16) for name in ("faults", "hit", "withheld"))
    return Marks(tuple(codes), faults, hit, withheld, plain("sub", np.int32),
                 plain("copy", np.int32), plain("delay_us", np.int64), plain("shift_us", np.int64),
                 truth)


def _no_marks(rows: int) -> Marks:
    nothing = np.zeros(rows, dtype=np.int16)
    return Marks(("",), nothing, nothing)
