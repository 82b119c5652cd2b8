"""What happened in a run, as a frame: who came and went, what broke, what was done.

Nothing is recorded while a run goes on: events follow from who there is, from the windows of its
faults and from the log, so that they are the same live and offline.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.actions import Action
from iotsim.engine.population import within
from iotsim.errors import BadValue, DeviceFailed, IotsimError, UnknownName
from iotsim.faults.base import NEVER_US, Fault, Window
from iotsim.readings import Ints
from iotsim.units import duration_text, instant_text, instant_us

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.engine.population import Population
    from iotsim.engine.simulation import Simulation
    from iotsim.result import Result

EVENTS = ("spawned", "connected", "disconnected", "fault_injected", "fault_cleared", "action",
          "error", "stopped")
# At one instant a cause stands before what follows from it.
ORDER = ("spawned", "action", "fault_injected", "disconnected", "fault_cleared", "connected",
         "error", "stopped")
ROWS_MAX = 5_000_000
LAST_US = instant_us("9999-12-31T23:59:59Z")

# From and to, in microseconds since a fault began.
Spells: TypeAlias = "list[tuple[int, int]]"


def events(
    result: Result, event: Iterable[str] | str | None = None,
    device_id: Iterable[str] | str | None = None,
) -> pd.DataFrame:
    """Return what happened as a DataFrame; see `Result.events`.

    Raises
    ------
    UnknownName
        If there is no such event, or no such device.
    BadValue
        If there are more than 5,000,000 of them.
    """
    book = _Book(result, _wanted(event), _devices(result, device_id))
    history = result.history
    if history is not None:
        _come_and_go(book, history.population)
        _break(book, history)
    _acted(book, result.actions, result.start_us)
    _failed(book, result.errors, result.end_us)
    return book.frame()


def _wanted(event: Iterable[str] | str | None) -> frozenset[str]:
    names = EVENTS if event is None else (event,) if isinstance(event, str) else tuple(event)
    for name in names:
        if name not in EVENTS:
            raise UnknownName("event", name, EVENTS)
    return frozenset(names)


def _devices(result: Result, device_id: Iterable[str] | str | None) -> Ints | None:
    if device_id is None:
        return None
    names = (device_id,) if isinstance(device_id, str) else tuple(device_id)
    ids = [] if result.history is None else result.history.population.ids
    places = {name: slot for slot, name in enumerate(ids)}
    found: list[int] = []
    for name in names:
        if name in places:
            found.append(places[name])
            continue
        sensors = [slot for one, slot in places.items() if one.startswith(f"{name}:")]
        if not sensors or not name:
            raise UnknownName("device", name, ids[:10])
        found += sensors  # of a gateway
    return np.unique(np.array(found, dtype=np.int64))


class _Book:
    """The rows of the frame to be, in pieces; a message and its metadata are kept once.

    Attributes
    ----------
    end_us : int
        What comes later has not happened.
    """

    def __init__(self, result: Result, wanted: frozenset[str], only: Ints | None) -> None:
        done = [action.at_us for action in result.actions if action.is_content]
        self.end_us = max(result.end_us, result.start_us + max(done, default=0))
        self._ids = [] if result.history is None else result.history.population.ids
        self._wanted, self._only, self._rows = wanted, only, 0
        self._slots: dict[str, int] | None = None
        self._texts: list[tuple[str, dict[str, Any]]] = []
        self._pieces: list[tuple[int, Ints, Ints, Ints]] = []

    def wants(self, *names: str) -> bool:
        """Return whether any of these events is asked for."""
        return not self._wanted.isdisjoint(names)

    def concerned(self, slots: Ints) -> npt.NDArray[np.bool_]:
        """Return which devices are asked for."""
        return np.ones(len(slots), np.bool_) if self._only is None else within(slots, self._only)

    def slot(self, name: str) -> int:
        """Return the slot of a device."""
        if self._slots is None:
            self._slots = {one: slot for slot, one in enumerate(self._ids)}
        return self._slots.get(name, -1)

    def text(self, message: str, metadata: dict[str, Any]) -> int:
        """Keep a message with its metadata; returns its number."""
        self._texts.append((message, metadata))
        return len(self._texts) - 1

    def put(self, event: str, times_us: Ints, slots: Ints, texts: Ints | int) -> None:
        """Take rows that have happened and are asked for; slot −1 is the whole run."""
        if event not in self._wanted:
            return
        mask = self.concerned(slots)
        if event not in ("action", "error"):  # whose time may be that of the clock
            mask &= times_us <= self.end_us
        count = int(mask.sum())
        self.check(count)
        self._rows += count
        numbers = np.broadcast_to(np.asarray(texts, dtype=np.int64), slots.shape)
        self._pieces.append((EVENTS.index(event), times_us[mask], slots[mask], numbers[mask]))

    def check(self, more: int) -> None:
        """Raise if there would be too many rows."""
        if self._rows + more > ROWS_MAX:
            raise BadValue("events", f"{self._rows + more:,} or more", "are too many for a frame",
                           "Ask for some: events(event='fault_injected') or "
                           "events(device_id='pump-0001').")

    def frame(self) -> pd.DataFrame:
        """Return the rows by time, then by event: see `ORDER`."""
        import pandas as pd

        none = np.empty(0, dtype=np.int64)
        times_us, slots, texts = (
            np.concatenate([none, *(piece[i] for piece in self._pieces)]) for i in (1, 2, 3))
        codes = np.repeat([piece[0] for piece in self._pieces] or none,
                          [len(piece[1]) for piece in self._pieces] or none)
        places = np.array([ORDER.index(event) for event in EVENTS])
        order = np.lexsort((texts, places[codes], times_us))
        messages, metadata = np.empty((2, len(self._texts)), dtype=object)
        for i, (message, facts) in enumerate(self._texts):
            messages[i], metadata[i] = message, facts
        return pd.DataFrame({
            "time": pd.DatetimeIndex(times_us[order].view("datetime64[us]")).tz_localize("UTC"),
            "device_id": _categorical(slots[order], self._ids),
            "event": _categorical(codes[order].astype(np.int8), EVENTS),
            "message": pd.Series(messages[texts[order]], dtype="str"),
            "metadata": pd.Series(metadata[texts[order]], dtype=object),
        })


def _categorical(codes: npt.NDArray[Any], names: Iterable[str]) -> Any:
    import pandas as pd

    return pd.Categorical.from_codes(codes, pd.Index(list(names), dtype="str"))


# -- devices ------------------------------------------------------------------------------------


def _come_and_go(book: _Book, people: Population) -> None:
    seen = 0
    for group, slots in zip(people.groups, people.slots, strict=True):
        if not len(slots) or int(slots[0]) < seen:
            continue  # devices that were there and have other labels now
        seen = int(slots[-1]) + 1
        facts = {"device_type": group.device_type, "labels": dict(group.labels)}
        began_us = people.began_us[slots]
        book.put("spawned", began_us, slots, book.text(f"a {group.device_type} begins", facts))
        book.put("connected", began_us, slots, book.text("the link is up", facts))
        gone = slots[people.ended_us[slots] < NEVER_US]
        book.put("stopped", people.ended_us[gone], gone,
                 book.text(f"a {group.device_type} ends", facts))


# -- faults -------------------------------------------------------------------------------------


def _break(book: _Book, history: Simulation) -> None:
    people, deeds = history.population, history.deeds
    # An inject that reached nobody made no window.
    injects = [done for done in deeds.done if done.verb == "inject" and done.devices]
    for window, action in zip(deeds.windows, injects, strict=True):
        _window(book, people, window, action)
    if book.wants("connected", "disconnected"):
        _down(book, people, deeds.windows)


def _window(book: _Book, people: Population, window: Window, action: Action) -> None:
    name, begin_us, end_us = window.name, window.begin_us, window.end_us
    facts: dict[str, Any] = {"fault": name, "parameters": window.fault.parameters()}
    if "reason" in action.parameters:
        facts["reason"] = action.parameters["reason"]
    length = "" if end_us == NEVER_US else f" for {duration_text(end_us - begin_us)}"
    until = instant_text(end_us) if end_us <= LAST_US else None
    times_us = np.full(len(window.slots), begin_us, dtype=np.int64)
    book.put("fault_injected", times_us, window.slots,
             book.text(f"{name}{length}", {**facts, "until": until}))
    worn = np.zeros(len(window.slots), np.bool_) if window.worn is None else window.worn
    early = (window.ends_us < end_us) & ~worn
    ended = people.ended_us[window.slots] > window.ends_us  # who is gone has no faults
    done = ""
    if name == "firmware_update":
        done = f", {getattr(window.fault, 'label', '')} is {getattr(window.fault, 'version', '')}"
    for mask, how, cleared in ((early & ended, f"{name} was cleared", True),
                               (~early & ended, f"{name} is over{done}", False)):
        if mask.any():
            book.put("fault_cleared", window.ends_us[mask], window.slots[mask],
                     book.text(how, {**facts, "cleared": cleared}))


def _down(book: _Book, people: Population, windows: Iterable[Window]) -> None:
    # Where windows overlap, a link goes down with the first and is back after the last.
    slots, times_us, steps, texts = ([np.empty(0, dtype=np.int64)] for _ in range(4))
    lost: list[int] = []
    back: list[int] = []
    for window in windows:
        if not window.fault.offline:
            continue
        number, facts = len(lost), {"fault": window.name}
        lost.append(book.text(f"the link is gone: {window.name}", facts))
        back.append(book.text("the link is back", facts))
        who, from_us, to_us = _spells_of(book, people, window)
        slots += [who, who]
        times_us += [from_us, to_us]
        steps += [np.ones(len(who), np.int64), np.full(len(who), -1, np.int64)]
        texts += [np.full(2 * len(who), number, np.int64)]
    slot, time_us, step, number_of = map(np.concatenate, (slots, times_us, steps, texts))
    order = np.lexsort((number_of, -step, time_us, slot))
    slot, time_us, step, number_of = (a[order] for a in (slot, time_us, step, number_of))
    depth = np.cumsum(step)
    alive = time_us < people.ended_us[slot]
    for event, mask, names in (("disconnected", (step > 0) & (depth == 1), lost),
                               ("connected", (step < 0) & (depth == 0), back)):
        mask &= alive
        book.put(event, time_us[mask], slot[mask],
                 np.array(names, dtype=np.int64)[number_of[mask]])


def _spells_of(book: _Book, people: Population, window: Window) -> tuple[Ints, Ints, Ints]:
    # Who is down from when to when; few windows end at more than a few instants.
    mask = book.concerned(window.slots)
    slots, ends_us = window.slots[mask], window.ends_us[mask]
    found: list[tuple[Ints, Ints, Ints]] = []
    for end_us in np.unique(ends_us).tolist():
        who = slots[ends_us == end_us]
        length_us = min(end_us, book.end_us + 1) - window.begin_us
        spells = np.array(_spells(book, window.fault, length_us, len(who)), dtype=np.int64)
        begins, ends = (spells.reshape(-1, 2) + window.begin_us).T
        found.append((np.tile(who, len(begins)), np.repeat(begins, len(who)),
                      np.repeat(ends, len(who))))
    none = np.empty(0, dtype=np.int64)
    who, from_us, to_us = (np.concatenate([none, *(one[i] for one in found)]) for i in range(3))
    return who, from_us, to_us


def _spells(book: _Book, fault: Fault, length_us: int, devices: int) -> Spells:
    found: Spells = []
    since_us = 0
    while since_us < length_us:
        turn_us = fault.next_turn_us(since_us)
        until_us = length_us if turn_us is None else min(turn_us, length_us)
        if fault.is_down(since_us):
            found.append((since_us, until_us))
            book.check(2 * devices * len(found))
        since_us = until_us
    return found


# -- the run ------------------------------------------------------------------------------------


def _acted(book: _Book, actions: Iterable[Action], start_us: int) -> None:
    for action in actions:
        facts = {"verb": action.verb, **_plain(action.parameters)}
        if "members" in facts:  # its profile would be longer than all else together
            facts["members"] = {key: part for key, part in facts["members"].items()
                                if key in ("type", "count", "first", "labels")}
        facts.update(action.matched())
        if action.note:
            facts["note"] = action.note
        _one(book, "action", start_us + action.at_us, -1, action.describe(), facts)


def _plain(value: Any) -> Any:
    if hasattr(value, "items"):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _failed(book: _Book, errors: Iterable[IotsimError], end_us: int) -> None:
    for error in errors:
        slot, at_us = -1, end_us
        if isinstance(error, DeviceFailed):
            slot, at_us = book.slot(error.device_id), instant_us(error.time)
        _one(book, "error", at_us, slot, str(error), {"error": type(error).__name__})


def _one(
    book: _Book, event: str, at_us: int, slot: int, message: str, facts: dict[str, Any]
) -> None:
    book.put(event, np.array([at_us], dtype=np.int64), np.array([slot], dtype=np.int64),
             book.text(message, facts))
