"""One lane of a pump: window, in-flight store, retry, reconnection, over a stock of messages.

Order within a lane is the order of the tokens: messages are handed to the link in that order,
and after a lost link everything without a verdict is handed over again, first and in the same
order, under the same ids. All of it runs on one event loop; the only task is the connector's,
while there is no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from iotsim.clock import monotonic
from iotsim.publishers.base import Item, Link, Loss, Verdicts
from iotsim.publishers.connector import Connector
from iotsim.publishers.lane_settings import LaneSettings
from iotsim.publishers.ordering import OVERTAKEN, Alone, Ordering, device_of
from iotsim.publishers.payload import Messages
from iotsim.publishers.poison import Suspicion
from iotsim.publishers.refusals import in_the_end, spent
from iotsim.publishers.stock import Stock
from iotsim.publishers.timers import Oldest, Timers

BATCH = 512  # messages joined in one write


class Lane:
    """Carries messages to one link, in order, and accounts for each (a `Verdicts`)."""

    def __init__(
        self, index: int, make_link: Callable[[Verdicts], Link], settings: LaneSettings
    ) -> None:
        self.index = index
        self.connected = self.hung_up = False
        self.trouble = ""  # why there is no connection
        self.reconnects = 0
        self._settings = settings
        self._ledger = settings.ledger
        self._link = make_link(self)
        self._stock = Stock(settings, self._kick, self._passed_over)
        self._flight: dict[int, Item] = {}
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
            name, settings.url, self._link, settings.turns, self._opened, self._failed,
            settings.pace,
        )
        self._news = asyncio.Event()  # of verdicts
        self._opening = self._was_open = self._closed = False
        self._timers = Timers()
        self._oldest = Oldest()

    @property
    def contents(self) -> tuple[int, int, int]:
        """How many messages it holds: queued, in flight, unknown."""
        return self._stock.queued, len(self._flight), self._stock.unknown

    @property
    def waiting_ids(self) -> list[str]:
        """The ids of all that is not in flight."""
        return self._stock.ids

    @property
    def fill(self) -> float:
        """How full the queue is, from 0 to 1."""
        return self._stock.fill

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

    def begin(self, *, at_once: bool = True) -> None:
        """Connect in the background; until then it is as if the link were lost."""
        self._connector.seek(at_once=at_once)

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

    async def leave(self, deadline_s: float | None = None) -> None:
        """Say goodbye once everything that was offered has its verdict, or after the deadline."""
        try:
            async with asyncio.timeout(deadline_s):
                while (self._stock or self._flight) and not self._closed:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        if not self._closed:
            await self.close()

    async def close(self) -> None:
        """End the link and settle what is left: queued is dropped, in flight is unknown."""
        self.stop_admission()
        self._closed = True
        was_connected, self.connected = self.connected, False  # a loss is no reason to come back
        await self._connector.end()
        self._timers.cancel()
        if was_connected:
            await self._link.close()
        else:
            self._link.drop()
        self._write_off()
        self._settings.changed()

    def stop_admission(self) -> None:
        """Take no more messages; callers that wait for room are let go."""
        self._stock.stop()

    def _write_off(self) -> None:
        self._news.set()
        in_flight = len(self._flight)
        self._ledger.move("in_flight", "unknown", in_flight)
        self._ledger.given_up += in_flight
        self._settings.tell([item[2] for item in self._flight.values()], "unknown", ())
        self._flight.clear()
        why = "stopped while hung up" if self.hung_up else "stopped before it was sent"
        self._stock.write_off(why)

    async def offer(self, messages: Messages) -> None:
        """Queue messages; waits for room under `block`, drops the oldest otherwise."""
        await self._stock.offer(messages)

    def _passed_over(self, messages: Mapping[int, Item]) -> None:
        self._forget(messages)
        self._link.passed_over(messages)

    # -- sending ------------------------------------------------------------------------------

    def _kick(self) -> None:
        # Whatever is offered within one turn of the loop leaves in one write.
        if not self._feed_due and self.connected:
            self._feed_due = True
            asyncio.get_running_loop().call_soon(self._feed)

    def _feed(self) -> None:
        self._feed_due = False
        alone = self._ordering.alone(self._flight)
        while self._able and self._stock:
            window = self._window if self._careful is None else self._careful
            room = min(window - len(self._flight), BATCH)
            batch = self._next(room, alone) if room > 0 else {}
            if not batch:
                break
            self._flight.update(batch)
            self._writable = self._hand_over(batch)
        self._watch_oldest()

    def _next(self, room: int, alone: Alone | None) -> dict[int, Item]:
        if self._suspicion.wants_probe:
            probe = self._stock.take_of_others(self._suspicion.device)
            for token in probe:
                self._suspicion.probe(token)
            if probe:
                return probe
        if alone is None:
            return self._stock.take(room)
        batch: dict[int, Item] = {}
        while len(batch) < room and self._stock and alone.joins(*self._stock.first):
            batch |= self._stock.take(1)
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

    # -- verdicts -----------------------------------------------------------------------------

    def acknowledged(self, tokens: Sequence[int]) -> None:
        """Take the acknowledgement of messages in flight."""
        if self._stock.holds and (count := self._ordering.overtaken(
                tokens, self._flight, self._stock.oldest_held)):
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
        self._settings.tell([item[2] for item in back.values()], "unknown", ())
        self._kick()

    def _take_back(self, tokens: Sequence[int], *, held: bool) -> dict[int, Item]:
        back = {token: self._flight.pop(token) for token in tokens if token in self._flight}
        self._stock.put_back(back, held=held)
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
        self.trouble = f"link lost: {loss.why}"
        self._settings.notice(self.trouble)
        self._unlink(loss)
        self._connector.seek()

    def _unlink(self, loss: Loss | None = None) -> None:
        self.connected = self._writable = False
        self._ledger.move("in_flight", "unknown", len(self._flight))
        self._settings.tell([item[2] for item in self._flight.values()], "unknown", ())
        if loss is not None:
            self._suspect(loss)
        self._stock.put_back(self._flight, held=False)
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
        self._settings.tell([item[2] for item in items], outcome, seconds)
        self._settings.changed()
        if self._stock:
            self._kick()

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
        self.reconnects += self._was_open
        self._was_open = True
        self.trouble = ""
        self._window = window
        self._resting = False
        self._suspicion.opened()
        self.connected = self._writable = True
        self._kick()

    def _failed(self, why: str) -> None:
        self._suspicion.clear()  # a broker that is away was not ended by a message
        self.trouble = why
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
