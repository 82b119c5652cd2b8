"""The byte side of a NATS connection: framing, write pressure, TLS, the end of it."""

from __future__ import annotations

import asyncio
import re
import ssl
from functools import cache
from typing import Any, Protocol

import orjson

from iotsim.publishers import wire
from iotsim.publishers.base import Loss

REST_BYTES_MAX = 4 * 1024 * 1024
TLS_S = 4.0
INBOX_SID = 1
_LINE_BYTES_MAX = 65_536  # the longest is INFO


@cache
def _patterns(inbox_bytes: int) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    # Almost all that a publisher to a stream hears is runs of its acknowledgements. What comes to
    # the first subscription has our inbox: so its length is enough, and is the same for many.
    ack = rb"MSG [^ ]{%d}\d+ %d +\d+\r\n\{\"stream\":\"[^\"\\]*\",[^}]*\}\r\n" % (
        inbox_bytes, INBOX_SID)
    return re.compile(rb"(?:%b)+" % ack), re.compile(rb"MSG [^ ]{%d}(\d+) " % inbox_bytes)


class Owner(wire.Owner, Protocol):
    """Who is told what happens on a NATS wire."""

    def informed(self, info: dict[str, Any]) -> None:
        """Take what the server says of itself; the first is its greeting."""

    def ponged(self) -> None:
        """Take the answer to the oldest PING without one."""

    def complained(self, text: str) -> None:
        """Take an error of the server's."""

    def settled(self, tokens: list[int], duplicates: int) -> None:
        """Take a run of publications that a stream has stored."""

    def answered(self, subject: str, headers: bytes, payload: bytes) -> None:
        """Take any other message to our inbox."""

    def delivered(
        self, sid: int, subject: str, reply: str, headers: bytes, payload: bytes
    ) -> None:
        """Take a message to another subject that we listen to; `reply` may be empty."""

    def read(self) -> None:
        """Take that all that has come is handed on."""


class Wire(wire.Wire[Owner]):
    """One TCP or TLS connection.

    Parameters
    ----------
    owner : Owner
    inbox : str
        Answers to `<inbox><token>` are what `settled` and `answered` are told of.
    """

    def __init__(self, owner: Owner, inbox: str) -> None:
        super().__init__(owner)
        self._rest = b""
        self._greeted = False
        self._acks, self._tokens = _patterns(len(inbox.encode()))

    # -- called by asyncio ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Cut bytes into what the server says and hand it on."""
        if self._owner is None:
            return
        whole = self._rest + data if self._rest else data
        position, problem = 0, ""
        try:
            while self._owner is not None and position < len(whole):
                following = self._next(whole, position)
                if following == position:
                    break
                position = following
        except (ValueError, IndexError):
            said = bytes(whole[position : position + 24])
            problem = f"it does not speak NATS: it sent {said!r}"
        self._rest = whole[position:]
        if self._owner is not None:
            self._owner.read()
        if len(self._rest) > REST_BYTES_MAX:
            problem = "a message from the server over 4 MB"
        if problem:
            self._end(Loss(problem))

    # -- what the server says ---------------------------------------------------------------------

    def _next(self, whole: bytes, position: int) -> int:
        # Hands on what stands at the position, and returns where the next begins: the same place
        # if it is not whole yet. ValueError if it is nothing that NATS has.
        owner = self._owner
        assert owner is not None
        run = self._acks.match(whole, position)
        if run is not None:
            tokens = [int(token) for token in self._tokens.findall(whole, position, run.end())]
            owner.settled(tokens, whole.count(b'"duplicate"', position, run.end()))
            return run.end()
        end = whole.find(b"\r\n", position, position + _LINE_BYTES_MAX)
        if end < 0:
            if len(whole) - position >= _LINE_BYTES_MAX or not self._plausible(whole, position):
                raise ValueError
            return position
        verb, _, rest = whole[position:end].partition(b" ")
        verb = verb.upper()
        if not self._greeted and verb not in (b"INFO", b"-ERR"):
            raise ValueError
        if verb in (b"MSG", b"HMSG"):
            return self._message(whole, position, end, rest)
        if verb == b"PONG":
            owner.ponged()
        elif verb == b"PING":
            self.write(b"PONG\r\n")
        elif verb == b"-ERR":
            owner.complained(rest.strip().strip(b"'").decode("utf-8", "replace"))
        elif verb == b"INFO":
            info = orjson.loads(rest)
            if not isinstance(info, dict):
                raise ValueError
            self._greeted = True
            owner.informed(info)
        elif verb != b"+OK":
            raise ValueError
        return end + 2

    def _plausible(self, whole: bytes, position: int) -> bool:
        return self._greeted or b"INFO -ERR".find(whole[position : position + 4]) >= 0

    def _message(self, whole: bytes, position: int, end: int, rest: bytes) -> int:
        # MSG subject sid [reply] size · HMSG subject sid [reply] head-size size
        words = rest.split()
        headed = whole[position : position + 1] in b"Hh"
        plain = 4 if headed else 3  # without a reply
        if len(words) not in (plain, plain + 1):
            raise ValueError
        sid = int(words[1])
        size, head = int(words[-1]), int(words[-2]) if headed else 0
        if not 0 <= head <= size:
            raise ValueError
        start = end + 2
        if len(whole) < start + size + 2:
            return position
        owner = self._owner
        assert owner is not None
        subject = words[0].decode("utf-8", "replace")
        headers, payload = whole[start : start + head], whole[start + head : start + size]
        if sid == INBOX_SID:
            owner.answered(subject, headers, payload)
        else:
            reply = words[2].decode("utf-8", "replace") if len(words) > plain else ""
            owner.delivered(sid, subject, reply, headers, payload)
        return start + size + 2

    # -- called by the owner ----------------------------------------------------------------------

    async def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Go on over TLS; raises OSError."""
        assert self._transport is not None
        made = await asyncio.get_running_loop().start_tls(
            self._transport, self, context, server_hostname=host, ssl_handshake_timeout=TLS_S
        )
        if made is None:
            raise ConnectionResetError
        self._carry(made)
