"""The byte side of an MQTT 5 connection: framing, write pressure, the end of it."""

from __future__ import annotations

import asyncio
from typing import Protocol

import mqtt5

from iotsim.publishers.base import Loss
from iotsim.transport.addresses import failure_text

WRITE_HIGH_BYTES = 256 * 1024
WRITE_LOW_BYTES = 64 * 1024
REST_BYTES_MAX = 1024 * 1024
_CONNACK = 0x20


class Owner(Protocol):
    """Who is told what happens on a wire."""

    def received(self, packets: list[object]) -> None:
        """Take whole packets."""

    def gone(self, loss: Loss) -> None:
        """Take the end of the wire; it comes once."""

    def writable(self) -> None:
        """Take the news that the transport has room again."""


class Wire(asyncio.Protocol):
    """One TCP or TLS connection."""

    def __init__(self, owner: Owner) -> None:
        self.paused = False
        self.closed = asyncio.Event()
        self._owner: Owner | None = owner
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._first = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what the transport holds."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(WRITE_HIGH_BYTES, WRITE_LOW_BYTES)
        self._transport = transport
        if self._owner is None:  # given up while connecting
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Cut bytes into packets and hand them on."""
        if self._owner is None:
            return
        buffer = memoryview(self._rest + data if self._rest else data)
        if self._first and len(buffer):
            self._first = False
            if buffer[0] != _CONNACK:
                self._end(Loss(f"it does not speak MQTT: it sent {bytes(buffer[:16])!r}"))
                return
        packets: list[object] = []
        position, size = 0, len(buffer)
        problem = ""
        while position < size:
            try:
                packet, length = mqtt5.read(buffer[position:])
            except IndexError:
                break
            except ValueError as error:
                problem = f"malformed packet from the broker ({error})"
                break
            packets.append(packet)
            position += length
        self._rest = bytes(buffer[position:])
        if packets:
            self._owner.received(packets)
        if len(self._rest) > REST_BYTES_MAX:
            problem = "a packet from the broker over 1 MB"
        if problem:
            self._end(Loss(problem))

    def pause_writing(self) -> None:
        """Note that the transport holds more than 256 kB."""
        self.paused = True

    def resume_writing(self) -> None:
        """Note that it has room again."""
        self.paused = False
        if self._owner is not None:
            self._owner.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, unless it ended the connection itself."""
        self.closed.set()
        why = "the peer closed the connection" if exc is None else failure_text(exc)
        self._end(Loss(why, "cut"))

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport; never waits."""
        if self._transport is not None and data:
            self._transport.write(data)

    async def close(self, farewell: bytes) -> None:
        """Write a last packet, flush, and return when the connection is closed."""
        self._owner = None
        if self._transport is None:
            return
        self._transport.write(farewell)
        self._transport.close()
        await self.closed.wait()

    def abort(self) -> None:
        """End the connection now; the owner hears nothing more."""
        self._owner = None
        self._abort()

    def _abort(self) -> None:
        # asyncio calls connection_lost twice when a closed transport is aborted.
        if self._transport is not None and not self.closed.is_set():
            self._transport.abort()

    def _end(self, loss: Loss) -> None:
        owner, self._owner = self._owner, None
        self._abort()
        if owner is not None:
            owner.gone(loss)
