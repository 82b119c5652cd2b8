"""One lane of a pump: queue, window, in-flight store, retry, reconnection.

Order within a lane is the order of the tokens: messages are handed to the link in that order,
and after a lost link everything without a verdict is handed over again, first and in the same
order, under the same ids. All of it runs on one event loop; the only task is the connector's,
while there is no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from iotsim.clock import monotonic
from iotsim.publishers.backlog import Backlog
from iotsim.publishers.base import Item, Link, Loss, Verdicts
from iotsim.publishers.connector import Connector
from iotsim.publishers.lane_settings import DROPPED, LaneSettings
from iotsim.publishers.ordering import OVERTAKEN, Alone, Ordering, device_of
from iotsim.publishers.payload import Messages
from iotsim.publishers.poison import Suspicion
from iotsim.publishers.refusals import in_the_end, spent
from iotsim.publishers.timers import Oldest, Timers
from iotsim.publishers.waiting import Waiting

BATCH = 512  # messages joined in one write


class Lane:
    """Carries messages to one link, in order, and accounts for each (a `Verdicts`)."""

    def __init__(
        self, index: int, make_link: Callable[[Verdicts], Link], settings: LaneSettings
    ) -> None:
        self.index = index
        self.connected = self.hung_up = False
        self._settings = settings
        self._ledger = settings.ledger
        self._capacity = settings.limits.queue_messages
        self._link = make_link(self)
        self._queue = Backlog()
        self._flight: dict[int, Item] = {}
        self._waiting = Waiting()
        self._tries: dict[int, int] = {}
        self._suspicion = Suspicion()
        self._ordering = Ordering(self._link.pipelines)
        self._window = 0
        self._careful: int | None = None
        self._writable = False
        self._resting = False  # after a refusal for now
        self._feed_due = False
        name = f"{settings.run_id}/{index}"
        self._connector = Connector(
            name, settings.url, self._link, settings.turns, self._opened, self._failed
        )
        self._room = asyncio.Event()
        self._news = asyncio.Event()  # of verdicts
        self._turn = asyncio.Lock()
        self._opening = self._was_open = self._stopping = self._closed = False
        self._timers = Timers()
        self._oldest = Oldest()

    @property
    def contents(self) -> tuple[int, int, int]:
        """How many messages it holds: queued, in flight, unknown."""
        return self._queued, len(self._flight), len(self._waiting) - self._waiting.held

    @property
    def _queued(self) -> int:
        return len(self._queue) + self._waiting.held

    @property
    def fill(self) -> float:
        """How full the queue is, from 0 to 1."""
        return min(1.0, self._queued / self._capacity)

    @property
    def stall(self) -> str:
        """What keeps messages from leaving now; empty if nothing does."""
        if not self.connected:
            return "not connected"
        if self._resting:
            return "refused for now"
        if not self._writable:
            return "its connection takes no more"
        full = len(self._flight) >= self._window
        return f"{self._window:,} in flight on each connection, no more allowed" if full else ""

    async def open(self) -> None:
        """Connect for the first time; raises ConnectError."""
        self._opening = True
        try:
            window = await self._connector.open()
        finally:
            self._opening = False
        self._opened(window)

    def begin(self) -> None:
        """Connect in the background; until then it is as if the link were lost."""
        self._connector.seek(at_once=True)

    def hang_up(self) -> None:
        """End the connection at once, without a word, and stay away until `call_back`."""
        if self.hung_up or self._closed:
            return
        self.hung_up = True
        self._connector.halt()
        if not self._opening:
            self._link.drop()
        if self.connected:
            self._unlink()

    def call_back(self) -> None:
        """Connect again, at once; where that fails, as after any lost link."""
        if not self.hung_up or self._closed:
            return
        self.hung_up = False
        self._connector.failures = 0
        if not self._opening:
            self._connector.seek(at_once=True)

    async def leave(self) -> None:
        """Say goodbye once everything that was offered has its verdict."""
        while (self._queue or self._flight or self._waiting) and not self._closed:
            self._news.clear()
            await self._news.wait()
        if not self._closed:
            await self.close()

    async def close(self) -> None:
        """End the link and settle what is left: queued is dropped, in flight is unknown."""
        self.stop_admission()
        self._closed = True
        await self._connector.end()
        self._timers.cancel()
        was_connected, self.connected = self.connected, False
        if was_connected:
            await self._link.close()
        else:
            self._link.drop()
        self._write_off()
        self._settings.changed()

    def stop_admission(self) -> None:
        """Take no more messages; callers that wait for room are let go."""
        self._stopping = True
        self._room.set()

    def _write_off(self) -> None:
        self._news.set()
        ledger = self._ledger
        why = "stopped while hung up" if self.hung_up else "stopped before it was sent"
        ledger.move("in_flight", "unknown", len(self._flight))
        self._tell([item[2] for item in self._flight.values()], "unknown", ())
        queued, in_flight, unknown = self.contents
        ledger.given_up += in_flight + unknown
        ledger.move("queued", "dropped", queued, why)
        self._queue.drop(len(self._queue))
        self._flight.clear()
        self._waiting.clear()

    # -- admission ----------------------------------------------------------------------------

    async def offer(self, messages: Messages) -> None:
        """Queue messages; waits for room under `block`, drops the oldest otherwise."""
        count = len(messages)
        if self._stopping:
            self._ledger.offer(count, "dropped", "offered after the stop")
        elif self._settings.limits.backpressure == "drop_oldest":
            self._append(messages, 0, count)
            self._drop_oldest(self._queued - self._capacity)
        elif not self._turn.locked() and self._queued + count <= self._capacity:
            self._append(messages, 0, count)
        else:
            await self._offer_in_parts(messages)

    async def _offer_in_parts(self, messages: Messages) -> None:
        start, stop = 0, len(messages)
        try:
            async with self._turn:  # first come, first served: order per device
                while start < stop and not self._stopping:
                    part = min(stop - start, self._capacity - self._queued)
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
        self._kick()

    def _drop_oldest(self, excess: int) -> None:
        if excess > 0:
            held = self._waiting.drop(excess)
            ids = [item[2] for item in held.values()] + self._queue.oldest(excess - len(held))
            self._queue.drop(excess - len(held))
            self._ledger.move("queued", "dropped", excess, "queue full, oldest dropped")
            if held:
                self._forget(held)
                self._link.passed_over(held)
            self._tell(ids, DROPPED, ())

    # -- sending ------------------------------------------------------------------------------

    def _kick(self) -> None:
        # Whatever is offered within one turn of the loop leaves in one write.
        if not self._feed_due and self.connected:
            self._feed_due = True
            asyncio.get_running_loop().call_soon(self._feed)

    def _feed(self) -> None:
        self._feed_due = False
        alone = self._ordering.alone(self._flight)
        while self._able and (self._waiting or self._queue):
            window = self._window if self._careful is None else self._careful
            room = min(window - len(self._flight), BATCH)
            batch = self._next(room, alone) if room > 0 else {}
            if not batch:
                break
            self._flight.update(batch)
            self._writable = self._hand_over(batch)
        self._watch_oldest()

    def _next(self, room: int, alone: Alone | None) -> dict[int, Item]:
        if self._suspicion.wants_probe and (probe := self._take_probe()):
            return probe
        if alone is None:
            return self._take(room)
        batch: dict[int, Item] = {}
        while len(batch) < room and (self._waiting or self._queue):
            first = self._waiting.first()
            if not alone.joins(*(self._queue.first if first is None else (first[0], first[2]))):
                break
            batch |= self._take(1)
        return batch

    @property
    def _able(self) -> bool:
        return self.connected and self._writable and not self._resting

    def _hand_over(self, batch: dict[int, Item]) -> bool:
        try:
            return self._link.send(list(batch), list(batch.values()))
        except Exception as error:  # a fault of the link must not lose the account
            self._end_link(Loss(f"the link failed: {type(error).__name__}: {error}"))
            return False

    def _take(self, room: int) -> dict[int, Item]:
        return self._again(*self._waiting.take(room)) if self._waiting else self._take_queued(room)

    def _again(self, batch: dict[int, Item], held: int) -> dict[int, Item]:
        self._ledger.retries += len(batch)
        self._ledger.move("queued", "in_flight", held)
        self._ledger.move("unknown", "in_flight", len(batch) - held)
        self._room.set()
        return batch

    def _take_probe(self) -> dict[int, Item]:
        # A message of another device than the suspect's; those before it in the queue wait aside.
        device = self._suspicion.device
        batch, held = self._waiting.take_of_others(device)
        if batch:
            self._again(batch, held)
        for _ in range(0 if batch else min(BATCH, len(self._queue))):
            if device_of(*self._queue.first) != device:
                batch = self._take_queued(1)
                break
            self._waiting.put(self._queue.take(1, monotonic()), held=True)
        for token in batch:
            self._suspicion.probe(token)
        return batch

    def _take_queued(self, room: int) -> dict[int, Item]:
        batch = self._queue.take(room, monotonic())
        self._ledger.move("queued", "in_flight", len(batch))
        self._room.set()
        return batch

    # -- verdicts -----------------------------------------------------------------------------

    def acknowledged(self, tokens: Sequence[int]) -> None:
        """Take the acknowledgement of messages in flight."""
        if self._waiting.held and (count := self._ordering.overtaken(
                tokens, self._flight, self._waiting.oldest_held)):
            self._ledger.overtaken += count
            self._settings.notice(OVERTAKEN)
        items = [self._flight.pop(token) for token in tokens if token in self._flight]
        if not items:
            return
        now_s = monotonic()
        self._ledger.move("in_flight", "acknowledged", len(items))
        seconds = [now_s - item[3] for item in items]
        self._ledger.latency.add(seconds)
        self._forget(tokens)
        if self._suspicion.token >= 0:
            self._suspicion.taken(set(tokens))
        if self._suspicion.token < 0:  # else the waits go on growing, and it stays alone
            self._connector.failures = 0
        if self._careful is not None and self._suspicion.token < 0:
            self._careful += len(items)
            if self._careful >= self._window:
                self._careful = None
        self._report(items, "acknowledged", seconds)

    def refused(self, tokens: Sequence[int], reason: str, *, retry: bool = False) -> None:
        """Take the refusal of messages in flight; those to retry wait for a back-off."""
        again: list[int] = []
        final: list[int] = []
        for token in tokens:
            if token in self._flight:
                tries = self._tries.get(token, 0) + 1
                (again if retry and not spent(tries) else final).append(token)
        items = [self._flight.pop(token) for token in final]
        self._ledger.move("in_flight", "refused", len(items), reason)
        self._forget(final)
        for token in again:
            self._tries[token] = self._tries.get(token, 0) + 1
        if again:
            self._ordering.refused_for_now()
            self._take_back(again, held=True)
            self._settings.notice(f"refused for now: {reason}")
            self._rest(self._connector.delay_s(max(self._tries[token] for token in again)))
        if items:
            self._settings.notice(f"refused: {reason} (topic {items[0][0]!r:.80})")
            self._report(items, f"refused: {reason}", ())

    def returned(self, tokens: Sequence[int], rest_s: float = 0.0) -> None:
        """Take back messages that were not taken; they go out before everything newer."""
        if rest_s:
            self._rest(rest_s)
        self._take_back(tokens, held=True)
        self._kick()

    def uncertain(self, tokens: Sequence[int], reason: str = "") -> None:
        """Take back what got no verdict, to go out first; refuse what had 8 tries for a reason."""
        if reason:
            counted = {token: self._tries.get(token, 0) + 1 for token in tokens
                       if token in self._flight}
            self._tries |= counted
            final = [token for token, tries in counted.items() if spent(tries)]
            self.refused(final, in_the_end(reason))
        back = self._take_back(tokens, held=False)
        self._tell([item[2] for item in back.values()], "unknown", ())
        self._kick()

    def _take_back(self, tokens: Sequence[int], *, held: bool) -> dict[int, Item]:
        back = {token: self._flight.pop(token) for token in tokens if token in self._flight}
        self._waiting.put(back, held=held)
        self._oldest.left(self._flight)
        self._ledger.move("in_flight", "queued" if held else "unknown", len(back))
        return back

    def _rest(self, rest_s: float) -> None:
        # The longest of those asked for; hand over nothing until it is over.
        self._resting = True
        if self.connected:
            self._timers.extend("retry", rest_s, self._end_rest)

    def lost(self, loss: Loss) -> None:
        """Take the end of the link: what is in flight is unknown until it is sent again."""
        if not self.connected:
            return
        self._settings.notice(f"link lost: {loss.why}")
        self._unlink(loss)
        self._connector.seek()

    def _unlink(self, loss: Loss | None = None) -> None:
        self.connected = self._writable = False
        self._ledger.move("in_flight", "unknown", len(self._flight))
        self._tell([item[2] for item in self._flight.values()], "unknown", ())
        if loss is not None:
            self._suspect(loss)
        self._waiting.put(self._flight, held=False)
        self._flight = {}
        self._oldest.left(self._flight)
        self._timers.cancel()
        self._settings.changed()

    def ready(self) -> None:
        """Feed a link again that had enough."""
        if self.connected:
            self._writable = True
            self._kick()

    def notice(self, text: str) -> None:
        """Pass a line of the link's on."""
        self._settings.notice(text)

    def _end_rest(self) -> None:
        self._resting = False
        self._kick()

    def _report(self, items: Sequence[Item], outcome: str, seconds: Sequence[float]) -> None:
        self._news.set()
        self._tell([item[2] for item in items], outcome, seconds)
        self._settings.changed()
        if self._waiting or self._queue:
            self._kick()

    def _tell(self, ids: Sequence[str], outcome: str, seconds: Sequence[float]) -> None:
        if self._settings.settled is not None and ids:
            try:
                self._settings.settled(ids, outcome, seconds)
            except Exception as error:  # whoever listens must not stop the lane
                self._settings.notice(f"an observer failed: {type(error).__name__}: {error}")

    def _forget(self, tokens: Iterable[int]) -> None:
        if self._tries:
            for token in tokens:
                self._tries.pop(token, None)

    def _suspect(self, loss: Loss) -> None:
        if not self._flight or loss.blame == "other":
            return
        suspicion, token = self._suspicion, next(iter(self._flight))
        item, alone = self._flight[token], len(self._flight) == 1
        self._careful = 1
        if suspicion.struck(token, device_of(item[0], item[2]), loss, alone=alone):
            del self._flight[token]
            reason = suspicion.verdict
            suspicion.clear()
            self._forget((token,))
            self._connector.failures = 0
            self._ledger.move("unknown", "refused", 1, reason)
            self._settings.notice(f"refused: {reason}: {loss.why} (topic {item[0]!r:.80})")
            self._report([item], f"refused: {reason}", ())

    # -- connection ---------------------------------------------------------------------------

    def _opened(self, window: int) -> None:
        if self.hung_up or self._closed:  # while it was being opened
            self._link.drop()
            return
        self._ledger.reconnects += self._was_open
        self._was_open = True
        self._window = window
        self._resting = False
        self._suspicion.opened()
        self.connected = self._writable = True
        self._kick()

    def _failed(self, why: str) -> None:
        self._suspicion.clear()  # a broker that is away was not ended by a message
        self._settings.notice(why)

    def _end_link(self, loss: Loss) -> None:
        self._link.drop()
        self.lost(loss)

    # -- timers -------------------------------------------------------------------------------

    def _check_oldest(self) -> None:
        # The oldest in flight must change within the deadline; it is looked at four times in it.
        if not self._flight:
            return
        deadline_s = self._settings.ack_deadline_s
        if self._oldest.age_s(self._flight) >= deadline_s:
            self._end_link(Loss(f"no acknowledgement for {deadline_s:g} s"))
            return
        self._watch_oldest()

    def _watch_oldest(self) -> None:
        if self.connected:
            self._timers.arm("oldest", self._settings.ack_deadline_s / 4, self._check_oldest)
