"""The byte side of an AMQP 0-9-1 connection: framing, write pressure, the end of it.

Confirms are counted in millions and are read by hand; everything else goes through the codec.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from pamqp import body, frame, header, heartbeat
from pamqp.base import Frame
from pamqp.exceptions import PAMQPException

from iotsim.publishers.base import Loss
from iotsim.transport.addresses import failure_text

CHANNEL = 1
FRAME_MAX = 131_072
WRITE_HIGH_BYTES = 256 * 1024
WRITE_LOW_BYTES = 64 * 1024
GREETING = b"AMQP\x00\x00\x09\x01"
_HEAD = struct.Struct(">BHI")
_ACK = struct.Struct(">IQB")
_ACK_METHOD, _NACK_METHOD = 60 << 16 | 80, 60 << 16 | 120
_END = 0xCE
_LINGER = struct.pack("ii", 1, 0)

Received: TypeAlias = Frame | header.ContentHeader | body.ContentBody
Confirm: TypeAlias = tuple[int, bool, bool]  # delivery tag, all up to it, taken or not


class Owner(Protocol):
    """Who is told what happens on a wire."""

    def confirmed(self, confirms: Sequence[Confirm]) -> None:
        """Take what the broker acknowledges or rejects, in its order."""

    def received(self, found: Received) -> None:
        """Take any other frame but a heartbeat."""

    def gone(self, loss: Loss) -> None:
        """Take the end of the wire; it comes once."""

    def writable(self) -> None:
        """Take the news that the transport has room again."""


class Wire(asyncio.Protocol):
    """One TCP or TLS connection."""

    def __init__(self, owner: Owner) -> None:
        self.paused = False
        self.heard = False
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
        """Cut bytes into frames and hand them on."""
        self.heard = True
        whole = self._rest + data if self._rest else data
        if self._first and len(whole) >= 8:
            self._first = False
            if whole[0] != 1:
                self._end(Loss(_alien(whole)))
                return
        confirms: list[Confirm] = []
        position, size, problem = 0, len(whole), ""
        while size - position >= 8 and self._owner is not None:
            kind, _, length = _HEAD.unpack_from(whole, position)
            stop = position + 8 + length
            if length > FRAME_MAX:
                problem = "a frame from the broker over 128 kB"
                break
            if stop > size:
                break
            if whole[stop - 1] != _END:
                problem = "malformed frame from the broker"
                break
            if kind == 1 and length == 13:
                method, tag, bits = _ACK.unpack_from(whole, position + 7)
                if method in (_ACK_METHOD, _NACK_METHOD):
                    confirms.append((tag, bits & 1 == 1, method == _ACK_METHOD))
                    position = stop
                    continue
            if confirms:
                self._owner.confirmed(confirms)
                confirms = []
            problem = self._pass_on(whole[position:stop])
            if problem:
                break
            position = stop
        self._rest = whole[position:]
        if confirms and self._owner is not None:
            self._owner.confirmed(confirms)
        if problem:
            self._end(Loss(problem))

    def _pass_on(self, data: bytes) -> str:
        try:
            found = frame.unmarshal(data)[2]
        except (PAMQPException, ValueError, struct.error) as error:
            return f"malformed frame from the broker ({type(error).__name__})"
        if isinstance(found, header.ProtocolHeader):
            return "a protocol header in the midst of frames"
        if not isinstance(found, heartbeat.Heartbeat) and self._owner is not None:
            self._owner.received(found)
        return ""

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
        # A broker says what it minds before it closes: a bare close is no message's fault.
        self.closed.set()
        self._end(Loss("the peer closed the connection" if exc is None else failure_text(exc)))

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport; never waits."""
        if self._transport is not None and data:
            self._transport.write(data)

    def say(self, found: Frame, channel: int = 0) -> None:
        """Write one method."""
        self.write(frame.marshal(found, channel))

    def end(self) -> None:
        """Close the connection once everything is written; the owner hears nothing more."""
        self._owner = None
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now; the owner hears nothing more."""
        self._owner = None
        self._abort()

    def _abort(self) -> None:
        # With a reset the peer forgets what it has not read: a broker that blocks us would still
        # take all of it in when it comes to, beside what is sent again meanwhile.
        if self._transport is None or self.closed.is_set():
            return
        ours = self._transport.get_extra_info("socket")
        if ours is not None and ours.fileno() >= 0:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self._transport.abort()

    def _end(self, loss: Loss) -> None:
        owner, self._owner = self._owner, None
        self._abort()
        if owner is not None:
            owner.gone(loss)


def _alien(data: bytes) -> str:
    if data.startswith(b"AMQP"):
        version = ".".join(str(n) for n in data[5:8])
        return f"it does not speak AMQP 0-9-1, but AMQP {version}"
    return f"it does not speak AMQP: it sent {data[:16]!r}"
