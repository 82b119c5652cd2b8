"""How a lane comes to its connection: one attempt, or attempts until it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from iotsim.errors import ConnectError, IotsimError
from iotsim.publishers.backoff import Backoff, Pace, pause
from iotsim.publishers.base import Link
from iotsim.transport.addresses import failure_text

OPEN_S = 10.0
OPENINGS_MAX = 50  # attempts of one pump at the same time
HALT_S = 1.0


class Connector:
    """Opens one link; whoever else opens one of the same pump takes turns with it.

    Parameters
    ----------
    name : str
        Seeds the chance in the waiting times.
    url : str
        For the texts.
    link : Link
    turns : Semaphore
        Shared by the lanes of a pump.
    opened : callable (window)
        Told when `seek` has a connection.
    failed : callable (text)
        Told of each attempt of `seek` that failed.
    pace : Pace, optional
        Of `seek`.
    """

    def __init__(
        self,
        name: str,
        url: str,
        link: Link,
        turns: asyncio.Semaphore,
        opened: Callable[[int], None],
        failed: Callable[[str], None],
        pace: Pace | None = None,
    ) -> None:
        self.failures = 0  # in a row, until somebody says that a message went through
        self._name, self._url, self._link, self._turns = name, url, link, turns
        self._opened, self._failed = opened, failed
        self._backoff = Backoff(name)
        self._between = self._backoff if pace is None else Backoff(name, pace)
        self._hopeless = False  # the last attempt failed for what does not pass by itself
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> int:
        """Connect once, and return the window; raises ConnectError."""
        async with self._turns:
            try:
                async with asyncio.timeout(OPEN_S):
                    return await self._link.open()
            except TimeoutError:
                self._link.drop()
                raise ConnectError(self._url, f"no answer in {OPEN_S:g} s") from None

    def seek(self, *, at_once: bool = False) -> None:
        """Connect in the background, however often it takes; the first time after a pause."""
        before = self._task
        if before is not None:
            before.cancel()
        self._task = asyncio.get_running_loop().create_task(
            self._seek(at_once, before), name=f"iotsim lane {self._name}"
        )

    def halt(self) -> None:
        """Give up what `seek` began; nothing comes of it any more."""
        if self._task is not None:
            self._task.cancel()

    async def end(self) -> None:
        """Give up, and return when that is done."""
        self.halt()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait([task], timeout=HALT_S)

    def delay_s(self, failures: int) -> float:
        """Return how long a message waits that was refused so often, at least once."""
        return self._backoff.delay_s(failures)

    async def _seek(self, at_once: bool, before: asyncio.Task[None] | None) -> None:
        if before is not None:  # two attempts of one link would take each other's connection
            await asyncio.wait([before], timeout=HALT_S)
        window: int | None = None
        while window is None:
            if not at_once:
                self.failures += 1
                await pause(self._between.delay_s(self.failures, slow=self._hopeless))
            at_once = False
            window = await self._tried()
        self._opened(window)

    async def _tried(self) -> int | None:
        # Whatever fails, a lane that gave up here would only queue.
        self._hopeless = False
        try:
            return await self.open()
        except IotsimError as error:  # away, or what it needs is: a file of certificates
            self._hopeless = isinstance(error, ConnectError) and error.lasting
            why = str(error)
        except Exception as error:
            why = f"reconnecting failed: {failure_text(error)} ({type(error).__name__})"
        self._failed(why)
        return None
