"""How anybody comes in to a live run, from whatever thread and loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from iotsim.errors import IotsimError
from iotsim.own_loop import Home, Once

T = TypeVar("T")

ANSWER_S = 10.0  # how long another thread waits for the run's loop
LOOK_S = 0.1  # how long it does that only to look; a loop that is blocked changes nothing
TURN_S = 1.0  # a loop that was closed with a live run on it is noticed within it


class RunHome:
    """Where a run lives."""

    _home: Home

    @property
    def name(self) -> str:
        """The fleet's name."""
        raise AssertionError("a run has its own")

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it runs on."""
        return self._home.loop

    @property
    def in_own_thread(self) -> bool:
        """Whether the caller is on the thread of the run's loop."""
        return self._home.here

    @property
    def has_own_loop(self) -> bool:
        """Whether it runs on a loop and a thread of its own."""
        return self._home.own

    def is_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether this is the loop that it runs on."""
        return self._home.loop is loop

    def _enter(self, action: Callable[[], None]) -> None:
        # Whoever calls, what is done to a run is done on its own loop; when that is gone, so is it.
        if self._home.closed:
            return
        if self._home.here:
            action()
        elif self._home.own:  # no cell can hold it up: it is done when the caller goes on
            self._ask(action)
        else:
            self._home.enter(action)

    def _ask(self, question: Callable[[], T]) -> T:
        # What only its own loop can answer.
        answer = self._asked(question)
        if answer is None:
            return question()
        try:
            return answer.result(ANSWER_S)
        except TimeoutError:
            if answer.done():
                raise
            answer.cancel()
            raise IotsimError(
                f"run {self.name!r} did not answer for {ANSWER_S:g} s: its loop is busy. "
                "Was it asked from a thread that the loop waits for?") from None

    def _look(self, question: Callable[[], T], patience_s: float = LOOK_S) -> T:
        # What can be seen from outside while nothing moves: its loop is blocked, or it is over.
        answer = self._asked(question)
        if answer is None:
            return question()
        try:
            return answer.result(patience_s)
        except TimeoutError:
            if answer.done():
                raise
        return question() if answer.cancel() else answer.result()

    def _asked(self, question: Callable[[], T]) -> Future[T] | None:
        # None: there is no other loop to ask, or it is gone.
        if self._home.here or self._home.closed:
            return None
        return self._home.ask(question)

    async def _visit(self, work: Coroutine[Any, Any, T]) -> T | None:
        # Awaits on another loop what runs on its own; None if that is gone.
        sent = self._home.send(work)
        if sent is None:
            return None
        answer: T = await asyncio.wrap_future(sent)
        return answer

    async def _happened(self, what: Once) -> None:
        # On its own loop it is told; elsewhere it may have to find out that there is nobody left.
        if self.is_on(asyncio.get_running_loop()):
            await what.wait()
        while not (what.happened or self._home.closed):
            try:
                async with asyncio.timeout(TURN_S):
                    await what.wait()
            except TimeoutError:
                pass
