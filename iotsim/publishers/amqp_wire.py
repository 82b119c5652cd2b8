"""The byte side of an AMQP 0-9-1 connection: framing, write pressure, the end of it.

Confirms are counted in millions and are read by hand; everything else goes through the codec.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from pamqp import body, frame, header, heartbeat
from pamqp.base import Frame
from pamqp.exceptions import PAMQPException

from iotsim.publishers import wire
from iotsim.publishers.base import Loss

CHANNEL = 1
FRAME_MAX = 131_072
GREETING = b"AMQP\x00\x00\x09\x01"
_HEAD = struct.Struct(">BHI")
_ACK = struct.Struct(">IQB")
_ACK_METHOD, _NACK_METHOD = 60 << 16 | 80, 60 << 16 | 120
_END = 0xCE
_LINGER = struct.pack("ii", 1, 0)

Received: TypeAlias = Frame | header.ContentHeader | body.ContentBody
Confirm: TypeAlias = tuple[int, bool, bool]  # delivery tag, all up to it, taken or not


class Owner(wire.Owner, Protocol):
    """Who is told what happens on an AMQP wire."""

    def confirmed(self, confirms: Sequence[Confirm]) -> None:
        """Take what the broker acknowledges or rejects, in its order."""

    def received(self, found: Received) -> None:
        """Take any other frame but a heartbeat."""



class Wire(wire.Wire[Owner]):
    """One TCP or TLS connection."""

    # A broker says what it minds before it closes: a bare close is no message's fault.
    CUT = "other"

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self.heard = False
        self._rest = b""
        self._first = True

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

    def say(self, found: Frame, channel: int = 0) -> None:
        """Write one method."""
        self.write(frame.marshal(found, channel))

    def end(self) -> None:
        """Close the connection once everything is written; the owner hears nothing more."""
        self._owner = None
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        # With a reset the peer forgets what it has not read: a broker that blocks us would still
        # take all of it in when it comes to, beside what is sent again meanwhile.
        if self._transport is None or self.closed.is_set():
            return
        ours = self._transport.get_extra_info("socket")
        if ours is not None and ours.fileno() >= 0:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self._transport.abort()


def _alien(data: bytes) -> str:
    if data.startswith(b"AMQP"):
        version = ".".join(str(n) for n in data[5:8])
        return f"it does not speak AMQP 0-9-1, but AMQP {version}"
    return f"it does not speak AMQP: it sent {data[:16]!r}"
