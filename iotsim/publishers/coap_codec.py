"""CoAP messages as bytes (RFC 7252 §3): what a client of ours says, and what it may hear.

Nothing here knows a socket. The tests hold it against aiocoap and libcoap, which share no code
with it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

CON, NON, ACK, RST = 0, 1, 2, 3
EMPTY = 0
METHODS = {"POST": 2, "PUT": 3}
URI_PATH, CONTENT_FORMAT, MAX_AGE, URI_QUERY = 11, 12, 14, 15
JSON = 50
SEGMENT_BYTES_MAX = 255
TOKEN_BYTES = 4
NAMES = {
    "4.00": "Bad Request", "4.01": "Unauthorized", "4.02": "Bad Option", "4.03": "Forbidden",
    "4.04": "Not Found", "4.05": "Method Not Allowed", "4.06": "Not Acceptable",
    "4.08": "Request Entity Incomplete", "4.09": "Conflict", "4.12": "Precondition Failed",
    "4.13": "Request Entity Too Large", "4.15": "Unsupported Content-Format",
    "4.22": "Unprocessable Entity", "4.29": "Too Many Requests", "5.00": "Internal Server Error",
    "5.01": "Not Implemented", "5.02": "Bad Gateway", "5.03": "Service Unavailable",
    "5.04": "Gateway Timeout", "5.05": "Proxying Not Supported",
}  # fmt: skip
_HEAD = struct.Struct("!BBH")
PAYLOAD_FOLLOWS = b"\xff"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

Option: TypeAlias = tuple[int, bytes]


class NotCoapError(ValueError):
    """Bytes that are no CoAP message."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One message of the peer's, without its payload.

    Attributes
    ----------
    kind : int
        CON, NON, ACK or RST.
    code : int
        Class in the upper three bits, detail in the lower five.
    number : int
        The message id.
    token : bytes
    options : tuple of (number, value)
    """

    kind: int
    code: int
    number: int
    token: bytes
    options: tuple[Option, ...] = ()

    @property
    def max_age_s(self) -> int | None:
        """What the Max-Age option says, or None."""
        for number, value in self.options:
            if number == MAX_AGE:
                return int.from_bytes(value, "big")
        return None


def head(kind: int, code: int, number: int, token: bytes = b"") -> bytes:
    """Return how a message begins; without token and code it is the whole of an empty one.

    Examples
    --------
    >>> head(CON, EMPTY, 7).hex()
    '40000007'
    """
    return _HEAD.pack(0x40 | kind << 4 | len(token), code, number) + token


def options_of(options: Iterable[Option]) -> bytes:
    r"""Return options as bytes; they must be in order of their numbers.

    Examples
    --------
    >>> options_of([(URI_PATH, b"a"), (URI_PATH, b"b")])
    b'\xb1a\x01b'
    """
    parts: list[bytes] = []
    last = 0
    for number, value in options:
        delta, delta_more = _extended(number - last)
        size, size_more = _extended(len(value))
        parts += [bytes([delta << 4 | size]), delta_more, size_more, value]
        last = number
    return b"".join(parts)


def request_options(path: Iterable[bytes], query: Iterable[bytes]) -> bytes:
    """Return what stands behind the token of a request with JSON."""
    options: list[Option] = [(URI_PATH, segment) for segment in path]
    options.append((CONTENT_FORMAT, bytes([JSON])))
    options += [(URI_QUERY, part) for part in query]
    return options_of(options)


def topic_path(topic: str) -> list[bytes]:
    """Return a topic as segments of a path; raises ValueError with the reason.

    Examples
    --------
    >>> topic_path("devices/d-1/telemetry")
    [b'devices', b'd-1', b'telemetry']
    """
    if _UNPRINTABLE.search(topic):
        raise ValueError("control character or lone surrogate in the topic")
    segments = [part.encode() for part in topic.removeprefix("/").split("/")]
    for segment in segments:
        if not segment or segment in (b".", b".."):
            raise ValueError("a level of the topic is empty, '.' or '..'")
        if len(segment) > SEGMENT_BYTES_MAX:
            raise ValueError("a level of the topic is over 255 bytes")
    return segments


def read(data: bytes) -> Heard:
    """Return the message that a datagram holds; raises NotCoapError."""
    if len(data) < _HEAD.size:
        raise NotCoapError("shorter than a header")
    first, code, number = _HEAD.unpack_from(data)
    size = first & 15
    if first >> 6 != 1 or size > 8 or len(data) < 4 + size:
        raise NotCoapError("another version, or a token too long")
    if code == EMPTY and len(data) > 4:
        raise NotCoapError("an empty message that is not empty")
    token = data[4 : 4 + size]
    return Heard(first >> 4 & 3, code, number, token, tuple(_read_options(data, 4 + size)))


def code_text(code: int) -> str:
    """Return a code as it is written, with its name.

    Examples
    --------
    >>> code_text(0x84)
    '4.04 Not Found'
    """
    number = f"{code >> 5}.{code & 31:02d}"
    return f"{number} {NAMES.get(number, '')}".strip()


def _extended(value: int) -> tuple[int, bytes]:
    if value < 13:
        return value, b""
    if value < 269:
        return 13, bytes([value - 13])
    return 14, (value - 269).to_bytes(2, "big")


def _read_options(data: bytes, place: int) -> list[Option]:
    found: list[Option] = []
    number = 0
    while place < len(data) and data[place] != 0xFF:
        first, place = data[place], place + 1
        delta, place = _read_extended(first >> 4, data, place)
        size, place = _read_extended(first & 15, data, place)
        number += delta
        if place + size > len(data):
            raise NotCoapError("an option that is cut off")
        found.append((number, data[place : place + size]))
        place += size
    if place == len(data) - 1:
        raise NotCoapError("a payload marker without a payload")
    return found


def _read_extended(value: int, data: bytes, place: int) -> tuple[int, int]:
    if value < 13:
        return value, place
    width = value - 12
    if value == 15 or place + width > len(data):
        raise NotCoapError("an option that is cut off")
    more = int.from_bytes(data[place : place + width], "big")
    return more + (13 if value == 13 else 269), place + width
