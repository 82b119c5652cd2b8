"""What a live run does with readings: small pieces are joined before they are kept.

Live slots give few rows at a time. They gather per group until there are enough, or somebody
looks; only then are they added to the digest, the capture and the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from iotsim.arrow import Writer
from iotsim.capture import Capture
from iotsim.digest import Digest
from iotsim.readings import Column, Readings

ROWS_JOINED = 4096


class Intake:
    """Takes readings in as they come.

    Parameters
    ----------
    digests : Digest
    capture : Capture
    writer : Writer or None
    """

    def __init__(self, digests: Digest, capture: Capture, writer: Writer | None) -> None:
        self.digests, self.capture, self.writer = digests, capture, writer
        self.rows = 0
        self.lock = threading.RLock()  # a frame may be asked for from any thread
        self._pieces: dict[int, list[Readings]] = {}
        self._waiting: dict[int, int] = {}

    def add(self, readings: Readings) -> None:
        """Take readings in."""
        index = readings.group.index
        with self.lock:
            self.rows += len(readings)
            self._pieces.setdefault(index, []).append(readings)
            self._waiting[index] = self._waiting.get(index, 0) + len(readings)
            if self._waiting[index] >= ROWS_JOINED:
                self._pass_on(index)

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
        if runs and _shape(runs[-1][0]) == _shape(piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [run[0] if len(run) == 1 else _join(run) for run in runs]


def _shape(readings: Readings) -> tuple[object, ...]:
    return tuple(
        (name, column.kind, column.categories, column.present is None)
        for name, column in readings.columns.items()
    )


def _join(run: Sequence[Readings]) -> Readings:
    def together(column: Callable[[Readings], Column]) -> Column:
        parts = [column(piece) for piece in run]
        present = None
        if parts[0].present is not None:
            present = np.concatenate([part.present for part in parts if part.present is not None])
        values = np.concatenate([part.values for part in parts])
        return Column(parts[0].kind, values, parts[0].categories, present)

    return Readings(
        group=run[0].group,
        device=np.concatenate([piece.device for piece in run]),
        seq=np.concatenate([piece.seq for piece in run]),
        time_us=np.concatenate([piece.time_us for piece in run]),
        columns={
            name: together(lambda piece, name=name: piece.columns[name])  # type: ignore[misc]
            for name in run[0].columns
        },
    )
