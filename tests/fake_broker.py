"""A scripted MQTT 5 broker, for what mosquitto cannot be made to do."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import mqtt5
from mqtt5 import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
)


def message_id(packet):
    return dict(packet.user_properties).get("id", "")


@dataclass
class Connection:
    """One client's connection and what it has sent."""

    number: int
    writer: asyncio.StreamWriter
    connect: ConnectPacket | None = None
    packets: list = field(default_factory=list)
    open_ids: set = field(default_factory=set)
    open_most: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def publishes(self):
        return [p for p in self.packets if isinstance(p, PublishPacket)]

    def say(self, *packets):
        if not self.writer.is_closing():
            self.writer.write(b"".join(packet.write() for packet in packets))

    def settle(self, packet_id, code=None):
        """Send a PUBACK."""
        self.open_ids.discard(packet_id)
        code = code or mqtt5.PubAckReasonCode.SUCCESS
        self.say(PubAckPacket(packet_id, reason_code=code))

    def cut(self):
        self.writer.transport.abort()


async def answer_all(connection, packet):
    """Behave: acknowledge everything."""
    answer_now(connection, packet)


def answer_now(connection, packet):
    """Acknowledge one packet."""
    if isinstance(packet, PublishPacket):
        if packet.qos.value == 1:
            connection.settle(packet.packet_id)
        elif packet.qos.value == 2:
            connection.say(PubRecPacket(packet.packet_id))
    elif isinstance(packet, PubRelPacket):
        connection.open_ids.discard(packet.packet_id)
        connection.say(PubCompPacket(packet.packet_id))


class FakeBroker:
    """Listens on a free port; `connacks[i]` answers connection i, the last one all others.

    A connack of None is never sent. `behave(connection, packet)` is called for each packet after
    CONNECT, PINGREQ is answered here unless `pong` is False.
    """

    def __init__(
        self,
        behave: Callable[[Connection, object], Awaitable[None]] = answer_all,
        connacks: tuple = (ConnAckPacket(),),
        pong: bool = True,
    ):
        self.behave, self.connacks, self.pong = behave, connacks, pong
        self.connections: list[Connection] = []
        self.news = asyncio.Event()

    @property
    def url(self):
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def ids(self):
        """The message ids of all PUBLISH packets, over all connections, in order."""
        return [message_id(p) for c in self.connections for p in c.publishes]

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for connection in self.connections:
            connection.cut()
        await asyncio.gather(*(c.ended.wait() for c in self.connections))
        await self.server.wait_closed()

    async def until(self, condition, timeout_s=45):
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def _serve(self, reader, writer):
        connection = Connection(len(self.connections), writer)
        self.connections.append(connection)
        rest = b""
        try:
            while data := await reader.read(65536):
                rest += data
                while rest:
                    try:
                        packet, size = mqtt5.read(memoryview(rest))
                    except IndexError:
                        break
                    rest = rest[size:]
                    await self._take(connection, packet)
                    self.news.set()
        except OSError:
            pass
        finally:
            writer.close()
            connection.ended.set()
            self.news.set()

    async def _take(self, connection, packet):
        if isinstance(packet, ConnectPacket):
            connection.connect = packet
            answer = self.connacks[min(connection.number, len(self.connacks) - 1)]
            if answer is not None:
                connection.say(answer)
            return
        connection.packets.append(packet)
        if isinstance(packet, PingReqPacket):
            if self.pong:
                connection.say(PingRespPacket())
            return
        if isinstance(packet, DisconnectPacket):
            return
        if isinstance(packet, PublishPacket) and packet.packet_id is not None:
            connection.open_ids.add(packet.packet_id)
            connection.open_most = max(connection.open_most, len(connection.open_ids))
        await self.behave(connection, packet)
