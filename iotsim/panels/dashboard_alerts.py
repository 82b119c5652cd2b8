"""What needs somebody's attention in a run: since when, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iotsim.errors import DeviceFailed, Undelivered
from iotsim.links import STORED
from iotsim.panels.watch import SILENT, Bytes
from iotsim.publishers.ledger import LedgerSnapshot
from iotsim.run import Run
from iotsim.verdict import VALID

ALERTS_MAX = 100  # that are remembered; what is beyond them is counted
TEXT_CHARS_MAX = 300
NAMED = 3  # devices that an alert names
FRESH_S = 10.0  # a count that grew within so much real time still grows
REASONS_MAX = 8


@dataclass(frozen=True, slots=True)
class Sign:
    """Something that is not well at this moment.

    Attributes
    ----------
    key : str
        What it is about: a sign with the same key is the same alert.
    level : {"error", "warning"}
    text : str
    total : int or None
        How often it has happened so far; None if it is a state, which begins and ends.
    """

    key: str
    level: str
    text: str
    total: int | None = None


@dataclass(slots=True)
class Alert:
    """A sign over time, in simulated seconds since the start of the run."""

    sign: Sign
    first_s: float
    last_s: float
    grew_s: float  # real time, when a total last grew
    count: int
    active: bool = True

    def spec(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {"level": self.sign.level, "text": self.sign.text[:TEXT_CHARS_MAX],
                "first": self.first_s, "last": self.last_s, "count": self.count,
                "active": self.active}


class Alerts:
    """The alerts of a run: those that are active, and those that are over.

    Attributes
    ----------
    hidden : int
        Alerts for which there was no room.
    """

    def __init__(self) -> None:
        self._known: dict[str, Alert] = {}
        self._hidden: set[int] = set()

    @property
    def hidden(self) -> int:
        """How many alerts there was no room for."""
        return len(self._hidden)

    def look(self, signs: Sequence[Sign], time_s: float, now_s: float) -> list[dict[str, Any]]:
        """Take note of what is not well now; return all alerts, the active and newest first.

        Parameters
        ----------
        signs : sequence of Sign
        time_s, now_s : float
            Simulated time since the start, and real time.
        """
        there = {one.key: one for one in signs}
        for key, alert in self._known.items():
            if key not in there:
                alert.active = False
        for one in there.values():
            self._note(one, time_s, now_s)
        ranked = sorted(self._known.values(), key=lambda one: (not one.active, -one.last_s))
        return [one.spec() for one in ranked]

    def _note(self, sign: Sign, time_s: float, now_s: float) -> None:
        alert = self._known.get(sign.key)
        if alert is None:
            if not self._room():
                if len(self._hidden) < ALERTS_MAX * ALERTS_MAX:
                    self._hidden.add(hash(sign.key))
                return
            self._known[sign.key] = Alert(sign, time_s, time_s, now_s, sign.total or 1)
        elif sign.total is None:
            alert.count += not alert.active
            alert.sign, alert.last_s, alert.active = sign, time_s, True
        else:
            if sign.total > alert.count:
                alert.sign, alert.last_s, alert.grew_s = sign, time_s, now_s
                alert.count = sign.total
            alert.active = now_s - alert.grew_s < FRESH_S

    def _room(self) -> bool:
        if len(self._known) < ALERTS_MAX:
            return True
        over = [key for key, one in self._known.items() if not one.active]
        if not over:
            return False
        del self._known[min(over, key=lambda key: self._known[key].last_s)]
        return True


def signs_of(run: Run, quality: str, states: Bytes | None) -> list[Sign]:
    """Return what is not well in a run now.

    Parameters
    ----------
    run : Run
    quality : str
        As of its snapshot.
    states : uint8 array or None
        By slot, codes into `STATES`; None before it is connected.
    """
    found = [*_troubled(run), *_lost(run)]
    if states is not None:
        found += _silent(run, states)
    if quality != VALID:
        found.append(Sign("quality", "warning", f"not valid: {quality}"))
    return [*found, *_errors(run)]


def _silent(run: Run, states: Bytes) -> Iterator[Sign]:
    if run.state != "running" or run.works.driver is None:
        return
    silent = np.flatnonzero(states == SILENT)
    if not len(silent):
        return
    people = run.works.driver.simulation.population
    homes = people.home[silent]
    types: dict[str, list[int]] = {}
    for index in np.unique(homes).tolist():
        types.setdefault(people.groups[index].device_type, []).append(index)
    for name, groups in types.items():
        slots = silent[np.isin(homes, groups)]
        named = ", ".join(people.ids[slot] for slot in slots[:NAMED].tolist())
        more = "" if len(slots) <= NAMED else " …"
        what = f"{len(slots):,} {name} devices are" if len(slots) > 1 else f"1 {name} device is"
        yield Sign(f"silent {name}", "warning", f"{what} silent: {named}{more}")


def _troubled(run: Run) -> Iterator[Sign]:
    for pump in run.works.pumps:
        down = pump.lanes - pump.connected
        if down > 0 and run.state in ("running", "paused"):
            yield Sign(f"down {pump.url}", "error",
                       f"{pump.url}: {down:,} of {pump.lanes:,} connections are down")
        told: Counter[str] = Counter()
        for text in pump.errors:
            plain, _, times = text.partition(" (×")
            count = times.removesuffix(")")
            told[plain] += int(count) if count.isdecimal() else 1
        for plain, times_in_all in list(told.items())[-REASONS_MAX:]:
            yield Sign(f"said {pump.url} {plain}", "warning", f"{pump.url}: {plain}", times_in_all)


def _lost(run: Run) -> Iterator[Sign]:
    for url, one in run.works.ledgers().items():
        yield from _counted(url, "dropped", one.drops)
        yield from _counted(url, "refused", one.refusals)
        if one.unknown:
            yield Sign(f"unknown {url}", "warning", _unknown(url, one))


def _counted(url: str, what: str, reasons: Any) -> Iterator[Sign]:
    for reason, count in list(reasons.items())[:REASONS_MAX]:
        if reason != STORED and count:
            yield Sign(f"{what} {url} {reason}", "error",
                       f"{url}: messages {what}: {reason}", int(count))


def _unknown(url: str, one: LedgerSnapshot) -> str:
    return f"{url}: {one.unknown:,} messages were sent and have no verdict: their link was lost"


def _errors(run: Run) -> Iterator[Sign]:
    errors = [one for one in run.errors if not isinstance(one, Undelivered)]
    failed = [one for one in errors if isinstance(one, DeviceFailed)]
    if failed:
        first = str(failed[0])
        more = "" if len(failed) == 1 else f"; {failed[-1].device_id!r} last"
        yield Sign("failed", "error", f"{first}{more}", len(failed))
    others = [one for one in errors if not isinstance(one, DeviceFailed)]
    for one in others[-REASONS_MAX:]:
        yield Sign(f"error {one}", "error", str(one))
