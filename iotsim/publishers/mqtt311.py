"""MQTT 3.1.1 over the same session as MQTT 5: what differs are CONNECT, CONNACK, and no properties.

The broker of MQTT 3.1.1 cannot refuse a message: what it forbids it acknowledges, or ends the
connection for; the audit shows what it did not deliver. Nor does it say how many may be in flight.

Only QoS 2 gains by a session that outlives its connection (nothing is delivered twice). For that
QoS a session of an earlier process is thrown away at the start, since its packet ids would be
taken for ours, and our own at the end, since the broker might keep it for ever.
"""

from __future__ import annotations

import asyncio

from mqtt5 import ConnAckPacket, ConnAckReasonCode

from iotsim.errors import ConnectError
from iotsim.publishers.mqtt5_session import CLOSE_S, Mqtt5Link
from iotsim.publishers.mqtt5_wire import Wire, read
from iotsim.publishers.mqtt_frames import varint

WINDOWS = {0: 8192, 1: 256, 2: 20}  # by QoS; brokers keep a state of each with QoS 2, 20 or more
_DISCONNECT = b"\xe0\x00"
_CLEAN, _WILL, _WILL_RETAIN, _PASSWORD, _USERNAME = 0x02, 0x04, 0x20, 0x40, 0x80
_CODES = {
    0: ConnAckReasonCode.SUCCESS,
    1: ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
    2: ConnAckReasonCode.CLIENT_ID_NOT_VALID,
    3: ConnAckReasonCode.SERVER_UNAVAILABLE,
    4: ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
    5: ConnAckReasonCode.NOT_AUTHORIZED,
}


def read_311(buffer: memoryview) -> tuple[object, int]:
    """Return the first packet and its length, a CONNACK in the words of MQTT 5.

    Examples
    --------
    >>> read_311(memoryview(bytes.fromhex("20020005")))[0].reason_code.name
    'NOT_AUTHORIZED'
    """
    if buffer[0] != 0x20:
        return read(buffer)
    present, code = buffer[2], buffer[3]
    if buffer[1] != 2 or code not in _CODES:
        raise ValueError("no CONNACK of MQTT 3.1.1")
    return ConnAckPacket(session_present=present == 1, reason_code=_CODES[code]), 4


class Mqtt311Link(Mqtt5Link):
    """One MQTT 3.1.1 connection of a lane (a `Link`)."""

    properties = False
    read = staticmethod(read_311)

    async def open(self) -> int:
        """Connect, and return how many messages may be in flight."""
        if self._qos == 2 and not self._begun:
            await self._forget_session()
        return min(await super().open(), WINDOWS[self._qos])

    async def close(self) -> None:
        """Send DISCONNECT, flush and close, within a deadline."""
        await super().close()
        if self._qos == 2 and self._begun:
            try:
                async with asyncio.timeout(CLOSE_S / 2):
                    await self._forget_session()
            except (TimeoutError, ConnectError, OSError):
                pass  # the broker is away: it keeps the session as long as it likes

    async def _forget_session(self) -> None:
        wire = Wire(self, self.read)
        try:
            connack = await self._introduced(wire, self._connect(clean=True, will=False))
            self._agreed(connack)
        except BaseException as error:
            raise self._failed(wire, error) from None
        self._wire = None
        try:
            async with asyncio.timeout(CLOSE_S):
                await wire.close(_DISCONNECT)
        except TimeoutError:
            pass
        finally:
            wire.abort()

    def _connect_packet(self) -> bytes:
        return self._connect(clean=self._qos < 2)

    def _connect(self, *, clean: bool, will: bool = True) -> bytes:
        who = self._publisher.credentials
        flags = _CLEAN if clean else 0
        body = _text(self._client_id.encode())
        last = self._will if will else None
        if last is not None:
            flags |= _WILL | self._qos << 3 | (_WILL_RETAIN if last.retain else 0)
            body += _text(last.topic.encode()) + _text(last.payload or b"")
        if who.username or who.password:  # there is no password without a name
            flags |= _USERNAME
            body += _text(who.username.encode())
        if who.password:
            flags |= _PASSWORD
            body += _text(who.password.encode())
        head = b"\x00\x04MQTT\x04" + bytes((flags,))
        head += self._publisher.keepalive.to_bytes(2, "big")
        return b"\x10" + varint(len(head) + len(body)) + head + body

    def _farewell(self) -> bytes:
        return _DISCONNECT


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value
