"""What of a lane's messages is not in flight: those that go out again, then the queue.

It is where callers wait for room, and where the oldest are dropped. Messages that wait after a
refusal for now count as queued: they are the oldest of the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from iotsim.clock import monotonic
from iotsim.publishers.backlog import Backlog
from iotsim.publishers.base import Item
from iotsim.publishers.lane_settings import DROPPED, LaneSettings
from iotsim.publishers.ordering import device_of
from iotsim.publishers.payload import Messages
from iotsim.publishers.waiting import Waiting

LOOK = 512  # so far into the queue for a message of another device


class Stock:
    """Bounded, oldest first; moves in the account what enters and leaves.

    Parameters
    ----------
    settings : LaneSettings
    filled : callable ()
        Told when there is something new.
    passed_over : callable (messages by token)
        Told which of those that were sent before were dropped from a full queue.
    """

    def __init__(
        self, settings: LaneSettings, filled: Callable[[], None],
        passed_over: Callable[[Mapping[int, Item]], None],
    ) -> None:
        self.stopping = False
        self._settings, self._ledger = settings, settings.ledger
        self._capacity = settings.limits.queue_messages
        self._filled, self._passed_over = filled, passed_over
        self._queue = Backlog()
        self._waiting = Waiting()
        self._room = asyncio.Event()
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._queue) + len(self._waiting)

    @property
    def queued(self) -> int:
        """How many are queued or held."""
        return len(self._queue) + self._waiting.held

    @property
    def holds(self) -> bool:
        """Whether any wait after a refusal for now."""
        return self._waiting.held > 0

    @property
    def unknown(self) -> int:
        """How many were written and have no verdict."""
        return len(self._waiting) - self._waiting.held

    @property
    def fill(self) -> float:
        """How full the queue is, from 0 to 1."""
        return min(1.0, self.queued / self._capacity)

    @property
    def ids(self) -> list[str]:
        """The ids of all of them."""
        return self._waiting.ids + self._queue.oldest(len(self._queue))

    # -- in -----------------------------------------------------------------------------------

    async def offer(self, messages: Messages) -> None:
        """Queue messages; waits for room under `block`, drops the oldest otherwise."""
        count = len(messages)
        if self.stopping:
            self._ledger.offer(count, "dropped", "offered after the stop")
        elif self._settings.limits.backpressure == "drop_oldest":
            self._append(messages, 0, count)
            self._drop_oldest(self.queued - self._capacity)
        elif not self._turn.locked() and self.queued + count <= self._capacity:
            self._append(messages, 0, count)
        else:
            await self._offer_in_parts(messages)

    async def _offer_in_parts(self, messages: Messages) -> None:
        start, stop = 0, len(messages)
        try:
            async with self._turn:  # first come, first served: order per device
                while start < stop and not self.stopping:
                    part = min(stop - start, self._capacity - self.queued)
                    if part > 0:
                        self._append(messages, start, start + part)
                        start += part
                    else:
                        self._room.clear()
                        await self._room.wait()
        finally:
            if start < stop:
                self._ledger.offer(stop - start, "dropped", "stopped while waiting for room")

    def _append(self, messages: Messages, start: int, stop: int) -> None:
        if start == stop:
            return
        self._queue.append(messages, start, stop)
        self._ledger.offer(stop - start)
        self._settings.changed()
        self._filled()

    def _drop_oldest(self, excess: int) -> None:
        if excess > 0:
            held = self._waiting.drop(excess)
            ids = [item[2] for item in held.values()] + self._queue.oldest(excess - len(held))
            self._queue.drop(excess - len(held))
            self._ledger.move("queued", "dropped", excess, "queue full, oldest dropped")
            if held:
                self._passed_over(held)
            self._settings.tell(ids, DROPPED, ())

    def put_back(self, messages: Mapping[int, Item], *, held: bool) -> None:
        """Take what leaves the flight without a verdict; the account is moved by the caller."""
        self._waiting.put(messages, held=held)

    # -- out ----------------------------------------------------------------------------------

    @property
    def first(self) -> tuple[str, str]:
        """Topic and id of the one that goes next; there must be one."""
        item = self._waiting.first()
        return self._queue.first if item is None else (item[0], item[2])

    def take(self, room: int) -> dict[int, Item]:
        """Remove up to `room` of the oldest, which are in flight from now on."""
        if self._waiting:
            return self._again(*self._waiting.take(room))
        batch = self._queue.take(room, monotonic())
        self._ledger.move("queued", "in_flight", len(batch))
        self._room.set()
        return batch

    def _again(self, batch: dict[int, Item], held: int) -> dict[int, Item]:
        self._ledger.retries += len(batch)
        self._ledger.move("queued", "in_flight", held)
        self._ledger.move("unknown", "in_flight", len(batch) - held)
        self._room.set()
        return batch

    def take_of_others(self, device: str) -> dict[int, Item]:
        """Remove the oldest message of another device, or none; it is in flight from now on.

        Those before it in the queue wait aside, and go out before the rest.
        """
        batch, held = self._waiting.take_of_others(device)
        if batch:
            return self._again(batch, held)
        for _ in range(min(LOOK, len(self._queue))):
            one = self._queue.take(1, monotonic())
            [item] = one.values()
            if device_of(item[0], item[2]) != device:
                self._ledger.move("queued", "in_flight", 1)
                self._room.set()
                return one
            self._waiting.put(one, held=True)
        return {}

    def oldest_held(self, device: str) -> int | None:
        """Return the token of a device's oldest message that is held."""
        return self._waiting.oldest_held(device)

    # -- the end ------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no more messages; callers that wait for room are let go."""
        self.stopping = True
        self._room.set()

    def write_off(self, why: str) -> None:
        """Drop what is queued; nobody will ask again for the rest."""
        self._ledger.given_up += self.unknown
        self._ledger.move("queued", "dropped", self.queued, why)
        self._queue.drop(len(self._queue))
        self._waiting.clear()
