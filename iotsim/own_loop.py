"""Where a run lives: on the loop that runs already, or on a loop and a thread of its own.

Others come in from their threads through a `Home`; a `Once` is what anybody may await on any loop.
A loop of its own ends with its run: what was asked of it before that is answered.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar
from weakref import WeakSet

from iotsim.clock import monotonic
from iotsim.errors import BadValue, told

T = TypeVar("T")

LINGER_S = 2.0  # how long what others asked of a loop of its own may take when the run is over
EXIT_S = 2.0  # how long an interpreter that ends waits for live runs on loops of their own


class Once:
    """Something that happens once; awaited on any loop, told from any thread."""

    def __init__(self) -> None:
        self.happened = False
        self._lock = threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    def happen(self) -> None:
        """Let it have happened; to do so twice is to do so once."""
        with self._lock:
            self.happened = True
            waiting, self._waiting = self._waiting, set()
        for one in waiting:
            with suppress(RuntimeError):  # that loop is closed: nobody waits there
                one.get_loop().call_soon_threadsafe(_wake, one)

    async def wait(self) -> None:
        """Wait until it has happened."""
        one = asyncio.get_running_loop().create_future()
        with self._lock:
            if self.happened:
                return
            self._waiting.add(one)
        try:
            await one
        finally:
            with self._lock:
                self._waiting.discard(one)


def _wake(one: asyncio.Future[None]) -> None:
    if not one.done():
        one.set_result(None)


class Home:
    """The loop that runs here, and how other threads come in.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
    thread : int
        The identity of its thread.
    """

    own = False  # whether nobody else lives there

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()

    @property
    def here(self) -> bool:
        """Whether the caller is on its thread."""
        return threading.get_ident() == self.thread

    @property
    def closed(self) -> bool:
        """Whether nothing will ever be done there again."""
        return self.loop.is_closed()

    def enter(self, action: Callable[[], object]) -> bool:
        """Let something be done there soon; return False if nothing is done there any more."""
        try:
            self.loop.call_soon_threadsafe(action)
        except RuntimeError:  # it was closed just now
            return False
        return True

    def ask(self, question: Callable[[], T]) -> Future[T] | None:
        """Let a question be answered there; None if nobody is there any more.

        As long as nobody has begun to answer, the future can be cancelled.
        """
        answer: Future[T] = Future()

        def there() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        return answer if self.enter(there) else None

    def send(self, work: Coroutine[Any, Any, T]) -> Future[T] | None:
        """Let a coroutine run there; None, and it is closed, if nobody is there any more."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            return None


class OwnLoop(Home):
    """A loop in a daemon thread of its own, until `leave` is called there.

    Parameters
    ----------
    name : str
        Of the thread.

    Raises
    ------
    BadValue
        If no thread can be started here.
    """

    own = True

    def __init__(self, name: str) -> None:
        self.at_exit: Callable[[], None] = self.leave
        self._entry = threading.Lock()
        self._closed = False
        self._left: asyncio.Event = asyncio.Event()
        begun: Future[asyncio.AbstractEventLoop] = Future()
        thread = threading.Thread(target=self._live, args=(begun,), name=name, daemon=True)
        try:
            thread.start()
            self.loop = begun.result()
        except (RuntimeError, OSError) as error:  # Pyodide has none; there may be too many
            raise BadValue("thread", True, f"cannot be had here ({told(error)})",
                           "Leave it out: the run is then on the event loop of the caller."
                           ) from None
        self._thread = thread
        self.thread = thread.ident or 0
        _LIVING.add(self)
        import_module("concurrent.futures.thread")  # those who write files want it: `_part` is late
        atexit.unregister(_part)
        atexit.register(_part)

    @property
    def closed(self) -> bool:
        """Whether nothing will ever be done there again."""
        return self._closed

    def enter(self, action: Callable[[], object]) -> bool:
        """Let something be done there soon; return False if nothing is done there any more."""
        with self._entry:
            return not self._closed and super().enter(action)

    def send(self, work: Coroutine[Any, Any, T]) -> Future[T] | None:
        """Let a coroutine run there; None, and it is closed, if nobody is there any more."""
        with self._entry:
            if not self._closed:
                return super().send(work)
        work.close()
        return None

    def leave(self) -> None:
        """End the loop and its thread, as soon as what others have asked is answered."""
        self.enter(self._left.set)

    def join(self, limit_s: float) -> None:
        """Wait for its end in another thread."""
        self._thread.join(limit_s)

    def _live(self, begun: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            runner = asyncio.Runner()
            begun.set_result(runner.get_loop())
        except BaseException as error:
            begun.set_exception(error)
            return
        with suppress(BaseException), runner:  # what ends a thread ends nothing else
            try:
                runner.run(self._until_left())
            finally:
                with self._entry:  # who came before this is answered, who comes later is told
                    self._closed = True
            runner.run(_settled(LINGER_S))

    async def _until_left(self) -> None:
        await self._left.wait()
        await _settled(LINGER_S)


async def _settled(limit_s: float) -> None:
    # Until nobody else has anything to do here.
    until_s = monotonic() + limit_s
    await asyncio.sleep(0)
    while (others := asyncio.all_tasks() - {asyncio.current_task()}) and monotonic() < until_s:
        await asyncio.wait(others, timeout=until_s - monotonic())


_LIVING: WeakSet[OwnLoop] = WeakSet()


def _part() -> None:
    # The interpreter ends: runs may hand over what they have, and are not waited for for long.
    living = list(_LIVING)
    for own in living:
        own.at_exit()
    until_s = monotonic() + EXIT_S
    for own in living:
        own.join(max(0.0, until_s - monotonic()))
