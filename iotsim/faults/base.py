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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from iotsim.errors import BadValue, UnknownName
from iotsim.faults.draft import Active, Draft, Floats, Mask, Span, is_number
from iotsim.faults.parameters import loss_of_percent
from iotsim.readings import Ints
from iotsim.seeding import Words, combine_many, fnv1a
from iotsim.units import duration_us

__all__ = (
    "Active",
    "Draft",
    "Fault",
    "Floats",
    "Layer",
    "Mask",
    "Span",
    "Window",
    "build",
    "fault_name",
    "in_order",
    "is_number",
    "window_keys",
    "ALIASES",
    "FAULTS",
    "LAYERS",
    "NEVER_US",
    "PARAMETER_ALIASES",
    "REFUSED_ALWAYS",
    "SUBS_MAX",
)

Layer: TypeAlias = Literal["values", "device", "link"]

NEVER_US = 2**62
LAYERS: tuple[Layer, ...] = ("values", "device", "link")
SUBS_MAX = 1000  # readings per tick, so that (n, sub) is one number


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
    def last(self) -> bool:
        """Whether it comes after all others: it goes by which readings leave."""
        return False

    @property
    def stores(self) -> bool:
        """Whether readings wait on the device until its link is back."""
        return False

    @property
    def ramp_us(self) -> int:
        """How long it takes to its full strength."""
        ramp = getattr(self, "ramp", None)
        return 0 if ramp is None else duration_us(ramp, "ramp", zero=True)

    def change(self, draft: Draft, active: Active) -> Mask:
        """Change the active rows of a draft; return which of them it changed, shape (active,)."""
        raise AssertionError(f"{type(self).__name__} lacks change()")

    def spent(self, draft: Draft, active: Active) -> Mask | None:
        """Return which of the rows, after `change`, come after all that it does; None: none."""
        return None

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
PARAMETER_ALIASES = {
    ("packet_loss", "packet_loss"): "loss",
    ("packet_loss", "packet_loss_pct"): "loss",
    ("packet_loss", "rate"): "loss",
}
# Spellings whose values mean something else than those of our own.
READ_AS: Mapping[tuple[str, str], Callable[[str, Any], Any]] = {
    ("packet_loss", "packet_loss_pct"): loss_of_percent,
}
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
    given = getattr(name, "value", name)
    text = given if isinstance(given, str) else ""
    text = text.strip().lower().replace("-", "_").replace(" ", "_").removeprefix("fault_type_")
    text = ALIASES.get(text, text)
    if text not in FAULTS:
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
        read = READ_AS.get((known, str(spelling)))
        if read is not None and (value := read(str(spelling), value)) is None:
            value = allowed[entry].default
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
    by : str
        Who injected it, if nobody asked for it.
    worn : bool array or None
        For which devices it is over because it has done all that it does.
    over_us : int
        When it is over for all of them, as far as that is known.
    """

    fault: Fault
    number: int
    begin_us: int
    end_us: int
    slots: Ints
    ends_us: Ints
    keys: Words
    memory: dict[Any, Any] = field(default_factory=dict)
    by: str = ""
    worn: Mask | None = None
    over_us: int = NEVER_US

    @property
    def name(self) -> str:
        """The fault's name."""
        return self.fault.name

    def reaches(self, first_us: int, last_us: int) -> bool:
        """Return whether it can concern rows taken from first to last."""
        if self.begin_us > last_us:
            return False
        return self.fault.lingers or min(self.end_us, self.over_us) > first_us

    def members(self, slots: Ints) -> Ints:
        """Return for each device its place in the window, -1 if it is not in it."""
        if not len(self.slots):
            return np.full(len(slots), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.slots, slots), len(self.slots) - 1)
        return np.where(self.slots[places] == slots, places, -1)

    def active(self, draft: Draft) -> tuple[Active, Mask]:
        """Return the rows that it reaches, and in which of them it has not ended."""
        if draft.wide:  # the same devices tick after tick
            once = self.members(draft.slot[:draft.wide])
            place = np.tile(once, len(draft.slot) // draft.wide)
        else:
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
        found = Active(rows, member, counter, self.keys, since_us, left_us, share,
                       self.memory, len(self.slots))
        return found, left_us > 0

    def clear(self, slots: Ints, at_us: int) -> Ints:
        """End it now for these devices; return those for which it had not ended."""
        place = self.members(slots)
        place = place[place >= 0]
        open_still = place[self.ends_us[place] > max(at_us, self.begin_us)]
        self.ends_us[open_still] = max(at_us, self.begin_us)
        self.over_us = int(self.ends_us.max(initial=self.begin_us))
        return np.asarray(self.slots[open_still])

    def wear(self, draft: Draft, active: Active) -> Mask | None:
        """End it where it has done all that it does; return in which rows it is over, if any."""
        over = self.fault.spent(draft, active)
        if over is None or not over.any():
            return None
        member = active.member[over]
        np.minimum.at(self.ends_us, member, draft.at_us[active.rows[over]])
        if self.worn is None:
            self.worn = np.zeros(len(self.slots), dtype=np.bool_)
        self.worn[member] = True
        self.over_us = int(self.ends_us.max(initial=self.begin_us))
        return over


def in_order(windows: Iterable[Window]) -> list[Window]:
    """Return windows in the order in which they change readings.

    Values first, then the device, then the link, each in order of injection; on the link a device
    that stores what it has comes first, because nothing else on the link can reach that. What
    goes by which readings leave comes last.
    """
    return sorted(windows, key=lambda one: (one.fault.last, LAYERS.index(one.fault.layer),
                                            not one.fault.stores, one.number))


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
