"""The pump: bounded lanes before a publisher, and one account over all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from iotsim.errors import ConnectError, IotsimError
from iotsim.publishers.base import (
    QUEUE_MESSAGES_MAX,
    Identity,
    Limits,
    Publisher,
    checked_backpressure,
    whole,
)
from iotsim.publishers.connector import OPEN_S, OPENINGS_MAX
from iotsim.publishers.lane import Lane
from iotsim.publishers.lane_settings import ACK_DEADLINE_S, LaneSettings, Settled
from iotsim.publishers.ledger import Latency, Ledger, LedgerSnapshot
from iotsim.publishers.payload import Messages
from iotsim.seeding import Words, mix_many

ERRORS_MAX = 100
CLOSE_LINKS_S = 0.5
OPEN_LANE_S = 0.02  # what each lane beyond those that connect together may take longer


class Pump:
    """Carries blocks of messages to a publisher and accounts for every one.

    Parameters
    ----------
    publisher : Publisher
    devices : int
        How many devices share it; decides the number of lanes where none was asked for.
    names : sequence of Identity, optional
        For a publisher with `per_device`: lane i is the connection of the i-th of them.
    run_id : str
        Part of the client ids of shared connections.
    backpressure : {"block", "drop_oldest", "slow_down"}, optional
        What happens when a lane's queue is full; the publisher's own setting if left out.
    queue_messages : int, optional
        What a lane's queue holds; the publisher's own setting if left out.
    ledger : Ledger, optional
    settled : callable (ids, outcome, seconds), optional
        Told of each batch that was acknowledged (seconds from hand-over to acknowledgement, one
        per id), refused, dropped from a full queue, or is unknown for now because the link was
        lost (no seconds); must be quick.
    ack_deadline_s : float
        A link whose oldest message gets no verdict for so long is dropped.

    Examples
    --------
    >>> from iotsim.publishers.base import build
    >>> pump = Pump(build("memory:example"))
    >>> pump.snapshot().offered
    0
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        devices: int = 1,
        names: Sequence[Identity] | None = None,
        run_id: str = "run",
        backpressure: str | None = None,
        queue_messages: int | None = None,
        ledger: Ledger | None = None,
        settled: Settled | None = None,
        ack_deadline_s: float = ACK_DEADLINE_S,
    ) -> None:
        own = publisher.limits
        count = own.queue_messages if queue_messages is None else queue_messages
        policy = own.backpressure if backpressure is None else backpressure
        limits = Limits(
            whole("queue_messages", count, 1, QUEUE_MESSAGES_MAX), checked_backpressure(policy)
        )
        self.url = publisher.url
        self.idle = asyncio.Event()
        self.idle.set()
        self._publisher = publisher
        self.run_id = run_id
        self._ledger = ledger if ledger is not None else Ledger()
        self._settings = LaneSettings(
            url=publisher.url,
            run_id=run_id,
            limits=limits,
            ledger=self._ledger,
            notice=self._notice,
            changed=self._changed,
            turns=asyncio.Semaphore(getattr(publisher, "openings", OPENINGS_MAX)),
            settled=settled,
            ack_deadline_s=ack_deadline_s,
            pace=getattr(publisher, "pace", None),
        )
        self._lanes: list[Lane] = []
        self._names = None if names is None else list(names)
        if self._names is None:
            self._count = max(1, publisher.lanes(devices))
        else:
            self._count = publisher.lanes(len(self._names))
            assert self._count == len(self._names), "one lane for each device"
        self._notices: deque[tuple[str, int]] = deque(maxlen=ERRORS_MAX)
        self._closed = False
        self._leaving: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        account = self._ledger
        return f"<Pump {self.url}: {account.offered:,} offered, {account.open:,} open>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def has_lost(self) -> bool:
        """Whether messages were refused or dropped, or nobody knows of some."""
        counts = self._ledger.counts
        return bool(counts["refused"] or counts["dropped"] or counts["unknown"])

    @property
    def latency(self) -> Latency:
        """How long acknowledgements have taken."""
        return self._ledger.latency

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return self._count

    @property
    def connected(self) -> int:
        """How many lanes have a connection now."""
        return sum(lane.connected for lane in self._lanes)

    @property
    def errors(self) -> tuple[str, ...]:
        """The last 100 things that went wrong, one line each; repeats are counted."""
        return tuple(f"{text} (×{n})" if n > 1 else text for text, n in self._notices)

    async def open(self) -> None:
        """Connect all lanes, within 10 seconds, or more where they are over 50.

        Raises
        ------
        ConnectError
            If a lane could not be connected; no lane is then left open.
        """
        self._lanes = self._all_made()
        lanes = [lane for lane in self._lanes if not lane.hung_up]
        tasks = [asyncio.create_task(lane.open(), name="iotsim open") for lane in lanes]
        deadline_s = OPEN_S + OPEN_LANE_S * max(0, self._count - OPENINGS_MAX)
        if getattr(self._publisher, "tolerant", False):
            await self._open_some(lanes, tasks, deadline_s)
            return
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.gather(*tasks)
        except TimeoutError:
            await self._abandon(tasks)
            raise ConnectError(self.url, f"no answer in {deadline_s:g} s") from None
        except BaseException:
            await self._abandon(tasks)
            raise

    async def _open_some(
        self, lanes: list[Lane], tasks: list[asyncio.Task[None]], deadline_s: float
    ) -> None:
        # Those that cannot be connected now go on trying; if none could be, it is the caller's.
        if not tasks:
            return
        try:
            _, late = await asyncio.wait(tasks, timeout=deadline_s)
            for task in late:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
        except BaseException:
            await self._abandon(tasks)
            raise
        wrong = [error for error in found if isinstance(error, Exception)]
        if wrong and len(wrong) == len(found) and not late:
            await self._close_lanes(self._lanes)
            raise wrong[0]
        for lane, error in zip(lanes, found, strict=True):
            if error is not None:
                lane.trouble = (str(error) if isinstance(error, IotsimError)
                                else f"{self.url}: no answer in {deadline_s:g} s")
                self._notice(lane.trouble)
                lane.begin(at_once=False)

    def begin(self) -> None:
        """Connect all lanes in the background, as after an outage; what is offered queues up.

        An attempt that fails is a line in `errors`, and is made again.
        """
        self._lanes = self._all_made()
        for lane in self._lanes:
            if not lane.hung_up:
                lane.begin()

    def add_lane(self, device: Identity) -> int:
        """Give one more device a connection, in the background; return its lane.

        Raises
        ------
        BadValue
            If there are as many as the publisher allows, or it cannot be who it should be.
        """
        assert self._names is not None, "only where each device has a lane of its own"
        lane = self._count
        self._publisher.lanes(lane + 1)
        made = self._made(lane, device)
        self._names.append(device)
        self._lanes.append(made)
        self._count += 1
        if self._closed:
            self._lanes[lane].stop_admission()
        elif not made.hung_up:
            made.begin()
        return lane

    def _all_made(self) -> list[Lane]:
        if self._names is None:
            return [self._made(i) for i in range(self._count)]
        return [self._made(i, device) for i, device in enumerate(self._names)]

    def _made(self, lane: int, device: Identity | None = None) -> Lane:
        link = partial(self._publisher.link, lane, self.run_id)
        make = link if device is None else partial(link, device=device)
        one = Lane(lane, make, self._settings)
        rests: Callable[[str], bool] | None = getattr(self._publisher, "rests", None)
        one.hung_up = device is not None and rests is not None and rests(device.device_id)
        return one

    async def _abandon(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._close_lanes(self._lanes)

    def lane_of(self, key_hashes: Words) -> npt.NDArray[np.int64]:
        """Return each device's lane, from a hash of the device; stable while lanes are as many.

        Parameters
        ----------
        key_hashes : uint64 array, shape (devices,)
        """
        return (mix_many(key_hashes) % np.uint64(self._count)).astype(np.int64)

    async def offer(self, lane: int, messages: Messages) -> None:
        """Hand messages to a lane; under `block`, wait until it has room for all of them."""
        await self._lanes[lane].offer(messages)

    def fill(self, lane: int) -> float:
        """Return how full a lane's queue is, from 0 to 1."""
        return self._lanes[lane].fill

    def stall(self, lane: int) -> str:
        """Return what keeps a lane's messages from leaving now; empty if nothing does."""
        return self._lanes[lane].stall

    def open_of(self, lane: int) -> int:
        """Return how many messages a lane holds that have no verdict."""
        return sum(self._lanes[lane].contents)

    def waiting_of(self, lane: int) -> int:
        """Return how many messages of a lane are to be sent, or sent again."""
        queued, _, unknown = self._lanes[lane].contents
        return queued + unknown

    def waiting_ids(self, lane: int) -> list[str]:
        """Return the ids of the messages of a lane that are to be sent, or sent again."""
        return self._lanes[lane].waiting_ids

    def reconnects_of(self, lane: int) -> int:
        """Return how often a lane's link was opened again."""
        return self._lanes[lane].reconnects

    def is_connected(self, lane: int) -> bool:
        """Return whether a lane has a connection now."""
        return self._lanes[lane].connected

    def hang_up(self, lane: int) -> None:
        """End a lane's connection at once, without DISCONNECT: the peer sends its last will.

        What is in flight is unknown and is sent again under the same ids; what is offered queues
        up. Nothing connects before `call_back`. To do so twice is to do it once.
        """
        self._lanes[lane].hang_up()

    def call_back(self, lane: int) -> None:
        """Connect a lane again that was hung up: at once, then as after any lost link."""
        self._lanes[lane].call_back()

    def trouble_of(self, lane: int) -> str:
        """Return why a lane has no connection; empty if it has, or nobody knows."""
        return self._lanes[lane].trouble

    def retire(self, lane: int, deadline_s: float | None = None) -> None:
        """Let a lane say goodbye and end, once all that it was offered has its verdict.

        After the deadline it ends all the same: what is queued is dropped, and counted.
        """
        leaving = asyncio.create_task(self._lanes[lane].leave(deadline_s), name="iotsim leave")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def discard(self, count: int, reason: str) -> None:
        """Account for messages that are not even offered: dropped, for a reason."""
        self._ledger.offer(count, "dropped", reason)

    def stop_admission(self) -> None:
        """Take no more messages: what is offered from now on is counted as dropped."""
        for lane in self._lanes:
            lane.stop_admission()

    def snapshot(self) -> LedgerSnapshot:
        """Return the account as it is now."""
        return self._ledger.snapshot()

    async def drain(self, deadline_s: float) -> bool:
        """Wait until nothing is open any more; return False if the deadline came first."""
        try:
            async with asyncio.timeout(deadline_s):
                await self.idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, deadline_s: float = 5.0) -> None:
        """Drain, then end all links; always over within the deadline and a moment.

        What was not sent by then is counted as dropped, what has no verdict as unknown. A lane
        that is hung up has no way out: it is not waited for.
        """
        if self._closed:
            return
        self._closed = True
        self.stop_admission()
        try:
            await self._close_lanes([lane for lane in self._lanes if lane.hung_up])
            await self.drain(max(0.0, deadline_s - CLOSE_LINKS_S))
        finally:
            for leaving in self._leaving:
                leaving.cancel()
            await self._close_lanes(self._lanes)

    async def _close_lanes(self, lanes: Sequence[Lane]) -> None:
        closing = [asyncio.create_task(lane.close(), name="iotsim end") for lane in lanes]
        if closing:
            results = await asyncio.gather(*closing, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    self._notice(f"closing a lane failed: {type(result).__name__}: {result}")

    def _notice(self, text: str) -> None:
        if self._notices and self._notices[-1][0] == text:
            self._notices[-1] = (text, self._notices[-1][1] + 1)
        else:
            self._notices.append((text, 1))

    def _changed(self) -> None:
        if self._ledger.open:
            self.idle.clear()
        else:
            self.idle.set()
