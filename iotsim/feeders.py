"""From readings to pumps: encoding, lanes, and who has to wait for whom.

A feeder stands before one lane of one pump. It is bounded: while it is full, the devices of that
lane are not stepped (they are late, with the timestamps they would have had) and nobody else
notices.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from iotsim.members import Members
from iotsim.outlets import Outlet, Route, identity_of, more_of
from iotsim.publishers.base import Identity, OwnSessions, Publisher, session_of
from iotsim.publishers.payload import Encoder, Messages
from iotsim.publishers.pump import Pump
from iotsim.readings import Group, Ints, Readings
from iotsim.seeding import fnv1a_many, mix_many

FEEDER_ROWS = 1000

MakePump = Callable[[Publisher, int, "Sequence[Identity] | None"], Pump]


class Feeder:
    """Hands messages to one lane of a pump, in order, as the lane takes them."""

    def __init__(self, pump: Pump, lane: int, moved: Callable[[], None]) -> None:
        self.pump, self.lane, self._moved = pump, lane, moved
        self._queue: deque[Messages] = deque()
        self.rows = self._offering = 0  # what it has not handed over
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether the lane's devices have to wait."""
        return self.rows >= FEEDER_ROWS

    @property
    def waiting(self) -> int:
        """How many messages it has not begun to hand over."""
        return self.rows - self._offering

    @property
    def stuck(self) -> bool:
        """Whether its lane has no room for what it hands over now."""
        return self._offering > 0  # where there is room, nobody sees it between two turns

    @property
    def empty(self) -> bool:
        """Whether everything was handed over."""
        return not self.rows

    def put(self, messages: Messages) -> None:
        """Take messages; they go on in the background. What none can carry is dropped here."""
        for reason, count in messages.missing.items():
            self.pump.discard(count, reason)
        if not len(messages):
            return
        self._queue.append(messages)
        self.rows += len(messages)
        self._filled.set()
        if self._task is None:
            self._task = asyncio.create_task(self._feed())

    async def _feed(self) -> None:
        while True:
            while self._queue:
                messages = self._queue.popleft()
                self._offering = len(messages)
                await self.pump.offer(self.lane, messages)
                self.rows -= self._offering
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
            self.pump.discard(self.rows - self._offering, "stopped before its lane had room")
            self.rows = self._offering = 0
            self._queue.clear()


@dataclass(slots=True, eq=False)
class Way:
    """One route with its pump: which device goes to which lane.

    Attributes
    ----------
    lane : int64 array
        By slot; −1 for devices that do not go here.
    """

    route: Route
    pump: Pump
    encoder: Encoder
    lane: Ints
    feeders: list[Feeder] = field(default_factory=list)
    groups: dict[int, Ints] = field(default_factory=dict)  # lanes by group
    slowed: set[int] = field(default_factory=set)  # lanes whose devices publish every second tick
    ids: dict[int, list[str]] = field(default_factory=dict)  # of lanes that are not for everybody
    slots: dict[int, list[int]] = field(default_factory=dict)  # of the same
    sessions: dict[str, int] = field(default_factory=dict)  # by name, their lanes
    closing: set[int] = field(default_factory=set)  # lanes that end with their last device

    @property
    def per_device(self) -> bool:
        """Whether each device has a session of its own."""
        return self.route.publisher.per_device

    @property
    def mixed(self) -> bool:
        """Whether devices of all lanes are stepped together: none of them ever waits."""
        limits = self.route.publisher.limits
        return self.per_device and limits.backpressure == "drop_oldest"

    def put(self, readings: Readings, places: Ints) -> None:
        """Encode readings of several lanes at once, and hand each lane its own.

        Parameters
        ----------
        readings : Readings
        places : int64 array, shape (rows,)
            The lane of each row; −1 for those that do not go here.
        """
        if (places < 0).any():
            readings, places = readings.take(places >= 0), places[places >= 0]
        messages = self.encoder.encode(readings)
        for reason, count in messages.missing.items():
            self.pump.discard(count, reason)
        lanes = (places if messages.kept is None else places[messages.kept]).tolist()
        rows: dict[int, list[int]] = {}
        for row, lane in enumerate(lanes):
            rows.setdefault(lane, []).append(row)
        for lane, mine in rows.items():
            self.feeders[lane].put(messages.take(mine))

    def lane_selector(self, lane: int) -> str | dict[str, list[str]]:
        """Return a selector of the devices of one lane, as the action log holds it."""
        if self.per_device:
            return {"ids": list(self.ids[lane])}
        return replace(self.route.outlet.where, shard=(lane, self.pump.lanes)).spec()

    @property
    def slows_down(self) -> bool:
        """Whether a lane that fills up slows its devices down."""
        return self.route.publisher.limits.backpressure == "slow_down"


class Switchboard:
    """Knows for every device which lanes its readings go to.

    Parameters
    ----------
    outlets : sequence of Outlet
    routes : sequence of Route
        Where the devices go that are there from the beginning.
    run_id : str
    moved : callable ()
        Told when a feeder handed something over.
    make_pump : callable (publisher, devices, identities or None) -> Pump
    """

    def __init__(
        self, outlets: Sequence[Outlet], routes: Sequence[Route], run_id: str,
        moved: Callable[[], None], make_pump: MakePump,
    ) -> None:
        self._outlets, self._run_id, self._moved = outlets, run_id, moved
        self._make_pump = make_pump
        self._members: dict[int, Members] = {}
        self._initial = True
        self._seen = 0  # how many slots there are
        self.ways: list[Way] = []
        for route in routes:
            self._add_way(route)

    def _add_way(self, route: Route) -> Way:
        pump = self._make_pump(route.publisher, route.devices, route.identities)
        outlet, members = route.outlet, self._members
        own: Callable[[str], Encoder] | None = getattr(route.publisher, "encoder", None)
        encoder = Encoder(
            self._run_id, lambda group, i: outlet.topic_of(members[group.index], group, i),
            route.publisher.tracing.audit_field,
        ) if own is None else own(self._run_id)
        way = Way(route, pump, encoder, np.empty(0, dtype=np.int64))
        self.ways.append(way)
        self._match_feeders(way)
        return way

    def _match_feeders(self, way: Way) -> None:
        while len(way.feeders) < way.pump.lanes:
            way.feeders.append(Feeder(way.pump, len(way.feeders), self._moved))

    @property
    def mixed(self) -> bool:
        """Whether some devices have lanes of their own that never hold them up."""
        return any(way.mixed for way in self.ways)

    @property
    def pumps(self) -> list[Pump]:
        """The pump of every route."""
        return [way.pump for way in self.ways]

    @property
    def feeders(self) -> list[list[Feeder]]:
        """The feeders of every route."""
        return [way.feeders for way in self.ways]

    # -- who goes where -------------------------------------------------------------------------

    def prepare(self, members: Sequence[Members], groups: Sequence[Group]) -> None:
        """Make what does not change between readings, so that the first slot is not late."""
        for member, group in zip(members, groups, strict=True):
            self._members[group.index] = member
            for way in self.ways:
                if group.index in way.route.masks:
                    way.encoder.prepare(group)

    def opened(self) -> None:
        """Take note that the run has begun: who joins from now on joins pumps that are open."""
        self._initial = False

    def check(self, member: Members, group: Group, slots: Ints | None) -> None:
        """Raise if there is no topic, or no room, for devices that begin or change group.

        Parameters
        ----------
        member : Members
        group : Group
        slots : int64 array or None
            None: they begin.
        """
        if slots is not None:
            for way in self.ways:
                if (way.lane[slots] >= 0).any():
                    way.route.outlet.topic_of(member, group, 0)
            return
        for outlet in self._outlets:
            publisher, mask = more_of(outlet, member, group)
            if mask.any():
                outlet.topic_of(member, group, int(np.flatnonzero(mask)[0]))
                if publisher.per_device:
                    self._check_sessions(outlet, publisher, group, mask)

    def _check_sessions(
        self, outlet: Outlet, publisher: Publisher, group: Group, mask: npt.NDArray[np.bool_]
    ) -> None:
        ways = [way for way in self.ways if way.route.outlet is outlet]
        there = sum(way.pump.lanes for way in ways)
        known = {name for way in ways for name in way.sessions}
        added = {one.device_id: one for i in np.flatnonzero(mask).tolist()
                 if (one := identity_of(publisher, group, i)).device_id not in known}
        publisher.lanes(there + len(added))
        for device in added.values():
            cast(OwnSessions, publisher).check_device(device)

    def joined(self, member: Members, group: Group, slots: Ints) -> None:
        """Find the lanes of devices that begin, or that are in another group from now on."""
        self._members[group.index] = member
        known = not len(slots) or int(slots[-1]) < self._seen
        self._seen = self._seen if known else int(slots[-1]) + 1
        if not known and not self._initial:
            self._route_more(member, group, slots)
        for way in self.ways:
            if not known:
                mask = way.route.masks.get(group.index)
                lanes = np.full(len(slots), -1, dtype=np.int64)
                if mask is not None:
                    lanes = self._fresh_lanes(way, group, mask, slots)
                way.lane = np.append(way.lane, lanes)
            if (way.lane[slots] >= 0).any():
                way.groups[group.index] = way.lane[slots]
                way.encoder.prepare(group)

    def _fresh_lanes(
        self, way: Way, group: Group, mask: npt.NDArray[np.bool_], slots: Ints
    ) -> Ints:
        if not way.per_device:
            lanes = way.pump.lane_of(mix_many(fnv1a_many(group.ids)))
            return np.where(mask, lanes, -1)
        lanes = np.full(len(group), -1, dtype=np.int64)
        publisher = way.route.publisher
        for i in np.flatnonzero(mask).tolist():
            name = session_of(publisher, group.ids[i])
            lane = way.sessions.get(name)
            if lane is None:
                # At the beginning the pump has its lanes already, in this order.
                lane = len(way.sessions) if self._initial else way.pump.add_lane(
                    identity_of(publisher, group, i))
                way.sessions[name] = lane
            lanes[i] = lane
            way.ids.setdefault(lane, []).append(group.ids[i])
            way.slots.setdefault(lane, []).append(int(slots[i]))
        if not self._initial:
            self._match_feeders(way)
        return lanes

    def _route_more(self, member: Members, group: Group, slots: Ints) -> None:
        # Devices that join a live run go where its outlets say; a publisher that nobody had until
        # now is opened as after an outage.
        for outlet in self._outlets:
            publisher, mask = more_of(outlet, member, group)
            if not mask.any():
                continue
            fitting = [way for way in self.ways if way.route.outlet is outlet
                       and way.route.publisher == publisher]
            if fitting:
                way = fitting[0]
            else:
                names = () if publisher.per_device else None
                way = self._add_way(Route(outlet, publisher, {}, int(mask.sum()), names))
                way.lane = np.full(int(slots[0]), -1, dtype=np.int64)
                way.pump.begin()
            masks = {**way.route.masks, group.index: mask}
            way.route = replace(way.route, masks=masks)

    def parts(self, group: Group) -> list[npt.NDArray[np.int32]]:
        """Return the devices of a group, apart where they go to different lanes."""
        everyone = np.arange(len(group), dtype=np.int32)
        # Where lanes never hold anybody up, only who goes there at all matters.
        ways = [np.minimum(way.groups[group.index], 0) if way.mixed else way.groups[group.index]
                for way in self.ways if group.index in way.groups]
        if not ways:
            return [everyone]
        _, kinds = np.unique(np.stack(ways), axis=1, return_inverse=True)
        kinds = kinds.reshape(-1)
        order = np.argsort(kinds, kind="stable")
        return np.split(everyone[order], np.flatnonzero(np.diff(kinds[order])) + 1)

    def of_slot(self, slot: int) -> list[Feeder]:
        """Return the feeders of one device."""
        return [way.feeders[int(way.lane[slot])] for way in self.ways if way.lane[slot] >= 0]

    # -- readings -------------------------------------------------------------------------------

    def put(self, readings: Readings) -> None:
        """Hand readings that leave now to every lane that they go to."""
        if not len(readings):
            return
        index = readings.group.index
        for way in self.ways:
            if index not in way.groups:
                continue
            places = way.groups[index][readings.device]
            first = int(places[0])
            if (places == first).all():
                if first >= 0:
                    way.feeders[first].put(way.encoder.encode(readings))
                continue
            if way.mixed:
                way.put(readings, places)
                continue
            for lane in np.unique(places[places >= 0]).tolist():
                way.feeders[lane].put(way.encoder.encode(readings.take(places == lane)))

    def discard(self, readings: Readings, reason: str) -> None:
        """Count readings as dropped by every pump that they would have gone to."""
        index = readings.group.index
        for way in self.ways:
            if index in way.groups:
                count = int((way.groups[index][readings.device] >= 0).sum())
                way.pump.discard(count, reason)

    @property
    def empty(self) -> bool:
        """Whether every feeder has handed over what it had."""
        return all(feeder.empty for way in self.ways for feeder in way.feeders)

    async def end(self) -> None:
        """Stop all feeders."""
        for way in self.ways:
            for feeder in way.feeders:
                await feeder.end()
