"""The gateways of one run: what is known of each, who takes its commands, what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim.errors import BadValue, IotsimError, UnknownName
from iotsim.faults.base import NEVER_US
from iotsim.gateway.answer_book import AnswerBook
from iotsim.gateway.command_log import CommandLog
from iotsim.gateway.hands import RunHands
from iotsim.gateway.post import Delivery, Line
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store
from iotsim.gateway.worker import Worker
from iotsim.readings import Ints
from iotsim.selectors import Where

if TYPE_CHECKING:
    from iotsim.run import Run

CLOSE_S = 1.0
NOBODY_S = 20.0  # a durable delivers three times, and a command is fresh for 60 s
NOTES_MAX = 100


class Box:
    """Where a gateway's link delivers (a `Post`): its worker of the moment, or nobody."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.line: Line | None = None

    def connected(self, line: Line) -> None:
        """Pass on that there is a connection."""
        self.line = line
        if self.worker is not None:
            self.worker.connected(line)

    def disconnected(self) -> None:
        """Pass on that there is none."""
        self.line = None
        if self.worker is not None:
            self.worker.disconnected()

    def delivered(self, delivery: Delivery) -> None:
        """Pass on a command; without a worker it is delivered again later."""
        if self.worker is not None:
            self.worker.delivered(delivery)
        else:
            delivery.nak(NOBODY_S)


class Crew:
    """Everything that the gateways of a run have beside the run itself.

    Parameters
    ----------
    store : Store
        Open; closed with the crew.
    records : iterable of GatewayRecord
        Provisioned ones.

    Attributes
    ----------
    records : dict of name to GatewayRecord
        As they are now. Those that were deleted stay until the end: something of them may still
        be on its way.
    gone : dict of name to str
        Those that were deleted, and why.
    log : CommandLog
    """

    def __init__(self, store: Store, records: Iterable[GatewayRecord]) -> None:
        self.store = store
        self.records: dict[str, GatewayRecord] = {one.name: one for one in records}
        self.gone: dict[str, str] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self.run: Run | None = None
        self.log = CommandLog()
        self.notes: dict[str, int] = {}
        self.hands = RunHands(self)
        self._book = AnswerBook(store)
        self._boxes: dict[str, Box] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Crew: {len(self.records) - len(self.gone):,} gateways>"

    # -- who there is -----------------------------------------------------------------------------

    def record(self, name: str) -> GatewayRecord:
        """Return what is known of a gateway; raises UnknownName or BadValue."""
        _check_name(name)
        if name in self.gone:
            raise BadValue("gateway", name, "is no longer there", f"It was {self.gone[name]}.")
        if name not in self.records:
            raise UnknownName("gateway", name, self.records)
        return self.records[name]

    def by_gateway_id(self, gateway_id: str) -> GatewayRecord | None:
        """Return the gateway that a platform's id means, if it is here."""
        return next((one for one in self.records.values()
                     if one.gateway_id == gateway_id and one.name not in self.gone), None)

    def rests(self, name: str) -> bool:
        """Return whether a gateway was stopped, or is gone."""
        return name in self.gone or self.records[name].intent == "stopped"

    def turn(self, name: str) -> asyncio.Lock:
        """Return whose turn it is with a gateway: one thing at a time is done to it."""
        _check_name(name)
        return self._turns.setdefault(name, asyncio.Lock())

    def note(self, name: str, **changes: Any) -> None:
        """Take over what has changed of a gateway; the store is the caller's business."""
        self.records[name] = replace(self.records[name], **changes)

    def remark(self, text: str) -> None:
        """Keep a line for people; a line that comes again is counted."""
        if text in self.notes or len(self.notes) < NOTES_MAX:
            self.notes[text] = self.notes.get(text, 0) + 1

    async def keep(self, name: str, **changes: Any) -> None:
        """Change a gateway's record, in the store first."""
        await asyncio.to_thread(self.store.update, name, **changes)
        self.note(name, **changes)

    def slots_of(self, name: str) -> Ints:
        """Return the numbers of a gateway's sensors that live, in the run's fleet."""
        works = None if self.run is None else self.run.works
        if works is None or works.driver is None:
            return np.empty(0, dtype=np.int64)
        deeds = works.driver.simulation.deeds
        found = [deeds.mail.slot_of(f"{name}:{spec['name']}")
                 for spec in self.records[name].sensors]
        slots = np.array(sorted(slot for slot in found if slot >= 0), dtype=np.int64)
        return np.asarray(slots[deeds.population.ended_us[slots] >= NEVER_US])

    def paced(self, where: Where, every_ms: int) -> None:
        """Note a frequency that somebody here has set for sensors."""
        works = None if self.run is None else self.run.works
        if works is None or works.driver is None:
            return
        driver = works.driver
        slots, _ = driver.simulation.population.select(where, driver.frontier_us)
        for name in self.records:
            mine = self.slots_of(name)
            if len(mine) and np.isin(mine, slots).all():
                self.note(name, send_frequency_ms=every_ms)

    def has_sensors(self, name: str) -> bool:
        """Return whether a gateway has sensors in the run; before it began, in its record."""
        works = None if self.run is None else self.run.works
        if works is None or works.driver is None:
            return bool(self.records[name].sensors)
        return bool(len(self.slots_of(name)))

    # -- commands ---------------------------------------------------------------------------------

    def post_of(self, name: str) -> Box:
        """Return where a gateway's link delivers; its worker begins with it."""
        box = self._boxes.get(name)
        if box is None:
            box = self._boxes[name] = Box()
            self.employ(name)
        return box

    def employ(self, name: str) -> None:
        """Give a gateway a worker, unless it has one."""
        box = self._boxes.get(name)
        if box is None or box.worker is not None or self._closed:
            return
        box.worker = Worker(self.records[name], self.hands, self._book, self.log)
        if box.line is not None:
            box.worker.connected(box.line)

    async def dismiss(self, names: Iterable[str], deadline_s: float = CLOSE_S) -> None:
        """End the workers of gateways: what they have begun is finished, the rest given back."""
        workers = []
        for name in names:
            box = self._boxes.get(name)
            if box is not None and box.worker is not None:
                workers.append(box.worker)
                box.worker = None
        if workers:
            await asyncio.gather(*(worker.close(deadline_s) for worker in workers),
                                 return_exceptions=True)

    def waiting_of(self, name: str) -> int:
        """Return how many commands of a gateway have no answer yet."""
        box = self._boxes.get(name)
        return 0 if box is None or box.worker is None else box.worker.waiting

    def is_connected(self, name: str) -> bool:
        """Return whether a gateway has a connection, its own or the one of all."""
        box = self._boxes.get(name)
        return box is not None and box.line is not None

    # -- the end ----------------------------------------------------------------------------------

    async def end(self) -> None:
        """Take no more commands; connections may end after this."""
        self._closed = True
        await self.dismiss(list(self._boxes))

    async def close(self) -> None:
        """Write what is left, and let go of the store."""
        self._closed = True
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._book.close()
        except (TimeoutError, IotsimError) as error:
            self.remark(f"answers were not all written: {type(error).__name__}")
        finally:
            await asyncio.to_thread(self.store.close)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise BadValue("gateway", name, "is no name", "Give a str, such as 'gw-1'.")
