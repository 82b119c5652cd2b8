"""The readings that a picture is made of, field by field and chunk by chunk.

No table of all readings is made: a fleet of 100,000 devices has millions, and a picture needs a few
hundred numbers of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue, UnknownName
from iotsim.frames import check_columns, floats_of, with_declared
from iotsim.readings import Column, Group, Ints, Readings
from iotsim.units import Duration

if TYPE_CHECKING:
    from iotsim.result import Result

Mask = npt.NDArray[np.bool_]
Piece = tuple[Ints, Ints, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One field, and who reports it.

    Attributes
    ----------
    name, unit : str
    kind : {"number", "state"}
    states : list of str
        What the codes of a state stand for.
    rows : int
        How many readings have a value of it.
    devices : bool array
        By device: whether it reports the field.
    """

    name: str
    unit: str
    kind: str
    states: list[str]
    rows: int
    devices: Mask

    @property
    def n_devices(self) -> int:
        """How many devices report the field."""
        return int(self.devices.sum())


class Source:
    """The readings of a result that left their device.

    Parameters
    ----------
    result : Result
    device_type : str, optional
    last : duration, optional

    Attributes
    ----------
    rows : int
    since_us, until_us : int
        The window to draw: from the start, or from the first reading if those before it are gone.
    devices : bool array
        By device: whether there is a reading of it.
    """

    def __init__(
        self, result: Result, device_type: str | None = None, last: Duration | None = None
    ) -> None:
        self.result = result
        groups, chunks = result._left(device_type, last)
        self._groups = groups
        self._chunks = [chunk for chunk in map(Readings.sent, chunks) if len(chunk)]
        self._numbers, self.ids = _devices(result, groups)
        self.kinds = with_declared(result._declared(device_type), self._chunks)
        self.rows = sum(map(len, self._chunks))
        self.devices = np.zeros(len(self.ids), dtype=np.bool_)
        for chunk in self._chunks:
            self.devices[self._slots(chunk)] = True
        self.since_us, self.until_us = self._window()

    def _slots(self, chunk: Readings) -> Ints:
        return self._numbers[chunk.group.index][chunk.device]

    def _window(self) -> tuple[int, int]:
        start_us, end_us = self.result.start_us, self.result.end_us
        if not self.rows:
            return start_us, max(end_us, start_us + 1)
        first_us = min(int(chunk.time_us.min()) for chunk in self._chunks)
        until_us = max(end_us, *(int(chunk.time_us.max()) + 1 for chunk in self._chunks))
        near = first_us - start_us < 0.05 * (until_us - first_us)
        return (min(first_us, start_us) if near else first_us), until_us

    # -- fields ---------------------------------------------------------------------------------

    def fields(self, names: Iterable[str] | str | None) -> list[Field]:
        """Return the fields of these names; all that can be drawn if none are given.

        Raises
        ------
        UnknownName
            If no reading has such a field.
        BadValue
            If nothing can be drawn, or a field that was asked for cannot.
        """
        found = []
        for name in self._wanted(names):
            if self.kinds[name] == "json":
                if names is None:
                    continue
                raise BadValue("fields", name, "holds lists or mixed values",
                               "Draw a field of numbers, text or true/false.")
            field = self._field(name)
            if field.rows:
                found.append(field)
            elif names is not None:
                raise BadValue("fields", name, "holds no readings here", "Choose another one.")
        if not found:
            raise BadValue("result", self.result.fleet.name, "holds no readings that can be drawn",
                           "Run it for longer, or with capture='all'.")
        return found

    def _wanted(self, names: Iterable[str] | str | None) -> list[str]:
        if names is None:
            return list(self.kinds)
        wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        if not wanted:
            raise BadValue("fields", names, "names none", "Leave it out to draw all.")
        for name in wanted:
            if name not in self.kinds:
                raise UnknownName("field", name, self.kinds)
        check_columns(self._groups, self._chunks, wanted)
        return wanted

    def _field(self, name: str) -> Field:
        kind = "state" if self.kinds[name] in ("text", "bool") else "number"
        states = ["false", "true"] if self.kinds[name] == "bool" else self._states(name)
        field = Field(name, self._unit(name), kind, states, 0,
                      np.zeros(len(self.ids), dtype=np.bool_))
        rows = 0
        for slots, _, values in self.pieces(field):
            field.devices[slots] = True
            rows += len(values)
        return Field(name, field.unit, kind, states, rows, field.devices)

    def bins(self, field: Field, most: int) -> int:
        """Return in how many bins of time to look at a field.

        None is narrower than the time between two readings of a device.
        """
        span_us = self.until_us - self.since_us
        people = None if self.result.history is None else self.result.history.population
        members = self.result.fleet.members if people is None else people.members
        mine = [member for member in members if member.profile is not None
                and field.name in {one.name for one in member.profile.fields}]
        widest_us = max((member.interval_us or 0 for member in mine), default=0)
        usual = field.rows // max(1, field.n_devices)
        bins = span_us // widest_us if widest_us else usual
        return max(1, min(bins, most, 2 * usual))

    def _states(self, name: str) -> list[str]:
        if self.kinds[name] != "text":
            return []
        columns = (chunk.columns.get(name) for chunk in self._chunks)
        return list(dict.fromkeys(str(value) for column in columns if column is not None
                                  for value in column.categories))

    def _unit(self, name: str) -> str:
        found = {one.unit: None for member in self.result.fleet.members
                 for one in (() if member.profile is None else member.profile.fields)
                 if one.name == name and one.unit is not None}
        return " or ".join(found)

    # -- readings -------------------------------------------------------------------------------

    def pieces(self, field: Field) -> Iterator[Piece]:
        """Yield device numbers, instants and values (codes of a state), without null."""
        place = {state: i for i, state in enumerate(field.states)}
        for chunk in self._chunks:
            column = chunk.columns.get(field.name)
            if column is None:
                continue
            if field.kind == "number":
                values: npt.NDArray[Any] = floats_of(column)
                there = np.isfinite(values)
            else:
                values = _codes(column, place)
                there = values >= 0
            if column.present is not None:
                there &= column.present
            slots = self._slots(chunk)
            if there.all():
                yield slots, chunk.time_us, values
            elif there.any():
                yield slots[there], chunk.time_us[there], values[there]

    def whole(self, field: Field) -> Piece:
        """Return all readings of a field, in order of time: for few devices only."""
        parts = [*self.pieces(field)]
        slots, time_us, values = (np.concatenate([part[i] for part in parts]) for i in range(3))
        order = np.argsort(time_us, kind="stable")
        return slots[order], time_us[order], values[order]

    def who(self, devices: Mask) -> str:
        """Return in words who these devices are."""
        count, counts = int(devices.sum()), self._by_type(devices)
        if len(counts) == 1:
            return f"{count:,} × {counts[0]}"
        more = f" and {len(counts) - 3} more" if len(counts) > 3 else ""
        return f"{count:,} devices ({', '.join(counts[:3])}{more})"

    def _by_type(self, devices: Mask) -> list[str]:
        return list(dict.fromkeys(
            group.device_type for group in self._groups
            if devices[self._numbers[group.index]].any()))


def _devices(result: Result, groups: list[Group]) -> tuple[dict[int, Ints], list[str]]:
    # A number for each device, the same in every group that it was in.
    if result.history is not None:
        people = result.history.population
        return {group.index: people.slots[group.index] for group in groups}, people.ids
    codes: dict[str, int] = {}
    numbers = {group.index: np.array([codes.setdefault(name, len(codes)) for name in group.ids],
                                     dtype=np.int64) for group in groups}
    return numbers, list(codes)


def _codes(column: Column, place: dict[str, int]) -> npt.NDArray[Any]:
    if column.kind == "bool":
        return column.values.astype(np.int32)
    words = {True: "true", False: "false"}
    if column.kind not in ("text", "json"):  # a number among texts is never a state
        return np.full(len(column.values), -1, dtype=np.int32)
    known = [place.get(words.get(value, str(value)) if isinstance(value, bool) else str(value), -1)
             for value in column.categories]
    return np.asarray(np.array([*known, -1], dtype=np.int32)[column.values])

