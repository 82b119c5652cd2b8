"""Where commands reach devices: an inbox of each that listens, and who answers for the others.

A command is delivered when all have come to its instant, before anything of that instant: so it is
the same live, in a replay and in a scenario, however time was cut into pieces.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iotsim.actions import Action
from iotsim.commands import (
    ACKNOWLEDGED,
    BUSY,
    NOT_YET_US,
    OFFLINE,
    STOPPED,
    Book,
    Command,
    Letter,
)
from iotsim.engine.kernel import Park, Sleep
from iotsim.engine.population import pairs_of, within
from iotsim.faults.base import Window
from iotsim.readings import Ints
from iotsim.selectors import parse
from iotsim.units import Duration, duration_us

if TYPE_CHECKING:
    from iotsim.engine.deeds import Deeds
    from iotsim.engine.device import Device

INBOX_MAX = 1000  # commands that wait in one device; beyond, it is busy


class Inbox:
    """The commands of one device: `async for command in dev.commands()`, or `await … .get("5s")`.

    Parameters
    ----------
    device : Device
    """

    __slots__ = ("_alarmed", "_device", "_items", "_owed", "_waiters", "closed")

    def __init__(self, device: Device) -> None:
        self._device = device
        self._items: deque[Command] = deque()
        self._waiters: deque[Any] = deque()
        self._alarmed = False
        self._owed: dict[Letter, None] = {}  # had, and not answered yet
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> Command:
        command = await self.get()
        assert command is not None, "without a timeout there is always one"
        return command

    async def get(self, within: Duration | None = None) -> Command | None:
        """Wait for the next command; None if there is none within a stretch of simulated time."""
        device = self._device
        until_us = None
        if within is not None:
            until_us = device.now_us + duration_us(within, "within", zero=True)
        while not self._items:
            if until_us is None:
                await Park(self._waiters)
                continue
            if device.now_us >= until_us:
                return None
            self._alarmed = True
            try:
                await Sleep(until_us)
            finally:
                self._alarmed = False
        return self._items.popleft()

    def put(self, command: Command, letter: Letter, at_us: int) -> bool:
        """Take a command at an instant that all have come to; False: there is no room."""
        if len(self._items) >= INBOX_MAX:
            return False
        self._items.append(command)
        self._owed[letter] = None
        kernel = self._device._cast.kernel
        if self._waiters:
            self._waiters.clear()
            kernel.wake_at(self._device, at_us)
        elif self._alarmed:
            self._alarmed = False
            kernel.wake_early(self._device, at_us)
        return True

    def answer(self, letter: Letter, code: int, answer: Any) -> None:
        """Take what the device answers, now."""
        self._owed.pop(letter, None)
        letter.answer(self._device.order, code, answer, self._device.now_us)

    def retire(self) -> None:
        """Note that the device's code has ended: what it has not answered, it never will."""
        if not self.closed:
            self.closed = True
            for letter in self._owed:
                letter.answer(self._device.order, STOPPED, None, NOT_YET_US)
        self._owed.clear()


class Mail:
    """Delivers commands to the devices of a simulation.

    Parameters
    ----------
    deeds : Deeds

    Attributes
    ----------
    book : Book
        Every command, and its answers.
    """

    def __init__(self, deeds: Deeds, book: Book | None = None) -> None:
        self.book = Book() if book is None else book
        self._deeds = deeds
        self._slots: dict[str, int] = {}
        self._offline: list[Window] = []
        self._open: list[Letter] = []  # that somebody may still answer
        self._seen = 0

    def slot_of(self, name: str) -> int:
        """Return the slot of a device, or −1."""
        people = self._deeds.population
        if len(self._slots) < len(people.ids):
            for slot in range(len(self._slots), len(people.ids)):
                self._slots[people.ids[slot]] = slot
        return self._slots.get(name, -1)

    def select(self, where: Any, at_us: int) -> tuple[Ints, str]:
        """Return who a selector means, quickly where it names devices one by one, and a note."""
        chosen, people = parse(where), self._deeds.population
        people.settle(at_us)
        named = [values for key, values in chosen.terms if key == "id"]
        if len(named) != 1 or len(chosen.terms) != 1 or chosen.fraction is not None or (
                chosen.count is not None or chosen.shard is not None):
            return people.select(where, at_us)
        found = sorted({slot for name in named[0] if (slot := self.slot_of(name)) >= 0})
        slots = np.array(found, dtype=np.int64)
        slots = slots[people.ended_us[slots] > at_us]
        text = "ids([])" if not named[0] else repr(str(chosen))
        return slots, "" if len(slots) else f"where={text} matches no device"

    def deliver(self, action: Action, slots: Ints, at_us: int) -> int:
        """Give a command to devices; returns to how many it was new."""
        given = action.parameters
        self.book.check_room(len(slots))
        ident = given.get("id") or self.book.fresh_id()
        slots = self.book.new_to(slots, ident)
        letter = Letter(ident, given["name"], given.get("payload", {}), given.get("by", ""), at_us,
                        slots)
        self.book.add(letter)
        deaf = self._down(slots, at_us)
        letter.settle(deaf, OFFLINE, at_us)
        simple = np.zeros(len(slots), dtype=np.bool_)
        for variant, part in pairs_of(self._deeds.population.variant, slots):
            if self._deeds.population.profiles[variant] is not None:
                simple |= within(slots, part)
        letter.settle(simple & ~deaf, ACKNOWLEDGED, at_us)
        self._post(letter, slots[~simple & ~deaf].tolist())
        return len(slots)

    def stopped(self, slots: Ints) -> None:
        """Note that devices have ended, and will not answer what they were told."""
        self._open = [letter for letter in self._open if letter.open]
        for letter in self._open:
            for slot in letter.slots[within(letter.slots, slots)].tolist():
                letter.answer(slot, STOPPED, None, NOT_YET_US)

    def _post(self, letter: Letter, slots: list[int]) -> None:
        # Who has not begun cannot listen yet: it hears as soon as it has.
        times: dict[int, list[int]] = {}
        if slots:
            self._open.append(letter)
        for slot in slots:
            device = self._deeds.kernel.party(slot)
            begun = device is None or device.start_us < letter.at_us
            times.setdefault(letter.at_us if begun else device.start_us + 1, []).append(slot)
        for at_us, those in times.items():
            self._deeds.later(at_us, partial(self._hand_over, letter, those, at_us))

    def _hand_over(self, letter: Letter, slots: list[int], at_us: int) -> None:
        for slot in slots:
            device = self._deeds.kernel.party(slot)
            if device is None:  # its code has ended
                letter.answer(slot, STOPPED, None, NOT_YET_US)
            elif device._inbox is None:
                letter.answer(slot, ACKNOWLEDGED, None, at_us)
            elif not device._inbox.put(self._command(letter, device), letter, at_us):
                letter.answer(slot, BUSY, None, at_us)

    def _command(self, letter: Letter, device: Device) -> Command:
        inbox = device._inbox

        def say(code: int, answer: Any) -> None:
            if inbox is not None and not inbox.closed:
                inbox.answer(letter, code, answer)

        at_s = (letter.at_us - self._deeds.start_us) / 1e6
        return Command(letter.id, letter.name, deepcopy(letter.payload), at_s, say)

    def _down(self, slots: Ints, at_us: int) -> npt.NDArray[np.bool_]:
        # Whose link is down does not hear; commands come in order of time.
        windows = self._deeds.windows
        self._offline += [one for one in windows[self._seen:] if one.fault.offline]
        self._offline = [one for one in self._offline if one.end_us > at_us]
        self._seen = len(windows)
        down = np.zeros(len(slots), dtype=np.bool_)
        for window in self._offline:
            if window.begin_us <= at_us and window.fault.is_down(at_us - window.begin_us):
                place = window.members(slots)
                down |= (place >= 0) & (window.ends_us[place] > at_us)
        return down
