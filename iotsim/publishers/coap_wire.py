"""One UDP endpoint of ours, connected to one peer: datagrams out, datagrams in, errors told."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class Listener(Protocol):
    """Who hears what a wire has to say."""

    def heard(self, data: bytes) -> None:
        """Take a datagram of the peer's."""

    def failed(self, error: Exception) -> None:
        """Take what the operating system says, such as that nobody listens there."""

    def roomy(self) -> None:
        """Take the news that the socket has room again."""


class Wire(asyncio.DatagramProtocol):
    """A datagram endpoint that tells its listener nothing more once it was ended."""

    def __init__(self, listener: Listener) -> None:
        self.paused = False
        self.waits_for = "its name is not found in time"
        self._listener: Listener | None = listener
        self._transport: Any = None
        self._ended = asyncio.Event()

    async def connect(self, host: str, port: int) -> None:
        """Bind a local port and fix the peer; raises OSError."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, remote_addr=(host, port))

    def send(self, data: bytes) -> None:
        """Hand one datagram to the socket."""
        if self._listener is not None and self._transport is not None:
            self._transport.sendto(data)

    def abort(self) -> None:
        """End at once."""
        self._listener = None
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """End when everything is handed over."""
        self._listener = None
        if self._transport is not None:
            self._transport.close()
            await self._ended.wait()

    # -- called by asyncio ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        self._transport = transport
        if self._listener is None:
            transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Take a datagram."""
        if self._listener is not None:
            self._listener.heard(data)

    def error_received(self, exc: Exception) -> None:
        """Take an error of the socket, an ICMP message among them."""
        # It may come while a datagram is being sent, of which it knows nothing.
        asyncio.get_running_loop().call_soon(self._tell, exc)

    def _tell(self, exc: Exception) -> None:
        if self._listener is not None:
            self._listener.failed(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the socket."""
        self._ended.set()
        if exc is not None and self._listener is not None:
            self._listener.failed(exc)

    def pause_writing(self) -> None:
        """Take the news that the socket's buffer is full."""
        self.paused = True

    def resume_writing(self) -> None:
        """Take the news that it has room."""
        self.paused = False
        if self._listener is not None:
            self._listener.roomy()
