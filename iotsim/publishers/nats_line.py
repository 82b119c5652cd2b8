"""What else a NATS connection is good for: questions, publications, subjects to listen to.

A `Line` belongs to a link and outlives its connections. What it listens to is asked for again on
each new one before anything else is written there; questions end with the connection.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from iotsim.errors import BadValue, ConnectError
from iotsim.publishers.nats_frames import SUBJECT_BYTES_MAX
from iotsim.publishers.nats_wire import INBOX_SID, Wire

QUESTIONS_MAX = 4096  # without an answer, on one connection
ANSWER_S = 5.0
MARK = "q"  # of the subjects of answers, before their number
DENIED = "the server denies it"
NOBODY = "nobody answers there (no responders)"
NOT_CONNECTED = "not connected"
_NO_RESPONDERS = b"NATS/1.0 503"
_ODD = re.compile(r"[^!-~]|[*>]")

Heard: TypeAlias = Callable[[str, str, bytes, bytes], None]  # subject, reply, headers, payload
Barred: TypeAlias = Callable[[], None]


@dataclass(slots=True)
class _Ear:
    subject: str
    heard: Heard
    barred: Barred


class Line:
    """A facade over a link's connection, for what is no telemetry.

    Parameters
    ----------
    url : str
        For the texts.
    """

    __slots__ = ("_ears", "_inbox", "_last", "_questions", "_sid", "_size_max", "_wire", "session",
                 "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = 0  # counts connections
        self._wire: Wire | None = None
        self._inbox = ""
        self._size_max = 0
        self._ears: dict[int, _Ear] = {}
        self._sid, self._last = INBOX_SID, 0
        self._questions: dict[int, tuple[str, asyncio.Future[bytes]]] = {}

    def __repr__(self) -> str:
        return f"<Line {self.url}: {'connected' if self.connected else NOT_CONNECTED}>"

    # -- for everybody ----------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether what is written now may arrive."""
        return self._wire is not None and self._wire.alive

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_S,
    ) -> bytes:
        """Publish a question and return its answer; as many at a time as there may be.

        A stream answers a publication too: the answer is then JSON with `stream` and `seq`, or
        with `error`.

        Raises
        ------
        ConnectError
            At once if there is no connection, if it ends, if nobody listens to the subject or if
            it is denied; after a deadline if no answer comes.
        BadValue
            If the subject, a header or the size cannot be.
        """
        wire = self._wire
        if wire is None or not wire.alive:
            raise self._failure(subject, NOT_CONNECTED)
        if len(self._questions) >= QUESTIONS_MAX:
            raise self._failure(subject, f"{QUESTIONS_MAX:,} questions have no answer yet")
        token = self._last = self._last + 1
        data = self._framed(subject, f"{self._inbox}{MARK}{token}", payload, headers)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._questions[token] = subject, answer
        wire.write(data)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise self._failure(subject, f"no answer in {timeout_s:g} s") from None
        finally:
            self._questions.pop(token, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # else asyncio says that nobody looked at it

    def publish(
        self, subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> bool:
        """Publish without waiting; False, and nothing is written, where it could not go out now.

        Raises
        ------
        BadValue
            If the subject, a header or the size cannot be.
        """
        data = self._framed(subject, "", payload, headers)
        wire = self._wire
        if wire is None or not wire.alive or wire.paused:
            return False
        wire.write(data)
        return True

    def reply(self, session: int, subject: str, payload: bytes) -> bool:
        """Publish to a subject that the peer named; False if that connection is gone."""
        if session != self.session or not self.connected or _ODD.search(subject):
            return False
        assert self._wire is not None
        self._wire.write(_frame(subject, "", payload, None))
        return True

    def listen(self, subject: str, heard: Heard, barred: Barred) -> int:
        """Listen to a subject, now and on every later connection; return the number of that.

        Parameters
        ----------
        subject : str
            With `*` and `>` where asked for.
        heard : callable (subject, reply, headers, payload)
            Quick; what it raises is a fault of ours and ends the connection.
        barred : callable ()
            Told if the server does not let us.
        """
        self._sid += 1
        self._ears[self._sid] = _Ear(subject, heard, barred)
        self._subscribe(self._sid)
        return self._sid

    def listen_again(self, sid: int) -> None:
        """Ask anew for what the server did not let us listen to."""
        self._unsubscribe(sid)
        self._subscribe(sid)

    def forget(self, sid: int) -> None:
        """Listen no more."""
        if self._ears.pop(sid, None) is not None:
            self._unsubscribe(sid)

    # -- for its link -----------------------------------------------------------------------------

    def begin(self, wire: Wire, inbox: str, size_max: int) -> None:
        """Take a connection whose inbox is listened to, and listen to the rest."""
        self.session += 1
        self._wire, self._inbox, self._size_max = wire, inbox, size_max
        wire.write(b"".join(map(self._subscription, self._ears)))

    def end(self, why: str = "the connection was lost") -> None:
        """Take the end of the connection: every question fails now."""
        self._wire = None
        questions, self._questions = self._questions, {}
        for subject, answer in questions.values():
            self._fail(subject, answer, why)

    def answered(self, token: str, headers: bytes, payload: bytes) -> None:
        """Take an answer to our inbox."""
        found = self._questions.get(int(token)) if token.isdecimal() else None
        if found is None:  # its deadline was over
            return
        subject, answer = found
        if headers.startswith(_NO_RESPONDERS) and not payload:
            self._fail(subject, answer, NOBODY)
        elif not answer.done():
            answer.set_result(payload)

    def heard(self, sid: int, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """Take a message to a subject that is listened to."""
        ear = self._ears.get(sid)
        if ear is not None:
            ear.heard(subject, reply, headers, payload)

    def denied(self, subject: str) -> bool:
        """Take that we may not publish to a subject; return whether a question was meant."""
        for asked, answer in self._questions.values():
            if asked == subject and not answer.done():
                self._fail(subject, answer, DENIED)
                return True
        return False

    def barred(self, subject: str) -> bool:
        """Take that we may not listen to a subject; return whether we wanted to."""
        ears = [ear for ear in self._ears.values() if ear.subject == subject]
        for ear in ears:
            ear.barred()
        return bool(ears)

    # -- frames -----------------------------------------------------------------------------------

    def _subscription(self, sid: int) -> bytes:
        return f"SUB {self._ears[sid].subject} {sid}\r\n".encode()

    def _subscribe(self, sid: int) -> None:
        if self._wire is not None:
            self._wire.write(self._subscription(sid))

    def _unsubscribe(self, sid: int) -> None:
        if self._wire is not None:
            self._wire.write(f"UNSUB {sid}\r\n".encode())

    def _framed(
        self, subject: str, reply: str, payload: bytes, headers: Mapping[str, str] | None
    ) -> bytes:
        if not all(subject.split(".")) or _ODD.search(subject) or len(subject) > SUBJECT_BYTES_MAX:
            allowed = "Give parts joined by '.', without blanks and wildcards."
            raise BadValue("subject", subject, "cannot be published to", allowed)
        data = _frame(subject, reply, payload, headers)
        if self._wire is not None and len(data) > self._size_max:
            raise BadValue("payload", f"{len(payload):,} bytes", "is larger than the server takes",
                           f"Give at most {self._size_max:,} bytes, headers included.")
        return data

    def _fail(self, subject: str, answer: asyncio.Future[bytes], why: str) -> None:
        if not answer.done():
            answer.set_exception(self._failure(subject, why))

    def _failure(self, subject: str, why: str) -> ConnectError:
        return ConnectError(self.url, why, verb=f"ask {subject!r:.120} of")


def _frame(subject: str, reply: str, payload: bytes, headers: Mapping[str, str] | None) -> bytes:
    to = f"{subject} {reply}" if reply else subject
    if not headers:
        return b"PUB %b %d\r\n%b\r\n" % (to.encode(), len(payload), payload)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if not all(line.isprintable() for line in lines) or any(":" in name for name in headers):
        raise BadValue("headers", sorted(headers), "cannot be written", "Give names and values "
                       "of printable characters; a name has no colon.")
    head = "\r\n".join(["NATS/1.0", *lines, "", ""]).encode()
    size = len(head) + len(payload)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (to.encode(), len(head), size, head, payload)
