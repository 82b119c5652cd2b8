"""Messages as AMQP frames, and what the broker is known not to take.

The three frames of a message are counted in millions and are written by hand: what messages
have in common is made once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TypeAlias

from pamqp import commands

from iotsim.clock import monotonic, stamp_us
from iotsim.publishers.amqp import AmqpPublisher
from iotsim.publishers.amqp_wire import CHANNEL, FRAME_MAX
from iotsim.publishers.base import Item

DENIED_S = 60.0  # after which a topic that was denied is tried again
TOPICS_MAX = 200_000
SHORT_BYTES_MAX = 255
DENIED = "we may not write to its topic (403)"
SIZE_MAX = 1 << 29  # RabbitMQ can be told to take so much, and not more

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_DENIED = re.compile(r"access to topic '(.*)' in exchange '", re.DOTALL)
_TOO_LARGE = re.compile(r"message size (\d+) is larger than (?:configured )?max size (\d+)")
_PUBLISH_METHOD = (60, 40)
_PUBLISH = struct.Struct(">BHIHHH")
_CONTENT = struct.Struct(">BHIHHQH")
_BODY = struct.Struct(">BHI")
_END = b"\xce"
_PROPERTIES = 0x9088  # content type, delivery mode, message id, app id
_HEADERS = 0x2000

# What is wrong with a message, and whether one is it.
Culprit: TypeAlias = tuple[str, Callable[[Item], bool]]


class Printer:
    """Makes frames of messages for one publisher's exchange."""

    def __init__(self, publisher: AmqpPublisher) -> None:
        self.frame_max = FRAME_MAX
        self._separator = publisher.separator
        self._stamp = publisher.tracing.stamp
        self._exchange = _short(publisher.exchange.encode())
        self._last = bytes((publisher.mandatory,)) + _END
        self._lead = _short(b"application/json")
        self._mode = b"\x02" if publisher.persistent else b"\x01"
        self._app = _short(b"iotsim") + _END
        self._keys: dict[str, bytes | str] = {}  # topic → routing key, or why there is none
        self._denied: dict[bytes, float] = {}  # routing key → until (s)
        self._size_max = SIZE_MAX

    def printed(self, item: Item) -> bytes | str:
        """Return the frames of a message, or in a few words why it cannot be one."""
        topic, payload, ident, _ = item
        key = self._keys.get(topic)
        if key is None:
            key = self._key_of(topic)
        if isinstance(key, str):
            return key
        if not ident.isprintable() and _UNPRINTABLE.search(ident):
            return "control character or lone surrogate in the message id"
        name = ident.encode()
        if len(name) > SHORT_BYTES_MAX:
            return f"message id over {SHORT_BYTES_MAX} bytes"
        if len(payload) > self._size_max:
            return self._too_large
        if self._denied and monotonic() < self._denied.get(key, 0.0):
            return DENIED
        sent = str(stamp_us()).encode() if self._stamp else b""
        return self.frames(key, name, payload, sent)

    def frames(self, key: bytes, ident: bytes, payload: bytes, sent: bytes = b"") -> bytes:
        """Return the frames of one message.

        Parameters
        ----------
        key, ident : bytes
            Routing key and message id, 255 bytes at most.
        payload : bytes
        sent : bytes
            Goes into a header of that name; empty: none.
        """
        exchange, size = self._exchange, len(payload)
        properties = b"".join((
            self._lead, _table(sent) if sent else b"", self._mode,
            len(ident).to_bytes(1, "big"), ident, self._app,
        ))  # fmt: skip
        flags = _PROPERTIES | _HEADERS if sent else _PROPERTIES
        parts = [
            _PUBLISH.pack(1, CHANNEL, 8 + len(exchange) + len(key), *_PUBLISH_METHOD, 0),
            exchange, len(key).to_bytes(1, "big"), key, self._last,
            _CONTENT.pack(2, CHANNEL, 13 + len(properties), 60, 0, size, flags), properties,
        ]  # fmt: skip
        most = self.frame_max - 8
        for start in range(0, size, most):
            part = payload[start : start + most] if size > most else payload
            parts += (_BODY.pack(3, CHANNEL, len(part)), part, _END)
        return b"".join(parts)

    def key(self, item: Item) -> str:
        """Return the routing key of a message."""
        return item[0].replace("/", self._separator)

    def _key_of(self, topic: str) -> bytes | str:
        made: bytes | str = "control character or lone surrogate in the topic"
        if not _UNPRINTABLE.search(topic):
            made = topic.replace("/", self._separator).encode()
            if len(made) > SHORT_BYTES_MAX:
                made = f"routing key over {SHORT_BYTES_MAX} bytes"
        if len(self._keys) >= TOPICS_MAX:
            self._keys.clear()
        self._keys[topic] = made
        return made

    # -- what the broker does not take ----------------------------------------------------------

    def forget_denied(self) -> None:
        """Let every topic be tried again."""
        self._denied.clear()

    def culprit(self, close: commands.Channel.Close) -> Culprit | None:
        """Return what may be wrong with one message, and how to tell it; None if nothing is said.

        From then on messages like it are not printed: for a minute those to a topic that may
        not be written to, for ever those that are too large.
        """
        text = close.reply_text or ""
        if (close.class_id, close.method_id) != _PUBLISH_METHOD:
            return None
        if found := _DENIED.search(text):
            key = found[1]
            if len(self._denied) >= TOPICS_MAX:
                self._denied.clear()
            self._denied[key.encode()] = monotonic() + DENIED_S
            return DENIED, lambda item: self.key(item) == key
        if found := _TOO_LARGE.search(text):
            size, self._size_max = int(found[1]), int(found[2])
            return self._too_large, lambda item: len(item[1]) == size
        return None

    @property
    def _too_large(self) -> str:
        return f"larger than the broker takes ({self._size_max:,} bytes)"


def _short(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def _table(sent: bytes) -> bytes:
    entry = b"\x04sentS" + len(sent).to_bytes(4, "big") + sent
    return len(entry).to_bytes(4, "big") + entry
