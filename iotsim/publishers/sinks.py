"""Something in this process that takes messages: a list, the console, a file; and links to it.

Routes of one run that name the same list or file write into one sink together; another run that
names it begins afresh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from iotsim.errors import ConnectError
from iotsim.publishers.base import Item, Link, Loss, Verdicts
from iotsim.transport.addresses import failure_text

WINDOW = 8192


class Sink:
    """Takes messages from one link or several of one run; this one does nothing with them."""

    def __init__(self) -> None:
        self.run_ids: set[str] = set()  # of the links that were made to it
        self.users: set[object] = set()  # the links that are open

    def begin(self) -> None:
        """Prepare for messages, whether or not it is prepared; an OSError is a ConnectError."""

    def write(self, items: Sequence[Item]) -> None:
        """Take messages; an OSError or ValueError is a lost link."""

    def end(self) -> None:
        """Let go of what `begin` took."""


S = TypeVar("S", bound=Sink)


class Sharing(Generic[S]):
    """Knows the sink of each name while a link to it lives."""

    def __init__(self) -> None:
        self._sinks: WeakValueDictionary[str, S] = WeakValueDictionary()

    def sink(self, name: str, run_id: str, make: Callable[[], S]) -> S:
        """Return the sink that this run has under a name, or a new one.

        Parameters
        ----------
        name : str
        run_id : str
            `<run>-<route>`; the same one twice is a new run.
        make : callable
        """
        sink = self._sinks.get(name)
        runs = set() if sink is None else {_run_of(other) for other in sink.run_ids}
        if sink is None or run_id in sink.run_ids or _run_of(run_id) not in runs:
            sink = self._sinks[name] = make()
        sink.run_ids.add(run_id)
        return sink


def _run_of(run_id: str) -> str:
    run, _, route = run_id.rpartition("-")
    return run if route.isdecimal() else run_id


class SinkLink(Link):
    """Acknowledges what its sink took; an OSError there is a lost link (a `Link`)."""

    def __init__(self, url: str, verdicts: Verdicts, sink: Sink) -> None:
        self._url, self._verdicts, self._sink = url, verdicts, sink

    async def open(self) -> int:
        """Prepare the sink."""
        try:
            self._sink.begin()
        except OSError as error:
            raise ConnectError(self._url, failure_text(error)) from None
        self._sink.users.add(self)
        return WINDOW

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Write messages and acknowledge them."""
        try:
            self._sink.write(items)
        except (OSError, ValueError) as error:  # ValueError: a stream closed by somebody else
            self._verdicts.lost(Loss(f"writing failed: {failure_text(error)}"))
            return False
        self._verdicts.acknowledged(tokens)
        return True

    def drop(self) -> None:
        """Leave the sink; the last one ends it."""
        self._sink.users.discard(self)
        if not self._sink.users:
            try:
                self._sink.end()
            except OSError:  # a full disk, again: the verdicts have said so
                pass

    async def close(self) -> None:
        """Leave the sink; the last one ends it."""
        self.drop()
