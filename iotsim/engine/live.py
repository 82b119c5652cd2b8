"""Scripted devices on a running event loop: a task each, so that they may do real I/O.

A task drives its device's coroutine and passes on what it awaits: the kernel's own primitives park
it until the kernel wakes it; anything else is the loop's business, and the device counts as busy
meanwhile. In virtual mode time stands still until nobody is busy; in paced mode time goes on and
the device is late, with the timestamps it would have had.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Generator
from typing import Any

from iotsim.engine.kernel import Kernel, Park, Sleep, place_of
from iotsim.errors import StalledError

STALL_S = 10.0
ROUNDS_AT_ONE_INSTANT_MAX = 20_000  # beyond, somebody spins


class LiveKernel(Kernel):
    """A kernel whose parties are tasks on the running loop.

    Parameters
    ----------
    on_failure : callable (party, exception)
    is_virtual : callable () -> bool
        Whether time stands still while a party is busy.
    """

    def __init__(
        self, on_failure: Callable[[Any, BaseException], None], is_virtual: Callable[[], bool]
    ) -> None:
        super().__init__(on_failure)
        self.held: Callable[[Any], bool] = _never
        self._is_virtual = is_virtual
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wakes: dict[int, asyncio.Future[None]] = {}
        self._awake = 0
        self._foreign: set[int] = set()
        self._steps = 0
        self._changed = asyncio.Event()

    @property
    def next_us(self) -> int | None:
        """When the next party is due, if one is waiting for time."""
        return self._heap[0][0] if self._heap else None

    @property
    def n_tasks(self) -> int:
        """How many tasks there are."""
        return len(self._tasks)

    async def advance(self, until_us: int) -> None:
        """Wake every party that is due before an instant, in order, and let it run.

        Raises
        ------
        StalledError
            In virtual mode, if a party has waited for something else for too long.
        """
        heap = self._heap
        delayed: list[tuple[int, int, Any]] = []
        last_us, rounds = -1, 0
        while True:
            while heap and heap[0][0] < until_us:
                instant_us = heap[0][0]
                rounds = rounds + 1 if instant_us == last_us else 0
                last_us = instant_us
                if rounds > ROUNDS_AT_ONE_INSTANT_MAX:
                    self._stop_spinning(heapq.heappop(heap)[2], rounds)
                    continue
                while heap and heap[0][0] == instant_us:
                    entry = heapq.heappop(heap)
                    if self.held(entry[2]):
                        delayed.append(entry)
                    else:
                        self._wake(entry[2], instant_us)
                await self._settle()
            if not self._busy():
                break
            await self._settle()
            if not (heap and heap[0][0] < until_us):
                break
        for entry in delayed:
            heapq.heappush(heap, entry)

    def _busy(self) -> bool:
        # In paced mode a party that waits for the outside world holds nobody up.
        return self._awake > (0 if self._is_virtual() else len(self._foreign))

    def _wake(self, party: Any, instant_us: int) -> None:
        if party.body is None:
            return
        party.now_us = instant_us
        self._awake += 1
        self._steps += 1
        wake = self._wakes.pop(party.order, None)
        if wake is None:
            self._tasks[party.order] = asyncio.create_task(
                self._live(party), name=f"iotsim {party.name}"
            )
        elif not wake.done():
            wake.set_result(None)

    async def _settle(self) -> None:
        while self._busy():
            self._changed.clear()
            steps = self._steps
            try:
                async with asyncio.timeout(STALL_S):
                    await self._changed.wait()
            except TimeoutError:
                if steps == self._steps and self._busy():
                    raise StalledError(self.waiting(), STALL_S) from None

    def _drop(self, party: Any) -> None:
        task = self._tasks.get(party.order)
        if task is not None:
            task.cancel()

    def waiting(self) -> list[str]:
        """Return which parties are busy, and where they wait, in words."""
        parties = [self._alive[order] for order in sorted(self._foreign) if order in self._alive]
        return [f"device {party.name!r} waits at {place_of(party.body)}" for party in parties]

    async def _live(self, party: Any) -> None:
        try:
            await _Bridge(self, party)
        except asyncio.CancelledError:
            self._over(party)
            raise
        except Exception as error:
            self._over(party)
            self._on_failure(party, error)
        else:
            self._over(party)

    def _over(self, party: Any) -> None:
        self._tasks.pop(party.order, None)
        wake = self._wakes.pop(party.order, None)
        if wake is None:
            self._awake -= 1
        self._end(party)
        self._note()

    def _note(self) -> None:
        self._steps += 1
        self._changed.set()

    async def end(self) -> None:
        """Cancel every party and wait until all are gone."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self.close()


def _never(party: Any) -> bool:
    return False


class _Bridge:
    """Drives one party's coroutine inside its task."""

    __slots__ = ("_kernel", "_party")

    def __init__(self, kernel: LiveKernel, party: Any) -> None:
        self._kernel, self._party = kernel, party

    def __await__(self) -> Generator[Any, Any, None]:
        kernel, party = self._kernel, self._party
        body, error = party.body, None
        while True:
            kernel.current = party
            try:
                request = body.send(None) if error is None else body.throw(error)
            except StopIteration:
                return
            finally:
                kernel.current = None
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

    def _parked(self) -> Generator[Any, None, None]:
        kernel, party = self._kernel, self._party
        wake = asyncio.get_running_loop().create_future()
        kernel._wakes[party.order] = wake
        kernel._awake -= 1
        kernel._note()
        yield from wake

    def _foreign(self, request: Any) -> Generator[Any, None, None]:
        kernel, party = self._kernel, self._party
        kernel._foreign.add(party.order)
        kernel._note()
        try:
            yield request
        finally:
            kernel._foreign.discard(party.order)
            kernel._steps += 1
