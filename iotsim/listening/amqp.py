"""Commands by AMQP: a queue for all devices, bound to a topic exchange; answers go there, too.

A topic's "/" are "." in its routing key. The queue outlives a broken connection by minutes, so
that what was sent meanwhile comes with the next one. `reply_to` and `correlation_id` are honoured.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from iotsim.listening.base import CONNECT_S, Ear, Message, Note, Take, Talk
from iotsim.listening.steady import Answer, Outflow, Steady, Up, first_of, insist
from iotsim.publishers.amqp import address_of, checked_name
from iotsim.seeding import fresh_seed
from iotsim.tapping.settings import Wish, secured
from iotsim.transport.amqp_client import connected, words

OPTIONS: dict[str, Any] = {"exchange": "iot.commands", "queue": None}
ANY = "*"
LEAVE_S = 0.3
PREFETCH = 500
QUEUE_EXPIRES_MS = 300_000
QUEUE_MAX = 100_000


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what a listener needs; raises BadValue."""
    address, vhost = address_of(wish.url)
    queue = wish.options["queue"]
    return {
        "url": str(address), "host": address.host, "port": address.port, "vhost": vhost,
        "separator": ".", "exchange": checked_name("exchange", wish.options["exchange"]),
        "queue": None if queue is None else checked_name("queue", queue),
        **secured(wish, address, "AMQP", ("username", "password"), wish.scheme == "amqps", "amqps"),
    }  # fmt: skip


class _Connection:
    """One connection with its exchange and a queue that is consumed."""

    def __init__(
        self, ear: Ear, pattern: str, queue: str, heard: Callable[[Message], Any], own: bool
    ) -> None:
        self._settings, self._pattern = ear.settings, pattern
        self._queue, self._heard, self._own = queue, heard, own
        self._gone = asyncio.Event()
        self._connection: AbstractConnection | None = None

    async def __aenter__(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_S - 1):
                made = self._connection = await connected(self._settings, "iotsim-devices")
                made.close_callbacks.add(lambda *_: self._gone.set())
                await self._prepare(await made.channel())
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _prepare(self, channel: AbstractChannel) -> None:
        channel.close_callbacks.add(lambda *_: self._gone.set())
        await channel.set_qos(PREFETCH)
        self._own_exchange = channel.default_exchange
        self._exchange = await channel.declare_exchange(
            self._settings["exchange"], aio_pika.ExchangeType.TOPIC, durable=True)
        bounds: Any = {"x-expires": QUEUE_EXPIRES_MS, "x-max-length": QUEUE_MAX}
        there = self._settings["queue"] is not None and not self._own  # somebody has made it
        queue = await channel.declare_queue(
            self._queue, exclusive=self._own, durable=not self._own, passive=there,
            arguments=None if self._own or there else bounds)
        self._bound = queue
        await queue.bind(self._exchange, self._pattern)
        await queue.consume(self._take)

    async def __aexit__(self, *_: object) -> None:
        if self._connection is None:
            return
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._connection.close()
        except (aiormq.AMQPError, OSError, TimeoutError):
            pass
        await asyncio.sleep(0)  # aio-pika's own tasks end one turn later

    async def forget(self) -> None:
        """Delete the queue: nobody will come back for what is in it."""
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._bound.delete(if_unused=False, if_empty=False)
        except (aiormq.AMQPError, OSError, TimeoutError, RuntimeError):
            pass

    async def lasting(self) -> None:
        """Wait until the connection is gone."""
        await self._gone.wait()

    async def send(self, topic: str, body: bytes, reply: Any = None) -> None:
        """Publish to the exchange, or where somebody wanted an answer."""
        where, correlation = reply or (None, None)
        message = aio_pika.Message(body, correlation_id=correlation,
                                   content_type="application/json")
        exchange = self._exchange if where is None else self._own_exchange
        await exchange.publish(message, where or topic, mandatory=False)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        reply = (message.reply_to, message.correlation_id) if message.reply_to else None
        taken = self._heard(Message(message.routing_key or "", bytes(message.body), reply))
        if taken is False:
            await message.reject(requeue=False)
        else:
            await message.ack()


class Heard:
    """The devices' side: hands commands on, sends answers.

    Parameters
    ----------
    ear : Ear
    take : callable (Message) -> bool
    note : callable (text)
    topics : callable () -> list of str
        Not needed here: one queue takes them all in.
    """

    def __init__(
        self, ear: Ear, take: Take, note: Note, topics: Callable[[], list[str]]
    ) -> None:
        self._ear, self._take = ear, take
        self._queue = ear.settings["queue"] or f"iotsim-devices-{os.getpid()}-{fresh_seed():x}"
        self._outflow = Outflow()
        self._made: _Connection | None = None
        self._steady = Steady(ear.settings["url"], note, self._session, words)

    async def _session(self, up: Up) -> None:
        pattern = self._ear.pattern(self._ear.topic, ANY)
        async with _Connection(self._ear, pattern, self._queue, self._take, False) as made:

            async def send(batch: Sequence[Answer]) -> None:
                await asyncio.gather(*(made.send(*answer) for answer in batch))

            self._made = made
            up()
            try:
                await first_of(made.lasting(), self._outflow.run(send))
            finally:
                self._made = None

    async def open(self) -> None:
        """Connect and bind the queue; raises ConnectError."""
        await self._steady.open()

    def answer(self, topic: str, body: bytes, reply: Any) -> bool:
        """Send an answer: where the sender wanted it, else under the device's own key."""
        return self._outflow.put((topic, body, reply))

    async def close(self) -> None:
        """End."""
        await self._outflow.empty()
        if self._made is not None and self._ear.settings["queue"] is None:
            await self._made.forget()
        await self._steady.close()


async def converse(ear: Ear, talk: Talk) -> None:
    """Send commands as a platform would, and hear the answers until it is over."""

    async def session(up: Up) -> None:
        async with _Connection(ear, talk.pattern, f"iotsim-platform-{fresh_seed():x}",
                               lambda message: talk.heard(message.body), True) as made:
            up()
            places = talk.unanswered()
            for first in range(0, len(places), PREFETCH):
                some = places[first:first + PREFETCH]
                for place in some:
                    talk.sent(place)
                await asyncio.gather(*(made.send(*talk.requests[place]) for place in some))
            await made.lasting()

    await insist(ear.settings["url"], talk, session, words)
