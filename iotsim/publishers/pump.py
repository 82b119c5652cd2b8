"""The pump: bounded lanes before a publisher, and one account over all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from iotsim.errors import ConnectError
from iotsim.publishers.base import (
    QUEUE_MESSAGES_MAX,
    Limits,
    Publisher,
    checked_backpressure,
    whole,
)
from iotsim.publishers.lane import ACK_DEADLINE_S, OPEN_S, Lane, LaneSettings, Settled
from iotsim.publishers.ledger import Ledger, LedgerSnapshot
from iotsim.publishers.payload import Messages
from iotsim.seeding import Words, mix_many

ERRORS_MAX = 100
CLOSE_LINKS_S = 0.5


class Pump:
    """Carries blocks of messages to a publisher and accounts for every one.

    Parameters
    ----------
    publisher : Publisher
    devices : int
        How many devices share it; decides the number of lanes where none was asked for.
    run_id : str
        Part of the client ids.
    backpressure : {"block", "drop_oldest"}, optional
        What happens when a lane's queue is full; the publisher's own setting if left out.
    queue_messages : int, optional
        What a lane's queue holds; the publisher's own setting if left out.
    ledger : Ledger, optional
    settled : callable (ids, outcome, seconds), optional
        Told of each batch that was acknowledged (seconds from hand-over to acknowledgement, one
        per id) or refused (no seconds); must be quick.
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
        self._run_id = run_id
        self._ledger = ledger if ledger is not None else Ledger()
        self._settings = LaneSettings(
            url=publisher.url,
            run_id=run_id,
            limits=limits,
            ledger=self._ledger,
            notice=self._notice,
            changed=self._changed,
            settled=settled,
            ack_deadline_s=ack_deadline_s,
        )
        self._lanes: list[Lane] = []
        self._count = max(1, publisher.lanes(devices))
        self._notices: deque[tuple[str, int]] = deque(maxlen=ERRORS_MAX)
        self._closed = False

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
        """Connect all lanes, within 10 seconds.

        Raises
        ------
        ConnectError
            If a lane could not be connected; no lane is then left open.
        """
        make = self._publisher.link
        self._lanes = [
            Lane(i, partial(make, i, self._run_id), self._settings) for i in range(self._count)
        ]
        tasks = [asyncio.create_task(lane.open(), name="iotsim open") for lane in self._lanes]
        try:
            async with asyncio.timeout(OPEN_S):
                await asyncio.gather(*tasks)
        except TimeoutError:
            await self._abandon(tasks)
            raise ConnectError(self.url, f"no answer in {OPEN_S:g} s") from None
        except BaseException:
            await self._abandon(tasks)
            raise

    async def _abandon(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._close_lanes()

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

        What was not sent by then is counted as dropped, what has no verdict as unknown.
        """
        if self._closed:
            return
        self._closed = True
        self.stop_admission()
        try:
            await self.drain(max(0.0, deadline_s - CLOSE_LINKS_S))
        finally:
            await self._close_lanes()

    async def _close_lanes(self) -> None:
        closing = [asyncio.create_task(lane.close(), name="iotsim end") for lane in self._lanes]
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
