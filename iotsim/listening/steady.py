"""What listeners on the run's own loop share: they connect again, and hold answers meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from iotsim.errors import BadValue, ConnectError
from iotsim.listening.base import CLOSE_S, CONNECT_S, OUTFLOW_MAX, Note, Talk, back_off_s

BATCH = 100  # answers that are sent together
SEND_S = 5.0  # for one batch
LINGER_S = 0.3  # for answers to go out at the end

Answer: TypeAlias = "tuple[str, bytes, Any]"  # topic, body, reply
Up: TypeAlias = "Callable[[], None]"


class Outflow:
    """Answers on their way out: bounded, kept while there is no connection."""

    def __init__(self) -> None:
        self._waiting: deque[Answer] = deque()
        self._some, self._none = asyncio.Event(), asyncio.Event()
        self._none.set()

    def put(self, answer: Answer) -> bool:
        """Take an answer; False: too many wait."""
        if len(self._waiting) >= OUTFLOW_MAX:
            return False
        self._waiting.append(answer)
        self._none.clear()
        self._some.set()
        return True

    async def run(self, send: Callable[[Sequence[Answer]], Awaitable[None]]) -> None:
        """Send what is there, and what comes; what could not be sent stays."""
        while True:
            await self._some.wait()
            batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
            async with asyncio.timeout(SEND_S):
                await send(batch)
            for _ in batch:
                self._waiting.popleft()
            if not self._waiting:
                self._some.clear()
                self._none.set()

    async def empty(self) -> None:
        """Wait, for a moment, until all have been sent."""
        try:
            async with asyncio.timeout(LINGER_S):
                await self._none.wait()
        except TimeoutError:
            pass


class Steady:
    """Keeps a session with a peer.

    Parameters
    ----------
    url : str
    note : callable (text)
    session : callable (up) -> awaitable
        Connects, calls `up`, and ends when the connection has.
    why : callable (exception) -> str
    verb : str
        What an error says that it is for.
    """

    def __init__(
        self, url: str, note: Note, session: Callable[[Up], Awaitable[None]],
        why: Callable[[BaseException], str], verb: str = "listen to",
    ) -> None:
        self._verb = verb
        self._url, self._note, self._session, self._why = url, note, session, why
        self._up = asyncio.Event()
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect for the first time; raises ConnectError."""
        self._task = asyncio.create_task(self._stay(), name=f"iotsim listens to {self._url}")
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait((self._task, up), timeout=CONNECT_S,
                               return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if self._task.done():
            await self._task
        if not self._up.is_set():
            await self.close()
            raise ConnectError(self._url, "no answer in time", verb=self._verb)

    async def close(self) -> None:
        """End the session."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=CLOSE_S)

    def _is_up(self) -> None:
        self._failures = 0
        self._up.set()

    async def _stay(self) -> None:
        while True:
            why = "the peer ended it"
            try:
                await self._session(self._is_up)
            except (ConnectError, BadValue):
                if not self._up.is_set():
                    raise
            except Exception as error:
                why = self._why(error)
                if not self._up.is_set():
                    raise ConnectError(self._url, why, verb=self._verb) from None
            self._failures += 1
            self._note(f"the connection was lost ({why})")
            await asyncio.sleep(back_off_s(self._failures))


async def insist(
    url: str, talk: Talk, session: Callable[[Up], Awaitable[None]],
    why: Callable[[BaseException], str],
) -> None:
    """Hold a conversation until it is over; a connection that is lost is made again.

    Parameters
    ----------
    url : str
    talk : Talk
    session : callable (up) -> awaitable
        As that of `Steady`; asks those who have not answered, again if need be.
    why : callable (exception) -> str
    """

    def lost(text: str) -> None:
        talk.trouble = text

    async def again(up: Up) -> None:
        def is_up() -> None:
            talk.trouble = ""
            up()

        await session(is_up)

    steady = Steady(url, lost, again, why, "send commands to")
    try:
        await steady.open()
        await talk.over.wait()
    finally:
        await steady.close()


async def first_of(*waits: Awaitable[Any]) -> None:
    """Wait for the first of several; the others are cancelled, an exception of it is raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
