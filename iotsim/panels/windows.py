"""Which faults there are and were of late, on how many devices, and how long they still last."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from iotsim.actions import Action
from iotsim.clock import monotonic
from iotsim.engine.deeds import Deeds
from iotsim.errors import BadValue
from iotsim.faults.base import NEVER_US, Window
from iotsim.selectors import Ids, Selector, Where, parse

KEPT = 200  # windows that a panel knows of
SHOWN = 40
WHERE_CHARS = 60
COUNT_S = 10e-6  # for each device: how old a count of devices may be


@dataclass(frozen=True, slots=True)
class Shade:
    """One fault on some devices, in simulated seconds since the start of the run.

    Attributes
    ----------
    number : int
        Which of the run's faults it is.
    name, where : str
    begin_s : float
    end_s : float or None
        None: until somebody clears it.
    devices : int
        On how many it is now; on how many it was, once it is over.
    active : bool
    """

    number: int
    name: str
    where: str
    begin_s: float
    end_s: float | None
    devices: int
    active: bool

    def spec(self, now_s: float) -> dict[str, Any]:
        """Return it as plain JSON, with the seconds that are left."""
        left = None if self.end_s is None else max(0.0, self.end_s - now_s)
        return {"number": self.number, "name": self.name, "where": self.where,
                "from": self.begin_s, "to": self.end_s, "devices": self.devices,
                "active": self.active, "left": left}


class Shades:
    """The faults of a run that are not long over.

    Parameters
    ----------
    deeds : Deeds
    """

    def __init__(self, deeds: Deeds) -> None:
        self._deeds = deeds
        self._seen = self._acted = 0
        self._kept: list[tuple[Window, Action, str]] = []
        self._counts: dict[int, tuple[float, int]] = {}  # by window: counted when, how many
        self.forgotten = 0

    def now(self, now_us: int, since_us: int) -> list[Shade]:
        """Return those that are active, or were after `since_us`; the newest last."""
        deeds = self._deeds
        if len(deeds.windows) > self._seen:  # each injection that meets somebody makes one
            injected = [one for one in deeds.done[self._acted :]
                        if one.verb == "inject" and one.devices]
            fresh = deeds.windows[self._seen :]
            self._kept += [(window, action, _where(action))
                           for window, action in zip(fresh, injected, strict=True)]
        self._seen, self._acted = len(deeds.windows), len(deeds.done)
        self._kept = [one for one in self._kept if _end_us(one[0]) > since_us]
        if len(self._counts) > 2 * KEPT:
            self._counts.clear()
        # Of very many, those that are active come before those that were.
        self._kept.sort(key=lambda one: _end_us(one[0]) > now_us)
        if len(self._kept) > KEPT:
            self.forgotten += len(self._kept) - KEPT
            self._kept = self._kept[-KEPT:]
        shown = sorted(self._kept[-SHOWN:], key=lambda one: one[0].number)
        return [self._shade(window, where, now_us) for window, _, where in shown]

    def where_of(self, number: Any) -> Where:
        """Return whom the fault of a shade was meant for, as it was written.

        Raises
        ------
        BadValue
            If it is long over.
        """
        for window, action, _ in self._kept:
            if window.number == number:
                where: Where = action.parameters.get("where", "all")
                return where
        raise BadValue("window", number, "is no fault that is still shown", "Clear by name.")

    def _shade(self, window: Window, where: str, now_us: int) -> Shade:
        start_us, end_us = self._deeds.start_us, _end_us(window)
        active = window.begin_us <= now_us < end_us
        count = self._devices(window, now_us) if active else len(window.slots)
        return Shade(window.number, window.name, where, (window.begin_us - start_us) / 1e6,
                     None if end_us >= NEVER_US else (end_us - start_us) / 1e6, count,
                     active and count > 0)

    def _devices(self, window: Window, now_us: int) -> int:
        # Of a hundred thousand devices, not ten times a second.
        counted_s, count = self._counts.get(window.number, (-math.inf, 0))
        now_s = monotonic()
        if now_s - counted_s > len(window.slots) * COUNT_S:
            ended_us = self._deeds.population.ended_us[window.slots]
            count = int(((window.ends_us > now_us) & (ended_us > now_us)).sum())
            self._counts[window.number] = now_s, count
        return count


def _end_us(window: Window) -> int:
    return min(window.end_us, window.over_us)


def _where(action: Action) -> str:
    return where_text(parse(action.parameters.get("where", "all")))


def where_text(selector: Selector) -> str:
    """Return a selector as people write it, shortened.

    Examples
    --------
    >>> where_text(parse("site=north"))
    'site=north'
    """
    for key, values in selector.terms:
        if key == "id" and len(values) > 3:
            return f"{len(values):,} ids"
    text = str(selector)
    return text if len(text) <= WHERE_CHARS else f"{text[: WHERE_CHARS - 1]}…"


def ids_of(names: Iterable[str]) -> Ids:
    """Return a selector of devices that were picked."""
    return Ids(tuple(names))
