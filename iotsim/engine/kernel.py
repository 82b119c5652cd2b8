"""Parties under one clock: a heap of (time, party), stepped in a fixed order.

A party is a coroutine with its own simulated time. It may await the kernel's primitives only:
`Sleep`, `Event`, `Queue`. `Kernel` steps parties by hand, without asyncio: it works inside a
running loop and without threads. `LiveKernel` gives every party a task on the running loop, so
that it may also do real I/O; content is the same, because a party's time is the time it was woken
for and never the time at which it happened to run. Ties are broken by the party's order.

A party that is ended, by a stop or at the end of the run, gets `asyncio.CancelledError` where it
waits, here as there, and again wherever it awaits the kernel on its way out: nothing of it counts
any more. One that does not let it pass is reported and left where it is.
"""

from __future__ import annotations

import atexit
import heapq
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import CodeType
from typing import Any, Protocol, TypeAlias

from iotsim.errors import BadValue, ForeignAwait, IotsimError

Body: TypeAlias = Coroutine[Any, None, None]
QUEUE_SIZE_MAX = 10_000_000
STEPS_AT_ONE_INSTANT_MAX = 1_000_000  # and ten for each party; beyond, somebody spins
CANCELS_MAX = 100  # of one party that ends, before it is left where it is
ABANDONED_KEPT = 1000


class Party(Protocol):
    """What the kernel needs of a party."""

    name: str
    order: int
    now_us: int
    body: Body | None

    def silence(self) -> None:
        """Let nothing that it says from now on count."""

    def retire(self) -> None:
        """Note that its code has ended."""


class Sleep:
    """An awaitable: wake me at an instant.

    Attributes
    ----------
    until_us : int
    awaited : bool
        Whether somebody has awaited it; a device may use one again and again.
    """

    __slots__ = ("awaited", "until_us")

    def __init__(self, until_us: int) -> None:
        self.until_us = until_us
        self.awaited = False

    def __await__(self) -> Generator[Sleep, None, None]:
        self.awaited = True
        # A real generator would cost a frame for every device that sleeps.
        return iter((self,))  # type: ignore[return-value]


class Park:
    """An awaitable: wake me when somebody says so."""

    __slots__ = ("waiters",)

    def __init__(self, waiters: deque[Any]) -> None:
        self.waiters = waiters

    def __await__(self) -> Generator[Park, None, None]:
        yield self


class _Nobody:
    """Stands in the heap for a party that was woken early, and compares with whoever is there."""

    __slots__ = ()
    body = None

    def __lt__(self, other: object) -> bool:
        return True

    def __gt__(self, other: object) -> bool:
        return False


NOBODY = _Nobody()


class Kernel:
    """Steps parties by hand, in order of (time, party order).

    Parameters
    ----------
    on_failure : callable (party, exception)
        Told of a party that raised; the others go on.
    """

    def __init__(self, on_failure: Callable[[Any, BaseException], None]) -> None:
        self.current: Any = None
        self._heap: list[tuple[int, int, Any]] = []
        self._on_failure = on_failure
        self._alive: dict[int, Any] = {}
        self._leaving: list[tuple[Any, Any]] = []  # ended, and not told yet
        self._reached_us = 0
        self.linked = False  # whether parties may depend on each other

    def __len__(self) -> int:
        return len(self._alive)

    def spawn(self, party: Any, at_us: int) -> None:
        """Begin a party at an instant."""
        self._alive[party.order] = party
        self.wake_at(party, at_us)

    def wake_at(self, party: Any, time_us: int) -> None:
        """Wake a party at an instant, or at its own time if that is later."""
        heapq.heappush(self._heap, (max(time_us, party.now_us), party.order, party))

    def wake_early(self, party: Any, time_us: int) -> None:
        """Wake a party that sleeps at an instant instead of when it wanted to."""
        heap = self._heap
        for place, entry in enumerate(heap):
            if entry[2] is party:  # nothing else moves: what is there now wakes nobody
                heap[place] = (*entry[:2], NOBODY)
                break
        self.wake_at(party, time_us)

    def run_until(self, limit_us: int) -> None:
        """Step every party that is due before an instant."""
        self._tell_leaving()
        self._reached_us = limit_us
        heap, pop, push = self._heap, heapq.heappop, heapq.heappush
        instant_us, steps = -1, 0
        while heap and heap[0][0] < limit_us:
            time_us, order, party = pop(heap)
            if party.body is None:
                continue
            steps = steps + 1 if time_us == instant_us else 0
            instant_us = time_us
            self.current = party
            party.now_us = time_us
            try:
                request = party.body.send(None)
            except StopIteration:
                self._end(party)
            except BaseException as error:
                self._end(party)
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                self._on_failure(party, error)
            else:
                if request.__class__ is Sleep:
                    push(heap, (request.until_us, order, party))
                else:
                    self._park(party, request)
                if spins(steps, len(self._alive)):
                    self._stop_spinning(party, steps)
                    steps = 0
        self.current = None

    def party(self, order: int) -> Any:
        """Return the party of that order, or None if it is not there any more."""
        return self._alive.get(order)

    def remove(self, order: int) -> None:
        """End a party at the instant that all have come to; nothing of it counts any more.

        It is cancelled, and may clean up, before anybody goes on.
        """
        party = self._alive.get(order)
        if party is not None:
            self._dismiss(party)

    def _park(self, party: Any, request: Any) -> None:
        if type(request) is Park:
            request.waiters.append(party)
        else:
            self._refuse(party, request)

    def _stop_spinning(self, party: Any, steps: int) -> None:
        if party.body is not None:
            line = place_of(party.body)
            why = f"time has not moved on for {steps:,} steps; it waits at {line}"
            self._on_failure(party, IotsimError(f"{why}. Sleep for longer than 0 s."))
            party.retire()
            self._dismiss(party)
            self._tell_leaving()

    def _refuse(self, party: Any, request: Any) -> None:
        line = place_of(party.body)
        if hasattr(request, "cancel"):
            request.cancel()
        self._on_failure(party, ForeignAwait(party.name, line, describe(request)))
        party.retire()
        self._dismiss(party)
        self._tell_leaving()

    def _end(self, party: Any) -> None:
        party.body = None
        party.retire()
        self._alive.pop(party.order, None)

    def _dismiss(self, party: Any) -> None:
        # Whoever ends at the same instant is ended before the first of them cleans up.
        self._leaving.append((party, self._part(party)))

    def _part(self, party: Any) -> Body:
        body: Body = party.body
        party.now_us = max(party.now_us, self._reached_us)
        party.silence()
        self._end(party)
        return body

    def _tell_leaving(self) -> None:
        leaving, self._leaving = self._leaving, []
        for party, body in leaving:
            self.current = party
            try:
                if not ended(body):
                    self._abandon(party, body)
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                self._on_failure(party, error)
            finally:
                self.current = None

    def _abandon(self, party: Any, body: Body) -> None:
        self._on_failure(party, still_there(body))
        abandon(body)

    def close(self) -> None:
        """End every party where it stands."""
        for party in list(self._alive.values()):
            self._dismiss(party)
        self._tell_leaving()
        self._heap.clear()


def ended(body: Body) -> bool:
    """Cancel a coroutine wherever it waits until it ends; False if it does not."""
    from asyncio import CancelledError  # it brings sockets, and offline nobody else needs them

    try:
        for _ in range(CANCELS_MAX):
            request: Any = body.throw(CancelledError())
            if hasattr(request, "cancel"):
                request.cancel()
    except (StopIteration, CancelledError):
        return True
    return False


def still_there(body: Body) -> IotsimError:
    """Return the error of a coroutine that does not end."""
    return IotsimError(f"it did not end when it was cancelled; it waits at {place_of(body)}. "
                       "Let asyncio.CancelledError pass.")


_abandoned: deque[Body] = deque(maxlen=ABANDONED_KEPT)


def abandon(body: Body) -> None:
    """Try to close a coroutine that nobody will step any more; keep it if it will not have it."""
    try:
        body.close()
    except Exception:  # reported already
        if not _abandoned:
            atexit.register(_forget_abandoned)
        _abandoned.append(body)


def _forget_abandoned() -> None:
    # Python prints a complaint for each that it finds as garbage, at the latest when it exits.
    shown = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        _abandoned.clear()
    finally:
        sys.unraisablehook = shown


def spins(steps: int, parties: int) -> bool:
    """Return whether so many steps at one instant can only be somebody who spins."""
    return steps > STEPS_AT_ONE_INSTANT_MAX + 10 * parties


class Event:
    """A flag that parties can wait for.

    Examples
    --------
    >>> event = Event(Kernel(print))
    >>> event.is_set
    False
    """

    __slots__ = ("_kernel", "_waiters", "is_set")

    def __init__(self, kernel: Kernel) -> None:
        self.is_set = False
        kernel.linked = True
        self._kernel = kernel
        self._waiters: deque[Any] = deque()

    def set(self) -> None:
        """Set the flag and wake all who wait, at the setter's time."""
        self.is_set = True
        _wake(self._kernel, self._waiters, len(self._waiters))

    def clear(self) -> None:
        """Take the flag down."""
        self.is_set = False

    async def wait(self) -> None:
        """Return at once if the flag is set, else when it is."""
        while not self.is_set:
            await Park(self._waiters)


class Queue:
    """A bounded first-in-first-out queue between parties.

    Parameters
    ----------
    kernel : Kernel
    size_max : int
        `put` waits while that many items wait.
    """

    __slots__ = ("_getters", "_items", "_kernel", "_putters", "size_max")

    def __init__(self, kernel: Kernel, size_max: int = 1024) -> None:
        if not isinstance(size_max, int) or not 1 <= size_max <= QUEUE_SIZE_MAX:
            raise BadValue("size_max", size_max, "is not a whole number in range",
                           f"Give 1 to {QUEUE_SIZE_MAX:,}.")
        self.size_max = size_max
        kernel.linked = True
        self._kernel = kernel
        self._items: deque[Any] = deque()
        self._getters: deque[Any] = deque()
        self._putters: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: Any) -> None:
        """Add an item; waits while the queue is full."""
        while len(self._items) >= self.size_max:
            await Park(self._putters)
        self._items.append(item)
        _wake(self._kernel, self._getters, 1)

    async def get(self) -> Any:
        """Take the oldest item; waits while there is none."""
        while not self._items:
            await Park(self._getters)
        item = self._items.popleft()
        _wake(self._kernel, self._putters, 1)
        return item


def _wake(kernel: Kernel, waiters: deque[Any], count: int) -> None:
    now_us = kernel.current.now_us if kernel.current is not None else 0
    while count and waiters:
        party = waiters.popleft()
        if party.body is not None:  # one that was stopped must not swallow the call
            kernel.wake_at(party, now_us)
            count -= 1


def place_of(body: Body | None) -> str:
    """Return `file:line` of the innermost await of a coroutine, as far as it is Python."""
    place, inner = "an unknown line", body
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
        if frame is None:
            break
        code: CodeType = frame.f_code
        if not _is_library(code.co_filename):
            place = f"{code.co_filename}:{frame.f_lineno}"
        inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
    return place


def _is_library(filename: str) -> bool:
    return "asyncio" in filename.replace("\\", "/").split("/")[-2:-1]


def describe(request: Any) -> str:
    """Return what a foreign awaitable is, in a few words."""
    if request is None:
        return "asyncio.sleep(0) or a bare yield"
    return f"an asyncio {type(request).__name__}"
