"""Rows on their way through the faults: the draft of a piece of a group, and a window's part of it.

A window sees its rows as `Active`: how long since it began, how strong its ramp is by then, and
draws of its own streams. What it changes, it changes in the `Draft`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.normals import normal_many
from iotsim.readings import Column, Ints
from iotsim.seeding import Words, draws, stream_keys, unit_many
from iotsim.signals.resolution import Resolution

Mask: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]
Span: TypeAlias = "tuple[float, float]"

VERSION = 1


@dataclass(slots=True, eq=False)
class Draft:
    """Rows of one group on their way through the faults.

    Attributes
    ----------
    slot : int64 array
        Which device, by its number in the fleet.
    n, sub : int64 arrays
        The tick, and the reading within it (0 on the grid).
    at_us : int64 array
        When the reading was taken, on the device's grid: what windows go by.
    time_us : int64 array
        The published time. A fault replaces the array, it never writes into it.
    columns : dict of field name to Column
        The published values; replaced, never written into.
    spans : mapping of field name to (low, high)
        Where the values of a field usually are; a field without one is judged by its value.
    resolutions : mapping of field name to Resolution
        What a sensor can resolve: values that a fault moved are rounded to it.
    interval_us : int64 array or int
        The device's interval, per row or for all; 0 if nobody knows.
    withheld : int16 array
        Index into `causes` of why the row never leaves; 0 if it does.
    causes : list of str
        `""` first.
    delay_us : int64 array
        How much later than `at_us` it leaves.
    copies : int32 array
        How often it is sent again.
    stored : bool array
        Whether the device keeps it until its link is back: nothing else on the link reaches it.
    wide : int
        The rows are the same so many devices, tick after tick; 0 if they are not.
    """

    slot: Ints
    n: Ints
    sub: Ints
    at_us: Ints
    time_us: Ints
    columns: dict[str, Column]
    spans: Mapping[str, Span]
    resolutions: Mapping[str, Resolution] = field(default_factory=dict)
    interval_us: Ints | int = 0
    wide: int = 0
    withheld: npt.NDArray[np.int16] = field(init=False)
    causes: list[str] = field(default_factory=lambda: [""])
    delay_us: Ints = field(init=False)
    copies: npt.NDArray[np.int32] = field(init=False)
    stored: Mask = field(init=False)

    def __post_init__(self) -> None:
        rows = len(self.n)
        self.withheld = np.zeros(rows, dtype=np.int16)
        self.delay_us = np.zeros(rows, dtype=np.int64)
        self.copies = np.zeros(rows, dtype=np.int32)
        self.stored = np.zeros(rows, dtype=np.bool_)

    def withhold(self, rows: Ints, cause: str, *, wins: bool = False) -> None:
        """Keep rows from leaving; the first cause stands unless a later one wins."""
        if cause not in self.causes:
            self.causes.append(cause)
        free = rows if wins else rows[self.withheld[rows] == 0]
        self.withheld[free] = self.causes.index(cause)

    def lost(self, active: Active, wanted: Mask | bool, cause: str) -> Mask:
        """Withhold the wanted ones of the active rows; return which had not been until now."""
        hit = (self.withheld[active.rows] == 0) & ~self.stored[active.rows] & wanted
        self.withhold(active.rows[hit], cause)
        return np.asarray(hit)

    def numeric(self, names: Sequence[str] | None) -> list[str]:
        """Return the fields that a value fault changes: those named, or all that are numbers."""
        if names is None:
            return [name for name, column in self.columns.items() if is_number(column)]
        return [name for name in names if name in self.columns]


def is_number(column: Column) -> bool:
    """Return whether a column holds numbers (booleans are none)."""
    if column.kind != "json":
        return column.kind in ("float", "int")
    numbers = [type(value) in (int, float) for value in column.categories]
    return bool(numbers) and all(numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Active:
    """The rows of a draft that one window reaches, and what the window knows of them.

    Attributes
    ----------
    rows : int64 array
        Indices into the draft, ascending; in time order per device.
    member : int64 array
        For each, the device's place in the window.
    counter : uint64 array
        The number of its draws: one for each tick and reading within it.
    keys : uint64 array, shape (members,)
        The key of each member's streams in this window.
    since_us, left_us : int64 arrays
        Time since the window began, and until it ends (`NEVER_US` or about if it does not).
    share : float64 array or None
        How far the ramp has risen, in [0, 1]; None: there is no ramp.
    memory : dict
        What the window remembers of its devices: arrays by name, one entry per member.
    """

    rows: Ints
    member: Ints
    counter: Words
    keys: Words
    since_us: Ints
    left_us: Ints
    share: Floats | None
    memory: dict[Any, Any]
    members: int

    def __len__(self) -> int:
        return len(self.rows)

    def uniform(self, part: str) -> Floats:
        """Return a draw in [0, 1) for each row, from the stream of that name."""
        return unit_many(self._words(part))

    def normal(self, part: str) -> Floats:
        """Return a standard normal draw for each row, from the stream of that name."""
        return normal_many(self._words(part))

    def chosen(self, probability: float, part: str = "chance") -> Mask:
        """Return which rows are drawn with a probability, which a ramp lets rise from 0."""
        limit = probability if self.share is None else probability * self.share
        if self.share is None and probability >= 1.0:
            return np.ones(len(self), dtype=np.bool_)
        return np.asarray(self.uniform(part) < limit)

    def drawn(self, probability: float, part: str = "chance") -> Mask:
        """Return which rows are drawn with a probability, ramp or not: see `strength`."""
        if probability >= 1.0:
            return np.ones(len(self), dtype=np.bool_)
        return np.asarray(self.uniform(part) < probability)

    def strength(self, full: float) -> Floats:
        """Return for each row how strong it is: `full`, where a ramp has risen all the way."""
        return np.full(len(self), full) if self.share is None else full * self.share

    def remembered(self, name: Any, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return for each row what `values` was in the first row that its device had here."""
        known = self.memory.get(name)
        if known is None:
            known = np.zeros(self.members, dtype=values.dtype), np.zeros(self.members, np.bool_)
            self.memory[name] = known
        store, seen = known
        if seen[self.member].all():
            return np.asarray(store[self.member])
        fresh, first = np.unique(self.member, return_index=True)  # rows are in time order
        new = ~seen[fresh]
        store[fresh[new]] = values[first[new]]
        seen[fresh] = True
        return np.asarray(store[self.member])

    def take(self, mask: Mask) -> Active:
        """Return a selection of the rows."""
        share = None if self.share is None else self.share[mask]
        return Active(self.rows[mask], self.member[mask], self.counter[mask], self.keys,
                      self.since_us[mask], self.left_us[mask], share, self.memory, self.members)

    def _words(self, part: str) -> Words:
        # Rows of a device share their key: it is made once, not once for each row.
        keys = self.memory.get(("keys", part))
        if keys is None:
            keys = self.memory["keys", part] = stream_keys(self.keys, part, VERSION)
        return draws(keys[self.member], self.counter)
