"""PUBLISH packets as bytes, many at once: half of what one object of a codec for each costs.

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
HEADER_BYTES_MAX = 5
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


_VARINTS = [varint(n) for n in range(4096)]
_LENGTHS = [n.to_bytes(2, "big") for n in range(256)]
_ID = b"\x26\x00\x02id"  # the user property "id"
_IDS = [_ID + size for size in _LENGTHS]
_SENT = b"\x26\x00\x04sent"


def odd(items: Sequence[Item]) -> bool:
    """Return whether there may be anything in topics or ids that cannot be sent."""
    topics = [item[0] for item in items]
    text = "".join(topics + [item[2] for item in items])
    if not text.isascii() or "+" in text or "#" in text or not all(topics):
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
        self, items: Sequence[Item], numbers: Sequence[int], sent: str = ""
    ) -> tuple[bytes, int]:
        """Return packets in one piece, and the size of the largest or more.

        Parameters
        ----------
        items : sequence of (topic, payload, id, time)
            With nothing `odd` in them.
        numbers : sequence of int
            Their packet ids; not looked at for QoS 0.
        sent : str
            The user property "sent"; none where it is empty.
        """
        labels: Iterable[bytes] = repeat(b"")
        if self._qos:
            labels = np.array(numbers, ">u2").view("V2").tolist()
        try:
            parts, largest = (self._with_id if self._properties else self._plain)(
                items, labels, _stamp(sent)
            )
        except IndexError:  # beyond the tables
            whole = [self.frame(*one, sent=sent) for one in zip(items, numbers, strict=True)]
            return b"".join(whole), max(map(len, whole))
        return b"".join(parts), largest + HEADER_BYTES_MAX

    def _with_id(
        self, items: Iterable[Item], labels: Iterable[bytes], stamp: bytes
    ) -> tuple[list[bytes], int]:
        parts: list[bytes] = []
        add, head = parts.extend, self._head
        largest, more = 0, 7 + len(stamp)
        fixed = 3 + more + (2 if self._qos else 0)
        for (topic, payload, ident, _), label in zip(items, labels, strict=False):
            named, marked = len(topic), len(ident)
            inner = marked + more
            size = fixed + named + marked + len(payload)
            if inner > 127:  # its length takes two bytes
                size += 1
            if size > largest:
                largest = size
            add((head, _VARINTS[size], _LENGTHS[named], topic.encode(), label, _VARINTS[inner],
                 _IDS[marked], ident.encode(), stamp, payload))
        return parts, largest

    def _plain(
        self, items: Iterable[Item], labels: Iterable[bytes], _stamp: bytes
    ) -> tuple[list[bytes], int]:
        parts: list[bytes] = []
        add, head = parts.extend, self._head
        largest, fixed = 0, 2 + (2 if self._qos else 0)
        for (topic, payload, _, _), label in zip(items, labels, strict=False):
            named = len(topic)
            size = fixed + named + len(payload)
            if size > largest:
                largest = size
            add((head, _VARINTS[size], _LENGTHS[named], topic.encode(), label, payload))
        return parts, largest

    def frame(self, item: Item, number: int, *, again: bool = False, sent: str = "") -> bytes:
        """Return one packet, whatever its lengths; `again` if it was sent before (DUP)."""
        name, payload = item[0].encode(), item[1]
        body = _length(name) + name
        if self._qos:
            body += number.to_bytes(2, "big")
        if self._properties:
            mark = item[2].encode()
            inner = _ID + _length(mark) + mark + _stamp(sent)
            body += varint(len(inner)) + inner
        head = self._again if again and self._qos else self._head
        return b"".join((head, varint(len(body) + len(payload)), body, payload))


def _stamp(sent: str) -> bytes:
    return _SENT + _length(sent.encode()) + sent.encode() if sent else b""


def _length(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big")
