"""Faults on the link: what was measured leaves late, twice, in another order or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iotsim.errors import BadValue
from iotsim.faults.base import NEVER_US, Active, Draft, Fault, Layer, Mask
from iotsim.faults.parameters import flag, keep, ramp, share
from iotsim.readings import Ints
from iotsim.signals.base import number
from iotsim.units import DURATION_US_MAX, US_PER_SECOND, Duration, duration_text, duration_us

STORM_EVERY_US_MIN = 100_000


@dataclass(frozen=True, slots=True)
class Disconnect(Fault):
    """The device has no link; it wins over every other fault.

    Parameters
    ----------
    store_and_forward : bool
        Whether readings are kept and leave when the link is back; they are lost if not.
    """

    name: ClassVar[str] = "disconnect"
    layer: ClassVar[Layer] = "link"
    offline: ClassVar[bool] = True
    store_and_forward: bool = False

    def __post_init__(self) -> None:
        keep(self, store_and_forward=flag("store_and_forward", self.store_and_forward))

    @property
    def stores(self) -> bool:
        """Whether readings wait on the device until its link is back."""
        return self.store_and_forward

    def change(self, draft: Draft, active: Active) -> Mask:
        """Withhold every reading, or store it until the end."""
        if not self.store_and_forward:
            draft.withhold(active.rows, self.name, wins=True)
            return np.ones(len(active), dtype=np.bool_)
        rows = active.rows
        open_end = draft.at_us[rows] + active.left_us >= NEVER_US
        until_us = np.where(open_end, NEVER_US, active.left_us)
        hit = draft.withheld[rows] == 0
        draft.delay_us[rows[hit]] = np.maximum(draft.delay_us[rows], until_us)[hit]
        draft.stored[rows[hit]] = True
        return np.asarray(hit)


@dataclass(frozen=True, slots=True)
class LatencySpike(Fault):
    """Readings leave later, but never after the end of the fault.

    Parameters
    ----------
    latency_ms : float
        Milliseconds, above 0.
    probability : float
        How likely each reading is late, 0 to 1.
    ramp : duration, optional
        How long the latency takes to rise from 0.
    """

    name: ClassVar[str] = "latency_spike"
    layer: ClassVar[Layer] = "link"
    latency_ms: float
    probability: float = 1.0
    ramp: Duration | None = None

    def __post_init__(self) -> None:
        keep(self, latency_ms=number("latency_ms", self.latency_ms, above=0,
                                     most=DURATION_US_MAX / 1000),
             probability=share("probability", self.probability), ramp=ramp(self.ramp))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Delay the readings that are drawn."""
        latency_us = np.rint(active.strength(self.latency_ms * 1000.0)).astype(np.int64)
        latency_us = np.where(active.drawn(self.probability), latency_us, 0)
        until_us = draft.delay_us[active.rows] + latency_us
        return _later(draft, active, np.minimum(until_us, active.left_us))


@dataclass(frozen=True, slots=True)
class PacketLoss(Fault):
    """Readings are lost on the way.

    Parameters
    ----------
    loss : float
        How likely each is lost, 0 to 1.
    ramp : duration, optional
        How long the loss takes to rise from 0.
    """

    name: ClassVar[str] = "packet_loss"
    layer: ClassVar[Layer] = "link"
    loss: float = 0.3
    ramp: Duration | None = None

    def __post_init__(self) -> None:
        keep(self, loss=share("loss", self.loss), ramp=ramp(self.ramp))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Withhold the readings that are drawn."""
        return draft.lost(active, active.chosen(self.loss), self.name)


@dataclass(frozen=True, slots=True)
class Duplicate(Fault):
    """Readings are sent twice.

    Parameters
    ----------
    probability : float
        How likely each is, 0 to 1.
    ramp : duration, optional
        How long the probability takes to rise from 0.
    """

    name: ClassVar[str] = "duplicate"
    layer: ClassVar[Layer] = "link"
    probability: float = 1.0
    ramp: Duration | None = None

    def __post_init__(self) -> None:
        keep(self, probability=share("probability", self.probability), ramp=ramp(self.ramp))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Send the readings that are drawn once more."""
        there = (draft.withheld[active.rows] == 0) & ~draft.stored[active.rows]
        hit = active.chosen(self.probability) & there
        draft.copies[active.rows[hit]] += 1
        return np.asarray(hit)


@dataclass(frozen=True, slots=True)
class Reorder(Fault):
    """Readings are overtaken by those that follow them.

    Parameters
    ----------
    probability : float
        How likely each waits for the next, 0 to 1.
    by : duration, optional
        How long it waits, at most to the end of the fault; one and a half of the device's
        intervals if not given.
    ramp : duration, optional
        How long the probability takes to rise from 0.
    """

    name: ClassVar[str] = "reorder"
    layer: ClassVar[Layer] = "link"
    probability: float = 0.5
    by: Duration | None = None
    ramp: Duration | None = None

    def __post_init__(self) -> None:
        by = None if self.by is None else duration_text(duration_us(self.by, "by"))
        keep(self, probability=share("probability", self.probability), by=by,
             ramp=ramp(self.ramp))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Delay the readings that are drawn."""
        wait_us = self._wait_us(draft, active)
        wait_us = np.where(active.chosen(self.probability), wait_us, 0)
        return _later(draft, active, np.minimum(wait_us, active.left_us))

    def _wait_us(self, draft: Draft, active: Active) -> Ints:
        if self.by is not None:
            return np.full(len(active), duration_us(self.by, "by"), dtype=np.int64)
        interval_us = np.broadcast_to(draft.interval_us, draft.n.shape)[active.rows]
        return np.where(interval_us > 0, interval_us, US_PER_SECOND) * 3 // 2


@dataclass(frozen=True, slots=True)
class ReconnectStorm(Fault):
    """All devices lose their link together and come back together, again and again.

    Parameters
    ----------
    every : duration
        From one loss of the link to the next, at least 100 ms; the first is at once.
    down : duration
        How long each lasts; shorter than `every`.
    """

    name: ClassVar[str] = "reconnect_storm"
    layer: ClassVar[Layer] = "link"
    offline: ClassVar[bool] = True
    every: Duration = "10s"
    down: Duration = "1s"

    def __post_init__(self) -> None:
        every_us, down_us = duration_us(self.every, "every"), duration_us(self.down, "down")
        if every_us < STORM_EVERY_US_MIN:
            raise BadValue("every", self.every, "is shorter than 100ms",
                           "No device connects more often.")
        if down_us >= every_us:
            raise BadValue("down", self.down, f"is not shorter than every={self.every!r}",
                           "Give less, so that the devices come back in between.")
        keep(self, every=duration_text(every_us), down=duration_text(down_us))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Withhold the readings that meet a lost link."""
        every_us, down_us = duration_us(self.every), duration_us(self.down)
        return draft.lost(active, active.since_us % every_us < down_us, self.name)

    def is_down(self, since_us: int) -> bool:
        """Return whether the link is lost so long after the beginning."""
        return since_us % duration_us(self.every) < duration_us(self.down)

    def next_turn_us(self, since_us: int) -> int | None:
        """Return when, after the beginning, the link is lost or back next."""
        every_us, down_us = duration_us(self.every), duration_us(self.down)
        whole_us = since_us - since_us % every_us
        return whole_us + (down_us if since_us - whole_us < down_us else every_us)


def _later(draft: Draft, active: Active, delay_us: Ints) -> Mask:
    # A delay never makes another one shorter; what does not leave cannot leave late, nor what is
    # stored leave by any other rule.
    before_us = draft.delay_us[active.rows]
    there = (draft.withheld[active.rows] == 0) & ~draft.stored[active.rows]
    hit = (delay_us > before_us) & there
    draft.delay_us[active.rows[hit]] = delay_us[hit]
    return np.asarray(hit)
