"""What the byte sides of all stream protocols have in common: write pressure, and the end of it."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Generic, Protocol, TypeVar

from iotsim.publishers.base import Blame, Loss
from iotsim.transport.addresses import failure_text

WRITE_HIGH_BYTES = 256 * 1024
WRITE_LOW_BYTES = 64 * 1024


class Owner(Protocol):
    """Who is told what happens on a wire."""

    def gone(self, loss: Loss) -> None:
        """Take the end of the wire; it comes once."""

    def writable(self) -> None:
        """Take the news that the transport has room again."""


O = TypeVar("O", bound=Owner)  # noqa: E741


class Wire(asyncio.Protocol, Generic[O]):
    """One TCP or TLS connection; what its bytes mean is up to a protocol's own class.

    Parameters
    ----------
    owner : Owner

    Attributes
    ----------
    paused : bool
        Whether the transport holds more than 256 kB.
    closed : asyncio.Event
    """

    CUT: ClassVar[Blame] = "cut"  # what a bare close says of our messages

    def __init__(self, owner: O) -> None:
        self.paused = False
        self.closed = asyncio.Event()
        self._owner: O | None = owner
        self._transport: asyncio.Transport | None = None

    # -- called by asyncio ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what the transport holds."""
        assert isinstance(transport, asyncio.Transport)
        self._carry(transport)
        if self._owner is None:  # given up while connecting
            transport.abort()

    def _carry(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(WRITE_HIGH_BYTES, WRITE_LOW_BYTES)
        self._transport = transport

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
        self._end(Loss(why, self.CUT))

    # -- called by the owner ----------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether what is written may arrive; soon after it ends the owner is told."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport; never waits."""
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def close(self, farewell: bytes = b"") -> None:
        """Write a last packet, flush, and return when the connection is closed."""
        self._owner = None
        if self._transport is not None:
            self.write(farewell)
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
