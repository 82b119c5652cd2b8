"""PUBLISH packets as bytes, many at once: a sixth of what one object of a codec for each costs.

The codec is the oracle of the tests. What stands in a topic or an id is looked at for a whole
batch; only where something is odd in it, each message is looked at by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np

from iotsim.publishers.base import Item

PACKET_BYTES_MAX = 268_435_455 + 5  # what the protocol can say
TEXT_BYTES_MAX = 65_535
FEW = 16  # messages, for which numpy takes longer than a plain look
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def varint(number: int) -> bytes:
    """Return a variable byte integer.

    Examples
    --------
    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while True:
        number, digit = divmod(number, 128)
        out.append(digit | (128 if number else 0))
        if not number:
            return bytes(out)


_VARINTS = [varint(n) for n in range(2048)]
_LENGTHS = [n.to_bytes(2, "big") for n in range(256)]
_IDS = [b"\x26\x00\x02id" + size for size in _LENGTHS]  # the user property "id"
_SENT = b"\x26\x00\x04sent"


def odd(items: Sequence[Item]) -> bool:
    """Return whether there may be anything in topics or ids that cannot be sent."""
    text = "".join([part for item in items for part in (item[0], item[2])])
    if not text.isascii() or "+" in text or "#" in text or not all(item[0] for item in items):
        return True
    if len(items) < FEW:
        return not text.isprintable()
    signs = np.frombuffer(text.encode(), np.uint8)
    return bool(signs.min() < 0x20 or signs.max() > 0x7E)


def why_not(topic: str, ident: str) -> str:
    """Return why a message cannot be sent under such names, or nothing."""
    if not topic:
        return "empty topic"
    if "#" in topic or "+" in topic:
        return "wildcard in the topic"
    if _UNPRINTABLE.search(topic):
        return "control character or lone surrogate in the topic"
    if len(topic.encode()) > TEXT_BYTES_MAX:
        return "topic over 65,535 bytes"
    if _UNPRINTABLE.search(ident) or len(ident.encode()) > TEXT_BYTES_MAX:
        return "message id cannot be a user property"
    return ""


class Framer:
    """Writes PUBLISH packets of one kind.

    Parameters
    ----------
    qos : {0, 1, 2}
    retain : bool
    properties : bool
        Whether there are any: in MQTT 5, where they hold the message id.
    """

    def __init__(self, qos: int, retain: bool, *, properties: bool) -> None:
        self._head = bytes((0x30 | qos << 1 | retain,))
        self._again = bytes((0x38 | qos << 1 | retain,))
        self._qos, self._properties = qos, properties

    def frames(
        self,
        items: Iterable[Item],
        numbers: Iterable[int],
        *,
        again: bool = False,
        sent: str = "",
    ) -> tuple[list[bytes], int]:
        """Return the parts of one packet after the other, to be joined, and the largest size.

        Parameters
        ----------
        items : iterable of (topic, payload, id, time)
            With nothing odd in them, or looked at by `why_not`.
        numbers : iterable of int
            Their packet ids; not looked at for QoS 0.
        again : bool
            Whether they were sent before (DUP).
        sent : str
            Of the user property "sent"; none where it is empty.
        """
        parts: list[bytes] = []
        add = parts.extend
        head = self._again if again and self._qos else self._head
        stamp = _SENT + _length(len(sent)) + sent.encode() if sent and self._properties else b""
        fixed = 2 + (2 if self._qos else 0)
        largest = 0
        for (topic, payload, ident, _), number in zip(items, numbers, strict=False):
            name = topic.encode()
            count = len(name)
            size = fixed + count + len(payload)
            if self._properties:
                mark = ident.encode()
                inner = 7 + len(mark) + len(stamp)
                around = _VARINTS[inner] if inner < 2048 else varint(inner)
                size += len(around) + inner
            if size > largest:
                largest = size
            add((
                head,
                _VARINTS[size] if size < 2048 else varint(size),
                _LENGTHS[count] if count < 256 else _length(count),
                name,
            ))
            if self._qos:
                parts.append(number.to_bytes(2, "big"))
            if self._properties:
                add((around, _id_key(mark), mark, stamp, payload))
            else:
                parts.append(payload)
        return parts, 1 + len(varint(largest)) + largest

    def frame(self, item: Item, number: int, *, again: bool = False, sent: str = "") -> bytes:
        """Return one packet."""
        return b"".join(self.frames((item,), repeat(number), again=again, sent=sent)[0])


def _length(count: int) -> bytes:
    return count.to_bytes(2, "big")


def _id_key(mark: bytes) -> bytes:
    return _IDS[len(mark)] if len(mark) < 256 else b"\x26\x00\x02id" + _length(len(mark))
