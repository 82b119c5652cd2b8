"""Faults on the device: its clock, its restarts, how often it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iotsim.errors import BadValue
from iotsim.faults.base import SUBS_MAX, Active, Draft, Fault, Layer, Mask
from iotsim.faults.parameters import keep, text, whole
from iotsim.readings import RESERVED, WIRE_COLUMNS
from iotsim.signals.base import number
from iotsim.units import US_PER_SECOND, instant_us

# A clock that is off stops at the ends of what a timestamp on the wire can say.
CLOCK_US = (instant_us("0001-01-02T00:00:00Z"), instant_us("9999-12-31T00:00:00Z"))


@dataclass(frozen=True, slots=True)
class ClockDrift(Fault):
    """The device's clock gains or loses time; it shows in the published timestamp.

    Parameters
    ----------
    drift_rate_ms_per_sec : float
        Milliseconds gained in a second, up to a million; negative if it loses them.
    """

    name: ClassVar[str] = "clock_drift"
    layer: ClassVar[Layer] = "device"
    drift_rate_ms_per_sec: float

    def __post_init__(self) -> None:
        keep(self, drift_rate_ms_per_sec=number(
            "drift_rate_ms_per_sec", self.drift_rate_ms_per_sec, least=-1e6, most=1e6))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Shift the published time by the rate times the time since the beginning."""
        shift = np.rint(active.since_us * (self.drift_rate_ms_per_sec / 1000.0))
        old = draft.time_us[active.rows]
        room = CLOCK_US[0] - old, CLOCK_US[1] - old  # in whole µs: no float touches the time
        shift_us = np.clip(np.clip(shift, -1e18, 1e18).astype(np.int64), *room)
        changed = draft.time_us.copy()
        changed[active.rows] = old + shift_us
        draft.time_us = changed
        return np.asarray(shift_us != 0)


@dataclass(frozen=True, slots=True)
class Reboot(Fault):
    """The device is off for a while (10 s if nobody says) and then goes on where time is."""

    name: ClassVar[str] = "reboot"
    layer: ClassVar[Layer] = "device"
    offline: ClassVar[bool] = True
    duration_default_us: ClassVar[int | None] = 10 * US_PER_SECOND

    def change(self, draft: Draft, active: Active) -> Mask:
        """Withhold every reading."""
        return draft.lost(active, True, self.name)


@dataclass(frozen=True, slots=True)
class FirmwareUpdate(Fault):
    """The device is off for a while (30 s if nobody says) and comes back with a new version.

    Parameters
    ----------
    version : str
        What the label says from the end on; 1 to 128 printable characters.
    label : str
        Which label.
    """

    name: ClassVar[str] = "firmware_update"
    layer: ClassVar[Layer] = "device"
    offline: ClassVar[bool] = True
    duration_default_us: ClassVar[int | None] = 30 * US_PER_SECOND
    version: str
    label: str = "firmware"

    def __post_init__(self) -> None:
        keep(self, version=text("version", self.version), label=text("label", self.label))
        if self.label in (*RESERVED, *WIRE_COLUMNS):
            raise BadValue("label", self.label, "is a column of every table",
                           "Choose another name, such as 'firmware'.")

    def change(self, draft: Draft, active: Active) -> Mask:
        """Withhold every reading."""
        return draft.lost(active, True, self.name)


@dataclass(frozen=True, slots=True)
class Suspend(Fault):
    """The device keeps its session and reports nothing."""

    name: ClassVar[str] = "suspend"
    layer: ClassVar[Layer] = "device"

    def change(self, draft: Draft, active: Active) -> Mask:
        """Withhold every reading."""
        return draft.lost(active, True, self.name)


@dataclass(frozen=True, slots=True)
class SlowDown(Fault):
    """The device reports every second reading only: those with an odd `seq` are withheld."""

    name: ClassVar[str] = "slow_down"
    layer: ClassVar[Layer] = "device"

    def change(self, draft: Draft, active: Active) -> Mask:
        """Withhold every second tick, with all that was read within it."""
        return draft.lost(active, draft.n[active.rows] % 2 == 1, self.name)


@dataclass(frozen=True, slots=True)
class Rate(Fault):
    """The device reports more often: further readings between those on its grid.

    Parameters
    ----------
    factor : int
        How many readings an interval has, 2 to 1,000; those on the grid stay as they are.
    """

    name: ClassVar[str] = "rate"
    layer: ClassVar[Layer] = "device"
    factor: int

    def __post_init__(self) -> None:
        keep(self, factor=whole("factor", self.factor, 2, SUBS_MAX))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Mark the readings between: they are there because of it."""
        return np.asarray(draft.sub[active.rows] > 0)
