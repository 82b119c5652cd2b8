"""What a fault is: checked parameters that know how to change rows, and to say which they changed.

`inject` makes a `Window`: one fault on some devices for a stretch of simulated time. Rows that a
window reaches go through it as a `Draft`, windows one after another in order of injection, and each
says which rows it hit. Everything is a function of the row and of the window, so it does not
matter how time was cut: draws have random access by (window's stream, tick), and what a window must
remember of a device (the value it is stuck at) it remembers from the first tick it saw.

A window's streams are keyed by (seed, device, fault, how many of that name this device has had):
no other device and no other fault changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue, UnknownName
from iotsim.normals import normal_many
from iotsim.readings import Column, Ints
from iotsim.seeding import Words, combine_many, draws, fnv1a, stream_keys, unit_many
from iotsim.signals.resolution import Resolution
from iotsim.units import duration_us

Mask: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]
Layer: TypeAlias = Literal["values", "device", "link"]
Span: TypeAlias = "tuple[float, float]"

VERSION = 1
NEVER_US = 2**62
LAYERS: tuple[Layer, ...] = ("values", "device", "link")
SUBS_MAX = 1000  # readings per tick, so that (n, sub) is one number


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
    withheld: npt.NDArray[np.int16] = field(init=False)
    causes: list[str] = field(default_factory=lambda: [""])
    delay_us: Ints = field(init=False)
    copies: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        rows = len(self.n)
        self.withheld = np.zeros(rows, dtype=np.int16)
        self.delay_us = np.zeros(rows, dtype=np.int64)
        self.copies = np.zeros(rows, dtype=np.int32)

    def withhold(self, rows: Ints, cause: str, *, wins: bool = False) -> None:
        """Keep rows from leaving; the first cause stands unless a later one wins."""
        if cause not in self.causes:
            self.causes.append(cause)
        free = rows if wins else rows[self.withheld[rows] == 0]
        self.withheld[free] = self.causes.index(cause)

    def lost(self, active: Active, wanted: Mask | bool, cause: str) -> Mask:
        """Withhold the wanted ones of the active rows; return which had not been until now."""
        hit = (self.withheld[active.rows] == 0) & wanted
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
    keys : uint64 array
        For each, the key of the device's streams in this window.
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
        fresh, first = np.unique(self.member, return_index=True)  # rows are in time order
        new = ~seen[fresh]
        store[fresh[new]] = values[first[new]]
        seen[fresh] = True
        return np.asarray(store[self.member])

    def take(self, mask: Mask) -> Active:
        """Return a selection of the rows."""
        share = None if self.share is None else self.share[mask]
        return Active(self.rows[mask], self.member[mask], self.counter[mask], self.keys[mask],
                      self.since_us[mask], self.left_us[mask], share, self.memory, self.members)

    def _words(self, part: str) -> Words:
        # Rows of a device share their key: it is made once for each, not once for each row.
        if len(self.keys) > 1 and len(self) > 64:
            keys, place = np.unique(self.keys, return_inverse=True)
            return draws(stream_keys(keys, part, VERSION)[place.reshape(-1)], self.counter)
        return draws(stream_keys(self.keys, part, VERSION), self.counter)


@dataclass(frozen=True, slots=True)
class Fault:
    """Base of every fault; a subclass is a frozen dataclass of parameters.

    Class attributes
    ----------------
    name : str
    layer : {"values", "device", "link"}
    offline : bool
        Whether the device's session is closed meanwhile (see `is_down`).
    duration_default_us : int or None
        How long it lasts if nobody says; None: until it is cleared.
    lingers : bool
        Whether rows after its end still differ (a battery does not recharge).
    numeric : bool
        Whether the fields that it names must be numbers.
    """

    name: ClassVar[str] = ""
    layer: ClassVar[Layer] = "values"
    offline: ClassVar[bool] = False
    duration_default_us: ClassVar[int | None] = None
    lingers: ClassVar[bool] = False
    numeric: ClassVar[bool] = False

    @property
    def ramp_us(self) -> int:
        """How long it takes to its full strength."""
        ramp = getattr(self, "ramp", None)
        return 0 if ramp is None else duration_us(ramp, "ramp", zero=True)

    def change(self, draft: Draft, active: Active) -> Mask:
        """Change the active rows of a draft; return which of them it changed, shape (active,)."""
        raise AssertionError(f"{type(self).__name__} lacks change()")

    def is_down(self, since_us: int) -> bool:
        """Return whether the device's session is closed so long after the beginning."""
        return self.offline

    def next_turn_us(self, since_us: int) -> int | None:
        """Return when, after the beginning, `is_down` changes next; None if it does not."""
        return None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that were given, as plain JSON values."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)
                 if getattr(self, entry.name) != entry.default}
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in given.items()}

    @property
    def named(self) -> tuple[str, ...]:
        """The fields that it names: none of them on any selected device is the caller's error."""
        return tuple(getattr(self, "field", None) or ())


FAULTS = {
    "battery_drain": "iotsim.faults.values:BatteryDrain",
    "clock_drift": "iotsim.faults.device:ClockDrift",
    "data_corruption": "iotsim.faults.values:DataCorruption",
    "disconnect": "iotsim.faults.link:Disconnect",
    "drift": "iotsim.faults.values:Drift",
    "dropout": "iotsim.faults.values:Dropout",
    "duplicate": "iotsim.faults.link:Duplicate",
    "firmware_update": "iotsim.faults.device:FirmwareUpdate",
    "latency_spike": "iotsim.faults.link:LatencySpike",
    "noise": "iotsim.faults.values:Noise",
    "offset": "iotsim.faults.values:Offset",
    "outlier": "iotsim.faults.values:Outlier",
    "packet_loss": "iotsim.faults.link:PacketLoss",
    "rate": "iotsim.faults.device:Rate",
    "reboot": "iotsim.faults.device:Reboot",
    "reconnect_storm": "iotsim.faults.link:ReconnectStorm",
    "reorder": "iotsim.faults.link:Reorder",
    "slow_down": "iotsim.faults.device:SlowDown",
    "stuck": "iotsim.faults.values:Stuck",
    "suspend": "iotsim.faults.device:Suspend",
}
ALIASES = {"network_degradation": "packet_loss"}
PARAMETER_ALIASES = {("packet_loss", "packet_loss"): "loss", ("packet_loss", "rate"): "loss"}
REFUSED_ALWAYS = ("fault", "where", "duration", "reason")


def fault_name(name: Any) -> str:
    """Return the name of a fault as iotsim spells it.

    Parameters
    ----------
    name : str
        In any case, with `-` or `_`, with or without the contract's `FAULT_TYPE_`.

    Raises
    ------
    UnknownName
        If there is no such fault; the text lists those there are.

    Examples
    --------
    >>> fault_name("FAULT_TYPE_LATENCY_SPIKE"), fault_name("network_degradation")
    ('latency_spike', 'packet_loss')
    """
    text = str(getattr(name, "value", name)).strip().lower().replace("-", "_").replace(" ", "_")
    text = text.removeprefix("fault_type_")
    text = ALIASES.get(text, text)
    if not isinstance(getattr(name, "value", name), str) or text not in FAULTS:
        raise UnknownName("fault", name, (*FAULTS, *ALIASES))
    return text


def build(name: Any, parameters: Mapping[str, Any]) -> Fault:
    """Return the fault of a name with these parameters, checked.

    Raises
    ------
    UnknownName
        If there is no such fault, or no such parameter of it; the text lists those there are.
    BadValue
        If a parameter is missing or cannot be.

    Examples
    --------
    >>> build("DISCONNECT", {}).name
    'disconnect'
    """
    known = fault_name(name)
    module, _, attribute = FAULTS[known].partition(":")
    cls: type[Fault] = getattr(import_module(module), attribute)
    allowed = {entry.name: entry for entry in fields(cls) if entry.init}
    given: dict[str, Any] = {}
    for spelling, value in parameters.items():
        entry = PARAMETER_ALIASES.get((known, str(spelling)), str(spelling))
        if entry not in allowed:
            raise UnknownName(f"parameter of {known}", spelling, allowed)
        if entry in given:
            raise BadValue(str(spelling), value, "is given twice", f"Keep {entry} alone.")
        given[entry] = value
    for entry_name, one in allowed.items():
        if one.default is MISSING and one.default_factory is MISSING and entry_name not in given:
            listed = ", ".join(allowed)
            raise BadValue("fault", known, f"lacks {entry_name}", f"It takes: {listed}.")
    return cls(**given)


@dataclass(slots=True, eq=False)
class Window:
    """One fault on some devices of a fleet for a stretch of time.

    Attributes
    ----------
    fault : Fault
    number : int
        Its place in the order of injection.
    begin_us, end_us : int
        Half-open; `NEVER_US` if nobody said when it ends.
    slots : int64 array, ascending
        The devices, by their numbers in the fleet.
    ends_us : int64 array
        When it ends for each: earlier than `end_us` where it was cleared.
    keys : uint64 array
        The key of each device's streams.
    memory : dict
        See `Active`.
    """

    fault: Fault
    number: int
    begin_us: int
    end_us: int
    slots: Ints
    ends_us: Ints
    keys: Words
    memory: dict[Any, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The fault's name."""
        return self.fault.name

    def reaches(self, first_us: int, last_us: int) -> bool:
        """Return whether it can concern rows taken from first to last."""
        return self.begin_us <= last_us and (self.fault.lingers or self.end_us > first_us)

    def members(self, slots: Ints) -> Ints:
        """Return for each device its place in the window, -1 if it is not in it."""
        if not len(self.slots):
            return np.full(len(slots), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.slots, slots), len(self.slots) - 1)
        return np.where(self.slots[places] == slots, places, -1)

    def active(self, draft: Draft) -> tuple[Active, Mask]:
        """Return the rows that it reaches, and in which of them it has not ended."""
        place = self.members(draft.slot)
        mask = (place >= 0) & (draft.at_us >= self.begin_us)
        rows = np.flatnonzero(mask)
        if not self.fault.lingers:
            rows = rows[draft.at_us[rows] < self.ends_us[place[rows]]]
        member, at_us = place[rows], draft.at_us[rows]
        since_us, left_us = at_us - self.begin_us, self.ends_us[member] - at_us
        counter = (draft.n[rows] * SUBS_MAX + draft.sub[rows]).view(np.uint64)
        share = None
        if self.fault.ramp_us:
            share = np.minimum(since_us / float(self.fault.ramp_us), 1.0)
        found = Active(rows, member, counter, self.keys[member], since_us, left_us, share,
                       self.memory, len(self.slots))
        return found, left_us > 0

    def clear(self, slots: Ints, at_us: int) -> Ints:
        """End it now for these devices; return those for which it had not ended."""
        place = self.members(slots)
        place = place[place >= 0]
        open_still = place[self.ends_us[place] > max(at_us, self.begin_us)]
        self.ends_us[open_still] = max(at_us, self.begin_us)
        return np.asarray(self.slots[open_still])


def window_keys(device_keys: Words, name: str, occurrences: Ints) -> Words:
    """Return the keys of a window's streams, shape (devices,).

    Parameters
    ----------
    device_keys : uint64 array, shape (devices,)
    name : str
        Of the fault.
    occurrences : int64 array, shape (devices,)
        How many of that name each device has had before.
    """
    named = combine_many(device_keys, fnv1a(f"\0fault {name}"))
    return combine_many(named, occurrences.view(np.uint64))
