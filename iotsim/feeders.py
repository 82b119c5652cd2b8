"""From readings to pumps: encoding, lanes, and who has to wait for whom.

A feeder stands before one lane of one pump. It is bounded: while it is full, the devices of that
lane are not stepped (they are late, with the timestamps they would have had) and nobody else
notices.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from iotsim.members import Members
from iotsim.outlets import Route
from iotsim.publishers.payload import Encoder, Messages
from iotsim.publishers.pump import Pump
from iotsim.readings import Group, Readings
from iotsim.seeding import fnv1a_many, mix_many

FEEDER_ROWS = 1000


class Feeder:
    """Hands messages to one lane of a pump, in order, as the lane takes them."""

    def __init__(self, pump: Pump, lane: int, moved: Callable[[], None]) -> None:
        self._pump, self._lane, self._moved = pump, lane, moved
        self._queue: deque[Messages] = deque()
        self._rows = self._offering = 0
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether the lane's devices have to wait."""
        return self._rows >= FEEDER_ROWS

    @property
    def empty(self) -> bool:
        """Whether everything was handed over."""
        return not self._rows

    def put(self, messages: Messages) -> None:
        """Take messages; they go on in the background."""
        self._queue.append(messages)
        self._rows += len(messages)
        self._filled.set()
        if self._task is None:
            self._task = asyncio.create_task(self._feed())

    async def _feed(self) -> None:
        while True:
            while self._queue:
                messages = self._queue.popleft()
                self._offering = len(messages)
                await self._pump.offer(self._lane, messages)
                self._rows -= self._offering
                self._offering = 0
                self._moved()
            self._filled.clear()
            await self._filled.wait()

    async def end(self) -> None:
        """Stop feeding; what was never offered is counted as dropped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
            # What was being offered when it was cancelled is in the lane's own account.
            self._pump.discard(self._rows - self._offering, "stopped before its lane had room")
            self._rows = self._offering = 0
            self._queue.clear()


class Switchboard:
    """Knows for every device which lanes its readings go to.

    Parameters
    ----------
    routes : sequence of Route
    pumps : sequence of Pump
        One per route.
    members : sequence of Members
    groups : sequence of Group
    run_id : str
    moved : callable ()
        Told when a feeder handed something over.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        pumps: Sequence[Pump],
        members: Sequence[Members],
        groups: Sequence[Group],
        run_id: str,
        moved: Callable[[], None],
    ) -> None:
        self._pumps = pumps
        self._encoders = [_encoder(route, members, run_id) for route in routes]
        self.feeders = [[Feeder(pump, i, moved) for i in range(pump.lanes)] for pump in pumps]
        self._lanes = [
            _lanes(route, pump, groups) for route, pump in zip(routes, pumps, strict=True)
        ]

    def prepare(self, groups: Sequence[Group]) -> None:
        """Make what does not change between readings, so that the first slot is not late."""
        for encoder, lanes in zip(self._encoders, self._lanes, strict=True):
            for group in groups:
                if group.index in lanes:
                    encoder.prepare(group)

    def parts(self, group: Group) -> list[npt.NDArray[np.int32]]:
        """Return the devices of a group, apart where they go to different lanes."""
        everyone = np.arange(len(group), dtype=np.int32)
        ways = [lanes[group.index] for lanes in self._lanes if group.index in lanes]
        if not ways:
            return [everyone]
        _, kinds = np.unique(np.stack(ways), axis=1, return_inverse=True)
        kinds = kinds.reshape(-1)
        return [everyone[kinds == kind] for kind in range(int(kinds.max()) + 1)]

    def of_device(self, group: Group, i: int) -> list[Feeder]:
        """Return the feeders of one device."""
        return [
            self.feeders[r][int(lanes[group.index][i])]
            for r, lanes in enumerate(self._lanes)
            if group.index in lanes and lanes[group.index][i] >= 0
        ]

    def put(self, readings: Readings) -> None:
        """Hand readings to every lane that they go to."""
        index = readings.group.index
        for encoder, feeders, lanes in zip(
            self._encoders, self.feeders, self._lanes, strict=True
        ):
            if index not in lanes:
                continue
            places = lanes[index][readings.device]
            first = int(places[0])
            if (places == first).all():
                if first >= 0:
                    feeders[first].put(encoder.encode(readings))
                continue
            for lane in np.unique(places[places >= 0]).tolist():
                feeders[lane].put(encoder.encode(readings.take(places == lane)))

    def discard(self, readings: Readings, reason: str) -> None:
        """Count readings as dropped by every pump that they would have gone to."""
        index = readings.group.index
        for pump, lanes in zip(self._pumps, self._lanes, strict=True):
            if index in lanes:
                count = int((lanes[index][readings.device] >= 0).sum())
                pump.discard(count, reason)

    @property
    def empty(self) -> bool:
        """Whether every feeder has handed over what it had."""
        return all(feeder.empty for row in self.feeders for feeder in row)

    async def end(self) -> None:
        """Stop all feeders."""
        for row in self.feeders:
            for feeder in row:
                await feeder.end()


def _encoder(route: Route, members: Sequence[Members], run_id: str) -> Encoder:
    outlet = route.outlet
    return Encoder(run_id, lambda group, i: outlet.topic_of(members[group.index], group, i))


def _lanes(
    route: Route, pump: Pump, groups: Sequence[Group]
) -> Mapping[int, npt.NDArray[np.int64]]:
    found = {}
    for group in groups:
        mask = route.masks.get(group.index)
        if mask is not None:
            lanes = pump.lane_of(mix_many(fnv1a_many(group.ids)))
            found[group.index] = np.where(mask, lanes, -1)
    return found
