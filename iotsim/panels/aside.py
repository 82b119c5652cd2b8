"""Work that takes seconds: done in a thread, so that the loop of a panel goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


def loop_here() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs here, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def aside(work: Callable[[], T], name: str = "iotsim panel") -> T:
    """Return what `work` gives, done in a daemon thread: no loop, and no exit, waits for it.

    Parameters
    ----------
    work : callable
        It must not touch what the loop touches.
    name : str
        Of the thread. Where there are no threads it is done here.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def there() -> None:
        try:
            found = work()
        except BaseException as error:  # it is raised where somebody waits for it
            _come_back(loop, answer.set_exception, error, answer)
        else:
            _come_back(loop, answer.set_result, found, answer)

    try:
        threading.Thread(target=there, name=name, daemon=True).start()
    except RuntimeError:  # Pyodide has none
        there()
    return await answer


def _come_back(
    loop: asyncio.AbstractEventLoop, tell: Callable[[Any], None], what: Any,
    answer: asyncio.Future[Any],
) -> None:
    with suppress(RuntimeError):  # that loop is closed: nobody waits any more
        loop.call_soon_threadsafe(lambda: None if answer.done() else tell(what))
