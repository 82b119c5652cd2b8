"""Requests of a lane over a pool of connections, each with one honest verdict.

HTTP has no session that could be lost: a request whose connection ends is uncertain and goes out
again under the same key, and only when nothing at all is answered any more is the link lost.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import aiohttp
from yarl import URL

from iotsim.clock import monotonic
from iotsim.errors import ConnectError
from iotsim.publishers.backoff import Backoff
from iotsim.publishers.base import Item, Link, Loss, Verdicts
from iotsim.publishers.http import HttpPublisher
from iotsim.publishers.http_connections import (
    CLOSE_S,
    CONNECT_S,
    body_of,
    elsewhere,
    ended,
    opened,
    shut,
    why_not,
)
from iotsim.publishers.http_order import Entry, Line, Order
from iotsim.publishers.http_request import Requests, retry_after_s
from iotsim.publishers.refusals import Refusals, in_the_end, spent

PROBE_S = 5.0  # to connect and to answer a HEAD
END_S = 0.1  # for connections to be gone
BODY_S = 1.0  # for the rest of an answer whose verdict is known
WINDOW_PER_CONNECTION = 32  # messages, or twice a batch
WINDOW_MIN = 512
DIRECT_BYTES_MAX = 1 << 20  # larger bodies are written in pieces
_NOT_NOW = frozenset({429, 502, 503, 504})  # about the server rather than about the message
_LATER = frozenset({408, 425})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ABOUT_A_MESSAGE = frozenset({400, 413, 422})  # in a batch, not about the others


@dataclass(slots=True)
class Attempts:
    """How often a request was tried; those count that may be the message's own fault."""

    made: int = 0
    counted: int = 0
    accepted: int = -1


class HttpLink(Link):
    """The connections of one lane to one endpoint (a `Link`).

    Parameters
    ----------
    publisher : HttpPublisher
    name : str
        Seeds the chance in the waiting times.
    verdicts : Verdicts
    """

    def __init__(self, publisher: HttpPublisher, name: str, verdicts: Verdicts) -> None:
        self._publisher = publisher
        self._verdicts = verdicts
        self._requests = Requests(publisher)
        self._backoff = Backoff(name)
        by_topic = publisher.topic_in is not None
        shares, patient = publisher.connections, publisher.linger_s > 0
        self._order = Order(publisher.batch, shares, by_topic, patient)
        self._linger: asyncio.TimerHandle | None = None
        self._origin = str(URL(f"{publisher.address.scheme}://{publisher.address.authority}"))
        self._targets: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None
        self._sockets: set[socket.socket] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._rests: dict[Line, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._attempts: dict[int, Attempts] = {}
        self._doubtful: set[int] = set()  # those that the peer may have taken
        self._accepted = 0
        self._answered_s = 0.0
        self._probed = 0  # the last status that a HEAD got

    # -- connection ---------------------------------------------------------------------------

    async def open(self) -> int:
        """Find out whether HTTP is spoken there, and return how many messages may be in flight."""
        self.drop()
        failure: ConnectError | None = None
        session, sockets = opened(self._publisher, self._requests.always)
        try:
            async with asyncio.timeout(PROBE_S):
                await self._probe(session)
        except BaseException as error:
            self._attempts.clear()  # a server that is away was not brought down by a message
            shut(sockets)
            await ended(session)
            if isinstance(error, ConnectError) or not isinstance(error, Exception):
                raise
            failure = self._refusal(why_not(error), self._advice(error))
        if failure is not None:
            raise failure  # out here: the error's own text may hold the URL, and that a key
        self._session, self._sockets = session, sockets
        self._order.clear()
        self._answered_s = monotonic()
        publisher = self._publisher
        return max(WINDOW_MIN, publisher.connections * max(WINDOW_PER_CONNECTION,
                                                           2 * publisher.batch))

    async def _probe(self, session: aiohttp.ClientSession) -> None:
        if not self._publisher.probe:
            address = self._publisher.address
            context = self._publisher.context
            transport, _ = await asyncio.get_running_loop().create_connection(
                asyncio.Protocol, address.host, address.port, ssl=context
            )
            transport.abort()
            return
        timeout = aiohttp.ClientTimeout(PROBE_S, sock_connect=CONNECT_S)
        answer = await session.head(self._target(""), allow_redirects=False, timeout=timeout)
        answer.release()
        if answer.status in (401, 407):
            raise self._refusal(f"the server refused us: HTTP {answer.status}",
                                "Check username= and password=, or token=.")
        if answer.status == 403:
            raise self._refusal("the server forbids it: HTTP 403", "Check username= and "
                                "password=, or token=; probe=False if it forbids only HEAD.")
        if answer.status in _REDIRECTS:
            raise self._refusal(f"the server sends us elsewhere: {elsewhere(answer)}",
                                "Use that address; probe=False if that is so only for HEAD.")

    async def round_trip(self, topic: str) -> None:
        """Return when the server has answered to a HEAD."""
        if self._session is None:
            raise ConnectionResetError
        answer = await self._session.head(self._target(topic), allow_redirects=False)
        answer.release()
        self._probed = answer.status

    async def objection(self, topic: str) -> tuple[str, bool]:
        """Return what the last answer to a HEAD makes one fear, and whether that is certain."""
        status = self._probed
        if status in (405, 501) or status < 400:
            return "", False  # what cannot be asked with HEAD says nothing of POST
        certain = status >= 500 or status in (401, 403, 407)
        return f"the server answers HEAD with HTTP {status}: perhaps POST, too", certain

    def _refusal(self, why: str, todo: str = "") -> ConnectError:
        return ConnectError(self._publisher.url, why, todo)

    def _advice(self, error: Exception) -> str:
        # Whether our certificate is accepted shows only after the handshake, as a bare end.
        tls = self._publisher.tls
        ended_late = isinstance(error, ConnectionError | aiohttp.ClientOSError
                                | aiohttp.ServerDisconnectedError)
        if not ended_late or isinstance(error, aiohttp.ClientConnectorError):
            return ""
        if tls is None:
            return "Does it speak HTTP, and without TLS as the URL says?"
        if tls.cert is None:
            return "Perhaps it wants a certificate of ours: cert=, key=."
        return "Perhaps it does not accept our cert=."

    def drop(self) -> None:
        """End all connections at once; no verdict comes after it."""
        session, self._session = self._session, None
        for timer in self._rests.values():
            timer.cancel()
        self._rests.clear()
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        this = asyncio.current_task() if self._running else None
        for task in self._running:
            if task is not this:
                task.cancel()
        self._running = set()
        shut(self._sockets)
        if session is not None:
            closing = asyncio.create_task(ended(session), name="iotsim http end")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Wait a moment for answers that are due, then end all connections."""
        self._give_back(self._order.withdraw())
        try:
            if self._running:
                await asyncio.wait(self._running, timeout=CLOSE_S)
        finally:
            running = list(self._running)
            self.drop()
            ends = [*running, *self._closing]
            if ends:
                await asyncio.wait(ends, timeout=END_S)

    # -- sending ------------------------------------------------------------------------------

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Take messages in; they leave as connections are free."""
        if self._session is None:
            return False
        bad = Refusals()
        for token, item in zip(tokens, items, strict=True):
            fault = self._requests.fault(item)
            if fault:
                bad.add(token, fault)
            else:
                self._order.add(token, item)
        bad.tell(self._verdicts)
        self._start()
        self._wait_for_more()
        return True

    def passed_over(self, tokens: Iterable[int]) -> None:
        """Take that messages which the lane took back will not come again."""
        gone = set(tokens)
        for token in gone:
            self._attempts.pop(token, None)
        self._order.pass_over(gone)
        self._start()

    def _wait_for_more(self) -> None:
        # Batches that are not full leave together, so long after the first began to wait.
        if self._linger is None and self._session is not None and self._order.waits:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(self._publisher.linger_s, self._hurry)

    def _hurry(self) -> None:
        self._linger = None
        self._order.hurry()
        self._start()

    def _start(self) -> None:
        # One task for each connection that is needed; it goes on while there is something to do.
        while len(self._running) < self._publisher.connections:
            found = self._order.take() if self._session is not None else None
            if found is None:
                return
            task = asyncio.get_running_loop().create_task(
                self._work(self._session, *found), name="iotsim http"
            )
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(
        self, session: aiohttp.ClientSession | None, line: Line, chunk: list[Entry]
    ) -> None:
        while session is not None:
            try:
                await self._carry(session, line, chunk)
            except Exception as error:  # a fault of ours must not lose the account
                if self._session is session:
                    self._lose(f"the link failed: {type(error).__name__}")
            if self._session is not session:
                return
            if line not in self._rests:
                self._order.free(line)
                self._wait_for_more()
            found = self._order.take()
            if found is None:
                return
            line, chunk = found

    async def _carry(
        self, session: aiohttp.ClientSession, line: Line, chunk: list[Entry]
    ) -> None:
        items = [item for _, item in chunk]
        body = self._requests.content(items)
        began_s = monotonic()
        try:
            async with asyncio.timeout(self._publisher.timeout_s):
                answer = await session.post(
                    self._target(items[0][0]),
                    data=body if len(body) < DIRECT_BYTES_MAX else io.BytesIO(body),
                    headers=self._requests.headers(items),
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            if self._session is session:
                self._unanswered(line, chunk, error, began_s)
            return
        if self._session is not session:
            answer.close()
            return
        self._answered_s = monotonic()
        tokens = [token for token, _ in chunk]
        if 200 <= answer.status < 300:
            self._accepted += 1
            self._forget(tokens)
            self._verdicts.acknowledged(tokens)
            await body_of(answer, BODY_S)
            return
        start = await body_of(answer, BODY_S)
        if self._session is session:
            self._rejected(line, chunk, answer, start)

    def _target(self, topic: str) -> URL:
        if self._publisher.topic_in in (None, "header"):
            topic = ""
        found = self._targets.get(topic)
        if found is None:
            if len(self._targets) >= 100_000:
                self._targets.clear()
            found = URL(self._origin.rstrip("/") + self._requests.target(topic), encoded=True)
            self._targets[topic] = found
        return found

    # -- verdicts -----------------------------------------------------------------------------

    def _rejected(
        self, line: Line, chunk: list[Entry], answer: aiohttp.ClientResponse, start: bytes
    ) -> None:
        status, tokens = answer.status, [token for token, _ in chunk]
        if status >= 500 or status in _LATER or status in _NOT_NOW:
            rest_s = retry_after_s(answer.headers.get("Retry-After", ""))
            self._later(line, tokens, f"HTTP {status}", rest_s, counts=status not in _NOT_NOW)
        elif len(chunk) > 1 and status in _ABOUT_A_MESSAGE:
            self._order.split(line, chunk)
        elif status in _REDIRECTS:
            self._refuse(tokens, f"HTTP {status}: redirects are not followed "
                                 f"({elsewhere(answer)})")
        else:
            excerpt = self._requests.excerpt(start)
            self._refuse(tokens, f"HTTP {status}: {excerpt}" if excerpt else f"HTTP {status}")

    def _unanswered(
        self, line: Line, chunk: list[Entry], error: BaseException, began_s: float
    ) -> None:
        tokens = [token for token, _ in chunk]
        unwritten = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        why = why_not(error)
        if not unwritten:
            self._doubtful.update(tokens)
        if unwritten and self._answered_s < began_s:
            self._give_back(tokens)
            self._lose(why)
        elif isinstance(error, TimeoutError) and self._answered_s < began_s:
            # Nobody was answered: not this message's fault, unless it is so again and again.
            if spent(self._tried(tokens[0]).counted):
                self._refuse(tokens, in_the_end(why))
            else:
                self._lose(why)
        else:
            self._later(line, tokens, why, 0.0, counts=not unwritten)

    def _later(
        self, line: Line, tokens: list[int], why: str, rest_s: float, *, counts: bool
    ) -> None:
        tries = self._tried(tokens[0], counts)
        if spent(tries.counted):
            self._refuse(tokens, in_the_end(why))
            return
        line.head = tuple(tokens)
        if rest_s > 0.0:  # asked of us all, not only of these
            self._verdicts.notice(f"{why}: the server asks us to wait {rest_s:.3g} s")
            self._give_back([*tokens, *self._order.withdraw()], rest_s)
            return
        self._verdicts.notice(f"{why}: sent again")
        delay_s = self._backoff.delay_s(tries.made)
        loop = asyncio.get_running_loop()
        self._rests[line] = loop.call_later(delay_s, self._rested, line)
        self._give_back(tokens)

    def _tried(self, token: int, counts: bool = True) -> Attempts:
        # What says "not now" counts only if the server took something else meanwhile: it is not
        # the message's fault that nothing is taken.
        tries = self._attempts.setdefault(token, Attempts())
        tries.made += 1
        tries.counted += counts or tries.accepted not in (-1, self._accepted)
        tries.accepted = self._accepted
        return tries

    def _rested(self, line: Line) -> None:
        self._rests.pop(line, None)
        self._order.free(line)
        self._start()
        self._wait_for_more()

    def _give_back(self, tokens: Sequence[int], rest_s: float = 0.0) -> None:
        doubtful = [token for token in tokens if token in self._doubtful]
        if doubtful:
            self._verdicts.uncertain(doubtful)
        clear = [token for token in tokens if token not in self._doubtful]
        if clear or rest_s:
            self._verdicts.returned(clear, rest_s)

    def _refuse(self, tokens: list[int], reason: str) -> None:
        self._forget(tokens)
        self._verdicts.refused(tokens, reason)

    def _forget(self, tokens: list[int]) -> None:
        self._order.forget(tokens)
        self._doubtful.difference_update(tokens)
        for token in tokens if self._attempts else ():
            self._attempts.pop(token, None)

    def _lose(self, why: str) -> None:
        self._give_back(self._order.withdraw())
        self.drop()
        self._verdicts.lost(Loss(why))
