"""Commands by CoAP: each device observes a resource of the platform's; answers are posted there.

What stands in the resource when it is first looked at is a command, too: one that waited. The same
state twice is one command. A resource that cannot be observed is looked at every second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import aiocoap  # type: ignore[import-untyped]
from aiocoap import error as coap_error

from iotsim.errors import BadValue, ConnectError
from iotsim.listening.base import CLOSE_S, Ear, Message, Note, Take, Talk, back_off_s
from iotsim.listening.steady import Answer, Outflow
from iotsim.tapping.settings import Wish, secured
from iotsim.transport.addresses import Address, failure_text

logging.getLogger("coap").addHandler(logging.NullHandler())  # who logs nothing sees nothing
OPTIONS: dict[str, Any] = {}
ANY = "*"
REPLY_S = 5.0
REFRESH_S = 10.0  # of silence, after which an observation is begun anew
ASK_S = 1.0  # the same where somebody waits: servers lose observations when another client left
POLL_S = 1.0
LOST = "an observation was lost"
OBSERVED_MAX = 1000
_TROUBLE = (coap_error.Error, OSError, TimeoutError)


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what a listener needs; raises BadValue."""
    address = Address.parse(wish.url, 5683)
    return {
        "url": str(address), "host": address.host, "port": address.port,
        "authority": address.authority, "separator": "/",
        **secured(wish, address, "COAP", (), False, "coaps"),
    }  # fmt: skip


class _Peer:
    """One context, and requests with deadlines."""

    def __init__(self, ear: Ear, note: Note, refresh_s: float = REFRESH_S) -> None:
        self._url, self._note = f"coap://{ear.settings['authority']}", note
        self._refresh_s = refresh_s
        self._context: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Make the context."""
        self._context = await aiocoap.Context.create_client_context()

    def run(self, work: Any) -> asyncio.Task[None]:
        """Do something until the end."""
        task = asyncio.create_task(work, name="iotsim listens by CoAP")
        self._tasks.append(task)
        return task

    async def end(self) -> None:
        """End all that is done, and the context."""
        context, self._context = self._context, None
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                if context is not None:
                    await context.shutdown()
        except TimeoutError:
            pass

    async def send(self, code: Any, path: str, body: bytes) -> str:
        """Send to a resource; returns what is wrong, empty if nothing."""
        message = self._message(code, path, payload=body)
        async with asyncio.timeout(REPLY_S):
            response = await self._context.request(message).response
        return "" if response.code.is_successful() else str(response.code)

    def _message(self, code: Any, path: str, **more: Any) -> Any:
        message = aiocoap.Message(code=code, uri=self._url, **more)
        message.opt.uri_path = tuple(path.split("/"))
        return message

    async def watch(
        self, path: str, heard: Callable[[bytes], Any], seen: Callable[[], Any]
    ) -> None:
        """Tell of every state of a resource; `seen` when the peer has said anything of it."""
        failures, last = 0, b""

        def news(body: bytes) -> None:
            nonlocal last
            if body and body != last:
                heard(body)
            last = body

        while True:
            request = self._context.request(self._message(aiocoap.GET, path, observe=0))
            wait_s = 0.0
            try:
                async with asyncio.timeout(REPLY_S):
                    response = await request.response
                seen()
                if response.code.is_successful():
                    failures = 0
                    news(response.payload)
                    wait_s = await self._follow(request, response, news)
                else:
                    failures += 1
                    self._note(f"a resource cannot be observed yet ({response.code})")
            except _TROUBLE as error:
                failures += 1
                self._note(f"{LOST} ({words(error)})")
            finally:
                if request.observation is not None and not request.observation.cancelled:
                    request.observation.cancel()
            await asyncio.sleep(back_off_s(failures) if failures else wait_s)

    async def _follow(self, request: Any, first: Any, news: Callable[[bytes], None]) -> float:
        if first.opt.observe is None:
            self._note("a resource cannot be observed: it is looked at every second")
            return POLL_S
        states = aiter(request.observation)
        while True:
            try:
                async with asyncio.timeout(self._refresh_s):
                    response = await anext(states)
            except (TimeoutError, StopAsyncIteration):
                return 0.0
            if not response.code.is_successful():
                return POLL_S
            news(response.payload)


class Heard:
    """The devices' side: hands commands on, posts answers.

    Parameters
    ----------
    ear : Ear
    take : callable (Message) -> bool
    note : callable (text)
    topics : callable () -> list of str
        The resources to observe; more when devices have joined.
    """

    def __init__(
        self, ear: Ear, take: Take, note: Note, topics: Callable[[], list[str]]
    ) -> None:
        self._url, self._take, self._note, self._topics = ear.settings["url"], take, note, topics
        self._peer, self._outflow = _Peer(ear, self._trouble), Outflow()
        self._watched: set[str] = set()
        self._seen = asyncio.Event()
        self._reason = ""

    async def open(self) -> None:
        """Observe every resource; raises ConnectError if the peer says nothing at all."""
        if len(self._topics()) > OBSERVED_MAX:
            raise BadValue("listen_to", len(self._topics()), "resources are too many to observe",
                           f"Choose up to {OBSERVED_MAX:,} devices with where=.")
        await self._peer.begin()
        self._peer.run(self._grow())
        try:
            async with asyncio.timeout(REPLY_S + 1):
                await self._seen.wait()
        except TimeoutError:
            self._reason = "no answer in time"
        if self._reason:
            await self._peer.end()
            raise ConnectError(self._url, self._reason, verb="listen to")
        self._peer.run(self._send())

    def _trouble(self, text: str) -> None:
        if self._seen.is_set():
            self._note(text)
        else:
            self._reason = _bare(text)
            self._seen.set()

    async def _grow(self) -> None:
        while True:
            for path in self._topics():
                if path not in self._watched and len(self._watched) < OBSERVED_MAX:
                    self._watched.add(path)
                    self._peer.run(self._peer.watch(path, self._hear(path), self._seen.set))
            await asyncio.sleep(POLL_S)

    def _hear(self, path: str) -> Callable[[bytes], Any]:
        return lambda body: self._take(Message(path, body))

    async def _send(self) -> None:
        failures = 0
        while True:
            try:
                await self._outflow.run(self._post)
            except _TROUBLE as error:
                failures += 1
                self._note(f"an answer could not be posted ({words(error)})")
                await asyncio.sleep(back_off_s(failures))

    async def _post(self, batch: Sequence[Answer]) -> None:
        for topic, body, _ in batch:
            problem = await self._peer.send(aiocoap.POST, topic, body)
            if problem:
                self._note(f"an answer was refused ({problem})")

    def answer(self, topic: str, body: bytes, reply: Any) -> bool:
        """Post an answer."""
        return self._outflow.put((topic, body, reply))

    async def close(self) -> None:
        """End."""
        await self._outflow.empty()
        await self._peer.end()


async def converse(ear: Ear, talk: Talk) -> None:
    """Put commands as a platform would, and observe the answers until it is over."""

    def note(text: str) -> None:
        if text.startswith(LOST):
            talk.trouble = _bare(text)

    peer = _Peer(ear, note, ASK_S)
    await peer.begin()
    try:
        seen = [asyncio.Event() for _ in talk.answers]

        def watched(event: asyncio.Event) -> None:
            talk.trouble = ""
            event.set()

        for path, event in zip(talk.answers, seen, strict=True):
            peer.run(peer.watch(path, talk.heard, partial(watched, event)))
        await asyncio.gather(*(event.wait() for event in seen))
        for place, (topic, body) in enumerate(talk.requests):
            talk.sent(place)
            problem = await _put(peer, topic, body, talk)
            if problem:
                raise ConnectError(ear.settings["url"], f"a command was refused ({problem})",
                                   verb="send commands to")
        await talk.over.wait()
    finally:
        await peer.end()


async def _put(peer: _Peer, topic: str, body: bytes, talk: Talk) -> str:
    # Again and again, as long as whoever asked will wait; a device does nothing twice.
    failures = 0
    while True:
        try:
            problem = await peer.send(aiocoap.PUT, topic, body)
        except _TROUBLE as error:
            failures += 1
            talk.trouble = words(error)
            await asyncio.sleep(back_off_s(failures))
        else:
            talk.trouble = ""
            return problem


def _bare(text: str) -> str:
    return text.removeprefix(f"{LOST} (").removesuffix(")")


def words(error: BaseException) -> str:
    """Return why there is no answer."""
    cause = error if isinstance(error, TimeoutError) else error.__cause__ or error
    if isinstance(error, coap_error.ResolutionError):
        return "the host name is unknown"
    return failure_text(cause).rstrip(".") or type(error).__name__
