"""Scripted devices on a running event loop: a task each, so that they may do real I/O.

A task drives its device's coroutine and passes on what it awaits: the kernel's own primitives park
it until the kernel wakes it; anything else is the loop's business, and the device counts as busy
meanwhile. The kernel wakes one party at a time, in the order in which it would step them by hand:
whoever parks hands over to the next. In virtual mode time stands still while somebody is busy; in
paced mode time goes on and the device is late, with the timestamps it would have had.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Generator
from typing import Any

from iotsim.clock import monotonic
from iotsim.engine.kernel import (
    CANCELS_MAX,
    Body,
    Kernel,
    Park,
    Sleep,
    abandon,
    place_of,
    spins,
    still_there,
)
from iotsim.errors import StalledError

STALL_S = 10.0
END_S = 0.4
_NEVER_US, _FOREVER_US = -(2**63), 2**62


class LiveKernel(Kernel):
    """A kernel whose parties are tasks on the running loop.

    Parameters
    ----------
    on_failure : callable (party, exception)
    is_virtual : callable () -> bool
        Whether time stands still while a party is busy.

    Attributes
    ----------
    held : callable (party) -> bool
        Whether a party has to wait for its lane. Parties that have an `Event` or a `Queue` may
        depend on each other: then all wait.
    """

    def __init__(
        self, on_failure: Callable[[Any, BaseException], None], is_virtual: Callable[[], bool]
    ) -> None:
        super().__init__(on_failure)
        self.held: Callable[[Any], bool] = _never
        self._is_virtual = is_virtual
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wakes: dict[int, asyncio.Future[None]] = {}
        self._foreign: set[int] = set()
        self._awake: set[int] = set()  # has not parked: all of them foreign, but one at most
        self._outgoing: dict[int, tuple[Any, Body]] = {}  # ended, and still cleaning up
        self._given_up: set[int] = set()
        self._held_back: list[tuple[int, int, Any]] = []
        self._until_us = self._instant_us = _NEVER_US
        self._steps_now = self._steps = 0
        self._slowest = 0.0, ""  # step, and whose it was
        self._rest = asyncio.Event()

    def slowest(self) -> tuple[float, str]:
        """Return how long the slowest step since the last call took, and whose it was."""
        found, self._slowest = self._slowest, (0.0, "")
        return found

    def stepped(self, party: Any, seconds: float) -> None:
        """Take note of how long a party kept the loop to itself."""
        if seconds > self._slowest[0]:
            self._slowest = seconds, str(party.name)

    @property
    def next_us(self) -> int | None:
        """When the next party is due, if one is waiting for time."""
        due = [entries[0][0] for entries in (self._heap, sorted(self._held_back)) if entries]
        return min(due, default=None)

    @property
    def begun_us(self) -> int:
        """The first instant that no party has seen: all before it is settled."""
        if self._held_back:
            return self._instant_us + 1
        due_us = self.next_us  # None: nobody will do anything by itself
        return _FOREVER_US if due_us is None else max(due_us, self._instant_us + 1)

    async def advance(self, until_us: int) -> None:
        """Wake every party that is due before an instant, one after the other.

        Raises
        ------
        StalledError
            In virtual mode, if a party has waited for something else for too long.
        """
        for entry in self._held_back:
            heapq.heappush(self._heap, entry)
        self._held_back.clear()
        self._until_us = self._reached_us = until_us
        try:
            while True:
                self._rest.clear()
                self._next()
                await self._at_rest()
                if not (self._foreign and self._is_virtual()):
                    return
        finally:
            self._until_us = _NEVER_US

    def stop_before(self, instant_us: int) -> None:
        """Wake nobody from an instant on, until somebody calls `advance` again."""
        self._until_us = min(self._until_us, instant_us)

    def _next(self) -> None:
        # Called whenever a party has parked, ended or turned to the outside world.
        if len(self._awake) > len(self._foreign):
            return
        heap = self._heap
        while heap and heap[0][0] < self._until_us:
            instant_us = heap[0][0]
            if self._foreign and instant_us > self._instant_us and self._is_virtual():
                break
            entry = heapq.heappop(heap)
            if entry[2].body is None:
                continue
            if self.held(entry[2]):
                self._held_back.append(entry)
                if self.linked:
                    break
                continue
            self._wake(entry[2], instant_us)
            return
        self._rest.set()

    def _wake(self, party: Any, instant_us: int) -> None:
        self._steps += 1
        self._steps_now = self._steps_now + 1 if instant_us == self._instant_us else 0
        self._instant_us = party.now_us = instant_us
        self._awake.add(party.order)
        wake = self._wakes.pop(party.order, None)
        if wake is None:
            self._tasks[party.order] = asyncio.create_task(
                self._live(party, party.body), name=f"iotsim {party.name}"
            )
        elif not wake.done():
            wake.set_result(None)
        if spins(self._steps_now, len(self._alive)):
            self._stop_spinning(party, self._steps_now)
            self._steps_now = 0

    async def _at_rest(self) -> None:
        while not self._rest.is_set():
            steps = self._steps
            try:
                async with asyncio.timeout(STALL_S):
                    await self._rest.wait()
            except TimeoutError:
                self._check_stall(steps)
        if self._foreign and self._is_virtual():
            await self._outside()

    async def _outside(self) -> None:
        # Time stands still until somebody comes back from the outside world.
        steps = self._steps
        self._rest.clear()
        try:
            async with asyncio.timeout(STALL_S):
                await self._rest.wait()
        except TimeoutError:
            self._check_stall(steps)

    def _check_stall(self, steps: int) -> None:
        if steps == self._steps and self._foreign and self._is_virtual():
            raise StalledError(self.waiting(), STALL_S) from None

    def _dismiss(self, party: Any) -> None:
        order = party.order
        task, wake = self._tasks.get(order), self._wakes.pop(order, None)
        if task is None:  # it has not begun
            super()._dismiss(party)
            self._tell_leaving()
            return
        # It cleans up in its own task, before anybody else goes on.
        self._outgoing[order] = party, self._part(party)
        if order in self._foreign:
            self._let_go(order)
            task.cancel()
        elif wake is not None and not wake.done():
            self._awake.add(order)
            wake.set_result(None)

    def _let_go(self, order: int) -> None:
        # Nobody waits for a party that has ended and waits for the outside world.
        self._foreign.discard(order)
        self._awake.discard(order)

    def waiting(self) -> list[str]:
        """Return which parties are busy, and where they wait, in words."""
        parties = [self._alive[order] for order in sorted(self._foreign) if order in self._alive]
        return [f"device {party.name!r} waits at {place_of(party.body)}" for party in parties]

    async def _live(self, party: Any, body: Body) -> None:
        try:
            await _Bridge(self, party, body)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            self._over(party)
            if task is not None and task.cancelling():
                raise
            self._on_failure(party, error)
        except BaseException as error:
            self._over(party)
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and (
                    threading.current_thread() is threading.main_thread()):
                raise  # in another thread it would end the loop, and not the program
            self._on_failure(party, error)
        else:
            self._over(party)

    def _over(self, party: Any) -> None:
        self._tasks.pop(party.order, None)
        self._wakes.pop(party.order, None)
        self._outgoing.pop(party.order, None)
        self._let_go(party.order)
        self._end(party)
        self._next()

    async def end(self) -> None:
        """End every party and wait until all are gone; name those that will not go."""
        for party in list(self._alive.values()):
            self._dismiss(party)
        tasks = list(self._tasks.values())
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=END_S)
        finally:
            self._give_up()
            self.close()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=END_S)

    def _give_up(self) -> None:
        for order, (party, body) in self._outgoing.items():
            self._given_up.add(order)
            self._on_failure(party, still_there(body))
            self._tasks[order].cancel()


def _never(party: Any) -> bool:
    return False


class _Bridge:
    """Drives one party's coroutine inside its task."""

    __slots__ = ("_body", "_kernel", "_party")

    def __init__(self, kernel: LiveKernel, party: Any, body: Body) -> None:
        self._kernel, self._party, self._body = kernel, party, body

    def __await__(self) -> Generator[Any, Any, None]:
        kernel, party = self._kernel, self._party
        error: BaseException | None = None
        while party.body is not None:
            try:
                request = self._step(error)
            except StopIteration:
                return
            error = None
            try:
                if type(request) is Sleep:
                    heapq.heappush(kernel._heap, (request.until_us, party.order, party))
                    yield from self._parked()
                elif type(request) is Park:
                    request.waiters.append(party)
                    yield from self._parked()
                else:
                    yield from self._foreign(request)
            except BaseException as raised:
                error = raised
        yield from self._ending()

    def _step(self, error: BaseException | None) -> Any:
        kernel, began_s = self._kernel, monotonic()
        kernel.current = self._party
        try:
            return self._body.send(None) if error is None else self._body.throw(error)
        finally:
            kernel.current = None
            kernel.stepped(self._party, monotonic() - began_s)

    def _parked(self) -> Generator[Any, None, None]:
        kernel, party = self._kernel, self._party
        wake = asyncio.get_running_loop().create_future()
        kernel._wakes[party.order] = wake
        kernel._awake.discard(party.order)
        kernel._next()
        if wake.done():  # it was its own turn again: the loop must have one, too
            yield
        else:
            yield from wake

    def _foreign(self, request: Any) -> Generator[Any, None, None]:
        kernel, party = self._kernel, self._party
        kernel._foreign.add(party.order)
        kernel._next()
        try:
            yield request
        finally:
            kernel._foreign.discard(party.order)
            kernel._steps += 1

    def _ending(self) -> Generator[Any, None, None]:
        # As `kernel.ended`, but the outside world may still be waited for, for a while.
        kernel, order = self._kernel, self._party.order
        error: BaseException | None = asyncio.CancelledError()
        cancels = 0
        while cancels < CANCELS_MAX:
            try:
                request = self._step(error)
            except (StopIteration, asyncio.CancelledError):
                return
            if type(request) in (Sleep, Park):
                error = asyncio.CancelledError()
                cancels += 1
                continue
            kernel._let_go(order)
            kernel._next()
            error = None
            try:
                yield request
            except BaseException as raised:
                error = raised
            if order in kernel._given_up:
                abandon(self._body)
                return
        kernel._abandon(self._party, self._body)
