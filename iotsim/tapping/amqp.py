"""A tap's source for AMQP: aio-pika, the client that publishing does not use.

The queue is durable and not ours alone, so that it outlives a broker's restart and a lost
connection: what is published meanwhile waits in it. A queue that the tap has made ends with it,
or five minutes after it was last used.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiormq
from aio_pika.abc import (
    AbstractChannel,
    AbstractConnection,
    AbstractIncomingMessage,
    AbstractQueue,
)

from iotsim.publishers.amqp import EXCHANGE, address_of, checked_kind, checked_name
from iotsim.tapping.settings import Wish, secured, topic_text
from iotsim.tapping.store import DUP, Store
from iotsim.transport.amqp_client import connected, words

TOPIC = "#"
OPTIONS: dict[str, Any] = {"exchange": EXCHANGE, "exchange_type": "topic", "queue": None}
CONNECT_S = 8.0
CLOSE_S = 0.4
RETRY_S = 0.2
PREFETCH = 5_000
ACK_EVERY_S, ACK_EVERY = 0.02, 200
HELD_MAX = 4 * PREFETCH
QUEUE_EXPIRES_MS = 300_000
AT_LEAST_ONCE = 1


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what the worker needs, as plain JSON values; raises BadValue."""
    address, vhost = address_of(wish.url)
    topic = TOPIC if wish.topic is None else wish.topic
    if topic != "":  # a binding key may be empty
        topic = topic_text(topic, "binding key", "Give one such as 'devices.*.#'.", 255)
    queue = wish.options["queue"]
    return {
        "url": str(address), "host": address.host, "port": address.port, "topic": topic,
        "vhost": vhost,
        "exchange": checked_name("exchange", wish.options["exchange"]),
        "exchange_type": checked_kind(wish.options["exchange_type"]),
        "queue": None if queue is None else checked_name("queue", queue),
        **secured(wish, address, "AMQP", ("username", "password"), wish.scheme == "amqps", "amqps"),
    }  # fmt: skip


class Source:
    """Consumes a queue, and hands what arrives to the store."""

    def __init__(self, settings: dict[str, Any], store: Store) -> None:
        self._settings = settings
        self._store = store
        self._name = settings["queue"] or f"iotsim-tap-{os.getpid()}-{os.urandom(4).hex()}"
        self._own = settings["queue"] is None
        self._begun = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._last: AbstractIncomingMessage | None = None  # not yet acknowledged
        self._since_ack = 0
        self._held: dict[int, None] = {}  # the last that came: what may be delivered to us again

    def run(self) -> None:
        """Connect, and consume until `close`; connect again where that ends."""
        asyncio.run(self._run())

    def close(self) -> None:
        """Say goodbye, and delete the queue if it is the tap's own."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._ended.set)
            except RuntimeError:  # it has ended already
                pass

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._ended.is_set():
            try:
                await self._session()
            except (aiormq.AMQPError, OSError, TimeoutError) as error:
                why = words(error)
                if not self._begun:
                    self._store.fail(why)
                    return
            try:
                async with asyncio.timeout(RETRY_S):
                    await self._ended.wait()
            except TimeoutError:
                pass

    async def _session(self) -> None:
        connection = await connected(self._settings, "iotsim-tap")
        gone = asyncio.Event()
        connection.close_callbacks.add(lambda *_: gone.set())
        try:
            async with asyncio.timeout(CONNECT_S):
                queue = await self._found(connection) if self._begun or not self._own else None
                if queue is None:
                    queue = await self._made(connection)
                queue.channel.close_callbacks.add(lambda *_: gone.set())
                await queue.consume(self._take)
            self._begun = True
            self._store.connected()
            self._store.subscribed()
            await self._stay(gone)
            if self._own and self._ended.is_set():
                async with asyncio.timeout(CLOSE_S):
                    await queue.delete(if_unused=False, if_empty=False)
        finally:
            self._last = None
            self._store.paused()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await connection.close()
            except (aiormq.AMQPError, OSError, TimeoutError):
                pass

    async def _found(self, connection: AbstractConnection) -> AbstractQueue | None:
        # The queue as it is, with what has come in meanwhile.
        channel = await _channel(connection)
        try:
            return await channel.declare_queue(self._name, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity:
            if not self._own:
                raise
            self._store.forgotten()
            return None

    async def _made(self, connection: AbstractConnection) -> AbstractQueue:
        settings = self._settings
        name, kind = settings["exchange"], settings["exchange_type"]
        channel = await _channel(connection)
        try:
            exchange = await channel.declare_exchange(name, kind, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity:  # as the publisher would make it
            channel = await _channel(connection)
            exchange = await channel.declare_exchange(name, kind, durable=True)
        queue = await channel.declare_queue(
            self._name, durable=True, arguments={"x-expires": QUEUE_EXPIRES_MS})
        await queue.bind(exchange, settings["topic"])
        return queue

    async def _stay(self, gone: asyncio.Event) -> None:
        # Acknowledges what came since the last time, until the connection or the tap ends.
        while not (gone.is_set() or self._ended.is_set()):
            try:
                async with asyncio.timeout(ACK_EVERY_S):
                    await gone.wait()
            except TimeoutError:
                pass
            if not gone.is_set():
                async with asyncio.timeout(CONNECT_S):
                    await self._acknowledge()

    async def _acknowledge(self) -> None:
        last, self._last, self._since_ack = self._last, None, 0
        if last is not None:
            await last.ack(multiple=True)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self._last = message
        key = hash((message.message_id, message.routing_key, message.body))
        if not (message.redelivered and key in self._held):  # it came, and our ack did not
            self._keep(message)
        self._held[key] = None
        if len(self._held) > HELD_MAX:
            del self._held[next(iter(self._held))]
        self._since_ack += 1
        if self._since_ack >= ACK_EVERY:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._acknowledge()
            except (aiormq.AMQPError, OSError, TimeoutError, RuntimeError):
                pass  # the connection ends, and what was not acknowledged comes again

    def _keep(self, message: AbstractIncomingMessage) -> None:
        sent = message.headers.get("sent", "")
        self._store.take(
            (message.routing_key or "").encode("utf-8", "surrogateescape"),
            (message.message_id or "").encode("utf-8", "surrogateescape"),
            message.body,
            AT_LEAST_ONCE | (DUP if message.redelivered else 0),
            sent.encode("utf-8", "surrogateescape") if isinstance(sent, str) else b"",
        )


async def _channel(connection: AbstractConnection) -> AbstractChannel:
    channel = await connection.channel(publisher_confirms=False)
    await channel.set_qos(PREFETCH)
    return channel
