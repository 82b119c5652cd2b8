"""The byte side of an MQTT 5 connection: framing, write pressure, the end of it."""

from __future__ import annotations

import asyncio.trsock
import socket
from collections.abc import Callable
from typing import Protocol, TypeAlias

import mqtt5
import numpy as np

from iotsim.publishers import wire
from iotsim.publishers.base import Loss

REST_BYTES_MAX = 1024 * 1024
_CONNACK = 0x20
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux
_NO_SUBSCRIBERS = 16
Read: TypeAlias = Callable[[memoryview], tuple[object, int]]


class Owner(wire.Owner, Protocol):
    """Who is told what happens on an MQTT wire."""

    def settled(self, packet_ids: list[int]) -> None:
        """Take a run of PUBACKs without complaint."""

    def received(self, packets: list[object]) -> None:
        """Take whole packets."""


def plain_acks(data: bytes) -> tuple[list[int], int]:
    """Return the packet ids of PUBACKs that fill the data, and how many bytes they take.

    Almost all that a publisher hears is runs of equal PUBACKs, 4 bytes each (success) or 5
    (success, but nobody listens); read at once they cost a tenth. The codec reads the rest.

    Examples
    --------
    >>> plain_acks(bytes.fromhex("40020001 40020002 4002"))
    ([1, 2], 8)
    """
    for size, head in ((4, b"\x40\x02"), (5, b"\x40\x03")):
        whole = len(data) // size * size
        if not whole or data[:2] != head:
            continue
        rows = np.frombuffer(data, np.uint8, whole).reshape(-1, size)
        alike = (rows[:, 0] == head[0]) & (rows[:, 1] == head[1])
        if size == 5:
            alike &= rows[:, 4] == _NO_SUBSCRIBERS
        if alike.all():
            ids = rows[:, 2].astype(np.int64) << 8 | rows[:, 3]
            return ids.tolist(), whole
    return [], 0


def read(buffer: memoryview) -> tuple[object, int]:
    """Return the first packet and its length; IndexError if it is not whole yet."""
    return mqtt5.read(buffer)


class Wire(wire.Wire[Owner]):
    """One TCP or TLS connection; `read` cuts its packets."""

    def __init__(self, owner: Owner, read: Read = read) -> None:
        super().__init__(owner)
        self._read = read
        self._rest = b""
        self._first = True
        self._socket: asyncio.trsock.TransportSocket | None = None

    def data_received(self, data: bytes) -> None:
        """Cut bytes into packets and hand them on."""
        if self._owner is None:
            return
        if _QUICKACK is not None and self._socket is not None:
            # A broker with Nagle's algorithm holds its answers back until the last is acknowledged.
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        whole = self._rest + data if self._rest else data
        ids, position = plain_acks(whole) if len(whole) > 32 else ([], 0)
        if ids:
            self._owner.settled(ids)
        buffer = memoryview(whole)
        if self._first and len(buffer):
            self._first = False
            if buffer[0] != _CONNACK:
                self._end(Loss(f"it does not speak MQTT: it sent {bytes(buffer[:16])!r}"))
                return
        packets: list[object] = []
        size, problem = len(buffer), ""
        while position < size:
            try:
                packet, length = self._read(buffer[position:])
            except IndexError:
                break
            except ValueError as error:
                problem = f"malformed packet from the broker ({error})"
                break
            packets.append(packet)
            position += length
        self._rest = bytes(buffer[position:])
        if packets and self._owner is not None:
            self._owner.received(packets)
        if len(self._rest) > REST_BYTES_MAX:
            problem = "a packet from the broker over 1 MB"
        if problem:
            self._end(Loss(problem))

    def answer_quickly(self) -> None:
        """Acknowledge the peer's TCP segments at once (Linux)."""
        if _QUICKACK is not None and self._transport is not None:
            self._socket = self._transport.get_extra_info("socket")
