"""The newest readings of a run as a table for people: filtered, bounded, one row a reading."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import numpy as np
import numpy.typing as npt

from iotsim.engine.simulation import Simulation
from iotsim.readings import Column, Ints, Marks, Readings
from iotsim.units import instant_text

ROWS_SHOWN = 500
ROWS_HELD = 50_000  # readings that are kept to choose from
CELL_CHARS = 160
ASKED_CHARS = 400  # of what somebody types

Mask = npt.NDArray[np.bool_]
Row = list[str]  # when, id, type, values, what faults did


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which readings a table shows; an empty part means all of them.

    Attributes
    ----------
    device_type : str
    ids : str
        Ids, apart by commas or spaces; `*` and `?` stand for anything.
    text : str
        Part of an id, a type, a label, a text value, or a fault's name, in any case.
    """

    device_type: str = ""
    ids: str = ""
    text: str = ""


class Telemetry:
    """The newest readings that somebody wants to see.

    `took` only keeps what comes; `look` looks through what is new and keeps the newest rows.

    Parameters
    ----------
    simulation : Simulation

    Attributes
    ----------
    wanted : Wanted
    paused : bool
        Whether the table stands still; readings are kept meanwhile, as far as there is room.
    seen, missed : int
        Readings that came, and those that were let go before they were looked at.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.wanted = Wanted()
        self.paused = self._rests = False
        self.seen = self.missed = 0
        self._pieces: deque[tuple[int, Readings]] = deque()  # with a number each
        self._held = self._number = self._looked = 0
        self._rows: deque[Row] = deque(maxlen=ROWS_SHOWN)
        self._first = self._version = 0
        self._mask: tuple[Any, Mask, Mask] | None = None

    def took(self, readings: Readings) -> None:
        """Keep readings, and let go of the oldest."""
        rows = len(readings)
        self.seen += rows
        self._number += 1
        self._pieces.append((self._number, readings))
        self._held += rows
        while self._held > ROWS_HELD and len(self._pieces) > 1:
            number, oldest = self._pieces.popleft()
            self._held -= len(oldest)
            if number > self._looked and not (self.paused or self._rests):
                self.missed += len(oldest)

    def filter(self, device_type: str, ids: str, text: str) -> None:
        """Show other readings, beginning with those that are held."""
        self.wanted = Wanted(*(part.strip()[:ASKED_CHARS] for part in (device_type, ids, text)))
        self._begin_anew()

    def clear(self) -> None:
        """Forget what was shown; what comes from now on is."""
        self._pieces.clear()
        self._held = self.missed = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._rows.clear()
        self._looked, self._mask = 0, None
        self._version, self._first = self._version + 1, 0
        if self.paused:  # what stands still is looked at once more
            self._look()

    def rest(self) -> None:
        """Know that nobody looks just now: nothing that goes by is missed."""
        self._rests = True

    def table(self) -> dict[str, Any]:
        """Return what is to be shown now, as plain JSON; `first` numbers the first row."""
        if self._rests and not self.paused:
            self._begin_anew()
        self._rests = False
        if not self.paused:
            self._look()
        return {"version": self._version, "first": self._first, "rows": list(self._rows)}

    def about(self) -> dict[str, Any]:
        """Return what the table shows, and of how much."""
        wanted = self.wanted
        return {"type": wanted.device_type, "ids": wanted.ids, "text": wanted.text,
                "paused": self.paused, "seen": self.seen, "missed": self.missed,
                "most": ROWS_SHOWN}

    # -- looking --------------------------------------------------------------------------------

    def _look(self) -> None:
        fresh: list[Readings] = []
        for number, piece in reversed(self._pieces):
            if number <= self._looked:
                break
            fresh.append(piece)
        self._looked = self._number
        rows: list[Row] = []
        for piece, some in self._newest(fresh):
            rows += self._told(piece.take(some))
        rows.sort()  # by time, then by id
        self._first += max(0, len(self._rows) + len(rows) - ROWS_SHOWN)
        self._rows.extend(rows)

    def _newest(self, fresh: list[Readings]) -> Iterator[tuple[Readings, Ints]]:
        # Of pieces, the newest first: the rows that are wanted, as many as there is room for.
        wanted, room = self.wanted, ROWS_SHOWN
        if wanted == Wanted():
            for piece in fresh:
                some = np.arange(len(piece), dtype=np.int64)[-room:]
                yield piece, some
                room -= len(some)
                if room <= 0:
                    return
        if wanted == Wanted() or not fresh:
            return
        # Live pieces are small and many: who is in them is looked up for all of them at once.
        only, named = self._masks()
        by_group = self._simulation.population.slots
        slots = np.concatenate([by_group[piece.group.index][piece.device] for piece in fresh])
        ends = np.cumsum([len(piece) for piece in fresh])
        meant = only[slots]
        for i in np.unique(np.searchsorted(ends, np.flatnonzero(meant), side="right")).tolist():
            piece, begin = fresh[i], int(ends[i]) - len(fresh[i])
            found = meant[begin : int(ends[i])]
            if wanted.text:
                found = found & (named[slots[begin : int(ends[i])]]
                                 | _says(piece, wanted.text.casefold()))
            some = np.flatnonzero(found)[-room:]
            if len(some):
                yield piece, some
                room -= len(some)
            if room <= 0:
                return

    def _masks(self) -> tuple[Mask, Mask]:
        # By slot: who is meant by type and ids, and in whose name, type or labels the text is.
        people = self._simulation.population
        key = len(people), len(people.groups)
        if self._mask is None or self._mask[0] != key:
            wanted = self.wanted
            only = np.ones(len(people), dtype=np.bool_)
            if wanted.device_type:
                same = np.array([group.device_type == wanted.device_type
                                 for group in people.groups], dtype=np.bool_)
                only &= same[people.home]
            if wanted.ids:
                only &= _named(people.ids, wanted.ids)
            text = wanted.text.casefold()
            spoken = np.array([_about(group.device_type, group.labels, text)
                               for group in people.groups], dtype=np.bool_)
            named = spoken[people.home]
            if text:
                named |= np.fromiter((text in name.casefold() for name in people.ids), np.bool_,
                                     len(people))
            self._mask = key, only, named
        return self._mask[1], self._mask[2]

    def _told(self, piece: Readings) -> list[Row]:
        group = piece.group
        profile = self._simulation.population.members[group.index].profile
        units = {} if profile is None else {one.name: one.unit or "" for one in profile.fields}
        columns = [(name, _texts(column, units.get(name, "")))
                   for name, column in piece.columns.items()]
        done = _done(piece.marks, len(piece))
        rows = []
        for i, (device, time_us) in enumerate(
                zip(piece.device.tolist(), piece.time_us.tolist(), strict=True)):
            values = ", ".join(f"{name} {texts[i]}" for name, texts in columns if texts[i])
            rows.append([instant_text(time_us)[:23] + "Z", _cut(group.ids[device]),
                         _cut(group.device_type), _cut(values), _cut(done[i])])
        return rows


def _named(ids: list[str], asked: str) -> Mask:
    parts = [part for part in re.split(r"[,\s|]+", asked) if part]
    plain = {part for part in parts if not set("*?[") & set(part)}
    pattern = re.compile("|".join(translate(part) for part in parts if part not in plain) or r"\Z.")
    return np.fromiter((name in plain or pattern.match(name) is not None for name in ids),
                       np.bool_, len(ids))


def _about(device_type: str, labels: Any, text: str) -> bool:
    return any(text in part.casefold() for part in
               (device_type, *(f"{name}={value}" for name, value in labels.items())))


def _says(piece: Readings, text: str) -> Mask:
    found = np.zeros(len(piece), dtype=np.bool_)
    for column in piece.columns.values():
        if column.categories:
            told = np.array([text in str(one).casefold() for one in column.categories] + [False])
            found |= told[column.values]
    marks = piece.marks
    if marks is not None:
        told = np.array([text in name.casefold() for name in marks.names], dtype=np.bool_)
        found |= told[marks.faults] | told[marks.hit]
    return found


def _texts(column: Column, unit: str) -> list[str]:
    values = column.values.tolist()
    if column.kind in ("text", "json"):
        known = [*(str(one) for one in column.categories), "null"]
        found = [known[value] for value in values]
    elif column.kind == "float":
        found = ["null" if value != value else f"{value:.6g}" for value in values]
    elif column.kind == "bool":
        found = ["true" if value else "false" for value in values]
    else:
        found = [str(value) for value in values]
    if unit:
        found = [f"{text} {unit}" for text in found]
    if column.present is not None:
        found = [text if there else "" for text, there in
                 zip(found, column.present.tolist(), strict=True)]
    return found


def _done(marks: Marks | None, rows: int) -> list[str]:
    if marks is None:
        return [""] * rows
    told = [marks.names[code] for code in marks.hit.tolist()]
    if marks.withheld is not None:
        told = [f"{text} (never sent)" if code else text
                for text, code in zip(told, marks.withheld.tolist(), strict=True)]
    return told


def _cut(text: str) -> str:
    return text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 1]}…"
